package osscript

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/mount"
)

// takeNames has the new file systems get the identifiers by which the guest's
// files name them, so that initial RAM disks, which nobody edits, stay true.
func (c *creation) takeNames(named map[string]guest.Named) {
	taken := map[string]bool{}
	for _, s := range c.tree.systems {
		n := named[s.mountpoint]
		if s.kind == filesystem.Swap {
			n = named["swap"]
		}
		if n.UUID != "" && !taken[n.UUID] {
			s.uuid, taken[n.UUID] = n.UUID, true
		}
		if n.Label != "" && !taken[n.Label] && len(n.Label) <= s.kind.LongestLabel() {
			s.label, taken[n.Label] = n.Label, true
		}
		if n.PartUUID != "" && !taken[n.PartUUID] {
			s.partUUID, taken[n.PartUUID] = n.PartUUID, true
		}
	}
}

// setNames gives what a partition holds the identifiers that the guest names.
func (s *system) setNames(ctx context.Context) (err error) {
	if s.uuid == "" && s.label == "" || s.kind == filesystem.VFAT {
		return nil
	}
	set := func() error {
		s.info, err = filesystem.SetNames(ctx, s.loop.Path(), s.kind, s.uuid, s.label)
		return err
	}
	if s.kind == filesystem.Btrfs { // btrfstune refuses a UUID that another disk of the node has
		return mount.WithDevices([]string{s.loop.Path(), "/dev/null"}, set)
	}
	return set()
}

// fstabSystems is what the guest's fstab is to say.
func (c *creation) fstabSystems() []guest.FSTabSystem {
	var systems []guest.FSTabSystem
	for _, s := range c.tree.systems {
		uuid := cmp.Or(s.uuid, s.info.UUID) // it is set when nothing is mounted any more
		entry := guest.FSTabSystem{Device: "UUID=" + uuid, Names: []string{"UUID=" + uuid}, Mountpoint: s.mountpoint, Type: string(s.kind)}
		if s.label != "" {
			entry.Names = append(entry.Names, "LABEL="+s.label)
		}
		if id := c.tree.partUUID(s); id != "" {
			entry.Names = append(entry.Names, "PARTUUID="+id)
		}
		systems = append(systems, entry)
	}
	// One is mounted on a directory of another, which has to be there first.
	slices.SortFunc(systems, func(a, b guest.FSTabSystem) int { return strings.Compare(a.Mountpoint, b.Mountpoint) })
	return systems
}

// partUUID is the PARTUUID that the guest names a partition by, if a table of
// the kind can have it.
func (t *treeImage) partUUID(s *system) string {
	if t.kind == layout.GPT && len(s.partUUID) == 36 {
		return s.partUUID
	}
	if id, ok := t.diskID(); ok && t.kind == layout.MBR && s.number > 0 && s.partUUID == fmt.Sprintf("%08x-%02x", id, s.number) {
		return s.partUUID
	}
	return ""
}

// diskID is the disk signature that the guest's PARTUUIDs begin with.
func (t *treeImage) diskID() (id uint32, ok bool) {
	for _, s := range slices.Backward(t.systems) {
		var number int
		if n, _ := fmt.Sscanf(s.partUUID, "%08x-%02x", &id, &number); n == 2 && len(s.partUUID) == 11 && number == s.number && id != 0 {
			return id, true
		}
	}
	return 0, false
}

// volumeID is the number that FAT has in place of a UUID, as "1A2B-3C4D": what
// the guest names, or one that is drawn.
func (s *system) volumeID() uint32 {
	id, err := strconv.ParseUint(strings.ReplaceAll(s.uuid, "-", ""), 16, 32)
	if err != nil {
		return rand.Uint32()
	}
	return uint32(id)
}
