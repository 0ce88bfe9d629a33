package guest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
)

func TestReplaceHostKeys(t *testing.T) {
	need.Root(t)
	need.Tools(t, "ssh-keygen")
	root, dir := tree(t, "usr/sbin/sshd", "etc/ssh/ssh_host_dsa_key", "etc/ssh/ssh_host_rsa_key", "etc/ssh/ssh_host_rsa_key.pub",
		"etc/ssh/ssh_host_ed25519_key -> /etc/target", "etc/target", "etc/ssh/sshd_config", "usr/bin/cloud-init")
	changes, err := root.ReplaceHostKeys("web.example.org")
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(changes, "\n")
	for _, kind := range []struct{ name, bits, printed, format string }{
		{"rsa", "3072", "RSA", "RSA PRIVATE KEY"}, {"ecdsa", "256", "ECDSA", "EC PRIVATE KEY"}, {"ed25519", "256", "ED25519", "OPENSSH PRIVATE KEY"},
	} {
		file := dir + "/etc/ssh/ssh_host_" + kind.name + "_key"
		said := keygen(t, "-lf", file)
		fields := strings.Fields(said)
		if len(fields) != 4 || fields[0] != kind.bits || fields[2] != "root@web.example.org" || fields[3] != "("+kind.printed+")" {
			t.Errorf("ssh-keygen -lf: %s", said)
		}
		if !strings.Contains(all, fields[1]) {
			t.Errorf("%s is not in the report:\n%s", fields[1], all)
		}
		public := strings.Fields(keygen(t, "-y", "-f", file))
		if beside := strings.Fields(content(t, file+".pub")); !slices.Equal(public[:2], beside[:2]) {
			t.Errorf("ssh-keygen -y: %s, the file beside it: %s", public, beside)
		}
		if got := content(t, file); !strings.HasPrefix(got, "-----BEGIN "+kind.format+"-----\n") {
			t.Errorf("%s begins with %.40q", file, got)
		}
		if private, err := root.Lstat("/etc/ssh/ssh_host_" + kind.name + "_key"); err != nil || private.Mode != 0o600 || private.UID != 0 || private.GID != 0 {
			t.Errorf("%s: %+v, %v", kind.name, private, err)
		}
		if public, err := root.Lstat("/etc/ssh/ssh_host_" + kind.name + "_key.pub"); err != nil || public.Mode != 0o644 {
			t.Errorf("%s: %+v, %v", kind.name, public, err)
		}
	}
	if root.Exists("/etc/ssh/ssh_host_dsa_key") || !strings.Contains(all, "removed /etc/ssh/ssh_host_dsa_key") {
		t.Error("the DSA key stayed")
	}
	if got := content(t, dir+"/etc/target"); got != "etc/target" {
		t.Errorf("the key's link was followed: %q", got)
	}
	if got := content(t, dir+"/etc/cloud/cloud.cfg.d/zz-ganeti-ssh.cfg"); !strings.Contains(got, "ssh_deletekeys: false\n") {
		t.Errorf("cloud-init: %q", got)
	}
}

func keygen(t *testing.T, args ...string) string {
	t.Helper()
	result, err := run.Cmd{What: "judge the key", Argv: append([]string{"ssh-keygen"}, args...)}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return string(result.Stdout)
}

func TestReplaceHostKeysWithoutServer(t *testing.T) {
	root, dir := tree(t, "etc/ssh/ssh_config", "usr/bin/ssh")
	changes, err := root.ReplaceHostKeys("a")
	if err != nil || len(changes) != 1 || !strings.Contains(changes[0], "no SSH server") {
		t.Errorf("got %v, %v", changes, err)
	}
	if got := listing(t, dir+"/etc"); strings.Contains(got, "ssh_host") {
		t.Error(got)
	}
}

func TestHostKeysWhereTheImageHasNone(t *testing.T) {
	need.Root(t)
	root, dir := tree(t, "usr/bin/sshd", "etc/")
	if _, err := root.ReplaceHostKeys("a"); err != nil {
		t.Fatal(err)
	}
	if got := listing(t, dir+"/etc"); strings.Count(got, "ssh/ssh_host_") != 6 || strings.Contains(got, "cloud") {
		t.Error(got)
	}
}

// HostKey may name any place; what is there is another guest's.
func TestHostKeysElsewhere(t *testing.T) {
	need.Root(t)
	need.Tools(t, "ssh-keygen")
	root, dir := guestOf(t, map[string]string{
		"usr/sbin/sshd":                     "",
		"etc/ssh/sshd_config":               "HostKey /etc/ssh/ssh_host_rsa_key\n#HostKey /etc/no\nhostkey=\"/srv/keys/ed25519\"\nHostKey relative\nHostKey /srv/keys/missing_rsa\n",
		"etc/ssh/sshd_config.d/x.conf":      "HostKey /srv/keys/one\nHostKey /srv/keys/dsa\nHostKey /srv/keys/link_ecdsa\n",
		"srv/keys/ed25519":                  "old",
		"srv/keys/ed25519-cert.pub":         "old",
		"srv/keys/one":                      "old",
		"srv/keys/one.pub":                  "ssh-rsa AAAA x\n",
		"srv/keys/dsa":                      "old",
		"srv/keys/dsa.pub":                  "ssh-dss AAAA x\n",
		"srv/keys/link_ecdsa":               "-> /srv/target",
		"srv/target":                        "old",
		"etc/ssh/ssh_host_rsa_key-cert.pub": "old",
	})
	if _, err := root.ReplaceHostKeys("web"); err != nil {
		t.Fatal(err)
	}
	for file, kind := range map[string]string{"srv/keys/ed25519": "ED25519", "srv/keys/one": "RSA", "srv/keys/link_ecdsa": "ECDSA"} {
		if said := keygen(t, "-lf", dir+"/"+file+".pub"); !strings.HasSuffix(said, " root@web ("+kind+")\n") {
			t.Errorf("%s: %s", file, said)
		}
	}
	for _, file := range []string{"/srv/keys/ed25519", "/srv/keys/one", "/srv/target"} {
		keygen(t, "-y", "-f", dir+file) // which wants a file that nobody else may read
		stillRoots(t, root, dir, file, "", 0o600)
	}
	for _, gone := range []string{"/srv/keys/dsa", "/srv/keys/dsa.pub", "/srv/keys/ed25519-cert.pub", "/etc/ssh/ssh_host_rsa_key-cert.pub", "/srv/keys/missing_rsa", "/relative", "/etc/no"} {
		if root.Exists(gone) {
			t.Errorf("%s is there", gone)
		}
	}
}

// A key that is not one of the three defaults is replaced in its place, also
// where its name begins as theirs do and it is removed with them.
func TestHostKeysBesideTheDefaults(t *testing.T) {
	need.Root(t)
	need.Tools(t, "ssh-keygen")
	root, dir := guestOf(t, map[string]string{
		"usr/sbin/sshd":                             "",
		"etc/ssh/sshd_config":                       "HostKey /etc/ssh/ssh_host_ed25519_site_key\nHostKey \"/etc/ssh/ssh_host_site_key\"\nHostKey /etc/ssh/ssh_host_dsa_key\nHostKey /etc/ssh/ssh_host_rsa_gone_key\nHostKey /etc/s*\n",
		"etc/ssh/ssh_host_ed25519_site_key":         "old",
		"etc/ssh/ssh_host_ed25519_key":              "old",
		"etc/ssh/ssh_host_site_key":                 "old",
		"etc/ssh/ssh_host_site_key.pub":             "ecdsa-sha2-nistp256 AAAA x\n",
		"etc/ssh/ssh_host_dsa_key":                  "old",
		"etc/ssh/ssh_host_ed25519_key\nhidden line": "old",
	})
	changes, err := root.ReplaceHostKeys("web")
	if err != nil {
		t.Fatal(err)
	}
	for file, kind := range map[string]string{"ssh_host_ed25519_site_key": "ED25519", "ssh_host_site_key": "ECDSA", "ssh_host_ed25519_key": "ED25519"} {
		if said := keygen(t, "-lf", dir+"/etc/ssh/"+file); !strings.HasSuffix(said, "("+kind+")\n") {
			t.Errorf("%s: %s", file, said)
		}
	}
	if root.Exists("/etc/ssh/ssh_host_dsa_key") || root.Exists("/etc/ssh/ssh_host_rsa_gone_key") || !root.Exists("/etc/ssh/sshd_config") {
		t.Error(listing(t, dir+"/etc"))
	}
	if strings.Contains(strings.Join(changes, ""), "\n") {
		t.Errorf("%q", changes)
	}
}

func TestHostKeyThroughAUsersLink(t *testing.T) {
	need.Root(t)
	files := map[string]string{"usr/sbin/sshd": "", "etc/ssh/sshd_config": "HostKey /home/u/key_ed25519\n", "home/u/key_ed25519": "-> /etc/passwd", "etc/passwd": debianPasswd}
	root, dir := guestOf(t, files)
	owned(t, dir, 1000, "/home/u", "/home/u/key_ed25519")
	_, err := root.ReplaceHostKeys("web")
	if err == nil || !strings.Contains(err.Error(), "/home/u/key_ed25519 is a link in a directory that others than root may write to") {
		t.Errorf("got %v", err)
	}
	stillRoots(t, root, dir, "/etc/passwd", debianPasswd, 0o644)
	delete(files, "home/u/key_ed25519")
	files["home/u/x"] = ""
	root, dir = guestOf(t, files)
	owned(t, dir, 1000, "/home/u")
	linked(t, dir, "/etc/passwd", "/home/u/key_ed25519")
	if _, err := root.ReplaceHostKeys("web"); err != nil {
		t.Error(err)
	}
	stillRoots(t, root, dir, "/etc/passwd", debianPasswd, 0o644)
	stillRoots(t, root, dir, "/home/u/key_ed25519", "", 0o600)
}

func TestHostKeyTraps(t *testing.T) {
	need.Root(t)
	slow := hostKeys[0].generate
	defer func() { hostKeys[0].generate = slow }()
	hostKeys[0].generate = func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 1024) }
	for _, file := range []string{"etc/ssh/ssh_host_rsa_key", "etc/ssh/ssh_host_ed25519_key.pub", "srv/my_ed25519", "etc/dropbear/dropbear_ed25519_host_key"} {
		for _, trap := range trapsOf(t, file) {
			_ = trap.root.MkdirAll("/usr/sbin", 0o755)
			_ = trap.root.MkdirAll("/etc/ssh", 0o755)
			for _, name := range []string{"/usr/sbin/sshd", "/usr/sbin/dropbear", "/etc/ssh/sshd_config"} {
				_ = trap.root.WriteFile(name, []byte("HostKey /srv/my_ed25519\n"), 0o755)
			}
			_, err := trap.root.ReplaceHostKeys("web")
			if trap.name == "directory" || file == "srv/my_ed25519" && (trap.name == "named pipe" || trap.name == "device") {
				trap.wantRefusal(t, err)
			}
			trap.wantNodeUntouched(t)
		}
	}
}

func TestDropbearKeys(t *testing.T) {
	need.Root(t)
	need.Tools(t, "dropbearkey")
	root, dir := tree(t, "usr/sbin/dropbear", "etc/dropbear/dropbear_dss_host_key", "etc/dropbear/dropbear_rsa_host_key")
	changes, err := root.ReplaceHostKeys("web")
	if err != nil || root.Exists("/etc/dropbear/dropbear_dss_host_key") || root.Exists("/etc/ssh") {
		t.Errorf("%q, %v", changes, err)
	}
	for _, kind := range []string{"rsa", "ecdsa", "ed25519"} {
		file := "/etc/dropbear/dropbear_" + kind + "_host_key"
		result, err := run.Cmd{What: "judge the key", Argv: []string{"dropbearkey", "-y", "-f", dir + file}}.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var line string
		for text := range strings.Lines(string(result.Stdout)) {
			if strings.HasPrefix(text, "ssh-") || strings.HasPrefix(text, "ecdsa-") {
				line = text
			}
		}
		public, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			t.Fatalf("%s: %v", result.Stdout, err)
		}
		if !slices.Contains(changes, "made "+file+" "+ssh.FingerprintSHA256(public)) {
			t.Errorf("%q lacks %s", changes, line)
		}
		if info, err := root.Stat(file); err != nil || info.Mode != 0o600 {
			t.Errorf("%s: %+v, %v", file, info, err)
		}
	}
}

func TestKeyAccess(t *testing.T) {
	need.Root(t)
	const group = "root:x:0:\nssh_keys:x:997:\n"
	cases := []struct {
		files  map[string]string
		keysgn fs.FileMode // of ssh-keysign; 0: there is none
		want   fs.FileMode
	}{
		{map[string]string{"etc/group": group, "etc/os-release": "ID=almalinux\nVERSION_ID=9.4\n"}, 0, 0o640},
		{map[string]string{"etc/group": group, "etc/os-release": "ID=almalinux\nVERSION_ID=10.0\n"}, 0, 0o600},
		{map[string]string{"etc/group": group, "etc/os-release": "ID=fedora\nVERSION_ID=37\n"}, 0, 0o640},
		{map[string]string{"etc/group": group, "etc/os-release": "ID=fedora\nVERSION_ID=43\n"}, 0, 0o600},
		{map[string]string{"etc/group": group, "etc/os-release": "ID=fedora\nVERSION_ID=43\n"}, fs.ModeSetgid | 0o555, 0o640},
		{map[string]string{"etc/group": group, "etc/os-release": "ID=almalinux\nVERSION_ID=9.4\n"}, fs.ModeSetuid | 0o555, 0o600},
		{map[string]string{"etc/group": "root:x:0:\n", "etc/os-release": "ID=almalinux\nVERSION_ID=9.4\n"}, 0, 0o600},
		{map[string]string{"etc/group": "ssh_keys:x:-1:\n", "etc/os-release": "ID=almalinux\nVERSION_ID=9.4\n"}, 0, 0o600},
	}
	for i, c := range cases {
		c.files["usr/sbin/sshd"] = ""
		root := files(t, c.files)
		if c.keysgn != 0 {
			const file = "/usr/libexec/openssh/ssh-keysign"
			for _, err := range []error{root.MkdirAll("/usr/libexec/openssh", 0o755), root.WriteFile(file, nil, 0), root.Chown(file, 0, 997), root.Chmod(file, c.keysgn)} {
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		mode, group := root.keyAccess()
		if mode != c.want || (group == 997) != (c.want == 0o640) {
			t.Errorf("case %d: %v and group %d, want %v", i, mode, group, c.want)
		}
	}
}
