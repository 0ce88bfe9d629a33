package guest

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"ganeti-instance-image/internal/size"
)

func TestSetHostname(t *testing.T) {
	const debian, rhel = "ID=debian\n", "ID=rhel\nVERSION_ID=9.4\n"
	static := netip.MustParseAddr("192.0.2.10")
	cases := []struct {
		name, fqdn string
		ip         netip.Addr
		files      map[string]string
		want       map[string]string
	}{
		{"Debian", "web.example.org", netip.Addr{},
			map[string]string{"etc/os-release": debian, "etc/hostname": "old\n", "etc/mailname": "old.example.net\n", "etc/hosts": "127.0.0.1\tlocalhost\n127.0.1.1\told.example.net\told\n\n# v6\n::1 localhost\n10.0.0.1 gold bold\n"},
			map[string]string{"etc/hostname": "web\n", "etc/mailname": "web.example.org\n", "etc/hosts": "127.0.0.1\tlocalhost\n127.0.1.1\tweb.example.org\tweb\n\n# v6\n::1 localhost\n10.0.0.1 gold bold\n"}},
		{"a static address", "web.example.org", static,
			map[string]string{"etc/os-release": debian, "etc/hostname": "old\n", "etc/hosts": "127.0.0.1 localhost\n10.0.0.7  old.example.net old puppet # old\n"},
			map[string]string{"etc/hosts": "127.0.0.1 localhost\n192.0.2.10  web.example.org web puppet # old\n"}},
		{"nothing there", "web.example.org", static, map[string]string{"etc/os-release": debian},
			map[string]string{"etc/hostname": "web\n", "etc/hosts": "127.0.0.1\tlocalhost\n192.0.2.10\tweb.example.org web\n::1\tlocalhost ip6-localhost ip6-loopback\n", "etc/mailname": "", "etc/sysconfig/network": ""}},
		{"RHEL 9", "web.example.org", netip.Addr{},
			map[string]string{"etc/os-release": rhel, "usr/lib/systemd/systemd": "", "etc/hosts": "127.0.0.1   localhost localhost.localdomain\n::1 localhost", "etc/sysconfig/network": "# anaconda\n", "etc/sysconfig/network-scripts/ifcfg-ens3": "A=1\nDHCP_HOSTNAME=old\n"},
			map[string]string{"etc/hostname": "web.example.org\n", "etc/hosts": "127.0.0.1   localhost localhost.localdomain\n127.0.1.1\tweb.example.org web\n::1 localhost", "etc/sysconfig/network": "# anaconda\n", "etc/sysconfig/network-scripts/ifcfg-ens3": "A=1\n"}},
		{"RHEL 6", "web.example.org", netip.Addr{},
			map[string]string{"etc/redhat-release": "CentOS release 6.10 (Final)\n", "etc/sysconfig/network": "NETWORKING=yes\nHOSTNAME=\"old.example.net\"\nX=1\n", "etc/hosts": "127.0.0.1 old.example.net old localhost\n"},
			map[string]string{"etc/hostname": "", "etc/sysconfig/network": "NETWORKING=yes\nHOSTNAME=web.example.org\nX=1\n", "etc/hosts": "127.0.0.1 web.example.org web localhost\n"}},
		{"old SUSE", "web.example.org", netip.Addr{}, map[string]string{"etc/SuSE-release": "SUSE\nVERSION = 11\n", "etc/HOSTNAME": "old.site\n", "etc/hosts": "127.0.0.1 localhost\n"},
			map[string]string{"etc/hostname": "", "etc/HOSTNAME": "web.example.org\n"}},
		{"SUSE", "web.example.org", netip.Addr{}, map[string]string{"etc/os-release": "ID=opensuse-leap\n", "etc/hostname": "old\n", "etc/HOSTNAME": "-> hostname", "etc/sysconfig/network/config": "x=y\n"},
			map[string]string{"etc/hostname": "web\n", "etc/sysconfig/network/config": "x=y\n"}},
		{"OpenRC", "web", netip.Addr{}, map[string]string{"etc/conf.d/hostname": "# x\nhostname=\"old\"\n", "etc/hosts": "127.0.0.1 localhost old.dom old\n"},
			map[string]string{"etc/conf.d/hostname": "# x\nhostname=\"web\"\n", "etc/hostname": "web\n", "etc/hosts": "127.0.0.1 localhost web\n"}},
		{"short alone", "web.example.org", netip.Addr{}, map[string]string{"etc/hostname": "old\n", "etc/hosts": "127.0.0.1 localhost old\n"},
			map[string]string{"etc/hosts": "127.0.0.1 localhost web\n127.0.1.1\tweb.example.org web\n"}},
		{"a stale 127.0.1.1", "web.example.org", netip.Addr{}, map[string]string{"etc/hostname": "localhost\n", "etc/hosts": "127.0.1.1 installer # was\n"},
			map[string]string{"etc/hosts": "127.0.1.1 web.example.org web installer # was\n"}},
		{"a stale 127.0.1.1, static", "web.example.org", static, map[string]string{"etc/hostname": "localhost\n", "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 debian\n"},
			map[string]string{"etc/hosts": "127.0.0.1 localhost\n192.0.2.10 web.example.org web debian\n"}},
		{"the whole name alone", "web.example.org", static, map[string]string{"etc/hostname": "old\n", "etc/hosts": "127.0.0.1 localhost web.example.org x\n"},
			map[string]string{"etc/hosts": "127.0.0.1 localhost web.example.org web x\n"}},
		{"a dot behind it", "web.example.org", static, map[string]string{"etc/hostname": "old.example.net\n", "etc/hosts": "192.0.2.7 old.example.net. old\n"},
			map[string]string{"etc/hosts": "192.0.2.10 web.example.org web\n"}},
		{"names in interface files", "web", netip.Addr{}, map[string]string{"etc/sysconfig/network-scripts/ifcfg-a": "A=1\nDHCP_FQDN=old.example.org\n", "etc/hosts": "127.0.0.1 web\n"},
			map[string]string{"etc/sysconfig/network-scripts/ifcfg-a": "A=1\n"}},
		{"a link away", "web.example.org", netip.Addr{}, map[string]string{"etc/hostname": "-> ../../../../x", "etc/hosts": ""},
			map[string]string{"x": "web\n", "etc/hosts": "127.0.1.1\tweb.example.org web\n"}},
	}
	for _, c := range cases {
		root, dir := guestOf(t, c.files)
		if _, err := root.SetHostname(c.fqdn, c.ip); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		for file, text := range c.want {
			got, err := os.ReadFile(filepath.Join(dir, file))
			if string(got) != text || text == "" && err == nil {
				t.Errorf("%s: %s is\n%s\nwant\n%s", c.name, file, got, text)
			}
		}
		if changes, err := root.SetHostname(c.fqdn, c.ip); err != nil || len(changes) > 0 {
			t.Errorf("%s: a second time %q, %v", c.name, changes, err)
		}
	}
	root, _ := tree(t)
	for _, name := range []string{"", ".", "a..b", "-a", "a\nb", "a b", strings.Repeat("a.", 127) + "a", strings.Repeat("a", 64), "a."} {
		if _, err := root.SetHostname(name, netip.Addr{}); err == nil {
			t.Errorf("%q is taken", name)
		}
	}
}

// A large file takes neither much memory nor much time, whatever is in it.
func TestLargeHosts(t *testing.T) {
	const large = 2 * size.MiB
	for _, piece := range []string{"\n", "0 a\n", "0 old\n"} {
		text := strings.Repeat(piece, int(large)/len(piece))
		h := &naming{fqdn: "web.example.org", short: "web", old: []string{"old.example.net", "old"}}
		r := &renaming{old: "old.example.net", oldShort: "old", new: "web.example.org", newShort: "web"}
		for what, edit := range map[string]func(string) string{"naming": h.editHosts, "renaming": r.hosts} {
			start := time.Now()
			if got := allocated(func() { edit(text) }); got > 8*large && piece != "0 old\n" {
				t.Errorf("%s: %q takes %v", what, piece, got)
			}
			if took := time.Since(start); took > 4*time.Second {
				t.Errorf("%s: %q takes %v", what, piece, took)
			}
		}
	}
	var text strings.Builder
	for n := range 100000 {
		fmt.Fprintf(&text, "10.0.0.1 old a%d\n", n)
	}
	h := &naming{fqdn: "web.example.org", short: "web", old: []string{"old.example.net", "old"}}
	if got := allocated(func() { h.editHosts(text.String()) }); got > 8*large {
		t.Errorf("many lines about the guest take %v", got)
	}
}

// allocated is how much memory a step takes, whether or not it is given back.
func allocated(step func()) size.Bytes {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	step()
	runtime.ReadMemStats(&after)
	return size.Bytes(after.TotalAlloc - before.TotalAlloc)
}

func TestEditHosts(t *testing.T) {
	const added = "127.0.1.1\tweb.example.org web\n"
	long := "10.0.0.7 old.example.net " + strings.Repeat("x", maxHostsLine-26) + "\n"
	for text, want := range map[string]string{
		"":                             added,
		"127.0.0.1 old\n127.0.0.1 old": "127.0.0.1 web\n" + added,
		"127.0.0.1 old\n::1 old":       "127.0.0.1 web\n" + added + "::1 web",
		long:                           added + long,
	} {
		h := &naming{fqdn: "web.example.org", short: "web", old: []string{"old.example.net", "old"}}
		if got := h.editHosts(text); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
		if again := h.editHosts(want); again != want {
			t.Errorf("and then %q", again)
		}
	}
}

func FuzzHosts(f *testing.F) {
	f.Add("127.0.0.1\tlocalhost\n127.0.1.1\told.example.net\told\n10.0.0.7 old # old\n")
	f.Add("::1 old\r\n fe80::1%eth0 old.x old.y\n127.0.1.1\n127.0.1.1 #\n127.9.9.9")
	f.Add("0 old\n0 old")
	f.Add("127.0.0.1 old\n127.0.0.1 old")
	f.Fuzz(func(t *testing.T, text string) {
		h := &naming{fqdn: "web.example.org", short: "web", old: []string{"old.example.net", "old"}}
		once := h.editHosts(text)
		h.old = append(h.old, "web.example.org", "web")
		if twice := h.editHosts(once); twice != once {
			t.Fatalf("%q became\n%s\nand then\n%s", text, once, twice)
		}
	})
}
