package osscript

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/capture"
	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/mount"
	"ganeti-instance-image/internal/osapi"
	"ganeti-instance-image/internal/settings"
	"ganeti-instance-image/internal/undo"
)

// capturing is one capture of an instance.
type capturing struct {
	order capture.Order
	inst  osapi.Instance
	set   *settings.Settings
	made  *capture.Capture
	disks []*block.Source
	steps *undo.Stack
}

// Capture makes an image of an instance's disks, which stay as they are. When it
// fails there is no part of an image, and nothing is left mounted or attached.
func Capture(ctx context.Context, env Env, order capture.Order) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	c := &capturing{order: order, steps: &steps}
	if err := c.readInput(ctx, env); err != nil {
		return classify(Input, err)
	}
	if err := c.openDisks(); err != nil {
		return classify(Disk, err)
	}
	if err := c.made.CheckRoom(); err != nil {
		return err
	}
	if err := c.made.Make(ctx, c.prepare, &steps); err != nil {
		return classifyCapture(err)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := c.checkStillIdle(); err != nil {
		return classify(Disk, err)
	}
	names, err := c.made.Publish(&steps)
	if err != nil {
		return err
	}
	for _, name := range names {
		slog.Info("the image is there", "file", name)
	}
	c.checkFound(ctx, names)
	return nil
}

func (c *capturing) readInput(ctx context.Context, env Env) (err error) {
	if c.inst, c.set, err = env.read(ctx); err != nil {
		return err
	}
	machine, err := nodeMachine()
	if err != nil {
		return err
	}
	c.order.Defaults(c.set.ImageDir, c.inst.Name, cmp.Or(c.set.Arch, machine))
	if err := c.order.Check(); err != nil {
		return err
	}
	c.made, err = capture.New(c.order)
	return err
}

// nodeMachine is what kind of machine this node is, as uname(2) has it.
func nodeMachine() (string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", fmt.Errorf("cannot tell what machine this node is: %w", err)
	}
	return unix.ByteSliceToString(uts.Machine[:]), nil
}

func (c *capturing) openDisks() error {
	for _, n := range c.order.Disks {
		path, err := diskPath(c.inst, n)
		if err != nil {
			return classify(Input, err)
		}
		open := block.OpenIdleSource
		if c.order.Running {
			open = block.OpenSource
		}
		src, err := open(path)
		if err != nil {
			return err
		}
		c.steps.Push("close the disk", src.Close)
		c.disks = append(c.disks, src)
		if err := c.made.Add(n, src); err != nil {
			return err
		}
	}
	if c.order.Running {
		slog.Warn("the instance runs: each disk is copied as it is written to, and the image is as after a power cut, or worse where the guest is busy; stop it for an image that is sure to be whole")
	}
	return nil
}

// checkStillIdle makes sure that no disk was written to while it was copied.
func (c *capturing) checkStillIdle() error {
	if c.order.Running {
		return nil
	}
	for _, src := range c.disks {
		if err := src.CheckIdle(); err != nil {
			return fmt.Errorf("cannot use the copy of the disk %s, whose instance was started meanwhile: %w", src.Path(), err)
		}
	}
	return nil
}

// diskPath is where a disk of the instance is.
func diskPath(inst osapi.Instance, index int) (string, error) {
	if index >= len(inst.Disks) {
		return "", fmt.Errorf("cannot capture disk %d: the instance has %d disks, counted from 0", index, len(inst.Disks))
	}
	if isFirmware(inst, index) {
		return "", fmt.Errorf("cannot capture disk %d: it holds the instance's UEFI firmware", index)
	}
	disk := inst.Disks[index]
	if disk.Path == "" {
		return "", fmt.Errorf("cannot capture disk %d: it has no path on this node (%s)", index, cmp.Or(disk.URI, "Ganeti names none"))
	}
	return disk.Path, nil
}

// prepare takes from the copy of a guest what belongs to the instance.
func (c *capturing) prepare(_ int, tree *mount.Tree) error {
	if what, immutable := tree.Root.Immutable(); immutable {
		return classify(Refused, fmt.Errorf("cannot take what belongs to the instance from the guest: it is %s; --keep %s makes an image of it as it is", what, capture.KeepAll))
	}
	changes, err := tree.Root.PrepareImage(guest.CaptureOptions{Keep: c.order.Keep, Remove: c.order.Remove, Name: c.inst.Name})
	say("capture", changes)
	if err != nil {
		return fmt.Errorf("cannot take what belongs to the instance from the guest: %w", err)
	}
	return relabel(tree.Root)
}

// checkFound says where create would take another file for the image.
func (c *capturing) checkFound(ctx context.Context, names []string) {
	if !slices.Contains(c.order.Disks, 0) {
		return
	}
	set := &settings.Settings{ImageName: c.order.Name, ImageDir: c.order.Dir, Arch: c.order.Arch}
	found, err := findImage(ctx, set)
	switch {
	case err != nil:
		slog.Warn("cannot tell whether create finds the image", "cause", err)
	case !slices.Contains(names, found.Path):
		slog.Warn("create finds another image of that name first, where IMAGE_TYPE does not say which is meant", "image", found.Path)
	case filepath.Clean(c.order.Dir) != filepath.Clean(c.set.ImageDir):
		slog.Info("create does not look there: it takes images of IMAGE_DIR, or IMAGE_FILE", "IMAGE_DIR", c.set.ImageDir)
	}
}

// classifyCapture tells a disk that cannot be read, or is not what was thought,
// from all else.
func classifyCapture(err error) error {
	if errors.As(err, new(*capture.Refusal)) {
		return classify(Refused, err)
	}
	if errors.As(err, new(*capture.ReadError)) {
		return classify(Disk, err)
	}
	return err
}
