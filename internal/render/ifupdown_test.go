package render

import (
	"strings"
	"testing"
)

const debianInterfaces = `# This file describes the network interfaces available on your system
# and how to activate them. For more information, see interfaces(5).

source /etc/network/interfaces.d/*

# The loopback network interface
auto lo ens3
iface lo inet loopback

# The primary network interface
allow-hotplug ens4
iface ens3 inet static
	address 10.0.0.2/24
	up ip route add 10.1.0.0/16 \
	   via 10.0.0.1
	dns-nameservers 10.0.0.1

mapping eth*
	script /x
`

const debianKept = `# This file describes the network interfaces available on your system
# and how to activate them. For more information, see interfaces(5).

source /etc/network/interfaces.d/*

# The loopback network interface
auto lo
iface lo inet loopback

# The primary network interface

`

func TestIfupdown(t *testing.T) {
	root, dir := guestOf(t, with(ifupdownGuest, ifupdownVersion, map[string]string{
		"etc/network/interfaces.d/50-cloud-init": "auto lo\niface lo inet loopback\nauto eth0\niface eth0 inet dhcp\n", "etc/network/interfaces.d/lo": "# nothing\n", "etc/network/interfaces.d/sub/x": "y",
	}))
	write(t, root, networks["both"], Options{})
	checkFiles(t, "Debian", dir, map[string]string{
		"etc/network/interfaces": debianKept + header + `auto mac/11:22:33:44:55:10=nic0
iface nic0 inet static
    address 192.0.2.10/24
    dns-nameservers 192.0.2.2 2001:db8::53
    dns-search example.org example.net
    gateway 192.0.2.1
iface nic0 inet6 static
    pre-up echo 0 > /proc/sys/net/ipv6/conf/$IFACE/accept_ra
    address 2001:db8::10/64
    gateway 2001:db8::1
`,
		"etc/network.ganeti-orig/interfaces":     debianInterfaces,
		"etc/network/interfaces.d/50-cloud-init": "", "etc/network/interfaces.d/lo": "# nothing\n",
		"etc/udev/rules.d/70-persistent-net.rules": "",
		"etc/resolv.conf":                          header + "search example.org example.net\nnameserver 192.0.2.2\nnameserver 2001:db8::53\n",
	})
}

func TestIfupdownDialects(t *testing.T) {
	const six = "    pre-up echo 0 > /proc/sys/net/ipv6/conf/$IFACE/accept_ra\n"
	cases := []struct {
		name, network string
		files         map[string]string
		want          string
	}{
		{"old Debian", "routed", ifupdownGuest, "auto eth0\niface eth0 inet static\n    address 192.0.2.10/32\n    up ip route add 198.51.100.1/32 dev $IFACE\n    up ip route add default via 198.51.100.1 dev $IFACE\n"},
		{"ifupdown-ng", "six", alpineGuest, "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet manual\niface eth0 inet6 static\n" + six + "    address 2001:db8::10/128\n    gateway fe80::1\n"},
		{"BusyBox", "both", busyBoxGuest, "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet static\n    address 192.0.2.10\n    netmask 255.255.255.0\n    dns-nameservers 192.0.2.2 2001:db8::53\n    dns-search example.org example.net\n    gateway 192.0.2.1\n" +
			"iface eth0 inet6 static\n" + six + "    address 2001:db8::10\n    netmask 64\n    gateway 2001:db8::1\n"},
		{"DHCP", "dhcp2", alpineGuest, "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\niface eth0 inet6 auto\n\nauto eth1\niface eth1 inet dhcp\n    metric 200\niface eth1 inet6 auto\n"},
		{"DHCP in BusyBox", "dhcp2", busyBoxGuest, "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\niface eth0 inet6 manual\n\nauto eth1\niface eth1 inet dhcp\niface eth1 inet6 manual\n"},
		{"DHCPv6", "dhcp6", ifupdownGuest, "auto eth0\niface eth0 inet manual\niface eth0 inet6 dhcp\n"},
		{"SLAAC and an MTU", "auto", ifupdownGuest, "auto eth0\niface eth0 inet dhcp\n    pre-up ip link set dev $IFACE mtu 1400\niface eth0 inet6 auto\n"},
		{"both", "mixed", alpineGuest, "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n    up ip addr add 192.0.2.10/32 dev $IFACE\n"},
	}
	for _, c := range cases {
		root, dir := guestOf(t, c.files)
		write(t, root, networks[c.network], Options{})
		got := strings.TrimPrefix(strings.ReplaceAll(content(t, dir, "etc/network/interfaces"), header, ""), debianKept)
		if got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, got, c.want)
		}
		if !strings.Contains(content(t, dir, "etc/udev/rules.d/70-persistent-net.rules"), `NAME="eth0"`) {
			t.Errorf("%s: no rule names the interface", c.name)
		}
	}
}

func FuzzInterfaces(f *testing.F) {
	f.Add(debianInterfaces)
	f.Add("auto lo \\\n eth0\n# x \\\niface lo inet loopback\\")
	f.Add("allow-hotplug\nauto\niface\n\n\n\tsource x\nrename a=b\n x\n" + header)
	f.Fuzz(func(t *testing.T, text string) {
		if joined := strings.Join(logicalLines(text), ""); joined != text {
			t.Fatalf("%q was put together as %q", text, joined)
		}
		once := dialect{byMAC: true}.interfaces(withoutInterfaces(text), networks["both"])
		if twice := (dialect{byMAC: true}).interfaces(withoutInterfaces(once), networks["both"]); twice != once {
			t.Fatalf("%q became\n%s\nand then\n%s", text, once, twice)
		}
		if strings.Count(once, "iface nic0 inet static\n    address 192.0.2.10/24\n") != 1 {
			t.Fatalf("%q became\n%s", text, once)
		}
	})
}
