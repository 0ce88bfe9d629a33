package dump

import (
	"encoding/binary"
	"errors"
)

var errLZO = errors.New("its instructions are wrong")

// lzo is LZO1X data that is being decoded. The format is that of
// Documentation/staging/lzo.rst of the Linux kernel, without its version 1: bare
// instructions and no checksum.
type lzo struct {
	out, in []byte
	at, pos int // in out, in in
	// literals is how many bytes the last instruction copied from the input, up to
	// 3, and longRun of more. It changes what the instructions below 16 mean.
	literals int
}

const longRun = 4

// decodeLZO fills out from all of in.
func decodeLZO(out, in []byte) error {
	z := &lzo{out: out, in: in}
	if len(in) > 0 && in[0] > 17 {
		z.pos = 1
		n := int(in[0]) - 17
		if !z.copyLiterals(n) {
			return errLZO
		}
		z.literals = min(n, longRun)
	}
	for {
		end, ok := z.instruction()
		if !ok {
			return errLZO
		}
		if !end {
			continue
		}
		if z.at != len(out) || z.pos != len(in) {
			return errLength
		}
		return nil
	}
}

// instruction decodes one of them and reports whether it was the end.
func (z *lzo) instruction() (end, ok bool) {
	if z.pos >= len(z.in) {
		return false, false
	}
	t := int(z.in[z.pos])
	z.pos++
	length, distance, trailing := 0, 0, t&3
	switch {
	case t >= 64:
		length, distance = t>>5+1, 1+t>>2&7+z.byte()<<3
	case t >= 32:
		length = z.length(t&31, 31) + 2
		d := z.word()
		distance, trailing = 1+d>>2, d&3
	case t >= 16:
		length = z.length(t&7, 7) + 2
		d := z.word()
		distance, trailing = 0x4000+t&8<<11+d>>2, d&3
		if distance == 0x4000 {
			return true, length == 3 && z.pos <= len(z.in)
		}
	case z.literals == 0:
		z.literals = longRun
		return false, z.copyLiterals(z.length(t, 15) + 3)
	case z.literals == longRun:
		length, distance = 3, 0x801+t>>2+z.byte()<<2
	default:
		length, distance = 2, 1+t>>2+z.byte()<<2
	}
	z.literals = trailing
	return false, z.copyMatch(length, distance) && z.copyLiterals(trailing)
}

// byte and word take input. Behind its end they are zero and move pos beyond it,
// which the copies look at.
func (z *lzo) byte() int {
	z.pos++
	if z.pos > len(z.in) {
		return 0
	}
	return int(z.in[z.pos-1])
}

func (z *lzo) word() int {
	z.pos += 2
	if z.pos > len(z.in) {
		return 0
	}
	return int(binary.LittleEndian.Uint16(z.in[z.pos-2:]))
}

// length is n, or where that is 0 all plus what follows: 255 for each zero byte,
// and the byte behind them.
func (z *lzo) length(n, all int) int {
	if n > 0 {
		return n
	}
	for n = all; z.pos < len(z.in) && z.in[z.pos] == 0; z.pos++ {
		n += 255
	}
	return n + z.byte()
}

func (z *lzo) copyLiterals(n int) bool {
	if n > len(z.in)-z.pos || n > len(z.out)-z.at {
		return false
	}
	if n <= 16 && len(z.in)-z.pos >= 16 && len(z.out)-z.at >= 16 {
		copy(z.out[z.at:z.at+16], z.in[z.pos:z.pos+16])
	} else {
		copy(z.out[z.at:], z.in[z.pos:z.pos+n])
	}
	z.pos += n
	z.at += n
	return true
}

func (z *lzo) copyMatch(length, distance int) bool {
	if z.pos > len(z.in) || distance > z.at || length > len(z.out)-z.at {
		return false
	}
	from, to, end := z.at-distance, z.at, z.at+length
	z.at = end
	if distance >= 8 && end+8 <= len(z.out) {
		for ; to < end; from, to = from+8, to+8 {
			binary.LittleEndian.PutUint64(z.out[to:], binary.LittleEndian.Uint64(z.out[from:]))
		}
		return true
	}
	for ; to < end; from, to = from+1, to+1 {
		z.out[to] = z.out[from]
	}
	return true
}
