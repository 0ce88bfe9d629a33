package used

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"math/bits"

	"ganeti-instance-image/internal/size"
)

// The format is described in "XFS Algorithms & Data Structures" (the kernel's
// xfs-documentation repository); the names of fields in comments are its names.
// All numbers are big endian, but the checksums are little endian.

// XFS returns what an XFS file system of the versions 4 and 5 uses: all but the
// extents in each allocation group's btree of free space by block number. The
// superblock, the log and every such btree are checked before the first range
// is given, and the btrees once more while ranges are given.
//
// It is not sure of a file system with a log that is not clean, a log or data on
// another device, a realtime section, a directory tree of metadata, or a
// feature that came after Linux 6.12.
func XFS(r io.ReaderAt, length size.Bytes) (iter.Seq2[Range, error], error) {
	fs, err := xfsOpen(r, length)
	if err == nil {
		err = fs.log.clean()
	}
	if err == nil {
		err = fs.check()
	}
	if err != nil {
		return nil, xfsFailed(err)
	}
	return fs.used(length), nil
}

func xfsFailed(err error) error {
	return fmt.Errorf("cannot tell what the XFS file system uses: %w", err)
}

func xfsUnsure(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrUnsure)...)
}

var xfsEndian = binary.BigEndian

// xfs is a file system whose superblock is good.
type xfs struct {
	r             io.ReaderAt
	block, sector size.Bytes
	blocks        uint64 // sb_dblocks
	groups        uint32 // sb_agcount
	groupBlocks   uint32 // sb_agblocks: the last group may be shorter
	summed        bool   // version 5: metadata has checksums, an owner and an address
	counted       bool   // the superblock's count of free blocks is kept with "lazy" counters
	free          uint64 // sb_fdblocks
	uuid          [16]byte
	log           xfsLog
}

const (
	xfsMagic        = "XFSB"
	xfsGroupMin     = 16 * size.MiB // XFS_MIN_AG_BYTES
	xfsGroupMax     = size.TiB      // XFS_MAX_AG_BYTES
	xfsSuperSum     = 224           // sb_crc
	xfsHeaderSector = 4             // superblock, AGF, AGI and AGFL, at the start of each group
)

// The features that change nothing about how free space is told. A file system
// with NEEDSREPAIR (incompatible, 0x10) is not to be trusted, one with METADIR,
// ZONED or ZONE_GAPS (0x100 to 0x400) may have a realtime section.
const (
	xfsVersionBits  = 0xfdff                              // all but SHARED
	xfsMoreBits     = 0x8000                              // sb_features2 is in use
	xfsLogV2Bit     = 0x0400                              // the log may have records of version 2
	xfsLazyBit      = 0x0002                              // in sb_features2
	xfsFeatures2    = xfsLazyBit | 0x8 | 0x80 | 0x200     // attr2, projid32, ftype
	xfsFeatures2V5  = xfsFeatures2 | 0x100                // and crc
	xfsROCompat     = 0x1 | 0x2 | 0x4 | 0x8               // finobt, rmapbt, reflink, inobtcnt
	xfsIncompatMeta = 0x4                                 // the metadata's UUID is not sb_uuid
	xfsIncompat     = 0x1 | 0x2 | xfsIncompatMeta | 0x8 | // ftype, sparse inodes, bigtime
		0x20 | 0x40 | 0x80 // nrext64, exchange-range, parent pointers
)

// xfsOpen reads and checks the superblock.
func xfsOpen(r io.ReaderAt, length size.Bytes) (*xfs, error) {
	if length < xfsGroupMin {
		return nil, xfsUnsure("%v are too few for XFS", length)
	}
	head := make([]byte, 512)
	if err := xfsRead(r, 0, head); err != nil {
		return nil, err
	}
	if string(head[:4]) != xfsMagic {
		return nil, xfsUnsure("there is no superblock of XFS")
	}
	fs := &xfs{r: r}
	if err := fs.geometry(head, length); err != nil {
		return nil, err
	}
	if err := fs.version(head); err != nil {
		return nil, err
	}
	return fs, fs.findLog(head)
}

// geometry takes the sizes. What the kernel's xfs_validate_sb_common refuses is
// refused, as far as it has to do with where blocks are.
func (fs *xfs) geometry(b []byte, length size.Bytes) error {
	block, sector := xfsEndian.Uint32(b[4:]), uint32(xfsEndian.Uint16(b[102:]))
	if !xfsPower(block, 512, 65536, b[120]) || !xfsPower(sector, 512, 32768, b[121]) || sector > block {
		return xfsUnsure("XFS with blocks of %d and sectors of %d bytes", block, sector)
	}
	fs.block, fs.sector = size.Bytes(block), size.Bytes(sector)
	fs.blocks, fs.groupBlocks, fs.groups = xfsEndian.Uint64(b[8:]), xfsEndian.Uint32(b[84:]), xfsEndian.Uint32(b[88:])
	if fs.blocks > uint64(length/fs.block) {
		return xfsUnsure("XFS of %d blocks of %d bytes is larger than the %d bytes it is on", fs.blocks, block, length)
	}
	group := size.Bytes(fs.groupBlocks) * fs.block
	if group < xfsGroupMin || group > xfsGroupMax || int(b[124]) != bits.Len32(fs.groupBlocks-1) {
		return xfsUnsure("XFS with allocation groups of %d blocks", fs.groupBlocks)
	}
	if groups := (fs.blocks + uint64(fs.groupBlocks) - 1) / uint64(fs.groupBlocks); groups == 0 || groups != uint64(fs.groups) {
		return xfsUnsure("XFS with %d blocks in %d allocation groups", fs.blocks, fs.groups)
	}
	return nil
}

func xfsPower(n, low, high uint32, log uint8) bool {
	return n >= low && n <= high && bits.OnesCount32(n) == 1 && bits.TrailingZeros32(n) == int(log)
}

// version takes the version, its features and, of version 5, the checksum.
func (fs *xfs) version(b []byte) error {
	version := xfsEndian.Uint16(b[100:])
	features2 := uint32(0)
	if version&xfsMoreBits != 0 {
		// Some kernels kept sb_features2 where padding is (sb_bad_features2).
		features2 = xfsEndian.Uint32(b[200:]) | xfsEndian.Uint32(b[204:])
	}
	known := uint32(xfsFeatures2)
	switch version & 0xf {
	case 4:
		copy(fs.uuid[:], b[32:])
	case 5:
		known = xfsFeatures2V5
		if err := fs.version5(b); err != nil {
			return err
		}
	default:
		return xfsUnsure("XFS of version %d", version&0xf)
	}
	if version&^xfsVersionBits != 0 || features2&^known != 0 {
		return xfsUnsure("XFS with unknown features %#x, %#x", version, features2)
	}
	if b[126] != 0 {
		return xfsUnsure("XFS that mkfs did not finish")
	}
	if xfsEndian.Uint64(b[16:]) != 0 || xfsEndian.Uint64(b[24:]) != 0 {
		return xfsUnsure("XFS with a realtime section")
	}
	fs.counted, fs.free = fs.summed || features2&xfsLazyBit != 0, xfsEndian.Uint64(b[144:])
	return nil
}

func (fs *xfs) version5(b []byte) error {
	sector := make([]byte, fs.sector)
	if err := xfsRead(fs.r, 0, sector); err != nil {
		return err
	}
	if fs.block < 1024 { // XFS_MIN_CRC_BLOCKSIZE
		return xfsUnsure("XFS of version 5 with blocks of %d bytes", int64(fs.block))
	}
	if !xfsSummed(sector, xfsSuperSum) {
		return xfsUnsure("the superblock's checksum is wrong")
	}
	fs.summed = true
	roCompat, incompat, logIncompat := xfsEndian.Uint32(b[212:]), xfsEndian.Uint32(b[216:]), xfsEndian.Uint32(b[220:])
	// A clean unmount clears sb_features_log_incompat, so that a bit there says
	// that the log is in use. sb_features_compat does not matter by definition.
	if roCompat&^xfsROCompat != 0 || incompat&^xfsIncompat != 0 || logIncompat != 0 {
		return xfsUnsure("XFS that needs repair or has unknown features %#x, %#x, %#x", roCompat, incompat, logIncompat)
	}
	uuid := b[32:]
	if incompat&xfsIncompatMeta != 0 {
		uuid = b[248:]
	}
	copy(fs.uuid[:], uuid)
	return nil
}

// findLog takes where the log is: whole within one group.
func (fs *xfs) findLog(b []byte) error {
	start, blocks := xfsEndian.Uint64(b[48:]), xfsEndian.Uint32(b[96:])
	if start == 0 {
		return xfsUnsure("XFS with its log on another device")
	}
	shift := bits.Len32(fs.groupBlocks - 1)
	group, first := start>>shift, start&(1<<shift-1)
	if group >= uint64(fs.groups) || blocks == 0 || first+uint64(blocks) > uint64(fs.length(uint32(group))) {
		return xfsUnsure("XFS whose log of %d blocks is at %#x", blocks, start)
	}
	number := uint32(group)
	fs.log = xfsLog{
		r: fs.r, start: fs.start(number) + size.Bytes(first)*fs.block,
		blocks: int64(size.Bytes(blocks) * fs.block / xfsLogBlock),
		group:  number, extent: xfsExtent{uint32(first), uint32(first) + blocks},
		v2: fs.summed || xfsEndian.Uint16(b[100:])&xfsLogV2Bit != 0, summed: fs.summed,
	}
	copy(fs.log.uuid[:], b[32:])
	return nil
}

// start returns where a group begins.
func (fs *xfs) start(group uint32) size.Bytes {
	return size.Bytes(group) * size.Bytes(fs.groupBlocks) * fs.block
}

// length returns how many blocks a group must have.
func (fs *xfs) length(group uint32) uint32 {
	return uint32(min(uint64(fs.groupBlocks), fs.blocks-uint64(group)*uint64(fs.groupBlocks)))
}

// check walks all groups, and compares with the superblock's count of blocks
// that are free or held for the btrees of free space.
func (fs *xfs) check() error {
	sum := uint64(0)
	for number := range fs.groups {
		group, err := fs.group(number)
		if err != nil {
			return err
		}
		for _, err := range group.extents() {
			if err != nil {
				return err
			}
		}
		sum += uint64(group.free) + uint64(group.listed) + uint64(group.inTrees)
	}
	if fs.counted && sum != fs.free {
		return xfsUnsure("%d blocks are free, and the superblock says %d", sum, fs.free)
	}
	return nil
}

// used yields what is between the free extents, and the end.
func (fs *xfs) used(length size.Bytes) iter.Seq2[Range, error] {
	return func(yield func(Range, error) bool) {
		start := size.Bytes(0)
		for free, err := range fs.freeRanges() {
			if err != nil {
				yield(Range{}, xfsFailed(err))
				return
			}
			if free.Start > start && !yield(Range{start, free.Start - start}, nil) {
				return
			}
			start = free.Start + free.Length
		}
		if length > start {
			yield(Range{start, length - start}, nil)
		}
	}
}

func (fs *xfs) freeRanges() iter.Seq2[Range, error] {
	return func(yield func(Range, error) bool) {
		for number := range fs.groups {
			group, err := fs.group(number)
			if err != nil {
				yield(Range{}, err)
				return
			}
			for e, err := range group.extents() {
				free := Range{group.start + size.Bytes(e.start)*fs.block, size.Bytes(e.end-e.start) * fs.block}
				if !yield(free, err) || err != nil {
					return
				}
			}
		}
	}
}

func xfsRead(r io.ReaderAt, off size.Bytes, b []byte) error {
	if n, err := r.ReadAt(b, int64(off)); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("cannot read %d bytes at %d: %w", len(b), off, err)
	}
	return nil
}

var xfsTable = crc32.MakeTable(crc32.Castagnoli)

// xfsSummed says whether the CRC32C that stands in b at a place is that of b
// with zeros at this place.
func xfsSummed(b []byte, place int) bool {
	return binary.LittleEndian.Uint32(b[place:]) == xfsSum(b, place)
}

func xfsSum(b []byte, place int) uint32 {
	sum := crc32.Update(0, xfsTable, b[:place])
	sum = crc32.Update(sum, xfsTable, make([]byte, 4))
	return crc32.Update(sum, xfsTable, b[place+4:])
}
