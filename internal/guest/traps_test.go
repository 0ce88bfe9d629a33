package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
)

// trap is a guest in which one file is something else, beside files of the node
// that a link of it names.
type trap struct {
	name string
	file string // in the guest
	root *Root
	dir  string // the guest's root
	node string // a directory of the node, and what was in it
	was  string
}

// trapsOf makes a guest for each kind of thing that may be in the place of a
// file. The guest is Debian with systemd otherwise.
func trapsOf(t *testing.T, file string) []trap {
	t.Helper()
	kinds := []struct {
		name string
		set  func(path, node string) error
	}{
		{"absolute link", func(path, node string) error { return os.Symlink(node+"/secret", path) }},
		{"relative link", func(path, node string) error { return os.Symlink("../../../../../../../../.."+node+"/secret", path) }},
		{"link to proc", func(path, node string) error { return os.Symlink("/proc/self/root"+node+"/secret", path) }},
		{"looping link", func(path, _ string) error { return os.Symlink(filepath.Base(path), path) }},
		{"named pipe", func(path, _ string) error { return unix.Mkfifo(path, 0o644) }},
		{"device", func(path, _ string) error { return unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) }},
		{"directory", func(path, _ string) error { return os.MkdirAll(path+"/sub", 0o755) }},
	}
	parents := []struct {
		name string
		set  func(parent, node string) error
	}{
		{"parent is a link to the node", func(parent, node string) error { return os.Symlink(node, parent) }},
		{"parent is a loop", func(parent, _ string) error { return os.Symlink(filepath.Base(parent), parent) }},
		{"parent is a file", func(parent, _ string) error { return os.WriteFile(parent, nil, 0o644) }},
		{"parent is a named pipe", func(parent, _ string) error { return unix.Mkfifo(parent, 0o644) }},
	}
	var traps []trap
	add := func(name string, set func(path, node string) error, path func(dir string) string) {
		node := t.TempDir()
		secrets := node + "/node"
		err := errors.Join(os.MkdirAll(secrets+"/sub", 0o755), os.WriteFile(secrets+"/secret", []byte(oldID), 0o600), os.WriteFile(secrets+"/"+filepath.Base(file), []byte(oldID), 0o600))
		for _, name := range []string{"etc/os-release", "usr/lib/systemd/systemd"} {
			err = errors.Join(err, os.MkdirAll(filepath.Dir(node+"/guest/"+name), 0o755), os.WriteFile(node+"/guest/"+name, []byte("ID=debian\n"), 0o644))
		}
		at := path(node + "/guest")
		err = errors.Join(err, os.MkdirAll(filepath.Dir(at), 0o755))
		if _, there := os.Lstat(at); there == nil {
			err = errors.Join(err, os.RemoveAll(at))
		}
		if err = errors.Join(err, set(at, secrets)); err != nil {
			t.Fatal(err)
		}
		traps = append(traps, trap{name, "/" + file, open(t, node+"/guest"), node + "/guest", secrets, fingerprint(t, secrets)})
	}
	for _, k := range kinds {
		add(k.name, k.set, func(dir string) string { return filepath.Join(dir, file) })
	}
	for _, p := range parents {
		add(p.name, p.set, func(dir string) string { return filepath.Dir(filepath.Join(dir, file)) })
	}
	return traps
}

// fingerprint is all that can be seen of the files below a directory.
func fingerprint(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			fmt.Fprintln(&out, path, info.Mode(), info.Size(), info.ModTime(), info.Sys().(*syscall.Stat_t).Uid)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// wantNodeUntouched looks at the files of the node.
func (p trap) wantNodeUntouched(t *testing.T) {
	t.Helper()
	if now := fingerprint(t, p.node); now != p.was {
		t.Errorf("%s as %s: the node changed:\n%s", p.file, p.name, now)
	}
}

// wantRefusal wants an error that names the guest's file, which stays what it is.
func (p trap) wantRefusal(t *testing.T, err error) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), p.file) || strings.Contains(err.Error(), p.dir) || strings.ContainsAny(err.Error(), "\n") {
		t.Errorf("%s as %s: %v", p.file, p.name, err)
	}
	if info, lerr := os.Lstat(p.dir + p.file); lerr != nil || info.Mode().IsRegular() {
		t.Errorf("%s as %s: it is %v now, %v", p.file, p.name, info, lerr)
	}
	p.wantNodeUntouched(t)
}

// A guest that cannot be written to is an error which names the file.
func TestUnwritableGuests(t *testing.T) {
	need.Root(t)
	need.Tools(t, "chattr", "mount", "umount")
	steps := map[string]func(*Root) error{
		"/etc/hostname":             func(r *Root) error { _, err := r.SetHostname("web.example.org", netip.Addr{}); return err },
		"/etc/machine-id":           func(r *Root) error { _, err := r.ResetIdentity(nil); return err },
		"/etc/ssh/ssh_host_rsa_key": func(r *Root) error { _, err := r.ReplaceHostKeys("web"); return err },
		"/etc/mailname": func(r *Root) error {
			_, err := r.RenameHost("old.example.org", "new.example.org", RenameOptions{})
			return err
		},
	}
	for file, step := range steps {
		root, dir := guestOf(t, map[string]string{file[1:]: "old.example.org\n", "usr/lib/systemd/systemd": "", "usr/sbin/sshd": ""})
		must := func(argv ...string) {
			t.Helper()
			if _, err := (run.Cmd{What: "prepare the guest", Argv: argv}).Run(t.Context()); err != nil {
				need.That(t, false, err.Error())
			}
		}
		must("chattr", "+i", dir+file)
		err := step(root)
		must("chattr", "-i", dir+file)
		if err == nil || !strings.Contains(err.Error(), file+" in the guest") || !strings.Contains(err.Error(), "immutable") {
			t.Errorf("immutable: %v", err)
		}
		must("mount", "--bind", dir, dir)
		must("mount", "-o", "remount,bind,ro", dir)
		readOnly := open(t, dir)
		err = step(readOnly)
		readOnly.Close()
		must("umount", dir)
		if !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), " in the guest: ") {
			t.Errorf("read-only: %v", err)
		}
		if got := content(t, dir+file); got != "old.example.org\n" {
			t.Errorf("%s says %q", file, got)
		}
	}
}
