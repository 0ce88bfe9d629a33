package dump

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"maps"
	"testing"
)

// writer makes dumps, sound or not, in the coding that every restore(8) reads.
type writer struct {
	bytes.Buffer
	blocking int
	changes  map[int]uint32 // of the first header
}

const testDate = 1_700_000_000

// u32s are fields of a header by their offsets.
type u32s map[int]uint32

func newWriter(changes u32s) *writer {
	w := &writer{blocking: 10, changes: changes}
	tape := u32s{offVolume: 1, offDumpFlags: 3, offCount: 1}
	maps.Copy(tape, changes)
	w.header(tsTape, 0, tape, nil)
	return w
}

// header appends a header with a sound checksum.
func (w *writer) header(kind, inode uint32, fields u32s, holes []byte) {
	var h [recordSize]byte
	copy(h[offLabel:], "none")
	copy(h[offFilesys:], "/")
	all := u32s{offType: kind, offDate: testDate, offVolume: 1, offInode: inode, offMagic: magic, offDumpFlags: newInodeFormat,
		offCount: uint32(len(holes)), offBlocking: uint32(w.blocking), 16: uint32(w.Len() / recordSize)}
	maps.Copy(all, fields)
	for off, v := range all {
		binary.LittleEndian.PutUint32(h[off:], v)
	}
	copy(h[offMap:offMap+mapBytes], holes)
	w.Write(seal(h[:]))
}

func seal(h []byte) []byte {
	binary.LittleEndian.PutUint32(h[28:], 0)
	sum := uint32(0)
	for i := 0; i < recordSize; i += 4 {
		sum += binary.LittleEndian.Uint32(h[i:])
	}
	binary.LittleEndian.PutUint32(h[28:], checksum-sum)
	return h
}

// data appends content, padded to whole records.
func (w *writer) data(b []byte) {
	w.Write(b)
	w.Write(make([]byte, -w.Len()&(recordSize-1)))
}

func (w *writer) maps() *writer {
	w.header(tsClri, 0, u32s{offCount: 1}, nil)
	w.data(bytes.Repeat([]byte{0xff}, 1024))
	w.header(tsBits, 0, u32s{offCount: 1}, nil)
	w.data(bytes.Repeat([]byte{0xff}, 1024))
	return w
}

// entry is one of a directory. length 0 is what it should be.
type entry struct {
	inode  uint32
	name   string
	length int
}

// directory appends a directory of up to 512 KiB with "." and "..".
func (w *writer) directory(inode, parent uint32, entries ...entry) *writer {
	return w.rawDirectory(inode, append([]entry{{inode, ".", 0}, {parent, "..", 0}}, entries...)...)
}

func (w *writer) rawDirectory(inode uint32, entries ...entry) *writer {
	var content []byte
	last := 0
	stretch := func() {
		// The last entry of 512 bytes goes on to their end.
		if free := -len(content) & 511; free > 0 {
			b := content[last+4:]
			binary.LittleEndian.PutUint16(b, binary.LittleEndian.Uint16(b)+uint16(free))
			content = append(content, make([]byte, free)...)
		}
	}
	for _, e := range entries {
		length := (entryHeader + len(e.name) + 4) &^ 3
		if len(content)%512+length > 512 {
			stretch()
		}
		last = len(content)
		said := length
		if e.length != 0 {
			said = e.length
		}
		content = binary.LittleEndian.AppendUint32(content, e.inode)
		content = binary.LittleEndian.AppendUint16(content, uint16(said))
		content = append(content, 0, byte(len(e.name)))
		content = append(content, e.name...)
		content = append(content, make([]byte, length-entryHeader-len(e.name))...)
	}
	stretch()
	w.inode(inode, formatDirectory|0o755, len(content), nil)
	w.data(content)
	return w
}

// inode appends the header of an inode with a map of nothing but data.
func (w *writer) inode(inode uint32, mode uint32, length int, fields u32s) {
	all := u32s{offMode: mode | 1<<16, offSize: uint32(length)}
	maps.Copy(all, fields)
	w.header(tsInode, inode, all, bytes.Repeat([]byte{1}, min((length+recordSize-1)/recordSize, mapBytes)))
}

func (w *writer) file(inode uint32, content string, fields u32s) *writer {
	w.inode(inode, formatRegular|0o644, len(content), fields)
	w.data([]byte(content))
	return w
}

func (w *writer) link(inode uint32, target string, size int) *writer {
	w.inode(inode, formatLink|0o777, size, nil)
	w.data([]byte(target))
	return w
}

// node appends an inode without content.
func (w *writer) node(inode uint32, mode uint32, fields u32s) *writer {
	w.inode(inode, mode, 0, fields)
	return w
}

// attribute is an entry of a set.
type attribute struct {
	index byte
	name  string
	value []byte
}

// set makes a set of attributes in a block of its own, or in an inode.
func set(number uint32, attributes ...attribute) []byte {
	b := make([]byte, 4096)
	binary.LittleEndian.PutUint32(b, number)
	base, at := 0, 32
	if number == inodeMagic {
		b = b[:1024]
		base, at = 4, 4
	}
	end := len(b)
	for _, x := range attributes {
		end -= len(x.value)
		copy(b[end:], x.value)
		b[at], b[at+1] = byte(len(x.name)), x.index
		binary.LittleEndian.PutUint16(b[at+2:], uint16(end-base))
		binary.LittleEndian.PutUint32(b[at+8:], uint32(len(x.value)))
		copy(b[at+16:], x.name)
		at += (16 + len(x.name) + 3) &^ 3
	}
	return b
}

// attributes appends a set of them.
func (w *writer) attributes(inode uint32, set []byte, fields u32s) *writer {
	all := u32s{offDumpFlags: newInodeFormat | extendedFlag, offExtended: extAttributes}
	maps.Copy(all, fields)
	w.inode(inode, formatRegular|0o644, len(set), all)
	w.data(set)
	return w
}

// end fills the last block.
func (w *writer) end() []byte {
	for more := true; more; more = w.Len()%(w.blocking*recordSize) != 0 {
		w.header(tsEnd, 100, nil, nil)
	}
	return w.Bytes()
}

// sound is the beginning of a dump with three names in the root, and a free
// entry.
func sound() *writer {
	return newWriter(nil).maps().directory(2, 2, entry{11, "eleven", 0}, entry{0, "removed", 0}, entry{12, "twelve", 0}, entry{13, "thirteen", 0})
}

// pack compresses a dump block by block.
func pack(t testing.TB, plain []byte, blocking int, compress func([]byte) []byte, codec uint32) []byte {
	t.Helper()
	length := blocking * recordSize
	plain = bytes.Clone(plain)
	plain[offDumpFlags] |= compressedFlag
	seal(plain[:recordSize])
	out := bytes.Clone(plain[:length])
	for b := plain[length:]; len(b) > 0; b = b[length:] {
		packed := compress(b[:length])
		out = binary.LittleEndian.AppendUint32(out, uint32(len(packed))<<4|codec<<1|1)
		out = append(out, packed...)
	}
	return out
}

func deflate(b []byte) []byte {
	var out bytes.Buffer
	z, _ := zlib.NewWriterLevel(&out, 2)
	z.Write(b)
	z.Close()
	return out.Bytes()
}
