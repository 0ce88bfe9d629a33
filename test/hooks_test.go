package test

import (
	"os"
	"os/exec"
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
	name=$(map_disk0 "$BLOCKDEV")
	[ "$(realpath "$(map_partition "$name" root)")" = "$(realpath "$ROOT_DEV")" ] && echo the mounted device
	[ "$(realpath "$(map_partition "$name" boot)")" = "$(realpath "$BOOT_DEV")" ] && echo the mounted boot device
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
		"rootuuid=ext4 boottype=ext4\n", "debugging\nthe mounted device\nthe mounted boot device\n", "kernel\n4\n", "cleaned\n",
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

// common runs a script that begins with common.sh, as a hook of the site's own
// does, with the arguments $1, $2 ...
func common(t *testing.T, script string, args ...string) (string, error) {
	t.Helper()
	file, err := filepath.Abs("../os-def/common.sh")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", append([]string{"-c", "set -eu; . " + file + "\n" + script, "hook"}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SWAP=yes", "SWAP_SIZE=20", "BOOT_SIZE=30", "FILESYSTEM=ext4", "INSTANCE_NAME=web.example.org"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestCommonTellsTheSystem(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("ID=secret\nVERSION_ID=1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cases := []struct{ guest, want string }{
		{"printf 'ID=debian\\nVERSION_ID=\"12\"\\n' >etc/os-release", "debian/debian/12"},
		{"printf 'ID=ubuntu\\nID_LIKE=debian\\nVERSION_ID=\"22.04\"\\n' >usr/lib/os-release; ln -s ../usr/lib/os-release etc/os-release", "ubuntu/debian/22.04"},
		{"printf 'ID=ubuntu\\nID_LIKE=debian\\n' >usr/lib/os-release; ln -s /usr/lib/os-release etc/os-release", "ubuntu/debian/"},
		{"printf 'ID=\"rhel\"\\nID_LIKE=\"fedora\"\\nVERSION_ID=\"9.4\"\\n' >etc/os-release", "redhat/redhat/9.4"},
		{"printf 'ID=\"almalinux\"\\nID_LIKE=\"rhel centos fedora\"\\nVERSION_ID=\"9.4\"\\n' >etc/os-release", "almalinux/redhat/9.4"},
		{"printf 'ID=\"opensuse-leap\"\\nID_LIKE=\"suse opensuse\"\\nVERSION_ID=\"15.6\"\\n' >etc/os-release", "opensuse-leap/suse/15.6"},
		{"echo 'CentOS release 6.10 (Final)' >etc/redhat-release", "centos/redhat/6.10"},
		{"echo 'Red Hat Enterprise Linux Server release 6.9 (Santiago)' >etc/redhat-release", "redhat/redhat/6.9"},
		{"echo 5.0.10 >etc/debian_version", "debian/debian/5.0.10"},
		{"touch etc/gentoo-release", "gentoo/gentoo/"},
		{"", "//"},
		{"ln -s " + secret + " etc/os-release; ln -s " + secret + " etc/debian_version", "//"},
		{"mkfifo etc/os-release usr/lib/os-release etc/redhat-release", "//"},
		{"rmdir etc; ln -s / etc", "//"},
	}
	for _, c := range cases {
		dir := t.TempDir()
		shell(t, `cd "$1"; mkdir -p etc usr/lib; eval "$2"`, dir, c.guest)
		out, err := common(t, `get_os "$1"; get_os_type "$1"; get_os_release "$1"; echo "$OPERATING_SYSTEM/$OS_TYPE/$OS_RELEASE"`, dir)
		if err != nil || out != c.want+"\n" {
			t.Errorf("%s: %v\n%s, want %s", c.guest, err, out, c.want)
		}
	}
}

// The functions that prepared a disk by hand do so on a node of today; the field's
// tools find nothing wrong with it, and nothing stays when the hook ends.
func TestCommonPreparesADisk(t *testing.T) {
	need.Root(t)
	need.Tools(t, "sfdisk", "partx", "losetup", "mkfs.ext4", "mkfs.xfs", "findmnt")
	disk, dir := newDisk(t, 600), t.TempDir()
	before := attached(t)
	const script = `
format_disk0 "$1" && sfdisk --verify "$1"
filesystem_dev=$(map_disk0 "$1")
CLEANUP+=("unmap_disk0 $1")
map_partition "$filesystem_dev" root >/dev/null
[ "$(map_partition "$filesystem_dev" swap)" = "$filesystem_dev-2" ]
FILESYSTEM=$3 mkfs_disk0
root_uuid=$($VOL_ID "$root_dev")
mount_disk0 "$2"
mkdir -p "$2/etc/systemd/system" "$2/usr/lib/systemd/system" "$2/proc" "$2/sys"
touch "$2/usr/lib/systemd/system/serial-getty@.service"
setup_fstab "$2"; setup_console "$2"; setup_console "$2"
echo "boot=$($VOL_TYPE "$boot_dev") swap=$($VOL_TYPE "$swap_dev") root=$($VOL_TYPE "$root_dev")"
findmnt --verify --verbose --tab-file "$2/etc/fstab"
readlink "$2/etc/systemd/system/getty.target.wants/serial-getty@ttyS0.service"
df -a | grep -c "$2"
`
	for _, kind := range []string{"ext4", "xfs"} {
		if kind == "xfs" {
			shell(t, `truncate -s 1200M "$1"`, disk) // a /boot of 30 MiB is too small for xfs
		}
		run := script
		if kind == "xfs" {
			run = "BOOT_SIZE=400M SWAP_SIZE=0.1G\n" + script
		}
		out, err := common(t, run, disk, dir, kind)
		if err != nil {
			t.Fatalf("%s: %v\n%s", kind, err, out)
		}
		for _, want := range []string{"boot=" + kind + " swap=swap root=" + kind + "\n", "Success, no errors or warnings", "/usr/lib/systemd/system/serial-getty@.service\n2\n"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: it does not say %q:\n%s", kind, want, out)
			}
		}
		eventually(t, func() bool { return attached(t) == before }, "something stays attached")
	}
	for _, end := range []string{"exit 3", "kill $$; sleep 1", "map_disk0 /dev/null"} { // without a word in CLEANUP
		if out, err := common(t, `x=$(map_disk0 "$1"); map_partition "$x" root; mount_disk0 "$2"; `+end, disk, dir); err == nil {
			t.Errorf("%s: ended well\n%s", end, out)
		}
		eventually(t, func() bool { return attached(t) == before }, end+": something stays attached")
	}
}

// The old consoles, and what a hostile guest has in the place of a file.
func TestCommonWritesInsideTheGuestOnly(t *testing.T) {
	need.Root(t)
	node := t.TempDir()
	const all = `get_os_type "$1"; setup_console "$1"; setup_console "$1"; root_uuid=1 root_dev=/dev/null; setup_fstab "$1"`
	cases := []struct{ name, guest, file, want string }{
		{"sysvinit", "printf '1:2345:respawn:/sbin/getty 38400 tty1\\n#T0:23:respawn:/sbin/getty -L ttyS0 9600 vt100\\n' >etc/inittab; echo tty1 >etc/securetty", "etc/inittab",
			"1:2345:respawn:/sbin/getty 38400 tty1\n#T0:23:respawn:/sbin/getty -L ttyS0 9600 vt100\nT0:2345:respawn:/sbin/getty -L 115200 ttyS0 vt100\n"},
		{"upstart", "mkdir etc/init sbin; touch sbin/agetty", "etc/init/ttyS0.conf", "start on stopped rc RUNLEVEL=[2345]\nstop on runlevel [!2345]\nrespawn\nexec /sbin/agetty -L 115200 ttyS0 vt100\n"},
		{"early upstart", "mkdir etc/event.d; echo ttyS0 >etc/securetty", "etc/securetty", "ttyS0\n"},
		{"fstab leads out", "ln -s " + node + "/fstab etc/fstab", "", ""},
		{"fstab is a pipe", "mkfifo etc/fstab", "", ""},
		{"inittab leads out", "ln -s " + node + "/inittab etc/inittab; touch " + node + "/inittab; mkdir etc/fstab", "", ""},
		{"wants leads out", "mkdir -p usr/lib/systemd/system etc/systemd/system; touch usr/lib/systemd/system/serial-getty@.service; ln -s " + node + " etc/systemd/system/getty.target.wants; mkdir etc/fstab", "", ""},
		{"securetty leads out", "touch " + node + "/securetty; ln -s " + node + "/securetty etc/securetty; mkdir etc/fstab", "", ""},
		{"etc leads out", "rmdir etc; ln -s " + node + " etc", "", ""},
	}
	for _, c := range cases {
		dir := t.TempDir()
		shell(t, `cd "$1"; mkdir -p etc; eval "$2"`, dir, c.guest)
		before := tool(t, "find", node, "-type", "f", "-size", "+0")
		out, err := common(t, all, dir)
		if (err == nil) != (c.file != "") {
			t.Errorf("%s: %v\n%s", c.name, err, out)
		}
		if c.file != "" {
			if got, err := os.ReadFile(filepath.Join(dir, c.file)); err != nil || string(got) != c.want {
				t.Errorf("%s: %v\n%s", c.name, err, got)
			}
		}
		if after := tool(t, "find", node, "-type", "f", "-size", "+0", "-o", "-type", "l"); after != before {
			t.Errorf("%s: written outside the guest: %s", c.name, after)
		}
	}
	if out, err := common(t, `mkdir -p "$1"; ln -s `+node+` "$1/boot"; boot_dev=/dev/null root_dev=/dev/null; mount() { :; }; umount() { :; }; mount_disk0 "$1"`, filepath.Join(t.TempDir(), "x")); err == nil || !strings.Contains(out, "leads out of the guest") {
		t.Errorf("boot leads out: %v\n%s", err, out)
	}
}

// Every name that hooks of the Bash version could use is there.
func TestCommonHasEveryName(t *testing.T) {
	out, err := common(t, `
for f in log_error debug cleanup get_os get_os_type get_os_release get_api5_arguments get_api10_arguments format_disk0 \
	format_disk0_sfdisk format_disk0_parted mkfs_disk0 mount_disk0 map_disk0 map_partition unmap_disk0 setup_fstab setup_console; do
	[ "$(type -t $f)" = function ] || echo "no function $f"
done
for v in AWK DUMP LOSETUP KPARTX SFDISK PARTED QEMU_IMG MKDIR_P CURL SHA1SUM VOL_ID VOL_TYPE SCRIPT_NAME; do
	[ -n "${!v}" ] || echo "no variable $v"
done
echo "$INSTANCE_MEM $KERNEL_PATH $VARIANT_CONFIG $instance $blockdev $old_name $root_dev $boot_dev $swap_dev" >/dev/null
get_api10_arguments
debug echo not said
CLEANUP+=("echo second" "echo first" "false")
`)
	if err != nil || out != "cannot run: false\nfirst\nsecond\n" {
		t.Errorf("%v\n%s", err, out)
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
	if log := s.create(t, instance(disk)); !strings.Contains(log, "left programs running; they were ended hook=daemon programs=sleep (") {
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
	if log := s.create(t, instance(newDisk(t, 1000))); !strings.Contains(log, "left file systems mounted; they were unmounted hook=mounter where=") {
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

// What hooks see before the guest is mounted, while it is, and after that.
func TestHookPhases(t *testing.T) {
	for _, name := range []string{"debian", "whole-disk"} {
		t.Run(name, func(t *testing.T) { checkPhases(t, name) })
	}
}

func checkPhases(t *testing.T, name string) {
	image, _ := makeImage(t, layoutNamed(t, name))
	s := newSite(t, imageSettings(image))
	out := filepath.Join(t.TempDir(), "out")
	const tell = `#!/bin/bash
set -eu
. common.sh
[ "$(blockdev --getsize64 "$BLOCKDEV")" = 1048576000 ]
echo "$SCRIPT_NAME $IMAGE_TYPE $INSTANCE_NAME ${TARGET:+mounted} $(grep -c ganeti-instance-image/run/target /proc/self/mountinfo)" >> `
	s.hook(t, "before-mount/10-first", tell+out+"\n")
	s.hook(t, "50-middle", tell+out+"\n")
	s.hook(t, "after-unmount/90-last", tell+out+"\n")
	s.create(t, instance(newDisk(t, 1000)))
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	want := "10-first raw web.example.org  0\n50-middle raw web.example.org mounted 1\n90-last raw web.example.org  0\n"
	if string(got) != want {
		t.Errorf("the hooks saw\n%s\nwant\n%s", got, want)
	}
	for _, phase := range []string{"before-mount", "after-unmount"} {
		s.hook(t, phase+"/bad", "#!/bin/sh\nexit 3\n")
		disk := newDisk(t, 1000)
		s.refuse(t, instance(disk), 5, phase+"/bad", "exit status 3")
		empty(t, disk)
		os.Remove(s.conf("hooks/" + phase + "/bad"))
	}
}

// A hook of a variant takes the place of the common one of its name, or keeps it
// from running.
func TestHooksOfAVariant(t *testing.T) {
	image, _ := makeImage(t, layoutNamed(t, "mbr-ext4"))
	s := newSite(t, imageSettings(image))
	conf := s.conf("variants/special.conf")
	s.write(t, conf, "\n", 0o644)
	t.Cleanup(func() { os.Remove(conf); os.RemoveAll(s.conf("hooks/variants")) })
	out := filepath.Join(t.TempDir(), "out")
	for _, name := range []string{"a", "b", "c", "variants/special/b", "variants/special/bb", "variants/special/c"} {
		s.hook(t, name, "#!/bin/sh\necho "+name+" >> "+out+"\n")
	}
	if err := os.Chmod(s.conf("hooks/variants/special/c"), 0o644); err != nil {
		t.Fatal(err)
	}
	for variant, want := range map[string]string{"default": "a\nb\nc\n", "special": "a\nvariants/special/b\nvariants/special/bb\n"} {
		s.create(t, instance(newDisk(t, 1000)).with(env{"OS_VARIANT": variant}))
		if got, err := os.ReadFile(out); err != nil || string(got) != want {
			t.Errorf("%s: ran\n%s, %v, want\n%s", variant, got, err, want)
		}
		os.Remove(out)
	}
}

// A hook that waits for ever is ended with all it started.
func TestHookTimeout(t *testing.T) {
	image, _ := makeImage(t, layoutNamed(t, "whole-disk"))
	s := newSite(t, imageSettings(image, "HOOK_TIMEOUT=1"))
	s.hook(t, "10-slow", "#!/bin/bash\ncd $TARGET\nsetsid sleep 1000 & mount -t tmpfs x $TARGET/mnt; wait\n")
	disk := newDisk(t, 1000)
	s.refuse(t, instance(disk), 5, "hooks/10-slow was ended after 1 s (HOOK_TIMEOUT)")
	empty(t, disk)
}

// The guest of a hook that is on sends its name by each DHCP client it has.
func TestDDNSHook(t *testing.T) {
	layout := layoutNamed(t, "debian")
	image, _ := makeImage(t, layout)
	s := newSite(t, imageSettings(image))
	s.hook(t, "00-client", "#!/bin/sh\nmkdir -p $TARGET/etc/dhcp; echo 'send host-name old;' > $TARGET/etc/dhcp/dhclient.conf\n")
	s.enable(t, "zz_ddns")
	disk := newDisk(t, 1000)
	s.create(t, instance(disk))
	if got, err := os.ReadFile(filepath.Join(mountRoot(t, disk, layout), "etc/dhcp/dhclient.conf")); err != nil || string(got) != "send host-name \"web\";\n" {
		t.Errorf("dhclient.conf: %q, %v", got, err)
	}
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

// A hook of before the mount may not move what create has planned with.
func TestHookMovesAPartition(t *testing.T) {
	image, _ := makeImage(t, layoutNamed(t, "mbr-ext4"))
	s := newSite(t, imageSettings(image))
	s.hook(t, "before-mount/move", "#!/bin/sh\nset -e\nprintf 'label: dos\\nstart=4096, type=83\\n' | sfdisk -q --no-reread --force \"$BLOCKDEV\"\n")
	disk := newDisk(t, 1000)
	s.refuse(t, instance(disk), 5, "partition 1", "not where it was")
	empty(t, disk)
}
