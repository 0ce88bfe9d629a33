package used

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

// A mounted file system, written to by the kernel; the steps are those of a
// guest's life.
const btrfsTestLife = `set -e
cd "$1"
mkdir a b
btrfs -q subvolume create sub
for i in $(seq 60); do
	head -c $((i * 1055)) /dev/urandom > a/$i
	head -c $((i * 4885)) /dev/urandom > sub/$i
done
head -c 12M /dev/urandom > big
head -c 12M /dev/zero > zero
fallocate -l 9M prealloc
fallocate -l 9M -o 50M far
sync
cp --reflink=always big clone
dd if=/dev/urandom of=big bs=4k count=300 seek=1300 conv=notrunc status=none
btrfs -q subvolume snapshot -r sub snap
rm -f a/*7 sub/*3
touch nocow && chattr +C nocow && head -c 5M /dev/urandom > nocow
sync
truncate -s 3M zero
fallocate -p -o 1M -l 2M big
for i in $(seq 12); do dd if=/dev/urandom of=db bs=4k count=1 seek=$((i * 37 % 101)) conv=notrunc,fsync status=none; done
ln a/10 b/hard
mkdir gone && head -c 8M /dev/urandom > gone/x && sync && rm -r gone
`

// btrfsMounted mounts an image for as long as do takes.
func btrfsMounted(t *testing.T, path, options string, do func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	btrfsTool(t, "mount", "-t", "btrfs", "-o", "loop"+options, path, dir)
	defer btrfsTool(t, "umount", dir)
	do(dir)
}

// btrfsSums reads all files.
func btrfsSums(t *testing.T, dir string) map[string]string {
	t.Helper()
	sums := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		sum := sha256.Sum256(data)
		sums[strings.TrimPrefix(path, dir)] = hex.EncodeToString(sum[:])
		return err
	})
	if err != nil || len(sums) < 100 {
		t.Fatalf("%d files: %v", len(sums), err)
	}
	return sums
}

func TestBtrfsWrittenByKernel(t *testing.T) {
	need.Root(t)
	need.Tools(t, "mkfs.btrfs", "btrfs", "mount", "umount", "fallocate", "chattr")
	need.File(t, "/dev/loop-control")
	cases := []struct {
		name    string
		length  size.Bytes
		options string
		after   string // what else is done, to $1
		mkfs    []string
	}{
		{name: "compressed, sha256", length: 256 * btrfsMiB, options: ",compress-force=zstd", mkfs: []string{"--csum", "sha256"}},
		{name: "mixed", length: 256 * btrfsMiB, mkfs: []string{"--mixed"}},
		{name: "free space cache, nodes of 4 KiB", length: 256 * btrfsMiB, options: ",space_cache=v1", mkfs: []string{"-R", "^free-space-tree", "-n", "4096"}},
		{name: "single, balanced", length: 512 * btrfsMiB, after: `btrfs -q balance start -f -mconvert=single -sconvert=single "$1"; rm -r "$1"/b; sync`},
		{name: "all dup, shrunk", length: 800 * btrfsMiB, after: `btrfs -q balance start -dconvert=dup "$1"; btrfs -q filesystem resize 700m "$1"`},
		{name: "default, quota", length: 256 * btrfsMiB, options: ",commit=1", after: `btrfs -q quota enable "$1"; btrfs -q quota rescan -w "$1"; btrfs -q subvolume delete "$1"/snap; btrfs -q subvolume sync -s 1 "$1"`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := btrfsTestImage(t, c.length, c.mkfs...)
			var before map[string]string
			btrfsMounted(t, path, c.options, func(dir string) {
				btrfsTool(t, "sh", "-c", btrfsTestLife+c.after, "sh", dir)
				before = btrfsSums(t, dir)
			})
			copied := checkBtrfsFile(t, path)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			btrfsMounted(t, copied, "", func(dir string) {
				for name, sum := range btrfsSums(t, dir) {
					if before[name] != sum {
						t.Errorf("%s is not as it was", name)
					}
					delete(before, name)
				}
				if len(before) > 0 {
					t.Errorf("%d files are missing", len(before))
				}
				btrfsTool(t, "btrfs", "scrub", "start", "-B", dir)
			})
		})
	}
}

// A copy taken while a file system is in use has a log.
func TestBtrfsLog(t *testing.T) {
	need.Root(t)
	need.Tools(t, "mkfs.btrfs", "btrfs", "mount", "umount")
	need.File(t, "/dev/loop-control")
	path := btrfsTestImage(t, 256*btrfsMiB)
	copied := filepath.Join(t.TempDir(), "copy")
	btrfsMounted(t, path, ",commit=300", func(dir string) {
		btrfsTool(t, "sh", "-c", `cd "$1" && echo 1 > one && sync && echo 2 > two && dd if=/dev/zero of=two bs=4k count=9 conv=fsync status=none`, "sh", dir)
		if out, err := exec.Command("cp", path, copied).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	})
	if _, err := usedBtrfs(t, copied); !errors.Is(err, ErrUnsure) || !strings.Contains(err.Error(), "log") {
		t.Errorf("with a log to be replayed: %v", err)
	}
}
