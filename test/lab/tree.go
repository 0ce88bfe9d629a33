package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"ganeti-instance-image/internal/run"
)

// Releases are those of Debian that trees are made of. The machine's is the first.
var Releases = []string{"bookworm", "trixie"}

// suites are the parts of a release that a tree is made of. Only the first is
// needed: a machine may have been given no updates.
func suites(release string) []string {
	return []string{release, release + "-updates", release + "-security"}
}

var packages = []string{
	"linux-image-cloud-amd64", "initramfs-tools", "kmod", "zstd",
	"grub2-common", "grub-pc-bin", "grub-efi-amd64-bin",
	"systemd-sysv", "udev", "dbus", "systemd-resolved", "libnss-myhostname",
	"iproute2", "netplan.io", "cloud-init", "cloud-guest-utils", "openssh-server", "sudo",
	"e2fsprogs", "xfsprogs", "btrfs-progs", "dosfstools", "ca-certificates",
	"usr-is-merged", // stands for usrmerge, which would bring all of perl
}

// unpacked lists what is left out of the tree to make it small: nothing that
// a test or a boot looks at. A line is a pattern of dpkg's path-exclude.
var unpacked = []string{
	"/usr/share/man/*", "/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*",
	"/usr/share/i18n/locales/*", "/usr/share/i18n/charmaps/*", "/usr/lib/x86_64-linux-gnu/gconv/*",
	"/usr/lib/x86_64-linux-gnu/libicu*", // for xfs_scrub alone
	"/usr/lib/udev/hwdb.d/*", "/lib/udev/hwdb.d/*",
	"/usr/lib/grub/x86_64-efi/monolithic/*",
	"/lib/modules/*/kernel/drivers/infiniband/*", "/lib/modules/*/kernel/drivers/comedi/*",
	"/lib/modules/*/kernel/drivers/hid/*", "/lib/modules/*/kernel/drivers/target/*",
	"/lib/modules/*/kernel/drivers/media/*", "/lib/modules/*/kernel/drivers/usb/*",
	"/lib/modules/*/kernel/drivers/staging/*", "/lib/modules/*/kernel/drivers/gpu/*",
	"/lib/modules/*/kernel/net/netfilter/*", "/lib/modules/*/kernel/net/sched/*",
	"/lib/modules/*/kernel/net/sunrpc/*", "/lib/modules/*/kernel/net/tipc/*",
	"/lib/modules/*/kernel/net/sctp/*", "/lib/modules/*/kernel/net/smc/*",
	"/lib/modules/*/kernel/net/wireless/*", "/lib/modules/*/kernel/net/bluetooth/*",
	"/lib/modules/*/kernel/fs/nfs/*", "/lib/modules/*/kernel/fs/nfsd/*",
	"/lib/modules/*/kernel/fs/smb/*", "/lib/modules/*/kernel/fs/ceph/*",
	"/lib/modules/*/kernel/fs/ocfs2/*", "/lib/modules/*/kernel/fs/gfs2/*",
	"/lib/modules/*/kernel/sound/*", "/lib/modules/*/kernel/arch/x86/kvm/*", "/lib/modules/*/kernel/drivers/cpufreq/*",
}

// beforePackages is run with the tree's path as $1 when only the essential
// packages are there. The initramfs mounts ext4, xfs and btrfs from every disk
// type that Ganeti can give a KVM guest, loads of them what the root needs, and
// waits for no swap.
const beforePackages = `set -e
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/etc/initramfs-tools/hooks"
printf 'MODULES=list\nRESUME=none\n' > "$1/etc/initramfs-tools/conf.d/lab"
cat > "$1/etc/initramfs-tools/hooks/lab" <<'END'
#!/bin/sh
[ "$1" = prereqs ] && exit 0
. /usr/share/initramfs-tools/hook-functions
manual_add_modules virtio_pci virtio_blk virtio_scsi sd_mod ata_piix ata_generic ahci ext4 xfs btrfs crc32c_generic
END
chmod 755 "$1/etc/initramfs-tools/hooks/lab"
`

// afterPackages is run with the tree's path as $1 at the end. It leaves the
// tree as cloud images are shipped: no host keys, an empty machine-id, a name
// that says nothing, root locked. What differs is that cloud-init makes no RSA
// key, which takes half a minute without KVM.
const afterPackages = `set -e
rm -f "$1"/etc/ssh/ssh_host_*
: > "$1/etc/machine-id"
rm -f "$1/var/lib/dbus/machine-id"
rm -f "$1/etc/hostname"
echo localhost > "$1/etc/hostname"
printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n' > "$1/etc/hosts"
echo LANG=C.UTF-8 > "$1/etc/default/locale" # else cloud-init generates another one
cat > "$1/etc/cloud/cloud.cfg.d/01_debian_cloud.cfg" <<'END'
apt:
  generate_mirrorlists: true
manage_etc_hosts: true
ssh_genkeytypes: [ecdsa, ed25519]
END
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer; do
	rm -f "$1"/etc/systemd/system/*.wants/"$unit"
done
grep -q '^root:[*!]' "$1/etc/shadow"
test -L "$1/etc/resolv.conf"
ls "$1"/boot/vmlinuz-* "$1"/boot/initrd.img-* > /dev/null
`

// DebianTree returns a tar of a Debian 12 root tree with further packages, made
// from the machine's own Debian package sources and kept in the cache until the
// recipe changes. Making it takes about 40 s and needs root.
func (l *Lab) DebianTree(ctx context.Context, further ...string) (string, error) {
	argv := treeRecipe(further...)
	return l.cached(ctx, "debian-12-"+digest(argv...)+".tar", func(path string) error {
		return bootstrap(ctx, argv, Releases[0], path)
	})
}

// bootstrap runs a recipe for a release of Debian.
func bootstrap(ctx context.Context, recipe []string, release, path string) error {
	sources, err := debianSources(ctx, release)
	if err != nil {
		return err
	}
	whole := slices.Concat(withUs("TERM"), proxies(), recipe, []string{release, path}, sources)
	_, err = run.Cmd{What: "make a Debian tree", Argv: whole}.Run(ctx)
	return err
}

// treeRecipe is the command line without what is the machine's.
func treeRecipe(further ...string) []string {
	return recipe(slices.Concat(packages, further), afterPackages)
}

// recipe is such a command line for packages, and a script run at the end.
func recipe(packages []string, after string) []string {
	argv := []string{"mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar",
		"--include=" + strings.Join(packages, ","),
		`--aptopt=Apt::Install-Recommends "false"`,
		"--dpkgopt=force-unsafe-io",
		"--essential-hook=" + beforePackages,
		"--customize-hook=" + after,
		"--customize-hook=rm -f \"$1\"/etc/dpkg/dpkg.cfg.d/99mmdebstrap \"$1\"/etc/apt/apt.conf.d/99mmdebstrap",
	}
	for _, pattern := range unpacked {
		argv = append(argv, "--dpkgopt=path-exclude="+pattern)
	}
	return argv
}

// proxies hands on the proxy that the machine reaches package servers by.
func proxies() []string {
	argv := []string{"env"}
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy"} {
		if value, ok := os.LookupEnv(name); ok {
			argv = append(argv, name+"="+value)
		}
	}
	return argv
}

// debianSources returns the machine's own sources of Debian, as lines of a
// sources.list. Who makes a source is known from its signed Release file, so
// that third parties with the same suite names are left out. Another release
// than the machine's is where the machine's is.
func debianSources(ctx context.Context, release string) ([]string, error) {
	lines, err := sourceLines(ctx, release)
	if err != nil || len(lines) > 0 {
		return lines, err
	}
	// apt knows the Release files only after an update, and images of Debian
	// for containers are shipped without one.
	if _, err := (run.Cmd{What: "fetch package lists", Argv: append(proxies(), "apt-get", "-q", "update")}).Run(ctx); err != nil {
		return nil, err
	}
	if lines, err = sourceLines(ctx, release); err == nil && len(lines) == 0 {
		err = errors.New("cannot find Debian 12 (bookworm main) in the machine's apt sources")
	}
	return lines, err
}

func sourceLines(ctx context.Context, release string) ([]string, error) {
	argv := []string{"apt-get", "indextargets", "--format", "$(CODENAME) $(RELEASE) $(COMPONENT) $(REPO_URI)",
		"Created-By: Packages", "Origin: Debian"}
	result, err := run.Cmd{What: "list the machine's package sources", Argv: argv}.Run(ctx)
	if err != nil {
		return nil, err
	}
	var lines []string
	for line := range strings.Lines(string(result.Stdout)) {
		f := strings.Fields(line)
		if len(f) != 4 || !slices.Contains(suites(Releases[0]), f[0]) || f[2] != "main" {
			continue
		}
		suite := f[1]
		if release != Releases[0] {
			suite = strings.Replace(f[0], Releases[0], release, 1)
		}
		if entry := fmt.Sprintf("deb %s %s main", f[3], suite); !slices.Contains(lines, entry) {
			lines = append(lines, entry)
		}
	}
	return lines, nil
}
