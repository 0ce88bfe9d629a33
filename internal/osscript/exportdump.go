package osscript

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"ganeti-instance-image/internal/dump"
	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/mount"
	"ganeti-instance-image/internal/progress"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/undo"
)

// dumped is a file system that is written as a dump.
type dumped struct {
	name    string // in the tar
	at      string // where the guest has it
	outline *dump.Outline
}

// writeDump writes what the Bash version did: the guest's files as dumps in a tar.
// They are not compressed, since a tar says in front how long each is.
func (e *exporting) writeDump(ctx context.Context, env Env) (n size.Bytes, err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	tree, err := e.mountForDump(ctx, &steps)
	if err != nil {
		return 0, err
	}
	dumps := []dumped{{name: oldRoot, at: "/"}}
	if tree.BootPart != nil {
		dumps = append(dumps, dumped{name: oldBoot, at: "/boot"})
	}
	for i := range dumps {
		d := &dumps[i]
		if d.outline, err = scan(ctx, tree, d.at); err != nil {
			return 0, err
		}
		steps.Push("close the dump of "+d.at, d.outline.Close)
		n += tarred(size.Bytes(d.outline.Size()))
		for _, warning := range d.outline.Warnings() {
			slog.Warn(warning, "of", d.at)
		}
	}
	n += 2 * tarRecord
	tellSize(env, n)
	out := &progress.Counter{To: e.out}
	defer watch(n, out.Count)()
	return n, e.writeDumps(ctx, out, dumps)
}

// scan looks at what a file system has, where it was mounted: /boot may be a link
// of the guest's.
func scan(ctx context.Context, tree *mount.Tree, at string) (*dump.Outline, error) {
	dir, err := tree.Root.OpenDir(at)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dump.Scan(ctx, guest.PathOf(dir), dump.ScanOptions{})
}

// tarRecord is what a tar consists of, in bytes.
const tarRecord size.Bytes = 512

// tarred is what a file of n bytes takes in a tar.
func tarred(n size.Bytes) size.Bytes { return tarRecord + n.AlignUp(tarRecord) }

func (e *exporting) writeDumps(ctx context.Context, out io.Writer, dumps []dumped) error {
	w := tar.NewWriter(out)
	for _, d := range dumps {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "./" + d.name, Mode: 0o600, Size: d.outline.Size(), Format: tar.FormatGNU}); err != nil {
			return fmt.Errorf("cannot write the backup: %w", err)
		}
		if err := d.outline.Write(ctx, w, dump.WriteOptions{Host: e.inst.Name, Filesystem: d.at}); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("cannot write the backup: %w", err)
	}
	return nil
}

// mountForDump mounts the guest so that nothing of it is changed, if all of it can
// be in a dump. The ESP need not be: import makes another one.
func (e *exporting) mountForDump(ctx context.Context, steps *undo.Stack) (*mount.Tree, error) {
	refuse := func(err error) error {
		return classify(Refused, fmt.Errorf("cannot export a dump (EXPORT_FORMAT=dump, by %s): %w; EXPORT_FORMAT=tar can", e.set.Origin("EXPORT_FORMAT"), err))
	}
	table, err := layout.Read(e.src, e.src.Size())
	if err != nil && !errors.Is(err, layout.ErrNoTable) {
		return nil, refuse(err)
	}
	tree, err := mount.Open(ctx, e.src, table, mount.Options{ReadOnly: true, Leave: espMountpoint}, steps)
	if err != nil {
		return nil, refuse(err)
	}
	for _, m := range tree.Mounts() {
		switch {
		case m.Unreplayed != "":
			return nil, refuse(fmt.Errorf("the file system of %s was not unmounted cleanly (%s)", m.At, m.Unreplayed))
		case m.At != "/" && m.At != "/boot":
			return nil, refuse(fmt.Errorf("%s is a file system of its own", m.At))
		}
	}
	left, err := e.leftOut(table, tree)
	if err != nil {
		return nil, classify(Disk, err)
	}
	if left != "" {
		return nil, refuse(fmt.Errorf("%s would not be in it", left))
	}
	return tree, nil
}

// leftOut names what is on the disk and in none of the mounted file systems, but
// for what import makes anew: swap space, the ESP, and where GRUB is embedded.
func (e *exporting) leftOut(table *layout.Table, tree *mount.Tree) (string, error) {
	for _, p := range e.disk.Parts {
		if p.Kind == filesystem.Swap || p.Kind == filesystem.LVM2 || slices.ContainsFunc(tree.Mounts(), func(m mount.Mount) bool { return m.Part.Start == p.Start }) {
			continue
		}
		partition, _ := table.Find(p.Number)
		if slices.Contains([]string{layout.TypeESP, layout.TypeESPOfMBR, layout.TypeBIOSBoot}, partition.Type) {
			continue
		}
		blank, err := isBlank(io.NewSectionReader(e.src, int64(p.Start), int64(p.Length)), min(p.Length, size.MiB))
		if err != nil {
			return "", err
		}
		if p.Kind != filesystem.None || !blank {
			return strings.TrimSpace(fmt.Sprintf("partition %d %s", p.Number, p.Volume)), nil
		}
	}
	return "", nil
}
