package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/undo"
)

// The cluster's names and addresses, which exist in its namespace only.
const (
	Node    = "node1.gnt.test"
	Cluster = "cluster.gnt.test"
	Bridge  = "br0"
	Gateway = "192.0.2.10" // the node: guests reach it, and nothing behind it
)

// Ganeti has fixed paths, so the lab has one state directory on the machine.
const (
	ganetiState   = "/var/lib/ganeti-instance-image-lab"
	ganetiStorage = "/srv/ganeti-instance-image-lab"
	configFile    = "/var/lib/ganeti/config.data"
	storagePaths  = "/etc/ganeti/file-storage-paths"
	controlDir    = "/run/ganeti/kvm-hypervisor/ctrl"
	scriptLogs    = "/var/log/ganeti/os"
)

// ganetiRoots are where Ganeti keeps its own; what a cluster adds to them goes
// with the cluster.
var ganetiRoots = []string{"/var/lib/ganeti", "/var/log/ganeti", "/run/ganeti", "/run/lock/ganeti", "/srv/ganeti"}

// Ganeti is a cluster of one node in a network namespace of its own, with the
// hypervisors kvm and fake and the disk templates file, sharedfile and ext with
// the provider Provider. Only one exists on a machine at a time.
type Ganeti struct {
	Logs string // directory of the guests' serial logs; kept until the next start

	space  namespace
	unlock func()
}

// StartGaneti makes a cluster, which Stop removes. What a run that was killed
// left is removed first; a cluster that is not the lab's is left alone and is
// an error. It waits while another process has a cluster of the lab.
func (l *Lab) StartGaneti(ctx context.Context) (_ *Ganeti, err error) {
	accel, err := l.Accel(ctx)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(ganetiState, 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, filepath.Join(ganetiState, "lock"))
	if err != nil {
		return nil, err
	}
	var steps undo.Stack
	defer steps.Unwind(&err)
	steps.OnFailure("unlock", func() error { unlock(); return nil })
	if err := removeFormer(ctx); err != nil {
		return nil, fmt.Errorf("cannot remove the cluster of a former run: %w", err)
	}
	if exists(configFile) {
		return nil, fmt.Errorf("this machine has a Ganeti cluster already (%s): the lab needs a machine without one", configFile)
	}
	before, err := remember()
	if err != nil {
		return nil, err
	}
	steps.OnFailure("remove the cluster", func() error { return before.remove(context.WithoutCancel(ctx)) })
	g := &Ganeti{Logs: filepath.Join(ganetiState, "logs"), space: namespace{before.Namespace}, unlock: unlock}
	if err := g.start(ctx, accel); err != nil {
		return nil, fmt.Errorf("cannot start a cluster: %w", err)
	}
	return g, nil
}

func (g *Ganeti) start(ctx context.Context, accel Accel) error {
	if err := g.space.create(ctx); err != nil {
		return err
	}
	files, shared := filepath.Join(ganetiStorage, "file"), filepath.Join(ganetiStorage, "shared")
	for _, dir := range []string{files, shared, g.Logs} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(storagePaths, []byte(files+"\n"+shared+"\n"), 0o644); err != nil {
		return err
	}
	if err := addProvider(); err != nil {
		return err
	}
	hypervisor := "kvm:kernel_path=,serial_console=True"
	if accel == TCG {
		if err := os.WriteFile(wrapperPath, []byte(wrapper), 0o755); err != nil {
			return err
		}
		hypervisor += ",kvm_path=" + wrapperPath
	}
	_, err := g.Run(ctx, "gnt-cluster", "init", "--no-ssh-init", "--no-etc-hosts",
		"--enabled-disk-templates=file,sharedfile,ext", "--file-storage-dir="+files, "--shared-file-storage-dir="+shared,
		"--master-netdev="+Bridge, "--enabled-hypervisors=kvm,fake", "-N", "mode=bridged,link="+Bridge,
		"-H", hypervisor, "-s", Gateway, Cluster)
	if err != nil {
		return err
	}
	// Where cron runs, the watcher would start daemons outside the namespace.
	_, err = g.Run(ctx, "gnt-cluster", "watcher", "pause", "24h")
	return err
}

// wrapperPath is what the cluster takes for KVM where there is none.
const wrapperPath = ganetiState + "/kvm-tcg"

const wrapper = `#!/bin/bash
# Runs QEMU as Ganeti calls it for KVM on a machine without KVM.
arguments=()
for argument in "$@"; do
	case $argument in
	-enable-kvm) continue ;;
	host) argument=max ;;
	*accel=kvm*) argument=${argument//accel=kvm/accel=tcg} ;;
	esac
	arguments+=("$argument")
done
exec /usr/bin/qemu-system-x86_64 "${arguments[@]}"
`

// Run runs a program, as gnt-instance, on the node and returns what it prints
// on standard output. The error says what it printed on standard error.
func (g *Ganeti) Run(ctx context.Context, argv ...string) (string, error) {
	result, err := run.Cmd{What: "run on the node", Argv: append(g.space.prefix(), argv...)}.Run(ctx)
	return string(result.Stdout), err
}

// Address returns the address that an instance's name stands for: there are
// vm1.gnt.test at 192.0.2.21 to vm9.gnt.test at 192.0.2.29.
func (g *Ganeti) Address(instance string) string {
	for address, name := range hosts() {
		if name == instance {
			return address
		}
	}
	return ""
}

// SSH returns the way into a guest, from the node.
func (g *Ganeti) SSH(user, address, key string) SSH {
	return SSH{User: user, Address: address, Key: key, within: g.space.exec()}
}

// Boot starts an instance and returns its serial console from the first byte.
func (g *Ganeti) Boot(ctx context.Context, instance string) (*Console, error) {
	type dialled struct {
		conn net.Conn
		err  error
	}
	done := make(chan dialled, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		conn, err := dial(ctx, filepath.Join(controlDir, instance+".serial"))
		done <- dialled{conn, err}
	}()
	if _, err := g.Run(ctx, "gnt-instance", "start", instance); err != nil {
		cancel()
		if d := <-done; d.conn != nil {
			d.conn.Close()
		}
		return nil, err
	}
	d := <-done
	if d.err != nil {
		return nil, fmt.Errorf("cannot read the serial console of %s: %w", instance, d.err)
	}
	return newConsole(d.conn, filepath.Join(g.Logs, instance+".serial"))
}

// dial connects to a socket as soon as somebody listens.
func dial(ctx context.Context, socket string) (net.Conn, error) {
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err == nil {
			return conn, nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), err)
		}
	}
}

// Exports is where Ganeti keeps what it exports, a directory for each instance.
const Exports = "/var/lib/ganeti/export"

// Disk returns the file that is an instance's nth disk, or holds it.
func (g *Ganeti) Disk(instance string, n int) (string, error) {
	for _, dir := range []string{"file", "shared"} {
		found, err := filepath.Glob(filepath.Join(ganetiStorage, dir, instance, fmt.Sprintf("*disk%d", n)))
		if err != nil || len(found) == 1 {
			return strings.Join(found, ""), err
		}
	}
	return volumeOf(instance, n)
}

// ScriptLog returns the newest log of an OS script run for an instance, with
// the script's name: "add", "reinstall", "rename", ...
func (g *Ganeti) ScriptLog(instance string) (string, error) {
	found, err := filepath.Glob(filepath.Join(scriptLogs, "*"+instance+"*"))
	if err != nil {
		return "", err
	}
	var newest string
	var at time.Time
	for _, path := range found {
		if info, err := os.Stat(path); err == nil && info.ModTime().After(at) {
			newest, at = path, info.ModTime()
		}
	}
	if newest == "" {
		return "", fmt.Errorf("no log of %s in %s: %w", instance, scriptLogs, fs.ErrNotExist)
	}
	text, err := os.ReadFile(newest)
	return string(text), err
}

// Stop removes the cluster with its instances, and everything that was made
// for it on the machine.
func (g *Ganeti) Stop(ctx context.Context) error {
	defer g.unlock()
	return removeFormer(ctx)
}

// manifest is what is needed to put the machine back as it was.
type manifest struct {
	Namespace string
	Roots     map[string][]string // entries that were in each of ganetiRoots; a missing key: was not there
	Paths     *string             // what was in file-storage-paths; nil: was not there
}

const manifestPath = ganetiState + "/manifest.json"

// remember writes down how the machine is, before anything is done to it.
func remember() (manifest, error) {
	m := manifest{Namespace: fmt.Sprintf("gnt-lab-%d", os.Getpid()), Roots: map[string][]string{}}
	for _, root := range ganetiRoots {
		entries, err := os.ReadDir(root)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return m, err
		}
		m.Roots[root] = []string{}
		for _, e := range entries {
			m.Roots[root] = append(m.Roots[root], e.Name())
		}
	}
	if text, err := os.ReadFile(storagePaths); err == nil {
		m.Paths = new(string)
		*m.Paths = string(text)
	}
	text, err := json.Marshal(m)
	if err != nil {
		return m, err
	}
	return m, os.WriteFile(manifestPath, text, 0o644)
}

// removeFormer removes a cluster of the lab, if there is one.
func removeFormer(ctx context.Context) error {
	text, err := os.ReadFile(manifestPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var m manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return fmt.Errorf("cannot read %s: %w", manifestPath, err)
	}
	return m.remove(ctx)
}

// remove ends what runs in the namespace, without asking Ganeti, which may be
// in any state, and puts the machine back.
func (m manifest) remove(ctx context.Context) error {
	if err := (namespace{m.Namespace}).remove(ctx); err != nil {
		return err
	}
	if err := detachBelow(ctx, ganetiStorage); err != nil {
		return err
	}
	var errs []error
	for _, root := range ganetiRoots {
		errs = append(errs, m.restore(root))
	}
	if m.Paths == nil {
		errs = append(errs, os.RemoveAll(storagePaths))
	} else {
		errs = append(errs, os.WriteFile(storagePaths, []byte(*m.Paths), 0o644))
	}
	errs = append(errs, os.RemoveAll(ganetiStorage), os.RemoveAll(wrapperPath))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.Remove(manifestPath)
}

// restore removes from a directory what was not in it.
func (m manifest) restore(root string) error {
	had, was := m.Roots[root]
	if !was {
		return os.RemoveAll(root)
	}
	entries, err := os.ReadDir(root)
	for _, e := range entries {
		if !slices.Contains(had, e.Name()) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(root, e.Name())))
		}
	}
	return err
}

// detachBelow detaches the loop devices that hold files of a directory.
func detachBelow(ctx context.Context, dir string) error {
	list := run.Cmd{What: "list loop devices", Argv: []string{"losetup", "--list", "--noheadings", "--raw", "--output", "NAME,BACK-FILE"}}
	result, err := list.Run(ctx)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(result.Stdout)) {
		device, file, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !strings.HasPrefix(file, dir+"/") {
			continue
		}
		if _, err := (run.Cmd{What: "detach " + device, Argv: []string{"losetup", "--detach", device}}).Run(ctx); err != nil {
			return err
		}
	}
	return nil
}
