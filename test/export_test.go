package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"ganeti-instance-image/internal/need"
)

// What no file system of the table has is kept: between partitions, behind them,
// and in a partition behind its file system.
func TestExportKeepsGaps(t *testing.T) {
	layout := diskLayout{"gaps", "label: gpt\n1: start=4096, size=131072, type=" + linuxData + "\n2: start=139264, size=32768, type=" + linuxSwap + "\n",
		`truncate -s 48M "$image.fs"; mke2fs -q -t ext4 -d "$tree" "$image.fs"; put 1 "$image.fs"; fs swap 2 "$tree"
		 at() { head -c "$2" /dev/urandom | dd of="$image" bs=512 seek="$1" conv=notrunc status=none iflag=fullblock; }
		 at 34 1000000; at $((4096 + 48 * 2048)) 5000000; at 135168 2000000; at 172032 3000000; sfdisk -q --relocate gpt-bak-std "$image" 2>/dev/null || true`, 1}
	image, _ := makeImageOf(t, layout, 100)
	s := newSite(t, uncompressed)
	b := s.export(t, exporting(image))
	disk := b.join(t)
	judgeRoot(t, disk, layout)
	for _, gap := range [][2]int64{{0, 4096}, {4096 + 48*2048, 139264}, {172032, 204800}} {
		tool(t, "cmp", "-i", fmt.Sprint(gap[0]*512), "-n", fmt.Sprint((gap[1]-gap[0])*512), image, disk)
	}
}

// A table that its own tools would not take goes whole, with all around it.
func TestExportOfBrokenTables(t *testing.T) {
	for _, c := range []struct{ name, layout, change string }{
		{"first GPT header", "debian", `printf x | dd of="$1" bs=1 seek=530 conv=notrunc status=none`},
		{"GPT entries", "debian", `printf x | dd of="$1" bs=1 seek=1034 conv=notrunc status=none`},
		{"both GPT headers", "debian", `printf x | dd of="$1" bs=1 seek=530 conv=notrunc status=none; printf x | dd of="$1" bs=1 seek=$((160 * 1048576 - 494)) conv=notrunc status=none`},
		{"no signature", "mbr-ext4", `printf x | dd of="$1" bs=1 seek=510 conv=notrunc status=none`},
		{"overlap", "mbr-ext4", `dd if="$1" of="$1.e" bs=1 skip=446 count=16 status=none; dd if="$1.e" of="$1" bs=1 seek=462 conv=notrunc status=none`},
		{"behind the end", "mbr-ext4", `truncate -s 200M "$1"`},
		{"endless extended", "mbr-ext4", `printf '\0\0\0\0\5\0\0\0\1\0\0\0\1\0\0\0' | dd of="$1" bs=1 seek=462 conv=notrunc status=none
			printf '\0\0\0\0\5\0\0\0\0\0\0\0\1\0\0\0' | dd of="$1" bs=1 seek=$((512 + 446)) conv=notrunc status=none; printf '\125\252' | dd of="$1" bs=1 seek=1022 conv=notrunc status=none`},
	} {
		t.Run(c.name, func(t *testing.T) {
			image, _ := makeImageOf(t, layoutNamed(t, c.layout), 160)
			shell(t, c.change, image)
			s := newSite(t, uncompressed)
			b := s.export(t, exporting(image))
			disk := b.join(t)
			comparePages(t, image, disk)
			tool(t, "cmp", "-n", itoa(1<<20), image, disk)
			before, after := shell(t, `tail -c 1M "$1" | sha256sum`, image), shell(t, `tail -c 1M "$1" | sha256sum`, disk)
			if before != after {
				t.Error("the last MiB is another one")
			}
			if c.name != "endless extended" && c.name != "first GPT header" && c.name != "GPT entries" {
				identical(t, image, disk)
			}
		})
	}
}

// LVM: the physical volume's own data, and of each volume what is in use.
func TestExportOfLVM(t *testing.T) {
	need.Tools(t, "lvm", "e2fsck", "xfs_repair")
	for _, layout := range lvmLayouts {
		t.Run(layout.name, func(t *testing.T) {
			image, tree := makeImage(t, diskLayout{layout.name, layout.table, lvmFunctions + layout.fill, layout.root})
			s := newSite(t, uncompressed)
			b := s.export(t, exporting(image))
			disk := b.join(t)
			checkExport(t, b, image, disk, 30, 40<<20)
			t.Run("judge", func(t *testing.T) {
				pv := attachPartition(t, disk, layout.root)
				tool(t, "lvm", "pvck", "--driverloaded", "n", "--devices", pv, pv)
				loop, _ := volumeOf(t, disk, layout, "root")
				kind := strings.TrimSpace(tool(t, "blkid", "-p", "-o", "value", "-s", "TYPE", loop))
				judgeSystem(t, loop, kind)
				dir := filepath.Join(t.TempDir(), "root")
				shell(t, `mkdir "$1"; mount -o "ro$3" "$2" "$1"`, dir, loop, map[string]string{"xfs": ",nouuid"}[kind])
				defer tool(t, "umount", dir)
				shell(t, `cmp "$1/usr/lib/content" "$2/usr/lib/content"`, dir, tree)
			})
		})
	}
}

// dirtySnapshot copies a file system while it is mounted, with a file a, of 3000000
// bytes, a file b that only its journal has, and blocks of a deleted one.
func dirtySnapshot(t *testing.T, kind string, length int64) string {
	t.Helper()
	snapshot := filepath.Join(t.TempDir(), "snapshot")
	apart(t, `truncate -s "$3" "$1.live"; mkfs.$2 -q "$1.live"; mkdir "$1.mnt"; mount -o loop "$1.live" "$1.mnt"
		trap 'umount "$1.mnt"' EXIT
		head -c 3000000 /dev/urandom > "$1.mnt/a"; head -c 3M /dev/zero | tr '\0' '\252' > "$1.mnt/junk"; sync -f "$1.mnt"
		rm "$1.mnt/junk"; touch "$1.mnt/b"; sync "$1.mnt/b"; cp --sparse=always "$1.live" "$1"`, snapshot, kind, strconv.FormatInt(length, 10))
	return snapshot
}

// A file system that was in use when its snapshot was taken goes whole, and the
// log says so.
func TestExportOfDirtySnapshot(t *testing.T) {
	need.Root(t)
	for _, c := range []struct {
		kind   string
		length int64
	}{{"ext4", 64 << 20}, {"ext3", 64 << 20}, {"xfs", 310 << 20}} {
		t.Run(c.kind, func(t *testing.T) {
			snapshot := dirtySnapshot(t, c.kind, c.length)
			b := newSite(t, uncompressed).export(t, exporting(snapshot))
			disk := b.join(t)
			identical(t, snapshot, disk)
			b.checkExpected(t, 30, b.length+(16<<20))
			if !strings.Contains(b.log, c.kind) || !strings.Contains(b.log, "whole") {
				t.Errorf("the log does not say that all was kept:\n%s", b.log)
			}
			apart(t, `mount -o loop "$1" "$2"; [ $(stat -c %s "$2/a") = 3000000 ]; [ -e "$2/b" ]; umount "$2"`, disk, t.TempDir())
		})
	}
}

// A disk of which little is in use is exported in as little time and memory.
func TestExportOfALargeDisk(t *testing.T) {
	need.Root(t)
	need.Tools(t, "prlimit")
	image := filepath.Join(t.TempDir(), "disk")
	apart(t, `truncate -s 100G "$1"; echo 'start=2048, type=83' | sfdisk -q "$1"; truncate -s $(((100 << 30) - (1 << 20))) "$1.fs"; mke2fs -q -t ext4 "$1.fs"
		mkdir "$1.mnt"; mount -o loop "$1.fs" "$1.mnt"; for i in 1 2 3 4; do head -c 20M /dev/urandom > "$1.mnt/$i"; done; (cd "$1.mnt"; sha256sum ?) > "$1.sums"
		umount "$1.mnt"; rmdir "$1.mnt"`, image)
	copySparse(t, image+".fs", image, 1<<20)
	s := newSite(t, uncompressed)
	cmd := s.transfer("export", exporting(image), bounded...)
	b, o := s.exportTo(t, cmd, filepath.Join(t.TempDir(), "backup"))
	if o.code != 0 {
		t.Fatalf("export ended with %d:\n%s", o.code, o.log)
	}
	b.checkExpected(t, 5, 0)
	if b.length > 110<<20 {
		t.Errorf("the backup has %d bytes", b.length)
	}
	disk := b.join(t)
	t.Run("judge", func(t *testing.T) {
		loop := attachPartition(t, disk, 1)
		tool(t, "e2fsck", "-fn", loop)
		dir := t.TempDir()
		tool(t, "mount", "-o", "ro", loop, dir)
		defer tool(t, "umount", dir)
		shell(t, `cd "$1"; sha256sum --quiet -c "$2"`, dir, image+".sums")
	})
	t.Logf("%v of processor time", cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
}

// Only the disk that Ganeti names is read, and nothing is written.
func TestExportReadsOnlyItsDevice(t *testing.T) {
	need.Root(t)
	need.Tools(t, "strace")
	snapshot, _ := makeImageOf(t, layoutNamed(t, "mbr-ext4"), 64)
	live := junkDisk(t, 64<<20)
	for _, format := range []string{"tar", "raw", "qcow2", "dump"} {
		t.Run(format, func(t *testing.T) {
			s := newSite(t, "EXPORT_FORMAT="+format)
			trace := filepath.Join(t.TempDir(), "trace")
			e := exporting(snapshot).with(env{"DISK_0_PATH": live, "DISK_1_PATH": live + "1", "DISK_COUNT": "2"})
			cmd := s.transfer("export", e, "strace", "-f", "-qq", "-o", trace, "-e", "trace=open,openat,openat2,mount,ioctl,pwrite64")
			if _, o := s.exportTo(t, cmd, filepath.Join(t.TempDir(), "backup")); o.code != 0 {
				t.Fatalf("export ended with %d:\n%s", o.code, o.log)
			}
			text, err := os.ReadFile(trace)
			if err != nil {
				t.Fatal(err)
			}
			seen := false
			for line := range strings.Lines(string(text)) {
				if strings.Contains(line, live) {
					t.Errorf("the instance's own disk was opened: %s", line)
				}
				if strings.Contains(line, `"`+snapshot+`"`) && strings.Contains(line, "open") {
					seen = true
					if strings.Contains(line, "O_RDWR") || strings.Contains(line, "O_WRONLY") {
						t.Errorf("the snapshot was opened for writing: %s", line)
					}
				}
			}
			if !seen {
				t.Error("the snapshot was not opened")
			}
		})
	}
}

// Block devices are exported as files are, and all disks of an instance at once.
func TestExportOfDevicesAtOnce(t *testing.T) {
	layout := layoutNamed(t, "debian")
	image, _ := makeImageOf(t, layout, 300)
	data := filepath.Join(t.TempDir(), "data")
	apart(t, ext("ext4"), data)
	s := newSite(t, uncompressed)
	var devices []string
	for _, file := range []string{image, data} {
		device := strings.TrimSpace(tool(t, "losetup", "--find", "--show", "--read-only", file))
		t.Cleanup(func() { tool(t, "losetup", "--detach", device) })
		devices = append(devices, device)
	}
	backups := make([]backup, 2)
	var wait sync.WaitGroup
	for i, device := range devices {
		e := disks(devices[0], devices[1]).with(env{"EXPORT_DEVICE": device, "EXPORT_DISK_PATH": device, "EXPORT_INDEX": itoa(i)})
		path := filepath.Join(t.TempDir(), "backup")
		wait.Go(func() {
			b, o := s.exportTo(t, s.transfer("export", e), path)
			if o.code != 0 {
				t.Errorf("export of disk %d ended with %d:\n%s", i, o.code, o.log)
			}
			backups[i] = b
		})
	}
	wait.Wait()
	if t.Failed() {
		return
	}
	joined := backups[0].join(t)
	checkExport(t, backups[0], image, joined, 30, 160<<20)
	judgeRoot(t, joined, layout)
	joined = backups[1].join(t)
	checkExport(t, backups[1], data, joined, 30, 16<<20)
	tool(t, "e2fsck", "-fn", joined)
}

// Compressed, as by default, a backup holds the same and is shorter; how long it
// will be is guessed from samples.
func TestExportCompressed(t *testing.T) {
	need.Tools(t, "zstd")
	need.Root(t)
	disk := filepath.Join(t.TempDir(), "disk")
	apart(t, `truncate -s 300M "$1"; mke2fs -q -t ext4 "$1"; mkdir "$1.mnt"; mount -o loop "$1" "$1.mnt"
		cp -r /usr/share/perl* /usr/lib/python3* "$1.mnt" 2>/dev/null || cp -r /usr/share/doc "$1.mnt"; head -c 10M /dev/urandom > "$1.mnt/random"; umount "$1.mnt"`, disk)
	plain := newSite(t, uncompressed).export(t, exporting(disk))
	b := newSite(t, "").export(t, exporting(disk))
	if b.length > plain.length*4/5 {
		t.Errorf("the backup has %d bytes, and %d without compression", b.length, plain.length)
	}
	b.checkExpected(t, 20, 0)
	tool(t, "cmp", plain.join(t), b.join(t))
	t.Logf("%d bytes, expected were %s, uncompressed %d", b.length, b.expected, plain.length)
}

// The other formats hold the same, and are what their own tools take.
func TestExportFormats(t *testing.T) {
	need.Tools(t, "qemu-img", "e2fsck")
	layout := layoutNamed(t, "debian")
	image, _ := makeImageOf(t, layout, 300)
	leaveJunk(t, image, layout)
	joined := newSite(t, "").export(t, exporting(image)).join(t)
	t.Run("raw", func(t *testing.T) {
		b := newSite(t, "EXPORT_FORMAT=raw").export(t, exporting(image))
		b.checkExpected(t, 0, 0)
		tool(t, "cmp", joined, b.path)
	})
	t.Run("qcow2", func(t *testing.T) {
		b := newSite(t, "EXPORT_FORMAT=qcow2").export(t, exporting(image))
		b.checkExpected(t, 0, 0)
		tool(t, "qemu-img", "check", "-f", "qcow2", b.path)
		disk := filepath.Join(t.TempDir(), "disk")
		tool(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", b.path, disk)
		comparePages(t, image, disk)
		comparePages(t, disk, joined) // a cluster is kept whole, and part of it may be free
		judgeRoot(t, disk, layout)
	})
	for _, c := range otherDisks[:5] {
		t.Run("odd "+c.name, func(t *testing.T) {
			disk := filepath.Join(t.TempDir(), "disk")
			apart(t, c.make, disk)
			b := newSite(t, "EXPORT_FORMAT=raw").export(t, exporting(disk))
			b.checkExpected(t, 0, 0)
			tool(t, "cmp", disk, b.path)
			b = newSite(t, "EXPORT_FORMAT=qcow2").export(t, exporting(disk))
			b.checkExpected(t, 0, 0)
			tool(t, "qemu-img", "check", "-f", "qcow2", b.path)
			tool(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", disk, b.path)
			if info := tool(t, "qemu-img", "info", "-f", "qcow2", b.path); !strings.Contains(info, fmt.Sprintf("(%d bytes)", lengthOf(t, disk))) {
				t.Errorf("the qcow2 image is of another length than %d:\n%s", lengthOf(t, disk), info)
			}
		})
	}
}

// The dump that Bash wrote, read by restore.
func TestExportAsDump(t *testing.T) {
	need.Tools(t, "restore")
	disk, _ := bashGuest(t, 400)
	b := newSite(t, "EXPORT_FORMAT=dump").export(t, exporting(disk))
	b.checkExpected(t, 0, 0)
	dir := t.TempDir()
	shell(t, `tar -xf "$1" -C "$2"`, b.path, dir)
	for name, partition := range map[string]int{"boot.dump": 1, "root.dump": 3} {
		t.Run(name, func(t *testing.T) {
			mounted := t.TempDir()
			tool(t, "mount", "-o", "ro,noatime", attachPartition(t, disk, partition), mounted)
			defer tool(t, "umount", mounted)
			out, err := exec.Command("bash", "-c", `cd "$2" && restore -C -y -f "$1" -D . 2>&1`, "-", filepath.Join(dir, name), mounted).CombinedOutput()
			if err != nil || strings.Contains(string(out), "some files were modified") {
				t.Errorf("restore finds a difference: %v\n%s", err, out)
			}
		})
	}
}

// A guest whose /boot is a link is dumped where that leads in the guest, and never
// where it leads on the node.
func TestExportAsDumpOfALink(t *testing.T) {
	need.Tools(t, "restore")
	disk, _ := bashGuest(t, 300)
	node := t.TempDir()
	shell(t, `echo secret > "$1/secret-of-the-node"`, node)
	t.Run("use", func(t *testing.T) {
		dir := t.TempDir()
		tool(t, "mount", attachPartition(t, disk, 3), dir)
		defer tool(t, "umount", dir)
		shell(t, `rmdir "$1/boot"; ln -s "$2" "$1/boot"; mkdir -p "$1$2"`, dir, node)
	})
	b := newSite(t, "EXPORT_FORMAT=dump").export(t, exporting(disk))
	dir := t.TempDir()
	files := shell(t, `tar -xf "$1" -C "$2"; restore -t -y -f "$2/boot.dump" 2>/dev/null`, b.path, dir)
	if strings.Contains(files, "secret-of-the-node") || !strings.Contains(files, "lost+found") {
		t.Errorf("the dump of /boot has:\n%s", files)
	}
}

// A dump is made without a change of the snapshot, also of one that was in use.
func TestExportOfDirtySnapshotAsDump(t *testing.T) {
	need.Tools(t, "restore")
	disk, _ := bashGuest(t, 300)
	snapshot := filepath.Join(t.TempDir(), "snapshot")
	t.Run("use", func(t *testing.T) {
		dir := t.TempDir()
		tool(t, "mount", attachPartition(t, disk, 3), dir)
		defer tool(t, "umount", dir)
		shell(t, `echo late > "$1/etc/late"; sync "$1/etc/late"; cp --sparse=always "$2" "$3"`, dir, disk, snapshot)
	})
	before := sumOf(t, snapshot)
	s := newSite(t, "EXPORT_FORMAT=dump")
	b, o := s.exportTo(t, s.transfer("export", exporting(snapshot)), filepath.Join(t.TempDir(), "backup"))
	if sumOf(t, snapshot) != before {
		t.Errorf("the snapshot was changed:\n%s", o.log)
	}
	if o.code != 0 {
		checkRefusal(t, o, o.code, "cannot")
		return
	}
	dir := t.TempDir()
	shell(t, `cd "$2"; tar -xf "$1"; restore -x -y -f root.dump ./etc/late 2>/dev/null <<< 1; grep -q late etc/late`, b.path, dir)
}

// What cannot be exported is refused in one line, and nothing is written out.
func TestExportRefuses(t *testing.T) {
	need.Root(t)
	disk := junkDisk(t, 4<<20)
	missing := disk + ".gone"
	for _, c := range []struct {
		name, settings string
		e              env
		code           int
		want           string
	}{
		{"no device said", "", instance(disk).with(env{"EXPORT_INDEX": "0"}), 2, "Ganeti names none"},
		{"empty device", "", exporting(disk).with(env{"EXPORT_DEVICE": "", "EXPORT_DISK_PATH": ""}), 2, "Ganeti names none"},
		{"no such device", "", exporting(disk).with(env{"EXPORT_DEVICE": missing}), 4, missing},
		{"a directory", "", exporting(disk).with(env{"EXPORT_DEVICE": filepath.Dir(disk)}), 4, filepath.Dir(disk)},
		{"no instance", "", exporting(disk).with(env{"INSTANCE_NAME": ""}), 2, "INSTANCE_NAME"},
		{"format", "EXPORT_FORMAT=zip", exporting(disk), 2, "EXPORT_FORMAT"},
		{"dump of no file system", "EXPORT_FORMAT=dump", exporting(disk), 0, "dump"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, c.settings)
			b, o := s.exportTo(t, s.transfer("export", c.e), filepath.Join(t.TempDir(), "backup"))
			if c.code == 0 {
				c.code = max(1, o.code) // which class it is of does not matter
			}
			checkRefusal(t, o, c.code, c.want)
			if b.length != 0 {
				t.Errorf("%d bytes were written", b.length)
			}
		})
	}
}

// EXP_SIZE_FD is for a progress bar: an export that cannot tell goes on.
func TestExportWithoutSizeFD(t *testing.T) {
	need.Root(t)
	disk := junkDisk(t, 4<<20)
	for _, c := range []struct{ name, value string }{{"unset", "-"}, {"empty", ""}, {"closed", "77"}} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, uncompressed)
			cmd := s.transfer("export", exporting(disk))
			if c.value != "-" {
				cmd.Env = append(cmd.Env, "EXP_SIZE_FD="+c.value)
			}
			path := filepath.Join(t.TempDir(), "backup")
			out, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			cmd.Stdout = out
			if o := finish(t, cmd); o.code != 0 {
				t.Fatalf("export ended with %d:\n%s", o.code, o.log)
			}
			identical(t, disk, backup{path: path}.join(t))
		})
	}
}
