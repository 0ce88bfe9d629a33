package render

import (
	"flag"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/network"
)

var update = flag.Bool("update", false, "write the golden files anew")

// wants is a link by which systemd starts a unit.
func wants(unit string) map[string]string {
	return map[string]string{"etc/systemd/system/multi-user.target.wants/" + unit: "-> /usr/lib/systemd/system/" + unit}
}

func osRelease(id, like, version string) map[string]string {
	return map[string]string{"etc/os-release": "ID=\"" + id + "\"\nID_LIKE=\"" + like + "\"\nVERSION_ID=\"" + version + "\"\n"}
}

var (
	stubResolv = map[string]string{"etc/resolv.conf": "-> ../run/systemd/resolve/stub-resolv.conf"}
	scripts    = map[string]string{
		"etc/sysconfig/network-scripts/network-functions": "", "etc/sysconfig/network-scripts/ifup-eth": "", "etc/sysconfig/network-scripts/ifcfg-lo": "DEVICE=lo\n",
		"etc/sysconfig/network-scripts/ifcfg-eth0": "DEVICE=eth0\nBOOTPROTO=dhcp\n", "sbin/ifup": "", "sbin/udevd": "",
	}
	openrc = map[string]string{"sbin/openrc-run": "", "etc/runlevels/boot/hostname": "-> /etc/init.d/hostname"}
)

// families are trees with the files by which the packages of a distribution, as
// its stock images have them, tell which tool sets up the network, and with what
// competes.
var families = []struct {
	name, renderer string
	cloudInit      bool
	files          []map[string]string
}{
	{"debian-cloud", "netplan", true, []map[string]string{osRelease("debian", "", "12"), netplanGuest, networkdGuest, resolvedGuest, stubResolv, {
		"etc/netplan/90-default.yaml": "network:\n  version: 2\n  ethernets:\n    all-en:\n      match: {name: en*}\n      dhcp4: true\n", "etc/cloud/cloud.cfg": "x: 1\n",
	}}},
	{"debian-installed", "ifupdown", false, []map[string]string{osRelease("debian", "", "12"), ifupdownGuest, {"etc/network/if-up.d/x": "", "etc/resolv.conf": "nameserver 10.0.0.2\n", "sbin/dhclient": "", "etc/systemd/network/10-old.link": "[Match]\nMACAddress=02:00:00:00:00:09\n[Link]\nName=lan0\n"}}},
	{"debian-11-cloud", "ifupdown", true, []map[string]string{osRelease("debian", "", "11"), ifupdownGuest, {
		"etc/network/cloud-ifupdown-helper": "", "etc/udev/rules.d/75-cloud-ifupdown.rules": "x",
		"etc/network/interfaces": "source-directory /etc/network/interfaces.d\nsource-directory /run/network/interfaces.d\nauto lo\niface lo inet loopback\n",
	}}},
	{"ubuntu", "netplan", true, []map[string]string{osRelease("ubuntu", "debian", "24.04"), netplanGuest, networkdGuest, resolvedGuest, stubResolv, {
		"etc/netplan/50-cloud-init.yaml": "network:\n  version: 2\n  ethernets:\n    ens3: {dhcp4: true}\n",
	}}},
	{"ubuntu-desktop", "netplan", false, []map[string]string{osRelease("ubuntu", "debian", "24.04"), netplanGuest, managerGuest, resolvedGuest, stubResolv, {
		"etc/netplan/01-network-manager-all.yaml":                 "network:\n  version: 2\n  renderer: NetworkManager\n",
		"etc/netplan/90-NM-x.yaml":                                "network:\n  version: 2\n  ethernets:\n    NM-x: {renderer: NetworkManager, match: {}, dhcp4: true}\n",
		"etc/NetworkManager/system-connections/old.nmconnection":  "[connection]\ntype=ethernet\n",
		"etc/NetworkManager/system-connections/wifi.nmconnection": "[connection]\ntype=wifi\n",
	}}},
	{"rhel-6", "ifcfg", false, []map[string]string{scripts, {"etc/redhat-release": "CentOS release 6.10 (Final)\n", "etc/sysconfig/network": "NETWORKING=yes\nHOSTNAME=x\nGATEWAY=10.0.0.1\n", "etc/udev/rules.d/70-persistent-net.rules": "old"}}},
	{"rhel-7", "ifcfg", false, []map[string]string{osRelease("centos", "rhel fedora", "7"), scripts, managerGuest, {"etc/sysconfig/network": "# Created by anaconda\n"}}},
	{"rhel-8", "ifcfg", false, []map[string]string{osRelease("almalinux", "rhel centos fedora", "8.9"), rhel8, managerGuest, {"etc/sysconfig/network-scripts/ifcfg-ens3": "DEVICE=ens3\nONBOOT=yes\n"}}},
	{"rhel-8-scripts", "ifcfg", false, []map[string]string{osRelease("almalinux", "rhel centos fedora", "8.9"), scripts}},
	{"rhel-9", "NetworkManager", false, []map[string]string{rhel9, managerGuest, {"etc/sysconfig/network-scripts/readme-ifcfg-rh.txt": "x", "etc/sysconfig/network-scripts/ifcfg-eth0": "DEVICE=eth0\n"}}},
	{"rhel-10", "NetworkManager", true, []map[string]string{osRelease("rhel", "fedora", "10.0"), managerGuest, {"etc/NetworkManager/system-connections/cloud-init-eth0.nmconnection": "[connection]\ntype=ethernet\n"}}},
	{"fedora", "NetworkManager", true, []map[string]string{osRelease("fedora", "", "43"), managerGuest, resolvedGuest, stubResolv}},
	{"suse-wicked", "wicked", false, []map[string]string{wickedGuest, {
		"etc/sysconfig/network/ifcfg-lo": "lo", "etc/sysconfig/network/ifcfg-eth0": "BOOTPROTO='dhcp'\n", "etc/sysconfig/network/ifcfg.template": "x", "etc/sysconfig/network/routes": "default 10.0.0.1 - -\n",
		"etc/sysconfig/network/config": "NETCONFIG_DNS_POLICY=\"\"\nNETCONFIG_DNS_STATIC_SEARCHLIST=\"\"\nNETCONFIG_DNS_STATIC_SERVERS=\"\"\n", "etc/resolv.conf": "-> /run/netconfig/resolv.conf",
	}}},
	{"suse-networkmanager", "NetworkManager", false, []map[string]string{osRelease("opensuse-tumbleweed", "opensuse suse", "20260801"), {
		"usr/sbin/NetworkManager": "", "etc/systemd/system/network.service": "-> /usr/lib/systemd/system/NetworkManager.service", "etc/resolv.conf": "-> /run/netconfig/resolv.conf",
	}}},
	{"gentoo-netifrc", "netifrc", false, []map[string]string{osRelease("gentoo", "", ""), openrc, udevGuest, gentooGuest}},
	{"gentoo-dhcpcd", "dhcpcd", false, []map[string]string{osRelease("gentoo", "", ""), openrc, {"sbin/udevd": "", "etc/init.d/net.lo": "", "sbin/dhcpcd": "", "etc/runlevels/default/dhcpcd": "-> /etc/init.d/dhcpcd", "etc/dhcpcd.conf": "hostname\n"}}},
	{"gentoo-systemd", "systemd-networkd", false, []map[string]string{osRelease("gentoo", "", ""), networkdGuest, resolvedGuest, stubResolv, {"etc/init.d/net.lo": "", "etc/systemd/network/50-dhcp.network": "[Match]\nName=en*\n"}}},
	{"alpine-ifupdown-ng", "ifupdown", false, []map[string]string{osRelease("alpine", "", "3.21"), openrc, alpineGuest, {"etc/network/interfaces": "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n"}}},
	{"alpine-busybox", "ifupdown", false, []map[string]string{osRelease("alpine", "", "3.12"), openrc, busyBoxGuest}},
	{"alpine-dhcpcd", "dhcpcd", false, []map[string]string{osRelease("alpine", "", "3.21"), openrc, alpineGuest, {"etc/network/interfaces": "auto lo\niface lo inet loopback\n", "sbin/dhcpcd": "", "etc/runlevels/default/dhcpcd": "-> /etc/init.d/dhcpcd"}}},
	{"arch", "systemd-networkd", true, []map[string]string{osRelease("arch", "", ""), networkdGuest, resolvedGuest, stubResolv, {"etc/systemd/network/80-dhcp.network": "[Match]\nName=*\n"}}},
	{"void", "dhcpcd", false, []map[string]string{osRelease("void", "", ""), dhcpcdGuest, {"etc/dhcpcd.conf": "hostname\n", "etc/resolv.conf": "# old\n"}}},
	{"amazon-2", "ifcfg", true, []map[string]string{osRelease("amzn", "centos rhel fedora", "2"), scripts}},
	{"amazon-2023", "systemd-networkd", true, []map[string]string{osRelease("amzn", "fedora", "2023"), wants("systemd-networkd.service"), resolvedGuest, stubResolv, {"usr/lib/systemd/network/80-ec2.network": "x"}}},
}

// familyNICs have all there is: both families, a gateway off the link, an MTU,
// name servers, and a second NIC that finds out by itself.
func familyNICs() []network.NIC {
	first := withMTU(withDNS(nic(0, "192.0.2.10/32 2001:db8::10/64", "198.51.100.1! fe80::1")), 1400)
	second := network.NIC{Index: 1, Name: "nic1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, DHCP4: true, SLAAC: true, Metric: 1200, DNS: []netip.Addr{netip.MustParseAddr("192.0.2.2")}}
	return []network.NIC{first, second}
}

// What is written and moved aside in each family is in testdata, as it was
// compared with the manual pages: netplan-yaml(5), interfaces(5) of each
// dialect, systemd.network(5), nm-settings-keyfile(5), sysconfig.txt of
// initscripts, ifcfg(5) and routes(5) of wicked, net.example of netifrc,
// dhcpcd.conf(5) and dhcpcd-run-hooks(8).
func TestFamilies(t *testing.T) {
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			root, dir := guestOf(t, with(family.files...))
			if chosen, err := Choose(root); err != nil || chosen.Name != family.renderer {
				t.Fatalf("chose %q, %v, want %s", chosen.Name, err, family.renderer)
			}
			before := regular(t, dir)
			changes := write(t, root, familyNICs(), Options{CloudInit: family.cloudInit})
			got := strings.Join(changes, "\n") + "\n"
			after := regular(t, dir)
			for _, name := range slices.Sorted(maps.Keys(after)) {
				if after[name] != before[name] {
					got += fmt.Sprintf("\n==> %s\n%s", name, after[name])
				}
			}
			golden(t, filepath.Join("testdata", family.name), got)
			checkKept(t, before, after)
		})
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || got != string(want) {
		t.Errorf("%s: %v: got\n%s", file, err, got)
	}
}

// checkKept looks for what every file of the image said: it is there still, or
// kept in a directory beside its own.
func checkKept(t *testing.T, before, after map[string]string) {
	t.Helper()
	for name, text := range before {
		kept := keptName(name)
		switch {
		case after[name] == text, strings.HasSuffix(after[kept], text): // kept for root alone, or as it was
		case strings.HasPrefix(name, "/etc/runlevels/"), name == "/etc/resolv.conf":
		case name == "/etc/sysconfig/network", name == "/etc/sysconfig/network/config": // edited, a line at a time
		default:
			t.Errorf("%s is lost", name)
		}
	}
}

// regular are the contents of all files of a guest, and "-> target" of links.
func regular(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name := strings.TrimPrefix(path, dir)
		if files[name] = content(t, dir, name); entry.Type()&os.ModeSymlink != 0 {
			files[name] += "\n"
		}
		if info, err := entry.Info(); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o077 == 0 {
			files[name] = "(for root alone)\n" + files[name]
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
