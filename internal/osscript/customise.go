package osscript

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/hook"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/mount"
	"ganeti-instance-image/internal/network"
	"ganeti-instance-image/internal/seed"
	"ganeti-instance-image/internal/settings"
	"ganeti-instance-image/internal/undo"
)

// userDataVariable hands the site's user-data, read before the disk was
// touched, to the hook cloud-init: it names a file in mount.RunDir.
const userDataVariable = "INSTANCE_IMAGE_USER_DATA"

// checkHooks reads what the enabled hooks of ours will need, so that a fault in
// it is found while the disk is as it was.
func (c *creation) checkHooks(ctx context.Context) (err error) {
	for _, h := range c.hooks {
		b, ours := builtin(h.Name)
		if !h.Ours || !ours {
			continue
		}
		if h.Phase != hook.AfterMount {
			return fmt.Errorf("cannot run the hook %s: it works on a mounted guest, so move it to %s", h.Path, filepath.Join(c.set.CustomizeDir, h.Name))
		}
		if b.check != nil {
			if err := b.check(ctx, c); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkCloudInit(ctx context.Context, c *creation) error { return c.readSeed(ctx) }

func checkInterfaces(ctx context.Context, c *creation) error {
	_, err := network.Plan(ctx, c.set, c.inst)
	return err
}

func checkOverlays(_ context.Context, c *creation) error {
	if c.set.Overlay == "" {
		return nil
	}
	dir := filepath.Join(c.set.OverlaysDir, c.set.Overlay)
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return fmt.Errorf("cannot use the overlay that %s names: there is no directory %s on this node", c.set.Origin("OVERLAY"), dir)
	}
	return nil
}

// customise makes the guest this instance: the enabled hooks of each phase run,
// and between them what the settings ask for.
func (c *creation) customise(ctx context.Context) error {
	if c.set.NoMount {
		c.sayUntold("NOMOUNT is set")
		return nil
	}
	if c.order.Disk == 0 {
		c.sayWhatStays()
	}
	if !c.hasWork() {
		return nil
	}
	c.guard()
	if err := c.runOutside(ctx, hook.BeforeMount); err != nil {
		return err
	}
	if err := c.checkPlaces(); err != nil {
		return err
	}
	if err := c.customiseMounted(ctx); err != nil {
		return err
	}
	return c.runOutside(ctx, hook.AfterUnmount)
}

// checkPlaces makes sure that hooks left the partitions where they were.
func (c *creation) checkPlaces() error {
	if len(hook.In(c.hooks, hook.BeforeMount)) == 0 || c.table == nil {
		return nil
	}
	table, err := layout.Read(c.dev, c.dev.Size())
	if err != nil {
		return classify(HookFailed, fmt.Errorf("cannot use the disk as the hooks of %s left it: %w", hook.BeforeMount, err))
	}
	for _, p := range c.table.Partitions {
		if now, ok := table.Find(p.Number); !ok || now.Start != p.Start || now.Length != p.Length {
			return classify(HookFailed, fmt.Errorf("cannot use the disk as the hooks of %s left it: partition %d is not where it was", hook.BeforeMount, p.Number))
		}
	}
	return nil
}

// hasWork tells whether anything is to be done to the guest.
func (c *creation) hasWork() bool {
	return len(c.hooks) > 0 || len(c.others) > 0 || c.tree != nil && c.set.GRUB != "no" ||
		c.wantsIdentity() || c.wantsAccess() || c.set.Initramfs == "rebuild" && c.order.Disk == 0
}

// customiseMounted does what needs the guest's file systems. A guest that is no
// Linux system, or that cannot be mounted here, is left as it is.
func (c *creation) customiseMounted(ctx context.Context) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	tree, err := mount.Open(ctx, c.dev, c.table, c.mountOptions(), &steps)
	if c.tree == nil && errors.Is(err, mount.ErrNoRoot) {
		slog.Warn("deployed, not customised", "cause", err)
		c.sayUntold("there is no root file system")
		return nil
	}
	if err != nil && c.tree == nil && len(hook.In(c.hooks, hook.AfterMount))+len(c.askedFor()) == 0 && ctx.Err() == nil {
		slog.Warn("the guest is left as it is, with a seed in it if it has one: it cannot be mounted here", "cause", err)
		c.sayUntold("it cannot be mounted")
		return nil
	}
	if err != nil {
		return err
	}
	return c.customiseTree(ctx, tree, &steps)
}

func (c *creation) mountOptions() mount.Options {
	options := mount.Options{Trusted: c.trusted()}
	if c.tree != nil {
		options.Leave = espMountpoint // the boot loader's installer writes it, as nodes need not know FAT
	}
	return options
}

func (c *creation) customiseTree(ctx context.Context, tree *mount.Tree, steps *undo.Stack) error {
	if err := c.checkMounted(tree); err != nil {
		return err
	}
	if what, immutable := tree.Root.Immutable(); immutable {
		return c.leaveAlone(ctx, tree, steps, what)
	}
	for _, step := range []func() error{
		func() error { return c.tellOfDisks(tree) },
		func() error { return c.resetIdentity(tree.Root) },
		func() error { return c.installLoader(ctx, tree, steps) },
		func() error { return c.runHooks(ctx, tree) },
		func() error { return c.grantAccess(tree.Root) },
		func() error { return c.rebuildInitramfs(ctx, tree) },
		func() error { return relabel(tree.Root) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// leaveAlone has a guest whose files are not ours to write keep them: cloud-init
// or Ignition make it this instance. Only /boot, by which a tree is to start, is
// written; and the site's own hooks may know better.
func (c *creation) leaveAlone(ctx context.Context, tree *mount.Tree, steps *undo.Stack, what string) error {
	var left []string
	c.hooks = slices.DeleteFunc(slices.Clone(c.hooks), func(h hook.Hook) bool {
		if h.Ours && h.Name != "grub" {
			left = append(left, h.Name)
			return true
		}
		return false
	})
	slog.Warn("the guest's files are left alone: it is "+what+"; a seed on a disk (SEED_DISK), or Ignition, can make it this instance", "hooks", strings.Join(left, " "))
	c.sayUntold("its files are left alone")
	if err := c.installLoader(ctx, tree, steps); err != nil {
		return err
	}
	return c.runHooks(ctx, tree)
}

// sayUntold says what a guest that is not mounted must be told by hand.
func (c *creation) sayUntold(why string) {
	for _, asked := range c.askedFor() {
		slog.Warn("the guest does not get what " + asked + " asks for: " + why)
	}
	for _, d := range c.others {
		if d.use.What != "seed" {
			slog.Warn("the guest's fstab does not name the disk: "+why, "disk", d.index, "by", d.by, "uuid", d.info.UUID)
		}
	}
}

// askedFor names settings by which somebody wants of this guest what needs its
// files. Windows has passwords and keys from its seed.
func (c *creation) askedFor() []string {
	var asked []string
	for _, s := range []struct {
		name   string
		wanted bool
	}{
		{"ROOT_PASSWORD, USER_NAME, SSH_KEYS or GUEST_FILES", c.wantsAccess() && !(c.windows && c.seedDisk() != nil)},
		{"IDENTITY=yes", c.order.Disk == 0 && c.set.Identity == settings.Yes},
		{"INITRAMFS=rebuild", c.order.Disk == 0 && c.set.Initramfs == "rebuild"},
	} {
		if s.wanted {
			asked = append(asked, s.name)
		}
	}
	return asked
}

// tellOfDisks enters further disks into the guest's fstab. Where the seed is on
// one of them, a seed in the image would count besides it, and goes.
func (c *creation) tellOfDisks(tree *mount.Tree) error {
	if err := c.enterOthers(tree); err != nil {
		return fmt.Errorf("cannot tell the guest of its disks: %w", err)
	}
	if c.seedDisk() == nil {
		return nil
	}
	c.facts = seed.FactsOf(tree.Root)
	changes, err := seed.Remove(tree.Root)
	say("cloud-init", changes)
	return err
}

// runHooks runs the hooks that work on the mounted guest.
func (c *creation) runHooks(ctx context.Context, tree *mount.Tree) error {
	return c.runPhase(ctx, hook.AfterMount, tree)
}

// runOutside runs hooks that work on the disk alone: nothing of it is mounted.
func (c *creation) runOutside(ctx context.Context, phase hook.Phase) error {
	return c.runPhase(ctx, phase, &mount.Tree{})
}

func (c *creation) runPhase(ctx context.Context, phase hook.Phase, tree *mount.Tree) (err error) {
	hooks := hook.In(c.hooks, phase)
	if len(hooks) == 0 {
		return nil
	}
	var steps undo.Stack
	defer steps.Unwind(&err)
	environ, err := c.hookEnviron(tree, &steps)
	if err != nil {
		return err
	}
	runner := hook.Runner{Environ: environ, Dir: c.env.OSDir, Timeout: c.set.HookTimeout, Target: tree.Dir, Alone: true}
	return classify(HookFailed, runner.Run(ctx, hooks))
}

// trusted tells whether a hook of the site's own is enabled, which may chroot
// into the guest and so needs its device nodes and set-id programs.
func (c *creation) trusted() bool {
	hooks := hook.In(c.hooks, hook.AfterMount)
	foreign := slices.IndexFunc(hooks, func(h hook.Hook) bool { return !h.Ours })
	if foreign < 0 {
		return false
	}
	slog.Info("the guest is mounted with device nodes and set-id programs active, for a hook of the site's own", "hook", hooks[foreign].Name)
	return true
}

// keeps says what a guest keeps of its image while none of the hooks is enabled.
var keeps = []struct {
	hooks []string
	what  string
}{
	{[]string{"cloud-init", "interfaces"}, "host name, users and network as the image has them"},
	{[]string{"ssh"}, "ssh host keys as the image has them"},
}

// sayWhatStays tells in one line what is left alone, and how to change that.
func (c *creation) sayWhatStays() {
	var what, names []string
	for _, k := range keeps {
		if !slices.ContainsFunc(k.hooks, c.enabled) {
			what = append(what, k.what)
			names = append(names, k.hooks[0])
		}
	}
	if len(c.hooks) == 0 {
		text := "no hook is enabled, so the guest keeps " + strings.Join(what, ", ")
		if !c.wantsIdentity() {
			text += ", and its machine-id and the like (IDENTITY=yes)"
		}
		slog.Warn(text + "; to change that: ganeti-image hooks enable " + strings.Join(names, " "))
		return
	}
	for i := range what {
		slog.Info("the guest keeps " + what[i] + "; to change that: ganeti-image hooks enable " + names[i])
	}
}

// hookEnviron is what a hook sees: all of Ganeti's variables, all settings, and
// the disk and tree it works on.
func (c *creation) hookEnviron(tree *mount.Tree, steps *undo.Stack) ([]string, error) {
	blockdev, err := c.blockDevice(steps)
	if err != nil {
		return nil, err
	}
	rootDev, err := deviceLink("root", tree.RootPart)
	if err != nil {
		return nil, err
	}
	bootDev, err := deviceLink("boot", tree.BootPart)
	if err != nil {
		return nil, err
	}
	userData := filepath.Join(mount.RunDir, "user-data")
	if err := os.WriteFile(userData, c.userData, 0o600); err != nil {
		return nil, fmt.Errorf("cannot hand the user-data to the hooks: %w", err)
	}
	environ := slices.Concat(settings.WithoutSecrets(c.env.Environ), c.set.Environ())
	if c.importing {
		environ = append(environ, "IMPORT_SCRIPT=1")
	}
	return append(environ,
		"TARGET="+tree.Dir,
		"BLOCKDEV="+blockdev,
		"ROOT_DEV="+rootDev,
		"BOOT_DEV="+bootDev,
		"IMAGE_TYPE="+c.imageType,
		userDataVariable+"="+userData,
	), nil
}

// blockDevice returns a block device of the whole disk, with its new table.
func (c *creation) blockDevice(steps *undo.Stack) (string, error) {
	if !c.dev.IsFile() && c.tree == nil {
		return c.dev.Path(), nil
	}
	if c.whole == "" {
		loop, err := block.Attach(c.dev.Path(), 0, c.dev.Size(), c.table.Sector(), false)
		if err != nil {
			return "", err
		}
		c.whole = loop.Path()
		steps.Push("detach "+c.whole, func() error {
			c.whole = ""
			return loop.Detach()
		})
	}
	return c.whole, nil
}

// deviceLink makes a name for a partition's device that ends in "-" and its
// number, from which old hooks cut the number, and returns it.
func deviceLink(of string, part *mount.Part) (string, error) {
	if part == nil {
		return "", nil
	}
	dir := filepath.Join(mount.RunDir, "dev", of) // two logical volumes have one partition's number
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("cannot make names for the partitions: %w", err)
	}
	link := filepath.Join(dir, "disk0-"+strconv.Itoa(part.Number))
	if err := os.Symlink(part.Device, link); err != nil {
		return "", fmt.Errorf("cannot make names for the partitions: %w", err)
	}
	return link, nil
}
