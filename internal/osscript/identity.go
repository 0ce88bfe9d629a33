package osscript

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"time"

	"ganeti-instance-image/internal/chroot"
	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/mount"
	"ganeti-instance-image/internal/settings"
	"ganeti-instance-image/internal/store"
)

// wantsIdentity tells whether what must be each system's own is taken from the
// guest: as the setting says, or else where the guest is made from files or a
// hook is to make it this instance.
func (c *creation) wantsIdentity() bool {
	if c.importing {
		return c.order.Disk == 0 && c.set.ImportIdentity == "renew"
	}
	if c.order.Disk != 0 || c.set.Identity == settings.No {
		return false
	}
	return c.set.Identity == settings.Yes || c.tree != nil || len(c.hooks) > 0
}

// resetIdentity comes before the hooks, which may name interfaces anew, and
// which may want to keep what they write.
func (c *creation) resetIdentity(root *guest.Root) error {
	if !c.wantsIdentity() {
		return nil
	}
	keep := c.set.IdentityKeep
	if c.enabled("cloud-init") || c.importing && c.replacesSeed(root) {
		keep = append(slices.Clone(keep), "cloud-init") // who writes the seed knows what it needs
	}
	changes, err := root.ResetIdentity(keep)
	say("identity", changes)
	if err != nil {
		return fmt.Errorf("cannot take from the guest what is the image's own (IDENTITY=no leaves it): %w", err)
	}
	return nil
}

func say(what string, changes []string) {
	for _, change := range changes {
		slog.Info(what + ": " + change)
	}
}

// wantsAccess tells whether settings have users, passwords, keys or files for
// the guest.
func (c *creation) wantsAccess() bool {
	s := c.set
	return c.order.Disk == 0 && (s.RootAccess != settings.Access{} || s.User != "" ||
		len(s.SSHKeys) > 0 || s.SSHKeysURL != "" || len(s.GuestFiles) > 0)
}

// keysLimit bounds what SSH_KEYS_URL brings, in bytes.
const keysLimit = 256 << 10

// readAccess reads, while the disk is as it was, what the guest's users are to
// have.
func (c *creation) readAccess(ctx context.Context) error {
	s := c.set
	c.access = guest.Access{User: s.User, RootHash: s.RootAccess.PasswordHash, UserHash: s.UserAccess.PasswordHash, Keys: s.SSHKeys}
	for _, p := range []struct {
		password string
		hash     *string
	}{{s.RootAccess.Password, &c.access.RootHash}, {s.UserAccess.Password, &c.access.UserHash}} {
		if p.password == "" {
			continue
		}
		hash, err := guest.Hash(p.password)
		if err != nil {
			return err
		}
		*p.hash = hash
	}
	for _, f := range s.GuestFiles {
		c.access.Files = append(c.access.Files, guest.File{Path: f.Path, Owner: f.Owner, Group: f.Group, Mode: fs.FileMode(f.Mode), Contents: f.Contents})
	}
	return c.fetchKeys(ctx)
}

func (c *creation) fetchKeys(ctx context.Context) error {
	if c.set.SSHKeysURL == "" {
		return nil
	}
	text, err := store.Fetch(ctx, c.set, c.set.SSHKeysURL, keysLimit)
	if err != nil {
		return fmt.Errorf("cannot fetch the keys that %s names: %w", c.set.Origin("SSH_KEYS_URL"), err)
	}
	keys, err := settings.SSHKeys(string(text))
	if err != nil {
		return fmt.Errorf("cannot use the keys that %s names: %w", c.set.Origin("SSH_KEYS_URL"), err)
	}
	c.access.Keys = append(slices.Clone(c.access.Keys), keys...)
	c.set.SSHKeys = c.access.Keys // for Windows, which has them from its seed
	return nil
}

// grantAccess comes behind the hooks: what is asked for this instance counts
// more than an overlay of the site's.
func (c *creation) grantAccess(root *guest.Root) error {
	if !c.wantsAccess() {
		return nil
	}
	changes, err := root.GrantAccess(c.access)
	say("access", changes)
	if err != nil {
		return fmt.Errorf("cannot give the guest its users and files: %w", err)
	}
	return nil
}

// longest is what a program of the guest's may take where hooks may take for ever.
const longest = time.Hour

// rebuildInitramfs has the guest's own programs make its initramfs anew, where a
// setting asks for that.
func (c *creation) rebuildInitramfs(ctx context.Context, tree *mount.Tree) error {
	if c.set.Initramfs != "rebuild" {
		return nil
	}
	argv, why, ok := chroot.Initramfs(tree.Root)
	if !ok {
		slog.Warn("the initramfs stays as the image has it: "+why, "by", c.set.Origin("INITRAMFS"))
		return nil
	}
	slog.Info("running a program of the guest's, shut off from the node and the network", "program", argv, "by", c.set.Origin("INITRAMFS"))
	if err := chroot.Run(ctx, tree.Dir, argv, cmp.Or(c.set.HookTimeout, longest)); err != nil {
		return fmt.Errorf("cannot make the guest's initramfs anew: %w", err)
	}
	return nil
}

// relabel has the guest label all its files at its first boot, where files were
// made of which its policy's label is not known.
func relabel(root *guest.Root) error {
	names := root.Unlabelled()
	if len(names) == 0 {
		return nil
	}
	slog.Warn("the guest will label all its files at its first boot, which takes a while: the SELinux label of new ones is not known", "first", names[0], "number", len(names))
	file := "/.autorelabel"
	if root.Distro().Family == guest.SUSE {
		file = "/etc/selinux/.autorelabel"
	}
	return root.WriteFile(file, nil, 0o644)
}
