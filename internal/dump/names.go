package dump

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"ganeti-instance-image/internal/tree"
)

const (
	rootInode   = 2
	namePage    = 1 << 20
	entryHeader = 8 // bytes of a directory entry before its name
)

// nameRef is where a name is in names. It grows from name to name.
type nameRef uint32

// names are byte strings of 1 to 255 bytes, in pages that are never moved.
type names struct {
	pages [][]byte
	count int
}

func (n *names) add(name []byte) nameRef {
	last := len(n.pages) - 1
	if last < 0 || len(n.pages[last])+1+len(name) > namePage {
		n.pages = append(n.pages, make([]byte, 0, namePage))
		last++
	}
	at := len(n.pages[last])
	n.pages[last] = append(append(n.pages[last], byte(len(name))), name...)
	n.count++
	return nameRef(last*namePage + at)
}

func (n *names) get(ref nameRef) []byte {
	b := n.pages[ref/namePage][ref%namePage:]
	return b[1 : 1+int(b[0])]
}

// full reports that no further name is to be kept.
func (n *names) full() bool {
	return n.count >= maxNames || len(n.pages) > maxNameBytes/namePage
}

// link is a name of an inode.
type link struct {
	inode     uint32
	directory int32 // its index
	name      nameRef
	onTape    bool // of the first name of an inode
}

// directory is one of the tree. Others are meant by their index, -1 is none.
type directory struct {
	inode                  uint32
	parent, child, sibling int32
	name                   nameRef
	path                   int32 // bytes of its path; 0 is not reached from the root
	mode                   uint16
	uid, gid, flags        uint32
	modify, access         uint32
	xattrs                 map[string][]byte
}

type directories struct {
	all     []directory
	byInode map[uint32]int32
	order   []int32 // each behind the one it is in, the root first
	kept    int     // bytes of attributes

	lastDirectory int32 // whose path is lastPath
	lastPath      string
}

// readDirectories reads the part of the dump that comes before the files.
func (a *Archive) readDirectories() error {
	a.dirs.byInode = map[uint32]int32{}
	for {
		h, err := a.peek()
		if err != nil {
			return err
		}
		if h.kind() != tsInode || h.mode()&formatMask != formatDirectory || h.hasAttributes() {
			return nil
		}
		if err := a.readDirectory(); err != nil {
			return err
		}
	}
}

func (a *Archive) readDirectory() error {
	if err := a.begin(); err != nil {
		return err
	}
	f := &a.file
	if _, twice := a.dirs.byInode[f.inode]; twice {
		return a.damaged("directory inode %d is there twice", f.inode)
	}
	if len(a.dirs.all) == maxDirectories {
		return a.damaged("there are more than %d directories", maxDirectories)
	}
	index, first := int32(len(a.dirs.all)), len(a.links)
	a.dirs.byInode[f.inode] = index
	a.dirs.all = append(a.dirs.all, directory{
		inode: f.inode, parent: -1, child: -1, sibling: -1,
		mode: f.head.mode(), uid: f.head.u32(offUID), gid: f.head.u32(offGID), flags: f.head.flags(),
		modify: f.head.u32(offModify), access: f.head.u32(offAccess),
	})
	seen := 0
	for {
		_, b, err := a.content()
		if err != nil {
			return err
		}
		if b == nil {
			break
		}
		for ; len(b) > 0; b = b[min(recordSize, len(b)):] {
			if err := a.addEntries(b[:min(recordSize, len(b))], index, &seen); err != nil {
				return err
			}
		}
	}
	if err := a.checkTwins(a.links[first:]); err != nil {
		return err
	}
	if err := a.finish(); err != nil {
		return err
	}
	if a.dirs.kept += f.attributes.bytes; a.dirs.kept > maxKept {
		return a.damaged("the attributes of directories have more than %d bytes", maxKept)
	}
	a.dirs.all[index].xattrs = f.attributes.values
	return nil
}

// addEntries adds the names of one record of a directory: struct direct of
// 4.4BSD. None goes beyond its record.
func (a *Archive) addEntries(b []byte, index int32, seen *int) error {
	for len(b) > 0 {
		if len(b) < entryHeader {
			return a.damaged("directory inode %d: an entry is cut off", a.file.inode)
		}
		inode, length, name := binary.LittleEndian.Uint32(b), int(binary.LittleEndian.Uint16(b[4:])), int(b[7])
		if length < entryHeader || length%4 != 0 || length > len(b) {
			return a.damaged("directory inode %d: an entry has the length %d", a.file.inode, length)
		}
		e := b[:length]
		b = b[length:]
		switch {
		case inode == 0:
			continue
		case entryHeader+name >= length && name == 255:
			// libext2fs from 1.46 on keeps its length in 8 bits.
			a.warn("directory inode %d: the name of inode %d has 255 bytes, which dump does not keep: it is left out", a.file.inode, inode)
			*seen++
			continue
		case entryHeader+name >= length:
			return a.damaged("directory inode %d: a name of %d bytes in an entry of %d", a.file.inode, name, length)
		}
		if err := a.addName(inode, index, e[entryHeader:entryHeader+name], *seen); err != nil {
			return err
		}
		*seen++
	}
	return nil
}

// addName adds a name that is not "." or "..", which are the first two of a
// directory.
func (a *Archive) addName(inode uint32, index int32, name []byte, position int) error {
	switch {
	case position == 0 && string(name) == ".", position == 1 && string(name) == "..":
		return nil
	case len(name) == 0, string(name) == ".", string(name) == "..", bytes.ContainsAny(name, "/\x00"):
		return a.damaged("directory inode %d: %+q is no name of a file", a.file.inode, name)
	case a.names.full():
		return a.damaged("there are more than %d names, or they have more than %d bytes", maxNames, maxNameBytes)
	}
	a.links = append(a.links, link{inode: inode, directory: index, name: a.names.add(name)})
	return nil
}

// checkTwins refuses a directory that has a name twice.
func (a *Archive) checkTwins(links []link) error {
	if len(links) < 2 {
		return nil
	}
	sorted := make([]nameRef, len(links))
	for i, l := range links {
		sorted[i] = l.name
	}
	slices.SortFunc(sorted, func(x, y nameRef) int { return bytes.Compare(a.names.get(x), a.names.get(y)) })
	for i := range sorted[1:] {
		if name := a.names.get(sorted[i]); bytes.Equal(name, a.names.get(sorted[i+1])) {
			return a.damaged("directory inode %d has the name %+q twice", a.file.inode, name)
		}
	}
	return nil
}

// resolve finds where each directory is, and leaves in links the names of what
// is none, by inode.
func (a *Archive) resolve() error {
	d := &a.dirs
	root, ok := d.byInode[rootInode]
	if !ok {
		return a.damaged("the root directory, inode %d, is missing", rootInode)
	}
	if err := a.findParents(); err != nil {
		return err
	}
	d.lastDirectory, d.lastPath = root, ""
	if err := a.walk(root, 1); err != nil {
		return err
	}
	if err := a.lostDirectories(root); err != nil {
		return err
	}
	a.links = slices.DeleteFunc(a.links, func(l link) bool {
		_, isDirectory := d.byInode[l.inode]
		return isDirectory || d.all[l.directory].path == 0
	})
	// A name that was added later has a larger nameRef.
	slices.SortFunc(a.links, func(x, y link) int {
		return cmp.Or(cmp.Compare(x.inode, y.inode), cmp.Compare(x.name, y.name))
	})
	return nil
}

func (a *Archive) findParents() error {
	d := &a.dirs
	// Backwards, so that the first name becomes the first child.
	for _, l := range slices.Backward(a.links) {
		i, isDirectory := d.byInode[l.inode]
		if !isDirectory {
			continue
		}
		child := &d.all[i]
		switch {
		case l.inode == rootInode:
			return fmt.Errorf("directory inode %d: %+q leads back to the root", d.all[l.directory].inode, a.names.get(l.name))
		case child.parent >= 0:
			return fmt.Errorf("directory inode %d is in the directories %d and %d", child.inode, d.all[child.parent].inode, d.all[l.directory].inode)
		}
		child.parent, child.name = l.directory, l.name
		child.sibling, d.all[l.directory].child = d.all[l.directory].child, i
	}
	return nil
}

// walk puts a directory and all below it into the order.
func (a *Archive) walk(top, path int32) error {
	d := &a.dirs
	d.all[top].path = path
	for i := top; ; {
		d.order = append(d.order, i)
		if next := d.all[i].child; next >= 0 {
			i = next
		} else {
			for i != top && d.all[i].sibling < 0 {
				i = d.all[i].parent
			}
			if i == top {
				return nil
			}
			i = d.all[i].sibling
		}
		length := int(d.all[d.all[i].parent].path) + 1 + len(a.names.get(d.all[i].name))
		if length > maxPath {
			return fmt.Errorf("directory inode %d: its path has more than %d bytes", d.all[i].inode, maxPath)
		}
		d.all[i].path = int32(length)
	}
}

// lostDirectories warns of directories without a name, and of those below them,
// and refuses directories that are in one another.
func (a *Archive) lostDirectories(root int32) error {
	d := &a.dirs
	reached := len(d.order)
	for i := range d.all {
		if d.all[i].parent >= 0 || int32(i) == root {
			continue
		}
		before := len(d.order)
		if err := a.walk(int32(i), 1); err != nil {
			return err
		}
		a.warn("directory inode %d has no name: it is left out, with %d directories below it", d.all[i].inode, len(d.order)-before-1)
	}
	if len(d.order) < len(d.all) {
		for i := range d.all {
			if d.all[i].path == 0 {
				return fmt.Errorf("directory inode %d is in a circle of directories", d.all[i].inode)
			}
		}
	}
	for _, i := range d.order[reached:] {
		d.all[i].path = 0
	}
	d.order = d.order[:reached]
	return nil
}

// pathOf is the path of a name in a directory, relative to the root.
func (a *Archive) pathOf(directory int32, name nameRef) string {
	d := &a.dirs
	if directory != d.lastDirectory {
		d.lastDirectory, d.lastPath = directory, a.prefixOf(directory)
	}
	return d.lastPath + string(a.names.get(name))
}

// prefixOf is the path of a directory with a slash behind it, and empty for the
// root.
func (a *Archive) prefixOf(directory int32) string {
	d := &a.dirs
	var parts []nameRef
	length := 0
	for i := directory; d.all[i].parent >= 0; i = d.all[i].parent {
		parts = append(parts, d.all[i].name)
		length += len(a.names.get(d.all[i].name)) + 1
	}
	path := make([]byte, 0, length)
	for _, part := range slices.Backward(parts) {
		path = append(append(path, a.names.get(part)...), '/')
	}
	return string(path)
}

// nextDirectory is the next directory as an entry, or nil behind the last.
func (a *Archive) nextDirectory() *tree.Entry {
	if a.emitted == len(a.dirs.order) {
		return nil
	}
	d := &a.dirs.all[a.dirs.order[a.emitted]]
	a.emitted++
	e := &tree.Entry{
		Name: ".", Type: tree.Directory,
		Mode: uint32(d.mode & permissionMask), UID: d.uid, GID: d.gid, Flags: d.flags & settableFlags,
		ModTime: seconds(d.modify), AccessTime: seconds(d.access),
		Xattrs: d.xattrs,
	}
	if d.parent >= 0 {
		e.Name = a.pathOf(d.parent, d.name)
	}
	a.noteTime(e, d.modify)
	return e
}

// noteTime counts times that dump cannot keep: read as restore(8) reads them, one
// before 1970 comes out after 2106, and as 32 bits signed one after 2038 before
// 1970. Times from 2106 on cannot be noticed.
func (a *Archive) noteTime(e *tree.Entry, modify uint32) {
	if modify <= math.MaxInt32 {
		return
	}
	if a.wrapped == 0 {
		a.wrapOne = e.Name
	}
	a.wrapped++
}
