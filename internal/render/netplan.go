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
// them, and an image's "DHCP on every en*" would count too.
func (w *writer) netplan() error {
	config := networkConfig(w.nics, guest.CloudInit{})
	chosen, backend := w.netplanBackend()
	config.Renderer = chosen
	for _, nic := range w.nics {
		if e := config.Ethernets[nic.Name]; nic.SLAAC && backend == "NetworkManager" { // its word for both
			e.DHCP6 = true
			if nic.Metric > 0 {
				e.DHCP6Overrides = &overrides{nic.Metric}
			}
			config.Ethernets[nic.Name] = e
		}
	}
	text, err := EncodeYAML(header, netplanDocument{config})
	if err != nil {
		return err
	}
	ours := []string{netplanFile}
	for _, pattern := range netplanPatterns {
		if err := w.moveAll(pattern, ours, func(text string) bool { return !readNetplan(text).configures() }); err != nil {
			return err
		}
	}
	if err := w.put(netplanFile, string(text), 0o600); err != nil { // netplan warns where others may read it
		return err
	}
	if backend == "NetworkManager" {
		return nil // which writes resolv.conf or tells what does
	}
	return w.networkdDNS()
}

// netplanPatterns are where netplan reads files.
var netplanPatterns = []string{"/etc/netplan/*.yaml", "/usr/lib/netplan/*.yaml", "/lib/netplan/*.yaml"}

// netplanBackend is the backend that files which are moved aside chose, or we
// took over from them, and that which is in force with the files that stay.
func (w *writer) netplanBackend() (chosen, inForce string) {
	for _, pattern := range slices.Backward(netplanPatterns) {
		for _, name := range w.root.Glob(pattern) {
			text, err := w.root.ReadFile(name, fileLimit)
			if err != nil {
				continue
			}
			said := readNetplan(string(text))
			if said.Renderer != "networkd" && said.Renderer != "NetworkManager" {
				continue
			}
			inForce = said.Renderer
			if said.configures() {
				chosen = said.Renderer
			}
		}
	}
	return chosen, inForce
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
	var document yaml.Node
	if yaml.Unmarshal([]byte(text), &document) != nil {
		return netplanSaid{keys: netplanDevices} // netplan would fail over it
	}
	var said netplanSaid
	if len(document.Content) == 0 {
		return said
	}
	network := guest.YAMLValue(document.Content[0], "network")
	if network == nil || network.Kind != yaml.MappingNode {
		return said
	}
	for n := 0; n+1 < len(network.Content); n += 2 {
		said.keys = append(said.keys, network.Content[n].Value)
	}
	if renderer := guest.YAMLValue(network, "renderer"); renderer != nil {
		said.Renderer = renderer.Value
	}
	return said
}
