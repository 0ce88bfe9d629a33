package grub

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

const (
	nodeEFI  = "/usr/lib/grub/x86_64-efi"
	firmware = "/usr/share/ovmf/OVMF.fd"
	greeting = "the guest's own grub.cfg was read"
	espID    = 0x1234abcd
)

// bootable is a disk with a guest that is nothing but a boot loader.
type bootable struct {
	name     string
	table    string // for sfdisk
	length   size.Bytes
	root     filesystem.Kind
	rootOn   int
	bootOn   int             // 0: no partition of its own
	bootKind filesystem.Kind // of that partition
	bios     bool            // the guest has GRUB for BIOS; else the node's is used
	efi      string          // "monolithic", "modules" or ""
	grub     string          // its directory in /boot
	firmware []string        // what it boots by

	dir string // where it is mounted
}

var bootables = []bootable{
	{
		name: "MBR ext4 monolithic", length: 112 * size.MiB, root: filesystem.Ext4, rootOn: 1, bios: true, efi: "monolithic", grub: "grub",
		table:    "label: dos\nlabel-id: 0x89abcdef\n4: start=2048, size=65536, type=ef\n1: start=67584, type=83, bootable\n",
		firmware: []string{"BIOS", "UEFI"},
	},
	{
		name: "GPT boot on xfs modules", length: 560 * size.MiB, root: filesystem.Ext4, rootOn: 3, bootOn: 1, bootKind: filesystem.XFS, bios: true, efi: "modules", grub: "grub2",
		table: "label: gpt\n14: start=2048, size=8192, type=21686148-6449-6E6F-744E-656564454649\n15: start=10240, size=217088, type=U\n" +
			"1: start=227328, size=655360, type=L\n3: start=882688, type=L\n",
		firmware: []string{"BIOS", "UEFI"},
	},
	{
		name: "GPT btrfs node", length: 160 * size.MiB, root: filesystem.Btrfs, rootOn: 1, grub: "grub",
		table:    "label: gpt\n14: start=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649\n1: start=4096, type=L\n",
		firmware: []string{"BIOS"},
	},
}

// TestInstallBoots has firmware start GRUB, which finds /boot by what was
// written, loads modules from there and reads the guest's own grub.cfg.
func TestInstallBoots(t *testing.T) {
	need.Root(t)
	need.Tools(t, "sfdisk", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "mkfs.vfat", "fsck.vfat", "mcopy", "grub-mkimage", "qemu-system-x86_64")
	need.File(t, nodeBIOS+"/kernel.img")
	need.File(t, nodeEFI+"/monolithic/grubx64.efi")
	need.File(t, firmware)
	for _, b := range bootables {
		t.Run(b.name, func(t *testing.T) { b.test(t) })
	}
}

func (b bootable) test(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	disk := b.makeDisk(t, path)
	target, unmount := b.fill(t, disk)
	before := readAt(t, path, 0, 512)
	changes, err := Install(t.Context(), target)
	t.Log(strings.Join(changes, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := Install(t.Context(), target)
	if err != nil {
		t.Errorf("a second time: %v, %v", again, err)
	}
	unmount()
	if after := readAt(t, path, 0, 512); !bytes.Equal(before[bpbStart:bpbEnd], after[bpbStart:bpbEnd]) || !bytes.Equal(before[tableStart:], after[tableStart:]) {
		t.Error("the table, the disk's signature or the BPB changed")
	}
	tool(t, "sfdisk", "--verify", path)
	if esp, ok := findESP(target.Table); ok {
		checkESP(t, path, esp)
	}
	if err := disk.Close(); err != nil {
		t.Fatal(err)
	}
	for _, firmware := range b.firmware {
		started := time.Now()
		boot(t, path, firmware)
		t.Logf("booted by %s in %v", firmware, time.Since(started).Round(time.Second/10))
	}
}

func (b bootable) makeDisk(t *testing.T, path string) *block.Device {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(b.length)); err != nil {
		t.Fatal(err)
	}
	sfdisk := exec.Command("sfdisk", "-q", path)
	sfdisk.Stdin = strings.NewReader(b.table)
	if out, err := sfdisk.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	disk, err := block.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { disk.Close() })
	return disk
}

// fill makes the file systems and mounts the guest.
func (b *bootable) fill(t *testing.T, disk *block.Device) (Target, func()) {
	t.Helper()
	table, err := layout.Read(disk, disk.Size())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	target := Target{Disk: disk, Table: table, Hypervisor: "kvm"}
	var undo []func()
	mounted := func(number int, kind filesystem.Kind, on string) Filesystem {
		fs, release := mountNew(t, table, disk.Path(), number, kind, on)
		undo = append(undo, release)
		return fs
	}
	target.RootFS = mounted(b.rootOn, b.root, dir)
	mkdir(t, dir+"/boot")
	if b.bootOn != 0 {
		target.BootFS = mounted(b.bootOn, b.bootKind, dir+"/boot")
	}
	if esp, ok := findESP(table); ok {
		loop, err := block.Attach(disk.Path(), esp.Start, esp.Length, 512, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(FormatESP(t.Context(), loop.Path(), espID), loop.Detach()); err != nil {
			t.Fatal(err)
		}
	}
	b.fillTree(t, dir)
	target.Root = rootAt(t, dir)
	b.dir = dir
	return target, func() {
		target.Root.Close()
		slices.Reverse(undo)
		for _, u := range undo {
			u()
		}
	}
}

func mountNew(t *testing.T, table *layout.Table, disk string, number int, kind filesystem.Kind, on string) (Filesystem, func()) {
	t.Helper()
	i := slices.IndexFunc(table.Partitions, func(p layout.Partition) bool { return p.Number == number })
	p := table.Partitions[i]
	loop, err := block.Attach(disk, p.Start, p.Length, 512, false)
	if err != nil {
		t.Fatal(err)
	}
	info, err := filesystem.Make(t.Context(), loop.Path(), kind, filesystem.Options{})
	if err == nil {
		err = unix.Mount(loop.Path(), on, string(kind), 0, "")
	}
	if err != nil {
		loop.Detach()
		t.Fatal(err)
	}
	done := false
	release := func() {
		if !done {
			done = true
			if err := errors.Join(unix.Unmount(on, 0), loop.Detach()); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(release)
	return Filesystem{Number: number, Kind: kind, UUID: info.UUID, PartUUID: table.PartUUID(p)}, release
}

// fillTree makes a guest whose grub.cfg needs modules from /boot and says so.
func (b bootable) fillTree(t *testing.T, dir string) {
	t.Helper()
	if b.bios {
		copyDir(t, nodeBIOS, dir+nodeBIOS)
	}
	switch b.efi {
	case "monolithic":
		copyDir(t, nodeEFI+"/monolithic", dir+nodeEFI+"/monolithic")
		copyDir(t, nodeEFI, dir+nodeEFI)
	case "modules":
		copyDir(t, nodeEFI, dir+nodeEFI)
		mkdir(t, dir+"/boot/efi/EFI/BOOT") // with a loader that was made for another disk
		if err := os.WriteFile(dir+"/boot/efi/EFI/BOOT/BOOTX64.EFI", []byte(grubImage("(,gpt9)/boot/grub", "")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"/etc/os-release": "ID=debian\n", "/etc/fstab": "", "/bin/sh": "",
		"/boot/vmlinuz-6.1.0-1-amd64": "kernel", "/boot/initrd.img-6.1.0-1-amd64": "initrd",
		"/boot/efi/EFI/vendor/kept.txt": "from the archive\n", "/boot/efi/EFI/vendor/-i": "",
		"/boot/" + b.grub + "/grub.cfg": "serial --unit=0 --speed=115200\nterminal_output serial\nregexp --set=1:found '(.*)' \"" + greeting +
			"\"\necho \"$found by $grub_platform\"\nsleep 60\nmenuentry 'Debian' {\n\tlinux\t/boot/vmlinuz-6.1.0-1-amd64 root=/dev/sda1\n}\n",
	} {
		mkdir(t, filepath.Dir(dir+name))
		if err := os.WriteFile(dir+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	mkdir(t, to)
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Type().IsRegular() && !strings.HasPrefix(e.Name(), "gcd") && !strings.HasPrefix(e.Name(), "grubnet") {
			content, err := os.ReadFile(from + "/" + e.Name())
			if err == nil {
				err = os.WriteFile(to+"/"+e.Name(), content, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

func readAt(t *testing.T, path string, at, n int64) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, n)
	if _, err := f.ReadAt(data, at); err != nil {
		t.Fatal(err)
	}
	return data
}

func tool(t *testing.T, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "MTOOLSRC=/dev/null", "MTOOLS_SKIP_CHECK=1", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
	return string(out)
}

// checkESP asks fsck.vfat and mdir about the ESP.
func checkESP(t *testing.T, path string, esp layout.Partition) {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "esp")
	if err := os.WriteFile(copied, readAt(t, path, int64(esp.Start), int64(esp.Length)), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "fsck.vfat", "-n", copied)
	list := tool(t, "mdir", "-b", "-/", "-i", copied, "::")
	for _, want := range []string{"/EFI/BOOT/BOOTX64.EFI", "/EFI/BOOT/grub.cfg", "/EFI/vendor/kept.txt"} {
		if !strings.Contains(list, want+"\n") {
			t.Errorf("the ESP has no %s: %s", want, list)
		}
	}
	if strings.Contains(list, "/-i") {
		t.Errorf("a name like an option was copied: %s", list)
	}
}

// boot starts the disk and waits for the line that its grub.cfg prints.
func boot(t *testing.T, disk, by string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
	defer cancel()
	argv := []string{"-nodefaults", "-machine", "q35", "-m", "256", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-drive", "if=virtio,file=" + disk + ",format=raw,snapshot=on", "-accel", "tcg,thread=multi", "-net", "none"}
	want := greeting + " by pc"
	if by == "UEFI" {
		argv, want = append(argv, "-bios", firmware), greeting+" by efi"
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", argv...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	cmd.Stderr = cmd.Stdout
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer context.AfterFunc(ctx, func() { out.Close() })() // whoever else has it open
	defer func() { cancel(); _ = cmd.Wait() }()
	var said strings.Builder
	for r := bufio.NewReader(out); ; {
		c, err := r.ReadByte()
		if err != nil {
			t.Fatalf("it did not boot by %s: %q", by, said.String())
		}
		said.WriteByte(c)
		if strings.HasSuffix(said.String(), want) {
			return
		}
	}
}

// TestEmbedLikeGRUB compares with what grub-bios-setup does with the same core
// image, on either table.
func TestEmbedLikeGRUB(t *testing.T) {
	need.Root(t)
	need.Tools(t, "sfdisk", "mkfs.ext4", "losetup", "findmnt")
	need.File(t, nodeBIOS+"/grub-bios-setup")
	for _, b := range []bootable{
		{name: "MBR", length: 32 * size.MiB, root: filesystem.Ext4, rootOn: 1, bios: true, grub: "grub", table: "label: dos\nlabel-id: 0x89abcdef\n1: start=2048, type=83\n"},
		{name: "GPT", length: 32 * size.MiB, root: filesystem.Ext4, rootOn: 1, bios: true, grub: "grub",
			table: "label: gpt\n14: start=4096, size=2048, type=21686148-6449-6E6F-744E-656564454649\n1: start=8192, type=L\n"},
	} {
		t.Run(b.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			disk := b.makeDisk(t, path)
			target, unmount := b.fill(t, disk)
			defer unmount()
			last, _ := target.Table.Last()
			end := int64(last.Start) // what lies in front of the file system
			core, err := factsOf(t, target).core(moduleDir{root: target.Root, path: nodeBIOS})
			if err != nil {
				t.Fatal(err)
			}
			theirs := biosSetup(t, path, b.dir, end, core)
			bootSector, err := os.ReadFile(nodeBIOS + "/boot.img")
			if err != nil {
				t.Fatal(err)
			}
			at, _, err := coreRoom(target.Table)
			if err != nil {
				t.Fatal(err)
			}
			if err := embed(disk, bootSector, core, at); err != nil {
				t.Fatal(err)
			}
			if got := readAt(t, path, 0, end); !bytes.Equal(got, theirs) {
				for i := range got {
					if got[i] != theirs[i] {
						t.Fatalf("byte %#x is %#x, with grub-bios-setup %#x", i, got[i], theirs[i])
					}
				}
			}
		})
	}
}

// biosSetup runs grub-bios-setup and returns what the disk then begins with;
// the disk is left as it was.
func biosSetup(t *testing.T, path, dir string, end int64, core []byte) []byte {
	t.Helper()
	before := readAt(t, path, 0, end)
	loop := strings.TrimSpace(tool(t, "losetup", "-f", "--show", path))
	defer func() { tool(t, "losetup", "-d", loop) }()
	source := strings.TrimSpace(tool(t, "findmnt", "-no", "SOURCE", dir))
	for name, content := range map[string][]byte{
		"core.img": core, "boot.img": readAt(t, nodeBIOS+"/boot.img", 0, 512),
		"device.map": []byte("(hd0) " + loop + "\n(hd1) " + source + "\n"),
	} {
		if err := os.WriteFile(dir+"/"+name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tool(t, nodeBIOS+"/grub-bios-setup", "--no-rs-codes", "-d", dir, "-m", dir+"/device.map", "-s", loop)
	after := readAt(t, loop, 0, end)
	f, err := os.OpenFile(loop, os.O_WRONLY|unix.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(before, 0); err != nil {
		t.Fatal(err)
	}
	return after
}
