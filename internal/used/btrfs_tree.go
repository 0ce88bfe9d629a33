package used

import (
	"cmp"
	"sort"

	"ganeti-instance-image/internal/size"
)

// Trees, by the objectid of their root.
const (
	btrfsRootTree   = 1
	btrfsExtentTree = 2
	btrfsChunkTree  = 3
	btrfsGroupTree  = 11
)

// Places in struct btrfs_header, and what follows it: items in a leaf, pointers
// to other nodes elsewhere.
const (
	btrfsNodeFSID       = 0x20
	btrfsNodeBytenr     = 0x30
	btrfsNodeUUID       = 0x40
	btrfsNodeGeneration = 0x50
	btrfsNodeOwner      = 0x58
	btrfsNodeCount      = 0x60
	btrfsNodeLevel      = 0x64
	btrfsNodeHeader     = 0x65

	btrfsKeySize     = 17
	btrfsItemSize    = btrfsKeySize + 8
	btrfsPointerSize = btrfsKeySize + 16

	btrfsLevels = 8 // BTRFS_MAX_LEVEL
)

// btrfsLogical is an address in the file system's own space, which chunks map to
// the device.
type btrfsLogical size.Bytes

// btrfsChunkUUID is the same in all nodes; the chunk tree's root says it first.
type btrfsChunkUUID struct {
	id    [16]byte
	known bool
}

// btrfsKey orders the items of a tree (struct btrfs_disk_key).
type btrfsKey struct {
	objectid uint64
	kind     uint8
	offset   uint64
}

var btrfsLastKey = btrfsKey{^uint64(0), ^uint8(0), ^uint64(0)}

func (k btrfsKey) compare(other btrfsKey) int {
	return cmp.Or(cmp.Compare(k.objectid, other.objectid), cmp.Compare(k.kind, other.kind), cmp.Compare(k.offset, other.offset))
}

func (k btrfsKey) before(other btrfsKey) bool { return k.compare(other) < 0 }

func parseBtrfsKey(b btrfsBytes) btrfsKey { return btrfsKey{b.u64(0), b[8], b.u64(9)} }

// btrfsPointer says where a node is and what it must be.
type btrfsPointer struct {
	logical    btrfsLogical
	generation uint64
	level      uint8
}

// btrfsNode is a node whose header and layout were checked.
type btrfsNode btrfsBytes

func (n btrfsNode) count() int { return int(btrfsBytes(n).u32(btrfsNodeCount)) }
func (n btrfsNode) leaf() bool { return n[btrfsNodeLevel] == 0 }

// slot returns item or pointer i, as its kind of node has it.
func (n btrfsNode) slot(i int) btrfsBytes {
	if n.leaf() {
		return btrfsBytes(n[btrfsNodeHeader+i*btrfsItemSize:][:btrfsItemSize])
	}
	return btrfsBytes(n[btrfsNodeHeader+i*btrfsPointerSize:][:btrfsPointerSize])
}

func (n btrfsNode) key(i int) btrfsKey { return parseBtrfsKey(n.slot(i)) }

func (n btrfsNode) child(i int) btrfsPointer {
	slot := n.slot(i)
	return btrfsPointer{btrfsLogical(slot.size(btrfsKeySize)), slot.u64(btrfsKeySize + 8), n[btrfsNodeLevel] - 1}
}

// data returns where the data of item i begins and ends, counted from the header's end.
func (n btrfsNode) data(i int) (begin, end int64) {
	slot := n.slot(i)
	begin = int64(slot.u32(btrfsKeySize))
	return begin, begin + int64(slot.u32(btrfsKeySize+4))
}

func (n btrfsNode) item(i int) btrfsBytes {
	begin, end := n.data(i)
	return btrfsBytes(n[btrfsNodeHeader+begin : btrfsNodeHeader+end])
}

// btrfsTree reads one tree, with one node in memory for each level. Those of
// the last search stay, so that the next one reads only what is new.
type btrfsTree struct {
	fs     *btrfs
	chunks []btrfsChunk
	owner  uint64
	root   btrfsPointer
	path   [btrfsLevels]struct {
		at   btrfsPointer
		node btrfsNode // nil where there is none
	}
}

func (fs *btrfs) tree(owner uint64, root btrfsPointer) *btrfsTree {
	return &btrfsTree{fs: fs, chunks: fs.chunks, owner: owner, root: root}
}

// btrfsVisit gets an item; its data is good until the next one. It returns
// whether it wants more.
type btrfsVisit func(key btrfsKey, data btrfsBytes) (bool, error)

// btrfsBounds are what the parent says of a node's keys. That each node's keys
// lie between, and begin with that very key, makes the keys ascend through the
// whole tree. So no node can come twice, and a walk ends.
type btrfsBounds struct {
	first btrfsKey
	exact bool     // first is the node's first key; not known for a root
	below btrfsKey // the first key of the next node
}

// walk visits the items from the key on, in order.
func (t *btrfsTree) walk(from btrfsKey, visit btrfsVisit) error {
	if t.root.level >= btrfsLevels {
		return btrfsUnsure("tree %d has level %d", t.owner, t.root.level)
	}
	_, err := t.descend(t.root, btrfsBounds{below: btrfsLastKey}, from, visit)
	return err
}

// descend goes one level down each time, so it is at most btrfsLevels deep.
func (t *btrfsTree) descend(at btrfsPointer, bounds btrfsBounds, from btrfsKey, visit btrfsVisit) (bool, error) {
	node, err := t.load(at)
	if err != nil {
		return false, err
	}
	count := node.count()
	if bounds.exact && node.key(0) != bounds.first || !node.key(count-1).before(bounds.below) {
		return false, btrfsUnsure("the keys of the node at %d are not those its parent has", at.logical)
	}
	if node.leaf() {
		return visitBtrfsLeaf(node, from, visit)
	}
	// The child before the first one that begins behind the key may hold it.
	begin := sort.Search(count, func(i int) bool { return from.before(node.key(i)) })
	for i := max(begin-1, 0); i < count; i++ {
		inner := btrfsBounds{node.key(i), true, bounds.below}
		if i+1 < count {
			inner.below = node.key(i + 1)
		}
		if more, err := t.descend(node.child(i), inner, from, visit); err != nil || !more {
			return false, err
		}
	}
	return true, nil
}

func visitBtrfsLeaf(node btrfsNode, from btrfsKey, visit btrfsVisit) (bool, error) {
	count := node.count()
	begin := sort.Search(count, func(i int) bool { return !node.key(i).before(from) })
	for i := begin; i < count; i++ {
		if more, err := visit(node.key(i), node.item(i)); err != nil || !more {
			return false, err
		}
	}
	return true, nil
}

// load reads and checks a node, or its second copy where the first is bad.
func (t *btrfsTree) load(at btrfsPointer) (btrfsNode, error) {
	place := &t.path[at.level]
	if place.node != nil && place.at == at {
		return place.node, nil
	}
	node := place.node
	place.node = nil
	if node == nil {
		node = make(btrfsNode, t.fs.super.node)
	}
	chunk := findBtrfsChunk(t.chunks, at.logical, t.fs.super.node)
	if chunk == nil || chunk.kind&(btrfsMetadata|btrfsSystem) == 0 || size.Bytes(at.logical)%t.fs.super.sector != 0 {
		return nil, btrfsUnsure("the node at %d lies in no chunk of metadata, or across sectors", at.logical)
	}
	var fault error
	for i := range chunk.count {
		err := btrfsRead(t.fs.r, node, chunk.copies[i]+size.Bytes(at.logical-chunk.logical))
		if err == nil {
			err = t.verify(node, at)
		}
		if err == nil {
			place.at, place.node = at, node
			return node, nil
		}
		fault = cmp.Or(fault, err)
	}
	return nil, fault
}

// verify checks that the node is the one that was looked for, and whole.
func (t *btrfsTree) verify(node btrfsNode, at btrfsPointer) error {
	b, uuid := btrfsBytes(node), &t.fs.uuid
	wrong := ""
	switch {
	case !t.fs.super.check(b):
		wrong = "checksum"
	case b.u64(btrfsNodeBytenr) != uint64(at.logical):
		wrong = "address"
	case b.id(btrfsNodeFSID) != t.fs.super.metaFSID:
		wrong = "file system"
	case uuid.known && b.id(btrfsNodeUUID) != uuid.id:
		wrong = "chunk tree's UUID"
	case b.u64(btrfsNodeGeneration) != at.generation || at.generation > t.fs.super.generation:
		wrong = "generation"
	case b.u64(btrfsNodeOwner) != t.owner:
		wrong = "tree"
	case b[btrfsNodeLevel] != at.level:
		wrong = "level"
	case !node.whole():
		wrong = "layout"
	}
	if wrong != "" {
		return btrfsUnsure("the %s of the node at %d is wrong", wrong, at.logical)
	}
	if !uuid.known {
		*uuid = btrfsChunkUUID{b.id(btrfsNodeUUID), true}
	}
	return nil
}

// whole tells whether the keys ascend and, in a leaf, the data is packed from the
// end on, as the kernel writes it.
func (n btrfsNode) whole() bool {
	each, room := btrfsPointerSize, len(n)-btrfsNodeHeader
	if n.leaf() {
		each = btrfsItemSize
	}
	count := int64(btrfsBytes(n).u32(btrfsNodeCount))
	if count < 1 || count > int64(room/each) {
		return false
	}
	expected := int64(room)
	for i := range int(count) {
		if i > 0 && !n.key(i-1).before(n.key(i)) {
			return false
		}
		if !n.leaf() {
			continue
		}
		begin, end := n.data(i)
		if end != expected || begin < count*btrfsItemSize {
			return false
		}
		expected = begin
	}
	return true
}

// Root items (struct btrfs_root_item); what follows the level came later.
const (
	btrfsRootItem       = 132
	btrfsRootGeneration = 160
	btrfsRootBytenr     = 176
	btrfsRootLevel      = 238
	btrfsRootSize       = 239
)

// findRoot looks a tree up in the root tree.
func (fs *btrfs) findRoot(owner uint64) (btrfsPointer, error) {
	var root btrfsPointer
	want, found := btrfsKey{owner, btrfsRootItem, 0}, false
	err := fs.tree(btrfsRootTree, fs.super.root).walk(want, func(key btrfsKey, data btrfsBytes) (bool, error) {
		if found = key == want && len(data) >= btrfsRootSize; found {
			root = btrfsPointer{btrfsLogical(data.size(btrfsRootBytenr)), data.u64(btrfsRootGeneration), data[btrfsRootLevel]}
		}
		return false, nil
	})
	if err == nil && !found {
		err = btrfsUnsure("there is no tree %d", owner)
	}
	return root, err
}
