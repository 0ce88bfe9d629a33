package unpack

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/tree"
)

// Inode flags of ioctl_iflags(2) that are set. The others tell how a file system
// stores the file, or are of one file system only.
const (
	flagImmutable = 0x10
	flagAppend    = 0x20
	flagNoDump    = 0x40
	flagNoAtime   = 0x80

	keptFlags = flagImmutable | flagAppend | flagNoDump | flagNoAtime
)

// owner is whom a file belongs to, by numbers.
type owner struct{ uid, gid uint32 }

// inode is an open file, or a name in an open directory, that gets attributes.
type inode struct {
	name string // for messages
	fd   int    // -1 where there is
	path string // one of the node that means the name
	// follow is set where the path is a link of /proc itself; where it is not, a
	// link in the directory is what gets the attributes.
	follow bool
}

// describe gives an open file what the archive says of it. The owner comes first,
// since a new owner takes away set-id bits and capabilities; the access control
// list behind the mode, which it is finer than; and the times last.
func (u *unpacking) describe(name string, fd int, e *tree.Entry) error {
	file := inode{name: name, fd: fd}
	if err := u.chown(file, owner{e.UID, e.GID}); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, e.Mode&0o7777); err != nil {
		return fmt.Errorf("cannot set its mode: %w", err)
	}
	if err := u.attributes(file, e.Xattrs); err != nil {
		return err
	}
	if err := u.keepFlags(name, fd, e.Flags); err != nil {
		return err
	}
	return setTimes(fd, "", e.AccessTime, e.ModTime)
}

// describeNode does so for what cannot be opened: links, devices and pipes.
func (u *unpacking) describeNode(name string, dir int, base string, e *tree.Entry) error {
	file := inode{name: name, fd: -1, path: nodePath(dir, base)}
	if err := u.chown(file, owner{e.UID, e.GID}); err != nil {
		return err
	}
	if e.Type != tree.Symlink {
		if err := unix.Fchmodat(dir, base, e.Mode&0o7777, 0); err != nil {
			return fmt.Errorf("cannot set its mode: %w", err)
		}
	}
	if err := u.attributes(file, e.Xattrs); err != nil {
		return err
	}
	return setTimes(dir, base, e.AccessTime, e.ModTime)
}

// nodePath is a name in an open directory, for the calls that take no directory.
func nodePath(dir int, base string) string {
	return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + base
}

// chown changes the owner. FAT, which has none, refuses any but its own.
func (u *unpacking) chown(file inode, o owner) error {
	// The kernel takes it for "as it was".
	if o.uid == 1<<32-1 || o.gid == 1<<32-1 {
		return fmt.Errorf("its owner %d:%d does not exist", o.uid, o.gid)
	}
	var err error
	if file.path == "" {
		err = unix.Fchown(file.fd, int(o.uid), int(o.gid))
	} else {
		err = unix.Lchown(file.path, int(o.uid), int(o.gid))
	}
	if errors.Is(err, unix.EPERM) {
		u.skip(file.name, fmt.Sprintf("the owner %d:%d", o.uid, o.gid), err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot set its owner: %w", err)
	}
	return nil
}

// skip counts what could not be set, as its file system does not take it or for
// another reason that err is.
func (u *unpacking) skip(name, what string, err error) {
	if u.stats.Skipped++; u.stats.Skipped == 1 {
		u.stats.FirstSkipped = fmt.Sprintf("%s of %s cannot be set: %v", what, tree.Quoted(name), err)
	}
}

func (u *unpacking) attributes(file inode, xattrs map[string][]byte) error {
	for name, value := range xattrs {
		if err := u.attribute(file, name, value); err != nil {
			return err
		}
	}
	return nil
}

func (u *unpacking) attribute(file inode, name string, value []byte) error {
	if strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("its attribute %s has a zero byte in its name", tree.Quoted(name))
	}
	var err error
	switch {
	case file.path == "":
		err = unix.Fsetxattr(file.fd, name, value, 0)
	case file.follow:
		err = unix.Setxattr(file.path, name, value, 0)
	default:
		err = unix.Lsetxattr(file.path, name, value, 0)
	}
	switch {
	case err == nil:
		return nil
	case decidesAccess(name) || !u.mayLack(err):
		return fmt.Errorf("cannot set its attribute %s: %w", tree.Quoted(name), err)
	}
	u.skip(file.name, "the attribute "+tree.Quoted(name), err)
	return nil
}

// decidesAccess tells the attributes that a file must have or not be there:
// without them a program lacks a right, or anybody has one.
func decidesAccess(name string) bool {
	return name == tree.Capability || name == tree.AccessACL || name == tree.DefaultACL
}

// mayLack tells the errors of an attribute that a file system does not take, or
// not from us, or not as large. Where it is full, nothing may be left out.
func (u *unpacking) mayLack(err error) bool {
	for _, e := range []error{unix.ENOTSUP, unix.EPERM, unix.EINVAL, unix.E2BIG, unix.ERANGE} {
		if errors.Is(err, e) {
			return true
		}
	}
	var fs unix.Statfs_t
	return errors.Is(err, unix.ENOSPC) && unix.Fstatfs(u.root, &fs) == nil && fs.Bavail > 64 && fs.Ffree > 0
}

// amend sets the attributes that the source knows only now.
func (u *unpacking) amend() error {
	src, ok := u.src.(amendingSource)
	if !ok {
		return nil
	}
	amendments := src.Amendments()
	lists := map[string]int{}
	for _, e := range amendments {
		if name, err := clean(e.Name); err == nil && e.Xattrs[tree.AccessACL] != nil {
			lists[name]++
		}
	}
	for _, e := range amendments {
		name, err := clean(e.Name)
		if err == nil {
			err = u.amendOne(name, e.Xattrs, lists[name])
		}
		if err != nil {
			return u.explain(name, err)
		}
	}
	return nil
}

// keepReplaced remembers a name that a file was removed from, so that nothing is
// given to the next one that was meant for it.
func (u *unpacking) keepReplaced(name string) error {
	if u.replaced == nil {
		return nil
	}
	if u.replaced[name] == 0 {
		if err := u.keep(size.Bytes(len(name) + recordBytes)); err != nil {
			return err
		}
		name = strings.Clone(name)
	}
	u.replaced[name]++
	return nil
}

// meant tells whether a name stands for one file only, or each that had the name
// has one of the access control lists, so that the last is of the last.
func (u *unpacking) meant(name string, lists int) bool {
	for i := range len(name) {
		if name[i] == '/' && u.replaced[name[:i]] > 0 {
			return false
		}
	}
	n := u.replaced[name]
	return n == 0 || n+1 == lists
}

func (u *unpacking) amendOne(name string, xattrs map[string][]byte, lists int) error {
	fd, err, certain := -1, errElsewhere, false
	if d := u.directories[name]; d != nil {
		fd, err = u.again(name, d.identity, unix.O_PATH|unix.O_DIRECTORY)
		certain = err == nil
	}
	if errors.Is(err, errElsewhere) {
		fd, err = u.parents.resolve(name, unix.O_PATH|unix.O_NOFOLLOW)
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return nil
	}
	if !certain && !u.meant(name, lists) {
		return errors.New("the archive has several files of this name, and does not tell which has the access control list")
	}
	// The file is not open, only named, so that this is the way to it.
	return u.attributes(inode{name: name, fd: -1, path: "/proc/self/fd/" + strconv.Itoa(fd), follow: true}, xattrs)
}

// setTimes sets the times of an open file, or of a name in an open directory.
func setTimes(fd int, base string, access, modified time.Time) error {
	times := [2]unix.Timespec{timespec(access), timespec(modified)}
	if err := utimensat(fd, base, &times); err != nil {
		return fmt.Errorf("cannot set its times: %w", err)
	}
	return nil
}

// timespec is a time as utimensat(2) takes it, where a zero one is left as it is.
func timespec(t time.Time) unix.Timespec {
	if t.IsZero() {
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}
