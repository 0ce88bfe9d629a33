package render

import (
	"fmt"
	"net/netip"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/network"
)

// netConfig is a network-config of version 2, which is netplan's format.
type netConfig struct {
	Version   int                 `yaml:"version"`
	Renderer  string              `yaml:"renderer,omitempty"` // netplan's alone
	Ethernets map[string]ethernet `yaml:"ethernets"`
}

type ethernet struct {
	Match          match        `yaml:"match"`
	SetName        Quoted       `yaml:"set-name,omitempty"`
	MTU            int          `yaml:"mtu,omitempty"`
	DHCP4          bool         `yaml:"dhcp4,omitempty"`
	DHCP4Overrides *overrides   `yaml:"dhcp4-overrides,omitempty"`
	DHCP6          bool         `yaml:"dhcp6,omitempty"`
	DHCP6Overrides *overrides   `yaml:"dhcp6-overrides,omitempty"`
	AcceptRA       *bool        `yaml:"accept-ra,omitempty"`
	Addresses      []Quoted     `yaml:"addresses,omitempty"`
	Gateway4       Quoted       `yaml:"gateway4,omitempty"`
	Gateway6       Quoted       `yaml:"gateway6,omitempty"`
	Routes         []route      `yaml:"routes,omitempty"`
	Nameservers    *nameservers `yaml:"nameservers,omitempty"`
}

type match struct {
	MAC Quoted `yaml:"macaddress"` // lower case, as cloud-init compares it
}

type overrides struct {
	Metric int `yaml:"route-metric"`
}

type route struct {
	To     Quoted `yaml:"to"` // never "default", which netplan knows since 2021 only
	Via    Quoted `yaml:"via"`
	OnLink bool   `yaml:"on-link,omitempty"`
}

type nameservers struct {
	Addresses []Quoted `yaml:"addresses,omitempty"`
	Search    []Quoted `yaml:"search,omitempty"`
}

// NetworkConfig makes the network-config of a NoCloud seed, of version 2, in the
// words that the guest's cloud-init and what it writes for understand; the zero
// CloudInit is a current one that writes for netplan. An error is one of the
// YAML encoder.
func NetworkConfig(nics []network.NIC, guest guest.CloudInit) ([]byte, error) {
	return EncodeYAML("", networkConfig(nics, guest))
}

func networkConfig(nics []network.NIC, guest guest.CloudInit) netConfig {
	config := netConfig{Version: 2, Ethernets: map[string]ethernet{}}
	for _, nic := range nics {
		config.Ethernets[nic.Name] = describe(nic, guest)
	}
	return config
}

func describe(nic network.NIC, guest guest.CloudInit) ethernet {
	e := ethernet{
		Match:     match{MAC: Quoted(nic.MAC.String())},
		MTU:       nic.MTU,
		DHCP4:     nic.DHCP4,
		DHCP6:     nic.DHCP6 || nic.SLAAC && slaacIsDHCP6(guest),
		Addresses: QuoteAll(nic.Addresses, netip.Prefix.String),
	}
	if needsName(guest) {
		e.SetName = Quoted(fmt.Sprintf("eth%d", nic.Index))
	}
	switch {
	case nic.NoRA:
		e.AcceptRA = new(false)
	case nic.SLAAC && !e.DHCP6 && guest.Renderer != "eni": // there the kernel does it unasked
		e.AcceptRA = new(true)
	}
	if nic.Metric > 0 && e.DHCP4 {
		e.DHCP4Overrides = &overrides{nic.Metric}
	}
	if nic.Metric > 0 && e.DHCP6 {
		e.DHCP6Overrides = &overrides{nic.Metric}
	}
	if len(nic.DNS)+len(nic.Search) > 0 {
		e.Nameservers = &nameservers{
			Addresses: QuoteAll(nic.DNS, netip.Addr.String),
			Search:    QuoteAll(nic.Search, Same),
		}
	}
	if losesRoutes(nic, guest) {
		e.setGateways(nic.Routes)
	} else {
		e.setRoutes(nic.Routes)
	}
	return e
}

// slaacIsDHCP6 tells whether dhcp6 is the word for what router advertisements
// say. To netplan and networkd it is a DHCPv6 client for which old releases keep
// the system waiting, and so it is to ifupdown.
func slaacIsDHCP6(guest guest.CloudInit) bool {
	return guest.Renderer == "sysconfig" || guest.Renderer == "network-manager"
}

// needsName tells whether a NIC must be renamed to be found. netplan matches
// the MAC itself, and cloud-init looks the name up by it since 22.3; before,
// it took the label in our file for the name. It is not done where it need not
// be: a renaming that fails, as after a MAC was changed, takes the whole
// network with it.
func needsName(guest guest.CloudInit) bool {
	old := guest.Major > 0 && (guest.Major < 22 || guest.Major == 22 && guest.Minor < 3)
	return old && guest.Renderer != "netplan"
}

// losesRoutes tells whether the default routes must be written as gateway4 and
// gateway6. netplan calls these deprecated and has no on-link for them; but all
// of cloud-init's own renderers drop on-link from routes (ifupdown and networkd
// add it to a gateway), and that for NetworkManager files an IPv6 route under
// IPv4 until 24.1.
func losesRoutes(nic network.NIC, guest guest.CloudInit) bool {
	if guest.Renderer == "" || guest.Renderer == "netplan" {
		return false
	}
	for _, r := range nic.Routes {
		if r.OnLink || len(nic.Routes) > 1 {
			return true
		}
	}
	return false
}

func (e *ethernet) setGateways(routes []network.Route) {
	for _, r := range routes {
		if r.Via.Is4() {
			e.Gateway4 = Quoted(r.Via.String())
		} else {
			e.Gateway6 = Quoted(r.Via.String())
		}
	}
}

func (e *ethernet) setRoutes(routes []network.Route) {
	for _, r := range routes {
		e.Routes = append(e.Routes, route{To: Quoted(r.To.String()), Via: Quoted(r.Via.String()), OnLink: r.OnLink})
	}
}
