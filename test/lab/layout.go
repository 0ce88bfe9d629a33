package lab

import (
	"fmt"
	"slices"
	"strings"

	"ganeti-instance-image/internal/size"
)

// Layout names how a distribution lays its cloud image out.
type Layout string

// The layouts, each with its partitions in the order they have on the disk.
const (
	MBR       Layout = "mbr-ext4"  // 1 root ext4; no UEFI
	Installer Layout = "installer" // Debian's installer, MBR: 1 root ext4, 2 extended, 5 swap; no UEFI
	LVM       Layout = "lvm"       // Debian's installer, MBR: 1 /boot ext4, 2 extended, 5 LVM with root ext4, swap_1; no UEFI
	Debian    Layout = "debian"    // GPT: 14 BIOS boot, 15 ESP, 1 root ext4
	Ubuntu    Layout = "ubuntu"    // 24.04, GPT: 14 BIOS boot, 15 ESP, 16 /boot ext4, 1 root ext4
	Alma      Layout = "almalinux" // GPT: 1 BIOS boot, 2 ESP, 3 /boot xfs, 4 root xfs
	Fedora    Layout = "fedora"    // GPT: 1 BIOS boot, 2 ESP, 3 /boot ext4, 4 btrfs with subvolumes root, home, var
	Whole     Layout = "whole"     // no partition table, ext4 on the whole disk; boots with a kernel from outside only
)

// Layouts returns every layout.
func Layouts() []Layout {
	var names []Layout
	for _, d := range disks {
		names = append(names, d.layout)
	}
	return names
}

// UEFI tells whether the layout has an ESP.
func (l Layout) UEFI() bool {
	d, err := l.disk()
	return err == nil && slices.ContainsFunc(d.parts, func(p part) bool { return p.fs == "vfat" })
}

// BIOS tells whether the layout boots by itself under SeaBIOS.
func (l Layout) BIOS() bool { return l != Whole }

func (l Layout) disk() (disk, error) {
	for _, d := range disks {
		if d.layout == l {
			return d, nil
		}
	}
	return disk{}, fmt.Errorf("no layout %q, there are %v", l, Layouts())
}

// Partition types, as sfdisk takes them.
const (
	typeBIOS     = "21686148-6449-6E6F-744E-656564454649"
	typeESP      = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	typeXBOOTLDR = "BC13C2FF-59E6-4262-A352-B275FD6F7172"
	typeRoot     = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
	typeLinux    = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
	typeMBRLinux = "83"
	typeExtended = "5"
	typeSwap     = "82"
	typeLVM      = "8e"
)

// disk is how one image looks.
type disk struct {
	layout   Layout
	table    string // "dos", "gpt", or "" for none
	size     size.Bytes
	by       string // how root and the rest are named: "UUID", "PARTUUID" or "LABEL"
	grub     string // GRUB's directory in /boot
	vendor   string // GRUB's directory in the ESP's EFI
	cmdline  string // of the kernel, besides root= and the console
	bls      bool   // /boot has loader entries also
	usedOnce bool   // made by hand from a machine that ran: with host keys and a machine-id
	group    string // LVM's volume group in the partition of that type
	parts    []part
}

// further are the packages that a guest needs to find its root, besides those
// that are in every tree.
func (d disk) further() []string {
	if d.group == "" {
		return nil
	}
	return []string{"lvm2"}
}

// part is one partition or logical volume; the parts of a disk stand in their
// order on it, and behind what they lie in.
type part struct {
	number  int        // of the partition; 0 for a volume
	volume  string     // name of the volume; "" for a partition
	size    size.Bytes // 0 for all that is left
	start   size.Bytes // 0 for right behind the one before
	kind    string     // partition type
	name    string     // of the GPT entry
	fs      string     // "ext4", "xfs", "btrfs", "vfat", "swap", or "" for none
	label   string     // of the filesystem
	subvols []subvol
	at      string // where it is mounted in the guest; "none" for swap
	options string // in fstab
}

type subvol struct{ name, at string }

const mib = size.MiB

var disks = []disk{
	{layout: MBR, table: "dos", size: 2 * size.GiB, by: "UUID", grub: "grub", usedOnce: true, parts: []part{
		{number: 1, start: mib, kind: typeMBRLinux, fs: "ext4", at: "/", options: "errors=remount-ro"},
	}},
	{layout: Installer, table: "dos", size: 2560 * mib, by: "UUID", grub: "grub", usedOnce: true, parts: []part{
		{number: 1, start: mib, size: 2047 * mib, kind: typeMBRLinux, fs: "ext4", at: "/", options: "errors=remount-ro"},
		{number: 2, start: 2049*mib - 1024, kind: typeExtended},
		{number: 5, start: 2049 * mib, kind: typeSwap, fs: "swap", at: "none", options: "sw"},
	}},
	{layout: LVM, table: "dos", size: 3 * size.GiB, by: "UUID", grub: "grub", usedOnce: true, group: "debian-vg", parts: []part{
		{number: 1, start: mib, size: 487 * mib, kind: typeMBRLinux, fs: "ext4", at: "/boot", options: "defaults"},
		{number: 2, start: 489*mib - 1024, kind: typeExtended},
		{number: 5, start: 489 * mib, kind: typeLVM},
		{volume: "root", size: 2000 * mib, fs: "ext4", at: "/", options: "errors=remount-ro"},
		{volume: "swap_1", size: 512 * mib, fs: "swap", at: "none", options: "sw"},
	}},
	{layout: Debian, table: "gpt", size: 2 * size.GiB, by: "PARTUUID", grub: "grub", vendor: "debian", parts: []part{
		{number: 14, start: mib, size: 3 * mib, kind: typeBIOS},
		{number: 15, size: 124 * mib, kind: typeESP, fs: "vfat", at: "/boot/efi", options: "defaults"},
		{number: 1, start: 128 * mib, kind: typeRoot, fs: "ext4", at: "/", options: "rw,discard,errors=remount-ro,x-systemd.growfs"},
	}},
	{layout: Ubuntu, table: "gpt", size: 3 * size.GiB, by: "LABEL", grub: "grub", vendor: "ubuntu", parts: []part{
		{number: 14, start: mib, size: 4 * mib, kind: typeBIOS},
		{number: 15, size: 106 * mib, kind: typeESP, fs: "vfat", label: "UEFI", at: "/boot/efi", options: "umask=0077"},
		{number: 16, size: 913 * mib, kind: typeXBOOTLDR, fs: "ext4", label: "BOOT", at: "/boot", options: "defaults"},
		{number: 1, start: 1025 * mib, kind: typeLinux, fs: "ext4", label: "cloudimg-rootfs", at: "/", options: "discard,commit=30,errors=remount-ro"},
	}},
	{layout: Alma, table: "gpt", size: 2 * size.GiB, by: "UUID", grub: "grub2", vendor: "almalinux", bls: true, parts: []part{
		{number: 1, start: mib, size: mib, kind: typeBIOS, name: "biosboot"},
		{number: 2, size: 200 * mib, kind: typeESP, name: "EFI System Partition", fs: "vfat", at: "/boot/efi", options: "defaults,uid=0,gid=0,umask=077,shortname=winnt"},
		{number: 3, size: 512 * mib, kind: typeLinux, name: "boot", fs: "xfs", label: "boot", at: "/boot", options: "defaults"},
		{number: 4, kind: typeLinux, name: "root", fs: "xfs", label: "root", at: "/", options: "defaults"},
	}},
	{layout: Fedora, table: "gpt", size: 2 * size.GiB, by: "UUID", grub: "grub2", vendor: "fedora", bls: true, cmdline: "rootflags=subvol=root", parts: []part{
		{number: 1, start: mib, size: mib, kind: typeBIOS},
		{number: 2, size: 100 * mib, kind: typeESP, fs: "vfat", at: "/boot/efi", options: "defaults,umask=0077,shortname=winnt"},
		{number: 3, size: 512 * mib, kind: typeLinux, fs: "ext4", label: "BOOT", at: "/boot", options: "defaults"},
		{number: 4, kind: typeLinux, fs: "btrfs", label: "fedora", at: "/", options: "compress=zstd:1",
			subvols: []subvol{{"root", "/"}, {"home", "/home"}, {"var", "/var"}}},
	}},
	{layout: Whole, table: "", size: 2 * size.GiB, by: "LABEL", grub: "grub", parts: []part{
		{fs: "ext4", label: "/", at: "/", options: "rw,relatime"},
	}},
}

// made is a disk with everything about it decided: places and identifiers.
type made struct {
	disk
	id    string // of the table: a GUID, or 0x and 8 digits
	parts []madePart
}

type madePart struct {
	part
	start, length size.Bytes
	partUUID      string
	uuid          string // of the filesystem, in lower case; 1234-ABCD for vfat
}

// decide places the partitions and draws identifiers.
func (d disk) decide() made {
	m := made{disk: d, id: randomUUID()}
	if d.table == "dos" {
		m.id = "0x" + randomUUID()[:8]
	}
	var next size.Bytes
	for _, p := range d.parts {
		q := madePart{part: p, start: max(next, p.start), length: p.size, partUUID: randomUUID(), uuid: randomUUID()}
		if q.length == 0 {
			q.length = d.size - q.start - d.tail()
		}
		if d.table == "dos" {
			q.partUUID = fmt.Sprintf("%s-%02d", m.id[2:], p.number)
		}
		if p.fs == "vfat" {
			q.uuid = strings.ToUpper(q.uuid[:4] + "-" + q.uuid[4:8])
		}
		next = q.start + q.inside()
		m.parts = append(m.parts, q)
	}
	return m
}

// inside is how far behind a part's start the next one may start.
func (p madePart) inside() size.Bytes {
	switch p.kind {
	case typeExtended:
		return 0
	case typeLVM:
		return firstExtent
	}
	return p.length
}

// tail is what the table needs at the end of the disk.
func (d disk) tail() size.Bytes {
	if d.table == "gpt" {
		return mib
	}
	return 0
}

// script is the table as sfdisk reads it.
func (m made) script() string {
	var b strings.Builder
	fmt.Fprintf(&b, "label: %s\nlabel-id: %s\nunit: sectors\n", m.table, m.id)
	boot, _ := m.boot()
	for _, p := range m.parts {
		if p.volume != "" {
			continue
		}
		fmt.Fprintf(&b, "%d : start=%d, size=%d, type=%s", p.number, p.start/512, p.length/512, p.kind)
		if m.table == "gpt" {
			fmt.Fprintf(&b, ", uuid=%s", strings.ToUpper(p.partUUID))
		}
		if p.name != "" {
			fmt.Fprintf(&b, ", name=%q", p.name)
		}
		if m.table == "dos" && p.number == boot.number {
			b.WriteString(", bootable")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// name is how fstab and the kernel's command line name a part.
func (m made) name(p madePart) string {
	switch {
	case p.volume != "":
		return "/dev/mapper/" + doubled(m.group) + "-" + doubled(p.volume)
	case m.by == "PARTUUID":
		return "PARTUUID=" + p.partUUID
	case m.by == "LABEL":
		return "LABEL=" + p.label
	}
	return "UUID=" + p.uuid
}

// doubled is a name of LVM's as it is in /dev/mapper, where a single hyphen
// stands between group and volume.
func doubled(name string) string { return strings.ReplaceAll(name, "-", "--") }

// find returns the part mounted at a place of the guest.
func (m made) find(at string) (madePart, bool) {
	i := slices.IndexFunc(m.parts, func(p madePart) bool { return p.at == at })
	if i < 0 {
		return madePart{}, false
	}
	return m.parts[i], true
}

// boot returns the partition that holds /boot, and what leads to /boot in it.
func (m made) boot() (madePart, string) {
	if p, ok := m.find("/boot"); ok {
		return p, ""
	}
	p, _ := m.find("/")
	return p, "/boot"
}

// fstab is the guest's.
func (m made) fstab() string {
	var b strings.Builder
	for _, p := range m.parts {
		if p.at == "" {
			continue
		}
		pass := map[bool]int{true: 1, false: 2}[p.at == "/"]
		if p.fs != "ext4" {
			pass = 0
		}
		for _, v := range p.subvols {
			fmt.Fprintf(&b, "%s %s %s subvol=%s,%s 0 0\n", m.name(p), v.at, p.fs, v.name, p.options)
		}
		if len(p.subvols) == 0 {
			fmt.Fprintf(&b, "%s %s %s %s 0 %d\n", m.name(p), p.at, p.fs, p.options, pass)
		}
	}
	return b.String()
}

// kernelArguments are the guest's whole command line.
func (m made) kernelArguments() string {
	root, _ := m.find("/")
	args := []string{"root=" + m.name(root), "ro"}
	if m.cmdline != "" {
		args = append(args, m.cmdline)
	}
	return strings.Join(append(args, console), " ")
}

const console = "console=tty0 console=ttyS0,115200"
