// Package osscript is what Ganeti calls: create, verify, import, export and
// rename, each a sequence to be read from top to bottom, and the hooks this
// project brings.
//
// Left out in this version, and refused in one sentence: tarballs, dumps,
// import, export and rename.
package osscript

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/deploy"
	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/hook"
	"ganeti-instance-image/internal/image"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/osapi"
	"ganeti-instance-image/internal/settings"
	"ganeti-instance-image/internal/undo"
)

// Env is what a script runs in.
type Env struct {
	Site     settings.Site
	OSDir    string         // the OS definition's directory, which hooks are run in
	Environ  []string       // the environment variables, as Ganeti sets them
	LogLevel *slog.LevelVar // lowered where a setting asks for more
}

// creation is one run of create: what was asked, and what it found so far.
type creation struct {
	env       Env
	inst      osapi.Instance
	set       *settings.Settings
	hooks     []hook.Hook // the enabled ones
	img       image.Image // nil where Ganeti itself wrote the disk
	imageType string      // as IMAGE_TYPE has it: qcow2, qemu, raw
	userData  []byte
	dev       *block.Device
	table     *layout.Table    // the image's; nil where there is none
	last      layout.Partition // the last one by position, or the whole disk
	lastInfo  filesystem.Info  // what it holds
	plan      layout.Plan      // what fits the table to the disk
	steps     *undo.Stack
	guarded   bool // the disk is made unusable if the operation fails
}

// Create deploys the image to the instance's first disk and makes the guest on
// it this instance. When it fails the disk holds no system, and nothing is left
// mounted or attached.
func Create(ctx context.Context, env Env) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	c := &creation{env: env, steps: &steps}

	if err := c.readInput(ctx); err != nil {
		return classify(Input, err)
	}
	if c.set.CDInstall {
		slog.Info("CDINSTALL is set: the disks are left as they are", "by", c.set.Origin("CDINSTALL"))
		return nil
	}
	if err := c.openImage(ctx); err != nil {
		return classify(Image, err)
	}
	if err := c.openDisk(); err != nil {
		return classify(Disk, err)
	}
	if err := c.check(ctx); err != nil {
		return err
	}
	if err := c.write(ctx); err != nil {
		return err
	}
	if err := c.grow(ctx); err != nil {
		return err
	}
	if err := c.customise(ctx); err != nil {
		return err
	}
	return c.dev.Sync()
}

// readInput reads all that Ganeti and the site say.
func (c *creation) readInput(ctx context.Context) (err error) {
	if c.inst, err = osapi.Read(c.env.Environ); err != nil {
		return err
	}
	if c.set, err = settings.Load(ctx, c.env.Site, c.inst, c.env.Environ); err != nil {
		return err
	}
	if c.set.Debug {
		c.env.LogLevel.Set(slog.LevelDebug)
	}
	for _, warning := range c.set.Warnings() {
		slog.Warn(warning)
	}
	hooks, err := hook.List(c.set.CustomizeDir)
	c.hooks = hook.Enabled(hooks)
	return err
}

// openImage finds the image, fetching it if need be, and has its format
// checked. What it needs from the network besides is fetched here too, while
// the disk is as it was.
func (c *creation) openImage(ctx context.Context) error {
	if c.set.OSImage {
		slog.Info("the OS parameter os-image is set: Ganeti has written the disk, it is only grown and customised")
		c.imageType = "raw"
		return nil
	}
	found, err := findImage(ctx, c.set)
	if err != nil {
		return err
	}
	c.steps.Push("remove the downloaded image", func() error {
		if err := found.Cleanup(); err != nil {
			slog.Warn("the downloaded image stays in the cache", "cause", err)
		}
		return nil
	})
	if found.Type == "tarball" || found.Type == "dump" {
		return classify(Refused, fmt.Errorf("cannot deploy %s: this version deploys disk images (qcow2, qemu, raw) only, not a %s", found.Path, found.Type))
	}
	if c.img, err = image.Open(found.Path, found.Type); err != nil {
		return err
	}
	c.steps.Push("close the image", c.img.Close)
	c.imageType = found.Type
	slog.Info("image", "file", found.Path, "format", c.img.Format(), "size", c.img.Size())
	return nil
}

// openDisk opens the instance's first disk for nobody else to use.
func (c *creation) openDisk() error {
	if len(c.inst.Disks) == 0 {
		return errors.New("cannot deploy an image: the instance has no disk")
	}
	disk := c.inst.Disks[0]
	if disk.Path == "" && disk.URI != "" {
		return fmt.Errorf("cannot deploy to disk 0: it has no path on this node, only the URI %s (disk access mode userspace); "+
			"set access=kernelspace for its disk template, or add the instance with --no-install", disk.URI)
	}
	if disk.Path == "" {
		return errors.New("cannot deploy to disk 0: Ganeti gave no DISK_0_PATH")
	}
	if disk.Access == "ro" {
		return fmt.Errorf("cannot deploy to disk 0 (%s): Ganeti gives it read-only (mode=ro)", disk.Path)
	}
	dev, err := block.Open(disk.Path)
	if err != nil {
		return err
	}
	c.dev = dev
	c.steps.Push("close the disk", dev.Close)
	return nil
}

// write puts the image on the disk. Until its last byte is good the disk shows
// neither the old system nor the new one.
func (c *creation) write(ctx context.Context) error {
	if c.img == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c.guard()
	commit, err := deploy.Write(ctx, c.img, c.dev)
	if err != nil {
		return classifyWrite(err)
	}
	return classify(Disk, commit())
}

// guard has the disk show no system if anything fails from now on: it is about
// to be changed, and what is changed by half must not boot.
func (c *creation) guard() {
	if c.guarded {
		return
	}
	c.guarded = true
	c.steps.OnFailure("make the disk unusable again", func() error { return deploy.Wipe(c.dev) })
}

// classifyWrite tells an image that does not fit or does not decode from a
// disk that cannot be written.
func classifyWrite(err error) error {
	if pathErr := (*os.PathError)(nil); errors.As(err, &pathErr) && pathErr.Op == "write" {
		return classify(Disk, err)
	}
	return classify(Image, err)
}
