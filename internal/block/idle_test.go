package block

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
)

func TestOpenIdleSource(t *testing.T) {
	for name, path := range map[string]string{"file": disk(t, size.MiB), "block device": device(t, size.MiB)} {
		s, err := OpenIdleSource(path)
		if err != nil {
			t.Fatal(name, err)
		}
		if s.Size() != size.MiB || s.Path() != path {
			t.Errorf("%s: %+v", name, s)
		}
		if _, err := s.ReadAt(make([]byte, 512), 512); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		who := "another process holds its lock"
		if name == "block device" {
			who = "the kernel refuses to hand it out"
		}
		refusedSource(t, path, who)
		refused(t, path, who)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		openDisk(t, path)
		refusedSource(t, path, who)
	}
	for path, want := range map[string]string{t.TempDir(): "neither", "/dev/null": "neither", "/nonexistent": "no such file"} {
		if _, err := OpenIdleSource(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func refusedSource(t *testing.T, path string, want string) {
	t.Helper()
	s, err := OpenIdleSource(path)
	if err == nil {
		s.Close()
	}
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: got %v, want that it is in use: %s", path, err, want)
	}
}

func TestOpenIdleSourceRefusesDisksInUse(t *testing.T) {
	path := device(t, 64*size.MiB)
	tool(t, "mkfs.ext4", "-q", path)
	at := t.TempDir()
	if err := unix.Mount(path, at, "ext4", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	refusedSource(t, path, "mounted on "+at)
	if err := unix.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	file := disk(t, size.MiB)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_RDLCK, Start: 100, Len: 1} // as QEMU does
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		t.Fatal(err)
	}
	refusedSource(t, file, "QEMU")
	lock.Type = unix.F_UNLCK
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		t.Fatal(err)
	}
	s, err := OpenIdleSource(file)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.CheckIdle(); err != nil {
		t.Errorf("a disk that only we use: %v", err)
	}
	lock.Type = unix.F_RDLCK
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		t.Fatal(err)
	}
	if err := s.CheckIdle(); !errors.Is(err, ErrInUse) {
		t.Errorf("a disk that QEMU uses since: %v", err)
	}
}
