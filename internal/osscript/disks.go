package osscript

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"

	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/deploy"
	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/mount"
	"ganeti-instance-image/internal/network"
	"ganeti-instance-image/internal/osapi"
	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/seed"
	"ganeti-instance-image/internal/settings"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/undo"
)

// otherDisk is a further disk of the instance that a setting has a use for.
type otherDisk struct {
	index int
	use   settings.DiskUse
	by    string // the setting and where it was made, for messages
	dev   *block.Device
	info  filesystem.Info // what it holds
	keep  bool            // it holds data that a reinstall must not lose
}

// openOthers opens the further disks that have a use.
func (c *creation) openOthers() (err error) {
	if c.order.Disk != 0 {
		return classify(Input, c.checkOrder())
	}
	if c.others, err = diskUses(c.set, c.inst); err != nil {
		return classify(Input, err)
	}
	for _, d := range c.others {
		if d.dev, err = c.openDisk(d.index); err != nil {
			return fmt.Errorf("%s: %w", d.by, err)
		}
	}
	return nil
}

// checkOrder refuses an image for a disk that has another use.
func (c *creation) checkOrder() error {
	n := c.order.Disk
	if isFirmware(c.inst, n) {
		return fmt.Errorf("cannot deploy to disk %d: it holds the instance's UEFI firmware", n)
	}
	disks, err := diskUses(c.set, c.inst)
	if i := slices.IndexFunc(disks, func(d *otherDisk) bool { return d.index == n }); err == nil && i >= 0 {
		return fmt.Errorf("cannot deploy to disk %d: %s has another use for it", n, disks[i].by)
	}
	return nil
}

// diskUses lists the further disks that settings have a use for.
func diskUses(set *settings.Settings, inst osapi.Instance) ([]*otherDisk, error) {
	var disks []*otherDisk
	for n, use := range set.DiskUses {
		name := fmt.Sprintf("DISK_%d", n)
		if use.What != "" {
			disks = append(disks, &otherDisk{index: n, use: use, by: fmt.Sprintf("%s (%s)", name, set.Origin(name))})
		}
	}
	if set.SeedDisk != "" {
		by := fmt.Sprintf("SEED_DISK (%s)", set.Origin("SEED_DISK"))
		index, err := diskNamed(inst, set.SeedDisk)
		if err != nil {
			return nil, fmt.Errorf("cannot use %s: %w", by, err)
		}
		if i := slices.IndexFunc(disks, func(d *otherDisk) bool { return d.index == index }); i >= 0 && disks[i].use.What != "seed" {
			return nil, fmt.Errorf("cannot use both %s and %s: they are one disk", by, disks[i].by)
		} else if i < 0 {
			disks = append(disks, &otherDisk{index: index, use: settings.DiskUse{What: "seed"}, by: by})
		}
	}
	// A mount point must be mounted before what is below it.
	slices.SortStableFunc(disks, func(a, b *otherDisk) int {
		return strings.Count(a.use.Mountpoint, "/") - strings.Count(b.use.Mountpoint, "/")
	})
	return disks, checkUses(disks, inst)
}

// diskNamed finds a disk by its number or its name.
func diskNamed(inst osapi.Instance, name string) (int, error) {
	if n, err := strconv.Atoi(name); err == nil {
		return n, nil
	}
	var names []string
	for _, d := range inst.Disks {
		if d.Name == name && d.Index > 0 {
			return d.Index, nil
		}
		if d.Name == name {
			return 0, errors.New("disk 0 holds the system")
		}
		if d.Name != "" {
			names = append(names, d.Name)
		}
	}
	return 0, fmt.Errorf("the instance has no disk of that name (its disks are named: %s)", cmp.Or(strings.Join(names, ", "), "none"))
}

func checkUses(disks []*otherDisk, inst osapi.Instance) error {
	seeds, mounted := "", map[string]string{"": ""}
	for _, d := range disks {
		by, twice := mounted[d.use.Mountpoint]
		mounted[d.use.Mountpoint] = d.by
		switch {
		case d.index < 1:
			return fmt.Errorf("cannot use %s: disk 0 holds the system", d.by)
		case twice && d.use.Mountpoint != "":
			return fmt.Errorf("cannot use both %s and %s: they have one mount point", by, d.by)
		case d.index >= len(inst.Disks):
			return fmt.Errorf("cannot use %s: the instance has no disk %d; add one (--disk %d:size=...) or change the setting", d.by, d.index, d.index)
		case isFirmware(inst, d.index):
			return fmt.Errorf("cannot use %s: disk %d holds the instance's UEFI firmware", d.by, d.index)
		case d.use.What == "seed" && seeds != "":
			return fmt.Errorf("cannot use both %s and %s: one disk with a seed is enough", seeds, d.by)
		case d.use.What == "seed":
			seeds = d.by
		}
	}
	return nil
}

// firmwareSize is the length of the disk in which Ganeti from version 4 on keeps
// the firmware and its variables of an instance with boot_type=uefi, behind all
// its other disks.
const firmwareSize = 32 * size.MiB

func isFirmware(inst osapi.Instance, index int) bool {
	return index < len(inst.Disks) && inst.HVParams["boot_type"] == "uefi" && index == len(inst.Disks)-1 && inst.Disks[index].Size == firmwareSize
}

// checkOthers makes sure that each further disk can be what it is to be.
func (c *creation) checkOthers(ctx context.Context) error {
	for _, d := range c.others {
		check := d.checkMade
		if d.use.What == "seed" {
			check = func() error { return c.checkSeedDisk(ctx, d) }
		}
		err := check()
		if err == nil && c.inst.Reinstall {
			err = classify(Disk, d.checkHeld())
		}
		if err != nil {
			return fmt.Errorf("cannot use disk %d as %s says: %w", d.index, d.by, err)
		}
	}
	return nil
}

// kind is what the disk is to hold.
func (d *otherDisk) kind() filesystem.Kind {
	switch d.use.What {
	case "swap":
		return filesystem.Swap
	case "seed":
		return filesystem.ISO9660
	}
	return filesystem.Kind(d.use.Filesystem)
}

// checkMade looks for the program that makes the file system, and for the room
// it takes.
func (d *otherDisk) checkMade() error {
	if _, err := run.Find(d.kind().Maker()); err != nil {
		return err
	}
	if least := d.kind().Least(); d.dev.Size() < least {
		return classify(Disk, fmt.Errorf("%s takes %s at least, the disk has %s", d.kind(), least, d.dev.Size()))
	}
	return nil
}

// checkHeld looks, before a reinstall, at what the disk holds. Data are kept
// where they are what the setting names. Something else is not lost to a setting
// that was changed, or to a number that was mistyped.
func (d *otherDisk) checkHeld() (err error) {
	if d.info, err = filesystem.Probe(d.dev, d.dev.Size()); err != nil {
		return err
	}
	holds := string(d.info.Kind)
	if _, err := layout.Read(d.dev, d.dev.Size()); !errors.Is(err, layout.ErrNoTable) && holds == "" {
		holds = "a partition table"
	}
	blank, err := isBlank(d.dev, size.MiB)
	if err != nil {
		return err
	}
	if !blank && holds == "" && d.use.What == "data" {
		holds = "something unknown"
	}
	if holds == string(d.kind()) {
		d.keep = d.use.What == "data"
		if d.use.What != "seed" || d.info.Label == "cidata" {
			return nil
		}
	}
	if holds == "" {
		return nil
	}
	return fmt.Errorf("it holds %s, which must not be lost; zero its first MiB, or change the setting", holds)
}

// isBlank tells whether the first n bytes are zeros.
func isBlank(r io.ReaderAt, n size.Bytes) (bool, error) {
	head := make([]byte, n)
	read, err := r.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	return !slices.ContainsFunc(head[:read], func(b byte) bool { return b != 0 }), nil
}

// checkSeedDisk makes the seed once, so that all it is made of was read and it
// has its size, while the disk is as it was.
func (c *creation) checkSeedDisk(ctx context.Context, d *otherDisk) (err error) {
	if err := c.readSeed(ctx); err != nil {
		return classify(Input, err)
	}
	iso, err := c.seedISO(seed.Facts{})
	if err != nil {
		return classify(Input, err)
	}
	// What is known of the guest later may make it a little larger.
	if need := size.Bytes(len(iso)); need > d.dev.Size() || need > size.MiB && need+seedMargin > d.dev.Size() {
		return classify(Disk, fmt.Errorf("the seed takes %s, the disk has %s", need, d.dev.Size()))
	}
	return nil
}

const seedMargin = 16 * size.KiB

// readSeed reads what a seed is made of.
func (c *creation) readSeed(ctx context.Context) (err error) {
	if c.nics, err = network.Plan(ctx, c.set, c.inst); err != nil {
		return err
	}
	c.userData, err = readUserData(ctx, c.set)
	return err
}

// lookForWindows finds out whether the guest on a disk, or in an image, is one
// that gets another seed.
func (c *creation) lookForWindows(disk io.ReaderAt, length size.Bytes) (err error) {
	if c.order.Disk != 0 {
		return nil
	}
	c.windows, err = seed.HasWindows(disk, length)
	return classify(Disk, err)
}

func (c *creation) seedISO(facts seed.Facts) ([]byte, error) {
	files, err := c.seedFiles(facts)
	if err != nil {
		return nil, err
	}
	return seed.ISO(files)
}

// seedFiles makes the seed for the guest that the disk has.
func (c *creation) seedFiles(facts seed.Facts) (files []seed.File, err error) {
	if c.windows {
		files, c.unmet, err = seed.WindowsFiles(c.set, c.inst, c.nics, c.userData)
		return files, err
	}
	facts.UserData = c.userData
	return seed.Files(c.set, c.inst, c.nics, facts)
}

// prepareOthers makes swap space and file systems on further disks.
func (c *creation) prepareOthers(ctx context.Context) error {
	for _, d := range c.others {
		if d.use.What == "seed" {
			continue
		}
		if d.keep {
			slog.Info("the disk keeps its file system", "disk", d.index, "holds", d.info.Kind, "by", d.by)
			continue
		}
		if err := c.makeOther(ctx, d); err != nil {
			return fmt.Errorf("cannot prepare disk %d (%s): %w", d.index, d.by, err)
		}
		if err := d.dev.Sync(); err != nil {
			return classify(Disk, err)
		}
	}
	return nil
}

func (c *creation) makeOther(ctx context.Context, d *otherDisk) (err error) {
	if err := c.clearOther(d); err != nil {
		return err
	}
	loop, err := block.Attach(d.dev.Path(), 0, d.dev.Size(), 512, false)
	if err != nil {
		return classify(Disk, err)
	}
	defer func() { err = errors.Join(err, loop.Detach()) }()
	if d.info, err = filesystem.Make(ctx, loop.Path(), d.kind(), filesystem.Options{}); err != nil {
		return err
	}
	slog.Info("prepared the disk", "disk", d.index, "as", d.info.Kind, "size", d.dev.Size(), "by", d.by)
	return nil
}

// clearOther takes what a disk showed before from it; where the operation fails
// it shows nothing again.
func (c *creation) clearOther(d *otherDisk) error {
	if err := deploy.Wipe(d.dev); err != nil {
		return classify(Disk, err)
	}
	c.steps.OnFailure(fmt.Sprintf("clear disk %d again", d.index), func() error { return deploy.Wipe(d.dev) })
	return nil
}

// enterOthers tells the guest of the disks that were prepared for it.
func (c *creation) enterOthers(tree *mount.Tree) error {
	for _, d := range c.others {
		if d.use.What == "seed" {
			continue
		}
		entry := guest.FSTabEntry{Device: "UUID=" + d.info.UUID, Mountpoint: "none", Type: "swap", Options: []string{"sw"}}
		if d.use.What == "data" {
			entry = guest.FSTabEntry{Device: "UUID=" + d.info.UUID, Mountpoint: d.use.Mountpoint, Type: d.use.Filesystem, Options: []string{"defaults", "nofail"}}
			if err := tree.Root.MkdirAll(d.use.Mountpoint, 0o755); err != nil {
				return err
			}
		}
		if err := tree.Root.AddFSTab(entry); err != nil {
			return err
		}
		slog.Info("the guest's fstab names the disk", "disk", d.index, "mountpoint", entry.Mountpoint)
	}
	return nil
}

// seedDisk is the disk that gets the seed, or nil.
func (c *creation) seedDisk() *otherDisk {
	i := slices.IndexFunc(c.others, func(d *otherDisk) bool { return d.use.What == "seed" })
	if i < 0 {
		return nil
	}
	return c.others[i]
}

// writeSeed writes the seed to its disk, if it has one.
func (c *creation) writeSeed() error {
	d := c.seedDisk()
	if d == nil {
		return nil
	}
	iso, err := c.seedISO(c.facts)
	if err != nil {
		return classify(Input, err)
	}
	if err := c.clearOther(d); err != nil {
		return err
	}
	if err := d.write(iso); err != nil {
		return err
	}
	c.sayUnmet()
	slog.Info("wrote the seed", "for", map[bool]string{true: "Windows", false: "cloud-init"}[c.windows], "disk", d.index, "label", "cidata", "size", size.Bytes(len(iso)), "by", d.by)
	return nil
}

// sayUnmet says what the settings ask for and the seed cannot give.
func (c *creation) sayUnmet() {
	for _, warning := range c.unmet {
		slog.Warn(warning)
	}
}

// write writes a seed to the disk.
func (d *otherDisk) write(iso []byte) error {
	if _, err := d.dev.WriteAt(iso, 0); err != nil {
		return classify(Disk, fmt.Errorf("cannot write the seed to disk %d (%s): %w", d.index, d.by, err))
	}
	return classify(Disk, d.dev.Sync())
}

// AnyDisk stands for the disk that the settings name.
const AnyDisk = -1

// WriteSeed writes the seed to a disk of the instance, and nothing else: to the
// one of that index, or to the one that the settings name.
func WriteSeed(ctx context.Context, env Env, index int) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	c := &creation{env: env, steps: &steps}
	if err := c.readInput(ctx); err != nil {
		return classify(Input, err)
	}
	if index != AnyDisk {
		c.set.OrderSeed(index)
	}
	if c.others, err = diskUses(c.set, c.inst); err != nil {
		return classify(Input, err)
	}
	d := c.seedDisk()
	c.others = slices.DeleteFunc(c.others, func(o *otherDisk) bool { return o != d })
	if d == nil {
		return classify(Input, errors.New("cannot write the seed: no disk is chosen; name one as INSTANCE:DISK, or set SEED_DISK"))
	}
	if err := c.openForSeed(d); err != nil {
		return err
	}
	if err := c.checkOthers(ctx); err != nil {
		return err
	}
	return c.writeSeed()
}

// openForSeed opens the disk of the seed, and the first one to see what guest it
// is for.
func (c *creation) openForSeed(d *otherDisk) (err error) {
	if d.dev, err = c.openDisk(d.index); err != nil {
		return classify(Disk, err)
	}
	if c.dev, err = c.openDisk(0); err != nil {
		return classify(Disk, err)
	}
	return c.lookForWindows(c.dev, c.dev.Size())
}

// SeedISO makes the seed of an instance as the bytes of a disk. Where its first
// disk is cannot be known here: NOMOUNT says that it is Windows'.
func SeedISO(ctx context.Context, env Env) (_ []byte, err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	c := &creation{env: env, steps: &steps}
	if err := c.readInput(ctx); err != nil {
		return nil, classify(Input, err)
	}
	if err := c.readSeed(ctx); err != nil {
		return nil, classify(Input, err)
	}
	c.windows = c.set.NoMount
	iso, err := c.seedISO(seed.Facts{})
	c.sayUnmet()
	return iso, classify(Input, err)
}
