package chroot

import (
	"bytes"
	"regexp"
	"strings"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/size"
)

// Initramfs finds the command by which a guest builds the initramfs of all its
// kernels anew, for any machine and not for the one it is built on. It goes by
// the guest's files alone. why says, in words for the log, how it was found, or
// where ok is false why there is none.
func Initramfs(root *guest.Root) (argv []string, why string, ok bool) {
	for _, tool := range tools {
		program := find(root, tool.name)
		if program == "" || tool.needs != "" && find(root, tool.needs) == "" {
			continue
		}
		argv, obstacle := tool.command(root, program)
		if obstacle != "" {
			return nil, obstacle, false
		}
		return argv, "the guest has " + program, true
	}
	return nil, "the guest has none of update-initramfs, mkinitcpio, mkinitfs and dracut", false
}

// tools are in this order because dracut can be installed besides the
// distribution's own, which then is a wrapper for it or the one in use.
var tools = []struct {
	name, needs string // both in a directory of programs; needs may be empty
	command     func(root *guest.Root, program string) (argv []string, obstacle string)
}{
	{"update-initramfs", "mkinitramfs", updateInitramfs},
	{"mkinitcpio", "", mkinitcpio},
	{"mkinitfs", "", mkinitfs},
	{"dracut", "", dracut},
}

// find returns the path of a program in the guest, or nothing.
func find(root *guest.Root, name string) string {
	for _, dir := range []string{"/usr/sbin/", "/usr/bin/", "/sbin/", "/bin/"} {
		if info, err := root.Stat(dir + name); err == nil && info.IsRegular() && info.Mode&0o111 != 0 {
			return dir + name
		}
	}
	return ""
}

func updateInitramfs(_ *guest.Root, program string) ([]string, string) {
	return []string{program, "-u", "-k", "all"}, ""
}

// textLimit is more than any script or configuration file read here has.
const textLimit = 1 * size.MiB

// dracut needs a version that builds for all kernels: that of RHEL 6 does not.
func dracut(root *guest.Root, program string) ([]string, string) {
	text, err := root.ReadFile(program, textLimit)
	if err != nil || !bytes.Contains(text, []byte("--regenerate-all")) {
		return nil, program + " of the guest has no --regenerate-all"
	}
	return []string{program, "-f", "--regenerate-all", "--no-hostonly"}, ""
}

// autodetect matches the hook in mkinitcpio.conf(5) by which an initramfs holds
// only what the machine has that it is built on.
var autodetect = regexp.MustCompile(`(?m)^\s*HOOKS\+?=.*\bautodetect\b`)

func mkinitcpio(root *guest.Root, program string) ([]string, string) {
	for _, file := range append([]string{"/etc/mkinitcpio.conf"}, root.Glob("/etc/mkinitcpio.conf.d/*.conf")...) {
		if text, err := root.ReadFile(file, textLimit); err == nil && autodetect.Match(text) {
			return nil, file + " of the guest has the hook autodetect, which would fit the initramfs to this node; take it out of HOOKS in the image"
		}
	}
	return []string{program, "-P"}, ""
}

// maxKernels is how many kernels mkinitfs is called for at most.
const maxKernels = 16

// version is what a kernel's release or flavor may be made of, as it becomes an
// argument and part of a path.
var version = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._+-]*$`)

// mkinitfs builds for one kernel at a time. Alpine's packages say in
// /usr/share/kernel/FLAVOR/kernel.release which there are, and its boot loaders
// know the files by the flavor.
func mkinitfs(root *guest.Root, program string) ([]string, string) {
	var jobs []string
	for _, file := range root.Glob("/usr/share/kernel/*/kernel.release") {
		flavor := strings.Split(file, "/")[4]
		text, err := root.ReadFile(file, textLimit)
		release := strings.TrimSpace(string(text))
		if err != nil || !version.MatchString(flavor) || !version.MatchString(release) || !root.Exists("/lib/modules/"+release) {
			continue
		}
		jobs = append(jobs, "/boot/initramfs-"+flavor, release)
	}
	switch {
	case len(jobs) == 0:
		return nil, "no /usr/share/kernel/FLAVOR/kernel.release of the guest names a kernel that is there"
	case len(jobs) > 2*maxKernels:
		return nil, "the guest has too many kernels for mkinitfs"
	case len(jobs) == 2:
		return []string{program, "-o", jobs[0], jobs[1]}, ""
	}
	const each = `while [ $# -gt 0 ]; do "$0" -o "$1" "$2" || exit; shift 2; done`
	return append([]string{"/bin/sh", "-c", each, program}, jobs...), ""
}
