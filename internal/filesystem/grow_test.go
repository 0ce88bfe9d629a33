package filesystem

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

// device gives a file a block device.
func device(t *testing.T, path string) string {
	t.Helper()
	need.Root(t)
	need.File(t, "/dev/loop-control")
	stat, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	loop, err := block.Attach(path, 0, size.Bytes(stat.Size()), 512, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := loop.Detach(); err != nil {
			t.Error(err)
		}
	})
	return loop.Path()
}

// onMount mounts the filesystem for a moment.
func onMount(t *testing.T, dev string, info Info, use func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(dev, dir, string(info.Kind), 0, strings.Join(MountOptions(info.Kind), ",")); err != nil {
		t.Fatalf("cannot mount %s %+v: %v", dev, info, err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	use(dir)
}

func TestGrow(t *testing.T) {
	need.Root(t)
	cases := []struct {
		mkfs     string
		from, to size.Bytes
		check    string
	}{
		{"mkfs.ext2 -q", 64 * size.MiB, 500 * size.MiB, "e2fsck -fn"},
		{"mkfs.ext3 -q -b 1024", 64 * size.MiB, 500 * size.MiB, "e2fsck -fn"},
		{"mkfs.ext4 -q", 64 * size.MiB, 100 * size.GiB, "e2fsck -fn"},
		{"mkfs.ext4 -q -O ^64bit,^resize_inode,meta_bg", 64 * size.MiB, 5 * size.GiB, "e2fsck -fn"},
		{"mkfs.xfs -q", 512 * size.MiB, 5 * size.GiB, "xfs_repair -n"},
		{"mkfs.btrfs -q", 256 * size.MiB, 5 * size.GiB, "btrfs check -p"},
	}
	for _, c := range cases {
		t.Run(c.mkfs, func(t *testing.T) {
			path := sparse(t, c.from)
			tool(t, append(strings.Fields(c.mkfs), path)...)
			info := probeFile(t, path)
			if err := os.Truncate(path, int64(c.to)); err != nil {
				t.Fatal(err)
			}
			dev := device(t, path)
			onMount(t, dev, info, func(dir string) {
				if err := os.WriteFile(dir+"/kept", []byte("kept"), 0o600); err != nil {
					t.Error(err)
				}
			})
			dir := t.TempDir()
			for range 2 {
				if err := Grow(t.Context(), dev, info, dir); err != nil {
					t.Fatal(err)
				}
			}
			tool(t, append(strings.Fields(c.check), dev)...)
			onMount(t, dev, info, func(dir string) {
				var fs unix.Statfs_t
				if err := unix.Statfs(dir, &fs); err != nil {
					t.Fatal(err)
				}
				if total := size.Bytes(fs.Blocks) * size.Bytes(fs.Frsize); total < c.to/100*92 {
					t.Errorf("the kernel says it has %s of %s", total, c.to)
				}
				if text, err := os.ReadFile(dir + "/kept"); string(text) != "kept" {
					t.Errorf("%q, %v", text, err)
				}
			})
			if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
				t.Errorf("%v is left mounted, %v", left, err)
			}
		})
	}
}

// TestGrowDirty grows ext4 that was not unmounted, with errors besides.
func TestGrowDirty(t *testing.T) {
	need.Tools(t, "mkfs.ext4", "debugfs", "e2fsck", "resize2fs")
	path := sparse(t, 64*size.MiB)
	tool(t, "mkfs.ext4", "-q", path)
	tool(t, "debugfs", "-w", "-R", "ssv free_blocks_count 7", path)
	tool(t, "debugfs", "-w", "-R", "clri <11>", path)
	info := probeFile(t, path)
	os.Truncate(path, int64(size.GiB))
	if err := Grow(t.Context(), path, info, ""); err != nil {
		t.Fatal(err)
	}
	tool(t, "e2fsck", "-fn", path)
	if got := probeFile(t, path); got.Size != size.GiB || got.UUID != info.UUID {
		t.Errorf("%+v, was %+v", got, info)
	}
}

// TestGrowClones grows a disk while another instance's, of the same image, is mounted.
func TestGrowClones(t *testing.T) {
	need.Root(t)
	for _, mkfs := range []string{"mkfs.xfs -q", "mkfs.btrfs -q"} {
		first := sparse(t, 512*size.MiB)
		tool(t, append(strings.Fields(mkfs), first)...)
		second := filepath.Join(t.TempDir(), "second")
		tool(t, "cp", "--sparse=always", first, second)
		info := probeFile(t, first)
		os.Truncate(second, int64(2*size.GiB))
		onMount(t, device(t, first), info, func(string) {
			if err := Grow(t.Context(), device(t, second), info, t.TempDir()); err != nil {
				t.Error(err)
			}
		})
		if got := probeFile(t, second); got.Size < size.GiB || probeFile(t, first).Size != 512*size.MiB {
			t.Errorf("%s: %+v", mkfs, got)
		}
	}
}

func TestGrowLeavesToGuest(t *testing.T) {
	need.Root(t)
	cases := []struct {
		mkfs string
		then string
		size size.Bytes
		want string
	}{
		{"mkfs.vfat", "", 64 * size.MiB, "does not grow that kind"},
		{"mkswap -q", "", 64 * size.MiB, "does not grow that kind"},
		{"true", "", 64 * size.MiB, "filesystem (unknown)"},
		{"mkfs.ext4 -q", "debugfs -w -R feature.FEATURE_I31", 64 * size.MiB, "FEATURE_I31"},
		{"mkfs.ext4 -q", "debugfs -w -R feature.FEATURE_R31", 64 * size.MiB, "FEATURE_R31"},
		{"mkfs.ext4 -q", "debugfs -w -R feature.FEATURE_C31", 64 * size.MiB, "FEATURE_C31"},
		{"mkfs.xfs -q", "xfs_db -x -c sb.0 -c write.-d.features_incompat.0x80000003", 512 * size.MiB, "refuses to mount"},
	}
	for _, c := range cases {
		path := sparse(t, c.size)
		tool(t, append(strings.Fields(c.mkfs), path)...)
		if c.then != "" {
			argv := strings.Fields(c.then)
			for i := range argv {
				argv[i] = strings.ReplaceAll(argv[i], ".", " ")
			}
			tool(t, append(argv, path)...)
		}
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		info := probeFile(t, path)
		info.Size = min(info.Size, c.size/2) // so that there is something to gain
		err = Grow(t.Context(), device(t, path), info, t.TempDir())
		if !errors.Is(err, ErrLeftToGuest) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want it to say %q", c.mkfs, err, c.want)
		}
		if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
			t.Errorf("%s %s: it was changed", c.mkfs, c.then)
		}
	}
	// A tool that refuses only after the check.
	path := sparse(t, 64*size.MiB)
	tool(t, "mkfs.ext4", "-q", "-O", "bigalloc", path)
	os.Truncate(path, int64(size.GiB))
	err := Grow(t.Context(), path, probeFile(t, path), "")
	if tool(t, "e2fsck", "-fn", path); !errors.Is(err, ErrLeftToGuest) || !strings.Contains(err.Error(), "bigalloc") {
		t.Error(err)
	}
	err = Grow(t.Context(), "/dev/none", Info{Kind: Btrfs, Apart: "it is on 2 devices"}, "")
	if !errors.Is(err, ErrLeftToGuest) || !strings.Contains(err.Error(), "2 devices") {
		t.Error(err)
	}
}

func TestGrowNeverShrinks(t *testing.T) {
	path := sparse(t, 64*size.MiB)
	tool(t, "mkfs.ext4", "-q", path)
	info := probeFile(t, path)
	os.Truncate(path, int64(32*size.MiB))
	if err := Grow(t.Context(), path, info, ""); err == nil || errors.Is(err, ErrLeftToGuest) {
		t.Error(err)
	}
}

// TestMountOptions has a superblock that asks for a crash at the first error.
func TestMountOptions(t *testing.T) {
	path := sparse(t, 64*size.MiB)
	tool(t, "mkfs.ext4", "-q", "-e", "panic", path)
	dev := device(t, path)
	onMount(t, dev, probeFile(t, path), func(dir string) {
		text, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, " "+dir+" ") && strings.Contains(line, "errors=panic") {
				t.Error(line)
			}
		}
	})
}

func TestLockUUID(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	unlock, err := lockUUID(t.Context(), dir, "a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := lockUUID(t.Context(), dir, "b")
	if err != nil {
		t.Fatal(err)
	}
	defer other()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("asked to stop"))
	defer cancel()
	if _, err := lockUUID(ctx, dir, "a"); err == nil || !strings.Contains(err.Error(), "asked to stop") {
		t.Error(err)
	}
	time.AfterFunc(50*time.Millisecond, func() { unlock() })
	again, err := lockUUID(t.Context(), dir, "a")
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestReleaseAtLeast(t *testing.T) {
	for release, want := range map[string]bool{"6.7.0": true, "6.18.44-x": true, "6.1.0-18-amd64": false, "5.10": false, "7.0": true, "x": false} {
		if got := releaseAtLeast(release, 6, 7); got != want {
			t.Errorf("%s: %v", release, got)
		}
	}
}
