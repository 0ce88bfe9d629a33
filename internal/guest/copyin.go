package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// CopyIn copies what a directory of the node holds into the guest's root, as
// "cp -a DIR/. ROOT" would, and returns how many files, links and directories
// that were. Names that begin with a dot are copied too; modes, numeric owners,
// times and attributes are kept; hard links within the directory stay hard
// links; pipes and device nodes are made, not read; links are copied as links
// and never followed on the node.
//
// Where the guest has something of that name already:
//   - a directory is entered and gets the mode, owner and times of the copied
//     one. A link to a directory counts as the directory, wherever in the guest
//     it leads: lib/x goes to usr/lib/x where /lib is a link to usr/lib.
//   - a regular file over a regular file, also through a link to one, rewrites
//     it in place; but one that has other names is replaced where the new owner
//     or that of its directory is not root.
//   - anything else that is no directory, a dangling link too, is replaced, and
//     so is a link in a directory, below the guest's root directory, to which
//     others than root may write.
//   - a directory in the place of a file, or a file in the place of a
//     directory, is an error.
//
// The guest's root directory itself keeps its mode and owner. An SELinux label
// is copied only where it differs from that of the directory itself, that is,
// where someone set it; all others get what WriteFile gives.
func (r *Root) CopyIn(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("cannot open the directory %s on the node: %w", dir, err)
	}
	defer unix.Close(fd)
	c := &copier{root: r, links: map[inode]string{}}
	c.plainLabel, _ = getxattr(byFD(fd, ""), labelAttribute)
	err = c.directory(fd, dir, "", maxDepth)
	return c.copied, err
}

type inode struct{ dev, ino uint64 }

// copier is one copy that is under way.
type copier struct {
	root       *Root
	links      map[inode]string // where a file with several names was copied to first
	plainLabel []byte
	copied     int
}

// source is a file of the node that is copied.
type source struct {
	dir  int    // the open directory it is in
	name string // its name there
	path string // its path, for messages
	st   unix.Stat_t
}

// directory copies what the open directory src holds to the directory dst.
func (c *copier) directory(src int, srcPath, dst string, depth int) error {
	if depth == 0 {
		return fmt.Errorf("cannot copy %s: more than %d directories below each other", srcPath, maxDepth)
	}
	names, err := namesIn(src)
	if err != nil {
		return fmt.Errorf("cannot list %s: %w", srcPath, err)
	}
	for _, name := range names {
		s := source{dir: src, name: name, path: path.Join(srcPath, name)}
		if err := unix.Fstatat(src, name, &s.st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("cannot read %s: %w", s.path, err)
		}
		to := dst + "/" + name
		if err := c.entry(s, to, depth); err != nil {
			return err
		}
		c.copied++
	}
	return nil
}

// namesIn lists an open directory without moving its position.
func namesIn(fd int) ([]string, error) {
	own, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(own), ".")
	defer f.Close()
	names, err := f.Readdirnames(0)
	slices.Sort(names)
	return names, err
}

func (c *copier) entry(s source, to string, depth int) error {
	kind := s.st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		return c.subdirectory(s, to, depth)
	}
	id := inode{uint64(s.st.Dev), s.st.Ino}
	several := s.st.Nlink > 1 && kind != unix.S_IFLNK
	if first, ok := c.links[id]; ok && several {
		done, err := c.link(first, to)
		if done || err != nil {
			return wrapCopy(s, to, err)
		}
	}
	if err := wrapCopy(s, to, c.file(s, kind, to)); err != nil {
		return err
	}
	if several {
		c.links[id] = to
	}
	return nil
}

func wrapCopy(s source, to string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("cannot copy %s: %w", s.path, fail("write", to, err))
}

func (c *copier) subdirectory(s source, to string, depth int) error {
	fd, err := unix.Openat(s.dir, s.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", s.path, err)
	}
	defer unix.Close(fd)
	if err := c.makeDirectory(to); err != nil {
		return wrapCopy(s, to, err)
	}
	if err := c.directory(fd, s.path, to, depth-1); err != nil {
		return err
	}
	// Last, since each file that is made changes the directory's times.
	return wrapCopy(s, to, c.describe(s, to))
}

// makeDirectory makes sure that to leads to a directory in the guest.
func (c *copier) makeDirectory(to string) error {
	_, st, err := c.follow(to)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return notA("directory", fileMode(st.Mode))
	}
	if err == nil || !leadsNowhere(err) {
		return err
	}
	dir, base, err := c.vacate(to)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return c.root.mkdirAt(dir, base, 0o700)
}

// follow finds what to leads to. The directories above it were entered by
// makeDirectory, so that only its last component may be a link to look into.
func (c *copier) follow(to string) (at string, st unix.Stat_t, err error) {
	st, err = c.root.inodeAt(to)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return to, st, err
	}
	if at, err = c.root.resolve(to); err == nil {
		st, err = c.root.inodeAt(at)
	}
	return at, st, err
}

// file copies one source that is no directory.
func (c *copier) file(s source, kind uint32, to string) error {
	if kind == unix.S_IFREG {
		if err := c.content(s, to); err != nil {
			return err
		}
		return c.describe(s, to)
	}
	dir, base, err := c.vacate(to)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if kind == unix.S_IFLNK {
		target, err := readlinkat(s.dir, s.name)
		if err == nil {
			err = unix.Symlinkat(target, dir, base)
		}
		if err != nil {
			return err
		}
	} else if err := unix.Mknodat(dir, base, kind|0o600, int(s.st.Rdev)); err != nil {
		return err
	}
	if err := c.root.label(dir, base); err != nil {
		return err
	}
	return c.describeAt(s, byFD(dir, base), kind == unix.S_IFLNK)
}

// content writes a regular file's bytes.
func (c *copier) content(s source, to string) error {
	fd, err := unix.Openat(s.dir, s.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	from := os.NewFile(uintptr(fd), s.path)
	defer from.Close()
	into, err := c.target(to, int(s.st.Uid))
	if err != nil {
		return err
	}
	_, err = io.Copy(into, from)
	return errors.Join(err, into.Close())
}

// target opens the regular file at to, emptied, or makes one.
func (c *copier) target(to string, owner int) (*os.File, error) {
	at, st, err := c.follow(to)
	switch {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG:
		if !c.root.shared(at, owner) {
			return c.root.openRegular(at, unix.O_WRONLY|unix.O_TRUNC)
		}
		to = at
	case err != nil && !leadsNowhere(err):
		return nil, err
	}
	dir, base, err := c.vacate(to)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	f, err := createAt(dir, base)
	if err != nil {
		return nil, err
	}
	if err := c.root.label(dir, base); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// leadsNowhere tells whether nothing is there, or a link to nothing, in a loop or
// that is not to be followed.
func leadsNowhere(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.As(err, new(looseLink))
}

// vacate opens the directory that a new file is made in, and removes what stands
// in its place.
func (c *copier) vacate(to string) (dir int, base string, err error) {
	if dir, base, err = c.root.parent(to); err != nil {
		return -1, "", err
	}
	if err := unlinkOther(dir, base); err != nil {
		unix.Close(dir)
		return -1, "", err
	}
	return dir, base, nil
}

// unlinkOther removes what stands in a new file's place, unless that is a
// directory.
func unlinkOther(dir int, base string) error {
	err := unix.Unlinkat(dir, base, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EISDIR):
		return errors.New("it is a directory, and what is copied is not")
	}
	return err
}

// link makes to a further name of a file that was copied before. It is not done
// where the two are on different file systems of the guest.
func (c *copier) link(first, to string) (done bool, err error) {
	file, err := c.root.open(first, unix.O_PATH)
	if err != nil {
		return false, err
	}
	defer unix.Close(file)
	dir, base, err := c.vacate(to)
	if err != nil {
		return false, err
	}
	defer unix.Close(dir)
	err = unix.Linkat(unix.AT_FDCWD, byFD(file, ""), dir, base, unix.AT_SYMLINK_FOLLOW)
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EMLINK) {
		return false, nil
	}
	return err == nil, err
}

// describe gives what to leads to the owner, mode, attributes and times of the
// source.
func (c *copier) describe(s source, to string) error {
	fd, err := c.root.open(to, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return c.describeAt(s, byFD(fd, ""), false)
}

// describeAt does so for a path of the node. The owner comes first, since a new
// owner takes away set-id bits and capabilities, and the times come last.
func (c *copier) describeAt(s source, file string, isLink bool) error {
	chown, flags := unix.Chown, 0
	if isLink {
		chown, flags = unix.Lchown, unix.AT_SYMLINK_NOFOLLOW
	}
	if err := chown(file, int(s.st.Uid), int(s.st.Gid)); err != nil {
		return err
	}
	if !isLink {
		if err := unix.Chmod(file, s.st.Mode&0o7777); err != nil {
			return err
		}
	}
	if err := c.attributes(s, file, isLink); err != nil {
		return err
	}
	times := []unix.Timespec{s.st.Atim, s.st.Mtim}
	return unix.UtimesNanoAt(unix.AT_FDCWD, file, times, flags)
}

// copiedAttributes are the extended attributes that are copied, by name or by
// prefix; the two of POSIX are access control lists.
var copiedAttributes = []string{"user.", "security.capability", labelAttribute, "system.posix_acl_access", "system.posix_acl_default"}

func (c *copier) attributes(s source, file string, isLink bool) error {
	from := byFD(s.dir, s.name)
	names, err := listAttributes(from)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	set := unix.Setxattr
	if isLink {
		set = unix.Lsetxattr
	}
	for _, name := range names {
		if !slices.ContainsFunc(copiedAttributes, func(p string) bool {
			return name == p || strings.HasSuffix(p, ".") && strings.HasPrefix(name, p)
		}) {
			continue
		}
		buf := make([]byte, maxAttribute)
		n, err := unix.Lgetxattr(from, name, buf)
		if err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
		if name == labelAttribute && string(buf[:n]) == string(c.plainLabel) {
			continue
		}
		if err := set(file, name, buf[:n], 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return nil
}

// listAttributes names the attributes of a file of the node, not following it
// if it is a link.
func listAttributes(file string) ([]string, error) {
	buf := make([]byte, maxAttribute)
	n, err := unix.Llistxattr(file, buf)
	if err != nil {
		return nil, err
	}
	return strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 }), nil
}
