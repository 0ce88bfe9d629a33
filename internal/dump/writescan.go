package dump

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// scanning makes an outline.
type scanning struct {
	ctx context.Context
	*Outline
	skip   []string
	linked map[identity]int32 // files with several links, in leaves
	seen   map[identity]bool  // directories
	xattrs xattrReader
}

// identity is an inode of the source.
type identity struct {
	inode  uint64
	device uint32
}

func (s *scanning) all() error {
	s.linked, s.seen = map[identity]int32{}, map[identity]bool{}
	if err := s.begin(); err != nil {
		return err
	}
	for i := int32(0); int(i) < len(s.dirs); i++ {
		if err := s.list(i); err != nil {
			return err
		}
	}
	s.number()
	return s.measure()
}

// begin adds the root. What was written to files just before has its place only
// once it is stored.
func (s *scanning) begin() error {
	fd, err := unix.Openat(s.root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Syncfs(fd); err != nil {
		return os.NewSyscallError("syncfs", err)
	}
	var st unix.Statx_t
	if err := statOf(s.root, &st); err != nil {
		return err
	}
	return s.addDirectory(fd, branch{}, &st)
}

// list adds all names of a directory.
func (s *scanning) list(i int32) error {
	s.dirs[i].first = int32(len(s.entries))
	if !s.dirs[i].covered {
		if err := s.readNames(i); err != nil {
			return s.about(&s.dirs[i].node, err)
		}
		if err := s.visitAll(i); err != nil {
			return err
		}
	}
	s.dirs[i].count = int32(len(s.entries)) - s.dirs[i].first
	s.measureDirectory(&s.dirs[i])
	return nil
}

// about puts before an error which file it is about.
func (s *scanning) about(n *node, err error) error {
	return fmt.Errorf("%s: %w", s.quotedNode(n), err)
}

// readNames adds the names of a directory, sorted.
func (s *scanning) readNames(i int32) error {
	parent, err := s.inDirectory(i)
	if err != nil {
		return err
	}
	fd, err := reopen(parent)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "directory")
	defer f.Close()
	s.notice(fd, &s.dirs[i].node)
	for {
		list, err := f.Readdirnames(1024)
		if err == io.EOF {
			return s.sortNames(s.entries[s.dirs[i].first:])
		}
		if err = cmp.Or(err, context.Cause(s.ctx)); err != nil {
			return err
		}
		for _, name := range list {
			if err := s.addName(i, name); err != nil {
				return err
			}
		}
	}
}

func (s *scanning) addName(i int32, name string) error {
	if s.names.full() {
		return fmt.Errorf("there are more than %d names, or they have more than %d bytes", maxNames, maxNameBytes)
	}
	if len(name) == 0 || len(name) > 255 || bytes.IndexByte([]byte(name), '/') >= 0 {
		return fmt.Errorf("%s is no name of a file: check the file system", quotedPath(name))
	}
	ref := s.names.add([]byte(name))
	if len(s.skip) > 0 && slices.Contains(s.skip, s.pathOf(i, ref)) {
		return nil
	}
	s.entries = append(s.entries, named{name: ref})
	return nil
}

func (s *scanning) sortNames(entries []named) error {
	slices.SortFunc(entries, func(a, b named) int { return bytes.Compare(s.names.get(a.name), s.names.get(b.name)) })
	for i := range max(len(entries), 1) - 1 {
		if name := s.names.get(entries[i].name); bytes.Equal(name, s.names.get(entries[i+1].name)) {
			return fmt.Errorf("it has the name %+q twice: check the file system", name)
		}
	}
	return nil
}

// visitAll finds out what the names of a directory are. Those of what is left out
// are removed.
func (s *scanning) visitAll(i int32) error {
	first := int(s.dirs[i].first)
	kept := s.entries[first:first]
	for _, e := range s.entries[first:] {
		if err := context.Cause(s.ctx); err != nil {
			return err
		}
		keep, err := s.visit(i, &e)
		if err != nil {
			return fmt.Errorf("%s: %w", s.quoted(i, e.name), err)
		}
		if keep {
			kept = append(kept, e)
		}
	}
	s.entries = s.entries[:first+len(kept)]
	return nil
}

// visit finds out what a name is and tells whether it is to be kept.
func (s *scanning) visit(directory int32, e *named) (bool, error) {
	parent, err := s.inDirectory(directory)
	if err != nil {
		return false, err
	}
	name := s.names.get(e.name)
	fd, covered, err := openNode(parent, string(name))
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := statOf(fd, &st); err != nil {
		return false, err
	}
	isDirectory := st.Mode&formatMask == formatDirectory
	if covered && !isDirectory {
		s.notes.add("%s is left out: another file is mounted on it", s.quoted(directory, e.name))
		return false, nil
	}
	if len(name) == 255 {
		s.notes.add("%s: restore(8) does not keep a name of 255 bytes", s.quoted(directory, e.name))
	}
	if covered && s.hides(s.pathOf(directory, e.name)) {
		s.notes.add("%s is empty in the dump: what it has of its own is hidden by what is mounted on it", s.quoted(directory, e.name))
	}
	b := branch{covered: covered, node: node{directory: directory, name: e.name}}
	if isDirectory {
		e.of = ^int32(len(s.dirs))
		b.path = s.dirs[directory].path + 1 + int32(len(name))
		return true, s.addDirectory(fd, b, &st)
	}
	e.of, err = s.leaf(fd, b.node, &st)
	return true, err
}

// addDirectory adds a directory whose names are not known yet.
func (s *scanning) addDirectory(fd int, b branch, st *unix.Statx_t) error {
	b.identify(st)
	id := identity{b.inode, b.device}
	switch {
	case s.seen[id] && !b.covered:
		return errors.New("the directory has several names: check the file system")
	case len(s.dirs) == maxDirectories:
		return fmt.Errorf("there are more than %d directories", maxDirectories)
	case b.path > maxPathLen:
		return fmt.Errorf("its path has more than %d bytes", maxPathLen)
	}
	s.seen[id] = s.seen[id] || !b.covered
	if err := s.describe(fd, &b.node, st); err != nil {
		return err
	}
	s.dirs = append(s.dirs, b)
	return nil
}

// leaf returns where something that is no directory is in leaves.
func (s *scanning) leaf(fd int, n node, st *unix.Statx_t) (int32, error) {
	n.identify(st)
	id := identity{n.inode, n.device}
	if known, ok := s.linked[id]; ok && st.Nlink > 1 {
		return known, nil
	}
	if err := s.describe(fd, &n, st); err != nil {
		return 0, err
	}
	if err := s.content(fd, &n, st); err != nil {
		return 0, err
	}
	index := int32(len(s.leaves))
	s.leaves = append(s.leaves, n)
	if st.Nlink > 1 {
		s.linked[id] = index
	}
	return index, nil
}

// describe finds out what all kinds of files have.
func (s *scanning) describe(fd int, n *node, st *unix.Statx_t) error {
	if st.Attributes&unix.STATX_ATTR_ENCRYPTED != 0 {
		return errors.New("it is encrypted (fscrypt): a dump would hold what nobody can read")
	}
	if !timeFits(st.Mtime) || !timeFits(st.Atime) || !timeFits(st.Ctime) {
		s.note(lostTimes, n)
	}
	if st.Attributes&unix.STATX_ATTR_VERITY != 0 {
		s.note(lostVerity, n)
	}
	list, err := s.xattrs.read(fd)
	if err != nil {
		return err
	}
	for _, name := range s.xattrs.foreign {
		s.notes.add("%s: the attribute %+q is left out, which another file system does not take", s.quotedName(n), name)
	}
	sets, err := attributeSets(list)
	for i := range sets {
		n.sets[i] = uint8(len(sets[i]) / recordSize)
	}
	return err
}

// quotedName is the path of a node that may not be in the outline yet.
func (s *scanning) quotedName(n *node) string {
	if len(s.dirs) == 0 || n == &s.dirs[0].node {
		return "the root directory"
	}
	return s.quoted(n.directory, n.name)
}

// timeFits tells whether restore(8) reads a time as it is.
func timeFits(t unix.StatxTimestamp) bool { return t.Sec >= 0 && t.Sec <= math.MaxUint32 }

// content finds out what of a file is to be stored.
func (s *scanning) content(fd int, n *node, st *unix.Statx_t) error {
	switch n.mode & formatMask {
	case formatRegular:
		if st.Size > uint64(maxFile) {
			return fmt.Errorf("it has %d bytes, and a file in a dump has %d at most", st.Size, maxFile)
		}
		if n.size = int64(st.Size); n.size > 0 {
			return s.holes(fd, n)
		}
	case formatLink:
		target, err := targetOf(fd)
		if err != nil {
			return err
		}
		n.size = int64(len(target))
		n.stored = roundRecords(n.size)
	case formatBlock, formatChar:
		if st.Rdev_major > 255 || st.Rdev_minor > 255 {
			s.notes.add("%s: restore(8) makes 0:0 of the device %d:%d", s.quotedName(n), st.Rdev_major, st.Rdev_minor)
		}
	case formatFIFO, formatSocket:
	default:
		return fmt.Errorf("it is of the unknown type %#o: check the file system", n.mode&formatMask)
	}
	return nil
}

// holes finds the map of a file that has content.
func (s *scanning) holes(fd int, n *node) error {
	content, err := reopen(fd)
	if err != nil {
		return err
	}
	defer unix.Close(content)
	s.notice(content, n)
	total := roundRecords(n.size)
	start := len(s.runs)
	last := int64(0)
	for at := int64(0); at < n.size; {
		from, to, err := nextStretch(content, at, n.size)
		if err = cmp.Or(err, context.Cause(s.ctx)); err != nil {
			return err
		}
		if from < n.size {
			// Where blocks are smaller than records two stretches may share one.
			first := max(from/recordSize, last)
			if end := roundRecords(to); end > first {
				s.runs = binary.AppendUvarint(s.runs, uint64(first-last))
				s.runs = binary.AppendUvarint(s.runs, uint64(end-first))
				n.stored, last = n.stored+end-first, end
			}
		}
		at = to
		if len(s.runs) > maxRuns {
			return fmt.Errorf("the files up to this one have too many holes: their maps have more than %d bytes", maxRuns)
		}
	}
	if n.stored == total {
		s.runs = s.runs[:start]
		return nil
	}
	// Two runs of nothing are the end.
	s.runs = append(s.runs, 0, 0)
	n.runs = uint32(start) + 1
	return nil
}

// nextStretch is where the next content of a file is that is not a hole, or the
// file's end.
func nextStretch(fd int, at, size int64) (from, to int64, err error) {
	from, err = unix.Seek(fd, at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return size, size, nil
	}
	if err != nil {
		return 0, 0, os.NewSyscallError("seek for content", err)
	}
	if to, err = unix.Seek(fd, from, unix.SEEK_HOLE); err != nil {
		return 0, 0, os.NewSyscallError("seek for a hole", err)
	}
	from, to = min(from, size), min(to, size)
	if from < at || to < from || to == at {
		return 0, 0, errChanged
	}
	return from, to, nil
}

// extents reads a map of what is stored: pairs of varints, how many records are a
// hole and how many behind it are not, up to a pair of zeros.
type extents struct {
	b       []byte
	at, end int64 // of the whole file, where it has no map
}

func (o *Outline) extentsOf(n *node) extents {
	if n.runs == 0 {
		return extents{end: n.stored}
	}
	return extents{b: o.runs[n.runs-1:]}
}

// next returns the next records that are stored; from equals to at the end.
func (x *extents) next() (from, to int64) {
	if x.b == nil {
		from, x.at = x.at, x.end
		return from, x.end
	}
	hole, n := binary.Uvarint(x.b)
	stored, m := binary.Uvarint(x.b[n:])
	if stored == 0 {
		return x.at, x.at
	}
	x.b = x.b[n+m:]
	from = x.at + int64(hole)
	x.at = from + int64(stored)
	return from, x.at
}

// number puts the leaves into the order of the source's inodes, in which they are
// read fastest.
func (s *scanning) number() {
	s.order, s.rank = make([]int32, len(s.leaves)), make([]int32, len(s.leaves))
	for i := range s.order {
		s.order[i] = int32(i)
	}
	slices.SortFunc(s.order, func(a, b int32) int {
		x, y := &s.leaves[a], &s.leaves[b]
		return cmp.Or(cmp.Compare(x.device, y.device), cmp.Compare(x.inode, y.inode), cmp.Compare(a, b))
	})
	for i, leaf := range s.order {
		s.rank[leaf] = int32(i)
	}
}
