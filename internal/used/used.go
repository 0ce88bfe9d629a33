// Package used tells which parts of a disk or a file system hold something, so
// that what is free can be left out of a backup. It reads what the file system
// says of its own blocks, trusts nothing of it, and where it cannot be sure it
// says so: then everything counts as used.
//
// Left out: file systems that are mounted or need their journal replayed, whose
// bitmaps may be behind; and what kinds it does not know.
package used

import (
	"errors"

	"ganeti-instance-image/internal/size"
)

// Range is a part of a disk or file system that is used.
type Range struct {
	Start, Length size.Bytes // Length is above 0
}

// ErrUnsure is wrapped by the error for a file system of which it cannot be said
// what is free: a journal to be replayed, a feature that is not known, a
// structure that is not as it must be. All of it is then to be kept.
var ErrUnsure = errors.New("what is free cannot be told for sure")
