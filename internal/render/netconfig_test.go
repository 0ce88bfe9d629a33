package render

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/network"
	"ganeti-instance-image/internal/run"
)

// nic makes NIC n of addresses in CIDR form and gateways; none means DHCP.
func nic(n int, addresses, gateways string) network.NIC {
	made := network.NIC{Index: n, Name: "nic" + string(rune('0'+n)), MAC: net.HardwareAddr{0x11, 0x22, 0x33, 0x44, 0x55, byte(0x10 + n)}}
	for text := range strings.FieldsSeq(addresses) {
		made.Addresses = append(made.Addresses, netip.MustParsePrefix(text))
	}
	for text := range strings.FieldsSeq(gateways) {
		text, off := strings.CutSuffix(text, "!")
		via := netip.MustParseAddr(text)
		to := netip.MustParsePrefix("0.0.0.0/0")
		if via.Is6() {
			to = netip.MustParsePrefix("::/0")
			made.NoRA = true
		}
		made.Routes = append(made.Routes, network.Route{To: to, Via: via, OnLink: off})
	}
	made.DHCP4 = addresses == ""
	return made
}

func withDNS(n network.NIC) network.NIC {
	n.DNS = []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::53")}
	n.Search = []string{"example.org", "example.net"}
	return n
}

func withMTU(n network.NIC, mtu int) network.NIC {
	n.MTU = mtu
	return n
}

var networks = map[string][]network.NIC{
	"static":  {withDNS(nic(0, "192.0.2.10/24", "192.0.2.1"))},
	"routed":  {nic(0, "192.0.2.10/32", "198.51.100.1!")},
	"both":    {withDNS(nic(0, "192.0.2.10/24 2001:db8::10/64", "192.0.2.1 2001:db8::1"))},
	"six":     {nic(0, "2001:db8::10/128", "fe80::1")},
	"routed6": {nic(0, "192.0.2.10/32 2001:db8::10/128", "198.51.100.1! 2001:db8:1::1!")},
	"dhcp":    {nic(0, "", "")},
	"two":     {nic(0, "192.0.2.10/24", "192.0.2.1"), nic(1, "198.51.100.2/24", "")},
	"dhcp2":   {{Index: 0, Name: "nic0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DHCP4: true, DHCP6: true}, {Index: 1, Name: "nic1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, DHCP4: true, DHCP6: true, Metric: 200}},
	"mixed":   {{Index: 0, Name: "nic0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DHCP4: true, Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.10/32")}}},
	"none":    nil,
	"auto":    {withMTU(network.NIC{Index: 0, Name: "nic0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DHCP4: true, SLAAC: true}, 1400)},
	"slaac":   {{Index: 0, Name: "nic0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, SLAAC: true, Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.10/24")}}},
	"dhcp6":   {{Index: 0, Name: "nic0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DHCP6: true}},
	// The second NIC's is the default route, and it comes first.
	"full": {
		withMTU(withDNS(nic(1, "192.0.2.10/24 192.0.2.11/24 2001:db8::10/64 2001:db8::11/64", "192.0.2.1 2001:db8::1")), 1400),
		withMTU(nic(0, "198.51.100.2/24", ""), 9000),
	},
}

func networkFile(t *testing.T, nics []network.NIC, facts guest.CloudInit) string {
	t.Helper()
	text, err := NetworkConfig(nics, facts)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestNetworkConfig(t *testing.T) {
	cases := []struct {
		network string
		guest   guest.CloudInit
		want    string
	}{
		{"both", guest.CloudInit{}, `version: 2
ethernets:
  nic0:
    match:
      macaddress: "11:22:33:44:55:10"
    accept-ra: false
    addresses:
      - "192.0.2.10/24"
      - "2001:db8::10/64"
    routes:
      - to: "0.0.0.0/0"
        via: "192.0.2.1"
      - to: "::/0"
        via: "2001:db8::1"
    nameservers:
      addresses:
        - "192.0.2.2"
        - "2001:db8::53"
      search:
        - "example.org"
        - "example.net"
`},
		{"routed", guest.CloudInit{Major: 22, Minor: 4, Renderer: "netplan"}, `version: 2
ethernets:
  nic0:
    match:
      macaddress: "11:22:33:44:55:10"
    addresses:
      - "192.0.2.10/32"
    routes:
      - to: "0.0.0.0/0"
        via: "198.51.100.1"
        on-link: true
`},
		{"routed", guest.CloudInit{Major: 20, Minor: 4, Renderer: "eni"}, `version: 2
ethernets:
  nic0:
    match:
      macaddress: "11:22:33:44:55:10"
    set-name: "eth0"
    addresses:
      - "192.0.2.10/32"
    gateway4: "198.51.100.1"
`},
		{"dhcp2", guest.CloudInit{Major: 24, Minor: 1, Renderer: "network-manager"}, `version: 2
ethernets:
  nic0:
    match:
      macaddress: "02:00:00:00:00:01"
    dhcp4: true
    dhcp6: true
  nic1:
    match:
      macaddress: "02:00:00:00:00:02"
    dhcp4: true
    dhcp4-overrides:
      route-metric: 200
    dhcp6: true
    dhcp6-overrides:
      route-metric: 200
`},
	}
	for _, c := range cases {
		if got := networkFile(t, networks[c.network], c.guest); got != c.want {
			t.Errorf("%s %+v: got\n%s\nwant\n%s", c.network, c.guest, got, c.want)
		}
	}
}

// checkUnit looks for what a NIC was planned to have in a networkd unit.
func checkUnit(t *testing.T, name string, n network.NIC, unit string) {
	t.Helper()
	want := []string{"MACAddress=" + n.MAC.String()}
	for _, a := range n.Addresses {
		want = append(want, "Address="+a.String())
	}
	for _, r := range n.Routes {
		want = append(want, "Gateway="+r.Via.String())
		if r.OnLink {
			want = append(want, "GatewayOnLink=")
		}
	}
	for _, d := range n.DNS {
		want = append(want, "DNS="+d.String())
	}
	if n.NoRA {
		want = append(want, "IPv6AcceptRA=no")
	}
	if n.DHCP4 || n.DHCP6 {
		want = append(want, "DHCP=")
	}
	if n.SLAAC {
		want = append(want, "IPv6AcceptRA=yes")
	}
	if n.MTU > 0 {
		want = append(want, fmt.Sprint("MTUBytes=", n.MTU))
	}
	for _, line := range want {
		if !strings.Contains(strings.ToLower(unit), strings.ToLower(line)) {
			t.Errorf("%s: %s has no %s:\n%s", name, n.Name, line, unit)
		}
	}
}

// Every renderer of cloud-init, with the configuration made for a guest that
// has it: what it writes must say every address and gateway.
func TestCloudInitRenders(t *testing.T) {
	need.Root(t)
	need.Tools(t, "cloud-init")
	for _, renderer := range []struct{ name, distro string }{
		{"eni", "debian"}, {"sysconfig", "rhel"}, {"netplan", "debian"}, {"networkd", "arch"}, {"network-manager", "fedora"},
	} {
		for _, name := range []string{"routed6", "dhcp2", "auto", "full"} {
			nics := networks[name]
			text := networkFile(t, nics, guest.CloudInit{Present: true, Major: 22, Minor: 4, Renderer: renderer.name})
			out := render(t, text, renderer.name, renderer.distro)
			for _, n := range nics {
				checkRendered(t, renderer.name+" "+name, n, out, text)
			}
		}
	}
	// An older cloud-init must find the name that it gives the NIC.
	text := networkFile(t, networks["routed"], guest.CloudInit{Present: true, Major: 20, Minor: 4, Renderer: "eni"})
	if out := render(t, text, "eni", "debian"); !strings.Contains(out, "iface eth0 inet static\n    address 192.0.2.10/32\n") || !strings.Contains(out, "    gateway 198.51.100.1\n") {
		t.Errorf("got\n%s", out)
	}
}

func render(t *testing.T, text, renderer, distro string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/in", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	result, err := run.Cmd{What: "render", Argv: []string{"cloud-init", "devel", "net-convert", "-p", dir + "/in", "-k", "yaml", "-d", dir + "/out", "-D", distro, "-O", renderer}}.Run(t.Context())
	if err != nil {
		t.Errorf("%s: %v %s\nof:\n%s", renderer, err, result.Stdout, text)
	}
	var out strings.Builder
	err = filepath.WalkDir(dir+"/out", func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		out.WriteString("# " + path + "\n" + string(data) + "\n")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.ToLower(out.String())
}

func checkRendered(t *testing.T, name string, n network.NIC, out, text string) {
	t.Helper()
	want := []string{n.MAC.String()}
	for _, a := range n.Addresses {
		want = append(want, a.Addr().String())
	}
	for _, r := range n.Routes {
		want = append(want, r.Via.String())
	}
	for _, d := range n.DNS {
		want = append(want, d.String())
	}
	if n.DHCP4 && !strings.Contains(out, "dhcp") && !strings.Contains(out, "method=auto") {
		t.Errorf("%s: no DHCP:\n%s", name, out)
	}
	if n.MTU > 0 {
		want = append(want, fmt.Sprint(n.MTU))
	}
	for _, word := range want {
		if !strings.Contains(out, word) {
			t.Errorf("%s: no %s in\n%s\nof:\n%s", name, word, out, text)
		}
	}
}
