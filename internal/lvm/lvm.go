// Package lvm reads the LVM2 metadata of one physical volume and grows a
// logical volume on it. Reading is done without lvm's tools and without device
// mapper: a linear logical volume is one stretch of its physical volume, and a
// loop device reaches it. Writing is done by lvm's own tools, which are shown
// that one device, keep their files in a private directory and never activate
// anything, so that volume groups of the same name or UUID elsewhere on the node
// are not touched.
//
// The on-disk format is that of lvm2's lib/label/label.h,
// lib/format_text/layout.h and man lvm.conf(5) (the text's syntax).
//
// Left out: groups of several physical volumes, groups that are exported or
// shared between nodes, LVM1, activation, and whatever is not a plain stretch
// (stripes, mirrors, RAID, thin, cached and deduplicated volumes, snapshots):
// these are recognised and named, no more.
package lvm

import (
	"errors"
	"fmt"

	"ganeti-instance-image/internal/size"
)

// What an error of this package wraps, besides those of reading and of running
// a tool.
var (
	ErrNone        = errors.New("there is no LVM physical volume")
	ErrDamaged     = errors.New("the LVM metadata is damaged")
	ErrUnsupported = errors.New("LVM is used in a way that is not supported")
	ErrBehind      = errors.New("other data lies behind the logical volume") // it cannot grow in place
)

const sector = size.Bytes(512) // LVM's unit, whatever the device's sector size is

// Group is the volume group on one physical volume, as its newest metadata says.
type Group struct {
	Name, UUID string
	Seqno      int64 // counts the changes of the metadata

	PV      string     // the physical volume's UUID
	Device  size.Bytes // the length the physical volume takes its device to have
	Start   size.Bytes // where the first extent begins (pe_start)
	Extent  size.Bytes // length of an extent
	Extents int64      // extents of the physical volume
	Free    int64      // those that belong to no logical volume

	Volumes []Volume // the visible ones, in the metadata's order

	fixed    string     // why the group cannot be changed, "" when it can
	doubt    error      // why areas may not be all that is allocated, nil when they are
	systemID string     // of the system that alone may change the group, "" for all
	areas    []area     // all that is allocated, in the order of the extents
	tail     size.Bytes // length of the metadata area behind the extents
}

// Volume is a visible logical volume.
type Volume struct {
	Name, UUID string
	Size       size.Bytes
	Segments   []Segment // the stretches of the physical volume, in logical order; nil where Why is not ""
	Why        string    // why these do not make up the volume: "thin volume", "raid1", "has a snapshot"; "" when they do
}

// Segment is a stretch of the physical volume. Start counts from its beginning.
type Segment struct{ Start, Length size.Bytes }

// Occupied is a stretch of the physical volume that belongs to a logical volume.
type Occupied struct {
	Segment
	Volume  string     // its name; the volume may be a hidden one
	Logical size.Bytes // where in the volume the stretch begins, if it is linear there
}

// Occupied returns all that logical volumes occupy, also hidden ones, in the
// disk's order: between Start and the last extent's end, all else is free. The
// error wraps ErrUnsupported where a volume may occupy more, and ErrDamaged where
// a metadata area could not be read, which may have been the newest.
func (g *Group) Occupied() ([]Occupied, error) {
	if g.doubt != nil {
		return nil, fmt.Errorf("cannot tell what is free in the volume group %s: %w", g.Name, g.doubt)
	}
	var list []Occupied
	for _, a := range g.areas {
		next := Occupied{g.stretch(a.start, a.count), a.volume, size.Bytes(a.logical) * g.Extent}
		if last := len(list) - 1; last >= 0 && list[last].goesOn(next) {
			list[last].Length += next.Length
		} else {
			list = append(list, next)
		}
	}
	return list, nil
}

// goesOn tells whether the next stretch follows on the disk and in the volume.
func (o Occupied) goesOn(next Occupied) bool {
	return o.Volume == next.Volume && o.Start+o.Length == next.Start && o.Logical+o.Length == next.Logical
}

// Linear returns the one stretch that the volume is, if it is one: then a loop
// device reaches all of it.
func (v Volume) Linear() (Segment, bool) {
	if v.Why != "" || len(v.Segments) != 1 {
		return Segment{}, false
	}
	return v.Segments[0], true
}

// Volume returns the visible volume of that name.
func (g *Group) Volume(name string) (Volume, bool) {
	for _, v := range g.Volumes {
		if v.Name == name {
			return v, true
		}
	}
	return Volume{}, false
}

// area is a run of extents that a logical volume, also a hidden one, occupies.
type area struct {
	start, count int64
	volume       string
	segment      string // the segment's section: "segment1"
	item         int    // where in its list the number of the first extent stands
	list         string // "stripes" or "mirrors"
	logical      int64  // extents of the volume before this one
}

func (a area) end() int64 { return a.start + a.count }

func (g *Group) stretch(start, count int64) Segment {
	return Segment{Start: g.Start + size.Bytes(start)*g.Extent, Length: size.Bytes(count) * g.Extent}
}
