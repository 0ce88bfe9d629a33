package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
)

func TestDisksThatAreRefused(t *testing.T) {
	need.Tools(t, "losetup", "mkfs.ext4")
	s := newSite(t, imageSettings(patchyImage(t)))
	t.Run("userspace access", func(t *testing.T) {
		e := instance("").with(env{"DISK_0_URI": "rbd:rbd/disk0:id=ganeti"})
		delete(e, "DISK_0_PATH")
		s.refuse(t, e, 4, "rbd:rbd/disk0:id=ganeti", "no path")
	})
	t.Run("no disk", func(t *testing.T) {
		s.refuse(t, instance("").with(env{"DISK_COUNT": "0"}), 4, "no disk")
	})
	t.Run("not there", func(t *testing.T) {
		s.refuse(t, instance("/nonexistent/disk0"), 4, "/nonexistent/disk0")
	})
	t.Run("mounted", func(t *testing.T) {
		disk, dir := newDisk(t, 90), t.TempDir()
		tool(t, "mkfs.ext4", "-q", "-F", disk)
		tool(t, "mount", "-o", "loop", disk, dir)
		defer tool(t, "umount", dir)
		s.refuse(t, instance(disk), 4, disk)
	})
	t.Run("held by a loop device, given as the device", func(t *testing.T) {
		disk, dir := newDisk(t, 90), t.TempDir()
		tool(t, "mkfs.ext4", "-q", "-F", disk)
		loop := strings.TrimSpace(tool(t, "losetup", "--find", "--show", disk))
		defer tool(t, "losetup", "--detach", loop)
		tool(t, "mount", loop, dir)
		defer tool(t, "umount", dir)
		s.refuse(t, instance(loop), 4, loop)
	})
}

func TestCreateOnBlockDevice(t *testing.T) {
	need.Tools(t, "losetup", "sgdisk")
	layout := layoutNamed(t, "debian")
	image, _ := makeImage(t, layout)
	s := newSite(t, imageSettings(image))
	s.hook(t, "site", "#!/bin/sh\necho \"$BLOCKDEV\" > "+s.dir+"/blockdev\n")
	disk := newDisk(t, 1200)
	loop := strings.TrimSpace(tool(t, "losetup", "--find", "--show", disk))
	e := instance(loop)
	if o := s.run(t, "create", e); o.code != 0 {
		t.Errorf("create: %s", o.log)
	}
	tool(t, "losetup", "--detach", loop)
	checkDisk(t, disk, layout, 1200)
	if got, _ := os.ReadFile(s.dir + "/blockdev"); strings.TrimSpace(string(got)) != loop {
		t.Errorf("BLOCKDEV was %q, want %s", got, loop)
	}
}

// An image that was cut off is refused while the disk is as it was.
func TestCutOffImage(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image.raw")
	shell(t, `truncate -s 40M "$1"; mke2fs -q -t ext4 "$1"; truncate -s 30M "$1"`, image)
	s := newSite(t, imageSettings(image))
	disk := newDisk(t, 80)
	s.refuse(t, instance(disk), 3, "cut off")
	untouched(t, disk)
	s.refuse(t, instance(disk).with(env{"DISK_0_ACCESS": "ro"}), 4, "read-only")
}

func TestCDInstallTouchesNothing(t *testing.T) {
	s := newSite(t, "CDINSTALL=yes\n")
	disk := newDisk(t, 10)
	if log := s.create(t, instance(disk)); !strings.Contains(log, "CDINSTALL") {
		t.Errorf("the log does not say why: %s", log)
	}
	untouched(t, disk)
}

func TestOSImageOnlyCustomises(t *testing.T) {
	layout := layoutNamed(t, "debian")
	image, _ := makeImage(t, layout)
	s := newSite(t, "IMAGE_NAME=does-not-exist\n")
	s.enable(t, "cloud-init")
	disk := filepath.Join(t.TempDir(), "disk")
	shell(t, `cp --sparse=always "$1" "$2"; truncate -s 1200M "$2"`, image, disk)
	s.create(t, instance(disk).with(env{"OSP_OS_IMAGE": "http://x.example/y.raw", "INSTANCE_REINSTALL": "1"}))
	checkDisk(t, disk, layout, 1200)
	dir := mountRoot(t, disk, layout)
	if _, err := os.Stat(filepath.Join(dir, "var/lib/cloud/seed/nocloud/meta-data")); err != nil {
		t.Error(err)
	}
}

func TestReinstallEqualsAFreshCreate(t *testing.T) {
	layout := layoutNamed(t, "ubuntu")
	image, _ := makeImage(t, layout)
	s := newSite(t, imageSettings(image))
	used, fresh := newDisk(t, 1200), newDisk(t, 1200)
	s.create(t, instance(used))
	shell(t, `head -c 50000000 /dev/urandom | dd of="$1" bs=1M seek=1 conv=notrunc status=none`, used)
	s.create(t, instance(used).with(env{"INSTANCE_REINSTALL": "1"}))
	s.create(t, instance(fresh))
	checkDisk(t, used, layout, 1200)
	if a, b := listing(t, used, layout), listing(t, fresh, layout); a != b {
		t.Errorf("a reinstalled guest differs from a fresh one:\n%s", diff(t, a, b))
	}
	if a, b := tool(t, "sgdisk", "-p", used), tool(t, "sgdisk", "-p", fresh); strings.ReplaceAll(a, used, "") != strings.ReplaceAll(b, fresh, "") {
		t.Errorf("tables differ:\n%s\n%s", a, b)
	}
}

func TestVerify(t *testing.T) {
	s := newSite(t, `ALLOW_URLS="https://images.example.org/"`+"\nDENY_PARAMETERS=swap\n")
	verify := func(params env) outcome {
		return s.run(t, "verify", env{"OS_API_VERSION": "20", "OS_NAME": "image", "OS_VARIANT": "default", "PATH": "/usr/bin:/bin"}.with(params), "parameters")
	}
	for _, good := range []env{
		{}, {"OSP_IMAGE_NAME": "debian-12"}, {"OSP_SWAP_SIZE": "2G"}, {"OSP_IMAGE_URL": "https://images.example.org/debian/"},
		{"OSP_USER_DATA_BASE64": "I2Nsb3VkLWNvbmZpZwo="}, {"OSP_OS_IMAGE": "http://anything/"},
	} {
		if o := verify(good); o.code != 0 || o.log != "" {
			t.Errorf("verify refused %v: %s", good, o.log)
		}
	}
	secret := "../../s3cret"
	for name, params := range map[string]env{
		"image_name":       {"OSP_IMAGE_NAME": secret},
		"image_url":        {"OSP_IMAGE_URL": "https://other.example.org/" + secret},
		"swap_size":        {"OSP_SWAP_SIZE": secret},
		"swap":             {"OSP_SWAP": "no"},
		"user_data_base64": {"OSP_USER_DATA_BASE64": secret + "!"},
		"unheard_of":       {"OSP_UNHEARD_OF": secret},
	} {
		o := verify(params)
		checkRefusal(t, o, 2, name)
		if strings.Contains(o.log, "s3cret") {
			t.Errorf("the value of %s reached the log: %s", name, o.log)
		}
	}
	o := s.run(t, "verify", env{"PATH": "/bin"}, "something")
	checkRefusal(t, o, 2, "parameters")
}

func TestNoDiskToTransfer(t *testing.T) {
	s := newSite(t, "")
	e := instance(newDisk(t, 2))
	for _, script := range []string{"export", "import"} {
		cmd := s.command(script, e)
		// A reader that leaves early would make this writer fail.
		cmd.Stdin = strings.NewReader(strings.Repeat("backup", 100000))
		checkRefusal(t, finish(t, cmd), 2, "cannot "+script, "gnt-backup "+script)
	}
}

func TestHelp(t *testing.T) {
	s := newSite(t, "")
	for _, script := range []string{"create", "verify", "import", "export", "rename", "tools/ganeti-image"} {
		for _, flag := range []string{"--help", "-h"} {
			o := s.run(t, script, env{}, flag)
			if o.code != 0 || !strings.Contains(o.log, "Usage: "+filepath.Base(script)) || !strings.Contains(o.log, "Exit status") {
				t.Errorf("%s %s: %d\n%s", script, flag, o.code, o.log)
			}
		}
	}
}

// Ganeti reads the definition's files strictly: see lib/backend.py.
func TestDefinitionFiles(t *testing.T) {
	s := newSite(t, "")
	for _, name := range []string{"ganeti_api_version", "parameters.list", "variants.list"} {
		text, err := os.ReadFile(filepath.Join(s.osDir, name))
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
			fields := strings.Fields(line)
			if len(fields) == 0 || strings.HasPrefix(line, "#") || name == "parameters.list" && len(fields) < 2 {
				t.Errorf("%s:%d: Ganeti cannot read %q", name, i+1, line)
			}
		}
	}
	for _, script := range []string{"create", "import", "export", "rename", "verify"} {
		info, err := os.Stat(filepath.Join(s.osDir, script))
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o100 == 0 {
			t.Errorf("%s: %v, %v", script, info, err)
		}
	}
}

// A descriptor of Ganeti's daemon that came along must not reach a hook, nor
// does the umask of whoever started us.
func TestProcess(t *testing.T) {
	image, _ := makeImage(t, layoutNamed(t, "mbr-ext4"))
	s := newSite(t, imageSettings(image))
	s.hook(t, "site", "#!/bin/sh\n{ umask; ls -l /proc/self/fd; readlink /proc/self/fd/0; } > "+s.dir+"/process\n")
	cmd := s.command("create", instance(newDisk(t, 1000)))
	script := `umask 077; exec 7</etc/passwd; exec "$0"`
	wrapped := exec.Command("bash", "-c", script, cmd.Path)
	wrapped.Dir, wrapped.Env = cmd.Dir, cmd.Env
	if o := finish(t, wrapped); o.code != 0 {
		t.Fatal(o.log)
	}
	got, _ := os.ReadFile(s.dir + "/process")
	if !strings.HasPrefix(string(got), "0022\n") || strings.Contains(string(got), "socket") || strings.Contains(string(got), "/etc/passwd") || !strings.HasSuffix(string(got), "/dev/null\n") {
		t.Errorf("the hook's process: %s", got)
	}
}

func TestSecondInstallChangesNothing(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	s, err := install(dir)
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, s.conf("hooks/ssh"), "#!/bin/sh\n# the site's\n", 0o755)
	s.write(t, s.conf("variants.list"), "mine\n", 0o600)
	s.write(t, s.conf("../../default/ganeti-instance-image"), "SWAP=no\n", 0o640)
	if err := os.Chmod(s.conf("hooks"), 0o700); err != nil {
		t.Fatal(err)
	}
	const state = `cd "$1/etc"; find . -printf '%p %m %U %G %s\n' | LC_ALL=C sort; find . -type f -exec sha256sum {} +`
	before := shell(t, state, dir)
	if _, err := install(dir); err != nil {
		t.Fatal(err)
	}
	if after := shell(t, state, dir); after != before {
		t.Errorf("a second install changed the site's files:\n%s", diff(t, before, after))
	}
}
