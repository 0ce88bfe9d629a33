package tarball

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"ganeti-instance-image/internal/image"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/tree"
	"ganeti-instance-image/internal/zeros"
)

// headers reads the headers of one entry after the other, each with a reader of
// its own that never sees what follows them, and keeps the bytes.
type headers struct {
	in  *image.Archive
	raw []byte // the headers of the current entry
	err error  // of reading
}

var errHeaders = fmt.Errorf("the headers of a file have more than %s", size.Bytes(maxHeaders))

// Read is what archive/tar reads from.
func (h *headers) Read(p []byte) (int, error) {
	if len(h.raw)+len(p) > maxHeaders {
		h.err = errHeaders
		return 0, h.err
	}
	b, err := h.in.Chunk(len(p))
	if err != nil && err != io.EOF {
		h.err = err
	}
	h.raw = append(h.raw, b...)
	return copy(p, b), err
}

var errCutHeader = errors.New("it is cut off in the middle of a header: fetch it again")

// next reads the headers of an entry. Its error is io.EOF where there are only
// blocks of zeros, or nothing.
func (h *headers) next() (*tar.Header, error) {
	h.raw = h.raw[:0]
	header, err := tar.NewReader(h).Next()
	switch {
	case h.err != nil:
		return nil, h.err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, errCutHeader
	case err == io.EOF && (!zeros.Only(h.raw) || len(h.raw)%blockSize != 0): // a long name, and nothing it belongs to
		return nil, errCutHeader
	case errors.Is(err, tar.ErrHeader) && len(h.raw) == blockSize:
		return nil, errors.New("there is no tar header where one should be: it is damaged, or no tar archive")
	case err != nil && err != io.EOF:
		return nil, fmt.Errorf("a header is damaged (%w): fetch it again", err)
	}
	return header, err
}

// withoutData are the types that have no content, whatever size they claim.
var withoutData = []byte{tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo}

// Types of GNU tar (its tar.h) that archive/tar passes on as they are.
const (
	typeDump      = 'D' // a directory, with the names of its files as content
	typeVolume    = 'V' // the name of the archive
	typeContinued = 'M' // what did not fit on the last tape
)

var types = map[byte]tree.Type{
	tar.TypeReg: tree.Regular, tar.TypeCont: tree.Regular, tar.TypeGNUSparse: tree.Regular,
	tar.TypeDir: tree.Directory, typeDump: tree.Directory,
	tar.TypeSymlink: tree.Symlink, tar.TypeLink: tree.HardLink,
	tar.TypeChar: tree.CharDevice, tar.TypeBlock: tree.BlockDevice, tar.TypeFifo: tree.FIFO,
}

// newEntry makes an entry of what every format has, nil of a header that stands
// for no file.
func newEntry(h *tar.Header) (*tree.Entry, error) {
	kind, known := types[h.Typeflag]
	switch {
	case h.Typeflag == tar.TypeXGlobalHeader:
		return nil, checkGlobal(h)
	case h.Typeflag == typeVolume:
		return nil, nil
	case h.Typeflag == typeContinued:
		return nil, fmt.Errorf("it is one of several volumes: %s began on the one before", tree.Quoted(h.Name))
	case !known:
		return nil, fmt.Errorf("%s is of the type %q, which is not known here", tree.Quoted(h.Name), h.Typeflag)
	case h.Name == "":
		return nil, errors.New("it has a file without a name")
	}
	if kind == tree.Regular && h.Size == 0 && strings.HasSuffix(h.Name, "/") {
		kind = tree.Directory // as old programs have them
	}
	e := &tree.Entry{Name: relative(h.Name), Type: kind, Mode: uint32(h.Mode & 0o7777), ModTime: h.ModTime, AccessTime: h.AccessTime}
	switch kind {
	case tree.Symlink:
		e.Target = h.Linkname
	case tree.HardLink:
		e.Target = relative(h.Linkname)
	case tree.Regular:
		e.Size = h.Size
	}
	for _, n := range []struct {
		what  string
		value int64
		to    *uint32
	}{{"owner", int64(h.Uid), &e.UID}, {"group", int64(h.Gid), &e.GID}, {"major number", h.Devmajor, &e.Major}, {"minor number", h.Devminor, &e.Minor}} {
		if n.value < 0 || n.value >= math.MaxUint32 {
			return nil, fmt.Errorf("%s has the %s %d, which does not exist", tree.Quoted(h.Name), n.what, n.value)
		}
		*n.to = uint32(n.value)
	}
	return e, nil
}

// checkGlobal lets pass what says nothing about files, as the comment that git
// writes.
func checkGlobal(h *tar.Header) error {
	for key := range h.PAXRecords {
		if key != "comment" && !strings.HasPrefix(key, "GNU.volume.") {
			return fmt.Errorf("it has the pax record %s for all files, and only those of single files are read", tree.Quoted(key))
		}
	}
	return nil
}

// relative is a name as tree.Entry has it.
func relative(name string) string {
	name = strings.TrimRight(name, "/")
	for {
		switch {
		case strings.HasPrefix(name, "/"):
			name = strings.TrimLeft(name, "/")
		case strings.HasPrefix(name, "./"):
			name = name[2:]
		case name == "":
			return "."
		default:
			return name
		}
	}
}

// extent is a stretch of a file that is no hole.
type extent struct{ offset, length int64 }

// holes is the map of a sparse file.
type holes struct {
	data   []extent
	stored int64 // bytes of data in the archive
}

var errMap = errors.New("its numbers are none")

// sparse reads the map of a sparse file, which archive/tar checked and does not
// pass on. It is nil where the file has none.
func (h *headers) sparse(header *tar.Header) (*holes, error) {
	major, minor := header.PAXRecords["GNU.sparse.major"], header.PAXRecords["GNU.sparse.minor"]
	list := header.PAXRecords["GNU.sparse.map"]
	var numbers []int64
	var err error
	switch {
	case header.Typeflag == tar.TypeGNUSparse:
		numbers, err = h.oldMap()
	case major == "1" && minor == "0":
		numbers, err = h.mapInContent()
	case major == "0" && (minor == "0" || minor == "1"), major == "" && minor == "" && list != "":
		if list != "" {
			numbers, err = decimals(strings.Split(list, ","))
		}
	case major != "" || minor != "":
		err = fmt.Errorf("its version is %s.%s", tree.Quoted(major), tree.Quoted(minor))
	default:
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m, err := newHoles(numbers, header.Size)
	if err != nil {
		return nil, err
	}
	stored, err := h.stored(header)
	if err == nil && stored != m.stored {
		err = fmt.Errorf("the archive has %d bytes of the file, and its map has %d bytes of data", stored, m.stored)
	}
	return m, err
}

// stored is how much content follows the headers, as they say it: the size of a
// sparse file is its length on the disk in tar.Header.
func (h *headers) stored(header *tar.Header) (int64, error) {
	at := h.main()
	n, err := number(h.raw[at+124 : at+136])
	if text := header.PAXRecords["size"]; text != "" {
		n, err = strconv.ParseInt(text, 10, 64)
	}
	if header.Typeflag != tar.TypeGNUSparse { // a map in the content is part of it
		n -= int64(len(h.raw) - at - blockSize)
	}
	return n, err
}

func newHoles(numbers []int64, length int64) (*holes, error) {
	m := &holes{data: make([]extent, 0, len(numbers)/2)}
	if len(numbers)%2 != 0 {
		return nil, errMap
	}
	end := int64(0)
	for pair := range slices.Chunk(numbers, 2) {
		offset, n := pair[0], pair[1]
		if offset < end || n < 0 || offset > length || n > length-offset {
			return nil, errors.New("it leads out of the file")
		}
		m.data = append(m.data, extent{offset, n})
		m.stored += n
		end = offset + n
	}
	return m, nil
}

// main is where the header of the file itself is, behind those of its long names
// and pax records.
func (h *headers) main() int {
	at := 0
	for at+2*blockSize <= len(h.raw) {
		block := h.raw[at : at+blockSize]
		if !slices.Contains([]byte{tar.TypeXHeader, tar.TypeGNULongName, tar.TypeGNULongLink}, block[156]) {
			break
		}
		n, err := number(block[124:136])
		if err != nil || n > maxHeaders {
			break
		}
		at += blockSize + int(n+blockSize-1)&^(blockSize-1)
	}
	return min(at, len(h.raw)-blockSize)
}

// oldMap is that of the type S: four pairs in the header, and 21 in each block
// behind it that is announced.
func (h *headers) oldMap() ([]int64, error) {
	at := h.main()
	list, more := h.raw[at+386:at+482], h.raw[at+482]
	var numbers []int64
	for {
		for pair := range slices.Chunk(list, 24) {
			if pair[0] == 0 {
				break
			}
			offset, err1 := number(pair[:12])
			length, err2 := number(pair[12:])
			if err1 != nil || err2 != nil {
				return nil, errMap
			}
			numbers = append(numbers, offset, length)
		}
		if more == 0 {
			return numbers, nil
		}
		if at += blockSize; at+blockSize > len(h.raw) {
			return nil, errMap
		}
		list, more = h.raw[at:at+504], h.raw[at+504]
	}
}

// mapInContent is that of version 1.0: lines in the first blocks of the content,
// how many pairs and then those.
func (h *headers) mapInContent() ([]int64, error) {
	text := h.raw[h.main()+blockSize:]
	line, rest, _ := bytes.Cut(text, []byte("\n"))
	count, err := strconv.ParseInt(string(line), 10, 64)
	if err != nil || count < 0 || count > int64(len(rest)) {
		return nil, errMap
	}
	lines := strings.SplitN(string(rest), "\n", int(2*count)+1)
	if int64(len(lines)) <= 2*count {
		return nil, errMap
	}
	return decimals(lines[:2*count])
}

func decimals(texts []string) ([]int64, error) {
	numbers := make([]int64, len(texts))
	for i, text := range texts {
		var err error
		if numbers[i], err = strconv.ParseInt(text, 10, 64); err != nil {
			return nil, errMap
		}
	}
	return numbers, nil
}

// number reads a field of a header: octal, or binary where the first bit is set.
func number(field []byte) (int64, error) {
	if len(field) == 0 || field[0]&0x80 == 0 {
		text := strings.Trim(string(field), " \x00")
		if text == "" {
			return 0, nil
		}
		return strconv.ParseInt(text, 8, 64)
	}
	value := int64(field[0] & 0x7f)
	for _, b := range field[1:] {
		if value >= 1<<54 {
			return 0, errMap
		}
		value = value<<8 | int64(b)
	}
	return value, nil
}
