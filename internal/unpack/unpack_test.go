package unpack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/tree"
)

// entry is one of a source made for a test.
type entry struct {
	tree.Entry
	content []string // stretches; where one begins with @N, it is at N
	late    map[string][]byte
}

// files is a source of entries.
type files struct {
	entries []entry
	current *entry
	data    []string
	end     int64
}

func (l *files) Next() (*tree.Entry, error) {
	if len(l.entries) == 0 {
		return nil, io.EOF
	}
	l.current, l.entries = &l.entries[0], l.entries[1:]
	l.data, l.end = l.current.content, 0
	return &l.current.Entry, nil
}

func (l *files) Data() (int64, []byte, error) {
	if len(l.data) == 0 {
		return 0, nil, io.EOF
	}
	at, text := l.end, l.data[0]
	if strings.HasPrefix(text, "@") {
		n := 0
		if _, err := fmt.Sscanf(text, "@%d ", &n); err == nil {
			at = int64(n)
			_, text, _ = strings.Cut(text, " ")
		}
	}
	l.data, l.end = l.data[1:], at+int64(len(text))
	return at, []byte(text), nil
}

// lateFiles is a source that has attributes behind the content.
type lateFiles struct{ files }

func (l *lateFiles) Late() (*tree.Entry, error) {
	if len(l.data) > 0 {
		return nil, errors.New("asked before the end of the content")
	}
	if l.current.late != nil {
		l.current.Xattrs = l.current.late
	}
	return &l.current.Entry, nil
}

var past = time.Unix(1_500_000_000, 123_456_789)

func dir(name string) entry {
	return entry{Entry: tree.Entry{Name: name, Type: tree.Directory, Mode: 0o755, ModTime: past}}
}

func file(name, content string) entry {
	return entry{Entry: tree.Entry{Name: name, Type: tree.Regular, Mode: 0o644, ModTime: past, Size: int64(len(content))}, content: []string{content}}
}

func symlink(name, target string) entry {
	return entry{Entry: tree.Entry{Name: name, Type: tree.Symlink, Target: target, Mode: 0o777, ModTime: past}}
}

func link(name, target string) entry {
	return entry{Entry: tree.Entry{Name: name, Type: tree.HardLink, Target: target}}
}

func into(dir string, entries ...entry) (Stats, error) {
	return Into(context.Background(), dir, &files{entries: entries}, Options{})
}

// inside makes a directory to unpack into, and one beside it with files that may
// not change.
func inside(t testing.TB) (target string, unchanged func()) {
	t.Helper()
	top := t.TempDir()
	target = filepath.Join(top, "target")
	for _, d := range []string{target, top + "/etc", top + "/usr"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(top+"/etc/passwd", []byte("root"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := outside(t, top)
	return target, func() {
		t.Helper()
		if after := outside(t, top); after != before {
			t.Errorf("changed outside: %s, it was %s", after, before)
		}
	}
}

func outside(t testing.TB, top string) string {
	t.Helper()
	var text strings.Builder
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == top+"/target" {
			return fs.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		content, _ := os.ReadFile(path)
		fmt.Fprintf(&text, "%s %o %d:%d %d %d %v %q; ", path, st.Mode, st.Uid, st.Gid, st.Nlink, st.Size, st.Mtim, content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return text.String()
}

// What would lead out, or is no tree, is refused or stays inside.
func TestContains(t *testing.T) {
	need.Root(t)
	deep := strings.Repeat("d/", 100_000) + "x"
	device := func(name string, major, minor uint32) entry {
		return entry{Entry: tree.Entry{Name: name, Type: tree.CharDevice, Major: major, Minor: minor, Mode: 0o666}}
	}
	for _, c := range []struct {
		name    string
		entries []entry
		want    string // in the error; empty where there is none
		made    string // a file that must be in the target
		content string
	}{
		{"dots", []entry{file("../etc/passwd", "x")}, `component ".."`, "", ""},
		{"dots inside", []entry{dir("a"), file("a/../../etc/passwd", "x")}, `component ".."`, "", ""},
		{"dots at the end", []entry{file("a/..", "x")}, `component ".."`, "", ""},
		{"absolute", []entry{file("/etc/passwd", "x")}, "", "etc/passwd", "x"},
		{"absolute dots", []entry{file("/../etc/passwd", "x")}, `component ".."`, "", ""},
		{"through a link up", []entry{symlink("a", "../etc"), file("a/passwd", "x")}, "is a link that leads nowhere", "", ""},
		{"through a link up, inside", []entry{dir("etc"), symlink("a", "../../etc"), file("a/passwd", "x")}, "", "etc/passwd", "x"},
		{"through an absolute link", []entry{dir("etc"), symlink("a", "/etc"), file("a/passwd", "x")}, "", "etc/passwd", "x"},
		{"through a link to nothing", []entry{symlink("a", "/nothing"), file("a/b/c", "x")}, "is a link that leads nowhere", "", ""},
		{"through links in a loop", []entry{symlink("a", "b"), symlink("b", "a"), file("a/x", "x")}, "too many levels of symbolic links", "", ""},
		{"through a link to itself", []entry{symlink("a", "a"), file("a/x", "x")}, "too many levels of symbolic links", "", ""},
		{"over a link", []entry{symlink("a", "../etc/passwd"), file("a", "x")}, "", "a", "x"},
		{"over a link to a file", []entry{file("b", "b"), symlink("a", "b"), file("a", "x")}, "", "b", "b"},
		{"through the process", []entry{symlink("a", "/proc/self/root"), file("a/x", "x")}, "is a link that leads nowhere", "", ""},
		{"a link that changes", []entry{dir("one"), dir("two"), symlink("a", "one"), file("a/x", "1"), symlink("a", "two"), file("a/x", "2")}, "", "two/x", "2"},
		{"a link that changed", []entry{dir("one"), dir("two"), symlink("a", "one"), file("a/x", "1"), symlink("a", "two"), file("a/x", "2")}, "", "one/x", "1"},
		{"link outside", []entry{link("a", "../etc/passwd")}, "which is no file of the archive", "", ""},
		{"link outside, absolute", []entry{link("a", "/etc/passwd")}, "which did not come before it", "", ""},
		{"link through a link", []entry{symlink("a", "../etc"), link("b", "a/passwd")}, "which did not come before it", "", ""},
		{"link to a link", []entry{symlink("a", "../etc/passwd"), link("b", "a"), file("b", "x")}, "", "b", "x"},
		{"link to what is not there", []entry{link("a", "b")}, "which did not come before it", "", ""},
		{"link to itself", []entry{file("a", "x"), link("a", "a")}, "", "a", "x"},
		{"link to nothing", []entry{link("a", "a")}, "which did not come before it", "", ""},
		{"link to a directory", []entry{dir("a"), link("b", "a")}, "hard link to the directory", "", ""},
		{"link to the root", []entry{link("b", ".")}, "which is no file of the archive", "", ""},
		{"link over a file", []entry{file("a", "x"), file("b", "y"), link("b", "a")}, "", "b", "x"},
		{"link over a directory", []entry{file("a", "x"), dir("b"), link("b", "a")}, "it is a directory already", "", ""},
		{"below a file", []entry{file("a", "x"), file("a/b", "y")}, "not a directory", "", ""},
		{"below a device", []entry{device("a", 1, 3), file("a/b", "y")}, "not a directory", "", ""},
		{"device over a file", []entry{file("a", "x"), device("a", 1, 3)}, "", "a", ""},
		{"device over a directory", []entry{dir("a"), device("a", 1, 3)}, "it is a directory already", "", ""},
		{"file over a device", []entry{device("a", 1, 7), file("a", "x")}, "", "a", "x"},
		{"file over a directory", []entry{dir("a"), file("a", "x")}, "it is a directory already", "", ""},
		{"directory over a file", []entry{file("a", "x"), dir("a"), file("a/b", "y")}, "", "a/b", "y"},
		{"directory over a link", []entry{dir("b"), symlink("a", "b"), dir("a"), file("a/x", "y")}, "", "b/x", "y"},
		{"directory over a link up", []entry{symlink("a", "../etc"), dir("a"), file("a/passwd", "y")}, "", "a/passwd", "y"},
		{"directories that come again", []entry{dir("a"), file("a/x", "1"), dir("a"), file("a/x", "2")}, "", "a/x", "2"},
		{"a device that is none", []entry{device("a", 1<<12, 0)}, "no device has the number", "", ""},
		{"another that is none", []entry{device("a", 0, 1<<20)}, "no device has the number", "", ""},
		{"file as root", []entry{file(".", "x")}, "its root is no directory", "", ""},
		{"file without a name", []entry{file("", "x")}, "its root is no directory", "", ""},
		{"100000 components", []entry{file(deep, "x")}, "file name too long", "", ""},
		{"a long component", []entry{file(strings.Repeat("n", 256), "x")}, "file name too long", "", ""},
		{"a zero byte", []entry{file("a\x00b", "x")}, "zero byte", "", ""},
		{"a line break", []entry{file("a\n/..", "x")}, `component ".."`, "", ""},
		{"too large", []entry{{Entry: tree.Entry{Name: "a", Type: tree.Regular, Size: 1<<63 - 1}}}, "file too large", "", ""},
		{"negative", []entry{{Entry: tree.Entry{Name: "a", Type: tree.Regular, Size: -1}}}, "its size is -1", "", ""},
		{"more content than its size", []entry{{Entry: tree.Entry{Name: "a", Type: tree.Regular, Size: 3}, content: []string{"four"}}}, "is not within its 3 bytes", "", ""},
		{"content backwards", []entry{{Entry: tree.Entry{Name: "a", Type: tree.Regular, Size: 9}, content: []string{"four", "@2 x"}}}, "is not within its 9 bytes", "", ""},
		{"content behind", []entry{{Entry: tree.Entry{Name: "a", Type: tree.Regular, Size: 9}, content: []string{"@10 x"}}}, "is not within its 9 bytes", "", ""},
		{"no owner", []entry{{Entry: tree.Entry{Name: "a", Type: tree.Regular, UID: 1<<32 - 1}}}, "does not exist", "", ""},
		{"no type", []entry{{Entry: tree.Entry{Name: "a", Type: 99}}}, "unknown type 99", "", ""},
		{"an empty link", []entry{symlink("a", "")}, "no such file", "", ""},
		{"a capability that is none", []entry{{Entry: tree.Entry{Name: "a", Type: tree.Regular, Xattrs: map[string][]byte{tree.Capability: []byte("x")}}}}, "cannot set its attribute", "", ""},
		{"parents that are missing", []entry{file("a/b/c", "x")}, "", "a/b/c", "x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			target, unchanged := inside(t)
			_, err := into(target, c.entries...)
			unchanged()
			switch {
			case c.want == "" && err != nil, c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %q", err, c.want)
			case err != nil && (strings.Contains(err.Error(), "\n") || len(err.Error()) > 600):
				t.Errorf("not one short line: %q", err)
			}
			if c.made == "" {
				return
			}
			info, err := os.Lstat(target + "/" + c.made)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(target + "/" + c.made); err == nil && info.Mode().IsRegular() && string(got) != c.content {
				t.Errorf("%s is %q, want %q", c.made, got, c.content)
			}
		})
	}
}

func tool(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

func TestDescribes(t *testing.T) {
	need.Tools(t, "lsattr", "getcap", "getfacl", "stat")
	target := need.Mounted(t, "ext4", "32M")
	capability := []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00") // cap_net_raw+ep
	acl := []byte("\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x05\x00\xe8\x03\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x05\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff")
	ping := entry{Entry: tree.Entry{Name: "d/ping", Type: tree.Regular, Mode: 0o4755, UID: 5, GID: 6, ModTime: past, AccessTime: past.Add(time.Hour), Size: 3},
		content: []string{"abc"}, late: map[string][]byte{tree.Capability: capability, "security.selinux": []byte("a:b:c\x00")}}
	d := entry{Entry: tree.Entry{Name: "d", Type: tree.Directory, Mode: 0o2750, UID: 1, GID: 7, ModTime: past, Flags: flagNoAtime,
		Xattrs: map[string][]byte{tree.AccessACL: acl, tree.DefaultACL: acl}}}
	log := file("d/log", "x")
	log.Flags = flagAppend | flagImmutable | 0x80000 // extents
	socket := entry{Entry: tree.Entry{Name: "d/socket", Type: tree.Socket, Mode: 0o600, UID: 9, GID: 9, ModTime: past}}
	root := dir(".")
	root.Mode = 0o711
	sparse := entry{Entry: tree.Entry{Name: "sparse", Type: tree.Regular, Mode: 0o600, Size: 1 << 30, ModTime: past}, content: []string{"@1048576 x"}}
	src := &lateFiles{files{entries: []entry{root, d, ping, log, link("second", "d/log"), socket, sparse}}}
	stats, err := Into(context.Background(), target, src, Options{})
	t.Cleanup(func() { tool(t, "chattr", "-a", "-i", target+"/d/log") })
	if err != nil {
		t.Fatal(err)
	}
	if stats.Skipped != 0 || stats.Files != 3 || stats.Directories != 1 || stats.Links != 1 || stats.Bytes != 5 {
		t.Errorf("stats: %+v", stats)
	}
	for _, c := range []struct{ command, want string }{
		{"stat -c '%a %u:%g %Y' d/ping", "4755 5:6 1500000000"},
		{"stat -c '%y' d/ping | cut -d. -f2 | cut -c-9", "123456789"},
		{"stat -c '%X' d/ping", "1500003600"},
		{"stat -c '%a %u:%g %Y' d", "2750 1:7 1500000000"},
		{"stat -c '%F %a %u:%g %Y' d/socket", "socket 600 9:9 1500000000"},
		{"stat -c '%a %Y' .", "711 1500000000"},
		{"stat -c '%h' second", "2"},
		{"stat -c '%s' sparse", "1073741824"},
		{"test $(stat -c %b sparse) -lt 100 && echo sparse", "sparse"},
		{"getcap d/ping", "d/ping cap_net_raw=ep"},
		{"lsattr -l d/log", "d/log                        Immutable, Append_Only, Extents"},
		{"lsattr -d d | cut -c8", "A"},
		{"getfacl -cpn d | grep -c user:1000:r-x", "2"},
		{"getfacl -cpn d/ping | grep -c user:1000", "0"},
		{"getfattr --only-values -n security.selinux d/ping | tr -d '\\000'", "a:b:c"},
	} {
		cmd := exec.Command("sh", "-c", c.command)
		cmd.Dir = target
		out, _ := cmd.CombinedOutput()
		if got := strings.TrimSpace(string(out)); got != c.want {
			t.Errorf("%s: %q, want %q", c.command, got, c.want)
		}
	}
}

// A full file system is an error that says so.
func TestFull(t *testing.T) {
	target := need.Mounted(t, "ext4", "8M")
	big := entry{Entry: tree.Entry{Name: "big", Type: tree.Regular, Size: 64 << 20}}
	for range 64 {
		big.content = append(big.content, strings.Repeat("x", 1<<20))
	}
	_, err := into(target, dir("a"), big)
	if !errors.Is(err, ErrFull) || !strings.HasPrefix(err.Error(), `cannot unpack "big": the file system is full: it has `) {
		t.Errorf("full: %v", err)
	}
	if err := os.Remove(target + "/big"); err != nil {
		t.Fatal(err)
	}
	var many []entry
	for i := range 10_000 {
		many = append(many, file(fmt.Sprintf("f%d", i), ""))
	}
	if _, err = into(target, many...); !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "inodes are used") {
		t.Errorf("no inodes: %v", err)
	}
}

// A hard link into a file system that is mounted below is a copy.
func TestLinksAcrossFileSystems(t *testing.T) {
	need.Tools(t, "setfattr", "getfattr")
	target := need.Mounted(t, "ext4", "16M")
	tool(t, "mkdir", target+"/boot")
	tool(t, "mount", "-t", "tmpfs", "tmpfs", target+"/boot")
	defer tool(t, "umount", target+"/boot")
	kernel := entry{Entry: tree.Entry{Name: "vmlinuz", Type: tree.Regular, Mode: 0o640, GID: 4, ModTime: past, Size: 1 << 20,
		Xattrs: map[string][]byte{"trusted.x": []byte("y")}}, content: []string{"@4096 kernel"}}
	stats, err := into(target, kernel, link("boot/vmlinuz", "vmlinuz"))
	if err != nil || stats.Copies != 1 || stats.Links != 0 {
		t.Fatalf("%+v, %v", stats, err)
	}
	want := tool(t, "stat", "-c", "%a %u:%g %y %s", target+"/vmlinuz")
	if got := tool(t, "stat", "-c", "%a %u:%g %y %s", target+"/boot/vmlinuz"); got != want {
		t.Errorf("the copy: %s, want %s", got, want)
	}
	tool(t, "cmp", target+"/vmlinuz", target+"/boot/vmlinuz")
	if got := tool(t, "getfattr", "--absolute-names", "-n", "trusted.x", "--only-values", target+"/boot/vmlinuz"); got != "y" {
		t.Errorf("the attribute of the copy is %q", got)
	}
	l := symlink("l", "x")
	l.UID, l.Xattrs = 9, map[string][]byte{"trusted.x": []byte("y")}
	null := entry{Entry: tree.Entry{Name: "null", Type: tree.CharDevice, Mode: 0o666, GID: 3, Major: 1, Minor: 3, ModTime: past}}
	pipe := entry{Entry: tree.Entry{Name: "pipe", Type: tree.FIFO, Mode: 0o620, ModTime: past}}
	stats, err = into(target, l, null, pipe, file("boot/null", "in its place"), link("boot/l", "l"), link("boot/null", "null"), link("boot/pipe", "pipe"))
	if err != nil || stats.Copies != 3 || stats.Skipped != 0 {
		t.Errorf("links to a link, a device and a pipe: %+v, %v", stats, err)
	}
	for _, name := range []string{"l", "null", "pipe"} {
		format := "%F %a %u:%g %y %t:%T"
		want := tool(t, "stat", "-c", format, target+"/"+name)
		if got := tool(t, "stat", "-c", format, target+"/boot/"+name); got != want {
			t.Errorf("the copy of %s: %s, want %s", name, got, want)
		}
	}
	if got := tool(t, "readlink", target+"/boot/l") + tool(t, "getfattr", "-h", "--absolute-names", "-n", "trusted.x", "--only-values", target+"/boot/l"); got != "x\ny" {
		t.Errorf("the copy of the link: %q", got)
	}
}

// A file system without attributes lacks them, but may not lack a capability.
func TestWithoutAttributes(t *testing.T) {
	need.Root(t)
	target, _ := inside(t)
	tool(t, "mount", "-t", "ramfs", "ramfs", target)
	defer tool(t, "umount", target)
	f := file("a", "x")
	f.Xattrs = map[string][]byte{"user.x": []byte("y")}
	f.Flags = flagImmutable
	stats, err := into(target, f)
	if err != nil || stats.Skipped != 2 || !strings.HasPrefix(stats.FirstSkipped, `the attribute "user.x" of "a" cannot be set: `) {
		t.Errorf("%+v, %v", stats, err)
	}
	for _, name := range []string{tree.Capability, tree.AccessACL} {
		f.Xattrs = map[string][]byte{name: []byte("x")}
		if _, err := into(target, f); err == nil || !strings.Contains(err.Error(), "cannot set its attribute") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStops(t *testing.T) {
	target, _ := inside(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("enough"))
	_, err := Into(ctx, target, &files{entries: []entry{file("a", "x")}}, Options{})
	if err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("cancelled: %v", err)
	}
	_, err = Into(context.Background(), target, &files{entries: []entry{dir("a"), dir("b"), dir("c")}}, Options{MaxEntries: 2})
	if err == nil || !strings.Contains(err.Error(), "more than 2 entries") {
		t.Errorf("many: %v", err)
	}
	if _, err := Into(context.Background(), target+"/none", &files{}, Options{}); err == nil {
		t.Error("a directory that is not there: no error")
	}
}

// Whatever names say, nothing outside changes.
func FuzzNames(f *testing.F) {
	for _, seed := range []string{"a\nb\nc", "../x\n/etc\na/../b", "a\na/b\na/b/../../../c", "etc\n..\netc/passwd", "a//b/./c\n./a\n.", "a\na/a\na/a/a", "\n\x00\n/", strings.Repeat("a/", 3000) + "\n..\nx"} {
		for kind := range uint64(8) {
			f.Add(seed, kind*0x9249_2492_4924_9249)
		}
	}
	f.Fuzz(func(t *testing.T, text string, kinds uint64) {
		if os.Getuid() != 0 || len(text) > 20_000 {
			t.Skip()
		}
		names := strings.SplitN(text, "\n", 32)
		target, unchanged := inside(t)
		for i := range len(names) - 1 {
			e := dir(names[i])
			switch kinds >> (2 * i) & 3 {
			case 1:
				e = symlink(names[i], names[i+1])
			case 2:
				e = link(names[i], names[i+1])
			case 3:
				e = file(names[i], names[i+1])
			}
			if _, err := into(target, e); err != nil && bytes.ContainsAny([]byte(err.Error()), "\n\x00") {
				t.Errorf("not one line: %q", err)
			}
		}
		unchanged()
	})
}
