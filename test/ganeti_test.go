package test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/test/lab"
)

// guestCase is an instance on the real cluster.
type guestCase struct {
	layout      lab.Layout
	compression string
	uefi        bool
	network     string // how it learns its address: "file" or "ganeti"
	reinstall   bool
	later       bool // added without an OS, which ganeti-image puts on it; with a seed's disk and one for data
	rename      bool // gets another name, MAC and address at the end
	backup      bool // is exported and imported after that; its disks are block devices
}

// guestCases cover every value of every axis once.
var guestCases = []guestCase{
	{lab.MBR, "", false, "file", false, true, false, true},
	{lab.Installer, "zlib", false, "ganeti", false, false, true, false},
	{lab.LVM, "zstd", false, "file", false, false, false, false},
	{lab.Debian, "zlib", true, "ganeti", true, false, false, false},
	{lab.Ubuntu, "zstd", false, "ganeti", false, false, false, false},
	{lab.Alma, "zlib", true, "file", false, false, false, false},
	{lab.Fedora, "zstd", false, "file", false, false, false, false},
}

// allGuestCases are the combinations, for TEST_MATRIX=all.
func allGuestCases() []guestCase {
	var cases []guestCase
	for i, c := range guestCases {
		for _, uefi := range []bool{false, true} {
			if uefi && !c.layout.UEFI() {
				continue
			}
			cases = append(cases, guestCase{c.layout, c.compression, uefi, []string{"file", "ganeti"}[i%2], uefi, c.later, c.rename, c.backup})
		}
	}
	return cases
}

const (
	user     = "admin"
	diskSize = 5 << 30
	// guestPatience is for a guest under emulation on a busy machine.
	guestPatience = 15 * time.Minute
)

// cluster is a real one-node Ganeti on which the package is installed.
type cluster struct {
	*lab.Ganeti
	lab             *lab.Lab
	private, public string // ssh key of the user
}

func TestGaneti(t *testing.T) {
	need.Machine(t)
	need.Tools(t, "gnt-cluster", "ip", "ssh", "qemu-system-x86_64", "dpkg")
	installPackage(t)
	c := startCluster(t)
	t.Run("definition", c.definition)
	t.Run("refusals", c.refusals)
	t.Run("raw backup", c.rawBackup)
	cases := guestCases
	if os.Getenv("TEST_MATRIX") == "all" {
		cases = allGuestCases()
	}
	for i, g := range cases {
		name := fmt.Sprintf("%s %s uefi=%v %s", g.layout, g.compression, g.uefi, g.network)
		t.Run(name, func(t *testing.T) { c.guest(t, g, i%9+1) })
	}
	for i, g := range treeGuests {
		t.Run("tree "+g.name(), func(t *testing.T) { c.tree(t, g, i+1) })
	}
}

// treeGuest is an instance on the real cluster that is made from an archive.
type treeGuest struct {
	treeBoot
	address string // how it learns it: "file" or "ganeti"
}

var treeGuests = []treeGuest{
	{treeBoot{"tar.zst", nil, "both", "netplan", "auto", false, "ext4", true, false}, "file"},
	{treeBoot{"dump", []string{"-z"}, "both", "ifupdown", "gpt", true, "xfs", false, false}, "ganeti"},
}

// installPackage installs the .deb on this machine for the time of the test.
func installPackage(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/usr/share/ganeti/os/image"); err == nil {
		t.Fatal("this machine has an OS definition \"image\" already")
	}
	arch := strings.TrimSpace(tool(t, "dpkg", "--print-architecture"))
	packages, _ := filepath.Glob("../dist/*_" + arch + ".deb")
	if len(packages) == 0 {
		tool(t, "make", "-C", "..", "packages")
		packages, _ = filepath.Glob("../dist/*_" + arch + ".deb")
	}
	if len(packages) != 1 {
		t.Fatalf("want one package for %s in dist, got %v", arch, packages)
	}
	t.Cleanup(func() { tool(t, "dpkg", "--purge", "ganeti-instance-image") })
	tool(t, "dpkg", "--install", packages[0])
	tool(t, "ganeti-image", "hooks", "enable", "cloud-init", "ssh")
	writeConf(t, "networks/subnets/lab", "NETMASK=255.255.255.0\nGATEWAY="+lab.Gateway+"\nDNS_SERVERS="+lab.Gateway+"\nDNS_SEARCH=gnt.test\n")
}

// writeConf writes a file of the installed package's configuration.
func writeConf(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("/etc/ganeti/instance-image", name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	l, err := lab.Open()
	if err != nil {
		t.Fatal(err)
	}
	// Before the cluster, so that a variant's image is there when it is asked for.
	list := "default\ntree\n"
	for _, layout := range []lab.Layout{lab.MBR, lab.Installer, lab.LVM, lab.Debian, lab.Ubuntu, lab.Alma, lab.Fedora} {
		list += string(layout) + "\n"
	}
	if err := os.WriteFile("/etc/ganeti/instance-image/variants.list", []byte(list), 0o644); err != nil {
		t.Fatal(err)
	}
	c := &cluster{lab: l}
	if c.private, c.public, err = lab.NewKey(t.Context(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if c.Ganeti, err = l.StartGaneti(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	c.must(t, "gnt-network", "add", "--network=192.0.2.0/24", "--gateway="+lab.Gateway, "n1")
	c.must(t, "gnt-network", "connect", "--nic-parameters=mode=bridged,link="+lab.Bridge, "n1")
	return c
}

func (c *cluster) must(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := c.Run(t.Context(), argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// definition wants Ganeti to find nothing wrong with the OS definition.
func (c *cluster) definition(t *testing.T) {
	out := c.must(t, "gnt-os", "diagnose")
	if !strings.Contains(out, "OS: image [global status: valid]") || !strings.Contains(out, "API versions: 20, 15, 10") {
		t.Errorf("gnt-os diagnose:\n%s", out)
	}
	out = c.must(t, "gnt-os", "info", "image")
	for _, want := range []string{"valid: True", "os-image", "image_name", "fedora"} {
		if !strings.Contains(out, want) {
			t.Errorf("gnt-os info does not say %q:\n%s", want, out)
		}
	}
	// The box itself is not a proper node; the OS definition is.
	out, _ = c.Run(t.Context(), "gnt-cluster", "verify", "--error-codes")
	if regexp.MustCompile(`ERROR.*(ENODEOS|Invalid OS|OS image)`).MatchString(out) {
		t.Errorf("gnt-cluster verify:\n%s", out)
	}
}

// refusals are what whoever types gnt-instance add gets to see.
func (c *cluster) refusals(t *testing.T) {
	image, err := c.lab.CachedImage(t.Context(), lab.Spec{Layout: lab.Debian, Compression: "zlib"})
	if err != nil {
		t.Fatal(err)
	}
	writeConf(t, "variants/debian.conf", "IMAGE_FILE="+image+"\n")
	for _, r := range []struct {
		arguments []string
		want      string
	}{
		{[]string{"--disk", "0:size=1G", "-o", "image+debian"}, "the disk has 1 GiB"},
		{[]string{"--disk", "0:size=4G", "-o", "image+debian", "-O", "image_url=http://example.org/"}, "ALLOW_URLS"},
		{[]string{"--disk", "0:size=4G", "-o", "image+debian", "-O", "image_name=../x"}, "image_name"},
		{[]string{"--disk", "0:size=4G", "-o", "image+ubuntu"}, "variants/ubuntu.conf"},
	} {
		argv := append([]string{"gnt-instance", "add", "-t", "file", "-n", lab.Node, "-B", "memory=512M",
			"--no-name-check", "--no-ip-check", "--no-start", "--net", "0:link=" + lab.Bridge}, append(r.arguments, "vm9.gnt.test")...)
		_, err := c.Run(t.Context(), argv...)
		if err == nil || !strings.Contains(err.Error(), r.want) {
			t.Errorf("gnt-instance add %v: the answer does not say %q: %v", r.arguments, r.want, err)
		}
		_, _ = c.Run(t.Context(), "gnt-instance", "remove", "--force", "--ignore-failures", "vm9.gnt.test")
	}
}

// addressed says where an instance has its address from, a file or Ganeti, and
// returns what Ganeti is to be told of its NIC.
func addressed(t *testing.T, name, mac, address, by string) string {
	t.Helper()
	if by == "ganeti" {
		return "0:mac=" + mac + ",network=n1,ip=" + address
	}
	writeConf(t, "networks/instances/"+name, "ADDRESS="+address+"\nSUBNET=lab\n")
	return "0:mac=" + mac + ",link=" + lab.Bridge
}

func firmware(uefi bool) string {
	if uefi {
		return "kvm_extra=-bios /usr/share/ovmf/OVMF.fd"
	}
	return "kvm_extra="
}

// treeHooks gives the variant tree hooks of its own.
const treeHooks = `cp -a /etc/ganeti/instance-image/hooks "$1"; chmod 644 "$1"/*; ganeti-image hooks --variant tree enable grub interfaces ssh`

// tree adds an instance that is made from an archive, and has it asked who it is.
func (c *cluster) tree(t *testing.T, g treeGuest, n int) {
	ctx, cancel := context.WithTimeout(t.Context(), guestPatience)
	defer cancel()
	name, address, mac := fmt.Sprintf("tree%d.gnt.test", n), fmt.Sprintf("192.0.2.%d", 40+n), fmt.Sprintf("aa:00:00:12:35:%02x", n)
	image, err := c.lab.TreeImage(ctx, g.spec(c.public))
	if err != nil {
		t.Fatal(err)
	}
	hooks := filepath.Join(t.TempDir(), "hooks")
	writeConf(t, "variants/tree.conf", g.settings(image)+"CUSTOMIZE_DIR="+hooks+"\n")
	c.must(t, "bash", "-euc", treeHooks, "-", hooks)
	nic := addressed(t, name, mac, address, g.address)
	c.must(t, "gnt-instance", "add", "-t", "file", "-o", "image+tree", "-n", lab.Node, "--disk", "0:size=4G",
		"-B", "memory=512M,vcpus=2", "-H", "kvm:"+firmware(g.uefi), "--no-name-check", "--no-ip-check", "--no-start", "--net", nic, name)
	defer func() { c.must(t, "gnt-instance", "remove", "--force", "--shutdown-timeout=0", name) }()
	log := c.scriptLog(t, name)
	c.askTree(ctx, t, g, name, address, log)
	if n == 1 { // the hook interfaces writes its network anew
		name, address = c.rename(ctx, t, c.SSH("root", address, c.private), name, 20+n, g.address)
		c.askTree(ctx, t, g, name, address, log)
	}
}

// askTree boots an instance that was made from an archive, and asks it who it is.
func (c *cluster) askTree(ctx context.Context, t *testing.T, g treeGuest, name, address, log string) {
	t.Helper()
	console, err := c.Boot(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	guest := c.SSH("root", address, c.private)
	if err := guest.Wait(ctx); err != nil {
		t.Fatalf("%v\nscript:\n%s\nconsole:\n%s", err, log, console.Text())
	}
	key := fingerprint.FindStringSubmatch(log)
	if key == nil {
		t.Fatalf("the log names no host key:\n%s", log)
	}
	for _, q := range []struct{ question, command, want string }{
		{"name", "hostname --fqdn", name},
		{"host key", "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub | cut -d' ' -f2", key[1]},
		{"root", "findmnt -n -o FSTYPE /", g.fs},
		{"swap", "swapon --show=NAME --noheadings | wc -l", map[bool]string{true: "1", false: "0"}[g.swap]},
		{"arguments", "grep -ow lab.mark /proc/cmdline | wc -l", "1"},
		{"failed units", "systemctl --failed --no-legend --plain | grep -v 'networkd-wait-online' || true", ""},
	} {
		got, err := guest.Run(ctx, q.command)
		if got = strings.TrimSpace(got); err != nil || got != q.want {
			t.Errorf("%s: the guest says %q, %v, want %q", q.question, got, err, q.want)
		}
	}
}

// guest adds an instance, boots it, and asks it who it is.
func (c *cluster) guest(t *testing.T, g guestCase, n int) {
	ctx, cancel := context.WithTimeout(t.Context(), guestPatience)
	defer cancel()
	name, address, mac := fmt.Sprintf("vm%d.gnt.test", n), fmt.Sprintf("192.0.2.%d", 20+n), fmt.Sprintf("aa:00:00:12:34:%02x", n)
	image, err := c.lab.CachedImage(ctx, lab.Spec{Layout: g.layout, Compression: g.compression})
	if err != nil {
		t.Fatal(err)
	}
	variant := "IMAGE_FILE=" + image + "\nSITE_NOTE='made for the test'\n"
	disks := []string{"-t", "file", "--disk", "0:size=5G"}
	if g.later {
		variant = "SEED_DISK=the-seed\nDISK_2=data:ext4:/srv/data\n"
		disks = append(disks, "--disk", "1:size=1G,name=the-seed", "--disk", "2:size=1G", "--no-install")
	}
	if g.backup {
		disks = onBlocks(disks)
	}
	writeConf(t, "variants/"+string(g.layout)+".conf", variant)
	nic := addressed(t, name, mac, address, g.network)
	c.must(t, slices.Concat([]string{"gnt-instance", "add", "-o", "image+" + string(g.layout), "-n", lab.Node,
		"-B", "memory=512M,vcpus=2", "-H", "kvm:" + firmware(g.uefi), "--no-name-check", "--no-ip-check", "--no-start", "--net", nic,
		"-O", "cinit_user=" + user + ",cinit_ssh_key=" + c.public}, disks, []string{name})...)
	defer func() { c.must(t, "gnt-instance", "remove", "--force", "--shutdown-timeout=0", name) }()
	log := ""
	if g.later {
		log = c.later(ctx, t, name, address, image)
	} else {
		log = c.scriptLog(t, name)
	}
	first := c.check(ctx, t, name, address, log)
	if g.later {
		c.askLater(ctx, t, name, address, image)
	}
	if g.rename {
		guest := c.SSH(user, address, c.private)
		name, address = c.rename(ctx, t, guest, name, n, g.network)
		c.check(ctx, t, name, address, log)
	}
	if g.backup {
		name = c.backup(t, g, name, address, n)
	}
	if !g.reinstall {
		return
	}
	c.must(t, "gnt-instance", "shutdown", "--timeout=0", name)
	c.must(t, "gnt-instance", "reinstall", "--force", name)
	if again := c.check(ctx, t, name, address, c.scriptLog(t, name)); again == first {
		t.Error("a reinstalled guest has the host key of the one before")
	}
}

// rename stops an instance and gives it another name, MAC and address. Its guest
// is asked to store what it has written, since it is stopped hard.
func (c *cluster) rename(ctx context.Context, t *testing.T, guest lab.SSH, name string, n int, by string) (newName, newAddress string) {
	t.Helper()
	if _, err := guest.Run(ctx, "sync"); err != nil {
		t.Fatal(err)
	}
	newName, newAddress = "renamed-"+name, fmt.Sprintf("192.0.2.%d", 60+n)
	nic := "0:modify,mac=aa:00:00:77:77:" + fmt.Sprintf("%02x", n)
	if by == "ganeti" {
		nic += ",ip=" + newAddress
	} else {
		writeConf(t, "networks/instances/"+newName, "ADDRESS="+newAddress+"\nSUBNET=lab\n")
	}
	c.must(t, "gnt-instance", "shutdown", "--timeout=0", name)
	c.must(t, "gnt-instance", "modify", "--net", nic, name)
	said := c.must(t, "bash", "-c", `gnt-instance rename --force --no-name-check --no-ip-check "$1" "$2" 2>&1`, "-", name, newName)
	if strings.Contains(strings.ToLower(said), "warning") {
		t.Errorf("the rename script failed:\n%s", said)
	}
	return newName, newAddress
}

func (c *cluster) scriptLog(t *testing.T, name string) string {
	t.Helper()
	log, err := c.ScriptLog(name)
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// later puts image and seed on the disks of an instance that has been there for
// a while, and is refused while it runs.
func (c *cluster) later(ctx context.Context, t *testing.T, name, address, image string) (log string) {
	t.Helper()
	for _, r := range []struct {
		arguments []string
		want      string
	}{
		{[]string{"deploy", image, name + ":7"}, "the line above says why"},
		{[]string{"deploy", image, "nosuch.gnt.test"}, "cannot find the instance"},
		{[]string{"deploy", "./x", name}, "full path"},
		{[]string{"seed", name + ":0"}, "the line above says why"},
		{[]string{"seed", name + ":x"}, "INSTANCE:DISK"},
	} {
		if _, err := c.Run(ctx, append([]string{"ganeti-image"}, r.arguments...)...); err == nil || !strings.Contains(err.Error(), r.want) {
			t.Errorf("ganeti-image %v: the answer does not say %q: %v", r.arguments, r.want, err)
		}
	}
	log = c.must(t, "bash", "-c", `ganeti-image deploy "$1" "$2" 2>&1`, "-", image, name)
	file := filepath.Join(t.TempDir(), "seed.iso")
	c.must(t, "ganeti-image", "seed", "--out", file, name)
	disk, err := c.Disk(name, 1)
	if err != nil {
		t.Fatal(err)
	}
	// Without a look into the guest it is not known whether it has this shell.
	written := strings.ReplaceAll(seedOf(t, disk), "    shell: \"/bin/bash\"\n", "")
	if got := seedOf(t, file); got != written || !strings.Contains(got, address) || !strings.Contains(got, user) {
		t.Errorf("the seed in a file is\n%s, that on the disk\n%s", got, written)
	}
	shell(t, `cat /dev/zero | head -c 1048576 | dd of="$1" conv=notrunc status=none`, disk)
	c.must(t, "ganeti-image", "seed", name)
	if got := seedOf(t, disk); got != written {
		t.Errorf("the seed written again is\n%s", got)
	}
	return log
}

// askLater asks the guest of later where its seed and its data are.
func (c *cluster) askLater(ctx context.Context, t *testing.T, name, address, image string) {
	t.Helper()
	guest := c.SSH(user, address, c.private)
	for _, q := range []struct{ command, want string }{
		{"cloud-init query subplatform", "/dev/vdb"},
		{"ls /var/lib/cloud/seed 2>/dev/null; true", ""},
		{"findmnt -n -o SOURCE /srv/data", "/dev/vdc"},
	} {
		got, err := guest.Run(ctx, q.command)
		if err != nil || q.want == "" && strings.TrimSpace(got) != "" || !strings.Contains(got, q.want) {
			t.Errorf("%s: the guest says %q, %v, want %q", q.command, got, err, q.want)
		}
	}
	if _, err := c.Run(ctx, "ganeti-image", "deploy", image, name); err == nil || !strings.Contains(err.Error(), "gnt-instance shutdown") {
		t.Errorf("a running instance's disk is to be written: %v", err)
	}
}

var fingerprint = regexp.MustCompile(`ssh_host_ed25519_key (SHA256:\S+)`)

// check boots the instance, of whose deployment it gets the log, and wants it to
// be the one it should be; it returns
// the fingerprint of its host key.
func (c *cluster) check(ctx context.Context, t *testing.T, name, address, log string) string {
	t.Helper()
	start := time.Now()
	console, err := c.Boot(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	guest := c.SSH(user, address, c.private)
	if err := guest.Wait(ctx); err != nil {
		t.Fatalf("%v\nscript:\n%s\nconsole:\n%s", err, log, console.Text())
	}
	t.Logf("ssh answered %s after the start", time.Since(start).Round(time.Second))
	key := fingerprint.FindStringSubmatch(log)
	if key == nil {
		t.Fatalf("the log names no host key:\n%s", log)
	}
	uuid := strings.TrimSpace(c.must(t, "gnt-instance", "list", "--no-headers", "-o", "uuid", name))
	for _, q := range []struct{ question, command, want string }{
		{"name", "hostname --fqdn", name},
		{"instance id", "sudo cat /var/lib/cloud/data/instance-id", uuid},
		{"host key", "sudo ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub | cut -d' ' -f2", key[1]},
		{"datasource", "cloud-init query platform || cloud-init query subplatform", ""},
		{"failed units", "systemctl --failed --no-legend --plain | grep -v 'networkd-wait-online' || true", ""},
	} {
		got, err := guest.Run(ctx, q.command)
		if got = strings.TrimSpace(got); err != nil || q.want != "" && got != q.want || q.question == "failed units" && got != "" {
			t.Errorf("%s: the guest says %q, %v, want %q", q.question, got, err, q.want)
		}
	}
	size, err := guest.Run(ctx, "df -B1 --output=size / | tail -1")
	if n, e := strconv.ParseInt(strings.TrimSpace(size), 10, 64); e != nil || err != nil || n < diskSize*6/10 {
		t.Errorf("the root file system has %q bytes of a disk of %d, %v", size, int64(diskSize), err)
	}
	return key[1]
}
