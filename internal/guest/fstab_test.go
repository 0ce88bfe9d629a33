package guest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
)

const (
	rootUUID = "11111111-2222-4333-8444-555555555555"
	bootUUID = "21111111-2222-4333-8444-555555555555"
	swapUUID = "31111111-2222-4333-8444-555555555555"
)

// systems makes what was made for a guest: "/ ext4", "swap swap".
func systems(list ...string) []FSTabSystem {
	uuids := map[string]string{"/": rootUUID, "/boot": bootUUID, "/boot/efi": "1A2B-3C4D", "none": swapUUID}
	var made []FSTabSystem
	for _, text := range list {
		where, kind, _ := strings.Cut(text, " ")
		s := FSTabSystem{Device: "UUID=" + uuids[where], Mountpoint: where, Type: kind, Names: []string{"UUID=" + uuids[where]}}
		if where == "/" {
			s.Names = append(s.Names, "LABEL=/", "PARTUUID=aabbccdd-02", "LABEL=my root")
		}
		made = append(made, s)
	}
	return made
}

func setFSTab(t *testing.T, text string, made []FSTabSystem) (string, []string) {
	t.Helper()
	root, dir := tree(t, "etc/")
	file := filepath.Join(dir, "etc/fstab")
	if text != "" {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	changes, err := root.SetFSTab(made)
	if err != nil {
		t.Fatal(err)
	}
	return content(t, file), changes
}

func TestSetFSTab(t *testing.T) {
	cases := []struct {
		name, old string
		systems   []FSTabSystem
		want      string
	}{
		{"nothing there", "", systems("/boot ext4", "none swap", "/ ext4"),
			"UUID=" + rootUUID + " / ext4 defaults 0 1\nUUID=" + bootUUID + " /boot ext4 defaults 0 2\nUUID=" + swapUUID + " none swap sw 0 0\n"},
		{"all true", "# head\nLABEL=\"/\"\t/ \t ext4  noatime,errors=remount-ro 0\t1 # x\n/dev/disk/by-uuid/" + bootUUID + " /boot/ ext4 ro 0 2\nUUID=" + swapUUID + " swap swap pri=5 0 0", systems("/ ext4", "/boot ext4", "none swap"), ""},
		{"a label with a blank", "LABEL=my\\040root / ext4 ro 0 1\n", systems("/ ext4"), ""},
		{"udev's way to write it", "/dev/disk/by-label/my\\x20root / auto ro 0 1\n", systems("/ ext4"), ""},
		{"a kernel's name", "/dev/sda3\t/ ext3 errors=remount-ro,noatime 0 1\n/dev/sda2 none swap sw 0 0\n", systems("/ ext4", "none swap"),
			"UUID=" + rootUUID + "\t/ ext4 errors=remount-ro,noatime 0 1\nUUID=" + swapUUID + " none swap sw 0 0\n"},
		{"ext to xfs", "PARTUUID=aabbccdd-02 / ext4 rw,discard,errors=remount-ro,barrier=1,data=ordered,acl,user_xattr,x-systemd.growfs 0 1\n", systems("/ xfs"),
			"PARTUUID=aabbccdd-02 / xfs rw,discard,x-systemd.growfs 0 0\n"},
		{"nothing left", "LABEL=/ / ext4 errors=remount-ro 0 1\n", systems("/ btrfs"), "LABEL=/ / btrfs defaults 0 0\n"},
		{"btrfs to ext", "UUID=9 / btrfs subvol=root,compress=zstd:1,noatime 0 0\nUUID=9 /home btrfs subvol=home 0 0\n", systems("/ ext4"),
			"UUID=" + rootUUID + " / ext4 noatime 0 0\n" + notOurs + "UUID=9 /home btrfs subvol=home 0 0\n"},
		{"a new btrfs has no subvolumes", "LABEL=/ / btrfs subvolid=5,compress=zstd 0 0\nLABEL=/ /home btrfs subvol=home 0 0\n", systems("/ btrfs"),
			"LABEL=/ / btrfs compress=zstd 0 0\n" + notOurs + "LABEL=/ /home btrfs subvol=home 0 0\n"},
		{"other disks", "LABEL=/ / ext4 ro 0 1\nUUID=77 /srv ext4 defaults 0 2\n/dev/mapper/vg-home /home xfs defaults 0 0\n/dev/sdb1 /data ext3 nofail 0 2\n" +
			"/dev/sr0 /media/cdrom udf,iso9660 user,noauto 0 0\nproc /proc proc defaults 0 0\nnas:/x /mnt nfs4 hard 0 0\n/srv/a /srv/b none bind 0 0\n" +
			"/srv/x.img /x ext4 loop 0 0\n/swapfile none swap sw 0 0\n/dev/zram0 none swap sw 0 0\n/dev/vdb1 /iscsi ext4 _netdev 0 0\n//s/x /c cifs guest 0 0\nhost: /f fuse.sshfs ro 0 0\n", systems("/ ext4"),
			"LABEL=/ / ext4 ro 0 1\n" + notOurs + "UUID=77 /srv ext4 defaults 0 2\n" + notOurs + "/dev/mapper/vg-home /home xfs defaults 0 0\n/dev/sdb1 /data ext3 nofail 0 2\n" +
				"/dev/sr0 /media/cdrom udf,iso9660 user,noauto 0 0\nproc /proc proc defaults 0 0\nnas:/x /mnt nfs4 hard 0 0\n/srv/a /srv/b none bind 0 0\n" +
				"/srv/x.img /x ext4 loop 0 0\n/swapfile none swap sw 0 0\n/dev/zram0 none swap sw 0 0\n/dev/vdb1 /iscsi ext4 _netdev 0 0\n//s/x /c cifs guest 0 0\nhost: /f fuse.sshfs ro 0 0\n"},
		{"no boot partition, no swap", "LABEL=/ / ext4 ro 0 1\nUUID=5 /boot ext4 ro 0 2\n/dev/vda5 none swap sw 0 0\n", systems("/ ext4"),
			"LABEL=/ / ext4 ro 0 1\n" + notOurs + "UUID=5 /boot ext4 ro 0 2\n" + notOurs + "/dev/vda5 none swap sw 0 0\n"},
		{"several swaps", "LABEL=/ / ext4 ro 0 1\n/dev/sda5 none swap sw 0 0\nUUID=" + swapUUID + " none swap sw 0 0\n", systems("/ ext4", "none swap"),
			"LABEL=/ / ext4 ro 0 1\n" + notOurs + "/dev/sda5 none swap sw 0 0\nUUID=" + swapUUID + " none swap sw 0 0\n"},
		{"two roots", "/dev/root / rootfs rw 0 0\nLABEL=/ / ext4 ro 0 1\n", systems("/ ext4"), notOurs + "/dev/root / rootfs rw 0 0\nLABEL=/ / ext4 ro 0 1\n"},
		{"missing in the middle", "# root\nLABEL=/ / ext4 ro 0 1\n# the rest\ntmpfs /tmp tmpfs size=1G 0 0\nnas:/x /boot/x nfs ro 0 0", systems("/ ext4", "/boot xfs", "/boot/efi vfat", "none swap"),
			"# root\nLABEL=/ / ext4 ro 0 1\n# the rest\ntmpfs /tmp tmpfs size=1G 0 0\nUUID=" + bootUUID + " /boot xfs defaults 0 0\nUUID=1A2B-3C4D /boot/efi vfat umask=0077,nofail 0 0\nnas:/x /boot/x nfs ro 0 0\nUUID=" + swapUUID + " none swap sw 0 0\n"},
		{"root first", "# head\ntmpfs /tmp tmpfs size=1G 0 0", systems("/ ext4"), "# head\nUUID=" + rootUUID + " / ext4 defaults 0 1\ntmpfs /tmp tmpfs size=1G 0 0"},
		{"Gentoo's old words", "/dev/BOOT /boot ext2 noauto,noatime 1 2\n/dev/ROOT / ext3 noatime 0 1\n/dev/SWAP none swap sw 0 0\n", systems("/ ext4", "none swap"),
			"/dev/BOOT /boot ext2 noauto,noatime 1 2\nUUID=" + rootUUID + " / ext4 noatime 0 1\nUUID=" + swapUUID + " none swap sw 0 0\n"},
		{"DOS lines", "LABEL=x / ext4 ro 0 1\r\n", systems("/ ext4"), "UUID=" + rootUUID + " / ext4 ro 0 1\r\n"},
	}
	for _, c := range cases {
		got, changes := setFSTab(t, c.old, c.systems)
		if c.want == "" {
			c.want = c.old
			if len(changes) != 0 {
				t.Errorf("%s: changed %q", c.name, changes)
			}
		}
		if got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, got, c.want)
		}
		if again, changes := setFSTab(t, got, c.systems); again != got || len(changes) != 0 {
			t.Errorf("%s: a second time %q:\n%s", c.name, changes, again)
		}
	}
}

func TestSetFSTabRefuses(t *testing.T) {
	root, dir := tree(t, "etc/fstab/")
	if _, err := root.SetFSTab(systems("/ ext4")); err == nil || !strings.Contains(err.Error(), "it is a directory") {
		t.Errorf("a directory: %v", err)
	}
	if err := os.Remove(dir + "/etc/fstab"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/etc/fstab", []byte(strings.Repeat("a b c\n", fstabEntries+1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := root.SetFSTab(systems("/ ext4")); err == nil || !strings.Contains(err.Error(), "more than 1024 entries") {
		t.Errorf("too many: %v", err)
	}
}

// findmnt reads what was made as util-linux does. It looks for the devices too,
// which are not on this machine, so only what it says of the syntax counts.
func TestFindmntReadsIt(t *testing.T) {
	need.Tools(t, "findmnt")
	text, _ := setFSTab(t, "LABEL=/ / ext4 ro 0 1\nUUID=5 /srv ext4 ro 0 2\ntmpfs /tmp tmpfs size=1G 0 0", systems("/ xfs", "/boot ext4", "/boot/efi vfat", "none swap"))
	file := filepath.Join(t.TempDir(), "fstab")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	result, err := run.Cmd{What: "read the fstab", Argv: []string{"findmnt", "--tab-file", file, "--raw", "--noheadings", "--output", "SOURCE,TARGET,FSTYPE,OPTIONS,PASSNO"}}.Run(t.Context())
	want := "LABEL=/ / xfs ro 0\ntmpfs /tmp tmpfs size=1G 0\nUUID=" + bootUUID + " /boot ext4 defaults 2\nUUID=1A2B-3C4D /boot/efi vfat umask=0077,nofail 0\nUUID=" + swapUUID + " none swap sw 0\n"
	if err != nil || sorted(string(result.Stdout)) != sorted(want) {
		t.Errorf("%v:\n%s\nof:\n%s", err, result.Stdout, text)
	}
	result, err = run.Cmd{What: "verify the fstab", Argv: []string{"findmnt", "--verify", "--tab-file", file}, OK: []int{1}}.Run(t.Context())
	if err != nil || strings.Contains(strings.ReplaceAll(string(result.Stdout), "0 parse errors", ""), "parse error") {
		t.Errorf("%v: %s", err, result.Stdout)
	}
}

func sorted(text string) string { return strings.Join(slices.Sorted(strings.Lines(text)), "") }

func FuzzSetFSTab(f *testing.F) {
	f.Add("LABEL=/ / ext4 errors=remount-ro 0 1\n/dev/sda5 none swap sw 0 0\n")
	f.Add("UUID=9 / btrfs subvol=root,compress=zstd:1 0 0\nUUID=9 /home btrfs subvol=home 0 0")
	f.Add("\r\n \t# x\n/dev/disk/by-label/\\x2 /boot/efi/../. auto \\040 0 1 2 3")
	f.Add("x / swap\nLABEL=\" none swap , 0\n/dev/sda1 / none bind,rbind 0 1\n")
	made := systems("/ xfs", "/boot ext4", "none swap")
	f.Fuzz(func(t *testing.T, text string) {
		once := newTable(text)
		if once.String() != text {
			t.Fatalf("taken apart and put together %q is %q", text, once)
		}
		once.set(made)
		twice := newTable(once.String())
		twice.set(made)
		if len(twice.changes) > 0 {
			t.Fatalf("%q\nbecame\n%s\nand then\n%s\n%q", text, once, twice, twice.changes)
		}
		keepsLines(t, text, once)
	})
}

// keepsLines checks that each line is there still, as it was or as a comment,
// but for those of the systems.
func keepsLines(t *testing.T, text string, after *table) {
	var rest []string
	for _, l := range after.lines {
		if line := strings.TrimSuffix(l.String(), "\n"); !l.settled || strings.Contains(text, line) {
			rest = append(rest, strings.TrimPrefix(line, notOurs))
		}
	}
	changed := 0
	for line := range strings.Lines(text) {
		line = strings.TrimPrefix(strings.TrimSuffix(line, "\n"), notOurs)
		if len(rest) > 0 && rest[0] == line {
			rest = rest[1:]
		} else {
			changed++
		}
	}
	if len(rest) > 0 || changed > 3 {
		t.Fatalf("of\n%s\nwas made\n%s\nleft: %q", text, after, rest)
	}
}
