package image

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"runtime"
	"slices"

	"github.com/mikelolasagasti/xz"

	"ganeti-instance-image/internal/size"
)

// What the .xz file format (version 1.2.1) says, and limits of our own.
const (
	xzHeaderMagic = "\xfd7zXZ\x00"
	xzFooterMagic = "YZ"
	xzEnds        = 12 // bytes of a stream's header, and of its footer
	xzMaxHeader   = 1024
	xzMinUnpadded = 5

	maxXZBlocks  = 1 << 18 // 64 GiB in blocks of 256 KiB, 6 TiB in those xz makes
	maxXZStreams = 1 << 12
	maxXZIndex   = maxXZBlocks*18 + 32

	// maxDictionary is twice that of xz -9.
	maxDictionary = 128 << 20
	// dictionaries is what those of all workers stay below.
	dictionaries = 192 << 20
)

// xzChecks are the lengths of the checks that the library compares: none,
// CRC32, CRC64 and SHA-256.
var xzChecks = map[byte]int64{0: 0, 1: 4, 4: 8, 10: 32}

// xzFilters are the filters that the library knows, before LZMA2: delta and the
// BCJ filters for x86, PowerPC, IA-64, ARM, ARM-Thumb and SPARC.
var xzFilters = []byte{3, 4, 5, 6, 7, 8, 9}

const xzLZMA2 = 0x21 // always the last filter

// xzBlock is a block of xz data.
type xzBlock struct {
	at       int64 // in the file
	unpadded int64 // bytes: header, data and check
	content  int64 // bytes it decodes to
	check    byte  // how the stream checks its blocks
	header   int   // bytes
}

func (b xzBlock) stored() int64 { return (b.unpadded + 3) &^ 3 }

func (b xzBlock) damaged() error {
	return reasonf("its block at offset %d has a damaged header: fetch it again", b.at)
}

// surveyXZ reads the indexes of all streams, from the end of the file to its
// beginning, and then the header of every block.
func (s *Stream) surveyXZ() error {
	var err error
	if s.blocks, err = xzIndexes(s.f, int64(s.length)); err != nil {
		return err
	}
	s.decoded = 0
	dictionary, largest := int64(0), int64(0)
	s.lzma2 = true
	for i := range s.blocks {
		b := &s.blocks[i]
		if s.decoded += size.Bytes(b.content); s.decoded > maxVirtualSize {
			return errVirtualSize
		}
		h, err := readXZHeader(s.f, *b)
		if err != nil {
			return err
		}
		b.header, s.lzma2 = len(h.bytes), s.lzma2 && h.alone
		dictionary, largest = max(dictionary, dictionarySize(h.bytes[h.dictionary])), max(largest, b.content)
	}
	s.parts, s.widest = cutParts(s.blocks), size.Bytes(dictionary)
	for s.dictionary = 0; dictionarySize(s.dictionary) < min(dictionary, largest); s.dictionary++ {
	}
	need := dictionarySize(s.dictionary)
	if need > maxDictionary {
		return reasonf("it needs a dictionary of %s, and %s is the most: unpack it with `xz -d`", size.Bytes(need), size.Bytes(maxDictionary))
	}
	s.workers = max(1, min(len(s.parts), runtime.GOMAXPROCS(0), int(dictionaries/lzmaMemory(need))))
	return nil
}

// xzIndexes returns the blocks of all streams in n bytes of xz data.
func xzIndexes(r io.ReaderAt, n int64) ([]xzBlock, error) {
	var blocks []xzBlock
	streams, padding := 0, int64(0)
	for end := n; end > 0; streams++ {
		if streams == maxXZStreams {
			return nil, errXZStreams
		}
		begin, err := xzPadding(r, end)
		if err != nil {
			return nil, err
		}
		if padding += end - begin; padding > maxPadding {
			return nil, errPadding
		}
		stream, at, err := xzStream(r, begin)
		if err != nil {
			return nil, err
		}
		if len(blocks)+len(stream) > maxXZBlocks {
			return nil, errXZBlocks
		}
		slices.Reverse(stream)
		blocks, end = append(blocks, stream...), at
	}
	slices.Reverse(blocks)
	return blocks, nil
}

var (
	errXZBlocks  = reasonf("it has more than %d blocks: unpack it with `xz -d`", maxXZBlocks)
	errXZStreams = reasonf("it has more than %d streams: unpack it with `xz -d`", maxXZStreams)
	errXZFooter  = reasonf("there is no end of xz data where the file ends: it is cut off, or something follows the data")
	errXZIndex   = reasonf("its index is damaged: fetch it again")
)

// xzPadding is where the zeros begin that end where end is: a multiple of 4. It
// reads few bytes first, as there mostly are none.
func xzPadding(r io.ReaderAt, end int64) (int64, error) {
	length := int64(4)
	for at := end; at > 0; length = min(length*16, inputBuffer) {
		b := make([]byte, min(length, at))
		if _, err := r.ReadAt(b, at-int64(len(b))); err != nil {
			return 0, noEOF(err)
		}
		kept := len(bytes.TrimRight(b, "\x00"))
		if at -= int64(len(b) - kept); end-at > maxPadding {
			return 0, errPadding
		}
		if kept > 0 {
			// The footer ends in letters, so that no zero of it was taken.
			if (end-at)%4 != 0 {
				return 0, errXZFooter
			}
			return at, nil
		}
	}
	return 0, errXZFooter
}

// xzStream reads the stream that ends at end: its blocks, and where it begins.
func xzStream(r io.ReaderAt, end int64) ([]xzBlock, int64, error) {
	footer := make([]byte, xzEnds)
	if end < 2*xzEnds+8 || end%4 != 0 {
		return nil, 0, errXZFooter
	}
	if _, err := r.ReadAt(footer, end-xzEnds); err != nil {
		return nil, 0, noEOF(err)
	}
	if string(footer[10:]) != xzFooterMagic || crc32.ChecksumIEEE(footer[4:10]) != binary.LittleEndian.Uint32(footer) {
		return nil, 0, errXZFooter
	}
	check := footer[9]
	if _, ok := xzChecks[check]; !ok || footer[8] != 0 {
		return nil, 0, reasonf("it has checks of kind %#x, which are not known here: unpack it with `xz -d`", check)
	}
	length := (int64(binary.LittleEndian.Uint32(footer[4:])) + 1) * 4
	at := end - xzEnds - length
	if at < xzEnds {
		return nil, 0, errXZIndex
	}
	if length > maxXZIndex {
		return nil, 0, errXZBlocks
	}
	index := make([]byte, length)
	if _, err := r.ReadAt(index, at); err != nil {
		return nil, 0, noEOF(err)
	}
	blocks, err := parseXZIndex(index, at-xzEnds)
	if err != nil {
		return nil, 0, err
	}
	return placeXZ(r, blocks, at, check)
}

// placeXZ says where the blocks are, which end where the index begins, and
// checks the header before them.
func placeXZ(r io.ReaderAt, blocks []xzBlock, index int64, check byte) ([]xzBlock, int64, error) {
	begin := index - xzEnds
	for _, b := range blocks {
		begin -= b.stored()
	}
	if begin < 0 {
		return nil, 0, errXZIndex
	}
	header := make([]byte, xzEnds)
	if _, err := r.ReadAt(header, begin); err != nil {
		return nil, 0, noEOF(err)
	}
	if !bytes.Equal(header, xzStreamHeader(check)) {
		return nil, 0, reasonf("it has no xz stream at offset %d, where its index says: fetch it again", begin)
	}
	at := begin + xzEnds
	for i := range blocks {
		blocks[i].at, blocks[i].check = at, check
		at += blocks[i].stored()
	}
	return blocks, begin, nil
}

// parseXZIndex takes the lengths of blocks, together no more than room bytes,
// from an index.
func parseXZIndex(index []byte, room int64) ([]xzBlock, error) {
	body, sum := index[:len(index)-4], index[len(index)-4:]
	if len(body) == 0 || body[0] != 0 || crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(sum) {
		return nil, errXZIndex
	}
	body = body[1:]
	count, body := xzNumber(body)
	if count > maxXZBlocks {
		return nil, errXZBlocks
	}
	if count < 0 || count > int64(len(body)) {
		return nil, errXZIndex
	}
	blocks := make([]xzBlock, count)
	for i := range blocks {
		b := &blocks[i]
		b.unpadded, body = xzNumber(body)
		b.content, body = xzNumber(body)
		if b.unpadded < xzMinUnpadded || b.content < 0 || b.unpadded > room || b.content > int64(maxVirtualSize) {
			return nil, errXZIndex
		}
		if room -= b.stored(); room < 0 {
			return nil, errXZIndex
		}
	}
	if len(body) > 3 || len(bytes.Trim(body, "\x00")) > 0 {
		return nil, errXZIndex
	}
	return blocks, nil
}

// xzNumber reads a number and returns what follows it. The number is -1 where
// there is none.
func xzNumber(b []byte) (int64, []byte) {
	value := int64(0)
	for i := 0; i < len(b) && i < 9; i++ {
		value |= int64(b[i]&0x7f) << (7 * i)
		if b[i]&0x80 == 0 {
			if b[i] == 0 && i > 0 {
				return -1, nil
			}
			return value, b[i+1:]
		}
	}
	return -1, nil
}

func appendXZNumber(b []byte, value int64) []byte { return binary.AppendUvarint(b, uint64(value)) }

// xzHeader is the header of a block.
type xzHeader struct {
	bytes      []byte
	dictionary int  // where the byte is that says how large the dictionary is
	alone      bool // LZMA2 is the only filter
}

// readXZHeader reads the header of a block and checks that the library knows
// its filters.
func readXZHeader(r io.ReaderAt, b xzBlock) (*xzHeader, error) {
	buf := make([]byte, min(xzMaxHeader, b.stored()))
	if _, err := r.ReadAt(buf, b.at); err != nil {
		return nil, noEOF(err)
	}
	length := (int(buf[0]) + 1) * 4
	if buf[0] == 0 || int64(length) > b.unpadded {
		return nil, b.damaged()
	}
	h := &xzHeader{bytes: buf[:length]}
	body := h.bytes[:length-4]
	if crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(h.bytes[length-4:]) {
		return nil, b.damaged()
	}
	filters := body[2:]
	lengths := [2]int64{b.unpadded - int64(length) - xzChecks[b.check], b.content}
	for i, flag := range []byte{0x40, 0x80} { // those of data and content
		if body[1]&flag == 0 {
			continue
		}
		n, rest := xzNumber(filters)
		if n != lengths[i] {
			return nil, b.damaged()
		}
		filters = rest
	}
	return h, h.filters(filters, int(body[1]&3)+1, b)
}

// filters goes through the list of filters, which ends where the checksum of
// the header begins.
func (h *xzHeader) filters(list []byte, count int, b xzBlock) error {
	for i := range count {
		id, rest := xzNumber(list)
		length, rest := xzNumber(rest)
		if id < 0 || length < 0 || length > int64(len(rest)) {
			return b.damaged()
		}
		if i == count-1 {
			if id == xzLZMA2 && length == 1 && rest[0] <= 40 {
				h.dictionary, h.alone = len(h.bytes)-4-len(rest), count == 1
				return nil
			}
			return xzFilterError(id)
		}
		if id > 255 || !slices.Contains(xzFilters, byte(id)) {
			return xzFilterError(id)
		}
		list = rest[length:]
	}
	return b.damaged()
}

func xzFilterError(id int64) error {
	return reasonf("it is packed with the filter %#x, which is not known here as it is used: unpack it with `xz -d`", id)
}

// dictionarySize is what a byte of a header means (5.3.1 of the format).
func dictionarySize(b byte) int64 {
	if b >= 40 {
		return 1<<32 - 1
	}
	return (2 | int64(b&1)) << (b/2 + 11)
}

func xzStreamHeader(check byte) []byte {
	b := append([]byte(xzHeaderMagic), 0, check)
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b[6:8]))
}

// wrapper shows blocks to the library, each as a stream of its own with the
// lengths from the index, which so are compared with what is decoded. All
// blocks get a dictionary of one length, so that a decoder never needs another.
// To our own decoder it shows what follows their headers.
type wrapper struct {
	s      *Stream
	blocks []xzBlock
	cur    io.Reader
}

func (w *wrapper) Read(p []byte) (int, error) {
	for {
		if w.cur == nil {
			if len(w.blocks) == 0 {
				return 0, io.EOF
			}
			var err error
			if b := w.blocks[0]; w.s.lzma2 {
				w.cur = io.NewSectionReader(w.s.f, b.at+int64(b.header), b.stored()-int64(b.header))
			} else if w.cur, err = w.s.wrap(b); err != nil {
				return 0, err
			}
			w.blocks = w.blocks[1:]
		}
		n, err := w.cur.Read(p)
		if err == io.EOF {
			w.cur, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (s *Stream) wrap(b xzBlock) (io.Reader, error) {
	h, err := readXZHeader(s.f, b)
	if err != nil {
		return nil, err
	}
	length := int64(len(h.bytes))
	h.bytes[h.dictionary] = s.dictionary
	binary.LittleEndian.PutUint32(h.bytes[length-4:], crc32.ChecksumIEEE(h.bytes[:length-4]))
	index := appendXZNumber(appendXZNumber([]byte{0, 1}, b.unpadded), b.content)
	for len(index)%4 != 0 {
		index = append(index, 0)
	}
	index = binary.LittleEndian.AppendUint32(index, crc32.ChecksumIEEE(index))
	footer := binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4-1))
	footer = append(footer, 0, b.check)
	index = binary.LittleEndian.AppendUint32(index, crc32.ChecksumIEEE(footer))
	index = append(append(index, footer...), xzFooterMagic...)
	return io.MultiReader(
		bytes.NewReader(append(xzStreamHeader(b.check), h.bytes...)),
		io.NewSectionReader(s.f, b.at+length, b.stored()-length),
		bytes.NewReader(index)), nil
}

// xzDecoder is the library's.
type xzDecoder struct {
	z     *xz.Reader
	empty bool
}

func newXZ() unpacker { return &xzDecoder{} }

func (d *xzDecoder) reset(in *bufio.Reader, _ int) error {
	_, err := in.Peek(1)
	if d.empty = err == io.EOF; d.empty {
		return nil
	}
	if d.z == nil {
		if d.z, err = xz.NewReader(nil, maxDictionary); err != nil {
			return err
		}
	}
	return noEOF(d.z.Reset(in))
}

func (d *xzDecoder) Read(p []byte) (int, error) {
	if d.empty {
		return 0, io.EOF
	}
	return d.z.Read(p)
}
