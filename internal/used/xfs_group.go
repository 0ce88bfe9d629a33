package used

import (
	"cmp"
	"iter"
	"slices"

	"ganeti-instance-image/internal/size"
)

// xfsExtent is a stretch of blocks of one group.
type xfsExtent struct{ start, end uint32 }

// xfsGroup is an allocation group by its header (the AGF): what is free in it,
// and what cannot be.
type xfsGroup struct {
	fs      *xfs
	number  uint32
	blocks  uint32
	start   size.Bytes
	root    uint32 // of the btree by block number
	levels  uint32
	free    uint32 // agf_freeblks
	longest uint32
	listed  uint32      // in the free list: kept for the btrees, and in none of them
	inTrees uint32      // agf_btreeblks: blocks of these btrees beyond their roots
	held    []xfsExtent // known to be in use, in ascending order
}

const (
	xfsGroupSum  = 216 // agf_crc
	xfsListSum   = 32  // agfl_crc
	xfsListHead  = 36  // of version 5
	xfsLevelsMax = 9   // XFS_BTREE_MAXLEVELS
)

// group reads and checks a group's header.
func (fs *xfs) group(number uint32) (*xfsGroup, error) {
	b := make([]byte, fs.sector)
	g := &xfsGroup{fs: fs, number: number, blocks: fs.length(number), start: fs.start(number)}
	if err := xfsRead(fs.r, g.start+fs.sector, b); err != nil {
		return nil, err
	}
	field := func(i int) uint32 { return xfsEndian.Uint32(b[4*i:]) }
	if string(b[:4]) != "XAGF" || field(1) != 1 || field(2) != number || field(3) != g.blocks {
		return nil, xfsUnsure("the header of group %d is not as it must be", number)
	}
	if fs.summed && (!xfsSummed(b, xfsGroupSum) || [16]byte(b[64:80]) != fs.uuid) {
		return nil, xfsUnsure("the checksum of the header of group %d is wrong", number)
	}
	g.root, g.levels, g.free, g.longest, g.listed, g.inTrees = field(4), field(7), field(13), field(14), field(12), field(15)
	if g.levels < 1 || g.levels > xfsLevelsMax || g.free > g.blocks {
		return nil, xfsUnsure("group %d of %d blocks says %d are free, in %d levels", number, g.blocks, g.free, g.levels)
	}
	return g, g.hold(field(10), field(11))
}

// hold notes what must not be free: the headers, the log, the btree's root, and
// the blocks of the free list, whose first and last entries are given.
func (g *xfsGroup) hold(first, last uint32) error {
	header := g.header()
	if g.blocks <= header || g.root < header || g.root >= g.blocks {
		return xfsUnsure("group %d of %d blocks has its btree at %d", g.number, g.blocks, g.root)
	}
	g.held = []xfsExtent{{0, header}, {g.root, g.root + 1}}
	if log := g.fs.log; log.group == g.number {
		g.held = append(g.held, log.extent)
	}
	if err := g.holdList(first, last); err != nil {
		return err
	}
	slices.SortFunc(g.held, func(a, b xfsExtent) int { return cmp.Compare(a.start, b.start) })
	return nil
}

// header returns how many blocks the group's headers take.
func (g *xfsGroup) header() uint32 {
	return uint32((xfsHeaderSector*g.fs.sector + g.fs.block - 1) / g.fs.block)
}

// holdList reads the free list (the AGFL), a ring.
func (g *xfsGroup) holdList(first, last uint32) error {
	b := make([]byte, g.fs.sector)
	if err := xfsRead(g.fs.r, g.start+3*g.fs.sector, b); err != nil {
		return err
	}
	if g.fs.summed {
		if string(b[:4]) != "XAFL" || xfsEndian.Uint32(b[4:]) != g.number ||
			[16]byte(b[8:24]) != g.fs.uuid || !xfsSummed(b, xfsListSum) {
			return xfsUnsure("the free list of group %d is not as it must be", g.number)
		}
		b = b[xfsListHead:]
	}
	ring := uint32(len(b) / 4)
	if g.listed == 0 {
		return nil
	}
	if first >= ring || last >= ring || (last+ring-first)%ring+1 != g.listed {
		return xfsUnsure("the free list of group %d has %d blocks, from %d to %d of %d", g.number, g.listed, first, last, ring)
	}
	for i := range g.listed {
		block := xfsEndian.Uint32(b[4*((first+i)%ring):])
		if block >= g.blocks {
			return xfsUnsure("the free list of group %d holds block %d", g.number, block)
		}
		g.held = append(g.held, xfsExtent{block, block + 1})
	}
	return nil
}

// extents yields the free extents in ascending order. Only when all were
// yielded without an error is it known that they are as many as the header says.
func (g *xfsGroup) extents() iter.Seq2[xfsExtent, error] {
	return func(yield func(xfsExtent, error) bool) {
		tally := xfsTally{group: g, held: g.held}
		for leaf, err := range g.leaves() {
			for i := 0; err == nil && i < leaf.records; i++ {
				var e xfsExtent
				if e, err = tally.add(leaf.record(i)); err == nil && !yield(e, nil) {
					return
				}
			}
			if err != nil {
				yield(xfsExtent{}, err)
				return
			}
		}
		if err := tally.done(); err != nil {
			yield(xfsExtent{}, err)
		}
	}
}

// xfsTally checks the extents of a group one by one.
type xfsTally struct {
	group   *xfsGroup
	held    []xfsExtent // what is not wholly before the last extent
	end     uint32      // of the last extent
	sum     uint32
	longest uint32
}

// add takes an extent by its start and its length. Each is beyond the last one,
// which also bounds a chain of leaves that leads back to itself.
func (t *xfsTally) add(start, length uint32) (xfsExtent, error) {
	end := uint64(start) + uint64(length)
	if length == 0 || start < t.end || end > uint64(t.group.blocks) {
		return xfsExtent{}, xfsUnsure("in group %d, %d blocks at %d are said to be free", t.group.number, length, start)
	}
	for len(t.held) > 0 && t.held[0].end <= start {
		t.held = t.held[1:]
	}
	if len(t.held) > 0 && uint64(t.held[0].start) < end {
		return xfsExtent{}, xfsUnsure("in group %d, block %d is in use and said to be free", t.group.number, t.held[0].start)
	}
	t.end, t.sum, t.longest = uint32(end), t.sum+length, max(t.longest, length)
	return xfsExtent{start, t.end}, nil
}

func (t *xfsTally) done() error {
	if g := t.group; t.sum != g.free || t.longest != g.longest {
		return xfsUnsure("in group %d, %d blocks are free, at most %d at once, and its header says %d and %d",
			g.number, t.sum, t.longest, g.free, g.longest)
	}
	return nil
}

// xfsNode is one block of the btree. Its bytes are good until the next is read.
type xfsNode struct {
	b           []byte // after the header
	records     int
	left, right uint32
}

const (
	xfsNull     = 0xffffffff // no sibling
	xfsNodeSum  = 52
	xfsNodeHead = 56 // of version 5
)

// record returns a leaf's record: start and length.
func (n xfsNode) record(i int) (start, length uint32) {
	return xfsEndian.Uint32(n.b[8*i:]), xfsEndian.Uint32(n.b[8*i+4:])
}

// first returns the first child of a node above the leaves. Room for all keys
// is before the pointers.
func (n xfsNode) first() uint32 {
	return xfsEndian.Uint32(n.b[len(n.b)/12*8:])
}

// leaves yields the leaves from left to right: down to the first one, then from
// sibling to sibling. A chain may be endless; who reads it must see that its
// records ascend. There is no empty leaf but a root.
func (g *xfsGroup) leaves() iter.Seq2[xfsNode, error] {
	return func(yield func(xfsNode, error) bool) {
		b := make([]byte, g.fs.block)
		left, number := uint32(xfsNull), g.root
		for level := int(g.levels) - 1; number != xfsNull; {
			node, err := g.node(b, number, level)
			if err == nil && (node.left != left || number == g.root && node.right != xfsNull) {
				err = xfsUnsure("block %d of group %d has wrong siblings", number, g.number)
			}
			if err != nil {
				yield(xfsNode{}, err)
				return
			}
			if level > 0 {
				level, number = level-1, node.first()
				continue
			}
			if !yield(node, nil) {
				return
			}
			left, number = number, node.right
		}
	}
}

// node reads and checks a block of the btree.
func (g *xfsGroup) node(b []byte, number uint32, level int) (xfsNode, error) {
	if number < g.header() || number >= g.blocks {
		return xfsNode{}, xfsUnsure("the btree of group %d leads to block %d of %d", g.number, number, g.blocks)
	}
	at := g.start + size.Bytes(number)*g.fs.block
	if err := xfsRead(g.fs.r, at, b); err != nil {
		return xfsNode{}, err
	}
	magic, head, record := "ABTB", 16, 8
	if g.fs.summed {
		magic, head = "AB3B", xfsNodeHead
	}
	if level > 0 {
		record = 12
	}
	records := int(xfsEndian.Uint16(b[6:]))
	if string(b[:4]) != magic || int(xfsEndian.Uint16(b[4:])) != level || records > (len(b)-head)/record ||
		records == 0 && g.levels > 1 || g.fs.summed && !g.owns(b, at) {
		return xfsNode{}, xfsUnsure("block %d of group %d is not of its btree", number, g.number)
	}
	return xfsNode{b[head:], records, xfsEndian.Uint32(b[8:]), xfsEndian.Uint32(b[12:])}, nil
}

// owns says whether a block of version 5 is the group's, of that place.
func (g *xfsGroup) owns(b []byte, at size.Bytes) bool {
	return xfsSummed(b, xfsNodeSum) && xfsEndian.Uint64(b[16:]) == uint64(at/512) &&
		[16]byte(b[32:48]) == g.fs.uuid && xfsEndian.Uint32(b[48:]) == g.number
}
