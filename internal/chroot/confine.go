package chroot

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
)

// keep are the capabilities that the tools were seen to need or that act on the
// guest's files alone: to copy files with their owners and modes, to make the
// device nodes of an archive, and to chroot into the tree it is made of
// (ldconfig -r). CAP_DAC_READ_SEARCH is not among them: with it a file of the
// same file system can be opened by its number, outside of any root.
var keep = []uintptr{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL,
	unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_SETFCAP, unix.CAP_MKNOD, unix.CAP_SYS_CHROOT,
}

// confine takes from what this thread starts all capabilities but a few, and the
// ways to get others. This process keeps its own, and so cannot be looked into by
// the program: ptrace(2) asks for all that the other has.
func confine() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("new privileges cannot be ruled out: %w", err)
	}
	_, _ = unix.KeyctlJoinSessionKeyring("") // a kernel without keys has none to hide
	if err := clearInheritable(); err != nil {
		return err
	}
	// The first number that the kernel does not know is an error.
	for c := uintptr(0); ; c++ {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if err != nil {
			return nil
		}
		if has == 0 || slices.Contains(keep, c) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("the capabilities cannot be bounded: %w", err)
		}
	}
}

// clearInheritable takes what execve(2) would hand on besides the bounding set,
// with it the ambient capabilities.
func clearInheritable() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var set [2]unix.CapUserData // of 32 capabilities each
	if err := unix.Capget(&header, &set[0]); err != nil {
		return fmt.Errorf("the capabilities cannot be read: %w", err)
	}
	set[0].Inheritable, set[1].Inheritable = 0, 0
	if err := unix.Capset(&header, &set[0]); err != nil {
		return fmt.Errorf("the capabilities cannot be set: %w", err)
	}
	return nil
}

// bounds are the limits of each process, setrlimit(2).
var bounds = []struct {
	what int
	most uint64
}{
	{unix.RLIMIT_CORE, 0},
	{unix.RLIMIT_NOFILE, 4096},
	{unix.RLIMIT_MEMLOCK, uint64(1 * size.MiB)},
	{unix.RLIMIT_FSIZE, uint64(2 * size.GiB)}, // several times an initramfs with all modules
	{unix.RLIMIT_DATA, uint64(4 * size.GiB)},  // more than xz -9 or zstd -19 take
}

func bound() error {
	for _, b := range bounds {
		if err := unix.Setrlimit(b.what, &unix.Rlimit{Cur: b.most, Max: b.most}); err != nil {
			return fmt.Errorf("its limits cannot be set: %w", err)
		}
	}
	return nil
}
