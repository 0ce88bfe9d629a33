package layout

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/google/go-cmp/cmp"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

const (
	espType  = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	biosType = "21686148-6449-6E6F-744E-656564454649"
	rootType = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
	dataType = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
	bootType = "BC13C2FF-59E6-4262-A352-B275FD6F7172"
)

// disk is a test disk: a script for sfdisk, and what else makes it special.
type disk struct {
	name   string
	image  size.Bytes
	script string
	sgdisk []string                                      // further options for sgdisk
	then   func(t *testing.T, path string, sector int64) // damage, marks
	grow   size.Bytes
	last   int // the partition that grows
}

var disks = []disk{
	{name: "MBR", image: 1 * size.GiB, grow: 3 * size.GiB, last: 1,
		script: "label: dos\nlabel-id: 0x1234abcd\nstart=2048, type=83, bootable\n"},
	{name: "MBR, swap in front", image: 1 * size.GiB, grow: 30 * size.GiB, last: 2,
		script: "label: dos\nstart=2048, size=204800, type=82\ntype=83, bootable\n"},
	{name: "MBR, logical", image: 1 * size.GiB, grow: 3 * size.GiB, last: 6,
		script: "label: dos\nstart=2048, size=204800, type=83\ntype=5\nsize=204800, type=82\ntype=83\n"},
	{name: "MBR, one logical", image: 1 * size.GiB, grow: 3 * size.GiB, last: 5,
		script: "label: dos\nstart=2048, size=204800, type=83\ntype=f\ntype=8e\n"},
	{name: "MBR, three logicals, room", image: 1 * size.GiB, grow: 30 * size.GiB, last: 7,
		script: "label: dos\nstart=2048, size=204800, type=83\nsize=1000000, type=85\n5: size=204800, type=82\n6: size=2048, type=83\n7: size=204800, type=83\n"},
	{name: "MBR, 3 TiB", image: 1 * size.GiB, grow: 3 * size.TiB, last: 1,
		script: "label: dos\nstart=2048, type=83\n"},
	{name: "Debian", image: 2 * size.GiB, grow: 10 * size.GiB, last: 1,
		script: "label: gpt\n15: start=8192, size=253952, type=" + espType + "\n14: start=2048, size=6144, type=" + biosType + "\n1: start=262144, type=" + rootType + ", name=\"root ä\"\n"},
	{name: "Ubuntu 24.04", image: 3 * size.GiB, grow: 10*size.GiB + 512, last: 1,
		script: "label: gpt\n14: start=2048, size=8192, type=" + biosType + "\n15: size=217088, type=" + espType + "\n16: size=1869825, type=" + bootType + "\n1: type=" + dataType + ", attrs=\"LegacyBIOSBootable,GUID:48,63\"\n"},
	{name: "AlmaLinux", image: 3 * size.GiB, grow: 4 * size.GiB, last: 4,
		script: "label: gpt\nfirst-lba: 34\nstart=2048, size=2048, type=" + biosType + "\nsize=409600, type=" + espType + "\nsize=2097152, type=" + bootType + "\ntype=" + dataType + "\n"},
	{name: "moved entries", image: 1 * size.GiB, grow: 2 * size.GiB, last: 1,
		sgdisk: []string{"-j", "1024", "-n", "1:2048:+100M", "-c", "1:moved", "-A", "1:set:2", "-A", "1:set:60"},
		then:   func(t *testing.T, path string, sector int64) { patch(t, path, 2*sector, []byte("UBOOTSPL")) }},
	{name: "56 entries", image: 1 * size.GiB, grow: 2 * size.GiB, last: 1, sgdisk: []string{"-S", "56", "-n", "1:2048:+100M"}},
	{name: "256 entries", image: 1 * size.GiB, grow: 2 * size.GiB, last: 200, sgdisk: []string{"-S", "256", "-n", "200:2048:+100M"}},
	{name: "GPT, boot flag on the protective MBR", image: 1 * size.GiB, grow: 2 * size.GiB, last: 1,
		sgdisk: []string{"-n", "1:2048:0"},
		then: func(t *testing.T, path string, _ int64) {
			patch(t, path, slotsAt, []byte{0x80})
			patch(t, path, 0, []byte("boot code"))
		}},
	{name: "GPT, 3 TiB", image: 1 * size.GiB, grow: 3 * size.TiB, last: 1, sgdisk: []string{"-n", "1:2048:0"}},
	{name: "GPT, 3 to 5 TiB", image: 3 * size.TiB, grow: 5 * size.TiB, last: 1, sgdisk: []string{"-n", "1:2048:0"}},
	{name: "hybrid MBR", image: 1 * size.GiB, grow: 2 * size.GiB, last: 2,
		sgdisk: []string{"-n", "1:2048:+100M", "-n", "2:0:0", "-h", "1"}},
	{name: "backup only", image: 1 * size.GiB, grow: 2 * size.GiB, last: 1,
		sgdisk: []string{"-n", "1:2048:0", "-c", "1:saved"},
		then:   func(t *testing.T, path string, sector int64) { patch(t, path, sector, make([]byte, 512)) }},
	{name: "backup only, entries moved", image: 1 * size.GiB, grow: 2 * size.GiB, last: 1,
		sgdisk: []string{"-j", "1024", "-n", "1:2048:0", "-c", "1:saved"},
		then: func(t *testing.T, path string, sector int64) {
			patch(t, path, sector+20, []byte{1})
			patch(t, path, 2*sector, []byte("UBOOTSPL"))
		}},
	{name: "primary only", image: 1 * size.GiB, grow: 2 * size.GiB, last: 1,
		sgdisk: []string{"-n", "1:2048:0"},
		then: func(t *testing.T, path string, sector int64) {
			patch(t, path, int64(size.GiB)-sector, make([]byte, 512))
		}},
}

func TestGrow(t *testing.T) {
	t.Parallel()
	need.Tools(t, "sgdisk", "sfdisk")
	for _, d := range disks {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			d.test(t, d.make(t), 512)
		})
	}
}

// TestGrow4096 does the same where a sector is 4096 bytes.
func TestGrow4096(t *testing.T) {
	t.Parallel()
	need.Root(t)
	need.File(t, "/dev/loop-control")
	need.Tools(t, "sgdisk", "sfdisk", "losetup")
	for _, d := range disks {
		if len(d.sgdisk) == 0 {
			continue // its script counts sectors of 512 bytes
		}
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			path := sparse(t, d.image)
			withLoop(t, path, func(loop string) {
				tool(t, "sgdisk", append([]string{"-o"}, append(d.sgdisk, loop)...)...)
			})
			if d.then != nil {
				d.then(t, path, 4096)
			}
			d.test(t, path, 4096)
		})
	}
}

func (d disk) make(t *testing.T) string {
	path := sparse(t, d.image)
	if d.script != "" {
		sfdisk := exec.Command("/usr/sbin/sfdisk", "-q", path)
		sfdisk.Stdin = strings.NewReader(d.script)
		if out, err := sfdisk.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if d.sgdisk != nil {
		tool(t, "sgdisk", append([]string{"-o"}, append(d.sgdisk, path)...)...)
	}
	if d.then != nil {
		d.then(t, path, 512)
	}
	return path
}

// test grows the disk, and lets sgdisk and sfdisk compare and check.
func (d disk) test(t *testing.T, path string, sector size.Bytes) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before, err := Read(f, d.image)
	if err != nil {
		t.Fatal(err)
	}
	if before.SectorSize != sector && before.Kind == GPT {
		t.Errorf("sector size %d", before.SectorSize)
	}
	last, _ := before.Last()
	if last.Number != d.last {
		t.Fatalf("the last partition is %d, want %d", last.Number, d.last)
	}
	want := dump(t, path, sector, d.last)
	if err := f.Truncate(int64(d.grow)); err != nil {
		t.Fatal(err)
	}
	plan, err := before.Grow(d.grow)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, f, plan)

	after, err := Read(f, d.grow)
	if err != nil {
		t.Fatal(err)
	}
	grown, _ := after.Last()
	if grown != plan.Grown || after.Note != "" {
		t.Errorf("the plan says %+v, the disk %+v %s", plan.Grown, grown, after.Note)
	}
	limit := d.grow
	if after.Kind == MBR && limit > 2*size.TiB {
		limit = 2 * size.TiB
		if !strings.Contains(plan.Note, "2 TiB") {
			t.Errorf("the note does not name the limit: %q", plan.Note)
		}
	}
	if left := limit - grown.End(); left > size.MiB || grown.Length%4096 != 0 || grown.Start != last.Start {
		t.Errorf("%d bytes are left behind %+v", left, grown)
	}
	if diff := cmp.Diff(want, dump(t, path, sector, d.last)); diff != "" {
		t.Errorf("more changed than the size of the last partition: %s", diff)
	}
	d.verify(t, path, sector)
	if after.Kind == GPT {
		otherReader(t, path, sector, after)
	}
	if again, err := after.Grow(d.grow); err != nil || len(again.Writes) != 0 {
		t.Errorf("a second time would write %d times, %v", len(again.Writes), err)
	}
	d.untouched(t, f, int64(sector))
}

// untouched looks at what the tools do not.
func (d disk) untouched(t *testing.T, f *os.File, sector int64) {
	t.Helper()
	var found [9]byte
	if f.ReadAt(found[:], 2*sector); strings.Contains(d.name, "moved") && string(found[:8]) != "UBOOTSPL" {
		t.Errorf("what stands at sector 2 was overwritten: %q", found)
	}
	if f.ReadAt(found[:], 0); strings.Contains(d.name, "boot flag") && string(found[:]) != "boot code" {
		t.Errorf("the boot code was overwritten: %q", found)
	}
	if f.ReadAt(found[:1], slotsAt); strings.Contains(d.name, "boot flag") && found[0] != 0x80 {
		t.Errorf("the boot flag is lost: %x", found[0])
	}
	if f.ReadAt(found[:], int64(d.image)-sector); string(found[:8]) == "EFI PART" {
		t.Error("the old backup header is still there")
	}
}

func (d disk) verify(t *testing.T, path string, sector size.Bytes) {
	t.Helper()
	check := func(device string) {
		out := tool(t, "sfdisk", "--verify", device)
		if strings.Contains(out, "mismatch") || strings.Contains(out, "not on the end") || strings.Contains(out, "corrupt") {
			t.Errorf("sfdisk --verify: %s", out)
		}
		if strings.HasPrefix(d.name, "MBR") {
			return
		}
		if out := tool(t, "sgdisk", "-v", device); !strings.Contains(out, "No problems found") {
			t.Errorf("sgdisk -v: %s", out)
		}
	}
	if sector == 512 {
		check(path)
		return
	}
	withLoop(t, path, check)
}

// dump is what sfdisk says of the disk, without what growing changes.
func dump(t *testing.T, path string, sector size.Bytes, last int) map[string]any {
	t.Helper()
	var text string
	if sector == 512 {
		text = tool(t, "sfdisk", "-J", path)
	} else {
		withLoop(t, path, func(loop string) { text = strings.ReplaceAll(tool(t, "sfdisk", "-J", loop), loop+"p", path) })
	}
	var parsed struct {
		PartitionTable map[string]any `json:"partitiontable"`
	}
	text = text[strings.Index(text, "{"):]
	if err := json.Unmarshal([]byte(text[:strings.LastIndex(text, "}")+1]), &parsed); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	table := parsed.PartitionTable
	delete(table, "lastlba")
	delete(table, "device")
	for _, p := range table["partitions"].([]any) {
		p := p.(map[string]any)
		extended := p["type"] == "5" || p["type"] == "f" || p["type"] == "85"
		if extended || p["node"] == fmt.Sprintf("%s%d", path, last) {
			delete(p, "size")
		}
	}
	return table
}

// otherReader lets another library read the table.
func otherReader(t *testing.T, path string, sector size.Bytes, want *Table) {
	t.Helper()
	f, err := file.OpenFromPath(path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, err := gpt.Read(f, int(sector), int(sector))
	if err != nil {
		t.Logf("not read by the other reader: %v", err)
		return
	}
	if !strings.EqualFold(table.GUID, want.DiskGUID) {
		t.Errorf("disk GUID %s, want %s", table.GUID, want.DiskGUID)
	}
	for _, p := range want.Partitions {
		for _, other := range table.Partitions {
			if strings.EqualFold(other.GUID, p.GUID) &&
				(other.Start != uint64(p.Start/sector) || other.Name != p.Name || other.Attributes != p.Attributes || string(other.Type) != p.Type) {
				t.Errorf("the other reader has %+v, want %+v", other, p)
			}
		}
	}
}

func TestGrowGainsTooLittle(t *testing.T) {
	t.Parallel()
	need.Tools(t, "sgdisk", "sfdisk")
	d := disk{image: size.GiB, sgdisk: []string{"-n", "1:2048:0"}}
	path := d.make(t)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, more := range []size.Bytes{512, 4096, 17 * 512, size.MiB / 2} {
		table, err := Read(f, d.image)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(int64(d.image + more)); err != nil {
			t.Fatal(err)
		}
		plan, err := table.Grow(d.image + more)
		if err != nil || plan.Grown.Number != 0 || plan.Note == "" || len(plan.Writes) == 0 {
			t.Errorf("%d bytes more: %d writes, %+v, %q, %v", more, len(plan.Writes), plan.Grown, plan.Note, err)
		}
		apply(t, f, plan)
		d.verify(t, path, 512)
		d.image += more
	}
}

func TestRelocate(t *testing.T) {
	t.Parallel()
	need.Tools(t, "sgdisk", "sfdisk")
	d := disk{image: size.GiB, sgdisk: []string{"-n", "1:2048:0"}}
	path := d.make(t)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before, err := Read(f, d.image)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(int64(2 * size.GiB)); err != nil {
		t.Fatal(err)
	}
	plan, err := before.Relocate(2 * size.GiB)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, f, plan)
	after, err := Read(f, 2*size.GiB)
	if err != nil || plan.Grown.Number != 0 {
		t.Fatal(plan.Grown, err)
	}
	if diff := cmp.Diff(before.Partitions, after.Partitions); diff != "" {
		t.Error(diff)
	}
	d.verify(t, path, 512)
	if _, err := before.Relocate(size.GiB / 2); err == nil {
		t.Error("it was shrunk")
	}
}

func TestReadNoTable(t *testing.T) {
	need.Tools(t, "mkfs.ext4", "mkfs.vfat")
	empty := sparse(t, size.MiB)
	ext4 := sparse(t, 64*size.MiB)
	tool(t, "mkfs.ext4", "-q", ext4)
	vfat := sparse(t, 64*size.MiB)
	tool(t, "mkfs.vfat", vfat)
	boot := sparse(t, 64*size.MiB) // as extlinux does it: code up to the signature
	patch(t, boot, 0, append(bytes.Repeat([]byte{0xEE, 0x31}, 255), 0x55, 0xAA))
	for name, path := range map[string]string{"empty": empty, "ext4": ext4, "vfat": vfat, "boot sector": boot} {
		if _, err := Read(open(t, path)); !errors.Is(err, ErrNoTable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Read(bytes.NewReader(nil), 0); !errors.Is(err, ErrNoTable) {
		t.Error(err)
	}
}

func TestReadDamaged(t *testing.T) {
	t.Parallel()
	need.Tools(t, "sgdisk", "sfdisk")
	plain := disk{image: size.GiB, sgdisk: []string{"-n", "1:2048:+10M", "-n", "2:0:0"}}
	logical := disks[2]
	cases := []struct {
		name string
		disk disk
		harm func(path string)
		want string
	}{
		{"both headers", plain, func(p string) {
			patch(t, p, 512, make([]byte, 8))
			patch(t, p, int64(size.GiB)-512, []byte{0})
		}, "so is the backup"},
		{"both entries", plain, func(p string) {
			patch(t, p, 2*512+60, []byte{1})
			patch(t, p, int64(size.GiB)-33*512+60, []byte{1})
		}, "checksum of its entries"},
		{"no protective MBR", plain, func(p string) { patch(t, p, 510, []byte{0, 0}) }, "protective MBR"},
		{"partition beyond the end", disks[0], func(p string) { os.Truncate(p, int64(size.GiB/2)) }, "not within"},
		{"two extended", logical, func(p string) { patch(t, p, slotsAt+4, []byte{5}) }, "both extended"},
		{"overlap", logical, func(p string) { patch(t, p, slotsAt+12, []byte{0, 0, 5, 0}) }, "overlap"},
		{"endless chain", logical, func(p string) {
			patch(t, p, 206848*512+slotsAt+16+8, []byte{0, 0, 0, 0})
		}, "does not end"},
		{"chain leaves", logical, func(p string) {
			patch(t, p, 206848*512+slotsAt+16+8, []byte{0, 0, 0, 0x70})
		}, "leaves"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := c.disk.make(t)
			c.harm(path)
			_, err := Read(open(t, path))
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want it to say %q", err, c.want)
			}
		})
	}
}

func TestReserved(t *testing.T) {
	for partitionType, reserved := range map[string]bool{espType: true, biosType: true, dataType: false, rootType: false, "82": true, "83": false, "8e": false, "05": true} {
		if got := (Partition{Type: partitionType}).Reserved(); (got != "") != reserved {
			t.Errorf("%s: %q", partitionType, got)
		}
	}
}

func TestPartUUID(t *testing.T) {
	need.Tools(t, "sfdisk", "sgdisk")
	table, err := Read(open(t, disks[0].make(t)))
	if err != nil {
		t.Fatal(err)
	}
	if got := table.PartUUID(table.Partitions[0]); got != "1234abcd-01" {
		t.Error(got)
	}
}

func sparse(t *testing.T, length size.Bytes) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(length)); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, path string) (*os.File, size.Bytes) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return f, size.Bytes(info.Size())
}

func patch(t *testing.T, path string, off int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, off); err != nil {
		t.Fatal(err)
	}
}

func apply(t *testing.T, f *os.File, plan Plan) {
	t.Helper()
	for _, w := range plan.Writes {
		if _, err := f.WriteAt(w.Data, int64(w.Offset)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(plan.Writes); n > 0 && !plan.Writes[n-1].Sync {
		t.Error("the last write is not flushed")
	}
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command("/usr/sbin/"+name, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

// withLoop gives the file a device of 4096-byte sectors for a moment.
func withLoop(t *testing.T, path string, use func(loop string)) {
	t.Helper()
	loop := strings.TrimSpace(tool(t, "losetup", "-f", "--show", "-b", "4096", path))
	defer tool(t, "losetup", "-d", loop)
	use(loop)
}
