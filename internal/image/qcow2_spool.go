package image

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/zeros"
)

// spool keeps parts of a stream, each at its offset. Zeros take no room.
type spool struct {
	dir    string
	length int64    // of the stream, or UnknownLength
	f      *os.File // nil as long as there are only zeros
	parts  []spooled
	most   int // parts; then everything is put
}

// spooled is a stretch of the stream.
type spooled struct{ off, end size.Bytes }

// full reports that no other stretch can be begun.
func (s *spool) full() bool { return len(s.parts) >= s.most }

// put keeps b, which lies behind all that was put before.
func (s *spool) put(off size.Bytes, b []byte) error {
	end := off + size.Bytes(len(b))
	if last := len(s.parts) - 1; last >= 0 && s.parts[last].end == off {
		s.parts[last].end = end
	} else {
		s.parts = append(s.parts, spooled{off, end})
	}
	if zeros.Only(b) {
		return nil
	}
	if err := s.open(off); err != nil {
		return err
	}
	if _, err := s.f.WriteAt(b, int64(off)); err != nil {
		return fmt.Errorf("cannot spool the qcow2 image in %s: %w", s.dir, err)
	}
	return nil
}

// open makes the file when it is first needed, if there is room for what the
// stream has from off on.
func (s *spool) open(off size.Bytes) error {
	if s.f != nil {
		return nil
	}
	if s.length < 0 {
		return refusedQCOW2(errors.New("its tables are not in front of its data, and how long it is is not known: " +
			"convert it with `qemu-img convert -O qcow2` first"))
	}
	need := size.Bytes(s.length) - off
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err != nil {
		return fmt.Errorf("cannot spool a qcow2 image whose tables are behind its data: %s: %w; set IMPORT_DIR to a directory with room for %s", s.dir, err, need)
	}
	if free := size.Bytes(fs.Bavail) * size.Bytes(fs.Bsize); free < need {
		return fmt.Errorf("cannot spool a qcow2 image whose tables are behind its data: %s has %s free, %s are needed; set IMPORT_DIR", s.dir, free, need)
	}
	f, err := unnamed(s.dir)
	if err != nil {
		return fmt.Errorf("cannot spool a qcow2 image whose tables are behind its data: %w; set IMPORT_DIR to a directory with room for %s", err, need)
	}
	s.f = f
	slog.Info("the qcow2 image has tables behind its data: keeping what comes before them in a file without a name",
		"directory", s.dir, "from", off, "at most", need)
	return nil
}

// unnamed opens a new file that goes with its last user.
func unnamed(dir string) (*os.File, error) {
	if fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600); err == nil {
		return os.NewFile(uintptr(fd), dir), nil
	}
	f, err := os.CreateTemp(dir, ".qcow2-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// read fills p from off on and returns how much of it was put.
func (s *spool) read(p []byte, off size.Bytes) (int, error) {
	i, found := slices.BinarySearchFunc(s.parts, off, func(a spooled, off size.Bytes) int {
		switch {
		case a.end <= off:
			return -1
		case a.off > off:
			return 1
		}
		return 0
	})
	if !found || len(p) == 0 {
		return 0, nil
	}
	n := min(len(p), int(s.parts[i].end-off))
	clear(p[:n])
	if s.f == nil {
		return n, nil
	}
	if _, err := s.f.ReadAt(p[:n], int64(off)); err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("cannot read the spool in %s: %w", s.dir, err)
	}
	return n, nil
}

// close lets go of the file, of which nothing is wanted any more.
func (s *spool) close() {
	if s.f != nil {
		s.f.Close()
	}
}
