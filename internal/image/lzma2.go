package image

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"

	"ganeti-instance-image/internal/size"
)

const (
	lzmaStates    = 12
	lzmaPositions = 16      // of bytes, as far as they count
	lzmaChunk     = 2 << 20 // most that a chunk decodes to
	lzmaInput     = 64 << 10
	// lzmaPadding is behind the input of a chunk: more than one symbol takes.
	lzmaPadding = 64
	lzmaTop     = 1 << 24
	lzmaEven    = 1024 // probability of one half
)

// errXZData is damage of any kind: which it was would help nobody.
var errXZData = errors.New("xz: data is corrupt")

// rangeDecoder decodes bits of known probabilities. Probabilities are those of a
// zero, in 2048ths.
type rangeDecoder struct {
	in          []byte
	pos         int
	width, code uint32
}

func (r *rangeDecoder) bit(p *uint16) uint32 {
	v := uint32(*p)
	bound := r.width >> 11 * v
	bit := uint32(0)
	if r.code < bound {
		r.width = bound
		*p = uint16(v + (2048-v)>>5)
	} else {
		r.width -= bound
		r.code -= bound
		*p = uint16(v - v>>5)
		bit = 1
	}
	if r.width < lzmaTop {
		r.width <<= 8
		r.code = r.code<<8 | uint32(r.in[r.pos])
		r.pos++
	}
	return bit
}

// tree decodes a number below end, a power of two, the highest bit first.
func (r *rangeDecoder) tree(probs []uint16, end uint32) uint32 {
	width, code, pos, in := r.width, r.code, r.pos, r.in
	m := uint32(1)
	for m < end {
		p := &probs[m]
		v := uint32(*p)
		bound := width >> 11 * v
		if code < bound {
			width = bound
			*p = uint16(v + (2048-v)>>5)
			m <<= 1
		} else {
			width -= bound
			code -= bound
			*p = uint16(v - v>>5)
			m = m<<1 | 1
		}
		if width < lzmaTop {
			width <<= 8
			code = code<<8 | uint32(in[pos])
			pos++
		}
	}
	r.width, r.code, r.pos = width, code, pos
	return m - end
}

// reverse decodes a number of n bits, the lowest first.
func (r *rangeDecoder) reverse(probs []uint16, n uint) uint32 {
	m, v := uint32(1), uint32(0)
	for i := range n {
		bit := r.bit(&probs[m])
		m = m<<1 | bit
		v |= bit << i
	}
	return v
}

// direct decodes a number of n bits that are as often zero as one.
func (r *rangeDecoder) direct(n uint) uint32 {
	v := uint32(0)
	for range n {
		r.width >>= 1
		r.code -= r.width
		zero := -(r.code >> 31) // all ones where the bit is zero
		r.code += r.width & zero
		v = v<<1 + zero + 1
		if r.width < lzmaTop {
			r.width <<= 8
			r.code = r.code<<8 | uint32(r.in[r.pos])
			r.pos++
		}
	}
	return v
}

// literal decodes a byte.
func (r *rangeDecoder) literal(probs *[0x300]uint16) byte {
	width, code, pos, in := r.width, r.code, r.pos, r.in
	m := uint32(1)
	for m < 0x100 {
		v := uint32(probs[m])
		bound := width >> 11 * v
		if code < bound {
			width = bound
			probs[m] = uint16(v + (2048-v)>>5)
			m <<= 1
		} else {
			width -= bound
			code -= bound
			probs[m] = uint16(v - v>>5)
			m = m<<1 | 1
		}
		if width < lzmaTop {
			width <<= 8
			code = code<<8 | uint32(in[pos])
			pos++
		}
	}
	r.width, r.code, r.pos = width, code, pos
	return byte(m)
}

// literalAfter decodes a byte that follows a match, as far as it is the same with
// the probabilities of the byte that follows what was matched.
func (r *rangeDecoder) literalAfter(probs *[0x300]uint16, matched byte) byte {
	width, code, pos, in := r.width, r.code, r.pos, r.in
	offset, m, match := uint32(0x100), uint32(1), uint32(matched)
	for m < 0x100 {
		match <<= 1
		p := &probs[offset+match&offset+m]
		v := uint32(*p)
		bound := width >> 11 * v
		if code < bound {
			width = bound
			*p = uint16(v + (2048-v)>>5)
			m <<= 1
			offset &^= match
		} else {
			width -= bound
			code -= bound
			*p = uint16(v - v>>5)
			m = m<<1 | 1
			offset &= match
		}
		if width < lzmaTop {
			width <<= 8
			code = code<<8 | uint32(in[pos])
			pos++
		}
	}
	r.width, r.code, r.pos = width, code, pos
	return byte(m)
}

// lengths are the probabilities of lengths of matches.
type lengths struct {
	choice, choice2 uint16
	low, middle     [lzmaPositions][8]uint16
	high            [256]uint16
}

func (l *lengths) decode(r *rangeDecoder, position int) int {
	if r.bit(&l.choice) == 0 {
		return 2 + int(r.tree(l.low[position][:], 8))
	}
	if r.bit(&l.choice2) == 0 {
		return 10 + int(r.tree(l.middle[position][:], 8))
	}
	return 18 + int(r.tree(l.high[:], 256))
}

// probabilities are all that a state reset makes even.
type probabilities struct {
	match    [lzmaStates][lzmaPositions]uint16
	rep      [lzmaStates]uint16
	rep0     [lzmaStates]uint16
	rep1     [lzmaStates]uint16
	rep2     [lzmaStates]uint16
	rep0Long [lzmaStates][lzmaPositions]uint16
	slot     [4][64]uint16
	special  [128]uint16
	align    [16]uint16
	length   lengths
	repeated lengths
	literal  [16][0x300]uint16
}

// lzma2 decodes LZMA2 data: chunks that are LZMA or stored. What it decoded is in
// a window that is moved back when it is full.
type lzma2 struct {
	r     rangeDecoder
	p     probabilities
	state int
	reps  [4]int

	lc, literalMask, positionMask int

	window     []byte
	dictionary int
	start      int // where in the window the dictionary begins, which is reset
	at         int // where in the window the next byte belongs
	known      int // what the data has set up so far: 1 dictionary, 2 properties, 4 state
	input      [lzmaInput + lzmaPadding]byte
}

// begin makes room for a dictionary.
func (z *lzma2) begin(dictionary int) {
	if length := dictionary + max(2*lzmaChunk, dictionary/4); len(z.window) != length {
		z.window = make([]byte, length)
	}
	z.dictionary, z.start, z.at, z.known = dictionary, 0, 0, 0
}

// chunk decodes the next chunk. What it returns is valid until the next call, and
// how many bytes of input it took. Its error is io.EOF behind the last.
func (z *lzma2) chunk(in *bufio.Reader) (out []byte, took int, err error) {
	control, err := in.ReadByte()
	if err != nil {
		return nil, 0, noEOF(err)
	}
	if control == 0 {
		return nil, 1, io.EOF
	}
	var h [5]byte
	header := h[:2]
	if control >= 0x80 {
		header = h[:4]
	}
	if control >= 0xc0 {
		header = h[:5]
	}
	if _, err := io.ReadFull(in, header); err != nil {
		return nil, 0, noEOF(err)
	}
	n := int(binary.BigEndian.Uint16(header)) + 1
	if control < 0x80 {
		out, err = z.stored(in, control, n)
		return out, 3 + n, err
	}
	n += int(control&0x1f) << 16
	packed := int(binary.BigEndian.Uint16(header[2:])) + 1
	if err := z.prepare(control>>5&3, header); err != nil {
		return nil, 0, err
	}
	if _, err := io.ReadFull(in, z.input[:packed]); err != nil {
		return nil, 0, noEOF(err)
	}
	z.room(n)
	from := z.at
	err = z.compressed(n, packed)
	return z.window[from:z.at], 1 + len(header) + packed, err
}

// stored takes a chunk that is not compressed.
func (z *lzma2) stored(in *bufio.Reader, control byte, n int) ([]byte, error) {
	switch {
	case control == 1:
		z.start, z.known = z.at, 1
	case control != 2 || z.known&1 == 0:
		return nil, errXZData
	}
	z.room(n)
	out := z.window[z.at : z.at+n]
	z.at += n
	_, err := io.ReadFull(in, out)
	return out, noEOF(err)
}

// room moves the dictionary where n bytes do not fit behind it.
func (z *lzma2) room(n int) {
	if z.at+n <= len(z.window) {
		return
	}
	from := max(z.at-z.dictionary, 0)
	if from > z.start {
		// Positions count in what follows as far as they do (lzmaPositions).
		from -= (from - z.start) % lzmaPositions
	}
	copy(z.window, z.window[from:z.at])
	z.start, z.at = max(z.start-from, 0), z.at-from
}

// prepare resets what a chunk says: 1 the state, 2 the properties too, and 3 the
// dictionary too.
func (z *lzma2) prepare(reset byte, header []byte) error {
	if reset == 3 {
		z.start, z.known = z.at, 1
	}
	if reset >= 2 {
		properties := int(header[4])
		lc, lp, pb := properties%9, properties/9%5, properties/45
		if pb > 4 || lc+lp > 4 {
			return errXZData
		}
		z.lc, z.literalMask, z.positionMask = lc, 1<<lp-1, 1<<pb-1
		z.known |= 2
	}
	if reset >= 1 {
		z.state, z.reps = 0, [4]int{}
		z.p.reset()
		z.known |= 4
	}
	if z.known != 7 {
		return errXZData
	}
	return nil
}

func even(probs []uint16) {
	for i := range probs {
		probs[i] = lzmaEven
	}
}

func (p *probabilities) reset() {
	for i := range lzmaStates {
		even(p.match[i][:])
		even(p.rep0Long[i][:])
	}
	for i := range p.slot {
		even(p.slot[i][:])
	}
	for i := range p.literal {
		even(p.literal[i][:])
	}
	for _, probs := range [][]uint16{p.rep[:], p.rep0[:], p.rep1[:], p.rep2[:], p.special[:], p.align[:]} {
		even(probs)
	}
	p.length.reset()
	p.repeated.reset()
}

func (l *lengths) reset() {
	l.choice, l.choice2 = lzmaEven, lzmaEven
	for i := range l.low {
		even(l.low[i][:])
		even(l.middle[i][:])
	}
	even(l.high[:])
}

// compressed decodes n bytes from the packed ones of input.
func (z *lzma2) compressed(n, packed int) error {
	clear(z.input[packed : packed+lzmaPadding])
	r := &z.r
	if packed < 5 || z.input[0] != 0 {
		return errXZData
	}
	r.in, r.pos, r.width, r.code = z.input[:], 5, 1<<32-1, binary.BigEndian.Uint32(z.input[1:])
	p, window, at, end := &z.p, z.window, z.at, z.at+n
	for at < end {
		if r.pos > packed {
			return errXZData
		}
		position := at - z.start
		if r.bit(&p.match[z.state][position&z.positionMask]) == 0 {
			before := byte(0)
			if at > z.start {
				before = window[at-1]
			}
			probs := &p.literal[((position&z.literalMask)<<z.lc+int(before)>>(8-z.lc))&15]
			if z.state < 7 {
				window[at] = r.literal(probs)
			} else {
				distance := z.reps[0] + 1
				if distance > at-z.start {
					return errXZData
				}
				window[at] = r.literalAfter(probs, window[at-distance])
			}
			at++
			z.state = afterLiteral[z.state]
			continue
		}
		length := z.match(r, position&z.positionMask)
		distance := z.reps[0] + 1
		if distance > at-z.start || distance > z.dictionary || length > end-at {
			return errXZData
		}
		repeat(window[:at+length], at, distance)
		at += length
	}
	z.at = at
	if r.pos != packed || r.code != 0 {
		return errXZData
	}
	return nil
}

// afterLiteral are the states that follow the states.
var afterLiteral = [lzmaStates]int{0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 4, 5}

// repeat fills the window from at to its end with what is distance before.
func repeat(window []byte, at, distance int) {
	if length := len(window) - at; distance >= length {
		copy(window[at:], window[at-distance:at-distance+length])
		return
	}
	for ; at < len(window); at++ {
		window[at] = window[at-distance]
	}
}

// match decodes a match: its length, and its distance less 1 into reps[0].
func (z *lzma2) match(r *rangeDecoder, position int) int {
	p, s := &z.p, z.state
	after := func(literal, match int) {
		z.state = match
		if s < 7 {
			z.state = literal
		}
	}
	if r.bit(&p.rep[s]) == 0 {
		z.reps[3], z.reps[2], z.reps[1] = z.reps[2], z.reps[1], z.reps[0]
		after(7, 10)
		length := p.length.decode(r, position)
		z.reps[0] = z.distance(r, length)
		return length
	}
	if r.bit(&p.rep0[s]) == 0 {
		if r.bit(&p.rep0Long[s][position]) == 0 {
			after(9, 11)
			return 1
		}
	} else {
		i := 1
		if r.bit(&p.rep1[s]) == 1 {
			i = 2 + int(r.bit(&p.rep2[s]))
		}
		distance := z.reps[i]
		copy(z.reps[1:i+1], z.reps[:i])
		z.reps[0] = distance
	}
	after(8, 11)
	return p.repeated.decode(r, position)
}

// distance decodes a distance, less 1. One that means the end of LZMA data is too
// far for any dictionary.
func (z *lzma2) distance(r *rangeDecoder, length int) int {
	slot := r.tree(z.p.slot[min(length-2, 3)][:], 64)
	if slot < 4 {
		return int(slot)
	}
	bits := uint(slot>>1 - 1)
	distance := (2 | slot&1) << bits
	if slot < 14 {
		return int(distance + r.reverse(z.p.special[distance-slot:], bits))
	}
	return int(distance + r.direct(bits-4)<<4 + r.reverse(z.p.align[:], 4))
}

// blockDecoder decodes xz blocks that are LZMA2 without other filters, and
// compares their lengths with the index and their checks.
type blockDecoder struct {
	z      lzma2
	in     *bufio.Reader
	blocks []xzBlock
	s      *Stream
	sum    hash.Hash
	rest   []byte
	out    int64 // bytes of the block so far
	took   int64
	open   bool
}

func (d *blockDecoder) reset(in *bufio.Reader, _ int) error {
	d.in, d.rest, d.open = in, nil, false
	return nil
}

func (d *blockDecoder) Read(p []byte) (int, error) {
	for len(d.rest) == 0 {
		if err := d.more(); err != nil {
			return 0, err
		}
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

func (d *blockDecoder) more() error {
	if !d.open {
		if len(d.blocks) == 0 {
			return io.EOF
		}
		d.z.begin(int(dictionarySize(d.s.dictionary)))
		d.sum, d.out, d.took, d.open = newXZCheck(d.blocks[0].check), 0, 0, true
	}
	b := d.blocks[0]
	out, took, err := d.z.chunk(d.in)
	d.took += int64(took)
	d.out += int64(len(out))
	if d.out > b.content {
		return errXZData
	}
	if err == io.EOF {
		d.blocks, d.open = d.blocks[1:], false
		return d.end(b)
	}
	if err == nil {
		d.sum.Write(out)
		d.rest = out
	}
	return err
}

// end compares what follows the data of a block.
func (d *blockDecoder) end(b xzBlock) error {
	padding := int(-(b.unpadded) & 3)
	tail := make([]byte, padding+int(xzChecks[b.check]))
	if _, err := io.ReadFull(d.in, tail); err != nil {
		return noEOF(err)
	}
	if d.out != b.content || d.took != b.data() {
		return errXZData
	}
	for _, c := range tail[:padding] {
		if c != 0 {
			return errXZData
		}
	}
	if string(d.sum.Sum(nil)) != string(tail[padding:]) {
		return errXZData
	}
	return nil
}

// data is the length of a block's compressed data.
func (b xzBlock) data() int64 { return b.unpadded - int64(b.header) - xzChecks[b.check] }

// newXZCheck computes a check as a file has it.
func newXZCheck(kind byte) hash.Hash {
	switch kind {
	case 1:
		return littleEndian{crc32.NewIEEE()}
	case 4:
		return littleEndian{crc64.New(crc64.MakeTable(crc64.ECMA))}
	case 10:
		return sha256.New()
	}
	return noCheck{crc32.NewIEEE()}
}

// littleEndian turns a sum around.
type littleEndian struct{ hash.Hash }

func (l littleEndian) Sum(b []byte) []byte {
	sum := l.Hash.Sum(nil)
	for i := range sum {
		b = append(b, sum[len(sum)-1-i])
	}
	return b
}

type noCheck struct{ hash.Hash }

func (noCheck) Write(p []byte) (int, error) { return len(p), nil }
func (noCheck) Sum(b []byte) []byte         { return b }

// lzmaMemory is what a decoder takes for a dictionary.
func lzmaMemory(dictionary int64) int64 {
	return dictionary + max(2*lzmaChunk, dictionary/4) + int64(size.MiB)
}
