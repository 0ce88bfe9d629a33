package test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
)

// file is what a tree says of one name.
type file struct {
	mode         uint32 // type and permissions
	uid, gid     uint32
	size         int64 // of a regular file
	mtime        time.Time
	content      string // of a regular file, its digest
	target       string // of a symlink
	major, minor uint32 // of a device
	xattrs       map[string]string
	twin         string // the first name of a file with several
}

// files are the files of a tree by their names; "." is its root.
type files map[string]file

// readTree reads a mounted tree whole, across mount points.
func readTree(root string) (files, error) {
	tree, firsts := files{}, map[[2]uint64]string{}
	return tree, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		f, inode, err := readOne(path)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if first, again := firsts[inode]; again && f.mode&unix.S_IFMT != unix.S_IFDIR {
			f.twin = first
		}
		firsts[inode], tree[name] = name, f
		if first := f.twin; first != "" {
			firsts[inode] = first
		}
		return nil
	})
}

// readOne reads a file, and tells which inode it is.
func readOne(path string) (file, [2]uint64, error) {
	var s unix.Stat_t
	if err := unix.Lstat(path, &s); err != nil {
		return file{}, [2]uint64{}, err
	}
	f := file{mode: s.Mode, uid: s.Uid, gid: s.Gid, mtime: time.Unix(s.Mtim.Unix())}
	var err error
	switch s.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f.size = s.Size
		f.content, err = contentDigest(path)
	case unix.S_IFLNK:
		f.target, err = os.Readlink(path)
	case unix.S_IFCHR, unix.S_IFBLK:
		f.major, f.minor = unix.Major(s.Rdev), unix.Minor(s.Rdev)
	}
	if err != nil {
		return file{}, [2]uint64{}, err
	}
	f.xattrs, err = xattrs(path)
	return f, [2]uint64{s.Dev, s.Ino}, err
}

func contentDigest(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOATIME, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	return fmt.Sprintf("%x", sum.Sum(nil)[:8]), err
}

func xattrs(path string) (map[string]string, error) {
	buffer := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buffer)
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buffer[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.SGI_ACL_") { // XFS shows each ACL twice
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, err
		}
		values[name] = string(value[:n])
	}
	return values, nil
}

// treeCompare is how exactly two trees have to be the same.
type treeCompare struct {
	times time.Duration // what times are cut to: a nanosecond, or a second for a dump
	// ignore tells of a name, and of what differs there, whether it may: "is
	// missing", "is new", or a field of the file.
	ignore func(name, what string) bool
}

// differences lists how the deployed tree differs from its source.
func (c treeCompare) differences(source, deployed files) []string {
	var found []string
	say := func(name, what, format string, args ...any) {
		if c.ignore == nil || !c.ignore(name, what) {
			found = append(found, fmt.Sprintf("%q: %s", name, what)+fmt.Sprintf(format, args...))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(source)) {
		if _, ok := deployed[name]; !ok {
			say(name, "is missing", "")
			continue
		}
		c.compare(source[name], deployed[name], func(what, format string, args ...any) { say(name, what, format, args...) })
	}
	for _, name := range slices.Sorted(maps.Keys(deployed)) {
		if _, ok := source[name]; !ok {
			say(name, "is new", "")
		}
	}
	return found
}

// compare says what differs between two files.
func (c treeCompare) compare(a, b file, say func(what, format string, args ...any)) {
	if a.mode&unix.S_IFMT != b.mode&unix.S_IFMT {
		say("type", " is %06o, was %06o", b.mode&unix.S_IFMT, a.mode&unix.S_IFMT)
		return
	}
	for _, field := range []struct {
		what string
		a, b any
	}{
		{"mode", fmt.Sprintf("%04o", a.mode&07777), fmt.Sprintf("%04o", b.mode&07777)},
		{"owner", fmt.Sprintf("%d:%d", a.uid, a.gid), fmt.Sprintf("%d:%d", b.uid, b.gid)},
		{"size", a.size, b.size},
		{"content", a.content, b.content},
		{"target", a.target, b.target},
		{"device", fmt.Sprintf("%d:%d", a.major, a.minor), fmt.Sprintf("%d:%d", b.major, b.minor)},
		{"hard link", a.twin, b.twin},
	} {
		if field.a != field.b {
			say(field.what, " is %v, was %v", field.b, field.a)
		}
	}
	if x, y := a.mtime.Truncate(c.times), b.mtime.Truncate(c.times); !x.Equal(y) {
		say("mtime", " is %s, was %s", y.UTC().Format(time.RFC3339Nano), x.UTC().Format(time.RFC3339Nano))
	}
	for _, name := range slices.Sorted(maps.Keys(joined(a.xattrs, b.xattrs))) {
		x, inA := a.xattrs[name]
		y, inB := b.xattrs[name]
		if inA != inB || x != y {
			say("xattr "+name, " is %s, was %s", shown(y, inB), shown(x, inA))
		}
	}
}

func joined(a, b map[string]string) map[string]string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

func shown(value string, there bool) string {
	if !there {
		return "not there"
	}
	return fmt.Sprintf("%x", value)
}

// compareTrees wants two mounted trees to be the same.
func compareTrees(t *testing.T, source, deployed string, c treeCompare) {
	t.Helper()
	a, err1 := readTree(source)
	b, err2 := readTree(deployed)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if len(a) < 10 {
		t.Fatalf("the source has only %d files", len(a))
	}
	const most = 40
	found := c.differences(a, b)
	if len(found) > most {
		found = append(found[:most], fmt.Sprintf("and %d more", len(found)-most))
	}
	if len(found) > 0 {
		t.Errorf("the deployed tree is another one:\n%s", strings.Join(found, "\n"))
	}
}

// The comparison finds every kind of difference, and nothing in equal trees.
func TestCompareTreesFindsEachDifference(t *testing.T) {
	need.Root(t)
	need.Tools(t, "setfattr", "setfacl", "cp", "touch", "mknod", "ln")
	const make = `mkdir -p "$1/dir"; cd "$1"; echo text > plain; ln plain hard; ln -s plain link; mknod dev c 1 3; echo b > other
		cp plain twin; setfattr -n user.a -v 1 plain; touch -d '2001-02-03 04:05:06.123456789' plain dir; touch -h -d '2001-01-01' link`
	cases := []struct{ name, change, want string }{
		{"nothing", `true`, ""},
		{"missing", `rm other`, `"other": is missing`},
		{"new", `echo > new`, `"new": is new`},
		{"type", `rm other; mkdir other`, `"other": type is`},
		{"mode", `chmod 4711 other`, `"other": mode is 4711, was 0644`},
		{"owner", `chown 5:6 other`, `"other": owner is 5:6, was 0:0`},
		{"owner of a link", `chown -h 5 link`, `"link": owner`},
		{"size", `echo longer > other`, `"other": size is 7, was 2`},
		{"content", `echo c > other`, `"other": content`},
		{"nanoseconds", `touch -d '2001-02-03 04:05:06.123456780' dir`, `"dir": mtime`},
		{"time of a link", `touch -h -d '2002-01-01' link`, `"link": mtime`},
		{"target", `rm link; ln -s other link`, `"link": target is other, was plain`},
		{"device", `rm dev; mknod dev c 1 5`, `"dev": device is 1:5, was 1:3`},
		{"xattr lost", `setfattr -x user.a plain`, `"plain": xattr user.a is not there, was 31`},
		{"xattr changed", `setfattr -n user.a -v 2 plain`, `"plain": xattr user.a is 32, was 31`},
		{"capability", `setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 twin`, `"twin": xattr security.capability`},
		{"access ACL", `setfacl -m u:5:r twin`, `"twin": xattr system.posix_acl_access`},
		{"default ACL", `setfacl -d -m u:5:r dir`, `"dir": xattr system.posix_acl_default`},
		{"hard link lost", `cp -p --preserve=xattr hard h; mv h hard`, `hard link is`},
		{"hard link gained", `ln -f plain twin`, `"twin": hard link is`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
			shell(t, make, a)
			shell(t, `cp -a "$1" "$2"; cd "$2"; `+c.change, a, b)
			checkFound(t, a, b, c.want)
		})
	}
}

func checkFound(t *testing.T, a, b, want string) {
	t.Helper()
	x, err1 := readTree(a)
	y, err2 := readTree(b)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	// What is changed changes the time of its directory and its own.
	compare := treeCompare{time.Nanosecond, func(name, what string) bool {
		return what == "mtime" && !strings.Contains(want, "mtime") || name == "."
	}}
	found := strings.Join(compare.differences(x, y), "\n")
	if want == "" && found != "" || !strings.Contains(found, want) {
		t.Errorf("found %q, want %q", found, want)
	}
	if seconds := (treeCompare{times: time.Second}).differences(x, y); strings.Contains(want, `"dir": mtime`) && len(seconds) > 0 {
		t.Errorf("to a second there is no difference, found %q", seconds)
	}
	if all := (treeCompare{time.Nanosecond, func(string, string) bool { return true }}).differences(x, y); len(all) > 0 {
		t.Errorf("everything is ignored, found %q", all)
	}
}

// A tree is not the same as another one that is empty.
func TestCompareTreesOfNothing(t *testing.T) {
	need.Root(t)
	a, err := readTree(t.TempDir())
	if err != nil || len(a) != 1 {
		t.Fatalf("an empty tree has %v, %v", a, err)
	}
	if !bytes.Contains([]byte(fmt.Sprint((treeCompare{times: time.Second}).differences(files{"x": {}}, a))), []byte("is missing")) {
		t.Error("a missing file is not found")
	}
}
