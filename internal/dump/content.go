package dump

import "errors"

// holeMap is a map of which records of a file are stored, from c_addr. A byte is
//
//	0nnnnnnd            n+1 records
//	1nnnnnnd NNNNNNNN   N*64 + n + 65 records
//
// where d says that they are stored, and else they are a hole. dump up to 0.4b48
// writes a byte for each record, 0 or 1, which means the same.
type holeMap struct {
	entries []byte
}

var errHoleMap = errors.New("the last entry of its map of holes is cut off")

// next takes the next records that are all stored, or all a hole: none at the
// end.
func (m *holeMap) next() (n int64, stored bool, err error) {
	for len(m.entries) > 0 {
		b := m.entries[0]
		if n > 0 && b&1 == 1 != stored {
			break
		}
		stored = b&1 == 1
		if b < 0x80 {
			n += int64(b>>1) + 1
			m.entries = m.entries[1:]
			continue
		}
		if len(m.entries) < 2 {
			return 0, false, errHoleMap
		}
		n += int64(m.entries[1])*64 + int64(b>>1&63) + 65
		m.entries = m.entries[2:]
	}
	return n, stored, nil
}

// file is the inode that is being read, of whatever type.
type file struct {
	head   header
	inode  uint32
	size   int64
	offset int64   // of the next record in its content
	left   int64   // records that follow, of the stretch begun
	holes  holeMap // behind them, in this header
	stored bool    // some of the content was on tape
	inline bool    // the content is with the attributes
	given  bool    // and was given to the caller
	done   bool    // content and attributes are read

	attributes attributes
}

// begin takes the peeked header of an inode.
func (a *Archive) begin() error {
	h := &a.next
	a.peeked = false
	a.file = file{inode: h.inode(), head: *h}
	f := &a.file
	if h.dumpFlags()&metaOnly != 0 {
		return a.damaged("inode %d is there without its content, as in an incremental dump", f.inode)
	}
	if f.inode == 0 {
		return a.damaged("an inode has the number 0")
	}
	if h.size() > uint64(maxFile) {
		return a.damaged("inode %d has a size of %d bytes, and no file of ext4 has that", f.inode, h.size())
	}
	f.size = int64(h.size())
	f.holes.entries = f.head.holes()
	f.inline = f.isRegularOrLink() && h.flags()&inlineFlag != 0 && f.size > 0
	return nil
}

func (f *file) isRegularOrLink() bool {
	format := f.head.mode() & formatMask
	return format == formatRegular || format == formatLink
}

// stretch returns the next records of the file that are stored, and where they
// belong. Beyond the size of the file there can be more. It returns nil behind
// the last.
func (a *Archive) stretch() (int64, []byte, error) {
	f := &a.file
	for f.left == 0 {
		n, stored, err := f.holes.next()
		if err != nil {
			return 0, nil, a.damaged("inode %d: %v", f.inode, err)
		}
		if n == 0 {
			more, err := a.goOn()
			if err != nil || !more {
				return 0, nil, err
			}
			continue
		}
		if !stored {
			f.offset += n * recordSize
			continue
		}
		f.left, f.stored = n, true
	}
	b, err := a.in.take(f.left)
	if err != nil {
		return 0, nil, err
	}
	at := f.offset
	f.left -= int64(len(b) / recordSize)
	f.offset += int64(len(b))
	return at, b, nil
}

// goOn takes the next header if it continues the content.
func (a *Archive) goOn() (bool, error) {
	f := &a.file
	h, err := a.peek()
	if err != nil {
		return false, err
	}
	if h.kind() != tsAddr || h.inode() != f.inode {
		return false, nil
	}
	if h.count() == 0 {
		return false, a.damaged("a header that continues inode %d has no map", f.inode)
	}
	// The map is kept beyond the next peek.
	copy(f.head.raw[offCount:offMap+mapBytes], h.raw[offCount:offMap+mapBytes])
	f.holes.entries = f.head.holes()
	a.peeked = false
	return true, nil
}

// content returns the next bytes of the file's content that are stored, without
// what is beyond its size, or nil at the end.
func (a *Archive) content() (int64, []byte, error) {
	for {
		at, b, err := a.stretch()
		if b == nil || err != nil {
			return 0, nil, err
		}
		if at < a.file.size {
			return at, b[:min(int64(len(b)), a.file.size-at)], nil
		}
	}
}

// finish reads what is left of the file, its attributes too.
func (a *Archive) finish() error {
	f := &a.file
	if f.done {
		return nil
	}
	for {
		_, b, err := a.stretch()
		if err != nil {
			return err
		}
		if b == nil {
			break
		}
	}
	if err := a.readAttributes(); err != nil {
		return err
	}
	f.done = true
	if f.inline && !f.stored && f.size > int64(len(f.inlineContent())) {
		return a.damaged("inode %d has %d bytes of content in its attributes, and they are not all there", f.inode, f.size)
	}
	if !f.inline && f.offset < f.size && f.isRegularOrLink() {
		a.warn("inode %d: the content ends after %d of %d bytes, and the rest was taken for a hole", f.inode, f.offset, f.size)
	}
	return nil
}

// inlineContent is the content of a file that a file system with inline_data
// keeps in the inode: the place of the block numbers, then an attribute.
func (f *file) inlineContent() []byte {
	b := append(f.head.raw[offBlocks:offBlocksEnd:offBlocksEnd], f.attributes.inline...)
	return b[:min(int64(len(b)), f.size)]
}
