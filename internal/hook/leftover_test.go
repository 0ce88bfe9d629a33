package hook

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
)

// capture has the log written to the buffer it returns.
func capture(t *testing.T) *bytes.Buffer {
	t.Helper()
	var log bytes.Buffer
	old := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	t.Cleanup(func() { slog.SetDefault(old) })
	return &log
}

var path = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}

func script(t *testing.T, name, text string) Hook {
	t.Helper()
	return Hook{Name: name, Path: write(t, t.TempDir(), name, "#!/bin/bash\n"+text, 0o755)}
}

func TestTimeout(t *testing.T) {
	cases := []struct{ name, text string }{
		{"waits", "echo $$ >PID; sleep 1000\n"},
		{"waits for another session", "setsid sh -c 'echo $$ >PID; exec sleep 1000'\n"},
		{"hears nothing", "trap '' TERM; echo $$ >PID; while :; do sleep 0.1; done\n"},
		{"ends with 0 when asked", "echo $$ >PID; trap 'exit 0' TERM; while :; do sleep 0.1; done\n"},
		{"leaves a deaf daemon", "setsid sh -c 'trap \"\" TERM; echo $$ >PID; while :; do sleep 0.1; done' & wait\n"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			pidfile := filepath.Join(t.TempDir(), "pid")
			// A process of its own, since a Runner takes all that is started for its hook's.
			out, code := inProcess(t, "TestTimeoutHelper", 0, strings.ReplaceAll(c.text, "PID", pidfile))
			if code != 0 || !strings.Contains(out, "/slow was ended after 1 s (HOOK_TIMEOUT)") || !strings.Contains(out, "next ran") {
				t.Errorf("code %d:\n%s", code, out)
			}
			ended(t, pidfile)
		})
	}
}

func TestTimeoutHelper(t *testing.T) {
	text := helper(t)
	grace = 300 * time.Millisecond
	r := Runner{Environ: path, Dir: "/", Timeout: time.Second}
	err := r.Run(t.Context(), []Hook{script(t, "slow", text), script(t, "next", "echo next ran\n")})
	t.Log(err)
}

// helperVariable tells a test that it is to be the helper, and what with.
const helperVariable = "HOOK_TEST_HELPER"

func helper(t *testing.T) string {
	t.Helper()
	text, ok := os.LookupEnv(helperVariable)
	if !ok {
		t.Skip("only another test calls this one")
	}
	return text
}

// inProcess runs a test of this package in a process, and with flags in
// namespaces, of its own.
func inProcess(t *testing.T, name string, flags uintptr, text string) (string, int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run=^"+name+"$")
	cmd.Env = append(os.Environ(), helperVariable+"="+text)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func TestLeftoversAreNamed(t *testing.T) {
	log := capture(t)
	pidfile := filepath.Join(t.TempDir(), "pid")
	hooks := []Hook{
		script(t, "first", "setsid sleep 1000 & echo $! >"+pidfile+"; disown\n"),
		script(t, "deaf", "(trap '' TERM; exec -a x sleep 1001) & sleep 0.1\n"),
		script(t, "clean", "true & wait; sleep 0.05 &\n"), // what ends by itself is not told of
	}
	if err := (Runner{Environ: path, Dir: "/"}).Run(t.Context(), hooks); err != nil {
		t.Fatal(err)
	}
	pid, _ := os.ReadFile(pidfile)
	want := "hook=first programs=\"sleep (" + strings.TrimSpace(string(pid)) + ")\""
	if !strings.Contains(log.String(), want) || !strings.Contains(log.String(), "hook=deaf programs=") {
		t.Errorf("the log does not say %s:\n%s", want, log)
	}
	if strings.Contains(log.String(), "hook=clean programs") {
		t.Errorf("the log tells of what ended by itself:\n%s", log)
	}
	ended(t, pidfile)
}

// What this process started before a hook is not the hook's.
func TestOthersAreLeftAlone(t *testing.T) {
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	if err := (Runner{Environ: path, Dir: "/"}).Run(t.Context(), []Hook{script(t, "a", "sleep 1000 &\n")}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(other.Process.Pid, 0); err != nil {
		t.Errorf("the other process is gone: %v", err)
	}
	_ = other.Process.Kill()
	_ = other.Wait() // it was killed
}

func TestInputAndArguments(t *testing.T) {
	h := script(t, "reads", "read -r line && exit 4; [ $(readlink /proc/self/fd/0) = /dev/null ] && [ $# = 1 ] && [ $1 = -r ]\n")
	h.Args = []string{"-r"}
	if err := (Runner{Environ: path, Dir: "/"}).Run(t.Context(), []Hook{h}); err != nil {
		t.Error(err)
	}
}

func TestCannotStart(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"no interpreter\n", "no #! line"},
		{"#!/nonexistent/interpreter\n", "no such file"},
	} {
		h := Hook{Name: "a", Path: write(t, t.TempDir(), "a", c.text, 0o755)}
		if err := (Runner{Environ: path, Dir: "/"}).Run(t.Context(), []Hook{h}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v", c.text, err)
		}
	}
	h := script(t, "a", "true\n")
	if err := (Runner{Environ: path, Dir: "/nonexistent"}).Run(t.Context(), []Hook{h}); err == nil {
		t.Error("started in a directory that is not there")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("asked to stop"))
	if err := (Runner{Environ: path, Dir: "/"}).Run(ctx, []Hook{h, h}); err == nil || strings.Count(err.Error(), "asked to stop") != 1 {
		t.Errorf("got %v", err)
	}
}

// In a namespace of its own a Runner unmounts what a hook left, and knows its
// processes also where /proc shows the ids of other processes.
func TestMounts(t *testing.T) {
	need.Root(t)
	need.Tools(t, "mount", "unshare")
	dir := t.TempDir()
	for _, pids := range []uintptr{0, unix.CLONE_NEWPID} {
		out, code := inProcess(t, "TestMountsHelper", unix.CLONE_NEWNS|pids, dir)
		if code != 0 {
			t.Errorf("with flags %x:\n%s", pids, out)
		}
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(mounts), dir) {
		t.Error("something is mounted outside the namespace")
	}
}

func TestMountsHelper(t *testing.T) {
	dir := helper(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""))
	must(unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	target, elsewhere := filepath.Join(dir, "target"), filepath.Join(dir, "else where")
	for _, d := range []string{target, elsewhere} {
		must(os.Mkdir(d, 0o755))
	}
	must(unix.Mount("tmpfs", target, "tmpfs", 0, ""))
	log := capture(t)
	hooks := []Hook{
		script(t, "below", "set -e; cd $TARGET; mkdir dev a b; mount --bind /dev dev; mount -t tmpfs x a; mkdir a/a; mount -t tmpfs x a/a; setsid sleep 1000 & sleep 0.1\n"),
		script(t, "elsewhere", "mount -t tmpfs x '"+elsewhere+"'; cd '"+elsewhere+"'; sleep 1000 &\n"),
		script(t, "moved", "set -e; cd $TARGET; mount -t tmpfs x a; mkdir a/a; mount --make-private a; mount -t tmpfs y a/a; mount --move a b\n"),
		script(t, "clean", "mount -t tmpfs x $TARGET/a; umount $TARGET/a\n"),
	}
	r := Runner{Environ: append(path, "TARGET="+target), Dir: "/", Target: target, Alone: true}
	must(r.Run(t.Context(), hooks))
	for _, want := range []string{"hook=below where=\"" + target + "/a/a " + target + "/a " + target + "/dev\"", "hook=below programs=",
		"hook=elsewhere where=\"" + elsewhere + "\"", "hook=elsewhere programs=", "hook=moved where="} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %s:\n%s", want, log)
		}
	}
	if strings.Contains(log.String(), "hook=clean where") {
		t.Errorf("log:\n%s", log)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(err)
	if n := strings.Count(string(mounts), " "+dir); n != 2 {
		t.Errorf("%d mounts are there, want the two of before:\n%s", n, mounts)
	}
	must(unix.Mount("", target, "", unix.MS_REMOUNT, ""))
	busy(t, r, elsewhere)
}

// busy wants an error that names the hook and the mount where that cannot be
// unmounted.
func busy(t *testing.T, r Runner, dir string) {
	t.Helper()
	ready := filepath.Join(r.Target, "ready")
	h := script(t, "busy", "mount -t tmpfs x '"+dir+"'; touch "+ready+"; while [ -e "+ready+" ]; do sleep 0.01; done\n")
	held := make(chan *os.File)
	go func() {
		for {
			if _, err := os.Stat(ready); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		f, _ := os.Open(dir)
		os.Remove(ready)
		held <- f
	}()
	err := r.Run(t.Context(), []Hook{h})
	(<-held).Close()
	if err == nil || !strings.Contains(err.Error(), "busy mounted: "+dir) {
		t.Errorf("a mount that stays: %v (pid %s)", err, strconv.Itoa(os.Getpid()))
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Error(err)
	}
}
