// Package dump reads archives of dump(8) as Linux writes them: of ext2, ext3
// and ext4, by versions up to 0.4b56, in blocks of 1 to 1024 KiB, plain or
// compressed with zlib, bzip2 or LZO, of one volume or several, with both
// codings of hole maps. There is no specification: the format is that of
// protocols/dumprestore.h in the dump package, which goes back to 4.3BSD, and
// of what the program writes.
//
// It writes dumps of level 0 of a mounted tree of any file system, of one volume
// and with the older coding of hole maps, so that every restore(8) since 0.4b4x
// reads them. Inodes are numbered anew. Times are written with microseconds, for
// which the format has room: dump(8) leaves them out, and restore(8) sets them.
//
// A dump has no room for: project quotas, creation times, nanoseconds, times
// before 1970 and after 2106, fs-verity's hashes, attributes of more than 4 KiB,
// names of 255 bytes and devices above 255 as restore(8) reads them, and inode
// flags that only another file system than ext has. A file of 1 TiB of holes
// needs 2 GiB of headers, which compress well.
//
// Left out: reading and writing incremental dumps; writing several volumes, other
// compression than zlib, and the newer coding of hole maps; dumps of UFS2, of
// other byte orders and from before 4.2BSD; seeking, for a dump is read from its
// beginning to its end and a pipe is enough; going on behind damage, as
// restore(8) does; the microseconds of times that are read.
package dump

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"ganeti-instance-image/internal/tree"
)

// Limits of our own. What a dump may make this package keep in memory is its
// names, its directories and the blocks that are decoded ahead.
const (
	maxNames       = 4 << 20   // directory entries
	maxNameBytes   = 128 << 20 // bytes of all names together
	maxDirectories = 1 << 20
	maxPath        = 4096           // bytes of a directory's path from the root: PATH_MAX
	maxTarget      = 4095           // bytes of a symbolic link: PATH_MAX less the NUL
	maxMapRecords  = 32 << 10       // KiB of a map of inodes: 268 million of them
	maxFile        = int64(1) << 44 // bytes: 16 TiB, the most ext4 has with 4 KiB blocks
	maxAttributes  = 64 << 10       // bytes of a set of attributes: the largest block of ext4
	maxKept        = 32 << 20       // bytes of all directories' attributes together
	maxWarnings    = 50
)

// Archive is a dump that is being read. It implements tree.Source:
//
// The root directory "." comes first, then every other directory, each behind
// the one it is in, then all that is no directory, in the order of the inodes.
// The first name of an inode is an entry of its type. Its further names follow
// at once, as entries of type HardLink whose Target is the first name.
//
// A dump has the attributes of a file behind its content. Those of a directory
// are in its entry when Next returns it; those of other types Late tells.
//
// An Archive is not safe for concurrent use. It decodes ahead in goroutines of
// its own until Close.
type Archive struct {
	name     string
	files    []io.Closer
	ahead    *pipeline
	in       records
	tape     header
	next     header // if peeked
	peeked   bool
	err      error // final
	started  bool
	warnings []string
	dropped  int // warnings

	inodes []byte // bit i-1: inode i is in this dump
	names  names
	dirs   directories
	links  []link // of what is no directory, by inode

	emitted int // directories
	leaves  int // inodes on tape
	wrapped int // times that do not fit
	wrapOne string

	entry *tree.Entry
	file  file
	more  []link // further names of the file
}

// Open opens a dump of one volume. Its errors say what is wrong with a file that
// is no dump of level 0, or one that this package does not read.
func Open(path string) (*Archive, error) { return OpenVolumes([]string{path}) }

// OpenVolumes opens a dump that is in several files, given in their order. That
// they are volumes of one dump is checked at once.
func OpenVolumes(paths []string) (*Archive, error) {
	var files []io.Closer
	var volumes []io.Reader
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("cannot open the dump: %w", err)
		}
		files, volumes = append(files, f), append(volumes, f)
	}
	a, err := open(strings.Join(paths, ", "), volumes)
	if err != nil {
		closeAll(files)
		return nil, err
	}
	a.files = files
	return a, nil
}

// Read reads a dump from streams, one for each volume in their order. Close does
// not close them, and waits for a read that was begun.
func Read(volumes ...io.Reader) (*Archive, error) { return open("", volumes) }

func open(name string, volumes []io.Reader) (*Archive, error) {
	a := &Archive{name: name}
	if err := a.open(volumes); err != nil {
		return nil, a.explain(err)
	}
	return a, nil
}

func (a *Archive) open(inputs []io.Reader) error {
	if len(inputs) == 0 {
		return errors.New("it has no volume")
	}
	volumes := make([]*volume, len(inputs))
	for i, r := range inputs {
		var h header
		if err := h.readTape(r); err != nil {
			return ofVolume(i, err)
		}
		if i == 0 {
			a.tape = h
		}
		if err := h.checkVolume(&a.tape, i+1); err != nil {
			return ofVolume(i, err)
		}
		volumes[i] = newVolume(r, &a.tape)
	}
	a.ahead = newPipeline(volumes, int(a.tape.blocking())*recordSize)
	a.in = records{ahead: a.ahead, taken: 1}
	return nil
}

func ofVolume(i int, err error) error {
	if i == 0 {
		return err
	}
	return fmt.Errorf("volume %d: %w", i+1, err)
}

// explain puts the name of the dump before an error, on one printable line.
func (a *Archive) explain(err error) error {
	if a.name == "" {
		return fmt.Errorf("cannot read the dump: %w", err)
	}
	return fmt.Errorf("cannot read the dump %s: %w", printable(a.name), err)
}

func printable(s string) string {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return fmt.Sprintf("%+q", s)
		}
	}
	return s
}

// Close ends the reading. It does not tell whether the dump was read to its end.
func (a *Archive) Close() error {
	err := closeAll(a.files)
	a.files = nil
	a.ahead.close()
	if a.err == nil {
		a.err = a.explain(os.ErrClosed)
	}
	return err
}

func closeAll(files []io.Closer) error {
	var err error
	for _, f := range files {
		err = errors.Join(err, f.Close())
	}
	return err
}

// Label is the label that dump -L gave, or else that of the file system: up to
// 15 bytes of any kind. It is "none" where there was none.
func (a *Archive) Label() string { return a.tape.text(offLabel, 16) }

// Filesystem is where the file system was mounted, "MOUNT (dir SUB)" for a dump
// of a directory of it, or "an unlisted file system": up to 64 bytes of any
// kind.
func (a *Archive) Filesystem() string { return a.tape.text(offFilesys, 64) }

// Date is when the dump was begun.
func (a *Archive) Date() time.Time { return a.tape.seconds(offDate) }

// Warnings are what the dump has that could not be made an entry, or a part of
// one, as far as it was read: one printable line each, and at most 51.
func (a *Archive) Warnings() []string {
	if a.dropped == 0 {
		return a.warnings
	}
	return append(a.warnings[:len(a.warnings):len(a.warnings)], fmt.Sprintf("%d more warnings like these", a.dropped))
}

func (a *Archive) warn(format string, args ...any) {
	if len(a.warnings) == maxWarnings {
		a.dropped++
		return
	}
	a.warnings = append(a.warnings, fmt.Sprintf(format, args...))
}

// inDump reports whether the dump's own map says that it holds an inode, which
// is true where it has no map.
func (a *Archive) inDump(inode uint32) bool {
	if a.inodes == nil {
		return true
	}
	at := (inode - 1) / 8
	return int64(at) < int64(len(a.inodes)) && a.inodes[at]>>((inode-1)%8)&1 == 1
}

// start reads what stands before the first file: the maps and the directories.
func (a *Archive) start() error {
	if err := a.readMaps(); err != nil {
		return err
	}
	if err := a.readDirectories(); err != nil {
		return err
	}
	return a.resolve()
}

// readMaps skips the map of the inodes in use and keeps that of those dumped.
// Their records follow whatever the header's own map says.
func (a *Archive) readMaps() error {
	for {
		h, err := a.peek()
		if err != nil {
			return err
		}
		kind := h.kind()
		if kind != tsClri && kind != tsBits {
			return nil
		}
		count := h.count()
		if count > maxMapRecords {
			return a.damaged("a map of inodes has %d records, and %d is the most", count, maxMapRecords)
		}
		if kind == tsBits && a.inodes != nil {
			return a.damaged("there is a second map of the inodes")
		}
		a.peeked = false
		if kind == tsBits {
			a.inodes = []byte{}
		}
		for left := int64(count); left > 0; {
			b, err := a.in.take(left)
			if err != nil {
				return err
			}
			left -= int64(len(b) / recordSize)
			if kind == tsBits {
				a.inodes = append(a.inodes, b...)
			}
		}
	}
}

// peek is the next header. It is taken by setting peeked to false.
func (a *Archive) peek() (*header, error) {
	if a.peeked {
		return &a.next, nil
	}
	b, err := a.in.take(1)
	if err != nil {
		return nil, err
	}
	copy(a.next.raw[:], b)
	if err := a.next.check(); err != nil {
		return nil, fmt.Errorf("record %d: %w", a.in.taken-1, err)
	}
	if !bytes.Equal(a.next.raw[offDate:offDate+4], a.tape.raw[offDate:offDate+4]) {
		return nil, a.damaged("it is of another dump: the dates differ")
	}
	a.peeked = true
	return &a.next, nil
}

// damaged is an error about the record taken last.
func (a *Archive) damaged(format string, args ...any) error {
	return fmt.Errorf("record %d: %s", a.in.taken-1, fmt.Sprintf(format, args...))
}
