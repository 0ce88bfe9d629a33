package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
)

const (
	linuxSwap = "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"
	linuxData = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
	linuxLVM  = "E6D6D379-F507-44C2-A23C-238F2A3DF928"
)

// lvmFunctions: volumes N GROUP NAME:MIB... makes partition N a physical volume
// with these volumes side by side, and into N GROUP NAME FILE writes a file to a
// volume.
const lvmFunctions = `
lvm_run() { command=$1; shift; lvm "$command" --driverloaded n --devices "$loop" --config 'devices/use_devicesfile=0 backup{backup=0 archive=0}' -y -q "$@" 2>/dev/null >/dev/null; }
pv_loop() { set -- $(dump "$1"); loop=$(losetup --find --show --offset $(($1 * 512)) --sizelimit $(($2 * 512)) "$image"); }
volumes() {
	pv_loop "$1"; group=$2; shift 2
	lvm_run pvcreate "$loop"; lvm_run vgcreate "$group" "$loop"
	for v; do lvm_run lvcreate -an -Zn -Wn -n "${v%:*}" -L "${v#*:}M" "$group"; done
	losetup --detach "$loop"
}
report() { lvm "$@" --driverloaded n --devices "$loop" --units m --nosuffix --noheadings 2>/dev/null; }
place() { # N GROUP NAME: offset on the partition and length, in MiB
	pv_loop "$1"
	{ report pvs -o pe_start; report lvs -o seg_pe_ranges,seg_size "$2/$3"; } | sed 's/\.00//g' |
		awk 'NR == 1 {start = $1} NR == 2 {split($1, r, ":"); split(r[2], n, "-"); print start + n[1] * 4, $2}'
	losetup --detach "$loop"
}
into() { set -- "$4" $(dump "$1") $(place "$1" "$2" "$3"); dd if="$1" of="$image" bs=1M oflag=seek_bytes seek=$(($2 * 512 + $4 * 1048576)) conv=notrunc,sparse status=none; rm "$1"; }
`

// unusualLayouts are the layouts that distributions and installers have besides
// diskLayouts, and some that nobody has on purpose. A label in kept names what
// must be found again by its UUID behind the root.
var unusualLayouts = []diskLayout{
	{"arch", "label: gpt\n1: start=2048, size=2048, type=" + bios + "\n2: start=4096, size=65536, type=" + efi + "\n3: start=69632, type=" + root + "\n",
		`echo '/dev/vda3 / btrfs compress=zstd 0 0' > "$tree/etc/fstab"; fs vfat 2 "$tree"; fs btrfs 3 "$tree"`, 3},
	{"fedora 44", "label: gpt\n1: start=2048, size=2048, type=" + bios + "\n2: start=4096, size=65536, type=" + efi + "\n3: start=69632, type=" + linuxData + "\n",
		`printf 'UUID=%s / btrfs subvol=root 0 0\nUUID=%s /boot btrfs subvol=boot 0 0\n' 77777777-7777-4777-8777-777777777777 77777777-7777-4777-8777-777777777777 > "$tree/etc/fstab"
		 mkdir "$image.sub"; truncate -s "$(length 3)" "$image.fs"; mkfs.btrfs -q -U 77777777-7777-4777-8777-777777777777 "$image.fs"
		 mount -o loop "$image.fs" "$image.sub"; for v in root boot home var; do btrfs -q subvolume create "$image.sub/$v"; done
		 cp -a "$tree/." "$image.sub/root"; umount "$image.sub"; rmdir "$image.sub"; put 3 "$image.fs"`, 3},
	{"ubuntu 24.10", "label: gpt\n13: start=2048, size=131072, type=" + xbl + "\n14: start=133120, size=8192, type=" + bios + "\n15: start=141312, size=65536, type=" + efi + "\n1: start=206848, type=" + root + "\n",
		`printf 'LABEL=cloudimg-rootfs / ext4 defaults 0 1\nLABEL=BOOT /boot ext4 defaults 0 2\n' > "$tree/etc/fstab"
		 mkdir "$image.boot"; fs ext4 13 "$image.boot" -L BOOT; fs vfat 15 "$tree"; fs ext4 1 "$tree" -L cloudimg-rootfs`, 1},
	{"amazon 2023", "label: gpt\n128: start=2048, size=20480, type=" + efi + "\n127: start=22528, size=2048, type=" + bios + "\n1: start=24576, type=" + linuxData + "\n",
		`echo 'UUID=88888888-8888-4888-8888-888888888888 / xfs defaults 0 0' > "$tree/etc/fstab"; fs xfs 1 "$tree" -m uuid=88888888-8888-4888-8888-888888888888`, 1},
	{"centos 7", "label: dos\nstart=2048, type=83, bootable\n",
		`echo 'UUID=99999999-9999-4999-8999-999999999999 / xfs defaults 0 0' > "$tree/etc/fstab"; fs xfs 1 "$tree" -m uuid=99999999-9999-4999-8999-999999999999`, 1},
	{"alpine uefi", "label: gpt\n1: start=2048, size=1024, type=" + efi + "\n2: start=4096, type=" + linuxData + "\n",
		`echo '/dev/vda2 / ext4 defaults 0 1' > "$tree/etc/fstab"; fs ext4 2 "$tree"`, 2},
	{"leap", "label: gpt\n1: start=2048, size=4096, type=" + bios + "\n2: start=6144, size=65536, type=" + efi + "\n3: start=71680, type=" + linuxData + "\n",
		`echo '/dev/vda3 / btrfs defaults 0 0' > "$tree/etc/fstab"; fs vfat 2 "$tree"
		 mkdir "$image.sub"; truncate -s "$(length 3)" "$image.fs"; mkfs.btrfs -q "$image.fs"; mount -o loop "$image.fs" "$image.sub"
		 btrfs -q subvolume create "$image.sub/@"; mkdir -p "$image.sub/@/.snapshots/1"; btrfs -q subvolume create "$image.sub/@/.snapshots/1/snapshot"
		 cp -a "$tree/." "$image.sub/@/.snapshots/1/snapshot"; btrfs -q subvolume set-default "$image.sub/@/.snapshots/1/snapshot"
		 umount "$image.sub"; rmdir "$image.sub"; put 3 "$image.fs"`, 3},
	{"swap behind", "label: gpt\n1: start=2048, size=2048, type=" + bios + "\n2: start=4096, size=1228800, type=" + root + "\n3: start=1232896, size=204800, type=" + linuxSwap + ", uuid=AAAAAAAA-AAAA-4AAA-8AAA-AAAAAAAAAAAA, name=\"my swap\", attrs=\"GUID:63\"\n",
		`echo '/dev/vda2 / ext4 defaults 0 1' > "$tree/etc/fstab"; fs ext4 2 "$tree"; fs swap 3 "$tree" -L theswap -U aaaaaaaa-0000-4000-8000-000000000001`, 2},
	{"mbr swap behind", "label: dos\nlabel-id: 0x11112222\n1: start=2048, size=1228800, type=83, bootable\n2: start=1230848, size=204800, type=82\n",
		`echo '/dev/vda1 / ext4 defaults 0 1' > "$tree/etc/fstab"; fs ext4 1 "$tree"; fs swap 2 "$tree" -L theswap -U aaaaaaaa-0000-4000-8000-000000000001`, 1},
	{"installer", "label: dos\nlabel-id: 0x33334444\n1: start=2048, size=1228800, type=83, bootable\n2: start=1232894, size=204802, type=5\n5: start=1232896, size=204800, type=82\n",
		`echo '/dev/vda1 / ext4 defaults 0 1' > "$tree/etc/fstab"; fs ext4 1 "$tree"; fs swap 5 "$tree" -L theswap -U aaaaaaaa-0000-4000-8000-000000000001`, 1},
	{"logical", "label: dos\n1: start=2048, size=204800, type=83, bootable\n2: start=208894, type=5\n5: start=208896, size=204800, type=82\n6: start=415744, type=83\n",
		`echo '/dev/vda6 / ext4 defaults 0 1' > "$tree/etc/fstab"; fs ext4 6 "$tree"; fs swap 5 "$tree"`, 6},
	{"hybrid", "label: gpt\n1: start=2048, size=65536, type=" + efi + "\n2: start=67584, type=" + root + "\n",
		`echo '/dev/vda2 / ext4 defaults 0 1' > "$tree/etc/fstab"; fs ext4 2 "$tree"; sgdisk -h 1:2 "$image" >/dev/null`, 2},
}

// What is behind the root and moved keeps what it is known by.
func TestCreateGrowsUnusualLayouts(t *testing.T) {
	need.Tools(t, "qemu-img", "sgdisk", "e2fsck", "xfs_repair", "btrfs", "mkswap")
	for _, layout := range unusualLayouts {
		t.Run(layout.name, func(t *testing.T) {
			image, _ := makeImage(t, layout)
			s := newSite(t, imageSettings(image))
			disk := newDisk(t, 1500)
			s.create(t, instance(disk))
			checkDisk(t, disk, layout, 1500)
			if before, after := identities(t, image), identities(t, disk); before != after {
				t.Errorf("partitions are known by something else:\n%s", diff(t, before, after))
			}
			if before, after := listing(t, image, layout), listing(t, disk, layout); before != after {
				t.Errorf("the guest changed:\n%s", diff(t, before, after))
			}
			checkSwap(t, image, disk)
		})
	}
}

// identities is what guests know partitions by.
func identities(t *testing.T, disk string) string {
	t.Helper()
	table := readTable(t, disk).PartitionTable
	text := fmt.Sprintln(table.Label, table.ID)
	for _, p := range table.Partitions {
		text += fmt.Sprintln(strings.TrimPrefix(p.Node, disk), p.Type, p.UUID, p.Name, p.Attrs, p.Bootable)
	}
	return text
}

// checkSwap wants swap space to be what it was, at the end of the disk if it was
// behind the root.
func checkSwap(t *testing.T, image, disk string) {
	t.Helper()
	before, after := readTable(t, image).PartitionTable, readTable(t, disk).PartitionTable
	for i, p := range before.Partitions {
		if strings.ToLower(p.Type) != "82" && p.Type != linuxSwap {
			continue
		}
		blkid := func(disk string, start int64) string {
			return tool(t, "blkid", "-p", "-o", "export", "-O", fmt.Sprint(start*512), "-s", "UUID", "-s", "LABEL", "-s", "TYPE", disk)
		}
		now := after.Partitions[i]
		want := strings.ReplaceAll(blkid(image, p.Start), image, "")
		if got := strings.ReplaceAll(blkid(disk, now.Start), disk, ""); got != want || !strings.Contains(got, "swap") || now.Size != p.Size {
			t.Errorf("swap became\n%s with %d sectors, it was\n%s with %d", got, now.Size, want, p.Size)
		}
	}
}

// A root in front of something that nobody can move is grown as far as it goes.
func TestCreateSaysWhatIsInTheWay(t *testing.T) {
	layout := diskLayout{"esp behind", "label: gpt\n1: start=2048, size=1228800, type=" + root + "\n2: start=1435648, size=65536, type=" + efi + "\n",
		`echo '/dev/vda1 / ext4 defaults 0 1' > "$tree/etc/fstab"; fs ext4 1 "$tree"; fs vfat 2 "$tree"`, 1}
	image, _ := makeImage(t, layout)
	s := newSite(t, imageSettings(image))
	disk := newDisk(t, 1500)
	log := s.create(t, instance(disk))
	if !strings.Contains(log, "partition 2") || !strings.Contains(log, "in the way") {
		t.Errorf("the log does not say what is in the way:\n%s", log)
	}
	if start, length := extent(t, disk, 1); start+length != 1435648*512 {
		t.Errorf("the root ends at %d, want it to end where the next partition begins", start+length)
	}
	judge := attachPartition(t, disk, 1)
	tool(t, "e2fsck", "-fn", judge)
}

// A system that went to sleep into its swap space goes on from there: the root
// in front of it stays as it is.
func TestCreateLeavesHibernatedSystems(t *testing.T) {
	layout := diskLayout{"hibernated", "label: gpt\n1: start=2048, size=1228800, type=" + root + "\n2: start=1230848, size=204800, type=" + linuxSwap + "\n",
		`echo '/dev/vda1 / ext4 defaults 0 1' > "$tree/etc/fstab"; fs ext4 1 "$tree"; fs swap 2 "$tree"
		 printf 'S1SUSPEND\0' | dd of="$image" bs=1 seek=$((1230848 * 512 + 4086)) conv=notrunc status=none`, 1}
	image, _ := makeImage(t, layout)
	s := newSite(t, imageSettings(image))
	disk := newDisk(t, 1500)
	if log := s.create(t, instance(disk)); !strings.Contains(log, "partition 2") {
		t.Errorf("the log does not say what is in the way:\n%s", log)
	}
	if start, length := extent(t, disk, 2); start != 1230848*512 || length != 204800*512 {
		t.Errorf("the swap partition was moved to %d", start)
	}
}

// What this program does not grow is deployed as it is, and that is said.
func TestCreateLeavesWhatItDoesNotKnow(t *testing.T) {
	cases := []struct{ name, fill, want string }{
		{"luks", `truncate -s "$(length 1)" "$image.fs"; printf 'LUKS\272\276\0\002' | dd of="$image.fs" conv=notrunc status=none; put 1 "$image.fs"`, "crypto_LUKS"},
		{"ntfs", `truncate -s "$(length 1)" "$image.fs"; mkntfs -q -Q -F "$image.fs" >/dev/null; put 1 "$image.fs"`, "ntfs"},
		{"f2fs", `truncate -s "$(length 1)" "$image.fs"; mkfs.f2fs -q "$image.fs" >/dev/null; put 1 "$image.fs"`, "f2fs"},
		{"unknown", `true`, "nothing known"},
	}
	need.Tools(t, "mkntfs", "mkfs.f2fs")
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			layout := diskLayout{c.name, "label: gpt\n1: start=2048, type=" + linuxData + "\n", c.fill, 1}
			image, _ := makeImage(t, layout)
			s := newSite(t, imageSettings(image))
			s.enable(t, "cloud-init")
			disk := newDisk(t, 1500)
			log := s.create(t, instance(disk))
			for _, want := range []string{c.want, "not customised"} {
				if !strings.Contains(log, want) {
					t.Errorf("the log does not say %q:\n%s", want, log)
				}
			}
			start, length := extent(t, image, 1)
			shell(t, `cmp -n "$3" -i "$4" "$1" "$2"`, image, disk, fmt.Sprint(length), fmt.Sprint(start))
			if out := tool(t, "sgdisk", "-v", disk); !strings.Contains(out, "No problems found") {
				t.Errorf("sgdisk -v:\n%s", out)
			}
		})
	}
}

// lvmLayouts have the root on LVM; root is the number of the physical volume.
var lvmLayouts = []diskLayout{
	{"debian lvm", "label: dos\n1: start=2048, size=204800, type=83, bootable\n2: start=208894, type=5\n5: start=208896, type=8e\n",
		`printf '/dev/mapper/web--vg-root / ext4 defaults 0 1\n/dev/vda1 /boot ext4 defaults 0 2\n' > "$tree/etc/fstab"
		 mkdir "$image.boot"; fs ext4 1 "$image.boot"; volumes 5 web-vg root:600 swap_1:100
		 truncate -s 600M "$image.fs"; mke2fs -q -t ext4 -d "$tree" "$image.fs"; into 5 web-vg root "$image.fs"
		 truncate -s 100M "$image.fs"; mkswap -q -U aaaaaaaa-0000-4000-8000-000000000002 "$image.fs"; into 5 web-vg swap_1 "$image.fs"`, 5},
	{"rhel lvm", "label: gpt\n1: start=2048, size=2048, type=" + bios + "\n2: start=4096, size=65536, type=" + efi + "\n3: start=69632, type=" + linuxLVM + "\n",
		`echo '/dev/mapper/rhel-root / xfs defaults 0 0' > "$tree/etc/fstab"; fs vfat 2 "$tree"; volumes 3 rhel swap:100 root:600
		 truncate -s 600M "$image.fs"; mkfs.xfs -q "$image.fs"; copy "$image.fs" "$tree"; into 3 rhel root "$image.fs"
		 truncate -s 100M "$image.fs"; mkswap -q "$image.fs"; into 3 rhel swap "$image.fs"`, 3},
}

// The group of lvmLayouts, by the layout's name.
var lvmGroups = map[string]string{"debian lvm": "web-vg", "rhel lvm": "rhel"}

// volumeOf attaches a logical volume of a disk for the test's time, where lvm
// says that it is.
func volumeOf(t *testing.T, disk string, layout diskLayout, volume string) (loop string, mib int) {
	t.Helper()
	out := shell(t, "image=$1\n"+fillFunctions+lvmFunctions+`
		set -- $(dump "$2") $(place "$2" "$3" "$4")
		echo $(losetup --find --show --offset $(($1 * 512 + $3 * 1048576)) --sizelimit $(($4 * 1048576)) "$image") $4`,
		disk, itoa(layout.root), lvmGroups[layout.name], volume)
	if _, err := fmt.Sscan(out, &loop, &mib); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { tool(t, "losetup", "--detach", loop) })
	return loop, mib
}

// The physical volume, the root's logical volume and its file system grow; two
// instances of one image at once do not see each other.
func TestCreateGrowsLVM(t *testing.T) {
	need.Tools(t, "lvm", "e2fsck", "xfs_repair")
	for _, layout := range lvmLayouts {
		t.Run(layout.name, func(t *testing.T) {
			image, tree := makeImage(t, diskLayout{layout.name, layout.table, lvmFunctions + layout.fill, layout.root})
			s := newSite(t, imageSettings(image))
			s.enable(t, "cloud-init")
			var disks []string
			var done []chan outcome
			for range 2 {
				disk := newDisk(t, 1500)
				disks = append(disks, disk)
				ch := make(chan outcome, 1)
				done = append(done, ch)
				go func() { ch <- finish(t, s.command("create", instance(disk))) }()
			}
			for i, disk := range disks {
				o := <-done[i]
				if o.code != 0 {
					t.Fatalf("create ended with %d:\n%s", o.code, o.log)
				}
				if strings.Contains(o.log, "warning: cannot") {
					t.Errorf("something could not be looked at:\n%s", o.log)
				}
				checkVolumes(t, disk, layout, tree)
			}
			if left := attached(t); left != "" {
				t.Errorf("something is left attached:\n%s", left)
			}
		})
	}
}

func checkVolumes(t *testing.T, disk string, layout diskLayout, tree string) {
	t.Helper()
	t.Run("judge", func(t *testing.T) {
		pv := attachPartition(t, disk, layout.root)
		for _, check := range [][]string{{"pvck"}, {"vgck", lvmGroups[layout.name]}} {
			device := []string{"--driverloaded", "n", "--devices", pv}
			args := append(append(check[:1:1], device...), check[1:]...)
			if check[0] == "pvck" {
				args = append(args, pv)
			}
			tool(t, "lvm", args...)
		}
		loop, mib := volumeOf(t, disk, layout, "root")
		if mib < 1000 {
			t.Errorf("the root's volume has %d MiB", mib)
		}
		options := ""
		switch kind := strings.TrimSpace(tool(t, "blkid", "-p", "-o", "value", "-s", "TYPE", loop)); kind {
		case "ext4":
			tool(t, "e2fsck", "-fn", loop)
		case "xfs":
			tool(t, "xfs_repair", "-n", loop)
			options = "nouuid"
		default:
			t.Errorf("the root is of type %q", kind)
		}
		dir := filepath.Join(t.TempDir(), "root")
		shell(t, `mkdir "$1"; mount -o "ro,$3" "$2" "$1"`, dir, loop, options)
		defer tool(t, "umount", dir)
		shell(t, `cmp "$1/usr/lib/content" "$2/usr/lib/content"; [ "$(stat -f -c '%S * %b' "$1" | sed 's/^/echo $((/; s/$/))/' | bash)" -gt 900000000 ]
			grep -q web.example.org "$1/var/lib/cloud/seed/nocloud/meta-data"`, dir, tree)
		for _, volume := range []string{"swap_1", "swap"} {
			if layout.name == "debian lvm" == (volume == "swap_1") {
				swap, _ := volumeOf(t, disk, layout, volume)
				if out := tool(t, "blkid", "-p", "-o", "value", "-s", "TYPE", swap); strings.TrimSpace(out) != "swap" {
					t.Errorf("%s holds %s", volume, out)
				}
			}
		}
	})
}

// A compressed raw image is deployed as if it was unpacked.
func TestCreateUnpacks(t *testing.T) {
	need.Tools(t, "gzip", "xz", "zstd", "bzip2", "lz4")
	layout := layoutNamed(t, "debian")
	image, _ := makeImage(t, layout)
	for ending, command := range map[string]string{"gz": "gzip", "xz": "xz -T2 --block-size=16MiB -0", "zst": "zstd -q", "bz2": "bzip2 -1", "lz4": "lz4 -q"} {
		t.Run(ending, func(t *testing.T) {
			packed := filepath.Join(t.TempDir(), "image.raw."+ending)
			shell(t, command+` -c < "$1" > "$2"`, image, packed)
			s := newSite(t, imageSettings(packed))
			s.enable(t, "cloud-init")
			disk := newDisk(t, 1500)
			s.create(t, instance(disk))
			checkDisk(t, disk, layout, 1500)
		})
	}
	t.Run("larger than the disk", func(t *testing.T) {
		packed := filepath.Join(t.TempDir(), "image.img.gz")
		shell(t, `gzip -c < "$1" > "$2"`, image, packed)
		s := newSite(t, imageSettings(packed))
		disk := newDisk(t, 500)
		s.refuse(t, instance(disk), 4, "more than the disk")
		empty(t, disk)
	})
	t.Run("no room for its table", func(t *testing.T) {
		packed := filepath.Join(t.TempDir(), "image.img.zst")
		shell(t, `cp --sparse=always "$1" "$2.raw"; printf '\377' | dd of="$2.raw" bs=1 seek=1060 conv=notrunc status=none
			printf '\377' | dd of="$2.raw" bs=1 seek=$(($(stat -c %s "$1") - 500)) conv=notrunc status=none; zstd -q -c < "$2.raw" > "$2"`, image, packed)
		s := newSite(t, imageSettings(packed))
		disk := newDisk(t, 1500)
		s.refuse(t, instance(disk), 3, "damaged")
		empty(t, disk)
	})
}

// Tables that count in sectors of 4096 bytes are grown in them, whatever the
// disk's own are.
func TestCreateKeepsTheImagesSectors(t *testing.T) {
	need.Root(t)
	need.Tools(t, "sgdisk", "sfdisk")
	image := filepath.Join(t.TempDir(), "image.raw")
	shell(t, `truncate -s 600M "$1"; loop=$(losetup --find --show --sector-size 4096 "$1")
		printf 'label: gpt\nstart=256, size=25600, type=%s\nstart=25856, type=%s\n' `+efi+" "+root+` | sfdisk -q "$loop"; losetup --detach "$loop"
		tree=$1.tree; `+strings.ReplaceAll(makeTree, "tree=$1\n", "")+`
		truncate -s $(((600 << 20) - 25856 * 4096 - (1 << 20))) "$1.fs"; mke2fs -q -t ext4 -d "$tree" "$1.fs"
		dd if="$1.fs" of="$1" bs=4096 seek=25856 conv=notrunc,sparse status=none`, image)
	for _, sector := range []string{"512", "4096"} {
		s := newSite(t, imageSettings(image))
		disk := newDisk(t, 1500)
		loop := strings.TrimSpace(tool(t, "losetup", "--find", "--show", "--sector-size", sector, disk))
		defer tool(t, "losetup", "--detach", loop)
		if o := s.run(t, "create", instance(loop)); o.code != 0 {
			t.Fatalf("create ended with %d:\n%s", o.code, o.log)
		}
		judge := strings.TrimSpace(tool(t, "losetup", "--find", "--show", "--sector-size", "4096", disk))
		defer tool(t, "losetup", "--detach", judge)
		if out := tool(t, "sgdisk", "-v", judge); !strings.Contains(out, "No problems found") {
			t.Errorf("sgdisk -v on sectors of 4096 bytes:\n%s", out)
		}
		part := strings.TrimSpace(tool(t, "losetup", "--find", "--show", "--offset", fmt.Sprint(25856*4096), disk))
		defer tool(t, "losetup", "--detach", part)
		tool(t, "e2fsck", "-fn", part)
		if out := tool(t, "bash", "-c", `dumpe2fs -h "$1" 2>/dev/null | sed -n 's/^Block count: *//p'`, "-", part); len(strings.TrimSpace(out)) < 6 {
			t.Errorf("the file system has %s blocks", out)
		}
	}
}

// Large disks: the MBR's limit is said, a GPT is grown beyond it.
func TestCreateOnLargeDisks(t *testing.T) {
	need.Tools(t, "sgdisk")
	for _, c := range []struct{ layout, want string }{{"mbr-ext4", "2 TiB"}, {"debian", "grew the partition"}} {
		t.Run(c.layout, func(t *testing.T) {
			layout := layoutNamed(t, c.layout)
			image, _ := makeImage(t, layout)
			s := newSite(t, imageSettings(image))
			disk := filepath.Join(t.TempDir(), "disk")
			shell(t, `truncate -s 3T "$1"`, disk)
			log := s.create(t, instance(disk))
			if !strings.Contains(log, c.want) {
				t.Errorf("the log does not say %q:\n%s", c.want, log)
			}
			_, length := extent(t, disk, layout.root)
			if length < 2<<40-64<<30 {
				t.Errorf("the root has %d bytes", length)
			}
			if c.layout == "debian" {
				if out := tool(t, "sgdisk", "-v", disk); !strings.Contains(out, "No problems found") {
					t.Errorf("sgdisk -v:\n%s", out)
				}
			}
			if info, err := os.Stat(disk); err != nil || info.Size() != 3<<40 {
				t.Errorf("the disk's length changed: %v, %v", info, err)
			}
		})
	}
}

// Two instances of one image are mounted at once, though their file systems have
// one UUID.
func TestTwoInstancesAtOnce(t *testing.T) {
	for _, name := range []string{"almalinux", "fedora"} {
		t.Run(name, func(t *testing.T) {
			layout := layoutNamed(t, name)
			image, _ := makeImage(t, layout)
			s := newSite(t, imageSettings(image))
			dir := t.TempDir()
			// Each goes on when both are mounted.
			s.hook(t, "meet", "#!/bin/bash\nset -e\necho $INSTANCE_NAME > $TARGET/etc/owner\ntouch "+dir+"/$INSTANCE_NAME\n"+
				"for i in {1..600}; do [ $(ls "+dir+" | wc -l) -lt 2 ] || exit 0; sleep 0.1; done; exit 1\n")
			disks := map[string]string{"one.example.org": newDisk(t, 1500), "two.example.org": newDisk(t, 1500)}
			done := make(chan outcome, len(disks))
			for name, disk := range disks {
				go func() { done <- finish(t, s.command("create", instance(disk).with(env{"INSTANCE_NAME": name}))) }()
			}
			for range disks {
				if o := <-done; o.code != 0 {
					t.Fatalf("create ended with %d:\n%s", o.code, o.log)
				}
			}
			for name, disk := range disks {
				checkDisk(t, disk, layout, 1500)
				t.Run("owner", func(t *testing.T) { shell(t, `grep -q "$2" "$1/etc/owner"`, mountRoot(t, disk, layout), name) })
			}
		})
	}
}
