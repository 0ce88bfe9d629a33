package corpus

import "strings"

// split takes the words of a table's field apart.
func split(words string) []string { return strings.Split(words, "|") }

// The superblocks are as far made as a program needs that asks for their size.

// extDisk is a file with an ext4 superblock for blocks of 1 KiB (Linux,
// Documentation/filesystems/ext4/super.rst).
func extDisk(length int64, blocks uint32) Image {
	i := Image{Length: length}
	s := make([]byte, 1024)
	le.PutUint32(s, 64)              // inodes
	le.PutUint32(s[4:], blocks)      //
	le.PutUint32(s[20:], 1)          // the first data block
	le.PutUint32(s[32:], 8192)       // blocks in a group
	le.PutUint32(s[40:], 64)         // inodes in a group
	copy(s[56:], "\x53\xef\x01\x00") // and clean
	le.PutUint32(s[76:], 1)          // revision
	le.PutUint32(s[84:], 11)         // the first inode that is free for use
	le.PutUint16(s[88:], 256)        // bytes of an inode
	le.PutUint32(s[92:], 0x4)        // has a journal
	le.PutUint32(s[96:], 0x2|0x40)   // file types, extents
	copy(s[104:], "0123456789abcdef")
	le.PutUint32(s[224:], 8) // the journal's inode
	i.put(1024, s)
	return i
}

// xfsDisk is a file with an XFS superblock for blocks of 4 KiB (XFS Algorithms &
// Data Structures, chapter 13).
func xfsDisk(length int64, blocks uint64) Image {
	i := Image{Length: length}
	s := make([]byte, 512)
	copy(s, "XFSB")
	be.PutUint32(s[4:], 4096)
	be.PutUint64(s[8:], blocks)
	copy(s[32:], "0123456789abcdef")
	be.PutUint64(s[48:], 5)           // where the log is
	be.PutUint64(s[56:], 128)         // the root's inode
	be.PutUint32(s[84:], 4096)        // blocks in an allocation group
	be.PutUint32(s[88:], 4)           // such groups
	be.PutUint32(s[96:], 512)         // blocks of the log
	be.PutUint16(s[100:], 0xb4a5)     // version 5
	be.PutUint16(s[102:], sector)     //
	copy(s[120:], "\x0c\x09\x09\x03") // the logarithms of block, sector, inode, inodes in a block
	i.put(0, s)
	return i
}

// btrfsDisk is a file with a btrfs superblock for bytes on one device.
func btrfsDisk(length int64, bytes uint64) Image {
	i := Image{Length: length}
	s := make([]byte, 4096)
	copy(s[32:], "0123456789abcdef")
	le.PutUint64(s[48:], 64*kib) // where it is
	copy(s[64:], "_BHRfS_M")
	le.PutUint64(s[112:], bytes)
	le.PutUint64(s[136:], 1) // devices
	for n, size := range []uint32{4096, 16384, 16384, 4096} {
		le.PutUint32(s[144+4*n:], size) // sector, node, leaf, stripe
	}
	i.put(64*kib, s)
	return i
}

// ntfsDisk is a file with the boot sector of an NTFS.
func ntfsDisk(length int64, sectors uint64) Image {
	i := Image{Length: length}
	s := make([]byte, sector)
	copy(s, "\xeb\x52\x90NTFS    \x00\x02\x08")
	le.PutUint64(s[40:], sectors)
	s[510], s[511] = 0x55, 0xaa
	i.put(0, s)
	return i
}

// inPartition is a disk with an MBR whose one partition holds a file system.
func inPartition(fs Image) Image {
	i := Image{Length: mib + fs.Length}
	i.put(0, bootRecord(mbrPart{0x83, 2048, uint32(fs.Length / sector)}))
	for _, p := range fs.Pieces {
		i.put(mib+p.Offset, p.Data)
	}
	return i
}

// lastOfGPT is a disk with a GPT whose last partition holds a file system.
func lastOfGPT(fs Image) Image {
	i := newGPT().image()
	for _, p := range fs.Pieces {
		i.put(4096*sector+p.Offset, p.Data)
	}
	return i
}

// fileSystemCases are file systems that are longer than what they are in, as a
// download that was cut off leaves them.
func fileSystemCases() []Case {
	var cases []Case
	add := func(kind, in string, make func() Image) {
		cases = append(cases, Case{kind + " cut off, " + in, BadImage, []string{kind, "cut off"}, false, make})
	}
	for _, fs := range []struct {
		kind string
		make func() Image
	}{
		{"ext4", func() Image { return extDisk(4*mib, 20<<10) }},
		{"xfs", func() Image { return xfsDisk(4*mib, 5<<10) }},
		{"btrfs", func() Image { return btrfsDisk(4*mib, 20*mib) }},
		{"ntfs", func() Image { return ntfsDisk(4*mib, 40<<10) }},
	} {
		add(fs.kind, "the whole disk", fs.make)
		add(fs.kind, "in an MBR partition", func() Image { return inPartition(fs.make()) })
		add(fs.kind, "in a GPT partition", func() Image { return lastOfGPT(fs.make()) })
	}
	add("ext4", "of 4 TiB", func() Image { return extDisk(4*mib, 1<<32-1) })
	add("ext4", "of 2^64 blocks", func() Image {
		i := extDisk(4*mib, 1<<32-1)
		i.put(1024+96, []byte{0x2 | 0x40 | 0x80})       // and block numbers of 64 bits
		i.put(1024+336, []byte{0xff, 0xff, 0xff, 0xff}) // of which these are the upper half
		return i
	})
	add("btrfs", "of 2^62 bytes", func() Image { return btrfsDisk(4*mib, 1<<62) })
	add("btrfs", "of 2^64 bytes", func() Image { return btrfsDisk(4*mib, 1<<64-1) })
	add("xfs", "of 2^64 blocks", func() Image { return xfsDisk(4*mib, 1<<64-1) })
	return cases
}
