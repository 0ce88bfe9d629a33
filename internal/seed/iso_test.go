package seed

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
)

// noise is n bytes that are not zero and nowhere alike.
func noise(n int) []byte {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(1 + r.IntN(255))
	}
	return b
}

var seeds = []struct {
	name  string
	files []File
}{
	{"two files", []File{{"meta-data", []byte("instance-id: a\n")}, {"user-data", []byte("#cloud-config\n{}\n")}}},
	{"empty", []File{{"meta-data", nil}, {"user-data", nil}}},
	{"empty user-data", []File{{"user-data", []byte{}}, {"meta-data", []byte("instance-id: a\n")}, {"network-config", []byte("version: 2\n")}}},
	{"one byte", []File{{"meta-data", noise(1)}, {"user-data", noise(1)}, {"vendor-data", noise(1)}}},
	{"below a sector", []File{{"meta-data", noise(9)}, {"user-data", noise(2047)}, {"vendor-data", nil}}},
	{"a sector", []File{{"meta-data", noise(2048)}, {"user-data", noise(2048)}}},
	{"above a sector", []File{{"vendor-data", noise(4096)}, {"user-data", noise(2049)}, {"network-config", noise(2049)}, {"meta-data", noise(3)}}},
	{"1 MiB", []File{{"meta-data", noise(7)}, {"user-data", noise(1 << 20)}, {"network-config", noise(4095)}, {"vendor-data", noise(2047)}}},
}

// isoOf makes the disk and writes it to a file.
func isoOf(t *testing.T, files []File) (string, []byte) {
	t.Helper()
	data, err := ISO(files)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "seed.iso")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, data
}

// tool runs a judge and returns all it prints.
func tool(t *testing.T, argv ...string) string {
	t.Helper()
	need.Tools(t, argv[0])
	got, err := run.Cmd{What: "judge the seed's disk", Argv: argv}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return string(got.Stdout) + got.Stderr
}

// sameFiles compares a directory, or what reads like one, with the seed.
func sameFiles(t *testing.T, files []File, names []string, read func(string) ([]byte, error)) {
	t.Helper()
	var want []string
	for _, f := range files {
		want = append(want, f.Name)
		if got, err := read(f.Name); err != nil || !bytes.Equal(got, f.Data) {
			t.Errorf("%s: %d bytes, %v; want %d", f.Name, len(got), err, len(f.Data))
		}
	}
	slices.Sort(want)
	slices.Sort(names)
	if !slices.Equal(names, want) {
		t.Errorf("the files are %q, want %q", names, want)
	}
}

func sameDir(t *testing.T, files []File, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	sameFiles(t, files, names, func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, name)) })
}

func TestISOExtract(t *testing.T) {
	need.Tools(t, "xorriso")
	for _, c := range seeds {
		for _, tree := range []string{"nojoliet", "norock"} {
			t.Run(c.name+" "+tree, func(t *testing.T) {
				path, _ := isoOf(t, c.files)
				dir := filepath.Join(t.TempDir(), "out")
				said := tool(t, "xorriso", "-no_rc", "-abort_on", "WARNING", "-read_fs", tree,
					"-osirrox", "on", "-indev", path, "-extract", "/", dir, "-rollback_end")
				if strings.Contains(said, "WARNING") || strings.Contains(said, "FAILURE") {
					t.Errorf("xorriso says: %s", said)
				}
				sameDir(t, c.files, dir)
			})
		}
	}
}

func TestISOList(t *testing.T) {
	for _, c := range seeds {
		t.Run(c.name, func(t *testing.T) {
			path, _ := isoOf(t, c.files)
			rock, joliet := tool(t, "isoinfo", "-R", "-l", "-i", path), tool(t, "isoinfo", "-J", "-l", "-i", path)
			lsdl := tool(t, "xorriso", "-no_rc", "-indev", path, "-find", "/", "-exec", "lsdl", "--", "-rollback_end")
			for _, f := range c.files {
				n := fmt.Sprint(len(f.Data))
				for _, want := range []struct{ text, line string }{
					{rock, `(?m)^-r--------   1    0    0\s+` + n + ` Jan  1 1980 .*  ` + f.Name + ` $`},
					{joliet, `(?m)\s` + n + ` Jan  1 1980 .*  ` + f.Name + ` $`},
					{lsdl, `(?m)^-r--------\s+1\s+0\s+0\s+` + n + ` Jan  1  1980 '/` + f.Name + `'$`},
				} {
					if !regexp.MustCompile(want.line).MatchString(want.text) {
						t.Errorf("no line %s in:\n%s", want.line, want.text)
					}
				}
			}
			extents := regexp.MustCompile(`(?m)^-.*\[ *(\d+) 00\]`).FindAllStringSubmatch(rock, -1)
			if seen := slices.CompactFunc(extents, func(a, b []string) bool { return a[1] == b[1] }); len(seen) != len(c.files) {
				t.Errorf("files begin at the same place:\n%s", rock)
			}
			if !regexp.MustCompile(`(?m)^dr-x------   2    0    0\s+2048 Jan  1 1980 .*  \. $`).MatchString(rock) {
				t.Errorf("no root directory in:\n%s", rock)
			}
		})
	}
}

func TestISOVerify(t *testing.T) {
	for _, c := range seeds {
		t.Run(c.name, func(t *testing.T) {
			path, data := isoOf(t, c.files)
			if said := tool(t, "isovfy", path); !strings.Contains(said, "No errors found") || strings.Contains(said, "*") {
				t.Errorf("isovfy: %s", said)
			}
			said := tool(t, "isoinfo", "-d", "-i", path)
			for _, want := range []string{"Volume id: cidata\n", fmt.Sprintf("Volume size is: %d\n", len(data)/2048), "Joliet with UCS level 3 found\n", "Rock Ridge signatures version 1 found\n"} {
				if !strings.Contains(said, want) {
					t.Errorf("isoinfo does not say %q:\n%s", want, said)
				}
			}
			if said := tool(t, "blkid", "-p", "-o", "export", path); !strings.Contains(said, "\nLABEL=cidata\n") || !strings.Contains(said, "\nTYPE=iso9660\n") {
				t.Errorf("blkid: %s", said)
			}
			if said := tool(t, "file", "-b", path); strings.TrimSpace(said) != "ISO 9660 CD-ROM filesystem data 'cidata'" {
				t.Errorf("file: %s", said)
			}
			if said := tool(t, "isosize", path); strings.TrimSpace(said[strings.LastIndex(said, " ")+1:]) != fmt.Sprint(len(data)) {
				t.Errorf("isosize: %s, of %d bytes", said, len(data))
			}
			if len(data)%2048 != 0 || len(data) < 1<<20 {
				t.Errorf("%d bytes", len(data))
			}
		})
	}
}

// Both names of the volume are filled up with spaces, which blkid and isoinfo
// do not tell from NULs.
func TestISOIdentifiers(t *testing.T) {
	_, data := isoOf(t, seeds[0].files)
	if got := string(data[16*2048+40:][:32]); got != "cidata"+strings.Repeat(" ", 26) {
		t.Errorf("primary volume identifier %q", got)
	}
	if got := string(data[17*2048+40:][:32]); got != "\x00c\x00i\x00d\x00a\x00t\x00a"+strings.Repeat("\x00 ", 10) {
		t.Errorf("Joliet volume identifier %q", got)
	}
}

// A disk that was a guest's before has to show the seed alone: blkid gives no
// label where it finds two file systems.
func TestISOOverOldFileSystem(t *testing.T) {
	need.Tools(t, "mkfs.btrfs", "mkfs.xfs", "mkfs.ext4", "mkswap")
	for _, argv := range [][]string{{"mkfs.btrfs", "-q"}, {"mkfs.xfs", "-q"}, {"mkfs.ext4", "-q"}, {"mkswap"}} {
		t.Run(argv[0], func(t *testing.T) {
			_, data := isoOf(t, seeds[0].files)
			disk := filepath.Join(t.TempDir(), "disk")
			f, err := os.Create(disk)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Truncate(320 << 20); err != nil {
				t.Fatal(err)
			}
			tool(t, append(argv, disk)...)
			if _, err := f.WriteAt(data, 0); err != nil {
				t.Fatal(err)
			}
			if said := tool(t, "blkid", "-p", "-o", "export", disk); !strings.Contains(said, "\nLABEL=cidata\n") {
				t.Errorf("blkid: %s", said)
			}
		})
	}
}

func TestISOReproducible(t *testing.T) {
	t.Setenv("TMPDIR", "/nonexistent")
	files := slices.Clone(seeds[6].files)
	first, err := ISO(files)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(files)
	second, err := ISO(files)
	if err != nil || !bytes.Equal(first, second) {
		t.Errorf("the same files make other bytes: %v", err)
	}
}

func TestISORefuses(t *testing.T) {
	meta, user := File{"meta-data", nil}, File{"user-data", nil}
	cases := []struct {
		name, want string
		files      []File
	}{
		{"nothing", "cannot make the seed's disk: meta-data is missing", nil},
		{"no meta-data", "cannot make the seed's disk: meta-data is missing", []File{user}},
		{"no user-data", "cannot make the seed's disk: user-data is missing", []File{meta, {"vendor-data", nil}}},
		{"twice", "cannot make the seed's disk: user-data is there twice", []File{meta, user, user}},
		{"another", `cannot make the seed's disk: "../x\n" is not a file of a seed`, []File{meta, user, {"../x\n", nil}}},
		{"upper case", `cannot make the seed's disk: "META-DATA" is not a file of a seed`, []File{{"META-DATA", nil}}},
		{"long", "cannot make the seed's disk: vendor-data has 16777217 bytes, and 16777216 are the most", []File{meta, user, {"vendor-data", make([]byte, 16<<20+1)}}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if data, err := ISO(c.files); err == nil || err.Error() != c.want || data != nil {
				t.Errorf("%d bytes, %v", len(data), err)
			}
		})
	}
	if _, err := ISO([]File{meta, {"user-data", make([]byte, 16<<20)}}); err != nil {
		t.Error(err)
	}
}

// readNoCloud has cloud-init's data source look for the seed among the
// machine's disks, and prints what it found. Where the kernel has no isofs the
// files come from a directory, else cloud-init mounts the disk itself.
const readNoCloud = `
import sys
from cloudinit import helpers, util
from cloudinit.sources import DataSourceNoCloud as nocloud
device, dir, run = sys.argv[1:]
nocloud.DataSourceNoCloud._get_devices = (lambda get: lambda self, label: [d for d in get(self, label) if d == device])(nocloud.DataSourceNoCloud._get_devices)
if not any(line.split()[-1] == "iso9660" for line in open("/proc/filesystems")):
    util.mount_cb = lambda dev, callback, data: callback(dir, data)
source = nocloud.DataSourceNoCloud({}, None, helpers.Paths({"cloud_dir": run, "run_dir": run}))
if not source._get_data():
    sys.exit("cloud-init finds no seed")
print(source.seed, source.metadata["instance-id"], source.metadata["local-hostname"])
print(source.userdata_raw.decode() if isinstance(source.userdata_raw, bytes) else source.userdata_raw)
print(source.vendordata_raw.decode() if isinstance(source.vendordata_raw, bytes) else source.vendordata_raw)
print(source.network_config["version"])
`

// identifyInVM runs ds-identify as in a virtual machine: where it takes the
// machine for a container it looks at no disk.
const identifyInVM = `. /usr/lib/cloud-init/ds-identify
detect_virt() { _RET=kvm; }
is_container() { return 1; }
main --force`

func TestISOCloudInit(t *testing.T) {
	need.Root(t)
	need.Tools(t, "cloud-init", "losetup", "xorriso", "blkid")
	path, _ := isoOf(t, seedFiles(t))
	files := filepath.Join(t.TempDir(), "files")
	tool(t, "xorriso", "-no_rc", "-osirrox", "on", "-indev", path, "-extract", "/", files, "-rollback_end")
	device := strings.TrimSpace(tool(t, "losetup", "--find", "--show", "--read-only", path))
	defer func() {
		if _, err := (run.Cmd{What: "detach the loop device", Argv: []string{"losetup", "--detach", device}}).Run(t.Context()); err != nil {
			t.Error(err)
		}
	}()

	t.Run("data source", func(t *testing.T) {
		got := tool(t, "python3", "-c", readNoCloud, device, files, t.TempDir())
		for _, want := range []string{device + " " + instance.UUID + " " + instance.Name + "\n", "password: secret\n", "name: \"op\"\n", "\n2\n"} {
			if !strings.Contains(got, want) {
				t.Errorf("cloud-init does not find %q:\n%s", want, got)
			}
		}
	})
	t.Run("ds-identify", func(t *testing.T) {
		need.File(t, "/usr/lib/cloud-init/ds-identify")
		dir := t.TempDir()
		tool(t, "env", "PATH_ROOT="+dir, "PATH_PROC_CMDLINE=/dev/null", "DI_LOG="+dir+"/log", "DI_MAIN=noop", "sh", "-c", identifyInVM)
		log, err := os.ReadFile(dir + "/log")
		if err != nil {
			t.Fatal(err)
		}
		if found, err := os.ReadFile(dir + "/run/cloud-init/cloud.cfg"); err != nil || !strings.Contains(string(found), "NoCloud") {
			t.Errorf("ds-identify finds %q, %v; its log:\n%s", found, err, log)
		}
	})
}
