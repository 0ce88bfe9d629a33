package mount

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/undo"
)

// bytesDisk is a disk in memory.
type bytesDisk struct{ *bytes.Reader }

func (bytesDisk) Path() string       { return "memory" }
func (d bytesDisk) Size() size.Bytes { return size.Bytes(d.Reader.Size()) }

func TestUnseen(t *testing.T) {
	const start, length = 1 << 20, 1 << 20
	table := &layout.Table{Kind: layout.GPT, SectorSize: 512, Partitions: []layout.Partition{{Number: 2, Start: start, Length: length}}}
	mark := func(off int) func([]byte) {
		return func(b []byte) { copy(b[off:], filesystem.RAIDMark) }
	}
	luks := func(b []byte) { copy(b, "LUKS\xba\xbe\x00\x01") }
	for name, c := range map[string]struct {
		write func([]byte)
		table *layout.Table
		want  string
	}{
		"blank": {func([]byte) {}, table, ""}, "LUKS": {luks, table, "crypto_LUKS on partition 2"},
		"boot code": {func(b []byte) { copy(b, "\xeb\x63\x90GRUB") }, table, ""},
		"RAID 1.1":  {mark(0), table, "a member of a RAID on partition 2"}, "RAID 1.2": {mark(4096), table, "a member of a RAID on partition 2"},
		"RAID 1.0": {mark(length - 8192), table, "a member of a RAID on partition 2"}, "RAID 0.90": {mark(length - 65536), table, "a member of a RAID on partition 2"},
		"a whole disk": {func(b []byte) {}, nil, "crypto_LUKS"},
	} {
		b := make([]byte, 3<<20)
		c.write(b[start : start+length])
		if c.table == nil {
			luks(b)
		}
		got, err := Unseen(bytesDisk{bytes.NewReader(b)}, c.table)
		if err != nil || strings.Join(got, "|") != c.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// A logical volume that is not one stretch of the disk, and a group that is not on
// this disk alone.
func TestUnseenVolumes(t *testing.T) {
	need.Root(t)
	need.Tools(t, "lvm", "losetup", "truncate")
	dir, disks := t.TempDir(), []string{}
	sh := func(argv ...string) string {
		t.Helper()
		result, err := run.Cmd{What: argv[0], Argv: argv}.Run(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(result.Stdout))
	}
	for _, name := range []string{"a", "b"} {
		file := filepath.Join(dir, name)
		sh("truncate", "-s", "32M", file)
		loop := sh("losetup", "--find", "--show", file)
		t.Cleanup(func() { sh("losetup", "--detach", loop) })
		disks = append(disks, loop)
	}
	lvm := func(args ...string) {
		t.Helper()
		sh(append([]string{"env", "LVM_SYSTEM_DIR=" + dir, "LVM_SUPPRESS_FD_WARNINGS=1", "lvm", args[0], "-y", "--driverloaded", "n", "--config",
			fmt.Sprintf(`devices{use_devicesfile=0 hints=none filter=["a|^%s$|","a|^%s$|","r|.*|"]} backup{backup=0 archive=0} global{locking_dir="%s" notify_dbus=0 use_lvmpolld=0} activation{udev_sync=0 monitoring=0}`, disks[0], disks[1], dir)}, args[1:]...)...)
	}
	want := func(words string) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, "a"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := Unseen(bytesDisk{bytes.NewReader(b)}, nil)
		if err != nil || (len(got) == 0) != (words == "") || !strings.Contains(strings.Join(got, "|"), words) {
			t.Errorf("%q, %v, want %q", got, err, words)
		}
	}
	lvm("pvcreate", disks[0], disks[1])
	lvm("vgcreate", "vg", disks[0])
	for _, name := range []string{"var", "swap"} {
		lvm("lvcreate", "-an", "-Zn", "-Wn", "-l", "1", "-n", name, "vg")
	}
	want("")
	lvm("lvextend", "-l", "+1", "vg/var")
	want("the logical volume vg/var (it is in several pieces)")
	lvm("vgextend", "vg", disks[1])
	want("LVM (")
}

// What fstab names and is not found counts where it may be in what cannot be seen.
func TestLeft(t *testing.T) {
	tr := tree()
	tr.disk = bytesDisk{bytes.NewReader(make([]byte, 1<<20))}
	tr.left, tr.elsewhere = []string{"/var"}, []string{"/srv"}
	if got := tr.Left(); !slices.Equal(got, []string{"/var"}) {
		t.Errorf("got %q", got)
	}
	tr.parts = append(tr.parts, &Part{Info: filesystem.Info{Kind: filesystem.LUKS}})
	if got := tr.Left(); !slices.Equal(got, []string{"/var", "/srv"}) {
		t.Errorf("got %q", got)
	}
}

// What could not be written down is told when it is unmounted.
func TestKeepTellsOfLostWrites(t *testing.T) {
	need.Root(t)
	need.Tools(t, "mount", "umount", "mkfs.ext4", "truncate")
	sh := func(argv ...string) {
		t.Helper()
		if _, err := (run.Cmd{What: argv[0], Argv: argv}).Run(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	room, at := t.TempDir(), t.TempDir()
	sh("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", room)
	defer sh("umount", room)
	file := filepath.Join(room, "disk")
	sh("truncate", "-s", "64M", file)
	sh("mkfs.ext4", "-q", "-O", "^has_journal", file)
	sh("mount", "-o", "loop", file, at)
	var steps undo.Stack
	(&Tree{steps: &steps}).keep(at)
	if err := os.WriteFile(filepath.Join(at, "x"), bytes.Repeat([]byte("x"), 16<<20), 0o600); err != nil {
		t.Error(err)
	}
	var err error
	steps.Unwind(&err)
	if err == nil || !strings.Contains(err.Error(), "cannot store what was written") {
		t.Errorf("got %v", err)
	}
}
