package capture

import (
	"encoding/binary"
	"log/slog"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/mount"
)

// The ioctls BTRFS_IOC_TREE_SEARCH and BTRFS_IOC_INO_LOOKUP of linux/btrfs.h, on
// all machines where a size is in the bits from 16 on, and numbers of
// linux/btrfs_tree.h.
const (
	treeSearch = 0xD0009411
	inoLookup  = 0xD0009412

	rootTree    = 1   // has the subvolumes
	rootBackref = 144 // says where one is; the first is 256
	firstFree   = 256
	searchKey   = 104 // the length of what is asked; found items follow
	itemHeader  = 32
)

// warnOfSubvolumes tells of subvolumes that are not mounted by themselves: what is
// taken from the guest's files stays in snapshots of them.
func warnOfSubvolumes(tree *mount.Tree) {
	mounted, all := map[*mount.Part][]uint64{}, map[*mount.Part][]uint64{}
	for _, m := range tree.Mounts() {
		if m.Part.Info.Kind != filesystem.Btrfs {
			continue
		}
		dir, err := tree.Root.OpenDir(m.At)
		if err != nil {
			continue
		}
		all[m.Part] = subvolumes(dir)
		mounted[m.Part] = append(mounted[m.Part], subvolumeOf(dir))
		dir.Close()
	}
	for part, ids := range all {
		others := slices.DeleteFunc(ids, func(id uint64) bool { return slices.Contains(mounted[part], id) })
		if len(others) > 0 {
			slog.Warn("the btrfs has subvolumes that the guest's fstab does not mount: a snapshot among them keeps what is taken away, and is in an image of the disk; remove old snapshots before",
				"partition", part.Number, "at least", len(others))
		}
	}
}

// subvolumes are the numbers of a btrfs' subvolumes, as many as the kernel tells
// at once.
func subvolumes(dir *os.File) (ids []uint64) {
	var b [4096]byte
	le := binary.NativeEndian
	le.PutUint64(b[0:], rootTree)
	for i, v := range []uint64{firstFree, ^uint64(0), 0, ^uint64(0), 0, ^uint64(0)} { // from and to: object, offset, transaction
		le.PutUint64(b[8+8*i:], v)
	}
	le.PutUint32(b[56:], rootBackref)
	le.PutUint32(b[60:], rootBackref)
	le.PutUint32(b[64:], uint32(len(b)))
	if !btrfsAsk(dir, treeSearch, &b) {
		return nil
	}
	found := le.Uint32(b[64:])
	for at := searchKey; found > 0 && at+itemHeader <= len(b); found-- {
		if id := le.Uint64(b[at+8:]); le.Uint32(b[at+24:]) == rootBackref && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
		length := le.Uint32(b[at+28:])
		if length > uint32(len(b)) {
			break
		}
		at += itemHeader + int(length)
	}
	return ids
}

// subvolumeOf is the number of the one that a directory is in.
func subvolumeOf(dir *os.File) uint64 {
	var b [4096]byte
	binary.NativeEndian.PutUint64(b[8:], firstFree) // the directory at its top
	if !btrfsAsk(dir, inoLookup, &b) {
		return 0
	}
	return binary.NativeEndian.Uint64(b[:])
}

func btrfsAsk(dir *os.File, what uintptr, b *[4096]byte) bool {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), what, uintptr(unsafe.Pointer(b)))
	return errno == 0
}
