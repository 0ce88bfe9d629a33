package osscript

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/deploy"
	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/image"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/lvm"
	"ganeti-instance-image/internal/mount"
	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/size"
)

// content is a partition with what it holds. Its number is 0 for a disk without
// a table.
type content struct {
	layout.Partition
	info  filesystem.Info
	blank bool       // its beginning is zeros
	group *lvm.Group // of a physical volume that can be read; else nil
}

// growth is what becomes larger, as it was planned before the disk was touched.
type growth struct {
	part *content    // nil where nothing grows
	why  string      // then the reason
	plan layout.Plan // what fits the table to the disk
}

// check looks, before the disk is touched, at all that a later step will need:
// room for the image, its table, the file system that is to grow, the programs
// for it, and what the enabled hooks and the settings for users read. What a compressed image holds shows
// only when it is written.
func (c *creation) check(ctx context.Context) error {
	if err := c.checkImage(ctx); err != nil {
		return err
	}
	if c.wantsAccess() {
		if err := c.readAccess(ctx); err != nil {
			return classify(Input, err)
		}
	}
	if err := c.checkOthers(ctx); err != nil {
		return err
	}
	return classify(Input, c.checkHooks(ctx))
}

func (c *creation) checkImage(ctx context.Context) error {
	if c.tree != nil {
		return c.checkTree(ctx)
	}
	switch img := c.img.(type) {
	case nil:
		return c.inspect(c.dev, c.dev.Size())
	case *image.Stream:
		c.windows = c.set.NoMount // as far as the check of the seed goes
		return classify(Disk, deploy.FitsStream(img, c.dev))
	case image.Image:
		if err := deploy.Fits(img, c.dev); err != nil {
			return classify(Disk, err)
		}
		if err := deploy.CheckEnds(img); err != nil {
			return classify(Image, err)
		}
		if err := c.lookForWindows(img, img.Size()); err != nil {
			return classify(Image, err)
		}
		return c.inspect(img, img.Size())
	}
	return nil
}

// inspect reads what an image, or a disk that Ganeti has written, holds, and
// plans its growth.
func (c *creation) inspect(source io.ReaderAt, length size.Bytes) error {
	if c.set.NoMount {
		return nil
	}
	if err := c.readLayout(source, length); err != nil {
		return classify(Image, err)
	}
	if !c.set.Grow {
		return nil
	}
	if err := c.planGrowth(); err != nil {
		return classify(Image, err)
	}
	return c.checkTools()
}

// readLayout reads the table and finds out what each partition holds. Where
// there is no table that is the whole disk.
func (c *creation) readLayout(source io.ReaderAt, length size.Bytes) (err error) {
	c.table, err = layout.Read(source, length)
	if err != nil && !errors.Is(err, layout.ErrNoTable) {
		return fmt.Errorf("cannot use %s: %w (%s)", c.source(), err, c.wayOut())
	}
	partitions := []layout.Partition{{Length: length}}
	if c.table != nil {
		partitions = c.table.Partitions
	}
	c.parts = nil
	for i, p := range partitions {
		if p.Extended {
			continue
		}
		part, err := readContent(source, p)
		if err != nil {
			return err
		}
		atEnd := i == len(partitions)-1
		if (c.img != nil || c.backup == rawBackup) && (atEnd || part.info.Kind.Growable()) && part.info.Size > p.Length {
			return fmt.Errorf("cannot use %s: its %s has %d bytes, and there is room for %d: %w (%s)",
				c.source(), part.info.Kind, int64(part.info.Size), int64(p.Length), errCutOff, c.wayOut())
		}
		c.parts = append(c.parts, part)
	}
	return nil
}

// wayOut is what somebody can do who wants the disk written all the same.
func (c *creation) wayOut() string {
	if c.importing {
		return "GROW=no imports it as it is"
	}
	return "NOMOUNT=yes deploys the image as it is"
}

// errCutOff says that the end of a disk is missing.
var errCutOff = errors.New("it is cut off")

// source names what is deployed.
func (c *creation) source() string {
	if c.importing {
		return theBackup
	}
	if c.img == nil {
		return "what Ganeti has written to the disk"
	}
	return "image " + c.img.Path()
}

func readContent(source io.ReaderAt, p layout.Partition) (content, error) {
	section := io.NewSectionReader(source, int64(p.Start), int64(p.Length))
	info, err := filesystem.Probe(section, p.Length)
	if err != nil {
		return content{}, err
	}
	part := content{Partition: p, info: info}
	if part.blank, err = isBlank(section, min(swapHeader, p.Length)); err != nil {
		return content{}, err
	}
	if info.Kind != filesystem.LVM2 {
		return part, nil
	}
	if part.group, err = lvm.Read(section, p.Length); err != nil {
		slog.Warn("LVM is left to the guest", "partition", p.Number, "cause", err)
	}
	return part, nil
}

// planGrowth plans the writes that fit the table to the disk.
func (c *creation) planGrowth() (err error) {
	c.growth = c.chooseGrowth()
	if c.table == nil {
		return nil
	}
	if c.growth.part == nil {
		c.growth.plan, err = c.table.Relocate(c.dev.Size())
		return err
	}
	c.growth.plan, err = c.table.GrowPast(c.dev.Size(), c.growth.part.Number, c.movable)
	return err
}

// chooseGrowth takes the last partition by position that is neither swap nor
// one that by its type never grows, if it holds what can.
func (c *creation) chooseGrowth() growth {
	for _, part := range slices.Backward(c.parts) {
		switch {
		case c.movable(part.Partition) || part.Reserved() != "":
			continue
		case part.info.Apart != "" || !part.info.Kind.Growable() && part.group == nil:
			return growth{why: fmt.Sprintf("partition %d holds %s, which this program does not grow", part.Number, cmp.Or(string(part.info.Kind), "nothing known"))}
		}
		return growth{part: &part}
	}
	return growth{why: "there is no partition that could"}
}

// movable tells whether a partition may be moved for another to grow: swap
// space, made or still to be made, but not with a hibernated system in it.
func (c *creation) movable(p layout.Partition) bool {
	return slices.ContainsFunc(c.parts, func(part content) bool {
		swap := part.info.Kind == filesystem.Swap && part.info.Apart == ""
		return part.Number == p.Number && (swap || part.blank && p.IsSwap())
	})
}

// checkTools makes sure that the programs for what grows are there.
func (c *creation) checkTools() error {
	if c.growth.part == nil {
		return nil
	}
	tools := c.growth.part.info.Kind.Tools()
	if g := c.growth.part.group; g != nil {
		tools = append(tools, lvm.Tools()...)
	}
	for _, tool := range tools {
		if _, err := run.Find(tool); err != nil {
			return fmt.Errorf("cannot grow the %s of the image (GROW=no leaves it as it is): %w", c.growth.part.info.Kind, err)
		}
	}
	return nil
}

// grow makes the table and what the last partition holds as large as the disk.
func (c *creation) grow(ctx context.Context) error {
	if c.tree != nil {
		return nil // it was laid out for this disk
	}
	if c.set.NoMount {
		slog.Info("NOMOUNT is set: the disk holds the image's bytes, not grown, not customised", "by", c.set.Origin("NOMOUNT"))
		return nil
	}
	if !c.set.Grow {
		slog.Info("GROW is no: partitions stay as the image has them", "by", c.set.Origin("GROW"))
		return nil
	}
	if err := c.growTable(); err != nil {
		return classify(Disk, err)
	}
	part := c.growth.part
	if part == nil {
		slog.Info("nothing to grow: " + c.growth.why)
		return nil
	}
	c.guard()
	var err error
	if part.group != nil {
		err = c.growVolume(ctx, part)
	} else {
		err = c.growFileSystem(ctx, part.Start, part.Length, part.info)
	}
	return err
}

// growTable writes the table anew for the disk's size.
func (c *creation) growTable() (err error) {
	if c.table == nil {
		c.parts[0].Length = c.dev.Size()
		if c.growth.part != nil {
			c.growth.part.Length = c.dev.Size()
		}
		return nil
	}
	c.guard()
	plan := c.growth.plan
	if err := c.moveSwap(plan.Moved); err != nil {
		return err
	}
	if err := c.dev.Apply(plan); err != nil {
		return err
	}
	if plan.Note != "" {
		slog.Info(plan.Note)
	}
	if grown := plan.Grown; grown.Number != 0 {
		slog.Info("grew the partition", "partition", grown.Number, "from", c.growth.part.Length, "to", grown.Length)
		c.growth.part.Partition = grown
	}
	c.table, err = layout.Read(c.dev, c.dev.Size())
	return err
}

// moveSwap copies the headers of swap partitions to where they will be.
func (c *creation) moveSwap(moves []layout.Move) error {
	for _, m := range moves {
		if m.From.Extended {
			continue
		}
		if err := c.moveHeader(m.From.Start, m.To.Start, m.From.Length); err != nil {
			return fmt.Errorf("cannot move the swap partition %d: %w", m.From.Number, err)
		}
		slog.Info("moved the swap partition to the end of the disk", "partition", m.From.Number, "size", m.From.Length)
	}
	return nil
}

// growFileSystem lets a file system fill its place on the disk.
func (c *creation) growFileSystem(ctx context.Context, start, length size.Bytes, info filesystem.Info) (err error) {
	loop, err := block.Attach(c.dev.Path(), start, length, c.table.Sector(), false)
	if err != nil {
		return classify(Disk, err)
	}
	defer func() { err = errors.Join(err, loop.Detach()) }()
	dir := filepath.Join(mount.RunDir, "grow")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the mount point: %w", err)
	}
	err = filesystem.Grow(ctx, loop.Path(), info, dir)
	if errors.Is(err, filesystem.ErrLeftToGuest) {
		slog.Warn(err.Error())
		return nil
	}
	return err
}
