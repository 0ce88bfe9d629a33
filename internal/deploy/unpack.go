package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
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
	buffer *[]byte // that data is in
}

// unpacking is one stream on its way to the disk.
type unpacking struct {
	*writer
	stream *image.Stream
	chunks chan chunk
	held   []part // as large as an image that fills the disk needs them

	mu  sync.Mutex
	end size.Bytes // of what was unpacked so far
}

// unpack decodes the stream and writes it, both with several goroutines where
// the stream has parts that can be decoded by themselves.
func (w *writer) unpack(ctx context.Context, s *image.Stream) (*Written, error) {
	total, _ := s.Size()
	stop := w.report(total)
	defer stop()
	workers, restore := workers()
	defer restore()
	u := &unpacking{writer: w, stream: s, chunks: make(chan chunk, workers), held: ends(w.disk, w.disk.Size())}
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(u.chunks)
		return u.decode(gctx)
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
func (u *unpacking) decode(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(u.stream.Workers())
	for _, p := range u.stream.Parts() {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error { return u.decodePart(ctx, p) })
	}
	return group.Wait()
}

func (u *unpacking) decodePart(ctx context.Context, p image.Part) (err error) {
	r, err := u.stream.Reader(p)
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
			return fmt.Errorf("cannot unpack image %s at offset %d of its disk: %w", u.path, int64(off)+int64(n), err)
		}
		if err := u.send(ctx, chunk{off, (*buffer)[:n], buffer}); err != nil {
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
	end := c.off + size.Bytes(len(c.data))
	if end > u.disk.Size() {
		return onDisk(fmt.Errorf("cannot deploy image %s: it unpacks to more than the disk's %s (%d bytes)",
			u.path, u.disk.Size(), int64(u.disk.Size())))
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
		for _, h := range u.held {
			copyOverlap(h, c)
		}
		from := max(c.off, u.held[0].end())
		to := min(c.off+size.Bytes(len(c.data)), u.held[1].off)
		if from < to {
			if err := u.writeSparse(c.data[from-c.off:to-c.off], from); err != nil {
				return err
			}
		}
		u.buffers.Put(c.buffer)
	}
	return nil
}

func copyOverlap(h part, c chunk) {
	from, to := max(h.off, c.off), min(h.end(), c.off+size.Bytes(len(c.data)))
	if from < to {
		copy(h.data[from-h.off:], c.data[from-c.off:to-c.off])
	}
}

// written makes the end of the image a whole sector's, and cuts what is held to
// it.
func (u *unpacking) written() (*Written, error) {
	if u.end == 0 {
		return nil, fmt.Errorf("cannot deploy image %s: it unpacks to nothing", u.path)
	}
	end := u.end.AlignUp(sectorSize)
	if end > u.disk.Size() {
		return nil, tooLarge(u.path, end, u.disk)
	}
	if end > u.end {
		slog.Warn(fmt.Sprintf("the image of %d bytes is no multiple of 512: %d zeros are added", int64(u.end), int64(end-u.end)), "image", filepath.Base(u.path))
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
