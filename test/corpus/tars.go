package corpus

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// TreeDiskMiB is the size in MiB of the disk for which tree images are made:
// those with more in them than the disk has room for have more than this.
const TreeDiskMiB = 64

// TreeCase is a tree image that has to be refused. The disk may be made empty
// before the refusal, since an archive is read from its beginning to its end
// only once.
type TreeCase struct {
	Name  string
	Code  int // BadImage or TooLarge
	Words []string
	Tree
}

// TreeGood is a tree image that has to be deployed.
type TreeGood struct {
	Name  string
	Check string // shell commands that succeed in the root that was made of it; "" for none
	Tree
}

// Tree is a tree image in files.
type Tree struct {
	Ending string       // of the file's name, by which its type is told
	Make   func() Image // the archive, of a dump that of the root
	Boot   func() Image // of a dump: that of /boot; nil: there is none
}

// TreeCases are the tree images that have to be refused.
func TreeCases() []TreeCase { return slices.Concat(tarCases(), dumpCases()) }

// TreeGoods are the tree images that have to be deployed.
func TreeGoods() []TreeGood { return slices.Concat(tarGoods(), dumpGoods()) }

// member is a member of a tar archive (POSIX.1-2017, pax), and what stands in
// front of it.
type member struct {
	name, link string
	kind       byte // the typeflag; 0: a file, or a directory where name ends in /
	mode       int64
	data       []byte
	pax        string // of an extended header of its own
	size       string // what the header says of the length; "" for what is right
	edit       func(header []byte)
}

// header is a ustar header with a checksum that is right.
func (m member) header(size string) []byte {
	h := zeros(512)
	copy(h, m.name)
	fill(h[100:108], m.mode|0o644)
	fill(h[108:116], 0)
	fill(h[116:124], 0)
	copy(h[124:136], size)
	fill(h[136:148], 1700000000)
	h[156] = m.kind
	copy(h[157:257], m.link)
	copy(h[257:265], "ustar\x0000")
	fill(h[329:337], 0)
	fill(h[337:345], 0)
	if m.edit != nil {
		m.edit(h)
	}
	return summed(h)
}

func fill(field []byte, n int64) { copy(field, fmt.Sprintf("%0*o", len(field)-1, n)) }

// summed puts the checksum into a header.
func summed(h []byte) []byte {
	copy(h[148:156], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

func (m member) bytes() []byte {
	var b []byte
	if m.pax != "" {
		b = member{name: "pax", kind: 'x', data: []byte(m.pax)}.bytes()
	}
	if m.kind == 0 {
		m.kind = '0'
		if strings.HasSuffix(m.name, "/") {
			m.kind, m.mode = '5', m.mode|0o111
		}
	}
	size := m.size
	if size == "" {
		size = fmt.Sprintf("%011o", len(m.data))
	}
	return pad512(append(append(b, m.header(size)...), m.data...))
}

func pad512(b []byte) []byte { return append(b, zeros(-len(b)&511)...) }

// paxRecord is a pax record with the length that is right.
func paxRecord(key, value string) string {
	rest := " " + key + "=" + value + "\n"
	n := len(rest) + 1
	for len(fmt.Sprint(n))+len(rest) != n {
		n++
	}
	return fmt.Sprint(n) + rest
}

// rootMembers are a tree that is a root, with a kernel.
var rootMembers = []member{
	{name: "./"}, {name: "./etc/"}, {name: "./usr/"}, {name: "./usr/bin/"}, {name: "./usr/lib/"}, {name: "./boot/"}, {name: "./srv/"},
	{name: "./bin", kind: '2', link: "usr/bin"},
	{name: "./etc/fstab", data: []byte("/dev/sda1 / ext4 defaults 0 1\n")},
	{name: "./etc/hosts", data: []byte("127.0.0.1 localhost\n")},
	{name: "./etc/hostname", data: []byte("old\n")},
	{name: "./etc/passwd", data: []byte("root:x:0:0:root:/root:/bin/bash\n")},
	{name: "./usr/lib/os-release", data: []byte("ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n")},
	{name: "./etc/os-release", kind: '2', link: "../usr/lib/os-release"},
	{name: "./etc/debian_version", data: []byte("12.5\n")},
	{name: "./usr/bin/bash", mode: 0o111, data: []byte("#!/bin/sh\n")},
	{name: "./boot/vmlinuz-6.1.0-1-amd64", data: []byte("kernel\n")},
	{name: "./boot/initrd.img-6.1.0-1-amd64", data: []byte("initrd\n")},
}

// withoutEnd is an archive of the members alone.
func withoutEnd(members ...member) []byte {
	var b []byte
	for _, m := range members {
		b = append(b, m.bytes()...)
	}
	return b
}

func tarOf(members ...member) []byte { return append(withoutEnd(members...), zeros(1024)...) }

// rootTar is the archive of a root with further members.
func rootTar(members ...member) []byte { return tarOf(slices.Concat(rootMembers, members)...) }

// plus is the gzip of a root and further members.
func plus(members ...member) func() Image {
	return file(func() []byte { return gzipped(rootTar(members...)) })
}

// sparseOld is a file with the old GNU sparse map: pairs of an offset and a
// length, each as the header holds it.
func sparseOld(size string, real int64, pairs ...string) member {
	return member{name: "./srv/sparse", kind: 'S', data: zeros(int(real)), edit: func(h []byte) {
		copy(h[257:265], "ustar  \x00")
		copy(h[345:512], zeros(167))
		for i, p := range pairs {
			copy(h[386+12*i:398+12*i], p)
		}
		copy(h[483:495], size)
	}}
}

// sparseEndless goes on with a map of the old kind in one record after another,
// which says each time that there is one more.
func sparseEndless(records int) []byte {
	m := sparseOld("00000001000", 0)
	m.edit = chained(m.edit, func(h []byte) { h[482] = 1 })
	b := append(withoutEnd(rootMembers...), m.bytes()...)
	more := zeros(512)
	for i := range 21 {
		copy(more[24*i:], "00000000000\x0000000000000\x00")
	}
	more[504] = 1
	return append(b, bytes.Repeat(more, records)...)
}

func chained(edits ...func([]byte)) func([]byte) {
	return func(h []byte) {
		for _, edit := range edits {
			edit(h)
		}
	}
}

// sparsePax is a file with a sparse map of version 1.0, which stands in front of
// its data.
func sparsePax(size, text string, real int) member {
	return member{name: "./GNUSparseFile.0/sparse", data: append(pad512([]byte(text)), zeros(real)...),
		pax: paxRecord("GNU.sparse.major", "1") + paxRecord("GNU.sparse.minor", "0") +
			paxRecord("GNU.sparse.name", "./srv/sparse") + paxRecord("GNU.sparse.realsize", size)}
}

// sparseOldest is one with a map of version 0.1, which is a pax record.
func sparseOldest(size, text string, real int) member {
	return member{name: "./srv/sparse", data: zeros(real), pax: paxRecord("GNU.sparse.size", size) +
		paxRecord("GNU.sparse.numblocks", fmt.Sprint((strings.Count(text, ",")+1)/2)) + paxRecord("GNU.sparse.map", text)}
}

// base256 is a number as a field has it that does not fit in octal.
func base256(first byte, rest string) string {
	return string([]byte{first}) + strings.Repeat("\x00", 11-len(rest)) + rest
}

// hugeSize is 2^62.
var hugeSize = base256(0x80, "\x40\x00\x00\x00\x00\x00\x00\x00")

func manyFiles(n int) []byte {
	var b bytes.Buffer
	b.Write(withoutEnd(rootMembers...))
	for i := range n {
		b.Write(member{name: fmt.Sprintf("./srv/%d", i)}.bytes())
	}
	b.Write(zeros(1024))
	return b.Bytes()
}

// escape is a file that nobody may find outside of the disk.
const escape = "corpus-escape"

var evil = []byte("this was written outside of the disk\n")

type treeCase struct {
	name, words string
	make        func() Image
}

// traversals lead out of the tree, or to where nothing can be. A link that the
// archive brought leads to a place in the tree, as it will in the guest: that
// some of them are refused is since there is no such place.
var traversals = []treeCase{
	{"a name with ..", "..", plus(member{name: "../../../../tmp/" + escape, data: evil})},
	{"a name with .. in it", "..", plus(member{name: "./etc/../../../../../tmp/" + escape, data: evil})},
	{"a name of ..", "..", plus(member{name: "./srv/..", data: evil})},
	{"a name with .. in a pax record", "..", plus(member{name: "x", data: evil, pax: paxRecord("path", "../../../../tmp/"+escape)})},
	{"a name with .. in a GNU record", "..", plus(member{name: "././@LongLink", kind: 'L', data: []byte("../../../../tmp/" + escape + "\x00")}, member{name: "x", data: evil})},
	{"a file below an absolute symlink", "srv/out", plus(member{name: "./srv/out", kind: '2', link: "/tmp"}, member{name: "./srv/out/" + escape, data: evil})},
	{"a file below a relative symlink", "srv/out", plus(member{name: "./srv/out", kind: '2', link: "../../../../../../../tmp"}, member{name: "./srv/out/" + escape, data: evil})},
	{"a directory below a symlink", "srv/out", plus(member{name: "./srv/out", kind: '2', link: "/tmp"}, member{name: "./srv/out/" + escape + "/"})},
	{"a device below a symlink", "srv/out", plus(member{name: "./srv/out", kind: '2', link: "/tmp"}, member{name: "./srv/out/" + escape, kind: '3'})},
	{"a hard link to the outside", "..", plus(member{name: "./srv/hard", kind: '1', link: "../../../../../../etc/hostname"})},
	{"a hard link to nothing", "srv/hard", plus(member{name: "./srv/hard", kind: '1', link: "./srv/none"})},
	{"a hard link to itself", "srv/hard", plus(member{name: "./srv/hard", kind: '1', link: "./srv/hard"})},
	{"a hard link to a directory", "srv/hard", plus(member{name: "./srv/hard", kind: '1', link: "./etc"})},
	{"a device over a directory", "etc", plus(member{name: "./etc", kind: '3'})},
	{"a file over a directory", "etc", plus(member{name: "./etc", data: evil})},
	{"a symlink over a directory", "etc", plus(member{name: "./etc", kind: '2', link: "/etc"}, member{name: "./etc/" + escape, data: evil})},
	{"a symlink over the root", "", plus(member{name: ".", kind: '2', link: "/tmp"}, member{name: "./" + escape, data: evil})},
	{"a file over the root", "", plus(member{name: "./", kind: '0', data: evil})},
	{"a file below a file", "etc/hostname", plus(member{name: "./etc/hostname/x", data: evil})},
	{"a name of nothing", "name", plus(member{name: "", data: evil})},
	{"a name with a NUL in a pax record", "", plus(member{name: "x", data: evil, pax: paxRecord("path", "./srv/a\x00b")})},
	{"a symlink to nothing", "srv/link", plus(member{name: "./srv/link", kind: '2'})},
	{"a symlink of 5000 bytes", "srv/link", plus(member{name: "./srv/link", kind: '2', pax: paxRecord("linkpath", strings.Repeat("x", 5000))})},
	{"a name of 300 bytes", "name", plus(member{name: "x", data: evil, pax: paxRecord("path", "./srv/"+strings.Repeat("x", 300))})},
}

// brokenTars are archives that say what cannot be.
var brokenTars = []treeCase{
	{"a header with a wrong checksum", "header|damaged", file(func() []byte { return gzipped(flipped(rootTar(), 512*4+20)) })},
	{"a size of 2^62", "cut off", plus(member{name: "./srv/huge", size: hugeSize})},
	{"a size of 8 GiB that is not there", "", plus(member{name: "./srv/huge", size: "77777777777"})},
	{"a negative size", "", plus(member{name: "./srv/huge", size: base256(0xff, "\xff\xff")})},
	{"a size that is no number", "", plus(member{name: "./srv/huge", size: "12x34567890"})},
	{"a pax size that is no number", "", plus(member{name: "./srv/x", pax: paxRecord("size", "12x")})},
	{"a pax size that is negative", "", plus(member{name: "./srv/x", pax: paxRecord("size", "-5")})},
	{"a pax time that is no number", "", plus(member{name: "./srv/x", pax: paxRecord("mtime", "yesterday")})},
	{"a pax owner that is no number", "", plus(member{name: "./srv/x", pax: paxRecord("uid", "99999999999999999999")})},
	{"a pax record longer than its header", "", plus(member{name: "./srv/x", pax: "9999 path=./srv/y\n"})},
	{"a pax record without a value", "", plus(member{name: "./srv/x", pax: "8 path\n"})},
	{"a pax record of no length", "", plus(member{name: "./srv/x", pax: "0 path=x\n"})},
	{"a pax record with a negative length", "", plus(member{name: "./srv/x", pax: "-9 path=x\n"})},
	{"a pax record without an end", "", plus(member{name: "./srv/x", pax: "10 path=xyz"})},
	{"a pax header of 1 GiB", "", plus(member{name: "pax", kind: 'x', size: "10000000000"})},
	{"a GNU name of 1 GiB", "", plus(member{name: "././@LongLink", kind: 'L', size: "10000000000"})},
	{"an unknown type", "", plus(member{name: "./srv/x", kind: 'Z', data: evil})},
	{"a part of several volumes", "", plus(member{name: "./srv/x", kind: 'M', data: evil})},
	{"an old sparse map of 2^62", "", plus(sparseOld(hugeSize, 0, hugeSize, "00000000000"))},
	{"an old sparse map that overlaps", "", plus(sparseOld("00000004000", 2048, "00000001000", "00000002000", "00000000000", "00000002000"))},
	{"an old sparse map beyond the file", "", plus(sparseOld("00000001000", 1024, "00000000000", "00000002000"))},
	{"an old sparse map of more than the data", "", plus(sparseOld("00000010000", 512, "00000000000", "00000010000"))},
	{"an old sparse map with a negative offset", "", plus(sparseOld("00000001000", 512, base256(0xff, "\xff"), "00000001000"))},
	{"an old sparse map without end", "", file(func() []byte { return gzipped(sparseEndless(200000)) })},
	{"a sparse map of 2^60 entries", "", plus(sparsePax("1000000", "1152921504606846976\n0\n512\n", 512))},
	{"a sparse map with a negative count", "", plus(sparsePax("1000000", "-1\n0\n512\n", 512))},
	{"a sparse map of 2^63", "", plus(sparsePax("9223372036854775807", "1\n9223372036854775300\n512\n", 512))},
	{"a sparse map that wraps around", "", plus(sparsePax("9223372036854775807", "2\n9223372036854775807\n512\n0\n512\n", 1024))},
	{"a sparse map that goes back", "", plus(sparsePax("1000000", "2\n5000\n512\n0\n512\n", 1024))},
	{"a sparse map cut off", "", plus(sparsePax("1000000", "9\n0\n512\n", 0))},
	{"a sparse map that is no number", "", plus(sparsePax("1000000", "1\nzero\n512\n", 512))},
	{"a sparse map without end", "", plus(sparsePax("1000000", strings.Repeat("1", 4*mib), 0))},
	{"a sparse map of version 0.1 that overlaps", "", plus(sparseOldest("100000", "0,512,100,512", 1024))},
	{"a sparse map of version 0.1 of odd length", "", plus(sparseOldest("100000", "0,512,100", 512))},
	{"a sparse map of version 7", "", plus(member{name: "./srv/sparse", pax: paxRecord("GNU.sparse.major", "7") + paxRecord("GNU.sparse.minor", "0") + paxRecord("GNU.sparse.realsize", "10")})},
}

// cutTars are archives that end too early, or whose compression is damaged.
var cutTars = []struct {
	name, words, ending string
	make                func() []byte
}{
	{"cut off in a header", "cut off", ".tar", func() []byte { b := rootTar(); return b[:len(b)-1024-512-200] }},
	{"cut off in data", "cut off", ".tar", func() []byte {
		return withoutEnd(slices.Concat(rootMembers, []member{{name: "./srv/x", data: zeros(5000)}})...)[:len(withoutEnd(rootMembers...))+2048]
	}},
	{"cut off between members", "cut off", ".tar", func() []byte { return withoutEnd(rootMembers...) }},
	{"cut off between members, in gzip", "cut off", ".tar.gz", func() []byte { return gzipped(withoutEnd(rootMembers...)) }},
	{"gzip cut off", "gzip|cut off", ".tar.gz", func() []byte { return half(gzipped(rootTar(member{name: "./srv/x", data: text(mib)}))) }},
	{"gzip with a wrong checksum", "gzip|checksum", ".tar.gz", func() []byte { return flipped(gzipped(rootTar()), -6) }},
	{"gzip with junk behind it", "gzip", ".tar.gz", func() []byte { return append(gzipped(rootTar()), "junk"...) }},
	{"zstd cut off", "zstd|cut off", ".tar.zst", func() []byte { return half(zstandard(rootTar(member{name: "./srv/x", data: text(mib)}))) }},
	{"xz with a wrong checksum", "xz", ".tar.xz", func() []byte {
		b := stored(rootTar())
		b.content = flipped(b.content, 1)
		return xz(b)
	}},
	{"xz cut off", "xz|cut off", ".tar.xz", func() []byte { return half(xz(stored(rootTar()))) }},
}

// shapeless are archives of something else.
var shapeless = []treeCase{
	{"an archive of nothing", "", file(func() []byte { return gzipped(zeros(10240)) })},
	{"gzip of nothing as a tarball", "", file(func() []byte { return gzipped(nil) })},
	{"no root", "/etc", file(func() []byte { return gzipped(tarOf(member{name: "./"}, member{name: "./README", data: evil})) })},
	{"a root in a directory", "", file(func() []byte {
		inside := slices.Clone(rootMembers)
		for i := range inside {
			inside[i].name = "./rootfs/" + inside[i].name
		}
		return gzipped(tarOf(inside...))
	})},
	{"a web page as a tarball", "", content("<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>\n")},
	{"a disk as a tarball", "", file(func() []byte { return gzipped(plain()) })},
	{"a cpio archive", "", file(func() []byte { return gzipped(append([]byte("070701"), zeros(2000)...)) })},
}

// tooLarge hold more than the disk has room for.
var tooLarge = []treeCase{
	{"a file larger than the disk", "", file(func() []byte {
		return gzipped(rootTar(member{name: "./srv/zeros", data: zeros((TreeDiskMiB + 16) * mib)}))
	})},
	{"more files than the file system can have", "", file(func() []byte { return gzipped(manyFiles(60000)) })},
}

func tarCases() []TreeCase {
	var cases []TreeCase
	for _, c := range slices.Concat(traversals, brokenTars, shapeless) {
		cases = append(cases, TreeCase{"tar: " + c.name, BadImage, split(c.words), Tree{".tar.gz", c.make, nil}})
	}
	for _, c := range cutTars {
		cases = append(cases, TreeCase{"tar: " + c.name, BadImage, split(c.words), Tree{c.ending, file(c.make), nil}})
	}
	for _, c := range tooLarge {
		cases = append(cases, TreeCase{"tar: " + c.name, TooLarge, split(c.words), Tree{".tar.gz", c.make, nil}})
	}
	return cases
}

func tarGoods() []TreeGood {
	absolute := slices.Clone(rootMembers[1:])
	for i := range absolute {
		absolute[i].name = strings.TrimPrefix(absolute[i].name, ".")
	}
	good := func(name, check string, members ...member) TreeGood {
		return TreeGood{"tar: " + name, check, Tree{".tar.gz", plus(members...), nil}}
	}
	return []TreeGood{
		good("plain", ""),
		{"tar: not compressed", "", Tree{".tar", file(func() []byte { return rootTar() }), nil}},
		{"tar: zstd", "", Tree{".tar.zst", file(func() []byte { return zstandard(rootTar()) }), nil}},
		{"tar: xz", "", Tree{".tar.xz", file(func() []byte { return xz(stored(rootTar())) }), nil}},
		{"tar: absolute names", "", Tree{".tar.gz", file(func() []byte { return gzipped(tarOf(absolute...)) }), nil}},
		good("an old sparse map", `[ "$(stat -c %s srv/sparse)" = 2048 ]`, sparseOld("00000004000", 512, "00000001000", "00000001000")),
		good("a sparse map", `[ "$(stat -c %s srv/sparse)" = 1000000 ]`, sparsePax("1000000", "2\n4096\n512\n1000000\n0\n", 512)),
		good("a sparse map of version 0.1", `[ "$(stat -c %s srv/sparse)" = 100000 ]`, sparseOldest("100000", "4096,512,100000,0", 512)),
		good("a member twice", `grep -qx new srv/x`, member{name: "./srv/x", data: []byte("old\n")}, member{name: "./srv/x", data: []byte("new\n")}),
		good("a hard link to a symlink", `[ "$(readlink srv/hard)" = /nowhere ]; [ srv/hard -ef srv/link ] || [ "$(stat -c %h srv/hard)" = 2 ]`,
			member{name: "./srv/link", kind: '2', link: "/nowhere"}, member{name: "./srv/hard", kind: '1', link: "./srv/link"}),
		good("a symlink to the outside", `[ "$(readlink srv/link)" = ../../../../tmp ]`, member{name: "./srv/link", kind: '2', link: "../../../../tmp"}),
		good("a file below an absolute symlink", `[ -f tmp/`+escape+` ]`, member{name: "./tmp/"}, member{name: "./srv/out", kind: '2', link: "/tmp"}, member{name: "./srv/out/" + escape, data: evil}),
		good("a file below a relative symlink", `[ -f tmp/`+escape+` ]`, member{name: "./tmp/"}, member{name: "./srv/out", kind: '2', link: "../../../../../tmp"}, member{name: "./srv/out/" + escape, data: evil}),
		good("a file below symlinks in a row", `[ -f tmp/`+escape+` ]`, member{name: "./srv/a", kind: '2', link: ".."}, member{name: "./srv/b", kind: '2', link: "a/.."}, member{name: "./srv/b/tmp/" + escape, data: evil}),
		good("a hard link through a symlink", `[ srv/hard -ef etc/hostname ]`, member{name: "./srv/out", kind: '2', link: "/etc"}, member{name: "./srv/hard", kind: '1', link: "./srv/out/hostname"}),
		good("an ACL that is no ACL", `[ -f srv/x ]`, member{name: "./srv/x", pax: paxRecord("SCHILY.acl.access", "user::rwx,nonsense")}),
		good("an attribute of 100 KiB", `[ -f srv/x ]`, member{name: "./srv/x", pax: paxRecord("SCHILY.xattr.user.big", strings.Repeat("x", 100*kib))}),
		good("directories behind what is in them", `grep -q outside srv/a/b/c`, member{name: "./srv/a/b/c", data: evil}, member{name: "./srv/a/b/"}, member{name: "./srv/a/"}),
		good("a long name", `[ "$(ls srv | wc -c)" = 201 ]`, member{name: "././@LongLink", kind: 'L', data: []byte("./srv/" + strings.Repeat("x", 200) + "\x00")}, member{name: "x", data: evil}),
		good("a global header", "", member{name: "pax_global_header", kind: 'g', data: []byte(paxRecord("comment", "0123456789"))}),
	}
}
