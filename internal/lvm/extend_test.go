package lvm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

// machine asks for what all tests with lvm's own tools need.
func machine(t *testing.T, tools ...string) {
	t.Helper()
	t.Parallel() // lvm waits more than it works
	need.Root(t)
	need.Tools(t, append(append(tools, "losetup"), Tools()...)...)
	need.File(t, "/dev/loop-control")
}

func sh(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// judge runs lvm as the test's own hand, apart from the package's way to do it.
func judge(t testing.TB, dev, command string, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	common := []string{"LVM_SYSTEM_DIR=" + dir, "LVM_SUPPRESS_FD_WARNINGS=1", "lvm", command, "--driverloaded", "n",
		"--config", fmt.Sprintf("devices{use_devicesfile=0 hints=none filter=[\"a|^%s$|\",\"r|.*|\"]} backup{backup=0 archive=0} "+
			"global{locking_dir=\"%s\" notify_dbus=0 use_lvmpolld=0} activation{udev_sync=0 monitoring=0}", dev, dir)}
	return sh(t, "env", append(common, args...)...)
}

func loop(t testing.TB, file string, args ...string) string {
	t.Helper()
	dev := sh(t, "losetup", append(args, "-f", "--show", file)...)
	t.Cleanup(func() {
		// Where the test has detached it, the device may be another's by now.
		if backing, _ := os.ReadFile("/sys/block/" + filepath.Base(dev) + "/loop/backing_file"); strings.TrimSpace(string(backing)) == file {
			exec.Command("losetup", "-d", dev).Run()
		}
	})
	return dev
}

func sparse(t testing.TB, n size.Bytes) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	enlarge(t, file, n)
	return file
}

func enlarge(t testing.TB, file string, n size.Bytes) {
	t.Helper()
	if err := os.Truncate(file, int64(n)); err != nil {
		t.Fatal(err)
	}
}

// physical makes a physical volume with group "vg0" and linear volumes, each
// "name extents".
func physical(t testing.TB, dev string, options []string, volumes ...string) {
	t.Helper()
	judge(t, dev, "pvcreate", append(append([]string{"-y"}, options...), dev)...)
	judge(t, dev, "vgcreate", "-y", "vg0", dev)
	for _, v := range volumes {
		name, extents, _ := strings.Cut(v, " ")
		judge(t, dev, "lvcreate", "-y", "-an", "-Zn", "-Wn", "-l", extents, "-n", name, "vg0")
	}
}

func mustRead(t testing.TB, dev string) *Group {
	t.Helper()
	g, _, err := readDevice(dev)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func isSwap(v Volume) bool { return strings.HasPrefix(v.Name, "swap") }

// occupied wants Occupied to tell the areas, which it may have joined, and no more.
func occupied(t testing.TB, g *Group, areas map[[2]size.Bytes]bool) {
	t.Helper()
	list, err := g.Occupied()
	if err != nil {
		t.Fatal(err)
	}
	sum := size.Bytes(0)
	for area := range areas {
		sum += area[1]
		if !slices.ContainsFunc(list, func(o Occupied) bool { return o.Start <= area[0] && area[0]+area[1] <= o.Start+o.Length }) {
			t.Errorf("lvm says %v, Occupied says %+v", area, list)
		}
	}
	for _, o := range list {
		sum -= o.Length
	}
	if sum != 0 || len(list) == 0 && len(areas) > 0 {
		t.Errorf("Occupied says %d bytes less than lvm, %+v", sum, list)
	}
}

// sound lets lvm check the device, and compares what it says with what Read says.
func sound(t testing.TB, dev string) {
	t.Helper()
	g := mustRead(t, dev)
	judge(t, dev, "pvck", dev)
	judge(t, dev, "vgck", g.Name)
	var report struct {
		Report []struct {
			PVSeg []struct{ LV_name, PVSeg_start, PVSeg_size string }
			PV    []map[string]string
			Seg   []map[string]string
		}
	}
	parse := func(command string, args ...string) {
		out := judge(t, dev, command, append(args, "--reportformat", "json", "--units", "b", "--nosuffix")...)
		if err := json.Unmarshal([]byte(out), &report); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
	}
	parse("pvs", "-o", "vg_name,vg_uuid,pv_uuid,pe_start,vg_extent_size,pv_pe_count,vg_free_count,vg_seqno")
	got := report.Report[0].PV[0]
	want := map[string]string{
		"vg_name": g.Name, "vg_uuid": g.UUID, "pv_uuid": g.PV, "pe_start": fmt.Sprint(int64(g.Start)),
		"vg_extent_size": fmt.Sprint(int64(g.Extent)), "pv_pe_count": fmt.Sprint(g.Extents), "vg_free_count": fmt.Sprint(g.Free), "vg_seqno": fmt.Sprint(g.Seqno),
	}
	for key := range want {
		if got[key] != want[key] {
			t.Errorf("%s: lvm says %s, Read says %s", key, got[key], want[key])
		}
	}
	parse("pvs", "--segments", "-o", "lv_name,pvseg_start,pvseg_size")
	areas := map[[2]size.Bytes]bool{}
	for _, s := range report.Report[0].PVSeg {
		var start, count int64
		fmt.Sscan(s.PVSeg_start+" "+s.PVSeg_size, &start, &count)
		if where := g.stretch(start, count); s.LV_name != "" {
			areas[[2]size.Bytes{where.Start, where.Length}] = true
		}
	}
	occupied(t, g, areas)
	parse("lvs", "--segments", "-o", "lv_name,lv_uuid,lv_size,seg_pe_ranges,seg_start", "-O", "lv_name,seg_start")
	for _, s := range report.Report[0].Seg {
		v, ok := g.Volume(s["lv_name"])
		if !ok || v.UUID != s["lv_uuid"] || fmt.Sprint(int64(v.Size)) != s["lv_size"] {
			t.Errorf("lvm says %v, Read says %+v", s, v)
		}
		var first, last int64
		if v.Why == "" {
			fmt.Sscanf(s["seg_pe_ranges"], dev+":%d-%d", &first, &last)
			if where := g.stretch(first, last-first+1); !slices.ContainsFunc(v.Segments, func(have Segment) bool {
				return have.Start <= where.Start && where.Start+where.Length <= have.Start+have.Length
			}) {
				t.Errorf("lvm says %v, Read says %+v", s, v.Segments)
			}
		}
	}
}

func TestExtend(t *testing.T) {
	machine(t)
	for _, c := range []struct {
		name     string
		options  []string
		volumes  []string
		after    int64 // extents of root
		free     int64
		movesLen int
	}{
		{name: "alone", volumes: []string{"root 5"}, after: 31},
		{name: "last", volumes: []string{"boot 2", "root 5"}, after: 29},
		{name: "two metadata areas, bootloader area", options: []string{"--metadatacopies", "2", "--bootloaderareasize", "1m"}, volumes: []string{"root 5"}, after: 31},
		{name: "extents at 3 MiB", options: []string{"--dataalignment", "3m"}, volumes: []string{"root 5"}, after: 31},
		{name: "Debian's installer", volumes: []string{"root 5", "swap_1 3"}, after: 28, movesLen: 1},
		{name: "Debian's installer, moved clear of itself", volumes: []string{"root 13", "swap_1 2"}, after: 29, movesLen: 1},
		{name: "overlapping moves", volumes: []string{"root 1", "swap_1 7", "swap_2 7"}, after: 17, movesLen: 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			file := sparse(t, 64*size.MiB)
			dev := loop(t, file)
			physical(t, dev, c.options, c.volumes...)
			sound(t, dev)
			before := mustRead(t, dev)
			enlarge(t, file, 128*size.MiB)
			sh(t, "losetup", "-c", dev)
			predicted, err := before.Grown(128*size.MiB, "root", isSwap)
			if err != nil {
				t.Fatal(err)
			}
			moves, err := ExtendPast(t.Context(), dev, "vg0", "root", t.TempDir(), isSwap)
			if err != nil {
				t.Fatal(err)
			}
			sound(t, dev)
			g := mustRead(t, dev)
			root, _ := g.Volume("root")
			stretch, linear := root.Linear()
			if !linear || int64(stretch.Length/g.Extent) != c.after || stretch != predicted.After || g.Free != c.free {
				t.Errorf("root is %+v, predicted %+v, %d extents free", root, predicted.After, g.Free)
			}
			if len(moves) != c.movesLen || !slices.Equal(moves, predicted.Moves) {
				t.Errorf("moves %+v, predicted %+v", moves, predicted.Moves)
			}
			for i, v := range g.Volumes {
				if old := before.Volumes[i]; v.UUID != old.UUID || v.Name != old.Name || v.Name != "root" && v.Size != old.Size {
					t.Errorf("%+v became %+v", old, v)
				}
			}
			seqno := g.Seqno
			if moves, err := ExtendPast(t.Context(), dev, "vg0", "root", t.TempDir(), isSwap); err != nil || moves != nil {
				t.Errorf("again: %v, %v", moves, err)
			}
			if again, _ := mustRead(t, dev).Volume("root"); again.Size != root.Size {
				t.Errorf("again, from seqno %d: %+v", seqno, again)
			}
		})
	}
}

// TestExtendForeignSystem grows a group that belongs to another system's ID.
func TestExtendForeignSystem(t *testing.T) {
	machine(t)
	file := sparse(t, 32*size.MiB)
	dev := loop(t, file)
	judge(t, dev, "pvcreate", "-y", dev)
	judge(t, dev, "vgcreate", "-y", "--systemid", "guest.example", "vg0", dev)
	text := readDeviceText(t, dev)
	if !strings.Contains(text, "guest.example") {
		t.Fatalf("no system ID in %s", text)
	}
	enlarge(t, file, 64*size.MiB)
	sh(t, "losetup", "-c", dev)
	if err := Extend(t.Context(), dev, "vg0", "", t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if g := mustRead(t, dev); g.Extents != 15 || g.systemID != "guest.example" {
		t.Errorf("%+v", g)
	}
}

func readDeviceText(t testing.TB, dev string) string {
	t.Helper()
	f, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text, err := readText(f, 1*size.GiB, locn{4096, 1 * size.MiB})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func sum(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// TestExtendRefusals: after each the device is as it was.
func TestExtendRefusals(t *testing.T) {
	machine(t)
	file := sparse(t, 64*size.MiB)
	dev := loop(t, file)
	physical(t, dev, nil, "root 5", "home 2", "last 2")
	enlarge(t, file, 96*size.MiB)
	sh(t, "losetup", "-c", dev)
	empty := loop(t, sparse(t, size.MiB))
	before := sum(t, file)
	for _, c := range []struct {
		dev, group, volume string
		want               error
	}{
		{dev, "vg0", "root", ErrBehind},
		{dev, "vg0", "none", ErrUnsupported},
		{dev, "vg1", "last", ErrUnsupported},
		{dev, "", "", ErrUnsupported},
		{strings.TrimPrefix(dev, "/"), "vg0", "last", ErrUnsupported},
		{dev + "," + empty, "vg0", "last", ErrUnsupported},
		{empty, "vg0", "last", ErrNone},
		{dev + "-none", "vg0", "last", os.ErrNotExist},
	} {
		_, err := ExtendPast(t.Context(), c.dev, c.group, c.volume, t.TempDir(), isSwap)
		if !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if err := Extend(stopped, dev, "vg0", "last", t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
	if sum(t, file) != before {
		t.Error("a refusal wrote")
	}
}

// TestExtendTouchesNothingElse has the same physical volume on four devices and
// an unlike one of the same group name, and grows the four at once, while the
// fifth and what the node keeps of LVM must stay as they are.
func TestExtendTouchesNothingElse(t *testing.T) {
	machine(t)
	file := sparse(t, 32*size.MiB)
	dev := loop(t, file)
	physical(t, dev, nil, "root 3", "swap_1 1")
	sh(t, "losetup", "-d", dev)
	var devs []string
	files := map[string]string{}
	for range 5 {
		copied := sparse(t, 0)
		sh(t, "cp", "--sparse=always", file, copied)
		enlarge(t, copied, 64*size.MiB)
		dev := loop(t, copied)
		devs, files[dev] = append(devs, dev), copied
	}
	other := sparse(t, 32*size.MiB)
	physical(t, loop(t, other), nil, "root 3")
	before, beforeOther, node := sum(t, files[devs[4]]), sum(t, other), nodeState(t)

	var wg sync.WaitGroup
	for _, dev := range devs[:4] {
		wg.Go(func() {
			if _, err := ExtendPast(t.Context(), dev, "vg0", "root", t.TempDir(), isSwap); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, dev := range devs[:4] {
		sound(t, dev)
		root, _ := mustRead(t, dev).Volume("root")
		if s, ok := root.Linear(); !ok || s.Length != 56*size.MiB {
			t.Errorf("%s: %+v", dev, root)
		}
	}
	if sum(t, files[devs[4]]) != before || sum(t, other) != beforeOther {
		t.Error("a device that was not named has changed")
	}
	if now := nodeState(t); now != node {
		t.Errorf("the node's files changed from\n%s\nto\n%s", node, now)
	}
}

// nodeState lists what lvm keeps on a node.
func nodeState(t testing.TB) string {
	t.Helper()
	return sh(t, "sh", "-c", "find /etc/lvm /run/lvm /run/lock/lvm -printf '%p %s %T@\\n' 2>/dev/null | sort; true")
}

// TestExtendDevicesFile: a node whose devices file names another device only, in
// a mount namespace of the test's own.
func TestExtendDevicesFile(t *testing.T) {
	machine(t, "unshare", "mount")
	if os.Getenv("LVM_TEST_DEV") != "" {
		if err := Extend(t.Context(), os.Getenv("LVM_TEST_DEV"), "vg0", "root", t.TempDir()); err != nil {
			t.Fatal(err)
		}
		return
	}
	file := sparse(t, 32*size.MiB)
	dev := loop(t, file)
	physical(t, dev, nil, "root 3")
	enlarge(t, file, 64*size.MiB)
	sh(t, "losetup", "-c", dev)
	etc := t.TempDir()
	devices := filepath.Join(etc, "devices", "system.devices")
	text := "VERSION=1.1.1\nIDTYPE=devname IDNAME=/dev/none DEVNAME=/dev/none PVID=none\n"
	hostile := "devices { use_devicesfile = 1\n filter = [ \"r|.*|\" ] }\nglobal { metadata_read_only = 1 }\n"
	for path, text := range map[string]string{devices: text, filepath.Join(etc, "lvm.conf"): hostile} {
		os.MkdirAll(filepath.Dir(path), 0o700)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sh(t, "env", "LVM_TEST_DEV="+dev, "unshare", "-m", "sh", "-c", "mount --bind \"$1\" /etc/lvm && exec \"$2\" -test.run '^TestExtendDevicesFile$'",
		"sh", etc, os.Args[0])
	root, _ := mustRead(t, dev).Volume("root")
	if got, _ := os.ReadFile(devices); string(got) != text || root.Size != 60*size.MiB {
		t.Errorf("root is %s, the devices file is %q", root.Size, got)
	}
}

// TestExtendFilesystem grows the volume and its filesystem, as a caller does:
// both in a partition that begins at 1 MiB of a disk.
func TestExtendFilesystem(t *testing.T) {
	machine(t, "mkfs.ext4", "e2fsck", "resize2fs", "mkswap", "swaplabel", "debugfs")
	disk := sparse(t, 65*size.MiB)
	const partition = "--offset=1048576"
	dev := loop(t, disk, partition)
	physical(t, dev, nil, "root 5", "swap_1 3")
	volume := func(name string) Segment {
		v, _ := mustRead(t, dev).Volume(name)
		s, _ := v.Linear()
		return s
	}
	attach := func(s Segment) string {
		return loop(t, disk, fmt.Sprintf("--offset=%d", s.Start+size.MiB), fmt.Sprintf("--sizelimit=%d", s.Length))
	}
	content := filepath.Join(t.TempDir(), "content")
	if err := os.WriteFile(content, bytes.Repeat([]byte("kept content\n"), 100000), 0o600); err != nil {
		t.Fatal(err)
	}
	root, swap := attach(volume("root")), attach(volume("swap_1"))
	sh(t, "mkfs.ext4", "-q", "-O", "resize_inode", root)
	sh(t, "debugfs", "-w", "-R", "write "+content+" content", root)
	sh(t, "mkswap", "-U", "11111111-2222-3333-4444-555555555555", swap)
	sh(t, "losetup", "-d", root)
	sh(t, "losetup", "-d", swap)
	enlarge(t, disk, 97*size.MiB)
	sh(t, "losetup", "-c", dev)

	moves, err := ExtendPast(t.Context(), dev, "vg0", "root", t.TempDir(), isSwap)
	if err != nil || len(moves) != 1 {
		t.Fatal(moves, err)
	}
	copyHeads(t, dev, moves)
	root, swap = attach(volume("root")), attach(volume("swap_1"))
	sh(t, "e2fsck", "-fp", root)
	sh(t, "resize2fs", root)
	sh(t, "e2fsck", "-fn", root)
	back := filepath.Join(t.TempDir(), "back")
	sh(t, "debugfs", "-R", "dump content "+back, root)
	if sum(t, back) != sum(t, content) {
		t.Error("the content changed")
	}
	if label := sh(t, "swaplabel", swap); !strings.Contains(label, "11111111-2222") {
		t.Errorf("swap: %s", label)
	}
	sound(t, dev)
}

// copyHeads copies the first 64 KiB of what moved.
func copyHeads(t testing.TB, dev string, moves []Move) {
	t.Helper()
	f, err := os.OpenFile(dev, os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, 64*size.KiB)
	for _, m := range moves {
		if _, err := f.ReadAt(head, int64(m.From.Start)); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(head, int64(m.To.Start)); err != nil {
			t.Fatal(err)
		}
	}
}
