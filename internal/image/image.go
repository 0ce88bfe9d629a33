// Package image is the gate that every disk image passes, and the readers of
// what is let through: raw, raw compressed with gzip, xz, zstd, bzip2 or lz4, and
// qcow2.
//
// What an image is, is decided here and from its bytes; no other program is
// asked and nothing outside the file is opened. A raw image is raw whatever its
// bytes say. A qcow2 image is checked whole, header and tables, before Open
// returns it, so that a damaged or hostile one is refused while the disk is
// still untouched. Of a compressed image the first MiB and all that frames it is
// checked then; what is wrong further on shows when it is read, and before its
// end.
//
// A disk is also written as qcow2 (PlanQCOW2), and a qcow2 image that comes as a
// stream is decoded while it comes (ReceiveQCOW2), by the same gate.
//
// Left out: backing files, external data files, encryption, internal snapshots
// (the active state is what is read), refcounts (reading does not need them), and
// all that other hypervisors write. Of compressed images: other formats inside
// than raw, dictionaries, windows over 128 MiB, the legacy frames of lz4 (they do
// not show where they are cut off), the filters of xz for ARM64 and RISC-V, lzma,
// lzip, lzop, lrzip and compress. A fixed VHD inside of them is not recognised,
// since only its end tells, and is written with its footer.
//
// Not refused, since a disk may begin so: a squashfs or any other file system,
// which a guest can boot with a kernel from outside, and the letters MZ alone.
package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"ganeti-instance-image/internal/size"
)

// Format is how an image's file is organised.
type Format string

// The formats that are read.
const (
	Raw   Format = "raw"
	QCOW2 Format = "qcow2"
)

// The image types a site can name, as the setting IMAGE_TYPE has them.
const (
	TypeRaw   = "raw"   // raw, whatever the first bytes say; compressed or not by content
	TypeQCOW2 = "qcow2" // qcow2 and nothing else
	TypeQEMU  = "qemu"  // qcow2, raw or compressed raw by content; any other format is refused by name
)

// The image types that are archives of a guest's files. Detect tells them; Open
// does not open them.
const (
	TypeTarball = "tarball" // tar, also compressed
	TypeDump    = "dump"    // dump(8), also compressed
)

// sector is what every disk's size is a multiple of.
const sector size.Bytes = 512

// Extent is a stretch of the disk that an image describes.
type Extent struct {
	Offset, Length size.Bytes
	Zero           bool // it reads as zeros; where false it may still do so
}

// Source is an image that passed the gate: an Image, which can be read anywhere,
// or a *Stream, which cannot.
type Source interface {
	// Path is the file the image was opened from.
	Path() string
	// Format is how the file is organised.
	Format() Format
	// Notes are the sentences someone who deploys the image should see.
	Notes() []string
	io.Closer
}

// Image is an open disk image. Its methods, except Close, are safe for
// concurrent use.
type Image interface {
	Source
	// Size is the length of the disk the image describes: more than 0, and a
	// multiple of 512.
	Size() size.Bytes
	// BlockSize is the unit in which the image is stored. Aligned reads of a
	// multiple of it read and decode nothing twice.
	BlockSize() size.Bytes
	// Extent describes the disk from off on, for at least one byte. Two extents
	// that follow each other can be of the same kind. Its error at or behind the
	// end is io.EOF.
	Extent(off size.Bytes) (Extent, error)
	// ReadAt reads the disk as an io.ReaderAt. Its errors name the offset on the
	// disk.
	ReadAt(p []byte, off int64) (int, error)
}

// Open opens the image in the regular file path. imageType is TypeRaw,
// TypeQCOW2 or TypeQEMU. The result is an Image or a *Stream. The error says why
// the image is refused and what can be done about it.
func Open(path string, imageType string) (Source, error) {
	f, n, err := openRegular(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open image: %w", err)
	}
	img, err := open(f, n, path, imageType)
	if err != nil {
		return nil, errors.Join(refused(path, err), f.Close())
	}
	return img, nil
}

var (
	errEmpty = errors.New("the file is empty")
	errShort = fmt.Errorf("it is too short to be a disk image, which has at least %d bytes", int64(sector))
)

func refused(path string, err error) error {
	return fmt.Errorf("cannot use image %s: %w", path, err)
}

func open(f *os.File, n size.Bytes, path, imageType string) (Source, error) {
	switch imageType {
	case TypeRaw, TypeQCOW2, TypeQEMU:
	default:
		return nil, fmt.Errorf("image type %q is not one of %s, %s, %s", imageType, TypeQCOW2, TypeRaw, TypeQEMU)
	}
	if n == 0 {
		return nil, errEmpty
	}
	k, err := recognise(f, n)
	switch {
	case err != nil:
		return nil, err
	case k != nil && k.packed != nil:
		return openPacked(f, n, path, imageType, k.packed)
	case imageType == TypeRaw && (k == nil || !k.packer):
		return newRaw(f, n, path)
	case k == qcow2Kind:
		return newQCOW2(f, n, path)
	case k != nil:
		return nil, k.refusal()
	case imageType == TypeQCOW2:
		return nil, errors.New("it is not a qcow2 image: if it is a raw one, use the image type raw")
	}
	return newRaw(f, n, path)
}

// openPacked opens a compressed image, which must have a raw disk inside.
func openPacked(f *os.File, n size.Bytes, path, imageType string, c *compression) (Source, error) {
	s, err := openStream(f, n, path, c)
	if err != nil {
		return nil, err
	}
	if imageType != TypeRaw {
		if err := c.refuse(recogniseHead(s.head)); err != nil {
			return nil, err
		}
	}
	if size.Bytes(len(s.head)) < sector {
		return nil, errShort
	}
	if imageType == TypeQCOW2 {
		return nil, fmt.Errorf("it is no qcow2 image, it is compressed with %s: if a raw image is inside, use the image type raw", c.name)
	}
	return s, nil
}

// refuse says why what was found inside compressed data is no raw disk.
func (c *compression) refuse(k *kind) error {
	switch k {
	case nil:
		return nil
	case qcow2Kind:
		return fmt.Errorf("it is %s compressed with %s: unpack it with `%s`", k.name, c.name, c.command)
	}
	advice := k.advice
	if k.packed != nil {
		advice = "only what is compressed once is read"
	}
	return fmt.Errorf("it is %s, and that compressed with %s (`%s` unpacks it): %s", k.name, c.name, c.command, advice)
}

// Detect tells by its content which image type the regular file path is:
// TypeQCOW2, TypeQEMU for a raw or compressed raw disk, TypeTarball or TypeDump.
// Anything else is an error as from Open.
func Detect(path string) (imageType string, err error) {
	f, n, err := openRegular(path)
	if err != nil {
		return "", fmt.Errorf("cannot open image: %w", err)
	}
	defer f.Close()
	if imageType, err = detect(f, n, path); err != nil {
		return "", refused(path, err)
	}
	return imageType, nil
}

func detect(f *os.File, n size.Bytes, path string) (string, error) {
	if n == 0 {
		return "", errEmpty
	}
	k, err := recognise(f, n)
	switch {
	case err != nil:
		return "", err
	case k == nil && n < sector:
		return "", errShort
	case k == nil:
		return TypeQEMU, nil
	case k == qcow2Kind:
		return TypeQCOW2, nil
	case k.archive != "":
		return k.archive, nil
	case k.packed == nil:
		return "", k.refusal()
	}
	s, err := openStream(f, n, path, k.packed)
	if err != nil {
		return "", err
	}
	inside := recogniseHead(s.head)
	switch {
	case inside != nil && inside.archive != "":
		return inside.archive, nil
	case inside == nil && size.Bytes(len(s.head)) < sector:
		return "", errShort
	}
	return TypeQEMU, k.packed.refuse(inside)
}

// openRegular opens path, which must lead to a regular file, without ever
// waiting for the other end of a FIFO.
func openRegular(path string) (*os.File, size.Bytes, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file (%s)", path, info.Mode().Type())
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, size.Bytes(info.Size()), nil
}
