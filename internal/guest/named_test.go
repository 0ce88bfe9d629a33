package guest

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// guestOf makes a guest of paths and contents.
func guestOf(t *testing.T, contents map[string]string) (*Root, string) {
	t.Helper()
	root, dir := tree(t)
	for name, text := range contents {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			if err := os.Symlink(target, path); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root, dir
}

func TestNamedSystems(t *testing.T) {
	cases := []struct {
		name  string
		files map[string]string
		want  map[string]Named
	}{
		{"nothing", nil, map[string]Named{}},
		{"fstab", map[string]string{"etc/fstab": "# UUID=0 / x\nUUID=" + rootUUID + " / ext4 ro\nLABEL=boot /boot/ xfs ro\nUUID=1A2B-3C4D /boot/efi vfat ro\nUUID=" + swapUUID + " none swap sw\nUUID=" + bootUUID + " /srv ext4 ro\n"},
			map[string]Named{"/": {UUID: rootUUID}, "/boot": {Label: "boot"}, "/boot/efi": {UUID: "1A2B-3C4D"}, "swap": {UUID: swapUUID}}},
		{"grub wins", map[string]string{"etc/fstab": "UUID=" + bootUUID + " / ext4 ro\nUUID=" + bootUUID + " none swap sw\n",
			"boot/grub/grub.cfg":                "search --fs-uuid x\n\tlinux\t/vmlinuz root=UUID=" + rootUUID + " ro resume=UUID=" + swapUUID + "\n\tlinux /old root=UUID=" + bootUUID + "\n",
			"etc/initramfs-tools/conf.d/resume": "RESUME=UUID=" + bootUUID + "\n"},
			map[string]Named{"/": {UUID: rootUUID}, "swap": {UUID: swapUUID}}},
		{"resume of initramfs-tools", map[string]string{"etc/fstab": "/dev/sda5 none swap sw\n", "etc/initramfs-tools/conf.d/resume": "RESUME=\"UUID=" + strings.ToUpper(swapUUID) + "\"\n"},
			map[string]Named{"swap": {UUID: swapUUID}}},
		{"label and partition", map[string]string{"etc/fstab": "LABEL=cloudimg-rootfs / ext4 ro\n", "boot/grub2/grub.cfg": "linuxefi /vmlinuz \"root=PARTUUID=AABBCCDD-02\" ro\n"},
			map[string]Named{"/": {Label: "cloudimg-rootfs", PartUUID: "aabbccdd-02"}}},
		{"boot loader spec", map[string]string{"boot/loader/entries/a.conf": "title a\noptions $kernelopts\n", "boot/grub2/grubenv": "# GRUB Environment Block\nkernelopts=root=UUID=" + rootUUID + " ro\n####"},
			map[string]Named{"/": {UUID: rootUUID}}},
		{"two subvolumes", map[string]string{"etc/fstab": "UUID=" + rootUUID + " /boot btrfs subvol=boot\nUUID=" + rootUUID + " / btrfs subvol=root\n"},
			map[string]Named{"/": {UUID: rootUUID}}},
		{"first line", map[string]string{"etc/fstab": "LABEL=a / ext4 ro\nLABEL=b / ext4 ro\n"}, map[string]Named{"/": {Label: "a"}}},
		{"hostile", map[string]string{"etc/fstab": "UUID=--help / ext4 ro\nLABEL=-x / ext4 ro\nLABEL=01234567890123456 / ext4 ro\nPARTUUID=00000000-01 / ext4 ro\nUUID=" + rootUUID + "; /boot ext4 ro\n" +
			"UUID=00000000-0000-0000-0000-000000000000 none swap sw\nLABEL=a\\012b /boot ext4 ro\nUUID=1a2b-3c4d /boot/efi vfat ro\nLABEL=twelve_bytes /boot/efi vfat ro\nUUID=0000-0000 /boot/efi vfat ro\nUUID=1A2B-3C4D / ext4 ro\n"},
			map[string]Named{}},
	}
	for _, c := range cases {
		root, _ := guestOf(t, c.files)
		if got := root.NamedSystems(); !maps.Equal(got, c.want) {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func FuzzNamed(f *testing.F) {
	f.Add("UUID="+rootUUID+" / ext4 ro\nLABEL=/ /boot xfs ro\n", "linux /vmlinuz root=PARTUUID=aabbccdd-02 resume=UUID="+swapUUID+"\n")
	f.Add("/dev/disk/by-uuid/1A2B-3C4D /boot/efi vfat ro\nLABEL=\"\\040a\" / auto x", "linux16\tx \"root=LABEL='x' ")
	f.Fuzz(func(t *testing.T, fstab, grub string) {
		root, _ := guestOf(t, map[string]string{"etc/fstab": fstab + "\n", "boot/grub/grub.cfg": grub + "\n"})
		seen := map[string]bool{}
		for key, named := range root.NamedSystems() {
			for _, name := range []string{named.UUID, named.PartUUID} {
				if name != "" && (strings.Trim(name, "0123456789abcdefABCDEF-") != "" || seen[name]) {
					t.Errorf("%s is named %q", key, name)
				}
				seen[name] = true
			}
			if len(named.Label) > 16 || strings.ContainsAny(named.Label, "\n\x00") || strings.HasPrefix(named.Label, "-") {
				t.Errorf("%s has the label %q", key, named.Label)
			}
		}
	})
}
