package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"ganeti-instance-image/internal/luxi"
	"ganeti-instance-image/internal/osscript"
	"ganeti-instance-image/internal/undo"
)

// Mount mounts the file systems of an instance that is down on its node, where
// they stay mounted, and its disks attached, until Umount.
func (m Master) Mount(ctx context.Context, name string, readOnly bool) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	a := attachment{check: (*instance).checkMountable, stay: true, steps: &steps}
	if err := a.attach(ctx, name); err != nil {
		return err
	}
	how, words := "rw", ""
	if readOnly {
		how, words = "ro", ", read-only"
	}
	a.answer, err = m.onNode(ctx, a.inst.node, a.inst.environ(a.networks), []string{"on-node-mount", "mount", how})
	if err != nil {
		return err
	}
	slog.Warn("Ganeti does not know of the mounts: the instance must not be started, moved, renamed or removed before umount-disks", "instance", a.inst.name)
	_, err = fmt.Fprintf(m.Stdout, "%s is mounted at %s on %s%s\n", a.inst.name, a.answer.Dir, a.inst.node, words)
	return err
}

func (i *instance) checkMountable() error {
	switch {
	case len(i.disks) == 0:
		return osscript.WithClass(osscript.Disk, fmt.Errorf("cannot mount the disks of %s: it has none", i.name))
	case !i.isDown():
		return osscript.WithClass(osscript.Disk, fmt.Errorf("cannot mount the disks of %s while its status is %s: the guest's kernel has the file systems, and would neither see what is written here "+
			"nor keep what is read here from changing; stop it first, with gnt-instance shutdown %s", i.name, i.status, i.name))
	}
	return nil
}

// Umount unmounts what Mount mounted and detaches the disks. The file systems
// are looked for on the instance's node first, and then on the others: the
// instance may have been moved, or removed, meanwhile. Where there are none the
// disks are detached alone.
func (m Master) Umount(ctx context.Context, name string) (err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	inst, err := findInstance(ctx, luxi.Socket, name)
	gone := errors.Is(err, luxi.ErrUnknown)
	if err != nil && !gone {
		return err
	}
	if gone {
		slog.Warn("Ganeti knows no such instance; it may be mounted nevertheless", "instance", name)
		inst = &instance{name: name}
	}
	if err := lockInstance(inst.name, &steps); err != nil {
		return err
	}
	if !gone && !inst.isDown() {
		slog.Warn("the instance is not stopped: if its file systems are mounted here too, they may be damaged", "instance", inst.name, "status", inst.status)
	}
	node, err := m.umountAnywhere(ctx, inst)
	if err != nil {
		return err
	}
	return m.finishUmount(ctx, inst, gone, node)
}

// finishUmount detaches the disks and says what was done. node is where something
// was mounted, "" for nowhere.
func (m Master) finishUmount(ctx context.Context, inst *instance, gone bool, node string) error {
	detached := "its disks are detached"
	switch {
	case gone:
		detached = "Ganeti has no disks of it to detach"
	case !inst.isDown():
		detached = "its disks stay attached, its status is " + inst.status
	default:
		if err := inst.deactivate(ctx); err != nil {
			return err
		}
	}
	if node == "" {
		_, err := fmt.Fprintf(m.Stdout, "%s is not mounted on any node (after a reboot nothing is); %s\n", inst.name, detached)
		return err
	}
	if !gone && node != inst.node {
		slog.Warn("it was mounted on a node that is not its primary any more: what is attached there may have to be detached by hand", "node", node, "primary", inst.node)
	}
	_, err := fmt.Fprintf(m.Stdout, "%s is unmounted on %s; %s\n", inst.name, node, detached)
	return err
}

// umountAnywhere asks nodes in turn until one had something mounted. Only the
// primary has to answer.
func (m Master) umountAnywhere(ctx context.Context, inst *instance) (string, error) {
	nodes, err := findNodes(ctx, luxi.Socket)
	if err != nil {
		return "", err
	}
	nodes = slices.DeleteFunc(nodes, func(node string) bool { return node == inst.node })
	if inst.node != "" {
		nodes = slices.Insert(nodes, 0, inst.node)
	}
	return umountOn(ctx, nodes, inst, func(node string) (osscript.Answer, error) {
		return m.onNode(ctx, node, []string{"INSTANCE_NAME=" + inst.name}, []string{"on-node-mount", "umount"})
	})
}

// umountOn asks nodes in turn. Where none had anything mounted and one did not
// answer, that is an error: it may have.
func umountOn(ctx context.Context, nodes []string, inst *instance, umount func(node string) (osscript.Answer, error)) (string, error) {
	var silent []string
	for _, node := range nodes {
		answer, err := umount(node)
		switch {
		case err == nil && answer.Dir != "":
			return node, nil
		case err != nil && (node == inst.node || answer.Dir != "" || ctx.Err() != nil):
			return "", err
		case err != nil:
			slog.Warn("cannot ask a node whether the instance is mounted there", "node", node, "cause", err)
			silent = append(silent, node)
		}
	}
	if len(silent) > 0 {
		return "", fmt.Errorf("%s is not mounted on any node that answered; not asked: %s; its disks are left as they are", inst.name, strings.Join(silent, ", "))
	}
	return "", nil
}

// UmountHere unmounts on this node, whatever Ganeti knows of the instance.
func (m Master) UmountHere(name string) error {
	answer, err := osscript.UmountDisks(name)
	if err != nil {
		return err
	}
	said := "is not mounted on this node"
	if answer.Dir != "" {
		said = "is unmounted; its disks stay attached"
	}
	_, err = fmt.Fprintln(m.Stdout, name, said)
	return err
}

// findNodes lists the cluster's nodes that are not marked offline.
func findNodes(ctx context.Context, socket string) ([]string, error) {
	rows, err := luxi.Query(ctx, socket, "node", []string{"name", "offline"}, "")
	if err != nil {
		return nil, err
	}
	var nodes []string
	for _, row := range rows {
		var name string
		var offline bool
		if err := errors.Join(row.Into("name", &name), row.Into("offline", &offline)); err != nil {
			return nil, err
		}
		if !offline {
			nodes = append(nodes, name)
		}
	}
	return nodes, nil
}
