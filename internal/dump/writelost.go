package dump

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loss is a kind of thing that a dump has no room for and many files may have:
// one warning tells of all of them.
type loss int

const (
	lostTimes loss = iota
	lostCasefold
	lostVerity
	lostProject
	lostStorage
	losses // how many kinds there are
)

// lossTexts are the warnings: how many files there are, and the first one.
var lossTexts = [losses]string{
	lostTimes:    "%d files, %s first, have times before 1970 or after 2106, which the dump has as the nearest it can hold",
	lostCasefold: "%d directories, %s first, tell no upper from lower case in names (casefold): they come back as others are",
	lostVerity:   "%d files, %s first, are sealed by fs-verity: they come back without it",
	lostProject:  "%d files and directories, %s first, belong to projects of a quota: they come back without",
	lostStorage:  "%d files and directories, %s first, are marked for compression, against it, or against copying on write: they come back without",
}

// Inode flags of linux/fs.h, as FS_IOC_GETFLAGS gives them.
const (
	casefoldFlag = 0x40000000
	// btrfsFlags are those of compression and NOCOW, which ext has no use for.
	btrfsFlags = 0x4 | 0x400 | 0x800000
)

// marks are what a file system says of an inode besides its mode and the like.
type marks struct {
	flags   uint32
	project uint32
	ext     bool // flags are those of ext, which a dump has all of
}

// lost are the kinds of loss that marks mean.
func (m marks) lost() []loss {
	var all []loss
	if m.flags&casefoldFlag != 0 {
		all = append(all, lostCasefold)
	}
	if m.project != 0 {
		all = append(all, lostProject)
	}
	if m.flags&btrfsFlags != 0 && !m.ext {
		all = append(all, lostStorage)
	}
	return all
}

// notice warns of what of an inode the dump does not have. The descriptor is one
// to read from, so that files without content are not looked at.
func (s *scanning) notice(fd int, n *node) {
	for _, kind := range marksOf(fd).lost() {
		s.note(kind, n)
	}
}

// note counts a file that loses something.
func (s *scanning) note(kind loss, n *node) {
	l := &s.notes.lost[kind]
	if l.files++; l.files == 1 {
		l.first = s.quotedName(n)
	}
}

// marksOf reads marks, of which a file system that knows none has none. They are
// only for warnings: what cannot be read is not there, and it is Write that fails
// where flags should be there.
func marksOf(fd int) (m marks) {
	if flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS); err == nil {
		m.flags = flags
	}
	m.project, _ = projectOf(fd)
	var fs unix.Statfs_t
	if m.flags&btrfsFlags != 0 {
		m.ext = unix.Fstatfs(fd, &fs) == nil && fs.Type == extMagic
	}
	return m
}

// projectOf is the project whose quota an inode counts for: FS_IOC_FSGETXATTR,
// which has this number on amd64 and arm64.
func projectOf(fd int) (uint32, error) {
	const getXattr = 0x801c581f
	var attributes struct { // fsxattr
		flags, extentSize, extents, project, copySize uint32
		_                                             [8]byte
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), getXattr, uintptr(unsafe.Pointer(&attributes)))
	if errno != 0 {
		return 0, errno
	}
	return attributes.project, nil
}

// hides tells whether a directory that something is mounted on has names of its
// own, by a copy of the mount without what is mounted below. It takes what mount(2)
// takes: who may not has no mounts of his own to be told of.
func (s *scanning) hides(path string) bool {
	tree, err := unix.OpenTree(s.root, "", unix.OPEN_TREE_CLONE|unix.O_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return false
	}
	defer unix.Close(tree)
	fd, err := openAt(tree, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME|unix.O_NONBLOCK, confined)
	if err != nil {
		return false
	}
	f := os.NewFile(uintptr(fd), "directory")
	defer f.Close()
	names, _ := f.Readdirnames(1)
	return len(names) > 0
}
