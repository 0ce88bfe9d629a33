package filesystem

import (
	"fmt"
	"io"

	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/used"
)

// NoReplayOptions lists what mount(2) needs to be told, besides MountOptions and
// to mount it read-only, to leave every byte of a filesystem of that kind as it
// is: each is a way, to be tried where the kernel does not know the one before.
func NoReplayOptions(kind Kind) [][]string {
	switch kind {
	case XFS:
		return [][]string{{"norecovery"}}
	case Ext3, Ext4:
		return [][]string{{"noload"}}
	case Btrfs: // the second one is that of kernels before 5.9
		return [][]string{{"rescue=nologreplay"}, {"nologreplay"}}
	}
	return [][]string{nil}
}

// Unreplayed tells why a filesystem, mounted without its journal, may show files
// as they never were: something waits in that to be replayed. Empty where
// nothing does.
func Unreplayed(r io.ReaderAt, n size.Bytes, kind Kind) string {
	field := make([]byte, 8)
	at := func(off int64) []byte {
		if read, err := r.ReadAt(field, off); read < len(field) && err != nil {
			return make([]byte, len(field))
		}
		return field
	}
	switch kind {
	case Ext3, Ext4:
		const recover = 0x4 // s_feature_incompat
		if le.Uint32(at(1024+96))&recover != 0 {
			return "its journal is not empty"
		}
	case Btrfs:
		if le.Uint64(at(64<<10+96)) != 0 { // log_root
			return "its log tree is not empty"
		}
	case XFS:
		if _, err := used.XFS(r, n); err != nil {
			return fmt.Sprintf("its log is not known to be empty: %v", err)
		}
	}
	return ""
}
