// Package filesystem recognises the filesystem on a disk or partition from its
// bytes, grows ext2, ext3, ext4, XFS and btrfs to the size of their device, and
// makes these and swap space.
//
// Left out: checking XFS and btrfs, and all that holds
// further volumes: LUKS, LVM and ZFS are recognised, no more.
package filesystem

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf16"

	"ganeti-instance-image/internal/size"
)

// Kind is what is on a partition, by the name mount(8) and blkid(8) have for it.
type Kind string

// The kinds that are recognised.
const (
	None     Kind = ""
	Ext2     Kind = "ext2"
	Ext3     Kind = "ext3"
	Ext4     Kind = "ext4"
	XFS      Kind = "xfs"
	Btrfs    Kind = "btrfs"
	VFAT     Kind = "vfat"
	NTFS     Kind = "ntfs"
	F2FS     Kind = "f2fs"
	SquashFS Kind = "squashfs"
	ISO9660  Kind = "iso9660"
	Swap     Kind = "swap"
	LUKS     Kind = "crypto_LUKS"
	LVM2     Kind = "LVM2_member"
	ZFS      Kind = "zfs_member"
)

// Info is what is known of a filesystem. It was read from bytes that a guest
// may have written: a label may hold anything.
type Info struct {
	Kind  Kind
	UUID  string     // as blkid(8) writes it; empty where the kind has none, and for zfs_member
	Label string     // empty for ntfs and zfs_member, which keep it elsewhere
	Size  size.Bytes // what the filesystem takes; 0 where it is not told
	// Apart says why the filesystem is not whole on this device, as in "it is
	// on 2 devices": then it must be neither mounted nor grown. Else empty.
	Apart string
}

// probe recognises one kind. It gets the beginning of the device, headSize bytes
// or all there is.
type probe struct {
	name string
	find func(p prober) (Info, bool)
}

// prober is the device with its beginning already read.
type prober struct {
	head []byte
	disk io.ReaderAt
	size size.Bytes
}

const headSize = 256 << 10 // reaches to the end of the first ZFS label

// probes are tried in this order. Containers come first, since what they hold
// may show through; then what has the strictest marks.
var probes = []probe{
	{"LUKS", probeLUKS},
	{"LVM", probeLVM},
	{"XFS", probeXFS},
	{"ext", probeExt},
	{"btrfs", probeBtrfs},
	{"F2FS", probeF2FS},
	{"NTFS", probeNTFS},
	{"FAT", probeFAT},
	{"swap", probeSwap},
	{"squashfs", probeSquashFS},
	{"ISO 9660", probeISO},
	{"ZFS", probeZFS},
}

// Probe recognises what is on the n bytes that r reads. Kind is None where it is
// nothing known. The error is the reader's.
func Probe(r io.ReaderAt, n size.Bytes) (Info, error) {
	head := make([]byte, max(0, min(n, headSize)))
	if read, err := r.ReadAt(head, 0); err != nil && !(errors.Is(err, io.EOF) && read == len(head)) {
		return Info{}, fmt.Errorf("cannot look for a filesystem: %w", err)
	}
	for _, probe := range probes {
		if info, ok := probe.find(prober{head, r, n}); ok {
			return info, nil
		}
	}
	return Info{}, nil
}

// at returns n bytes at an offset of the head, or false where it is shorter.
func (p prober) at(off, n int) ([]byte, bool) {
	if off < 0 || off > len(p.head)-n {
		return nil, false
	}
	return p.head[off : off+n], true
}

// magic returns a superblock of n bytes at off when the mark stands in it.
func (p prober) magic(off, n, mark int, want string) ([]byte, bool) {
	b, ok := p.at(off, n)
	return b, ok && string(b[mark:mark+len(want)]) == want
}

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

const (
	extCompatJournal    = 0x4
	extIncompatJournals = 0x8 // the device is a journal for others
	extIncompat64       = 0x80
	ext2Incompat        = 0x2 | 0x10       // filetype, meta_bg
	ext3Incompat        = 0x2 | 0x4 | 0x10 // and recover
	extROCompat         = 0x7              // sparse_super, large_file, btree_dir
)

func probeExt(p prober) (Info, bool) {
	b, ok := p.magic(1024, 1024, 56, "\x53\xEF")
	logBlock := uint32(0)
	if ok {
		logBlock = le.Uint32(b[24:])
	}
	if !ok || logBlock > 6 {
		return Info{}, false
	}
	compat, incompat, roCompat := le.Uint32(b[92:]), le.Uint32(b[96:]), le.Uint32(b[100:])
	if incompat&extIncompatJournals != 0 {
		return Info{}, false
	}
	blocks := uint64(le.Uint32(b[4:]))
	if incompat&extIncompat64 != 0 {
		blocks |= uint64(le.Uint32(b[336:])) << 32
	}
	info := Info{Kind: Ext4, UUID: uuid(b[104:]), Label: text(b[120:136]), Size: length(blocks, 1024<<logBlock)}
	journal := compat&extCompatJournal != 0
	switch {
	case !journal && incompat&^ext2Incompat == 0 && roCompat&^extROCompat == 0:
		info.Kind = Ext2
	case journal && incompat&^ext3Incompat == 0 && roCompat&^extROCompat == 0:
		info.Kind = Ext3
	}
	if journal && le.Uint32(b[224:]) == 0 { // no inode holds it
		info.Apart = "its journal is on another device"
	}
	return info, true
}

func probeXFS(p prober) (Info, bool) {
	b, ok := p.magic(0, 512, 0, "XFSB")
	if !ok {
		return Info{}, false
	}
	info := Info{Kind: XFS, UUID: uuid(b[32:]), Label: text(b[108:120]), Size: length(be.Uint64(b[8:]), uint64(be.Uint32(b[4:])))}
	if be.Uint64(b[48:]) == 0 && be.Uint32(b[96:]) != 0 { // a log of that many blocks, but nowhere here
		info.Apart = "its log is on another device"
	}
	if be.Uint64(b[16:]) != 0 {
		info.Apart = "it has a realtime device"
	}
	return info, true
}

func probeBtrfs(p prober) (Info, bool) {
	b, ok := p.magic(64<<10, 4096, 64, "_BHRfS_M")
	if !ok {
		return Info{}, false
	}
	info := Info{Kind: Btrfs, UUID: uuid(b[32:]), Label: text(b[299:555]), Size: length(le.Uint64(b[112:]), 1)}
	if devices := le.Uint64(b[136:]); devices != 1 {
		info.Apart = fmt.Sprintf("it is on %d devices", devices)
	}
	return info, true
}

func probeF2FS(p prober) (Info, bool) {
	b, ok := p.magic(1024, 2048, 0, "\x10\x20\xF5\xF2")
	if !ok {
		return Info{}, false
	}
	blocks, logBlock := le.Uint64(b[36:]), le.Uint32(b[16:])
	if logBlock > 16 {
		return Info{}, false
	}
	return Info{Kind: F2FS, UUID: uuid(b[108:]), Label: wide(b[124:124+1024], le), Size: length(blocks, 1<<logBlock)}, true
}

func probeNTFS(p prober) (Info, bool) {
	b, ok := p.magic(0, 512, 3, "NTFS    ")
	if !ok {
		return Info{}, false
	}
	return Info{Kind: NTFS, UUID: fmt.Sprintf("%016X", le.Uint64(b[72:])), Size: length(le.Uint64(b[40:]), uint64(le.Uint16(b[11:])))}, true
}

// fat is the geometry of a FAT filesystem, in bytes.
type fat struct {
	is32     bool
	root     int64 // where the root directory, or its first cluster, begins
	rootSize int64 // as much of it as lies in one piece
	size     size.Bytes
	extended []byte // the part of the boot sector with serial and label
}

// readFAT reads a boot sector; false where it is none.
func readFAT(b []byte) (fat, bool) {
	sector, perCluster := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, copies, rootEntries := int64(le.Uint16(b[14:])), int64(b[16]), int64(le.Uint16(b[17:]))
	power := func(n int64) bool { return n > 0 && n&(n-1) == 0 }
	if b[510] != 0x55 || b[511] != 0xAA || !power(sector) || sector < 512 || sector > 4096 || !power(perCluster) ||
		reserved == 0 || copies == 0 || copies > 4 || b[21] < 0xF8 && b[21] != 0xF0 {
		return fat{}, false
	}
	sectors, perFAT := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(b[32:]))
	}
	f := fat{size: size.Bytes(sectors * sector), extended: b[36:62], rootSize: rootEntries * 32}
	if perFAT == 0 {
		f.is32, perFAT, f.extended, f.rootSize = true, int64(le.Uint32(b[36:])), b[64:90], perCluster*sector
	}
	f.root = (reserved + copies*perFAT) * sector
	if f.is32 {
		f.root += (int64(le.Uint32(b[44:])) - 2) * f.rootSize
	}
	marked := string(f.extended[18:21]) == "FAT" || bytes.HasPrefix(b[3:], []byte("MSDOS")) || f.extended[2] == 0x29
	return f, marked && perFAT > 0 && sectors > 0
}

func probeFAT(p prober) (Info, bool) {
	b, ok := p.at(0, 512)
	if !ok {
		return Info{}, false
	}
	f, ok := readFAT(b)
	if !ok {
		return Info{}, false
	}
	serial := le.Uint32(f.extended[3:])
	return Info{Kind: VFAT, UUID: fmt.Sprintf("%04X-%04X", serial>>16, serial&0xFFFF), Label: p.fatLabel(f), Size: f.size}, true
}

// fatLabel is the label in the root directory, as all systems read it; the one
// in the boot sector may be old.
func (p prober) fatLabel(f fat) string {
	if f.root <= 0 || size.Bytes(f.root) >= p.size {
		return ""
	}
	entries := make([]byte, max(0, min(f.rootSize, 64<<10, int64(p.size)-f.root)))
	if n, err := p.disk.ReadAt(entries, f.root); err != nil && n < len(entries) {
		return ""
	}
	for ; len(entries) >= 32 && entries[0] != 0; entries = entries[32:] {
		const label, longName = 0x08, 0x0F
		if attributes := entries[11]; entries[0] != 0xE5 && attributes&label != 0 && attributes&longName != longName {
			return text(entries[:11])
		}
	}
	return ""
}

// hibernated are the marks of swap space in which a system lies that goes on at
// the next boot.
var hibernated = []string{"S1SUSPEND", "S2SUSPEND", "ULSUSPEND"}

func probeSwap(p prober) (Info, bool) {
	for page := 4 << 10; page <= 64<<10; page <<= 1 {
		mark, ok := p.at(page-10, 10)
		if ok && slices.Contains(hibernated, string(bytes.TrimRight(mark, "\x00"))) {
			return Info{Kind: Swap, Apart: "it holds a hibernated system"}, true
		}
		if !ok || string(mark) != "SWAPSPACE2" {
			continue
		}
		b := p.head[1024:1068]
		if le.Uint32(b) != 1 {
			return Info{}, false
		}
		return Info{Kind: Swap, UUID: uuid(b[12:]), Label: text(b[28:44]), Size: length(uint64(le.Uint32(b[4:]))+1, uint64(page))}, true
	}
	return Info{}, false
}

func probeSquashFS(p prober) (Info, bool) {
	b, ok := p.magic(0, 96, 0, "hsqs")
	if !ok {
		return Info{}, false
	}
	return Info{Kind: SquashFS, Size: length(le.Uint64(b[40:]), 1)}, true
}

// probeISO reads the primary volume descriptor; blkid prefers the Joliet label,
// which says the same at more length.
func probeISO(p prober) (Info, bool) {
	b, ok := p.magic(32<<10, 2048, 0, "\x01CD001")
	if !ok {
		return Info{}, false
	}
	stamp := b[830:846] // when it was modified, or else made
	if strings.Trim(string(stamp), "0\x00") == "" {
		stamp = b[813:829]
	}
	info := Info{Kind: ISO9660, Label: text(b[40:72]), Size: length(uint64(le.Uint32(b[80:])), uint64(le.Uint16(b[128:])))}
	if s := string(stamp); strings.Trim(s, "0123456789") == "" && strings.Trim(s, "0") != "" {
		info.UUID = strings.Join([]string{s[:4], s[4:6], s[6:8], s[8:10], s[10:12], s[12:14], s[14:16]}, "-")
	}
	return info, true
}

func probeLUKS(p prober) (Info, bool) {
	b, ok := p.magic(0, 512, 0, "LUKS\xBA\xBE")
	if !ok {
		return Info{}, false
	}
	info := Info{Kind: LUKS, UUID: text(b[168:208])}
	if be.Uint16(b[6:]) == 2 {
		info.Label = text(b[24:72])
	}
	return info, true
}

func probeLVM(p prober) (Info, bool) {
	for sector := range 4 {
		b, ok := p.magic(sector*512, 512, 0, "LABELONE")
		if !ok || string(b[24:32]) != "LVM2 001" {
			continue
		}
		off := le.Uint32(b[20:])
		if off > 512-40 {
			return Info{}, false
		}
		id := string(b[off : off+32])
		parts := []string{id[:6], id[6:10], id[10:14], id[14:18], id[18:22], id[22:26], id[26:]}
		return Info{Kind: LVM2, UUID: strings.Join(parts, "-"), Size: length(le.Uint64(b[off+32:]), 1)}, true
	}
	return Info{}, false
}

// probeZFS counts uberblocks, which may stand in any slot of the label. A few
// prove nothing: they may be left from before.
func probeZFS(p prober) (Info, bool) {
	found := 0
	for off := 128 << 10; off+8 <= len(p.head); off += 1 << 10 {
		if mark := p.head[off:]; le.Uint64(mark) == 0x00bab10c || be.Uint64(mark) == 0x00bab10c {
			found++
		}
	}
	return Info{Kind: ZFS}, found >= 4
}

// length multiplies; what no disk can be that long is longer than any disk.
func length(count, unit uint64) size.Bytes {
	const most = 1 << 62
	if unit == 0 {
		return 0
	}
	if count > most/unit {
		return most
	}
	return size.Bytes(count * unit)
}

func uuid(b []byte) string {
	if [16]byte(b) == [16]byte{} {
		return ""
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// text is a string in a field of fixed length.
func text(b []byte) string {
	if end := bytes.IndexByte(b, 0); end >= 0 {
		b = b[:end]
	}
	return strings.TrimRight(string(b), " ")
}

// wide is a UTF-16 string in a field of fixed length.
func wide(b []byte, order binary.ByteOrder) string {
	var units []uint16
	for ; len(b) >= 2 && order.Uint16(b) != 0; b = b[2:] {
		units = append(units, order.Uint16(b))
	}
	return string(utf16.Decode(units))
}
