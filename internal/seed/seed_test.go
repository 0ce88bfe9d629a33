package seed

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/network"
	"ganeti-instance-image/internal/osapi"
	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/settings"
)

var instance = osapi.Instance{Name: "web.example.org", UUID: "5b7bd4d2-3fa1-4d5d-b2ff-e5a7a1d6a7cc"}

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0XhGo0e3l5RA9mBeTQh9WTf0hZ0Zk3c1u8bTq9mJ4S me@desk: work"

func find(t *testing.T, files []File, name string) string {
	t.Helper()
	for _, f := range files {
		if f.Name == name {
			return string(f.Data)
		}
	}
	return ""
}

func TestFilesMetaData(t *testing.T) {
	files, err := Files(&settings.Settings{}, instance, nil, Facts{})
	if err != nil {
		t.Fatal(err)
	}
	want := "instance-id: \"5b7bd4d2-3fa1-4d5d-b2ff-e5a7a1d6a7cc\"\nlocal-hostname: \"web.example.org\"\n"
	if got := find(t, files, "meta-data"); got != want {
		t.Errorf("meta-data:\n%s", got)
	}
	if got := find(t, files, "user-data"); got != "#cloud-config\n{}\n" {
		t.Errorf("user-data: %q", got)
	}
	if got := find(t, files, "network-config"); got != "version: 2\nethernets: {}\n" {
		t.Errorf("network-config: %q", got)
	}
	if len(files) != 3 {
		t.Errorf("%d files, want no vendor-data", len(files))
	}
	files, err = Files(&settings.Settings{}, osapi.Instance{Name: "a"}, nil, Facts{UserData: []byte("#!/bin/sh\n")})
	if err != nil || !strings.Contains(find(t, files, "meta-data"), "instance-id: \"a\"") || find(t, files, "user-data") != "#!/bin/sh\n" {
		t.Errorf("without a UUID: %v, %v", files, err)
	}
}

func TestFilesVendorData(t *testing.T) {
	dns := []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1")}
	cases := []struct {
		name string
		set  settings.Settings
		bash bool
		want string
	}{
		{"nothing", settings.Settings{DNSServers: dns, Overlay: "x"}, true, ""},
		{"a user", settings.Settings{Cinit: settings.Cinit{User: "op", SSHKeys: []string{key}}}, true,
			"users:\n  - name: \"op\"\n    sudo: \"ALL=(ALL) NOPASSWD:ALL\"\n    shell: \"/bin/bash\"\n    lock_passwd: true\n    ssh_authorized_keys:\n      - \"" + key + "\"\n"},
		{"a user, no bash, no keys", settings.Settings{Cinit: settings.Cinit{User: "no"}}, false,
			"users:\n  - name: \"no\"\n    sudo: \"ALL=(ALL) NOPASSWD:ALL\"\n    lock_passwd: true\n"},
		{"keys of the default user", settings.Settings{Cinit: settings.Cinit{SSHKeys: []string{key, "ssh-rsa A"}}}, true,
			"ssh_authorized_keys:\n  - \"" + key + "\"\n  - \"ssh-rsa A\"\n"},
		{"switches", settings.Settings{Cinit: settings.Cinit{SSHPasswordAuth: settings.Yes, DisableRoot: settings.No, ManageResolvConf: settings.No}, DNSServers: dns}, true,
			"ssh_pwauth: true\ndisable_root: false\nmanage_resolv_conf: false\n"},
		{"resolv.conf", settings.Settings{Cinit: settings.Cinit{ManageResolvConf: settings.Yes}, DNSServers: dns, DNSSearch: []string{"example.org"}}, true,
			"manage_resolv_conf: true\nresolv_conf:\n  nameservers:\n    - \"192.0.2.2\"\n    - \"2001:db8::1\"\n  searchdomains:\n    - \"example.org\"\n"},
	}
	for _, c := range cases {
		files, err := Files(&c.set, instance, nil, Facts{Bash: c.bash})
		want := c.want
		if want != "" {
			want = "#cloud-config\n" + want
		}
		got := find(t, files, "vendor-data")
		if err != nil || got != want {
			t.Errorf("%s:\n%s%v, want\n%s", c.name, got, err, want)
		}
		schema(t, find(t, files, "user-data"))
		if got != "" {
			schema(t, got)
		}
	}
}

// schema has cloud-init judge a cloud-config.
func schema(t *testing.T, text string) {
	t.Helper()
	need.Tools(t, "cloud-init")
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	result, err := run.Cmd{What: "check the schema", Argv: []string{"cloud-init", "schema", "--config-file", file}}.Run(t.Context())
	if err != nil || !strings.Contains(string(result.Stdout), "Valid") || strings.Contains(string(result.Stdout), "eprecat") {
		t.Errorf("%v: %s\nof:\n%s", err, result.Stdout, text)
	}
}

// static is a NIC with an address and name servers.
var static = []network.NIC{{
	Name: "nic0", MAC: net.HardwareAddr{0x11, 0x22, 0x33, 0x44, 0x55, 0x10},
	Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.10/24")},
	Routes:    []network.Route{{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("192.0.2.1")}},
	DNS:       []netip.Addr{netip.MustParseAddr("192.0.2.2")},
}}

func TestFilesNetwork(t *testing.T) {
	files, err := Files(&settings.Settings{}, instance, static, Facts{CloudInit: guest.CloudInit{Major: 20, Minor: 4, Renderer: "eni"}})
	if got := find(t, files, "network-config"); err != nil || !strings.Contains(got, "set-name: \"eth0\"\n    addresses:\n      - \"192.0.2.10/24\"\n") {
		t.Errorf("%v:\n%s", err, got)
	}
}
