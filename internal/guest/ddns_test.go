package guest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ganeti-instance-image/internal/need"
)

// dhcpGuest makes a guest of files with the given content.
func dhcpGuest(t *testing.T, files map[string]string) (*Root, string) {
	t.Helper()
	root, dir := tree(t)
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(dir+name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root, dir
}

// sendHostname sends a name, and wants nothing to change when it is sent again.
func sendHostname(t *testing.T, root *Root, name string) []string {
	t.Helper()
	changes, err := root.SendHostname(name)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := root.SendHostname(name); err != nil || len(again) > 0 {
		t.Errorf("once more it changes %v, %v", again, err)
	}
	return changes
}

func TestSendHostname(t *testing.T) {
	cases := []struct{ name, file, before, after string }{
		{"dhclient, Debian", "/etc/dhcp/dhclient.conf",
			"option x code 1 = string;\nsend host-name = gethostname();\nrequest subnet-mask,\n\thost-name;\n",
			"option x code 1 = string;\nsend host-name \"web\";\nrequest subnet-mask,\n\thost-name;\n"},
		{"dhclient, what the hook in Bash left", "/etc/dhcp3/dhclient.conf",
			"send host-name = gethostname();\nsend host-name old;\nsend host-name old;",
			"send host-name \"web\";\n"},
		{"dhclient, none", "/etc/dhclient.conf", "timeout 300;", "timeout 300;\nsend host-name \"web\";\n"},
		{"dhclient, comments and blocks", "/etc/dhcp/dhclient.conf",
			"#send host-name \"andare.fugue.com\";\ntimeout 3; # send host-name x;\ninterface \"a#b\" {\n  send host-name \"a;b\"; send fqdn.fqdn \"old.example.net.\"; # keep\n}\n",
			"#send host-name \"andare.fugue.com\";\ntimeout 3; # send host-name x;\ninterface \"a#b\" {\n  send host-name \"web\"; send fqdn.fqdn \"web.example.org.\"; # keep\n}\nsend host-name \"web\";\n"},
		{"dhclient, a comment behind", "/etc/dhcp/dhclient.conf", "send host-name \"old\"; # x\n", "send host-name \"web\"; # x\n"},
		{"dhclient, on the next line", "/etc/dhcp/dhclient.conf", "send host-name\n  \"old\";\nsend fqdn.fqdn\n\t\"old.\";\n", "send host-name \"web\";\nsend fqdn.fqdn \"web.example.org.\";\n"},
		{"dhclient, two in a line", "/etc/dhcp/dhclient.conf", "timeout 3; send host-name \"old\";\nsend host-name \"old\"; timeout 3;\n", "timeout 3; send host-name \"web\";\n timeout 3;\n"},
		{"dhclient, of an interface", "/etc/dhcp/dhclient-eth0.conf", "", "send host-name \"web\";\n"},
		{"dhcpcd, Debian", "/etc/dhcpcd.conf", "# a\nhostname\nduid\n", "# a\nhostname web\nduid\n"},
		{"dhcpcd, none and blocks", "/etc/dhcpcd.conf", "duid\ninterface eth1\n\thostname old\nstatic routers=192.0.2.1\n",
			"duid\nhostname web\ninterface eth1\n\thostname web\nstatic routers=192.0.2.1\n"},
		{"dhcpcd, twice", "/etc/dhcpcd.conf", "hostname\nhostname old", "hostname web\n"},
		{"dhcpcd, another word", "/etc/dhcpcd.conf", "hostname_short\n", "hostname_short\nhostname web\n"},
		{"ifupdown", "/etc/network/interfaces",
			"auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n    hostname old\n    metric 5\niface eth0 inet6 dhcp\niface eth1 inet static\n  address 192.0.2.1/24\n",
			"auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n    hostname web\n    metric 5\niface eth0 inet6 dhcp\niface eth1 inet static\n  address 192.0.2.1/24\n"},
		{"ifupdown, no newline", "/etc/network/interfaces.d/eth0", "iface eth0 inet dhcp", "iface eth0 inet dhcp\n    hostname web\n"},
		{"ifupdown, a line in two", "/etc/network/interfaces", "iface eth0 inet \\\ndhcp\n up true\n", "iface eth0 inet \\\ndhcp\n    hostname web\n up true\n"},
		{"ifupdown, a static one in two", "/etc/network/interfaces", "iface eth0 inet \\\nstatic\n up true dhcp\n", "iface eth0 inet \\\nstatic\n up true dhcp\n"},
		{"ifupdown, a command in two", "/etc/network/interfaces", "iface eth0 inet dhcp\n up true \\\n hostname a\n hostname \\\n b\n", "iface eth0 inet dhcp\n    hostname web\n up true \\\n hostname a\n"},
		{"ifupdown, a line that goes on past the end", "/etc/network/interfaces", "iface eth0 inet dhcp \\\n", "iface eth0 inet dhcp \n    hostname web\n"},
		{"ifupdown-ng", "/etc/network/interfaces", "auto eth0\niface eth0\n  use dhcp\niface eth1\n  address 192.0.2.1/24\n",
			"auto eth0\niface eth0\n    hostname web\n  use dhcp\niface eth1\n  address 192.0.2.1/24\n"},
		{"ifcfg", "/etc/sysconfig/network-scripts/ifcfg-eth0", "DEVICE=eth0\nBOOTPROTO='dhcp'\nDHCP_HOSTNAME=old\nDHCP_HOSTNAME=old\nDHCP_SEND_HOSTNAME=no",
			"DEVICE=eth0\nBOOTPROTO='dhcp'\nDHCP_HOSTNAME=web\nDHCP_SEND_HOSTNAME=yes\n"},
		{"ifcfg, static", "/etc/sysconfig/network-scripts/ifcfg-eth0", "BOOTPROTO=none\nIPADDR=192.0.2.1", "BOOTPROTO=none\nIPADDR=192.0.2.1"},
		{"wicked", "/etc/sysconfig/network/dhcp", "A=\"b\"\nDHCLIENT_HOSTNAME_OPTION=\"AUTO\"\n", "A=\"b\"\nDHCLIENT_HOSTNAME_OPTION=\"web\"\n"},
		{"wicked, an interface", "/etc/sysconfig/network/ifcfg-eth0", "BOOTPROTO='dhcp'\nDHCLIENT_HOSTNAME_OPTION=old\n", "BOOTPROTO='dhcp'\nDHCLIENT_HOSTNAME_OPTION=\"web\"\n"},
		{"wicked, an interface as all", "/etc/sysconfig/network/ifcfg-eth0", "BOOTPROTO='dhcp'\n", "BOOTPROTO='dhcp'\n"},
		{"NetworkManager", "/etc/NetworkManager/system-connections/e.nmconnection", "[connection]\nid=e\n\n[ipv4]\nmethod=auto\ndhcp-send-hostname=false\n\n[ipv6]\ndhcp-hostname=old\nmethod=auto\n",
			"[connection]\nid=e\n\n[ipv4]\ndhcp-hostname=web\nmethod=auto\ndhcp-send-hostname=true\n\n[ipv6]\ndhcp-hostname=web\nmethod=auto\n"},
		{"NetworkManager, the whole name", "/etc/NetworkManager/system-connections/e", "[ipv4]\nmethod=auto\ndhcp-fqdn=old.example.org\n", "[ipv4]\nmethod=auto\ndhcp-fqdn=web.example.org\n"},
		{"NetworkManager, both", "/etc/NetworkManager/system-connections/e", "[ipv4]\ndhcp-hostname=x\nmethod=auto\ndhcp-fqdn=web.example.org\n", "[ipv4]\nmethod=auto\ndhcp-fqdn=web.example.org\n"},
		{"ifcfg, the whole name", "/etc/sysconfig/network-scripts/ifcfg-eth0", "BOOTPROTO=dhcp\nDHCP_FQDN=old.example.org\n", "BOOTPROTO=dhcp\nDHCP_FQDN=web.example.org\nDHCP_HOSTNAME=web\n"},
		{"NetworkManager, static", "/etc/NetworkManager/system-connections/e", "[ipv4]\nmethod=manual\n", "[ipv4]\nmethod=manual\n"},
		{"netplan, its own file stays", "/etc/netplan/50-cloud-init.yaml", "network:\n  ethernets:\n    eth0: {dhcp4: true}\n", "network:\n  ethernets:\n    eth0: {dhcp4: true}\n"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			root, dir := dhcpGuest(t, map[string]string{c.file: c.before})
			changes := sendHostname(t, root, "web.example.org")
			if got := content(t, dir+c.file); got != c.after {
				t.Errorf("got\n%s\nwant\n%s", got, c.after)
			}
			if c.before != c.after && (len(changes) != 1 || !strings.HasPrefix(changes[0], c.file+" ")) {
				t.Errorf("said %q", changes)
			}
			if info, err := os.Stat(dir + c.file); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%v, %v", info, err)
			}
		})
	}
}

// nmcli wants NetworkManager to take a keyfile.
func nmcli(t *testing.T, keyfile string) {
	t.Helper()
	need.Tools(t, "nmcli")
	cmd := exec.Command("nmcli", "--offline", "connection", "modify", "connection.autoconnect", "no")
	cmd.Stdin = strings.NewReader(keyfile)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s of\n%s", err, out, keyfile)
	}
}

func TestSendHostnameNetworkManager(t *testing.T) {
	const head = "[connection]\nid=a\nuuid=3b5a7c9e-1111-4222-8333-444455556666\ntype=ethernet\n\n[ipv4]\nmethod=auto\n"
	for _, text := range []string{head, head + "dhcp-fqdn=old.example.org\n", head + "dhcp-hostname=old\n\n[ipv6]\ndhcp-hostname=old\nmethod=auto\n"} {
		for name, wantFQDN := range map[string]bool{"web.example.org": strings.Contains(text, "fqdn"), "web": false} {
			root, dir := dhcpGuest(t, map[string]string{"/etc/NetworkManager/system-connections/a": text})
			sendHostname(t, root, name)
			got := content(t, dir+"/etc/NetworkManager/system-connections/a")
			if strings.Contains(got, "dhcp-fqdn=web.example.org\n") != wantFQDN || strings.Contains(got, "dhcp-hostname=web\n") == wantFQDN {
				t.Errorf("%s became\n%s", text, got)
			}
			nmcli(t, got)
		}
	}
	root, dir := dhcpGuest(t, map[string]string{"/etc/sysconfig/network-scripts/ifcfg-a": "BOOTPROTO=dhcp\nDHCP_FQDN=old.example.org\n"})
	sendHostname(t, root, "web")
	if got := content(t, dir+"/etc/sysconfig/network-scripts/ifcfg-a"); got != "BOOTPROTO=dhcp\nDHCP_HOSTNAME=web\n" {
		t.Errorf("one label: %s", got)
	}
}

// What the last steps change is said as well.
func TestSendHostnameSaysAll(t *testing.T) {
	root, _ := dhcpGuest(t, map[string]string{"/etc/netplan/a.yaml": "network: {ethernets: {a: {dhcp4: true}}}\n", "/etc/systemd/network/a.network": "[Network]\nDHCP=yes\n", "/usr/sbin/dhclient": "", "/etc/dhcp/x": ""})
	if changes := sendHostname(t, root, "web"); len(changes) != 3 {
		t.Errorf("said %q", changes)
	}
}

// Of the files that one pattern matches so many are read, and each once.
func TestSendHostnameOfManyFiles(t *testing.T) {
	for _, file := range []string{"/etc/netplan/%d.yaml", "/etc/systemd/network/%d.network", "/etc/NetworkManager/system-connections/%d", "/etc/dhcp/dhclient%d.conf"} {
		for _, c := range []struct{ files, size int }{{257, 0}, {17, int(clientLimit)}} {
			files := map[string]string{}
			for n := range c.files {
				files[fmt.Sprintf(file, n)] = strings.Repeat("#", c.size)
			}
			root, _ := dhcpGuest(t, files)
			if _, err := root.SendHostname("web"); err == nil || !strings.Contains(err.Error(), "more than 256 files or 4 MiB") {
				t.Errorf("%d of %s: %v", c.files, file, err)
			}
		}
	}
	text := strings.Repeat("- a\n", 50000)
	root, _ := dhcpGuest(t, map[string]string{"/etc/netplan/a.yaml": text})
	once := allocated(func() { ParseYAML([]byte(text)) })
	if all := allocated(func() { root.SendHostname("web") }); all > 2*once {
		t.Errorf("a file of netplan takes %v, to read it once %v", all, once)
	}
}

func TestSendHostnameNetworkd(t *testing.T) {
	root, dir := dhcpGuest(t, map[string]string{
		"/etc/systemd/network/05-a.network": "[Match]\nName=a\n[Network]\nDHCP=IPv4\n[DHCPv4]\nSendHostname=no\n",
		"/etc/systemd/network/10-b.network": "[Match]\nName=b\n[Network]\nDHCP=yes\nDHCP=ipv6\n",
		"/etc/systemd/network/20-c.network": "[Network]\nDHCP=no\n[Other]\nDHCP=yes\n",
	})
	if err := os.Symlink("/dev/null", dir+"/etc/systemd/network/80-d.network"); err != nil {
		t.Fatal(err)
	}
	sendHostname(t, root, "old.example.org")
	if changes := sendHostname(t, root, "web.example.org"); len(changes) != 1 {
		t.Errorf("a rename said %q", changes)
	}
	if got := content(t, dir+"/etc/systemd/network/05-a.network.d/90-ganeti-ddns.conf"); got != networkdDropIn+"web\n" {
		t.Errorf("got %q", got)
	}
	if got := root.Glob("/etc/systemd/network/*.d"); len(got) != 1 {
		t.Errorf("drop-ins: %v", got)
	}
}

// The judges are the programs that read the files.
func TestSendHostnameNetworkdKnowsIt(t *testing.T) {
	const daemon = "/usr/lib/systemd/systemd-networkd"
	program, err := os.ReadFile(daemon)
	need.That(t, err == nil, "needs systemd-networkd")
	for _, key := range []string{"DHCP.SendHostname", "DHCP.Hostname"} {
		if !strings.Contains(string(program), key+"\x00") {
			t.Errorf("it does not know %s", key)
		}
	}
}

func TestSendHostnameNetplan(t *testing.T) {
	need.Tools(t, "netplan")
	files := map[string]string{"/etc/netplan/50-x.yaml": `network:
  version: 2
  renderer: RENDERER
  ethernets:
    both: {dhcp4: yes, dhcp6: true}
    by-mac:
      match: {macaddress: "aa:00:00:12:34:56"}
      dhcp4: true
    static: {addresses: [192.0.2.1/24]}
    port: {}
    alias: &a {dhcp4: true}
    other: *a
  bridges:
    br0: {interfaces: [port], dhcp4: true}
  vlans:
    v7: {id: 7, link: static, dhcp4: true, dhcp4-overrides: {hostname: old, route-metric: 7}}
`, "/etc/netplan/60-y.yaml": "network: {ethernets: {both: {dhcp6: true}}}\n", "/etc/netplan/70-broken.yaml.off": "network: [", "/usr/lib/systemd/x": ""}
	for _, renderer := range []string{"networkd", "NetworkManager"} {
		files["/etc/netplan/50-x.yaml"] = strings.ReplaceAll(files["/etc/netplan/50-x.yaml"], "RENDERER", renderer)
		root, dir := dhcpGuest(t, files)
		files["/etc/netplan/50-x.yaml"] = strings.ReplaceAll(files["/etc/netplan/50-x.yaml"], renderer, "RENDERER")
		sendHostname(t, root, "old.example.org")
		sendHostname(t, root, "web.example.org")
		if out, err := exec.Command("netplan", "generate", "--root-dir", dir).CombinedOutput(); err != nil || len(out) > 0 {
			t.Fatalf("%s: %v\n%s\n%s", renderer, err, out, content(t, dir+ddnsNetplan))
		}
		if info, _ := os.Stat(dir + ddnsNetplan); info.Mode().Perm() != 0o600 {
			t.Errorf("the mode is %v", info.Mode())
		}
		if renderer == "NetworkManager" {
			continue // which sends the guest's name whatever netplan says
		}
		for id, want := range map[string]bool{"both": true, "by-mac": true, "static": false, "port": false, "alias": true, "other": true, "br0": true, "v7": true} {
			if got := strings.Contains(content(t, dir+"/run/systemd/network/10-netplan-"+id+".network"), "Hostname=web\n"); got != want {
				t.Errorf("%s sends the name: %v\n%s", id, got, content(t, dir+ddnsNetplan))
			}
		}
		if v7 := content(t, dir+"/run/systemd/network/10-netplan-v7.network"); !strings.Contains(v7, "RouteMetric=7") || strings.Contains(v7, "old") {
			t.Errorf("v7:\n%s", v7)
		}
	}
	root, dir := dhcpGuest(t, map[string]string{ddnsNetplan: "network: {}\n", "/etc/netplan/x.yaml": "network: {ethernets: {a: {dhcp4: false}}}\n"})
	sendHostname(t, root, "web")
	if _, err := os.Stat(dir + ddnsNetplan); err == nil {
		t.Error("what is of no use any more stays")
	}
}

func TestSendHostnameDHClient(t *testing.T) {
	need.Root(t)
	need.Tools(t, "dhclient", "unshare")
	root, dir := dhcpGuest(t, map[string]string{"/etc/dhcp/dhclient.conf": "send host-name = gethostname();\ninterface \"eth7\" {\n send host-name \"x\"; send fqdn.fqdn \"y\";\n}\n",
		"/etc/dhcp/dhclient-old.conf": "send host-name old;\n"})
	for _, file := range []string{"/etc/dhcp/dhclient.conf", "/etc/dhcp/dhclient-old.conf"} {
		sendHostname(t, root, "web-1.example.org")
		cmd := exec.Command("unshare", "-n", "dhclient", "-n", "-cf", dir+file, "-lf", dir+"/leases", "-pf", dir+"/pid")
		if out, _ := cmd.CombinedOutput(); strings.Contains(string(out), "line ") {
			t.Errorf("dhclient says of\n%s\n%s", content(t, dir+file), out)
		}
	}
}

func TestSendHostnameNewDHClient(t *testing.T) {
	root, dir := tree(t, "usr/sbin/dhclient", "sbin -> usr/sbin", "etc/dhcp/")
	sendHostname(t, root, "web")
	if got := content(t, dir+"/etc/dhcp/dhclient.conf"); got != "send host-name \"web\";\n" {
		t.Errorf("got %q", got)
	}
	root, _ = tree(t, "etc/dhcp/")
	if changes := sendHostname(t, root, "web"); len(changes) > 0 {
		t.Errorf("without the program: %v", changes)
	}
}

func TestSendHostnameIfupdown(t *testing.T) {
	need.Tools(t, "ifquery")
	root, dir := dhcpGuest(t, map[string]string{"/etc/network/interfaces": "auto lo eth0\niface lo inet loopback\niface eth0 inet dhcp\n  # comment\n\tup true \\\n  hostname not-an-option\n"})
	sendHostname(t, root, "web.example.org")
	out, err := exec.Command("ifquery", "-i", dir+"/etc/network/interfaces", "eth0").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "hostname: web\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestSendHostnameRefuses(t *testing.T) {
	root, _ := tree(t)
	for _, name := range []string{"", "a b", "x;y", "a\"b", "-x", "a\nb", strings.Repeat("a", 64), strings.Repeat("a.", 127) + "a"} {
		if _, err := root.SendHostname(name); err == nil || !strings.Contains(err.Error(), "no name of a host") {
			t.Errorf("%q: %v", name, err)
		}
	}
	root, _ = dhcpGuest(t, map[string]string{"/etc/dhcpcd.conf": strings.Repeat("#", int(clientLimit)+1)})
	if _, err := root.SendHostname("web"); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a large file: %v", err)
	}
}

// A file of the largest size that is read takes a moment, whatever is in it.
func TestSendHostnameIsFast(t *testing.T) {
	d := &sending{name: "web", fqdn: "web.example.org"}
	for _, piece := range []string{"send host-name ", "send host-name a;", "iface a inet dhcp\n", "hostname\n", "[ipv4]\nmethod=auto\n", "BOOTPROTO=dhcp\n", "\\\n", "\"",
		"send host-name #\n", "send {", "send host-name;", "[ipv4]\nmethod=auto\ndhcp-fqdn=a\n", "network: {ethernets: {a: {dhcp4: true}}}\n", "- ", "a: &a [*a]\n"} {
		text := strings.Repeat(piece, int(clientLimit)/len(piece))
		start := time.Now()
		for _, client := range dhcpClients {
			client.edit(d, text)
		}
		root, _ := dhcpGuest(t, map[string]string{"/etc/netplan/a.yaml": text, "/etc/systemd/network/a.network": text})
		if _, err := root.SendHostname("web"); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%q takes %v", piece, took)
		}
	}
}

// What a hostile guest has in the place of a file is neither read nor written.
func TestSendHostnameHostile(t *testing.T) {
	node := t.TempDir()
	secret := filepath.Join(node, "secret")
	if err := os.WriteFile(secret, []byte("node's\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, _ := tree(t, "etc/dhcp/dhclient.conf -> "+secret, "etc/dhcpcd.conf |", "etc/network/interfaces -> interfaces",
		"etc/netplan/x.yaml |", "etc/netplan/y.yaml/", "etc/systemd/network/a.network -> "+secret,
		"etc/NetworkManager/system-connections -> "+node, "etc/sysconfig/network/dhcp/", "usr/sbin/dhclient -> "+secret)
	if changes := sendHostname(t, root, "web"); len(changes) > 0 {
		t.Errorf("changed %v", changes)
	}
	if got := content(t, secret); got != "node's\n" {
		t.Errorf("the node's file says %q", got)
	}
	root, dir := dhcpGuest(t, map[string]string{"/etc/systemd/network/a.network": "[Network]\nDHCP=yes\n"})
	if err := os.Symlink(node, dir+"/etc/systemd/network/a.network.d"); err != nil {
		t.Fatal(err)
	}
	sendHostname(t, root, "web")
	if entries, _ := os.ReadDir(node); len(entries) != 1 {
		t.Errorf("written outside the guest: %v", entries)
	}
}

func FuzzSendHostname(f *testing.F) {
	for _, text := range []string{"send host-name \"a\"; # x\n", "hostname\ninterface a\n", "iface a inet dhcp\n hostname b\\\n", "iface a inet dhcp\v hostname b\\\n", "iface a inet dhcp \\\\", "iface a inet dhcp\n up a \\\n hostname b\n", "BOOTPROTO=dhcp\nDHCP_HOSTNAME=\"a\"",
		"[ipv4]\nmethod=auto\n[ipv4]\n", "[]\n=\n", "DHCLIENT_HOSTNAME_OPTION=a", "iface a\nuse dhcp", "send host-name", "{send host-name;\"", "send host-name a;send host-name b;\n\"\\", "\"send host-name;{", "[ipv4]\nmethod=auto\ndhcp-fqdn=a\ndhcp-hostname=b"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d := &sending{name: "web", fqdn: "web.example.org"}
		for i, client := range dhcpClients {
			once := client.edit(d, text)
			if twice := client.edit(d, once); twice != once {
				t.Errorf("client %d: %q becomes %q, then %q", i, text, once, twice)
			}
		}
	})
}
