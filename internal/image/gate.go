package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"ganeti-instance-image/internal/size"
)

const (
	headLimit = 36 << 10 // bytes of the beginning that are looked at: up to the descriptors of an ISO
	tailLimit = 512      // bytes of the end that are looked at: the footer of a VHD
)

// kind is a format that is told apart from a raw disk.
type kind struct {
	name   string // with its article: "a VMDK image"
	advice string // what to do about it
	match  func(head, tail []byte) bool

	packed  *compression // what is inside can be read
	packer  bool         // a compressed file, whose inside cannot be read
	archive string       // the image type, of an archive that can be deployed
}

func (k *kind) refusal() error { return fmt.Errorf("it is %s: %s", k.name, k.advice) }

const (
	convert    = "convert it with `qemu-img convert -O qcow2` first"
	unpackWith = "this program does not read that: unpack it with "
	notADisk   = "it is no disk image"
	errorPage  = notADisk + ": was an error page downloaded in its place?"
	installer  = "an installer or live CD is no installed system: use it with CDINSTALL=yes"
	extractDir = "an archive is no disk image: unpack it"
	deployTar  = "an archive is no disk image: use the image type tarball"
	deployDump = "an archive is no disk image: use the image type dump"
	evidence   = "export it as a raw image with `ewfexport -f raw` first"
)

var (
	qcow2Kind     = &kind{name: "a qcow2 image", match: qcow2Magic}
	zstdKind      = &kind{name: "compressed with zstd", match: prefix("\x28\xb5\x2f\xfd"), packed: zstdFormat}
	lz4Kind       = &kind{name: "compressed with lz4", match: prefix("\x04\x22\x4d\x18"), packed: lz4Format}
	lz4LegacyKind = &kind{name: "compressed with lz4, in its legacy format", advice: unpackWith + "`lz4 -d`", match: prefix("\x02\x21\x4c\x18"), packer: true}
	// skippedKind is what zstd or lz4 data would be, if there were any.
	skippedKind = &kind{name: "nothing but skippable frames of zstd or lz4", advice: "it is cut off, or not what it should be: fetch it again", packer: true}
)

// kinds are the formats that are recognised, the first match counts. Partition
// tables and filesystems are not among them: both are what raw disks hold. What
// a disk could begin with by chance must not match: where a magic is short, more
// than the magic is looked at.
var kinds = []*kind{
	qcow2Kind,
	{name: "a qcow image of version 1", advice: convert, match: prefix("QFI\xfb\x00\x00\x00\x01")},
	{name: "a qcow2 image of an unknown version", advice: "this program reads the versions 2 and 3", match: prefix("QFI\xfb")},
	{name: "a QED image", advice: convert, match: prefix("QED\x00")},
	{name: "a VMDK image", advice: convert, match: prefix("KDMV")},
	{name: "a VMDK image (ESX)", advice: convert, match: prefix("COWD")},
	{name: "a VMDK image (SE sparse)", advice: convert, match: prefix("\xbe\xba\xfe\xca\x00\x00\x00\x00")},
	{name: "a VMDK descriptor", advice: convert + ", with the files it names", match: vmdkDescriptor},
	{name: "a VDI image", advice: convert, match: at(0x40, "\x7f\x10\xda\xbe")},
	{name: "a VHDX image", advice: convert, match: prefix("vhdxfile")},
	{name: "a VHD image", advice: convert, match: vhd},
	{name: "a Parallels image", advice: convert, match: prefix("WithoutFreeSpace")},
	{name: "a Parallels image", advice: convert, match: prefix("WithouFreSpacExt")},
	{name: "a Bochs image", advice: convert, match: prefix("Bochs Virtual HD Image")},
	{name: "an ASIF image", advice: convert, match: prefix("shdw\x00\x00\x00\x01")},
	{name: "a cloop image", advice: convert, match: prefix("#!/bin/sh\n#V")},
	{name: "a DMG image", advice: convert, match: func(_, tail []byte) bool { return bytes.HasPrefix(tail, []byte("koly")) }},
	{name: "an encrypted DMG image", advice: "decrypt it first", match: prefix("encrcdsa")},
	{name: "a macOS sparse image", advice: "convert it with `hdiutil convert -format UDTO` first", match: prefix("sprs\x00\x00\x00\x03")},
	{name: "an Android sparse image", advice: "convert it with `simg2img` first", match: prefix("\x3a\xff\x26\xed\x01\x00")},
	{name: "an EWF image (EnCase)", advice: evidence, match: prefix("EVF\x09\x0d\x0a\xff\x00")},
	{name: "an EWF image (EnCase 7)", advice: evidence, match: prefix("EVF2\x0d\x0a\x81\x00")},
	{name: "an EWF image (EnCase, logical)", advice: extractDir, match: prefix("LVF\x09\x0d\x0a\xff\x00")},
	{name: "an AFF image", advice: "convert it with `affconvert -r` first", match: prefix("AFF10\r\n\x00")},
	{name: "a VMA archive of Proxmox", advice: "unpack it with `vma extract`", match: prefix("VMA\x00\x00\x00\x00\x01")},
	{name: "a difference of RBD images", advice: "import it with `rbd import-diff`, and export the whole image", match: prefix("rbd diff v")},
	{name: "an RBD image with its header", advice: "export it with `rbd export --export-format 1`", match: prefix("rbd image v")},
	{name: "a WIM image", advice: "it holds files of Windows, and an installed disk is needed", match: prefix("MSWIM\x00\x00\x00")},
	{name: "a partclone image", advice: "restore it with `partclone.restore` first", match: prefix("partclone-image")},
	{name: "a partimage image", advice: "restore it with `partimage` first", match: prefix("PaRtImAgE-VoLuMe")},
	{name: "a ZFS send stream", advice: extractDir, match: zfsStream},
	{name: "a btrfs send stream", advice: extractDir, match: prefix("btrfs-stream\x00")},
	{name: "a LUKS container", advice: "encrypted images are not supported: decrypt it first", match: prefix("LUKS\xba\xbe")},
	{name: "an ISO 9660 image", advice: installer, match: at(0x8001, "CD001")},
	{name: "a UDF image", advice: installer, match: udf},
	{name: "an image of a CD's raw sectors", advice: installer, match: prefix("\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00")},
	{name: "compressed with gzip", match: gzipMagic, packed: gzipFormat},
	{name: "compressed with xz", match: prefix(xzHeaderMagic), packed: xzFormat},
	zstdKind,
	{name: "compressed with bzip2", match: bzip2Magic, packed: bzip2Format},
	lz4Kind,
	lz4LegacyKind,
	{name: "compressed with lzop", advice: unpackWith + "`lzop -d`", match: prefix("\x89LZO\x00\r\n\x1a\n"), packer: true},
	{name: "compressed with lzip", advice: unpackWith + "`lzip -d`", match: prefix("LZIP\x01"), packer: true},
	{name: "compressed with lrzip", advice: unpackWith + "`lrzip -d`", match: prefix("LRZI\x00"), packer: true},
	{name: "compressed with lzma", advice: unpackWith + "`unlzma`", match: lzmaAlone, packer: true},
	{name: "compressed with compress", advice: unpackWith + "`uncompress`", match: prefix("\x1f\x9d\x90"), packer: true},
	{name: "compressed with snappy", advice: unpackWith + "a program for snappy", match: prefix("\xff\x06\x00\x00sNaPpY"), packer: true},
	{name: "a zip archive", advice: extractDir, match: prefix("PK\x03\x04")},
	{name: "a 7z archive", advice: extractDir, match: prefix("7z\xbc\xaf\x27\x1c")},
	{name: "a RAR archive", advice: extractDir, match: prefix("Rar!\x1a\x07")},
	{name: "a cabinet archive", advice: extractDir, match: prefix("MSCF\x00\x00\x00\x00")},
	{name: "a tar archive", advice: deployTar, match: tarHeader, archive: TypeTarball},
	{name: "a dump archive", advice: deployDump, match: dumpRecord, archive: TypeDump},
	{name: "a cpio archive", advice: extractDir, match: cpio},
	{name: "an ar archive or a Debian package", advice: notADisk, match: prefix("!<arch>\n")},
	{name: "an RPM package", advice: notADisk, match: prefix("\xed\xab\xee\xdb\x03")},
	{name: "a Linux kernel", advice: notADisk, match: both(at(0x1fe, "\x55\xaa"), at(0x202, "HdrS"))},
	{name: "a program (ELF)", advice: notADisk, match: elf},
	{name: "a program for Windows or UEFI", advice: notADisk, match: portableExecutable},
	{name: "a U-Boot image", advice: notADisk, match: both(prefix("\x27\x05\x19\x56"), text(32, 64))},
	{name: "a script", advice: notADisk, match: script},
	{name: "a web page", advice: errorPage, match: markup("<!doctype html", "<html")},
	{name: "an XML text", advice: errorPage, match: markup("<?xml ")},
	{name: "a text", advice: errorPage, match: shortText},
}

// recognise says what a file of n bytes is, nil for a raw disk. The error is
// one of reading.
func recognise(r io.ReaderAt, n size.Bytes) (*kind, error) {
	head := make([]byte, min(n, headLimit))
	if _, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	tail := make([]byte, min(n, tailLimit))
	if _, err := r.ReadAt(tail, int64(n)-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if k, err := behindSkippable(r, int64(n)); k != nil || err != nil {
		return k, err
	}
	return find(kinds, head, tail), nil
}

// behindSkippable says what follows the skippable frames with which n bytes
// begin, nil where there are none or what follows is nothing that has them.
func behindSkippable(r io.ReaderAt, n int64) (*kind, error) {
	at, err := firstFrame(r, n)
	if at == 0 || err != nil {
		return nil, err
	}
	b := make([]byte, 8)
	if _, err := r.ReadAt(b[:min(n-at, 8)], at); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if n-at < 4 || skippable(b) > 0 {
		return skippedKind, nil
	}
	return find([]*kind{zstdKind, lz4Kind, lz4LegacyKind}, b, nil), nil
}

// recogniseHead says what is inside a stream, of which all or the first MiB is
// known.
func recogniseHead(head []byte) *kind {
	if k, _ := behindSkippable(bytes.NewReader(head), int64(len(head))); k != nil {
		return k
	}
	if size.Bytes(len(head)) >= headBytes {
		return find(kinds, head[:headLimit], nil)
	}
	return find(kinds, head[:min(len(head), headLimit)], head[max(0, len(head)-tailLimit):])
}

func find(kinds []*kind, head, tail []byte) *kind {
	for _, k := range kinds {
		if k.match(head, tail) {
			return k
		}
	}
	return nil
}

func prefix(magic string) func(head, tail []byte) bool { return at(0, magic) }

func at(offset int, magic string) func(head, tail []byte) bool {
	return func(head, _ []byte) bool {
		return len(head) >= offset && bytes.HasPrefix(head[offset:], []byte(magic))
	}
}

func qcow2Magic(head, _ []byte) bool {
	if len(head) < 8 || string(head[:4]) != "QFI\xfb" {
		return false
	}
	version := binary.BigEndian.Uint32(head[4:])
	return version == 2 || version == 3
}

// vmdkDescriptor tells a text that names the files of a VMDK image. Programs
// take any text for one whose first line after comments gives the version.
func vmdkDescriptor(head, _ []byte) bool {
	for len(head) > 0 {
		line, rest, _ := bytes.Cut(head, []byte("\n"))
		line = bytes.ToLower(bytes.TrimSpace(line))
		switch {
		case bytes.HasPrefix(line, []byte("# disk descriptorfile")):
			return true
		case len(line) > 0 && line[0] != '#':
			return bytes.HasPrefix(line, []byte("version="))
		}
		head = rest
	}
	return false
}

// vhd tells a VHD image by its footer, which a dynamic one has at both ends. An
// old one's is a byte shorter.
func vhd(head, tail []byte) bool {
	cookie := []byte("conectix")
	return bytes.HasPrefix(head, cookie) || bytes.HasPrefix(tail, cookie) || len(tail) > 1 && bytes.HasPrefix(tail[1:], cookie)
}

func both(a, b func(head, tail []byte) bool) func(head, tail []byte) bool {
	return func(head, tail []byte) bool { return a(head, tail) && b(head, tail) }
}

// text wants the bytes from one offset up to another to be a text with zeros
// behind it.
func text(from, to int) func(head, tail []byte) bool {
	return func(head, _ []byte) bool {
		return len(head) >= to && printable(bytes.TrimRight(head[from:to], "\x00"))
	}
}

// gzipMagic wants no flag that RFC 1952 reserves.
func gzipMagic(head, _ []byte) bool {
	return begins(head, "\x1f\x8b\x08") && (len(head) < 4 || head[3]&0xe0 == 0)
}

// bzip2Magic wants a stream's header, with any size of blocks, and behind it a
// block's or the end's.
func bzip2Magic(head, _ []byte) bool {
	return begins(head, "BZh") && (len(head) < 6 || begins(head[4:], "1AY&SY") || begins(head[4:], "\x17\x72\x45\x38\x50\x90"))
}

// begins wants a magic, or as much of it as a file that ends within it has.
func begins(head []byte, magic string) bool {
	return len(head) >= 2 && string(head[:min(len(head), len(magic))]) == magic[:min(len(head), len(magic))]
}

// lzmaAlone tells .lzma files, which have no magic, as xz does: the usual
// properties, a dictionary of 2^n or 2^n+2^(n-1) bytes, a length that is unknown
// or less than 256 TiB, and the zero that a range coder begins with.
func lzmaAlone(head, _ []byte) bool {
	if len(head) < 14 || head[0] != 0x5d || head[13] != 0 {
		return false
	}
	dictionary, length := binary.LittleEndian.Uint32(head[1:]), binary.LittleEndian.Uint64(head[5:])
	top := uint32(1) << (max(bits.Len32(dictionary), 1) - 1)
	return dictionary >= 1<<12 && (dictionary == top || dictionary == top+top/2) && (length == 1<<64-1 || length < 1<<48)
}

// udf tells a volume of UDF without ISO 9660: its volume recognition sequence
// (ECMA-167, part 2) begins at 32 KiB.
func udf(head, _ []byte) bool {
	return at(0x8000, "\x00BEA01\x01")(head, nil)
}

// zfsStream tells the first record of a send stream in either byte order.
func zfsStream(head, _ []byte) bool {
	const magic = 0x2_f5ba_cbac
	return len(head) >= 16 && (binary.LittleEndian.Uint64(head[8:]) == magic || binary.BigEndian.Uint64(head[8:]) == magic)
}

// tarHeader tells tar of all kinds by the checksum of its first header, and by
// the magic of POSIX.
func tarHeader(head, _ []byte) bool {
	if at(257, "ustar\x0000")(head, nil) || at(257, "ustar  \x00")(head, nil) {
		return true
	}
	if len(head) < 512 || head[0] == 0 {
		return false
	}
	want, err := strconv.ParseUint(strings.Trim(string(head[148:156]), " \x00"), 8, 32)
	sum := uint64(8 * ' ')
	for i, b := range head[:512] {
		if i < 148 || i >= 156 {
			sum += uint64(b)
		}
	}
	return err == nil && sum == want
}

// Of dump(8), from its protocols/dumprestore.h: a record of 1 KiB begins with its
// type, has the magic of a format at 24, and all of its 32 bit words add up to a
// constant.
const (
	dumpTape     = 1 // type of the first record
	dumpMagicOld = 60011
	dumpMagicNew = 60012
	dumpMagicUFS = 0x1954_0119 // of FreeBSD, for UFS2
	dumpSum      = 84446
)

func dumpRecord(head, _ []byte) bool {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		if len(head) < 1024 || order.Uint32(head) != dumpTape {
			continue
		}
		sum := uint32(0)
		for i := 0; i < 1024; i += 4 {
			sum += order.Uint32(head[i:])
		}
		magic := order.Uint32(head[24:])
		if sum == dumpSum && (magic == dumpMagicOld || magic == dumpMagicNew || magic == dumpMagicUFS) {
			return true
		}
	}
	return false
}

// cpio wants a whole header of digits behind the magic of an ASCII format.
func cpio(head, _ []byte) bool {
	digits, length := "0123456789abcdefABCDEF", 110
	switch {
	case len(head) < 110:
		return false
	case at(0, "070707")(head, nil):
		digits, length = "01234567", 76
	case !at(0, "070701")(head, nil) && !at(0, "070702")(head, nil):
		return false
	}
	return len(bytes.Trim(head[:length], digits)) == 0
}

// elf wants class, byte order and version that exist.
func elf(head, _ []byte) bool {
	return len(head) >= 7 && string(head[:4]) == "\x7fELF" && head[4]-1 < 2 && head[5]-1 < 2 && head[6] == 1
}

// portableExecutable wants the second header of a program where the first one
// says. The letters MZ alone are nothing.
func portableExecutable(head, _ []byte) bool {
	if len(head) < 0x40 || string(head[:2]) != "MZ" {
		return false
	}
	offset := binary.LittleEndian.Uint32(head[0x3c:])
	return offset >= 0x40 && offset < headLimit && at(int(offset), "PE\x00\x00")(head, nil)
}

// script wants a first line that names an interpreter by its path.
func script(head, _ []byte) bool {
	line, _, whole := bytes.Cut(head[:min(len(head), 256)], []byte("\n"))
	path, found := bytes.CutPrefix(line, []byte("#!"))
	return whole && found && bytes.HasPrefix(bytes.TrimLeft(path, " "), []byte("/")) && printable(path)
}

// markup tells a text by how it begins, behind space and a byte order mark.
func markup(beginnings ...string) func(head, tail []byte) bool {
	return func(head, _ []byte) bool {
		text := bytes.ToLower(bytes.TrimLeft(head[:min(len(head), 1024)], " \t\r\n\xef\xbb\xbf"))
		return slices.ContainsFunc(beginnings, func(b string) bool { return bytes.HasPrefix(text, []byte(b)) })
	}
}

// shortText tells a file that is nothing but text, and shorter than any disk
// with a system.
func shortText(head, _ []byte) bool {
	return len(head) < headLimit && len(bytes.TrimSpace(head)) > 0 && utf8.Valid(head) && printable(head)
}

// printable wants no control character but those that texts have.
func printable(b []byte) bool {
	return !bytes.ContainsFunc(b, func(r rune) bool {
		return r < ' ' && !strings.ContainsRune("\t\n\r\f\x1b", r) || r == 0x7f
	})
}
