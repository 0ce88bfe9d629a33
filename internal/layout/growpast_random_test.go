package layout

import (
	"math/rand/v2"
	"testing"

	"ganeti-instance-image/internal/size"
)

// TestGrowPastOddChains grows partitions of MBRs as no tool writes them: boot
// records far from their partitions, without one, and linked in any order.
func TestGrowPastOddChains(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	grown, moved := 0, 0
	for range 10000 {
		before, sectors := oddChain(r)
		disk := size.Bytes(sectors) * mbrSector
		before.length = int64(disk)
		table, err := Read(before, disk)
		if err != nil {
			t.Fatal(err)
		}
		larger := disk + size.Bytes(r.IntN(8))*size.MiB*7/3
		p := table.Partitions[r.IntN(len(table.Partitions))]
		mask := r.Uint32() | r.Uint32()
		plan, err := table.GrowPast(larger.AlignDown(mbrSector), p.Number, func(p Partition) bool { return mask>>p.Number&1 != 0 })
		if err != nil {
			t.Fatal(err)
		}
		checkAnnounced(t, before, table, plan, larger.AlignDown(mbrSector))
		if plan.Grown.Number != 0 {
			grown++
		}
		if len(plan.Moved) != 0 {
			moved++
		}
	}
	if grown < 500 || moved < 200 {
		t.Errorf("%d were grown, %d with others moved: that tests little", grown, moved)
	}
}

// oddChain makes an MBR with up to three primary partitions and an extended one
// among them, and tells in how many sectors it fits.
func oddChain(r *rand.Rand) (*memory, int64) {
	boot, disk := make([]byte, bootSize), &memory{}
	at, extendedAt := int64(1), r.IntN(4)
	slots := r.Perm(4)
	for i := range 4 {
		at += oddGap(r)
		if i != extendedAt {
			length := 1 + oddGap(r)
			putEntry(boot, 0, slots[i], 0x83, uint32(at), uint32(length))
			at += length
			continue
		}
		records, length := oddExtended(r, at)
		putEntry(boot, 0, slots[i], 0x0F, uint32(at), uint32(length))
		disk.writes = append(disk.writes, records...)
		at += length
	}
	disk.writes = append(disk.writes, Write{Data: boot})
	return disk, at + oddGap(r)
}

// oddGap is a number of sectors from nothing to 4 MiB.
func oddGap(r *rand.Rand) int64 {
	if r.IntN(3) == 0 {
		return 0
	}
	return r.Int64N(int64(1) << (1 + r.IntN(13)))
}

// oddExtended makes the boot records of an extended partition that begins at
// base. A record without a partition keeps its entry empty.
func oddExtended(r *rand.Rand, base int64) (writes []Write, length int64) {
	type entry struct{ at, data, length int64 }
	chain := []entry{{at: base}}
	end := base + 1
	for range r.IntN(8) {
		end += oddGap(r)
		if r.IntN(2) == 0 {
			chain = append(chain, entry{at: end})
			end++
			continue
		}
		owner := &chain[len(chain)-1]
		if r.IntN(3) == 0 {
			owner = &chain[max(len(chain)-2, 0)]
		}
		if owner.length == 0 {
			owner.data, owner.length = end, 1+oddGap(r)
			end += owner.length
		}
	}
	rest := chain[1:]
	if r.IntN(2) == 0 {
		r.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	}
	for i, e := range chain {
		record := make([]byte, bootSize)
		putEntry(record, 0, 0, 0x83, uint32(max(e.data-e.at, 0)), uint32(e.length))
		if i+1 < len(chain) {
			putEntry(record, 0, 1, 0x05, uint32(chain[i+1].at-base), uint32(max(chain[i+1].data+chain[i+1].length-chain[i+1].at, 1)))
		}
		writes = append(writes, Write{Offset: size.Bytes(e.at) * mbrSector, Data: record})
	}
	return writes, end - base + oddGap(r)
}
