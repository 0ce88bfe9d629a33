package image

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
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
	z := new(gzip.Reader)
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
		// In its header the library takes the end of the file for the end of all.
		if err := z.Reset(in); errors.Is(err, gzip.ErrHeader) {
			return nil, reasonf("its gzip header is damaged, or has a name or comment of over 511 bytes: unpack it with gunzip, or fetch it again")
		} else if err != nil {
			return nil, noEOF(err)
		}
		z.Multistream(false)
		return z, nil
	}}
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
