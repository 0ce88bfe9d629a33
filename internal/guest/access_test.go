package guest

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
)

func TestGrantAccess(t *testing.T) {
	need.Root(t)
	root, dir := guestOf(t, debian(map[string]string{"etc/ssh/sshd_config": "PermitRootLogin prohibit-password\nPasswordAuthentication no\n"}))
	const secret = "the contents"
	access := Access{RootHash: hash, User: "admin", Keys: []string{testKey}, Files: []File{{Path: "/home/admin/note", Owner: "admin", Mode: 0o600, Contents: []byte(secret)}}}
	lines, err := root.GrantAccess(access)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"made the user admin, number 1000, group 1000, home /home/admin, shell /bin/bash",
		"made admin a member of the group sudo",
		"let admin use sudo without a password, by /etc/sudoers.d/ganeti-admin",
		"set the password of root in /etc/shadow",
		"authorized the key ",
		"wrote /home/admin/note, 12 bytes, mode 0600, owner 1000, group 1000",
		"sshd does not take the password of root, which is for the console: PermitRootLogin is not yes in the guest's sshd_config, and is left so",
	}
	if len(lines) != len(want) {
		t.Fatalf("got\n%s", strings.Join(lines, "\n"))
	}
	for i := range want {
		if !strings.HasPrefix(lines[i], want[i]) {
			t.Errorf("got %q, want %q", lines[i], want[i])
		}
	}
	all := strings.Join(lines, "\n")
	for _, hidden := range []string{hash, testKeyBlob, secret} {
		if strings.Contains(all, hidden) {
			t.Errorf("a line shows %q", hidden)
		}
	}
	before := content(t, dir+"/etc/shadow") + content(t, dir+"/etc/passwd") + content(t, dir+"/home/admin/.ssh/authorized_keys")
	if _, err := root.GrantAccess(access); err != nil {
		t.Error(err)
	}
	if after := content(t, dir+"/etc/shadow") + content(t, dir+"/etc/passwd") + content(t, dir+"/home/admin/.ssh/authorized_keys"); after != before {
		t.Errorf("a second time: %s", after)
	}
}

func TestGrantAccessLines(t *testing.T) {
	need.Root(t)
	cases := []struct {
		what   string
		access Access
		sshd   string // sshd_config; "-": no server
		want   string
		not    string
	}{
		{"nothing", Access{}, "PermitRootLogin no", "", "sshd"},
		{"files only", Access{Files: []File{{Path: "/x"}}}, "PermitRootLogin no", "wrote /x", "sshd"},
		{"keys of root", Access{Keys: []string{testKey}}, "PermitRootLogin no", "sshd lets no root in", ""},
		{"keys of root, taken", Access{Keys: []string{testKey}}, "PermitRootLogin without-password", "authorized the key", "sshd"},
		{"keys of root by default", Access{Keys: []string{testKey}}, "", "authorized the key", "sshd"},
		{"keys of root for commands", Access{Keys: []string{testKey}}, "PermitRootLogin forced-commands-only", "for commands of its keys only", ""},
		{"root's password", Access{RootHash: hash}, "PermitRootLogin yes\nPasswordAuthentication no", "sshd takes no passwords", "PermitRootLogin"},
		{"root's password by default", Access{RootHash: hash}, "", "sshd may not take the password of root", ""},
		{"root as a user", Access{User: "root", UserHash: hash}, "PermitRootLogin no", "sshd lets no root in", "sudo"},
		{"a user's password", Access{User: "u", UserHash: hash}, "PasswordAuthentication no", "sshd takes no passwords", "sudo without"},
		{"a user's password, taken", Access{User: "u", UserHash: hash}, "", "set the password of u", "sshd"},
		{"a user with both", Access{User: "u", UserHash: hash, Keys: []string{testKey}}, "", "authorized the key", "sudo without"},
		{"a user with neither", Access{User: "u"}, "", "made the user u", "sudo without"},
		{"a list of users", Access{User: "u", Keys: []string{testKey}}, "AllowGroups x", "sshd_config has AllowGroups", ""},
		{"no server", Access{RootHash: hash}, "-", "the guest has no OpenSSH server", ""},
	}
	for _, c := range cases {
		files := debian(map[string]string{"etc/ssh/sshd_config": c.sshd})
		if c.sshd == "-" {
			delete(files, "usr/sbin/sshd")
		}
		root, _ := guestOf(t, files)
		lines, err := root.GrantAccess(c.access)
		all := strings.Join(lines, "\n")
		if err != nil || !strings.Contains(all, c.want) || c.not != "" && strings.Contains(all, c.not) {
			t.Errorf("%s: %q, %v", c.what, lines, err)
		}
	}
}

func TestGrantAccessEndsWithWhatWasDone(t *testing.T) {
	need.Root(t)
	for _, access := range []Access{
		{RootHash: hash, Keys: []string{"ssh-rsa x"}},
		{RootHash: hash, Files: []File{{Path: "x"}}},
		{RootHash: hash, User: "daemon", UserHash: "a:b"},
	} {
		root, _ := guestOf(t, debian(nil))
		lines, err := root.GrantAccess(access)
		if err == nil || !slices.Contains(lines, "set the password of root in /etc/shadow") {
			t.Errorf("%+v: %q, %v", access, lines, err)
		}
	}
}

// TestGrantAccessOnAReadOnlyGuest: what cannot be changed is named.
func TestGrantAccessOnAReadOnlyGuest(t *testing.T) {
	need.Root(t)
	_, dir := guestOf(t, debian(nil))
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		need.That(t, false, err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	root := open(t, dir)
	for want, access := range map[string]Access{
		"/etc/shadow": {RootHash: hash}, "/etc/group": {User: "u"}, "/root/.ssh": {Keys: []string{testKey}}, "/etc/passwd": {Files: []File{{Path: "/etc/passwd"}}}, "/srv": {Files: []File{{Path: "/srv/x"}}},
	} {
		lines, err := root.GrantAccess(access)
		if err == nil || len(lines) > 0 || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "read-only file system") {
			t.Errorf("%s: %q, %v", want, lines, err)
		}
	}
}
