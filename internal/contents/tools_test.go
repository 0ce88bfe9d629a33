package contents

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

// sh runs a script in an empty directory and returns what it prints. What it mounts
// nobody else sees, who might hold it when it is unmounted here.
func sh(t testing.TB, script string, args ...string) string {
	t.Helper()
	argv := append([]string{"unshare", "--mount", "bash", "-euc", script, "bash"}, args...)
	if os.Getuid() != 0 {
		argv = argv[2:]
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.Dir = t.TempDir()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s%s", script, args, err, out, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// machine asks for what file systems on parts of a disk need.
func machine(t testing.TB, tools ...string) {
	t.Helper()
	need.Root(t)
	need.Tools(t, append(tools, "unshare", "losetup", "mount", "umount", "sfdisk", "mkfs.ext4", "e2fsck")...)
	need.File(t, "/dev/loop-control")
}

// attach makes a device of a stretch of a file. It goes with the test.
func attach(t testing.TB, path string, start, length size.Bytes, options ...string) string {
	t.Helper()
	return sh(t, `losetup "$@"`, append(options, "-f", "--show", "-o", fmt.Sprint(int64(start)), "--sizelimit", fmt.Sprint(int64(length)), path)...)
}

func detach(t testing.TB, dev string) {
	t.Helper()
	sh(t, `losetup -d "$1"`, dev)
}

// on runs a script with a stretch of a file as its device $1.
func on(t testing.TB, path string, start, length size.Bytes, script string) string {
	t.Helper()
	dev := attach(t, path, start, length)
	defer detach(t, dev)
	return sh(t, script, dev)
}

// newDisk makes a file with the table that sfdisk makes of a script.
func newDisk(t testing.TB, length, sector size.Bytes, table string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	sh(t, `truncate -s "$1" "$2"`, fmt.Sprint(int64(length)), path)
	if table != "" {
		dev := attach(t, path, 0, length, "-b", fmt.Sprint(int64(sector)))
		defer detach(t, dev)
		sh(t, `printf '%s' "$2" | sfdisk -q --no-reread --no-tell-kernel "$1"`, dev, table)
	}
	return path
}

type place struct{ start, length size.Bytes }

// places are the partitions as sfdisk sees them.
func places(t testing.TB, path string, length, sector size.Bytes) map[int]place {
	t.Helper()
	dev := attach(t, path, 0, length, "-b", fmt.Sprint(int64(sector)))
	defer detach(t, dev)
	var dump struct {
		PartitionTable struct {
			Partitions []struct {
				Node        string
				Start, Size size.Bytes
			}
		}
	}
	if err := json.Unmarshal([]byte(sh(t, `sfdisk -J "$1"`, dev)), &dump); err != nil {
		t.Fatal(err)
	}
	all := map[int]place{}
	for _, p := range dump.PartitionTable.Partitions {
		var number int
		fmt.Sscan(p.Node[strings.LastIndex(p.Node, "p")+1:], &number)
		all[number] = place{p.Start * sector, p.Size * sector}
	}
	return all
}

// content is what a test makes on a partition, and how a copy is judged.
type content struct {
	number int
	make   string // $1 is the device
	files  string // the type to mount, empty where there are none
	check  string
	kind   filesystem.Kind
	whole  bool
}

// life makes and removes files in $1.
const life = `cd "$1"; mkdir a; for i in $(seq 120); do head -c $((i * 411)) /dev/urandom > a/$i; done
head -c 3M /dev/urandom > big; sync -f .; rm a/*3; truncate -s 1M big; head -c 300K /dev/urandom > late`

const sums = `cd "$1"; test "$(find a -type f | wc -l)" = 108; find . -type f -exec sha256sum {} + | sort`

// script makes the content, and prints the files' sums.
func (c content) script() string {
	if c.files == "" {
		return "{ " + c.make + "; } >&2"
	}
	return fmt.Sprintf("{ %s; } >&2\nmkdir m; mount -t %s \"$1\" m; trap 'umount m' EXIT\n(set -- m; %s)\n(set -- m; %s)", c.make, c.files, life, sums)
}

// judge checks a copy, and prints the files' sums.
func (c content) judge() string {
	if c.files == "" {
		return c.check + " >&2"
	}
	return fmt.Sprintf("%s >&2\nmkdir m; mount -t %s \"$1\" m; trap 'umount m' EXIT\n(set -- m; %s)", c.check, c.files, sums)
}

var (
	noise = content{make: `head -c 400K /dev/urandom > "$1"`, whole: true}
	fat   = content{make: `mkfs.vfat "$1"; head -c 90K /dev/urandom | dd of="$1" bs=1M seek=30 status=none conv=notrunc`, check: `fsck.vfat -n "$1"`, kind: filesystem.VFAT, whole: true}
	luks  = content{make: `printf 'LUKS\xba\xbe\0\2' > "$1"`, kind: filesystem.LUKS, whole: true}
	swap  = content{make: `mkswap "$1"`, check: `swaplabel "$1" | grep -q UUID`, kind: filesystem.Swap}
	xfs   = content{make: `mkfs.xfs -q "$1"`, files: "xfs", check: `xfs_repair -n "$1"`, kind: filesystem.XFS}
	btrfs = content{make: `mkfs.btrfs -q "$1"`, files: "btrfs", check: `btrfs check "$1"`, kind: filesystem.Btrfs}
	ext4  = content{make: `mkfs.ext4 -q "$1"`, files: "ext4", check: `e2fsck -fn "$1"`, kind: filesystem.Ext4}
)

func (c content) at(number int, change ...string) content {
	c.number = number
	for _, args := range change {
		c.make += args
	}
	return c
}

func extOf(kind filesystem.Kind, options string) content {
	return content{make: "mke2fs -q " + options + ` "$1"`, files: string(kind), check: `e2fsck -fn "$1"`, kind: kind}
}

var disks = []struct {
	name           string
	length, sector size.Bytes
	table          string
	contents       []content
}{
	{"GPT", 800 * size.MiB, 512, "label: gpt\nsize=1M,type=21686148-6449-6E6F-744E-656564454649\nsize=40M,type=U\nsize=100M\nsize=310M\nsize=128M\nsize=40M,type=S\nsize=20M\n", []content{
		noise.at(1), fat.at(2), ext4.at(3, ` 80M; head -c 90K /dev/urandom | dd of="$1" bs=1M seek=85 status=none conv=notrunc`), xfs.at(4), btrfs.at(5), swap.at(6), luks.at(7),
	}},
	{"MBR", 300 * size.MiB, 512, "label: dos\nsize=60M,bootable\nsize=20M\nsize=10M\ntype=E\nsize=60M\nsize=60M\n", []content{
		extOf("ext2", "-t ext2").at(1), swap.at(2), noise.at(3), extOf("ext3", "-t ext3 -b 1024").at(5), extOf("ext4", "-t ext4 -b 2048").at(6),
	}},
	{"sectors of 4096 bytes", 200 * size.MiB, 4096, "label: gpt\nsize=64M\nsize=10M\n", []content{ext4.at(1), swap.at(2)}},
	{"no table", 64 * size.MiB, 512, "", []content{ext4.at(0)}},
	{"nothing", 3 * size.MiB, 512, "", []content{noise.at(0)}},
}

// TestReal judges copies of the used ranges alone, by the file systems' own tools.
func TestReal(t *testing.T) {
	machine(t, "mkfs.xfs", "xfs_repair", "mkfs.btrfs", "btrfs", "mkfs.vfat", "fsck.vfat", "mkswap", "swaplabel")
	for _, c := range disks {
		t.Run(c.name, func(t *testing.T) {
			path := newDisk(t, c.length, c.sector, c.table)
			where := map[int]place{0: {0, c.length}}
			if c.table != "" {
				where = places(t, path, c.length, c.sector)
			}
			files := map[int]string{}
			for _, content := range c.contents {
				at := where[content.number]
				files[content.number] = on(t, path, at.start, at.length, content.script())
			}
			if c.table != "" {
				sh(t, `head -c 70K /dev/urandom | dd of="$1" bs=1K seek=20 status=none conv=notrunc; head -c 30K /dev/urandom | dd of="$1" bs=1K seek="$2" conv=notrunc status=none`,
					path, fmt.Sprint(int64((c.length-100*size.KiB)/size.KiB)))
			}
			d, copied := copyUsed(t, path)
			if len(d.Parts) != len(c.contents) || d.SectorSize != c.sector {
				t.Errorf("%+v", d)
			}
			for i, content := range c.contents {
				at, part := where[content.number], d.Parts[i]
				part.end = 0
				want := Part{Number: content.number, Start: at.start, Length: at.length, Used: part.Used, Kind: content.kind, Whole: content.whole, Why: part.Why}
				if part != want || part.Whole != (part.Why != "") || part.Whole != (part.Used == part.Length) {
					t.Errorf("got %+v, want %+v", part, want)
				}
				if content.check != "" {
					if got := on(t, copied, at.start, at.length, content.judge()); !strings.HasSuffix(files[content.number], got) {
						t.Errorf("partition %d: the files are not as they were: %.300s", content.number, got)
					}
				}
			}
			sameOutside(t, path, copied, d)
		})
	}
}

// copyUsed copies what is used, and nothing else; the ranges must be in order,
// the same when run again, and as long as the parts say.
func copyUsed(t testing.TB, path string) (*Disk, string) {
	t.Helper()
	from, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	stat, err := from.Stat()
	if err != nil {
		t.Fatal(err)
	}
	d, err := Of(from, size.Bytes(stat.Size()))
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	sh(t, `truncate -s "$1" "$2"`, fmt.Sprint(stat.Size()), copied)
	to, err := os.OpenFile(copied, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	total, end, ranges := size.Bytes(0), -gap-1, 0
	for r, err := range d.Used() {
		if err != nil {
			t.Fatal(err)
		}
		if r.Length <= 0 || r.Start-end <= gap || r.Start+r.Length > d.Length {
			t.Fatalf("%+v after %d", r, end)
		}
		if _, err := io.Copy(io.NewOffsetWriter(to, int64(r.Start)), io.NewSectionReader(from, int64(r.Start), int64(r.Length))); err != nil {
			t.Fatal(err)
		}
		total, end, ranges = total+r.Length, r.Start+r.Length, ranges+1
	}
	if again := sumOf(t, d); again != total {
		t.Errorf("%d bytes at first, %d when run again", total, again)
	}
	if exact := exactly(d); total < exact || total > exact+exact/10 {
		t.Errorf("%d bytes are kept, and the parts say %d", total, exact)
	}
	t.Logf("%s of %s in %d ranges: %+v", total, d.Length, ranges, d.Parts)
	return d, copied
}

func sumOf(t testing.TB, d *Disk) (total size.Bytes) {
	t.Helper()
	for r, err := range d.Used() {
		if err != nil {
			t.Fatal(err)
		}
		total += r.Length
	}
	return total
}

// exactly is what is used by what the parts say.
func exactly(d *Disk) size.Bytes {
	total := d.Length
	for _, p := range d.Parts {
		if p.Volume == "" {
			total -= p.Length - p.Used
		}
	}
	return total
}

// sameOutside compares what must be kept to the byte: all but the parts of which
// something is left out.
func sameOutside(t testing.TB, path, copied string, d *Disk) {
	t.Helper()
	at := size.Bytes(0)
	compare := func(start, end size.Bytes) {
		if start < end {
			sh(t, `cmp -i "$1" -n "$2" "$3" "$4"`, fmt.Sprint(int64(start)), fmt.Sprint(int64(end-start)), path, copied)
		}
	}
	for _, p := range d.Parts {
		if !p.Whole && p.Volume == "" {
			compare(at, p.Start)
			at = p.Start + p.Length
		}
	}
	compare(at, d.Length)
}

// TestInUse: copies taken while the guest runs are kept whole.
func TestInUse(t *testing.T) {
	machine(t, "mkfs.xfs")
	const length = 400 * size.MiB
	for _, c := range []content{ext4.at(1), xfs.at(1)} {
		path := newDisk(t, length, 512, "label: gpt\nsize=320M\n")
		at := places(t, path, length, 512)[1]
		copied := filepath.Join(t.TempDir(), "snapshot")
		dev := attach(t, path, at.start, at.length)
		defer detach(t, dev)
		sh(t, c.make+`; mkdir m; mount "$1" m; trap 'umount m' EXIT
(set -- m; `+life+`; rm big; sync -f .); cp --sparse=always "$2" "$3"`, dev, path, copied)
		f, err := os.Open(copied)
		if err != nil {
			t.Fatal(err)
		}
		d, err := Of(f, length)
		if err != nil || len(d.Parts) != 1 || !d.Parts[0].Whole || d.Parts[0].Kind != c.kind || sumOf(t, d) != length {
			t.Errorf("%+v, %v", d, err)
		}
		t.Log(d.Parts)
		f.Close()
	}
}
