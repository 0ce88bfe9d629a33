package filesystem

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

func TestMake(t *testing.T) {
	for _, old := range []bool{false, true} {
		testMake(t, Options{Old: old})
	}
	if _, err := Make(t.Context(), "/dev/null", NTFS, Options{}); err == nil || !strings.Contains(err.Error(), "want one of") {
		t.Errorf("got %v", err)
	}
}

// notOld are features that CentOS 7 does not know.
var notOld = []string{"metadata_csum", "64bit", "reflink=1", "bigtime=1", "FREE_SPACE_TREE"}

func testMake(t *testing.T, options Options) {
	checks := map[Kind][]string{
		Ext2: {"e2fsck", "-fn"}, Ext3: {"e2fsck", "-fn"}, Ext4: {"e2fsck", "-fn"},
		XFS: {"xfs_repair", "-n"}, Btrfs: {"btrfs", "check"}, Swap: {"swaplabel"},
	}
	for kind := range makers {
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, int64(320*size.MiB)); err != nil {
			t.Fatal(err)
		}
		need.Tools(t, kind.Maker(), checks[kind][0], "blkid")
		info, err := Make(t.Context(), path, kind, options)
		if err != nil || info.Kind != kind {
			t.Fatalf("%s: %+v, %v", kind, info, err)
		}
		judge := func(argv ...string) string {
			out, err := exec.Command("/usr/sbin/"+argv[0], append(argv[1:], path)...).CombinedOutput()
			if name, e := exec.LookPath(argv[0]); err != nil && e == nil {
				out, err = exec.Command(name, append(argv[1:], path)...).CombinedOutput()
			}
			if err != nil {
				t.Errorf("%s: %v: %s", kind, argv, out)
			}
			return string(out)
		}
		judge(checks[kind]...)
		if got := judge("blkid", "-p", "-o", "value", "-s", "UUID", "-s", "TYPE"); strings.Join(strings.Fields(got), " ") != info.UUID+" "+string(kind) {
			t.Errorf("%s: blkid sees %q, not %s", kind, got, info.UUID)
		}
		said := ""
		switch kind {
		case Ext4:
			said = judge("dumpe2fs", "-h")
		case XFS:
			said = judge("xfs_info")
		case Btrfs:
			said = judge("btrfs", "inspect-internal", "dump-super")
		}
		for _, feature := range notOld {
			if options.Old && strings.Contains(said, feature) {
				t.Errorf("%s: the feature %s, which older guests do not know:\n%s", kind, feature, said)
			}
		}
		named, err := SetNames(t.Context(), path, kind, "01234567-89ab-4cde-8f01-23456789abcd", "guest")
		if err != nil || named.UUID != "01234567-89ab-4cde-8f01-23456789abcd" || named.Label != "guest" {
			t.Errorf("%s: %+v, %v", kind, named, err)
		}
		judge(checks[kind]...)
		if got := judge("blkid", "-p", "-o", "value", "-s", "UUID", "-s", "LABEL"); strings.Join(strings.Fields(got), " ") != "guest "+named.UUID {
			t.Errorf("%s: blkid sees %q", kind, got)
		}
		if _, err := SetNames(t.Context(), path, kind, "no UUID", ""); err == nil {
			t.Errorf("%s: took a UUID that is none", kind)
		}
	}
}

// TestOwnFeatures has a site's options for mkfs replace ours.
func TestOwnFeatures(t *testing.T) {
	need.Tools(t, "mkfs.ext4", "dumpe2fs", "tune2fs", "e2fsck")
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 64<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Make(t.Context(), path, Ext4, Options{Old: true, Features: []string{"-O", "metadata_csum,64bit", "-m", "0"}}); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("/usr/sbin/dumpe2fs", "-h", path).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "metadata_csum") || !strings.Contains(string(out), "64bit") {
		t.Errorf("%v: %s", err, out)
	}
	if info, err := SetNames(t.Context(), path, Ext4, "01234567-89ab-4cde-8f01-23456789abcd", ""); err != nil || info.UUID[:8] != "01234567" {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := Make(t.Context(), path, Ext4, Options{Features: []string{"--no-such-option"}}); err == nil {
		t.Error("took an option that there is not")
	}
}

func TestSetNamesRefuses(t *testing.T) {
	for _, label := range []string{"$(>pwn)", "a b", "'", "-x", "a\nb", "`x`"} {
		if _, err := SetNames(t.Context(), "/dev/null", XFS, "", label); err == nil || !strings.Contains(err.Error(), "not allowed") {
			t.Errorf("%q: %v", label, err)
		}
	}
	if _, err := SetNames(t.Context(), "/dev/null", NTFS, "x", ""); err == nil || !strings.Contains(err.Error(), "no program for it is known") {
		t.Error(err)
	}
}
