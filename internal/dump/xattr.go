package dump

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"ganeti-instance-image/internal/tree"
)

// Magic numbers of sets of attributes, struct ext4_xattr_header: that of a block
// of its own, and the one that dump puts before the set in an inode.
const (
	blockMagic = 0xEA020000
	inodeMagic = 0xEA020001
)

// prefixes are the namespaces by e_name_index of struct ext4_xattr_entry. Those
// that are missing cannot be set: lustre, RichACLs and encryption.
var prefixes = map[byte]string{
	1: "user.",
	2: tree.AccessACL,
	3: tree.DefaultACL,
	4: "trusted.",
	6: "security.",
}

const (
	aclAccessIndex  = 2
	aclDefaultIndex = 3
	systemIndex     = 7
	inlineName      = "data" // of the system namespace: content of the file
)

// attributes are those of one inode.
type attributes struct {
	values map[string][]byte // as setxattr(2) takes them
	inline []byte            // content of a file with inline_data
	bytes  int               // of all values
	lost   []string          // what cannot be an attribute, with the reason
}

// readAttributes reads the sets of attributes behind the content of the file:
// none, one, or that in the inode and that in a block.
func (a *Archive) readAttributes() error {
	f := &a.file
	for sets := 0; ; sets++ {
		h, err := a.peek()
		if err != nil {
			return err
		}
		if !h.hasAttributes() || h.inode() != f.inode {
			return a.reportLost()
		}
		if sets == 2 {
			return a.damaged("inode %d has more than two sets of attributes", f.inode)
		}
		set, err := a.attributeSet()
		if err != nil {
			return err
		}
		if kind := h.u32(offExtended); kind != extAttributes {
			a.warn("inode %d: attributes of kind %d, which ext does not have, are left out", f.inode, kind)
			continue
		}
		if err := f.attributes.parse(set); err != nil {
			return a.damaged("inode %d: its attributes are damaged: %v", f.inode, err)
		}
	}
}

func (a *Archive) reportLost() error {
	for _, why := range a.file.attributes.lost {
		a.warn("inode %d: %s", a.file.inode, why)
	}
	return nil
}

// attributeSet takes the peeked header of a set of attributes and its records.
// Where none of the map's entries is above 1 it is not looked at, since dump
// before 0.4b43 may have left another one there: there are as many records as it
// has entries.
func (a *Archive) attributeSet() ([]byte, error) {
	h := &a.next
	a.peeked = false
	size, records := h.size(), int64(h.count())
	if size > maxAttributes {
		return nil, a.damaged("inode %d has attributes of %d bytes, and %d is the most", h.inode(), size, maxAttributes)
	}
	if slices.ContainsFunc(h.holes(), func(b byte) bool { return b > 1 }) {
		m := holeMap{entries: h.holes()}
		n, stored, err := m.next()
		if err != nil || !stored || len(m.entries) > 0 {
			return nil, a.damaged("inode %d: the map of its attributes is damaged", h.inode())
		}
		records = n
	}
	if int64(size) > records*recordSize || records > maxAttributes/recordSize {
		return nil, a.damaged("inode %d has attributes of %d bytes in %d records", h.inode(), size, records)
	}
	set := make([]byte, 0, records*recordSize)
	for int64(len(set)) < records*recordSize {
		b, err := a.in.take(records - int64(len(set)/recordSize))
		if err != nil {
			return nil, err
		}
		set = append(set, b...)
	}
	return set[:size], nil
}

var (
	errEntry = errors.New("an entry is cut off")
	errValue = errors.New("a value is not where its entry says")
)

// parse adds the attributes of a set. The first one of a name counts.
func (x *attributes) parse(set []byte) error {
	if len(set) < 4 {
		return errEntry
	}
	values, entries := set, 0
	switch binary.LittleEndian.Uint32(set) {
	case inodeMagic:
		values = set[4:]
	case blockMagic:
		entries = 32
	default:
		return errors.New("their magic number is missing")
	}
	total := 0
	for at := entries; len(values)-at >= 4 && binary.LittleEndian.Uint32(values[at:]) != 0; {
		const entryBytes = 16
		if len(values)-at < entryBytes {
			return errEntry
		}
		e := values[at:]
		if len(e) < entryBytes+int(e[0]) {
			return errEntry
		}
		value, err := entryValue(values, e)
		if err != nil {
			return err
		}
		// Values may overlap in a set that is made to need memory.
		if total += len(value); total > len(set) {
			return errValue
		}
		if err := x.add(e[1], string(e[entryBytes:entryBytes+int(e[0])]), value); err != nil {
			return err
		}
		at += (entryBytes + int(e[0]) + 3) &^ 3
	}
	return nil
}

// entryValue is the value of an entry, or nil where an inode of its own holds it.
func entryValue(values, e []byte) ([]byte, error) {
	at, inode, length := int64(binary.LittleEndian.Uint16(e[2:])), binary.LittleEndian.Uint32(e[4:]), int64(binary.LittleEndian.Uint32(e[8:]))
	if inode != 0 {
		return nil, nil
	}
	if length > 0 && at+length > int64(len(values)) {
		return nil, errValue
	}
	if length == 0 {
		return []byte{}, nil
	}
	return values[at : at+length], nil
}

func (x *attributes) add(index byte, name string, value []byte) error {
	if index == systemIndex && name == inlineName && value != nil {
		x.inline = bytes.Clone(value)
		return nil
	}
	prefix, known := prefixes[index]
	isACL := index == aclAccessIndex || index == aclDefaultIndex
	whole := prefix + name
	switch {
	case !known:
		x.lost = append(x.lost, fmt.Sprintf("the attribute %+q of namespace %d is left out: it cannot be set", name, index))
		return nil
	case isACL != (name == "") || bytes.IndexByte([]byte(name), 0) >= 0:
		return fmt.Errorf("%+q in namespace %d is no name", name, index)
	case value == nil:
		x.lost = append(x.lost, fmt.Sprintf("the value of the attribute %+q is lost: the file system kept it in an inode of its own (ea_inode)", whole))
		return nil
	}
	if isACL {
		var err error
		if value, err = convertACL(value); err != nil {
			return fmt.Errorf("%s: %w", whole, err)
		}
	}
	if x.values == nil {
		x.values = map[string][]byte{}
	}
	if _, twice := x.values[whole]; !twice {
		x.values[whole] = bytes.Clone(value)
		x.bytes += len(whole) + len(value)
	}
	return nil
}

// Tags of an ACL's entries that name somebody, and the versions of the form in
// ext (fs/ext4/acl.h) and of that of setxattr(2) (linux/posix_acl_xattr.h).
const (
	aclUser       = 2
	aclGroup      = 8
	aclExtVersion = 1
	aclVersion    = 2
	aclNobody     = 0xffffffff
)

// convertACL makes of an ACL as ext stores it one as setxattr(2) takes it.
func convertACL(b []byte) ([]byte, error) {
	bad := errors.New("the ACL is damaged")
	if len(b) < 4 || binary.LittleEndian.Uint32(b) != aclExtVersion {
		return nil, bad
	}
	out := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for b = b[4:]; len(b) > 0; {
		if len(b) < 4 {
			return nil, bad
		}
		id, length := uint32(aclNobody), 4
		if tag := binary.LittleEndian.Uint16(b); tag == aclUser || tag == aclGroup {
			if length = 8; len(b) < length {
				return nil, bad
			}
			id = binary.LittleEndian.Uint32(b[4:])
		}
		out = append(out, b[:4]...)
		out = binary.LittleEndian.AppendUint32(out, id)
		b = b[length:]
	}
	return out, nil
}
