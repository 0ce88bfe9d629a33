package test

import (
	"os"
	"path/filepath"
	"testing"

	"ganeti-instance-image/internal/need"
)

// makeDumps makes dumps of a root whose /boot is the link $2, and of a /boot.
const makeDumps = makeBootableTree + `
fs() {
	truncate -s 100M "$2.fs"; mke2fs -q -t ext4 -d "$1" "$2.fs"; loop=$(losetup --find --show --read-only "$2.fs")
	dump -0 -q -f "$2" "$loop" 2>"$2.log" || { cat "$2.log"; losetup -d "$loop"; exit 1; }
	losetup -d "$loop"; rm "$2.fs" "$2.log"
}
mv "$tree/boot" "$tree.boot"; ln -s "$2" "$tree/boot"
fs "$tree" "$3-root.dump"; fs "$tree.boot" "$3-boot.dump"
`

// A link in the place of /boot leads the dump of /boot nowhere but inside the
// guest, also where the disk has no partition for it.
func TestBootDumpFollowsNoLink(t *testing.T) {
	need.Root(t)
	need.Tools(t, "dump")
	for name, link := range map[string]string{"absolute": "", "relative": "../../../../../../../../.."} {
		t.Run(name, func(t *testing.T) {
			dir, node := t.TempDir(), t.TempDir()
			image := filepath.Join(dir, "image")
			shell(t, makeDumps, filepath.Join(dir, "tree"), link+node, image)
			s := newSite(t, imageSettings(image+"-root.dump", "SWAP=no"))
			disk := newDisk(t, 500)
			s.create(t, instance(disk).with(env{"INSTANCE_HV_kernel_path": "/boot/vmlinuz"}))
			if entries, err := os.ReadDir(node); err != nil || len(entries) > 0 {
				t.Errorf("the image wrote to the node: %v, %v", entries, err)
			}
			mounted := mountTree(t, disk, 1, 0, "ext4")
			if _, err := os.Stat(filepath.Join(mounted, node, "vmlinuz-6.1.0-1-amd64")); err != nil {
				t.Errorf("the dump of /boot is not inside: %v", err)
			}
		})
	}
}

// Two instances of one btrfs image on one node, at once: both have its UUID.
func TestTwoTreesOfOneUUID(t *testing.T) {
	image, _ := smallTree(t, ".tar.gz", `sed -i s/ext4/btrfs/ "$tree/etc/fstab"`)
	s := newSite(t, imageSettings(image, "SWAP=no", "BOOT_SIZE=100", "FILESYSTEM=btrfs"))
	first, second := newDisk(t, 1000), newDisk(t, 1000)
	s.create(t, instance(first))
	loop := attachPartition(t, first, 2)
	s.create(t, instance(second))
	for _, dev := range []string{loop, attachPartition(t, second, 2)} {
		if got := tool(t, "blkid", "-p", "-o", "value", "-s", "UUID", dev); got != "11111111-1111-4111-8111-111111111111\n" {
			t.Errorf("%s has the UUID %q", dev, got)
		}
	}
}
