package osscript

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/hook"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/mount"
	"ganeti-instance-image/internal/seed"
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
	if len(c.inst.Disks) == 0 {
		slog.Info("the instance has no disk: there is no guest to rename")
		return nil
	}
	if c.set.CDInstall {
		slog.Info("CDINSTALL is set: the disks are left as they are", "by", c.set.Origin("CDINSTALL"))
		return nil
	}
	if err := c.openSeedDisk(ctx); err != nil {
		return err
	}
	if c.set.NoMount {
		slog.Info("NOMOUNT is set: the guest is not mounted, it keeps the name it has", "by", c.set.Origin("NOMOUNT"))
		return c.writeSeed()
	}
	if c.dev == nil {
		if c.dev, err = c.openDisk(0); err != nil {
			return classify(Disk, err)
		}
	}
	if err := c.renameMounted(ctx); err != nil {
		return err
	}
	if err := c.writeSeed(); err != nil {
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
	return c.readSeed(ctx)
}

// openSeedDisk opens the disk that the seed is on, which must hold one.
func (c *creation) openSeedDisk(ctx context.Context) (err error) {
	c.inst.Reinstall = true // what is on the disk must not be lost
	if c.others, err = diskUses(c.set, c.inst); err != nil {
		return classify(Input, err)
	}
	d := c.seedDisk()
	if d == nil {
		c.others = nil
		return nil
	}
	c.others = []*otherDisk{d}
	if err := c.openForSeed(d); err != nil {
		return err
	}
	return c.checkOthers(ctx)
}

// renameMounted mounts the guest and renames it.
func (c *creation) renameMounted(ctx context.Context) (err error) {
	table, err := layout.Read(c.dev, c.dev.Size())
	if err != nil && !errors.Is(err, layout.ErrNoTable) {
		slog.Warn("the guest keeps its name: the disk's partition table cannot be read", "cause", err)
		return nil
	}
	c.table = table
	var steps undo.Stack
	defer steps.Unwind(&err)
	tree, err := mount.Open(ctx, c.dev, c.table, mount.Options{Trusted: c.trusted()}, &steps)
	if errors.Is(err, mount.ErrNoRoot) {
		slog.Warn("the guest keeps its name: "+err.Error(), "cause", "it is no Linux system, or encrypted")
		return nil
	}
	if err != nil {
		return err
	}
	if what, immutable := tree.Root.Immutable(); immutable {
		slog.Warn("the guest keeps its name: it is " + what + "; cloud-init or Ignition give it its new one")
		return nil
	}
	for _, step := range []func() error{
		func() error { return c.renameSeed(tree) },
		func() error { return c.renameFiles(tree) },
		func() error { return c.runHooks(ctx, tree) },
		func() error { return relabel(tree.Root) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
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
	if len(c.hooks) == 0 && !tree.Root.Exists(seed.Dir) {
		slog.Info("the guest's network is left as it is; to have it written: ganeti-image hooks enable " + strings.Join(renameHooks[:1], " "))
	}
	return nil
}

// renameSeed has the seed in the guest, where there is one of ours, say the new
// name and network.
func (c *creation) renameSeed(tree *mount.Tree) error {
	c.facts = seed.Facts{UserData: c.userData, Bash: tree.Root.Exists("/bin/bash"), CloudInit: tree.Root.CloudInit()}
	files, err := seed.Files(c.set, c.inst, c.nics, c.facts)
	if err != nil {
		return classify(Input, err)
	}
	changes, err := seed.Update(tree.Root, files)
	say("cloud-init", changes)
	return err
}
