package dump

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// writeBlocking is how many KiB the blocks of dumps that are written have: the
// most that restore(8) takes of compressed ones without being told.
const writeBlocking = 32

// Limits of an outline besides those of a dump that is read.
const (
	maxRuns    = 32 << 20 // bytes of all maps of holes
	maxPathLen = 4095     // bytes of a directory's path that the kernel takes
	// maxHoleRecords are those of all headers that only holes make necessary: 16 GiB
	// of them, for 8 TiB of holes.
	maxHoleRecords = 16 << 30 / recordSize
)

// Outline is what a dump of a tree of files will hold, all but their content and
// attributes. It needs about 80 bytes for each file, 16 for each further link, and
// the bytes of the names, and while it is made up to twice of that.
//
// It is not safe for concurrent use.
type Outline struct {
	root    int // O_PATH
	names   names
	entries []named
	dirs    []branch // the root first, each behind the one it is in
	leaves  []node
	order   []int32 // leaves as they are in the dump: by the inodes of the source
	rank    []int32 // where they are in order
	runs    []byte  // maps of holes, see extents
	records int64   // of the whole dump

	near  [64]opened // directories that are open
	notes notes
}

// named is an entry of a directory. of is an index in leaves, or of a directory
// its index with all bits turned.
type named struct {
	of   int32
	name nameRef
}

// node is an inode of the source. The dump is checked against it when the file
// is read.
type node struct {
	inode     uint64
	changed   int64  // its ctime as nanoseconds, however large they are
	size      int64  // bytes of the content as it is in the dump
	stored    int64  // records of it that are no hole
	device    uint32 // of the file system, which in btrfs is the subvolume
	runs      uint32 // where its map of holes begins, and 1; 0 is a file without holes
	directory int32  // of its first name
	name      nameRef
	mode      uint16
	sets      [2]uint8 // records of its sets of attributes, 0 is none
}

// branch is a directory.
type branch struct {
	node
	first, count int32 // in entries
	path         int32 // bytes of its path
	covered      bool  // something is mounted on it
}

// ScanOptions change what Scan finds.
type ScanOptions struct {
	// Skip are paths relative to the directory, "var/cache/x", that are to be left
	// out with everything below them.
	Skip []string
}

// WriteOptions are what a dump says of itself. Texts that are too long are cut.
type WriteOptions struct {
	// Compress writes blocks compressed with zlib.
	Compress bool
	// Label, of up to 15 bytes, is "none" where it is empty.
	Label string
	// Host and Filesystem, of up to 63 bytes, are the machine and where the file
	// system was mounted. Filesystem is "/" where it is empty.
	Host, Filesystem string
	// Date is when the dump was begun, now where it is zero.
	Date time.Time
}

// Scan walks the tree below dir, which is the root of a mounted file system, and
// prepares a dump of level 0 of it. No file system that is mounted below it is
// entered: the directories it is mounted on are empty in the dump, with the mode,
// the owner and the attributes of what is mounted. Subvolumes of btrfs are
// directories as others are.
//
// What a dump cannot hold so that it comes back with any program is an error:
// files of more than 16 TiB, attributes that do not fit, directories with paths
// over 4095 bytes, encrypted files. So are holes of more than 8 TiB in
// all, since a dump of next to nothing would be larger than most disks. What
// restore(8) makes something else of, what other file systems do not know, what a
// dump has no room for (projects, casefold, fs-verity), and what is hidden by a
// mount, Warnings tells. It does not tell of preallocation, and of nanoseconds
// within a microsecond.
//
// The tree may be hostile. No link is followed, and only directories and regular
// files are opened to be read. The outline keeps the file system in use until
// Close.
func Scan(ctx context.Context, dir string, options ScanOptions) (*Outline, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot dump %s: %w", printable(dir), err)
	}
	o := &Outline{root: root}
	for i := range o.near {
		o.near[i].fd = -1
	}
	s := scanning{ctx: ctx, Outline: o, skip: options.Skip}
	if err := s.all(); err != nil {
		o.Close()
		return nil, fmt.Errorf("cannot dump %s: %w", printable(dir), err)
	}
	return o, nil
}

// Close releases the tree, so that it can be unmounted.
func (o *Outline) Close() error {
	if o.root < 0 {
		return nil
	}
	for i := range o.near {
		o.near[i].close()
	}
	err := unix.Close(o.root)
	o.root = -1
	return err
}

// Size is how many bytes the dump has if it is not compressed.
func (o *Outline) Size() int64 { return o.records * recordSize }

// Warnings are what will come back otherwise than it is in the tree: one
// printable line each, and at most 55.
func (o *Outline) Warnings() []string { return o.notes.all() }

// Write writes the dump: exactly Size bytes where it is not compressed. It may be
// called again. A file that is not as Scan found it is an error.
//
// Where ctx is done Write returns at once with its cause, even though a call of
// w.Write that was begun may not have ended.
func (o *Outline) Write(ctx context.Context, w io.Writer, options WriteOptions) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	d := &dumping{ctx: ctx, Outline: o, out: newOutput(ctx, cancel, w, options.Compress)}
	d.describe(options)
	err := d.all()
	if err = d.out.finish(err); err != nil {
		return fmt.Errorf("cannot write the dump: %w", err)
	}
	return nil
}

// numberOf is the number that an inode has in the dump: the root 2, then the
// directories from 11 on, then all else.
func (o *Outline) numberOf(of int32) uint32 {
	switch {
	case of == ^int32(0):
		return rootInode
	case of < 0:
		return firstInode - 1 + uint32(^of)
	}
	return o.lastDirectory() + 1 + uint32(o.rank[of])
}

func (o *Outline) lastDirectory() uint32 { return firstInode - 1 + uint32(len(o.dirs)-1) }

// lastInode is the highest number in the dump, or the last of those that ext has
// for itself.
func (o *Outline) lastInode() uint32 { return o.lastDirectory() + uint32(len(o.leaves)) }

// mapRecords is how many records a map of the inodes has.
func (o *Outline) mapRecords() int64 {
	return roundRecords((int64(o.lastInode()) + 1 + 7) / 8)
}

// roundRecords is how many records hold a number of bytes.
func roundRecords(bytes int64) int64 { return (bytes + recordSize - 1) / recordSize }

// measure counts the records of the whole dump. It bounds those that no content
// asks for: a guest has petabytes of holes for nothing.
func (o *Outline) measure() error {
	o.records = 1 + 2*(1+o.mapRecords())
	for i := range o.dirs {
		o.records += o.dirs[i].records()
	}
	holes := int64(0)
	for i := range o.leaves {
		o.records += o.leaves[i].records()
		holes += o.leaves[i].headers() - headersOf(o.leaves[i].stored)
	}
	if holes > maxHoleRecords {
		return errMostlyHeaders
	}
	o.records++ // a header of the end
	o.records += -o.records & (writeBlocking - 1)
	return nil
}

var errMostlyHeaders = errors.New("its files have so many holes that the dump would be mostly headers")

// headersOf is how many headers so many records of content need, hole or not.
func headersOf(records int64) int64 { return max(1, (records+mapBytes-1)/mapBytes) }

// headers is how many headers an inode's content needs.
func (n *node) headers() int64 { return headersOf(roundRecords(n.size)) }

// records is how many records an inode needs with its headers.
func (n *node) records() int64 {
	sum := n.headers() + n.stored
	for _, set := range n.sets {
		if set > 0 {
			sum += 1 + int64(set)
		}
	}
	return sum
}

// pathOf is the path of a name in a directory, relative to the root.
func (o *Outline) pathOf(directory int32, name nameRef) string {
	path := o.directoryPath(directory)
	if path != "" {
		path += "/"
	}
	return path + string(o.names.get(name))
}

// directoryPath is the path of a directory, which is empty for the root.
func (o *Outline) directoryPath(i int32) string {
	var path []byte
	for ; i != 0; i = o.dirs[i].directory {
		if len(path) > 0 {
			path = append(path, '/')
		}
		part := len(path)
		path = append(path, o.names.get(o.dirs[i].name)...)
		slices.Reverse(path[part:])
	}
	slices.Reverse(path)
	return string(path)
}

// quoted is the path of a name as a message has it.
func (o *Outline) quoted(directory int32, name nameRef) string {
	return quotedPath(o.pathOf(directory, name))
}

func quotedPath(path string) string {
	const most = 200
	if len(path) > most {
		return fmt.Sprintf("%+q...", path[:most])
	}
	return fmt.Sprintf("%+q", path)
}

func (o *Outline) quotedNode(n *node) string {
	if n == &o.dirs[0].node {
		return "the root directory"
	}
	return o.quoted(n.directory, n.name)
}

// notes are warnings, of which as many are kept as an Archive keeps.
type notes struct {
	kept    []string
	dropped int
	lost    [losses]struct {
		files int
		first string
	}
}

func (n *notes) add(format string, args ...any) {
	if len(n.kept) == maxWarnings-1 {
		n.dropped++
		return
	}
	n.kept = append(n.kept, fmt.Sprintf(format, args...))
}

func (n *notes) all() []string {
	all := slices.Clone(n.kept)
	if n.dropped > 0 {
		all = append(all, fmt.Sprintf("%d more warnings like these", n.dropped))
	}
	for kind, l := range n.lost {
		if l.files > 0 {
			all = append(all, fmt.Sprintf(lossTexts[kind], l.files, l.first))
		}
	}
	return all
}

var errChanged = errors.New("it was changed while it was dumped: dump what nobody writes to")
