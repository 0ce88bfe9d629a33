package render

import (
	"fmt"
	"net/netip"
	"strings"

	"ganeti-instance-image/internal/network"
)

const netifrcFile = "/etc/conf.d/net"

// netifrc writes Gentoo's file for all interfaces, and the links by which OpenRC
// starts each. It knows an interface by its name alone.
func (w *writer) netifrc() error {
	if err := w.rename(); err != nil {
		return err
	}
	if err := w.dropServices(); err != nil {
		return err
	}
	var text strings.Builder
	text.WriteString(header)
	for _, nic := range w.nics {
		writeNetifrc(&text, nic)
	}
	writePreup(&text, w.nics)
	if err := w.replace(netifrcFile, text.String()); err != nil {
		return err
	}
	for _, nic := range w.nics {
		service := "/etc/init.d/net." + nic.Name
		if err := w.link("net.lo", service); err != nil {
			return err
		}
		if err := w.link(service, "/etc/runlevels/default/net."+nic.Name); err != nil {
			return err
		}
	}
	return nil
}

// dropServices removes the links that start other interfaces of the image's.
func (w *writer) dropServices() error {
	ours := map[string]bool{"net.lo": true}
	for _, nic := range w.nics {
		ours["net."+nic.Name] = true
	}
	names := w.root.Glob("/etc/runlevels/default/net.*")
	for _, name := range append(names, w.root.Glob("/etc/runlevels/default/dhcpcd")...) { // which takes every interface
		if ours[name[strings.LastIndexByte(name, '/')+1:]] {
			continue
		}
		if err := w.root.Remove(name); err != nil {
			return err
		}
		w.say("removed " + name + ", which starts an interface of the image")
	}
	return nil
}

// writePreup writes the function that is run before an interface is set up,
// which has the kernel ignore router advertisements.
func writePreup(text *strings.Builder, nics []network.NIC) {
	var names []string
	for _, nic := range nics {
		if nic.NoRA {
			names = append(names, nic.Name)
		}
	}
	if len(names) > 0 {
		fmt.Fprintf(text, "preup() {\n\tcase ${IFACE} in\n\t%s) echo 0 > /proc/sys/net/ipv6/conf/${IFACE}/accept_ra ;;\n\tesac\n\treturn 0\n}\n", strings.Join(names, "|"))
	}
}

// writeNetifrc writes the variables for a NIC, which are strings of a line each:
// arrays are of a Gentoo before OpenRC.
func writeNetifrc(text *strings.Builder, nic network.NIC) {
	name := nic.Name
	var config []string
	switch { // else IPv6 is the kernel's, by router advertisements
	case nic.DHCP4: // dhcpcd asks for both
		config = append(config, "dhcp")
	case nic.DHCP6:
		config = append(config, "dhcpv6")
	}
	for _, address := range nic.Addresses {
		config = append(config, address.String())
	}
	if len(config) == 0 {
		config = []string{"null"}
	}
	var routes []string
	for _, route := range nic.Routes {
		if route.OnLink {
			routes = append(routes, netip.PrefixFrom(route.Via, route.Via.BitLen()).String()+" scope link")
		}
		to := route.To.String()
		if route.To == netip.MustParsePrefix("0.0.0.0/0") {
			to = "default"
		}
		routes = append(routes, to+" via "+route.Via.String())
	}
	for _, variable := range []struct{ name, value string }{
		{"config", strings.Join(config, "\n")}, {"routes", strings.Join(routes, "\n")},
		{"dns_servers", joined(nic.DNS)}, {"dns_search", strings.Join(nic.Search, " ")},
	} {
		if variable.value != "" {
			fmt.Fprintf(text, "%s_%s=\"%s\"\n", variable.name, name, variable.value)
		}
	}
	if nic.MTU > 0 {
		fmt.Fprintf(text, "mtu_%s=\"%d\"\n", name, nic.MTU)
	}
	if nic.Metric > 0 {
		fmt.Fprintf(text, "metric_%s=\"%d\"\n", name, nic.Metric)
	}
}
