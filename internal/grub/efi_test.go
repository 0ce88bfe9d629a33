package grub

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

const testUUID = "0c0ffee0-1111-2222-3333-444455556666"

// grubImage is a file in which GRUB's objects are found, as in a real one.
func grubImage(prefix, config string) string {
	var objects []byte
	objects = appendObject(objects, moduleELF, []byte("\x7fELF mimg not the objects, but text"))
	if config != "" {
		objects = appendObject(objects, moduleConfig, append([]byte(config), 0))
	}
	objects = appendObject(objects, modulePrefix, append([]byte(prefix), 0))
	info := append([]byte("MZ mimg is in the code too, followed by anything else"+moduleMagic), 0, 0, 0, 0)
	info = le.AppendUint64(info, 24)
	info = le.AppendUint64(info, uint64(24+len(objects)))
	return string(append(info, objects...)) + "and a signature"
}

// guestTree makes the files of a guest; a path that ends in "/" is a directory.
func guestTree(t testing.TB, files map[string]string) Target {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(dir+name), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, isLink := strings.CutPrefix(text, "-> "); isLink {
			err = os.Symlink(target, dir+name)
		} else if !strings.HasSuffix(name, "/") {
			err = os.WriteFile(dir+name, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return Target{
		Root: rootAt(t, dir), Hypervisor: "kvm",
		RootFS: Filesystem{Number: 1, Kind: filesystem.Ext4, UUID: testUUID},
		Table: &layout.Table{Kind: layout.GPT, SectorSize: 512, Partitions: []layout.Partition{
			{Number: 15, Start: size.MiB, Length: 124 * size.MiB, Type: espTypes[layout.GPT]}, {Number: 1, Start: 125 * size.MiB, Length: size.GiB}}},
	}
}

func planFor(t *testing.T, target Target) (*efiInstall, error) {
	esp, _ := findESP(target.Table)
	return planESP(t.Context(), target, factsOf(t, target), esp)
}

// TestPlanESP has guests of several distributions, and what their ESP will hold.
func TestPlanESP(t *testing.T) {
	debianGRUB := grubImage("/EFI/debian", "normal (memdisk)/grub.cfg\n")
	stub := "search.fs_uuid " + testUUID + " root\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"
	stub2 := strings.Replace(stub, "boot/grub", "boot/grub2", 1)
	for _, c := range []struct {
		name   string
		files  map[string]string
		loader string
		want   map[string]string
	}{
		{
			"Debian, signed", map[string]string{
				"/usr/lib/shim/shimx64.efi.signed": "shim", "/usr/lib/shim/mmx64.efi.signed": "mok", "/usr/lib/shim/fbx64.efi.signed": "fallback",
				"/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed": debianGRUB, "/boot/grub/grub.cfg": "menu",
			}, "shim and GRUB, /usr/lib/shim/shimx64.efi.signed and /usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", map[string]string{
				"/EFI/BOOT/BOOTX64.EFI": "shim", "/EFI/BOOT/grubx64.efi": debianGRUB, "/EFI/BOOT/mmx64.efi": "mok",
				"/EFI/BOOT/grub.cfg": stub, "/EFI/debian/grub.cfg": stub,
			},
		},
		{
			"Ubuntu, by alternatives", map[string]string{
				"/usr/lib/shim/shimx64.efi.signed": "-> /etc/alternatives/shim", "/etc/alternatives/shim": "-> /usr/lib/shim/shimx64.efi.signed.latest",
				"/usr/lib/shim/shimx64.efi.signed.latest":            "shim",
				"/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed": grubImage("/EFI/ubuntu", ""), "/boot/grub/grub.cfg": "menu",
			}, "shim and GRUB, /usr/lib/shim/shimx64.efi.signed and /usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", map[string]string{
				"/EFI/BOOT/BOOTX64.EFI": "shim", "/EFI/BOOT/grubx64.efi": grubImage("/EFI/ubuntu", ""),
				"/EFI/BOOT/grub.cfg": stub, "/EFI/ubuntu/grub.cfg": stub,
			},
		},
		{
			"Debian, monolithic, arm64", map[string]string{
				"/usr/lib/grub/arm64-efi/monolithic/grubaa64.efi": debianGRUB, "/boot/grub/grub.cfg": "menu",
			}, "GRUB, /usr/lib/grub/arm64-efi/monolithic/grubaa64.efi", map[string]string{
				"/EFI/BOOT/BOOTAA64.EFI": debianGRUB, "/EFI/BOOT/grub.cfg": stub, "/EFI/debian/grub.cfg": stub,
			},
		},
		{
			"EL9, from its ESP", map[string]string{
				"/boot/efi/EFI/BOOT/BOOTX64.EFI": "shim", "/boot/efi/EFI/BOOT/fbx64.efi": "fallback", "/boot/efi/EFI/almalinux/BOOTX64.CSV": "csv",
				"/boot/efi/EFI/almalinux/shimx64.efi": "shim", "/boot/efi/EFI/almalinux/grubx64.efi": grubImage("/EFI/almalinux", ""),
				"/boot/efi/EFI/almalinux/grub.cfg": "search of the old disk", "/boot/grub2/grub.cfg": "menu", "/boot/efi/a link": "-> EFI", "/boot/efi/link": "-> EFI",
			}, "the boot loader in its /boot/efi/EFI/BOOT", map[string]string{
				"/EFI/BOOT/BOOTX64.EFI": "shim", "/EFI/BOOT/fbx64.efi": "fallback", "/EFI/almalinux/BOOTX64.CSV": "csv",
				"/EFI/almalinux/shimx64.efi": "shim", "/EFI/almalinux/grubx64.efi": grubImage("/EFI/almalinux", ""), "/EFI/almalinux/grub.cfg": stub2,
			},
		},
		{
			"EL8, all its configuration on the ESP", map[string]string{
				"/boot/efi/EFI/Boot/bootx64.efi": "shim", "/boot/efi/EFI/redhat/grubx64.efi": grubImage("/EFI/redhat", ""),
				"/boot/efi/EFI/redhat/grub.cfg": "all of it",
			}, "the boot loader in its /boot/efi/EFI/BOOT", map[string]string{
				"/EFI/Boot/bootx64.efi": "shim", "/EFI/redhat/grubx64.efi": grubImage("/EFI/redhat", ""), "/EFI/redhat/grub.cfg": "all of it",
			},
		},
		{
			"EL7, its menu on the ESP", map[string]string{
				"/boot/efi/EFI/BOOT/BOOTX64.EFI": "shim", "/boot/efi/EFI/centos/grubx64.efi": grubImage("/EFI/centos", ""), "/boot/vmlinuz-1": "", "/boot/grub2/grub.cfg": "menu",
				"/boot/efi/EFI/centos/grub.cfg": "menuentry 'a' {\nlinuxefi /boot/vmlinuz-1\n}\n",
			}, "the boot loader in its /boot/efi/EFI/BOOT", map[string]string{
				"/EFI/BOOT/BOOTX64.EFI": "shim", "/EFI/centos/grubx64.efi": grubImage("/EFI/centos", ""), "/EFI/centos/grub.cfg": "menuentry 'a' {\nlinuxefi /boot/vmlinuz-1\n}\n",
			},
		},
		{
			"a menu on the ESP of a kernel that is gone", map[string]string{
				"/boot/efi/EFI/BOOT/BOOTX64.EFI": "shim", "/boot/efi/EFI/centos/grubx64.efi": grubImage("/EFI/centos", ""), "/boot/grub2/grub.cfg": "menu",
				"/boot/efi/EFI/centos/grub.cfg": "menuentry 'a' {\nlinuxefi /boot/vmlinuz-1\n}\n",
			}, "the boot loader in its /boot/efi/EFI/BOOT", map[string]string{
				"/EFI/BOOT/BOOTX64.EFI": "shim", "/EFI/centos/grubx64.efi": grubImage("/EFI/centos", ""), "/EFI/centos/grub.cfg": stub2,
			},
		},
		{
			"no removable path", map[string]string{
				"/boot/efi/EFI/debian/shimx64.efi": "shim", "/boot/efi/EFI/debian/grubx64.efi": debianGRUB, "/boot/efi/EFI/debian/mmx64.efi": "mok", "/boot/grub/grub.cfg": "menu",
			}, "shim and GRUB, /boot/efi/EFI/debian/shimx64.efi and /boot/efi/EFI/debian/grubx64.efi", map[string]string{
				"/EFI/debian/shimx64.efi": "shim", "/EFI/debian/grubx64.efi": debianGRUB, "/EFI/debian/mmx64.efi": "mok", "/EFI/debian/grub.cfg": stub,
				"/EFI/BOOT/BOOTX64.EFI": "shim", "/EFI/BOOT/grubx64.efi": debianGRUB, "/EFI/BOOT/mmx64.efi": "mok", "/EFI/BOOT/grub.cfg": stub,
			},
		},
		{
			"GRUB on the ESP was made for another file system", map[string]string{
				"/boot/efi/EFI/BOOT/BOOTX64.EFI":                  grubImage("(,gpt9)/boot/grub", "search.fs_uuid 99999999-1111-2222-3333-444455556666 root hd0,gpt9\n"),
				"/usr/lib/grub/x86_64-efi/monolithic/grubx64.efi": debianGRUB, "/boot/grub/grub.cfg": "menu",
			}, "GRUB, /usr/lib/grub/x86_64-efi/monolithic/grubx64.efi", map[string]string{
				"/EFI/BOOT/BOOTX64.EFI": debianGRUB, "/EFI/BOOT/grub.cfg": stub, "/EFI/debian/grub.cfg": stub,
			},
		},
		{
			"GRUB of a vendor's directory, by the partition", map[string]string{
				"/boot/efi/EFI/arch/grubx64.efi":                  grubImage("(,gpt2)/boot/grub", ""),
				"/usr/lib/grub/x86_64-efi/monolithic/grubx64.efi": debianGRUB, "/boot/grub/grub.cfg": "menu",
			}, "GRUB, /usr/lib/grub/x86_64-efi/monolithic/grubx64.efi", map[string]string{
				"/EFI/arch/grubx64.efi": grubImage("(,gpt2)/boot/grub", ""), "/EFI/arch/grub.cfg": stub,
				"/EFI/BOOT/BOOTX64.EFI": debianGRUB, "/EFI/BOOT/grub.cfg": stub, "/EFI/debian/grub.cfg": stub,
			},
		},
		{
			"GRUB by the partition, which is right", map[string]string{
				"/boot/efi/EFI/BOOT/BOOTX64.EFI": grubImage("(,gpt1)/boot/grub", ""), "/boot/grub/grub.cfg": "menu",
			}, "the boot loader in its /boot/efi/EFI/BOOT", map[string]string{
				"/EFI/BOOT/BOOTX64.EFI": grubImage("(,gpt1)/boot/grub", ""), "/EFI/BOOT/grub.cfg": stub,
			},
		},
		{
			"GRUB by the partition, of another directory", map[string]string{
				"/boot/efi/EFI/BOOT/BOOTX64.EFI":                  grubImage("(,gpt1)/grub", ""),
				"/usr/lib/grub/x86_64-efi/monolithic/grubx64.efi": debianGRUB, "/boot/grub/grub.cfg": "menu",
			}, "GRUB, /usr/lib/grub/x86_64-efi/monolithic/grubx64.efi", map[string]string{
				"/EFI/BOOT/BOOTX64.EFI": debianGRUB, "/EFI/BOOT/grub.cfg": stub, "/EFI/debian/grub.cfg": stub,
			},
		},
		{
			"the right file system, and another directory of it", map[string]string{
				"/boot/efi/EFI/BOOT/BOOTX64.EFI":                  grubImage("/grub", "search.fs_uuid "+testUUID+" root\nset prefix=($root)'/grub'\n"),
				"/usr/lib/grub/x86_64-efi/monolithic/grubx64.efi": debianGRUB, "/boot/grub/grub.cfg": "menu",
			}, "GRUB, /usr/lib/grub/x86_64-efi/monolithic/grubx64.efi", map[string]string{
				"/EFI/BOOT/BOOTX64.EFI": debianGRUB, "/EFI/BOOT/grub.cfg": stub, "/EFI/debian/grub.cfg": stub,
			},
		},
		{
			"the right file system and directory", map[string]string{
				"/boot/efi/EFI/BOOT/BOOTX64.EFI": grubImage("/boot/grub", "search.fs_uuid "+testUUID+" root\nset prefix=($root)'/boot/grub'\n"), "/boot/grub/grub.cfg": "menu",
			}, "the boot loader in its /boot/efi/EFI/BOOT", map[string]string{
				"/EFI/BOOT/BOOTX64.EFI": grubImage("/boot/grub", "search.fs_uuid "+testUUID+" root\nset prefix=($root)'/boot/grub'\n"), "/EFI/BOOT/grub.cfg": stub, "/boot/grub/grub.cfg": stub,
			},
		},
		{
			"beside shim, and by its fallback", map[string]string{
				"/boot/efi/EFI/BOOT/BOOTX64.EFI": "shim", "/boot/efi/EFI/BOOT/fbx64.efi": "fallback", "/boot/efi/EFI/x/grubx64.efi": grubImage("(,gpt2)/boot/grub", ""),
				"/usr/lib/grub/x86_64-efi/monolithic/grubx64.efi": debianGRUB, "/boot/grub/grub.cfg": "menu",
			}, "GRUB, /usr/lib/grub/x86_64-efi/monolithic/grubx64.efi", map[string]string{
				"/EFI/BOOT/BOOTX64.EFI": debianGRUB, "/EFI/x/grubx64.efi": grubImage("(,gpt2)/boot/grub", ""), "/EFI/x/grub.cfg": stub,
				"/EFI/BOOT/grub.cfg": stub, "/EFI/debian/grub.cfg": stub,
			},
		},
		{
			"SUSE", map[string]string{
				"/usr/share/efi/x86_64/shim.efi": "shim", "/usr/share/efi/x86_64/grub.efi": grubImage("/EFI/BOOT", ""), "/usr/share/efi/x86_64/MokManager.efi": "mok", "/boot/grub2/grub.cfg": "menu",
			}, "shim and GRUB, /usr/share/efi/x86_64/shim.efi and /usr/share/efi/x86_64/grub.efi", map[string]string{
				"/EFI/BOOT/BOOTX64.EFI": "shim", "/EFI/BOOT/grub.efi": grubImage("/EFI/BOOT", ""), "/EFI/BOOT/MokManager.efi": "mok", "/EFI/BOOT/grub.cfg": stub2,
			},
		},
		{
			"systemd-boot with its kernel", map[string]string{
				"/usr/lib/systemd/boot/efi/systemd-bootx64.efi": "loader", "/efi/EFI/Linux/arch.efi": "kernel",
			}, "systemd-boot", map[string]string{
				"/EFI/BOOT/BOOTX64.EFI": "loader", "/EFI/systemd/systemd-bootx64.efi": "loader", "/EFI/Linux/arch.efi": "kernel",
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			target := guestTree(t, c.files)
			loaders := FindLoaders(target.Root)
			e, err := planFor(t, target)
			if err != nil {
				t.Fatal(err)
			}
			if e.loader.name != c.loader || !loaders.EFI || loaders.BIOS {
				t.Errorf("the loader is %q of %+v", e.loader.name, loaders)
			}
			got := map[string]string{}
			for _, f := range e.tree.files {
				content, err := f.read()
				if err != nil || size.Bytes(len(content)) != f.size {
					t.Errorf("%s: %v", f.path, err)
				}
				got[f.path] = string(content)
				if !slices.Contains(e.tree.dirs, filepath.Dir(f.path)) {
					t.Errorf("%s has no directory", f.path)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestDetachEnvironment has RHEL 8's link to the ESP.
func TestDetachEnvironment(t *testing.T) {
	target := guestTree(t, map[string]string{
		"/boot/efi/EFI/BOOT/BOOTX64.EFI": "shim", "/boot/efi/EFI/redhat/grubx64.efi": grubImage("/EFI/redhat", ""),
		"/boot/efi/EFI/redhat/grubenv": "variables", "/boot/grub2/grubenv": "-> ../efi/EFI/redhat/grubenv", "/boot/grub2/grub.cfg": "menu",
	})
	if _, err := planFor(t, target); err != nil {
		t.Fatal(err)
	}
	info, err := target.Root.Lstat("/boot/grub2/grubenv")
	content, readErr := target.Root.ReadFile("/boot/grub2/grubenv", 100)
	if err != nil || readErr != nil || !info.IsRegular() || string(content) != "variables" {
		t.Errorf("got %v, %q, %v", info.Mode, content, errors.Join(err, readErr))
	}
}

func TestRefuseEFI(t *testing.T) {
	grubFiles := map[string]string{"/usr/lib/grub/x86_64-efi/monolithic/grubx64.efi": grubImage("/EFI/debian", ""), "/boot/grub/grub.cfg": "menu"}
	for _, c := range []struct {
		name   string
		files  map[string]string
		change func(*Target)
		want   string
	}{
		{"no ESP", grubFiles, func(t *Target) { t.Table.Partitions = t.Table.Partitions[1:] }, "the disk has no EFI system partition"},
		{"no table", grubFiles, func(t *Target) { t.Table = nil }, "the disk has no EFI system partition"},
		{"no loader", nil, nil, "the guest has no loader for UEFI (looked in /boot/efi"},
		{"neither", nil, func(t *Target) { t.Table.Partitions = t.Table.Partitions[1:] }, "the disk has no EFI system partition, and the guest has no loader for UEFI (looked in /boot/efi"},
		{"no UUID", grubFiles, func(t *Target) { t.RootFS.UUID = "" }, "has the UUID \"\", by which GRUB cannot find it"},
		{"no grub.cfg", map[string]string{"/usr/lib/grub/x86_64-efi/monolithic/grubx64.efi": grubImage("/EFI/debian", "")}, nil, "the guest has no /boot/grub/grub.cfg"},
		{"systemd-boot without a kernel", map[string]string{"/usr/lib/systemd/boot/efi/systemd-bootx64.efi": "loader", "/boot/vmlinuz": ""}, nil, "reads only FAT"},
		{
			"made for another file system", map[string]string{"/boot/efi/EFI/BOOT/BOOTX64.EFI": grubImage("(,gpt9)/boot/grub", "search --no-floppy --fs-uuid --set=root 99999999-1111-2222-3333-444455556666\n")},
			nil, "looks for the file system 99999999-1111-2222-3333-444455556666",
		},
		{
			"made for another partition, beside shim", map[string]string{"/boot/efi/EFI/BOOT/BOOTX64.EFI": "shim", "/boot/efi/EFI/BOOT/grubx64.efi": grubImage("(,gpt9)/boot/grub", "")},
			nil, "looks for \"(,gpt9)/boot/grub\", which is not where it is on this disk",
		},
		{
			"a guest's files larger than the ESP", map[string]string{"/boot/efi/EFI/BOOT/BOOTX64.EFI": strings.Repeat("x", 1<<20)},
			func(t *Target) { t.Table.Partitions[0].Length = size.MiB }, "set ESP_SIZE to at least 2 MiB",
		},
		{"larger than the ESP", grubFiles, func(t *Target) { t.Table.Partitions[0].Length = 100 }, "has 100 bytes and is to hold"},
		{"not FAT", grubFiles, func(t *Target) { t.Disk = memoryDisk(make([]byte, size.MiB)); t.Table.Partitions[0].Start = 0 }, "partition 15 is an EFI system partition, but holds \"\" and not FAT"},
	} {
		t.Run(c.name, func(t *testing.T) {
			target := guestTree(t, c.files)
			if c.change != nil {
				c.change(&target)
			}
			lines, err := installEFI(t.Context(), target, factsOf(t, target))
			if err == nil || !strings.Contains(err.Error(), c.want) || errors.As(err, &quiet{}) != (c.name == "neither") {
				t.Errorf("got %v, %v", lines, err)
			}
			if why := unfit(""); strings.Contains(c.name, "larger") && !errors.As(err, &why) {
				t.Errorf("%v keeps other ways of booting from being used", err)
			}
		})
	}
}

// TestHostileESP has files that no ESP holds.
func TestHostileESP(t *testing.T) {
	huge := guestTree(t, map[string]string{"/boot/efi/EFI/BOOT/BOOTX64.EFI": "", "/boot/efi/huge": ""})
	lengthen(t, huge.Root, "/boot/efi/huge", maxESPFile+1)
	if _, err := planFor(t, huge); err == nil || !strings.Contains(err.Error(), "up to 512 MiB are copied") {
		t.Errorf("a huge file: %v", err)
	}
	many := map[string]string{"/boot/efi/EFI/BOOT/BOOTX64.EFI": ""}
	for i := range maxESPFiles {
		many["/boot/efi/EFI/"+strings.Repeat("x", i%40+1)+"_"+strings.Repeat("y", i/40+1)] = ""
	}
	if _, err := planFor(t, guestTree(t, many)); err == nil || !strings.Contains(err.Error(), "more than 2000 files") {
		t.Errorf("many files: %v", err)
	}
	odd := map[string]string{"/boot/efi/EFI/BOOT/BOOTX64.EFI": ""}
	for _, name := range []string{"-i", "a b", "a*", "a?", "[a]", "a:b", "a\\b", "end.", ".hidden", "\u00e4", "a\nb", strings.Repeat("l", 201), "d/d/d/d/d/d/d/d/deep"} {
		odd["/boot/efi/EFI/"+name] = ""
	}
	e := &efiInstall{}
	if err := e.tree.addGuest(guestTree(t, odd).Root, "/boot/efi", "/"); err != nil {
		t.Fatal(err)
	}
	if len(e.tree.files) != 1 || e.tree.skipped != 13 {
		t.Errorf("%d left out, kept %v", e.tree.skipped, e.tree.files)
	}
}

func TestGRUBObjects(t *testing.T) {
	need.File(t, nodeEFI+"/monolithic/grubx64.efi")
	image, err := os.ReadFile(nodeEFI + "/monolithic/grubx64.efi")
	if err != nil {
		t.Fatal(err)
	}
	want := objects{true, "/EFI/debian", "normal (memdisk)/grub.cfg\n"}
	if got := grubObjects(image); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestLongObjects has what would take the square of its length: each header's
// list is made of the headers behind it.
func TestLongObjects(t *testing.T) {
	const length = 4 << 20
	var image []byte
	for len(image)+24 <= length {
		image = append(image, moduleMagic+"\x18\x00\x00\x00"...)
		image = le.AppendUint64(image, 24)
		image = le.AppendUint64(image, uint64(length/24*24-len(image)+16))
	}
	start := time.Now()
	if o := grubObjects(image); o.found {
		t.Errorf("got %+v", o)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("it took %v", took)
	}
}

// FuzzGRUBObjects reads hostile programs.
func FuzzGRUBObjects(f *testing.F) {
	f.Add([]byte(grubImage("/EFI/debian", "search.fs_uuid 0-0 root\n")))
	f.Add([]byte(strings.Repeat(moduleMagic, 100)))
	f.Fuzz(func(t *testing.T, image []byte) {
		if o := grubObjects(image); !o.found && o != (objects{}) || len(o.prefix)+len(o.config) > len(image) {
			t.Errorf("got %+v", o)
		}
	})
}
