package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"golang.org/x/sync/errgroup"

	"ganeti-instance-image/internal/image"
	"ganeti-instance-image/internal/size"
)

// sectorSize is what the length of an image is filled up to.
const sectorSize size.Bytes = 512

// maxIdle is how often in a row a reader may return nothing.
const maxIdle = 100

// chunk is a piece of an unpacked image.
type chunk struct {
	off    size.Bytes
	data   []byte
	buffer *[]byte    // that data is in
	zeros  size.Bytes // how many there are, in place of data
}

func (c chunk) end() size.Bytes { return c.off + size.Bytes(len(c.data)) + c.zeros }

// unpacking is what comes in chunks on its way to the disk.
type unpacking struct {
	*writer
	chunks chan chunk
	held   []part // as large as an image that fills the disk needs them

	mu  sync.Mutex
	end size.Bytes // of what was unpacked so far
}

// unpack decodes the stream and writes it, both with several goroutines where
// the stream has parts that can be decoded by themselves.
func (w *writer) unpack(ctx context.Context, s *image.Stream) (*Written, error) {
	total, _ := s.Size()
	w.total.Store(int64(total))
	return w.take(ctx, func(ctx context.Context, u *unpacking) error { return u.decode(ctx, s) })
}

// take writes the chunks that fill sends, while it sends more.
func (w *writer) take(ctx context.Context, fill func(context.Context, *unpacking) error) (*Written, error) {
	defer w.report()()
	workers, restore := workers()
	defer restore()
	u := &unpacking{writer: w, chunks: make(chan chunk, workers), held: ends(w.disk, w.disk.Size())}
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(u.chunks)
		return fill(gctx, u)
	})
	for range workers {
		group.Go(func() error { return u.store(gctx) })
	}
	if err := w.stopped(ctx, group.Wait()); err != nil {
		return nil, err
	}
	return u.written()
}

// decode reads the parts, as many at once as the stream allows.
func (u *unpacking) decode(ctx context.Context, s *image.Stream) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(s.Workers())
	for _, p := range s.Parts() {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error { return u.decodePart(ctx, s, p) })
	}
	return group.Wait()
}

func (u *unpacking) decodePart(ctx context.Context, s *image.Stream, p image.Part) (err error) {
	r, err := s.Reader(p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	for off := p.Offset; ; {
		buffer := u.buffers.Get().(*[]byte)
		// Chunks end where others begin, whatever part they are of.
		n, err := fill(r, (*buffer)[:off.AlignDown(u.chunk)+u.chunk-off])
		ended := err == io.EOF
		if err != nil && !ended {
			return fmt.Errorf("cannot unpack %s at offset %d of its disk: %w", u.what, int64(off)+int64(n), err)
		}
		if err := u.send(ctx, chunk{off: off, data: (*buffer)[:n], buffer: buffer}); err != nil {
			return err
		}
		if off += size.Bytes(n); ended {
			return nil
		}
	}
}

// fill reads until b is full or there is an error, which is the reader's own:
// io.ReadFull's errors do not tell an image's end from a file that is cut off.
func fill(r io.Reader, b []byte) (n int, err error) {
	for idle := 0; n < len(b) && err == nil; idle++ {
		var more int
		more, err = r.Read(b[n:])
		if n += more; more > 0 {
			idle = 0
		}
		if idle > maxIdle {
			return n, io.ErrNoProgress
		}
	}
	return n, err
}

// send hands a chunk to the goroutines that write, if the disk has room for it.
func (u *unpacking) send(ctx context.Context, c chunk) error {
	end := c.end()
	if end > u.disk.Size() {
		return onDisk(fmt.Errorf("cannot deploy %s: it unpacks to more than the disk's %s (%d bytes)",
			u.what, u.disk.Size(), int64(u.disk.Size())))
	}
	u.mu.Lock()
	u.end = max(u.end, end)
	u.mu.Unlock()
	select {
	case u.chunks <- c:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// store writes chunks, but for what is held.
func (u *unpacking) store(ctx context.Context) error {
	for c := range u.chunks {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := u.storeChunk(c); err != nil {
			return err
		}
	}
	return nil
}

func (u *unpacking) storeChunk(c chunk) error {
	from, to := max(c.off, u.held[0].end()), min(c.end(), u.held[1].off)
	if c.zeros > 0 { // which the ends are in any case
		if from >= to {
			return nil
		}
		return u.writeZeros(from, to-from)
	}
	defer u.buffers.Put(c.buffer)
	for _, h := range u.held {
		copyOverlap(h, c)
	}
	if from >= to {
		return nil
	}
	return u.writeSparse(c.data[from-c.off:to-c.off], from)
}

func copyOverlap(h part, c chunk) {
	from, to := max(h.off, c.off), min(h.end(), c.end())
	if from < to {
		copy(h.data[from-h.off:], c.data[from-c.off:to-c.off])
	}
}

// written makes the end of the image a whole sector's, and cuts what is held to
// it.
func (u *unpacking) written() (*Written, error) {
	if u.end == 0 {
		return nil, fmt.Errorf("cannot deploy %s: it unpacks to nothing", u.what)
	}
	end := min(u.end.AlignUp(sectorSize), u.disk.Size()) // send let no more through than it has
	if end > u.end {
		slog.Warn(fmt.Sprintf("%s of %d bytes is no multiple of 512: %d zeros are added", u.what, int64(u.end), int64(end-u.end)))
		from, to := max(u.end, u.held[0].end()), min(end, u.held[1].off)
		if from < to {
			if err := u.disk.Zero(from, to-from); err != nil {
				return nil, onDisk(err)
			}
		}
	}
	for i, h := range u.held {
		u.held[i].data = h.data[:max(0, min(end, h.end())-h.off)]
	}
	return &Written{u.disk, end, u.held}, nil
}
