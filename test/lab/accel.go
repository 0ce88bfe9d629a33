package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/undo"
)

// AccelVariable names the environment variable that says what guests run on,
// where the probe shall not find it out: kvm or tcg.
const AccelVariable = "LAB_ACCEL"

// Accel is what guests run on.
type Accel string

// KVM is the processor itself, TCG is QEMU's translation, which works anywhere.
const (
	KVM Accel = "kvm"
	TCG Accel = "tcg"
)

func (a Accel) arguments() []string {
	if a == KVM {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	return []string{"-accel", "tcg,thread=multi", "-cpu", "max"}
}

// probeLimit is how long a kernel may take from the start to its first init
// under KVM. Where KVM works that is 2 s.
const probeLimit = 15 * time.Second

// Accel returns what guests run on here. That there is a /dev/kvm says little,
// in a virtual machine least of all: so a kernel is booted, once in the
// machine's uptime, and the answer is kept.
func (l *Lab) Accel(ctx context.Context) (Accel, error) {
	switch said := Accel(os.Getenv(AccelVariable)); said {
	case KVM, TCG:
		return said, nil
	case "":
	default:
		return "", fmt.Errorf("%s=%s: want kvm or tcg", AccelVariable, said)
	}
	if _, err := os.Stat("/dev/kvm"); err != nil {
		return TCG, nil
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	path, err := l.cached(ctx, "accel-"+strings.TrimSpace(string(boot)), func(path string) error {
		found, err := l.probe(ctx)
		if err != nil {
			return err
		}
		return os.WriteFile(path, []byte(found), 0o644)
	})
	if err != nil {
		return "", err
	}
	found, err := os.ReadFile(path)
	return Accel(found), err
}

// probe boots the tree's kernel under KVM, until its initramfs speaks.
func (l *Lab) probe(ctx context.Context) (_ Accel, err error) {
	tree, err := l.DebianTree(ctx)
	if err != nil {
		return "", err
	}
	work, err := l.workDir("probe")
	if err != nil {
		return "", err
	}
	var steps undo.Stack
	defer steps.Unwind(&err)
	steps.Push("remove "+work, func() error { return os.RemoveAll(work) })
	kernel, initrd, err := Kernel(ctx, tree, work)
	if err != nil {
		return "", err
	}
	argv := append([]string{"qemu-system-x86_64", "-nodefaults", "-machine", "q35", "-m", "256", "-display", "none", "-serial", "stdio",
		"-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0,115200"}, KVM.arguments()...)
	g := &Guest{}
	if err := g.start(ctx, argv, filepath.Join(work, "serial.log")); err != nil {
		return "", err
	}
	steps.Push("end the probe", g.Close)
	limited, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	if _, err := g.Wait(limited, `Loading, please wait`); err != nil {
		return TCG, ctx.Err()
	}
	return KVM, nil
}

// Kernel unpacks the kernel and the initramfs of a tree into a directory, for
// booting a disk that has no boot loader.
func Kernel(ctx context.Context, tree, dir string) (kernel, initrd string, err error) {
	argv := []string{"tar", "-C", dir, "-xf", tree, "--wildcards", "./boot/vmlinuz-*", "./boot/initrd.img-*"}
	if _, err := (run.Cmd{What: "unpack the kernel", Argv: argv}).Run(ctx); err != nil {
		return "", "", err
	}
	boot := filepath.Join(dir, "boot")
	kernel, err1 := only(filepath.Join(boot, "vmlinuz-*"))
	initrd, err2 := only(filepath.Join(boot, "initrd.img-*"))
	return filepath.Join(boot, kernel), filepath.Join(boot, initrd), errors.Join(err1, err2)
}
