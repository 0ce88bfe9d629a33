package used

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

// extRun runs a tool of e2fsprogs and returns what it prints.
func extRun(t testing.TB, argv ...string) string {
	t.Helper()
	need.Tools(t, argv[0])
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBUGFS_PAGER=cat", "PATH=/usr/sbin:/sbin:/usr/bin:/bin")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(argv, " "), err, out, &stderr)
	}
	return string(out)
}

// extTree is a directory with files of many lengths, with holes, and links.
func extTree(t testing.TB) string {
	t.Helper()
	dir, random := t.TempDir(), rand.NewChaCha8([32]byte{})
	write := func(name string, length, at int) {
		data := make([]byte, length)
		_, _ = random.Read(data) // never fails
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(data, int64(at)); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 60 {
		if i%20 == 0 {
			if err := os.Mkdir(filepath.Join(dir, fmt.Sprintf("dir%d", i)), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		write(fmt.Sprintf("dir%d/file%d", i-i%20, i), 1+i*i*7, 0)
	}
	write("long", 1<<20, 0)
	write("holes", 5000, 3<<20)
	if err := os.Symlink(strings.Repeat("long-target/", 20), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// extImage makes a file system with some files, of which some were removed, so
// that its free space is in pieces and holds something.
func extImage(t testing.TB, length string, options ...string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	argv := append([]string{"mke2fs", "-q", "-F", "-d", extTree(t)}, options...)
	extRun(t, append(argv, image, length)...)
	if !slices.Contains(options, "mmp") { // each program would wait to see whether another has it in use
		extScatter(t, image)
	}
	return image
}

func extScatter(t testing.TB, image string) {
	t.Helper()
	var script strings.Builder
	for i := 0; i < 60; i += 3 {
		fmt.Fprintf(&script, "rm dir%d/file%d\n", i-i%20, i)
	}
	commands := filepath.Join(t.TempDir(), "commands")
	if err := os.WriteFile(commands, []byte(script.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	extRun(t, "debugfs", "-w", "-f", commands, image)
}

// extUsed is the sequence as a slice, with what the contract says of it checked.
func extUsed(t testing.TB, r io.ReaderAt, length size.Bytes) []Range {
	t.Helper()
	seq, err := Ext(r, length)
	if err != nil {
		t.Fatal(err)
	}
	var all []Range
	end := size.Bytes(-1)
	for r, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		if r.Length <= 0 || r.Start <= end {
			t.Fatalf("%v after %v", r, all)
		}
		end = r.Start + r.Length
		all = append(all, r)
	}
	if end > length || len(all) == 0 || all[0].Start != 0 || all[0].Length < extBootBlock {
		t.Fatalf("%v is not of %d bytes", all, length)
	}
	return all
}

func extOpenImage(t testing.TB, image string) (*os.File, size.Bytes) {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return f, size.Bytes(info.Size())
}

var (
	extBlockSizeLine = regexp.MustCompile(`(?m)^Block size: +(\d+)`)
	extBlocksLine    = regexp.MustCompile(`(?m)^Block count: +(\d+)`)
	extClusterLine   = regexp.MustCompile(`(?m)^Cluster size: +(\d+)`)
	extFreeLine      = regexp.MustCompile(`(?m)^  Free blocks: (.*)$`)
)

// extJudged is what dumpe2fs(8) does not call free.
func extJudged(t testing.TB, image string, length size.Bytes) []Range {
	t.Helper()
	out := extRun(t, "dumpe2fs", image)
	number := func(text string) size.Bytes {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return size.Bytes(n)
	}
	block, blocks := number(extBlockSizeLine.FindStringSubmatch(out)[1]), number(extBlocksLine.FindStringSubmatch(out)[1])
	perCluster := size.Bytes(1)
	if line := extClusterLine.FindStringSubmatch(out); line != nil {
		perCluster = number(line[1]) / block
	}
	var all []Range
	from := size.Bytes(0)
	free := func(first, last size.Bytes) {
		if first > from {
			all = append(all, Range{from * block, (first - from) * block})
		}
		from = min(last+perCluster, blocks) // a cluster's name is its first block
	}
	lines := extFreeLine.FindAllStringSubmatch(out, -1)
	if len(lines) == 0 {
		t.Fatal("dumpe2fs shows no group")
	}
	for _, line := range lines {
		for _, stretch := range strings.FieldsFunc(line[1], func(r rune) bool { return r == ',' || r == ' ' }) {
			first, last, long := strings.Cut(stretch, "-")
			if !long {
				last = first
			}
			free(number(first), number(last))
		}
	}
	if from < blocks || blocks*block < length {
		all = append(all, Range{from * block, length - from*block})
	}
	return all
}

// extCopy writes what is used to a new file, which else is zeros.
func extCopy(t testing.TB, r io.ReaderAt, length size.Bytes, ranges []Range) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "copy")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(length)); err != nil {
		t.Fatal(err)
	}
	for _, part := range ranges {
		in := io.NewSectionReader(r, int64(part.Start), int64(part.Length))
		if _, err := io.Copy(io.NewOffsetWriter(f, int64(part.Start)), in); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// extFiles is all that debugfs(8) reads out of a file system.
func extFiles(t testing.TB, image string) map[string]string {
	t.Helper()
	dir, files := t.TempDir(), map[string]string{}
	extRun(t, "debugfs", "-R", "rdump / "+dir, image)
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		if entry.Type()&os.ModeSymlink != 0 {
			files[name], err = os.Readlink(path)
			return err
		}
		data, err := os.ReadFile(path)
		files[name] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 30 {
		t.Fatalf("%s has %d files only", image, len(files))
	}
	return files
}

// extJudge compares with dumpe2fs, and has e2fsck, debugfs and e2image look at a
// copy of what is used: e2image follows the inodes, not the bitmaps.
func extJudge(t testing.TB, image string) {
	t.Helper()
	f, length := extOpenImage(t, image)
	got, want := extUsed(t, f, length), extJudged(t, image, length)
	if !slices.Equal(got, want) {
		t.Fatalf("%d ranges, want %d:\n%v\n%v", len(got), len(want), got, want)
	}
	clone := extCopy(t, f, length, got)
	extRun(t, "e2fsck", "-f", "-n", clone)
	before, after := extFiles(t, image), extFiles(t, clone)
	if len(before) != len(after) {
		t.Fatalf("%d files, want %d", len(after), len(before))
	}
	for name, content := range before {
		if after[name] != content {
			t.Errorf("%s differs", name)
		}
	}
	extJudgeInodes(t, image, clone)
}

// extJudgeInodes wants all that e2image(8) copies to be in the clone.
func extJudgeInodes(t testing.TB, image, clone string) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	extRun(t, "e2image", "-ra", image, raw)
	a, n := extOpenImage(t, raw)
	b, _ := extOpenImage(t, clone)
	inodes, ours, zero := make([]byte, size.MiB), make([]byte, size.MiB), make([]byte, 1024)
	compared := 0
	for at := extData(a, 0); at < n; at = extData(a, at+size.MiB) {
		m, _ := a.ReadAt(inodes, int64(at))
		_, _ = b.ReadAt(ours, int64(at))
		for i := 0; i+1024 <= m; i += 1024 {
			if part := inodes[i : i+1024]; !bytes.Equal(part, zero) {
				compared++
				if !bytes.Equal(part, ours[i:i+1024]) {
					t.Fatalf("the KiB at %d is missing", int(at)+i)
				}
			}
		}
	}
	if compared < 1000 {
		t.Fatalf("e2image copied %d KiB only", compared)
	}
}

// extData is where a sparse file goes on, in whole MiB.
func extData(f *os.File, from size.Bytes) size.Bytes {
	at, err := f.Seek(int64(from), unix.SEEK_DATA)
	if err != nil { // nothing follows
		return math.MaxInt64
	}
	return max(from, size.Bytes(at).AlignDown(size.MiB))
}

func TestExt(t *testing.T) {
	for name, c := range map[string]struct{ length, options string }{
		"ext2 1K":          {"40M", "-t ext2 -b 1024"},
		"ext2 4K":          {"40M", "-t ext2 -b 4096"},
		"ext2 revision 0":  {"40M", "-t ext2 -b 1024 -r 0 -O none"},
		"ext2 not sparse":  {"70M", "-t ext2 -b 1024 -O ^sparse_super,^resize_inode"},
		"ext3 1K":          {"70M", "-t ext3 -b 1024"},
		"ext3 4K":          {"300M", "-t ext3 -b 4096"},
		"ext4 1K":          {"200M", "-t ext4 -b 1024"},
		"ext4 2K":          {"300M", "-t ext4 -b 2048"},
		"ext4 4K":          {"400M", "-t ext4 -b 4096"},
		"ext4 64K":         {"700M", "-t ext4 -b 65536"},
		"32 bit":           {"500M", "-t ext4 -b 4096 -O ^64bit"},
		"gdt_csum":         {"200M", "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg"},
		"gdt_csum 32 bit":  {"200M", "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg,^64bit"},
		"no checksums":     {"200M", "-t ext4 -b 1024 -O ^metadata_csum,^uninit_bg"},
		"no flex_bg":       {"200M", "-t ext4 -b 1024 -O ^flex_bg"},
		"flex_bg of 64":    {"700M", "-t ext4 -b 1024 -G 64"},
		"packed":           {"700M", "-t ext4 -b 1024 -E packed_meta_blocks=1"},
		"meta_bg":          {"700M", "-t ext4 -b 1024 -O meta_bg,^resize_inode"},
		"meta_bg 32 bit":   {"700M", "-t ext4 -b 1024 -O meta_bg,^resize_inode,^64bit,^flex_bg"},
		"sparse_super2":    {"200M", "-t ext4 -b 1024 -O sparse_super2,^resize_inode"},
		"one backup":       {"200M", "-t ext4 -b 1024 -O sparse_super2,^resize_inode -E num_backup_sb=1"},
		"bigalloc 1K":      {"400M", "-t ext4 -b 1024 -O bigalloc -C 16384"},
		"bigalloc 4K":      {"3G", "-t ext4 -b 4096 -O bigalloc -C 65536"},
		"bigalloc odd":     {"123457K", "-t ext4 -b 1024 -O bigalloc -C 8192"},
		"small groups":     {"64M", "-t ext4 -b 1024 -g 256 -N 4096 -O ^resize_inode"},
		"odd groups":       {"99M", "-t ext4 -b 4096 -g 4104"},
		"odd end":          {"100003K", "-t ext4 -b 1024"},
		"big inodes":       {"200M", "-t ext4 -b 4096 -I 1024"},
		"no journal":       {"200M", "-t ext4 -b 4096 -O ^has_journal"},
		"long journal":     {"700M", "-t ext4 -b 1024 -J size=200"},
		"fast_commit":      {"200M", "-t ext4 -b 4096 -O fast_commit"},
		"mmp":              {"200M", "-t ext4 -b 4096 -O mmp"},
		"seed":             {"200M", "-t ext4 -b 4096 -O metadata_csum_seed"},
		"orphan_file":      {"200M", "-t ext4 -b 4096 -O orphan_file"},
		"inline, ea_inode": {"200M", "-t ext4 -b 4096 -O inline_data,ea_inode,large_dir,casefold,encrypt,verity,stable_inodes"},
		"journal's end":    {"200M", "-t ext4 -b 4096 -E packed_meta_blocks=1,lazy_itable_init=1,lazy_journal_init=1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			extJudge(t, extImage(t, c.length, strings.Fields(c.options)...))
		})
	}
}

// The partition may be longer than the file system, by any number of bytes.
func TestExtLongerPartition(t *testing.T) {
	image := extImage(t, "40M", "-t", "ext4", "-b", "4096")
	for _, length := range []int64{40<<20 + 1, 50<<20 + 512} {
		if err := os.Truncate(image, length); err != nil {
			t.Fatal(err)
		}
		extJudge(t, image)
	}
}

// What tools made of a file system later: groups at its end, other checksums and
// descriptors, blocks that were allocated but never written.
func TestExtChanged(t *testing.T) {
	for name, c := range map[string]struct {
		options string
		argv    [][]string
	}{
		"grown":          {"-t ext4 -b 1024", [][]string{{"truncate", "-s", "900M", "IMAGE"}, {"resize2fs", "IMAGE"}}},
		"grown far":      {"-t ext4 -b 1024 -E resize=260000", [][]string{{"truncate", "-s", "2G", "IMAGE"}, {"resize2fs", "IMAGE"}}},
		"grown ext3":     {"-t ext3 -b 1024", [][]string{{"truncate", "-s", "300M", "IMAGE"}, {"resize2fs", "IMAGE"}}},
		"grown csum":     {"-t ext4 -b 1024 -O ^metadata_csum,uninit_bg", [][]string{{"truncate", "-s", "300M", "IMAGE"}, {"resize2fs", "IMAGE"}}},
		"shrunk":         {"-t ext4 -b 1024", [][]string{{"resize2fs", "IMAGE", "60M"}}},
		"least":          {"-t ext4 -b 1024", [][]string{{"resize2fs", "-M", "IMAGE"}}},
		"to 32 bit":      {"-t ext4 -b 1024", [][]string{{"resize2fs", "-s", "IMAGE"}}},
		"to 64 bit":      {"-t ext4 -b 1024 -O ^64bit", [][]string{{"resize2fs", "-b", "IMAGE"}}},
		"unsummed":       {"-t ext4 -b 1024", [][]string{{"tune2fs", "-O", "^metadata_csum", "IMAGE"}}},
		"summed":         {"-t ext4 -b 1024 -O ^metadata_csum,^uninit_bg", [][]string{{"tune2fs", "-O", "metadata_csum", "IMAGE"}}},
		"other UUID":     {"-t ext4 -b 1024", [][]string{{"tune2fs", "-f", "-U", "12345678-1234-1234-1234-123456789abc", "IMAGE"}, {"e2fsck", "-fp", "IMAGE"}}},
		"kept seed":      {"-t ext4 -b 1024 -O metadata_csum_seed", [][]string{{"tune2fs", "-U", "12345678-1234-1234-1234-123456789abc", "IMAGE"}}},
		"journal new":    {"-t ext2 -b 1024", [][]string{{"tune2fs", "-j", "IMAGE"}}},
		"quota, project": {"-t ext4 -b 4096 -O quota,project", [][]string{{"sh", "-c", `e2fsck -fy "$0" || test $? = 1`, "IMAGE"}}},
		"preallocated":   {"-t ext4 -b 1024", [][]string{{"debugfs", "-w", "-R", "fallocate dir0/file1 100 5000", "IMAGE"}}},
		"bad blocks":     {"-t ext4 -b 1024", [][]string{{"sh", "-c", `echo 50000 >"$0.bad"; e2fsck -fy -l "$0.bad" "$0" || test $? = 1`, "IMAGE"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image := extImage(t, "150M", strings.Fields(c.options)...)
			for _, argv := range c.argv {
				if argv[0] == "resize2fs" || argv[0] == "tune2fs" {
					extRun(t, "e2fsck", "-fn", image)
				}
				extRun(t, slices.Replace(slices.Clone(argv), slices.Index(argv, "IMAGE"), slices.Index(argv, "IMAGE")+1, image)...)
			}
			extJudge(t, image)
		})
	}
}

// Of 15 TiB, what is used has the length that the superblock tells, and takes no
// more memory than of a few MiB.
func TestExtHuge(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	need.That(t, os.Truncate(image, int64(15*size.TiB)) == nil, "files of 15 TiB")
	extRun(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-N", "1000000", "-J", "size=4", "-O", "sparse_super2,^resize_inode",
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", image)
	f, length := extOpenImage(t, image)
	before := extHeap()
	seq, err := Ext(f, length)
	if err != nil {
		t.Fatal(err)
	}
	ranges, used := 0, size.Bytes(0)
	for r, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		used += r.Length
		if ranges++; ranges == 1000 {
			if more := extHeap() - before; more > size.MiB {
				t.Errorf("%s of memory are taken", more)
			}
		}
	}
	free := extFreeCount.FindStringSubmatch(extRun(t, "dumpe2fs", "-h", image))
	blocks, err := strconv.ParseInt(free[1], 10, 64)
	if want := length - size.Bytes(blocks)*4096; err != nil || used != want || ranges < 1000 {
		t.Errorf("%d ranges have %d bytes, want %d", ranges, used, want)
	}
}

var extFreeCount = regexp.MustCompile(`(?m)^Free blocks: +(\d+)`)

func extHeap() size.Bytes {
	var stats runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&stats)
	return size.Bytes(stats.HeapAlloc)
}
