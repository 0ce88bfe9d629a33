package corpus

import (
	"hash/crc32"
	"strings"
)

// pvDisk is a disk that is an LVM physical volume with this metadata (LVM2,
// lib/format_text/layout.h). The metadata area claims to be of that size.
func pvDisk(metadata string, area uint64) Image {
	i := Image{Length: 4 * mib}
	label := make([]byte, sector)
	copy(label, "LABELONE")
	le.PutUint64(label[8:], 1)   // its sector
	le.PutUint32(label[20:], 32) // where the header is in it
	copy(label[24:], "LVM2 001")
	copy(label[32:], "0123456789abcdef0123456789abcdef")
	le.PutUint64(label[64:], 4*mib)
	le.PutUint64(label[72:], mib) // data from here on, up to the end
	le.PutUint64(label[104:], 4*kib)
	le.PutUint64(label[112:], area)
	le.PutUint32(label[16:], lvmSum(label[20:]))
	i.put(sector, label)

	header := make([]byte, sector)
	copy(header[4:], " LVM2 x[5A%r0N*>\x01\x00\x00\x00")
	le.PutUint64(header[24:], 4*kib)
	le.PutUint64(header[32:], area)
	le.PutUint64(header[40:], sector)
	le.PutUint64(header[48:], or(area>>63<<63, uint64(len(metadata))))
	le.PutUint32(header[56:], lvmSum([]byte(metadata)))
	le.PutUint32(header, lvmSum(header[4:]))
	i.put(4*kib, header)
	i.put(4*kib+sector, []byte(metadata))
	return i
}

// lvmSum is a CRC-32 that begins with another value and is not inverted.
func lvmSum(b []byte) uint32 { return ^crc32.Update(^uint32(0xf597a6cf), crc32.IEEETable, b) }

// volumeGoods are physical volumes whose metadata nobody can read. That is the
// guest's business: they are deployed as they are.
func volumeGoods() []Good {
	pv := func(metadata string, area uint64) func() Image {
		return func() Image { return pvDisk(metadata, area) }
	}
	return []Good{
		{"LVM with metadata that is nonsense", pv("nonsense = [ 1, \"\x00", mib-4*kib)},
		{"LVM with sections without end", pv(strings.Repeat("a {\n", 100000), mib-4*kib)},
		{"LVM with lists without end", pv("a = "+strings.Repeat("[", 400000), mib-4*kib)},
		{"LVM with an area of 2^63 bytes", pv("vg {\n}\n", 1<<63)},
		{"LVM with an area of 2^64-1 bytes", pv("vg {\n}\n", 1<<64-1)},
	}
}
