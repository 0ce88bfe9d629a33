package guest

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
)

const (
	oldName = "web1.example.org"
	newName = "db2.example.net"
)

// The files of a renaming from web1.example.org to db2.example.net.
var renamings = []struct{ file, text, want string }{
	{"etc/hostname", "web1\n", "db2\n"},
	{"etc/hostname", "WEB1.example.org\n", "db2.example.net\n"},
	{"etc/hostname", "# comment web1\nweb1", "# comment web1\ndb2"},
	{"etc/hostname", "web10\n", "web10\n"},
	{"etc/hostname", "web1-db\n", "web1-db\n"},
	{"etc/hostname", "web1.example.com\n", "web1.example.com\n"},
	{"etc/hostname", "web1xexamplexorg\n", "web1xexamplexorg\n"},
	{"etc/hostname", "my-web1\n", "my-web1\n"},
	{"etc/HOSTNAME", "web1.example.org\n", "db2.example.net\n"},
	{"etc/mailname", "web1.example.org\n", "db2.example.net\n"},
	{"etc/mailname", "example.org\n", "example.org\n"},
	{"etc/sysconfig/network", "NETWORKING=yes\nHOSTNAME=web1.example.org\n#HOSTNAME=web1\n", "NETWORKING=yes\nHOSTNAME=db2.example.net\n#HOSTNAME=web1\n"},
	{"etc/conf.d/hostname", "hostname=\"web1\" # web1\n", "hostname=\"db2\" # web1\n"},
	{"etc/rc.conf", "export HOSTNAME='web1'\nOTHER=web1\n", "export HOSTNAME='db2'\nOTHER=web1\n"},
	{"etc/machine-info", "PRETTY_HOSTNAME=\"web1\"\nLOCATION=web1\n", "PRETTY_HOSTNAME=\"db2\"\nLOCATION=web1\n"},
	{"etc/sysconfig/network-scripts/ifcfg-eth0", "DEVICE=eth0\nDHCP_HOSTNAME=web1\n", "DEVICE=eth0\nDHCP_HOSTNAME=db2\n"},
	{"etc/sysconfig/network/dhcp", "DHCLIENT_HOSTNAME_OPTION=\"web1\"\n", "DHCLIENT_HOSTNAME_OPTION=\"db2\"\n"},
	{"etc/dhcp/dhclient.conf", "# send host-name \"web1\";\nsend host-name \"web1\";\nsend fqdn.fqdn \"web1.example.org.\";\nsend host-name = gethostname();\nsupersede domain-name \"web1.example.org\";\n",
		"# send host-name \"web1\";\nsend host-name \"db2\";\nsend fqdn.fqdn \"db2.example.net.\";\nsend host-name = gethostname();\nsupersede domain-name \"web1.example.org\";\n"},
	{"etc/dhcp/dhclient-eth0.conf", "interface \"eth0\" { send host-name \"web1\"; }\n", "interface \"eth0\" { send host-name \"db2\"; }\n"},
	{"etc/dhcpcd.conf", "hostname web1\n#hostname web1\nhostname_short\nclientid web1\nstatic domain_name=web1\n", "hostname db2\n#hostname web1\nhostname_short\nclientid db2\nstatic domain_name=web1\n"},
	{"etc/NetworkManager/system-connections/eth0.nmconnection", "[connection]\nid=web1\n[ipv4]\ndhcp-hostname=web1\n", "[connection]\nid=web1\n[ipv4]\ndhcp-hostname=db2\n"},
	{"etc/NetworkManager/system-connections/eth1.nmconnection", "[ipv4]\ndhcp-fqdn = web1.example.org\n", "[ipv4]\ndhcp-fqdn = db2.example.net\n"},
	{"etc/systemd/network/eth0.network", "[DHCPv4]\nSendHostname=yes\nHostname=web1\n", "[DHCPv4]\nSendHostname=yes\nHostname=db2\n"},
	{"etc/systemd/network/eth0.network.d/x.conf", "[DHCPv4]\nHostname = web1\n", "[DHCPv4]\nHostname = db2\n"},
	{"etc/netplan/01-x.yaml", "network:\n  ethernets:\n    eth0:\n      dhcp4-overrides:\n        hostname: \"web1\" # web1\n        send-hostname: true\n    web1: {dhcp6-overrides: {hostname: web1}}\n",
		"network:\n  ethernets:\n    eth0:\n      dhcp4-overrides:\n        hostname: \"db2\" # web1\n        send-hostname: true\n    web1: {dhcp6-overrides: {hostname: db2}}\n"},
	{"etc/cloud/cloud.cfg.d/x.cfg", "#hostname: web1\npreserve_hostname: web1\nhostname: web1\nfqdn: web1.example.org\n", "#hostname: web1\npreserve_hostname: web1\nhostname: db2\nfqdn: db2.example.net\n"},
	{"var/lib/cloud/seed/nocloud/meta-data", "instance-id: web1\nlocal-hostname: web1.example.org\n", "instance-id: web1\nlocal-hostname: db2.example.net\n"},
	{"var/lib/cloud/seed/nocloud-net/meta-data", `{"instance-id": "x", "local-hostname": "web1"}`, `{"instance-id": "x", "local-hostname": "db2"}`},
	{"etc/postfix/main.cf", "myhostname = web1.example.org\n# web1\nmydestination = $myhostname, web1.example.org,\n  web1, localhost.web1,\n# mydestination web1\n\n\tweb1.example.org.uk localhost\nrelayhost = web1\nmyorigin=web1.example.org\n",
		"myhostname = db2.example.net\n# web1\nmydestination = $myhostname, db2.example.net,\n  db2, localhost.web1,\n# mydestination web1\n\n\tweb1.example.org.uk localhost\nrelayhost = web1\nmyorigin=db2.example.net\n"},
	{"etc/exim4/update-exim4.conf.conf", "dc_other_hostnames='web1.example.org;web1;example.org'\ndc_smarthost='web1'\n", "dc_other_hostnames='db2.example.net;db2;example.org'\ndc_smarthost='web1'\n"},
	{"etc/hosts", "127.0.0.1\tlocalhost\n127.0.1.1\tweb1.example.org\tweb1 # web1\n", "127.0.0.1\tlocalhost\n127.0.1.1\tdb2.example.net\tdb2 # web1\n"},
	{"etc/hosts", "192.0.2.1 web1.example.org web1 puppet\n192.0.2.9 web10 web1-db web1.example.org.uk\n192.0.2.8 web1.other.org web1\n192.0.2.7 Web1\n127.0.0.2 Web1\n", "192.0.2.1 db2.example.net db2 puppet\n192.0.2.9 web10 web1-db web1.example.org.uk\n192.0.2.8 web1.other.org web1\n192.0.2.7 Web1\n127.0.0.2 db2\n"},
	{"etc/hosts", "192.0.2.7 Web1\n", "192.0.2.7 db2\n"},
	{"etc/hosts", "127.0.1.1 web1.example.org. web1\n", "127.0.1.1 db2.example.net. db2\n"},
	{"etc/network/interfaces", "iface eth0 inet dhcp\n\thostname web1\n\tup echo web1 > /run/web1\n# hostname web1\n", "iface eth0 inet dhcp\n\thostname db2\n\tup echo web1 > /run/web1\n# hostname web1\n"},
	{"etc/network/interfaces.d/eth0", "iface eth0 inet dhcp\n  hostname web1.example.org", "iface eth0 inet dhcp\n  hostname db2.example.net"},
	{"etc/conf.d/net", "config_eth0=\"dhcp\" # web1\ndhcpcd_eth0=\"-t 10 -h web1\"\nudhcpc_eth1='-x hostname:web1'\ndns_domain_eth0=\"web1\"\n", "config_eth0=\"dhcp\" # web1\ndhcpcd_eth0=\"-t 10 -h db2\"\nudhcpc_eth1='-x hostname:db2'\ndns_domain_eth0=\"web1\"\n"},
	{"etc/mail/mailname", "web1.example.org\n", "db2.example.net\n"},
	{"etc/mail/local-host-names", "# web1\nweb1.example.org\nexample.org\nweb1\n", "# web1\ndb2.example.net\nexample.org\ndb2\n"},
	{"etc/nullmailer/me", "web1.example.org\n", "db2.example.net\n"},
	{"etc/ssmtp/ssmtp.conf", "mailhub=web1\nhostname=web1.example.org\n#hostname=web1\n", "mailhub=web1\nhostname=db2.example.net\n#hostname=web1\n"},
	{"etc/machine-info", "PRETTY_HOSTNAME=\"The web1 of Ann\"\n", "PRETTY_HOSTNAME=\"The web1 of Ann\"\n"},
	{"etc/sysconfig/network-scripts/ifcfg-eth1", "DHCP_FQDN=web1.example.org\nDHCP_HOSTNAME=web1\n", "DHCP_FQDN=db2.example.net\nDHCP_HOSTNAME=db2\n"},
	{"etc/dhcp/dhclient.conf", "send host-name\n  \"web1\"; # web1\nsend\nfqdn.fqdn # web1\n\t\"web1.example.org.\" ;\nsend host-name\n", "send host-name\n  \"db2\"; # web1\nsend\nfqdn.fqdn # web1\n\t\"db2.example.net.\" ;\nsend host-name\n"},
	{"etc/postfix/main.cf", "mydestination = hash:/etc/web1, /web1, $web1, ${web1}, $(web1), web1:/x, web1, /etc/x/web1/y\n", "mydestination = hash:/etc/web1, /web1, $web1, ${web1}, $(web1), web1:/x, db2, /etc/x/web1/y\n"},
	{"etc/cloud/cloud.cfg", "hostname:\n  web1 # web1\nfqdn: 'web1.example.org'\nruncmd:\n- echo hostname: web1\n- |\n  hostname: web1\n- {hostname: web1, \"fqdn\": \"web1.example.org.\", x: web1}\nfqdns: web1\n",
		"hostname:\n  db2 # web1\nfqdn: 'db2.example.net'\nruncmd:\n- echo hostname: web1\n- |\n  hostname: web1\n- {hostname: db2, \"fqdn\": \"db2.example.net.\", x: web1}\nfqdns: web1\n"},
	{"etc/cloud/cloud.cfg", "a: \u00e4\u00f6, hostname: [\n", "a: \u00e4\u00f6, hostname: [\n"},
	{"etc/cloud/cloud.cfg", "{\"\u00e4\u00f6\": \"\u00fc\", hostname: web1, fqdn: web1}\r\n", "{\"\u00e4\u00f6\": \"\u00fc\", hostname: db2, fqdn: db2}\r\n"},
	{"var/lib/cloud/seed/nocloud/user-data", "#cloud-config\nhostname: web1\nfqdn: web1.example.org\nusers: [web1]\n", "#cloud-config\nhostname: db2\nfqdn: db2.example.net\nusers: [web1]\n"},
	{"var/lib/cloud/seed/nocloud/user-data", "#!/bin/sh\nhostname: web1\n", "#!/bin/sh\nhostname: web1\n"},
	{"var/lib/cloud/seed/nocloud/network-config", "ethernets: {web1: {dhcp4-overrides: {hostname: web1}}}\n", "ethernets: {web1: {dhcp4-overrides: {hostname: db2}}}\n"},
	{"etc/hosts", "# 127.0.1.1 web1\n::1 localhost web1\nweb1\n\n1.2.3.4\n", "# 127.0.1.1 web1\n::1 localhost db2\nweb1\n\n1.2.3.4\n"},
	{"etc/motd", "web1.example.org\n", "web1.example.org\n"},
	{"etc/ssh/ssh_host_rsa_key.pub", "ssh-rsa AAAA root@web1.example.org\n", "ssh-rsa AAAA root@web1.example.org\n"},
}

func TestRenameHost(t *testing.T) {
	for _, c := range renamings {
		root, dir := guestOf(t, map[string]string{"etc/os-release": "ID=debian\n", c.file: c.text})
		done, err := root.RenameHost(oldName, newName, RenameOptions{})
		got := content(t, dir+"/"+c.file)
		if err != nil || got != c.want {
			t.Errorf("%s with\n%sbecame\n%s\nwant\n%s%v", c.file, c.text, got, c.want, err)
		}
		if changed := c.text != c.want; len(done.Changes) == 1 != changed || done.Found != changed {
			t.Errorf("%s with\n%s: %+v", c.file, c.text, done)
		}
		again, err := root.RenameHost(oldName, newName, RenameOptions{})
		if err != nil || len(again.Changes) > 0 || again.Found != done.Found {
			t.Errorf("%s a second time: %+v, %v", c.file, again, err)
		}
		if names, err := root.ReadDir("/" + c.file[:strings.LastIndexByte(c.file, '/')]); err != nil || len(names) > 2 {
			t.Errorf("%s: a file was left behind: %v", c.file, names)
		}
	}
}

func TestRenameOfLabels(t *testing.T) {
	const hosts = "127.0.1.1 "
	cases := []struct {
		release, old, new string
		hostname, want    string
		hosts, wantHosts  string
	}{
		{"debian", "web1", "db2", "web1\n", "db2\n", "web1", "db2"},
		{"debian", "web1", "db2.example.net", "web1\n", "db2\n", "web1", "db2.example.net db2"},
		{"rhel", "web1", "db2.example.net", "web1\n", "db2.example.net\n", "web1", "db2.example.net db2"},
		{"rhel", "web1.a.b.c.d", "db2", "web1.a.b.c.d\n", "db2\n", "web1.a.b.c.d web1 x", "db2 x"},
		{"debian", "web1.a.b.c.d.e", "db2.x.y.z", "web1\n", "db2\n", "web1.a.b.c.d.e web1.a web1", "db2.x.y.z web1.a db2"},
		{"debian", "web1.a", "web1.b", "web1\n", "web1\n", "web1.a web1", "web1.b web1"},
		{"debian", "localhost.a", "web1.b", "localhost\n", "localhost\n", "localhost.a localhost", "localhost.a localhost"},
		{"debian", "a.b", "b.a", "a\n", "b\n", "a.b a b", "b.a b"},
	}
	for _, c := range cases {
		root, dir := guestOf(t, map[string]string{"etc/os-release": "ID=" + c.release + "\n", "etc/hostname": c.hostname, "etc/hosts": hosts + c.hosts + "\n"})
		if _, err := root.RenameHost(c.old, c.new, RenameOptions{}); err != nil {
			t.Error(err)
		}
		if got := content(t, dir+"/etc/hostname"); got != c.want {
			t.Errorf("%s to %s: hostname is %q", c.old, c.new, got)
		}
		if got := content(t, dir+"/etc/hosts"); got != hosts+c.wantHosts+"\n" {
			t.Errorf("%s to %s: hosts is %q", c.old, c.new, got)
		}
	}
}

func TestRenameAddress(t *testing.T) {
	cases := []struct{ address, hosts, want string }{
		{"198.51.100.9", "127.0.0.1 localhost\n192.0.2.1 web1.example.org web1\n", "127.0.0.1 localhost\n198.51.100.9 db2.example.net db2\n"},
		{"198.51.100.9", "127.0.1.1 web1.example.org web1\n", "127.0.1.1 db2.example.net db2\n"},
		{"198.51.100.9", "192.0.2.1 web1.example.org\n192.0.2.2 web1\n", "198.51.100.9 db2.example.net\n192.0.2.2 web1\n"},
		{"198.51.100.9", "2001:db8::1 web1.example.org\n192.0.2.1 web1\n", "2001:db8::1 db2.example.net\n192.0.2.1 web1\n"},
		{"198.51.100.9", "192.0.2.1 web1 x\n127.0.0.1 localhost web1\n", "198.51.100.9 db2 x\n127.0.0.1 localhost db2\n"},
		{"2001:db8::9", "2001:db8::1 web1.example.org\n192.0.2.1 web1\n", "2001:db8::9 db2.example.net\n192.0.2.1 web1\n"},
		{"198.51.100.9", strings.Repeat("x", 5000) + "\n192.0.2.1 web1\n", strings.Repeat("x", 5000) + "\n198.51.100.9 db2\n"},
		{"198.51.100.9", "192.0.2.3 web1.other.org web1\n192.0.2.300 web1\n", "192.0.2.3 web1.other.org web1\n192.0.2.300 db2\n"},
	}
	for _, c := range cases {
		root, dir := guestOf(t, map[string]string{"etc/hosts": c.hosts})
		if _, err := root.RenameHost(oldName, newName, RenameOptions{Address: netip.MustParseAddr(c.address)}); err != nil {
			t.Error(err)
		}
		if got := content(t, dir+"/etc/hosts"); got != c.want {
			t.Errorf("%q became %q, want %q", c.hosts, got, c.want)
		}
	}
}

// One file does not keep the others from being renamed.
func TestRenameGoesOn(t *testing.T) {
	need.Root(t)
	need.Tools(t, "chattr")
	files := map[string]string{"etc/os-release": "ID=debian\n", "etc/hostname": "web1\n", "etc/hosts": "127.0.1.1 web1\n", "etc/mailname/x": "", "etc/rc.conf": strings.Repeat("#", 70000),
		"etc/dhcpcd.conf": "hostname web1\n", "etc/postfix/main.cf": "myhostname = web1.example.org\n"}
	root, dir := guestOf(t, files)
	for _, file := range []string{"/etc/hostname", "/etc/hosts"} {
		if _, err := (run.Cmd{What: "make it immutable", Argv: []string{"chattr", "+i", dir + file}}).Run(t.Context()); err != nil {
			need.That(t, false, err.Error())
		}
		defer run.Cmd{What: "undo that", Argv: []string{"chattr", "-i", dir + file}}.Run(t.Context())
	}
	done, err := root.RenameHost(oldName, newName, RenameOptions{})
	if err == nil || !strings.Contains(err.Error(), "/etc/hostname") || !strings.Contains(err.Error(), "/etc/hosts") {
		t.Errorf("the errors are %v", err)
	}
	said := strings.Join(done.Changes, "\n")
	for _, want := range []string{"/etc/mailname in the guest: it is a directory", "/etc/rc.conf in the guest: it is larger than 64 KiB; it is left", "/etc/dhcpcd.conf says", "/etc/postfix/main.cf says"} {
		if !strings.Contains(said, want) {
			t.Errorf("nothing says %q:\n%s", want, said)
		}
	}
	if got := content(t, dir+"/etc/dhcpcd.conf") + content(t, dir+"/etc/postfix/main.cf"); got != "hostname db2\nmyhostname = db2.example.net\n" {
		t.Errorf("the others say %q", got)
	}
}

// Of the files that one pattern matches so many are changed, and the rest is
// said to be left.
func TestRenameOfManyFiles(t *testing.T) {
	for _, c := range []struct {
		files, size int
		most        int
	}{{300, 0, 256}, {90, 60000, 4 << 20 / 60000}} {
		root, dir := guestOf(t, nil)
		text := "[DHCPv4]\nHostname=web1\n" + strings.Repeat("#", c.size)
		if err := os.MkdirAll(dir+"/etc/systemd/network", 0o755); err != nil {
			t.Fatal(err)
		}
		for n := range c.files {
			if err := os.WriteFile(fmt.Sprintf("%s/etc/systemd/network/%03d.network", dir, n), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		done, err := root.RenameHost(oldName, newName, RenameOptions{})
		if last := len(done.Changes) - 1; err != nil || last > c.most || last < c.most-2 || !strings.Contains(done.Changes[last], "left as it is") {
			t.Errorf("%d files: %d changes, %v", c.files, len(done.Changes), err)
		}
	}
}

// What NetworkManager and network-scripts have for whole names only does not get
// one of a single label.
func TestRenameToOneLabel(t *testing.T) {
	root, dir := guestOf(t, map[string]string{
		"etc/NetworkManager/system-connections/a":    "[connection]\nid=a\nuuid=3b5a7c9e-1111-4222-8333-444455556666\ntype=ethernet\n\n[ipv4]\ndhcp-fqdn=web1.example.org\nmethod=auto\n",
		"etc/sysconfig/network-scripts/ifcfg-eth0":   "BOOTPROTO=dhcp\nDHCP_FQDN=\"web1.example.org\"\n",
		"etc/sysconfig/network-scripts/ifcfg-others": "DHCP_FQDN=mail.example.org\n",
	})
	if _, err := root.RenameHost(oldName, "db2", RenameOptions{}); err != nil {
		t.Error(err)
	}
	keyfile := content(t, dir+"/etc/NetworkManager/system-connections/a")
	if !strings.Contains(keyfile, "dhcp-hostname=db2\n") || strings.Contains(keyfile, "fqdn") {
		t.Errorf("the keyfile is\n%s", keyfile)
	}
	if got := content(t, dir+"/etc/sysconfig/network-scripts/ifcfg-eth0"); got != "BOOTPROTO=dhcp\nDHCP_HOSTNAME=db2\n" {
		t.Errorf("the ifcfg file is\n%s", got)
	}
	if got := content(t, dir+"/etc/sysconfig/network-scripts/ifcfg-others"); got != "DHCP_FQDN=mail.example.org\n" {
		t.Errorf("another's is\n%s", got)
	}
	nmcli(t, keyfile)
}

func TestRenameHostKeyComments(t *testing.T) {
	need.Tools(t, "ssh-keygen")
	root, dir := guestOf(t, map[string]string{"etc/ssh/x": "", "etc/ssh/ssh_host_x.pub": "ssh-rsa AAAA\nssh-rsa @web1\n"})
	if _, err := (run.Cmd{What: "make a key", Argv: []string{"ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "root@web1", "-f", dir + "/etc/ssh/ssh_host_ed25519_key"}}).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := keygen(t, "-lf", dir+"/etc/ssh/ssh_host_ed25519_key.pub")
	done, err := root.RenameHost(oldName, newName, RenameOptions{HostKeyComments: true})
	after := keygen(t, "-lf", dir+"/etc/ssh/ssh_host_ed25519_key.pub")
	if err != nil || len(done.Changes) != 1 || after != strings.Replace(before, "root@web1", "root@db2", 1) || after == before {
		t.Errorf("%+v, %v: %s became %s", done, err, before, after)
	}
}

func TestRenameRefusesBadNames(t *testing.T) {
	root, dir := guestOf(t, map[string]string{"etc/hostname": "web1\n"})
	before := listing(t, dir)
	for _, names := range [][2]string{{"", "a"}, {"a", ""}, {"web1", "a b"}, {"web1", "a\nb"}, {".*", "a"}, {"web1", "-a"}, {"web1", "a."}} {
		if _, err := root.RenameHost(names[0], names[1], RenameOptions{}); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", names, err)
		}
	}
	if listing(t, dir) != before {
		t.Error("something was changed")
	}
}

// Each file that a renaming or naming writes may be anything else.
func TestNamingTraps(t *testing.T) {
	need.Root(t)
	for _, place := range namePlaces {
		file := strings.TrimPrefix(strings.ReplaceAll(place.pattern, "*", "x"), "/")
		for _, trap := range trapsOf(t, file) {
			done, err := trap.root.RenameHost(oldName, newName, RenameOptions{HostKeyComments: true})
			isOther := trap.name == "named pipe" || trap.name == "device" || trap.name == "directory" || trap.name == "looping link"
			isSaid := len(done.Changes) == 1 && strings.Contains(done.Changes[0], "/"+file+" in the guest: ") && strings.HasSuffix(done.Changes[0], "left as it is")
			fixed := !strings.Contains(place.pattern, "*")
			if wantSaid := fixed && isOther && !(place.orDir && trap.name == "directory"); err != nil || isSaid != wantSaid {
				t.Errorf("%s as %s: %q, %v", file, trap.name, done.Changes, err)
			}
			trap.wantNodeUntouched(t)
		}
	}
	for _, file := range []string{"etc/hostname", "etc/hosts", "etc/HOSTNAME", "etc/sysconfig/network", "etc/conf.d/hostname", "etc/sysconfig/network-scripts/ifcfg-x", "etc/mailname"} {
		for _, trap := range trapsOf(t, file) {
			_, err := trap.root.SetHostname(newName, netip.Addr{})
			if file != "etc/hostname" && file != "etc/hosts" {
				trap.wantNodeUntouched(t)
				continue
			}
			if trap.name == "named pipe" || trap.name == "device" || trap.name == "directory" || trap.name == "looping link" {
				trap.wantRefusal(t, err)
			}
			trap.wantNodeUntouched(t)
		}
	}
}

func FuzzRename(f *testing.F) {
	for _, c := range renamings {
		f.Add(c.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, place := range namePlaces {
			h := &renaming{old: oldName, oldShort: "web1", new: newName, newShort: "db2", byItself: "db2", address: netip.MustParseAddr("192.0.2.1")}
			once := place.edit(h, text)
			if twice := place.edit(h, once); twice != once {
				t.Fatalf("%s: %q became %q and then %q", place.pattern, text, once, twice)
			}
		}
	})
}
