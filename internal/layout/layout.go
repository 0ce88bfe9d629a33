// Package layout reads the partition table of a disk, GPT or MBR, and plans
// what must be written so that the table fits a larger disk and a partition
// grows with it: the last one, or one behind which partitions may be moved to
// the disk's end. It plans only: the bytes to write, in order. Everything the
// table holds besides (GUIDs, names, attributes, types, boot code, disk
// signature, the place, size and order of the entries) stays byte for byte. It
// also lays a new disk out, and plans a table for it.
//
// Left out: adding, removing or shrinking partitions, moving their content, new
// tables that count in sectors of 4096 bytes, BSD disklabels and other tables inside a partition, and MBR
// tables that count in sectors of 4096 bytes. The last have nothing that tells
// them from others: they are read as if they counted in 512 bytes, and the
// partitions then seem to hold nothing known.
package layout

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"ganeti-instance-image/internal/size"
)

// Kind is the kind of a partition table.
type Kind string

// The kinds of partition tables.
const (
	GPT Kind = "GPT"
	MBR Kind = "MBR"
)

// ErrNoTable is returned for a disk without a partition table: an empty one, or
// one that is a filesystem as a whole.
var ErrNoTable = errors.New("there is no partition table")

// ErrDamaged is wrapped by the error for a disk that has a partition table
// which cannot be trusted: damaged, or contradicting itself.
var ErrDamaged = errors.New("the partition table is damaged")

// Table is a partition table as it stands on a disk.
type Table struct {
	Kind       Kind
	SectorSize size.Bytes  // what the table counts in: 512 or 4096 bytes
	DiskGUID   string      // GPT: in upper case
	DiskID     uint32      // MBR: the disk signature
	Partitions []Partition // sorted by Start
	Note       string      // what is wrong with the table although it could be read, as in "the primary GPT is damaged"; or empty

	boot [bootSize]byte // sector 0, its first 512 bytes
	gpt  *gptTable
	mbr  *mbrTable
}

// Partition is one partition. An extended partition of an MBR is listed too,
// in front of the logical ones it holds.
type Partition struct {
	Number        int        // as in Linux' device names: the slot of a GPT or primary partition, 5 and up for logical ones
	Start, Length size.Bytes // from the beginning of the disk
	Type          string     // a GUID in upper case, or two hexadecimal digits in lower case: "83"
	GUID, Name    string     // GPT only; the GUID in upper case
	Attributes    uint64     // GPT only
	Active        bool       // MBR only: the boot flag
	Extended      bool       // MBR only: it holds the logical partitions
	Logical       bool       // MBR only
}

// End is where the partition ends: the offset of the first byte behind it.
func (p Partition) End() size.Bytes { return p.Start + p.Length }

// Plan is what must be written to a disk so that its table fits.
type Plan struct {
	Writes []Write   // in this order; none where the table is right as it is
	Grown  Partition // the partition that becomes larger, as it will be; its Number is 0 where none does
	Moved  []Move    // the partitions that get another place, in the order in which what they hold is to be copied
	Note   string    // what limits the growth or is repaired, for a log; or empty
}

// Write is one write to the disk.
type Write struct {
	Offset size.Bytes
	Data   []byte
	Sync   bool // all writes up to this one must have reached the disk before the next is made
}

const (
	bootSize = 512
	minGain  = size.MiB  // less is not worth a change, and growpart(1) in the guest thinks the same
	unit     = 4096      // a grown partition's length is a multiple of it: filesystems count in it
	maxDisk  = 1<<63 - 1 // bytes
)

// Read reads the partition table of a disk that is disk bytes long. For a disk
// on which an image was just written, give the image's size: a GPT whose
// beginning is damaged is then found at the image's end.
//
// The error is ErrNoTable where there is none, and wraps ErrDamaged where there
// is one that must not be used; a reader's own error is passed on.
func Read(r io.ReaderAt, disk size.Bytes) (*Table, error) {
	t := &Table{SectorSize: bootSize}
	if disk < 2*bootSize {
		return nil, ErrNoTable
	}
	if err := readFull(r, t.boot[:], 0); err != nil {
		return nil, fmt.Errorf("cannot read the partition table: %w", err)
	}
	slots, signed := bootSlots(t.boot[:])
	protective := slices.ContainsFunc(slots, func(s slot) bool { return s.kind == typeProtective })
	used := slices.ContainsFunc(slots, func(s slot) bool { return s.length != 0 })
	var err error
	switch {
	case protective:
		err = t.readGPT(r, disk)
	case signed && used:
		err = t.readMBR(r, disk, slots)
	default:
		return nil, t.unannounced(r, disk)
	}
	if err == nil {
		err = t.sort()
	}
	if errors.Is(err, ErrDamaged) && isISO(r) {
		err = fmt.Errorf("this is a hybrid ISO image, such as an installation medium, and no disk of an installed system: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the %s partition table: %w", t.Kind, err)
	}
	return t, nil
}

// isISO tells whether the disk is an ISO 9660 filesystem as a whole: its volume
// descriptors begin at sector 16 of 2048 bytes (ECMA-119, 8.1). Hybrid images
// have a partition table in the unused space in front of them.
func isISO(r io.ReaderAt) bool {
	var found [6]byte
	return readFull(r, found[:], 16*2048) == nil && string(found[:]) == "\x01CD001"
}

// unannounced tells a disk without a table from one with a GPT that neither
// firmware nor Linux looks at, since sector 0 does not announce it.
func (t *Table) unannounced(r io.ReaderAt, disk size.Bytes) error {
	for _, sector := range sectorSizes {
		_, err := readHeader(r, disk, sector, 1)
		if err == nil {
			return fmt.Errorf("%w: there is a GPT, but no protective MBR in front of it, so neither firmware nor Linux would find it", ErrDamaged)
		}
		if errors.As(err, new(readError)) {
			return fmt.Errorf("cannot read the partition table: %w", err)
		}
	}
	return ErrNoTable
}

// sort brings the partitions into the disk's order and refuses overlapping ones.
func (t *Table) sort() error {
	slices.SortFunc(t.Partitions, func(a, b Partition) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.Number, b.Number))
	})
	end, previous := size.Bytes(0), 0
	for _, p := range t.Partitions {
		if p.Start < end {
			return fmt.Errorf("%w: partitions %d and %d overlap", ErrDamaged, previous, p.Number)
		}
		if !p.Extended { // what it holds was checked against it when it was read
			end, previous = p.End(), p.Number
		}
	}
	return t.checkAroundExtended()
}

// checkAroundExtended refuses primary partitions that reach into the extended
// one, and partitions that cover one of its boot records.
func (t *Table) checkAroundExtended() error {
	i := slices.IndexFunc(t.Partitions, func(p Partition) bool { return p.Extended })
	if i < 0 {
		return nil
	}
	extended := t.Partitions[i]
	for _, p := range t.Partitions {
		if !p.Extended && !p.Logical && p.Start < extended.End() && extended.Start < p.End() {
			return fmt.Errorf("%w: partitions %d and %d overlap", ErrDamaged, p.Number, extended.Number)
		}
		for _, r := range t.mbr.chain {
			if at := r.at(); !p.Extended && p.Start <= at && at < p.End() {
				return fmt.Errorf("%w: partition %d covers a boot record of the extended one", ErrDamaged, p.Number)
			}
		}
	}
	return nil
}

// Sector returns the size of the sectors that the disk is counted in: the
// table's, and 512 where there is no table (t is nil).
func (t *Table) Sector() size.Bytes {
	if t == nil {
		return 512
	}
	return t.SectorSize
}

// Last returns the partition that is last on the disk, the one with the highest
// start; false where there is none. It is the extended partition only where
// that holds nothing.
func (t *Table) Last() (Partition, bool) {
	if len(t.Partitions) == 0 {
		return Partition{}, false
	}
	return t.Partitions[len(t.Partitions)-1], true
}

// PartUUID returns the partition's PARTUUID as Linux and fstab write it.
func (t *Table) PartUUID(p Partition) string {
	if t.Kind == MBR {
		return fmt.Sprintf("%08x-%02x", t.DiskID, p.Number)
	}
	return strings.ToLower(p.GUID)
}

// Grow plans the table for a disk of that size, with the last partition
// extended to the disk's end. It does so whatever that partition is for: where
// it must keep its length (see Partition.Reserved, and what its filesystem is),
// call Relocate instead. A gain below 1 MiB is not taken.
//
// It is an error when the disk is too small for the partitions.
func (t *Table) Grow(disk size.Bytes) (Plan, error) {
	last, ok := t.Last()
	if !ok {
		last.Number = -1 // the plan notes that there is none
	}
	return t.plan(disk, last.Number, nil)
}

// Relocate plans the table for a disk of that size and changes no partition:
// the backup of a GPT moves to the disk's end. For an MBR there is nothing to do.
//
// It is an error when the disk is too small for the partitions.
func (t *Table) Relocate(disk size.Bytes) (Plan, error) { return t.plan(disk, 0, nil) }

// plan lets the partition of that number grow, or none where it is 0.
func (t *Table) plan(disk size.Bytes, number int, movable func(Partition) bool) (Plan, error) {
	var plan Plan
	var err error
	if t.Kind == GPT {
		plan, err = t.planGPT(disk, number, movable)
	} else {
		plan, err = t.planMBR(disk, number, movable)
	}
	if err != nil {
		return Plan{}, fmt.Errorf("cannot fit the %s partition table to a disk of %s: %w", t.Kind, disk, err)
	}
	return plan, nil
}

func join(notes ...string) string {
	var text string
	for _, note := range notes {
		if note != "" && text != "" {
			text += "; "
		}
		text += note
	}
	return text
}

// readFull reads len(p) bytes, all of which must be there.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("at offset %d: %w", off, io.ErrUnexpectedEOF)
	}
	return readError{fmt.Errorf("at offset %d: %w", off, err)}
}

// readError is a reader's own, which says nothing of what is on the disk.
type readError struct{ error }

func (e readError) Unwrap() error { return e.error }

var le = binary.LittleEndian
