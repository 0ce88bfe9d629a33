// Package deploy writes a disk image to a disk so that the disk shows nothing
// of it before all of it was read, decoded and written.
//
// What belongs into the first MiB of the disk, which makes it bootable, and into
// the last, where a GPT has its copy, is held in memory; the disk has zeros there
// until the caller, who may have more to verify, commits. What fails before
// leaves a disk that shows neither the old system nor the new one.
//
// Zeros are written as such: no hole of the image is skipped in the hope that
// the disk reads as zeros there.
//
// Left out: partition tables and filesystems, and everything that changes the
// image's content.
package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"ganeti-instance-image/internal/image"
	"ganeti-instance-image/internal/size"
)

// held is how much at either end is written last.
const held = size.MiB

// Target is the disk that is written.
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

// DiskError is an error that is the disk's and not the image's: it cannot be
// read, written or zeroed, or it is too small.
type DiskError struct{ Err error }

func (e *DiskError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *DiskError) Unwrap() error { return e.Err }

// onDisk marks an error of the disk.
func onDisk(err error) error {
	if err == nil {
		return nil
	}
	return &DiskError{err}
}

// Written is an image on a disk whose two ends are held in memory yet.
type Written struct {
	disk Target
	size size.Bytes
	held []part
}

// part is a piece of the image that is held in memory.
type part struct {
	off  size.Bytes
	data []byte
}

// Write writes the image to the disk, all but what belongs into the first and
// the last MiB of the disk, and returns when that is on stable storage. What lies
// behind the image loses its first MiB and, at the disk's end, the last, of a
// regular file everything.
//
// An image that is larger than the disk is refused before anything is written.
// After any other error the disk's ends are zeros or what they were. When ctx
// is cancelled the error is its cause.
func Write(ctx context.Context, img image.Image, disk Target) (*Written, error) {
	if err := Fits(img, disk); err != nil {
		return nil, err
	}
	held, err := hold(img, disk)
	if err != nil {
		return nil, err
	}
	w := newWriter("image "+img.Path(), max(minChunk, img.BlockSize()), disk)
	return w.run(ctx, img, func(ctx context.Context) (*Written, error) {
		return &Written{disk, img.Size(), held}, w.write(ctx, img, held[0].end(), held[1].off)
	})
}

// WriteStream is Write for an image that is unpacked while it is written. How
// large it is may show on the way only: one that turns out to be larger than the
// disk ends there, with the ends of the disk zeros.
func WriteStream(ctx context.Context, s *image.Stream, disk Target) (*Written, error) {
	if err := FitsStream(s, disk); err != nil {
		return nil, err
	}
	w := newWriter("image "+s.Path(), minChunk, disk)
	return w.run(ctx, s, func(ctx context.Context) (*Written, error) { return w.unpack(ctx, s) })
}

// run clears the disk, has the middle of an image written, and clears what is
// behind it.
func (w *writer) run(ctx context.Context, img image.Source, write func(context.Context) (*Written, error)) (*Written, error) {
	for _, note := range img.Notes() {
		slog.Warn(note, "image", filepath.Base(img.Path()))
	}
	if err := Wipe(w.disk); err != nil {
		return nil, err
	}
	start := time.Now()
	written, err := write(ctx)
	if err != nil {
		return nil, err
	}
	if err := w.finish(written); err != nil {
		return nil, err
	}
	slog.Info("wrote image", "image", filepath.Base(img.Path()), "format", img.Format(), "size", written.size,
		"written", size.Bytes(w.written.Load()), "zeroed", size.Bytes(w.zeroed.Load()), "took", time.Since(start).Round(time.Millisecond))
	return written, nil
}

// finish clears what is behind an image, and returns when all of it is stored.
func (w *writer) finish(written *Written) error {
	if err := clearBehind(w.disk, written.size); err != nil {
		return err
	}
	return flush(w.disk)
}

// Fits refuses an image that is larger than the disk.
func Fits(img image.Image, disk Target) error {
	if img.Size() <= disk.Size() {
		return nil
	}
	return tooLarge("image "+img.Path(), img.Size(), disk)
}

// FitsStream refuses a stream that is known to be larger than the disk.
func FitsStream(s *image.Stream, disk Target) error {
	if n, known := s.Size(); known && n > disk.Size() {
		return tooLarge("image "+s.Path(), n, disk)
	}
	return nil
}

func tooLarge(what string, n size.Bytes, disk Target) error {
	return onDisk(fmt.Errorf("cannot deploy %s: it needs %s (%d bytes), the disk has %s (%d bytes)",
		what, n, int64(n), disk.Size(), int64(disk.Size())))
}

// CheckEnds reads the image's ends, so that one that is damaged there is found
// while the disk is as it was.
func CheckEnds(img image.Image) error {
	b := make([]byte, min(held, img.Size()))
	for _, off := range []size.Bytes{0, img.Size() - size.Bytes(len(b))} {
		if _, err := img.ReadAt(b, int64(off)); err != nil {
			return err
		}
	}
	return nil
}

// Wipe makes a disk unusable: its first MiB and its last, where a partition
// table has its copies, become zeros on stable storage.
func Wipe(disk Target) error {
	var failed error // one end that stays must not keep the other
	for _, p := range ends(disk, disk.Size()) {
		if err := disk.Zero(p.off, size.Bytes(len(p.data))); err != nil {
			failed = errors.Join(failed, onDisk(err))
		}
	}
	return errors.Join(failed, flush(disk))
}

// ends are the first MiB of the disk and the last, as far as an image of n bytes
// reaches into them.
func ends(disk Target, n size.Bytes) []part {
	first := min(held, n)
	last := min(max(disk.Size()-held, first), n)
	return []part{{0, make([]byte, first)}, {last, make([]byte, n-last)}}
}

// hold reads what belongs into the ends of the disk.
func hold(img image.Image, disk Target) ([]part, error) {
	held := ends(disk, img.Size())
	for _, p := range held {
		if len(p.data) == 0 {
			continue
		}
		if _, err := img.ReadAt(p.data, int64(p.off)); err != nil {
			return nil, err
		}
	}
	return held, nil
}

func (p part) end() size.Bytes { return p.off + size.Bytes(len(p.data)) }

// Size is the length of the image.
func (w *Written) Size() size.Bytes { return w.size }

// ReadAt reads the image as the disk will have it.
func (w *Written) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || size.Bytes(off) >= w.size {
		return 0, io.EOF
	}
	want := int(min(int64(len(p)), int64(w.size)-off))
	if n, err := w.disk.ReadAt(p[:want], off); err != nil {
		return n, onDisk(fmt.Errorf("cannot read the disk at offset %d: %w", off, err))
	}
	for _, h := range w.held {
		from, to := max(size.Bytes(off), h.off), min(size.Bytes(off)+size.Bytes(want), h.end())
		if from < to {
			copy(p[from-size.Bytes(off):], h.data[from-h.off:to-h.off])
		}
	}
	if want < len(p) {
		return want, io.EOF
	}
	return want, nil
}

// Commit writes the ends of the image, the first one last: now the disk shows
// the system. It may be called once.
func (w *Written) Commit() error {
	for _, p := range slices.Backward(w.held) {
		if len(p.data) == 0 {
			continue
		}
		if _, err := w.disk.WriteAt(p.data, int64(p.off)); err != nil {
			return onDisk(fmt.Errorf("cannot write the disk at offset %d: %w", int64(p.off), err))
		}
		if err := flush(w.disk); err != nil {
			return err
		}
	}
	return nil
}

// clearBehind removes old content behind the image.
func clearBehind(disk Target, end size.Bytes) error {
	until := min(end+held, disk.Size())
	if f, ok := disk.(fileTarget); ok && f.IsFile() {
		until = disk.Size()
	}
	if until == end {
		return nil
	}
	return onDisk(disk.Zero(end, until-end))
}

func flush(disk Target) error {
	if err := disk.Sync(); err != nil {
		return onDisk(fmt.Errorf("cannot flush the disk: %w", err))
	}
	return nil
}
