package used

import "ganeti-instance-image/internal/size"

// What the extent tree holds.
const (
	btrfsExtentKind     = 168 // BTRFS_EXTENT_ITEM_KEY: offset is the length
	btrfsMetadataKind   = 169 // BTRFS_METADATA_ITEM_KEY: offset is the level
	btrfsGroupKind      = 192 // BTRFS_BLOCK_GROUP_ITEM_KEY: offset is the length
	btrfsOwnerRef       = 172
	btrfsTreeBlockRef   = 176
	btrfsDataRef        = 178
	btrfsSharedBlockRef = 182
	btrfsSharedDataRef  = 184

	btrfsExtentSize = 24 // struct btrfs_extent_item, before the references in it
	btrfsGroupSize  = 24 // struct btrfs_block_group_item

	// Flags of btrfs_extent_item.
	btrfsIsData = 1 << 0
	btrfsIsTree = 1 << 1
)

// btrfsExtent is a range of logical space: one that is allocated, or a block group.
type btrfsExtent struct {
	start  btrfsLogical
	length size.Bytes
	chunk  *btrfsChunk
	group  bool
	used   size.Bytes // of the block group
}

func (e *btrfsExtent) end() btrfsLogical { return e.start + btrfsLogical(e.length) }

// walkExtents visits the extents, and block groups, that begin from from on and
// before to. The extents ascend, do not overlap, and each lies in one chunk.
func (fs *btrfs) walkExtents(tree *btrfsTree, from, to btrfsLogical, visit func(btrfsExtent) bool) error {
	var last btrfsExtent
	return tree.walk(btrfsKey{objectid: uint64(from)}, func(key btrfsKey, data btrfsBytes) (bool, error) {
		if key.objectid >= uint64(to) && to < btrfsLimit {
			return false, nil
		}
		switch key.kind {
		case btrfsOwnerRef, btrfsTreeBlockRef, btrfsDataRef, btrfsSharedBlockRef, btrfsSharedDataRef:
			if last.length == 0 || key.objectid != uint64(last.start) {
				return false, btrfsUnsure("there is a reference to an extent at %d, but no extent", key.objectid)
			}
			return true, nil
		case btrfsGroupKind:
			group, err := fs.parseGroup(key, data)
			return err == nil && visit(group), err
		}
		e, err := fs.parseExtent(key, data)
		if err == nil && e.start < last.end() {
			err = btrfsUnsure("the extents at %d and %d overlap", last.start, e.start)
		}
		last = e
		return err == nil && visit(e), err
	})
}

func (fs *btrfs) parseExtent(key btrfsKey, data btrfsBytes) (btrfsExtent, error) {
	s := fs.super
	e := btrfsExtent{start: btrfsLogical(min(key.objectid, btrfsLimit)), length: size.Bytes(min(key.offset, btrfsLimit))}
	if key.kind == btrfsMetadataKind && s.skinny && key.offset < btrfsLevels {
		e.length = s.node
	} else if key.kind != btrfsExtentKind {
		return e, btrfsUnsure("the extent tree has an item %v", key)
	}
	if e.length == 0 || size.Bytes(e.start)%s.sector != 0 || e.length%s.sector != 0 || len(data) < btrfsExtentSize {
		return e, btrfsUnsure("the extent at %d has %d bytes, its item %d", e.start, int64(e.length), len(data))
	}
	if data.u64(8) > s.generation {
		return e, btrfsUnsure("the extent at %d is of the future", e.start)
	}
	if e.chunk = findBtrfsChunk(fs.chunks, e.start, e.length); e.chunk == nil {
		return e, btrfsUnsure("the extent at %d lies in no chunk", e.start)
	}
	return e, fs.oddExtent(&e, key, data.u64(16))
}

// oddExtent checks that an extent is in the kind of chunk it belongs to.
func (fs *btrfs) oddExtent(e *btrfsExtent, key btrfsKey, flags uint64) error {
	odd := true
	switch flags & (btrfsIsData | btrfsIsTree) {
	case btrfsIsData:
		odd = key.kind != btrfsExtentKind || e.chunk.kind&btrfsData == 0
	case btrfsIsTree:
		odd = e.length != fs.super.node || e.chunk.kind&(btrfsMetadata|btrfsSystem) == 0
	}
	if odd {
		return btrfsUnsure("the extent at %d has the flags %#x in a chunk of %#x", e.start, flags, e.chunk.kind)
	}
	return nil
}

// parseGroup checks that a block group is that of a chunk.
func (fs *btrfs) parseGroup(key btrfsKey, data btrfsBytes) (btrfsExtent, error) {
	g := btrfsExtent{start: btrfsLogical(min(key.objectid, btrfsLimit)), length: size.Bytes(min(key.offset, btrfsLimit)), group: true}
	g.chunk = findBtrfsChunk(fs.chunks, g.start, g.length)
	if key.kind != btrfsGroupKind || len(data) != btrfsGroupSize || g.chunk == nil || g.chunk.logical != g.start || g.chunk.length != g.length {
		return g, btrfsUnsure("the item %v is no block group, or has no chunk", key)
	}
	if data.u64(8) != btrfsChunkObjectid || data.u64(16) != g.chunk.kind {
		return g, btrfsUnsure("the block group at %d is not as its chunk", g.start)
	}
	g.used = data.size(0)
	return g, nil
}

// verifyExtents reads all block groups and extents and compares their sums.
func (fs *btrfs) verifyExtents() error {
	if fs.super.groupTree {
		if err := fs.readGroups(); err != nil {
			return err
		}
	}
	inGroupTree := false
	err := fs.walkExtents(fs.tree(btrfsExtentTree, fs.extents), 0, btrfsLimit, func(e btrfsExtent) bool {
		if !e.group {
			e.chunk.sum += e.length
			return true
		}
		inGroupTree = fs.super.groupTree
		e.chunk.group, e.chunk.used = true, e.used
		return !inGroupTree
	})
	if err == nil && inGroupTree {
		err = btrfsUnsure("block groups are in two trees")
	}
	if err != nil {
		return err
	}
	return fs.compareSums()
}

// readGroups reads the block groups where they have a tree of their own.
func (fs *btrfs) readGroups() error {
	root, err := fs.findRoot(btrfsGroupTree)
	if err != nil {
		return err
	}
	return fs.tree(btrfsGroupTree, root).walk(btrfsKey{}, func(key btrfsKey, data btrfsBytes) (bool, error) {
		g, err := fs.parseGroup(key, data)
		if err == nil {
			g.chunk.group, g.chunk.used = true, g.used
		}
		return true, err
	})
}

func (fs *btrfs) compareSums() error {
	var sum size.Bytes
	for i := range fs.chunks {
		c := &fs.chunks[i]
		if !c.group {
			return btrfsUnsure("the chunk at %d has no block group", c.logical)
		}
		if c.sum != c.used {
			return btrfsUnsure("extents at %d take %d bytes, their block group says %d", c.logical, int64(c.sum), int64(c.used))
		}
		sum += c.sum
	}
	if sum != fs.super.used {
		return btrfsUnsure("extents take %d bytes, the superblock says %d", int64(sum), int64(fs.super.used))
	}
	return nil
}
