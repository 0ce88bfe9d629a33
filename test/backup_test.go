package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/test/lab"
)

// page is the granularity in which a backup leaves out zeros, sector that in which
// file systems have blocks.
const (
	page   = 4096
	sector = 512
)

// uncompressed is the setting for a backup whose length says what is in it.
const uncompressed = "EXPORT_COMPRESSION=none\n"

// join makes the disk of a backup with the tools that every machine has, and
// wants the archive to be what the documentation says it is.
func (b backup) join(t *testing.T) string {
	t.Helper()
	b = b.plain(t)
	b.checkMembers(t)
	b.checkSum(t)
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.raw")
	shell(t, `tar -xSf "$1" -C "$2"; : > "$3"`, b.path, dir, disk)
	pieces, err := filepath.Glob(filepath.Join(dir, "disk/*"))
	if err != nil {
		t.Fatal(err)
	}
	length := int64(0)
	for _, piece := range pieces { // sorted, as the shell's are
		copySparse(t, piece, disk, length)
		length += lengthOf(t, piece)
	}
	if err := os.Truncate(disk, length); err != nil {
		t.Fatal(err)
	}
	if length < 100<<20 { // of large ones this takes long
		shell(t, `cat "$1"/disk/* | cmp - "$2"`, dir, disk)
	}
	return disk
}

// copySparse copies a file to an offset of another, but for its holes.
func copySparse(t *testing.T, from, to string, at int64) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	for end := int64(0); ; {
		start, err := src.Seek(end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return // only a hole is left
		}
		if err != nil {
			t.Fatal(err)
		}
		end, err = src.Seek(start, unix.SEEK_HOLE)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.NewOffsetWriter(dst, at+start), io.NewSectionReader(src, start, end-start)); err != nil {
			t.Fatal(err)
		}
	}
}

// plain is the backup without its compression, as zstd(1) takes it off.
func (b backup) plain(t *testing.T) backup {
	t.Helper()
	if shell(t, `head -c 4 "$1" | od -A n -t x1`, b.path) != " 28 b5 2f fd\n" {
		return b
	}
	need.Tools(t, "zstd")
	plain := filepath.Join(t.TempDir(), "plain")
	tool(t, "zstd", "-q", "-d", "-o", plain, b.path)
	b.path = plain
	return b
}

// checkMembers wants the manifest, the disk in pieces of which each begins where
// the one before it ended, and the sum.
func (b backup) checkMembers(t *testing.T) {
	t.Helper()
	var names []string
	var at int64
	for line := range strings.Lines(tool(t, "tar", "-tvf", b.path)) {
		fields := strings.Fields(line)
		name := fields[len(fields)-1]
		names = append(names, name)
		start, ok := strings.CutPrefix(name, "disk/")
		if !ok {
			continue
		}
		length, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if start != fmt.Sprintf("%015d", at) {
			t.Errorf("a piece is called %s, want it to begin at %d", name, at)
		}
		at += length
	}
	if len(names) < 2 || names[0] != "ganeti-instance-image.json" || names[len(names)-1] != "SHA256SUM" {
		t.Errorf("the members are %q", names)
	}
}

// checkSum has sha256sum judge what is in front of the sum.
func (b backup) checkSum(t *testing.T) {
	t.Helper()
	shell(t, `at=$(tar -tRf "$1" | sed -n 's/^block \([0-9]*\): SHA256SUM$/\1/p')
		tar -xOf "$1" SHA256SUM > "$1.sum"; head -c $((at * 512)) "$1" | sha256sum -c --status "$1.sum"`, b.path)
}

// checkExpected wants the length that was told before to be what came, but for so
// many per cent, or up to most. It is guessed from samples, of which a small disk
// has few.
func (b backup) checkExpected(t *testing.T, percent, most int64) {
	t.Helper()
	told, ok := strings.CutSuffix(b.expected, "\n")
	expected, err := strconv.ParseInt(told, 10, 64)
	if err != nil || !ok {
		t.Fatalf("%q was written to EXP_SIZE_FD, want a number and a line end", b.expected)
	}
	slack := b.length * percent / 100
	if expected < b.length-slack || expected > max(b.length+slack, most) {
		t.Errorf("%d bytes were expected, and %d came\n%s", expected, b.length, b.log)
	}
}

// pages is what a comparison of two disks finds, as numbers of pages.
type pages struct {
	lost int // not equal, with zeros where the first disk has data
	kept int // not zeros
	junk int // as a disk is before it is used
}

// comparePages wants each sector of a copied disk to be the original's or zeros.
func comparePages(t *testing.T, original, copied string) pages {
	t.Helper()
	a, err := os.Open(original)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := os.Open(copied)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var found pages
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; off += 1 << 20 {
		n, _ := io.ReadFull(a, x)
		m, _ := io.ReadFull(b, y)
		if n != m {
			t.Fatalf("the disks have different lengths: %d and %d", off+int64(n), off+int64(m))
		}
		if n == 0 {
			return found
		}
		for at := 0; at < n; at += page {
			if !found.count(x[at:min(at+page, n)], y[at:min(at+page, n)]) {
				t.Fatalf("in the page at %d is what is neither the disk's nor zeros", off+int64(at))
			}
		}
	}
}

var zeroPage, junkPage = make([]byte, page), bytes.Repeat([]byte{0xaa}, page)

// count counts a page, and tells whether it may be so.
func (c *pages) count(original, copied []byte) bool {
	if !bytes.Equal(copied, zeroPage[:len(copied)]) {
		c.kept++
	}
	if bytes.Equal(copied, junkPage[:len(copied)]) {
		c.junk++
	}
	if bytes.Equal(original, copied) {
		return true
	}
	c.lost++
	for at := 0; at < len(copied); at += sector {
		p, q := original[at:min(at+sector, len(original))], copied[at:min(at+sector, len(copied))]
		if !bytes.Equal(p, q) && !bytes.Equal(q, zeroPage[:len(q)]) {
			return false
		}
	}
	return true
}

// identical wants a copied disk to be the original to the last byte.
func identical(t *testing.T, original, copied string) {
	t.Helper()
	if found := comparePages(t, original, copied); found.lost > 0 {
		t.Errorf("%d pages became zeros, %d are equal", found.lost, found.kept)
	}
}

// leaveJunk makes free blocks of a layout's root hold what a deleted file had.
func leaveJunk(t *testing.T, disk string, layout diskLayout) {
	t.Helper()
	t.Run("use", func(t *testing.T) {
		apart(t, `mount "$1" "$2"; head -c 8M /dev/zero | tr '\0' '\252' > "$2/junk"; sync -f "$2"; rm "$2/junk"; sync -f "$2"; umount "$2"`,
			attachPartition(t, disk, layout.root), t.TempDir())
	})
	if comparePages(t, disk, disk).junk == 0 {
		t.Fatal("the deleted file left nothing")
	}
}

// apart runs a script that mounts something in a mount namespace of its own: any
// process that got a namespace meanwhile would keep what is unmounted in use.
func apart(t *testing.T, script string, args ...string) {
	t.Helper()
	tool(t, "unshare", append([]string{"--mount", "bash", "-euc", script, "-"}, args...)...)
}

// judgeRoot has the tools of its file system judge the root of a layout.
func judgeRoot(t *testing.T, disk string, layout diskLayout) {
	t.Helper()
	t.Run("judge", func(t *testing.T) {
		loop := attachPartition(t, disk, layout.root)
		judgeSystem(t, loop, strings.TrimSpace(tool(t, "blkid", "-p", "-o", "value", "-s", "TYPE", loop)))
	})
}

// checkUsed wants every block that e2image(8) says is in use to be in the copy.
func checkUsed(t *testing.T, original, copied string, partition int) {
	t.Helper()
	t.Run("used blocks", func(t *testing.T) {
		need.Tools(t, "e2image")
		used := filepath.Join(t.TempDir(), "used")
		tool(t, "e2image", "-ra", attachPartition(t, original, partition), used)
		_, length := extent(t, copied, partition)
		if err := os.Truncate(used, length); err != nil {
			t.Fatal(err)
		}
		// What e2image leaves out may be there; what it has may not be lost.
		comparePages(t, attachPartition(t, copied, partition), used)
	})
}

// sumOf is the digest of a disk.
func sumOf(t *testing.T, disk string) string {
	t.Helper()
	sum, err := contentDigest(disk)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// junkDisk makes a disk of bytes 0xaa, as newDisk does, of any length.
func junkDisk(t *testing.T, length int64) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, io.LimitReader(junkReader{}, length)); err != nil {
		t.Fatal(err)
	}
	return disk
}

type junkReader struct{}

func (junkReader) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 0xaa
	}
	return len(b), nil
}

// lengthOf is the length of a file.
func lengthOf(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// backupLayouts are those that a backup is tried with.
var backupLayouts = []string{"debian", "almalinux", "fedora", "whole-disk", "installer", "hybrid"}

// Every layout, with a root in whose free blocks a deleted file was: public
// tools make of the backup a disk with the same files, without the deleted one,
// and the backup is about as long as what it holds. An import makes the very
// same disk, and a larger one is filled.
func TestBackupOfEveryLayout(t *testing.T) {
	need.Tools(t, "e2fsck", "xfs_repair", "btrfs", "tar", "sha256sum", "sgdisk")
	for _, name := range backupLayouts {
		t.Run(name, func(t *testing.T) {
			all := slices.Concat(diskLayouts, unusualLayouts)
			layout := all[slices.IndexFunc(all, func(l diskLayout) bool { return l.name == name })]
			image, _ := makeImage(t, layout)
			leaveJunk(t, image, layout)
			s := newSite(t, uncompressed)
			before := tool(t, "stat", "-c", "%y %z %b", image)
			b := s.export(t, exporting(image))
			if after := tool(t, "stat", "-c", "%y %z %b", image); after != before {
				t.Error("the disk was changed by its export")
			}
			disk := b.join(t)
			checkExport(t, b, image, disk, 30, 40<<20)
			same, larger := newDisk(t, 900), newDisk(t, 1500)
			log := s.importFile(t, importing(same), b.path)
			tool(t, "cmp", disk, same)
			files := listing(t, image, layout) // which mounts the disk, and so changes it
			checkCopy(t, disk, image, files, layout, b.log)
			log += s.importFile(t, importing(larger), b.path)
			checkDisk(t, larger, layout, 1500)
			sameFiles(t, files, larger, layout, log)
			if t.Failed() {
				t.Logf("log:\n%s%s", b.log, log)
			}
		})
	}
}

// checkCopy wants a disk that was made of a backup to be the same to its guest.
func checkCopy(t *testing.T, disk, image, files string, layout diskLayout, log string) {
	t.Helper()
	judgeRoot(t, disk, layout)
	sameFiles(t, files, disk, layout, log)
	if layout.table == "" {
		return
	}
	if before, after := identities(t, image), identities(t, disk); before != after {
		t.Errorf("the table is another one:\n%s", diff(t, before, after))
	}
}

// checkExport wants a backup to hold no more than what is in use, and to be
// about as long as was expected, but for most bytes that are zeros in use.
func checkExport(t *testing.T, b backup, original, joined string, percent, most int64) {
	t.Helper()
	b.checkExpected(t, percent, b.length+most)
	found := comparePages(t, original, joined)
	if found.junk > found.kept/50 { // what is free between two that are not, and short, may be kept
		t.Errorf("%d pages of what was deleted are in the backup\n%s", found.junk, b.log)
	}
	if fair := int64(found.kept)*page*102/100 + 256<<10; b.length > fair {
		t.Errorf("the backup takes %d bytes for %d that are not zeros", b.length, int64(found.kept)*page)
	}
}

// ext makes an ext file system with files, and blocks that became free, on all
// of a disk.
func ext(kind string, options ...string) string {
	return `truncate -s 64M "$1"; mke2fs -q -t ` + kind + " " + strings.Join(options, " ") + ` "$1"
		mkdir "$1.mnt"; mount -o loop "$1" "$1.mnt"; head -c 3000000 /dev/urandom > "$1.mnt/a"; mkdir "$1.mnt/d"
		for i in $(seq 300); do echo $i > "$1.mnt/d/$i"; done
		head -c 6M /dev/zero | tr '\0' '\252' > "$1.mnt/junk"; sync -f "$1.mnt"; rm "$1.mnt/junk"; sync -f "$1.mnt"; umount "$1.mnt"; rmdir "$1.mnt"`
}

const randomDisk = `head -c 20M /dev/urandom > "$1"; truncate -s 24M "$1"; `

// otherDisks are disks without a layout. What is whole is kept to the last byte
// that is not zero; judge is run on the disk that was made of the backup.
var otherDisks = []struct {
	name, make, judge string
	whole             bool
}{
	{"nothing", `truncate -s 64M "$1"`, "", true},
	{"random", randomDisk, "", true},
	{"odd length", randomDisk + `head -c $((512 * 7)) /dev/urandom >> "$1"`, "", true},
	{"one sector", `head -c 512 /dev/urandom > "$1"`, "", true},
	{"1 MiB and a sector", `head -c $(((1 << 20) + 512)) /dev/urandom > "$1"`, "", true},
	{"ext2", ext("ext2"), `e2fsck -fn "$1"`, false},
	{"ext3", ext("ext3"), `e2fsck -fn "$1"`, false},
	{"ext4", ext("ext4"), `e2fsck -fn "$1"`, false},
	{"ext4 of 1 KiB blocks", ext("ext4", "-b 1024"), `e2fsck -fn "$1"`, false},
	{"ext4 with clusters", ext("ext4", "-O bigalloc -C 16384"), `e2fsck -fn "$1"`, false},
	{"ext4 with inline data", ext("ext4", "-O inline_data,meta_bg,^resize_inode -I 512"), `e2fsck -fn "$1"`, false},
	{"ext4 of odd length", ext("ext4") + `; head -c 70000 /dev/urandom >> "$1"; truncate -s $(((64 << 20) + 512 * 141)) "$1"`, `e2fsck -fn "$1"`, false},
	{"swap", `head -c 64M /dev/zero | tr '\0' '\252' > "$1"; mkswap -q -f -U 11111111-2222-4333-8444-555555555555 -L x "$1"`,
		`blkid -p "$1" | grep -q 'UUID="11111111-2222-4333-8444-555555555555".*TYPE="swap"'`, false},
	{"swap that sleeps", `head -c 8M /dev/urandom > "$1"; mkswap -q -f "$1"; printf 'S1SUSPEND\0' | dd of="$1" bs=1 seek=4086 conv=notrunc status=none`, "", true},
	{"vfat", `truncate -s 64M "$1"; mkfs.vfat -F 32 "$1" >/dev/null; head -c 100000 /dev/urandom > "$1.f"; mcopy -i "$1" "$1.f" ::f`, `fsck.vfat -n "$1"`, false},
	{"ntfs", `truncate -s 64M "$1"; mkntfs -q -Q -F "$1" >/dev/null 2>&1`, `ntfsfix -n "$1"`, false},
	{"luks", randomDisk + `printf 'LUKS\272\276\0\002' | dd of="$1" conv=notrunc status=none`, "", true},
	{"qcow2 in a disk", `qemu-img create -q -f qcow2 -b /etc/passwd -F raw "$1" 64M; truncate -s 24M "$1"`, "", true},
	{"tar in a disk", `head -c 300000 /dev/urandom > "$1.f"; tar -C "$(dirname "$1")" -cf "$1" "$(basename "$1").f"; truncate -s 24M "$1"`, "", true},
	{"a backup's header in a disk", `cd "$(dirname "$1")"; echo {} > ganeti-instance-image.json; tar -cf "$1" ganeti-instance-image.json; truncate -s 24M "$1"`, "", true},
	{"iso9660", `head -c 3000000 /dev/urandom > "$1.f"; genisoimage -quiet -V cidata -J -R -o "$1" "$1.f"`, "", true},
	// What a first look would take for a file system of which blocks are free.
	{"luks over ext4", ext("ext4") + `; head -c 60M /dev/urandom | dd of="$1" bs=4096 seek=1 conv=notrunc status=none iflag=fullblock
		printf 'LUKS\272\276\0\001' | dd of="$1" conv=notrunc status=none`, "", true},
	{"xfs's sign before ext4", ext("ext4") + `; printf 'XFSB' | dd of="$1" conv=notrunc status=none`, "", true},
	{"btrfs over ext4", ext("ext4") + `; truncate -s 200M "$1"; dd if="$1" of="$1.s" bs=1024 count=1 skip=1 status=none; mkfs.btrfs -q -f "$1"
		dd if="$1.s" of="$1" bs=1024 seek=1 conv=notrunc status=none`, "", true},
	{"lvm over ext4", ext("ext4") + `; printf 'LABELONE\1\0\0\0\0\0\0\0\0\0\0\0\40\0\0\0LVM2 001' | dd of="$1" bs=512 seek=1 conv=notrunc status=none`, "", true},
	{"raid before ext4", ext("ext4") + `; printf '\374\116\053\251\1\0\0\0' | dd of="$1" bs=4096 seek=1 conv=notrunc status=none`, "", true},
	{"raid behind ext4", ext("ext4") + `; truncate -s 65M "$1"; printf '\374\116\053\251\1\0\0\0' | dd of="$1" bs=4096 seek=$((65 * 256 - 2)) conv=notrunc status=none`,
		`e2fsck -fn "$1"; printf '\374\116\053\251\1' | cmp -n 5 -i 0:$(((65 << 20) - 8192)) - "$1"`, true},
	{"ext4 larger than its disk", ext("ext4") + `; truncate -s 40M "$1"`, "", true},
	{"ext4 with errors", ext("ext4") + `; debugfs -w -R 'ssv state 2' "$1" 2>/dev/null`, "", true},
	{"ext4 of the future", ext("ext4") + `; debugfs -w -R 'ssv feature_incompat 0x80000242' "$1" 2>/dev/null`, "", true},
	{"ext4 with a wrong bitmap", ext("ext4") + `; at=$(dumpe2fs "$1" 2>/dev/null | sed -n 's/.*Block bitmap at \([0-9]*\).*/\1/p' | head -1)
		printf '\0\0\0\0' | dd of="$1" bs=1 seek=$((at * 1024 + 40)) conv=notrunc status=none`, "", true},
}

// What was on a disk of any length comes back, to the first disk and to another
// one, to the last byte that was in use.
func TestBackupOfOtherDisks(t *testing.T) {
	need.Tools(t, "mke2fs", "mkswap", "mkfs.vfat", "mcopy", "mkntfs", "ntfsfix", "qemu-img", "genisoimage", "debugfs", "dumpe2fs", "mkfs.btrfs")
	need.Root(t)
	for i, c := range otherDisks {
		t.Run(c.name, func(t *testing.T) {
			disk := filepath.Join(t.TempDir(), "disk")
			apart(t, c.make, disk)
			s := newSite(t, uncompressed)
			// Disks that are not the first are exported and imported alike.
			index := i % 2
			ofDisk := func(e env, name, disk string) env {
				e = e.with(env{name + "_INDEX": itoa(index), "DISK_COUNT": itoa(index + 1)})
				if index == 1 {
					e["DISK_0_PATH"], e["DISK_1_PATH"] = disk+".0", disk
				}
				return e
			}
			b := s.export(t, ofDisk(exporting(disk), "EXPORT", disk))
			joined := b.join(t)
			if c.whole {
				b.checkExpected(t, 30, b.length+(8<<20))
				identical(t, disk, joined)
			} else {
				checkExport(t, b, disk, joined, 30, 8<<20)
			}
			if c.judge != "" {
				shell(t, c.judge, joined)
			}
			if strings.HasPrefix(c.name, "ext") && !c.whole {
				checkUsed(t, disk, joined, 0)
			}
			length := lengthOf(t, disk)
			target := junkDisk(t, length+int64(i%3/2)*(3<<20))
			log := s.importFile(t, ofDisk(importing(target), "IMPORT", target), b.path)
			if length < lengthOf(t, target) {
				return // a file system was grown, perhaps
			}
			shell(t, `cmp "$1" "$2"`, joined, target)
			if t.Failed() {
				t.Logf("log:\n%s%s", b.log, log)
			}
		})
	}
}

// bounded starts a script with a bound of 300 MiB for the memory that it can write
// to, in all its processes together about what it says it takes.
var bounded = []string{"prlimit", "--data=314572800:314572800"}

// cloudLayouts have the file systems that the guests of the tests boot from: XFS,
// btrfs and LVM. That of ext4 comes back through Ganeti.
var cloudLayouts = []lab.Spec{{Layout: lab.Alma, Compression: "zlib"}, {Layout: lab.Fedora, Compression: "zstd"}, {Layout: lab.LVM, Compression: "zstd"}}

// Whole systems come back file by file.
func TestBackupOfCloudImages(t *testing.T) {
	need.Machine(t)
	need.Tools(t, "qemu-img", "e2fsck", "xfs_repair", "btrfs")
	l, err := lab.Open()
	if err != nil {
		t.Fatal(err)
	}
	for _, spec := range cloudLayouts {
		t.Run(string(spec.Layout), func(t *testing.T) {
			image, err := l.CachedImage(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			disk := filepath.Join(t.TempDir(), "disk")
			tool(t, "qemu-img", "convert", "-O", "raw", image, disk)
			s := newSite(t, "")
			b := s.export(t, exporting(disk))
			b.checkExpected(t, 20, 0)
			joined := b.join(t)
			found := comparePages(t, disk, joined)
			target := filepath.Join(t.TempDir(), "target")
			shell(t, `truncate -s "$1" "$2"; head -c 2M /dev/zero | tr '\0' '\252' | dd of="$2" conv=notrunc status=none`, fmt.Sprint(lengthOf(t, disk)), target)
			s.importFile(t, importing(target), b.path)
			tool(t, "cmp", joined, target)
			checkFiles(t, disk, joined)
			t.Logf("%d MiB in use, the backup has %d; expected were %s%s", found.kept>>8, b.length>>20, b.expected, b.log)
		})
	}
}

// checkFiles wants each file system of a disk that can be mounted here to be
// clean, and to have the same files as the original.
func checkFiles(t *testing.T, original, copied string) {
	t.Helper()
	for _, p := range readTable(t, original).PartitionTable.Partitions {
		number, err := strconv.Atoi(strings.TrimPrefix(p.Node, original))
		if err != nil {
			t.Fatal(err)
		}
		t.Run(fmt.Sprint("partition ", number), func(t *testing.T) {
			a, b := attachPartition(t, original, number), attachPartition(t, copied, number)
			kind := strings.TrimSpace(shell(t, `blkid -p -o value -s TYPE "$1" || true`, b))
			judgeSystem(t, b, kind)
			option, ok := map[string]string{"ext4": "ro,noload", "xfs": "ro,nouuid,norecovery", "btrfs": "ro"}[kind]
			if !ok {
				return
			}
			var sums []string
			for _, loop := range []string{a, b} {
				dir := t.TempDir()
				tool(t, "mount", "-o", option, loop, dir)
				sums = append(sums, shell(t, `cd "$1"; { find . -printf '%p %m %U:%G %T@ %l\n' | LC_ALL=C sort; find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum; } | sha256sum; find . | wc -l`, dir))
				tool(t, "umount", dir) // btrfs has one of an identity mounted at a time
			}
			if sums[0] != sums[1] {
				t.Errorf("the files of partition %d are others: %q", number, sums)
			}
			t.Logf("%s with %s files", kind, strings.Fields(sums[0])[2])
		})
	}
}
