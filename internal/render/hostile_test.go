package render

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What stands in the way of a file is no reason to follow it out of the guest,
// to wait for it, or to leave the guest without a network.
func TestInTheWay(t *testing.T) {
	cases := []struct {
		name  string
		guest map[string]string
		files []string
	}{
		{"dhcpcd", dhcpcdGuest, []string{dhcpcdFile, dhcpcdHook}},
		{"netifrc", with(gentooGuest, map[string]string{"etc/conf.d/other": ""}), []string{netifrcFile}},
		{"ifcfg", rhel6, []string{scriptsDir + "/ifcfg-nic0", scriptsDir + "/route-nic0"}},
		{"wicked", wickedGuest, []string{wickedDir + "/ifcfg-nic0"}},
		{"ifupdown", with(ifupdownGuest, dhcpPrograms, map[string]string{"etc/resolv.conf": ""}), []string{dhcpcdFile, "/etc/dhcp/dhclient-enter-hooks.d/ganeti", "/etc/udhcpc/udhcpc.conf", "/etc/systemd/network/a.link"}},
		{"netplan", netplanGuest, []string{"/etc/netplan/x.yaml"}},
		{"networkd", networkdGuest, []string{"/etc/systemd/network/50-x.network"}},
		{"NetworkManager", managerGuest, []string{keyfilesDir + "/x"}},
	}
	secret := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(secret, []byte("outside"), 0o644); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]func(path string) error{
		"fifo":           func(path string) error { return unix.Mkfifo(path, 0o644) },
		"link to itself": func(path string) error { return os.Symlink(filepath.Base(path), path) },
		"link out":       func(path string) error { return os.Symlink(secret, path) },
		"dangling link":  func(path string) error { return os.Symlink("/nowhere/x", path) },
	}
	for _, c := range cases {
		for kind, put := range kinds {
			root, dir := guestOf(t, c.guest)
			for _, file := range c.files {
				path := filepath.Join(dir, file)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
				if err := put(path); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := Write(root, familyNICs(), Options{}); err != nil {
				t.Errorf("%s, a %s: %v", c.name, kind, err)
			}
			if text, err := os.ReadFile(secret); err != nil || string(text) != "outside" {
				t.Fatalf("%s, a %s: wrote out of the guest: %q, %v", c.name, kind, text, err)
			}
		}
	}
}
