package layout

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"testing"

	"ganeti-instance-image/internal/size"
)

// memory is a disk that is zero but for its beginning and its end, and for what
// is written to it.
type memory struct {
	length int64
	writes []Write
}

func newMemory(head, tail []byte, length size.Bytes) *memory {
	head = head[:min(len(head), int(min(length, 1<<20)))]
	tail = tail[:min(len(tail), int(min(length, 1<<20)))]
	return &memory{int64(length), []Write{{Offset: length - size.Bytes(len(tail)), Data: tail}, {Offset: 0, Data: head}}}
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > m.length {
		return 0, io.EOF
	}
	clear(p)
	for _, w := range m.writes {
		from, to := max(off, int64(w.Offset)), min(off+int64(len(p)), int64(w.Offset)+int64(len(w.Data)))
		if from < to {
			copy(p[from-off:to-off], w.Data[from-int64(w.Offset):])
		}
	}
	return len(p), nil
}

// FuzzRead reads hostile tables. Where one can be read and grown, the grown disk
// has the same partitions but for the length of the last one. The input is a
// list of changes to a good table, 9 bytes each: which field, and its value.
func FuzzRead(f *testing.F) {
	bases := [][]byte{gptHead(512), gptHead(4096), mbrHead(), nil}
	for base := range bases {
		f.Add(uint8(base), []byte{}, uint32(64), uint32(64), true)
		f.Add(uint8(base), []byte("\x01\x00\x08\x00\x00\x00\x00\x00\x00\x20\x00\x09\x00\x00\x00\x00\x00\x00"), uint32(3<<20), uint32(1<<20), true)
		f.Add(uint8(base), []byte("\x10\x00\xee\x00\xee\x00\xee\x00\xee\x02\x01\x00\x00\x00\xff\x00\x00\x00"), uint32(64), uint32(4<<20), false)
	}
	f.Fuzz(func(t *testing.T, base uint8, changes []byte, mib, more uint32, repair bool) {
		disk := size.Bytes(mib%(8<<20)) * size.MiB
		head := slices.Clone(bases[int(base)%len(bases)])
		tail := mutate(head, changes)
		if repair {
			repairCRC(head, 512)
			repairCRC(head, 4096)
		}
		before := newMemory(head, tail, disk)
		table, err := Read(before, disk)
		if err != nil {
			if !errors.Is(err, ErrNoTable) && !errors.Is(err, ErrDamaged) {
				t.Fatalf("the error is neither of the two: %v", err)
			}
			return
		}
		larger := disk + size.Bytes(more%(8<<20))*size.MiB
		plan, err := table.Grow(larger)
		if err != nil {
			return
		}
		checkGrown(t, before, table, plan, larger)
	})
}

// mutate applies the changes; a field number of 0xFF ends them, and what is
// left is the end of the disk.
func mutate(head, changes []byte) []byte {
	var fields []int
	for _, sector := range []int{512, 4096} {
		for _, at := range []int{atMyLBA, atAlternate, atFirstUsable, atLastUsable, atEntriesLBA, atCount, atEntrySize} {
			fields = append(fields, sector+at)
		}
		for entry := range 4 {
			fields = append(fields, 2*sector+128*entry, 2*sector+128*entry+32, 2*sector+128*entry+40)
		}
	}
	for _, record := range []int{0, 100, 160} {
		for i := range 4 {
			fields = append(fields, record*512+slotsAt+16*i, record*512+slotsAt+16*i+8)
		}
	}
	for len(changes) >= 9 && changes[0] != 0xFF {
		at := fields[int(changes[0])%len(fields)]
		if at+8 <= len(head) {
			copy(head[at:], changes[1:9])
		}
		changes = changes[9:]
	}
	return changes
}

func checkGrown(t *testing.T, before *memory, table *Table, plan Plan, larger size.Bytes) {
	for _, w := range plan.Writes {
		if w.Offset < 0 || w.Offset+size.Bytes(len(w.Data)) > larger {
			t.Fatalf("%d bytes are written at %d on a disk of %d", len(w.Data), w.Offset, larger)
		}
		for _, p := range table.Partitions {
			if !p.Extended && w.Offset < p.End() && p.Start < w.Offset+size.Bytes(len(w.Data)) {
				t.Fatalf("%d bytes are written at %d, inside of %+v", len(w.Data), w.Offset, p)
			}
		}
	}
	after := &memory{int64(larger), append(slices.Clone(before.writes), plan.Writes...)}
	grown, err := Read(after, larger)
	if err != nil {
		t.Fatalf("the grown disk cannot be read: %v", err)
	}
	want := slices.Clone(table.Partitions)
	for i, p := range want {
		if p.Number == plan.Grown.Number {
			want[i].Length = plan.Grown.Length
		}
		if p.Extended && i < len(grown.Partitions) && plan.Grown.Logical && grown.Partitions[i].Length >= p.Length {
			want[i].Length = grown.Partitions[i].Length
		}
	}
	if !slices.Equal(grown.Partitions, want) {
		t.Fatalf("partitions %+v became %+v", table.Partitions, grown.Partitions)
	}
}

// gptHead is the beginning of a disk with a GPT of two partitions.
func gptHead(sector int) []byte {
	head := make([]byte, 34*512+5*sector)
	copy(head[slotsAt:], []byte{0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF})
	head[510], head[511] = 0x55, 0xAA
	header, entries := head[sector:], head[2*sector:]
	copy(header, "EFI PART\x00\x00\x01\x00\x5c")
	put := binary.LittleEndian.PutUint64
	put(header[atMyLBA:], 1)
	put(header[atAlternate:], uint64(64<<20/sector-1))
	put(header[atFirstUsable:], 34)
	put(header[atLastUsable:], uint64(64<<20/sector-34))
	put(header[atEntriesLBA:], 2)
	binary.LittleEndian.PutUint32(header[atCount:], 128)
	binary.LittleEndian.PutUint32(header[atEntrySize:], 128)
	for i, first := range []uint64{2048, 1024} {
		entry := entries[i*128:]
		copy(entry, "a type of sixteena unique number")
		put(entry[32:], first)
		put(entry[40:], first+1000)
	}
	repairCRC(head, sector)
	return head
}

// mbrHead is the beginning of a disk with an MBR, and two logical partitions.
func mbrHead() []byte {
	head := make([]byte, 200*512)
	entry := func(at, index int, kind byte, start, length uint32) {
		record := head[at*512:]
		record[510], record[511] = 0x55, 0xAA
		raw := record[slotsAt+16*index:]
		raw[4] = kind
		binary.LittleEndian.PutUint32(raw[8:], start)
		binary.LittleEndian.PutUint32(raw[12:], length)
	}
	entry(0, 0, 0x83, 10, 50)
	entry(0, 1, 0x05, 100, 1000)
	entry(100, 0, 0x83, 1, 50)
	entry(100, 1, 0x05, 60, 101)
	entry(160, 0, 0x83, 1, 100)
	return head
}

// repairCRC makes the checksums of a primary GPT right, so that mutations of
// what they protect are looked at.
func repairCRC(head []byte, sector int) {
	if len(head) < 2*sector {
		return
	}
	header := head[sector:]
	count, entrySize := uint64(le.Uint32(header[atCount:])), uint64(le.Uint32(header[atEntrySize:]))
	at := le.Uint64(header[atEntriesLBA:])
	if length := count * entrySize; at < 1000 && length < 1<<20 && at*uint64(sector)+length <= uint64(len(head)) {
		le.PutUint32(header[atEntriesCRC:], crc32.ChecksumIEEE(head[at*uint64(sector):][:length]))
	}
	if headerSize := le.Uint32(header[atHeaderSize:]); headerSize >= headerMin && headerSize <= uint32(min(sector, len(header))) {
		le.PutUint32(header[atHeaderCRC:], headerCRC(header[:headerSize]))
	}
}
