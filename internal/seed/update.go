package seed

import (
	"bytes"
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"

	"ganeti-instance-image/internal/guest"
)

// Dir is where a seed is in the guest.
const Dir = seedDir

// Update has a seed that Write put into the guest say the name and the network
// that files say, and nothing else: user-data and the instance-id stay, so that
// cloud-init takes the guest for the one it knows. For it to look at the seed
// again, what it remembers of it goes; and where the network is another one, it
// is told to write it at each boot, and not only at an instance's first. (From
// version 21.3 on; an earlier one keeps the network it wrote.)
//
// A guest without a seed of ours is left alone. What was changed is returned, a
// line a change.
func Update(root *guest.Root, files []File) ([]string, error) {
	w := &writer{root: root}
	if !root.Exists(configFile) || !root.Exists(seedDir+"/meta-data") {
		return nil, nil
	}
	if err := w.updateName(content(files, "meta-data")); err != nil {
		return w.changes, err
	}
	if err := w.updateNetwork(content(files, "network-config")); err != nil {
		return w.changes, err
	}
	if len(w.changes) == 0 {
		return nil, nil
	}
	for _, name := range root.Glob("/var/lib/cloud/instances/*/obj.pkl") {
		if err := w.remove(name, "so that the seed is read again"); err != nil {
			return w.changes, err
		}
	}
	return w.changes, nil
}

func content(files []File, name string) []byte {
	i := slices.IndexFunc(files, func(f File) bool { return f.Name == name })
	if i < 0 {
		return nil
	}
	return files[i].Data
}

// updateName keeps the instance-id that the seed has.
func (w *writer) updateName(want []byte) error {
	const name = seedDir + "/meta-data"
	old, err := w.root.ReadFile(name, fileLimit)
	if err != nil {
		return err
	}
	var is metaData
	if err := yaml.Unmarshal(want, &is); err != nil {
		return fmt.Errorf("cannot read the new meta-data: %w", err)
	}
	has := guest.ParseYAML(old)
	id, hostname := guest.YAMLValue(has, "instance-id"), guest.YAMLValue(has, "local-hostname")
	if id == nil || id.Value == "" {
		return fmt.Errorf("cannot rename the guest in %s: it has no instance-id", name)
	}
	if hostname != nil && hostname.Value == string(is.Hostname) {
		return nil
	}
	is.InstanceID = quoted(id.Value)
	text, err := encode("", is)
	if err != nil {
		return err
	}
	return w.replace(name, text, "which now says "+string(is.Hostname))
}

func (w *writer) updateNetwork(want []byte) error {
	const name = seedDir + "/network-config"
	old, err := w.root.ReadFile(name, fileLimit)
	if err == nil && bytes.Equal(old, want) {
		return nil
	}
	if err := w.replace(name, want, "for the MACs and addresses of today"); err != nil {
		return err
	}
	text := append(config("in "+seedDir), "updates: {network: {when: [boot-new-instance, boot]}}\n"...)
	return w.replace(configFile, text, "so that the network is written anew")
}

func (w *writer) replace(name string, text []byte, why string) error {
	if err := w.root.WriteFile(name, text, 0o600); err != nil {
		return err
	}
	w.say("rewrote " + name + ", " + why)
	return nil
}
