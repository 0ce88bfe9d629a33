package osscript

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/mount"
	"ganeti-instance-image/internal/osapi"
	"ganeti-instance-image/internal/undo"
)

// Answer is what a node prints for the master.
type Answer struct {
	// Dir is where the instance's file systems are mounted, or were until now;
	// empty where they are, or were, nowhere.
	Dir string
	// Held tells that somebody has the disks in use, so that they must stay
	// attached whatever became of the call.
	Held bool
}

// ReadAnswer reads an answer that was printed; one that is none is empty.
func ReadAnswer(text []byte) (a Answer) {
	if json.Unmarshal(text, &a) != nil {
		return Answer{}
	}
	return a
}

// Print writes the answer for the master.
func (a Answer) Print(w io.Writer) error { return json.NewEncoder(w).Encode(a) }

// MountDisks mounts what is on the instance's disks, and leaves it mounted.
func MountDisks(ctx context.Context, env Env, readOnly bool) (answer Answer, err error) {
	var steps undo.Stack
	defer steps.Unwind(&err)
	c := &creation{env: env, steps: &steps}
	if c.inst, err = osapi.Read(env.Environ); err != nil {
		return answer, classify(Input, err)
	}
	kept, err := openKept(c.inst.Name)
	if err != nil {
		return Answer{Held: errors.Is(err, mount.ErrAtWork)}, err
	}
	steps.Push("unlock the instance", kept.Close)
	if err := NotMounted(c.inst.Name); err != nil {
		return Answer{Dir: kept.Dir(), Held: true}, err
	}
	var disks []mount.KeptDisk
	for n := range c.inst.Disks {
		dev, err := c.openDisk(n)
		if err != nil {
			return Answer{Held: errors.Is(err, block.ErrInUse)}, classify(Disk, err)
		}
		disks = append(disks, mount.KeptDisk{Index: n, Device: dev})
	}
	if err := kept.Mount(ctx, disks, readOnly); err != nil {
		_, left := mount.IsKept(c.inst.Name)
		return Answer{Held: left}, classify(Disk, err)
	}
	return Answer{Dir: kept.Dir(), Held: true}, nil
}

// UmountDisks unmounts what MountDisks mounted, also what is left of one that was
// killed. Of an instance that is not mounted it says nothing: see Answer.Dir.
func UmountDisks(instance string) (answer Answer, err error) {
	kept, err := openKept(instance)
	if err != nil {
		return Answer{Held: errors.Is(err, mount.ErrAtWork)}, err
	}
	defer kept.Close()
	found, err := kept.Unmount()
	if found {
		answer = Answer{Dir: kept.Dir(), Held: err != nil}
	}
	return answer, classify(Disk, err)
}

func openKept(instance string) (*mount.Kept, error) {
	kept, err := mount.OpenKept(instance)
	if errors.Is(err, mount.ErrAtWork) {
		return nil, classify(Disk, err)
	}
	return kept, classify(Input, err)
}

// NotMounted is an error where mount-disks has mounted the instance on this node.
func NotMounted(instance string) error {
	how, kept := mount.IsKept(instance)
	if !kept {
		return nil
	}
	return classify(Disk, fmt.Errorf("cannot use the disks of %s: mount-disks has mounted them at %s (%s); first run, on the master: umount-disks %s",
		instance, mount.KeptDirOf(instance), how, instance))
}

// sayMounted tells of a disk that is in use when mount-disks uses it.
func (c *creation) sayMounted(err error) error {
	if how, kept := mount.IsKept(c.inst.Name); kept && errors.Is(err, block.ErrInUse) {
		return fmt.Errorf("%w; mount-disks has mounted it below %s (%s): run umount-disks %s on the master", err, mount.KeptDirOf(c.inst.Name), how, c.inst.Name)
	}
	return err
}
