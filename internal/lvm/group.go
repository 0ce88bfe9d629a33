package lvm

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"ganeti-instance-image/internal/size"
)

const extentsLimit = math.MaxUint32 // lvm counts extents and sectors of an extent in 32 bits

// segmentTypes are the types of lvm's lib/ (segtype.h) whose segments are no
// plain stretch, in words. None but a mirror names physical volumes itself: the
// others lie on further volumes, which are hidden.
var segmentTypes = map[string]string{
	"striped": "", "linear": "",
	"mirror": "mirror", "snapshot": "snapshot", "error": "error target", "zero": "zero target",
	"thin": "thin volume", "thin-pool": "thin pool",
	"cache": "cached volume", "cache-pool": "cache pool", "writecache": "write cache",
	"vdo": "VDO volume", "vdo-pool": "VDO pool", "integrity": "integrity",
}

// builder makes a group of the sections of a text.
type builder struct {
	*Group
	vg      *section
	pv      string // name of the physical volume's section
	volumes []*volume
	byName  map[string]*volume
}

// volume is a logical volume, visible or not.
type volume struct {
	Volume
	visible bool
	extents int64
	areas   []area
}

// parseGroup reads the text that the physical volume pv of n bytes holds.
func parseGroup(text []byte, pv string, n size.Bytes) (*Group, error) {
	root, err := parseText(string(text))
	if err != nil {
		return nil, err
	}
	if root.text("contents") != "Text Format Volume Group" || len(root.sections) != 1 {
		return nil, damaged("the metadata text does not describe one volume group")
	}
	if version, err := root.number("version", 0); err != nil || version != 1 {
		return nil, fmt.Errorf("%w: the metadata text is not of version 1", ErrUnsupported)
	}
	b := &builder{Group: &Group{}, vg: root.sections[0], byName: map[string]*volume{}}
	steps := []func() error{b.group, b.refuse, func() error { return b.physical(pv, n) }, b.logical, b.allocation}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return b.Group, nil
}

// group reads what the group says of itself.
func (b *builder) group() (err error) {
	b.Name, b.UUID, b.systemID = b.vg.name, b.vg.text("id"), b.vg.text("system_id")
	if !validName(b.Name) || !validUUID(b.UUID) || b.systemID != "" && !validName(b.systemID) {
		return damaged("the volume group's name %+.64q, UUID %+.64q or system ID %+.64q is not valid", b.Name, b.UUID, b.systemID)
	}
	if b.Seqno, err = b.vg.number("seqno", 0); err != nil {
		return err
	}
	sectors, err := b.vg.number("extent_size", 1)
	if err == nil && sectors > extentsLimit {
		err = damaged("an extent is said to have %d sectors", sectors)
	}
	b.Extent = size.Bytes(sectors) * sector
	switch {
	case !b.vg.has("status", "WRITE") && !b.vg.has("flags", "WRITE_LOCKED"):
		b.fixed = "it may only be read"
	case !b.vg.has("status", "RESIZEABLE"):
		b.fixed = "it is not resizeable"
	}
	return err
}

// refuse looks for groups that are not this physical volume's alone.
func (b *builder) refuse() error {
	why := ""
	lock := b.vg.text("lock_type")
	volumes := b.vg.at("physical_volumes").sections
	switch {
	case b.vg.has("status", "EXPORTED"):
		why = "is exported"
	case b.vg.has("status", "PARTIAL"):
		why = "is partial"
	case b.vg.has("status", "CLUSTERED") || b.vg.has("flags", "CLUSTERED"):
		why = "is clustered"
	case lock != "" && lock != "none":
		why = fmt.Sprintf("is shared (lock type %+.64q)", lock)
	case len(volumes) > 1:
		why = fmt.Sprintf("spans %d physical volumes", len(volumes))
	case len(volumes) == 1 && volumes[0].has("flags", "MISSING"):
		why = "misses its physical volume"
	default:
		return nil
	}
	return fmt.Errorf("%w: the volume group %s %s", ErrUnsupported, b.Name, why)
}

// physical reads the physical volume, whose UUID the label says too.
func (b *builder) physical(pv string, n size.Bytes) error {
	sections := b.vg.at("physical_volumes").sections
	if len(sections) != 1 || sections[0].text("id") != pv {
		return damaged("the volume group %s does not hold the physical volume %s that its metadata is on", b.Name, pv)
	}
	s := sections[0]
	b.pv, b.PV = s.name, pv
	start, err := s.number("pe_start", 0)
	if err != nil {
		return err
	}
	if b.Extents, err = s.number("pe_count", 0); err != nil {
		return err
	}
	if start > int64(n/sector) || b.Extents > extentsLimit || size.Bytes(b.Extents) > (n-size.Bytes(start)*sector)/b.Extent {
		return damaged("%d extents of %s after %d sectors do not fit on a device of %d bytes", b.Extents, b.Extent, start, int64(n))
	}
	b.Start = size.Bytes(start) * sector
	if device, err := s.number("dev_size", 0); err == nil && device <= math.MaxInt64/int64(sector) {
		b.Device = size.Bytes(device) * sector
	}
	if b.fixed == "" && !s.has("status", "ALLOCATABLE") {
		b.fixed = "its physical volume does not allow allocations"
	}
	return nil
}

// logical reads the logical volumes and then looks which ones stand on others.
func (b *builder) logical() error {
	uuids := map[string]bool{}
	for _, s := range b.vg.at("logical_volumes").sections {
		v := &volume{Volume: Volume{Name: s.name, UUID: s.text("id")}, visible: s.has("status", "VISIBLE")}
		if !validName(v.Name) || !validUUID(v.UUID) || uuids[v.UUID] {
			return damaged("the logical volume's name %+.64q or UUID %+.64q is not valid, or stands twice", v.Name, v.UUID)
		}
		uuids[v.UUID] = true
		b.volumes, b.byName[v.Name] = append(b.volumes, v), v
	}
	for i, s := range b.vg.at("logical_volumes").sections {
		if err := b.segments(b.volumes[i], s); err != nil {
			return err
		}
		if s.has("status", "LOCKED") {
			b.volumes[i].because("locked")
		}
	}
	for i, s := range b.vg.at("logical_volumes").sections {
		for _, segment := range s.sections {
			b.references(b.volumes[i], segment)
		}
	}
	return nil
}

// because says why a volume is no plain stretch, unless that is known already.
func (v *volume) because(why string) {
	if v.Why == "" {
		v.Why = why
	}
}

// segments reads the sections segment1, segment2, ... of a logical volume.
func (b *builder) segments(v *volume, s *section) error {
	count, err := s.number("segment_count", 1)
	if err != nil {
		return err
	}
	if count != int64(len(s.sections)) {
		return damaged("the logical volume %s has not the %d segments that it says", v.Name, count)
	}
	for i := range s.sections {
		segment := s.at("segment" + strconv.Itoa(i+1))
		start, err := segment.number("start_extent", 0)
		if err != nil {
			return err
		}
		extents, err := segment.number("extent_count", 1)
		if err != nil {
			return err
		}
		if start != v.extents || extents > extentsLimit || size.Bytes(v.extents+extents) > math.MaxInt64/b.Extent {
			return damaged("%s of the logical volume %s does not follow the one before, or is too long", segment.name, v.Name)
		}
		if err := b.segment(v, segment, extents); err != nil {
			return err
		}
		v.extents += extents
	}
	v.Size = size.Bytes(v.extents) * b.Extent
	return nil
}

// segment reads where one segment lies.
func (b *builder) segment(v *volume, s *section, extents int64) error {
	kind, _, _ := strings.Cut(s.text("type"), "+")
	why, known := segmentTypes[kind]
	switch {
	case strings.HasPrefix(kind, "raid"):
		why = kind
	case !known:
		why = fmt.Sprintf("segment type %+.64q", kind)
		b.fixed = fmt.Sprintf("what the segment type %+.64q of the volume %s occupies is not known", kind, v.Name)
		b.doubt = fmt.Errorf("%w: a volume has segments of an unknown type", ErrUnsupported)
	}
	if why != "" {
		v.because(why)
	}
	switch kind {
	case "striped", "linear":
		stripes, err := s.number("stripe_count", 1)
		if err != nil {
			return err
		}
		if extents%stripes != 0 || int64(len(s.values["stripes"])) != 2*stripes {
			return damaged("%s of the logical volume %s does not divide into its stripes", s.name, v.Name)
		}
		if stripes > 1 {
			v.because("striped")
		}
		return b.places(v, s, "stripes", extents/stripes)
	case "mirror":
		return b.places(v, s, "mirrors", extents)
	}
	return nil
}

// places reads a list of pairs: the name of a physical or logical volume, and
// the first extent there.
func (b *builder) places(v *volume, s *section, list string, extents int64) error {
	items := s.values[list]
	if len(items)%2 != 0 {
		return damaged("%s of the logical volume %s: %s are no pairs", s.name, v.Name, list)
	}
	for i := 0; i < len(items); i += 2 {
		on, start := items[i], items[i+1]
		if on.isNumber || !start.isNumber || start.number < 0 {
			return damaged("%s of the logical volume %s: %s are not names and extents", s.name, v.Name, list)
		}
		if on.text != b.pv {
			if b.byName[on.text] == nil {
				return damaged("the logical volume %s lies on %+.64q, which is not there", v.Name, on.text)
			}
			v.because("lies on the volume " + on.text)
			continue
		}
		if start.number > b.Extents || extents > b.Extents-start.number {
			return damaged("the logical volume %s goes on behind the end of the physical volume", v.Name)
		}
		a := area{start: start.number, count: extents, volume: v.Name, segment: s.name, item: i + 1, list: list, logical: v.extents}
		v.areas = append(v.areas, a)
	}
	return nil
}

// places are the lists that tell extents of the physical volume, by the segment's
// type. A type with flags is not among them: what these mean is not known.
var places = map[string]string{"striped": "stripes", "linear": "stripes", "mirror": "mirrors"}

// references marks the volumes that a segment of v names, whatever for: who
// writes to such a volume alone breaks v.
func (b *builder) references(v *volume, s *section) {
	for _, key := range slices.Sorted(maps.Keys(s.values)) {
		for _, item := range s.values[key] {
			if !item.isNumber && item.text == b.pv && places[s.text("type")] != key {
				b.doubt = fmt.Errorf("%w: a volume names the physical volume as its %s", ErrUnsupported, key)
			}
			other := b.byName[item.text]
			if item.isNumber || other == nil || other == v || key == "type" {
				continue
			}
			switch {
			case s.text("type") == "snapshot" && key == "origin":
				other.because("has a snapshot")
			case s.text("type") == "snapshot":
				other.because("snapshot")
				other.visible = true // lvm lists it, without the flag in the metadata
			default:
				other.because("a part of the volume " + v.Name)
			}
		}
	}
}

// allocation brings all areas in order, which must not overlap, and fills in
// the visible volumes.
func (b *builder) allocation() error {
	b.Free = b.Extents
	for _, v := range b.volumes {
		b.areas = append(b.areas, v.areas...)
		if !v.visible {
			continue
		}
		if v.Why == "" {
			v.Segments = b.merged(v.areas)
		}
		b.Volumes = append(b.Volumes, v.Volume)
	}
	slices.SortStableFunc(b.areas, func(x, y area) int { return cmp.Compare(x.start, y.start) })
	for i, a := range b.areas {
		if i > 0 && b.areas[i-1].end() > a.start {
			return damaged("the logical volumes %s and %s overlap at extent %d", b.areas[i-1].volume, a.volume, a.start)
		}
		b.Free -= a.count
	}
	return nil
}

// merged joins areas that follow each other on the physical volume too.
func (b *builder) merged(areas []area) []Segment {
	var list []Segment
	for _, a := range areas {
		s := b.stretch(a.start, a.count)
		if last := len(list) - 1; last >= 0 && list[last].Start+list[last].Length == s.Start {
			list[last].Length += s.Length
		} else {
			list = append(list, s)
		}
	}
	return list
}
