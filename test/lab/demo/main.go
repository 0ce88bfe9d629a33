// Command demo shows the main job on this machine: it installs the OS
// definition below a temporary directory, makes a Debian cloud image, runs
// create with the environment Ganeti gives it, and boots the disk to its login
// prompt. It needs root, the packages that test/setup installs, and to be run
// in the top directory of the sources.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"ganeti-instance-image/test/lab"
)

const name = "web.example.org"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := demo(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func demo(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "instance-image-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := lab.Open()
	if err != nil {
		return err
	}

	say("building and installing the OS definition below %s", dir)
	if err := show(ctx, nil, "", "make", "--no-print-directory", "-s", "install",
		"prefix="+dir+"/usr", "sysconfdir="+dir+"/etc", "localstatedir="+dir+"/var"); err != nil {
		return err
	}
	say("making a Debian 12 cloud image (a minute or two the first time)")
	image, err := l.CachedImage(ctx, lab.Spec{Layout: lab.Debian, Compression: "zlib"})
	if err != nil {
		return err
	}
	say("configuring: IMAGE_FILE=%s, hooks cloud-init and ssh", image)
	if err := os.WriteFile(dir+"/etc/default/ganeti-instance-image", []byte("IMAGE_FILE="+image+"\n"), 0o644); err != nil {
		return err
	}
	if err := show(ctx, nil, "", dir+"/usr/sbin/ganeti-image", "hooks", "enable", "cloud-init", "ssh"); err != nil {
		return err
	}
	disk, err := deploy(ctx, dir)
	if err != nil {
		return err
	}
	return boot(ctx, l, disk)
}

// deploy runs create on a new disk as Ganeti does.
func deploy(ctx context.Context, dir string) (string, error) {
	disk := filepath.Join(dir, "disk0")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		return "", err
	}
	if err := os.Truncate(disk, 6<<30); err != nil {
		return "", err
	}
	say("create: a disk of 6 GiB for the instance %s", name)
	osDir := dir + "/usr/share/ganeti/os/image"
	return disk, show(ctx, []string{
		"PATH=/sbin:/bin:/usr/sbin:/usr/bin", "OS_API_VERSION=20", "OS_NAME=image", "OS_VARIANT=default", "DEBUG_LEVEL=0",
		"INSTANCE_NAME=" + name, "INSTANCE_UUID=5b7bd4d2-3fa1-4d5d-b2ff-e5a7a1d6a7cc", "HYPERVISOR=kvm", "INSTANCE_HV_kernel_path=",
		"DISK_COUNT=1", "DISK_0_PATH=" + disk, "DISK_0_ACCESS=rw", "DISK_0_SIZE=6144",
		"NIC_COUNT=1", "NIC_0_MAC=aa:00:00:12:34:56", "NIC_0_MODE=bridged", "NIC_0_LINK=br0",
	}, osDir, osDir+"/create")
}

func boot(ctx context.Context, l *lab.Lab, disk string) error {
	say("booting it")
	start := time.Now()
	guest, err := l.Boot(ctx, disk, lab.BootOptions{MAC: "aa:00:00:12:34:56", Write: true})
	if err != nil {
		return err
	}
	defer guest.Close()
	limit, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	short, _, _ := strings.Cut(name, ".")
	if _, err := guest.Wait(limit, short+` login: $`); err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(guest.Text(), "\r", "")), "\n")
	fmt.Println(strings.Join(lines[max(0, len(lines)-5):], "\n"))
	say("the guest is %s, %s after it was switched on", name, time.Since(start).Round(time.Second))
	return nil
}

func say(format string, args ...any) { fmt.Printf("== "+format+"\n", args...) }

// show runs a program with its output to ours; a nil environment is our own.
func show(ctx context.Context, environ []string, dir, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env, cmd.Dir = environ, dir
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("cannot run %s: %w", program, err)
	}
	return nil
}
