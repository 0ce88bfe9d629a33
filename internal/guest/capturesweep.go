package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"

	"golang.org/x/sys/unix"
)

// sweepAct is done to a name in an open directory. It tells whether it counts.
type sweepAct func(dir int, base string, st *unix.Stat_t) (bool, error)

// sweeping walks all that is below one directory.
type sweeping struct {
	act  sweepAct
	left int // how many names may still be met
	done int
}

func (s *sweeping) below(dir, depth int) error {
	names, err := s.names(dir)
	if err != nil {
		return err
	}
	for _, base := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := s.enter(dir, base, depth-1); err != nil {
				return err
			}
		}
		counts, err := s.act(dir, base, &st)
		if err != nil {
			return err
		}
		if counts {
			s.done++
		}
	}
	return nil
}

func (s *sweeping) enter(dir int, base string, depth int) error {
	if depth == 0 {
		return fmt.Errorf("it holds more than %d levels", maxDepth)
	}
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return s.below(fd, depth)
}

// names lists an open directory.
func (s *sweeping) names(dir int) ([]string, error) {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), ".")
	defer f.Close()
	names, err := f.Readdirnames(s.left + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if s.left -= len(names); s.left < 0 {
		return nil, tooMany(maxRemoved)
	}
	return names, nil
}

// removeAny removes what it meets; a directory that something is mounted on
// stays.
func removeAny(dir int, base string, st *unix.Stat_t) (bool, error) {
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return true, unix.Unlinkat(dir, base, 0)
	}
	err := unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) { // the latter above one
		err = nil
	}
	return false, err
}

// removeFile removes all but directories, and the counters by which at(1) numbers
// its jobs.
func removeFile(dir int, base string, st *unix.Stat_t) (bool, error) {
	if st.Mode&unix.S_IFMT == unix.S_IFDIR || base == ".SEQ" {
		return false, nil
	}
	return true, unix.Unlinkat(dir, base, 0)
}

// binlogs are no logs: databases begin with them, and Debian has them there.
var binlogs = regexp.MustCompile(`(?:^|-)(?:bin|binlog|relay-log|relay-bin)\.(?:[0-9]{6,}|index|state)$`)

// rotated are the names of logs that nothing writes to any more.
var rotated = regexp.MustCompile(`\.(?:[0-9]{1,4}|gz|xz|zst|bz2|old)$|-[0-9]{8}(?:[.-]|$)`)

// clearLog removes a log that was put aside, and empties one that is written to,
// which keeps its owner and mode: some daemons cannot make theirs. One that has
// another name too is removed, since that may be any file. What a database needs
// stays.
func clearLog(dir int, base string, st *unix.Stat_t) (bool, error) {
	if st.Mode&unix.S_IFMT != unix.S_IFREG || binlogs.MatchString(base) {
		return false, nil
	}
	if st.Nlink > 1 || rotated.MatchString(base) {
		return true, unix.Unlinkat(dir, base, 0)
	}
	if st.Size == 0 {
		return false, nil
	}
	fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	return true, unix.Ftruncate(fd, 0)
}
