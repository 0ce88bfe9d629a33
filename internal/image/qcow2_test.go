package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	library "github.com/lima-vm/go-qcow2reader/image/qcow2"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/size"
)

func TestMain(m *testing.M) {
	library.SetDecompressor(library.CompressionTypeZstd, func(r io.Reader) (io.ReadCloser, error) {
		z, err := zstd.NewReader(r)
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	})
	os.Exit(m.Run())
}

// tool runs a program that must succeed.
func tool(t testing.TB, argv ...string) {
	t.Helper()
	if _, err := (run.Cmd{What: "prepare the test", Argv: argv}).Run(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// qemuIO changes an image by commands of qemu-io.
func qemuIO(commands ...string) func(t testing.TB, path string) {
	return func(t testing.TB, path string) {
		argv := []string{"qemu-io", "-f", "qcow2"}
		for _, c := range commands {
			argv = append(argv, "-c", c)
		}
		tool(t, append(argv, path)...)
	}
}

// makeContent writes a raw disk: text, zeros, noise, and holes of all lengths.
func makeContent(t testing.TB, path string, n int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := rand.New(rand.NewPCG(3, uint64(n)))
	for off := int64(0); off < n; {
		b := make([]byte, min(int64(1+r.IntN(1<<uint(9+r.IntN(12)))), n-off))
		kind := r.IntN(4)
		for i := range b {
			switch kind {
			case 0:
				b[i] = byte(r.Uint32())
			case 1:
				b[i] = "It was a dark and stormy night; the rain fell in torrents.\n"[(i*7/3+i)%59]
			}
		}
		if kind < 3 {
			if _, err := f.WriteAt(b, off); err != nil {
				t.Fatal(err)
			}
		}
		off += int64(len(b))
	}
	if err := f.Truncate(n); err != nil {
		t.Fatal(err)
	}
}

// variants are the kinds of image QEMU writes, each with a change by qemu-io
// after it was made.
var variants = []struct {
	name   string
	argv   []string // options of qemu-img convert
	change func(t testing.TB, path string)
	// libraryEOF: the library gives up where a short cluster comes with EOF.
	libraryEOF bool
}{
	{name: "v3"},
	{name: "v2", argv: []string{"-o", "compat=0.10"}},
	{name: "v2 zlib", argv: []string{"-c", "-o", "compat=0.10"}},
	{name: "512", argv: []string{"-o", "cluster_size=512"}},
	{name: "512 zlib", argv: []string{"-c", "-o", "cluster_size=512"}, libraryEOF: true},
	{name: "512 zstd", argv: []string{"-c", "-o", "cluster_size=512,compression_type=zstd"}},
	{name: "1k", argv: []string{"-o", "cluster_size=1k"}},
	{name: "2k zlib", argv: []string{"-c", "-o", "cluster_size=2k"}, libraryEOF: true},
	{name: "4k zlib", argv: []string{"-c", "-o", "cluster_size=4k"}, libraryEOF: true},
	{name: "8k", argv: []string{"-o", "cluster_size=8k"}},
	{name: "16k zstd", argv: []string{"-c", "-o", "cluster_size=16k,compression_type=zstd"}},
	{name: "32k", argv: []string{"-o", "cluster_size=32k"}},
	{name: "zlib", argv: []string{"-c"}},
	{name: "zstd", argv: []string{"-c", "-o", "compression_type=zstd"}},
	{name: "128k", argv: []string{"-o", "cluster_size=128k"}},
	{name: "256k zlib", argv: []string{"-c", "-o", "cluster_size=256k"}},
	{name: "512k", argv: []string{"-o", "cluster_size=512k"}},
	{name: "1M zstd", argv: []string{"-c", "-o", "cluster_size=1M,compression_type=zstd"}},
	{name: "2M", argv: []string{"-o", "cluster_size=2M"}},
	{name: "2M zlib", argv: []string{"-c", "-o", "cluster_size=2M"}},
	{name: "2M zstd", argv: []string{"-c", "-o", "cluster_size=2M,compression_type=zstd"}},
	{name: "lazy refcounts", argv: []string{"-o", "lazy_refcounts=on"}},
	{name: "preallocated metadata", argv: []string{"-o", "preallocation=metadata"}},
	{name: "preallocated", argv: []string{"-o", "preallocation=falloc"}},
	{name: "everything", argv: []string{"-S", "0"}},
	{name: "out of order", argv: []string{"-W", "-m", "8"}},
	{name: "zeroed", change: qemuIO("write -z 64k 1M", "write -z -u 3M 200k")},
	{name: "zeroed and preallocated", argv: []string{"-o", "preallocation=falloc"}, change: qemuIO("write -z 100k 1M", "write -P 7 400k 3k")},
	{name: "discarded", change: qemuIO("discard 1M 1M")},
	{name: "compressed and written", argv: []string{"-c"}, change: qemuIO("write -P 3 70k 130k", "write -z 3M 128k")},
	{name: "extended", argv: []string{"-o", "extended_l2=on"}},
	{name: "extended 16k", argv: []string{"-o", "extended_l2=on,cluster_size=16k"}, change: qemuIO("write -P 5 33k 1k", "write -z 40k 2k")},
	{name: "extended 2M", argv: []string{"-o", "extended_l2=on,cluster_size=2M"}, change: qemuIO("write -z 2M 64k", "write -P 1 4M 70k")},
	{name: "extended zlib", argv: []string{"-c", "-o", "extended_l2=on"}, change: qemuIO("write -P 8 190k 3k", "write -z 128k 6k", "write -z 512k 64k")},
	{name: "extended zstd", argv: []string{"-c", "-o", "extended_l2=on,cluster_size=128k,compression_type=zstd"}},
	{name: "snapshots", change: func(t testing.TB, path string) {
		tool(t, "qemu-img", "snapshot", "-c", "one", path)
		qemuIO("write -P 4 1M 2M", "write -z 3M 1M")(t, path)
		tool(t, "qemu-img", "snapshot", "-c", "two", path)
		qemuIO("write -P 6 2M 100k")(t, path)
	}},
}

// make builds the variant number i from a raw disk and returns its path.
func makeVariant(t testing.TB, i int, raw string) string {
	path := filepath.Join(t.TempDir(), "image.qcow2")
	argv := append([]string{"qemu-img", "convert", "-f", "raw", "-O", "qcow2"}, variants[i].argv...)
	tool(t, append(argv, raw, path)...)
	if variants[i].change != nil {
		variants[i].change(t, path)
	}
	return path
}

func TestQCOW2AgainstQEMUAndLibrary(t *testing.T) {
	need.Tools(t, "qemu-img", "qemu-io")
	for step, n := range map[int]int64{1: 5_000_192, 4: 6 << 20} {
		raw := filepath.Join(t.TempDir(), "source.raw")
		makeContent(t, raw, n)
		for i, v := range variants {
			if i%step > 0 {
				continue
			}
			t.Run(fmt.Sprintf("%s %d", v.name, n), func(t *testing.T) {
				t.Parallel()
				path := makeVariant(t, i, raw)
				want := path + ".raw"
				tool(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, want)
				comparePieces(t, path, want)
				compareLibrary(t, path, want, v.libraryEOF)
			})
		}
	}
}

// comparePieces reads an image in pieces that fit nothing, at once.
func comparePieces(t *testing.T, path, judge string) {
	want, err := os.ReadFile(judge)
	if err != nil {
		t.Fatal(err)
	}
	img, err := openImage(path, TypeQCOW2)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if int(img.Size()) != len(want) {
		t.Fatalf("size %d, want %d", img.Size(), len(want))
	}
	var readers sync.WaitGroup
	for _, piece := range []int{700_001, 1 << 20, 4 << 20, len(want)} {
		readers.Go(func() {
			got := make([]byte, len(want))
			for at := 0; at < len(got); at += piece {
				if _, err := img.ReadAt(got[at:min(at+piece, len(got))], int64(at)); err != nil {
					t.Error(err)
					return
				}
			}
			if !bytes.Equal(got, want) {
				t.Errorf("in pieces of %d: other bytes than qemu-img", piece)
			}
		})
	}
	readers.Wait()
	compareExtents(t, img, want)
	if n, err := img.ReadAt(make([]byte, 1000), int64(len(want)-10)); n != 10 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d, %v", n, err)
	}
}

func compareExtents(t *testing.T, img Image, want []byte) {
	for off := size.Bytes(0); off < img.Size(); {
		e, err := img.Extent(off)
		if err != nil {
			t.Fatal(err)
		}
		if e.Offset != off || e.Length <= 0 || off+e.Length > img.Size() {
			t.Fatalf("extent at %d is %+v", off, e)
		}
		if e.Zero && len(bytes.Trim(want[off:off+e.Length], "\x00")) > 0 {
			t.Errorf("%+v is not zero", e)
		}
		off += e.Length
	}
	if _, err := img.Extent(img.Size()); !errors.Is(err, io.EOF) {
		t.Errorf("behind the end: %v", err)
	}
}

func compareLibrary(t *testing.T, path, judge string, mayEnd bool) {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	theirs, err := library.Open(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(judge)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, theirs.Size())
	_, err = io.ReadFull(io.NewSectionReader(theirs, 0, theirs.Size()), got)
	if mayEnd && errors.Is(err, io.EOF) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the judges do not agree")
	}
}

func TestNotes(t *testing.T) {
	need.Tools(t, "qemu-img")
	raw := filepath.Join(t.TempDir(), "source.raw")
	makeContent(t, raw, 1<<20)
	path := raw + ".qcow2"
	tool(t, "qemu-img", "convert", "-O", "qcow2", raw, path)
	tool(t, "qemu-img", "snapshot", "-c", "one", path)
	patch(t, path, 79, 1)
	img, err := openImage(path, TypeQEMU)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	notes := strings.Join(img.Notes(), "\n")
	if !strings.Contains(notes, "1 internal snapshots") || !strings.Contains(notes, "not closed") {
		t.Errorf("notes: %s", notes)
	}
}

// The disk of a qcow2 image whose size is no multiple of 512 ends, as QEMU shows
// it, with the last whole sector.
func TestOddVirtualSize(t *testing.T) {
	need.Tools(t, "qemu-img", "qemu-io")
	path := filepath.Join(t.TempDir(), "odd.qcow2")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
	qemuIO("write -P 7 0 1M")(t, path)
	patch(t, path, 24, 0, 0, 0, 0, 0, 0x0f, 0x42, 0x43)
	tool(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, path+".raw")
	comparePieces(t, path, path+".raw")
}

func TestHolesThatNoTableMaps(t *testing.T) {
	need.Tools(t, "qemu-img", "qemu-io")
	path := filepath.Join(t.TempDir(), "large.qcow2")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "64T")
	qemuIO("write -P 7 40T 1M")(t, path)
	img, err := openImage(path, TypeQEMU)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	var found []Extent
	for off := size.Bytes(0); off < img.Size(); {
		e, err := img.Extent(off)
		if err != nil {
			t.Fatal(err)
		}
		if found = append(found, e); len(found) > 100 {
			t.Fatal("a hole of 64 TiB has too many extents")
		}
		off += e.Length
		if !e.Zero && (e.Offset != 40*size.TiB || e.Length != size.MiB) {
			t.Errorf("found data at %+v", e)
		}
	}
}

// patch overwrites bytes of a file.
func patch(t testing.TB, path string, off int64, b ...byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}
