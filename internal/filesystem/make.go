package filesystem

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/size"
)

// maker is how a kind is made.
type maker struct {
	command []string
	least   size.Bytes
	// features are options, of which the first that the node's program takes
	// are used. What a guest reads must not depend on the node's age.
	features [][]string
	// old are such options for a guest that may be as old as the image is:
	// what CentOS 7's kernel, boot loader and fsck know.
	old [][]string
}

// makers are the kinds that Make makes.
var makers = map[Kind]maker{
	Ext2: {command: []string{"mkfs.ext2", "-q", "-F"}, least: size.MiB},
	Ext3: {command: []string{"mkfs.ext3", "-q", "-F"}, least: size.MiB},
	Ext4: {command: []string{"mkfs.ext4", "-q", "-F"}, least: size.MiB,
		features: [][]string{{"-O", "^metadata_csum_seed,^orphan_file"}},
		old:      [][]string{{"-O", "^metadata_csum,^64bit,^metadata_csum_seed,^orphan_file"}, {"-O", "^metadata_csum,^64bit"}}},
	XFS: {command: []string{"mkfs.xfs", "-q", "-f"}, least: 300 * size.MiB,
		// xfsprogs has files of old features, but Debian 12's ask for what its mkfs.xfs does not know.
		features: [][]string{{"-m", "bigtime=0,inobtcount=0", "-i", "nrext64=0"}, {"-m", "bigtime=0,inobtcount=0"}},
		old: [][]string{
			{"-m", "bigtime=0,inobtcount=0,reflink=0,rmapbt=0", "-i", "nrext64=0,sparse=0"},
			{"-m", "bigtime=0,inobtcount=0,reflink=0,rmapbt=0", "-i", "sparse=0"},
			{"-m", "reflink=0,rmapbt=0", "-i", "sparse=0"}}},
	Btrfs: {command: []string{"mkfs.btrfs", "-q", "-f"}, least: 128 * size.MiB,
		old: [][]string{{"-O", "^free-space-tree,^block-group-tree"}, {"-O", "^free-space-tree"}, {"-R", "^free-space-tree"}}},
	Swap: {command: []string{"mkswap", "-f"}, least: size.MiB},
}

// Options are choices for a new file system.
type Options struct {
	// Old leaves out what the system in an image of unknown age may not read.
	Old bool
	// Features are arguments for mkfs, in place of ours.
	Features []string
}

// Maker is the program that Make needs for a kind; it is empty for a kind that
// it does not make.
func (k Kind) Maker() string {
	if len(makers[k].command) == 0 {
		return ""
	}
	return makers[k].command[0]
}

// Least is the length of the shortest device on which Make makes the kind.
func (k Kind) Least() size.Bytes { return cmp.Or(makers[k].least, size.MiB) }

// Make makes a file system, or swap space, that fills dev, and returns what is
// there now. What dev held is lost.
func Make(ctx context.Context, dev string, kind Kind, options Options) (Info, error) {
	m, ok := makers[kind]
	if !ok {
		return Info{}, fmt.Errorf("cannot make a file system of the kind %q on %s: want one of ext2, ext3, ext4, xfs, btrfs, swap", kind, dev)
	}
	var err error // of the last attempt, which asks for nothing that the program may not know
	for _, features := range m.attempts(options) {
		argv := slices.Concat(m.command, features, []string{dev})
		_, err = run.Cmd{What: fmt.Sprintf("make %s on %s", kind, dev), Argv: argv}.Run(ctx)
		if err == nil {
			return ProbeDevice(dev)
		}
		if ctx.Err() != nil {
			break
		}
		slog.Debug("mkfs is tried with other options", "cause", err)
	}
	return Info{}, err
}

// attempts are the features to try, at last those of a node too old to know
// what is to be left out.
func (m maker) attempts(options Options) [][]string {
	switch {
	case len(options.Features) > 0:
		return [][]string{options.Features}
	case options.Old:
		return append(slices.Clone(m.old), nil)
	}
	return append(slices.Clone(m.features), nil)
}

// ProbeDevice recognises what a device holds.
func ProbeDevice(dev string) (Info, error) {
	f, err := os.Open(dev)
	if err != nil {
		return Info{}, fmt.Errorf("cannot look at what is on a device: %w", err)
	}
	defer f.Close()
	end, err := f.Seek(0, 2)
	if err != nil {
		return Info{}, fmt.Errorf("cannot look at what is on a device: %w", err)
	}
	return Probe(f, size.Bytes(end))
}
