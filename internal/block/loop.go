package block

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
)

// Loop is a loop device that shows a part of a disk. The kernel removes it when
// nobody has it open any more, even if this process is killed.
type Loop struct {
	path       string
	file       *os.File
	backing    string // as /sys tells it
	off, limit size.Bytes
}

const (
	loopMajor       = 7
	attachAttempts  = 100
	detachPatience  = 10 * time.Second
	detachPollEvery = 5 * time.Millisecond
)

// Attach makes a loop device of the n bytes at off of a disk, whether or not the
// disk is opened by Open. sector is the device's sector size, 512 or 4096 bytes;
// where the kernel refuses that size the kernel's own choice stands.
func Attach(path string, off, n size.Bytes, sector size.Bytes, readOnly bool) (*Loop, error) {
	return attached(path, off, n, sector, readOnly, false)
}

// AttachAlone is Attach for what nobody else may look at: udev, which activates
// volume groups as it sees them, leaves the device alone while it is attached.
func AttachAlone(path string, off, n, sector size.Bytes) (*Loop, error) {
	return attached(path, off, n, sector, false, true)
}

func attached(path string, off, n, sector size.Bytes, readOnly, alone bool) (*Loop, error) {
	l, err := attach(path, off, n, sector, readOnly, alone)
	if err != nil {
		return nil, fmt.Errorf("cannot make a loop device of %s at offset %d of %s: %w", n, int64(off), path, err)
	}
	return l, nil
}

func attach(path string, off, n, sector size.Bytes, readOnly, alone bool) (*Loop, error) {
	if off < 0 || n <= 0 || off%512 != 0 || n%512 != 0 {
		return nil, fmt.Errorf("offset and length must be multiples of 512 bytes")
	}
	flags := os.O_RDWR
	config := unix.LoopConfig{Size: uint32(sector), Info: unix.LoopInfo64{Offset: uint64(off), Sizelimit: uint64(n), Flags: unix.LO_FLAGS_AUTOCLEAR}}
	if readOnly {
		flags = os.O_RDONLY
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	backing, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	defer backing.Close()
	if end, err := backing.Seek(0, 2); err != nil || off > size.Bytes(end)-n {
		return nil, fmt.Errorf("it is only %d bytes long", end)
	}
	copy(config.Info.File_name[:63], path)
	config.Fd = uint32(backing.Fd())
	loop, err := configure(config, alone)
	if err != nil {
		return nil, err
	}
	l := &Loop{path: loop.Name(), file: loop, off: off, limit: n}
	l.backing, _, _ = l.status()
	if end, err := loop.Seek(0, 2); err != nil || size.Bytes(end) != n {
		return nil, errors.Join(fmt.Errorf("the kernel made %s %d bytes long", l.path, end), l.Detach())
	}
	return l, nil
}

// configure finds a free loop device and sets it up in one step. Another
// process may take the same one in between: then it is the next one's turn.
func configure(config unix.LoopConfig, alone bool) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w (is the kernel module loop loaded?)", err)
	}
	defer control.Close()
	for range attachAttempts {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("there is no free loop device: %w", err)
		}
		loop, err := openLoop(number)
		if err != nil {
			return nil, err
		}
		if alone {
			err = unix.Flock(int(loop.Fd()), unix.LOCK_EX|unix.LOCK_NB) // as systemd's BLOCK_DEVICE_LOCKING says
		}
		if err == nil {
			err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		}
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if errors.Is(err, unix.EINVAL) && config.Size != 0 {
			config.Size = 0
			continue
		}
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("cannot set up %s: %w", loop.Name(), err)
		}
		time.Sleep(time.Millisecond)
	}
	return nil, fmt.Errorf("others took each of %d free loop devices", attachAttempts)
}

// openLoop opens /dev/loopN, and makes the node where nobody else does.
func openLoop(number int) (*os.File, error) {
	path := fmt.Sprintf("/dev/loop%d", number)
	loop, err := os.OpenFile(path, os.O_RDWR, 0)
	if !errors.Is(err, os.ErrNotExist) {
		return loop, err
	}
	err = unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(loopMajor, uint32(number))))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("cannot make the device node %s: %w", path, err)
	}
	return os.OpenFile(path, os.O_RDWR, 0)
}

// Path returns the loop device's path: /dev/loop3.
func (l *Loop) Path() string { return l.path }

// Detach gives the device up and waits until the kernel has removed it, which
// it does when the last one that uses it is gone. An error names who still does.
// A second call does nothing.
func (l *Loop) Detach() error {
	if err := l.file.Close(); err != nil {
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		return fmt.Errorf("cannot detach %s: %w", l.path, err)
	}
	for deadline := time.Now().Add(detachPatience); l.attached(); time.Sleep(detachPollEvery) {
		if time.Now().After(deadline) {
			who := strings.Join(users(l.path), ", ")
			if who == "" {
				who = "nobody that can be seen"
			}
			return fmt.Errorf("cannot detach %s from %s: it is still used: %s", l.path, l.backing, who)
		}
	}
	return nil
}

// attached tells whether the device still is ours, and not free or someone
// else's already.
func (l *Loop) attached() bool {
	backing, off, limit := l.status()
	return backing != "" && backing == l.backing && off == l.off && limit == l.limit
}

func (l *Loop) status() (backing string, off, limit size.Bytes) {
	dir := "/sys/block/" + filepath.Base(l.path) + "/loop/"
	read := func(name string) string {
		text, _ := os.ReadFile(dir + name)
		return strings.TrimSuffix(string(text), "\n")
	}
	number := func(name string) size.Bytes {
		n, _ := strconv.ParseInt(read(name), 10, 64)
		return size.Bytes(n)
	}
	return read("backing_file"), number("offset"), number("sizelimit")
}

// Backed lists the loop devices that show the disk, or a part of it, whoever
// made them.
func Backed(path string) ([]string, error) {
	id, err := identify(path)
	if err != nil {
		return nil, fmt.Errorf("cannot look for loop devices of %s: %w", path, err)
	}
	return loopsOn(id), nil
}

func loopsOn(id identity) []string {
	var found []string
	dirs, _ := filepath.Glob("/sys/block/loop*/loop")
	for _, dir := range dirs {
		if path := "/dev/" + filepath.Base(filepath.Dir(dir)); isBacking(id, path, dir) {
			found = append(found, path)
		}
	}
	return found
}

// isBacking asks the device itself; its name in /sys is wrong for a file that
// was renamed, or that another namespace sees elsewhere.
func isBacking(id identity, loop, dir string) bool {
	file, err := os.Open(loop)
	if err != nil {
		name, err := os.ReadFile(dir + "/backing_file")
		return err == nil && among([]identity{id}, strings.TrimSuffix(string(name), "\n"))
	}
	defer file.Close()
	info, err := unix.IoctlLoopGetStatus64(int(file.Fd()))
	if err != nil {
		return false
	}
	if id.isFile {
		return info.Rdevice == 0 && info.Device == id.dev && info.Inode == id.inode
	}
	return info.Rdevice == id.dev
}

// Sync returns when all that was written to the device is stored in what is
// behind it, which has to be synced too.
func (l *Loop) Sync() error {
	if err := unix.Fsync(int(l.file.Fd())); err != nil {
		return fmt.Errorf("cannot store what was written to %s: %w", l.path, err)
	}
	return nil
}
