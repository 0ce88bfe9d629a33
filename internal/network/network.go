// Package network decides what each network interface of an instance is to be:
// its addresses, routes and name servers, from the site's network files, from
// what Ganeti gives, or else by DHCP. It is a plan in the words of no
// particular tool; others write it down for the guest.
//
// Left out: VLANs, bonds and bridges inside the guest, and routes other than the
// default ones.
package network

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"ganeti-instance-image/internal/osapi"
	"ganeti-instance-image/internal/settings"
)

// NIC is one network interface of the instance, as the guest is to have it.
type NIC struct {
	Index  int              // as Ganeti counts, from 0
	Name   string           // a label, "nic0"; what the guest calls it cannot be known
	MAC    net.HardwareAddr // what the guest finds the interface by
	Source string           // where this comes from: a file, "Ganeti" or "DHCP"

	DHCP4, DHCP6 bool // a client asks, DHCP6 whatever router advertisements say
	// SLAAC: IPv6 by router advertisements, and by DHCPv6 where those say so.
	SLAAC  bool
	Metric int // of the routes that DHCP and advertisements bring; 0 is the guest's default
	// NoRA: router advertisements are ignored, since both the IPv6 address and
	// the gateway are given.
	NoRA bool
	MTU  int // bytes; 0 is the guest's default

	Addresses []netip.Prefix // with the bits of the host part, as in 192.0.2.10/24
	Routes    []Route
	DNS       []netip.Addr // in the order they were given
	Search    []string
}

// Route is one route of a NIC.
type Route struct {
	To     netip.Prefix // 0.0.0.0/0 or ::/0 for a default route
	Via    netip.Addr
	OnLink bool // the gateway is outside of every prefix of the NIC
}

// Plan decides on every NIC of the instance, in Ganeti's order. A NIC takes what
// NETWORKS_DIR/instances/FQDN says of it; one of which that file says nothing
// takes the address and network that Ganeti gives, and DHCP where it gives none.
// The setting SUBNET replaces Ganeti's network for NIC 0 by a file of
// NETWORKS_DIR/subnets. Each address family has one default route, that of the
// first NIC with a gateway; the name servers are set for the NIC that has it.
//
// Errors name the file and line, or Ganeti's variable.
func Plan(ctx context.Context, s *settings.Settings, inst osapi.Instance) ([]NIC, error) {
	f := files{set: s, vars: environment(s, inst), subnet: value{text: s.Subnet, where: s.Origin("SUBNET").String()}}
	if err := f.readInstance(ctx, inst); err != nil {
		return nil, err
	}
	var nics []NIC
	for i, given := range inst.NICs {
		if err := checkMAC(inst.NICs[:i], given); err != nil {
			return nil, err
		}
		source, err := f.choose(ctx, given)
		if err != nil {
			return nil, err
		}
		nic, err := source.nic(given)
		if err != nil {
			return nil, err
		}
		nics = append(nics, nic)
	}
	if err := checkTwice(nics); err != nil {
		return nil, err
	}
	keepOneDefault(nics)
	setMetrics(nics)
	placeDNS(s, nics)
	return nics, nil
}

func checkMAC(before []osapi.NIC, nic osapi.NIC) error {
	if len(nic.MAC) != 6 {
		return fmt.Errorf("cannot plan the network: Ganeti gives no Ethernet address in NIC_%d_MAC, and the guest knows an interface by nothing else", nic.Index)
	}
	for _, other := range before {
		if bytes.Equal(other.MAC, nic.MAC) {
			return fmt.Errorf("cannot plan the network: NIC_%d_MAC and NIC_%d_MAC are both %v, so the guest could not tell them apart", other.Index, nic.Index, nic.MAC)
		}
	}
	return nil
}

// checkTwice refuses an address that two NICs are to have.
func checkTwice(nics []NIC) error {
	of := map[netip.Addr]int{}
	for _, nic := range nics {
		for _, address := range nic.Addresses {
			if other, ok := of[address.Addr()]; ok {
				return fmt.Errorf("cannot plan the network: NIC %d (from %s) and NIC %d would both have the address %v", nic.Index, nic.Source, other, address.Addr())
			}
			of[address.Addr()] = nic.Index
		}
	}
	return nil
}

// source is what one NIC's configuration is made of, whoever says it.
type source struct {
	what      string // NIC.Source
	addresses []netip.Prefix
	gateways  []netip.Addr // at most one a family
	dns       []netip.Addr
	search    []string
	dhcp4     bool
	dhcp6     bool
	slaac     bool
	mtu       int
}

// choose finds the source for a NIC by precedence.
func (f files) choose(ctx context.Context, nic osapi.NIC) (source, error) {
	from, found, err := f.instance(ctx, nic)
	switch {
	case found || err != nil:
		return from, err
	case nic.Index == 0 && f.subnet.text != "" && nic.IP.IsValid():
		return f.subnetFor(ctx, nic)
	}
	return f.fromGanetiOrDHCP(nic), nil
}

func (f files) fromGanetiOrDHCP(nic osapi.NIC) source {
	if nic.IP.IsValid() {
		return fromGaneti(nic)
	}
	return fromDHCP(f.set, nic)
}

// fromGaneti takes NIC_n_IP, whose prefix length is that of the network it is
// in. An address without a network is a /32 or /128: nothing else is known to
// be reachable directly.
func fromGaneti(nic osapi.NIC) source {
	subnet, gateway := nic.Network.Subnet, nic.Network.Gateway
	if nic.IP.Is6() {
		subnet, gateway = nic.Network.Subnet6, nic.Network.Gateway6
	}
	from := source{what: "Ganeti", slaac: nic.IP.Is4() && nic.Network.Subnet6.IsValid()}
	bits := nic.IP.BitLen()
	if subnet.IsValid() && subnet.Contains(nic.IP) {
		bits = subnet.Bits()
	}
	from.addresses = []netip.Prefix{netip.PrefixFrom(nic.IP, bits)}
	switch {
	case gateway.IsValid():
		from.gateways = []netip.Addr{gateway}
	case !subnet.IsValid() && nic.Mode != "routed":
		// On a bridge, sites without Ganeti networks give the address for
		// their DHCP server to hand out; without one of them there is no route.
		from.dhcp4, from.slaac = true, nic.IP.Is6()
		from.what = fmt.Sprintf("Ganeti and DHCP (NIC_%d_IP is in no Ganeti network, which would say its prefix and gateway)", nic.Index)
	}
	return from
}

func fromDHCP(s *settings.Settings, nic osapi.NIC) source {
	from := source{what: "DHCP", dhcp4: true, slaac: nic.Network.Subnet6.IsValid()}
	if nic.Index == 0 && s.Subnet != "" {
		from.what = fmt.Sprintf("DHCP (subnet %s is not used: Ganeti gives no NIC_0_IP)", s.Subnet)
	}
	return from
}

// nic makes the plan for one NIC of what its source says.
func (from source) nic(given osapi.NIC) (NIC, error) {
	nic := NIC{
		Index: given.Index, Name: fmt.Sprintf("nic%d", given.Index), MAC: given.MAC, Source: from.what,
		DHCP4: from.dhcp4, DHCP6: from.dhcp6, SLAAC: from.slaac, MTU: from.mtu,
		Addresses: from.addresses, DNS: from.dns, Search: from.search,
	}
	for _, gateway := range from.gateways {
		route, err := defaultRoute(gateway, from.addresses)
		if err != nil {
			return NIC{}, fmt.Errorf("cannot plan the network of NIC %d from %s: %w", given.Index, from.what, err)
		}
		nic.Routes = append(nic.Routes, route)
		nic.NoRA = nic.NoRA || gateway.Is6()
	}
	return nic, nil
}

func defaultRoute(gateway netip.Addr, addresses []netip.Prefix) (Route, error) {
	route := Route{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: gateway, OnLink: true}
	if gateway.Is6() { // fe80::/10 is on every link; 169.254.0.0/16 on none without its address
		route.OnLink = !gateway.IsLinkLocalUnicast()
		route.To = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	reachable := false
	for _, address := range addresses {
		reachable = reachable || address.Addr().Is4() == gateway.Is4()
		if address.Addr() == gateway {
			return Route{}, fmt.Errorf("the gateway %v is the instance's own address", gateway)
		}
		if address.Contains(gateway) {
			route.OnLink = false
		}
	}
	if !reachable {
		return Route{}, fmt.Errorf("the gateway %v is of a family in which there is no address", gateway)
	}
	return route, nil
}

// keepOneDefault leaves each address family the default route of the first NIC
// that has one.
func keepOneDefault(nics []NIC) {
	seen := map[bool]bool{} // by "is IPv4"
	for i := range nics {
		var routes []Route
		for _, route := range nics[i].Routes {
			if is4 := route.To.Addr().Is4(); !seen[is4] {
				seen[is4] = true
				routes = append(routes, route)
			}
		}
		nics[i].Routes = routes
	}
}

// setMetrics has one NIC win where several bring a default route: a gateway that
// is given before one that DHCP brings, and of those the first NIC's, not the
// faster one's.
func setMetrics(nics []NIC) {
	given := map[bool]bool{} // by "is IPv4"
	for _, nic := range nics {
		for _, route := range nic.Routes {
			given[route.To.Addr().Is4()] = true
		}
	}
	for i := range nics {
		nic := &nics[i]
		auto6 := nic.DHCP6 || nic.SLAAC
		switch {
		case nic.DHCP4 && given[true] || auto6 && given[false]:
			nic.Metric = 1000 + 100*(nic.Index+1)
		case nic.Index > 0 && (nic.DHCP4 || auto6):
			nic.Metric = 100 * (nic.Index + 1)
		}
	}
}

// placeDNS gives the site's name servers to one NIC: that with the default
// route, or the first. A resolver that asks over each interface would otherwise
// ask where the servers cannot be reached.
func placeDNS(s *settings.Settings, nics []NIC) {
	for _, nic := range nics {
		if len(nic.DNS) > 0 {
			return
		}
	}
	at := 0
	for i := range nics {
		if len(nics[i].Routes) > 0 {
			at = i
			break
		}
	}
	if len(nics) > 0 {
		nics[at].DNS = s.DNSServers
		if len(nics[at].Search) == 0 {
			for _, name := range s.DNSSearch {
				nics[at].Search = append(nics[at].Search, strings.TrimSuffix(name, "."))
			}
		}
	}
}

// environment holds the variables that a network file may use: the
// settings, and what Ganeti says of the instance.
func environment(s *settings.Settings, inst osapi.Instance) map[string]string {
	vars := map[string]string{"INSTANCE_NAME": inst.Name, "INSTANCE_UUID": inst.UUID}
	for _, entry := range s.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		vars[name] = value
	}
	for _, nic := range inst.NICs {
		if nic.IP.IsValid() {
			vars[fmt.Sprintf("NIC_%d_IP", nic.Index)] = nic.IP.String()
		}
		vars[fmt.Sprintf("NIC_%d_MAC", nic.Index)] = nic.MAC.String()
		for name, text := range map[string]string{"LINK": nic.Link, "NETWORK_NAME": nic.Network.Name} {
			if text != "" {
				vars[fmt.Sprintf("NIC_%d_%s", nic.Index, name)] = text
			}
		}
	}
	return vars
}
