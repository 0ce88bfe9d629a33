package render

import (
	"fmt"
	"net/netip"
	"strings"

	"ganeti-instance-image/internal/network"
)

// The files of dhcpcd: its configuration, and what its scripts read after every
// event.
const (
	dhcpcdFile = "/etc/dhcpcd.conf"
	dhcpcdHook = "/etc/dhcpcd.exit-hook"
)

// dhcpcdGlobal is for all interfaces: what is asked of a DHCP server, and IPv6
// addresses that the MAC tells.
const dhcpcdGlobal = `hostname
clientid
persistent
option domain_name_servers, domain_name, domain_search
option classless_static_routes, interface_mtu
require dhcp_server_identifier
noipv4ll
slaac hwaddr
`

// dhcpcd writes dhcpcd.conf(5), which has one address a family, an MTU of routes
// alone and no IPv6 gateway; the rest is done by commands in its hook. It knows
// an interface by its name alone. It writes resolv.conf itself, but tells no name
// servers by the event of an IPv6 address that is given.
func (w *writer) dhcpcd() error {
	if err := w.rename(); err != nil {
		return err
	}
	conf, hook := dhcpcdFiles(w.nics)
	for _, file := range []struct{ name, text string }{{dhcpcdFile, conf}, {dhcpcdHook, hook}} {
		if err := w.replace(file.name, file.text); err != nil {
			return err
		}
	}
	return w.resolvConf()
}

// dhcpcdFiles are the texts of dhcpcd.conf and, where it is needed, of the hook.
func dhcpcdFiles(nics []network.NIC) (conf, hook string) {
	conf = header + dhcpcdGlobal
	for _, nic := range nics {
		conf += "\n" + dhcpcdInterface(nic)
		hook += dhcpcdCommands(nic)
	}
	if hook != "" {
		hook = header + "case \"$reason-$interface\" in\n" + hook + "esac\n"
	}
	return conf, hook
}

// dhcpcdInterface is the part of dhcpcd.conf(5) for one NIC.
func dhcpcdInterface(nic network.NIC) string {
	var text strings.Builder
	fmt.Fprintf(&text, "interface %s\n", nic.Name)
	if nic.Metric > 0 {
		fmt.Fprintf(&text, "metric %d\n", nic.Metric)
	}
	v4, v6 := byFamily(nic)
	dhcpcdV4(&text, v4)
	dhcpcdV6(&text, nic, v6)
	if len(nic.DNS) > 0 {
		fmt.Fprintf(&text, "static domain_name_servers=%s\n", joined(nic.DNS))
	}
	if len(nic.Search) > 0 {
		fmt.Fprintf(&text, "static domain_search=%s\n", strings.Join(nic.Search, " "))
	}
	return text.String()
}

func dhcpcdV4(text *strings.Builder, f family) {
	switch {
	case f.auto:
		return
	case len(f.addresses) == 0:
		text.WriteString("noipv4\n")
		return
	}
	fmt.Fprintf(text, "static ip_address=%v\n", f.addresses[0])
	for _, route := range f.routes { // off the link it finds its way by itself
		fmt.Fprintf(text, "static routers=%v\n", route.Via)
	}
}

func dhcpcdV6(text *strings.Builder, nic network.NIC, f family) {
	switch {
	case f.auto && nic.DHCP6:
		text.WriteString("ia_na\n")
	case f.auto:
	case len(f.addresses) == 0:
		text.WriteString("noipv6rs\n")
	case nic.NoRA:
		text.WriteString("noipv6rs\n")
	}
	if len(f.addresses) > 0 && !f.auto {
		fmt.Fprintf(text, "static ip6_address=%v\n", f.addresses[0])
	}
}

// dhcpcdCommands are the hook's for one NIC, by the events at which they are due:
// those of dhcpcd-run-hooks(8) that follow on the first address.
func dhcpcdCommands(nic network.NIC) string {
	v4, v6 := byFamily(nic)
	var first []string
	if nic.MTU > 0 {
		first = []string{fmt.Sprintf("ip link set dev \"$interface\" mtu %d", nic.MTU)}
	}
	if nic.NoRA { // or else the kernel takes what dhcpcd does not ask for
		first = append(first, "echo 0 > \"/proc/sys/net/ipv6/conf/$interface/accept_ra\"")
	}
	with4, with6 := addCommands(v4), addCommands(v6)
	for _, route := range v6.routes {
		if route.OnLink {
			with6 = append(with6, fmt.Sprintf("ip -6 route replace %v dev \"$interface\"", netip.PrefixFrom(route.Via, 128)))
		}
		with6 = append(with6, fmt.Sprintf("ip -6 route replace default via %v dev \"$interface\"", route.Via))
	}
	text := ""
	for _, due := range []struct {
		events   []string
		commands []string
	}{{[]string{"PREINIT"}, first}, {eventsOf(v4, "STATIC"), with4}, {eventsOf(v6, "STATIC6"), with6}} {
		if len(due.commands) == 0 {
			continue
		}
		var patterns []string
		for _, event := range due.events {
			patterns = append(patterns, event+"-"+nic.Name)
		}
		text += fmt.Sprintf("%s)\n\t%s\n\t;;\n", strings.Join(patterns, "|"), strings.Join(due.commands, "\n\t"))
	}
	return text
}

// addCommands add the addresses for which dhcpcd.conf has no place.
func addCommands(f family) []string {
	rest := f.addresses
	if !f.auto && len(rest) > 0 {
		rest = rest[1:]
	}
	var commands []string
	for _, address := range rest {
		commands = append(commands, fmt.Sprintf("ip addr replace %v dev \"$interface\"", address))
	}
	return commands
}

func eventsOf(f family, static string) []string {
	switch {
	case !f.auto:
		return []string{static}
	case static == "STATIC":
		return []string{"BOUND", "REBOOT"}
	}
	return []string{"ROUTERADVERT"}
}
