package filesystem

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/undo"
)

// ErrLeftToGuest is wrapped by the error of Grow for a filesystem that was left
// as it is and is sound, but cannot be grown from here: by its kind, or because
// this node's kernel or tools are too old for it. The guest may still grow it.
var ErrLeftToGuest = errors.New("it is left to the guest")

// minGain is what is worth the check of a whole filesystem.
const minGain = 64 * size.KiB

// minBtrfs is the kernel's lower limit for a btrfs device that is resized.
const minBtrfs = 256 * size.MiB

// growers lists the kinds that Grow grows.
var growers = map[Kind]func(ctx context.Context, dev string, info Info, dir string) error{
	Ext2:  growExt,
	Ext3:  growExt,
	Ext4:  growExt,
	XFS:   growMounted,
	Btrfs: growMounted,
}

// Growable tells whether Grow can grow filesystems of that kind at all.
func (k Kind) Growable() bool { return growers[k] != nil }

// Tools lists the programs that Grow needs for filesystems of that kind.
func (k Kind) Tools() []string {
	switch k {
	case Ext2, Ext3, Ext4:
		return []string{"e2fsck", "resize2fs"}
	case XFS, Btrfs:
		return mountedGrowers[k]("")[:1]
	}
	return nil
}

// Mountable tells whether filesystems of that kind may be mounted as part of a
// guest's tree. Others that a kernel knows have nothing a guest boots from.
func (k Kind) Mountable() bool { return k.Growable() || k == VFAT }

// Grow makes the filesystem fill its device dev, which must not be mounted. dir
// is an empty directory: XFS and btrfs grow only while they are mounted, so they
// are mounted there for a moment, in the mount namespace the process is in.
//
// An ext filesystem is checked and repaired first. The filesystem is never
// shrunk. The error wraps ErrLeftToGuest where nothing is wrong but that it
// stays as it is; after any other error the disk should not be used.
func Grow(ctx context.Context, dev string, info Info, dir string) error {
	if err := grow(ctx, dev, info, dir); err != nil {
		return fmt.Errorf("cannot grow the filesystem (%s) on %s: %w", cmp.Or(info.Kind, "unknown"), dev, err)
	}
	return nil
}

func grow(ctx context.Context, dev string, info Info, dir string) error {
	grower := growers[info.Kind]
	if grower == nil {
		return fmt.Errorf("%w: this program does not grow that kind", ErrLeftToGuest)
	}
	if info.Apart != "" {
		return fmt.Errorf("%w: %s", ErrLeftToGuest, info.Apart)
	}
	room, err := deviceSize(dev)
	if err != nil {
		return err
	}
	if room < info.Size {
		return fmt.Errorf("it is larger (%d bytes) than its partition (%d bytes)", int64(info.Size), int64(room))
	}
	if room-info.Size < minGain {
		slog.Debug("the filesystem fills its partition already", "device", dev)
		return nil
	}
	if info.Kind == Btrfs && room < minBtrfs {
		return fmt.Errorf("%w: the kernel resizes no btrfs below %v", ErrLeftToGuest, minBtrfs)
	}
	start := time.Now()
	if err := grower(ctx, dev, info, dir); err != nil {
		return err
	}
	slog.Info("grew the filesystem", "kind", string(info.Kind), "from", info.Size.String(), "to", room.String(), "took", time.Since(start).Round(time.Millisecond))
	return nil
}

func deviceSize(dev string) (size.Bytes, error) {
	file, err := os.Open(dev)
	if err != nil {
		return 0, errors.Unwrap(err) // Grow names the device
	}
	defer file.Close()
	end, err := file.Seek(0, 2)
	return size.Bytes(end), err
}

// growExt grows from outside, which needs a filesystem that was checked. Of
// e2fsck(8)'s exit codes 1 says that errors were repaired, 2 that the system
// should be rebooted, which goes for a mounted filesystem.
func growExt(ctx context.Context, dev string, _ Info, _ string) error {
	check := run.Cmd{What: "check it", Argv: []string{"e2fsck", "-f", "-y", dev}, OK: []int{1, 2, 3}}
	result, err := check.Run(ctx)
	if err != nil {
		return orLeft(err)
	}
	if result.Code != 0 {
		slog.Warn("the filesystem had errors, which were repaired", "device", dev)
	}
	_, err = run.Cmd{What: "resize it", Argv: []string{"resize2fs", dev}}.Run(ctx)
	return orLeft(err)
}

// refusals are what the ext tools print when they leave a filesystem as it is
// because it is too new for them, too old to become that large, or bigalloc.
var refusals = []string{"has unsupported feature", "unsupported read-only feature", "too big to be expressed", "has not been fully tested"}

// orLeft tells a tool that is missing, or that refused, from one that failed.
func orLeft(err error) error {
	if errors.Is(err, run.ErrNotFound) {
		return fmt.Errorf("%w: %w", ErrLeftToGuest, err)
	}
	if failed := (*run.Error)(nil); errors.As(err, &failed) {
		for _, text := range refusals {
			if strings.Contains(strings.ToLower(failed.Stderr), text) {
				return fmt.Errorf("%w: %w", ErrLeftToGuest, err)
			}
		}
	}
	return err
}

// MountOptions lists what mount(2) needs to be told, besides the type, to mount
// a guest's filesystem of that kind on the node: XFS that several instances may
// have the same UUID; ext that what its own superblock says about errors, which
// may be to crash the node, does not count.
func MountOptions(kind Kind) []string {
	switch kind {
	case XFS:
		return []string{"nouuid"}
	case Ext2, Ext3, Ext4:
		return []string{"errors=remount-ro"}
	}
	return nil
}

// mountedGrowers are the commands that grow a mounted filesystem.
var mountedGrowers = map[Kind]func(dir string) []string{
	XFS:   func(dir string) []string { return []string{"xfs_growfs", "-d", dir} },
	Btrfs: func(dir string) []string { return []string{"btrfs", "filesystem", "resize", "max", dir} },
}

func growMounted(ctx context.Context, dev string, info Info, dir string) (err error) {
	argv := mountedGrowers[info.Kind](dir)
	if _, err := run.Find(argv[0]); err != nil {
		return orLeft(err)
	}
	var steps undo.Stack
	defer steps.Unwind(&err)
	unlock, err := Lock(ctx, info)
	if err != nil {
		return err
	}
	steps.Push("unlock the filesystem's UUID", unlock)
	if err := mountForGrowing(dev, info.Kind, dir); err != nil {
		return err
	}
	steps.Push("unmount "+dir, func() error { return unix.Unmount(dir, unix.UMOUNT_NOFOLLOW) })
	_, err = run.Cmd{What: "resize it", Argv: argv}.Run(ctx)
	return err
}

func mountForGrowing(dev string, kind Kind, dir string) error {
	err := unix.Mount(dev, dir, string(kind), unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOATIME, strings.Join(MountOptions(kind), ","))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: this node's kernel has no %s", ErrLeftToGuest, kind)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: this node's kernel refuses to mount it (%w; see dmesg), as it does with features newer than itself", ErrLeftToGuest, err)
	}
	return fmt.Errorf("cannot mount it on %s: %w", dir, err)
}
