package seed

import (
	"bytes"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/size"
)

const (
	seedsDir = "/var/lib/cloud/seed"
	seedDir  = seedsDir + "/nocloud"

	// configName sorts after what distributions and installers write, since
	// letters follow digits and the last file wins.
	configName = "zz-ganeti.cfg"
	configFile = guest.CloudConfigDir + "/" + configName
)

// config makes cloud-init read the seed. datasource_list is one line and in this
// style: it is all that ds-identify understands. A list of one, None aside, is
// used without probing for it.
func config(where string) []byte {
	return []byte("# Written at deployment: this instance's data is " + where + `
datasource_list: [ NoCloud, None ]
preserve_hostname: false
`)
}

// saved is what a file of the image is renamed to that must not act.
const saved = ".ganeti-saved"

// The bound of a file of the image that is read here.
const fileLimit = 1 * size.MiB

// Write puts a seed into a guest that has cloud-init, or, where there are no
// files, has the guest look for one on another disk. It takes away what would
// keep that from using it: the image's own seeds and state, configuration that
// switches cloud-init or its network off or gives it another network, and the
// network files that it or the image's builder left. What was changed is
// returned, a line a change, also where an error ended it.
func Write(root *guest.Root, files []File) ([]string, error) {
	w := &writer{root: root}
	for _, step := range []func() error{w.enable, w.configuration, w.oldState, w.oldNetwork, w.netplan} {
		if err := step(); err != nil {
			return w.changes, err
		}
	}
	return w.changes, w.place(files)
}

type writer struct {
	root    *guest.Root
	changes []string
}

func (w *writer) say(change string) { w.changes = append(w.changes, change) }

// remove removes what is there, whatever it is, and says why.
func (w *writer) remove(name, why string) error {
	if _, err := w.root.Lstat(name); err != nil {
		return nil
	}
	if err := w.root.RemoveAll(name); err != nil {
		return err
	}
	w.say("removed " + name + ", " + why)
	return nil
}

func (w *writer) moveAside(name, why string) error {
	if err := w.root.Rename(name, name+saved); err != nil {
		return err
	}
	w.say("renamed " + name + " to " + name + saved + ", " + why)
	return nil
}

// identify matches the lines by which ds-identify.cfg overrides
// datasource_list, or switches cloud-init off.
var identify = regexp.MustCompile(`(?m)^\s*(datasource\s*:|policy\s*:.*\bdisabled\b)`)

// enable takes away what switches cloud-init off.
func (w *writer) enable() error {
	if err := w.remove("/etc/cloud/cloud-init.disabled", "which switched cloud-init off"); err != nil {
		return err
	}
	const file = "/etc/cloud/ds-identify.cfg"
	if text, err := w.root.ReadFile(file, fileLimit); err == nil && identify.Match(withoutNotFound(text)) {
		return w.remove(file, "which chose another data source or none")
	}
	return nil
}

// withoutNotFound takes out the part of ds-identify's default policy that has
// the word "disabled" in it and only counts where nothing is found.
func withoutNotFound(text []byte) []byte {
	return bytes.ReplaceAll(text, []byte("notfound=disabled"), nil)
}

// configuration makes the image's cloud-init configuration give way to the
// seed: the system's network configuration has precedence over a data source's.
func (w *writer) configuration() error {
	// The second is written again by the hook ssh where that is enabled; where
	// it is not, cloud-init must make host keys of this instance's own.
	for _, file := range []string{guest.CloudConfigDir + "/99_ganeti.cfg", guest.KeepHostKeysFile} {
		if err := w.remove(file, "of an earlier deployment"); err != nil {
			return err
		}
	}
	files, err := w.root.CloudConfig()
	if err != nil {
		return err
	}
	for _, file := range files {
		if file.Document == nil || file.Path == configFile {
			continue
		}
		if err := w.giveWay(file); err != nil {
			return err
		}
	}
	return nil
}

// giveWay takes the keys that defeat the seed out of one file.
func (w *writer) giveWay(file guest.CloudConfigFile) error {
	top := file.Document.Content[0]
	var dropped []string
	if dropKey(top, "network") {
		dropped = append(dropped, "network")
	}
	if sources := lookup(top, "datasource"); sources != nil && dropKey(sources, "NoCloud") {
		dropped = append(dropped, "datasource.NoCloud")
		if len(sources.Content) == 0 {
			dropKey(top, "datasource")
		}
	}
	if name := file.Path[strings.LastIndexByte(file.Path, '/')+1:]; name > configName && dropKey(top, "datasource_list") {
		dropped = append(dropped, "datasource_list")
	}
	if len(dropped) == 0 {
		return nil
	}
	why := "which set " + strings.Join(dropped, " and ") + " against the seed"
	if len(top.Content) == 0 {
		return w.remove(file.Path, why)
	}
	text, err := encode("", file.Document)
	if err != nil || guest.ParseYAML(text) == nil {
		return w.moveAside(file.Path, why) // as where another key refers to the one that went
	}
	if err := w.root.WriteFile(file.Path, text, 0o644); err != nil {
		return err
	}
	w.say("edited " + file.Path + ", " + why)
	return nil
}

// lookup returns the value of a key of a mapping, or nil.
func lookup(mapping *yaml.Node, key string) *yaml.Node {
	if i := indexOf(mapping, key); i >= 0 {
		return mapping.Content[i+1]
	}
	return nil
}

// dropKey takes a key out of a mapping, as often as it is there.
func dropKey(mapping *yaml.Node, key string) bool {
	dropped := false
	for i := indexOf(mapping, key); i >= 0; i = indexOf(mapping, key) {
		mapping.Content = slices.Delete(mapping.Content, i, i+2)
		dropped = true
	}
	return dropped
}

func indexOf(mapping *yaml.Node, key string) int {
	if mapping.Kind != yaml.MappingNode {
		return -1
	}
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return i
		}
	}
	return -1
}

// oldState removes what tells cloud-init that it has run, in whatever guest the
// image was taken from. The data directory holds "upgraded-network", which
// switches its network off.
func (w *writer) oldState() error {
	for _, name := range guest.CloudState {
		if err := w.remove(name, "state of the guest the image is from"); err != nil {
			return err
		}
	}
	return nil
}

// generated are the files cloud-init writes a network to, by the names it has
// used over time. It writes them anew, but not all under the same name.
var generated = []string{
	"/etc/netplan/50-cloud-init.yaml",
	"/etc/network/interfaces.d/50-cloud-init*",
	"/etc/NetworkManager/conf.d/99-cloud-init.conf",
	"/etc/NetworkManager/conf.d/30-cloud-init-ip6-addr-gen-mode.conf",
	"/etc/NetworkManager/system-connections/cloud-init-*.nmconnection",
	"/etc/systemd/network/10-cloud-init-*.network",
	"/etc/systemd/network/50-cloud-init-*.link",
}

// marked are files that are cloud-init's only where their first lines say so.
var marked = []string{
	"/etc/sysconfig/network-scripts/ifcfg-*",
	"/etc/sysconfig/network-scripts/route-*",
	"/etc/sysconfig/network-scripts/route6-*",
	"/etc/sysconfig/network/ifcfg-*",
	"/etc/sysconfig/network/ifroute-*",
}

func (w *writer) oldNetwork() error {
	const why = "which cloud-init wrote in the guest the image is from"
	for _, pattern := range generated {
		for _, name := range w.root.Glob(pattern) {
			if err := w.remove(name, why); err != nil {
				return err
			}
		}
	}
	for _, pattern := range marked {
		for _, name := range w.root.Glob(pattern) {
			text, err := w.root.ReadFile(name, fileLimit)
			if err != nil || !bytes.Contains(text[:min(len(text), 256)], []byte("Created by cloud-init")) {
				continue
			}
			if err := w.remove(name, why); err != nil {
				return err
			}
		}
	}
	return nil
}

// devices are the keys of a netplan file that configure an interface.
var devices = []string{"ethernets", "bonds", "bridges", "vlans", "wifis"}

// netplan moves the image's own netplan files aside: netplan reads all of them,
// and systemd-networkd takes the first that fits an interface by its name, so
// that an image's "DHCP on every en*" would win over ours.
func (w *writer) netplan() error {
	for _, name := range w.root.Glob("/etc/netplan/*.yaml") {
		text, err := w.root.ReadFile(name, fileLimit)
		if err != nil {
			continue
		}
		network := guest.YAMLValue(guest.ParseYAML(text), "network")
		if !slices.ContainsFunc(devices, func(d string) bool { return guest.YAMLValue(network, d) != nil }) {
			continue
		}
		if err := w.moveAside(name, "since the seed has the network"); err != nil {
			return err
		}
	}
	return nil
}

// Remove takes the seeds out of a guest that finds its own on another disk. What
// was changed is returned, a line a change.
func Remove(root *guest.Root) ([]string, error) {
	w := &writer{root: root}
	err := w.removeSeeds()
	return w.changes, err
}

func (w *writer) removeSeeds() error {
	for _, dir := range []string{seedDir, seedDir + "-net"} {
		if err := w.remove(dir, "a seed of the image's"); err != nil {
			return err
		}
	}
	return nil
}

// place writes the seed itself. Only root may read it: user-data holds secrets.
func (w *writer) place(files []File) error {
	if err := w.removeSeeds(); err != nil {
		return err
	}
	where := "on a disk labelled cidata"
	if len(files) > 0 {
		where = "in " + seedDir
		if err := w.placeFiles(files); err != nil {
			return err
		}
	}
	if err := w.root.MkdirAll(guest.CloudConfigDir, 0o755); err != nil {
		return err
	}
	if err := w.root.WriteFile(configFile, config(where), 0o644); err != nil {
		return err
	}
	w.say("the seed is " + where)
	return nil
}

func (w *writer) placeFiles(files []File) error {
	if err := w.root.MkdirAll(seedsDir, 0o755); err != nil {
		return err
	}
	if err := w.root.MkdirAll(seedDir, 0o700); err != nil {
		return err
	}
	for _, file := range files {
		if err := w.root.WriteFile(seedDir+"/"+file.Name, file.Data, 0o600); err != nil {
			return err
		}
	}
	return nil
}
