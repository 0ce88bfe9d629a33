package used

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

// btrfsTool runs a program of btrfs-progs.
func btrfsTool(t testing.TB, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// btrfsTestTree makes files of all sizes, of random bytes.
func btrfsTestTree(t testing.TB, files int) string {
	t.Helper()
	dir, random := t.TempDir(), rand.NewChaCha8([32]byte{1})
	for i := range files {
		sub := filepath.Join(dir, strconv.Itoa(i%7))
		data := make([]byte, random.Uint64()%(1<<(i%17)+1))
		random.Read(data)
		if err := errors.Join(os.MkdirAll(sub, 0o755), os.WriteFile(filepath.Join(sub, strconv.Itoa(i)), data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// btrfsTestImage makes a file system by mkfs.btrfs in a file.
func btrfsTestImage(t testing.TB, length size.Bytes, args ...string) string {
	t.Helper()
	need.Tools(t, "mkfs.btrfs", "btrfs")
	path := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, int64(length))); err != nil {
		t.Fatal(err)
	}
	btrfsTool(t, slices.Concat([]string{"mkfs.btrfs", "-q"}, args, []string{path})...)
	return path
}

func usedBtrfs(t testing.TB, path string) ([]Range, error) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return collectBtrfs(t, file, size.Bytes(info.Size()))
}

func TestBtrfsMade(t *testing.T) {
	tree := btrfsTestTree(t, 600)
	cases := map[string][]string{
		"default":          nil,
		"single":           {"-m", "single", "-d", "single"},
		"all dup":          {"-m", "dup", "-d", "dup"},
		"mixed":            {"--mixed"},
		"nodes of 4 KiB":   {"-n", "4096"},
		"nodes of 64 KiB":  {"-n", "65536"},
		"sha256":           {"--csum", "sha256"},
		"blake2":           {"--csum", "blake2"},
		"not skinny":       {"-O", "^skinny-metadata,^extref,^no-holes"},
		"without new tree": {"-R", "^free-space-tree"},
		"smaller":          {"-b", "200M"},
		"shrunk":           {"--shrink"},
	}
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := btrfsTestImage(t, 256*btrfsMiB, append(cases[name], "--rootdir", tree)...)
			checkBtrfsFile(t, path)
		})
	}
	t.Run("behind the file system", func(t *testing.T) {
		path := btrfsTestImage(t, 256*btrfsMiB, "--rootdir", tree)
		if err := os.Truncate(path, int64(300*btrfsMiB+123)); err != nil {
			t.Fatal(err)
		}
		checkBtrfsFile(t, path)
	})
}

func TestBtrfsMadeUnsure(t *testing.T) {
	t.Run("xxhash", func(t *testing.T) {
		if _, err := usedBtrfs(t, btrfsTestImage(t, 256*btrfsMiB, "--csum", "xxhash")); !errors.Is(err, ErrUnsure) {
			t.Error(err)
		}
	})
	t.Run("seed", func(t *testing.T) {
		path := btrfsTestImage(t, 256*btrfsMiB)
		need.Tools(t, "btrfstune")
		btrfsTool(t, "btrfstune", "-f", "-S", "1", path)
		if _, err := usedBtrfs(t, path); !errors.Is(err, ErrUnsure) {
			t.Error(err)
		}
	})
	t.Run("two devices", func(t *testing.T) {
		second := filepath.Join(t.TempDir(), "second")
		if err := errors.Join(os.WriteFile(second, nil, 0o600), os.Truncate(second, int64(256*btrfsMiB))); err != nil {
			t.Fatal(err)
		}
		path := btrfsTestImage(t, 256*btrfsMiB, second)
		for _, one := range []string{path, second} {
			if _, err := usedBtrfs(t, one); !errors.Is(err, ErrUnsure) {
				t.Error(err)
			}
		}
	})
}

func TestBtrfsMetadataUUID(t *testing.T) {
	path := btrfsTestImage(t, 256*btrfsMiB, "--rootdir", btrfsTestTree(t, 100))
	need.Tools(t, "btrfstune")
	btrfsTool(t, "btrfstune", "-f", "-m", path)
	checkBtrfsFile(t, path)
}

// A file system that was ext4: its chunks have the addresses of the device.
func TestBtrfsConverted(t *testing.T) {
	need.Tools(t, "mke2fs", "btrfs-convert")
	path := btrfsTestImage(t, 512*btrfsMiB)
	btrfsTool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", btrfsTestTree(t, 400), path)
	btrfsTool(t, "btrfs-convert", path)
	checkBtrfsFile(t, path)
}

// checkBtrfsFile compares with what btrfs-progs read from the trees, and has
// btrfs check all of a copy in which what is free is rubbish. It returns the copy.
func checkBtrfsFile(t testing.TB, path string) string {
	t.Helper()
	got, err := usedBtrfs(t, path)
	if err != nil {
		t.Fatal(err)
	}
	if want := btrfsDumped(t, path); !slices.Equal(got, want) {
		t.Errorf("the ranges are\n%v, by dump-tree\n%v", got, want)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	if err := copyUsedBtrfs(copied, path, got); err != nil {
		t.Fatal(err)
	}
	btrfsTool(t, "btrfs", "check", "--readonly", "--check-data-csum", copied)
	return copied
}

// copyUsedBtrfs copies the ranges into a file that elsewhere has rubbish: 16 KiB
// at both ends of what is free, and in every 256 KiB of it.
func copyUsedBtrfs(to, from string, ranges []Range) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	const some, step = 16 << 10, 256 << 10
	rubbish, at := bytes.Repeat([]byte{0xA5}, some), int64(0)
	fill := func(end int64) error {
		for start := at; at < end && err == nil; at += step {
			_, err = out.WriteAt(rubbish[:min(end-at, some)], at)
			if last := max(start, end-some); err == nil && at+step >= end {
				_, err = out.WriteAt(rubbish[:end-last], last)
			}
		}
		at = end
		return err
	}
	for _, one := range ranges {
		if err := fill(int64(one.Start)); err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, at), io.NewSectionReader(in, at, int64(one.Length))); err != nil {
			return err
		}
		at += int64(one.Length)
	}
	return fill(info.Size())
}

var (
	btrfsDumpItem   = regexp.MustCompile(`^\titem \d+ key \((\w+) (\w+) (\d+)\)`)
	btrfsDumpLength = regexp.MustCompile(`^\t\tlength (\d+) owner`)
	btrfsDumpStripe = regexp.MustCompile(`^\t\t\tstripe \d+ devid 1 offset (\d+)`)
	btrfsDumpNode   = regexp.MustCompile(`(?m)^nodesize\s+(\d+)`)
	btrfsDumpTotal  = regexp.MustCompile(`(?m)^dev_item.total_bytes\s+(\d+)`)
)

// btrfsDumped finds what is used in what btrfs inspect-internal prints, by a map
// of all sectors.
func btrfsDumped(t testing.TB, path string) []Range {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	super := btrfsTool(t, "btrfs", "inspect-internal", "dump-super", path)
	node, total := btrfsNumber(t, btrfsDumpNode.FindStringSubmatch(super)[1]), btrfsNumber(t, btrfsDumpTotal.FindStringSubmatch(super)[1])
	used := newBtrfsMap(size.Bytes(info.Size()))
	used.mark(0, btrfsMiB)
	used.mark(64*btrfsMiB, 64*size.KiB)
	used.mark(total, used.length-total)
	chunks := btrfsDumpedChunks(t, path)
	btrfsDumpLines(t, "extent", path, func(line string) {
		m := btrfsDumpItem.FindStringSubmatch(line)
		if m == nil || m[2] != "EXTENT_ITEM" && m[2] != "METADATA_ITEM" {
			return
		}
		start, n := btrfsNumber(t, m[1]), node
		if m[2] == "EXTENT_ITEM" {
			n = btrfsNumber(t, m[3])
		}
		for _, c := range chunks {
			if start >= c.logical && start < c.logical+c.length {
				for _, at := range c.stripes {
					used.mark(at+start-c.logical, n)
				}
			}
		}
	})
	return used.ranges()
}

type btrfsDumpedChunk struct {
	logical, length size.Bytes
	stripes         []size.Bytes
}

func btrfsDumpedChunks(t testing.TB, path string) []*btrfsDumpedChunk {
	t.Helper()
	var chunks []*btrfsDumpedChunk
	btrfsDumpLines(t, "chunk", path, func(line string) {
		if m := btrfsDumpItem.FindStringSubmatch(line); m != nil {
			chunks = append(chunks, &btrfsDumpedChunk{logical: btrfsNumber(t, m[3])}) // a device has no length, and maps nothing
			return
		}
		if m := btrfsDumpLength.FindStringSubmatch(line); m != nil {
			chunks[len(chunks)-1].length = btrfsNumber(t, m[1])
		} else if m := btrfsDumpStripe.FindStringSubmatch(line); m != nil {
			chunks[len(chunks)-1].stripes = append(chunks[len(chunks)-1].stripes, btrfsNumber(t, m[1]))
		}
	})
	return chunks
}

func btrfsDumpLines(t testing.TB, tree, path string, each func(line string)) {
	t.Helper()
	for line := range strings.Lines(btrfsTool(t, "btrfs", "inspect-internal", "dump-tree", "-t", tree, path)) {
		each(strings.TrimSuffix(line, "\n"))
	}
}

func btrfsNumber(t testing.TB, text string) size.Bytes {
	t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return size.Bytes(n)
}

// btrfsMap has a mark for each 512 bytes.
type btrfsMap struct {
	length size.Bytes
	used   []bool
}

func newBtrfsMap(length size.Bytes) btrfsMap {
	return btrfsMap{length, make([]bool, (length+511)/512)}
}

func (m btrfsMap) mark(at, n size.Bytes) {
	for i := at / 512; i < min((at+n+511)/512, size.Bytes(len(m.used))); i++ {
		m.used[i] = true
	}
}

func (m btrfsMap) ranges() []Range {
	var all []Range
	for i := 0; i < len(m.used); i++ {
		if begin := i; m.used[i] {
			for i < len(m.used) && m.used[i] {
				i++
			}
			start := size.Bytes(begin) * 512
			all = append(all, Range{start, min(size.Bytes(i)*512, m.length) - start})
		}
	}
	return all
}
