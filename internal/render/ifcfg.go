package render

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"

	"ganeti-instance-image/internal/network"
)

// ifcfg writes for Red Hat's network scripts, and for NetworkManager of RHEL 8.
// That finds an interface by HWADDR alone; the scripts, and the files of RHEL up to
// 7, want a name too, of which they refuse the wrong card. There initscripts' own
// udev rule renames to what DEVICE says beside HWADDR, but since RHEL 7 cannot swap
// names either, and in RHEL 6 leaves it to udev's generator of rules; ours says the
// same name.
func (w *writer) ifcfg() error {
	renames := rhelMajor(w.root) <= 7 || !usesNetworkManager(w.root)
	if renames {
		if err := w.rename(); err != nil {
			return err
		}
	}
	files := map[string]string{}
	for _, nic := range w.nics {
		ifcfgFiles(files, nic, renames)
	}
	if err := w.moveIfcfg(scriptsDir, files); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := w.replace(scriptsDir+"/"+name, files[name]); err != nil {
			return err
		}
	}
	if err := w.enableNetworking(); err != nil || usesNetworkManager(w.root) {
		return err
	}
	return w.resolvConf()
}

// moveIfcfg moves the files for interfaces aside, but for the loopback one's and
// those that will be written. The scripts beside them stay.
func (w *writer) moveIfcfg(dir string, files map[string]string) error {
	ours := []string{dir + "/ifcfg-lo"}
	for name := range files {
		ours = append(ours, dir+"/"+name)
	}
	for _, pattern := range []string{"ifcfg-*", "route-*", "route6-*", "rule-*", "rule6-*", "ifroute-*"} {
		if err := w.moveAll(dir+"/"+pattern, ours, nil); err != nil {
			return err
		}
	}
	return nil
}

// ifcfgFiles are the files for one NIC, by their names.
func ifcfgFiles(files map[string]string, nic network.NIC, renames bool) {
	var text strings.Builder
	name := nic.Name
	fmt.Fprintf(&text, "%sTYPE=Ethernet\nNAME=%s\n", header, name)
	if renames {
		fmt.Fprintf(&text, "DEVICE=%s\n", name)
	}
	fmt.Fprintf(&text, "HWADDR=%s\nONBOOT=yes\n", strings.ToUpper(nic.MAC.String()))
	v4, v6 := byFamily(nic)
	ifcfgV4(&text, v4)
	zone := ""
	if renames {
		zone = "%" + name
	}
	ifcfgV6(&text, v6, zone, nic.DHCP6)
	if nic.MTU > 0 {
		fmt.Fprintf(&text, "MTU=%d\n", nic.MTU)
	}
	if nic.Metric > 0 && (v4.auto || v6.auto) {
		fmt.Fprintf(&text, "METRIC=%d\nIPV4_ROUTE_METRIC=%d\nIPV6_ROUTE_METRIC=%d\n", nic.Metric, nic.Metric, nic.Metric)
	}
	for i, server := range nic.DNS {
		fmt.Fprintf(&text, "DNS%d=%v\n", i+1, server)
	}
	if len(nic.Search) > 0 {
		fmt.Fprintf(&text, "DOMAIN=\"%s\"\n", strings.Join(nic.Search, " "))
	}
	files["ifcfg-"+name] = text.String()
	device := ""
	if renames { // the scripts hand each line to ip(8)
		device = " dev " + name
	}
	if routes := ipRoutes(v4.routes, device); routes != "" {
		files["route-"+name] = header + routes
	}
	if routes := ipRoutes(v6.routes, device); routes != "" {
		files["route6-"+name] = header + routes
	}
}

func ifcfgV4(text *strings.Builder, f family) {
	boot := "none"
	if f.auto {
		boot = "dhcp"
	}
	fmt.Fprintf(text, "BOOTPROTO=%s\n", boot)
	for i, address := range f.addresses {
		n := ""
		if i > 0 {
			n = fmt.Sprint(i)
		}
		fmt.Fprintf(text, "IPADDR%s=%v\nPREFIX%s=%d\nNETMASK%s=%s\n", n, address.Addr(), n, address.Bits(), n, netmask(address))
	}
	for _, route := range f.routes {
		if !route.OnLink && route.To.Bits() == 0 {
			fmt.Fprintf(text, "GATEWAY=%v\n", route.Via)
		}
	}
}

func ifcfgV6(text *strings.Builder, f family, zone string, dhcp bool) {
	if !f.auto && len(f.addresses) == 0 {
		return
	}
	fmt.Fprintf(text, "IPV6INIT=yes\nIPV6_AUTOCONF=%s\n", yesNo(f.auto))
	if dhcp {
		text.WriteString("DHCPV6C=yes\n")
	}
	if f.auto { // NetworkManager's word; the scripts leave it to the kernel, which does so
		text.WriteString("IPV6_ADDR_GEN_MODE=eui64\n")
	}
	var more []string
	for i, address := range f.addresses {
		if i == 0 {
			fmt.Fprintf(text, "IPV6ADDR=%v\n", address)
			continue
		}
		more = append(more, address.String())
	}
	if len(more) > 0 {
		fmt.Fprintf(text, "IPV6ADDR_SECONDARIES=\"%s\"\n", strings.Join(more, " "))
	}
	for _, route := range f.routes {
		if !route.OnLink && route.To.Bits() == 0 {
			if !route.Via.IsLinkLocalUnicast() {
				zone = ""
			}
			fmt.Fprintf(text, "IPV6_DEFAULTGW=%v%s\n", route.Via, zone)
		}
	}
}

func yesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}

// ipRoutes are the routes that the words for a gateway do not cover, a line
// each as ip(8) has it.
func ipRoutes(routes []network.Route, device string) string {
	var text strings.Builder
	for _, route := range routes {
		if !route.OnLink && route.To.Bits() == 0 {
			continue
		}
		if route.OnLink {
			fmt.Fprintf(&text, "%v%s\n", netip.PrefixFrom(route.Via, route.Via.BitLen()), device)
		}
		to := route.To.String()
		if route.To.Bits() == 0 {
			to = "default"
		}
		fmt.Fprintf(&text, "%s via %v%s\n", to, route.Via, device)
	}
	return text.String()
}

// enableNetworking makes the file without which, or with a "no" in which, the
// scripts do nothing.
func (w *writer) enableNetworking() error {
	const name = "/etc/sysconfig/network"
	text, err := w.root.ReadFile(name, fileLimit)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// A gateway for all interfaces would be a second default route.
	set := []variable{{"NETWORKING", "yes"}, {"GATEWAY", ""}, {"GATEWAYDEV", ""}, {"IPV6_DEFAULTGW", ""}, {"IPV6_DEFAULTDEV", ""}}
	if slices.ContainsFunc(w.nics, usesIPv6) {
		set = append(set, variable{"NETWORKING_IPV6", "yes"})
	}
	edited := setVariables(string(text), set)
	return w.put(name, edited, 0o644)
}

// variable is an assignment of a shell's; one without a value is taken out.
type variable struct{ name, value string }

// setVariables edits a file of assignments; what is not among them stays.
func setVariables(text string, variables []variable) string {
	var out strings.Builder
	done := map[string]bool{}
	for line := range strings.Lines(text) {
		name, _, isAssignment := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		i := slices.IndexFunc(variables, func(v variable) bool { return v.name == name })
		switch {
		case !isAssignment || i < 0:
			out.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		case variables[i].value != "" && !done[name]:
			fmt.Fprintf(&out, "%s=%s\n", name, variables[i].value)
			done[name] = true
		}
	}
	for _, v := range variables {
		if v.value != "" && !done[v.name] {
			fmt.Fprintf(&out, "%s=%s\n", v.name, v.value)
		}
	}
	return out.String()
}

const wickedDir = "/etc/sysconfig/network"

// wicked knows an interface by its name alone.
func (w *writer) wicked() error {
	if err := w.rename(); err != nil {
		return err
	}
	files := map[string]string{}
	for _, nic := range w.nics {
		name := nic.Name
		files["ifcfg-"+name] = wickedFile(nic)
		if routes := wickedRoutes(nic.Routes); routes != "" {
			files["ifroute-"+name] = header + routes
		}
	}
	if err := w.moveIfcfg(wickedDir, files); err != nil {
		return err
	}
	if _, err := w.root.Lstat(wickedDir + "/routes"); err == nil { // of all interfaces
		if err := w.moveAside(wickedDir + "/routes"); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := w.replace(path.Join(wickedDir, name), files[name]); err != nil {
			return err
		}
	}
	if err := w.ignoreRA(); err != nil {
		return err
	}
	return w.netconfig()
}

// ignoreRA has the kernel ignore router advertisements where an address and a
// gateway are given, for a tool with no word for it: wicked reads these files
// itself, and udev has them applied to an interface that appears.
func (w *writer) ignoreRA() error {
	text := ""
	for _, nic := range w.nics {
		if nic.NoRA {
			text += fmt.Sprintf("net.ipv6.conf.%s.accept_ra = 0\n", nic.Name)
		}
	}
	const name = "/etc/sysctl.d/60-ganeti-network.conf"
	if text == "" && !w.root.Exists(name) {
		return nil
	}
	return w.put(name, header+text, 0o644)
}

// wickedFile is an ifcfg(5) of SUSE.
func wickedFile(nic network.NIC) string {
	var ways []string // beside which addresses and routes that are given count too
	switch {
	case nic.DHCP4 && nic.DHCP6: // one of them is enough to be up
		ways = []string{"dhcp"}
	case nic.DHCP4:
		ways = []string{"dhcp4"}
	case nic.DHCP6:
		ways = []string{"dhcp6"}
	}
	if nic.SLAAC {
		ways = append(ways, "auto6")
	}
	if len(ways) == 0 {
		ways = []string{"static"}
	}
	text := fmt.Sprintf("%sBOOTPROTO='%s'\nSTARTMODE='auto'\n", header, strings.Join(ways, "+"))
	if nic.MTU > 0 {
		text += fmt.Sprintf("MTU='%d'\n", nic.MTU)
	}
	for i, address := range nic.Addresses {
		suffix := ""
		if i > 0 {
			suffix = fmt.Sprintf("_%d", i)
		}
		text += fmt.Sprintf("IPADDR%s='%v'\n", suffix, address)
	}
	if nic.Metric > 0 && nic.DHCP4 {
		text += fmt.Sprintf("DHCLIENT_ROUTE_PRIORITY='%d'\n", nic.Metric)
	}
	return text
}

// wickedRoutes has the columns destination, gateway, mask and interface of
// ifroute(5).
func wickedRoutes(routes []network.Route) string {
	var text strings.Builder
	for _, route := range routes {
		if route.OnLink {
			fmt.Fprintf(&text, "%v - - -\n", netip.PrefixFrom(route.Via, route.Via.BitLen()))
		}
		fmt.Fprintf(&text, "%v %v - -\n", route.To, route.Via)
	}
	return text.String()
}

// noPolicy finds the empty policy by which netconfig is off.
var noPolicy = regexp.MustCompile(`(?m)^NETCONFIG_DNS_POLICY=(""|'')?\s*$`)

// netconfig tells SUSE's netconfig, which writes resolv.conf, the name servers.
func (w *writer) netconfig() error {
	servers, search := w.dns()
	if len(servers)+len(search) == 0 {
		return nil
	}
	const name = wickedDir + "/config"
	text, err := w.root.ReadFile(name, fileLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return w.resolvConf()
	}
	if err != nil {
		return err
	}
	quote := func(words []string) string { return `"` + strings.Join(words, " ") + `"` }
	set := []variable{{"NETCONFIG_DNS_STATIC_SERVERS", quote(servers)}, {"NETCONFIG_DNS_STATIC_SEARCHLIST", quote(search)}}
	if noPolicy.Match(text) { // then netconfig would leave resolv.conf alone
		set = append(set, variable{"NETCONFIG_DNS_POLICY", `"auto"`})
	}
	return w.put(name, setVariables(string(text), set), 0o644)
}
