package osscript

import (
	"context"
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
	"ganeti-instance-image/internal/size"
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
	target := grub.Target{Root: c.root, Disk: disk, KernelArgs: kernelArgs(c.set.KernelArgs), Hypervisor: c.inst.Hypervisor, External: c.inst.ExternalKernel()}
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
	for _, change := range changes {
		slog.Info("grub: " + change)
	}
	return err
}

// kernelArgs cuts a kernel's command line at its blanks; those between double
// quotes belong to an argument.
func kernelArgs(line string) []string {
	quoted := false
	return strings.FieldsFunc(line, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return r == ' ' && !quoted
	})
}

// systemOn is the file system on a partition.
func systemOn(disk io.ReaderAt, table *layout.Table, number int) (grub.Filesystem, error) {
	for _, p := range table.Partitions {
		if p.Number != number {
			continue
		}
		info, err := filesystem.Probe(io.NewSectionReader(disk, int64(p.Start), int64(p.Length)), p.Length)
		return grub.Filesystem{Number: number, Kind: info.Kind, UUID: info.UUID, Label: info.Label, PartUUID: table.PartUUID(p)}, err
	}
	return grub.Filesystem{}, fmt.Errorf("cannot install the boot loader: the disk has no partition %d", number)
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
