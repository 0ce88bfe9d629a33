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

// mbrTable is an MBR as it was read.
type mbrTable struct {
	extended int      // the number of the extended partition, or 0
	chain    []record // the boot records in the extended partition, as they lead on to one another
}

// record is a boot record in the extended partition.
type record struct {
	sector int64
	raw    [bootSize]byte
	link   int // which of its entries leads to the next record of the chain; -1 where it is the last
	data   int // which of its entries is a logical partition; -1 where none is
	number int // that partition's; 0 where there is none
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

// setEntry gives an entry of a boot record another length, and where it moved
// another start: as the entry is to say it, and as it is on the disk. An address
// for a BIOS that says "look at the sector numbers" is left so.
func setEntry(boot []byte, index int, says, start, length int64, moved bool) {
	raw := boot[slotsAt+index*slotSize:][:slotSize]
	if !moved && int64(le.Uint32(raw[12:])) == length {
		return
	}
	le.PutUint32(raw[12:], uint32(length))
	if !allOnes(raw[5:8]) {
		copy(raw[5:8], chs(start+length-1))
	}
	if !moved {
		return
	}
	le.PutUint32(raw[8:], uint32(says))
	if !allOnes(raw[1:4]) {
		copy(raw[1:4], chs(start))
	}
}

func allOnes(b []byte) bool { return b[0] == 0xFF && b[1] == 0xFF && b[2] == 0xFF }

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
	t.mbr = &mbrTable{}
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
	end, number, at := extended.start+extended.length, 5, extended.start
	for {
		if len(t.mbr.chain) >= logicalsMax || slices.ContainsFunc(t.mbr.chain, func(r record) bool { return r.sector == at }) {
			return fmt.Errorf("%w: the chain of logical partitions does not end", ErrDamaged)
		}
		rec := record{sector: at}
		if err := readFull(r, rec.raw[:], at*int64(mbrSector)); err != nil {
			return err
		}
		slots, ok := bootSlots(rec.raw[:])
		if !ok && len(t.mbr.chain) == 0 {
			return nil // an extended partition in which nothing was ever made
		}
		if !ok {
			return fmt.Errorf("%w: the boot record of logical partition %d, at sector %d, is not one", ErrDamaged, number, at)
		}
		rec.link, rec.data = chainSlots(slots)
		if rec.data >= 0 {
			s := slots[rec.data]
			if s.start < 1 || at+s.start+s.length > end {
				return fmt.Errorf("%w: logical partition %d is not within the extended one", ErrDamaged, number)
			}
			p := s.partition(number, at+s.start)
			p.Logical = true
			t.Partitions = append(t.Partitions, p)
			rec.number = number
			number++
		}
		t.mbr.chain = append(t.mbr.chain, rec)
		if rec.link < 0 {
			return nil
		}
		if at = extended.start + slots[rec.link].start; at >= end {
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
