package backup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"

	"ganeti-instance-image/internal/image"
	"ganeti-instance-image/internal/size"
)

const (
	// maxWindow is the most that a frame may ask for when it is read, in bytes.
	maxWindow = 8 << 20
	// inBuffer is how much is read at a time, in bytes.
	inBuffer = 1 << 20
)

// zstdMagic begins each frame.
var zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}

// blocks are the bytes of a backup, which may come compressed.
type blocks interface {
	// next returns the bytes that come next, at least one. The error at the end is
	// io.EOF; what is damaged is ErrDamaged.
	next() ([]byte, error)
	// release takes back what next returned. Any goroutine may call it.
	release(block []byte)
	// close ends it, and closes the input: nothing reads that any more then.
	close()
}

// unpacked are the blocks of an input that begins with head.
func unpacked(in io.ReadCloser, head []byte) (blocks, error) {
	if !Resembles(head, string(zstdMagic)) {
		return &plain{in: in, buffers: &buffers{}}, nil
	}
	workers := min(maxWorkers, runtime.GOMAXPROCS(0))
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(workers), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, fmt.Errorf("cannot decompress the backup: %w", err)
	}
	d := &decompressor{in: &input{ReadCloser: in}, decoder: decoder, queue: make(chan chan decoded, workers), stop: make(chan struct{})}
	go func() {
		defer close(d.queue)
		d.split(bufio.NewReaderSize(d.in, inBuffer))
	}()
	return d, nil
}

// plain are the blocks of what is not compressed.
type plain struct {
	in      io.ReadCloser
	buffers *buffers
	err     error // that followed the last block
}

func (p *plain) next() ([]byte, error) {
	if p.err != nil {
		return nil, p.err
	}
	block := p.buffers.get()
	for len(block) == 0 && p.err == nil {
		var n int
		n, p.err = p.in.Read(block[:frameSize])
		block = block[:n]
	}
	if len(block) == 0 {
		return nil, p.err
	}
	return block, nil
}

func (p *plain) release(block []byte) { p.buffers.put(block) }

func (p *plain) close() { p.in.Close() }

// input keeps why it could not be read: the library makes of any error that its
// data end early.
type input struct {
	io.ReadCloser
	failed atomic.Pointer[error]
}

func (in *input) Read(p []byte) (int, error) {
	n, err := in.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		in.failed.Store(&err)
	}
	return n, err
}

// decompressor decodes frames on several processors while they are as short as
// Compressor makes them, and from the first longer one on one after the other.
type decompressor struct {
	in      *input
	decoder *zstd.Decoder
	buffers buffers
	queue   chan chan decoded // frames in their order, each to come
	stop    chan struct{}     // closed when no more is wanted

	rest   *plain // what follows the frames, from
	stream *zstd.Decoder
	err    error
}

// decoded is a frame's data, or what ends the frames.
type decoded struct {
	data []byte
	rest io.Reader // what follows is to be read as one stream
	err  error     // io.EOF at the end
}

// split has the frames of the input decoded.
func (d *decompressor) split(in *bufio.Reader) {
	for {
		packed, end := d.take(in)
		result := make(chan decoded, 1)
		select {
		case d.queue <- result:
		case <-d.stop:
			return
		}
		if end != nil {
			result <- *end
			return
		}
		go func() { result <- d.decode(packed) }()
	}
}

// take reads one frame, or returns what ends the frames.
func (d *decompressor) take(in *bufio.Reader) (packed []byte, end *decoded) {
	frame, content, err := image.ZstdFrame(in)
	if err != nil {
		return nil, &decoded{err: err}
	}
	if content < 0 || content > frameSize {
		return nil, &decoded{rest: in}
	}
	packed = d.buffers.get()
	for len(packed) < cap(packed) {
		n, err := frame.Read(packed[len(packed):cap(packed)])
		packed = packed[:len(packed)+n]
		if errors.Is(err, io.EOF) {
			return packed, nil
		}
		if err != nil {
			return nil, &decoded{err: err}
		}
	}
	return nil, &decoded{rest: io.MultiReader(bytes.NewReader(packed), in)} // longer than any compressor makes it
}

func (d *decompressor) decode(packed []byte) decoded {
	data, err := d.decoder.DecodeAll(packed, d.buffers.get())
	d.buffers.put(packed)
	if err != nil {
		return decoded{err: undecodable(err)}
	}
	return decoded{data: data}
}

func undecodable(err error) error { return damaged("its zstd data cannot be decoded: %v", err) }

func (d *decompressor) next() ([]byte, error) {
	for d.err == nil && d.rest == nil {
		frame := <-<-d.queue
		if len(frame.data) > 0 {
			return frame.data, nil
		}
		d.release(frame.data)
		if d.err = frame.err; frame.rest != nil {
			d.stream, d.err = zstd.NewReader(frame.rest, zstd.WithDecoderConcurrency(maxWorkers), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
			d.rest = &plain{in: d.stream.IOReadCloser(), buffers: &d.buffers}
		}
	}
	if d.err != nil {
		return nil, d.blamed(d.err)
	}
	block, err := d.rest.next()
	return block, d.blamed(err)
}

// blamed says whether the backup or its input is to blame for an error.
func (d *decompressor) blamed(err error) error {
	failed := d.in.failed.Load()
	switch {
	case err == nil, errors.Is(err, ErrDamaged):
		return err
	case failed != nil:
		return *failed
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return err
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return fmt.Errorf("cannot read the backup: decoding it takes more than %s of memory: decompress it, or compress it without --long and --ultra", size.Bytes(maxWindow))
	}
	return undecodable(err)
}

func (d *decompressor) release(block []byte) { d.buffers.put(block) }

func (d *decompressor) close() {
	close(d.stop)
	d.in.Close()
	for range d.queue {
	}
	if d.stream != nil {
		d.stream.Close()
	}
}
