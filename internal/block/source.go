package block

import (
	"errors"
	"fmt"
	"iter"
	"os"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/used"
)

// Source is a disk that is only read, which others may use meanwhile: a snapshot,
// or the disk of an instance that is down. Its methods may be called by several
// goroutines at once, except Close.
type Source struct {
	path   string
	file   *os.File
	size   size.Bytes
	isFile bool
}

// OpenSource opens a disk, a block device or a regular file, for reading.
func OpenSource(path string) (*Source, error) {
	s, err := openSource(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the disk %s: %w", path, err)
	}
	return s, nil
}

func openSource(path string) (*Source, error) {
	id, err := identify(path)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	end, err := file.Seek(0, 2)
	if err == nil && end == 0 {
		err = errors.New("it is 0 bytes long")
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	_ = unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
	return &Source{path, file, size.Bytes(end), id.isFile}, nil
}

// Path returns the path the disk was opened by.
func (s *Source) Path() string { return s.path }

// Size returns the disk's length.
func (s *Source) Size() size.Bytes { return s.size }

// ReadAt reads from the disk, as io.ReaderAt says. What was read is not kept in
// the node's memory, where other things are of more use.
func (s *Source) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.file.ReadAt(p, off)
	if len(p) >= dropFrom {
		_ = unix.Fadvise(int(s.file.Fd()), off, int64(n), unix.FADV_DONTNEED)
	}
	return n, err
}

// dropFrom is how much is read at once where it is read once only, in bytes.
const dropFrom = 256 << 10

// WithoutHoles leaves out of the ranges what a regular file has no blocks for,
// and which so reads as zeros.
func (s *Source) WithoutHoles(ranges iter.Seq2[used.Range, error]) iter.Seq2[used.Range, error] {
	if !s.isFile {
		return ranges
	}
	return func(yield func(used.Range, error) bool) {
		for r, err := range ranges {
			if err != nil {
				yield(r, err)
				return
			}
			for off, end := r.Start, r.Start+r.Length; off < end; {
				data := s.nextData(off, end)
				if data.Length > 0 && !yield(data, nil) {
					return
				}
				off = data.Start + data.Length
			}
		}
	}
}

// nextData is the next stretch from off on that may not be zeros; an empty one at
// the end where there is none. A file system that cannot tell has data all over.
func (s *Source) nextData(off, end size.Bytes) used.Range {
	fd := int(s.file.Fd())
	start, err := unix.Seek(fd, int64(off), unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) || err == nil && size.Bytes(start) >= end {
		return used.Range{Start: end}
	}
	if err != nil {
		return used.Range{Start: off, Length: end - off}
	}
	hole, err := unix.Seek(fd, start, unix.SEEK_HOLE)
	if err != nil || hole <= start || size.Bytes(hole) > end {
		hole = int64(end)
	}
	return used.Range{Start: size.Bytes(start), Length: size.Bytes(hole) - size.Bytes(start)}
}

// Close releases the disk.
func (s *Source) Close() error {
	if err := s.file.Close(); err != nil {
		return fmt.Errorf("cannot close the disk %s: %w", s.path, err)
	}
	return nil
}
