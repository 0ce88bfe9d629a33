package guest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
)

const (
	hash = "$6$abcdefgh$" + "01234567890123456789012345678901234567890123456789012345678901234567890123456789012345"

	debianPasswd  = "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
	debianShadow  = "root:*:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n"
	debianGroup   = "root:x:0:\ndaemon:x:1:\nsudo:x:27:\nnogroup:x:65534:\n"
	debianGShadow = "root:*::\ndaemon:*::\nsudo:*::\nnogroup:*::\n"
	sudoersText   = "root ALL=(ALL:ALL) ALL\n@includedir /etc/sudoers.d\n"
)

// debian are the files of a guest's accounts, of which some are changed.
func debian(changes map[string]string) map[string]string {
	files := map[string]string{
		"etc/passwd": debianPasswd, "etc/shadow": debianShadow, "etc/group": debianGroup, "etc/gshadow": debianGShadow,
		"root/.profile": "", "bin/bash": "", "bin/sh": "", "usr/sbin/nologin": "", "usr/sbin/sshd": "",
		"etc/sudoers": sudoersText, "etc/sudoers.d/README": "#\n", "etc/skel/.profile": "# profile\n", "usr/sbin/x": "",
	}
	for name, text := range changes {
		if files[name] = text; text == "-" {
			delete(files, name)
		}
	}
	return files
}

// pwck has the programs of shadow judge the guest's accounts.
func pwck(t *testing.T, dir string) {
	t.Helper()
	need.Root(t)
	need.Tools(t, "pwck", "grpck")
	for _, tool := range []string{"pwck", "grpck"} {
		result, err := run.Cmd{What: "judge the accounts", Argv: []string{tool, "-q", "-r", "-R", dir}}.Run(t.Context())
		if err != nil {
			t.Errorf("%s: %v\n%s", tool, err, result.Stdout)
		}
	}
}

func TestSetPassword(t *testing.T) {
	day := strconv.Itoa(today())
	const rest = "\ndaemon:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n"
	long := "# " + strings.Repeat("x", 1<<20) + "\n"
	cases := []struct{ what, shadow, want string }{
		{"no password", debianShadow, "root:" + hash + ":" + day + ":0:99999:7:::" + rest},
		{"a lock", "root:!$6$x:0:1:2:3:4:99999:6" + rest, "root:" + hash + ":" + day + ":1:2:3:4:99999:6" + rest},
		{"few fields", "root:!" + rest, "root:" + hash + ":" + day + "::::::" + rest},
		{"no line end", "daemon:*:1::::::\nroot:*:1::::::", "daemon:*:1::::::\nroot:" + hash + ":" + day + "::::::"},
		{"no entry", "daemon:*:1::::::", "daemon:*:1::::::\nroot:" + hash + ":" + day + ":0:99999:7:::\n"},
		{"no entry, and NIS", "daemon:*:1::::::\n+::::::::\n", "daemon:*:1::::::\nroot:" + hash + ":" + day + ":0:99999:7:::\n+::::::::\n"},
		{"entries of NIS and others", "+root:x:\n-root::\n#root:x:\nroot2:x:\n\n\x00\xff\r\nroot:*:1::::::\nroot:second:\n", "+root:x:\n-root::\n#root:x:\nroot2:x:\n\n\x00\xff\r\nroot:" + hash + ":" + day + "::::::\nroot:second:\n"},
		{"a long line", long + "root:*:1::::::\n", long + "root:" + hash + ":" + day + "::::::\n"},
		{"an empty file", "", "root:" + hash + ":" + day + ":0:99999:7:::\n"},
	}
	for _, c := range cases {
		root, dir := guestOf(t, debian(map[string]string{"etc/shadow": c.shadow}))
		lines, err := root.SetPassword("root", hash)
		if err != nil || len(lines) != 1 || lines[0] != "set the password of root in /etc/shadow" {
			t.Errorf("%s: %q, %v", c.what, lines, err)
		}
		if got := content(t, dir+"/etc/shadow"); got != c.want {
			t.Errorf("%s: got\n%.300s\nwant\n%.300s", c.what, got, c.want)
		}
		if got := content(t, dir+"/etc/passwd"); got != debianPasswd {
			t.Errorf("%s: passwd says\n%s", c.what, got)
		}
	}
}

func TestSetPasswordJudged(t *testing.T) {
	root, dir := guestOf(t, debian(nil))
	for _, user := range []string{"root", "daemon"} {
		if _, err := root.SetPassword(user, hash); err != nil {
			t.Fatal(err)
		}
	}
	need.That(t, os.Mkdir(dir+"/nonexistent", 0o755) == nil, "a directory")
	pwck(t, dir)
}

func TestSetPasswordInPasswd(t *testing.T) {
	const toShadow = "root:x:0:0::/root:/bin/sh\n"
	cases := []struct{ what, passwd, shadow, wantPasswd, line string }{
		{"no shadow", "root:x:0:0::/root:/bin/sh\n+::::::\n", "-", "root:" + hash + ":0:0::/root:/bin/sh\n+::::::\n", "in /etc/passwd"},
		{"no password in passwd", "root::0:0::/root:/bin/sh\n", debianShadow, toShadow, "in /etc/shadow"},
		{"a hash in passwd", "root:$1$a$b:0:0::/root:/bin/sh\n", debianShadow, toShadow, "in /etc/shadow"},
	}
	for _, c := range cases {
		root, dir := guestOf(t, debian(map[string]string{"etc/passwd": c.passwd, "etc/shadow": c.shadow}))
		lines, err := root.SetPassword("root", hash)
		if err != nil || len(lines) != 1 || !strings.HasSuffix(lines[0], c.line) {
			t.Errorf("%s: %q, %v", c.what, lines, err)
		}
		if got := content(t, dir+"/etc/passwd"); got != c.wantPasswd {
			t.Errorf("%s: got %s", c.what, got)
		}
		if c.shadow != "-" && !strings.Contains(content(t, dir+"/etc/shadow"), hash) {
			t.Errorf("%s: shadow has no hash", c.what)
		}
	}
}

func TestSetPasswordKeepsTheFile(t *testing.T) {
	need.Root(t)
	root, dir := guestOf(t, debian(nil))
	path := dir + "/etc/shadow"
	for _, err := range []error{os.Chown(path, 0, 42), os.Chmod(path, 0o000)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	before, _ := os.Stat(path)
	if err := root.SetLabel("/etc/shadow", "system_u:object_r:shadow_t:s0"); err != nil {
		need.That(t, false, err.Error())
	}
	if _, err := root.SetPassword("root", hash); err != nil {
		t.Fatal(err)
	}
	info, err := root.Stat("/etc/shadow")
	if err != nil || info.Mode != 0 || info.GID != 42 || root.Label("/etc/shadow") != "system_u:object_r:shadow_t:s0" {
		t.Errorf("got %+v, %v, %s", info, err, root.Label("/etc/shadow"))
	}
	if after, _ := os.Stat(path); !os.SameFile(before, after) {
		t.Error("the file was replaced")
	}
}

func TestSetPasswordTellsWhatKeepsTheUserOut(t *testing.T) {
	root, _ := guestOf(t, debian(map[string]string{"etc/shadow": "daemon:*:1:::::5:\n"}))
	lines, err := root.SetPassword("daemon", hash)
	all := strings.Join(lines, "\n")
	if err != nil || !strings.Contains(all, "account of daemon has expired") || !strings.Contains(all, "shell of daemon is /usr/sbin/nologin") || strings.Contains(all, hash) {
		t.Errorf("%q, %v", lines, err)
	}
}

func TestSetPasswordRefuses(t *testing.T) {
	const secret = "s3cret"
	cases := []struct {
		user, hash string
		files      map[string]string
		want       string
	}{
		{"-rf", hash, nil, "that is no user's name"},
		{"--root=/", hash, nil, "that is no user's name"},
		{"", hash, nil, "that is no user's name"},
		{"+root", hash, nil, "that is no user's name"},
		{"root:x", hash, nil, "that is no user's name"},
		{"root\n", hash, nil, "that is no user's name"},
		{"1000", hash, nil, "that is no user's name"},
		{strings.Repeat("x", 33), hash, nil, "that is no user's name"},
		{"other", hash, nil, "the guest has no user other"},
		{"root", secret + ":x", nil, "no hash of crypt(5)"},
		{"root", secret + "\nx", nil, "no hash of crypt(5)"},
		{"root", secret + " x", nil, "no hash of crypt(5)"},
		{"root", secret + strings.Repeat("x", 512), nil, "no hash of crypt(5)"},
		{"root", "", nil, "no hash of crypt(5)"},
		{"root", hash, map[string]string{"etc/master.passwd": "root:*:0:0::0:0::/root:/bin/sh\n"}, "as BSD does"},
		{"root", hash, map[string]string{"etc/passwd": "-"}, "/etc/passwd in the guest: no such file"},
		{"root", hash, map[string]string{"etc/passwd": "root:x\n"}, "no number of a user and a group"},
		{"root", hash, map[string]string{"etc/passwd": "root:x:4294967295:0:::\n"}, "no number of a user and a group"},
		{"root", hash, map[string]string{"etc/passwd": strings.Repeat("#", int(accountsLimit)+1)}, "larger than 4 MiB"},
		{"root", hash, map[string]string{"etc/shadow": strings.Repeat("#", int(accountsLimit)+1)}, "larger than 4 MiB"},
	}
	for _, c := range cases {
		root, dir := guestOf(t, debian(c.files))
		before := listing(t, dir)
		lines, err := root.SetPassword(c.user, c.hash)
		if err == nil || len(lines) > 0 || !strings.HasPrefix(err.Error(), "cannot set the password of ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q, %.20q: got %q, %v, want %q", c.user, c.hash, lines, err, c.want)
		}
		if err != nil && (strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), hash) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("the message shows the hash, or is not one line: %v", err)
		}
		if after := listing(t, dir); after != before {
			t.Errorf("%q: the guest changed:\n%s", c.user, after)
		}
	}
}

// accountTraps are what a hostile image may have in the place of a file or
// directory; %s is a directory of the node, beside the guest.
var accountTraps = []struct{ what, target string }{
	{"an absolute link", "%s/secret"},
	{"a relative link", "../../../../../../../../../..%s/secret"},
	{"a link by /proc", "/proc/self/root%s/secret"},
	{"a loop", "loop"},
	{"a pipe", "|"},
	{"a directory", "/"},
}

// layTrap puts one of them to a path of the guest, in the place of what was there.
func layTrap(t *testing.T, dir, name, target, node string) {
	t.Helper()
	path := dir + name
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	switch {
	case err != nil:
	case target == "|":
		err = unix.Mkfifo(path, 0o644)
	case target == "/":
		err = os.Mkdir(path, 0o755)
	case target == "loop":
		err = os.Symlink(name, path)
	default:
		err = os.Symlink(fmt.Sprintf(target, node), path)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// forEachTrap runs what with each trap at each of the paths. What is on the node
// must stay as it is, whatever comes of it.
func forEachTrap(t *testing.T, contents map[string]string, paths []string, act func(*Root) ([]string, error)) {
	node := t.TempDir()
	if err := os.Mkdir(node+"/secret", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{node + "/secret/file", node + "/file"} {
		if err := os.WriteFile(path, []byte("the node's"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	before := listing(t, node)
	for _, name := range paths {
		for _, a := range accountTraps {
			root, dir := guestOf(t, contents)
			layTrap(t, dir, name, a.target, node)
			lines, err := act(root)
			if err != nil && (strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), "cannot ")) {
				t.Errorf("%s at %s: %v", a.what, name, err)
			}
			if slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, "\n") }) {
				t.Errorf("%s at %s: %q", a.what, name, lines)
			}
			if after := listing(t, node); after != before {
				t.Fatalf("%s at %s: the node changed:\n%s", a.what, name, after)
			}
			if err == nil && a.target == "|" && strings.HasPrefix(name, "/etc/pass") {
				t.Errorf("%s at %s: no error", a.what, name)
			}
		}
	}
}

func TestSetPasswordMeetsTraps(t *testing.T) {
	forEachTrap(t, debian(nil), []string{"/etc/passwd", "/etc/shadow", "/etc"}, func(root *Root) ([]string, error) {
		return root.SetPassword("root", hash)
	})
}

func TestSetPasswordOfWhatCannotBeWritten(t *testing.T) {
	need.Root(t)
	need.Tools(t, "chattr")
	root, dir := guestOf(t, debian(nil))
	immutable(t, dir+"/etc/shadow")
	_, err := root.SetPassword("root", hash)
	if err == nil || !strings.Contains(err.Error(), "/etc/shadow") || !strings.Contains(err.Error(), "immutable") {
		t.Errorf("got %v", err)
	}
}

// immutable protects a file until the test ends.
func immutable(t *testing.T, path string) {
	t.Helper()
	if _, err := (run.Cmd{What: "protect", Argv: []string{"chattr", "+i", path}}).Run(t.Context()); err != nil {
		need.That(t, false, err.Error())
	}
	t.Cleanup(func() {
		// The test's own context has ended by now.
		_, _ = run.Cmd{What: "unprotect", Argv: []string{"chattr", "-i", path}}.Run(context.WithoutCancel(t.Context()))
	})
}

func FuzzAccounts(f *testing.F) {
	f.Add(debianShadow, "root", hash)
	f.Add("+root:x\nroot\n#\n\nroot:a", "daemon", "x")
	f.Add("root:*:1::::::\r\n+::::::", "+", "y")
	f.Fuzz(func(t *testing.T, text, name, value string) {
		file := parseAccounts(shadowFile, text)
		if file.String() != text {
			t.Fatalf("%q is printed as %q", text, file)
		}
		if !accountName.MatchString(name) || !hashText.MatchString(value) {
			return
		}
		at := file.find(name)
		if at < 0 {
			file.add(shadowEntry(name, "*")...)
		}
		file.set(name, 1, value)
		again := parseAccounts(shadowFile, file.String())
		fields, ok := again.entry(name)
		if !ok || fields[1] != value || len(fields) < 9 {
			t.Fatalf("%q of %q says %q", name, again, fields)
		}
		mine := again.find(name)
		if at >= 0 && at != mine {
			t.Fatalf("entry %d became entry %d", at, mine)
		}
		others := slices.Delete(slices.Clone(again.lines), mine, mine+1)
		old := parseAccounts(shadowFile, text).lines
		if at >= 0 {
			old = slices.Delete(old, at, at+1)
		}
		if got, want := strings.Join(others, ""), strings.Join(old, ""); got != want && got != want+"\n" && !strings.Contains(want, "\n+") {
			t.Fatalf("other lines changed: %q, were %q", got, want)
		}
	})
}
