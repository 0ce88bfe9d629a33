// Package chroot runs one program of a guest's, which nothing else here does,
// for the setting INITRAMFS=rebuild: the guest's own tool is the only one that
// knows what its initramfs must hold.
//
// The program is hostile, and root. It runs in mount, pid, network, IPC, UTS and
// cgroup namespaces of its own. Its root is the guest's tree; nothing else is
// reachable by a path, an open file or a process, and of this program only a
// sealed copy in memory. Device nodes act nowhere but in a /dev that is read only
// and has no disk. It has no capability to mount, to load modules, to trace or to
// configure anything, and cannot gain one, in no user namespace either. A filter
// keeps system calls from it that no such tool needs: those that reach the node's
// keys and its kernel's log, sockets but local ones, the Internet's and netlink's,
// all that are newer than Linux 6.10, and those of another architecture, so that
// no program of a 32-bit guest runs. When it ends, or its time is over, the kernel
// kills all that it started; where the node's memory is short, it is killed first.
//
// Left out: a bound on how many processes it starts, what memory they take
// together and what it fills the guest's disk with. The limits of processes and
// memory are a cgroup's, and nodes differ in whose cgroups those are. A user
// namespace, since the files of the guest must keep their owners. What the kernel
// tells of the node without a right being asked for, as its command line and the
// names of its disks in /proc.
package chroot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// marker names the environment variable by which Enter knows its process.
	marker = "INSTANCE_IMAGE_CHROOT"

	linesLogged = 2000 // lines of output that are logged
	linesKept   = 8    // the last lines, for an error's text
	lineLimit   = 512  // bytes of a line that count
	saidLimit   = 1600 // bytes of these, in an error's text
	faultLimit  = 1024 // bytes of what the process in the namespaces reports
)

// The open files that process 1 of the namespaces is given besides the standard
// ones.
const (
	faultFD   = 3 // where it reports what it could not do
	programFD = 4 // what it was started from
)

// Run runs a program of the guest whose root is mounted at target, an absolute
// path, and waits for it. argv[0] is the program's path in the guest. Nothing
// but its exit code and what it printed comes back: its lines go to the log, the
// first 2000 of them, and the last eight into the error. It and all it started
// are killed after limit, which must be more than 0, or when ctx ends. It must run
// as root.
//
// The program that calls it must call Enter first in its main function.
func Run(ctx context.Context, target string, argv []string, limit time.Duration) error {
	name := strings.Join(argv, " ")
	if len(argv) == 0 || !strings.HasPrefix(argv[0], "/") || !strings.HasPrefix(target, "/") {
		return fmt.Errorf("cannot run %q in the guest: it is no absolute path of a program", name)
	}
	start := time.Now()
	within, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it took longer than %v and was killed", limit))
	defer cancel()
	said, err := startFirst(within, target, argv)
	if cause := context.Cause(within); err != nil && cause != nil {
		err = cause
	}
	if err != nil {
		if text := strings.Join(said, " / "); text != "" {
			err = fmt.Errorf("%w: %s", err, text[max(0, len(text)-saidLimit):])
		}
		return fmt.Errorf("cannot run %s in the guest: %w", name, err)
	}
	slog.Info("ran a program of the guest", "command", name, "took", time.Since(start).Round(time.Millisecond))
	return nil
}

// startFirst starts process 1 of the namespaces, whose end is the end of all in
// them, and returns the last lines it printed.
func startFirst(ctx context.Context, target string, argv []string) ([]string, error) {
	// The kernel watches the thread that started the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	output, outputEnd, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer output.Close()
	faults, faultsEnd, err := os.Pipe()
	if err != nil {
		outputEnd.Close()
		return nil, err
	}
	defer faults.Close()
	program, err := sealedCopy()
	if err != nil {
		faultsEnd.Close()
		outputEnd.Close()
		return nil, err
	}
	defer program.Close()
	cmd := exec.CommandContext(ctx, fmt.Sprintf("/proc/self/fd/%d", programFD))
	cmd.Args, cmd.Env = append([]string{"chroot", target}, argv...), []string{marker + "=1"}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = outputEnd, outputEnd, []*os.File{faultsEnd, program}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | cgroupNamespace(),
		Setsid:     true, // no terminal
		Pdeathsig:  unix.SIGKILL,
	}
	err = cmd.Start()
	outputEnd.Close()
	faultsEnd.Close()
	if err != nil {
		return nil, fmt.Errorf("no namespaces could be made for it: %w", err)
	}
	// Both pipes end with the last process of the namespace.
	said := make(chan []string)
	go func() { said <- logLines(output) }()
	fault, _ := io.ReadAll(io.LimitReader(faults, faultLimit))
	lines := <-said
	if err := cmd.Wait(); len(fault) == 0 {
		return lines, err
	}
	return lines, errors.New(printable(fault))
}

// sealedCopy returns a copy of this program in memory that nobody can write to.
// /proc/self/exe leads to the file a process was started from, out of all
// namespaces, and the program would be its owner.
func sealedCopy() (*os.File, error) {
	own, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer own.Close()
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("chroot", flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("chroot", flags)
	}
	if err != nil {
		return nil, fmt.Errorf("no file in memory could be made for it: %w", err)
	}
	memory := os.NewFile(uintptr(fd), "memfd:chroot")
	_, err = io.Copy(memory, own)
	if err == nil {
		_, err = unix.FcntlInt(memory.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		memory.Close()
		return nil, fmt.Errorf("this program could not be copied to memory: %w", err)
	}
	return memory, nil
}

// cgroupNamespace is the flag for one where the kernel has them.
func cgroupNamespace() uintptr {
	if _, err := os.Stat("/proc/self/ns/cgroup"); err != nil {
		return 0
	}
	return unix.CLONE_NEWCGROUP
}

// logLines logs what a program prints and returns the last lines. It reads to
// the end whatever there is, in little memory.
func logLines(r io.Reader) []string {
	var last []string
	logged := 0
	emit := func(line []byte) {
		text := printable(line)
		if text == "" {
			return
		}
		if last = append(last, text); len(last) > linesKept {
			last = last[1:]
		}
		switch logged++; {
		case logged <= linesLogged:
			slog.Info("guest: " + text)
		case logged == linesLogged+1:
			slog.Warn("guest: it prints more than is logged", "lines", linesLogged)
		}
	}
	var line []byte
	block := make([]byte, 4096)
	for {
		n, err := r.Read(block)
		for part := range bytes.Lines(block[:n]) {
			text, whole := bytes.CutSuffix(part, []byte("\n"))
			line = append(line, text[:min(len(text), lineLimit-len(line))]...)
			if whole {
				emit(line)
				line = line[:0]
			}
		}
		if err != nil {
			emit(line)
			return last
		}
	}
}

// printable makes text of a guest's safe for a log and a terminal.
func printable(text []byte) string {
	quoted := strconv.QuoteToASCII(strings.ReplaceAll(strings.TrimSpace(string(text)), "\t", " "))
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}
