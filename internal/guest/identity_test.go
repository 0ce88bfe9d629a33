package guest

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
)

// identityTraces are files that each part takes away, and beside them some that
// stay.
var identityTraces = map[string]struct{ gone, stay []string }{
	"machine-id":  {gone: []string{"var/lib/dbus/machine-id"}, stay: []string{"etc/machine-info"}},
	"random-seed": {},
	"dhcp-leases": {
		gone: []string{
			"var/lib/dhcp/dhclient.leases", "var/lib/dhcp/dhclient.eth0.leases", "var/lib/dhcp/dhclient6.eth0.leases", "var/lib/dhcp3/dhclient.eth0.leases", "var/lib/dhclient/dhclient--eth0.lease",
			"var/lib/NetworkManager/internal-0b1c-eth0.lease", "var/lib/NetworkManager/secret_key", "var/lib/dhcpcd/eth0.lease", "var/lib/dhcpcd/eth0.lease6", "var/lib/dhcpcd/dhcpcd-eth0.info",
			"var/lib/dhcpcd/duid", "var/lib/dhcpcd/secret", "var/db/dhcpcd/duid", "etc/dhcpcd.duid", "var/lib/wicked/lease-eth0-dhcp-ipv4.xml", "var/lib/wicked/duid.xml", "var/lib/wicked/iaid.xml",
			"run/systemd/netif/leases/2", "var/lib/dhcpv6/client6.leases", "var/lib/wide-dhcpv6/dhcp6c_duid", "var/lib/misc/udhcpc.eth0.lease",
		},
		stay: []string{"var/lib/dhcp/dhcpd.leases", "var/lib/dhcpd/dhcpd.leases", "var/lib/NetworkManager/dnsmasq-eth0.leases", "var/lib/NetworkManager/timestamps", "var/lib/wicked/x.xml", "var/lib/misc/dnsmasq.leases"},
	},
	"net-names": {
		gone: []string{"etc/udev/rules.d/70-persistent-net.rules", "etc/udev/rules.d/z25_persistent-net.rules", "etc/udev/rules.d/70-persistent-cd.rules", "etc/udev/rules.d/30-net_persistent_names.rules", "etc/iftab"},
		stay: []string{"etc/udev/rules.d/75-persistent-net-generator.rules", "etc/udev/rules.d/60-net.rules"},
	},
	"lvm-devices":       {gone: []string{"etc/lvm/devices/system.devices", "etc/lvm/devices/backup/system.devices-20260101.101010.0007", "etc/lvm/cache/.cache"}, stay: []string{"etc/lvm/backup/vg", "etc/lvm/devices/my.devices"}},
	"iscsi":             {stay: []string{"etc/iscsi/iscsid.conf"}},
	"credential-secret": {gone: []string{"var/lib/systemd/credential.secret"}, stay: []string{"var/lib/systemd/timers"}},
	"blkid":             {gone: []string{"etc/blkid.tab", "etc/blkid.tab.old", "etc/blkid/blkid.tab", "run/blkid/blkid.tab"}, stay: []string{"etc/blkid.conf"}},
	"cloud-init": {
		gone: []string{
			"var/lib/cloud/instances/i/x", "var/lib/cloud/data/x", "var/lib/cloud/sem/x", "var/log/cloud-init.log", "var/log/cloud-init-output.log", "var/log/cloud-init.log.1",
			"var/lib/cloud/seed/nocloud/meta-data", "var/lib/cloud/seed/nocloud-net/user-data",
		},
		stay: []string{"var/lib/cloud/scripts/per-boot/x", "etc/netplan/50-cloud-init.yaml", "etc/cloud/cloud.cfg", "etc/sysconfig/network-scripts/ifcfg-lo"},
	},
}

// imageWithTraces is a guest that was used.
func imageWithTraces(t *testing.T) (*Root, string) {
	t.Helper()
	files := map[string]string{
		"usr/lib/systemd/systemd": "", "etc/machine-id": oldID, "var/lib/systemd/random-seed": "old", "boot/efi/loader/random-seed": "old",
		"etc/iscsi/initiatorname.iscsi":                   "# mine\nInitiatorName=iqn.1994-05.com.redhat:0123456789ab\n",
		"etc/udev/rules.d/80-masked-persistent-net.rules": "-> /dev/null",
		"var/lib/cloud/instance":                          "-> instances/i",
	}
	for _, part := range identityTraces {
		for _, name := range slices.Concat(part.gone, part.stay) {
			files[name] = "old"
		}
	}
	return guestOf(t, files)
}

const oldID = "0123456789abcdef0123456789abcdef\n"

// traceLeft tells whether what a part takes away is there: all, or else none.
func traceLeft(t *testing.T, root *Root, dir, part string) bool {
	t.Helper()
	var left []bool
	for _, name := range identityTraces[part].gone {
		left = append(left, root.Exists(name))
	}
	same := func(file, old string) { left = append(left, content(t, dir+file) == old) }
	switch part {
	case "machine-id":
		same("/etc/machine-id", oldID)
	case "random-seed":
		same("/var/lib/systemd/random-seed", "old")
		same("/boot/efi/loader/random-seed", "old")
	case "iscsi":
		same("/etc/iscsi/initiatorname.iscsi", "# mine\nInitiatorName=iqn.1994-05.com.redhat:0123456789ab\n")
	}
	if slices.Contains(left, true) == slices.Contains(left, false) {
		t.Errorf("%s is left by halves: %v", part, left)
	}
	return left[0]
}

func TestResetIdentity(t *testing.T) {
	cases := []struct {
		keep []string
	}{
		{nil},
		{[]string{"cloud-init"}},
		{[]string{"machine-id", "iscsi"}},
		{[]string{"random-seed", "dhcp-leases", "net-names"}},
		{[]string{"lvm-devices", "credential-secret", "blkid"}},
		{IdentityParts},
	}
	for _, c := range cases {
		root, dir := imageWithTraces(t)
		changes, err := root.ResetIdentity(c.keep)
		if err != nil || len(changes) == 0 != (len(c.keep) == len(IdentityParts)) {
			t.Errorf("%v: %q, %v", c.keep, changes, err)
		}
		for _, part := range IdentityParts {
			if got := traceLeft(t, root, dir, part); got != slices.Contains(c.keep, part) {
				t.Errorf("keep %v: %s left is %v", c.keep, part, got)
			}
			for _, name := range identityTraces[part].stay {
				if !root.Exists(name) {
					t.Errorf("keep %v: %s is gone", c.keep, name)
				}
			}
		}
		if _, err := root.Readlink("/etc/udev/rules.d/80-masked-persistent-net.rules"); err != nil {
			t.Error(err)
		}
		again, err := root.ResetIdentity(c.keep)
		again = slices.DeleteFunc(again, func(change string) bool { return strings.HasPrefix(change, "wrote a new ") })
		if err != nil || len(again) > 0 {
			t.Errorf("keep %v: a second time %q, %v", c.keep, again, err)
		}
	}
	if parts := slices.Sorted(maps.Keys(identityTraces)); !slices.Equal(parts, slices.Sorted(slices.Values(IdentityParts))) {
		t.Errorf("tested are %v", parts)
	}
}

func TestResetIdentityRefusesUnknownParts(t *testing.T) {
	root, dir := imageWithTraces(t)
	before := listing(t, dir)
	if _, err := root.ResetIdentity([]string{"blkid", "hostkeys"}); err == nil || !strings.Contains(err.Error(), `"hostkeys"`) || !strings.Contains(err.Error(), "machine-id, random-seed") {
		t.Errorf("got %v", err)
	}
	if after := listing(t, dir); after != before {
		t.Error("something was changed")
	}
}

func TestMachineIDAndSeed(t *testing.T) {
	root, dir := imageWithTraces(t)
	if _, err := root.ResetIdentity(nil); err != nil {
		t.Fatal(err)
	}
	if info, err := root.Stat("/etc/machine-id"); err != nil || info.Size != 0 || info.Mode != 0o444 {
		t.Errorf("%+v, %v", info, err)
	}
	for _, file := range []string{"/var/lib/systemd/random-seed", "/boot/efi/loader/random-seed"} {
		if seed := content(t, dir+file); len(seed) != seedSize || strings.Trim(seed, "\x00") == "" {
			t.Errorf("a seed of %d bytes", len(seed))
		}
	}
}

func TestInitiatorName(t *testing.T) {
	cases := []struct{ text, want string }{
		{"InitiatorName=iqn.1993-08.org.debian:01:1db2fb1ce9a6\n", `^InitiatorName=iqn\.1993-08\.org\.debian:01:[0-9a-f]{12}\n$`},
		{"## comment\n InitiatorName=iqn.1994-05.com.redhat:a \nInitiatorAlias=x\n", `^## comment\nInitiatorName=iqn\.1994-05\.com\.redhat:[0-9a-f]{12}\nInitiatorAlias=x\n$`},
		{"InitiatorName=iqn.2005-03.org.open-iscsi:1", `^InitiatorName=iqn\.2005-03\.org\.open-iscsi:[0-9a-f]{12}\n$`},
		{"GenerateName=yes\n", `^GenerateName=yes\n$`},
		{"InitiatorName=eui.02004567A425678D\n", `^InitiatorName=iqn\.1993-08\.org\.debian:01:[0-9a-f]{12}\n$`},
		{"InitiatorName=\n", `^InitiatorName=iqn\.1993-08\.org\.debian:01:[0-9a-f]{12}\n$`},
		{"InitiatorName=iqn." + strings.Repeat("x", 300) + ":1\n", `^InitiatorName=iqn\.1993-08\.org\.debian:01:[0-9a-f]{12}\n$`},
		{"", `^$`},
	}
	for _, c := range cases {
		root, dir := guestOf(t, map[string]string{"etc/iscsi/initiatorname.iscsi": c.text})
		changes, err := root.ResetIdentity(nil)
		got := content(t, dir+"/etc/iscsi/initiatorname.iscsi")
		if err != nil || !regexp.MustCompile(c.want).MatchString(got) || (len(changes) == 0) != (got == c.text) {
			t.Errorf("%q became %q, %q, %v", c.text, got, changes, err)
		}
	}
}

// Each file that is read or written may be anything else.
func TestIdentityTraps(t *testing.T) {
	need.Root(t)
	written := []string{"etc/machine-id", "etc/iscsi/initiatorname.iscsi"}
	for _, file := range written {
		for _, trap := range trapsOf(t, file) {
			if trap.name == "directory" || trap.name == "named pipe" || trap.name == "device" {
				_, err := trap.root.ResetIdentity(nil)
				trap.wantRefusal(t, err)
				continue
			}
			_, _ = trap.root.ResetIdentity(nil)
			trap.wantNodeUntouched(t)
		}
	}
	removed := []string{
		"var/lib/dhcp/dhclient.x.leases", "etc/dhcpcd.duid", "etc/lvm/devices/system.devices", "etc/udev/rules.d/70-persistent-net.rules", "etc/blkid.tab",
		"var/lib/systemd/random-seed", "var/lib/systemd/credential.secret", "var/lib/dbus/machine-id", "var/lib/cloud/instance", "etc/netplan/50-cloud-init.yaml",
		"etc/sysconfig/network-scripts/ifcfg-x",
	}
	for _, file := range removed {
		for _, trap := range trapsOf(t, file) {
			if _, err := trap.root.ResetIdentity(nil); err != nil && trap.name != "parent is a loop" {
				t.Errorf("%s as %s: %v", file, trap.name, err)
			}
			trap.wantNodeUntouched(t)
		}
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
		if _, err := root.ResetIdentity(nil); err != nil {
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
	if _, err := root.ResetIdentity(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := (run.Cmd{What: "make an id", Argv: []string{"systemd-machine-id-setup", "--root", dir}}).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if id := content(t, dir+"/etc/machine-id"); len(id) != 33 || strings.HasPrefix(id, "0123456789abcdef") {
		t.Errorf("the id is %q", id)
	}
}
