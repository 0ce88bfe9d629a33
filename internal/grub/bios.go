package grub

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/size"
)

const (
	maxCoreRoom = 16 * size.MiB // of a BIOS boot partition; more is of no use
)

// The parts of boot.img (include/grub/i386/pc/boot.h). What stands there on the
// disk is kept: the parameters of a FAT that begins in sector 0, the signature
// of the disk and the partition table.
const (
	bpbStart, bpbEnd     = 0x03, 0x5a
	tableStart, tableEnd = 0x1b8, 0x1fe
	atCoreSector         = 0x5c // where core.img begins
	atBootDrive          = 0x64 // 0xff: the drive that the BIOS booted
	atDriveCheck         = 0x66 // a jump for floppies
)

// installBIOS writes GRUB for BIOS to the disk, and its modules to /boot.
func installBIOS(_ context.Context, t Target, f *facts) ([]string, error) {
	at, room, err := coreRoom(t.Table)
	if err != nil {
		if !f.loaders.BIOS {
			return nil, quiet{err}
		}
		return nil, err
	}
	from, done, err := biosSource(t.Root, f)
	if err != nil {
		return nil, err
	}
	defer done()
	core, err := f.core(from)
	if err != nil {
		return nil, err
	}
	if size.Bytes(len(core)) > room {
		return nil, unfit(fmt.Sprintf("GRUB's core image for %s needs %d bytes and the disk has room for %d in front of its first partition: let that begin at 1 MiB",
			f.boot.Kind, len(core), int64(room)))
	}
	copied, err := copyModules(from, t.Root, f.grub+"/i386-pc")
	if err != nil {
		return nil, err
	}
	boot, err := from.read("boot.img")
	if err != nil {
		return nil, err
	}
	if err := embed(t.Disk, boot, core, at); err != nil {
		return nil, err
	}
	return append([]string{fmt.Sprintf("embedded GRUB for BIOS from %s: %d bytes at %d", from, len(core), int64(at))}, copied...), nil
}

// core makes the core image for this disk. Its prefix names a partition of the
// disk that the BIOS booted, and no UUID.
func (f *facts) core(from moduleDir) ([]byte, error) {
	module, err := f.readBy()
	if err != nil {
		return nil, err
	}
	prefix := fmt.Sprintf("(,%s)%s", f.bootPart, f.onBoot(f.grub))
	return from.coreImage(prefix, []string{"biosdisk", "part_msdos", "part_gpt", module})
}

// readBy is the module by which GRUB reads /boot.
func (f *facts) readBy() (string, error) {
	module := grubModule(f.boot.Kind)
	if module == "" {
		return "", unfit(fmt.Sprintf("GRUB reads no %s, which /boot is on: want one of ext2, ext3, ext4, xfs, btrfs, vfat, f2fs", f.boot.Kind))
	}
	if !f.plainBoot || f.bootPart == "" {
		return "", unfit("/boot is on no partition of this disk, but on a logical volume or elsewhere; put it on a partition of its own")
	}
	return module, nil
}

// onBoot is the path that something in the guest's /boot has in its own file
// system.
func (f *facts) onBoot(name string) string { return f.prefix + strings.TrimPrefix(name, "/boot") }

// coreRoom is where a core image can be: the BIOS boot partition of a GPT, or
// what lies between an MBR and the first partition.
func coreRoom(table *layout.Table) (at, room size.Bytes, err error) {
	switch {
	case table == nil:
		return 0, 0, unfit("the disk has no partition table, so that there is no room for GRUB")
	case table.Sector() != sectorSize:
		return 0, 0, unfit(fmt.Sprintf("the disk counts in sectors of %d bytes; GRUB boots by BIOS only from those of 512", int64(table.Sector())))
	case table.Kind == layout.MBR && len(table.Partitions) == 0:
		return 0, 0, unfit("the disk's MBR has no partitions")
	case table.Kind == layout.MBR:
		return sectorSize, max(0, min(table.Partitions[0].Start, size.MiB)-sectorSize), nil
	case table.Kind == layout.GPT:
		for _, p := range table.Partitions {
			if p.Type == layout.TypeBIOSBoot {
				return p.Start, min(p.Length, maxCoreRoom), nil
			}
		}
	}
	return 0, 0, unfit("the disk has a GPT without a BIOS boot partition, so that there is no room for GRUB")
}

// biosSource is where GRUB's files come from. done is to be called when they
// were read.
func biosSource(root *guest.Root, f *facts) (dir moduleDir, done func(), err error) {
	dir, done, err = biosDir(root, f.loaders)
	if err != nil || !dir.node {
		return dir, done, err
	}
	if err := dir.fits(root, f.grub+"/grub.cfg"); err != nil {
		done()
		return moduleDir{}, nil, err
	}
	return dir, done, nil
}

// biosDir is the directory with GRUB's files for BIOS that are installed: the
// guest's, whose configuration they fit, or else this node's, with an empty path
// where it has none.
func biosDir(root *guest.Root, l Loaders) (dir moduleDir, done func(), err error) {
	if l.BIOS {
		return moduleDir{root: root, path: l.BIOSDir}, func() {}, nil
	}
	node, err := guest.Open("/")
	if err != nil {
		return moduleDir{}, nil, err
	}
	return moduleDir{root: node, path: findBIOS(node), node: true}, func() { node.Close() }, nil
}

// fits tells whether this node's GRUB can read the guest's configuration.
func (d moduleDir) fits(root *guest.Root, config string) error {
	if d.path == "" {
		return unfit("the guest has no GRUB for BIOS (looked in " + strings.Join(biosDirs, ", ") + "), and this node has none either")
	}
	text, err := root.ReadFile(config, cfgLimit)
	if err != nil {
		return unfit("the guest has no GRUB for BIOS, nor a configuration for this node's: " + err.Error())
	}
	if callsBLSCfg(string(text)) && !hasMenu(string(text)) && !hasFiles(d.root, d.path, "blscfg.mod") {
		return unfit("the guest has no GRUB for BIOS, and this node's has no command blscfg, which " + config + " uses: install grub2-pc in the guest")
	}
	return nil
}

// embed writes the core image and then the boot sector. Up to the last write
// the disk boots as it did.
func embed(disk Disk, boot, core []byte, at size.Bytes) error {
	if len(boot) != sectorSize || boot[510] != 0x55 || boot[511] != 0xAA {
		return errors.New("boot.img is not GRUB's boot sector")
	}
	old := make([]byte, sectorSize)
	if _, err := disk.ReadAt(old, 0); err != nil {
		return fmt.Errorf("cannot read the boot sector of %s: %w", disk.Path(), err)
	}
	first := int64(at / sectorSize)
	setBlocklist(core, first)
	copy(boot[bpbStart:bpbEnd], old[bpbStart:])
	copy(boot[tableStart:tableEnd], old[tableStart:])
	le.PutUint64(boot[atCoreSector:], uint64(first))
	boot[atBootDrive] = 0xff
	copy(boot[atDriveCheck:], []byte{0x90, 0x90})
	if err := writeSynced(disk, core, int64(at)); err != nil {
		return fmt.Errorf("cannot write GRUB's core image to %s: %w", disk.Path(), err)
	}
	if err := writeSynced(disk, boot, 0); err != nil {
		return fmt.Errorf("cannot write GRUB's boot sector to %s: %w", disk.Path(), err)
	}
	return nil
}

func writeSynced(disk Disk, data []byte, at int64) error {
	if _, err := disk.WriteAt(data, at); err != nil {
		return err
	}
	return flush(disk)
}

// flush has what was written stored, on a disk that can be asked to.
func flush(disk Disk) error {
	if d, ok := disk.(interface{ Sync() error }); ok {
		return d.Sync()
	}
	return nil
}
