package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ganeti-instance-image/internal/need"
)

// makeBootableTree makes of a small tree one that has a kernel and GRUB's files.
const makeBootableTree = makeTree + `
echo kernel > "$tree/boot/vmlinuz-6.1.0-1-amd64"; echo initrd > "$tree/boot/initrd.img-6.1.0-1-amd64"
echo 'UUID=11111111-1111-4111-8111-111111111111 / ext4 errors=remount-ro 0 1' > "$tree/etc/fstab"
mkdir -p "$tree/usr/lib/grub"; cp -r /usr/lib/grub/i386-pc /usr/lib/grub/x86_64-efi "$tree/usr/lib/grub"; rm -rf "$tree"/usr/lib/grub/*/monolithic
ln -s usr/sbin "$tree/sbin"; ln -s usr/lib "$tree/lib"
`

// smallTree makes an archive of a small tree that the commands in change may
// change first, as $tree. The ending is that of the archive's name; that of a
// dump is made with dump's own options.
func smallTree(t *testing.T, ending, change string) (image, tree string) {
	t.Helper()
	need.Root(t)
	need.File(t, "/usr/lib/grub/i386-pc/boot.img")
	need.File(t, "/usr/lib/grub/x86_64-efi/normal.mod")
	dir := t.TempDir()
	image, tree = filepath.Join(dir, "image"+ending), filepath.Join(dir, "tree")
	shell(t, makeBootableTree+change, tree)
	if ending != "-root.dump" {
		shell(t, `export XZ_OPT=-1; tar --numeric-owner --acls --xattrs -caf "$2" -C "$1" .`, tree, image)
		return image, tree
	}
	need.Tools(t, "dump")
	shell(t, `fs() {
		truncate -s 200M "$2.fs"; mke2fs -q -t ext4 -d "$1" "$2.fs"; loop=$(losetup --find --show --read-only "$2.fs")
		dump -0 -q -z -f "$2" "$loop" 2>"$2.log" || { cat "$2.log"; losetup -d "$loop"; exit 1; }
		losetup -d "$loop"; rm "$2.fs" "$2.log"
	}
	cp -a "$1" "$1.root"; rm -r "$1.root/boot"/*; fs "$1.root" "$2"; fs "$1/boot" "${2%-root.dump}-boot.dump"; rm -r "$1.root"`, tree, image)
	return image, tree
}

// checkSmall wants a disk to hold a small tree as it is, but for what is this
// disk's own. boot is the number of its partition, 0 where there is none.
func checkSmall(t *testing.T, disk, tree string, parts []want, boot int, times time.Duration) {
	t.Helper()
	last := parts[len(parts)-1]
	judgeTree(t, disk, parts)
	t.Run("files", func(t *testing.T) {
		dir := mountTree(t, disk, last.number, boot, last.holds)
		compareTrees(t, tree, dir, treeCompare{times, func(name, what string) bool {
			return mayChange(name, what) || name == "." || what == "is new" && filepath.Dir(name) == "." || strings.HasPrefix(name, "usr/lib/grub")
		}})
	})
}

const swapMiB = 100

// layouts are what settings make of a tree on a disk of 1200 MiB.
var treeLayouts = []struct {
	name     string
	settings string // besides SWAP_SIZE and BOOT_SIZE
	more     env
	label    string
	parts    []want
	log      string // which the log holds
}{
	{"defaults", "", nil, "dos", []want{{1, "ext4", 150}, {2, "swap", swapMiB}, {3, "ext4", 0}}, "will not boot by itself"},
	{"swap as memory", "SWAP_SIZE=", nil, "dos", []want{{1, "ext4", 150}, {2, "swap", 512}, {3, "ext4", 0}}, ""},
	{"no swap", "SWAP=no", nil, "dos", []want{{1, "ext4", 150}, {2, "ext4", 0}}, ""},
	{"larger boot", "BOOT_SIZE=256M", nil, "dos", []want{{1, "ext4", 256}, {2, "swap", swapMiB}, {3, "ext4", 0}}, ""},
	{"ext2", "FILESYSTEM=ext2", nil, "dos", []want{{1, "ext2", 150}, {2, "swap", swapMiB}, {3, "ext2", 0}}, ""},
	{"ext3", "FILESYSTEM=ext3", nil, "dos", []want{{1, "ext3", 150}, {2, "swap", swapMiB}, {3, "ext3", 0}}, ""},
	{"xfs", "FILESYSTEM=xfs", nil, "dos", []want{{1, "ext4", 150}, {2, "swap", swapMiB}, {3, "xfs", 0}}, ""},
	{"btrfs", "FILESYSTEM=btrfs", nil, "dos", []want{{1, "ext4", 150}, {2, "swap", swapMiB}, {3, "btrfs", 0}}, ""},
	{"mbr", "PARTITION_TABLE=msdos", nil, "dos", []want{{1, "ext4", 150}, {2, "swap", swapMiB}, {3, "ext4", 0}}, ""},
	{"gpt", "PARTITION_TABLE=gpt", nil, "gpt", []want{{14, "", 1}, {15, "vfat", 100}, {1, "ext4", 150}, {2, "swap", swapMiB}, {3, "ext4", 0}}, ""},
	{"gpt without swap", "PARTITION_TABLE=gpt\nSWAP=no\nESP_SIZE=64", nil, "gpt", []want{{14, "", 1}, {15, "vfat", 64}, {1, "ext4", 150}, {2, "ext4", 0}}, ""},
	{"grub", "GRUB=auto", nil, "dos", []want{{4, "vfat", 100}, {1, "ext4", 150}, {2, "swap", swapMiB}, {3, "ext4", 0}}, "grub: "},
	{"grub on gpt", "GRUB=auto\nPARTITION_TABLE=gpt\nSWAP=no", nil, "gpt", []want{{14, "", 1}, {15, "vfat", 100}, {1, "ext4", 150}, {2, "ext4", 0}}, "grub: "},
	{"outside", "", env{"INSTANCE_HV_kernel_path": "/boot/vmlinuz"}, "dos", []want{{1, "swap", swapMiB}, {2, "ext4", 0}}, ""},
	{"outside without swap", "SWAP=no", env{"INSTANCE_HV_kernel_path": "/boot/vmlinuz"}, "dos", []want{{1, "ext4", 0}}, ""},
	{"outside on gpt", "PARTITION_TABLE=gpt", env{"INSTANCE_HV_kernel_path": "/boot/vmlinuz"}, "gpt", []want{{1, "swap", swapMiB}, {2, "ext4", 0}}, ""},
	{"xen with a kernel", "SWAP=no", env{"HYPERVISOR": "xen-pvm", "INSTANCE_HV_kernel_path": "/boot/vmlinuz", "INSTANCE_HV_use_bootloader": "False"}, "dos", []want{{1, "ext4", 0}}, ""},
	{"xen with pygrub", "SWAP=no", env{"HYPERVISOR": "xen-pvm", "INSTANCE_HV_kernel_path": "/boot/vmlinuz", "INSTANCE_HV_use_bootloader": "True"}, "dos", []want{{1, "ext4", 150}, {2, "ext4", 0}}, "pygrub reads"},
}

func TestTreeLayouts(t *testing.T) {
	need.Tools(t, "sgdisk", "sfdisk", "e2fsck", "xfs_repair", "btrfs", "mkfs.vfat", "mcopy", "fsck.vfat")
	image, tree := smallTree(t, ".tar.gz", "")
	for _, c := range treeLayouts {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, imageSettings(image, "SWAP_SIZE="+itoa(swapMiB), "BOOT_SIZE=150", c.settings))
			disk := newDisk(t, 1200)
			log := s.create(t, instance(disk).with(c.more))
			if label := readTable(t, disk).PartitionTable.Label; label != c.label {
				t.Errorf("the table is %s, want %s", label, c.label)
			}
			if !strings.Contains(log, c.log) || c.log == "" && c.more != nil && strings.Contains(log, "will not boot") {
				t.Errorf("the log does not say %q, or too much:\n%s", c.log, log)
			}
			boot := 0
			if holds(c.parts, 1, 150, 256) {
				boot = 1
			}
			checkSmall(t, disk, tree, c.parts, boot, time.Nanosecond)
			if bootable := strings.Contains(shell(t, `head -c 440 "$1" | tr -d '\0'`, disk), "GRUB"); bootable != strings.Contains(c.settings, "GRUB=auto") {
				t.Errorf("GRUB is in the boot sector: %v", bootable)
			}
			if t.Failed() {
				t.Logf("log:\n%s", log)
			}
		})
	}
}

// holds tells whether partition number has one of the sizes.
func holds(parts []want, number int, mib ...int64) bool {
	for _, p := range parts {
		for _, m := range mib {
			if p.number == number && p.mib == m && p.holds != "swap" {
				return true
			}
		}
	}
	return false
}

// Every format of archive becomes the same disk; a dump knows seconds only.
func TestTreeFormats(t *testing.T) {
	need.Tools(t, "sfdisk", "e2fsck", "xz", "zstd", "bzip2", "lz4")
	const odd = `printf '\377' > "$tree/srv-hard"; ln "$tree/srv-hard" "$tree/etc/hard"; setfattr -n user.a -v b "$tree/srv-hard"; setfacl -m u:5:rw "$tree/srv-hard"
		chown 70000:80000 "$tree/srv-hard"; mknod "$tree/etc/device" b 300 70000; truncate -s 20M "$tree/etc/hole"; touch -d '2001-02-03 04:05:06.123456789' "$tree/etc/ssh" "$tree/srv-hard"`
	for _, ending := range []string{".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".txz", ".tar.bz2", "-root.dump"} {
		t.Run(ending, func(t *testing.T) {
			image, tree := smallTree(t, ending, odd)
			s := newSite(t, imageSettings(image, "SWAP=no", "BOOT_SIZE=150"))
			disk := newDisk(t, 1000)
			s.create(t, instance(disk))
			times := time.Nanosecond
			if ending == "-root.dump" {
				times = time.Second
			}
			checkSmall(t, disk, tree, []want{{1, "ext4", 150}, {2, "ext4", 0}}, 1, times)
		})
	}
	t.Run("by name", func(t *testing.T) {
		image, tree := smallTree(t, "-root.dump", "")
		dir := filepath.Dir(image)
		s := newSite(t, "IMAGE_DIR="+dir+"\nIMAGE_NAME=image\nSWAP=no\nBOOT_SIZE=150\n")
		disk := newDisk(t, 1000)
		s.create(t, instance(disk))
		checkSmall(t, disk, tree, []want{{1, "ext4", 150}, {2, "ext4", 0}}, 1, time.Second)
	})
	t.Run("xz of several blocks", func(t *testing.T) {
		image, tree := smallTree(t, ".tar", odd)
		shell(t, `xz -1 -T2 --block-size=1MiB "$1"`, image)
		s := newSite(t, imageSettings(image+".xz", "SWAP=no", "BOOT_SIZE=150"))
		disk := newDisk(t, 1000)
		s.create(t, instance(disk))
		checkSmall(t, disk, tree, []want{{1, "ext4", 150}, {2, "ext4", 0}}, 1, time.Nanosecond)
	})
}

// What a site says to mkfs counts.
func TestTreeMkfsOptions(t *testing.T) {
	need.Tools(t, "dumpe2fs")
	image, _ := smallTree(t, ".tar.gz", "")
	s := newSite(t, imageSettings(image, "SWAP=no", "BOOT_SIZE=150", "MKFS_OPTIONS='-O ^has_journal -N 5000'"))
	disk := newDisk(t, 1000)
	s.create(t, instance(disk))
	t.Run("judge", func(t *testing.T) {
		out := tool(t, "dumpe2fs", "-h", attachPartition(t, disk, 2))
		if strings.Contains(out, "has_journal") || !strings.Contains(out, "Inode count:              50") {
			t.Errorf("the root is not as it was wanted:\n%s", out)
		}
	})
	s = newSite(t, imageSettings(image, "SWAP=no", "BOOT_SIZE=150", "MKFS_OPTIONS='--no-such-option'"))
	s.refuse(t, instance(disk), 2, "MKFS_OPTIONS", "mkfs.ext4", "no-such-option")
	tool(t, "dumpe2fs", "-h", attachPartition(t, disk, 2)) // the disk is as it was
}

// Where a tree does not fit the refusal says what is needed; nothing of the disk
// is lost where that is known before.
func TestTreeDiskTooSmall(t *testing.T) {
	image, _ := smallTree(t, ".tar.gz", `head -c 40M /dev/urandom > "$tree/var/large"`)
	s := newSite(t, imageSettings(image, "SWAP_SIZE=100", "BOOT_SIZE=150"))
	for _, mib := range []int{1, 90, 260} {
		disk := newDisk(t, mib)
		o := s.refuse(t, instance(disk), 4, "the disk has "+itoa(mib)+" MiB", "100 MiB for swap", "150 MiB for boot")
		if strings.Contains(o.log, "panic") {
			t.Error(o.log)
		}
		untouched(t, disk)
	}
}

// An archive with more in it than the disk has room for leaves no half system.
func TestTreeLargerThanDisk(t *testing.T) {
	for _, c := range []struct{ name, ending, change string }{
		{"zeros", ".tar.gz", `head -c 900M /dev/zero > "$tree/var/large"`},
		{"boot", ".tar.gz", `head -c 200M /dev/zero > "$tree/boot/large"`},
		{"inodes", ".tar.gz", `mkdir "$tree/many"; cd "$tree/many"; seq 1 40000 | xargs touch`},
	} {
		t.Run(c.name, func(t *testing.T) {
			image, _ := smallTree(t, c.ending, c.change)
			s := newSite(t, imageSettings(image, "SWAP_SIZE=100", "BOOT_SIZE=150", "MKFS_OPTIONS='-N 20000'"))
			disk := newDisk(t, 800)
			s.refuse(t, instance(disk), 4, "full")
			empty(t, disk)
		})
	}
}

// An archive that was cut off, wherever, leaves nothing that looks like a system.
func TestTreeCutOff(t *testing.T) {
	for _, ending := range []string{".tar", ".tar.gz", ".tar.zst", ".tar.xz", "-root.dump"} {
		image, _ := smallTree(t, ending, "")
		info, err := os.Stat(image)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []int64{10, 50, 90, 99} {
			t.Run(fmt.Sprint(ending, " ", part), func(t *testing.T) {
				cut := filepath.Join(t.TempDir(), "cut"+ending)
				shell(t, `head -c "$3" "$1" > "$2"; boot=${1%-root.dump}-boot.dump; [ ! -e "$boot" ] || cp "$boot" "${2%-root.dump}-boot.dump"`, image, cut, fmt.Sprint(info.Size()*part/100))
				s := newSite(t, imageSettings(cut, "SWAP=no", "BOOT_SIZE=150"))
				disk := newDisk(t, 600)
				o := s.refuse(t, instance(disk), 3)
				if !strings.Contains(o.last(), "cut off") && !strings.Contains(o.last(), "damaged") {
					t.Errorf("the refusal does not say what is wrong: %s", o.last())
				}
				if head := shell(t, `head -c 1 "$1" | od -An -tx1`, disk); strings.TrimSpace(head) == "aa" {
					untouched(t, disk)
				} else {
					empty(t, disk)
				}
			})
		}
	}
}

// A system deployed over another one leaves nothing of it to be found.
func TestTreeOverAnother(t *testing.T) {
	need.Tools(t, "wipefs", "sgdisk")
	image, tree := smallTree(t, ".tar.gz", "")
	disk := newDisk(t, 1200)
	steps := []struct {
		settings string
		label    string
		parts    []want
	}{
		{"PARTITION_TABLE=gpt\nFILESYSTEM=btrfs\nSWAP=no", "gpt", []want{{14, "", 1}, {15, "vfat", 100}, {1, "ext4", 150}, {2, "btrfs", 0}}},
		{"PARTITION_TABLE=msdos\nFILESYSTEM=xfs", "dos", []want{{1, "ext4", 150}, {2, "swap", 100}, {3, "xfs", 0}}},
		{"PARTITION_TABLE=msdos\nFILESYSTEM=ext4\nSWAP=no", "dos", []want{{1, "ext4", 150}, {2, "ext4", 0}}},
		{"PARTITION_TABLE=gpt\nFILESYSTEM=xfs\nSWAP=no\nBOOT_SIZE=200", "gpt", []want{{14, "", 1}, {15, "vfat", 100}, {1, "ext4", 200}, {2, "xfs", 0}}},
	}
	for _, step := range steps {
		t.Run(strings.ReplaceAll(step.settings, "\n", " "), func(t *testing.T) {
			s := newSite(t, imageSettings(image, "SWAP_SIZE=100", "BOOT_SIZE=150", step.settings))
			s.create(t, instance(disk).with(env{"INSTANCE_REINSTALL": "1"}))
			checkSmall(t, disk, tree, step.parts, 1, time.Nanosecond)
			want := map[string]string{"gpt": "gpt PMBR gpt", "dos": "dos"}[step.label]
			out := strings.Fields(tool(t, "wipefs", "--noheadings", "--output", "TYPE", disk))
			if got := len(out); got != len(strings.Fields(want)) || !strings.Contains(strings.Join(out, " "), step.label) {
				t.Errorf("wipefs finds %v on the disk, want %s", out, want)
			}
			for _, p := range step.parts {
				t.Run(itoa(p.number), func(t *testing.T) {
					for _, kind := range strings.Fields(tool(t, "wipefs", "--noheadings", "--output", "TYPE", attachPartition(t, disk, p.number))) {
						if kind != p.holds {
							t.Errorf("wipefs finds %s on partition %d, want %q", kind, p.number, p.holds)
						}
					}
				})
			}
		})
	}
}

// Two instances of one tree at once do not see each other, though their files
// name the same identifiers.
func TestTwoTreesAtOnce(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fs, func(t *testing.T) {
			image, tree := smallTree(t, "-root.dump", "")
			s := newSite(t, imageSettings(image, "SWAP=no", "BOOT_SIZE=150", "FILESYSTEM="+fs))
			disks := map[string]string{"one.example.org": newDisk(t, 800), "two.example.org": newDisk(t, 800)}
			done := make(chan outcome, len(disks))
			for name, disk := range disks {
				go func() { done <- finish(t, s.command("create", instance(disk).with(env{"INSTANCE_NAME": name}))) }()
			}
			for range disks {
				if o := <-done; o.code != 0 {
					t.Errorf("create ended with %d:\n%s", o.code, o.log)
				}
			}
			if t.Failed() {
				return
			}
			for _, disk := range disks {
				checkSmall(t, disk, tree, []want{{1, "ext4", 150}, {2, fs, 0}}, 1, time.Second)
			}
			if left := attached(t); left != "" {
				t.Errorf("something is left attached:\n%s", left)
			}
		})
	}
}

// A tree without a kernel that is to boot by itself is refused.
func TestTreeWithoutKernel(t *testing.T) {
	image, _ := smallTree(t, ".tar.gz", `rm "$tree"/boot/vmlinuz-* "$tree"/boot/initrd.img-*`)
	for _, how := range []string{"GRUB=auto", "hook"} {
		t.Run(how, func(t *testing.T) {
			s := newSite(t, imageSettings(image, "SWAP=no", "BOOT_SIZE=150", map[bool]string{true: "GRUB=auto"}[how != "hook"]))
			if how == "hook" {
				s.enable(t, "grub")
			}
			disk := newDisk(t, 1000)
			o := s.run(t, "create", instance(disk))
			if o.code == 0 {
				t.Fatalf("it was deployed:\n%s", o.log)
			}
			said := o.last()
			if how == "hook" { // what a hook says stands above the line that names the hook
				said = o.log
			}
			if !strings.Contains(strings.ToLower(said), "kernel") {
				t.Errorf("it does not say what is missing: %s", said)
			}
			empty(t, disk)
		})
	}
	t.Run("outside", func(t *testing.T) {
		s := newSite(t, imageSettings(image, "SWAP=no"))
		s.create(t, instance(newDisk(t, 700)).with(env{"INSTANCE_HV_kernel_path": "/boot/vmlinuz"}))
	})
}

// A tree without a boot loader gets the node's, and the log says so.
func TestTreeWithoutLoader(t *testing.T) {
	image, _ := smallTree(t, ".tar.gz", `rm -r "$tree/usr/lib/grub"`)
	for _, how := range []string{"GRUB=auto", "hook"} {
		t.Run(how, func(t *testing.T) {
			s := newSite(t, imageSettings(image, "SWAP=no", "BOOT_SIZE=150", map[bool]string{true: "GRUB=auto"}[how != "hook"]))
			if how == "hook" {
				s.enable(t, "grub")
			}
			disk := newDisk(t, 1000)
			if log := s.create(t, instance(disk)); !strings.Contains(log, "this node's") {
				t.Errorf("the log does not say whose GRUB it is:\n%s", log)
			}
			judgeTree(t, disk, []want{{1, "ext4", 150}, {2, "ext4", 0}})
			if !strings.Contains(shell(t, `head -c 440 "$1" | tr -d '\0'`, disk), "GRUB") {
				t.Error("GRUB is not in the boot sector")
			}
		})
	}
}

// Above 2 TiB the table is a GPT, unless it is to be an MBR, which says so.
func TestTreeOnLargeDisks(t *testing.T) {
	need.Tools(t, "sgdisk")
	image, _ := smallTree(t, ".tar.gz", "")
	for _, c := range []struct{ table, label, want string }{{"auto", "gpt", ""}, {"gpt", "gpt", ""}, {"msdos", "dos", "2 TiB"}} {
		t.Run(c.table, func(t *testing.T) {
			s := newSite(t, imageSettings(image, "SWAP=no", "FILESYSTEM=xfs", "PARTITION_TABLE="+c.table))
			disk := filepath.Join(t.TempDir(), "disk")
			shell(t, `truncate -s 3T "$1"`, disk)
			log := s.create(t, instance(disk))
			if !strings.Contains(log, c.want) {
				t.Errorf("the log does not say %q:\n%s", c.want, log)
			}
			if label := readTable(t, disk).PartitionTable.Label; label != c.label {
				t.Errorf("the table is %s, want %s", label, c.label)
			}
			judgeTable(t, disk)
			if _, length := extent(t, disk, 2); length < 2<<40-4<<30 || c.label == "gpt" && length < 3<<40-4<<30 {
				t.Errorf("the root has %d bytes", length)
			}
		})
	}
}

// A disk that counts in sectors of 4096 bytes is for guests whose disks count in
// 512, as QEMU's do: the table is one that they read.
func TestTreeOnLargeSectors(t *testing.T) {
	image, tree := smallTree(t, ".tar.gz", "")
	s := newSite(t, imageSettings(image, "SWAP=no", "BOOT_SIZE=150", "PARTITION_TABLE=gpt"))
	disk := newDisk(t, 1000)
	loop := strings.TrimSpace(tool(t, "losetup", "--find", "--show", "--sector-size", "4096", disk))
	o := s.run(t, "create", instance(loop))
	tool(t, "losetup", "--detach", loop)
	if o.code != 0 {
		if !strings.Contains(o.last(), "4096") {
			t.Errorf("the refusal does not say why:\n%s", o.log)
		}
		untouched(t, disk)
		return
	}
	checkSmall(t, disk, tree, []want{{14, "", 1}, {15, "vfat", 100}, {1, "ext4", 150}, {2, "ext4", 0}}, 1, time.Nanosecond)
}

// What makes no sense for a tree is refused before the disk is touched.
func TestTreeSettingsRefused(t *testing.T) {
	image, _ := smallTree(t, ".tar.gz", "")
	cases := []struct {
		settings string
		code     int
		words    []string
		more     env
	}{
		{"NOMOUNT=yes", 2, []string{"NOMOUNT"}, nil},
		{"FILESYSTEM=ntfs", 2, []string{"FILESYSTEM"}, nil},
		{"PARTITION_TABLE=bsd", 2, []string{"PARTITION_TABLE"}, nil},
		{"GRUB=yes", 2, []string{"GRUB"}, nil},
		{"SWAP_SIZE=", 2, []string{"SWAP_SIZE"}, env{"INSTANCE_BE_maxmem": ""}},
		{"SWAP_SIZE=800G", 4, []string{"the disk has 1000 MiB", "swap"}, nil},
		{"ESP_SIZE=x", 2, []string{"ESP_SIZE"}, nil},
	}
	for _, c := range cases {
		t.Run(c.settings, func(t *testing.T) {
			s := newSite(t, imageSettings(image, "BOOT_SIZE=150", c.settings))
			disk := newDisk(t, 1000)
			s.refuse(t, instance(disk).with(c.more), c.code, c.words...)
			untouched(t, disk)
		})
	}
}

// pygrub, which reads a guest's disk for Xen, finds the kernel of a tree, on a
// file system that it reads.
func TestTreePygrub(t *testing.T) {
	const pygrub = "/usr/lib/xen-4.17/bin/pygrub"
	need.File(t, pygrub)
	image, _ := smallTree(t, ".tar.gz", "")
	for _, table := range []string{"msdos", "gpt"} {
		t.Run(table, func(t *testing.T) {
			s := newSite(t, imageSettings(image, "SWAP=no", "BOOT_SIZE=150", "GRUB=auto", "PARTITION_TABLE="+table, "KERNEL_ARGS=site.mark"))
			disk := newDisk(t, 1000)
			log := s.create(t, instance(disk).with(env{"HYPERVISOR": "xen-pvm", "INSTANCE_HV_kernel_path": "/boot/vmlinuz", "INSTANCE_HV_use_bootloader": "True"}))
			out := shell(t, `"$1" --quiet --output-directory="$3" --output-format=simple "$2"; cat "$3"/*`, pygrub, disk, t.TempDir())
			for _, want := range []string{"kernel\n", "initrd\n", "site.mark", "root=UUID=", "console=hvc0"} {
				if !strings.Contains(out, want) {
					t.Errorf("pygrub does not find %s:\n%s\nlog:\n%s", want, out, log)
				}
			}
		})
	}
}

// A guest that makes its files from its own configuration keeps them, and boots.
func TestTreeThatIsImmutable(t *testing.T) {
	image, tree := smallTree(t, ".tar.gz", `printf 'ID=nixos\nVERSION_ID="24.11"\n' > "$tree/usr/lib/os-release"`)
	for _, how := range []string{"GRUB=auto", "hook"} {
		t.Run(how, func(t *testing.T) {
			s := newSite(t, imageSettings(image, "SWAP=no", "BOOT_SIZE=150", map[bool]string{true: "GRUB=auto"}[how != "hook"]))
			s.enable(t, "interfaces", "ssh")
			if how == "hook" {
				s.enable(t, "grub")
			}
			disk := newDisk(t, 1000)
			log := s.create(t, instance(disk).with(env{"OSP_ROOT_PASSWORD": "s3cret"}))
			for _, want := range []string{"files are left alone", "hooks=interfaces ssh", "does not get what ROOT_PASSWORD"} {
				if !strings.Contains(log, want) {
					t.Errorf("the log does not say %q:\n%s", want, log)
				}
			}
			if !strings.Contains(shell(t, `head -c 440 "$1" | tr -d '\0'`, disk), "GRUB") {
				t.Error("it has no boot loader")
			}
			dir := mountTree(t, disk, 2, 1, "ext4")
			for _, name := range []string{"etc/hostname", "etc/ssh/ssh_host_dsa_key"} {
				wantIn(t, dir, map[string][]string{name: {fileTexts(tree, []string{name})[name]}})
			}
		})
	}
}
