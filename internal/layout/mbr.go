package layout

import (
	"fmt"
	"io"
	"slices"

	"ganeti-instance-image/internal/size"
)

const (
	slotsAt     = 446
	slotSize    = 16
	mbrSector   = size.Bytes(512)
	logicalsMax = 128 // bounds a chain that a hostile table makes endless
)

// mbrTable is where an MBR's entries stand.
type mbrTable struct {
	places   map[int]place            // by partition number
	sectors  map[int64][bootSize]byte // the boot record and the extended ones, by sector
	extended int                      // the number of the extended partition, or 0
}

// place is where a partition's entry stands.
type place struct {
	sector int64  // of the boot record that holds it
	index  int    // 0 to 3
	from   *place // a logical one: the link that leads to its boot record; nil for the first
}

// slot is one of the four entries of a boot record. It counts sectors.
type slot struct {
	active        bool
	kind          byte
	start, length int64
}

// bootSlots reads the four entries of a boot record. It has none (false) without
// the signature, or where a byte that must be a flag is not: then it is the
// boot code of a filesystem that fills the disk.
func bootSlots(boot []byte) ([]slot, bool) {
	if boot[510] != 0x55 || boot[511] != 0xAA {
		return nil, false
	}
	slots := make([]slot, 4)
	for i := range slots {
		raw := boot[slotsAt+i*slotSize:][:slotSize]
		if raw[0]&0x7f != 0 {
			return nil, false
		}
		slots[i] = slot{raw[0] != 0, raw[4], int64(le.Uint32(raw[8:])), int64(le.Uint32(raw[12:]))}
	}
	return slots, true
}

// setLength gives an entry of a boot record another length; start is where the
// partition begins on the disk, which for a logical one the entry does not say.
func setLength(boot []byte, index int, start, length int64) {
	raw := boot[slotsAt+index*slotSize:][:slotSize]
	le.PutUint32(raw[12:], uint32(length))
	if raw[5] == 0xFF && raw[6] == 0xFF && raw[7] == 0xFF {
		return // says "look at the sector numbers" already
	}
	copy(raw[5:8], chs(start+length-1))
}

// chs is the address of a sector for a BIOS of old, in the geometry that all
// tools suppose; the highest one it can say stands for all beyond.
func chs(sector int64) []byte {
	const heads, perTrack, cylinders = 255, 63, 1024
	c, h, s := sector/(heads*perTrack), sector/perTrack%heads, sector%perTrack+1
	if c >= cylinders {
		c, h, s = cylinders-1, heads-1, perTrack
	}
	return []byte{byte(h), byte(s) | byte(c>>8<<6), byte(c)}
}

func isExtended(kind byte) bool { return kind == 0x05 || kind == 0x0F || kind == 0x85 }

func (t *Table) readMBR(r io.ReaderAt, disk size.Bytes, slots []slot) error {
	t.Kind = MBR
	t.DiskID = le.Uint32(t.boot[440:])
	t.mbr = &mbrTable{places: map[int]place{}, sectors: map[int64][bootSize]byte{0: t.boot}}
	sectors := int64(disk / mbrSector)
	for i, s := range slots {
		if s.length == 0 {
			continue
		}
		if s.start < 1 || s.start+s.length > sectors {
			return fmt.Errorf("%w: partition %d (%d sectors from %d on) is not within the disk's %d sectors", ErrDamaged, i+1, s.length, s.start, sectors)
		}
		p := s.partition(i+1, s.start)
		p.Extended = isExtended(s.kind)
		if p.Extended && t.mbr.extended != 0 {
			return fmt.Errorf("%w: partitions %d and %d are both extended ones", ErrDamaged, t.mbr.extended, i+1)
		}
		if p.Extended {
			t.mbr.extended = i + 1
		}
		t.mbr.places[i+1] = place{sector: 0, index: i}
		t.Partitions = append(t.Partitions, p)
	}
	if n := t.mbr.extended; n != 0 {
		return t.readLogicals(r, slots[n-1])
	}
	return nil
}

func (s slot) partition(number int, start int64) Partition {
	return Partition{
		Number: number,
		Start:  size.Bytes(start) * mbrSector,
		Length: size.Bytes(s.length) * mbrSector,
		Type:   fmt.Sprintf("%02x", s.kind),
		Active: s.active,
	}
}

// readLogicals follows the chain of boot records in the extended partition, and
// numbers what it finds as Linux does.
func (t *Table) readLogicals(r io.ReaderAt, extended slot) error {
	end, number := extended.start+extended.length, 5
	at, from := extended.start, (*place)(nil)
	for {
		if _, seen := t.mbr.sectors[at]; seen || len(t.mbr.sectors) > logicalsMax {
			return fmt.Errorf("%w: the chain of logical partitions does not end", ErrDamaged)
		}
		var record [bootSize]byte
		if err := readFull(r, record[:], at*int64(mbrSector)); err != nil {
			return err
		}
		slots, ok := bootSlots(record[:])
		if !ok && from == nil {
			return nil // an extended partition in which nothing was ever made
		}
		if !ok {
			return fmt.Errorf("%w: the boot record of logical partition %d, at sector %d, is not one", ErrDamaged, number, at)
		}
		t.mbr.sectors[at] = record
		link, data := chainSlots(slots)
		if data >= 0 {
			s := slots[data]
			if s.start < 1 || at+s.start+s.length > end {
				return fmt.Errorf("%w: logical partition %d is not within the extended one", ErrDamaged, number)
			}
			p := s.partition(number, at+s.start)
			p.Logical = true
			t.mbr.places[number] = place{sector: at, index: data, from: from}
			t.Partitions = append(t.Partitions, p)
			number++
		}
		if link < 0 {
			return nil
		}
		from = &place{sector: at, index: link}
		at = extended.start + slots[link].start
		if at >= end {
			return fmt.Errorf("%w: the chain of logical partitions leaves the extended one", ErrDamaged)
		}
	}
}

// chainSlots finds the entry that is a logical partition and the one that leads
// on to the next; -1 where there is none.
func chainSlots(slots []slot) (link, data int) {
	link = slices.IndexFunc(slots, func(s slot) bool { return s.length != 0 && isExtended(s.kind) })
	data = slices.IndexFunc(slots, func(s slot) bool { return s.length != 0 && !isExtended(s.kind) })
	return link, data
}

// planMBR writes containers before what they contain, so that the table is
// right after each of the writes.
func (t *Table) planMBR(disk size.Bytes, extend bool) (Plan, error) {
	sectors := int64(disk / mbrSector)
	for _, p := range t.Partitions {
		if p.End() > size.Bytes(sectors)*mbrSector {
			return Plan{}, fmt.Errorf("partition %d needs a larger disk", p.Number)
		}
	}
	if !extend {
		return Plan{}, nil
	}
	var limit string
	if sectors > maxLBA32 {
		sectors = maxLBA32
		limit = fmt.Sprintf("an MBR table ends at 2 TiB, so the rest of the disk of %s stays unused", disk)
	}
	grown, why, ok := t.extended(size.Bytes(sectors) * mbrSector)
	if !ok {
		return Plan{Note: join(why, limit)}, nil
	}
	if t.recordBehind(grown.Start) {
		return Plan{Note: join(fmt.Sprintf("a boot record of the extended partition lies behind partition %d, so it keeps its length", grown.Number), limit)}, nil
	}
	plan := Plan{Grown: grown, Note: limit}
	at, start, end := t.mbr.places[grown.Number], int64(grown.Start/mbrSector), int64(grown.End()/mbrSector)
	if grown.Logical {
		container := int64(t.partition(t.mbr.extended).Start / mbrSector)
		plan.addRecord(t, t.mbr.places[t.mbr.extended], container, end)
		if at.from != nil {
			plan.addRecord(t, *at.from, at.sector, end)
		}
	}
	plan.addRecord(t, at, start, end)
	return plan, nil
}

// recordBehind tells whether one of the chain's boot records lies behind off.
func (t *Table) recordBehind(off size.Bytes) bool {
	for sector := range t.mbr.sectors {
		if size.Bytes(sector)*mbrSector >= off {
			return true
		}
	}
	return false
}

// addRecord writes the boot record that holds an entry, with the entry's length
// such that what begins at start ends at end. No record holds two entries that
// are changed.
func (p *Plan) addRecord(t *Table, at place, start, end int64) {
	record := t.mbr.sectors[at.sector]
	old := int64(le.Uint32(record[slotsAt+at.index*slotSize+12:]))
	if start+old < end {
		setLength(record[:], at.index, start, end-start)
	}
	p.add(mbrSector, at.sector, record[:], true)
}

func (t *Table) partition(number int) Partition {
	i := slices.IndexFunc(t.Partitions, func(p Partition) bool { return p.Number == number })
	return t.Partitions[i]
}
