package grub

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

var update = flag.Bool("update", false, "write the golden files")

const (
	rootUUID = "11111111-2222-4333-8444-555555555555"
	bootUUID = "99999999-8888-4777-8666-aaaaaaaaaaaa"
	rootPart = "c0ffee00-03"
)

// table is a partition table of n partitions of a MiB each.
func table(kind layout.Kind, numbers ...int) *layout.Table {
	t := &layout.Table{Kind: kind, SectorSize: 512}
	for i, n := range numbers {
		t.Partitions = append(t.Partitions, layout.Partition{Number: n, Start: size.Bytes(i+1) * size.MiB, Length: size.MiB, Type: "83"})
	}
	return t
}

func rootOn(number int, kind filesystem.Kind) Filesystem {
	return Filesystem{Number: number, Kind: kind, UUID: rootUUID, Label: "root", PartUUID: rootPart}
}

func bootOn(number int, kind filesystem.Kind) Filesystem {
	return Filesystem{Number: number, Kind: kind, UUID: bootUUID, PartUUID: "c0ffee00-01"}
}

var (
	siteArgs = []string{"net.ifnames=0", "nokaslr"}
	com1     = Serial{"ttyS0", 115200}
)

// trees are guests as distributions make them, and where they are put.
var trees = []struct {
	name, tree string
	pygrub     string // the kernel that pygrub is to boot
	target     Target
}{
	{"debian-boot", "debian", "", Target{Table: table(layout.MBR, 1, 2, 3), RootFS: rootOn(3, filesystem.Ext4), BootFS: bootOn(1, filesystem.Ext4), KernelArgs: siteArgs, Serial: com1, Hypervisor: "kvm"}},
	{"debian-gpt", "debian", "", Target{Table: table(layout.GPT, 14, 15, 1), RootFS: rootOn(1, filesystem.XFS), Hypervisor: "kvm"}},
	{"debian-xen", "debian", "vmlinuz-6.1.0-26-amd64", Target{Table: table(layout.MBR, 1), RootFS: rootOn(1, filesystem.Ext4), Serial: Serial{"hvc0", 0}, Hypervisor: "xen-pvm"}},
	{"debian-external", "debian", "", Target{RootFS: rootOn(0, filesystem.Ext4), External: true, KernelArgs: siteArgs, Hypervisor: "xen-pvm"}},
	{"ubuntu", "ubuntu", "", Target{Table: table(layout.GPT, 14, 15, 1), RootFS: rootOn(1, filesystem.Ext4), Serial: com1, KernelArgs: siteArgs, Hypervisor: "kvm"}},
	{"el8", "el8", "", Target{Table: table(layout.GPT, 1, 2, 3), RootFS: rootOn(3, filesystem.XFS), BootFS: bootOn(1, filesystem.Ext4), Serial: com1, KernelArgs: siteArgs, Hypervisor: "kvm"}},
	{"el9", "el9", "", Target{Table: table(layout.MBR, 1), RootFS: rootOn(1, filesystem.XFS), Serial: Serial{"ttyS0", 38400}, Hypervisor: "kvm"}},
	{"el9-xen", "el9", "vmlinuz-5.14.0-427.el9.x86_64", Target{Table: table(layout.MBR, 1), RootFS: rootOn(1, filesystem.Ext4), Serial: Serial{"hvc0", 0}, Hypervisor: "xen-pvm"}},
	{"el9-uefi", "el9-uefi", "", Target{Table: table(layout.GPT, 1, 2, 3), RootFS: rootOn(3, filesystem.XFS), BootFS: bootOn(1, filesystem.XFS), Serial: com1, Hypervisor: "kvm"}},
	{"opensuse", "opensuse", "", Target{Table: table(layout.MBR, 1, 3), RootFS: rootOn(3, filesystem.Ext4), BootFS: bootOn(1, filesystem.Ext4), Serial: com1, Hypervisor: "kvm"}},
	{"opensuse-btrfs", "opensuse", "", Target{Table: table(layout.GPT, 14, 1), RootFS: rootOn(1, filesystem.Btrfs), Hypervisor: "kvm"}},
	{"alpine", "alpine", "", Target{Table: table(layout.MBR, 1, 3), RootFS: rootOn(3, filesystem.XFS), BootFS: bootOn(1, filesystem.Ext4), Serial: com1, KernelArgs: siteArgs, Hypervisor: "kvm"}},
	{"alpine-whole", "alpine", "vmlinuz-lts", Target{RootFS: Filesystem{Kind: filesystem.Ext4, UUID: rootUUID}, Serial: Serial{"hvc0", 0}, Hypervisor: "xen-pvm"}},
	{"gentoo", "gentoo", "", Target{Table: table(layout.MBR, 1, 2, 3), RootFS: rootOn(3, filesystem.Ext4), BootFS: bootOn(1, filesystem.Ext2), KernelArgs: append([]string{`dyndbg="file ata +p"`}, siteArgs...), Serial: com1, Hypervisor: "kvm"}},
	{"gentoo-xen", "gentoo", "kernel-6.6.52-gentoo", Target{Table: table(layout.MBR, 1), RootFS: rootOn(1, filesystem.Ext4), Serial: Serial{"hvc0", 0}, Hypervisor: "xen-pvm"}},
	{"arch", "arch", "", Target{Table: table(layout.GPT, 1, 2), RootFS: rootOn(2, filesystem.Ext4), BootFS: Filesystem{Number: 1, Kind: filesystem.VFAT, UUID: "1234-ABCD"}, Serial: com1, KernelArgs: siteArgs, Hypervisor: "kvm"}},
	{"el6", "el6", "", Target{Table: table(layout.MBR, 1, 2, 3), RootFS: rootOn(3, filesystem.Ext3), BootFS: bootOn(1, filesystem.Ext3), Serial: com1, Hypervisor: "kvm"}},
	{"el6-xen", "el6", "vmlinuz-2.6.32-754.el6.x86_64", Target{Table: table(layout.MBR, 2), RootFS: rootOn(2, filesystem.Ext3), Serial: Serial{"hvc0", 0}, Hypervisor: "xen-pvm"}},
}

func TestConfigure(t *testing.T) {
	for _, c := range trees {
		t.Run(c.name, func(t *testing.T) {
			dir := copyTree(t, c.tree)
			before := snapshot(t, dir)
			target := c.target
			target.Root = openRoot(t, dir)
			changes, err := Configure(target)
			if err != nil {
				t.Fatal(err)
			}
			after := snapshot(t, dir)
			golden(t, c.name, describe(changes, before, after))
			again, err := Configure(target)
			if err != nil {
				t.Fatal(err)
			}
			again = slices.DeleteFunc(again, func(line string) bool { return strings.HasPrefix(line, "left ") })
			if diff := cmp.Diff(after, snapshot(t, dir)); diff != "" || len(again) > 0 {
				t.Errorf("a second time it says %q and changes\n%s", again, diff)
			}
			judge(t, dir)
			if c.pygrub != "" {
				judgePygrub(t, dir, c.pygrub)
			}
		})
	}
}

func copyTree(t *testing.T, name string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata/configure", name))); err != nil {
		t.Fatal(err)
	}
	return dir
}

func openRoot(t testing.TB, dir string) *guest.Root {
	t.Helper()
	root, err := guest.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// snapshot holds what regular files say.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(name)
		files[strings.TrimPrefix(name, dir)] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// describe is what a golden file holds: the changes, and each file that changed.
func describe(changes []string, before, after map[string]string) string {
	text := strings.Join(changes, "\n") + "\n"
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for name := range after {
			if !yield(name) {
				return
			}
		}
	}) {
		if old, ok := before[name]; !ok || old != after[name] {
			text += fmt.Sprintf("\n-- %s --\n%s", name, after[name])
		}
	}
	return text
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata/configure", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// judge lets GRUB's own tools read what is in the guest.
func judge(t *testing.T, dir string) {
	t.Helper()
	need.Tools(t, "grub-script-check", "grub-editenv")
	for _, pattern := range []string{"boot/grub*/grub.cfg", "boot/efi/EFI/*/grub.cfg"} {
		names, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, name := range names {
			if out, err := exec.Command("grub-script-check", name).CombinedOutput(); err != nil {
				t.Errorf("grub-script-check %s: %v\n%s", name, err, out)
			}
		}
	}
	names, _ := filepath.Glob(filepath.Join(dir, "boot/grub*/grubenv"))
	for _, name := range names {
		out, err := exec.Command("grub-editenv", name, "list").CombinedOutput()
		if info, _ := os.Stat(name); err != nil || info.Size() != 1024 {
			t.Errorf("grub-editenv %s: %v, %d bytes\n%s", name, err, info.Size(), out)
		}
		if strings.Contains(string(out), "kernelopts=") && !strings.Contains(string(out), "root=UUID="+rootUUID) {
			t.Errorf("grub-editenv lists %s", out)
		}
	}
}

const pygrub = "/usr/lib/xen-4.17/bin/pygrub"

// judgePygrub lets Xen's pygrub choose a kernel from a disk with the guest. It
// takes the files out, and each kernel of the trees is its own name.
func judgePygrub(t *testing.T, dir, kernel string) {
	t.Helper()
	need.File(t, pygrub)
	need.Tools(t, "mke2fs")
	disk, out := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	for _, name := range []string{"vmlinuz", "kernel", "init"} {
		names, _ := filepath.Glob(filepath.Join(dir, "boot", name+"*"))
		for _, file := range names {
			if info, err := os.Lstat(file); err == nil && info.Mode().IsRegular() {
				os.WriteFile(file, []byte(filepath.Base(file)), 0o644)
			}
		}
	}
	if text, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", dir, disk, "16M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v\n%s", err, text)
	}
	text, err := exec.Command(pygrub, "-q", "--output-format=simple", "--output-directory="+out, disk).CombinedOutput()
	if err != nil {
		t.Fatalf("pygrub: %v\n%s", err, text)
	}
	if !strings.Contains(string(text), "root=UUID="+rootUUID) || !strings.HasSuffix(strings.TrimSpace(string(text)), "console=hvc0") {
		t.Errorf("pygrub finds other arguments:\n%s", text)
	}
	for pattern, want := range map[string]string{"boot_kernel.*": kernel, "boot_ramdisk.*": "init"} {
		names, _ := filepath.Glob(filepath.Join(out, pattern))
		if len(names) != 1 {
			t.Fatalf("pygrub took out %q:\n%s", names, text)
		}
		if got, _ := os.ReadFile(names[0]); !strings.HasPrefix(string(got), want) {
			t.Errorf("pygrub took out %q for %q", got, want)
		}
	}
}

func TestConfigureRefuses(t *testing.T) {
	good := Target{RootFS: rootOn(1, filesystem.Ext4), Table: table(layout.MBR, 1), Hypervisor: "kvm"}
	full := strings.Repeat("x", 1000)
	tests := []struct {
		name   string
		change func(target *Target)
		files  map[string]string
		want   string
	}{
		{"no kernel", nil, map[string]string{"boot/config-6.1": "", "boot/initrd.img-6.1": ""}, "the guest has no kernel"},
		{"no /boot", nil, nil, "the guest has no kernel"},
		{"argument with a newline", func(t *Target) { t.KernelArgs = []string{"a\nb"} }, nil, "kernel argument"},
		{"argument with a variable", func(t *Target) { t.KernelArgs = []string{"a=$x"} }, nil, "kernel argument"},
		{"two arguments in one", func(t *Target) { t.KernelArgs = []string{"a b"} }, nil, "not one kernel argument"},
		{"open quote", func(t *Target) { t.KernelArgs = []string{`a="b`} }, nil, "not one kernel argument"},
		{"hostile identifier", func(t *Target) { t.RootFS.UUID = "a'; reboot" }, nil, "no identifier"},
		{"hostile console", func(t *Target) { t.Serial.Device = "ttyS0 init=/bin/sh" }, nil, "no serial console"},
		{"environment block that is full", nil, map[string]string{
			"boot/vmlinuz-1": "", "boot/initrd-1": "",
			"boot/grub2/grubenv": grubenvHeader + "kernelopts=root=/dev/x " + full[:960] + "\n",
		}, "environment block has 1024"},
		{"grub.cfg that is too large", nil, map[string]string{"boot/vmlinuz-1": "", "boot/grub/grub.cfg": strings.Repeat("#", int(cfgLimit)+1)}, "larger than 4 MiB"},
		{"grub.cfg of too many words", nil, map[string]string{"boot/vmlinuz-1": "", "boot/grub/grub.cfg": strings.Repeat("a;", maxWords+1)}, "more than 131072 words"},
		{"grub.cfg that is a directory", nil, map[string]string{"boot/vmlinuz-1": "", "boot/grub/grub.cfg/x": ""}, "not a regular file"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			target := good
			if test.change != nil {
				test.change(&target)
			}
			target.Root = openRoot(t, makeTree(t, test.files))
			_, err := Configure(target)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if strings.HasPrefix(test.name, "no ") && !errors.Is(err, ErrNoKernel) {
				t.Errorf("%v is not ErrNoKernel", err)
			}
		})
	}
}

func makeTree(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
