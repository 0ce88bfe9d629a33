package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/size"
)

// tree makes a guest of a table: "dir/" is a directory, "name -> target" a
// link, "name |" a named pipe, anything else a file whose content is its name.
func tree(t *testing.T, entries ...string) (*Root, string) {
	t.Helper()
	dir := t.TempDir()
	for _, entry := range entries {
		name, target, isLink := strings.Cut(entry, " -> ")
		name, isPipe := strings.CutSuffix(name, " |")
		path := filepath.Join(dir, name)
		var err error
		switch {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(path, 0o755)
		default:
			err = os.MkdirAll(filepath.Dir(path), 0o755)
		}
		switch {
		case err != nil || strings.HasSuffix(name, "/"):
		case isLink:
			err = os.Symlink(target, path)
		case isPipe:
			err = unix.Mkfifo(path, 0o644)
		default:
			err = os.WriteFile(path, []byte(name), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return open(t, dir), dir
}

func open(t *testing.T, dir string) *Root {
	t.Helper()
	root, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// listing describes every file below a directory: find(1) is the judge.
func listing(t *testing.T, dir string) string {
	t.Helper()
	need.Tools(t, "find", "sort")
	result, err := run.Cmd{What: "list", Argv: []string{"find", dir, "-mindepth", "1", "-printf", `%P %y %m %U %G %n %l %s %T@\n`}}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sorted, err := run.Cmd{What: "sort", Argv: []string{"sort"}, Stdin: strings.NewReader(string(result.Stdout))}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return string(sorted.Stdout)
}

// Every path below leads a naive program out of the guest, to files of the node
// that have the names used here.
func TestPathsStayInside(t *testing.T) {
	node := t.TempDir()
	for _, name := range []string{"etc/hostname", "etc/cloud/x", "hostname"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(node, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(node, name), []byte("the node's"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	inside := filepath.Join(node, "guest")
	traps := []struct{ link, target, path string }{
		{"abs", node + "/etc/hostname", "/abs"},
		{"up", "../../../../../../../../" + node + "/etc/hostname", "/up"},
		{"one", "../hostname", "/one"},
		{"dir", node + "/etc", "/dir/hostname"},
		{"updir", "../../../../../../../.." + node, "/updir/etc/hostname"},
		{"self", ".", "/self/self/../../../../../../../../" + node + "/etc/hostname"},
		{"proc", "/proc/self/root" + node, "/proc/etc/hostname"},
		{"chain", "dir/../../hostname", "/chain"},
		{"", "", "/../../../hostname"},
		{"", "", "../../../hostname"},
	}
	before := listing(t, filepath.Join(node, "etc"))
	for _, trap := range traps {
		if err := os.MkdirAll(inside, 0o755); err != nil {
			t.Fatal(err)
		}
		if trap.link != "" {
			if err := os.Symlink(trap.target, filepath.Join(inside, trap.link)); err != nil {
				t.Fatal(err)
			}
		}
		root := open(t, inside)
		if data, err := root.ReadFile(trap.path, 100); err == nil && string(data) == "the node's" {
			t.Errorf("%s: read the node's file", trap.path)
		}
		_ = root.WriteFile(trap.path, []byte("overwritten"), 0o644)
		_ = root.Chmod(trap.path, 0o777)
		_ = root.Chown(trap.path, 12, 34)
		_ = root.MkdirAll(trap.path+"/sub", 0o755)
		_ = root.Symlink("x", trap.path+"2")
		_ = root.Rename(trap.path, trap.path+"3")
		_ = root.Remove(trap.path)
		_ = root.RemoveAll(trap.path)
		_ = root.RemoveAll(filepath.Dir(trap.path) + "/cloud")
		if err := os.RemoveAll(inside); err != nil {
			t.Fatal(err)
		}
		if after := listing(t, filepath.Join(node, "etc")); after != before {
			t.Fatalf("%s: the node changed:\n%s", trap.path, after)
		}
		if got := content(t, node+"/hostname"); got != "the node's" {
			t.Fatalf("%s: the node's file says %q", trap.path, got)
		}
	}
}

func TestAbsoluteLinksLandInside(t *testing.T) {
	root, dir := tree(t, "usr/lib/os-release", "etc/os-release -> /usr/lib/os-release",
		"etc/resolv.conf -> /run/resolve/stub.conf", "run/", "etc/loop -> loop", "etc/hosts -> ../../../../srv/hosts", "srv/")
	if data, err := root.ReadFile("/etc/os-release", 100); err != nil || string(data) != "usr/lib/os-release" {
		t.Errorf("ReadFile through an absolute link: %q, %v", data, err)
	}
	if err := root.WriteFile("/etc/hosts", []byte("new"), 0o640); err != nil {
		t.Error(err)
	}
	if got := content(t, dir+"/srv/hosts"); got != "new" {
		t.Errorf("a dangling link led to %q", got)
	}
	if err := root.WriteFile("/etc/resolv.conf", nil, 0o644); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "/etc/resolv.conf") {
		t.Errorf("a link into a missing directory: %v", err)
	}
	if err := root.WriteFile("/etc/loop", nil, 0o644); !errors.Is(err, unix.ELOOP) || !strings.Contains(err.Error(), "/etc/loop") {
		t.Errorf("a loop: %v", err)
	}
	if err := root.MkdirAll("/etc/resolv.conf/../deep/er", 0o750); err == nil {
		t.Error("MkdirAll went through a dangling link's parent")
	}
}

func TestOnlyRegularFilesAreOpened(t *testing.T) {
	root, _ := tree(t, "etc/hostname |", "etc/dir/", "etc/pipe -> hostname")
	for path, want := range map[string]string{"/etc/hostname": "named pipe", "/etc/pipe": "named pipe", "/etc/dir": "directory", "/dev/null": "no such file"} {
		if _, err := root.ReadFile(path, 100); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("ReadFile(%s): %v", path, err)
		}
	}
	for path, want := range map[string]string{"/etc/hostname": "named pipe", "/etc/dir": "directory", "/": "directory", "": "a file's name", "/etc/..": "directory"} {
		if err := root.WriteFile(path, []byte("x"), 0o644); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("WriteFile(%q): %v", path, err)
		}
	}
}

func TestReadFileIsBounded(t *testing.T) {
	root, _ := tree(t, "file")
	if _, err := root.ReadFile("file", 4); err != nil {
		t.Error(err)
	}
	if _, err := root.ReadFile("file", 3); err == nil || !strings.Contains(err.Error(), "larger than 3 bytes") {
		t.Errorf("got %v", err)
	}
}

func TestWriteFileInPlaceKeepsWhatTheFileIs(t *testing.T) {
	need.Root(t)
	root, dir := tree(t, "etc/machine-id")
	path := dir + "/etc/machine-id"
	for _, err := range []error{
		os.Chown(path, 3, 4), os.Chmod(path, 0o444),
		unix.Setxattr(path, "security.selinux", []byte("system_u:object_r:machineid_t:s0\x00"), 0),
		unix.Setxattr(path, "user.note", []byte("kept"), 0),
	} {
		if err != nil {
			need.That(t, false, err.Error())
		}
	}
	before, _ := os.Stat(path)
	if err := root.WriteFile("/etc/machine-id", []byte("x\n"), 0o777); err != nil {
		t.Fatal(err)
	}
	info, err := root.Stat("/etc/machine-id")
	if err != nil || info.Mode != 0o444 || info.UID != 3 || info.GID != 4 || info.Size != 2 {
		t.Errorf("got %+v, %v", info, err)
	}
	if after, _ := os.Stat(path); !os.SameFile(before, after) {
		t.Error("the file was replaced")
	}
	if got := root.Label("/etc/machine-id"); got != "system_u:object_r:machineid_t:s0" {
		t.Errorf("label %q", got)
	}
}

func TestNewFilesHaveModeAndLabel(t *testing.T) {
	need.Root(t)
	root, dir := tree(t, "etc/")
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	if err := root.SetLabel("/etc", "system_u:object_r:etc_t:s0"); err != nil {
		need.That(t, false, err.Error())
	}
	if err := root.MkdirAll("/etc/a/b", 0o775); err != nil {
		t.Fatal(err)
	}
	if err := root.WriteFile("/etc/a/b/c", []byte("x"), 0o664); err != nil {
		t.Fatal(err)
	}
	if err := root.Symlink("c", "/etc/a/b/d"); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]fs.FileMode{"/etc/a": fs.ModeDir | 0o775, "/etc/a/b": fs.ModeDir | 0o775, "/etc/a/b/c": 0o664} {
		if info, err := root.Stat(path); err != nil || info.Mode != mode {
			t.Errorf("%s: %v, %v", path, info.Mode, err)
		}
		if got := root.Label(path); got != "system_u:object_r:etc_t:s0" {
			t.Errorf("%s: label %q", path, got)
		}
	}
	buf := make([]byte, 100)
	if n, err := unix.Lgetxattr(dir+"/etc/a/b/d", "security.selinux", buf); err != nil || n == 0 {
		t.Errorf("the link has no label: %v", err)
	}
}

func TestImmutableFileIsNamed(t *testing.T) {
	need.Root(t)
	need.Tools(t, "chattr")
	root, dir := tree(t, "etc/hostname")
	if _, err := (run.Cmd{What: "protect", Argv: []string{"chattr", "+i", dir + "/etc/hostname"}}).Run(t.Context()); err != nil {
		need.That(t, false, err.Error())
	}
	defer func() {
		_, _ = run.Cmd{What: "unprotect", Argv: []string{"chattr", "-i", dir + "/etc/hostname"}}.Run(t.Context())
	}()
	err := root.WriteFile("/etc/hostname", []byte("x"), 0o644)
	if err == nil || !strings.Contains(err.Error(), "/etc/hostname") || !strings.Contains(err.Error(), "immutable") {
		t.Errorf("got %v", err)
	}
}

func TestRemoveAll(t *testing.T) {
	root, dir := tree(t, "keep/file", "d/a/b/c", "d/link -> ../keep", "d/abs -> /keep", "d/pipe |", "d/.dot", "link -> keep")
	for i := range 3000 {
		if err := root.WriteFile("/d/a/f"+strings.Repeat("x", i%50)+string(rune('a'+i%26))+string(rune('0'+i/300)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"/d", "/link", "/none", "/none/below"} {
		if err := root.RemoveAll(path); err != nil {
			t.Error(err)
		}
	}
	if got := listing(t, dir); strings.Count(got, "\n") != 2 || !strings.Contains(got, "keep/file f") {
		t.Errorf("left:\n%s", got)
	}
	if err := root.Remove("/keep"); err == nil {
		t.Error("Remove removed a directory that was not empty")
	}
	if err := errors.Join(root.Remove("/keep/file"), root.Remove("/keep"), root.Remove("/keep")); err != nil {
		t.Error(err)
	}
}

func TestRemoveAllIsBounded(t *testing.T) {
	root, dir := tree(t, "deep/")
	path := dir + "/deep"
	for range 300 {
		path += "/d"
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := root.RemoveAll("/deep"); err == nil || !strings.Contains(err.Error(), "levels") {
		t.Errorf("got %v", err)
	}
}

func TestGlobAndReadDir(t *testing.T) {
	root, _ := tree(t, "usr/lib/python3.9/site-packages/cloudinit/", "usr/lib/python3.11/x", "etc/b", "etc/a", "bin -> usr/lib")
	if got := root.Glob("/usr/lib/python3*/site-packages/cloudinit"); len(got) != 1 || got[0] != "/usr/lib/python3.9/site-packages/cloudinit" {
		t.Errorf("Glob: %v", got)
	}
	if got := root.Glob("/bin/python*/x"); len(got) != 1 {
		t.Errorf("Glob through a link: %v", got)
	}
	if got, err := root.ReadDir("/etc"); err != nil || len(got) != 2 || got[0] != "a" {
		t.Errorf("ReadDir: %v, %v", got, err)
	}
}

func TestOpenDirCanBeMountedOn(t *testing.T) {
	root, dir := tree(t, "boot -> /srv/boot", "srv/boot/")
	f, err := root.OpenDir("/boot")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := os.Readlink(byFD(int(f.Fd()), "")); err != nil || got != dir+"/srv/boot" {
		t.Errorf("got %q, %v", got, err)
	}
}

func FuzzPaths(f *testing.F) {
	for _, seed := range []string{"/etc/hostname", "..", "a/../../b", "///", "\x00", "l/l/l", ""} {
		f.Add(seed, "../../x")
	}
	f.Fuzz(func(t *testing.T, name, target string) {
		node := t.TempDir()
		if err := os.Mkdir(node+"/guest", 0o755); err != nil {
			t.Fatal(err)
		}
		root := open(t, node+"/guest")
		_ = root.Symlink(target, "/l")
		_ = root.MkdirAll(name, 0o755)
		_ = root.WriteFile(name, []byte("x"), 0o644)
		_ = root.WriteFile("/l/"+name, []byte("x"), 0o644)
		_ = root.RemoveAll("/l/" + name)
		_ = root.Rename(name, "/l/y")
		if entries, err := os.ReadDir(node); err != nil || len(entries) != 1 {
			t.Fatalf("%q, %q left the guest: %v, %v", name, target, entries, err)
		}
	})
}

// What one pattern has listed has a bound, whoever wrote the pattern and
// whatever is in the guest.
func TestGlobIsBounded(t *testing.T) {
	root, dir := tree(t, "a/", "b/")
	for n := range 1500 {
		if err := os.Symlink("/a", fmt.Sprintf("%s/a/%0150d", dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 5000 {
		if err := os.WriteFile(fmt.Sprintf("%s/b/%d", dir, n), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 100 {
		if err := os.Symlink("/b", fmt.Sprintf("%s/c%d", dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		pattern    string
		least      int
		mayTake    size.Bytes
		mayBeFound int
	}{
		{"/a/*/*", 1500, 64 * size.MiB, 65536},
		{"/a/*/*/*/*/*/*", 0, 64 * size.MiB, 65536},
		{"/c*/*", 60000, 64 * size.MiB, 65536},
		{"/c*/x*", 0, 16 * size.MiB, 0},
		{"/a/*/nothing", 0, 16 * size.MiB, 0},
		{"/a" + strings.Repeat("/*0", 15), 0, 64 * size.MiB, 65536},
		{"/a" + strings.Repeat("/*0", 16), 0, size.MiB, 0},
		{"/a/" + strings.Repeat("*", 256), 0, size.MiB, 0},
		{"/a/../a/*1000", 1, 4 * size.MiB, 1},
	} {
		var got []string
		took := allocated(func() { got = root.Glob(c.pattern) })
		if took > c.mayTake || len(got) < c.least || len(got) > c.mayBeFound {
			t.Errorf("%.40s: %d files, for %v", c.pattern, len(got), took)
		}
	}
}

// full is a file system of a MiB in memory that has room for so many pages.
func full(t *testing.T, pages int, files map[string]string) (*Root, string) {
	t.Helper()
	need.Root(t)
	need.Tools(t, "mount", "umount")
	dir := t.TempDir()
	must := func(argv ...string) {
		t.Helper()
		if _, err := (run.Cmd{What: "prepare the guest", Argv: argv}).Run(context.Background()); err != nil {
			need.That(t, false, err.Error())
		}
	}
	must("mount", "-t", "tmpfs", "-o", "size=1M", "none", dir)
	t.Cleanup(func() { must("umount", dir) })
	for name, text := range files {
		err := errors.Join(os.MkdirAll(filepath.Dir(dir+name), 0o755), os.WriteFile(dir+name, nil, 0o644), os.Truncate(dir+name, int64(len(text))))
		f, ferr := os.OpenFile(dir+name, os.O_WRONLY, 0)
		if err = errors.Join(err, ferr); err != nil {
			t.Fatal(err)
		}
		holes := len(text) - len(strings.TrimLeft(text, "\x00"))
		_, err = f.WriteAt([]byte(text[holes:]), int64(holes))
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	page := make([]byte, os.Getpagesize())
	f, err := os.Create(dir + "/fill")
	for err == nil {
		_, err = f.Write(page)
	}
	info, err := f.Stat()
	if err = errors.Join(err, f.Truncate(info.Size()/int64(len(page))*int64(len(page))-int64(pages*len(page))), f.Close()); err != nil {
		t.Fatal(err)
	}
	root, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, dir
}

// Where the disk is full a file stays as it was.
func TestWriteFileOnAFullDisk(t *testing.T) {
	page := os.Getpagesize()
	cases := []struct {
		name, old, data string
		pages           int
	}{
		{"no room for the end", strings.Repeat("old ", page/2-1), strings.Repeat("new!", page/2+10), 0},
		{"room for a part of the end", strings.Repeat("old ", page/2-1), strings.Repeat("new!", page*2), 1},
		{"no room for the start", strings.Repeat("\x00", 4*page) + "old", strings.Repeat("new!", page), 0},
		{"room for a part of the start", strings.Repeat("\x00", 4*page) + "old", strings.Repeat("new!", page), 2},
		{"room for the end only", strings.Repeat("\x00", 4*page-5) + "old", strings.Repeat("new!", 2*page), 4},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			root, dir := full(t, c.pages, map[string]string{"/file": c.old})
			err := root.rewrite("/file", []byte(c.old), []byte(c.data))
			if got := content(t, dir+"/file"); !errors.Is(err, unix.ENOSPC) || got != c.old {
				t.Errorf("%v: %d bytes became %d, alike up to %d", err, len(c.old), len(got), alike(got, c.old))
			}
		})
	}
	old := "127.0.1.1 web.example.org web\n" + strings.Repeat("#", 2*page-40)
	root, dir := full(t, 0, map[string]string{"/etc/hosts": old})
	if _, err := root.RenameHost("web.example.org", "a-longer-name.example.org", RenameOptions{}); !errors.Is(err, unix.ENOSPC) || content(t, dir+"/etc/hosts") != old {
		t.Errorf("%v: /etc/hosts begins %.60q", err, content(t, dir+"/etc/hosts"))
	}
	if err := root.WriteFile("/etc/hosts", []byte(strings.Repeat("x", 3*page)), 0o644); !errors.Is(err, unix.ENOSPC) || content(t, dir+"/etc/hosts") != old {
		t.Errorf("%v: /etc/hosts begins %.60q", err, content(t, dir+"/etc/hosts"))
	}
	for _, data := range []string{"short", strings.Repeat("y", 2*page)} {
		if err := root.WriteFile("/etc/hosts", []byte(data), 0o644); err != nil || content(t, dir+"/etc/hosts") != data {
			t.Errorf("what has room: %v", err)
		}
	}
}

func alike(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}
