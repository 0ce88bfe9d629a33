package filesystem

import "ganeti-instance-image/internal/size"

// RAIDMark begins the superblock of Linux' software RAID, see md(4).
const RAIDMark = "\xfc\x4e\x2b\xa9"

// RAIDEnds are where versions 1.0 and 0.90 of that superblock have it, at the end
// of what is length bytes long; they may lie before its beginning.
func RAIDEnds(length size.Bytes) [2]size.Bytes {
	return [2]size.Bytes{(length - 8*size.KiB).AlignDown(4 * size.KiB), length.AlignDown(64*size.KiB) - 64*size.KiB}
}
