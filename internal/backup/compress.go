package backup

import (
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"

	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/used"
	"ganeti-instance-image/internal/zeros"
)

const (
	// frameSize is how much is compressed at a time, in bytes, each a frame of its
	// own: several processors have work then.
	frameSize = 1 << 20
	// maxWorkers bounds memory: each has a frame.
	maxWorkers = 4
)

// buffers are for frames, as they are and compressed, that wait to be used again.
type buffers struct{ pool sync.Pool }

func (s *buffers) get() []byte {
	if b, ok := s.pool.Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return make([]byte, 0, frameSize+frameSize/8)
}

func (s *buffers) put(b []byte) {
	if cap(b) >= frameSize {
		s.pool.Put(&b)
	}
}

// Compressor compresses with zstd, as RFC 8878 has it, what is written to it. The
// bytes may be in several frames, which zstd(1) and tar(1) read as one file.
type Compressor struct {
	encoder *zstd.Encoder
	begun   bool
	frame   []byte
	buffers buffers
	queue   chan chan []byte // frames in their order, each to come
	failed  atomic.Pointer[error]
	done    chan struct{} // closed when all is written
}

// NewCompressor begins to write to out. Close must be called, whatever happened.
func NewCompressor(out io.Writer) (*Compressor, error) {
	workers := min(maxWorkers, runtime.GOMAXPROCS(0))
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(workers),
		zstd.WithEncoderCRC(false)) // the backup has a better one of all of it
	if err != nil {
		return nil, fmt.Errorf("cannot compress the backup: %w", err)
	}
	c := &Compressor{encoder: encoder, queue: make(chan chan []byte, 2*workers), done: make(chan struct{})}
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
		c.buffers.put(b)
	}
}

func (c *Compressor) error() error {
	if err := c.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// Write takes bytes. What could not be written shows at a later call, at last at
// Close.
func (c *Compressor) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0 && c.error() == nil; {
		if c.frame == nil {
			c.frame = c.buffers.get()
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
		result <- c.encoder.EncodeAll(frame, c.buffers.get())
		c.buffers.put(frame)
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
		if !zeros.Only(part) {
			n += len(part)
		}
		b = b[len(part):]
	}
	return n
}
