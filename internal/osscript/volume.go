package osscript

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/lvm"
	"ganeti-instance-image/internal/mount"
	"ganeti-instance-image/internal/size"
)

// growVolume has the physical volume fill its partition, and the logical volume
// with the root file system take what is free.
func (c *creation) growVolume(ctx context.Context, part *content) error {
	root, err := mount.FindRoot(ctx, c.dev, c.table)
	if errors.Is(err, mount.ErrNoRoot) || err == nil && root.Volume == "" {
		slog.Info("no logical volume is grown: none has the root file system")
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		slog.Warn("no logical volume is grown: it cannot be found out which one has the root file system", "cause", err)
		return nil
	}
	return c.extend(ctx, part, root)
}

// extend grows the root's volume in the metadata first, moves what made way for
// it, and grows the file system last. Where the volume must keep its place, the
// guest finds the new room in its volume group.
func (c *creation) extend(ctx context.Context, part *content, root *mount.Part) (err error) {
	moves, err := c.onPhysicalVolume(part, func(dev string) ([]lvm.Move, error) {
		return lvm.ExtendPast(ctx, dev, root.Group, root.Volume, mount.RunDir, c.movableVolume(part))
	})
	if errors.Is(err, lvm.ErrBehind) || errors.Is(err, lvm.ErrUnsupported) {
		slog.Warn("the root's logical volume keeps its size, the room is left in the volume group", "volume", root.Group+"/"+root.Volume, "cause", err)
		_, err = c.onPhysicalVolume(part, func(dev string) ([]lvm.Move, error) { return nil, lvm.Extend(ctx, dev, root.Group, "", mount.RunDir) })
		return orUnsupported(err)
	}
	if err != nil {
		return err
	}
	for _, m := range moves {
		if m.Offset > 0 {
			continue // what is behind the header is worth nothing
		}
		if err := c.moveHeader(part.Start+m.From.Start, part.Start+m.To.Start, m.From.Length); err != nil {
			return fmt.Errorf("cannot move the logical volume %s: %w", m.Volume, err)
		}
		slog.Info("moved the swap volume to the end of the volume group", "volume", root.Group+"/"+m.Volume)
	}
	group, err := lvm.Read(part.section(c.dev), part.Length)
	if err != nil {
		return err
	}
	volume, _ := group.Volume(root.Volume)
	place, ok := volume.Linear()
	if !ok {
		return fmt.Errorf("cannot find the logical volume %s/%s again", root.Group, root.Volume)
	}
	slog.Info("grew the logical volume", "volume", root.Group+"/"+root.Volume, "from", root.Length, "to", place.Length)
	return c.growFileSystem(ctx, part.Start+place.Start, place.Length, root.Info)
}

// orUnsupported is nil for a volume group that lvm must not change.
func orUnsupported(err error) error {
	if errors.Is(err, lvm.ErrUnsupported) {
		slog.Warn("the volume group keeps its size", "cause", err)
		return nil
	}
	return err
}

// onPhysicalVolume runs what needs a device of the physical volume alone.
func (c *creation) onPhysicalVolume(part *content, use func(dev string) ([]lvm.Move, error)) (moves []lvm.Move, err error) {
	loop, err := block.AttachAlone(c.dev.Path(), part.Start, part.Length, c.table.Sector())
	if err != nil {
		return nil, classify(Disk, err)
	}
	defer func() { err = errors.Join(err, loop.Detach()) }()
	return use(loop.Path())
}

// movableVolume tells which volumes may make way: those with swap space.
func (c *creation) movableVolume(part *content) func(lvm.Volume) bool {
	return func(v lvm.Volume) bool {
		place, ok := v.Linear()
		if !ok {
			return false
		}
		info, err := filesystem.Probe(io.NewSectionReader(c.dev, int64(part.Start+place.Start), int64(place.Length)), place.Length)
		return err == nil && info.Kind == filesystem.Swap
	}
}

// section reads what a partition of the disk holds.
func (p *content) section(disk io.ReaderAt) io.ReaderAt {
	return io.NewSectionReader(disk, int64(p.Start), int64(p.Length))
}

// swapHeader is how much of swap space tells that it is some, with its UUID and
// label: a page, of whatever size.
const swapHeader = 64 * size.KiB

// moveHeader copies the header of swap space, all of it that is worth keeping.
func (c *creation) moveHeader(from, to, length size.Bytes) error {
	header := make([]byte, min(swapHeader, length))
	if _, err := c.dev.ReadAt(header, int64(from)); err != nil {
		return classify(Disk, err)
	}
	_, err := c.dev.WriteAt(header, int64(to))
	return classify(Disk, err)
}
