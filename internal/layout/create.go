package layout

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"unicode/utf16"

	"ganeti-instance-image/internal/size"
)

// Use is what a partition of a new table is for.
type Use string

// The uses of partitions.
const (
	ForBIOSBoot Use = "BIOS boot"
	ForESP      Use = "ESP"
	ForBoot     Use = "boot"
	ForSwap     Use = "swap"
	ForRoot     Use = "root"
)

// kindOfUse is what a table says of a partition's use. A number that is not 0 is
// always that one, so that the loaders' partitions leave theirs to the others.
type kindOfUse struct {
	use       Use
	gptType   string
	gptNumber int
	mbrType   byte // 0: not in an MBR, where GRUB has its room in front of the first partition
	mbrNumber int
}

// uses is in the order of the places on the disk: the root is last, to grow.
var uses = []kindOfUse{
	{ForBIOSBoot, TypeBIOSBoot, 14, 0, 0},
	{ForESP, TypeESP, 15, 0xEF, 4},
	{ForBoot, "0FC63DAF-8483-4772-8E79-3D69D8477DE4", 0, 0x83, 0},
	{ForSwap, typeSwap, 0, 0x82, 0},
	{ForRoot, "0FC63DAF-8483-4772-8E79-3D69D8477DE4", 0, 0x83, 0},
}

func (u Use) kind() kindOfUse {
	return uses[slices.IndexFunc(uses, func(k kindOfUse) bool { return k.use == u })]
}

const (
	// Align is what the partitions of a new table begin and end on.
	Align = size.MiB
	// MBRLimit is the end of what an MBR can name.
	MBRLimit = size.Bytes(1<<32-1) * mbrSector

	biosBootSize = size.MiB // GRUB's core image has at most 480 KiB
	newEntries   = 128      // of a GPT
)

// Spec is what a new disk is to have.
type Spec struct {
	Disk size.Bytes
	// BIOSBoot makes room for a BIOS boot partition, which GRUB needs on a GPT.
	BIOSBoot bool
	ESP      size.Bytes // 0: none
	Boot     size.Bytes // 0: none
	Swap     size.Bytes // 0: none
	Least    size.Bytes // what the root, which gets the rest, needs at least
	MBR      bool       // the root ends where an MBR can name it
}

// Place is where a partition of a new table is.
type Place struct {
	Use           Use
	Start, Length size.Bytes
}

// Places lays the disk out, for a table of either kind: the first and the last
// MiB stay free. The error says how large the disk must be.
func (s Spec) Places() ([]Place, error) {
	lengths := map[Use]size.Bytes{ForESP: s.ESP, ForBoot: s.Boot, ForSwap: s.Swap}
	if s.BIOSBoot {
		lengths[ForBIOSBoot] = biosBootSize
	}
	at := Align
	var places []Place
	sum := []string{fmt.Sprintf("%s for the partition table", 2*Align)}
	for _, u := range uses {
		if length := lengths[u.use].AlignUp(Align); length > 0 {
			places = append(places, Place{u.use, at, length})
			sum = append(sum, fmt.Sprintf("%s for %s", length, u.use))
			at += length
		}
	}
	end := (s.Disk - Align).AlignDown(Align)
	if s.MBR {
		end = min(end, MBRLimit.AlignDown(Align))
	}
	least := max(s.Least.AlignUp(Align), Align)
	if at+least > end {
		return nil, fmt.Errorf("the disk has %d MiB and must have %d MiB at least: %s, and %s for root",
			s.Disk/size.MiB, (at+least+Align)/size.MiB, strings.Join(sum, ", "), least)
	}
	return append(places, Place{ForRoot, at, end - at}), nil
}

// Numbers returns the numbers that partitions have in a new table of that kind.
// What the table does not name has none.
func Numbers(kind Kind, places []Place) map[Use]int {
	numbers, next := map[Use]int{}, 1
	for _, p := range places {
		k := p.Use.kind()
		fixed := k.gptNumber
		if kind == MBR {
			fixed = k.mbrNumber
		}
		switch {
		case kind == MBR && k.mbrType == 0:
			continue
		case fixed != 0:
			numbers[p.Use] = fixed
		default:
			numbers[p.Use] = next
			next++
		}
	}
	return numbers
}

// IDs are identifiers for a new table. One that is zero is drawn.
type IDs struct {
	DiskID uint32         // MBR: the disk signature
	GUIDs  map[Use]string // GPT: of the partitions
}

// Create plans a new table for a disk whose first and last MiB are zeros; it
// counts in sectors of 512 bytes, as disks of guests do. What it is to leave out
// is not among the places.
func Create(kind Kind, disk size.Bytes, places []Place, ids IDs) (Plan, error) {
	if kind == MBR {
		return createMBR(places, ids)
	}
	return createGPT(disk, places, ids)
}

// createMBR marks the partition that holds the kernel as active, without which
// some BIOSes do not boot.
func createMBR(places []Place, ids IDs) (Plan, error) {
	boot := make([]byte, bootSize)
	copy(boot[510:], "\x55\xaa")
	for le.Uint32(boot[440:]) == 0 {
		le.PutUint32(boot[440:], ids.DiskID)
		if ids.DiskID == 0 {
			rand.Read(boot[440:444])
		}
	}
	numbers, active := Numbers(MBR, places), false
	for _, p := range places {
		number, named := numbers[p.Use]
		if !named {
			continue
		}
		if p.Start+p.Length > MBRLimit+mbrSector {
			return Plan{}, fmt.Errorf("cannot make an MBR: the partition for %s ends behind 2 TiB", p.Use)
		}
		raw := boot[slotsAt+(number-1)*slotSize:][:slotSize]
		first, count := int64(p.Start/mbrSector), int64(p.Length/mbrSector)
		if !active && (p.Use == ForBoot || p.Use == ForRoot) {
			raw[0], active = 0x80, true
		}
		raw[4] = p.Use.kind().mbrType
		copy(raw[1:4], chs(first))
		copy(raw[5:8], chs(first+count-1))
		le.PutUint32(raw[8:], uint32(first))
		le.PutUint32(raw[12:], uint32(count))
	}
	var plan Plan
	plan.add(mbrSector, 0, boot, true)
	return plan, nil
}

// createGPT writes the backup first, as all plans for a GPT do (UEFI 2.10, 5.3).
func createGPT(disk size.Bytes, places []Place, ids IDs) (Plan, error) {
	end := int64(disk/mbrSector) - 1 // the sector of the backup header
	h := &gptHeader{raw: make([]byte, mbrSector), entries: make([]byte, newEntries*entryMin), count: newEntries, entrySize: entryMin}
	numbers := Numbers(GPT, places)
	for _, p := range places {
		raw := h.entry(numbers[p.Use] - 1)
		id, err := newGUID(ids.GUIDs[p.Use])
		if err != nil {
			return Plan{}, err
		}
		kind, err := newGUID(p.Use.kind().gptType)
		if err != nil {
			return Plan{}, err
		}
		copy(raw, kind)
		copy(raw[16:], id)
		le.PutUint64(raw[32:], uint64(p.Start/mbrSector))
		le.PutUint64(raw[40:], uint64((p.Start+p.Length)/mbrSector-1))
		for i, unit := range utf16.Encode([]rune(p.Use)) {
			le.PutUint16(raw[56+2*i:], unit)
		}
	}
	if err := h.fill(); err != nil {
		return Plan{}, err
	}
	sectors := h.arraySectors(mbrSector)
	lastUsable := end - sectors - 1
	var plan Plan
	plan.add(mbrSector, end-sectors, h.entries, false)
	plan.add(mbrSector, end, h.moved(end, 1, lastUsable, end-sectors, h.entries), true)
	plan.add(mbrSector, 2, h.entries, false)
	plan.add(mbrSector, 1, h.moved(1, end, lastUsable, 2, h.entries), false)
	plan.add(mbrSector, 0, newProtectiveMBR(end), true)
	return plan, nil
}

// fill writes what is the same in both headers.
func (h *gptHeader) fill() error {
	copy(h.raw, "EFI PART\x00\x00\x01\x00")
	le.PutUint32(h.raw[atHeaderSize:], headerMin)
	le.PutUint64(h.raw[atFirstUsable:], uint64(2+h.arraySectors(mbrSector)))
	le.PutUint32(h.raw[atCount:], uint32(h.count))
	le.PutUint32(h.raw[atEntrySize:], uint32(h.entrySize))
	le.PutUint32(h.raw[atEntriesCRC:], crc32.ChecksumIEEE(h.entries))
	id, err := newGUID("")
	copy(h.raw[atDiskGUID:], id)
	return err
}

// newProtectiveMBR covers the disk up to its last sector, or as far as it can.
func newProtectiveMBR(last int64) []byte {
	boot := make([]byte, bootSize)
	raw := boot[slotsAt:][:slotSize]
	copy(raw[1:4], chs(1))
	raw[4] = typeProtective
	copy(raw[5:8], chs(last))
	le.PutUint32(raw[8:], 1)
	le.PutUint32(raw[12:], uint32(min(last, maxLBA32)))
	copy(boot[510:], "\x55\xaa")
	return boot
}

// newGUID is a GUID as a GPT has it, drawn by random where text is empty (RFC
// 9562, version 4).
func newGUID(text string) ([]byte, error) {
	id := make([]byte, 16)
	if text == "" {
		rand.Read(id)
		id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	} else if _, err := hex.Decode(id, []byte(strings.ReplaceAll(text, "-", ""))); err != nil || len(text) != 36 {
		return nil, fmt.Errorf("cannot make a GPT: %q is not a GUID", text)
	}
	slices.Reverse(id[0:4])
	slices.Reverse(id[4:6])
	slices.Reverse(id[6:8])
	return id, nil
}
