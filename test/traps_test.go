package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
)

// trapped are the files and directories of a guest that create, with all its
// hooks and settings, reads or writes; $tree is a guest in which they are.
var trapped = []string{
	"etc/hostname", "etc/hosts", "etc/mailname", "etc/machine-id", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed",
	"etc/network/interfaces", "etc/netplan", "etc/netplan/90-ganeti.yaml", "etc/resolv.conf", "etc/udev/rules.d/70-persistent-net.rules",
	"etc/ssh", "etc/ssh/ssh_host_ed25519_key", "etc/passwd", "etc/shadow", "etc/group", "etc/sudoers.d", "root/.ssh", "root/.ssh/authorized_keys",
	"home", "home/op", "etc/skel", "etc/cloud", "etc/cloud/cloud.cfg.d", "etc/cloud/cloud.cfg.d/zz-ganeti.cfg", "var/lib/cloud", "var/lib/cloud/seed/nocloud",
	"etc/dhcp/dhclient.conf", "etc/motd", "srv/site", "etc/fstab", "usr/lib/os-release", "etc/default/grub", "etc/iscsi/initiatorname.iscsi",
	"etc/selinux", "etc/selinux/config", "etc/login.defs", "etc",
}

// traps put something else in the place of $path of $tree. $node is a directory
// of the node that holds a file or directory under the name $path.
var traps = []struct{ name, commands string }{
	{"absolute link", `rm -rf "$tree/$path"; ln -s "$node/$path" "$tree/$path"`},
	{"relative link", `rm -rf "$tree/$path"; ln -s "../../../../../../../../..$node/$path" "$tree/$path"`},
	{"loop", `rm -rf "$tree/$path"; ln -s "/$path" "$tree/$path"`},
	{"fifo", `rm -rf "$tree/$path"; mkfifo "$tree/$path"`},
	{"other kind", `if [ -d "$tree/$path" ]; then rm -rf "$tree/$path"; echo x > "$tree/$path"; else rm -f "$tree/$path"; mkdir "$tree/$path"; fi`},
}

// trapTree makes a guest in which everything of trapped exists.
const trapTree = makeTree + `
cd "$tree"
rm etc/resolv.conf
mkdir -p etc/{netplan,udev/rules.d,sudoers.d,skel,dhcp,default,iscsi,selinux} var/lib/{dbus,systemd,cloud/seed/nocloud} root/.ssh home/op srv usr/sbin
for f in etc/{mailname,machine-id,resolv.conf,shadow,group,motd,fstab,login.defs,hosts} etc/ssh/ssh_host_ed25519_key etc/netplan/90-ganeti.yaml \
	etc/udev/rules.d/70-persistent-net.rules root/.ssh/authorized_keys etc/cloud/cloud.cfg.d/zz-ganeti.cfg etc/dhcp/dhclient.conf \
	srv/site etc/default/grub etc/iscsi/initiatorname.iscsi var/lib/dbus/machine-id var/lib/systemd/random-seed usr/sbin/netplan usr/sbin/dhclient; do
	echo "# of the image" > "$f"
done
printf 'auto lo\niface lo inet loopback\n' > etc/network/interfaces
printf 'root:*:19000:0:99999:7:::\n' > etc/shadow
printf 'root:x:0:\n' > etc/group
printf '127.0.0.1 localhost\n' > etc/hosts
printf 'SELINUX=disabled\n' > etc/selinux/config
printf '/dev/vda / ext4 defaults 0 1\n' > etc/fstab
`

// A guest may have anything in the place of any file that is touched: the node
// stays as it is. What cannot be done is an error that names the guest's file,
// and then the disk shows no system.
func TestTraps(t *testing.T) {
	need.Root(t)
	need.Tools(t, "mke2fs", "debugfs", "tune2fs")
	site := newTrapSite(t)
	tree := filepath.Join(t.TempDir(), "tree")
	shell(t, trapTree, tree)
	t.Run("none", func(t *testing.T) {
		if o := site.run(t, tree, ""); o.code != 0 {
			t.Fatalf("a guest without a trap was not deployed:\n%s", o.log)
		}
	})
	for _, trap := range traps {
		t.Run(trap.name, func(t *testing.T) {
			for _, path := range trapped {
				site.spring(t, tree, path, trap.commands)
			}
		})
	}
}

type trapSite struct {
	*site
	node string // a directory of the node, which traps lead to
	key  string
}

func newTrapSite(t *testing.T) trapSite {
	key := "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqZ3x8nZ5e0cO0N8QfVf3h5o0vQm4q3hYwq2c2bq1aX op"
	s := newSite(t, strings.Join([]string{
		"OVERLAY=trap", "ROOT_PASSWORD=secret-of-root", "USER_NAME=op", "SSH_KEYS='" + key + "'", "DNS_SERVERS=192.0.2.53",
		`GUEST_FILES='[{"path": "/etc/motd", "text": "hello"}, {"path": "/srv/site", "text": "site"}]'`, "GROW=no", "",
	}, "\n"))
	s.write(t, s.conf("overlays/trap/etc/default/grub"), "overlay\n", 0o644)
	t.Cleanup(func() { os.RemoveAll(s.conf("overlays/trap")) })
	s.enable(t, "cloud-init", "interfaces", "overlays", "zz_ddns")
	node := t.TempDir()
	for _, path := range trapped {
		shell(t, `case $2 in etc|etc/netplan|etc/ssh|etc/sudoers.d|root/.ssh|home*|etc/skel|etc/cloud|*.d|var/lib/cloud|*/nocloud|etc/selinux) mkdir -p "$1/$2" ;;
			*) mkdir -p "$(dirname "$1/$2")"; echo "of the node" > "$1/$2" ;; esac`, node, path)
	}
	return trapSite{s, node, key}
}

// run deploys an image of the tree to a disk that holds a file system without a
// table; commands may change the image, $image.
func (s trapSite) run(t *testing.T, tree, commands string) outcome {
	t.Helper()
	dir := t.TempDir()
	image, disk := filepath.Join(dir, "image.raw"), filepath.Join(dir, "disk")
	shell(t, `image=$2; truncate -s 64M "$image"; mke2fs -q -t ext4 -O ^has_journal -d "$1" "$image"; truncate -s 64M "$3"
	`+commands, tree, image, disk)
	defer os.Remove(image)
	defer os.Remove(disk)
	o := s.site.run(t, "create", instance(disk).with(s.of(t, image)))
	if o.code != 0 {
		empty(t, disk)
	}
	return o
}

// of has the settings name the image.
func (s trapSite) of(t *testing.T, image string) env {
	t.Helper()
	s.write(t, s.conf("variants/trap.conf"), fmt.Sprintf("IMAGE_FILE=%s\nIMAGE_TYPE=raw\n", image), 0o644)
	t.Cleanup(func() { os.Remove(s.conf("variants/trap.conf")) })
	return env{"OS_VARIANT": "trap"}
}

// spring sets one trap.
func (s trapSite) spring(t *testing.T, tree, path, commands string) {
	t.Helper()
	if strings.Contains(path, "ssh") { // it takes a second to make keys
		s.enable(t, "ssh")
		defer s.disable(t, "ssh")
	}
	before := s.outside(t)
	copied := filepath.Join(t.TempDir(), "tree")
	shell(t, `cp -a "$1" "$2"; tree=$2 path=$3 node=$4`+"\n"+commands, tree, copied, path, s.node)
	o := s.run(t, copied, "")
	if after := s.outside(t); after != before {
		t.Errorf("%s: the node was changed:\n%s", path, diff(t, before, after))
	}
	s.checkOutcome(t, path, o)
}

// checkOutcome wants a guest, or an error that names a file of the guest's.
func (s trapSite) checkOutcome(t *testing.T, path string, o outcome) {
	t.Helper()
	if strings.Contains(o.log, "secret-of-root") || strings.Contains(o.log, "AAAAC3") {
		t.Errorf("%s: a secret is in the log:\n%s", path, o.log)
	}
	named := path
	if parent := filepath.Dir(path); o.code != 0 && !strings.Contains(o.log, "/"+named) && parent != "." {
		named = parent
	}
	if o.code != 0 && !strings.Contains(o.log, "/"+named) {
		t.Errorf("%s: the error names no file of the guest's:\n%s", path, o.log)
	}
	if strings.Contains(o.log, "defect in this program") {
		t.Errorf("%s: it panicked:\n%s", path, o.log)
	}
}

// outside describes what of the node a guest could lead to.
func (s trapSite) outside(t *testing.T) string {
	t.Helper()
	return shell(t, `for d in "$1" /etc /root/.ssh; do [ -d "$d" ] && find "$d" -xdev -mindepth 1 \( -path /etc/ganeti -o -path /etc/netns \) -prune -o \( -type f -o -type l -o -type d \) -printf '%p %m %U:%G %s %T@ %l\n'; done | sort`, s.node)
}

// A guest that cannot be written to is left as it is, which is said.
func TestReadOnlyGuest(t *testing.T) {
	need.Root(t)
	need.Tools(t, "mke2fs", "tune2fs")
	site := newTrapSite(t)
	tree := filepath.Join(t.TempDir(), "tree")
	shell(t, trapTree, tree)
	o := site.run(t, tree, `tune2fs -O read-only "$image" >/dev/null`)
	if o.code != 0 || !strings.Contains(o.log, "files are left alone") || !strings.Contains(o.log, "does not get what ROOT_PASSWORD") {
		t.Errorf("it ended with %d:\n%s", o.code, o.log)
	}
}

// What the file system itself does not allow is said of the file it is about.
func TestTrapsOfTheFileSystem(t *testing.T) {
	need.Root(t)
	need.Tools(t, "mke2fs", "debugfs", "tune2fs")
	site := newTrapSite(t)
	tree := filepath.Join(t.TempDir(), "tree")
	shell(t, trapTree, tree)
	for _, c := range []struct{ name, commands, word string }{
		{"immutable", `debugfs -w -R "set_inode_field /etc/hostname flags 0x80010" "$image" 2>/dev/null`, "/etc/hostname"},
		{"append only", `debugfs -w -R "set_inode_field /etc/shadow flags 0x80020" "$image" 2>/dev/null`, "/etc/shadow"},
		{"full", `head -c 60000000 /dev/zero > "$image.fill"; debugfs -w -R "write $image.fill fill" "$image" 2>/dev/null >&2; rm "$image.fill"
			free=$(dumpe2fs -h "$image" 2>/dev/null | sed -n 's/^Free blocks: *//p')
			head -c $((free * 1024)) /dev/zero | tr '\0' x > "$image.fill"; debugfs -w -R "write $image.fill fill2" "$image" 2>/dev/null >&2; rm "$image.fill"`, "no space left"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := site.outside(t)
			o := site.run(t, tree, c.commands)
			if o.code == 0 {
				t.Fatalf("it was deployed:\n%s", o.log)
			}
			if !strings.Contains(o.log, c.word) {
				t.Errorf("the log does not say %q:\n%s", c.word, o.log)
			}
			if after := site.outside(t); after != before {
				t.Errorf("the node was changed:\n%s", diff(t, before, after))
			}
		})
	}
}
