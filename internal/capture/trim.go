package capture

import (
	"errors"
	"log/slog"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

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
