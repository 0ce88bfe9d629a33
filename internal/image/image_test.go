package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

func writeFile(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// openImage opens what can be read anywhere.
func openImage(path, imageType string) (Image, error) {
	src, err := Open(path, imageType)
	if err != nil {
		return nil, err
	}
	img, ok := src.(Image)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%s is no Image but a %T", path, src), src.Close())
	}
	return img, nil
}

// wantRefusal opens an image that must be refused with a text, in one line.
func wantRefusal(t *testing.T, path, imageType, text string) {
	t.Helper()
	img, err := Open(path, imageType)
	if err == nil {
		img.Close()
		t.Fatalf("accepted, want %q", text)
	}
	if !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), path) {
		t.Errorf("got %q, want the path and %q in one line", err, text)
	}
}

// Images that qemu-img makes and that are refused.
func TestRefusesImagesByQEMU(t *testing.T) {
	need.Tools(t, "qemu-img")
	cases := []struct {
		name, format string
		argv         []string
		imageType    string
		want         string
	}{
		{"backing file", "qcow2", []string{"-b", "base.raw", "-F", "raw"}, TypeQCOW2, "has a backing file"},
		{"data file", "qcow2", []string{"-o", "data_file=data.raw"}, TypeQCOW2, "data is in an external file"},
		{"aes inside", "qcow2", []string{"--object", "secret,id=s,data=x", "-o", "encrypt.format=aes,encrypt.key-secret=s"}, TypeQEMU, "is encrypted (AES)"},
		{"vmdk", "vmdk", nil, TypeQEMU, "a VMDK image: convert it with"},
		{"vmdk for qcow2", "vmdk", nil, TypeQCOW2, "a VMDK image: convert it with"},
		{"vmdk text", "vmdk", []string{"-o", "subformat=monolithicFlat"}, TypeQEMU, "a VMDK descriptor"},
		{"vdi", "vdi", nil, TypeQEMU, "a VDI image"},
		{"vhd", "vpc", nil, TypeQEMU, "a VHD image"},
		{"vhd fixed", "vpc", []string{"-o", "subformat=fixed"}, TypeQEMU, "a VHD image"},
		{"vhdx", "vhdx", nil, TypeQEMU, "a VHDX image"},
		{"qed", "qed", nil, TypeQEMU, "a QED image"},
		{"parallels", "parallels", nil, TypeQEMU, "a Parallels image"},
		{"qcow", "qcow", nil, TypeQEMU, "a qcow image of version 1"},
		{"raw for qcow2", "raw", nil, TypeQCOW2, "not a qcow2 image"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(dir+"/base.raw", make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "image")
			cmd := exec.Command("qemu-img", append(append([]string{"create", "-q", "-f", c.format}, c.argv...), path, "1M")...)
			cmd.Dir = dir
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			wantRefusal(t, path, c.imageType, c.want)
			if strings.HasPrefix(c.format, "qcow") {
				wantRefusedStream(t, path, c.want)
			}
		})
	}
}

func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// l1At and l2At are where the tables of the image are that the next test
// changes; its only data cluster follows the L2 table.
const (
	l1At   = 3 << 16
	l2At   = 4 << 16
	dataAt = 5 << 16
)

// Images with bytes changed in a way that QEMU does not write.
func TestRefusesDamage(t *testing.T) {
	need.Tools(t, "qemu-img", "qemu-io")
	cases := []struct {
		name string
		argv []string // options of qemu-img create
		at   int64
		with []byte
		cut  int64 // the length the file gets, 0 to keep it
		want string
	}{
		{name: "version", at: 4, with: be32(4), want: "qcow2 image of an unknown version"},
		{name: "corrupt", at: 72, with: be64(featureCorrupt), want: "qemu-img check -r all"},
		{name: "feature with a name", at: 72, with: be64(1 << 3), want: "contradict each other"},
		{name: "unknown features", at: 72, with: be64(1<<5 | 1<<63), want: "bit 5, bit 63"},
		{name: "compression type", at: 104, with: []byte{2}, want: "compression type 2"},
		{name: "compression type without its bit", at: 104, with: []byte{1}, want: "contradict each other"},
		{name: "luks inside", at: 32, with: be32(2), want: "is encrypted (LUKS)"},
		{name: "cluster bits 8", at: 20, with: be32(8), want: "2^8 bytes"},
		{name: "cluster bits 22", at: 20, with: be32(22), want: "2^22 bytes"},
		{name: "cluster bits 2^31", at: 20, with: be32(1 << 31), want: "2^2147483648 bytes"},
		{name: "header length 0", at: 100, with: be32(0), want: "header length of 0 bytes"},
		{name: "header length 105", at: 100, with: be32(105), want: "header length of 105 bytes"},
		{name: "header length behind the cluster", at: 100, with: be32(1<<16 + 8), want: "header length of 65544 bytes"},
		{name: "no size", at: 24, with: be64(511), want: "disk is empty"},
		{name: "size of 2^63", at: 24, with: be64(1 << 63), want: "larger than 64 TiB"},
		{name: "size larger than the L1 table maps", at: 24, with: be64(1 << 40), want: "L1 table has 1 entries"},
		{name: "large L1 table", at: 36, with: be32(1<<22 + 1), want: "larger than 32 MiB"},
		{name: "largest L1 table", at: 36, with: be32(1<<32 - 1), want: "larger than 32 MiB"},
		{name: "L1 table behind the end", at: 36, with: be32(1 << 22), want: "cut off: its L1 table"},
		{name: "no L1 table", at: 40, with: be64(0), want: "not at the start of a cluster"},
		{name: "L1 table not aligned", at: 40, with: be64(l1At + 512), want: "not at the start of a cluster"},
		{name: "L1 table far away", at: 40, with: be64(1 << 62), want: "cut off: its L1 table"},
		{name: "L2 table not aligned", at: l1At, with: be64(l2At + 512), want: "entry 0 of its L1 table"},
		{name: "L2 table far away", at: l1At, with: be64(1 << 50), want: "behind the end of the file"},
		{name: "L1 reserved bits", at: l1At, with: be64(1<<62 | l2At), want: "reserved bits"},
		{name: "cluster not aligned", at: l2At, with: be64(dataAt + 512), want: "entry for the disk's offset 0"},
		{name: "cluster far away", at: l2At, with: be64(1 << 50), want: "behind the end of the file"},
		{name: "L2 reserved bits", at: l2At + 16, with: be64(dataAt | 2), want: "offset 131072 (0x50002) has reserved bits"},
		{name: "L2 reserved high bits", at: l2At, with: be64(dataAt | 1<<60), want: "reserved bits"},
		{name: "zero cluster in version 2", argv: []string{"-o", "compat=0.10"}, at: l2At, with: be64(1), want: "reserved bits"},
		{name: "compressed far away", at: l2At, with: be64(1<<62 | 1<<40), want: "behind the end of the file"},
		{name: "compressed nowhere", at: l2At, with: be64(1 << 62), want: "not the offset of a cluster"},
		{name: "compressed and copied", at: l2At, with: be64(1<<63 | 1<<62 | dataAt), want: "reserved bits"},
		{name: "both allocated and zero", argv: []string{"-o", "extended_l2=on"}, at: l2At, with: append(be64(1<<63|dataAt), be64(1<<32|1)...), want: "contradict each other"},
		{name: "allocated nowhere", argv: []string{"-o", "extended_l2=on"}, at: l2At, with: append(be64(0), be64(1)...), want: "contradict each other"},
		{name: "zero flag in extended L2", argv: []string{"-o", "extended_l2=on"}, at: l2At, with: be64(dataAt | 1), want: "reserved bits"},
		{name: "extended L2 with small clusters", argv: []string{"-o", "cluster_size=8k"}, at: 72, with: be64(featureExtendedL2), want: "subclusters in clusters of 8192"},
		{name: "cut in the data", cut: dataAt + 1000, want: "behind the end of the file"},
		{name: "cut in the last byte", cut: dataAt + 1<<16 - 1, want: "behind the end of the file"},
		{name: "cut before the data", cut: dataAt, want: "behind the end of the file"},
		{name: "cut in the L2 table", cut: dataAt - 1, want: "entry 0 of its L1 table"},
		{name: "cut in the L1 table", cut: l1At + 7, want: "cut off: its L1 table"},
		{name: "cut in the header", cut: 100, want: "header is cut off"},
		{name: "cut in the magic", cut: 5, want: "qcow2 image of an unknown version"},
	}
	undamaged := map[string][]byte{}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			options := strings.Join(c.argv, " ")
			if undamaged[options] == nil {
				undamaged[options] = imageToDamage(t, c.argv)
			}
			path := writeFile(t, "image.qcow2", undamaged[options])
			patch(t, path, c.at, c.with...)
			if c.cut > 0 {
				if err := os.Truncate(path, c.cut); err != nil {
					t.Fatal(err)
				}
			}
			wantRefusal(t, path, TypeQCOW2, c.want)
			wantRefusedStream(t, path, c.want)
		})
	}
}

// imageToDamage is an image by qemu-img, which is accepted as it is.
func imageToDamage(t *testing.T, argv []string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.qcow2")
	tool(t, append(append([]string{"qemu-img", "create", "-q", "-f", "qcow2"}, argv...), path, "1M")...)
	qemuIO("write -P 1 0 64k")(t, path)
	img, err := openImage(path, TypeQCOW2)
	if err != nil {
		t.Fatalf("before the change: %v", err)
	}
	img.Close()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A name for an unknown feature is shown, quoted, when the image has one.
func TestUnknownFeatureByName(t *testing.T) {
	need.Tools(t, "qemu-img")
	path := filepath.Join(t.TempDir(), "image.qcow2")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
	table := append(be32(featureNames), be32(featureNameLength)...)
	table = append(table, 0, 9)
	table = append(table, "time travel\n"...)
	patch(t, path, 112, append(table, make([]byte, 60)...)...)
	patch(t, path, 72, be64(1<<9)...)
	wantRefusal(t, path, TypeQCOW2, `bit 9 ("time travel\n")`)
}

// Tables that many entries share cost no more than their length in the file.
func TestSharedTables(t *testing.T) {
	need.Tools(t, "qemu-img", "qemu-io")
	path := filepath.Join(t.TempDir(), "image.qcow2")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "7T")
	qemuIO("write -P 1 0 2M")(t, path)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, 48)
	if _, err := f.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	l1 := int64(binary.BigEndian.Uint64(head[40:]))
	entry := make([]byte, 8)
	if _, err := f.ReadAt(entry, l1); err != nil {
		t.Fatal(err)
	}
	entries := int(7 * size.TiB / (2 * size.MiB))
	if _, err := f.WriteAt(bytes.Repeat(entry, entries), l1); err != nil {
		t.Fatal(err)
	}
	img, err := openImage(path, TypeQCOW2)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if n := len(img.(*qcow2).distinctTables()); n != 1 {
		t.Errorf("%d tables, want 1", n)
	}
	b := make([]byte, 8192)
	if _, err := img.ReadAt(b, int64(5*size.TiB)); err != nil || b[5000] != 1 {
		t.Errorf("read %d, %v", b[5000], err)
	}
}

// oldTar is a header of a tar that has no magic.
func oldTar() []byte {
	b := make([]byte, 10240)
	copy(b, "etc/hostname")
	copy(b[100:], "000644 \x00000000 \x00000000 \x0000000000004 00000000000 ")
	sum := int(8 * ' ')
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func TestRefusesForeignBytes(t *testing.T) {
	long := func(at int, magic string) []byte {
		b := make([]byte, 64<<10)
		copy(b[at:], magic)
		return b
	}
	cases := []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "the file is empty"},
		{"iso", long(0x8001, "CD001"), "an ISO 9660 image"},
		{"hybrid iso", append(append(append([]byte{}, long(510, "\x55\xaa")[:0x8001]...), "CD001"...), make([]byte, 2048)...), "an ISO 9660 image"},
		{"gzip", long(0, "\x1f\x8b\x08\x00"), "its gzip data is damaged (invalid code"},
		{"xz", long(0, "\xfd7zXZ\x00"), "its xz data cannot be used: there is no end of xz data where the file ends"},
		{"zstd", long(0, "\x28\xb5\x2f\xfd"), "more than 4096 blocks without content follow each other"},
		{"bzip2", long(0, "BZh91AY&SY"), "its bzip2 data is damaged ("},
		{"lz4", long(0, "\x04\x22\x4d\x18"), "its lz4 data is damaged ("},
		{"tar", long(257, "ustar\x0000"), "a tar archive"},
		{"old tar", oldTar(), "a tar archive: an archive is no disk image: use the image type tarball"},
		{"lzma", long(0, "\x5d\x00\x00\x80\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00"), "compressed with lzma: this program does not read that: unpack it with `unlzma`"},
		{"lzma with a length", long(0, "\x5d\x00\x00\xc0\x00\x00\x00\x00\x40\x01\x00\x00\x00\x00"), "compressed with lzma"},
		{"lzip", long(0, "LZIP\x01"), "compressed with lzip"},
		{"lzop", long(0, "\x89LZO\x00\r\n\x1a\n"), "compressed with lzop"},
		{"lrzip", long(0, "LRZI\x00"), "compressed with lrzip"},
		{"compress", long(0, "\x1f\x9d\x90"), "compressed with compress"},
		{"legacy lz4", long(0, "\x02\x21\x4c\x18"), "in its legacy format: this program does not read that: unpack it with `lz4 -d`"},
		{"luks", long(0, "LUKS\xba\xbe\x00\x02"), "a LUKS container: encrypted images are not supported"},
		{"udf", long(0x8000, "\x00BEA01\x01"), "a UDF image: an installer"},
		{"sectors of a CD", long(0, "\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00"), "an image of a CD's raw sectors"},
		{"cloop", long(0, "#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0\n"), "a cloop image"},
		{"vmdk of esx", long(0, "COWD\x01"), "a VMDK image (ESX)"},
		{"vmdk se sparse", long(0, "\xbe\xba\xfe\xca\x00\x00\x00\x00"), "a VMDK image (SE sparse)"},
		{"bochs", long(0, "Bochs Virtual HD Image"), "a Bochs image"},
		{"asif", long(0, "shdw\x00\x00\x00\x01"), "an ASIF image"},
		{"dmg", append(make([]byte, 4096), long(0, "koly")[:512]...), "a DMG image"},
		{"encrypted dmg", long(0, "encrcdsa"), "an encrypted DMG image"},
		{"sparse of macos", long(0, "sprs\x00\x00\x00\x03"), "a macOS sparse image"},
		{"sparse of android", long(0, "\x3a\xff\x26\xed\x01\x00"), "an Android sparse image: convert it with `simg2img`"},
		{"ewf", long(0, "EVF\x09\x0d\x0a\xff\x00"), "an EWF image"},
		{"ewf 2", long(0, "EVF2\x0d\x0a\x81\x00"), "an EWF image (EnCase 7)"},
		{"logical ewf", long(0, "LVF\x09\x0d\x0a\xff\x00"), "an EWF image (EnCase, logical)"},
		{"aff", long(0, "AFF10\r\n\x00"), "an AFF image"},
		{"vma", long(0, "VMA\x00\x00\x00\x00\x01"), "a VMA archive of Proxmox"},
		{"rbd", long(0, "rbd image v2\n"), "an RBD image with its header"},
		{"rbd diff", long(0, "rbd diff v1\n"), "a difference of RBD images"},
		{"wim", long(0, "MSWIM\x00\x00\x00"), "a WIM image"},
		{"partclone", long(0, "partclone-image\x00"), "a partclone image"},
		{"partimage", long(0, "PaRtImAgE-VoLuMe"), "a partimage image"},
		{"zfs send", long(8, "\xac\xcb\xba\xf5\x02\x00\x00\x00"), "a ZFS send stream"},
		{"btrfs send", long(0, "btrfs-stream\x00"), "a btrfs send stream"},
		{"snappy", long(0, "\xff\x06\x00\x00sNaPpY"), "compressed with snappy"},
		{"7z", long(0, "7z\xbc\xaf\x27\x1c"), "a 7z archive"},
		{"rar", long(0, "Rar!\x1a\x07\x01\x00"), "a RAR archive"},
		{"cabinet", long(0, "MSCF\x00\x00\x00\x00"), "a cabinet archive"},
		{"cpio", long(0, "070701"+strings.Repeat("0", 104)+".\x00"), "a cpio archive"},
		{"old cpio", long(0, "070707"+strings.Repeat("0", 70)+".\x00"), "a cpio archive"},
		{"deb", long(0, "!<arch>\ndebian-binary"), "an ar archive or a Debian package"},
		{"rpm", long(0, "\xed\xab\xee\xdb\x03\x00"), "an RPM package"},
		{"u-boot", append(append([]byte("\x27\x05\x19\x56"), make([]byte, 28)...), long(0, "Linux-6.1")...), "a U-Boot image"},
		{"kernel", append(long(0x1fe, "\x55\xaa\xeb\x66HdrS")[:1024], make([]byte, 9000)...), "a Linux kernel"},
		{"elf", long(0, "\x7fELF\x02\x01\x01"), "a program (ELF)"},
		{"program for windows", append(append([]byte("MZ"), make([]byte, 58)...), long(0, "\x40\x00\x00\x00PE\x00\x00")...), "a program for Windows or UEFI"},
		{"script", long(0, "#! /usr/bin/perl -w\n"), "a script"},
		{"xml", []byte("<?xml version=\"1.0\"?><Error/>"), "an XML text"},
		{"json", []byte("{\"message\": \"not found\"}\n"), "a text: it is no disk image: was an error page"},
		{"zip", long(0, "PK\x03\x04"), "a zip archive"},
		{"web page", []byte("\n <!DOCTYPE HTML><title>404"), "a web page"},
		{"text of a vmdk", []byte("# any comment\n\n# and another\nversion=1\nRW 8 FLAT \"/etc/shadow\" 0\n"), "a VMDK descriptor"},
		{"footer of a vhd", append(make([]byte, 4096), long(0, "conectix")[:512]...), "a VHD image"},
		{"footer of an old vhd", append(make([]byte, 4096), long(0, "conectix")[:511]...), "a VHD image"},
		{"qcow2 without anything", []byte("QFI\xfb\x00\x00\x00\x03"), "header is cut off"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			wantRefusal(t, writeFile(t, "image.img", c.data), TypeQEMU, c.want)
		})
	}
}

func TestRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{dir: "not a regular file", dir + "/fifo": "not a regular file", "/dev/zero": "not a regular file", dir + "/none": "no such file"} {
		wantRefusal(t, path, TypeRaw, want)
	}
	wantRefusal(t, writeFile(t, "image", []byte("x")), "vmdk", `image type "vmdk" is not one of`)
}

// Raw disks that begin, in all innocence, with something, and those that some
// gates refuse.
func TestAcceptsRawDisks(t *testing.T) {
	boot := make([]byte, 1<<20)
	copy(boot, "\xeb\x63\x90")
	boot[510], boot[511] = 0x55, 0xaa
	fat := append([]byte("\xeb\x3c\x90mkfs.fat"), make([]byte, 1<<20-11)...)
	mz := append([]byte("MZ\x90\x00\x03"), make([]byte, 1<<20-5)...)
	for name, data := range map[string][]byte{"fat": fat, "the letters of a program": mz, "zeros": make([]byte, 4096), "boot sector without partitions": boot, "a sector": make([]byte, 512)} {
		img, err := openImage(writeFile(t, "image.img", data), TypeQEMU)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if img.Format() != Raw || int(img.Size()) != len(data) {
			t.Errorf("%s: %s, %d bytes", name, img.Format(), img.Size())
		}
		img.Close()
	}
	for _, magic := range []string{"QFI\xfb\x00\x00\x00\x03", "MSWIM\x00\x00\x00", "KDMV", "LUKS\xba\xbe"} {
		img, err := openImage(writeFile(t, "image.raw", append([]byte(magic), make([]byte, 600)...)), TypeRaw)
		if err != nil {
			t.Errorf("a raw image is raw: %v", err)
			continue
		}
		if img.Format() != Raw {
			t.Errorf("a raw image is raw, not %s", img.Format())
		}
		img.Close()
	}
}

func TestAcceptsFilesystems(t *testing.T) {
	need.Tools(t, "mke2fs", "mkfs.vfat")
	for _, mkfs := range [][]string{{"mke2fs", "-q", "-F", "-t", "ext4"}, {"mkfs.vfat"}} {
		path := writeFile(t, "image.img", make([]byte, 8<<20))
		tool(t, append(mkfs, path)...)
		img, err := openImage(path, TypeQEMU)
		if err != nil {
			t.Fatal(err)
		}
		img.Close()
	}
}

func TestRaw(t *testing.T) {
	for _, n := range []int64{512, 513, 4096, 300_000, 3 << 20} {
		path := filepath.Join(t.TempDir(), "image.raw")
		makeContent(t, path, n)
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		img, err := openImage(path, TypeRaw)
		if err != nil {
			t.Fatal(err)
		}
		defer img.Close()
		want = append(want, make([]byte, (512-n%512)%512)...)
		if int(img.Size()) != len(want) || (len(img.Notes()) > 0) != (n%512 > 0) {
			t.Errorf("%d bytes: size %d, notes %v", n, img.Size(), img.Notes())
		}
		got := make([]byte, len(want))
		if _, err := img.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: other bytes, %v", n, err)
		}
		if m, err := img.ReadAt(got, int64(len(want)-100)); m != 100 || !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %d, %v", m, err)
		}
		compareExtents(t, img, want)
	}
}

// FuzzGate tells formats apart without a panic, and never takes for raw what
// has the magic of qcow2.
func FuzzGate(f *testing.F) {
	f.Add([]byte("QFI\xfb\x00\x00\x00\x02"))
	f.Add([]byte("# Disk DescriptorFile\nversion=1\n"))
	f.Add([]byte("\n\n#\nversion=1"))
	f.Add([]byte("<html>"))
	f.Add([]byte("conectix"))
	f.Add(bytes.Repeat([]byte("CD001"), 9000))
	f.Fuzz(func(t *testing.T, data []byte) {
		kind, err := recognise(bytes.NewReader(data), size.Bytes(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		if kind == nil && bytes.HasPrefix(data, []byte("QFI\xfb")) && len(data) >= 8 {
			t.Error("a qcow2 image was taken for a raw one")
		}
	})
}

// FuzzOpen opens any bytes as qcow2 and reads a few places of what is accepted.
func FuzzOpen(f *testing.F) {
	for _, seed := range fuzzSeeds(f) {
		f.Add(seed)
	}
	path := filepath.Join(f.TempDir(), "image.qcow2")
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<20 {
			return
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		img, err := openImage(path, TypeQCOW2)
		if err != nil {
			return
		}
		defer img.Close()
		if img.Size() <= 0 || img.Size() > maxVirtualSize || img.Size()%sector != 0 {
			t.Fatalf("size %d", img.Size())
		}
		b := make([]byte, 200_000)
		off := size.Bytes(0)
		for range 20 {
			e, err := img.Extent(off)
			if err != nil {
				break
			}
			if e.Offset != off || e.Length <= 0 || off+e.Length > img.Size() {
				t.Fatalf("extent at %d is %+v", off, e)
			}
			if n, err := img.ReadAt(b[:min(int(e.Length), len(b))], int64(off)); err == nil && e.Zero && len(bytes.Trim(b[:n], "\x00")) > 0 {
				t.Fatalf("%+v is not zero", e)
			}
			off += e.Length
		}
	})
}

// fuzzSeeds are small images of several kinds: one made here, and where there
// is qemu-img some of its.
func fuzzSeeds(f *testing.F) [][]byte {
	header := slices.Concat([]byte("QFI\xfb"), be32(3), be64(0), be32(0), be32(9), be64(32<<10), be32(0), be32(1), be64(512), make([]byte, 52), be32(headerV3), make([]byte, 408))
	l1, l2 := append(be64(1<<63|1024), make([]byte, 504)...), append(be64(1<<63|1536), make([]byte, 504)...)
	seeds := [][]byte{slices.Concat(header, l1, l2, bytes.Repeat([]byte{7}, 512))}
	for i, options := range []string{"cluster_size=512", "cluster_size=512,compat=0.10", "cluster_size=16k,extended_l2=on", "cluster_size=512,compression_type=zstd"} {
		raw := filepath.Join(f.TempDir(), "raw")
		makeContent(f, raw, 10_240)
		for _, compress := range [][]string{{}, {"-c"}} {
			path := filepath.Join(f.TempDir(), fmt.Sprintf("%d.qcow2", i))
			argv := append([]string{"convert", "-O", "qcow2", "-o", options}, compress...)
			if exec.Command("qemu-img", append(argv, raw, path)...).Run() != nil {
				continue
			}
			data, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			seeds = append(seeds, data)
		}
	}
	return seeds
}
