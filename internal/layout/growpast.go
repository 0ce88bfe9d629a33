package layout

import (
	"cmp"
	"fmt"
	"slices"

	"ganeti-instance-image/internal/size"
)

// Move is a partition that gets another place on the disk. All but its Start
// stays: number, type, GUID, name, attributes, boot flag and length.
type Move struct{ From, To Partition }

// GrowPast plans the table for a disk of that size, with the partition of that
// number extended as far as it can be. Partitions behind it for which movable
// reports true are moved up, in their order and with their length, so that the
// last of them ends at the disk's end; each then starts at a multiple of 1 MiB.
// The first partition that is not movable stays where it is, and all behind it:
// it ends the growth as the disk's end does otherwise, and the plan's Note says
// which one is in the way. A gain below 1 MiB is not taken, and nothing is moved
// for it. A nil movable moves nothing.
//
// In an MBR the extended partition behind a primary one is moved as a whole when
// movable reports true for all logical partitions in it (it is not asked for the
// extended one itself), and all in it keep their distances. Behind a logical
// partition the logical ones are moved within the extended one, which grows.
//
// The plan keeps no content: what a moved partition held is gone where others
// are put over it. The caller copies what must be kept, such as the header of a
// swap area, from From to To in the order of Plan.Moved, and then applies the
// Writes, none of which touches the new place of a moved partition. An extended
// partition in Plan.Moved holds nothing to copy. After each flushed write the
// disk has the old table or the new one, or in an MBR one between them; only
// boot records moved by so little that they come to lie over old ones make a
// table that is right not before the last write.
//
// It is an error when there is no such partition, or the disk is too small.
func (t *Table) GrowPast(disk size.Bytes, number int, movable func(Partition) bool) (Plan, error) {
	if _, ok := t.Find(number); !ok {
		return Plan{}, fmt.Errorf("cannot grow partition %d: the %s partition table has none of that number", number, t.Kind)
	}
	return t.plan(disk, number, movable)
}

// change is what a plan does to the partitions.
type change struct {
	grown Partition // its number is 0 where none grows
	moved []Move    // the last one on the disk first
	note  string
}

// after is the partition as it is once the change was made.
func (c change) after(p Partition) Partition {
	if p.Number == c.grown.Number {
		return c.grown
	}
	for _, m := range c.moved {
		if m.From.Number == p.Number {
			return m.To
		}
	}
	return p
}

// bundle is what moves as a whole, or stays: a partition, a logical one with the
// boot record in front of it, an extended one with all that it holds.
type bundle struct {
	start, end size.Bytes
	lead       size.Bytes  // how far behind start the place is that is aligned
	parts      []Partition // by position
	fixed      string      // what it is, where it cannot be moved whatever it holds
}

// alignment is where moved partitions start, as all tools align them.
const alignment = size.MiB

// change finds out what extending a partition takes, when partitions may reach
// up to end. Number 0 changes nothing.
func (t *Table) change(number int, end size.Bytes, movable func(Partition) bool) change {
	p, ok := t.Find(number)
	switch {
	case number == 0:
		return change{}
	case !ok:
		return change{note: "there is no partition to grow"}
	case p.Extended:
		return change{note: fmt.Sprintf("partition %d is an extended partition, which holds no data itself; nothing is grown", number)}
	}
	var inTheWay string
	behind := t.behind(p)
	for i, b := range behind {
		if inTheWay = b.unmovable(movable); inTheWay != "" {
			end, behind = min(end, b.start), behind[:i]
			break
		}
	}
	starts, limit := pack(behind, end)
	gain := (limit - p.Start).AlignDown(unit) - p.Length
	switch {
	case gain < minGain && inTheWay != "":
		return change{note: fmt.Sprintf("%s is in the way behind partition %d, which keeps its length", inTheWay, number)}
	case gain < minGain:
		return change{note: fmt.Sprintf("less than %s is free behind partition %d, so it keeps its length", minGain, number)}
	}
	c := change{grown: p, moved: moves(behind, starts)}
	c.grown.Length += gain
	if inTheWay != "" {
		c.note = fmt.Sprintf("%s is in the way behind partition %d, which grows only up to there", inTheWay, number)
	}
	return c
}

// unmovable says what it is about a bundle that cannot be moved; empty where all
// of it can.
func (b bundle) unmovable(movable func(Partition) bool) string {
	if b.fixed != "" {
		return b.fixed
	}
	for _, p := range b.parts {
		if p.Extended || movable != nil && movable(p) {
			continue
		}
		if b.parts[0].Extended {
			return fmt.Sprintf("partition %d in the extended partition %d", p.Number, b.parts[0].Number)
		}
		return fmt.Sprintf("partition %d", p.Number)
	}
	return ""
}

// pack moves the bundles up to end, none of them down, and tells where each then
// starts and where the first does.
func pack(bundles []bundle, end size.Bytes) (starts []size.Bytes, limit size.Bytes) {
	starts = make([]size.Bytes, len(bundles))
	limit = end
	for i, b := range slices.Backward(bundles) {
		highest := (limit - (b.end - b.start) + b.lead).AlignDown(alignment) - b.lead
		starts[i] = max(b.start, highest)
		limit = starts[i]
	}
	return starts, limit
}

// moves lists the last partition first: what is copied to its new place then
// never overwrites what is yet to be copied.
func moves(bundles []bundle, starts []size.Bytes) []Move {
	var moved []Move
	for i, b := range slices.Backward(bundles) {
		if starts[i] == b.start {
			continue
		}
		for _, p := range slices.Backward(b.parts) {
			to := p
			to.Start += starts[i] - b.start
			moved = append(moved, Move{From: p, To: to})
		}
	}
	return moved
}

// behind lists what lies behind a partition, by position.
func (t *Table) behind(p Partition) []bundle {
	var bundles []bundle
	if p.Logical {
		bundles = t.behindLogical(p)
	}
	for _, q := range t.Partitions {
		if q.Start <= p.Start || q.Logical || p.Logical && q.Extended {
			continue
		}
		b := bundle{start: q.Start, end: q.End(), parts: []Partition{q}}
		if q.Extended {
			b.parts = append(b.parts, t.logicals()...)
		}
		if len(b.parts) > 1 {
			b.lead = b.parts[1].Start - q.Start
		}
		bundles = append(bundles, b)
	}
	slices.SortFunc(bundles, func(a, b bundle) int { return cmp.Compare(a.start, b.start) })
	return bundles
}

// Find returns the partition of that number, false where there is none; no table
// has none.
func (t *Table) Find(number int) (Partition, bool) {
	if t == nil {
		return Partition{}, false
	}
	i := slices.IndexFunc(t.Partitions, func(p Partition) bool { return p.Number == number })
	if i < 0 {
		return Partition{}, false
	}
	return t.Partitions[i], true
}
