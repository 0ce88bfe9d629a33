package image

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"

	"ganeti-instance-image/internal/size"
)

const (
	zstdMagic      = 0xfd2f_b528
	lz4Magic       = 0x184d_2204
	skippableMagic = 0x184d_2a50 // of zstd and lz4; its last four bits are anything

	maxFrameHeader = 19 // lz4: magic 4, flags 2, size 8, dictionary 4, checksum 1
	// maxBlocksSeen bounds how many blocks are passed to find out a length.
	maxBlocksSeen = 1 << 18
	// maxSkipped bounds the bytes of skippable frames between and behind others,
	// which have to be read; indexes for seeking are the longest there are.
	maxSkipped = 256 << 20
	// maxEmptyBlocks bounds the blocks of no length that follow each other: to
	// zstd a hole in the file is nothing but such blocks.
	maxEmptyBlocks = 4096
)

// framing is how zstd (RFC 8878, 3.1) and lz4 (its frame format 1.6) put
// blocks, and they are the same in it: frames with a header, blocks that begin
// with their length, perhaps a checksum, and skippable frames between them.
type framing struct {
	magic       uint32
	header      func(b []byte) (frameHeader, error)
	blockHeader int
	block       func(b []byte, h frameHeader) (length int64, last bool)
}

type frameHeader struct {
	length        int64
	content       int64 // bytes the frame decodes to, -1 where it does not say
	window        int64 // bytes of memory it needs, of zstd
	checksum      int64 // bytes behind the last block
	blockChecksum int64 // bytes behind each block
}

var zstdFraming = framing{magic: zstdMagic, header: zstdHeader, blockHeader: 3, block: zstdBlock}

func zstdHeader(b []byte) (frameHeader, error) {
	var z zstd.Header
	if err := z.Decode(b); err != nil {
		return frameHeader{}, noEOF(err)
	}
	h := frameHeader{length: int64(z.HeaderSize), content: -1, window: int64(z.WindowSize)}
	if z.DictionaryID != 0 {
		return h, reasonf("it needs the zstd dictionary %d", z.DictionaryID)
	}
	if z.HasFCS {
		h.content = int64(min(z.FrameContentSize, uint64(maxVirtualSize)+1))
	}
	if z.SingleSegment {
		h.window = h.content
	}
	if h.window > maxWindow {
		return h, reasonf("it needs a window of %s, and %s is the most: unpack it with `zstd -d --long=31`", size.Bytes(h.window), size.Bytes(maxWindow))
	}
	if z.HasCheckSum {
		h.checksum = 4
	}
	return h, nil
}

func zstdBlock(b []byte, _ frameHeader) (int64, bool) {
	length := int64(b[0])>>3 | int64(b[1])<<5 | int64(b[2])<<13
	if b[0]>>1&3 == 1 { // one byte, repeated
		length = 1
	}
	return length, b[0]&1 != 0
}

var lz4Framing = framing{magic: lz4Magic, header: lz4Header, blockHeader: 4, block: lz4Block}

// lz4Header reads the flags that say how long things are; the library checks
// the others.
func lz4Header(b []byte) (frameHeader, error) {
	h := frameHeader{length: 7, content: -1}
	if len(b) < 7 {
		return h, io.ErrUnexpectedEOF
	}
	flags := b[4]
	if flags&1 != 0 {
		return h, reasonf("it needs an lz4 dictionary")
	}
	if flags>>4&1 != 0 {
		h.blockChecksum = 4
	}
	if flags>>2&1 != 0 {
		h.checksum = 4
	}
	if flags>>3&1 != 0 {
		if len(b) < 15 {
			return h, io.ErrUnexpectedEOF
		}
		h.length += 8
		h.content = int64(min(binary.LittleEndian.Uint64(b[6:]), uint64(maxVirtualSize)+1))
	}
	return h, nil
}

func lz4Block(b []byte, h frameHeader) (int64, bool) {
	length := int64(binary.LittleEndian.Uint32(b))
	if length == 0 {
		return 0, true
	}
	return length&0x7fff_ffff + h.blockChecksum, false
}

// peeker is a place in compressed data.
type peeker interface {
	// Peek shows the next n bytes, and fewer with an error.
	Peek(n int) ([]byte, error)
	Discard(n int) (int, error)
}

// next passes skippable frames and reads the header of a frame, which it leaves
// in place. Its error at the end of the data is io.EOF.
func (f *framing) next(in peeker, allowed *allowance) (frameHeader, error) {
	for {
		b, err := in.Peek(8)
		if len(b) == 0 {
			return frameHeader{}, err
		}
		if len(b) < 8 {
			return frameHeader{}, noEOF(err)
		}
		if err := allowed.piece(); err != nil {
			return frameHeader{}, err
		}
		if length := skippable(b); length > 0 {
			if allowed.skipped -= length; allowed.skipped < 0 {
				return frameHeader{}, errSkipped
			}
			if err := skip(in, length); err != nil {
				return frameHeader{}, err
			}
			continue
		}
		if binary.LittleEndian.Uint32(b) != f.magic {
			return frameHeader{}, errBehind
		}
		b, err = in.Peek(maxFrameHeader)
		if err != nil && !errors.Is(err, io.EOF) {
			return frameHeader{}, err
		}
		return f.header(b)
	}
}

// allowance is how much data without content may still come.
type allowance struct {
	pieces  int   // members and frames, 0 is any number of them
	skipped int64 // bytes of skippable frames
}

// piece takes one of the pieces.
func (a *allowance) piece() error {
	if a.pieces == 1 {
		return errMembers
	}
	a.pieces = max(a.pieces-1, 0)
	return nil
}

// skippable is the length of a skippable frame by its first 8 bytes, 0 where
// they begin something else.
func skippable(b []byte) int64 {
	if binary.LittleEndian.Uint32(b)&^15 != skippableMagic {
		return 0
	}
	return 8 + int64(binary.LittleEndian.Uint32(b[4:]))
}

// firstFrame is where the skippable frames end with which n bytes begin: n where
// the last of them is cut off. It looks at no more of them than a compressed
// image may have.
func firstFrame(r io.ReaderAt, n int64) (int64, error) {
	c := &cursor{r: r, end: n}
	for range headMembers {
		b, err := c.Peek(8)
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, err
		}
		length := skippable(b)
		if length == 0 {
			break
		}
		if length > n-c.at {
			return n, nil
		}
		c.at += length
	}
	return c.at, nil
}

func skip(in peeker, n int64) error {
	_, err := in.Discard(int(n))
	return noEOF(err)
}

// contentSize adds up what the frames from start to end say they decode to, -1
// where one does not say it or there are too many blocks. What it passes is
// whole.
func (f *framing) contentSize(r io.ReaderAt, start, end int64) (size.Bytes, error) {
	c := &cursor{r: r, at: start, end: end}
	allowed := allowance{skipped: maxSkipped}
	var sum size.Bytes
	for seen := 0; ; {
		allowed.pieces = maxBlocksSeen
		h, err := f.next(c, &allowed)
		switch {
		case err == io.EOF:
			return sum, nil
		case errors.Is(err, errMembers):
			return -1, nil
		case err != nil:
			return 0, err
		case h.content < 0:
			return -1, nil
		}
		seen += maxBlocksSeen - allowed.pieces
		if sum += size.Bytes(h.content); sum > maxVirtualSize {
			return 0, errVirtualSize
		}
		if err := f.pass(c, h, &seen); err != nil {
			return 0, err
		}
		if seen >= maxBlocksSeen {
			return -1, nil
		}
	}
}

// pass goes behind a frame, or stops where too many blocks were seen.
func (f *framing) pass(c *cursor, h frameHeader, seen *int) error {
	if err := skip(c, h.length); err != nil {
		return err
	}
	for ; *seen < maxBlocksSeen; *seen++ {
		b, err := c.Peek(f.blockHeader)
		if err != nil {
			return noEOF(err)
		}
		length, last := f.block(b, h)
		if err := skip(c, int64(f.blockHeader)+length); err != nil {
			return err
		}
		if last {
			return skip(c, h.checksum)
		}
	}
	return nil
}

// cursor is a peeker that reads nothing of what it passes.
type cursor struct {
	r       io.ReaderAt
	at, end int64
	buf     [maxFrameHeader]byte
}

func (c *cursor) Peek(n int) ([]byte, error) {
	got := min(int64(n), c.end-c.at)
	if m, err := c.r.ReadAt(c.buf[:got], c.at); int64(m) < got {
		return c.buf[:m], noEOF(err)
	}
	if got < int64(n) {
		return c.buf[:got], io.EOF
	}
	return c.buf[:n], nil
}

func (c *cursor) Discard(n int) (int, error) {
	if int64(n) > c.end-c.at {
		return 0, io.ErrUnexpectedEOF
	}
	c.at += int64(n)
	return n, nil
}

// frame passes on one frame of its input, to the byte: so the libraries, which
// look for the next one by themselves, see none.
type frame struct {
	*framing
	frameHeader
	in   *bufio.Reader
	left int64 // bytes up to the next block's length
	last bool

	empty int // blocks of no length, up to here
}

// ZstdFrame passes skippable frames and returns the next frame of zstd data
// (RFC 8878), to the byte, with how many bytes it says it decodes to, -1 where it
// does not say it. The error at the end of the data is io.EOF.
func ZstdFrame(in *bufio.Reader) (frame io.Reader, content size.Bytes, err error) {
	h, err := zstdFraming.next(in, &allowance{skipped: maxSkipped})
	if err != nil {
		return nil, 0, err
	}
	return zstdFraming.open(in, h), size.Bytes(h.content), nil
}

func (f *framing) open(in *bufio.Reader, h frameHeader) *frame {
	return &frame{framing: f, frameHeader: h, in: in, left: h.length}
}

func (f *frame) Read(p []byte) (int, error) {
	if f.left == 0 {
		if f.last {
			return 0, io.EOF
		}
		b, err := f.in.Peek(f.blockHeader)
		if err != nil {
			return 0, noEOF(err)
		}
		f.left, f.last = f.block(b, f.frameHeader)
		if f.empty++; f.left > 0 {
			f.empty = 0
		}
		if f.empty > maxEmptyBlocks {
			return 0, errEmptyBlocks
		}
		f.left += int64(f.blockHeader)
		if f.last {
			f.left += f.checksum
		}
	}
	n, err := f.in.Read(p[:min(int64(len(p)), f.left)])
	f.left -= int64(n)
	return n, noEOF(err)
}
