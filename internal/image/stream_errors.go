package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/klauspost/compress/zstd"

	"ganeti-instance-image/internal/size"
)

// reason is why this package itself refuses compressed data, in a whole sentence.
// What the libraries find wrong are errors of theirs, and need one around them.
type reason string

func (r reason) Error() string { return string(r) }

func reasonf(format string, a ...any) error { return reason(fmt.Sprintf(format, a...)) }

var (
	errVirtualSize = reasonf("its disk is larger than %s", maxVirtualSize)

	errBehind      = reasonf("something else follows the compressed data")
	errLimit       = reasonf("the first MiB of the disk takes more compressed data than any program writes for it")
	errMembers     = reasonf("the first MiB of the disk is in more than %d pieces", headMembers)
	errPadding     = reasonf("more than %s of padding follows it", size.Bytes(maxPadding))
	errEmptyBlocks = reasonf("more than %d blocks without content follow each other", maxEmptyBlocks)
	errSkipped     = reasonf("more than %s of it are frames to skip", size.Bytes(maxSkipped))
)

// unusable says what an error of reading or decoding means for the file.
func (c *compression) unusable(err error) error {
	var own reason
	var reading *fs.PathError
	switch {
	case errors.As(err, &own):
		return fmt.Errorf("its %s data cannot be used: %w", c.name, err)
	case errors.As(err, &reading):
		return fmt.Errorf("its %s data cannot be read: %w", c.name, err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("its %s data is cut off: fetch it again", c.name)
	case errors.Is(err, zstd.ErrCRCMismatch):
		err = fmt.Errorf("its checksum is wrong: %w", err)
	}
	return fmt.Errorf("its %s data is damaged (%w): fetch it again", c.name, err)
}
