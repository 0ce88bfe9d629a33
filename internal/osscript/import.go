package osscript

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"

	"ganeti-instance-image/internal/backup"
	"ganeti-instance-image/internal/contents"
	"ganeti-instance-image/internal/deploy"
	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/grub"
	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/hook"
	"ganeti-instance-image/internal/image"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/mount"
	"ganeti-instance-image/internal/network"
	"ganeti-instance-image/internal/seed"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/undo"
)

// importHooks are the hooks that run at an import: what writes the network of
// today, and what installs a boot loader.
var importHooks = []string{"interfaces", "grub"}

// theBackup is what is imported, for messages.
const theBackup = "the backup"

// Import fills one disk of an instance from the backup on stdin, which it reads to
// the end whatever happens. Until all of the backup was read and found good the
// disk shows nothing of it; when Import fails the disk holds no system.
func Import(ctx context.Context, env Env, stdin io.Reader) error {
	in := newInput(stdin)
	err := importFrom(ctx, env, in)
	if err != nil && ctx.Err() == nil {
		slog.Error("failed; what is left of the backup is read and not used", "cause", err)
	}
	in.drain(ctx)
	return err
}

func importFrom(ctx context.Context, env Env, in *input) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	c := &creation{env: env, steps: &steps, importing: true}
	if err := c.readImport(ctx); err != nil {
		return classify(Input, err)
	}
	head, err := in.peek(ctx, sniffed)
	if err != nil {
		return fmt.Errorf("cannot read the backup: %w", err)
	}
	switch c.backup = recognise(head); c.backup {
	case noBackup:
		slog.Warn("the backup of this disk holds nothing: the disk is left as it is", "disk", c.order.Disk)
		return nil
	case otherTar, bareDump, packedBackup:
		return classify(Image, fmt.Errorf("cannot import the backup: it is %s", c.backup))
	}
	slog.Info("importing", "disk", c.order.Disk, "from", c.backup)
	if c.dev, err = c.openDisk(c.order.Disk); err != nil {
		return classify(Disk, err)
	}
	if err := c.planNetwork(ctx); err != nil {
		return classify(Input, err)
	}
	if err := c.restore(ctx, in, head); err != nil {
		return err
	}
	if err := c.customiseImport(ctx); err != nil {
		return err
	}
	return classify(Disk, c.dev.Sync())
}

// readImport reads what Ganeti and the site say. Of the hooks it keeps those that
// count here, and for the system's disk only.
func (c *creation) readImport(ctx context.Context) error {
	if err := c.readInput(ctx); err != nil {
		return err
	}
	target := c.inst.Import
	if err := transferable("import", target); err != nil {
		return err
	}
	if target.Index >= len(c.inst.Disks) {
		return fmt.Errorf("cannot import disk %d: the instance has %d disks, counted from 0", target.Index, len(c.inst.Disks))
	}
	c.order.Disk = target.Index
	c.inst.Disks[target.Index].Path = target.Path
	c.hooks = slices.DeleteFunc(hook.In(c.hooks, hook.AfterMount), func(h hook.Hook) bool {
		ownLoader := h.Ours && h.Name == "grub" // importLoader does what that does
		return c.order.Disk != 0 || ownLoader || !slices.Contains(importHooks, h.Name)
	})
	if c.wantsIdentity() && c.leavesGuest() {
		return fmt.Errorf("cannot give the guest another identity (IMPORT_IDENTITY=renew, by %s): NOMOUNT or CDINSTALL is set, and it is not mounted", c.set.Origin("IMPORT_IDENTITY"))
	}
	return nil
}

// planNetwork learns of the network while the disk is as it was. Only where it is
// to be written now must it be known.
func (c *creation) planNetwork(ctx context.Context) (err error) {
	if c.order.Disk != 0 || c.leavesGuest() {
		return nil
	}
	c.nics, err = network.Plan(ctx, c.set, c.inst)
	if c.planned = err == nil; !c.planned && !c.enabled("interfaces") && !c.wantsIdentity() {
		slog.Warn("the guest's seed, if it has one, keeps its network", "cause", err)
		return nil
	}
	return err
}

// leavesGuest tells whether the guest is not looked at.
func (c *creation) leavesGuest() bool { return c.set.NoMount || c.set.CDInstall }

// restore writes the backup to the disk.
func (c *creation) restore(ctx context.Context, in *input, head []byte) error {
	switch c.backup {
	case ourBackup:
		return c.restoreDisk(ctx, func(ctx context.Context, sink *deploy.Sink) error { return c.receiveBackup(ctx, in, head, sink) })
	case qcow2Backup:
		return c.restoreDisk(ctx, func(ctx context.Context, sink *deploy.Sink) error {
			return c.receiveQCOW2(ctx, in.reader(ctx), image.UnknownLength, sink)
		})
	case oldBackup:
		return c.restoreOld(ctx, in)
	}
	return c.restoreDisk(ctx, func(ctx context.Context, sink *deploy.Sink) error { return c.receiveRaw(ctx, in, sink) })
}

// restoreDisk writes the bytes of a disk, and grows what is on it where the disk
// is larger now. To one of the same size every byte is as it was.
func (c *creation) restoreDisk(ctx context.Context, receive func(context.Context, *deploy.Sink) error) error {
	c.imageType = image.TypeRaw
	written, err := deploy.Receive(ctx, theBackup, c.dev, receive)
	if err != nil {
		return classifyDeploy(err)
	}
	grows, err := c.inspectImported(written)
	if err != nil {
		return err
	}
	if err := written.Commit(); err != nil || !grows {
		return classifyDeploy(err)
	}
	if err := c.grow(ctx); err != nil {
		return fmt.Errorf("%w; %s", err, c.wayOut())
	}
	return nil
}

// inspectImported plans the growth. What cannot be grown is restored all the same;
// but of a raw disk only what is on it tells whether that came whole.
func (c *creation) inspectImported(written *deploy.Written) (grows bool, err error) {
	if c.dev.Size()-written.Size() < size.MiB {
		return false, nil // less is not taken
	}
	if c.leavesGuest() || !c.set.Grow {
		slog.Info("the disk is larger than the one that was exported; partitions stay as they were", "by", c.set.Origin("GROW"))
		return false, nil
	}
	err = c.inspect(written, written.Size())
	if errors.Is(err, errCutOff) || errors.Is(err, layout.ErrDamaged) && c.backup == rawBackup {
		return false, err
	}
	if err == nil {
		err = c.checkSound(written)
	}
	if err != nil {
		slog.Warn("the disk is larger than the one that was exported; partitions stay as they were", "cause", err)
		return false, nil
	}
	return true, nil
}

// checkSound makes sure that growing what was restored, with the repairs that come
// before, cannot harm it: that it is what it seems to be, and is not damaged. A
// journal that waits to be replayed is no damage.
func (c *creation) checkSound(written *deploy.Written) error {
	if c.growth.part == nil {
		return nil
	}
	disk, err := contents.Of(written, written.Size())
	if err != nil {
		return err
	}
	for _, p := range disk.Parts {
		grows := p.Number == c.growth.part.Number && (p.Volume == "" || p.Kind.Growable())
		section := io.NewSectionReader(written, int64(p.Start), int64(p.Length))
		waits := p.Volume == "" && filesystem.Unreplayed(section, p.Length, p.Kind) != ""
		if (grows || p.Number == 0) && p.Whole && (p.Doubtful || !waits) {
			return fmt.Errorf("partition %d is not grown: %s", p.Number, p.Why)
		}
	}
	return nil
}

// begin makes the disk ready, if it is large enough. From then on it is made
// unusable if anything fails.
func (c *creation) begin(sink *deploy.Sink, total size.Bytes) error {
	return sink.Begin(total, c.guard)
}

func (c *creation) receiveBackup(ctx context.Context, in *input, head []byte, sink *deploy.Sink) error {
	r, err := backup.Open(in.closer(ctx), head)
	if err != nil {
		return err
	}
	defer r.Close()
	slog.Info("the backup is", "of", r.Manifest.Instance, "disk", r.Manifest.Disk, "made", r.Manifest.Created, "size", r.Manifest.Size)
	if err := c.begin(sink, r.Manifest.Size); err != nil {
		return err
	}
	return r.Copy(ctx, sink)
}

func (c *creation) receiveRaw(ctx context.Context, in *input, sink *deploy.Sink) error {
	if err := c.begin(sink, 0); err != nil {
		return err
	}
	r := in.reader(ctx)
	for off := size.Bytes(0); ; {
		b := sink.Room(off, size.MiB)
		n, err := io.ReadFull(r, b)
		if n > 0 {
			if err := sink.Data(off, b[:n]); err != nil {
				return err
			}
		}
		off += size.Bytes(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return checkWhole(off)
		}
		if err != nil {
			return fmt.Errorf("cannot read the backup: %w", err)
		}
	}
}

// checkWhole refuses a raw disk that no disk can be of: the beginning of something
// that was cut off.
func checkWhole(n size.Bytes) error {
	if n%512 == 0 {
		return nil
	}
	return fmt.Errorf("cannot import the backup: it is cut off: its %d bytes begin as no backup that is known, and are no disk's, which would be a multiple of 512", int64(n))
}

// receiveQCOW2 reads a qcow2 image of n bytes, all there are where n is less than 0.
func (c *creation) receiveQCOW2(ctx context.Context, r io.Reader, n int64, sink *deploy.Sink) error {
	return image.ReceiveQCOW2(ctx, r, n, c.set.ImportDir, qcow2Sink{sink, c})
}

// qcow2Sink is a Sink for bytes that stay the sender's.
type qcow2Sink struct {
	*deploy.Sink
	c *creation
}

func (s qcow2Sink) Begin(total size.Bytes) error { return s.c.begin(s.Sink, total) }

func (s qcow2Sink) Data(off size.Bytes, data []byte) error {
	for len(data) > 0 {
		b := s.Room(off, size.Bytes(len(data)))
		n := copy(b, data)
		if err := s.Sink.Data(off, b); err != nil {
			return err
		}
		off, data = off+size.Bytes(n), data[n:]
	}
	return nil
}

// customiseImport makes the guest fit what Ganeti gives it now: its network, by
// the owner that has, the boot loader of a disk that was laid out anew, and where
// that is asked for another identity.
//
// Where none of that is to be done the disk stays as it was to the last byte: a
// seed in the guest is the business of the rename that Ganeti runs next.
func (c *creation) customiseImport(ctx context.Context) (err error) {
	if c.order.Disk != 0 || c.leavesGuest() || c.tree == nil && len(c.hooks) == 0 && !c.wantsIdentity() {
		return nil
	}
	var steps undo.Stack
	defer steps.Unwind(&err)
	tree, why, err := c.openGuest(ctx, &steps)
	if err != nil {
		return err
	}
	if why != nil && (c.wantsIdentity() || c.tree != nil && tree == nil) {
		return fmt.Errorf("cannot make the guest this instance: %w", why)
	}
	if why != nil && c.tree == nil {
		slog.Warn("the guest is left as it was", "cause", why)
		return nil
	}
	return c.customiseImported(ctx, tree, &steps)
}

func (c *creation) customiseImported(ctx context.Context, tree *mount.Tree, steps *undo.Stack) error {
	for _, step := range []func() error{
		func() error { return c.checkMounted(tree) },
		func() error { return c.renewIdentity(tree.Root) },
		func() error { return c.importLoader(ctx, tree, steps) },
		func() error { return c.importSeed(tree.Root) },
		func() error { return c.runHooks(ctx, tree) },
		func() error { return relabel(tree.Root) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// renewIdentity makes the guest another one than the one that was exported.
func (c *creation) renewIdentity(root *guest.Root) error {
	if !c.wantsIdentity() {
		return nil
	}
	if err := c.resetIdentity(root); err != nil {
		return err
	}
	changes, err := root.ReplaceHostKeys(c.inst.Name)
	say("identity", changes)
	return err
}

// replacesSeed tells whether the guest gets another seed.
func (c *creation) replacesSeed(root *guest.Root) bool {
	return c.planned && !c.set.SeedOnDisk() && seed.InGuest(root)
}

// importLoader installs the boot loader of a disk that was laid out anew. A guest
// that has none is restored all the same, unless the setting asks for one.
func (c *creation) importLoader(ctx context.Context, tree *mount.Tree, steps *undo.Stack) error {
	if c.tree == nil || c.inst.ExternalKernel() || c.enabled("grub") {
		return nil
	}
	err := c.bootFromDisk(ctx, tree, steps)
	if c.set.GRUB != "auto" && (errors.Is(err, grub.ErrNoKernel) || errors.Is(err, grub.ErrNoLoader)) {
		slog.Warn("the guest is restored, and will not boot by itself", "cause", err)
		return nil
	}
	return err
}

// importSeed has the seed in the guest, if it has one of ours, say the name and
// network of today. That of a guest that is to be another one gets a new
// instance-id, too; what only create was told, as a secret user-data, stays.
func (c *creation) importSeed(root *guest.Root) error {
	if !c.replacesSeed(root) {
		return nil
	}
	files, err := seed.Files(c.set, c.inst, c.nics, seed.FactsOf(root))
	if err != nil {
		return classify(Input, err)
	}
	var changes []string
	if c.wantsIdentity() {
		changes, err = seed.Replace(root, files)
	} else {
		changes, err = seed.Update(root, files, false, false)
	}
	say("cloud-init", changes)
	return err
}
