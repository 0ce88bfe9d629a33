package mount

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/lvm"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/undo"
)

// Part is a piece of the disk that holds a file system.
type Part struct {
	layout.Partition // the whole disk, with number 0, where there is no table
	Info             filesystem.Info
	Group, Volume    string // of a logical volume, whose place and length Partition has; else empty
	Device           string // the loop device over it; "" until it is attached
	mounted, warned  bool
}

// Tree is a guest's file systems, mounted as the guest itself would mount them.
type Tree struct {
	Dir  string // where the root is mounted
	Root *guest.Root
	// RootPart and BootPart are the partitions of / and /boot. BootPart is
	// nil where /boot is a directory of the root file system.
	RootPart, BootPart *Part

	disk   Disk
	table  *layout.Table
	parts  []*Part
	mounts []Mount
	left   []string
	// elsewhere are the mount points of file systems that were not found here.
	elsewhere []string
	// beside are pieces of other disks, which are mounted too.
	beside []*Part
	flags  uintptr
	leave  string
	// readOnly keeps every byte of the disk as it is.
	readOnly bool
	steps    *undo.Stack
}

// Disk is what a tree is on: a block.Device, or a block.Source that is mounted
// read-only.
type Disk interface {
	io.ReaderAt
	Path() string
	Size() size.Bytes
}

// Mount is a file system of the guest's that is mounted.
type Mount struct {
	At         string // where the guest has it
	Part       *Part
	Unreplayed string // why its files may not be as they were, where it is mounted read-only; else empty
}

// Mounts are the tree's file systems, in the order in which they were mounted,
// the root first.
func (t *Tree) Mounts() []Mount { return t.mounts }

// Left are the mount points of file systems of this disk that could not be
// mounted. Where a part of the disk cannot be looked into, those that were not
// found may be in it, and count.
func (t *Tree) Left() []string {
	if len(t.elsewhere) > 0 && len(t.unseen()) > 0 {
		return slices.Concat(t.left, t.elsewhere)
	}
	return t.left
}

// Options are choices for a whole tree.
type Options struct {
	// Trusted lets device nodes and set-id programs of the guest act, for a
	// site's own hooks that chroot into it.
	Trusted bool
	// Leave is a mount point whose file system stays unmounted, since something
	// else than the kernel writes to it.
	Leave string
	// Dir is where the root is mounted, instead of a directory below RunDir.
	Dir string
	// ReadOnly keeps every byte of the disk as it is: no journal is replayed.
	ReadOnly bool
}

// ErrNoRoot says that no file system of the disk is the root of a Linux system.
var ErrNoRoot = errors.New("the disk has no root file system of a Linux system")

// Open finds the root file system of the disk, mounts it and what its fstab
// names on the same disk below RunDir, and pushes the reverse of each step to
// steps. The table is the disk's; nil means a file system without one. The
// root is looked for from the last partition by position to the first, since
// it is the last one on almost every cloud image. Where every file system could
// be looked at and none is a root, the error wraps ErrNoRoot.
func Open(ctx context.Context, disk Disk, table *layout.Table, options Options, steps *undo.Stack) (*Tree, error) {
	t, err := open(ctx, disk, table, options, steps)
	if err != nil {
		return nil, err
	}
	if err := t.openRoot(); err != nil {
		return nil, err
	}
	return t, t.mountFSTab(ctx)
}

// FindRoot tells where the root file system is. Nothing is left mounted.
func FindRoot(ctx context.Context, disk Disk, table *layout.Table) (part *Part, err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	t, err := open(ctx, disk, table, Options{}, &steps)
	if err != nil {
		return nil, err
	}
	return t.RootPart, nil
}

// open mounts the root file system alone.
func open(ctx context.Context, disk Disk, table *layout.Table, options Options, steps *undo.Stack) (*Tree, error) {
	t, err := prepare(disk, table, options, steps)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(t.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the mount point: %w", err)
	}
	return t, t.findRoot(ctx)
}

// prepare finds out what the disk holds, and mounts nothing.
func prepare(disk Disk, table *layout.Table, options Options, steps *undo.Stack) (*Tree, error) {
	t := &Tree{Dir: cmp.Or(options.Dir, filepath.Join(RunDir, "target")), disk: disk, table: table, flags: unix.MS_NOATIME,
		leave: options.Leave, readOnly: options.ReadOnly, steps: steps}
	if !options.Trusted {
		t.flags |= unix.MS_NOSUID | unix.MS_NODEV
	}
	if options.ReadOnly {
		t.flags |= unix.MS_RDONLY
	}
	return t, t.probe()
}

// probe finds out what each partition holds.
func (t *Tree) probe() error {
	for _, p := range t.partitions() {
		if p.Extended {
			continue // what it holds shows through, at other offsets
		}
		part, err := t.probePart(p)
		if err != nil {
			return err
		}
		t.parts = append(t.parts, part)
		if part.Info.Kind != filesystem.LVM2 {
			continue
		}
		if err := t.probeVolumes(p); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tree) probePart(p layout.Partition) (*Part, error) {
	info, err := filesystem.Probe(io.NewSectionReader(t.disk, int64(p.Start), int64(p.Length)), p.Length)
	if err != nil {
		return nil, fmt.Errorf("cannot tell what partition %d holds: %w", p.Number, err)
	}
	return &Part{Partition: p, Info: info}, nil
}

// probeVolumes adds the logical volumes of a physical one, as far as each is one
// stretch of the disk: such a volume is reached as a partition is. Nothing is
// activated, so that volume groups of the node, or of another instance of the
// same image, are never confused with it.
func (t *Tree) probeVolumes(p layout.Partition) error {
	group, err := lvm.Read(io.NewSectionReader(t.disk, int64(p.Start), int64(p.Length)), p.Length)
	if err != nil {
		slog.Warn("cannot look into the physical volume", "partition", p.Number, "cause", err)
		return nil
	}
	for _, v := range group.Volumes {
		segment, ok := v.Linear()
		if !ok {
			slog.Warn("cannot look into the logical volume", "volume", group.Name+"/"+v.Name, "cause", cmp.Or(v.Why, "it is in several pieces"))
			continue
		}
		part, err := t.probePart(layout.Partition{Number: p.Number, Start: p.Start + segment.Start, Length: segment.Length})
		if err != nil {
			return err
		}
		part.Group, part.Volume = group.Name, v.Name
		t.parts = append(t.parts, part)
	}
	return nil
}

// partitions returns those of the table, or the whole disk as number 0 where
// there is none, in the order of their positions.
func (t *Tree) partitions() []layout.Partition {
	if t.table == nil {
		return []layout.Partition{{Length: t.disk.Size()}}
	}
	return t.table.Partitions
}

// subvolumes are where distributions without a default btrfs subvolume keep
// their root: Fedora, Ubuntu and Debian's installer.
var subvolumes = []string{"", "root", "@", "@rootfs"}

// findRoot mounts the root file system on t.Dir.
func (t *Tree) findRoot(ctx context.Context) error {
	var failed []error
	for _, part := range slices.Backward(t.parts) {
		if !part.Info.Kind.Growable() {
			continue // what has a root on it is what can grow
		}
		candidates := []string{""}
		if part.Info.Kind == filesystem.Btrfs {
			candidates = subvolumes
		}
		for _, subvolume := range candidates {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			found, err := t.tryRoot(ctx, part, subvolume)
			if found {
				t.RootPart = part
				slog.Info("mounted the root file system", "partition", part.Number, "volume", part.Volume, "type", part.Info.Kind, "subvolume", subvolume)
				return nil
			}
			if err != nil {
				failed = append(failed, err)
			}
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("cannot look for the root file system: %w", errors.Join(failed...))
	}
	return ErrNoRoot
}

// tryRoot mounts the file system on t.Dir and leaves it there if it is a root.
func (t *Tree) tryRoot(ctx context.Context, part *Part, subvolume string) (bool, error) {
	if err := t.attach(ctx, part); err != nil {
		return false, err
	}
	var options []string
	if subvolume != "" {
		options = []string{"subvol=" + subvolume}
	}
	if err := t.mount(part, t.Dir, options); err != nil {
		if subvolume != "" && errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		return false, err
	}
	root, err := guest.Open(t.Dir)
	if err == nil {
		isRoot := root.IsRoot()
		err = root.Close()
		if isRoot && err == nil {
			part.mounted = true
			t.keep(t.Dir)
			return true, nil
		}
	}
	if e := unmount(t.Dir); e != nil {
		return false, fmt.Errorf("cannot unmount %s: %w", t.Dir, e)
	}
	return false, err
}

// attach makes the loop device over a partition. The disk's own partition
// nodes, where the kernel has any, are not used: a loop device at an offset
// works on every kind of disk, does not wait for udev, and goes by itself.
func (t *Tree) attach(ctx context.Context, part *Part) error {
	if part.Device != "" {
		return nil
	}
	if twin := t.twin(part); twin != nil {
		return fmt.Errorf("cannot mount partition %d: it has the same UUID (%s) as partition %d", part.Number, part.Info.UUID, twin.Number)
	}
	unlock, err := filesystem.Lock(ctx, part.Info)
	if err != nil {
		return err
	}
	t.steps.Push("unlock the file system's UUID", unlock)
	loop, err := block.Attach(t.disk.Path(), part.Start, part.Length, t.table.Sector(), t.readOnly)
	if err != nil {
		return err
	}
	part.Device = loop.Path()
	t.steps.Push("detach "+part.Device, loop.Detach)
	return nil
}

// twin returns a btrfs of the same UUID that is attached already: kernels cannot
// tell the two apart.
func (t *Tree) twin(part *Part) *Part {
	for _, other := range slices.Concat(t.parts, t.beside) {
		if other.Device != "" && part.Info.Kind == filesystem.Btrfs && other.Info.UUID == part.Info.UUID {
			return other
		}
	}
	return nil
}

func (t *Tree) mount(part *Part, dir string, options []string) error {
	if part.Info.Apart != "" {
		return fmt.Errorf("cannot mount partition %d (%s): %s", part.Number, part.Info.Kind, part.Info.Apart)
	}
	options = append(options, filesystem.MountOptions(part.Info.Kind)...)
	if t.readOnly {
		return t.mountReadOnly(part, dir, options)
	}
	err := unix.Mount(part.Device, dir, string(part.Info.Kind), t.flags, strings.Join(options, ","))
	if err != nil {
		return fmt.Errorf("cannot mount partition %d (%s): %w", part.Number, part.Info.Kind, err)
	}
	return nil
}

// mountReadOnly mounts without replaying a journal, and says where one waits for
// that.
func (t *Tree) mountReadOnly(part *Part, dir string, options []string) (err error) {
	for _, more := range filesystem.NoReplayOptions(part.Info.Kind) {
		all := slices.Concat(options, more)
		if err = unix.Mount(part.Device, dir, string(part.Info.Kind), t.flags, strings.Join(all, ",")); !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("cannot mount partition %d (%s) read-only: %w", part.Number, part.Info.Kind, err)
	}
	if why := t.unreplayed(part); why != "" && !part.warned {
		part.warned = true
		slog.Warn("the file system was not unmounted cleanly, and its journal is not replayed: files may be old or damaged",
			"partition", part.Number, "volume", part.Volume, "type", part.Info.Kind, "cause", why)
	}
	return nil
}

// unreplayed tells why the files of a file system that is mounted read-only may
// not be as they were.
func (t *Tree) unreplayed(part *Part) string {
	if !t.readOnly {
		return ""
	}
	return filesystem.Unreplayed(io.NewSectionReader(t.disk, int64(part.Start), int64(part.Length)), part.Length, part.Info.Kind)
}

// keep has dir unmounted at the end, after all that was written there is stored:
// to unmount it does not tell when that failed.
func (t *Tree) keep(dir string) {
	t.steps.Push("unmount "+dir, func() error {
		if t.readOnly {
			return unmount(dir)
		}
		return errors.Join(syncFileSystem(dir), unmount(dir))
	})
}

func (t *Tree) openRoot() error {
	root, err := guest.Open(t.Dir)
	if err != nil {
		return err
	}
	t.Root = root
	t.steps.Push("close the guest's root", root.Close)
	t.mounts = append(t.mounts, Mount{"/", t.RootPart, t.unreplayed(t.RootPart)})
	return nil
}

// mountFSTab mounts what the guest's fstab names and this disk has. What it
// names and is not here, or what this node cannot mount, is left out: only
// /boot and what hooks write to matter, and the log says which were left.
func (t *Tree) mountFSTab(ctx context.Context) error {
	entries, err := t.Root.FSTab()
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	slices.SortStableFunc(entries, func(a, b guest.FSTabEntry) int {
		return strings.Count(path.Clean(a.Mountpoint), "/") - strings.Count(path.Clean(b.Mountpoint), "/")
	})
	for _, entry := range entries {
		if err := t.mountEntry(ctx, entry); err != nil {
			if errors.Is(err, errElsewhere) {
				t.elsewhere = append(t.elsewhere, entry.Mountpoint)
			} else {
				t.left = append(t.left, entry.Mountpoint)
			}
			slog.Warn("left a file system of the guest's fstab unmounted", "mountpoint", entry.Mountpoint, "cause", err)
		}
	}
	return nil
}

// errElsewhere says that a file system is not on the disk.
var errElsewhere = errors.New("this disk has no")

func (t *Tree) mountEntry(ctx context.Context, entry guest.FSTabEntry) error {
	target := path.Clean(entry.Mountpoint)
	if !path.IsAbs(target) || target == "/" || target == t.leave {
		return nil
	}
	part := t.find(entry.Device)
	if part == nil && filesystem.Kind(entry.Type).Mountable() {
		return fmt.Errorf("%w %s", errElsewhere, entry.Device)
	}
	if part == nil || !part.Info.Kind.Mountable() {
		return nil
	}
	if err := t.attach(ctx, part); err != nil {
		return err
	}
	dir, err := t.Root.OpenDir(target)
	if err != nil {
		return err
	}
	defer dir.Close()
	at := guest.PathOf(dir) // no link of the guest's leads the mount elsewhere
	where, err := os.Readlink(at)
	if err != nil {
		return err
	}
	if err := t.mount(part, at, subvolumeOf(entry.Options)); err != nil {
		return err
	}
	part.mounted = true
	t.keep(where)
	t.mounts = append(t.mounts, Mount{target, part, t.unreplayed(part)})
	if target == "/boot" && part != t.RootPart {
		t.BootPart = part
	}
	return nil
}

// subvolumeOf keeps the one kind of option that decides which tree is mounted.
func subvolumeOf(options []string) []string {
	return slices.DeleteFunc(slices.Clone(options), func(o string) bool {
		return !strings.HasPrefix(o, "subvol=") && !strings.HasPrefix(o, "subvolid=")
	})
}

// find returns the partition that the first field of an fstab line means, or
// nil. A device name counts by its partition number only.
func (t *Tree) find(spec string) *Part {
	tag, value, tagged := strings.Cut(guest.DeviceTag(spec), "=")
	if tagged && value == "" {
		return nil
	}
	for _, p := range t.parts {
		switch {
		case tagged && tag == "UUID" && strings.EqualFold(p.Info.UUID, value),
			tagged && tag == "LABEL" && p.Info.Label == value,
			tagged && tag == "PARTUUID" && strings.EqualFold(p.PartUUID(t.table), value),
			tagged && tag == "PARTLABEL" && p.Name == value,
			!tagged && p.Volume == "" && p.Number > 0 && isDisk0Partition(spec, p.Number),
			!tagged && p.Volume != "" && isVolume(spec, p.Group, p.Volume):
			return p
		}
	}
	return nil
}

// PartUUID returns the PARTUUID of the partition as the kernel writes it.
func (p *Part) PartUUID(table *layout.Table) string {
	if table == nil || p.Number == 0 || p.Volume != "" {
		return ""
	}
	return table.PartUUID(p.Partition)
}

// isDisk0Partition tells whether a device name is that of a partition of a
// guest's first disk, whatever its bus: /dev/vda3, /dev/sda3, /dev/xvda3.
func isDisk0Partition(name string, number int) bool {
	for _, disk := range []string{"vda", "sda", "xvda", "hda", "nvme0n1p", "mmcblk0p"} {
		if name == "/dev/"+disk+strconv.Itoa(number) {
			return true
		}
	}
	return false
}

// isVolume tells whether a device name is that of a logical volume; device mapper
// doubles the hyphens within the two names.
func isVolume(name, group, volume string) bool {
	double := func(s string) string { return strings.ReplaceAll(s, "-", "--") }
	return name == "/dev/"+group+"/"+volume || name == "/dev/mapper/"+double(group)+"-"+double(volume)
}

// unmount unmounts dir; where it is busy the error names who holds it.
func unmount(dir string) error {
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w, held by %s", err, holders(dir))
	}
	return err
}

// holders names the processes that have their root, directory, program, a library
// or an open file below dir, as "pid (name), ...".
func holders(dir string) string {
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	more, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, name := range []string{"root", "exe"} {
		other, _ := filepath.Glob("/proc/[0-9]*/" + name)
		more = append(more, other...)
	}
	found := mappers(dir)
	for _, link := range append(links, more...) {
		where, err := os.Readlink(link)
		if err != nil || where != dir && !strings.HasPrefix(where, dir+"/") {
			continue
		}
		found[processOf(link)] = true
	}
	if len(found) == 0 {
		return "no process that can be seen"
	}
	var list []string
	for holder := range found {
		list = append(list, holder)
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// mappers are the processes that have a file below dir in their memory.
func mappers(dir string) map[string]bool {
	found := map[string]bool{}
	files, _ := filepath.Glob("/proc/[0-9]*/maps")
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && strings.Contains(string(text), " "+dir+"/") {
			found[processOf(file)] = true
		}
	}
	return found
}

// processOf names the process that a path in /proc is about: "pid (name)".
func processOf(path string) string {
	pid := strings.Split(path, "/")[2]
	name, _ := os.ReadFile("/proc/" + pid + "/comm")
	return pid + " (" + strings.TrimSpace(string(name)) + ")"
}
