package chroot

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
)

// attempt marks the argument by which this test's own program, copied into the
// guest, makes one of the attempts.
const attempt = "attempt:"

// keyName is that of a key of the node's root.
const keyName = "chroot-test-key"

// attempts are what a hostile program of the guest does by system calls that
// busybox does not make.
var attempts = map[string]func() error{
	"change own file": func() error {
		return errors.Join(os.Chmod("/proc/self/exe", 0o4711), os.Chown("/proc/self/exe", 7, 8))
	},
	"write own file": func() error { return os.WriteFile("/proc/self/exe", []byte("x"), 0) },
	"key of the node": func() error {
		id, err := unix.KeyctlSearch(unix.KEY_SPEC_USER_KEYRING, "user", keyName, 0)
		if err == nil {
			_, err = unix.KeyctlInt(unix.KEYCTL_REVOKE, id, 0, 0, 0)
		}
		return err
	},
	"a key": func() error {
		_, err := unix.AddKey("user", keyName+"-2", []byte("x"), unix.KEY_SPEC_PROCESS_KEYRING)
		return err
	},
	"a clone in a user namespace": func() error {
		cmd := exec.Command("/bin/busybox", "true")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}
		return cmd.Run()
	},
	"a clone":           func() error { return exec.Command("/bin/busybox", "true").Run() },
	"clone3":            raw(unix.SYS_CLONE3),
	"newer":             raw(unix.SYS_LISTXATTRAT),
	"x32":               raw(0x40000000 | 39), // getpid(2) on amd64
	"perf":              raw(unix.SYS_PERF_EVENT_OPEN),
	"io_uring":          raw(unix.SYS_IO_URING_SETUP),
	"userfaultfd":       raw(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|1), // UFFD_USER_MODE_ONLY
	"fanotify":          raw(unix.SYS_FANOTIFY_INIT, unix.FAN_REPORT_FID),
	"log of the kernel": raw(unix.SYS_SYSLOG, 10), // SYSLOG_ACTION_SIZE_BUFFER
	"VM socket":         socket(unix.AF_VSOCK),
	"crypto socket":     socket(unix.AF_ALG),
	"sockets": func() error {
		_, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		return errors.Join(err, socket(unix.AF_UNIX)(), socket(unix.AF_INET)(), socket(unix.AF_INET6)(), socket(unix.AF_NETLINK)())
	},
	"all that are refused": func() error {
		var others []error
		for _, call := range refused {
			if err := raw(call)(); err != unix.EPERM {
				others = append(others, fmt.Errorf("%d: %v", call, err))
			}
		}
		return errors.Join(others...)
	},
}

func raw(call uintptr, first ...uintptr) func() error {
	return func() error {
		_, _, errno := unix.Syscall6(call, append(first, 0)[0], 0, 0, 0, 0, 0)
		if errno != 0 {
			return errno
		}
		return nil
	}
}

func socket(family int) func() error {
	return func() error {
		kind := unix.SOCK_DGRAM
		switch family {
		case unix.AF_VSOCK:
			kind = unix.SOCK_STREAM
		case unix.AF_ALG:
			kind = unix.SOCK_SEQPACKET
		}
		_, err := unix.Socket(family, kind, 0)
		return err
	}
}

// makeAttempt does what this program's argument names, and ends it.
func makeAttempt() {
	if len(os.Args) < 2 || !strings.HasPrefix(os.Args[1], attempt) {
		return
	}
	err := attempts[strings.TrimPrefix(os.Args[1], attempt)]()
	fmt.Println(strings.ReplaceAll(fmt.Sprint(err), "\n", ", "))
	os.Exit(0)
}

var library = regexp.MustCompile(`(?m)^\t(?:\S+ => )?(/\S+) \(0x`)

// addAttempts copies this test's program into a guest as /bin/attempt, and the
// libraries where it has any.
func addAttempts(t *testing.T, dir string) {
	t.Helper()
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{own: "bin/attempt"}
	out, _ := exec.Command("ldd", own).Output() // fails where there are none
	for _, match := range library.FindAllSubmatch(out, -1) {
		files[string(match[1])] = string(match[1])
	}
	for from, to := range files {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, to)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSystemCalls(t *testing.T) {
	dir := newGuest(t, t.TempDir())
	addAttempts(t, dir)
	key, err := unix.AddKey("user", keyName, []byte("secret"), unix.KEY_SPEC_USER_KEYRING)
	need.That(t, err == nil, "a kernel with keys")
	t.Cleanup(func() {
		_, _ = unix.KeyctlInt(unix.KEYCTL_UNLINK, key, unix.KEY_SPEC_USER_KEYRING, 0, 0)
	})
	cases := []struct{ name, want string }{
		{"key of the node", "operation not permitted"},
		{"a key", "operation not permitted"},
		{"a clone in a user namespace", "fork/exec /bin/busybox: operation not permitted"},
		{"a clone", "<nil>"},
		{"clone3", "function not implemented"},
		{"newer", "function not implemented"},
		{"perf", "operation not permitted"},
		{"io_uring", "operation not permitted"},
		{"userfaultfd", "operation not permitted"},
		{"fanotify", "operation not permitted"},
		{"log of the kernel", "operation not permitted"},
		{"VM socket", "address family not supported by protocol"},
		{"crypto socket", "address family not supported by protocol"},
		{"sockets", "<nil>"},
		{"all that are refused", "<nil>"},
	}
	if runtime.GOARCH == "amd64" {
		cases = append(cases, struct{ name, want string }{"x32", "function not implemented"})
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			log, err := runScript(t, dir, "/bin/attempt '"+attempt+c.name+"'", 20*time.Second)
			if got := said(log); err != nil || got != c.want {
				t.Errorf("got %s, want %s (%v)", got, c.want, err)
			}
		})
	}
	buffer := make([]byte, 16)
	if n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, key, buffer, 0); err != nil || string(buffer[:n]) != "secret" {
		t.Errorf("the node's key is %q now: %v", buffer, err)
	}
}

// A program that the kernel runs by the system calls of another architecture is
// judged by other numbers.
func TestForeignSystemCalls(t *testing.T) {
	need.That(t, runtime.GOARCH == "amd64", "amd64")
	dir := newGuest(t, t.TempDir())
	path := filepath.Join(dir, "bin/foreign")
	if err := os.WriteFile(path, foreign, 0o755); err != nil {
		t.Fatal(err)
	}
	err := exec.Command(path).Run()
	need.That(t, err != nil && err.Error() == "exit status 7", "a kernel with system calls of i386")
	err = Run(t.Context(), dir, []string{"/bin/foreign"}, time.Minute)
	if err == nil || !strings.Contains(err.Error(), "32-bit") {
		t.Errorf("got %v", err)
	}
}

// foreign is a program for amd64, elf(5), which makes one system call of i386
// and ends with 7.
var foreign = []byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x02\x00\x3e\x00\x01\x00\x00\x00" + "\x78\x00\x40\x00\x00\x00\x00\x00" + // its entry
	"\x40\x00\x00\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x00\x00\x00\x40\x00\x38\x00\x01\x00\x40\x00\x00\x00\x00\x00" +
	// one segment: the whole file, to be read and executed
	"\x01\x00\x00\x00\x05\x00\x00\x00" + "\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x00\x40\x00\x00\x00\x00\x00" + "\x00\x00\x40\x00\x00\x00\x00\x00" +
	"\x8d\x00\x00\x00\x00\x00\x00\x00" + "\x8d\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x10\x00\x00\x00\x00\x00\x00" +
	"\xb8\x14\x00\x00\x00\xcd\x80" + // mov $20,%eax; int $0x80: getpid of i386
	"\xbf\x07\x00\x00\x00\xb8\x3c\x00\x00\x00\x0f\x05\x0f\x0b") // exit(7) of amd64

// A script's interpreter is found while the process still is this program.
func TestOwnProgramIsOutOfReach(t *testing.T) {
	dir := newGuest(t, t.TempDir())
	addAttempts(t, dir)
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"change own file": "<nil>",
		"write own file":  "open /proc/self/exe: ",
	} {
		before := status(t, own)
		script := filepath.Join(dir, "bin/own")
		if err := os.WriteFile(script, []byte("#!/proc/self/exe "+attempt+name+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		log, err := logged(t, func() error { return Run(t.Context(), dir, []string{"/bin/own"}, time.Minute) })
		if err != nil || !strings.HasPrefix(said(log), want) {
			t.Errorf("%s: %v: %s", name, err, log)
		}
		after := status(t, own)
		if before.Mode != after.Mode || before.Uid != after.Uid || before.Ctim != after.Ctim || before.Size != after.Size {
			t.Errorf("%s: the node's program was changed: %v, %v", name, before, after)
		}
	}
}

// The kernel looks up a program, and a script's interpreter, while the process
// still has the files and the memory of this one.
func TestProgramFromOutside(t *testing.T) {
	dir := newGuest(t, t.TempDir())
	addAttempts(t, dir)
	outside, err := os.Open(newGuest(t, t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	clearCloseOnExec(t, outside)
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ := strings.Cut(string(maps), " ") // where the program's text is, the same in all that run it
	leading := regexp.MustCompile(`\b0+`)
	for name, interpreter := range map[string]string{
		"an open file": fmt.Sprintf("/proc/self/fd/%d/bin/busybox echo", outside.Fd()),
		"a mapping":    "/proc/self/map_files/" + leading.ReplaceAllString(text, "") + " " + attempt + "a clone",
	} {
		script := filepath.Join(dir, "bin/own")
		if err := os.WriteFile(script, []byte("#!"+interpreter+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		log, err := logged(t, func() error { return Run(t.Context(), dir, []string{"/bin/own"}, time.Minute) })
		if err == nil || !strings.Contains(err.Error(), "fork/exec") || said(log) != "" {
			t.Errorf("%s: %v: %s", name, err, log)
		}
	}
}

func status(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		t.Fatal(err)
	}
	return stat
}
