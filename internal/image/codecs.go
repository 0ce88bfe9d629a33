package image

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"ganeti-instance-image/internal/inflate"
	"ganeti-instance-image/internal/size"
)

// members decodes data that consists of pieces that follow each other.
type members struct {
	in      *bufio.Reader
	allowed allowance
	cur     io.Reader
	// next begins to decode a member. Its error is io.EOF at the end of all.
	next func(in *bufio.Reader, allowed *allowance) (io.Reader, error)
}

func (m *members) reset(in *bufio.Reader, left int) error {
	m.in, m.allowed, m.cur = in, allowance{pieces: left, skipped: maxSkipped}, nil
	return nil
}

func (m *members) Read(p []byte) (int, error) {
	for {
		if m.cur == nil {
			cur, err := m.next(m.in, &m.allowed)
			if err != nil {
				return 0, err
			}
			m.cur = cur
		}
		n, err := m.cur.Read(p)
		if err == io.EOF {
			m.cur, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// newGzip decodes gzip (RFC 1952): members, and zeros behind the last as tapes
// leave them.
func newGzip() unpacker {
	z := &gzipMember{data: inflate.NewReader()}
	return &members{next: func(in *bufio.Reader, allowed *allowance) (io.Reader, error) {
		b, err := in.Peek(2)
		if len(b) == 0 {
			return nil, err
		}
		if b[0] == 0 {
			return nil, zerosToEnd(in)
		}
		if len(b) < 2 {
			return nil, noEOF(err)
		}
		if string(b) != "\x1f\x8b" {
			return nil, errBehind
		}
		if err := allowed.piece(); err != nil {
			return nil, err
		}
		if err := z.begin(in); err != nil {
			return nil, noEOF(err)
		}
		return z, nil
	}}
}

// Flags of a gzip member (RFC 1952, 2.3.1): what its header has, in this order,
// except that its checksum comes last.
const (
	gzipHeaderSum = 1 << 1
	gzipExtra     = 1 << 2
	gzipName      = 1 << 3
	gzipComment   = 1 << 4
	gzipReserved  = 7 << 5
)

var (
	errGzipHeader  = errors.New("its header is wrong")
	errGzipSum     = errors.New("its checksum is wrong")
	errGzipLength  = errors.New("its length is wrong")
	errGzipComment = reasonf("its gzip header has a name or comment of over %s: unpack it with gunzip", size.Bytes(inputBuffer))
)

// gzipMember decodes one member of gzip data after the other.
type gzipMember struct {
	in     *bufio.Reader
	data   *inflate.Reader
	sum    uint32 // CRC-32 of the header, then of the content
	length uint32 // of the content, modulo 2^32
}

// begin reads a header.
func (z *gzipMember) begin(in *bufio.Reader) error {
	z.in, z.sum, z.length = in, 0, 0
	b, err := z.take(10)
	if err != nil {
		return err
	}
	flags := b[3]
	if b[2] != 8 || flags&gzipReserved != 0 {
		return errGzipHeader
	}
	if flags&gzipExtra != 0 {
		if b, err = z.take(2); err != nil {
			return err
		}
		if _, err = z.take(int(binary.LittleEndian.Uint16(b))); err != nil {
			return err
		}
	}
	for _, text := range []byte{gzipName, gzipComment} {
		if flags&text == 0 {
			continue
		}
		if err := z.text(); err != nil {
			return err
		}
	}
	if sum := uint16(z.sum); flags&gzipHeaderSum != 0 {
		if b, err = z.take(2); err != nil {
			return err
		}
		if binary.LittleEndian.Uint16(b) != sum {
			return errGzipHeader
		}
	}
	z.sum = 0
	z.data.Reset(in)
	return nil
}

// take reads n bytes, at most inputBuffer, which are valid until the next are.
func (z *gzipMember) take(n int) ([]byte, error) {
	b, err := z.in.Peek(n)
	if err != nil {
		return nil, err
	}
	z.sum = crc32.Update(z.sum, crc32.IEEETable, b)
	_, err = z.in.Discard(n)
	return b, err
}

// text reads a name or a comment, at most inputBuffer with the zero that ends it.
func (z *gzipMember) text() error {
	b, err := z.in.ReadSlice(0)
	z.sum = crc32.Update(z.sum, crc32.IEEETable, b)
	if errors.Is(err, bufio.ErrBufferFull) {
		return errGzipComment
	}
	return err
}

// Read returns io.EOF behind the member, after what stands there was compared.
func (z *gzipMember) Read(p []byte) (int, error) {
	n, err := z.data.Read(p)
	z.sum = crc32.Update(z.sum, crc32.IEEETable, p[:n])
	z.length += uint32(n)
	if err != io.EOF {
		return n, err
	}
	return n, z.end()
}

func (z *gzipMember) end() error {
	sum, length := z.sum, z.length
	b, err := z.take(8)
	switch {
	case err != nil:
		return noEOF(err)
	case binary.LittleEndian.Uint32(b) != sum:
		return errGzipSum
	case binary.LittleEndian.Uint32(b[4:]) != length:
		return errGzipLength
	}
	return io.EOF
}

// newZstd decodes zstd (RFC 8878).
func newZstd() unpacker {
	z := &zstdDecoder{}
	return &members{next: func(in *bufio.Reader, allowed *allowance) (io.Reader, error) {
		h, err := zstdFraming.next(in, allowed)
		if err != nil {
			return nil, err
		}
		if err := z.prepare(h.window); err != nil {
			return nil, err
		}
		return z, z.Reset(zstdFraming.open(in, h))
	}}
}

// zstdDecoder is the library's, and the longest window that it has memory for.
type zstdDecoder struct {
	*zstd.Decoder
	window int64
}

// zstdWindows are the windows that memory is made for, and the byte that stands
// for them in a header. The library makes it for each frame that needs more than
// those before, and with any length the old ones, together, would be too much.
var zstdWindows = []struct {
	length int64
	code   byte
}{{8 << 20, 13 << 3}, {32 << 20, 15 << 3}, {maxWindow, 17 << 3}}

// prepare decodes a frame of one byte that asks for the next of the windows.
func (z *zstdDecoder) prepare(window int64) error {
	if z.Decoder != nil && window <= z.window {
		return nil
	}
	if z.Decoder == nil {
		var err error
		z.Decoder, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return err
		}
	}
	for _, w := range zstdWindows {
		if w.length < window {
			continue
		}
		z.window = w.length
		if err := z.Reset(bufio.NewReader(bytes.NewReader([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, w.code, 1<<3 | 1<<1 | 1, 0, 0, 0}))); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, z.Decoder)
		return err
	}
	return nil
}

// newLZ4 decodes lz4 (its frame format 1.6).
func newLZ4() unpacker {
	z := lz4.NewReader(nil)
	return &members{next: func(in *bufio.Reader, allowed *allowance) (io.Reader, error) {
		h, err := lz4Framing.next(in, allowed)
		if err != nil {
			return nil, err
		}
		z.Reset(lz4Framing.open(in, h))
		return z, nil
	}}
}

// bzip2Decoder decodes bzip2: streams that follow each other, and zeros behind
// the last.
//
// The library ends a stream in the middle of a byte, then wants two bytes: the
// beginning of another stream, or nothing. So that nothing and zeros can be told
// from a stream that was cut off, the input ends in two zeros, and the one good
// end is the library's complaint that two zeros are no stream.
type bzip2Decoder struct {
	io.Reader
	in    *bufio.Reader
	added int     // zeros that the input does not have
	last  [2]byte // that were read
}

const notAStream = bzip2.StructuralError("bad magic value in continuation file")

func newBzip2() unpacker { return &bzip2Decoder{} }

func (z *bzip2Decoder) reset(in *bufio.Reader, _ int) error {
	*z = bzip2Decoder{in: in}
	z.Reader = bzip2.NewReader(bzip2Input{z})
	return nil
}

func (z *bzip2Decoder) Read(p []byte) (int, error) {
	n, err := z.Reader.Read(p)
	if err == nil {
		return n, nil
	}
	switch {
	case !errors.Is(err, notAStream) && z.added > 0:
		return n, io.ErrUnexpectedEOF
	case !errors.Is(err, notAStream):
		return n, noEOF(err)
	}
	if z.last != [2]byte{} {
		return n, errBehind
	}
	return n, zerosToEnd(z.in)
}

type bzip2Input struct{ *bzip2Decoder }

func (i bzip2Input) ReadByte() (byte, error) {
	z := i.bzip2Decoder
	b, err := z.in.ReadByte()
	if err == io.EOF && z.added < 2 {
		z.added++
		b, err = 0, nil
	}
	z.last[0], z.last[1] = z.last[1], b
	return b, err
}
