package chroot

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Enter returns at once, except in the process that Run started: there it runs
// the guest's program and ends the process.
func Enter() {
	if os.Getenv(marker) == "" || os.Getpid() != 1 || len(os.Args) < 3 {
		return
	}
	// Capabilities and the like belong to a thread, and what it starts has its.
	runtime.LockOSThread()
	// Another process may send signals to this one, which must not end it early.
	signal.Notify(make(chan os.Signal, 1))
	code := 0
	if err := enter(os.Args[1], os.Args[2:]); err != nil {
		code = 1
		_, _ = unix.Write(faultFD, []byte(err.Error()))
	}
	os.Exit(code)
}

func enter(target string, argv []string) error {
	for _, step := range []func() error{
		closeOthers,
		beKilledFirst,
		func() error { return takeRoot(target) },
		furnish,
		bound,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return execute(argv)
}

// closeOthers keeps all files but the three standard ones from the program. Those
// that this process was started with are closed at once: what execve(2) closes
// is open yet when the kernel looks up the program, and a path may lead through
// /proc/self/fd. Those that are closed by it are this process's own.
func closeOthers() error {
	unix.CloseOnExec(faultFD)
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("its open files cannot be found out: %w", err)
	}
	for _, entry := range open {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil || fd <= faultFD {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd)
		}
	}
	return nil
}

// beKilledFirst makes this process, and all it starts, what the kernel kills
// when the node runs out of memory, proc_pid_oom_score_adj(5).
func beKilledFirst() error {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil {
		return fmt.Errorf("it cannot be marked as the first to be killed where memory is short: %w", err)
	}
	// For the kernel's log and ps(1): the name is that of a descriptor.
	_ = os.WriteFile("/proc/self/comm", []byte("chroot"), 0)
	return nil
}

// takeRoot makes the guest's tree the only one there is.
func takeRoot(target string) error {
	target, err := filepath.EvalSymlinks(target) // as the kernel names mounts
	if err != nil {
		return fmt.Errorf("the guest's root cannot be found: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("the mounts cannot be separated: %w", err)
	}
	if err := unix.Mount(target, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("the guest's root %s cannot be bound: %w", target, err)
	}
	if err := disarm(target); err != nil {
		return err
	}
	if err := unix.Chdir(target); err != nil {
		return fmt.Errorf("the guest's root %s cannot be entered: %w", target, err)
	}
	// The old root comes to lie upon the new one, as pivot_root(2) has it.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("the root cannot be changed: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("the old root cannot be released: %w", err)
	}
	return unix.Chdir("/")
}

// keptFlags are the options of a mount, as proc_pid_mountinfo(5) has them, that
// a change of others would take away.
var keptFlags = map[string]uintptr{
	"ro": unix.MS_RDONLY, "noexec": unix.MS_NOEXEC, "noatime": unix.MS_NOATIME,
	"nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME, "nosymfollow": unix.MS_NOSYMFOLLOW,
}

// disarm takes their meaning from the device nodes and set-id programs of all
// file systems of the guest, here and not where they are mounted for others.
func disarm(target string) error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("the guest's mounts cannot be found out: %w", err)
	}
	found := false
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 6 {
			continue
		}
		at := unescape.Replace(fields[4])
		found = found || at == target
		if at != target && !strings.HasPrefix(at, strings.TrimSuffix(target, "/")+"/") {
			continue
		}
		flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND | unix.MS_NODEV | unix.MS_NOSUID)
		for option := range strings.SplitSeq(fields[5], ",") {
			flags |= keptFlags[option]
		}
		if err := unix.Mount("", at, "", flags, ""); err != nil {
			return fmt.Errorf("the device nodes below %s cannot be switched off: %w", at, err)
		}
	}
	if !found {
		return fmt.Errorf("the guest's root %s is not among the mounts", target)
	}
	return nil
}

// unescape reads the octal escapes of mountinfo.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// empty are the file systems that hide what the guest has there. All is read
// only of which a part is the kernel's: root may write to most files of /proc/sys
// with no capability at all.
var empty = []struct {
	at, kind string
	flags    uintptr
	data     string
}{
	{"/proc", "proc", unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"/sys", "tmpfs", unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=0755,size=4k,nr_inodes=16k"},
	{"/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755,size=16m,nr_inodes=16k"},
	{"/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777,size=64m,nr_inodes=16k"},
	{"/dev", "tmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0755,size=64k,nr_inodes=16k"},
}

// nodes are the devices of /dev, by the numbers Linux gives them (devices.txt).
var nodes = []struct {
	name         string
	major, minor uint32
}{
	{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
}

var links = [][2]string{
	{"/proc/self/fd", "/dev/fd"}, {"fd/0", "/dev/stdin"}, {"fd/1", "/dev/stdout"}, {"fd/2", "/dev/stderr"},
}

// hidden are files of /proc that show the keys of the node.
var hidden = []string{"/proc/keys", "/proc/key-users"}

// furnish mounts what a program expects of a system that runs. The guest's links
// lead nowhere but into the guest by now.
func furnish() error {
	for _, e := range empty {
		if err := unix.Mount(e.kind, e.at, e.kind, e.flags, e.data); err != nil {
			return fmt.Errorf("%s cannot be mounted over %s of the guest: %w", e.kind, e.at, err)
		}
	}
	unix.Umask(0)
	for _, n := range nodes {
		if err := unix.Mknod("/dev/"+n.name, unix.S_IFCHR|0o666, int(unix.Mkdev(n.major, n.minor))); err != nil {
			return fmt.Errorf("/dev/%s cannot be made: %w", n.name, err)
		}
	}
	unix.Umask(0o022)
	for _, l := range links {
		if err := unix.Symlink(l[0], l[1]); err != nil {
			return fmt.Errorf("%s cannot be made: %w", l[1], err)
		}
	}
	if err := shm(); err != nil {
		return err
	}
	// Only now: what acts in it must not grow in number.
	if err := unix.Mount("", "/dev", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("/dev cannot be made read only: %w", err)
	}
	for _, file := range hidden {
		if err := unix.Mount("/dev/null", file, "", unix.MS_BIND, ""); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%s cannot be hidden: %w", file, err)
		}
	}
	return unix.Sethostname([]byte("localhost"))
}

func shm() error {
	if err := unix.Mkdir("/dev/shm", 0o1777); err != nil {
		return fmt.Errorf("/dev/shm cannot be made: %w", err)
	}
	if err := unix.Mount("tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=1777,size=16m,nr_inodes=16k"); err != nil {
		return fmt.Errorf("/dev/shm cannot be mounted: %w", err)
	}
	return nil
}

// environ is all that the program finds in its environment.
var environ = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/root"}

// execute runs the program. What it leaves running is killed by the kernel when
// this process ends, and the mounts go before its end is told.
func execute(argv []string) error {
	if err := confine(); err != nil {
		return err
	}
	// Its standard input is the new /dev/null.
	cmd := &exec.Cmd{Path: filepath.Clean(argv[0]), Args: argv, Env: environ, Dir: "/", Stdout: os.Stdout, Stderr: os.Stderr}
	err := cmd.Run()
	if ended := new(exec.ExitError); errors.As(err, &ended) && ended.Sys().(syscall.WaitStatus).Signal() == unix.SIGSYS {
		return fmt.Errorf("%w: it is made for another machine than this node, as that of a 32-bit guest is", err)
	}
	return err
}
