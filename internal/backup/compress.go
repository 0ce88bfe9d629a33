package backup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"

	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/used"
)

const (
	// frameSize is how much is compressed at a time, in bytes, each a frame of its
	// own: several processors have work then.
	frameSize = 4 << 20
	// maxWorkers bounds memory: each has a frame.
	maxWorkers = 4
	// maxWindow is the most that a frame may ask for when it is read, in bytes.
	maxWindow = 8 << 20
)

// Compressor compresses with zstd, as RFC 8878 has it, what is written to it. The
// bytes may be in several frames, which zstd(1) and tar(1) read as one file.
type Compressor struct {
	encoder *zstd.Encoder
	begun   bool
	frame   []byte
	spent   chan []byte
	queue   chan chan []byte // frames in their order, each to come
	failed  atomic.Pointer[error]
	done    chan struct{} // closed when all is written
}

// NewCompressor begins to write to out. Close must be called, whatever happened.
func NewCompressor(out io.Writer) (*Compressor, error) {
	workers := min(maxWorkers, runtime.GOMAXPROCS(0))
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(workers))
	if err != nil {
		return nil, fmt.Errorf("cannot compress the backup: %w", err)
	}
	c := &Compressor{encoder: encoder, spent: make(chan []byte, 2*workers), queue: make(chan chan []byte, workers), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.store(out)
	}()
	return c, nil
}

// store writes frames in their order. After an error it takes the others as they
// come, so that nobody waits for it.
func (c *Compressor) store(out io.Writer) {
	for frame := range c.queue {
		b := <-frame
		if c.error() == nil {
			if _, err := out.Write(b); err != nil {
				c.failed.Store(&err)
			}
		}
		c.recycle(b)
	}
}

func (c *Compressor) error() error {
	if err := c.failed.Load(); err != nil {
		return *err
	}
	return nil
}

func (c *Compressor) recycle(b []byte) {
	select {
	case c.spent <- b:
	default:
	}
}

func (c *Compressor) buffer() []byte {
	select {
	case b := <-c.spent:
		return b[:0]
	default:
		return make([]byte, 0, frameSize+frameSize/8)
	}
}

// Write takes bytes. What could not be written shows at a later call, at last at
// Close.
func (c *Compressor) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0 && c.error() == nil; {
		if c.frame == nil {
			c.frame = c.buffer()
		}
		n := min(len(rest), frameSize-len(c.frame))
		c.frame = append(c.frame, rest[:n]...)
		rest = rest[n:]
		if len(c.frame) == frameSize {
			c.send()
		}
	}
	if !c.begun && c.frame != nil {
		c.begun = true
		c.send()
		c.pad()
	}
	if err := c.error(); err != nil {
		return 0, err
	}
	return len(p), nil
}

// pad writes a frame of nothing. Ganeti 3.0 fails an export whose first thousand
// bytes do not come within seconds, and then all at once.
func (c *Compressor) pad() {
	const length = 1024
	frame := binary.LittleEndian.AppendUint32(nil, 0x184D2A50) // one to be skipped
	frame = binary.LittleEndian.AppendUint32(frame, length)
	result := make(chan []byte, 1)
	result <- append(frame, make([]byte, length)...)
	c.queue <- result
}

// send has a frame compressed.
func (c *Compressor) send() {
	frame, result := c.frame, make(chan []byte, 1)
	c.frame = nil
	c.queue <- result
	go func() {
		result <- c.encoder.EncodeAll(frame, c.buffer())
		c.recycle(frame)
	}()
}

// Close writes what is left.
func (c *Compressor) Close() error {
	if len(c.frame) > 0 {
		c.send()
	}
	close(c.queue)
	<-c.done
	return c.error()
}

// zstdMagic begins each frame.
var zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}

// unpacked tells damaged data from an input that cannot be read.
type unpacked struct {
	io.ReadCloser
	in *input
}

type input struct {
	io.Reader
	err error
}

func (in *input) Read(p []byte) (int, error) {
	n, err := in.Reader.Read(p)
	in.err = err
	return n, err
}

func (u unpacked) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || u.in.err != nil && !errors.Is(u.in.err, io.EOF) {
		return n, err
	}
	return n, damaged("its zstd data cannot be decoded: %v", err)
}

// Decompress reads a backup that may be compressed. Its Close must be called.
func Decompress(in io.Reader, head []byte) (io.ReadCloser, error) {
	if !Resembles(head, string(zstdMagic)) {
		return io.NopCloser(in), nil
	}
	source := &input{Reader: in}
	d, err := zstd.NewReader(source, zstd.WithDecoderConcurrency(maxWorkers), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("cannot decompress the backup: %w", err)
	}
	return unpacked{d.IOReadCloser(), source}, nil
}

const (
	samples    = 64
	sampleSize = 64 << 10
)

// Ratio is what of a disk, of which so much is in use, a backup will take: of some
// samples, as an estimate. It is 1 where they cannot be read.
func Ratio(disk io.ReaderAt, inUse iter.Seq2[used.Range, error], total size.Bytes, compressed bool) float64 {
	packed := nonZero
	if compressed {
		encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
		if err != nil {
			return 1
		}
		packed = func(b []byte) int { return len(encoder.EncodeAll(b, nil)) }
	}
	step := max(total/samples, 1)
	var seen, next size.Bytes
	before, after := 1, 0
	b := make([]byte, sampleSize)
	for r, err := range inUse {
		if err != nil {
			return 1
		}
		for ; next < seen+r.Length; next += step {
			at := r.Start + next - seen
			part := b[:min(sampleSize, r.Start+r.Length-at)]
			if _, err := disk.ReadAt(part, int64(at)); err != nil {
				return 1
			}
			before, after = before+len(part), after+packed(part)
		}
		seen += r.Length
	}
	return float64(after) / float64(before)
}

// nonZero counts the bytes in units that are not zeros.
func nonZero(b []byte) (n int) {
	for len(b) > 0 {
		part := b[:min(unit, len(b))]
		if !isZero(part) {
			n += len(part)
		}
		b = b[len(part):]
	}
	return n
}
