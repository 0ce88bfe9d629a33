package used

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/size"
)

// extBases are small file systems that the tests below damage.
var extBases = []struct{ name, length, options string }{
	{"ext4", "6M", "-t ext4 -b 1024 -g 1024 -N 128 -J size=1 -O ^resize_inode"},
	{"ext2", "2M", "-t ext2 -b 1024 -g 512 -N 64"},
	{"gdt_csum", "4M", "-t ext4 -b 1024 -g 512 -N 64 -O ^metadata_csum,uninit_bg,^has_journal,^64bit,^flex_bg"},
	{"bigalloc", "3M", "-t ext4 -b 1024 -N 64 -g 256 -O bigalloc,^has_journal -C 4096"},
	{"meta_bg", "6M", "-t ext4 -b 1024 -g 256 -N 512 -O meta_bg,^resize_inode,^has_journal"},
	{"mmp", "3M", "-t ext4 -b 1024 -g 512 -N 64 -O mmp,sparse_super2,^has_journal,metadata_csum_seed"},
	{"ext3", "3M", "-t ext3 -b 1024 -g 512 -N 64 -J size=1"},
	{"scattered journal", "6M", "-t ext4 -b 1024 -g 256 -N 512 -J size=2 -O ^flex_bg,^resize_inode"},
}

// extDisk is a disk in memory.
type extDisk []byte

func (d extDisk) ReadAt(p []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(p)) > int64(len(d)) {
		return 0, errors.New("a read beyond the end")
	}
	return copy(p, d[at:]), nil
}

func extBase(t testing.TB, name string) extDisk {
	t.Helper()
	for _, base := range extBases {
		if base.name == name {
			image := filepath.Join(t.TempDir(), "base")
			argv := append([]string{"mke2fs", "-q", "-F"}, strings.Fields(base.options)...)
			extRun(t, append(argv, "-U", "12345678-1234-1234-1234-123456789abc", image, base.length)...)
			disk, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			return disk
		}
	}
	t.Fatalf("there is no %q", name)
	return nil
}

// super is the superblock's bytes, and what they say as far as that is good.
func (d extDisk) super() (extRecord, *extFS) {
	fs, err := extOpen(d, size.Bytes(len(d)))
	if err != nil {
		fs = nil
	}
	return extRecord(d[1024:2048]), fs
}

// desc is the descriptor of a group, nil where it lies nowhere.
func (d extDisk) desc(fs *extFS, group uint64) extRecord {
	at := fs.offset(fs.descriptorBlock(group/fs.descsPerBlock)) + size.Bytes(group%fs.descsPerBlock*fs.descSize)
	return d.part(at, size.Bytes(fs.descSize))
}

func (d extDisk) part(at, n size.Bytes) extRecord {
	if at < 0 || at > size.Bytes(len(d))-n {
		return nil
	}
	return extRecord(d[at : at+n])
}

func (d extDisk) bitmap(fs *extFS, desc extRecord) extRecord {
	block := uint64(desc.u32(0))
	if fs.descSize >= 64 {
		block = desc.wide(0, 0x20)
	}
	if block >= fs.blocks {
		return nil
	}
	return d.part(fs.offset(block), size.Bytes(fs.perGroup/fs.perCluster/8))
}

func (d extDisk) journalInode(fs *extFS) extRecord {
	desc := d.desc(fs, 0)
	if desc == nil || uint64(desc.u32(8)) >= fs.blocks {
		return nil
	}
	return d.part(fs.offset(uint64(desc.u32(8)))+7*size.Bytes(fs.inodeSize), size.Bytes(fs.inodeSize))
}

func (d extDisk) journal(fs *extFS) extRecord {
	inode := d.journalInode(fs)
	if inode == nil {
		return nil
	}
	block, err := newExtWalk(fs).firstOf(8, inode)
	if err != nil || block >= fs.blocks {
		return nil
	}
	return d.part(fs.offset(block), 1024)
}

func (d extDisk) mmp(fs *extFS) extRecord {
	if block := fs.raw.wide(0x168, 0x16C); block < fs.blocks {
		return d.part(fs.offset(block), 1024)
	}
	return nil
}

// seal makes the checksums right, so that what was damaged is what is found.
func (d extDisk) seal() {
	put16, put32 := binary.LittleEndian.PutUint16, binary.LittleEndian.PutUint32
	super, _ := d.super()
	put32(super[0x3FC:], extCRC32C(^uint32(0), super[:0x3FC]))
	_, fs := d.super()
	if fs == nil || !fs.metadataSum && !fs.descriptorSum16 {
		return
	}
	for group := range fs.groupCount {
		desc := d.desc(fs, group)
		if desc == nil {
			continue
		}
		if bitmap := d.bitmap(fs, desc); bitmap != nil && fs.metadataSum && desc.u16(0x12)&2 == 0 {
			sum := extCRC32C(fs.sumSeed, bitmap)
			put16(desc[0x18:], uint16(sum))
			if len(desc) >= 64 {
				put16(desc[0x38:], uint16(sum>>16))
			}
		}
		put16(desc[0x1E:], fs.descriptorSum(group, desc))
	}
	if mmp := d.mmp(fs); mmp != nil && fs.incompat&extMMP != 0 && fs.metadataSum {
		put32(mmp[0x3FC:], extCRC32C(fs.sumSeed, mmp[:0x3FC]))
	}
	if fs.compat&extHasJournal != 0 && fs.metadataSum {
		d.sealJournal(fs)
	}
}

func (d extDisk) sealJournal(fs *extFS) {
	inode := d.journalInode(fs)
	if inode == nil {
		return
	}
	copy(inode[0x7C:], []byte{0, 0})
	long := len(inode) > 128 && inode.u16(0x80) >= 4
	if long {
		copy(inode[0x82:], []byte{0, 0})
	}
	sum := extCRC32C(fs.inodeSeed(8, inode), inode)
	binary.LittleEndian.PutUint16(inode[0x7C:], uint16(sum))
	if long {
		binary.LittleEndian.PutUint16(inode[0x82:], uint16(sum>>16))
	}
	if journal := d.journal(fs); journal != nil && journal[0x2B]&0x18 != 0 {
		sum := extCRC32C(^uint32(0), journal[:0xFC], make([]byte, 4), journal[0x100:])
		binary.BigEndian.PutUint32(journal[0xFC:], sum)
	}
}

// extNode is a node of extents behind the root, of the scattered journal.
func (d extDisk) extNode(fs *extFS) extRecord {
	return d.part(fs.offset(uint64(d.journalInode(fs).u32(0x28+16))), fs.blockSize)
}

func extDrain(seq iter.Seq2[Range, error]) (all []Range, err error) {
	for r, err := range seq {
		if err != nil {
			return all, err
		}
		all = append(all, r)
	}
	return all, nil
}

// The bases are good as they are, also with the checksums that seal writes.
func TestExtBases(t *testing.T) {
	for _, base := range extBases {
		disk := extBase(t, base.name)
		before := bytes.Clone(disk)
		disk.seal()
		if base.name != "ext2" && base.name != "ext3" && base.name != "gdt_csum" && !bytes.Equal(before, disk) {
			t.Errorf("%s: seal changes it", base.name)
		}
		extUsed(t, disk, size.Bytes(len(disk)))
	}
}

func TestExtRefuses(t *testing.T) {
	set16 := func(at int, v uint16) func(extDisk) {
		return func(d extDisk) { binary.LittleEndian.PutUint16(d[1024+at:], v) }
	}
	set32 := func(at int, v uint32) func(extDisk) {
		return func(d extDisk) { binary.LittleEndian.PutUint32(d[1024+at:], v) }
	}
	or32 := func(at int, v uint32) func(extDisk) {
		return func(d extDisk) { set32(at, extRecord(d[1024:]).u32(at)|v)(d) }
	}
	desc16 := func(group uint64, at int, v uint16) func(extDisk) {
		return func(d extDisk) {
			_, fs := d.super()
			binary.LittleEndian.PutUint16(d.desc(fs, group)[at:], v)
		}
	}
	desc32 := func(group uint64, at int, v uint32) func(extDisk) {
		return func(d extDisk) {
			_, fs := d.super()
			binary.LittleEndian.PutUint32(d.desc(fs, group)[at:], v)
		}
	}
	bitmap := func(group uint64, change func(fs *extFS, desc, bitmap extRecord)) func(extDisk) {
		return func(d extDisk) {
			_, fs := d.super()
			desc := d.desc(fs, group)
			change(fs, desc, d.bitmap(fs, desc))
		}
	}
	part := func(find func(extDisk, *extFS) extRecord, at int, bytes ...byte) func(extDisk) {
		return func(d extDisk) {
			_, fs := d.super()
			copy(find(d, fs)[at:], bytes)
		}
	}
	inode, journal, mmp, node := extDisk.journalInode, extDisk.journal, extDisk.mmp, extDisk.extNode
	for _, c := range []struct {
		name, base, words string
		change            func(extDisk)
	}{
		{"no magic", "ext4", "no ext superblock", set16(0x38, 0)},
		{"revision", "ext2", "revision 2", set32(0x4C, 2)},
		{"features of revision 0", "ext2", "revision 0 has no features", set32(0x4C, 0)},
		{"journal device", "ext2", "journal for others", or32(0x60, 8)},
		{"needs recovery", "ext4", "to be replayed", or32(0x60, 4)},
		{"compression", "ext4", "0x0, 0x1, 0x0", or32(0x60, 1)},
		{"dirdata", "ext4", "0x0, 0x1000, 0x0", or32(0x60, 0x1000)},
		{"unknown incompatible", "ext4", "0x0, 0x80000000, 0x0", or32(0x60, 1<<31)},
		{"lazy_bg", "ext4", "0x40, 0x0, 0x0", or32(0x5C, 0x40)},
		{"snapshots", "ext4", "0x0, 0x0, 0x80", or32(0x64, 0x80)},
		{"replica", "ext4", "0x0, 0x0, 0x800", or32(0x64, 0x800)},
		{"snapshot", "ext4", "snapshot", or32(0x160, 0x10)},
		{"seed alone", "ext2", "a seed", or32(0x60, 0x2000)},
		{"kind of checksum", "ext4", "checksums of kind 2", func(d extDisk) { d[1024+0x175] = 2 }},
		{"state", "ext4", "not marked as clean", set16(0x3A, 0)},
		{"errors", "ext4", "having errors", set16(0x3A, 3)},
		{"orphans", "ext4", "not marked as clean", set16(0x3A, 5)},
		{"count of errors", "ext4", "having errors", set32(0x194, 1)},
		{"block size", "ext4", "2^7 KiB", set32(0x18, 7)},
		{"clusters without bigalloc", "ext4", "clusters of 2^1", set32(0x1C, 1)},
		{"clusters below blocks", "bigalloc", "clusters of 2^0", func(d extDisk) { set32(0x18, 1)(d); set32(0x1C, 0)(d) }},
		{"clusters of 1 GiB", "bigalloc", "clusters of 2^20", set32(0x1C, 20)},
		{"first block 0", "ext4", "from block 0", set32(0x14, 0)},
		{"first block 2", "ext4", "from block 2", set32(0x14, 2)},
		{"first block of bigalloc", "bigalloc", "from block 1", set32(0x14, 1)},
		{"no blocks", "ext4", "from block 1 to 0", set32(0x4, 0)},
		{"too few clusters", "ext2", "groups are of 64", func(d extDisk) { set32(0x20, 64)(d); set32(0x24, 64)(d) }},
		{"odd clusters", "ext2", "groups are of 513", func(d extDisk) { set32(0x20, 513)(d); set32(0x24, 513)(d) }},
		{"too many clusters", "ext2", "groups are of 8200", func(d extDisk) { set32(0x20, 8200)(d); set32(0x24, 8200)(d) }},
		{"clusters and blocks", "bigalloc", "groups are of", set32(0x20, 256)},
		{"inode size", "ext4", "inodes are of 192", set16(0x58, 192)},
		{"big inodes", "ext4", "inodes are of 2048", set16(0x58, 2048)},
		{"no inodes", "ext4", "0 inodes each", set32(0x28, 0)},
		{"inode table", "ext2", "inodes each", set32(0x28, 8192)},
		{"count of inodes", "ext4", "but all 121", set32(0x0, 121)},
		{"descriptor size", "ext4", "descriptors are of 32", set16(0xFE, 32)},
		{"odd descriptor size", "ext4", "descriptors are of 96", set16(0xFE, 96)},
		{"first meta group", "meta_bg", "first meta group is 99", set32(0x104, 99)},
		{"reserved", "ext4", "it reserves 257", set16(0xCE, 257)},
		{"reserved over the bitmap", "ext2", "overlaps", set16(0xCE, 200)},
		{"too long", "ext4", "where there is place for 6144", func(d extDisk) { set32(0x4, 6145)(d) }},
		{"far too long", "ext4", "groups are too many", set32(0x150, 1<<31)},
		{"flags", "ext4", "has the flags 0x8", desc16(1, 0x12, 8)},
		{"group 0 without a bitmap", "ext4", "group 0 has the flags", desc16(0, 0x12, 2)},
		{"no bitmap and no checksum", "ext2", "group 1 has the flags", desc16(1, 0x12, 2)},
		{"bitmap beyond the end", "ext4", "out of place", desc32(1, 0x0, 6144)},
		{"bitmap in the boot block", "ext4", "out of place", desc32(1, 0x0, 0)},
		{"bitmap far away", "ext4", "out of place", desc32(1, 0x20, 1<<31)},
		{"table over the end", "ext4", "out of place", desc32(1, 0x8, 6143)},
		{"bitmap in another group", "gdt_csum", "out of place", desc32(1, 0x0, 20)},
		{"bitmap in the superblock", "ext4", "overlaps", desc32(0, 0x0, 1)},
		{"bitmaps in one place", "ext4", "overlaps", bitmap(1, func(_ *extFS, desc, _ extRecord) { copy(desc[4:8], desc[:4]) })},
		{"free clusters", "ext2", "free clusters by its bitmap", desc16(1, 0xC, 7)},
		{"free clusters, summed", "ext4", "free clusters by its bitmap", desc16(1, 0xC, 7)},
		{"free clusters, high", "ext4", "free clusters by its bitmap", desc16(1, 0x2C, 1)},
		{"all is free", "ext2", "marked as free", bitmap(1, func(fs *extFS, desc, bitmap extRecord) {
			clear(bitmap)
			binary.LittleEndian.PutUint16(desc[0xC:], uint16(fs.perGroup))
		})},
		{"others' metadata is free", "ext4", "marked as free", bitmap(0, func(fs *extFS, desc, bitmap extRecord) {
			bitmap[desc.u32(0x0)/8] &^= 1 << (desc.u32(0x0) % 8) // the bitmap of group 1
			binary.LittleEndian.PutUint16(desc[0xC:], desc.u16(0xC)+1)
		})},
		{"others' metadata in an empty group", "ext4", "no bitmap, but metadata of others", desc32(1, 0x0, 4*1024+100)},
		{"multi-mount protection", "mmp", "no such thing", part(mmp, 0, 0)},
		{"multi-mount protection beyond the end", "mmp", "block 1048576 is beyond its end", set32(0x168, 1<<20)},
		{"in use", "mmp", "in use", part(mmp, 4, 1, 0, 0, 0)},
		{"checked now", "mmp", "in use", part(mmp, 4, 0x50, 0x4D, 0x4D, 0xE2)},
		{"journal elsewhere", "ext4", "journal is on another device", set32(0xE0, 0)},
		{"journal twice", "ext4", "journal is on another device", set32(0xE4, 0x801)},
		{"no inode of the journal", "ext4", "no inode 1000", set32(0xE0, 1000)},
		{"journal is a directory", "ext4", "no file with blocks", set32(0xE0, 2)},
		{"journal in the inode", "ext4", "no file with blocks", part(inode, 0x23, 0x10)},
		{"hole in the journal", "ext3", "begins with a hole", part(inode, 0x28, 0, 0, 0, 0)},
		{"extents", "ext4", "extents are not as", part(inode, 0x28, 0)},
		{"no extents", "ext4", "extents are not as", part(inode, 0x2A, 0)},
		{"too many extents", "ext4", "extents are not as", part(inode, 0x2C, 0, 1)},
		{"deep extents", "ext4", "nested 6 deep", part(inode, 0x2E, 6)},
		{"extents beyond the end", "ext4", "beyond its end", part(inode, 0x2E, 5)},
		{"extents later", "ext4", "extents are not as", part(inode, 0x34, 1)},
		{"unwritten journal", "ext4", "not written", part(inode, 0x39, 0x81)},
		{"journal beyond the end", "ext4", "beyond its end", part(inode, 0x3A, 1)},
		{"extents below", "scattered journal", "checksum of its journal's extents", part(node, 20, 0xFF)},
		{"room of extents below", "scattered journal", "checksum of its journal's extents", part(node, 4, 0xFF, 0xFF)},
		{"journal", "ext4", "no such thing", part(journal, 0, 0)},
		{"journal version", "ext4", "no such thing", part(journal, 7, 5)},
		{"journal blocks", "ext4", "no such thing", part(journal, 14, 8)},
		{"journal is not empty", "ext4", "not empty", part(journal, 0x1F, 1)},
		{"journal is not empty, ext3", "ext3", "not empty", part(journal, 0x1F, 1)},
		{"error in the journal", "ext4", "there was an error", part(journal, 0x20, 0xFF, 0xFF, 0xFF, 0xFB)},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := extBase(t, c.base)
			c.change(disk)
			disk.seal()
			extRefused(t, disk, size.Bytes(len(disk)), c.words)
		})
	}
}

func extRefused(t *testing.T, r io.ReaderAt, length size.Bytes, words string) {
	t.Helper()
	seq, err := Ext(r, length)
	if seq != nil || !errors.Is(err, ErrUnsure) || !strings.Contains(err.Error(), words) {
		t.Fatalf("got %v, want %q", err, words)
	}
	if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r > '~' }) {
		t.Fatalf("not one printable line: %q", err)
	}
}

// One wrong bit in anything that has a checksum is found.
func TestExtChecksums(t *testing.T) {
	disk := extBase(t, "ext4")
	_, fs := disk.super()
	copy(disk.journal(fs)[0x28:], []byte{0, 0, 0, 0x10}) // checksums of version 3, as Linux sets when it mounts
	disk.seal()
	extUsed(t, disk, size.Bytes(len(disk)))
	at := func(part extRecord) int { return len(disk) - cap(part) }
	for name, c := range map[string]struct {
		at    int
		words string
	}{
		"superblock":    {1024 + 0x78, "superblock's checksum"},
		"descriptor":    {at(disk.desc(fs, 2)) + 0x14, "group 2's descriptor"},
		"bitmap":        {at(disk.bitmap(fs, disk.desc(fs, 0))) + 60, "group 0's bitmap"},
		"inode":         {at(disk.journalInode(fs)) + 0x10, "inode 8"},
		"extra inode":   {at(disk.journalInode(fs)) + 0x84, "inode 8"},
		"journal":       {at(disk.journal(fs)) + 0x30, "checksum of its journal"},
		"journal users": {at(disk.journal(fs)) + 0x300, "checksum of its journal"},
	} {
		t.Run(name, func(t *testing.T) {
			broken := slices.Clone(disk)
			broken[c.at] ^= 0x10
			extRefused(t, broken, size.Bytes(len(broken)), c.words)
		})
	}
	t.Run("descriptor of another group", func(t *testing.T) {
		disk := extBase(t, "ext4")
		_, fs := disk.super()
		binary.LittleEndian.PutUint32(disk.desc(fs, 1), 4*1024+100)
		disk.seal()
		disk.desc(fs, 4)[0x14] ^= 1
		extRefused(t, disk, size.Bytes(len(disk)), "group 4's descriptor")
	})
	t.Run("crc16", func(t *testing.T) {
		disk := extBase(t, "gdt_csum")
		_, fs := disk.super()
		disk.desc(fs, 3)[0x14] ^= 1
		extRefused(t, disk, size.Bytes(len(disk)), "group 3's descriptor")
	})
	t.Run("mmp", func(t *testing.T) {
		disk := extBase(t, "mmp")
		_, fs := disk.super()
		disk.mmp(fs)[0x20] ^= 1
		extRefused(t, disk, size.Bytes(len(disk)), "checksum of its multi-mount protection")
	})
}

func TestExtShort(t *testing.T) {
	disk := extBase(t, "ext2")
	for length, words := range map[size.Bytes]string{
		-1: "too short", 0: "too short", 2047: "too short", 2048: "place for 2", size.Bytes(len(disk)) - 1: "place for 2047",
	} {
		extRefused(t, disk, length, words)
	}
}

// extBroken fails to read from a byte on.
type extBroken struct {
	extDisk
	from int64
}

var errExtDisk = errors.New("the disk is broken")

func (d extBroken) ReadAt(p []byte, at int64) (int, error) {
	if n := max(0, d.from-at); n < int64(len(p)) {
		copy(p[:n], d.extDisk[at:])
		return int(n), errExtDisk
	}
	return d.extDisk.ReadAt(p, at)
}

// A disk that cannot be read is no file system of which nothing can be told.
func TestExtReadErrors(t *testing.T) {
	for _, name := range []string{"ext4", "ext2", "bigalloc"} {
		disk := extBase(t, name)
		for from := int64(0); from < 600<<10; from += 500 {
			_, err := Ext(extBroken{disk, from}, size.Bytes(len(disk)))
			if !errors.Is(err, errExtDisk) && err != nil || errors.Is(err, ErrUnsure) || err == nil && from < 4000 {
				t.Errorf("%s, %d: %v", name, from, err)
			}
		}
	}
	disk := extBase(t, "ext2")
	if _, err := Ext(bytes.NewReader(disk[:4000]), size.Bytes(len(disk))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

// A disk that changes behind Ext's back is noticed.
func TestExtChangesMeanwhile(t *testing.T) {
	disk := extBase(t, "ext4")
	seq, err := Ext(disk, size.Bytes(len(disk)))
	if err != nil {
		t.Fatal(err)
	}
	_, fs := disk.super()
	disk.bitmap(fs, disk.desc(fs, 5))[60] ^= 1
	all, err := extDrain(seq)
	if !errors.Is(err, ErrUnsure) || !strings.Contains(err.Error(), "group 5's bitmap") || len(all) == 0 {
		t.Fatalf("%v, %v", all, err)
	}
}

// The sequence can be left, and begun again.
func TestExtLeft(t *testing.T) {
	disk := extBase(t, "meta_bg")
	all := extUsed(t, disk, size.Bytes(len(disk)))
	seq, err := Ext(disk, size.Bytes(len(disk)))
	if err != nil {
		t.Fatal(err)
	}
	for n := range all {
		var got []Range
		for r, err := range seq {
			if err != nil {
				t.Fatal(err)
			}
			if got = append(got, r); len(got) == n+1 {
				break
			}
		}
		if !slices.Equal(got, all[:n+1]) {
			t.Fatalf("got %v, want %v", got, all[:n+1])
		}
	}
}

// Runs and counts are those that one bit at a time gives.
func TestExtBits(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		b := extBits{words: make([]uint64, 1+random.IntN(4))}
		b.clusters = uint64(1 + random.IntN(64*len(b.words)))
		for i := range b.words { // ever longer runs
			b.words[i] = random.Uint64() & random.Uint64()
			b.words[i] |= b.words[i] << random.IntN(64)
			b.words[i] ^= -uint64(random.IntN(2))
		}
		used := func(i uint64) bool { return i < b.clusters && b.words[i/64]>>(i%64)&1 == 1 }
		var want, got [][2]uint64
		count := uint64(0)
		for i := range b.clusters {
			if used(i) && (i == 0 || !used(i-1)) {
				want = append(want, [2]uint64{i, 0})
			}
			if used(i) {
				count++
				want[len(want)-1][1] = i + 1
			}
		}
		for start, end := b.run(0); start < end; start, end = b.run(end) {
			got = append(got, [2]uint64{start, end})
		}
		if !slices.Equal(got, want) || b.count() != count {
			t.Fatalf("%x of %d: got %v, %d, want %v, %d", b.words, b.clusters, got, b.count(), want, count)
		}
	}
}

// FuzzExt damages the bases at the places that matter, as a list of places and
// values, with the checksums made right or not.
func FuzzExt(f *testing.F) {
	var disks []extDisk
	for i, base := range extBases {
		disks = append(disks, extBase(f, base.name))
		f.Add(uint8(i), false, []byte{})
		for place := range byte(7) {
			f.Add(uint8(i), true, []byte{place, 1, 0x12, 0, 1, 0, 0, 0})
			f.Add(uint8(i), place%2 == 0, []byte{place, 0, byte(i), 1, 0xFF, 0xFF, 0, 0, place | 0x40, 2, 4, 0, 0x80, 0, 0, 0})
		}
	}
	f.Fuzz(func(t *testing.T, base uint8, seal bool, changes []byte) {
		disk := bytes.Clone(disks[int(base)%len(disks)])
		extDisk(disk).fuzz(changes)
		if seal {
			extDisk(disk).seal()
		}
		extFuzzed(t, disk)
	})
}

// fuzz takes changes of eight bytes: which structure and how many bytes, which
// group, where in it, and what it becomes.
func (d extDisk) fuzz(changes []byte) {
	_, fs := d.super()
	places := []func(group uint64) extRecord{
		func(uint64) extRecord { return extRecord(d[1024:2048]) },
		func(group uint64) extRecord { return d.desc(fs, group%fs.groupCount) },
		func(group uint64) extRecord {
			desc := d.desc(fs, group%fs.groupCount)
			return d.bitmap(fs, desc)
		},
		func(uint64) extRecord { return d.journalInode(fs) },
		func(uint64) extRecord { return d.journal(fs) },
		func(uint64) extRecord { return d.mmp(fs) },
		func(group uint64) extRecord { return extRecord(d[min(int(group)<<12, len(d)-1):]) },
	}
	for range min(len(changes)/8, 64) {
		c := extRecord(changes[:8])
		changes = changes[8:]
		where := places[int(c[0]&0x3F)%len(places)](uint64(c[1]))
		if len(where) > 0 {
			copy(where[int(c.u16(2))%len(where):], c[4:4+1<<(c[0]>>6&1)<<(c[0]>>7)])
		}
	}
}

// extFuzzed wants an answer that holds, or an honest refusal.
func extFuzzed(t *testing.T, disk extDisk) {
	length := size.Bytes(len(disk))
	counting := &extCounting{extDisk: disk}
	seq, err := Ext(counting, length)
	if err != nil {
		if !errors.Is(err, ErrUnsure) {
			t.Fatal(err)
		}
		return
	}
	if _, err := extDrain(seq); err != nil {
		t.Fatalf("what was good is not any more: %v", err)
	}
	if most := 40 * length; counting.read > most {
		t.Fatalf("%s were read of %s", counting.read, length)
	}
	all, want := extUsed(t, disk, length), length
	_, fs := disk.super()
	for group := range fs.groupCount {
		g, err := newExtWalk(fs).descriptor(group)
		if err != nil {
			t.Fatal(err)
		}
		want -= size.Bytes(g.free*fs.perCluster) * fs.blockSize
	}
	got := size.Bytes(0)
	for _, r := range all {
		got += r.Length
	}
	// With bigalloc, the last cluster may be shorter, and block 0 in a free one.
	if cluster := size.Bytes(fs.perCluster) * fs.blockSize; got < want || got >= want+max(cluster, 2*extBootBlock) {
		t.Fatalf("%s are used, want %s", got, want)
	}
	extWantMetadata(t, fs, all)
}

// extCounting counts what is read.
type extCounting struct {
	extDisk
	read size.Bytes
}

func (d *extCounting) ReadAt(p []byte, at int64) (int, error) {
	d.read += size.Bytes(len(p))
	return d.extDisk.ReadAt(p, at)
}

// extWantMetadata wants each group's metadata to be among the ranges.
func extWantMetadata(t *testing.T, fs *extFS, all []Range) {
	w := newExtWalk(fs)
	for group := range fs.groupCount {
		g, err := w.descriptor(group)
		if err != nil {
			t.Fatal(err)
		}
		for _, span := range w.metadata(g) {
			start, end := fs.offset(span.start), fs.offset(span.end())
			if start < end && !slices.ContainsFunc(all, func(r Range) bool { return r.Start <= start && end <= r.Start+r.Length }) {
				t.Fatalf("group %d's metadata at %s is left out of %v", group, start, all)
			}
		}
	}
}
