package test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/test/lab"
)

// onBlocks has an instance's disks be block devices of which Ganeti takes snapshots.
func onBlocks(arguments []string) []string {
	changed := slices.Clone(arguments)
	for i, a := range changed {
		if a == "file" {
			changed[i] = "ext"
		} else if strings.Contains(a, ":size=") {
			changed[i] += ",provider=" + lab.Provider
		}
	}
	return changed
}

// kindsDirs are where the guest gets files of every kind: on the system's disk,
// and on the one for data.
var kindsDirs = []string{"/srv/kinds", "/srv/data/kinds"}

// makeKinds makes a file of every kind in each of the directories that follow.
// The guest has no setfacl: an ACL is an attribute, little endian, of version 2.
const makeKinds = `
import os, socket, struct, sys
def make(top):
    os.makedirs(top); os.chdir(top)
    open("plain", "wb").write(os.urandom(3000001))
    with open("sparse", "wb") as f:
        f.write(b"begin"); f.seek(5 << 30); f.write(os.urandom(100000)); f.truncate(6 << 30)
    os.link("plain", "hard link"); os.symlink("plain", "link"); os.symlink("/x" * 100, "long link")
    os.mkfifo("fifo", 0o640); os.mknod("null", 0o20666, os.makedev(1, 3)); os.mknod("disk", 0o60600, os.makedev(253, 5))
    socket.socket(socket.AF_UNIX).bind("socket")
    os.mkdir("many"); [open("many/%04d" % n, "w").close() for n in range(1500)]
    open("own\u00e9r", "w").write("x"); os.chown("own\u00e9r", 4000000000, 70000); os.chmod("own\u00e9r", 0o6711)
    os.setxattr("own\u00e9r", "user.note", b"\0\1binary"); os.setxattr("own\u00e9r", "trusted.large", os.urandom(2000))
    open("able", "w").write("#!/bin/true\n")
    if os.system("setcap cap_net_raw,cap_net_admin=ep able"): sys.exit("setcap")
    acl = [(1, 6, 0xffffffff), (2, 5, 33), (4, 4, 0xffffffff), (16, 7, 0xffffffff), (32, 0, 0xffffffff)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in acl)
    os.setxattr("plain", "system.posix_acl_access", acl); os.setxattr("many", "system.posix_acl_default", acl)
    os.utime("plain", ns=(1, 1234567890123456789)); os.utime("fifo", ns=(4102444800000000000, 4102444800000000000))
    open("deleted", "wb").write(os.urandom(5000000)); os.sync(); os.unlink("deleted")
[make(top) for top in sys.argv[1:]]
os.sync()
`

// listKinds prints a line of all that is to be known of each file.
const listKinds = `
import hashlib, os, stat, sys
def content(p, s):
    if stat.S_ISLNK(s.st_mode): return os.readlink(p)
    if not stat.S_ISREG(s.st_mode): return ""
    with open(p, "rb") as f:
        parts, at = [], 0
        while True:
            try: at = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError: return parts
            end = os.lseek(f.fileno(), at, os.SEEK_HOLE)
            parts.append((at, end - at, hashlib.sha256(os.pread(f.fileno(), end - at, at)).hexdigest())); at = end
def say(p):
    s = os.lstat(p)
    x = sorted((k, os.getxattr(p, k, follow_symlinks=False).hex()) for k in os.listxattr(p, follow_symlinks=False))
    print(p, oct(s.st_mode), s.st_uid, s.st_gid, s.st_size, s.st_blocks, s.st_nlink, s.st_ino, s.st_rdev, s.st_mtime_ns, x, content(p, s))
for top in sys.argv[1:]:
    say(top)
    for d, ds, fs in os.walk(top):
        ds.sort()
        [say(os.path.join(d, n)) for n in sorted(ds + fs)]
`

// python is a command line of the guest's that runs a program on directories.
func python(program string, dirs ...string) string {
	return "sudo env PYTHONIOENCODING=utf-8 python3 - " + strings.Join(dirs, " ") + " <<'END'\n" + program + "END"
}

// traveller is a guest that goes from instance to instance as a backup.
type traveller struct {
	*cluster
	g     guestCase
	n     int
	asked map[string]string // what it answered before it was exported
}

// lasting are the questions whose answer a backup does not change.
var lasting = map[string]string{
	"files":       python(listKinds, kindsDirs...),
	"host key":    "cat /etc/ssh/ssh_host_ed25519_key.pub",
	"machine-id":  "cat /etc/machine-id",
	"instance id": "sudo cat /var/lib/cloud/data/instance-id",
	"data":        "findmnt -n -o SOURCE,FSTYPE /srv/data",
	"seed":        "cloud-init query subplatform",
	"failed":      "systemctl --failed --no-legend --plain | grep -v 'networkd-wait-online' || true",
}

// backup exports an instance, while it runs and when it was shut down, and
// imports it: as it was, damaged, of files, and as a larger one of another name,
// which it returns. Stopped, it is looked into and made an image of.
func (c *cluster) backup(t *testing.T, g guestCase, name, address string, n int) (newName string) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*guestPatience)
	defer cancel()
	v := &traveller{c, g, n, map[string]string{}}
	guest := c.SSH(user, address, c.private)
	if _, err := guest.Run(ctx, python(makeKinds, kindsDirs...)); err != nil {
		t.Fatal(err)
	}
	for what, question := range lasting {
		v.asked[what] = v.ask(ctx, t, guest, question)
	}
	if lines := strings.Count(v.asked["files"], "\n"); lines < 3000 {
		t.Fatalf("the guest lists %d files:\n%s", lines, v.asked["files"])
	}
	live := v.exportLive(ctx, t, guest, name)
	v.step(ctx, t, "gnt-instance", "shutdown", "--timeout=120", name)
	whole := v.export(ctx, t, name, "whole")
	v.openBackup(ctx, t, whole, name)
	dumped := v.exportDump(ctx, t, name)
	image := v.capture(ctx, t, name)
	v.mountDisks(ctx, t, name)
	v.step(ctx, t, "gnt-instance", "remove", "--force", name)

	v.importAs(ctx, t, whole, name, "-t", "file")
	v.meet(ctx, t, name, address, exactly)
	v.step(ctx, t, "gnt-instance", "remove", "--force", "--shutdown-timeout=0", name)

	v.importLive(ctx, t, live)
	v.importDamaged(ctx, t, whole)
	v.importDump(ctx, t, dumped)
	v.deployCaptured(ctx, t, image)
	return v.importLarger(ctx, t, whole, name)
}

// step runs a command on the node in bounded time.
func (c *cluster) step(ctx context.Context, t *testing.T, argv ...string) string {
	t.Helper()
	out, err := c.try(ctx, t, argv...)
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return out
}

// try runs a command on the node, and returns all that it prints.
func (c *cluster) try(ctx context.Context, t *testing.T, argv ...string) (string, error) {
	t.Helper()
	start := time.Now()
	out, err := c.Run(ctx, append([]string{"bash", "-c", `exec "$@" 2>&1`, "-"}, argv...)...)
	t.Logf("%s took %s", strings.Join(argv[:2], " "), time.Since(start).Round(100*time.Millisecond))
	return out, err
}

// mishap is what Ganeti 3.0 ends a transfer with where it asks dd how far it is in
// the moment in which that ends: both answers have the same time, by which it divides.
const mishap = "float division by zero"

func (v *traveller) ask(ctx context.Context, t *testing.T, guest lab.SSH, question string) string {
	t.Helper()
	answer, err := guest.Run(ctx, question)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// export exports an instance, and puts the export aside, since the next one would
// replace it. It returns the directory.
func (c *cluster) export(ctx context.Context, t *testing.T, name, aside string, arguments ...string) string {
	t.Helper()
	argv := slices.Concat([]string{"gnt-backup", "export", "-n", lab.Node}, arguments, []string{name})
	said, err := c.try(ctx, t, argv...)
	if err != nil && strings.Contains(said, mishap) {
		said, err = c.try(ctx, t, argv...)
	}
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, said)
	}
	dir := filepath.Join(lab.Exports, aside)
	if err := os.Rename(filepath.Join(lab.Exports, name), dir); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	return dir
}

// exportLive exports the guest while it writes, and puts the backup aside.
func (v *traveller) exportLive(ctx context.Context, t *testing.T, guest lab.SSH, name string) string {
	t.Helper()
	busy := `nohup bash -c 'cd /srv; for i in {1..100000}; do head -c 100000 /dev/urandom > busy.$((i % 50)); mv busy.$((i % 50)) was.$((i % 7)); done' > /dev/null 2>&1 & echo $!`
	pid := strings.TrimSpace(v.ask(ctx, t, guest, "sudo chmod 777 /srv; "+busy))
	dir := v.export(ctx, t, name, "live", "--noshutdown")
	v.ask(ctx, t, guest, "kill "+pid)
	return dir
}

// with has a setting in the variant while f runs.
func (v *traveller) with(t *testing.T, setting string, f func()) {
	t.Helper()
	conf := filepath.Join("/etc/ganeti/instance-image/variants", string(v.g.layout)+".conf")
	text, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	writeConf(t, "variants/"+filepath.Base(conf), string(text)+"\n"+setting+"\n")
	f()
	writeConf(t, "variants/"+filepath.Base(conf), string(text))
}

// exportDump exports an instance as the Bash version did: the first disk's files.
func (v *traveller) exportDump(ctx context.Context, t *testing.T, name string) (dir string) {
	t.Helper()
	v.with(t, "EXPORT_FORMAT=dump", func() { dir = v.export(ctx, t, name, "dumped") })
	if got := tool(t, "tar", "-tf", snap(t, dir, 0)); got != "./root.dump\n" {
		t.Errorf("the backup as dumps holds %q", got)
	}
	return dir
}

// snap returns the file that is the backup of an instance's nth disk.
func snap(t *testing.T, dir string, n int) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "config.ini"))
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(fmt.Sprintf(`(?m)^disk%d_dump = (\S+)$`, n)).FindStringSubmatch(string(text))
	if name == nil {
		t.Fatalf("the export has no disk %d:\n%s", n, text)
	}
	return filepath.Join(dir, name[1])
}

// openBackup wants each disk's backup to be what the documentation says, opens
// it as that says, and has the file systems in it judged.
func (v *traveller) openBackup(ctx context.Context, t *testing.T, dir, name string) {
	t.Helper()
	need.Tools(t, "zstd", "tar", "sha256sum", "e2fsck")
	for n := range 3 {
		file := snap(t, dir, n)
		work := t.TempDir()
		shell(t, `cd "$2"; zstd -dc "$1" | head -c -2048 | sha256sum -c <(tar -xOf "$1" SHA256SUM)
			tar -xSf "$1" && cat disk/* | cp --sparse=always /dev/stdin disk.raw; rm -r disk`, file, work)
		var manifest struct {
			Instance string
			Disk     int
			DiskSize int64 `json:"disk_size"`
		}
		text, err := os.ReadFile(filepath.Join(work, "ganeti-instance-image.json"))
		if err == nil {
			err = json.Unmarshal(text, &manifest)
		}
		disk := filepath.Join(work, "disk.raw")
		if err != nil || manifest.Instance != name || manifest.Disk != n || manifest.DiskSize != lengthOf(t, disk) {
			t.Errorf("the manifest of disk %d (%d bytes) is %s, %v", n, lengthOf(t, disk), text, err)
		}
		t.Logf("the backup of disk %d has %d bytes", n, lengthOf(t, file))
		original, err := v.Disk(name, n)
		if err != nil {
			t.Fatal(err)
		}
		switch n {
		case 0:
			t.Run("judge", func(t *testing.T) { tool(t, "e2fsck", "-fn", attachPartition(t, disk, 1)) })
		case 1:
			tool(t, "cmp", original, disk)
		case 2:
			tool(t, "e2fsck", "-fn", disk)
		}
		os.RemoveAll(work)
	}
}

// mountDisks looks into the instance, which is stopped, as an administrator does.
// All is one command line, since each has a mount namespace of its own in the lab.
func (v *traveller) mountDisks(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	const look = `tools=/usr/share/ganeti/os/image/tools; said=$($tools/mount-disks "$1"); echo "$said"
		dir=${said#*is mounted at }; dir=${dir% on *}; code=0
		(cd "$dir"; sha256sum root/srv/kinds/plain disk2/kinds/plain; stat -c '%n %s' disk2/kinds/sparse) || code=1
		$tools/umount-disks "$1"; ! findmnt -n "$dir/root"; exit $code`
	said, err := v.try(ctx, t, "bash", "-euc", look, "-", name)
	if err != nil {
		t.Errorf("mount-disks: %v\n%s", err, said)
	}
	sums := regexp.MustCompile(`(?m)^/srv/(?:data/)?kinds/plain .*'([0-9a-f]{64})'`).FindAllStringSubmatch(v.asked["files"], -1)
	if len(sums) != 2 {
		t.Fatalf("the guest lists %d files plain", len(sums))
	}
	for _, want := range []string{sums[0][1] + "  root/", sums[1][1] + "  disk2/", "disk2/kinds/sparse 6442450944", "is unmounted on " + lab.Node} {
		if !strings.Contains(said, want) {
			t.Errorf("mount-disks and umount-disks do not say %q:\n%s", want, said)
		}
	}
	v.wantDetached(t, name)
}

// wantDetached wants nothing to hold the disks of a stopped instance.
func (v *traveller) wantDetached(t *testing.T, name string) {
	t.Helper()
	for n := range 3 {
		file, err := v.Disk(name, n)
		if err != nil {
			t.Fatal(err)
		}
		if loop := tool(t, "losetup", "--noheadings", "--associated", file); loop != "" {
			t.Errorf("disk %d is attached yet: %s", n, loop)
		}
	}
}

// capture makes an image of the instance, which is stopped, and returns its path.
func (v *traveller) capture(ctx context.Context, t *testing.T, name string) string {
	t.Helper()
	dir := t.TempDir()
	said := v.step(ctx, t, "ganeti-image", "capture", "--dir", dir, "--name", "captured", name)
	v.wantDetached(t, name)
	found, err := filepath.Glob(filepath.Join(dir, "captured-*.qcow2"))
	if err != nil || len(found) != 1 {
		t.Fatalf("capture made %q, %v:\n%s", found, err, said)
	}
	shell(t, `cd "$1"; sha256sum -c *.qcow2.sha256; qemu-img check -q *.qcow2`, dir)
	return found[0]
}

// deployCaptured adds an instance of the image, and wants it to be another guest
// with the same files.
func (v *traveller) deployCaptured(ctx context.Context, t *testing.T, image string) {
	t.Helper()
	name := "captured" + strconv.Itoa(v.n) + ".gnt.test"
	nic, address := v.newNIC(t, name, 100)
	v.with(t, "IMAGE_FILE="+image, func() {
		v.step(ctx, t, slices.Concat([]string{"gnt-instance", "add", "-o", "image+" + string(v.g.layout), "-n", lab.Node,
			"-B", "memory=512M,vcpus=2", "-H", "kvm:" + firmware(v.g.uefi), "--no-name-check", "--no-ip-check", "--no-start", "--net", nic,
			"-O", "cinit_user=" + user + ",cinit_ssh_key=" + v.public}, sized(5), []string{name})...)
	})
	v.check(ctx, t, name, address, v.scriptLog(t, name))
	guest := v.SSH(user, address, v.private)
	for _, what := range []string{"host key", "machine-id", "instance id"} {
		if v.ask(ctx, t, guest, lasting[what]) == v.asked[what] {
			t.Errorf("%s: that of the captured guest: %s", what, v.asked[what])
		}
	}
	files := v.ask(ctx, t, guest, python(listKinds, kindsDirs[0]))
	if !strings.Contains(v.asked["files"], files) || strings.Count(files, "\n") < 1500 {
		t.Errorf("the captured files are others: %s", differing(v.asked["files"], files))
	}
	v.step(ctx, t, "gnt-instance", "remove", "--force", "--shutdown-timeout=0", name)
}

// importing imports a backup and returns what Ganeti says.
func (c *cluster) importing(ctx context.Context, t *testing.T, dir, name string, arguments ...string) string {
	t.Helper()
	argv := slices.Concat([]string{"gnt-backup", "import", "-n", lab.Node, "--src-node=" + lab.Node, "--src-dir=" + dir,
		"--no-name-check", "--no-ip-check"}, arguments, []string{name})
	said := c.step(ctx, t, argv...)
	if strings.Contains(said, mishap) {
		c.step(ctx, t, "gnt-instance", "remove", "--force", name)
		said = c.step(ctx, t, argv...)
	}
	return said
}

// importAs imports a backup and wants Ganeti to have nothing to complain about.
func (c *cluster) importAs(ctx context.Context, t *testing.T, dir, name string, arguments ...string) string {
	t.Helper()
	said := c.importing(ctx, t, dir, name, arguments...)
	if strings.Contains(strings.ToLower(said), "warning") || strings.Contains(said, "not imported") {
		t.Errorf("the import failed:\n%s\nscript:\n%s", said, c.scriptLog(t, name))
	}
	return said
}

// meet boots an instance that was imported and wants it to be the guest that was
// exported, under the name and address that it has now. What it answers is as it
// was, after a change that is made to both.
func (v *traveller) meet(ctx context.Context, t *testing.T, name, address string, as func(answer string) string) {
	t.Helper()
	start := time.Now()
	console, err := v.Boot(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	guest := v.SSH(user, address, v.private)
	key := strings.Fields(v.asked["host key"])
	guest.HostKey = key[0] + " " + key[1]
	if err := guest.Wait(ctx); err != nil {
		t.Fatalf("%v\nscript:\n%s\nconsole:\n%s", err, v.scriptLog(t, name), console.Text())
	}
	t.Logf("ssh answered %s after the start", time.Since(start).Round(time.Second))
	for what, question := range lasting {
		if before, after := as(v.asked[what]), as(v.ask(ctx, t, guest, question)); before != after {
			t.Errorf("%s: the guest says another thing: %s", what, differing(before, after))
		}
	}
	if got := strings.TrimSpace(v.ask(ctx, t, guest, "hostname --fqdn")); got != name {
		t.Errorf("the guest says its name is %q, want %q", got, name)
	}
}

// exactly is a disk's backup: files are where they were.
func exactly(answer string) string { return answer }

var (
	places = regexp.MustCompile(`(?m)^(/.* 0o\d+ \d+ \d+ \d+) \d+ (\d+) \d+ (\d+ \d+)\d{9} `) // blocks, inode, nanoseconds
	sizes  = regexp.MustCompile(`(?m)^(/.* 0o4\d{4} \d+ \d+) \d+ `)                           // of directories
)

// asFiles is a backup of files: it has not where they are on the disk, and of their
// times the seconds.
func asFiles(answer string) string {
	return sizes.ReplaceAllString(places.ReplaceAllString(answer, "$1 $2 $3 "), "$1 ")
}

// differing are the first lines that only one of two texts has.
func differing(before, after string) string {
	a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("before\n%s\nafter\n%s", a[i], b[i])
		}
	}
	return fmt.Sprintf("%d lines before, %d after", len(a), len(b))
}

// newNIC returns the NIC of an instance that a guest moves to: with a new MAC, and
// another address.
func (v *traveller) newNIC(t *testing.T, name string, from int) (nic, address string) {
	t.Helper()
	address = fmt.Sprintf("192.0.2.%d", from+v.n)
	return addressed(t, name, "generate", address, v.g.network), address
}

// sized are three disks, the first one of so many GiB.
func sized(gib int) []string {
	return []string{"-t", "file", "--disk", "0:size=" + strconv.Itoa(gib) + "G", "--disk", "1:size=1G,name=the-seed", "--disk", "2:size=1G"}
}

// importLive wants the backup of the running guest to be as of one moment: as
// after a loss of power, with all that was stored by then.
func (v *traveller) importLive(ctx context.Context, t *testing.T, dir string) {
	t.Helper()
	const name = "live.gnt.test"
	nic, _ := v.newNIC(t, name, 80)
	v.importAs(ctx, t, dir, name, append(sized(5), "--net", nic)...)
	for n, at := range map[int]string{0: "/", 2: "/srv/data"} {
		disk, err := v.Disk(name, n)
		if err != nil {
			t.Fatal(err)
		}
		t.Run("live "+at, func(t *testing.T) {
			if n == 0 {
				disk = attachSystem(t, disk)
			}
			if manifest := tool(t, "tar", "-xOf", snap(t, dir, n), "ganeti-instance-image.json"); !strings.Contains(manifest, "journal is to be replayed") {
				t.Errorf("the manifest does not say why all was kept:\n%s", manifest)
			}
			judgeLive(t, disk, at, kindsDirs[n/2], v.asked["files"])
		})
	}
	v.step(ctx, t, "gnt-instance", "remove", "--force", name)
}

// attachSystem attaches the first partition of an instance's disk.
func attachSystem(t *testing.T, disk string) string {
	t.Helper()
	link := filepath.Join(t.TempDir(), "disk.raw") // sfdisk names partitions otherwise where a disk ends with a digit
	if err := os.Symlink(disk, link); err != nil {
		t.Fatal(err)
	}
	return attachPartition(t, link, 1)
}

// judgeLive mounts a file system, which replays its journal, wants it to be
// whole, and to have the files that the guest listed in a directory when it had
// the file system mounted at another place.
func judgeLive(t *testing.T, device, at, kinds, listed string) {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "list.py")
	if err := os.WriteFile(program, []byte(listKinds), 0o644); err != nil {
		t.Fatal(err)
	}
	below, err := filepath.Rel(at, kinds)
	if err != nil {
		t.Fatal(err)
	}
	got := shell(t, `cd "$1"; mkdir root; mount "$2" root; trap 'umount root' EXIT; PYTHONIOENCODING=utf-8 python3 list.py "root/$3"`, dir, device, below)
	got = strings.ReplaceAll(got, "root/"+below, kinds)
	var want strings.Builder
	for line := range strings.Lines(listed) {
		if strings.HasPrefix(line, kinds) {
			want.WriteString(line)
		}
	}
	if got != want.String() {
		t.Error(differing(want.String(), got))
	}
	tool(t, "e2fsck", "-fn", device)
}

// importDamaged changes one byte of the first disk's backup, which is not to be
// imported, and changes it back.
func (v *traveller) importDamaged(ctx context.Context, t *testing.T, dir string) {
	t.Helper()
	const name = "damaged.gnt.test"
	file := snap(t, dir, 0)
	at := lengthOf(t, file) / 3
	flip(t, file, at)
	nic, _ := v.newNIC(t, name, 80)
	said := v.importing(ctx, t, dir, name, append(sized(5), "--net", nic)...)
	flip(t, file, at)
	if !strings.Contains(said, "not imported") || !strings.Contains(said, "the backup") {
		t.Errorf("a damaged backup was imported:\n%s", said)
	}
	disk, err := v.Disk(name, 0)
	if err != nil {
		t.Fatal(err)
	}
	shell(t, `for part in head tail; do $part -c 1M "$1" | cmp -n 1048576 - /dev/zero; done`, disk)
	v.step(ctx, t, "gnt-instance", "remove", "--force", name)
}

// flip changes a byte of a file to another one, or back.
func flip(t *testing.T, file string, at int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// importDump imports the files of the first disk, for which it is laid out anew,
// and boots the guest from that.
func (v *traveller) importDump(ctx context.Context, t *testing.T, dir string) {
	t.Helper()
	name := "dumped" + strconv.Itoa(v.n) + ".gnt.test"
	nic, address := v.newNIC(t, name, 90)
	v.importAs(ctx, t, dir, name, append(sized(5), "--net", nic)...)
	v.meet(ctx, t, name, address, asFiles)
	v.step(ctx, t, "gnt-instance", "remove", "--force", "--shutdown-timeout=0", name)
}

// importLarger imports a backup to a larger disk, under another name, with
// another MAC and address.
func (v *traveller) importLarger(ctx context.Context, t *testing.T, dir, exported string) (name string) {
	t.Helper()
	name = "moved" + strconv.Itoa(v.n) + ".gnt.test"
	nic, address := v.newNIC(t, name, 80)
	v.importAs(ctx, t, dir, name, append(sized(7), "--net", nic)...)
	v.meet(ctx, t, name, address, exactly)
	guest := v.SSH(user, address, v.private)
	root := strings.TrimSpace(v.ask(ctx, t, guest, "df -B1 --output=size / | tail -1"))
	if bytes, err := strconv.ParseInt(root, 10, 64); err != nil || bytes < 65<<30/10 {
		t.Errorf("the root file system has %q bytes of a disk of 7 GiB, %v", root, err)
	}
	// Of host keys it is a comment.
	if old := v.ask(ctx, t, guest, "sudo grep -rl --exclude-dir=ssh "+exported+" /etc; true"); old != "" {
		t.Errorf("these files have the name of before: %s", old)
	}
	return name
}

// rawBackup exports a disk as it is, and imports that to another instance's.
func (c *cluster) rawBackup(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	const name, other = "raw1.gnt.test", "raw2.gnt.test"
	writeConf(t, "variants/debian.conf", "EXPORT_FORMAT=raw\n")
	c.step(ctx, t, "gnt-instance", "add", "-t", "file", "-o", "image+debian", "-n", lab.Node, "--disk", "0:size=1G",
		"-B", "memory=512M", "--no-name-check", "--no-ip-check", "--no-start", "--no-install", "--net", "0:link="+lab.Bridge, name)
	defer func() { c.must(t, "gnt-instance", "remove", "--force", name) }()
	from, err := c.Disk(name, 0)
	if err != nil {
		t.Fatal(err)
	}
	shell(t, `for at in 0 300 1000; do head -c 3000000 /dev/urandom | dd of="$1" bs=1M seek=$at conv=notrunc status=none iflag=fullblock; done`, from)
	dir := c.export(ctx, t, name, "raw")
	tool(t, "cmp", from, snap(t, dir, 0))
	c.importAs(ctx, t, dir, other, "--net", "0:mac=generate,link="+lab.Bridge)
	defer func() { c.must(t, "gnt-instance", "remove", "--force", other) }()
	to, err := c.Disk(other, 0)
	if err != nil {
		t.Fatal(err)
	}
	tool(t, "cmp", from, to)
	var info unix.Stat_t
	if err := unix.Stat(to, &info); err != nil || info.Blocks*512 > 20<<20 {
		t.Errorf("a disk of 9 MB in use takes %d bytes, %v", info.Blocks*512, err)
	}
}
