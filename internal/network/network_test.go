package network

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/osapi"
	"ganeti-instance-image/internal/settings"
)

// site makes NETWORKS_DIR of paths and contents, each line of which is one
// assignment, separated by ";".
func site(t *testing.T, files map[string]string) *settings.Settings {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "; ", "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return &settings.Settings{NetworksDir: dir}
}

// instance has one NIC for each text: "IP", "IP SUBNET GATEWAY", "" or
// "- SUBNET6 GATEWAY6" for a network without an address in it.
func instance(nics ...string) osapi.Instance {
	inst := osapi.Instance{Name: "web.example.org"}
	for i, text := range nics {
		nic := osapi.NIC{Index: i, MAC: net.HardwareAddr{0xaa, 0, 0, 0, 0, byte(i)}, Mode: "bridged", Network: osapi.Network{Name: "san"}}
		for n, word := range strings.Fields(text) {
			switch {
			case word == "-":
			case n == 0:
				nic.IP = netip.MustParseAddr(word)
			case n == 1 && strings.Contains(word, ":"):
				nic.Network.Subnet6 = netip.MustParsePrefix(word)
			case n == 1:
				nic.Network.Subnet = netip.MustParsePrefix(word)
			case strings.Contains(word, ":"):
				nic.Network.Gateway6 = netip.MustParseAddr(word)
			default:
				nic.Network.Gateway = netip.MustParseAddr(word)
			}
		}
		inst.NICs = append(inst.NICs, nic)
	}
	return inst
}

// describe writes a plan on one line a NIC.
func describe(nics []NIC) string {
	var lines []string
	for _, n := range nics {
		var words []string
		if n.DHCP4 {
			words = append(words, "dhcp4")
		}
		if n.DHCP6 {
			words = append(words, "dhcp6")
		}
		if n.SLAAC {
			words = append(words, "slaac")
		}
		if n.MTU != 0 {
			words = append(words, fmt.Sprint("mtu ", n.MTU))
		}
		if n.Metric != 0 {
			words = append(words, fmt.Sprint("metric ", n.Metric))
		}
		for _, a := range n.Addresses {
			words = append(words, a.String())
		}
		for _, r := range n.Routes {
			words = append(words, fmt.Sprintf("%v via %v", r.To, r.Via))
			if r.OnLink {
				words = append(words, "onlink")
			}
		}
		if n.NoRA {
			words = append(words, "nora")
		}
		for _, d := range n.DNS {
			words = append(words, "dns "+d.String())
		}
		for _, s := range n.Search {
			words = append(words, "search "+s)
		}
		lines = append(lines, strings.Join(words, " "))
	}
	return strings.Join(lines, " | ")
}

const (
	lan    = "NETMASK=255.255.255.0; GATEWAY=192.0.2.1; DNS_SERVERS=\"192.0.2.53 192.0.2.54\"; DNS_SEARCH=\"example.org example.net\"; DNS_DOMAIN=example.com"
	static = "instances/web.example.org"
)

func TestPlan(t *testing.T) {
	cases := []struct {
		name  string
		files map[string]string
		nics  []string
		want  string
	}{
		{"no NIC", nil, nil, ""},
		{"nothing known", nil, []string{""}, "dhcp4"},
		{"the Bash version's files", map[string]string{static: "ADDRESS=192.0.2.10; SUBNET=lan", "subnets/lan": lan}, []string{"198.51.100.9 198.51.100.0/24 198.51.100.1"},
			"192.0.2.10/24 0.0.0.0/0 via 192.0.2.1 dns 192.0.2.53 dns 192.0.2.54 search example.org search example.net"},
		{"a prefix length, a domain", map[string]string{static: "ADDRESS=192.0.2.10; SUBNET=lan", "subnets/lan": "NETMASK=26; GATEWAY=192.0.2.1; DNS_DOMAIN=example.com"}, []string{""},
			"192.0.2.10/26 0.0.0.0/0 via 192.0.2.1 search example.com"},
		{"both families, no subnet file", map[string]string{static: "ADDRESS='192.0.2.10/24 2001:db8::10/64'; GATEWAY='192.0.2.1 fe80::1'"}, []string{""},
			"192.0.2.10/24 2001:db8::10/64 0.0.0.0/0 via 192.0.2.1 ::/0 via fe80::1 nora"},
		{"a routed address", map[string]string{static: "ADDRESS=192.0.2.10/32; GATEWAY=198.51.100.1"}, []string{""},
			"192.0.2.10/32 0.0.0.0/0 via 198.51.100.1 onlink"},
		{"variables", map[string]string{static: "H=10; ADDRESS=192.0.2.$H; SUBNET=lan", "subnets/lan": "NETMASK=24; GATEWAY=${ADDRESS%.*}.1"}, []string{""},
			"192.0.2.10/24 0.0.0.0/0 via 192.0.2.1"},
		{"Ganeti's network", nil, []string{"192.0.2.22 192.0.2.0/25 192.0.2.1"}, "192.0.2.22/25 0.0.0.0/0 via 192.0.2.1"},
		{"IPv6 from Ganeti", nil, []string{"2001:db8::22 2001:db8::/64 2001:db8::1"}, "2001:db8::22/64 ::/0 via 2001:db8::1 nora"},
		{"a gateway off the subnet", nil, []string{"192.0.2.22 192.0.2.0/25 198.51.100.1"}, "192.0.2.22/25 0.0.0.0/0 via 198.51.100.1 onlink"},
		{"an address off the subnet", nil, []string{"203.0.113.5 192.0.2.0/25 192.0.2.1"}, "203.0.113.5/32 0.0.0.0/0 via 192.0.2.1 onlink"},
		{"an address and nothing else", nil, []string{"192.0.2.22"}, "dhcp4 192.0.2.22/32"},
		{"SLAAC", nil, []string{"- 2001:db8::/64 2001:db8::1"}, "dhcp4 slaac"},
		{"one default route", nil, []string{"192.0.2.22 192.0.2.0/25 192.0.2.1", "198.51.100.2 198.51.100.0/24 198.51.100.1", "2001:db8::3 2001:db8::/64 2001:db8::1"},
			"192.0.2.22/25 0.0.0.0/0 via 192.0.2.1 | 198.51.100.2/24 | 2001:db8::3/64 ::/0 via 2001:db8::1 nora"},
		{"two by DHCP", nil, []string{"", ""}, "dhcp4 | dhcp4 metric 200"},
		{"the file is for NIC 0 only", map[string]string{static: "ADDRESS=192.0.2.10/24"}, []string{"", "198.51.100.2 198.51.100.0/24 198.51.100.1"},
			"192.0.2.10/24 | 198.51.100.2/24 0.0.0.0/0 via 198.51.100.1"},
		{"files for each NIC", map[string]string{static: "ADDRESS=192.0.2.10; SUBNET=lan; ADDRESS_1=198.51.100.7; SUBNET_1=storage; ADDRESS_3=203.0.113.5/32; GATEWAY_3=203.0.113.1", "subnets/lan": lan, "subnets/storage": "NETMASK=25; MTU=9000"}, []string{"", "", "", ""},
			"192.0.2.10/24 0.0.0.0/0 via 192.0.2.1 dns 192.0.2.53 dns 192.0.2.54 search example.org search example.net | mtu 9000 198.51.100.7/25 | dhcp4 metric 1300 | 203.0.113.5/32"},
		{"a file for NIC 1 only", map[string]string{static: "SUBNET_1=$NIC_1_NETWORK_NAME", "subnets/san": "NETMASK=25; MTU=9000"}, []string{"", "198.51.100.7"}, "dhcp4 | mtu 9000 198.51.100.7/25"},
		{"IPv6 beside IPv4, of one subnet", map[string]string{static: "ADDRESS='192.0.2.10 2001:db8::10'; SUBNET=dual", "subnets/dual": "NETMASK=24; NETMASK6=64; GATEWAY=192.0.2.1; GATEWAY6=fe80::1"}, []string{""},
			"192.0.2.10/24 2001:db8::10/64 0.0.0.0/0 via 192.0.2.1 ::/0 via fe80::1 nora"},
		{"ADDRESS6", map[string]string{static: "ADDRESS=192.0.2.10; ADDRESS6=2001:db8::10; SUBNET=dual", "subnets/dual": "NETMASK=24; NETMASK6=64; GATEWAY='192.0.2.1 2001:db8::1'"}, []string{""},
			"192.0.2.10/24 2001:db8::10/64 0.0.0.0/0 via 192.0.2.1 ::/0 via 2001:db8::1 nora"},
		{"IPv4 alone in a subnet of both", map[string]string{static: "ADDRESS=192.0.2.10; SUBNET=dual", "subnets/dual": "NETMASK=24; GATEWAY=192.0.2.1; GATEWAY6=fe80::1"}, []string{""},
			"192.0.2.10/24 0.0.0.0/0 via 192.0.2.1"},
		{"IPv6 alone in it", map[string]string{static: "ADDRESS6=2001:db8::10; SUBNET=dual", "subnets/dual": "NETMASK=24; NETMASK6=64; GATEWAY=192.0.2.1; GATEWAY6=fe80::1"}, []string{"192.0.2.10"},
			"2001:db8::10/64 ::/0 via fe80::1 nora"},
		{"DHCP with what else the subnet says", map[string]string{static: "ADDRESS=dhcp; SUBNET=lan", "subnets/lan": lan + "; MTU=1400"}, []string{"192.0.2.10"},
			"dhcp4 mtu 1400 dns 192.0.2.53 dns 192.0.2.54 search example.org search example.net"},
		{"DHCPv6", map[string]string{static: "ADDRESS='DHCP dhcp6'"}, []string{""}, "dhcp4 dhcp6"},
		{"DHCPv6 alone", map[string]string{static: "ADDRESS6=dhcp"}, []string{""}, "dhcp6"},
		{"static and SLAAC", map[string]string{static: "ADDRESS='192.0.2.10/24 auto'; GATEWAY=192.0.2.1"}, []string{""}, "slaac 192.0.2.10/24 0.0.0.0/0 via 192.0.2.1"},
		{"nothing", map[string]string{static: "ADDRESS=none"}, []string{"192.0.2.10"}, ""},
		{"an MTU alone", map[string]string{static: "MTU=1400; MTU_1=9000; DNS_SERVERS_1=192.0.2.53"}, []string{"192.0.2.22 192.0.2.0/25 192.0.2.1", ""}, "mtu 1400 192.0.2.22/25 0.0.0.0/0 via 192.0.2.1 | dhcp4 mtu 9000 metric 1200 dns 192.0.2.53"},
		{"an IPv4 gateway that is link-local", map[string]string{static: "ADDRESS=192.0.2.10/32; GATEWAY=169.254.1.1"}, []string{""}, "192.0.2.10/32 0.0.0.0/0 via 169.254.1.1 onlink"},
		{"a dot at the end", map[string]string{static: "ADDRESS=dhcp; DNS_SEARCH='example.org. b'; DNS_SERVERS='192.0.2.2 2001:db8::53 192.0.2.1 192.0.2.2'"}, []string{""},
			"dhcp4 dns 192.0.2.2 dns 2001:db8::53 dns 192.0.2.1 search example.org search b"},
	}
	for _, c := range cases {
		nics, err := Plan(t.Context(), site(t, c.files), instance(c.nics...))
		if got := describe(nics); err != nil || got != c.want {
			t.Errorf("%s:\n got %s, %v\nwant %s", c.name, got, err, c.want)
		}
	}
}

func TestPlanDNSOfTheSettings(t *testing.T) {
	servers := []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.1")}
	s := site(t, nil)
	s.DNSServers, s.DNSSearch = servers, []string{"example.org"}
	nics, err := Plan(t.Context(), s, instance("", "192.0.2.22 192.0.2.0/25 192.0.2.1"))
	if got := describe(nics); err != nil || got != "dhcp4 metric 1100 | 192.0.2.22/25 0.0.0.0/0 via 192.0.2.1 dns 192.0.2.2 dns 192.0.2.1 search example.org" {
		t.Errorf("got %s, %v", got, err)
	}
	nics, err = Plan(t.Context(), s, instance("", ""))
	if got := describe(nics); err != nil || !strings.HasPrefix(got, "dhcp4 dns 192.0.2.2 dns 192.0.2.1 search example.org |") {
		t.Errorf("by DHCP: %s, %v", got, err)
	}
	s = site(t, map[string]string{static: "ADDRESS=192.0.2.10; SUBNET=lan", "subnets/lan": lan})
	s.DNSServers = servers
	nics, err = Plan(t.Context(), s, instance(""))
	if got := describe(nics); err != nil || strings.Contains(got, "192.0.2.2 ") {
		t.Errorf("with a file that has its own: %s, %v", got, err)
	}
}

func TestPlanSubnetSetting(t *testing.T) {
	s := site(t, map[string]string{"subnets/lan": lan})
	s.Subnet = "lan"
	nics, err := Plan(t.Context(), s, instance("192.0.2.10 198.51.100.0/24 198.51.100.1"))
	if got := describe(nics); err != nil || !strings.HasPrefix(got, "192.0.2.10/24 0.0.0.0/0 via 192.0.2.1 dns") || nics[0].Source != "Ganeti with subnet lan" {
		t.Errorf("got %s, %v", got, err)
	}
	nics, err = Plan(t.Context(), s, instance(""))
	if got := describe(nics); err != nil || got != "dhcp4" || !strings.Contains(nics[0].Source, "subnet lan is not used") {
		t.Errorf("without an address: %s, %v, %v", got, nics, err)
	}
	s.Subnet = "other"
	if _, err := Plan(t.Context(), s, instance("192.0.2.10")); err == nil || !strings.Contains(err.Error(), "subnets/other") {
		t.Errorf("a missing file: %v", err)
	}
}

func TestPlanRouted(t *testing.T) {
	inst := instance("192.0.2.22")
	inst.NICs[0].Mode = "routed"
	nics, err := Plan(t.Context(), site(t, nil), inst)
	if got := describe(nics); err != nil || got != "192.0.2.22/32" {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestPlanSources(t *testing.T) {
	s := site(t, map[string]string{static: "ADDRESS=192.0.2.10; SUBNET=lan", "subnets/lan": lan})
	nics, err := Plan(t.Context(), s, instance("", "192.0.2.22 192.0.2.0/25 192.0.2.1", ""))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{s.NetworksDir + "/instances/web.example.org with subnet lan", "Ganeti", "DHCP"} {
		if nics[i].Source != want || nics[i].Name != fmt.Sprint("nic", i) {
			t.Errorf("NIC %d: %q, %q", i, nics[i].Name, nics[i].Source)
		}
	}
}

func TestPlanRefuses(t *testing.T) {
	cases := []struct {
		files map[string]string
		want  []string
	}{
		{map[string]string{static: "SUBNET=lan", "subnets/lan": lan}, []string{static, "ADDRESS"}},
		{map[string]string{static: "ADDRESS=192.0.2.10; SUBNET=lan"}, []string{static + ":2", "subnets/lan"}},
		{map[string]string{static: "ADDRESS=192.0.2.10; SUBNET=../lan", "lan": lan}, []string{static + ":2", "../lan"}},
		{map[string]string{static: "ADDRESS=192.0.2.10; SUBNET=..", "lan": lan}, []string{static + ":2"}},
		{map[string]string{static: "ADDRESS=192.0.2.10"}, []string{static + ":1", "NETMASK"}},
		{map[string]string{static: "X=y; ADDRESS=192.0.2.1000/24"}, []string{static + ":2", "192.0.2.1000"}},
		{map[string]string{static: "ADDRESS=192.0.2.10; NETMASK=255.0.255.0"}, []string{static + ":2", "255.0.255.0"}},
		{map[string]string{static: "ADDRESS=192.0.2.10; NETMASK=33"}, []string{static + ":2", "32"}},
		{map[string]string{static: "ADDRESS=2001:db8::1; NETMASK=255.255.255.0"}, []string{static + ":2", "prefix length"}},
		{map[string]string{static: "ADDRESS=192.0.2.10/24; GATEWAY=nowhere"}, []string{static + ":2", "nowhere"}},
		{map[string]string{static: "ADDRESS=192.0.2.10/24; GATEWAY=192.0.2.10"}, []string{static + ":2", "own address"}},
		{map[string]string{static: "ADDRESS=192.0.2.10/24; GATEWAY=2001:db8::1"}, []string{static + ":2", "family"}},
		{map[string]string{static: "ADDRESS=192.0.2.10/24; GATEWAY='192.0.2.1 192.0.2.2'"}, []string{static + ":2", "192.0.2.2"}},
		{map[string]string{static: "ADDRESS=192.0.2.10/24; DNS_SERVERS=dns.example.org"}, []string{static + ":2", "dns.example.org"}},
		{map[string]string{static: "ADDRESS=192.0.2.10; SUBNET=lan", "subnets/lan": "NETMASK=24; X=$(id)"}, []string{"subnets/lan:2"}},
		{map[string]string{static + "/x": ""}, []string{static, "regular file"}},
		{map[string]string{static: "X=y"}, []string{static, "ADDRESS"}},
		{map[string]string{static: "ADDRESS=dhcp; ADDRESS_1=dhcp"}, []string{static + ":2", "ADDRESS_1", "the instance has 1"}},
		{map[string]string{static: "ADDRESS_0=dhcp"}, []string{static + ":1", "ADDRESS_0"}},
		{map[string]string{static: "ADDRESS=dhcp; MTU_00=1400"}, []string{static + ":2", "MTU_00"}},
		{map[string]string{static: "ADDRESS=dhcp; MTU=575"}, []string{static + ":2", "576", "IPv4"}},
		{map[string]string{static: "ADDRESS='dhcp auto'; MTU=1279"}, []string{static + ":2", "1280", "IPv6"}},
		{map[string]string{static: "ADDRESS=dhcp; MTU=65536"}, []string{static + ":2", "65535"}},
		{map[string]string{static: "ADDRESS=dhcp; SUBNET=lan", "subnets/lan": "MTU=jumbo"}, []string{"subnets/lan:1", "jumbo"}},
		{map[string]string{static: "ADDRESS='dhcp none'"}, []string{static + ":1", "none"}},
		{map[string]string{static: "ADDRESS=dhcp; GATEWAY=192.0.2.1"}, []string{static + ":2", "not needed"}},
		{map[string]string{static: "ADDRESS='2001:db8::10/64 auto'; GATEWAY=2001:db8::1"}, []string{static + ":2", "not needed"}},
		{map[string]string{static: "ADDRESS6=192.0.2.1/24"}, []string{static + ":1", "not an IPv6 address"}},
		{map[string]string{static: "ADDRESS6=2001:db8::1/64; GATEWAY6=192.0.2.1"}, []string{static + ":2", "not an IPv6 address"}},
		{map[string]string{static: "ADDRESS='192.0.2.10 2001:db8::1'; NETMASK=24"}, []string{static + ":1", "NETMASK6"}},
		{map[string]string{static: "ADDRESS=2001:db8::1; NETMASK=24"}, []string{static + ":1", "NETMASK6"}},
		{map[string]string{static: "ADDRESS=192.0.2.0/24"}, []string{static + ":1", "of no host"}},
		{map[string]string{static: "ADDRESS=192.0.2.255/24"}, []string{static + ":1", "of no host"}},
		{map[string]string{static: "ADDRESS=192.0.2.1/0"}, []string{static + ":1", "prefix length of 0"}},
		{map[string]string{static: "ADDRESS=dhcp; DNS_SEARCH=a..b"}, []string{static + ":2", "a..b"}},
		{map[string]string{static: "ADDRESS='192.0.2.10/24 192.0.2.10/24'"}, []string{"both have", "192.0.2.10"}},
	}
	for _, c := range cases {
		_, err := Plan(t.Context(), site(t, c.files), instance(""))
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v: %v does not say %s", c.files, err, want)
			}
		}
	}
}

func TestPlanMACs(t *testing.T) {
	inst := instance("", "")
	inst.NICs[1].MAC = inst.NICs[0].MAC
	if _, err := Plan(t.Context(), site(t, nil), inst); err == nil || !strings.Contains(err.Error(), "NIC_1_MAC") {
		t.Errorf("the same twice: %v", err)
	}
	inst.NICs[1].MAC = nil
	if _, err := Plan(t.Context(), site(t, nil), inst); err == nil || !strings.Contains(err.Error(), "NIC_1_MAC") {
		t.Errorf("none: %v", err)
	}
}

func TestPlanIgnoresNamesThatAreNoHost(t *testing.T) {
	inst := instance("")
	inst.Name = ".."
	if nics, err := Plan(t.Context(), site(t, map[string]string{static: "x"}), inst); err != nil || describe(nics) != "dhcp4" {
		t.Errorf("got %v, %v", nics, err)
	}
}

func FuzzFiles(f *testing.F) {
	f.Add("ADDRESS=192.0.2.10/24\nGATEWAY='192.0.2.1 fe80::1'", "NETMASK=255.255.255.0\nDNS_SERVERS=1.2.3.4")
	f.Add("ADDRESS=::/0 NETMASK=0", "")
	f.Add("ADDRESS='192.0.2.10 2001:db8::10 auto'\nSUBNET=s", "NETMASK=24\nNETMASK6=64\nMTU=1400\nGATEWAY6=fe80::1")
	f.Add("ADDRE5S==::T*;TSK=*/MAS=\xeb&\x03\xaa\xf8\xc5", "\xa8\x00\x06\x03")
	f.Fuzz(func(t *testing.T, instanceFile, subnetFile string) {
		s := site(t, nil)
		for name, text := range map[string]string{"instances": instanceFile, "subnets": subnetFile} {
			if err := os.Mkdir(filepath.Join(s.NetworksDir, name), 0o755); err != nil {
				t.Fatal(err)
			}
			file := map[string]string{"instances": "web.example.org", "subnets": "s"}[name]
			if err := os.WriteFile(filepath.Join(s.NetworksDir, name, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		s.Subnet = "s"
		nics, err := Plan(t.Context(), s, instance("192.0.2.10"))
		if err != nil {
			return
		}
		for _, p := range nics[0].Addresses {
			if !p.IsValid() {
				t.Errorf("invalid address %v", p)
			}
		}
		if nics[0].MTU != 0 && (nics[0].MTU < 576 || nics[0].MTU > 65535) || nics[0].NoRA && (nics[0].SLAAC || nics[0].DHCP6) {
			t.Errorf("%+v", nics[0])
		}
	})
}
