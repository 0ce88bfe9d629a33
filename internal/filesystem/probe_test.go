package filesystem

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

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

func tool(t *testing.T, argv ...string) string {
	t.Helper()
	need.Tools(t, argv[0])
	cmd := exec.Command("/usr/bin/env", append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}, argv...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
	return string(out)
}

func probeFile(t testing.TB, path string) Info {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	end, err := file.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	info, err := Probe(file, size.Bytes(end))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// made are filesystems that are made by their own tools.
var made = []struct {
	kind Kind
	size size.Bytes
	mkfs string // the last argument, the disk, is added
}{
	{Ext2, 64 * size.MiB, "mkfs.ext2 -q -L old"},
	{Ext3, 64 * size.MiB, "mkfs.ext3 -q -b 1024"},
	{Ext4, 64 * size.MiB, "mkfs.ext4 -q -L sixteen-bytes-xx"},
	{Ext4, 64 * size.MiB, "mkfs.ext4 -q -O ^has_journal"},
	{Ext4, 64 * size.MiB, "mkfs.ext4 -q -O none,extent,filetype,sparse_super"},
	{Ext4, 5 * size.TiB, "mkfs.ext4 -q -E lazy_itable_init -N 1000 -O 64bit,bigalloc,^has_journal -C 1048576 -b 1024"},
	{XFS, 512 * size.MiB, "mkfs.xfs -q -L twelve-bytes"},
	{XFS, 512 * size.MiB, "mkfs.xfs -q -m crc=0 -s size=4096"},
	{Btrfs, 256 * size.MiB, "mkfs.btrfs -q -L fedora"},
	{VFAT, 1 * size.MiB, "mkfs.vfat -F 12 -n CIDATA"},
	{VFAT, 64 * size.MiB, "mkfs.vfat -F 16 -n cidata"},
	{VFAT, 128 * size.MiB, "mkfs.vfat -F 32 -n UEFI"},
	{VFAT, 512 * size.MiB, "mkfs.vfat -F 32 -S 4096"},
	{Swap, 32 * size.MiB, "mkswap -q -L swapped"},
	{Swap, 32 * size.MiB, "mkswap -q -p 65536"},
	{ISO9660, 0, "xorriso -as mkisofs -quiet -J -r -V cidata -o"},
}

func TestProbeMade(t *testing.T) {
	need.Tools(t, "blkid")
	for _, m := range made {
		path := sparse(t, m.size)
		argv := append(strings.Fields(m.mkfs), path)
		if m.kind == ISO9660 {
			argv = append(argv, t.TempDir())
		}
		tool(t, argv...)
		info := probeFile(t, path)
		if info.Kind != m.kind || info.Apart != "" {
			t.Errorf("%s: %+v", m.mkfs, info)
		}
		if m.size != 0 && (info.Size > m.size || info.Size < m.size/10*9) {
			t.Errorf("%s: %s of %s", m.mkfs, info.Size, m.size)
		}
		asBlkid(t, path, info)
	}
}

// asBlkid compares with what blkid(8) says.
func asBlkid(t *testing.T, path string, info Info) {
	t.Helper()
	want := Info{}
	for line := range strings.Lines(tool(t, "blkid", "-p", "-o", "export", path)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch name {
		case "TYPE":
			want.Kind = Kind(value)
		case "UUID":
			want.UUID = value
		case "LABEL":
			want.Label = value
		}
	}
	if info.Kind != want.Kind || info.UUID != want.UUID || info.Label != want.Label {
		t.Errorf("%s: %+v, blkid says %+v", path, info, want)
	}
}

type fabrication struct {
	kind  Kind
	bytes map[int]string
	size  size.Bytes
}

// fabricated are superblocks of what has no tool here: offsets and bytes.
var fabricated = []fabrication{
	{LUKS, map[int]string{0: "LUKS\xBA\xBE\x00\x01", 168: "9f6a2e1c-5d0b-4c9e-8c5d-0a1b2c3d4e5f"}, 0},
	{LUKS, map[int]string{0: "LUKS\xBA\xBE\x00\x02", 8: "\x00\x00\x00\x00\x00\x00\x40\x00", 24: "label", 168: "9f6a2e1c-5d0b-4c9e-8c5d-0a1b2c3d4e5f"}, 0},
	{SquashFS, map[int]string{0: "hsqs", 28: "\x04\x00\x00\x00", 40: "\x00\x10\x00\x00\x00\x00\x00\x00"}, 4096},
	{F2FS, map[int]string{1024: "\x10\x20\xF5\xF2\x01\x00\x0e\x00\x09\x00\x00\x00\x03\x00\x00\x00\x0c\x00\x00\x00",
		1024 + 36: "\x00\x02\x00\x00\x00\x00\x00\x00", 1024 + 108: "0123456789abcdef", 1024 + 124: "r\x00a\x00"}, 2 * size.MiB},
}

func TestProbeFabricated(t *testing.T) {
	need.Tools(t, "blkid")
	for _, f := range fabricated {
		path := sparse(t, 4*size.MiB)
		if err := os.WriteFile(path, f.disk(), 0o600); err != nil {
			t.Fatal(err)
		}
		info := probeFile(t, path)
		if info.Kind != f.kind || info.Size != f.size {
			t.Errorf("%s: %+v", f.kind, info)
		}
		asBlkid(t, path, info)
	}
	zfs := bytes.NewReader(zfsLabel())
	if info, err := Probe(zfs, size.Bytes(zfs.Len())); info.Kind != ZFS || err != nil {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestProbeNTFS(t *testing.T) {
	disk := make([]byte, 8192)
	copy(disk, "\xEB\x52\x90NTFS    \x00\x02\x08")
	copy(disk[40:], "\x10\x00\x00\x00")
	copy(disk[72:], "\x01\x02\x03\x04\x05\x06\x07\xF8")
	copy(disk[510:], "\x55\xAA")
	info, err := Probe(bytes.NewReader(disk), 8192)
	if want := (Info{Kind: NTFS, UUID: "F807060504030201", Size: 8192}); info != want || err != nil {
		t.Errorf("%+v, %v", info, err)
	}
}

func zfsLabel() []byte {
	disk := make([]byte, 256<<10)
	for slot := range 4 {
		binary.LittleEndian.PutUint64(disk[128<<10+slot<<10:], 0x00bab10c)
	}
	return disk
}

func (f fabrication) disk() []byte {
	disk := make([]byte, 4<<20)
	for off, text := range f.bytes {
		copy(disk[off:], text)
	}
	return disk
}

// TestProbeLVM wants pvcreate, which works on block devices only.
func TestProbeLVM(t *testing.T) {
	path := device(t, sparse(t, 16*size.MiB))
	tool(t, "pvcreate", "-q", "-q", "--driverloaded", "n", "--devices", path, path)
	info := probeFile(t, path)
	if info.Kind != LVM2 || info.Size != 16*size.MiB {
		t.Errorf("%+v", info)
	}
	asBlkid(t, path, info)
}

func TestProbeApart(t *testing.T) {
	need.Tools(t, "mkfs.btrfs", "mkfs.ext4", "mkfs.xfs")
	first, second := sparse(t, 256*size.MiB), sparse(t, 256*size.MiB)
	journal, outside := sparse(t, 128*size.MiB), sparse(t, 512*size.MiB)
	tool(t, "mkfs.btrfs", "-q", first, second)
	if info := probeFile(t, first); info.Apart != "it is on 2 devices" {
		t.Errorf("%+v", info)
	}
	tool(t, "mkfs.xfs", "-q", "-l", "logdev="+journal+",size=64m", outside)
	if info := probeFile(t, outside); info.Apart != "its log is on another device" {
		t.Errorf("%+v", info)
	}
	device, ext4 := device(t, sparse(t, 64*size.MiB)), sparse(t, 64*size.MiB)
	tool(t, "mkfs.ext4", "-q", "-O", "journal_dev", device)
	if info := probeFile(t, device); info.Kind != None {
		t.Errorf("%+v", info)
	}
	tool(t, "mkfs.ext4", "-q", "-J", "device="+device, ext4)
	if info := probeFile(t, ext4); info.Apart != "its journal is on another device" {
		t.Errorf("%+v", info)
	}
}

func TestProbeNothing(t *testing.T) {
	for _, n := range []int{0, 1, 511, 512, 1024, 4096, 70000} {
		info, err := Probe(bytes.NewReader(make([]byte, n)), size.Bytes(n))
		if info != (Info{}) || err != nil {
			t.Errorf("%d bytes: %+v, %v", n, info, err)
		}
	}
	if _, err := Probe(bytes.NewReader(nil), 4096); err == nil {
		t.Error("a disk that cannot be read was read")
	}
}

// FuzzProbe puts bytes at one of the places where superblocks are.
func FuzzProbe(f *testing.F) {
	offsets := []int{0, 512, 1024, 4086, 32 << 10, 64 << 10, 128 << 10}
	seed := func(disk []byte) {
		for i, off := range offsets {
			if off < len(disk) {
				f.Add(uint8(i), disk[off:min(len(disk), off+4096)], uint16(len(disk)>>10))
			}
		}
	}
	for _, fabricated := range fabricated {
		seed(fabricated.disk())
	}
	seed(zfsLabel())
	fat := "\xEB\x3C\x90mkfs.fat\x00\x02\x04\x01\x00\x02\x00\x02\x00\x08\xF8\x02\x00\x20\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x80\x00\x29\x78\x56\x34\x12"
	f.Add(uint8(0), []byte(fat+strings.Repeat("\x00", 510-len(fat))+"\x55\xAA"), uint16(64))
	f.Add(uint8(5), append(append(make([]byte, 64), "_BHRfS_M"...), make([]byte, 4096)...), uint16(128))
	f.Add(uint8(0), append([]byte("XFSB\x00\x00\x10\x00"), make([]byte, 504)...), uint16(128))
	f.Add(uint8(2), append(append(make([]byte, 56), 0x53, 0xEF), make([]byte, 1000)...), uint16(128))
	f.Add(uint8(4), append([]byte("\x01CD001"), make([]byte, 2048)...), uint16(128))
	f.Add(uint8(3), []byte("SWAPSPACE2"), uint16(128))
	f.Fuzz(func(t *testing.T, place uint8, superblock []byte, kib uint16) {
		disk := make([]byte, int(kib%512)<<10)
		if off := offsets[int(place)%len(offsets)]; off < len(disk) {
			copy(disk[off:], superblock)
		}
		info, err := Probe(bytes.NewReader(disk), size.Bytes(len(disk)))
		if err != nil {
			t.Fatal(err)
		}
		if info.Size < 0 || info.Kind == None && info != (Info{}) {
			t.Fatalf("%+v", info)
		}
	})
}
