package deploy

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"ganeti-instance-image/internal/image"
	"ganeti-instance-image/internal/progress"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/zeros"
)

const (
	// maxWorkers bounds memory: each has a buffer of a chunk.
	maxWorkers = 8
	// minChunk is how much a worker reads and writes at once, at least.
	minChunk = size.MiB
	// minZero is the shortest run of zeros that the disk is asked to make: for
	// less, writing them costs less than a hole.
	minZero = 64 * size.KiB
	// maxZero keeps a cancelled run from waiting for one long request.
	maxZero = size.GiB
	// scanUnit is the granularity in which data is searched for zeros.
	scanUnit = 4 << 10
)

// writer copies the middle of an image.
type writer struct {
	what    string // is written, for messages: image /path
	disk    Target
	chunk   size.Bytes
	buffers sync.Pool
	total   atomic.Int64 // bytes to write; 0 where that is not known
	written atomic.Int64 // bytes written as data
	zeroed  atomic.Int64 // bytes the disk was asked to zero
}

// job is a stretch of the image for one worker.
type job struct {
	off, n size.Bytes
	zero   bool
}

func newWriter(what string, chunk size.Bytes, disk Target) *writer {
	w := &writer{what: what, disk: disk, chunk: chunk}
	w.buffers.New = func() any { b := make([]byte, w.chunk); return &b }
	return w
}

// write copies the image from one offset to another. It returns the first
// error, after all workers have ended.
func (w *writer) write(ctx context.Context, img image.Image, from, to size.Bytes) error {
	if from >= to {
		return nil
	}
	w.total.Store(int64(to - from))
	defer w.report()()
	workers, restore := workers()
	defer restore()
	group, gctx := errgroup.WithContext(ctx)
	jobs := make(chan job, workers)
	group.Go(func() error {
		defer close(jobs)
		return w.plan(gctx, img, from, to, jobs)
	})
	for range workers {
		group.Go(func() error { return w.work(gctx, img, jobs) })
	}
	return w.stopped(ctx, group.Wait())
}

// workers is how many goroutines write. A worker that waits in the kernel, as
// for another's write to the same file, keeps its share of the processors: with
// as many as there are workers none idles. restore takes these shares back.
func workers() (n int, restore func()) {
	processors := runtime.GOMAXPROCS(0)
	n = min(maxWorkers, 2*processors)
	runtime.GOMAXPROCS(max(n, processors))
	return n, func() { runtime.GOMAXPROCS(processors) }
}

// stopped makes a cancellation's cause the error.
func (w *writer) stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("stopped while writing %s: %w", w.what, context.Cause(ctx))
	}
	return err
}

// plan walks the extents of the image and hands out the jobs: long runs of
// zeros, and between them data in aligned chunks.
func (w *writer) plan(ctx context.Context, img image.Image, from, to size.Bytes, jobs chan<- job) error {
	data := from // what was not handed out yet begins here
	for off := from; off < to; {
		zero, end, err := stretch(img, off, to)
		if err != nil {
			return err
		}
		dataEnd, zeroEnd := end.AlignDown(w.chunk), size.Bytes(0)
		if zero {
			dataEnd, zeroEnd = off.AlignUp(minZero), end.AlignDown(minZero)
		}
		if !zero || dataEnd < zeroEnd {
			data, err = send(ctx, jobs, data, dataEnd, w.chunk, false)
		}
		if err == nil && dataEnd < zeroEnd {
			data, err = send(ctx, jobs, data, zeroEnd, maxZero, true)
		}
		if err != nil {
			return err
		}
		off = end
	}
	_, err := send(ctx, jobs, data, to, w.chunk, false)
	return err
}

// stretch finds the end of the data, or of the zeros, at off. What follows may be
// of the same kind.
func stretch(img image.Image, off, to size.Bytes) (zero bool, end size.Bytes, err error) {
	for end = off; end < to && end-off < maxZero; {
		extent, err := img.Extent(end)
		if err != nil {
			return false, 0, err
		}
		if end > off && !(zero && extent.Zero) {
			break
		}
		zero, end = extent.Zero, min(end+extent.Length, to)
	}
	return zero, end, nil
}

// send hands out what lies between two offsets, cut where they are multiples of
// step, and returns where it ended.
func send(ctx context.Context, jobs chan<- job, from, to, step size.Bytes, zero bool) (size.Bytes, error) {
	for from < to {
		next := min(from.AlignDown(step)+step, to)
		select {
		case jobs <- job{off: from, n: next - from, zero: zero}:
		case <-ctx.Done():
			return from, ctx.Err()
		}
		from = next
	}
	return from, nil
}

// work does jobs until there are none, or until any worker failed.
func (w *writer) work(ctx context.Context, img image.Image, jobs <-chan job) error {
	for j := range jobs {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var err error
		if j.zero {
			err = w.writeZeros(j.off, j.n)
		} else {
			err = w.copy(img, j)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// copy moves a chunk of data from the image to the disk.
func (w *writer) copy(img image.Image, j job) error {
	buffer := w.buffers.Get().(*[]byte)
	defer w.buffers.Put(buffer)
	b := (*buffer)[:j.n]
	if _, err := img.ReadAt(b, int64(j.off)); err != nil {
		return err
	}
	return w.writeSparse(b, j.off)
}

// writeSparse writes b but for its long runs of zeros, which the disk makes.
func (w *writer) writeSparse(b []byte, off size.Bytes) error {
	start := 0 // what was not written yet begins here
	for at := 0; at < len(b); {
		end := at
		for end < len(b) && zeros.Only(b[end:min(end+scanUnit, len(b))]) {
			end = min(end+scanUnit, len(b))
		}
		if size.Bytes(end-at) >= minZero {
			if err := w.writeData(b[start:at], off+size.Bytes(start)); err != nil {
				return err
			}
			if err := w.writeZeros(off+size.Bytes(at), size.Bytes(end-at)); err != nil {
				return err
			}
			start = end
		}
		at = end + scanUnit
	}
	return w.writeData(b[start:], off+size.Bytes(start))
}

func (w *writer) writeData(b []byte, off size.Bytes) error {
	if len(b) == 0 {
		return nil
	}
	if _, err := w.disk.WriteAt(b, int64(off)); err != nil {
		return onDisk(fmt.Errorf("cannot write the disk at offset %d: %w", int64(off), err))
	}
	w.written.Add(int64(len(b)))
	if s, ok := w.disk.(writebackStarter); ok {
		s.StartWriteback(off, size.Bytes(len(b)))
	}
	return nil
}

func (w *writer) writeZeros(off, n size.Bytes) error {
	if err := w.disk.Zero(off, n); err != nil {
		return onDisk(err)
	}
	w.zeroed.Add(int64(n))
	return nil
}

// report tells of a long run until the returned function is called.
func (w *writer) report() (stop func()) {
	return progress.Watch("writing "+w.what, func() (size.Bytes, size.Bytes) {
		return size.Bytes(w.written.Load() + w.zeroed.Load()), size.Bytes(w.total.Load())
	})
}
