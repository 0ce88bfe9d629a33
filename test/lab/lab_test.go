//go:build lab

package lab_test

import (
	"context"
	"testing"
	"time"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/test/lab"
)

// bootLimit is for a machine without KVM that is busy otherwise too. A boot
// takes about 30 s without KVM on an idle one.
const bootLimit = 5 * time.Minute

// open returns the lab, for tests that make images and boot them. They prove
// the lab, not the program, and take minutes, so they are built on request:
//
//	TEST_MACHINE=yes go test -tags lab -timeout 1h ./test/lab
func open(t *testing.T) *lab.Lab {
	t.Helper()
	need.Machine(t)
	need.File(t, "/dev/loop-control")
	need.Tools(t, "mmdebstrap", "sfdisk", "mkfs.vfat", "mcopy", "mkfs.xfs", "mkfs.btrfs", "mkswap", "lvm", "grub-mkimage", "qemu-img", "qemu-system-x86_64")
	l, err := lab.Open()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// took logs how long the steps of a test took, to notice when they grow.
func took(t *testing.T, what string, since time.Time) {
	t.Helper()
	t.Logf("%s: %.1f s", what, time.Since(since).Seconds())
}

func TestLayoutsBoot(t *testing.T) {
	l := open(t)
	for _, layout := range lab.Layouts() {
		spec := lab.Spec{Layout: layout, Compression: "zstd"}
		if layout == lab.Debian || layout == lab.Fedora {
			spec.Compression = "zlib"
		}
		start := time.Now()
		image, err := l.CachedImage(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		took(t, "image "+string(layout), start)
		if layout.BIOS() {
			t.Run(string(layout)+"/BIOS", func(t *testing.T) { boots(t, l, image, lab.BootOptions{Format: "qcow2"}) })
		}
		if layout.UEFI() {
			t.Run(string(layout)+"/UEFI", func(t *testing.T) { boots(t, l, image, lab.BootOptions{Format: "qcow2", UEFI: true}) })
		}
	}
}

// boots starts a guest from an image as it is, and waits for its login prompt.
func boots(t *testing.T, l *lab.Lab, image string, options lab.BootOptions) {
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	start := time.Now()
	guest, err := l.Boot(ctx, image, options)
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	if _, err := guest.Wait(ctx, `(localhost|golden) login: `); err != nil {
		t.Fatal(err)
	}
	took(t, "boot to the login prompt", start)
}
