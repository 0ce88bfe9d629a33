package render

import (
	"slices"

	"go.yaml.in/yaml/v3"

	"ganeti-instance-image/internal/guest"
)

// netplanFile sorts behind what images have, since of two files the later wins.
const netplanFile = "/etc/netplan/90-ganeti.yaml"

// netplanDocument is a file of netplan.
type netplanDocument struct {
	Network netConfig `yaml:"network"`
}

// netplanDevices are the keys that configure interfaces. A file without one may
// stay: it chooses the backend.
var netplanDevices = []string{"ethernets", "bonds", "bridges", "vlans", "wifis", "tunnels", "vrfs", "dummy-devices"}

// netplan writes one file and moves the others aside: netplan merges all of
// them, and an image's "DHCP on every en*" would count too. So it is with the
// files of networkd, by whose names the first that fits wins.
func (w *writer) netplan() error {
	config := networkConfig(w.nics, guest.CloudInit{})
	config.Renderer = w.netplanBackend()
	text, err := EncodeYAML(header, netplanDocument{config})
	if err != nil {
		return err
	}
	ours := []string{netplanFile}
	if err := w.moveAll("/etc/netplan/*.yaml", ours, func(text string) bool { return !readNetplan(text).configures() }); err != nil {
		return err
	}
	if err := w.moveAll(networkdFiles, nil, nil); err != nil {
		return err
	}
	return w.put(netplanFile, string(text), 0o600) // netplan warns where others may read it
}

// netplanBackend is the backend that files which are moved aside chose, or we
// took over from them.
func (w *writer) netplanBackend() string {
	backend := ""
	for _, name := range w.root.Glob("/etc/netplan/*.yaml") {
		text, err := w.root.ReadFile(name, fileLimit)
		if err != nil {
			continue
		}
		if said := readNetplan(string(text)); said.configures() && (said.Renderer == "networkd" || said.Renderer == "NetworkManager") {
			backend = said.Renderer
		}
	}
	return backend
}

// netplanSaid is what is read of a file of the image.
type netplanSaid struct {
	Renderer string
	keys     []string
}

func (s netplanSaid) configures() bool {
	return slices.ContainsFunc(netplanDevices, func(device string) bool { return slices.Contains(s.keys, device) })
}

func readNetplan(text string) netplanSaid {
	var document struct {
		Network map[string]yaml.Node `yaml:"network"`
	}
	var said netplanSaid
	if yaml.Unmarshal([]byte(text), &document) != nil {
		return netplanSaid{keys: netplanDevices} // netplan would fail over it
	}
	for key, value := range document.Network {
		said.keys = append(said.keys, key)
		if key == "renderer" {
			said.Renderer = value.Value
		}
	}
	return said
}
