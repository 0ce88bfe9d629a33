// Package mount puts a guest's file systems together below one directory, in
// namespaces that end with this process, or for an administrator (Kept) in the
// node's own, where they stay.
//
// Left out: LUKS and software RAID inside a guest, logical volumes that are not
// one stretch of the disk, and finding out which file system is which (package
// filesystem).
package mount

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// RunDir is the directory of everything that exists only while we run. In the
// private namespace it is a tmpfs of its own, so that even SIGKILL leaves
// nothing in it.
const RunDir = "/run/ganeti-instance-image/run"

// marker names the environment variable by which the process knows that it is
// the one in the namespaces.
const marker = "INSTANCE_IMAGE_NAMESPACE"

// Inside tells whether this is the process in the namespaces, and forgets it.
func Inside() bool {
	inside := os.Getenv(marker) != "" && os.Getpid() == 1
	_ = os.Unsetenv(marker)
	return inside
}

// RunInside runs the program anew, with the same arguments, environment and
// standard files, in a mount and a pid namespace of its own, and returns its
// exit code. Signals that ask this process to stop are handed on, and so are the
// descriptors that the named environment variables hold the numbers of.
//
// What is mounted there is seen by no other process, and whatever is started
// there ends with it: the kernel kills every process of a pid namespace whose
// first one is gone, and kills that first one when this process goes. So not
// even SIGKILL leaves a mount, or a program that keeps a loop device.
func RunInside(descriptors ...string) (int, error) {
	// The kernel watches the thread that started the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args, cmd.Env = os.Args, append(os.Environ(), marker+"=1")
	for _, name := range descriptors {
		fd, err := strconv.Atoi(os.Getenv(name))
		if err != nil || fd <= 2 {
			continue
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil { // closed; the number may soon be another's
			cmd.Env = append(cmd.Env, name+"=")
		} else {
			cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%d", name, 3+len(cmd.ExtraFiles)))
			cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(fd), name))
		}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: unix.SIGKILL}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	defer signal.Stop(signals)
	if err := cmd.Start(); errors.Is(err, unix.EPERM) {
		return 0, errors.New("cannot make a mount namespace: this must run as root")
	} else if err != nil {
		return 0, fmt.Errorf("cannot make a mount namespace: %w", err)
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err := cmd.Wait()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return 0, fmt.Errorf("cannot wait for the process in the namespace: %w", err)
	}
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() {
		return 0, fmt.Errorf("the process that did the work was ended by a signal: %v", status.Signal())
	}
	return cmd.ProcessState.ExitCode(), nil
}

// Prepare makes the mount namespace of this process ready: an empty RunDir, and
// no mount of ours is seen outside. What the node unmounts is unmounted here
// too, so that we keep no file system of it busy.
func Prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("cannot separate the mount namespace: %w", err)
	}
	if err := os.MkdirAll(RunDir, 0o700); err != nil {
		return fmt.Errorf("cannot make the run-time directory: %w", err)
	}
	if err := unix.Mount("tmpfs", RunDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700,size=16m"); err != nil {
		return fmt.Errorf("cannot mount a tmpfs on %s: %w", RunDir, err)
	}
	return nil
}
