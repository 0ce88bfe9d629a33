package render

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/network"
	"ganeti-instance-image/internal/run"
)

// guestOf makes a guest of paths and contents; "-> target" is a link.
func guestOf(t *testing.T, files map[string]string) (*guest.Root, string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if target, ok := strings.CutPrefix(text, "-> "); ok && err == nil {
			err = os.Symlink(target, path)
		} else if err == nil {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := guest.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, dir
}

// with adds files to a guest's.
func with(files ...map[string]string) map[string]string {
	all := map[string]string{}
	for _, f := range files {
		maps.Copy(all, f)
	}
	return all
}

// content is a file's, "-> target" of a link, or "" where there is none.
func content(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if target, err := os.Readlink(path); err == nil {
		return "-> " + target
	}
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	return string(text)
}

func checkFiles(t *testing.T, name, dir string, want map[string]string) {
	t.Helper()
	for file, text := range want {
		if got := content(t, dir, file); got != text {
			t.Errorf("%s: %s is\n%s\nwant\n%s", name, file, got, text)
		}
	}
}

func write(t *testing.T, root *guest.Root, nics []network.NIC, options Options) []string {
	t.Helper()
	changes, err := Write(root, nics, options)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Write(root, nics, options)
	if err != nil || len(again) != 1 {
		t.Errorf("a second time: %q, %v", again, err)
	}
	return changes
}

var (
	netplanGuest  = map[string]string{"usr/sbin/netplan": ""}
	networkdGuest = map[string]string{"etc/systemd/system/multi-user.target.wants/systemd-networkd.service": "-> /usr/lib/systemd/system/systemd-networkd.service"}
	resolvedGuest = map[string]string{"etc/systemd/system/sysinit.target.wants/systemd-resolved.service": "-> /usr/lib/systemd/system/systemd-resolved.service"}
	managerGuest  = map[string]string{"usr/sbin/NetworkManager": "", "etc/systemd/system/multi-user.target.wants/NetworkManager.service": "-> /usr/lib/systemd/system/NetworkManager.service"}
	rhel8         = map[string]string{"etc/os-release": "ID=\"almalinux\"\nID_LIKE=\"rhel centos fedora\"\nVERSION_ID=\"8.9\"\n", "usr/lib64/NetworkManager/1.40.16-13.el8/libnm-settings-plugin-ifcfg-rh.so": ""}
	rhel9         = map[string]string{"etc/os-release": "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\nVERSION_ID=\"9.4\"\n", "usr/lib64/NetworkManager/1.46.0/libnm-settings-plugin-ifcfg-rh.so": ""}
	rhel6         = map[string]string{"etc/redhat-release": "CentOS release 6.10 (Final)\n", "etc/sysconfig/network-scripts/network-functions": "", "sbin/ifup": "", "etc/sysconfig/network-scripts/ifcfg-lo": "DEVICE=lo\n", "sbin/udevd": ""}
	wickedGuest   = map[string]string{"usr/sbin/wicked": "", "etc/systemd/system/network.service": "-> /usr/lib/systemd/system/wicked.service", "etc/os-release": "ID=opensuse-leap\nID_LIKE=\"suse opensuse\"\nVERSION_ID=15.5\n", "sbin/udevd": ""}
	ifupdownGuest = map[string]string{"sbin/ifup": "", "etc/network/interfaces": debianInterfaces, "etc/systemd/system/multi-user.target.wants/networking.service": "-> /lib/systemd/system/networking.service", "sbin/udevd": ""}
	udevGuest     = map[string]string{"usr/lib/systemd/systemd-udevd": ""}
	alpineGuest   = map[string]string{"sbin/ifup": "-> ifupdown", "sbin/ifupdown": "", "usr/libexec/ifupdown-ng/static": "", "etc/network/interfaces": "", "etc/runlevels/boot/networking": "-> /etc/init.d/networking"}
	busyBoxGuest  = map[string]string{"sbin/ifup": "-> /bin/busybox", "bin/busybox": "", "etc/network/interfaces": "", "etc/runlevels/boot/networking": "-> /etc/init.d/networking"}
	gentooGuest   = map[string]string{"etc/init.d/net.lo": "#!/sbin/openrc-run\n", "etc/conf.d/net": "config_enp1s0=\"dhcp\"\n", "etc/runlevels/default/net.enp1s0": "-> /etc/init.d/net.enp1s0", "sbin/udevd": ""}
	dhcpcdGuest   = map[string]string{"usr/bin/dhcpcd": "", "etc/runit/runsvdir/default/dhcpcd": "-> /etc/sv/dhcpcd", "sbin/udevd": ""}
)

func TestChoose(t *testing.T) {
	masked := map[string]string{"etc/systemd/system/systemd-networkd.service": "-> /dev/null"}
	cases := []struct {
		want  string // or, in an error, "!words"
		files map[string]string
	}{
		{"netplan", with(netplanGuest, networkdGuest, managerGuest, ifupdownGuest)},
		{"netplan", map[string]string{"usr/lib/systemd/system-generators/netplan": "-> ../../netplan/generate", "usr/lib/netplan/generate": ""}},
		{"NetworkManager", with(managerGuest, ifupdownGuest)},
		{"NetworkManager", with(managerGuest, rhel9)},
		{"NetworkManager", map[string]string{"usr/sbin/NetworkManager": "", "etc/systemd/system/network.service": "-> /usr/lib/systemd/system/NetworkManager.service"}},
		{"ifcfg", with(managerGuest, rhel8)},
		{"ifcfg", rhel6},
		{"wicked", wickedGuest},
		{"ifupdown", with(ifupdownGuest, map[string]string{"usr/sbin/NetworkManager": ""})},
		{"ifupdown", alpineGuest},
		{"ifupdown", map[string]string{"sbin/ifup": "", "etc/network/interfaces": "", "etc/rcS.d/S14networking": ""}},
		{"systemd-networkd", networkdGuest},
		{"netifrc", gentooGuest},
		{"dhcpcd", dhcpcdGuest},
		{"!enables none of netplan, ifcfg, NetworkManager", with(networkdGuest, masked)},
		{"!generates its /etc", with(networkdGuest, map[string]string{"etc/os-release": "ID=nixos\n"})},
	}
	for i, c := range cases {
		root, _ := guestOf(t, c.files)
		got, err := Choose(root)
		if words, isError := strings.CutPrefix(c.want, "!"); isError {
			if err == nil || !strings.Contains(err.Error(), words) {
				t.Errorf("%d: %v, want an error with %q", i, err, words)
			}
		} else if err != nil || got.Name != c.want {
			t.Errorf("%d: %s, %v, want %s", i, got.Name, err, c.want)
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	root, _ := guestOf(t, map[string]string{"etc/systemd/system/multi-user.target.wants/connman.service": "-> /lib/systemd/system/connman.service"})
	if _, err := Write(root, networks["static"], Options{}); err == nil || !strings.Contains(err.Error(), "the guest uses connman") {
		t.Errorf("connman: %v", err)
	}
	root, _ = guestOf(t, netplanGuest)
	evil := nic(0, "192.0.2.10/24", "")
	evil.Search = []string{"a\"\nX=1"}
	if _, err := Write(root, []network.NIC{evil}, Options{}); err == nil || !strings.Contains(err.Error(), "not a domain") {
		t.Errorf("a search domain: %v", err)
	}
	if _, err := Write(root, []network.NIC{{Name: "nic0"}}, Options{}); err == nil || !strings.Contains(err.Error(), "no Ethernet address") {
		t.Errorf("no MAC: %v", err)
	}
}

const cloudInitYAML = "network:\n  version: 2\n  renderer: NetworkManager\n  ethernets:\n    all:\n      match: {name: 'e*'}\n      dhcp4: true\n"

func TestNetplan(t *testing.T) {
	need.Tools(t, "netplan")
	for name, nics := range networks {
		root, dir := guestOf(t, with(netplanGuest, map[string]string{
			"etc/netplan/90-default.yaml": strings.Replace(cloudInitYAML, "NetworkManager", "networkd", 1), "etc/netplan/01-nm.yaml": "network:\n  version: 2\n",
			"etc/netplan/broken.yaml": "{", "etc/systemd/network/80-dhcp.network": "x",
		}))
		if err := os.Chmod(dir+"/etc/netplan/01-nm.yaml", 0o600); err != nil { // netplan would warn
			t.Fatal(err)
		}
		write(t, root, nics, Options{})
		checkFiles(t, name, dir, map[string]string{"etc/netplan/broken.yaml": "", "etc/netplan/90-default.yaml": "", "etc/netplan.ganeti-orig/broken.yaml": "{", "etc/netplan/01-nm.yaml": "network:\n  version: 2\n", "etc/systemd/network.ganeti-orig/80-dhcp.network": "x"})
		result, err := run.Cmd{What: "generate", Argv: []string{"netplan", "generate", "--root-dir", dir}}.Run(t.Context())
		if err != nil || strings.Contains(result.Stderr, "eprecated") || strings.Contains(result.Stderr, "WARN") {
			t.Errorf("%s: %v %s\nof:\n%s", name, err, result.Stderr, content(t, dir, netplanFile))
			continue
		}
		for _, n := range nics {
			checkUnit(t, name, n, content(t, dir, "run/systemd/network/10-netplan-"+n.Name+".network"))
		}
	}
}

func TestNetplanKeepsBackend(t *testing.T) {
	need.Tools(t, "netplan")
	root, dir := guestOf(t, with(netplanGuest, map[string]string{"etc/netplan/50-cloud-init.yaml": cloudInitYAML}))
	write(t, root, networks["both"], Options{CloudInit: true})
	if _, err := (run.Cmd{What: "generate", Argv: []string{"netplan", "generate", "--root-dir", dir}}).Run(t.Context()); err != nil {
		t.Error(err)
	}
	if got := content(t, dir, "run/NetworkManager/system-connections/netplan-nic0.nmconnection"); !strings.Contains(got, "address1=192.0.2.10/24") {
		t.Errorf("NetworkManager gets\n%s", got)
	}
	checkFiles(t, "cloud-init", dir, map[string]string{"etc/cloud/cloud.cfg.d/zz-ganeti-network.cfg": header + "network: {config: disabled}\n"})
	if info, err := os.Stat(dir + netplanFile); err != nil || info.Mode() != fs.FileMode(0o600) {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// netplan judges what is written for the tools it writes for itself: each line
// that counts must be in its files too, and none of its be missing.
func TestAsNetplanWrites(t *testing.T) {
	need.Tools(t, "netplan")
	networkdKeys := []string{"MTUBytes", "Address", "Gateway", "GatewayOnLink", "GatewayOnlink", "Destination", "DNS", "Domains", "DHCP", "IPv6AcceptRA", "RouteMetric"}
	managerKeys := []string{"mtu", "mac-address", "address1", "address2", "route-metric", "type"}
	for _, name := range []string{"both", "routed6", "six", "dhcp2", "mixed", "full", "dhcp6"} {
		nics := networks[name]
		_, theirs := guestOf(t, netplanGuest)
		dir := theirs + "/etc/netplan"
		for _, backend := range []string{"networkd", "NetworkManager"} {
			config := networkConfig(nics, guest.CloudInit{})
			config.Renderer = backend
			text, err := EncodeYAML("", netplanDocument{config})
			if err != nil || os.MkdirAll(dir, 0o755) != nil || os.WriteFile(dir+"/a.yaml", text, 0o600) != nil {
				t.Fatal(err)
			}
			if _, err := (run.Cmd{What: "generate", Argv: []string{"netplan", "generate", "--root-dir", theirs}}).Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, n := range nics {
				if backend == "networkd" {
					compare(t, name, networkdKeys, content(t, theirs, "run/systemd/network/10-netplan-"+n.Name+".network"), networkdUnit(n))
				} else {
					compare(t, name, managerKeys, content(t, theirs, "run/NetworkManager/system-connections/netplan-"+n.Name+".nmconnection"), connection(n))
				}
			}
		}
	}
}

func compare(t *testing.T, name string, keys []string, theirs, ours string) {
	t.Helper()
	if a, b := significant(theirs, keys), significant(ours, keys); !slices.Equal(a, b) {
		t.Errorf("%s: ours is %q, netplan's %q", name, b, a)
	}
}

// significant are the lines with a key, in one spelling, sorted.
func significant(text string, keys []string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if slices.Contains(keys, key) && line != "RouteMetric=100\n" { // netplan's default
			lines = append(lines, strings.ToLower(key+"="+strings.ReplaceAll(strings.ReplaceAll(value, "true", "yes"), "false", "no")))
		}
	}
	slices.Sort(lines)
	return lines
}

func TestNetworkd(t *testing.T) {
	files := with(networkdGuest, map[string]string{"etc/systemd/network/80-dhcp.network": "x", "etc/systemd/network/a.link": "y", "etc/udev/rules.d/70-persistent-net.rules": "old"})
	root, dir := guestOf(t, with(files, resolvedGuest))
	write(t, root, networks["static"], Options{})
	checkFiles(t, "networkd", dir, map[string]string{
		"etc/systemd/network/05-ganeti-nic0.network": header + "[Match]\nMACAddress=11:22:33:44:55:10\n\n[Network]\nAddress=192.0.2.10/24\nDNS=192.0.2.2\nDNS=2001:db8::53\nDomains=example.org example.net\n\n[Route]\nDestination=0.0.0.0/0\nGateway=192.0.2.1\n",
		"etc/systemd/network/80-dhcp.network":        "", "etc/systemd/network.ganeti-orig/80-dhcp.network": "x", "etc/systemd/network/a.link": "y",
		"etc/udev/rules.d/70-persistent-net.rules": "", "etc/udev/rules.d.ganeti-orig/70-persistent-net.rules": "old", "etc/resolv.conf": "",
	})
	root, dir = guestOf(t, files)
	write(t, root, networks["static"], Options{})
	checkFiles(t, "without resolved", dir, map[string]string{"etc/resolv.conf": header + "search example.org example.net\nnameserver 192.0.2.2\nnameserver 2001:db8::53\n"})
	root, dir = guestOf(t, with(files, map[string]string{"etc/resolv.conf": "-> /run/x"}))
	write(t, root, networks["static"], Options{})
	checkFiles(t, "a link", dir, map[string]string{"etc/resolv.conf": "-> /run/x", "run/x": ""})
}

func TestNetworkManager(t *testing.T) {
	root, dir := guestOf(t, with(managerGuest, rhel9, map[string]string{
		"etc/network/interfaces": debianInterfaces, "etc/NetworkManager/conf.d/99-cloud-init.conf": "[main]\ndns = none\n",
		"etc/NetworkManager/system-connections/Wired 1":  "[connection]\ntype = 802-3-ethernet\n",
		"etc/NetworkManager/system-connections/vpn":      "[connection]\ntype=vpn\n",
		"etc/sysconfig/network-scripts/ifcfg-ens3":       "DEVICE=ens3\n",
		"etc/sysconfig/network-scripts/readme-ifcfg.txt": "x",
	}))
	write(t, root, networks["routed6"], Options{})
	checkFiles(t, "keyfile", dir, map[string]string{
		"etc/NetworkManager/system-connections/ganeti-nic0.nmconnection": header + "[connection]\nid=ganeti-nic0\nuuid=" + connectionUUID(networks["routed6"][0]) + "\ntype=ethernet\nautoconnect-priority=120\n\n" +
			"[ethernet]\nmac-address=11:22:33:44:55:10\n\n[ipv4]\nmethod=manual\naddress1=192.0.2.10/32\nroute1=198.51.100.1/32\ngateway=198.51.100.1\n\n[ipv6]\nmethod=manual\naddress1=2001:db8::10/128\nroute1=2001:db8:1::1/128\ngateway=2001:db8:1::1\n",
		"etc/network/interfaces": strings.TrimSuffix(debianKept, "\n"), "etc/network.ganeti-orig/interfaces": debianInterfaces, "etc/NetworkManager/conf.d/99-cloud-init.conf": "",
		"etc/NetworkManager/system-connections/Wired 1": "", "etc/NetworkManager/system-connections.ganeti-orig/Wired 1": "[connection]\ntype = 802-3-ethernet\n",
		"etc/NetworkManager/system-connections/vpn": "[connection]\ntype=vpn\n",
		"etc/sysconfig/network-scripts/ifcfg-ens3":  "", "etc/sysconfig/network-scripts/readme-ifcfg.txt": "x",
	})
	if info, err := os.Stat(dir + "/etc/NetworkManager/system-connections/ganeti-nic0.nmconnection"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestIfcfg(t *testing.T) {
	root, dir := guestOf(t, with(rhel6, map[string]string{"etc/sysconfig/network": "NETWORKING=no\nHOSTNAME=x\nGATEWAY=10.0.0.1", "etc/sysconfig/network-scripts/ifcfg-eth3": "x", "etc/sysconfig/network-scripts/route-eth0": "x"}))
	write(t, root, networks["both"], Options{})
	checkFiles(t, "RHEL 6", dir, map[string]string{
		"etc/sysconfig/network-scripts/ifcfg-nic0": header + "TYPE=Ethernet\nNAME=nic0\nDEVICE=nic0\nHWADDR=11:22:33:44:55:10\nONBOOT=yes\nBOOTPROTO=none\nIPADDR=192.0.2.10\nPREFIX=24\nNETMASK=255.255.255.0\nGATEWAY=192.0.2.1\n" +
			"IPV6INIT=yes\nIPV6_AUTOCONF=no\nIPV6ADDR=2001:db8::10/64\nIPV6_DEFAULTGW=2001:db8::1\nDNS1=192.0.2.2\nDNS2=2001:db8::53\nDOMAIN=\"example.org example.net\"\n",
		"etc/sysconfig/network": "NETWORKING=yes\nHOSTNAME=x\nNETWORKING_IPV6=yes\n", "etc/sysconfig/network-scripts/ifcfg-lo": "DEVICE=lo\n",
		"etc/sysconfig/network-scripts/ifcfg-eth3": "", "etc/sysconfig/network-scripts/route-eth0": "", "etc/sysconfig/network-scripts.ganeti-orig/ifcfg-eth3": "x",
		"etc/udev/rules.d/70-persistent-net.rules": rule,
		"etc/resolv.conf":                          header + "search example.org example.net\nnameserver 192.0.2.2\nnameserver 2001:db8::53\n",
	})
	root, dir = guestOf(t, rhel6)
	write(t, root, networks["routed6"], Options{})
	checkFiles(t, "off-link", dir, map[string]string{
		"etc/sysconfig/network-scripts/route-nic0":  header + "198.51.100.1/32 dev nic0\ndefault via 198.51.100.1 dev nic0\n",
		"etc/sysconfig/network-scripts/route6-nic0": header + "2001:db8:1::1/128 dev nic0\ndefault via 2001:db8:1::1 dev nic0\n",
	})
	root, dir = guestOf(t, with(managerGuest, rhel8))
	write(t, root, networks["six"], Options{})
	checkFiles(t, "RHEL 8", dir, map[string]string{
		"etc/sysconfig/network-scripts/ifcfg-nic0": header + "TYPE=Ethernet\nNAME=nic0\nHWADDR=11:22:33:44:55:10\nONBOOT=yes\nBOOTPROTO=none\nIPV6INIT=yes\nIPV6_AUTOCONF=no\nIPV6ADDR=2001:db8::10/128\nIPV6_DEFAULTGW=fe80::1\n",
	})
	root, dir = guestOf(t, rhel6)
	write(t, root, networks["dhcp2"], Options{})
	if got := content(t, dir, "etc/sysconfig/network-scripts/ifcfg-nic1"); !strings.Contains(got, "BOOTPROTO=dhcp\nIPV6INIT=yes\nIPV6_AUTOCONF=yes\nDHCPV6C=yes\nIPV6_ADDR_GEN_MODE=eui64\nMETRIC=200\n") {
		t.Errorf("DHCP:\n%s", got)
	}
}

const rule = header + `SUBSYSTEM=="net", ACTION=="add", ATTR{address}=="11:22:33:44:55:10", ATTR{type}=="1", NAME="nic0"` + "\n"

func TestWicked(t *testing.T) {
	root, dir := guestOf(t, with(wickedGuest, map[string]string{
		"etc/sysconfig/network/ifcfg-eth0": "BOOTPROTO='dhcp'\n", "etc/sysconfig/network/ifcfg-lo": "lo", "etc/sysconfig/network/ifcfg-br0": "br", "etc/sysconfig/network/routes": "default 10.0.0.1 - -\n",
		"etc/sysconfig/network/config": "# say\nNETCONFIG_DNS_STATIC_SERVERS=\"10.0.0.2\"\nX=\"1\"\n", "etc/resolv.conf": "-> /run/netconfig/resolv.conf",
	}))
	write(t, root, []network.NIC{withDNS(networks["routed6"][0])}, Options{})
	checkFiles(t, "wicked", dir, map[string]string{
		"etc/udev/rules.d/70-persistent-net.rules": rule,
		"etc/sysconfig/network/ifcfg-nic0":         header + "BOOTPROTO='static'\nSTARTMODE='auto'\nIPADDR='192.0.2.10/32'\nIPADDR_1='2001:db8::10/128'\n",
		"etc/sysconfig/network/ifroute-nic0":       header + "198.51.100.1/32 - - -\n0.0.0.0/0 198.51.100.1 - -\n2001:db8:1::1/128 - - -\n::/0 2001:db8:1::1 - -\n",
		"etc/sysconfig/network/ifcfg-lo":           "lo", "etc/sysconfig/network/ifcfg-br0": "", "etc/sysconfig/network/routes": "",
		"etc/sysconfig/network/config": "# say\nNETCONFIG_DNS_STATIC_SERVERS=\"192.0.2.2 2001:db8::53\"\nX=\"1\"\nNETCONFIG_DNS_STATIC_SEARCHLIST=\"example.org example.net\"\n",
		"etc/resolv.conf":              "-> /run/netconfig/resolv.conf",
	})
}

// A shell reads what OpenRC will.
func TestNetifrc(t *testing.T) {
	root, dir := guestOf(t, gentooGuest)
	write(t, root, []network.NIC{withDNS(networks["routed6"][0]), nic(1, "", "")}, Options{})
	checkFiles(t, "netifrc", dir, map[string]string{
		"etc/init.d/net.nic0": "-> net.lo", "etc/runlevels/default/net.nic0": "-> /etc/init.d/net.nic0", "etc/runlevels/default/net.nic1": "-> /etc/init.d/net.nic1",
		"etc/runlevels/default/net.enp1s0": "", "etc/conf.d.ganeti-orig/net": "config_enp1s0=\"dhcp\"\n",
	})
	script := `. "$1"; echo "$config_nic0|$routes_nic0|$dns_servers_nic0|$dns_search_nic0|$config_nic1|$routes_nic1"`
	result, err := run.Cmd{What: "read", Argv: []string{"sh", "-c", script, "sh", dir + "/etc/conf.d/net"}}.Run(t.Context())
	want := "192.0.2.10/32\n2001:db8::10/128|198.51.100.1/32 scope link\ndefault via 198.51.100.1\n2001:db8:1::1/128 scope link\n::/0 via 2001:db8:1::1|192.0.2.2 2001:db8::53|example.org example.net|dhcp|\n"
	if err != nil || string(result.Stdout) != want {
		t.Errorf("%v: got\n%s\nwant\n%s", err, result.Stdout, want)
	}
}

// What an interface is called must be none of the kernel's names where udev gives
// it, and the kernel's where nothing does.
func TestNames(t *testing.T) {
	udev := map[string]string{"sbin/udevd": ""}
	mdev := map[string]string{"etc/runlevels/sysinit/mdev": "-> /etc/init.d/mdev"}
	scripts7 := with(rhel6, osRelease("centos", "rhel fedora", "7"))
	cases := []struct {
		name, want string
		files      map[string]string
	}{
		{"Debian", "nic", ifupdownGuest},
		{"Debian without udev", "eth", with(busyBoxGuest, osRelease("debian", "", "13"))},
		{"Alpine", "eth", alpineGuest},
		{"Alpine with eudev", "nic", with(alpineGuest, udev)},
		{"Alpine with eudev and mdev", "eth", with(alpineGuest, udev, mdev)},
		{"Void", "nic", dhcpcdGuest},
		{"RHEL 6", "nic", rhel6},
		{"RHEL 7", "nic", scripts7},
		{"RHEL 7 with NetworkManager", "nic", with(scripts7, managerGuest)},
		{"SUSE", "nic", wickedGuest},
		{"Gentoo", "nic", gentooGuest},
	}
	for _, c := range cases {
		root, dir := guestOf(t, c.files)
		nics := networks["full"]
		write(t, root, nics, Options{})
		if nics[0].Name != "nic1" {
			t.Errorf("%s: the plan says %s now", c.name, nics[0].Name)
		}
		rules := content(t, dir, "etc/udev/rules.d/70-persistent-net.rules")
		for _, n := range nics {
			if want := `ATTR{address}=="` + n.MAC.String() + `", ATTR{type}=="1", NAME="` + strings.Replace(n.Name, "nic", c.want, 1) + "\"\n"; !strings.Contains(rules, want) {
				t.Errorf("%s: no %s in\n%s", c.name, want, rules)
			}
		}
	}
}

func TestDropLinks(t *testing.T) {
	gone := map[string]string{
		"10-old.link":  "[Match]\nMACAddress=02:00:00:00:00:09\n\n[Link]\nName=lan0\n",
		"11-perm.link": "# x\n[Link]\nName=lan1\n[Match]\n\tPermanentMACAddress = 02:00:00:00:00:09\r\n",
	}
	stays := map[string]string{
		"20-path.link":    "[Match]\nPath=pci-*\n[Link]\nName=lan2\n",
		"21-given.link":   "[Match]\nOriginalName=x\n[Link]\nMACAddress=02:00:00:00:00:09\n",
		"22-empty.link":   "[Match]\nMACAddress=\n#MACAddress=02:00:00:00:00:09\n",
		"99-default.link": "-> /dev/null",
		"30-x.netdev":     "[Match]\nMACAddress=02:00:00:00:00:09\n",
	}
	image, want := map[string]string{}, map[string]string{}
	for file, text := range with(gone, stays) {
		image["etc/systemd/network/"+file], want["etc/systemd/network/"+file] = text, text
	}
	for file, text := range gone {
		want["etc/systemd/network/"+file], want["etc/systemd/network.ganeti-orig/"+file] = "", text
	}
	for name, files := range map[string]map[string]string{"networkd": networkdGuest, "ifupdown": ifupdownGuest, "netplan": netplanGuest} {
		root, dir := guestOf(t, with(files, image))
		write(t, root, networks["static"], Options{})
		checkFiles(t, name, dir, want)
	}
}
