package layout

import (
	"fmt"
	"slices"

	"ganeti-instance-image/internal/size"
)

// at is where a boot record stands on the disk.
func (r *record) at() size.Bytes { return size.Bytes(r.sector) * mbrSector }

// logicals lists the logical partitions by position.
func (t *Table) logicals() []Partition {
	var list []Partition
	for _, p := range t.Partitions {
		if p.Logical {
			list = append(list, p)
		}
	}
	return list
}

// behindLogical lists what lies behind a logical partition in the extended one.
// A logical partition moves with its boot record, if that stands right in front
// of it, as all tools put it; another one stays, and so does a record without a
// partition.
func (t *Table) behindLogical(p Partition) []bundle {
	var bundles []bundle
	together := map[int]bool{}
	for _, r := range t.mbr.chain {
		if r.at() < p.Start {
			continue
		}
		b := bundle{start: r.at(), end: r.at() + mbrSector, fixed: fmt.Sprintf("a boot record of the extended partition %d", t.mbr.extended)}
		if q, ok := t.Find(r.number); ok && t.isInFront(r, q) {
			b = bundle{start: r.at(), end: q.End(), lead: q.Start - r.at(), parts: []Partition{q}}
			together[q.Number] = true
		}
		bundles = append(bundles, b)
	}
	for _, q := range t.logicals() {
		if q.Start > p.Start && !together[q.Number] {
			bundles = append(bundles, bundle{start: q.Start, end: q.End(), fixed: fmt.Sprintf("partition %d", q.Number)})
		}
	}
	return bundles
}

// isInFront tells whether nothing lies between a boot record and its partition.
func (t *Table) isInFront(r record, q Partition) bool {
	between := func(off size.Bytes) bool { return r.at() < off && off < q.Start }
	return r.at() < q.Start &&
		!slices.ContainsFunc(t.logicals(), func(p Partition) bool { return between(p.Start) }) &&
		!slices.ContainsFunc(t.mbr.chain, func(other record) bool { return between(other.at()) })
}

// planMBR plans so that the table is right after each write as far as that can
// be: containers grow before what they contain, and boot records are written to
// their new place before anything leads there. Where a record's new place is the
// old place of another one, or lies in a partition that is moved, only the whole
// of the writes makes the table right; the caller guards the disk for as long.
func (t *Table) planMBR(disk size.Bytes, number int, movable func(Partition) bool) (Plan, error) {
	sectors := int64(disk / mbrSector)
	for _, p := range t.Partitions {
		if p.End() > size.Bytes(sectors)*mbrSector {
			return Plan{}, fmt.Errorf("partition %d needs a larger disk", p.Number)
		}
	}
	if number == 0 {
		return Plan{}, nil
	}
	var limit string
	if sectors > maxLBA32+1 {
		limit = fmt.Sprintf("an MBR table ends at 2 TiB, so the rest of the disk of %s stays unused", disk)
	}
	c := t.change(number, size.Bytes(min(sectors, maxLBA32))*mbrSector, movable)
	plan := Plan{Grown: c.grown, Moved: c.moved, Note: join(c.note, limit)}
	if c.grown.Number != 0 {
		plan.addRecords(t, c)
	}
	return plan, nil
}

// addRecords writes what a change makes of the boot records.
func (p *Plan) addRecords(t *Table, c change) {
	extended := t.extendedAfter(c)
	boot := t.bootAfter(c, extended)
	chain := t.chainAfter(c, extended)
	if c.grown.Logical && boot != t.boot {
		p.add(mbrSector, 0, boot[:], true)
	}
	for i, r := range chain {
		if r.sector != t.mbr.chain[i].sector {
			p.add(mbrSector, r.sector, r.raw[:], true)
		}
	}
	if old, _ := t.Find(t.mbr.extended); len(chain) == 0 && extended.Start != old.Start {
		p.add(mbrSector, int64(extended.Start/mbrSector), make([]byte, mbrSector), true) // what stands there must not be taken for a record
	}
	for i, r := range chain {
		if r.sector == t.mbr.chain[i].sector && r.raw != t.mbr.chain[i].raw {
			p.add(mbrSector, r.sector, r.raw[:], true)
		}
	}
	if !c.grown.Logical {
		p.add(mbrSector, 0, boot[:], true)
	}
	p.clearRecords(t, c, chain)
}

// clearRecords zeroes the old boot records, but where a new one or the content
// of a moved partition stands.
func (p *Plan) clearRecords(t *Table, c change, chain []record) {
	for _, old := range t.mbr.chain {
		kept := slices.ContainsFunc(chain, func(r record) bool { return r.sector == old.sector })
		if !kept && !c.movedOnto(old.at()) {
			p.add(mbrSector, old.sector, make([]byte, mbrSector), true)
		}
	}
}

// movedOnto tells whether the content of a moved partition comes to lie there.
func (c change) movedOnto(off size.Bytes) bool {
	return slices.ContainsFunc(c.moved, func(m Move) bool { return !m.To.Extended && m.To.Start <= off && off < m.To.End() })
}

// extendedAfter is the extended partition as the change leaves it: it grows with
// the logical ones in it.
func (t *Table) extendedAfter(c change) Partition {
	old, ok := t.Find(t.mbr.extended)
	if !ok {
		return old
	}
	extended := c.after(old)
	for _, p := range t.logicals() {
		extended.Length = max(extended.Length, c.after(p).End()-extended.Start)
	}
	return extended
}

// bootAfter is sector 0 as the change leaves it.
func (t *Table) bootAfter(c change, extended Partition) [bootSize]byte {
	boot := t.boot
	for _, p := range t.Partitions {
		to := c.after(p)
		if p.Extended {
			to = extended
		}
		if !p.Logical {
			start := int64(to.Start / mbrSector)
			setEntry(boot[:], p.Number-1, start, start, int64(to.Length/mbrSector), to.Start != p.Start)
		}
	}
	return boot
}

// chainAfter is the chain of boot records as the change leaves it.
func (t *Table) chainAfter(c change, extended Partition) []record {
	chain := slices.Clone(t.mbr.chain)
	old, _ := t.Find(t.mbr.extended)
	for i := range chain {
		by := extended.Start - old.Start
		if p, ok := t.Find(chain[i].number); ok {
			by = c.after(p).Start - p.Start
		}
		chain[i].sector += int64(by / mbrSector)
	}
	for i := range chain {
		r := &chain[i]
		if p, ok := t.Find(r.number); ok {
			to := c.after(p)
			start := int64(to.Start / mbrSector)
			setEntry(r.raw[:], r.data, start-r.sector, start, int64(to.Length/mbrSector), to.Start != p.Start)
		}
		if r.link >= 0 {
			t.setLink(r, &chain[i+1], c, int64(extended.Start/mbrSector), t.mbr.chain[i+1].sector)
		}
	}
	return chain
}

// setLink lets a boot record lead to the next one's new place. The link's length
// reaches to the end of the partition there.
func (t *Table) setLink(r, next *record, c change, extended, oldNext int64) {
	length := int64(le.Uint32(r.raw[slotsAt+r.link*slotSize+12:]))
	if p, ok := t.Find(next.number); ok && p.Number == c.grown.Number {
		length = max(length, int64(c.grown.End()/mbrSector)-next.sector)
	}
	setEntry(r.raw[:], r.link, next.sector-extended, next.sector, length, next.sector != oldNext)
}
