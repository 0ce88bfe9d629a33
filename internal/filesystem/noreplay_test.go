package filesystem

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

// A new file system waits for nothing; one whose mark is set, or that cannot be
// read, is told from it.
func TestUnreplayed(t *testing.T) {
	marks := map[Kind]int64{Ext4: 1024 + 96, Btrfs: 64<<10 + 96, XFS: -1}
	for kind, mark := range marks {
		need.Tools(t, "mkfs."+string(kind))
		path := filepath.Join(t.TempDir(), "fs")
		const length = 320 * size.MiB
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, int64(length))); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("/usr/bin/env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "mkfs."+string(kind), "-q", path).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if why := Unreplayed(f, length, kind); why != "" {
			t.Errorf("%s as it was made: %s", kind, why)
		}
		if mark < 0 {
			if Unreplayed(f, size.MiB, kind) == "" {
				t.Errorf("%s that is cut off is said to be clean", kind)
			}
			continue
		}
		b := make([]byte, 1)
		_, err = f.ReadAt(b, mark)
		b[0] |= 4
		if _, e := f.WriteAt(b, mark); err != nil || e != nil {
			t.Fatal(err, e)
		}
		if Unreplayed(f, length, kind) == "" {
			t.Errorf("%s with a journal to replay is said to be clean", kind)
		}
	}
	if why := Unreplayed(nil, 0, VFAT); why != "" {
		t.Errorf("vfat has no journal: %s", why)
	}
}

func TestNoReplayOptions(t *testing.T) {
	for _, kind := range []Kind{Ext2, Ext3, Ext4, XFS, Btrfs, VFAT} {
		if len(NoReplayOptions(kind)) == 0 {
			t.Errorf("there is no way to mount %s", kind)
		}
	}
}

func TestCheckUnmounted(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "u-1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if checkUnmounted(dir, "u-1") == nil || checkUnmounted(dir, "u-2") != nil {
		t.Error("a btrfs that is mounted is not told from one that is not")
	}
}
