package guest

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
)

const (
	testKey     = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB/JcWN8vAN6FrXhCqLa9XU3kz7sQx2sZPaD0k3Iq5pZ admin@example.org"
	testKeyBlob = "AAAAC3NzaC1lZDI1NTE5AAAAIB/JcWN8vAN6FrXhCqLa9XU3kz7sQx2sZPaD0k3Iq5pZ"
	otherKey    = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
	people      = debianPasswd + "admin:x:1000:100::/home/admin:/bin/bash\n"
)

func TestAuthorizeKeys(t *testing.T) {
	need.Root(t)
	restricted := "command=\"a b\",no-pty " + "ssh-ed25519 " + testKeyBlob + " old\n"
	cases := []struct {
		what, old  string // "-": no file
		keys       []string
		want, said string
	}{
		{"a new file", "-", []string{testKey, otherKey}, testKey + "\n" + otherKey + "\n", "authorized the key SHA256:"},
		{"a file without line end", "# mine", []string{testKey}, "# mine\n" + testKey + "\n", "authorized the key SHA256:"},
		{"a key that is there", "# mine\n" + testKey, []string{"no-pty " + testKey}, "# mine\n" + testKey, "found the key SHA256:"},
		{"a key that is there with options", "# mine\n" + restricted, []string{testKey, otherKey}, testKey + "\n# mine\n" + restricted + otherKey + "\n", "which was there with options only, for root in"},
		{"a key that is there behind one with options", restricted + testKey + "\n", []string{testKey}, testKey + "\n" + restricted + testKey + "\n", "authorized the key SHA256:"},
		{"a key that is there before one with options", testKey + "\n" + restricted, []string{testKey}, testKey + "\n" + restricted, "found the key SHA256:"},
		{"a key that is there with the same options", restricted, []string{strings.TrimSpace(restricted)}, restricted, "found the key SHA256:"},
		{"a key behind what is no type", "no-pty " + testKeyBlob + "\n", []string{testKey}, "no-pty " + testKeyBlob + "\n" + testKey + "\n", "authorized the key SHA256:"},
		{"a key given twice", "", []string{testKey, "no-pty " + testKey}, testKey + "\n", "found the key SHA256:"},
		{"comments", "-", []string{"# x", "", testKey + " \t"}, testKey + "\n", "(admin@example.org) for root in /root/.ssh/authorized_keys"},
		{"what is no key", "\x00\xff\nssh-rsa x\n" + strings.Repeat("y", 1<<17) + "\n", []string{testKey}, "\x00\xff\nssh-rsa x\n" + strings.Repeat("y", 1<<17) + "\n" + testKey + "\n", ""},
	}
	for _, c := range cases {
		root, dir := guestOf(t, debian(map[string]string{"root/.ssh/authorized_keys": c.old}))
		lines, err := root.AuthorizeKeys("root", c.keys)
		all := strings.Join(lines, "\n")
		if err != nil || !strings.Contains(all, c.said) || strings.Contains(all, testKeyBlob) {
			t.Errorf("%s: %q, %v", c.what, lines, err)
		}
		if got := content(t, dir+"/root/.ssh/authorized_keys"); got != c.want {
			t.Errorf("%s: got %.200q", c.what, got)
		}
		if got := listing(t, dir+"/root"); !strings.Contains(got, ".ssh d 700 0 0") || !strings.Contains(got, ".ssh/authorized_keys f 600 0 0") {
			t.Errorf("%s: %s", c.what, got)
		}
	}
	if lines, err := open(t, t.TempDir()).AuthorizeKeys("root", []string{"# none"}); err != nil || len(lines) > 0 {
		t.Errorf("no keys: %q, %v", lines, err)
	}
}

// TestFingerprintIsSSHKeygens: what the log says of a key is what its owner can
// compare.
func TestFingerprintIsSSHKeygens(t *testing.T) {
	need.Root(t)
	need.Tools(t, "ssh-keygen")
	root, dir := guestOf(t, debian(nil))
	lines, err := root.AuthorizeKeys("root", []string{testKey, otherKey})
	if err != nil {
		t.Fatal(err)
	}
	said := strings.Fields(keygen(t, "-lf", dir+"/root/.ssh/authorized_keys"))
	if !strings.Contains(lines[0], said[1]) {
		t.Errorf("%q, ssh-keygen has %s", lines, said)
	}
}

func TestKeysAreWhereSSHDLooks(t *testing.T) {
	need.Root(t)
	const key = "AuthorizedKeysFile"
	cases := []struct {
		said, file, owner, line string
	}{
		{"", "/home/admin/.ssh/authorized_keys", "600 1000 100", ""},
		{key + " .ssh/authorized_keys .ssh/authorized_keys2", "/home/admin/.ssh/authorized_keys", "600 1000 100", ""},
		{key + "=%h/.ssh/keys", "/home/admin/.ssh/keys", "600 1000 100", ""},
		{key + " \"%h/.keys\"", "/home/admin/.keys", "600 1000 100", ""},
		{"authorizedkeysfile /etc/ssh/keys/%u", "/etc/ssh/keys/admin", "644 0 0", ""},
		{key + " /etc/ssh/keys/%U-%%", "/etc/ssh/keys/1000-%", "644 0 0", ""},
		{key + " none", "/home/admin/.ssh/authorized_keys", "600 1000 100", "AuthorizedKeysFile is none"},
		{key + " /x/%x .ssh/second", "/home/admin/.ssh/second", "600 1000 100", ""},
		{key + " /x/%x", "/home/admin/.ssh/authorized_keys", "600 1000 100", "where sshd may not look"},
		{key + " \"%h/my keys/a\"", "/home/admin/.ssh/authorized_keys", "600 1000 100", "AuthorizedKeysFile is \"%h/my keys/a\""},
		{key + " \"%h/my keys/a\" '.ssh/second'", "/home/admin/.ssh/second", "600 1000 100", ""},
		{key + " \"%h/open .ssh/second", "/home/admin/.ssh/authorized_keys", "600 1000 100", "where sshd may not look"},
		{key + " /usr/sbin/%u", "/usr/sbin/admin", "644 0 0", ""}, // the home of daemon
		{key + " ../admin2/keys", "/home/admin2/keys", "644 0 0", ""},
	}
	for _, c := range cases {
		root, dir := guestOf(t, debian(map[string]string{"etc/passwd": people, "etc/ssh/sshd_config": c.said + "\n", "home/admin/x": ""}))
		if err := root.Chown("/home/admin", 1000, 100); err != nil {
			t.Fatal(err)
		}
		lines, err := root.AuthorizeKeys("admin", []string{testKey})
		all := strings.Join(lines, "\n")
		if err != nil || c.line == "" && len(lines) != 1 || !strings.Contains(all, c.line) || !strings.Contains(all, c.file) {
			t.Errorf("%s: %q, %v", c.said, lines, err)
			continue
		}
		info, err := root.Stat(c.file)
		if got := fmt.Sprintf("%o %d %d", info.Mode, info.UID, info.GID); err != nil || got != c.owner || content(t, dir+c.file) != testKey+"\n" {
			t.Errorf("%s: %s has %s, %v", c.said, c.file, got, err)
		}
	}
}

// TestKeyWithOptionsJudged has sshd say which of two lines of a key counts.
func TestKeyWithOptionsJudged(t *testing.T) {
	need.Root(t)
	need.Tools(t, "ssh", "sshd", "ssh-keygen")
	need.That(t, os.MkdirAll("/run/sshd", 0o755) == nil, "/run/sshd")
	dir := t.TempDir()
	for _, name := range []string{"/key", "/host"} {
		keygen(t, "-q", "-t", "ed25519", "-N", "", "-f", dir+name)
	}
	if err := os.WriteFile(dir+"/config", []byte("AuthorizedKeysFile "+dir+"/keys\nStrictModes no\nPermitRootLogin yes\nUsePAM no\nPidFile none\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sshd, err := run.Find("sshd")
	if err != nil {
		t.Fatal(err)
	}
	login := func(keys string) (string, error) {
		if err := os.WriteFile(dir+"/keys", []byte(keys), 0o600); err != nil {
			t.Fatal(err)
		}
		options := []string{"-F", "none", "-i", dir + "/key", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
			"-o", "ProxyCommand=" + sshd + " -i -f " + dir + "/config -h " + dir + "/host"}
		result, err := run.Cmd{What: "log in", Argv: append(append([]string{"ssh"}, options...), "root@host.invalid", "echo let in")}.Run(t.Context())
		return string(result.Stdout), err
	}
	line := content(t, dir+"/key.pub")
	_, err = login(line)
	need.That(t, err == nil, "a root that may log in by key")
	restricted := "no-port-forwarding,command=\"echo refused\" " + line
	wanted, err := parseKeys([]string{line})
	if err != nil {
		t.Fatal(err)
	}
	text, _ := mergeKeys([]byte(restricted), wanted)
	for keys, want := range map[string]string{restricted: "refused\n", restricted + line: "refused\n", string(text): "let in\n"} {
		if got, err := login(keys); err != nil || got != want {
			t.Errorf("%s: got %q, %v", keys, got, err)
		}
	}
}

func TestAuthorizeKeysTellsWhatSSHDRefuses(t *testing.T) {
	need.Root(t)
	cases := []struct {
		what         string
		mode         os.FileMode
		uid          int
		shadow, want string
		after        string // of the entry in shadow
	}{
		{"nothing", 0o755, 1000, "admin:*:1::::::\n", "", "admin:*:1:"},
		{"a home of root's", 0o755, 0, "admin:*:1::::::\n", "", ""},
		{"a group may write", 0o775, 1000, "admin:*:1::::::\n", "others may write to its home /home/admin; have the image chmod go-w it", ""},
		{"others may write", 0o757, 1000, "admin:*:1::::::\n", "others may write to its home", ""},
		{"another's home", 0o755, 1001, "admin:*:1::::::\n", "its home /home/admin is another's", ""},
		{"a lock without a hash", 0o755, 1000, "admin:!:1::::::\n", "changed the lock of admin", "admin:*:1:"},
		{"a lock of EL", 0o755, 1000, "admin:!!:1::::::\n", "changed the lock of admin", "admin:*:1:"},
		{"a lock of Fedora", 0o755, 1000, "admin:!locked:1::::::\n", "changed the lock of admin", "admin:*:1:"},
		{"a lock of a password", 0o755, 1000, "admin:!$6$a$b:1::::::\n", "account of admin is locked, by /etc/shadow, and is left so", "admin:!$6$a$b:1:"},
		{"a password", 0o755, 1000, "admin:$6$a$b:1::::::\n", "", "admin:$6$a$b:1:"},
		{"an expired account", 0o755, 1000, "admin:*:1:::::9:\n", "account of admin has expired", ""},
	}
	for _, c := range cases {
		root, dir := guestOf(t, debian(map[string]string{"etc/passwd": people, "etc/shadow": c.shadow, "home/admin/x": ""}))
		for _, err := range []error{os.Chown(dir+"/home/admin", c.uid, 100), os.Chmod(dir+"/home/admin", c.mode)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		lines, err := root.AuthorizeKeys("admin", []string{testKey})
		all := strings.Join(lines, "\n")
		if err != nil || !strings.Contains(all, c.want) || (c.want == "") != (len(lines) == 1) || strings.Contains(all, "$6$") {
			t.Errorf("%s: %q, %v", c.what, lines, err)
		}
		if got := content(t, dir+"/etc/shadow"); !strings.HasPrefix(got, c.after) {
			t.Errorf("%s: shadow says %s", c.what, got)
		}
		if info, _ := os.Stat(dir + "/home/admin"); info.Mode().Perm() != c.mode {
			t.Errorf("%s: the home became %v", c.what, info.Mode())
		}
	}
}

func TestAuthorizeKeysRefuses(t *testing.T) {
	cases := []struct {
		user, key string
		files     map[string]string
		want      string
	}{
		{"-oProxyCommand=x", testKey, nil, "no user's name"},
		{"other", testKey, nil, "the guest has no user other"},
		{"root", "s3cret " + testKeyBlob, nil, "line 1 of the keys is not an SSH public key"},
		{"root", "ssh-rsa s3cret", nil, "line 1 of the keys is not an SSH public key"},
		{"root", testKey + "\nssh-rsa s3cret", nil, "line 1 of the keys is not"},
		{"root", testKey + strings.Repeat("s3cret", maxKeyLine), nil, "line 1 of the keys is not"},
		{"nobody", testKey, nil, `its home is "/nonexistent", which is no directory`},
		{"a", testKey, map[string]string{"etc/passwd": "a:x:1:1:::/bin/sh\n"}, `its home is "", which is no directory`},
		{"a", testKey, map[string]string{"etc/passwd": "a:x:1:1::root:/bin/sh\n"}, `its home is "root", which is no directory`},
		{"a", testKey, map[string]string{"etc/passwd": debianPasswd + "a:x:1000:1000::/srv:/bin/sh\n", "srv/x": "", "keys": "-> /root", "etc/ssh/sshd_config": "AuthorizedKeysFile /keys/%u\n"}, "the file of its keys is /root/a, in the home of root"},
		{"a", testKey, map[string]string{"etc/passwd": debianPasswd + "a:x:1000:1000::/srv:/bin/sh\nb:x:1001:1001::/home/b:/bin/sh\n", "srv/x": "", "home": "-> var/home", "etc/ssh/sshd_config": "AuthorizedKeysFile /home/b/%u\n"}, "the file of its keys is /var/home/b/a, in the home of b"},
		{"root", testKey, map[string]string{"root/.ssh": "-> /etc"}, "/root/.ssh in the guest: it is a symbolic link, not a directory"},
		{"root", testKey, map[string]string{"root/.ssh": "a file"}, "it is a regular file, not a directory"},
		{"root", testKey, map[string]string{"root/.ssh/authorized_keys": "-> /etc/shadow"}, "it is a symbolic link, not a regular file"},
		{"root", testKey, map[string]string{"root/.ssh/authorized_keys/x": ""}, "it is a directory, not a regular file"},
		{"root", testKey, map[string]string{"root/.ssh/authorized_keys": strings.Repeat("#", int(keysLimit)+1)}, "larger than 1 MiB"},
	}
	for _, c := range cases {
		root, dir := guestOf(t, debian(c.files))
		lines, err := root.AuthorizeKeys(c.user, []string{c.key})
		if err == nil || len(lines) > 0 || !strings.HasPrefix(err.Error(), "cannot authorize SSH keys for ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %q, %v, want %q", c.user, lines, err, c.want)
		}
		if err != nil && (strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "\n")) {
			t.Errorf("the message shows the key, or is not one line: %v", err)
		}
		if info, err := os.Stat(dir + "/etc"); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("/etc became %v, %v", info.Mode(), err)
		}
	}
}

func TestAuthorizeKeysMeetsTraps(t *testing.T) {
	need.Root(t)
	paths := []string{"/etc/passwd", "/etc/shadow", "/home", "/home/admin", "/home/admin/.ssh", "/home/admin/.ssh/authorized_keys", "/etc/ssh", "/etc/ssh/sshd_config", "/etc/ssh/sshd_config.d", "/etc/keys"}
	for _, said := range []string{"Include sshd_config.d/*\n", "AuthorizedKeysFile /etc/keys/%u\n"} {
		contents := debian(map[string]string{"etc/passwd": people, "home/admin/.ssh/x": "", "etc/ssh/sshd_config": said, "etc/keys/x": ""})
		forEachTrap(t, contents, paths, func(root *Root) ([]string, error) { return root.AuthorizeKeys("admin", []string{testKey}) })
	}
}

func TestAuthorizeKeysOfWhatCannotBeWritten(t *testing.T) {
	need.Root(t)
	need.Tools(t, "chattr")
	for _, name := range []string{"/root", "/root/.ssh", "/root/.ssh/authorized_keys"} {
		files := debian(map[string]string{"root/.ssh/authorized_keys": "#"})
		if name == "/root" {
			delete(files, "root/.ssh/authorized_keys")
		}
		root, dir := guestOf(t, files)
		immutable(t, dir+name)
		_, err := root.AuthorizeKeys("root", []string{testKey})
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "immutable") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// The first of two wanted lines with one key counts, whether it is there or not.
func TestMergeKeysTwice(t *testing.T) {
	wanted, err := parseKeys([]string{"no-pty " + testKey, testKey})
	if err != nil {
		t.Fatal(err)
	}
	for old, want := range map[string]string{
		"":                         "no-pty " + testKey + "\n",
		"no-x11 " + testKey + "\n": "no-pty " + testKey + "\nno-x11 " + testKey + "\n",
	} {
		got, _ := mergeKeys([]byte(old), wanted)
		again, _ := mergeKeys(got, wanted)
		if string(got) != want || string(again) != want {
			t.Errorf("%q becomes %q and then %q, want %q", old, got, again, want)
		}
	}
}

func FuzzMergeKeys(f *testing.F) {
	f.Add("no-x11 "+testKey, "no-pty "+testKey)
	f.Add("# x\n"+testKey, otherKey)
	f.Add("command=\"\\\"\" "+testKey+"\r\n\n", testKey)
	f.Fuzz(func(t *testing.T, old, line string) {
		wanted, err := parseKeys([]string{line, testKey})
		if err != nil {
			return
		}
		text, lines := mergeKeys([]byte(old), wanted)
		if !strings.Contains(string(text), old) || len(lines) != len(wanted) {
			t.Fatalf("%q became %q", old, text)
		}
		again, lines := mergeKeys(text, wanted)
		if string(again) != string(text) || strings.Contains(strings.Join(lines, "\n"), "authorized") {
			t.Fatalf("%q became %q and %q", old, text, again)
		}
	})
}
