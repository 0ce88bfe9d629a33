package corpus

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"io"
	"slices"

	"github.com/klauspost/compress/gzip"
	"github.com/pierrec/lz4/v4"
)

// bombMiB is how much the bombs unpack to.
const bombMiB = DiskMiB + 108

var (
	// zerosBzip2 is 1 MiB of zeros: head -c 1M /dev/zero | bzip2 -9.
	zerosBzip2 = unhex("425a683931415926535938571ce50008084000c0040008200030cc0529a60806c4201e2ee48a70a12070ae39ca")
	// emptyBzip2 is nothing: bzip2 </dev/null.
	emptyBzip2 = unhex("425a683917724538509000000000")
	// zerosLZMA2 is 1 MiB of zeros in one chunk of LZMA2, without the chunk that
	// ends the data: the data of the one block of head -c 1M /dev/zero | xz -9.
	zerosLZMA2 = unhex("efffff00d95d00006ffdffffa3b7ff473e481572396151b89228e6a38607f9eee41e82d32fc53a3c014bb17ec98a8a4d2fa3" +
		"0dd97fa6e38c231153e05918c5758ae277f8b6947f0c6ac0de744964e2e95c53b204d8f7440cab5f0d6d46e9e5c37688b796" +
		"57acb64de1691d6ffb4b88106c42cb883f5c008fd04eaf262894711f3d8f24e1709ea7235fec28cb85d195988a7e2a91f227" +
		"75f719c006984d98fdd8afd5900fc42553f8f591363105a5b0ee6fc1704d470cd19111aaad601dbaceb127185c5986e96652" +
		"58bee976ac59e4e55b0508f9c7daadfcfb522af7e4952500")
	// zstdEmpty is a frame without content (RFC 8878).
	zstdEmpty = []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 0x01, 0x00, 0x00}
	// lz4Empty is a frame without content, as lz4 </dev/null writes it but for
	// the checksum of the content.
	lz4Empty = []byte{0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82, 0, 0, 0, 0}
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	must(err)
	return b
}

func zeros(n int) []byte { return make([]byte, n) }

// plain is a disk of 3 MiB with a table and text.
func plain() []byte {
	b := zeros(3 * mib)
	copy(b, bootRecord(mbrPart{0x83, 2048, 4096}))
	copy(b[mib:], text(2*mib))
	return b
}

func gzipped(data []byte) []byte {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	must(err)
	written(w, data)
	return b.Bytes()
}

func lz4ed(data []byte) []byte {
	var b bytes.Buffer
	w := lz4.NewWriter(&b)
	must(w.Apply(lz4.ConcurrencyOption(1)))
	written(w, data)
	return b.Bytes()
}

func written(w io.WriteCloser, data []byte) {
	_, err := w.Write(data)
	must(err)
	must(w.Close())
}

// zstdFrame is a zstd frame of blocks, with a window of 8 MiB and without
// checksum. It says its content's size where that is not negative.
func zstdFrame(size int64, blocks []byte) []byte {
	b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 13 << 3}
	if size >= 0 {
		b[4] = 0xc0
		b = binary.LittleEndian.AppendUint64(b, uint64(size))
	}
	return append(b, blocks...)
}

// zeroBlocks are n bytes of zeros, in blocks of 128 KiB that say what to repeat.
func zeroBlocks(n int) []byte {
	var b []byte
	for done := 0; done < n; done += 128 * kib {
		length := min(128*kib, n-done)
		header := length<<3 | 1<<1
		if done+length == n {
			header |= 1
		}
		b = append(b, byte(header), byte(header>>8), byte(header>>16), 0)
	}
	return b
}

func zstdZeros(n int) []byte { return zstdFrame(-1, zeroBlocks(n)) }

// window is a frame of zstdFrame with another window descriptor.
func window(frame []byte, descriptor byte) []byte {
	frame[5] = descriptor
	return frame
}

// xzBlock is a block of xz data; a field that is 0 has what is right.
type xzBlock struct {
	filter     byte   // the filter's number, for 0x21: LZMA2
	dictionary byte   // the size of its dictionary, as a filter's property
	data       []byte // without the chunk that ends it
	content    []byte // what it decodes to
	claim      uint64 // what the index says of its length
}

// stored is a block of data that LZMA2 leaves as it is.
func stored(content []byte) xzBlock {
	b := xzBlock{dictionary: 0x10, content: content}
	control := byte(1)
	for at := 0; at < len(content); at += 64 * kib {
		chunk := content[at:min(at+64*kib, len(content))]
		b.data = append(b.data, control, byte((len(chunk)-1)>>8), byte(len(chunk)-1))
		b.data = append(b.data, chunk...)
		control = 2
	}
	return b
}

// zerosXZ is a block of 1 MiB of zeros.
func zerosXZ() xzBlock {
	return xzBlock{dictionary: 0x1c, data: zerosLZMA2, content: zeros(mib)}
}

// xz is a stream (the .xz file format 1.1.0) with checksums of 32 bits.
func xz(blocks ...xzBlock) []byte {
	return xzStream(func(index []byte) []byte { return index }, blocks...)
}

// xzStream is xz with an index that is changed by edit; it is not padded yet.
func xzStream(edit func(index []byte) []byte, blocks ...xzBlock) []byte {
	flags := []byte{0, 1}
	b := append([]byte("\xfd7zXZ\x00"), withSum(flags)...)
	index := varint([]byte{0}, uint64(len(blocks)))
	for _, block := range blocks {
		start := len(b)
		b = append(b, withSum([]byte{2, 0, byte(or(uint64(block.filter), 0x21)), 1, block.dictionary, 0, 0, 0})...)
		b = append(append(b, block.data...), 0)
		unpadded := len(b) - start + 4
		b = le.AppendUint32(pad(b), crc32.ChecksumIEEE(block.content))
		index = varint(varint(index, uint64(unpadded)), or(block.claim, uint64(len(block.content))))
	}
	index = withSum(pad(edit(index)))
	footer := append(le.AppendUint32(nil, uint32(len(index)/4-1)), flags...)
	b = append(b, index...)
	b = le.AppendUint32(b, crc32.ChecksumIEEE(footer))
	return append(append(b, footer...), "YZ"...)
}

func withSum(b []byte) []byte { return le.AppendUint32(slices.Clone(b), crc32.ChecksumIEEE(b)) }

func varint(b []byte, n uint64) []byte { return binary.AppendUvarint(b, n) }

func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// manyRecords makes an index that speaks of 2^60 blocks.
func manyRecords(index []byte) []byte { return varint([]byte{0}, 1<<60) }

func half(b []byte) []byte { return b[:len(b)/2] }

// flipped is b with another byte at an offset, from the end where it is
// negative.
func flipped(b []byte, at int) []byte {
	b = slices.Clone(b)
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 0x5a
	return b
}

func file(make func() []byte) func() Image {
	return func() Image { return Bytes(make()) }
}

// inside is a file whose disk image is one of these, in gzip.
func inside(make func() Image) func() []byte {
	return func() []byte { return gzipped(make().flat()) }
}

// flat is the content of a small file.
func (i Image) flat() []byte {
	b := make([]byte, i.Length)
	for _, p := range i.Pieces {
		copy(b[p.Offset:], p.Data)
	}
	return b
}

type compressedCase struct {
	name, words string
	late        bool
	make        func() []byte
}

// bombs unpack to more than the disk has room for.
var bombs = []compressedCase{
	{"gzip bomb", "16 MiB", true, func() []byte { return gzipped(zeros(bombMiB * mib)) }},
	{"gzip bomb of members", "16 MiB", true, func() []byte { return bytes.Repeat(gzipped(zeros(mib)), bombMiB) }},
	{"zstd bomb", "16 MiB", true, func() []byte { return zstdZeros(bombMiB * mib) }},
	{"zstd bomb of 64 GiB", "16 MiB", true, func() []byte { return bytes.Repeat(zstdZeros(gib), 64) }},
	{"zstd bomb that says its size", "124 MiB|16 MiB", false, func() []byte { return zstdFrame(bombMiB*mib, zeroBlocks(bombMiB*mib)) }},
	{"lz4 bomb", "16 MiB", true, func() []byte { return lz4ed(zeros(bombMiB * mib)) }},
	{"bzip2 bomb", "16 MiB", true, func() []byte { return bytes.Repeat(zerosBzip2, bombMiB) }},
	{"xz bomb of blocks", "124 MiB|16 MiB", false, func() []byte { return xz(slices.Repeat([]xzBlock{zerosXZ()}, bombMiB)...) }},
	{"xz bomb of streams", "124 MiB|16 MiB", false, func() []byte { return bytes.Repeat(xz(zerosXZ()), bombMiB) }},
}

var refusedCompressed = []compressedCase{
	{"gzip cut off", "gzip|cut off", true, func() []byte { return half(gzipped(plain())) }},
	{"gzip cut off in its checksum", "gzip|cut off", true, func() []byte { b := gzipped(plain()); return b[:len(b)-6] }},
	{"gzip cut off in its header", "gzip|cut off", false, func() []byte { return gzipped(plain())[:6] }},
	{"gzip with a wrong checksum", "gzip|checksum", true, func() []byte { return flipped(gzipped(plain()), -8) }},
	{"gzip with a wrong length", "gzip", true, func() []byte { return flipped(gzipped(plain()), -1) }},
	{"gzip with junk behind it", "gzip|follows", true, func() []byte { return append(gzipped(plain()), "junk"...) }},
	{"gzip of nothing", "gzip|nothing", false, func() []byte { return gzipped(nil) }},
	{"gzip without end and content", "gzip|pieces", false, func() []byte { return bytes.Repeat(gzipped(nil), 50000) }},
	{"gzip of qcow2", "gzip|qcow2", false, inside(func() Image { return newQCOW2().image() })},
	{"gzip of VMDK", "gzip|VMDK", false, inside(magic(0, "KDMV\x01\x00\x00\x00"))},
	{"gzip of a zip archive", "gzip|zip archive", false, inside(magic(0, "PK\x03\x04\x14\x00"))},
	{"gzip of a web page", "gzip|web page", false, inside(content("<!DOCTYPE html>\n<html></html>\n"))},
	{"gzip of gzip", "gzip", false, func() []byte { return gzipped(gzipped(plain())) }},
	{"gzip of overlapping partitions", "overlap", true, inside(mbr(mbrPart{0x83, 2048, 4000}, mbrPart{0x83, 4096, 1000}))},
	{"gzip of ext4 that was cut off", "ext4|cut off", true, inside(func() Image { return extDisk(4*mib, 20<<10) })},

	{"xz cut off", "xz|cut off", false, func() []byte { return half(xz(zerosXZ())) }},
	{"xz cut off in its footer", "xz|cut off", false, func() []byte { b := xz(zerosXZ()); return b[:len(b)-4] }},
	{"xz with a wrong checksum", "xz", true, func() []byte { b := zerosXZ(); b.content = flipped(b.content, 1); return xz(zerosXZ(), zerosXZ(), b) }},
	{"xz with an index that lies", "xz", true, func() []byte { b := zerosXZ(); b.claim = 2 * mib; return xz(zerosXZ(), zerosXZ(), b) }},
	{"xz with an index of 2^62 bytes", "xz", false, func() []byte { b := zerosXZ(); b.claim = 1 << 62; return xz(b) }},
	{"xz with an index of 2^60 blocks", "xz|blocks", false, func() []byte { return xzStream(manyRecords, zerosXZ()) }},
	{"xz with a damaged index", "xz|index", false, func() []byte { return flipped(xz(zerosXZ()), -16) }},
	{"xz with a dictionary of 1.5 GiB", "xz|dictionary", false, func() []byte {
		b := zerosXZ()
		b.dictionary, b.claim = 37, 3*gib/2 // it is needed only where there is as much to decode
		return xz(b)
	}},
	{"xz with an unknown filter", "xz|filter", false, func() []byte { b := zerosXZ(); b.filter = 0x7e; return xz(b) }},
	{"xz with junk behind it", "xz", false, func() []byte { return append(xz(zerosXZ()), "junk"...) }},
	{"xz of nothing", "xz|nothing", false, func() []byte { return xz() }},
	{"xz without end and content", "xz", false, func() []byte { return bytes.Repeat(xz(), 50000) }},
	{"xz of empty blocks", "xz", false, func() []byte { return xz(make([]xzBlock, 180000)...) }},

	{"zstd cut off", "zstd|cut off", true, func() []byte { return half(zstandard(plain())) }},
	{"zstd cut off in its checksum", "zstd|cut off", true, func() []byte { b := zstandard(plain()); return b[:len(b)-2] }},
	{"zstd with a wrong checksum", "zstd|CRC", true, func() []byte { return flipped(zstandard(plain()), -1) }},
	{"zstd with a size that lies", "zstd", true, func() []byte { return zstdFrame(2*mib, zeroBlocks(4*mib)) }},
	{"zstd with a size of 2^63", "64 TiB", false, func() []byte { return zstdFrame(1<<63-1, zeroBlocks(4*mib)) }},
	{"zstd with a window of 2 GiB", "zstd|window", false, func() []byte { return zstdWindow }},
	{"zstd with a dictionary", "zstd|dictionary", false, func() []byte {
		return []byte{0x28, 0xb5, 0x2f, 0xfd, 0x01, 0x58, 0x07, 0x01, 0x00, 0x00}
	}},
	{"zstd with junk behind it", "zstd|follows", true, func() []byte { return append(zstandard(plain()), "junkjunk"...) }},
	{"zstd without end and content", "zstd|pieces", false, func() []byte { return bytes.Repeat(zstdEmpty, 100000) }},
	{"zstd of empty frames that say so", "zstd", false, func() []byte {
		return bytes.Repeat([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x00, 0x01, 0x00, 0x00}, 400000)
	}},
	{"zstd cut off, behind a frame to skip", "zstd", false, func() []byte {
		return append(append([]byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 1, 0}, zeros(64*kib)...), half(zstandard(plain()))...)
	}},
	{"zstd of frames to skip", "zstd", false, func() []byte {
		return append(slices.Clone(zstdEmpty), bytes.Repeat([]byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}, 100000)...)
	}},

	{"lz4 cut off", "lz4|cut off", true, func() []byte { return half(lz4ed(plain())) }},
	{"lz4 with a wrong checksum", "lz4|checksum", true, func() []byte { return flipped(lz4ed(plain()), -1) }},
	{"lz4 with a wrong header", "lz4", false, func() []byte { return flipped(lz4ed(plain()), 6) }},
	{"lz4 of version 3", "lz4", false, func() []byte { b := slices.Clone(lz4ed(plain())); b[4] |= 0xc0; return b }},
	{"lz4 with junk behind it", "lz4|follows", true, func() []byte { return append(lz4ed(plain()), "junkjunk"...) }},
	{"lz4 without end and content", "lz4|pieces", false, func() []byte { return bytes.Repeat(lz4Empty, 100000) }},
	{"lz4 of the old format", "lz4", false, func() []byte { return []byte{0x02, 0x21, 0x4c, 0x18, 4, 0, 0, 0, 0x30, 'a', 'b', 'c'} }},

	{"bzip2 cut off", "bzip2|cut off", true, func() []byte { return bytes.Repeat(zerosBzip2, 3)[:120] }},
	{"bzip2 with a wrong checksum", "bzip2|checksum", true, func() []byte { return flipped(bytes.Repeat(zerosBzip2, 3), -4) }},
	{"bzip2 with junk behind it", "bzip2|follows", true, func() []byte { return append(slices.Clone(zerosBzip2), "junk"...) }},
	{"bzip2 without end and content", "bzip2", false, func() []byte { return bytes.Repeat(emptyBzip2, 100000) }},
}

// padded are good data with zeros behind them up to 64 GiB, all of them a hole.
// Tapes and xz pad with zeros, but nobody has time for so many.
var padded = []struct {
	name string
	data func() []byte
}{
	{"gzip", func() []byte { return gzipped(plain()) }},
	{"xz", func() []byte { return xz(zerosXZ()) }},
	{"bzip2", func() []byte { return zerosBzip2 }},
	{"zstd", func() []byte { return zstandard(plain()) }},
	{"lz4", func() []byte { return lz4ed(plain()) }},
}

func compressedCases() []Case {
	var cases []Case
	for _, c := range padded {
		cases = append(cases, Case{c.name + " with a hole of 64 GiB behind it", BadImage, []string{c.name}, true, func() Image {
			i := Bytes(c.data())
			i.Length = 64 * gib
			return i
		}})
	}
	for _, c := range bombs {
		cases = append(cases, Case{c.name, TooLarge, split(c.words), c.late, file(c.make)})
	}
	for _, c := range refusedCompressed {
		cases = append(cases, Case{c.name, BadImage, split(c.words), c.late, file(c.make)})
	}
	return cases
}

func compressedGoods() []Good {
	return []Good{
		{"gzip", file(func() []byte { return gzipped(plain()) })},
		{"gzip in two members, and zeros", file(func() []byte {
			b := plain()
			return slices.Concat(gzipped(b[:mib]), gzipped(b[mib:]), zeros(512))
		})},
		{"xz", file(func() []byte { return xz(stored(plain())) })},
		{"xz with a dictionary of 4 GiB for 1 MiB", file(func() []byte {
			b := zerosXZ()
			b.dictionary = 40
			return xz(b)
		})},
		{"xz of zeros that fills the disk", file(func() []byte { return xz(slices.Repeat([]xzBlock{zerosXZ()}, DiskMiB)...) })},
		{"zstd", file(func() []byte { return zstandard(plain()) })},
		{"zstd of zeros that fills the disk", file(func() []byte { return zstdZeros(DiskMiB * mib) })},
		{"zstd with a window of 128 MiB", file(func() []byte { return window(zstdZeros(DiskMiB*mib), 17<<3) })},
		{"zstd with ever larger windows", file(func() []byte {
			var b []byte
			for exponent := range byte(4) {
				for mantissa := range byte(4) {
					b = append(b, window(zstdZeros(mib), (13+exponent)<<3|mantissa<<1)...)
				}
			}
			return b
		})},
		{"lz4", file(func() []byte { return lz4ed(plain()) })},
		{"bzip2 of zeros that fills the disk", file(func() []byte { return bytes.Repeat(zerosBzip2, DiskMiB) })},
	}
}
