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
	"slices"
	"strings"
)

// NetworkTree says what tree image to make for tests of the network: a tar of
// the root of a Debian machine that was in use, with a network of its own. It
// has no boot loader: the kernel is to be the node's.
type NetworkTree struct {
	Release string // one of Releases
	Stack   string // one of Stacks: what sets the network up
	Files   []File // written into the tree at the end
}

// Stacks are what sets up the network of a tree.
var Stacks = []string{"netplan", "ifupdown", "NetworkManager", "networkd"}

// What the machine that network trees are of had, besides OldName. Of the
// addresses none may be in use, and of the names none be said, by a guest.
const (
	OldAddress    = "198.51.100.77"
	OldNameServer = "198.51.100.53"
	OldMAC        = "aa:00:00:0d:1d:01"
	OldDomain     = "old.example.net"
)

//go:embed nettree.go
var networkTreeSource string

// networkPackages are those of all stacks; a tree keeps the ones of its own.
var networkPackages = []string{
	"linux-image-cloud-amd64", "initramfs-tools", "kmod", "zstd",
	"systemd-sysv", "udev", "dbus", "libnss-myhostname", "iproute2", "openssh-server", "e2fsprogs",
	"usr-is-merged", "systemd-resolved", "netplan.io", "ifupdown", "network-manager",
}

// dhcpClients are what ifupdown has for DHCP, by the release.
var dhcpClients = map[string]string{"bookworm": "isc-dhcp-client", "trixie": "dhcpcd-base"}

// stackPackages are those that a stack has and others have not, as Debian's own
// installer or its cloud images would have it.
var stackPackages = map[string][]string{
	"netplan":        {"netplan.io", "netplan-generator", "systemd-resolved"},
	"ifupdown":       {"ifupdown", "isc-dhcp-client", "dhcpcd-base"},
	"NetworkManager": {"network-manager"},
	"networkd":       {"systemd-resolved"},
}

// afterNetworkPackages is run with the tree's path as $1 at the end.
const afterNetworkPackages = `set -e
rm -f "$1"/etc/ssh/ssh_host_* "$1/var/lib/dbus/machine-id"
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer; do
	rm -f "$1"/etc/systemd/system/*.wants/"$unit"
done
ls "$1"/boot/vmlinuz-* "$1"/boot/initrd.img-* > /dev/null
`

func networkRecipe(release string) []string {
	return recipe(append(slices.Clone(networkPackages), dhcpClients[release]), afterNetworkPackages)
}

// NetworkImage returns a tar made to the spec, from the cache where it is there.
// It needs root and takes about 50 s for the first of a release, and 10 s for
// another.
func (l *Lab) NetworkImage(ctx context.Context, spec NetworkTree) (string, error) {
	if !slices.Contains(Releases, spec.Release) || !slices.Contains(Stacks, spec.Stack) {
		return "", fmt.Errorf("there is no tree of %s with %s", spec.Release, spec.Stack)
	}
	argv := networkRecipe(spec.Release)
	all, err := l.cached(ctx, "network-"+spec.Release+"-"+digest(argv...)+".tar", func(path string) error {
		return bootstrap(ctx, argv, spec.Release, path)
	})
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("network-%s-%s-%s.tar", spec.Release, spec.Stack, digest(string(text), networkTreeSource, strings.Join(argv, "\x00")))
	return l.cached(ctx, name, func(path string) error { return l.makeNetworkImage(ctx, spec, all, path) })
}

func (l *Lab) makeNetworkImage(ctx context.Context, spec NetworkTree, all, out string) (err error) {
	work, err := l.workDir("network-tree")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	root := filepath.Join(work, "root")
	const unpack = `mkdir "$1"; tar -C "$1" -xpf "$2" --numeric-owner --xattrs --xattrs-include='*' --exclude='./dev/*'`
	if err := script(ctx, "unpack the tree", unpack, root, all); err != nil {
		return err
	}
	if err := script(ctx, "leave the other stacks out", spec.strip(), append([]string{root}, spec.others()...)...); err != nil {
		return err
	}
	for _, f := range slices.Concat(oldIdentity(), spec.oldNetwork(), []File{reportUnit, reportTimer}, spec.Files) {
		if err := f.write(root); err != nil {
			return err
		}
	}
	if err := script(ctx, "make the tree an old machine's", settleNetworkTree, root, OldName); err != nil {
		return err
	}
	return script(ctx, "pack the tree", packOptions+packers["tar"], root, out)
}

// others are the packages of the other stacks.
func (s NetworkTree) others() []string {
	var names []string
	for _, packages := range stackPackages {
		for _, name := range packages {
			if !slices.Contains(stackPackages[s.Stack], name) && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// strip is run with the tree as $1 and the other stacks' packages behind it.
func (s NetworkTree) strip() string {
	text := `root=$1; shift
chroot "$root" env DEBIAN_FRONTEND=noninteractive dpkg --purge --force-depends "$@" >&2
`
	switch s.Stack {
	case "networkd":
		text += "chroot \"$root\" systemctl enable systemd-networkd >&2\n"
	case "ifupdown", "NetworkManager":
		text += "rm -f \"$root/etc/resolv.conf\"\n"
	}
	return text + `ls "$root/usr/sbin/sshd" > /dev/null` + "\n"
}

// settleNetworkTree is run with the tree as $1 and the name it had as $2: it
// gets host keys and a random seed of its own.
const settleNetworkTree = `
ssh-keygen -q -A -f "$1"
sed -i "s/ [^ ]*$/ root@$2/" "$1"/etc/ssh/ssh_host_*.pub
install -d "$1/var/lib/systemd"
(umask 077; for i in {1..32}; do printf 'an old seed of 16'; done | head -c 512 > "$1/var/lib/systemd/random-seed")
install -d "$1/etc/systemd/system/multi-user.target.wants"
ln -s /etc/systemd/system/lab-report.timer "$1/etc/systemd/system/multi-user.target.wants/"
`

// OldSeed is what the random seed of a network tree begins with.
const OldSeed = "an old seed"

// OldMachineID is that of the machine that trees are of.
var OldMachineID = fmt.Sprintf("%x", sha256.Sum256([]byte(OldName)))[:32]

// oldIdentity is what was the old machine's own, whatever set up its network.
func oldIdentity() []File {
	return []File{
		{Path: "/etc/fstab", Data: "UUID=" + OldRoot + " / ext4 errors=remount-ro 0 1\n"},
		{Path: "/etc/hostname", Data: OldName + "\n"},
		{Path: "/etc/mailname", Data: OldName + "." + OldDomain + "\n"},
		{Path: "/etc/hosts", Data: "127.0.0.1\tlocalhost\n" + OldAddress + "\t" + OldName + "." + OldDomain + "\t" + OldName + "\n::1\tlocalhost ip6-localhost ip6-loopback\n"},
		{Path: "/etc/machine-id", Data: OldMachineID + "\n", Mode: 0o444},
		{Path: "/var/lib/dbus/machine-id", Data: OldMachineID + "\n", Mode: 0o444},
		{Path: "/etc/default/locale", Data: "LANG=C.UTF-8\n"},
		{Path: "/etc/udev/rules.d/70-persistent-net.rules", Data: `SUBSYSTEM=="net", ACTION=="add", ATTR{address}=="` + OldMAC + `", NAME="eth0"` + "\n"},
		{Path: "/var/lib/dhcp/dhclient.enp0s2.leases", Data: "lease {\n  interface \"enp0s2\";\n  fixed-address " + OldAddress + ";\n  option host-name \"" + OldName + "\";\n}\n"},
	}
}

// oldNetwork is the network of the old machine, which would compete with what a
// guest is given: DHCP on every card, an address of its own, a MAC that is gone.
// Some of it is of tools that are there no more.
func (s NetworkTree) oldNetwork() []File {
	resolv := File{Path: "/etc/resolv.conf", Data: "search " + OldDomain + "\nnameserver " + OldNameServer + "\n"}
	switch s.Stack {
	case "netplan":
		return []File{
			{Path: "/etc/netplan/01-old.yaml", Mode: 0o600, Data: `network:
  version: 2
  ethernets:
    enp0s2: {addresses: [` + OldAddress + `/24], routes: [{to: default, via: 198.51.100.1, metric: 1}], nameservers: {addresses: [` + OldNameServer + `]}}
    old: {match: {macaddress: "` + OldMAC + `"}, set-name: lan0, dhcp4: true}
`},
			{Path: "/etc/netplan/99-all.yaml", Mode: 0o600, Data: "network: {version: 2, ethernets: {all: {match: {name: \"en*\"}, dhcp4: true, dhcp6: true}}}\n"},
			{Path: "/etc/systemd/network/01-old.network", Data: oldNetworkd},
		}
	case "ifupdown":
		return []File{resolv,
			{Path: "/etc/network/interfaces", Data: `source /etc/network/interfaces.d/*

auto lo
iface lo inet loopback

auto enp0s2
iface enp0s2 inet static
	address ` + OldAddress + `/24
	gateway 198.51.100.1
	dns-nameservers ` + OldNameServer + `
`},
			{Path: "/etc/network/interfaces.d/all", Data: "allow-hotplug enp0s3 enp0s4 ens3 eth0\niface enp0s3 inet dhcp\niface enp0s4 inet dhcp\niface ens3 inet dhcp\niface eth0 inet dhcp\n"},
		}
	case "NetworkManager":
		return []File{resolv,
			{Path: "/etc/NetworkManager/system-connections/all.nmconnection", Mode: 0o600, Data: `[connection]
id=all
uuid=0d1d0d1d-0001-4d1d-8d1d-0d1d0d1d0d1d
type=ethernet
autoconnect-priority=999

[ipv4]
method=auto
`},
			{Path: "/etc/NetworkManager/system-connections/old.nmconnection", Mode: 0o600, Data: `[connection]
id=old
uuid=0d1d0d1d-0002-4d1d-8d1d-0d1d0d1d0d1d
type=ethernet
interface-name=enp0s2
autoconnect-priority=500

[ipv4]
method=manual
address1=` + OldAddress + `/24,198.51.100.1
dns=` + OldNameServer + `;
`},
			{Path: "/etc/network/interfaces", Data: "auto lo\niface lo inet loopback\n\nallow-hotplug enp0s3\niface enp0s3 inet dhcp\n"},
			{Path: "/var/lib/NetworkManager/internal-0d1d0d1d-0002-4d1d-8d1d-0d1d0d1d0d1d-enp0s2.lease", Data: "ADDRESS=" + OldAddress + "\n"},
		}
	}
	return []File{
		{Path: "/etc/systemd/network/01-old.network", Data: oldNetworkd},
		{Path: "/etc/systemd/network/99-all.network", Data: "[Match]\nName=en*\n\n[Network]\nDHCP=yes\n"},
		{Path: "/etc/systemd/network/10-old.link", Data: "[Match]\nMACAddress=" + OldMAC + "\n\n[Link]\nName=lan0\n"},
	}
}

const oldNetworkd = "[Match]\nName=enp0s2\n\n[Network]\nAddress=" + OldAddress + "/24\nGateway=198.51.100.1\nDNS=" + OldNameServer + "\n"

// Reached is the file of a guest by which a test says that it got in.
const Reached = "/run/lab-reached"

// ReportEnd ends what a guest says on its console that nobody got into.
const ReportEnd = "end of the report"

// reportUnit says on the console what the network is, since one can look by no
// other way then.
var (
	reportUnit = File{Path: "/etc/systemd/system/lab-report.service", Data: `[Unit]
Description=Say what the network is where nobody came
ConditionPathExists=!` + Reached + `

[Service]
Type=oneshot
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
ExecStart=-/bin/sh -c 'echo; set -x; ip addr; ip route; ip -6 route; cat /etc/resolv.conf; cat /etc/network/interfaces; networkctl --no-pager; nmcli -p con; systemctl --failed --no-pager; journalctl -b -p 3 --no-pager | tail -n 20; journalctl -b --no-pager -u networking -u systemd-networkd -u NetworkManager -u ssh | tail -n 80'
ExecStart=/bin/echo ` + ReportEnd + `
`}
	reportTimer = File{Path: "/etc/systemd/system/lab-report.timer", Data: "[Timer]\nOnActiveSec=100\nAccuracySec=1\n"}
)
