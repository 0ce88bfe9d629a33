// Package hook runs the site's customisation hooks: the programs in
// CUSTOMIZE_DIR that are executable and whose names run-parts(8) would take,
// in its order, in three phases, and others for a variant.
//
// Left out: what the hooks this project brings do to a guest (that is package
// osscript), and hooks of the guest, which are never run.
package hook

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// Phase is when a hook runs. Its value is the directory, below CUSTOMIZE_DIR,
// of its hooks.
type Phase string

// The phases, in the order they come in.
const (
	BeforeMount  Phase = "before-mount"  // the disk has the system, nothing is mounted
	AfterMount   Phase = "."             // the guest is mounted: the classic hooks
	AfterUnmount Phase = "after-unmount" // all is unmounted again
)

// Phases are all of them, in the order they come in.
var Phases = []Phase{BeforeMount, AfterMount, AfterUnmount}

// variantsDir holds a directory for each variant with hooks of its own.
const variantsDir = "variants"

// Hook is one program in a hook directory.
type Hook struct {
	Name    string
	Path    string
	Enabled bool // any execute bit is set: run-parts would run it
	Ours    bool // it only calls this program, with "hook NAME"
	Phase   Phase
	Variant string   // the variant it is only for; "" for one of every variant
	Args    []string // what it is run with; ListAll says none
}

// names is run-parts(8)'s rule for names in its default mode.
var names = regexp.MustCompile(`^[a-zA-Z0-9_-]+$`)

// ListAll returns the hooks of all phases as they are for a variant, in the
// order they run in, enabled or not. A hook in the variant's own directory,
// DIR/variants/VARIANT, joins those of DIR, or takes the place of the one there
// of the same phase and name, also one that is not enabled. Without a variant
// there are those of DIR alone.
//
// A directory that is not there holds no hooks. Other names than those
// run-parts(8) takes, and what is not a regular file, are left out; a link whose
// file is missing is an error, since a site meant it to run.
func ListAll(dir, variant string) ([]Hook, error) {
	if strings.Contains(variant, "/") || strings.HasPrefix(variant, ".") {
		return nil, fmt.Errorf("cannot look for the hooks of the variant %q: that is no name of a directory", variant)
	}
	own := filepath.Join(dir, variantsDir)
	if info, err := os.Stat(own); err != nil || !info.IsDir() {
		variant = "" // there may be a classic hook of this name
	}
	var all []Hook
	for _, phase := range Phases {
		hooks, err := list(filepath.Join(dir, string(phase)), phase, "")
		if err != nil {
			return nil, err
		}
		if variant != "" {
			others, err := list(filepath.Join(own, variant, string(phase)), phase, variant)
			if err != nil {
				return nil, err
			}
			hooks = override(hooks, others)
		}
		all = append(all, hooks...)
	}
	return all, nil
}

// override puts the hooks of a variant among the common ones.
func override(common, own []Hook) []Hook {
	hooks := slices.DeleteFunc(common, func(h Hook) bool {
		return slices.ContainsFunc(own, func(o Hook) bool { return o.Name == h.Name })
	})
	hooks = append(hooks, own...)
	slices.SortFunc(hooks, func(a, b Hook) int { return cmp.Compare(a.Name, b.Name) }) // by bytes
	return hooks
}

// In returns those of the hooks that are of a phase.
func In(hooks []Hook, phase Phase) []Hook {
	return slices.DeleteFunc(slices.Clone(hooks), func(h Hook) bool { return h.Phase != phase })
}

// list returns the hooks of one directory.
func list(dir string, phase Phase, variant string) ([]Hook, error) {
	entries, err := os.ReadDir(dir) // sorted by bytes, as run-parts sorts in the C locale
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) && filepath.Base(dir) == string(phase) {
		return nil, nil // a classic hook may have the name of a phase
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the hook directory (CUSTOMIZE_DIR): %w", err)
	}
	var hooks []Hook
	for _, entry := range entries {
		if !names.MatchString(entry.Name()) {
			continue
		}
		path := filepath.Join(dir, entry.Name())
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("cannot use the hook %s: %w", path, err)
		}
		if info.Mode().IsRegular() {
			hooks = append(hooks, Hook{Name: entry.Name(), Path: path, Enabled: info.Mode()&0o111 != 0,
				Ours: isLauncher(path, entry.Name()), Phase: phase, Variant: variant})
		}
	}
	return hooks, nil
}

// Enabled returns those of the hooks that are enabled.
func Enabled(hooks []Hook) []Hook {
	var enabled []Hook
	for _, h := range hooks {
		if h.Enabled {
			enabled = append(enabled, h)
		}
	}
	return enabled
}

// launcherLimit is more than any launcher of ours needs, in bytes.
const launcherLimit = 8 << 10

// isLauncher tells whether the script at path does nothing but hand over to
// this program: besides comments it is the one line
//
//	exec .../instance-image hook NAME "$@"
func isLauncher(path, name string) bool {
	info, err := os.Stat(path)
	if err != nil || info.Size() > launcherLimit {
		return false
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	var commands []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			commands = append(commands, line)
		}
	}
	if len(commands) != 1 {
		return false
	}
	words := strings.Fields(commands[0])
	return len(words) == 5 && words[0] == "exec" && isThisProgram(words[1]) &&
		words[2] == "hook" && words[3] == name && words[4] == `"$@"`
}

func isThisProgram(path string) bool {
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return false
	}
	other, err := os.Stat(path)
	return err == nil && os.SameFile(self, other)
}

// SetEnabled switches a hook on or off by its mode, as administrators and
// configuration management do: 0755 or 0644.
func SetEnabled(h Hook, enabled bool) error {
	mode := os.FileMode(0o644)
	if enabled {
		mode = 0o755
	}
	if err := os.Chmod(h.Path, mode); err != nil {
		return fmt.Errorf("cannot switch the hook %s: %w", h.Name, err)
	}
	return nil
}
