package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

// noSpool is no directory: what needs none does not look for it.
const noSpool = "/nonexistent/spool"

// memory is a disk in memory, of which no byte may come twice.
type memory struct {
	b    []byte
	seen []bool
}

var errTwice = errors.New("came twice")

func (m *memory) Begin(total size.Bytes) error {
	if m.b != nil {
		return errors.New("begun twice")
	}
	if total > 64*size.MiB {
		return errors.New("too large for the test")
	}
	m.b = bytes.Repeat([]byte{0xaa}, int(total))
	m.seen = make([]bool, total/sector)
	return nil
}

func (m *memory) Data(off size.Bytes, b []byte) error {
	if err := m.mark(off, size.Bytes(len(b))); err != nil {
		return err
	}
	copy(m.b[off:], b)
	return nil
}

func (m *memory) Zero(off, n size.Bytes) error {
	if err := m.mark(off, n); err != nil {
		return err
	}
	clear(m.b[off : off+n])
	return nil
}

// mark wants whole sectors that did not come yet.
func (m *memory) mark(off, n size.Bytes) error {
	if off < 0 || n <= 0 || off%sector+n%sector > 0 || off+n > size.Bytes(len(m.b)) {
		return fmt.Errorf("%d bytes at %d", n, off)
	}
	for i := off / sector; i < (off+n)/sector; i++ {
		if m.seen[i] {
			return fmt.Errorf("sector %d %w", i, errTwice)
		}
		m.seen[i] = true
	}
	return nil
}

func (m *memory) whole() bool { return m.b != nil && !slices.Contains(m.seen, false) }

// counter counts what comes.
type counter struct{ data, zero size.Bytes }

func (c *counter) Begin(size.Bytes) error                { return nil }
func (c *counter) Data(_ size.Bytes, b []byte) error     { c.data += size.Bytes(len(b)); return nil }
func (c *counter) Zero(_ size.Bytes, n size.Bytes) error { c.zero += n; return nil }

// receive decodes a stream of a known length.
func receive(t testing.TB, stream []byte, spoolDir string) (*memory, error) {
	t.Helper()
	m := &memory{}
	return m, ReceiveQCOW2(t.Context(), bytes.NewReader(stream), int64(len(stream)), spoolDir, m)
}

// receiveLike wants an image to give the bytes of a raw file.
func receiveLike(t testing.TB, path, raw, spoolDir string) {
	t.Helper()
	stream, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	m, err := receive(t, stream, spoolDir)
	if err != nil {
		t.Fatal(err)
	}
	if !m.whole() || !bytes.Equal(m.b, want) {
		t.Error("other bytes than qemu-img's")
	}
}

// What QEMU writes is decoded as it comes, and with little memory it is right by
// way of the spool.
func TestReceiveAgainstQEMU(t *testing.T) {
	need.Tools(t, "qemu-img", "qemu-io")
	raw := filepath.Join(t.TempDir(), "source.raw")
	makeContent(t, raw, 5_000_192)
	for i, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			path := makeVariant(t, i, raw)
			want := path + ".raw"
			tool(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, want)
			receiveLike(t, path, want, noSpool)
			for _, l := range []receiveLimits{{pending: 1 << 20, parts: 1 << 20}, {pending: 3, parts: 2}} {
				receiveLittle(t, path, want, l)
			}
		})
	}
}

// Of a disk with several L2 tables, compressed clusters lie in front of the table
// that maps them.
func TestReceiveSeveralTables(t *testing.T) {
	need.Tools(t, "qemu-img")
	raw := filepath.Join(t.TempDir(), "source.raw")
	makeContent(t, raw, 48<<20)
	for _, argv := range [][]string{
		{"-o", "cluster_size=4k"}, {"-o", "cluster_size=4k,compat=0.10"}, {"-c", "-o", "cluster_size=4k"},
		{"-c", "-o", "cluster_size=8k,compression_type=zstd"}, {"-o", "cluster_size=4k,preallocation=metadata"},
		{"-o", "cluster_size=16k"}, {"-c", "-o", "cluster_size=16k,compat=0.10"},
	} {
		t.Run(strings.Join(argv, " "), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image.qcow2")
			tool(t, append(append([]string{"qemu-img", "convert", "-f", "raw", "-O", "qcow2"}, argv...), raw, path)...)
			receiveLike(t, path, raw, noSpool)
		})
	}
}

// wantRefusedStream receives an image that must be refused with a text, in one
// line, and before the disk is begun where its header shows it.
func wantRefusedStream(t *testing.T, path, text string) {
	t.Helper()
	stream, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := receive(t, stream, noSpool)
	if err == nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n") {
		t.Errorf("as a stream: %v, want %q in one line", err, text)
	}
	if m.b != nil && !strings.Contains(text, "offset") && !strings.Contains(text, "entry") && !strings.Contains(err.Error(), "its entry for") {
		t.Errorf("%v: the disk was begun", err)
	}
}

// receiveLittle receives an image with a window that is hardly larger than its
// clusters.
func receiveLittle(t *testing.T, path, raw string, limits receiveLimits) {
	t.Helper()
	stream, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	cluster := size.Bytes(1) << stream[23]
	limits.ahead = max(4*cluster, 64*size.KiB)
	limits.chunk = limits.ahead / 4
	m, dir := &memory{}, t.TempDir()
	if err := receiveQCOW2(t.Context(), bytes.NewReader(stream), int64(len(stream)), dir, m, limits); err != nil {
		t.Errorf("%+v: %v", limits, err)
	} else if !m.whole() || !bytes.Equal(m.b, want) {
		t.Errorf("%+v: other bytes than qemu-img's", limits)
	}
	wantEmpty(t, dir)
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("the spool's directory has %v, %v", left, err)
	}
}

// moved is an image of QEMU's, without compressed clusters, whose clusters were
// moved to where place says; the header stays.
func moved(t testing.TB, image []byte, place func(cluster, of int) int) []byte {
	t.Helper()
	be, bits := binary.BigEndian, image[23]
	cluster := 1 << bits
	of := len(image) / cluster
	out := bytes.Clone(image)
	translate := func(b []byte) {
		v := be.Uint64(b)
		if at := int(v & entryOffset >> bits); at > 0 && at < of {
			be.PutUint64(b, v&^entryOffset|uint64(place(at, of))<<bits)
		}
	}
	each := func(table uint64, n int, do func(b []byte)) {
		for i := range n {
			do(out[int(table)+8*i:])
		}
	}
	l1, refcounts := be.Uint64(image[40:]), be.Uint64(image[48:])
	each(refcounts, cluster/8, translate)
	each(l1, int(be.Uint32(image[36:])), func(b []byte) {
		if table := be.Uint64(b) & entryOffset; table != 0 {
			each(table, cluster/8, translate)
		}
		translate(b)
	})
	translate(out[40:])
	translate(out[48:])
	result := bytes.Clone(out)
	for i := 1; i < of; i++ {
		copy(result[place(i, of)*cluster:], out[i*cluster:(i+1)*cluster])
	}
	return result
}

// orders are places for the clusters of an image behind the header.
var orders = []struct {
	name  string
	place func(cluster, of int) int
}{
	{"backwards", func(c, of int) int { return of - c }},
	{"tables last", func(c, of int) int { return 1 + (c-1+8*(of-2))%(of-1) }},
	{"far apart", func(c, of int) int { // a step that has no divisor in common with the number of places
		step := (of - 1) / 3
		for gcd(step, of-1) > 1 {
			step++
		}
		return 1 + c*step%(of-1)
	}},
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// Images whose clusters have any order are the same in the end, judged by
// qemu-img.
func TestReceiveMovedClusters(t *testing.T) {
	need.Tools(t, "qemu-img")
	raw := filepath.Join(t.TempDir(), "source.raw")
	makeContent(t, raw, 12<<20)
	for _, argv := range [][]string{{"-o", "cluster_size=4k"}, {"-o", "cluster_size=16k,compat=0.10"}, {"-o", "cluster_size=64k"}} {
		plain := filepath.Join(t.TempDir(), "image.qcow2")
		tool(t, append(append([]string{"qemu-img", "convert", "-f", "raw", "-O", "qcow2"}, argv...), raw, plain)...)
		image, err := os.ReadFile(plain)
		if err != nil {
			t.Fatal(err)
		}
		image = append(image, make([]byte, -len(image)&(1<<image[23]-1))...)
		for _, order := range orders {
			t.Run(strings.Join(argv, " ")+" "+order.name, func(t *testing.T) {
				path := writeFile(t, "moved.qcow2", moved(t, image, order.place))
				tool(t, "qemu-img", "check", "-f", "qcow2", path)
				tool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", path, raw)
				for _, l := range []receiveLimits{{pending: 1 << 20, parts: 1 << 20}, {pending: 300, parts: 4}} {
					receiveLittle(t, path, raw, l)
				}
				wantSpoolRefusals(t, path)
			})
		}
	}
}

// wantSpoolRefusals receives an image that needs a spool where there is none.
func wantSpoolRefusals(t *testing.T, path string) {
	stream, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	limits := usualLimits
	limits.ahead, limits.chunk = 256*size.KiB, 64*size.KiB
	dir := t.TempDir()
	for _, c := range []struct {
		dir  string
		n    int64
		want string
	}{
		{noSpool, int64(len(stream)), "cannot spool a qcow2 image whose tables are behind its data: /nonexistent/spool: no such file or directory; set IMPORT_DIR"},
		{path, int64(len(stream)), "not a directory; set IMPORT_DIR"},
		{dir, 1 << 50, "are needed; set IMPORT_DIR"},
		{dir, UnknownLength, "how long it is is not known"},
	} {
		err := receiveQCOW2(t.Context(), bytes.NewReader(stream), c.n, c.dir, &memory{}, limits)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.want, err)
		}
	}
	wantEmpty(t, dir)
}

// smallImages are images of few bytes for what is tried at many places.
func smallImages(t testing.TB, n int64) [][]byte {
	t.Helper()
	need.Tools(t, "qemu-img", "qemu-io")
	raw := filepath.Join(t.TempDir(), "source.raw")
	makeContent(t, raw, n)
	var images [][]byte
	for _, argv := range [][]string{
		{"-o", "cluster_size=512"}, {"-o", "cluster_size=512,compat=0.10"}, {"-c", "-o", "cluster_size=1k"},
		{"-c", "-o", "cluster_size=4k,compression_type=zstd"}, {"-o", "extended_l2=on,cluster_size=16k"},
	} {
		path := filepath.Join(t.TempDir(), "image.qcow2")
		tool(t, append(append([]string{"qemu-img", "convert", "-f", "raw", "-O", "qcow2"}, argv...), raw, path)...)
		image, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, image)
	}
	plain := append(bytes.Clone(images[0]), make([]byte, -len(images[0])&511)...)
	for _, order := range orders {
		images = append(images, moved(t, plain, order.place))
	}
	return images
}

// littleLimits make the spool matter even for small images.
var littleLimits = receiveLimits{ahead: 64 * size.KiB, chunk: 4 * size.KiB, pending: 20, parts: 3}

// compareReaders receives a stream, and reads it as a file: if it was received,
// the bytes are the same.
func compareReaders(t testing.TB, stream []byte, length int64, dir string, limits receiveLimits) (received error) {
	t.Helper()
	m := &memory{}
	received = receiveQCOW2(t.Context(), bytes.NewReader(stream), length, dir, m, limits)
	if errors.Is(received, errTwice) {
		t.Fatal(received)
	}
	if received != nil {
		return received
	}
	path := filepath.Join(dir, "same.qcow2")
	if err := os.WriteFile(path, stream, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	img, err := openImage(path, TypeQCOW2)
	if err != nil {
		t.Fatalf("received, and as a file %v", err)
	}
	defer img.Close()
	want := make([]byte, img.Size())
	if _, err := img.ReadAt(want, 0); err != nil {
		t.Fatalf("received, and as a file %v", err)
	}
	if !m.whole() || !bytes.Equal(m.b, want) {
		t.Fatal("received, and other bytes as a file")
	}
	return nil
}

func TestReceiveCutStreams(t *testing.T) {
	dir := t.TempDir()
	for i, image := range smallImages(t, 200<<10) {
		for n := 0; n < len(image); n += 512 {
			if err := compareReaders(t, image[:n], int64(len(image)), dir, littleLimits); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("image %d, cut at %d: %v", i, n, err)
			}
			compareReaders(t, image[:n], int64(n), dir, littleLimits)
			compareReaders(t, image[:n], UnknownLength, dir, littleLimits)
		}
		if err := compareReaders(t, image, int64(len(image)), dir, usualLimits); err != nil {
			t.Errorf("image %d: %v", i, err)
		}
		if err := compareReaders(t, image, int64(len(image)-512), dir, littleLimits); err == nil {
			t.Errorf("image %d is longer than it says, and that is no error", i)
		}
	}
}

// Bits are changed in the header and in the tables.
func TestReceiveDamage(t *testing.T) {
	dir := t.TempDir()
	for i, image := range smallImages(t, 200<<10) {
		cluster := 1 << image[23]
		l1 := int(binary.BigEndian.Uint64(image[40:]))
		table := int(binary.BigEndian.Uint64(image[l1:]) & entryOffset)
		for _, part := range [][2]int{{4, 112}, {l1, l1 + 24}, {table, min(table+cluster, table+96)}} {
			for at := part[0]; at < part[1]; at++ {
				for _, flip := range []byte{1, 2, 0x40, 0x80} {
					image[at] ^= flip
					compareReaders(t, image, int64(len(image)), dir, littleLimits)
					image[at] ^= flip
				}
			}
		}
		if err := compareReaders(t, image, int64(len(image)), dir, littleLimits); err != nil {
			t.Errorf("image %d was not restored: %v", i, err)
		}
	}
}

// Tables that lead to what cannot be, and to what can.
func TestReceiveOddTables(t *testing.T) {
	need.Tools(t, "qemu-img", "qemu-io")
	path := filepath.Join(t.TempDir(), "image.qcow2")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=64k", path, "1025M")
	qemuIO("write -P 1 0 128k", "write -P 2 600M 64k")(t, path)
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		at   int
		with []byte
		want string
	}{
		{"two clusters in one", l2At, be64(dataAt + 1<<16), ""},
		{"a cluster in its own table", l2At, be64(l2At), ""},
		{"a cluster in the header", l2At, be64(1 << 9), "is not the offset of a cluster"},
		{"a cluster in the refcounts that came", l2At, be64(2 << 16), ""},
		{"two ways to a table", l1At + 8, be64(l2At), "lead to one L2 table"},
		{"a table that is data", l1At, be64(dataAt), "has reserved bits set"},
		{"a table that is the L1 table", l1At, be64(l1At), ""},
		{"a table behind the end", l1At + 16, be64(1 << 40), "leads behind the end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			changed := bytes.Clone(image)
			copy(changed[c.at:], c.with)
			counted := &counter{}
			err := ReceiveQCOW2(t.Context(), bytes.NewReader(changed), int64(len(changed)), noSpool, counted)
			if c.want == "" && (err != nil || counted.data+counted.zero != 1025*size.MiB) {
				t.Errorf("%d of data, %d zeros, %v", counted.data, counted.zero, err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			limits := receiveLimits{ahead: 128 * size.KiB, chunk: 64 * size.KiB, pending: 100, parts: 100}
			err = receiveQCOW2(t.Context(), bytes.NewReader(changed), int64(len(changed)), t.TempDir(), &counter{}, limits)
			if c.want == "" && err != nil && !errors.Is(err, errPassed) {
				t.Errorf("with little memory: %v", err)
			}
		})
	}
}

// failingReceiver fails in one of its methods.
type failingReceiver struct{ in string }

var errReceiver = errors.New("the disk's")

func (r *failingReceiver) fail(in string) error {
	if r.in == in {
		return errReceiver
	}
	return nil
}

func (r *failingReceiver) Begin(size.Bytes) error            { return r.fail("begin") }
func (r *failingReceiver) Data(size.Bytes, []byte) error     { return r.fail("data") }
func (r *failingReceiver) Zero(size.Bytes, size.Bytes) error { return r.fail("zero") }

func TestReceiveStops(t *testing.T) {
	image := smallImages(t, 200<<10)[0]
	for _, in := range []string{"begin", "data", "zero"} {
		err := ReceiveQCOW2(t.Context(), bytes.NewReader(image), int64(len(image)), noSpool, &failingReceiver{in: in})
		if err != errReceiver {
			t.Errorf("%s: %v", in, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the signal"))
	err := ReceiveQCOW2(ctx, bytes.NewReader(image), int64(len(image)), noSpool, &counter{})
	if err == nil || !strings.Contains(err.Error(), "the signal") {
		t.Errorf("cancelled: %v", err)
	}
	broken := io.MultiReader(bytes.NewReader(image[:1000]), iotest.ErrReader(os.ErrDeadlineExceeded))
	if err := ReceiveQCOW2(t.Context(), broken, int64(len(image)), noSpool, &counter{}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a broken pipe: %v", err)
	}
	if err := ReceiveQCOW2(t.Context(), iotest.OneByteReader(bytes.NewReader(image)), UnknownLength, noSpool, &counter{}); err != nil {
		t.Errorf("byte by byte: %v", err)
	}
	for _, other := range []string{"", "QFI", "raw", "QFI\xfb\x00\x00\x00\x01", "\x1f\x8b\x08\x00\x00\x00\x00\x00"} {
		if err := ReceiveQCOW2(t.Context(), strings.NewReader(other), UnknownLength, noSpool, &counter{}); err == nil {
			t.Errorf("%q was accepted", other)
		}
	}
}

func FuzzReceiveQCOW2(f *testing.F) {
	for i, image := range smallImages(f, 16<<10) {
		f.Add(image, i%2 == 0)
	}
	f.Fuzz(func(t *testing.T, stream []byte, known bool) {
		if len(stream) > 23 && stream[23] > 16 {
			t.Skip("clusters that are too large for the window")
		}
		length := int64(UnknownLength)
		if known {
			length = int64(len(stream))
		}
		compareReaders(t, stream, length, t.TempDir(), receiveLimits{ahead: 256 * size.KiB, chunk: 4 * size.KiB, pending: 20, parts: 3})
	})
}
