package unpack

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/tree"
)

// copyBuffer is how much of a file is copied at once.
const copyBuffer = 256 << 10

// hardLink makes one more name of a file that came before.
func (u *unpacking) hardLink(name string, dir int, base string, e *tree.Entry) error {
	target, err := clean(e.Target)
	if err != nil || target == "." {
		return fmt.Errorf("it is a hard link to %s, which is no file of the archive", tree.Quoted(e.Target))
	}
	from, fromBase, err := u.source(target)
	if err != nil {
		return err
	}
	err = unix.Linkat(from, fromBase, dir, base, 0)
	if errors.Is(err, unix.EEXIST) {
		if same(from, fromBase, dir, base) {
			return nil
		}
		if err := u.vacate(name, dir, base); err != nil {
			return err
		}
		err = unix.Linkat(from, fromBase, dir, base, 0)
	}
	switch {
	case err == nil:
		u.stats.Links++
		return nil
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EMLINK), errors.Is(err, unix.EPERM):
		u.stats.Copies++
		err = u.copy(name, from, fromBase, dir, base)
	}
	if err != nil {
		return fmt.Errorf("cannot link it to %s: %w", tree.Quoted(target), err)
	}
	return nil
}

// source finds the file that a hard link is to. Nothing is made for it, and a
// link at its end is the file itself.
func (u *unpacking) source(target string) (dir int, base string, err error) {
	if i := strings.LastIndexByte(target, '/'); i >= 0 && !u.parents.isOpen(target[:i]) {
		fd, err := u.parents.resolve(target[:i], unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return -1, "", noSource(target, err)
		}
		unix.Close(fd)
	}
	dir, base, err = u.parents.of(target)
	if err != nil {
		return -1, "", err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return -1, "", noSource(target, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return -1, "", fmt.Errorf("it is a hard link to the directory %s", tree.Quoted(target))
	}
	return dir, base, nil
}

func noSource(target string, err error) error {
	return fmt.Errorf("it is a hard link to %s, which did not come before it: %w", tree.Quoted(target), err)
}

func same(dir1 int, name1 string, dir2 int, name2 string) bool {
	var a, b unix.Stat_t
	return unix.Fstatat(dir1, name1, &a, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		unix.Fstatat(dir2, name2, &b, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		a.Dev == b.Dev && a.Ino == b.Ino
}

// copy makes a file anew where it cannot have one more name: on another file
// system, on FAT, and where it has as many as its file system allows.
func (u *unpacking) copy(name string, from int, fromBase string, dir int, base string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, fromBase, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		return u.copyFile(name, from, fromBase, dir, base, &st)
	}
	return u.copyNode(name, from, fromBase, dir, base, &st)
}

// copyNode is for links, devices and pipes.
func (u *unpacking) copyNode(name string, from int, fromBase string, dir int, base string, st *unix.Stat_t) error {
	source := nodePath(from, fromBase)
	link := st.Mode&unix.S_IFMT == unix.S_IFLNK
	target := ""
	var err error
	if link {
		if target, err = os.Readlink(source); err != nil {
			return err
		}
	}
	err = u.place(name, dir, base, func() error {
		if link {
			return unix.Symlinkat(target, dir, base)
		}
		return unix.Mknodat(dir, base, st.Mode&unix.S_IFMT|0o600, int(st.Rdev))
	})
	if err != nil {
		return err
	}
	xattrs, err := readAttributes(
		func(names []byte) (int, error) { return unix.Llistxattr(source, names) },
		func(name string, value []byte) (int, error) { return unix.Lgetxattr(source, name, value) })
	if err != nil {
		return err
	}
	e := u.entryOf(st, xattrs)
	if link {
		e.Type = tree.Symlink
	}
	return u.describeNode(name, dir, base, e)
}

// entryOf is what an archive would say of a file that came before, as far as
// describe asks for it.
func (u *unpacking) entryOf(st *unix.Stat_t, xattrs map[string][]byte) *tree.Entry {
	return &tree.Entry{
		Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Xattrs: xattrs, Flags: u.flagged[identityOf(st)].flags,
		AccessTime: time.Unix(st.Atim.Unix()), ModTime: time.Unix(st.Mtim.Unix()),
	}
}

func (u *unpacking) copyFile(name string, from int, fromBase string, dir int, base string, st *unix.Stat_t) (err error) {
	in, err := unix.Openat(from, fromBase, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(in)
	out := -1
	err = u.place(name, dir, base, func() error {
		out, err = unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(out)) }()
	if err := u.copyContent(in, out, st.Size); err != nil {
		return err
	}
	xattrs, err := readAttributes(
		func(names []byte) (int, error) { return unix.Flistxattr(in, names) },
		func(name string, value []byte) (int, error) { return unix.Fgetxattr(in, name, value) })
	if err != nil {
		return err
	}
	return u.describe(name, out, u.entryOf(st, xattrs))
}

// copyContent copies the data of n bytes and leaves the holes.
func (u *unpacking) copyContent(in, out int, n int64) error {
	buffer := make([]byte, copyBuffer)
	for at := int64(0); at < n; {
		data, err := unix.Seek(in, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(in, data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for at = data; at < hole; {
			m, err := unix.Pread(in, buffer[:min(hole-at, copyBuffer)], at)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err == nil && m == 0 {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return fmt.Errorf("cannot read at offset %d: %w", at, err)
			}
			if err := writeAt(out, buffer[:m], at); err != nil {
				return err
			}
			at += int64(m)
			u.stats.Bytes += size.Bytes(m)
			u.flusher.wrote(m)
		}
		if err := u.pause(); err != nil {
			return err
		}
	}
	return unix.Ftruncate(out, n)
}

// readAttributes reads those of a file that came before.
func readAttributes(list func([]byte) (int, error), get func(string, []byte) (int, error)) (map[string][]byte, error) {
	names := make([]byte, 64<<10) // the kernel's XATTR_LIST_MAX
	n, err := list(names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	xattrs := map[string][]byte{}
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		m, err := get(name, value)
		if err != nil {
			return nil, err
		}
		xattrs[name] = value[:m:m]
	}
	return xattrs, nil
}
