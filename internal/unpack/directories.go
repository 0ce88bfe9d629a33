package unpack

import (
	"errors"
	"fmt"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/tree"
)

// maxDefaults bounds the bytes of default access control lists, which are kept.
const maxDefaults = 16 << 20

// directory is one of the archive's. It gets its owner, mode and times when
// nothing is made in it any more.
type directory struct {
	name  string
	owner owner
	mode  uint32
	times [2]unix.Timespec
}

type flagged struct {
	name  string
	flags uint32
}

// defaultList is an access control list that all would inherit that is made in
// the directory.
type defaultList struct {
	name string
	list []byte
}

// directory makes a directory, or takes the one that is there. It is open to
// nobody but root until the end.
func (u *unpacking) directory(name string, e *tree.Entry) error {
	if len(u.directories) == maxDirectories {
		return fmt.Errorf("the archive has more than %d directories", maxDirectories)
	}
	if name != "." {
		if err := u.makeDirectory(name); err != nil {
			return err
		}
	}
	if len(e.Xattrs) > 0 {
		if err := u.directoryAttributes(name, e); err != nil {
			return err
		}
	}
	u.keepFlags(name, e)
	u.directories = append(u.directories, directory{name, owner{e.UID, e.GID}, e.Mode & 0o7777,
		[2]unix.Timespec{timespec(e.AccessTime), timespec(e.ModTime)}})
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
		if err := u.vacate(dir, base); err != nil {
			return err
		}
		err = unix.Mkdirat(dir, base, 0o700)
	}
	if err == nil {
		u.stats.Directories++
	}
	return err
}

func (u *unpacking) directoryAttributes(name string, e *tree.Entry) error {
	fd, err := u.parents.resolve(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for attribute, value := range e.Xattrs {
		if attribute == defaultACL {
			if u.defaultBytes += len(name) + len(value); u.defaultBytes > maxDefaults {
				return errors.New("the archive has too many default access control lists")
			}
			u.defaults = append(u.defaults, defaultList{name, append([]byte(nil), value...)})
			continue
		}
		if err := u.attribute(inode{name: name, fd: fd}, attribute, value); err != nil {
			return err
		}
	}
	return nil
}

// finishDirectories gives the directories what would change, or be given to
// others, while something is made in them. Where one comes twice, the later
// counts.
func (u *unpacking) finishDirectories() error {
	for i, d := range u.directories {
		if i%256 == 0 {
			if err := u.pause(); err != nil {
				return err
			}
		}
		if err := u.explain(d.name, u.finishDirectory(d)); err != nil {
			return err
		}
	}
	for _, d := range u.defaults {
		if err := u.explain(d.name, u.setDefault(d)); err != nil {
			return err
		}
	}
	return nil
}

func (u *unpacking) finishDirectory(d directory) error {
	fd, err := u.parents.resolve(d.name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := u.chown(inode{name: d.name, fd: fd}, d.owner); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, d.mode); err != nil {
		return fmt.Errorf("cannot set its mode: %w", err)
	}
	return utimensat(fd, "", &d.times)
}

func (u *unpacking) setDefault(d defaultList) error {
	fd, err := u.parents.resolve(d.name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return u.attribute(inode{name: d.name, fd: fd}, defaultACL, d.list)
}

// keepFlags remembers the inode flags of a file until all is made: nothing can be
// changed or linked that is immutable.
func (u *unpacking) keepFlags(name string, e *tree.Entry) {
	if flags := e.Flags & keptFlags; flags != 0 && len(u.flagged) < maxFlagged {
		u.flagged = append(u.flagged, flagged{name, flags})
	}
}

func (u *unpacking) setFlags() error {
	for _, f := range u.flagged {
		err := u.setFlagsOf(f)
		if err != nil && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return u.explain(f.name, fmt.Errorf("cannot set its inode flags: %w", err))
		}
	}
	return nil
}

func (u *unpacking) setFlagsOf(f flagged) error {
	path, err := u.parents.resolve(f.name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(path)
	// A device or pipe that came later with the same name must not be opened.
	var st unix.Stat_t
	if err := unix.Fstat(path, &st); err != nil {
		return err
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return nil
	}
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
