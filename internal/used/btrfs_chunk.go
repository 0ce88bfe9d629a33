package used

import (
	"cmp"
	"slices"
	"sort"

	"ganeti-instance-image/internal/size"
)

// Chunks (struct btrfs_chunk with its struct btrfs_stripe) and devices, in the
// chunk tree.
const (
	btrfsDeviceKind     = 216 // BTRFS_DEV_ITEM_KEY
	btrfsDeviceObjectid = 1
	btrfsChunkKind      = 228 // BTRFS_CHUNK_ITEM_KEY
	btrfsChunkObjectid  = 256

	btrfsChunkSize  = 48
	btrfsStripeSize = 32

	// Flags of btrfs_chunk.type. Without a profile's bit it is "single".
	btrfsData     = 1 << 0
	btrfsSystem   = 1 << 1
	btrfsMetadata = 1 << 2
	btrfsDup      = 1 << 5

	// 64 TiB in chunks of 1 GiB, their usual length; 5 MiB of memory.
	btrfsChunksMax = 1 << 16
)

// btrfsChunk maps one range of logical space to one or, with DUP, two ranges of
// the device.
type btrfsChunk struct {
	logical btrfsLogical
	length  size.Bytes
	kind    uint64 // btrfsData ... and the profile
	count   int    // of copies
	copies  [2]size.Bytes

	// What the extents in it add up to, what its block group says of that,
	// and whether there is one.
	sum, used size.Bytes
	group     bool
}

func (c *btrfsChunk) end() btrfsLogical { return c.logical + btrfsLogical(c.length) }

// btrfsStripe is one copy of a chunk: the chunk's index and the copy's in one.
type btrfsStripe uint32

func (s btrfsStripe) chunk() int { return int(s >> 1) }
func (s btrfsStripe) copy() int  { return int(s & 1) }

// findBtrfsChunk returns the chunk that holds all of a range of logical space,
// or nil.
func findBtrfsChunk(chunks []btrfsChunk, at btrfsLogical, length size.Bytes) *btrfsChunk {
	i := sort.Search(len(chunks), func(i int) bool { return chunks[i].end() > at })
	if i < len(chunks) && chunks[i].logical <= at && length <= size.Bytes(chunks[i].end()-at) {
		return &chunks[i]
	}
	return nil
}

// readChunks reads the chunk tree, by the chunks that the superblock holds.
func (fs *btrfs) readChunks() error {
	system, err := fs.systemChunks()
	if err != nil {
		return err
	}
	tree := &btrfsTree{fs: fs, chunks: system, owner: btrfsChunkTree, root: fs.super.chunkRoot}
	var device *btrfsDevice
	err = tree.walk(btrfsKey{}, func(key btrfsKey, data btrfsBytes) (bool, error) {
		if key.kind == btrfsDeviceKind {
			device, err = fs.parseDevice(key, data)
		} else {
			fs.chunks, err = fs.appendChunk(fs.chunks, key, data)
		}
		return true, err
	})
	if err != nil {
		return err
	}
	if device == nil {
		return btrfsUnsure("the chunk tree has no device")
	}
	for _, c := range system {
		if found := findBtrfsChunk(fs.chunks, c.logical, c.length); found == nil || *found != c {
			return btrfsUnsure("the chunk at %d is not in the chunk tree as in the superblock", c.logical)
		}
	}
	return fs.sortStripes(device.used)
}

// systemChunks takes the superblock's array of keys and chunks apart.
func (fs *btrfs) systemChunks() ([]btrfsChunk, error) {
	var chunks []btrfsChunk
	for rest := fs.super.array; len(rest) > 0; {
		if len(rest) < btrfsKeySize+btrfsChunkSize {
			return nil, btrfsUnsure("the superblock's chunks are cut off")
		}
		key, data := parseBtrfsKey(rest), rest[btrfsKeySize:]
		length := btrfsChunkSize + btrfsStripeSize*int(data.u16(44))
		if len(data) < length {
			return nil, btrfsUnsure("the superblock's chunks are cut off")
		}
		var err error
		if chunks, err = fs.appendChunk(chunks, key, data[:length]); err != nil {
			return nil, err
		}
		if chunks[len(chunks)-1].kind&btrfsSystem == 0 {
			return nil, btrfsUnsure("a chunk in the superblock is not of the system's")
		}
		rest = data[length:]
	}
	// The kernel appends to the array, whatever the address.
	slices.SortFunc(chunks, func(a, b btrfsChunk) int { return cmp.Compare(a.logical, b.logical) })
	return chunks, apartBtrfsChunks(chunks)
}

func apartBtrfsChunks(chunks []btrfsChunk) error {
	for i := 1; i < len(chunks); i++ {
		if chunks[i].logical < chunks[i-1].end() {
			return btrfsUnsure("the chunks at %d and %d overlap", chunks[i-1].logical, chunks[i].logical)
		}
	}
	return nil
}

func (fs *btrfs) parseDevice(key btrfsKey, data btrfsBytes) (*btrfsDevice, error) {
	if key.objectid != btrfsDeviceObjectid || len(data) != btrfsDeviceSize {
		return nil, btrfsUnsure("the chunk tree has an item %v of %d bytes", key, len(data))
	}
	d, ours := parseBtrfsDevice(data), fs.super.device
	if key.offset != d.id || d.id != ours.id || d.uuid != ours.uuid || d.fsid != ours.fsid || d.total != ours.total {
		return nil, btrfsUnsure("device %d of the chunk tree is not the superblock's", key.offset)
	}
	return &d, nil
}

func (fs *btrfs) appendChunk(chunks []btrfsChunk, key btrfsKey, b btrfsBytes) ([]btrfsChunk, error) {
	if key.objectid != btrfsChunkObjectid || key.kind != btrfsChunkKind || len(b) < btrfsChunkSize {
		return nil, btrfsUnsure("the chunk tree has an item %v of %d bytes", key, len(b))
	}
	if len(chunks) == btrfsChunksMax {
		return nil, btrfsUnsure("it has over %d chunks", btrfsChunksMax)
	}
	c := btrfsChunk{
		logical: btrfsLogical(min(key.offset, btrfsLimit)),
		length:  b.size(0),
		kind:    b.u64(24),
		count:   int(b.u16(44)),
	}
	if err := fs.oddChunk(&c, b); err != nil {
		return nil, err
	}
	for i := range c.count {
		stripe := b[btrfsChunkSize+i*btrfsStripeSize:]
		at := stripe.size(8)
		if stripe.u64(0) != fs.super.device.id || stripe.id(16) != fs.super.device.uuid {
			return nil, btrfsUnsure("the chunk at %d is on another device", c.logical)
		}
		if at%fs.super.sector != 0 || at > fs.super.total || c.length > fs.super.total-at {
			return nil, btrfsUnsure("the chunk at %d is not on the device", c.logical)
		}
		c.copies[i] = at
	}
	return append(chunks, c), nil
}

// oddChunk checks what btrfs_check_chunk_valid does, and the profile.
func (fs *btrfs) oddChunk(c *btrfsChunk, b btrfsBytes) error {
	sector, kinds, profile := fs.super.sector, c.kind&(btrfsData|btrfsSystem|btrfsMetadata), c.kind&^(btrfsData|btrfsSystem|btrfsMetadata)
	wanted := 1
	if profile == btrfsDup {
		wanted = 2
	}
	switch {
	case profile != 0 && profile != btrfsDup:
		return btrfsUnsure("the chunk at %d has the profile %#x", c.logical, profile)
	case kinds != btrfsData && kinds != btrfsSystem && kinds != btrfsMetadata && kinds != btrfsData|btrfsMetadata:
		return btrfsUnsure("the chunk at %d is for %#x", c.logical, kinds)
	case c.count != wanted || len(b) != btrfsChunkSize+wanted*btrfsStripeSize:
		return btrfsUnsure("the chunk at %d has %d stripes", c.logical, c.count)
	case b.size(16) != btrfsStripeLen || size.Bytes(b.u32(40)) != sector:
		return btrfsUnsure("the chunk at %d is cut in %d and %d bytes", c.logical, int64(b.size(16)), b.u32(40))
	case size.Bytes(c.logical)%sector != 0 || c.length%sector != 0 || c.length == 0 || c.logical >= btrfsLimit-btrfsLogical(c.length):
		return btrfsUnsure("the chunk at %d has %d bytes", c.logical, int64(c.length))
	}
	return nil
}

// sortStripes orders the copies of all chunks as they lie on the device, and
// checks that they are apart and as many as the device says.
func (fs *btrfs) sortStripes(used size.Bytes) error {
	if err := apartBtrfsChunks(fs.chunks); err != nil {
		return err
	}
	for i := range fs.chunks {
		for j := range fs.chunks[i].count {
			fs.stripes = append(fs.stripes, btrfsStripe(i<<1|j))
		}
	}
	begin := func(s btrfsStripe) size.Bytes { return fs.chunks[s.chunk()].copies[s.copy()] }
	slices.SortFunc(fs.stripes, func(a, b btrfsStripe) int { return cmp.Compare(begin(a), begin(b)) })
	var end, sum size.Bytes
	for _, stripe := range fs.stripes {
		length := fs.chunks[stripe.chunk()].length
		if begin(stripe) < end {
			return btrfsUnsure("two chunks overlap on the device at %d", int64(begin(stripe)))
		}
		end, sum = begin(stripe)+length, sum+length
	}
	if sum != used {
		return btrfsUnsure("chunks take %d bytes of the device, which says %d", int64(sum), int64(used))
	}
	return nil
}
