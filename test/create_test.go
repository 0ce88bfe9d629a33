package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
)

func itoa(n int) string { return strconv.Itoa(n) }

// imageSettings name an image file outright.
func imageSettings(image string, more ...string) string {
	return "IMAGE_FILE=" + image + "\n" + strings.Join(more, "\n") + "\n"
}

// Every layout on a larger, used disk: the table is whole, the root fills the
// disk, and the file system is clean.
func TestCreateGrowsEveryLayout(t *testing.T) {
	need.Tools(t, "qemu-img", "sgdisk", "e2fsck", "xfs_repair", "btrfs")
	for _, layout := range diskLayouts {
		t.Run(layout.name, func(t *testing.T) {
			image, _ := makeImage(t, layout)
			qcow2 := filepath.Join(t.TempDir(), "image.qcow2")
			tool(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", image, qcow2)
			s := newSite(t, imageSettings(qcow2))
			disk := newDisk(t, 1500)
			log := s.create(t, instance(disk))
			if !strings.Contains(log, "no hook is enabled") {
				t.Errorf("the log does not say what was left alone:\n%s", log)
			}
			checkDisk(t, disk, layout, 1500)
			before, after := listing(t, image, layout), listing(t, disk, layout)
			if before != after {
				t.Errorf("a guest that was not to be edited changed:\n%s", diff(t, before, after))
			}
		})
	}
}

// checkDisk has the field's tools judge a disk that was grown.
func checkDisk(t *testing.T, disk string, layout diskLayout, mib int) {
	t.Helper()
	// A test of its own, so that what it attaches is detached at its end.
	t.Run("judge", func(t *testing.T) { judgeDisk(t, disk, layout, mib) })
}

func judgeDisk(t *testing.T, disk string, layout diskLayout, mib int) {
	t.Helper()
	if strings.Contains(layout.table, "gpt") {
		if out := tool(t, "sgdisk", "-v", disk); !strings.Contains(out, "No problems found") {
			t.Errorf("sgdisk -v:\n%s", out)
		}
	}
	if layout.table != "" {
		if out := tool(t, "sfdisk", "--verify", disk); strings.Contains(out, "mismatch") {
			t.Errorf("sfdisk --verify:\n%s", out)
		}
	}
	loop := attachPartition(t, disk, layout.root)
	switch kind := strings.TrimSpace(tool(t, "blkid", "-p", "-o", "value", "-s", "TYPE", loop)); kind {
	case "ext4":
		tool(t, "e2fsck", "-fn", loop)
	case "xfs":
		tool(t, "xfs_repair", "-n", loop)
	case "btrfs":
		tool(t, "btrfs", "check", "--readonly", loop)
	default:
		t.Errorf("the root is of type %q", kind)
	}
	dir := mountDevice(t, loop, layout)
	out := tool(t, "stat", "-f", "-c", "%S %b", dir)
	var block, blocks int64
	if _, err := fmt.Sscan(out, &block, &blocks); err != nil {
		t.Fatal(err)
	}
	// What the file system itself takes is less than a sixth.
	start := partitionStart(t, disk, layout.root)
	if want := (int64(mib)<<20 - start) * 5 / 6; block*blocks < want {
		t.Errorf("the root file system has %d bytes, want at least %d", block*blocks, want)
	}
}

// table is what sfdisk --json says of a disk.
type table struct {
	PartitionTable struct {
		Label      string
		ID         string
		Partitions []struct {
			Node                    string
			Start, Size             int64
			Type, UUID, Name, Attrs string
			Bootable                bool
		}
	}
}

func readTable(t *testing.T, disk string) table {
	t.Helper()
	var parsed table
	if err := json.Unmarshal([]byte(shell(t, `sfdisk --json "$1" 2>/dev/null`, disk)), &parsed); err != nil {
		t.Fatal(err)
	}
	return parsed
}

// extent returns where partition number is, in bytes; number 0 is the disk.
func extent(t *testing.T, disk string, number int) (start, length int64) {
	t.Helper()
	if number == 0 {
		info, err := os.Stat(disk)
		if err != nil {
			t.Fatal(err)
		}
		return 0, info.Size()
	}
	for _, p := range readTable(t, disk).PartitionTable.Partitions {
		if p.Node == disk+itoa(number) {
			return p.Start * 512, p.Size * 512
		}
	}
	t.Fatalf("%s has no partition %d", disk, number)
	return 0, 0
}

func partitionStart(t *testing.T, disk string, number int) int64 {
	start, _ := extent(t, disk, number)
	return start
}

// attachPartition returns a loop device over a partition for the test's time.
func attachPartition(t *testing.T, disk string, number int) string {
	t.Helper()
	start, length := extent(t, disk, number)
	loop := strings.TrimSpace(tool(t, "losetup", "--find", "--show",
		"--offset", fmt.Sprint(start), "--sizelimit", fmt.Sprint(length), disk))
	t.Cleanup(func() { tool(t, "losetup", "--detach", loop) })
	return loop
}

// mountDevice mounts the root file system of a layout for the test's time.
func mountDevice(t *testing.T, device string, layout diskLayout) string {
	t.Helper()
	dir := t.TempDir()
	options := "rw"
	if strings.HasPrefix(layout.name, "fedora") {
		options = "subvol=root"
	}
	if kind := tool(t, "blkid", "-p", "-o", "value", "-s", "TYPE", device); strings.TrimSpace(kind) == "xfs" {
		options = "nouuid"
	}
	tool(t, "mount", "-o", options, device, dir)
	t.Cleanup(func() { tool(t, "umount", dir) })
	return dir
}

// mountRoot mounts the root of a disk for the test's time.
func mountRoot(t *testing.T, disk string, layout diskLayout) string {
	t.Helper()
	return mountDevice(t, attachPartition(t, disk, layout.root), layout)
}

// listing describes every file of a disk's root: mode, owner, size, time, link
// and content.
func listing(t *testing.T, disk string, layout diskLayout) string {
	t.Helper()
	var out string
	t.Run("list", func(t *testing.T) {
		dir := mountRoot(t, disk, layout)
		out = shell(t, `cd "$1"
			find . -xdev -not -name lost+found -printf '%p %y %m %U:%G %s %T@ %l\n' | sed 's|^\(.* d .*\) [0-9]* \([0-9.]* \)$|\1 \2|' | LC_ALL=C sort
			find . -xdev -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum`, dir)
	})
	return out
}

func diff(t *testing.T, before, after string) string {
	t.Helper()
	dir := t.TempDir()
	a, b := filepath.Join(dir, "before"), filepath.Join(dir, "after")
	for path, text := range map[string]string{a: before, b: after} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return tool(t, "bash", "-c", `diff "$1" "$2" || true`, "-", a, b)
}
