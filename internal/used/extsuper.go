package used

import "ganeti-instance-image/internal/size"

// Bits of s_feature_compat, s_feature_incompat and s_feature_ro_compat.
const (
	extHasJournal   = 0x4
	extSparseSuper2 = 0x200

	extRecover     = 0x4
	extJournalDev  = 0x8
	extMetaBG      = 0x10
	ext64Bit       = 0x80
	extMMP         = 0x100
	extFlexBG      = 0x200
	extSumSeed     = 0x2000
	extSparseSuper = 0x1
	extGDTSum      = 0x10
	extBigAlloc    = 0x200
	extMetadataSum = 0x400
)

// What is known not to change what a bitmap means. Any other bit makes the file
// system one that is not understood, as for e2fsck(8).
const (
	// dir_prealloc, imagic_inodes, has_journal, ext_attr, resize_inode, dir_index,
	// sparse_super2, fast_commit, stable_inodes, orphan_file
	extKnownCompat = 0x1 | 0x2 | extHasJournal | 0x8 | 0x10 | 0x20 | extSparseSuper2 | 0x400 | 0x800 | 0x1000
	// filetype, meta_bg, extent, 64bit, mmp, flex_bg, ea_inode, metadata_csum_seed,
	// large_dir, inline_data, encrypt, casefold
	extKnownIncompat = 0x2 | extMetaBG | 0x40 | ext64Bit | extMMP | extFlexBG | 0x400 | extSumSeed |
		0x4000 | 0x8000 | 0x10000 | 0x20000
	// sparse_super, large_file, btree_dir, huge_file, uninit_bg, dir_nlink,
	// extra_isize, quota, bigalloc, metadata_csum, read-only, project,
	// shared_blocks, verity, orphan_present: orphans are used until they are gone
	extKnownROCompat = extSparseSuper | 0x2 | 0x4 | 0x8 | extGDTSum | 0x20 | 0x40 | 0x100 | extBigAlloc | extMetadataSum |
		0x1000 | 0x2000 | 0x4000 | 0x8000 | 0x10000
)

// extSuper is what the superblock says of the layout. Positions are in blocks.
type extSuper struct {
	raw                          extRecord
	compat, incompat, roCompat   uint32
	blockSize                    size.Bytes
	blocks                       uint64 // of the file system
	firstBlock                   uint64 // where group 0 begins
	perGroup                     uint64 // blocks in a group
	perCluster                   uint64 // blocks for which one bit stands
	groupCount                   uint64
	inodes, inodesPerGroup       uint64
	inodeSize                    uint64
	tableBlocks                  uint64 // blocks of a group's inode table
	descSize, descsPerBlock      uint64 // size in bytes
	tableEnd                     uint64 // descriptor blocks in one piece behind the superblock
	reserved                     uint64 // blocks for further ones
	sumSeed                      uint32
	metadataSum, descriptorSum16 bool
}

// extParseSuper refuses what is not known, not at rest, or not as it must be.
func extParseSuper(raw extRecord, length size.Bytes) (extSuper, error) {
	s := extSuper{raw: raw, compat: raw.u32(0x5C), incompat: raw.u32(0x60), roCompat: raw.u32(0x64)}
	for _, check := range []func() error{s.checkKind, s.checkSum, s.checkState, s.setBlocks, s.setInodes, s.setDescriptors} {
		if err := check(); err != nil {
			return s, err
		}
	}
	if limit := uint64(length / s.blockSize); s.blocks > limit {
		return s, extUnsure("it has %d blocks where there is place for %d", s.blocks, limit)
	}
	return s, nil
}

// checkKind finds out whether the rest of the superblock is known.
func (s *extSuper) checkKind() error {
	revision := s.raw.u32(0x4C)
	compat, incompat, roCompat := s.compat&^extKnownCompat, s.incompat&^extKnownIncompat, s.roCompat&^extKnownROCompat
	switch {
	case s.raw.u16(0x38) != 0xEF53:
		return extUnsure("there is no ext superblock")
	case revision > 1:
		return extUnsure("revision %d is not known", revision)
	case revision == 0 && s.compat|s.incompat|s.roCompat != 0:
		return extUnsure("revision 0 has no features")
	case s.incompat&extJournalDev != 0:
		return extUnsure("it is a journal for others")
	case s.incompat&extRecover != 0:
		return extUnsure("its journal is to be replayed")
	case compat|incompat|roCompat != 0:
		return extUnsure("features %#x, %#x, %#x (compatible, incompatible, read-only) are not known", compat, incompat, roCompat)
	case s.raw.u32(0x160)&0x70 != 0 && revision > 0: // EXT2_FLAGS_IS_SNAPSHOT and FIX_SNAPSHOT, FIX_EXCLUDE
		return extUnsure("it is or has a snapshot")
	}
	return nil
}

// checkSum verifies the superblock's checksum and sets what others need.
func (s *extSuper) checkSum() error {
	s.metadataSum = s.roCompat&extMetadataSum != 0
	s.descriptorSum16 = !s.metadataSum && s.roCompat&extGDTSum != 0
	if !s.metadataSum {
		if s.incompat&extSumSeed != 0 {
			return extUnsure("it has a seed for checksums, but none of these")
		}
		return nil
	}
	const sum = 0x3FC
	if kind := s.raw[0x175]; kind != 1 {
		return extUnsure("checksums of kind %d are not known", kind)
	}
	if extCRC32C(^uint32(0), s.raw[:sum]) != s.raw.u32(sum) {
		return extUnsure("the superblock's checksum is wrong")
	}
	s.sumSeed = extCRC32C(^uint32(0), s.uuid())
	if s.incompat&extSumSeed != 0 {
		s.sumSeed = s.raw.u32(0x270)
	}
	return nil
}

func (s *extSuper) uuid() []byte { return s.raw[0x68:0x78] }

// checkState refuses what was not unmounted, or has errors. The count of errors
// outlives a state that was set by hand; e2fsck clears both.
func (s *extSuper) checkState() error {
	const valid, errors = 1, 2
	state := s.raw.u16(0x3A)
	switch {
	case state&errors != 0, s.raw.u32(0x4C) > 0 && s.raw.u32(0x194) != 0:
		return extUnsure("it is marked as having errors")
	case state != valid:
		return extUnsure("it is not marked as clean (state %#x)", state)
	}
	return nil
}

// setBlocks reads the geometry of blocks, clusters and groups.
func (s *extSuper) setBlocks() error {
	logBlock, logCluster := s.raw.u32(0x18), s.raw.u32(0x1C)
	const most, mostCluster = 6, 19 // 64 KiB, 512 MiB
	bigAlloc := s.roCompat&extBigAlloc != 0
	if logBlock > most || logCluster < logBlock || logCluster > mostCluster || logCluster != logBlock && !bigAlloc {
		return extUnsure("its blocks are of 2^%d KiB, its clusters of 2^%d", logBlock, logCluster)
	}
	s.blockSize, s.perCluster = 1024<<logBlock, 1<<(logCluster-logBlock)
	s.blocks, s.firstBlock, s.perGroup = uint64(s.raw.u32(0x4)), uint64(s.raw.u32(0x14)), uint64(s.raw.u32(0x20))
	if s.incompat&ext64Bit != 0 {
		s.blocks = s.raw.wide(0x4, 0x150)
	}
	if wantFirst := logBlock == 0 && !bigAlloc; s.firstBlock != 0 && !wantFirst || wantFirst && s.firstBlock != 1 || s.blocks <= s.firstBlock {
		return extUnsure("its groups are from block %d to %d", s.firstBlock, s.blocks)
	}
	clusters := uint64(s.raw.u32(0x24))
	const least = 128 // mke2fs goes down to 248
	if clusters < least || clusters%8 != 0 || clusters > 8*uint64(s.blockSize) || s.perGroup != clusters*s.perCluster {
		return extUnsure("its groups are of %d blocks and %d clusters", s.perGroup, clusters)
	}
	s.groupCount = (s.blocks-s.firstBlock-1)/s.perGroup + 1
	const mostGroups = 1 << 22 // 32 TiB of blocks of 1 KiB, 512 TiB of 4 KiB: no more are looked through
	if s.groupCount > mostGroups {
		return extUnsure("its %d groups are too many", s.groupCount)
	}
	return nil
}

// setInodes reads the geometry of the inode tables.
func (s *extSuper) setInodes() error {
	s.inodes, s.inodesPerGroup, s.inodeSize = uint64(s.raw.u32(0x0)), uint64(s.raw.u32(0x28)), 128
	if s.raw.u32(0x4C) > 0 {
		s.inodeSize = uint64(s.raw.u16(0x58))
	}
	block := uint64(s.blockSize)
	if s.inodeSize < 128 || s.inodeSize > block || s.inodeSize&(s.inodeSize-1) != 0 {
		return extUnsure("its inodes are of %d bytes", s.inodeSize)
	}
	s.tableBlocks = (s.inodesPerGroup*s.inodeSize + block - 1) / block
	if s.inodesPerGroup == 0 || s.inodesPerGroup > 8*block || s.tableBlocks >= s.perGroup ||
		s.inodes%s.inodesPerGroup != 0 || s.inodes/s.inodesPerGroup != s.groupCount {
		return extUnsure("its %d groups have %d inodes each, but all %d", s.groupCount, s.inodesPerGroup, s.inodes)
	}
	return nil
}

// setDescriptors reads where the group descriptors are.
func (s *extSuper) setDescriptors() error {
	s.descSize, s.reserved = 32, uint64(s.raw.u16(0xCE))
	if s.incompat&ext64Bit != 0 {
		s.descSize = uint64(s.raw.u16(0xFE))
		if s.descSize < 64 || s.descSize > 1024 || s.descSize&(s.descSize-1) != 0 {
			return extUnsure("its group descriptors are of %d bytes", s.descSize)
		}
	}
	if s.raw.u32(0x4C) == 0 {
		s.reserved = 0
	}
	s.descsPerBlock = uint64(s.blockSize) / s.descSize
	s.tableEnd = (s.groupCount-1)/s.descsPerBlock + 1
	if s.incompat&extMetaBG != 0 {
		first := uint64(s.raw.u32(0x104))
		if first > s.tableEnd {
			return extUnsure("its first meta group is %d of %d", first, s.tableEnd)
		}
		s.tableEnd = first
	}
	if s.reserved > uint64(s.blockSize)/4 { // as many as a block of the resize inode names
		return extUnsure("it reserves %d blocks for group descriptors", s.reserved)
	}
	return nil
}

// hasSuper tells whether a group begins with a superblock.
func (s *extSuper) hasSuper(group uint64) bool {
	switch {
	case group == 0:
		return true
	case s.compat&extSparseSuper2 != 0:
		return group == uint64(s.raw.u32(0x24C)) || group == uint64(s.raw.u32(0x250))
	case group == 1, s.roCompat&extSparseSuper == 0:
		return true
	}
	return extPower(group, 3) || extPower(group, 5) || extPower(group, 7)
}

func extPower(n, base uint64) bool {
	for n > 1 && n%base == 0 {
		n /= base
	}
	return n == 1
}

// extSpan is a stretch of blocks.
type extSpan struct{ start, count uint64 }

func (a extSpan) end() uint64 { return a.start + a.count }

func (a extSpan) overlaps(b extSpan) bool { return max(a.start, b.start) < min(a.end(), b.end()) }

// group is the blocks of a group.
func (s *extSuper) group(group uint64) extSpan {
	start := s.firstBlock + group*s.perGroup
	return extSpan{start, min(s.perGroup, s.blocks-start)}
}

// base is the superblock and the group descriptors a group begins with, which
// may be none.
func (s *extSuper) base(group uint64) extSpan {
	base := extSpan{start: s.firstBlock + group*s.perGroup}
	if group == 0 { // with bigalloc, group 0 has the boot block too
		base.start = uint64(extBootBlock / s.blockSize)
	}
	super := s.hasSuper(group)
	if super {
		base.count = 1
	}
	switch place := group % s.descsPerBlock; {
	case s.incompat&extMetaBG == 0 || group/s.descsPerBlock < s.tableEnd:
		if super {
			base.count += s.tableEnd + s.reserved
		}
	case place == 0, place == 1, place == s.descsPerBlock-1:
		base.count++
	}
	return base
}

// descriptorBlock is where the i-th block of group descriptors is.
func (s *extSuper) descriptorBlock(i uint64) uint64 {
	if i < s.tableEnd {
		return s.base(0).start + 1 + i
	}
	group := i * s.descsPerBlock
	if s.hasSuper(group) {
		return s.base(group).start + 1
	}
	return s.base(group).start
}
