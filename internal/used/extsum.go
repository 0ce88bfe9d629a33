package used

import (
	"encoding/binary"
	"hash/crc32"
)

var extCastagnoli = crc32.MakeTable(crc32.Castagnoli)

// extCRC32C goes on from sum, as crc32c_le of Linux does, which unlike
// hash/crc32 does not complement at either end.
func extCRC32C(sum uint32, parts ...[]byte) uint32 {
	for _, p := range parts {
		sum = ^crc32.Update(^sum, extCastagnoli, p)
	}
	return sum
}

// extCRC16Table is for the polynomial of CRC-16-ANSI, reflected.
var extCRC16Table = func() (table [256]uint16) {
	for i := range table {
		sum := uint16(i)
		for range 8 {
			sum = sum>>1 ^ sum&1*0xA001
		}
		table[i] = sum
	}
	return table
}()

func extCRC16(parts ...[]byte) uint16 {
	sum := ^uint16(0)
	for _, p := range parts {
		for _, b := range p {
			sum = extCRC16Table[byte(sum)^b] ^ sum>>8
		}
	}
	return sum
}

// extNumber is a number as the checksums take it.
func extNumber(n uint64) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(n)) }

// descriptorSum is what the checksum in a group descriptor must be.
func (s *extSuper) descriptorSum(group uint64, desc extRecord) uint16 {
	const sum = 0x1E
	if s.metadataSum {
		return uint16(extCRC32C(s.sumSeed, extNumber(group), desc[:sum], []byte{0, 0}, desc[sum+2:]))
	}
	return extCRC16(s.uuid(), extNumber(group), desc[:sum], desc[sum+2:])
}

// inodeSeed begins the checksums of an inode and of its extents.
func (s *extSuper) inodeSeed(number uint64, inode extRecord) uint32 {
	const generation = 0x64
	return extCRC32C(s.sumSeed, extNumber(number), inode[generation:generation+4])
}

// inodeSumGood verifies the checksum of an inode. Its upper half is there only
// where the inode has room for it.
func (s *extSuper) inodeSumGood(number uint64, inode extRecord) bool {
	const low, extra, high = 0x7C, 0x80, 0x82
	plain := append(extRecord(nil), inode...)
	clear(plain[low : low+2])
	want, mask := uint32(inode.u16(low)), uint32(0xFFFF)
	if len(inode) > 128 && inode.u16(extra) >= high+2-128 {
		clear(plain[high : high+2])
		want, mask = want|uint32(inode.u16(high))<<16, ^uint32(0)
	}
	return extCRC32C(s.inodeSeed(number, inode), plain)&mask == want
}
