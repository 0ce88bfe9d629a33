package image

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"ganeti-instance-image/internal/inflate"
)

// maxWindow is the longest history a zstd frame may ask for; the zstd library
// has the same limit.
const maxWindow = 128 << 20

// decodeRoom is how much room behind a cluster the zstd decoder needs to copy in
// long steps, which makes it a quarter faster.
const decodeRoom = 16

// decoder decompresses clusters, one after the other, and keeps its buffers
// between them.
type decoder struct {
	src   []byte
	whole []byte
	zlib  *inflate.Decoder // where the compression type is zlib
	zstd  *zstd.Decoder    // where it is zstd
}

func newDecoder(compression byte) *decoder {
	if compression == compressionZlib {
		return &decoder{zlib: new(inflate.Decoder)}
	}
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(fmt.Sprintf("the options of the zstd decoder: %v", err))
	}
	return &decoder{zstd: z}
}

// input is a buffer for n bytes of compressed data. Its capacity has room for
// padding behind them.
func (d *decoder) input(n int) []byte {
	if cap(d.src) < n+inflate.Padding {
		d.src = make([]byte, n+inflate.Padding)
	}
	return d.src[:n]
}

// scratch is a buffer for n bytes of a decoded cluster.
func (d *decoder) scratch(n int) []byte {
	if cap(d.whole) < n {
		d.whole = make([]byte, n)
	}
	return d.whole[:n]
}

// decode fills the first n bytes of p with a cluster, from the compressed data
// at the beginning of src, which is from input. What follows it there belongs
// to other clusters. Behind the n bytes p has room for decodeRoom more, which
// are lost.
func (d *decoder) decode(p []byte, n int, src []byte) error {
	var err error
	if d.zlib != nil {
		err = d.zlib.Decode(p[:n], src[:len(src)+inflate.Padding], len(src))
	} else {
		err = d.decodeZstd(p[:0:n+decodeRoom], n, src)
	}
	if err != nil {
		return fmt.Errorf("its compressed data is damaged: %w", noEOF(err))
	}
	return nil
}

func (d *decoder) decodeZstd(out []byte, n int, src []byte) error {
	for len(out) < n {
		length, err := frameLength(src)
		if err == nil {
			out, err = d.zstd.DecodeAll(src[:length], out)
		}
		if err != nil {
			return err
		}
		src = src[length:]
	}
	if len(out) > n {
		return errTooLong
	}
	return nil
}

var (
	errTooLong = errors.New("longer than a cluster")
	errFrame   = errors.New("a zstd frame has no end")
)

// frameLength finds the end of the zstd frame at the beginning of src.
func frameLength(src []byte) (int, error) {
	var h zstd.Header
	if err := h.Decode(src); err != nil {
		return 0, err
	}
	if h.Skippable {
		return 0, errors.New("a zstd frame without data")
	}
	for at := h.HeaderSize; at+3 <= len(src); {
		block := int(src[at]) | int(src[at+1])<<8 | int(src[at+2])<<16
		last, kind, length := block&1 != 0, block>>1&3, block>>3
		if kind == 1 { // one byte, repeated
			length = 1
		}
		at += 3 + length
		if last && h.HasCheckSum {
			at += 4
		}
		if at > len(src) {
			return 0, errFrame
		}
		if last {
			return at, nil
		}
	}
	return 0, errFrame
}
