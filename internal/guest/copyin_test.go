package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
)

// overlay makes a directory with one of everything.
func overlay(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(dir+"/etc/sub dir", 0o755))
	must(os.MkdirAll(dir+"/.hidden/deep", 0o755))
	must(os.WriteFile(dir+"/.profile", []byte("dot\n"), 0o600))
	must(os.WriteFile(dir+"/etc/motd", []byte("hello\n"), 0o644))
	must(os.WriteFile(dir+"/etc/empty", nil, 0o400))
	must(os.WriteFile(dir+"/.hidden/deep/suid", []byte("x"), 0o755))
	must(os.Link(dir+"/etc/motd", dir+"/etc/sub dir/motd2"))
	must(os.Symlink("/etc/passwd", dir+"/etc/abs"))
	must(os.Symlink("nowhere", dir+"/etc/dangling"))
	must(os.Symlink("..", dir+"/etc/up"))
	must(unix.Mkfifo(dir+"/etc/pipe", 0o640))
	must(unix.Mknod(dir+"/etc/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(dir+"/etc/sock", unix.S_IFSOCK|0o600, 0))
	must(os.Chown(dir+"/etc/motd", 1234, 5678))
	must(os.Lchown(dir+"/etc/abs", 33, 44))
	must(os.Chown(dir+"/.hidden/deep/suid", 7, 8))
	must(unix.Chmod(dir+"/.hidden/deep/suid", 0o6755))
	must(unix.Chmod(dir+"/.hidden", 0o1777))
	must(unix.Setxattr(dir+"/etc/motd", "user.note", []byte("n"), 0))
	must(unix.Setxattr(dir+"/etc/empty", "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	setTimes(t, dir)
	return dir
}

// setTimes makes all files of a tree equally old.
func setTimes(t *testing.T, dir string) {
	t.Helper()
	stamp, _ := unix.TimeToTimespec(time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC))
	err := filepath.Walk(dir, func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{stamp, stamp}, unix.AT_SYMLINK_NOFOLLOW)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCopyInIsCpA(t *testing.T) {
	need.Root(t)
	need.Tools(t, "cp")
	from := overlay(t)
	start := []string{"etc/motd", "etc/abs", "etc/pipe", "usr/keep", ".hidden/"}
	root, ours := tree(t, start...)
	_, theirs := tree(t, start...)
	setTimes(t, ours)
	setTimes(t, theirs)
	old := unix.Umask(0o027)
	defer unix.Umask(old)
	for range 2 { // onto a fresh guest, and once more onto the result
		n, err := root.CopyIn(from)
		if err != nil {
			t.Fatal(err)
		}
		if n != 15 {
			t.Errorf("copied %d, want 15", n)
		}
		if _, err := (run.Cmd{What: "copy", Argv: []string{"cp", "-a", from + "/.", theirs}}).Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, want := listing(t, ours), listing(t, theirs); got != want {
			t.Errorf("got\n%s\nwant, as cp -a makes it,\n%s", got, want)
		}
	}
	for _, attribute := range []struct{ file, name string }{{"/etc/motd", "user.note"}, {"/etc/empty", "security.capability"}} {
		got, err := getxattr(ours+attribute.file, attribute.name)
		want, _ := getxattr(theirs+attribute.file, attribute.name)
		if err != nil || string(got) != string(want) {
			t.Errorf("%s of %s: %q, %v, want %q", attribute.name, attribute.file, got, err, want)
		}
	}
	if got := content(t, ours+"/etc/motd"); got != "hello\n" {
		t.Errorf("content %q", got)
	}
	before, _ := os.Stat(ours + "/etc/motd")
	if linked, err := os.Stat(ours + "/etc/sub dir/motd2"); err != nil || !os.SameFile(before, linked) {
		t.Error("the hard link is two files")
	}
}

func TestCopyInFollowsTheGuestsLinksInside(t *testing.T) {
	need.Root(t)
	from := t.TempDir()
	for _, name := range []string{"lib/x", "etc/resolv.conf", "etc/loop", "etc/real", "out/y"} {
		if err := os.MkdirAll(filepath.Dir(from+"/"+name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(from+"/"+name, []byte("overlay"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	node := t.TempDir()
	root, dir := tree(t, "usr/lib/old", "lib -> usr/lib", "etc/resolv.conf -> /run/systemd/resolve/stub.conf",
		"etc/loop -> loop", "etc/real -> /srv/real", "srv/real", "out -> "+node)
	if err := os.MkdirAll(dir+node, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := root.CopyIn(from); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/usr/lib/x", "/etc/resolv.conf", "/etc/loop", "/srv/real", node + "/y"} {
		if got := content(t, dir+path); got != "overlay" {
			t.Errorf("%s: %q", path, got)
		}
	}
	if target, err := root.Readlink("/lib"); err != nil || target != "usr/lib" {
		t.Errorf("/lib: %q, %v", target, err)
	}
	if entries, _ := os.ReadDir(node); len(entries) != 0 {
		t.Errorf("left the guest: %v", entries)
	}
}

func TestCopyInRefuses(t *testing.T) {
	cases := []struct{ overlay, guest, want string }{
		{"etc/x", "etc", "/etc"},
		{"etc", "etc/x", "/etc"},
		{"etc/x", "etc |", "named pipe"},
		{"etc/x", "etc -> file\x00file", "regular file"},
	}
	for _, c := range cases {
		_, from := tree(t, c.overlay)
		root, _ := tree(t, strings.Split(c.guest, "\x00")...)
		if _, err := root.CopyIn(from); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s over %s: %v", c.overlay, c.guest, err)
		}
	}
	root, _ := tree(t)
	if _, err := root.CopyIn("/nonexistent/overlay"); err == nil || !strings.Contains(err.Error(), "/nonexistent/overlay") {
		t.Errorf("a missing directory: %v", err)
	}
	if n, err := root.CopyIn(t.TempDir()); n != 0 || err != nil {
		t.Errorf("an empty directory: %d, %v", n, err)
	}
}

func TestCopyInLabels(t *testing.T) {
	need.Root(t)
	_, from := tree(t, "etc/plain", "etc/own")
	root, _ := tree(t, "etc/")
	label := func(path, label string) {
		t.Helper()
		if err := unix.Setxattr(path, labelAttribute, []byte(label+"\x00"), 0); err != nil {
			need.That(t, false, err.Error())
		}
	}
	for _, path := range []string{from, from + "/etc", from + "/etc/plain"} {
		label(path, "system_u:object_r:usr_t:s0")
	}
	label(from+"/etc/own", "system_u:object_r:shadow_t:s0")
	if err := root.SetLabel("/etc", "system_u:object_r:etc_t:s0"); err != nil {
		t.Fatal(err)
	}
	if _, err := root.CopyIn(from); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"/etc": "etc_t", "/etc/plain": "etc_t", "/etc/own": "shadow_t"} {
		if got := root.Label(path); got != "system_u:object_r:"+want+":s0" {
			t.Errorf("%s: %q", path, got)
		}
	}
}

// An overlay that is no directory, goes too deep or does not fit is an error
// that names it; one that is a link to a directory is that directory.
func TestCopyInOddOverlays(t *testing.T) {
	need.Root(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	root, dir := tree(t)
	if _, err := root.CopyIn(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file: %v", err)
	}
	deep := t.TempDir()
	if err := os.MkdirAll(deep+strings.Repeat("/d", maxDepth+2), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := root.CopyIn(deep); err == nil || !strings.Contains(err.Error(), "below each other") {
		t.Errorf("a deep one: %v", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Dir(file), link); err != nil {
		t.Fatal(err)
	}
	if n, err := root.CopyIn(link); n != 1 || err != nil || content(t, dir+"/file") != "x" {
		t.Errorf("a link: %d, %v", n, err)
	}
}

func TestCopyInFullGuest(t *testing.T) {
	need.Root(t)
	from, dir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(from+"/large", make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	root, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if _, err := root.CopyIn(from); err == nil || !strings.Contains(err.Error(), "/large") || !strings.Contains(err.Error(), "no space") {
		t.Errorf("got %v", err)
	}
}
