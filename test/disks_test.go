package test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
)

// disks is an instance with further disks.
func disks(first string, more ...string) env {
	e := instance(first).with(env{"DISK_COUNT": itoa(len(more) + 1)})
	for i, disk := range more {
		n := itoa(i + 1)
		e["DISK_"+n+"_PATH"], e["DISK_"+n+"_ACCESS"], e["DISK_"+n+"_SIZE"] = disk, "rw", "32"
	}
	return e
}

// seedOf extracts the seed on a disk, as another program reads it.
func seedOf(t *testing.T, disk string) string {
	t.Helper()
	need.Tools(t, "xorriso", "blkid")
	if got := tool(t, "blkid", "-p", "-o", "value", "-s", "LABEL", "-s", "TYPE", disk); got != "cidata\niso9660\n" {
		t.Fatalf("blkid sees %q on the seed's disk", got)
	}
	dir := filepath.Join(t.TempDir(), "seed")
	tool(t, "xorriso", "-osirrox", "on", "-indev", disk, "-extract", "/", dir)
	return shell(t, `cd "$1"; for f in meta-data user-data network-config vendor-data; do echo "== $f"; [ ! -e $f ] || cat $f; done`, dir)
}

// makeSeeded makes an image in which another seed was left.
func makeSeeded(t *testing.T) (image string, layout diskLayout) {
	t.Helper()
	layout = layoutNamed(t, "debian")
	layout.fill = `mkdir -p "$tree/var/lib/cloud/seed/nocloud"; echo stale > "$tree/var/lib/cloud/seed/nocloud/meta-data"` + "\n" + layout.fill
	image, _ = makeImage(t, layout)
	return image, layout
}

// The seed goes to the disk that was asked for, with and without the hook and
// the mount, and then there is none in the guest.
func TestSeedDisk(t *testing.T) {
	image, layout := makeSeeded(t)
	cases := []struct {
		name, setting string
		hook          bool
		more          env
	}{
		{"number", "SEED_DISK=1", false, nil},
		{"use", "DISK_1=seed", true, nil},
		{"name and hook", "SEED_DISK=the-seed", true, env{"DISK_1_NAME": "the-seed"}},
		{"parameter", "", true, env{"OSP_SEED_DISK": "1"}},
		{"no mount", "SEED_DISK=1\nNOMOUNT=yes", false, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, imageSettings(image, "CINIT_USER=op", "USER_DATA='#cloud-config\ntimezone: UTC\n'", c.setting))
			if c.hook {
				s.enable(t, "cloud-init")
			}
			disk, second, third := newDisk(t, 1000), newDisk(t, 32), newDisk(t, 32)
			s.create(t, disks(disk, second, third).with(c.more))
			for _, want := range []string{"5b7bd4d2-3fa1-4d5d-b2ff-e5a7a1d6a7cc", "web.example.org", "timezone: UTC", "aa:00:00:12:34:56", "op"} {
				if got := seedOf(t, second); !strings.Contains(got, want) {
					t.Errorf("the seed does not have %q:\n%s", want, got)
				}
			}
			untouched(t, third)
			if !strings.Contains(c.setting, "NOMOUNT") {
				dir := mountRoot(t, disk, layout)
				shell(t, `[ ! -e "$1/var/lib/cloud/seed/nocloud" ]; [ "$2" = false ] || grep -q NoCloud "$1/etc/cloud/cloud.cfg.d/zz-ganeti.cfg"`,
					dir, map[bool]string{true: "true", false: "false"}[c.hook])
			}
		})
	}
}

// A guest that this node cannot mount still gets its seed, but no hook is left
// out in silence.
func TestSeedForGuestsThatCannotBeMounted(t *testing.T) {
	layout := diskLayout{"newer", "label: dos\nstart=2048, type=83\n",
		`fs ext4 1 "$tree" -O ^metadata_csum; printf '\0\0\0\100' > "$image.bit"
		 dd if="$image.bit" of="$image" bs=1 skip=3 seek=$((2048 * 512 + 1024 + 96 + 3)) count=1 conv=notrunc status=none`, 1}
	image, _ := makeImage(t, layout)
	s := newSite(t, imageSettings(image, "SEED_DISK=1"))
	disk, second := newDisk(t, 1000), newDisk(t, 32)
	if log := s.create(t, disks(disk, second)); !strings.Contains(log, "cannot be mounted here") {
		t.Errorf("the log does not say that the guest was left as it is:\n%s", log)
	}
	seedOf(t, second)
	s.enable(t, "cloud-init")
	s.refuse(t, disks(disk, second), 1, "cannot")
	empty(t, disk)
}

func TestSeedDiskRefused(t *testing.T) {
	image, _ := makeSeeded(t)
	cases := []struct {
		name, settings string
		code           int
		want           string
		more           env
	}{
		{"not there", "SEED_DISK=3", 2, "no disk 3", nil},
		{"no such name", "SEED_DISK=seed", 2, "no disk of that name", env{"DISK_1_NAME": "data"}},
		{"the system's", "SEED_DISK=root", 2, "holds the system", env{"DISK_0_NAME": "root"}},
		{"two", "SEED_DISK=1\nDISK_2=seed", 2, "cannot use both", nil},
		{"another use", "SEED_DISK=1\nDISK_1=swap", 2, "they are one disk", nil},
		{"firmware", "SEED_DISK=2", 2, "UEFI firmware", env{"INSTANCE_HV_boot_type": "uefi"}},
		{"read-only", "SEED_DISK=1", 4, "read-only", env{"DISK_1_ACCESS": "ro"}},
		{"no path", "SEED_DISK=1", 4, "DISK_1_PATH", env{"DISK_1_PATH": ""}},
		{"no user-data", "SEED_DISK=1\nUSER_DATA_FILE=/nosuch", 2, "/nosuch", nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, imageSettings(image, c.settings))
			disk, second, third := newDisk(t, 1000), newDisk(t, 32), newDisk(t, 32)
			s.refuse(t, disks(disk, second, third).with(c.more), c.code, c.want)
			for _, d := range []string{disk, second, third} {
				untouched(t, d)
			}
		})
	}
	t.Run("too small", func(t *testing.T) {
		s := newSite(t, imageSettings(image, "SEED_DISK=1"))
		disk, small := newDisk(t, 1000), filepath.Join(t.TempDir(), "small")
		shell(t, `head -c 524288 /dev/zero | tr '\0' '\252' > "$1"`, small)
		s.refuse(t, disks(disk, small), 4, "the seed takes 1 MiB")
		untouched(t, disk)
		shell(t, `[ -z "$(tr -d '\252' < "$1" | head -c 1)" ]`, small)
	})
}

// Further disks become what the settings say, the guest's fstab names them, and
// a reinstall keeps data.
func TestDiskUses(t *testing.T) {
	need.Tools(t, "mkswap", "mkfs.xfs", "xfs_repair", "e2fsck")
	image, layout := makeSeeded(t)
	s := newSite(t, imageSettings(image, "DISK_1=swap", "DISK_2=data:xfs:/srv/data", "DISK_3=data:ext4:/home"))
	disk, swap, data, home := newDisk(t, 1000), newDisk(t, 64), newDisk(t, 320), newDisk(t, 64)
	e := disks(disk, swap, data, home)
	s.create(t, e)
	uuid := func(disk, kind string) string {
		t.Helper()
		got := strings.Fields(tool(t, "blkid", "-p", "-o", "value", "-s", "UUID", "-s", "TYPE", disk))
		if len(got) != 2 || got[1] != kind {
			t.Fatalf("blkid sees %q, want %s", got, kind)
		}
		return got[0]
	}
	first := uuid(data, "xfs")
	fstab := []string{"UUID=" + uuid(swap, "swap") + " none swap sw 0 0", "UUID=" + first + " /srv/data xfs defaults,nofail 0 0", "UUID=" + uuid(home, "ext4") + " /home ext4 defaults,nofail 0 2"}
	checkFSTab(t, disk, layout, fstab)
	tool(t, "xfs_repair", "-n", data)
	tool(t, "e2fsck", "-fn", home)

	dir := t.TempDir()
	shell(t, `mount -o loop,nouuid "$1" "$2"; echo precious > "$2/file"; umount "$2"`, data, dir)
	s.create(t, e.with(env{"INSTANCE_REINSTALL": "1"}))
	if uuid(data, "xfs") != first {
		t.Error("a reinstall made the data disk anew")
	}
	shell(t, `mount -o loop,nouuid "$1" "$2"; grep -q precious "$2/file"; umount "$2"`, data, dir)

	tool(t, "mkfs.ext4", "-q", "-F", data)
	before := tool(t, "sha256sum", disk, data)
	s.refuse(t, e.with(env{"INSTANCE_REINSTALL": "1"}), 4, "DISK_2", "it holds ext4")
	if after := tool(t, "sha256sum", disk, data); after != before {
		t.Error("a refused reinstall changed a disk")
	}
	s.create(t, e) // not a reinstall: what a disk had in another life does not count
	if uuid(data, "xfs") == first {
		t.Error("the data disk was not made anew")
	}
}

func checkFSTab(t *testing.T, disk string, layout diskLayout, lines []string) {
	t.Helper()
	t.Run("fstab", func(t *testing.T) {
		text, err := os.ReadFile(filepath.Join(mountRoot(t, disk, layout), "etc/fstab"))
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range append(lines, "PARTUUID=22222222-2222-4222-8222-222222222222 / ext4") {
			if !strings.Contains(string(text), line) {
				t.Errorf("fstab has no %q:\n%s", line, text)
			}
		}
	})
}

// Where a later step fails, further disks show nothing either.
func TestDiskUsesAreUndone(t *testing.T) {
	image, _ := makeSeeded(t)
	s := newSite(t, imageSettings(image, "DISK_1=swap", "DISK_2=data:ext4:/srv", "SEED_DISK=3"))
	s.hook(t, "bad", "#!/bin/sh\nexit 1\n")
	disk, swap, data, seed := newDisk(t, 1000), newDisk(t, 64), newDisk(t, 64), newDisk(t, 32)
	s.refuse(t, disks(disk, swap, data, seed), 5, "hooks/bad")
	for _, d := range []string{disk, swap, data} {
		empty(t, d)
	}
	untouched(t, seed)
}

// What a disk holds is not lost to a setting that was changed, or to a number
// that was mistyped, once the instance has had a life.
func TestDisksOfInstancesThatExist(t *testing.T) {
	image, _ := makeSeeded(t)
	for _, c := range []struct {
		name, setting, make, want string
	}{
		{"swap over data", "DISK_1=swap", `mkfs.ext4 -q "$1"`, "it holds ext4"},
		{"seed over data", "SEED_DISK=1", `mkfs.ext4 -q "$1"`, "it holds ext4"},
		{"seed over another ISO", "SEED_DISK=1", `genisoimage -quiet -V other -o "$1.iso" /etc/hostname; dd if="$1.iso" of="$1" conv=notrunc status=none`, "it holds iso9660"},
		{"data over a table", "DISK_1=data:ext4:/srv", `echo , | sfdisk -q "$1"`, "a partition table"},
		{"data over something", "DISK_1=data:ext4:/srv", `true`, "something unknown"},
		{"too small", "DISK_1=data:xfs:/srv", `dd if=/dev/zero of="$1" bs=1M count=1 conv=notrunc status=none`, "xfs takes 300 MiB at least"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, imageSettings(image, c.setting))
			disk, second := newDisk(t, 1000), newDisk(t, 32)
			shell(t, c.make, second)
			before := tool(t, "sha256sum", second)
			s.refuse(t, disks(disk, second).with(env{"INSTANCE_REINSTALL": "1"}), 4, c.want)
			untouched(t, disk)
			if after := tool(t, "sha256sum", second); after != before {
				t.Error("the refused disk changed")
			}
		})
	}
	t.Run("again", func(t *testing.T) {
		s := newSite(t, imageSettings(image, "DISK_1=swap", "SEED_DISK=2"))
		disk, second, third := newDisk(t, 1000), newDisk(t, 32), newDisk(t, 32)
		s.create(t, disks(disk, second, third))
		s.create(t, disks(disk, second, third).with(env{"INSTANCE_REINSTALL": "1"}))
		seedOf(t, third)
	})
	t.Run("one mount point", func(t *testing.T) {
		s := newSite(t, imageSettings(image, "DISK_1=data:ext4:/srv", "DISK_2=data:ext4:/srv"))
		disk, second := newDisk(t, 1000), newDisk(t, 32)
		s.refuse(t, disks(disk, second, newDisk(t, 32)), 2, "one mount point")
		untouched(t, second)
	})
}

// onNode is what ganeti-image on the master starts on an instance's node; its
// input ends when end is called.
func (s *site) onNode(t *testing.T, e env, args ...string) (cmd *exec.Cmd, log *bytes.Buffer, end func()) {
	t.Helper()
	cmd = exec.Command(filepath.Join(s.dir, "usr/sbin/../lib/ganeti-instance-image/instance-image"), append([]string{"on-node"}, args...)...)
	cmd.Dir, log = s.osDir, new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = log, log
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(input, strings.Join(e.list(), "\x00")+"\x00\x00"); err != nil {
		t.Log(err) // it may have been refused already
	}
	return cmd, log, func() { input.Close() }
}

func TestOnNode(t *testing.T) {
	image, layout := makeSeeded(t)
	e := func(disk string, more ...string) env {
		return disks(disk, more...).with(env{"INSTANCE_REINSTALL": "1"})
	}
	t.Run("deploy", func(t *testing.T) {
		s := newSite(t, "IMAGE_FILE=/nosuch\nCDINSTALL=yes\nDISK_1=data:ext4:/srv\n")
		disk, data := newDisk(t, 1000), newDisk(t, 64)
		tool(t, "mkfs.ext4", "-q", "-F", data)
		before := tool(t, "sha256sum", data)
		cmd, log, end := s.onNode(t, e(disk, data), "deploy", image, "0")
		err := cmd.Wait()
		end()
		if err != nil {
			t.Fatalf("%v:\n%s", err, log)
		}
		checkDisk(t, disk, layout, 1000)
		if after := tool(t, "sha256sum", data); after != before {
			t.Error("the data disk changed")
		}
	})
	t.Run("another disk", func(t *testing.T) {
		s := newSite(t, "")
		disk, second := newDisk(t, 64), newDisk(t, 1000)
		cmd, log, end := s.onNode(t, e(disk, second), "deploy", image, "1")
		err := cmd.Wait()
		end()
		if err != nil {
			t.Fatalf("%v:\n%s", err, log)
		}
		untouched(t, disk)
		checkDisk(t, second, layout, 1000)
	})
	for _, c := range []struct {
		args []string
		code int
		want string
		more env
	}{
		{nil, 2, "cannot do that", nil},
		{[]string{"deploy", image, "-7"}, 2, "cannot do that", nil},
		{[]string{"seed", "-7"}, 2, "cannot do that", nil},
		{[]string{"deploy", image, "2"}, 4, "counted from 0", nil},
		{[]string{"deploy", image, "1"}, 2, "UEFI firmware", env{"INSTANCE_HV_boot_type": "uefi"}},
		{[]string{"seed", "0"}, 2, "holds the system", nil},
		{[]string{"seed", "-1"}, 2, "no disk is chosen", nil},
	} {
		t.Run(strings.Join(c.args[:min(1, len(c.args))], "")+" "+c.want, func(t *testing.T) {
			s := newSite(t, "")
			disk, second := newDisk(t, 1000), newDisk(t, 32)
			cmd, log, end := s.onNode(t, e(disk, second).with(c.more), c.args...)
			_ = cmd.Wait() // its exit code tells
			end()
			checkRefusal(t, outcome{cmd.ProcessState.ExitCode(), log.String()}, c.code, c.want)
			untouched(t, disk)
			untouched(t, second)
		})
	}
}

// When the command on the master ends, the node stops, takes back what it did,
// and only then ends.
func TestOnNodeStopsWithTheMaster(t *testing.T) {
	image, _ := makeSeeded(t)
	s := newSite(t, "")
	started := filepath.Join(t.TempDir(), "started")
	s.hook(t, "slow", "#!/bin/sh\ntouch "+started+"\nsleep 1000\n")
	disk := newDisk(t, 1000)
	before := attached(t)
	cmd, log, end := s.onNode(t, disks(disk), "deploy", image, "0")
	eventually(t, func() bool { _, err := os.Stat(started); return err == nil }, "the hook did not start")
	end()
	_ = cmd.Wait() // its exit code tells
	checkRefusal(t, outcome{cmd.ProcessState.ExitCode(), log.String()}, 6, "the command on the master has ended")
	empty(t, disk)
	if after := attached(t); after != before {
		t.Errorf("something is left attached:\n%s", after)
	}
}
