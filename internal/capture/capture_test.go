package capture

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/undo"
	"ganeti-instance-image/internal/used"
)

func TestOrder(t *testing.T) {
	cases := []struct {
		order Order
		want  string // of the error; "" for none
		files []string
	}{
		{Order{}, "", []string{"/img/web-x86_64.qcow2"}},
		{Order{Type: "raw"}, "", []string{"/img/web-x86_64.raw"}},
		{Order{Type: "tarball", Name: "gold", Arch: "amd64", Dir: "/d"}, "", []string{"/d/gold-amd64.tar.zst"}},
		{Order{Type: "tarball", Compression: "none"}, "", []string{"/img/web-x86_64.tar"}},
		{Order{Type: "dump"}, "", []string{"/img/web-x86_64-boot.dump", "/img/web-x86_64-root.dump"}},
		{Order{Disks: []int{2}, Keep: []string{"logs"}}, "", []string{"/img/web-disk2-x86_64.qcow2"}},
		{Order{Keep: []string{"all"}}, "", []string{"/img/web-x86_64.qcow2"}},
		{Order{Type: "vdi"}, "qcow2, raw, tarball, dump", nil},
		{Order{Compression: "gz"}, "zstd, zlib, none", nil},
		{Order{Type: "raw", Compression: "zstd"}, "want one of none", nil},
		{Order{Name: "a/b"}, `"a/b"`, nil},
		{Order{Name: "-rf"}, `"-rf"`, nil},
		{Order{Name: "a\nb"}, `"a\nb"`, nil},
		{Order{Name: strings.Repeat("a", 129)}, "cannot call an image", nil},
		{Order{Arch: "../x"}, `"../x"`, nil},
		{Order{Dir: "images"}, "full path", nil},
		{Order{Disks: []int{16}}, "disk 16", nil},
		{Order{Disks: []int{-1}}, "disk -1", nil},
		{Order{Disks: []int{1, 1}}, "once", nil},
		{Order{Keep: []string{"all", "logs"}}, "keep all", nil},
		{Order{Keep: []string{"log"}}, `"log"`, nil},
		{Order{Remove: []string{"users"}}, `"users"`, nil},
	}
	for _, c := range cases {
		err := c.order.Check()
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v: %v", c.order, err)
			}
			continue
		}
		c.order.Defaults("/img", "web.example.org", "x86_64")
		f, ferr := c.order.format()
		made := &Capture{order: c.order, format: f}
		if got := made.files(c.order.Disks[0]); err != nil || ferr != nil || strings.Join(got, " ") != strings.Join(c.files, " ") {
			t.Errorf("%+v: %q, %v, %v", c.order, got, err, ferr)
		}
	}
}

func TestPercentages(t *testing.T) {
	for text, want := range map[string]int64{
		"    (0.00/100%)\r": 0, "    (12.34/100%)\r    (56.70/100%)\r": 5670, "(100.00/100%)\r\n": 10000,
		"": 0, "(x/100%)": 0, "(" + strings.Repeat("1", 100) + "/": 0,
	} {
		p := &percentages{}
		for _, b := range []byte(text) { // however it is cut
			if n, err := p.Write([]byte{b}); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
		if got := p.last.Load(); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

// memory is a disk.
type memory struct {
	*bytes.Reader
	fail int64 // from where on it cannot be read; 0: it can
}

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	if m.fail > 0 && off+int64(len(p)) > m.fail {
		return 0, io.ErrUnexpectedEOF
	}
	return m.Reader.ReadAt(p, off)
}

func (m memory) Path() string     { return "memory" }
func (m memory) Size() size.Bytes { return size.Bytes(m.Reader.Size()) }
func (m memory) WithoutHoles(r iter.Seq2[used.Range, error]) iter.Seq2[used.Range, error] {
	return r
}

func ranges(list ...used.Range) iter.Seq2[used.Range, error] {
	return func(yield func(used.Range, error) bool) {
		for _, r := range list {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// patchy is a disk of data with zeros of all lengths, and its ranges with gaps.
func patchy() []byte {
	b := make([]byte, 5<<20+12345)
	rand.Read(b)
	for _, zero := range [][2]int{{0, 100}, {5000, 70000}, {1 << 20, 1<<20 + 200000}, {2<<20 - 4096, 2<<20 + 4096}, {3 << 20, 4<<20 + 1}, {len(b) - 9000, len(b)}} {
		clear(b[zero[0]:zero[1]])
	}
	return b
}

func TestDuplicate(t *testing.T) {
	disk := patchy()
	n := size.Bytes(len(disk))
	for _, c := range []struct {
		name string
		used []used.Range
	}{
		{"all", []used.Range{{Length: n}}},
		{"parts", []used.Range{{Length: 4097}, {Start: 10000, Length: 100}, {Start: size.MiB, Length: 2 * size.MiB}, {Start: n - 5000, Length: 5000}}},
		{"none", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := make([]byte, n)
			for _, r := range c.used {
				copy(want[r.Start:r.Start+r.Length], disk[r.Start:])
			}
			to := temporary(t)
			if err := duplicate(t.Context(), memory{Reader: bytes.NewReader(disk)}, ranges(c.used...), n, to); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(to.Name()); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the copy differs, %v", err)
			}
		})
	}
}

func temporary(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "copy"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestDuplicateStops(t *testing.T) {
	disk := memory{Reader: bytes.NewReader(patchy()), fail: 3 << 20}
	all := ranges(used.Range{Length: disk.Size()})
	if err := duplicate(t.Context(), disk, all, disk.Size(), temporary(t)); !errors.As(err, new(*ReadError)) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a disk that cannot be read: %v", err)
	}
	failing := func(yield func(used.Range, error) bool) { yield(used.Range{}, io.ErrNoProgress) }
	if err := duplicate(t.Context(), disk, failing, disk.Size(), temporary(t)); !errors.As(err, new(*ReadError)) || !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("ranges that cannot be told: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(io.ErrClosedPipe)
	if err := duplicate(ctx, disk, all, disk.Size(), temporary(t)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("somebody stops it: %v", err)
	}
}

func TestPunch(t *testing.T) {
	f := temporary(t)
	data := bytes.Repeat([]byte("x"), 100000)
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	clear(data[5000:70001])
	if err := errors.Join(punch(f, 5000, 70001), punch(f, 7, 7), punch(f, 8, 7)); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(got, data) {
		t.Errorf("other bytes than those were cleared, %v", err)
	}
}

// A file without a name, and one that needs a name, come to the same; they do not
// take another's place unless they may.
func TestScratch(t *testing.T) {
	dir := t.TempDir()
	kinds := map[string]func() (*scratch, error){
		"without a name": func() (*scratch, error) { return newScratch(dir) },
		"with a name": func() (*scratch, error) {
			f, err := os.CreateTemp(dir, hidden)
			return &scratch{file: f, name: f.Name()}, err
		},
	}
	for name, make := range kinds {
		t.Run(name, func(t *testing.T) {
			target := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			for i, replace := range []bool{false, false, true} {
				s, err := make()
				if err != nil {
					t.Fatal(err)
				}
				path, err := s.path()
				if err == nil {
					err = os.WriteFile(path, fmt.Append(nil, i), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
				err = s.publish(target, replace)
				if taken := i == 1; taken != errors.Is(err, os.ErrExist) || !taken && err != nil {
					t.Errorf("%d: %v", i, err)
				}
				if err := errors.Join(s.discard(), s.discard()); err != nil {
					t.Error(err)
				}
				want := fmt.Sprint(max(0, i-1) * 2)
				if got, err := os.ReadFile(target); err != nil || string(got) != want {
					t.Errorf("%d: %q, %v, want %s", i, got, err, want)
				}
			}
		})
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("left are %v, %v", entries, err)
	}
}

// A name that an image or its checksum has is not taken, unless that is asked for.
func TestNewWantsFreeNames(t *testing.T) {
	for _, there := range []string{"web-x.raw", "web-x.raw.sha256"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, there), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		order := Order{Dir: dir, Name: "web", Arch: "x", Type: Raw, Disks: []int{0}}
		if _, err := New(order); err == nil || !strings.Contains(err.Error(), there+": it is there already") {
			t.Errorf("%s: %v", there, err)
		}
		order.Force = true
		if _, err := New(order); err != nil {
			t.Errorf("%s: %v", there, err)
		}
	}
}

// Where a new image cannot be stored, the one that it replaces stays.
func TestPublishKeepsTheOldImage(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, "web-x.raw")
	if err := errors.Join(os.WriteFile(old, []byte("old"), 0o600), os.WriteFile(old+sumEnding, []byte("old"), 0o600)); err != nil {
		t.Fatal(err)
	}
	c, err := New(Order{Dir: dir, Name: "web", Arch: "x", Type: Raw, Disks: []int{0}, Force: true})
	if err != nil {
		t.Fatal(err)
	}
	var steps undo.Stack
	file, err := c.newFile(&steps)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := c.newFile(&steps)
	if err != nil {
		t.Fatal(err)
	}
	c.done = []*product{{name: old, file: file, sum: sum}}
	sum.file.Close()
	_, err = c.Publish(&steps)
	if err == nil {
		t.Error("a closed file is published")
	}
	steps.Unwind(&err)
	for _, name := range []string{old, old + sumEnding} {
		if text, err := os.ReadFile(name); err != nil || string(text) != "old" {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("left are %v, %v", entries, err)
	}
}

func TestSubvolumes(t *testing.T) {
	need.Root(t)
	need.Tools(t, "mount", "umount", "mkfs.btrfs", "btrfs", "truncate")
	file, at := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	sh := func(argv ...string) {
		t.Helper()
		if _, err := (run.Cmd{What: argv[0], Argv: argv}).Run(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	sh("truncate", "-s", "128M", file)
	sh("mkfs.btrfs", "-q", file)
	sh("mount", "-o", "loop", file, at)
	defer sh("umount", at)
	dir, err := os.Open(at)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if got := subvolumes(dir); len(got) != 0 {
		t.Errorf("got %d", got)
	}
	sh("btrfs", "subvolume", "create", at+"/root")
	sh("btrfs", "subvolume", "snapshot", at+"/root", at+"/old")
	root, err := os.Open(at + "/root")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if got := subvolumes(root); len(got) != 2 || got[0] != 256 || got[1] != 257 || subvolumeOf(root) != 256 || subvolumeOf(dir) != 5 {
		t.Errorf("got %d, %d, %d", got, subvolumeOf(root), subvolumeOf(dir))
	}
}
