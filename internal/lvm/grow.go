package lvm

import (
	"cmp"
	"fmt"
	"slices"

	"ganeti-instance-image/internal/size"
)

// Extension is what growing a volume in place comes to.
type Extension struct {
	Before, After Segment // the volume's stretch
	Moves         []Move

	first, count int64 // the extents that the volume gets
}

// Move is a stretch of another volume that went out of the way. Whoever needs
// what From held copies it to To, before anything is written to the volume that
// grew and in the order of the list. From and To may overlap; To lies behind.
type Move struct {
	Volume   string
	Offset   size.Bytes // where in the volume the stretch begins
	From, To Segment

	area area
	to   int64 // the extent that is to be its first
}

// Grown says what Extend makes of a volume once its physical volume fills a
// device of pv bytes, so that the caller can decide before anything is written:
// the volume gets all free extents behind it and stays one stretch. For that the
// volumes behind it go to the end of the device, in their order, if movable is
// true for each; a nil movable is false for all. Extents before the volume stay
// free. An extension by nothing is no error. The error wraps ErrBehind where
// something immovable lies between the volume and free extents, or
// ErrUnsupported.
func (g *Group) Grown(pv size.Bytes, volume string, movable func(Volume) bool) (Extension, error) {
	e, err := g.grown(g.fitting(pv), volume, movable)
	if err != nil {
		return Extension{}, fmt.Errorf("cannot grow the logical volume %s/%s: %w", g.Name, volume, err)
	}
	return e, nil
}

// fitting returns how many extents a device of pv bytes has room for.
func (g *Group) fitting(pv size.Bytes) int64 {
	return int64(max(0, pv-g.Start-g.tail) / g.Extent)
}

func (g *Group) grown(extents int64, volume string, movable func(Volume) bool) (Extension, error) {
	v, found := g.Volume(volume)
	stretch, linear := v.Linear()
	switch {
	case !found:
		return Extension{}, fmt.Errorf("%w: there is no such volume in the group", ErrUnsupported)
	case v.Why != "":
		return Extension{}, fmt.Errorf("%w: it is no plain linear volume (%s)", ErrUnsupported, v.Why)
	case !linear:
		return Extension{}, fmt.Errorf("%w: it lies in %d pieces", ErrUnsupported, len(v.Segments))
	}
	if err := g.changeable(extents); err != nil {
		return Extension{}, err
	}
	e := Extension{Before: stretch, first: int64((stretch.Start + stretch.Length - g.Start) / g.Extent)}
	limit, err := g.limit(&e, extents, movable)
	if err != nil {
		return Extension{}, err
	}
	e.count = limit - e.first
	e.After = Segment{Start: stretch.Start, Length: stretch.Length + size.Bytes(e.count)*g.Extent}
	return e, nil
}

// changeable tells whether lvm would change the group, given that many extents.
func (g *Group) changeable(extents int64) error {
	if g.fixed != "" {
		return fmt.Errorf("%w: the volume group %s cannot be changed: %s", ErrUnsupported, g.Name, g.fixed)
	}
	if n := len(g.areas); n > 0 && g.areas[n-1].end() > extents {
		return fmt.Errorf("%w: the device is too small for the volumes that are on it", ErrUnsupported)
	}
	return nil
}

// limit returns the extent before which the volume that ends at e.first must
// end, and puts the moves that this takes into e.
func (g *Group) limit(e *Extension, extents int64, movable func(Volume) bool) (int64, error) {
	i, _ := slices.BinarySearchFunc(g.areas, e.first, func(a area, first int64) int { return cmp.Compare(a.start, first) })
	behind, inTheWay := g.areas[i:], ""
	free, volumes := extents-e.first, map[string]Volume{}
	for _, v := range g.Volumes {
		volumes[v.Name] = v
	}
	for _, a := range behind {
		free -= a.count
		v, visible := volumes[a.volume]
		if inTheWay == "" && (!visible || v.Why != "" || movable == nil || !movable(v)) {
			inTheWay = a.volume
		}
	}
	if inTheWay == "" {
		e.Moves = g.moves(behind, e.first+free)
		return e.first + free, nil
	}
	if behind[0].start-e.first < free {
		return 0, fmt.Errorf("%w: the volume %s lies between it and free extents", ErrBehind, inTheWay)
	}
	return e.first + free, nil
}

// moves packs areas from extent to on. The last one comes first: so no copy
// destroys what a later one takes.
func (g *Group) moves(areas []area, to int64) []Move {
	var list []Move
	for _, a := range areas {
		if to != a.start {
			list = append(list, Move{
				Volume: a.volume, Offset: size.Bytes(a.logical) * g.Extent,
				From: g.stretch(a.start, a.count), To: g.stretch(to, a.count),
				area: a, to: to,
			})
		}
		to += a.count
	}
	slices.Reverse(list)
	return list
}
