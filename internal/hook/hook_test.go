package hook

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ganeti-instance-image/internal/need"
)

func write(t *testing.T, dir, name, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// The judge of names, order and modes is run-parts(8) itself.
func TestListAgreesWithRunParts(t *testing.T) {
	need.Tools(t, "run-parts")
	dir := t.TempDir()
	for _, name := range []string{"b", "a", "Z_1", "10-x", "9-x", "_u", "-dash"} {
		write(t, dir, name, "#!/bin/sh\n", 0o755)
	}
	for _, name := range []string{"x.sh", "a~", "b.dpkg-old", ".hidden", "sp ace", "ümlaut"} {
		write(t, dir, name, "#!/bin/sh\n", 0o755)
	}
	write(t, dir, "off", "#!/bin/sh\n", 0o644)
	if err := os.Mkdir(filepath.Join(dir, "directory"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("a", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}

	hooks, err := ListAll(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range Enabled(hooks) {
		got = append(got, h.Path)
	}
	cmd := exec.Command("run-parts", "--test", dir)
	cmd.Env = []string{"LC_ALL=C"}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Fields(string(out)); !slices.Equal(got, want) {
		t.Errorf("List = %v\nrun-parts = %v", got, want)
	}
}

func TestListWithoutDirectory(t *testing.T) {
	hooks, err := ListAll(filepath.Join(t.TempDir(), "missing"), "v")
	if err != nil || hooks != nil {
		t.Errorf("got %v, %v", hooks, err)
	}
}

func TestListDanglingLink(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("gone", filepath.Join(dir, "site")); err != nil {
		t.Fatal(err)
	}
	if _, err := ListAll(dir, ""); err == nil || !strings.Contains(err.Error(), "site") {
		t.Errorf("got %v, want an error that names the hook", err)
	}
}

func TestLauncher(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	launcher := "#!/bin/sh\n# a comment\n\nexec " + self + " hook ssh \"$@\"\n"
	cases := []struct {
		name, text string
		want       bool
	}{
		{"ssh", launcher, true},
		{"overlays", launcher, false},
		{"ssh", launcher + "touch /x\n", false},
		{"ssh", "#!/bin/sh\nexec /bin/true hook ssh \"$@\"\n", false},
		{"ssh", "#!/bin/sh\nexec " + self + " hook ssh \"$@\"; rm -r /\n", false},
		{"ssh", "#!/bin/sh\n", false},
		{"ssh", launcher + strings.Repeat("#", launcherLimit), false},
	}
	for _, c := range cases {
		path := write(t, dir, c.name, c.text, 0o755)
		if got := isLauncher(path, c.name); got != c.want {
			t.Errorf("isLauncher(%q, %s) = %v", c.text, c.name, got)
		}
	}
}

func TestRunAllThenFail(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	hooks := []Hook{
		{Name: "a", Path: write(t, dir, "a", "#!/bin/sh\necho $X $(pwd) >>"+out+"\n", 0o755)},
		{Name: "b", Path: write(t, dir, "b", "#!/bin/sh\nexit 3\n", 0o755)},
		{Name: "c", Path: write(t, dir, "c", "#!/bin/sh\necho c >>"+out+"\n", 0o755)},
		{Name: "d", Path: write(t, dir, "d", "echo no interpreter\n", 0o755)},
	}
	err := Runner{Environ: []string{"X=value", "PATH=/usr/bin:/bin"}, Dir: "/usr"}.Run(t.Context(), hooks)
	if err == nil || !strings.Contains(err.Error(), "/b failed: exit status 3") || !strings.Contains(err.Error(), "#! line") {
		t.Errorf("got %v", err)
	}
	got, err := os.ReadFile(out)
	if err != nil || string(got) != "value /usr\nc\n" {
		t.Errorf("hooks wrote %q, %v", got, err)
	}
}

// ended wants the process whose id is in a file to end soon.
func ended(t *testing.T, pidfile string) {
	t.Helper()
	pid, err := os.ReadFile(pidfile)
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		state, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		if err != nil || strings.Contains(string(state), ") Z ") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %s of the hook is still running", pid)
}

func TestRunCancelledEndsTheWholeGroup(t *testing.T) {
	dir := t.TempDir()
	pidfile := filepath.Join(dir, "pid")
	h := Hook{Name: "slow", Path: write(t, dir, "slow", "#!/bin/sh\nsleep 1000 &\necho $! >"+pidfile+"; wait\n", 0o755)}
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		for ctx.Err() == nil {
			if pid, err := os.ReadFile(pidfile); err == nil && len(pid) > 1 {
				cancel(errors.New("asked to stop"))
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	err := Runner{Environ: []string{"PATH=/usr/bin:/bin"}, Dir: "/"}.Run(ctx, []Hook{h})
	if err == nil || !strings.Contains(err.Error(), "asked to stop") {
		t.Fatalf("got %v", err)
	}
	ended(t, pidfile)
}

func TestRunEndsWhatAHookLeftBehind(t *testing.T) {
	dir := t.TempDir()
	pidfile := filepath.Join(dir, "pid")
	h := Hook{Name: "bg", Path: write(t, dir, "bg", "#!/bin/sh\nsleep 1000 &\necho $! >"+pidfile+"\n", 0o755)}
	if err := (Runner{Environ: []string{"PATH=/usr/bin:/bin"}, Dir: "/"}).Run(t.Context(), []Hook{h}); err != nil {
		t.Fatal(err)
	}
	ended(t, pidfile)
}

func TestSetEnabled(t *testing.T) {
	h := Hook{Name: "a", Path: write(t, t.TempDir(), "a", "", 0o644)}
	for _, enabled := range []bool{true, false} {
		if err := SetEnabled(h, enabled); err != nil {
			t.Fatal(err)
		}
		info, _ := os.Stat(h.Path)
		if (info.Mode().Perm() == 0o755) != enabled {
			t.Errorf("enabled=%v: mode %v", enabled, info.Mode())
		}
	}
}
