package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
)

const (
	keptDir   = "/run/ganeti-instance-image/mounts/web.example.org"
	keptState = "/run/ganeti-instance-image/mounted/web.example.org"
)

// ownMounts gives the test a mount namespace and an empty run-time directory: what
// the node or another test has mounted must not count. A subtest is not in it.
func ownMounts(t *testing.T) {
	t.Helper()
	need.Root(t)
	runtime.LockOSThread() // and never unlocked, so that the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	shell(t, `mount --make-rprivate /; mkdir -p /run/ganeti-instance-image; mount -t tmpfs own /run/ganeti-instance-image`)
}

// said is what a node says of a call.
type said struct {
	outcome
	Dir  string
	Held bool
}

// nodeCommand is the program as the master has a node run it. Its standard input
// stays open until it ends.
func (s *site) nodeCommand(t *testing.T, e env, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(filepath.Join(s.dir, "usr/lib/ganeti-instance-image/instance-image"), args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = in.Write([]byte(strings.Join(e.list(), "\x00") + "\x00\x00")) }()
	return cmd
}

func (s *site) node(t *testing.T, e env, args ...string) said {
	t.Helper()
	cmd := s.nodeCommand(t, e, args...)
	var out, log strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &log
	_ = cmd.Run()
	got := said{outcome: outcome{cmd.ProcessState.ExitCode(), log.String()}}
	if out.Len() > 0 {
		if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
			t.Fatalf("%v: %q\n%s", err, out.String(), log.String())
		}
	}
	return got
}

// mounts has the node mount an instance.
func (s *site) mounts(t *testing.T, e env, how string) said {
	t.Helper()
	got := s.node(t, e, "on-node-mount", "mount", how)
	if got.code != 0 || got.Dir != keptDir || !got.Held {
		t.Fatalf("mount %s: %d, at %q, held=%v\n%s", how, got.code, got.Dir, got.Held, got.log)
	}
	return got
}

// umounts has the node unmount it, and wants nothing to be left.
func (s *site) umounts(t *testing.T, e env) said {
	t.Helper()
	got := s.node(t, e, "on-node-mount", "umount")
	if got.code != 0 || got.Held {
		t.Fatalf("umount: %d, held=%v\n%s", got.code, got.Held, got.log)
	}
	s.nothingKept(t, e)
	return got
}

func (s *site) nothingKept(t *testing.T, e env) {
	t.Helper()
	for name, disk := range e {
		if strings.HasSuffix(name, "_PATH") && disk != "" {
			if out := tool(t, "losetup", "-j", disk); out != "" {
				t.Errorf("%s is still shown by %s", disk, out)
			}
		}
	}
	for _, path := range []string{keptDir, keptState} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is left", path)
		}
	}
	if points := mountPoints(t); len(points) > 0 {
		t.Errorf("still mounted: %q", points)
	}
}

// mountPoints is what is mounted of instances in this test's namespace.
func mountPoints(t *testing.T) (points []string) {
	t.Helper()
	for line := range strings.Lines(shell(t, "cat /proc/self/mountinfo")) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[4], "/run/ganeti-instance-image/") {
			points = append(points, strings.TrimPrefix(fields[4], keptDir))
		}
	}
	return points
}

// more are two further disks: one with a table, one without.
func furtherDisks(t *testing.T) (parted, plain string) {
	t.Helper()
	dir := t.TempDir()
	parted, plain = filepath.Join(dir, "parted"), filepath.Join(dir, "plain")
	shell(t, `truncate -s 64M "$1"; truncate -s 64M "$2"
		printf 'label: gpt\nstart=2048, size=20480\nstart=22528, size=20480, type=swap\nstart=43008\n' | sfdisk -q "$1"
		image=$1; tree=$1.tree; mkdir "$tree"; echo data > "$tree/data"
		`+fillFunctions+`
		fs ext4 1 "$tree"; fs swap 2 "$tree"; fs ext3 3 "$tree"; mke2fs -q -t ext4 -d "$tree" "$2"`, parted, plain)
	return parted, plain
}

// mountCase is a layout, and what is mounted of its disk.
type mountCase struct {
	layout diskLayout
	points []string
}

func mountCases(t *testing.T) []mountCase {
	onLVM := lvmLayouts[0]
	onLVM.fill = lvmFunctions + onLVM.fill
	return []mountCase{
		{layoutNamed(t, "ubuntu"), []string{"/root", "/root/boot", "/disk0-part15"}},
		{layoutNamed(t, "almalinux"), []string{"/root", "/root/boot", "/disk0-part2"}},
		{layoutNamed(t, "fedora"), []string{"/root", "/root/boot", "/root/home", "/disk0-part2"}},
		{layoutNamed(t, "whole-disk"), []string{"/root"}},
		{onLVM, []string{"/root", "/root/boot"}},
	}
}

var furtherPoints = []string{"/disk1-part1", "/disk1-part3", "/disk2"}

// Everything that can be mounted is, outlives the command, can be written to, and
// is stored when it is unmounted.
func TestMountDisks(t *testing.T) {
	need.Tools(t, "sfdisk", "e2fsck", "xfs_repair", "btrfs", "losetup", "lvm")
	s := newSite(t, "")
	for i := range mountCases(t) {
		t.Run(mountCases(t)[i].layout.name, func(t *testing.T) {
			ownMounts(t)
			c := mountCases(t)[i]
			image, _ := makeImage(t, c.layout)
			parted, plain := furtherDisks(t)
			e := disks(image, parted, plain)
			got := s.mounts(t, e, "rw")
			points, wanted := mountPoints(t), append(slices.Clone(furtherPoints), c.points...)
			if text, _ := os.ReadFile("/proc/filesystems"); !strings.Contains(string(text), "\tvfat\n") {
				wanted = slices.DeleteFunc(wanted, func(point string) bool { return strings.HasPrefix(point, "/disk0-") })
			}
			for _, want := range wanted {
				if !strings.Contains(" "+strings.Join(points, " ")+" ", " "+want+" ") {
					t.Errorf("%s is not mounted, only %q\n%s", want, points, got.log)
				}
			}
			if want := len(wanted) + 1; len(points) != want { // and the tmpfs
				t.Errorf("%d mounts, want %d: %q", len(points), want, points)
			}
			shell(t, `cd "$1"; [ "$(stat -c %a:%U . ..)" = "700:root
700:root" ]; grep -q Debian root/etc/os-release; [ -s disk1-part3/data ]; echo new > root/new; echo new > disk2/new
				findmnt -rn -o OPTIONS -M root | grep nosuid | grep -q nodev`, keptDir)
			s.refusesMounted(t, e)
			s.umounts(t, e)
			s.mounts(t, e, "ro")
			shell(t, `cd "$1"; grep -q new root/new; grep -q new disk2/new; ! touch root/newer`, keptDir)
			s.umounts(t, e)
			if again := s.umounts(t, e); again.Dir != "" {
				t.Errorf("there was something to unmount once more: %s", again.log)
			}
			tool(t, "e2fsck", "-fn", plain)
		})
	}
}

// refusesMounted wants everybody else to find the disks in use.
func (s *site) refusesMounted(t *testing.T, e env) {
	t.Helper()
	got := s.node(t, e, "on-node-mount", "mount", "ro")
	checkRefusal(t, got.outcome, 4, keptDir, "umount-disks web.example.org")
	if !got.Held || got.Dir != keptDir {
		t.Errorf("it is mounted, and the node says at %q, held=%v", got.Dir, got.Held)
	}
	got = s.node(t, e, "on-node", "seed", "1")
	checkRefusal(t, got.outcome, 4, keptDir)
	if !got.Held {
		t.Error("the disks may be detached while they are mounted")
	}
	checkRefusal(t, s.run(t, "rename", e.with(env{"OLD_INSTANCE_NAME": "old.example.org"})), 4, "it is in use", keptDir)
	s.write(t, s.conf("variants/mounted.conf"), imageSettings("/bin/sh", "IMAGE_TYPE=raw"), 0o644)
	defer os.Remove(s.conf("variants/mounted.conf"))
	checkRefusal(t, s.run(t, "create", e.with(env{"OS_VARIANT": "mounted"})), 4, "it is in use", keptDir)
	imported := s.command("import", importing(e["DISK_0_PATH"]))
	imported.Stdin = strings.NewReader("a raw disk")
	checkRefusal(t, finish(t, imported), 4, "it is in use", keptDir)
}

// crashed makes a disk of which a file system has something in its journal: a copy
// that is made while it is written to.
func crashed(t *testing.T, kind string) string {
	t.Helper()
	dir := t.TempDir()
	shell(t, `cd "$1"; truncate -s 320M disk; mkfs.$2 -q disk; mkdir -p mnt; mount -o loop disk mnt
		mkdir -p mnt/etc mnt/bin; echo 'ID=debian' > mnt/etc/os-release; : > mnt/etc/fstab; umount mnt; mount -o loop disk mnt
		for i in 1 2 3; do echo $i > mnt/file$i; sync mnt/file$i; done
		cp --sparse=always disk copy; umount mnt`, dir, kind)
	return filepath.Join(dir, "copy")
}

// Not a bit of a disk changes that is mounted read-only, and what waits in a
// journal is said.
func TestMountDisksReadOnly(t *testing.T) {
	need.Tools(t, "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "sha256sum")
	s := newSite(t, "")
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			ownMounts(t)
			disk := crashed(t, kind)
			second := filepath.Join(t.TempDir(), "second")
			shell(t, `mke2fs -q -t ext3 "$1" 16M`, second)
			e := disks(disk, second)
			before := tool(t, "sha256sum", disk, second)
			got := s.mounts(t, e, "ro")
			if !strings.Contains(got.log, "journal is not replayed") {
				t.Errorf("the log does not say that a journal waits:\n%s", got.log)
			}
			shell(t, `cd "$1"; grep -q debian root/etc/os-release; find . -type f -exec cat {} + > /dev/null
				! touch root/x; ! touch disk1/x; ! mount -o remount,rw root`, keptDir)
			s.umounts(t, e)
			if after := tool(t, "sha256sum", disk, second); after != before {
				t.Errorf("disks changed:\n%s%s", before, after)
			}
			if got := s.mounts(t, e, "rw"); strings.Contains(got.log, "replayed") {
				t.Errorf("for writing, where journals are replayed:\n%s", got.log)
			}
			s.umounts(t, e)
		})
	}
}

// smallSystem is a disk with a root file system.
func smallSystem(t *testing.T) env {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk")
	shell(t, makeTree+`rm "$tree/usr/lib/content"; mke2fs -q -t ext4 -d "$tree" "$2" 64M`, filepath.Join(t.TempDir(), "tree"), disk)
	return instance(disk)
}

// What is in use stays, is named, and goes when it is not.
func TestUmountDisksBusy(t *testing.T) {
	ownMounts(t)
	s, e := newSite(t, ""), smallSystem(t)
	s.mounts(t, e, "rw")

	child := exec.Command("sleep", "1000")
	child.Dir = keptDir + "/root/etc"
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Process.Kill()
	for range 2 {
		got := s.node(t, e, "on-node-mount", "umount")
		checkRefusal(t, got.outcome, 4, fmt.Sprintf("%d (sleep)", child.Process.Pid), keptDir+"/root")
		if !got.Held || got.Dir == "" {
			t.Errorf("it is mounted, and the node says held=%v", got.Held)
		}
	}
	child.Process.Kill()
	child.Wait()

	shell(t, `mount -t tmpfs mine "$1/root/mnt" 2>/dev/null || { mkdir "$1/root/mnt"; mount -t tmpfs mine "$1/root/mnt"; }`, keptDir)
	checkRefusal(t, s.node(t, e, "on-node-mount", "umount").outcome, 4, "something else is mounted", keptDir+"/root/mnt")
	shell(t, `umount "$1/root/mnt"; echo x > "$1/notes"`, keptDir)
	checkRefusal(t, s.node(t, e, "on-node-mount", "umount").outcome, 4, "move it away", "notes")
	shell(t, `rm "$1/notes"`, keptDir)
	s.umounts(t, e)
}

// Processes with a mount namespace of their own keep nothing, whether they follow
// the node or not, unless they use it: then they are named.
func TestUmountDisksOtherNamespaces(t *testing.T) {
	need.Tools(t, "unshare")
	ownMounts(t)
	s, e := newSite(t, ""), smallSystem(t)
	for _, how := range []string{"slave", "private", "private"} {
		s.mounts(t, e, "rw")
		used := mountedElsewhere(t, how)
		s.umounts(t, e)
		used.end()
	}
	s.mounts(t, e, "rw")
	used := mountedElsewhere(t, "private", "cd "+keptDir+"/root/etc")
	got := s.node(t, e, "on-node-mount", "umount")
	checkRefusal(t, got.outcome, 4, "still shows it", fmt.Sprintf("%d (sleep)", used.Process.Pid))
	if !got.Held {
		t.Error("the disk is in use, and may be detached")
	}
	used.end()
	s.umounts(t, e)
}

type elsewhere struct{ *exec.Cmd }

func (e elsewhere) end() { _, _ = e.Process.Kill(), e.Wait() }

// mountedElsewhere starts a process with a mount namespace of its own.
func mountedElsewhere(t *testing.T, propagation string, does ...string) elsewhere {
	t.Helper()
	script := strings.Join(append(does, "echo ready", "exec sleep 1000"), " && ")
	child := exec.Command("unshare", "-m", "--propagation", propagation, "sh", "-c", script)
	out, err := child.StdoutPipe()
	if err == nil {
		err = child.Start()
	}
	if err == nil {
		t.Cleanup(func() { _ = child.Process.Kill() })
		_, err = out.Read(make([]byte, 10))
	}
	if err != nil {
		t.Fatal(err)
	}
	return elsewhere{child}
}

// Of two at once one mounts; the other says so and leaves the disks attached.
func TestMountDisksAtOnce(t *testing.T) {
	ownMounts(t)
	s, e := newSite(t, ""), smallSystem(t)
	for range 3 {
		first, second := s.nodeCommand(t, e, "on-node-mount", "mount", "rw"), s.nodeCommand(t, e, "on-node-mount", "mount", "rw")
		var outs, logs [2]strings.Builder
		for i, cmd := range []*exec.Cmd{first, second} {
			cmd.Stdout, cmd.Stderr = &outs[i], &logs[i]
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
		}
		failed := 0
		for i, cmd := range []*exec.Cmd{first, second} {
			if cmd.Wait() != nil {
				failed++
				checkRefusal(t, outcome{cmd.ProcessState.ExitCode(), logs[i].String()}, 4)
			}
			if !strings.Contains(outs[i].String(), `"Held":true`) {
				t.Errorf("the answer is %s", outs[i].String())
			}
		}
		if failed != 1 {
			t.Errorf("%d of two failed, want one", failed)
		}
		s.umounts(t, e)
	}
}

// mountFaults are injected into the node's work, see faults.
var mountFaults = []struct {
	args []string
	fault
}{
	{[]string{"mount", "rw"}, fault{"killed at a mount", "mount:signal=SIGKILL", 6}},
	{[]string{"mount", "rw"}, fault{"killed at a directory", "mkdirat:signal=SIGKILL", 8}},
	{[]string{"mount", "rw"}, fault{"killed at the record", "renameat:signal=SIGKILL", 3}},
	{[]string{"mount", "rw"}, fault{"killed at an ioctl", "ioctl:signal=SIGKILL", 6}},
	{[]string{"mount", "rw"}, fault{"stopped at a mount", "mount:signal=SIGTERM", 6}},
	{[]string{"mount", "rw"}, fault{"stopped at the record", "renameat:signal=SIGTERM", 3}},
	{[]string{"mount", "ro"}, fault{"a mount fails", "mount:error=EIO", 6}},
	{[]string{"mount", "rw"}, fault{"no directory", "mkdirat:error=ENOSPC", 8}},
	{[]string{"mount", "rw"}, fault{"no record", "renameat:error=ENOSPC", 3}},
	{[]string{"mount", "rw"}, fault{"an ioctl fails", "ioctl:error=EIO", 6}},
	{[]string{"umount"}, fault{"killed at an unmount", "umount2:signal=SIGKILL", 6}},
	{[]string{"umount"}, fault{"killed at a directory", "/rmdir|unlinkat:signal=SIGKILL", 8}},
	{[]string{"umount"}, fault{"killed at a sync", "fsync:signal=SIGKILL", 4}},
	{[]string{"umount"}, fault{"an unmount fails", "umount2:error=EBUSY", 6}},
	{[]string{"umount"}, fault{"a directory stays", "/rmdir|unlinkat:error=EIO", 8}},
	{[]string{"umount"}, fault{"a sync fails", "syncfs:error=EIO", 4}},
	{[]string{"umount"}, fault{"the disk's sync fails", "fsync:error=EIO", 4}},
}

// Wherever mount-disks and umount-disks fail, or are killed, either nothing is left
// or it is said, and umount-disks cleans up.
func TestMountDisksFaults(t *testing.T) {
	need.Tools(t, "strace")
	ownMounts(t)
	s, e := newSite(t, ""), smallSystem(t)
	second := filepath.Join(t.TempDir(), "second")
	shell(t, `mke2fs -q -t ext4 "$1" 16M`, second)
	e = disks(e["DISK_0_PATH"], second)
	for _, f := range mountFaults {
		hit := 0
		for n := 1; n <= f.most; n++ {
			if s.mountWith(t, e, f.args, fmt.Sprintf("%s:when=%d", f.inject, n)) {
				hit++
			} else if !strings.Contains(f.inject, "SIGTERM") { // which may come when all is done
				break
			}
		}
		if hit == 0 {
			t.Errorf("%s: the fault was never injected", f.name)
		}
	}
	tool(t, "e2fsck", "-fn", e["DISK_0_PATH"])
}

// mountWith injects one fault, and tells whether that happened.
func (s *site) mountWith(t *testing.T, e env, args []string, inject string) bool {
	t.Helper()
	if args[0] == "umount" {
		s.mounts(t, e, "rw")
	}
	trace := filepath.Join(t.TempDir(), "trace")
	syscall, _, _ := strings.Cut(inject, ":")
	cmd := s.nodeCommand(t, e, append([]string{"on-node-mount"}, args...)...)
	cmd.Args = append([]string{"strace", "-f", "-qq", "-o", trace, "-e", "trace=" + syscall, "-e", "signal=none", "-e", "inject=" + inject, cmd.Path}, cmd.Args[1:]...)
	cmd.Path, _ = exec.LookPath("strace")
	var out, log strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &log
	err := cmd.Run()
	text, _ := os.ReadFile(trace)
	happened := strings.Contains(string(text), "(INJECTED)") || strings.Contains(inject, "signal") && err != nil
	held := strings.Contains(out.String(), `"Held":true`)
	switch {
	case strings.Contains(inject, "SIGKILL"):
	case err == nil && args[0] == "mount" && !held:
		t.Errorf("%s: it succeeded, and the disks may be detached:\n%s", inject, log.String())
	case err != nil && !held:
		s.nothingKept(t, e)
	}
	if t.Failed() {
		t.Fatalf("%s: %v\n%s%s", inject, err, out.String(), log.String())
	}
	s.umounts(t, e)
	return happened
}

// After a boot nothing is mounted, whatever is left of the record.
func TestUmountDisksAfterBoot(t *testing.T) {
	ownMounts(t)
	s, e := newSite(t, ""), smallSystem(t)
	for _, left := range []string{`rm -r /run/ganeti-instance-image/*`, `sed -i 's/"Boot": "[^"]*"/"Boot": "before"/' "` + keptState + `"`} {
		s.mounts(t, e, "rw")
		shell(t, `umount -R "$1"; `+left, keptDir)
		if got := s.umounts(t, e); got.Dir != "" {
			t.Errorf("it says that it unmounted something at %s", got.Dir)
		}
	}
	s.mounts(t, e, "rw")
	shell(t, `mv "$1" /run/ganeti-instance-image/record`, keptState)
	checkRefusal(t, s.node(t, e, "on-node-mount", "umount").outcome, 4, "no record", "umount -R "+keptDir)
	shell(t, `mv /run/ganeti-instance-image/record "$1"`, keptState)
	s.umounts(t, e)
}

// A disk whose file was removed, as Ganeti does with an instance, is given up.
func TestUmountDisksRemoved(t *testing.T) {
	ownMounts(t)
	s, e := newSite(t, ""), smallSystem(t)
	s.mounts(t, e, "rw")
	if err := os.Remove(e["DISK_0_PATH"]); err != nil {
		t.Fatal(err)
	}
	shell(t, `[ -d "$1/root/etc" ]`, keptDir)
	if got := s.umounts(t, e); got.Dir != keptDir {
		t.Errorf("got %+v", got)
	}
	if out := shell(t, "losetup -l -n -O BACK-FILE"); strings.Contains(out, e["DISK_0_PATH"]) {
		t.Errorf("a loop device is left:\n%s", out)
	}
}

func TestMountDisksRefuses(t *testing.T) {
	ownMounts(t)
	s, e := newSite(t, ""), instance(newDisk(t, 32))
	got := s.node(t, e, "on-node-mount", "mount", "rw")
	checkRefusal(t, got.outcome, 4, "no disk holds a file system")
	if got.Held {
		t.Error("nothing is mounted, and the disks are said to be in use")
	}
	s.nothingKept(t, e)
	for _, name := range []string{"", "../x", ".", "a/b", "-x", strings.Repeat("a", 254)} {
		got := s.node(t, env{"INSTANCE_NAME": name}, "on-node-mount", "umount")
		checkRefusal(t, got.outcome, 2, "no instance's name")
	}
	for _, args := range [][]string{{}, {"mount"}, {"mount", "rx"}, {"umount", "x"}} {
		checkRefusal(t, s.node(t, e, append([]string{"on-node-mount"}, args...)...).outcome, 2, "mount ro")
	}
	loop := strings.TrimSpace(tool(t, "losetup", "--find", "--show", e["DISK_0_PATH"]))
	got = s.node(t, e, "on-node-mount", "mount", "rw")
	checkRefusal(t, got.outcome, 4, "it is in use", loop)
	if !got.Held {
		t.Error("somebody else has the disk in use, and it may be detached")
	}
	tool(t, "losetup", "--detach", loop)
	shell(t, `mkdir -p "$1"; mount -t tmpfs other "$1"`, keptDir)
	checkRefusal(t, s.node(t, smallSystem(t), "on-node-mount", "mount", "rw").outcome, 4, "no record", "umount -R "+keptDir)
	shell(t, `umount "$1"`, keptDir)
}

// No link of the guest leads a mount out of it, and no name of it out of the
// directory.
func TestMountDisksHostile(t *testing.T) {
	ownMounts(t)
	outside := t.TempDir()
	layout := layoutNamed(t, "ubuntu")
	layout.fill = `rmdir "$tree/boot"; ln -s "` + outside + `" "$tree/boot"; ln -s /../../../../../../tmp "$tree/efi"; mkdir "$tree/with blank"` + "\n" + layout.fill +
		"\n" + `: `
	layout.fill = strings.ReplaceAll(layout.fill, `LABEL=UEFI /boot/efi`, `LABEL=UEFI /with\\040blank/../efi`)
	image, _ := makeImage(t, layout)
	s, e := newSite(t, ""), instance(image)
	got := s.mounts(t, e, "rw")
	for _, point := range mountPoints(t) {
		if point != "/run/ganeti-instance-image" && !regexp.MustCompile(`^(|/root|/root/tmp|/disk0-part1[56])$`).MatchString(point) {
			t.Errorf("mounted at %q\n%s", point, got.log)
		}
	}
	if out := shell(t, "cat /proc/self/mountinfo"); strings.Contains(out, " "+outside+" ") {
		t.Errorf("a link led a mount out of the guest:\n%s", out)
	}
	s.umounts(t, e)
}
