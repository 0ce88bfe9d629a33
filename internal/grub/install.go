package grub

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/size"
)

// ErrNoLoader is wrapped by the error for a guest that brings no boot loader
// which can be installed on its disk.
var ErrNoLoader = errors.New("no boot loader can be installed")

const (
	maxModuleFiles = 2000
	maxModuleBytes = 64 * size.MiB
)

// unfit is why a way to boot was not installed although nothing failed.
type unfit string

func (u unfit) Error() string { return string(u) }

// quiet is for one that goes without saying where the disk boots otherwise.
type quiet struct{ error }

func (q quiet) Unwrap() error { return q.error }

// ways are the kinds of firmware, and what makes a disk boot under each.
var ways = []struct {
	firmware string
	install  func(context.Context, Target, *facts) ([]string, error)
}{{"BIOS", installBIOS}, {"UEFI", installEFI}}

// Install edits the guest's configuration, as Configure does, and writes the
// guest's own boot loaders to its disk: for BIOS where there is room for GRUB,
// for UEFI where there is an EFI system partition. That must hold an empty FAT
// file system, which FormatESP makes, and must not be mounted. It returns what
// was done, a line each, and which way of booting there is not, with the reason.
//
// With an external kernel, and under xen-pvm, whose loader runs outside, only
// the configuration is edited. The error wraps ErrNoKernel or ErrNoLoader where
// the guest has nothing to boot.
func Install(ctx context.Context, t Target) (changes []string, err error) {
	f, err := gather(t)
	if err != nil {
		return nil, err
	}
	changes, err = configure(t, f)
	if err != nil || t.External || t.Hypervisor == "xen-pvm" || t.Disk == nil {
		return changes, err
	}
	var missing, said []string
	installed := false
	for _, way := range ways {
		lines, err := way.install(ctx, t, f)
		if why := unfit(""); errors.As(err, &why) {
			line := fmt.Sprintf("it does not boot by %s: %s", way.firmware, err)
			missing = append(missing, line)
			if !errors.As(err, &quiet{}) {
				said = append(said, line)
			}
			continue
		}
		if err != nil {
			return changes, fmt.Errorf("cannot install the boot loader for %s: %w", way.firmware, err)
		}
		installed = true
		changes = append(changes, lines...)
	}
	if !installed {
		return changes, noLoader(f.loaders, missing)
	}
	return append(changes, said...), nil
}

func noLoader(l Loaders, missing []string) error {
	if l.Extlinux && !l.BIOS && !l.EFI {
		missing = append(missing, "the guest has extlinux, which is not supported: install GRUB in it")
	}
	return fmt.Errorf("%w: %s", ErrNoLoader, strings.Join(missing, "; "))
}

// grubDirectory is the directory of GRUB's files: the one that has the
// configuration, else by its name or that of its programs, else by the
// distribution.
func grubDirectory(root *guest.Root) string {
	const grub, grub2 = "/boot/grub", "/boot/grub2"
	for _, dir := range []string{grub2, grub} {
		if info, err := root.Stat(dir + "/grub.cfg"); err == nil && info.Size > 0 {
			return dir
		}
	}
	if slices.ContainsFunc([]string{grub2, "/usr/sbin/grub2-install", "/usr/sbin/grub2-mkconfig", "/usr/bin/grub2-mkconfig"}, root.Exists) {
		return grub2
	}
	if !root.Exists(grub) && slices.Contains([]guest.Family{guest.RHEL, guest.Fedora, guest.SUSE}, root.Distro().Family) {
		return grub2
	}
	return grub
}

// copyModules makes a directory in /boot hold the modules of another, of one
// version: modules that the other has not are removed.
func copyModules(from moduleDir, root *guest.Root, to string) ([]string, error) {
	if !from.node && from.path == to {
		return nil, nil
	}
	names, err := from.root.ReadDir(from.path)
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !isModule(name) })
	if len(names) > maxModuleFiles {
		return nil, fmt.Errorf("%s holds %d modules; up to %d are copied", from, len(names), maxModuleFiles)
	}
	if err := root.MkdirAll(to, 0o755); err != nil {
		return nil, err
	}
	if err := removeModules(root, to, names); err != nil {
		return nil, err
	}
	total := size.Bytes(0)
	for _, name := range names {
		content, err := from.read(name)
		if err != nil {
			return nil, err
		}
		if total += size.Bytes(len(content)); total > maxModuleBytes {
			return nil, fmt.Errorf("the modules in %s have more than %v", from, maxModuleBytes)
		}
		if err := root.WriteFile(to+"/"+name, content, 0o644); err != nil {
			return nil, err
		}
	}
	return []string{fmt.Sprintf("copied %d of GRUB's modules to %s", len(names), to)}, nil
}

func isModule(name string) bool {
	return espName.MatchString(name) && slices.Contains([]string{".mod", ".lst"}, path.Ext(name))
}

// removeModules removes modules that are not to stay.
func removeModules(root *guest.Root, dir string, stay []string) error {
	names, err := root.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, found := slices.BinarySearch(stay, name); isModule(name) && !found {
			if err := root.Remove(dir + "/" + name); err != nil {
				return err
			}
		}
	}
	return nil
}
