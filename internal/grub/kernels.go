package grub

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/size"
)

// Kernel is a kernel in the guest's /boot.
type Kernel struct {
	Path    string   // in the guest: "/boot/vmlinuz-6.1.0-26-amd64"
	Version string   // what its file's name says; may be empty
	Initrds []string // the paths of its initial RAM disk, after microcode; none: it has none
	Rescue  bool     // for rescue or for crash dumps
}

// maxKernels is how many kernels are looked at.
const maxKernels = 256

// kernelNames are what kernels' files are called before their version.
var kernelNames = []string{"vmlinuz-", "vmlinux-", "kernel-", "bzImage-", "vmlinuz", "bzImage"}

// initrdNames are what the initial RAM disk of a version is called.
var initrdNames = []string{"initrd.img-*", "initramfs-*.img", "initramfs-*", "initrd-*", "initrd-*.img"}

// bareInitrds are those of a kernel without a version in its name.
var bareInitrds = []string{"initrd.img", "initramfs.img", "initramfs", "initrd"}

// microcode is loaded before the initial RAM disk.
var microcode = []string{"intel-ucode.img", "amd-ucode.img", "intel-uc.img", "amd-uc.img"}

// Kernels lists what /boot holds, the newest version first, kernels for rescue
// and for crash dumps last. A guest without /boot has none.
func Kernels(root *guest.Root) ([]Kernel, error) {
	if !root.Exists("/boot") {
		return nil, nil
	}
	names, err := root.ReadDir("/boot")
	if err != nil {
		return nil, err
	}
	var found []Kernel
	for _, name := range names {
		version, ok := kernelVersion(name)
		if !ok || len(found) == maxKernels || !isKernelFile(root, name, names) {
			continue
		}
		found = append(found, Kernel{
			Path: "/boot/" + name, Version: version, Initrds: initrds(name, version, names),
			Rescue: strings.Contains(name, "rescue") || strings.Contains(name, "kdump"),
		})
	}
	slices.SortStableFunc(found, func(a, b Kernel) int {
		return cmp.Or(compareBool(a.Rescue, b.Rescue), -compareVersions(a.Version, b.Version), cmp.Compare(a.Path, b.Path))
	})
	return found, nil
}

// kernelVersion tells whether a name is a kernel's, and the version in it.
func kernelVersion(name string) (string, bool) {
	if !isPlainPath("/"+name) || slices.Contains([]string{".gz", ".xz", ".zst", ".sig", ".hmac", ".img", ".efi"}, path.Ext(name)) {
		return "", false
	}
	for _, kind := range kernelNames {
		version, ok := strings.CutPrefix(name, kind)
		if ok && (version != "" == strings.HasSuffix(kind, "-") || version == ".old") {
			return version, true
		}
	}
	return "", false
}

// isKernelFile tells whether it is a file that a boot loader can read and that
// is not listed under another name.
func isKernelFile(root *guest.Root, name string, names []string) bool {
	info, err := root.Stat("/boot/" + name)
	if err != nil || !info.IsRegular() {
		return false
	}
	if version, ok := strings.CutPrefix(name, "vmlinux-"); ok && slices.Contains(names, "vmlinuz-"+version) {
		return false // the same one for debuggers
	}
	target, err := root.Readlink("/boot/" + name)
	if err != nil {
		return true
	}
	_, isKernel := kernelVersion(path.Base(target))
	beside := path.Join("/boot", target)
	if path.IsAbs(target) {
		beside = path.Clean(target)
	}
	if path.Dir(beside) != "/boot" {
		return true
	}
	return !isKernel || !slices.Contains(names, path.Base(target))
}

// maxKernelFile bounds what is copied in the place of a link.
const maxKernelFile = 256 * size.MiB

// copyLinked makes kernels and initial RAM disks files of the file system that
// /boot is, where they are links to another, as in openSUSE: GRUB follows no
// link from one to another.
func (e *editor) copyLinked() error {
	if !e.tree.Exists("/boot") {
		return nil
	}
	names, err := e.tree.ReadDir("/boot")
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		_, isKernel := kernelVersion(name)
		_, err := e.tree.Readlink("/boot/" + name)
		return err != nil || !isKernel && !strings.HasPrefix(name, "initr") && !slices.Contains(microcode, name)
	})
	for _, name := range names[:min(len(names), maxKernels)] {
		if err := e.copyLink("/boot/" + name); err != nil {
			return fmt.Errorf("cannot put what a link leads to in the place of %s: %w", printable("/boot/"+name), err)
		}
	}
	return nil
}

func (e *editor) copyLink(name string) error {
	target, err := e.tree.Readlink(name)
	if err != nil {
		return nil // it is none
	}
	if !path.IsAbs(target) {
		target = path.Join("/boot", target)
	}
	target = path.Clean(target)
	info, err := e.tree.Stat(name)
	if err != nil || !info.IsRegular() || strings.HasPrefix(target, "/boot/") {
		return nil
	}
	if info.Size > maxKernelFile {
		e.changes = append(e.changes, fmt.Sprintf("left %s as it is: a link to %v, of which up to %v are copied", printable(name), info.Size, maxKernelFile))
		return nil
	}
	content, err := e.tree.ReadFile(name, maxKernelFile)
	if err != nil {
		return err
	}
	part := name + ".new"
	if err := e.tree.Remove(part); err != nil {
		return err
	}
	if err := e.tree.WriteFile(part, content, info.Mode.Perm()); err != nil {
		return err
	}
	e.changes = append(e.changes, fmt.Sprintf("copied %s to %s, which was a link to it", printable(target), printable(name)))
	return e.tree.Rename(part, name)
}

func initrds(name, version string, names []string) []string {
	candidates := bareInitrds
	if version != "" && version != ".old" {
		candidates = nil
		for _, pattern := range initrdNames {
			candidates = append(candidates, strings.Replace(pattern, "*", version, 1))
		}
	}
	i := slices.IndexFunc(candidates, func(c string) bool { return c != name && slices.Contains(names, c) })
	if i < 0 {
		return nil
	}
	var found []string
	for _, m := range append(slices.Clone(microcode), candidates[i]) {
		if slices.Contains(names, m) {
			found = append(found, "/boot/"+m)
		}
	}
	return found
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// compareVersions orders versions as dpkg and rpm do: digits count as numbers,
// "~" comes before the end. Release candidates come before the release, and the
// copy that an installation calls ".old" before what it was copied from. Names
// without any digit, as Arch's "linux" and "linux-lts", are in the alphabet's
// order, the first being the newest.
func compareVersions(a, b string) int {
	if !strings.ContainsAny(a+b, "0123456789") {
		return -cmp.Compare(a, b)
	}
	cleanA, oldA := strings.CutSuffix(a, ".old")
	cleanB, oldB := strings.CutSuffix(b, ".old")
	return cmp.Or(naturally(candidate(cleanA), candidate(cleanB)), -compareBool(oldA, oldB), cmp.Compare(a, b))
}

func candidate(version string) string {
	return strings.NewReplacer("-rc", "~rc", "_rc", "~rc", "-pre", "~pre").Replace(version)
}

// naturally compares texts of digits and others in turn.
func naturally(a, b string) int {
	for a != "" || b != "" {
		var restA, restB string
		restA, a = span(a, false)
		restB, b = span(b, false)
		if c := compareText(restA, restB); c != 0 {
			return c
		}
		restA, a = span(a, true)
		restB, b = span(b, true)
		restA, restB = strings.TrimLeft(restA, "0"), strings.TrimLeft(restB, "0")
		if c := cmp.Or(cmp.Compare(len(restA), len(restB)), cmp.Compare(restA, restB)); c != 0 {
			return c
		}
	}
	return 0
}

// span cuts off the digits, or the others, at the beginning of a text.
func span(text string, digits bool) (head, rest string) {
	end := strings.IndexFunc(text, func(r rune) bool { return (r >= '0' && r <= '9') != digits })
	if end < 0 {
		return text, ""
	}
	return text[:end], text[end:]
}

// compareText is the order of Debian Policy, 5.6.12: "~" before the end, the end
// before all else, letters before other characters.
func compareText(a, b string) int {
	weight := func(text string, i int) int {
		switch {
		case i >= len(text):
			return 0
		case text[i] == '~':
			return -1
		case text[i]|0x20 >= 'a' && text[i]|0x20 <= 'z':
			return int(text[i])
		}
		return int(text[i]) + 256
	}
	for i := range max(len(a), len(b)) {
		if c := cmp.Compare(weight(a, i), weight(b, i)); c != 0 {
			return c
		}
	}
	return 0
}
