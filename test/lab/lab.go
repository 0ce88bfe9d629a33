// Package lab makes what the end to end tests run on: bootable cloud images in
// the layouts that distributions ship, guests booted from a disk with QEMU, and
// a real Ganeti cluster of one node; and a network for guests whose network is
// tested.
//
// Everything comes from the packages of the machine, which test/setup installs.
// The kernel needs loop devices, ext4, xfs and btrfs; it needs no partition
// parsers, no device mapper, no vfat and no KVM.
//
// Left out: other distributions than Debian as the guest, and other releases than
// 12, but for the network 13. The layouts of other distributions are made with
// Debian's files in them.
package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// CacheVariable names the environment variable that moves the cache directory.
const CacheVariable = "LAB_CACHE"

const defaultCache = "/var/cache/ganeti-instance-image-lab"

// Lab is a directory of the machine where trees and images are made and kept.
// It may be used by several processes at once.
type Lab struct {
	Dir string // absolute; about 7 GiB are used with all layouts and networks in it
}

// Open makes the cache directory where it is missing: $LAB_CACHE, else
// /var/cache/ganeti-instance-image-lab.
func Open() (*Lab, error) {
	dir := os.Getenv(CacheVariable)
	if dir == "" {
		dir = defaultCache
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot use the cache %s: %w", dir, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the cache %s (set %s to use another): %w", dir, CacheVariable, err)
	}
	return &Lab{Dir: dir}, nil
}

// cached returns the file name in the cache, and makes it where it is missing.
// A file appears under its name only when it is complete.
func (l *Lab) cached(ctx context.Context, name string, build func(path string) error) (string, error) {
	path := filepath.Join(l.Dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	unlock, err := lock(ctx, path+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	partial := path + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return "", fmt.Errorf("cannot remove what a former run left: %w", err)
	}
	defer os.Remove(partial)
	if err := build(partial); err != nil {
		return "", err
	}
	return path, os.Rename(partial, path)
}

// lock waits until no other process holds the file's lock. The lock goes with
// the process, however that ends.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("cannot lock: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- flock(f) }()
	select {
	case err := <-done:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("cannot lock %s: %w", path, err)
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		go func() { <-done; f.Close() }()
		return nil, fmt.Errorf("cannot lock %s, another process holds it: %w", path, context.Cause(ctx))
	}
}

func flock(f *os.File) error {
	for {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// workDir makes a directory named after this process, whose removal is the
// caller's. What processes that were killed left of theirs is removed first.
func (l *Lab) workDir(kind string) (string, error) {
	old, err := filepath.Glob(filepath.Join(l.Dir, kind+"-*"))
	if err != nil {
		return "", err
	}
	for _, dir := range old {
		if err := removeDead(dir, kind); err != nil {
			return "", fmt.Errorf("cannot remove what a former run left: %w", err)
		}
	}
	return os.MkdirTemp(l.Dir, fmt.Sprintf("%s-%d-", kind, os.Getpid()))
}

// removeDead removes a work directory whose process is gone. What was mounted
// in it went with the process.
func removeDead(dir, kind string) error {
	pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), kind+"-"), "-")
	if n, err := strconv.Atoi(pid); err != nil || syscall.Kill(n, 0) == nil {
		return nil
	}
	return os.RemoveAll(dir)
}

// apart runs f on a thread with a mount namespace of its own, and so are the
// programs that f starts. Were it not so, any process that gets a namespace
// while f has something mounted would hold a copy: then unmounting writes
// nothing back, and the loop device stays.
func apart(f func() error) error {
	done := make(chan error)
	go func() {
		// Not unlocked, so that the thread and its namespace end here.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err != nil {
			done <- fmt.Errorf("cannot make a mount namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// withUs is what a command line begins with whose program must not outlive
// this process: it would go on writing to what the next run removes.
func withUs(signal string) []string { return []string{"setpriv", "--pdeathsig", signal} }

// digest is a short name for a recipe.
func digest(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:6])
}

// exists tells whether there is a file, or a link, of that name.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
