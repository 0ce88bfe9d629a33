package filesystem

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"

	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/size"
)

// makers lists the kinds that Make makes, with the commands: the first that the
// node's program takes is used. What a guest reads must not depend on the node's
// age: ext4 goes without the features that kernels and boot loaders of living
// distributions do not know, XFS without those that need a kernel of 2020.
var makers = map[Kind][][]string{
	Ext2: {{"mkfs.ext2", "-q", "-F"}},
	Ext3: {{"mkfs.ext3", "-q", "-F"}},
	Ext4: {
		{"mkfs.ext4", "-q", "-F", "-O", "^metadata_csum_seed,^orphan_file"},
		{"mkfs.ext4", "-q", "-F"}, // of a node too old to know the two
	},
	XFS: {
		// xfsprogs has files of old features, but Debian 12's ask for what its mkfs.xfs does not know.
		{"mkfs.xfs", "-q", "-f", "-m", "bigtime=0,inobtcount=0", "-i", "nrext64=0"},
		{"mkfs.xfs", "-q", "-f", "-m", "bigtime=0,inobtcount=0"},
		{"mkfs.xfs", "-q", "-f"},
	},
	Btrfs: {{"mkfs.btrfs", "-q", "-f"}},
	Swap:  {{"mkswap", "-f"}},
}

// Maker is the program that Make needs for a kind; it is empty for a kind that
// it does not make.
func (k Kind) Maker() string {
	if makers[k] == nil {
		return ""
	}
	return makers[k][0][0]
}

// Make makes a file system, or swap space, that fills dev, and returns what is
// there now. What dev held is lost.
func Make(ctx context.Context, dev string, kind Kind) (Info, error) {
	var first error
	for _, argv := range makers[kind] {
		cmd := run.Cmd{What: fmt.Sprintf("make %s on %s", kind, dev), Argv: append(slices.Clone(argv), dev)}
		_, err := cmd.Run(ctx)
		if err == nil {
			return probeDevice(dev)
		}
		first = cmp.Or(first, err)
	}
	if first == nil {
		first = fmt.Errorf("cannot make a file system of the kind %q on %s: want one of ext2, ext3, ext4, xfs, btrfs, swap", kind, dev)
	}
	return Info{}, first
}

// Least is the length of the shortest device on which Make makes the kind.
func (k Kind) Least() size.Bytes {
	switch k {
	case XFS:
		return 300 * size.MiB
	case Btrfs:
		return 128 * size.MiB
	}
	return size.MiB
}

func probeDevice(dev string) (Info, error) {
	f, err := os.Open(dev)
	if err != nil {
		return Info{}, fmt.Errorf("cannot look at what was made: %w", err)
	}
	defer f.Close()
	end, err := f.Seek(0, 2)
	if err != nil {
		return Info{}, fmt.Errorf("cannot look at what was made: %w", err)
	}
	return Probe(f, size.Bytes(end))
}
