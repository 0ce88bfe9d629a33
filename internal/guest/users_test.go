package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
)

func TestEnsureUser(t *testing.T) {
	need.Root(t)
	root, dir := guestOf(t, debian(map[string]string{"etc/skel/.config/x/y": "deep", "etc/skel/link": "-> /etc/passwd", "etc/group": debianGroup + "users:x:100:a,b\n+:::\n"}))
	if err := os.Chmod(dir+"/etc/skel/.config", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"/bin/bash", "/usr/sbin/nologin"} {
		if err := os.Chmod(dir+program, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	lines, err := root.EnsureUser("admin", true)
	want := "made the user admin, number 1000, group 1000, home /home/admin, shell /bin/bash\n" +
		"made admin a member of the group sudo\n" +
		"let admin use sudo without a password, by /etc/sudoers.d/ganeti-admin-1000"
	if got := strings.Join(lines, "\n"); err != nil || got != want {
		t.Errorf("got\n%s\n%v", got, err)
	}
	for name, want := range map[string]string{
		"/etc/passwd":  debianPasswd + "admin:x:1000:1000::/home/admin:/bin/bash\n",
		"/etc/shadow":  debianShadow + fmt.Sprintf("admin:*:%d:0:99999:7:::\n", today()),
		"/etc/group":   strings.Replace(debianGroup, "sudo:x:27:", "sudo:x:27:admin", 1) + "users:x:100:a,b\nadmin:x:1000:\n+:::\n",
		"/etc/gshadow": strings.Replace(debianGShadow, "sudo:*::", "sudo:*::admin", 1) + "admin:!::\n",
	} {
		if got := content(t, dir+name); got != want {
			t.Errorf("%s says\n%s\nwant\n%s", name, got, want)
		}
	}
	home := listing(t, dir+"/home")
	for _, want := range []string{"admin d 700 1000 1000", "admin/.profile f 644 1000 1000", "admin/.config d 700 1000 1000", "admin/.config/x/y f 644 1000 1000", "admin/link l 777 1000 1000 1 /etc/passwd"} {
		if !strings.Contains(home, want) {
			t.Errorf("no %q in\n%s", want, home)
		}
	}
	if info, err := root.Lstat("/etc/passwd"); err != nil || info.UID != 0 {
		t.Errorf("skel's link was followed: %+v, %v", info, err)
	}
	lines, err = root.EnsureUser("other.one", false)
	if err != nil || !strings.Contains(lines[0], "number 1001, group 1001") || !strings.Contains(content(t, dir+"/etc/group"), "sudo:x:27:admin,other.one\n") {
		t.Errorf("a second user: %q, %v", lines, err)
	}
	before := listing(t, dir)
	lines, err = root.EnsureUser("admin", true)
	if err != nil || len(lines) != 1 || lines[0] != "found the user admin, whose home is /home/admin" || listing(t, dir) != before {
		t.Errorf("again: %q, %v", lines, err)
	}
	// What these programs say of the files as they were before is left out.
	for _, err := range []error{
		os.Mkdir(dir+"/nonexistent", 0o755),
		root.WriteFile("/etc/group", []byte(strings.NewReplacer("+:::\n", "", "a,b", "").Replace(content(t, dir+"/etc/group"))), 0),
		root.WriteFile("/etc/gshadow", []byte(content(t, dir+"/etc/gshadow")+"users:*::\n"), 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	pwck(t, dir)
}

// TestSudoRuleJudged: visudo knows sudoers(5).
func TestSudoRuleJudged(t *testing.T) {
	need.Tools(t, "visudo")
	root, dir := guestOf(t, debian(nil))
	if _, err := root.EnsureUser("ADMIN", true); err != nil {
		t.Fatal(err)
	}
	if _, err := (run.Cmd{What: "judge the rule", Argv: []string{"visudo", "-c", "-s", "-f", dir + "/etc/sudoers.d/ganeti-ADMIN-1000"}}).Run(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSudoRule(t *testing.T) {
	need.Root(t)
	cases := []struct {
		files map[string]string
		ok    bool
	}{
		{nil, true},
		{map[string]string{"etc/sudoers": "#includedir /etc/sudoers.d\n"}, true},
		{map[string]string{"etc/sudoers": "-", "usr/etc/sudoers": "@includedir  \"/etc/sudoers.d\"\n"}, true},
		{map[string]string{"etc/sudoers": "# includedir /etc/sudoers.d\n"}, false},
		{map[string]string{"etc/sudoers": "-"}, false},
		{map[string]string{"etc/sudoers.d/README": "-"}, false},
	}
	for i, c := range cases {
		root, dir := guestOf(t, debian(c.files))
		lines, err := root.EnsureUser("a.b", true)
		if err != nil || strings.Contains(strings.Join(lines, "\n"), "the guest has no sudo") == c.ok {
			t.Errorf("case %d: %q, %v", i, lines, err)
		}
		info, err := root.Lstat("/etc/sudoers.d/ganeti-a_b-1000")
		if c.ok != (err == nil) || c.ok && (info.Mode != 0o440 || !strings.Contains(content(t, dir+"/etc/sudoers.d/ganeti-a_b-1000"), "\n#1000 ALL=(ALL:ALL) NOPASSWD: ALL\n")) {
			t.Errorf("case %d: %+v, %v", i, info, err)
		}
	}
}

func TestEnsureUserOfOtherGuests(t *testing.T) {
	need.Root(t)
	cases := []struct {
		what         string
		files        map[string]string
		entry, group string // in passwd, and the lines of the group
		absent       string
	}{
		{"Alpine", map[string]string{"bin/bash": "-", "etc/group": "wheel:x:10:root\n", "etc/gshadow": "-"}, "u:x:1000:1000::/home/u:/bin/sh", "wheel:x:10:root,u\nu:x:1000:\n", "etc/gshadow"},
		{"no shadow", map[string]string{"etc/shadow": "-"}, "u:*:1000:1000::/home/u:/bin/bash", "", "etc/shadow"},
		{"login.defs", map[string]string{"etc/login.defs": "#UID_MIN 7\nUID_MIN\t 2000\nUID_MAX 2010\n"}, "u:x:2000:2000::", "u:x:2000:\n", ""},
		{"login.defs of SUSE", map[string]string{"usr/etc/login.defs": "UID_MIN 500\n"}, "u:x:500:500::", "u:x:500:\n", ""},
		{"a login.defs that would make an administrator", map[string]string{"etc/login.defs": "UID_MIN 0\nUID_MAX 5\n"}, "u:x:1000:1000::", "u:x:1000:\n", ""},
		{"a login.defs beyond all numbers", map[string]string{"etc/login.defs": "UID_MIN 99999999999\nUID_MAX 4294967295\n"}, "u:x:1000:1000::", "", ""},
		{"taken numbers", map[string]string{"etc/passwd": debianPasswd + "a:x:1003:1::/:\n#c:x:1008:1::/:\n", "etc/group": debianGroup + "b:x:1005:\n"}, "u:x:1006:1006::", "u:x:1006:\n", ""},
		{"a full range", map[string]string{"etc/login.defs": "UID_MIN 1000\nUID_MAX 1002\n", "etc/passwd": debianPasswd + "a:x:1000:1000::/:\nb:x:1002:1002::/:\n"}, "u:x:1001:1001::", "u:x:1001:\n", ""},
		{"a group of the name", map[string]string{"etc/group": debianGroup + "u:x:1050:z\n"}, "u:x:1000:1050::", "u:x:1050:z\n", ""},
		{"no line ends", map[string]string{"etc/passwd": strings.TrimSpace(debianPasswd), "etc/group": strings.TrimSpace(debianGroup)}, "\nu:x:1000:1000::", "\nu:x:1000:\n", ""},
		{"shadow's entries of one who is gone", map[string]string{"etc/shadow": "u:$6$old:1::::::\nu:$6$older:1::::::"}, "u:x:1000:1000::", "", ""},
	}
	for _, c := range cases {
		root, dir := guestOf(t, debian(c.files))
		if _, err := root.EnsureUser("u", false); err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		if got := content(t, dir+"/etc/passwd"); !strings.Contains(got, c.entry) {
			t.Errorf("%s: passwd says\n%s", c.what, got)
		}
		if got := content(t, dir+"/etc/group"); !strings.Contains(got, c.group) {
			t.Errorf("%s: group says\n%s", c.what, got)
		}
		if c.absent != "" && root.Exists(c.absent) {
			t.Errorf("%s: made %s", c.what, c.absent)
		} else if text, err := root.ReadFile("/etc/shadow", accountsLimit); err == nil && !strings.Contains(string(text), "u:*:") {
			t.Errorf("%s: shadow says\n%s", c.what, text)
		}
	}
}

func TestEnsureUserWithAHomeThatIsThere(t *testing.T) {
	need.Root(t)
	root, dir := guestOf(t, debian(map[string]string{"home": "-> var/home", "var/home/admin/.ssh/authorized_keys": "x"}))
	lines, err := root.EnsureUser("admin", false)
	if err != nil || !strings.Contains(strings.Join(lines, "\n"), "gave the directory /home/admin, which was there, to admin") {
		t.Errorf("%q, %v", lines, err)
	}
	if got := listing(t, dir+"/var/home"); !strings.Contains(got, "admin d 755 1000 1000") || !strings.Contains(got, "admin/.ssh.image d 700 0 0") || strings.Contains(got, "admin/.ssh d") || strings.Contains(got, ".profile") {
		t.Error(got)
	}
}

// TestKeysOfOneWhoIsGone: the new user gets nobody else's keys.
func TestKeysOfOneWhoIsGone(t *testing.T) {
	need.Root(t)
	root, dir := guestOf(t, debian(map[string]string{
		"home/admin/.ssh/authorized_keys": otherKey + "\n", "home/admin/.keys": otherKey + "\n", "home/admin/.bashrc": "", "home/admin/x": "",
		"etc/ssh/sshd_config": "AuthorizedKeysFile %h/.keys .ssh/authorized_keys\n",
	}))
	owned(t, dir, 1000, "/home/admin", "/home/admin/.ssh", "/home/admin/.ssh/authorized_keys", "/home/admin/.keys", "/home/admin/x")
	owned(t, dir, 1005, "/home/admin/.bashrc")
	lines, err := root.GrantAccess(Access{User: "admin", Keys: []string{testKey}})
	all := strings.Join(lines, "\n")
	for _, want := range []string{
		"moved /home/admin/.ssh, which was there, to /home/admin/.ssh.image", "moved /home/admin/.keys, which was there, to /home/admin/.keys.image",
		"/home/admin/.bashrc belongs to the number 1005, and is left so", "gave the directory /home/admin, which was there, to admin",
	} {
		if err != nil || !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s\n%v", want, all, err)
		}
	}
	got := listing(t, dir+"/home/admin")
	for _, want := range []string{".ssh.image d 700 0 0", ".keys.image f 600 0 0", ".keys f 600 1000 1000"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if got := content(t, dir+"/home/admin/.keys"); got != testKey+"\n" {
		t.Errorf("the keys are %q", got)
	}
	// A user who is there keeps what is theirs.
	if lines, err := root.GrantAccess(Access{User: "admin", Keys: []string{testKey}}); err != nil || strings.Contains(strings.Join(lines, "\n"), "moved") {
		t.Errorf("again: %q, %v", lines, err)
	}
}

func TestEnsureUserWithAStrangersHome(t *testing.T) {
	need.Root(t)
	root, dir := guestOf(t, debian(map[string]string{"home/admin/.bashrc": ""}))
	owned(t, dir, 1001, "/home/admin", "/home/admin/.bashrc")
	before := listing(t, dir)
	_, err := root.EnsureUser("admin", true)
	if err == nil || !strings.Contains(err.Error(), "/home/admin is there and has the owner 1001, while the user gets the number 1000") {
		t.Errorf("got %v", err)
	}
	if listing(t, dir) != before {
		t.Error("the guest changed")
	}
}

// TestEntriesOfOneWhoIsGone: neither an expiry nor a password is inherited.
func TestEntriesOfOneWhoIsGone(t *testing.T) {
	need.Root(t)
	root, dir := guestOf(t, debian(map[string]string{
		"etc/shadow": "admin:$6$old:1:2:3:4:5:10:\n" + debianShadow, "etc/gshadow": debianGShadow + "admin:$6$old:bob:bob\n",
		"etc/sudoers.d/ganeti-bob-1000": "#1000 ALL=(ALL:ALL) NOPASSWD: ALL\n", "etc/sudoers.d/ganeti-bob-1001": "#1001 ALL=(ALL:ALL) NOPASSWD: ALL\n",
	}))
	lines, err := root.EnsureUser("admin", false)
	if err != nil || !strings.Contains(strings.Join(lines, "\n"), "removed /etc/sudoers.d/ganeti-bob-1000, of a user who is gone") {
		t.Errorf("%q, %v", lines, err)
	}
	if root.Exists("/etc/sudoers.d/ganeti-bob-1000") || !root.Exists("/etc/sudoers.d/ganeti-bob-1001") {
		t.Error(listing(t, dir+"/etc/sudoers.d"))
	}
	if got, want := content(t, dir+"/etc/shadow"), debianShadow+fmt.Sprintf("admin:*:%d:0:99999:7:::\n", today()); got != want {
		t.Errorf("shadow says\n%s", got)
	}
	if got := content(t, dir+"/etc/gshadow"); !strings.HasSuffix(got, "\nadmin:!::\n") || strings.Contains(got, "old") {
		t.Errorf("gshadow says\n%s", got)
	}
	if lines, err := root.AuthorizeKeys("admin", []string{testKey}); err != nil || len(lines) != 1 {
		t.Errorf("%q, %v", lines, err)
	}
	if err := os.Mkdir(dir+"/nonexistent", 0o755); err != nil {
		t.Fatal(err)
	}
	pwck(t, dir)
}

// TestSudoRulesOfTwoUsers: each has a file of its own.
func TestSudoRulesOfTwoUsers(t *testing.T) {
	need.Root(t)
	root, dir := guestOf(t, debian(nil))
	for i, user := range []string{"a.b", "a_b"} {
		if _, err := root.EnsureUser(user, true); err != nil {
			t.Fatal(err)
		}
		if got := content(t, fmt.Sprintf("%s/etc/sudoers.d/ganeti-a_b-%d", dir, 1000+i)); !strings.Contains(got, "for "+user+",") {
			t.Errorf("%s: %s", user, got)
		}
	}
}

func TestEnsureUserLabels(t *testing.T) {
	need.Root(t)
	root, dir := guestOf(t, debian(map[string]string{"home/x": "", "etc/skel/.ssh/config": "", "etc/skel/sub/f": ""}))
	if err := root.SetLabel("/home", "system_u:object_r:home_root_t:s0"); err != nil {
		need.That(t, false, err.Error())
	}
	if err := root.SetLabel("/root", "system_u:object_r:admin_home_t:s0"); err != nil {
		t.Fatal(err)
	}
	if _, err := root.EnsureUser("admin", false); err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"root", "admin"} {
		if _, err := root.AuthorizeKeys(user, []string{testKey}); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"/home/admin": "user_home_dir_t", "/home/admin/.profile": "user_home_t", "/home/admin/sub": "user_home_t", "/home/admin/sub/f": "user_home_t", "/home/admin/.ssh": "ssh_home_t",
		"/home/admin/.ssh/config": "ssh_home_t", "/home/admin/.ssh/authorized_keys": "ssh_home_t", "/root/.ssh": "ssh_home_t", "/root/.ssh/authorized_keys": "ssh_home_t",
	} {
		if got := root.Label(name); got != "system_u:object_r:"+want+":s0" {
			t.Errorf("%s in %s has the label %q, want %s", name, dir, got, want)
		}
	}
}

func TestEnsureUserRefuses(t *testing.T) {
	large := strings.Repeat("x", int(maxSkelFile)+1)
	many := map[string]string{}
	for i := range maxSkelFiles + 1 {
		many[fmt.Sprintf("etc/skel/%d", i)] = ""
	}
	cases := []struct {
		user  string
		files map[string]string
		want  string
	}{
		{"-rf", nil, "no user's name"},
		{"--help", nil, "no user's name"},
		{"a:b", nil, "no user's name"},
		{"u", map[string]string{"etc/master.passwd": "x"}, "as BSD does"},
		{"u", map[string]string{"etc/passwd": "-"}, "no such file"},
		{"u", map[string]string{"etc/group": "-"}, "no such file"},
		{"u", map[string]string{"etc/group": "u:x:many:\n"}, "of its group in /etc/group has no number"},
		{"u", map[string]string{"etc/login.defs": "UID_MIN 1000\nUID_MAX 1000\n", "etc/passwd": debianPasswd + "a:x:1000:1:::\n"}, "every number from 1000 to 1000 is taken"},
		{"u", map[string]string{"home": "a file"}, "/home/u in the guest: not a directory"},
		{"u", map[string]string{"home/u": "a file"}, "it is a regular file, not a directory"},
		{"sudo", nil, "/etc/group has a group of that name for the system, number 27"},
		{"nogroup", nil, "group of that name for the system, number 65534"},
		{"u", map[string]string{"etc/passwd": debianPasswd + "bob:x:1001:1001::/home//u/:/bin/sh\n"}, "/home/u is the home of bob in /etc/passwd: choose another name"},
		{"u", map[string]string{"home": "-> var/home", "etc/passwd": debianPasswd + "bob:x:1001:1001::/var/home/u:/bin/sh\n"}, "/home/u is the home of bob"},
		{"u", map[string]string{"etc/passwd": strings.Repeat("\n", maxAccounts+1)}, "cannot read /etc/passwd in the guest: it has more than 65536 lines"},
		{"u", map[string]string{"etc/group": strings.Repeat("\n", maxAccounts+1)}, "cannot read /etc/group in the guest: it has more than 65536 lines"},
		{"u", map[string]string{"home/u": "-> /etc"}, "it is a symbolic link, not a directory"},
		{"u", map[string]string{"etc/skel/large": large}, "files of at most 1 MiB"},
		{"u", many, "more than 1024 files"},
		{"u", map[string]string{"etc/skel/.profile": "-", "etc/skel": "-> /home"}, "16 directories below each other"},
		{"u", map[string]string{"etc/sudoers.d/ganeti-u-1000": "-> /etc/shadow"}, "it is a symbolic link, not a regular file"},
	}
	for _, c := range cases {
		if strings.HasPrefix(c.files["etc/skel"], "->") {
			need.Root(t)
		}
		root, dir := guestOf(t, debian(c.files))
		_, err := root.EnsureUser(c.user, true)
		if err == nil || !strings.HasPrefix(err.Error(), "cannot make the user ") || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want %q", c.user, err, c.want)
		}
		if strings.HasPrefix(c.files["home/u"], "->") {
			if info, err := os.Stat(filepath.Join(dir, "etc")); err != nil || info.Mode().Perm() != 0o755 {
				t.Errorf("/etc became %v, %v", info.Mode(), err)
			}
		}
	}
}

func TestEnsureUserMeetsTraps(t *testing.T) {
	need.Root(t)
	paths := []string{"/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow", "/etc/login.defs", "/etc/skel", "/etc/skel/.profile", "/home", "/home/u", "/bin/bash", "/etc/sudoers", "/etc/sudoers.d", "/etc/sudoers.d/ganeti-u-1000"}
	forEachTrap(t, debian(map[string]string{"home/x": ""}), paths, func(root *Root) ([]string, error) { return root.EnsureUser("u", true) })
}

func TestEnsureUserOfWhatCannotBeWritten(t *testing.T) {
	need.Root(t)
	need.Tools(t, "chattr")
	for _, name := range []string{"/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow", "/home"} {
		root, dir := guestOf(t, debian(map[string]string{"home/x": ""}))
		immutable(t, dir+name)
		_, err := root.EnsureUser("u", false)
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "immutable") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
