package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
)

// firmwareUEFI is OVMF in one file, which keeps no variables: each boot is the
// first one, as it is for a new instance.
const firmwareUEFI = "/usr/share/ovmf/OVMF.fd"

// BootOptions say what machine a disk is put into.
type BootOptions struct {
	Format    string   // of the disk: "raw" (where empty) or "qcow2"
	UEFI      bool     // OVMF instead of SeaBIOS
	Memory    int      // MiB; 0 stands for 512
	Write     bool     // let the guest write to the disk; else its writes are lost with it
	MAC       string   // of the only NIC; "" for QEMU's own
	Log       string   // where the serial log goes; "" for a file in a temporary directory
	Arguments []string // more for QEMU, as in -kernel
}

// Guest is a machine that runs. Its network is QEMU's own, at 10.0.2.15 by
// DHCP: it reaches nothing, and SSH reaches it.
type Guest struct {
	*Console
	SSHPort int // on 127.0.0.1

	cmd  *exec.Cmd
	temp string // "" if there is nothing to remove
}

// Boot starts a guest. It ends with ctx, with Close, and with this process.
func (l *Lab) Boot(ctx context.Context, disk string, o BootOptions) (_ *Guest, err error) {
	g := &Guest{}
	if o.Log == "" {
		if g.temp, err = os.MkdirTemp("", "lab-boot-"); err != nil {
			return nil, err
		}
		o.Log = filepath.Join(g.temp, "serial.log")
	}
	defer func() {
		if err != nil && g.temp != "" {
			err = errors.Join(err, os.RemoveAll(g.temp))
		}
	}()
	accel, err := l.Accel(ctx)
	if err != nil {
		return nil, err
	}
	if g.SSHPort, err = freePort(); err != nil {
		return nil, err
	}
	if err := g.start(ctx, o.argv(disk, accel, g.SSHPort), o.Log); err != nil {
		return nil, fmt.Errorf("cannot start a guest: %w", err)
	}
	return g, nil
}

// start runs QEMU with its serial port on its standard output.
func (g *Guest) start(ctx context.Context, argv []string, log string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	g.cmd = exec.CommandContext(ctx, argv[0], argv[1:]...)
	g.cmd.Stdout, g.cmd.Stderr = w, w
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if g.Console, err = newConsole(r, log); err == nil {
		err = g.cmd.Start()
	}
	return errors.Join(err, w.Close())
}

func (o BootOptions) argv(disk string, accel Accel, port int) []string {
	format, memory, mac := o.Format, o.Memory, ""
	if format == "" {
		format = "raw"
	}
	if memory == 0 {
		memory = 512
	}
	if o.MAC != "" {
		mac = ",mac=" + o.MAC
	}
	snapshot := map[bool]string{true: "off", false: "on"}[o.Write]
	argv := []string{"qemu-system-x86_64", "-nodefaults", "-machine", "q35", "-m", strconv.Itoa(memory),
		"-display", "none", "-serial", "stdio",
		"-drive", fmt.Sprintf("if=virtio,file=%s,format=%s,snapshot=%s,cache=unsafe", disk, format, snapshot),
		"-device", "virtio-rng-pci",
		"-netdev", fmt.Sprintf("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:%d-:22", port),
		"-device", "virtio-net-pci,netdev=net,romfile=" + mac}
	argv = append(argv, accel.arguments()...)
	if o.UEFI {
		argv = append(argv, "-bios", firmwareUEFI)
	}
	return append(argv, o.Arguments...)
}

// SSH returns the way into the guest.
func (g *Guest) SSH(user, key string) SSH {
	return SSH{User: user, Address: "127.0.0.1", Port: g.SSHPort, Key: key}
}

// Close ends the guest, as pulling the plug does.
func (g *Guest) Close() error {
	err := g.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	_ = g.cmd.Wait() // it says that it was killed
	if g.temp != "" {
		err = errors.Join(err, os.RemoveAll(g.temp))
	}
	return err
}

// freePort returns a TCP port of 127.0.0.1 that nothing listens on.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}
