package backup

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/used"
	"ganeti-instance-image/internal/zeros"
)

const (
	// chunkSize is how much is read at once.
	chunkSize = size.MiB
	// readers is how many chunks are read at a time.
	readers = 4
	// ahead is how many chunks may be read and not yet written.
	ahead = 12
	// maxChunks bounds memory: two pieces are held, one that is filled and one
	// that is written.
	maxChunks = 32
	// outBuffer is what short stretches are gathered in; long ones are not.
	outBuffer = 256 << 10
)

// Estimate is how long the backup of a disk will be, with so many bytes in use
// and so much of a manifest. Blocks of zeros make it shorter.
func Estimate(m Manifest, inUse size.Bytes) (size.Bytes, error) {
	manifest, err := m.encode()
	if err != nil {
		return 0, err
	}
	pieces := (inUse + pieceData - 1) / pieceData
	return size.Bytes(len(member(ManifestName, m.Created, manifest))) + inUse + (pieces+1)*5*record + size.Bytes(len(trailer(m.Created, nil))), nil
}

// writer makes the archive.
type writer struct {
	m       Manifest
	disk    io.ReaderAt
	out     *bufio.Writer
	sum     hash.Hash
	done    *atomic.Int64 // bytes of what is in use that were read
	buffers sync.Pool
}

// chunk is a stretch of the disk that is read.
type chunk struct {
	off    size.Bytes
	data   []byte
	buffer *[]byte
	err    error
	done   chan struct{} // closed when it was read
}

// segment is a stretch of data that is not zeros.
type segment struct {
	off  size.Bytes // on the disk
	data []byte
}

// piece is a member in the making.
type piece struct {
	start, end size.Bytes
	data       size.Bytes
	segments   []segment
	chunks     []*chunk // whose buffers the segments are in
}

// Write writes the backup of a disk that the manifest describes: of what is in
// use all that is not zeros. An error of in use, of the disk or of out ends it.
func Write(ctx context.Context, out io.Writer, disk io.ReaderAt, m Manifest, inUse iter.Seq2[used.Range, error], done *atomic.Int64) error {
	w := &writer{m: m, disk: disk, out: bufio.NewWriterSize(out, outBuffer), sum: sha256.New(), done: done}
	w.buffers.New = func() any { b := make([]byte, chunkSize); return &b }
	manifest, err := m.encode()
	if err != nil {
		return err
	}
	if err := w.write([][]byte{member(ManifestName, m.Created, manifest)}); err != nil {
		return err
	}
	if err := w.flush(); err != nil { // so that something comes before the disk was looked at
		return err
	}
	if err := w.writeDisk(ctx, inUse); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	if err := w.write([][]byte{trailer(m.Created, w.sum.Sum(nil))}); err != nil {
		return err
	}
	return w.flush()
}

func (w *writer) flush() error {
	if err := w.out.Flush(); err != nil {
		return fmt.Errorf("cannot write the backup: %w", err)
	}
	return nil
}

// writeDisk has three steps work at once: chunks are read, by several; pieces
// are put together in the disk's order; and written.
func (w *writer) writeDisk(ctx context.Context, inUse iter.Seq2[used.Range, error]) error {
	group, ctx := errgroup.WithContext(ctx)
	jobs, ordered, pieces := make(chan *chunk), make(chan *chunk, ahead), make(chan *piece)
	group.Go(func() error {
		defer close(jobs)
		defer close(ordered)
		return w.plan(ctx, inUse, jobs, ordered)
	})
	for range readers {
		group.Go(func() error {
			for c := range jobs {
				w.read(c)
			}
			return nil
		})
	}
	group.Go(func() error {
		defer close(pieces)
		return w.assemble(ctx, ordered, pieces)
	})
	group.Go(func() error {
		for p := range pieces {
			if err := w.writePiece(p); err != nil {
				return err
			}
		}
		return nil
	})
	return group.Wait()
}

// plan cuts what is in use into chunks that end where multiples of chunkSize are.
func (w *writer) plan(ctx context.Context, inUse iter.Seq2[used.Range, error], jobs, ordered chan<- *chunk) error {
	for r, err := range inUse {
		if err != nil {
			return err
		}
		for off, end := r.Start, r.Start+r.Length; off < end; {
			next := min(off.AlignDown(chunkSize)+chunkSize, end)
			buffer := w.buffers.Get().(*[]byte)
			c := &chunk{off: off, data: (*buffer)[:next-off], buffer: buffer, done: make(chan struct{})}
			for _, to := range []chan<- *chunk{ordered, jobs} {
				select {
				case to <- c:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			off = next
		}
	}
	return nil
}

func (w *writer) read(c *chunk) {
	defer close(c.done)
	n, err := w.disk.ReadAt(c.data, int64(c.off))
	if n == len(c.data) {
		w.done.Add(int64(n))
		return
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	c.err = fmt.Errorf("cannot read the disk at offset %d: %w", int64(c.off)+int64(n), err)
}

// assemble makes pieces of chunks. The last one ends with the disk.
func (w *writer) assemble(ctx context.Context, ordered <-chan *chunk, pieces chan<- *piece) error {
	p := &piece{}
	for c := range ordered {
		select {
		case <-c.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if c.err != nil {
			return c.err
		}
		if !p.add(c) {
			w.buffers.Put(c.buffer)
		}
		if !p.full() {
			continue
		}
		p.end = c.off + size.Bytes(len(c.data))
		if err := send(ctx, pieces, p); err != nil {
			return err
		}
		p = &piece{start: p.end}
	}
	if p.end = w.m.Size; p.start == p.end || ctx.Err() != nil {
		return ctx.Err()
	}
	return send(ctx, pieces, p)
}

func send(ctx context.Context, pieces chan<- *piece, p *piece) error {
	select {
	case pieces <- p:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// add takes what of a chunk is not zeros, and tells whether that is anything.
func (p *piece) add(c *chunk) bool {
	before := len(p.segments)
	for at := 0; at < len(c.data); {
		start := at
		for at < len(c.data) && !zeros.Only(c.data[at:c.unitEnd(at)]) {
			at = c.unitEnd(at)
		}
		if at > start {
			p.segments = append(p.segments, segment{c.off + size.Bytes(start), c.data[start:at]})
			p.data += size.Bytes(at - start)
		}
		for at < len(c.data) && zeros.Only(c.data[at:c.unitEnd(at)]) {
			at = c.unitEnd(at)
		}
	}
	if len(p.segments) == before {
		return false
	}
	p.chunks = append(p.chunks, c)
	return true
}

// full tells whether the piece has as much as one is to have. It keeps the whole
// buffer of each chunk, however little of that counts.
func (p *piece) full() bool {
	return p.data >= pieceData || len(p.segments) > maxSegments-int(chunkSize/unit) || len(p.chunks) >= maxChunks
}

// unitEnd is where the unit of the disk that is at the offset at ends.
func (c *chunk) unitEnd(at int) int {
	return min(int((c.off+size.Bytes(at)).AlignDown(unit)+unit-c.off), len(c.data))
}

func (w *writer) writePiece(p *piece) error {
	sparse := p.sparseMap()
	stored := size.Bytes(len(sparse)) + p.data
	parts := [][]byte{pieceHeader(w.m.Created, p.start, p.end-p.start, stored), sparse}
	for _, s := range p.segments {
		parts = append(parts, s.data)
	}
	err := w.write(append(parts, padding(int(stored))))
	for _, c := range p.chunks {
		w.buffers.Put(c.buffer)
	}
	return err
}

// sparseMap lists where in the piece there is data, in decimal digits, a line
// each: how many stretches, and the offset and length of each. What ends with a
// hole has an empty stretch at the end.
func (p *piece) sparseMap() []byte {
	var stretches [][2]size.Bytes
	for _, s := range p.segments {
		off, n := s.off-p.start, size.Bytes(len(s.data))
		if last := len(stretches) - 1; last >= 0 && stretches[last][0]+stretches[last][1] == off {
			stretches[last][1] += n
			continue
		}
		stretches = append(stretches, [2]size.Bytes{off, n})
	}
	if last := len(stretches) - 1; last < 0 || stretches[last][0]+stretches[last][1] < p.end-p.start {
		stretches = append(stretches, [2]size.Bytes{p.end - p.start, 0})
	}
	text := append(strconv.AppendInt(nil, int64(len(stretches)), 10), '\n')
	for _, s := range stretches {
		text = append(strconv.AppendInt(text, int64(s[0]), 10), '\n')
		text = append(strconv.AppendInt(text, int64(s[1]), 10), '\n')
	}
	return append(text, padding(len(text))...)
}

// write writes and, at the same time, sums up.
func (w *writer) write(parts [][]byte) error {
	summed := make(chan struct{})
	go func() {
		defer close(summed)
		for _, part := range parts {
			w.sum.Write(part)
		}
	}()
	defer func() { <-summed }()
	for _, part := range parts {
		if _, err := w.out.Write(part); err != nil {
			return fmt.Errorf("cannot write the backup: %w", err)
		}
	}
	return nil
}
