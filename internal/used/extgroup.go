package used

import (
	"encoding/binary"
	"math/bits"
)

// extGroup is what a group descriptor says.
type extGroup struct {
	number  uint64
	blocks  extSpan
	bitmap  uint64 // the blocks that hold the bitmap of blocks,
	inodes  uint64 // of inodes,
	table   extSpan
	free    uint64 // clusters
	noMap   bool   // the bitmap was never written
	sum     uint32 // of the bitmap
	sumMask uint32 // the bits of it that there is room for
}

// extBits is the bitmap of a group.
type extBits struct {
	words    []uint64
	clusters uint64 // that there are
	first    uint64 // block of the first cluster
}

// extWalk reads group after group. What it holds are a few blocks.
type extWalk struct {
	*extFS
	descs extDescBlock
	own   extBitmap
	other extBitmap // of another group, in which the own has its metadata
}

// extDescBlock is a block of group descriptors.
type extDescBlock struct {
	index uint64
	known bool
	data  extRecord
}

// extBitmap is a bitmap as it was read.
type extBitmap struct {
	group extGroup
	known bool
	raw   []byte
	words []uint64
}

func newExtWalk(fs *extFS) *extWalk {
	return &extWalk{extFS: fs, descs: extDescBlock{data: make(extRecord, fs.blockSize)}, own: newExtBitmap(fs), other: newExtBitmap(fs)}
}

func newExtBitmap(fs *extFS) extBitmap {
	clusters := fs.perGroup / fs.perCluster
	return extBitmap{raw: make([]byte, clusters/8), words: make([]uint64, (clusters+63)/64)}
}

// groups visits the bitmap of each group, checked, until visit returns false.
func (w *extWalk) groups(visit func(extBits) bool) error {
	for number := range w.groupCount {
		g, err := w.descriptor(number)
		if err != nil {
			return err
		}
		b, err := w.bits(g)
		if err != nil {
			return err
		}
		if !visit(b) {
			break
		}
	}
	return nil
}

// descriptor reads and verifies the descriptor of a group. Its neighbours are
// kept for the next call.
func (w *extWalk) descriptor(number uint64) (extGroup, error) {
	index, at := number/w.descsPerBlock, number%w.descsPerBlock*w.descSize
	if !w.descs.known || w.descs.index != index {
		w.descs.known = false
		if err := w.readBlock(w.descs.data, w.descriptorBlock(index), 0); err != nil {
			return extGroup{}, err
		}
		w.descs.known, w.descs.index = true, index
	}
	return w.parseGroup(number, w.descs.data[at:at+w.descSize])
}

func (w *extWalk) parseGroup(number uint64, desc extRecord) (extGroup, error) {
	summed := w.metadataSum || w.descriptorSum16
	if summed && desc.u16(0x1E) != w.descriptorSum(number, desc) {
		return extGroup{}, extUnsure("the checksum of group %d's descriptor is wrong", number)
	}
	const inodeUninit, blockUninit, inodeZeroed = 1, 2, 4
	flags := desc.u16(0x12)
	if flags&^(inodeUninit|blockUninit|inodeZeroed) != 0 || flags&blockUninit != 0 && (!summed || number == 0) {
		return extGroup{}, extUnsure("group %d has the flags %#x", number, flags)
	}
	g := extGroup{number: number, blocks: w.group(number), noMap: flags&blockUninit != 0,
		bitmap: uint64(desc.u32(0x0)), inodes: uint64(desc.u32(0x4)), table: extSpan{uint64(desc.u32(0x8)), w.tableBlocks},
		free: uint64(desc.u16(0xC)), sum: uint32(desc.u16(0x18)), sumMask: 0xFFFF}
	if len(desc) >= 64 {
		g.bitmap, g.inodes, g.table.start = desc.wide(0x0, 0x20), desc.wide(0x4, 0x24), desc.wide(0x8, 0x28)
		g.free |= uint64(desc.u16(0x2C)) << 16
		g.sum, g.sumMask = g.sum|uint32(desc.u16(0x38))<<16, ^uint32(0)
	}
	return g, w.checkPlaces(g)
}

// metadata is what a group must have marked as used: the superblock and group
// descriptors, the bitmaps and the inode table.
func (w *extWalk) metadata(g extGroup) [4]extSpan {
	return [4]extSpan{w.base(g.number), {g.bitmap, 1}, {g.inodes, 1}, g.table}
}

// checkPlaces wants a group's metadata to lie in the group, or with flex_bg
// anywhere in the file system, and no two of it in one place.
func (w *extWalk) checkPlaces(g extGroup) error {
	spans := w.metadata(g)
	for i, span := range spans {
		within := g.blocks
		if w.incompat&extFlexBG != 0 && i > 0 {
			within = extSpan{w.firstBlock, w.blocks - w.firstBlock}
		}
		if span.start < within.start || span.count > within.count || span.start-within.start > within.count-span.count {
			return extUnsure("group %d's metadata at block %d is out of place", g.number, span.start)
		}
		for _, before := range spans[:i] {
			if span.overlaps(before) {
				return extUnsure("group %d's metadata at blocks %d and %d overlaps", g.number, before.start, span.start)
			}
		}
	}
	return nil
}

// bits returns a group's bitmap when it agrees with all that is known of it.
func (w *extWalk) bits(g extGroup) (extBits, error) {
	if err := w.load(g, &w.own); err != nil {
		return extBits{}, err
	}
	b := w.bitsOf(g, &w.own)
	if g.noMap {
		w.markOwn(g, b)
	}
	if free := b.clusters - b.count(); free != g.free {
		return extBits{}, extUnsure("group %d has %d free clusters by its bitmap, %d by its descriptor", g.number, free, g.free)
	}
	for _, span := range w.metadata(g) {
		if err := w.wantUsed(g, b, span); err != nil {
			return extBits{}, err
		}
	}
	return b, nil
}

func (w *extWalk) bitsOf(g extGroup, m *extBitmap) extBits {
	return extBits{m.words, (g.blocks.count-1)/w.perCluster + 1, g.blocks.start}
}

// load reads and verifies a group's bitmap. One that was never written is empty.
func (w *extWalk) load(g extGroup, m *extBitmap) error {
	m.known = false
	clear(m.words)
	if !g.noMap {
		if err := w.readBlock(m.raw, g.bitmap, 0); err != nil {
			return err
		}
		if w.metadataSum && extCRC32C(w.sumSeed, m.raw)&g.sumMask != g.sum {
			return extUnsure("the checksum of group %d's bitmap is wrong", g.number)
		}
		extWords(m.words, m.raw)
	}
	m.known, m.group = true, g
	return nil
}

func extWords(words []uint64, raw []byte) {
	for i := range words {
		var word [8]byte
		copy(word[:], raw[8*i:])
		words[i] = binary.LittleEndian.Uint64(word[:])
	}
}

// markOwn marks the metadata of a group in its own bitmap. Nothing else may be
// in a group whose bitmap was never written, not even another group's metadata:
// Linux would give its place away (ext4_init_block_bitmap).
func (w *extWalk) markOwn(g extGroup, b extBits) {
	for _, span := range w.metadata(g) {
		start, end := max(span.start, g.blocks.start), min(span.end(), g.blocks.end())
		if start >= end {
			continue
		}
		for cluster := (start - b.first) / w.perCluster; cluster <= (end-1-b.first)/w.perCluster; cluster++ {
			b.words[cluster/64] |= 1 << (cluster % 64)
		}
	}
}

// wantUsed wants the blocks of a span to be marked as used, in whichever group
// they are.
func (w *extWalk) wantUsed(g extGroup, own extBits, span extSpan) error {
	for span.count > 0 {
		b, home := own, (span.start-w.firstBlock)/w.perGroup
		if home != g.number {
			var err error
			if b, err = w.otherBits(home); err != nil {
				return err
			}
		}
		n := min(span.count, w.group(home).end()-span.start)
		from, last := (span.start-b.first)/w.perCluster, (span.start+n-1-b.first)/w.perCluster
		if b.next(from, last+1, true) <= last {
			return extUnsure("group %d's metadata at block %d is marked as free", g.number, span.start)
		}
		span = extSpan{span.start + n, span.count - n}
	}
	return nil
}

// otherBits is the bitmap of a group that holds another's metadata. Mostly it is
// that of the time before.
func (w *extWalk) otherBits(number uint64) (extBits, error) {
	if w.other.known && w.other.group.number == number {
		return w.bitsOf(w.other.group, &w.other), nil
	}
	desc := make(extRecord, w.descSize)
	if err := w.readBlock(desc, w.descriptorBlock(number/w.descsPerBlock), number%w.descsPerBlock*w.descSize); err != nil {
		return extBits{}, err
	}
	g, err := w.parseGroup(number, desc)
	if err != nil {
		return extBits{}, err
	}
	if g.noMap {
		return extBits{}, extUnsure("group %d has no bitmap, but metadata of others", number)
	}
	return w.bitsOf(g, &w.other), w.load(g, &w.other)
}

// run is the first run of used clusters from a cluster on; where there is none,
// both its ends are the bitmap's.
func (b extBits) run(from uint64) (start, end uint64) {
	start = b.next(from, b.clusters, false)
	return start, b.next(start, b.clusters, true)
}

// next is the first cluster from a cluster on, and below limit, that is used, or
// free; else limit.
func (b extBits) next(from, limit uint64, free bool) uint64 {
	for from < limit {
		word := b.words[from/64]
		if free {
			word = ^word
		}
		if word >>= from % 64; word != 0 {
			return min(from+uint64(bits.TrailingZeros64(word)), limit)
		}
		from = from - from%64 + 64
	}
	return limit
}

// count is the number of used clusters.
func (b extBits) count() (n uint64) {
	whole := b.clusters / 64
	for _, word := range b.words[:whole] {
		n += uint64(bits.OnesCount64(word))
	}
	if rest := b.clusters % 64; rest > 0 {
		n += uint64(bits.OnesCount64(b.words[whole] << (64 - rest)))
	}
	return n
}
