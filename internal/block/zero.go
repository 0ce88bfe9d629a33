package block

import (
	"errors"
	"fmt"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
)

// zeroer is one way to make a range of a disk read as zeros. It is given only
// offsets and lengths that are multiples of zeroUnit.
type zeroer struct {
	name string
	zero func(d *Device, off, n size.Bytes) error
}

const (
	zeroUnit  = 4096 // divides by all sector sizes
	zeroChunk = size.MiB
	maxBlock  = 1 << 30 // one ioctl's share, so that a signal is not kept waiting
)

// zeroersFor lists the ways for a kind of disk, the one that gives space back
// first, and one that cannot fail to be true last.
func zeroersFor(isFile bool) []zeroer {
	if isFile {
		return []zeroer{{"punching holes", punch}, {"writing zeros", writeZeros}}
	}
	return []zeroer{{"punching holes", punch}, {"BLKZEROOUT", zeroOut}, {"writing zeros", writeZeros}}
}

// Zero makes n bytes at off read as zeros, for good, and gives their space back
// where the disk can. It never changes the disk's length.
//
// A way to do so is believed only after it has been seen to turn other bytes
// into zeros on this very disk; one that fails, or lies, is not used again.
func (d *Device) Zero(off, n size.Bytes) error {
	if off < 0 || n < 0 || off > d.size-n {
		return fmt.Errorf("cannot zero %d bytes at %d of the disk %s: it ends at %d", int64(n), int64(off), d.path, int64(d.size))
	}
	from, to := off.AlignUp(zeroUnit), (off + n).AlignDown(zeroUnit)
	if from >= to {
		return d.zeroFailed(writeZeros(d, off, n))
	}
	return d.zeroFailed(errors.Join(
		writeZeros(d, off, from-off),
		d.zeroAligned(from, to-from),
		writeZeros(d, to, off+n-to)))
}

func (d *Device) zeroFailed(err error) error {
	if err != nil {
		return fmt.Errorf("cannot zero a part of the disk %s: %w", d.path, err)
	}
	return nil
}

// zeroAligned uses the best way that is left; each failure leaves one less.
func (d *Device) zeroAligned(off, n size.Bytes) error {
	for {
		way, only, done := d.nextZeroer(off, n)
		if done {
			return nil
		}
		if err := way.zero(d, off, n); err == nil || only {
			return err
		}
		d.distrust(way.name)
	}
}

// nextZeroer returns the way to use, and whether it is the last one left. The
// first use of a way is made here, under the lock, since it decides for all that
// come after; then done tells that the range is zero already.
func (d *Device) nextZeroer(off, n size.Bytes) (way zeroer, only, done bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for !d.proven && len(d.zeroers) > 1 {
		if d.prove(d.zeroers[0], off, n) == nil {
			d.proven = true
			return d.zeroers[0], false, true
		}
		d.zeroers = d.zeroers[1:]
	}
	return d.zeroers[0], len(d.zeroers) == 1, false
}

// distrust gives up a way that worked before and now failed.
func (d *Device) distrust(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.zeroers[0].name == name && len(d.zeroers) > 1 {
		d.zeroers, d.proven = d.zeroers[1:], false
	}
}

// prove zeroes a range whose beginning and end it fills with other bytes first,
// and reads them back.
func (d *Device) prove(way zeroer, off, n size.Bytes) error {
	sample := min(n, zeroChunk)
	pattern := make([]byte, sample)
	for i := range pattern {
		pattern[i] = 0xA5
	}
	for _, at := range []size.Bytes{off, off + n - sample} {
		if _, err := d.WriteAt(pattern, int64(at)); err != nil {
			return err
		}
	}
	if err := d.Sync(); err != nil {
		return err
	}
	if err := way.zero(d, off, n); err != nil {
		return err
	}
	for _, at := range []size.Bytes{off, off + n - sample} {
		if _, err := d.ReadAt(pattern, int64(at)); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		for _, b := range pattern {
			if b != 0 {
				return fmt.Errorf("%s left other bytes than zeros", way.name)
			}
		}
	}
	return nil
}

func punch(d *Device, off, n size.Bytes) error {
	return retry(func() error {
		return unix.Fallocate(int(d.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n))
	})
}

func zeroOut(d *Device, off, n size.Bytes) error {
	for n > 0 {
		part := min(n, maxBlock)
		span := [2]uint64{uint64(off), uint64(part)}
		err := retry(func() error {
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.file.Fd(), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&span)))
			if errno != 0 {
				return errno
			}
			return nil
		})
		if err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

var zeros [zeroChunk]byte

func writeZeros(d *Device, off, n size.Bytes) error {
	for n > 0 {
		part := min(n, zeroChunk)
		if _, err := d.WriteAt(zeros[:part], int64(off)); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}
