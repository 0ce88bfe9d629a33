package lvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"ganeti-instance-image/internal/size"
)

// Sizes and marks of lib/label/label.h and lib/format_text/layout.h.
const (
	labelSectors = 4
	labelMark    = "LABELONE"
	labelType    = "LVM2 001"
	mdaMark      = " LVM2 x[5A%r0N*>"
	mdaHeader    = 512
	mdaVersion   = 1
	mdaIgnored   = 1 // a flag of a text's place: this metadata area is not in use

	mdasLimit = 4             // lvm makes at most 2
	textLimit = 16 * size.MiB // a group of thousands of volumes needs 1 MiB
	headLimit = labelSectors * sector
)

// Read finds the label of a physical volume of n bytes and reads the volume
// group from its newest metadata area. The error wraps ErrNone where there is no
// label, ErrDamaged, ErrUnsupported, or is what r says.
func Read(r io.ReaderAt, n size.Bytes) (*Group, error) {
	g, err := read(r, n)
	if err != nil {
		return nil, fmt.Errorf("cannot read the LVM physical volume: %w", err)
	}
	return g, nil
}

func read(r io.ReaderAt, n size.Bytes) (*Group, error) {
	head, err := readAt(r, n, 0, min(n, headLimit))
	if err != nil {
		return nil, err
	}
	pv, err := findLabel(head)
	if err != nil {
		return nil, err
	}
	for _, mda := range pv.mdas {
		if mda.off < 0 || mda.length < 0 || mda.off > n || mda.length > n-mda.off {
			return nil, damaged("a metadata area does not lie on the device of %d bytes", int64(n))
		}
	}
	var newest *Group
	var faults []error
	for _, mda := range pv.mdas {
		g, err := readArea(r, n, mda, pv.uuid)
		if err != nil {
			faults = append(faults, err)
		} else if g != nil && (newest == nil || g.Seqno > newest.Seqno) {
			newest = g
		}
	}
	switch {
	case newest != nil:
		newest.tail = pv.tail(newest)
		newest.doubt = errors.Join(append(faults, newest.doubt, pv.amongExtents(newest))...)
		return newest, nil
	case len(faults) > 0:
		return nil, errors.Join(faults...)
	}
	return nil, fmt.Errorf("%w: it belongs to no volume group, or holds no metadata", ErrUnsupported)
}

// readAt reads a range after it was found to lie on the device.
func readAt(r io.ReaderAt, n, off, length size.Bytes) ([]byte, error) {
	if off < 0 || length < 0 || off > n || length > n-off {
		return nil, damaged("%d bytes at offset %d do not lie on a device of %d", int64(length), int64(off), int64(n))
	}
	p := make([]byte, length)
	if got, err := r.ReadAt(p, int64(off)); got < len(p) {
		return nil, err
	}
	return p, nil
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrDamaged}, args...)...)
}

// locn is a place on the device (disk_locn).
type locn struct{ off, length size.Bytes }

// header is a physical volume's label (pv_header).
type header struct {
	uuid string
	mdas []locn
}

// tail returns the length of a metadata area behind the extents.
func (h header) tail(g *Group) size.Bytes {
	var length size.Bytes
	for _, mda := range h.mdas {
		if mda.off > g.Start {
			length += mda.length
		}
	}
	return length
}

// amongExtents is the error for a group whose extents are not apart from the
// label and the metadata areas.
func (h header) amongExtents(g *Group) error {
	all := g.stretch(0, g.Extents)
	for _, mda := range append(h.mdas, locn{0, headLimit}) {
		if mda.off < all.Start+all.Length && all.Start < mda.off+mda.length {
			return damaged("metadata at offset %d lies among the extents", int64(mda.off))
		}
	}
	return nil
}

// findLabel looks at the first four sectors of 512 bytes, as lvm does on every
// device, and takes the first label whose checksum is right.
func findLabel(head []byte) (header, error) {
	fault := ErrNone
	for i := range len(head) / int(sector) {
		label := head[i*int(sector):][:sector]
		if string(label[:8]) != labelMark {
			continue
		}
		if crc(label[20:]) != binary.LittleEndian.Uint32(label[16:]) || binary.LittleEndian.Uint64(label[8:]) != uint64(i) {
			fault = damaged("the checksum or the place of the label in sector %d is wrong", i)
			continue
		}
		if string(label[24:32]) != labelType {
			return header{}, fmt.Errorf("%w: the label's type is %+.64q", ErrUnsupported, label[24:32])
		}
		off := binary.LittleEndian.Uint32(label[20:])
		if off < 32 || int(off) > len(label)-40 {
			return header{}, damaged("the label's contents begin at byte %d", off)
		}
		return parseHeader(label[off:])
	}
	return header{}, fault
}

// parseHeader reads the UUID and the lists of data and metadata areas; each list
// ends with an offset of zero.
func parseHeader(p []byte) (header, error) {
	uuid, ok := dashed(string(p[:32]))
	if !ok {
		return header{}, damaged("%+.64q is no UUID", p[:32])
	}
	_, rest, ok := parseLocns(p[40:])
	mdas, _, ok2 := parseLocns(rest)
	if !ok || !ok2 || len(mdas) > mdasLimit {
		return header{}, damaged("the label's list of areas has no end, or too many entries")
	}
	return header{uuid: uuid, mdas: mdas}, nil
}

func parseLocns(p []byte) (list []locn, rest []byte, ok bool) {
	for len(p) >= 16 {
		l := locn{size.Bytes(binary.LittleEndian.Uint64(p)), size.Bytes(binary.LittleEndian.Uint64(p[8:]))}
		p = p[16:]
		if l.off == 0 {
			return list, p, true
		}
		list = append(list, l)
	}
	return nil, nil, false
}

// readArea reads one metadata area; the group is nil where the area is not in use.
func readArea(r io.ReaderAt, n size.Bytes, mda locn, pv string) (*Group, error) {
	text, err := readText(r, n, mda)
	if err != nil || text == nil {
		return nil, err
	}
	return parseGroup(text, pv, n)
}

// readText returns the committed text of a metadata area. It lies in a ring
// behind the area's header: what does not fit before the end goes on behind the
// header (mda_header, raw_locn).
func readText(r io.ReaderAt, n size.Bytes, mda locn) ([]byte, error) {
	p, err := readAt(r, n, mda.off, mdaHeader)
	if err != nil {
		return nil, err
	}
	if string(p[4:20]) != mdaMark || crc(p[4:]) != binary.LittleEndian.Uint32(p) {
		return nil, damaged("the metadata area at offset %d has no valid header", int64(mda.off))
	}
	if version := binary.LittleEndian.Uint32(p[20:]); version != mdaVersion {
		return nil, fmt.Errorf("%w: version %d of the metadata area", ErrUnsupported, version)
	}
	start, length := size.Bytes(binary.LittleEndian.Uint64(p[24:])), size.Bytes(binary.LittleEndian.Uint64(p[32:]))
	if start != mda.off || length <= mdaHeader || length > n-start {
		return nil, damaged("the metadata area at offset %d says that it is %d bytes at offset %d", int64(mda.off), int64(length), int64(start))
	}
	off, textLength := size.Bytes(binary.LittleEndian.Uint64(p[40:])), size.Bytes(binary.LittleEndian.Uint64(p[48:]))
	sum, flags := binary.LittleEndian.Uint32(p[56:]), binary.LittleEndian.Uint32(p[60:])
	if off == 0 || flags&mdaIgnored != 0 {
		return nil, nil
	}
	if off < mdaHeader || off >= length || textLength <= 0 || textLength > length-mdaHeader {
		return nil, damaged("the metadata text is said to be %d bytes at offset %d of an area of %d", int64(textLength), int64(off), int64(length))
	}
	if textLength > textLimit {
		return nil, fmt.Errorf("%w: the metadata text is %s long, more than %s", ErrUnsupported, textLength, textLimit)
	}
	text, err := readAt(r, n, start+off, min(textLength, length-off))
	if err != nil {
		return nil, err
	}
	if wrapped := textLength - size.Bytes(len(text)); wrapped > 0 {
		more, err := readAt(r, n, start+mdaHeader, wrapped)
		if err != nil {
			return nil, err
		}
		text = append(text, more...)
	}
	if crc(text) != sum {
		return nil, damaged("the checksum of the metadata text is wrong")
	}
	return bytes.TrimRight(text, "\x00"), nil
}

// crc is lvm's calc_crc: the IEEE polynomial, begun with 0xf597a6cf and not
// inverted at the end.
func crc(p []byte) uint32 {
	const initial = 0xf597a6cf
	return ^crc32.Update(^uint32(initial), crc32.IEEETable, p)
}
