package guest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
)

// ReadFile returns the content of a regular file of at most limit bytes. A
// longer one, and anything but a regular file, is an error.
func (r *Root) ReadFile(name string, limit size.Bytes) ([]byte, error) {
	f, err := r.openRegular(name, unix.O_RDONLY)
	if err != nil {
		return nil, fail("read", name, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err == nil && size.Bytes(len(data)) > limit {
		err = tooLarge(limit)
	}
	if err != nil {
		return nil, fail("read", name, err)
	}
	return data, nil
}

// tooLarge is the error that a file is larger than it says.
type tooLarge size.Bytes

func (t tooLarge) Error() string { return fmt.Sprintf("it is larger than %v", size.Bytes(t)) }

// The bounds of what is read of the files that one pattern matches.
const (
	maxMatches   = 256
	matchesLimit = 4 * size.MiB
)

// match is a file that a pattern matches, and its text, or why that cannot be
// read.
type match struct {
	name, text string
	err        error
}

// readMatches yields the files that a pattern of Glob matches, each of at most
// limit bytes. What leads nowhere is left out. Behind 256 files, or where 4 MiB
// or one file of the limit have been read, comes an error for the rest.
func (r *Root) readMatches(pattern string, limit size.Bytes) iter.Seq[match] {
	return func(yield func(match) bool) {
		left := max(matchesLimit, limit)
		for n, name := range r.Glob(pattern) {
			text, err := r.ReadFile(name, min(limit, left))
			if n == maxMatches || errors.As(err, new(tooLarge)) && left < limit {
				yield(match{name: name, err: fmt.Errorf("cannot read %s in the guest and what follows it: %s matches more than %d files or %v", name, pattern, maxMatches, matchesLimit)})
				return
			}
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			left -= size.Bytes(len(text))
			if !yield(match{name, string(text), err}) {
				return
			}
		}
	}
}

// openRegular opens a file that is there, once it is known to be a regular
// one: opening a pipe would wait, and opening a device may act on it.
func (r *Root) openRegular(name string, flags int) (*os.File, error) {
	fd, err := r.open(name, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	info, err := fstat(fd)
	if err != nil {
		return nil, err
	}
	if !info.IsRegular() {
		return nil, notA("regular file", info.Mode)
	}
	file, err := unix.Open(byFD(fd, ""), flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(file), name), nil
}

// WriteFile makes data the content of a file. One that is there is rewritten in
// place: its owner, mode and attributes, SELinux label among them, stay. A new
// one belongs to root, has exactly the mode given and the SELinux label that the
// guest's rules have for it, or its directory's; the directory must exist. A path that leads to anything but a regular
// file is refused.
func (r *Root) WriteFile(name string, data []byte, mode fs.FileMode) error {
	f, err := r.openRegular(name, unix.O_WRONLY)
	if errors.Is(err, unix.ENOENT) {
		return fail("write", name, r.create(name, data, mode))
	}
	if err != nil {
		return fail("write", name, err)
	}
	return fail("write", name, overwrite(f, data))
}

// rewrite makes data the content of a file that is there and says old. Where
// that fails it says old again, as far as its file system lets it.
func (r *Root) rewrite(name string, old, data []byte) error {
	f, err := r.openRegular(name, unix.O_WRONLY)
	if err != nil {
		return fail("write", name, err)
	}
	err = replace(f, data)
	if err != nil {
		// A file system that copies on write may be full now, but not for the
		// blocks that it has just written; where this ends nothing was.
		_, _ = f.WriteAt(old, 0)
		err = errors.Join(err, cut(f, int64(len(old))))
	}
	return fail("write", name, errors.Join(err, f.Close()))
}

func overwrite(f *os.File, data []byte) error { return errors.Join(replace(f, data), f.Close()) }

// replace writes what is longer than the old content first, since that is what a
// full disk has no room for, and cuts it off again where it fails; the rest goes
// where there is room, unless the file system copies on write.
func replace(f *os.File, data []byte) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	common := min(info.Size(), int64(len(data)))
	if _, err := f.WriteAt(data[common:], common); err != nil {
		return errors.Join(err, cut(f, info.Size()))
	}
	if _, err := f.WriteAt(data[:common], 0); err != nil {
		return err
	}
	return cut(f, int64(len(data)))
}

// cut gives a file its length, where it has another: even to keep the one it has
// a full file system may have no room.
func cut(f *os.File, length int64) error {
	if info, err := f.Stat(); err == nil && info.Size() == length {
		return nil
	}
	return f.Truncate(length)
}

func (r *Root) create(name string, data []byte, mode fs.FileMode) error {
	dir, base, err := r.place(name)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	f, err := createAt(dir, base)
	if err != nil {
		return err
	}
	err = errors.Join(unix.Fchmod(int(f.Fd()), permBits(mode)), r.label(dir, base), overwrite(f, data))
	if err != nil {
		unix.Unlinkat(dir, base, 0)
	}
	return err
}

// createAt makes a new file that nobody else may read yet.
func createAt(dir int, base string) (*os.File, error) {
	fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), base), nil
}

// maxAttribute is the kernel's own limit for one attribute's value.
const maxAttribute = 64 << 10

// getxattr reads an attribute of the file that a path of the node leads to.
func getxattr(name, attribute string) ([]byte, error) {
	buf := make([]byte, maxAttribute)
	n, err := unix.Getxattr(name, attribute, buf)
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}

// MkdirAll makes a directory and those above it that are missing, each with
// exactly the mode given and an SELinux label as WriteFile's. A dangling link in
// the path leads to the directory that is made.
func (r *Root) MkdirAll(name string, mode fs.FileMode) error {
	return fail("make the directory", name, r.mkdirAll(name, mode, maxDepth))
}

func (r *Root) mkdirAll(name string, mode fs.FileMode, depth int) error {
	fd, err := r.open(name, unix.O_PATH)
	if err == nil {
		defer unix.Close(fd)
		info, err := fstat(fd)
		if err == nil && !info.IsDir() {
			err = notA("directory", info.Mode)
		}
		return err
	}
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	if depth == 0 {
		return unix.ELOOP
	}
	above, _ := split(name)
	if err := r.mkdirAll(above, mode, depth-1); err != nil {
		return err
	}
	dir, base, err := r.parent(name)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if target, err := readlinkat(dir, base); err == nil {
		return r.mkdirAll(follow(name, target), mode, depth-1)
	}
	return r.mkdirAt(dir, base, mode)
}

func (r *Root) mkdirAt(dir int, base string, mode fs.FileMode) error {
	if err := unix.Mkdirat(dir, base, 0o700); err != nil {
		return err
	}
	return errors.Join(unix.Fchmodat(dir, base, permBits(mode), 0), r.label(dir, base))
}

// Symlink makes a link at a path where nothing is. What it says is for the
// guest to follow and may lead anywhere.
func (r *Root) Symlink(target, name string) error {
	dir, base, err := r.parent(name)
	if err != nil {
		return fail("make the link", name, err)
	}
	defer unix.Close(dir)
	if err := unix.Symlinkat(target, dir, base); err != nil {
		return fail("make the link", name, err)
	}
	return fail("label", name, r.label(dir, base))
}

// Rename moves a file or directory, in the place of what was there.
func (r *Root) Rename(from, to string) error {
	oldDir, oldBase, err := r.parent(from)
	if err != nil {
		return fail("rename", from, err)
	}
	defer unix.Close(oldDir)
	newDir, newBase, err := r.parent(to)
	if err != nil {
		return fail("rename "+from+" to", to, err)
	}
	defer unix.Close(newDir)
	return fail("rename "+from+" to", to, unix.Renameat(oldDir, oldBase, newDir, newBase))
}

// Remove removes a file, a link or an empty directory; what a link leads to
// stays. Nothing there is no error.
func (r *Root) Remove(name string) error {
	dir, base, err := r.parent(name)
	if err == nil {
		defer unix.Close(dir)
		if err = unix.Unlinkat(dir, base, 0); errors.Is(err, unix.EISDIR) {
			err = unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
		}
	}
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fail("remove", name, err)
}

// RemoveAll removes a file or a directory with all below it. Links are removed,
// not followed. Nothing there is no error; more than a million files or 256
// levels are.
func (r *Root) RemoveAll(name string) error {
	dir, base, err := r.parent(name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fail("remove", name, err)
	}
	defer unix.Close(dir)
	left := maxRemoved
	return fail("remove", name, removeTree(dir, base, maxDepth, &left))
}

func removeTree(dir int, base string, depth int, left *int) error {
	if *left--; *left < 0 || depth == 0 {
		return fmt.Errorf("it holds more than %d levels or %d files", maxDepth, maxRemoved)
	}
	err := unix.Unlinkat(dir, base, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	if err := emptyDir(dir, base, depth, left); err != nil {
		return err
	}
	return unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
}

func emptyDir(dir int, base string, depth int, left *int) error {
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	for {
		// From the start each time: file systems differ in what reading on
		// after a removal returns.
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		names, err := f.Readdirnames(1024)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := removeTree(fd, name, depth-1, left); err != nil {
				return err
			}
		}
	}
}

// Chmod sets the permissions of what a path leads to.
func (r *Root) Chmod(name string, mode fs.FileMode) error {
	return r.onFile("set the mode of", name, func(file string) error { return unix.Chmod(file, permBits(mode)) })
}

// Chown sets the owner and group, as numbers, of what a path leads to.
func (r *Root) Chown(name string, uid, gid int) error {
	return r.onFile("set the owner of", name, func(file string) error { return unix.Chown(file, uid, gid) })
}

// SetLabel sets the SELinux label of what a path leads to, as in
// "system_u:object_r:sshd_key_t:s0".
func (r *Root) SetLabel(name, label string) error {
	return r.onFile("label", name, func(file string) error {
		return unix.Setxattr(file, labelAttribute, append([]byte(label), 0), 0)
	})
}

// Label returns the SELinux label of what a path leads to, "" where it has none.
func (r *Root) Label(name string) string {
	label := ""
	_ = r.onFile("read the label of", name, func(file string) error {
		value, err := getxattr(file, labelAttribute)
		label = unix.ByteSliceToString(value)
		return err
	})
	return label
}

// onFile resolves a path in the guest and hands its meaning to act.
func (r *Root) onFile(what, name string, act func(file string) error) error {
	fd, err := r.open(name, unix.O_PATH)
	if err != nil {
		return fail(what, name, err)
	}
	defer unix.Close(fd)
	return fail(what, name, act(byFD(fd, "")))
}
