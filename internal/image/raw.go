package image

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
)

// raw is a file that is the disk, byte by byte. Its holes are zeros.
type raw struct {
	f      *os.File
	path   string
	length size.Bytes // of the file
}

func newRaw(f *os.File, n size.Bytes, path string) (Source, error) {
	if n < sector {
		return nil, errShort
	}
	return &raw{f: f, path: path, length: n}, nil
}

func (r *raw) Path() string          { return r.path }
func (r *raw) Format() Format        { return Raw }
func (r *raw) Size() size.Bytes      { return r.length.AlignUp(sector) }
func (r *raw) BlockSize() size.Bytes { return 4 * size.KiB }
func (r *raw) Close() error          { return r.f.Close() }

func (r *raw) Notes() []string {
	if missing := r.Size() - r.length; missing > 0 {
		return []string{fmt.Sprintf("the raw image of %d bytes is no multiple of 512: %d zeros are added", int64(r.length), int64(missing))}
	}
	return nil
}

// Extent asks the filesystem for holes. One that knows none has only data.
func (r *raw) Extent(off size.Bytes) (Extent, error) {
	if off < 0 || off >= r.Size() {
		return Extent{}, io.EOF
	}
	if off >= r.length {
		return Extent{Offset: off, Length: r.Size() - off, Zero: true}, nil
	}
	data, err := r.f.Seek(int64(off), unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return Extent{Offset: off, Length: r.Size() - off, Zero: true}, nil
	}
	if err != nil {
		return Extent{}, fmt.Errorf("cannot look for data in %s at offset %d: %w", r.path, int64(off), err)
	}
	if size.Bytes(data) > off {
		return Extent{Offset: off, Length: size.Bytes(data) - off, Zero: true}, nil
	}
	hole, err := r.f.Seek(int64(off), unix.SEEK_HOLE)
	if err != nil {
		return Extent{}, fmt.Errorf("cannot look for a hole in %s at offset %d: %w", r.path, int64(off), err)
	}
	return Extent{Offset: off, Length: max(min(size.Bytes(hole), r.length)-off, 1)}, nil
}

func (r *raw) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || size.Bytes(off) >= r.Size() {
		return 0, io.EOF
	}
	want := int(min(int64(len(p)), int64(r.Size())-off))
	stored := int(min(int64(want), max(int64(r.length)-off, 0)))
	n, err := r.f.ReadAt(p[:stored], off)
	if n < stored {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return n, fmt.Errorf("cannot read %s at offset %d: %w", r.path, off+int64(n), err)
	}
	clear(p[stored:want])
	if want < len(p) {
		return want, io.EOF
	}
	return want, nil
}
