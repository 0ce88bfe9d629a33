// Package tarball reads tar archives as trees: of the formats v7, ustar, pax, GNU
// and that of star, compressed or not.
//
// archive/tar reads the headers. The content is read here, so that it is copied
// nowhere, that the holes of sparse files (all four formats of GNU) are known, and
// that an archive which was cut off between two files is told from a whole one.
//
// Owners are the numbers of the archive. Names count in access control lists
// only, where pax has nothing else: they are looked up in what the archive itself
// says, the owners of its files and then its etc/passwd and etc/group.
//
// Left out: archives of several volumes, the sparse files of star, pax records
// for the whole archive, records of Solaris, and GNU's incremental archives but
// for the files in them.
package tarball

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"slices"

	"ganeti-instance-image/internal/image"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/tree"
	"ganeti-instance-image/internal/zeros"
)

const (
	blockSize = 512
	// stretch is the most that Data returns at once.
	stretch = 1 << 20
	// maxHeaders is how much the headers of one entry may have: names, pax
	// records and maps of holes have up to 1 MiB each.
	maxHeaders = 8 << 20
	// maxBehind is how much may follow the end of the archive: what is there has
	// to be read, to verify the compressed data that it is in.
	maxBehind = size.GiB
	// maxSkipped is how much content is passed over of what is no file, and
	// maxFileless how many headers that stand for none: neither can be interrupted.
	maxSkipped  = 64 << 20
	maxFileless = 1000
	// maxWarnings is how many are kept.
	maxWarnings = 20
)

// Archive is a tar archive that is read once. It is a tree.Source.
type Archive struct {
	in       *image.Archive
	path     string
	headers  headers
	names    *names
	warnings []string

	first *tree.Entry // read by Open
	entry *tree.Entry
	data  []extent // of the current entry, what was not returned
	left  int64    // bytes of the current entry's data that were not read
	pad   int64    // bytes behind them
	err   error

	fileless     int // headers so far that stand for no file
	waiting      []waitingList
	waitingBytes int
	amendments   []tree.Entry
}

// Open opens the archive in the regular file path and reads the header of its
// first entry, so that a file of another kind is refused.
func Open(path string) (*Archive, error) {
	in, err := image.OpenArchive(path)
	if err != nil {
		return nil, err
	}
	a := &Archive{in: in, path: path, headers: headers{in: in}, names: newNames()}
	a.first, err = a.Next()
	if err == io.EOF {
		err = a.unusable(errors.New("there is nothing inside"))
	}
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	return a, nil
}

// Path is the file the archive was opened from.
func (a *Archive) Path() string { return a.path }

// Compression is the name of the compressed format: gzip, xz, zstd, bzip2 or
// lz4, and empty where the archive is not compressed.
func (a *Archive) Compression() string { return a.in.Compression() }

// Size is the length of the archive when it is not compressed, where the file
// says it.
func (a *Archive) Size() (size.Bytes, bool) { return a.in.Size() }

// Warnings are the sentences that someone who deploys the archive should see. All
// are known once Next returned io.EOF.
func (a *Archive) Warnings() []string { return slices.Clone(a.warnings) }

// Close closes the file.
func (a *Archive) Close() error { return a.in.Close() }

func (a *Archive) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if len(a.warnings) < maxWarnings && !slices.Contains(a.warnings, text) {
		a.warnings = append(a.warnings, text)
	}
}

func (a *Archive) unusable(err error) error {
	return fmt.Errorf("cannot use archive %s: %w", a.path, err)
}

// Next goes on to the next entry. Its error is io.EOF after the last one, once
// the end of the archive was found and everything behind it was read.
func (a *Archive) Next() (*tree.Entry, error) {
	if e := a.first; e != nil {
		a.first = nil
		return e, nil
	}
	if a.err == nil {
		a.entry, a.err = a.next()
	}
	return a.entry, a.err
}

func (a *Archive) next() (*tree.Entry, error) {
	for {
		if err := a.skip(a.left + a.pad); err != nil {
			return nil, err
		}
		a.entry, a.data, a.left, a.pad = nil, nil, 0, 0
		h, err := a.headers.next()
		if err == io.EOF {
			return nil, a.end()
		}
		if err != nil {
			return nil, a.unusable(err)
		}
		e, err := a.convert(h)
		if err != nil {
			return nil, a.unusable(err)
		}
		if e != nil {
			return e, nil
		}
		if a.fileless++; a.fileless > maxFileless {
			return nil, a.unusable(fmt.Errorf("more than %d of its headers stand for no file", maxFileless))
		}
	}
}

// convert makes an entry of a header, nil of one that stands for no file.
func (a *Archive) convert(h *tar.Header) (*tree.Entry, error) {
	e, err := newEntry(h)
	if err != nil {
		return nil, err
	}
	if h.Typeflag == tar.TypeXGlobalHeader { // its records were read, but not what fills their block
		a.pad = int64(-len(a.headers.raw) & (blockSize - 1))
		return nil, nil
	}
	stored := h.Size
	if slices.Contains(withoutData, h.Typeflag) {
		stored = 0
	}
	holes, err := a.headers.sparse(h)
	if err != nil {
		return nil, fmt.Errorf("the map of holes of %s is damaged: %w", tree.Quoted(h.Name), err)
	}
	a.data = []extent{{0, stored}}
	if holes != nil {
		a.data, stored = holes.data, holes.stored
	}
	a.left, a.pad = stored, -stored&(blockSize-1)
	if (e == nil || e.Type != tree.Regular) && stored > maxSkipped {
		return nil, fmt.Errorf("%s has %s of content, which its type does not", tree.Quoted(h.Name), size.Bytes(stored))
	}
	if e == nil {
		return nil, nil
	}
	a.names.learn(h)
	if e.Xattrs, err = a.attributes(h); err != nil {
		return nil, fmt.Errorf("%s: %w", tree.Quoted(h.Name), err)
	}
	e.Flags = inodeFlags(h.PAXRecords["SCHILY.fflags"])
	return e, nil
}

// Data returns the next stretch of the current file that is no hole. The bytes
// are those that were decoded, not a copy.
func (a *Archive) Data() (int64, []byte, error) {
	if a.err != nil {
		return 0, nil, a.err
	}
	if a.entry == nil || a.entry.Type != tree.Regular {
		return 0, nil, io.EOF
	}
	for len(a.data) > 0 && a.data[0].length == 0 {
		a.data = a.data[1:]
	}
	if len(a.data) == 0 {
		return 0, nil, io.EOF
	}
	d := &a.data[0]
	b, err := a.in.Chunk(int(min(d.length, stretch)))
	if err != nil {
		return 0, nil, a.cutOff(err)
	}
	at := d.offset
	d.offset, d.length, a.left = d.offset+int64(len(b)), d.length-int64(len(b)), a.left-int64(len(b))
	a.names.content(a.entry, at, b)
	return at, b, nil
}

// skip passes n bytes.
func (a *Archive) skip(n int64) error {
	for n > 0 {
		b, err := a.in.Chunk(int(min(n, stretch)))
		if err != nil {
			return a.cutOff(err)
		}
		n -= int64(len(b))
	}
	return nil
}

// cutOff says what an error of reading means where there must be more.
func (a *Archive) cutOff(err error) error {
	if err == io.EOF {
		err = a.unusable(errors.New("it is cut off in the middle of a file: fetch it again"))
	}
	a.err = err
	return err
}

// end checks what the archive ends with and reads what is behind it.
func (a *Archive) end() error {
	switch zeros := len(a.headers.raw); {
	case zeros == 0:
		return a.unusable(errors.New("it is cut off: it has no end-of-archive marker; fetch it again"))
	case zeros < 2*blockSize:
		a.warn("the archive ends in one block of zeros instead of two")
	}
	junk := false
	for n := size.Bytes(0); ; {
		b, err := a.in.Chunk(stretch)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if n += size.Bytes(len(b)); n > maxBehind {
			return a.unusable(fmt.Errorf("more than %s follow the end of the archive", maxBehind))
		}
		junk = junk || !zeros.Only(b)
	}
	if junk {
		a.warn("something follows the end of the archive, and is not unpacked")
	}
	a.resolve()
	return io.EOF
}
