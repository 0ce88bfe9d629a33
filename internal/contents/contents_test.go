package contents

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/lvm"
	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/used"
)

const (
	testStart  = size.MiB
	testLength = 12 * size.MiB
)

// made is a disk with ext4 as its first partition, of 8 MiB, and one of 2 MiB
// with nothing.
func made(t testing.TB, label string) []byte {
	t.Helper()
	need.Tools(t, "sfdisk", "mke2fs")
	if b := madeBefore[label]; b != nil {
		return slices.Clone(b)
	}
	path := filepath.Join(t.TempDir(), "disk")
	sh(t, `truncate -s 12M "$1"; printf 'label: %s\nsize=8M\nsize=2M' "$2" | sfdisk -q "$1"
mke2fs -q -t ext4 -b 4096 -E offset=1048576 "$1" 8M`, path, label)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	madeBefore[label] = b
	return slices.Clone(b)
}

var madeBefore = map[string][]byte{}

func put(b []byte, at size.Bytes, text string) { copy(b[at:], text) }

// slot writes an entry of the boot record, in sectors.
func slot(b []byte, index int, kind byte, start, length uint32) {
	entry := b[446+16*index:][:16]
	entry[4] = kind
	binary.LittleEndian.PutUint32(entry[8:], start)
	binary.LittleEndian.PutUint32(entry[12:], length)
}

// TestDoubts: whatever contradicts what is free has the part or the disk kept.
func TestDoubts(t *testing.T) {
	images := map[string][]byte{"gpt": made(t, "gpt"), "dos": made(t, "dos")}
	for name, c := range map[string]struct {
		label  string
		change func(b []byte)
		why    string // of the first part
		disk   bool   // it is the whole disk
	}{
		"as it is":            {"gpt", func([]byte) {}, "", false},
		"MBR":                 {"dos", func([]byte) {}, "", false},
		"hybrid":              {"gpt", func(b []byte) { slot(b, 1, 0x83, 2048, 16384) }, "", false},
		"another hybrid":      {"gpt", func(b []byte) { slot(b, 1, 0x83, 4096, 8192) }, "its GPT and its MBR name different partitions", true},
		"both GPTs damaged":   {"gpt", func(b []byte) { b[512+60]++; b[testLength-512+60]++ }, "its partition table is damaged", true},
		"overlap":             {"dos", func(b []byte) { slot(b, 1, 0x83, 4096, 2048) }, "its partition table is damaged", true},
		"beyond the end":      {"dos", func(b []byte) { slot(b, 1, 0x83, 20480, 1<<20) }, "its partition table is damaged", true},
		"endless logical":     {"dos", func(b []byte) { slot(b, 1, 5, 20480, 2048); endless(b[20480*512:]) }, "its partition table is damaged", true},
		"a whole XFS too":     {"gpt", func(b []byte) { put(b, 0, "XFSB") }, "it has a partition table, and is xfs as a whole", true},
		"a whole btrfs too":   {"dos", func(b []byte) { put(b, 64*size.KiB+64, "_BHRfS_M") }, "it has a partition table, and is btrfs as a whole", true},
		"a checksum is wrong": {"gpt", func(b []byte) { b[testStart+1024+0x80]++ }, "checksum", false},
		"in use":              {"dos", func(b []byte) { b[testStart+1024+0x60] |= 4 }, "", false},
		"no file system":      {"gpt", func(b []byte) { clear(b[testStart:][:4096]) }, "nothing known is on it", false},
		"a RAID too":          {"gpt", func(b []byte) { put(b, testStart, "\xfc\x4e\x2b\xa9") }, "a RAID too", false},
		"Stratis too":         {"gpt", func(b []byte) { put(b, testStart+512, "!Stra0tis") }, "Stratis too", false},
		"btrfs too":           {"gpt", func(b []byte) { put(b, testStart+64*size.KiB+64, "_BHRfS_M") }, "btrfs too", false},
		"swap too":            {"gpt", func(b []byte) { put(b, testStart+64*size.KiB-10, "SWAPSPACE2") }, "swap space too", false},
		"hibernated too":      {"gpt", func(b []byte) { put(b, testStart+64*size.KiB-10, "S1SUSPEND\x00") }, "swap space too", false},
		"ZFS too":             {"gpt", func(b []byte) { put(b, testStart+140*size.KiB, "\x0c\xb1\xba\x00\x00\x00\x00\x00") }, "ZFS too", false},
		"LVM instead":         {"gpt", func(b []byte) { put(b, testStart+512, "LABELONE"); put(b, testStart+536, "LVM2 001") }, "mark of ext too", false},
		"LUKS instead":        {"gpt", func(b []byte) { put(b, testStart, "LUKS\xba\xbe\x00\x02") }, "crypto_LUKS", false},
	} {
		b := slices.Clone(images[c.label])
		c.change(b)
		d, err := Of(bytes.NewReader(b), testLength)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		part, want := d.Parts[0], Part{Number: 1, Start: testStart, Length: 8 * size.MiB}
		if c.disk {
			want = Part{Length: testLength}
		}
		good := c.why == "" && name != "in use"
		if part.Number != want.Number || part.Start != want.Start || part.Length != want.Length || part.Whole == good ||
			!strings.Contains(part.Why, c.why) || c.disk != (len(d.Parts) == 1) || c.disk != (d.Kind == "") {
			t.Errorf("%s: %+v", name, d)
		}
		if total := sumOf(t, d); (total == testLength) == good {
			t.Errorf("%s: %s are kept", name, total)
		}
	}
}

// endless makes a chain of logical partitions that leads to itself.
func endless(b []byte) {
	slot(b, 0, 0x83, 1, 1)
	slot(b, 1, 5, 0, 100)
	put(b, 510, "\x55\xaa")
}

// TestEmpty has disks of hardly any length, and tables with nothing.
func TestEmpty(t *testing.T) {
	gpt := made(t, "gpt")
	for _, length := range []size.Bytes{0, 1, 511, 512, 1025, 5000} {
		d, err := Of(bytes.NewReader(make([]byte, length)), length)
		if err != nil || len(d.Parts) != 1 || !d.Parts[0].Whole || sumOf(t, d) != length {
			t.Errorf("%s: %+v, %v", length, d, err)
		}
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, gpt, 0o600); err != nil {
		t.Fatal(err)
	}
	sh(t, `sfdisk -q --delete "$1"`, path)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := Of(bytes.NewReader(b), testLength); err != nil || d.Kind != layout.GPT || len(d.Parts) != 0 || sumOf(t, d) != testLength {
		t.Errorf("%+v, %v", d, err)
	}
}

var errBad = errors.New("the disk is bad")

// badDisk cannot be read from a place on.
type badDisk struct {
	io.ReaderAt
	from int64
}

func (d *badDisk) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > d.from {
		return 0, errBad
	}
	return d.ReaderAt.ReadAt(p, off)
}

// TestReadErrors: what cannot be read is no doubt but an error, before and after.
func TestReadErrors(t *testing.T) {
	b := made(t, "dos")
	for _, from := range []size.Bytes{0, 100 * size.KiB, testStart + 100, testStart + 260*size.KiB, 9*size.MiB + 1} {
		if d, err := Of(&badDisk{bytes.NewReader(b), int64(from)}, testLength); !errors.Is(err, errBad) {
			t.Errorf("not readable from %d on: %+v, %v", from, d, err)
		}
	}
	disk := &badDisk{bytes.NewReader(b), int64(testLength)}
	d, err := Of(disk, testLength)
	if err != nil {
		t.Fatal(err)
	}
	disk.from = int64(testStart) + 2000
	if _, err := collect(d); !errors.Is(err, errBad) {
		t.Errorf("not readable any more: %v", err)
	}
	disk.from = int64(testLength)
	clear(b[testStart+4096:][:4096])
	if _, err := collect(d); !errors.Is(err, used.ErrUnsure) {
		t.Errorf("changed: %v", err)
	}
}

// collect wants the sequence to end after an error.
func collect(d *Disk) (list []used.Range, err error) {
	for r, failed := range d.Used() {
		if err != nil {
			return nil, errors.New("there is something after an error")
		}
		if err = failed; err == nil {
			list = append(list, r)
		}
	}
	return list, err
}

// TestStops: who has seen enough gets no more.
func TestStops(t *testing.T) {
	b := made(t, "gpt")
	d, err := Of(bytes.NewReader(b), testLength)
	if err != nil {
		t.Fatal(err)
	}
	all, err := collect(d)
	if err != nil || len(all) < 2 {
		t.Fatal(all, err)
	}
	for n := range all {
		got := 0
		for r := range d.Used() {
			if r != all[got] {
				t.Errorf("%+v, want %+v", r, all[got])
			}
			if got++; got > n {
				break
			}
		}
	}
}

// TestPieces compares with a disk that is counted block by block.
func TestPieces(t *testing.T) {
	const blocks, unit = 300, 64 * size.KiB // longer than what is merged
	for seed := range uint64(500) {
		random := rand.New(rand.NewPCG(seed, 0))
		var want [blocks]bool
		for i := range want {
			want[i] = true
		}
		d := &Disk{Length: blocks * unit}
		logical := random.Perm(8) // of a volume in pieces of 16 blocks; each second one on the disk is another's
		var volume []used.Range
		var inUse [8 * 16]bool
		for at := 0; at < len(inUse); {
			at += random.IntN(9)
			n := min(1+random.IntN(40), len(inUse)-at)
			if n <= 0 {
				break
			}
			volume = append(volume, used.Range{Start: size.Bytes(at) * unit, Length: size.Bytes(n) * unit})
			for i := range n {
				inUse[at+i] = true
			}
			at += n + 1
		}
		for i, l := range logical {
			start := 5 + i*32
			d.pieces = append(d.pieces, piece{size.Bytes(start) * unit, size.Bytes(start+16) * unit, size.Bytes(l*16) * unit, each(volume)})
			for k := range 16 {
				want[start+k] = inUse[l*16+k]
			}
			if i%3 == 0 {
				d.pieces = append(d.pieces, piece{start: size.Bytes(start+16) * unit, end: size.Bytes(start+20) * unit})
				for k := range 4 {
					want[start+16+k] = false
				}
			}
		}
		var got [blocks]bool
		list, err := collect(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list {
			for at := r.Start; at < r.Start+r.Length; at += unit {
				got[at/unit] = true
			}
		}
		if got != want {
			t.Fatalf("seed %d: %v", seed, list)
		}
	}
}

// ranges makes them of pairs of a start and a length.
func ranges(pairs ...size.Bytes) (list []used.Range) {
	for pair := range slices.Chunk(pairs, 2) {
		list = append(list, used.Range{Start: pair[0], Length: pair[1]})
	}
	return list
}

// each is the sequence of a list.
func each(list []used.Range) sequence {
	return func(yield func(used.Range, error) bool) {
		for _, r := range list {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func TestMerger(t *testing.T) {
	const unit = gap
	var got []used.Range
	m := merger{yield: func(r used.Range, _ error) bool { got = append(got, r); return true }}
	for _, r := range ranges(10, 5, 15, 5, 20+unit, 5, 26+2*unit, 4, 10*unit, 0, 26+2*unit, 2, 20*unit, 1) {
		m.add(r.Start, r.Start+r.Length)
	}
	m.flush()
	if want := ranges(0, 25+unit, 26+2*unit, 4, 20*unit, 1); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestSum(t *testing.T) {
	for name, list := range map[string][]used.Range{
		"backwards": ranges(100, 10, 50, 10), "overlapping": ranges(0, 10, 9, 1), "empty": ranges(5, 0), "beyond": ranges(990, 11),
		"negative": ranges(-5, 6), "overflowing": ranges(5, 1<<63-1),
	} {
		if _, err := sum(each(list), 1000); !errors.Is(err, used.ErrUnsure) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestJoined reads a volume in pieces at all places and in all lengths.
func TestJoined(t *testing.T) {
	b := make([]byte, 100)
	for i := range b {
		b[i] = byte(i)
	}
	j := &joined{bytes.NewReader(b), 10, []lvm.Segment{{Start: 50, Length: 7}, {Start: 0, Length: 5}, {Start: 20, Length: 9}}}
	whole := slices.Concat(b[60:67], b[10:15], b[30:39])
	for at := range len(whole) + 3 {
		for n := range len(whole) + 3 {
			p := make([]byte, n)
			got, err := j.ReadAt(p, int64(at))
			want := whole[min(at, len(whole)):min(at+n, len(whole))]
			if !bytes.Equal(p[:got], want) || (err == io.EOF) != (got < n) {
				t.Errorf("%d at %d: %v, %v", n, at, p[:got], err)
			}
		}
	}
	short := &joined{bytes.NewReader(b[:65]), 10, j.segments}
	if n, err := short.ReadAt(make([]byte, 10), 0); n != 5 || err != io.EOF {
		t.Errorf("a disk that ends early: %d, %v", n, err)
	}
}

// TestLine: what an error says of what a guest wrote is one line of ASCII.
func TestLine(t *testing.T) {
	if got := line("a\x1b[31m\nb\u00e4"); got != "a?[31m?b??" {
		t.Errorf("%q", got)
	}
	if got := line(strings.Repeat("x", 1000)); len(got) != 200 {
		t.Errorf("%d bytes", len(got))
	}
}

// FuzzOf changes a few bytes of a disk: what is kept stays in order and on the
// disk, and all outside of partitions is among it.
func FuzzOf(f *testing.F) {
	bases := [][]byte{made(f, "gpt"), made(f, "dos"), made(f, "dos")[testStart:]}
	f.Add(uint8(0), uint32(testStart)+1024+0x60, []byte{4})
	f.Add(uint8(1), uint32(446), []byte{0, 0, 0, 0, 5})
	f.Add(uint8(2), uint32(4096), []byte{1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, which uint8, at uint32, change []byte) {
		b := slices.Clone(bases[int(which)%len(bases)])
		copy(b[min(int(at), len(b)):], change)
		length := size.Bytes(len(b))
		d, err := Of(bytes.NewReader(b), length)
		if err != nil {
			t.Fatal(err)
		}
		list, err := collect(d)
		if err != nil {
			t.Fatal(err)
		}
		end, total := -gap-1, size.Bytes(0)
		for _, r := range list {
			if r.Length <= 0 || r.Start-end <= gap || r.Start > length-r.Length {
				t.Fatalf("%+v after %d of %d", r, end, length)
			}
			end, total = r.Start+r.Length, total+r.Length
		}
		if total < exactly(d) {
			t.Errorf("%d are kept: %+v", total, d.Parts)
		}
	})
}
