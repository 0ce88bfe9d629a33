package used

import (
	"errors"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/size"
)

// collectBtrfs takes all ranges and checks what holds for every file system.
func collectBtrfs(t testing.TB, r io.ReaderAt, length size.Bytes) ([]Range, error) {
	t.Helper()
	ranges, err := Btrfs(r, length)
	if err != nil {
		return nil, err
	}
	all := takeBtrfs(t, ranges)
	if again := takeBtrfs(t, ranges); !slices.Equal(all, again) {
		t.Fatalf("the second time the ranges are %v, the first time %v", again, all)
	}
	end := size.Bytes(-1)
	for _, one := range all {
		if one.Start <= end || one.Length <= 0 || one.Length > length-one.Start {
			t.Fatalf("%+v comes behind %d in %d bytes", one, end, length)
		}
		end = one.Start + one.Length
	}
	if len(all) == 0 || all[0].Start != 0 || all[0].Length < min(length, btrfsHead) {
		t.Fatalf("the first MiB is missing in %v", all)
	}
	return all, nil
}

func takeBtrfs(t testing.TB, ranges iter.Seq2[Range, error]) []Range {
	t.Helper()
	var all []Range
	for one, err := range ranges {
		if err != nil {
			t.Fatalf("what was found good is not: %v", err)
		}
		all = append(all, one)
	}
	return all
}

var btrfsTestWant = []Range{
	{0, btrfsMiB + 4*size.KiB}, // the head, and the chunk tree in the first system chunk
	{2 * btrfsMiB, 4 * size.KiB},
	{3*btrfsMiB + 4*size.KiB, 20 * size.KiB},
	{5*btrfsMiB + 4*size.KiB, 20 * size.KiB},
	{8 * btrfsMiB, btrfsMiB + 8*size.KiB},
	{64*btrfsMiB - 8*size.KiB, 72 * size.KiB}, // an extent, and a mirror
	{65 * btrfsMiB, 4 * size.KiB},
	{72 * btrfsMiB, 8 * btrfsMiB}, // behind the file system
}

func TestBtrfsByHand(t *testing.T) {
	for _, csumType := range []uint16{0, 2, 3} {
		for _, groupTree := range []bool{false, true} {
			got, err := collectBtrfs(t, newBtrfsTestDisk(csumType, groupTree), btrfsTestLength)
			if err != nil {
				t.Fatalf("checksum %d: %v", csumType, err)
			}
			if !slices.Equal(got, btrfsTestWant) {
				t.Errorf("checksum %d: the ranges are %v, want %v", csumType, got, btrfsTestWant)
			}
		}
	}
}

func TestBtrfsStops(t *testing.T) {
	for most := 1; most <= len(btrfsTestWant); most++ {
		ranges, err := Btrfs(newBtrfsTestDisk(0, false), btrfsTestLength)
		if err != nil {
			t.Fatal(err)
		}
		var got []Range
		for one := range ranges {
			if got = append(got, one); len(got) == most {
				break
			}
		}
		if !slices.Equal(got, btrfsTestWant[:most]) {
			t.Errorf("the first %d ranges are %v", most, got)
		}
	}
}

func TestBtrfsSecondCopy(t *testing.T) {
	d := newBtrfsTestDisk(0, false)
	d.bad = map[size.Bytes]bool{}
	for i, b := range d.blocks[btrfsBlockChunks:] {
		d.bad[b.copies[i%2]] = true
	}
	if got, err := collectBtrfs(t, d, btrfsTestLength); err != nil || !slices.Equal(got, btrfsTestWant) {
		t.Errorf("with every node bad in one of its copies: %v, %v", got, err)
	}
	d.bad[d.blocks[btrfsBlockLeaf2].copies[0]], d.bad[d.blocks[btrfsBlockLeaf2].copies[1]] = true, true
	if _, err := collectBtrfs(t, d, btrfsTestLength); !errors.Is(err, ErrUnsure) {
		t.Errorf("with a node bad in both copies: %v", err)
	}
}

// btrfsFailing fails to read from a place on.
type btrfsFailing struct {
	io.ReaderAt
	from, to int64
	after    int // reads that are still good
}

var errBtrfsDisk = errors.New("the disk is broken")

func (f *btrfsFailing) ReadAt(p []byte, off int64) (int, error) {
	if f.after--; f.after < 0 && off < f.to && off+int64(len(p)) > f.from {
		return 0, errBtrfsDisk
	}
	return f.ReaderAt.ReadAt(p, off)
}

func TestBtrfsReadErrors(t *testing.T) {
	whole := &btrfsFailing{newBtrfsTestDisk(0, false), 0, int64(btrfsTestLength), 0}
	for whole.after = 0; ; whole.after++ {
		reads := whole.after
		ranges, err := Btrfs(whole, btrfsTestLength)
		if err == nil {
			var got []Range
			for one, fault := range ranges {
				if err = fault; fault == nil {
					got = append(got, one)
				}
			}
			if err == nil && slices.Equal(got, btrfsTestWant) {
				return
			}
		}
		if !errors.Is(err, errBtrfsDisk) || reads > 100 {
			t.Fatalf("after %d reads: %v", reads, err)
		}
		whole.after = reads
	}
}

func TestBtrfsReadsSecondCopyOfBadSectors(t *testing.T) {
	c := btrfsTestChunks[1]
	r := &btrfsFailing{newBtrfsTestDisk(0, false), int64(c.copies[0]), int64(c.copies[0] + c.length), 0}
	if got, err := collectBtrfs(t, r, btrfsTestLength); err != nil || !slices.Equal(got, btrfsTestWant) {
		t.Errorf("with the first copies unreadable: %v, %v", got, err)
	}
}

// btrfsItemAt returns where an item of a leaf and its data begin.
func btrfsItemAt(leaf []byte, i int) (item, data int) {
	begin, _ := btrfsNode(leaf).data(i)
	return btrfsNodeHeader + i*btrfsItemSize, btrfsNodeHeader + int(begin)
}

func TestBtrfsUnsure(t *testing.T) {
	// change has the block and the place of a number of 8 bytes, and what is
	// added to it.
	field := func(block, at int, more uint64) func(*btrfsTestDisk) {
		return func(d *btrfsTestDisk) { d.add64(block, at, more) }
	}
	key := func(block, item, at int, more uint64) func(*btrfsTestDisk) {
		return func(d *btrfsTestDisk) {
			place, _ := btrfsItemAt(d.blocks[block].data, item)
			d.add64(block, place+at, more)
		}
	}
	data := func(block, item, at int, more uint64) func(*btrfsTestDisk) {
		return func(d *btrfsTestDisk) {
			_, place := btrfsItemAt(d.blocks[block].data, item)
			d.add64(block, place+at, more)
		}
	}
	pointer := func(i, at int, more uint64) func(*btrfsTestDisk) {
		return field(btrfsBlockExtents, btrfsNodeHeader+i*btrfsPointerSize+at, more)
	}
	cases := map[string]struct {
		change func(*btrfsTestDisk)
		want   string
	}{
		"magic":                      {field(btrfsBlockSuper, btrfsSuperMagic, 1), "no superblock"},
		"another place":              {field(btrfsBlockSuper, btrfsSuperBytenr, 1), "another place"},
		"seed":                       {field(btrfsBlockSuper, btrfsSuperFlags, 1<<32), "flags"},
		"xxhash":                     {field(btrfsBlockSuper, btrfsSuperCsumType, 1), "type 1"},
		"csum type":                  {field(btrfsBlockSuper, btrfsSuperCsumType, 4), "type 4"},
		"compat":                     {field(btrfsBlockSuper, btrfsSuperCompat, 1), "compat 0x1,"},
		"unknown read-only compat":   {field(btrfsBlockSuper, btrfsSuperCompatRO, 1<<4), "read-only compat 0x10"},
		"zoned":                      {field(btrfsBlockSuper, btrfsSuperIncompat, 1<<12), "incompat 0x1000"},
		"extent tree v2":             {field(btrfsBlockSuper, btrfsSuperIncompat, 1<<13), "incompat 0x2000"},
		"stripe tree":                {field(btrfsBlockSuper, btrfsSuperIncompat, 1<<14), "incompat 0x4000"},
		"remap tree":                 {field(btrfsBlockSuper, btrfsSuperIncompat, 1<<17), "incompat 0x20000"},
		"old references":             {field(btrfsBlockSuper, btrfsSuperIncompat, ^uint64(0)), "oldest form"},
		"not skinny":                 {field(btrfsBlockSuper, btrfsSuperIncompat, ^uint64(0x100)+1), "an item {1048576 169 0}"},
		"metadata UUID":              {field(btrfsBlockSuper, btrfsSuperIncompat, btrfsMetadataUUID), "another file system"},
		"devices":                    {field(btrfsBlockSuper, btrfsSuperDevices, 1), "on 2 devices"},
		"log":                        {field(btrfsBlockSuper, btrfsSuperLogRoot, 1<<20), "log"},
		"leaf size":                  {field(btrfsBlockSuper, btrfsSuperLeaf, 4096), "leaves"},
		"sector size":                {field(btrfsBlockSuper, btrfsSuperSector, 4096), "sectors"},
		"array size":                 {field(btrfsBlockSuper, btrfsSuperArraySize, 4096), "4225 bytes of chunks"},
		"array cut":                  {field(btrfsBlockSuper, btrfsSuperArraySize, ^uint64(0)), "cut off"},
		"array longer":               {field(btrfsBlockSuper, btrfsSuperArraySize, 1), "cut off"},
		"system chunk moved":         {field(btrfsBlockSuper, btrfsSuperArray+btrfsKeySize+btrfsChunkSize+btrfsStripeSize+8, 4096), "not in the chunk tree"},
		"system chunk not system":    {field(btrfsBlockSuper, btrfsSuperArray+btrfsKeySize+24, 2), "not of the system's"},
		"larger than partition":      {field(btrfsBlockSuper, btrfsSuperTotal, uint64(16*btrfsMiB)), "its partition"},
		"device's size":              {field(btrfsBlockSuper, btrfsSuperDevice+8, 4096), "device 1 has"},
		"device id 0":                {field(btrfsBlockSuper, btrfsSuperDevice, ^uint64(0)), "device 0 has"},
		"device's UUID":              {field(btrfsBlockSuper, btrfsSuperDevice+66, 1), "on another device"},
		"device's fsid":              {field(btrfsBlockSuper, btrfsSuperDevice+82, 1), "another file system"},
		"fsid":                       {field(btrfsBlockSuper, btrfsSuperFSID, 1), "another file system"},
		"used":                       {field(btrfsBlockSuper, btrfsSuperUsed, 4096), "the superblock says"},
		"root's generation":          {field(btrfsBlockSuper, btrfsSuperGeneration, 1), "generation of the node"},
		"chunk root's generation":    {field(btrfsBlockSuper, btrfsSuperChunkGen, 1), "generation of the node"},
		"root nowhere":               {field(btrfsBlockSuper, btrfsSuperRoot, 1<<40), "no chunk of metadata"},
		"root across":                {field(btrfsBlockSuper, btrfsSuperRoot, 512), "no chunk of metadata"},
		"root in a data chunk":       {field(btrfsBlockSuper, btrfsSuperRoot, 2<<20), "no chunk of metadata"},
		"root's level":               {field(btrfsBlockSuper, btrfsSuperRootLevel, 1), "level of the node"},
		"root's level too high":      {field(btrfsBlockSuper, btrfsSuperRootLevel, 8), "level 8"},
		"newer mirror":               {field(btrfsBlockMirror, btrfsSuperGeneration, 1), "newer"},
		"node's fsid":                {field(btrfsBlockLeaf1, btrfsNodeFSID, 1), "file system of the node"},
		"node's address":             {field(btrfsBlockLeaf1, btrfsNodeBytenr, 4096), "address of the node"},
		"node's UUID":                {field(btrfsBlockLeaf1, btrfsNodeUUID, 1), "UUID of the node"},
		"node's generation":          {field(btrfsBlockLeaf1, btrfsNodeGeneration, 1), "generation of the node"},
		"node's owner":               {field(btrfsBlockLeaf1, btrfsNodeOwner, 1), "tree of the node"},
		"node's level":               {field(btrfsBlockLeaf1, btrfsNodeLevel, 1), "level of the node"},
		"items missing":              {field(btrfsBlockLeaf1, btrfsNodeCount, ^uint64(0)), "their block group says"},
		"no items":                   {field(btrfsBlockLeaf1, btrfsNodeCount, ^uint64(7)), "layout"},
		"too many items":             {field(btrfsBlockLeaf1, btrfsNodeCount, 200), "layout"},
		"too many pointers":          {field(btrfsBlockExtents, btrfsNodeCount, 200), "layout"},
		"pointer's key":              {pointer(1, 9, 1), "its parent"},
		"pointers out of order":      {pointer(0, 0, 1<<40), "layout"},
		"pointer's place":            {pointer(1, btrfsKeySize, 4096), "tree of the node"},
		"pointer's generation":       {pointer(1, btrfsKeySize+8, 1), "generation of the node"},
		"keys out of order":          {key(btrfsBlockLeaf1, 3, 0, 1<<40), "layout"},
		"keys over the next":         {key(btrfsBlockLeaf1, 7, 0, 1<<40), "its parent"},
		"item's place":               {key(btrfsBlockLeaf1, 2, btrfsKeySize, 1), "layout"},
		"item's size":                {key(btrfsBlockLeaf1, 2, btrfsKeySize+4, 1), "layout"},
		"no extent tree":             {key(btrfsBlockRoots, 0, 9, 1), "no tree 2"},
		"extent tree's level":        {data(btrfsBlockRoots, 0, btrfsRootLevel, 1), "level of the node"},
		"extent tree's place":        {data(btrfsBlockRoots, 0, btrfsRootBytenr, 4096), "level of the node"},
		"extent tree's generation":   {data(btrfsBlockRoots, 0, btrfsRootGeneration, 1), "generation of the node"},
		"device in the chunk tree":   {data(btrfsBlockChunks, 0, 8, 4096), "not the superblock's"},
		"device's use":               {data(btrfsBlockChunks, 0, 16, 4096), "which says"},
		"device item's key":          {key(btrfsBlockChunks, 0, 9, 1), "not the superblock's"},
		"chunk item's key":           {key(btrfsBlockChunks, 4, 0, 1), "item {257 228"},
		"chunk on another device":    {data(btrfsBlockChunks, 3, btrfsChunkSize, 1), "another device"},
		"chunk on a device like it":  {data(btrfsBlockChunks, 3, btrfsChunkSize+16, 1), "another device"},
		"chunk's length":             {data(btrfsBlockChunks, 3, 0, 4096), "which says"},
		"chunk's odd length":         {data(btrfsBlockChunks, 3, 0, 1), "has 4194305 bytes"},
		"chunks overlap":             {data(btrfsBlockChunks, 2, 0, uint64(4*btrfsMiB)), "6291456 overlap"},
		"chunks overlap on the disk": {data(btrfsBlockChunks, 4, btrfsChunkSize+8, ^uint64(4*btrfsMiB)+1), "overlap on the device"},
		"chunk beyond the disk":      {data(btrfsBlockChunks, 4, btrfsChunkSize+8, uint64(64*btrfsMiB)), "not on the device"},
		"chunk across sectors":       {data(btrfsBlockChunks, 4, btrfsChunkSize+8, 1), "not on the device"},
		"RAID0":                      {data(btrfsBlockChunks, 4, 24, 1<<3), "profile 0x8"},
		"RAID1":                      {data(btrfsBlockChunks, 4, 24, 1<<4), "profile 0x10"},
		"unknown profile":            {data(btrfsBlockChunks, 4, 24, 1<<11), "profile 0x800"},
		"data becomes metadata":      {data(btrfsBlockChunks, 4, 24, 3), "in a chunk of 0x4"},
		"stripes":                    {data(btrfsBlockChunks, 4, 44, 1), "2 stripes"},
		"stripe length":              {data(btrfsBlockChunks, 4, 16, 1<<16), "is cut in"},
		"chunk's sectors":            {data(btrfsBlockChunks, 4, 40, 4096), "is cut in"},
		"extent too long":            {key(btrfsBlockLeaf2, 2, 9, uint64(2*btrfsMiB)), "lies in no chunk"},
		"extent longer":              {key(btrfsBlockLeaf2, 2, 9, 4096), "their block group says"},
		"extent of odd length":       {key(btrfsBlockLeaf2, 2, 9, 1), "4097 bytes"},
		"extents overlap":            {key(btrfsBlockLeaf2, 3, 9, uint64(4*btrfsMiB)), "overlap"},
		"extent between chunks":      {key(btrfsBlockLeaf2, 2, 0, uint64(3*btrfsMiB)), "lies in no chunk"},
		"extent at an odd place":     {key(btrfsBlockLeaf2, 2, 0, 1), "its item"},
		"extent of the future":       {data(btrfsBlockLeaf2, 2, 8, 100), "future"},
		"extent of metadata in data": {data(btrfsBlockLeaf2, 2, 16, 1), "flags 0x2"},
		"extent of both kinds":       {data(btrfsBlockLeaf2, 2, 16, 2), "flags 0x3"},
		"data in metadata":           {data(btrfsBlockLeaf1, 7, 16, ^uint64(0)), "flags 0x1 in a chunk of 0x24"},
		"level of a tree block":      {key(btrfsBlockLeaf1, 3, 9, 8), "item {4198400 169 8}"},
		"unknown item":               {key(btrfsBlockLeaf2, 6, 8, 1), "an item"},
		"oldest reference":           {key(btrfsBlockLeaf2, 6, 8, ^uint64(3)), "180"},
		"reference without extent":   {key(btrfsBlockLeaf2, 6, 0, 4096), "no extent"},
		"block group's use":          {data(btrfsBlockLeaf2, 4, 0, 4096), "their block group says"},
		"block group that is none":   {key(btrfsBlockLeaf2, 4, 8, 1), "an item"},
		"no kind of device":          {key(btrfsBlockChunks, 0, 0, 1), "an item {2 216 1}"},
		"no device": {func(d *btrfsTestDisk) {
			var chunks []btrfsTestItem
			for _, c := range btrfsTestChunks {
				chunks = append(chunks, btrfsTestChunk(c))
			}
			d.blocks[btrfsBlockChunks].data = btrfsTestLeaf(btrfsAtChunks, btrfsChunkTree, chunks...)
		}, "no device"},
		"chunk for nothing":       {data(btrfsBlockChunks, 4, 24, ^uint64(0)), "is for 0x0"},
		"system chunk only above": {field(btrfsBlockSuper, btrfsSuperArray+btrfsKeySize+24, 8), "profile 0x28"},
		"two system chunks alike": {func(d *btrfsTestDisk) {
			b := d.blocks[btrfsBlockSuper].data
			length := btrfsKeySize + btrfsChunkSize + 2*btrfsStripeSize
			copy(b[btrfsSuperArray+length:], b[btrfsSuperArray:][:length])
			d.add64(btrfsBlockSuper, btrfsSuperArraySize, uint64(length))
		}, "overlap"},
		"block group's objectid": {data(btrfsBlockLeaf2, 4, 8, 1), "not as its chunk"},
		"block group's flags":    {data(btrfsBlockLeaf2, 4, 16, 1), "not as its chunk"},
		"block group's length":   {key(btrfsBlockLeaf2, 4, 9, 4096), "no block group"},
	}
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		t.Run(name, func(t *testing.T) {
			d := newBtrfsTestDisk(0, false)
			cases[name].change(d)
			d.seal()
			got, err := collectBtrfs(t, d, btrfsTestLength)
			if !errors.Is(err, ErrUnsure) || !strings.Contains(err.Error(), cases[name].want) {
				t.Errorf("want an error with %q, got %v, %v", cases[name].want, got, err)
			}
		})
	}
}

func TestBtrfsGroupTreeUnsure(t *testing.T) {
	for _, where := range []int{0, 8, 16} {
		d := newBtrfsTestDisk(0, true)
		_, place := btrfsItemAt(d.blocks[btrfsBlockGroups].data, 2)
		d.add64(btrfsBlockGroups, place+where, 4096)
		d.seal()
		if _, err := collectBtrfs(t, d, btrfsTestLength); !errors.Is(err, ErrUnsure) {
			t.Errorf("a change at %d of a block group: %v", where, err)
		}
	}
	d := newBtrfsTestDisk(0, true) // the last chunk has no group
	d.add64(btrfsBlockGroups, btrfsNodeCount, ^uint64(0))
	d.seal()
	if _, err := collectBtrfs(t, d, btrfsTestLength); !errors.Is(err, ErrUnsure) || !strings.Contains(err.Error(), "has no block group") {
		t.Errorf("a block group that is missing: %v", err)
	}
	d = newBtrfsTestDisk(0, true) // another copy of the groups, in the extent tree
	d.blocks[btrfsBlockLeaf1].data = newBtrfsTestDisk(0, false).blocks[btrfsBlockLeaf1].data
	d.seal()
	if _, err := collectBtrfs(t, d, btrfsTestLength); !errors.Is(err, ErrUnsure) || !strings.Contains(err.Error(), "two trees") {
		t.Errorf("block groups in two trees: %v", err)
	}
	d = newBtrfsTestDisk(0, false) // there is no tree of groups
	d.add64(btrfsBlockSuper, btrfsSuperCompatRO, btrfsGroupTreeFlag)
	d.seal()
	if _, err := collectBtrfs(t, d, btrfsTestLength); !errors.Is(err, ErrUnsure) {
		t.Errorf("a tree of block groups that is none: %v", err)
	}
}

func TestBtrfsChunksMax(t *testing.T) {
	fs, item := &btrfs{}, btrfsTestChunk(btrfsTestChunks[3])
	if _, err := fs.appendChunk(make([]btrfsChunk, btrfsChunksMax), item.key, item.data); !errors.Is(err, ErrUnsure) || !strings.Contains(err.Error(), "over 65536 chunks") {
		t.Error(err)
	}
}

func TestBtrfsUnion(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var want [64]bool
		list := func(most int) (all []Range) {
			for at := random.IntN(20); at < len(want) && len(all) < most; at += random.IntN(6) {
				length := min(1+random.IntN(6), len(want)-at)
				for i := range length {
					want[at+i] = true
				}
				all = append(all, Range{size.Bytes(at), size.Bytes(length)})
				at += length
			}
			return all
		}
		fixed, ranges := list(3), list(20)
		var all []Range
		got, end, left := [64]bool{}, size.Bytes(-1), 1+random.IntN(20)
		union := btrfsUnion{fixed: fixed, yield: func(one Range, _ error) bool {
			if left--; left < 0 || one.Start <= end {
				t.Fatalf("%v with %v: %v comes after %v", ranges, fixed, one, all)
			}
			all, end = append(all, one), one.Start+one.Length
			for i := range one.Length {
				got[one.Start+i] = true
			}
			return left > 0
		}}
		if !slices.ContainsFunc(ranges, func(one Range) bool { return !union.add(one) }) {
			union.finish()
		}
		if left > 0 && got != want {
			t.Fatalf("%v with %v becomes %v", ranges, fixed, all)
		}
	}
}

func TestBtrfsSuperChecksum(t *testing.T) {
	for _, csumType := range []uint16{0, 2, 3} {
		d := newBtrfsTestDisk(csumType, false)
		d.bad = map[size.Bytes]bool{btrfsSupers[0]: true}
		if _, err := collectBtrfs(t, d, btrfsTestLength); !errors.Is(err, ErrUnsure) || !strings.Contains(err.Error(), "checksum of the superblock") {
			t.Errorf("checksum %d: %v", csumType, err)
		}
		d.bad = map[size.Bytes]bool{btrfsSupers[1]: true} // a mirror that is bad is none
		if _, err := collectBtrfs(t, d, btrfsTestLength); err != nil {
			t.Errorf("checksum %d of the mirror: %v", csumType, err)
		}
	}
}

func TestBtrfsPartitionTooSmall(t *testing.T) {
	for _, length := range []size.Bytes{0, 64 * size.KiB, btrfsMiB - 1, btrfsMiB, btrfsTestTotal - 1} {
		if _, err := Btrfs(newBtrfsTestDisk(0, false), length); !errors.Is(err, ErrUnsure) {
			t.Errorf("in %d bytes: %v", length, err)
		}
	}
}

// FuzzBtrfs changes the file system by hand, and makes its checksums right again.
// The input is a list of changes of 12 bytes: the block, the place (2 bytes), how
// many bytes, and which. With 128 in the third the place counts only bytes that
// are not zero. What is still accepted uses as much as its superblock says.
func FuzzBtrfs(f *testing.F) {
	f.Add([]byte{}, true)
	f.Add(btrfsPack(uint8(btrfsBlockSuper), uint16(btrfsSuperUsed), uint8(8), uint64(0)), false)
	f.Add(btrfsPack(uint8(btrfsBlockExtents), uint16(btrfsNodeHeader+btrfsKeySize), uint8(8), uint64(btrfsAtExtents)), false)
	f.Add(btrfsPack(uint8(btrfsBlockLeaf2), uint16(btrfsNodeHeader+9), uint8(8), uint64(4096)), false)
	f.Add(btrfsPack(uint8(btrfsBlockChunks), uint16(4096-98-80+8), uint8(8), uint64(1<<63)), true)
	f.Add(btrfsPack(uint8(btrfsBlockLeaf1), uint16(btrfsNodeCount), uint8(4), ^uint64(0)), true)
	for block := range btrfsBlockGroups + 1 {
		for place := range uint16(40) {
			f.Add(btrfsPack(uint8(block), place, uint8(128+1), uint64(place)), place%2 == 0)
		}
	}
	f.Fuzz(func(t *testing.T, changes []byte, groupTree bool) {
		d := newBtrfsTestDisk(0, groupTree)
		for ; len(changes) >= 12; changes = changes[12:] {
			block := d.blocks[int(changes[0])%len(d.blocks)].data
			at := int(btrfsBytes(changes).u16(1)) % len(block)
			if changes[3]&128 != 0 {
				at = btrfsNotZero(block, at)
			}
			copy(block[at:], changes[4:4+min(changes[3]&127, 8)])
		}
		d.seal()
		got, err := collectBtrfs(t, d, btrfsTestLength)
		if err != nil {
			if !errors.Is(err, ErrUnsure) {
				t.Fatalf("the error is not ErrUnsure: %v", err)
			}
			return
		}
		var sum size.Bytes
		for _, one := range got {
			sum += one.Length
		}
		if used := btrfsBytes(d.blocks[btrfsBlockSuper].data).size(btrfsSuperUsed); sum < used {
			t.Fatalf("%v are %d bytes of %d", got, sum, used)
		}
	})
}

// btrfsNotZero returns the place of one of the bytes that are not zero.
func btrfsNotZero(block []byte, which int) int {
	var places []int
	for at, b := range block {
		if b != 0 {
			places = append(places, at)
		}
	}
	if len(places) == 0 {
		return which
	}
	return places[which%len(places)]
}
