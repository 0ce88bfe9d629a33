package block

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// OpenIdleSource opens a disk for reading, as OpenSource does, and for nobody
// else to use while it is open: the error wraps ErrInUse in the cases that Open
// has it in.
func OpenIdleSource(path string) (*Source, error) {
	s, err := OpenSource(path)
	if err != nil {
		return nil, err
	}
	if err := s.claim(); err != nil {
		s.file.Close()
		return nil, fmt.Errorf("cannot open the disk %s: %w", path, err)
	}
	return s, nil
}

// CheckIdle looks again whether somebody else uses a disk that OpenIdleSource has
// opened, since not everybody asks the kernel: QEMU does not. The error wraps
// ErrInUse as its does.
func (s *Source) CheckIdle() error {
	id, err := identify(s.path)
	if err != nil {
		return fmt.Errorf("cannot look at the disk %s again: %w", s.path, err)
	}
	if err := id.refuse(); err != nil {
		return err
	}
	return lockedByQEMU(s.file)
}

// claim opens the file once more, since only opening it asks the kernel for a
// device that nobody else has.
func (s *Source) claim() error {
	id, err := identify(s.path)
	if err != nil {
		return err
	}
	if err := id.refuse(); err != nil {
		return err
	}
	flags := os.O_RDONLY
	if !id.isFile {
		flags |= unix.O_EXCL
	}
	file, err := os.OpenFile(s.path, flags, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: the kernel refuses to hand it out (mounted in another namespace, or part of another device)", ErrInUse)
	}
	if err != nil {
		return errors.Unwrap(err)
	}
	var stat unix.Stat_t
	err = unix.Fstat(int(file.Fd()), &stat)
	if err == nil && identityOf(stat) != id {
		err = errors.New("it was replaced while it was opened; try again")
	}
	if err == nil {
		err = lock(file, lockPatience)
	}
	if err == nil {
		err = lockedByQEMU(file)
	}
	if err != nil {
		file.Close()
		return err
	}
	s.file.Close()
	s.file = file
	return nil
}
