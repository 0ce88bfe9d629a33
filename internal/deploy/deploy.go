// Package deploy writes a disk image to a disk so that the disk shows nothing
// of it before all of it was read, decoded and written.
//
// The first MiB of the image, which makes a disk bootable, and the last, where
// a GPT has its copy, are held in memory; the disk has zeros there until the
// caller, who may have more to verify, commits. What fails before leaves a disk
// that shows neither the old system nor the new one.
//
// Zeros are written as such: no hole of the image is skipped in the hope that
// the disk reads as zeros there.
//
// Left out: partition tables and filesystems, and everything that changes the
// image's content.
package deploy

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"time"

	"ganeti-instance-image/internal/image"
	"ganeti-instance-image/internal/size"
)

// held is how much at either end is written last.
const held = size.MiB

// Target is the disk that is written. Offsets and lengths are multiples of 512.
type Target interface {
	io.ReaderAt
	io.WriterAt
	Size() size.Bytes
	// Zero makes n bytes from off on read as zeros. Its errors name the disk.
	Zero(off, n size.Bytes) error
	// Sync returns when all that was written is on stable storage.
	Sync() error
}

// fileTarget is a Target that may be a regular file, where zeros to any length
// cost nothing.
type fileTarget interface{ IsFile() bool }

// writebackStarter is a Target that can begin to store what was written, so that
// Sync has less left to wait for: decoding and the disk work at the same time.
type writebackStarter interface{ StartWriteback(off, n size.Bytes) }

// part is a piece of the image that is held in memory.
type part struct {
	off  size.Bytes
	data []byte
}

// Write writes the image to the disk, all but its first and its last MiB, and
// returns when that is on stable storage. commit writes these, the first one
// last; it may be called once. What lies behind the image loses the first MiB
// and, at the disk's end, the last, a regular file everything.
//
// An image that is larger than the disk is refused before anything is written.
// After any other error the disk's ends are zeros or what they were. When ctx
// is cancelled the error is its cause.
func Write(ctx context.Context, img image.Image, disk Target) (commit func() error, err error) {
	if err := Fits(img, disk); err != nil {
		return nil, err
	}
	for _, note := range img.Notes() {
		slog.Warn(note, "image", filepath.Base(img.Path()))
	}
	head, tail, err := hold(img)
	if err != nil {
		return nil, err
	}
	if err := Wipe(disk); err != nil {
		return nil, err
	}
	start := time.Now()
	w := newWriter(img, disk)
	if err := w.write(ctx, head.end(), tail.off); err != nil {
		return nil, err
	}
	if err := clearRest(disk, tail.off, img.Size()); err != nil {
		return nil, err
	}
	if err := flush(disk); err != nil {
		return nil, err
	}
	slog.Info("wrote image", "image", filepath.Base(img.Path()), "format", img.Format(), "size", img.Size(),
		"written", size.Bytes(w.written.Load()), "zeroed", size.Bytes(w.zeroed.Load()), "took", time.Since(start).Round(time.Millisecond))
	commit = func() error {
		if err := tail.write(disk); err != nil {
			return err
		}
		return head.write(disk)
	}
	return commit, nil
}

// Fits refuses an image that is larger than the disk.
func Fits(img image.Image, disk Target) error {
	if img.Size() <= disk.Size() {
		return nil
	}
	return fmt.Errorf("cannot deploy image %s: it needs %s (%d bytes), the disk has %s (%d bytes)",
		img.Path(), img.Size(), int64(img.Size()), disk.Size(), int64(disk.Size()))
}

// CheckEnds reads what Write will hold back, so that an image that is damaged
// there is found while the disk is as it was.
func CheckEnds(img image.Image) error {
	_, _, err := hold(img)
	return err
}

// Wipe makes a disk unusable: its first MiB and its last, where a partition
// table has its copies, become zeros on stable storage.
func Wipe(disk Target) error {
	n := min(held, disk.Size())
	for _, off := range []size.Bytes{0, disk.Size() - n} {
		if err := disk.Zero(off, n); err != nil {
			return err
		}
	}
	return flush(disk)
}

// hold reads both ends of the image; of a short one all is in head.
func hold(img image.Image) (head, tail *part, err error) {
	headEnd := min(held, img.Size())
	tailOff := max(img.Size()-held, headEnd)
	head = &part{off: 0, data: make([]byte, headEnd)}
	tail = &part{off: tailOff, data: make([]byte, img.Size()-tailOff)}
	for _, p := range []*part{head, tail} {
		if len(p.data) == 0 {
			continue
		}
		if _, err := img.ReadAt(p.data, int64(p.off)); err != nil {
			return nil, nil, err
		}
	}
	return head, tail, nil
}

func (p *part) end() size.Bytes { return p.off + size.Bytes(len(p.data)) }

// write puts a held part on the disk.
func (p *part) write(disk Target) error {
	if len(p.data) == 0 {
		return nil
	}
	if _, err := disk.WriteAt(p.data, int64(p.off)); err != nil {
		return fmt.Errorf("cannot write the disk at offset %d: %w", int64(p.off), err)
	}
	return flush(disk)
}

// clearRest removes old content where the image's end will be and behind it.
func clearRest(disk Target, tail, end size.Bytes) error {
	until := min(end+held, disk.Size())
	if f, ok := disk.(fileTarget); ok && f.IsFile() {
		until = disk.Size()
	}
	if until == tail {
		return nil
	}
	return disk.Zero(tail, until-tail)
}

func flush(disk Target) error {
	if err := disk.Sync(); err != nil {
		return fmt.Errorf("cannot flush the disk: %w", err)
	}
	return nil
}
