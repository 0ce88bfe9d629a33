package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"

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
}

const (
	convert    = "convert it with `qemu-img convert -O qcow2` first"
	unpack     = "compressed raw images are not supported yet: unpack it"
	notADisk   = "it is no disk image"
	installer  = "an installer or live CD is no installed system: use it with CDINSTALL=yes"
	extractDir = "an archive is no disk image: unpack it"
)

var qcow2Kind = &kind{name: "a qcow2 image", match: qcow2Magic}

// kinds are the formats that are recognised, the first match counts. Partition
// tables and filesystems are not among them: both are what raw disks hold.
var kinds = []*kind{
	qcow2Kind,
	{"a qcow image of version 1", convert, prefix("QFI\xfb\x00\x00\x00\x01")},
	{"a qcow2 image of an unknown version", "this program reads the versions 2 and 3", prefix("QFI\xfb")},
	{"a QED image", convert, prefix("QED\x00")},
	{"a VMDK image", convert, prefix("KDMV")},
	{"a VMDK image (ESX)", convert, prefix("COWD")},
	{"a VMDK image (SE sparse)", convert, prefix("\xbe\xba\xfe\xca\x00\x00\x00\x00")},
	{"a VMDK descriptor", convert + ", with the files it names", vmdkDescriptor},
	{"a VDI image", convert, at(0x40, "\x7f\x10\xda\xbe")},
	{"a VHDX image", convert, prefix("vhdxfile")},
	{"a VHD image", convert, vhd},
	{"a Parallels image", convert, prefix("WithoutFreeSpace")},
	{"a Parallels image", convert, prefix("WithouFreSpacExt")},
	{"a Bochs image", convert, prefix("Bochs Virtual HD Image")},
	{"an ASIF image", convert, prefix("shdw\x00\x00\x00\x01")},
	{"a DMG image", convert, func(_, tail []byte) bool { return bytes.HasPrefix(tail, []byte("koly")) }},
	{"a LUKS container", "encrypted images are not supported: decrypt it first", prefix("LUKS\xba\xbe")},
	{"an ISO 9660 image", installer, at(0x8001, "CD001")},
	{"compressed with gzip", unpack, prefix("\x1f\x8b\x08")},
	{"compressed with xz", unpack, prefix("\xfd7zXZ\x00")},
	{"compressed with zstd", unpack, prefix("\x28\xb5\x2f\xfd")},
	{"compressed with bzip2", unpack, bzip2},
	{"compressed with lz4", unpack, prefix("\x04\x22\x4d\x18")},
	{"compressed with lzop", unpack, prefix("\x89LZO\x00\r\n\x1a\n")},
	{"a zip archive", extractDir, prefix("PK\x03\x04")},
	{"a 7z archive", extractDir, prefix("7z\xbc\xaf\x27\x1c")},
	{"a tar archive", extractDir, at(257, "ustar")},
	{"a web page", notADisk + ": was an error page downloaded in its place?", webPage},
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
	for _, k := range kinds {
		if k.match(head, tail) {
			return k, nil
		}
	}
	return nil, nil
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

func bzip2(head, _ []byte) bool {
	return len(head) >= 10 && string(head[:3]) == "BZh" && string(head[4:10]) == "1AY&SY"
}

func webPage(head, _ []byte) bool {
	text := bytes.ToLower(bytes.TrimLeft(head[:min(len(head), 1024)], " \t\r\n\xef\xbb\xbf"))
	return bytes.HasPrefix(text, []byte("<!doctype html")) || bytes.HasPrefix(text, []byte("<html"))
}
