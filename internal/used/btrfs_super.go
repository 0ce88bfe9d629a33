package used

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"

	"golang.org/x/crypto/blake2b"

	"ganeti-instance-image/internal/size"
)

// Places in struct btrfs_super_block.
const (
	btrfsSuperSize       = 4096
	btrfsSuperFSID       = 0x20
	btrfsSuperBytenr     = 0x30
	btrfsSuperFlags      = 0x38
	btrfsSuperMagic      = 0x40
	btrfsSuperGeneration = 0x48
	btrfsSuperRoot       = 0x50
	btrfsSuperChunkRoot  = 0x58
	btrfsSuperLogRoot    = 0x60
	btrfsSuperTotal      = 0x70
	btrfsSuperUsed       = 0x78
	btrfsSuperDevices    = 0x88
	btrfsSuperSector     = 0x90
	btrfsSuperNode       = 0x94
	btrfsSuperLeaf       = 0x98
	btrfsSuperArraySize  = 0xa0
	btrfsSuperChunkGen   = 0xa4
	btrfsSuperCompat     = 0xac
	btrfsSuperCompatRO   = 0xb4
	btrfsSuperIncompat   = 0xbc
	btrfsSuperCsumType   = 0xc4
	btrfsSuperRootLevel  = 0xc6
	btrfsSuperChunkLevel = 0xc7
	btrfsSuperDevice     = 0xc9
	btrfsSuperMetaUUID   = 0x23b
	btrfsSuperArray      = 0x32b
	btrfsSuperArrayMax   = 2048

	btrfsMagic   = "_BHRfS_M"
	btrfsWritten = 1 // the only flag of a superblock that is not in the middle of something
)

// Feature flags. RAID56 and RAID1C34 stay set when the last chunk of the kind is
// gone, and say nothing of this device: the chunks do.
const (
	btrfsMixedBackref   = 1 << 0 // without it references are of the form before Linux 2.6.31
	btrfsSkinnyMetadata = 1 << 8
	btrfsMetadataUUID   = 1 << 10
	btrfsIncompat       = btrfsMixedBackref | 1<<1 | // default subvolume
		1<<2 | // mixed block groups
		1<<3 | 1<<4 | // LZO, zstd
		1<<5 | 1<<6 | // big metadata, extended inode references
		1<<7 | btrfsSkinnyMetadata | 1<<9 | // RAID56, -, no holes
		btrfsMetadataUUID | 1<<11 | // RAID1C34
		1<<16 // simple quotas

	btrfsGroupTreeFlag = 1 << 3
	btrfsCompatRO      = 1<<0 | 1<<1 | // free space tree, and it is valid
		1<<2 | // verity
		btrfsGroupTreeFlag
)

// btrfsSuper is what is needed of the superblock.
type btrfsSuper struct {
	fsid       [16]byte // of the superblock itself
	metaFSID   [16]byte // in the header of every node
	generation uint64
	root       btrfsPointer
	chunkRoot  btrfsPointer
	total      size.Bytes // of the device
	used       size.Bytes // in logical space
	sector     size.Bytes
	node       size.Bytes
	skinny     bool
	groupTree  bool // block groups are in a tree of their own
	check      btrfsChecksum
	device     btrfsDevice
	array      btrfsBytes // the chunks that the chunk tree lies in
}

// btrfsDevice is what struct btrfs_dev_item says.
type btrfsDevice struct {
	id          uint64
	total, used size.Bytes
	uuid, fsid  [16]byte
}

const btrfsDeviceSize = 98

func parseBtrfsDevice(b btrfsBytes) btrfsDevice {
	return btrfsDevice{id: b.u64(0), total: b.size(8), used: b.size(16), uuid: b.id(66), fsid: b.id(82)}
}

// readBtrfsSuper reads the first superblock, which is the one the kernel mounts by.
func readBtrfsSuper(r io.ReaderAt, length size.Bytes) (*btrfsSuper, error) {
	first := btrfsSupers[0]
	if length < btrfsHead {
		return nil, btrfsUnsure("there is no room for a btrfs in %d bytes", int64(length))
	}
	b := make(btrfsBytes, btrfsSuperSize)
	if err := btrfsRead(r, b, first); err != nil {
		return nil, err
	}
	check, err := checkBtrfsSuper(b, first)
	if err != nil {
		return nil, err
	}
	if err := oddBtrfsSuper(b); err != nil {
		return nil, err
	}
	s := parseBtrfsSuper(b)
	s.check = check
	if err := s.odd(length); err != nil {
		return nil, err
	}
	return s, s.compareMirrors(r)
}

// checkBtrfsSuper checks what says that b is the superblock of the place at.
func checkBtrfsSuper(b btrfsBytes, at size.Bytes) (btrfsChecksum, error) {
	if string(b[btrfsSuperMagic:btrfsSuperMagic+len(btrfsMagic)]) != btrfsMagic {
		return nil, btrfsUnsure("there is no superblock at %d", int64(at))
	}
	if b.size(btrfsSuperBytenr) != at {
		return nil, btrfsUnsure("the superblock at %d belongs to another place", int64(at))
	}
	check := btrfsChecksumOf(b.u16(btrfsSuperCsumType))
	if check == nil {
		return nil, btrfsUnsure("checksums of type %d cannot be verified", b.u16(btrfsSuperCsumType))
	}
	if !check(b) {
		return nil, btrfsUnsure("the checksum of the superblock at %d is wrong", int64(at))
	}
	return check, nil
}

// oddBtrfsSuper refuses what this package does not know.
func oddBtrfsSuper(b btrfsBytes) error {
	compat, ro, incompat := b.u64(btrfsSuperCompat), b.u64(btrfsSuperCompatRO), b.u64(btrfsSuperIncompat)
	switch {
	case b.u64(btrfsSuperFlags) != btrfsWritten:
		return btrfsUnsure("the superblock has the flags %#x: a seed, a dump, an error or a change under way", b.u64(btrfsSuperFlags))
	case compat != 0 || ro&^btrfsCompatRO != 0 || incompat&^btrfsIncompat != 0:
		return btrfsUnsure("features are not known: compat %#x, read-only compat %#x, incompat %#x",
			compat, ro&^btrfsCompatRO, incompat&^btrfsIncompat)
	case incompat&btrfsMixedBackref == 0:
		return btrfsUnsure("references to extents are of the oldest form")
	case b.u64(btrfsSuperDevices) != 1:
		return btrfsUnsure("it is on %d devices", b.u64(btrfsSuperDevices))
	case b.u64(btrfsSuperLogRoot) != 0:
		return btrfsUnsure("its log needs to be replayed")
	case b.u32(btrfsSuperLeaf) != b.u32(btrfsSuperNode):
		return btrfsUnsure("leaves have %d bytes and nodes %d", b.u32(btrfsSuperLeaf), b.u32(btrfsSuperNode))
	case b.u32(btrfsSuperArraySize) > btrfsSuperArrayMax:
		return btrfsUnsure("the superblock holds %d bytes of chunks", b.u32(btrfsSuperArraySize))
	}
	return nil
}

func parseBtrfsSuper(b btrfsBytes) *btrfsSuper {
	s := &btrfsSuper{
		fsid:       b.id(btrfsSuperFSID),
		metaFSID:   b.id(btrfsSuperFSID),
		generation: b.u64(btrfsSuperGeneration),
		root:       btrfsPointer{btrfsLogical(b.size(btrfsSuperRoot)), b.u64(btrfsSuperGeneration), b[btrfsSuperRootLevel]},
		chunkRoot:  btrfsPointer{btrfsLogical(b.size(btrfsSuperChunkRoot)), b.u64(btrfsSuperChunkGen), b[btrfsSuperChunkLevel]},
		total:      b.size(btrfsSuperTotal),
		used:       b.size(btrfsSuperUsed),
		sector:     size.Bytes(b.u32(btrfsSuperSector)),
		node:       size.Bytes(b.u32(btrfsSuperNode)),
		skinny:     b.u64(btrfsSuperIncompat)&btrfsSkinnyMetadata != 0,
		groupTree:  b.u64(btrfsSuperCompatRO)&btrfsGroupTreeFlag != 0,
		device:     parseBtrfsDevice(b[btrfsSuperDevice:]),
		array:      b[btrfsSuperArray:][:b.u32(btrfsSuperArraySize)],
	}
	if b.u64(btrfsSuperIncompat)&btrfsMetadataUUID != 0 {
		s.metaFSID = b.id(btrfsSuperMetaUUID)
	}
	return s
}

// odd refuses what does not agree with itself or with the partition's length.
func (s *btrfsSuper) odd(length size.Bytes) error {
	powers := bits.OnesCount64(uint64(s.sector)) == 1 && bits.OnesCount64(uint64(s.node)) == 1
	switch {
	case !powers || s.sector < 4*size.KiB || s.node < s.sector || s.node > 64*size.KiB:
		return btrfsUnsure("sectors have %d bytes and nodes %d", int64(s.sector), int64(s.node))
	case s.total > length || s.total >= btrfsLimit:
		return btrfsUnsure("it has %d bytes, its partition %d", int64(s.total), int64(length))
	case s.device.total != s.total || s.device.id == 0:
		return btrfsUnsure("device %d has %d bytes of %d", s.device.id, int64(s.device.total), int64(s.total))
	case s.device.fsid != s.metaFSID:
		return btrfsUnsure("the device belongs to another file system")
	}
	return nil
}

// compareMirrors refuses a file system one of whose other superblocks is newer:
// that is no state in which a mount or a crash leaves it for long.
func (s *btrfsSuper) compareMirrors(r io.ReaderAt) error {
	b := make(btrfsBytes, btrfsSuperSize)
	for _, at := range btrfsSupers[1:] {
		if at+btrfsSuperSize > s.total {
			continue
		}
		if err := btrfsRead(r, b, at); err != nil {
			return err
		}
		// One that is damaged or foreign is older than the last growth, or
		// damaged: the kernel does not look at it.
		_, err := checkBtrfsSuper(b, at)
		if err == nil && b.id(btrfsSuperFSID) == s.fsid && b.u64(btrfsSuperGeneration) > s.generation {
			return btrfsUnsure("the superblock at %d is newer than the first", int64(at))
		}
	}
	return nil
}

func btrfsRead(r io.ReaderAt, b []byte, at size.Bytes) error {
	if n, err := r.ReadAt(b, int64(at)); n < len(b) {
		return fmt.Errorf("cannot read %d bytes at %d: %w", len(b), int64(at), err)
	}
	return nil
}

// btrfsChecksum tells whether the checksum that a superblock or a node begins
// with is that of the rest.
type btrfsChecksum func(b []byte) bool

const btrfsCsumField = 32 // BTRFS_CSUM_SIZE: what is kept free for a checksum

var btrfsCastagnoli = crc32.MakeTable(crc32.Castagnoli)

// btrfsChecksumOf returns nil for a type that is not known: 1, xxhash64, has no
// library here.
func btrfsChecksumOf(csumType uint16) btrfsChecksum {
	switch csumType {
	case 0:
		return func(b []byte) bool {
			return btrfsBytes(b).u32(0) == crc32.Checksum(b[btrfsCsumField:], btrfsCastagnoli)
		}
	case 2:
		return func(b []byte) bool {
			sum := sha256.Sum256(b[btrfsCsumField:])
			return bytes.Equal(b[:len(sum)], sum[:])
		}
	case 3:
		return func(b []byte) bool {
			sum := blake2b.Sum256(b[btrfsCsumField:])
			return bytes.Equal(b[:len(sum)], sum[:])
		}
	}
	return nil
}
