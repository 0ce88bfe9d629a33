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
// until after the unmount; it is released when the process ends, too.
func Lock(ctx context.Context, info Info) (unlock func() error, err error) {
	if info.Kind != Btrfs || kernelAtLeast(6, 7) {
		return func() error { return nil }, nil
	}
	return lockUUID(ctx, runDir, info.UUID)
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
