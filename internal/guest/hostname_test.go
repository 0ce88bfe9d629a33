package guest

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
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
		{"OpenRC", "web", netip.Addr{}, map[string]string{"etc/conf.d/hostname": "# x\nhostname=\"old\"\n", "etc/hosts": "127.0.0.1 localhost old.dom old\n"},
			map[string]string{"etc/conf.d/hostname": "# x\nhostname=\"web\"\n", "etc/hostname": "web\n", "etc/hosts": "127.0.0.1 localhost web\n"}},
		{"short alone", "web.example.org", netip.Addr{}, map[string]string{"etc/hostname": "old\n", "etc/hosts": "127.0.0.1 localhost old\n"},
			map[string]string{"etc/hosts": "127.0.0.1 localhost web\n127.0.1.1\tweb.example.org web\n"}},
		{"a stale 127.0.1.1", "web.example.org", netip.Addr{}, map[string]string{"etc/hostname": "localhost\n", "etc/hosts": "127.0.1.1 installer # was\n"},
			map[string]string{"etc/hosts": "127.0.1.1 web.example.org installer # was\n"}},
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

func FuzzHosts(f *testing.F) {
	f.Add("127.0.0.1\tlocalhost\n127.0.1.1\told.example.net\told\n10.0.0.7 old # old\n")
	f.Add("::1 old\r\n fe80::1%eth0 old.x old.y\n127.0.1.1\n127.0.1.1 #\n127.9.9.9")
	f.Add("0 old\n0 old")
	f.Fuzz(func(t *testing.T, text string) {
		h := &naming{fqdn: "web.example.org", short: "web", old: []string{"old.example.net", "old"}}
		once := h.editHosts(text)
		h.old = append(h.old, "web.example.org", "web")
		if twice := h.editHosts(once); twice != once {
			t.Fatalf("%q became\n%s\nand then\n%s", text, once, twice)
		}
	})
}

func TestResetIdentity(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef\n"
	systemd := map[string]string{
		"usr/lib/systemd/systemd": "", "etc/machine-id": id, "var/lib/dbus/machine-id": id, "var/lib/systemd/random-seed": "x", "var/lib/systemd/credential.secret": "x",
		"etc/udev/rules.d/70-persistent-net.rules": "x", "etc/lvm/devices/system.devices": "x", "var/lib/dhcp/dhclient.eth0.leases": "x", "var/lib/dhcp/keep": "x",
		"var/lib/cloud/instances/i/x": "x", "var/log/cloud-init-output.log": "x",
	}
	root, dir := guestOf(t, systemd)
	changes, err := root.ResetIdentity(false)
	if err != nil || len(changes) != 7 {
		t.Errorf("%q, %v", changes, err)
	}
	for _, gone := range []string{"var/lib/dbus/machine-id", "var/lib/systemd/credential.secret", "etc/udev/rules.d/70-persistent-net.rules", "etc/lvm/devices/system.devices", "var/lib/dhcp/dhclient.eth0.leases"} {
		if root.Exists(gone) {
			t.Errorf("%s is still there", gone)
		}
	}
	if info, err := root.Stat("/etc/machine-id"); err != nil || info.Size != 0 || info.Mode != 0o444 {
		t.Errorf("%+v, %v", info, err)
	}
	if seed := content(t, dir+"/var/lib/systemd/random-seed"); len(seed) != seedSize || strings.Trim(seed, "\x00") == "" {
		t.Errorf("a seed of %d bytes", len(seed))
	}
	if !root.Exists("/var/lib/cloud/instances/i/x") || !root.Exists("/var/lib/dhcp/keep") {
		t.Error("too much is gone")
	}
	if _, err := root.ResetIdentity(true); err != nil || root.Exists("/var/lib/cloud/instances") || root.Exists("/var/log/cloud-init-output.log") {
		t.Errorf("cloud-init's state: %v", err)
	}
}

func TestResetMachineID(t *testing.T) {
	systemd := map[string]string{"lib/systemd/systemd": ""}
	cases := []struct {
		name       string
		files      map[string]string
		want, dbus string // "-" is none
	}{
		{"none", map[string]string{}, "-", "-"},
		{"first boot", map[string]string{"etc/machine-id": "uninitialized\n"}, "uninitialized\n", "-"},
		{"a link of D-Bus's", map[string]string{"etc/machine-id": "1\n", "var/lib/dbus/machine-id": "-> /etc/machine-id"}, "", ""},
		{"a link to D-Bus's", map[string]string{"etc/machine-id": "-> /var/lib/dbus/machine-id", "var/lib/dbus/machine-id": "1\n"}, "", "-"},
		{"another init", map[string]string{"etc/machine-id": "1\n", "sbin/init": "x"}, "-", "-"},
	}
	for _, c := range cases {
		for name, text := range systemd {
			c.files[name] = text
		}
		root, _ := guestOf(t, c.files)
		if _, err := root.ResetIdentity(false); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		for file, want := range map[string]string{"/etc/machine-id": c.want, "/var/lib/dbus/machine-id": c.dbus} {
			text, err := root.ReadFile(file, 100)
			if got := string(text); err != nil && want != "-" || err == nil && got != want {
				t.Errorf("%s: %s is %q, %v, want %q", c.name, file, got, err, want)
			}
		}
	}
}

// systemd takes what is left for what it should be: a guest that gets a new id
// of its own.
func TestSystemdMakesMachineID(t *testing.T) {
	need.Root(t)
	need.Tools(t, "systemd-machine-id-setup")
	root, dir := guestOf(t, map[string]string{"usr/lib/systemd/systemd": "", "etc/machine-id": "0123456789abcdef0123456789abcdef\n", "var/lib/dbus/machine-id": "0123456789abcdef0123456789abcdef\n", "proc/x": "", "dev/x": ""})
	if _, err := root.ResetIdentity(false); err != nil {
		t.Fatal(err)
	}
	if _, err := (run.Cmd{What: "make an id", Argv: []string{"systemd-machine-id-setup", "--root", dir}}).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if id := content(t, dir+"/etc/machine-id"); len(id) != 33 || strings.HasPrefix(id, "0123456789abcdef") {
		t.Errorf("the id is %q", id)
	}
}
