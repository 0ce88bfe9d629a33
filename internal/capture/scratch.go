package capture

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// scratch is a file that is being made. It has no name, or a hidden one where
// the file system cannot do without, until it is published.
type scratch struct {
	file *os.File
	name string // "" where it has none
}

// newScratch makes one in a directory, for nobody but root to read.
func newScratch(dir string) (*scratch, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return &scratch{file: os.NewFile(uintptr(fd), dir)}, nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("cannot make a file in %s: %w", dir, err)
	}
	f, err := os.CreateTemp(dir, hidden)
	if err != nil {
		return nil, fmt.Errorf("cannot make a file: %w", err)
	}
	return &scratch{file: f, name: f.Name()}, nil
}

// hidden is how files are called that are not published yet.
const hidden = ".capture-*"

// path is one by which this process and the programs it starts can open the file.
func (s *scratch) path() (string, error) {
	// In a pid namespace of our own /proc is still the node's, and "self" is our
	// number there.
	self, err := os.Readlink("/proc/self")
	if err != nil {
		return "", fmt.Errorf("cannot use /proc: %w", err)
	}
	return filepath.Join("/proc", self, "fd", strconv.Itoa(int(s.file.Fd()))), nil
}

// discard closes the file, and removes it where it has a name.
func (s *scratch) discard() error {
	err := s.file.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	if s.name != "" {
		err = errors.Join(err, os.Remove(s.name))
		s.name = ""
	}
	return err
}

// ready stores the file and gives it a hidden name beside the one it will have:
// after that little can fail.
func (s *scratch) ready(name string) error {
	if err := s.file.Sync(); err != nil {
		return fmt.Errorf("cannot store %s: %w", name, err)
	}
	if s.name != "" {
		return nil
	}
	if err := s.link(filepath.Dir(name)); err != nil {
		return fmt.Errorf("cannot name %s: %w", name, err)
	}
	return nil
}

// publish gives the file its name, in the place of another one only where replace
// is set.
func (s *scratch) publish(name string, replace bool) error {
	if err := s.ready(name); err != nil {
		return err
	}
	err := rename(s.name, name, replace)
	switch {
	case errors.Is(err, os.ErrExist):
		return fmt.Errorf("cannot write %s: %w, made by somebody meanwhile; give the image another --name, or --force to replace it", name, err)
	case err != nil:
		return fmt.Errorf("cannot name %s: %w", name, err)
	}
	s.name = ""
	return nil
}

// linkAttempts bounds how many hidden names may be there already.
const linkAttempts = 100

// link gives a nameless file a hidden name, since one can be renamed in the place
// of another file but not be linked there.
func (s *scratch) link(dir string) error {
	path, err := s.path()
	if err != nil {
		return err
	}
	for n := range linkAttempts {
		name := filepath.Join(dir, fmt.Sprintf(".capture-%d-%d", os.Getpid()+int(s.file.Fd()), n))
		err = unix.Linkat(unix.AT_FDCWD, path, unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
		if err == nil {
			s.name = name
			return nil
		}
		if !errors.Is(err, unix.EEXIST) {
			break
		}
	}
	return err
}

func rename(from, to string, replace bool) error {
	if replace {
		return os.Rename(from, to)
	}
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if _, err := os.Lstat(to); err == nil { // a file system without that
		return unix.EEXIST
	}
	return os.Rename(from, to)
}
