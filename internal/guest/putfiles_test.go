package guest

import (
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
)

func TestPutFile(t *testing.T) {
	need.Root(t)
	files := map[string]string{
		"etc/passwd": people + "#x:x:1001:7::/:\n", "etc/group": debianGroup + "users:x:100:\n", "etc/motd": "an old text that is longer", "etc/link": "-> ../srv/target",
		"srv/target": "old", "etc/dangling": "-> /srv/new", "lib": "-> usr/lib", "usr/lib/x": "",
	}
	cases := []struct {
		file        File
		where, want string
	}{
		{File{"/etc/motd", "", "", 0o644, []byte("new")}, "/etc/motd", "644 0 0"},
		{File{"/etc/motd", "admin", "", 0o600, nil}, "/etc/motd", "600 1000 100"},
		{File{"/etc/motd", "admin", "sudo", 0o640, nil}, "/etc/motd", "640 1000 27"},
		{File{"/etc/motd", "1000", "", 0o640, nil}, "/etc/motd", "640 1000 100"},
		{File{"/etc/motd", "1001", "", 0o640, nil}, "/etc/motd", "640 1001 1001"},
		{File{"/etc/motd", "4294967294", "12", 0, nil}, "/etc/motd", "0 4294967294 12"},
		{File{"/etc/motd", "admin", "root", 0o777, nil}, "/etc/motd", "777 1000 0"},
		{File{"/etc/link", "", "", 0o640, []byte("x")}, "/srv/target", "640 0 0"},
		{File{"/etc/dangling", "1", "", 0o640, []byte("x")}, "/srv/new", "640 1 1"},
		{File{"/a/b c/d", "", "", 0o400, []byte{0, 255}}, "/a/b c/d", "400 0 0"},
		{File{"/lib/y/z", "", "", fs.ModeSetuid | 0o755, []byte("x")}, "/usr/lib/y/z", "755 0 0"},
	}
	for _, c := range cases {
		root, dir := guestOf(t, debian(files))
		line, err := root.PutFile(c.file)
		if err != nil || !strings.HasPrefix(line, "wrote "+c.file.Path+", "+fmt.Sprint(len(c.file.Contents))+" bytes, mode ") {
			t.Errorf("%+v: %q, %v", c.file, line, err)
			continue
		}
		info, err := root.Lstat(c.where)
		if got := fmt.Sprintf("%o %d %d", info.Mode, info.UID, info.GID); err != nil || got != c.want || content(t, dir+c.where) != string(c.file.Contents) {
			t.Errorf("%+v: %s, %v", c.file, got, err)
		}
		if strings.HasPrefix(c.file.Path, "/a/") {
			if got := listing(t, dir+"/a"); !strings.Contains(got, "b c d 755 0 0") {
				t.Error(got)
			}
		}
	}
}

func TestPutFileKeepsHardLinksAndLabel(t *testing.T) {
	need.Root(t)
	root, dir := guestOf(t, debian(nil))
	if err := root.SetLabel("/etc/passwd", "system_u:object_r:passwd_file_t:s0"); err != nil {
		need.That(t, false, err.Error())
	}
	before, _ := os.Stat(dir + "/etc/passwd")
	if _, err := root.PutFile(File{Path: "/etc/passwd", Mode: 0o644, Contents: []byte(debianPasswd)}); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(dir + "/etc/passwd"); !os.SameFile(before, after) || root.Label("/etc/passwd") != "system_u:object_r:passwd_file_t:s0" {
		t.Error("the file was replaced, or lost its label")
	}
}

func TestPutFileRefuses(t *testing.T) {
	const secret = "s3cret"
	cases := []struct {
		file  File
		files map[string]string
		want  string
	}{
		{File{Path: "etc/x"}, nil, "want an absolute path"},
		{File{Path: "/"}, nil, "want an absolute path"},
		{File{Path: "/etc/../x"}, nil, "want an absolute path"},
		{File{Path: "/etc/"}, nil, "want an absolute path"},
		{File{Path: ""}, nil, "want an absolute path"},
		{File{Path: "/etc"}, nil, "it is a directory, not a regular file"},
		{File{Path: "/etc/passwd/x"}, nil, "it is a regular file, not a directory"},
		{File{Path: "/x\x00y"}, nil, "/x?y"},
		{File{Path: "/" + strings.Repeat("x", 300)}, nil, "name too long"},
		{File{Path: "/x", Owner: "other"}, nil, "the guest has no user other"},
		{File{Path: "/x", Owner: "-rf"}, nil, "no user's name"},
		{File{Path: "/x", Owner: "4294967295"}, nil, "no user's name"},
		{File{Path: "/x", Group: "other"}, nil, "the guest has no group other"},
		{File{Path: "/x", Group: "4294967295"}, nil, "the guest has no group"},
		{File{Path: "/x", Group: "wild"}, map[string]string{"etc/group": "wild:x:4294967295:\n"}, "the guest has no group"},
		{File{Path: "/x", Owner: "daemon"}, map[string]string{"etc/passwd": "-"}, "no such file"},
	}
	for _, c := range cases {
		root, dir := guestOf(t, debian(c.files))
		before := listing(t, dir)
		c.file.Contents = []byte(secret)
		line, err := root.PutFile(c.file)
		if err == nil || line != "" || !strings.HasPrefix(err.Error(), "cannot put the file ") || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: got %q, %v, want %q", c.file.Path, line, err, c.want)
		}
		if after := listing(t, dir); after != before {
			t.Errorf("%q: the guest changed:\n%s", c.file.Path, after)
		}
	}
}

func TestPutFileMeetsTraps(t *testing.T) {
	need.Root(t)
	for _, path := range []string{"/srv/dir/file", "/srv/dir/a/b"} {
		forEachTrap(t, debian(map[string]string{"srv/dir/x": ""}), []string{"/etc/passwd", "/etc/group", "/srv", "/srv/dir", path}, func(root *Root) ([]string, error) {
			line, err := root.PutFile(File{Path: path, Owner: "daemon", Group: "sudo", Mode: 0o600, Contents: []byte("x")})
			return []string{line}, err
		})
	}
}

func TestPutFileOverWhatCannotBeWritten(t *testing.T) {
	need.Root(t)
	need.Tools(t, "chattr")
	root, dir := guestOf(t, debian(nil))
	immutable(t, dir+"/etc/passwd")
	if _, err := root.PutFile(File{Path: "/etc/passwd", Mode: 0o600}); err == nil || !strings.Contains(err.Error(), "immutable") {
		t.Errorf("got %v", err)
	}
	if err := os.Symlink("/dev/null", dir+"/null"); err != nil {
		t.Fatal(err)
	}
	if _, err := root.PutFile(File{Path: "/null", Mode: 0o600}); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a link to a device: %v", err)
	}
}
