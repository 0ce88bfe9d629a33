package mount

import (
	"slices"
	"testing"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/layout"
)

func tree() *Tree {
	part := func(number int, name, guid string, info filesystem.Info) *Part {
		return &Part{Partition: layout.Partition{Number: number, Name: name, GUID: guid}, Info: info}
	}
	return &Tree{
		table: &layout.Table{Kind: layout.GPT},
		parts: []*Part{
			part(14, "", "", filesystem.Info{}),
			part(15, "", "", filesystem.Info{Kind: filesystem.VFAT, UUID: "ABCD-1234", Label: "UEFI"}),
			part(16, "boot part", "11111111-2222-3333-4444-555555555555", filesystem.Info{Kind: filesystem.Ext4, UUID: "aaaa-b", Label: "BOOT"}),
			part(1, "", "", filesystem.Info{Kind: filesystem.Btrfs, UUID: "cccc-d", Label: "my root"}),
		},
	}
}

func TestFindWhatFSTabMeans(t *testing.T) {
	cases := []struct {
		spec string
		want int // partition; 0: none
	}{
		{"UUID=aaaa-b", 16}, {"UUID=AAAA-B", 16}, {`UUID="aaaa-b"`, 16}, {"UUID=abcd-1234", 15}, {"UUID=none", 0},
		{"LABEL=BOOT", 16}, {"LABEL=boot", 0}, {"LABEL=my root", 1}, {"PARTLABEL=boot part", 16},
		{"PARTUUID=11111111-2222-3333-4444-555555555555", 16},
		{"/dev/vda1", 1}, {"/dev/sda16", 16}, {"/dev/xvda15", 15}, {"/dev/nvme0n1p1", 1}, {"/dev/vdb1", 0}, {"/dev/vda", 0},
		{"/dev/disk/by-uuid/aaaa-b", 16}, {`/dev/disk/by-label/my\x20root`, 1}, {"/dev/disk/by-path/pci-1", 0},
		{"tmpfs", 0}, {"", 0}, {"UUID=", 0}, {"LABEL=", 0},
	}
	for _, c := range cases {
		got := 0
		if p := tree().find(c.spec); p != nil {
			got = p.Number
		}
		if got != c.want {
			t.Errorf("find(%q) = partition %d, want %d", c.spec, got, c.want)
		}
	}
}

func TestTwin(t *testing.T) {
	tr := tree()
	tr.parts[3].Device = "/dev/loop1"
	twin := &Part{Info: filesystem.Info{Kind: filesystem.Btrfs, UUID: "cccc-d"}}
	if tr.twin(twin) != tr.parts[3] {
		t.Error("a second btrfs of the same UUID is not noticed")
	}
	if other := (&Part{Info: filesystem.Info{Kind: filesystem.Btrfs, UUID: "e"}}); tr.twin(other) != nil {
		t.Error("a btrfs of another UUID is taken for the same")
	}
}

func TestSubvolumeOf(t *testing.T) {
	got := subvolumeOf([]string{"compress=zstd:1", "subvol=root", "suid", "subvolid=5", "device=/dev/sda"})
	if want := []string{"subvol=root", "subvolid=5"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
