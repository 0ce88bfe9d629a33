package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strings"

	"ganeti-instance-image/internal/size"
)

// What a header may ask for. QEMU has the same limits but for the first, which
// is far above any disk an instance gets and keeps the check's time bounded.
const (
	maxVirtualSize = 64 * size.TiB
	maxL1Bytes     = 32 * size.MiB
	minClusterBits = 9
	maxClusterBits = 21
)

// Incompatible features of version 3, by their bit.
const (
	featureDirty       = 1 << 0
	featureCorrupt     = 1 << 1
	featureDataFile    = 1 << 2
	featureCompression = 1 << 3
	featureExtendedL2  = 1 << 4
	featuresRead       = featureDirty | featureCompression | featureExtendedL2
)

// The compression types.
const (
	compressionZlib = 0
	compressionZstd = 1
)

const (
	headerV2          = 72  // bytes of a header of version 2
	headerV3          = 104 // bytes of the shortest header of version 3
	featureNames      = 0x6803f857
	maxHeaderRead     = 64 << 10
	featureNameLength = 48 // bytes of an entry of the feature name table
)

// header is what reading needs of a qcow2 header.
type header struct {
	version     uint32
	clusterBits uint
	size        size.Bytes // of the disk; a multiple of 512
	l1Offset    size.Bytes
	l1Needed    int // entries of the L1 table that the size needs
	extended    bool
	dirty       bool
	snapshots   uint32
	compression byte
}

func (h *header) cluster() size.Bytes { return 1 << h.clusterBits }

// entryBytes is the length of an L2 entry.
func (h *header) entryBytes() int {
	if h.extended {
		return 16
	}
	return 8
}

// perTable is how many clusters an L2 table maps.
func (h *header) perTable() int64 { return int64(h.cluster()) / int64(h.entryBytes()) }

func (h *header) clusters() int64 {
	return int64(h.size.AlignUp(h.cluster()) >> h.clusterBits)
}

// readHeader reads and checks the header of a qcow2 file of n bytes. What would
// lead out of the file is refused first.
func readHeader(r io.ReaderAt, n size.Bytes) (*header, error) {
	b := make([]byte, min(n, maxHeaderRead))
	if _, err := r.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	h := &header{version: binary.BigEndian.Uint32(b[4:])}
	need := headerV2
	if h.version == 3 {
		need = headerV3
	}
	if len(b) < need {
		return nil, fmt.Errorf("the qcow2 header is cut off: the file has %d bytes", int64(n))
	}
	if err := refuse(b, h.version); err != nil {
		return nil, err
	}
	if err := h.geometry(b, n); err != nil {
		return nil, err
	}
	return h, nil
}

// refuse reports what a whole image that can be read has not.
func refuse(b []byte, version uint32) error {
	if binary.BigEndian.Uint64(b[8:]) != 0 {
		return errors.New("it has a backing file, and only whole images are deployed: " +
			"merge the two with `qemu-img convert -O qcow2`")
	}
	if method := binary.BigEndian.Uint32(b[32:]); method != 0 {
		return fmt.Errorf("it is encrypted (%s), and encrypted images are not supported: "+
			"decrypt it with `qemu-img convert` first", encryption(method))
	}
	if version < 3 {
		return nil
	}
	features := binary.BigEndian.Uint64(b[72:])
	if features&featureDataFile != 0 {
		return errors.New("its data is in an external file, and only whole images are deployed: " +
			"merge the two with `qemu-img convert -O qcow2`")
	}
	if features&featureCorrupt != 0 {
		return errors.New("it is marked as corrupt: run `qemu-img check -r all` on a copy of it")
	}
	if unknown := features &^ (featuresRead | featureCorrupt | featureDataFile); unknown != 0 {
		return fmt.Errorf("it needs a feature of qcow2 that is not known here: %s", describeFeatures(b, unknown))
	}
	return nil
}

// encryption names a method of the header.
func encryption(method uint32) string {
	switch method {
	case 1:
		return "AES"
	case 2:
		return "LUKS"
	}
	return fmt.Sprintf("method %d", method)
}

// geometry takes sizes and offsets from the header of a file of n bytes.
func (h *header) geometry(b []byte, n size.Bytes) error {
	clusterBits := binary.BigEndian.Uint32(b[20:])
	if clusterBits < minClusterBits || clusterBits > maxClusterBits {
		return fmt.Errorf("its cluster size is 2^%d bytes, which is not between 2^%d and 2^%d", clusterBits, minClusterBits, maxClusterBits)
	}
	h.clusterBits = uint(clusterBits)
	h.snapshots = binary.BigEndian.Uint32(b[60:])
	if h.version == 3 {
		if err := h.extensions(b); err != nil {
			return err
		}
	}
	virtual := binary.BigEndian.Uint64(b[24:])
	if virtual > uint64(maxVirtualSize) {
		return fmt.Errorf("its disk of %d bytes is larger than %s", virtual, maxVirtualSize)
	}
	// QEMU shows a disk of whole sectors and no more than those.
	h.size = size.Bytes(virtual).AlignDown(sector)
	if h.size == 0 {
		return fmt.Errorf("its disk is empty (%d bytes)", virtual)
	}
	return h.l1(b, n)
}

func (h *header) extensions(b []byte) error {
	length := binary.BigEndian.Uint32(b[100:])
	if length < headerV3 || length%8 != 0 || length > uint32(min(int(h.cluster()), len(b))) {
		return fmt.Errorf("its header length of %d bytes is impossible", length)
	}
	features := binary.BigEndian.Uint64(b[72:])
	h.dirty = features&featureDirty != 0
	h.extended = features&featureExtendedL2 != 0
	if h.extended && h.clusterBits < 14 {
		return fmt.Errorf("it has subclusters in clusters of %d bytes, and they need 16384", int64(h.cluster()))
	}
	if length > headerV3 {
		h.compression = b[headerV3]
	}
	if h.compression > compressionZstd {
		return fmt.Errorf("its compression type %d is not known here: 0 is zlib, 1 is zstd", h.compression)
	}
	if (h.compression != compressionZlib) != (features&featureCompression != 0) {
		return fmt.Errorf("its compression type %d and its feature bits contradict each other", h.compression)
	}
	return nil
}

// l1 checks where the L1 table is and that it maps the whole disk.
func (h *header) l1(b []byte, n size.Bytes) error {
	entries := size.Bytes(binary.BigEndian.Uint32(b[36:]))
	offset := binary.BigEndian.Uint64(b[40:])
	perTable := h.perTable()
	needed := (h.clusters() + perTable - 1) / perTable
	switch {
	case entries*8 > maxL1Bytes:
		return fmt.Errorf("its L1 table of %d entries is larger than %s", int64(entries), maxL1Bytes)
	case int64(entries) < needed:
		return fmt.Errorf("its L1 table has %d entries, and a disk of %s needs %d", int64(entries), h.size, needed)
	case offset == 0 || offset%uint64(h.cluster()) != 0:
		return fmt.Errorf("its L1 table at offset %d is not at the start of a cluster", offset)
	case offset > uint64(n) || n-size.Bytes(offset) < entries*8:
		return fmt.Errorf("the file is cut off: its L1 table ends at offset %d, the file has %d bytes", offset+uint64(entries)*8, int64(n))
	}
	h.l1Offset, h.l1Needed = size.Bytes(offset), int(needed)
	return nil
}

// describeFeatures names incompatible features by the table of names the image
// may carry, and by their bit.
func describeFeatures(b []byte, features uint64) string {
	names := make(map[int]string)
	for entry := range featureTable(b) {
		if entry[0] == 0 {
			name, _, _ := bytes.Cut(entry[2:], []byte{0})
			names[int(entry[1])] = string(name)
		}
	}
	var words []string
	for ; features != 0; features &= features - 1 {
		bit := bits.TrailingZeros64(features)
		word := fmt.Sprintf("bit %d", bit)
		if name := names[bit]; name != "" {
			word += fmt.Sprintf(" (%.46q)", name)
		}
		words = append(words, word)
	}
	return strings.Join(words, ", ")
}

// featureTable walks the header extensions to the entries of the feature name
// table: type, bit, name.
func featureTable(b []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		at := uint64(binary.BigEndian.Uint32(b[100:]))
		for at+8 <= uint64(len(b)) {
			kind, length := binary.BigEndian.Uint32(b[at:]), uint64(binary.BigEndian.Uint32(b[at+4:]))
			body := b[at+8:]
			if kind == 0 || length > uint64(len(body)) {
				return
			}
			for table := body[:length]; kind == featureNames && len(table) >= featureNameLength; table = table[featureNameLength:] {
				if !yield(table[:featureNameLength]) {
					return
				}
			}
			at += 8 + (length+7)&^7
		}
	}
}
