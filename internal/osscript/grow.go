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

	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/deploy"
	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/mount"
	"ganeti-instance-image/internal/run"
)

// check looks, before the disk is touched, at all that a later step will need:
// room for the image, its table, the file system that is to grow, the programs
// for it, and what the enabled hooks read.
func (c *creation) check(ctx context.Context) error {
	if c.img != nil {
		if err := deploy.Fits(c.img, c.dev); err != nil {
			return classify(Disk, err)
		}
		if err := deploy.CheckEnds(c.img); err != nil {
			return classify(Image, err)
		}
	}
	if c.set.NoMount {
		return nil
	}
	if err := c.readLayout(); err != nil {
		return classify(Image, err)
	}
	if err := c.checkGrowth(); err != nil {
		return err
	}
	return classify(Input, c.checkHooks(ctx))
}

// readLayout reads the table of the image, or of the disk where Ganeti has
// written it, and finds out what the last partition by position holds. Where
// there is no table that is the whole disk.
func (c *creation) readLayout() (err error) {
	var source io.ReaderAt = c.dev
	length := c.dev.Size()
	if c.img != nil {
		source, length = c.img, c.img.Size()
	}
	c.table, err = layout.Read(source, length)
	if err != nil && !errors.Is(err, layout.ErrNoTable) {
		return fmt.Errorf("%w (NOMOUNT=yes deploys the image as it is)", err)
	}
	c.last = layout.Partition{Length: length}
	if c.table != nil {
		c.last, _ = c.table.Last()
	}
	c.lastInfo, err = filesystem.Probe(io.NewSectionReader(source, int64(c.last.Start), int64(c.last.Length)), c.last.Length)
	if err == nil && c.img != nil && c.lastInfo.Size > c.last.Length {
		return fmt.Errorf("cannot use image %s: its %s has %d bytes, and there is room for %d: the image is cut off (NOMOUNT=yes deploys it as it is)",
			c.img.Path(), c.lastInfo.Kind, int64(c.lastInfo.Size), int64(c.last.Length))
	}
	return err
}

// checkGrowth makes sure that the table can grow to the disk's size and that
// the programs for the file system are there.
func (c *creation) checkGrowth() (err error) {
	if !c.set.Grow {
		return nil
	}
	if c.plan, err = c.planGrowth(); err != nil {
		return classify(Image, err)
	}
	for _, tool := range c.lastInfo.Kind.Tools() {
		if _, err := run.Find(tool); err != nil {
			return fmt.Errorf("cannot grow the %s of the image (GROW=no leaves it as it is): %w", c.lastInfo.Kind, err)
		}
	}
	return nil
}

// planGrowth plans the writes that fit the table to the disk: the last
// partition is extended only where its file system can follow.
func (c *creation) planGrowth() (layout.Plan, error) {
	if c.table == nil {
		return layout.Plan{}, nil
	}
	if c.lastInfo.Kind.Growable() && c.last.Reserved() == "" {
		return c.table.Grow(c.dev.Size())
	}
	return c.table.Relocate(c.dev.Size())
}

// grow makes the table and the last file system as large as the disk.
func (c *creation) grow(ctx context.Context) error {
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
	return c.growFileSystem(ctx)
}

// growTable writes the table anew for the disk's size.
func (c *creation) growTable() (err error) {
	if c.table == nil {
		c.last.Length = c.dev.Size()
		return nil
	}
	c.guard()
	if err := c.dev.Apply(c.plan); err != nil {
		return err
	}
	if c.plan.Note != "" {
		slog.Info(c.plan.Note)
	}
	if c.plan.Grown.Number != 0 {
		slog.Info("grew the last partition", "partition", c.plan.Grown.Number, "from", c.last.Length, "to", c.plan.Grown.Length)
		c.last = c.plan.Grown
	}
	c.table, err = layout.Read(c.dev, c.dev.Size())
	return err
}

// growFileSystem lets the file system fill its partition.
func (c *creation) growFileSystem(ctx context.Context) (err error) {
	if !c.lastInfo.Kind.Growable() {
		slog.Info("nothing to grow: the last partition holds no file system that this program grows",
			"partition", c.last.Number, "holds", cmp.Or(string(c.lastInfo.Kind), "nothing known"))
		return nil
	}
	c.guard()
	loop, err := block.Attach(c.dev.Path(), c.last.Start, c.last.Length, c.table.Sector(), false)
	if err != nil {
		return classify(Disk, err)
	}
	defer func() { err = errors.Join(err, loop.Detach()) }()
	dir := filepath.Join(mount.RunDir, "grow")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the mount point: %w", err)
	}
	err = filesystem.Grow(ctx, loop.Path(), c.lastInfo, dir)
	if errors.Is(err, filesystem.ErrLeftToGuest) {
		slog.Warn(err.Error())
		return nil
	}
	return err
}
