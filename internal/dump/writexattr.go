package dump

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/tree"
)

const (
	xattrEntryBytes = 16       // of struct ext4_xattr_entry without its name
	blockSetStart   = 32       // bytes of struct ext4_xattr_header
	inodeSetStart   = 4        // bytes of the magic number before the set in an inode
	maxXattrList    = 64 << 10 // XATTR_LIST_MAX and XATTR_SIZE_MAX
	maxXattrBytes   = 1 << 20  // bytes of all values of a file, far above what fits
)

// xattr is an attribute in the form that ext has.
type xattr struct {
	index byte
	name  string
	value []byte
}

// size is how many bytes it needs in a set.
func (x *xattr) size() int { return (xattrEntryBytes+len(x.name)+3)&^3 + (len(x.value)+3)&^3 }

// xattrReader reads attributes.
type xattrReader struct {
	list, value []byte
	foreign     []string // names that mean nothing to other file systems
}

// read returns the attributes of an inode that a descriptor is of.
func (r *xattrReader) read(fd int) ([]xattr, error) {
	r.foreign = nil
	if r.list == nil {
		r.list, r.value = make([]byte, maxXattrList), make([]byte, maxXattrList)
	}
	path := descriptor(fd)
	n, err := unix.Listxattr(path, r.list)
	if n == 0 || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, os.NewSyscallError("listxattr", err)
	}
	var all []xattr
	total := 0
	for name := range strings.SplitSeq(strings.TrimSuffix(string(r.list[:n]), "\x00"), "\x00") {
		x, known := xattrOf(name)
		if !known {
			r.foreign = append(r.foreign, name)
			continue
		}
		if isDoubled(name, r.list[:n]) {
			continue
		}
		if err := r.fill(path, name, &x); err != nil {
			return nil, fmt.Errorf("the attribute %+q: %w", name, err)
		}
		if total += len(x.value); total > maxXattrBytes {
			return nil, errTooMany
		}
		all = append(all, x)
	}
	return all, nil
}

// fill reads the value of an attribute.
func (r *xattrReader) fill(path, name string, x *xattr) error {
	n, err := unix.Getxattr(path, name, r.value)
	if errors.Is(err, unix.ENODATA) {
		return errChanged
	}
	if err != nil {
		return os.NewSyscallError("getxattr", err)
	}
	x.value = bytes.Clone(r.value[:n])
	if x.index == aclAccessIndex || x.index == aclDefaultIndex {
		x.value, err = aclForExt(x.value)
	}
	return err
}

// doubled are the attributes in which XFS keeps what it also shows as an ACL.
var doubled = map[string]string{
	"trusted.SGI_ACL_FILE":    tree.AccessACL,
	"trusted.SGI_ACL_DEFAULT": tree.DefaultACL,
}

func isDoubled(name string, list []byte) bool {
	acl, ok := doubled[name]
	return ok && bytes.Contains(append([]byte{0}, list...), []byte("\x00"+acl+"\x00"))
}

// xattrOf is an attribute by its name, with its namespace's index, see prefixes.
func xattrOf(name string) (xattr, bool) {
	for index, prefix := range prefixes {
		isACL := index == aclAccessIndex || index == aclDefaultIndex
		if rest, ok := strings.CutPrefix(name, prefix); ok && isACL == (rest == "") {
			return xattr{index: index, name: rest}, true
		}
	}
	return xattr{}, false
}

// aclForExt makes of an ACL as getxattr(2) gives it one as ext stores it: the
// reverse of convertACL.
func aclForExt(b []byte) ([]byte, error) {
	const headBytes, entryBytes = 4, 8
	if len(b) < headBytes || len(b)%entryBytes != headBytes || binary.LittleEndian.Uint32(b) != aclVersion {
		return nil, errors.New("the kernel gave no ACL of a known form")
	}
	out := binary.LittleEndian.AppendUint32(nil, aclExtVersion)
	for e := range slices.Chunk(b[headBytes:], entryBytes) {
		length := 4
		if tag := binary.LittleEndian.Uint16(e); tag == aclUser || tag == aclGroup {
			length = 8
		}
		out = append(out, e[:length]...)
	}
	return out, nil
}

var errTooMany = fmt.Errorf("its attributes do not fit into a dump, which has room for two sets of %d bytes", maxSet)

// maxSet is how many bytes a set of attributes may have.
const maxSet = 4096

// attributeSets makes the sets of attributes that are to be in the dump, in whole
// records: that of an inode and that of a block. Where one set has room for all it
// is that of the block, since restore(8) up to 0.4b47 loses the other one of a
// directory.
func attributeSets(all []xattr) (sets [2][]byte, err error) {
	const endBytes = 4
	room := [2]int{maxSet - inodeSetStart - endBytes, maxSet - blockSetStart - endBytes}
	var of [2][]xattr
	slices.SortStableFunc(all, func(a, b xattr) int { return cmp.Compare(b.size(), a.size()) })
	for _, x := range all {
		into := 1
		if x.size() > room[1] {
			into = 0
		}
		if x.size() > room[into] {
			return sets, errTooMany
		}
		room[into] -= x.size()
		of[into] = append(of[into], x)
	}
	return [2][]byte{encodeSet(inodeMagic, of[0]), encodeSet(blockMagic, of[1])}, nil
}

// encodeSet makes a set of attributes in whole records: the entries in the order
// that ext has, and the values from the end on.
func encodeSet(number uint32, all []xattr) []byte {
	if len(all) == 0 {
		return nil
	}
	slices.SortFunc(all, func(a, b xattr) int {
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(len(a.name), len(b.name)), cmp.Compare(a.name, b.name))
	})
	base, at, length := 0, blockSetStart, blockSetStart+4
	if number == inodeMagic {
		base, at, length = inodeSetStart, inodeSetStart, inodeSetStart+4
	}
	for i := range all {
		length += all[i].size()
	}
	b := make([]byte, roundRecords(int64(length))*recordSize)
	binary.LittleEndian.PutUint32(b, number)
	if number == blockMagic {
		binary.LittleEndian.PutUint32(b[4:], 1) // h_refcount
		binary.LittleEndian.PutUint32(b[8:], 1) // h_blocks
	}
	end := len(b)
	for _, x := range all {
		e := b[at:]
		e[0], e[1] = byte(len(x.name)), x.index
		if len(x.value) > 0 {
			end -= (len(x.value) + 3) &^ 3
			copy(b[end:], x.value)
			binary.LittleEndian.PutUint16(e[2:], uint16(end-base))
			binary.LittleEndian.PutUint32(e[8:], uint32(len(x.value)))
		}
		copy(e[xattrEntryBytes:], x.name)
		at += (xattrEntryBytes + len(x.name) + 3) &^ 3
	}
	return b
}
