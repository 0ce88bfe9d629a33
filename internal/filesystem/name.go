package filesystem

import (
	"context"
	"fmt"
	"regexp"
	"slices"

	"ganeti-instance-image/internal/run"
)

// namer is how a kind gets another UUID or label, on a device that is not
// mounted: the arguments stand in front of the device, that of a label is last.
type namer struct {
	uuid, label []string
	behind      bool // the label stands behind the device
	longest     int  // label, in bytes
	// check makes a file system acceptable to what sets its UUID.
	check []string
}

var namers = map[Kind]namer{
	Ext2:  {longest: 16, uuid: []string{"tune2fs", "-U"}, label: []string{"tune2fs", "-L"}, check: []string{"e2fsck", "-fp"}},
	Ext3:  {longest: 16, uuid: []string{"tune2fs", "-U"}, label: []string{"tune2fs", "-L"}, check: []string{"e2fsck", "-fp"}},
	Ext4:  {longest: 16, uuid: []string{"tune2fs", "-U"}, label: []string{"tune2fs", "-L"}, check: []string{"e2fsck", "-fp"}},
	XFS:   {longest: 12, uuid: []string{"xfs_admin", "-U"}, label: []string{"xfs_admin", "-L"}},
	Btrfs: {longest: 255, uuid: []string{"btrfstune", "-f", "-U"}, label: []string{"btrfs", "filesystem", "label"}, behind: true},
	Swap:  {longest: 15, uuid: []string{"swaplabel", "-U"}, label: []string{"swaplabel", "-L"}},
}

// Namers are the programs that SetNames needs for a kind.
func (k Kind) Namers() []string {
	var tools []string
	for _, argv := range [][]string{namers[k].uuid, namers[k].label, namers[k].check} {
		if len(argv) > 0 && !slices.Contains(tools, argv[0]) {
			tools = append(tools, argv[0])
		}
	}
	return tools
}

// nameShape is what SetNames hands on to programs: xfs_admin is a shell script
// that evaluates its arguments.
var nameShape = regexp.MustCompile(`^[A-Za-z0-9_./:@+][A-Za-z0-9_./:@+-]*$`)

// LongestLabel is how many bytes a label of the kind can have.
func (k Kind) LongestLabel() int { return namers[k].longest }

// SetNames gives what dev holds the UUID and the label, as blkid(8) writes them,
// each unless it is empty, and returns what is there now.
func SetNames(ctx context.Context, dev string, kind Kind, uuid, label string) (Info, error) {
	n, ok := namers[kind]
	if !ok {
		return Info{}, fmt.Errorf("cannot give %s on %s a UUID: no program for it is known", kind, dev)
	}
	if name := uuid + label; !nameShape.MatchString(name) {
		return Info{}, fmt.Errorf("cannot name the %s on %s: %+q has a character that is not allowed", kind, dev, name)
	}
	if uuid != "" {
		if err := n.setUUID(ctx, dev, uuid); err != nil {
			return Info{}, err
		}
	}
	if label != "" {
		argv := append(slices.Clone(n.label), label, dev)
		if n.behind {
			argv = append(slices.Clone(n.label), dev, label)
		}
		if _, err := (run.Cmd{What: "set the label of " + dev, Argv: argv}).Run(ctx); err != nil {
			return Info{}, err
		}
	}
	info, err := ProbeDevice(dev)
	if err == nil && (uuid != "" && info.UUID != uuid || label != "" && info.Label != label) {
		err = fmt.Errorf("cannot name the %s on %s: it still has the UUID %s and the label %q", kind, dev, info.UUID, info.Label)
	}
	return info, err
}

// setUUID sets the UUID. tune2fs refuses one with checksums that was not checked
// since it was last mounted.
func (n namer) setUUID(ctx context.Context, dev, uuid string) error {
	cmd := run.Cmd{What: "set the UUID of " + dev, Argv: append(slices.Clone(n.uuid), uuid, dev)}
	_, err := cmd.Run(ctx)
	if err == nil || n.check == nil {
		return err
	}
	check := run.Cmd{What: "check the file system on " + dev, Argv: append(slices.Clone(n.check), dev), OK: []int{1}}
	if _, checkErr := check.Run(ctx); checkErr != nil {
		return err
	}
	_, err = cmd.Run(ctx)
	return err
}
