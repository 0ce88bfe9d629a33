package seed

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"

	"ganeti-instance-image/internal/guest"
)

// Dir is where a seed is in the guest.
const Dir = seedDir

// Update has a guest that Write gave a seed, or told of one on a disk, take on
// the name and the network of files. user-data and the instance-id stay, so that
// cloud-init takes the guest for the one it knows. For it to look at the seed
// again what it remembers of it goes, and it is told to write the network at
// each boot, and not only at an instance's first. (From version 21.3 on; an
// earlier one keeps the network it wrote.) The seed on a disk is the caller's to
// write; moved tells that it says something else than before.
//
// The files that tell whether there is something to do are written last: what
// failed half way is done again. A guest without configuration of ours is left
// alone. What was changed is returned, a line a change.
func Update(root *guest.Root, files []File, onDisk, moved bool) ([]string, error) {
	w := &writer{root: root}
	if !root.Exists(configFile) {
		return nil, nil
	}
	where := "on a disk labelled cidata"
	var changed []File
	if !onDisk {
		where = "in " + seedDir
		var err error
		if changed, err = w.outdated(files); err != nil {
			return nil, err
		}
	}
	if len(changed) == 0 && !moved {
		return nil, nil
	}
	err := w.update(where, changed)
	return w.changes, err
}

// InGuest tells whether the guest has a seed of ours in it.
func InGuest(root *guest.Root) bool {
	return root.Exists(configFile) && root.Exists(seedDir+"/meta-data")
}

// Replace gives a guest with a seed of ours another, by which it is another
// instance. What of the old one nobody may know any more stays: user-data and
// vendor-data.
func Replace(root *guest.Root, files []File) ([]string, error) {
	for _, name := range []string{"user-data", "vendor-data"} {
		old, err := root.ReadFile(seedDir+"/"+name, fileLimit)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files = append(slices.DeleteFunc(slices.Clone(files), func(f File) bool { return f.Name == name }), File{name, old})
	}
	return Write(root, files)
}

// outdated are the files of the seed in the guest that must change, the one
// about the network first.
func (w *writer) outdated(files []File) ([]File, error) {
	old, err := w.root.ReadFile(seedDir+"/meta-data", fileLimit)
	if err != nil {
		return nil, nil // the guest has no seed any more
	}
	meta, err := renewMeta(old, content(files, "meta-data"))
	if err != nil {
		return nil, err
	}
	var changed []File
	for _, f := range []File{{"network-config", content(files, "network-config")}, {"meta-data", meta}} {
		if has, err := w.root.ReadFile(seedDir+"/"+f.Name, fileLimit); err != nil || !bytes.Equal(has, f.Data) {
			changed = append(changed, f)
		}
	}
	return changed, nil
}

func (w *writer) update(where string, changed []File) error {
	text := append(config(where), "updates: {network: {when: [boot-new-instance, boot]}}\n"...)
	if err := w.replace(configFile, text, "so that the network is written anew"); err != nil {
		return err
	}
	for _, name := range w.root.Glob("/var/lib/cloud/instances/*/obj.pkl") {
		if err := w.remove(name, "so that the seed is read again"); err != nil {
			return err
		}
	}
	for _, f := range changed {
		if err := w.replace(seedDir+"/"+f.Name, f.Data, "for the name, MACs and addresses of today"); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) replace(name string, text []byte, why string) error {
	if err := w.root.WriteFile(name, text, 0o600); err != nil {
		return err
	}
	w.say("rewrote " + name + ", " + why)
	return nil
}

// content is that of a file of a seed, nil where it has none of that name.
func content(files []File, name string) []byte {
	i := slices.IndexFunc(files, func(f File) bool { return f.Name == name })
	if i < 0 {
		return nil
	}
	return files[i].Data
}
