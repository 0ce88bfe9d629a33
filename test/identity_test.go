package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
)

// usedTree is what a machine that was in use leaves in a tree.
const usedTree = `
cd "$tree"
mkdir -p var/lib/{dbus,systemd,dhcp,NetworkManager} etc/{udev/rules.d,lvm/devices,iscsi}
echo 0123456789abcdef0123456789abcdef > etc/machine-id; cp etc/machine-id var/lib/dbus
mkdir -p usr/lib/systemd; touch usr/lib/systemd/systemd
head -c 512 /dev/zero > var/lib/systemd/random-seed
echo lease > var/lib/dhcp/dhclient.eth0.leases
echo secret > var/lib/systemd/credential.secret
echo 'SUBSYSTEM=="net", NAME="eth0"' > etc/udev/rules.d/70-persistent-net.rules
echo 'VERSION=1.1.1' > etc/lvm/devices/system.devices
echo 'InitiatorName=iqn.1993-08.org.debian:01:abcdef012345' > etc/iscsi/initiatorname.iscsi
`

// ownFiles are what of usedTree two guests must not share.
var ownFiles = []string{
	"etc/machine-id", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "var/lib/dhcp/dhclient.eth0.leases",
	"var/lib/systemd/credential.secret", "etc/udev/rules.d/70-persistent-net.rules", "etc/lvm/devices/system.devices", "etc/iscsi/initiatorname.iscsi",
}

func fileTexts(dir string, names []string) map[string]string {
	texts := map[string]string{}
	for _, name := range names {
		if text, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
			texts[name] = string(text)
		}
	}
	return texts
}

// Two guests of one image have nothing of it, and nothing in common, that must
// be each system's own; a setting keeps all of it, or a part.
func TestIdentity(t *testing.T) {
	image, tree := smallTree(t, ".tar.gz", usedTree)
	of := fileTexts(tree, ownFiles)
	deploy := func(t *testing.T, settings ...string) map[string]string {
		s := newSite(t, imageSettings(image, append(settings, "SWAP=no", "BOOT_SIZE=100")...))
		disk := newDisk(t, 500)
		s.create(t, instance(disk))
		return fileTexts(mountTree(t, disk, 2, 1, "ext4"), ownFiles)
	}
	t.Run("clones", func(t *testing.T) {
		one, two := deploy(t), deploy(t)
		for _, name := range ownFiles {
			if one[name] == of[name] {
				t.Errorf("%s is still the image's: %q", name, one[name])
			}
			if one[name] != "" && one[name] == two[name] {
				t.Errorf("%s is the same in two guests: %q", name, one[name])
			}
		}
	})
	t.Run("kept", func(t *testing.T) {
		for name, text := range deploy(t, "IDENTITY=no") {
			if text != of[name] {
				t.Errorf("%s was changed to %q", name, text)
			}
		}
	})
	t.Run("kept in part", func(t *testing.T) {
		got := deploy(t, "IDENTITY_KEEP='machine-id dhcp-leases'")
		for _, name := range ownFiles[:2] {
			if got[name] != of[name] {
				t.Errorf("%s was changed to %q", name, got[name])
			}
		}
		if got[ownFiles[3]] != of[ownFiles[3]] || got[ownFiles[4]] == of[ownFiles[4]] {
			t.Errorf("kept are %q", got)
		}
	})
}

// A disk image without a hook is not touched, one with a hook or the setting is.
func TestIdentityOfDiskImages(t *testing.T) {
	layout := layoutNamed(t, "mbr-ext4")
	layout.fill = "(\n" + usedTree + "\n)\n" + layout.fill
	image, tree := makeImage(t, layout)
	of := fileTexts(tree, ownFiles)
	for _, c := range []struct {
		name, settings, hook string
		kept                 bool
	}{{"alone", "", "", true}, {"setting", "IDENTITY=yes", "", false}, {"hook", "", "ssh", false}, {"hook and setting", "IDENTITY=no", "ssh", true}} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, imageSettings(image, c.settings))
			if c.hook != "" {
				s.enable(t, c.hook)
			}
			disk := newDisk(t, 1000)
			log := s.create(t, instance(disk))
			got := fileTexts(mountRoot(t, disk, layout), ownFiles)
			for _, name := range ownFiles {
				if kept := got[name] == of[name]; kept != c.kept {
					t.Errorf("%s is as in the image: %v\n%s", name, kept, log)
				}
			}
		})
	}
}

// Users, passwords, keys and files come into a guest without cloud-init, and no
// secret into the log.
func TestAccess(t *testing.T) {
	need.Tools(t, "openssl", "perl", "pwck", "grpck")
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqZ3x8nZ5e0cO0N8QfVf3h5o0vQm4q3hYwq2c2bq1aX op"
	image, _ := smallTree(t, ".tar.gz", `cd "$tree"
		printf 'root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n' > etc/passwd
		printf 'root:*:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n' > etc/shadow; chmod 640 etc/shadow; chgrp 42 etc/shadow
		printf 'root:x:0:\ndaemon:x:1:\nsudo:x:27:\n' > etc/group; printf 'root:*::\ndaemon:*::\nsudo:*::\n' > etc/gshadow
		mkdir -p etc/skel usr/sbin usr/share; echo skel > etc/skel/.profile; cp usr/bin/bash usr/sbin/nologin; chmod 700 root`)
	hash := strings.TrimSpace(tool(t, "openssl", "passwd", "-6", "-salt", "abcdefgh", "secret of op"))
	s := newSite(t, imageSettings(image, "SWAP=no", "BOOT_SIZE=100"))
	disk := newDisk(t, 500)
	log := s.create(t, instance(disk).with(env{
		"OSP_ROOT_PASSWORD": "secret of root", "OSP_USER_NAME": "op", "OSP_USER_PASSWORD_HASH": hash, "OSP_SSH_KEYS": key,
		"OSP_GUEST_FILES": `[{"path": "/srv/site/key", "text": "secret of site", "owner": "op", "mode": "0400"}, {"path": "/etc/motd", "contents": "aGVsbG8K"}]`,
	}))
	for _, secret := range []string{"secret", hash, "AAAAC3", "$6$"} {
		if strings.Contains(log, secret) {
			t.Errorf("%q is in the log:\n%s", secret, log)
		}
	}
	dir := mountTree(t, disk, 2, 1, "ext4")
	shadow := fileTexts(dir, []string{"etc/shadow"})["etc/shadow"]
	root := strings.Split(strings.Split(shadow, "\n")[0], ":")[1]
	if !strings.HasPrefix(root, "$6$") || tool(t, "perl", "-e", "print crypt($ARGV[0], $ARGV[1])", "secret of root", root) != root {
		t.Errorf("root's password is not what was asked: %q", root)
	}
	if !strings.Contains(shadow, "op:"+hash+":") || !strings.Contains(shadow, "daemon:*:19000:0:99999:7:::\n") {
		t.Errorf("shadow is\n%s", shadow)
	}
	for _, judge := range []string{"pwck", "grpck"} {
		if out := tool(t, judge, "-r", "-R", dir); strings.TrimSpace(out) != "" {
			t.Errorf("%s says:\n%s", judge, out)
		}
	}
	for name, want := range map[string]string{
		"etc/shadow": "640 0:42", "home/op": "", "home/op/.ssh": "700 ", "home/op/.ssh/authorized_keys": "600 ", "srv/site/key": "400 ", "etc/motd": "644 0:0", "home/op/.profile": "",
	} {
		if got := tool(t, "stat", "-c", "%a %u:%g", filepath.Join(dir, name)); !strings.HasPrefix(got, want) {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	owner := tool(t, "stat", "-c", "%u:%g", filepath.Join(dir, "home/op"))
	for _, name := range []string{"home/op/.ssh", "home/op/.ssh/authorized_keys", "srv/site/key", "home/op/.profile"} {
		if got := tool(t, "stat", "-c", "%u:%g", filepath.Join(dir, name)); got != owner {
			t.Errorf("%s is owned by %s, op is %s", name, got, owner)
		}
	}
	if text := fileTexts(dir, []string{"home/op/.ssh/authorized_keys"})["home/op/.ssh/authorized_keys"]; text != key+"\n" {
		t.Errorf("the keys are %q", text)
	}
}

// What cannot be used is refused while the disk is as it was, and the message
// has no secret in it.
func TestAccessIsRefused(t *testing.T) {
	image, _ := smallTree(t, ".tar.gz", "")
	for _, c := range []struct {
		name, word string
		more       env
	}{
		{"hash", "root_password_hash", env{"OSP_ROOT_PASSWORD_HASH": "secret"}},
		{"both", "both", env{"OSP_ROOT_PASSWORD_HASH": "$6$abcdefgh$" + strings.Repeat("a", 86), "OSP_ROOT_PASSWORD": "secret"}},
		{"keys", "ssh_keys", env{"OSP_SSH_KEYS": "secret"}},
		{"files", "guest_files", env{"OSP_GUEST_FILES": `[{"path": "secret"}]`}},
		{"URL", "ALLOW_URLS", env{"OSP_SSH_KEYS_URL": "https://example.org/secret"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, imageSettings(image, "SWAP=no"))
			disk := newDisk(t, 500)
			o := s.refuse(t, instance(disk).with(c.more), 2, c.word)
			if strings.Contains(o.log, "secret") {
				t.Errorf("a secret is in the log:\n%s", o.log)
			}
			untouched(t, disk)
		})
	}
}

// The guest's own programs make its initramfs anew only where a setting asks for
// that, and see nothing of the node.
func TestInitramfs(t *testing.T) {
	need.Tools(t, "busybox")
	static, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	image, _ := smallTree(t, ".tar.gz", `cd "$tree"; cp `+static+` usr/bin/busybox; for p in sh ls cat id; do ln -sf busybox usr/bin/$p; done
		printf '#!/bin/sh\n{ echo "$@"; ls /dev /sys/class/net; cat /proc/1/comm; } > /boot/made 2>&1\n' > usr/sbin/update-initramfs; chmod 755 usr/sbin/update-initramfs; cp usr/sbin/update-initramfs usr/sbin/mkinitramfs`)
	for _, setting := range []string{"INITRAMFS=no", "INITRAMFS=rebuild"} {
		t.Run(setting, func(t *testing.T) {
			s := newSite(t, imageSettings(image, "SWAP=no", "BOOT_SIZE=100", setting))
			disk := newDisk(t, 500)
			log := s.create(t, instance(disk))
			made, err := os.ReadFile(filepath.Join(mountTree(t, disk, 2, 1, "ext4"), "boot/made"))
			if ran := err == nil; ran != (setting == "INITRAMFS=rebuild") {
				t.Fatalf("it ran: %v\n%s", ran, log)
			}
			if setting == "INITRAMFS=no" {
				return
			}
			if !strings.HasPrefix(string(made), "-u -k all\n") || strings.Contains(string(made), "loop") || strings.Contains(string(made), "eth") {
				t.Errorf("it saw\n%s", made)
			}
			if !strings.Contains(log, "update-initramfs") {
				t.Errorf("the log does not name the program:\n%s", log)
			}
		})
	}
}

// What was asked for and a guest that is not mounted does not get, is said; and
// where it cannot be mounted though it was asked for, it is an error.
func TestAccessIsNotForgotten(t *testing.T) {
	layout := layoutNamed(t, "mbr-ext4")
	image, _ := makeImage(t, layout)
	asked := env{"OSP_ROOT_PASSWORD": "s3cret", "OSP_IDENTITY": "yes"}
	t.Run("NOMOUNT", func(t *testing.T) {
		s := newSite(t, imageSettings(image, "NOMOUNT=yes", "SEED_DISK=1", "INITRAMFS=rebuild"))
		log := s.create(t, disks(newDisk(t, 1000), newDisk(t, 32)).with(asked))
		for _, want := range []string{"ROOT_PASSWORD, USER_NAME", "IDENTITY=yes", "INITRAMFS=rebuild"} {
			if !strings.Contains(log, "does not get what "+want) {
				t.Errorf("the log does not say %q:\n%s", want, log)
			}
		}
	})
	strange := filepath.Join(t.TempDir(), "strange.raw")
	shell(t, `cp --sparse=always "$1" "$2"; loop=$(losetup --find --show --offset 1048576 "$2")
		debugfs -w -R "ssv feature_incompat 0x80000042" "$loop" 2>/dev/null; losetup --detach "$loop"`, image, strange)
	t.Run("cannot be mounted", func(t *testing.T) {
		s := newSite(t, imageSettings(strange, "GROW=no"))
		if log := s.create(t, instance(newDisk(t, 1000)).with(env{"OSP_DISK_1": ""})); strings.Contains(log, "does not get") {
			t.Errorf("nothing was asked for:\n%s", log)
		}
		disk := newDisk(t, 1000)
		s.refuse(t, instance(disk).with(asked), 1, "cannot", "mount")
		empty(t, disk)
	})
}
