package dump

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// chunkSize is how many bytes of a directory have whole entries.
const chunkSize = 512

// directory writes a directory.
func (d *dumping) directory(n *node, fd int, i int32) error {
	content, err := reopen(fd)
	if err != nil {
		return err
	}
	defer unix.Close(content)
	if err := d.setFlags(content); err != nil {
		return err
	}
	l := listing{Outline: d.Outline, directory: i}
	return d.content(n, func(b []byte, _ int64) error {
		clear(b)
		for ; len(b) > 0 && !l.atEnd(); b = b[chunkSize:] {
			l.fill(b[:chunkSize])
		}
		return nil
	})
}

// listing writes the entries of a directory: struct direct of 4.4BSD.
type listing struct {
	*Outline
	directory int32
	next      int32 // 0 is ".", 1 is "..", from 2 on those of the outline
}

func (l *listing) atEnd() bool { return l.next == 2+l.dirs[l.directory].count }

// entry is the next entry.
func (l *listing) entry() (number uint32, kind byte, name []byte) {
	b := &l.dirs[l.directory]
	switch l.next {
	case 0:
		return l.numberOf(^l.directory), formatDirectory >> 12, []byte(".")
	case 1:
		return l.numberOf(^b.node.directory), formatDirectory >> 12, []byte("..")
	}
	e := l.entries[b.first+l.next-2]
	mode := uint16(formatDirectory)
	if e.of >= 0 {
		mode = l.leaves[e.of].mode
	}
	return l.numberOf(e.of), byte(mode >> 12), l.names.get(e.name)
}

// fill puts as many entries into a chunk as it has room for. The last one goes on
// to its end.
func (l *listing) fill(b []byte) {
	last := b
	for !l.atEnd() {
		number, kind, name := l.entry()
		length := entryLength(len(name))
		if length > len(b) {
			break
		}
		binary.LittleEndian.PutUint32(b, number)
		binary.LittleEndian.PutUint16(b[4:], uint16(length))
		b[6], b[7] = kind, byte(len(name))
		copy(b[entryHeader:], name)
		last, b = b, b[length:]
		l.next++
	}
	binary.LittleEndian.PutUint16(last[4:], uint16(len(last)))
}

// entryLength is how many bytes an entry needs: the name ends with a NUL.
func entryLength(name int) int { return (entryHeader + name + 1 + 3) &^ 3 }

// measureDirectory finds how many bytes listing makes of a directory.
func (o *Outline) measureDirectory(b *branch) {
	used, chunks := entryLength(1)+entryLength(2), int64(1)
	for _, e := range o.entries[b.first : b.first+b.count] {
		length := entryLength(len(o.names.get(e.name)))
		if used+length > chunkSize {
			used, chunks = 0, chunks+1
		}
		used += length
	}
	b.size = chunks * chunkSize
	b.stored = roundRecords(b.size)
}
