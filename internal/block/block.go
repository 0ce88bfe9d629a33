// Package block opens the disk of an instance, a block device or a regular
// file, for one user at a time; reads, writes and zeroes it; and gives parts of
// it loop devices.
//
// Left out: disks only a hypervisor reaches (rbd, iscsi and gluster URIs),
// partition devices of the kernel, and all that is on the disk.
package block

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/size"
)

// ErrInUse is wrapped by the error for a disk that someone else uses.
var ErrInUse = errors.New("it is in use")

// lockPatience is how long a lock may be held by someone else: udev takes it
// for a moment whenever a disk changes.
var lockPatience = 5 * time.Second

// Device is an instance's disk, opened for reading and writing. Its methods may
// be called by several goroutines at once, except Close.
type Device struct {
	path   string
	file   *os.File
	size   size.Bytes
	isFile bool

	mu      sync.Mutex // guards zeroers
	zeroers []zeroer   // the ways to zero that are left, the best first
	proven  bool       // the first of them was seen to work
}

// Open opens a disk: a block device or a regular file, for this process alone.
//
// The error wraps ErrInUse when it, or one of its partitions, is mounted, is
// swap, backs a loop device, belongs to another device (RAID, LVM, multipath),
// is locked by another process, or is open in QEMU; it says by whom where the
// system tells. While it is open, udev leaves the device alone, and it cannot
// be mounted (Close it before someone is to use it under its own name; loop
// devices made by Attach are not affected).
func Open(path string) (*Device, error) {
	d, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the disk %s: %w", path, err)
	}
	return d, nil
}

func open(path string) (*Device, error) {
	id, err := identify(path)
	if err != nil {
		return nil, err
	}
	if err := id.refuse(); err != nil {
		return nil, err
	}
	flags := os.O_RDWR
	if !id.isFile {
		flags |= unix.O_EXCL // the kernel refuses it when the device or a partition is mounted or held
	}
	file, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%w: the kernel refuses to hand it out (mounted in another namespace, or part of another device)", ErrInUse)
	}
	if err != nil {
		return nil, errors.Unwrap(err) // the path is in the message already
	}
	d := &Device{path: path, file: file, isFile: id.isFile, zeroers: zeroersFor(id.isFile)}
	if err := d.claim(id); err != nil {
		file.Close()
		return nil, err
	}
	return d, nil
}

// claim locks the open file, makes sure that it is what was looked at, and
// takes its size.
func (d *Device) claim(id identity) error {
	var stat unix.Stat_t
	if err := unix.Fstat(int(d.file.Fd()), &stat); err != nil {
		return err
	}
	if identityOf(stat) != id {
		return fmt.Errorf("it was replaced while it was opened; try again")
	}
	if err := lock(d.file, lockPatience); err != nil {
		return err
	}
	if err := lockedByQEMU(d.file); err != nil {
		return err
	}
	end, err := d.file.Seek(0, 2)
	if err != nil {
		return fmt.Errorf("cannot find out its size: %w", err)
	}
	if end == 0 {
		return fmt.Errorf("it is 0 bytes long")
	}
	d.size = size.Bytes(end)
	return nil
}

// lock takes the lock that systemd asks of those who change a disk
// (BLOCK_DEVICE_LOCKING); the kernel releases it when the file is closed.
func lock(file *os.File, patience time.Duration) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("cannot lock it: %w", err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: another process holds its lock%s; is another job at work on this instance?", ErrInUse, lockHolder(file))
		}
	}
}

// lockedByQEMU finds the record locks QEMU puts on the images it has open.
func lockedByQEMU(file *os.File) error {
	query := unix.Flock_t{Type: unix.F_WRLCK}
	err := unix.FcntlFlock(file.Fd(), unix.F_OFD_GETLK, &query)
	if err == nil && query.Type != unix.F_UNLCK {
		return fmt.Errorf("%w: a running program has locked parts of it, as QEMU does with a guest's disk; stop the instance first", ErrInUse)
	}
	return nil // where there are no such locks there is nothing to find
}

// Path returns the path the disk was opened by.
func (d *Device) Path() string { return d.path }

// Size returns the disk's length.
func (d *Device) Size() size.Bytes { return d.size }

// IsFile tells a regular file from a block device.
func (d *Device) IsFile() bool { return d.isFile }

// ReadAt reads from the disk, as io.ReaderAt says.
func (d *Device) ReadAt(p []byte, off int64) (int, error) { return d.file.ReadAt(p, off) }

// WriteAt writes to the disk, as io.WriterAt says. A write that would reach
// behind its end is an error and writes nothing.
func (d *Device) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(d.size)-int64(len(p)) {
		return 0, fmt.Errorf("cannot write %d bytes at %d to the disk %s: it ends at %d", len(p), off, d.path, int64(d.size))
	}
	return d.file.WriteAt(p, off)
}

// Sync returns when all that was written is on the disk itself.
func (d *Device) Sync() error {
	if err := d.file.Sync(); err != nil {
		return fmt.Errorf("cannot flush the disk %s: %w", d.path, err)
	}
	return nil
}

// StartWriteback has the kernel begin to store a range that was written, while
// more is; it is a hint, and Sync tells whether all was stored.
func (d *Device) StartWriteback(off, n size.Bytes) {
	_ = unix.SyncFileRange(int(d.file.Fd()), int64(off), int64(n), unix.SYNC_FILE_RANGE_WRITE)
}

// Apply writes the plan for a partition table, each step flushed as it asks.
func (d *Device) Apply(plan layout.Plan) error {
	for _, w := range plan.Writes {
		if _, err := d.WriteAt(w.Data, int64(w.Offset)); err != nil {
			return fmt.Errorf("cannot write the partition table: %w", err)
		}
		if !w.Sync {
			continue
		}
		if err := d.Sync(); err != nil {
			return fmt.Errorf("cannot write the partition table: %w", err)
		}
	}
	return nil
}

// Close releases the disk and its lock. A second call does nothing.
func (d *Device) Close() error {
	if err := d.file.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("cannot close the disk %s: %w", d.path, err)
	}
	return nil
}

// identity is which disk a path means, whatever it is called.
type identity struct {
	isFile bool
	dev    uint64 // the block device's number, or that of the filesystem a file is on
	inode  uint64 // a file's
}

func identify(path string) (identity, error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return identity{}, err
	}
	if mode := stat.Mode & unix.S_IFMT; mode != unix.S_IFBLK && mode != unix.S_IFREG {
		return identity{}, fmt.Errorf("it is neither a block device nor a regular file")
	}
	return identityOf(stat), nil
}

func identityOf(stat unix.Stat_t) identity {
	if stat.Mode&unix.S_IFMT == unix.S_IFBLK {
		return identity{dev: stat.Rdev}
	}
	return identity{isFile: true, dev: stat.Dev, inode: stat.Ino}
}

// sysDir is where the kernel describes a block device.
func (id identity) sysDir() string {
	dir := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(id.dev), unix.Minor(id.dev))
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		return real
	}
	return dir
}
