package deploy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/image"
	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/size"
)

var _ Target = (*block.Device)(nil)

// old is what a disk has in every byte before it is written.
const old = 0xaa

func tool(t testing.TB, argv ...string) string {
	t.Helper()
	result, err := run.Cmd{What: "prepare the test", Argv: argv}.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(result.Stdout))
}

// content is a disk with noise, text, and zeros in runs short and long.
func content(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(5, uint64(n)))
	for at := 0; at < n; {
		end := min(at+1+r.IntN(1<<(8+r.IntN(13))), n)
		kind := r.IntN(3)
		for ; at < end; at++ {
			switch kind {
			case 0:
				b[at] = byte(r.Uint32())
			case 1:
				b[at] = "All happy families are alike. "[at%30]
			}
		}
	}
	copy(b, "a boot sector")
	copy(b[n-20:], "the end of the disk.")
	return b
}

func writeFile(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string) image.Image {
	t.Helper()
	source := openSource(t, path)
	img, ok := source.(image.Image)
	if !ok {
		t.Fatalf("%s is a %T", path, source)
	}
	return img
}

func openSource(t testing.TB, path string) image.Source {
	t.Helper()
	source, err := image.Open(path, image.TypeQEMU)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { source.Close() })
	return source
}

// usedDisk is a regular file that is full of something old.
func usedDisk(t testing.TB, n int) *block.Device {
	t.Helper()
	return openDisk(t, writeFile(t, "disk", bytes.Repeat([]byte{old}, n)))
}

func openDisk(t testing.TB, path string) *block.Device {
	t.Helper()
	disk, err := block.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { disk.Close() })
	return disk
}

func read(t testing.TB, disk Target) []byte {
	t.Helper()
	b := make([]byte, disk.Size())
	if _, err := disk.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func isAll(b []byte, want byte) bool { return len(bytes.Trim(b, string([]byte{want}))) == 0 }

// wantEnds checks that the disk shows neither the old system nor a new one.
func wantEnds(t *testing.T, disk Target) {
	t.Helper()
	b := read(t, disk)
	n := min(len(b), 1<<20)
	if !isAll(b[:n], 0) {
		t.Error("the beginning of the disk is not zero")
	}
	if !isAll(b[len(b)-n:], 0) {
		t.Error("the end of the disk is not zero")
	}
}

// deployTo writes and commits, and compares the disk with what it should be.
func deployTo(t *testing.T, source image.Source, disk Target, want []byte) {
	t.Helper()
	written, err := write(t.Context(), source, disk)
	if err != nil {
		t.Fatal(err)
	}
	wantEnds(t, disk)
	got := read(t, disk)
	if from, to := 1<<20, min(len(want), len(got)-1<<20); from < to && !bytes.Equal(got[from:to], want[from:to]) {
		t.Error("the middle of the disk differs from the image before the commit")
	}
	ahead := make([]byte, written.Size())
	if _, err := written.ReadAt(ahead, 0); err != nil || !bytes.Equal(ahead, want) {
		t.Errorf("what the disk will be differs from the image, %v", err)
	}
	if err := written.Commit(); err != nil {
		t.Fatal(err)
	}
	got = read(t, disk)
	if !bytes.Equal(got[:len(want)], want) {
		t.Error("the disk differs from the image")
	}
	rest := got[len(want):]
	near := min(len(rest), 1<<20)
	if !isAll(rest[:near], 0) || !isAll(rest[len(rest)-near:], 0) {
		t.Error("there is something old right behind the image or at the disk's end")
	}
	if f, ok := disk.(fileTarget); ok && f.IsFile() && !isAll(rest, 0) {
		t.Error("there is something old behind the image in a regular file")
	}
}

func write(ctx context.Context, source image.Source, disk Target) (*Written, error) {
	if s, ok := source.(*image.Stream); ok {
		return WriteStream(ctx, s, disk)
	}
	return Write(ctx, source.(image.Image), disk)
}

func TestWriteQCOW2(t *testing.T) {
	need.Tools(t, "qemu-img")
	variants := []string{
		"compat=0.10", "compat=1.1", "compat=0.10 -c", "compat=1.1 -c", "compression_type=zstd -c",
		"cluster_size=2M", "cluster_size=2M -c", "cluster_size=2M,compression_type=zstd -c",
		"extended_l2=on", "extended_l2=on -c", "preallocation=metadata",
	}
	for bits := 9; bits < 21; bits++ {
		variants = append(variants, fmt.Sprintf("cluster_size=%d", 1<<bits))
	}
	data := content(5<<20 + 512)
	raw := writeFile(t, "source.raw", data)
	for _, v := range variants {
		t.Run(v, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image.qcow2")
			argv := append([]string{"qemu-img", "convert", "-O", "qcow2", "-o"}, strings.Fields(v)...)
			tool(t, append(argv, raw, path)...)
			tool(t, "qemu-img", "convert", "-O", "raw", path, path+".raw")
			want, err := os.ReadFile(path + ".raw")
			if err != nil || !bytes.Equal(want, data) {
				t.Fatalf("qemu-img changed the data, %v", err)
			}
			for _, more := range []int{0, 512, 1<<20 - 512, 9<<20 + 1024} {
				deployTo(t, open(t, path), usedDisk(t, len(data)+more), want)
			}
		})
	}
}

// Images that are shorter than what is held back at each end.
func TestWriteShortImages(t *testing.T) {
	for _, n := range []int{512, 1024, 65536, 1<<20 - 512, 1 << 20, 1<<20 + 512, 2<<20 - 512, 2 << 20, 2<<20 + 512, 3<<20 + 512} {
		for _, more := range []int{0, 512, 3 << 20} {
			data := content(n)
			deployTo(t, open(t, writeFile(t, "image", data)), usedDisk(t, n+more), data)
		}
	}
}

func TestWriteSparse(t *testing.T) {
	need.Tools(t, "fallocate")
	path := writeFile(t, "image", content(40<<20))
	tool(t, "fallocate", "--dig-holes", path)
	tool(t, "fallocate", "--punch-hole", "--offset", "5000000", "--length", "20000000", path)
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	deployTo(t, open(t, path), usedDisk(t, len(want)), want)
}

func TestWriteBlockDevice(t *testing.T) {
	need.Root(t)
	need.Tools(t, "losetup", "qemu-img")
	need.File(t, "/dev/loop-control")
	data := content(7<<20 + 4096)
	raw := writeFile(t, "source.raw", data)
	tool(t, "qemu-img", "convert", "-c", "-O", "qcow2", raw, raw+".qcow2")
	for _, sector := range []string{"512", "4096"} {
		backing := writeFile(t, "disk", bytes.Repeat([]byte{old}, 12<<20))
		loop := tool(t, "losetup", "--find", "--show", "--sector-size", sector, backing)
		t.Cleanup(func() { tool(t, "losetup", "--detach", loop) })
		deployTo(t, open(t, raw+".qcow2"), openDisk(t, loop), data)
	}
}

func TestImageLargerThanTheDisk(t *testing.T) {
	img, disk := open(t, writeFile(t, "image", content(3<<20))), usedDisk(t, 3<<20-512)
	_, err := Write(t.Context(), img, disk)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"needs 3 MiB (3145728 bytes)", "the disk has 3 MiB (3145216 bytes)"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if !isAll(read(t, disk), old) {
		t.Error("the disk was written")
	}
}

// damaged is an image of compressed clusters in which one in the middle does
// not decode.
func damaged(t *testing.T, options string) string {
	raw := writeFile(t, "source.raw", bytes.Repeat(content(1<<20), 12))
	path := raw + ".qcow2"
	tool(t, "qemu-img", "convert", "-c", "-O", "qcow2", "-o", options, raw, path)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(data[len(data)/2:], bytes.Repeat([]byte{0xff}, 200_000))
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDamagedCluster(t *testing.T) {
	need.Tools(t, "qemu-img")
	for _, options := range []string{"compression_type=zlib", "compression_type=zstd"} {
		disk := usedDisk(t, 13<<20)
		_, err := Write(t.Context(), open(t, damaged(t, options)), disk)
		if err == nil || !strings.Contains(err.Error(), "of its disk: its compressed data is damaged") {
			t.Errorf("%s: %v", options, err)
		}
		wantEnds(t, disk)
	}
}

func TestImageCutOffWhileItIsRead(t *testing.T) {
	need.Tools(t, "qemu-img")
	raw := writeFile(t, "source.raw", content(12<<20))
	tool(t, "qemu-img", "convert", "-O", "qcow2", raw, raw+".qcow2")
	img, disk := open(t, raw+".qcow2"), usedDisk(t, 13<<20)
	cut := &hooked{Image: img, at: 4 << 20, call: func() { _ = os.Truncate(raw+".qcow2", 1<<20) }}
	_, err := Write(t.Context(), cut, disk)
	if err == nil || !strings.Contains(err.Error(), "unexpected EOF") {
		t.Errorf("got %v", err)
	}
	wantEnds(t, disk)
}

// compressors make a compressed file of $1 as $2; parts are what can be decoded
// by itself.
var compressors = map[string]string{
	"gzip":             `gzip -c "$1" > "$2"`,
	"gzip, two":        `head -c 3000001 "$1" | gzip -c > "$2"; tail -c +3000002 "$1" | gzip -c >> "$2"`,
	"xz":               `xz -T1 -c "$1" > "$2"`,
	"xz, parts":        `xz -0 -T2 --block-size=1000003 -c "$1" > "$2"`,
	"xz, parts of two": `head -c 3000001 "$1" | xz -0 --block-size=1MiB -c > "$2"; tail -c +3000002 "$1" | xz -0 --block-size=70001 -c >> "$2"`,
	"zstd":             `zstd -q -c "$1" > "$2"`,
	"bzip2":            `bzip2 -1 -c "$1" > "$2"`,
	"lz4":              `lz4 -q -c "$1" > "$2"`,
}

func compress(t *testing.T, how, path string) string {
	t.Helper()
	need.Tools(t, "bash", "gzip", "xz", "zstd", "bzip2", "lz4")
	tool(t, "bash", "-euc", compressors[how], "-", path, path+".packed")
	return path + ".packed"
}

func TestWriteStream(t *testing.T) {
	for how := range compressors {
		t.Run(how, func(t *testing.T) {
			for _, n := range []int{512, 4<<20 + 512} {
				data := content(n)
				packed := compress(t, how, writeFile(t, "source.raw", data))
				for _, more := range []int{0, 1<<20 - 512, 3 << 20} {
					deployTo(t, openSource(t, packed), usedDisk(t, n+more), data)
				}
			}
		})
	}
}

// A stream's length need not be a whole sector's.
func TestWriteStreamFillsUp(t *testing.T) {
	for _, n := range []int{513, 1023, 1<<20 - 1, 1<<20 + 1, 5<<20 + 100} {
		data := content(n + 600)[:n]
		data[0] = 0xEB // no text
		packed := compress(t, "xz, parts", writeFile(t, "source.raw", data))
		want := append(data, make([]byte, (512-n%512)%512)...)
		for _, more := range []int{0, 512, 4 << 20} {
			deployTo(t, openSource(t, packed), usedDisk(t, len(want)+more), want)
		}
	}
}

// An image that unpacks to more than the disk has ends where the disk does.
func TestStreamLargerThanTheDisk(t *testing.T) {
	for how := range compressors {
		for _, less := range []int{512, 1 << 20} {
			packed := compress(t, how, writeFile(t, "source.raw", content(4<<20)))
			disk := usedDisk(t, 4<<20-less)
			_, err := WriteStream(t.Context(), openSource(t, packed).(*image.Stream), disk)
			if err == nil || !errors.As(err, new(*DiskError)) {
				t.Errorf("%s: %v", how, err)
			}
			if b := read(t, disk); !isAll(b, old) {
				wantEnds(t, disk) // its size was not known
			}
		}
	}
}

func TestDamagedStream(t *testing.T) {
	for how := range compressors {
		packed := compress(t, how, writeFile(t, "source.raw", content(4<<20)))
		whole, err := os.ReadFile(packed)
		if err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{
			"cut": whole[:len(whole)*3/4],
			"end": whole[:len(whole)-3],
			"bit": append(append(bytes.Clone(whole[:len(whole)*2/3]), whole[len(whole)*2/3]^4), whole[len(whole)*2/3+1:]...),
		} {
			if err := os.WriteFile(packed, data, 0o600); err != nil {
				t.Fatal(err)
			}
			disk := usedDisk(t, 5<<20)
			source, err := image.Open(packed, image.TypeQEMU)
			if err == nil {
				_, err = WriteStream(t.Context(), source.(*image.Stream), disk)
				source.Close()
			}
			if err == nil {
				t.Errorf("%s, %s: no error", how, name)
			}
			if b := read(t, disk); !isAll(b, old) {
				wantEnds(t, disk)
			}
		}
	}
}

func TestStreamCancelled(t *testing.T) {
	cause := errors.New("asked to stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	for _, how := range []string{"gzip", "xz, parts"} {
		packed := compress(t, how, writeFile(t, "source.raw", content(8<<20)))
		disk := usedDisk(t, 8<<20)
		if _, err := WriteStream(ctx, openSource(t, packed).(*image.Stream), disk); !errors.Is(err, cause) {
			t.Errorf("%s: got %v", how, err)
		}
		wantEnds(t, disk)
	}
}

func TestStreamWriteFails(t *testing.T) {
	for _, how := range []string{"zstd", "xz, parts"} {
		packed := compress(t, how, writeFile(t, "source.raw", content(12<<20)))
		disk := usedDisk(t, 12<<20)
		if _, err := WriteStream(t.Context(), openSource(t, packed).(*image.Stream), full{disk, 5 << 20}); !errors.Is(err, errFull) {
			t.Errorf("%s: got %v", how, err)
		}
		wantEnds(t, disk)
	}
}

// hooked calls something when the image is read at an offset or behind it, but
// before its last MiB.
type hooked struct {
	image.Image
	at     int64
	call   func()
	called atomic.Bool
}

func (h *hooked) ReadAt(p []byte, off int64) (int, error) {
	if off >= h.at && size.Bytes(off) < h.Size()-held && !h.called.Swap(true) {
		h.call()
	}
	return h.Image.ReadAt(p, off)
}

func TestCancelled(t *testing.T) {
	cause := errors.New("asked to stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	disk := usedDisk(t, 64<<20)
	img := &hooked{Image: open(t, writeFile(t, "image", content(64<<20))), at: 20 << 20, call: func() { cancel(cause) }}
	_, err := Write(ctx, img, disk)
	if !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
	wantEnds(t, disk)
	if b := read(t, disk); !isAll(b[50<<20:62<<20], old) {
		t.Error("it went on after it was told to stop")
	}
}

// full is a disk that fails from an offset on.
type full struct {
	*block.Device
	from int64
}

var errFull = errors.New("no space left")

func (f full) WriteAt(p []byte, off int64) (int, error) {
	if off >= f.from {
		return 0, errFull
	}
	return f.Device.WriteAt(p, off)
}

func TestWriteFails(t *testing.T) {
	disk := usedDisk(t, 12<<20)
	_, err := Write(t.Context(), open(t, writeFile(t, "image", content(12<<20))), full{disk, 5 << 20})
	if !errors.Is(err, errFull) || !errors.As(err, new(*DiskError)) || !strings.Contains(err.Error(), "cannot write the disk at offset") {
		t.Errorf("got %v", err)
	}
	wantEnds(t, disk)
}

// When the end of the image cannot be written, its beginning is not.
func TestCommitFails(t *testing.T) {
	disk := usedDisk(t, 12<<20)
	written, err := Write(t.Context(), open(t, writeFile(t, "image", content(12<<20))), full{disk, 11 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if err := written.Commit(); !errors.Is(err, errFull) || !errors.As(err, new(*DiskError)) {
		t.Errorf("got %v", err)
	}
	wantEnds(t, disk)
}

// eager counts what it was asked to store early.
type eager struct {
	*block.Device
	started *atomic.Int64
}

func (e eager) StartWriteback(_, n size.Bytes) { e.started.Add(int64(n)) }

func TestStartsWriteback(t *testing.T) {
	data := bytes.Repeat([]byte{1}, 12<<20)
	disk := eager{usedDisk(t, len(data)), new(atomic.Int64)}
	deployTo(t, open(t, writeFile(t, "image", data)), disk, data)
	if got := disk.started.Load(); got != 10<<20 {
		t.Errorf("%d bytes, want all but the first and the last MiB", got)
	}
}
