package seed

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const seededID = "instance-id: \"the id\"\nlocal-hostname: \"old.example.org\"\n"

func TestUpdate(t *testing.T) {
	const pickle = "var/lib/cloud/instances/x/obj.pkl"
	all := map[string]string{
		configFile: string(config("in " + seedDir)), seedDir + "/meta-data": seededID, seedDir + "/network-config": "old", seedDir + "/user-data": "mine", pickle: "",
	}
	without := func(names ...string) map[string]string {
		files := map[string]string{}
		for name, text := range all {
			files[name] = text
		}
		for _, name := range names {
			delete(files, name)
		}
		return files
	}
	fresh := []File{{"meta-data", []byte("instance-id: \"other\"\nlocal-hostname: \"new.example.org\"\n")}, {"network-config", []byte("new")}, {"user-data", []byte("other")}}
	for _, c := range []struct {
		name          string
		files         map[string]string
		onDisk, moved bool
		changes       int
		says          map[string]string // what files say after it
	}{
		{"in the guest", all, false, false, 4, map[string]string{
			seedDir + "/meta-data": "the id\"\nlocal-hostname: \"new.example.org", seedDir + "/network-config": "new", seedDir + "/user-data": "mine", configFile: "boot-new-instance, boot",
		}},
		{"on a disk", without(seedDir+"/meta-data", seedDir+"/network-config"), true, true, 2, map[string]string{configFile: "cidata\ndatasource_list: [ NoCloud, None ]\npreserve_hostname: false\nupdates:"}},
		{"on a disk, as it was", without(seedDir + "/meta-data"), true, false, 0, map[string]string{configFile: string(config("in " + seedDir))}},
		{"no seed any more", without(seedDir + "/meta-data"), false, false, 0, map[string]string{seedDir + "/network-config": "old"}},
		{"not ours", without(configFile), false, true, 0, map[string]string{seedDir + "/meta-data": seededID, seedDir + "/network-config": "old"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			root, dir := image(t, c.files)
			changes, err := Update(root, fresh, c.onDisk, c.moved)
			if err != nil || len(changes) != c.changes {
				t.Errorf("%d changes: %q, %v", len(changes), changes, err)
			}
			for name, want := range c.says {
				if text, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !strings.Contains(string(text), want) {
					t.Errorf("%s: %q, %v, want %q", name, text, err, want)
				}
			}
			if _, err := os.Stat(filepath.Join(dir, pickle)); (err == nil) != (c.changes == 0) {
				t.Errorf("what cloud-init remembers: %v", err)
			}
			if again, err := Update(root, fresh, c.onDisk, false); err != nil || len(again) > 0 {
				t.Errorf("a second time: %q, %v", again, err)
			}
		})
	}
}

// A guest may have anything in the place of its seed.
func TestReplace(t *testing.T) {
	fresh := []File{{"meta-data", []byte("instance-id: \"other\"\nlocal-hostname: \"new.example.org\"\n")}, {"network-config", []byte("new")}, {"user-data", []byte("other")}}
	old := map[string]string{configFile: string(config("in " + seedDir)), seedDir + "/meta-data": seededID, seedDir + "/network-config": "old", seedDir + "/user-data": "mine", seedDir + "/vendor-data": "theirs"}
	root, dir := image(t, old)
	if !InGuest(root) {
		t.Error("the seed is not seen")
	}
	if _, err := Replace(root, fresh); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"meta-data": "other", "network-config": "new", "user-data": "mine", "vendor-data": "theirs"} {
		if text, err := os.ReadFile(filepath.Join(dir, seedDir, name)); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %q, %v, want %q", name, text, err, want)
		}
	}
	delete(old, configFile)
	if root, _ := image(t, old); InGuest(root) {
		t.Error("a seed that is not ours is taken for ours")
	}
}

func TestUpdateOfAStrangeSeed(t *testing.T) {
	fresh := []File{{"meta-data", []byte("instance-id: \"other\"\nlocal-hostname: \"new\"\n")}, {"network-config", nil}}
	for _, text := range []string{"", "[]", "local-hostname: x\n", "\x00", "instance-id: {a: b}\n"} {
		root, _ := image(t, map[string]string{configFile: "", seedDir + "/meta-data": text})
		if _, err := Update(root, fresh, false, false); err == nil || !strings.Contains(err.Error(), "instance-id") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
