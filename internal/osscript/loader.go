package osscript

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/grub"
	"ganeti-instance-image/internal/image"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/mount"
	"ganeti-instance-image/internal/osapi"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/undo"
)

// runGRUB is the hook grub: it makes a guest boot whose disk was made for it.
func runGRUB(ctx context.Context, c *customisation) error {
	if kind := lookup(c.environ, "IMAGE_TYPE"); kind != image.TypeTarball && kind != image.TypeDump {
		slog.Info("grub: nothing to do, a disk image brings its own boot loader")
		return nil
	}
	return makeBootable(ctx, c, lookup(c.environ, "BLOCKDEV"), linkNumber(lookup(c.environ, "ROOT_DEV")), linkNumber(lookup(c.environ, "BOOT_DEV")))
}

// linkNumber is the partition's number at the end of a name that deviceLink made.
func linkNumber(link string) int {
	n, _ := strconv.Atoi(link[strings.LastIndexByte(link, '-')+1:])
	return n
}

// makeBootable installs the guest's own boot loader on the disk and has its
// configuration name the disk's file systems. A number is 0 where there is no
// such partition.
func makeBootable(ctx context.Context, c *customisation, path string, rootNumber, bootNumber int) error {
	disk, err := openWhole(path)
	if err != nil {
		return err
	}
	defer disk.Close()
	target := grub.Target{Root: c.root, Disk: disk, KernelArgs: grub.SplitArgs(c.set.KernelArgs), Hypervisor: c.inst.Hypervisor, External: c.inst.ExternalKernel()}
	target.Serial.Device, target.Serial.Speed = serialConsole(c.inst)
	if target.Table, err = layout.Read(disk, disk.Size()); err != nil {
		return fmt.Errorf("cannot install the boot loader: %w", err)
	}
	if target.RootFS, err = systemOn(disk, target.Table, rootNumber); err != nil {
		return err
	}
	if bootNumber != 0 {
		if target.BootFS, err = systemOn(disk, target.Table, bootNumber); err != nil {
			return err
		}
	}
	changes, err := grub.Install(ctx, target)
	say("grub", changes)
	return err
}

// systemOn is the file system on a partition.
func systemOn(disk io.ReaderAt, table *layout.Table, number int) (grub.Filesystem, error) {
	p, ok := table.Find(number)
	if !ok {
		return grub.Filesystem{}, fmt.Errorf("cannot install the boot loader: the disk has no partition %d", number)
	}
	info, err := filesystem.Probe(io.NewSectionReader(disk, int64(p.Start), int64(p.Length)), p.Length)
	return grub.Filesystem{Number: number, Kind: info.Kind, UUID: info.UUID, Label: info.Label, PartUUID: table.PartUUID(p)}, err
}

// wholeDisk is the disk of a guest whose file systems are mounted.
type wholeDisk struct {
	*os.File
	size size.Bytes
}

func openWhole(path string) (*wholeDisk, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open the disk for its boot loader: %w", err)
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot open the disk for its boot loader: %w", err)
	}
	return &wholeDisk{f, size.Bytes(end)}, nil
}

func (d *wholeDisk) Path() string     { return d.Name() }
func (d *wholeDisk) Size() size.Bytes { return d.size }

// serialConsole is the console that the hypervisor connects for the instance, by
// the guest's name for it; empty where there is none. The speed is in bits per
// second.
func serialConsole(inst osapi.Instance) (device string, speed int) {
	switch {
	case inst.Hypervisor == "xen-pvm":
		return "hvc0", 0
	case inst.Hypervisor == "xen-hvm", inst.Hypervisor == "kvm" && inst.HVParams["serial_console"] == "True":
		speed, err := strconv.Atoi(inst.HVParams["serial_speed"])
		if err != nil || speed <= 0 {
			speed = 38400 // Ganeti's default
		}
		return "ttyS0", speed
	}
	return "", 0
}

// sayWhetherItBoots warns of a disk that nothing boots from.
func (c *creation) sayWhetherItBoots() {
	if c.inst.ExternalKernel() || c.wantsLoader() {
		return
	}
	if c.inst.Hypervisor == "xen-pvm" {
		slog.Info("pygrub reads the boot loader's configuration as the image has it; the hook grub, or GRUB=auto, makes it name this disk's file systems")
		return
	}
	slog.Warn("this guest will not boot by itself: no boot loader is installed; " +
		"enable the hook grub (ganeti-image hooks enable grub), set GRUB=auto, or give the instance a kernel of the node (kernel_path)")
}

// installLoader makes the guest boot, where the setting GRUB asks for that and
// not the hook, which does the same.
func (c *creation) installLoader(ctx context.Context, t *mount.Tree, steps *undo.Stack) error {
	if c.tree == nil || c.set.GRUB != "auto" || c.enabled("grub") {
		return nil
	}
	return c.bootFromDisk(ctx, t, steps)
}

func (c *creation) bootFromDisk(ctx context.Context, t *mount.Tree, steps *undo.Stack) error {
	path, err := c.blockDevice(steps)
	if err != nil {
		return err
	}
	return classifyLoader(makeBootable(ctx, &customisation{root: t.Root, set: c.set, inst: c.inst}, path, number(t.RootPart), number(t.BootPart)))
}

// classifyLoader tells an image that nothing could boot from what went wrong here.
func classifyLoader(err error) error {
	if errors.Is(err, grub.ErrNoKernel) || errors.Is(err, grub.ErrNoLoader) {
		return classify(Image, err)
	}
	return err
}

func number(p *mount.Part) int {
	if p == nil {
		return 0
	}
	return p.Number
}
