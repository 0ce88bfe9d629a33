package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/luxi"
	"ganeti-instance-image/internal/mount"
	"ganeti-instance-image/internal/osscript"
	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/settings"
	"ganeti-instance-image/internal/undo"
)

// ssconf is where each node of a cluster has what it must know of it.
const ssconf = "/var/lib/ganeti/ssconf_"

// Master is the master node, from which instances that exist are worked on.
type Master struct {
	Site    settings.Site
	Program string // this program's path, the same on all nodes
	Stdout  io.Writer
	Stderr  io.Writer
}

// Deploy puts an image on a disk of an instance that is down. The image is a
// file's path on the instance's node, a URL, or a name as IMAGE_NAME has it. The
// target is INSTANCE or INSTANCE:DISK. Disk 0, if none is named, is customised as
// create does it.
func (m Master) Deploy(ctx context.Context, image, target string) error {
	if image == "" || strings.HasPrefix(image, ".") || strings.Contains(image, "/") && !strings.HasPrefix(image, "/") && !strings.Contains(image, "://") {
		return osscript.WithClass(osscript.Input, fmt.Errorf("cannot deploy %q: want a full path, beginning with /, a URL, or the name of an image", image))
	}
	name, disk, err := splitTarget(target, 0)
	if err != nil {
		return err
	}
	return m.withDisks(ctx, name, "on-node", "deploy", image, strconv.Itoa(disk))
}

// Seed writes the NoCloud seed of an instance that is down to a disk of it:
// INSTANCE:DISK, or the one that the settings name.
func (m Master) Seed(ctx context.Context, target string) error {
	name, disk, err := splitTarget(target, osscript.AnyDisk)
	if err != nil {
		return err
	}
	return m.withDisks(ctx, name, "on-node", "seed", strconv.Itoa(disk))
}

// SeedFile writes the seed of an instance, by this node's settings, to a file
// that only its owner can read.
func (m Master) SeedFile(ctx context.Context, name, file string) (err error) {
	if info, err := os.Lstat(file); err == nil && !info.Mode().IsRegular() {
		return osscript.WithClass(osscript.Input, fmt.Errorf("cannot write the seed to %s: it is there, and not a regular file", file))
	}
	inst, networks, err := find(ctx, name)
	if err != nil {
		return err
	}
	iso, err := osscript.SeedISO(ctx, osscript.Env{Site: m.Site, Environ: inst.environ(networks), LogLevel: new(slog.LevelVar)})
	if err != nil {
		return err
	}
	var steps undo.Stack
	defer steps.Unwind(&err)
	f, err := os.CreateTemp(filepath.Dir(file), ".seed-")
	if err != nil {
		return fmt.Errorf("cannot write the seed: %w", err)
	}
	steps.OnFailure("remove "+f.Name(), func() error { return os.Remove(f.Name()) })
	_, err = f.Write(iso)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("cannot write the seed: %w", err)
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return fmt.Errorf("cannot write the seed: %w", err)
	}
	return nil
}

// splitTarget reads INSTANCE or INSTANCE:DISK.
func splitTarget(target string, otherwise int) (name string, disk int, err error) {
	name, number, found := strings.Cut(target, ":")
	if !found {
		return name, otherwise, nil
	}
	disk, err = strconv.Atoi(number)
	if err != nil || disk < 0 || disk >= settings.MaxDisks || name == "" {
		return "", 0, osscript.WithClass(osscript.Input, fmt.Errorf("cannot use %q: want INSTANCE, or INSTANCE:DISK with the number of a disk, from 0 on", target))
	}
	return name, disk, nil
}

func find(ctx context.Context, name string) (*instance, map[string]network, error) {
	inst, err := findInstance(ctx, luxi.Socket, name)
	if errors.Is(err, luxi.ErrUnknown) {
		return nil, nil, osscript.WithClass(osscript.Input, err)
	}
	if err != nil {
		return nil, nil, err
	}
	networks, err := findNetworks(ctx, luxi.Socket)
	return inst, networks, err
}

// down are the states in which nobody uses an instance's disks.
var down = []string{"ADMIN_down", "USER_down"}

func (i *instance) isDown() bool { return slices.Contains(down, i.status) }

func (i *instance) checkDown() error {
	if i.isDown() {
		return nil
	}
	return osscript.WithClass(osscript.Disk, fmt.Errorf("cannot write to the disks of %s while its status is %s: stop it first, with gnt-instance shutdown %s", i.name, i.status, i.name))
}

// withDisks has the instance's node do something while the disks are attached
// there. Whatever becomes of it, they are detached again.
func (m Master) withDisks(ctx context.Context, name string, args ...string) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	a := attachment{check: (*instance).checkDown, steps: &steps}
	if err := a.attach(ctx, name); err != nil {
		return err
	}
	slog.Warn("private and secret OS parameters are not told by Ganeti, and do not count; give them as settings, or use gnt-instance reinstall")
	a.answer, err = m.onNode(ctx, a.inst.node, a.inst.environ(a.networks), args)
	return err
}

// attachment is an instance's disks, attached on its node.
type attachment struct {
	check    func(*instance) error // whether it may be worked on
	stay     bool                  // the disks stay attached, unless it fails
	steps    *undo.Stack
	inst     *instance
	networks map[string]network
	answer   osscript.Answer // of the node
}

// attach has nobody else of this program at work on the instance, and attaches
// its disks.
func (a *attachment) attach(ctx context.Context, name string) (err error) {
	if a.inst, a.networks, err = find(ctx, name); err != nil {
		return err
	}
	if err := a.check(a.inst); err != nil {
		return err
	}
	if err := lockInstance(a.inst.name, a.steps); err != nil {
		return err
	}
	push := a.steps.Push
	if a.stay {
		push = a.steps.OnFailure
	}
	push("detach the disks again", func() error { return a.detach(context.WithoutCancel(ctx)) })
	if err := a.inst.activate(ctx); err != nil {
		return err
	}
	// A job that was at work on the instance is over now: it had its lock.
	now, _, err := find(ctx, name)
	if err != nil {
		return err
	}
	return a.checkAgain(now)
}

// checkAgain looks at the instance as it is since its disks are attached: they
// are where it was then.
func (a *attachment) checkAgain(now *instance) error {
	if now.node != a.inst.node {
		return osscript.WithClass(osscript.Disk, fmt.Errorf("cannot work on %s: it has just moved from %s to %s; try again", now.name, a.inst.node, now.node))
	}
	return a.check(now)
}

// lockInstance keeps others of this program on the master from the instance.
func lockInstance(name string, steps *undo.Stack) error {
	unlock, err := mount.Lock("master", name)
	if err != nil {
		return osscript.WithClass(osscript.Disk, err)
	}
	steps.Push("unlock the instance", unlock)
	return nil
}

// detach takes the disks from the node, unless they are in use there.
func (a *attachment) detach(ctx context.Context) error {
	if a.answer.Held {
		return nil
	}
	return a.inst.deactivate(ctx)
}

// onNode runs this program on a node, which may be this one. The environment
// goes to its standard input, where no other user sees it. That stays open: its
// end tells the node to stop, and to take back what it did, before the disks are
// taken from it. What it prints is its answer.
func (m Master) onNode(ctx context.Context, node string, environ, args []string) (answer osscript.Answer, err error) {
	argv, err := m.command(ctx, node, args)
	if err != nil {
		return answer, err
	}
	// That our end stays open too has a program that does not read, as an ssh
	// that reaches nobody, not end us by SIGPIPE.
	theirs, ours, err := os.Pipe()
	if err != nil {
		return answer, err
	}
	defer theirs.Close()
	defer ours.Close()
	var said bytes.Buffer
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=" + run.Path}
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // a terminal's signals are ours to hand on
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, &said, m.Stderr
	if err := cmd.Start(); err != nil {
		return answer, fmt.Errorf("cannot work on the node %s: %w", node, err)
	}
	defer context.AfterFunc(ctx, func() { ours.Close() })()
	go func() { _, _ = io.WriteString(ours, strings.Join(environ, "\x00")+osscript.EndOfEnviron) }()
	err = cmd.Wait()
	return osscript.ReadAnswer(said.Bytes()), outcome(err, node, argv[0] == "ssh")
}

// outcome is what became of the program on a node.
func outcome(err error, node string, bySSH bool) error {
	exit := (*exec.ExitError)(nil)
	if err == nil {
		return nil
	}
	if !errors.As(err, &exit) || exit.ExitCode() <= 0 {
		return fmt.Errorf("cannot work on the node %s: %w", node, err)
	}
	switch code := exit.ExitCode(); {
	case code == sshFailed && bySSH:
		return fmt.Errorf("cannot reach the node %s by ssh, or lost it", node)
	case code > int(osscript.Refused):
		return fmt.Errorf("cannot work on the node %s: the program ended there with exit code %d; is this version installed on %s?", node, code, node)
	default:
		return osscript.WithClass(osscript.Class(code), fmt.Errorf("it did not succeed on %s: the line above says why", node))
	}
}

// sshFailed is ssh's exit code for a failure of its own.
const sshFailed = 255

// command is what runs this program on a node. Another node than the master is
// reached as Ganeti itself reaches it.
func (m Master) command(ctx context.Context, node string, args []string) ([]string, error) {
	argv := append([]string{m.Program}, args...)
	master, err := readConf("master_node")
	if err != nil || node == master {
		return argv, err
	}
	cluster, err := readConf("cluster_name")
	if err != nil {
		return nil, err
	}
	port, err := sshPort(ctx, luxi.Socket, node)
	if err != nil {
		return nil, err
	}
	return remote(node, cluster, port, argv), nil
}

// remote has another node run a command.
func remote(node, cluster string, port int, argv []string) []string {
	var quoted []string
	for _, word := range argv {
		quoted = append(quoted, "'"+strings.ReplaceAll(word, "'", `'\''`)+"'")
	}
	return append([]string{"ssh", "-oLogLevel=ERROR", "-oEscapeChar=none", "-oHashKnownHosts=no", "-oGlobalKnownHostsFile=/var/lib/ganeti/known_hosts",
		"-oUserKnownHostsFile=/dev/null", "-oCheckHostIp=no", "-oConnectTimeout=10", "-oServerAliveInterval=15", "-oServerAliveCountMax=4", "-oHostKeyAlias=" + cluster, "-oPort=" + strconv.Itoa(port),
		"-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "root@" + node}, quoted...)
}

func readConf(name string) (string, error) {
	text, err := os.ReadFile(ssconf + name)
	if err != nil {
		return "", fmt.Errorf("cannot read what Ganeti says of the cluster: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}
