package dump

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
)

// scan makes an outline for the time of the test.
func scan(t testing.TB, dir string, options ScanOptions) *Outline {
	t.Helper()
	o, err := Scan(t.Context(), dir, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	return o
}

// written writes a dump to a file.
func written(t testing.TB, o *Outline, options WriteOptions) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "dump"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := o.Write(t.Context(), f, options); err != nil {
		t.Fatal(err)
	}
	if info, err := f.Stat(); err != nil || !options.Compress && info.Size() != o.Size() {
		t.Fatalf("%d bytes, %v, and Size said %d", info.Size(), err, o.Size())
	}
	return f.Name()
}

// factsOf reads a dump with the reader.
func factsOf(t testing.TB, path string) map[string]fact {
	t.Helper()
	a, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	facts := readAll(t, a, storedSum)
	for _, w := range a.Warnings() {
		t.Error(w)
	}
	return facts
}

// populateMore makes what dump(8) would have trouble with.
func populateMore(t *testing.T, root string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(root, name) }
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ok(os.WriteFile(at("a\nb\xff\x01 \\\"'"), []byte("weird"), 0o600))
	ok(os.Mkdir(at("\xff\xfe\n"), 0o700))
	ok(os.WriteFile(at("\xff\xfe\n/inside"), nil, 0o600))
	ok(os.MkdirAll(at(strings.Repeat(strings.Repeat("p", 199)+"/", 18)), 0o755))
	for name, ends := range map[string][2]int64{"hole at the end": {0, 3 << 20}, "only a hole": {-1, 700_001}, "a hole of 512 KiB": {512 << 10, 1 << 20}} {
		f, err := os.Create(at(name))
		ok(err)
		if ends[0] >= 0 {
			_, err = f.WriteAt(bytes.Repeat([]byte("x"), 5000), ends[0])
			ok(err)
		}
		ok(errors.Join(f.Truncate(ends[1]), f.Close()))
	}
	flagged, err := os.Create(at("flagged"))
	ok(err)
	// restore -C compares them. Immutable, no dump, no access times.
	ok(errors.Join(unix.IoctlSetPointerInt(int(flagged.Fd()), unix.FS_IOC_SETFLAGS, 0xd0), flagged.Close()))
	f, err := os.Create(at("unwritten"))
	ok(err)
	ok(unix.Fallocate(int(f.Fd()), 0, 0, 200_000))
	_, err = f.WriteAt([]byte("in the middle"), 100_000)
	ok(errors.Join(err, f.Close()))
}

// splitAttributes gives files attributes that need two sets.
func splitAttributes(t *testing.T, root string) {
	t.Helper()
	for _, file := range []string{"file1500001", "many"} {
		for i := range 3 {
			if err := unix.Lsetxattr(filepath.Join(root, file), fmt.Sprintf("user.n%d", i), bytes.Repeat([]byte{byte('a' + i)}, 1300), 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Lsetxattr(filepath.Join(root, file), "trusted.more", bytes.Repeat([]byte("t"), 900), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// sources are file systems that trees are dumped from.
var sources = []struct {
	kind, length string
	split        bool   // it takes attributes that need two sets
	target       string // where it is restored
}{{"ext4", "128M", false, "ext4"}, {"xfs", "320M", true, "xfs"}, {"btrfs", "256M", true, "xfs"}}

// TestWrite has trees on several file systems dumped, compared and unpacked by
// restore(8), and read by the reader.
func TestWrite(t *testing.T) {
	need.Root(t)
	need.Tools(t, "restore")
	for _, source := range sources {
		t.Run(source.kind, func(t *testing.T) {
			root := need.Mounted(t, source.kind, source.length)
			populate(t, root)
			populateMore(t, root)
			if source.split {
				splitAttributes(t, root)
			}
			// restore needs many seconds for gigabytes of holes, see TestWriteLarge.
			if err := os.Truncate(filepath.Join(root, "sparse"), 80<<20); err != nil {
				t.Fatal(err)
			}
			command(t, "mount", "-o", "remount,ro", root)
			o := scan(t, root, ScanOptions{})
			large := largeDevices(t, o)
			want := walk(t, root)
			for path := range want {
				delete(want[path].Xattrs, "trusted.SGI_ACL_FILE")
				delete(want[path].Xattrs, "trusted.SGI_ACL_DEFAULT")
			}
			plain, packed := written(t, o, WriteOptions{Label: "label", Host: "host"}), written(t, o, WriteOptions{Compress: true})
			for _, path := range []string{plain, packed} {
				if diff := cmp.Diff(want, factsOf(t, path)); diff != "" {
					t.Error(diff)
				}
			}
			compared(t, root, plain, large)
			if listed := command(t, "restore", "-t", "-f", packed); strings.Count(listed, "./many/hard") != 5 || !strings.Contains(listed, "./unwritten") {
				t.Error(listed)
			}
			restored(t, packed, source.target, want, large)
		})
	}
}

// TestWriteLarge has a file of more than 4 GiB.
func TestWriteLarge(t *testing.T) {
	need.Tools(t, "restore")
	root := t.TempDir()
	f, err := os.Create(filepath.Join(root, "large"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{0, 70_001, 3<<30 - 3, 4<<30 - 2, 4<<30 + 700_000} {
		if _, err := f.WriteAt([]byte("there"), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(4<<30+1_000_003), os.Chtimes(root, time.Now(), time.Unix(1e9, 0))); err != nil {
		t.Fatal(err)
	}
	o := scan(t, root, ScanOptions{})
	path := written(t, o, WriteOptions{})
	want := walk(t, root)
	if diff := cmp.Diff(want, factsOf(t, path)); diff != "" {
		t.Error(diff)
	}
	cmd := exec.Command("restore", "-x", "-y", "-f", path, "./large")
	cmd.Dir, cmd.Stdin = t.TempDir(), strings.NewReader("1\nn\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if diff := cmp.Diff(want["/large"], walk(t, cmd.Dir)["/large"]); diff != "" {
		t.Error(diff)
	}
}

// largeDevices are the names that the outline's warnings are about, which are
// about nothing else.
func largeDevices(t *testing.T, o *Outline) map[string]bool {
	t.Helper()
	large := map[string]bool{}
	for _, w := range o.Warnings() {
		name, _, ok := strings.Cut(w, ": restore(8) makes 0:0 of the device ")
		if !ok {
			t.Error(w)
		}
		large[strings.Trim(name, `"`)] = true
	}
	return large
}

// compared has restore(8) compare a dump with the tree. It differs in nothing but
// the large devices, which restore does not know.
func compared(t *testing.T, root, path string, large map[string]bool) {
	t.Helper()
	out, _ := exec.Command("restore", "-C", "-y", "-D", root, "-f", path).CombinedOutput()
	differences, extra := 0, 0
	for line := range strings.Lines(string(out)) {
		name, _, ok := strings.Cut(line, ": device changed from 0,0 to")
		if ok && large[strings.TrimPrefix(name, "./")] {
			differences++
			continue
		}
		if strings.HasPrefix(line, "./file4096: file does not have the same number of attributes (2)") {
			extra++ // XFS tells of an ACL twice
			continue
		}
		if !strings.HasPrefix(line, "Dump ") && !strings.HasPrefix(line, "Dumped from") && !strings.HasPrefix(line, "Level 0") &&
			!strings.HasPrefix(line, "Label") && !strings.HasPrefix(line, "filesys") && !strings.HasPrefix(line, fmt.Sprintf("Some files were modified!  %d ", len(large)+extra)) {
			t.Errorf("restore -C: %s", line)
		}
	}
	if differences != len(large) || !strings.Contains(string(out), "Level 0 dump of / on host:none") {
		t.Errorf("restore -C: %s", out)
	}
}

// restored unpacks a dump with restore(8) to a file system and compares what is there.
func restored(t *testing.T, path, kind string, want map[string]fact, large map[string]bool) {
	t.Helper()
	root := need.Mounted(t, kind, "320M")
	// It is in the way of the tree's own.
	_ = os.Remove(filepath.Join(root, "lost+found"))
	cmd := exec.Command("restore", "-r", "-f", path)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "TMPDIR="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "Dump tape is compressed." {
		t.Errorf("restore -r: %v: %s", err, out)
	}
	if err := os.Remove(filepath.Join(root, "restoresymtable")); err != nil {
		t.Error(err)
	}
	got, wanted := walk(t, root), maps.Clone(want)
	for _, facts := range []map[string]fact{got, wanted} {
		for path, f := range facts {
			delete(f.Xattrs, "trusted.SGI_ACL_FILE")
			delete(f.Xattrs, "trusted.SGI_ACL_DEFAULT")
			if large[strings.TrimPrefix(path, "/")] {
				f.Rdev = nil
			}
			if path == "/" {
				f.MTime = 0 // restore leaves a file there
			}
			if path == "/many" && kind == "xfs" {
				f.Xattrs = nil // restore up to 0.4b47 keeps one of a directory's two sets
			}
			facts[path] = f
		}
	}
	if diff := cmp.Diff(wanted, got); diff != "" {
		t.Errorf("restore -r: %s", diff)
	}
}

// TestWriteMany has 70000 files in one directory.
func TestWriteMany(t *testing.T) {
	need.Tools(t, "restore")
	root := t.TempDir()
	const files = 70_000
	for i := range files {
		if fd, err := unix.Open(filepath.Join(root, fmt.Sprintf("file-%d", i)), unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600); err != nil || unix.Close(fd) != nil {
			t.Fatal(err)
		}
	}
	o := scan(t, root, ScanOptions{})
	path := written(t, o, WriteOptions{Compress: true})
	if out := command(t, "restore", "-t", "-f", path); strings.Count(out, "./file-") != files {
		t.Errorf("%d names", strings.Count(out, "./file-"))
	}
	if facts := factsOf(t, path); len(facts) != files+1 {
		t.Errorf("%d names", len(facts))
	}
}

// TestWriteCovered leaves out what is mounted below, and what is told to be.
func TestWriteCovered(t *testing.T) {
	root := need.Mounted(t, "ext4", "16M")
	for _, name := range []string{"boot", "hiding/below", "skipped/below", "kept"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o711); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"plain", "kept/skipped"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	above := t.TempDir()
	if err := os.WriteFile(filepath.Join(above, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, pair := range [][2]string{{above, "boot"}, {above, "hiding"}, {filepath.Join(above, "file"), "plain"}} {
		target := filepath.Join(root, pair[1])
		command(t, "mount", "--bind", pair[0], target)
		t.Cleanup(func() { command(t, "umount", target) })
	}
	o := scan(t, root, ScanOptions{Skip: []string{"skipped", "kept/skipped"}})
	want := []string{
		`"hiding" is empty in the dump: what it has of its own is hidden by what is mounted on it`,
		`"plain" is left out: another file is mounted on it`,
	}
	if diff := cmp.Diff(want, o.Warnings()); diff != "" {
		t.Error(diff)
	}
	got := slices.Sorted(maps.Keys(factsOf(t, written(t, o, WriteOptions{}))))
	if diff := cmp.Diff([]string{"/", "/boot", "/hiding", "/kept", "/lost+found"}, got); diff != "" {
		t.Error(diff)
	}
	o.Close()
}

// TestWriteWarnings names what will not come back.
func TestWriteWarnings(t *testing.T) {
	need.Root(t)
	root := t.TempDir()
	long := strings.Repeat("n", 255)
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ok(os.WriteFile(filepath.Join(root, long), []byte("long"), 0o600))
	ok(os.WriteFile(filepath.Join(root, "old"), nil, 0o600))
	ok(os.Chtimes(filepath.Join(root, "old"), time.Time{}, time.Unix(-5, 0)))
	ok(unix.Mknod(filepath.Join(root, "large"), unix.S_IFCHR, int(unix.Mkdev(300, 2))))
	o := scan(t, root, ScanOptions{})
	want := []string{
		`"large": restore(8) makes 0:0 of the device 300:2`,
		`"` + strings.Repeat("n", 199) + `"...: restore(8) does not keep a name of 255 bytes`,
		`1 files, "old" first, have times before 1970 or after 2106, which the dump has as the nearest it can hold`,
	}
	got := o.Warnings()
	got[1] = strings.Replace(got[1], strings.Repeat("n", 200), strings.Repeat("n", 199), 1)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	facts := factsOf(t, written(t, o, WriteOptions{}))
	if facts["/"+long].Size != 4 || facts["/old"].MTime != 0 || facts["/large"].Rdev[0] != 300 {
		t.Error(facts)
	}
}

// TestMeasure bounds the headers of holes, and no content.
func TestMeasure(t *testing.T) {
	const tib = 1 << 40
	for name, c := range map[string]struct {
		files        int
		size, stored int64 // bytes of each
		err          error
	}{
		"lastlog of few users":   {1, 1_200_000_000_000, 300_000, nil},
		"just so many holes":     {1, 8*tib + mapBytes*recordSize, recordSize, nil},
		"one header more":        {1, 8*tib + mapBytes*recordSize + 1, recordSize, errMostlyHeaders},
		"petabytes":              {100, 16000 << 30, 0, errMostlyHeaders},
		"many files":             {9, tib, tib / 1000, errMostlyHeaders},
		"as much content":        {100, maxFile, maxFile, nil},
		"half of each is a hole": {1, maxFile, maxFile / 2, nil},
		"empty files":            {1 << 16, 0, 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			o := &Outline{dirs: make([]branch, 1), leaves: make([]node, c.files)}
			for i := range o.leaves {
				o.leaves[i] = node{size: c.size, stored: roundRecords(c.stored)}
			}
			if err := o.measure(); !errors.Is(err, c.err) {
				t.Fatal(err)
			}
			if content := int64(c.files) * c.stored; c.err == nil && (o.Size() < content || o.Size() > content+content/300+17<<30) {
				t.Errorf("%d bytes", o.Size())
			}
		})
	}
}

// TestWriteFar has the records' numbers begin again, as behind 4 TiB.
func TestWriteFar(t *testing.T) {
	need.Tools(t, "restore")
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "file"), bytes.Repeat([]byte("far"), 500_000), 0o600); err != nil {
		t.Fatal(err)
	}
	o := scan(t, root, ScanOptions{})
	const before = 1<<32 - 2*writeBlocking
	o.records += before
	var out bytes.Buffer
	ctx, cancel := context.WithCancelCause(t.Context())
	d := &dumping{ctx: ctx, Outline: o, out: newOutput(ctx, cancel, &out, false)}
	d.out.records = before
	d.describe(WriteOptions{Host: "host"})
	if err := d.out.finish(d.all()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "dump")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	compared(t, root, path, nil)
	if diff := cmp.Diff(walk(t, root), factsOf(t, path)); diff != "" {
		t.Error(diff)
	}
	last := header{[recordSize]byte(out.Bytes()[out.Len()-recordSize:])}
	if want := uint32(out.Len()/recordSize - 2*writeBlocking - 1); last.u32(offRecord) != want {
		t.Errorf("the last record has the number %d instead of %d", last.u32(offRecord), want)
	}
}

// TestLost warns once of each kind of thing that a dump has no room for.
func TestLost(t *testing.T) {
	for _, c := range []struct {
		marks marks
		want  []loss
	}{
		{marks{flags: 0x80000 | 0x1000 | 0x10 | 0x100000}, nil},
		{marks{flags: casefoldFlag, ext: true}, []loss{lostCasefold}},
		{marks{flags: 0x4, ext: true}, nil},
		{marks{flags: 0x4}, []loss{lostStorage}},
		{marks{flags: 0x400}, []loss{lostStorage}},
		{marks{flags: 0x800000 | casefoldFlag, project: 1}, []loss{lostCasefold, lostProject, lostStorage}},
	} {
		if diff := cmp.Diff(c.want, c.marks.lost()); diff != "" {
			t.Errorf("%+v: %s", c.marks, diff)
		}
	}
	s := &scanning{Outline: &Outline{dirs: make([]branch, 1)}}
	for range 3 * maxWarnings {
		s.notes.add("one of many")
		for kind := range losses {
			s.note(kind, &s.dirs[0].node)
		}
	}
	all := s.Warnings()
	if len(all) != 55 || all[54] != "150 files and directories, the root directory first, are marked for compression, against it, or against copying on write: they come back without" {
		t.Errorf("%d: %s", len(all), all[len(all)-1])
	}
	sealed := unix.Statx_t{Mode: formatRegular, Nlink: 1, Attributes: unix.STATX_ATTR_VERITY}
	if err := s.describe(-1, &node{}, &sealed); err == nil || s.notes.lost[lostVerity].files != 3*maxWarnings+1 {
		t.Error(err, s.notes.lost[lostVerity])
	}
}

// TestWriteLost has what file systems mark. Those that know casefold and fs-verity
// take a kernel that few have.
func TestWriteLost(t *testing.T) {
	for _, c := range []struct{ kind, length, mark, want string }{
		{"xfs", "320M", "-p 77", "3 files and directories, the root directory first, belong to projects of a quota: they come back without"},
		{"btrfs", "256M", "+C", "3 files and directories, the root directory first, are marked for compression, against it, or against copying on write: they come back without"},
		{"ext4", "16M", "+s", ""},
	} {
		t.Run(c.kind, func(t *testing.T) {
			need.Tools(t, "chattr")
			root := need.Mounted(t, c.kind, c.length)
			inner := filepath.Join(root, "directory")
			file := filepath.Join(inner, "file")
			err := errors.Join(os.WriteFile(filepath.Join(root, "plain"), []byte("content"), 0o600), os.Mkdir(inner, 0o700), os.WriteFile(file, nil, 0o600))
			if err != nil {
				t.Fatal(err)
			}
			// Before it has content, or NOCOW is not for it.
			command(t, "chattr", append(strings.Fields(c.mark), root, inner, file)...)
			if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
				t.Fatal(err)
			}
			o := scan(t, root, ScanOptions{})
			if diff := cmp.Diff(c.want, strings.Join(o.Warnings(), "\n")); diff != "" {
				t.Error(diff)
			}
			o.Close()
		})
	}
}

// TestWriteChanged refuses what is not as it was found.
func TestWriteChanged(t *testing.T) {
	for name, change := range map[string]func(file string) error{
		"shorter": func(file string) error { return os.Truncate(file, 10) },
		"longer":  func(file string) error { return os.Truncate(file, 1<<20) },
		"other": func(file string) error {
			return errors.Join(os.Remove(file), os.WriteFile(file, make([]byte, 5000), 0o644))
		},
		"gone":     os.Remove,
		"pipe now": func(file string) error { return errors.Join(os.Remove(file), unix.Mkfifo(file, 0o600)) },
		"link now": func(file string) error { return errors.Join(os.Remove(file), os.Symlink("/etc/passwd", file)) },
		"name":     func(file string) error { return os.WriteFile(file+"2", nil, 0o600) },
		"mode":     func(file string) error { return os.Chmod(file, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			file := filepath.Join(root, "file")
			if err := os.WriteFile(file, make([]byte, 5000), 0o644); err != nil {
				t.Fatal(err)
			}
			o := scan(t, root, ScanOptions{})
			time.Sleep(20 * time.Millisecond) // the kernel's clock for ctime ticks
			if err := change(file); err != nil {
				t.Fatal(err)
			}
			if err := o.Write(t.Context(), io.Discard, WriteOptions{}); !errors.Is(err, errChanged) || !strings.HasPrefix(err.Error(), "cannot write the dump: ") {
				t.Error(err)
			}
		})
	}
}

// TestScanRefuses has what no dump can hold.
func TestScanRefuses(t *testing.T) {
	for _, x := range []struct {
		name, want string
		make       func(t *testing.T, root string)
	}{
		{"nothing", "no such file or directory", func(t *testing.T, root string) { _ = os.Remove(root) }},
		{"deep", "its path has more than 4095 bytes", func(t *testing.T, root string) {
			at := root
			t.Chdir(at)
			for range 21 {
				name := strings.Repeat("d", 200)
				if err := errors.Join(os.Mkdir(name, 0o700), unix.Chdir(name)); err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		t.Run(x.name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "root")
			if err := os.Mkdir(root, 0o700); err != nil {
				t.Fatal(err)
			}
			x.make(t, root)
			o, err := Scan(t.Context(), root, ScanOptions{})
			if err == nil {
				o.Close()
			}
			if err == nil || !strings.Contains(err.Error(), x.want) || strings.ContainsAny(err.Error(), "\n") {
				t.Error(err)
			}
		})
	}
}

// TestScanRefusesFiles has those that only a file system with other limits takes.
func TestScanRefusesFiles(t *testing.T) {
	root := need.Mounted(t, "xfs", "320M")
	large := filepath.Join(root, "large")
	if err := errors.Join(os.WriteFile(large, nil, 0o600), os.Truncate(large, 9<<40)); err != nil {
		t.Fatal(err)
	}
	scanRefused(t, root, errMostlyHeaders.Error())
	if err := os.Truncate(large, int64(maxFile)+1); err != nil {
		t.Fatal(err)
	}
	scanRefused(t, root, `"large": it has 17592186044417 bytes, and a file in a dump has 17592186044416 at most`)
	if err := errors.Join(os.Truncate(large, 0), unix.Setxattr(large, "user.x", make([]byte, 5000), 0)); err != nil {
		t.Fatal(err)
	}
	scanRefused(t, root, `"large": its attributes do not fit into a dump, which has room for two sets of 4096 bytes`)
}

func scanRefused(t *testing.T, root, want string) {
	t.Helper()
	if _, err := Scan(t.Context(), root, ScanOptions{}); err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("%v\n  instead of %s", err, want)
	}
}

// stuck is a writer that never returns, or fails at once.
type stuck struct {
	err   error
	begun chan struct{}
}

func (s stuck) Write([]byte) (int, error) {
	close(s.begun)
	if s.err == nil {
		select {}
	}
	return 0, s.err
}

// TestWriteEnds ends at once where the writer fails or the context is done.
func TestWriteEnds(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, "sparse")
	// A terabyte of holes takes a while.
	if err := errors.Join(os.WriteFile(file, []byte("x"), 0o600), os.Truncate(file, 1<<40)); err != nil {
		t.Fatal(err)
	}
	o := scan(t, root, ScanOptions{})
	full := errors.New("no room")
	for _, compress := range []bool{false, true} {
		for _, failure := range []error{full, nil} {
			ctx, cancel := context.WithCancelCause(t.Context())
			w := stuck{failure, make(chan struct{})}
			go func() {
				<-w.begun
				if failure == nil {
					cancel(full)
				}
			}()
			begun := time.Now()
			if err := o.Write(ctx, w, WriteOptions{Compress: compress}); !errors.Is(err, full) {
				t.Error(err)
			}
			if took := time.Since(begun); took > 500*time.Millisecond {
				t.Errorf("it took %v", took)
			}
			cancel(nil)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Scan(ctx, root, ScanOptions{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestAttributeSets compares what is encoded with what the reader decodes.
func TestAttributeSets(t *testing.T) {
	acl, err := aclForExt(aclOf(5, 7))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		values map[string]int // bytes
		sets   [2]int         // records
		err    error
	}{
		"none":        {},
		"one":         {map[string]int{"user.a": 1}, [2]int{0, 1}, nil},
		"empty":       {map[string]int{"user.a": 0, "security.b": 3}, [2]int{0, 1}, nil},
		"just one":    {map[string]int{"user.a": 4096 - 36 - 20}, [2]int{0, 4}, nil},
		"one more":    {map[string]int{"user.a": 4096 - 36 - 20 + 1}, [2]int{4, 0}, nil},
		"both full":   {map[string]int{"user.a": 4096 - 36 - 20, "trusted.b": 4096 - 8 - 20}, [2]int{4, 4}, nil},
		"by size":     {map[string]int{"user.a": 2000, "user.b": 2000, "user.c": 3000, "user.d": 100}, [2]int{4, 4}, nil},
		"too long":    {map[string]int{"user.a": 4096 - 8 - 20 + 1}, [2]int{}, errTooMany},
		"too much":    {map[string]int{"user.a": 3000, "user.b": 3000, "user.c": 3000}, [2]int{}, errTooMany},
		"with an ACL": {map[string]int{"user.a": 7, "system.posix_acl_access": -1}, [2]int{0, 1}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			want := map[string][]byte{}
			var all []xattr
			for name, length := range c.values {
				x, known := xattrOf(name)
				if !known {
					t.Fatal(name)
				}
				if length < 0 {
					want[name], x.value = aclOf(5, 7), acl
				} else {
					want[name] = bytes.Repeat([]byte("v"), length)
					x.value = want[name]
				}
				all = append(all, x)
			}
			sets, err := attributeSets(all)
			if !errors.Is(err, c.err) {
				t.Fatal(err)
			}
			if c.err != nil {
				return
			}
			var got attributes
			for i, set := range sets {
				if len(set) != c.sets[i]*recordSize {
					t.Errorf("set %d has %d bytes", i, len(set))
				}
				if len(set) > 0 {
					if err := got.parse(set); err != nil {
						t.Error(err)
					}
				}
			}
			if diff := cmp.Diff(want, got.values, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
	for _, name := range []string{"btrfs.compression", "system.nfs4_acl", "system.posix_acl_accessx", "os2.x"} {
		if _, known := xattrOf(name); known {
			t.Error(name)
		}
	}
	for _, bad := range [][]byte{nil, {2, 0, 0, 0, 1}, {1, 0, 0, 0}} {
		if _, err := aclForExt(bad); err == nil {
			t.Errorf("%x is an ACL", bad)
		}
	}
}

// FuzzACL makes of what is an ACL for the kernel one of ext and back.
func FuzzACL(f *testing.F) {
	f.Add(aclOf(5, 7))
	f.Fuzz(func(t *testing.T, b []byte) {
		ext, err := aclForExt(b)
		if err != nil {
			return
		}
		back, err := convertACL(ext)
		if err != nil || len(back) != len(b) {
			t.Errorf("%x became %x, %v", b, back, err)
		}
	})
}

// TestScanHostile refuses what only a damaged file system has.
func TestScanHostile(t *testing.T) {
	root := t.TempDir()
	sparse := filepath.Join(root, "sparse")
	if err := errors.Join(os.WriteFile(sparse, []byte("x"), 0o600), os.Truncate(sparse, 1<<20)); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(sparse, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	leaf := func(s *scanning, change func(*unix.Statx_t)) error {
		st := unix.Statx_t{Mode: formatRegular, Nlink: 1, Size: 1 << 20}
		change(&st)
		_, err := s.leaf(fd, node{name: s.names.add([]byte("x"))}, &st)
		return err
	}
	for want, act := range map[string]func(*scanning) error{
		`"a/b" is no name of a file`:        func(s *scanning) error { return s.addName(0, "a/b") },
		`"" is no name of a file`:           func(s *scanning) error { return s.addName(0, "") },
		"there are more than 4194304 names": func(s *scanning) error { s.names.count = maxNames; return s.addName(0, "a") },
		"the directory has several names":   func(s *scanning) error { return s.addDirectory(fd, branch{}, &unix.Statx_t{}) },
		"there are more than 1048576 directo": func(s *scanning) error {
			s.dirs = make([]branch, maxDirectories)
			s.seen = nil
			return s.addDirectory(fd, branch{}, &unix.Statx_t{})
		},
		"it is encrypted (fscrypt)": func(s *scanning) error {
			return leaf(s, func(st *unix.Statx_t) { st.Attributes = unix.STATX_ATTR_ENCRYPTED })
		},
		"it is of the unknown type 0": func(s *scanning) error { return leaf(s, func(st *unix.Statx_t) { st.Mode = 0o644 }) },
		"have too many holes": func(s *scanning) error {
			s.runs = make([]byte, maxRuns)
			return leaf(s, func(*unix.Statx_t) {})
		},
		`it has the name "a" twice`: func(s *scanning) error {
			for _, name := range []string{"a", "b", "a"} {
				if err := s.addName(0, name); err != nil {
					return err
				}
			}
			return s.sortNames(s.entries)
		},
	} {
		s := &scanning{ctx: t.Context(), Outline: &Outline{dirs: make([]branch, 1)}, seen: map[identity]bool{{}: true}, linked: map[identity]int32{}}
		if err := act(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\n  instead of %s", err, want)
		}
	}
	if _, err := targetOf(fd); err == nil {
		t.Error("a file is a link")
	}
}
