package block

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

// TestMain is also the child of TestKilled.
func TestMain(m *testing.M) {
	if path := os.Getenv("ATTACH_AND_WAIT"); path != "" {
		attachAndWait(path)
	}
	lockPatience = 200 * time.Millisecond
	os.Exit(m.Run())
}

func attachAndWait(path string) {
	if _, err := Open(path); err != nil {
		panic(err)
	}
	for _, off := range []size.Bytes{0, size.MiB} {
		if _, err := Attach(path, off, size.MiB, 512, false); err != nil {
			panic(err)
		}
	}
	os.Stdout.WriteString("attached\n")
	select {}
}

func disk(t *testing.T, length size.Bytes) string {
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

// device is a block device of that size.
func device(t *testing.T, length size.Bytes) string {
	t.Helper()
	need.Root(t)
	need.File(t, "/dev/loop-control")
	l, err := Attach(disk(t, length), 0, length, 512, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Detach(); err != nil {
			t.Error(err)
		}
	})
	return l.Path()
}

func openDisk(t *testing.T, path string) *Device {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func tool(t *testing.T, argv ...string) string {
	t.Helper()
	need.Tools(t, argv[0])
	cmd := exec.Command("/usr/bin/env", append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, argv...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestOpen(t *testing.T) {
	for name, path := range map[string]string{"file": disk(t, size.MiB), "block device": device(t, size.MiB)} {
		d := openDisk(t, path)
		if d.Size() != size.MiB || d.Path() != path || d.IsFile() != (name == "file") {
			t.Errorf("%s: %+v", name, d)
		}
		if _, err := d.WriteAt([]byte("hello"), 1000); err != nil {
			t.Error(err)
		}
		if _, err := d.WriteAt([]byte("hello"), int64(size.MiB)-4); err == nil {
			t.Errorf("%s: a write reached behind the end", name)
		}
		if err := d.Sync(); err != nil {
			t.Error(err)
		}
		if err := errors.Join(d.Close(), d.Close()); err != nil {
			t.Error(err)
		}
		openDisk(t, path).Close()
	}
}

func TestOpenRefusesOtherThings(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		dir: "neither", fifo: "neither", "/dev/null": "neither", dir + "/none": "no such file", disk(t, 0): "0 bytes",
	} {
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want it to say %q", path, err, want)
		}
	}
}

func refused(t *testing.T, path string, want ...string) {
	t.Helper()
	d, err := Open(path)
	if err == nil {
		d.Close()
	}
	if !errors.Is(err, ErrInUse) {
		t.Fatalf("%s: got %v, want that it is in use", path, err)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

func TestOpenRefusesLocked(t *testing.T) {
	path := disk(t, size.MiB)
	d := openDisk(t, path)
	refused(t, path, "another process holds its lock (process ")
	d.Close()
	openDisk(t, path)
}

func TestOpenWaitsForUdev(t *testing.T) {
	path := disk(t, size.MiB)
	d := openDisk(t, path)
	time.AfterFunc(50*time.Millisecond, func() { d.Close() })
	openDisk(t, path)
}

func TestOpenRefusesRunningGuest(t *testing.T) {
	path := disk(t, size.MiB)
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	lock := unix.Flock_t{Type: unix.F_RDLCK, Start: 100, Len: 1} // as QEMU does
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		t.Fatal(err)
	}
	refused(t, path, "QEMU")
}

func TestOpenRefusesMounted(t *testing.T) {
	path := device(t, 64*size.MiB)
	tool(t, "mkfs.ext4", "-q", path)
	at := t.TempDir()
	if err := unix.Mount(path, at, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	refused(t, path, "mounted on "+at)
	if err := unix.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	openDisk(t, path)
}

// TestOpenRefusesMountedElsewhere has a mount that only another namespace sees.
func TestOpenRefusesMountedElsewhere(t *testing.T) {
	path := device(t, 64*size.MiB)
	tool(t, "mkfs.ext4", "-q", path)
	need.Tools(t, "unshare", "mount")
	child := exec.Command("/usr/bin/unshare", "-m", "/bin/sh", "-c", "mount -t ext4 "+path+" /mnt && echo mounted && read x")
	wait := start(t, child)
	refused(t, path, "kernel refuses")
	wait()
	openDisk(t, path)
}

// start starts a child that prints a line when it is ready and ends when its
// standard input does; it is called, or the test's end is, to end it.
func start(t *testing.T, child *exec.Cmd) (end func()) {
	t.Helper()
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); child.Wait() })
	if _, err := out.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	return func() { in.Close(); child.Wait() }
}

func TestOpenRefusesMountedPartition(t *testing.T) {
	path := device(t, 64*size.MiB)
	need.Tools(t, "sfdisk", "partx")
	sfdisk := exec.Command("/usr/sbin/sfdisk", "-q", "--no-reread", "--no-tell-kernel", path)
	sfdisk.Stdin = strings.NewReader("label: dos\nstart=2048\n")
	if out, err := sfdisk.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.Command("/usr/bin/partx", "-a", path).CombinedOutput()
	need.That(t, err == nil, "partitions on loop devices: "+string(out))
	defer tool(t, "partx", "-d", path)
	tool(t, "mkfs.ext4", "-q", path+"p1")
	at := t.TempDir()
	if err := unix.Mount(path+"p1", at, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(at, 0)
	refused(t, path, "mounted on "+at)
}

func TestOpenRefusesSwap(t *testing.T) {
	path := device(t, 16*size.MiB)
	tool(t, "mkswap", path)
	out, err := exec.Command("/usr/sbin/swapon", path).CombinedOutput()
	need.That(t, err == nil, "swap: "+string(out))
	defer tool(t, "swapoff", path)
	refused(t, path, "swaps to "+path)
}

func TestOpenRefusesLoopBacking(t *testing.T) {
	need.Root(t)
	file := disk(t, 4*size.MiB)
	loop, err := Attach(file, size.MiB, size.MiB, 512, false)
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Detach()
	renamed := file + ".renamed"
	if err := os.Rename(file, renamed); err != nil {
		t.Fatal(err)
	}
	refused(t, renamed, "backs the loop device "+loop.Path())

	block := device(t, 4*size.MiB)
	above, err := Attach(block, 0, size.MiB, 512, false)
	if err != nil {
		t.Fatal(err)
	}
	defer above.Detach()
	refused(t, block, "backs the loop device "+above.Path())
	if err := above.Detach(); err != nil {
		t.Fatal(err)
	}
	openDisk(t, block)
}

// What sysfs says of a device that RAID or LVM is made of: a kernel without
// device mapper makes none.
func TestDeviceAbove(t *testing.T) {
	dir := t.TempDir()
	if got := deviceAbove(dir); got != "" {
		t.Errorf("without holders: %q", got)
	}
	if err := os.MkdirAll(dir+"/holders/dm-3", 0o755); err != nil {
		t.Fatal(err)
	}
	if got := deviceAbove(dir); got != "dm-3" {
		t.Errorf("got %q, want dm-3", got)
	}
}

func TestZero(t *testing.T) {
	ranges := []struct{ off, n size.Bytes }{
		{0, 0}, {0, 1}, {5, 10}, {4095, 2}, {4096, 4096}, {1, 3 * size.MiB}, {size.MiB - 1, size.MiB + 2}, {8*size.MiB - 513, 513}, {0, 8 * size.MiB},
	}
	lying := zeroer{"lying", func(*Device, size.Bytes, size.Bytes) error { return nil }}
	failing := zeroer{"failing", func(*Device, size.Bytes, size.Bytes) error { return unix.EOPNOTSUPP }}
	// tiring works once, as a device whose support for discards is uneven does.
	tiring := func() zeroer {
		calls := 0
		return zeroer{"tiring", func(d *Device, off, n size.Bytes) error {
			if calls++; calls > 1 {
				return unix.EIO
			}
			return writeZeros(d, off, n)
		}}
	}
	plain := zeroer{"writing zeros", writeZeros}
	cases := []struct {
		name    string
		zeroers []zeroer
		left    string // the way that is used in the end
	}{
		{"as opened", nil, "punching holes"},
		{"BLKZEROOUT", []zeroer{failing, {"BLKZEROOUT", zeroOut}, plain}, "BLKZEROOUT"},
		{"lying", []zeroer{lying, plain}, "writing zeros"},
		{"failing", []zeroer{failing, lying, plain}, "writing zeros"},
		{"tiring", []zeroer{tiring(), plain}, "writing zeros"},
	}
	for kind, path := range map[string]string{"file": disk(t, 8*size.MiB), "block device": device(t, 8*size.MiB)} {
		d := openDisk(t, path)
		for _, c := range cases {
			if kind == "file" && c.name == "BLKZEROOUT" {
				continue
			}
			if d.proven = false; c.zeroers != nil {
				d.zeroers = c.zeroers
			}
			for _, r := range ranges {
				checkZero(t, d, r.off, r.n)
			}
			if got := d.zeroers[0].name; got != c.left {
				t.Errorf("%s, %s: %s is used, want %s", kind, c.name, got, c.left)
			}
		}
	}
}

func checkZero(t *testing.T, d *Device, off, n size.Bytes) {
	t.Helper()
	want := bytes.Repeat([]byte{0x5A}, int(d.Size()))
	if _, err := d.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Zero(off, n); err != nil {
		t.Fatal(err)
	}
	clear(want[off : off+n])
	got, err := os.ReadFile(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: zeroing %d bytes at %d did something else", d.Path(), n, off)
	}
}

func TestZeroGivesSpaceBack(t *testing.T) {
	d := openDisk(t, disk(t, 8*size.MiB))
	d.WriteAt(bytes.Repeat([]byte{1}, int(d.Size())), 0)
	if err := d.Zero(0, d.Size()); err != nil {
		t.Fatal(err)
	}
	var stat unix.Stat_t
	if err := unix.Stat(d.Path(), &stat); err != nil || stat.Blocks > 16 || stat.Size != int64(8*size.MiB) {
		t.Errorf("%d bytes, %d blocks are left, %v", stat.Size, stat.Blocks, err)
	}
}

func TestZeroRefusesOutside(t *testing.T) {
	d := openDisk(t, disk(t, size.MiB))
	for _, r := range [][2]size.Bytes{{-1, 1}, {0, size.MiB + 1}, {size.MiB, 1}, {1, 1<<63 - 1}, {0, -1}} {
		if err := d.Zero(r[0], r[1]); err == nil {
			t.Errorf("zeroed %d bytes at %d", r[1], r[0])
		}
	}
}

func TestApply(t *testing.T) {
	path := disk(t, 64*size.MiB)
	tool(t, "sgdisk", "-n", "1:2048:0", path)
	d := openDisk(t, path)
	table, err := layout.Read(d, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	os.Truncate(path, int64(128*size.MiB))
	d = openDisk(t, path)
	plan, err := table.Grow(d.Size())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Apply(plan); err != nil {
		t.Fatal(err)
	}
	if out := tool(t, "sgdisk", "-v", path); !strings.Contains(out, "No problems found") {
		t.Error(out)
	}
}

func TestAttach(t *testing.T) {
	need.Root(t)
	path := disk(t, 4*size.MiB)
	d := openDisk(t, path)
	d.WriteAt([]byte("here"), int64(size.MiB))
	for _, sector := range []size.Bytes{512, 4096} {
		l, err := Attach(path, size.MiB, 2*size.MiB, sector, false)
		if err != nil {
			t.Fatal(err)
		}
		if got := tool(t, "blockdev", "--getss", "--getsize64", l.Path()); got != fmt.Sprintf("%d\n2097152", int64(sector)) {
			t.Errorf("sector size and length: %q", got)
		}
		content, err := os.ReadFile(l.Path())
		if err != nil || string(content[:4]) != "here" || len(content) != int(2*size.MiB) {
			t.Errorf("%d bytes %q, %v", len(content), content[:4], err)
		}
		if backed, err := Backed(path); err != nil || len(backed) != 1 || backed[0] != l.Path() {
			t.Errorf("%v, %v", backed, err)
		}
		if err := errors.Join(l.Detach(), l.Detach()); err != nil {
			t.Error(err)
		}
		if backed, _ := Backed(path); len(backed) != 0 {
			t.Errorf("%v is left", backed)
		}
	}
}

// TestAttachOpened makes a loop device of a block device that Open holds.
func TestAttachOpened(t *testing.T) {
	d := openDisk(t, device(t, 4*size.MiB))
	l, err := Attach(d.Path(), size.MiB, size.MiB, 512, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.Path(), []byte("through the loop device"), 0o600); err != nil {
		t.Error(err)
	}
	if err := l.Detach(); err != nil {
		t.Error(err)
	}
	got := make([]byte, 7)
	if _, err := d.ReadAt(got, int64(size.MiB)); string(got) != "through" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAttachReadOnly(t *testing.T) {
	need.Root(t)
	path := disk(t, size.MiB)
	os.Chmod(path, 0o400)
	l, err := Attach(path, 0, size.MiB, 512, true)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Detach()
	file, err := os.OpenFile(l.Path(), os.O_RDWR, 0)
	if err == nil {
		_, err = file.Write(make([]byte, 512))
		file.Close()
	}
	if err == nil {
		t.Error("it can be written to")
	}
}

func TestAttachRefuses(t *testing.T) {
	need.Root(t)
	path := disk(t, size.MiB)
	for _, r := range [][2]size.Bytes{{0, 0}, {1, 512}, {0, 513}, {0, 2 * size.MiB}, {size.MiB, 512}, {-512, 512}} {
		if l, err := Attach(path, r[0], r[1], 512, false); err == nil {
			t.Errorf("%d bytes at %d: %s", r[1], r[0], l.Path())
			l.Detach()
		}
	}
	if _, err := Attach(path+".none", 0, 512, 512, false); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestAttachAtOnce has several at the same time ask for free devices.
func TestAttachAtOnce(t *testing.T) {
	need.Root(t)
	path := disk(t, 16*size.MiB)
	results := make(chan error)
	for i := range size.Bytes(12) {
		go func() {
			l, err := Attach(path, i*size.MiB, size.MiB, 512, false)
			if err == nil {
				err = l.Detach()
			}
			results <- err
		}()
	}
	for range 12 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

func TestDetachNamesUser(t *testing.T) {
	need.Root(t)
	l, err := Attach(disk(t, size.MiB), 0, size.MiB, 512, false)
	if err != nil {
		t.Fatal(err)
	}
	end := start(t, exec.Command("/bin/sh", "-c", "exec 5<"+l.Path()+"; echo open; read x"))
	if who := strings.Join(users(l.Path()), " "); !strings.Contains(who, ", sh)") {
		t.Errorf("users: %s", who)
	}
	time.AfterFunc(50*time.Millisecond, end)
	if err := l.Detach(); err != nil {
		t.Error(err)
	}
}

// TestKilled kills a process that holds a disk and loop devices.
func TestKilled(t *testing.T) {
	need.Root(t)
	path := disk(t, 4*size.MiB)
	child := exec.Command(os.Args[0])
	child.Env = []string{"ATTACH_AND_WAIT=" + path}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("attached\n"))); err != nil {
		t.Error(err)
	}
	if backed, _ := Backed(path); len(backed) != 2 {
		t.Errorf("loop devices: %v, want two", backed)
	}
	child.Process.Kill()
	child.Wait()
	for range 200 {
		if backed, _ := Backed(path); len(backed) == 0 {
			openDisk(t, path)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	backed, _ := Backed(path)
	t.Errorf("%v are left", backed)
}

// udev takes a lock of its own before it looks at a device, and does not look
// where it gets none.
func TestAttachAlone(t *testing.T) {
	need.Root(t)
	need.File(t, "/dev/loop-control")
	path := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<20)); err != nil {
		t.Fatal(err)
	}
	loop, err := AttachAlone(path, 0, 1<<20, 512)
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.Open(loop.Path())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(other.Fd()), unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("another one gets the lock: %v", err)
	}
	if err := errors.Join(other.Close(), loop.Detach()); err != nil {
		t.Error(err)
	}
}
