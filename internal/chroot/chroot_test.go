package chroot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
)

func TestMain(m *testing.M) {
	makeAttempt()
	Enter()
	os.Exit(m.Run())
}

// directories are what a guest has, which others are mounted over.
var directories = []string{"bin", "etc", "proc", "sys", "dev", "run", "tmp", "var/tmp", "root"}

// newGuest makes a guest of a static busybox in dir.
func newGuest(t *testing.T, dir string) string {
	t.Helper()
	need.Root(t)
	need.Tools(t, "busybox")
	path, err := run.Find("busybox")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	need.That(t, !bytes.Contains(text, []byte("/lib64/ld-linux")), "a static busybox")
	for _, d := range directories {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), text, 0o755); err != nil {
		t.Fatal(err)
	}
	// Debian builds it so that its shell prefers its own programs.
	for _, name := range []string{"sh", "mount", "mknod", "unshare", "chroot", "sleep", "cat"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// runScript runs a shell script in the guest and returns what was logged.
func runScript(t *testing.T, dir, script string, limit time.Duration) (string, error) {
	t.Helper()
	return logged(t, func() error { return Run(t.Context(), dir, []string{"/bin/sh", "-c", script}, limit) })
}

func logged(t *testing.T, do func() error) (string, error) {
	t.Helper()
	var log bytes.Buffer
	old := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(old)
	err := do()
	return log.String(), err
}

// said is what the guest's program printed, in one line.
func said(log string) string {
	var said []string
	for line := range strings.Lines(log) {
		if _, text, ok := strings.Cut(line, "guest: "); ok {
			said = append(said, strings.ReplaceAll(strings.TrimSuffix(strings.TrimSpace(text), `"`), `\"`, `"`))
		}
	}
	return strings.Join(said, " ")
}

// What a script prints is what the guest's program could do or see.
func TestProgramIsConfined(t *testing.T) {
	dir := newGuest(t, t.TempDir())
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("node's secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	leak, err := os.Open(secret) // as Ganeti's daemons leak: nothing closes it at execve(2)
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	clearCloseOnExec(t, leak)
	t.Setenv("OSP_ROOT_PASSWORD", "from-the-environment")
	makeNode(t, filepath.Join(dir, "disk"), 7, 0)
	makeNode(t, filepath.Join(dir, "etc/mem"), 1, 1)

	cases := []struct{ name, script, want string }{
		{"processes", `cd /proc; echo [0-9]* | busybox tr ' ' '\n' | busybox wc -l`, "few"},
		{"init's descriptors", `for f in /proc/1/fd/*; do (: <$f) 2>/dev/null && echo $f; busybox readlink $f; done; echo none`, "none"},
		{"init's root", `ls /proc/1/root/ 2>&1 | busybox tail -1`, "ls: /proc/1/root/: Permission denied"},
		{"init's program", `cat /proc/1/exe >/dev/null 2>&1 || echo refused`, "refused"},
		{"init's environment", `cat /proc/1/environ 2>&1 | busybox tail -1`, "cat: can't open '/proc/1/environ': Permission denied"},
		{"init's name", `cat /proc/1/comm`, "chroot"},
		{"environment", `busybox env | busybox sort | busybox tr '\n' ' '`, "HOME=/root LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PWD=/ SHLVL=1"},
		{"descriptors", `cd /proc/$$/fd; busybox readlink 0; busybox readlink 1 | busybox cut -c1-5; for f in 3 4 5 6 7 8 9 10 11; do busybox readlink $f; done; echo none`, "/dev/null pipe: none"},
		{"standard input", `cat; echo end`, "end"},
		{"devices", `cd /dev; echo *`, "fd full null random shm stderr stdin stdout tty urandom zero"},
		{"devices work", `busybox head -c 3 /dev/zero >/dev/null && echo yes`, "yes"},
		{"a new device in /dev", `mknod /dev/disk b 7 0 2>&1`, "mknod: /dev/disk: Read-only file system"},
		{"a new device elsewhere", `mknod /tmp/disk b 7 0 && busybox head -c 1 /tmp/disk 2>&1`, "head: /tmp/disk: Permission denied"},
		{"a new device on the guest's disk", `mknod /var/tmp/disk b 7 0 && busybox head -c 1 /var/tmp/disk 2>&1`, "head: /var/tmp/disk: Permission denied"},
		{"a new device in /dev/shm", `mknod /dev/shm/mem c 1 1 && busybox head -c 1 /dev/shm/mem 2>&1`, "head: /dev/shm/mem: Permission denied"},
		{"the guest's device", `busybox head -c 1 /disk 2>&1`, "head: /disk: Permission denied"},
		{"the guest's memory device", `busybox head -c 1 /etc/mem 2>&1`, "head: /etc/mem: Permission denied"},
		{"/dev again", `mount -o remount,rw /dev 2>&1`, "mount: permission denied (are you root?)"},
		{"a mount", `mount -t tmpfs x /var/tmp 2>&1`, "mount: permission denied (are you root?)"},
		{"the kernel's settings", `(echo x >/proc/sys/kernel/core_pattern) 2>&1`, "/bin/sh: can't create /proc/sys/kernel/core_pattern: Read-only file system"},
		{"sysrq", `(echo h >/proc/sysrq-trigger) 2>/dev/null || echo refused`, "refused"},
		{"sys", `ls -A /sys; (echo x >/sys/x) 2>&1`, "/bin/sh: can't create /sys/x: Read-only file system"},
		{"the node's memory", `busybox head -c 1 /proc/kcore 2>/dev/null || echo refused`, "refused"},
		{"network", `busybox ip -o link | busybox grep -c '[<,]UP[,>]'; busybox ip route; busybox ip -6 route; busybox ip addr | busybox grep -c inet`, "0 0"},
		{"network up", `busybox ip link set lo up 2>&1`, "ip: SIOCSIFFLAGS: Operation not permitted"},
		{"host name", `busybox hostname; busybox hostname x 2>&1`, "localhost hostname: sethostname: Operation not permitted"},
		{"above the root", `cd ../../../..; busybox pwd; busybox ls -d etc home 2>/dev/null`, "/ etc"},
		{"a chroot in the root", `chroot /var /bin/sh 2>&1; busybox mkdir -p /var/x; echo done`, "chroot: can't execute '/bin/sh': No such file or directory done"},
		{"user namespace", `unshare -U -r -m sh -c 'mount -o remount,rw,dev /dev; mount -o remount,bind,rw /proc; busybox umount /dev; mknod /dev/x b 7 0; busybox umount -l /proc' >/dev/null 2>&1; [ -e /dev/x ] || echo nothing`, "nothing"},
		{"its user namespace", `unshare -U busybox true 2>&1; unshare -U -r busybox grep CapEff /proc/self/status 2>&1`, "unshare: unshare(0x10000000): Operation not permitted unshare: unshare(0x10000000): Operation not permitted"},
		{"the node's keys", `[ ! -e /proc/keys ] || cat /proc/keys /proc/key-users | busybox wc -c`, "0"},
		{"killed first", `cat /proc/1/oom_score_adj /proc/self/oom_score_adj`, "1000 1000"},
		{"killed first, for ever", `(echo 0 >/proc/self/oom_score_adj) 2>/dev/null || echo refused`, "refused"},
		{"files in memory", `for d in /sys /run /tmp /dev /dev/shm; do busybox stat -f -c %c $d; done`, "16384 16384 16384 16384 16384"},
		{"capabilities", `busybox grep -E 'Cap(Prm|Eff|Bnd|Inh|Amb)|NoNewPrivs' /proc/self/status | busybox tr -d '\t' | busybox tr '\n' ' '`,
			"CapInh:0000000000000000 CapPrm:00000000880400fb CapEff:00000000880400fb CapBnd:00000000880400fb CapAmb:0000000000000000 NoNewPrivs:1"},
		{"limits", `ulimit -c; ulimit -n; busybox grep -c . /proc/self/limits >/dev/null`, "0 4096"},
		{"stop process 1", `kill -TERM 1; kill -KILL 1; kill -SEGV 1; sleep 0.1; echo here`, "here"},
		{"what it may do", `busybox touch /etc/x && busybox chown 7:8 /etc/x && busybox chmod 4755 /etc/x && busybox stat -c '%u %g %a' /etc/x`, "7 8 4755"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			log, _ := runScript(t, dir, c.script, 20*time.Second)
			got := said(log)
			if c.want == "few" {
				if got != "3" && got != "4" && got != "5" {
					t.Errorf("%s processes are seen", got)
				}
			} else if got != c.want {
				t.Errorf("said\n%s\nwant\n%s\nlog: %s", got, c.want, log)
			}
		})
	}
	link := filepath.Join(t.TempDir(), "link with a blank")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if log, err := runScript(t, link, "busybox head -c 1 /disk", time.Minute); err == nil || !strings.Contains(err.Error(), "Permission denied") {
		t.Errorf("through a link: %v %s", err, log)
	}
	if strings.Contains(nodeMounts(t), dir) {
		t.Error("a mount below the guest's root stayed")
	}
}

func makeNode(t *testing.T, path string, major, minor int) {
	t.Helper()
	kind := "b"
	if major == 1 {
		kind = "c"
	}
	if out, err := exec.Command("mknod", path, kind, fmt.Sprint(major), fmt.Sprint(minor)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func nodeMounts(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestOutcomes(t *testing.T) {
	dir := newGuest(t, t.TempDir())
	cases := []struct {
		name, script string
		limit        time.Duration
		want         []string // parts of the error; none: it succeeds
	}{
		{"success", "echo fine", time.Minute, nil},
		{"failure", "echo one; echo two >&2; exit 3", time.Minute, []string{"/bin/sh -c", "exit status 3", "one / two"}},
		{"a signal", "kill -KILL $$", time.Minute, []string{"signal: killed"}},
		{"for ever", "echo begun; while :; do :; done", 300 * time.Millisecond, []string{"longer than 300ms", "begun"}},
		{"deaf to signals", "trap '' TERM INT HUP; while :; do sleep 1; done", 300 * time.Millisecond, []string{"longer than"}},
		{"a daemon", "(busybox setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 0.05; busybox date >>/etc/alive; done' &) ; sleep 0.3; echo gone", time.Minute, nil},
		{"a daemon that holds the output", "sleep 1000 & echo left", time.Minute, nil},
		{"escapes", "busybox printf 'a\\033[2Jb\\200\\n'; exit 1", time.Minute, []string{`a\x1b[2Jb\x80`}},
		{"no end of line", "busybox printf x; exit 1", time.Minute, []string{": x"}},
		{"long lines", "for i in 1 2 3 4 5 6 7 8; do busybox head -c 1000 /dev/zero; echo; done; exit 1", time.Minute, []string{`\x00`}},
		{"a long line", "busybox head -c 100000 /dev/zero | busybox tr '\\0' y; exit 1", time.Minute, []string{strings.Repeat("y", lineLimit)}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			start := time.Now()
			_, err := runScript(t, dir, c.script, c.limit)
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("took %v", took)
			}
			if (err == nil) != (c.want == nil) {
				t.Fatalf("got %v", err)
			}
			for _, part := range c.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q is not in %v", part, err)
				}
			}
			if err != nil && len(err.Error()) > 4096 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
	before, err := os.ReadFile(filepath.Join(dir, "etc/alive"))
	if err != nil || len(before) == 0 {
		t.Fatalf("the daemon did not run: %v", err)
	}
	time.Sleep(300 * time.Millisecond)
	if after, _ := os.ReadFile(filepath.Join(dir, "etc/alive")); len(after) != len(before) {
		t.Error("the daemon lives on")
	}
}

func TestFloodOfOutput(t *testing.T) {
	dir := newGuest(t, t.TempDir())
	log, err := runScript(t, dir, "busybox yes | busybox head -n 200000; echo last; exit 1", time.Minute)
	if err == nil || !strings.HasSuffix(err.Error(), " / last") {
		t.Errorf("got %v", err)
	}
	if n := strings.Count(log, "guest: y"); n != linesLogged {
		t.Errorf("%d lines were logged", n)
	}
	if !strings.Contains(log, "more than is logged") {
		t.Error("nothing says that lines are missing")
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	dir := newGuest(t, t.TempDir())
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("somebody wants it to stop")
	time.AfterFunc(200*time.Millisecond, func() { cancel(why) })
	err := Run(ctx, dir, []string{"/bin/sleep", "1000"}, time.Hour)
	if !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
}

func TestRefusals(t *testing.T) {
	dir := newGuest(t, t.TempDir())
	bare := t.TempDir()
	if err := os.MkdirAll(filepath.Join(bare, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name, target, want string
		argv               []string
	}{
		{"no program", dir, "absolute", nil},
		{"a name alone", dir, "absolute", []string{"sh"}},
		{"a relative root", "guest", "absolute", []string{"/bin/sh"}},
		{"a program that is not there", dir, "no such file", []string{"/bin/none"}},
		{"a program of the node", dir, "no such file", []string{"/usr/bin/env"}},
		{"a directory", dir, "permission denied", []string{"/etc"}},
		{"a root that is not there", dir + "/none", "cannot be found", []string{"/bin/sh"}},
		{"a root that is a file", dir + "/bin/busybox", "cannot be entered", []string{"/bin/sh"}},
		{"a guest without /sys", bare, "over /sys of the guest", []string{"/bin/sh"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := Run(t.Context(), c.target, c.argv, time.Minute)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// The guest's own directories may be links to anywhere.
func TestHostileLinks(t *testing.T) {
	dir := newGuest(t, t.TempDir())
	outside := t.TempDir()
	for _, name := range []string{"dev", "run", "tmp"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(strings.Repeat("../", 20)+outside, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := runScript(t, dir, "echo x >/tmp/x", time.Minute); err == nil {
		t.Error("a link out of the guest was mounted over")
	}
	if names, err := os.ReadDir(outside); err != nil || len(names) > 0 {
		t.Errorf("%v were made outside: %v", names, err)
	}
}

// The guest's file systems are given up before Run returns: the loop device
// below can be detached at once, and e2fsck finds nothing in use.
func TestNothingStaysBusy(t *testing.T) {
	need.Tools(t, "e2fsck", "losetup", "mkfs.ext4")
	need.Root(t)
	ownMounts(t)
	image, target := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	shell(t, "truncate -s 32M "+image+" && mkfs.ext4 -q -F "+image)
	loop := strings.TrimSpace(shell(t, "losetup -f --show "+image))
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", loop).Run() })
	for i := range 10 {
		shell(t, "mount "+loop+" "+target)
		if i == 0 {
			newGuest(t, target)
		}
		script := "busybox setsid sleep 1000 >/dev/null </dev/null & cd /var/tmp; exec 5>open; sleep 0.02"
		if i%2 == 1 {
			script += "; mount -t tmpfs x /etc"
		}
		limit := time.Minute
		if i >= 6 {
			script, limit = script+"; sleep 1000", 200*time.Millisecond
		}
		_, _ = runScript(t, target, script, limit)
		shell(t, "umount "+target)
		// The kernel shows the file system as long as anything holds it.
		shell(t, "e2fsck -fn "+loop+" 2>&1; test ! -e /sys/fs/ext4/"+filepath.Base(loop))
	}
}

// ownMounts gives this test a mount namespace: another process that gets one
// meanwhile would hold a copy of what is mounted here.
func ownMounts(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // and never unlocked, so that the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
}

func shell(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

func FuzzLogLines(f *testing.F) {
	f.Add([]byte("one\ntwo"))
	f.Add([]byte("\x1b[31m\x00\xff\n\n\r\n" + strings.Repeat("x", 5000)))
	slog.SetDefault(slog.New(slog.DiscardHandler))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, line := range logLines(bytes.NewReader(text)) {
			for _, c := range []byte(line) {
				if c < ' ' || c > '~' {
					t.Fatalf("%q is not printable", line)
				}
			}
		}
	})
}

func clearCloseOnExec(t *testing.T, file *os.File) {
	t.Helper()
	if _, err := unix.FcntlInt(file.Fd(), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
}
