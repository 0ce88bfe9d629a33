package capture

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/mount"
	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/undo"
	"ganeti-instance-image/internal/used"
)

// Capture is the making of one image, or one for each of several disks.
type Capture struct {
	order  Order
	format format
	disks  []*disk
	done   []*product // in the order in which they get their names
}

// disk is one that is captured.
type disk struct {
	index int
	src   Source
	inUse iter.Seq2[used.Range, error]
	total size.Bytes // of what is in use
}

// product is a finished file without its name.
type product struct {
	name string // the full path it will have
	file *scratch
	sum  *scratch
}

// New takes an order whose defaults were filled in, and makes sure that its files
// may be made.
func New(order Order) (*Capture, error) {
	f, err := order.format()
	if err != nil {
		return nil, err
	}
	c := &Capture{order: order, format: f}
	if info, err := os.Stat(order.Dir); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("cannot write the image to %s: it is no directory of this node; make it, or name another with --dir", order.Dir)
	}
	for _, tool := range f.tools() {
		if _, err := run.Find(tool); err != nil {
			return nil, fmt.Errorf("cannot make an image of type %s: %w", f.imageType, err)
		}
	}
	for _, n := range order.Disks {
		for _, name := range c.files(n) {
			for _, taken := range []string{name, name + sumEnding} {
				if err := c.checkFree(taken); err != nil {
					return nil, err
				}
			}
		}
	}
	return c, nil
}

// checkFree makes sure that a file may get a name.
func (c *Capture) checkFree(name string) error {
	_, err := os.Lstat(name)
	switch {
	case err == nil && !c.order.Force:
		return fmt.Errorf("cannot write %s: it is there already; give the image another --name, or --force to replace it", name)
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("cannot write %s: %w", name, err)
	}
	return nil
}

// tools are the programs that the format takes.
func (f format) tools() []string {
	switch {
	case f.imageType == QCOW2:
		return []string{"qemu-img"}
	case f.imageType == Tarball && f.compression == "xz":
		return []string{"tar", "xz"}
	case f.imageType == Tarball:
		return []string{"tar"}
	}
	return nil
}

// files are the names that a disk's image may have, each with its directory.
func (c *Capture) files(disk int) []string {
	stem := filepath.Join(c.order.Dir, c.order.stem(disk))
	if c.format.imageType == Dump {
		return []string{stem + bootEnding, stem + rootEnding}
	}
	return []string{stem + c.format.ending}
}

// Add looks at a disk, of which nothing is read later that is not in use.
func (c *Capture) Add(index int, src Source) error {
	if err := checkKind(index, src); err != nil {
		return err
	}
	ranges, total, err := inUse(src)
	if err != nil {
		return err
	}
	c.disks = append(c.disks, &disk{index, src, ranges, total})
	slog.Info("disk", "disk", index, "size", src.Size(), "in use", total)
	return nil
}

// checkKind refuses what is about one instance and no other.
func checkKind(index int, src Source) error {
	info, err := filesystem.Probe(src, src.Size())
	if err != nil {
		return &ReadError{err}
	}
	if info.Kind == filesystem.ISO9660 && info.Label == "cidata" {
		return fmt.Errorf("cannot capture disk %d: it holds the instance's own cloud-init seed", index)
	}
	return nil
}

// roomForEdits is what taking things away may write into a copy: journals,
// directories, and blocks that a file system does not write in place.
const roomForEdits = 64 * size.MiB

// CheckRoom makes sure that the copy of the largest disk has room in the
// directory, and the images have as far as their size is known.
func (c *Capture) CheckRoom() error {
	var st unix.Statfs_t
	if err := unix.Statfs(c.order.Dir, &st); err != nil {
		return fmt.Errorf("cannot tell what room there is in %s: %w", c.order.Dir, err)
	}
	free, sum, largest := size.Bytes(st.Bavail)*size.Bytes(st.Bsize), size.Bytes(0), size.Bytes(0)
	for _, d := range c.disks {
		sum += d.total
		largest = max(largest, d.total)
	}
	least := largest
	switch {
	case c.format.imageType == Raw:
		least = sum // each copy is the image
	case c.format.compression == "none":
		least = largest + sum
	}
	if !c.order.KeepsAll() {
		least += roomForEdits
	}
	if least > free {
		return fmt.Errorf("cannot write to %s: there are %s free, and %s are needed; name another directory with --dir", c.order.Dir, free, least)
	}
	if largest+sum > free && c.format.compression != "none" {
		slog.Warn("there may be too little room for the image, if it cannot be compressed well", "dir", c.order.Dir, "free", free, "at most", largest+sum)
	}
	return nil
}

// Prepare takes from the copy of a guest what the image is not to have.
type Prepare func(disk int, tree *mount.Tree) error

// Make makes the images, without their names yet.
func (c *Capture) Make(ctx context.Context, prepare Prepare, steps *undo.Stack) error {
	for _, d := range c.disks {
		if err := c.make(ctx, d, prepare, steps); err != nil {
			return fmt.Errorf("disk %d: %w", d.index, err)
		}
	}
	return nil
}

// newFile makes a file that is gone at the end unless it was published.
func (c *Capture) newFile(steps *undo.Stack) (*scratch, error) {
	s, err := newScratch(c.order.Dir)
	if err != nil {
		return nil, err
	}
	steps.Push("remove what was not finished", s.discard)
	return s, nil
}

func (c *Capture) make(ctx context.Context, d *disk, prepare Prepare, all *undo.Stack) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	keep := &steps
	if c.format.imageType == Raw {
		keep = all // the copy is the image
	}
	copied, err := c.newFile(keep)
	if err != nil {
		return err
	}
	if err := duplicate(ctx, d.src, d.inUse, d.total, copied.file); err != nil {
		return err
	}
	if err := c.edit(ctx, d, copied, prepare, all); err != nil || c.format.tree {
		return err
	}
	return c.writeDisk(ctx, d, copied, all)
}

// edit has the copy prepared where it holds a Linux system, and of an image that
// holds files writes it. What was removed is cleared only when the file systems
// are mounted again: XFS frees what a file had when it is unmounted.
func (c *Capture) edit(ctx context.Context, d *disk, copied *scratch, prepare Prepare, all *undo.Stack) error {
	if c.order.KeepsAll() && !c.format.tree {
		slog.Warn("the image is the disk as it is, with the keys, names and logs of the instance", "disk", d.index, "by", "--keep "+KeepAll)
		return nil
	}
	err := c.mounted(ctx, copied, func(tree *mount.Tree) error {
		if err := c.checkLeft(tree); err != nil {
			return err
		}
		if !c.order.KeepsAll() {
			warnOfSubvolumes(tree)
			if err := prepare(d.index, tree); err != nil {
				return err
			}
		}
		if c.format.tree {
			return c.writeTree(ctx, d, tree, all)
		}
		return nil
	})
	if errors.Is(err, mount.ErrNoRoot) {
		return c.noLinux(d, copied)
	}
	if err != nil || c.format.tree {
		return err
	}
	if err := c.mounted(ctx, copied, trimAll); err != nil {
		return err
	}
	if err := punchFree(copied.file, d.src.Size()); err != nil {
		return fmt.Errorf("cannot clear what is free in the copy: %w", err)
	}
	return nil
}

// mounted does something while the copy's file systems are mounted.
func (c *Capture) mounted(ctx context.Context, copied *scratch, use func(*mount.Tree) error) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	path, err := copied.path()
	if err != nil {
		return err
	}
	dev, err := block.Open(path)
	if err != nil {
		return err
	}
	steps.Push("close the copy", dev.Close)
	table, err := layout.Read(dev, dev.Size())
	if err != nil && !errors.Is(err, layout.ErrNoTable) {
		return fmt.Errorf("cannot look into the copy: %w (--keep %s makes an image of the disk as it is)", err, KeepAll)
	}
	tree, err := mount.Open(ctx, dev, table, mount.Options{}, &steps)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && !errors.Is(err, mount.ErrNoRoot):
		return fmt.Errorf("%w (--keep %s makes an image of the disk as it is)", err, KeepAll)
	case err != nil:
		return err
	}
	return use(tree)
}

func trimAll(tree *mount.Tree) error {
	for _, m := range block.MountsBelow(tree.Dir) {
		if err := trim(m.Dir); err != nil {
			return err
		}
	}
	return nil
}

// Refusal is the error for a disk of which an image cannot be made as it was
// asked for.
type Refusal struct{ text string }

func (e *Refusal) Error() string { return e.text }

// noLinux says what becomes of a disk that holds no Linux system. One that may
// hold it where nobody can look is refused: the image would have all that is to
// be taken away.
func (c *Capture) noLinux(d *disk, copied *scratch) error {
	unseen, err := unseenIn(copied.file, d.src.Size())
	if err != nil {
		return err
	}
	if len(unseen) > 0 {
		return &Refusal{fmt.Sprintf("there may be a Linux system in what cannot be looked into (%s): --keep %s, with --type %s or %s, makes an image of the disk as it is",
			strings.Join(unseen, ", "), KeepAll, QCOW2, Raw)}
	}
	if c.format.tree {
		return fmt.Errorf("cannot make an image of type %s: there is no Linux system on the disk; use --type %s or %s", c.format.imageType, QCOW2, Raw)
	}
	text := "nothing is taken from the disk: it holds no Linux system"
	if d.index == 0 {
		text += "; Windows is made ready for many by its own sysprep, before it is stopped"
	}
	slog.Warn(text, "disk", d.index)
	return nil
}

// copyDisk is the copy of a disk as one that is looked into.
type copyDisk struct {
	*os.File
	length size.Bytes
}

func (d copyDisk) Path() string     { return d.Name() }
func (d copyDisk) Size() size.Bytes { return d.length }

func unseenIn(copied *os.File, length size.Bytes) ([]string, error) {
	disk := copyDisk{copied, length}
	table, err := layout.Read(disk, length)
	if err != nil && !errors.Is(err, layout.ErrNoTable) {
		return nil, err
	}
	return mount.Unseen(disk, table)
}

// Publish gives all files their names, and returns those of the images. What is
// replaced goes only when the new files are on their way.
func (c *Capture) Publish(steps *undo.Stack) (names []string, err error) {
	for _, p := range c.done {
		if err := errors.Join(p.file.ready(p.name), p.sum.ready(p.name+sumEnding)); err != nil {
			return nil, err
		}
	}
	if err := c.clearWay(); err != nil {
		return nil, err
	}
	for _, p := range c.done {
		if err := p.file.publish(p.name, c.order.Force); err != nil {
			return nil, err
		}
		steps.OnFailure("remove "+p.name, func() error { return os.Remove(p.name) })
		names = append(names, p.name)
	}
	// A digest is there only where its image is: whoever comes in between finds an
	// image without one, and not one with another's.
	for _, p := range c.done {
		sum := p.name + sumEnding
		if err := p.sum.publish(sum, c.order.Force); err != nil {
			return nil, err
		}
		steps.OnFailure("remove "+sum, func() error { return os.Remove(sum) })
	}
	return names, syncDir(c.order.Dir)
}

// clearWay removes digests of images that are replaced, and of a dump both files:
// create finds it by its root's, which comes back last, and must not find another
// system's /boot beside it.
func (c *Capture) clearWay() error {
	if !c.order.Force {
		return nil
	}
	var old []string
	for _, n := range c.order.Disks {
		for _, name := range slices.Backward(c.files(n)) {
			old = append(old, name+sumEnding)
			if c.format.imageType == Dump {
				old = append(old, name)
			}
		}
	}
	for _, name := range old {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("cannot replace the image: %w", err)
		}
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("cannot store the names in %s: %w", dir, err)
	}
	return nil
}
