package layout

import (
	"slices"

	"ganeti-instance-image/internal/size"
)

// protectiveMBR is sector 0 as the change leaves it: the entry that protects the
// GPT gets the disk's new length. Where there are other entries (a hybrid MBR),
// those that name a partition of the GPT follow it, and an entry that protects
// is changed only if it reached the old end: it may end in front of the others
// on purpose.
func (t *Table) protectiveMBR(c change, end int64) [bootSize]byte {
	boot := t.boot
	slots, _ := bootSlots(boot[:])
	hybrid := slices.ContainsFunc(slots, func(s slot) bool { return s.length != 0 && s.kind != typeProtective })
	oldEnd := max(t.gpt.header.alternate, t.gpt.backupAt)
	for i, s := range slots {
		if s.kind != typeProtective && s.length != 0 {
			t.follow(boot[:], i, s, c)
		}
	}
	for i, s := range slots {
		reachesEnd := s.start+s.length == oldEnd+1 || s.length == maxLBA32
		if s.kind != typeProtective || s.start > end || hybrid && !reachesEnd {
			continue
		}
		start := s.start
		if hybrid {
			start = behindGrown(start, boot[:], c.grown, t.SectorSize)
		}
		setEntry(boot[:], i, start, start, min(end+1-start, maxLBA32), start != s.start)
	}
	return boot
}

// follow lets an entry of a hybrid MBR name its partition's new place. It is
// emptied when that begins behind what an MBR can name.
func (t *Table) follow(boot []byte, index int, s slot, c change) {
	i := slices.IndexFunc(t.Partitions, func(p Partition) bool {
		return p.Start == size.Bytes(s.start)*t.SectorSize && p.Length == size.Bytes(s.length)*t.SectorSize
	})
	if i < 0 || c.after(t.Partitions[i]) == t.Partitions[i] {
		return
	}
	to := c.after(t.Partitions[i])
	start, length := int64(to.Start/t.SectorSize), int64(to.Length/t.SectorSize)
	if start >= maxLBA32 {
		clear(boot[slotsAt+index*slotSize:][:slotSize])
		return
	}
	setEntry(boot, index, start, start, min(length, maxLBA32-start), start != s.start)
}

// behindGrown is where an entry that protects the end of the disk begins: behind
// the partition that grew into what it protected, if another entry names that.
func behindGrown(start int64, boot []byte, grown Partition, sector size.Bytes) int64 {
	from, to := int64(grown.Start/sector), int64(grown.End()/sector)
	slots, _ := bootSlots(boot)
	named := slices.ContainsFunc(slots, func(s slot) bool { return s.kind != typeProtective && s.length != 0 && s.start == from })
	if named && from < start && start < to && to <= maxLBA32 {
		return to
	}
	return start
}
