package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
)

// qcow2Kinds are the qcow2 images a site may have, as qemu-img options.
var qcow2Kinds = []struct{ name, options string }{
	{"v2", "-o compat=0.10"},
	{"v2 zlib", "-c -o compat=0.10"},
	{"v3", ""},
	{"zlib", "-c"},
	{"zstd", "-c -o compression_type=zstd"},
	{"512 byte clusters", "-c -o cluster_size=512"},
	{"1 KiB clusters", "-c -o cluster_size=1k"},
	{"4 KiB clusters", "-o cluster_size=4k"},
	{"16 KiB clusters", "-c -o cluster_size=16k,compression_type=zstd"},
	{"256 KiB clusters", "-o cluster_size=256k"},
	{"2 MiB clusters", "-c -o cluster_size=2M"},
	{"extended L2", "-o extended_l2=on,cluster_size=128k"},
	{"extended L2 zstd", "-c -o extended_l2=on,compression_type=zstd"},
	{"lazy refcounts", "-o lazy_refcounts=on"},
	{"preallocated", "-o preallocation=metadata"},
}

// With NOMOUNT the disk holds exactly the image's bytes, wherever the disk held
// something else before, and its last MiB is zero where the image ends earlier.
func TestNoMountBytes(t *testing.T) {
	need.Tools(t, "qemu-img", "cmp")
	raw := patchyImage(t)
	for _, kind := range qcow2Kinds {
		t.Run(kind.name, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "image.qcow2")
			shell(t, `qemu-img convert -f raw -O qcow2 $3 "$1" "$2"`, raw, image, kind.options)
			checkBytes(t, image, raw)
		})
	}
	t.Run("raw", func(t *testing.T) { checkBytes(t, raw, raw) })
	t.Run("raw that begins like qcow2", func(t *testing.T) {
		image := filepath.Join(t.TempDir(), "image.raw")
		shell(t, `qemu-img create -q -f qcow2 -b /etc/passwd -F raw "$1" 64M; truncate -s 64M "$1"`, image)
		checkBytes(t, image, image)
	})
}

// patchyImage is a raw image of data, zeros that are stored, and holes, in
// pieces of all sizes, of a length that no cluster size divides.
func patchyImage(t *testing.T) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image.raw")
	shell(t, `truncate -s $(((64 << 20) + 512 * 7)) "$1"
		for at in 0 1 7 100 101 4095 8000 20000 20001 70000 100000 131078; do
			head -c $((at % 9 * 40000 + 512)) /dev/urandom | dd of="$1" bs=512 seek=$at conv=notrunc status=none
		done
		head -c 3000000 /dev/zero | dd of="$1" bs=512 seek=50000 conv=notrunc status=none
		truncate -s $(((64 << 20) + 512 * 7)) "$1"`, image)
	return image
}

func checkBytes(t *testing.T, image, raw string) {
	t.Helper()
	s := newSite(t, imageSettings(image, "NOMOUNT=yes"))
	info, err := os.Stat(raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, more := range []int64{0, 20 << 20} {
		disk := newDisk(t, 90)
		if err := os.Truncate(disk, info.Size()+more); err != nil {
			t.Fatal(err)
		}
		s.create(t, instance(disk))
		tool(t, "cmp", "-n", itoa(int(info.Size())), raw, disk)
		if more > 0 {
			shell(t, `cmp -n $((1 << 20)) -i "$(($(stat -c %s "$1") - (1 << 20))):0" "$1" /dev/zero`, disk)
		}
	}
}

func TestImageLargerThanDisk(t *testing.T) {
	image := patchyImage(t)
	s := newSite(t, imageSettings(image))
	disk := newDisk(t, 60)
	s.refuse(t, instance(disk), 4, "64 MiB", "60 MiB")
	untouched(t, disk)
}

// untouched wants a disk of newDisk to be as it was made.
func untouched(t *testing.T, disk string) {
	t.Helper()
	info, err := os.Stat(disk)
	if err != nil {
		t.Fatal(err)
	}
	tool(t, "cmp", disk, newDisk(t, int(info.Size()>>20)))
}

// empty wants a disk to show no system: no table, no boot sector, nothing that
// a tool would recognise.
func empty(t *testing.T, disk string) {
	t.Helper()
	shell(t, `cmp -n $((1 << 20)) "$1" /dev/zero
		cmp -n $((1 << 20)) -i "$(($(stat -c %s "$1") - (1 << 20))):0" "$1" /dev/zero`, disk)
	if out := tool(t, "bash", "-c", `blkid -p "$1" || true`, "-", disk); strings.TrimSpace(out) != "" {
		t.Errorf("blkid sees something on a disk that should show nothing: %s", out)
	}
}

// An image that turns out to be broken while it is read leaves a disk that
// shows neither the old system nor the new.
func TestBrokenImage(t *testing.T) {
	need.Tools(t, "qemu-img")
	image := filepath.Join(t.TempDir(), "image.qcow2")
	// Text, since data that does not compress is stored as it is, and qcow2 has
	// no checksum that would tell of a flipped bit in it.
	shell(t, `seq 1 4000000 > "$1.raw"; truncate -s 64M "$1.raw"; qemu-img convert -c -f raw -O qcow2 "$1.raw" "$1"`, image)
	flip := func(t *testing.T, at int) string {
		broken := filepath.Join(t.TempDir(), "broken.qcow2")
		shell(t, `cp "$1" "$2"; printf '\377\377\377\377\377\377\377\377' | dd of="$2" bs=1 seek="$3" conv=notrunc status=none`, image, broken, itoa(at))
		return broken
	}
	info, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, "")
	for _, at := range []int64{info.Size() / 3, info.Size() / 2, info.Size() * 2 / 3} {
		s.write(t, s.conf("../../default/ganeti-instance-image"), imageSettings(flip(t, int(at)), "NOMOUNT=yes"), 0o644)
		disk := newDisk(t, 90)
		s.refuse(t, instance(disk), 3, "cannot")
		empty(t, disk)
	}
	s.write(t, s.conf("../../default/ganeti-instance-image"), imageSettings(flip(t, 0), "IMAGE_TYPE=qcow2"), 0o644)
	disk := newDisk(t, 90)
	s.refuse(t, instance(disk), 3, "qcow2")
	untouched(t, disk)
}

func TestHostileImagesAreRefusedUntouched(t *testing.T) {
	need.Tools(t, "qemu-img")
	cases := []struct{ name, make, want string }{
		{"backing file", `qemu-img create -q -f qcow2 -b /etc/passwd -F raw "$1" 64M`, "backing file"},
		{"data file", `qemu-img create -q -f qcow2 -o data_file="$1.data",data_file_raw=on "$1" 64M`, "external file"},
		{"encrypted", `qemu-img create -q -f qcow2 --object secret,id=s,data=x -o encrypt.format=aes,encrypt.key-secret=s "$1" 64M`, "encrypt"},
		{"cut short", `qemu-img convert -f raw -O qcow2 "$2" "$1"; truncate -s 1M "$1"`, "behind the end"},
		{"vmdk", `qemu-img create -q -f vmdk "$1" 64M`, "vmdk"},
		{"directory", `mkdir "$1"`, "regular file"},
	}
	raw := patchyImage(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "image.img")
			shell(t, c.make, image, raw)
			s := newSite(t, imageSettings(image))
			disk := newDisk(t, 90)
			o := s.run(t, "create", instance(disk))
			checkRefusal(t, o, 3)
			if !strings.Contains(strings.ToLower(o.last()), c.want) {
				t.Errorf("the last line does not say %q: %s", c.want, o.last())
			}
			untouched(t, disk)
		})
	}
}
