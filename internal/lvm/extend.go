package lvm

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/size"
)

// Tools names the programs that Extend and ExtendPast run. lvm must be 2.03.12
// or later, which is the first with the option --devices.
func Tools() []string { return []string{"lvm", "env"} }

// Extend makes the physical volume on the device dev fill it, and gives the free
// extents behind a logical volume to that volume; volume "" is none. It refuses,
// before it writes, where the volume would not be one stretch afterwards, as
// Grown tells. No other device is opened or changed, nothing is activated, and
// the node's own configuration, locks, backups and device lists of LVM are
// neither read nor written. The filesystem in the volume is left as it is. What
// lvm needs for the moment is in the directory scratch.
func Extend(ctx context.Context, dev, group, volume, scratch string) error {
	_, err := ExtendPast(ctx, dev, group, volume, scratch, nil)
	return err
}

// ExtendPast does as Extend, but first moves the volumes behind it, for which
// movable is true, to the end of the physical volume; name, UUID, length and
// tags stay theirs. Only the metadata is changed: the caller copies what the
// moved volumes held, as Move says. The moves are returned with an error too,
// when they were written before it.
func ExtendPast(ctx context.Context, dev, group, volume, scratch string, movable func(Volume) bool) ([]Move, error) {
	moves, err := extendPast(ctx, dev, group, volume, scratch, movable)
	if err != nil {
		return moves, fmt.Errorf("cannot extend the LVM physical volume %s: %w", dev, err)
	}
	return moves, nil
}

func extendPast(ctx context.Context, dev, group, volume, scratch string, movable func(Volume) bool) (moves []Move, err error) {
	g, err := check(dev, group, volume, movable)
	if err != nil {
		return nil, err
	}
	t, err := newTool(dev, scratch, g)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(t.dir)
	if err := t.run(ctx, "fit the physical volume to "+dev, "pvresize", dev); err != nil || volume == "" {
		return nil, err
	}
	g, _, err = readDevice(dev)
	if err != nil {
		return nil, err
	}
	e, err := g.grown(g.Extents, volume, movable)
	if err != nil || e.count == 0 {
		return nil, err
	}
	if len(e.Moves) > 0 {
		if err := t.move(ctx, g.Name, e.Moves); err != nil {
			return nil, err
		}
		moves = e.Moves
	}
	if err := t.extend(ctx, g.Name+"/"+volume, e); err != nil {
		return moves, err
	}
	return moves, confirm(dev, volume, e)
}

// check refuses what would fail later.
func check(dev, group, volume string, movable func(Volume) bool) (*Group, error) {
	if !filepath.IsAbs(dev) || strings.ContainsAny(dev, ",:") {
		return nil, fmt.Errorf("%w: %q is no path that lvm takes for one device", ErrUnsupported, dev)
	}
	g, n, err := readDevice(dev)
	if err != nil {
		return nil, err
	}
	if g.Name != group {
		return nil, fmt.Errorf("%w: it holds the volume group %s, not %q", ErrUnsupported, g.Name, group)
	}
	if volume == "" {
		return g, g.changeable(g.fitting(n))
	}
	_, err = g.Grown(n, volume, movable)
	return g, err
}

// readDevice reads the group on a device, and the device's length.
func readDevice(dev string) (*Group, size.Bytes, error) {
	f, err := os.Open(dev)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	n, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, 0, err
	}
	g, err := Read(f, size.Bytes(n))
	return g, size.Bytes(n), err
}

// confirm reads what lvm has written.
func confirm(dev, volume string, e Extension) error {
	g, _, err := readDevice(dev)
	if err != nil {
		return err
	}
	v, _ := g.Volume(volume)
	if after, _ := v.Linear(); after != e.After {
		return fmt.Errorf("lvm did not make %s/%s the stretch of %s that was asked for", g.Name, volume, e.After.Length)
	}
	for _, m := range e.Moves {
		if !slices.ContainsFunc(g.areas, func(a area) bool { return a.volume == m.Volume && a.start == m.to && a.count == m.area.count }) {
			return fmt.Errorf("lvm did not move %s/%s to where it was asked to", g.Name, m.Volume)
		}
	}
	return nil
}

// tool runs lvm for one device, with a configuration and locks of its own.
type tool struct{ dir, dev string }

// config is a whole lvm.conf(5); what it does not name has lvm's default. The
// node's devices file, hints, udev, daemons and D-Bus are left alone. scan_lvs
// is for instances whose disk is a logical volume of the node.
const config = `
devices {
	use_devicesfile = 0
	hints = "none"
	scan_lvs = 1
	obtain_device_list_from_udev = 0
	external_device_info_source = "none"
	multipath_component_detection = 0
	md_component_detection = 0
}
backup {
	backup = 0
	archive = 0
	backup_dir = %[1]s
	archive_dir = %[1]s
}
global {
	activation = 0
	locking_dir = %[1]s
	use_lvmlockd = 0
	use_lvmpolld = 0
	notify_dbus = 0
	event_activation = 0
	system_id_source = %[2]s
}
activation {
	udev_sync = 0
	udev_rules = 0
	monitoring = 0
}
log {
	syslog = 0
}
local {
	system_id = %[3]s
}
`

// newTool makes the private directory. Where a group belongs to one system
// alone, lvm is told that this is it: the guest will be.
func newTool(dev, scratch string, g *Group) (*tool, error) {
	if _, err := run.Find("lvm"); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(scratch, "lvm-")
	if err != nil {
		return nil, fmt.Errorf("cannot make a private directory for lvm: %w", err)
	}
	source := "none"
	if g.systemID != "" {
		source = "lvmlocal"
	}
	text := fmt.Sprintf(config, strconv.Quote(dir), strconv.Quote(source), strconv.Quote(g.systemID))
	if err := os.WriteFile(filepath.Join(dir, "lvm.conf"), []byte(text), 0o600); err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("cannot write a configuration for lvm: %w", err)
	}
	return &tool{dir, dev}, nil
}

func (t *tool) run(ctx context.Context, what, command string, args ...string) error {
	argv := []string{"env", "LVM_SYSTEM_DIR=" + t.dir, "LVM_SUPPRESS_FD_WARNINGS=1",
		"lvm", command, "--devices", t.dev, "--driverloaded", "n", "--yes", "--quiet"}
	_, err := run.Cmd{What: what, Argv: append(argv, args...)}.Run(ctx)
	return err
}

// extend gives the volume exactly the extents behind it.
func (t *tool) extend(ctx context.Context, volume string, e Extension) error {
	extents := fmt.Sprintf("%s:%d-%d", t.dev, e.first, e.first+e.count-1)
	return t.run(ctx, "extend the logical volume "+volume, "lvextend",
		"--alloc", "contiguous", "--extents", fmt.Sprintf("+%d", e.count), volume, extents)
}

// move writes the group's metadata anew with other extents for some areas. lvm
// checks the text and replaces the metadata in one step. It has to be forced
// where the group holds a thin pool, for an old text would not fit the pool's own
// metadata; this text is no older than the group.
func (t *tool) move(ctx context.Context, group string, moves []Move) error {
	file := filepath.Join(t.dir, "group")
	if err := t.run(ctx, "save the metadata of the volume group "+group, "vgcfgbackup", "--file", file, group); err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	edited, err := edit(string(text), moves)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte(edited), 0o600); err != nil {
		return err
	}
	return t.run(ctx, "write the metadata of the volume group "+group, "vgcfgrestore", "--force", "--file", file, group)
}

// edit replaces the numbers of the first extents of what is moved.
func edit(text string, moves []Move) (string, error) {
	root, err := parseText(text)
	if err != nil {
		return "", err
	}
	if len(root.sections) != 1 {
		return "", damaged("lvm's copy of the metadata does not describe one volume group")
	}
	type number struct {
		from, to int // its place in the text
		start    int64
	}
	var numbers []number
	for _, m := range moves {
		list := root.sections[0].at("logical_volumes", m.Volume, m.area.segment).values[m.area.list]
		if m.area.item >= len(list) || !list[m.area.item].isNumber || list[m.area.item].number != m.area.start {
			return "", damaged("lvm's copy of the metadata has the volume %s elsewhere", m.Volume)
		}
		v := list[m.area.item]
		numbers = append(numbers, number{v.from, v.to, m.to})
	}
	slices.SortFunc(numbers, func(x, y number) int { return cmp.Compare(y.from, x.from) })
	for _, n := range numbers {
		text = text[:n.from] + strconv.FormatInt(n.start, 10) + text[n.to:]
	}
	return text, nil
}
