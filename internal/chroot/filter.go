package chroot

import (
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// refused are system calls that no tool needs which makes an initramfs. They
// reach what no namespace divides, as the keys of a user and the kernel's log,
// or parts of the kernel in which faults were found often. Most want a
// capability besides that is taken away.
var refused = []uintptr{
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_FANOTIFY_INIT,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_KCMP, unix.SYS_PIDFD_GETFD,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_SETNS, unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT,
	unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD, unix.SYS_SWAPON, unix.SYS_SWAPOFF,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE,
	unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_REBOOT,
	unix.SYS_SYSLOG, unix.SYS_ACCT, unix.SYS_VHANGUP, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME,
}

// newest is the last system call that was judged here, of Linux 6.10. The
// numbers are the same on all architectures since Linux 5.1.
const newest = unix.SYS_MSEAL

// families are the address families that tools need: of a network namespace
// they act in this one alone.
var families = []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}

// architectures are those of nodes, as the kernel names them to a filter.
var architectures = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// Of seccomp(2)'s struct seccomp_data, little-endian as the architectures are.
const (
	callNumber    = 0
	architecture  = 4
	firstArgument = 16 // its lower half, which holds all that is asked for here
)

// What a filter answers, seccomp(2).
const (
	allow      = 0x7fff0000 // SECCOMP_RET_ALLOW
	killed     = unix.SECCOMP_RET_KILL_PROCESS
	forbidden  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	noFamily   = unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)
	notThere   = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	isEqual    = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	isGreater  = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
	hasAnyBits = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
)

type program = []unix.SockFilter

// callFilter is the program by which the kernel judges each system call.
func callFilter(arch uint32) program {
	p := slices.Concat(
		// i386 on amd64 and arm on arm64 have numbers of their own.
		load(architecture), program{{Code: isEqual, K: arch, Jt: 1}}, answer(killed),
		load(callNumber),
		// x32 has the numbers of amd64 and one bit above them.
		when(isGreater, newest, answer(notThere)),
		// Its arguments are in memory, out of a filter's sight; libc then calls clone(2).
		when(isEqual, unix.SYS_CLONE3, answer(notThere)),
	)
	for _, call := range refused {
		p = append(p, when(isEqual, uint32(call), answer(forbidden))...)
	}
	// In a user namespace of its own the program would have all capabilities.
	flags := slices.Concat(load(firstArgument), when(hasAnyBits, unix.CLONE_NEWUSER, answer(forbidden)), answer(allow))
	family := load(firstArgument)
	for _, f := range families {
		family = append(family, when(isEqual, f, answer(allow))...)
	}
	family = append(family, answer(noFamily)...)
	return slices.Concat(p,
		when(isEqual, unix.SYS_CLONE, flags), when(isEqual, unix.SYS_UNSHARE, flags),
		when(isEqual, unix.SYS_SOCKET, family), when(isEqual, unix.SYS_SOCKETPAIR, family),
		answer(allow))
}

func load(offset uint32) program {
	return program{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}}
}

func answer(value uint32) program {
	return program{{Code: unix.BPF_RET | unix.BPF_K, K: value}}
}

// when runs body, which ends with an answer, if what was loaded passes the test.
func when(test uint16, value uint32, body program) program {
	return append(program{{Code: test, K: value, Jf: uint8(len(body))}}, body...)
}

// filterCalls sets the filter for this thread and all that it starts, for ever.
func filterCalls() error {
	arch, ok := architectures[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("its system calls cannot be filtered on a node of the architecture %s", runtime.GOARCH)
	}
	p := callFilter(arch)
	header := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	_, _, errno := unix.Syscall(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&header)))
	if errno != 0 {
		return fmt.Errorf("its system calls cannot be filtered: %w", errno)
	}
	return nil
}
