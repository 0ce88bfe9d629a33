package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// renamed runs rename and wants it to succeed.
func (s *site) renamed(t *testing.T, e env) string {
	t.Helper()
	return s.succeed(t, "rename", e)
}

// namedTree is a guest that says its name in more places than one.
const namedTree = `
cd "$tree"; mkdir -p etc/netplan usr/sbin etc/postfix
echo image-host > etc/mailname
echo '127.0.1.1 image-host.example.net image-host # and web10.example.org' >> etc/hosts
touch usr/sbin/netplan; chmod 755 usr/sbin/netplan
`

// wantIn wants each text in its file below dir, or not, where it begins with "!".
func wantIn(t *testing.T, dir string, texts map[string][]string) {
	t.Helper()
	for name, words := range texts {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		for _, word := range words {
			unwanted, not := strings.CutPrefix(word, "!")
			if strings.Contains(string(text), unwanted) == not {
				t.Errorf("%s: want %q, it is\n%s", name, word, text)
			}
		}
	}
}

// The name and the network are written by the owner they have: the hook
// interfaces, or the seed in the guest, which keeps its instance-id.
func TestRename(t *testing.T) {
	layout := layoutNamed(t, "mbr-ext4")
	layout.fill = "(\n" + namedTree + "\n)\n" + layout.fill
	image, _ := makeImage(t, layout)
	address := env{"NIC_0_IP": "192.0.2.10", "NIC_0_NETWORK_SUBNET": "192.0.2.0/24", "NIC_0_NETWORK_GATEWAY": "192.0.2.1"}
	moved := env{"NIC_0_MAC": "aa:00:00:99:99:99", "NIC_0_IP": "192.0.2.77"}
	for _, hook := range []string{"interfaces", "cloud-init"} {
		t.Run(hook, func(t *testing.T) {
			s := newSite(t, imageSettings(image))
			s.enable(t, hook)
			disk := newDisk(t, 1000)
			old := instance(disk).with(address)
			s.create(t, old)
			log := s.renamed(t, old.with(moved).with(env{"INSTANCE_NAME": "mail.other.org", "OLD_INSTANCE_NAME": "web.example.org"}))
			dir := mountRoot(t, disk, layout)
			want := map[string][]string{
				"etc/netplan/90-ganeti.yaml": {"aa:00:00:99:99:99", "192.0.2.77/24", "!aa:00:00:12:34:56", "!192.0.2.10/"},
				"etc/hostname":               {"mail\n"}, "etc/mailname": {"mail.other.org\n"},
				"etc/hosts": {"192.0.2.77", "mail.other.org mail", "!web.example.org", "web10.example.org"},
			}
			if hook == "cloud-init" {
				seed := "var/lib/cloud/seed/nocloud/"
				want = map[string][]string{
					seed + "meta-data":      {"mail.other.org", instance(disk)["INSTANCE_UUID"], "!web.example.org"},
					seed + "network-config": {"aa:00:00:99:99:99", "192.0.2.77/24", "!aa:00:00:12:34:56"},
				}
			}
			wantIn(t, dir, want)
			if t.Failed() {
				t.Logf("log:\n%s", log)
			}
		})
	}
}

// Ganeti renames after each import, also to the name it has, and instances
// without a guest that this program knows: nothing is lost, and it succeeds.
func TestRenameOfOthers(t *testing.T) {
	layout := layoutNamed(t, "mbr-ext4")
	image, _ := makeImage(t, layout)
	disk := newDisk(t, 1000)
	newSite(t, imageSettings(image)).create(t, instance(disk))
	foreign := newDisk(t, 64)
	damaged := newDisk(t, 64)
	shell(t, `mke2fs -q -t ext4 -F "$1" 64M; debugfs -w -R "ssv feature_incompat 0x80000000" "$1" 2>/dev/null`, damaged)
	from := env{"OLD_INSTANCE_NAME": "never.heard.of"}
	for _, c := range []struct {
		name, settings, says string
		e                    env
	}{
		{"no disk", "", "no disk", instance(disk).with(env{"DISK_COUNT": "0"})},
		{"CDINSTALL", "CDINSTALL=yes", "CDINSTALL", instance(disk)},
		{"NOMOUNT", "NOMOUNT=yes", "NOMOUNT", instance(disk)},
		{"foreign", "", "keep its name", instance(foreign)},
		{"unknown name", "", "no file of the guest says the old name", instance(disk).with(env{"INSTANCE_NAME": "new.example.org"})},
		{"one disk of more", "DISK_1=swap", "", instance(disk).with(env{"OLD_INSTANCE_NAME": "web.example.org"})},
		{"unreadable user-data", "USER_DATA_URL=http://127.0.0.1:1/x", "no disk", instance(disk).with(env{"DISK_COUNT": "0"})},
		{"damaged", "", "keep its name", instance(damaged)},
		{"same name", "", "", instance(disk).with(env{"OLD_INSTANCE_NAME": "web.example.org"})},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, imageSettings(image, c.settings))
			before := tool(t, "stat", "-c", "%n %y", disk, foreign, damaged)
			log := s.renamed(t, from.with(c.e))
			if !strings.Contains(log, c.says) {
				t.Errorf("the log does not say %q:\n%s", c.says, log)
			}
			mounts := strings.Contains(c.name, "name") || strings.Contains(c.name, "of more")
			if after := tool(t, "stat", "-c", "%n %y", disk, foreign, damaged); !mounts && after != before {
				t.Errorf("a disk was changed:\n%s", log)
			}
		})
	}
	t.Run("no old name", func(t *testing.T) {
		s := newSite(t, imageSettings(image))
		checkRefusal(t, s.run(t, "rename", instance(disk)), 2, "OLD_INSTANCE_NAME")
	})
}

// A seed on a disk of its own has the new name and network, keeps what only
// create was told, and cloud-init looks at it again. A disk that holds no seed is
// left alone, and one that is gone is missed by nobody.
func TestRenameSeedDisk(t *testing.T) {
	layout := layoutNamed(t, "mbr-ext4")
	image, _ := makeImage(t, layout)
	for _, nomount := range []string{"no", "yes"} {
		t.Run("NOMOUNT="+nomount, func(t *testing.T) {
			s := newSite(t, imageSettings(image, "SEED_DISK=1", "DISK_2=swap", "NOMOUNT="+nomount))
			s.enable(t, "cloud-init")
			disk, second := newDisk(t, 1000), newDisk(t, 32)
			e := disks(disk, second, newDisk(t, 64))
			s.create(t, e.with(env{"OSP_USER_DATA": "#cloud-config\npassword: s3cret\n"}))
			e = disks(disk, second).with(env{"INSTANCE_NAME": "mail.other.org", "OLD_INSTANCE_NAME": "web.example.org", "NIC_0_MAC": "aa:00:00:99:99:99"})
			delete(e, "INSTANCE_UUID") // the seed has it
			s.renamed(t, e)
			text := seedOf(t, second)
			for _, want := range []string{"mail.other.org", "password: s3cret", "aa:00:00:99:99:99", instance(disk)["INSTANCE_UUID"]} {
				if !strings.Contains(text, want) {
					t.Errorf("the seed does not say %q:\n%s", want, text)
				}
			}
			if strings.Contains(text, "web.example.org") || strings.Contains(text, "aa:00:00:12:34:56") {
				t.Errorf("the seed says\n%s", text)
			}
			if nomount == "no" {
				t.Run("guest", func(t *testing.T) {
					wantIn(t, mountRoot(t, disk, layout), map[string][]string{"etc/cloud/cloud.cfg.d/zz-ganeti.cfg": {"boot-new-instance, boot", "cidata"}})
				})
			}
			shell(t, `mke2fs -q -t ext4 -F "$1" 32M`, second)
			before := tool(t, "sha256sum", second)
			log := s.renamed(t, disks(disk, second).with(env{"OLD_INSTANCE_NAME": "mail.other.org"}))
			if after := tool(t, "sha256sum", second); after != before || !strings.Contains(log, "left alone") {
				t.Errorf("the disk was changed:\n%s", log)
			}
			if log := s.renamed(t, instance(disk).with(env{"OLD_INSTANCE_NAME": "web.example.org"})); !strings.Contains(log, "no disk with a seed") {
				t.Errorf("the log does not say that the seed's disk is gone:\n%s", log)
			}
		})
	}
}

// What failed half way is done by the next rename.
func TestRenameIsFinished(t *testing.T) {
	layout := layoutNamed(t, "mbr-ext4")
	layout.fill = "(\n" + namedTree + "\n)\n" + layout.fill
	image, _ := makeImage(t, layout)
	s := newSite(t, imageSettings(image))
	s.enable(t, "cloud-init")
	disk := newDisk(t, 1000)
	s.create(t, instance(disk))
	chattr := func(how string) {
		t.Run("chattr", func(t *testing.T) {
			dir := mountRoot(t, disk, layout)
			tool(t, "chattr", how, filepath.Join(dir, "etc/cloud/cloud.cfg.d/zz-ganeti.cfg"))
		})
	}
	chattr("+i")
	e := instance(disk).with(env{"INSTANCE_NAME": "mail.other.org", "OLD_INSTANCE_NAME": "web.example.org", "NIC_0_MAC": "aa:00:00:99:99:99"})
	o := s.run(t, "rename", e)
	if o.code == 0 || !strings.Contains(o.log, "zz-ganeti.cfg") {
		t.Fatalf("it ended with %d:\n%s", o.code, o.log)
	}
	chattr("-i")
	s.renamed(t, e)
	wantIn(t, mountRoot(t, disk, layout), map[string][]string{
		"etc/cloud/cloud.cfg.d/zz-ganeti.cfg":       {"boot-new-instance, boot"},
		"var/lib/cloud/seed/nocloud/meta-data":      {"mail.other.org"},
		"var/lib/cloud/seed/nocloud/network-config": {"aa:00:00:99:99:99"},
	})
}

// Names are replaced as whole names only.
func TestRenameIsOfWholeNames(t *testing.T) {
	layout := layoutNamed(t, "mbr-ext4")
	layout.fill = `echo web1 > "$tree/etc/hostname"
		printf '127.0.0.1 localhost\n192.0.2.5 web1.a.b.example.org web1\n192.0.2.6 web10.a.b.example.org web1-db web1xaxb.example.org\n' > "$tree/etc/hosts"
		` + layout.fill
	image, _ := makeImage(t, layout)
	s := newSite(t, imageSettings(image))
	disk := newDisk(t, 1000)
	s.create(t, instance(disk).with(env{"INSTANCE_NAME": "web1.a.b.example.org"}))
	s.renamed(t, instance(disk).with(env{"INSTANCE_NAME": "new.example.org", "OLD_INSTANCE_NAME": "web1.a.b.example.org"}))
	dir := mountRoot(t, disk, layout)
	wantIn(t, dir, map[string][]string{
		"etc/hostname": {"new\n", "!web1"},
		"etc/hosts":    {"new.example.org", "web10.a.b.example.org web1-db web1xaxb.example.org\n", "!web1.a.b"},
	})
	if leftovers := shell(t, `find "$1/etc" -newer "$1/etc/debian_version" -name 'host*' ! -name hostname ! -name hosts`, dir); leftovers != "" {
		t.Errorf("files were left: %s", leftovers)
	}
}

// A busy disk is a failure that names who has it; Ganeti makes it a warning.
func TestRenameOfABusyDisk(t *testing.T) {
	disk := newDisk(t, 64)
	shell(t, `mke2fs -q -t ext4 -F "$1" 64M`, disk)
	dir := t.TempDir()
	tool(t, "mount", "-o", "loop", disk, dir)
	t.Cleanup(func() { tool(t, "umount", dir) })
	s := newSite(t, "")
	o := s.run(t, "rename", instance(disk).with(env{"OLD_INSTANCE_NAME": "web.example.org"}))
	checkRefusal(t, o, 4, fmt.Sprint(disk))
}
