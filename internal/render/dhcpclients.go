package render

import (
	"errors"
	"io/fs"
	"slices"
	"strings"

	"ganeti-instance-image/internal/network"
)

// dhcpClients are those that ifupdown starts and that write resolv.conf, and the
// line by which each leaves that alone. All that are in the guest are told: which
// one is started differs between releases of ifupdown.
var dhcpClients = []struct {
	there func(*writer, dialect) bool
	file  string
	line  string
	first bool // what stands further down may be for one interface alone
}{
	// Its script, as Debian has it, reads what is in this directory.
	{func(w *writer, d dialect) bool { return d == dialect{} && hasProgram(w.root, "dhclient") },
		"/etc/dhcp/dhclient-enter-hooks.d/ganeti", "make_resolv_conf() { :; }", false},
	{func(w *writer, _ dialect) bool { return hasProgram(w.root, "dhcpcd") },
		dhcpcdFile, "nohook resolv.conf", true},
	// BusyBox's, whose script, as Alpine has it, reads this file; Debian's has none.
	{func(w *writer, _ dialect) bool { return w.root.Exists("/usr/share/udhcpc/default.script") },
		"/etc/udhcpc/udhcpc.conf", `RESOLV_CONF="no"`, false},
}

// keepResolvConf keeps the clients for DHCP that ifupdown starts from putting the
// name servers of one NIC's DHCP server in the place of those that are planned.
// Where none are planned, or resolv.conf is for a program to write, what was
// written for that before is taken out.
func (w *writer) keepResolvConf(d dialect) error {
	servers, search := w.dns()
	asks := slices.ContainsFunc(w.nics, func(nic network.NIC) bool { return nic.DHCP4 || nic.DHCP6 })
	keep := asks && len(servers)+len(search) > 0 && w.resolvConfIsOurs()
	for _, client := range dhcpClients {
		if err := w.addLine(client.file, client.line, client.first, keep && client.there(w, d)); err != nil {
			return err
		}
	}
	return nil
}

// resolvConfIsOurs tells whether no program of the guest is in charge of
// resolv.conf: one called resolvconf is told the name servers by the clients and
// by ifupdown, and puts them in an order.
func (w *writer) resolvConfIsOurs() bool {
	info, err := w.root.Lstat(resolvFile)
	return err == nil && info.IsRegular() && !hasProgram(w.root, "resolvconf")
}

// addLine has a file begin or end with a line, and one above that says whose it
// is; or takes both out again.
func (w *writer) addLine(name, line string, first, wanted bool) error {
	ours := header + line + "\n"
	old, err := w.root.ReadFile(name, fileLimit)
	_, statErr := w.root.Lstat(name)
	switch {
	case err == nil || errors.Is(statErr, fs.ErrNotExist):
	case !wanted:
		return nil
	default: // it is no file, or a link to none
		if err := w.moveAside(name); err != nil {
			return err
		}
	}
	text := strings.ReplaceAll(string(old), ours, "")
	switch {
	case wanted && first:
		text = ours + text
	case wanted && (text == "" || strings.HasSuffix(text, "\n")):
		text += ours
	case wanted:
		text += "\n" + ours
	}
	switch {
	case text == string(old):
		return nil
	case text == "":
		w.say("removed " + name)
		return w.root.Remove(name)
	}
	return w.put(name, text, 0o644)
}
