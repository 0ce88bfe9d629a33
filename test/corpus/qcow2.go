package corpus

import (
	"bytes"
	"compress/flate"
	"encoding/binary"

	"github.com/klauspost/compress/zstd"
)

var (
	be = binary.BigEndian
	le = binary.LittleEndian
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40
)

// Where things are in a qcow2 image of these, in clusters.
const (
	refcountTable = 1
	refcountBlock = 2
	l1Cluster     = 3
	l2Cluster     = 4
	dataCluster   = 5
)

const (
	copied     = 1 << 63
	isPacked   = 1 << 62 // an L2 entry of a compressed cluster
	extBacking = 0xe2792aca
	extNames   = 0x6803f857
)

// qcow2 is an image, its fields as docs/interop/qcow2.txt of QEMU has them.
type qcow2 struct {
	version, clusterBits      uint32
	size                      uint64
	backing                   string
	crypt                     uint32
	l1Size                    uint32
	l1Offset                  uint64
	snapshots                 uint32
	snapshotsOffset           uint64
	incompatible              uint64
	headerLength              uint32
	compression               byte
	extensions                []byte
	refcountTable             uint64
	refcountOrder, refcountTs uint32

	l1, l2 []uint64 // of 16 byte entries l2 has both halves
	data   []byte   // from dataCluster on
	length int64    // of the file, where it is not that of what it holds
}

// newQCOW2 is a good image of a disk of 4 MiB with one cluster that holds text.
func newQCOW2() *qcow2 {
	q := &qcow2{version: 3, size: 4 * mib, l1Size: 1, headerLength: 104, refcountOrder: 4, refcountTs: 1}
	q.clusters(16)
	return q
}

// clusters lays the image out for clusters of 1<<bits bytes.
func (q *qcow2) clusters(bits uint32) {
	q.clusterBits = bits
	q.refcountTable, q.l1Offset = refcountTable<<bits, l1Cluster<<bits
	q.l1 = []uint64{copied | l2Cluster<<bits}
	q.l2 = []uint64{copied | dataCluster<<bits}
	q.data = bytes.Repeat([]byte("content "), 1<<bits/8)
}

func (q *qcow2) header() []byte {
	h := make([]byte, 112)
	copy(h, "QFI\xfb")
	be.PutUint32(h[4:], q.version)
	if q.backing != "" {
		be.PutUint64(h[8:], 1024)
		be.PutUint32(h[16:], uint32(len(q.backing)))
	}
	be.PutUint32(h[20:], q.clusterBits)
	be.PutUint64(h[24:], q.size)
	be.PutUint32(h[32:], q.crypt)
	be.PutUint32(h[36:], q.l1Size)
	be.PutUint64(h[40:], q.l1Offset)
	be.PutUint64(h[48:], q.refcountTable)
	be.PutUint32(h[56:], q.refcountTs)
	be.PutUint32(h[60:], q.snapshots)
	be.PutUint64(h[64:], q.snapshotsOffset)
	be.PutUint64(h[72:], q.incompatible)
	be.PutUint32(h[96:], q.refcountOrder)
	be.PutUint32(h[100:], q.headerLength)
	h[104] = q.compression
	if q.headerLength == 104 {
		h = h[:104]
	}
	return append(h, q.extensions...)
}

func (q *qcow2) image() Image {
	var i Image
	cluster := int64(1) << min(q.clusterBits, 21)
	if q.backing != "" {
		i.put(1024, []byte(q.backing))
	}
	i.put(refcountTable*cluster, words(uint64(refcountBlock*cluster)))
	// One reference each, for which the order is always 4.
	i.put(refcountBlock*cluster, bytes.Repeat([]byte{0, 1}, dataCluster+len(q.data)/int(cluster)))
	i.put(l1Cluster*cluster, words(q.l1...))
	i.put(l2Cluster*cluster, words(q.l2...))
	i.put(dataCluster*cluster, q.data)
	i.put(0, q.header()) // last: clusters that are too small lie in it
	i.Length = (i.Length + cluster - 1) / cluster * cluster
	if q.length != 0 {
		i.cut(q.length)
	}
	return i
}

func words(list ...uint64) []byte {
	var b []byte
	for _, w := range list {
		b = be.AppendUint64(b, w)
	}
	return b
}

// pack makes the whole disk of data that is compressed: each L2 entry leads to
// the same bytes.
func (q *qcow2) pack(data []byte) {
	sectors := uint64(len(data)+511) / 512
	offset := uint64(dataCluster) << q.clusterBits
	entry := isPacked | (sectors-1)<<(62-(q.clusterBits-8)) | offset
	q.l2 = nil
	for range min(q.size, 1<<q.clusterBits/8<<q.clusterBits) >> q.clusterBits {
		q.l2 = append(q.l2, entry)
	}
	q.data = make([]byte, sectors*512)
	copy(q.data, data)
}

// packMiddle is pack for the second half of the disk but for its last MiB.
func (q *qcow2) packMiddle(data []byte) {
	q.pack(data)
	for n := range q.l2 {
		if at := uint64(n) << q.clusterBits; at < q.size/2 || at >= q.size-mib {
			q.l2[n] = 0
		}
	}
}

func deflated(data []byte) []byte {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	must(err)
	return b.Bytes()
}

func zstandard(data []byte) []byte {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	must(err)
	return w.EncodeAll(data, nil)
}

// must is for what fails only when this package is wrong.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

func text(n int) []byte {
	return bytes.Repeat([]byte("The quick brown fox jumps over the lazy dog. "), n/45+1)[:n]
}

// zstdWindow is a zstd frame that asks for a window of 2 GiB (RFC 8878, 3.1.1.1.2).
var zstdWindow = []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00}

// featureName is a feature name table that calls an incompatible feature's bit
// by a name.
func featureName(bit byte, name string) []byte {
	entry := make([]byte, 48)
	entry[1] = bit
	copy(entry[2:], name)
	return append(be.AppendUint32(be.AppendUint32(nil, extNames), 48), append(entry, make([]byte, 8)...)...)
}

// shared is an image of a disk of 64 TiB of which all L1 entries lead to one L2
// table, and all entries of it to one compressed cluster.
func (q *qcow2) shared() {
	q.size, q.l1Size = 64*tib, 64*tib/(512*mib)
	q.pack(deflated(make([]byte, 64*kib)))
	for range q.l1Size - 1 {
		q.l1 = append(q.l1, l2Cluster<<16)
	}
	// Behind the L1 table, which is 16 clusters long.
	q.l1Offset = (dataCluster + 1) << 16
	q.data = append(q.data, make([]byte, 64*kib-len(q.data))...)
	q.data = append(q.data, words(q.l1...)...)
	q.l1 = nil
}

// spread is an image of a disk of 64 TiB with as many L2 tables, all of them in
// a hole of the file.
func (q *qcow2) spread() {
	q.size, q.l1Size = 64*tib, 64*tib/(512*mib)
	q.l1Offset = (dataCluster + 1) << 16
	q.l1 = nil
	for n := range uint64(q.l1Size) {
		q.data = be.AppendUint64(q.data, copied|(64+n)<<16)
	}
	q.length = (64 + int64(q.l1Size)) << 16
}

type qcow2Edit struct {
	name, words string // the words separated by |
	edit        func(q *qcow2)
}

func (e qcow2Edit) make() Image {
	q := newQCOW2()
	e.edit(q)
	return q.image()
}

var refusedQCOW2 = []qcow2Edit{
	{"backing file", "backing file", func(q *qcow2) { q.backing = "/etc/shadow" }},
	{"backing file named in an extension too", "backing file", func(q *qcow2) {
		q.backing = "json:{\"file.driver\":\"nbd\"}"
		q.extensions = append(be.AppendUint32(be.AppendUint32(nil, extBacking), 3), "raw\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	}},
	{"version 2 with a backing file", "backing file", func(q *qcow2) { q.version, q.backing = 2, "/dev/sda" }},
	{"external data file", "external file", func(q *qcow2) { q.incompatible = 1 << 2 }},
	{"encrypted with AES", "encrypted", func(q *qcow2) { q.crypt = 1 }},
	{"encrypted with LUKS", "encrypted", func(q *qcow2) {
		q.crypt = 2
		q.extensions = append(be.AppendUint32(be.AppendUint32(nil, 0x0537be77), 16), words(dataCluster<<16, 64*kib, 0)...)
	}},
	{"encryption of an unknown method", "encrypted", func(q *qcow2) { q.crypt = 1 << 31 }},
	{"marked as corrupt", "corrupt", func(q *qcow2) { q.incompatible = 1 << 1 }},
	{"unknown feature with a name", "bit 5|quantum clusters", func(q *qcow2) {
		q.incompatible, q.extensions = 1<<5, featureName(5, "quantum clusters")
	}},
	{"unknown feature with a name to break terminals", "bit 6", func(q *qcow2) {
		q.incompatible, q.extensions = 1<<6, featureName(6, "\x1b]0;gone\x07\r\n\xff\xfe")
	}},
	{"unknown feature without a name", "bit 63", func(q *qcow2) { q.incompatible = 1 << 63 }},
	{"extension that is longer than the file", "bit 7", func(q *qcow2) {
		q.incompatible, q.extensions = 1<<7, be.AppendUint32(be.AppendUint32(nil, extNames), 1<<32-1)
	}},
	{"version 0", "unknown version", func(q *qcow2) { q.version = 0 }},
	{"version 4", "unknown version", func(q *qcow2) { q.version = 4 }},
	{"version 2^32-1", "unknown version", func(q *qcow2) { q.version = 1<<32 - 1 }},
	{"clusters of 1 byte", "cluster size", func(q *qcow2) { q.clusterBits = 0 }},
	{"clusters of 256 bytes", "cluster size", func(q *qcow2) { q.clusterBits = 8 }},
	{"clusters of 4 MiB", "cluster size", func(q *qcow2) { q.clusterBits = 22 }},
	{"clusters of 2^63 bytes", "cluster size", func(q *qcow2) { q.clusterBits = 63 }},
	{"clusters of 2^(2^32-1) bytes", "cluster size", func(q *qcow2) { q.clusterBits = 1<<32 - 1 }},
	{"L1 table of 2^31 entries", "L1 table|2147483648", func(q *qcow2) { q.l1Size = 1 << 31 }},
	{"L1 table of no entries", "L1 table", func(q *qcow2) { q.l1Size = 0 }},
	{"L1 table that is too short", "L1 table|needs 2", func(q *qcow2) { q.size = 513 * mib }},
	{"L1 table behind the end", "cut off|L1 table", func(q *qcow2) { q.l1Offset = 1 << 40 }},
	{"L1 table at 2^63", "L1 table", func(q *qcow2) { q.l1Offset = 1 << 63 }},
	{"L1 table that wraps around", "L1 table", func(q *qcow2) { q.l1Offset = 1<<64 - 1<<16 }},
	{"L1 table at no cluster", "L1 table|start of a cluster", func(q *qcow2) { q.l1Offset += 8 }},
	{"L1 table in the header", "L1 table", func(q *qcow2) { q.l1Offset = 0 }},
	{"L1 entry with reserved bits", "L1 table|reserved", func(q *qcow2) { q.l1[0] |= 1 << 60 }},
	{"L1 entry behind the end", "L1 table|behind the end", func(q *qcow2) { q.l1[0] = 1 << 40 }},
	{"L1 entry at no cluster", "L1 table|not the offset of a cluster", func(q *qcow2) { q.l1[0] += 512 }},
	{"L2 entry behind the end", "offset 0|behind the end", func(q *qcow2) { q.l2[0] = 1 << 40 }},
	{"L2 entry at no cluster", "not the offset of a cluster", func(q *qcow2) { q.l2[0] += 512 }},
	{"L2 entry with reserved bits", "reserved", func(q *qcow2) { q.l2[0] |= 1 << 4 }},
	{"zero flag in version 2", "reserved", func(q *qcow2) { q.version, q.l2[0] = 2, 1 }},
	{"last L2 entry behind the end", "offset 4128768|behind the end", func(q *qcow2) {
		q.l2 = append(make([]uint64, 63), 1<<40)
	}},
	{"compressed cluster behind the end", "behind the end", func(q *qcow2) { q.l2[0] = isPacked | 1<<40 }},
	{"compressed cluster with the copied bit", "reserved", func(q *qcow2) {
		q.pack(deflated(text(64 * kib)))
		q.l2[0] |= copied
	}},
	{"compressed cluster in the header", "offset 0", func(q *qcow2) { q.l2[0] = isPacked }},
	{"damaged cluster at the beginning", "damaged|offset 0", func(q *qcow2) { q.pack(bytes.Repeat([]byte{0xff}, 512)) }},
	{"disk of no bytes", "empty", func(q *qcow2) { q.size = 0 }},
	{"disk of 511 bytes", "empty", func(q *qcow2) { q.size = 511 }},
	{"disk of 2^63 bytes", "larger than", func(q *qcow2) { q.size = 1 << 63 }},
	{"disk of 2^64-1 bytes", "larger than", func(q *qcow2) { q.size = 1<<64 - 1 }},
	{"subcluster that is data and zero", "subclusters", func(q *qcow2) {
		q.incompatible, q.l2 = 1<<4, []uint64{q.l2[0], 1<<32 | 1}
	}},
	{"subclusters of a cluster that is nowhere", "subclusters", func(q *qcow2) { q.incompatible, q.l2 = 1<<4, []uint64{0, 1} }},
	{"subclusters in small clusters", "subclusters", func(q *qcow2) {
		q.clusters(12)
		q.incompatible = 1 << 4
	}},
	{"unknown compression", "compression type 7", func(q *qcow2) {
		q.headerLength, q.compression, q.incompatible = 112, 7, 1<<3
	}},
	{"compression without its feature", "compression type 1", func(q *qcow2) { q.headerLength, q.compression = 112, 1 }},
	{"compression feature without a type", "compression type 0", func(q *qcow2) { q.headerLength, q.incompatible = 112, 1<<3 }},
	{"header of 0 bytes", "header length", func(q *qcow2) { q.headerLength = 0 }},
	{"header of 103 bytes", "header length", func(q *qcow2) { q.headerLength = 103 }},
	{"header of 2^31 bytes", "header length", func(q *qcow2) { q.headerLength = 1 << 31 }},
	{"header that is longer than a cluster", "header length", func(q *qcow2) {
		q.clusters(9)
		q.headerLength = 1024
	}},
	{"cut off in the header", "cut off", func(q *qcow2) { q.length = 100 }},
	{"cut off in front of the L1 table", "cut off|L1 table", func(q *qcow2) { q.length = 150000 }},
	{"cut off in the L2 table", "behind the end", func(q *qcow2) { q.length = l2Cluster<<16 + 512 }},
	{"cut off in the data", "behind the end", func(q *qcow2) { q.length = dataCluster<<16 + 1024 }},
}

// damagedQCOW2 are the images whose damage is in compressed data.
var damagedQCOW2 = []qcow2Edit{
	{"damaged cluster", "damaged|offset 2097152", func(q *qcow2) { q.packMiddle(bytes.Repeat([]byte{0xff}, 512)) }},
	{"compressed cluster that is too short", "damaged", func(q *qcow2) { q.packMiddle(deflated(text(63 * kib))) }},
	{"compressed cluster that is too long", "damaged", func(q *qcow2) { q.packMiddle(deflated(text(65 * kib))) }},
	{"compressed cluster of empty blocks", "damaged", func(q *qcow2) {
		q.packMiddle(bytes.Repeat([]byte{0, 0, 0, 0xff, 0xff}, 64*kib/5))
	}},
	{"compressed cluster that looks back too far", "damaged", func(q *qcow2) {
		q.packMiddle([]byte{0x03, 0x02, 0x00, 0x00}) // a fixed block that begins with a match
	}},
	{"damaged cluster of zstd", "damaged", func(q *qcow2) {
		q.zstd()
		q.packMiddle(append(zstandard(text(64 * kib))[:20], bytes.Repeat([]byte{0xff}, 400)...))
	}},
	{"cluster of zstd that is too short", "damaged", func(q *qcow2) {
		q.zstd()
		q.packMiddle(zstandard(text(63 * kib)))
	}},
	{"cluster of zstd that is too long", "damaged", func(q *qcow2) {
		q.zstd()
		q.packMiddle(zstandard(text(65 * kib)))
	}},
	{"cluster of zstd that is 256 MiB long", "damaged", func(q *qcow2) {
		q.zstd()
		q.packMiddle(zstdZeros(256 * mib))
	}},
	{"cluster of zstd with a window of 2 GiB", "damaged", func(q *qcow2) {
		q.zstd()
		q.packMiddle(zstdWindow)
	}},
	{"cluster of empty zstd frames", "damaged", func(q *qcow2) {
		q.zstd()
		q.packMiddle(bytes.Repeat(zstdEmpty, 64*kib/len(zstdEmpty)))
	}},
}

func (q *qcow2) zstd() { q.headerLength, q.compression, q.incompatible = 112, 1, 1<<3 }

var largeQCOW2 = []qcow2Edit{
	{"disk of 1 MiB more", "17 MiB|16 MiB", func(q *qcow2) { q.size = 17 * mib }},
	{"disk of 1 sector more", "16777728|16777216", func(q *qcow2) { q.size = 16*mib + 512 }},
	{"disk of 64 TiB that is one compressed cluster", "64 TiB|16 MiB", (*qcow2).shared},
	{"disk of 64 TiB with its tables in a hole", "64 TiB|16 MiB", (*qcow2).spread},
}

// goodQCOW2 are odd, but every reader can read them.
var goodQCOW2 = []qcow2Edit{
	{"plain", "", func(*qcow2) {}},
	{"version 2", "", func(q *qcow2) { q.version = 2 }},
	{"compressed", "", func(q *qcow2) { q.pack(deflated(text(64 * kib))) }},
	{"compressed with zstd", "", func(q *qcow2) {
		q.zstd()
		q.pack(zstandard(text(64 * kib)))
	}},
	{"disk of 16 MiB that is one compressed cluster", "", func(q *qcow2) {
		q.clusters(9)
		q.size, q.l1Size = DiskMiB*mib, DiskMiB*mib/(32*kib)
		q.pack(deflated(text(512)))
		// The tables are behind the data, which is one cluster.
		q.l1Offset = (dataCluster + 1) << 9
		for range q.l1Size {
			q.data = be.AppendUint64(q.data, l2Cluster<<9)
		}
		q.l1 = nil
	}},
	{"refcounts that are nonsense", "", func(q *qcow2) {
		q.refcountTable, q.refcountOrder, q.refcountTs = 1<<63-1, 99, 1<<32-1
	}},
	{"snapshots that are nonsense", "", func(q *qcow2) { q.snapshots, q.snapshotsOffset = 1<<32-1, 1<<63-1 }},
	{"L2 table that is the L1 table", "", func(q *qcow2) { q.l1[0] = copied | l1Cluster<<16 }},
	{"disk of half a sector more", "", func(q *qcow2) { q.size += 256 }},
}

func qcow2Cases() []Case {
	var cases []Case
	add := func(edits []qcow2Edit, code int, late bool) {
		for _, e := range edits {
			cases = append(cases, Case{"qcow2 " + e.name, code, split(e.words), late, e.make})
		}
	}
	add(refusedQCOW2, BadImage, false)
	add(damagedQCOW2, BadImage, true)
	add(largeQCOW2, TooLarge, false)
	return cases
}

func qcow2Goods() []Good {
	var goods []Good
	for _, e := range goodQCOW2 {
		goods = append(goods, Good{"qcow2 " + e.name, e.make})
	}
	return goods
}
