package render

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/network"
)

// dialect is which of the programs named ifup reads /etc/network/interfaces; the
// zero one is Debian's.
type dialect struct {
	ng      bool // Alpine's ifupdown-ng
	busyBox bool
}

func dialectOf(root *guest.Root) dialect {
	if root.Exists("/usr/libexec/ifupdown-ng") || root.Exists("/etc/network/ifupdown-ng.conf") {
		return dialect{ng: true}
	}
	for _, ifup := range []string{"/sbin/ifup", "/usr/sbin/ifup"} {
		if target, err := root.Readlink(ifup); err == nil && (path.Base(target) == "busybox" || path.Base(target) == "bbsuid") {
			return dialect{busyBox: true}
		}
	}
	return dialect{}
}

// ifupdown keeps of /etc/network/interfaces what is about the loopback interface
// or names other files, and adds the NICs. None has a pattern for a MAC, which
// interfaces(5) knows since 0.8.41: that stands for what interfaces there are when
// it is read, and only for names does networking.service wait until udev is done.
func (w *writer) ifupdown() error {
	if err := w.rename(); err != nil {
		return err
	}
	d := dialectOf(w.root)
	err := w.editInterfaces(func(old string) string { return d.interfaces(withoutInterfaces(old), w.nics) })
	if err != nil {
		return err
	}
	if err := w.resolvConf(); err != nil {
		return err
	}
	return w.keepResolvConf(d)
}

// clearInterfaces takes the interfaces from ifupdown where another tool is to
// have them: NetworkManager leaves those alone that stand there.
func (w *writer) clearInterfaces() error {
	if info, err := w.root.Stat(interfacesFile); err != nil || !info.IsRegular() {
		return nil
	}
	return w.editInterfaces(withoutInterfaces)
}

// editInterfaces changes /etc/network/interfaces, of which the old one is kept,
// and moves the files of interfaces.d aside that have interfaces in them.
func (w *writer) editInterfaces(edit func(old string) string) error {
	keep := func(text string) bool { return withoutInterfaces(text) == text }
	if err := w.moveAll(interfacesFile+".d/*", nil, keep); err != nil {
		return err
	}
	old, err := w.root.ReadFile(interfacesFile, fileLimit)
	if err != nil {
		return err
	}
	text := edit(string(old))
	if text == string(old) {
		return nil
	}
	if err := w.put(keptName(interfacesFile), string(old), 0o600); err != nil {
		return err
	}
	return w.put(interfacesFile, text, 0o644)
}

// withoutInterfaces takes all but the loopback interface out of an interfaces(5)
// file. Comments, lo, and lines that name further files stay.
func withoutInterfaces(text string) string {
	var out strings.Builder
	dropping := false
	for _, line := range logicalLines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
			if !dropping {
				out.WriteString(line)
			}
			continue
		case strings.HasPrefix(words[0], "#"):
			if strings.TrimSpace(line) != strings.TrimSpace(header) {
				out.WriteString(line)
			}
			continue
		case words[0] == "source" || words[0] == "source-directory":
			dropping = false
		case words[0] == "iface":
			dropping = len(words) < 2 || words[1] != "lo"
		case words[0] == "mapping" || words[0] == "rename" || words[0] == "template":
			dropping = true
		case words[0] == "auto" || words[0] == "no-auto-down" || words[0] == "no-scripts" || strings.HasPrefix(words[0], "allow-"):
			dropping = false
			if line = onlyLoopback(line, words); line == "" {
				dropping = true
			}
		}
		if !dropping {
			out.WriteString(line)
		}
	}
	return out.String()
}

// onlyLoopback leaves a line that lists interfaces only lo, if it has that.
func onlyLoopback(line string, words []string) string {
	switch {
	case !slices.Contains(words[1:], "lo"):
		return ""
	case len(words) == 2:
		return line
	}
	return words[0] + " lo\n"
}

// logicalLines are lines with those that a backslash continues them by.
func logicalLines(text string) []string {
	var lines []string
	continues := false
	start := 0
	for i := range len(text) {
		if text[i] != '\n' && i+1 < len(text) {
			continue
		}
		line := text[start : i+1]
		body := strings.TrimSuffix(line, "\n")
		comment := strings.HasPrefix(strings.TrimSpace(body), "#")
		if continues = strings.HasSuffix(body, `\`) && !comment && i+1 < len(text); !continues {
			lines = append(lines, line)
			start = i + 1
		}
	}
	return lines
}

// interfaces adds the NICs to what was kept.
func (d dialect) interfaces(kept string, nics []network.NIC) string {
	var out strings.Builder
	if kept = strings.TrimRight(kept, "\n"); kept != "" {
		out.WriteString(kept + "\n\n")
	}
	if !hasLoopback(kept) {
		out.WriteString("auto lo\niface lo inet loopback\n\n")
	}
	out.WriteString(header)
	for i, nic := range nics {
		if i > 0 {
			out.WriteString("\n")
		}
		d.nic(&out, nic)
	}
	return out.String()
}

func hasLoopback(text string) bool {
	for _, line := range logicalLines(text) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "iface" && words[1] == "lo" {
			return true
		}
	}
	return false
}

func (d dialect) nic(out *strings.Builder, nic network.NIC) {
	fmt.Fprintf(out, "auto %s\n", nic.Name)
	v4, v6 := byFamily(nic)
	d.stanza(out, nic, "inet", v4)
	if len(v6.addresses) > 0 || len(v6.routes) > 0 || v6.auto {
		d.stanza(out, nic, "inet6", v6)
	}
}

// family is what a NIC has of one address family.
type family struct {
	auto      bool
	addresses []netip.Prefix
	routes    []network.Route
}

func byFamily(nic network.NIC) (v4, v6 family) {
	v4.auto, v6.auto = nic.DHCP4, nic.DHCP6 || nic.SLAAC
	for _, address := range nic.Addresses {
		f := &v6
		if address.Addr().Is4() {
			f = &v4
		}
		f.addresses = append(f.addresses, address)
	}
	for _, route := range nic.Routes {
		f := &v6
		if route.Via.Is4() {
			f = &v4
		}
		f.routes = append(f.routes, route)
	}
	return v4, v6
}

// stanza writes what interfaces(5) has for one address family. What not every
// dialect has a word for is done by ip(8), which all have.
func (d dialect) stanza(out *strings.Builder, nic network.NIC, kind string, f family) {
	method := d.method(kind, f, nic.DHCP6)
	fmt.Fprintf(out, "iface %s %s %s\n", nic.Name, kind, method)
	if method == "dhcp" && nic.Metric > 0 && !d.busyBox {
		fmt.Fprintf(out, "    metric %d\n", nic.Metric)
	}
	if kind == "inet" && nic.MTU > 0 { // with DHCP, Debian's has no word for it
		fmt.Fprintf(out, "    pre-up ip link set dev $IFACE mtu %d\n", nic.MTU)
	}
	if kind == "inet6" && nic.NoRA {
		out.WriteString("    pre-up echo 0 > /proc/sys/net/ipv6/conf/$IFACE/accept_ra\n")
	}
	rest := f.addresses
	if method == "static" {
		d.address(out, rest[0])
		rest = rest[1:]
	}
	if kind == "inet" && len(nic.DNS) > 0 {
		fmt.Fprintf(out, "    dns-nameservers %s\n", joined(nic.DNS))
	}
	if kind == "inet" && len(nic.Search) > 0 {
		fmt.Fprintf(out, "    dns-search %s\n", strings.Join(nic.Search, " "))
	}
	for _, address := range rest {
		fmt.Fprintf(out, "    up ip addr add %v dev $IFACE\n", address)
	}
	for _, route := range f.routes {
		writeRoute(out, route, method == "static")
	}
}

func joined[T fmt.Stringer](list []T) string {
	var texts []string
	for _, v := range list {
		texts = append(texts, v.String())
	}
	return strings.Join(texts, " ")
}

func (d dialect) method(kind string, f family, dhcp6 bool) string {
	switch {
	case f.auto && (kind == "inet" || dhcp6 && !d.ng && !d.busyBox):
		return "dhcp"
	case f.auto && !d.busyBox: // router advertisements, which say whether there is DHCP
		return "auto"
	case len(f.addresses) > 0 && !f.auto:
		return "static"
	}
	return "manual"
}

func (d dialect) address(out *strings.Builder, address netip.Prefix) {
	if !d.busyBox {
		fmt.Fprintf(out, "    address %v\n", address)
		return
	}
	fmt.Fprintf(out, "    address %v\n    netmask %s\n", address.Addr(), netmask(address))
}

func netmask(address netip.Prefix) string {
	if address.Addr().Is6() {
		return fmt.Sprint(address.Bits())
	}
	return net.IP(net.CIDRMask(address.Bits(), 32)).String()
}

// writeRoute writes a default route to a gateway in an address's own network by
// the word for it; any other by commands.
func writeRoute(out *strings.Builder, route network.Route, static bool) {
	ip := "ip"
	if route.Via.Is6() {
		ip = "ip -6"
	}
	if static && !route.OnLink && route.To.Bits() == 0 {
		fmt.Fprintf(out, "    gateway %v\n", route.Via)
		return
	}
	if route.OnLink {
		fmt.Fprintf(out, "    up %s route add %v dev $IFACE\n", ip, netip.PrefixFrom(route.Via, route.Via.BitLen()))
	}
	to := route.To.String()
	if route.To.Bits() == 0 {
		to = "default"
	}
	fmt.Fprintf(out, "    up %s route add %s via %v dev $IFACE\n", ip, to, route.Via)
}
