package dump

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"ganeti-instance-image/internal/inflate"
)

const (
	// chunkBytes is about how much is decoded at once: many blocks where they are
	// small, so that content comes in long stretches.
	chunkBytes = 256 << 10
	maxWorkers = 8
	// spareChunks are those that are read into or used up while all workers
	// decode. With the largest blocks a chunk has 2 MiB.
	spareChunks = 3
)

var errCutOff = errors.New("the dump is cut off: fetch it again, or name all of its volumes")

// chunk is some of a volume's records.
type chunk struct {
	in     []byte // what blocks are decoded from, with inflate.Padding behind it
	blocks []block
	buffer []byte
	out    []byte // the records, in buffer
	err    error  // comes behind them
	ready  chan struct{}
}

// block is one block of a compressed dump.
type block struct {
	from, to int // in the chunk's input
	codec    int // -1 is none
}

// volume reads the records of a volume behind its header.
type volume struct {
	r          *bufio.Reader
	blockSize  int
	compressed bool
	begun      bool // the first block was read
	tried      bool // a second block was seen
}

func newVolume(r io.Reader, tape *header) *volume {
	return &volume{
		r:          bufio.NewReaderSize(r, 64<<10),
		blockSize:  int(tape.blocking()) * recordSize,
		compressed: tape.dumpFlags()&compressedFlag != 0,
	}
}

// read fills a chunk and reports whether there may be more.
func (v *volume) read(c *chunk) bool {
	if c.buffer == nil {
		c.buffer = make([]byte, max(v.blockSize, chunkBytes))
	}
	c.blocks, c.in, c.out, c.err = c.blocks[:0], c.in[:0], nil, nil
	if !v.begun {
		// The first block is never compressed.
		v.begun = true
		return v.plain(c, v.blockSize-recordSize)
	}
	if v.compressed && !v.tried {
		v.tried = true
		v.compressed = v.reallyCompressed()
	}
	if v.compressed {
		return v.packed(c)
	}
	return v.plain(c, len(c.buffer))
}

// reallyCompressed is false for the plain dumps that dump 0.4b45 marked as
// compressed: there what should be the length of a block is none.
func (v *volume) reallyCompressed() bool {
	b, err := v.r.Peek(4)
	if err != nil {
		return true
	}
	length := binary.LittleEndian.Uint32(b) >> 4
	return length > 0 && length <= uint32(v.blockSize)
}

// plain reads up to n bytes as they are.
func (v *volume) plain(c *chunk, n int) bool {
	got, err := io.ReadFull(v.r, c.buffer[:n])
	c.out = c.buffer[:got-got%recordSize]
	switch {
	case err == nil:
		return true
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		c.err = err
	case got%recordSize != 0:
		c.err = errCutOff
	}
	return false
}

// packed reads blocks of a compressed dump that a worker is to decode. Before
// each of them stand 4 bytes: whether it is compressed in bit 0, how in bits 1
// to 3, its length above.
func (v *volume) packed(c *chunk) bool {
	if cap(c.in) == 0 {
		c.in = make([]byte, 0, len(c.buffer)+inflate.Padding)
	}
	for range max(1, chunkBytes/v.blockSize) {
		var prefix [4]byte
		if _, err := io.ReadFull(v.r, prefix[:]); errors.Is(err, io.EOF) {
			return false
		} else if err != nil {
			c.err = cutOff(err)
			return false
		}
		b, err := parsePrefix(binary.LittleEndian.Uint32(prefix[:]), len(c.in), v.blockSize)
		if err != nil {
			c.err = err
			return false
		}
		c.in = c.in[:b.to]
		if _, err := io.ReadFull(v.r, c.in[b.from:]); err != nil {
			c.err = cutOff(err)
			return false
		}
		c.blocks = append(c.blocks, b)
	}
	return true
}

func cutOff(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errCutOff
	}
	return err
}

func parsePrefix(prefix uint32, at, blockSize int) (block, error) {
	length, codec := int64(prefix>>4), int(prefix>>1&7)
	switch {
	case length == 0 || length > int64(blockSize):
		return block{}, fmt.Errorf("a compressed block of %d bytes is said to have %d: the dump is damaged", blockSize, length)
	case prefix&1 == 0 && length != int64(blockSize):
		return block{}, fmt.Errorf("a block that is not compressed has %d bytes and not %d: the dump is damaged", length, blockSize)
	case prefix&1 == 0:
		codec = -1
	case codec >= len(codecs):
		return block{}, fmt.Errorf("a block is compressed in a way unknown here, number %d", codec)
	}
	return block{from: at, to: at + int(length), codec: codec}, nil
}

// pipeline reads chunks and has them decoded ahead of who takes them.
type pipeline struct {
	volumes []*volume
	free    chan *chunk
	work    chan *chunk
	order   chan *chunk
	stop    chan struct{}
	closing sync.Once
	done    sync.WaitGroup
}

func newPipeline(volumes []*volume, blockSize int) *pipeline {
	workers := min(runtime.GOMAXPROCS(0), maxWorkers)
	if !volumes[0].compressed {
		workers = 0
	}
	n := workers + spareChunks
	p := &pipeline{
		volumes: volumes,
		free:    make(chan *chunk, n),
		work:    make(chan *chunk, n),
		order:   make(chan *chunk, n),
		stop:    make(chan struct{}),
	}
	for range n {
		p.free <- &chunk{ready: make(chan struct{}, 1)}
	}
	p.done.Go(p.read)
	for range workers {
		p.done.Go(func() { p.decode(blockSize) })
	}
	return p
}

// read fills chunks, volume after volume, until there is an error.
func (p *pipeline) read() {
	defer close(p.order)
	defer close(p.work)
	for _, v := range p.volumes {
		for more := true; more; {
			var c *chunk
			select {
			case c = <-p.free:
			case <-p.stop:
				return
			}
			more = v.read(c)
			failed := c.err != nil
			// Neither blocks: there is room for all chunks.
			if len(c.blocks) > 0 {
				p.work <- c
			} else {
				c.ready <- struct{}{}
			}
			p.order <- c
			if failed {
				return
			}
		}
	}
}

func (p *pipeline) decode(blockSize int) {
	var d decoder
	for c := range p.work {
		d.chunk(c, blockSize)
		c.ready <- struct{}{}
	}
}

// next waits for the next chunk, which is to be sent back to free.
func (p *pipeline) next() (*chunk, error) {
	c, ok := <-p.order
	if !ok {
		return nil, errCutOff
	}
	<-c.ready
	return c, nil
}

func (p *pipeline) close() {
	p.closing.Do(func() { close(p.stop) })
	p.done.Wait()
}

// records are what a dump consists of, volumes joined and blocks decoded.
type records struct {
	ahead *pipeline
	chunk *chunk
	rest  []byte // of the chunk
	taken int64  // records
}

// take returns the next records, as many as there are in one place, but at
// most max. They are valid until the next call.
func (r *records) take(max int64) ([]byte, error) {
	for len(r.rest) == 0 {
		if err := r.refill(); err != nil {
			return nil, fmt.Errorf("record %d: %w", r.taken, err)
		}
	}
	n := int(min(int64(len(r.rest)), max*recordSize))
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	r.taken += int64(n / recordSize)
	return b, nil
}

func (r *records) refill() error {
	if r.chunk != nil {
		if r.chunk.err != nil {
			return r.chunk.err
		}
		r.ahead.free <- r.chunk
		r.chunk = nil
	}
	c, err := r.ahead.next()
	if err != nil {
		return err
	}
	r.chunk, r.rest = c, c.out
	return nil
}
