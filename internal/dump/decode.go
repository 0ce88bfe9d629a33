package dump

import (
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/adler32"
	"io"

	"ganeti-instance-image/internal/inflate"
)

// codecs are the ways in which blocks are compressed, in the order of their
// numbers. in has room for inflate.Padding behind it.
var codecs = []struct {
	name   string
	decode func(d *decoder, out, in []byte) error
}{
	{"zlib", (*decoder).zlib},
	{"bzip2", (*decoder).bzip2},
	{"LZO", (*decoder).lzo},
}

// decoder is what a worker keeps.
type decoder struct {
	deflate inflate.Decoder
	reader  bytes.Reader
}

// chunk decodes the blocks of a chunk, up to the first that is damaged.
func (d *decoder) chunk(c *chunk, blockSize int) {
	done := 0
	for _, b := range c.blocks {
		if err := d.block(c.buffer[done:done+blockSize], c.in[b.from:b.to], b.codec); err != nil {
			c.err = err
			break
		}
		done += blockSize
	}
	c.out = c.buffer[:done]
}

func (d *decoder) block(out, in []byte, codec int) error {
	if codec < 0 {
		copy(out, in)
		return nil
	}
	if err := codecs[codec].decode(d, out, in); err != nil {
		return fmt.Errorf("a block compressed with %s is damaged: %w", codecs[codec].name, err)
	}
	return nil
}

var (
	errLength   = errors.New("its content has another length than it should")
	errChecksum = errors.New("its checksum is wrong")
)

// zlib decodes a stream of RFC 1950.
func (d *decoder) zlib(out, in []byte) error {
	const header, trailer = 2, 4
	n := len(in) - header - trailer
	if n < 0 {
		return io.ErrUnexpectedEOF
	}
	start := binary.BigEndian.Uint16(in)
	if start>>8&15 != 8 || start%31 != 0 || start&0x20 != 0 {
		return errors.New("its header is wrong")
	}
	if err := d.deflate.Decode(out, in[header:header+n+inflate.Padding], n); err != nil {
		return err
	}
	if adler32.Checksum(out) != binary.BigEndian.Uint32(in[header+n:]) {
		return errChecksum
	}
	return nil
}

// bzip2 decodes a file of bzip2.
func (d *decoder) bzip2(out, in []byte) error {
	if len(in) > 3 && len(out)/4*5 < 100_000 && in[3] >= '1' && in[3] <= '9' {
		// The header says how much memory to use, 100 kB or a multiple. Run lengths
		// make the content longer by a quarter at the most.
		in[3] = '1'
	}
	d.reader.Reset(in)
	r := bzip2.NewReader(&d.reader)
	if _, err := io.ReadFull(r, out); err != nil {
		return err
	}
	// The checksum is compared where the end is found.
	var more [1]byte
	if _, err := io.ReadFull(r, more[:]); err == nil {
		return errLength
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func (d *decoder) lzo(out, in []byte) error { return decodeLZO(out, in) }
