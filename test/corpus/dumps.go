package corpus

import (
	"bytes"
	"compress/zlib"
	"slices"
	"strings"
)

// The types of a record, and its magic numbers, of dump(8)'s protocols/dumprestore.h.
const (
	tsTape  = 1
	tsInode = 2
	tsBits  = 3
	tsAddr  = 4
	tsEnd   = 5
	tsClri  = 6

	dumpMagic = 60012
	oldMagic  = 60011
	ufs2Magic = 0x19540119
)

// dumpFile is an inode of a dump.
type dumpFile struct {
	inode   uint32
	mode    uint16
	data    []byte
	entries []dumpEntry // of a directory
	xattrs  []byte      // as the block of an ext4 inode has them
	length  uint64      // what the inode says; 0 for what is right
	edit    func(header []byte)
}

// dumpEntry is a name in a directory.
type dumpEntry struct {
	inode  uint32
	name   string
	reclen uint16 // 0 for what is right
	namlen byte   // 0 for what is right
}

// dumpArchive is an archive as dump(8) 0.4b47 writes it.
type dumpArchive struct {
	files   []dumpFile
	packed  bool // with zlib
	tape    func(header []byte)
	all     func(header []byte) // changes every header
	records func(records [][]byte) [][]byte
	blocks  func(n int, packed []byte) []byte // changes a compressed block with its prefix
}

const dumpBlock = 10 // records of a block

// rootFiles are a tree that is a root, with the kernel in the dump of /boot.
func rootFiles() []dumpFile {
	dir := func(inode, parent uint32, entries ...dumpEntry) dumpFile {
		return dumpFile{inode: inode, mode: 0o40755, entries: append([]dumpEntry{{inode: inode, name: "."}, {inode: parent, name: ".."}}, entries...)}
	}
	plain := func(inode uint32, text string) dumpFile {
		return dumpFile{inode: inode, mode: 0o100644, data: []byte(text)}
	}
	return []dumpFile{
		dir(2, 2, entry(12, "etc"), entry(13, "usr"), entry(14, "boot"), entry(15, "srv"), entry(30, "bin")),
		dir(12, 2, entry(31, "fstab"), entry(32, "hosts"), entry(33, "hostname"), entry(34, "passwd"), entry(35, "debian_version"), entry(36, "os-release")),
		dir(13, 2, entry(16, "bin"), entry(17, "lib")),
		dir(14, 2), dir(15, 2, entry(39, "x")),
		dir(16, 13, entry(37, "bash")), dir(17, 13, entry(38, "os-release")),
		{inode: 30, mode: 0o120777, data: []byte("usr/bin")},
		plain(31, "LABEL=old / ext4 defaults 0 1\nLABEL=oldboot /boot ext4 defaults 0 2\n"),
		plain(32, "127.0.0.1 localhost\n"), plain(33, "old\n"), plain(34, "root:x:0:0:root:/root:/bin/bash\n"), plain(35, "12.5\n"),
		{inode: 36, mode: 0o120777, data: []byte("../usr/lib/os-release")},
		{inode: 37, mode: 0o100755, data: []byte("#!/bin/sh\n")},
		plain(38, "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
		plain(39, strings.Repeat("content\n", 700)),
	}
}

func entry(inode uint32, name string) dumpEntry { return dumpEntry{inode: inode, name: name} }

// bootFiles are what is on the file system of /boot.
func bootFiles() []dumpFile {
	return []dumpFile{
		{inode: 2, mode: 0o40755, entries: []dumpEntry{entry(2, "."), entry(2, ".."), entry(12, "vmlinuz-6.1.0-1-amd64"), entry(13, "initrd.img-6.1.0-1-amd64")}},
		{inode: 12, mode: 0o100644, data: []byte("kernel\n")},
		{inode: 13, mode: 0o100644, data: []byte("initrd\n")},
	}
}

// file is the one with a number, to be changed.
func (d *dumpArchive) file(inode uint32) *dumpFile {
	i := slices.IndexFunc(d.files, func(f dumpFile) bool { return f.inode == inode })
	return &d.files[i]
}

// header is a record that describes what follows.
func (d *dumpArchive) header(kind uint32, at int) []byte {
	h := zeros(1024)
	le.PutUint32(h, kind)
	le.PutUint32(h[4:], 1700000000)
	le.PutUint32(h[12:], 1)
	le.PutUint32(h[16:], uint32(at))
	le.PutUint32(h[24:], dumpMagic)
	copy(h[676:], "none")
	copy(h[696:], "an unlisted file system")
	copy(h[760:], "/dev/loop0")
	copy(h[824:], "corpus")
	le.PutUint32(h[888:], 2)
	if d.packed {
		le.PutUint32(h[888:], 0x82)
	}
	le.PutUint32(h[896:], dumpBlock)
	return h
}

// sealed is a header with the checksum that is right.
func (d *dumpArchive) sealed(h []byte, edits ...func([]byte)) []byte {
	for _, edit := range append(edits, d.all) {
		if edit != nil {
			edit(h)
		}
	}
	le.PutUint32(h[28:], 0)
	sum := uint32(0)
	for at := 0; at < len(h); at += 4 {
		sum += le.Uint32(h[at:])
	}
	le.PutUint32(h[28:], 84446-sum)
	return h
}

// content is what a file's records hold.
func (f dumpFile) content() []byte {
	if f.entries == nil {
		return f.data
	}
	var b []byte
	for i, e := range f.entries {
		record := zeros((8 + len(e.name) + 1 + 3) &^ 3)
		le.PutUint32(record, e.inode)
		copy(record[8:], e.name)
		record[7] = byte(or(uint64(e.namlen), uint64(len(e.name))))
		length := len(record)
		if i == len(f.entries)-1 {
			length = 512 - len(b)
		}
		le.PutUint16(record[4:], uint16(or(uint64(e.reclen), uint64(length))))
		b = append(b, record...)
	}
	return append(b, zeros(512-len(b))...)
}

// put adds a file's records.
func (d *dumpArchive) put(records [][]byte, f dumpFile) [][]byte {
	content := f.content()
	h := d.header(tsInode, len(records))
	le.PutUint32(h[20:], f.inode)
	le.PutUint16(h[32:], f.mode)
	le.PutUint16(h[34:], 1)
	le.PutUint64(h[40:], or(f.length, uint64(len(content))))
	le.PutUint32(h[56:], 1600000000)
	data := inRecords(content)
	le.PutUint32(h[160:], uint32(len(data)))
	copy(h[164:], bytes.Repeat([]byte{1}, len(data)))
	records = append(append(records, d.sealed(h, f.edit)), data...)
	if f.xattrs == nil {
		return records
	}
	h = d.header(tsInode, len(records))
	le.PutUint32(h[20:], f.inode)
	le.PutUint16(h[32:], f.mode)
	data = inRecords(f.xattrs)
	le.PutUint64(h[40:], uint64(len(f.xattrs)))
	le.PutUint32(h[160:], uint32(len(data)))
	copy(h[164:], bytes.Repeat([]byte{1}, len(data)))
	le.PutUint32(h[888:], le.Uint32(h[888:])|0x8000)
	le.PutUint32(h[900:], 3)
	return append(append(records, d.sealed(h)), data...)
}

// inRecords cuts content of at most 512 KiB into records.
func inRecords(content []byte) [][]byte {
	var records [][]byte
	for at := 0; at < len(content); at += 1024 {
		record := zeros(1024)
		copy(record, content[at:])
		records = append(records, record)
	}
	return records
}

// bitmap is a map of inodes and its header.
func (d *dumpArchive) bitmap(kind uint32, records [][]byte) [][]byte {
	bits := zeros(1024)
	for _, f := range d.files {
		if f.inode > 0 {
			bits[(f.inode-1)/8%1024] |= 1 << ((f.inode - 1) % 8)
		}
	}
	h := d.header(kind, len(records))
	le.PutUint32(h[20:], 64)
	if kind == tsBits {
		le.PutUint32(h[20:], 2)
	}
	le.PutUint64(h[40:], 1024)
	le.PutUint32(h[160:], 1)
	return append(records, d.sealed(h), bits)
}

func (d *dumpArchive) bytes() []byte {
	tape := d.header(tsTape, 0)
	le.PutUint32(tape[160:], 1)
	le.PutUint32(tape[888:], le.Uint32(tape[888:])|1)
	records := [][]byte{d.sealed(tape, d.tape)}
	records = d.bitmap(tsBits, d.bitmap(tsClri, records))
	for _, f := range d.files {
		records = d.put(records, f)
	}
	end := d.header(tsEnd, len(records))
	le.PutUint32(end[20:], 64)
	for more := true; more; more = len(records)%dumpBlock != 0 {
		records = append(records, d.sealed(slices.Clone(end)))
	}
	if d.records != nil {
		records = d.records(records)
	}
	if !d.packed {
		return slices.Concat(records...)
	}
	return d.pack(slices.Concat(records...))
}

// pack compresses each block but the first one.
func (d *dumpArchive) pack(b []byte) []byte {
	const block = dumpBlock * 1024
	out := slices.Clone(b[:block])
	for n := 1; n*block < len(b); n++ {
		var packed bytes.Buffer
		w := zlib.NewWriter(&packed)
		written(w, b[n*block:min(len(b), (n+1)*block)])
		one := append(le.AppendUint32(nil, uint32(packed.Len())<<4|1), packed.Bytes()...)
		if d.blocks != nil {
			one = d.blocks(n, one)
		}
		out = append(out, one...)
	}
	return out
}

// dumped is a dump of a root that was changed.
func dumped(edit func(d *dumpArchive)) func() Image {
	return file(func() []byte {
		d := &dumpArchive{files: rootFiles()}
		edit(d)
		return d.bytes()
	})
}

// packedWith is a compressed dump of a root whose second block was changed.
func packedWith(edit func(block []byte) []byte) func() Image {
	return dumped(func(d *dumpArchive) {
		d.packed = true
		d.blocks = func(n int, block []byte) []byte {
			if n == 2 {
				return edit(block)
			}
			return block
		}
	})
}

// length is a block with another length in its prefix.
func length(n uint32) func([]byte) []byte {
	return func(b []byte) []byte { le.PutUint32(b, n<<4|1); return b }
}

func bootDump() Image {
	d := &dumpArchive{files: bootFiles()}
	return Bytes(d.bytes())
}

// number sets a number of a header.
func number(at int, n uint32) func([]byte) {
	return func(h []byte) { le.PutUint32(h[at:], n) }
}

// srv adds to the directory /srv, srvFile changes the file in it.
func srv(entries ...dumpEntry) func(*dumpArchive) {
	return func(d *dumpArchive) { f := d.file(15); f.entries = append(f.entries, entries...) }
}

func srvFile(edit func(f *dumpFile)) func(*dumpArchive) {
	return func(d *dumpArchive) { edit(d.file(39)) }
}

// xattrBlock is the block of an inode with one attribute, which says where its
// value is and how long.
func xattrBlock(offset uint16, length uint32) []byte {
	b := zeros(4096)
	le.PutUint32(b, 0xea020000)
	le.PutUint32(b[4:], 1)
	le.PutUint32(b[8:], 1)
	b[32], b[33] = 4, 1 // user.
	le.PutUint16(b[34:], offset)
	le.PutUint32(b[40:], length)
	copy(b[48:], "note")
	copy(b[4088:], "content")
	return b
}

// runs gives a header a map of runs (dump 0.4b49).
func runs(count uint32, pattern string) func(h []byte) {
	return func(h []byte) {
		le.PutUint32(h[160:], count)
		copy(h[164:676], bytes.Repeat([]byte(pattern), 512))
	}
}

var refusedDumps = []struct {
	name, words string
	make        func() Image
}{
	{"level 1", "level", dumped(func(d *dumpArchive) { d.all = chained(number(692, 1), number(8, 1600000000)) })},
	{"based on another one", "", dumped(func(d *dumpArchive) { d.all = number(8, 1600000000) })},
	{"UFS2", "UFS2", dumped(func(d *dumpArchive) { d.all = number(24, ufs2Magic) })},
	{"of before 4.2BSD", "", dumped(func(d *dumpArchive) { d.all = number(24, oldMagic) })},
	{"big-endian", "", dumped(func(d *dumpArchive) {
		d.records = func(records [][]byte) [][]byte {
			for _, r := range records {
				for at := 0; at < len(r); at += 4 {
					slices.Reverse(r[at : at+4])
				}
			}
			return records
		}
	})},
	{"a wrong checksum of the first header", "", file(func() []byte { return flipped((&dumpArchive{files: rootFiles()}).bytes(), 700) })},
	{"a wrong checksum of an inode", "checksum", dumped(func(d *dumpArchive) {
		d.records = func(r [][]byte) [][]byte { r[7][700] ^= 1; return r }
	})},
	{"another magic number in the middle", "", dumped(func(d *dumpArchive) { d.file(39).edit = number(24, oldMagic) })},
	{"another date in the middle", "", dumped(func(d *dumpArchive) { d.file(39).edit = number(4, 1600000000) })},
	{"no root", "root", dumped(func(d *dumpArchive) { d.files = d.files[1:] })},
	{"a root that is a file", "root", dumped(func(d *dumpArchive) { f := d.file(2); f.mode, f.entries, f.data = 0o100644, nil, []byte("x") })},
	{"no directory etc", "/etc", dumped(func(d *dumpArchive) {
		d.files = []dumpFile{{inode: 2, mode: 0o40755, entries: []dumpEntry{entry(2, "."), entry(2, "..")}}}
	})},
	{"second volume", "volume", dumped(func(d *dumpArchive) { d.all = number(12, 2) })},
	{"first of two volumes", "cut off", file(func() []byte { b := (&dumpArchive{files: rootFiles()}).bytes(); return b[:2*dumpBlock*1024] })},
	{"cut off in a header", "cut off", file(func() []byte { return (&dumpArchive{files: rootFiles()}).bytes()[:11*1024+500] })},
	{"cut off in data", "cut off", file(func() []byte { return (&dumpArchive{files: rootFiles()}).bytes()[:10*1024-3] })},
	{"no end", "cut off", dumped(func(d *dumpArchive) {
		d.records = func(r [][]byte) [][]byte {
			return slices.DeleteFunc(r, func(b []byte) bool { return le.Uint32(b) == tsEnd && le.Uint32(b[24:]) == dumpMagic })
		}
	})},
	{"zeros behind the first block", "", file(func() []byte { b := (&dumpArchive{files: rootFiles()}).bytes(); clear(b[10*1024:]); return b })},

	{"a name with a slash", "name", dumped(srv(entry(39, "../../tmp/"+escape)))},
	{"a name of ..", "name", dumped(srv(entry(39, "..")))},
	{"a name of .", "name", dumped(srv(entry(39, ".")))},
	{"a name with a NUL", "name", dumped(srv(entry(39, "a\x00b")))},
	{"a directory in itself", "inode 15", dumped(srv(entry(15, "again")))},
	{"the root in a directory", "", dumped(srv(entry(2, "again")))},
	{"directories in a circle", "", dumped(func(d *dumpArchive) {
		d.file(15).entries = append(d.file(15).entries, entry(18, "down"))
		d.files = slices.Insert(d.files, 7, dumpFile{inode: 18, mode: 0o40755, entries: []dumpEntry{entry(18, "."), entry(15, ".."), entry(15, "up")}})
	})},
	{"a directory with two names", "", dumped(srv(entry(12, "etc")))},
	{"one name twice", "twice", dumped(srv(entry(38, "x")))},
	{"an entry of no length", "", dumped(func(d *dumpArchive) {
		f := d.file(15)
		f.entries = append(f.entries, dumpEntry{39, "y", 4, 0}, entry(39, "z"))
	})},
	{"an entry longer than its block", "", dumped(func(d *dumpArchive) { f := d.file(15); f.entries = append(f.entries, dumpEntry{39, "y", 4096, 0}) })},
	{"an entry that is not aligned", "", dumped(func(d *dumpArchive) {
		f := d.file(15)
		f.entries = append(f.entries, dumpEntry{39, "y", 13, 0}, entry(38, "z"))
	})},
	{"a directory of 2^60 bytes", "", dumped(func(d *dumpArchive) { d.file(15).length = 1 << 60 })},
	{"a directory behind a file", "", dumped(func(d *dumpArchive) {
		d.file(15).entries = append(d.file(15).entries, entry(60, "late"))
		d.files = append(d.files, dumpFile{inode: 60, mode: 0o40755, entries: []dumpEntry{entry(60, "."), entry(15, "..")}})
	})},
	{"an inode twice", "", dumped(func(d *dumpArchive) { d.files = append(d.files, *d.file(39)) })},
	{"an inode of no type", "", dumped(srvFile(func(f *dumpFile) { f.mode = 0o644 }))},
	{"an inode of number 0", "", dumped(func(d *dumpArchive) { d.files = append(d.files, dumpFile{inode: 0, mode: 0o100644, data: evil}) })},

	{"a map of 2^31 records", "", dumped(func(d *dumpArchive) {
		d.records = func(r [][]byte) [][]byte { d.sealed(r[1], number(160, 1<<31-1)); return r }
	})},
	{"a map of -1 records", "", dumped(func(d *dumpArchive) {
		d.records = func(r [][]byte) [][]byte { d.sealed(r[3], number(160, 1<<32-1)); return r }
	})},
	{"a header of 513 records", "", dumped(srvFile(func(f *dumpFile) { f.edit = number(160, 513) }))},
	{"a header of -1 records", "", dumped(srvFile(func(f *dumpFile) { f.edit = number(160, 1<<32-1) }))},
	{"a run that goes on behind its map", "", dumped(srvFile(func(f *dumpFile) { f.edit = runs(1, "\xff\xff") }))},
	{"more data than there is", "", dumped(srvFile(func(f *dumpFile) { f.edit, f.length = runs(512, "\xff\xff"), 1<<32 }))},
	{"a file of 2^60 bytes", "", dumped(srvFile(func(f *dumpFile) { f.length = 1 << 60 }))},
	{"a file of -1 bytes", "", dumped(srvFile(func(f *dumpFile) { f.length = 1<<64 - 1 }))},
	{"a symlink of 1 MiB", "", dumped(srvFile(func(f *dumpFile) { f.mode, f.length = 0o120777, 1<<20 }))},
	{"a symlink of nothing", "", dumped(srvFile(func(f *dumpFile) { f.mode, f.data = 0o120777, nil }))},
	{"an unknown record", "", dumped(srvFile(func(f *dumpFile) { f.edit = number(0, 9) }))},
	{"a continuation of nothing", "", dumped(srvFile(func(f *dumpFile) { f.edit = number(0, tsAddr) }))},

	{"attributes far behind", "", dumped(srvFile(func(f *dumpFile) { f.xattrs = xattrBlock(65000, 7) }))},
	{"an attribute of 4 GiB", "", dumped(srvFile(func(f *dumpFile) { f.xattrs = xattrBlock(4088, 1<<32-1) }))},
	{"attributes of another kind", "", dumped(srvFile(func(f *dumpFile) { b := xattrBlock(4088, 7); b[0] = 9; f.xattrs = b }))},

	{"blocks of no records", "", dumped(func(d *dumpArchive) { d.all = number(896, 0) })},
	{"blocks of -1 records", "", dumped(func(d *dumpArchive) { d.packed, d.all = true, number(896, 1<<32-1) })},
	{"blocks of 2^30 records", "", dumped(func(d *dumpArchive) { d.packed, d.all = true, number(896, 1<<30) })},
	{"a block of no length", "", packedWith(length(0))},
	{"a block of 256 MiB", "", packedWith(length(1<<28 - 1))},
	{"a block that is longer than it says", "", packedWith(length(20))},
	{"a block that is no zlib", "", packedWith(func(b []byte) []byte { return flipped(b, 4) })},
	{"a block with a wrong checksum", "", packedWith(func(b []byte) []byte { return flipped(b, -1) })},
	{"a block of an unknown compression", "", packedWith(func(b []byte) []byte { b[0] |= 5 << 1; return b })},
	{"a block said to be of bzip2", "", packedWith(func(b []byte) []byte { b[0] |= 1 << 1; return b })},
	{"a block said to be of LZO", "", packedWith(func(b []byte) []byte { b[0] |= 2 << 1; return b })},
	{"a block that unpacks to too much", "", packedWith(func([]byte) []byte {
		var packed bytes.Buffer
		w := zlib.NewWriter(&packed)
		written(w, zeros(20*mib))
		return append(le.AppendUint32(nil, uint32(packed.Len())<<4|1), packed.Bytes()...)
	})},
	{"a block that unpacks to too little", "", packedWith(func([]byte) []byte {
		var packed bytes.Buffer
		w := zlib.NewWriter(&packed)
		written(w, zeros(500))
		return append(le.AppendUint32(nil, uint32(packed.Len())<<4|1), packed.Bytes()...)
	})},
	{"cut off in a compressed block", "cut off", file(func() []byte { b := (&dumpArchive{files: rootFiles(), packed: true}).bytes(); return b[:len(b)-7] })},
	{"text", "", content("dump: Dump aborted\n")},
	{"nothing", "", content("")},
}

func dumpCases() []TreeCase {
	var cases []TreeCase
	for _, c := range refusedDumps {
		cases = append(cases, TreeCase{"dump: " + c.name, BadImage, split(c.words), Tree{"-root.dump", c.make, bootDump}})
	}
	good := dumped(func(*dumpArchive) {})
	return append(cases,
		TreeCase{"dump: without that of boot", BadImage, []string{"-boot.dump"}, Tree{"-root.dump", good, nil}},
		TreeCase{"dump: with a broken one of boot", BadImage, []string{"-boot.dump"}, Tree{"-root.dump", good,
			file(func() []byte { return flipped((&dumpArchive{files: bootFiles()}).bytes(), 5*1024+700) })}},
		TreeCase{"dump: with one of boot cut off", BadImage, []string{"-boot.dump"}, Tree{"-root.dump", good,
			file(func() []byte { return (&dumpArchive{files: bootFiles()}).bytes()[:8*1024] })}},
	)
}

func dumpGoods() []TreeGood {
	good := func(name, check string, edit func(d *dumpArchive)) TreeGood {
		return TreeGood{"dump: " + name, check, Tree{"-root.dump", dumped(edit), bootDump}}
	}
	return []TreeGood{
		good("plain", `[ "$(wc -l < srv/x)" = 700 ]`, func(*dumpArchive) {}),
		good("compressed", `[ "$(wc -l < srv/x)" = 700 ]`, func(d *dumpArchive) { d.packed = true }),
		good("a hard link", `[ srv/x -ef srv/hard ]`, srv(entry(39, "hard"))),
		good("a map of runs", `[ "$(stat -c %s srv/x)" = 21984 ]; [ "$(tail -c +16385 srv/x | grep -c content)" = 700 ]`, srvFile(func(f *dumpFile) {
			f.edit = func(h []byte) { le.PutUint32(h[160:], 2); copy(h[164:], "\x1e\x0b"); le.PutUint64(h[40:], 16<<10+5600) }
		})),
		good("a large device number", `[ "$(stat -c %t:%T srv/x)" = 12c:11170 ]`, srvFile(func(f *dumpFile) {
			f.mode, f.data = 0o60600, nil
			f.edit = number(76, 300<<8&0xfff00|70000&0xff|70000&0xfff00<<12)
		})),
		good("attributes", `[ "$(getfattr --only-values -n user.note srv/x)" = content ]`, srvFile(func(f *dumpFile) { f.xattrs = xattrBlock(4088, 7) })),
		good("a file that ends in a hole", `[ "$(stat -c %s srv/x)" = 1048576 ]; [ "$(grep -ac content srv/x)" = 700 ]`, srvFile(func(f *dumpFile) { f.length = 1 << 20 })),
	}
}
