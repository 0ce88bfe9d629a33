package osscript

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/hook"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/mount"
	"ganeti-instance-image/internal/network"
	"ganeti-instance-image/internal/seed"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/undo"
)

// renameHooks are the hooks that write what a new name, or new MACs and
// addresses, change.
var renameHooks = []string{"interfaces", "zz_ddns"}

// Rename gives the guest the instance's name and the network that Ganeti gives
// it now. It is also run after each import, with two names that may be one, and
// for instances without a disk. A guest that it does not know is left as it is:
// that is no failure, but said.
func Rename(ctx context.Context, env Env) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	c := &creation{env: env, steps: &steps}
	if err := c.readRename(ctx); err != nil {
		return classify(Input, err)
	}
	if why := c.nothingToRename(); why != "" {
		slog.Info(why)
		return nil
	}
	if c.nics, err = network.Plan(ctx, c.set, c.inst); err != nil {
		return classify(Input, err)
	}
	if c.dev, err = c.openDisk(0); err != nil {
		return classify(Disk, err)
	}
	moved, err := c.renameSeedDisk(ctx)
	if err != nil {
		return err
	}
	if c.set.NoMount {
		slog.Info("NOMOUNT is set: the guest is not mounted, its files keep the name they have", "by", c.set.Origin("NOMOUNT"))
		return nil
	}
	if err := c.renameMounted(ctx, moved); err != nil {
		return err
	}
	return classify(Disk, c.dev.Sync())
}

// readRename reads what Ganeti and the site say, and of the hooks keeps those
// that count here.
func (c *creation) readRename(ctx context.Context) error {
	if err := c.readInput(ctx); err != nil {
		return err
	}
	if c.inst.OldName == "" {
		return errors.New("cannot rename the guest: Ganeti gives no OLD_INSTANCE_NAME; this program is run by gnt-instance rename")
	}
	c.hooks = slices.DeleteFunc(hook.In(c.hooks, hook.AfterMount), func(h hook.Hook) bool { return !slices.Contains(renameHooks, h.Name) })
	for i, h := range c.hooks {
		if h.Name == "zz_ddns" && !h.Ours {
			c.hooks[i].Args = []string{"-r"} // as the Bash version called it at a rename
		}
	}
	return nil
}

func (c *creation) nothingToRename() string {
	switch {
	case len(c.inst.Disks) == 0:
		return "the instance has no disk: there is no guest to rename"
	case c.set.CDInstall:
		return fmt.Sprintf("CDINSTALL is set (%s): the disks are left as they are", c.set.Origin("CDINSTALL"))
	case c.set.NoMount && !c.set.SeedOnDisk():
		return fmt.Sprintf("NOMOUNT is set (%s): the guest is not mounted, its files keep the name they have", c.set.Origin("NOMOUNT"))
	}
	return ""
}

// renameSeedDisk has the seed on a disk of its own say the new name and network,
// and tells whether it said others. What of it only create was told, such as a
// secret user-data, stays. It is written over: a guest that is in use must not
// lose it.
func (c *creation) renameSeedDisk(ctx context.Context) (moved bool, err error) {
	d := c.seedDiskThere()
	if d == nil {
		return false, nil
	}
	if d.dev, err = c.openDisk(d.index); err != nil {
		return false, classify(Disk, err)
	}
	old, err := seed.ReadISO(d.dev)
	if errors.Is(err, seed.ErrNoSeed) {
		return c.seedDiskUnknown(ctx, d)
	}
	if err != nil {
		return false, classify(Disk, err)
	}
	if err := c.lookForWindows(c.dev, c.dev.Size()); err != nil {
		return false, err
	}
	if c.set.RootAccess.Password == "" {
		c.set.RootAccess.Password = seed.WindowsPassword(old)
	}
	fresh, err := c.seedFiles(seed.Facts{})
	if err != nil {
		return false, classify(Input, err)
	}
	files, err := seed.Renew(old, fresh)
	if err != nil {
		return false, err
	}
	iso, err := seed.ISO(files)
	if err != nil {
		return false, err
	}
	return c.overwriteSeed(d, iso)
}

// seedDiskThere is the disk that settings have the seed on, if the instance
// still has it: an administrator may have removed it after the first boot.
func (c *creation) seedDiskThere() *otherDisk {
	if !c.set.SeedOnDisk() {
		return nil
	}
	disks, err := diskUses(c.set, c.inst)
	i := slices.IndexFunc(disks, func(d *otherDisk) bool { return d.use.What == "seed" })
	if i < 0 || disks[i].index >= len(c.inst.Disks) {
		slog.Info("there is no disk with a seed to rename", "cause", err)
		return nil
	}
	return disks[i]
}

// seedDiskUnknown writes a seed to a blank disk, which lost it, as an import may
// have made it anew, and leaves any other alone.
func (c *creation) seedDiskUnknown(ctx context.Context, d *otherDisk) (bool, error) {
	blank, err := isBlank(d.dev, size.MiB)
	if err != nil {
		return false, classify(Disk, err)
	}
	if !blank {
		slog.Warn("the disk for the seed holds something else and is left alone", "disk", d.index, "by", d.by)
		return false, nil
	}
	if err := c.readSeed(ctx); err != nil {
		return false, classify(Input, err)
	}
	if err := c.lookForWindows(c.dev, c.dev.Size()); err != nil {
		return false, err
	}
	iso, err := c.seedISO(seed.Facts{})
	if err != nil {
		return false, classify(Input, err)
	}
	return c.overwriteSeed(d, iso)
}

func (c *creation) overwriteSeed(d *otherDisk, iso []byte) (moved bool, err error) {
	has := make([]byte, len(iso))
	if _, err := d.dev.ReadAt(has, 0); err == nil && bytes.Equal(has, iso) {
		return false, nil
	}
	if size.Bytes(len(iso)) > d.dev.Size() {
		return false, classify(Disk, fmt.Errorf("cannot write the seed to disk %d (%s): it takes %s, the disk has %s", d.index, d.by, size.Bytes(len(iso)), d.dev.Size()))
	}
	if err := d.write(iso); err != nil {
		return false, err
	}
	slog.Info("rewrote the seed for the name, MACs and addresses of today", "disk", d.index, "by", d.by)
	return true, nil
}

// renameMounted mounts the guest and renames it. moved tells that its seed, on
// another disk, says something else than before.
func (c *creation) renameMounted(ctx context.Context, moved bool) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	tree, why, err := c.openGuest(ctx, &steps)
	if err != nil {
		return err
	}
	if why != nil {
		slog.Warn("the guest's files keep its name", "cause", why)
		return nil
	}
	// Each of them counts alone: what one cannot do must not keep the others.
	return errors.Join(c.renameFiles(tree), c.renameSeed(tree, moved), c.runHooks(ctx, tree), relabel(tree.Root))
}

// openGuest mounts a guest that was made before, or tells why it must be left
// alone.
func (c *creation) openGuest(ctx context.Context, steps *undo.Stack) (tree *mount.Tree, why, err error) {
	c.table, err = layout.Read(c.dev, c.dev.Size())
	if errors.Is(err, layout.ErrDamaged) {
		return nil, err, nil
	}
	if err != nil && !errors.Is(err, layout.ErrNoTable) {
		return nil, nil, classify(Disk, err)
	}
	tree, err = mount.Open(ctx, c.dev, c.table, c.mountOptions(), steps)
	if err != nil && ctx.Err() != nil {
		return nil, nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("it is no Linux system, or cannot be mounted here: %w", err), nil
	}
	if what, immutable := tree.Root.Immutable(); immutable {
		return tree, errors.New("it is " + what + "; cloud-init or Ignition make it this instance"), nil
	}
	return tree, nil, nil
}

// renameFiles has the guest's own files say the new name.
func (c *creation) renameFiles(tree *mount.Tree) error {
	renamed, err := tree.Root.RenameHost(c.inst.OldName, c.inst.Name, guest.RenameOptions{Address: firstAddress(c.nics)})
	say("rename", renamed.Changes)
	if err != nil {
		return fmt.Errorf("cannot rename the guest: %w", err)
	}
	if !renamed.Found {
		slog.Warn("no file of the guest says the old name; it has been given another, or gets its name from elsewhere", "old", c.inst.OldName)
	}
	if len(c.hooks) == 0 && !tree.Root.Exists(seed.Dir) && !c.set.SeedOnDisk() {
		slog.Info("the guest's network is left as it is; to have it written: ganeti-image hooks enable interfaces")
	}
	return nil
}

// renameSeed has cloud-init in the guest, where it has a seed of ours, take on
// the new name and network.
func (c *creation) renameSeed(tree *mount.Tree, moved bool) error {
	files, err := seed.Files(c.set, c.inst, c.nics, seed.Facts{Bash: tree.Root.Exists("/bin/bash"), CloudInit: tree.Root.CloudInit()})
	if err != nil {
		return classify(Input, err)
	}
	changes, err := seed.Update(tree.Root, files, c.set.SeedOnDisk(), moved)
	say("cloud-init", changes)
	return err
}
