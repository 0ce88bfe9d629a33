package capture

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fitrim is the ioctl of that name, _IOWR('X', 121, struct fstrim_range), on all
// machines where a size is in the bits from 16 on.
const fitrim = 0xC0185879

// trim has a mounted file system give back what it has free, after all that it
// was told is stored: what was removed last is free only then. One that cannot
// is left; punchFree comes after it.
func trim(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("cannot store what was changed in the copy: %w", err)
	}
	return fitrimOf(f, [3]uint64{0, math.MaxUint64, 0})
}

// fitrimOf hands the kernel a range of start, length, and least length, in bytes.
func fitrimOf(dir *os.File, span [3]uint64) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), fitrim, uintptr(unsafe.Pointer(&span)))
	if errno == 0 {
		return nil
	}
	slog.Debug("the file system does not tell what it has free", "dir", dir.Name(), "cause", errno)
	for _, cannot := range []error{unix.EOPNOTSUPP, unix.ENOTTY, unix.EINVAL, unix.EROFS} {
		if errors.Is(errno, cannot) {
			return nil
		}
	}
	return errno
}
