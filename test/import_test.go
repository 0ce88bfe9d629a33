package test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ganeti-instance-image/internal/need"
)

// bashGuest makes a disk as the Bash version partitioned it: /boot, swap, the
// root. tree has the guest's files.
func bashGuest(t *testing.T, mib int64) (disk, tree string) {
	t.Helper()
	need.Root(t)
	need.File(t, "/usr/lib/grub/i386-pc/boot.img")
	need.File(t, "/usr/lib/grub/x86_64-efi/normal.mod")
	dir := t.TempDir()
	disk, tree = filepath.Join(dir, "disk"), filepath.Join(dir, "tree")
	shell(t, makeBootableTree, tree)
	shell(t, `image=$1 tree=$2; truncate -s "$3M" "$image"
		printf 'label: dos\n1: start=2048, size=204800, type=83, bootable\n2: size=65536, type=82\n3: type=83\n' | sfdisk -q "$image"
		`+fillFunctions+`printf 'UUID=11111111-1111-4111-8111-111111111111 / ext4 errors=remount-ro 0 1\nUUID=11111111-1111-4111-8111-222222222222 /boot ext4 defaults 0 2\n' > "$tree/etc/fstab"
		cp -a "$tree" "$image.root"; rm -r "$image.root/boot"/*
		fs ext4 1 "$tree/boot" -U 11111111-1111-4111-8111-222222222222; fs swap 2 "$tree"; fs ext4 3 "$image.root" -U 11111111-1111-4111-8111-111111111111; rm -r "$image.root"`, disk, tree, fmt.Sprint(mib))
	return disk, tree
}

// bashDump exports a disk as the Bash version did: two dumps in a directory, and
// a tar of that directory.
func bashDump(t *testing.T, disk string) string {
	t.Helper()
	need.Tools(t, "dump")
	dir := t.TempDir()
	out := filepath.Join(dir, "backup")
	shell(t, `TARGET=$(mktemp -d "$3/ganeti-XXXXXX")
		dump -0 -q -z9 -f "$TARGET/boot.dump" "$1" 2>/dev/null; dump -0 -q -z9 -f "$TARGET/root.dump" "$2" 2>/dev/null
		( cd "$TARGET" ; tar -cf - . ) > "$4"`, attachPartition(t, disk, 1), attachPartition(t, disk, 3), dir, out)
	return out
}

// bashImage exports a disk as the Bash version did with NOMOUNT=yes; finish may
// change the image.
func bashImage(t *testing.T, disk, options, finish string) string {
	t.Helper()
	need.Tools(t, "qemu-img")
	dir := t.TempDir()
	out := filepath.Join(dir, "backup")
	shell(t, `TARGET=$(mktemp -d "$2/ganeti-XXXXXX")
		qemu-img convert $4 -f raw "$1" -O qcow2 "$TARGET/disk.img"
		image=$TARGET/disk.img; `+finish+`
		( cd "$TARGET" ; tar -cf - . ) > "$3"`, disk, dir, out, options)
	return out
}

// source is a way to make a stream of a disk that import takes.
type source struct {
	name string
	make func(t *testing.T, s *site, disk string) string
}

func exportedAs(format string) source {
	return source{format, func(t *testing.T, s *site, disk string) string {
		return newSite(t, "EXPORT_FORMAT="+format).export(t, exporting(disk)).path
	}}
}

// sources are all the formats that hold a whole disk.
var sources = []source{
	exportedAs("tar"),
	exportedAs("raw"),
	exportedAs("qcow2"),
	{"raw by others", func(t *testing.T, s *site, disk string) string { return disk }},
	{"Bash's disk.img", func(t *testing.T, s *site, disk string) string { return bashImage(t, disk, "", "true") }},
	{"Bash's disk.img of 1.x", func(t *testing.T, s *site, disk string) string { return bashImage(t, disk, "-o compat=0.10", "true") }},
	{"Bash's disk.img, compressed", func(t *testing.T, s *site, disk string) string {
		return bashImage(t, disk, "-c -o compat=0.10", "true")
	}},
	{"Bash's disk.img of small clusters", func(t *testing.T, s *site, disk string) string {
		return bashImage(t, disk, "-o cluster_size=512", "true")
	}},
	{"Bash's disk.img, its tables behind its data", func(t *testing.T, s *site, disk string) string {
		return bashImage(t, disk, "-o cluster_size=4k", `mv "$image" "$image.1"; size=$(qemu-img info "$image.1" | sed -n 's/.*(\([0-9]*\) bytes).*/\1/p')
			qemu-img create -q -f qcow2 -o cluster_size=4k "$image" 2M; qemu-io -f qcow2 -c 'write -P 7 0 2M' "$image" >/dev/null; qemu-img resize -q "$image" "$size"; qemu-img convert -n -f qcow2 -O qcow2 "$image.1" "$image"; rm "$image.1"`)
	}},
}

// Whatever made the stream, the disk has the same files, fills a larger disk, and
// Ganeti's rename afterwards leaves it as it is.
func TestImport(t *testing.T) {
	need.Tools(t, "qemu-img", "e2fsck")
	layout := layoutNamed(t, "mbr-ext4")
	disk, _ := makeImageOf(t, layout, 64)
	files := listing(t, disk, layout)
	for _, source := range sources {
		t.Run(source.name, func(t *testing.T) {
			s := newSite(t, "IMPORT_DIR="+t.TempDir())
			stream := source.make(t, s, disk)
			s = newSite(t, "IMPORT_DIR="+t.TempDir())
			t.Run("same size", func(t *testing.T) {
				target := junkDisk(t, 64<<20)
				log := s.importFile(t, importing(target), stream)
				comparePages(t, disk, target)
				judgeRoot(t, target, layout)
				sameFiles(t, files, target, layout, log)
			})
			t.Run("larger", func(t *testing.T) {
				target := newDisk(t, 200)
				log := s.importFile(t, importing(target), stream)
				checkDisk(t, target, layout, 200)
				sameFiles(t, files, target, layout, log)
				s.renamed(t, instance(target).with(env{"OLD_INSTANCE_NAME": "web.example.org"}))
				judgeRoot(t, target, layout)
			})
		})
	}
}

func sameFiles(t *testing.T, files, disk string, layout diskLayout, log string) {
	t.Helper()
	if after := listing(t, disk, layout); after != files {
		t.Errorf("the files are others:\n%s\nlog:\n%s", diff(t, files, after), log)
	}
}

// The dumps of the Bash version, and our own, become the guest they were made of.
func TestImportOfDumps(t *testing.T) {
	need.Tools(t, "dump", "e2fsck")
	disk, tree := bashGuest(t, 400)
	for _, c := range []struct {
		name string
		make func(t *testing.T) string
	}{
		{"Bash's", func(t *testing.T) string { return bashDump(t, disk) }},
		{"ours", func(t *testing.T) string { return newSite(t, "EXPORT_FORMAT=dump").export(t, exporting(disk)).path }},
	} {
		t.Run(c.name, func(t *testing.T) {
			stream := c.make(t)
			for _, mib := range []int{400, 700} {
				s := newSite(t, "SWAP_SIZE=32\nBOOT_SIZE=100")
				target := newDisk(t, mib)
				log := s.importFile(t, importing(target), stream)
				checkSmall(t, target, tree, []want{{4, "vfat", 100}, {1, "ext4", 100}, {2, "swap", 32}, {3, "ext4", 0}}, 1, time.Second)
				if t.Failed() {
					t.Fatalf("log:\n%s", log)
				}
			}
		})
	}
}

// What is larger than the disk is refused before anything is written, and read to
// its end.
func TestImportToASmallerDisk(t *testing.T) {
	disk, _ := makeImageOf(t, layoutNamed(t, "mbr-ext4"), 64)
	for _, source := range sources {
		t.Run(source.name, func(t *testing.T) {
			s := newSite(t, "IMPORT_DIR="+t.TempDir())
			stream := source.make(t, s, disk)
			s = newSite(t, "IMPORT_DIR="+t.TempDir())
			target := junkDisk(t, 63<<20)
			before := sumOf(t, target)
			o := s.tryImport(t, importing(target), stream)
			checkRefusal(t, o, 4, "MiB")
			if sumOf(t, target) == before {
				return
			}
			if source.name != "raw" && source.name != "raw by others" {
				t.Error("the disk was changed")
			}
			empty(t, target) // the length of a raw stream is known when it has been read
		})
	}
}

// What two things may be, or cannot be grown, is restored as it was to a larger disk.
func TestImportLeavesWhatIsNotClear(t *testing.T) {
	need.Tools(t, "mke2fs", "mkfs.btrfs", "genisoimage")
	for _, name := range []string{"luks over ext4", "xfs's sign before ext4", "btrfs over ext4", "lvm over ext4", "raid before ext4", "ext4 larger than its disk", "ext4 of the future", "iso9660"} {
		t.Run(name, func(t *testing.T) {
			disk := filepath.Join(t.TempDir(), "disk")
			for _, c := range otherDisks {
				if c.name == name {
					apart(t, c.make, disk)
				}
			}
			s := newSite(t, uncompressed)
			b := s.export(t, exporting(disk))
			target := junkDisk(t, lengthOf(t, disk)+3<<20)
			log := s.importFile(t, importing(target), b.path)
			if out := shell(t, `cmp -n "$3" "$1" "$2" || true`, disk, target, fmt.Sprint(lengthOf(t, disk))); out != "" {
				t.Errorf("%s\n%s", out, log)
			}
		})
	}
}

// A snapshot that was taken in use comes back as it was, and whole to a larger disk.
func TestImportOfDirtySnapshot(t *testing.T) {
	need.Root(t)
	for _, c := range []struct {
		kind   string
		length int64
	}{{"ext4", 64 << 20}, {"xfs", 310 << 20}} {
		t.Run(c.kind, func(t *testing.T) {
			snapshot := dirtySnapshot(t, c.kind, c.length)
			b := newSite(t, "").export(t, exporting(snapshot))
			same, larger := junkDisk(t, c.length), junkDisk(t, c.length+64<<20)
			s := newSite(t, "")
			s.importFile(t, importing(same), b.path)
			tool(t, "cmp", snapshot, same)
			log := s.importFile(t, importing(larger), b.path)
			apart(t, `mount -o loop "$1" "$2"; [ $(stat -c %s "$2/a") = 3000000 ]; [ -e "$2/b" ]; umount "$2"`, larger, t.TempDir())
			judgeSystem(t, larger, c.kind)
			if !strings.Contains(log, "grew the filesystem") {
				t.Errorf("the file system was not grown:\n%s", log)
			}
		})
	}
}

// Further disks are never laid out or edited, whatever is enabled.
func TestImportOfFurtherDisks(t *testing.T) {
	layout := layoutNamed(t, "mbr-ext4")
	disk, _ := makeImageOf(t, layout, 64)
	for _, source := range sources[:4] {
		t.Run(source.name, func(t *testing.T) {
			stream := source.make(t, newSite(t, ""), disk)
			s := newSite(t, "IMPORT_IDENTITY=renew\nROOT_PASSWORD=secret")
			s.enable(t, "cloud-init", "ssh", "interfaces", "grub")
			first, target := junkDisk(t, 8<<20), junkDisk(t, 64<<20)
			before := sumOf(t, first)
			log := s.importFile(t, importing(target).with(env{"IMPORT_INDEX": "1", "DISK_COUNT": "2", "DISK_0_PATH": first, "DISK_1_PATH": target}), stream)
			shell(t, `cmp "$1" "$2"`, disk, target)
			if sumOf(t, first) != before {
				t.Errorf("the first disk was changed:\n%s", log)
			}
		})
	}
}

// A stream of nothing leaves the disk as it is.
func TestImportOfNothing(t *testing.T) {
	need.Root(t)
	target := junkDisk(t, 8<<20)
	before := sumOf(t, target)
	s := newSite(t, "")
	o := s.importFrom(t, importing(target), bytes.NewReader(nil), 0)
	if o.code != 0 || sumOf(t, target) != before {
		t.Errorf("import ended with %d; the disk changed: %v\n%s", o.code, sumOf(t, target) != before, o.log)
	}
	if !strings.Contains(o.log, "empty") && !strings.Contains(o.log, "0 bytes") && !strings.Contains(o.log, "nothing") {
		t.Errorf("the log does not say that there was nothing:\n%s", o.log)
	}
}

// A guest may write to its disk what it likes: where the disk was exported raw,
// what looks like another format follows no path and reads no file of the node.
func TestImportFollowsNoHeaderOfTheGuest(t *testing.T) {
	need.Root(t)
	need.Tools(t, "qemu-img")
	secret := filepath.Join(t.TempDir(), "secret")
	shell(t, `yes "a secret of the node" | head -c 1M > "$1"`, secret)
	for _, c := range []struct{ name, make string }{
		{"backing file", `qemu-img create -q -f qcow2 -b "$2" -F raw "$1" 1M; truncate -s 8M "$1"`},
		{"data file", `qemu-img create -q -f qcow2 -o data_file="$2",data_file_raw=on "$1" 1M 2>/dev/null || true; truncate -s 8M "$1"`},
		{"tar with a link", `ln -s "$2" "$(dirname "$1")/root.dump"; tar -C "$(dirname "$1")" -cf "$1" ./root.dump; truncate -s 8M "$1"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := filepath.Join(t.TempDir(), "disk")
			shell(t, c.make, disk, secret)
			target := junkDisk(t, 9<<20)
			before := sumOf(t, target)
			o := newSite(t, "").tryImport(t, importing(target), disk)
			shell(t, `! grep -q -a "a secret of the node" "$1"`, target)
			if o.code == 0 {
				tool(t, "cmp", "-n", fmt.Sprint(8<<20), disk, target)
			} else if sumOf(t, target) != before {
				empty(t, target)
			}
		})
	}
}

// An imported guest is who it was, or another one.
func TestImportIdentity(t *testing.T) {
	layout := layoutNamed(t, "mbr-ext4")
	layout.fill = "(\n" + usedTree + namedTree + "\n)\nssh-keygen -q -t ed25519 -N '' -f \"$tree/etc/ssh/ssh_host_ed25519_key\"\n" + layout.fill
	disk, tree := makeImageOf(t, layout, 100)
	names := slices.DeleteFunc(append([]string{"etc/ssh/ssh_host_ed25519_key"}, ownFiles...), func(name string) bool {
		return strings.Contains(name, "persistent-net") // the hook interfaces moves it out of its way
	})
	of := fileTexts(tree, names)
	b := newSite(t, "").export(t, exporting(disk))
	for _, identity := range []string{"", "keep", "renew"} {
		t.Run("identity "+identity, func(t *testing.T) {
			settings := ""
			if identity != "" {
				settings = "IMPORT_IDENTITY=" + identity
			}
			s := newSite(t, settings)
			s.enable(t, "ssh", "interfaces", "cloud-init")
			target := newDisk(t, 150)
			log := s.importFile(t, importing(target), b.path)
			got := fileTexts(mountRoot(t, target, layout), names)
			for _, name := range names {
				if same := got[name] == of[name]; same != (identity != "renew") {
					t.Errorf("%s is as it was: %v\n%s", name, same, log)
				}
			}
		})
	}
}

// With the hook interfaces the guest has the network of its new instance; of
// other hooks only grub runs, and is told that this is an import.
func TestImportRunsHooks(t *testing.T) {
	layout := layoutNamed(t, "mbr-ext4")
	layout.fill = "(\n" + namedTree + "\n)\n" + layout.fill
	disk, _ := makeImageOf(t, layout, 100)
	b := newSite(t, "").export(t, exporting(disk))
	address := env{"NIC_0_IP": "192.0.2.77", "NIC_0_NETWORK_SUBNET": "192.0.2.0/24", "NIC_0_NETWORK_GATEWAY": "192.0.2.1"}
	s := newSite(t, "")
	ran := filepath.Join(t.TempDir(), "ran")
	record := "#!/bin/sh\necho \"$(basename \"$0\") $IMPORT_SCRIPT $SCRIPT_NAME\" >> " + ran + "\n"
	s.hook(t, "a-site-hook", record)
	t.Cleanup(replaced(t, s, s.conf("hooks/grub"), record))
	s.enable(t, "interfaces")
	target := newDisk(t, 150)
	log := s.importFile(t, importing(target).with(address), b.path)
	wantIn(t, mountRoot(t, target, layout), map[string][]string{"etc/netplan/90-ganeti.yaml": {"aa:00:00:12:34:56", "192.0.2.77/24"}})
	text, _ := os.ReadFile(ran)
	if !strings.HasPrefix(string(text), "grub 1") || strings.Contains(string(text), "a-site-hook") {
		t.Errorf("the hooks that ran are %q\n%s", text, log)
	}
}

// replaced makes a hook of the installation another one, and returns what takes
// that back.
func replaced(t *testing.T, s *site, path, script string) func() {
	t.Helper()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, path, script, 0o755)
	return func() { s.write(t, path, string(before), 0o644) }
}

// The disk shows the system only when its last byte was verified.
func TestImportShowsNothingBeforeItIsVerified(t *testing.T) {
	layout := layoutNamed(t, "mbr-ext4")
	disk, _ := makeImageOf(t, layout, 32)
	for _, source := range sources[:5] {
		t.Run(source.name, func(t *testing.T) {
			stream := source.make(t, newSite(t, ""), disk)
			text, err := os.ReadFile(stream)
			if err != nil {
				t.Fatal(err)
			}
			target := junkDisk(t, 32<<20)
			shell(t, `echo , | sfdisk -q "$1"`, target)
			before := sumOf(t, target)
			in := feed(t, newSite(t, "").transfer("import", importing(target)))
			in.write(t, text[:len(text)-3000])
			time.Sleep(500 * time.Millisecond)
			if sumOf(t, target) != before { // else it did not begin to write
				empty(t, target)
			}
			in.write(t, text[len(text)-3000:])
			if o := in.end(t); o.code != 0 {
				t.Fatalf("import ended with %d:\n%s", o.code, o.log)
			}
			judgeRoot(t, target, layout)
		})
	}
}

// The stream is read to its end, however early it is clear that it is of no use.
func TestImportReadsToTheEnd(t *testing.T) {
	need.Root(t)
	disk, _ := makeImageOf(t, layoutNamed(t, "mbr-ext4"), 16)
	b := newSite(t, "").export(t, exporting(disk))
	backup, err := os.ReadFile(b.path)
	if err != nil {
		t.Fatal(err)
	}
	broken := bytes.Clone(backup)
	broken[600] ^= 1 // in the manifest
	target := junkDisk(t, 16<<20)
	const more = 64 << 20
	for _, c := range []struct {
		name, settings string
		e              env
		start          []byte
		code           int
	}{
		{"no device", "", importing(target).with(env{"IMPORT_DEVICE": "", "IMPORT_DISK_PATH": ""}), backup, 2},
		{"missing device", "", importing(target + ".gone"), backup, 4},
		{"settings", "IMPORT_IDENTITY=maybe", importing(target), backup, 2},
		{"small disk", "", importing(junkDisk(t, 8<<20)), backup, 4},
		{"broken manifest", "", importing(target), broken, 3}, // and no raw disk
		{"something behind the end", "", importing(target), backup, 3},
		{"another tar", "", importing(target), otherTar(t), 3},
		{"empty tar", "", importing(target), make([]byte, 10240), 4},
		{"raw and too long", "", importing(target), []byte("raw"), 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, c.settings)
			stream := io.MultiReader(bytes.NewReader(c.start), io.LimitReader(zeroReader{}, more))
			o := s.importFrom(t, c.e, stream, int64(len(c.start))+more)
			if c.name == "something behind the end" && o.code == 0 {
				return // zeros behind a tar archive are its padding
			}
			checkRefusal(t, o, c.code)
			checkNoSystem(t, target, c.name, o)
		})
	}
}

type zeroReader struct{}

func (zeroReader) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func otherTar(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "other.tar")
	shell(t, `cd "$(dirname "$1")"; echo hello > file; tar -cf "$1" ./file`, path)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// A disk that somebody uses is not imported to.
func TestImportToABusyDisk(t *testing.T) {
	source, _ := makeImageOf(t, layoutNamed(t, "mbr-ext4"), 16)
	b := newSite(t, "").export(t, exporting(source))
	disk := junkDisk(t, 64<<20)
	shell(t, `mke2fs -q -t ext4 -F "$1"`, disk)
	dir := t.TempDir()
	tool(t, "mount", "-o", "loop", disk, dir)
	t.Cleanup(func() { tool(t, "umount", dir) })
	o := newSite(t, "").tryImport(t, importing(disk), b.path)
	checkRefusal(t, o, 4, disk)
	if out := tool(t, "blkid", "-p", disk); !strings.Contains(out, "ext4") {
		t.Errorf("the disk was changed: %s", out)
	}
}

// All disks of an instance are imported at once, in bounded memory.
func TestImportToDevicesAtOnce(t *testing.T) {
	need.Tools(t, "prlimit")
	layout := layoutNamed(t, "debian")
	image, _ := makeImageOf(t, layout, 300)
	data := filepath.Join(t.TempDir(), "data")
	shell(t, `head -c 100M /dev/urandom > "$1"`, data)
	s := newSite(t, "")
	s.enable(t, "cloud-init", "ssh")
	var devices []string
	for _, mib := range []int{400, 120} {
		device := strings.TrimSpace(tool(t, "losetup", "--find", "--show", newDisk(t, mib)))
		t.Cleanup(func() { tool(t, "losetup", "--detach", device) })
		devices = append(devices, device)
	}
	before := attached(t)
	var wait sync.WaitGroup
	for i, disk := range []string{image, data} {
		b := s.export(t, exporting(disk))
		e := disks(devices[0], devices[1]).with(env{"IMPORT_DEVICE": devices[i], "IMPORT_DISK_PATH": devices[i], "IMPORT_INDEX": itoa(i)})
		wait.Go(func() {
			cmd := s.transfer("import", e, bounded...)
			in, err := os.Open(b.path)
			if err != nil {
				t.Error(err)
				return
			}
			defer in.Close()
			cmd.Stdin = in
			if o := finish(t, cmd); o.code != 0 {
				t.Errorf("import of disk %d ended with %d:\n%s", i, o.code, o.log)
			}
		})
	}
	wait.Wait()
	if after := attached(t); after != before {
		t.Errorf("something is left attached:\n%s", after)
	}
	if !t.Failed() {
		tool(t, "cmp", "-n", fmt.Sprint(100<<20), data, devices[1])
		t.Run("judge", func(t *testing.T) {
			start := partitionStart(t, image, layout.root)
			loop := strings.TrimSpace(tool(t, "losetup", "--find", "--show", "--offset", fmt.Sprint(start), devices[0]))
			defer tool(t, "losetup", "--detach", loop)
			tool(t, "e2fsck", "-fn", loop)
		})
	}
}
