package dump

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// recordSize is the unit in which everything is stored: TP_BSIZE.
const recordSize = 1024

// Types of a header: c_type of struct s_spcl in dumprestore.h.
const (
	tsTape  = 1 // the beginning of a volume
	tsInode = 2 // an inode, or its attributes
	tsBits  = 3 // the map of the inodes in this dump
	tsAddr  = 4 // more of the last inode's content
	tsEnd   = 5
	tsClri  = 6 // the map of the inodes in use
)

// Offsets of a header's fields in bytes.
const (
	offType      = 0
	offDate      = 4
	offBaseDate  = 8 // of the dump this one continues
	offVolume    = 12
	offInode     = 20
	offMagic     = 24
	offMode      = 32
	offSize      = 40
	offAccess    = 48
	offModify    = 56
	offBlocks    = 72 // i_block of the inode, 60 bytes
	offBlocksEnd = 132
	offFlags     = 132 // of the inode
	offUID       = 144
	offGID       = 148
	offCount     = 160
	offMap       = 164
	mapBytes     = 512
	offLabel     = 676
	offLevel     = 692
	offFilesys   = 696
	offDumpFlags = 888
	offBlocking  = 896
	offExtended  = 900
)

// Bits of c_flags, and the kind of attributes that ext has.
const (
	newInodeFormat = 0x2
	compressedFlag = 0x80
	metaOnly       = 0x100
	extendedFlag   = 0x8000
	extAttributes  = 3
)

const (
	magic     = 60012 // NFS_MAGIC
	oldMagic  = 60011 // OFS_MAGIC
	ufs2Magic = 0x19540119
	checksum  = 84446
)

// header is a record that says what the ones behind it are.
type header struct {
	raw [recordSize]byte
}

func (h *header) u16(off int) uint16 { return binary.LittleEndian.Uint16(h.raw[off:]) }
func (h *header) u32(off int) uint32 { return binary.LittleEndian.Uint32(h.raw[off:]) }

func (h *header) kind() uint32      { return h.u32(offType) }
func (h *header) inode() uint32     { return h.u32(offInode) }
func (h *header) mode() uint16      { return h.u16(offMode) }
func (h *header) size() uint64      { return binary.LittleEndian.Uint64(h.raw[offSize:]) }
func (h *header) flags() uint32     { return h.u32(offFlags) }
func (h *header) count() uint32     { return h.u32(offCount) }
func (h *header) dumpFlags() uint32 { return h.u32(offDumpFlags) }
func (h *header) blocking() uint32  { return h.u32(offBlocking) }

// seconds is a time. dump keeps 32 bits, and restore(8) takes them as unsigned.
func (h *header) seconds(off int) time.Time { return time.Unix(int64(h.u32(off)), 0) }

func (h *header) text(off, length int) string {
	text, _, _ := bytes.Cut(h.raw[off:off+length], []byte{0})
	return string(text)
}

// hasAttributes reports that the records behind the header are attributes of
// its inode.
func (h *header) hasAttributes() bool {
	return h.kind() == tsInode && h.dumpFlags()&extendedFlag != 0
}

// holes is the map of which of the next records of content are stored, of a
// header of an inode.
func (h *header) holes() []byte { return h.raw[offMap : offMap+int(h.count())] }

// check finds out whether the record is a sound header.
func (h *header) check() error {
	if h.u32(offMagic) != magic {
		return errors.New("there should be a header and is none: the dump is damaged")
	}
	sum := uint32(0)
	for i := 0; i < recordSize; i += 4 {
		sum += h.u32(i)
	}
	if sum != checksum {
		return errors.New("the checksum of a header is wrong: the dump is damaged")
	}
	kind := h.kind()
	if kind < tsTape || kind > tsClri {
		return fmt.Errorf("a header is of the unknown type %d", kind)
	}
	if (kind == tsInode || kind == tsAddr) && h.count() > mapBytes {
		return fmt.Errorf("the map of inode %d has %d entries, and a header has room for %d", h.inode(), h.count(), mapBytes)
	}
	return nil
}

// readTape reads the first record of a volume and refuses what is no dump, or
// is one of another system.
func (h *header) readTape(r io.Reader) error {
	if _, err := io.ReadFull(r, h.raw[:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return errors.New("it is no dump: it is shorter than a header of dump(8)")
		}
		return err
	}
	if err := foreign(h.raw[offMagic : offMagic+4]); err != nil {
		return err
	}
	if err := h.check(); err != nil {
		return err
	}
	if h.kind() != tsTape {
		return errors.New("it does not begin with the header of a volume: its beginning is missing")
	}
	return h.checkTape()
}

// foreign names the dumps of other systems by their magic number.
func foreign(field []byte) error {
	little, big := binary.LittleEndian.Uint32(field), binary.BigEndian.Uint32(field)
	switch {
	case little == magic:
		return nil
	case little == oldMagic || big == oldMagic:
		return errors.New("it is a dump in the format from before 4.2BSD, which is not read here")
	case little == ufs2Magic || big == ufs2Magic:
		return errors.New("it is a dump of a UFS2 file system, as FreeBSD makes them: only dumps of ext2, ext3 and ext4 are read")
	case big == magic:
		return errors.New("it is a dump made on a big-endian machine: make it on a little-endian one")
	}
	return errors.New("it is no dump: the magic number of dump(8) is missing (a dump that was compressed afterwards must be unpacked first)")
}

func (h *header) checkTape() error {
	if level := int32(h.u32(offLevel)); level != 0 || h.u32(offBaseDate) != 0 {
		return fmt.Errorf("it is an incremental dump of level %d: an image must be a full one, made with `dump -0`", level)
	}
	if h.dumpFlags()&newInodeFormat == 0 {
		return errors.New("its inodes are in the format from before 4.4BSD, which is not read here")
	}
	if n := h.blocking(); n < 1 || n > 1024 {
		return fmt.Errorf("its blocks have %d KiB, and dump makes them from 1 to 1024 KiB", n)
	}
	return nil
}

// checkVolume refuses a volume that is not the wanted one of the set that first
// begins.
func (h *header) checkVolume(first *header, wanted int) error {
	switch is := int32(h.u32(offVolume)); {
	case is != int32(wanted) && wanted == 1:
		return fmt.Errorf("it is volume %d of a dump: begin with volume 1", is)
	case is != int32(wanted):
		return fmt.Errorf("the file is volume %d: give all volumes in their order", is)
	case h.u32(offDate) != first.u32(offDate):
		return errors.New("it is of another dump than volume 1: the dates differ")
	case h.blocking() != first.blocking():
		return fmt.Errorf("its blocks have %d KiB, and those of volume 1 %d KiB", h.blocking(), first.blocking())
	case h.dumpFlags()&compressedFlag != first.dumpFlags()&compressedFlag:
		return errors.New("one of it and volume 1 is compressed, and the other is not")
	}
	return nil
}
