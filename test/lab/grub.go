package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/size"
)

// Where GRUB's own modules are in a Debian tree.
const (
	modulesBIOS = "usr/lib/grub/i386-pc"
	modulesEFI  = "usr/lib/grub/x86_64-efi"
)

// grubConfig is /boot/grub/grub.cfg, in the shape that grub-mkconfig gives it.
func (m made) grubConfig(kernel, initrd string) string {
	boot, prefix := m.boot()
	partition := map[string]string{"gpt": "hd0,gpt", "dos": "hd0,msdos"}[m.table]
	module := map[string]string{"ext4": "ext2"}[boot.fs]
	if module == "" {
		module = boot.fs
	}
	return fmt.Sprintf(`set default=0
set timeout=0
serial --speed=115200
terminal_input console serial
terminal_output console serial
insmod part_%[1]s
insmod %[2]s
set root='%[3]s%[4]d'
search --no-floppy --fs-uuid --set=root %[5]s
### BEGIN /etc/grub.d/10_linux ###
menuentry 'Debian GNU/Linux' --class debian --class gnu-linux --class gnu --class os {
	linux	%[6]s/%[7]s %[8]s
	initrd	%[6]s/%[9]s
}
### END /etc/grub.d/10_linux ###
`, strings.Replace(m.table, "dos", "msdos", 1), module, partition, boot.number, boot.uuid,
		prefix, kernel, m.kernelArguments(), initrd)
}

// loaderEntry is the same as a Boot Loader Specification file.
func (m made) loaderEntry(kernel, initrd string) string {
	_, prefix := m.boot()
	return fmt.Sprintf("title Debian GNU/Linux 12\nversion %s\nlinux %s/%s\ninitrd %s/%s\noptions %s\n",
		strings.TrimPrefix(kernel, "vmlinuz-"), prefix, kernel, prefix, initrd, m.kernelArguments())
}

// defaultGrub is /etc/default/grub.
const defaultGrub = `GRUB_DEFAULT=0
GRUB_TIMEOUT=0
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="` + console + `"
GRUB_TERMINAL="console serial"
GRUB_SERIAL_COMMAND="serial --speed=115200"
`

// coreBIOS makes the image of GRUB that SeaBIOS comes to from the boot sector.
// Its prefix names no disk, so that it is the one that was booted.
func (m made) coreBIOS(ctx context.Context, root, out string) error {
	boot, prefix := m.boot()
	kind := strings.Replace(m.table, "dos", "msdos", 1)
	argv := []string{"grub-mkimage", "-d", filepath.Join(root, modulesBIOS), "-O", "i386-pc", "-o", out,
		"-p", fmt.Sprintf("(,%s%d)%s/%s", kind, boot.number, prefix, m.grub),
		"biosdisk", "part_" + kind, strings.Replace(boot.fs, "ext4", "ext2", 1)}
	_, err := run.Cmd{What: "make GRUB for BIOS", Argv: argv}.Run(ctx)
	return err
}

// embedBIOS writes the boot sector and the core image to the disk, as
// grub-bios-setup does, which cannot be given a file.
func (m made) embedBIOS(disk *os.File, bootPath, corePath string) error {
	bootSector, err := os.ReadFile(bootPath)
	if err != nil {
		return err
	}
	core, err := os.ReadFile(corePath)
	if err != nil {
		return err
	}
	at, room := m.coreRoom()
	core = append(core, make([]byte, -len(core)&511)...)
	if size.Bytes(len(core)) > room {
		return fmt.Errorf("GRUB's core image has %d bytes and there is room for %d", len(core), room)
	}
	old := make([]byte, 512)
	if _, err := disk.ReadAt(old, 0); err != nil {
		return err
	}
	first := uint64(at / 512)
	copy(bootSector[0x1b8:0x1fe], old[0x1b8:0x1fe]) // disk identifier and table
	binary.LittleEndian.PutUint64(bootSector[0x5c:], first)
	bootSector[0x64] = 0xff                     // the disk that was booted
	copy(bootSector[0x66:], []byte{0x90, 0x90}) // no check for a broken BIOS's drive number
	binary.LittleEndian.PutUint64(core[0x1f4:], first+1)
	binary.LittleEndian.PutUint16(core[0x1fc:], uint16(len(core)/512-1))
	if _, err := disk.WriteAt(core, int64(at)); err != nil {
		return err
	}
	_, err = disk.WriteAt(bootSector, 0)
	return err
}

// coreRoom is where the core image goes: the BIOS boot partition, or between a
// DOS table and the first partition.
func (m made) coreRoom() (at, room size.Bytes) {
	for _, p := range m.parts {
		if p.kind == typeBIOS {
			return p.start, p.length
		}
	}
	return 512, m.parts[0].start - 512
}

// fillESP makes the ESP's filesystem with GRUB in the place that firmware looks
// at without being told. It needs no kernel that knows FAT.
func (m made) fillESP(ctx context.Context, disk, root, work string) error {
	esp, ok := m.find("/boot/efi")
	if !ok {
		return errors.New("the layout has no ESP")
	}
	image, stub := filepath.Join(work, "BOOTX64.EFI"), filepath.Join(work, "grub.cfg")
	argv := append([]string{"grub-mkimage", "-d", filepath.Join(root, modulesEFI), "-O", "x86_64-efi", "-o", image,
		"-p", "/EFI/" + m.vendor}, modulesInESP...)
	if _, err := (run.Cmd{What: "make GRUB for UEFI", Argv: argv}).Run(ctx); err != nil {
		return err
	}
	boot, prefix := m.boot()
	text := fmt.Sprintf("search.fs_uuid %s root\nset prefix=($root)'%s/%s'\nconfigfile $prefix/grub.cfg\n", boot.uuid, prefix, m.grub)
	if err := os.WriteFile(stub, []byte(text), 0o644); err != nil {
		return err
	}
	at := fmt.Sprintf("%s@@%d", disk, esp.start)
	for _, argv := range [][]string{
		{"mkfs.vfat", "-F", "16", "-n", labelOr(esp.label, "NO NAME"), "-i", strings.ReplaceAll(esp.uuid, "-", ""),
			fmt.Sprintf("--offset=%d", esp.start/512), disk, fmt.Sprint(int64(esp.length / size.KiB))},
		{"mmd", "-i", at, "::/EFI", "::/EFI/BOOT", "::/EFI/" + m.vendor},
		{"mcopy", "-i", at, image, "::/EFI/BOOT/BOOTX64.EFI"},
		{"mcopy", "-i", at, stub, "::/EFI/" + m.vendor + "/grub.cfg"},
	} {
		if _, err := (run.Cmd{What: "fill the ESP", Argv: argv}).Run(ctx); err != nil {
			return err
		}
	}
	return nil
}

// modulesInESP are enough to find /boot and read its grub.cfg, which loads the
// rest from /boot.
var modulesInESP = []string{"part_gpt", "part_msdos", "fat", "ext2", "xfs", "btrfs",
	"search", "search_fs_uuid", "search_label", "normal", "configfile", "linux", "echo", "test", "serial", "terminal"}

func labelOr(label, other string) string {
	if label == "" {
		return other
	}
	return label
}

// copyModules copies GRUB's modules to /boot, as grub-install does.
func (m made) copyModules(root string) error {
	for _, from := range []string{modulesBIOS, modulesEFI} {
		to := filepath.Join(root, "boot", m.grub, filepath.Base(from))
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		for _, pattern := range []string{"*.mod", "*.lst"} {
			files, err := filepath.Glob(filepath.Join(root, from, pattern))
			if err != nil {
				return err
			}
			for _, file := range files {
				if err := copyFile(file, filepath.Join(to, filepath.Base(file))); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}
