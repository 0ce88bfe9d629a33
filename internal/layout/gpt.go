package layout

import (
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"unicode/utf16"

	"ganeti-instance-image/internal/size"
)

// sectorSizes are the sizes a GPT may count in, the usual one first.
var sectorSizes = []size.Bytes{512, 4096}

const (
	headerMin      = 92
	entryMin       = 128
	entryMax       = 4096
	entriesMax     = 1024
	typeProtective = 0xEE
	maxLBA32       = 1<<32 - 1
)

// The offsets of a GPT header's fields.
const (
	atHeaderSize  = 12
	atHeaderCRC   = 16
	atMyLBA       = 24
	atAlternate   = 32
	atFirstUsable = 40
	atLastUsable  = 48
	atDiskGUID    = 56
	atEntriesLBA  = 72
	atCount       = 80
	atEntrySize   = 84
	atEntriesCRC  = 88
)

// gptTable is a GPT as it was read. A position or a length in it counts
// sectors, as in the table itself.
type gptTable struct {
	header    *gptHeader // the good one: the primary, or the backup where the primary is damaged
	primaryAt int64      // where the primary entries stand or must stand
	backupAt  int64      // the sector of a header that is in the way once the backup has moved; 0 where none is
	complete  bool       // both the primary and the backup are good
}

// gptHeader is one of the two headers with its entries.
type gptHeader struct {
	raw         []byte // its whole sector
	entries     []byte // whole sectors
	entriesAt   int64
	alternate   int64
	firstUsable int64
	lastUsable  int64
	count       int
	entrySize   int
}

func (h *gptHeader) headerSize() int    { return int(le.Uint32(h.raw[atHeaderSize:])) }
func (h *gptHeader) arraySize() int     { return h.count * h.entrySize }
func (h *gptHeader) entry(i int) []byte { return h.entries[i*h.entrySize:][:h.entrySize] }

// arraySectors is how many sectors the entries take.
func (h *gptHeader) arraySectors(sector size.Bytes) int64 {
	return int64(len(h.entries)) / int64(sector)
}

// readHeader reads and checks the header at the sector lba, and its entries.
func readHeader(r io.ReaderAt, disk, sector size.Bytes, lba int64) (*gptHeader, error) {
	sectors := int64(disk / sector)
	if lba < 1 || lba >= sectors {
		return nil, fmt.Errorf("sector %d is not on the disk", lba)
	}
	h := &gptHeader{raw: make([]byte, sector)}
	if err := readFull(r, h.raw, lba*int64(sector)); err != nil {
		return nil, err
	}
	if string(h.raw[:8]) != "EFI PART" {
		return nil, fmt.Errorf("it has no signature")
	}
	headerSize := le.Uint32(h.raw[atHeaderSize:])
	if headerSize < headerMin || headerSize > uint32(sector) {
		return nil, fmt.Errorf("its header is %d bytes long", headerSize)
	}
	if sum := headerCRC(h.raw[:headerSize]); sum != le.Uint32(h.raw[atHeaderCRC:]) {
		return nil, fmt.Errorf("its header's checksum is wrong")
	}
	if mine := le.Uint64(h.raw[atMyLBA:]); mine != uint64(lba) {
		return nil, fmt.Errorf("its header belongs to sector %d, not %d", mine, lba)
	}
	if err := h.decode(); err != nil {
		return nil, err
	}
	return h, h.readEntries(r, sectors, sector)
}

// decode reads the header's fields; a position beyond what a disk can hold is
// an error, so that none can overflow later.
func (h *gptHeader) decode() error {
	for _, field := range []struct {
		at  int
		lba *int64
	}{
		{atAlternate, &h.alternate}, {atFirstUsable, &h.firstUsable}, {atLastUsable, &h.lastUsable}, {atEntriesLBA, &h.entriesAt},
	} {
		value := le.Uint64(h.raw[field.at:])
		if value > maxDisk/4096 {
			return fmt.Errorf("its header names sector %d, which no disk has", value)
		}
		*field.lba = int64(value)
	}
	count, entrySize := le.Uint32(h.raw[atCount:]), le.Uint32(h.raw[atEntrySize:])
	if count < 1 || count > entriesMax {
		return fmt.Errorf("it has room for %d partitions; up to %d are supported", count, entriesMax)
	}
	if entrySize < entryMin || entrySize > entryMax || entrySize&(entrySize-1) != 0 {
		return fmt.Errorf("its entries are %d bytes long", entrySize)
	}
	h.count, h.entrySize = int(count), int(entrySize)
	return nil
}

func (h *gptHeader) readEntries(r io.ReaderAt, sectors int64, sector size.Bytes) error {
	length := size.Bytes(h.arraySize()).AlignUp(sector)
	if h.entriesAt < 2 || h.entriesAt > sectors-int64(length/sector) {
		return fmt.Errorf("its entries at sector %d are not on the disk", h.entriesAt)
	}
	h.entries = make([]byte, length)
	if err := readFull(r, h.entries, h.entriesAt*int64(sector)); err != nil {
		return err
	}
	if crc32.ChecksumIEEE(h.entries[:h.arraySize()]) != le.Uint32(h.raw[atEntriesCRC:]) {
		return fmt.Errorf("the checksum of its entries is wrong")
	}
	return nil
}

// headerCRC is the checksum of a header, whose own field counts as zero.
func headerCRC(header []byte) uint32 {
	sum := crc32.ChecksumIEEE(header[:atHeaderCRC])
	sum = crc32.Update(sum, crc32.IEEETable, make([]byte, 4))
	return crc32.Update(sum, crc32.IEEETable, header[atHeaderCRC+4:])
}

func (t *Table) readGPT(r io.ReaderAt, disk size.Bytes) error {
	t.Kind = GPT
	primaryErr := t.readPrimary(r, disk)
	if primaryErr != nil {
		if backupErr := t.readBackup(r, disk); backupErr != nil {
			return fmt.Errorf("%w: the primary table is bad (%w), and so is the backup (%w)", ErrDamaged, primaryErr, backupErr)
		}
		t.Note = fmt.Sprintf("the primary GPT is damaged (%v); the backup is used", primaryErr)
	}
	h, sectors := t.gpt.header, int64(disk/t.SectorSize)
	if h.firstUsable < t.gpt.primaryAt+h.arraySectors(t.SectorSize) {
		return fmt.Errorf("%w: the first usable sector %d lies in the table itself", ErrDamaged, h.firstUsable)
	}
	if h.lastUsable >= sectors {
		t.Note = join(t.Note, "the GPT was made for a larger disk")
	}
	t.DiskGUID = guid(h.raw[atDiskGUID:])
	return t.readPartitions(sectors)
}

// readPrimary finds the primary table in either sector size, and looks at its
// backup. Its error is about the size whose signature is there.
func (t *Table) readPrimary(r io.ReaderAt, disk size.Bytes) error {
	var first error
	for _, sector := range sectorSizes {
		h, err := readHeader(r, disk, sector, 1)
		if err != nil {
			if first == nil || signatureAt(r, sector, 1) {
				first = err
			}
			continue
		}
		t.SectorSize = sector
		t.gpt = &gptTable{header: h, primaryAt: h.entriesAt}
		if signatureAt(r, sector, h.alternate) {
			t.gpt.backupAt = h.alternate
		}
		if _, err := readHeader(r, disk, sector, h.alternate); err != nil {
			t.Note = fmt.Sprintf("the backup GPT is damaged (%v)", err)
		} else {
			t.gpt.complete = true
		}
		return nil
	}
	return first
}

// readBackup finds the backup table at the disk's end, or where the damaged
// primary header says it is.
func (t *Table) readBackup(r io.ReaderAt, disk size.Bytes) error {
	var first error
	for _, sector := range sectorSizes {
		damaged := make([]byte, sector)
		if err := readFull(r, damaged, int64(sector)); err != nil {
			return err
		}
		candidates := []int64{int64(disk/sector) - 1}
		if lba := le.Uint64(damaged[atAlternate:]); lba < uint64(candidates[0]) {
			candidates = append(candidates, int64(lba))
		}
		for _, lba := range candidates {
			h, err := readHeader(r, disk, sector, lba)
			if err == nil && h.alternate != 1 {
				err = fmt.Errorf("it is the backup of sector %d, not of sector 1", h.alternate)
			}
			if err == nil {
				t.SectorSize = sector
				t.gpt = &gptTable{header: h, backupAt: lba, primaryAt: h.findPrimaryEntries(r, sector, damaged)}
				return nil
			}
			if first == nil {
				first = err
			}
		}
	}
	return first
}

// findPrimaryEntries tells where the primary entries stood when its header is
// damaged: a copy of the backup's entries is looked for where they may be.
// Without one it is sector 2, where almost all tables have them.
func (h *gptHeader) findPrimaryEntries(r io.ReaderAt, sector size.Bytes, damaged []byte) int64 {
	room := h.firstUsable - h.arraySectors(sector)
	found := make([]byte, len(h.entries))
	for _, lba := range []int64{2, int64(min(le.Uint64(damaged[atEntriesLBA:]), maxLBA32)), room} {
		if lba < 2 || lba > room || readFull(r, found, lba*int64(sector)) != nil {
			continue
		}
		if crc32.ChecksumIEEE(found[:h.arraySize()]) == le.Uint32(h.raw[atEntriesCRC:]) {
			return lba
		}
	}
	return 2
}

func signatureAt(r io.ReaderAt, sector size.Bytes, lba int64) bool {
	var found [8]byte
	return readFull(r, found[:], lba*int64(sector)) == nil && string(found[:]) == "EFI PART"
}

func (t *Table) readPartitions(sectors int64) error {
	h := t.gpt.header
	for i := range h.count {
		entry := h.entry(i)
		if [16]byte(entry) == [16]byte{} {
			continue
		}
		first, last := le.Uint64(entry[32:]), le.Uint64(entry[40:])
		if first < uint64(h.firstUsable) || last > uint64(min(h.lastUsable, sectors-1)) || first > last {
			return fmt.Errorf("%w: partition %d (sectors %d to %d) is not within the disk's usable sectors %d to %d",
				ErrDamaged, i+1, first, last, h.firstUsable, min(h.lastUsable, sectors-1))
		}
		t.Partitions = append(t.Partitions, Partition{
			Number:     i + 1,
			Start:      size.Bytes(first) * t.SectorSize,
			Length:     size.Bytes(last-first+1) * t.SectorSize,
			Type:       guid(entry),
			GUID:       guid(entry[16:]),
			Name:       name(entry[56:entryMin]),
			Attributes: le.Uint64(entry[48:]),
		})
	}
	return nil
}

// guid writes a GUID as all tools do: the first three groups are little-endian.
func guid(b []byte) string {
	return fmt.Sprintf("%08X-%04X-%04X-%X-%X", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}

// name reads a partition's name, UTF-16 up to the first zero.
func name(b []byte) string {
	var units []uint16
	for i := 0; i+1 < len(b) && (b[i] != 0 || b[i+1] != 0); i += 2 {
		units = append(units, le.Uint16(b[i:]))
	}
	return string(utf16.Decode(units))
}

// planGPT writes the backup first: until the primary is written, the disk has
// its old table, and from then on its new one.
func (t *Table) planGPT(disk size.Bytes, number int, movable func(Partition) bool) (Plan, error) {
	g, h := t.gpt, t.gpt.header
	end := int64(disk/t.SectorSize) - 1 // the sector of the backup header
	lastUsable := end - h.arraySectors(t.SectorSize) - 1
	if p, ok := t.Last(); ok && p.End() > size.Bytes(lastUsable+1)*t.SectorSize || lastUsable < h.firstUsable {
		return Plan{}, fmt.Errorf("the partitions and the backup table need a larger disk")
	}
	c := t.change(number, size.Bytes(lastUsable+1)*t.SectorSize, movable)
	boot := t.protectiveMBR(c, end)
	if g.complete && h.alternate == end && h.lastUsable <= lastUsable && c.grown.Number == 0 && boot == t.boot {
		return Plan{Note: c.note}, nil
	}
	plan := Plan{Grown: c.grown, Moved: c.moved, Note: join(t.Note, c.note)}
	entries := t.entriesAfter(c)
	plan.add(t.SectorSize, end-h.arraySectors(t.SectorSize), entries, false)
	plan.add(t.SectorSize, end, h.moved(end, 1, lastUsable, end-h.arraySectors(t.SectorSize), entries), true)
	plan.add(t.SectorSize, g.primaryAt, entries, false)
	plan.add(t.SectorSize, 1, h.moved(1, end, lastUsable, g.primaryAt, entries), false)
	plan.add(t.SectorSize, 0, boot[:], true)
	if t.oldBackupIsFree(lastUsable) && !c.movedOnto(size.Bytes(g.backupAt)*t.SectorSize) {
		plan.add(t.SectorSize, g.backupAt, make([]byte, t.SectorSize), true)
	}
	return plan, nil
}

// entriesAfter are the entries as the change leaves them.
func (t *Table) entriesAfter(c change) []byte {
	h := t.gpt.header
	entries := slices.Clone(h.entries)
	for _, p := range t.Partitions {
		raw, to := entries[(p.Number-1)*h.entrySize:][:h.entrySize], c.after(p)
		le.PutUint64(raw[32:], uint64(to.Start/t.SectorSize))
		le.PutUint64(raw[40:], uint64(to.End()/t.SectorSize-1))
	}
	return entries
}

func (p *Plan) add(sector size.Bytes, lba int64, data []byte, sync bool) {
	p.Writes = append(p.Writes, Write{Offset: size.Bytes(lba) * sector, Data: data, Sync: sync})
}

// moved is the header's sector for another place.
func (h *gptHeader) moved(mine, alternate, lastUsable, entriesAt int64, entries []byte) []byte {
	raw := slices.Clone(h.raw)
	le.PutUint64(raw[atMyLBA:], uint64(mine))
	le.PutUint64(raw[atAlternate:], uint64(alternate))
	le.PutUint64(raw[atLastUsable:], uint64(lastUsable))
	le.PutUint64(raw[atEntriesLBA:], uint64(entriesAt))
	le.PutUint32(raw[atEntriesCRC:], crc32.ChecksumIEEE(entries[:h.arraySize()]))
	le.PutUint32(raw[atHeaderCRC:], headerCRC(raw[:h.headerSize()]))
	return raw
}

// oldBackupIsFree tells whether the old backup header lies where neither the
// new table nor a partition's content is. Left there, it could be found again
// by a tool that looks for lost tables.
func (t *Table) oldBackupIsFree(lastUsable int64) bool {
	at := t.gpt.backupAt
	if at < t.gpt.header.firstUsable || at > lastUsable {
		return false
	}
	off := size.Bytes(at) * t.SectorSize
	return !slices.ContainsFunc(t.Partitions, func(p Partition) bool { return p.Start <= off && off < p.End() })
}
