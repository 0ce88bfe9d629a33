package guest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
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
