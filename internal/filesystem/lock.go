package filesystem

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// runDir holds the locks; it is empty after a boot.
const runDir = "/run/ganeti-instance-image"

// Lock waits until no other process of this program has a filesystem of the
// same UUID mounted, where that matters: a btrfs of a kernel before 6.7 may take
// the second disk with that UUID, as two instances of one image have it, for the
// first. Everywhere else it returns at once. Hold the lock from before the mount
// until after the unmount; it is released when the process ends, too. One that
// mount-disks keeps mounted, or the node itself, has no lock, and is an error.
func Lock(ctx context.Context, info Info) (unlock func() error, err error) {
	if info.Kind != Btrfs || kernelAtLeast(6, 7) {
		return func() error { return nil }, nil
	}
	unlock, err = lockUUID(ctx, runDir, info.UUID)
	if err != nil {
		return nil, err
	}
	if err := checkUnmounted("/sys/fs/btrfs", info.UUID); err != nil {
		return nil, errors.Join(err, unlock())
	}
	return unlock, nil
}

// checkUnmounted looks where the kernel lists each btrfs that is mounted.
func checkUnmounted(dir, uuid string) error {
	if _, err := os.Stat(filepath.Join(dir, uuid)); err != nil {
		return nil
	}
	return fmt.Errorf("cannot use the btrfs %s: another one of that UUID is mounted on this node, and its kernel, older than 6.7, cannot tell them apart", uuid)
}

func lockUUID(ctx context.Context, dir, uuid string) (func() error, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the directory for locks: %w", err)
	}
	path := filepath.Join(dir, "uuid-"+uuid+".lock")
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the filesystem's UUID: %w", err)
	}
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return file.Close, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			file.Close()
			return nil, fmt.Errorf("cannot lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			file.Close()
			return nil, fmt.Errorf("cannot wait for %s, which another instance's job holds: %w", path, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func kernelAtLeast(major, minor int) bool {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return false
	}
	return releaseAtLeast(unix.ByteSliceToString(name.Release[:]), major, minor)
}

func releaseAtLeast(release string, major, minor int) bool {
	var a, b int
	if _, err := fmt.Fscanf(strings.NewReader(release), "%d.%d", &a, &b); err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}
