package deploy

import (
	"context"
	"log/slog"
	"time"

	"ganeti-instance-image/internal/size"
)

// Sink takes the bytes of a disk as they come, in any order. Its methods are for
// one goroutine.
type Sink struct {
	ctx    context.Context
	u      *unpacking
	buffer *[]byte
}

// Receive is Write for the bytes of a disk that somebody sends. fill calls Begin
// and then hands over each of them once. what names them in messages.
func Receive(ctx context.Context, what string, disk Target, fill func(context.Context, *Sink) error) (*Written, error) {
	start := time.Now()
	w := newWriter(what, minChunk, disk)
	written, err := w.take(ctx, func(ctx context.Context, u *unpacking) error {
		return fill(ctx, &Sink{ctx: ctx, u: u})
	})
	if err != nil {
		return nil, err
	}
	if err := w.finish(written); err != nil {
		return nil, err
	}
	slog.Info("wrote "+what, "size", written.size, "written", size.Bytes(w.written.Load()), "zeroed", size.Bytes(w.zeroed.Load()),
		"took", time.Since(start).Round(time.Millisecond))
	return written, nil
}

// Begin makes the disk ready to be written. total is how many bytes there are, 0
// where that is not known; more than the disk has are refused before it is
// touched. about is called just before it is.
func (s *Sink) Begin(total size.Bytes, about func()) error {
	if total > s.u.disk.Size() {
		return tooLarge(s.u.what, total, s.u.disk)
	}
	s.u.total.Store(int64(total))
	about()
	return Wipe(s.u.disk)
}

// Room is where up to n of the bytes from off on can be put; they may be fewer.
// Data hands them over.
func (s *Sink) Room(off, n size.Bytes) []byte {
	if s.buffer == nil {
		s.buffer = s.u.buffers.Get().(*[]byte)
	}
	return (*s.buffer)[:min(n, off.AlignDown(s.u.chunk)+s.u.chunk-off)]
}

// Data hands over what Room, asked before for the same offset, was filled with.
func (s *Sink) Data(off size.Bytes, data []byte) error {
	buffer := s.buffer
	s.buffer = nil
	return s.u.send(s.ctx, chunk{off: off, data: data, buffer: buffer})
}

// Zero tells that n bytes from off on are zeros.
func (s *Sink) Zero(off, n size.Bytes) error {
	if n < minZero {
		return s.zeroData(off, n)
	}
	for n > 0 {
		part := min(n, maxZero)
		if err := s.u.send(s.ctx, chunk{off: off, zeros: part}); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

func (s *Sink) zeroData(off, n size.Bytes) error {
	for n > 0 {
		b := s.Room(off, n)
		clear(b)
		if err := s.Data(off, b); err != nil {
			return err
		}
		off, n = off+size.Bytes(len(b)), n-size.Bytes(len(b))
	}
	return nil
}
