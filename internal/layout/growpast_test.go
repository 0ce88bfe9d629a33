package layout

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

const swapType = "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"

// pastCase is a disk on which a partition grows that need not be the last.
type pastCase struct {
	name    string
	script  string // for sfdisk, in units that fit any sector size
	only512 bool   // an MBR, or too long to write twice
	disk    size.Bytes
	number  int
	swap    []int // what is movable
	grown   bool
	moved   []int // in the order of the plan
	note    string
	sgdisk  []string // further changes to the table
}

const (
	gptSwap      = "label: gpt\n1: start=1MiB, size=600MiB, type=" + rootType + ", name=\"root\", attrs=\"GUID:59\"\n2: size=100MiB, type=" + swapType + ", name=\"swap \u00e4\", attrs=\"GUID:63\"\n"
	gptTwoSwaps  = "label: gpt\n14: start=1MiB, size=4MiB, type=" + biosType + "\n3: size=600MiB, type=" + rootType + "\n1: size=40MiB, type=" + swapType + ", name=one\n2: size=77MiB, type=" + swapType + ", name=two\n"
	gptDataAfter = "label: gpt\n1: start=1MiB, size=300MiB\n2: size=50MiB, type=" + swapType + "\n3: start=600MiB, size=100MiB, name=data\n"
	installer    = "label: dos\nlabel-id: 0x1234abcd\n1: start=2048, size=1202000, type=83, bootable\n2: start=1204222, size=292866, type=5\n5: start=1204224, size=292864, type=82\n"
	fewLogicals  = "label: dos\n1: start=2048, size=802000, type=83\n2: start=804862, size=900000, type=%s\n5: start=804864, size=100000, type=82\n6: start=1000000, size=100000, type=82\n7: start=1200000, size=2048, type=82\n8: start=1300000, size=404862, type=82\n"
	logicalRoot  = "label: dos\n1: start=2048, size=204800, type=83\n2: start=206848, size=1200000, type=f\n5: start=208896, size=800000, type=83\n6: start=1012000, size=100000, type=82\n7: start=1120000, size=100001, type=82\n"
)

var pastCases = []pastCase{
	{name: "GPT, swap behind root", script: gptSwap, disk: 10 * size.GiB, number: 1, swap: []int{2}, grown: true, moved: []int{2}},
	{name: "GPT, swap moved by little", script: gptSwap, disk: size.GiB + 8*size.MiB, number: 1, swap: []int{2}, grown: true, moved: []int{2}},
	{name: "GPT, two swaps", script: gptTwoSwaps, disk: 5*size.GiB + 4096, number: 3, swap: []int{1, 2}, grown: true, moved: []int{2, 1}},
	{name: "GPT, last is not movable", script: gptTwoSwaps, disk: 5 * size.GiB, number: 3, swap: []int{1}, note: "partition 2 is in the way behind partition 3"},
	{name: "GPT, next is not movable", script: gptSwap, disk: 5 * size.GiB, number: 1, note: "partition 2 is in the way"},
	{name: "GPT, room in front of data", script: gptDataAfter, disk: 5 * size.GiB, number: 1, swap: []int{2}, grown: true, moved: []int{2}, note: "partition 3 is in the way"},
	{name: "GPT, 3 TiB", script: gptSwap, disk: 3 * size.TiB, number: 1, swap: []int{2}, grown: true, moved: []int{2}},
	{name: "GPT, 4 entries", script: "table-length: 4\n" + gptSwap, disk: 3 * size.GiB, number: 1, swap: []int{2}, grown: true, moved: []int{2}},
	{name: "GPT, 8 entries", script: "table-length: 8\n" + gptSwap, disk: 3 * size.GiB, number: 1, swap: []int{2}, grown: true, moved: []int{2}},
	{name: "GPT, moved entries", script: gptSwap, sgdisk: []string{"-j", "100"}, disk: 3 * size.GiB, number: 1, swap: []int{2}, grown: true, moved: []int{2}},
	{name: "GPT, hybrid MBR of root", script: gptSwap, sgdisk: []string{"-h", "1"}, disk: 3 * size.GiB, number: 1, swap: []int{2}, grown: true, moved: []int{2}},
	{name: "GPT, hybrid MBR of both", script: gptSwap, sgdisk: []string{"-h", "1:2"}, disk: 3 * size.GiB, number: 1, swap: []int{2}, grown: true, moved: []int{2}},
	{name: "GPT, nothing to gain", script: "label: gpt\n1: start=1MiB, size=922MiB\n2: size=100MiB, type=" + swapType + "\n", disk: size.GiB, number: 1, swap: []int{2}, note: "less than 1 MiB"},
	{name: "GPT, the last one", script: gptSwap, disk: 3 * size.GiB, number: 2, grown: true},

	{name: "MBR, primary swap", only512: true, script: "label: dos\n1: start=2048, size=1200000, type=83, bootable\n2: start=1202048, size=204801, type=82\n", disk: 30 * size.GiB, number: 1, swap: []int{2}, grown: true, moved: []int{2}},
	{name: "MBR, number and place differ", only512: true, script: "label: dos\n3: start=2048, size=1200000, type=83\n1: start=1202048, size=204800, type=82\n2: start=1410000, size=2048, type=82\n", disk: 3 * size.GiB, number: 3, swap: []int{1, 2}, grown: true, moved: []int{2, 1}},
	{name: "MBR, installer", only512: true, script: installer, disk: 10 * size.GiB, number: 1, swap: []int{5}, grown: true, moved: []int{5, 2}},
	{name: "MBR, installer, little", only512: true, script: installer, disk: size.GiB, number: 1, swap: []int{5}, grown: true, moved: []int{5, 2}},
	{name: "MBR, installer, 3 TiB", only512: true, script: installer, disk: 3 * size.TiB, number: 1, swap: []int{5}, grown: true, moved: []int{5, 2}, note: "2 TiB"},
	{name: "MBR, installer, 2 TiB", only512: true, script: installer, disk: 2 * size.TiB, number: 1, swap: []int{5}, grown: true, moved: []int{5, 2}},
	{name: "MBR, installer, swap not movable", only512: true, script: installer, disk: 3 * size.GiB, number: 1, note: "partition 5 in the extended partition 2 is in the way"},
	{name: "MBR, extended without logicals", only512: true, script: "label: dos\n1: start=2048, size=1200000, type=83\n2: start=1202048, size=204800, type=5\n", disk: 3 * size.GiB, number: 1, grown: true, moved: []int{2}},
	{name: "MBR, BSD behind", only512: true, script: "label: dos\n1: start=2048, size=1200000, type=83\n2: start=1302048, size=204800, type=a5\n", disk: 3 * size.GiB, number: 1, grown: true, note: "partition 2 is in the way"},
	{name: "MBR, BSD grows", only512: true, script: "label: dos\n1: start=2048, size=204800, type=82\n2: start=302048, size=204800, type=a9\n", disk: 3 * size.GiB, number: 2, grown: true},
	{name: "MBR, logicals 05", only512: true, script: fmt.Sprintf(fewLogicals, "5"), disk: 3 * size.GiB, number: 1, swap: []int{5, 6, 7, 8}, grown: true, moved: []int{8, 7, 6, 5, 2}},
	{name: "MBR, logicals 0f", only512: true, script: fmt.Sprintf(fewLogicals, "f"), disk: 12 * size.GiB, number: 1, swap: []int{5, 6, 7, 8}, grown: true, moved: []int{8, 7, 6, 5, 2}},
	{name: "MBR, logicals 85", only512: true, script: fmt.Sprintf(fewLogicals, "85"), disk: size.GiB, number: 1, swap: []int{5, 6, 7, 8}, grown: true, moved: []int{8, 7, 6, 5, 2}},
	{name: "MBR, one logical not movable", only512: true, script: fmt.Sprintf(fewLogicals, "5"), disk: 3 * size.GiB, number: 1, swap: []int{5, 6, 8}, note: "partition 7 in the extended partition 2"},
	{name: "MBR, logical root", only512: true, script: logicalRoot, disk: 10 * size.GiB, number: 5, swap: []int{6, 7}, grown: true, moved: []int{7, 6}},
	{name: "MBR, logical root, little", only512: true, script: logicalRoot, disk: size.GiB, number: 5, swap: []int{6, 7}, grown: true, moved: []int{7, 6}},
	{name: "MBR, logical root, one swap", only512: true, script: logicalRoot, disk: 3 * size.GiB, number: 6, swap: []int{7}, grown: true, moved: []int{7}},
	{name: "MBR, logical root, one swap in the way", only512: true, script: logicalRoot, disk: 3 * size.GiB, number: 6, grown: true, note: "in the way"},
	{name: "MBR, logical root, swaps in and behind", only512: true, script: logicalRoot + "3: start=1500000, size=100000, type=82\n", disk: 3 * size.GiB, number: 5, swap: []int{3, 6, 7}, grown: true, moved: []int{3, 7, 6}},
	{name: "MBR, extended grows into a gap", only512: true, script: logicalRoot + "3: start=1700000, size=100000, type=83\n", disk: 3 * size.GiB, number: 7, grown: true, note: "partition 3 is in the way"},
	{name: "MBR, the extended one", only512: true, script: installer, disk: 3 * size.GiB, number: 2, note: "holds no data itself"},
}

func TestGrowPast(t *testing.T) {
	t.Parallel()
	need.Tools(t, "sgdisk", "sfdisk")
	for _, c := range pastCases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, 512)
		})
	}
}

// TestGrowPast4096 does the same where a sector is 4096 bytes.
func TestGrowPast4096(t *testing.T) {
	t.Parallel()
	need.Root(t)
	need.File(t, "/dev/loop-control")
	need.Tools(t, "sgdisk", "sfdisk", "losetup")
	for _, c := range pastCases {
		if !c.only512 {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				c.test(t, 4096)
			})
		}
	}
}

func (c pastCase) test(t *testing.T, sector size.Bytes) {
	image := size.GiB
	path := sparse(t, image)
	onDevice(t, path, sector, func(device string) { c.makeTable(t, device) })
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before, err := Read(f, image)
	if err != nil {
		t.Fatal(err)
	}
	mark(t, f, before)
	want := entries(t, path, sector)
	if err := f.Truncate(int64(c.disk)); err != nil {
		t.Fatal(err)
	}
	plan, err := before.GrowPast(c.disk, c.number, func(p Partition) bool { return slices.Contains(c.swap, p.Number) })
	if err != nil {
		t.Fatal(err)
	}
	c.checkPlan(t, plan)
	copyHeads(t, f, plan.Moved)
	c.applySteps(t, f, plan)
	after, err := Read(f, c.disk)
	if err != nil {
		t.Fatal(err)
	}
	c.checkRoom(t, after, plan, sector)
	announce(want, plan, sector)
	if diff := cmp.Diff(want, entries(t, path, sector)); diff != "" {
		t.Errorf("what the tools see is not what was announced: %s", diff)
	}
	checkMarks(t, f, after)
	disk{name: string(after.Kind)}.verify(t, path, sector)
	again, err := after.GrowPast(c.disk, c.number, func(p Partition) bool { return slices.Contains(c.swap, p.Number) })
	if err != nil || len(again.Writes) != 0 || len(again.Moved) != 0 {
		t.Errorf("a second time would write %d times and move %+v, %v", len(again.Writes), again.Moved, err)
	}
}

// applySteps reads the table after each step that is flushed: it is the old one
// or the new one, but where things are moved onto themselves.
func (c pastCase) applySteps(t *testing.T, f *os.File, plan Plan) {
	t.Helper()
	for i, w := range plan.Writes {
		if _, err := f.WriteAt(w.Data, int64(w.Offset)); err != nil {
			t.Fatal(err)
		}
		if !w.Sync || strings.Contains(c.name, "little") {
			continue
		}
		table, err := Read(f, c.disk)
		if err != nil {
			t.Fatalf("after write %d of %d: %v", i+1, len(plan.Writes), err)
		}
		for _, p := range table.Partitions {
			isOld := slices.ContainsFunc(plan.Moved, func(m Move) bool { return m.From == p })
			isNew := slices.ContainsFunc(plan.Moved, func(m Move) bool { return m.To == p })
			if slices.ContainsFunc(plan.Moved, func(m Move) bool { return m.From.Number == p.Number }) && !isOld && !isNew {
				t.Errorf("after write %d of %d: %+v", i+1, len(plan.Writes), p)
			}
		}
	}
	if n := len(plan.Writes); n > 0 && !plan.Writes[n-1].Sync {
		t.Error("the last write is not flushed")
	}
}

func (c pastCase) makeTable(t *testing.T, device string) {
	t.Helper()
	sfdisk := exec.Command("/usr/sbin/sfdisk", "-q", device)
	sfdisk.Stdin = strings.NewReader(c.script)
	if out, err := sfdisk.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if c.sgdisk != nil {
		tool(t, "sgdisk", append(c.sgdisk, device)...)
	}
}

func (c pastCase) checkPlan(t *testing.T, plan Plan) {
	t.Helper()
	if (plan.Grown.Number == c.number) != c.grown {
		t.Errorf("grown is %+v", plan.Grown)
	}
	var moved []int
	for _, m := range plan.Moved {
		moved = append(moved, m.From.Number)
	}
	if !slices.Equal(moved, c.moved) {
		t.Errorf("moved %v, want %v", moved, c.moved)
	}
	if !strings.Contains(plan.Note, c.note) || c.note == "" && plan.Note != "" {
		t.Errorf("the note is %q, want it to say %q", plan.Note, c.note)
	}
}

// checkRoom looks for room that was not used: between the grown partition and
// the next one, and behind the last.
func (c pastCase) checkRoom(t *testing.T, after *Table, plan Plan, sector size.Bytes) {
	t.Helper()
	if plan.Grown.Number == 0 {
		return
	}
	for _, m := range plan.Moved {
		if start := m.To.Start % size.MiB; start != 0 && len(c.moved) == 1 {
			t.Errorf("partition %d starts %d bytes off", m.To.Number, start)
		}
	}
	limit := c.disk
	if after.Kind == MBR {
		limit = min(limit, 2*size.TiB)
	}
	last, _ := after.Last()
	if left := limit - last.End(); left > 2*size.MiB && !strings.Contains(c.note, "way") {
		t.Errorf("%s are left behind %+v", left, last)
	}
	for _, p := range after.Partitions {
		if p.Start > plan.Grown.Start {
			if left := p.Start - plan.Grown.End(); left > 2*size.MiB || left < 0 {
				t.Errorf("%s are left in front of %+v", left, p)
			}
			return
		}
	}
}

// mark writes a kind of header into each partition, a swap area's among them.
func mark(t *testing.T, f *os.File, table *Table) {
	t.Helper()
	for _, p := range table.Partitions {
		if p.Extended {
			continue
		}
		if _, err := f.WriteAt(bytes.Repeat([]byte{byte(p.Number)}, headLength), int64(p.Start)); err != nil {
			t.Fatal(err)
		}
	}
}

const headLength = 64 << 10

func checkMarks(t *testing.T, f *os.File, table *Table) {
	t.Helper()
	for _, p := range table.Partitions {
		found := make([]byte, headLength)
		if _, err := f.ReadAt(found, int64(p.Start)); err != nil {
			t.Fatal(err)
		}
		if !p.Extended && !bytes.Equal(found, bytes.Repeat([]byte{byte(p.Number)}, headLength)) {
			t.Errorf("partition %d does not begin with what it began with", p.Number)
		}
	}
}

// copyHeads does what the plan leaves to its caller.
func copyHeads(t *testing.T, f *os.File, moved []Move) {
	t.Helper()
	head := make([]byte, headLength)
	for _, m := range moved {
		if m.From.Extended {
			continue
		}
		if _, err := f.ReadAt(head, int64(m.From.Start)); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(head, int64(m.To.Start)); err != nil {
			t.Fatal(err)
		}
	}
}

// onDevice lets a tool see the file in sectors of that size.
func onDevice(t *testing.T, path string, sector size.Bytes, use func(device string)) {
	t.Helper()
	if sector == 512 {
		use(path)
		return
	}
	withLoop(t, path, use)
}

// entries is what sfdisk says of the disk, with the partitions by number. The
// last sector in use and an extended partition's length are left out.
func entries(t *testing.T, path string, sector size.Bytes) map[string]map[string]any {
	t.Helper()
	var text, name string
	onDevice(t, path, sector, func(device string) {
		text, name = tool(t, "sfdisk", "-J", device), device
	})
	if sector != 512 {
		name += "p"
	}
	var parsed struct {
		PartitionTable map[string]any `json:"partitiontable"`
	}
	text = text[strings.Index(text, "{"):]
	if err := json.Unmarshal([]byte(text[:strings.LastIndex(text, "}")+1]), &parsed); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	found := map[string]map[string]any{"table": parsed.PartitionTable}
	for _, p := range parsed.PartitionTable["partitions"].([]any) {
		p := p.(map[string]any)
		number := strings.TrimPrefix(p["node"].(string), name)
		delete(p, "node")
		if p["type"] == "5" || p["type"] == "f" || p["type"] == "85" {
			delete(p, "size")
		}
		found[number] = p
	}
	for _, key := range []string{"partitions", "lastlba", "device"} {
		delete(parsed.PartitionTable, key)
	}
	return found
}

// announce changes what sfdisk said to what the plan says.
func announce(found map[string]map[string]any, plan Plan, sector size.Bytes) {
	if n := plan.Grown.Number; n != 0 {
		found[fmt.Sprint(n)]["size"] = float64(plan.Grown.Length / sector)
	}
	for _, m := range plan.Moved {
		found[fmt.Sprint(m.From.Number)]["start"] = float64(m.To.Start / sector)
	}
}

func TestGrowPastNoSuchPartition(t *testing.T) {
	t.Parallel()
	need.Tools(t, "sfdisk")
	table, err := Read(open(t, disks[0].make(t)))
	if err != nil {
		t.Fatal(err)
	}
	for _, number := range []int{-1, 0, 2, 5} {
		if _, err := table.GrowPast(4*size.GiB, number, nil); err == nil || !strings.Contains(err.Error(), "none of that number") {
			t.Errorf("partition %d: %v", number, err)
		}
	}
	if _, err := table.GrowPast(size.GiB/2, 1, nil); err == nil || !strings.Contains(err.Error(), "larger disk") {
		t.Errorf("a smaller disk: %v", err)
	}
}

// TestGrowPastHybrid compares a hybrid MBR with the GPT: sfdisk shows both.
func TestGrowPastHybrid(t *testing.T) {
	t.Parallel()
	need.Tools(t, "sgdisk", "sfdisk")
	for _, which := range []string{"1", "2", "1:2"} {
		t.Run(which, func(t *testing.T) {
			t.Parallel()
			c := pastCase{script: gptSwap, sgdisk: []string{"-h", which}}
			path := sparse(t, size.GiB)
			c.makeTable(t, path)
			growFile(t, path, 3*size.GiB, 1, 2)
			partitions := entries(t, path, 512)
			nested := tool(t, "sfdisk", "-d", "--label-nested", "dos", path)
			for number := range strings.SplitSeq(which, ":") {
				p := partitions[number]
				if want := fmt.Sprintf("start=%12.0f, size=%12.0f,", p["start"], p["size"]); !strings.Contains(nested, want) {
					t.Errorf("partition %s is not as in the GPT (%s): %s", number, want, nested)
				}
			}
		})
	}
}

// TestGrowPastHybridEnd has a second protective entry, for the end of the disk.
func TestGrowPastHybridEnd(t *testing.T) {
	t.Parallel()
	need.Tools(t, "sgdisk", "sfdisk")
	c := pastCase{script: gptSwap, sgdisk: []string{"-h", "1"}}
	path := sparse(t, size.GiB)
	c.makeTable(t, path)
	// partition 1 ends at sector 2048 + 1228800; all behind is protected
	patch(t, path, slotsAt+2*slotSize, []byte{0, 0xFF, 0xFF, 0xFF, 0xEE, 0xFF, 0xFF, 0xFF, 0, 0xC8, 0x12, 0, 0, 0x38, 0x0D, 0})
	growFile(t, path, 3*size.GiB, 1, 2)
	root := entries(t, path, 512)["1"]
	end := root["start"].(float64) + root["size"].(float64)
	nested := tool(t, "sfdisk", "-d", "--label-nested", "dos", path)
	want := fmt.Sprintf("start=%12.0f, size=%12.0f, type=ee", end, float64(3*size.GiB/512)-end)
	if !strings.Contains(nested, want) {
		t.Errorf("want %s: %s", want, nested)
	}
}

// TestProtectiveLength looks at the one entry of a protective MBR (UEFI 2.10,
// 5.2.3): the disk's length, or all ones where 32 bits are too few.
func TestProtectiveLength(t *testing.T) {
	t.Parallel()
	need.Tools(t, "sfdisk")
	for disk, want := range map[size.Bytes]uint32{
		2 * size.GiB: 4<<20 - 1, 2*size.TiB - 512: 1<<32 - 2, 2 * size.TiB: 1<<32 - 1, 3 * size.TiB: 1<<32 - 1,
	} {
		path := sparse(t, size.GiB)
		pastCase{script: gptSwap}.makeTable(t, path)
		growFile(t, path, disk, 1, 2)
		var raw [4]byte
		f, _ := open(t, path)
		if _, err := f.ReadAt(raw[:], slotsAt+12); err != nil || le.Uint32(raw[:]) != want {
			t.Errorf("a disk of %s: %d, want %d, %v", disk, le.Uint32(raw[:]), want, err)
		}
	}
}

// TestGrowEmpty plans for a table without partitions.
func TestGrowEmpty(t *testing.T) {
	t.Parallel()
	need.Tools(t, "sfdisk", "sgdisk")
	path := sparse(t, size.GiB)
	pastCase{script: "label: gpt\n"}.makeTable(t, path)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, err := Read(f, size.GiB)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(int64(2 * size.GiB)); err != nil {
		t.Fatal(err)
	}
	plan, err := table.Grow(2 * size.GiB)
	if err != nil || plan.Grown.Number != 0 || plan.Note != "there is no partition to grow" {
		t.Errorf("%+v, %q, %v", plan.Grown, plan.Note, err)
	}
	apply(t, f, plan)
	disk{name: "GPT"}.verify(t, path, 512)

	dos := sparse(t, size.GiB)
	pastCase{script: "label: dos\n"}.makeTable(t, dos)
	if _, err := Read(open(t, dos)); err != ErrNoTable {
		t.Errorf("an empty MBR: %v", err)
	}
}

// TestOldRecordsAreCleared looks for boot records that nothing leads to.
func TestOldRecordsAreCleared(t *testing.T) {
	t.Parallel()
	need.Tools(t, "sfdisk")
	for _, c := range []struct {
		script  string
		number  int
		movable []int
		sector  int64
	}{
		{installer, 1, []int{5}, 1204222},
		{logicalRoot, 5, []int{6, 7}, 1012000 - 2048},
	} {
		path := sparse(t, size.GiB)
		pastCase{script: c.script}.makeTable(t, path)
		f, _ := open(t, path)
		var found [bootSize]byte
		if _, err := f.ReadAt(found[:], c.sector*512); err != nil || found[510] != 0x55 {
			t.Fatalf("no record at sector %d: %v", c.sector, err)
		}
		growFile(t, path, 3*size.GiB, c.number, c.movable...)
		if _, err := f.ReadAt(found[:], c.sector*512); err != nil || found != [bootSize]byte{} {
			t.Errorf("the record at sector %d is still there: %v", c.sector, err)
		}
	}
}

func TestReadHybridISO(t *testing.T) {
	t.Parallel()
	need.Tools(t, "xorriso")
	dir := t.TempDir()
	for name, length := range map[string]int{"boot.img": 2048, "mbr.bin": 440} {
		if err := os.WriteFile(dir+"/"+name, make([]byte, length), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	iso := t.TempDir() + "/iso"
	cmd := exec.Command("xorriso", "-as", "mkisofs", "-o", iso, "-b", "boot.img", "-no-emul-boot",
		"-boot-load-size", "4", "-boot-info-table", "-isohybrid-mbr", dir+"/mbr.bin", dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	_, err := Read(open(t, iso))
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "hybrid ISO image") {
		t.Error(err)
	}
}

// growFile gives the file that length and grows a partition in it.
func growFile(t *testing.T, path string, length size.Bytes, number int, movable ...int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, err := Read(open(t, path))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(int64(length)); err != nil {
		t.Fatal(err)
	}
	plan, err := table.GrowPast(length, number, func(p Partition) bool { return slices.Contains(movable, p.Number) })
	if err != nil || plan.Grown.Number != number {
		t.Fatal(plan.Grown, err)
	}
	apply(t, f, plan)
}
