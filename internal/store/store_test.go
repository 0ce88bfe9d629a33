package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/settings"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// wantError wants an error of one line that holds all the parts.
func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not say %q: %v", part, err)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("the error has several lines: %v", err)
	}
}

func TestLocalNames(t *testing.T) {
	all := []string{"deb-root.dump", "deb.tar.gz", "deb.qcow2", "deb.img", "deb.raw",
		"deb-x86_64-root.dump", "deb-amd64.qcow2", "deb-x86.img", "deb-arm64.raw"}
	tests := []struct {
		name, arch, imageType, machine string
		without                        string // files that are not there, separated by spaces
		want, wantType                 string
	}{
		{name: "a dump wins", want: "deb-root.dump", wantType: "dump"},
		{name: "then a tarball", without: "deb-root.dump", want: "deb.tar.gz", wantType: "tarball"},
		{name: "then qcow2", without: "deb-root.dump deb.tar.gz", want: "deb.qcow2", wantType: "qcow2"},
		{name: "then img", without: "deb-root.dump deb.tar.gz deb.qcow2", want: "deb.img", wantType: "qemu"},
		{name: "then raw", without: "deb-root.dump deb.tar.gz deb.qcow2 deb.img", want: "deb.raw", wantType: "raw"},
		{name: "auto", imageType: "auto", want: "deb-root.dump", wantType: "dump"},
		{name: "type", imageType: "qemu", want: "deb.img", wantType: "qemu"},
		{name: "type and the node's second name", imageType: "qcow2", machine: "x86_64", without: "deb.qcow2", want: "deb-amd64.qcow2", wantType: "qcow2"},
		{name: "the node's first name", machine: "x86_64", without: "deb-root.dump deb.tar.gz deb.qcow2 deb.img deb.raw", want: "deb-x86_64-root.dump", wantType: "dump"},
		{name: "32 bit", machine: "i686", imageType: "qemu", without: "deb.img", want: "deb-x86.img", wantType: "qemu"},
		{name: "arm", machine: "aarch64", imageType: "raw", without: "deb.raw", want: "deb-arm64.raw", wantType: "raw"},
		{name: "ARCH is set", arch: "x86", machine: "x86_64", want: "deb-x86.img", wantType: "qemu"},
		{name: "ARCH is set and another's is there", arch: "i386", machine: "x86_64"},
		{name: "unknown machine", machine: "riscv64", imageType: "raw", without: "deb.raw"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, file := range all {
				if !strings.Contains(" "+test.without+" ", " "+file+" ") {
					write(t, filepath.Join(dir, file), file)
				}
			}
			s := &settings.Settings{ImageDir: dir, ImageName: "deb", Arch: test.arch, ImageType: test.imageType}
			got, err := Find(t.Context(), s, test.machine)
			if test.want == "" {
				wantError(t, err, dir, "deb", "IMAGE_NAME", "there is")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.Path != filepath.Join(dir, test.want) || got.Type != test.wantType {
				t.Errorf("got %s %s", got.Path, got.Type)
			}
			if err := got.Cleanup(); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(got.Path); err != nil {
				t.Errorf("the administrator's file is gone: %v", err)
			}
		})
	}
}

func TestLocalRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("nowhere", filepath.Join(dir, "dangling.raw")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "folder.raw"), 0o755); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		s    settings.Settings
		want []string
	}{
		{"no name", settings.Settings{}, []string{"-O image_name=", "/etc/default/ganeti-instance-image"}},
		{"no such image", settings.Settings{ImageName: "nosuch"},
			[]string{dir, "nosuch, nosuch-x86_64, nosuch-amd64 with the ending -root.dump, .tar[.gz|.xz|.zst|.bz2|.lz4], .qcow2, .img[.gz|.xz|.zst|.bz2|.lz4], .raw[.gz|.xz|.zst|.bz2|.lz4]", "put the image there"}},
		{"one name", settings.Settings{ImageName: "nosuch", Arch: "x86", ImageType: "raw"}, []string{"looked for nosuch-x86.raw[.gz|.xz|.zst|.bz2|.lz4];"}},
		{"dangling", settings.Settings{ImageName: "dangling"}, []string{"dangling.raw", "does not exist"}},
		{"folder", settings.Settings{ImageName: "folder"}, []string{"folder.raw", "not a regular file"}},
		{"out of the directory", settings.Settings{ImageName: "../etc/x"}, []string{"leads out of"}},
		{"type", settings.Settings{ImageName: "x", ImageType: "vmdk"}, []string{`"vmdk"`, "qcow2"}},
		{"file is relative", settings.Settings{ImageFile: "x.raw"}, []string{"full path"}},
		{"file is missing", settings.Settings{ImageFile: dir + "/x.raw"}, []string{"IMAGE_FILE", dir + "/x.raw", "not on this node"}},
		{"file is a folder", settings.Settings{ImageFile: dir}, []string{"not a regular file"}},
		{"file and type", settings.Settings{ImageFile: dir + "/x.raw", ImageType: "iso"}, []string{`"iso"`}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.s.ImageDir = dir
			_, err := Find(t.Context(), &test.s, "x86_64")
			wantError(t, err, test.want...)
		})
	}
}

func TestImageFile(t *testing.T) {
	dir := t.TempDir()
	for name, want := range map[string]string{
		"a.qcow2": "qcow2", "a.img": "qemu", "a.raw": "raw", "a.tar": "tarball", "a.tar.xz": "tarball", "a.tgz": "tarball",
		"a-root.dump": "dump", "a.dump": "dump", "a": "qemu", "a.bin": "qemu", ".raw": "qemu",
	} {
		path := filepath.Join(dir, name)
		write(t, path, "x")
		got, err := Find(t.Context(), &settings.Settings{ImageFile: path, ImageURL: "http://unused.invalid/"}, "x86_64")
		if err != nil || got.Path != path || got.Type != want {
			t.Errorf("%s: got %s, %v, want %s", name, got.Type, err, want)
		}
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("a.qcow2", link); err != nil {
		t.Fatal(err)
	}
	got, err := Find(t.Context(), &settings.Settings{ImageFile: link, ImageType: "raw"}, "x86_64")
	if err != nil || got.Path != link || got.Type != "raw" {
		t.Errorf("got %+v, %v", got, err)
	}
}
