package chroot

import (
	"errors"
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

// confine takes from this thread and what it starts all capabilities but a few,
// the ways to get others, and system calls. They are taken before the program is
// started, for the kernel looks up the file to run as the one that asks for it:
// /proc/self/map_files, which wants a capability, leads to the node's libraries.
func confine() error {
	// What /proc and ptrace(2) tell of this process they tell nobody now.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("process 1 cannot be hidden: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("new privileges cannot be ruled out: %w", err)
	}
	// A new one without a name; a kernel without keys has none to hide.
	if _, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0); err != nil && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("the node's session keyring cannot be left: %w", err)
	}
	if err := boundCapabilities(); err != nil {
		return err
	}
	if err := dropCapabilities(); err != nil {
		return err
	}
	return filterCalls()
}

func boundCapabilities() error {
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

// dropCapabilities leaves this thread those that are kept, and none that
// execve(2) would hand on besides the bounding set.
func dropCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var has, kept [2]unix.CapUserData // of 32 capabilities each
	if err := unix.Capget(&header, &has[0]); err != nil {
		return fmt.Errorf("the capabilities cannot be read: %w", err)
	}
	for _, c := range keep {
		bit := has[c/32].Permitted & (1 << (c % 32))
		kept[c/32].Permitted |= bit
		kept[c/32].Effective |= bit
	}
	if err := unix.Capset(&header, &kept[0]); err != nil {
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
