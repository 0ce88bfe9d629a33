package lab

import (
	"context"
	"fmt"
	"slices"

	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/undo"
)

// Where LVM puts the data of a physical volume, and what it counts them in. Both
// are asked for, so that decide knows where each volume comes to lie.
const (
	firstExtent = mib
	extent      = 4 * mib
)

// makeVolumes makes the layout's physical volume, the group and the volumes in
// it. None is activated: lvm writes metadata only, which needs no device mapper.
func (b build) makeVolumes(ctx context.Context) (err error) {
	i := slices.IndexFunc(b.parts, func(p madePart) bool { return p.kind == typeLVM })
	if i < 0 {
		return nil
	}
	var steps undo.Stack
	defer steps.Unwind(&err)
	loop, _, err := b.attach(ctx, &steps, b.parts[i])
	if err != nil {
		return err
	}
	for _, argv := range b.volumeCommands(loop, b.parts[i].start+firstExtent) {
		whole := append([]string{"lvm", argv[0], "--driverloaded", "n", "--devices", loop,
			"--config", "devices/use_devicesfile=0 backup{backup=0 archive=0}", "--yes"}, argv[1:]...)
		if _, err := (run.Cmd{What: "make LVM volumes", Argv: whole}).Run(ctx); err != nil {
			return err
		}
	}
	return nil
}

// volumeCommands are lvm's, with every volume in the extents where decide has
// placed it; data is where the first one begins on the disk.
func (m made) volumeCommands(device string, data size.Bytes) [][]string {
	commands := [][]string{
		{"pvcreate", "--dataalignment", fmt.Sprintf("%db", firstExtent), device},
		{"vgcreate", "--physicalextentsize", fmt.Sprintf("%db", extent), m.group, device},
	}
	for _, p := range m.parts {
		if p.volume == "" {
			continue
		}
		first, count := (p.start-data)/extent, p.length/extent
		commands = append(commands, []string{"lvcreate", "--activate", "n", "--zero", "n", "--wipesignatures", "n", "--name", p.volume,
			"--extents", fmt.Sprint(int64(count)), m.group, fmt.Sprintf("%s:%d-%d", device, first, first+count-1)})
	}
	return commands
}
