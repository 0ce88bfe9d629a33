package settings

import (
	"encoding/base64"
	"os"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/osapi"
)

func TestParametersList(t *testing.T) {
	installed, err := os.ReadFile("../../os-def/parameters.list")
	if err != nil || string(installed) != string(ParametersList()) {
		t.Errorf("os-def/parameters.list is not what the table says; write it anew with UPDATE=1: %v", err)
	}
	// As Ganeti reads it: every line, split once at white space.
	var names []string
	for line := range strings.Lines(string(installed)) {
		name, description, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if !ok || strings.TrimSpace(description) == "" || name == "" {
			t.Errorf("%q is not a name and a description", line)
		}
		for _, c := range line {
			if c > '~' {
				t.Errorf("%q is not ASCII", line)
			}
		}
		names = append(names, name)
	}
	want := "cdinstall image_name arch image_type image_url swap swap_size boot_size filesystem partition_table esp_size grub kernel_args nomount grow seed_disk disk_1 " +
		"disk_2 disk_3 disk_4 disk_5 disk_6 disk_7 disk_8 disk_9 disk_10 disk_11 disk_12 disk_13 disk_14 disk_15 " +
		"overlay subnet identity identity_keep import_identity root_password root_password_hash user_name user_password user_password_hash ssh_keys ssh_keys_url guest_files " +
		"cinit_user cinit_ssh_key cinit_ssh_pwauth cinit_disable_root cinit_manage_resolv_conf dns_servers dns_search user_data user_data_base64 user_data_url os-image"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestNoParameterNamesAFileOfTheNode(t *testing.T) {
	for _, p := range parameters() {
		if strings.HasSuffix(p.name, "_DIR") || strings.HasSuffix(p.name, "_FILE") {
			t.Errorf("%s is an OS parameter", p.name)
		}
		if p.name == "" {
			continue
		}
		if _, err := p.kind.check("/etc/shadow"); err == nil && !slices.Contains([]string{"KERNEL_ARGS", "USER_DATA", "ROOT_PASSWORD", "USER_PASSWORD"}, p.name) {
			t.Errorf("%s takes a path", p.param)
		}
	}
}

// good are parameters that pass where ALLOW_URLS is https://mirror/images.
var good = map[string]string{
	"cdinstall": "yes", "image_name": "debian-12", "arch": "x86_64", "image_type": "qcow2", "image_url": "https://mirror/images/x.qcow2",
	"swap": "no", "swap_size": "2G", "boot_size": "256", "filesystem": "xfs", "partition_table": "gpt", "esp_size": "64", "grub": "auto", "kernel_args": "quiet", "nomount": "no", "grow": "no",
	"overlay": "web", "subnet": "vlan42", "cinit_user": "admin", "cinit_ssh_key": key, "cinit_ssh_pwauth": "0", "cinit_disable_root": "yes",
	"cinit_manage_resolv_conf": "no", "dns_servers": "192.0.2.1", "dns_search": "example.org", "user_data": "#cloud-config\n", "os_image": "/x.img",
	"seed_disk": "seed", "disk_1": "swap", "disk_2": "data:xfs:/srv", "disk_3": "seed", "disk_4": "swap", "disk_5": "swap", "disk_6": "swap", "disk_7": "swap",
	"disk_8": "swap", "disk_9": "swap", "disk_10": "swap", "disk_11": "swap", "disk_12": "swap", "disk_13": "swap", "disk_14": "swap", "disk_15": "data:ext4:/a/b",
	"identity": "yes", "identity_keep": "machine-id", "import_identity": "renew", "root_password": "a b:c", "user_name": "admin", "user_password_hash": sha512, "ssh_keys": key,
	"ssh_keys_url": "https://mirror/images/k", "guest_files": `[{"path": "/etc/motd", "text": "hello"}]`,
}

func TestParametersAreTaken(t *testing.T) {
	s := newSite(t).with("ALLOW_URLS=https://mirror/images", "-")
	set := s.mustLoad(good)
	for _, p := range parameters() {
		if p.name == "" || slices.Contains([]string{"USER_DATA_URL", "ROOT_PASSWORD_HASH", "USER_PASSWORD"}, p.name) {
			continue
		}
		if got := set.Origin(p.name).String(); got != "OS parameter "+p.param {
			t.Errorf("%s is from %s", p.name, got)
		}
	}
	if !set.OSImage || set.ImageURL != good["image_url"] || set.Cinit.SSHPasswordAuth != No || set.SwapSize.String() != "2 GiB" {
		t.Errorf("got %+v", set)
	}
	if err := Verify(t.Context(), s.Site, osapi.Instance{Params: good}, nil); err != nil {
		t.Error(err)
	}
	encoded := base64.StdEncoding.EncodeToString([]byte("#!/bin/sh\necho 'x'\n"))
	if set := s.mustLoad(map[string]string{"user_data_base64": encoded[:5] + "\n" + encoded[5:]}); set.UserData != "#!/bin/sh\necho 'x'\n" {
		t.Errorf("user_data_base64: %q", set.UserData)
	}
}

func TestParametersAreRefused(t *testing.T) {
	const secret = "s3cret"
	cases := []struct{ name, value, want string }{
		{"image_file", "/x", `there is none of that name; there are cdinstall image_name`},
		{"image_dir", "/x", "there is none of that name"},
		{"customize_dir", "/x", "there is none of that name"},
		{"user_data_file", "/x", "there is none of that name"},
		{"img_id", secret, "there is none of that name"},
		{"cdinstall", secret, "want yes or no"},
		{"image_name", "../" + secret, "one name"},
		{"image_name", secret + "\x00", "one name"},
		{"overlay", "/" + secret, "one name"},
		{"subnet", "../instances/" + secret, "one name"},
		{"arch", secret + "/", "letters"},
		{"image_type", secret, "want one of"},
		{"swap", secret, "want yes or no"},
		{"swap_size", secret, "want a number"},
		{"swap_size", "9999999999999T", "want a number"},
		{"boot_size", secret, "want a number"},
		{"filesystem", secret, "want one of"},
		{"kernel_args", "x\n" + secret, "one line"},
		{"nomount", secret, "want yes or no"},
		{"grow", secret, "want yes or no"},
		{"cinit_user", secret + ":x", "a user's name"},
		{"cinit_ssh_key", "ssh-rsa " + secret, "line 1 is not"},
		{"cinit_ssh_pwauth", secret, "want yes or no"},
		{"dns_servers", secret, "want an IP"},
		{"dns_search", "/" + secret, "want domain"},
		{"user_data_base64", "!" + secret, "base64"},
		{"user_data_base64", "AAAA", "NUL"},
		{"image_url", secret, "begins with http"},
		{"image_url", "https://other/" + secret, "under no prefix of ALLOW_URLS"},
		{"hook_timeout", "5", "there is none of that name"},
		{"initramfs", "rebuild", "there is none of that name"},
		{"identity", secret, "want yes or no"},
		{"identity_keep", secret, "entry 1 of the list: want one of"},
		{"root_password", "x\n" + secret, "want one line"},
		{"root_password", secret + "\x00", "want one line"},
		{"root_password_hash", secret, "want a whole hash"},
		{"user_name", "../" + secret, "a user's name"},
		{"user_password", strings.Repeat(secret, 50), "want one line"},
		{"user_password_hash", sha512 + "\n" + secret, "want a whole hash"},
		{"ssh_keys", secret, "line 1 is not"},
		{"ssh_keys_url", "https://other/" + secret, "under no prefix of ALLOW_URLS"},
		{"guest_files", `[{"path": "` + secret + `", "text": ""}]`, "file 1 of the list: path"},
		{"user_data_url", "file:///" + secret, "begins with http"},
	}
	s := newSite(t).with("ALLOW_URLS=https://mirror/images", "-")
	for _, c := range cases {
		params := map[string]string{c.name: c.value}
		_, err := s.load(params)
		verify := Verify(t.Context(), s.Site, osapi.Instance{Params: params}, nil)
		for _, err := range []error{err, verify} {
			if err == nil || !strings.Contains(err.Error(), "OS parameter ") || !strings.Contains(err.Error(), c.name) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s=%q: got %v, want %q", c.name, c.value, err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("%s: the message shows the value: %v", c.name, err)
			}
		}
		if err := CheckParameters(map[string]string{c.name: ""}, nil); err != nil {
			t.Errorf("an empty %s: %v", c.name, err)
		}
	}
	for _, of := range []string{"root", "user"} {
		password, hash := of+"_password", of+"_password_hash"
		err := CheckParameters(map[string]string{password: secret, hash: sha512}, nil)
		if err == nil || err.Error() != "cannot use both OS parameters "+password+" and "+hash+": give one of them" {
			t.Errorf("both of %s: %v", of, err)
		}
	}
	for _, two := range [][2]string{{"user_data", "user_data_base64"}, {"user_data", "user_data_url"}, {"user_data_base64", "user_data_url"}} {
		err := CheckParameters(map[string]string{two[0]: "eA==", two[1]: "https://mirror/images/eA=="}, &Settings{AllowURLs: []string{"https://mirror"}})
		if two[1] == "user_data_base64" {
			err = CheckParameters(map[string]string{two[0]: "eA==", two[1]: "eA=="}, nil)
		}
		if err == nil || !strings.Contains(err.Error(), "both OS parameters "+two[0]+" and "+two[1]) {
			t.Errorf("%v: %v", two, err)
		}
	}
}

func TestDenyParameters(t *testing.T) {
	s := newSite(t).with("\nDENY_PARAMETERS=\"swap os-image\"\n", "-")
	for _, name := range []string{"swap", "os_image"} {
		_, err := s.load(map[string]string{name: "yes"})
		if err == nil || !strings.Contains(err.Error(), "DENY_PARAMETERS of "+s.defaults()+":2 forbids it") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.load(map[string]string{"swap": "", "grow": "no"}); err != nil {
		t.Error(err)
	}
}

func TestAllowedURLs(t *testing.T) {
	prefixes := []string{"https://Mirror.example.org/images", "http://10.0.0.1:8080/a/", "https://all.example.org"}
	cases := []struct {
		url string
		ok  bool
	}{
		{"https://mirror.example.org/images/x.qcow2", true},
		{"https://mirror.example.org:443/images/a/b.raw", true},
		{"https://MIRROR.example.org/images/x%20y.raw", true},
		{"https://mirror.example.org/images", true},
		{"http://10.0.0.1:8080/a/x", true},
		{"https://all.example.org/x", true},
		{"https://all.example.org", true},

		{"http://mirror.example.org/images/x", false},
		{"https://mirror.example.org:8443/images/x", false},
		{"https://mirror.example.org/imagesX/x", false},
		{"https://mirror.example.org/image", false},
		{"https://mirror.example.org/", false},
		{"https://mirror.example.org/images/../x", false},
		{"https://mirror.example.org/images/./x", false},
		{"https://mirror.example.org/images/..", false},
		{"https://mirror.example.org/images/%2e%2e/x", false},
		{"https://mirror.example.org/images/%2E./x", false},
		{"https://mirror.example.org/images/a%2fb", false},
		{"https://mirror.example.org/images/..%2fx", false},
		{"https://mirror.example.org/images/%252e%252e/x", false},
		{"https://mirror.example.org/images/..\\x", false},
		{"https://mirror.example.org/images/%5c..%5cx", false},
		{"https://mirror.example.org/images/..;/x", false},
		{"https://mirror.example.org/images/;/x", false},
		{"https://mirror.example.org/images//x", false},
		{"https://mirror.example.org//images/x", false},
		{"https://mirror.example.org/images/x%00", false},
		{"https://mirror.example.org/images/x%0d%0ay", false},
		{"https://mirror.example.org/images/x\n", false},
		{"https://mirror.example.org/images/x?y", false},
		{"https://mirror.example.org/images/x?", false},
		{"https://mirror.example.org/images/x#y", false},
		{"https://mirror.example.org@evil.example.net/images/x", false},
		{"https://user@mirror.example.org/images/x", false},
		{"https://mirror.example.org.evil.example.net/images/x", false},
		{"https://evil.example.net/https://mirror.example.org/images/x", false},
		{"https:mirror.example.org/images/x", false},
		{"//mirror.example.org/images/x", false},
		{"https:///mirror.example.org/images/x", false},
		{"https://mirror.example.org\\@evil.example.net/images/x", false},
		{" https://mirror.example.org/images/x", false},
		{"http://10.0.0.1/a/x", false},
		{"http://10.0.0.1:8080/ab", false},
		{"file:///etc/shadow", false},
		{"https://", false},
	}
	for _, c := range cases {
		for _, name := range []string{"image_url", "user_data_url", "ssh_keys_url"} {
			err := CheckParameters(map[string]string{name: c.url}, &Settings{AllowURLs: prefixes})
			if (err == nil) != c.ok {
				t.Errorf("%s=%q: %v", name, c.url, err)
			}
			if CheckParameters(map[string]string{name: c.url}, nil) == nil {
				t.Errorf("%q is taken with no ALLOW_URLS", c.url)
			}
		}
	}
}

func TestVerify(t *testing.T) {
	swap := map[string]string{"swap": "no"}
	cases := []struct {
		what, defaults, variant string
		params                  map[string]string
		want                    string // of the error; empty: none
	}{
		{"no parameter", "", "", nil, ""},
		{"a variant that is missing here", "", "-", swap, ""},
		{"a broken file", "\nX=$(id)", "", swap, "default/ganeti-instance-image:2: "},
		{"a broken variant", "", "X=$(id)", swap, "variants/debian.conf:1: "},
		{"a broken ALLOW_URLS", "ALLOW_URLS=x", "", nil, "cannot use ALLOW_URLS"},
		{"what needs an instance", "SWAP_SIZE=$(($INSTANCE_BE_maxmem*2))\nOVERLAY=x/$INSTANCE_NAME\nX=${INSTANCE_NAME:?}\nDENY_PARAMETERS=grow", "", swap, ""},
		{"what needs an instance, and a denied one", "X=${INSTANCE_NAME:?}\nDENY_PARAMETERS=swap", "", swap, "forbids it"},
		{"settings that no parameter depends on", "SWAP=perhaps", "", swap, ""},
		{"a file for bash is not run", "SHELL_SETTINGS=yes\nX=$(touch ran)\nDENY_PARAMETERS='swap'", "", swap, "forbids it"},
		{"a file for bash that allows", "SHELL_SETTINGS=yes\nX=$(touch ran)\nALLOW_URLS=http://a", "", map[string]string{"image_url": "http://a/b"}, ""},
		{"the variant's policy", "DENY_PARAMETERS=grow", "DENY_PARAMETERS=swap", swap, "variants/debian.conf:1 forbids it"},
		{"a bad parameter", "", "", map[string]string{"swap": "x"}, "OS parameter swap: want yes or no"},
	}
	for _, c := range cases {
		s := newSite(t).with(c.defaults, c.variant)
		t.Chdir(t.TempDir())
		err := Verify(t.Context(), s.Site, osapi.Instance{Variant: "debian", Params: c.params}, []string{"OS_VARIANT=debian"})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.what, err, c.want)
		}
		if _, err := os.Stat("ran"); err == nil {
			t.Errorf("%s: the file was run", c.what)
		}
	}
	if err := Verify(t.Context(), newSite(t).Site, osapi.Instance{Params: swap}, nil); err != nil {
		t.Errorf("without any file: %v", err)
	}
}
