package osscript

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"ganeti-instance-image/internal/backup"
	"ganeti-instance-image/internal/deploy"
	"ganeti-instance-image/internal/dump"
	"ganeti-instance-image/internal/image"
	"ganeti-instance-image/internal/size"
)

// backupKind is what a backup is, by what it begins with; its text is for a log.
type backupKind string

const (
	noBackup    backupKind = "nothing"
	ourBackup   backupKind = "a backup of this program's"
	oldBackup   backupKind = "a tar of dumps or of a qcow2 image"
	qcow2Backup backupKind = "a qcow2 image"
	rawBackup   backupKind = "a raw disk"
	// What follows is refused: as a disk's bytes it would be rubbish.
	otherTar     backupKind = "a tar of other things than root.dump and boot.dump, or disk.img"
	bareDump     backupKind = "a dump by itself, and not in a tar, as root.dump"
	packedBackup backupKind = "something compressed by another program than export: decompress it first"
)

// sniffed is how much of a backup tells what it is, in bytes.
const sniffed = 4096

// What the Bash version put into its tar.
const (
	oldDisk = "disk.img"
	oldBoot = "boot.dump"
	oldRoot = "root.dump"
)

// recognise tells what a backup is that begins so. What is nothing else is the
// bytes of a disk. A few flipped bits make none a disk: it is refused when it is
// read.
func recognise(head []byte) backupKind {
	switch {
	case len(head) == 0:
		return noBackup
	case backup.IsBackup(head):
		return ourBackup
	case backup.Resembles(head, "QFI\xfb"):
		return qcow2Backup
	}
	h, err := tar.NewReader(bytes.NewReader(head)).Next()
	for _, name := range []string{"./", "./" + oldDisk, "./" + oldBoot, "./" + oldRoot, oldDisk, oldBoot, oldRoot} {
		const length = 100 // of the name in a header, filled up with zeros
		if err == nil && h.Name == name || err != nil && backup.Resembles(head, name+strings.Repeat("\x00", length-len(name))) {
			return oldBackup
		}
	}
	return foreign(head)
}

// foreign tells what else a stream may be that begins as no disk does.
func foreign(head []byte) backupKind {
	for _, packed := range []string{"\x1f\x8b\x08", "\xfd7zXZ\x00", "\x04\x22\x4d\x18", "BZh9"} {
		if bytes.HasPrefix(head, []byte(packed)) {
			return packedBackup
		}
	}
	switch {
	case len(head) > 262 && string(head[257:262]) == "ustar":
		return otherTar
	case len(head) > 28 && string(head[24:28]) == "\x6c\xea\x00\x00": // its magic number
		return bareDump
	}
	return rawBackup
}

// oldTar is a backup as the Bash version wrote it.
type oldTar struct {
	*tar.Reader
	in   *counting
	name string // the member that is read next
	size int64  // its length
}

// counting counts what is read.
type counting struct {
	io.Reader
	n int64
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

func openOld(r io.Reader) (*oldTar, error) {
	in := &counting{Reader: r}
	t := &oldTar{Reader: tar.NewReader(in), in: in}
	return t, t.next()
}

// next goes to the next file. At the end, of which there must be the mark, its
// name is "".
func (t *oldTar) next() error {
	for {
		if _, err := io.Copy(io.Discard, t.Reader); err != nil {
			return oldError(err)
		}
		behind := size.Bytes(t.in.n).AlignUp(tarRecord)
		h, err := t.Reader.Next()
		if errors.Is(err, io.EOF) {
			t.name = ""
			return t.checkEnd(behind)
		}
		if err != nil {
			return oldError(err)
		}
		name := path.Clean(h.Name)
		switch {
		case h.Typeflag == tar.TypeDir && name == ".":
			continue
		case h.Typeflag != tar.TypeReg || name != oldDisk && name != oldBoot && name != oldRoot:
			return fmt.Errorf("cannot read the backup: it is a tar with %.100q in it, and should have root.dump and boot.dump, or disk.img", h.Name)
		}
		t.name, t.size = name, h.Size
		return nil
	}
}

// checkEnd makes sure that the two records of zeros were there with which each
// tar ends: archive/tar takes one that is cut off between two members for whole.
func (t *oldTar) checkEnd(behind size.Bytes) error {
	if size.Bytes(t.in.n) < behind+2*tarRecord {
		return errors.New("cannot read the backup: it is cut off: the end of its tar is missing")
	}
	if _, err := io.Copy(io.Discard, t.in); err != nil {
		return oldError(err)
	}
	return nil
}

func oldError(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("it is cut off")
	}
	return fmt.Errorf("cannot read the backup: %w", err)
}

// restoreOld writes a backup of the Bash version's.
func (c *creation) restoreOld(ctx context.Context, in *input) error {
	t, err := openOld(in.reader(ctx))
	if err != nil {
		return classify(Image, err)
	}
	switch t.name {
	case oldDisk:
		return c.restoreDisk(ctx, func(ctx context.Context, sink *deploy.Sink) error {
			if err := c.receiveQCOW2(ctx, t, t.size, sink); err != nil {
				return err
			}
			if err := t.next(); err != nil {
				return err
			}
			return t.unexpected()
		})
	case oldBoot, oldRoot:
		return c.restoreDumps(ctx, t)
	}
	return classify(Image, errors.New("cannot read the backup: there is nothing in its tar"))
}

func (t *oldTar) unexpected() error {
	if t.name == "" {
		return nil
	}
	return fmt.Errorf("cannot read the backup: there is %s behind what is a whole system already", t.name)
}

// restoreDumps lays the disk out as create does for a dump, and unpacks the dumps
// there. The boot loader that the guest had is installed anew.
func (c *creation) restoreDumps(ctx context.Context, t *oldTar) error {
	if c.order.Disk != 0 {
		return classify(Image, fmt.Errorf("cannot import disk %d: the backup has dumps of a system, which belong on disk 0", c.order.Disk))
	}
	if c.set.CDInstall {
		return classify(Input, fmt.Errorf("cannot import a backup of dumps with CDINSTALL=yes (%s): the disk has to be laid out for it", c.set.Origin("CDINSTALL")))
	}
	c.imageType = image.TypeDump
	c.tree = &treeImage{name: theBackup}
	c.tree.archives = func(yield func(archive, error) bool) { c.readDumps(t, yield) }
	if t.name == oldRoot {
		c.tree.packed = size.Bytes(t.size)
	}
	if err := c.checkTree(ctx); err != nil {
		return err
	}
	return c.writeTree(ctx)
}

// readDumps yields the dumps in the order in which they come.
func (c *creation) readDumps(t *oldTar, yield func(archive, error) bool) {
	found := map[string]bool{}
	for t.name != "" {
		name := t.name
		if found[name] || name == oldDisk {
			yield(archive{}, t.unexpected())
			return
		}
		a, err := t.dump()
		c.tree.boot = c.tree.boot || name == oldBoot
		if !yield(a, err) || err != nil {
			return
		}
		if err := errors.Join(a.Close(), t.next()); err != nil {
			yield(archive{}, err)
			return
		}
		found[name] = true
	}
	if !found[oldRoot] {
		yield(archive{}, errors.New("cannot read the backup: there is no root.dump in its tar"))
	}
}

func (t *oldTar) dump() (archive, error) {
	d, err := dump.Read(t)
	if err != nil {
		return archive{}, fmt.Errorf("cannot read %s of the backup: %w", t.name, err)
	}
	below := "/"
	if t.name == oldBoot {
		below = "/boot"
	}
	return archive{source: d, path: t.name + " of the backup", below: below}, nil
}
