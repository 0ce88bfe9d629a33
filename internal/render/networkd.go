package render

import (
	"fmt"
	"strings"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/network"
)

const networkdFiles = "/etc/systemd/network/*.network"

// networkd writes a file for each NIC, named to be before what the guest's
// packages have in /usr/lib/systemd/network; the image's own go.
func (w *writer) networkd() error {
	var ours []string
	for _, nic := range w.nics {
		ours = append(ours, networkdFile(nic))
	}
	if err := w.moveAll(networkdFiles, ours, nil); err != nil {
		return err
	}
	for _, nic := range w.nics {
		if err := w.put(networkdFile(nic), networkdUnit(nic), 0o644); err != nil {
			return err
		}
	}
	return w.networkdDNS()
}

// networkdDNS leaves name servers to systemd-resolved, whom networkd tells. A
// resolv.conf that is a file is what building the image left, and would count
// instead.
func (w *writer) networkdDNS() error {
	if info, err := w.root.Lstat(resolvFile); usesResolved(w.root) && (err != nil || !info.IsRegular()) {
		return nil
	}
	return w.resolvConf()
}

func usesResolved(root *guest.Root) bool { return unitEnabled(root, "systemd-resolved.service") }

func networkdFile(nic network.NIC) string {
	return fmt.Sprintf("/etc/systemd/network/05-ganeti-%s.network", nic.Name)
}

// networkdUnit is a systemd.network(5). It keeps to what systemd 229 knows, but
// for GatewayOnLink, which older ones spell otherwise: they take both.
func networkdUnit(nic network.NIC) string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s[Match]\nMACAddress=%v\n\n", header, nic.MAC)
	if nic.MTU > 0 {
		fmt.Fprintf(&text, "[Link]\nMTUBytes=%d\n\n", nic.MTU)
	}
	text.WriteString("[Network]\n")
	switch {
	case nic.DHCP4 && nic.DHCP6:
		text.WriteString("DHCP=yes\n")
	case nic.DHCP4:
		text.WriteString("DHCP=ipv4\n")
	case nic.DHCP6:
		text.WriteString("DHCP=ipv6\n")
	}
	switch {
	case nic.NoRA:
		text.WriteString("IPv6AcceptRA=no\n")
	case nic.SLAAC:
		text.WriteString("IPv6AcceptRA=yes\n")
	}
	for _, address := range nic.Addresses {
		fmt.Fprintf(&text, "Address=%v\n", address)
	}
	for _, server := range nic.DNS {
		fmt.Fprintf(&text, "DNS=%v\n", server)
	}
	if len(nic.Search) > 0 {
		fmt.Fprintf(&text, "Domains=%s\n", strings.Join(nic.Search, " "))
	}
	for _, route := range nic.Routes {
		fmt.Fprintf(&text, "\n[Route]\nDestination=%v\nGateway=%v\n", route.To, route.Via)
		if route.OnLink {
			text.WriteString("GatewayOnlink=yes\n")
		}
	}
	if nic.Metric > 0 && (nic.DHCP4 || nic.DHCP6) {
		fmt.Fprintf(&text, "\n[DHCP]\nRouteMetric=%d\n", nic.Metric)
	}
	return text.String()
}
