package guest

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
)

// files makes a guest of paths and contents.
func files(t *testing.T, contents map[string]string) *Root {
	t.Helper()
	dir := t.TempDir()
	for name, text := range contents {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return open(t, dir)
}

func TestDistro(t *testing.T) {
	cases := []struct {
		file, text  string
		id, version string
		family      Family
	}{
		{"etc/os-release", "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n", "debian", "12", Debian},
		{"usr/lib/os-release", "ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"24.04\"\n", "ubuntu", "24.04", Ubuntu},
		{"etc/os-release", "ID=\"almalinux\"\nID_LIKE=\"rhel centos fedora\"\nVERSION_ID=\"9.4\"\n", "almalinux", "9.4", RHEL},
		{"etc/os-release", "ID=fedora\nVERSION_ID=43\n", "fedora", "43", Fedora},
		{"etc/os-release", "ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\nVERSION_ID=\"15.6\"\n", "opensuse-leap", "15.6", SUSE},
		{"etc/os-release", "ID=amzn\nID_LIKE=\"centos rhel fedora\"\nVERSION_ID=2\n", "amzn", "2", RHEL},
		{"etc/os-release", "ID=amzn\nID_LIKE=fedora\nVERSION_ID=2023\n", "amzn", "2023", Fedora},
		{"etc/os-release", "ID=elementary\nID_LIKE='ubuntu debian'\n", "elementary", "", Ubuntu},
		{"etc/os-release", "ID=\"openEuler\"\nVERSION_ID=22.03\n", "openeuler", "22.03", RHEL},
		{"etc/os-release", "ID=arch\n", "arch", "", Arch},
		{"etc/os-release", "ID=nixos\n", "nixos", "", NixOS},
		{"etc/os-release", "# ID=debian\nNAME=$(reboot)\nID=toyos\n", "toyos", "", FamilyUnknown},
		{"etc/redhat-release", "CentOS release 6.10 (Final)\n", "centos", "6.10", RHEL},
		{"etc/redhat-release", "Red Hat Enterprise Linux Server release 5.11 (Tikanga)\n", "rhel", "5.11", RHEL},
		{"etc/redhat-release", "Fedora release 14 (Laughlin)\n", "fedora", "14", Fedora},
		{"etc/debian_version", "6.0.10\n", "debian", "6.0.10", Debian},
		{"etc/lsb-release", "DISTRIB_ID=Ubuntu\nDISTRIB_RELEASE=10.04\n", "ubuntu", "10.04", Ubuntu},
		{"etc/SuSE-release", "SUSE Linux Enterprise Server 11 (x86_64)\nVERSION = 11\nPATCHLEVEL = 4\n", "suse", "11", SUSE},
		{"etc/arch-release", "", "arch", "", Arch},
		{"etc/alpine-release", "2.7.9\n", "alpine", "2.7.9", Alpine},
		{"etc/gentoo-release", "Gentoo Base System release 2.2\n", "gentoo", "2.2", Gentoo},
		{"etc/motd", "", "", "", FamilyUnknown},
	}
	for _, c := range cases {
		d := files(t, map[string]string{c.file: c.text}).Distro()
		if d.ID != c.id || d.VersionID != c.version || d.Family != c.family {
			t.Errorf("%s %q: got %+v", c.file, c.text, d)
		}
	}
}

func TestDistroOrder(t *testing.T) {
	root := files(t, map[string]string{"etc/redhat-release": "CentOS release 6.4", "etc/oracle-release": "Oracle Linux Server release 6.4", "etc/debian_version": "7"})
	if d := root.Distro(); d.ID != "ol" || d.Source != "/etc/oracle-release" {
		t.Errorf("got %+v", d)
	}
}

// legacyFiles are in the order in which they are tried: a distribution that was
// made from another one carries that one's files too.
var legacyFiles = []struct{ file, text, id string }{
	{"etc/os-release", "ID=debian\n", "debian"},
	{"usr/lib/os-release", "ID=ubuntu\n", "ubuntu"},
	{"etc/lsb-release", "DISTRIB_ID=LinuxMint\n", "linuxmint"},
	{"etc/openmandriva-release", "OpenMandriva Lx release 3.0\n", "openmandriva"},
	{"etc/oracle-release", "Oracle Linux Server release 6.4\n", "ol"},
	{"etc/centos-release", "CentOS release 6.4\n", "centos"},
	{"etc/circle-release", "Circle Linux release 8.4\n", "circle"},
	{"etc/rocky-release", "Rocky Linux release 8.4\n", "rocky"},
	{"etc/fedora-release", "Fedora release 14\n", "fedora"},
	{"etc/redhat-release", "Red Hat Enterprise Linux Server release 5.11\n", "rhel"},
	{"etc/debian_version", "7\n", "debian"},
	{"etc/arch-release", "", "arch"},
	{"etc/gentoo-release", "Gentoo Base System release 2.2\n", "gentoo"},
	{"etc/SuSE-release", "SUSE\nVERSION = 11\n", "suse"},
	{"etc/alpine-release", "2.7.9\n", "alpine"},
}

func TestLegacyOrder(t *testing.T) {
	all := map[string]string{}
	for _, l := range legacyFiles {
		all[l.file] = l.text
	}
	root, dir := guestOf(t, all)
	for _, l := range legacyFiles {
		if d := root.Distro(); d.ID != l.id || d.Source != "/"+l.file {
			t.Errorf("%s: got %+v", l.file, d)
		}
		// what says nothing, or is no file, is passed over
		for _, broken := range []func(string) error{
			func(path string) error { return os.WriteFile(path, []byte("\n# ID=x\nID=\nDISTRIB_ID=''\n"), 0o644) },
			os.Remove,
			func(path string) error { return unix.Mkfifo(path, 0o644) },
			os.Remove,
			func(path string) error { return os.Symlink(filepath.Base(path), path) },
			os.Remove,
			func(path string) error { return os.Mkdir(path, 0o755) },
		} {
			if err := broken(filepath.Join(dir, l.file)); err != nil {
				t.Fatal(err)
			}
			if d := root.Distro(); d.Source == "/"+l.file && (d.ID == "x" || strings.Contains(l.text, "ID=")) {
				t.Errorf("%s is broken: got %+v", l.file, d)
			}
		}
	}
	if d := root.Distro(); !reflect.DeepEqual(d, Distro{}) {
		t.Errorf("got %+v", d)
	}
}

func TestImmutable(t *testing.T) {
	cases := []struct {
		files map[string]string
		want  string // in what it is; empty: it is not
	}{
		{map[string]string{"etc/os-release": "ID=debian\n", "etc/fstab": "UUID=1 / ext4 ro 0 1\noverlay /srv overlay x 0 0\n#overlay /etc overlay x 0 0\n"}, ""},
		{map[string]string{"etc/os-release": "ID=debian\n", "nix/store/x": "", "var/guix/profiles/x": "", "gnu/store/x": "", "etc/fstab": ""}, ""},
		{map[string]string{"etc/os-release": "ID=fedora\nVARIANT_ID=coreos\n", "ostree/repo/config": ""}, "ostree"},
		{map[string]string{"sysroot/ostree/repo/config": "", "ostree": "-> sysroot/ostree"}, "ostree"},
		{map[string]string{"ostree/repo": "a file"}, ""},
		{map[string]string{"etc/os-release": "ID=nixos\n"}, "NixOS"},
		{map[string]string{"etc/os-release": "-> /etc/static/os-release", "etc/NIXOS": ""}, "NixOS"},
		{map[string]string{"nix/store/x/os-release": "", "etc/static": "-> /nix/store/x"}, "NixOS"},
		{map[string]string{"etc/os-release": "ID=guix\n"}, "Guix"},
		{map[string]string{"etc/os-release": "ID=ubuntu-core\nVERSION_ID=22\n"}, "Ubuntu Core"},
		{map[string]string{"system-data/var/lib/snapd/state.json": ""}, "Ubuntu Core"},
		{map[string]string{"etc/os-release": "ID=ubuntu\n", "var/lib/snapd/state.json": ""}, ""},
		{map[string]string{"etc/os-release": "ID=flatcar\nID_LIKE=coreos\n"}, "Container Linux"},
		{map[string]string{"etc/os-release": "ID=coreos\n"}, "Container Linux"},
		{map[string]string{"etc/os-release": "ID=bottlerocket\n"}, "each boot"},
		{map[string]string{"etc/os-release": "ID=opensuse-microos\nID_LIKE=\"suse opensuse\"\n", "etc/fstab": "UUID=1 / btrfs ro 0 1\noverlay /etc overlay defaults,lowerdir=/sysroot/etc,upperdir=/sysroot/var/lib/overlay/etc 0 0\n"}, "overlay"},
		{map[string]string{"etc/os-release": "ID=opensuse-microos\n", "etc/fstab": "UUID=1 / btrfs ro 0 1\n"}, ""},
		{map[string]string{}, ""},
	}
	for _, c := range cases {
		root, _ := guestOf(t, c.files)
		what, ok := root.Immutable()
		if ok != (c.want != "") || !strings.Contains(what, c.want) {
			t.Errorf("%v: %q, %v, want %q", c.files, what, ok, c.want)
		}
	}
}

// MicroOS's root is a snapshot with the property ro.
func TestImmutableSnapshot(t *testing.T) {
	need.Root(t)
	need.Tools(t, "btrfs")
	dir := need.Mounted(t, "btrfs", "120M")
	must := func(argv ...string) {
		t.Helper()
		if _, err := (run.Cmd{What: "prepare the guest", Argv: argv}).Run(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	must("btrfs", "subvolume", "create", dir+"/root")
	must("mkdir", dir+"/root/etc")
	must("btrfs", "subvolume", "snapshot", "-r", dir+"/root", dir+"/snapshot")
	for name, want := range map[string]bool{"root": false, "snapshot": true} {
		root, err := Open(dir + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if what, ok := root.Immutable(); ok != want {
			t.Errorf("%s: %q, %v", name, what, ok)
		}
		root.Close()
	}
}

func TestIsRoot(t *testing.T) {
	cases := []struct {
		entries []string
		want    bool
	}{
		{[]string{"etc/fstab", "bin -> usr/bin"}, true},
		{[]string{"etc/hosts", "bin/"}, true},
		{[]string{"etc/hosts -> ../srv/hosts", "srv/hosts", "bin/"}, true},
		{[]string{"etc/hosts"}, false},
		{[]string{"etc/", "bin/"}, false},
		{[]string{"etc/fstab/", "bin/"}, false},
		{[]string{"etc/fstab |", "bin/"}, false},
		{[]string{"etc -> /", "fstab", "bin/"}, false},
		{[]string{"etc/fstab", "bin -> sbin"}, false},
		{[]string{"grub/grub.cfg"}, false},
	}
	for _, c := range cases {
		root, _ := tree(t, c.entries...)
		if got := root.IsRoot(); got != c.want {
			t.Errorf("%v: %v", c.entries, got)
		}
	}
}

func TestAddFSTab(t *testing.T) {
	root := files(t, map[string]string{"etc/fstab": "# mine\nUUID=1 / ext4 defaults 0 1\nUUID=2 /srv xfs\t defaults\n/swapfile none swap sw 0 0"})
	for range 2 { // the second time changes nothing
		for _, e := range []FSTabEntry{
			{Device: "UUID=3", Mountpoint: "/srv", Type: "ext4", Options: []string{"defaults", "nofail"}},
			{Device: "UUID=4", Mountpoint: "none", Type: "swap", Options: []string{"sw"}},
		} {
			if err := root.AddFSTab(e); err != nil {
				t.Fatal(err)
			}
		}
	}
	text, err := root.ReadFile("/etc/fstab", 1000)
	want := "# mine\nUUID=1 / ext4 defaults 0 1\n/swapfile none swap sw 0 0\nUUID=3 /srv ext4 defaults,nofail 0 2\nUUID=4 none swap sw 0 0\n"
	if err != nil || string(text) != want {
		t.Errorf("got %q, %v", text, err)
	}
	empty := files(t, map[string]string{"etc/hosts": ""})
	if err := empty.AddFSTab(FSTabEntry{Device: "UUID=5", Mountpoint: "/x", Type: "btrfs", Options: []string{"defaults"}}); err != nil {
		t.Fatal(err)
	}
	if text, err := empty.ReadFile("/etc/fstab", 1000); err != nil || string(text) != "UUID=5 /x btrfs defaults 0 0\n" {
		t.Errorf("got %q, %v", text, err)
	}
}

func TestFSTab(t *testing.T) {
	root := files(t, map[string]string{"etc/fstab": `# comment
PARTUUID=abc / ext4 rw,discard,x-systemd.growfs 0 1
  UUID=12-34	/boot/efi	vfat	umask=0077
LABEL=my\040disk /mnt/a\040b\134c xfs
#/dev/vdb1 /x ext4
/dev/vdb1 /two

//server/share /mnt/share cifs  credentials=/x # tail
`})
	got, err := root.FSTab()
	want := []FSTabEntry{
		{"PARTUUID=abc", "/", "ext4", []string{"rw", "discard", "x-systemd.growfs"}, 2},
		{"UUID=12-34", "/boot/efi", "vfat", []string{"umask=0077"}, 3},
		{"LABEL=my disk", "/mnt/a b\\c", "xfs", nil, 4},
		{"//server/share", "/mnt/share", "cifs", []string{"credentials=/x"}, 8},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	root = files(t, map[string]string{"etc/fstab": strings.Repeat("a b c\n", 2000)})
	if _, err := root.FSTab(); err == nil {
		t.Error("2000 entries were taken")
	}
	root = files(t, nil)
	if _, err := root.FSTab(); !os.IsNotExist(err) && !strings.Contains(err.Error(), "no such file") {
		t.Errorf("got %v", err)
	}
}

func FuzzTexts(f *testing.F) {
	f.Add("ID=\"x\\\"\nA='b", "UUID=\\040 / ext4 \\999")
	f.Fuzz(func(t *testing.T, release, fstab string) {
		osRelease("x", []byte(release))
		parseFSTab(fstab)
	})
}
