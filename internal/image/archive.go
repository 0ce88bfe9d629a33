package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"ganeti-instance-image/internal/size"
)

const (
	// archiveBuffer is how much is decoded at once, and what is handed over.
	archiveBuffer = 512 << 10
	// archiveAhead is how far one decoder is ahead of the reader.
	archiveAhead = 8 * size.MiB
	// archivePartsAhead is how far several are. One that decodes a later block
	// of xz data, which mostly have 24 MiB, has to keep it until its turn comes.
	archivePartsAhead = 64 * size.MiB
	// archiveMemory is what all decoders of xz data take, with what they are ahead.
	archiveMemory = 176 * size.MiB
	// archiveReserve are the buffers that only the decoder gets whose turn it is.
	archiveReserve = 4
	// maxIdleReads is how often in a row a decoder may return nothing.
	maxIdleReads = 100
)

// Archive is a file that is read once from its beginning to its end, after
// unpacking it where it is compressed with gzip, xz, zstd, bzip2 or lz4. It is
// decoded ahead of its reader by goroutines of its own; xz data by the node's xz,
// or, where it has none, several blocks at a time. It is for one user at a time.
type Archive struct {
	path    string
	name    string // of the compression
	decoded size.Bytes
	closer  io.Closer
	ahead   *readAhead
	buffer  []byte // that rest is in
	rest    []byte
	err     error
}

// OpenArchive opens the regular file path, whose content tells how it is
// compressed, and begins to decode it. What is wrong with the compressed data is
// an error of the reading; what its index or its frames show, already one of
// OpenArchive. What is inside is not looked at, but a file that is a disk image,
// a web page or anything else that is certainly no archive is refused.
func OpenArchive(path string) (*Archive, error) { return openArchiveFile(path, findXZ()) }

func openArchiveFile(path, xz string) (*Archive, error) {
	f, n, err := openRegular(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open archive: %w", err)
	}
	a, err := openArchive(f, n, path, xz)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot use archive %s: %w", path, err), f.Close())
	}
	return a, nil
}

// openArchive leaves data in xz to the program xz, unless that is empty.
func openArchive(f *os.File, n size.Bytes, path, xz string) (*Archive, error) {
	if n == 0 {
		return nil, errEmpty
	}
	plain, err := isArchive(f, n)
	if err != nil {
		return nil, err
	}
	a := &Archive{path: path, decoded: n, closer: f}
	if plain {
		a.ahead = newReadAhead(1, archiveAhead)
		a.ahead.start(1, func(int) (io.ReadCloser, error) { return io.NopCloser(f), nil })
		return a, nil
	}
	k, err := recognise(f, n)
	switch {
	case err != nil:
		return nil, err
	case k == nil:
		return nil, errors.New("it is neither a tar or dump archive nor compressed in a way that is known here")
	case k.packed == nil && k.packer:
		return nil, k.refusal()
	case k.packed == nil:
		return nil, fmt.Errorf("it is %s, and no tar or dump archive", k.name)
	}
	s := &Stream{compression: k.packed, f: f, path: path, length: n, decoded: -1, workers: 1}
	if err := s.survey(); err != nil {
		return nil, k.packed.unusable(err)
	}
	a.name, a.decoded, a.closer = s.name, s.decoded, s
	if k.packed == xzFormat && xz != "" && s.widest <= archiveMemory/2 { // xz takes what a header asks for
		a.ahead = newReadAhead(1, archiveAhead)
		a.ahead.start(1, func(int) (io.ReadCloser, error) { return s.openTool(xz) })
		return a, nil
	}
	workers, memory := s.archiveWorkers()
	a.ahead = newReadAhead(len(s.parts), memory)
	a.ahead.start(workers, func(i int) (io.ReadCloser, error) { return s.open(s.parts[i], 0) })
	return a, nil
}

// archiveWorkers is how many parts are decoded at once, and how far ahead.
func (s *Stream) archiveWorkers() (int, size.Bytes) {
	one := size.Bytes(lzmaMemory(dictionarySize(s.dictionary)))
	if n := min(s.workers, int((archiveMemory-archivePartsAhead)/one)); n > 1 {
		return n, archivePartsAhead
	}
	return 1, archiveAhead
}

// isArchive tells whether a file begins as a tar or dump archive does.
func isArchive(r io.ReaderAt, n size.Bytes) (bool, error) {
	head := make([]byte, min(n, 1024))
	if _, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	// An archive without entries is nothing but zeros.
	empty := len(bytes.Trim(head, "\x00")) == 0
	return empty || tarHeader(head, nil) || dumpRecord(head, nil), nil
}

// Path is the file the archive was opened from.
func (a *Archive) Path() string { return a.path }

// Compression is the name of the compressed format: gzip, xz, zstd, bzip2 or
// lz4, and empty where the file is not compressed.
func (a *Archive) Compression() string { return a.name }

// Size is the length of what is inside, where the file says it.
func (a *Archive) Size() (size.Bytes, bool) { return max(a.decoded, 0), a.decoded >= 0 }

// Chunk returns the next bytes, at least one and at most limit, which are valid
// until the next call of any method. Its error is io.EOF once every byte of the
// file was read and every checksum and length was compared.
func (a *Archive) Chunk(limit int) ([]byte, error) {
	if len(a.rest) == 0 {
		if err := a.next(); err != nil {
			return nil, err
		}
	}
	n := min(limit, len(a.rest))
	b := a.rest[:n]
	a.rest = a.rest[n:]
	return b, nil
}

func (a *Archive) next() error {
	if a.err != nil {
		return a.err
	}
	a.buffer, a.err = a.ahead.next(a.buffer)
	if a.err != nil && a.err != io.EOF {
		a.err = fmt.Errorf("cannot read archive %s: %w", a.path, a.err)
	}
	a.rest = a.buffer
	return a.err
}

// Read is Chunk as an io.Reader has it.
func (a *Archive) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	b, err := a.Chunk(len(p))
	return copy(p, b), err
}

// Close ends the decoding and closes the file.
func (a *Archive) Close() error {
	a.ahead.stop()
	a.rest, a.buffer, a.err = nil, nil, os.ErrClosed
	return a.closer.Close()
}

// readAhead is what was decoded and not read. Its goroutines take the parts of
// the file in their order, one each.
type readAhead struct {
	mu      sync.Mutex
	changed sync.Cond
	workers sync.WaitGroup

	parts   []aheadPart
	taken   int // parts that have a goroutine, or had one
	reading int // the part whose turn it is
	free    [][]byte
	unmade  int // buffers that were not needed so far
	stopped bool
}

type aheadPart struct {
	full [][]byte
	err  error // behind full; io.EOF where the part is whole
}

func newReadAhead(parts int, memory size.Bytes) *readAhead {
	r := &readAhead{parts: make([]aheadPart, parts), unmade: int(memory / archiveBuffer)}
	r.changed.L = &r.mu
	return r
}

func (r *readAhead) start(workers int, open func(part int) (io.ReadCloser, error)) {
	for range workers {
		r.workers.Go(func() {
			for i := r.take(); i >= 0; i = r.take() {
				r.finish(i, r.decode(i, open))
			}
		})
	}
}

// take returns the next part that nobody decodes, -1 where there is none.
func (r *readAhead) take() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped || r.taken == len(r.parts) {
		return -1
	}
	r.taken++
	return r.taken - 1
}

func (r *readAhead) finish(part int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.parts[part].err = err
	r.changed.Broadcast()
}

// decode reads a part to its end, at which its error is io.EOF.
func (r *readAhead) decode(part int, open func(part int) (io.ReadCloser, error)) error {
	in, err := open(part)
	if err != nil {
		return err
	}
	defer in.Close()
	for {
		b := r.empty(part)
		if b == nil {
			return os.ErrClosed
		}
		n, err := fillBuffer(in, b)
		r.put(part, b[:n])
		if err != nil {
			return err
		}
	}
}

// fillBuffer reads until b is full or there is an error, which is the reader's.
func fillBuffer(in io.Reader, b []byte) (n int, err error) {
	for idle := 0; n < len(b) && err == nil; idle++ {
		var more int
		more, err = in.Read(b[n:])
		if n += more; more > 0 {
			idle = 0
		}
		if idle > maxIdleReads {
			return n, io.ErrNoProgress
		}
	}
	return n, err
}

// empty waits for a buffer to fill. It is nil where nobody reads any more.
func (r *readAhead) empty(part int) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.stopped {
		left := len(r.free) + r.unmade
		switch {
		case left == 0 || part != r.reading && left <= archiveReserve:
			r.changed.Wait()
		case len(r.free) > 0:
			b := r.free[len(r.free)-1]
			r.free = r.free[:len(r.free)-1]
			return b
		default:
			r.unmade--
			return make([]byte, archiveBuffer)
		}
	}
	return nil
}

func (r *readAhead) put(part int, b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(b) == 0 {
		r.free = append(r.free, b[:archiveBuffer])
	} else {
		r.parts[part].full = append(r.parts[part].full, b)
	}
	r.changed.Broadcast()
}

// next takes back a buffer that was read and returns the one behind it. Its
// error is io.EOF behind the last.
func (r *readAhead) next(read []byte) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if read != nil {
		r.free = append(r.free, read[:archiveBuffer])
		r.changed.Broadcast()
	}
	for {
		p := &r.parts[r.reading]
		switch {
		case len(p.full) > 0:
			b := p.full[0]
			p.full = p.full[1:]
			return b, nil
		case p.err == io.EOF && r.reading+1 < len(r.parts):
			p.full = nil
			r.reading++
			r.changed.Broadcast()
		case p.err != nil:
			return nil, p.err
		default:
			r.changed.Wait()
		}
	}
}

// stop ends the goroutines and waits for them.
func (r *readAhead) stop() {
	r.mu.Lock()
	r.stopped = true
	r.changed.Broadcast()
	r.mu.Unlock()
	r.workers.Wait()
}
