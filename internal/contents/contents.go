// Package contents tells which parts of a whole disk are in use, so that a
// backup can leave the rest out. It finds the partitions, the logical volumes
// and the file systems, and asks package used what each file system has free.
// Left out is only what something on the disk says is free, and nothing on it
// contradicts: all that is not understood is kept, and so is all outside of
// partitions, where boot loaders live.
//
// Not looked into, but kept whole: encryption, FAT, NTFS and ZFS, logical
// volumes that are no plain stretches, and volumes within volumes.
package contents

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/size"
)

// Disk is what was found on a disk.
type Disk struct {
	Length     size.Bytes
	SectorSize size.Bytes  // what the table counts in, 512 where there is none
	Kind       layout.Kind // of the partition table; empty where there is none, or it is not to be trusted
	Parts      []Part      // in the disk's order

	disk   io.ReaderAt
	pieces []piece // in the disk's order
}

// Part is a partition, or a logical volume on one.
type Part struct {
	Number int             // of the partition; 0 where the whole disk is meant
	Volume string          // the logical volume's name, which a guest gave; empty for the partition itself
	Start  size.Bytes      // from the beginning of the disk; of a volume in several pieces, the first one's on the disk
	Length size.Bytes      // of all pieces
	Used   size.Bytes      // what of Length is in use, a physical volume's with all its logical volumes
	Kind   filesystem.Kind // what it holds
	Whole  bool            // all of it is kept
	Why    string          // why it is kept whole, a line of printable ASCII; else empty
	// Doubtful tells that it may be something else than Kind says.
	Doubtful bool

	hibernated bool       // it is swap space in which a system hibernated
	end        size.Bytes // of the file system, where it tells its size; else 0
}

// Of looks at a disk of that length, which nobody may change from then on until
// its ranges were used for the last time. What cannot be understood is kept whole,
// and its Part says why: the error is the reader's own.
func Of(disk io.ReaderAt, length size.Bytes) (*Disk, error) {
	d := &Disk{Length: length, SectorSize: 512, disk: disk}
	table, err := layout.Read(disk, length)
	switch {
	case errors.Is(err, layout.ErrNoTable):
		err = d.partition(Part{Length: length})
	case errors.Is(err, layout.ErrDamaged):
		d.keep("its partition table is damaged")
		err = nil
	case err == nil:
		err = d.table(table)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot tell what of the disk is in use: %w", err)
	}
	return d, d.together()
}

// together looks for what in one part makes the free blocks of others count.
func (d *Disk) together() error {
	if slices.ContainsFunc(d.Parts, func(p Part) bool { return p.hibernated }) {
		// What that system wrote last, and still has in memory, btrfs calls free.
		d.keep("a system hibernated on it")
		return nil
	}
	for _, p := range d.Parts {
		hashes, err := d.has(verityMark, p.Start, p)
		if err != nil {
			return err
		}
		if hashes {
			d.keep("it has dm-verity's hashes, which are of free blocks too")
			return nil
		}
	}
	return nil
}

// has tells whether a text is at an offset of the disk that is in the part.
func (d *Disk) has(text string, at size.Bytes, p Part) (bool, error) {
	if at < p.Start || at+size.Bytes(len(text)) > p.Start+p.Length {
		return false, nil
	}
	b := make([]byte, len(text))
	err := readAt(d.disk, b, at)
	return string(b) == text, err
}

// keep has the whole disk kept.
func (d *Disk) keep(why string) {
	d.Kind, d.pieces = "", nil
	d.Parts = []Part{{Length: d.Length, Used: d.Length, Whole: true, Why: why}}
}

// table looks at each partition. An extended one is but room for the logical ones.
func (d *Disk) table(t *layout.Table) error {
	why, err := d.contradicts(t)
	if err != nil {
		return err
	}
	if why != "" {
		d.keep(why)
		return nil
	}
	d.Kind, d.SectorSize = t.Kind, t.SectorSize
	for _, p := range t.Partitions {
		if p.Extended {
			continue
		}
		if err := d.partition(Part{Number: p.Number, Start: p.Start, Length: p.Length}); err != nil {
			return err
		}
	}
	return nil
}

// contradicts tells what on the disk says something else than its table: then
// it is not known which of them the guest goes by.
func (d *Disk) contradicts(t *layout.Table) (string, error) {
	info, err := filesystem.Probe(d.disk, d.Length)
	switch {
	case err != nil:
		return "", err
	case info.Kind != filesystem.None:
		return fmt.Sprintf("it has a partition table, and is %s as a whole", info.Kind), nil
	}
	// Probe knows what is mounted; a RAID, bcache and others leave an old table be.
	if also, err := another(d.disk, d.Length, filesystem.None); err != nil || also != "" {
		return fmt.Sprintf("it has a partition table, and the mark of %s as a whole", also), err
	}
	if t.Kind == layout.MBR {
		return "", nil
	}
	boot := make([]byte, 512)
	if err := readAt(d.disk, boot, 0); err != nil {
		return "", err
	}
	if !agrees(boot, t) {
		return "its GPT and its MBR name different partitions", nil
	}
	return "", nil
}

// partition looks at one partition, or at a whole disk without a table.
func (d *Disk) partition(p Part) error {
	section := io.NewSectionReader(d.disk, int64(p.Start), int64(p.Length))
	info, err := filesystem.Probe(section, p.Length)
	if err != nil {
		return err
	}
	p.Kind, p.end = info.Kind, info.Size
	if p.Kind == filesystem.LVM2 {
		if err := p.alone(section); err != nil {
			return err
		}
		if !p.Whole {
			return d.physical(p, section)
		}
		d.Parts = append(d.Parts, p)
		return nil
	}
	ranges, err := p.look(section)
	if err != nil {
		return err
	}
	d.Parts = append(d.Parts, p)
	if !p.Whole {
		d.pieces = append(d.pieces, piece{start: p.Start, end: p.Start + p.Length, ranges: ranges})
	}
	return nil
}

// whole has the part kept.
func (p *Part) whole(why string) { p.Whole, p.Why, p.Used = true, line(why), p.Length }

// line makes one of what an error says.
func line(text string) string {
	const most = 200
	b := []byte(text)
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b[:min(len(b), most)])
}

func readAt(r io.ReaderAt, p []byte, off size.Bytes) error {
	n, err := r.ReadAt(p, int64(off))
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("cannot read %d bytes at byte %d: %w", len(p), int64(off), err)
}
