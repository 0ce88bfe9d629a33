package dump

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
)

// TestRealDump compares what dump(8) made of a file system with the file system.
func TestRealDump(t *testing.T) {
	need.Root(t)
	need.Tools(t, "dump", "mkfs.ext4", "losetup", "mount", "umount")
	need.File(t, "/dev/loop-control")
	for _, source := range []struct {
		name  string
		mkfs  []string
		dumps [][]string
	}{
		{"4k blocks with inline_data", []string{"-b", "4096", "-I", "256", "-O", "inline_data"}, [][]string{{}, {"-z"}, {"-y", "-b", "1024"}, {"-z", "-b", "1"}}},
		{"1k blocks and inodes of 128 bytes", []string{"-b", "1024", "-I", "128", "-O", "^dir_index,^extent,^64bit"}, [][]string{{"-j", "-b", "32"}, {"-M", "-B", "700"}, {"-M", "-z", "-B", "300"}}},
		{"no filetype and inodes of 1024 bytes", []string{"-b", "4096", "-I", "1024", "-O", "^filetype"}, [][]string{{"-z", "-b", "64"}}},
	} {
		t.Run(source.name, func(t *testing.T) {
			device, want := makeSource(t, source.mkfs)
			for _, options := range source.dumps {
				t.Run(strings.Join(options, " "), func(t *testing.T) {
					a, err := OpenVolumes(dumpOf(t, device, options))
					if err != nil {
						t.Fatal(err)
					}
					defer a.Close()
					if diff := cmp.Diff(want, readAll(t, a, storedSum)); diff != "" {
						t.Error(diff)
					}
					for _, w := range a.Warnings() {
						// That of the orphan file of newer mkfs.ext4.
						if !strings.Contains(w, "has no name") {
							t.Error(w)
						}
					}
				})
			}
		})
	}
}

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func dumpOf(t testing.TB, device string, options []string) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dump")
	command(t, "dump", append(append([]string{"-0", "-q"}, options...), "-f", path, device)...)
	paths, err := filepath.Glob(path + "*")
	if err != nil || len(paths) == 0 {
		t.Fatalf("%q, %v", paths, err)
	}
	return paths
}

// makeSource makes a file system on a loop device and returns what is in it.
func makeSource(t *testing.T, mkfs []string) (string, map[string]fact) {
	t.Helper()
	dir := t.TempDir()
	image, root := filepath.Join(dir, "image"), filepath.Join(dir, "root")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 96<<20), os.Mkdir(root, 0o755)); err != nil {
		t.Fatal(err)
	}
	command(t, "mkfs.ext4", append(append([]string{"-q", "-F"}, mkfs...), image)...)
	device := command(t, "losetup", "-f", "--show", image)
	t.Cleanup(func() { command(t, "losetup", "-d", device) })
	command(t, "mount", device, root)
	mounted := true
	t.Cleanup(func() {
		if mounted {
			command(t, "umount", root)
		}
	})
	populate(t, root)
	facts := walk(t, root)
	command(t, "umount", root)
	mounted = false
	return device, facts
}

// populate makes one file of everything that a dump can hold.
func populate(t *testing.T, root string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(root, name) }
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = "abcdefgh"[random.IntN(8)]
		}
		return b
	}
	for _, n := range []int{0, 1, 59, 60, 61, 100, 130, 156, 157, 200, 1023, 1024, 1025, 4096, 100_000, 1_500_001} {
		ok(os.WriteFile(at(fmt.Sprintf("file%d", n)), noise(n), 0o640))
	}
	// Blocks of it are not worth compressing.
	incompressible := make([]byte, 300_000)
	for i := range incompressible {
		incompressible[i] = byte(random.Uint32())
	}
	ok(os.WriteFile(at("random"), incompressible, 0o600))
	for _, n := range []int{1, 59, 60, 61, 100, 150, 800, 1020} {
		ok(os.Symlink(string(noise(n)), at(fmt.Sprintf("link%d", n))))
	}
	ok(os.Symlink("\xff\n target", at("link \xff\n")))
	sparse, err := os.Create(at("sparse"))
	ok(err)
	for _, offset := range []int64{0, 70_000, 70_000 << 10, 3_000_000_000, 5<<30 - 5} {
		_, err := sparse.WriteAt([]byte("there"), offset)
		ok(err)
	}
	// SEEK_DATA finds nothing in a file without extents before it is written out.
	ok(errors.Join(sparse.Truncate(5<<30+12345), sparse.Sync(), sparse.Close()))
	ok(os.Mkdir(at("many"), 0o2755))
	for i := range 700 {
		ok(os.WriteFile(at(fmt.Sprintf("many/a_name_that_needs_room_%d", i)), nil, 0o600))
	}
	for i := range 5 {
		ok(os.Link(at("file100"), at(fmt.Sprintf("many/hard%d", i))))
	}
	ok(os.MkdirAll(at("deep/"+strings.Repeat("d/", 40)), 0o700))
	ok(os.WriteFile(at("many/"+strings.Repeat("n", 254)), []byte("long"), 0o600))
	nodes := []struct {
		name         string
		mode         uint32
		major, minor uint32
	}{
		{"null", unix.S_IFCHR, 1, 3}, {"large", unix.S_IFCHR, 300, 70000}, {"disk", unix.S_IFBLK, 259, 1048575},
		{"edge", unix.S_IFBLK, 8, 255}, {"edge2", unix.S_IFBLK, 8, 256}, {"pipe", unix.S_IFIFO, 0, 0}, {"socket", unix.S_IFSOCK, 0, 0},
	}
	for _, n := range nodes {
		err := unix.Mknod(at(n.name), n.mode|0o660, int(unix.Mkdev(n.major, n.minor)))
		if n.minor >= 1<<18 && errors.Is(err, unix.EINVAL) {
			continue // XFS has 18 bits
		}
		ok(err)
	}
	ok(os.Lchown(at("file1"), 100_000, 200_000))
	ok(os.Lchown(at("file0"), 4_000_000_000, 4_100_000_000))
	ok(os.Lchown(at("link59"), 5, 6))
	ok(unix.Chmod(at("file61"), 0o6755))
	setAttributes(t, at)
	old := time.Unix(1_234_567_890, 0)
	ok(filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		// Only seconds are in a dump.
		times := []unix.Timespec{{Sec: old.Unix()}, {Sec: old.Unix() + int64(len(path)%100)}}
		return errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW))
	}))
}

// aclOf is an ACL for setxattr(2) with one entry for a user.
func aclOf(user, mask uint16) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 7, aclNobody}, {2, user, 1234}, {4, 5, aclNobody}, {8, 4, 70_000}, {16, mask, aclNobody}, {32, 4, aclNobody}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

func setAttributes(t *testing.T, at func(string) string) {
	t.Helper()
	for _, x := range []struct {
		file, name string
		value      []byte
	}{
		{"file1", "user.short", []byte("x")},
		{"file1", "user.empty", []byte{}},
		{"file200", "user.long", bytes.Repeat([]byte("v"), 700)},
		{"file200", "trusted.t", []byte{0, 255, 10}},
		{"file200", "user.in the inode", []byte("y")},
		{"file4096", "system.posix_acl_access", aclOf(6, 7)},
		{"link61", "trusted.of a link", []byte("l")},
		{"null", "security.of a device", []byte("d")},
		{"pipe", "trusted.p", []byte("p")},
		{"many", "system.posix_acl_access", aclOf(5, 7)},
		{"many", "system.posix_acl_default", aclOf(3, 7)},
		{"many", "user.directory", bytes.Repeat([]byte("w"), 300)},
		{".", "user.root", []byte("r")},
		// cap_net_raw+ep, struct vfs_cap_data of revision 2.
		{"file1025", "security.capability", append([]byte{1, 0, 0, 2, 0, 32}, make([]byte, 14)...)},
	} {
		if err := unix.Lsetxattr(at(x.file), x.name, x.value, 0); err != nil {
			t.Fatalf("%s of %s: %v", x.name, x.file, err)
		}
	}
}

// walk makes facts of a mounted file system.
func walk(t *testing.T, root string) map[string]fact {
	t.Helper()
	facts := map[string]fact{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name := "/" + strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
		f := fact{Path: []byte(name), Mode: "0o" + strconv.FormatUint(uint64(st.Mode), 8), UID: st.Uid, GID: st.Gid,
			MTime: st.Mtim.Sec, Nlink: int(st.Nlink), Xattrs: xattrsOf(t, path)}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			f.Nlink = 1
		case unix.S_IFREG:
			f.Size, f.SHA256 = st.Size, sourceSum(t, path, st.Size)
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			f.Link = []byte(target)
		case unix.S_IFCHR, unix.S_IFBLK:
			f.Rdev = []uint32{unix.Major(st.Rdev), unix.Minor(st.Rdev)}
		}
		facts[name] = f
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return facts
}

func xattrsOf(t *testing.T, path string) map[string][]byte {
	t.Helper()
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		t.Fatal(err)
	}
	var values map[string][]byte
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatal(err)
		}
		if values == nil {
			values = map[string][]byte{}
		}
		values[name] = value[:n:n]
	}
	return values
}

// addStored adds to a sum the bytes of content that are not zero, by KiB, so that
// holes of any size take no time.
func addStored(sum hash.Hash, at int64, b []byte) {
	for len(b) > 0 {
		n := min(int64(len(b)), recordSize-at%recordSize)
		if !bytes.Equal(b[:n], zeros[:n]) {
			fmt.Fprintf(sum, "%d %q\n", at, b[:n])
		}
		at, b = at+n, b[n:]
	}
}

func storedSum(_ testing.TB, a *Archive, _ int64) (string, error) {
	sum := sha256.New()
	for {
		at, b, err := a.Data()
		if err == io.EOF {
			return hex.EncodeToString(sum.Sum(nil)), nil
		}
		if err != nil {
			return "", err
		}
		addStored(sum, at, b)
	}
}

func sourceSum(t *testing.T, path string, size int64) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum := sha256.New()
	for at := int64(0); at < size; {
		from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if at, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, at-from)
		if _, err := f.ReadAt(b, from); err != nil {
			t.Fatal(err)
		}
		addStored(sum, from, b)
	}
	return hex.EncodeToString(sum.Sum(nil))
}
