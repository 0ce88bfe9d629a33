package corpus

import (
	"bytes"
	"hash/crc32"
	"slices"
)

const (
	sector   = 512
	rawMiB   = 8 // the length of the raw images
	sectors  = rawMiB * mib / sector
	gptLinux = "\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4"
)

// gptPart is a partition, first and last are sectors.
type gptPart struct{ first, last uint64 }

// gpt is a disk with a GPT, its fields as the UEFI specification (chapter 5) has
// them. A field that is changed is changed in both headers, with their checksums
// right.
type gpt struct {
	sectors                 uint64
	firstUsable, lastUsable uint64
	entriesAt               uint64 // of the primary; 0 where it is sector 2
	backupEntriesAt         uint64 // 0 where it is in front of the backup's header
	headerSize              uint32
	count, entrySize        uint32
	parts                   []gptPart
	boot                    []byte
	damage                  func(i *Image) // last, after the checksums
}

func newGPT() *gpt {
	return &gpt{
		sectors: sectors, firstUsable: 34, lastUsable: sectors - 34, headerSize: 92, count: 128, entrySize: 128,
		parts: []gptPart{{2048, 4095}, {4096, sectors - 34}},
		boot:  bootRecord(mbrPart{kind: 0xee, start: 1, length: sectors - 1}),
	}
}

func (g *gpt) image() Image {
	i := Image{Length: int64(g.sectors) * sector}
	entries := make([]byte, 128*128)
	for n, p := range g.parts {
		e := entries[n*128:]
		copy(e, gptLinux)
		copy(e[16:], bytes.Repeat([]byte{byte(n + 1)}, 16))
		le.PutUint64(e[32:], p.first)
		le.PutUint64(e[40:], p.last)
	}
	last := g.sectors - 1
	i.put(0, g.boot)
	i.put(sector, g.header(1, last, or(g.entriesAt, 2), entries))
	if at := int64(or(g.entriesAt, 2)); at > 1 && at < int64(last) {
		i.put(at*sector, entries)
	}
	i.put(int64(last-32)*sector, entries)
	i.put(int64(last)*sector, g.header(last, 1, or(g.backupEntriesAt, last-32), entries))
	if g.damage != nil {
		g.damage(&i)
	}
	return i
}

func or(n, otherwise uint64) uint64 {
	if n == 0 {
		return otherwise
	}
	return n
}

func (g *gpt) header(mine, other, entriesAt uint64, entries []byte) []byte {
	h := make([]byte, sector)
	copy(h, "EFI PART\x00\x00\x01\x00")
	le.PutUint32(h[12:], g.headerSize)
	for n, field := range []uint64{mine, other, g.firstUsable, g.lastUsable} {
		le.PutUint64(h[24+8*n:], field)
	}
	copy(h[56:], bytes.Repeat([]byte{0xd1}, 16))
	le.PutUint64(h[72:], entriesAt)
	le.PutUint32(h[80:], g.count)
	le.PutUint32(h[84:], g.entrySize)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:min(g.headerSize, sector)]))
	return h
}

// mbrPart is an entry of a boot record, in sectors.
type mbrPart struct {
	kind          byte
	start, length uint32
}

func bootRecord(parts ...mbrPart) []byte {
	b := make([]byte, sector)
	for n, p := range parts {
		e := b[446+16*n:]
		copy(e, "\x00\xfe\xff\xff\x00\xfe\xff\xff")
		e[4] = p.kind
		le.PutUint32(e[8:], p.start)
		le.PutUint32(e[12:], p.length)
	}
	b[510], b[511] = 0x55, 0xaa
	return b
}

// record is a boot record and its sector.
type record struct {
	at    int64
	parts []mbrPart
}

// disk is a disk with these boot records.
func disk(records ...record) func() Image {
	return func() Image {
		i := Image{Length: rawMiB * mib}
		for _, r := range records {
			i.put(r.at*sector, bootRecord(r.parts...))
		}
		return i
	}
}

func mbr(parts ...mbrPart) func() Image { return disk(record{0, parts}) }

// chain is an extended partition with n boot records, two sectors each, which
// all lead on to the next; the last one leads to sector next.
func chain(n int, next uint32) func() Image {
	const start, length = 2048, 8192
	records := []record{{0, []mbrPart{{0x05, start, length}}}}
	for k := range uint32(n) {
		link := 2 * (k + 1)
		if k == uint32(n)-1 {
			link = next
		}
		records = append(records, record{int64(start + 2*k), []mbrPart{{0x83, 1, 1}, {0x05, link, 2}}})
	}
	return disk(records...)
}

// damaged4K is a GPT that counts in sectors of 4096 bytes, of which only the
// signature is good.
func damaged4K() Image {
	i := Image{Length: rawMiB * mib}
	i.put(0, bootRecord(mbrPart{0xee, 1, rawMiB*mib/4096 - 1}))
	i.put(4096, []byte("EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00"))
	return i
}

func flip(offsets ...int64) func(i *Image) {
	return func(i *Image) {
		for _, off := range offsets {
			i.put(off, []byte{0x5a})
		}
	}
}

const lastSector = rawMiB*mib - sector

type gptEdit struct {
	name, words string
	edit        func(g *gpt)
}

func (e gptEdit) make() Image {
	g := newGPT()
	e.edit(g)
	return g.image()
}

var refusedGPT = []gptEdit{
	{"both headers damaged", "GPT|primary|backup", func(g *gpt) { g.damage = flip(sector+60, lastSector+60) }},
	{"both arrays of entries damaged", "GPT|checksum of its entries", func(g *gpt) { g.damage = flip(2*sector+1, lastSector-32*sector+1) }},
	{"both headers gone", "GPT|signature", func(g *gpt) { g.damage = flip(sector, lastSector) }},
	{"primary damaged, cut off", "GPT|primary|backup", func(g *gpt) {
		g.damage = func(i *Image) {
			flip(sector + 60)(i)
			i.cut(4 * mib)
		}
	}},
	{"cut off", "GPT|not within", func(g *gpt) { g.damage = func(i *Image) { i.cut(4 * mib) } }},
	{"cut off behind the boot record", "GPT", func(g *gpt) { g.damage = func(i *Image) { i.cut(2 * sector) } }},
	{"2^32-1 entries", "4294967295 partitions", func(g *gpt) { g.count = 1<<32 - 1 }},
	{"no entries", "0 partitions", func(g *gpt) { g.count = 0 }},
	{"entries of 1 byte", "1 bytes", func(g *gpt) { g.entrySize = 1 }},
	{"entries of 129 bytes", "129 bytes", func(g *gpt) { g.entrySize = 129 }},
	{"entries of 2 GiB", "2147483648 bytes", func(g *gpt) { g.entrySize = 1 << 31 }},
	{"2^31 entries of 2 GiB", "2147483648 partitions", func(g *gpt) { g.count, g.entrySize = 1<<31, 1<<31 }},
	{"header of 4 GiB", "4294967295 bytes", func(g *gpt) { g.headerSize = 1<<32 - 1 }},
	{"header of 0 bytes", "0 bytes", func(g *gpt) { g.headerSize = 0 }},
	{"entries behind the disk", "not on the disk", func(g *gpt) { g.entriesAt, g.backupEntriesAt = 1<<40, 1<<40 }},
	{"entries at 2^64-1", "no disk has", func(g *gpt) { g.entriesAt, g.backupEntriesAt = 1<<64-1, 1<<64-1 }},
	{"entries in the header", "not on the disk", func(g *gpt) { g.entriesAt, g.backupEntriesAt = 1, 1 }},
	{"entries in a partition", "first usable", func(g *gpt) { g.entriesAt, g.backupEntriesAt = 5000, 5000 }},
	{"first usable sector in the table", "first usable", func(g *gpt) { g.firstUsable = 3 }},
	{"usable sectors beyond all disks", "no disk has", func(g *gpt) { g.lastUsable = 1<<64 - 1 }},
	{"overlapping partitions", "1 and 2 overlap", func(g *gpt) { g.parts[0].last = 5000 }},
	{"two partitions in one place", "1 and 2 overlap", func(g *gpt) { g.parts[1] = g.parts[0] }},
	{"partition beyond the disk", "partition 2|not within", func(g *gpt) { g.parts[1].last = sectors + 100 }},
	{"partition that ends before it begins", "partition 2|not within", func(g *gpt) { g.parts[1].last = 4000 }},
	{"partition of 2^64 sectors", "partition 2|not within", func(g *gpt) { g.parts[1] = gptPart{2048, 1<<64 - 1} }},
	{"partition in the table", "partition 1|not within", func(g *gpt) { g.parts[0].first = 2 }},
	{"no protective MBR", "protective MBR", func(g *gpt) { g.boot = make([]byte, sector) }},
}

var refusedMBR = []struct {
	name, words string
	make        func() Image
}{
	{"endless chain", "does not end", chain(1500, 3000)},
	{"chain that leads back to its beginning", "does not end", chain(3, 0)},
	{"boot record that leads to itself", "does not end", chain(1, 0)},
	{"chain that leaves the extended partition", "leaves the extended", chain(2, 10000)},
	{"chain that leads behind the disk", "leaves the extended", chain(2, 1<<32-1)},
	{"chain that leads to what is no boot record", "logical partition|is not one", chain(2, 4000)},
	{"two extended partitions", "both extended", mbr(mbrPart{0x05, 2048, 1000}, mbrPart{0x0f, 4096, 1000})},
	{"logical partition that leaves the extended one", "not within the extended", disk(
		record{0, []mbrPart{{0x05, 2048, 1000}}}, record{2048, []mbrPart{{0x83, 1, 5000}}})},
	{"logical partition of 2 TiB", "not within the extended", disk(
		record{0, []mbrPart{{0x05, 2048, 1000}}}, record{2048, []mbrPart{{0x83, 1<<32 - 1, 1<<32 - 1}}})},
	{"overlapping logical partitions", "5 and 6 overlap", disk(
		record{0, []mbrPart{{0x05, 2048, 1000}}},
		record{2048, []mbrPart{{0x83, 1, 800}, {0x05, 500, 100}}}, record{2548, []mbrPart{{0x83, 1, 50}}})},
	{"logical partition over a boot record", "boot record", disk(
		record{0, []mbrPart{{0x05, 2048, 1000}}},
		record{2048, []mbrPart{{0x83, 1, 800}, {0x05, 500, 100}}}, record{2548, nil})},
	{"overlapping partitions", "1 and 2 overlap", mbr(mbrPart{0x83, 2048, 4000}, mbrPart{0x83, 4096, 1000})},
	{"primary partition in the extended one", "overlap", mbr(mbrPart{0x05, 2048, 4000}, mbrPart{0x83, 4096, 1000})},
	{"partition beyond the disk", "partition 1|not within", mbr(mbrPart{0x83, 2048, sectors})},
	{"partition of 2 TiB at 2 TiB", "partition 1|not within", mbr(mbrPart{0x83, 1<<32 - 1, 1<<32 - 1})},
	{"partition at sector 0", "partition 1|not within", mbr(mbrPart{0x83, 0, 4000})},
	{"extended partition beyond the disk", "partition 1|not within", mbr(mbrPart{0x05, 2048, sectors})},
	{"GPT of 4096 byte sectors, damaged", "GPT", damaged4K},
}

func tableCases() []Case {
	var cases []Case
	for _, e := range refusedGPT {
		words := split(e.words)
		if slices.Contains(words, "1 and 2 overlap") {
			words = append(words, "GPT")
		}
		cases = append(cases, Case{"GPT " + e.name, BadImage, words, false, e.make})
	}
	for _, c := range refusedMBR {
		name := "MBR " + c.name
		cases = append(cases, Case{name, BadImage, append(split(c.words), "partition"), false, c.make})
	}
	return append(cases, Case{"raw disk of 1 MiB more", TooLarge, []string{"17 MiB", "16 MiB"}, false, func() Image {
		return Image{Length: 17 * mib}
	}}, Case{"raw disk of 8 TiB in a hole", TooLarge, []string{"8 TiB", "16 MiB"}, false, func() Image {
		return Image{Length: 8 * tib}
	}})
}

func tableGoods() []Good {
	hybrid := newGPT()
	hybrid.boot = bootRecord(mbrPart{0xee, 1, 2047}, mbrPart{0x83, 2048, 2048})
	healed := newGPT()
	healed.damage = flip(sector + 60)
	absurd := func() Image {
		i := extDisk(mib, 1<<20)
		i.put(1024+24, []byte{0xff, 0xff, 0xff, 0x7f}) // blocks of 1 KiB << 2^31
		return i
	}
	return []Good{
		{"GPT", newGPT().image},
		{"GPT with a hybrid MBR", hybrid.image},
		{"GPT with a damaged primary", healed.image},
		{"MBR with logical partitions", disk(record{0, []mbrPart{{0x05, 2048, 1000}}}, record{2048, []mbrPart{{0x83, 1, 900}}})},
		{"ext4 with absurd blocks", absurd},
	}
}
