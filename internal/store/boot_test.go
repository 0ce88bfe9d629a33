package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/settings"
)

func TestBootDumpBesideTheRoots(t *testing.T) {
	dir := t.TempDir()
	root, boot := filepath.Join(dir, "deb-root.dump"), filepath.Join(dir, "deb-boot.dump")
	write(t, root, "root")
	both := []*settings.Settings{{ImageDir: dir, ImageName: "deb"}, {ImageFile: root}}
	for _, s := range both {
		if got, err := Find(t.Context(), s, "x86_64"); err != nil || got.Boot != "" {
			t.Errorf("without one: %+v, %v", got, err)
		}
	}
	write(t, boot, "boot")
	for _, s := range both {
		if got, err := Find(t.Context(), s, "x86_64"); err != nil || got.Path != root || got.Boot != boot {
			t.Errorf("got %+v, %v", got, err)
		}
	}
	if err := os.Remove(boot); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", boot); err != nil {
		t.Fatal(err)
	}
	for _, s := range both {
		_, err := Find(t.Context(), s, "x86_64")
		wantError(t, err, boot, "link")
	}
}

func TestBootDumpAtTheServer(t *testing.T) {
	web := newSite(t, false)
	web.publish("/osl/deb-root.dump", content)
	find := func(cleanup bool) (Found, *settings.Settings, error) {
		s := settings.Settings{ImageURL: web.URL + "/osl", ImageName: "deb", ImageType: "dump", ImageVerify: true, ImageCleanup: cleanup}
		st := web.newStore(t, s)
		got, err := st.find(t.Context())
		return got, st.settings, err
	}
	if got, _, err := find(false); err != nil || got.Boot != "" {
		t.Errorf("without one: %+v, %v", got, err)
	}
	web.publish("/osl/deb-boot.dump", content+"boot")
	for _, cleanup := range []bool{false, true} {
		got, s, err := find(cleanup)
		wantFile(t, got, err, content)
		if text, err := os.ReadFile(got.Boot); err != nil || string(text) != content+"boot" {
			t.Errorf("the dump of /boot is %d bytes: %v", len(text), err)
		}
		if err := got.Cleanup(); err != nil {
			t.Error(err)
		}
		if cleanup {
			wantEmpty(t, s.CacheDir)
		}
	}
	web.files["/osl/deb-boot.dump.sha256"] = strings.Repeat("0", 64) + "  deb-boot.dump\n"
	_, s, err := find(true)
	wantError(t, err, "deb-boot.dump", "checksum")
	wantEmpty(t, s.CacheDir)
}
