package lab

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/undo"
)

// TreeSpec says what tree image to make: an archive of the root of a Debian 12
// machine that was in use.
type TreeSpec struct {
	Format      string   // one of TreeFormats
	DumpOptions []string // of dump(8), as in -z2, -j2, -y; none for a dump that is not compressed
	Loader      string   // the boot loaders the tree has: "both" (where empty), "bios", "efi" or "none"
	Network     string   // what sets the network up: "netplan" (where empty) or "ifupdown"
	NoKernel    bool     // there is none in /boot
	Files       []File   // written into the tree at the end
}

// TreeFormats are the formats of a tree image. The xz has several blocks; "dump"
// is of two file systems, root and boot.
var TreeFormats = []string{"tar", "tar.gz", "tar.zst", "tar.xz", "dump"}

// OldName is the host name of the machine that trees are of.
const OldName = "old-machine"

//go:embed trees.go
var treesSource string

// packers make an archive of what tar writes: $1 is the tree, $2 the archive.
// Holes are left out of one of them, as -S asks for.
var packers = map[string]string{
	"tar":     `tar "${options[@]}" -cpf "$2" -C "$1" .`,
	"tar.gz":  `tar "${options[@]}" -czpf "$2" -C "$1" .`,
	"tar.zst": `tar "${options[@]}" -Scpf - -C "$1" . | zstd -q -T0 > "$2"`,
	"tar.xz":  `tar "${options[@]}" -cpf - -C "$1" . | xz -T0 -1 --block-size=16MiB > "$2"`,
}

const packOptions = "options=(--numeric-owner --acls --xattrs)\n"

// TreeSource returns an ext4 file system that is the tree of the spec, to be
// mounted read-only. It needs root, and takes about 20 s where
// it is not in the cache.
func (l *Lab) TreeSource(ctx context.Context, spec TreeSpec) (string, error) {
	spec.DumpOptions = nil
	if spec.Format != "dump" {
		spec.Format = "" // all but a dump are of one tree
	}
	recipe, err := spec.recipe()
	if err != nil {
		return "", err
	}
	return l.cached(ctx, "tree-"+recipe+".ext4", func(path string) error { return l.makeTree(ctx, spec, path) })
}

// TreeImage returns a tree image made to the spec, from the cache where it is
// there. Of a dump it is the root's, NAME-root.dump; NAME-boot.dump is beside it.
// The files must not be written to.
func (l *Lab) TreeImage(ctx context.Context, spec TreeSpec) (string, error) {
	recipe, err := spec.recipe()
	if err != nil {
		return "", err
	}
	source, err := l.TreeSource(ctx, spec)
	if err != nil {
		return "", err
	}
	if spec.Format == "dump" {
		name := filepath.Join(l.Dir, "tree-"+recipe)
		return l.cached(ctx, filepath.Base(name)+"-root.dump", func(path string) error {
			return l.dumpTree(ctx, spec, source, path, name+"-boot.dump")
		})
	}
	packer, ok := packers[spec.Format]
	if !ok {
		return "", fmt.Errorf("no format %q, there are %v", spec.Format, TreeFormats)
	}
	return l.cached(ctx, "tree-"+recipe+"."+spec.Format, func(path string) error {
		return l.withTree(ctx, source, func(root string) error {
			return script(ctx, "pack the tree", packOptions+packer, root, path)
		})
	})
}

// Key returns a key pair of this cache, for images that have to be the same in
// the next run.
func (l *Lab) Key(ctx context.Context) (private, public string, err error) {
	dir, err := l.cached(ctx, "key", func(path string) error {
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		_, _, err := NewKey(ctx, path)
		return err
	})
	if err != nil {
		return "", "", err
	}
	private = filepath.Join(dir, "id_ed25519")
	text, err := os.ReadFile(private + ".pub")
	return private, strings.TrimSpace(string(text)), err
}

func (s TreeSpec) recipe() (string, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	return digest(string(text), treesSource, strings.Join(treeRecipe(s.further()...), "\x00")), nil
}

func (s TreeSpec) further() []string {
	if s.Network == "ifupdown" {
		return []string{"ifupdown"}
	}
	return nil
}

// withTree runs f with the tree mounted read-only.
func (l *Lab) withTree(ctx context.Context, source string, f func(root string) error) (err error) {
	work, err := l.workDir("pack")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	return apart(func() (err error) {
		var steps undo.Stack
		defer steps.Unwind(&err)
		root := filepath.Join(work, "root")
		if err := mountLoop(ctx, &steps, source, root, "ro"); err != nil {
			return err
		}
		return f(root)
	})
}

// mountLoop mounts a file system in a file on a directory, which is made.
func mountLoop(ctx context.Context, steps *undo.Stack, file, dir, options string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if _, err := (run.Cmd{What: "mount a file system", Argv: []string{"mount", "-o", "loop," + options, file, dir}}).Run(ctx); err != nil {
		return err
	}
	steps.Push("unmount "+dir, func() error { return unix.Unmount(dir, 0) })
	return nil
}

// script runs a script with its arguments as $1, ...
func script(ctx context.Context, what, text string, args ...string) error {
	argv := append(withUs("KILL"), "bash", "-o", "pipefail", "-euc", text, "-")
	_, err := run.Cmd{What: what, Argv: append(argv, args...)}.Run(ctx)
	return err
}

// makeTree makes the file system that is a spec's tree.
func (l *Lab) makeTree(ctx context.Context, spec TreeSpec, out string) (err error) {
	tree, err := l.DebianTree(ctx, spec.further()...)
	if err != nil {
		return err
	}
	work, err := l.workDir("tree")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	return apart(func() (err error) {
		var steps undo.Stack
		defer steps.Unwind(&err)
		if err := script(ctx, "make a file system", `truncate -s 2G "$1"; mkfs.ext4 -q "$1"`, out); err != nil {
			return err
		}
		root := filepath.Join(work, "root")
		if err := mountLoop(ctx, &steps, out, root, "noatime"); err != nil {
			return err
		}
		unpack := `tar -C "$1" -xpf "$2" --numeric-owner --xattrs --xattrs-include='*' --exclude='./dev/*'`
		if err := script(ctx, "unpack the tree", unpack, root, tree); err != nil {
			return err
		}
		return spec.settle(ctx, root)
	})
}

// removals are what is done to a Debian tree for a spec that leaves things out.
// The loaders' files go, as where their packages are not installed.
const (
	removeBIOS    = `rm -r "$1/` + modulesBIOS + `"; rm -f "$1"/var/lib/dpkg/info/grub-pc-bin.*` + "\n"
	removeEFI     = `rm -r "$1/` + modulesEFI + `"; rm -f "$1"/var/lib/dpkg/info/grub-efi-amd64-bin.*` + "\n"
	removeNetplan = `chroot "$1" env DEBIAN_FRONTEND=noninteractive dpkg --purge --force-depends cloud-init netplan.io >&2; rm -rf "$1/etc/netplan" "$1/etc/cloud"` + "\n"
	removeKernel  = `rm -f "$1"/boot/*-amd64 "$1"/vmlinuz* "$1"/initrd.img*` + "\n"
)

func (s TreeSpec) removals() string {
	text := ""
	if s.Loader == "efi" || s.Loader == "none" {
		text += removeBIOS
	}
	if s.Loader == "bios" || s.Loader == "none" {
		text += removeEFI
	}
	if s.Network == "ifupdown" {
		text += removeNetplan
	}
	if s.NoKernel {
		text += removeKernel
	}
	return text
}

// oddFiles have everything that a tree can have and a copy can lose: times of
// nanoseconds, owners that no system knows, set-id and sticky bits, links, holes,
// devices, attributes of every namespace, names that are no text.
const oddFiles = `
odd=$1/srv/odd; mkdir "$odd"; cd "$odd"
echo text > plain; touch -d '2001-02-03 04:05:06.123456789 UTC' plain; chown 70000:4000000000 plain
ln plain hard; mkdir far; ln plain far/hard
ln -s plain link; ln -s /nowhere/at/all dangling; touch -h -d '2002-03-04 05:06:07.5 UTC' link; chown -h 12:34 link
ln -s "$(printf 'x%.0s' {1..1000})" long-link
cp /bin/true capable; setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 capable
cp /bin/true setid; chmod 6755 setid; mkdir -m 3775 shared; chown 0:8 shared
setfattr -n user.note -v "$(printf 'a note')" plain; setfattr -n trusted.overlay.opaque -v y far
setfattr -n security.selinux -v 'system_u:object_r:etc_t:s0\000' far
echo acl > acl; setfacl -m u:1234:rw,g:5678:r,m::rw acl
mkdir defaults; setfacl -d -m u:1234:rwx,g::rx,m::rwx defaults; setfacl -m u:70001:x defaults
truncate -s 40M sparse; printf middle | dd of=sparse bs=1 seek=20000000 conv=notrunc status=none
printf end | dd of=sparse bs=1 seek=$((40 << 20)) conv=notrunc status=none; truncate -s 3M hole; : > empty
mknod char c 300 70000; mknod -m 600 block b 8 17; mkfifo -m 640 fifo
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
echo x > $'two\nlines'; echo x > $'\xff\xfebytes'; echo x > ' spaces and * '; echo x > -dash; echo x > 'back\slash'
echo x > "$(printf 'n%.0s' {1..250})"
deep=deep/$(printf 'd%.0s' {1..90})/$(printf 'e%.0s' {1..90})/end; mkdir -p "$deep"; echo deep > "$deep/file"
head -c 300000 /dev/urandom > random; echo old > old; touch -d '1975-01-01 00:00:00 UTC' old far
touch -d '2003-04-05 06:07:08.987654321 UTC' defaults shared "$odd"
`

// settle makes the tree that of a machine that was in use: with a name, an
// fstab, host keys and GRUB's configuration of its own.
func (s TreeSpec) settle(ctx context.Context, root string) error {
	kernel, err := only(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil {
		return err
	}
	version := strings.TrimPrefix(kernel, "vmlinuz-")
	if err := script(ctx, "leave something out of the tree", s.removals(), root); err != nil {
		return err
	}
	if err := script(ctx, "make odd files", oddFiles, root); err != nil {
		return err
	}
	for _, f := range append(s.oldFiles(version), s.Files...) {
		if err := f.write(root); err != nil {
			return err
		}
	}
	_, err = run.Cmd{What: "make host keys", Argv: []string{"ssh-keygen", "-A", "-f", root}}.Run(ctx)
	return err
}

// OldRoot is the UUID of the root file system that the old machine had.
const OldRoot = "0d1d0d1d-0d1d-4d1d-8d1d-0d1d0d1d0d1d"

// oldFiles are what was the old machine's own.
func (s TreeSpec) oldFiles(kernel string) []File {
	files := []File{
		{Path: "/etc/fstab", Data: s.oldFSTab()},
		{Path: "/etc/hostname", Data: OldName + "\n"},
		{Path: "/etc/hosts", Data: "127.0.0.1\tlocalhost\n127.0.1.1\t" + OldName + ".example.net\t" + OldName + "\n::1\tlocalhost ip6-localhost ip6-loopback\n"},
		{Path: "/etc/machine-id", Data: fmt.Sprintf("%x", sha256.Sum256([]byte(OldName)))[:32] + "\n", Mode: 0o444},
		{Path: "/srv/scratch/.keep"},
	}
	if s.Network == "ifupdown" {
		files = append(files, File{Path: "/etc/network/interfaces", Data: oldInterfaces})
	} else {
		files = append(files, File{Path: "/etc/netplan/01-old.yaml", Data: oldNetplan, Mode: 0o600})
	}
	// Where the loader is of one kind only the machine was installed by hand, and
	// nobody has run grub-mkconfig.
	if s.Loader == "" || s.Loader == "both" {
		files = append(files, File{Path: "/etc/default/grub", Data: oldDefaultGrub}, File{Path: "/boot/grub/grub.cfg", Data: s.oldGrubConfig(kernel), Mode: 0o444})
	}
	return files
}

// bootApart tells whether the old machine had /boot on a file system of its own.
func (s TreeSpec) bootApart() bool { return s.Network == "ifupdown" || s.Format == "dump" }

func (s TreeSpec) oldFSTab() string {
	fstab := "# /etc/fstab: static file system information.\n" +
		"UUID=" + OldRoot + " / ext4 errors=remount-ro 0 1\n" +
		"/dev/sda5 none swap sw 0 0\n" +
		"tmpfs /srv/scratch tmpfs size=8m 0 0\n" +
		"/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0\n"
	if s.bootApart() {
		fstab += "LABEL=oldboot /boot ext4 defaults 0 2\n"
	}
	if s.Loader == "efi" {
		fstab += "UUID=0D1D-0D1D /boot/efi vfat umask=0077 0 1\n"
	}
	return fstab
}

const (
	oldInterfaces = `source /etc/network/interfaces.d/*

auto lo
iface lo inet loopback

allow-hotplug ens3
iface ens3 inet static
	address 198.51.100.7/24
	gateway 198.51.100.1
`
	oldNetplan = `network:
  version: 2
  ethernets:
    ens3:
      addresses: [198.51.100.7/24]
      routes: [{to: default, via: 198.51.100.1}]
`
	oldDefaultGrub = `GRUB_DEFAULT=0
GRUB_TIMEOUT=5
GRUB_DISTRIBUTOR=` + "`lsb_release -i -s 2> /dev/null || echo Debian`" + `
GRUB_CMDLINE_LINUX_DEFAULT="quiet"
GRUB_CMDLINE_LINUX=""
`
)

// oldGrubConfig is what the old machine's grub-mkconfig had written, but for
// themes and the recovery entries.
func (s TreeSpec) oldGrubConfig(kernel string) string {
	search, hints, prefix := OldRoot, "--hint-bios=hd0,msdos1 --hint-efi=hd0,msdos1 --hint-baremetal=ahci0,msdos1", "/boot"
	if s.bootApart() {
		search, prefix = "0d1d0d1d-b007-4d1d-8d1d-0d1d0d1d0d1d", ""
	}
	find := fmt.Sprintf(`set root='hd0,msdos1'
	if [ x$feature_platform_search_hint = xy ]; then
	  search --no-floppy --fs-uuid --set=root %[2]s  %[1]s
	else
	  search --no-floppy --fs-uuid --set=root %[1]s
	fi
`, search, hints)
	return fmt.Sprintf(`#
# DO NOT EDIT THIS FILE
#
### BEGIN /etc/grub.d/00_header ###
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
set default="0"
set timeout=5
insmod part_msdos
insmod ext2
%[1]s
### END /etc/grub.d/00_header ###

### BEGIN /etc/grub.d/10_linux ###
menuentry 'Debian GNU/Linux' --class debian --class gnu-linux --class gnu --class os $menuentry_id_option 'gnulinux-simple-%[2]s' {
	insmod gzio
	insmod part_msdos
	insmod ext2
	%[1]s
	echo	'Loading Linux %[3]s ...'
	linux	%[4]s/vmlinuz-%[3]s root=UUID=%[2]s ro  quiet
	echo	'Loading initial ramdisk ...'
	initrd	%[4]s/initrd.img-%[3]s
}
### END /etc/grub.d/10_linux ###
`, find, OldRoot, kernel, prefix)
}

// dumpTree makes the two dumps of a tree. That of boot has its name before that of
// the root, so that where the root's is there both are.
func (l *Lab) dumpTree(ctx context.Context, spec TreeSpec, source, root, boot string) error {
	return l.withTree(ctx, source, func(tree string) (err error) {
		work := filepath.Dir(tree)
		copies := []struct{ name, fill, size, out string }{
			{"oldroot", `cp -a "$1/." "$2"; find "$2/boot" -mindepth 1 -delete; touch -r "$1/boot" "$2/boot"; touch -r "$1/srv" "$2/srv"`, "2G", root},
			{"oldboot", `cp -a "$1/boot/." "$2"`, "256M", boot},
		}
		for _, c := range copies {
			if err := dumpOne(ctx, tree, filepath.Join(work, c.name), c.fill, c.size, c.out, spec.DumpOptions); err != nil {
				return errors.Join(err, os.RemoveAll(boot))
			}
		}
		return nil
	})
}

// dumpOne makes one file system of a tree and its dump. A loop device is what
// dump(8) needs: a file's name would mean the file system that it lies on.
func dumpOne(ctx context.Context, tree, fs, fill, size, out string, options []string) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	const text = `truncate -s "$2" "$1.ext4"; mkfs.ext4 -q -L "$3" "$1.ext4"`
	if err := script(ctx, "make a file system", text, fs, size, filepath.Base(fs)); err != nil {
		return err
	}
	if err := fillOne(ctx, tree, fs, fill); err != nil {
		return err
	}
	result, err := run.Cmd{What: "attach a file system", Argv: []string{"losetup", "--find", "--show", "--read-only", fs + ".ext4"}}.Run(ctx)
	if err != nil {
		return err
	}
	loop := strings.TrimSpace(string(result.Stdout))
	steps.Push("detach "+loop, func() error {
		_, err := run.Cmd{What: "detach " + loop, Argv: []string{"losetup", "--detach", loop}}.Run(context.WithoutCancel(ctx))
		return err
	})
	argv := append(withUs("TERM"), "dump", "-0", "-q")
	argv = append(append(argv, options...), "-f", out, loop)
	_, err = run.Cmd{What: "dump a file system", Argv: argv}.Run(ctx)
	return err
}

// fillOne copies a part of the tree into a file system, and unmounts it.
func fillOne(ctx context.Context, tree, fs, fill string) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	if err := mountLoop(ctx, &steps, fs+".ext4", fs, "noatime"); err != nil {
		return err
	}
	return script(ctx, "copy the tree", fill, tree, fs)
}
