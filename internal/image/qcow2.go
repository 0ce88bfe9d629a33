package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/zeros"
)

// Fields of the entries of L1 and L2 tables.
const (
	entryOffset       = 0x00ff_ffff_ffff_fe00 // host offset of an L2 table or a cluster
	entryCopied       = 1 << 63
	entryCompressed   = 1 << 62
	entryZero         = 1 << 0 // since version 3, not with extended L2
	allSubclusters    = 1<<32 - 1
	subclusters       = 32
	subclusterBits    = 5
	compressedSectors = 512
)

const (
	// sliceBytes is how much of an L2 table is read at once.
	sliceBytes = 64 << 10
	// cacheBytes is how much of all L2 tables is kept.
	cacheBytes = 16 << 20
	// cacheSlots bounds the number of slices kept where they are short.
	cacheSlots = 8 << 10
)

// qcow2 reads the active state of a qcow2 image. Of its tables the L1 table is
// in memory, at most 32 MiB, and the last used slices of L2 tables.
type qcow2 struct {
	header
	f        *os.File
	path     string
	length   size.Bytes // of the file
	l1       []uint64   // host offsets of L2 tables, 0 where there is none
	perSlice int64      // L2 entries in a slice
	cache    []atomic.Pointer[slice]
	decoders sync.Pool // of *decoder
}

// slice is a part of an L2 table: as much of it as is read at once. It is not
// changed after it was read.
type slice struct {
	number  int64 // counted on the disk: the index of its first cluster / perSlice
	entries []byte
}

// mapping is where a cluster of the disk is.
type mapping struct {
	kind   mappingKind
	host   size.Bytes // offset in the file
	length int        // bytes in the file, where it is compressed
	data   uint32     // subclusters that have data, where it is mixed
}

type mappingKind uint8

const (
	zero       mappingKind = iota // reads as zeros
	data                          // is in the file as it is
	mixed                         // some subclusters are data, the others zeros
	compressed                    // is in the file, compressed
)

func newQCOW2(f *os.File, n size.Bytes, path string) (*qcow2, error) {
	h, err := readHeader(f, n)
	if err != nil {
		return nil, err
	}
	q := &qcow2{header: *h, f: f, path: path, length: n}
	q.perSlice = min(sliceBytes/int64(q.entryBytes()), q.perTable())
	q.cache = make([]atomic.Pointer[slice], min(cacheBytes/(q.perSlice*int64(q.entryBytes())), cacheSlots))
	if err := q.readL1(); err != nil {
		return nil, err
	}
	if err := q.check(); err != nil {
		return nil, err
	}
	q.decoders.New = func() any { return newDecoder(q.compression) }
	return q, nil
}

func (q *qcow2) Path() string          { return q.path }
func (q *qcow2) Format() Format        { return QCOW2 }
func (q *qcow2) Size() size.Bytes      { return q.size }
func (q *qcow2) BlockSize() size.Bytes { return q.cluster() }
func (q *qcow2) Close() error          { return q.f.Close() }

func (q *qcow2) Notes() []string {
	var notes []string
	if q.snapshots > 0 {
		notes = append(notes, fmt.Sprintf("the image has %d internal snapshots, which are left out: its current state is used", q.snapshots))
	}
	if q.dirty {
		notes = append(notes, "the image was not closed by the program that wrote it last: its current state is used")
	}
	return notes
}

// readL1 reads the L1 table and checks that each L2 table is in the file.
func (q *qcow2) readL1() error {
	b := make([]byte, sliceBytes)
	q.l1 = make([]uint64, 0, q.l1Needed)
	for len(q.l1) < q.l1Needed {
		part := b[:min(len(b), (q.l1Needed-len(q.l1))*8)]
		if _, err := q.f.ReadAt(part, int64(q.l1Offset)+int64(len(q.l1))*8); err != nil {
			return fmt.Errorf("cannot read its L1 table: %w", noEOF(err))
		}
		for ; len(part) > 0; part = part[8:] {
			if err := q.addL1(binary.BigEndian.Uint64(part)); err != nil {
				return err
			}
		}
	}
	return nil
}

// addL1 takes the next entry of the L1 table.
func (q *qcow2) addL1(entry uint64) error {
	if err := q.checkL1(entry); err != nil {
		return fmt.Errorf("entry %d of its L1 table (%#x) %w", len(q.l1), entry, err)
	}
	q.l1 = append(q.l1, entry&entryOffset)
	return nil
}

func (q *qcow2) checkL1(entry uint64) error {
	offset := entry & entryOffset
	if entry&^(entryOffset|entryCopied) != 0 {
		return errReserved
	}
	if offset%uint64(q.cluster()) != 0 {
		return errAlignment
	}
	if offset != 0 && offset+uint64(q.cluster()) > uint64(q.length) {
		return q.cutOff()
	}
	return nil
}

// check looks at every entry of every L2 table once, so that the time it takes
// is bounded by the file's size even where tables are shared; holes of the file
// count for nothing.
func (q *qcow2) check() error {
	b := make([]byte, q.perSlice*int64(q.entryBytes()))
	hole := int64(0) // up to here there is nothing but zeros
	for _, index := range q.distinctTables() {
		for at := int64(0); at < q.perTable(); at += q.perSlice {
			first := int64(index)*q.perTable() + at
			if first >= q.clusters() {
				break
			}
			host := int64(q.l1[index]) + at*int64(q.entryBytes())
			if host+int64(len(b)) <= hole {
				continue
			}
			if _, err := q.f.ReadAt(b, host); err != nil {
				return fmt.Errorf("cannot read its L2 table at offset %d: %w", q.l1[index], noEOF(err))
			}
			if zeros.Only(b) {
				hole = q.holeEnd(host)
				continue
			}
			if err := q.checkSlice(&slice{entries: b}, first); err != nil {
				return err
			}
		}
	}
	return nil
}

// holeEnd is where the file has data again, at off or behind it.
func (q *qcow2) holeEnd(off int64) int64 {
	next, err := unix.Seek(int(q.f.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return int64(q.length)
	}
	if err != nil {
		return off
	}
	return next
}

// distinctTables are the indexes of the L1 entries that lead to an L2 table, in
// the order of the tables in the file. Of entries that share one it has the
// first only: it maps most.
func (q *qcow2) distinctTables() []uint32 {
	var order []uint32
	for i, offset := range q.l1 {
		if offset != 0 {
			order = append(order, uint32(i))
		}
	}
	slices.SortStableFunc(order, func(a, b uint32) int {
		switch {
		case q.l1[a] < q.l1[b]:
			return -1
		case q.l1[a] > q.l1[b]:
			return 1
		}
		return 0
	})
	return slices.CompactFunc(order, func(a, b uint32) bool { return q.l1[a] == q.l1[b] })
}

// checkSlice checks the entries of clusters from first on, up to the disk's end.
func (q *qcow2) checkSlice(s *slice, first int64) error {
	n := int(min(q.perSlice, q.clusters()-first))
	for i := range n {
		if _, err := q.checked(s, i, first+int64(i)); err != nil {
			return err
		}
	}
	return nil
}

// checked is mapping for a cluster, which leads nowhere but into the file.
func (q *qcow2) checked(s *slice, i int, cluster int64) (mapping, error) {
	m, err := q.mapping(s, i)
	if err == nil {
		err = q.within(m, cluster)
	}
	if err != nil {
		return m, fmt.Errorf("its entry for the disk's offset %d (%#x) %w", cluster<<q.clusterBits, q.entry(s, i), err)
	}
	return m, nil
}

// within checks that what is mapped to a cluster is in the file. The end of the
// file may cut off what nothing reads: what is behind the disk's end, unused
// subclusters, and padding behind compressed data.
func (q *qcow2) within(m mapping, cluster int64) error {
	var end size.Bytes
	switch m.kind {
	case zero:
		return nil
	case compressed:
		end = m.host + 1
	case data:
		end = m.host + min(q.cluster(), q.size-size.Bytes(cluster)<<q.clusterBits)
	case mixed:
		last := size.Bytes(bits.Len32(m.data)) << (q.clusterBits - subclusterBits)
		end = m.host + min(last, q.size-size.Bytes(cluster)<<q.clusterBits)
	}
	if end > q.length {
		return q.cutOff()
	}
	return nil
}

// entry is the raw entry number i of a slice.
func (q *qcow2) entry(s *slice, i int) uint64 {
	return binary.BigEndian.Uint64(s.entries[i*q.entryBytes():])
}

// mapping takes apart the entry number i of a slice and checks it but for the
// end of the file.
func (q *qcow2) mapping(s *slice, i int) (mapping, error) {
	entry := q.entry(s, i)
	if entry == 0 && !q.extended {
		return mapping{}, nil
	}
	if entry&entryCompressed != 0 {
		return q.compressedMapping(entry)
	}
	if q.extended {
		return q.extendedMapping(entry, binary.BigEndian.Uint64(s.entries[i*16+8:]))
	}
	offset := entry & entryOffset
	if entry&^(entryOffset|entryCopied|entryZero) != 0 || entry&entryZero != 0 && q.version < 3 {
		return mapping{}, errReserved
	}
	if offset%uint64(q.cluster()) != 0 {
		return mapping{}, errAlignment
	}
	if offset == 0 || entry&entryZero != 0 {
		return mapping{}, nil
	}
	return mapping{kind: data, host: size.Bytes(offset)}, nil
}

// extendedMapping reads an extended L2 entry: the second half has a bit for
// each subcluster that is allocated, and one for each that reads as zeros.
func (q *qcow2) extendedMapping(entry, bitmap uint64) (mapping, error) {
	offset := entry & entryOffset
	allocated, zeros := uint32(bitmap), uint32(bitmap>>subclusters)
	if entry&^(entryOffset|entryCopied) != 0 {
		return mapping{}, errReserved
	}
	if offset%uint64(q.cluster()) != 0 {
		return mapping{}, errAlignment
	}
	if allocated&zeros != 0 || offset == 0 && allocated != 0 {
		return mapping{}, errSubclusters
	}
	switch allocated {
	case 0:
		return mapping{}, nil
	case allSubclusters:
		return mapping{kind: data, host: size.Bytes(offset)}, nil
	}
	return mapping{kind: mixed, host: size.Bytes(offset), data: allocated}, nil
}

// compressedMapping reads the entry of a compressed cluster: its offset is to
// the byte, its length is to the end of a sector and may be too much.
func (q *qcow2) compressedMapping(entry uint64) (mapping, error) {
	if entry&entryCopied != 0 {
		return mapping{}, errReserved
	}
	offsetBits := 62 - (q.clusterBits - 8)
	offset := entry & (1<<offsetBits - 1)
	sectors := (entry&^entryCompressed)>>offsetBits + 1
	length := int(sectors*compressedSectors - offset%compressedSectors)
	if offset == 0 {
		return mapping{}, errAlignment
	}
	if offset >= uint64(q.length) {
		return mapping{}, q.cutOff()
	}
	// The last sector need not be whole.
	length = int(min(size.Bytes(length), q.length-size.Bytes(offset)))
	return mapping{kind: compressed, host: size.Bytes(offset), length: length}, nil
}

// lookup finds where a cluster of the disk is.
func (q *qcow2) lookup(cluster int64) (mapping, error) {
	s, err := q.slice(cluster / q.perSlice)
	if err != nil || s == nil {
		return mapping{}, err
	}
	m, err := q.mapping(s, int(cluster%q.perSlice))
	if err != nil {
		return m, fmt.Errorf("%s changed while it was read: its entry for offset %d %w", q.path, cluster<<q.clusterBits, err)
	}
	return m, nil
}

// slice returns a part of an L2 table, nil where there is no table. Slices that
// follow each other on the disk have slots of their own in the cache.
func (q *qcow2) slice(number int64) (*slice, error) {
	first := number * q.perSlice
	table := q.l1[first/q.perTable()]
	if table == 0 {
		return nil, nil
	}
	slot := &q.cache[number%int64(len(q.cache))]
	if s := slot.Load(); s != nil && s.number == number {
		return s, nil
	}
	s := &slice{number: number, entries: make([]byte, q.perSlice*int64(q.entryBytes()))}
	host := int64(table) + first%q.perTable()*int64(q.entryBytes())
	if _, err := q.f.ReadAt(s.entries, host); err != nil {
		return nil, fmt.Errorf("cannot read the L2 table of %s for offset %d: %w", q.path, first<<q.clusterBits, noEOF(err))
	}
	slot.Store(s)
	return s, nil
}

// Extent does not look further than the slice of the L2 table, so that asking
// for one extent after the other takes each entry once.
func (q *qcow2) Extent(off size.Bytes) (Extent, error) {
	if off < 0 || off >= q.size {
		return Extent{}, io.EOF
	}
	first := int64(off >> q.clusterBits)
	last := min((first/q.perSlice+1)*q.perSlice, q.clusters())
	m, err := q.lookup(first)
	if err != nil {
		return Extent{}, err
	}
	next := first + 1
	if q.l1[first/q.perTable()] == 0 {
		next = q.nextTable(first)
		last = next
	}
	for ; next < last; next++ {
		n, err := q.lookup(next)
		if err != nil {
			return Extent{}, err
		}
		if (n.kind == zero) != (m.kind == zero) {
			break
		}
	}
	end := min(size.Bytes(next)<<q.clusterBits, q.size)
	return Extent{Offset: off, Length: end - off, Zero: m.kind == zero}, nil
}

// nextTable is the first cluster from here on that has an L2 table.
func (q *qcow2) nextTable(cluster int64) int64 {
	i := cluster / q.perTable()
	for i < int64(len(q.l1)) && q.l1[i] == 0 {
		i++
	}
	return min(i*q.perTable(), q.clusters())
}
