package hook

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fill makes files below dir; those whose name ends in "!" are not executable.
func fill(t *testing.T, dir string, files ...string) {
	t.Helper()
	for _, name := range files {
		name, off := strings.CutSuffix(name, "!")
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o755)
		if off {
			mode = 0o644
		}
		write(t, dir, name, "#!/bin/sh\n", mode)
	}
}

// told are the paths of hooks below dir; those that are off end in "!".
func told(dir string, hooks []Hook) []string {
	var paths []string
	for _, h := range hooks {
		path, _ := filepath.Rel(dir, h.Path)
		if !h.Enabled {
			path += "!"
		}
		paths = append(paths, path)
	}
	return paths
}

func TestPhasesAndVariants(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, "b", "a", "Z", "off!", "before-mount/10", "before-mount/9", "after-unmount/x", "after-unmount/x.sh",
		"variants/special/b", "variants/special/a!", "variants/special/off", "variants/special/aa", "variants/special/new!",
		"variants/special/before-mount/05", "variants/special/after-unmount/x!", "variants/other/b")
	cases := []struct {
		variant string
		phase   Phase
		want    string
	}{
		{"", BeforeMount, "before-mount/10 before-mount/9"},
		{"", AfterMount, "Z a b off!"},
		{"", AfterUnmount, "after-unmount/x"},
		{"none", AfterMount, "Z a b off!"},
		{"other", AfterMount, "Z a variants/other/b off!"},
		{"special", BeforeMount, "variants/special/before-mount/05 before-mount/10 before-mount/9"},
		{"special", AfterMount, "Z variants/special/a! variants/special/aa variants/special/b variants/special/new! variants/special/off"},
		{"special", AfterUnmount, "variants/special/after-unmount/x!"},
	}
	for _, c := range cases {
		all, err := ListAll(dir, c.variant)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(told(dir, In(all, c.phase)), " "); got != c.want {
			t.Errorf("variant %q, phase %s:\n%s, want\n%s", c.variant, c.phase, got, c.want)
		}
		for _, h := range all {
			if wants := strings.Contains(h.Path, "/variants/"); wants != (h.Variant != "") || wants && h.Variant != c.variant {
				t.Errorf("%s is said to be of the variant %q", h.Path, h.Variant)
			}
		}
	}
	all, _ := ListAll(dir, "special")
	order := []Phase{}
	for _, h := range all {
		order = append(order, h.Phase)
	}
	if !slices.Equal(slices.Compact(order), Phases) {
		t.Errorf("the phases come as %v", order)
	}
}

// A site may have had a hook with the name that is now that of a directory.
func TestClassicHookNamedAsAPhase(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, "before-mount", "after-unmount", "a", "variants")
	all, err := ListAll(dir, "v")
	if got := strings.Join(told(dir, all), " "); err != nil || got != "a after-unmount before-mount variants" {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestListAllRefuses(t *testing.T) {
	for name, break_ := range map[string]func(dir string){
		"CUSTOMIZE_DIR is a file": func(dir string) { write(t, dir, "hooks", "", 0o644) },
		"dangling link":           func(dir string) { fill(t, dir, "hooks/a"); os.Symlink("gone", dir+"/hooks/b") },
		"dangling link in a phase": func(dir string) {
			fill(t, dir, "hooks/before-mount/a")
			os.Symlink("gone", dir+"/hooks/before-mount/b")
		},
		"dangling link in a variant": func(dir string) {
			fill(t, dir, "hooks/variants/v/a")
			os.Symlink("gone", dir+"/hooks/variants/v/b")
		},
		"the variant is a file": func(dir string) { fill(t, dir, "hooks/variants/v") },
		"a loop of links":       func(dir string) { os.Symlink("hooks", dir+"/hooks") },
	} {
		dir := t.TempDir()
		break_(dir)
		if all, err := ListAll(dir+"/hooks", "v"); err == nil || !strings.Contains(err.Error(), "hook") {
			t.Errorf("%s: %v, %v", name, all, err)
		}
	}
	for _, variant := range []string{"../x", "a/b", "/", "..", ".", ".hidden"} {
		if _, err := ListAll(t.TempDir(), variant); err == nil {
			t.Errorf("took the variant %q", variant)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	self, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(self)
	f.Add([]byte("7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 0 0"))
	f.Add([]byte("7 )("))
	f.Add([]byte("7 (x) Z 1"))
	f.Fuzz(func(t *testing.T, stat []byte) {
		if p, ok := parseStat(7, stat); ok && strings.ContainsAny(p.name, "\n\x1b\x00") {
			t.Errorf("the name %q", p.name)
		}
	})
}

func TestParseStat(t *testing.T) {
	p, ok := parseStat(7, []byte("7 (a) b\n) Z 42 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 0 0"))
	if !ok || p != (process{pid: 7, parent: 42, name: "a) b?", started: 12345, zombie: true}) {
		t.Errorf("got %+v, %v", p, ok)
	}
}
