package grub

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/layout"
)

// facts are what the texts of a configuration are made to say.
type facts struct {
	root, boot Filesystem // boot is the one that holds /boot
	separate   bool       // they are two
	prefix     string     // where on boot the guest's /boot is: "/boot", or "" where it is the whole
	subvol     string     // btrfs: the subvolume that is the root, as "@"; "" for the top
	partmap    string     // GRUB's module for the partition table: "part_gpt"; "" for none
	rootPart   string     // GRUB's name for the partition: "gpt3"; "" where there is no table
	bootPart   string
	plainRoot  bool // it is a partition, or the whole disk, and no logical volume
	plainBoot  bool
	bios, efi  bool   // the disk will boot by it, as far as is known before
	grub       string // the directory of GRUB's files: "/boot/grub2"
	loaders    Loaders
	args       []string
	serial     Serial
	hypervisor string
	has        func(name string) bool // whether the guest has a file
}

// gather finds the facts of a target.
func gather(t Target) (*facts, error) {
	f := &facts{
		root: t.RootFS, boot: t.RootFS, prefix: "/boot",
		args: t.KernelArgs, serial: t.Serial, hypervisor: t.Hypervisor,
		has: t.Root.Exists, grub: grubDirectory(t.Root), loaders: FindLoaders(t.Root),
	}
	if t.BootFS != (Filesystem{}) {
		f.boot, f.separate, f.prefix = t.BootFS, true, ""
	}
	if err := f.check(); err != nil {
		return nil, err
	}
	if t.Table != nil {
		f.partmap = map[layout.Kind]string{layout.GPT: "part_gpt", layout.MBR: "part_msdos"}[t.Table.Kind]
	}
	_, _, noRoom := coreRoom(t.Table)
	_, hasESP := findESP(t.Table)
	f.bios, f.efi = noRoom == nil, hasESP && f.loaders.EFI
	f.rootPart, f.plainRoot = partition(t.Table, f.root)
	f.bootPart, f.plainBoot = partition(t.Table, f.boot)
	if f.root.Kind == filesystem.Btrfs {
		f.subvol = strings.Trim(subvolume(t.Root, "/"), "/")
	}
	switch {
	case f.separate && f.boot.Kind == filesystem.Btrfs:
		f.prefix = strings.TrimRight(subvolume(t.Root, "/boot"), "/")
	case !f.separate && f.subvol != "":
		f.prefix = "/" + f.subvol + "/boot"
	}
	return f, nil
}

// check refuses what would end a line or a word of the files it is written to.
func (f *facts) check() error {
	for _, fs := range []Filesystem{f.root, f.boot} {
		if strings.Trim(fs.UUID+fs.PartUUID, "0123456789abcdefABCDEF-") != "" {
			return fmt.Errorf("cannot configure the boot loader: %q is no identifier of a file system", fs.UUID+" "+fs.PartUUID)
		}
	}
	if err := CheckArgs(f.args); err != nil {
		return fmt.Errorf("cannot configure the boot loader: %w", err)
	}
	if f.serial.Speed < 0 || strings.Trim(f.serial.Device, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") != "" {
		return fmt.Errorf("cannot configure the boot loader: %q at %d is no serial console", f.serial.Device, f.serial.Speed)
	}
	return nil
}

// The types of partitions that hold logical volumes.
var volumeTypes = map[string]bool{"8e": true, "E6D6D379-F507-44C2-A23C-238F2A3DF928": true}

// partition returns GRUB's name for the partition of a file system, and whether
// the file system is right on it.
func partition(table *layout.Table, fs Filesystem) (name string, plain bool) {
	if table == nil {
		return "", true
	}
	scheme := "gpt"
	if table.Kind == layout.MBR {
		scheme = "msdos"
	}
	if p, ok := table.Find(fs.Number); ok && !volumeTypes[p.Type] {
		return scheme + strconv.Itoa(p.Number), true
	}
	return "", false
}

// subvolume returns which subvolume of its btrfs file system is mounted at a
// directory of the guest, as "/@"; "/" for the top and where it is not known.
func subvolume(root *guest.Root, dir string) string {
	d, err := root.OpenDir(dir)
	if err != nil {
		return "/"
	}
	defer d.Close()
	var stat unix.Statx_t
	err = unix.Statx(int(d.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &stat)
	if err != nil || stat.Mask&unix.STATX_MNT_ID == 0 || stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return "/"
	}
	mounts, err := mountinfo.GetMounts(func(info *mountinfo.Info) (skip, stop bool) {
		return uint64(info.ID) != stat.Mnt_id || info.FSType != "btrfs", false
	})
	if err != nil || len(mounts) != 1 || !isPlainPath(mounts[0].Root) {
		return "/"
	}
	return path.Clean(mounts[0].Root)
}

// isPlainPath tells whether a path may stand in any of the files without quotes.
func isPlainPath(name string) bool {
	return strings.HasPrefix(name, "/") && !strings.ContainsFunc(name, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._@%+=:,^~-", r)
	})
}

// bootPath returns the path by which a boot loader finds what old names. It
// may begin with a device in parentheses, which stays.
func (f *facts) bootPath(old string) string {
	device := ""
	if i := strings.IndexByte(old, ')'); strings.HasPrefix(old, "(") && i > 0 {
		device, old = old[:i+1], old[i+1:]
	}
	return device + f.pathOnBoot(old)
}

func (f *facts) pathOnBoot(old string) string {
	if !strings.HasPrefix(old, "/") || strings.Contains(old, "$") {
		return old
	}
	above, name, below := cutBoot(old)
	switch {
	case !below && f.has("/boot"+old) && (f.separate || !f.has(old)):
		return f.prefix + old
	case !below:
		return old
	case f.isAbove(above):
		return old
	case f.separate && f.has("/boot"+old) && !f.has("/boot"+name):
		return old
	}
	return f.prefix + name
}

// cutBoot cuts a path behind its last directory "boot".
func cutBoot(name string) (above, rest string, ok bool) {
	i := strings.LastIndex(name, "/boot/")
	if i < 0 {
		return "", name, false
	}
	return name[:i], name[i+len("/boot"):], true
}

// isAbove tells whether the directory before "/boot" is one by which /boot is
// found. On btrfs GRUB also begins at the default subvolume, as SUSE has it.
func (f *facts) isAbove(dir string) bool {
	if f.separate {
		return dir+"/boot" == f.prefix
	}
	return dir+"/boot" == f.prefix || dir == "" && f.subvol != ""
}

// grubModule is GRUB's module for a kind of file system, "" where it has none.
func grubModule(kind filesystem.Kind) string {
	return map[filesystem.Kind]string{
		filesystem.Ext2: "ext2", filesystem.Ext3: "ext2", filesystem.Ext4: "ext2", filesystem.XFS: "xfs",
		filesystem.Btrfs: "btrfs", filesystem.VFAT: "fat", filesystem.F2FS: "f2fs",
	}[kind]
}

// ErrNoKernel is wrapped by the error for a guest that has no kernel to boot.
var ErrNoKernel = errors.New("the guest has no kernel")
