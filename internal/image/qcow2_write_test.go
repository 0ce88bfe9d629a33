package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

// rangesOf yields ranges and, where it is not nil, an error.
func rangesOf(ranges []Range, err error) iter.Seq2[Range, error] {
	return func(yield func(Range, error) bool) {
		for _, r := range ranges {
			if !yield(r, nil) {
				return
			}
		}
		if err != nil {
			yield(Range{}, err)
		}
	}
}

// writePlan writes a disk as a qcow2 file of the length that was said.
func writePlan(t testing.TB, disk io.ReaderAt, n size.Bytes, ranges []Range) string {
	t.Helper()
	plan, err := PlanQCOW2(n, rangesOf(ranges, nil))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "written.qcow2")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := plan.Write(t.Context(), f, disk); err != nil {
		t.Fatal(err)
	}
	if at, _ := f.Seek(0, io.SeekCurrent); at != int64(plan.Size()) {
		t.Fatalf("wrote %d bytes, said %d", at, plan.Size())
	}
	return path
}

// keepUsed makes zeros of the clusters of a raw file of which nothing is used.
func keepUsed(t testing.TB, path string, ranges []Range) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	kept := make([]byte, len(b))
	for _, r := range ranges {
		from := r.Start.AlignDown(writtenCluster)
		to := min((r.Start + r.Length).AlignUp(writtenCluster), size.Bytes(len(b)))
		copy(kept[from:to], b[from:to])
	}
	if err := os.WriteFile(path, kept, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestWriteQCOW2(t *testing.T) {
	need.Tools(t, "qemu-img")
	const k = size.KiB
	cases := []struct {
		name   string
		disk   size.Bytes
		ranges []Range
	}{
		{"nothing", 10 * size.MiB, nil},
		{"one sector, used", 512, []Range{{0, 512}}},
		{"one sector, free", 512, nil},
		{"everything", 5 * size.MiB, []Range{{0, 5 * size.MiB}}},
		{"no whole clusters", 5*size.MiB + 1536, []Range{{0, 5*size.MiB + 1536}}},
		{"the last sector", 5*size.MiB + 512, []Range{{5 * size.MiB, 512}}},
		{"single bytes", 9 * size.MiB, []Range{{64*k - 1, 2}, {3 * size.MiB, 1}, {4*size.MiB - 1, 1}}},
		{"in any order", 9 * size.MiB, []Range{{8 * size.MiB, 100 * k}, {100 * k, 3 * size.MiB}, {90 * k, 20 * k}, {100 * k, 1}}},
		{"over words of bits", 30 * size.MiB, []Range{{4*size.MiB - 64*k, 20 * size.MiB}}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			raw := filepath.Join(t.TempDir(), "disk.raw")
			makeContent(t, raw, int64(c.disk))
			disk, err := os.Open(raw)
			if err != nil {
				t.Fatal(err)
			}
			defer disk.Close()
			path := writePlan(t, disk, c.disk, c.ranges)
			keepUsed(t, raw, c.ranges)
			tool(t, "qemu-img", "check", "-f", "qcow2", path)
			tool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", path, raw)
			tool(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, path+".raw")
			tool(t, "cmp", path+".raw", raw)
			receiveLike(t, path, raw, noSpool)
		})
	}
}

// markedDisk reads as zeros but for a byte that tells the cluster.
type markedDisk struct{ n size.Bytes }

func (d markedDisk) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for at := int64(0); at < int64(len(p)); at += writtenCluster {
		p[at] = byte(off>>16) + byte(at>>16) | 1
	}
	return len(p), nil
}

// A large disk has several refcount blocks, and L2 tables with gaps between
// them.
func TestWriteLargeQCOW2(t *testing.T) {
	need.Tools(t, "qemu-img")
	const disk = 3*size.TiB + 512
	var ranges []Range
	for off := size.Bytes(0); off < disk; off += 37*size.GiB + 64*size.KiB {
		ranges = append(ranges, Range{off, min(size.MiB, disk-off)})
	}
	ranges = append(ranges, Range{disk - 512, 512})
	path := writePlan(t, markedDisk{disk}, disk, ranges)
	tool(t, "qemu-img", "check", "-f", "qcow2", path)
	img, err := openImage(path, TypeQCOW2)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if img.Size() != disk {
		t.Errorf("the disk has %d bytes", img.Size())
	}
	for _, r := range ranges {
		got, want := make([]byte, 512), make([]byte, 512)
		if _, err := img.ReadAt(got, int64(r.Start)); err != nil {
			t.Fatal(err)
		}
		if markedDisk.ReadAt(markedDisk{}, want, int64(r.Start)); !bytes.Equal(got, want) {
			t.Errorf("other bytes at %d", r.Start)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, _ := f.Stat()
	counted := &counter{}
	if err := ReceiveQCOW2(t.Context(), f, info.Size(), noSpool, counted); err != nil || counted.data+counted.zero != disk {
		t.Errorf("received %d of data and %d zeros, %v", counted.data, counted.zero, err)
	}
}

// Several refcount table clusters and L1 clusters are laid out without writing
// the data.
func TestPlanTotals(t *testing.T) {
	for _, c := range []struct {
		disk size.Bytes
		want int64 // clusters
	}{
		// header, table, 1 block, L1, 1 L2, 8187 data
		{8187 << 16, 1 + 1 + 1 + 1 + 1 + 8187},
		// 16 TiB: 268435456 data, 32768 L2, 4 L1, header; blocks for these: 8194, in 2 clusters of table
		{16 * size.TiB, 1 + 2 + 8194 + 4 + 32768 + 1<<28},
		{64 * size.TiB, 1 + 5 + 32774 + 16 + 131072 + 1<<30},
	} {
		p, err := PlanQCOW2(c.disk, rangesOf([]Range{{0, c.disk}}, nil))
		if err != nil {
			t.Fatal(err)
		}
		if p.total() != c.want || p.refBlocks*writtenPerRef < p.total() || p.refTable*writtenPerL2 < p.refBlocks {
			t.Errorf("%s: %d clusters with %d refcount blocks and %d of table, want %d", c.disk, p.total(), p.refBlocks, p.refTable, c.want)
		}
	}
}

func TestPlanRefuses(t *testing.T) {
	own := errors.New("own")
	for _, c := range []struct {
		disk   size.Bytes
		ranges []Range
		err    error
		want   string
	}{
		{disk: 0, want: "a disk of 0 bytes"},
		{disk: 1000, want: "multiple of 512"},
		{disk: 65 * size.TiB, want: "at most 64 TiB"},
		{disk: 1024, ranges: []Range{{512, 513}}, want: "is not on the disk"},
		{disk: 1024, ranges: []Range{{-1, 5}}, want: "is not on the disk"},
		{disk: 1024, ranges: []Range{{5, 0}}, want: "is not on the disk"},
		{disk: 1024, ranges: []Range{{2000, 1}}, want: "is not on the disk"},
		{disk: 1024, ranges: []Range{{1, 1<<63 - 1}}, want: "is not on the disk"},
		{disk: 1024, err: own, want: "own"},
	} {
		if _, err := PlanQCOW2(c.disk, rangesOf(c.ranges, c.err)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// failingDisk has an end that no one told of, or an error.
type failingDisk struct {
	n   int64
	err error
}

func (d failingDisk) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) <= d.n {
		return len(p), nil
	}
	return int(max(0, d.n-off)), d.err
}

type failingWriter struct{ room int }

func (w *failingWriter) Write(p []byte) (int, error) {
	if w.room -= len(p); w.room < 0 {
		return 0, errors.New("closed pipe")
	}
	return len(p), nil
}

func TestWriteFails(t *testing.T) {
	const disk = 40 * size.MiB
	plan, err := PlanQCOW2(disk, rangesOf([]Range{{0, disk}}, nil))
	if err != nil {
		t.Fatal(err)
	}
	whole := failingDisk{int64(disk), nil}
	for _, c := range []struct {
		disk io.ReaderAt
		room int
		want string
	}{
		{failingDisk{20 << 20, io.EOF}, 1 << 40, "cannot read the disk at offset 20971520: unexpected EOF"},
		{failingDisk{20<<20 + 5, nil}, 1 << 40, "at offset 20971525: unexpected EOF"},
		{failingDisk{20 << 20, os.ErrClosed}, 1 << 40, "file already closed"},
		{whole, 0, "closed pipe"},
		{whole, 3 << 16, "closed pipe"},
		{whole, 20 << 20, "closed pipe"},
	} {
		err := plan.Write(t.Context(), &failingWriter{c.room}, c.disk)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.want, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the signal"))
	if err := plan.Write(ctx, io.Discard, whole); err == nil || !strings.Contains(err.Error(), "the signal") {
		t.Errorf("cancelled: %v", err)
	}
}

func BenchmarkWriteQCOW2(b *testing.B) {
	const disk = 256 * size.MiB
	b.SetBytes(int64(disk))
	for b.Loop() {
		plan, err := PlanQCOW2(disk, rangesOf([]Range{{0, disk}}, nil))
		if err == nil {
			err = plan.Write(b.Context(), io.Discard, failingDisk{n: int64(disk)})
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
