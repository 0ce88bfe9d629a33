package used

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

// xfsTool runs a program and returns what it says.
func xfsTool(t testing.TB, argv ...string) string {
	t.Helper()
	cmd := exec.Command("/usr/bin/env", append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}, argv...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// xfsMade returns an image, by mkfs.xfs with these arguments, with a few files.
func xfsMade(t testing.TB, length size.Bytes, args ...string) string {
	t.Helper()
	need.Tools(t, "mkfs.xfs", "xfs_db", "xfs_repair")
	dir := t.TempDir()
	proto := "/dev/null\n0 0\nd--755 0 0\n"
	for i := range 20 {
		path := filepath.Join(dir, fmt.Sprint("file", i))
		if err := os.WriteFile(path, []byte(strings.Repeat(path, 1000*i)), 0o600); err != nil {
			t.Fatal(err)
		}
		proto += fmt.Sprintf("f%d ---644 0 0 %s\n", i, path)
	}
	protoFile, image := filepath.Join(dir, "proto"), filepath.Join(dir, "image")
	if err := os.WriteFile(protoFile, []byte(proto+"$\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	xfsSparse(t, image, length)
	xfsTool(t, append(append([]string{"mkfs.xfs", "--unsupported", "-q", "-p", protoFile}, args...), image)...)
	return image
}

func xfsSparse(t testing.TB, path string, length size.Bytes) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(length)); err != nil {
		t.Fatal(err)
	}
}

// xfsUsed reads an image's ranges.
func xfsUsed(t testing.TB, image string) ([]Range, error) {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	ranges, err := XFS(f, size.Bytes(stat.Size()))
	if err != nil {
		return nil, err
	}
	return xfsCollect(t, ranges, size.Bytes(stat.Size())), nil
}

// xfsDB returns numbers that xfs_db prints.
func xfsDB(t testing.TB, image string, commands ...string) map[string]size.Bytes {
	t.Helper()
	argv := []string{"xfs_db", "-r"}
	for _, command := range commands {
		argv = append(argv, "-c", command)
	}
	values := map[string]size.Bytes{}
	for line := range strings.Lines(xfsTool(t, append(argv, image)...)) {
		var value size.Bytes
		if name, text, ok := strings.Cut(strings.TrimSpace(line), " = "); ok {
			if _, err := fmt.Sscan(text, &value); err == nil {
				values[name] = value
			}
		}
	}
	return values
}

// xfsJudge compares with what xfs_db finds free, which counts the blocks of the
// free lists too, and lets xfs_repair look at a copy of the used ranges.
func xfsJudge(t testing.TB, image string) (copied string) {
	t.Helper()
	used, err := xfsUsed(t, image)
	if err != nil {
		t.Fatal(err)
	}
	super := xfsDB(t, image, "sb 0", "p blocksize agblocks agcount")
	block, group := super["blocksize"], super["agblocks"]
	var free []Range
	for line := range strings.Lines(xfsTool(t, "xfs_db", "-r", "-c", "freesp -d", image)) {
		var ag, at, blocks size.Bytes
		if strings.Contains(line, "from") { // the histogram
			break
		}
		if n, _ := fmt.Sscan(line, &ag, &at, &blocks); n == 3 {
			free = append(free, Range{(ag*group + at) * block, blocks * block})
		}
	}
	slices.SortFunc(free, func(a, b Range) int { return int(a.Start - b.Start) })
	stat, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	length := size.Bytes(stat.Size())
	kept := size.Bytes(0)
	for _, ours := range used {
		for _, theirs := range free {
			if both := min(ours.Start+ours.Length, theirs.Start+theirs.Length) - max(ours.Start, theirs.Start); both > 0 {
				kept += both
			}
		}
	}
	lists := size.Bytes(0)
	for ag := range int(super["agcount"]) {
		lists += xfsDB(t, image, fmt.Sprint("agf ", ag), "p flcount")["flcount"] * block
	}
	if kept != lists {
		t.Errorf("%d free bytes are kept, and the free lists have %d", kept, lists)
	}
	for _, ours := range xfsComplement(used, length) {
		if !slices.ContainsFunc(free, func(theirs Range) bool {
			return theirs.Start <= ours.Start && ours.Start+ours.Length <= theirs.Start+theirs.Length
		}) {
			t.Errorf("%+v is left out, and xfs_db does not say it is free", ours)
		}
	}
	return xfsCopied(t, image, used, length)
}

// xfsCopied copies the used ranges alone, and has the copy checked.
func xfsCopied(t testing.TB, image string, used []Range, length size.Bytes) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "copy")
	xfsSparse(t, path, length)
	from, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	for _, r := range used {
		w := io.NewOffsetWriter(to, int64(r.Start))
		if _, err := io.Copy(w, io.NewSectionReader(from, int64(r.Start), int64(r.Length))); err != nil {
			t.Fatal(err)
		}
	}
	xfsTool(t, "xfs_repair", "-n", "-o", "force_geometry", path)
	return path
}

func TestXFSByTools(t *testing.T) {
	for _, args := range []string{
		"", "-m crc=0", "-m crc=0 -b size=512", "-m crc=0 -l version=1", "-m crc=0 -l lazy-count=0", "-m crc=0 -i attr=1",
		"-b size=1024 -m rmapbt=1,reflink=1", "-b size=64k", "-s size=4096", "-l su=256k", "-l su=4k", "-l sunit=64,size=12m",
		"-d agcount=16", "-d agcount=1 -l agnum=0", "-m finobt=0,bigtime=0,inobtcount=0,reflink=0 -i sparse=0",
		"-i nrext64=1", "-m uuid=12345678-1234-1234-1234-123456789abc", "-b size=32k -s size=32k",
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			xfsJudge(t, xfsMade(t, 400*size.MiB+4096*3+512, strings.Fields(args)...))
		})
	}
}

// The metadata's UUID, and that of the log, after the file system's is changed.
func TestXFSAdmin(t *testing.T) {
	image := xfsMade(t, 400*size.MiB)
	xfsTool(t, "xfs_db", "-x", "-c", "uuid generate", image)
	xfsJudge(t, image)
	xfsTool(t, "xfs_repair", "-L", image) // a log of a higher cycle
	xfsJudge(t, image)
}

// A file system that is smaller than its partition keeps what is after it.
func TestXFSSmaller(t *testing.T) {
	image := xfsMade(t, 400*size.MiB, "-d", "size=300m")
	used, err := xfsUsed(t, image)
	if err != nil {
		t.Fatal(err)
	}
	if last := used[len(used)-1]; last != (Range{300 * size.MiB, 100 * size.MiB}) {
		t.Errorf("%+v is the last", last)
	}
	if err := os.Truncate(image, int64(300*size.MiB-1)); err != nil {
		t.Fatal(err)
	}
	if _, err := xfsUsed(t, image); !errors.Is(err, ErrUnsure) {
		t.Errorf("a partition that is too small: %v", err)
	}
}

func TestXFSElsewhere(t *testing.T) {
	other := filepath.Join(t.TempDir(), "other")
	for _, args := range [][]string{{"-l", "logdev=" + other + ",size=64m"}, {"-r", "rtdev=" + other}} {
		xfsSparse(t, other, 100*size.MiB)
		image := xfsMade(t, 400*size.MiB, args...)
		if _, err := xfsUsed(t, image); !errors.Is(err, ErrUnsure) {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// xfsMounted mounts an image for a moment.
func xfsMounted(t testing.TB, image, options string, use func(dir string)) {
	t.Helper()
	need.Root(t)
	need.File(t, "/dev/loop-control")
	dir := t.TempDir()
	xfsTool(t, "mount", "-t", "xfs", "-o", "loop,"+options, image, dir)
	defer xfsTool(t, "umount", dir)
	use(dir)
}

// xfsChurn makes and removes files, so that free space is in many pieces.
func xfsChurn(t testing.TB, dir string, files int) {
	t.Helper()
	for i := range files {
		path := filepath.Join(dir, fmt.Sprintf("%d/%d/%d", i%3, i%31, i))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.Repeat(path, 10+i*7%90)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	xfsTool(t, "sync", "-f", dir) // gives each its blocks
	for i := range files {
		if i%2 == 0 {
			if err := os.Remove(filepath.Join(dir, fmt.Sprintf("%d/%d/%d", i%3, i%31, i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	xfsTool(t, "fallocate", "-l", "20M", filepath.Join(dir, "preallocated"))
	xfsTool(t, "truncate", "-s", "10M", filepath.Join(dir, "hole"))
	xfsTool(t, "sync", "-f", dir)
}

// xfsSums returns what is in a tree.
func xfsSums(t testing.TB, dir string) map[string]string {
	t.Helper()
	sums := map[string]string{}
	if err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		sums[strings.TrimPrefix(path, dir)] = fmt.Sprintf("%x", sha256.Sum256(content))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return sums
}

// What the kernel wrote: fragmented free space in trees of several levels, a log
// that went round, and the same files in the copy.
func TestXFSByKernel(t *testing.T) {
	for _, args := range []string{
		"-b size=1024 -d agcount=1 -m reflink=0,finobt=0 -l size=5m", "-m rmapbt=1 -l su=256k,size=25m",
	} {
		t.Run(args, func(t *testing.T) {
			image := xfsMade(t, 500*size.MiB, strings.Fields(args)...)
			for turn := range 2 {
				files := map[string]string{}
				xfsMounted(t, image, "defaults", func(dir string) {
					xfsChurn(t, dir, 4000+turn*1000)
					if _, err := xfsUsed(t, image); !errors.Is(err, ErrUnsure) {
						t.Errorf("while it is mounted: %v", err)
					}
					files = xfsSums(t, dir)
				})
				values := xfsDB(t, image, "agf 0", "p bnolevel freeblks")
				used, _ := xfsUsed(t, image)
				t.Logf("%v, %d ranges", values, len(used))
				xfsMounted(t, xfsJudge(t, image), "ro,nouuid", func(dir string) {
					if got := xfsSums(t, dir); len(got) < 100 || fmt.Sprint(got) != fmt.Sprint(files) {
						t.Errorf("%d files, want the %d as they were", len(got), len(files))
					}
				})
			}
		})
	}
}

// A file system that crashed is not sure until its log is replayed.
func TestXFSCrashed(t *testing.T) {
	need.Tools(t, "xfs_io")
	for _, how := range []string{"shutdown", "shutdown -f", ""} {
		image := xfsMade(t, 400*size.MiB)
		crashed := filepath.Join(t.TempDir(), "crashed")
		xfsMounted(t, image, "defaults", func(dir string) {
			xfsChurn(t, dir, 500)
			if how == "" {
				xfsTool(t, "sync", "-f", dir)
			} else {
				xfsTool(t, "xfs_io", "-x", "-c", how, dir)
			}
			xfsTool(t, "cp", "--sparse=always", image, crashed)
		})
		if _, err := xfsUsed(t, crashed); !errors.Is(err, ErrUnsure) {
			t.Errorf("%q: %v", how, err)
		}
		xfsMounted(t, crashed, "nouuid", func(string) {})
		xfsJudge(t, crashed)
	}
}

// A root file system is not unmounted at shutdown but remounted read-only, which
// leaves a clean log as well.
func TestXFSReadOnly(t *testing.T) {
	image := xfsMade(t, 400*size.MiB)
	xfsMounted(t, image, "defaults", func(dir string) {
		xfsChurn(t, dir, 500)
		xfsTool(t, "mount", "-o", "remount,ro", dir)
		files := xfsSums(t, dir)
		xfsTool(t, "sync", "-f", dir)
		xfsMounted(t, xfsJudge(t, image), "ro,nouuid", func(dir string) {
			if got := xfsSums(t, dir); fmt.Sprint(got) != fmt.Sprint(files) {
				t.Errorf("%d files, want the %d as they were", len(got), len(files))
			}
		})
	})
}

// A log that goes round is clean after each unmount, wherever its head is.
func TestXFSLogRound(t *testing.T) {
	const length = 500 * size.MiB
	image := xfsMade(t, length, "-b", "size=1024", "-d", "agcount=1", "-l", "size=5m")
	round := 0
	for turn := 0; turn < 30 && round < 3; turn++ {
		xfsMounted(t, image, "defaults", func(dir string) { xfsChurn(t, dir, 1500) })
		if _, err := xfsUsed(t, image); err != nil {
			t.Fatalf("after %d turns: %v", turn, err)
		}
		f, err := os.Open(image)
		if err != nil {
			t.Fatal(err)
		}
		file, err := xfsOpen(f, length)
		if err != nil {
			t.Fatal(err)
		}
		cycle, err := file.log.cycle(0)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		round = int(cycle)
	}
	if round < 3 {
		t.Error("the log did not go round twice")
	}
	xfsJudge(t, image)
}
