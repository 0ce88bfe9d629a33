package mount

import (
	"strings"
	"testing"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/layout"
)

// Names of a guest's volumes become names of directories, and nothing else.
func TestDirName(t *testing.T) {
	for _, c := range []struct {
		number int
		volume string
		want   string
	}{
		{0, "", "disk1"}, {15, "", "disk1-part15"}, {3, "home", "disk1-part3-home"}, {3, "a.b+c_d-e", "disk1-part3-a.b+c_d-e"},
		{3, "../../etc", "disk1-part3-volume7"}, {3, "a b", "disk1-part3-volume7"}, {0, "x\n", "disk1-volume7"}, {3, strings.Repeat("x", 200), "disk1-part3-volume7"},
	} {
		p := &Part{Partition: layout.Partition{Number: c.number}, Volume: c.volume}
		if got := p.dirName(1, 7); got != c.want {
			t.Errorf("partition %d, volume %q: %s, want %s", c.number, c.volume, got, c.want)
		}
	}
}

func TestInstanceName(t *testing.T) {
	for name, want := range map[string]bool{
		"web.example.org": true, "a": true, "web-1_2": true, strings.Repeat("a", 253): true,
		"": false, ".": false, "..": false, "../x": false, "a/b": false, ".x": false, "-x": false, "a\n": false, "a b": false, strings.Repeat("a", 254): false,
	} {
		if got := instanceName.MatchString(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
		if _, kept := IsKept(name + "/"); kept {
			t.Errorf("%q/ is said to be mounted", name)
		}
	}
}

// A clone of a btrfs on another disk is not mounted beside it.
func TestTwinOnAnotherDisk(t *testing.T) {
	info := filesystem.Info{Kind: filesystem.Btrfs, UUID: "u"}
	t1 := &Tree{beside: []*Part{{Info: info, Device: "/dev/loop1"}}}
	if t1.twin(&Part{Info: info}) == nil {
		t.Error("the other disk's is not noticed")
	}
}
