package image

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"ganeti-instance-image/internal/size"
)

const (
	zstdMagic      = 0xfd2f_b528
	lz4Magic       = 0x184d_2204
	lz4LegacyMagic = 0x184c_2102
	skippableMagic = 0x184d_2a50 // of zstd and lz4; its last four bits are anything

	maxFrameHeader = 19 // lz4: magic 4, flags 2, size 8, dictionary 4, checksum 1
	// maxBlocksSeen bounds how many blocks are passed to find out a length.
	maxBlocksSeen = 1 << 18
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
		return h, fmt.Errorf("it needs the zstd dictionary %d", z.DictionaryID)
	}
	if z.HasFCS {
		h.content = int64(min(z.FrameContentSize, uint64(maxVirtualSize)+1))
	}
	if z.SingleSegment {
		h.window = h.content
	}
	if h.window > maxWindow {
		return h, fmt.Errorf("it needs a window of %s, and %s is the most: unpack it with `zstd -d --long=31`", size.Bytes(h.window), size.Bytes(maxWindow))
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
		return h, errors.New("it needs an lz4 dictionary")
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
// in place. Its error at the end of the data is io.EOF. What it passed is
// counted in members, and too many are an error where that was not 0.
func (f *framing) next(in peeker, members *int) (frameHeader, error) {
	for {
		b, err := in.Peek(8)
		if len(b) == 0 {
			return frameHeader{}, err
		}
		if len(b) < 8 {
			return frameHeader{}, noEOF(err)
		}
		if err := spend(members); err != nil {
			return frameHeader{}, err
		}
		magic := binary.LittleEndian.Uint32(b)
		if magic&^15 == skippableMagic {
			if err := skip(in, 8+int64(binary.LittleEndian.Uint32(b[4:]))); err != nil {
				return frameHeader{}, err
			}
			continue
		}
		if magic != f.magic {
			return frameHeader{}, errBehind
		}
		b, err = in.Peek(maxFrameHeader)
		if err != nil && !errors.Is(err, io.EOF) {
			return frameHeader{}, err
		}
		return f.header(b)
	}
}

// spend takes one from a number of members.
func spend(members *int) error {
	if *members == 1 {
		return errMembers
	}
	*members = max(*members-1, 0)
	return nil
}

func skip(in peeker, n int64) error {
	_, err := in.Discard(int(n))
	return noEOF(err)
}

// contentSize adds up what the frames say they decode to, -1 where one does not
// say it or there are too many blocks. What it passes is whole.
func (f *framing) contentSize(r io.ReaderAt, n int64) (size.Bytes, error) {
	c := &cursor{r: r, end: n}
	var sum size.Bytes
	for seen := 0; ; seen++ {
		members := maxBlocksSeen
		h, err := f.next(c, &members)
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
		seen += maxBlocksSeen - members
		if sum += size.Bytes(h.content); sum > maxVirtualSize {
			return 0, fmt.Errorf("its disk is larger than %s", maxVirtualSize)
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
		f.left += int64(f.blockHeader)
		if f.last {
			f.left += f.checksum
		}
	}
	n, err := f.in.Read(p[:min(int64(len(p)), f.left)])
	f.left -= int64(n)
	return n, noEOF(err)
}
