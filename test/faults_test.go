package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ganeti-instance-image/internal/need"
)

// fault is injected by strace(1) at the Nth call, for N from 1 up to where no
// such call is made any more, or to most.
type fault struct {
	name, inject string
	most         int
}

var faults = []fault{
	{"mount fails", "mount:error=EIO", 6},
	{"unmount fails", "umount2:error=EBUSY", 6},
	{"a sync fails", "fsync:error=EIO", 8},
	{"an ioctl fails", "ioctl:error=EIO", 20},
	{"a program does not start", "execve:error=EACCES", 12},
	{"asked to stop while writing", "pwrite64:signal=SIGTERM", 20},
	{"asked to stop at a sync", "fsync:signal=SIGTERM", 8},
	{"asked to stop at a mount", "mount:signal=SIGTERM", 6},
	{"asked to stop at a program", "execve:signal=SIGTERM", 12},
	{"killed while writing", "pwrite64:signal=SIGKILL", 10},
	{"killed at a sync", "fsync:signal=SIGKILL", 8},
	{"killed at a mount", "mount:signal=SIGKILL", 6},
	{"killed at an unmount", "umount2:signal=SIGKILL", 4},
}

// treeFaults are those at the steps that only a tree has.
var treeFaults = []fault{
	{"mount fails", "mount:error=EIO", 6},
	{"unmount fails", "umount2:error=EBUSY", 4},
	{"a file system is not stored", "syncfs:error=EIO", 4},
	{"a sync fails", "fsync:error=EIO", 6},
	{"a program does not start", "execve:error=EACCES", 16},
	{"a file cannot be made", "mknodat:error=EIO", 2},
	{"asked to stop at a program", "execve:signal=SIGTERM", 12},
	{"asked to stop while unpacking", "fchown:signal=SIGTERM", 3},
	{"killed while unpacking", "fchown:signal=SIGKILL", 2},
	{"killed at a mount", "mount:signal=SIGKILL", 4},
}

// Whatever fails, and whenever somebody stops it: a create that says it failed
// leaves a disk that shows no system, nothing stays attached, and the next
// create works.
func TestFaultAtEveryStep(t *testing.T) {
	need.Root(t)
	need.Tools(t, "strace")
	layout := layoutNamed(t, "mbr-ext4")
	image, _ := makeImageOf(t, layout, 64)
	s := newSite(t, imageSettings(image))
	s.enable(t, "cloud-init", "ssh")
	s.injectAll(t, faults, 100, func(disk string) { checkDisk(t, disk, layout, 100) })
}

func TestFaultAtEveryStepOfATree(t *testing.T) {
	need.Tools(t, "strace", "e2fsck")
	image, _ := smallTree(t, ".tar.gz", `mknod "$tree/dev-node" c 1 3`)
	s := newSite(t, imageSettings(image, "SWAP_SIZE=10", "BOOT_SIZE=150"))
	s.enable(t, "grub", "ssh")
	s.injectAll(t, treeFaults, 600, func(disk string) {
		judgeTree(t, disk, []want{{4, "vfat", 100}, {1, "ext4", 150}, {2, "swap", 10}, {3, "ext4", 0}})
	})
}

// injectAll injects each fault at one step after the other; check wants the disk
// of a create that succeeded to be whole.
func (s *site) injectAll(t *testing.T, faults []fault, mib int, check func(disk string)) {
	for _, fault := range faults {
		t.Run(fault.name, func(t *testing.T) {
			disk, hit := newDisk(t, mib), 0
			for n := 1; n <= fault.most; n++ {
				if !s.createWith(t, fmt.Sprintf("%s:when=%d", fault.inject, n), disk, check) {
					break
				}
				hit++
			}
			if hit == 0 {
				t.Error("the fault was never injected")
			}
			s.create(t, instance(disk))
			check(disk)
		})
	}
}

// createWith runs create with a fault and checks what it left; it tells whether
// the fault happened.
func (s *site) createWith(t *testing.T, inject, disk string, check func(disk string)) bool {
	t.Helper()
	trace := filepath.Join(t.TempDir(), "trace")
	before := attached(t)
	cmd := s.command("create", instance(disk))
	syscall, _, _ := strings.Cut(inject, ":")
	traced := exec.Command("strace", "-f", "-qq", "-o", trace, "-e", "trace="+syscall, "-e", "signal=none", "-e", "inject="+inject, cmd.Path)
	traced.Dir, traced.Env = cmd.Dir, cmd.Env
	o := finish(t, traced)
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	happened := strings.Contains(string(text), "(INJECTED)") || strings.Contains(inject, "signal") && o.code != 0
	eventually(t, func() bool { return attached(t) == before }, "something stays attached after "+inject)
	killed := strings.Contains(inject, "SIGKILL")
	switch {
	case o.code == 0 && !killed:
		check(disk)
	case !killed:
		checkNoSystem(t, disk, inject, o)
	}
	return happened
}

// checkNoSystem wants a disk that is as before the run or shows nothing.
func checkNoSystem(t *testing.T, disk, inject string, o outcome) {
	t.Helper()
	if strings.Contains(o.log, "make the disk unusable again") {
		return // the wipe itself met the fault, and says so
	}
	out := tool(t, "bash", "-c", `blkid -p "$1" || true; sfdisk --json "$1" 2>/dev/null || true`, "-", disk)
	if strings.TrimSpace(out) != "" {
		t.Errorf("after %s the disk shows a system:\n%s\nlog:\n%s", inject, out, o.log)
	}
}

// eventually waits for what the kernel does in the background.
func eventually(t *testing.T, ok func() bool, otherwise string) {
	t.Helper()
	for range 500 {
		if ok() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error(otherwise)
}

// A disk that fills up while it is written: a sparse file on a small file
// system, as on a node whose storage is over-committed.
func TestFullStorage(t *testing.T) {
	image := patchyImage(t)
	s := newSite(t, imageSettings(image))
	dir := t.TempDir()
	tool(t, "mount", "-t", "tmpfs", "-o", "size=2m", "none", dir)
	t.Cleanup(func() { tool(t, "umount", dir) })
	disk := filepath.Join(dir, "disk0")
	shell(t, `truncate -s 90M "$1"`, disk)
	o := s.refuse(t, instance(disk), 4, "no space left")
	checkNoSystem(t, disk, "ENOSPC", o)
}
