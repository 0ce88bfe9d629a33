package unpack

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/tree"
)

// recordBytes is what a record takes in memory, with its place in a map that has
// grown, but for its name and list.
const recordBytes = 192

// identity is a file, whatever names lead to it.
type identity struct{ dev, ino uint64 }

func identityOf(st *unix.Stat_t) identity { return identity{uint64(st.Dev), st.Ino} }

func identify(fd int) (identity, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return identityOf(&st), err
}

// directory is one of the archive's. It gets its owner, mode and times when
// nothing is made in it any more, and the access control list that all would
// inherit that is made in it.
type directory struct {
	identity
	came     int // the place among all that came
	owner    owner
	mode     uint32
	times    [2]unix.Timespec
	defaults []byte // nil where there is none
}

func (d *directory) bytes(name string) size.Bytes {
	return size.Bytes(len(name) + len(d.defaults) + recordBytes)
}

type flagged struct {
	name  string
	flags uint32
}

func (f flagged) bytes() size.Bytes { return size.Bytes(len(f.name) + recordBytes) }

// keep counts the memory of a record that is kept until the end.
func (u *unpacking) keep(n size.Bytes) error {
	if u.kept+n > u.options.maxKept {
		return fmt.Errorf("the archive's directories and inode flags take more than %s of memory", u.options.maxKept)
	}
	u.kept += n
	return nil
}

// directory makes a directory, or takes the one that is there. One that is made
// is root's and of mode 0700 until the end.
func (u *unpacking) directory(name string, e *tree.Entry) error {
	if name != "." {
		if err := u.makeDirectory(name); err != nil {
			return err
		}
	}
	fd, err := u.parents.resolve(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := u.directoryAttributes(name, fd, e); err != nil {
		return err
	}
	if err := u.keepFlags(name, fd, e.Flags); err != nil {
		return err
	}
	return u.keepDirectory(name, fd, e)
}

// keepDirectory takes the place of what was kept by that name.
func (u *unpacking) keepDirectory(name string, fd int, e *tree.Entry) error {
	id, err := identify(fd)
	if err != nil {
		return err
	}
	d := &directory{id, u.came, owner{e.UID, e.GID}, e.Mode & 0o7777,
		[2]unix.Timespec{timespec(e.AccessTime), timespec(e.ModTime)}, bytes.Clone(e.Xattrs[tree.DefaultACL])}
	u.came++
	if earlier := u.directories[name]; earlier != nil {
		u.kept -= earlier.bytes(name)
		delete(u.directories, name)
	}
	if err := u.keep(d.bytes(name)); err != nil {
		return err
	}
	// The name may be a part of what is much larger.
	u.directories[strings.Clone(name)] = d
	return nil
}

func (u *unpacking) makeDirectory(name string) error {
	dir, base, err := u.parents.of(name)
	if err != nil {
		return err
	}
	u.stats.Directories += u.parents.takeMade()
	err = unix.Mkdirat(dir, base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		fd, openErr := u.parents.resolve(name, unix.O_PATH|unix.O_DIRECTORY)
		if openErr == nil {
			return unix.Close(fd)
		}
		if err := u.vacate(name, dir, base); err != nil {
			return err
		}
		err = unix.Mkdirat(dir, base, 0o700)
	}
	if err == nil {
		u.stats.Directories++
	}
	return err
}

func (u *unpacking) directoryAttributes(name string, fd int, e *tree.Entry) error {
	for attribute, value := range e.Xattrs {
		if attribute == tree.DefaultACL {
			continue
		}
		if err := u.attribute(inode{name: name, fd: fd}, attribute, value); err != nil {
			return err
		}
	}
	return nil
}

// finishDirectories gives the directories what would change, or be given to
// others, while something is made in them. Where one comes by two names, the later
// counts.
func (u *unpacking) finishDirectories() error {
	names := slices.SortedFunc(maps.Keys(u.directories), func(a, b string) int {
		return u.directories[a].came - u.directories[b].came
	})
	for i, name := range names {
		if i%256 == 0 {
			if err := u.pause(); err != nil {
				return err
			}
		}
		if err := u.explain(name, u.finishDirectory(name, u.directories[name])); err != nil {
			return err
		}
	}
	return nil
}

func (u *unpacking) finishDirectory(name string, d *directory) error {
	fd, err := u.again(name, d.identity, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, errElsewhere) {
		u.skip(name, "the owner and mode", err)
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	file := inode{name: name, fd: fd}
	if err := u.chown(file, d.owner); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, d.mode); err != nil {
		return fmt.Errorf("cannot set its mode: %w", err)
	}
	if d.defaults != nil {
		if err := u.attribute(file, tree.DefaultACL, d.defaults); err != nil {
			return err
		}
	}
	return utimensat(fd, "", &d.times)
}

// errElsewhere is the error of a name that stands for another file than it did.
var errElsewhere = errors.New("the archive has another file of its name, or of one on the way to it, further on")

// again opens the file that a name stood for.
func (u *unpacking) again(name string, id identity, flags int) (int, error) {
	fd, err := u.parents.resolve(name, flags)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return -1, errElsewhere
	}
	if err != nil {
		return -1, err
	}
	now, err := identify(fd)
	if err == nil && now != id {
		err = errElsewhere
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// keepFlags remembers the inode flags of a file until all is made: nothing can be
// changed or linked that is immutable. A directory may have come with others.
func (u *unpacking) keepFlags(name string, fd int, flags uint32) error {
	flags &= keptFlags
	if flags == 0 && len(u.flagged) == 0 {
		return nil
	}
	id, err := identify(fd)
	if err != nil {
		return err
	}
	u.forgetFlags(id)
	switch {
	case flags == 0:
		return nil
	case len(u.flagged) >= maxFlagged:
		u.skip(name, flagsOfInode, fmt.Errorf("more than %d files have some", maxFlagged))
		return nil
	}
	f := flagged{strings.Clone(name), flags}
	u.flagged[id] = f
	return u.keep(f.bytes())
}

// forgetFlags is for a file that is gone, or that has other flags.
func (u *unpacking) forgetFlags(id identity) {
	if f, ok := u.flagged[id]; ok {
		u.kept -= f.bytes()
		delete(u.flagged, id)
	}
}

const flagsOfInode = "the inode flags"

func (u *unpacking) setFlags() error {
	for id, f := range u.flagged {
		err := u.setFlagsOf(id, f)
		switch {
		case err == nil:
		case errors.Is(err, errElsewhere), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.EPERM):
			u.skip(f.name, flagsOfInode, err)
		default:
			return u.explain(f.name, fmt.Errorf("cannot set its inode flags: %w", err))
		}
	}
	return nil
}

// setFlagsOf opens what is known to be a regular file or directory: a device or
// pipe that came later with its name is another file.
func (u *unpacking) setFlagsOf(id identity, f flagged) error {
	path, err := u.again(f.name, id, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(path)
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(path), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		return err
	}
	return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(flags|f.flags))
}

// utimensat is the system call as futimens(3) makes it, without a name, which
// the wrapper does not know; or with one that is not followed.
func utimensat(fd int, base string, times *[2]unix.Timespec) error {
	var path *byte
	flags := 0
	if base != "" {
		var err error
		if path, err = unix.BytePtrFromString(base); err != nil {
			return err
		}
		flags = unix.AT_SYMLINK_NOFOLLOW
	}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(times)), uintptr(flags), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
