package used

import "encoding/binary"

// checkMMP wants the multi-mount protection to say that nothing has the file
// system in use (struct mmp_struct of ext2_fs.h).
func (w *extWalk) checkMMP() error {
	if w.incompat&extMMP == 0 {
		return nil
	}
	const magic, clean, sum = 0x004D4D50, 0xFF4D4D50, 0x3FC
	mmp := make(extRecord, 1024)
	if err := w.readBlock(mmp, w.raw.wide(0x168, 0x16C), 0); err != nil {
		return err
	}
	switch {
	case mmp.u32(0) != magic:
		return extUnsure("its multi-mount protection is no such thing")
	case w.metadataSum && extCRC32C(w.sumSeed, mmp[:sum]) != mmp.u32(sum):
		return extUnsure("the checksum of its multi-mount protection is wrong")
	case mmp.u32(4) != clean:
		return extUnsure("its multi-mount protection says that it is in use")
	}
	return nil
}

// checkJournal wants the journal to be empty, whatever the superblock says:
// e2fsck(8) replays it then too. It also keeps an error that the superblock has
// not taken over yet.
func (w *extWalk) checkJournal() error {
	if w.compat&extHasJournal == 0 {
		return nil
	}
	number, device := uint64(w.raw.u32(0xE0)), w.raw.u32(0xE4)
	if number == 0 || device != 0 {
		return extUnsure("its journal is on another device")
	}
	inode, err := w.inode(number)
	if err != nil {
		return err
	}
	block, err := w.firstOf(number, inode)
	if err != nil {
		return err
	}
	journal := make([]byte, 1024)
	if err := w.readBlock(journal, block, 0); err != nil {
		return err
	}
	return w.checkJournalSuper(journal)
}

// checkJournalSuper reads a journal_superblock_t of jbd2, which is big-endian.
func (w *extWalk) checkJournalSuper(journal []byte) error {
	field := func(at int) uint32 { return binary.BigEndian.Uint32(journal[at:]) }
	const magic, version1, version2, sums, sum = 0xC03B3998, 3, 4, 0x8 | 0x10, 0xFC
	switch version := field(0x4); {
	case field(0) != magic, version != version1 && version != version2, uint64(field(0xC)) != uint64(w.blockSize):
		return extUnsure("its journal is no such thing")
	case version == version2 && field(0x28)&sums != 0 &&
		extCRC32C(^uint32(0), journal[:sum], make([]byte, 4), journal[sum+4:]) != field(sum):
		return extUnsure("the checksum of its journal is wrong")
	case field(0x1C) != 0:
		return extUnsure("its journal is not empty")
	case field(0x20) != 0:
		return extUnsure("its journal says that there was an error")
	}
	return nil
}

// inode reads and verifies an inode.
func (w *extWalk) inode(number uint64) (extRecord, error) {
	if number == 0 || number > w.inodes {
		return nil, extUnsure("there is no inode %d", number)
	}
	g, err := w.descriptor((number - 1) / w.inodesPerGroup)
	if err != nil {
		return nil, err
	}
	inode, at, block := make(extRecord, w.inodeSize), (number-1)%w.inodesPerGroup*w.inodeSize, uint64(w.blockSize)
	if err := w.readBlock(inode, g.table.start+at/block, at%block); err != nil {
		return nil, err
	}
	if w.metadataSum && !w.inodeSumGood(number, inode) {
		return nil, extUnsure("the checksum of inode %d is wrong", number)
	}
	return inode, nil
}

// firstOf finds the first block of a regular file.
func (w *extWalk) firstOf(number uint64, inode extRecord) (uint64, error) {
	const kind, regular, extents, inline = 0xF000, 0x8000, 0x80000, 0x10000000
	flags, blocks := inode.u32(0x20), inode[0x28:0x28+60]
	switch {
	case inode.u16(0)&kind != regular || flags&inline != 0:
		return 0, extUnsure("inode %d is no file with blocks", number)
	case flags&extents != 0:
		return w.firstExtent(w.inodeSeed(number, inode), blocks)
	case blocks.u32(0) == 0:
		return 0, extUnsure("inode %d begins with a hole", number)
	}
	return uint64(blocks.u32(0)), nil
}

// firstExtent goes down the tree of extents in root to its first block.
func (w *extWalk) firstExtent(seed uint32, root extRecord) (uint64, error) {
	const deepest = 5
	node, depth := root, root.u16(6)
	if depth > deepest {
		return 0, extUnsure("its journal's extents are nested %d deep", depth)
	}
	for ; ; depth-- {
		if !extFirstGood(node, depth) {
			return 0, extUnsure("its journal's extents are not as they must be")
		}
		if depth == 0 {
			return extLeafStart(node)
		}
		child := uint64(node.u32(16)) | uint64(node.u16(20))<<32
		node = make(extRecord, w.blockSize)
		if err := w.readBlock(node, child, 0); err != nil {
			return 0, err
		}
		if sum := extNodeSum(node); w.metadataSum && (sum > len(node)-4 || extCRC32C(seed, node[:sum]) != node.u32(sum)) {
			return 0, extUnsure("the checksum of its journal's extents is wrong")
		}
	}
}

// extNodeSum is where a node of extents has its checksum: behind the room for
// entries.
func extNodeSum(node extRecord) int { return 12 + 12*int(node.u16(4)) }

// extFirstGood tells whether a node has an entry for a file's first block.
func extFirstGood(node extRecord, depth uint16) bool {
	const magic = 0xF30A
	entries, room := node.u16(2), node.u16(4)
	return node.u16(0) == magic && node.u16(6) == depth && entries > 0 && entries <= room &&
		extNodeSum(node) <= len(node) && node.u32(12) == 0
}

func extLeafStart(leaf extRecord) (uint64, error) {
	const longest = 32768 // more blocks: they are not written yet
	if n := leaf.u16(16); n == 0 || n > longest {
		return 0, extUnsure("its journal is not written")
	}
	return uint64(leaf.u32(20)) | uint64(leaf.u16(18))<<32, nil
}
