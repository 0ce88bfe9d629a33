package dump

import (
	"encoding/binary"
	"math"

	"golang.org/x/sys/unix"
)

// Offsets of a header's fields that only a writer needs.
const (
	offRecord      = 16 // c_tapea
	offChecksum    = 28
	offLinks       = 34
	offShortUID    = 36
	offShortGID    = 38
	offAccessMicro = 52
	offModifyMicro = 60
	offChange      = 64
	offChangeMicro = 68
	offUsed        = 136 // di_blocks
	offDevice      = 760
	offHost        = 824
)

func (h *header) set16(off int, v uint16) { binary.LittleEndian.PutUint16(h.raw[off:], v) }
func (h *header) set32(off int, v uint32) { binary.LittleEndian.PutUint32(h.raw[off:], v) }
func (h *header) setSize(v int64)         { binary.LittleEndian.PutUint64(h.raw[offSize:], uint64(v)) }

// setText sets a text of less than length bytes, which ends with a NUL.
func (h *header) setText(off, length int, text string) {
	copy(h.raw[off:off+length-1], text)
}

// seal sets the checksum, which makes the sum of all words a constant.
func (h *header) seal() {
	h.set32(offChecksum, 0)
	sum := uint32(0)
	for i := 0; i < recordSize; i += 4 {
		sum += h.u32(i)
	}
	h.set32(offChecksum, checksum-sum)
}

func (h *header) setTime(off, micro int, t unix.StatxTimestamp) {
	h.set32(off, second(t.Sec))
	h.set32(micro, t.Nsec/1000)
}

// setDevice is the reverse of deviceNumbers: old_encode_dev in the first block
// number where there is room, or else new_encode_dev in the second.
func (h *header) setDevice(major, minor uint32) {
	if major <= 0xff && minor <= 0xff {
		h.set32(offBlocks, major<<8|minor)
		return
	}
	h.set32(offBlocks+4, minor&0xff|major<<8|minor&^0xff<<12)
}

// second is a time as a dump has it, or the nearest it can hold.
func second(t int64) uint32 { return uint32(min(max(t, 0), math.MaxUint32)) }
