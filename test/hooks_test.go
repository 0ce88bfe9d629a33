package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
)

// What a hook of the site's own sees, with common.sh as such hooks begin.
func TestHookEnvironment(t *testing.T) {
	layout := layoutNamed(t, "ubuntu")
	image, _ := makeImage(t, layout)
	s := newSite(t, imageSettings(image, "SITE_VALUE='my own'", "KERNEL_ARGS='quiet splash'", "IMAGE_DEBUG=1"))
	out := filepath.Join(t.TempDir(), "out")
	s.hook(t, "site", `#!/bin/bash
set -e
. common.sh
get_os "$TARGET"; get_os_type "$TARGET"; get_os_release "$TARGET"
CLEANUP+=("echo cleaned >> `+out+`")
{
	echo "os=$OPERATING_SYSTEM $OS_TYPE $OS_RELEASE"
	echo "site=$SITE_VALUE args=$KERNEL_ARGS swap=$SWAP fs=$FILESYSTEM type=$IMAGE_TYPE"
	echo "name=$INSTANCE_NAME mac=$NIC_0_MAC cwd=$(pwd)"
	echo "dirs=$CUSTOMIZE_DIR $NETWORKS_DIR $OVERLAYS_DIR"
	echo "root=$ROOT_DEV boot=$BOOT_DEV target=$TARGET"
	echo "rootuuid=$($VOL_TYPE "$ROOT_DEV") boottype=$($VOL_TYPE "$BOOT_DEV")"
	debug echo debugging
	cat "$TARGET/boot/vmlinuz"
	sfdisk --json "$BLOCKDEV" | grep -c '"node"'
	grep " $TARGET " /proc/self/mountinfo | cut -d' ' -f6
	mknod "$TARGET/tmp/null" c 1 3; echo x > "$TARGET/tmp/null"; rm "$TARGET/tmp/null"
} > `+out+"\n")
	log := s.create(t, instance(newDisk(t, 1000)))
	if !strings.Contains(log, "device nodes") {
		t.Errorf("the log does not say that the guest's device nodes act:\n%s", log)
	}
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"os=debian debian 12\n", "site=my own args=quiet splash swap=yes fs=ext4 type=raw\n",
		"name=web.example.org mac=aa:00:00:12:34:56 cwd=" + s.osDir + "\n",
		"dirs=" + s.conf("hooks") + " " + s.conf("networks") + " " + s.conf("overlays") + "\n",
		"rootuuid=ext4 boottype=ext4\n", "debugging\n", "kernel\n4\n", "cleaned\n",
	} {
		if !strings.Contains(string(got), want) {
			t.Errorf("the hook did not see %q in:\n%s", want, got)
		}
	}
	if !strings.Contains(string(got), "-1 boot=") || !strings.Contains(string(got), "-16 target=") {
		t.Errorf("the devices' names do not end in the partitions' numbers:\n%s", got)
	}
	if strings.Contains(string(got), "nodev") || strings.Contains(string(got), "nosuid") {
		t.Errorf("the tree is mounted nodev or nosuid for a site's own hook:\n%s", got)
	}
}

func TestFailingHook(t *testing.T) {
	image, _ := makeImage(t, layoutNamed(t, "debian"))
	s := newSite(t, imageSettings(image))
	s.hook(t, "10-bad", "#!/bin/sh\necho it went wrong >&2\nmkdir $TARGET/x; mount -t tmpfs none $TARGET/x\nexit 9\n")
	disk := newDisk(t, 1000)
	o := s.refuse(t, instance(disk), 5, "hooks/10-bad", "exit status 9")
	if !strings.Contains(o.log, "it went wrong") {
		t.Errorf("the hook's own words are not in the log:\n%s", o.log)
	}
	empty(t, disk)
	os.Remove(s.conf("hooks/10-bad"))
	s.create(t, instance(disk))
	checkDisk(t, disk, layoutNamed(t, "debian"), 1000)
}

// What a hook started and mounted is gone when create ends, also if the hook
// failed, or create itself was killed; a file system without a table shows most
// easily whether one was still mounted when the disk was wiped.
func TestHookLeavesPrograms(t *testing.T) {
	layout := layoutNamed(t, "whole-disk")
	image, _ := makeImage(t, layout)
	s := newSite(t, imageSettings(image))
	disk := newDisk(t, 1000)
	const daemon = "#!/bin/sh\nset -e\ncd $TARGET\nsetsid sleep 1000 &\nmount --bind /proc $TARGET/proc\n"
	s.hook(t, "daemon", daemon)
	if log := s.create(t, instance(disk)); !strings.Contains(log, "left programs running") {
		t.Errorf("the log does not tell of the program:\n%s", log)
	}
	checkDisk(t, disk, layout, 1000)
	s.hook(t, "daemon", daemon+"false\n")
	s.refuse(t, instance(disk), 5, "hooks/daemon", "exit status 1")
	empty(t, disk)

	started := filepath.Join(t.TempDir(), "started")
	s.hook(t, "daemon", daemon+"touch "+started+"\nsleep 1000\n")
	before := attached(t)
	cmd := s.command("create", instance(disk))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { _, err := os.Stat(started); return err == nil }, "the hook did not start")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	eventually(t, func() bool { return attached(t) == before }, "something stays attached after SIGKILL")
	os.Remove(s.conf("hooks/daemon"))
	s.create(t, instance(disk))
}

func TestHookLeavesAMount(t *testing.T) {
	image, _ := makeImage(t, layoutNamed(t, "mbr-ext4"))
	s := newSite(t, imageSettings(image))
	s.hook(t, "mounter", "#!/bin/sh\nset -e\nmount -t proc none $TARGET/proc; mount --bind /dev $TARGET/dev\n")
	if log := s.create(t, instance(newDisk(t, 1000))); !strings.Contains(log, "left file systems mounted") {
		t.Errorf("the log does not name what was left mounted:\n%s", log)
	}
}

// Our own hooks on every layout: the guest has a seed, keys and the overlay.
func TestOwnHooks(t *testing.T) {
	need.Tools(t, "ssh-keygen", "cloud-init")
	for _, layout := range diskLayouts {
		t.Run(layout.name, func(t *testing.T) {
			image, _ := makeImage(t, layout)
			s := newSite(t, imageSettings(image, "OVERLAY=site", "CINIT_USER=admin", "USER_DATA='#cloud-config\npackages: [htop]\n'"))
			s.write(t, s.conf("overlays/site/etc/motd"), "hello\n", 0o640)
			s.write(t, s.conf("overlays/site/.hidden"), "dot\n", 0o600)
			s.enable(t, "cloud-init", "ssh", "overlays", "grub")
			disk := newDisk(t, 1200)
			log := s.create(t, instance(disk))
			if strings.Contains(log, "device nodes") || strings.Contains(log, "no hook is enabled") {
				t.Errorf("log:\n%s", log)
			}
			checkDisk(t, disk, layout, 1200)
			checkGuest(t, mountRoot(t, disk, layout))

		})
	}
}

func checkGuest(t *testing.T, dir string) {
	t.Helper()
	seed := filepath.Join(dir, "var/lib/cloud/seed/nocloud")
	if got := tool(t, "stat", "-c", "%a %u %g", seed); got != "700 0 0\n" {
		t.Errorf("the seed's directory: %s", got)
	}
	for file, want := range map[string]string{
		"meta-data":      "5b7bd4d2-3fa1-4d5d-b2ff-e5a7a1d6a7cc",
		"user-data":      "packages: [htop]",
		"vendor-data":    "admin",
		"network-config": "aa:00:00:12:34:56",
	} {
		text, err := os.ReadFile(filepath.Join(seed, file))
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %v\n%s", file, err, text)
		}
	}
	for _, file := range []string{"user-data", "vendor-data"} {
		tool(t, "cloud-init", "schema", "--config-file", filepath.Join(seed, file))
	}
	for _, kind := range []string{"rsa", "ecdsa", "ed25519"} {
		key := filepath.Join(dir, "etc/ssh/ssh_host_"+kind+"_key")
		tool(t, "ssh-keygen", "-y", "-f", key)
		if got := tool(t, "stat", "-c", "%a", key); got != "600\n" {
			t.Errorf("%s has mode %s", key, got)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "etc/ssh/ssh_host_dsa_key")); err == nil {
		t.Error("the image's own host key is still there")
	}
	if got := tool(t, "stat", "-c", "%a", filepath.Join(dir, "etc/motd"), filepath.Join(dir, ".hidden")); got != "640\n600\n" {
		t.Errorf("the overlay's modes: %s", got)
	}
}

func TestHooksCommand(t *testing.T) {
	s := newSite(t, "")
	list := func() string { return tool(t, filepath.Join(s.dir, "usr/sbin/ganeti-image"), "hooks", "list") }
	if out := list(); !strings.Contains(out, "off  cloud-init") || !strings.Contains(out, s.conf("hooks")) {
		t.Errorf("hooks list:\n%s", out)
	}
	s.enable(t, "cloud-init", "ssh")
	if out := list(); !strings.Contains(out, "on   cloud-init") || !strings.Contains(out, "on   ssh") {
		t.Errorf("hooks list:\n%s", out)
	}
	tool(t, filepath.Join(s.dir, "usr/sbin/ganeti-image"), "hooks", "disable", "ssh")
	o := s.run(t, "tools/ganeti-image", env{}, "hooks", "enable", "overlays", "nonesuch")
	checkRefusal(t, o, 1, "nonesuch", "hooks list")
	if out := list(); !strings.Contains(out, "off  ssh") || !strings.Contains(out, "off  overlays") {
		t.Errorf("hooks list:\n%s", out)
	}
}

// A variant may have hooks of its own.
func TestHooksCommandOfAVariant(t *testing.T) {
	s := newSite(t, "")
	dir := t.TempDir()
	s.write(t, filepath.Join(dir, "own"), "#!/bin/sh\n", 0o644)
	conf := s.conf("variants/special.conf")
	s.write(t, conf, "CUSTOMIZE_DIR="+dir+"\n", 0o644)
	t.Cleanup(func() { os.Remove(conf) })
	program := filepath.Join(s.dir, "usr/sbin/ganeti-image")
	tool(t, program, "hooks", "--variant", "special", "enable", "own")
	if out := tool(t, program, "hooks", "--variant=special", "list"); !strings.Contains(out, "on   own") || !strings.Contains(out, dir) {
		t.Errorf("hooks list:\n%s", out)
	}
}

// A hook this version does not bring yet is refused before the disk is touched.
func TestHookNotYet(t *testing.T) {
	image, _ := makeImage(t, layoutNamed(t, "mbr-ext4"))
	s := newSite(t, imageSettings(image))
	s.enable(t, "zz_ddns")
	disk := newDisk(t, 1000)
	s.refuse(t, instance(disk), 7, "zz_ddns", "hooks disable zz_ddns")
	untouched(t, disk)
}

// A guest that is no Linux system is deployed, and said not to be customised.
func TestForeignGuest(t *testing.T) {
	image := patchyImage(t)
	s := newSite(t, imageSettings(image, "IMAGE_TYPE=raw"))
	s.enable(t, "cloud-init")
	disk := newDisk(t, 90)
	if log := s.create(t, instance(disk)); !strings.Contains(log, "not customised") {
		t.Errorf("log:\n%s", log)
	}
}
