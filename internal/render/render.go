// Package render writes a network plan down in the files of the tool that sets
// up the network in a guest: netplan, ifupdown, systemd-networkd,
// NetworkManager, the network-scripts of Red Hat, wicked, netifrc or dhcpcd; and
// for cloud-init, as the network-config of a seed. Which tool it is, is told by
// the guest's files, of which none is run.
//
// Left out: bonds, bridges and VLANs inside the guest, whose files are moved
// aside with what else the image says of its network (NetworkManager keeps its
// connections that are for no Ethernet interface); connman; and guests whose
// /etc is generated, as that of NixOS is.
package render

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/network"
	"ganeti-instance-image/internal/size"
)

// Renderer is a tool that sets up the network in a guest.
type Renderer struct {
	Name   string // "netplan", "NetworkManager", "ifupdown", ...
	detect func(*guest.Root) bool
	write  func(*writer) error // nil for a tool we cannot write for
}

// Options is what the caller knows of the guest.
type Options struct {
	// CloudInit: the guest has cloud-init, and no seed gives it a network. It is
	// kept from setting up one of its own beside what is written here.
	CloudInit bool
}

// renderers are tried in this order: a tool that is installed may be in the
// service of an earlier one, as networkd is of netplan.
var renderers = []Renderer{
	{"netplan", hasNetplan, (*writer).netplan},
	{"ifcfg", usesIfcfg, (*writer).ifcfg},
	{"NetworkManager", usesNetworkManager, (*writer).networkManager},
	{"wicked", usesWicked, (*writer).wicked},
	{"ifupdown", usesIfupdown, (*writer).ifupdown},
	{"systemd-networkd", usesNetworkd, (*writer).networkd},
	{"netifrc", usesNetifrc, (*writer).netifrc},
	{"dhcpcd", usesDhcpcd, (*writer).dhcpcd},
	{"connman", func(r *guest.Root) bool { return serviceEnabled(r, "connman") }, nil},
}

// Choose finds the tool that sets up the network in the guest. Where none is
// found the error names those that were looked for.
func Choose(root *guest.Root) (Renderer, error) {
	if family := root.Distro().Family; family == guest.NixOS || family == guest.CoreOS {
		return Renderer{}, fmt.Errorf("cannot write the network configuration: %s generates its /etc; give it its network by cloud-init or Ignition", family)
	}
	var names []string
	for _, r := range renderers {
		if r.detect(root) {
			return r, nil
		}
		names = append(names, r.Name)
	}
	return Renderer{}, fmt.Errorf("cannot write the network configuration: the guest enables none of %s", strings.Join(names, ", "))
}

// Write writes the network of the NICs in the files of the tool that the guest
// uses. What the image says of its network, which would compete, is kept beside
// the directory it was in, which gets the suffix ".ganeti-orig". What was
// changed is returned, a line a change, also where an error ended it.
func Write(root *guest.Root, nics []network.NIC, options Options) ([]string, error) {
	chosen, err := Choose(root)
	if err != nil {
		return nil, err
	}
	if err := check(nics); err != nil {
		return nil, err
	}
	if chosen.write == nil {
		return nil, fmt.Errorf("cannot write the network configuration: the guest uses %s, for which we have no words; use cloud-init, or a hook of your own", chosen.Name)
	}
	w := &writer{root: root, nics: nics}
	w.say("the guest sets up its network with " + chosen.Name)
	steps := []func() error{w.dropNames, w.dropLinks, func() error { return chosen.write(w) }}
	for _, c := range competitors {
		if c.of != chosen.Name {
			steps = append(steps, func() error { return c.clear(w) })
		}
	}
	if options.CloudInit {
		steps = append(steps, w.silenceCloudInit)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return w.changes, err
		}
	}
	return w.changes, nil
}

// competitors are the tools of which a guest may have several running, and what
// keeps each but the chosen one from the interfaces.
var competitors = []struct {
	of    string
	clear func(*writer) error
}{
	{"ifupdown", (*writer).clearInterfaces},
	{"systemd-networkd", func(w *writer) error { return w.moveAll(networkdFiles, nil, nil) }},
	{"NetworkManager", func(w *writer) error { return w.moveKeyfiles(nil) }},
	{"cloud-ifupdown-helper", func(w *writer) error {
		return w.moveAll("/etc/udev/rules.d/*cloud-ifupdown*.rules", nil, nil) // Debian's cloud images: DHCP on what appears
	}},
}

// domain is what may be searched in; anything else could end a line.
var domain = regexp.MustCompile(`^[A-Za-z0-9._-]{1,253}$`)

func check(nics []network.NIC) error {
	for _, nic := range nics {
		if len(nic.MAC) != 6 {
			return fmt.Errorf("cannot write the network configuration: %s has no Ethernet address, and the guest knows an interface by nothing else", nic.Name)
		}
		for _, name := range nic.Search {
			if !domain.MatchString(name) {
				return fmt.Errorf("cannot write the network configuration: %q is not a domain to search in", name)
			}
		}
	}
	return nil
}

// header is the first line of each file that is written.
const header = "# Written at deployment by ganeti-instance-image.\n"

// aside is what is put behind the name of a directory to make the one that
// keeps what was in it. A suffix on the files themselves would not do: some
// tools read what files there are, whatever their names.
const aside = ".ganeti-orig"

// fileLimit bounds a file of the guest's network configuration.
const fileLimit = 1 * size.MiB

type writer struct {
	root    *guest.Root
	nics    []network.NIC
	changes []string
}

func (w *writer) say(change string) { w.changes = append(w.changes, change) }

// put writes a file, and the directory it is in.
func (w *writer) put(name, text string, mode fs.FileMode) error {
	if old, err := w.root.ReadFile(name, fileLimit); err == nil && string(old) == text {
		return w.root.Chmod(name, mode)
	}
	if err := w.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	if err := w.root.WriteFile(name, []byte(text), mode); err != nil {
		return err
	}
	if err := w.root.Chmod(name, mode); err != nil {
		return err
	}
	w.say("wrote " + name)
	return nil
}

// moveAside keeps a file where the tool does not look, in the place of what is
// kept there already.
func (w *writer) moveAside(name string) error {
	kept := keptName(name)
	if err := w.root.MkdirAll(path.Dir(kept), 0o700); err != nil {
		return err
	}
	if _, err := w.root.Lstat(kept); err == nil {
		if err := w.root.RemoveAll(kept); err != nil {
			return err
		}
	}
	if err := w.root.Rename(name, kept); err != nil {
		return err
	}
	w.say("moved " + name + " to " + kept)
	return nil
}

// keptName is where a file is kept.
func keptName(name string) string {
	if path.Dir(name) == "/etc" { // of which no directory beside it should be made
		return name + aside
	}
	return path.Dir(name) + aside + "/" + path.Base(name)
}

// replace writes a file in the place of the image's own, which is kept; without a
// text there is none.
func (w *writer) replace(name, text string) error {
	info, err := w.root.Lstat(name)
	if err != nil { // there is none
		if text == "" {
			return nil
		}
		return w.put(name, text, 0o644)
	}
	old, err := w.root.ReadFile(name, fileLimit)
	switch ours := err == nil && strings.HasPrefix(string(old), header); {
	case text == "" || err != nil || !info.IsRegular():
		if err := w.moveAside(name); err != nil || text == "" {
			return err
		}
	case !ours:
		if err := w.put(keptName(name), string(old), 0o600); err != nil {
			return err
		}
	}
	return w.put(name, text, 0o644)
}

// moveAll moves the files of a pattern aside, but for ours and those that the
// tool may keep.
func (w *writer) moveAll(pattern string, ours []string, keep func(text string) bool) error {
	for _, name := range w.root.Glob(pattern) {
		if info, err := w.root.Stat(name); slices.Contains(ours, name) || err == nil && info.IsDir() {
			continue
		}
		text, err := w.root.ReadFile(name, fileLimit)
		if err == nil && keep != nil && keep(string(text)) {
			continue
		}
		if err := w.moveAside(name); err != nil {
			return err
		}
	}
	return nil
}

// rulesFile is where udev rules have names of interfaces since before networkd.
const rulesFile = "/etc/udev/rules.d/70-persistent-net.rules"

// dropNames moves names aside that the image's own interfaces had: they would
// make this instance's first one the second.
func (w *writer) dropNames() error {
	text, err := w.root.ReadFile(rulesFile, fileLimit)
	if errors.Is(err, fs.ErrNotExist) || err == nil && strings.HasPrefix(string(text), header) {
		return nil
	}
	return w.moveAside(rulesFile)
}

// dropLinks moves systemd.link(5) files aside that are for a MAC: an interface of
// the image's had it. What is in force for others stays, and a link to /dev/null
// with it, by which an image turns a scheme of names off.
func (w *writer) dropLinks() error {
	for _, name := range w.root.Glob("/etc/systemd/network/*.link") {
		info, err := w.root.Lstat(name)
		if err != nil || !info.IsRegular() {
			continue
		}
		text, err := w.root.ReadFile(name, fileLimit)
		if err != nil || !matchesMAC(string(text)) {
			continue
		}
		if err := w.moveAside(name); err != nil {
			return err
		}
	}
	return nil
}

// matchesMAC tells whether a systemd.link(5) file is for interfaces of certain
// MACs; in another section than [Match] a MAC is one to be given.
func matchesMAC(text string) bool {
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		key, value, _ := strings.Cut(line, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		switch {
		case strings.HasPrefix(line, "["):
			section = line
		case section == "[Match]" && (key == "MACAddress" || key == "PermanentMACAddress") && value != "":
			return true
		}
	}
	return false
}

// rename names the NICs by the guest's udev, for tools that know an interface by
// its name alone. A .link file would come too late for one that the initramfs has
// named. The names are none of the kernel's: of two cards that it found in the
// other order, and calls eth0 and eth1, udev can rename neither to the other's
// name. Where there is no udev, as on Alpine, the names are the kernel's, by the
// order of the devices.
func (w *writer) rename() error {
	var text strings.Builder
	text.WriteString(header)
	kernels := !hasUdev(w.root)
	w.nics = slices.Clone(w.nics)
	for i, nic := range w.nics {
		if kernels {
			nic.Name = fmt.Sprintf("eth%d", nic.Index)
		}
		fmt.Fprintf(&text, "SUBSYSTEM==\"net\", ACTION==\"add\", ATTR{address}==\"%v\", ATTR{type}==\"1\", NAME=\"%s\"\n", nic.MAC, nic.Name)
		w.nics[i] = nic
	}
	return w.put(rulesFile, text.String(), 0o644)
}

// silenceCloudInit keeps cloud-init from writing a network of its own.
func (w *writer) silenceCloudInit() error {
	return w.put(guest.CloudConfigDir+"/zz-ganeti-network.cfg", header+"network: {config: disabled}\n", 0o644)
}

// resolvConf writes name servers where no program of the guest is in charge of
// the file: then it is a link, which must stay one.
func (w *writer) resolvConf() error {
	servers, search := w.dns()
	if len(servers)+len(search) == 0 {
		return nil
	}
	if info, err := w.root.Lstat(resolvFile); err == nil && !info.IsRegular() {
		return w.resolvedConf(servers, search)
	}
	text := header
	if len(search) > 0 {
		text += "search " + strings.Join(search, " ") + "\n"
	}
	for _, server := range servers {
		text += "nameserver " + server + "\n"
	}
	return w.put(resolvFile, text, 0o644)
}

const resolvFile = "/etc/resolv.conf"

// resolvedConf gives systemd-resolved the name servers where resolv.conf is a
// link to it, and what sets up the interfaces does not tell it.
func (w *writer) resolvedConf(servers, search []string) error {
	if target, err := w.root.Readlink(resolvFile); err != nil || !strings.Contains(target, "systemd/resolve") {
		return nil
	}
	text := header + "[Resolve]\n"
	if len(servers) > 0 {
		text += "DNS=" + strings.Join(servers, " ") + "\n"
	}
	if len(search) > 0 {
		text += "Domains=" + strings.Join(search, " ") + "\n"
	}
	return w.put("/etc/systemd/resolved.conf.d/60-ganeti.conf", text, 0o644)
}

// dns are the name servers of all NICs, in their order, each once.
func (w *writer) dns() (servers, search []string) {
	add := func(list []string, word string) []string {
		if slices.Contains(list, word) {
			return list
		}
		return append(list, word)
	}
	for _, nic := range w.nics {
		for _, server := range nic.DNS {
			servers = add(servers, server.String())
		}
		for _, name := range nic.Search {
			search = add(search, name)
		}
	}
	return servers, search
}

// usesIPv6 tells whether a NIC has anything of IPv6.
func usesIPv6(nic network.NIC) bool {
	_, v6 := byFamily(nic)
	return v6.auto || len(v6.addresses) > 0
}

// link makes a link unless something is at its place.
func (w *writer) link(target, name string) error {
	if _, err := w.root.Lstat(name); err == nil {
		return nil
	}
	if err := w.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	if err := w.root.Symlink(target, name); err != nil {
		return err
	}
	w.say("linked " + name + " to " + target)
	return nil
}
