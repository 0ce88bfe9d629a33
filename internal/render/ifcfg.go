package render

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"

	"ganeti-instance-image/internal/network"
)

// ifcfg writes for Red Hat's network scripts, and for NetworkManager of RHEL 8.
// Up to RHEL 7 a file with both HWADDR and DEVICE renames the interface, early
// and by the guest's own udev rules; later there are none, and NetworkManager
// finds it by HWADDR alone.
func (w *writer) ifcfg() error {
	renames := rhelMajor(w.root) <= 7
	files := map[string]string{}
	for _, nic := range w.nics {
		name := nic.Name
		if renames {
			name = ethName(nic)
		}
		ifcfgFiles(files, nic, name, renames)
	}
	if err := w.moveIfcfg(scriptsDir, files); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := w.put(scriptsDir+"/"+name, files[name], 0o644); err != nil {
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
func ifcfgFiles(files map[string]string, nic network.NIC, name string, renames bool) {
	var text strings.Builder
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
	ifcfgV6(&text, v6, zone)
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
		files["route-"+name] = routes
	}
	if routes := ipRoutes(v6.routes, device); routes != "" {
		files["route6-"+name] = routes
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

func ifcfgV6(text *strings.Builder, f family, zone string) {
	if !f.auto && len(f.addresses) == 0 {
		return
	}
	fmt.Fprintf(text, "IPV6INIT=yes\nIPV6_AUTOCONF=%s\n", yesNo(f.auto))
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
	edited := setVariables(string(text), []variable{{"NETWORKING", "yes"}, {"GATEWAY", ""}, {"GATEWAYDEV", ""}, {"IPV6_DEFAULTGW", ""}, {"IPV6_DEFAULTDEV", ""}})
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
		name := ethName(nic)
		files["ifcfg-"+name] = wickedFile(nic)
		if routes := wickedRoutes(nic.Routes); routes != "" {
			files["ifroute-"+name] = routes
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
		if err := w.put(path.Join(wickedDir, name), files[name], 0o644); err != nil {
			return err
		}
	}
	return w.netconfig()
}

// wickedFile is an ifcfg(5) of SUSE.
func wickedFile(nic network.NIC) string {
	boot := "static"
	switch {
	case nic.DHCP4 && nic.DHCP6:
		boot = "dhcp"
	case nic.DHCP4:
		boot = "dhcp4"
	case nic.DHCP6:
		boot = "auto6"
	}
	if len(nic.Addresses) > 0 && boot != "static" {
		boot += "+static"
	}
	text := fmt.Sprintf("%sBOOTPROTO='%s'\nSTARTMODE='auto'\n", header, boot)
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
	return w.put(name, setVariables(string(text), []variable{{"NETCONFIG_DNS_STATIC_SERVERS", quote(servers)}, {"NETCONFIG_DNS_STATIC_SEARCHLIST", quote(search)}}), 0o644)
}
