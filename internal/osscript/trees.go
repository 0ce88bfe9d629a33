package osscript

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/deploy"
	"ganeti-instance-image/internal/dump"
	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/grub"
	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/hook"
	"ganeti-instance-image/internal/image"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/mount"
	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/store"
	"ganeti-instance-image/internal/tarball"
	"ganeti-instance-image/internal/tree"
	"ganeti-instance-image/internal/undo"
	"ganeti-instance-image/internal/unpack"
)

// treeImage is an image that holds files, and the disk that is laid out for it.
type treeImage struct {
	name     string                    // what it is, for messages: a file's path
	archives iter.Seq2[archive, error] // in the order in which they are unpacked
	boot     bool                      // one of them is that of /boot
	packed   size.Bytes                // what the root's takes; 0 where that is not known
	places   []layout.Place
	kind     layout.Kind // of the table; empty until the guest's files say what boots them
	systems  []*system   // what the partitions hold, in the disk's order
}

// archive is one file of the image.
type archive struct {
	source
	path  string
	below string // where in the guest it belongs
}

type source interface {
	tree.Source
	Warnings() []string
	Close() error
}

// system is what a partition of a new disk holds.
type system struct {
	layout.Place
	number     int
	kind       filesystem.Kind
	mountpoint string          // in the guest; "none" of swap space
	info       filesystem.Info // once it is made
	uuid       string          // that it is to have, where the guest's files name one
	label      string          // likewise
	partUUID   string          // in the table, likewise
	loop       *block.Loop
}

// espMountpoint is where the guest has its ESP.
const espMountpoint = "/boot/efi"

// openTree opens an image that holds files.
func (c *creation) openTree(found store.Found) error {
	c.tree = &treeImage{name: found.Path, boot: found.Boot != ""}
	if info, err := os.Stat(found.Path); err == nil {
		c.tree.packed = size.Bytes(info.Size())
	}
	var archives []archive
	paths := []archive{{path: found.Path, below: "/"}}
	if found.Boot != "" {
		paths = append(paths, archive{path: found.Boot, below: "/boot"})
	} else if c.imageType == image.TypeDump {
		slog.Info("there is no dump of /boot (-boot.dump) beside that of the root (-root.dump): /boot is as in the root's")
	}
	for _, a := range paths {
		var err error
		if c.imageType == image.TypeDump {
			a.source, err = openDump(a.path)
		} else {
			a.source, err = tarball.Open(a.path)
		}
		if err != nil {
			return err
		}
		c.steps.Push("close the image", a.Close)
		archives = append(archives, a)
		slog.Info("image", "file", a.path, "format", c.imageType)
	}
	c.tree.archives = func(yield func(archive, error) bool) {
		for _, a := range archives {
			if !yield(a, nil) {
				return
			}
		}
	}
	return nil
}

// openDump opens a dump. One in several volumes has them beside each other, with
// the endings that dump's option -M gives: 001, 002.
func openDump(path string) (*dump.Archive, error) {
	stem, several := strings.CutSuffix(path, ".dump001")
	if !several {
		return dump.Open(path)
	}
	paths := []string{path}
	for {
		next := fmt.Sprintf("%s.dump%03d", stem, len(paths)+1)
		if _, err := os.Stat(next); errors.Is(err, os.ErrNotExist) {
			return dump.OpenVolumes(paths)
		} else if err != nil {
			return nil, fmt.Errorf("cannot look for the next volume of the dump: %w", err)
		}
		paths = append(paths, next)
	}
}

// wantsLoader tells whether the guest is to be made to boot by itself: by the
// hook grub, because the setting says so, or because it did when it was exported.
func (c *creation) wantsLoader() bool {
	return !c.inst.ExternalKernel() && (c.set.GRUB == "auto" || c.enabled("grub") || c.importing)
}

// hasLoader tells whether the disk has a boot loader of its own.
func (c *creation) hasLoader() bool {
	return !c.inst.ExternalKernel() && c.inst.Hypervisor != "xen-pvm" // pygrub reads /boot by itself
}

// enabled tells whether a hook of that name is, ours or one that a site has in
// its place.
func (c *creation) enabled(name string) bool {
	return slices.ContainsFunc(c.hooks, func(h hook.Hook) bool { return h.Name == name && h.Phase == hook.AfterMount })
}

// checkTree plans the disk, and makes sure that the programs for it are there.
func (c *creation) checkTree(ctx context.Context) error {
	if c.set.NoMount {
		return classify(Input, fmt.Errorf("cannot deploy a %s with NOMOUNT=yes (%s): its files are written to a mounted file system", c.imageType, c.set.Origin("NOMOUNT")))
	}
	if c.order.Disk != 0 {
		return classify(Input, fmt.Errorf("cannot deploy a %s to disk %d: it makes a system's disk, which is disk 0", c.imageType, c.order.Disk))
	}
	if err := c.planTree(); err != nil {
		return err
	}
	if err := grub.CheckArgs(grub.SplitArgs(c.set.KernelArgs)); err != nil && c.wantsLoader() {
		return classify(Input, fmt.Errorf("cannot use KERNEL_ARGS (%s): %w", c.set.Origin("KERNEL_ARGS"), err))
	}
	for _, s := range c.tree.systems {
		for _, tool := range append(s.kind.Namers(), s.maker()) {
			if _, err := run.Find(tool); err != nil {
				return fmt.Errorf("cannot make the %s file system for %s: %w", s.kind, s.Use, err)
			}
		}
	}
	return c.tryMkfsOptions(ctx)
}

// tryMkfsOptions makes a small file system with the site's options for mkfs,
// which are known to suit it only then.
func (c *creation) tryMkfsOptions(ctx context.Context) (err error) {
	if len(c.set.MkfsOptions) == 0 {
		return nil
	}
	path := filepath.Join(mount.RunDir, "mkfs")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return fmt.Errorf("cannot try MKFS_OPTIONS: %w", err)
	}
	defer os.Remove(path)
	if err := os.Truncate(path, int64(size.GiB)); err != nil {
		return fmt.Errorf("cannot try MKFS_OPTIONS: %w", err)
	}
	if _, err := filesystem.Make(ctx, path, filesystem.Kind(c.set.Filesystem), filesystem.Options{Features: c.set.MkfsOptions}); err != nil {
		return classify(Input, fmt.Errorf("cannot use MKFS_OPTIONS (%s) with FILESYSTEM=%s (%s): %w",
			c.set.Origin("MKFS_OPTIONS"), c.set.Filesystem, c.set.Origin("FILESYSTEM"), err))
	}
	return nil
}

func (s *system) maker() string {
	if s.kind == filesystem.VFAT {
		return "mkfs.vfat"
	}
	return s.kind.Maker()
}

// planTree lays the disk out and says what each partition is to hold.
func (c *creation) planTree() (err error) {
	if c.set.Swap && c.set.SwapSize == 0 {
		return classify(Input, errors.New("cannot lay the disk out: SWAP_SIZE is not set, and Ganeti did not say how much memory the instance has"))
	}
	spec := layout.Spec{Disk: c.dev.Size(), Least: c.leastRoot()}
	if c.set.Swap {
		spec.Swap = c.set.SwapSize
	}
	if !c.inst.ExternalKernel() {
		spec.Boot = c.set.BootSize
	}
	switch {
	case c.set.PartitionTable == "gpt", c.set.PartitionTable == "auto" && c.dev.Size() > layout.MBRLimit:
		c.tree.kind = layout.GPT
	case c.set.PartitionTable == "msdos", !c.wantsLoader(), !c.hasLoader():
		c.tree.kind = layout.MBR
	}
	spec.MBR = c.tree.kind == layout.MBR
	spec.BIOSBoot = c.hasLoader() && c.tree.kind != layout.MBR
	if c.hasLoader() && (spec.BIOSBoot || c.wantsLoader()) && c.canMakeESP() {
		spec.ESP = c.set.ESPSize
	}
	if c.tree.places, err = spec.Places(); err != nil {
		return classify(Disk, fmt.Errorf("cannot lay out disk %s: %w", c.dev.Path(), err))
	}
	if spec.MBR && c.dev.Size() > layout.MBRLimit {
		slog.Warn("the disk is used up to 2 TiB only, as an MBR cannot name more; PARTITION_TABLE=gpt can", "by", c.set.Origin("PARTITION_TABLE"))
	}
	for _, p := range c.tree.places {
		if p.Use != layout.ForBIOSBoot { // which holds no file system
			c.tree.systems = append(c.tree.systems, c.newSystem(p))
		}
	}
	return nil
}

// leastRoot is what the root needs at least: the files do not get smaller than
// what they are packed to. Those below /boot may be elsewhere, but are at most
// half of them.
func (c *creation) leastRoot() size.Bytes {
	least := filesystem.Kind(c.set.Filesystem).Least()
	return max(least, c.tree.packed-c.set.BootSize, c.tree.packed/2)
}

// canMakeESP looks for the programs that make an ESP and write to it.
func (c *creation) canMakeESP() bool {
	for _, tool := range []string{"mkfs.vfat", "mcopy", "mmd"} {
		if _, err := run.Find(tool); err != nil {
			slog.Warn("the disk gets no ESP, so that no boot loader for UEFI can be installed (dosfstools and mtools have the programs)", "cause", err)
			return false
		}
	}
	return true
}

// newSystem is what a partition is to hold.
func (c *creation) newSystem(p layout.Place) *system {
	switch p.Use {
	case layout.ForESP:
		return &system{Place: p, kind: filesystem.VFAT, mountpoint: espMountpoint}
	case layout.ForBoot:
		return &system{Place: p, kind: bootKind(c.set.Filesystem), mountpoint: "/boot"}
	case layout.ForSwap:
		return &system{Place: p, kind: filesystem.Swap, mountpoint: "none"}
	}
	return &system{Place: p, kind: filesystem.Kind(c.set.Filesystem), mountpoint: "/"}
}

// bootKind is what /boot is for a root of that kind: every loader, pygrub and
// extlinux among them, reads ext.
func bootKind(root string) filesystem.Kind {
	if kind := filesystem.Kind(root); kind == filesystem.Ext2 || kind == filesystem.Ext3 {
		return kind
	}
	return filesystem.Ext4
}

// writeTree makes the file systems, fills them, and at last, when every file is
// good and stored, writes the table by which the disk shows them.
func (c *creation) writeTree(ctx context.Context) error {
	c.guard()
	if err := deploy.Wipe(c.dev); err != nil {
		return classify(Disk, err)
	}
	if err := c.writeSystems(ctx); err != nil {
		return err
	}
	return classify(Disk, c.writeTable())
}

// writeSystems makes what the partitions hold. When it returns, all of it is on
// the disk and no loop device is left.
func (c *creation) writeSystems(ctx context.Context) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	if err := c.makeSystems(ctx, &steps); err != nil {
		return err
	}
	if err := c.fill(ctx); err != nil {
		return err
	}
	for _, s := range c.tree.systems {
		if err := s.setNames(ctx); err != nil {
			return err
		}
		if err := s.loop.Sync(); err != nil {
			return classify(Disk, err)
		}
	}
	return nil
}

// makeSystems gives each partition a loop device and makes what it holds, but
// for the ESP, which not each guest gets.
func (c *creation) makeSystems(ctx context.Context, steps *undo.Stack) (err error) {
	for _, p := range c.tree.places { // nothing of an old system must be found again
		if err := c.dev.Zero(p.Start, min(p.Length, size.MiB)); err != nil {
			return classify(Disk, err)
		}
	}
	for _, s := range c.tree.systems {
		if s.loop, err = block.Attach(c.dev.Path(), s.Start, s.Length, 512, false); err != nil {
			return classify(Disk, err)
		}
		steps.Push("detach "+s.loop.Path(), s.loop.Detach)
		if s.kind == filesystem.VFAT {
			continue
		}
		options := filesystem.Options{Old: true}
		if s.mountpoint == "/" {
			options.Features = c.set.MkfsOptions
		}
		if s.info, err = filesystem.Make(ctx, s.loop.Path(), s.kind, options); err != nil {
			return err
		}
	}
	return nil
}

// fill mounts the new file systems below one directory and unpacks the image
// there. Nothing is mounted any more when it returns, and all is stored.
func (c *creation) fill(ctx context.Context) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	dir := filepath.Join(mount.RunDir, "new")
	for _, at := range []string{"/", "/boot"} {
		s := c.tree.find(at)
		if s == nil {
			continue
		}
		if err := mount.Fresh(s.loop.Path(), s.kind, filepath.Join(dir, at), &steps); err != nil {
			return err
		}
	}
	root, err := guest.Open(dir)
	if err != nil {
		return err
	}
	steps.Push("close the guest's root", root.Close)
	for a, err := range c.tree.archives {
		if err != nil {
			return classify(Image, err)
		}
		if err := c.unpackBelow(ctx, a, root); err != nil {
			return err
		}
	}
	return c.settle(ctx, root)
}

func (t *treeImage) find(mountpoint string) *system {
	for _, s := range t.systems {
		if s.mountpoint == mountpoint {
			return s
		}
	}
	return nil
}

// unpackBelow unpacks an archive to its directory of the guest, which an earlier
// one may have made a link: it is opened inside the guest.
func (c *creation) unpackBelow(ctx context.Context, a archive, root *guest.Root) error {
	if err := root.MkdirAll(a.below, 0o755); err != nil {
		return classify(Image, err)
	}
	dir, err := root.OpenDir(a.below)
	if err != nil {
		return classify(Image, err)
	}
	defer dir.Close()
	return c.unpack(ctx, a, guest.PathOf(dir))
}

func (c *creation) unpack(ctx context.Context, a archive, dir string) error {
	stats, err := unpack.Into(ctx, dir, a.source, unpack.Options{})
	for _, warning := range a.Warnings() {
		slog.Warn(warning, "image", a.path)
	}
	switch {
	case errors.Is(err, unpack.ErrFull):
		return classify(Disk, fmt.Errorf("%w; give the instance a larger disk, or less swap (SWAP_SIZE), or /boot another size (BOOT_SIZE)", err))
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, new(unpack.SourceError)):
		return classify(Image, err) // it names the file
	case errors.Is(err, unix.EIO), errors.Is(err, unix.EROFS):
		return classify(Disk, fmt.Errorf("cannot unpack %s: %w", a.path, err))
	case err != nil:
		return classify(Image, fmt.Errorf("cannot unpack %s: %w", a.path, err))
	}
	slog.Info("unpacked the image", "file", a.path, "to", a.below, "entries", stats.Entries, "size", stats.Bytes)
	if stats.Skipped > 0 {
		slog.Warn("the file system does not take all that the image has", "number", stats.Skipped, "first", stats.FirstSkipped)
	}
	return nil
}

// settle makes the files that were unpacked a guest of this disk: it finds the
// identifiers that they name, and tells them of the file systems and of the
// serial console.
func (c *creation) settle(ctx context.Context, root *guest.Root) error {
	if !root.IsRoot() {
		return classify(Image, fmt.Errorf("cannot use %s: it has no root file system of a Linux system in it (no /etc with fstab or hosts, and /bin)", c.tree.name))
	}
	if err := c.checkBootThere(root); err != nil {
		return classify(Image, err)
	}
	if err := makeMountPoints(root); err != nil {
		return err
	}
	if err := c.chooseTable(grub.FindLoaders(root)); err != nil {
		return err
	}
	c.takeNames(root.NamedSystems())
	if err := c.makeESP(ctx, root); err != nil {
		return err
	}
	changes, err := root.SetFSTab(c.fstabSystems())
	if err != nil {
		return err
	}
	if device, speed := serialConsole(c.inst); device != "" {
		more, err := root.EnableConsole(device, cmp.Or(speed, 115200)) // a login asks for one, even where there is none
		if err != nil {
			return err
		}
		changes = append(changes, more...)
	}
	say("guest", changes)
	c.sayWhetherItBoots()
	return nil
}

// checkBootThere refuses a dump whose /boot was a file system of its own, and is
// missing.
func (c *creation) checkBootThere(root *guest.Root) error {
	if c.imageType != image.TypeDump || c.tree.boot || c.inst.ExternalKernel() {
		return nil
	}
	entries, err := root.FSTab()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	kernels, err := grub.Kernels(root)
	separate := slices.ContainsFunc(entries, func(e guest.FSTabEntry) bool { return e.Mountpoint == "/boot" })
	if !separate || len(kernels) > 0 || err != nil {
		return err
	}
	return fmt.Errorf("cannot use %s: its /boot is a file system of its own, of which there is no dump beside it: put it there as NAME-boot.dump",
		c.tree.name)
}

// mountPoints are directories that an archive may be without, as they are empty
// in it, and that no system starts without.
var mountPoints = []struct {
	path string
	mode os.FileMode
}{{"/dev", 0o755}, {"/proc", 0o555}, {"/sys", 0o555}, {"/run", 0o755}, {"/tmp", 0o777 | os.ModeSticky}}

func makeMountPoints(root *guest.Root) error {
	for _, m := range mountPoints {
		if _, err := root.Lstat(m.path); err == nil {
			continue
		}
		if err := root.MkdirAll(m.path, m.mode); err != nil {
			return err
		}
	}
	return nil
}

// chooseTable decides what was left open until it is known what boots the guest,
// and numbers the partitions.
func (c *creation) chooseTable(loaders grub.Loaders) error {
	t := c.tree
	if c.wantsLoader() && c.hasLoader() && loaders.EFI && !loaders.BIOS && t.find(espMountpoint) == nil {
		return errors.New("cannot make the guest boot: it has a boot loader for UEFI only, and the programs that make an ESP are missing: install dosfstools and mtools")
	}
	if t.kind == "" {
		t.kind = layout.MBR
		if loaders.EFI && !loaders.BIOS {
			t.kind = layout.GPT
		}
	}
	if t.kind == layout.MBR && !loaders.EFI { // nothing would use the ESP
		t.places = slices.DeleteFunc(t.places, func(p layout.Place) bool { return p.Use == layout.ForESP })
		t.systems = slices.DeleteFunc(t.systems, func(s *system) bool { return s.Use == layout.ForESP })
	}
	numbers := layout.Numbers(t.kind, t.places)
	for _, s := range t.systems {
		s.number = numbers[s.Use]
	}
	return nil
}

// makeESP makes the file system of the ESP, if there is to be one.
func (c *creation) makeESP(ctx context.Context, root *guest.Root) error {
	s := c.tree.find(espMountpoint)
	if s == nil {
		return nil
	}
	if err := grub.FormatESP(ctx, s.loop.Path(), s.volumeID()); err != nil {
		return err
	}
	var err error
	if s.info, err = filesystem.ProbeDevice(s.loop.Path()); err != nil {
		return err
	}
	return root.MkdirAll(s.mountpoint, 0o700)
}

// writeTable stores all that was written and then has the disk show it.
func (c *creation) writeTable() error {
	if err := c.dev.Sync(); err != nil {
		return err
	}
	ids := layout.IDs{GUIDs: map[layout.Use]string{}}
	ids.DiskID, _ = c.tree.diskID()
	for _, s := range c.tree.systems {
		if c.tree.kind == layout.GPT {
			ids.GUIDs[s.Use] = c.tree.partUUID(s)
		}
	}
	plan, err := layout.Create(c.tree.kind, c.dev.Size(), c.tree.places, ids)
	if err != nil {
		return err
	}
	if err := c.dev.Apply(plan); err != nil {
		return err
	}
	for _, s := range c.tree.systems {
		slog.Info("partition", "number", s.number, "for", s.Use, "holds", s.kind, "size", s.Length, "uuid", s.info.UUID)
	}
	c.table, err = layout.Read(c.dev, c.dev.Size())
	return err
}

// checkMounted makes sure that what was made is what the guest will see: it is
// mounted by the guest's own fstab.
func (c *creation) checkMounted(t *mount.Tree) error {
	if c.tree == nil {
		return nil
	}
	boot := 0
	if s := c.tree.find("/boot"); s != nil {
		boot = s.number
	}
	if root := c.tree.find("/").number; number(t.RootPart) != root || number(t.BootPart) != boot {
		return fmt.Errorf("cannot mount the guest by its own fstab: / is partition %d and /boot %d (0: none), and should be %d and %d",
			number(t.RootPart), number(t.BootPart), root, boot)
	}
	return nil
}
