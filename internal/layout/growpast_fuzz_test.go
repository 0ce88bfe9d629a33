package layout

import (
	"slices"
	"testing"

	"ganeti-instance-image/internal/size"
)

// FuzzGrowPast grows any partition of a hostile table, with any of the others
// movable. Where that can be planned, the disk has what the plan announces: the
// partitions as they were but for those grown or moved, none over another, and
// no write touched what stays.
func FuzzGrowPast(f *testing.F) {
	bases := [][]byte{gptHead(512), gptHead(4096), mbrHead(), chainHead(), hybridHead()}
	for base := range bases {
		for number := range uint8(8) {
			f.Add(uint8(base), []byte{}, uint32(64), uint32(64), number, uint32(0xFFFFFFFF))
		}
		f.Add(uint8(base), []byte{}, uint32(1), uint32(3), uint8(0), uint32(0xFFFFFFFF))
		f.Add(uint8(base), []byte{}, uint32(64), uint32(4<<20), uint8(1), uint32(0x7F))
		f.Add(uint8(base), []byte("\x1a\x00\xee\x00\x83\x00\x00\x00\x00"), uint32(64), uint32(64), uint8(5), uint32(0xF0))
	}
	f.Fuzz(func(t *testing.T, base uint8, changes []byte, mib, more uint32, which uint8, mask uint32) {
		length := size.Bytes(mib%(8<<20)) * size.MiB
		head := slices.Clone(bases[int(base)%len(bases)])
		tail := mutate(head, changes)
		repairCRC(head, 512)
		repairCRC(head, 4096)
		before := newMemory(head, tail, length)
		table, err := Read(before, length)
		if err != nil || len(table.Partitions) == 0 {
			return
		}
		larger := length + size.Bytes(more%(8<<20))*size.MiB
		number := table.Partitions[int(which)%len(table.Partitions)].Number
		movable := func(p Partition) bool {
			if p.Extended || p.Number == number {
				t.Fatalf("it is asked whether %+v can be moved", p)
			}
			return mask>>(p.Number%32)&1 != 0
		}
		plan, err := table.GrowPast(larger, number, movable)
		if err != nil {
			return
		}
		checkAnnounced(t, before, table, plan, larger)
		for _, m := range plan.Moved {
			if !m.From.Extended && !movable(m.From) {
				t.Fatalf("%+v was moved", m)
			}
		}
	})
}

func checkAnnounced(t *testing.T, before *memory, table *Table, plan Plan, larger size.Bytes) {
	want := announced(t, table, plan)
	for _, w := range plan.Writes {
		if w.Offset < 0 || w.Offset+size.Bytes(len(w.Data)) > larger {
			t.Fatalf("%d bytes are written at %d on a disk of %d", len(w.Data), w.Offset, larger)
		}
		for _, p := range want {
			if p.Number == plan.Grown.Number {
				old, _ := table.Find(p.Number)
				p.Length = old.Length // what was behind it may be cleared
			}
			if !p.Extended && w.Offset < p.End() && p.Start < w.Offset+size.Bytes(len(w.Data)) {
				t.Fatalf("%d bytes are written at %d, inside of %+v", len(w.Data), w.Offset, p)
			}
		}
	}
	after := &memory{int64(larger), append(slices.Clone(before.writes), plan.Writes...)}
	grown, err := Read(after, larger) // refuses what overlaps
	if err != nil {
		t.Fatalf("the grown disk cannot be read: %v", err)
	}
	for i, p := range want {
		if p.Extended && plan.Grown.Logical && i < len(grown.Partitions) && grown.Partitions[i].Length >= p.Length {
			want[i].Length = grown.Partitions[i].Length // it grows with what is in it
		}
	}
	if !slices.Equal(grown.Partitions, want) {
		t.Fatalf("partitions %+v became %+v, not %+v", table.Partitions, grown.Partitions, want)
	}
}

// announced is what the plan says that the partitions become.
func announced(t *testing.T, table *Table, plan Plan) []Partition {
	want := slices.Clone(table.Partitions)
	for i, p := range want {
		if p.Number == plan.Grown.Number {
			want[i].Length = plan.Grown.Length
			if plan.Grown.Length-p.Length < minGain || plan.Grown != want[i] {
				t.Fatalf("%+v became %+v", p, plan.Grown)
			}
		}
		for _, m := range plan.Moved {
			if m.From == p {
				want[i].Start = m.To.Start
				if m.To.Start <= p.Start || m.To != want[i] || plan.Grown.Number == 0 {
					t.Fatalf("%+v became %+v", p, m.To)
				}
			}
		}
	}
	if !slices.IsSortedFunc(plan.Moved, func(a, b Move) int { return int((b.From.Start - a.From.Start) / 512) }) {
		t.Fatalf("the order is wrong: %+v", plan.Moved)
	}
	return want
}

// putEntry writes an entry of a boot record.
func putEntry(head []byte, at, index int, kind byte, start, length uint32) {
	record := head[at*512:]
	record[510], record[511] = 0x55, 0xAA
	raw := record[slotsAt+16*index:]
	raw[4] = kind
	le.PutUint32(raw[8:], start)
	le.PutUint32(raw[12:], length)
}

// chainHead is the beginning of a disk whose MBR has a primary partition in
// front of an extended one with two logical partitions, and one behind it.
func chainHead() []byte {
	head := make([]byte, 200*512)
	putEntry(head, 0, 0, 0x83, 10, 50)
	putEntry(head, 0, 1, 0x0F, 100, 1000)
	putEntry(head, 0, 2, 0x82, 2000, 1000)
	putEntry(head, 100, 0, 0x83, 1, 50)
	putEntry(head, 100, 1, 0x05, 60, 101)
	putEntry(head, 160, 0, 0x82, 1, 100)
	return head
}

// hybridHead is the beginning of a disk whose GPT has a hybrid MBR in front.
func hybridHead() []byte {
	head := gptHead(512)
	putEntry(head, 0, 0, typeProtective, 1, 1023)
	putEntry(head, 0, 1, 0x83, 1024, 1001)
	putEntry(head, 0, 2, 0x83, 2048, 1001)
	putEntry(head, 0, 3, typeProtective, 3049, 128<<10-3049)
	return head
}
