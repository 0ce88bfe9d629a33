package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/undo"
)

// Kept is the place of one instance's file systems that stay mounted when this
// process has ended, until another one unmounts them. It holds the instance's
// lock.
type Kept struct {
	Instance string
	unlock   func() error
}

// KeptDisk is a disk of the instance by its number.
type KeptDisk struct {
	Index  int
	Device *block.Device
}

// OpenKept locks the place of an instance. Where another process has it the
// error wraps ErrAtWork.
func OpenKept(instance string) (*Kept, error) {
	unlock, err := Lock("node", instance)
	if err != nil {
		return nil, err
	}
	return &Kept{Instance: instance, unlock: unlock}, nil
}

// Close gives the place up; what is mounted stays.
func (k *Kept) Close() error { return k.unlock() }

// Dir is the directory below which everything is mounted.
func (k *Kept) Dir() string { return KeptDirOf(k.Instance) }

// KeptDirOf is the directory below which an instance's file systems are kept.
func KeptDirOf(instance string) string { return filepath.Join(keptDir, instance) }

// IsKept tells whether file systems of the instance are kept mounted on this
// node, as far as is recorded, and in which words.
func IsKept(instance string) (how string, kept bool) {
	if !instanceName.MatchString(instance) {
		return "", false
	}
	r, err := readRecord(instance)
	switch {
	case err != nil:
		return err.Error(), true
	case r == nil:
		return "", false
	case !r.Whole:
		return "in part, by a mount-disks that was stopped", true
	case r.ReadOnly:
		return "read-only", true
	}
	return "for reading and writing", true
}

// source is what the instance's own tmpfs shows as its device.
const source = "ganeti-instance-image"

// Mount mounts what the disks hold below Dir: at "root" the system on disk 0, as
// Open does it, and every other file system that this node can mount at
// "diskN-partM". Device nodes and set-id programs do not count. readOnly leaves
// every byte of the disks as it is: journals are not replayed, which is said.
//
// If it fails nothing is left mounted. If not, the loop devices of what is
// mounted go when it is unmounted.
func (k *Kept) Mount(ctx context.Context, disks []KeptDisk, readOnly bool) (err error) {
	if there := block.MountsBelow(k.Dir()); len(there) > 0 {
		return fmt.Errorf("cannot use %s: something is mounted there, of which there is no record; look at it, and use: umount -R %s", k.Dir(), k.Dir())
	}
	r := &record{Instance: k.Instance, Boot: bootID(), ReadOnly: readOnly}
	for _, d := range disks {
		id, err := d.Device.ID()
		if err != nil {
			return err
		}
		r.Disks = append(r.Disks, recordedDisk{Path: d.Device.Path(), ID: id})
	}
	var steps, held undo.Stack
	defer steps.Unwind(&err)
	steps.OnFailure("clean up", func() error { _, err := k.Unmount(); return err })
	// The steps in held are taken back only on failure: else what they would
	// give up is to stay, and the open loop devices close with the process.
	steps.OnFailure("unmount it again", func() (err error) { held.Unwind(&err); return err })
	if err := r.write(); err != nil {
		return err
	}
	if err := k.makeDir(); err != nil {
		return err
	}
	var parts []*Part
	for _, d := range disks {
		more, err := k.mountDisk(ctx, d, readOnly, parts, &held)
		if err != nil {
			return fmt.Errorf("cannot mount disk %d: %w", d.Index, err)
		}
		parts = append(parts, more...)
	}
	if !slices.ContainsFunc(parts, func(p *Part) bool { return p.mounted }) {
		return errors.New("no disk holds a file system that can be mounted here")
	}
	r.Whole = true
	return r.write()
}

// makeDir mounts a tmpfs for the mount points. It is shared: a process with a
// mount namespace of its own that is at work meanwhile (a create, a service)
// must not keep what is unmounted here.
func (k *Kept) makeDir() error {
	if err := os.MkdirAll(k.Dir(), 0o700); err != nil {
		return fmt.Errorf("cannot make the directory for the mounts: %w", err)
	}
	if err := unix.Mount(source, k.Dir(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700,size=1m"); err != nil {
		return fmt.Errorf("cannot mount a tmpfs on %s: %w", k.Dir(), err)
	}
	if err := unix.Mount("", k.Dir(), "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("cannot have %s shared: %w", k.Dir(), err)
	}
	return nil
}

// mountDisk mounts what one disk holds, beside what was found on others. A disk
// that cannot be read as one with a table, or as a file system, is left.
func (k *Kept) mountDisk(ctx context.Context, d KeptDisk, readOnly bool, beside []*Part, held *undo.Stack) ([]*Part, error) {
	table, err := layout.Read(d.Device, d.Device.Size())
	if errors.Is(err, layout.ErrDamaged) {
		slog.Warn("left a disk unmounted", "disk", d.Index, "cause", err)
		return nil, nil
	}
	if err != nil && !errors.Is(err, layout.ErrNoTable) {
		return nil, err
	}
	t, err := prepare(d.Device, table, Options{Dir: filepath.Join(k.Dir(), "root"), ReadOnly: readOnly}, held)
	if err != nil {
		return nil, err
	}
	t.beside = beside
	if d.Index == 0 {
		err := t.mountSystem(ctx)
		if errors.Is(err, ErrNoRoot) {
			slog.Warn("there is no tree: each file system is mounted by itself", "cause", err)
			err = unix.Rmdir(t.Dir)
		}
		if err != nil {
			return nil, err
		}
	}
	return t.parts, t.mountRest(ctx, k.Dir(), d.Index)
}

// mountSystem mounts the root file system and what its fstab names.
func (t *Tree) mountSystem(ctx context.Context) error {
	if err := os.Mkdir(t.Dir, 0o755); err != nil {
		return fmt.Errorf("cannot make the mount point: %w", err)
	}
	if err := t.findRoot(ctx); err != nil {
		return err
	}
	if err := t.openRoot(); err != nil {
		return err
	}
	return t.mountFSTab(ctx)
}

// volumeName is a logical volume's name that can be part of a file's.
var volumeName = regexp.MustCompile(`^[A-Za-z0-9+_.-]{1,127}$`)

// mostOfDisk bounds the file systems of one disk that are mounted by themselves:
// each takes a loop device of the node.
const mostOfDisk = 64

// mountRest mounts each file system that is not mounted yet at a directory of its
// own. Others are left, and named.
func (t *Tree) mountRest(ctx context.Context, dir string, disk int) error {
	tried := 0
	for i, part := range t.parts {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if part.mounted {
			continue
		}
		var err error
		if tried++; tried > mostOfDisk {
			err = fmt.Errorf("these are more than %d of one disk", mostOfDisk)
		} else if !part.Info.Kind.Mountable() {
			slog.Info("left unmounted", "disk", disk, "partition", part.Number, "volume", part.Volume, "holds", holds(part.Info.Kind))
		} else {
			err = t.mountAt(ctx, part, filepath.Join(dir, part.dirName(disk, i)))
		}
		if err != nil {
			slog.Warn("left a file system unmounted", "disk", disk, "partition", part.Number, "volume", part.Volume, "cause", err)
		}
		if tried > mostOfDisk {
			break
		}
	}
	return nil
}

func holds(kind filesystem.Kind) string {
	if kind == filesystem.None {
		return "nothing that is known"
	}
	return string(kind)
}

// dirName is where a file system is mounted by itself: disk0-part15, disk1,
// disk0-part3-home of a logical volume.
func (p *Part) dirName(disk, index int) string {
	name := fmt.Sprintf("disk%d", disk)
	if p.Number > 0 {
		name += fmt.Sprintf("-part%d", p.Number)
	}
	switch {
	case volumeName.MatchString(p.Volume):
		name += "-" + p.Volume
	case p.Volume != "":
		name += fmt.Sprintf("-volume%d", index)
	}
	return name
}

func (t *Tree) mountAt(ctx context.Context, part *Part, dir string) error {
	if err := t.attach(ctx, part); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("cannot make the mount point: %w", err)
	}
	if err := t.mount(part, dir, nil); err != nil {
		return errors.Join(err, unix.Rmdir(dir))
	}
	part.mounted = true
	t.keep(dir)
	slog.Info("mounted", "dir", filepath.Base(dir), "type", part.Info.Kind, "label", part.Info.Label)
	return nil
}

// Unmount unmounts all that Mount mounted, also one that was killed, the last
// one first, and waits until it is stored and the loop devices have gone. found
// tells whether there was anything. After a failure as much is unmounted as was
// possible; it can be called again.
func (k *Kept) Unmount() (found bool, err error) {
	r, err := readRecord(k.Instance)
	if err != nil {
		return true, err
	}
	points := block.MountsBelow(k.Dir())
	if r == nil {
		if len(points) > 0 {
			return true, fmt.Errorf("cannot unmount %s: there is no record of what it is; look at it, and use: umount -R %s", k.Dir(), k.Dir())
		}
		return false, errors.Join(removeDir(k.Dir()), removeRecord(k.Instance))
	}
	if err := r.checkOurs(points, k.Dir()); err != nil {
		return true, err
	}
	var lost []error // what could not be stored; to unmount is right nevertheless
	for _, m := range slices.Backward(points) {
		stored, err := k.unmountOne(m)
		lost = append(lost, stored)
		if err != nil {
			return true, errors.Join(err, errors.Join(lost...))
		}
	}
	if err := errors.Join(removeDir(k.Dir()), r.waitLoops()); err != nil {
		return true, errors.Join(err, errors.Join(lost...))
	}
	for _, d := range r.Disks {
		lost = append(lost, d.ID.Store(d.Path))
	}
	return true, errors.Join(append(lost, removeRecord(k.Instance))...)
}

// checkOurs refuses where somebody else has mounted something below dir, before
// anything is unmounted.
func (r *record) checkOurs(points []block.MountPoint, dir string) error {
	var others []string
	for _, m := range points {
		if !(m.Dir == dir && m.Source == source) && !r.about(m) {
			others = append(others, m.Dir)
		}
	}
	if len(others) > 0 {
		return fmt.Errorf("cannot unmount %s: something else is mounted in it; unmount it first: %s", dir, strings.Join(others, " "))
	}
	return nil
}

// unmountOne unmounts a file system; what mount points it leaves in the tmpfs are
// removed before that is unmounted, which must not hold what somebody put there.
func (k *Kept) unmountOne(m block.MountPoint) (stored, err error) {
	stored = syncFileSystem(m.Dir)
	if m.Dir == k.Dir() {
		if err := removeMountPoints(m.Dir); err != nil {
			return stored, err
		}
	}
	if err := unmount(m.Dir); err != nil {
		return stored, fmt.Errorf("cannot unmount %s: %w", m.Dir, err)
	}
	slog.Info("unmounted", "dir", m.Dir, "device", m.Source)
	return stored, nil
}

func removeMountPoints(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("cannot read the directory of the mounts: %w", err)
	}
	var left []string
	for _, e := range entries {
		if unix.Rmdir(filepath.Join(dir, e.Name())) != nil {
			left = append(left, e.Name())
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("cannot remove %s: there is something in it that is not of the guest; move it away: %s", dir, strings.Join(left, " "))
	}
	return nil
}

// removeDir removes an empty directory, if it is there.
func removeDir(dir string) error {
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("cannot remove the directory %s: %w", dir, err)
	}
	return nil
}

// loopPatience is how long the kernel may take to give a loop device up.
const loopPatience = 5 * time.Second

// waitLoops waits until no loop device shows a disk: then nobody uses it.
func (r *record) waitLoops() error {
	deadline := time.Now().Add(loopPatience)
	for _, d := range r.Disks {
		for loops := d.ID.Loops(); len(loops) > 0; loops = d.ID.Loops() {
			if time.Now().After(deadline) {
				return fmt.Errorf("cannot give up the disk %s: the loop device %s still shows it: %s", d.Path, loops[0], usersOf(loops[0]))
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}

// usersOf names who keeps a loop device: whoever has it open or mounted, and the
// processes that are in its file system, also where that is mounted nowhere any
// more.
func usersOf(device string) string {
	who := append(block.Users(device), insiders(device)...)
	if len(who) == 0 {
		return "used by nobody that can be seen (losetup -d " + device + ")"
	}
	if len(who) > 5 {
		who = append(who[:5], "and others")
	}
	return strings.Join(who, ", ")
}

// insiders are the processes that have a directory or file open on the file system
// of a device. Of btrfs, whose files show another device, none are found.
func insiders(device string) (who []string) {
	var stat unix.Stat_t
	if unix.Stat(device, &stat) != nil {
		return nil
	}
	for _, pattern := range []string{"cwd", "root", "exe", "fd/*"} {
		links, _ := filepath.Glob("/proc/[0-9]*/" + pattern)
		for _, link := range links {
			var file unix.Stat_t
			if unix.Stat(link, &file) == nil && file.Dev == stat.Rdev {
				who = append(who, processOf(link))
			}
		}
	}
	return slices.Compact(who)
}
