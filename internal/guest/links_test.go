package guest

import (
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
)

// owned gives files of a guest to a user, by their paths; a link is given itself.
func owned(t *testing.T, dir string, uid int, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.Lchown(dir+name, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
}

// linked makes another name of a file of a guest.
func linked(t *testing.T, dir, file, name string) {
	t.Helper()
	if err := os.Link(dir+file, dir+name); err != nil {
		t.Fatal(err)
	}
}

// stillRoots wants a file of root's with its old text and mode.
func stillRoots(t *testing.T, root *Root, dir, name, text string, mode fs.FileMode) {
	t.Helper()
	if info, err := root.Stat(name); err != nil || info.UID != 0 || info.GID != 0 || info.Mode.Perm() != mode {
		t.Errorf("%s became %+v, %v", name, info, err)
	}
	if text != "" && content(t, dir+name) != text {
		t.Errorf("%s became %q", name, content(t, dir+name))
	}
}

func TestResolve(t *testing.T) {
	need.Root(t)
	links := map[string]string{
		"usr/lib/x": "", "lib": "-> usr/lib", "home": "-> /var/home", "var/home/u/x": "", "var/home/u/up": "-> ..",
		"etc/loop": "-> loop", "etc/out": "-> ../../../../usr/./lib", "etc/gone": "-> /srv/a/../b", "etc/to": "-> /var/home/u/up",
		"srv/team/link": "-> /etc", "srv/all/link": "-> /etc", "etc/chain": "-> /lib/",
	}
	cases := []struct{ name, want string }{
		{"/lib/x", "/usr/lib/x"}, {"lib//./x", "/usr/lib/x"}, {"/", "/"}, {"", "/"}, {"/../..", "/"},
		{"/home/u/x", "/var/home/u/x"}, {"/home/u/new/file", "/var/home/u/new/file"}, {"/etc/out/x", "/usr/lib/x"},
		{"/etc/gone/c", "/srv/b/c"}, {"/etc/chain", "/usr/lib"}, {"/no/such/../x", "/no/x"},
		{"/etc/loop", "too many levels"}, {"/usr/lib/x/y", "not a directory"},
		{"/home/u/up/v", "/var/home/u/up is a link in a directory that others"}, {"/etc/to", "/var/home/u/up is a link"},
		{"/srv/team/link/x", "/srv/team/link is a link"}, {"/srv/all/link", "/srv/all/link is a link"},
	}
	root, dir := guestOf(t, links)
	owned(t, dir, 1000, "/var/home/u")
	for name, mode := range map[string]fs.FileMode{"": 0o777, "/srv/team": 0o775, "/srv/all": 0o777 | fs.ModeSticky} {
		if err := os.Chmod(dir+name, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range cases {
		got, err := root.resolve(c.name)
		if err != nil {
			got = err.Error()
		}
		if !strings.HasPrefix(got, c.want) || err == nil && got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

func FuzzResolve(f *testing.F) {
	f.Add("/a/b", "../x", "/a")
	f.Add("/b/..//a/./c", "/a/../a", "b/../../..")
	f.Fuzz(func(t *testing.T, name, first, second string) {
		dir := t.TempDir()
		for link, target := range map[string]string{"/a": first, "/b": second} {
			if os.Symlink(target, dir+link) != nil {
				return
			}
		}
		root := open(t, dir)
		at, err := root.resolve(name)
		if err != nil {
			return
		}
		if again, err := root.resolve(at); err != nil || again != at {
			t.Fatalf("%q is %q, which is %q, %v", name, at, again, err)
		}
		// The kernel is the judge of what is there.
		want, err := root.Stat(name)
		if got, resolved := root.Lstat(at); err == nil && (resolved != nil || got != want) {
			t.Fatalf("%q is %+v, and %q is %+v, %v", name, want, at, got, resolved)
		}
	})
}

func TestAside(t *testing.T) {
	need.Root(t)
	root, dir := guestOf(t, map[string]string{"h/.ssh/x": "", "h/.ssh.image": "older", "h/keys": "", "h/link": "-> /etc", "etc/x": ""})
	owned(t, dir, 1000, "/h", "/h/.ssh", "/h/keys", "/h/link")
	for from, want := range map[string]string{"/h/.ssh": "/h/.ssh.image2", "/h/keys": "/h/keys.image", "/h/link": "/h/link.image", "/h/none": ""} {
		if to, err := root.aside(from); err != nil || to != want {
			t.Errorf("%s: %q, %v", from, to, err)
		}
	}
	got := listing(t, dir+"/h")
	for _, want := range []string{".ssh.image2 d 700 0 0", "keys.image f 600 0 0", "link.image l 777 0 0", ".ssh.image f 644 0 0"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	stillRoots(t, root, dir, "/etc", "", 0o755)
	for i := 2; i < maxAside; i++ {
		if err := os.WriteFile(fmt.Sprintf("%s/h/many.image%d", dir, i), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"/many", "/many.image"} {
		if err := os.WriteFile(dir+"/h"+name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := root.aside("/h/many"); err == nil || !strings.Contains(err.Error(), "remove them from the image") {
		t.Errorf("got %v", err)
	}
}

func TestPutFileThroughAUsersLink(t *testing.T) {
	need.Root(t)
	cases := []struct {
		path, link, target string
		mode               fs.FileMode // of the directory that has the link
		uid                int         // its owner
	}{
		{"/home/admin/.netrc", "/home/admin/.netrc", "/etc/shadow", 0o700, 1000},
		{"/home/admin/.config/x", "/home/admin/.config", "/etc", 0o700, 1000},
		{"/home/admin/new/x", "/home/admin/new", "/srv/new", 0o700, 1000},
		{"/srv/team/x", "/srv/team/x", "/etc/shadow", 0o775, 0},
		{"/srv/team/x", "/srv/team/x", "/etc/shadow", 0o777 | fs.ModeSticky, 0},
		{"/etc/first", "/home/admin/second", "/etc/shadow", 0o700, 1000},
	}
	for _, c := range cases {
		root, dir := guestOf(t, debian(map[string]string{"etc/passwd": people, "home/admin/x": "", "srv/team/y": "", "etc/first": "-> /home/admin/second", c.link[1:]: "-> " + c.target}))
		above := c.link[:strings.LastIndexByte(c.link, '/')]
		owned(t, dir, c.uid, above, c.link)
		if err := os.Chmod(dir+above, c.mode); err != nil {
			t.Fatal(err)
		}
		before := listing(t, dir)
		_, err := root.PutFile(File{Path: c.path, Owner: "admin", Mode: 0o600, Contents: []byte("x")})
		if err == nil || !strings.Contains(err.Error(), c.link+" is a link in a directory that others than root may write to") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", c.path, err)
		}
		if listing(t, dir) != before {
			t.Errorf("%s: the guest changed", c.path)
		}
	}
}

func TestPutFileOverAnotherNameOfAFile(t *testing.T) {
	need.Root(t)
	cases := []struct {
		path, owner string
		anew        bool
	}{
		{"/home/admin/.netrc", "admin", true},
		{"/home/admin/.netrc", "root", true},
		{"/etc/name", "admin", true},
		{"/etc/name", "root", false},
		{"/etc/link", "admin", true},
	}
	for _, c := range cases {
		root, dir := guestOf(t, debian(map[string]string{"etc/passwd": people, "home/admin/x": "", "etc/link": "-> name"}))
		owned(t, dir, 1000, "/home/admin")
		for _, name := range []string{"/home/admin/.netrc", "/etc/name"} {
			linked(t, dir, "/etc/shadow", name)
		}
		if _, err := root.PutFile(File{Path: c.path, Owner: c.owner, Mode: 0o640, Contents: []byte("mine")}); err != nil {
			t.Error(err)
		}
		if got := content(t, dir+c.path); got != "mine" {
			t.Errorf("%s of %s: %q", c.path, c.owner, got)
		}
		if c.anew {
			stillRoots(t, root, dir, "/etc/shadow", debianShadow, 0o644)
		} else if content(t, dir+"/etc/shadow") != "mine" {
			t.Errorf("%s of %s was made anew", c.path, c.owner)
		}
	}
}

func TestCopyInReplacesAUsersLink(t *testing.T) {
	need.Root(t)
	from := t.TempDir()
	for _, name := range []string{"/home/u/.config/x", "/home/u/.netrc", "/home/u/shared", "/home/u/to/y"} {
		if err := os.MkdirAll(from+name[:strings.LastIndexByte(name, '/')], 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(from+name, []byte("overlay"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	owned(t, from, 1000, "/home/u", "/home/u/.config", "/home/u/.config/x", "/home/u/.netrc", "/home/u/shared", "/home/u/to")
	root, dir := guestOf(t, debian(map[string]string{"home": "-> srv", "srv/u/.config": "-> /etc", "srv/u/.netrc": "-> /etc/shadow", "srv/u/x": "", "srv/u/to": "-> nowhere"}))
	owned(t, dir, 1000, "/srv/u", "/srv/u/.config", "/srv/u/.netrc")
	linked(t, dir, "/etc/group", "/srv/u/shared")
	if _, err := root.CopyIn(from); err != nil {
		t.Fatal(err)
	}
	got := listing(t, dir+"/srv")
	for _, want := range []string{"u/.config d 755 1000 1000", "u/.config/x f 600 1000 1000", "u/.netrc f 600 1000 1000 1", "u/shared f 600 1000 1000 1", "u/to/y f 600 0 0"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	stillRoots(t, root, dir, "/etc", "", 0o755)
	stillRoots(t, root, dir, "/etc/shadow", debianShadow, 0o644)
	stillRoots(t, root, dir, "/etc/group", debianGroup, 0o644)
	if root.Exists("/etc/x") {
		t.Error("a file was copied through the link")
	}
}

func TestAuthorizeKeysThroughAUsersLink(t *testing.T) {
	need.Root(t)
	const passwd = debianPasswd + "admin:x:1000:1000::/srv/admin:/bin/sh\n"
	for _, link := range []map[string]string{
		{"home/admin/.ssh": "-> /root/.ssh", "root/.ssh/authorized_keys": "# root's\n", "srv/admin/x": ""},
		{"home/admin/.ssh": "-> /root/.ssh", "root/.ssh/authorized_keys": "# root's\n", "srv/admin": "-> /home/admin/.ssh"},
	} {
		link["etc/passwd"], link["etc/ssh/sshd_config"] = passwd, "AuthorizedKeysFile /home/%u/.ssh/authorized_keys\n"
		root, dir := guestOf(t, debian(link))
		owned(t, dir, 1000, "/home/admin", "/home/admin/.ssh")
		lines, err := root.AuthorizeKeys("admin", []string{testKey})
		if err == nil || len(lines) > 0 || !strings.Contains(err.Error(), "/home/admin/.ssh is a link in a directory that others than root may write to") {
			t.Errorf("%q, %v", lines, err)
		}
		stillRoots(t, root, dir, "/root/.ssh/authorized_keys", "# root's\n", 0o644)
	}
}

// A link of root's may lead from sshd's place to the home: what is there is the
// user's all the same.
func TestAuthorizeKeysInAHomeByAnotherName(t *testing.T) {
	need.Root(t)
	root, dir := guestOf(t, debian(map[string]string{"etc/passwd": people, "home": "-> var/home", "var/home/admin/x": "", "etc/ssh/sshd_config": "AuthorizedKeysFile /var/home/%u/.keys/k\n"}))
	owned(t, dir, 1000, "/var/home/admin")
	if lines, err := root.AuthorizeKeys("admin", []string{testKey}); err != nil || len(lines) != 1 {
		t.Errorf("%q, %v", lines, err)
	}
	if got := listing(t, dir+"/var/home"); !strings.Contains(got, ".keys d 700 1000 100") || !strings.Contains(got, ".keys/k f 600 1000 100") {
		t.Error(got)
	}
}

func TestAuthorizeKeysInAnotherNameOfAFile(t *testing.T) {
	need.Root(t)
	cases := []struct {
		file, config, want string
		uid                int // of the file
	}{
		{"/home/admin/.ssh/authorized_keys", "", testKey + "\n", 0},
		{"/home/admin/.ssh/authorized_keys", "", "# secret\n" + testKey + "\n", 1000},
		{"/srv/admin/keys", "AuthorizedKeysFile /srv/%u/keys\n", testKey + "\n", 1000},
	}
	for _, c := range cases {
		root, dir := guestOf(t, debian(map[string]string{"etc/passwd": people, "home/admin/.ssh/x": "", "srv/admin/x": "", "etc/secret": "# secret\n", "etc/ssh/sshd_config": c.config}))
		owned(t, dir, 1000, "/home/admin", "/home/admin/.ssh", "/srv/admin")
		owned(t, dir, c.uid, "/etc/secret")
		linked(t, dir, "/etc/secret", c.file)
		lines, err := root.AuthorizeKeys("admin", []string{testKey})
		if err != nil || !strings.Contains(strings.Join(lines, "\n"), "made "+c.file+" anew") || content(t, dir+c.file) != c.want {
			t.Errorf("%s: %q, %v, %q", c.file, lines, err, content(t, dir+c.file))
		}
		var st unix.Stat_t
		if err := unix.Stat(dir+"/etc/secret", &st); err != nil || int(st.Uid) != c.uid || st.Mode&0o777 != 0o644 || st.Nlink != 1 || content(t, dir+"/etc/secret") != "# secret\n" {
			t.Errorf("%s: the other name became %+v", c.file, st)
		}
	}
}
