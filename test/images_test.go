package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
)

// makeTree writes the files by which a directory is a Debian root with
// cloud-init and an OpenSSH server, small enough to be made for every test.
const makeTree = `
tree=$1
mkdir -p "$tree"/{etc/ssh,etc/cloud/cloud.cfg.d,etc/network,usr/bin,usr/sbin,usr/lib/python3/dist-packages/cloudinit,var/lib,var/log,home,boot,dev,proc,sys,tmp,root}
ln -s usr/bin "$tree/bin"
ln -s ../run/systemd/resolve/stub-resolv.conf "$tree/etc/resolv.conf"
printf 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n' > "$tree/usr/lib/os-release"
ln -s ../usr/lib/os-release "$tree/etc/os-release"
echo image-host > "$tree/etc/hostname"
echo 127.0.0.1 localhost > "$tree/etc/hosts"
echo 12.5 > "$tree/etc/debian_version"
echo 'datasource_list: [ NoCloud, ConfigDrive, None ]' > "$tree/etc/cloud/cloud.cfg.d/90_dpkg.cfg"
echo '{}' > "$tree/etc/cloud/cloud.cfg"
printf '#!/bin/sh\n' > "$tree/usr/bin/cloud-init"; chmod 755 "$tree/usr/bin/cloud-init"
printf '#!/bin/sh\n' > "$tree/usr/sbin/sshd"; chmod 755 "$tree/usr/sbin/sshd"
cp "$tree/usr/sbin/sshd" "$tree/usr/bin/bash"
echo old > "$tree/etc/ssh/ssh_host_dsa_key"
echo 'root:x:0:0:root:/root:/bin/bash' > "$tree/etc/passwd"
head -c 3000000 /dev/urandom > "$tree/usr/lib/content"
`

// diskLayout is a kind of disk image: the sfdisk script of its table, and the
// commands that fill it. The functions they call are in fillFunctions; $tree is
// the tree, $image the image.
type diskLayout struct {
	name, table, fill string
	root              int // the number of the root partition; 0 is the whole disk
}

// fillFunctions: sector N and length N say where partition N is, put N FILE
// writes a file system there, and fs TYPE N DIR [OPTION...] makes one of DIR.
const fillFunctions = `
dump() { sfdisk --dump "$image" | sed -n "s/^.*[^0-9]$1 : start= *\([0-9]*\), size= *\([0-9]*\).*/\1 \2/p"; }
put() { set -- "$1" "$2" $(dump "$1"); dd if="$2" of="$image" bs=512 seek="$3" conv=notrunc,sparse status=none; rm "$2"; }
length() { set -- $(dump "$1"); echo $(($2 * 512)); }
fs() {
	local type=$1 n=$2 dir=$3 file=$image.fs; shift 3
	truncate -s "$(length "$n")" "$file"
	case $type in
	ext*) mke2fs -q -t "$type" -d "$dir" "$@" "$file" ;;
	xfs) mkfs.xfs -q "$@" "$file"; copy "$file" "$dir" ;;
	btrfs) mkfs.btrfs -q "$@" "$file"; copy "$file" "$dir" ;;
	vfat) mkfs.vfat "$@" "$file" >/dev/null ;;
	swap) mkswap -q "$@" "$file" ;;
	esac
	put "$n" "$file"
}
copy() {
	mkdir "$image.mnt"; mount -o loop "$1" "$image.mnt"
	cp -a "$2/." "$image.mnt"; umount "$image.mnt"; rmdir "$image.mnt"
}
`

const (
	efi  = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	bios = "21686148-6449-6E6F-744E-656564454649"
	root = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
	xbl  = "BC13C2FF-59E6-4262-A352-B275FD6F7172"
)

var diskLayouts = []diskLayout{
	{"mbr-ext4", "label: dos\nlabel-id: 0x1234abcd\nstart=2048, type=83, bootable\n",
		`echo 'UUID=11111111-1111-4111-8111-111111111111 / ext4 errors=remount-ro 0 1' > "$tree/etc/fstab"
		 fs ext4 1 "$tree" -U 11111111-1111-4111-8111-111111111111`, 1},
	{"debian", "label: gpt\n" +
		"14: start=2048, size=6144, type=" + bios + "\n" +
		"15: start=8192, size=65536, type=" + efi + ", name=esp\n" +
		"1: start=262144, type=" + root + ", uuid=22222222-2222-4222-8222-222222222222, name=\"my root\", attrs=\"GUID:59\"\n",
		`echo 'PARTUUID=22222222-2222-4222-8222-222222222222 / ext4 rw,x-systemd.growfs 0 1' > "$tree/etc/fstab"
		 fs vfat 15 "$tree"; fs ext4 1 "$tree"`, 1},
	{"ubuntu", "label: gpt\n" +
		"14: start=2048, size=8192, type=" + bios + "\n" +
		"15: start=10240, size=65536, type=" + efi + "\n" +
		"16: start=75776, size=131072, type=" + xbl + "\n" +
		"1: start=206848, type=" + root + "\n",
		`printf 'LABEL=cloudimg-rootfs / ext4 defaults 0 1\nLABEL=BOOT /boot ext4 defaults 0 2\nLABEL=UEFI /boot/efi vfat umask=0077 0 1\n' > "$tree/etc/fstab"
		 mkdir "$image.boot"; echo kernel > "$image.boot/vmlinuz"
		 fs vfat 15 "$tree" -n UEFI; fs ext4 16 "$image.boot" -L BOOT; fs ext4 1 "$tree" -L cloudimg-rootfs`, 1},
	{"almalinux", "label: gpt\n" +
		"1: start=2048, size=2048, type=" + bios + "\n" +
		"2: start=4096, size=65536, type=" + efi + "\n" +
		"3: start=69632, size=640000, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n" +
		"4: start=710656, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n",
		`printf 'UUID=33333333-3333-4333-8333-333333333333 / xfs defaults 0 0\nUUID=44444444-4444-4444-8444-444444444444 /boot xfs defaults 0 0\n' > "$tree/etc/fstab"
		 mkdir "$image.boot"; echo kernel > "$image.boot/vmlinuz"
		 fs vfat 2 "$tree"; fs xfs 3 "$image.boot" -m uuid=44444444-4444-4444-8444-444444444444
		 fs xfs 4 "$tree" -m uuid=33333333-3333-4333-8333-333333333333`, 4},
	{"fedora", "label: gpt\n" +
		"1: start=2048, size=2048, type=" + bios + "\n" +
		"2: start=4096, size=65536, type=" + efi + "\n" +
		"3: start=69632, size=131072, type=" + xbl + "\n" +
		"4: start=200704, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n",
		`printf 'UUID=55555555-5555-4555-8555-555555555555 / btrfs compress=zstd:1,subvol=root 0 0\nUUID=55555555-5555-4555-8555-555555555555 /home btrfs subvol=home 0 0\nUUID=66666666-6666-4666-8666-666666666666 /boot ext4 defaults 1 2\n' > "$tree/etc/fstab"
		 mkdir "$image.boot"; echo kernel > "$image.boot/vmlinuz"
		 fs vfat 2 "$tree"; fs ext4 3 "$image.boot" -U 66666666-6666-4666-8666-666666666666
		 mkdir "$image.sub"; truncate -s "$(length 4)" "$image.fs"
		 mkfs.btrfs -q -U 55555555-5555-4555-8555-555555555555 "$image.fs"
		 mount -o loop "$image.fs" "$image.sub"
		 for v in root home var; do btrfs -q subvolume create "$image.sub/$v"; done
		 cp -a "$tree/." "$image.sub/root"; umount "$image.sub"; rmdir "$image.sub"; put 4 "$image.fs"`, 4},
	{"whole-disk", "", `echo '/dev/vda / ext4 defaults 0 1' > "$tree/etc/fstab"
		 mke2fs -q -t ext4 -d "$tree" "$image"`, 0},
}

// makeImage makes the raw image of a layout, 900 MiB and sparse, and returns
// its path and the tree it holds.
func makeImage(t *testing.T, layout diskLayout) (image, tree string) {
	t.Helper()
	return makeImageOf(t, layout, 900)
}

// makeImageOf makes the raw image of a layout with a size in MiB.
func makeImageOf(t *testing.T, layout diskLayout, mib int64) (image, tree string) {
	t.Helper()
	need.Root(t)
	need.Tools(t, "sfdisk", "mke2fs", "mkfs.xfs", "mkfs.btrfs", "mkfs.vfat")
	dir := t.TempDir()
	image, tree = filepath.Join(dir, strings.ReplaceAll(layout.name, " ", "-")+".raw"), filepath.Join(dir, "tree")
	shell(t, makeTree, tree)
	if err := os.WriteFile(image, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, mib<<20); err != nil {
		t.Fatal(err)
	}
	if layout.table != "" {
		shell(t, `printf '%s' "$2" | sfdisk -q "$1"`, image, layout.table)
	}
	shell(t, "image=$1 tree=$2\n"+fillFunctions+layout.fill, image, tree)
	return image, tree
}

// layoutNamed returns one of diskLayouts.
func layoutNamed(t *testing.T, name string) diskLayout {
	t.Helper()
	for _, l := range diskLayouts {
		if l.name == name {
			return l
		}
	}
	t.Fatalf("there is no layout %s", name)
	return diskLayout{}
}

// newDisk makes a disk of a size in MiB, as one that had another life: every
// byte is 0xaa, of a large one those of the first and the last 64 MiB.
func newDisk(t *testing.T, mib int) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk")
	shell(t, `junk() { head -c $((64 << 20)) /dev/zero | tr '\0' '\252'; }
		junk > "$1"
		[ "$2" -lt 128 ] || truncate -s "$(($2 - 64))M" "$1"
		[ "$2" -lt 64 ] || junk >> "$1"
		truncate -s "${2}M" "$1"`, disk, itoa(mib))
	return disk
}
