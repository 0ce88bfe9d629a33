package used

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"

	"ganeti-instance-image/internal/size"
)

// Swap returns what is to be kept of Linux swap space: the page with its header,
// which ends with the kernel's mark, and what lies beyond its last page, as the
// metadata of a RAID may. What was swapped out is gone with the system's memory;
// only a system that hibernated would miss it. So swap space with the mark of
// such a system, in any size of page, is not sure, and no other is: the mark
// stands in the place of the header's own.
func Swap(r io.ReaderAt, length size.Bytes) (iter.Seq2[Range, error], error) {
	head := make([]byte, max(0, min(length, swapHead)))
	if n, err := r.ReadAt(head, 0); n < len(head) {
		return nil, fmt.Errorf("cannot read swap space: %w", err)
	}
	keep, err := swapKeep(head, length)
	if err != nil {
		return nil, fmt.Errorf("cannot tell what of the swap space is used: %w: %w", err, ErrUnsure)
	}
	return func(yield func(Range, error) bool) {
		for _, part := range keep {
			if !yield(part, nil) {
				return
			}
		}
	}, nil
}

const (
	swapPageMax = 64 * size.KiB
	swapHead    = swapPageMax + 4*size.KiB // the superblock of btrfs is after 64 KiB
	swapMark    = 10                       // at the end of the first page
	swapFixed   = 1536                     // of the header, before the list of bad pages
)

// swapHibernated are the marks of a system that hibernated, as blkid(8) knows
// them, by how they begin. TuxOnIce has its own at the first byte.
var swapHibernated = []string{"S1SUSPEND", "S2SUSPEND", "ULSUSPEND", "LINHIB0001"}

// ErrHibernated is wrapped, besides ErrUnsure, where a system lies in swap space: what it
// has in memory may also name blocks of other file systems that these call free.
var ErrHibernated = errors.New("it holds a system that hibernated")

const swapTuxOnIce = "\xed\xc3\x02\xe9\x98\x56\xe5\x0c"

// swapOthers are marks of what leaves some of the first page alone, so that the header
// of swap space that once was there is still whole.
var swapOthers = []struct {
	at   int
	mark string
	what string
}{
	{0, "\xfc\x4e\x2b\xa9", "a member of a RAID"},
	{4096, "\xfc\x4e\x2b\xa9", "a member of a RAID"},
	{4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "bcache"},
	{0, "LUKS\xba\xbe", "LUKS"},
	{0, "XFSB", "XFS"},
	{512, "LABELONE", "LVM"},
	{1024 + 56, "\x53\xef", "ext"},
	{64<<10 + 64, "_BHRfS_M", "btrfs"},
}

// swapKeep returns the ranges to keep. Where several pages seem to end with the
// mark the largest is kept: which one counts depends on the machine.
func swapKeep(head []byte, length size.Bytes) ([]Range, error) {
	if err := swapAlone(head); err != nil {
		return nil, err
	}
	first, end := size.Bytes(0), length
	for page := 4 * size.KiB; page <= swapPageMax && int(page) <= len(head); page *= 2 {
		if string(head[page-swapMark:page]) != "SWAPSPACE2" {
			continue
		}
		pages, err := swapPages(head, page)
		if err != nil {
			return nil, err
		}
		if pages > length/page {
			return nil, fmt.Errorf("it has %d pages of %v, and is on %d bytes", pages, page, length)
		}
		first, end = page, min(end, pages*page)
	}
	switch {
	case first == 0:
		return nil, errors.New("there is no header of swap space")
	case end <= first:
		return []Range{{0, length}}, nil
	case end == length:
		return []Range{{0, first}}, nil
	}
	return []Range{{0, first}, {end, length - end}}, nil
}

// swapAlone looks for what else may be there.
func swapAlone(head []byte) error {
	if bytes.HasPrefix(head, []byte(swapTuxOnIce)) {
		return ErrHibernated
	}
	for end := 4 << 10; end <= int(swapPageMax) && end <= len(head); end *= 2 {
		for _, mark := range swapHibernated {
			if bytes.HasPrefix(head[end-swapMark:end], []byte(mark)) {
				return ErrHibernated
			}
		}
	}
	for _, other := range swapOthers {
		if other.at < len(head) && bytes.HasPrefix(head[other.at:], []byte(other.mark)) {
			return fmt.Errorf("there is %s too", other.what)
		}
	}
	return nil
}

// swapPages returns how many pages there are. The header (union swap_header of
// the kernel) is in the order of bytes of the machine that made it.
func swapPages(head []byte, page size.Bytes) (size.Bytes, error) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		version, last, bad := order.Uint32(head[1024:]), order.Uint32(head[1028:]), order.Uint32(head[1032:])
		if version == 1 && last > 0 && int64(bad) <= int64(page-swapFixed-swapMark)/4 {
			return size.Bytes(last) + 1, nil
		}
	}
	return 0, errors.New("its header is not as it must be")
}
