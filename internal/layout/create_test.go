package layout

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

const mib = size.MiB

func TestPlaces(t *testing.T) {
	for _, test := range []struct {
		name string
		spec Spec
		want []Place
	}{
		{"boot, swap, root", Spec{Disk: 4096 * mib, Boot: 512 * mib, Swap: 1024 * mib},
			[]Place{{ForBoot, mib, 512 * mib}, {ForSwap, 513 * mib, 1024 * mib}, {ForRoot, 1537 * mib, 2558 * mib}}},
		{"loaders in front", Spec{Disk: 2048 * mib, BIOSBoot: true, ESP: 100 * mib, Boot: 512 * mib},
			[]Place{{ForBIOSBoot, mib, mib}, {ForESP, 2 * mib, 100 * mib}, {ForBoot, 102 * mib, 512 * mib}, {ForRoot, 614 * mib, 1433 * mib}}},
		{"root alone", Spec{Disk: 100*mib + 12345}, []Place{{ForRoot, mib, 98 * mib}}},
		{"sizes that are no MiB", Spec{Disk: 100 * mib, Swap: 10*mib + 1}, []Place{{ForSwap, mib, 11 * mib}, {ForRoot, 12 * mib, 87 * mib}}},
		{"an MBR ends at 2 TiB", Spec{Disk: 3 << 40, MBR: true}, []Place{{ForRoot, mib, 2<<40 - 2*mib}}},
		{"a GPT does not", Spec{Disk: 3 << 40}, []Place{{ForRoot, mib, 3<<40 - 2*mib}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := test.spec.Places()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTooSmallADisk(t *testing.T) {
	_, err := Spec{Disk: 1024 * mib, BIOSBoot: true, ESP: 100 * mib, Boot: 512 * mib, Swap: 256 * mib, Least: 300 * mib}.Places()
	want := "the disk has 1024 MiB and must have 1171 MiB at least: 2 MiB for the partition table, 1 MiB for BIOS boot, 100 MiB for ESP, 512 MiB for boot, 256 MiB for swap, and 300 MiB for root"
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	for disk := range 4 {
		if _, err := (Spec{Disk: size.Bytes(disk) * mib / 2}).Places(); err == nil {
			t.Errorf("a disk of %d half MiB is enough", disk)
		}
	}
}

func TestNumbers(t *testing.T) {
	places, err := Spec{Disk: 4096 * mib, BIOSBoot: true, ESP: 100 * mib, Boot: 512 * mib, Swap: mib}.Places()
	if err != nil {
		t.Fatal(err)
	}
	gpt := map[Use]int{ForBIOSBoot: 14, ForESP: 15, ForBoot: 1, ForSwap: 2, ForRoot: 3}
	if diff := cmp.Diff(gpt, Numbers(GPT, places)); diff != "" {
		t.Error(diff)
	}
	mbr := map[Use]int{ForESP: 4, ForBoot: 1, ForSwap: 2, ForRoot: 3}
	if diff := cmp.Diff(mbr, Numbers(MBR, places)); diff != "" {
		t.Error(diff)
	}
}

// TestCreate has util-linux and gdisk judge new tables.
func TestCreate(t *testing.T) {
	need.Tools(t, "sfdisk", "sgdisk")
	for _, disk := range []size.Bytes{200 * mib, 200*mib + 512, 3 << 40} {
		for _, kind := range []Kind{GPT, MBR} {
			for _, spec := range []Spec{
				{BIOSBoot: true, ESP: 100 * mib, Boot: 20 * mib, Swap: 10 * mib},
				{Swap: 10 * mib},
				{},
			} {
				spec.Disk, spec.MBR = disk, kind == MBR
				t.Run(fmt.Sprintf("%s %s %v", kind, disk, spec.ESP), func(t *testing.T) { testCreate(t, kind, spec) })
			}
		}
	}
}

func testCreate(t *testing.T, kind Kind, spec Spec) {
	places, err := spec.Places()
	if err != nil {
		t.Fatal(err)
	}
	ids := IDs{DiskID: 0x1234abcd, GUIDs: map[Use]string{ForRoot: "01234567-89ab-cdef-0123-456789ABCDEF"}}
	plan, err := Create(kind, spec.Disk, places, ids)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(spec.Disk)); err != nil {
		t.Fatal(err)
	}
	for _, w := range plan.Writes {
		if _, err := f.WriteAt(w.Data, int64(w.Offset)); err != nil {
			t.Fatal(err)
		}
		if w.Offset < 0 || w.Offset+size.Bytes(len(w.Data)) > mib && w.Offset < spec.Disk-mib {
			t.Errorf("a write at %d is outside of the first and the last MiB", w.Offset)
		}
	}
	if out, err := exec.Command("sfdisk", "--verify", f.Name()).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("No errors detected")) {
		t.Errorf("sfdisk --verify: %v: %s", err, out)
	}
	if out, err := exec.Command("sgdisk", "-v", f.Name()).CombinedOutput(); kind == GPT && (err != nil || !bytes.Contains(out, []byte("No problems found"))) {
		t.Errorf("sgdisk -v: %v: %s", err, out)
	}
	dump, err := exec.Command("sfdisk", "--dump", f.Name()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, dump)
	}
	for use, number := range Numbers(kind, places) {
		for _, p := range places {
			want := fmt.Sprintf("%s%d : start=%12d, size=%12d, type=", f.Name(), number, p.Start/512, p.Length/512)
			if p.Use == use && !strings.Contains(string(dump), want) {
				t.Errorf("no %q in\n%s", want, dump)
			}
		}
	}
	table, err := Read(f, spec.Disk)
	if err != nil {
		t.Fatal(err)
	}
	root, _ := table.Last()
	want := map[Kind]string{GPT: "01234567-89ab-cdef-0123-456789abcdef", MBR: fmt.Sprintf("1234abcd-%02d", root.Number)}[kind]
	if got := table.PartUUID(root); got != want || table.Note != "" {
		t.Errorf("the root's PARTUUID is %s, want %s (note %q)", got, want, table.Note)
	}
}

func TestCreateRefuses(t *testing.T) {
	far := []Place{{ForRoot, mib, 3 << 40}}
	if _, err := Create(MBR, 4<<40, far, IDs{}); err == nil || !strings.Contains(err.Error(), "behind 2 TiB") {
		t.Error(err)
	}
	if _, err := Create(GPT, 4<<40, far, IDs{GUIDs: map[Use]string{ForRoot: "no"}}); err == nil || !strings.Contains(err.Error(), `"no" is not a GUID`) {
		t.Error(err)
	}
}
