package lab

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/undo"
)

// Spec says what image to make.
type Spec struct {
	Layout      Layout
	Format      string // "qcow2" (where empty) or "raw", which is sparse
	Compression string // of qcow2 clusters: "zlib", "zstd", or "" for none
	Files       []File // written into the guest at the end
}

// File is a file to be in the guest. Missing directories are made, as
// accessible as the file is.
type File struct {
	Path string // absolute, in the guest
	Data string
	Mode os.FileMode // permission bits; 0 stands for 0644
}

// The sources of this package are an image's recipe: a cached one is used only
// if they are what it was made by.
var (
	//go:embed image.go
	imageSource string
	//go:embed layout.go
	layoutSource string
	//go:embed grub.go
	grubSource string
	//go:embed volumes.go
	volumesSource string
)

// CachedImage returns an image made to the spec, from the cache where it is
// there. The file must not be written to.
func (l *Lab) CachedImage(ctx context.Context, spec Spec) (string, error) {
	d, err := spec.Layout.disk()
	if err != nil {
		return "", err
	}
	recipe, err := json.Marshal(spec)
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("%s-%s.%s", spec.Layout, digest(string(recipe), imageSource, layoutSource, grubSource, volumesSource,
		strings.Join(treeRecipe(d.further()...), "\x00")), spec.format())
	return l.cached(ctx, name, func(path string) error { return l.Image(ctx, spec, path) })
}

func (s Spec) format() string {
	if s.Format == "" {
		return "qcow2"
	}
	return s.Format
}

// Image makes an image as the file out, which it replaces. It needs root, and
// takes about 20 s where the tree is in the cache already.
func (l *Lab) Image(ctx context.Context, spec Spec, out string) (err error) {
	d, err := spec.Layout.disk()
	if err != nil {
		return err
	}
	tree, err := l.DebianTree(ctx, d.further()...)
	if err != nil {
		return err
	}
	unlock, err := lock(ctx, filepath.Join(l.Dir, "image.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	work, err := l.workDir("image")
	if err != nil {
		return err
	}
	var steps undo.Stack
	defer steps.Unwind(&err)
	steps.Push("remove "+work, func() error { return os.RemoveAll(work) })

	b := build{made: d.decide(), spec: spec, disk: filepath.Join(work, "disk.raw"), root: filepath.Join(work, "root"), work: work}
	if err := b.partition(ctx); err != nil {
		return err
	}
	if err := b.makeVolumes(ctx); err != nil {
		return err
	}
	if err := b.makeSwap(ctx); err != nil {
		return err
	}
	if err := apart(func() error { return b.fill(ctx, tree) }); err != nil {
		return err
	}
	if err := b.embed(); err != nil {
		return err
	}
	steps.OnFailure("remove "+out, func() error { return os.RemoveAll(out) })
	return b.pack(ctx, out)
}

// build is one image being made in a work directory.
type build struct {
	made
	spec Spec
	work string
	disk string // the raw disk, a sparse file
	root string // where the guest is mounted
}

func (b build) partition(ctx context.Context) error {
	if err := os.WriteFile(b.disk, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(b.disk, int64(b.size)); err != nil {
		return err
	}
	if b.table == "" {
		return nil
	}
	_, err := run.Cmd{What: "write the partition table", Argv: []string{"sfdisk", "--quiet", b.disk},
		Stdin: strings.NewReader(b.script())}.Run(ctx)
	return err
}

// fill makes and mounts the filesystems, unpacks the tree into them and makes
// it the guest of this layout. Nothing is mounted any more when it returns. It
// has to be run apart.
func (b build) fill(ctx context.Context, tree string) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	if err := os.Mkdir(b.root, 0o755); err != nil {
		return err
	}
	for _, at := range []string{"/", "/boot"} {
		if p, ok := b.find(at); ok {
			if err := b.mount(ctx, &steps, p); err != nil {
				return err
			}
		}
	}
	_, err = run.Cmd{What: "unpack the tree", Argv: append(withUs("KILL"), "tar", "-C", b.root, "-xpf", tree, "--numeric-owner",
		"--xattrs", "--xattrs-include=*", "--exclude=./dev/*")}.Run(ctx)
	if err != nil {
		return err
	}
	if err := b.settle(ctx); err != nil {
		return err
	}
	if b.table != "" {
		if err := b.coreBIOS(ctx, b.root, filepath.Join(b.work, "core.img")); err != nil {
			return err
		}
		if err := copyFile(filepath.Join(b.root, modulesBIOS, "boot.img"), filepath.Join(b.work, "boot.img")); err != nil {
			return err
		}
	}
	if b.layout.UEFI() {
		return b.fillESP(ctx, b.disk, b.root, b.work)
	}
	return nil
}

// attach gives a part of the image a loop device, which is detached when the
// steps are undone, or before. The kernel needs to know neither partitions nor
// volumes, since the loop device is only that part.
func (b build) attach(ctx context.Context, steps *undo.Stack, p madePart) (loop string, detach func() error, err error) {
	losetup := []string{"losetup", "--find", "--show", fmt.Sprintf("--offset=%d", p.start), fmt.Sprintf("--sizelimit=%d", p.length), b.disk}
	result, err := run.Cmd{What: "attach a part of the image", Argv: losetup}.Run(ctx)
	if err != nil {
		return "", nil, err
	}
	loop = strings.TrimSpace(string(result.Stdout))
	attached := true
	detach = func() error {
		if !attached {
			return nil
		}
		attached = false
		_, err := run.Cmd{What: "detach " + loop, Argv: []string{"losetup", "--detach", loop}}.Run(context.WithoutCancel(ctx))
		return err
	}
	steps.Push("detach "+loop, detach)
	return loop, detach, nil
}

// makeSwap makes the swap space of the layout.
func (b build) makeSwap(ctx context.Context) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	for _, p := range b.parts {
		if p.fs != "swap" {
			continue
		}
		loop, _, err := b.attach(ctx, &steps, p)
		if err != nil {
			return err
		}
		if _, err := (run.Cmd{What: "make swap space", Argv: p.mkfs(loop)}).Run(ctx); err != nil {
			return err
		}
	}
	return nil
}

// mount makes a part's filesystem and mounts it where the guest has it.
func (b build) mount(ctx context.Context, steps *undo.Stack, p madePart) error {
	loop, detach, err := b.attach(ctx, steps, p)
	if err != nil {
		return err
	}
	if _, err := (run.Cmd{What: "make a filesystem", Argv: p.mkfs(loop)}).Run(ctx); err != nil {
		return err
	}
	if err := makeSubvolumes(ctx, loop, filepath.Join(b.work, "top"), p); err != nil {
		return err
	}
	for _, m := range p.mounts() {
		target := filepath.Join(b.root, m.at)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(loop, target, p.fs, 0, m.data); err != nil {
			return fmt.Errorf("cannot mount %s (%s) on %s: %w", loop, p.fs, target, err)
		}
		steps.Push("unmount "+target, func() error { return unix.Unmount(target, 0) })
	}
	// Told so while it is mounted, the loop device goes by itself with the
	// mount, also if this process is killed.
	return detach()
}

type mountPoint struct{ at, data string }

// mounts lists how a part is mounted in the guest.
func (p madePart) mounts() []mountPoint {
	if len(p.subvols) == 0 {
		return []mountPoint{{at: p.at}}
	}
	var points []mountPoint
	for _, v := range p.subvols {
		points = append(points, mountPoint{at: v.at, data: "subvol=" + v.name + "," + p.options})
	}
	return points
}

func (p madePart) mkfs(device string) []string {
	switch p.fs {
	case "xfs":
		return []string{"mkfs.xfs", "-q", "-L", p.label, "-m", "uuid=" + p.uuid, device}
	case "btrfs":
		return []string{"mkfs.btrfs", "-q", "-L", p.label, "-U", p.uuid, device}
	case "swap":
		return []string{"mkswap", "-U", p.uuid, device}
	}
	return []string{"mkfs.ext4", "-q", "-L", p.label, "-U", p.uuid, device}
}

func makeSubvolumes(ctx context.Context, device, top string, p madePart) (err error) {
	if len(p.subvols) == 0 {
		return nil
	}
	var steps undo.Stack
	defer steps.Unwind(&err)
	if err := os.Mkdir(top, 0o755); err != nil {
		return err
	}
	steps.Push("remove "+top, func() error { return os.Remove(top) })
	if err := unix.Mount(device, top, p.fs, 0, ""); err != nil {
		return fmt.Errorf("cannot mount %s on %s: %w", device, top, err)
	}
	steps.Push("unmount "+top, func() error { return unix.Unmount(top, 0) })
	argv := []string{"btrfs", "subvolume", "create"}
	for _, v := range p.subvols {
		if _, err := (run.Cmd{What: "make a subvolume", Argv: append(argv, filepath.Join(top, v.name))}).Run(ctx); err != nil {
			return err
		}
	}
	return nil
}

// settle writes what differs from layout to layout into the mounted guest.
func (b build) settle(ctx context.Context) error {
	kernel, err := only(filepath.Join(b.root, "boot/vmlinuz-*"))
	if err != nil {
		return err
	}
	initrd, err := only(filepath.Join(b.root, "boot/initrd.img-*"))
	if err != nil {
		return err
	}
	files := []File{
		{Path: "/etc/fstab", Data: b.fstab()},
		{Path: "/etc/default/grub", Data: defaultGrub},
	}
	if b.table != "" {
		files = append(files, File{Path: "/boot/" + b.grub + "/grub.cfg", Data: b.grubConfig(kernel, initrd), Mode: 0o600})
		if err := b.copyModules(b.root); err != nil {
			return err
		}
	}
	if b.bls {
		name := strings.ReplaceAll(randomUUID(), "-", "") + "-" + strings.TrimPrefix(kernel, "vmlinuz-") + ".conf"
		files = append(files, File{Path: "/boot/loader/entries/" + name, Data: b.loaderEntry(kernel, initrd)})
	}
	if b.usedOnce {
		files = append(files, File{Path: "/etc/machine-id", Data: strings.ReplaceAll(randomUUID(), "-", "") + "\n", Mode: 0o444},
			File{Path: "/etc/hostname", Data: "golden\n"})
		if _, err := (run.Cmd{What: "make host keys", Argv: []string{"ssh-keygen", "-A", "-f", b.root}}).Run(ctx); err != nil {
			return err
		}
	}
	for _, f := range append(files, b.spec.Files...) {
		if err := f.write(b.root); err != nil {
			return err
		}
	}
	return os.MkdirAll(filepath.Join(b.root, "boot/efi"), 0o700)
}

func (f File) write(root string) error {
	mode := f.Mode
	if mode == 0 {
		mode = 0o644
	}
	path := filepath.Join(root, f.Path)
	if err := os.MkdirAll(filepath.Dir(path), mode|mode>>2&0o111); err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(f.Data), mode); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// only returns the base name of the one file that a pattern matches.
func only(pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("want one %s, got %q", pattern, found)
	}
	if err != nil {
		return "", err
	}
	return filepath.Base(found[0]), nil
}

func (b build) embed() (err error) {
	if b.table == "" {
		return nil
	}
	f, err := os.OpenFile(b.disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return b.embedBIOS(f, filepath.Join(b.work, "boot.img"), filepath.Join(b.work, "core.img"))
}

func (b build) pack(ctx context.Context, out string) error {
	if b.spec.format() == "raw" {
		_, err := run.Cmd{What: "copy the image", Argv: []string{"cp", "--sparse=always", b.disk, out}}.Run(ctx)
		return err
	}
	argv := []string{"qemu-img", "convert", "-f", "raw", "-O", b.spec.format(), "-W", "-m", "4"}
	if b.spec.Compression != "" {
		argv = append(argv, "-c", "-o", "compression_type="+b.spec.Compression)
	}
	_, err := run.Cmd{What: "pack the image", Argv: append(argv, b.disk, out)}.Run(ctx)
	return err
}

// randomUUID returns a random UUID, in lower case.
func randomUUID() string {
	var u [16]byte
	rand.Read(u[:]) // never fails, by its documentation
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
