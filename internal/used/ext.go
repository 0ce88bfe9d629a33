package used

import (
	"encoding/binary"
	"fmt"
	"io"
	"iter"

	"ganeti-instance-image/internal/size"
)

// Ext tells what an ext2, ext3 or ext4 file system on the first length bytes of
// r uses: the boot block, all that the block bitmaps call used, and what lies
// behind the file system. Every descriptor and bitmap is read and checked before
// it returns, and again by the sequence. An error that does not wrap ErrUnsure
// is the reader's.
//
// The format is that of Documentation/filesystems/ext4 in Linux' sources; where
// that is silent, lib/ext2fs of e2fsprogs.
func Ext(r io.ReaderAt, length size.Bytes) (iter.Seq2[Range, error], error) {
	fs, err := extOpen(r, length)
	if err == nil {
		err = fs.check()
	}
	if err != nil {
		return nil, extError(err)
	}
	return fs.ranges, nil
}

func extError(err error) error {
	return fmt.Errorf("cannot tell what the ext file system uses: %w", err)
}

// extUnsure is the error for a file system that must be kept as a whole.
func extUnsure(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsure, fmt.Sprintf(format, args...))
}

// extBootBlock is what the file system leaves to boot loaders.
const extBootBlock size.Bytes = 1024

// extFS is a file system whose superblock was found good.
type extFS struct {
	extSuper
	r      io.ReaderAt
	length size.Bytes // of the partition
}

func extOpen(r io.ReaderAt, length size.Bytes) (*extFS, error) {
	const superblock = 1024
	if length < extBootBlock+superblock {
		return nil, extUnsure("%s is too short for a superblock", length)
	}
	raw := make(extRecord, superblock)
	fs := &extFS{r: r, length: length}
	if err := fs.readAt(raw, extBootBlock); err != nil {
		return nil, err
	}
	var err error
	fs.extSuper, err = extParseSuper(raw, length)
	return fs, err
}

// check reads all that ranges will.
func (fs *extFS) check() error {
	w := newExtWalk(fs)
	if err := w.checkMMP(); err != nil {
		return err
	}
	if err := w.checkJournal(); err != nil {
		return err
	}
	return w.groups(func(extBits) bool { return true })
}

// ranges is the sequence that Ext returns.
func (fs *extFS) ranges(yield func(Range, error) bool) {
	out := extMerger{yield: yield, end: extBootBlock}
	wanted := true
	err := newExtWalk(fs).groups(func(bits extBits) bool {
		for start, end := bits.run(0); start < end && wanted; start, end = bits.run(end) {
			wanted = out.add(fs.position(bits.first, start), fs.position(bits.first, end))
		}
		return wanted
	})
	switch {
	case err != nil:
		yield(Range{}, extError(err))
	case wanted && out.add(fs.offset(fs.blocks), fs.length):
		out.flush()
	}
}

// position is where a cluster of the group begins whose first block is given.
// Only the last cluster of all may be cut short.
func (fs *extFS) position(first, cluster uint64) size.Bytes {
	return fs.offset(min(first+cluster*fs.perCluster, fs.blocks))
}

func (fs *extFS) offset(block uint64) size.Bytes { return size.Bytes(block) * fs.blockSize }

// extMerger hands ascending stretches on, those that touch as one.
type extMerger struct {
	yield      func(Range, error) bool
	start, end size.Bytes // what is not handed on yet
}

func (m *extMerger) add(start, end size.Bytes) bool {
	if start == end {
		return true
	}
	if start > m.end {
		if !m.flush() {
			return false
		}
		m.start = start
	}
	m.end = max(m.end, end)
	return true
}

func (m *extMerger) flush() bool { return m.yield(Range{m.start, m.end - m.start}, nil) }

// readBlock reads what a block holds from a byte of it on.
func (fs *extFS) readBlock(p []byte, block, at uint64) error {
	if block >= fs.blocks {
		return extUnsure("block %d is beyond its end", block)
	}
	return fs.readAt(p, fs.offset(block)+size.Bytes(at))
}

func (fs *extFS) readAt(p []byte, at size.Bytes) error {
	n, err := fs.r.ReadAt(p, int64(at))
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("cannot read %d bytes at byte %d: %w", len(p), int64(at), err)
}

// extRecord is a structure of the disk; its numbers are little-endian.
type extRecord []byte

func (b extRecord) u16(at int) uint16 { return binary.LittleEndian.Uint16(b[at:]) }
func (b extRecord) u32(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }

// wide is a number whose upper half stands elsewhere.
func (b extRecord) wide(low, high int) uint64 {
	return uint64(b.u32(low)) | uint64(b.u32(high))<<32
}
