package used

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/size"
)

// xfsImage is an XFS file system made by hand, with three groups of 16 MiB (the
// last one shorter), a log in the second and btrees of as many levels as wanted:
// a node holds three records only.
type xfsImage struct {
	parts    map[int64][]byte // by where they are; the rest is zeros
	v5       bool
	children map[uint32][]uint32
}

const (
	xfsTestBlock   = 4096
	xfsTestGroup   = 4096 // blocks
	xfsTestBlocks  = 2*xfsTestGroup + 1000
	xfsTestLog     = 200  // block of the second group
	xfsTestLogSize = 1200 // blocks
	xfsTestLength  = xfsTestBlocks*xfsTestBlock + 10000
	xfsTestTree    = 130 // block of each group where its btree begins
)

var xfsTestLogStart = int64(xfsTestGroup+xfsTestLog) * xfsTestBlock

// xfsMany has enough extents for three levels.
func xfsMany() []xfsExtent {
	var extents []xfsExtent
	for i := range uint32(20) {
		extents = append(extents, xfsExtent{20 + 5*i, 20 + 5*i + 1 + i%3})
	}
	return extents
}

func newXFSImage(v5 bool, free [3][]xfsExtent) *xfsImage {
	m := &xfsImage{parts: map[int64][]byte{}, v5: v5, children: map[uint32][]uint32{}}
	super := m.part(0, 512)
	copy(super, xfsMagic)
	put := func(at int, value uint32) { xfsEndian.PutUint32(super[at:], value) }
	put(4, xfsTestBlock)
	put(12, xfsTestBlocks)
	copy(super[32:48], "the file system!")
	xfsEndian.PutUint64(super[48:], 1<<12|xfsTestLog)
	put(84, xfsTestGroup)
	put(88, 3)
	put(96, xfsTestLogSize)
	xfsEndian.PutUint16(super[100:], 0xb4a4)
	xfsEndian.PutUint16(super[102:], 512)
	super[120], super[121], super[124] = 12, 9, 12
	put(200, 0x8a)
	if v5 {
		super[101]++
		put(200, 0x18a)
		put(212, 0xd)
		put(216, 0x2b)
	}
	sum := uint32(0)
	for number, extents := range free {
		sum += m.group(uint32(number), extents)
	}
	put(148, sum)
	m.log(0, 1, 0)
	m.seal()
	return m
}

func (m *xfsImage) part(at int64, length int) []byte {
	if m.parts[at] == nil {
		m.parts[at] = make([]byte, length)
	}
	return m.parts[at]
}

// group writes a group's headers and its btree, and returns how many blocks
// count as free.
func (m *xfsImage) group(number uint32, free []xfsExtent) uint32 {
	at := int64(number) * xfsTestGroup * xfsTestBlock
	header, list := m.part(at+512, 512), m.part(at+3*512, 512)
	sum, longest := uint32(0), uint32(0)
	for _, e := range free {
		sum, longest = sum+e.end-e.start, max(longest, e.end-e.start)
	}
	root, levels, nodes := m.tree(number, free)
	blocks := min(xfsTestGroup, xfsTestBlocks-number*xfsTestGroup)
	copy(header, "XAGF")
	for i, value := range map[int]uint32{
		1: 1, 2: number, 3: blocks, 4: root, 5: 2, 7: levels, 8: 1, 10: 117, 11: 2, 12: 5, 13: sum, 14: longest, 15: nodes - 1,
	} {
		xfsEndian.PutUint32(header[4*i:], value)
	}
	entries := list
	header[10*4+3] = 126
	if m.v5 {
		copy(header[64:], "the file system!")
		copy(list, "XAFL")
		xfsEndian.PutUint32(list[4:], number)
		copy(list[8:], "the file system!")
		entries = list[36:]
		header[10*4+3] = 117
	}
	for i, slot := range []int{len(entries)/4 - 2, len(entries)/4 - 1, 0, 1, 2} {
		xfsEndian.PutUint32(entries[4*slot:], uint32(10-i))
	}
	return sum + 5 + nodes - 1
}

// tree writes a btree with three records a node.
func (m *xfsImage) tree(group uint32, free []xfsExtent) (root, levels, nodes uint32) {
	var keys [][2]uint32
	for _, e := range free {
		keys = append(keys, [2]uint32{e.start, e.end - e.start})
	}
	var pointers []uint32
	for level := uint32(0); ; level++ {
		var above []uint32
		var aboveKeys [][2]uint32
		for first := 0; first == 0 || first < len(keys); first += 3 {
			number := xfsTestTree + nodes
			last := min(first+3, len(keys))
			m.node(group, number, level, keys[first:last], pointers[min(first, len(pointers)):min(last, len(pointers))])
			above, nodes = append(above, number), nodes+1
			if len(keys) > 0 {
				aboveKeys = append(aboveKeys, keys[first])
			}
		}
		m.link(group, above)
		if len(above) == 1 {
			return above[0], level + 1, nodes
		}
		pointers, keys = above, aboveKeys
	}
}

func (m *xfsImage) block(group, number uint32) int64 {
	return (int64(group)*xfsTestGroup + int64(number)) * xfsTestBlock
}

func (m *xfsImage) node(group, number, level uint32, keys [][2]uint32, pointers []uint32) {
	at := m.block(group, number)
	b := m.part(at, xfsTestBlock)
	copy(b, "ABTB")
	xfsEndian.PutUint16(b[4:], uint16(level))
	xfsEndian.PutUint16(b[6:], uint16(len(keys)))
	body := b[16:]
	if m.v5 {
		copy(b, "AB3B")
		xfsEndian.PutUint64(b[16:], uint64(at/512))
		copy(b[32:], "the file system!")
		xfsEndian.PutUint32(b[48:], group)
		body = b[56:]
	}
	for i, key := range keys {
		xfsEndian.PutUint32(body[8*i:], key[0])
		xfsEndian.PutUint32(body[8*i+4:], key[1])
	}
	for i, pointer := range pointers {
		xfsEndian.PutUint32(body[len(body)/12*8+4*i:], pointer)
	}
	m.children[group] = append(m.children[group], number)
}

func (m *xfsImage) link(group uint32, row []uint32) {
	for i, number := range row {
		left, right := uint32(xfsNull), uint32(xfsNull)
		if i > 0 {
			left = row[i-1]
		}
		if i < len(row)-1 {
			right = row[i+1]
		}
		b := m.parts[m.block(group, number)]
		xfsEndian.PutUint32(b[8:], left)
		xfsEndian.PutUint32(b[12:], right)
	}
}

// log writes a log whose last record, of an unmount, is at a block and of a cycle.
// Before it is that cycle, after it another.
func (m *xfsImage) log(at int, cycle, before uint32) {
	blocks := xfsTestLogSize * xfsTestBlock / 512
	b := m.part(xfsTestLogStart, blocks*512)
	clear(b)
	for i := range blocks {
		if head := (at + 2) % blocks; i < head || head == 0 {
			xfsEndian.PutUint32(b[512*i:], cycle)
		} else {
			xfsEndian.PutUint32(b[512*i:], before)
		}
	}
	if at+2 > blocks { // the header is of the cycle before
		cycle = before
	}
	header := b[512*at:]
	for at, value := range map[int]uint32{0: xfsLogMagic, 4: cycle, 8: 2, 12: 512, 16: cycle, 20: uint32(at), 40: 1, 300: 1, 320: 32768} {
		xfsEndian.PutUint32(header[at:], value)
	}
	copy(header[304:], "the file system!")
	operation := b[512*((at+1)%blocks):]
	operation[7], operation[8], operation[9] = 8, 0xaa, xfsUnmount
}

// record writes a header of a record of 64 blocks, and the operation after it.
func (m *xfsImage) record(at int, cycle uint32, flags byte) {
	b := m.parts[xfsTestLogStart][512*at:]
	for place, value := range map[int]uint32{0: xfsLogMagic, 4: cycle, 8: 2, 12: 63 * 512, 16: cycle, 20: uint32(at), 40: 1, 300: 1, 320: 32768} {
		xfsEndian.PutUint32(b[place:], value)
	}
	copy(b[304:], "the file system!")
	for i := range 63 {
		xfsEndian.PutUint32(b[512*(i+1):], cycle)
	}
	b[512+9] = flags
}

// repairedLog makes the log as xfs_repair -L and xfs_admin -U do: all records say
// unmount, and between the first and the next are zeros.
func (m *xfsImage) repairedLog() {
	m.log(0, 2, 0)
	for at := 64; at < xfsTestLogSize*xfsTestBlock/512; at += 64 {
		m.record(at, 1, xfsUnmount)
	}
}

// tornLog has a record after the unmount of which only the beginning was written.
func (m *xfsImage) tornLog() {
	m.log(5000, 7, 6)
	m.record(5002, 7, 1)
	for i := 30; i < 64; i++ {
		xfsEndian.PutUint32(m.parts[xfsTestLogStart][512*(5002+i):], 6)
	}
}

// seal makes all checksums right.
func (m *xfsImage) seal() {
	if !m.v5 {
		return
	}
	sum := func(at int64, place int) {
		b := m.parts[at]
		binary.LittleEndian.PutUint32(b[place:], xfsSum(b, place))
	}
	sum(0, xfsSuperSum)
	for group := range uint32(3) {
		sum(m.block(group, 0)+512, xfsGroupSum)
		sum(m.block(group, 0)+3*512, xfsListSum)
		for _, number := range m.children[group] {
			sum(m.block(group, number), xfsNodeSum)
		}
	}
}

// clone copies all, or all but the log.
func (m *xfsImage) clone(log bool) *xfsImage {
	c := &xfsImage{parts: maps.Clone(m.parts), v5: m.v5, children: m.children}
	for at, b := range c.parts {
		if log || at != xfsTestLogStart {
			c.parts[at] = slices.Clone(b)
		}
	}
	return c
}

func (m *xfsImage) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > xfsTestLength {
		return 0, io.EOF
	}
	clear(p)
	for at, b := range m.parts {
		if from, to := max(off, at), min(off+int64(len(p)), at+int64(len(b))); from < to {
			copy(p[from-off:to-off], b[from-at:])
		}
	}
	return len(p), nil
}

// xfsFree returns the complement of what is used.
func xfsFree(free [3][]xfsExtent) []Range {
	var ranges []Range
	for group, extents := range free {
		for _, e := range extents {
			start := size.Bytes(group*xfsTestGroup+int(e.start)) * xfsTestBlock
			ranges = append(ranges, Range{start, size.Bytes(e.end-e.start) * xfsTestBlock})
		}
	}
	return xfsComplement(ranges, xfsTestLength)
}

func xfsComplement(ranges []Range, length size.Bytes) []Range {
	var others []Range
	at := size.Bytes(0)
	for _, r := range ranges {
		if r.Start > at {
			others = append(others, Range{at, r.Start - at})
		}
		at = r.Start + r.Length
	}
	if at < length {
		others = append(others, Range{at, length - at})
	}
	return others
}

// xfsCollect takes the ranges, and checks that they are as a caller may expect.
func xfsCollect(t testing.TB, ranges iter.Seq2[Range, error], length size.Bytes) []Range {
	t.Helper()
	var all []Range
	end := size.Bytes(-1)
	for r, err := range ranges {
		if err != nil {
			t.Fatal(err)
		}
		if r.Start <= end || r.Length <= 0 || r.Start+r.Length > length {
			t.Fatalf("%+v comes after %d, of %d", r, end, length)
		}
		end = r.Start + r.Length
		all = append(all, r)
	}
	return all
}

// xfsBases are good file systems: with one level and three, with no extent, with
// one that reaches the group's end, and with the head of the log at odd places.
func xfsBases() map[string]*xfsImage {
	bases := map[string]*xfsImage{}
	for name, free := range xfsFrees {
		bases[name+" 4"], bases[name+" 5"] = newXFSImage(false, free), newXFSImage(true, free)
	}
	blocks := xfsTestLogSize * xfsTestBlock / 512
	for _, at := range []int{1, 4095, 5000, blocks - 2, blocks - 1, blocks - 3} {
		bases[fmt.Sprintf("log at %d", at)] = newXFSImage(true, xfsFrees["few"])
		bases[fmt.Sprintf("log at %d", at)].log(at, 7, 6)
	}
	bases["log at 0, not new"] = newXFSImage(true, xfsFrees["few"])
	bases["log at 0, not new"].log(0, 3, 2)
	for name, change := range map[string]func(*xfsImage){"log by xfs_repair": (*xfsImage).repairedLog, "log with a torn record": (*xfsImage).tornLog} {
		bases[name] = newXFSImage(true, xfsFrees["few"])
		change(bases[name])
	}
	other := newXFSImage(true, xfsFrees["few"])
	xfsPut(0, 216, 0x2f)(other)
	copy(other.parts[0][32:], "another identity")
	copy(other.parts[0][248:], "the file system!")
	copy(other.parts[xfsTestLogStart][304:], "another identity")
	bases["metadata's UUID"] = other
	bases["4 with a checksum in its log"] = newXFSImage(false, xfsFrees["few"])
	xfsPut(xfsTestLogStart, 32, 1)(bases["4 with a checksum in its log"])
	bases["empty list"] = newXFSImage(true, xfsFrees["few"])
	xfsPut(512, 48, 0)(bases["empty list"])
	xfsPut(0, 148, xfsEndian.Uint32(other.parts[0][148:])-5)(bases["empty list"])
	for _, image := range bases {
		image.seal()
	}
	return bases
}

var xfsFrees = map[string][3][]xfsExtent{
	"few":  {{{150, 3000}}, {{1500, 1501}, {3000, 4096}}, {{131, 1000}}},
	"many": {xfsMany(), {}, xfsMany()},
}

func TestXFS(t *testing.T) {
	for name, image := range xfsBases() {
		t.Run(name, func(t *testing.T) {
			ranges, err := XFS(image, xfsTestLength)
			if err != nil {
				t.Fatal(err)
			}
			kind := "few"
			if strings.HasPrefix(name, "many") {
				kind = "many"
			}
			want := xfsFree(xfsFrees[kind])
			if got := xfsCollect(t, ranges, xfsTestLength); !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
			for range ranges { // stops early without a panic
				break
			}
		})
	}
}

// xfsChange is a change of a good file system that makes it one that is not to
// be trusted. The checksums are made right after it.
type xfsChange struct {
	name   string
	change func(m *xfsImage)
	want   string
}

func xfsPut(at int64, place int, value uint32) func(m *xfsImage) {
	return func(m *xfsImage) { xfsEndian.PutUint32(m.parts[at][place:], value) }
}

var (
	xfsTestGroup1 = int64(xfsTestGroup) * xfsTestBlock
	xfsTestLogEnd = xfsTestLogSize * xfsTestBlock
)

var xfsChanges = []xfsChange{
	{"magic", xfsPut(0, 0, 0), "no superblock"},
	{"block", xfsPut(0, 4, 4095), "blocks of 4095"},
	{"small block", func(m *xfsImage) {
		xfsPut(0, 4, 512)(m)
		xfsPut(0, 84, 32768)(m)
		xfsPut(0, 88, 1)(m)
		m.parts[0][120], m.parts[0][124] = 9, 15
	}, "version 5 with blocks of 512"},
	{"block and its logarithm", xfsPut(0, 4, 8192), "blocks of 8192"},
	{"sector", func(m *xfsImage) { m.parts[0][102] = 3 }, "sectors of 768"},
	{"sector and its logarithm", func(m *xfsImage) { m.parts[0][121] = 10 }, "sectors of 512"},
	{"sector larger than a block", func(m *xfsImage) { m.parts[0][102], m.parts[0][121] = 0x20, 13 }, "sectors of 8192"},
	{"logarithm of the group", func(m *xfsImage) { m.parts[0][124] = 13 }, "groups of 4096"},
	{"group and all", func(m *xfsImage) {
		xfsPut(0, 84, 1<<28+1)(m)
		m.parts[0][124] = 29
	}, "groups of 268435457"},
	{"larger than the partition", xfsPut(0, 12, xfsTestBlocks+3), "is larger than"},
	{"much larger", xfsPut(0, 8, 0xffffffff), "is larger than"},
	{"group", xfsPut(0, 84, 4095), "groups of 4095"},
	{"no group", xfsPut(0, 84, 0), "groups of 0"},
	{"groups", xfsPut(0, 88, 4), "in 4 allocation groups"},
	{"realtime", xfsPut(0, 20, 1), "realtime"},
	{"realtime extents", xfsPut(0, 28, 1), "realtime"},
	{"no log", xfsPut(0, 96, 0), "log of 0 blocks"},
	{"external log", func(m *xfsImage) { clear(m.parts[0][48:56]) }, "another device"},
	{"log out of its group", xfsPut(0, 96, xfsTestGroup), "log of 4096 blocks"},
	{"log in no group", xfsPut(0, 52, 3<<12), "whose log"},
	{"version", func(m *xfsImage) { m.parts[0][101] = 0xa3 }, "version 3"},
	{"shared", func(m *xfsImage) { m.parts[0][100] |= 2 }, "unknown features"},
	{"features2", xfsPut(0, 200, 0x1aa), "unknown features"},
	{"features2 where padding was", xfsPut(0, 204, 0x1aa), "unknown features"},
	{"read-only compatible", xfsPut(0, 212, 0x1d), "unknown features"},
	{"needs repair", xfsPut(0, 216, 0x3b), "needs repair"},
	{"metadata directory", xfsPut(0, 216, 0x12b), "unknown features"},
	{"log incompatible", xfsPut(0, 220, 1), "unknown features"},
	{"mkfs", func(m *xfsImage) { m.parts[0][126] = 1 }, "did not finish"},
	{"free blocks", xfsPut(0, 148, 5), "superblock says 5"},

	{"group's magic", xfsPut(xfsTestGroup1+512, 0, 2), "header of group 1"},
	{"group's version", xfsPut(xfsTestGroup1+512, 4, 2), "header of group 1"},
	{"group's free blocks", xfsPut(xfsTestGroup1+512, 52, 4097), "says 4097 are free"},
	{"group's number", xfsPut(xfsTestGroup1+512, 8, 2), "header of group 1"},
	{"group's length", xfsPut(xfsTestGroup1+512, 12, 4095), "header of group 1"},
	{"group's file system", xfsPut(xfsTestGroup1+512, 64, 0), "header of group 1"},
	{"root in the header", xfsPut(512, 16, 0), "has its btree at 0"},
	{"root out of the group", xfsPut(512, 16, 4096), "has its btree at 4096"},
	{"root elsewhere", xfsPut(512, 16, 3500), "not of its btree"},
	{"no level", xfsPut(512, 28, 0), "in 0 levels"},
	{"many levels", xfsPut(512, 28, 10), "in 10 levels"},
	{"fewer levels", xfsPut(512, 28, 2), "not of its btree"},
	{"count", xfsPut(512, 52, 38), "its header says 38"},
	{"longest", xfsPut(512, 56, 4), "its header says 39 and 4"},
	{"list's count", xfsPut(512, 48, 4), "free list of group 0 has 4"},
	{"list's first", xfsPut(512, 40, 119), "from 119"},
	{"list's last", xfsPut(512, 44, 119), "to 119"},
	{"list's first and last", func(m *xfsImage) {
		xfsPut(512, 40, 119+117)(m)
		xfsPut(512, 44, 119+2)(m)
	}, "from 236 to 121"},
	{"list's block", xfsPut(3*512, 36, 4096), "holds block 4096"},
	{"list's block is free", xfsPut(3*512, 36, 20), "block 20 is in use"},
	{"list's group", xfsPut(3*512, 4, 1), "free list of group 0"},

	{"leaf's level", xfsPut(xfsTestTree1, 4, 0x10003), "not of its btree"},
	{"leaf is empty", xfsPut(xfsTestTree1, 4, 0), "not of its btree"},
	{"leaf is too full", xfsPut(xfsTestTree1, 4, 506), "not of its btree"},
	{"leaf's group", xfsPut(xfsTestTree1, 48, 1), "not of its btree"},
	{"leaf's place", xfsPut(xfsTestTree1, 20, 1), "not of its btree"},
	{"leaf's file system", xfsPut(xfsTestTree1, 32, 1), "not of its btree"},
	{"leaf's left", xfsPut(xfsTestTree1, 8, 1000), "wrong siblings"},
	{"leaf leads to itself", xfsPut(xfsTestTree1, 12, xfsTestTree+1), "wrong siblings"},
	{"chain leads back", func(m *xfsImage) {
		xfsPut(xfsTestTree1, 12, xfsTestTree)(m)
		xfsPut(xfsTestLeaf, 8, xfsTestTree+1)(m)
	}, "wrong siblings"},
	{"leaf leads out", xfsPut(xfsTestTree1, 12, 4096), "block 4096 of 4096"},
	{"chain ends", xfsPut(xfsTestTree1, 12, xfsNull), "its header says"},
	{"root leads out", xfsPut(xfsTestRoot, 56+4040/12*8, 9999), "block 9999"},
	{"root leads to the header", xfsPut(xfsTestRoot, 56+4040/12*8, 0), "leads to block 0"},
	{"root is too full", xfsPut(xfsTestRoot, 4, 2<<16+337), "not of its btree"},
	{"root has a sibling", xfsPut(xfsTestRoot, 12, xfsTestTree), "wrong siblings"},
	{"extent of nothing", xfsPut(xfsTestTree1, 60, 0), "0 blocks at 35"},
	{"extent too long", xfsPut(xfsTestTree1, 60, 4062), "4062 blocks at 35"},
	{"extent overflows", xfsPut(xfsTestTree1, 60, 0xfffffff0), "4294967280 blocks at 35"},
	{"extents overlap", xfsPut(xfsTestTree1, 60, 6), "blocks at 40"},
	{"extents descend", xfsPut(xfsTestTree1, 64, 34), "blocks at 34"},
	{"header is free", xfsPut(xfsTestLeaf, 56, 0), "block 0 is in use"},
	{"root is free", func(m *xfsImage) {
		xfsPut(xfsTestTree1, 72, 120)(m)
		xfsPut(xfsTestTree1, 76, 30)(m)
	}, "is in use and said to be free"},

	{"log is zeros", func(m *xfsImage) { clear(m.parts[xfsTestLogStart]) }, "begins with cycle 0"},
	{"log skips a cycle", func(m *xfsImage) { m.log(9, 7, 5) }, "begins with cycle 7 and ends with 5"},
	{"record after the unmount", func(m *xfsImage) { xfsPut(xfsTestLogStart, 1024, 1)(m) }, "no record ends"},
	{"hole near the head", func(m *xfsImage) {
		m.log(5000, 7, 6)
		xfsPut(xfsTestLogStart, 4000*512, 6)(m)
	}, "cycle 6 is out of place"},
	{"stray block after the head", func(m *xfsImage) {
		m.log(5000, 7, 6)
		xfsPut(xfsTestLogStart, 5500*512, 7)(m)
	}, "cycle 7 is out of place"},
	{"hole around the end", func(m *xfsImage) {
		m.log(50, 7, 6)
		xfsPut(xfsTestLogStart, xfsTestLogEnd-1024, 5)(m)
	}, "cycle 5 is out of place"},
	{"whole record after the unmount", func(m *xfsImage) {
		m.log(5000, 7, 6)
		m.record(5002, 7, 1)
	}, "does not end with an unmount"},
	{"two torn records", func(m *xfsImage) {
		m.tornLog()
		xfsPut(xfsTestLogStart, 5002*512+12, 20*512)(m)
		xfsPut(xfsTestLogStart, 5025*512, xfsLogMagic)(m)
		xfsPut(xfsTestLogStart, 5025*512+4, 7)(m)
	}, "no whole record"},
	{"no unmount", func(m *xfsImage) { m.parts[xfsTestLogStart][512+9] = 1 }, "does not end with an unmount"},
	{"two operations", xfsPut(xfsTestLogStart, 40, 2), "does not end with an unmount"},
	{"no header", xfsPut(xfsTestLogStart, 0, 1), "no record ends"},
	{"record's length", xfsPut(xfsTestLogStart, 12, 1024), "no record ends"},
	{"record's length is huge", xfsPut(xfsTestLogStart, 12, 0xfffffe00), "no record ends"},
	{"record's headers", xfsPut(xfsTestLogStart, 320, 0xffffffff), "no record ends"},
	{"record's own cycle", func(m *xfsImage) {
		m.log(5000, 7, 6)
		xfsPut(xfsTestLogStart, 5000*512+16, 6)(m)
	}, "not of cycle 7"},
	{"record's cycle", xfsPut(xfsTestLogStart, 16, 2), "not of cycle 1 and block 0"},
	{"record's block", xfsPut(xfsTestLogStart, 20, 2), "not of cycle 1 and block 0"},
	{"record's file system", xfsPut(xfsTestLogStart, 304, 2), "another file system"},
	{"record's checksum", xfsPut(xfsTestLogStart, 32, 2), "checksum of its last record"},
}

const (
	xfsTestLeaf  = xfsTestTree * xfsTestBlock // the first leaf of the first group
	xfsTestTree1 = xfsTestLeaf + xfsTestBlock // the second
	xfsTestRoot  = xfsTestLeaf + 10*xfsTestBlock
)

func TestXFSUnsure(t *testing.T) {
	good := newXFSImage(true, xfsFrees["many"])
	for _, c := range xfsChanges {
		t.Run(c.name, func(t *testing.T) {
			image := good.clone(true)
			c.change(image)
			image.seal()
			_, err := XFS(image, xfsTestLength)
			if !errors.Is(err, ErrUnsure) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// Each checksum is looked at: whatever byte of metadata is changed without it.
func TestXFSChecksums(t *testing.T) {
	good := newXFSImage(true, xfsFrees["many"])
	for at := range good.parts {
		b := good.parts[at]
		aside := string(b[:4]) == "AB3B" && b[5] > 0 && xfsEndian.Uint32(b[8:]) != xfsNull
		if at == xfsTestLogStart || aside { // is not on the way down to the first leaf
			continue
		}
		for place := range b {
			if place > 300 && place%31 != 0 {
				continue
			}
			b[place] ^= 0x10
			fs, err := xfsOpen(good, xfsTestLength)
			if err == nil {
				err = fs.check()
			}
			if !errors.Is(err, ErrUnsure) {
				t.Errorf("byte %d of what is at %d: %v", place, at, err)
			}
			b[place] ^= 0x10
		}
	}
}

func TestXFSShort(t *testing.T) {
	image := newXFSImage(true, xfsFrees["few"])
	for _, length := range []size.Bytes{0, 511, 512, 16*size.MiB - 1, 16 * size.MiB, xfsTestBlocks*xfsTestBlock - 1} {
		if _, err := XFS(image, length); !errors.Is(err, ErrUnsure) {
			t.Errorf("%d bytes: %v", length, err)
		}
	}
	if _, err := XFS(strings.NewReader("XFSB"), xfsTestLength); !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrUnsure) {
		t.Errorf("a read error: %v", err)
	}
}

// What changes while it is read ends with an error.
func TestXFSChanging(t *testing.T) {
	for name, change := range map[string]func(*xfsImage){
		"btree": xfsPut(xfsTestTree1, 12, xfsNull), "header": xfsPut(xfsTestGroup1+512, 12, 0),
	} {
		image := newXFSImage(true, xfsFrees["many"])
		ranges, err := XFS(image, xfsTestLength)
		if err != nil {
			t.Fatal(err)
		}
		seen, failed := 0, 0
		for _, err = range ranges {
			if seen++; seen == 2 {
				change(image)
			}
			if err != nil {
				failed++
			}
		}
		if !errors.Is(err, ErrUnsure) || failed != 1 {
			t.Errorf("%s: got %v after %d ranges, %d errors", name, err, seen, failed)
		}
	}
}

// FuzzXFS changes good file systems, with or without making the checksums right:
// 7 bytes each name a part, a place in it and a number. Nothing but a
// sure answer, in order, or ErrUnsure may come of it, at a bounded price.
func FuzzXFS(f *testing.F) {
	bases := []*xfsImage{
		newXFSImage(false, xfsFrees["many"]), newXFSImage(true, xfsFrees["many"]),
		newXFSImage(false, xfsFrees["few"]), newXFSImage(true, xfsFrees["few"]),
	}
	bases[2].log(5000, 7, 6)
	for base := range bases {
		f.Add(uint8(base), true, []byte{})
		f.Add(uint8(base), true, []byte("\x00\x00\x54\x00\x00\x10\x01"))
		f.Add(uint8(base), true, []byte("\x01\x00\x10\x00\x00\x00\x83\x05\x00\x08\x00\x00\x00\x01"))
		f.Add(uint8(base), true, []byte("\x0a\x00\x0c\x00\x00\x00\x83\x0b\x00\x0c\xff\xff\xff\xff"))
		f.Add(uint8(base), false, []byte("\x04\x00\x0c\x00\x00\x04\x00\x06\x02\x00\x00\x00\x00\x01"))
	}
	f.Fuzz(func(t *testing.T, base uint8, seal bool, changes []byte) {
		image := xfsChanged(bases[int(base)%len(bases)], changes)
		if seal {
			image.seal()
		}
		reads := &xfsReads{Reader: image}
		ranges, err := XFS(reads, xfsTestLength)
		if reads.bytes > 32<<20 {
			t.Errorf("%d bytes were read", reads.bytes)
		}
		if err != nil {
			if !errors.Is(err, ErrUnsure) {
				t.Error(err)
			}
			return
		}
		all := xfsCollect(t, ranges, xfsTestLength)
		if all[0].Start != 0 || all[len(all)-1].Start+all[len(all)-1].Length != xfsTestLength {
			t.Errorf("the ends are not used: %v", all)
		}
	})
}

func xfsChanged(base *xfsImage, changes []byte) *xfsImage {
	places := slices.Sorted(maps.Keys(base.parts))
	log := slices.Index(places, xfsTestLogStart)
	image := base.clone(false)
	for ; len(changes) >= 7; changes = changes[7:] {
		part := int(changes[0]) % len(places)
		b, place := image.parts[places[part]], int(binary.BigEndian.Uint16(changes[1:]))
		if part == log {
			if &b[0] == &base.parts[xfsTestLogStart][0] {
				b = slices.Clone(b)
				image.parts[xfsTestLogStart] = b
			}
			place *= 61 // all over it
		}
		copy(b[place%(len(b)-3):], changes[3:7])
	}
	return image
}

// xfsReads counts what is read.
type xfsReads struct {
	Reader io.ReaderAt
	bytes  int
}

func (r *xfsReads) ReadAt(p []byte, off int64) (int, error) {
	r.bytes += len(p)
	return r.Reader.ReadAt(p, off)
}
