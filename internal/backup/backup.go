// Package backup writes and reads the format in which a disk is exported: a tar
// archive, made and read as a stream, that holds what the disk has in use.
//
// Its members are, in this order: ManifestName, which says what disk it is of;
// the disk in pieces, each a member "disk/OFFSET" (15 decimal digits, bytes) in
// GNU tar's sparse format 1.0, which together, one behind the other, are the
// whole disk; and SumName, the SHA-256 of all bytes before it, as sha256sum -c
// reads it. docs/backups.md says the same to people.
//
// All of it may be compressed with zstd, as zstd(1) does.
//
// Headers, lengths and padding are written in one way only, and anything else is
// refused when it is read.
//
// Left out: what on a disk is in use (package contents), and the formats of others.
package backup

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"ganeti-instance-image/internal/contents"
	"ganeti-instance-image/internal/size"
)

const (
	// ManifestName is the first member of a backup.
	ManifestName = "ganeti-instance-image.json"
	// SumName is the last one.
	SumName = "SHA256SUM"

	format  = "ganeti-instance-image backup"
	version = 1

	record = 512 // a tar archive is a sequence of these, in bytes
	// unit is the granularity in which zeros are left out, in bytes.
	unit = 4096
	// pieceData is how much data a piece has, but for what its last chunk brings.
	pieceData = 16 * size.MiB
	// maxSegments bounds the stretches of data in a piece.
	maxSegments = 8192
	// maxMember bounds what a piece takes in the archive: its map and its data.
	maxMember = 32 * size.MiB
	// maxManifest bounds the manifest.
	maxManifest = size.MiB
	// maxTime is the last second that a header can name, since 1970.
	maxTime = 1<<33 - 1
	// maxName bounds the name of an instance, in bytes.
	maxName = 255
)

// ErrDamaged is wrapped by the error for a backup that is not as it was written.
var ErrDamaged = errors.New("the backup is damaged")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

// Manifest says what disk a backup is of.
type Manifest struct {
	Format   string      `json:"format"`
	Version  int         `json:"version"`
	Created  time.Time   `json:"created"`
	Instance string      `json:"instance"`
	OS       string      `json:"os,omitempty"`
	Disk     int         `json:"disk"`      // its index in the instance
	Size     size.Bytes  `json:"disk_size"` // in bytes
	Sector   size.Bytes  `json:"sector_size,omitempty"`
	Table    string      `json:"table,omitempty"`
	Parts    []Partition `json:"partitions,omitempty"`
}

// Partition says what was kept of a partition or a logical volume.
type Partition struct {
	Number     int        `json:"number,omitempty"`
	Volume     string     `json:"volume,omitempty"`
	Start      size.Bytes `json:"start"`
	Length     size.Bytes `json:"length"`
	Filesystem string     `json:"filesystem,omitempty"`
	Kept       string     `json:"kept"` // "used blocks" or "all blocks that are not zero"
	Why        string     `json:"why,omitempty"`
}

// Describe fills in what a disk holds.
func (m *Manifest) Describe(disk *contents.Disk) {
	m.Format, m.Version, m.Size, m.Sector, m.Table = format, version, disk.Length, disk.SectorSize, string(disk.Kind)
	for _, p := range disk.Parts {
		kept := "used blocks"
		if p.Whole {
			kept = "all blocks that are not zero"
		}
		m.Parts = append(m.Parts, Partition{p.Number, p.Volume, p.Start, p.Length, string(p.Kind), kept, p.Why})
	}
}

func (m *Manifest) encode() ([]byte, error) {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("cannot write the manifest: %w", err)
	}
	if len(text) >= int(maxManifest) && m.Parts != nil {
		short := *m
		short.Parts = nil // which is for people, and only who means ill has so many
		return short.encode()
	}
	return append(text, '\n'), nil
}

// decodeManifest reads what an import needs to know: not the partitions.
func decodeManifest(text []byte) (Manifest, error) {
	var read struct {
		Manifest
		Parts json.RawMessage `json:"partitions"`
	}
	err := json.Unmarshal(text, &read)
	m := read.Manifest
	if err != nil {
		return m, damaged("its manifest cannot be read: %v", err)
	}
	switch {
	case m.Format != format:
		return m, damaged("its manifest does not say that it is a %s", format)
	case m.Version < 1:
		return m, damaged("its manifest says version %d", m.Version)
	case m.Version > version:
		return m, fmt.Errorf("cannot read the backup: its version is %d, and this program knows version %d: install a newer one on this node, unless the backup is damaged", m.Version, version)
	case m.Size <= 0:
		return m, damaged("its manifest says that the disk has %d bytes", int64(m.Size))
	case m.Created.Unix() < 0 || m.Created.Unix() > maxTime:
		return m, damaged("its manifest has no time that can be")
	case len(m.Instance) > maxName:
		return m, damaged("its manifest names an instance of %d bytes", len(m.Instance))
	}
	return m, nil
}

// padding fills up n bytes to whole records.
func padding(n int) []byte { return make([]byte, (record-n%record)%record) }

// member is a file's header and what is in it.
func member(name string, modified time.Time, content []byte) []byte {
	header := fileHeader(name, modified, size.Bytes(len(content)))
	return append(append(header, content...), padding(len(content))...)
}

// fileHeader is the header of an ordinary file.
func fileHeader(name string, modified time.Time, n size.Bytes) []byte {
	return encode(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(n), Mode: 0o600, ModTime: modified, Uname: "root", Gname: "root", Format: tar.FormatUSTAR})
}

// pieceHeader is what a piece begins with: an extended header, as POSIX' pax has
// it, that says what GNU tar's sparse format 1.0 wants said, and a file's header.
func pieceHeader(modified time.Time, off, length, stored size.Bytes) []byte {
	name := pieceName(off)
	var records []byte
	for _, r := range [][2]string{{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.name", "disk/" + name}, {"GNU.sparse.realsize", fmt.Sprint(int64(length))}} {
		records = append(records, paxRecord(r[0], r[1])...)
	}
	extended := fileHeader("disk/PaxHeaders.0/"+name, modified, size.Bytes(len(records)))
	extended[typeAt] = tar.TypeXHeader
	setSum(extended)
	block := append(append(extended, records...), padding(len(records))...)
	return append(block, fileHeader("disk/GNUSparseFile.0/"+name, modified, stored)...)
}

func pieceName(off size.Bytes) string { return fmt.Sprintf("%015d", int64(off)) }

// paxRecord is "LENGTH NAME=VALUE\n", with a length that counts itself.
func paxRecord(name, value string) string {
	rest := " " + name + "=" + value + "\n"
	n := len(rest) + 2 // of 10 to 99 bytes, as all of ours are
	return fmt.Sprint(n) + rest
}

const (
	sizeAt = 124 // offsets in a header, of 12, 8 and 1 bytes
	sumAt  = 148
	typeAt = 156
)

// encode is a header's record.
func encode(h *tar.Header) []byte {
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(h); err != nil {
		panic(err) // every field is ours, and fits
	}
	return b.Bytes()
}

// setSum writes a header's checksum anew.
func setSum(header []byte) {
	copy(header[sumAt:], "        ")
	sum := 0
	for _, b := range header[:record] {
		sum += int(b)
	}
	copy(header[sumAt:], fmt.Sprintf("%06o\x00 ", sum))
}

// trailer is the end of a backup: the sum and, as of each tar archive, two
// records of zeros. It has always the same length.
func trailer(modified time.Time, sum []byte) []byte {
	text := fmt.Sprintf("%x  -\n", sum)
	return append(member(SumName, modified, []byte(text)), make([]byte, 2*record)...)
}
