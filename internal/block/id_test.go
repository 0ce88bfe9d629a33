package block

import (
	"os"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

// A disk is known by its ID when its name is gone, or is another one's.
func TestID(t *testing.T) {
	need.Root(t)
	path := disk(t, 4*size.MiB)
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	id, err := d.ID()
	if err != nil || !id.File {
		t.Fatal(id, err)
	}
	l, err := Attach(path, size.MiB, size.MiB, 512, true)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Detach()
	d.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if loops := id.Loops(); len(loops) != 1 || loops[0] != l.Path() || !id.Behind(l.Path()) {
		t.Errorf("the loop devices are %v, want %s", loops, l.Path())
	}
	if id.Behind("/dev/null") || id.Behind("tmpfs") || (ID{File: true, Dev: id.Dev, Inode: id.Inode + 1}).Behind(l.Path()) {
		t.Error("something else is taken for a loop device of the disk")
	}
	if err := id.Store(path); err != nil {
		t.Errorf("of a name that is gone: %v", err)
	}
	if err := l.Detach(); err != nil || len(id.Loops()) > 0 {
		t.Errorf("%v is left, %v", id.Loops(), err)
	}
}
