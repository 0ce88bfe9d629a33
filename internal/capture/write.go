package capture

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/dump"
	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/mount"
	"ganeti-instance-image/internal/progress"
	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/undo"
)

// sumEnding is what the name of an image's digest ends with.
const sumEnding = ".sha256"

// writeDisk makes a disk's image of its copy.
func (c *Capture) writeDisk(ctx context.Context, d *disk, copied *scratch, all *undo.Stack) error {
	product := &product{name: c.files(d.index)[0], file: copied}
	if c.format.imageType == QCOW2 {
		out, err := c.newFile(all)
		if err != nil {
			return err
		}
		if err := c.convert(ctx, copied, out, d.src.Size()); err != nil {
			return err
		}
		product.file = out
	}
	sum, err := digest(ctx, product.file.file)
	if err != nil {
		return err
	}
	return c.finish(product, sum, all)
}

// convert has qemu-img write a qcow2 image. Both formats are told: what a guest
// has written may begin with anything.
func (c *Capture) convert(ctx context.Context, from, to *scratch, total size.Bytes) error {
	source, err := from.path()
	if err != nil {
		return err
	}
	target, err := to.path()
	if err != nil {
		return err
	}
	argv := []string{"qemu-img", "convert", "-p", "-f", "raw", "-O", "qcow2"}
	if c.format.compression != "none" {
		argv = append(argv, "-c", "-o", "compression_type="+c.format.compression)
	}
	seen := &percentages{}
	defer progress.Watch("writing the image", func() (size.Bytes, size.Bytes) { return total * size.Bytes(seen.last.Load()) / 10000, total })()
	_, err = run.Cmd{What: "write the image", Argv: append(argv, source, target), Stdout: seen}.Run(ctx)
	return err
}

// percentages reads what qemu-img -p prints: "    (12.34/100%)" and a carriage
// return.
type percentages struct {
	line []byte
	last atomic.Int64 // hundredths of a per cent
}

func (p *percentages) Write(b []byte) (int, error) {
	for _, c := range b {
		if c == '(' {
			p.line = p.line[:0]
		}
		if len(p.line) < 16 {
			p.line = append(p.line, c)
		}
		if number, _, ok := strings.Cut(strings.TrimPrefix(string(p.line), "("), "/"); ok && c == '/' {
			if percent, err := strconv.ParseFloat(number, 64); err == nil {
				p.last.Store(int64(percent * 100))
			}
		}
	}
	return len(b), nil
}

// digest is the sha256 of all of a file.
func digest(ctx context.Context, f *os.File) (string, error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return "", err
	}
	var done atomic.Int64
	defer progress.Watch("making its checksum", func() (size.Bytes, size.Bytes) { return size.Bytes(done.Load()), size.Bytes(end) })()
	sum := sha256.New()
	buffer := make([]byte, copyChunk)
	for off := int64(0); off < end; {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		n, err := f.ReadAt(buffer[:min(int64(len(buffer)), end-off)], off)
		if n == 0 {
			return "", fmt.Errorf("cannot read what was written: %w", err)
		}
		sum.Write(buffer[:n])
		off += int64(n)
		done.Store(off)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// finish writes the digest, as sha256sum(1) does. Publish stores both.
func (c *Capture) finish(p *product, sum string, all *undo.Stack) (err error) {
	if p.sum, err = c.newFile(all); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(p.sum.file, "%s  %s\n", sum, filepath.Base(p.name)); err != nil {
		return fmt.Errorf("cannot write the checksum: %w", err)
	}
	c.done = append(c.done, p)
	info, err := p.file.file.Stat()
	if err != nil {
		return err
	}
	slog.Info("made the image", "file", p.name, "size", size.Bytes(info.Size()), "sha256", sum)
	return nil
}

// systemPartitions are where a guest has the EFI system partition. An image of
// files can do without it: create writes the boot loader anew.
var systemPartitions = []string{"/boot/efi", "/efi"}

// checkLeft refuses where some of the guest's files could not be read: an image
// of files would be without them, and of a disk would have what is to be taken
// from them.
func (c *Capture) checkLeft(tree *mount.Tree) error {
	for _, at := range tree.Left() {
		if !slices.Contains(systemPartitions, path.Clean(at)) {
			return &Refusal{fmt.Sprintf("cannot make an image of the whole guest: %s could not be mounted, a line above says why; --keep %s, with --type %s or %s, makes an image of the disk as it is", at, KeepAll, QCOW2, Raw)}
		}
	}
	return nil
}

// writeTree makes an image of a guest's files.
func (c *Capture) writeTree(ctx context.Context, d *disk, tree *mount.Tree, all *undo.Stack) error {
	names := c.files(d.index)
	if c.format.imageType == Tarball {
		total := size.Bytes(0)
		for _, m := range block.MountsBelow(tree.Dir) {
			total += usedBytes(m.Dir)
		}
		return c.stream(ctx, names[0], total, all, func(w io.Writer) error { return tarball(ctx, tree.Dir, w) })
	}
	if err := c.dumpBoot(ctx, tree, names[0], all); err != nil {
		return err
	}
	sayOutside(tree)
	return c.dump(ctx, tree.Dir, "/", names[1], all)
}

func usedBytes(dir string) size.Bytes {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0
	}
	return size.Bytes(st.Blocks-st.Bfree) * size.Bytes(st.Bsize)
}

// tarball has GNU tar write the tree, with what is mounted in it.
func tarball(ctx context.Context, dir string, w io.Writer) error {
	_, err := run.Cmd{What: "pack the guest's files", Stdout: w, Argv: []string{"tar", "-C", dir, "--create", "--file=-", "--format=posix",
		"--pax-option=delete=atime,delete=ctime", "--numeric-owner", "--sparse", "--xattrs", "--xattrs-include=*", "--acls", "--selinux",
		"--warning=no-file-ignored", "."}}.Run(ctx)
	return err
}

// dumpBoot writes a dump of /boot where it is a file system of its own.
func (c *Capture) dumpBoot(ctx context.Context, tree *mount.Tree, name string, all *undo.Stack) error {
	if tree.BootPart == nil {
		return nil
	}
	boot, err := tree.Root.OpenDir("/boot")
	if err != nil {
		return err
	}
	defer boot.Close()
	return c.dump(ctx, guest.PathOf(boot), "/boot", name, all)
}

func (c *Capture) dump(ctx context.Context, dir, where, name string, all *undo.Stack) (err error) {
	outline, err := dump.Scan(ctx, dir, dump.ScanOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, outline.Close()) }()
	for _, warning := range outline.Warnings() {
		slog.Warn("the dump: " + warning)
	}
	options := dump.WriteOptions{Compress: c.format.compression != "none", Host: c.order.Name, Filesystem: where}
	return c.stream(ctx, name, size.Bytes(outline.Size()), all, func(w io.Writer) error { return outline.Write(ctx, w, options) })
}

// sayOutside names what a dump has no place for.
func sayOutside(tree *mount.Tree) {
	var outside []string
	for _, m := range block.MountsBelow(tree.Dir) {
		if at := strings.TrimPrefix(m.Dir, tree.Dir); at != "" && (at != "/boot" || tree.BootPart == nil) {
			outside = append(outside, at)
		}
	}
	if len(outside) > 0 {
		slog.Warn("the dump does not have what is on other file systems than those of / and /boot", "left out", strings.Join(slices.Compact(outside), " "))
	}
}

// stream makes an image of what write writes, compressed as the format says; a
// dump compresses itself.
func (c *Capture) stream(ctx context.Context, name string, total size.Bytes, all *undo.Stack, write func(io.Writer) error) error {
	file, err := c.newFile(all)
	if err != nil {
		return err
	}
	sum := sha256.New()
	encoder, err := c.encoder(ctx, io.MultiWriter(sum, file.file))
	if err != nil {
		return err
	}
	counted := &progress.Counter{To: encoder}
	stop := progress.Watch("writing "+filepath.Base(name), func() (size.Bytes, size.Bytes) { return counted.Count(), total })
	err = write(counted)
	stop()
	if cause := encoder.Close(); err == nil && cause != nil {
		err = fmt.Errorf("cannot compress the image: %w", cause)
	}
	if err != nil {
		return err
	}
	return c.finish(&product{name: name, file: file}, hex.EncodeToString(sum.Sum(nil)), all)
}

type plain struct{ io.Writer }

func (plain) Close() error { return nil }

func (c *Capture) encoder(ctx context.Context, out io.Writer) (io.WriteCloser, error) {
	switch {
	case c.format.imageType == Tarball && c.format.compression == "zst":
		return zstd.NewWriter(out, zstd.WithEncoderLevel(zstd.SpeedDefault))
	case c.format.imageType == Tarball && c.format.compression == "gz":
		return gzip.NewWriter(out), nil
	case c.format.imageType == Tarball && c.format.compression == "xz":
		return startXZ(ctx, out), nil
	}
	return plain{out}, nil
}

// xzWriter has xz compress what is written to it, on all processors.
type xzWriter struct {
	io.WriteCloser
	ended chan error
}

func startXZ(ctx context.Context, out io.Writer) *xzWriter {
	in, w := io.Pipe()
	x := &xzWriter{w, make(chan error, 1)}
	go func() {
		_, err := run.Cmd{What: "compress the image", Argv: []string{"xz", "--compress", "--stdout", "--threads=0"}, Stdin: in, Stdout: out}.Run(ctx)
		in.CloseWithError(errors.Join(errors.New("xz has ended"), err))
		x.ended <- err
	}()
	return x
}

// Close returns when all is written.
func (x *xzWriter) Close() error {
	return errors.Join(x.WriteCloser.Close(), <-x.ended)
}
