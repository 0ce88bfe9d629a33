package osscript

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/backup"
	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/contents"
	"ganeti-instance-image/internal/image"
	"ganeti-instance-image/internal/osapi"
	"ganeti-instance-image/internal/progress"
	"ganeti-instance-image/internal/settings"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/undo"
	"ganeti-instance-image/internal/used"
)

// SizeVariable names the environment variable in which Ganeti gives export the
// descriptor that it reads the expected length of the backup from.
const SizeVariable = "EXP_SIZE_FD"

// exporting is one run of export.
type exporting struct {
	inst   osapi.Instance
	set    *settings.Settings
	format string // of EXPORT_FORMAT's, the one that suits the disk
	src    *block.Source
	disk   *contents.Disk
	out    io.Writer
	inUse  size.Bytes
}

// Export writes the backup of one disk to out. It reads the disk that Ganeti
// names and nothing else of the instance: the guest may run meanwhile.
func Export(ctx context.Context, env Env, out io.Writer) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	e := &exporting{out: out}
	if err := e.readInput(ctx, env); err != nil {
		return classify(Input, err)
	}
	if err := NotMounted(e.inst.Name); err != nil {
		return err
	}
	if e.src, err = block.OpenSource(e.inst.Export.Path); err != nil {
		return classify(Disk, err)
	}
	steps.Push("close the disk", e.src.Close)
	if e.disk, err = contents.Of(e.src, e.src.Size()); err != nil {
		return classify(Disk, err)
	}
	if err := e.measure(); err != nil {
		return classify(Disk, err)
	}
	start := time.Now()
	n, err := e.writeUntil(ctx, env)
	if errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("cannot write the backup: what was to read it has ended: %w", err)
	}
	if err != nil {
		return err
	}
	slog.Info("wrote the backup", "disk", e.inst.Export.Index, "format", e.format, "in use", e.inUse, "of", e.disk.Length,
		"written", n, "took", time.Since(start).Round(time.Millisecond))
	return nil
}

func (e *exporting) readInput(ctx context.Context, env Env) (err error) {
	if e.inst, e.set, err = env.read(ctx); err != nil {
		return err
	}
	e.format = e.suitableFormat()
	return transferable("export", e.inst.Export)
}

// transferable makes sure that the disk can be reached.
func transferable(what string, disk osapi.Transfer) error {
	if disk.Path == "" && disk.URI != "" {
		return fmt.Errorf("cannot %s disk %d: it has no path on this node, only the URI %s (disk access mode userspace); "+
			"set access=kernelspace for its disk template", what, disk.Index, disk.URI)
	}
	if disk.Path == "" {
		return fmt.Errorf("cannot %s a disk: Ganeti names none; this program is run by gnt-backup %s", what, what)
	}
	return nil
}

// measure adds up what is in use, and says what is kept although it may be free.
func (e *exporting) measure() error {
	for r, err := range e.ranges() {
		if err != nil {
			return err
		}
		e.inUse += r.Length
	}
	if e.format == settings.ExportDump {
		return nil // which has files, and no blocks
	}
	for _, p := range e.disk.Parts {
		where := []any{"partition", p.Number}
		if p.Volume != "" {
			where = append(where, "volume", p.Volume)
		}
		if p.Whole {
			slog.Info("kept whole, but for blocks of zeros", append(where, "holds", p.Kind, "size", p.Length, "why", p.Why)...)
		}
	}
	return nil
}

// classified is a disk whose errors are told from those of other things.
type classified struct{ *block.Source }

// ReadAt reads from the disk, as io.ReaderAt says.
func (c classified) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.Source.ReadAt(p, off)
	if err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	return n, classify(Disk, err)
}

// ranges are those of the disk that are kept.
func (e *exporting) ranges() iter.Seq2[used.Range, error] { return e.src.WithoutHoles(e.disk.Used()) }

// patience is how long an orderly end may take once it is asked for. Ganeti kills
// what is there after 5 seconds.
const patience = 2 * time.Second

// writeUntil writes the backup until ctx ends: who does not read, and so keeps a
// write waiting, must not keep us.
func (e *exporting) writeUntil(ctx context.Context, env Env) (size.Bytes, error) {
	type result struct {
		n   size.Bytes
		err error
	}
	written := make(chan result, 1)
	go func() {
		n, err := e.write(ctx, env)
		written <- result{n, err}
	}()
	select {
	case r := <-written:
		return r.n, r.err
	case <-ctx.Done():
	}
	select {
	case r := <-written:
		return r.n, r.err
	case <-time.After(patience):
		return 0, context.Cause(ctx)
	}
}

// write writes the backup in the format that is asked for, and returns its length.
func (e *exporting) write(ctx context.Context, env Env) (size.Bytes, error) {
	switch e.format {
	case settings.ExportRaw:
		return e.writeRaw(ctx, env)
	case settings.ExportQCOW2:
		return e.writeQCOW2(ctx, env)
	case settings.ExportDump:
		return e.writeDump(ctx, env)
	}
	return e.writeTar(ctx, env)
}

// suitableFormat is the one that the settings have, where it suits the disk.
func (e *exporting) suitableFormat() string {
	why := ""
	switch {
	case e.set.ExportFormat != settings.ExportDump:
	case e.inst.Export.Index != 0:
		why = "it is of a system's disk, which is disk 0"
	case e.set.NoMount:
		why = "NOMOUNT is set"
	}
	if why != "" {
		slog.Warn("the backup is a tar and no dump: "+why, "by", e.set.Origin("EXPORT_FORMAT"))
		return settings.ExportTar
	}
	return e.set.ExportFormat
}

// tellSize tells Ganeti how long the backup will be, as far as is known. It is for
// showing progress: without it the export goes on.
func tellSize(env Env, n size.Bytes) {
	text := lookup(env.Environ, SizeVariable)
	if text == "" {
		return
	}
	fd, err := strconv.Atoi(text)
	if err != nil || fd <= 2 {
		slog.Warn("cannot tell Ganeti the size of the backup: no descriptor for it is open", SizeVariable, text)
		return
	}
	f := os.NewFile(uintptr(fd), SizeVariable)
	if _, err := fmt.Fprintf(f, "%d\n", int64(n)); err != nil {
		slog.Warn("cannot tell Ganeti the size of the backup", "cause", err)
	}
	_ = f.Close() // it is told, or not
}

func (e *exporting) writeTar(ctx context.Context, env Env) (size.Bytes, error) {
	m := backup.Manifest{Created: time.Now().UTC().Truncate(time.Second), Instance: e.inst.Name, OS: e.inst.OS, Disk: e.inst.Export.Index}
	if e.inst.Variant != "" {
		m.OS += "+" + e.inst.Variant
	}
	m.Describe(e.disk)
	if err := e.estimateTar(env, m); err != nil {
		return 0, err
	}
	out := &progress.Counter{To: e.out}
	var done atomic.Int64
	defer watch(e.inUse, func() size.Bytes { return size.Bytes(done.Load()) })()
	err := e.compressed(out, func(w io.Writer) error { return backup.Write(ctx, w, classified{e.src}, m, e.ranges(), &done) })
	return out.Count(), err
}

// compressed has what write writes compressed on its way, where that is wanted.
func (e *exporting) compressed(out io.Writer, write func(io.Writer) error) error {
	if e.set.ExportCompression == "none" {
		return write(out)
	}
	c, err := backup.NewCompressor(out)
	if err != nil {
		return err
	}
	err = write(c)
	if closed := c.Close(); err == nil && closed != nil {
		err = fmt.Errorf("cannot write the backup: %w", closed)
	}
	return err
}

func (e *exporting) estimateTar(env Env, m backup.Manifest) error {
	if lookup(env.Environ, SizeVariable) == "" {
		return nil
	}
	ratio := backup.Ratio(e.src, e.ranges(), e.inUse, e.set.ExportCompression != "none")
	n, err := backup.Estimate(m, size.Bytes(float64(e.inUse)*ratio))
	if err != nil {
		return err
	}
	tellSize(env, n)
	return nil
}

// writeQCOW2 writes clusters whole, so that what is free may be among them.
func (e *exporting) writeQCOW2(ctx context.Context, env Env) (size.Bytes, error) {
	plan, err := image.PlanQCOW2(e.disk.Length, func(yield func(image.Range, error) bool) {
		for r, err := range e.ranges() {
			if !yield(image.Range(r), err) {
				return
			}
		}
	})
	if err != nil {
		return 0, err
	}
	tellSize(env, plan.Size())
	out := &progress.Counter{To: e.out}
	defer watch(plan.Size(), out.Count)()
	return plan.Size(), plan.Write(ctx, out, classified{e.src})
}

// writeRaw writes the disk as it is, with zeros for what is free. A disk that
// begins as a backup of another format does is refused: import would take it for
// one.
func (e *exporting) writeRaw(ctx context.Context, env Env) (size.Bytes, error) {
	if e.disk.Length%512 != 0 {
		return 0, classify(Refused, fmt.Errorf("cannot export the disk as it is (EXPORT_FORMAT=raw): its %d bytes are no multiple of 512; use EXPORT_FORMAT=tar", int64(e.disk.Length)))
	}
	head := make([]byte, min(sniffed, e.disk.Length))
	if _, err := e.src.ReadAt(head, 0); err != nil {
		return 0, classify(Disk, fmt.Errorf("cannot read the disk: %w", err))
	}
	if kind := recognise(head); kind != rawBackup {
		return 0, classify(Refused, fmt.Errorf("cannot export the disk as it is (EXPORT_FORMAT=raw): it begins as %s does, and would be taken for one; use EXPORT_FORMAT=tar", kind))
	}
	tellSize(env, e.disk.Length)
	out := &progress.Counter{To: e.out}
	defer watch(e.disk.Length, out.Count)()
	off := size.Bytes(0)
	for r, err := range e.ranges() {
		if err == nil {
			err = copyZeros(ctx, out, r.Start-off)
		}
		if err == nil {
			err = copyRange(ctx, out, e.src, r)
		}
		if err != nil {
			return 0, err
		}
		off = r.Start + r.Length
	}
	return e.disk.Length, copyZeros(ctx, out, e.disk.Length-off)
}

// rawBlock is how much of a raw disk is moved at once.
const rawBlock = size.MiB

func copyZeros(ctx context.Context, w io.Writer, n size.Bytes) error {
	zeros := make([]byte, min(n, rawBlock))
	for ; n > 0; n -= size.Bytes(len(zeros)) {
		zeros = zeros[:min(n, size.Bytes(len(zeros)))]
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, err := w.Write(zeros); err != nil {
			return fmt.Errorf("cannot write the backup: %w", err)
		}
	}
	return nil
}

func copyRange(ctx context.Context, w io.Writer, src *block.Source, r used.Range) error {
	b := make([]byte, min(r.Length, rawBlock))
	for off, end := r.Start, r.Start+r.Length; off < end; off += size.Bytes(len(b)) {
		b = b[:min(end-off, size.Bytes(len(b)))]
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, err := src.ReadAt(b, int64(off)); err != nil {
			return classify(Disk, fmt.Errorf("cannot read the disk at offset %d: %w", int64(off), err))
		}
		if _, err := w.Write(b); err != nil {
			return fmt.Errorf("cannot write the backup: %w", err)
		}
	}
	return nil
}

// watch reports how much is done, until the returned function is called.
func watch(total size.Bytes, done func() size.Bytes) (stop func()) {
	return progress.Watch("exporting", func() (size.Bytes, size.Bytes) { return done(), total })
}
