package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"

	"ganeti-instance-image/internal/capture"
	"ganeti-instance-image/internal/osscript"
	"ganeti-instance-image/internal/undo"
)

// running is the status of an instance that is up and is to be.
const running = "running"

// Capture makes an image of an instance's disks on its node. The instance is
// down, or runs where the order says that it may; then its disks stay attached.
func (m Master) Capture(ctx context.Context, name string, order capture.Order) (err error) {
	if err := order.Check(); err != nil {
		return osscript.WithClass(osscript.Input, err)
	}
	first, _, err := find(ctx, name)
	if err != nil {
		return err
	}
	order.Running = order.Running && first.status == running
	check := func(now *instance) error { return now.checkCapture(order.Running) }
	args, err := json.Marshal(order)
	if err != nil {
		return err
	}
	var steps undo.Stack
	defer steps.Unwind(&err)
	a := attachment{check: check, steps: &steps}
	a.answer.Held = order.Running // by the instance itself, whose disks this must not detach
	if err := a.attach(ctx, first.name); err != nil {
		return err
	}
	slog.Info("capturing", "instance", a.inst.name, "node", a.inst.node)
	answer, err := m.onNode(ctx, a.inst.node, a.inst.environ(a.networks), []string{"on-node", "capture", string(args)})
	a.answer.Held = a.answer.Held || answer.Held
	return err
}

// checkCapture refuses an instance whose disks may be in use, but for one that is
// known to run.
func (i *instance) checkCapture(runs bool) error {
	if runs && i.status == running {
		return nil
	}
	if i.isDown() {
		return nil
	}
	orRunning := ""
	if i.status == running {
		orRunning = ", or give --running, which copies the disk of a running instance as it is"
	}
	return osscript.WithClass(osscript.Disk, fmt.Errorf("cannot capture %s while its status is %s: stop it first, with gnt-instance shutdown %s%s", i.name, i.status, i.name, orRunning))
}
