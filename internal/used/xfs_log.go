package used

import (
	"encoding/binary"
	"hash/crc32"
	"io"

	"ganeti-instance-image/internal/size"
)

// xfsLog is the log: a ring of records, each a header and data. The first word of
// each of its blocks is the number of the turn it was written in (the cycle), or
// a header's magic with the cycle after it. So the log is a stretch of one cycle,
// up to the head, and a stretch of the cycle before.
type xfsLog struct {
	r      io.ReaderAt
	start  size.Bytes
	blocks int64 // of 512 bytes, as all numbers of blocks here
	group  uint32
	extent xfsExtent
	v2     bool
	summed bool
	uuid   [16]byte // sb_uuid, also where the metadata has another
}

const (
	xfsLogBlock     = 512
	xfsLogMagic     = 0xfeedbabe
	xfsRecordMax    = 256 << 10 // XLOG_MAX_RECORD_BSIZE
	xfsRecordCycles = 32 << 10  // XLOG_HEADER_CYCLE_SIZE: a block of header for so much
	xfsLogInFlight  = 8 * xfsRecordMax / xfsLogBlock
	xfsRecordBlocks = xfsRecordMax/xfsLogBlock + xfsRecordMax/xfsRecordCycles
	xfsLogRead      = 128  // at once
	xfsUnmount      = 0x20 // XLOG_UNMOUNT_TRANS
)

// clean finds the head as xlog_find_head of the kernel and xfsprogs does, and the
// last record before it. The log is clean where that is the one that an unmount
// writes. What a crash can leave near the head (writes that are under way are not
// done in order) is not told apart here: it is no clean log either.
func (l xfsLog) clean() error {
	first, err := l.cycle(0)
	if err != nil {
		return err
	}
	last, err := l.cycle(l.blocks - 1)
	if err != nil {
		return err
	}
	head := int64(0)
	switch {
	case first == 0 || first != last && first != last+1:
		return xfsUnsure("the log begins with cycle %d and ends with %d", first, last)
	case first != last:
		if head, err = l.find(last); err != nil {
			return err
		}
	}
	if err := l.even(head, last); err != nil {
		return err
	}
	return l.unmounted(head, first, last)
}

// find returns the first block of the last cycle. The first block is not of it.
func (l xfsLog) find(last uint32) (int64, error) {
	low, high := int64(0), l.blocks-1
	for high-low > 1 {
		middle := low + (high-low)/2
		cycle, err := l.cycle(middle)
		if err != nil {
			return 0, err
		}
		if cycle == last {
			high = middle
		} else {
			low = middle
		}
	}
	return high, nil
}

// even checks as many blocks as can be under way at once: none of the cycle that
// is to be overwritten is before the head, and after it and at the end of the ring
// there is nothing else. Before it may be zeros, where xfs_repair made the log.
func (l xfsLog) even(head int64, last uint32) error {
	is := func(cycle uint32) bool { return cycle == last }
	other := func(cycle uint32) bool { return cycle != last }
	if err := l.each(max(0, head-xfsLogInFlight), head, other); err != nil {
		return err
	}
	if err := l.each(head, min(l.blocks, head+xfsLogInFlight), is); err != nil {
		return err
	}
	return l.each(max(head, l.blocks-xfsLogInFlight), l.blocks, is)
}

func (l xfsLog) each(from, to int64, ok func(cycle uint32) bool) error {
	b := make([]byte, xfsLogRead*xfsLogBlock)
	for ; from < to; from += xfsLogRead {
		part := b[:min(to-from, xfsLogRead)*xfsLogBlock]
		if err := l.read(from, part); err != nil {
			return err
		}
		for ; len(part) > 0; part = part[xfsLogBlock:] {
			if cycle := xfsCycle(part); !ok(cycle) {
				return xfsUnsure("the log is not clean: cycle %d is out of place", cycle)
			}
		}
	}
	return nil
}

// unmounted checks that the last whole record before the head is the one of an
// unmount. As in xlog_find_verify_log_record, one record that is not whole may
// come after it: it was being written in a crash, and replay skips it.
func (l xfsLog) unmounted(head int64, first, last uint32) error {
	for range 2 {
		at, b, err := l.record(head)
		if err != nil {
			return err
		}
		length, blocks := int64(xfsEndian.Uint32(b[12:])), l.headers(b)
		end := (at + blocks + (length+xfsLogBlock-1)/xfsLogBlock) % l.blocks
		if length > 0 && length <= xfsRecordMax && blocks <= xfsRecordMax/xfsRecordCycles && end == head {
			cycle := last
			if at < head {
				cycle = first
			}
			return l.unmount(at, blocks, length, cycle, b)
		}
		head = at
	}
	return xfsUnsure("the log is not clean: no whole record ends at its head")
}

// unmount checks that a record is the one of an unmount: a single operation with
// a flag that says so.
func (l xfsLog) unmount(at, blocks, length int64, cycle uint32, header []byte) error {
	if xfsEndian.Uint32(header[4:]) != cycle || xfsEndian.Uint64(header[16:]) != uint64(cycle)<<32|uint64(at) {
		return xfsUnsure("the log is not clean: its last record is not of cycle %d and block %d", cycle, at)
	}
	if [16]byte(header[304:320]) != l.uuid {
		return xfsUnsure("the log is of another file system")
	}
	operation := make([]byte, xfsLogBlock)
	if err := l.read((at+blocks)%l.blocks, operation); err != nil {
		return err
	}
	if xfsEndian.Uint32(header[40:]) != 1 || operation[9]&xfsUnmount == 0 {
		return xfsUnsure("the log is not clean: it does not end with an unmount")
	}
	return l.sum(at, blocks, length, header)
}

// record returns where the last header before the head is, and the header.
func (l xfsLog) record(head int64) (int64, []byte, error) {
	b := make([]byte, xfsLogBlock)
	for back := int64(1); back <= min(xfsRecordBlocks, l.blocks); back++ {
		at := (head - back + l.blocks) % l.blocks
		if err := l.read(at, b); err != nil {
			return 0, nil, err
		}
		if xfsEndian.Uint32(b) == xfsLogMagic {
			return at, b, nil
		}
	}
	return 0, nil, xfsUnsure("the log is not clean: no record ends at its head")
}

// headers returns how many blocks of header a record has.
func (l xfsLog) headers(b []byte) int64 {
	version, length := xfsEndian.Uint32(b[8:]), int64(xfsEndian.Uint32(b[320:]))
	if !l.v2 || version&2 == 0 || length <= xfsRecordCycles {
		return 1
	}
	return (length + xfsRecordCycles - 1) / xfsRecordCycles
}

// sum checks a record's checksum, if it has one: what mkfs and xfs_repair write
// has none. The header's length is what sizeof says of it, which is less on
// machines that align 64 bit by 32.
func (l xfsLog) sum(at, blocks, length int64, header []byte) error {
	want := binary.LittleEndian.Uint32(header[32:])
	if !l.summed || want == 0 {
		return nil
	}
	sums := [2]uint32{xfsSum(header[:328], 32), xfsSum(header[:324], 32)}
	b := make([]byte, xfsLogBlock)
	add := func(block int64, n int64) error {
		err := l.read(block%l.blocks, b)
		for i := range sums {
			sums[i] = crc32.Update(sums[i], xfsTable, b[:n])
		}
		return err
	}
	for i := int64(1); i < (length+xfsRecordCycles-1)/xfsRecordCycles; i++ {
		if err := add(at+i, 4+4*xfsRecordCycles/xfsLogBlock); err != nil {
			return err
		}
	}
	for done := int64(0); done < length; done += xfsLogBlock {
		if err := add(at+blocks+done/xfsLogBlock, min(xfsLogBlock, length-done)); err != nil {
			return err
		}
	}
	if sums[0] != want && sums[1] != want {
		return xfsUnsure("the log is not clean: the checksum of its last record is wrong")
	}
	return nil
}

func (l xfsLog) cycle(block int64) (uint32, error) {
	b := make([]byte, 8)
	err := l.read(block, b)
	return xfsCycle(b), err
}

func xfsCycle(b []byte) uint32 {
	if word := xfsEndian.Uint32(b); word != xfsLogMagic {
		return word
	}
	return xfsEndian.Uint32(b[4:])
}

func (l xfsLog) read(block int64, b []byte) error {
	return xfsRead(l.r, l.start+size.Bytes(block)*xfsLogBlock, b)
}
