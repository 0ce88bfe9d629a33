// Package inflate decodes DEFLATE data (RFC 1951): with Decoder what is in memory
// as a whole, as the clusters of a qcow2 image and the blocks of a dump are, and
// with Reader a stream.
//
// Left out: the headers and checksums of zlib and gzip around the data,
// dictionaries that were agreed on before, and compressing.
package inflate

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

// Decoder decodes DEFLATE data (RFC 1951) of which all input is in memory and
// all output is wanted. Without windows and readers it needs about half the time
// of a decoder for streams. Its zero value is ready, and is used again for the
// next data, by one user at a time.
//
// Codes are looked up in tables by the next bits of the input; a code longer
// than a table has bits leads to a second table behind it. An entry of a table
// is one of
//
//	literal      flagLiteral | byte<<16 | bits
//	length       base<<16 | code bits<<8 | bits with the extra ones
//	distance     base<<16 | code bits<<8 | bits with the extra ones
//	second table flagOther | flagTable | start<<16 | its index bits<<8 | bits
//	end of block flagOther | flagEnd | bits
//	no code      flagOther | bits
type Decoder struct {
	in    []byte // with Padding behind the data
	end   int    // of the data in it
	stop  int    // where the fast loop begins no turn any more
	pos   int    // in it
	buf   uint64 // bits taken from in
	count uint   // of valid bits in buf

	literals  [4096]uint32 // codes need at most 2342
	distances [1024]uint32 // codes need at most 402
	precode   [128]uint32
	lengths   [maxLiterals + maxDistances]uint8
	fixed     bool // the tables are those of a block with fixed codes
}

const (
	// Padding is how many bytes there must be behind the input, so that it can
	// be read 8 at a time. What is in them does not count.
	Padding = 16

	literalBits  = 11
	distanceBits = 8
	precodeBits  = 7
	maxLiterals  = 288
	maxDistances = 32
	maxCodeBits  = 15

	flagLiteral = 1 << 31
	flagOther   = 1 << 15
	flagTable   = 1 << 14
	flagEnd     = 1 << 13

	// fastOutput is how much room one turn of the fast loop may need: three
	// literals, or two and the longest match, copied 8 bytes at a time.
	fastOutput = 3 + 258 + 8
)

var (
	errDeflate    = errors.New("invalid code")
	errDeflateEnd = errors.New("unexpected end")
	errTooLong    = errors.New("longer than it should be")
)

// Meanings of the symbols, as entries without the bits of their codes: base<<16
// | extra bits.
var (
	literalMeaning  = literalMeanings()
	distanceMeaning = distanceMeanings()
	precodeMeaning  = precodeMeanings()
	precodeOrder    = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
)

func literalMeanings() (m [maxLiterals]uint32) {
	for i := range 256 {
		m[i] = flagLiteral | uint32(i)<<16
	}
	m[256] = flagOther | flagEnd
	base := uint32(3)
	for i := 257; i < 285; i++ {
		extra := uint32(max(i-261, 0) / 4)
		m[i] = base<<16 | extra
		base += 1 << extra
	}
	m[285] = 258 << 16
	m[286], m[287] = flagOther, flagOther
	return m
}

func distanceMeanings() (m [maxDistances]uint32) {
	base := uint32(1)
	for i := range 30 {
		extra := uint32(max(i-2, 0) / 2)
		m[i] = base<<16 | extra
		base += 1 << extra
	}
	m[30], m[31] = flagOther, flagOther
	return m
}

func precodeMeanings() (m [19]uint32) {
	for i := range m {
		m[i] = uint32(i) << 16
	}
	return m
}

// Decode fills out from the data at the beginning of in[:n]; in is padded by
// Padding bytes. Data that goes on when out is full is an error, and so
// is data whose end is not marked, which QEMU would take: there is no checksum,
// so that this is how most damage is found.
func (z *Decoder) Decode(out, in []byte, n int) error {
	z.in, z.end, z.stop, z.pos, z.buf, z.count = in[:n+Padding], n, n, 0, 0, 0
	at := 0
	for last := false; !last; {
		err := z.refill()
		if err != nil {
			return err
		}
		last = z.take(1) == 1
		switch z.take(2) {
		case 0:
			at, err = z.stored(out, at)
		case 1:
			z.fixedCodes()
			at, err = z.block(out, at)
		case 2:
			if err = z.dynamicCodes(); err == nil {
				at, err = z.block(out, at)
			}
		default:
			err = errDeflate
		}
		if err != nil {
			return err
		}
	}
	if at < len(out) || z.overrun() {
		return errDeflateEnd
	}
	return nil
}

// refill makes at least 56 bits of buf valid. The bits above count are the next
// ones already, so that taking them once more does no harm.
func (z *Decoder) refill() error {
	if z.overrun() {
		return errDeflateEnd
	}
	z.buf |= binary.LittleEndian.Uint64(z.in[z.pos:]) << (z.count & 63)
	z.pos += int(63-z.count) >> 3
	z.count |= 56
	return nil
}

func (z *Decoder) take(n uint) uint32 {
	v := uint32(z.buf & (1<<n - 1))
	z.buf >>= n
	z.count -= n
	return v
}

// overrun reports that bits behind the end of the data were used. Asked before
// each refill, which reads 8 bytes, it keeps that inside the padding.
func (z *Decoder) overrun() bool { return z.pos-int(z.count>>3) > z.end }

// stored copies a block that is not compressed.
func (z *Decoder) stored(out []byte, at int) (int, error) {
	n, err := z.storedLength()
	switch {
	case err != nil:
		return at, err
	case n > len(out)-at:
		return at, errTooLong
	case z.pos+n > z.end:
		return at, errDeflateEnd
	}
	copy(out[at:], z.in[z.pos:z.pos+n])
	z.pos += n
	return at + n, nil
}

// storedLength reads how long a block is that is not compressed, which begins
// with the next whole byte.
func (z *Decoder) storedLength() (int, error) {
	z.pos -= int(z.count >> 3)
	z.buf, z.count = 0, 0
	if z.pos+4 > z.end {
		return 0, errDeflateEnd
	}
	n := binary.LittleEndian.Uint16(z.in[z.pos:])
	if n != ^binary.LittleEndian.Uint16(z.in[z.pos+2:]) {
		return 0, errDeflate
	}
	z.pos += 4
	return int(n), nil
}

func (z *Decoder) fixedCodes() {
	if z.fixed {
		return
	}
	l := &z.lengths
	for i := range maxLiterals {
		switch {
		case i < 144, i >= 280:
			l[i] = 8
		case i < 256:
			l[i] = 9
		default:
			l[i] = 7
		}
	}
	for i := range maxDistances {
		l[maxLiterals+i] = 5
	}
	// These codes are complete, so that neither can fail.
	_ = buildTable(z.literals[:], l[:maxLiterals], literalMeaning[:], literalBits)
	_ = buildTable(z.distances[:], l[maxLiterals:], distanceMeaning[:], distanceBits)
	z.fixed = true
}

// dynamicCodes reads the codes of a block and builds their tables.
func (z *Decoder) dynamicCodes() error {
	z.fixed = false
	literals, distances, precodes := int(z.take(5))+257, int(z.take(5))+1, int(z.take(4))+4
	if literals > 286 || distances > 30 {
		return errDeflate
	}
	var lengths [19]uint8
	for i, symbol := range precodeOrder[:precodes] {
		if i%16 == 0 {
			if err := z.refill(); err != nil {
				return err
			}
		}
		lengths[symbol] = uint8(z.take(3))
	}
	if err := buildTable(z.precode[:], lengths[:], precodeMeaning[:], precodeBits); err != nil {
		return err
	}
	if err := z.codeLengths(literals + distances); err != nil {
		return err
	}
	if z.lengths[256] == 0 {
		return errDeflate
	}
	if err := buildTable(z.literals[:], z.lengths[:literals], literalMeaning[:], literalBits); err != nil {
		return err
	}
	return buildTable(z.distances[:], z.lengths[literals:literals+distances], distanceMeaning[:], distanceBits)
}

// codeLengths reads the lengths of n codes.
func (z *Decoder) codeLengths(n int) error {
	for i := 0; i < n; {
		if err := z.refill(); err != nil {
			return err
		}
		entry := z.precode[z.buf&(1<<precodeBits-1)]
		if entry&flagOther != 0 {
			return errDeflate
		}
		z.take(uint(entry & 63))
		symbol := entry >> 16
		if symbol < 16 {
			z.lengths[i] = uint8(symbol)
			i++
			continue
		}
		value, repeat := uint8(0), 0
		switch symbol {
		case 16:
			if i == 0 {
				return errDeflate
			}
			value, repeat = z.lengths[i-1], 3+int(z.take(2))
		case 17:
			repeat = 3 + int(z.take(3))
		default:
			repeat = 11 + int(z.take(7))
		}
		if i+repeat > n {
			return errDeflate
		}
		for ; repeat > 0; repeat-- {
			z.lengths[i] = value
			i++
		}
	}
	return nil
}

// block decodes symbols up to the end of a block.
func (z *Decoder) block(out []byte, at int) (int, error) {
	at, ended, err := z.fast(out, at)
	if ended || err != nil {
		return at, err
	}
	return z.blockEnd(out, at)
}

// fast decodes symbols as long as there is much room for output and much input,
// in a loop that looks at bounds once a turn. A turn begins at stop at the
// latest and reads less than Padding bytes.
func (z *Decoder) fast(out []byte, at int) (next int, ended bool, err error) {
	in, stop := z.in, z.stop
	buf, count, pos := z.buf, z.count, z.pos
	for at+fastOutput <= len(out) && pos <= stop {
		buf |= binary.LittleEndian.Uint64(in[pos:]) << (count & 63)
		pos += int(63-count) >> 3
		count |= 56
		entry := z.literals[buf&(1<<literalBits-1)]
		if entry&flagLiteral != 0 {
			buf >>= entry & 63
			count -= uint(entry & 63)
			out[at] = byte(entry >> 16)
			at++
			entry = z.literals[buf&(1<<literalBits-1)]
			if entry&flagLiteral != 0 {
				buf >>= entry & 63
				count -= uint(entry & 63)
				out[at] = byte(entry >> 16)
				at++
				entry = z.literals[buf&(1<<literalBits-1)]
				if entry&flagLiteral != 0 {
					buf >>= entry & 63
					count -= uint(entry & 63)
					out[at] = byte(entry >> 16)
					at++
					continue
				}
			}
			buf |= binary.LittleEndian.Uint64(in[pos:]) << (count & 63)
			pos += int(63-count) >> 3
			count |= 56
		}
		if entry&flagOther != 0 {
			if entry&flagTable != 0 {
				buf >>= entry & 63
				count -= uint(entry & 63)
				entry = z.literals[(uint64(entry>>16)+buf&(1<<(entry>>8&15)-1))&4095]
			}
			if entry&flagLiteral != 0 {
				buf >>= entry & 63
				count -= uint(entry & 63)
				out[at] = byte(entry >> 16)
				at++
				continue
			}
			if entry&flagOther != 0 {
				buf >>= entry & 63
				count -= uint(entry & 63)
				if ended = entry&flagEnd != 0; !ended {
					err = errDeflate
				}
				break
			}
		}
		length := int(entry>>16) + int(buf&(1<<(entry&63)-1)>>(entry>>8&15))
		buf >>= entry & 63
		count -= uint(entry & 63)

		entry = z.distances[buf&(1<<distanceBits-1)]
		if entry&flagOther != 0 {
			if entry&flagTable == 0 {
				err = errDeflate
				break
			}
			buf >>= entry & 63
			count -= uint(entry & 63)
			entry = z.distances[(uint64(entry>>16)+buf&(1<<(entry>>8&15)-1))&1023]
			if entry&flagOther != 0 {
				err = errDeflate
				break
			}
		}
		distance := int(entry>>16) + int(buf&(1<<(entry&63)-1)>>(entry>>8&15))
		buf >>= entry & 63
		count -= uint(entry & 63)
		if distance > at {
			err = errDeflate
			break
		}
		from, to := at-distance, at
		at += length
		switch {
		case distance >= 8:
			for to < at {
				binary.LittleEndian.PutUint64(out[to:], binary.LittleEndian.Uint64(out[from:]))
				from, to = from+8, to+8
			}
		case distance == 1:
			pattern := uint64(out[from]) * 0x0101010101010101
			for ; to < at; to += 8 {
				binary.LittleEndian.PutUint64(out[to:], pattern)
			}
		default:
			for ; to < at; to++ {
				out[to] = out[from]
				from++
			}
		}
	}
	z.buf, z.count, z.pos = buf, count, pos
	return at, ended, err
}

// blockEnd decodes symbols up to the end of a block with all bounds looked at,
// and nothing that the padding has a part in.
func (z *Decoder) blockEnd(out []byte, at int) (int, error) {
	for {
		if err := z.refill(); err != nil {
			return at, err
		}
		entry := z.symbol(z.literals[:], literalBits)
		if z.overrun() {
			return at, errDeflateEnd
		}
		if entry&flagOther != 0 && entry&flagEnd != 0 {
			return at, nil
		}
		if entry&flagOther != 0 {
			return at, errDeflate
		}
		if at == len(out) {
			return at, errTooLong
		}
		if entry&flagLiteral != 0 {
			out[at] = byte(entry >> 16)
			at++
			continue
		}
		length := int(entry >> 16)
		entry = z.symbol(z.distances[:], distanceBits)
		distance := int(entry >> 16)
		if z.overrun() {
			return at, errDeflateEnd
		}
		if entry&flagOther != 0 || distance > at {
			return at, errDeflate
		}
		if length > len(out)-at {
			return at, errTooLong
		}
		for range length {
			out[at] = out[at-distance]
			at++
		}
	}
}

// symbol takes a code with its extra bits and returns its entry, the extra bits
// added to the base of a length or a distance.
func (z *Decoder) symbol(table []uint32, tableBits uint) uint32 {
	entry := table[z.buf&(1<<tableBits-1)]
	if entry&flagLiteral == 0 && entry&flagOther != 0 && entry&flagTable != 0 {
		z.take(uint(entry & 63))
		entry = table[uint64(entry>>16)+z.buf&(1<<(entry>>8&15)-1)]
	}
	v := z.take(uint(entry & 63))
	if entry&(flagLiteral|flagOther) == 0 {
		entry += v >> (entry >> 8 & 15) << 16
	}
	return entry
}

// buildTable makes the table of a code from the lengths of its symbols' codes.
// Codes are assigned in order of length and symbol; they are kept with the
// first bit lowest, as they stand in the input.
func buildTable(table []uint32, lengths []uint8, meaning []uint32, tableBits int) error {
	var counts [maxCodeBits + 1]int
	for _, l := range lengths {
		counts[l]++
	}
	longest, err := checkCode(&counts)
	if err != nil {
		return err
	}
	var sorted [maxLiterals]uint16
	sortSymbols(&sorted, lengths, &counts)
	if longest <= 1 {
		// No code, or one that leaves the other bit without a meaning.
		fill(table[:1<<tableBits], flagOther|uint32(longest))
		if longest == 1 && counts[1] == 1 {
			for i := 0; i < 1<<tableBits; i += 2 {
				table[i] = entryOf(meaning[sorted[0]], 1)
			}
			return nil
		}
	}
	fillTable(table, sorted[:], meaning, &counts, tableBits, longest)
	return nil
}

// checkCode refuses lengths that give two symbols one code, and those that
// leave codes without a symbol, except where there is one symbol or none.
func checkCode(counts *[maxCodeBits + 1]int) (longest int, err error) {
	left := 1
	for l := 1; l <= maxCodeBits; l++ {
		left = left<<1 - counts[l]
		if left < 0 {
			return 0, errDeflate
		}
		if counts[l] > 0 {
			longest = l
		}
	}
	if left > 0 && longest > 1 {
		return 0, errDeflate
	}
	return longest, nil
}

// sortSymbols puts the symbols that have a code in the order of the codes.
func sortSymbols(sorted *[maxLiterals]uint16, lengths []uint8, counts *[maxCodeBits + 1]int) {
	var next [maxCodeBits + 2]int
	for l := 1; l <= maxCodeBits; l++ {
		next[l+1] = next[l] + counts[l]
	}
	for symbol, l := range lengths {
		if l > 0 {
			sorted[next[l]] = uint16(symbol)
			next[l]++
		}
	}
}

// fillTable writes the entries of a complete code.
func fillTable(table []uint32, sorted []uint16, meaning []uint32, counts *[maxCodeBits + 1]int, tableBits, longest int) {
	code, next := 0, 0
	for l := 1; l <= min(tableBits, longest); l++ {
		// Bits behind the shorter codes do not matter: what is there is repeated.
		size := 1 << l
		if l > 1 {
			copy(table[size/2:size], table[:size/2])
		}
		for range counts[l] {
			table[code] = entryOf(meaning[sorted[next]], l)
			next++
			code = nextCode(code, l)
		}
	}
	for size := 1 << min(tableBits, longest); size < 1<<tableBits; size *= 2 {
		copy(table[size:2*size], table[:size])
	}
	start, end, prefix := 0, 1<<tableBits, -1 // of the current second table
	for l := tableBits + 1; l <= longest; l++ {
		for left := counts[l]; left > 0; left-- {
			if p := code & (1<<tableBits - 1); p != prefix {
				prefix, start = p, end
				index := indexBits(counts, tableBits, l, left)
				end = start + 1<<index
				table[prefix] = flagOther | flagTable | uint32(start)<<16 | uint32(index)<<8 | uint32(tableBits)
			}
			entry := entryOf(meaning[sorted[next]], l-tableBits)
			for i := start + code>>tableBits; i < end; i += 1 << (l - tableBits) {
				table[i] = entry
			}
			next++
			code = nextCode(code, l)
		}
	}
}

// indexBits is how many bits index the second table that begins with a code of
// length l, of which there are left ones: as many as fill it.
func indexBits(counts *[maxCodeBits + 1]int, tableBits, l, left int) int {
	index := l - tableBits
	for used := left; used < 1<<index; {
		index++
		used = used<<1 + counts[tableBits+index]
	}
	return index
}

// nextCode adds one to a code of l bits, the first of which is the lowest.
func nextCode(code, l int) int {
	free := ^code & (1<<l - 1)
	if free == 0 {
		return code
	}
	bit := 1 << (bits.Len(uint(free)) - 1)
	return code&(bit-1) | bit
}

func entryOf(meaning uint32, codeBits int) uint32 {
	if meaning&flagLiteral != 0 || meaning&flagOther != 0 {
		return meaning + uint32(codeBits)
	}
	return meaning + uint32(codeBits)<<8 + uint32(codeBits)
}

func fill(table []uint32, entry uint32) {
	for i := range table {
		table[i] = entry
	}
}
