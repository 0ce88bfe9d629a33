package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ganeti-instance-image/internal/need"
)

// keyMark and oldMark are secrets of a guest: one is there, one was removed
// before the capture.
const (
	keyMark = "SECRET-OF-THE-HOST-KEY-7f3a"
	oldMark = "SECRET-THAT-WAS-REMOVED-19cc"
)

// noSecrets wants a raw image to have none of them; the copy is compared with
// the disk, which has both.
const noSecrets = `for s in ` + keyMark + ` ` + oldMark + `; do if grep -q -a "$s" "$1/web-x.raw"; then echo "$s is in the image"; exit 1; fi; grep -q -a "$s" "$2"; done`

// usedGuest makes the files of a root those of a guest that was in use.
const usedGuest = `
cd "$1"
{ echo KEY; for i in $(seq 300); do echo ` + keyMark + `; done; } > etc/ssh/ssh_host_ed25519_key
echo 0123456789abcdef0123456789abcdef > etc/machine-id
mkdir -p usr/lib/systemd var/lib/cloud/instances/i-1 var/log/journal/0123 var/log/app root/.ssh home/eve var/cache/apt/archives/partial var/spool/mail
echo x > usr/lib/systemd/systemd
echo x > var/lib/cloud/instances/i-1/user-data.txt; ln -s instances/i-1 var/lib/cloud/instance
echo web.example.org > etc/hostname; printf '127.0.0.1 localhost\n127.0.1.1 web.example.org web\n' > etc/hosts
echo logged > var/log/syslog; echo logged > var/log/syslog.1; echo j > var/log/journal/0123/system.journal; echo logged > var/log/app/app.log
echo 'rm -rf /' > root/.bash_history; echo host > root/.ssh/known_hosts; echo key > root/.ssh/authorized_keys
echo 'eve:x:1000:1000::/home/eve:/bin/bash' >> etc/passwd; cp etc/passwd etc/passwd-
echo deb > var/cache/apt/archives/x.deb; echo t > tmp/x; echo mail > var/spool/mail/eve
setfattr -n user.kept -v yes usr/lib/content; sha256sum usr/lib/content > usr/lib/content.sum
{ for i in $(seq 300); do echo ` + oldMark + `; done; } > old; sync -f .; rm old; sync -f .
`

// used makes the image of a layout, whose guest was in use, into a disk.
func usedDisk(t *testing.T, layout diskLayout, mib int64) string {
	t.Helper()
	need.Tools(t, "setfattr", "getfattr")
	disk, _ := makeImageOf(t, layout, mib)
	t.Run("use", func(t *testing.T) { shell(t, usedGuest, mountRoot(t, disk, layout)) })
	return disk
}

// gone and kept are checked of a guest whose image was made.
const capturedGuest = `
cd "$1"
fail() { echo "$1"; bad=1; }
bad=
for f in etc/ssh/ssh_host_ed25519_key etc/ssh/ssh_host_dsa_key var/lib/cloud/instances var/lib/cloud/instance var/log/syslog.1 var/log/journal/0123 \
	root/.bash_history root/.ssh/known_hosts etc/passwd- var/cache/apt/archives/x.deb tmp/x var/spool/mail/eve; do
	[ ! -e "$f" ] && [ ! -L "$f" ] || fail "$f is there"
done
for f in root/.ssh/authorized_keys var/log/app/app.log var/log/syslog var/cache/apt/archives/partial usr/lib/content etc/passwd tmp var/log/journal; do
	[ -e "$f" ] || fail "$f is gone"
done
[ ! -s etc/machine-id ] && [ -e etc/machine-id ] || fail "machine-id"
[ ! -s var/log/syslog ] && [ ! -s var/log/app/app.log ] || fail "logs are not empty"
! grep -r web.example etc || fail "the name is there"
sha256sum --quiet -c usr/lib/content.sum && [ "$(getfattr --only-values -n user.kept usr/lib/content)" = yes ] || fail "a file is not what it was"
[ -z "$bad" ]
`

// capture runs on-node capture with an order and wants it to succeed.
func (s *site) capture(t *testing.T, e env, order map[string]any) string {
	t.Helper()
	before := attached(t)
	cmd, log, end := s.captureOrder(t, e, order)
	err := cmd.Wait()
	end()
	if err != nil {
		t.Fatalf("capture: %v:\n%s", err, log())
	}
	if after := attached(t); after != before {
		t.Fatalf("capture left something attached:\n%s\n%s", after, log())
	}
	return log()
}

func (s *site) captureOrder(t *testing.T, e env, order map[string]any) (*exec.Cmd, func() string, func()) {
	t.Helper()
	text, err := json.Marshal(order)
	if err != nil {
		t.Fatal(err)
	}
	cmd, log, end := s.onNode(t, e, "capture", string(text))
	return cmd, log.String, end
}

// checkSums has sha256sum judge what is beside the images, and wants no other
// file in the directory.
func checkSums(t *testing.T, dir string, want ...string) {
	t.Helper()
	out := shell(t, `cd "$1"; sha256sum --quiet -c -- *.sha256; ls -A | grep -v '\.sha256$'`, dir)
	if got := strings.Fields(out); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("there are %q, want %q", got, want)
	}
	for _, name := range want {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

// An image of each type, of each kind of disk: the disk is as it was, the image
// has what it must have and no secret, and create makes an instance of it.
func TestCapture(t *testing.T) {
	need.Tools(t, "qemu-img", "tar", "restore", "zstd", "xz", "grep")
	cases := []struct {
		layout, imageType, compression string
		want                           []string
		check                          string // $1 is the directory, $2 the disk
	}{
		{"ubuntu", "", "", []string{"web-x.qcow2"}, `qemu-img check -q "$1/web-x.qcow2"; qemu-img info "$1/web-x.qcow2" | grep -q 'compression type: zstd'`},
		{"mbr-ext4", "qcow2", "zlib", []string{"web-x.qcow2"}, `qemu-img check -q "$1/web-x.qcow2"`},
		{"whole-disk", "raw", "", []string{"web-x.raw"}, noSecrets},
		{"almalinux", "raw", "", []string{"web-x.raw"}, noSecrets},
		{"fedora", "raw", "", []string{"web-x.raw"}, noSecrets},
		{"ubuntu", "tarball", "", []string{"web-x.tar.zst"}, `zstd -dc "$1/web-x.tar.zst" | tar -t | grep -qx ./boot/vmlinuz`},
		{"mbr-ext4", "tarball", "gz", []string{"web-x.tar.gz"}, `tar -tzf "$1/web-x.tar.gz" | grep -qx ./etc/fstab`},
		{"mbr-ext4", "tarball", "xz", []string{"web-x.tar.xz"}, `tar -tJf "$1/web-x.tar.xz" | grep -qx ./etc/fstab`},
		{"ubuntu", "dump", "", []string{"web-x-boot.dump", "web-x-root.dump"}, `restore -t -f "$1/web-x-boot.dump" | grep -q vmlinuz; restore -t -f "$1/web-x-root.dump" | grep -q etc/fstab`},
		{"mbr-ext4", "dump", "none", []string{"web-x-root.dump"}, `restore -t -f "$1/web-x-root.dump" | grep -q etc/fstab`},
	}
	for _, c := range cases {
		t.Run(c.layout+" "+c.imageType+" "+c.compression, func(t *testing.T) {
			layout, dir := layoutNamed(t, c.layout), t.TempDir()
			mib := int64(400)
			if c.layout == "almalinux" {
				mib = 800
			}
			disk := usedDisk(t, layout, mib)
			s := newSite(t, "IMAGE_DIR="+dir+"\nIMAGE_NAME=web\nARCH=x\nBOOT_SIZE=200\nSWAP=no\nGRUB=no\n")
			before := tool(t, "sha256sum", disk)
			log := s.capture(t, instance(disk), map[string]any{"type": c.imageType, "compression": c.compression})
			if after := tool(t, "sha256sum", disk); after != before {
				t.Error("the captured disk changed")
			}
			if strings.Contains(log, "warning: create finds") || !strings.Contains(log, "capture: removed /etc/ssh/ssh_host_ed25519_key") {
				t.Errorf("log:\n%s", log)
			}
			checkSums(t, dir, c.want...)
			shell(t, c.check, dir, disk)
			target := newDisk(t, 1200)
			s.create(t, instance(target).with(env{"INSTANCE_HV_kernel_path": "/boot/vmlinuz"}))
			checkCaptured(t, target, layout, c.imageType == "tarball" || c.imageType == "dump")
		})
	}
}

// checkCaptured looks into the guest that was made of an image.
func checkCaptured(t *testing.T, disk string, layout diskLayout, tree bool) {
	t.Helper()
	if tree {
		layout.name = "tree"
		for _, p := range readTable(t, disk).PartitionTable.Partitions {
			var n int
			fmt.Sscanf(strings.TrimPrefix(p.Node, disk), "%d", &n)
			layout.root = n
		}
	}
	t.Run("guest", func(t *testing.T) { shell(t, capturedGuest, mountRoot(t, disk, layout)) })
}

// What is asked to stay stays, the file names are those asked for, a further disk
// is copied as it is, and an image is replaced only where that is asked for.
func TestCaptureOptions(t *testing.T) {
	layout := layoutNamed(t, "mbr-ext4")
	disk, data := usedDisk(t, layout, 64), newDisk(t, 32)
	tool(t, "mkfs.ext4", "-q", "-F", data)
	dir := t.TempDir()
	s := newSite(t, "")
	e := disks(disk, data)
	order := map[string]any{"dir": dir, "name": "gold", "arch": "amd64", "type": "raw", "disks": []int{0, 1}, "keep": []string{"ssh-host-keys", "tmp"}, "remove": []string{"authorized-keys"}}
	log := s.capture(t, e, order)
	checkSums(t, dir, "gold-amd64.raw", "gold-disk1-amd64.raw")
	tool(t, "e2fsck", "-fn", filepath.Join(dir, "gold-disk1-amd64.raw"))
	if !strings.Contains(log, "it holds no Linux system") {
		t.Errorf("log:\n%s", log)
	}
	t.Run("guest", func(t *testing.T) {
		shell(t, `cd "$1"; [ -e etc/ssh/ssh_host_ed25519_key ] && [ -e tmp/x ] && [ ! -e root/.ssh/authorized_keys ] && [ ! -e root/.bash_history ]`,
			mountRoot(t, filepath.Join(dir, "gold-amd64.raw"), layout))
	})
	before := tool(t, "ls", "-l", "--full-time", dir)
	s.refuseCapture(t, e, order, 2, "it is there already", "--force")
	if after := tool(t, "ls", "-l", "--full-time", dir); after != before {
		t.Errorf("the refused capture changed something:\n%s", after)
	}
	order["force"], order["keep"] = true, []string{"all"}
	delete(order, "remove")
	s.capture(t, e, order)
	checkSums(t, dir, "gold-amd64.raw", "gold-disk1-amd64.raw")
	if before, after := listing(t, disk, layout), listing(t, filepath.Join(dir, "gold-amd64.raw"), layout); before != after {
		t.Errorf("what is to be kept changed:\n%s", diff(t, before, after))
	}
}

func (s *site) refuseCapture(t *testing.T, e env, order map[string]any, code int, words ...string) {
	t.Helper()
	before := attached(t)
	cmd, log, end := s.captureOrder(t, e, order)
	_ = cmd.Wait()
	end()
	checkRefusal(t, outcome{cmd.ProcessState.ExitCode(), log()}, code, words...)
	if after := attached(t); after != before {
		t.Errorf("a refused capture left something attached:\n%s", after)
	}
}

func TestCaptureRefuses(t *testing.T) {
	layout := layoutNamed(t, "mbr-ext4")
	disk, second, dir := usedDisk(t, layout, 64), newDisk(t, 32), t.TempDir()
	s := newSite(t, "IMAGE_DIR="+dir+"\n")
	cases := []struct {
		name  string
		order map[string]any
		code  int
		words []string
	}{
		{"no directory", map[string]any{"dir": dir + "/none"}, 2, []string{"no directory of this node", "--dir"}},
		{"a relative directory", map[string]any{"dir": "images"}, 2, []string{"full path"}},
		{"an unknown type", map[string]any{"type": "vmdk"}, 2, []string{`"vmdk"`, "qcow2, raw, tarball, dump"}},
		{"an unknown compression", map[string]any{"type": "tarball", "compression": "zstd"}, 2, []string{"zst, gz, xz, none"}},
		{"a name that leads out", map[string]any{"name": "../x"}, 2, []string{`"../x"`}},
		{"a hidden name", map[string]any{"name": ".x"}, 2, []string{`".x"`}},
		{"a machine that leads out", map[string]any{"arch": "x/y"}, 2, []string{`"x/y"`}},
		{"an unknown part", map[string]any{"keep": []string{"hostkeys"}}, 2, []string{`"hostkeys"`, "ssh-host-keys"}},
		{"all and a part", map[string]any{"keep": []string{"all"}, "remove": []string{"authorized-keys"}}, 2, []string{"keep all"}},
		{"a disk that is not there", map[string]any{"disks": []int{2}}, 2, []string{"2 disks"}},
		{"a disk twice", map[string]any{"disks": []int{0, 0}}, 2, []string{"once"}},
		{"files of a disk without a system", map[string]any{"type": "tarball", "disks": []int{1}}, 1, []string{"no Linux system", "--type qcow2"}},
		{"an unknown field", map[string]any{"direction": "x"}, 2, []string{"same version"}},
	}
	before := tool(t, "sha256sum", disk)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s.refuseCapture(t, disks(disk, second), c.order, c.code, c.words...)
			if left := tool(t, "ls", "-A", dir); left != "" {
				t.Errorf("it left %s", left)
			}
		})
	}
	t.Run("a disk in use", func(t *testing.T) {
		loop := strings.TrimSpace(tool(t, "losetup", "--find", "--show", disk))
		defer tool(t, "losetup", "--detach", loop)
		s.refuseCapture(t, instance(disk), nil, 4, "in use", loop)
		if log := s.capture(t, instance(disk), map[string]any{"running": true}); !strings.Contains(log, "power cut") {
			t.Errorf("log:\n%s", log)
		}
		shell(t, `rm "$1"/*`, dir)
	})
	t.Run("a seed", func(t *testing.T) {
		tool(t, "mkfs.vfat", "-n", "X", second)
		shell(t, `dd if=/dev/zero of="$1" bs=1M count=2 conv=notrunc status=none; printf '\001CD001\001' | dd of="$1" bs=1 seek=32768 conv=notrunc status=none; printf 'cidata  ' | dd of="$1" bs=1 seek=32808 conv=notrunc status=none`, second)
		s.refuseCapture(t, disks(disk, second), map[string]any{"disks": []int{1}}, 4, "cloud-init seed")
	})
	t.Run("files that cannot be read", func(t *testing.T) {
		disk := usedDisk(t, layoutNamed(t, "ubuntu"), 400)
		start, _ := extent(t, disk, 16)
		shell(t, `dd if=/dev/zero of="$1" bs=1024 seek=$(($2 / 1024 + 2)) count=64 conv=notrunc status=none`, disk, fmt.Sprint(start)) // the groups of /boot
		for _, imageType := range []string{"tarball", "dump", "qcow2"} {
			s.refuseCapture(t, instance(disk), map[string]any{"type": imageType}, 7, "/boot could not be mounted", "--keep all", "--type qcow2")
		}
		s.refuseCapture(t, instance(disk), map[string]any{"type": "tarball", "keep": []string{"all"}}, 7, "/boot could not be mounted")
		if left := tool(t, "ls", "-A", dir); left != "" {
			t.Errorf("it left %s", left)
		}
	})
	t.Run("what cannot be looked into", func(t *testing.T) {
		locked := newDisk(t, 32)
		shell(t, `printf 'LUKS\272\276\000\001' | dd of="$1" conv=notrunc status=none`, locked)
		s.refuseCapture(t, disks(locked), nil, 7, "disk 0", "crypto_LUKS", "--keep all")
		s.refuseCapture(t, disks(disk, locked), map[string]any{"disks": []int{1}}, 7, "disk 1", "crypto_LUKS")
		if left := tool(t, "ls", "-A", dir); left != "" {
			t.Errorf("it left %s", left)
		}
		s.capture(t, disks(locked), map[string]any{"keep": []string{"all"}})
		shell(t, `rm "$1"/*`, dir)
	})
	t.Run("no room", func(t *testing.T) {
		small := t.TempDir()
		tool(t, "mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small)
		defer tool(t, "umount", small)
		s.refuseCapture(t, instance(disk), map[string]any{"dir": small}, 1, "2 MiB free", "--dir")
		tool(t, "mount", "-o", "remount,size=60m", small)
		s.refuseCapture(t, instance(disk), map[string]any{"dir": small}, 1, "60 MiB free", "--dir")
	})
	t.Run("the room ends", func(t *testing.T) {
		small := t.TempDir()
		tool(t, "mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", small)
		defer tool(t, "umount", small)
		s.refuseCapture(t, instance(disk), map[string]any{"dir": small, "keep": []string{"all"}}, 1, "o space left")
		if left := tool(t, "ls", "-A", small); left != "" {
			t.Errorf("it left %s", left)
		}
	})
	if after := tool(t, "sha256sum", disk); after != before {
		t.Error("a disk that was not captured changed")
	}
}

// Whoever stops it, and whatever fails: no part of an image is left, nothing
// stays attached, and the disk is as it was.
func TestCaptureFaults(t *testing.T) {
	need.Tools(t, "strace")
	disk := usedDisk(t, layoutNamed(t, "mbr-ext4"), 64)
	s := newSite(t, "")
	for _, fault := range []fault{
		{"mount fails", "mount:error=EIO", 6},
		{"unmount fails", "umount2:error=EBUSY", 2},
		{"a sync fails", "fsync:error=EIO", 6},
		{"a file system is not stored", "syncfs:error=EIO", 3},
		{"a program does not start", "execve:error=EACCES", 3},
		{"it cannot be named", "renameat2:error=EIO", 2},
		{"asked to stop while copying", "pwrite64:signal=SIGTERM", 4},
		{"asked to stop at a program", "execve:signal=SIGTERM", 3},
		{"killed while copying", "pwrite64:signal=SIGKILL", 3},
		{"killed at a mount", "mount:signal=SIGKILL", 5},
		{"killed at an unmount", "umount2:signal=SIGKILL", 1},
	} {
		t.Run(fault.name, func(t *testing.T) {
			hit := 0
			for n := 1; n <= fault.most; n++ {
				dir := t.TempDir()
				if s.captureFails(t, disk, dir, fmt.Sprintf("%s:when=%d", fault.inject, n)) {
					hit++
				}
			}
			if hit == 0 {
				t.Error("no call was hit")
			}
		})
	}
}

// captureFails captures with a fault and tells whether it failed.
func (s *site) captureFails(t *testing.T, disk, dir, inject string) bool {
	t.Helper()
	before, sum := attached(t), tool(t, "sha256sum", disk)
	program := filepath.Join(s.dir, "usr/lib/ganeti-instance-image/instance-image")
	cmd := exec.Command("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace="+inject[:strings.Index(inject, ":")], "-e", "inject="+inject,
		program, "on-node", "capture", fmt.Sprintf(`{"dir":%q,"name":"a","arch":"x"}`, dir))
	cmd.Dir = s.osDir
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = input.Write([]byte(strings.Join(instance(disk).list(), "\x00") + "\x00\x00"))
	err = cmd.Wait()
	input.Close()
	left := strings.Fields(tool(t, "ls", "-A", dir))
	switch {
	case err == nil && strings.Join(left, " ") != "a-x.qcow2 a-x.qcow2.sha256":
		t.Errorf("%s: it succeeded with %q:\n%s", inject, left, log.String())
	case err == nil:
		shell(t, `cd "$1"; sha256sum --quiet -c a-x.qcow2.sha256; qemu-img check -q a-x.qcow2`, dir)
	case len(left) > 0:
		t.Errorf("%s: it left %q:\n%s", inject, left, log.String())
	}
	for wait := 0; attached(t) != before; wait++ {
		if wait == 50 {
			t.Errorf("%s: something is left attached:\n%s", inject, attached(t))
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if tool(t, "sha256sum", disk) != sum {
		t.Errorf("%s: the disk changed", inject)
	}
	return err != nil
}
