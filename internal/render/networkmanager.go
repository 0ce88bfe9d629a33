package render

import (
	"crypto/sha256"
	"fmt"
	"strings"

	"ganeti-instance-image/internal/network"
)

const keyfilesDir = "/etc/NetworkManager/system-connections"

// networkManager writes a connection for each NIC, and moves those for other
// Ethernet interfaces aside, also the ifcfg files that it may read too. A NIC
// without one would get DHCP.
func (w *writer) networkManager() error {
	var ours []string
	for _, nic := range w.nics {
		ours = append(ours, keyfile(nic))
	}
	if err := w.moveKeyfiles(ours); err != nil {
		return err
	}
	if err := w.moveIfcfg(scriptsDir, nil); err != nil {
		return err
	}
	if err := w.moveAll("/etc/NetworkManager/conf.d/*cloud-init*.conf", nil, nil); err != nil {
		return err // in which it takes resolv.conf from NetworkManager
	}
	for _, nic := range w.nics {
		if err := w.put(keyfile(nic), connection(nic), 0o600); err != nil {
			return err // NetworkManager reads none that others may read
		}
	}
	return nil
}

// moveKeyfiles moves the connections for other Ethernet interfaces aside.
func (w *writer) moveKeyfiles(ours []string) error {
	return w.moveAll(keyfilesDir+"/*", ours, func(text string) bool { return !isEthernet(text) })
}

func keyfile(nic network.NIC) string {
	return keyfilesDir + "/ganeti-" + nic.Name + ".nmconnection"
}

// isEthernet tells whether a keyfile is for an Ethernet interface, whose type it
// may say by its old name.
func isEthernet(text string) bool {
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.TrimSpace(value)
		if strings.TrimSpace(name) == "type" && (value == "ethernet" || value == "802-3-ethernet") {
			return true
		}
	}
	return false
}

// connection is a keyfile of nm-settings-keyfile(5).
func connection(nic network.NIC) string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s[connection]\nid=ganeti-%s\nuuid=%s\ntype=ethernet\nautoconnect-priority=120\n\n", header, nic.Name, connectionUUID(nic))
	fmt.Fprintf(&text, "[ethernet]\nmac-address=%s\n", strings.ToUpper(nic.MAC.String()))
	if nic.MTU > 0 {
		fmt.Fprintf(&text, "mtu=%d\n", nic.MTU)
	}
	v4, v6 := byFamily(nic)
	writeFamily(&text, "ipv4", "disabled", nic, v4)
	// "disabled" is no word for IPv6 before 1.20; "ignore" leaves it to the
	// kernel, as the other tools do.
	writeFamily(&text, "ipv6", "ignore", nic, v6)
	return text.String()
}

// connectionUUID is the same for the same NIC at each deployment.
func connectionUUID(nic network.NIC) string {
	sum := sha256.Sum256([]byte("ganeti-instance-image " + nic.MAC.String()))
	id := sum[:16]
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // version 8 of RFC 9562: an own scheme
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

func writeFamily(text *strings.Builder, section, none string, nic network.NIC, f family) {
	method := none
	switch {
	case f.auto:
		method = "auto"
	case len(f.addresses) > 0:
		method = "manual"
	}
	fmt.Fprintf(text, "\n[%s]\nmethod=%s\n", section, method)
	if method == none {
		return
	}
	if f.auto && section == "ipv6" { // the address that the MAC tells, as by the other tools
		text.WriteString("addr-gen-mode=eui64\nip6-privacy=0\n")
	}
	for i, address := range f.addresses {
		fmt.Fprintf(text, "address%d=%v\n", i+1, address)
	}
	n := 0
	for _, route := range f.routes {
		if route.OnLink { // releases to come will not reach the gateway by themselves
			n++
			fmt.Fprintf(text, "route%d=%v/%d\n", n, route.Via, route.Via.BitLen())
		}
		if route.To.Bits() == 0 {
			fmt.Fprintf(text, "gateway=%v\n", route.Via)
			continue
		}
		n++
		fmt.Fprintf(text, "route%d=%v,%v\n", n, route.To, route.Via)
	}
	if nic.Metric > 0 && f.auto {
		fmt.Fprintf(text, "route-metric=%d\n", nic.Metric)
	}
	writeDNS(text, section, nic)
}

func writeDNS(text *strings.Builder, section string, nic network.NIC) {
	servers := ""
	for _, server := range nic.DNS {
		if server.Is4() == (section == "ipv4") {
			servers += server.String() + ";"
		}
	}
	if servers != "" {
		fmt.Fprintf(text, "dns=%s\n", servers)
	}
	if len(nic.Search) > 0 {
		fmt.Fprintf(text, "dns-search=%s;\n", strings.Join(nic.Search, ";"))
	}
}
