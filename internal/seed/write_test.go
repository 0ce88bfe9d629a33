package seed

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/settings"
)

// image makes a guest of paths and contents; a content "-> x" makes a link.
func image(t *testing.T, files map[string]string) (*guest.Root, string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		err := error(nil)
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := guest.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, dir
}

func seedFiles(t *testing.T) []File {
	t.Helper()
	files, err := Files(&settings.Settings{Cinit: settings.Cinit{User: "op"}}, instance, static, Facts{UserData: []byte("#cloud-config\npassword: secret\n")})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// runIdentify runs the ds-identify of cloud-init's package on a tree and returns
// the data sources it found. An error means that cloud-init would stay off.
func runIdentify(t *testing.T, dir string) (string, error) {
	t.Helper()
	need.File(t, "/usr/lib/cloud-init/ds-identify")
	_, err := run.Cmd{What: "identify", Argv: []string{"env", "PATH_ROOT=" + dir, "PATH_RUN=" + dir + "/run", "PATH_PROC_CMDLINE=/dev/null", "DI_LOG=" + dir + "/log",
		"sh", "/usr/lib/cloud-init/ds-identify", "--force"}}.Run(t.Context())
	found, _ := os.ReadFile(dir + "/run/cloud-init/cloud.cfg")
	return string(found), err
}

func TestWrite(t *testing.T) {
	need.Root(t)
	root, dir := image(t, map[string]string{
		"etc/cloud/cloud.cfg":                         "users: [default]\n",
		"etc/cloud/cloud.cfg.d/90_dpkg.cfg":           "datasource_list: [ Ec2, Azure ]\n",
		"var/lib/cloud/seed/nocloud/meta-data":        "instance-id: old",
		"var/lib/cloud/seed/nocloud-net/user-data":    "old",
		"var/lib/cloud/instances/old/sem/config_ssh":  "",
		"var/lib/cloud/instance":                      "-> /var/lib/cloud/instances/old",
		"var/lib/cloud/data/upgraded-network":         "",
		"var/lib/cloud/sem/x":                         "",
		"var/lib/cloud/scripts/per-boot/kept":         "",
		"etc/cloud/cloud-init.disabled":               "",
		"etc/cloud/ds-identify.cfg":                   "policy: disabled\n",
		"etc/cloud/cloud.cfg.d/99_ganeti.cfg":         "cloud_init_modules: [ssh]\n",
		"etc/cloud/cloud.cfg.d/zz-ganeti-ssh.cfg":     "ssh_deletekeys: false\n",
		"etc/netplan/50-cloud-init.yaml":              "network: {version: 2}",
		"etc/netplan/90-default.yaml":                 "network:\n  version: 2\n  ethernets:\n    all-en: {match: {name: en*}, dhcp4: true}\n",
		"etc/netplan/01-network-manager-all.yaml":     "network: {version: 2, renderer: NetworkManager}\n",
		"etc/sysconfig/network-scripts/ifcfg-eth0":    "# Created by cloud-init on instance boot automatically, do not edit.\n",
		"etc/sysconfig/network-scripts/ifcfg-lo":      "DEVICE=lo\n",
		"etc/systemd/network/10-cloud-init-x.network": "",
		"etc/systemd/network/80-dhcp.network":         "",
	})
	if _, err := runIdentify(t, dir); err == nil {
		t.Error("cloud-init was not off before")
	}
	changes, err := Write(root, seedFiles(t))
	if err != nil {
		t.Fatal(err)
	}
	found, err := runIdentify(t, dir)
	if err != nil || found != "datasource_list: [ NoCloud, None ]\n" {
		t.Errorf("ds-identify: %q, %v", found, err)
	}
	all := strings.Join(changes, "\n")
	for _, gone := range []string{"/var/lib/cloud/seed/nocloud-net", "/var/lib/cloud/instances", "/var/lib/cloud/instance", "/var/lib/cloud/data", "/var/lib/cloud/sem",
		"/etc/cloud/cloud-init.disabled", "/etc/cloud/ds-identify.cfg", "/etc/cloud/cloud.cfg.d/99_ganeti.cfg", guest.KeepHostKeysFile, "/etc/netplan/50-cloud-init.yaml",
		"/etc/netplan/90-default.yaml", "/etc/sysconfig/network-scripts/ifcfg-eth0", "/etc/systemd/network/10-cloud-init-x.network"} {
		if _, err := root.Lstat(gone); err == nil || !strings.Contains(all, " "+gone) {
			t.Errorf("%s: %v; the report:\n%s", gone, err, all)
		}
	}
	for _, kept := range []string{"/var/lib/cloud/scripts/per-boot/kept", "/etc/netplan/90-default.yaml.ganeti-saved", "/etc/netplan/01-network-manager-all.yaml",
		"/etc/sysconfig/network-scripts/ifcfg-lo", "/etc/systemd/network/80-dhcp.network", "/etc/cloud/cloud.cfg.d/90_dpkg.cfg"} {
		if !root.Exists(kept) {
			t.Errorf("%s is gone", kept)
		}
	}
	checkSeed(t, root)
}

// checkSeed looks at the modes and for nothing else in the directory.
func checkSeed(t *testing.T, root *guest.Root) {
	t.Helper()
	if info, err := root.Lstat(seedDir); err != nil || info.Mode != fs.ModeDir|0o700 || info.UID != 0 {
		t.Errorf("%s: %+v, %v", seedDir, info, err)
	}
	names, err := root.ReadDir(seedDir)
	if err != nil || strings.Join(names, " ") != "meta-data network-config user-data vendor-data" {
		t.Errorf("%v, %v", names, err)
	}
	for _, name := range names {
		if info, err := root.Lstat(seedDir + "/" + name); err != nil || info.Mode != 0o600 || info.UID != 0 {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
	if got, err := root.ReadFile(configFile, 1000); err != nil || !strings.Contains("\n"+string(got), "\ndatasource_list: [ NoCloud, None ]\n") {
		t.Errorf("%s, %v", got, err)
	}
}

func TestWriteTwiceAndWithoutAnything(t *testing.T) {
	need.Root(t)
	root, _ := image(t, nil)
	for range 2 {
		if _, err := Write(root, seedFiles(t)); err != nil {
			t.Fatal(err)
		}
	}
	checkSeed(t, root)
}

func TestWriteEditsConfiguration(t *testing.T) {
	cases := []struct{ file, text, want string }{
		{"cloud.cfg.d/99-disable.cfg", "network: {config: disabled}\n", ""},
		{"cloud.cfg.d/99-disable.cfg", "# no network\nnetwork:\n  config: disabled\n", ""},
		{"cloud.cfg.d/50-curtin.cfg", "# kept\npassword: x\nnetwork: {version: 1, config: []}\n# also kept\nfoo: [a, b]\n", "# kept\npassword: x\n# also kept\nfoo: [a, b]\n"},
		{"cloud.cfg", "network:\n  config: disabled\nusers: [default]\n", "users: [default]\n"},
		{"cloud.cfg.d/99-seed.cfg", "datasource: {NoCloud: {seedfrom: 'http://x/'}, Ec2: {a: b}}\n", "datasource: {Ec2: {a: b}}\n"},
		{"cloud.cfg.d/99-seed.cfg", "datasource:\n  NoCloud:\n    fs_label: null\n", ""},
		{"cloud.cfg.d/zzz.cfg", "datasource_list: [ Ec2 ]\nx: y\n", "x: y\n"},
		{"cloud.cfg.d/90_dpkg.cfg", "datasource_list: [ Ec2 ]\n", "datasource_list: [ Ec2 ]\n"},
		{"cloud.cfg.d/broken.cfg", "network: [\n", "network: [\n"},
		{"cloud.cfg.d/list.cfg", "- network\n", "- network\n"},
		{"cloud.cfg.d/anchor.cfg", "network: &n {config: disabled}\nx: *n\n", ""},
	}
	for _, c := range cases {
		root, dir := image(t, map[string]string{"etc/cloud/" + c.file: c.text})
		if _, err := Write(root, seedFiles(t)); err != nil {
			t.Errorf("%s %q: %v", c.file, c.text, err)
		}
		got, err := os.ReadFile(dir + "/etc/cloud/" + c.file)
		if string(got) != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%s %q: got %q, %v", c.file, c.text, got, err)
		}
		if found, err := runIdentify(t, dir); err != nil || found != "datasource_list: [ NoCloud, None ]\n" {
			t.Errorf("%s %q: ds-identify: %q, %v", c.file, c.text, found, err)
		}
	}
}

func TestIdentifyConfiguration(t *testing.T) {
	for text, removed := range map[string]bool{
		"policy: search,found=all,maybe=none,notfound=disabled\n": false,
		"policy: enabled\n": false, "# policy: disabled\n": false,
		"policy: disabled\n": true, "datasource: Ec2\n": true,
	} {
		root, dir := image(t, map[string]string{"etc/cloud/ds-identify.cfg": text})
		if _, err := Write(root, seedFiles(t)); err != nil {
			t.Fatal(err)
		}
		if root.Exists("/etc/cloud/ds-identify.cfg") == removed {
			t.Errorf("%q: removed is not %v", text, removed)
		}
		if _, err := runIdentify(t, dir); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// A guest whose directories are links to the node's.
func TestWriteStaysInTheGuest(t *testing.T) {
	need.Root(t)
	node := t.TempDir()
	for _, name := range []string{"etc/instance", "etc/seed/nocloud/user-data", "cloud/cloud.cfg.d/x.cfg", "netplan/a.yaml"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(node, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(node, name), []byte("network: {ethernets: {}}"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	up := "../../../../../../../../.."
	cases := []map[string]string{
		{"var/lib/cloud": "-> " + node + "/etc"},
		{"var/lib/cloud": "-> " + up + node + "/etc", "etc/cloud": "-> " + up + node + "/cloud"},
		{"etc": "-> " + node + "/etc", "var": "-> " + node},
		{"etc": "-> /", "var/lib/cloud/seed": "-> " + node + "/etc/seed"},
		{"etc/cloud/cloud.cfg.d": "-> " + node + "/cloud/cloud.cfg.d", "etc/netplan": "-> " + node + "/netplan"},
		{"var/lib/cloud/seed/nocloud": "-> " + node + "/etc/seed/nocloud"},
		{"var/lib/cloud": "-> cloud"},
		{"etc/cloud/cloud.cfg.d/zz-ganeti.cfg": "-> " + node + "/etc/instance"},
	}
	for _, c := range cases {
		root, _ := image(t, c)
		_, err := Write(root, seedFiles(t))
		if c["var/lib/cloud"] == "-> cloud" && err == nil {
			t.Error("a loop went unnoticed")
		}
		if err != nil && !strings.Contains(err.Error(), "in the guest") {
			t.Errorf("%v: %v", c, err)
		}
		count := 0
		_ = filepath.WalkDir(node, func(path string, entry fs.DirEntry, err error) error {
			if data, readErr := os.ReadFile(path); entry.Type().IsRegular() && (readErr != nil || string(data) != "network: {ethernets: {}}") {
				t.Fatalf("%v: %s of the node changed", c, path)
			}
			count++
			return err
		})
		if count != 11 {
			t.Fatalf("%v: the node has %d files", c, count)
		}
	}
}

func TestWriteNamesTheTrap(t *testing.T) {
	root, dir := image(t, map[string]string{"etc/cloud/cloud.cfg.d/x": ""})
	if err := unix.Mkfifo(dir+configFile, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(root, seedFiles(t)); err == nil || !strings.Contains(err.Error(), configFile) || !strings.Contains(err.Error(), "named pipe") {
		t.Errorf("got %v", err)
	}
}

func FuzzGiveWay(f *testing.F) {
	f.Add("network: {config: disabled}\ndatasource: {NoCloud: {}}\n")
	f.Add("network: &n {config: disabled}\nx: *n\n")
	f.Fuzz(func(t *testing.T, text string) {
		root, _ := image(t, map[string]string{"etc/cloud/cloud.cfg.d/zzz.cfg": text, "etc/netplan/a.yaml": text})
		if _, err := Write(root, []File{{"meta-data", nil}}); err != nil {
			t.Error(err)
		}
	})
}
