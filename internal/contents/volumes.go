package contents

import (
	"errors"
	"io"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/lvm"
	"ganeti-instance-image/internal/size"
)

// More is kept whole: each volume is looked into, and for each of its pieces what
// is used of it is read from the beginning.
const (
	volumesLimit = 256
	piecesLimit  = 16
)

// physical looks at a physical volume. What lies in front of its extents and
// behind them is kept.
func (d *Disk) physical(p Part, section io.ReaderAt) error {
	group, occupied, err := readGroup(section, p.Length)
	switch {
	case errors.Is(err, lvm.ErrUnsupported):
		p.whole(lvm.ErrUnsupported.Error())
	case errors.Is(err, lvm.ErrDamaged), errors.Is(err, lvm.ErrNone):
		p.whole(lvm.ErrDamaged.Error())
	case err != nil:
		return err
	case len(byVolume(occupied)) > volumesLimit:
		p.whole("it holds too many logical volumes")
	}
	d.Parts = append(d.Parts, p)
	if p.Whole {
		return nil
	}
	v := &volumes{Disk: d, pv: p, group: group, found: map[string]*volume{}}
	if err := v.all(occupied); err != nil {
		return err
	}
	d.Parts[len(d.Parts)-1-len(v.order)].Used = p.Length - v.free
	return nil
}

func readGroup(section io.ReaderAt, length size.Bytes) (*lvm.Group, []lvm.Occupied, error) {
	group, err := lvm.Read(section, length)
	if err != nil {
		return nil, nil, err
	}
	occupied, err := group.Occupied()
	return group, occupied, err
}

// byVolume tells how much each volume occupies.
func byVolume(occupied []lvm.Occupied) map[string]size.Bytes {
	lengths := map[string]size.Bytes{}
	for _, o := range occupied {
		lengths[o.Volume] += o.Length
	}
	return lengths
}

// volumes are those of one physical volume. Places on it become those on the disk
// by adding where the partition starts.
type volumes struct {
	*Disk
	pv    Part
	group *lvm.Group
	found map[string]*volume
	order []string // names as they come first on the disk
	free  size.Bytes
}

// volume is a logical volume that occupies something.
type volume struct {
	part   Part
	ranges sequence // nil where it is kept whole
}

// all walks through the extents in the disk's order.
func (v *volumes) all(occupied []lvm.Occupied) error {
	lengths := byVolume(occupied)
	at := v.group.Start
	for _, o := range occupied {
		v.leave(at, o.Start)
		at = o.Start + o.Length
		if v.found[o.Volume] == nil {
			part := Part{Number: v.pv.Number, Volume: o.Volume, Start: v.pv.Start + o.Start, Length: lengths[o.Volume]}
			if err := v.look(part); err != nil {
				return err
			}
		}
		if ranges := v.found[o.Volume].ranges; ranges != nil {
			start := v.pv.Start + o.Start
			v.pieces = append(v.pieces, piece{start: start, end: start + o.Length, from: o.Logical, ranges: ranges})
		}
	}
	v.leave(at, v.group.Start+size.Bytes(v.group.Extents)*v.group.Extent)
	for _, name := range v.order {
		part := v.found[name].part
		v.Parts = append(v.Parts, part)
		v.free += part.Length - part.Used
	}
	return nil
}

// leave leaves extents out that belong to no volume.
func (v *volumes) leave(start, end size.Bytes) {
	if start < end {
		v.pieces = append(v.pieces, piece{start: v.pv.Start + start, end: v.pv.Start + end})
		v.free += end - start
	}
}

// look finds what one logical volume holds.
func (v *volumes) look(part Part) error {
	found := &volume{part: part}
	v.found[part.Volume], v.order = found, append(v.order, part.Volume)
	logical, visible := v.group.Volume(part.Volume)
	switch {
	case !visible:
		found.part.whole("it is a part of another logical volume")
	case logical.Why != "":
		found.part.whole("it is no plain logical volume (" + logical.Why + ")")
	case len(logical.Segments) > piecesLimit:
		found.part.whole("it is in too many pieces")
	}
	if found.part.Whole {
		return nil
	}
	r := &joined{disk: v.disk, pv: v.pv.Start, segments: logical.Segments}
	info, err := filesystem.Probe(r, logical.Size)
	if err != nil {
		return err
	}
	found.part.Kind, found.part.end = info.Kind, info.Size
	found.ranges, err = found.part.look(r)
	return err
}

// joined reads the pieces of a logical volume as one.
type joined struct {
	disk     io.ReaderAt
	pv       size.Bytes // where the physical volume starts
	segments []lvm.Segment
}

func (j *joined) ReadAt(p []byte, off int64) (n int, err error) {
	at := size.Bytes(off)
	for _, s := range j.segments {
		if len(p) == 0 {
			return n, nil
		}
		if at >= s.Length {
			at -= s.Length
			continue
		}
		part := p[:min(size.Bytes(len(p)), s.Length-at)]
		got, err := j.disk.ReadAt(part, int64(j.pv+s.Start+at))
		n += got
		if got < len(part) {
			return n, err
		}
		p, at = p[got:], 0
	}
	if len(p) > 0 {
		return n, io.EOF
	}
	return n, nil
}
