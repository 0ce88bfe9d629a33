package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/contents"
	"ganeti-instance-image/internal/progress"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/used"
	"ganeti-instance-image/internal/zeros"
)

// Source is a disk that is read.
type Source interface {
	io.ReaderAt
	Path() string
	Size() size.Bytes
	WithoutHoles(iter.Seq2[used.Range, error]) iter.Seq2[used.Range, error]
}

// ReadError is wrapped by the error for a disk that cannot be read.
type ReadError struct{ err error }

func (e *ReadError) Error() string { return e.err.Error() }
func (e *ReadError) Unwrap() error { return e.err }

const (
	copyChunk = size.MiB      // what is read at once
	zeroUnit  = 4 * size.KiB  // what is looked at for zeros
	zeroLeast = 64 * size.KiB // a shorter run of zeros is written
)

// inUse is what of a disk is in use, and how much that is.
func inUse(disk Source) (iter.Seq2[used.Range, error], size.Bytes, error) {
	found, err := contents.Of(disk, disk.Size())
	if err != nil {
		return nil, 0, &ReadError{err}
	}
	ranges, total := disk.WithoutHoles(found.Used()), size.Bytes(0)
	for r, err := range ranges {
		if err != nil {
			return nil, 0, &ReadError{err}
		}
		total += r.Length
	}
	return ranges, total, nil
}

// duplicate copies ranges of a disk into a file, which has holes elsewhere and
// for zeros.
func duplicate(ctx context.Context, disk Source, ranges iter.Seq2[used.Range, error], total size.Bytes, to *os.File) error {
	if err := to.Truncate(int64(disk.Size())); err != nil {
		return fmt.Errorf("cannot make a copy of %s: %w", disk.Size(), err)
	}
	var done atomic.Int64
	defer progress.Watch("copying the disk", func() (size.Bytes, size.Bytes) { return size.Bytes(done.Load()), total })()
	buffer := make([]byte, copyChunk)
	for r, err := range ranges {
		if err != nil {
			return &ReadError{err}
		}
		for off, end := r.Start, r.Start+r.Length; off < end; {
			if ctx.Err() != nil {
				return fmt.Errorf("stopped while copying the disk: %w", context.Cause(ctx))
			}
			b := buffer[:min(copyChunk, end-off)]
			if n, err := disk.ReadAt(b, int64(off)); n < len(b) {
				return &ReadError{fmt.Errorf("cannot read the disk %s at offset %d: %w", disk.Path(), int64(off), err)}
			}
			if err := writeSparse(to, b, off); err != nil {
				return fmt.Errorf("cannot write the copy of the disk: %w", err)
			}
			off += size.Bytes(len(b))
			done.Add(int64(len(b)))
		}
	}
	return nil
}

var blank [zeroUnit]byte

// writeSparse writes all but the long runs of zeros.
func writeSparse(to io.WriterAt, b []byte, off size.Bytes) error {
	start := 0
	for at := 0; at < len(b); {
		end := at
		for end < len(b) && zeros.Only(b[end:min(end+int(zeroUnit), len(b))]) {
			end = min(end+int(zeroUnit), len(b))
		}
		if end-at >= int(zeroLeast) || end > at && end == len(b) {
			if err := writeAt(to, b[start:at], off+size.Bytes(start)); err != nil {
				return err
			}
			start = end
		}
		at = end + int(zeroUnit)
	}
	return writeAt(to, b[start:], off+size.Bytes(start))
}

func writeAt(to io.WriterAt, b []byte, off size.Bytes) error {
	if len(b) == 0 {
		return nil
	}
	_, err := to.WriteAt(b, int64(off))
	return err
}

// punchFree gives back what of the copy is not in use any more, so that nothing
// of what was removed is left in it.
func punchFree(copied *os.File, length size.Bytes) error {
	found, err := contents.Of(copied, length)
	if err != nil {
		return err
	}
	at := size.Bytes(0)
	for r, err := range found.Used() {
		if err != nil {
			return err
		}
		if err := punch(copied, at, r.Start); err != nil {
			return err
		}
		at = r.Start + r.Length
	}
	return punch(copied, at, length)
}

func punch(f *os.File, from, to size.Bytes) error {
	if from >= to {
		return nil
	}
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(from), int64(to-from))
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	for from < to { // a file system without holes
		n := min(to-from, zeroUnit)
		if _, err := f.WriteAt(blank[:n], int64(from)); err != nil {
			return err
		}
		from += n
	}
	return nil
}
