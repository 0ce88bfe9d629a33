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
		info, err := Make(t.Context(), path, kind)
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
		if kind == Ext4 {
			if got := judge("dumpe2fs", "-h"); strings.Contains(got, "metadata_csum_seed") || strings.Contains(got, "orphan_file") {
				t.Errorf("a feature that older guests do not know: %s", got)
			}
		}
	}
	if _, err := Make(t.Context(), "/dev/null", NTFS); err == nil || !strings.Contains(err.Error(), "want one of") {
		t.Errorf("got %v", err)
	}
}
