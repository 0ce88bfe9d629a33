package mount

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/undo"
)

// fresh is how a file system is mounted that is lost anyway if its filling
// fails: nothing is written twice or in an order for the sake of a crash.
var fresh = map[filesystem.Kind][]string{
	filesystem.Ext3: {"data=writeback"},
	filesystem.Ext4: {"data=writeback", "barrier=0", "noinit_itable"},
}

// Fresh mounts a file system that was just made on dir, which it makes where
// there is none, and pushes the reverse to steps. What a device node or a set-id
// program means there is not heeded. At the end all that was written is on the
// device, or the error says that it is not.
func Fresh(device string, kind filesystem.Kind, dir string, steps *undo.Stack) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cannot make the mount point: %w", err)
	}
	const flags = unix.MS_NOATIME | unix.MS_NOSUID | unix.MS_NODEV
	options := append(filesystem.MountOptions(kind), fresh[kind]...)
	err := unix.Mount(device, dir, string(kind), flags, strings.Join(options, ","))
	if errors.Is(err, unix.EINVAL) && len(fresh[kind]) > 0 { // a kernel that does not know one of them
		err = unix.Mount(device, dir, string(kind), flags, strings.Join(filesystem.MountOptions(kind), ","))
	}
	if err != nil {
		return fmt.Errorf("cannot mount the new %s of %s: %w", kind, device, err)
	}
	steps.Push("unmount "+dir, func() error { return errors.Join(syncFileSystem(dir), unmount(dir)) })
	return nil
}

// syncFileSystem stores what was written to a file system. Unlike unmounting it
// tells when that failed.
func syncFileSystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("cannot store what was written to %s: %w", dir, err)
	}
	return nil
}

// WithDevices runs a program's call with a /dev that has only the devices given.
// Some programs look at every disk of the node, and are confused by another
// instance of the same image. It must be called in a mount namespace of our own.
func WithDevices(devices []string, call func() error) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	nodes := make([]unix.Stat_t, len(devices))
	for i, path := range devices {
		if err := unix.Stat(path, &nodes[i]); err != nil {
			return fmt.Errorf("cannot look at %s: %w", path, err)
		}
	}
	if err := unix.Mount("tmpfs", "/dev", "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755"); err != nil {
		return fmt.Errorf("cannot cover /dev: %w", err)
	}
	steps.Push("uncover /dev", func() error { return unix.Unmount("/dev", unix.MNT_DETACH) })
	for i, path := range devices {
		if err := unix.Mknod(path, nodes[i].Mode, int(nodes[i].Rdev)); err != nil {
			return fmt.Errorf("cannot make %s: %w", path, err)
		}
	}
	return call()
}
