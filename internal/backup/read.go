package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/bits"
	"regexp"
	"strconv"

	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/zeros"
)

// Sink takes the bytes of a disk, each once and in the disk's order.
type Sink interface {
	// Room is where up to n of the bytes from off on can be put; they may be
	// fewer. Data hands them over.
	Room(off, n size.Bytes) []byte
	Data(off size.Bytes, data []byte) error
	Zero(off, n size.Bytes) error
}

// Reader reads a backup.
type Reader struct {
	Manifest Manifest

	in     blocks
	block  []byte // that is read, and not in the checksum yet
	unread []byte // its end, to be read
	sum    *summer
	at     int64 // how many bytes were read
}

// Sniffed is how much of a backup IsBackup needs to see, in bytes.
const Sniffed = record

// IsBackup tells whether what begins with these bytes is meant to be a backup,
// compressed or not: no disk begins as zstd's frames do. One whose first bytes are
// damaged a little still is meant to be one.
func IsBackup(head []byte) bool {
	return Resembles(head, string(zstdMagic)) || Resembles(head, ManifestName+"\x00")
}

// Resembles tells whether bytes begin as a text does, but for up to three bits.
func Resembles(head []byte, text string) bool {
	if len(head) < len(text) {
		return false
	}
	differ := 0
	for i := range len(text) {
		differ += bits.OnesCount8(head[i] ^ text[i])
	}
	return differ <= 3
}

// Open reads a backup's manifest. head is what the input begins with, and comes
// from it once more. The error wraps ErrDamaged where the backup is to blame.
// Close must be called. The input is closed then, or by Open where it fails,
// which has to end a read that waits.
func Open(in io.ReadCloser, head []byte) (*Reader, error) {
	blocks, err := unpacked(in, head)
	if err != nil {
		return nil, err
	}
	r := &Reader{in: blocks, sum: newSummer()}
	if err := r.readManifest(); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Close ends the reading of the input.
func (r *Reader) Close() { r.in.close() }

func (r *Reader) readManifest() error {
	header, err := r.next(record)
	if err != nil {
		return err
	}
	n, err := octal(header[sizeAt : sizeAt+12])
	if err != nil || n > maxManifest {
		return damaged("its manifest has no length that can be")
	}
	padded, err := r.next(n.AlignUp(record))
	if err != nil {
		return err
	}
	if r.Manifest, err = decodeManifest(padded[:n]); err != nil {
		return err
	}
	if !bytes.Equal(append(header, padded...), member(ManifestName, r.Manifest.Created, padded[:n])) {
		return damaged("its first header is not as it is written")
	}
	return nil
}

// next reads n bytes.
func (r *Reader) next(n size.Bytes) ([]byte, error) {
	b := make([]byte, n)
	return b, r.fill(b)
}

func (r *Reader) fill(b []byte) error {
	for len(b) > 0 {
		if len(r.unread) == 0 {
			if err := r.turn(); err != nil {
				return r.unreadable(err)
			}
		}
		n := copy(b, r.unread)
		b, r.unread = b[n:], r.unread[n:]
		r.at += int64(n)
	}
	return nil
}

// turn goes on to the next block.
func (r *Reader) turn() (err error) {
	spent := r.block
	r.sum.add(spent, func() { r.in.release(spent) })
	r.block, err = r.in.next()
	r.unread = r.block
	return err
}

func (r *Reader) unreadable(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return damaged("it ends early, after %d bytes", r.at)
	case errors.Is(err, ErrDamaged):
		return err
	}
	return fmt.Errorf("cannot read the backup: %w", err)
}

// maxUnsummed bounds how many blocks wait for their checksum.
const maxUnsummed = 4

// summer makes the checksum of blocks while others are read.
type summer struct {
	sum   hash.Hash
	slots chan struct{}
	last  chan struct{} // closed when all before is added
}

func newSummer() *summer {
	s := &summer{sum: sha256.New(), slots: make(chan struct{}, maxUnsummed), last: make(chan struct{})}
	close(s.last)
	return s
}

// add adds a block, and calls then when it is not needed any more.
func (s *summer) add(b []byte, then func()) {
	before, added := s.last, make(chan struct{})
	s.last = added
	s.slots <- struct{}{}
	go func() {
		<-before
		s.sum.Write(b)
		then()
		<-s.slots
		close(added)
	}()
}

// get returns the checksum of all that was added.
func (s *summer) get() []byte {
	<-s.last
	return s.sum.Sum(nil)
}

// octal reads a number of a header: 11 digits and a zero byte.
func octal(field []byte) (size.Bytes, error) {
	n, err := strconv.ParseInt(string(field[:11]), 8, 64)
	return size.Bytes(n), err
}

// Copy hands the disk over, and checks the backup to its end. Nothing of the
// disk may be used before it returns without an error.
func (r *Reader) Copy(ctx context.Context, to Sink) error {
	g := &gatherer{to: to}
	for off := size.Bytes(0); off < r.Manifest.Size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := r.copyPiece(off, g)
		if err != nil {
			return err
		}
		off += n
	}
	if err := g.flush(); err != nil {
		return err
	}
	return r.checkEnd(ctx)
}

var realSize = regexp.MustCompile(`GNU\.sparse\.realsize=([0-9]{1,15})\n`)

// copyPiece hands over the piece at off, and returns how much of the disk it is.
func (r *Reader) copyPiece(off size.Bytes, g *gatherer) (size.Bytes, error) {
	header, err := r.next(3 * record)
	if err != nil {
		return 0, err
	}
	found := realSize.FindSubmatch(header[record : 2*record])
	stored, err := octal(header[2*record+sizeAt : 2*record+sizeAt+12])
	if found == nil || err != nil || stored > maxMember {
		return 0, damaged("its header at byte %d is not one of a piece", r.at-3*record)
	}
	length, _ := strconv.ParseInt(string(found[1]), 10, 64)
	n := size.Bytes(length)
	if !bytes.Equal(header, pieceHeader(r.Manifest.Created, off, n, stored)) || n == 0 || n > r.Manifest.Size-off {
		return 0, damaged("its header at byte %d is not that of the piece at %d of the disk", r.at-3*record, int64(off))
	}
	stretches, err := r.readMap(n, stored)
	if err != nil {
		return 0, err
	}
	return n, r.copyData(off, n, stretches, g)
}

// readMap reads which stretches of a piece of n bytes are stored.
func (r *Reader) readMap(n, stored size.Bytes) ([][2]size.Bytes, error) {
	m := &mapReader{r: r}
	count := m.number()
	var stretches [][2]size.Bytes
	end, sum := size.Bytes(-1), size.Bytes(0)
	for range min(count, maxSegments+1) {
		off, length := m.number(), m.number()
		if m.err != nil {
			return nil, m.err
		}
		last := off == n && length == 0 && end < n
		if off <= end && !last || length == 0 && !last || length > n-off {
			return nil, damaged("the map before byte %d names a stretch that cannot be", r.at)
		}
		stretches, end, sum = append(stretches, [2]size.Bytes{off, length}), off+length, sum+length
	}
	switch {
	case m.err != nil:
		return nil, m.err
	case size.Bytes(len(stretches)) != count || count == 0 || end != n || m.size+sum != stored || !zeros.Only(m.rest):
		return nil, damaged("the map before byte %d does not fit its piece", r.at)
	}
	return stretches, nil
}

// mapReader reads numbers, a line each, from records.
type mapReader struct {
	r    *Reader
	rest []byte     // of the last record
	size size.Bytes // of all records
	err  error
}

// number reads the next number; after an error it is 0.
func (m *mapReader) number() size.Bytes {
	digits := make([]byte, 0, 16)
	for m.err == nil {
		if len(m.rest) == 0 {
			m.rest, m.err = m.r.next(record)
			m.size += record
			continue
		}
		c := m.rest[0]
		m.rest = m.rest[1:]
		if c == '\n' {
			break
		}
		if digits = append(digits, c); len(digits) > 15 {
			m.err = damaged("the map before byte %d has too long a number", m.r.at)
		}
	}
	n, err := strconv.ParseUint(string(digits), 10, 63)
	if m.err == nil && (err != nil || strconv.FormatUint(n, 10) != string(digits)) {
		m.err = damaged("the map before byte %d has %q where a number should be", m.r.at, digits)
	}
	return size.Bytes(n)
}

// copyData hands over a piece of n bytes at off.
func (r *Reader) copyData(off, n size.Bytes, stretches [][2]size.Bytes, g *gatherer) error {
	sum, at := size.Bytes(0), size.Bytes(0)
	for _, s := range stretches {
		if err := g.zero(off+at, s[0]-at); err != nil {
			return err
		}
		if err := g.data(off+s[0], s[1], r.fill); err != nil {
			return err
		}
		sum, at = sum+s[1], s[0]+s[1]
	}
	padded, err := r.next(sum.AlignUp(record) - sum)
	if err == nil && !zeros.Only(padded) {
		err = damaged("what fills up the record before byte %d is not zeros", r.at)
	}
	return err
}

// maxPadding is how many zeros may follow a backup, with which tapes fill up.
const maxPadding = size.MiB

// checkEnd compares the sum, and makes sure that nothing follows but some zeros.
func (r *Reader) checkEnd(ctx context.Context) error {
	r.sum.add(r.block[:len(r.block)-len(r.unread)], func() {})
	want := trailer(r.Manifest.Created, r.sum.get())
	got, err := r.next(size.Bytes(len(want)))
	if err != nil {
		return err
	}
	if !bytes.Equal(got[:record], want[:record]) {
		return damaged("its last header is not as it is written")
	}
	if !bytes.Equal(got, want) {
		return damaged("its checksum is not that of the %d bytes before it", r.at-int64(len(want)))
	}
	for padded := size.Bytes(0); ctx.Err() == nil; {
		if padded += size.Bytes(len(r.unread)); !zeros.Only(r.unread) || padded > maxPadding {
			return damaged("something follows its end at byte %d", r.at)
		}
		if err := r.turn(); err == io.EOF {
			return nil
		} else if err != nil {
			return r.unreadable(err)
		}
	}
	return context.Cause(ctx)
}

// minHole is the shortest hole that is handed over as such, in bytes: less is
// written as zeros, with the data on both sides.
const minHole = 64 << 10

// gatherer makes few long stretches of many short ones.
type gatherer struct {
	to  Sink
	off size.Bytes // of room
	b   []byte     // room, filled up to n
	n   int
}

func (g *gatherer) flush() error {
	if g.n == 0 {
		return nil
	}
	b := g.b[:g.n]
	g.b, g.n = nil, 0
	return g.to.Data(g.off, b)
}

func (g *gatherer) zero(off, n size.Bytes) error {
	if n < minHole && g.n > 0 {
		return g.data(off, n, func(b []byte) error { clear(b); return nil })
	}
	if err := g.flush(); err != nil || n == 0 {
		return err
	}
	return g.to.Zero(off, n)
}

// data hands over n bytes at off, which fill reads.
func (g *gatherer) data(off, n size.Bytes, fill func([]byte) error) error {
	for n > 0 {
		if g.n == len(g.b) || off != g.off+size.Bytes(g.n) {
			if err := g.flush(); err != nil {
				return err
			}
			g.off, g.b = off, g.to.Room(off, chunkSize)
		}
		b := g.b[g.n:min(len(g.b), g.n+int(min(n, chunkSize)))]
		if err := fill(b); err != nil {
			return err
		}
		g.n += len(b)
		off, n = off+size.Bytes(len(b)), n-size.Bytes(len(b))
	}
	return nil
}
