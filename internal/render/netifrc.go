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
	if old, err := w.root.ReadFile(netifrcFile, fileLimit); err == nil && !strings.HasPrefix(string(old), header) {
		if err := w.put("/etc/conf.d"+aside+"/net", string(old), 0o600); err != nil {
			return err
		}
	}
	if err := w.dropServices(); err != nil {
		return err
	}
	var text strings.Builder
	text.WriteString(header)
	for _, nic := range w.nics {
		writeNetifrc(&text, nic)
	}
	if err := w.put(netifrcFile, text.String(), 0o644); err != nil {
		return err
	}
	for _, nic := range w.nics {
		service := "/etc/init.d/net." + ethName(nic)
		if err := w.link("net.lo", service); err != nil {
			return err
		}
		if err := w.link(service, "/etc/runlevels/default/net."+ethName(nic)); err != nil {
			return err
		}
	}
	return nil
}

// dropServices removes the links that start other interfaces of the image's.
func (w *writer) dropServices() error {
	ours := map[string]bool{"net.lo": true}
	for _, nic := range w.nics {
		ours["net."+ethName(nic)] = true
	}
	for _, name := range w.root.Glob("/etc/runlevels/default/net.*") {
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

// writeNetifrc writes the variables for a NIC, which are strings of a line each:
// arrays are of a Gentoo before OpenRC.
func writeNetifrc(text *strings.Builder, nic network.NIC) {
	name := ethName(nic)
	var config []string
	if nic.DHCP4 { // IPv6 is the kernel's, by router advertisements
		config = append(config, "dhcp")
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
	if nic.Metric > 0 {
		fmt.Fprintf(text, "metric_%s=\"%d\"\n", name, nic.Metric)
	}
}
