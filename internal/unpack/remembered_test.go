package unpack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/tree"
)

// withMode is a directory that others may write to.
func withMode(name string, mode uint32) entry {
	e := dir(name)
	e.Mode = mode
	return e
}

func withFlags(e entry, flags uint32) entry {
	e.Flags = flags
	return e
}

var exampleACL = []byte("\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x05\x00\xe8\x03\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x05\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff")

// What is kept until the end is bounded in bytes, and a directory that comes
// again takes no more.
func TestKeptIsBounded(t *testing.T) {
	long := strings.Repeat("n", 255)
	links := []entry{symlink(long, "."), symlink("m", ".")}
	var distinct, equal []entry
	for i := range 100 {
		distinct = append(distinct, dir(fmt.Sprintf("%s/%s/%d", long, long, i)))
		equal = append(equal, dir(long+"/"+long+"/same"))
	}
	var marked, listed, replaced []entry
	for i := range 100 {
		marked = append(marked, withFlags(file(fmt.Sprintf("%s/%d", long, i), ""), flagNoDump))
		replaced = append(replaced, withFlags(file(long, ""), flagNoDump))
		d := dir("d")
		d.Xattrs = map[string][]byte{tree.DefaultACL: make([]byte, 40_000)}
		d.Name = fmt.Sprintf("d%d", i)
		listed = append(listed, d)
	}
	for _, c := range []struct {
		name    string
		entries []entry
		refused bool
	}{
		{"many directories", append(links[:1:1], distinct...), true},
		{"one directory often", append(links[:1:1], equal...), false},
		{"one by few names", append(links, dir(long), dir("m"), dir("m/m")), false},
		{"flags", append(links[:1:1], marked...), true},
		{"flags of one file often", replaced, false},
		{"lists", listed[:2], true},
	} {
		t.Run(c.name, func(t *testing.T) {
			target, _ := inside(t)
			_, err := Into(context.Background(), target, &files{entries: c.entries}, Options{maxKept: 24 << 10})
			refused := err != nil && strings.Contains(err.Error(), "take more than 24 KiB of memory")
			if refused != c.refused || err != nil && !refused {
				t.Errorf("got %v", err)
			}
		})
	}
}

// What was remembered by a name is not given to another file that has it later.
func TestRememberedFiles(t *testing.T) {
	need.Tools(t, "lsattr", "getfacl")
	target := need.Mounted(t, "ext4", "32M")
	listed := dir("listed")
	listed.Xattrs = map[string][]byte{tree.DefaultACL: exampleACL}
	stats, err := into(target,
		withFlags(file("f", "1"), flagImmutable), file("f", "2"),
		dir("alias"), symlink("to-alias", "alias"), withFlags(file("alias/f", "1"), flagImmutable), file("to-alias/f", "2"),
		withFlags(file("kept", "1"), flagNoDump), link("other", "kept"), file("kept", "2"), // 1 skipped: of "other"
		withFlags(dir("d"), flagImmutable), withFlags(dir("d"), flagNoDump),
		withFlags(dir("none"), flagImmutable), dir("none"),
		listed, dir("listed"),
		dir("etc"), dir("a"), symlink("l", "a"), withMode("l", 0o777), symlink("l", "etc"), // 1 skipped
		symlink("n", "a"), withMode("n", 0o777), file("n", "x"), // 1 skipped
		withMode("twice", 0o700), withMode("twice", 0o711), symlink("to-twice", "twice"), withMode("to-twice", 0o722))
	if err != nil || stats.Skipped != 3 {
		t.Fatalf("%+v, %v", stats, err)
	}
	for _, c := range []struct{ command, want string }{
		{"lsattr -d %s/f | cut -c5", "-"},
		{"lsattr -d %s/alias/f | cut -c5", "-"},
		{"lsattr -d %s/kept | cut -c7", "-"},
		{"lsattr -d %s/d | cut -c5-7", "--d"},
		{"lsattr -d %s/none | cut -c5", "-"},
		{"getfacl -cpn %s/listed | grep -c default", "0"},
		{"stat -c %%a %s/etc", "755"},
		{"stat -c %%a %s/a", "755"},
		{"stat -c %%F %s/n", "regular file"},
		{"stat -c %%a %s/twice", "722"},
	} {
		command := fmt.Sprintf(c.command, target)
		if got := strings.TrimSpace(tool(t, "sh", "-c", command+" || :")); got != c.want {
			t.Errorf("%s: %q, want %q", command, got, c.want)
		}
	}
}

// amending is a source with amendments.
type amending struct {
	files
	amendments []tree.Entry
}

func (a *amending) Amendments() []tree.Entry { return a.amendments }

func TestAmendsWhatIsMeant(t *testing.T) {
	need.Tools(t, "getfacl")
	list := func(name string) tree.Entry {
		return tree.Entry{Name: name, Xattrs: map[string][]byte{tree.AccessACL: exampleACL}}
	}
	for _, c := range []struct {
		name       string
		entries    []entry
		amendments []tree.Entry
		file, want string // whether it has the list
		err        string
	}{
		{"a file", []entry{file("f", "x")}, []tree.Entry{list("./f")}, "f", "1", ""},
		{"one that came twice", []entry{file("f", "x"), file("f", "y")}, []tree.Entry{list("f")}, "f", "0", "does not tell which"},
		{"both", []entry{file("f", "x"), file("f", "y")}, []tree.Entry{list("f"), list("f")}, "f", "1", ""},
		{"through a link", []entry{dir("a"), dir("b"), file("b/f", "x"), symlink("l", "a"), file("l/f", "x"), symlink("l", "b")},
			[]tree.Entry{list("l/f")}, "b/f", "0", "does not tell which"},
		{"a directory that is elsewhere", []entry{dir("a"), dir("b"), symlink("l", "a"), dir("l"), symlink("l", "b")},
			[]tree.Entry{list("l")}, "b", "0", ""},
		{"a file in its place", []entry{dir("a"), symlink("l", "a"), dir("l"), file("l", "x")}, []tree.Entry{list("l")}, "l", "0", "does not tell which"},
		{"gone", []entry{file("f", "x"), symlink("f", "none")}, []tree.Entry{list("f"), list("g"), list("f/x")}, ".", "0", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			target := need.Mounted(t, "ext4", "8M")
			_, err := Into(context.Background(), target, &amending{files{entries: c.entries}, c.amendments}, Options{})
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %v, want %q", err, c.err)
			}
			command := "getfacl -cpn " + target + "/" + c.file + " | grep -c user:1000 || :"
			if got := strings.TrimSpace(tool(t, "sh", "-c", command)); got != c.want {
				t.Errorf("%s: %s, want %s", c.file, got, c.want)
			}
		})
	}
}

func TestFlushErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		full bool
	}{{unix.ENOSPC, true}, {unix.EDQUOT, true}, {unix.EIO, false}} {
		if err := flushError(c.err); errors.Is(err, ErrFull) != c.full || !errors.Is(err, c.err) {
			t.Errorf("%v: %v", c.err, err)
		}
	}
}

// failing is a source that fails at one of its calls.
type failing struct {
	lateFiles
	at  string
	err func() error
}

func (f *failing) Next() (*tree.Entry, error) {
	if f.at == "next" && len(f.entries) == 0 {
		return nil, f.err()
	}
	return f.lateFiles.Next()
}

func (f *failing) Data() (int64, []byte, error) {
	if f.at == "data" {
		return 0, nil, f.err()
	}
	return f.lateFiles.Data()
}

func (f *failing) Late() (*tree.Entry, error) {
	if f.at == "late" {
		return nil, f.err()
	}
	return f.lateFiles.Late()
}

func TestSourceErrors(t *testing.T) {
	broken := errors.New("the archive is damaged")
	for _, at := range []string{"next", "data", "late"} {
		target, _ := inside(t)
		_, err := Into(context.Background(), target, &failing{lateFiles{files{entries: []entry{file("a", "x")}}}, at, func() error { return broken }}, Options{})
		var source SourceError
		if !errors.As(err, &source) || !errors.Is(err, broken) || err.Error() != broken.Error() {
			t.Errorf("%s: %v", at, err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		_, err = Into(ctx, target, &failing{lateFiles{files{entries: []entry{file("a", "x")}}}, at, func() error {
			cancel()
			return fmt.Errorf("cannot read: %w", ctx.Err())
		}}, Options{})
		if errors.As(err, &source) || !errors.Is(err, context.Canceled) {
			t.Errorf("%s, cancelled: %v", at, err)
		}
	}
	target, _ := inside(t)
	_, err := into(target, dir("a"), file("a", "x"))
	if source := (SourceError{}); err == nil || errors.As(err, &source) {
		t.Errorf("an error of the file system: %v", err)
	}
}

// The copy of a hard link has the flags of the file.
func TestFlagsOfCopies(t *testing.T) {
	need.Tools(t, "lsattr", "chattr")
	target, boot := need.Mounted(t, "ext4", "16M"), need.Mounted(t, "ext4", "16M")
	tool(t, "mkdir", target+"/boot")
	tool(t, "mount", "--bind", boot, target+"/boot")
	defer tool(t, "umount", target+"/boot")
	stats, err := into(target, withFlags(file("f", "x"), flagImmutable|flagNoDump), link("boot/f", "f"))
	defer tool(t, "chattr", "-i", target+"/f", boot+"/f")
	if err != nil || stats.Copies != 1 || stats.Skipped != 0 {
		t.Fatalf("%+v, %v", stats, err)
	}
	if got := tool(t, "lsattr", boot+"/f"); got[4:7] != "i-d" {
		t.Errorf("the copy has the flags %s", got)
	}
}

// Flags beyond those that are kept are counted.
func TestManyFlags(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	u := &unpacking{flagged: map[identity]flagged{}, options: Options{maxKept: maxKept}}
	for i := range uint64(maxFlagged) {
		u.flagged[identity{1 << 60, i}] = flagged{}
	}
	if err := u.keepFlags("d", fd, flagNoDump); err != nil || u.stats.Skipped != 1 || !strings.Contains(u.stats.FirstSkipped, "more than 200000 files") {
		t.Errorf("%+v, %v", u.stats, err)
	}
}

// A file that ends before its size, as those of sysfs do, is not copied in part.
func TestCopyOfShortFile(t *testing.T) {
	const short = "/sys/kernel/uevent_seqnum"
	need.File(t, short)
	in, err := os.Open(short)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	u := &unpacking{ctx: context.Background(), flusher: &flusher{}}
	if err := u.copyContent(int(in.Fd()), int(out.Fd()), 4096); !errors.Is(err, io.ErrUnexpectedEOF) {
		content, _ := os.ReadFile(out.Name())
		t.Errorf("%v, with %q", err, bytes.TrimRight(content, "\x00"))
	}
}
