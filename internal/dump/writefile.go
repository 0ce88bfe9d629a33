package dump

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	newHeader = 0x1 // of c_flags
	extMagic  = 0xEF53
	// commonFlags are the inode flags that mean the same on all file systems:
	// sync, immutable, append-only, no dump, no access times, dirsync.
	commonFlags = 0x100f8
	// storageFlags are flags of ext that tell how it stores a content which the
	// dump has as it is read: verity, ea_inode, inline data, casefold.
	storageFlags = unix.FS_VERITY_FL | eaInodeFlag | inlineFlag | casefoldFlag | encryptedFlag
)

// dumping writes an outline.
type dumping struct {
	ctx context.Context
	*Outline
	out      *output
	template header
	head     header // of the inode that is being written
	xattrs   xattrReader
	links    []uint16 // names of each leaf
}

// describe sets what all headers have.
func (d *dumping) describe(options WriteOptions) {
	date := options.Date
	if date.IsZero() {
		date = time.Now()
	}
	h := &d.template
	h.set32(offDate, second(date.Unix()))
	h.set32(offVolume, 1)
	h.set32(offMagic, magic)
	flags := uint32(newInodeFormat)
	if options.Compress {
		flags |= compressedFlag
	}
	h.set32(offDumpFlags, flags)
	h.set32(offBlocking, writeBlocking)
	h.setText(offLabel, 16, cmp.Or(options.Label, "none"))
	h.setText(offFilesys, 64, cmp.Or(options.Filesystem, "/"))
	h.setText(offDevice, 64, "none")
	h.setText(offHost, 64, options.Host)
}

func (d *dumping) all() error {
	d.countLinks()
	if err := d.begin(); err != nil {
		return err
	}
	for i := range d.dirs {
		n := &d.dirs[i].node
		if err := d.inode(n, ^int32(i)); err != nil {
			return fmt.Errorf("%s: %w", d.quotedNode(n), err)
		}
	}
	for _, i := range d.order {
		n := &d.leaves[i]
		if err := d.inode(n, i); err != nil {
			return fmt.Errorf("%s: %w", d.quotedNode(n), err)
		}
	}
	return d.end()
}

func (d *dumping) countLinks() {
	d.links = make([]uint16, len(d.leaves))
	for _, e := range d.entries {
		if e.of >= 0 && d.links[e.of] < math.MaxUint16 {
			d.links[e.of]++
		}
	}
}

// begin writes the header of the volume and the maps of the inodes in use and
// in the dump, which are the same.
func (d *dumping) begin() error {
	d.head = d.template
	d.head.set32(offType, tsTape)
	d.head.set32(offCount, 1)
	d.head.set32(offDumpFlags, d.template.dumpFlags()|newHeader)
	if err := d.put(); err != nil {
		return err
	}
	if err := d.inodeMap(tsClri, d.lastInode()); err != nil {
		return err
	}
	return d.inodeMap(tsBits, rootInode)
}

// put writes the header. The record's number begins again at 0 behind 4 TiB, as
// that of dump(8) does, which counts in the 32 bits that the field has. restore(8)
// reads it only where -Q makes it seek, by places that only dump(8) tells.
func (d *dumping) put() error {
	d.head.set32(offRecord, uint32(d.out.records))
	d.head.seal()
	b, err := d.out.take(1)
	if err != nil {
		return err
	}
	copy(b, d.head.raw[:])
	return nil
}

// inodeMap writes a map with bit i-1 for inode i.
func (d *dumping) inodeMap(kind int, inode uint32) error {
	length := d.mapRecords() * recordSize
	d.head = d.template
	d.head.set32(offType, uint32(kind))
	d.head.set32(offInode, inode)
	d.head.set32(offCount, uint32(d.mapRecords()))
	d.head.setSize(length)
	if err := d.put(); err != nil {
		return err
	}
	last := int64(d.lastInode())
	return d.data(length, func(b []byte, at int64) error {
		for i := range b {
			b[i] = inodeByte((at+int64(i))*8+1, last)
		}
		return nil
	})
}

// inodeByte has a bit for each of eight inodes from first on that is the root or
// one of those from firstInode to last.
func inodeByte(first, last int64) (b byte) {
	if first > firstInode && first+7 <= last {
		return 0xff
	}
	for i := range int64(8) {
		if inode := first + i; inode == rootInode || inode >= firstInode && inode <= last {
			b |= 1 << i
		}
	}
	return b
}

// filler fills b with the content at an offset, and with zeros behind its end.
type filler func(b []byte, at int64) error

// data writes whole records of content from the beginning.
func (d *dumping) data(length int64, fill filler) error {
	return d.stretch(0, roundRecords(length), fill)
}

// stretch writes records of content.
func (d *dumping) stretch(from, to int64, fill filler) error {
	for from < to {
		b, err := d.out.take(to - from)
		if err != nil {
			return err
		}
		if err := fill(b, from*recordSize); err != nil {
			return err
		}
		from += int64(len(b) / recordSize)
	}
	return nil
}

// end writes headers of the end to the end of the block.
func (d *dumping) end() error {
	d.head = d.template
	d.head.set32(offType, tsEnd)
	d.head.set32(offInode, d.lastInode())
	// c_inos, the first inode of each volume by its number.
	d.head.set32(offMap+4, rootInode)
	for {
		if err := d.put(); err != nil {
			return err
		}
		if d.out.records%writeBlocking == 0 {
			break
		}
	}
	if d.out.records != d.records {
		return fmt.Errorf("%d records were written instead of %d", d.out.records, d.records)
	}
	return nil
}

// inode writes an inode with its content and attributes.
func (d *dumping) inode(n *node, of int32) error {
	fd, err := d.openAgain(n, of)
	if err != nil {
		return changedIf(err, unix.ENOENT, unix.ENOTDIR, unix.ELOOP)
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := statOf(fd, &st); err != nil {
		return err
	}
	if !n.isStill(&st) {
		return errChanged
	}
	d.setInode(&st, of)
	switch n.mode & formatMask {
	case formatDirectory:
		err = d.directory(n, fd, ^of)
	case formatRegular:
		err = d.regular(n, fd)
	case formatLink:
		err = d.symlink(n, fd)
	default:
		err = d.content(n, nil)
	}
	if err != nil {
		return err
	}
	return d.attributes(n, fd)
}

// changedIf returns errChanged where a file that was there cannot be opened.
func changedIf(err error, causes ...error) error {
	for _, cause := range causes {
		if errors.Is(err, cause) {
			return errChanged
		}
	}
	return err
}

func (d *dumping) openAgain(n *node, of int32) (int, error) {
	if of == ^int32(0) {
		return unix.FcntlInt(uintptr(d.root), unix.F_DUPFD_CLOEXEC, 0)
	}
	parent, err := d.inDirectory(n.directory)
	if err != nil {
		return -1, err
	}
	fd, _, err := openNode(parent, string(d.names.get(n.name)))
	return fd, err
}

// setInode makes the header of an inode.
func (d *dumping) setInode(st *unix.Statx_t, of int32) {
	d.head = d.template
	h := &d.head
	h.set32(offType, tsInode)
	h.set32(offInode, d.numberOf(of))
	h.set16(offMode, st.Mode)
	h.set16(offLinks, uint16(min(st.Nlink, math.MaxUint16)))
	if of >= 0 {
		h.set16(offLinks, d.links[of])
	}
	h.set16(offShortUID, uint16(st.Uid))
	h.set16(offShortGID, uint16(st.Gid))
	h.set32(offUID, st.Uid)
	h.set32(offGID, st.Gid)
	h.setTime(offAccess, offAccessMicro, st.Atime)
	h.setTime(offModify, offModifyMicro, st.Mtime)
	h.setTime(offChange, offChangeMicro, st.Ctime)
	h.set32(offUsed, uint32(min(st.Blocks, math.MaxInt32)))
	if kind := st.Mode & formatMask; kind == formatBlock || kind == formatChar {
		h.setDevice(st.Rdev_major, st.Rdev_minor)
	}
}

// content writes the header that was made and the content behind it, with as many
// headers that continue the map as that needs.
func (d *dumping) content(n *node, fill filler) error {
	h := &d.head
	h.setSize(n.size)
	total := roundRecords(n.size)
	x := d.extentsOf(n)
	from, to := x.next()
	for first := int64(0); first == 0 || first < total; first += mapBytes {
		count := min(mapBytes, total-first)
		h.set32(offCount, uint32(count))
		m := h.raw[offMap : offMap+mapBytes]
		clear(m)
		for from < to && from < first+count {
			for i := max(from, first); i < min(to, first+count); i++ {
				m[i-first] = 1
			}
			if to > first+count {
				break
			}
			from, to = x.next()
		}
		if err := d.put(); err != nil {
			return err
		}
		if err := d.mapped(m[:count], first, fill); err != nil {
			return err
		}
		h.set32(offType, tsAddr)
	}
	h.set32(offType, tsInode)
	return nil
}

// mapped writes the records that a map says are stored.
func (d *dumping) mapped(m []byte, first int64, fill filler) error {
	for i := 0; i < len(m); {
		hole := bytes.IndexByte(m[i:], 1)
		if hole < 0 {
			return nil
		}
		i += hole
		stored := bytes.IndexByte(m[i:], 0)
		if stored < 0 {
			stored = len(m) - i
		}
		if err := d.stretch(first+int64(i), first+int64(i+stored), fill); err != nil {
			return err
		}
		i += stored
	}
	return nil
}

// regular writes a regular file.
func (d *dumping) regular(n *node, fd int) error {
	content, err := reopen(fd)
	if err != nil {
		return err
	}
	defer unix.Close(content)
	if err := d.setFlags(content); err != nil {
		return err
	}
	if n.size > pieceBytes {
		// Reading ahead is all it is for: an error says nothing.
		_ = unix.Fadvise(content, 0, 0, unix.FADV_SEQUENTIAL)
	}
	err = d.content(n, func(b []byte, at int64) error {
		length := int(min(int64(len(b)), n.size-at))
		clear(b[length:])
		return readAt(content, b[:length], at)
	})
	if err != nil || n.size == 0 {
		return err
	}
	var st unix.Statx_t
	if err := statOf(content, &st); err != nil {
		return err
	}
	if !n.isStill(&st) {
		return errChanged
	}
	return nil
}

// readAt fills b from a file that must have as much.
func readAt(fd int, b []byte, at int64) error {
	for len(b) > 0 {
		n, err := unix.Pread(fd, b, at)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return os.NewSyscallError("read", err)
		case n == 0:
			return errChanged
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// setFlags sets the inode's flags, of which a file system may have none.
func (d *dumping) setFlags(fd int) error {
	flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	switch {
	case errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP):
		return nil
	case err != nil:
		return os.NewSyscallError("ioctl for the inode's flags", err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return os.NewSyscallError("statfs", err)
	}
	if fs.Type == extMagic {
		d.head.set32(offFlags, flags&^storageFlags)
	} else {
		d.head.set32(offFlags, flags&commonFlags)
	}
	return nil
}

// symlink writes a symbolic link, whose target ends with a NUL where there is
// room in the last record.
func (d *dumping) symlink(n *node, fd int) error {
	target, err := targetOf(fd)
	if err != nil {
		return err
	}
	if int64(len(target)) != n.size {
		return errChanged
	}
	return d.content(n, fillFrom(target))
}

// fillFrom fills from bytes in memory.
func fillFrom(content []byte) filler {
	return func(b []byte, at int64) error {
		clear(b[copy(b, content[at:]):])
		return nil
	}
}

// attributes writes the sets of attributes behind the content.
func (d *dumping) attributes(n *node, fd int) error {
	if n.sets == [2]uint8{} {
		return nil
	}
	list, err := d.xattrs.read(fd)
	if err != nil {
		return err
	}
	sets, err := attributeSets(list)
	if err != nil {
		return err
	}
	h := &d.head
	h.set32(offDumpFlags, h.dumpFlags()|extendedFlag)
	h.set32(offExtended, extAttributes)
	for i, set := range sets {
		if len(set) != int(n.sets[i])*recordSize {
			return errChanged
		}
		if len(set) == 0 {
			continue
		}
		if err := d.content(&node{size: int64(len(set)), stored: int64(n.sets[i])}, fillFrom(set)); err != nil {
			return err
		}
	}
	return nil
}
