package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// looseLink is the error for a link that others than root may have made. What is
// written or given to a user through it could be any file of the guest.
type looseLink struct{ link string }

func (l looseLink) Error() string {
	return fmt.Sprintf("%s is a link in a directory that others than root may write to, and is not followed: remove it from the image, or name the file that it leads to", printable(l.link))
}

// resolve follows the links of a path as the guest would, and returns the path
// without links that it leads to. What is missing is taken for a file or
// directory that is yet to be made. A link in a directory that is not root's, or
// that its group or others may write to, is the error looseLink; but not in the
// guest's root itself, whose owner has the guest anyway.
func (r *Root) resolve(name string) (string, error) {
	at, left, links := "/", strings.Split(name, "/"), 0
	for len(left) > 0 {
		part := left[0]
		left = left[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, part)
		target, err := r.linkAt(next)
		switch {
		case err != nil:
			return "", err
		case target == "":
			at = next
			continue
		case !r.rootsAlone(at):
			return "", looseLink{next}
		case links == maxLinks:
			return "", unix.ELOOP
		}
		links++
		if path.IsAbs(target) {
			at = "/"
		}
		left = append(strings.Split(target, "/"), left...)
	}
	return at, nil
}

// linkAt returns what the link at a path says, or "" where there is none.
func (r *Root) linkAt(name string) (string, error) {
	st, err := r.inodeAt(name)
	if errors.Is(err, unix.ENOENT) || err == nil && st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	dir, base, err := r.parent(name)
	if err != nil {
		return "", err
	}
	defer unix.Close(dir)
	return readlinkat(dir, base)
}

// inodeAt is what the kernel has of a path, whose last component is not followed.
func (r *Root) inodeAt(name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := r.open(name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return st, err
	}
	defer unix.Close(fd)
	return st, unix.Fstat(fd, &st)
}

// rootsAlone tells whether nobody but root can have put a file into a directory.
func (r *Root) rootsAlone(dir string) bool {
	if dir == "/" {
		return true
	}
	st, err := r.inodeAt(dir)
	return err == nil && st.Uid == 0 && st.Mode&uint32(groupOrOther) == 0
}

// shared tells whether a file has other names, and may not be written in place
// or given to a user for that: a user can have made its name for a file of
// root's, which then has all that is done to it.
func (r *Root) shared(name string, owner int) bool {
	st, err := r.inodeAt(name)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink > 1 && (owner != 0 || !r.rootsAlone(path.Dir(name)))
}

// unshare takes a name from a shared file, so that it can be made anew.
func (r *Root) unshare(name string, owner int) (done bool, err error) {
	if !r.shared(name, owner) {
		return false, nil
	}
	return true, r.Remove(name)
}

// aside renames what is at a path to a free name beside it, and makes it root's,
// for nobody else to read. Nothing there is no error.
func (r *Root) aside(name string) (to string, err error) {
	info, err := r.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if to, err = r.freeName(name + ".image"); err != nil {
		return "", err
	}
	if err := r.Rename(name, to); err != nil {
		return "", err
	}
	if err := r.lchown(to, 0, 0); err != nil {
		return "", err
	}
	switch {
	case info.IsDir():
		err = r.Chmod(to, 0o700)
	case info.IsRegular():
		err = r.Chmod(to, 0o600)
	}
	return to, err
}

// maxAside bounds how often one name was moved aside, by earlier deployments.
const maxAside = 100

func (r *Root) freeName(name string) (string, error) {
	free := name
	for i := 2; i <= maxAside; i++ {
		if _, err := r.Lstat(free); errors.Is(err, fs.ErrNotExist) {
			return free, nil
		} else if err != nil {
			return "", err
		}
		free = fmt.Sprintf("%s%d", name, i)
	}
	return "", fmt.Errorf("%s and %d others are there: remove them from the image", printable(name), maxAside-2)
}
