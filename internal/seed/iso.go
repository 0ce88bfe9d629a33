package seed

// Why this is not a library's work: go-diskfs' filesystem/iso9660 v1.9.4, the
// one that writes Rock Ridge and Joliet both, clears the Joliet directory where
// the last file is empty or fills its last sector, pads identifiers with NULs,
// gives directories a length that is no multiple of a sector, takes the time of
// day, and wants the files, which are secret, in a directory first. Patching
// its output is more than writing one directory of four files.

import (
	"encoding/binary"
	"fmt"

	"ganeti-instance-image/internal/size"
)

const (
	sector = 2048

	// isoLabel is what cloud-init looks for, in the case that cloud-localds
	// writes, though ECMA-119 has capitals only.
	isoLabel = "cidata"

	// isoLeast covers what libblkid takes for a file system near a disk's
	// beginning, as btrfs' superblock at 64 KiB and those of UFS and ZFS below
	// 512 KiB. A disk that shows one more than this has no label for blkid.
	isoLeast = 1 * size.MiB

	isoFileLimit = 16 * size.MiB
)

// isoFile is a file with its names: in the plain directory, which is that of
// ECMA-119's interchange level 1, and in Rock Ridge and Joliet.
type isoFile struct {
	short, name string
	must        bool  // cloud-init takes no seed without it
	file        *File // none: the seed does not have it
	extent      int   // its first sector
}

// isoFiles are the files a seed may have, in the order that ECMA-119 9.3 asks
// for, which is the same by both names.
func isoFiles() []isoFile {
	return []isoFile{
		{short: "META_DAT.;1", name: "meta-data", must: true},
		{short: "NETWORK_.;1", name: "network-config"},
		{short: "UNATTEND.XML;1", name: answerFile},
		{short: "USER_DAT.;1", name: "user-data", must: true},
		{short: "VENDOR_D.;1", name: "vendor-data"},
	}
}

// The sectors before the files, all of them one sector long. Those up to 16 are
// the system area, which stays zero.
const (
	primaryAt = 16 + iota
	supplementaryAt
	terminatorAt
	primaryPathLAt
	primaryPathMAt
	jolietPathLAt
	jolietPathMAt
	primaryRootAt
	continuationAt
	jolietRootAt
	filesAt
)

// ISO makes the seed as a disk: ISO 9660 (ECMA-119) with Rock Ridge (SUSP 1.12,
// RRIP 1.10) and Joliet over the same files, labelled cidata. The plain names
// are no use to cloud-init, and a guest's kernel may lack one of the two. Its
// files belong to root, who alone may read them. The same files make the same
// bytes: all times are the first of 1980. The size is a multiple of 2048 and
// one MiB at least. An error says which file is not one of a seed, is there
// twice, is missing or has over 16 MiB.
func ISO(files []File) ([]byte, error) {
	list := isoFiles()
	for i := range files {
		if err := take(list, &files[i]); err != nil {
			return nil, fmt.Errorf("cannot make the seed's disk: %w", err)
		}
	}
	end := filesAt
	for i := range list {
		f := &list[i]
		switch {
		case f.file != nil:
			// An empty file has a sector too: readers tell files apart by where they begin.
			f.extent, end = end, end+max(1, sectors(len(f.file.Data)))
		case f.must:
			return nil, fmt.Errorf("cannot make the seed's disk: %s is missing", f.name)
		}
	}
	out := make([]byte, max(end*sector, int(isoLeast)))
	put := func(at int, data []byte) { copy(out[at*sector:], data) }
	primary, joliet := isoTree{false, primaryPathLAt, primaryPathMAt, primaryRootAt}, isoTree{true, jolietPathLAt, jolietPathMAt, jolietRootAt}
	put(primaryAt, primary.descriptor(len(out)/sector))
	put(supplementaryAt, joliet.descriptor(len(out)/sector))
	put(terminatorAt, []byte("\xffCD001\x01"))
	for _, t := range []isoTree{primary, joliet} {
		put(t.pathL, t.pathTable(binary.LittleEndian))
		put(t.pathM, t.pathTable(binary.BigEndian))
		put(t.root, t.directory(list))
	}
	put(continuationAt, extensionReference())
	for _, f := range list {
		if f.file != nil {
			put(f.extent, f.file.Data)
		}
	}
	return out, nil
}

// take gives a file of the seed its place in the list.
func take(list []isoFile, f *File) error {
	for i := range list {
		switch {
		case list[i].name != f.Name:
			continue
		case list[i].file != nil:
			return fmt.Errorf("%s is there twice", f.Name)
		case len(f.Data) > int(isoFileLimit):
			return fmt.Errorf("%s has %d bytes, and %d are the most", f.Name, len(f.Data), isoFileLimit)
		}
		list[i].file = f
		return nil
	}
	return fmt.Errorf("%q is not a file of a seed", f.Name)
}

func sectors(length int) int { return (length + sector - 1) / sector }

// isoTree is one of the two directories, by the sectors of its parts.
type isoTree struct {
	joliet             bool
	pathL, pathM, root int
}

// pathTableSize is that of a path table whose only directory is the root.
const pathTableSize = 10

// descriptor is a volume descriptor, ECMA-119 8.4 or 8.5, for a volume of so
// many sectors.
func (t isoTree) descriptor(volume int) []byte {
	b := []byte("\x01CD001\x01\x00")
	escapes := make([]byte, 32)
	if t.joliet {
		b[0] = 2
		copy(escapes, "%/E") // UCS-2 level 3
	}
	b = append(b, t.text("", 32)...) // system identifier
	b = append(b, t.text(isoLabel, 32)...)
	b = append(b, make([]byte, 8)...)
	b = both32(b, volume)
	b = append(b, escapes...)
	b = both16(b, 1) // volumes in the set
	b = both16(b, 1) // this one's number
	b = both16(b, sector)
	b = both32(b, pathTableSize)
	b = binary.LittleEndian.AppendUint32(b, uint32(t.pathL))
	b = binary.LittleEndian.AppendUint32(b, 0) // no second copy
	b = binary.BigEndian.AppendUint32(b, uint32(t.pathM))
	b = binary.BigEndian.AppendUint32(b, 0)
	b = append(b, t.rootRecord("\x00", nil)...)
	for _, n := range []int{128, 128, 128, 128, 37, 37, 37} { // set, publisher, preparer, application, and three file names
		b = append(b, t.text("", n)...)
	}
	const made, never = "1980010100000000\x00", "0000000000000000\x00"
	b = append(b, made+made+never+never...) // creation, modification, expiration, effective
	return append(b, 1, 0)                  // file structure version
}

// text is an identifier of n bytes, filled up with spaces: in UCS-2 where the
// tree is Joliet's, with a zero behind where n is odd. It is for ASCII only.
func (t isoTree) text(s string, n int) []byte {
	b := make([]byte, n)
	step := 1
	if t.joliet {
		step = 2
	}
	for i := step - 1; i < n; i += step {
		b[i] = ' '
		if at := i / step; at < len(s) {
			b[i] = s[at]
		}
	}
	return b
}

// pathTable has one record, the root's: ECMA-119 9.4.
func (t isoTree) pathTable(order binary.AppendByteOrder) []byte {
	b := order.AppendUint32([]byte{1, 0}, uint32(t.root))
	b = order.AppendUint16(b, 1) // its parent is itself
	return append(b, 0, 0)
}

// directory is the root directory. It stays below a sector with all files a
// seed may have.
func (t isoTree) directory(list []isoFile) []byte {
	var self, parent []byte
	if !t.joliet {
		attributes := posix(0o040500, 2)
		self = append([]byte("SP\x07\x01\xbe\xef\x00"), attributes...)
		self = append(self, continuation(continuationAt, len(extensionReference()))...)
		parent = attributes
	}
	b := append(t.rootRecord("\x00", self), t.rootRecord("\x01", parent)...)
	for _, f := range list {
		if f.file == nil {
			continue
		}
		name, system := f.short, append(posix(0o100400, 1), alternateName(f.name)...)
		if t.joliet {
			name, system = string(t.text(f.name, 2*len(f.name))), nil
		}
		b = append(b, record(name, f.extent, len(f.file.Data), 0, system)...)
	}
	return b
}

func (t isoTree) rootRecord(name string, system []byte) []byte {
	return record(name, t.root, sector, 2, system)
}

// record is a directory record, ECMA-119 9.1, with its system use field. It and
// the field begin at even places.
func record(name string, extent, length int, flags byte, system []byte) []byte {
	b := both32([]byte{0, 0}, extent)
	b = both32(b, length)
	b = append(b, 80, 1, 1, 0, 0, 0, 0) // 1980-01-01 in UTC
	b = append(b, flags, 0, 0)          // neither interleaved
	b = both16(b, 1)                    // the volume in the set
	b = append(b, byte(len(name)))
	b = even(append(b, name...))
	b = even(append(b, system...))
	b[0] = byte(len(b))
	return b
}

func even(b []byte) []byte {
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	return b
}

// posix is the PX entry of RRIP 4.1.1 for a file of user and group 0.
func posix(mode, links int) []byte {
	b := both32([]byte("PX\x24\x01"), mode)
	return both32(both32(both32(b, links), 0), 0)
}

// alternateName is the NM entry of RRIP 4.1.4, whole.
func alternateName(name string) []byte {
	return append([]byte{'N', 'M', byte(5 + len(name)), 1, 0}, name...)
}

// continuation is the CE entry of SUSP 5.1: more entries begin that sector.
func continuation(at, length int) []byte {
	b := both32([]byte("CE\x1c\x01"), at)
	return both32(both32(b, 0), length)
}

// extensionReference is the ER entry of SUSP 5.5, in the words RRIP 4.3 has for
// itself. A record of the directory has no room for it.
func extensionReference() []byte {
	const id = "RRIP_1991A"
	const what = "THE ROCK RIDGE INTERCHANGE PROTOCOL PROVIDES SUPPORT FOR POSIX FILE SYSTEM SEMANTICS"
	const where = "PLEASE CONTACT DISC PUBLISHER FOR SPECIFICATION SOURCE.  SEE PUBLISHER IDENTIFIER IN PRIMARY VOLUME DESCRIPTOR FOR CONTACT INFORMATION."
	text := id + what + where
	return append([]byte{'E', 'R', byte(8 + len(text)), 1, byte(len(id)), byte(len(what)), byte(len(where)), 1}, text...)
}

// both32 appends a number in both byte orders: ECMA-119 7.3.3.
func both32(b []byte, n int) []byte {
	return binary.BigEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, uint32(n)), uint32(n))
}

// both16 is ECMA-119 7.2.3.
func both16(b []byte, n int) []byte {
	return binary.BigEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, uint16(n)), uint16(n))
}
