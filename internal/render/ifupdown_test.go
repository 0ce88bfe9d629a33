package render

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/network"
	"ganeti-instance-image/internal/run"
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
	root, dir := guestOf(t, with(ifupdownGuest, map[string]string{
		"etc/network/interfaces.d/50-cloud-init": "auto lo\niface lo inet loopback\nauto eth0\niface eth0 inet dhcp\n", "etc/network/interfaces.d/lo": "# nothing\n", "etc/network/interfaces.d/sub/x": "y",
	}))
	write(t, root, networks["both"], Options{})
	checkFiles(t, "Debian", dir, map[string]string{
		"etc/network/interfaces": debianKept + header + `auto nic0
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
		"etc/udev/rules.d/70-persistent-net.rules": rule,
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
		{"Debian", "routed", ifupdownGuest, "auto nic0\niface nic0 inet static\n    address 192.0.2.10/32\n    up ip route add 198.51.100.1/32 dev $IFACE\n    up ip route add default via 198.51.100.1 dev $IFACE\n"},
		{"ifupdown-ng", "six", alpineGuest, "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet manual\niface eth0 inet6 static\n" + six + "    address 2001:db8::10/128\n    gateway fe80::1\n"},
		{"BusyBox", "both", busyBoxGuest, "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet static\n    address 192.0.2.10\n    netmask 255.255.255.0\n    dns-nameservers 192.0.2.2 2001:db8::53\n    dns-search example.org example.net\n    gateway 192.0.2.1\n" +
			"iface eth0 inet6 static\n" + six + "    address 2001:db8::10\n    netmask 64\n    gateway 2001:db8::1\n"},
		{"DHCP", "dhcp2", alpineGuest, "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\niface eth0 inet6 auto\n\nauto eth1\niface eth1 inet dhcp\n    metric 200\niface eth1 inet6 auto\n"},
		{"DHCP in BusyBox", "dhcp2", busyBoxGuest, "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\niface eth0 inet6 manual\n\nauto eth1\niface eth1 inet dhcp\niface eth1 inet6 manual\n"},
		{"DHCPv6", "dhcp6", ifupdownGuest, "auto nic0\niface nic0 inet manual\niface nic0 inet6 dhcp\n"},
		{"SLAAC and an MTU", "auto", ifupdownGuest, "auto nic0\niface nic0 inet dhcp\n    pre-up ip link set dev $IFACE mtu 1400\niface nic0 inet6 auto\n"},
		{"both", "mixed", alpineGuest, "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n    up ip addr add 192.0.2.10/32 dev $IFACE\n"},
	}
	for _, c := range cases {
		root, dir := guestOf(t, c.files)
		write(t, root, networks[c.network], Options{})
		got := strings.TrimPrefix(strings.ReplaceAll(content(t, dir, "etc/network/interfaces"), header, ""), debianKept)
		if got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, got, c.want)
		}
		if !strings.Contains(content(t, dir, "etc/udev/rules.d/70-persistent-net.rules"), `NAME="`+strings.Fields(c.want[strings.LastIndex(c.want, "auto "):])[1]+`"`) {
			t.Errorf("%s: no rule names the interface", c.name)
		}
	}
}

func FuzzInterfaces(f *testing.F) {
	f.Add(debianInterfaces)
	f.Add("auto lo \\\n eth0\n# x \\\niface lo inet loopback\\")
	f.Add("allow-hotplug\nauto\niface\n\n\n\tsource x\nrename a=b\n x\n" + header)
	f.Add(strings.TrimSuffix(header, "\n"))
	f.Fuzz(func(t *testing.T, text string) {
		if joined := strings.Join(logicalLines(text), ""); joined != text {
			t.Fatalf("%q was put together as %q", text, joined)
		}
		once := dialect{}.interfaces(withoutInterfaces(text), networks["both"])
		if twice := (dialect{}).interfaces(withoutInterfaces(once), networks["both"]); twice != once {
			t.Fatalf("%q became\n%s\nand then\n%s", text, once, twice)
		}
		if strings.Count(once, "iface nic0 inet static\n    address 192.0.2.10/24\n") != 1 {
			t.Fatalf("%q became\n%s", text, once)
		}
	})
}

// dhcpPrograms are all clients for DHCP that ifupdown may start.
var dhcpPrograms = map[string]string{"sbin/dhclient": "", "usr/sbin/dhcpcd": "", "usr/share/udhcpc/default.script": ""}

func TestIfupdownKeepsNameServers(t *testing.T) {
	const hook, udhcpc = "etc/dhcp/dhclient-enter-hooks.d/ganeti", "etc/udhcpc/udhcpc.conf"
	const conf = "hostname\n\ninterface eth0\nstatic routers=10.0.0.1\n"
	told := map[string]string{hook: header + "make_resolv_conf() { :; }\n", "etc/dhcpcd.conf": header + "nohook resolv.conf\n" + conf, udhcpc: "peerdns=x\n" + header + "RESOLV_CONF=\"no\"\n"}
	untold := map[string]string{hook: "", "etc/dhcpcd.conf": conf, udhcpc: "peerdns=x"}
	file := map[string]string{"etc/resolv.conf": "nameserver 10.0.0.2\n"}
	clients := with(dhcpPrograms, file, map[string]string{"etc/dhcpcd.conf": conf, udhcpc: "peerdns=x"})
	given, asking := []network.NIC{networks["static"][0], nic(1, "", "")}, networks["dhcp2"]
	cases := []struct {
		name  string
		files map[string]string
		nics  []network.NIC
		want  map[string]string
	}{
		{"name servers are given", with(ifupdownGuest, clients), given, told},
		{"none are given", with(ifupdownGuest, clients), asking, untold},
		{"no NIC asks", with(ifupdownGuest, clients), given[:1], untold},
		{"there is no client", with(ifupdownGuest, file), given, map[string]string{hook: "", "etc/dhcpcd.conf": "", udhcpc: ""}},
		{"resolvconf", with(ifupdownGuest, clients, map[string]string{"sbin/resolvconf": ""}), given, untold},
		{"systemd-resolved", with(ifupdownGuest, clients, stubResolv), given, untold},
		{"no resolv.conf yet", with(ifupdownGuest, clients, map[string]string{"etc/resolv.conf": ""}), given, told},
		{"Alpine", with(alpineGuest, clients), given, with(told, map[string]string{hook: ""})},
		{"networkd", with(networkdGuest, clients), given, untold},
	}
	for _, c := range cases {
		root, dir := guestOf(t, c.files)
		write(t, root, c.nics, Options{})
		checkFiles(t, c.name, dir, c.want)
	}
	root, dir := guestOf(t, with(ifupdownGuest, clients))
	write(t, root, given, Options{})
	write(t, root, asking, Options{})
	checkFiles(t, "given no more", dir, with(untold, map[string]string{udhcpc: "peerdns=x\n"}))
}

// The clients' own scripts, on what is written for them, leave resolv.conf alone.
func TestDHCPScriptsAreTold(t *testing.T) {
	need.Tools(t, "dhclient", "dhcpcd", "unshare")
	need.Root(t)
	root, dir := guestOf(t, with(ifupdownGuest, dhcpPrograms, map[string]string{"etc/resolv.conf": "nameserver 10.0.0.2\n"}))
	for _, told := range []bool{false, true} {
		if told {
			write(t, root, []network.NIC{networks["static"][0], nic(1, "", "")}, Options{})
		}
		for name, start := range map[string]string{
			"dhclient": `mount --bind "$1/hooks" /etc/dhcp/dhclient-enter-hooks.d; reason=BOUND interface=lo new_domain_name_servers=203.0.113.1 new_ip_address=127.0.0.9 new_subnet_mask=255.0.0.0 /sbin/dhclient-script`,
			"dhcpcd":   `reason=BOUND interface=lo if_up=true protocol=dhcp skip_hooks="$(sed -n 's/^nohook //p' "$1/conf")" new_domain_name_servers=203.0.113.1 sh /usr/lib/dhcpcd/dhcpcd-run-hooks`,
		} {
			hooks := t.TempDir()
			for from, to := range map[string]string{"etc/dhcp/dhclient-enter-hooks.d/ganeti": "hooks/ganeti", "etc/dhcpcd.conf": "conf"} {
				text := content(t, dir, from)
				if err := os.MkdirAll(filepath.Dir(filepath.Join(hooks, to)), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(hooks, to), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			shell := `mount -t tmpfs tmpfs /run; mkdir /run/dhcpcd; cp -a /etc /run/etc; mount --bind /run/etc /etc; rm -f /etc/resolv.conf; echo nameserver 10.0.0.2 >/etc/resolv.conf; (` + start + `) >/dev/null 2>&1; cat /etc/resolv.conf`
			result, err := run.Cmd{What: "start it", Argv: []string{"unshare", "--net", "--mount", "--uts", "sh", "-c", shell, "sh", hooks}}.Run(t.Context())
			if overwritten := strings.Contains(string(result.Stdout), "203.0.113.1"); err != nil || overwritten == told {
				t.Errorf("%s, told %v: %v: %s %s", name, told, err, result.Stdout, result.Stderr)
			}
		}
	}
}
