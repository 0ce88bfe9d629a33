package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/klauspost/compress/zstd"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/used"
)

var created = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func manifest(n int) Manifest {
	return Manifest{Format: format, Version: version, Created: created, Instance: "web.example.org", OS: "image+debian-12", Size: size.Bytes(n)}
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

func written(t testing.TB, disk []byte, inUse iter.Seq2[used.Range, error]) []byte {
	t.Helper()
	var out bytes.Buffer
	var done atomic.Int64
	if err := Write(t.Context(), &out, bytes.NewReader(disk), manifest(len(disk)), inUse, &done); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// disks are made with a fixed seed: scattered data, with zeros and short stretches
// between.
func disks() map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	scattered := make([]byte, 40<<20)
	for range 3000 {
		off, n := r.IntN(len(scattered)-70000), r.IntN(70000)
		if r.IntN(2) == 0 {
			off, n = off&^4095, n&^4095
		}
		for i := range n {
			scattered[off+i] = byte(r.Uint32())
		}
		clear(scattered[min(off+n, len(scattered)):min(off+n+r.IntN(200000), len(scattered))])
	}
	full := make([]byte, 34<<20+512)
	for i := range full {
		full[i] = byte(r.Uint32()) | 1
	}
	alternating := make([]byte, 66<<20)
	for off := 0; off < len(alternating); off += 8192 {
		alternating[off] = 1
	}
	return map[string][]byte{"scattered": scattered, "full": full, "alternating": alternating, "zeros": make([]byte, 3<<20+1536), "one sector": bytes.Repeat([]byte{7}, 512),
		"data at the end": append(make([]byte, 5<<20), bytes.Repeat([]byte{9}, 512)...)}
}

// memory is a Sink.
type memory struct {
	t    testing.TB
	disk []byte
	at   size.Bytes
}

func (m *memory) Room(off, n size.Bytes) []byte { return make([]byte, min(n, 100000)) }

func (m *memory) Data(off size.Bytes, data []byte) error {
	if off != m.at {
		m.t.Fatalf("data at %d, want %d", off, m.at)
	}
	m.at += size.Bytes(copy(m.disk[off:], data))
	return nil
}

func (m *memory) Zero(off, n size.Bytes) error {
	if off != m.at {
		m.t.Fatalf("zeros at %d, want %d", off, m.at)
	}
	m.at += n
	return nil
}

func read(t testing.TB, archive []byte) ([]byte, error) {
	r, err := Open(io.NopCloser(bytes.NewReader(archive)), archive)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if r.Manifest.Size > 128*size.MiB {
		return nil, errors.New("too large for this test")
	}
	m := &memory{t: t, disk: bytes.Repeat([]byte{0}, int(r.Manifest.Size))}
	if err := r.Copy(t.Context(), m); err != nil {
		return nil, err
	}
	if int(m.at) != len(m.disk) {
		t.Errorf("%d of %d bytes were handed over", m.at, len(m.disk))
	}
	return m.disk, nil
}

func TestRoundTrip(t *testing.T) {
	for name, disk := range disks() {
		t.Run(name, func(t *testing.T) {
			archive := written(t, disk, ranges(used.Range{Length: size.Bytes(len(disk))}))
			got, err := read(t, archive)
			if err != nil || !bytes.Equal(got, disk) {
				t.Errorf("the disk is another: %v", err)
			}
			estimate, err := Estimate(manifest(len(disk)), size.Bytes(len(disk)))
			if err != nil || int(estimate) < len(archive)*95/100 {
				t.Errorf("estimated %d, was %d: %v", estimate, len(archive), err)
			}
		})
	}
}

func TestFreeIsLeftOut(t *testing.T) {
	disk := bytes.Repeat([]byte{3}, 64<<20)
	archive := written(t, disk, ranges(used.Range{Start: 4096, Length: 8192}, used.Range{Start: 40 << 20, Length: 512}))
	if len(archive) > 30000 {
		t.Errorf("it has %d bytes", len(archive))
	}
	want := make([]byte, len(disk))
	copy(want[4096:], disk[:8192])
	copy(want[40<<20:], disk[:512])
	if got, err := read(t, archive); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the disk is another: %v", err)
	}
}

// TestPublicTools has GNU tar, cat and sha256sum read a backup.
func TestPublicTools(t *testing.T) {
	need.Tools(t, "tar", "sha256sum")
	for name, disk := range disks() {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			archive := filepath.Join(dir, "backup.tar")
			if err := os.WriteFile(archive, written(t, disk, ranges(used.Range{Length: size.Bytes(len(disk))})), 0o600); err != nil {
				t.Fatal(err)
			}
			script := `set -e; cd "$1"
				tar -xSf backup.tar && cat disk/* >disk.raw
				head -c -2048 backup.tar >before && sha256sum -c SHA256SUM <before >&2
				grep -qE "\"disk_size\": $(stat -c %s disk.raw),?\$" ganeti-instance-image.json
				sha256sum <disk.raw | cut -d' ' -f1`
			out, err := exec.Command("bash", "-c", script, "-", dir).Output()
			sum := sha256.Sum256(disk)
			if want := hexOf(sum[:]); err != nil || strings.TrimSpace(string(out)) != want {
				t.Errorf("%v: sum %s, want %s", err, out, want)
			}
		})
	}
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var s strings.Builder
	for _, c := range b {
		s.WriteByte(digits[c>>4])
		s.WriteByte(digits[c&15])
	}
	return s.String()
}

func compressed(t testing.TB, plain []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	c, err := NewCompressor(&out)
	if err != nil {
		t.Fatal(err)
	}
	for rest := plain; len(rest) > 0; {
		n, err := c.Write(rest[:min(len(rest), 99999)])
		if err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestCompressed(t *testing.T) {
	need.Tools(t, "zstd")
	for name, disk := range disks() {
		t.Run(name, func(t *testing.T) {
			plain := written(t, disk, ranges(used.Range{Length: size.Bytes(len(disk))}))
			packed := compressed(t, plain)
			if !IsBackup(packed[:min(len(packed), Sniffed)]) || !IsBackup(plain[:512]) || IsBackup(disk[:512]) {
				t.Error("it is not recognised")
			}
			if got, err := read(t, packed); err != nil || !bytes.Equal(got, disk) {
				t.Errorf("the disk is another: %v", err)
			}
			cmd := exec.Command("zstd", "-dc")
			cmd.Stdin = bytes.NewReader(packed)
			if out, err := cmd.Output(); err != nil || !bytes.Equal(out, plain) {
				t.Errorf("zstd reads something else: %v", err)
			}
		})
	}
}

// TestCompressedByOthers has a backup that was compressed again in other frames.
func TestCompressedByOthers(t *testing.T) {
	disk := disks()["scattered"]
	plain := written(t, disk, ranges(used.Range{Length: size.Bytes(len(disk))}))
	half := len(plain) / 2
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	frame := func(b []byte) []byte { return encoder.EncodeAll(b, nil) }
	skipped := append(binary.LittleEndian.AppendUint32([]byte{0x51, 0x2a, 0x4d, 0x18}, 9), "something"...)
	cases := map[string][]byte{
		"one frame":                       frame(plain),
		"a frame of unknown length":       streamed(t, plain),
		"short frames and a long one":     slices.Concat(frame(plain[:1000]), frame(plain[1000:30000]), frame(plain[30000:])),
		"a long frame and a short one":    slices.Concat(frame(plain[:len(plain)-1000]), frame(plain[len(plain)-1000:])),
		"something to skip":               slices.Concat(frame(plain[:half]), skipped, skipped, frame(plain[half:]), skipped),
		"a frame of nothing":              slices.Concat(frame(plain[:1000]), streamed(t, nil), frame(plain[1000:])),
		"frames longer than they need be": slices.Concat(wordy(plain[:frameSize]), wordy(plain[frameSize:2*frameSize]), frame(plain[2*frameSize:])),
	}
	for name, packed := range cases {
		t.Run(name, func(t *testing.T) {
			if got, err := read(t, packed); err != nil || !bytes.Equal(got, disk) {
				t.Errorf("the disk is another: %v", err)
			}
			for _, bad := range [][]byte{packed[:len(packed)-1], slices.Concat(packed, []byte("something else")), packed[:len(packed)/2]} {
				if _, err := read(t, bad); !errors.Is(err, ErrDamaged) {
					t.Errorf("%d bytes of %d: %v", len(bad), len(packed), err)
				}
			}
		})
	}
}

// streamed is a frame that does not say how long its content is.
func streamed(t *testing.T, b []byte) []byte {
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, zstd.WithZeroFrames(true))
	if err != nil {
		t.Fatal(err)
	}
	for len(b) > 0 && err == nil {
		n := min(len(b), 1000)
		_, err = w.Write(b[:n])
		b = b[n:]
	}
	if closed := w.Close(); err != nil || closed != nil {
		t.Fatal(err, closed)
	}
	return out.Bytes()
}

// wordy is a frame with more blocks of nothing than of anything.
func wordy(b []byte) []byte {
	out := append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x80, 0x58}, binary.LittleEndian.AppendUint32(nil, uint32(len(b)))...)
	for len(b) > 0 {
		n := min(len(b), 1000)
		out = append(out, byte(n<<3), byte(n>>5), byte(n>>13))
		out = append(out, b[:n]...)
		for range 100 {
			out = append(out, 0, 0, 0)
		}
		b = b[n:]
	}
	return append(out, 1, 0, 0)
}

// TestInputFails has an input fail in the middle: nobody takes that for damage.
func TestInputFails(t *testing.T) {
	cause := errors.New("cause")
	disk := disks()["full"]
	plain := written(t, disk, ranges(used.Range{Length: size.Bytes(len(disk))}))
	for _, archive := range [][]byte{plain, compressed(t, plain), streamed(t, plain)} {
		r, err := Open(io.NopCloser(io.MultiReader(bytes.NewReader(archive[:len(archive)/2]), iotest.ErrReader(cause))), archive)
		if err == nil {
			err = r.Copy(t.Context(), &memory{t: t, disk: make([]byte, len(disk))})
			r.Close()
		}
		if !errors.Is(err, cause) || errors.Is(err, ErrDamaged) {
			t.Errorf("got %v", err)
		}
	}
}

// TestInputHangs has what sends the backup wait when its beginning was refused.
func TestInputHangs(t *testing.T) {
	rubbish := wordy(bytes.Repeat([]byte("rubbish"), 100))
	for _, head := range [][]byte{rubbish, append(bytes.Clone(rubbish), rubbish[:5]...), make([]byte, 1024)} {
		in, out := io.Pipe()
		go out.Write(head)
		if _, err := Open(in, head); err == nil {
			t.Error("it is taken for a backup")
		}
	}
}

// TestStreamFails has the input fail where the library takes any error for the
// end.
func TestStreamFails(t *testing.T) {
	cause := errors.New("cause")
	archive := append(streamed(t, small(t)), 0x51, 0x2a, 0x4d, 0x18, 100, 0, 0, 0)
	r, err := Open(io.NopCloser(io.MultiReader(bytes.NewReader(archive), iotest.ErrReader(cause))), archive)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Copy(t.Context(), &memory{t: t, disk: make([]byte, r.Manifest.Size)}); !errors.Is(err, cause) || errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
}

// TestLargeWindow has a backup whose frames need more memory than there is for it.
func TestLargeWindow(t *testing.T) {
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, zstd.WithWindowSize(16<<20))
	if err != nil {
		t.Fatal(err)
	}
	plain := small(t)
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	for range 32 {
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := read(t, out.Bytes()); err == nil || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "8 MiB") {
		t.Errorf("got %v", err)
	}
}

func TestCompressedDamage(t *testing.T) {
	good := compressed(t, small(t))
	r := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		cut := r.IntN(len(good))
		if _, err := read(t, good[:cut]); err == nil {
			t.Errorf("cut at %d of %d: not seen", cut, len(good))
		}
	}
	want, err := read(t, good)
	if err != nil {
		t.Fatal(err)
	}
	for range 300 {
		at := r.IntN(len(good) * 8)
		flipped := bytes.Clone(good)
		flipped[at/8] ^= 1 << (at % 8)
		if got, err := read(t, flipped); err == nil && !bytes.Equal(got, want) {
			t.Errorf("bit %d of byte %d of %d: not seen", at%8, at/8, len(good))
		}
	}
}

func TestCompressorEndsEarly(t *testing.T) {
	cause := errors.New("cause")
	c, err := NewCompressor(fails{cause})
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if _, err = c.Write(make([]byte, 1<<20)); err != nil {
			break
		}
	}
	if closed := c.Close(); !errors.Is(err, cause) || !errors.Is(closed, cause) {
		t.Errorf("got %v, then %v", err, closed)
	}
}

func small(t testing.TB) []byte {
	disk := make([]byte, 1<<20)
	for i := range 40 {
		copy(disk[i*20000:], bytes.Repeat([]byte{byte(i)}, 9000))
	}
	return written(t, disk, ranges(used.Range{Length: size.Bytes(len(disk))}))
}

func TestDamage(t *testing.T) {
	good := small(t)
	if _, err := read(t, good); err != nil {
		t.Fatal(err)
	}
	if _, err := read(t, append(bytes.Clone(good), make([]byte, 10240)...)); err != nil {
		t.Errorf("filled up with zeros: %v", err)
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		cut := r.IntN(len(good))
		if _, err := read(t, good[:cut]); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut at %d of %d: %v", cut, len(good), err)
		}
		at := r.IntN(len(good) * 8)
		if r.IntN(2) == 0 { // headers are rare
			at = (r.IntN(4)*(len(good)-4096)/3 + r.IntN(4096)) * 8
		}
		flipped := bytes.Clone(good)
		flipped[at/8] ^= 1 << (at % 8)
		if _, err := read(t, flipped); err == nil {
			t.Errorf("bit %d of byte %d of %d: not seen", at%8, at/8, len(good))
		}
	}
	for _, behind := range [][]byte{{1}, make([]byte, 2<<20)} {
		if _, err := read(t, append(bytes.Clone(good), behind...)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%d bytes behind the end: %v", len(behind), err)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Manifest)
		want   string
	}{
		{"newer", func(m *Manifest) { m.Version = 2 }, "version is 2"},
		{"other", func(m *Manifest) { m.Format = "x" }, "does not say that it is"},
		{"empty", func(m *Manifest) { m.Size = 0 }, "has 0 bytes"},
		{"before time", func(m *Manifest) { m.Created = time.Date(1960, 1, 1, 0, 0, 0, 0, time.UTC) }, "no time"},
		{"behind time", func(m *Manifest) { m.Created = time.Date(2500, 1, 1, 0, 0, 0, 0, time.UTC) }, "no time"},
		{"long name", func(m *Manifest) { m.Instance = strings.Repeat("x", 300) }, "300 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := manifest(512)
			c.change(&m)
			text, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			archive := member(ManifestName, created, text)
			if _, err := Open(io.NopCloser(bytes.NewReader(archive)), archive); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestManifestStaysShort(t *testing.T) {
	m := manifest(512)
	m.Parts = make([]Partition, 100_000)
	text, err := m.encode()
	if err != nil || len(text) > 1000 {
		t.Errorf("it has %d bytes: %v", len(text), err)
	}
	m.Parts = make([]Partition, 10)
	if text, err = m.encode(); err != nil || len(text) < 500 {
		t.Errorf("it has %d bytes: %v", len(text), err)
	}
	if read, err := decodeManifest(text); err != nil || read.Size != 512 {
		t.Errorf("%+v, %v", read, err)
	}
}

func TestErrorsEnd(t *testing.T) {
	disk := bytes.NewReader(make([]byte, 100<<20))
	all := ranges(used.Range{Length: 100 << 20})
	var done atomic.Int64
	cause := errors.New("cause")
	failing := func(yield func(used.Range, error) bool) { yield(used.Range{}, cause) }
	if err := Write(t.Context(), io.Discard, disk, manifest(100<<20), failing, &done); !errors.Is(err, cause) {
		t.Errorf("ranges fail: %v", err)
	}
	short := ranges(used.Range{Start: 99 << 20, Length: 2 << 20})
	if err := Write(t.Context(), io.Discard, disk, manifest(101<<20), short, &done); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short disk: %v", err)
	}
	if err := Write(t.Context(), fails{cause}, bytes.NewReader(bytes.Repeat([]byte{1}, 50<<20)), manifest(50<<20), ranges(used.Range{Length: 50 << 20}), &done); !errors.Is(err, cause) {
		t.Errorf("no room: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if err := Write(ctx, io.Discard, disk, manifest(100<<20), all, &done); !errors.Is(err, cause) {
		t.Errorf("cancelled: %v", err)
	}
}

type fails struct{ err error }

func (f fails) Write([]byte) (int, error) { return 0, f.err }

func FuzzRead(f *testing.F) {
	disk := make([]byte, 64<<10)
	copy(disk[8192:], "some data")
	copy(disk[40960:], "and more")
	plain := written(f, disk, ranges(used.Range{Length: size.Bytes(len(disk))}))
	f.Add(plain)
	f.Add(compressed(f, plain))
	f.Fuzz(func(t *testing.T, archive []byte) { _, _ = read(t, archive) })
}
