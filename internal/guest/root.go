// Package guest is the mounted tree of a guest: it reads and changes files in
// it without ever leaving it, and knows what the files of a distribution mean.
//
// The guest is hostile. Every path is resolved by the kernel with the guest's
// root as "/" (openat2 with RESOLVE_IN_ROOT), so that absolute links, chains of
// ".." and links to /proc stay inside; nothing but a regular file is ever
// opened for its content, so a named pipe or device in its place can neither
// hang us nor be written to. No program of the guest is run.
//
// Left out: a guest that runs while it is edited (it could swap one file of its
// own for another between two steps, still inside the tree), and a guest whose
// SELinux has rules for labels in its compiled policy alone.
package guest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
)

const (
	maxLinks   = 40      // links followed by hand, as many as the kernel follows
	maxDepth   = 256     // directories below each other
	maxNames   = 1 << 16 // names in a directory that is listed, and in all that a pattern has listed
	maxListed  = 1 << 10 // directories that a pattern has listed
	maxParts   = 16      // components of a pattern
	maxPaths   = 8 << 20 // bytes of the paths that a pattern matches, at each of its components
	maxRemoved = 1 << 20 // files one RemoveAll may remove
)

// Root is the mounted root of a guest. Every path given to its methods is one
// of the guest: "/etc/hostname" and "etc/hostname" are the same file.
type Root struct {
	fd     int
	labels labelling
}

// Open takes the directory a guest is mounted on. What is mounted below it
// later is seen too. Close ends its use.
func Open(dir string) (*Root, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open the guest's root %s: %w", dir, err)
	}
	return &Root{fd: fd}, nil
}

// Close releases the root, so that it can be unmounted.
func (r *Root) Close() error { return unix.Close(r.fd) }

// open resolves a path inside the guest.
func (r *Root) open(name string, flags int) (int, error) {
	how := &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for range maxLinks {
		// EAGAIN: something was renamed on the node while ".." was resolved.
		fd, err := unix.Openat2(r.fd, name, how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// parent opens the directory that holds the last component of a path, which is
// not followed if it is a link.
func (r *Root) parent(name string) (dir int, base string, err error) {
	above, base := split(name)
	if base == "" || base == "." || base == ".." {
		return -1, "", errors.New("it does not end in a file's name")
	}
	dir, err = r.open(above, unix.O_PATH|unix.O_DIRECTORY)
	return dir, base, err
}

// place finds where a file that does not exist would be made. A dangling link
// leads on, inside the guest, as it does when the guest itself makes a file.
func (r *Root) place(name string) (dir int, base string, err error) {
	for range maxLinks {
		dir, base, err := r.parent(name)
		if err != nil {
			return -1, "", err
		}
		target, err := readlinkat(dir, base)
		if err != nil {
			return dir, base, nil
		}
		unix.Close(dir)
		name = follow(name, target)
	}
	return -1, "", unix.ELOOP
}

// split cuts a path before its last component. It does not clean it: what ".."
// means is the kernel's to say, which knows where links lead.
func split(name string) (above, base string) {
	name = strings.TrimRight(name, "/")
	i := strings.LastIndexByte(name, '/')
	return "/" + name[:i+1], name[i+1:]
}

// follow returns the path that the link at name, which says target, means.
func follow(name, target string) string {
	if path.IsAbs(target) {
		return target
	}
	above, _ := split(name)
	return above + "/" + target
}

func readlinkat(dir int, base string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, base, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// byFD is a path of the node that means the open file, or a name in the open
// directory, and nothing else whatever the guest's links say.
func byFD(fd int, base string) string {
	name := "/proc/self/fd/" + strconv.Itoa(fd)
	if base != "" {
		name += "/" + base
	}
	return name
}

// Info is what is known of a file without opening it.
type Info struct {
	Mode     fs.FileMode
	Size     size.Bytes
	UID, GID int
}

// IsRegular tells whether it is a regular file.
func (i Info) IsRegular() bool { return i.Mode.IsRegular() }

// IsDir tells whether it is a directory.
func (i Info) IsDir() bool { return i.Mode.IsDir() }

// Stat describes what a path leads to.
func (r *Root) Stat(name string) (Info, error) { return r.stat(name, 0) }

// Lstat describes what a path names; a link is described, not followed.
func (r *Root) Lstat(name string) (Info, error) { return r.stat(name, unix.O_NOFOLLOW) }

func (r *Root) stat(name string, flags int) (Info, error) {
	fd, err := r.open(name, unix.O_PATH|flags)
	if err != nil {
		return Info{}, fail("look at", name, err)
	}
	defer unix.Close(fd)
	info, err := fstat(fd)
	return info, fail("look at", name, err)
}

func fstat(fd int) (Info, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Info{}, err
	}
	return Info{Mode: fileMode(st.Mode), Size: size.Bytes(st.Size), UID: int(st.Uid), GID: int(st.Gid)}, nil
}

// Exists tells whether a path leads to anything. A dangling link does not.
func (r *Root) Exists(name string) bool {
	_, err := r.Stat(name)
	return err == nil
}

// isFile tells whether a path leads to a regular file.
func (r *Root) isFile(name string) bool {
	info, err := r.Stat(name)
	return err == nil && info.IsRegular()
}

// Readlink returns what the link at a path says.
func (r *Root) Readlink(name string) (string, error) {
	dir, base, err := r.parent(name)
	if err != nil {
		return "", fail("read the link", name, err)
	}
	defer unix.Close(dir)
	target, err := readlinkat(dir, base)
	return target, fail("read the link", name, err)
}

// OpenDir opens a directory, as something to mount on or to start from; its
// content cannot be read through it.
func (r *Root) OpenDir(name string) (*os.File, error) {
	fd, err := r.open(name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, fail("open the directory", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// PathOf is a path of the node that means the open directory, wherever links of
// the guest's would lead.
func PathOf(dir *os.File) string { return byFD(int(dir.Fd()), "") }

// ReadDir returns the names in a directory, sorted. One with more than 65536
// of them is an error.
func (r *Root) ReadDir(name string) ([]string, error) { return r.readDir(name, maxNames) }

func (r *Root) readDir(name string, limit int) ([]string, error) {
	fd, err := r.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, fail("list", name, err)
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	// Only names: more would make package os look at paths of the node.
	names, err := dir.Readdirnames(limit + 1)
	if errors.Is(err, io.EOF) {
		err = nil // it is empty
	}
	if err == nil && len(names) > limit {
		err = tooMany(limit)
	}
	if err != nil {
		return nil, fail("list", name, err)
	}
	slices.Sort(names)
	return names, nil
}

// tooMany is the error for a directory that holds more files than it says.
type tooMany int

func (t tooMany) Error() string { return fmt.Sprintf("it holds more than %d files", int(t)) }

// Glob returns the paths that match a pattern of path.Match component by
// component, sorted. What cannot be listed matches nothing.
//
// A pattern may come from the guest, as may the directories: it has 16
// components at most, each no longer than a file's name can be, or it matches
// nothing. One call lists no more than 1024 directories with 65536 names
// altogether; what is beyond them is not found.
func (r *Root) Glob(pattern string) []string {
	parts := strings.Split(strings.Trim(pattern, "/"), "/")
	if len(parts) > maxParts || slices.ContainsFunc(parts, func(part string) bool { return len(part) > unix.NAME_MAX }) {
		return nil
	}
	g := &globbing{root: r, dirs: maxListed, names: maxNames}
	found := []string{""}
	for _, part := range parts {
		found = g.below(found, part)
	}
	return slices.DeleteFunc(found, func(name string) bool {
		_, err := r.Lstat(name)
		return err != nil
	})
}

// globbing is what one pattern may still list.
type globbing struct {
	root        *Root
	dirs, names int
}

// below returns what matches a component in each of the directories.
func (g *globbing) below(dirs []string, pattern string) []string {
	var found []string
	length := 0
	for _, dir := range dirs {
		for _, name := range g.match(dir, pattern) {
			if length += len(dir) + 1 + len(name); length > maxPaths {
				return found
			}
			found = append(found, dir+"/"+name)
		}
	}
	return found
}

// match returns the names in a directory that match a component.
func (g *globbing) match(dir, pattern string) []string {
	if !strings.ContainsAny(pattern, `*?[\`) {
		return []string{pattern}
	}
	if g.dirs--; g.dirs < 0 || g.names == 0 {
		return nil
	}
	names, err := g.root.readDir(dir+"/", g.names)
	if errors.As(err, new(tooMany)) {
		g.names = 0 // they have been read all the same
	}
	if err != nil {
		return nil
	}
	g.names -= len(names)
	return slices.DeleteFunc(names, func(name string) bool {
		ok, err := path.Match(pattern, name)
		return !ok || err != nil
	})
}

// fail gives an error its sentence, and a hint where the errno alone would not
// tell the cause.
func fail(what, name string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w; it or its directory may be immutable, see chattr(1)", err)
	}
	return fmt.Errorf("cannot %s %s in the guest: %w", what, name, err)
}

var kinds = []struct {
	bits uint32
	mode fs.FileMode
	name string
}{
	{unix.S_IFREG, 0, "regular file"},
	{unix.S_IFDIR, fs.ModeDir, "directory"},
	{unix.S_IFLNK, fs.ModeSymlink, "symbolic link"},
	{unix.S_IFIFO, fs.ModeNamedPipe, "named pipe"},
	{unix.S_IFSOCK, fs.ModeSocket, "socket"},
	{unix.S_IFBLK, fs.ModeDevice, "block device"},
	{unix.S_IFCHR, fs.ModeDevice | fs.ModeCharDevice, "character device"},
}

var special = []struct {
	bits uint32
	mode fs.FileMode
}{
	{unix.S_ISUID, fs.ModeSetuid}, {unix.S_ISGID, fs.ModeSetgid}, {unix.S_ISVTX, fs.ModeSticky},
}

// fileMode turns the kernel's mode into Go's.
func fileMode(bits uint32) fs.FileMode {
	mode := fs.FileMode(bits & 0o777)
	for _, k := range kinds {
		if bits&unix.S_IFMT == k.bits {
			mode |= k.mode
		}
	}
	for _, s := range special {
		if bits&s.bits != 0 {
			mode |= s.mode
		}
	}
	return mode
}

// permBits turns Go's permissions into the kernel's.
func permBits(mode fs.FileMode) uint32 {
	bits := uint32(mode.Perm())
	for _, s := range special {
		if mode&s.mode != 0 {
			bits |= s.bits
		}
	}
	return bits
}

// notA is the error for a file of another kind than was looked for.
func notA(wanted string, mode fs.FileMode) error {
	for _, k := range kinds {
		if mode.Type() == k.mode {
			return kindError("it is a " + k.name + ", not a " + wanted)
		}
	}
	return kindError("it is not a " + wanted)
}

// kindError is the error that a file is of another kind than was looked for.
type kindError string

func (e kindError) Error() string { return string(e) }
