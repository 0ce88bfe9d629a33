package used

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

// swapHeader returns the first bytes of swap space with that many pages, full of
// what was swapped out.
func swapHeader(order binary.ByteOrder, page, pages int) []byte {
	b := bytes.Repeat([]byte("secret! "), 80<<10/8)
	clear(b[:page])
	order.PutUint32(b[1024:], 1)
	order.PutUint32(b[1028:], uint32(pages-1))
	copy(b[page-10:], "SWAPSPACE2")
	return b
}

func swapRanges(t testing.TB, r io.ReaderAt, length size.Bytes) ([]Range, error) {
	t.Helper()
	ranges, err := Swap(r, length)
	if err != nil {
		return nil, err
	}
	for range ranges { // stops early without a panic
		break
	}
	var all []Range
	end := size.Bytes(-1)
	for r, err := range ranges {
		if err != nil {
			t.Fatal(err)
		}
		if r.Start <= end || r.Length <= 0 || r.Start+r.Length > length {
			t.Fatalf("%+v comes after %d, of %d", r, end, length)
		}
		end = r.Start + r.Length
		all = append(all, r)
	}
	return all, nil
}

func TestSwap(t *testing.T) {
	for page := 4096; page <= 65536; page *= 2 {
		for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
			b := swapHeader(order, page, 100)
			whole := size.Bytes(100 * page)
			for length, want := range map[size.Bytes][]Range{
				whole:         {{0, size.Bytes(page)}},
				whole + 12345: {{0, size.Bytes(page)}, {whole, 12345}},
			} {
				if got, err := swapRanges(t, bytes.NewReader(b), length); err != nil || !slices.Equal(got, want) {
					t.Errorf("page %d, %v: %v %v, want %v", page, order, got, err, want)
				}
			}
			if _, err := Swap(bytes.NewReader(b), whole-1); !errors.Is(err, ErrUnsure) {
				t.Errorf("page %d, too short: %v", page, err)
			}
		}
	}
}

// A page that was swapped out may end with the mark too.
func TestSwapTwoMarks(t *testing.T) {
	b := swapHeader(binary.LittleEndian, 4096, 100)
	copy(b[16384-10:], "SWAPSPACE2")
	got, err := swapRanges(t, bytes.NewReader(b), 100*16384)
	if want := []Range{{0, 16384}, {100 * 4096, 300 * 4096}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v %v, want %v", got, err, want)
	}
	b = swapHeader(binary.LittleEndian, 4096, 3)
	copy(b[16384-10:], "SWAPSPACE2")
	got, err = swapRanges(t, bytes.NewReader(b), 100*4096)
	if want := []Range{{0, 100 * 4096}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v %v, want %v", got, err, want)
	}
}

func TestSwapUnsure(t *testing.T) {
	for name, change := range map[string]func(b []byte){
		"no mark":        func(b []byte) { clear(b[4086:4096]) },
		"old mark":       func(b []byte) { copy(b[4086:], "SWAP-SPACE") },
		"version":        func(b []byte) { b[1024] = 2 },
		"no page":        func(b []byte) { b[1028] = 0 },
		"bad pages":      func(b []byte) { b[1033] = 9 },
		"too large":      func(b []byte) { b[1031] = 0xff },
		"hibernated":     func(b []byte) { copy(b[4086:], "S1SUSPEND\x00") },
		"hibernated 2":   func(b []byte) { copy(b[4086:], "S2SUSPEND\x00") },
		"uswsusp":        func(b []byte) { copy(b[4086:], "ULSUSPEND\x00") },
		"hibernated old": func(b []byte) { copy(b[4086:], "LINHIB0001") },
		"TuxOnIce":       func(b []byte) { copy(b, swapTuxOnIce) },
		"both":           func(b []byte) { copy(b[65526:], "S1SUSPEND\x00") },
		"RAID":           func(b []byte) { copy(b[4096:], "\xfc\x4e\x2b\xa9") },
		"btrfs":          func(b []byte) { copy(b[65600:], "_BHRfS_M") },
		"LUKS":           func(b []byte) { copy(b, "LUKS\xba\xbe") },
	} {
		b := swapHeader(binary.LittleEndian, 4096, 100)
		change(b)
		if _, err := Swap(bytes.NewReader(b), 100*4096); !errors.Is(err, ErrUnsure) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, length := range []size.Bytes{0, 1, 1024, 4095, 4096} {
		if _, err := Swap(bytes.NewReader(swapHeader(binary.LittleEndian, 4096, 100)), length); !errors.Is(err, ErrUnsure) {
			t.Errorf("%d bytes: %v", length, err)
		}
	}
	if _, err := Swap(strings.NewReader("short"), 1<<20); !errors.Is(err, io.EOF) || errors.Is(err, ErrUnsure) {
		t.Errorf("a read error: %v", err)
	}
}

// What mkswap makes, and a copy of what is kept, which swaplabel still knows.
func TestSwapByTools(t *testing.T) {
	need.Tools(t, "mkswap", "swaplabel")
	const length = 20*size.MiB + 512
	for _, page := range []int{4096, 8192, 16384, 65536} {
		dir := t.TempDir()
		path, kept := filepath.Join(dir, "swap"), filepath.Join(dir, "kept")
		if err := os.WriteFile(path, bytes.Repeat([]byte{0xaa}, int(length)), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("/sbin/mkswap", "-p", strconv.Itoa(page), "-L", "label", path).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		ranges, err := swapRanges(t, bytes.NewReader(b), length)
		if want := []Range{{0, size.Bytes(page)}, {20 * size.MiB, 512}}; err != nil || !slices.Equal(ranges, want) {
			t.Errorf("got %v %v, want %v", ranges, err, want)
		}
		clear(b[page : 20*size.MiB])
		if err := os.WriteFile(kept, b, 0o600); err != nil {
			t.Fatal(err)
		}
		before, err1 := exec.Command("/sbin/swaplabel", path).Output()
		after, err2 := exec.Command("/sbin/swaplabel", kept).Output()
		if err := errors.Join(err1, err2); err != nil || !bytes.Contains(after, []byte("label")) || !bytes.Equal(before, after) {
			t.Errorf("%v: %s became %s", err, before, after)
		}
	}
}

// FuzzSwap changes a good header: 6 bytes each are a place and what to put there.
func FuzzSwap(f *testing.F) {
	f.Add(uint8(0), uint32(0), []byte{})
	f.Add(uint8(4), uint32(5000), []byte("\x10\x00\x04\x00\x00\x00"))
	f.Add(uint8(1), uint32(1<<31), []byte("\x0f\xf6SWAP\x0f\xfaSPAC\x0f\xfcACE2"))
	f.Fuzz(func(t *testing.T, page uint8, more uint32, changes []byte) {
		b := swapHeader(binary.LittleEndian, 4096<<(page%5), 100)
		for ; len(changes) >= 6; changes = changes[6:] {
			copy(b[binary.BigEndian.Uint16(changes):], changes[2:6])
		}
		length := size.Bytes(more)
		r := &swapMemory{b, length}
		got, err := swapRanges(t, r, length)
		switch {
		case err != nil && !errors.Is(err, ErrUnsure):
			t.Error(err)
		case err == nil && (got[0].Start != 0 || got[0].Length < 4096):
			t.Errorf("the header is not kept: %v", got)
		}
	})
}

// swapMemory is a disk that begins with some bytes; the rest is zeros.
type swapMemory struct {
	head   []byte
	length size.Bytes
}

func (m *swapMemory) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > int64(m.length) {
		return 0, io.EOF
	}
	clear(p)
	if off < int64(len(m.head)) {
		copy(p, m.head[off:])
	}
	return len(p), nil
}
