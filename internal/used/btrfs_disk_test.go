package used

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
	"io"
	"slices"

	"golang.org/x/crypto/blake2b"

	"ganeti-instance-image/internal/size"
)

// A file system built by hand, of 4 KiB sectors and nodes. In the order of the
// device its chunks lie otherwise than in logical space.
const (
	btrfsTestLength = 80 * size.MiB
	btrfsTestTotal  = 72 * size.MiB
	btrfsTestGen    = 9
)

// btrfsTestBlock is a node or a superblock, with all its places on the device.
type btrfsTestBlock struct {
	data   []byte
	copies []size.Bytes
}

// btrfsTestDisk is a device that is zero but for its blocks. The first is the
// superblock, the second its mirror.
type btrfsTestDisk struct {
	blocks   []btrfsTestBlock
	csumType uint16
	bad      map[size.Bytes]bool // copies that are damaged
}

func (d *btrfsTestDisk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(btrfsTestLength) {
		return 0, io.EOF
	}
	clear(p)
	for _, b := range d.blocks {
		for _, at := range b.copies {
			from, to := max(off, int64(at)), min(off+int64(len(p)), int64(at)+int64(len(b.data)))
			if from < to {
				copy(p[from-off:to-off], b.data[from-int64(at):])
				if d.bad[at] {
					p[from-off] ^= 1
				}
			}
		}
	}
	return len(p), nil
}

// seal writes the right checksums.
func (d *btrfsTestDisk) seal() {
	for _, b := range d.blocks {
		clear(b.data[:32])
		switch d.csumType {
		case 0:
			binary.LittleEndian.PutUint32(b.data, crc32.Checksum(b.data[32:], crc32.MakeTable(crc32.Castagnoli)))
		case 2:
			sum := sha256.Sum256(b.data[32:])
			copy(b.data, sum[:])
		case 3:
			sum := blake2b.Sum256(b.data[32:])
			copy(b.data, sum[:])
		}
	}
}

func (d *btrfsTestDisk) put64(block, at int, v uint64) {
	binary.LittleEndian.PutUint64(d.blocks[block].data[at:], v)
}

func (d *btrfsTestDisk) add64(block, at int, v uint64) {
	d.put64(block, at, btrfsBytes(d.blocks[block].data).u64(at)+v)
}

// What the blocks of the disk by hand are.
const (
	btrfsBlockSuper = iota
	btrfsBlockMirror
	btrfsBlockChunks
	btrfsBlockRoots
	btrfsBlockExtents // level 1
	btrfsBlockLeaf1
	btrfsBlockLeaf2
	btrfsBlockGroups // a leaf, also where its tree is not used
)

type btrfsTestItem struct {
	key  btrfsKey
	data []byte
}

// btrfsPack packs numbers as they lie on the disk.
func btrfsPack(values ...any) []byte {
	var b bytes.Buffer
	for _, v := range values {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

var (
	btrfsTestFSID   = [16]byte{1, 2, 3}
	btrfsTestDevice = [16]byte{4, 5, 6}
	btrfsTestUUID   = [16]byte{7, 8, 9}
)

func btrfsTestHeader(at btrfsLogical, owner uint64, level uint8, count int) []byte {
	return btrfsPack([32]byte{}, btrfsTestFSID, uint64(at), uint64(1)|1<<56, btrfsTestUUID,
		uint64(btrfsTestGen), owner, uint32(count), level)
}

func btrfsTestLeaf(at btrfsLogical, owner uint64, items ...btrfsTestItem) []byte {
	b := make([]byte, 4096)
	head, end := btrfsTestHeader(at, owner, 0, len(items)), len(b)-btrfsNodeHeader
	for _, item := range items {
		end -= len(item.data)
		copy(b[btrfsNodeHeader+end:], item.data)
		head = append(head, btrfsPack(item.key.objectid, item.key.kind, item.key.offset, uint32(end), uint32(len(item.data)))...)
	}
	copy(b, head)
	return b
}

// btrfsTestNode is a node of level 1 over leaves.
func btrfsTestNode(at btrfsLogical, owner uint64, leaves ...[]byte) []byte {
	b := btrfsTestHeader(at, owner, 1, len(leaves))
	for _, leaf := range leaves {
		key := btrfsNode(leaf).key(0)
		b = append(b, btrfsPack(key.objectid, key.kind, key.offset, btrfsBytes(leaf).u64(btrfsNodeBytenr), uint64(btrfsTestGen))...)
	}
	return append(b, make([]byte, 4096-len(b))...)
}

func btrfsTestChunk(c btrfsChunk) btrfsTestItem {
	b := btrfsPack(uint64(c.length), uint64(2), uint64(btrfsStripeLen), c.kind, uint32(4096), uint32(4096), uint32(4096), uint16(c.count), uint16(1))
	for _, at := range c.copies[:c.count] {
		b = append(b, btrfsPack(uint64(1), uint64(at), btrfsTestDevice)...)
	}
	return btrfsTestItem{btrfsKey{btrfsChunkObjectid, btrfsChunkKind, uint64(c.logical)}, b}
}

const btrfsMiB = size.MiB

var btrfsTestChunks = []btrfsChunk{
	{logical: 1 << 20, length: btrfsMiB, kind: btrfsSystem | btrfsDup, count: 2, copies: [2]size.Bytes{1 * btrfsMiB, 2 * btrfsMiB}},
	{logical: 4 << 20, length: btrfsMiB, kind: btrfsMetadata | btrfsDup, count: 2, copies: [2]size.Bytes{5 * btrfsMiB, 3 * btrfsMiB}},
	{logical: 6 << 20, length: 4 * btrfsMiB, kind: btrfsData, count: 1, copies: [2]size.Bytes{62 * btrfsMiB}}, // over a mirror
	{logical: 16 << 20, length: 8 * btrfsMiB, kind: btrfsData, count: 1, copies: [2]size.Bytes{8 * btrfsMiB}},
}

func btrfsTestExtent(at btrfsLogical, length size.Bytes, flags uint64) btrfsTestItem {
	return btrfsTestItem{btrfsKey{uint64(at), btrfsExtentKind, uint64(length)}, btrfsPack(uint64(1), uint64(3), flags)}
}

func btrfsTestTreeBlock(at btrfsLogical) btrfsTestItem {
	return btrfsTestItem{btrfsKey{uint64(at), btrfsMetadataKind, 0}, btrfsPack(uint64(1), uint64(3), uint64(btrfsIsTree), uint8(btrfsTreeBlockRef), uint64(5))}
}

func btrfsTestGroup(chunk int, used size.Bytes) btrfsTestItem {
	c := btrfsTestChunks[chunk]
	return btrfsTestItem{btrfsKey{uint64(c.logical), btrfsGroupKind, uint64(c.length)}, btrfsPack(uint64(used), uint64(btrfsChunkObjectid), c.kind)}
}

// Logical addresses of the nodes.
const (
	btrfsAtChunks  = 1 << 20
	btrfsAtRoots   = 4<<20 + 1<<12
	btrfsAtExtents = 4<<20 + 2<<12
	btrfsAtLeaf1   = 4<<20 + 3<<12
	btrfsAtLeaf2   = 4<<20 + 4<<12
	btrfsAtGroups  = 4<<20 + 5<<12
)

func btrfsTestRoot(owner uint64, at btrfsLogical, level uint8) btrfsTestItem {
	b := make([]byte, 439)
	copy(b[btrfsRootGeneration:], btrfsPack(uint64(btrfsTestGen), uint64(0), uint64(at)))
	b[btrfsRootLevel] = level
	return btrfsTestItem{btrfsKey{owner, btrfsRootItem, 0}, b}
}

// newBtrfsTestDisk builds the file system; block groups are in the extent tree
// or in one of their own.
func newBtrfsTestDisk(csumType uint16, groupTree bool) *btrfsTestDisk {
	groups := []btrfsTestItem{
		btrfsTestGroup(0, 4096), btrfsTestGroup(1, 5*4096), btrfsTestGroup(2, 12*size.KiB), btrfsTestGroup(3, btrfsMiB+8*size.KiB),
	}
	first := []btrfsTestItem{
		btrfsTestTreeBlock(btrfsAtChunks), groups[0],
		groups[1], btrfsTestTreeBlock(btrfsAtRoots), btrfsTestTreeBlock(btrfsAtExtents),
		btrfsTestTreeBlock(btrfsAtLeaf1), btrfsTestTreeBlock(btrfsAtLeaf2), btrfsTestExtent(btrfsAtGroups, 4096, btrfsIsTree),
	}
	second := []btrfsTestItem{
		groups[2], btrfsTestExtent(8<<20-8192, 8192, btrfsIsData), btrfsTestExtent(9<<20, 4096, btrfsIsData),
		btrfsTestExtent(16<<20, btrfsMiB, btrfsIsData), groups[3], btrfsTestExtent(17<<20, 8192, btrfsIsData),
		{btrfsKey{17 << 20, btrfsSharedDataRef, 77}, make([]byte, 4)},
	}
	roots := []btrfsTestItem{btrfsTestRoot(btrfsExtentTree, btrfsAtExtents, 1), btrfsTestRoot(5, 1<<40, 0)}
	if groupTree {
		isGroup := func(i btrfsTestItem) bool { return i.key.kind == btrfsGroupKind }
		first, second = slices.DeleteFunc(first, isGroup), slices.DeleteFunc(second, isGroup)
		roots = append(roots, btrfsTestRoot(btrfsGroupTree, btrfsAtGroups, 0))
	}
	var chunks []btrfsTestItem
	var used size.Bytes
	for _, c := range btrfsTestChunks {
		chunks, used = append(chunks, btrfsTestChunk(c)), used+c.length*size.Bytes(c.count)
	}
	device := btrfsPack(uint64(1), uint64(btrfsTestTotal), uint64(used), uint32(4096), uint32(4096), uint32(4096), [30]byte{}, btrfsTestDevice, btrfsTestFSID)
	leaf1, leaf2 := btrfsTestLeaf(btrfsAtLeaf1, btrfsExtentTree, first...), btrfsTestLeaf(btrfsAtLeaf2, btrfsExtentTree, second...)
	d := &btrfsTestDisk{csumType: csumType}
	for i, at := range btrfsSupers[:2] {
		d.blocks = append(d.blocks, btrfsTestBlock{btrfsTestSuper(at, csumType, groupTree, device, chunks[0], btrfsMiB+44*size.KiB), btrfsSupers[i : i+1]})
	}
	place := func(data []byte) {
		at := btrfsBytes(data).u64(btrfsNodeBytenr)
		c := btrfsTestChunks[min(at>>22, 1)]
		moved := size.Bytes(at) - size.Bytes(c.logical)
		d.blocks = append(d.blocks, btrfsTestBlock{data, []size.Bytes{c.copies[0] + moved, c.copies[1] + moved}})
	}
	place(btrfsTestLeaf(btrfsAtChunks, btrfsChunkTree, append([]btrfsTestItem{{btrfsKey{btrfsDeviceObjectid, btrfsDeviceKind, 1}, device}}, chunks...)...))
	place(btrfsTestLeaf(btrfsAtRoots, btrfsRootTree, roots...))
	place(btrfsTestNode(btrfsAtExtents, btrfsExtentTree, leaf1, leaf2))
	place(leaf1)
	place(leaf2)
	place(btrfsTestLeaf(btrfsAtGroups, btrfsGroupTree, groups...))
	d.seal()
	return d
}

func btrfsTestSuper(at size.Bytes, csumType uint16, groupTree bool, device []byte, system btrfsTestItem, used size.Bytes) []byte {
	b := make([]byte, btrfsSuperSize)
	ro, array := uint64(3), append(btrfsPack(system.key.objectid, system.key.kind, system.key.offset), system.data...)
	if groupTree {
		ro |= btrfsGroupTreeFlag
	}
	copy(b[btrfsSuperFSID:], btrfsPack(btrfsTestFSID, uint64(at), uint64(btrfsWritten), []byte(btrfsMagic), uint64(btrfsTestGen),
		uint64(btrfsAtRoots), uint64(btrfsAtChunks), uint64(0), uint64(0), uint64(btrfsTestTotal), uint64(used), uint64(6), uint64(1),
		uint32(4096), uint32(4096), uint32(4096), uint32(4096), uint32(len(array)), uint64(btrfsTestGen), uint64(0), ro, uint64(0x341), csumType))
	copy(b[btrfsSuperDevice:], device)
	copy(b[btrfsSuperArray:], array)
	return b
}
