package test

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/test/lab"
)

// treeBoot is a tree image that is deployed and booted.
type treeBoot struct {
	format  string
	dump    []string // options of dump(8)
	loader  string   // what the tree has, as in lab.TreeSpec
	network string   // likewise
	table   string   // PARTITION_TABLE
	uefi    bool
	fs      string // FILESYSTEM
	swap    bool
	outside bool // the kernel is the node's
}

// treeBoots cover every value of every axis once.
var treeBoots = []treeBoot{
	{"tar.gz", nil, "both", "netplan", "auto", false, "ext4", true, false},
	{"dump", []string{"-z"}, "both", "ifupdown", "gpt", true, "ext4", false, false},
	{"tar.xz", nil, "none", "netplan", "gpt", false, "xfs", true, false},
	{"tar.zst", nil, "both", "netplan", "msdos", true, "btrfs", true, false},
	{"dump", nil, "both", "ifupdown", "msdos", false, "xfs", true, true},
	{"tar", nil, "efi", "netplan", "auto", true, "btrfs", false, false},
}

// allTreeBoots are the combinations, for TEST_MATRIX=all.
func allTreeBoots() []treeBoot {
	all := slices.Clone(treeBoots)
	formats := append(slices.Clone(lab.TreeFormats), "dump")
	for _, table := range []string{"msdos", "gpt"} {
		for _, uefi := range []bool{false, true} {
			for _, fs := range []string{"ext4", "xfs", "btrfs"} {
				for _, swap := range []bool{false, true} {
					n := len(all)
					b := treeBoot{formats[n%6], nil, "both", []string{"netplan", "ifupdown"}[n/2%2], table, uefi, fs, swap, false}
					if b.format == "dump" {
						b.dump = [][]string{{"-z"}, {"-j"}, {"-y"}}[n/6%3]
					}
					all = append(all, b)
				}
			}
		}
	}
	return all
}

func (b treeBoot) name() string {
	return fmt.Sprint(b.format, strings.Join(b.dump, ""), " ", b.loader, " ", b.network, " ", b.table, " uefi=", b.uefi, " ", b.fs, " swap=", b.swap, " outside=", b.outside)
}

func (b treeBoot) spec(public string) lab.TreeSpec {
	return lab.TreeSpec{Format: b.format, DumpOptions: b.dump, Loader: b.loader, Network: b.network,
		Files: []lab.File{{Path: "/root/.ssh/authorized_keys", Data: public + "\n", Mode: 0o600}}}
}

func (b treeBoot) settings(image string) string {
	return imageSettings(image, "PARTITION_TABLE="+b.table, "FILESYSTEM="+b.fs, "SWAP="+map[bool]string{true: "yes", false: "no"}[b.swap],
		"SWAP_SIZE=200", "KERNEL_ARGS='net.ifnames=1 lab.mark'")
}

// What the table, the addresses and the disk of the guests are.
const (
	treeDiskMiB = 4096
	treeAddress = "10.0.2.15"
	treeMAC     = "aa:00:00:12:34:56"
	// treePatience is for a guest under emulation, of which a BIOS does not say
	// on the serial port that there is nothing to boot.
	treePatience = 7 * time.Minute
)

// A tree image becomes a disk that the field's tools find nothing wrong with,
// holds what was in the tree, and boots to a login as the instance.
func TestTreesBoot(t *testing.T) {
	need.Machine(t)
	need.Tools(t, "mmdebstrap", "dump", "qemu-system-x86_64", "sgdisk", "sfdisk", "e2fsck", "xfs_repair", "btrfs", "xz", "zstd", "mcopy", "grub-script-check")
	l, err := lab.Open()
	if err != nil {
		t.Fatal(err)
	}
	boots := treeBoots
	if os.Getenv("TEST_MATRIX") == "all" {
		boots = allTreeBoots()
	}
	for _, b := range boots {
		t.Run(b.name(), func(t *testing.T) { deployTree(t, l, b) })
	}
}

func deployTree(t *testing.T, l *lab.Lab, b treeBoot) {
	private, public, err := l.Key(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	image, err := l.TreeImage(t.Context(), b.spec(public))
	if err != nil {
		t.Fatal(err)
	}
	source, err := l.TreeSource(t.Context(), b.spec(public))
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, b.settings(image))
	for path, text := range map[string]string{
		"networks/instances/web.example.org": "ADDRESS=" + treeAddress + "\nSUBNET=qemu\n",
		"networks/subnets/qemu":              "NETMASK=255.255.255.0\nGATEWAY=10.0.2.2\nDNS_SERVERS=10.0.2.3\nDNS_SEARCH=example.org\n",
	} {
		s.write(t, s.conf(path), text, 0o644)
		t.Cleanup(func() { os.Remove(s.conf(path)) })
	}
	s.enable(t, "grub", "interfaces")
	disk := newDisk(t, treeDiskMiB)
	start := time.Now()
	log := s.create(t, b.instance(disk))
	t.Logf("create took %.1f s", time.Since(start).Seconds())
	judgeTree(t, disk, b.partitions())
	checkTree(t, b, source, disk, log)
	if t.Failed() {
		t.Logf("log:\n%s", log)
	}
	bootTree(t, l, b, disk, private, log)
}

func (b treeBoot) instance(disk string) env {
	e := instance(disk).with(env{"DISK_0_SIZE": itoa(treeDiskMiB), "NIC_0_MAC": treeMAC})
	if b.outside {
		e["INSTANCE_HV_kernel_path"] = "/boot/vmlinuz"
	}
	return e
}

// want is a partition that a disk should have.
type want struct {
	number int
	holds  string // as blkid calls it; "" for a BIOS boot partition
	mib    int64  // 0 for all that is left
}

// partitions are those of the layout, in the disk's order.
func (b treeBoot) partitions() []want {
	gpt := b.table == "gpt" || b.table == "auto" && b.loader == "efi"
	var parts []want
	if gpt && !b.outside {
		parts = append(parts, want{14, "", 1})
	}
	if !b.outside && (gpt || b.loader != "bios") {
		parts = append(parts, want{map[bool]int{true: 15, false: 4}[gpt], "vfat", 100})
	}
	next := 1
	add := func(holds string, mib int64) {
		parts = append(parts, want{next, holds, mib})
		next++
	}
	if !b.outside {
		add("ext4", 512)
	}
	if b.swap {
		add("swap", 200)
	}
	add(b.fs, 0)
	return parts
}

// root is the number of the root partition.
func (b treeBoot) root() int {
	parts := b.partitions()
	return parts[len(parts)-1].number
}

// judgeTree has the field's tools judge a disk that was made for a tree.
func judgeTree(t *testing.T, disk string, parts []want) {
	t.Helper()
	t.Run("judge", func(t *testing.T) {
		judgeTable(t, disk)
		judgePlaces(t, disk, parts)
		for _, p := range parts {
			if p.holds == "" {
				continue
			}
			loop := attachPartition(t, disk, p.number)
			kind := strings.TrimSpace(tool(t, "blkid", "-p", "-o", "value", "-s", "TYPE", loop))
			if kind != p.holds {
				t.Errorf("partition %d holds %q, want %q", p.number, kind, p.holds)
			}
			judgeSystem(t, loop, kind)
		}
	})
}

func judgeTable(t *testing.T, disk string) {
	t.Helper()
	if readTable(t, disk).PartitionTable.Label == "gpt" {
		if out := tool(t, "sgdisk", "-v", disk); !strings.Contains(out, "No problems found") {
			t.Errorf("sgdisk -v:\n%s", out)
		}
	}
	if out := tool(t, "sfdisk", "--verify", disk); strings.Contains(out, "mismatch") || !strings.Contains(out, "No errors detected") {
		t.Errorf("sfdisk --verify:\n%s", out)
	}
}

// judgePlaces wants the partitions in this order, aligned, and the last one to
// end where the disk does.
func judgePlaces(t *testing.T, disk string, parts []want) {
	t.Helper()
	table := readTable(t, disk).PartitionTable.Partitions
	var got []want
	at := map[int]int64{}
	for _, p := range table {
		number, err := strconv.Atoi(strings.TrimPrefix(p.Node, disk))
		if err != nil {
			t.Fatal(err)
		}
		if p.Start%2048 != 0 || p.Size%2048 != 0 {
			t.Errorf("partition %d, at %d with %d sectors, is not aligned to 1 MiB", number, p.Start, p.Size)
		}
		at[number] = p.Start
		got = append(got, want{number: number, mib: p.Size / 2048})
	}
	slices.SortFunc(got, func(a, b want) int { return int(at[a.number] - at[b.number]) })
	if len(got) != len(parts) {
		t.Fatalf("the partitions are %v, want %v", got, parts)
	}
	for i, p := range parts {
		if got[i].number != p.number || p.mib != 0 && got[i].mib != p.mib {
			t.Errorf("the partitions are %v, want %v", got, parts)
			break
		}
	}
	start, length := extent(t, disk, parts[len(parts)-1].number)
	info, err := os.Stat(disk)
	if err != nil {
		t.Fatal(err)
	}
	if left := info.Size() - start - length; left > 2<<20 {
		t.Errorf("%d bytes are left behind the root", left)
	}
}

// judgeSystem has a file system's own program judge it.
func judgeSystem(t *testing.T, loop, kind string) {
	t.Helper()
	switch kind {
	case "ext2", "ext3", "ext4":
		tool(t, "e2fsck", "-fn", loop)
	case "xfs":
		tool(t, "xfs_repair", "-n", loop)
	case "btrfs":
		tool(t, "btrfs", "check", "--readonly", loop)
	case "vfat":
		tool(t, "fsck.vfat", "-n", loop)
	}
}

// mountTree mounts the root of a disk, and what it has for /boot.
func mountTree(t *testing.T, disk string, root, boot int, kind string) string {
	t.Helper()
	options := "ro,noatime"
	if kind == "xfs" {
		options += ",nouuid"
	}
	dir := t.TempDir()
	tool(t, "mount", "-o", options, attachPartition(t, disk, root), dir)
	t.Cleanup(func() { tool(t, "umount", dir) })
	if boot != 0 {
		tool(t, "mount", "-o", "ro,noatime", attachPartition(t, disk, boot), filepath.Join(dir, "boot"))
		t.Cleanup(func() { tool(t, "umount", filepath.Join(dir, "boot")) })
	}
	return dir
}

// changed are the files that a tree does not keep, and why.
var changed = []struct{ pattern, why string }{
	{"lost+found", "the file system's own"},
	{"boot/lost+found", "the file system's own"},
	{"etc/fstab", "names the new file systems"},
	{"etc/hostname", "the instance's name"},
	{"etc/hosts", "the instance's name"},
	{"etc/mailname", "the instance's name"},
	{"etc/machine-id", "is an instance's own"},
	{"etc/network/*", "the hook interfaces"},
	{"etc/netplan/*", "the hook interfaces"},
	{"etc/net*.ganeti-orig", "what the hook interfaces replaced"},
	{"etc/net*.ganeti-orig/*", "what the hook interfaces replaced"},
	{"etc/cloud/cloud.cfg.d/*", "the hook interfaces"},
	{"etc/systemd/resolved.conf.d", "the hook interfaces"},
	{"etc/systemd/resolved.conf.d/*", "the hook interfaces"},
	{"etc/udev/rules.d/70-persistent-net.rules", "the hook interfaces"},
	{"etc/default/grub", "the hook grub"},
	{"etc/default/grub.d", "the hook grub"},
	{"etc/default/grub.d/*", "the hook grub"},
	{"boot/grub", "the hook grub"},
	{"boot/grub/*", "the hook grub"},
	{"boot/grub/*/*", "the hook grub"},
	{"boot/efi", "where the ESP is mounted"},
	{"etc/systemd/system/getty.target.wants/*", "the serial console"},
	{"media/cdrom0", "what fstab names"},
}

// mayChange tells whether a difference is one that is meant. A directory whose
// entries change has another time.
func mayChange(name, what string) bool {
	for _, c := range changed {
		if ok, _ := path.Match(c.pattern, name); ok {
			return true
		}
		if what == "mtime" && path.Dir(c.pattern) == name {
			return true
		}
	}
	return false
}

// checkTree wants the disk to hold the tree.
func checkTree(t *testing.T, b treeBoot, source, disk, log string) {
	t.Helper()
	t.Run("files", func(t *testing.T) {
		boot := 1
		if b.outside {
			boot = 0
		}
		deployed := mountTree(t, disk, b.root(), boot, b.fs)
		original := t.TempDir()
		tool(t, "mount", "-o", "loop,ro,noatime", source, original)
		t.Cleanup(func() { tool(t, "umount", original) })
		compare := treeCompare{time.Nanosecond, mayChange}
		if b.format == "dump" {
			compare.times = time.Second
		} else {
			compare.ignore = func(name, what string) bool {
				return mayChange(name, what) || name == "srv/odd/socket" && what == "is missing" // tar has none
			}
		}
		compareTrees(t, original, deployed, compare)
		checkIdentity(t, deployed, disk, b.outside)
		shell(t, `if cmp -s "$1/etc/machine-id" "$2/etc/machine-id"; then echo the machine-id is still that of the old machine; exit 1; fi`, original, deployed)
		if !strings.Contains(log, "unpacked the image") {
			t.Errorf("the log does not say that the image was unpacked:\n%s", log)
		}
	})
}

// checkIdentity wants the files that name the instance and its file systems to
// name this one's.
func checkIdentity(t *testing.T, dir, disk string, outside bool) {
	t.Helper()
	if name, err := os.ReadFile(filepath.Join(dir, "etc/hostname")); err != nil || !strings.HasPrefix(string(name), "web") {
		t.Errorf("the host name is %q, %v", name, err)
	}
	if hosts, err := os.ReadFile(filepath.Join(dir, "etc/hosts")); err != nil || strings.Contains(string(hosts), lab.OldName) {
		t.Errorf("/etc/hosts has the old name: %v\n%s", err, hosts)
	}
	if config := filepath.Join(dir, "boot/grub/grub.cfg"); !outside {
		tool(t, "grub-script-check", config)
	}
	fstab, err := os.ReadFile(filepath.Join(dir, "etc/fstab"))
	if err != nil {
		t.Fatal(err)
	}
	names := identifiers(t, disk)
	for line := range strings.Lines(string(fstab)) {
		f := strings.Fields(line)
		if len(f) < 3 || strings.HasPrefix(line, "#") || f[2] == "tmpfs" || strings.Contains(f[2], "iso9660") {
			continue
		}
		if !strings.Contains(names, f[0]+"\n") {
			t.Errorf("fstab names %s, which the disk does not have:\n%s\n%s", f[0], fstab, names)
		}
	}
	if !strings.Contains(string(fstab), "/srv/scratch") {
		t.Errorf("fstab has lost a line:\n%s", fstab)
	}
}

// identifiers are the names by which an fstab can mean the disk's file systems, a
// line each.
func identifiers(t *testing.T, disk string) string {
	t.Helper()
	all := ""
	for _, p := range readTable(t, disk).PartitionTable.Partitions {
		all += tool(t, "bash", "-c", `blkid -p -o export -s UUID -s LABEL -O "$2" "$1" | grep -v DEVNAME || true`, "-", disk, fmt.Sprint(p.Start*512))
	}
	return all
}

// bootTree boots the disk and asks the guest who it is.
func bootTree(t *testing.T, l *lab.Lab, b treeBoot, disk, private, log string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), treePatience)
	defer cancel()
	options := lab.BootOptions{UEFI: b.uefi, MAC: treeMAC, Memory: 768}
	if b.outside {
		options.Arguments = outsideKernel(ctx, t, l, b)
	}
	start := time.Now()
	guest, err := l.Boot(ctx, disk, options)
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	if _, err := guest.Wait(ctx, `web(\.example\.org)? login: `); err != nil {
		t.Fatalf("%v\nlog:\n%s", err, log)
	}
	t.Logf("login prompt after %.0f s", time.Since(start).Seconds())
	ssh := guest.SSH("root", private)
	if err := ssh.Wait(ctx); err != nil {
		t.Fatalf("%v\nlog:\n%s\nconsole:\n%s", err, log, guest.Text())
	}
	askTree(ctx, t, b, ssh)
	if t.Failed() {
		t.Logf("log:\n%s\nconsole:\n%s", log, guest.Text())
	}
}

// outsideKernel is what QEMU is told where the node has the kernel.
func outsideKernel(ctx context.Context, t *testing.T, l *lab.Lab, b treeBoot) []string {
	t.Helper()
	tree, err := l.DebianTree(ctx)
	if err != nil {
		t.Fatal(err)
	}
	kernel, initrd, err := lab.Kernel(ctx, tree, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return []string{"-kernel", kernel, "-initrd", initrd, "-append", fmt.Sprintf("root=/dev/vda%d ro console=ttyS0,38400", b.root())}
}

// askTree asks a guest that runs.
func askTree(ctx context.Context, t *testing.T, b treeBoot, ssh lab.SSH) {
	t.Helper()
	questions := []struct{ what, command, want string }{
		{"name", "hostname --fqdn", "web.example.org"},
		{"address", "ip -4 -o addr show scope global | grep -o 'inet [^ ]*'", "inet " + treeAddress + "/24"},
		{"route", "ip -4 route show default | cut -d' ' -f3", "10.0.2.2"},
		{"root", "findmnt -n -o FSTYPE /", b.fs},
		{"other file systems", "findmnt -n -o FSTYPE /srv/scratch", "tmpfs"},
		{"swap", "swapon --show=TYPE,SIZE --bytes --noheadings | tr -s ' '", map[bool]string{true: "partition " + fmt.Sprint(200<<20-4096), false: ""}[b.swap]},
		{"failed units", "systemctl --failed --no-legend --plain || true", ""},
		{"capability", "getcap /srv/odd/capable | grep -o cap_.*", "cap_net_bind_service=ep"},
	}
	if !b.outside {
		questions = append(questions, struct{ what, command, want string }{"boot", "findmnt -n -o FSTYPE /boot", "ext4"},
			struct{ what, command, want string }{"arguments", "grep -o lab.mark /proc/cmdline", "lab.mark"})
	}
	for _, q := range questions {
		got, err := ssh.Run(ctx, q.command)
		if got = strings.TrimSpace(got); err != nil || got != q.want {
			t.Errorf("%s: the guest says %q, %v, want %q", q.what, got, err, q.want)
		}
	}
	size, err := ssh.Run(ctx, "df -B1 --output=size / | tail -1")
	if n, e := strconv.ParseInt(strings.TrimSpace(size), 10, 64); e != nil || err != nil || n < 3<<30-300<<20 {
		t.Errorf("the root file system has %q bytes, %v", size, err)
	}
}
