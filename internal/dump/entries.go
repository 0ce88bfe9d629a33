package dump

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"time"

	"ganeti-instance-image/internal/tree"
)

// Bits of di_mode, as of inode(7).
const (
	formatMask      = 0o170000
	formatSocket    = 0o140000
	formatLink      = 0o120000
	formatRegular   = 0o100000
	formatBlock     = 0o060000
	formatDirectory = 0o040000
	formatChar      = 0o020000
	formatFIFO      = 0o010000
	permissionMask  = 0o7777
)

// Bits of the inode's flags, as of ioctl_iflags(2).
const (
	encryptedFlag = 0x800
	eaInodeFlag   = 0x200000
	inlineFlag    = 0x10000000
	// settableFlags are those up to FS_TOPDIR_FL that say what is to be done with
	// a file. The others say how ext stores it.
	settableFlags = 0x3c0ff
)

// firstInode is the first that ext gives to files; those below are its own.
const firstInode = 11

var types = map[uint16]tree.Type{
	formatSocket:  tree.Socket,
	formatLink:    tree.Symlink,
	formatRegular: tree.Regular,
	formatBlock:   tree.BlockDevice,
	formatChar:    tree.CharDevice,
	formatFIFO:    tree.FIFO,
}

func seconds(t uint32) time.Time { return time.Unix(int64(t), 0) }

// Next goes on to the next entry, see tree.Source. The first call reads all
// directories. The Xattrs of an entry that is no Directory are nil: Late tells
// them. Xattrs and Flags of a HardLink are never set, they are those of its
// Target. Flags are those that can be set by ioctl_iflags(2).
func (a *Archive) Next() (*tree.Entry, error) {
	if a.err != nil {
		return nil, a.err
	}
	e, err := a.nextEntry()
	if err != nil {
		return nil, a.fail(err)
	}
	a.entry = e
	return e, nil
}

// fail keeps an error for all later calls.
func (a *Archive) fail(err error) error {
	if a.entry = nil; err != io.EOF {
		err = a.explain(err)
	}
	a.err = err
	return err
}

func (a *Archive) nextEntry() (*tree.Entry, error) {
	if !a.started {
		a.started = true
		if err := a.start(); err != nil {
			return nil, err
		}
	}
	if e := a.nextDirectory(); e != nil {
		return e, nil
	}
	if len(a.more) > 0 {
		// The first name was told already.
		if err := a.finish(); err != nil {
			return nil, err
		}
		l := a.more[0]
		a.more = a.more[1:]
		return a.hardLink(l), nil
	}
	return a.nextFile()
}

func (a *Archive) hardLink(l link) *tree.Entry {
	target := a.entry
	if target.Type != tree.HardLink {
		copied := *target
		copied.Target, copied.Xattrs, copied.Flags, copied.Size = target.Name, nil, 0, 0
		target = &copied
	}
	e := *target
	e.Type, e.Name = tree.HardLink, a.pathOf(l.directory, l.name)
	return &e
}

// nextFile reads headers up to the next inode that has a name.
func (a *Archive) nextFile() (*tree.Entry, error) {
	for {
		if err := a.finish(); err != nil {
			return nil, err
		}
		h, err := a.peek()
		if err != nil {
			return nil, err
		}
		switch {
		case h.kind() == tsEnd:
			if err := a.end(); err != nil {
				return nil, err
			}
			return nil, io.EOF
		case h.kind() != tsInode:
			return nil, a.damaged("a header of type %d stands where a file should begin", h.kind())
		case h.hasAttributes():
			return nil, a.damaged("attributes of inode %d stand where a file should begin", h.inode())
		}
		e, err := a.beginFile()
		if e != nil || err != nil {
			return e, err
		}
	}
}

// beginFile begins the inode whose header is peeked. It returns nil where that
// has no name.
func (a *Archive) beginFile() (*tree.Entry, error) {
	if err := a.begin(); err != nil {
		return nil, err
	}
	a.leaves++
	f := &a.file
	links := a.linksOf(f.inode)
	if len(links) == 0 {
		if f.inode >= firstInode && f.head.flags()&eaInodeFlag == 0 {
			a.warn("inode %d has no name: it is left out", f.inode)
		}
		return nil, nil
	}
	if links[0].onTape {
		return nil, a.damaged("inode %d is there twice", f.inode)
	}
	links[0].onTape = true
	e, err := a.newEntry(a.pathOf(links[0].directory, links[0].name))
	if err != nil {
		return nil, err
	}
	a.more = links[1:]
	if e.Type != tree.Regular {
		err = a.readSpecial(e)
	}
	return e, err
}

// linksOf are the names of an inode.
func (a *Archive) linksOf(inode uint32) []link {
	i, _ := slices.BinarySearchFunc(a.links, inode, func(l link, inode uint32) int {
		if l.inode < inode {
			return -1
		}
		return 1
	})
	j := i
	for j < len(a.links) && a.links[j].inode == inode {
		j++
	}
	return a.links[i:j]
}

func (a *Archive) newEntry(name string) (*tree.Entry, error) {
	f := &a.file
	h := &f.head
	kind, known := types[h.mode()&formatMask]
	switch {
	case h.mode()&formatMask == formatDirectory:
		return nil, a.damaged("directory inode %d comes behind files", f.inode)
	case !known:
		return nil, a.damaged("inode %d is of no known type: its mode is %#o", f.inode, h.mode())
	case h.flags()&encryptedFlag != 0 && f.isRegularOrLink():
		return nil, a.damaged("inode %d, %+q, is encrypted by the file system: a dump of it cannot be used elsewhere", f.inode, name)
	}
	e := &tree.Entry{
		Name: name, Type: kind,
		Mode: uint32(h.mode() & permissionMask), UID: h.u32(offUID), GID: h.u32(offGID), Flags: h.flags() & settableFlags,
		ModTime: h.seconds(offModify), AccessTime: h.seconds(offAccess),
	}
	switch kind {
	case tree.Regular:
		e.Size = f.size
	case tree.CharDevice, tree.BlockDevice:
		e.Major, e.Minor = deviceNumbers(h.u32(offBlocks), h.u32(offBlocks+4))
	}
	a.noteTime(e, h.u32(offModify))
	return e, nil
}

// deviceNumbers reads a device's numbers from the first two block numbers of its
// inode: old_decode_dev of the first, or new_decode_dev of the second, as of
// linux/kdev_t.h.
func deviceNumbers(first, second uint32) (major, minor uint32) {
	if first != 0 {
		return first >> 8 & 0xff, first & 0xff
	}
	return second & 0xfff00 >> 8, second&0xff | second>>12&0xfff00
}

// readSpecial reads all of an entry that has no content of its own.
func (a *Archive) readSpecial(e *tree.Entry) error {
	f := &a.file
	var target []byte
	if e.Type == tree.Symlink {
		if f.size < 1 || f.size > maxTarget {
			return a.damaged("inode %d, %+q: a symbolic link of %d bytes", f.inode, e.Name, f.size)
		}
		for {
			at, b, err := a.content()
			if err != nil {
				return err
			}
			if b == nil {
				break
			}
			if at != int64(len(target)) {
				return a.damaged("inode %d, %+q: a symbolic link with a hole", f.inode, e.Name)
			}
			target = append(target, b...)
		}
	}
	if err := a.finish(); err != nil {
		return err
	}
	if e.Type != tree.Symlink {
		return nil
	}
	if f.inline && !f.stored {
		target = f.inlineContent()
	}
	if int64(len(target)) != f.size || bytes.IndexByte(target, 0) >= 0 {
		return a.damaged("inode %d, %+q: its target is damaged", f.inode, e.Name)
	}
	e.Target = string(target)
	return nil
}

// Data returns the next stretch of the current entry's content, see tree.Source:
// all that is stored of it in up to 256 KiB or a block, if that is larger.
func (a *Archive) Data() (int64, []byte, error) {
	if a.err != nil {
		return 0, nil, a.err
	}
	if a.entry == nil || a.entry.Type != tree.Regular {
		return 0, nil, io.EOF
	}
	at, b, err := a.data()
	if err != nil {
		return 0, nil, a.fail(err)
	}
	if b == nil {
		return 0, nil, io.EOF
	}
	return at, b, nil
}

func (a *Archive) data() (int64, []byte, error) {
	f := &a.file
	if !f.done {
		if at, b, err := a.content(); b != nil || err != nil {
			return at, b, err
		}
		if err := a.finish(); err != nil {
			return 0, nil, err
		}
	}
	if f.inline && !f.stored && !f.given {
		f.given = true
		return 0, f.inlineContent(), nil
	}
	return 0, nil, nil
}

// Late returns the current entry once more, now with its Xattrs complete. It is
// to be called when Data has returned io.EOF, or for other types than Regular at
// any time, before the next call of Next. What is unread of the content is
// skipped.
func (a *Archive) Late() (*tree.Entry, error) {
	if a.err != nil {
		return nil, a.err
	}
	if a.entry == nil {
		return nil, a.explain(errors.New("no entry was read yet"))
	}
	if t := a.entry.Type; t == tree.Directory || t == tree.HardLink {
		return a.entry, nil
	}
	if err := a.finish(); err != nil {
		return nil, a.fail(err)
	}
	a.entry.Xattrs = a.file.attributes.values
	return a.entry, nil
}

// end looks at what is missing at the end of the dump.
func (a *Archive) end() error {
	absent, first := 0, -1
	promised := 0
	for i := range a.links {
		if i > 0 && a.links[i].inode == a.links[i-1].inode || a.links[i].onTape {
			continue
		}
		if absent++; first < 0 {
			first = i
		}
		if a.inDump(a.links[i].inode) {
			promised++
		}
	}
	if promised > 0 && a.leaves == 0 {
		return a.damaged("there are directories only, and no file: this is a table of contents, as dump -A writes it")
	}
	if absent > 0 {
		l := a.links[first]
		a.warn("%d inodes that have names are not in the dump, inode %d, %+q, first (%d are in its own map): they are left out. Was a file system dumped that was in use?",
			absent, l.inode, a.pathOf(l.directory, l.name), promised)
	}
	if a.wrapped > 0 {
		a.warn("%d times, that of %+q first, are after 2038 or were before 1970: dump does not tell the two apart", a.wrapped, a.wrapOne)
	}
	return nil
}
