package mount

import (
	"cmp"
	"fmt"
	"io"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/lvm"
	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/undo"
)

// Unseen lists the parts of a disk that may hold file systems and cannot be
// looked into, each in words, as "crypto_LUKS on partition 2". The table is the
// disk's; nil means that it has none.
func Unseen(disk Disk, table *layout.Table) ([]string, error) {
	t, err := prepare(disk, table, Options{ReadOnly: true}, new(undo.Stack))
	if err != nil {
		return nil, err
	}
	return t.unseen(), nil
}

// opaque are the kinds of which nothing that is in them is looked for.
var opaque = map[filesystem.Kind]bool{filesystem.LUKS: true, filesystem.ZFS: true, filesystem.F2FS: true, filesystem.SquashFS: true}

func (t *Tree) unseen() (list []string) {
	for _, part := range t.parts {
		at := io.NewSectionReader(t.disk, int64(part.Start), int64(part.Length))
		switch {
		case part.Info.Apart != "":
			list = append(list, fmt.Sprintf("%s%s, of which %s", part.Info.Kind, part.where(), part.Info.Apart))
		case opaque[part.Info.Kind]:
			list = append(list, string(part.Info.Kind)+part.where())
		case part.Info.Kind == filesystem.LVM2 && part.Volume == "":
			list = append(list, unseenVolumes(at, part)...)
		case part.Info.Kind == filesystem.None && isRAIDMember(at, part.Length):
			list = append(list, "a member of a RAID"+part.where())
		}
	}
	return list
}

// where says where a part is.
func (p *Part) where() string {
	switch {
	case p.Volume != "":
		return " on the logical volume " + p.Group + "/" + p.Volume
	case p.Number > 0:
		return fmt.Sprintf(" on partition %d", p.Number)
	}
	return ""
}

// unseenVolumes are the logical volumes that are not one stretch of the disk.
func unseenVolumes(at *io.SectionReader, part *Part) (list []string) {
	group, err := lvm.Read(at, part.Length)
	if err != nil {
		return []string{fmt.Sprintf("LVM%s (%v)", part.where(), err)}
	}
	for _, v := range group.Volumes {
		if _, ok := v.Linear(); !ok {
			list = append(list, fmt.Sprintf("the logical volume %s/%s (%s)", group.Name, v.Name, cmp.Or(v.Why, "it is in several pieces")))
		}
	}
	return list
}

// isRAIDMember looks for the mark of Linux' software RAID at the four places which
// md(4) names.
func isRAIDMember(at io.ReaderAt, length size.Bytes) bool {
	ends := filesystem.RAIDEnds(length)
	for _, off := range []size.Bytes{0, 4 * size.KiB, ends[0], ends[1]} {
		var b [len(filesystem.RAIDMark)]byte
		if off < 0 || off > length-size.Bytes(len(b)) {
			continue
		}
		if _, err := at.ReadAt(b[:], int64(off)); err == nil && string(b[:]) == filesystem.RAIDMark {
			return true
		}
	}
	return false
}
