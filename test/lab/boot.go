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
	NICs      []NIC    // in the order of the PCI bus, in place of the only one
	Net       *Network // which the NICs are in
	Log       string   // where the serial log goes; "" for a file in a temporary directory
	Arguments []string // more for QEMU, as in -kernel
}

// NIC is a network card of a guest.
type NIC struct {
	MAC    string
	Bridge string // of the network: Bridge or Bridge1
}

// Guest is a machine that runs. Where it is not given NICs its network is QEMU's
// own, at 10.0.2.15 by DHCP: it reaches nothing, and SSH reaches it.
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
	network, err := o.network(ctx, g.SSHPort)
	if err != nil {
		return nil, err
	}
	argv := append(o.argv(disk, accel), network...)
	if o.Net != nil {
		argv = append(o.Net.space.exec(), argv...)
	}
	if err := g.start(ctx, argv, o.Log); err != nil {
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

// network is what QEMU is told of the guest's network. Taps are made for NICs.
func (o BootOptions) network(ctx context.Context, port int) ([]string, error) {
	if o.Net == nil {
		mac := ""
		if o.MAC != "" {
			mac = ",mac=" + o.MAC
		}
		return []string{"-netdev", fmt.Sprintf("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:%d-:22", port),
			"-device", "virtio-net-pci,netdev=net,romfile=" + mac}, nil
	}
	var argv []string
	for i, nic := range o.NICs {
		tap, err := o.Net.tap(ctx, nic.Bridge)
		if err != nil {
			return nil, err
		}
		argv = append(argv, "-netdev", fmt.Sprintf("tap,id=net%d,ifname=%s,script=no,downscript=no", i, tap),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=net%d,romfile=,mac=%s", i, nic.MAC))
	}
	return argv, nil
}

func (o BootOptions) argv(disk string, accel Accel) []string {
	format, memory := o.Format, o.Memory
	if format == "" {
		format = "raw"
	}
	if memory == 0 {
		memory = 512
	}
	snapshot := map[bool]string{true: "off", false: "on"}[o.Write]
	argv := []string{"qemu-system-x86_64", "-nodefaults", "-machine", "q35", "-m", strconv.Itoa(memory),
		"-display", "none", "-serial", "stdio",
		"-drive", fmt.Sprintf("if=virtio,file=%s,format=%s,snapshot=%s,cache=unsafe", disk, format, snapshot),
		"-device", "virtio-rng-pci"}
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
