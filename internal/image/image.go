// Package image is the gate that every disk image passes, and the readers of
// the two formats that are let through: raw and qcow2.
//
// What an image is, is decided here and from its bytes; no other program is
// asked and nothing outside the file is opened. A raw image is raw whatever its
// bytes say. A qcow2 image is checked whole, header and tables, before Open
// returns it, so that a damaged or hostile one is refused while the disk is
// still untouched.
//
// Left out: backing files, external data files, encryption, internal snapshots
// (the active state is what is read), refcounts (reading does not need them),
// compressed raw images, and all that other hypervisors write.
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
	TypeRaw   = "raw"   // raw, whatever the first bytes say
	TypeQCOW2 = "qcow2" // qcow2 and nothing else
	TypeQEMU  = "qemu"  // qcow2 or raw by content; any other format is refused by name
)

// sector is what every disk's size is a multiple of.
const sector size.Bytes = 512

// Extent is a stretch of the disk that an image describes.
type Extent struct {
	Offset, Length size.Bytes
	Zero           bool // it reads as zeros; where false it may still do so
}

// Image is an open disk image. Its methods, except Close, are safe for
// concurrent use.
type Image interface {
	// Path is the file the image was opened from.
	Path() string
	// Format is how the file is organised.
	Format() Format
	// Size is the length of the disk the image describes: more than 0, and a
	// multiple of 512.
	Size() size.Bytes
	// BlockSize is the unit in which the image is stored. Aligned reads of a
	// multiple of it read and decode nothing twice.
	BlockSize() size.Bytes
	// Notes are the sentences someone who deploys the image should see.
	Notes() []string
	// Extent describes the disk from off on, for at least one byte. Two extents
	// that follow each other can be of the same kind. Its error at or behind the
	// end is io.EOF.
	Extent(off size.Bytes) (Extent, error)
	// ReadAt reads the disk as an io.ReaderAt. Its errors name the offset on the
	// disk.
	ReadAt(p []byte, off int64) (int, error)
	io.Closer
}

// Open opens the image in the regular file path. imageType is TypeRaw,
// TypeQCOW2 or TypeQEMU. The error says why the image is refused and what can
// be done about it.
func Open(path string, imageType string) (Image, error) {
	f, n, err := openRegular(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open image: %w", err)
	}
	img, err := open(f, n, path, imageType)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot use image %s: %w", path, err), f.Close())
	}
	return img, nil
}

func open(f *os.File, n size.Bytes, path, imageType string) (Image, error) {
	if n == 0 {
		return nil, errors.New("the file is empty")
	}
	switch imageType {
	case TypeRaw:
		return newRaw(f, n, path), nil
	case TypeQCOW2, TypeQEMU:
	default:
		return nil, fmt.Errorf("image type %q is not one of %s, %s, %s", imageType, TypeQCOW2, TypeRaw, TypeQEMU)
	}
	kind, err := recognise(f, n)
	switch {
	case err != nil:
		return nil, err
	case kind == qcow2Kind:
		return newQCOW2(f, n, path)
	case kind != nil:
		return nil, fmt.Errorf("it is %s: %s", kind.name, kind.advice)
	case imageType == TypeQCOW2:
		return nil, errors.New("it is not a qcow2 image: if it is a raw one, use the image type raw")
	}
	return newRaw(f, n, path), nil
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
