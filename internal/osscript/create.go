// Package osscript is what Ganeti calls: create, verify, import, export and
// rename, each a sequence to be read from top to bottom, and the hooks this
// project brings.
package osscript

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/deploy"
	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/hook"
	"ganeti-instance-image/internal/image"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/network"
	"ganeti-instance-image/internal/osapi"
	"ganeti-instance-image/internal/seed"
	"ganeti-instance-image/internal/settings"
	"ganeti-instance-image/internal/store"
	"ganeti-instance-image/internal/undo"
)

// Env is what a script runs in.
type Env struct {
	Site     settings.Site
	OSDir    string         // the OS definition's directory, which hooks are run in
	Environ  []string       // the environment variables, as Ganeti sets them
	LogLevel *slog.LevelVar // lowered where a setting asks for more
}

// read reads what Ganeti and the site say, and logs as they ask.
func (e Env) read(ctx context.Context) (inst osapi.Instance, set *settings.Settings, err error) {
	if inst, err = osapi.Read(e.Environ); err != nil {
		return inst, nil, err
	}
	if set, err = settings.Load(ctx, e.Site, inst, e.Environ); err != nil {
		return inst, nil, err
	}
	if set.Debug {
		e.LogLevel.Set(slog.LevelDebug)
	}
	for _, warning := range set.Warnings() {
		slog.Warn(warning)
	}
	return inst, set, nil
}

// Order is what an administrator asks for in place of what the settings say.
type Order struct {
	Image string // a file's path, a URL, or the name of an image; empty: as the settings have it
	Disk  int    // the disk to write; of another one than 0 the guest is not customised
}

// creation is one run of create: what was asked, and what it found so far.
type creation struct {
	env       Env
	order     Order
	inst      osapi.Instance
	set       *settings.Settings
	hooks     []hook.Hook  // the enabled ones, of all phases
	img       image.Source // nil where Ganeti itself wrote the disk, and of a tree
	tree      *treeImage   // nil of a disk image
	imageType string       // as IMAGE_TYPE has it: qcow2, qemu, raw, tarball, dump
	nics      []network.NIC
	userData  []byte
	access    guest.Access // what users of the guest are to have
	facts     seed.Facts   // of the guest, where it could be mounted
	windows   bool         // the guest is Windows, as far as is known
	unmet     []string     // what settings ask for and the seed cannot give, for the log
	dev       *block.Device
	others    []*otherDisk  // the further disks that have a use
	table     *layout.Table // the image's; nil where there is none
	parts     []content     // what it holds, in the disk's order
	growth    growth
	whole     string // a loop device of all of the disk, while the guest is customised
	steps     *undo.Stack
	guarded   bool       // the disk is made unusable if the operation fails
	importing bool       // the disk is filled from a backup
	backup    backupKind // of which kind that is
	planned   bool       // what the network is to be is known
}

// Create deploys the image to the instance's first disk and makes the guest on
// it this instance. When it fails the disk holds no system, and nothing is left
// mounted or attached.
func Create(ctx context.Context, env Env) error { return Deploy(ctx, env, Order{}) }

// Deploy is Create with an order of the administrator's.
func Deploy(ctx context.Context, env Env, order Order) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	c := &creation{env: env, order: order, steps: &steps}

	if err := c.readInput(ctx); err != nil {
		return classify(Input, err)
	}
	if c.set.CDInstall && c.order.Image == "" {
		slog.Info("CDINSTALL is set: the disks are left as they are", "by", c.set.Origin("CDINSTALL"))
		return nil
	}
	if err := c.openImage(ctx); err != nil {
		return classify(Image, err)
	}
	if err := c.openDisks(); err != nil {
		return classify(Disk, err)
	}
	if err := c.check(ctx); err != nil {
		return err
	}
	if err := c.write(ctx); err != nil {
		return err
	}
	if c.seedDisk() != nil {
		if err := c.lookForWindows(c.dev, c.dev.Size()); err != nil {
			return err
		}
	}
	if err := c.grow(ctx); err != nil {
		return err
	}
	if err := c.prepareOthers(ctx); err != nil {
		return err
	}
	if err := c.customise(ctx); err != nil {
		return err
	}
	if err := c.writeSeed(); err != nil {
		return err
	}
	return classify(Disk, c.dev.Sync())
}

// readInput reads all that Ganeti and the site say.
func (c *creation) readInput(ctx context.Context) (err error) {
	if c.inst, c.set, err = c.env.read(ctx); err != nil {
		return err
	}
	if c.order.Image != "" {
		c.set.Order(c.order.Image)
		c.inst.Reinstall = true // its disks may hold what must not be lost
	}
	if c.order.Disk != 0 {
		return nil
	}
	hooks, err := hook.ListAll(c.set.CustomizeDir, c.inst.Variant)
	c.hooks = hook.Enabled(hooks)
	return err
}

// openImage finds the image, fetching it if need be, and has its format
// checked. What it needs from the network besides is fetched here too, while
// the disk is as it was.
func (c *creation) openImage(ctx context.Context) error {
	if c.set.OSImage && c.order.Image == "" {
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
	if c.imageType, err = typeOf(found); err != nil {
		return err
	}
	if c.imageType == image.TypeTarball || c.imageType == image.TypeDump {
		return c.openTree(found)
	}
	if c.img, err = image.Open(found.Path, c.imageType); err != nil {
		return err
	}
	c.steps.Push("close the image", c.img.Close)
	slog.Info("image", append([]any{"file", found.Path, "format", c.img.Format()}, sizeOf(c.img)...)...)
	return nil
}

// typeOf is the image's type: what IMAGE_TYPE says, raw where the name says so,
// since what a guest has written may begin with anything, or what it holds. A
// name that says tarball or dump counts where that is nothing known: it is no
// disk.
func typeOf(found store.Found) (string, error) {
	if found.Told || found.Type == image.TypeRaw {
		return found.Type, nil
	}
	imageType, err := image.Detect(found.Path)
	if imageType == image.TypeQEMU && (found.Type == image.TypeTarball || found.Type == image.TypeDump) {
		imageType = found.Type
	}
	return imageType, err
}

// sizeOf is what is known of an image's size before it is written, for the log.
func sizeOf(img image.Source) []any {
	if s, ok := img.(*image.Stream); ok {
		if n, known := s.Size(); known {
			return []any{"compression", s.Compression(), "size", n}
		}
		return []any{"compression", s.Compression()}
	}
	return []any{"size", img.(image.Image).Size()}
}

// openDisks opens the instance's disks that have a use, for nobody else to use.
func (c *creation) openDisks() (err error) {
	if len(c.inst.Disks) == 0 {
		return errors.New("cannot deploy an image: the instance has no disk")
	}
	if c.dev, err = c.openDisk(c.order.Disk); err != nil {
		return err
	}
	return c.openOthers()
}

// openDisk opens one disk of the instance.
func (c *creation) openDisk(index int) (*block.Device, error) {
	if index < 0 || index >= len(c.inst.Disks) {
		return nil, fmt.Errorf("cannot write disk %d: the instance has %d disks, counted from 0", index, len(c.inst.Disks))
	}
	disk := c.inst.Disks[index]
	if disk.Path == "" && disk.URI != "" {
		return nil, fmt.Errorf("cannot write disk %d: it has no path on this node, only the URI %s (disk access mode userspace); "+
			"set access=kernelspace for its disk template, or add the instance with --no-install", index, disk.URI)
	}
	if disk.Path == "" {
		return nil, fmt.Errorf("cannot write disk %d: Ganeti gave no DISK_%d_PATH", index, index)
	}
	if disk.Access == "ro" && !c.importing { // which fills what the guest only reads
		return nil, fmt.Errorf("cannot write disk %d (%s): Ganeti gives it read-only (mode=ro)", index, disk.Path)
	}
	dev, err := block.Open(disk.Path)
	if err != nil {
		return nil, c.sayMounted(err)
	}
	c.steps.Push("close the disk "+disk.Path, func() error {
		if err := dev.Close(); err != nil { // all that was written was flushed
			slog.Warn(err.Error())
		}
		return nil
	})
	return dev, nil
}

// write puts the image on the disk. Until its last byte is good the disk shows
// neither the old system nor the new one.
func (c *creation) write(ctx context.Context) error {
	if c.tree != nil {
		return c.writeTree(ctx)
	}
	if c.img == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c.guard()
	written, err := c.writeImage(ctx)
	if err != nil {
		return classifyDeploy(err)
	}
	if c.unpacked() {
		if err := c.inspect(written, written.Size()); err != nil {
			return err
		}
	}
	return classifyDeploy(written.Commit())
}

// unpacked tells whether the image is one of which is known only when it is
// written what it holds.
func (c *creation) unpacked() bool {
	_, is := c.img.(*image.Stream)
	return is
}

func (c *creation) writeImage(ctx context.Context) (*deploy.Written, error) {
	if s, ok := c.img.(*image.Stream); ok {
		return deploy.WriteStream(ctx, s, c.dev)
	}
	return deploy.Write(ctx, c.img.(image.Image), c.dev)
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

// classifyDeploy tells an image that does not decode from a disk that is too
// small or cannot be written.
func classifyDeploy(err error) error {
	if errors.As(err, new(*deploy.DiskError)) {
		return classify(Disk, err)
	}
	return classify(Image, err)
}
