package block

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ID tells a disk from every other one while the node runs, whatever it is
// called, and whether or not that name is still there.
type ID struct {
	File  bool   // it is a regular file
	Dev   uint64 // the block device's number, or that of the file system the file is on
	Inode uint64 // the file's
}

func (id ID) identity() identity { return identity{isFile: id.File, dev: id.Dev, inode: id.Inode} }

// ID returns the disk's.
func (d *Device) ID() (ID, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(d.file.Fd()), &stat); err != nil {
		return ID{}, fmt.Errorf("cannot look at the disk %s: %w", d.path, err)
	}
	id := identityOf(stat)
	return ID{File: id.isFile, Dev: id.dev, Inode: id.inode}, nil
}

// Loops lists the loop devices that show the disk, or a part of it, whoever made
// them.
func (id ID) Loops() []string { return loopsOn(id.identity()) }

// Behind tells whether the disk is what a loop device shows.
func (id ID) Behind(loop string) bool {
	return strings.HasPrefix(loop, "/dev/loop") && isBacking(id.identity(), loop, "/sys/block/"+filepath.Base(loop)+"/loop")
}

// Store returns when all that was written to the disk is on it. It does nothing
// where the path means another disk by now, or none.
func (id ID) Store(path string) error {
	if now, err := identify(path); err != nil || now != id.identity() {
		return nil
	}
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("cannot flush the disk %s: %w", path, err)
	}
	defer file.Close()
	if err := file.Sync(); err != nil {
		return fmt.Errorf("cannot flush the disk %s: %w", path, err)
	}
	return nil
}

// Users names who keeps a block device busy, one line each: processes that have
// it open, and mounts of it in any namespace.
func Users(device string) []string { return users(device) }

// MountPoint is something that is mounted: where, and what of.
type MountPoint struct{ Dir, Source string }

// MountsBelow lists what is mounted on a directory and below it, in the order in
// which it was mounted.
func MountsBelow(dir string) []MountPoint {
	var below []MountPoint
	for _, m := range mounts("/proc/self/mountinfo") {
		if m.point == dir || strings.HasPrefix(m.point, dir+"/") {
			below = append(below, MountPoint{Dir: m.point, Source: m.source})
		}
	}
	return below
}
