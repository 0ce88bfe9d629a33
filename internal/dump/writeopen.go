package dump

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// confined keeps the kernel from following a link and from crossing into another
// mount.
const confined = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV

// opened is a directory with its descriptor, which is -1 where there is none.
type opened struct {
	directory int32
	fd        int
}

func (p *opened) close() {
	if p.fd >= 0 {
		unix.Close(p.fd)
	}
	p.fd = -1
}

// openAt opens a name below a directory.
func openAt(dir int, name string, flags int, resolve uint64) (int, error) {
	how := &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve}
	const maxTries = 40
	for range maxTries {
		fd, err := unix.Openat2(dir, name, how)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// openNode opens a name with O_PATH, whatever it is, and tells whether something
// is mounted there, of which that is opened then.
func openNode(dir int, name string) (fd int, covered bool, err error) {
	const flags = unix.O_PATH | unix.O_NOFOLLOW
	fd, err = openAt(dir, name, flags, confined)
	if !errors.Is(err, unix.EXDEV) {
		return fd, false, err
	}
	fd, err = openAt(dir, name, flags, confined&^unix.RESOLVE_NO_XDEV)
	return fd, true, err
}

// inDirectory returns a descriptor of a directory, which stays open for a while.
func (o *Outline) inDirectory(i int32) (int, error) {
	if i == 0 {
		return o.root, nil
	}
	p := &o.near[int(i)%len(o.near)]
	if p.fd >= 0 && p.directory == i {
		return p.fd, nil
	}
	p.close()
	fd, err := openAt(o.root, o.directoryPath(i), unix.O_PATH|unix.O_DIRECTORY, confined)
	if err != nil {
		return -1, err
	}
	p.directory, p.fd = i, fd
	return fd, nil
}

// descriptor is a path that leads to what a descriptor is of, also where that is
// a link.
func descriptor(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// reopen opens the very file that an O_PATH descriptor is of, to be read. It must
// be a directory or a regular file.
func reopen(fd int) (int, error) {
	for {
		content, err := unix.Open(descriptor(fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOATIME|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return content, err
		}
	}
}

// statOf is what the file system says of a descriptor's inode.
func statOf(fd int, st *unix.Statx_t) error {
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS, st); err != nil {
		return os.NewSyscallError("statx", err)
	}
	return nil
}

// targetOf is what a symbolic link says.
func targetOf(fd int) ([]byte, error) {
	b := make([]byte, maxTarget+1)
	n, err := unix.Readlinkat(fd, "", b)
	switch {
	case err != nil:
		return nil, os.NewSyscallError("readlink", err)
	case n == 0 || n > maxTarget:
		return nil, fmt.Errorf("a symbolic link to nothing, or to a name of more than %d bytes", maxTarget)
	}
	return b[:n], nil
}

// identify sets of a node what tells whether it is still the same.
func (n *node) identify(st *unix.Statx_t) {
	n.inode, n.mode = st.Ino, st.Mode
	n.device = st.Dev_major<<20 | st.Dev_minor
	n.changed = st.Ctime.Sec*1e9 + int64(st.Ctime.Nsec)
}

// isStill tells whether a node is as it was.
func (n *node) isStill(st *unix.Statx_t) bool {
	var is node
	is.identify(st)
	same := is.inode == n.inode && is.mode == n.mode && is.device == n.device && is.changed == n.changed
	return same && (n.mode&formatMask != formatRegular || st.Size == uint64(n.size))
}
