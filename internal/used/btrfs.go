package used

import (
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"slices"

	"ganeti-instance-image/internal/size"
)

// What lies at fixed places (BTRFS_BLOCK_RESERVED_1M_FOR_SUPER,
// btrfs_sb_offset, BTRFS_STRIPE_LEN in the kernel's fs/btrfs): the allocator
// keeps the first MiB free for boot loaders and the first superblock, and 64 KiB
// for each copy of it.
const (
	btrfsHead      = 1 * size.MiB
	btrfsStripeLen = 64 * size.KiB
)

var btrfsSupers = [...]size.Bytes{64 * size.KiB, 64 * size.MiB, 256 * size.GiB}

// btrfsLimit is above every address and length that is read, so that the sum of
// two cannot overflow.
const btrfsLimit = 1 << 61

// Btrfs tells what is used on the length bytes that r reads, which hold a btrfs
// of one device. The words are those of btrfs-progs' "On-disk format" and of the
// kernel's include/uapi/linux/btrfs_tree.h; what is refused as odd is, but for a
// newer second superblock, what fs/btrfs/tree-checker.c or btrfs check refuse.
//
// The extent tree alone is trusted for what is allocated, never the free space
// tree or cache. It is read whole before this returns, and compared with the
// block groups and the superblock; it is read again, in the disk's order, while
// the ranges are taken. Left out, as ErrUnsure: several devices, RAID profiles,
// zoned devices, a log to be replayed, extent tree v2, and xxhash64 as the
// checksum. What only the last superblock's backup roots reach counts as free,
// as it does for the kernel.
func Btrfs(r io.ReaderAt, length size.Bytes) (iter.Seq2[Range, error], error) {
	fs, err := openBtrfs(r, length)
	if err != nil {
		return nil, btrfsFault(err)
	}
	return fs.ranges, nil
}

func btrfsFault(err error) error {
	return fmt.Errorf("cannot tell what the btrfs file system uses: %w", err)
}

// btrfsUnsure is ErrUnsure with its reason.
func btrfsUnsure(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsure, fmt.Sprintf(format, args...))
}

// btrfs is a file system that was found to agree with itself.
type btrfs struct {
	r       io.ReaderAt
	length  size.Bytes // of the partition
	super   *btrfsSuper
	chunks  []btrfsChunk   // by logical address
	stripes []btrfsStripe  // by place on the device
	extents btrfsPointer   // the extent tree's root
	uuid    btrfsChunkUUID // in the header of every node
}

func openBtrfs(r io.ReaderAt, length size.Bytes) (*btrfs, error) {
	super, err := readBtrfsSuper(r, length)
	if err != nil {
		return nil, err
	}
	fs := &btrfs{r: r, length: length, super: super}
	if err := fs.readChunks(); err != nil {
		return nil, err
	}
	if fs.extents, err = fs.findRoot(btrfsExtentTree); err != nil {
		return nil, err
	}
	return fs, fs.verifyExtents()
}

// ranges yields what is used, ascending.
func (fs *btrfs) ranges(yield func(Range, error) bool) {
	union := btrfsUnion{fixed: fs.fixed(), yield: yield}
	tree := fs.tree(btrfsExtentTree, fs.extents)
	for _, stripe := range fs.stripes {
		more, err := fs.yieldStripe(tree, stripe, &union)
		if err != nil {
			yield(Range{}, btrfsFault(err))
			return
		}
		if !more {
			return
		}
	}
	union.finish()
}

// yieldStripe adds what is allocated of one copy of a chunk.
func (fs *btrfs) yieldStripe(tree *btrfsTree, stripe btrfsStripe, union *btrfsUnion) (bool, error) {
	chunk := &fs.chunks[stripe.chunk()]
	if chunk.sum == 0 {
		return true, nil
	}
	moved := chunk.copies[stripe.copy()] - size.Bytes(chunk.logical)
	more := true
	err := fs.walkExtents(tree, chunk.logical, chunk.end(), func(e btrfsExtent) bool {
		if !e.group {
			more = union.add(Range{Start: size.Bytes(e.start) + moved, Length: e.length})
		}
		return more
	})
	return more, err
}

// fixed lists, ascending, what is used whatever the trees say: the head, the
// copies of the superblock, and what lies behind the file system.
func (fs *btrfs) fixed() []Range {
	var all []Range
	add := func(start, end size.Bytes) {
		if end = min(end, fs.length); start < end {
			all = append(all, Range{Start: start, Length: end - start})
		}
	}
	add(0, btrfsHead)
	for _, at := range btrfsSupers[1:] {
		add(at, at+btrfsStripeLen)
	}
	add(fs.super.total, fs.length)
	slices.SortFunc(all, func(a, b Range) int { return int(min(max(a.Start-b.Start, -1), 1)) })
	return all
}

// btrfsUnion merges ranges that come in ascending order with a fixed list.
type btrfsUnion struct {
	fixed []Range
	open  Range // not yet yielded: the next one may touch it
	yield func(Range, error) bool
}

// add takes the next range and returns whether more are wanted.
func (u *btrfsUnion) add(next Range) bool {
	for len(u.fixed) > 0 && u.fixed[0].Start <= next.Start {
		fixed := u.fixed[0]
		u.fixed = u.fixed[1:]
		if !u.push(fixed) {
			return false
		}
	}
	return u.push(next)
}

func (u *btrfsUnion) push(next Range) bool {
	end := u.open.Start + u.open.Length
	if u.open.Length > 0 && next.Start <= end {
		u.open.Length = max(end, next.Start+next.Length) - u.open.Start
		return true
	}
	done := u.open
	u.open = next
	return done.Length == 0 || u.yield(done, nil)
}

func (u *btrfsUnion) finish() {
	for _, fixed := range u.fixed {
		if !u.push(fixed) {
			return
		}
	}
	if u.open.Length > 0 {
		u.yield(u.open, nil)
	}
}

// btrfsBytes is a structure on the disk; all numbers are little-endian. Whoever
// takes it apart has checked its length.
type btrfsBytes []byte

func (b btrfsBytes) u16(at int) uint16 { return binary.LittleEndian.Uint16(b[at:]) }
func (b btrfsBytes) u32(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
func (b btrfsBytes) u64(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }

// size is an address or a length; one that is too large for any disk becomes
// btrfsLimit, which no chunk and no device reaches.
func (b btrfsBytes) size(at int) size.Bytes { return size.Bytes(min(b.u64(at), btrfsLimit)) }

func (b btrfsBytes) id(at int) (id [16]byte) {
	copy(id[:], b[at:at+len(id)])
	return id
}
