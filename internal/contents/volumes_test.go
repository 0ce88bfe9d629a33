package contents

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/lvm"
	"ganeti-instance-image/internal/size"
)

// lvmRun runs lvm, which sees one device and no device mapper.
func lvmRun(t testing.TB, dev string, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	config := fmt.Sprintf("devices{use_devicesfile=0 hints=none filter=[\"a|^%s$|\",\"r|.*|\"]} backup{backup=0 archive=0} "+
		"global{locking_dir=\"%s\" notify_dbus=0 use_lvmpolld=0} activation{udev_sync=0 monitoring=0}", dev, dir)
	return sh(t, `export LVM_SYSTEM_DIR="$1" LVM_SUPPRESS_FD_WARNINGS=1; config=$2; command=$3; shift 3
lvm "$command" --driverloaded n --config "$config" "$@"`, append([]string{dir, config}, args...)...)
}

// allotted is a stretch of the disk that lvm says is of a volume.
type allotted struct {
	volume  string
	logical size.Bytes
	place
}

// allotments asks lvm; those of a volume are in the order of the volume.
func allotments(t testing.TB, dev string, pv size.Bytes) (list []allotted) {
	t.Helper()
	var start, extent, first, count, logical size.Bytes
	fmt.Sscan(lvmRun(t, dev, "pvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "pe_start,vg_extent_size"), &start, &extent)
	for row := range strings.Lines(lvmRun(t, dev, "pvs", "--segments", "--noheadings", "-O", "lv_name,seg_start_pe", "-o", "pvseg_start,pvseg_size,seg_start_pe,lv_name")) {
		var name string
		if n, _ := fmt.Sscan(row, &first, &count, &logical, &name); n == 4 {
			list = append(list, allotted{strings.Trim(name, "[]"), logical * extent, place{pv + start + first*extent, count * extent}})
		}
	}
	return list
}

// through runs a script on a logical volume as a device, which is put together
// in a file, and if it is to be kept, taken apart again.
func through(t testing.TB, path string, list []allotted, volume, script string, keep bool) string {
	t.Helper()
	file, end := filepath.Join(t.TempDir(), "volume"), size.Bytes(0)
	dd := func(from, to string, a allotted, skip, seek size.Bytes) {
		sh(t, `dd if="$1" of="$2" skip="$3" seek="$4" count="$5" bs=64K conv=notrunc,sparse status=none`,
			from, to, fmt.Sprint(int64(skip/(64*size.KiB))), fmt.Sprint(int64(seek/(64*size.KiB))), fmt.Sprint(int64(a.length/(64*size.KiB))))
	}
	for _, a := range list {
		if a.volume == volume {
			dd(path, file, a, a.start, a.logical)
			end += a.length
		}
	}
	out := on(t, file, 0, end, script)
	for _, a := range list {
		if a.volume == volume && keep {
			dd(file, path, a, a.logical, a.start)
		}
	}
	return out
}

// TestVolumes has volumes in one piece, in several, and in several backwards.
func TestVolumes(t *testing.T) {
	machine(t, append(lvm.Tools(), "mkswap")...)
	const length = 500 * size.MiB
	path := newDisk(t, length, 512, "label: dos\nsize=10M\ntype=8e\n")
	pv := places(t, path, length, 512)[2]
	dev := attach(t, path, pv.start, pv.length)
	defer detach(t, dev)
	for _, command := range []string{
		"pvcreate -y DEV", "vgcreate -y -s 1m vg0 DEV", "lvcreate -l 60 -n root vg0", "lvcreate -l 20 -n swap vg0", "lvcreate -l 16 -n gone vg0",
		"lvcreate -l 20 -n home vg0", "lvremove -y vg0/gone", "lvextend -l +40 vg0/root", "lvcreate -l 20 -n back vg0 DEV:400-419",
		"lvextend -l +25 vg0/back DEV:350-374", "lvextend -l +5 vg0/back DEV:300-304", "lvcreate -l 3 -n raw vg0",
	} {
		argv := strings.Fields(strings.ReplaceAll(command, "DEV", dev))
		if argv[0] == "lvcreate" {
			argv = append(argv, "-y", "-an", "-Zn", "-Wn")
		}
		lvmRun(t, dev, argv...)
	}
	list := allotments(t, dev, pv.start)
	files := map[string]string{}
	made := map[string]content{"root": ext4, "home": extOf("ext2", "-t ext2"), "back": extOf("ext4", "-t ext4 -b 1024"), "swap": swap, "raw": noise}
	for volume, c := range made {
		files[volume] = through(t, path, list, volume, c.script(), true)
	}
	d, copied := copyUsed(t, path)
	sameOutside(t, path, copied, d)
	onCopy := attach(t, copied, pv.start, pv.length)
	defer detach(t, onCopy)
	lvmRun(t, onCopy, "vgck", "vg0")
	if again := allotments(t, onCopy, pv.start); !slices.Equal(again, list) {
		t.Errorf("the copy has %+v, not %+v", again, list)
	}
	for _, part := range d.Parts[2:] {
		c := made[part.Volume]
		if part.Kind != c.kind || part.Whole != c.whole || part.Number != 2 || part.Length <= 0 {
			t.Errorf("%+v", part)
		}
		if c.check != "" && through(t, copied, list, part.Volume, c.judge(), false) != files[part.Volume] {
			t.Errorf("the files of %s are not as they were", part.Volume)
		}
		delete(made, part.Volume)
	}
	if len(made) > 0 || d.Parts[1].Kind != filesystem.LVM2 || d.Parts[1].Volume != "" || d.Parts[1].Used > 200*size.MiB {
		t.Errorf("%+v, without %v", d.Parts, made)
	}
}

// TestHiddenVolumes: a group with volumes of every kind, which lvm wrote; but for
// the extents that lvm says are free, all is kept.
func TestHiddenVolumes(t *testing.T) {
	machine(t, lvm.Tools()...)
	const length = 8 * size.MiB
	path := newDisk(t, length, 512, "")
	kinds, err := filepath.Abs("../lvm/testdata/kinds.vg")
	if err != nil {
		t.Fatal(err)
	}
	sh(t, `head -c 8M /dev/urandom > "$1"`, path)
	dev := attach(t, path, 0, length)
	defer detach(t, dev)
	lvmRun(t, dev, "pvcreate", "-y", "--uuid", "PPPPPP-aaaa-bbbb-cccc-dddd-eeee-ffffff", "--norestorefile", dev)
	lvmRun(t, dev, "vgcfgrestore", "-y", "--force", "-f", kinds, "kinds")
	d, copied := copyUsed(t, path)
	list := allotments(t, dev, 0)
	kept := size.Bytes(0)
	for _, a := range list {
		kept += a.length
		sh(t, `cmp -i "$1" -n "$2" "$3" "$4"`, fmt.Sprint(int64(a.start)), fmt.Sprint(int64(a.length)), path, copied)
	}
	const outside = length - 112*64*size.KiB
	if total := sumOf(t, d); len(list) < 20 || total != outside+kept {
		t.Errorf("%s are kept, lvm says %s: %+v", total, outside+kept, d)
	}
	for _, part := range d.Parts[1:] {
		if !part.Whole || part.Why == "" || part.Volume == "" {
			t.Errorf("%+v", part)
		}
	}
}
