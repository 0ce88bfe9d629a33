package grub

import (
	"errors"
	"io"
	"strings"
	"testing"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

// memoryDisk is a disk in memory.
type memoryDisk []byte

func (m memoryDisk) Path() string     { return "/dev/nowhere" }
func (m memoryDisk) Size() size.Bytes { return size.Bytes(len(m)) }
func (m memoryDisk) ReadAt(p []byte, at int64) (int, error) {
	if at >= int64(len(m)) {
		return 0, io.EOF
	}
	return copy(p, m[at:]), nil
}
func (m memoryDisk) WriteAt(p []byte, at int64) (int, error) {
	if at+int64(len(p)) > int64(len(m)) {
		return 0, io.ErrShortWrite
	}
	return copy(m[at:], p), nil
}

// failingDisk takes no boot sector.
type failingDisk struct{ memoryDisk }

func (f failingDisk) WriteAt(p []byte, at int64) (int, error) {
	if at == 0 {
		return 0, errors.New("worn out")
	}
	return f.memoryDisk.WriteAt(p, at)
}

func mbr(first size.Bytes) *layout.Table {
	return &layout.Table{Kind: layout.MBR, SectorSize: 512, Partitions: []layout.Partition{{Number: 1, Start: first, Length: size.GiB, Type: "83"}}}
}

func factsOf(t *testing.T, target Target) *facts {
	t.Helper()
	f, err := gather(target)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestRefuseBIOS(t *testing.T) {
	need.File(t, nodeBIOS+"/kernel.img")
	gpt := &layout.Table{Kind: layout.GPT, SectorSize: 512, Partitions: []layout.Partition{{Number: 1, Start: size.MiB, Length: size.GiB}}}
	gpt4096 := &layout.Table{Kind: layout.GPT, SectorSize: 4096, Partitions: []layout.Partition{{Number: 14, Start: size.MiB, Length: size.MiB, Type: layout.TypeBIOSBoot}}}
	lvm := mbr(size.MiB)
	lvm.Partitions[0].Type = "8e"
	for _, c := range []struct {
		name  string
		table *layout.Table
		kind  filesystem.Kind
		bios  bool
		want  string
	}{
		{"63 sectors, btrfs", mbr(63 * 512), filesystem.Btrfs, true, "the disk has room for 31744 in front of its first partition: let that begin at 1 MiB"},
		{"no gap", mbr(512), filesystem.Ext4, true, "has room for 0"},
		{"no BIOS boot partition", gpt, filesystem.Ext4, true, "a GPT without a BIOS boot partition"},
		{"no BIOS boot partition, no loader", gpt, filesystem.Ext4, false, "a GPT without a BIOS boot partition"},
		{"no partitions", &layout.Table{Kind: layout.MBR, SectorSize: 512}, filesystem.Ext4, true, "the disk's MBR has no partitions"},
		{"4096", gpt4096, filesystem.Ext4, true, "sectors of 4096 bytes"},
		{"no table", nil, filesystem.Ext4, true, "no partition table"},
		{"NTFS", mbr(size.MiB), filesystem.NTFS, true, "GRUB reads no ntfs"},
		{"LVM", lvm, filesystem.Ext4, true, "on no partition of this disk"},
		{"no configuration for the node's GRUB", mbr(size.MiB), filesystem.Ext4, false, "nor a configuration for this node's"},
	} {
		t.Run(c.name, func(t *testing.T) {
			target := Target{Root: rootAt(t, t.TempDir()), Disk: memoryDisk(make([]byte, size.MiB)), Table: c.table, RootFS: Filesystem{Number: 1, Kind: c.kind, UUID: testUUID}}
			if c.bios {
				target.Root = rootAt(t, "/")
			}
			lines, err := installBIOS(t.Context(), target, factsOf(t, target))
			if why := unfit(""); !errors.As(err, &why) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, %v", lines, err)
			}
			if got := errors.As(err, &quiet{}); got != strings.HasSuffix(c.name, ", no loader") {
				t.Errorf("quiet is %v", got)
			}
		})
	}
}

// TestSmallGap has the gap of old disks, which is enough for ext4.
func TestSmallGap(t *testing.T) {
	need.File(t, nodeBIOS+"/kernel.img")
	for _, kind := range []filesystem.Kind{filesystem.Ext4, filesystem.XFS} {
		target := Target{Root: rootAt(t, "/"), Table: mbr(63 * 512), RootFS: Filesystem{Number: 1, Kind: kind}}
		core, err := factsOf(t, target).core(moduleDir{root: target.Root, path: nodeBIOS})
		if err != nil || len(core) > 62*512 {
			t.Errorf("%s: %d bytes, %v", kind, len(core), err)
		}
	}
}

// TestNodeBLSCFG has a guest whose grub.cfg needs a command that this node's
// GRUB has not.
func TestNodeBLSCFG(t *testing.T) {
	target := guestTree(t, map[string]string{"/boot/grub2/grub.cfg": "insmod blscfg\nblscfg\n"})
	const config = "/boot/grub2/grub.cfg"
	node := guestTree(t, map[string]string{"/grub/boot.img": ""})
	err := moduleDir{root: node.Root, path: "/grub", node: true}.fits(target.Root, config)
	if err == nil || !strings.Contains(err.Error(), "install grub2-pc in the guest") {
		t.Errorf("got %v", err)
	}
	menu := guestTree(t, map[string]string{"/boot/grub2/grub.cfg": "blscfg\nmenuentry 'Linux' {\n\tlinux /boot/vmlinuz\n}\n"})
	if err := (moduleDir{root: node.Root, path: "/grub", node: true}).fits(menu.Root, config); err != nil {
		t.Errorf("with a menu: %v", err)
	}
	err = moduleDir{root: node.Root, node: true}.fits(target.Root, config)
	if err == nil || !strings.Contains(err.Error(), "this node has none either") {
		t.Errorf("got %v", err)
	}
}

func TestEmbedFaults(t *testing.T) {
	sector := make([]byte, 512)
	sector[510], sector[511] = 0x55, 0xAA
	core := make([]byte, 1024)
	disk := memoryDisk(make([]byte, 4096))
	if err := embed(disk, sector[:511], core, 512); err == nil {
		t.Error("a short boot.img was taken")
	}
	if err := embed(disk, sector, core, 3584); err == nil || !strings.Contains(err.Error(), "core image") || disk[510] != 0 {
		t.Errorf("got %v", err)
	}
	if err := embed(failingDisk{disk}, sector, core, 512); err == nil || !strings.Contains(err.Error(), "worn out") {
		t.Errorf("got %v", err)
	}
}

func TestNoLoader(t *testing.T) {
	target := guestTree(t, map[string]string{"/boot/extlinux.conf": "", "/boot/vmlinuz-1": "", "/boot/initrd-1": ""})
	given := target
	given.Disk, given.Table = memoryDisk(nil), nil
	_, err := Install(t.Context(), given)
	for _, want := range []string{"BIOS: the disk has no partition table", "UEFI: the disk has no EFI system partition, and the guest has no loader for UEFI (looked in /boot/efi", "extlinux"} {
		if !errors.Is(err, ErrNoLoader) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if err := noLoader(FindLoaders(target.Root), nil); !strings.Contains(err.Error(), "extlinux, which is not supported") {
		t.Errorf("got %v", err)
	}
}

// TestCopyModules has modules of another version where they are copied to.
func TestCopyModules(t *testing.T) {
	target := guestTree(t, map[string]string{
		"/usr/lib/grub/i386-pc/normal.mod": "new", "/usr/lib/grub/i386-pc/command.lst": "list", "/usr/lib/grub/i386-pc/kernel.img": "no module",
		"/boot/grub/i386-pc/normal.mod": "old", "/boot/grub/i386-pc/gone.mod": "old", "/boot/grub/i386-pc/core.img": "stays",
	})
	from := moduleDir{root: target.Root, path: "/usr/lib/grub/i386-pc"}
	if _, err := copyModules(from, target.Root, "/boot/grub/i386-pc"); err != nil {
		t.Fatal(err)
	}
	names, _ := target.Root.ReadDir("/boot/grub/i386-pc")
	content, _ := target.Root.ReadFile("/boot/grub/i386-pc/normal.mod", 10)
	if got := strings.Join(names, " "); got != "command.lst core.img normal.mod" || string(content) != "new" {
		t.Errorf("got %s, normal.mod %q", got, content)
	}
	many := map[string]string{}
	for i := range maxModuleFiles + 1 {
		many["/m/"+strings.Repeat("x", i%50+1)+strings.Repeat("y", i/50+1)+".mod"] = ""
	}
	hostile := guestTree(t, many)
	if _, err := copyModules(moduleDir{root: hostile.Root, path: "/m"}, hostile.Root, "/boot"); err == nil || !strings.Contains(err.Error(), "up to 2000") {
		t.Errorf("got %v", err)
	}
}

// TestInstallWithoutLoader has guests whose loader is not on their disk, and
// one that has none.
func TestInstallWithoutLoader(t *testing.T) {
	target := guestTree(t, map[string]string{"/boot/vmlinuz-6.1.0": "kernel", "/boot/initrd.img-6.1.0": ""})
	for _, change := range []func(*Target){
		func(t *Target) { t.External = true }, func(t *Target) { t.Hypervisor = "xen-pvm" }, func(t *Target) { t.Disk = nil },
	} {
		given := target
		given.Disk = memoryDisk(nil) // any use of it fails
		change(&given)
		if changes, err := Install(t.Context(), given); err != nil {
			t.Errorf("got %v, %v", changes, err)
		}
	}
	given := target
	given.Disk = memoryDisk(nil)
	_, err := Install(t.Context(), given)
	if want := "it does not boot by UEFI: the disk has an EFI system partition, but the guest has no loader for UEFI"; !errors.Is(err, ErrNoLoader) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v", err)
	}
}
