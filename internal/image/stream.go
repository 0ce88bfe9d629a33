package image

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"ganeti-instance-image/internal/size"
)

const (
	// headBytes is how much of a compressed image is decoded when it is opened.
	headBytes = size.MiB
	// headMembers is how many members or frames that may take; bgzip and pzstd
	// write a few dozen for it.
	headMembers = 4096
	// inputBuffer is how much compressed data is read at once.
	inputBuffer = 64 << 10
	// maxPadding is how many zeros behind compressed data are accepted; tapes
	// leave up to a block.
	maxPadding = 1 << 20
)

// compression is a format that raw images are stored in.
type compression struct {
	name    string
	command string // unpacks a file
	// headInput bounds the compressed data read for the first MiB: more than
	// any writer needs, little enough for a file of nothing but headers.
	headInput size.Bytes
	unpacker  func() unpacker
	framing   *framing // of zstd and lz4
}

var (
	gzipFormat  = &compression{name: "gzip", command: "gunzip", headInput: 3 * size.MiB, unpacker: newGzip}
	bzip2Format = &compression{name: "bzip2", command: "bunzip2", headInput: 3 * size.MiB, unpacker: newBzip2}
	xzFormat    = &compression{name: "xz", command: "xz -d", headInput: 3 * size.MiB, unpacker: newXZ}
	zstdFormat  = &compression{name: "zstd", command: "zstd -d", headInput: 3 * size.MiB, unpacker: newZstd, framing: &zstdFraming}
	// A block of lz4 has up to 4 MiB, and nothing comes out before it is whole.
	lz4Format = &compression{name: "lz4", command: "lz4 -d", headInput: 10 * size.MiB, unpacker: newLZ4, framing: &lz4Framing}
)

// unpacker decodes one input after the other and keeps its memory between them.
type unpacker interface {
	// reset begins with new input. Of members or frames it takes at most the
	// number given, any number where that is 0.
	reset(in *bufio.Reader, members int) error
	// Read returns io.EOF after the last member was checked and the input is
	// at its end.
	io.Reader
}

// Stream is a raw image that is stored compressed. It can be read from the
// beginning of each of its parts only. Its methods, except Close, are safe for
// concurrent use.
type Stream struct {
	*compression
	f       *os.File
	path    string
	length  size.Bytes // of the file
	start   int64      // of the compressed data in the file
	decoded size.Bytes // of all, -1 where it is not known
	head    []byte
	parts   []Part
	workers int

	blocks     []xzBlock  // of xz
	dictionary byte       // of xz, as block headers have it, and as we give it to a decoder
	widest     size.Bytes // the longest that its headers ask for
	lzma2      bool       // of xz: no block has another filter

	mu   sync.Mutex
	idle []unpacker
}

// Part is a stretch of the disk that can be decoded alone.
type Part struct {
	Offset, Length size.Bytes // Length is less than 0 where it is not known

	first, last int // blocks of xz, up to but without the last
}

// openStream checks what can be checked without decoding everything, and
// decodes the first MiB.
func openStream(f *os.File, n size.Bytes, path string, c *compression) (*Stream, error) {
	s := &Stream{compression: c, f: f, path: path, length: n, decoded: -1, workers: 1}
	if err := s.survey(); err != nil {
		return nil, c.unusable(err)
	}
	if err := s.readHead(); err != nil {
		return nil, err
	}
	if len(s.head) == 0 {
		return nil, fmt.Errorf("there is nothing inside its %s data", c.name)
	}
	return s, nil
}

// survey finds the parts and the length of the disk.
func (s *Stream) survey() error {
	if s.compression == xzFormat {
		return s.surveyXZ()
	}
	if s.framing != nil {
		var err error
		if s.start, err = firstFrame(s.f, int64(s.length)); err != nil {
			return err
		}
		if s.decoded, err = s.framing.contentSize(s.f, s.start, int64(s.length)); err != nil {
			return err
		}
	}
	s.parts = []Part{{Length: s.decoded}}
	return nil
}

func (s *Stream) readHead() error {
	r, err := s.open(s.parts[0], headMembers)
	if err != nil {
		return err
	}
	defer r.Close()
	s.head = make([]byte, headBytes)
	n := 0
	for n < len(s.head) && err == nil {
		var m int
		m, err = r.Read(s.head[n:])
		n += m
	}
	s.head = s.head[:n]
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// Path is the file the image was opened from.
func (s *Stream) Path() string { return s.path }

// Format is Raw.
func (s *Stream) Format() Format { return Raw }

// Notes are the sentences someone who deploys the image should see.
func (s *Stream) Notes() []string { return nil }

// Close closes the file. Readers that are open fail from then on.
func (s *Stream) Close() error { return s.f.Close() }

// Compression is the name of the compressed format: gzip, xz, zstd, bzip2 or
// lz4.
func (s *Stream) Compression() string { return s.name }

// Size is the length of the disk, rounded up to a multiple of 512, where the
// file says it: xz by its index, zstd and lz4 where every frame has it.
// Decoding fails where it turns out to be wrong.
func (s *Stream) Size() (size.Bytes, bool) {
	if s.decoded < 0 {
		return 0, false
	}
	return s.decoded.AlignUp(sector), true
}

// Head is the first MiB of the disk, less where the disk is shorter.
func (s *Stream) Head() []byte { return s.head }

// Parts are the parts of the disk, in its order. There is more than one only
// in xz data of several blocks.
func (s *Stream) Parts() []Part { return s.parts }

// Workers is how many parts can be read at once with less than 192 MiB for
// their dictionaries, at least 1 and at most one for each processor.
func (s *Stream) Workers() int { return s.workers }

// Reader decodes a part from its beginning. Its Read returns io.EOF after every
// checksum and length was compared, and nothing else ends it without an error.
// Several readers can be open at once.
func (s *Stream) Reader(p Part) (io.ReadCloser, error) { return s.open(p, 0) }

// open reads a part. Where members is not 0, it bounds them, and headInput the
// compressed data.
func (s *Stream) open(p Part, members int) (*partReader, error) {
	var src io.Reader = io.NewSectionReader(s.f, s.start, int64(s.length)-s.start)
	if s.compression == xzFormat {
		src = &wrapper{s: s, blocks: s.blocks[p.first:p.last]}
	}
	r := &partReader{s: s, decoder: s.take()}
	if d, ok := r.decoder.(*blockDecoder); ok {
		d.s, d.blocks = s, s.blocks[p.first:p.last]
	}
	if members > 0 {
		src = &limited{r: src, left: int64(s.headInput)}
	}
	if err := r.decoder.reset(bufio.NewReaderSize(src, inputBuffer), members); err != nil {
		return nil, s.unusable(err)
	}
	return r, nil
}

func (s *Stream) take() unpacker {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.idle); n > 0 {
		d := s.idle[n-1]
		s.idle = s.idle[:n-1]
		return d
	}
	if s.lzma2 {
		return &blockDecoder{}
	}
	return s.unpacker()
}

func (s *Stream) give(d unpacker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = append(s.idle, d)
}

// partReader is a part that is being decoded.
type partReader struct {
	s       *Stream
	decoder unpacker
	err     error
}

func (r *partReader) Read(p []byte) (int, error) {
	if r.err != nil || len(p) == 0 {
		return 0, r.err
	}
	n, err := r.decoder.Read(p)
	if r.err = err; err != nil && err != io.EOF {
		r.err = r.s.unusable(err)
	}
	return n, r.err
}

// Close gives the decoder's memory to the next reader of the stream.
func (r *partReader) Close() error {
	if r.decoder != nil {
		r.s.give(r.decoder)
		r.decoder, r.err = nil, os.ErrClosed
	}
	return nil
}

// limited is an input that may not be read to its end.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errLimit
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	return n, err
}

// zerosToEnd reads padding: zeros and then the end, at which its error is
// io.EOF.
func zerosToEnd(in *bufio.Reader) error {
	for read := 0; ; {
		if _, err := in.Peek(1); err != nil {
			return err
		}
		b, _ := in.Peek(in.Buffered())
		if len(bytes.Trim(b, "\x00")) > 0 {
			return errBehind
		}
		if read += len(b); read > maxPadding {
			return errPadding
		}
		if _, err := in.Discard(len(b)); err != nil {
			return err
		}
	}
}

// cutParts makes parts of about a MiB and more from the blocks of xz data.
// Blocks without content are in one with others.
func cutParts(blocks []xzBlock) []Part {
	parts := []Part{{}}
	for i, b := range blocks {
		p := &parts[len(parts)-1]
		if p.Length >= headBytes && b.content > 0 {
			parts = append(parts, Part{Offset: p.Offset + p.Length, first: i, last: i})
			p = &parts[len(parts)-1]
		}
		p.Length += size.Bytes(b.content)
		p.last = i + 1
	}
	return parts
}
