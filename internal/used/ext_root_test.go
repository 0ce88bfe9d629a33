package used

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
)

// extMounted is a file system that Linux has mounted.
type extMounted struct{ image, dir string }

func extMount(t *testing.T, image string) extMounted {
	t.Helper()
	need.Root(t)
	need.Tools(t, "mount", "umount", "fsfreeze")
	need.File(t, "/dev/loop-control")
	m := extMounted{image, t.TempDir()}
	extRun(t, "mount", "-o", "loop", image, m.dir)
	t.Cleanup(func() { _ = unix.Unmount(m.dir, unix.MNT_DETACH) })
	return m
}

func (m extMounted) unmount(t *testing.T) {
	t.Helper()
	extRun(t, "umount", m.dir)
}

// churn writes, removes, cuts, preallocates and punches holes.
func (m extMounted) churn(t *testing.T, seed byte) {
	t.Helper()
	stream, random := rand.NewChaCha8([32]byte{seed}), rand.New(rand.NewPCG(uint64(seed), 0))
	for i := range 60 {
		path := filepath.Join(m.dir, fmt.Sprintf("churn%d-%d", seed, i))
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, random.IntN(200_000))
		_, _ = stream.Read(data) // never fails
		if _, err = f.Write(data); err == nil {
			err = extMistreat(f, i)
		}
		if err = errors.Join(err, f.Close()); err == nil && i%3 == 0 {
			err = os.Remove(path)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	extRun(t, "sync", "-f", m.dir)
}

func extMistreat(f *os.File, i int) error {
	err := error(nil)
	switch i % 7 {
	case 1:
		err = f.Truncate(5000)
	case 2:
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 100_000, 500_000)
	case 3:
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 8192, 65536)
	}
	if errors.Is(err, unix.EOPNOTSUPP) { // a file without extents
		return nil
	}
	return err
}

func (m extMounted) snapshot(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snapshot")
	extRun(t, "cp", "--sparse=always", m.image, path)
	return path
}

// What Linux writes: in use, crashed and repaired, frozen, and unmounted.
func TestExtMounted(t *testing.T) {
	need.Root(t)
	atRest := 0
	for name, options := range map[string]string{
		"ext2":     "-t ext2 -b 1024",
		"ext3":     "-t ext3 -b 1024",
		"ext4":     "-t ext4 -b 4096",
		"gdt_csum": "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg",
		"bigalloc": "-t ext4 -b 4096 -O bigalloc -C 16384",
		"orphans":  "-t ext4 -b 4096 -O orphan_file,fast_commit",
	} {
		t.Run(name, func(t *testing.T) {
			m := extMount(t, extImage(t, "100M", strings.Fields(options)...))
			m.churn(t, 1)
			f, length := extOpenImage(t, m.image)
			_, err := Ext(f, length)
			if !errors.Is(err, ErrUnsure) {
				t.Fatalf("mounted: %v", err)
			}
			crashed := m.snapshot(t)
			if m.frozen(t) {
				atRest++
			}
			m.churn(t, 2)
			m.unmount(t)
			extJudge(t, m.image)
			extRun(t, "sh", "-c", `e2fsck -fy "$0" || test $? = 1`, crashed)
			extJudge(t, crashed)
		})
	}
	if atRest == 0 {
		t.Error("no frozen snapshot was at rest")
	}
}

// frozen judges a snapshot that was taken while nothing could be written, and
// tells whether it was said to be at rest. Of ext2 the state says that it is
// mounted then too, and of others the journal's flag may still stand: to refuse
// is never wrong.
func (m extMounted) frozen(t *testing.T) bool {
	t.Helper()
	extRun(t, "fsfreeze", "-f", m.dir)
	snapshot := m.snapshot(t)
	extRun(t, "fsfreeze", "-u", m.dir)
	f, length := extOpenImage(t, snapshot)
	if _, err := Ext(f, length); errors.Is(err, ErrUnsure) {
		t.Log(err)
		return false
	}
	extJudge(t, snapshot)
	return true
}

// Files that were removed while they were open are used until they are let go.
func TestExtOrphans(t *testing.T) {
	for _, options := range []string{"-t ext4 -b 4096", "-t ext4 -b 4096 -O orphan_file"} {
		m := extMount(t, extImage(t, "100M", strings.Fields(options)...))
		snapshot := m.withOrphan(t, "long")
		disk, length := extOpenImage(t, snapshot)
		clone := extCopy(t, disk, length, extUsed(t, disk, length))
		before, after := extMount(t, snapshot), extMount(t, clone)
		if got, want := after.sums(t), before.sums(t); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		for _, m := range []extMounted{m, before, after} {
			m.unmount(t)
			extRun(t, "e2fsck", "-f", "-n", m.image)
		}
	}
}

// withOrphan is a frozen snapshot in which a file is removed, but still open.
func (m extMounted) withOrphan(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(filepath.Join(m.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		t.Fatal(err)
	}
	extRun(t, "fsfreeze", "-f", m.dir)
	defer extRun(t, "fsfreeze", "-u", m.dir)
	return m.snapshot(t)
}

func (m extMounted) sums(t *testing.T) string {
	t.Helper()
	return extRun(t, "sh", "-c", `cd "$0" && find . -type f -exec sha256sum {} + | sort`, m.dir)
}
