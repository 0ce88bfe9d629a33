package contents

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/used"
)

// sequence is what the readers of package used return: ascending, and to be run
// as often as is wanted.
type sequence = iter.Seq2[used.Range, error]

// readers tell what is used of each kind that tells it.
var readers = map[filesystem.Kind]func(io.ReaderAt, size.Bytes) (sequence, error){
	filesystem.Ext2: used.Ext, filesystem.Ext3: used.Ext, filesystem.Ext4: used.Ext,
	filesystem.XFS: used.XFS, filesystem.Btrfs: used.Btrfs, filesystem.Swap: used.Swap,
}

// look finds what of a part is used, whose Kind is known, and fills in the rest.
// The sequence is run to its end: what could not be told only then is known
// before the first range is given away.
func (p *Part) look(r io.ReaderAt) (sequence, error) {
	reader := readers[p.Kind]
	switch {
	case p.Kind == filesystem.None:
		p.whole("nothing known is on it")
	case reader == nil:
		p.whole(fmt.Sprintf("what is free in %s is not looked for", p.Kind))
	}
	if p.Whole {
		return nil, nil
	}
	if err := p.alone(r); err != nil || p.Whole {
		return nil, err
	}
	ranges, err := reader(r, p.Length)
	if err == nil {
		p.Used, err = sum(ranges, p.Length)
	}
	if errors.Is(err, used.ErrUnsure) {
		p.hibernated = errors.Is(err, used.ErrHibernated)
		p.whole(err.Error())
		return nil, nil
	}
	return ranges, err
}

// alone looks for what else the part may be: then it is kept whole.
func (p *Part) alone(r io.ReaderAt) error {
	also, err := another(r, p.Length, p.Kind)
	if err == nil && also == "" && p.Start > 0 { // a disk's own table was read before
		switch _, tableErr := layout.Read(r, p.Length); {
		case tableErr == nil, errors.Is(tableErr, layout.ErrDamaged):
			also = "a partition table"
		case !errors.Is(tableErr, layout.ErrNoTable):
			err = tableErr
		}
	}
	if err == nil && also == "" {
		also, err = p.verified(r)
	}
	if also != "" {
		p.Doubtful = true
		p.whole(fmt.Sprintf("it is %s, and has the mark of %s too", p.Kind, also))
	}
	return err
}

// verityMark begins dm-verity's hashes, which cover free blocks too.
const verityMark = "verity\x00\x00"

// verified looks behind the file system for hashes of it.
func (p *Part) verified(r io.ReaderAt) (string, error) {
	for _, m := range []struct {
		at         size.Bytes
		mark, what string
	}{{p.end, verityMark, "dm-verity"}, {p.Length - 64, "AVBf", "Android Verified Boot"}} {
		b := make([]byte, len(m.mark))
		if m.at <= 0 || m.at+size.Bytes(len(b)) > p.Length {
			continue
		}
		if err := readAt(r, b, m.at); err != nil {
			return "", err
		}
		if string(b) == m.mark {
			return m.what, nil
		}
	}
	return "", nil
}

// sum adds a sequence up, and wants each range to be behind the one before.
func sum(ranges sequence, length size.Bytes) (size.Bytes, error) {
	total, end := size.Bytes(0), size.Bytes(0)
	for r, err := range ranges {
		if err != nil {
			return 0, err
		}
		if r.Length <= 0 || r.Start < end || r.Start > length-r.Length {
			return 0, fmt.Errorf("%w: %d bytes at byte %d are out of order", used.ErrUnsure, int64(r.Length), int64(r.Start))
		}
		total, end = total+r.Length, r.Start+r.Length
	}
	return total, nil
}

// mark is what tells that something is there; what else is known to be there as
// well was perhaps made later, and uses what the first says is free.
type mark struct {
	at   size.Bytes
	text string
	what string
	kind []filesystem.Kind // whose own mark it is
}

// marks are those of what mkfs of another kind may have left, or what it may
// have left of another kind. For those of swap space see pages.
var marks = []mark{
	{0, filesystem.RAIDMark, "a RAID", nil},
	{4096, filesystem.RAIDMark, "a RAID", nil},
	{4096 + 24, "\xc6\x85\x73\xf6", "bcache or bcachefs", nil},
	{512, "!Stra0tis", "Stratis", nil},
	{0, "bluestore block device", "Ceph", nil},
	{0, "dmvdo001", "VDO", nil},
	{0, "integrt\x00", "integrity", nil},
	{0, "LUKS\xba\xbe", "LUKS", nil},
	{0, "LABELONE", "LVM", []filesystem.Kind{filesystem.LVM2}},
	{512, "LABELONE", "LVM", []filesystem.Kind{filesystem.LVM2}},
	{1024, "LABELONE", "LVM", []filesystem.Kind{filesystem.LVM2}},
	{1536, "LABELONE", "LVM", []filesystem.Kind{filesystem.LVM2}},
	{0, "XFSB", "XFS", []filesystem.Kind{filesystem.XFS}},
	{1024 + 56, "\x53\xef", "ext", []filesystem.Kind{filesystem.Ext2, filesystem.Ext3, filesystem.Ext4}},
	{64<<10 + 64, "_BHRfS_M", "btrfs", []filesystem.Kind{filesystem.Btrfs}},
	{1024, "\x10\x20\xf5\xf2", "F2FS", nil},
	{3, "NTFS    ", "NTFS", nil},
	{3, "-FVE-FS-", "BitLocker", nil},
	{3, "EXFAT   ", "exFAT", nil},
	{0, "hsqs", "SquashFS", nil},
	{32 << 10, "JFS1", "JFS", nil},
	{32<<10 + 1, "CD001", "ISO 9660", nil},
	{64 << 10, "\x01\x16\x19\x70", "GFS2", nil},
	{64<<10 + 52, "ReIsEr", "ReiserFS", nil},
	{3, "ReFS\x00", "ReFS", nil},
	{32, "NXSB", "APFS", nil},
	{512, "\x57\x45\x56\x82", "a BSD disklabel", nil},
	{544, "1SFB", "BFS", nil},
	{8<<10 + 1372, "\x54\x19\x01\x00", "UFS1", nil},
	{64<<10 + 1372, "\x19\x01\x54\x19", "UFS2", nil},
	{32<<10 + 1, "BEA01", "UDF", nil},
}

// another looks for the marks of what is not of the kind.
func another(r io.ReaderAt, length size.Bytes, kind filesystem.Kind) (string, error) {
	const uberblocks, reach = 128 << 10, 256 << 10
	head := make([]byte, min(length, reach))
	if err := readAt(r, head, 0); err != nil {
		return "", err
	}
	for _, m := range marks {
		if m.at < size.Bytes(len(head)) && strings.HasPrefix(string(head[m.at:min(int(m.at)+32, len(head))]), m.text) && !slices.Contains(m.kind, kind) {
			return m.what, nil
		}
	}
	// Where a RAID has its superblock at the end, a beginning may be that of before.
	for _, at := range filesystem.RAIDEnds(length) {
		if at < reach {
			continue
		}
		tail := make([]byte, len(filesystem.RAIDMark))
		if err := readAt(r, tail, at); err != nil {
			return "", err
		}
		if string(tail) == filesystem.RAIDMark {
			return "a RAID at its end", nil
		}
	}
	for page := 4 << 10; page <= 64<<10 && page <= len(head) && kind != filesystem.Swap; page *= 2 {
		if end := string(head[page-10 : page]); end == "SWAPSPACE2" || end[1:] == "1SUSPEND\x00" {
			return "swap space", nil
		}
	}
	for at := uberblocks; at+8 <= len(head); at += 1 << 10 {
		const magic = 0x00bab10c
		if binary.LittleEndian.Uint64(head[at:]) == magic || binary.BigEndian.Uint64(head[at:]) == magic {
			return "ZFS", nil
		}
	}
	return "", nil
}

// agrees tells whether each entry of the boot record in front of a GPT, but the
// one that protects it, names a partition of it too.
func agrees(boot []byte, t *layout.Table) bool {
	for at := 446; at < 510; at += 16 {
		kind := boot[at+4]
		start, length := binary.LittleEndian.Uint32(boot[at+8:]), binary.LittleEndian.Uint32(boot[at+12:])
		if kind == 0 || kind == 0xEE || length == 0 {
			continue
		}
		if !slices.ContainsFunc(t.Partitions, func(p layout.Partition) bool {
			return p.Start == size.Bytes(start)*t.SectorSize && p.Length == size.Bytes(length)*t.SectorSize
		}) {
			return false
		}
	}
	return true
}
