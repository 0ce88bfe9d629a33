package test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/test/corpus"
)

// limits are what create may use for any image of the corpus: a second of
// processor time, which a busy machine does not make longer, as it does a clock's.
//
// The memory that can be written to is bounded, 400 MiB of it. Addresses are
// bounded too, but not as closely: Go reserves 1.1 GiB of them before the program
// begins, 585 MiB for summaries of pages and 512 MiB for an index, and later 64
// MiB at a time. They cost nothing.
var limits = []string{"--cpu=1:1", "--data=419430400:419430400", "--as=2147483648:2147483648"}

// corpusSettings let the environment of each run name the image.
const corpusSettings = `IMAGE_FILE="$CORPUS_IMAGE"` + "\n"

// corpusRun is one create of an image of the corpus.
type corpusRun struct {
	outcome
	disk []byte // afterwards
}

// What the disk was, and what it is at both ends when it shows nothing.
var (
	oldDisk = bytes.Repeat([]byte{0xaa}, corpus.DiskMiB<<20)
	zeroEnd = make([]byte, 1<<20)
)

// oldDisks are disks as newDisk makes them, for as many runs at a time. Most
// runs leave one as it was, so that it can be used again.
type oldDisks chan string

func newOldDisks(t *testing.T) oldDisks {
	t.Helper()
	disks := make(oldDisks, 2)
	for n := range cap(disks) {
		disks <- filepath.Join(t.TempDir(), itoa(n))
	}
	return disks
}

// wantDetached wants no loop device over one of the disks.
func (disks oldDisks) wantDetached(t *testing.T) {
	t.Helper()
	left := attached(t)
	for range cap(disks) {
		if disk := <-disks; strings.Contains(left, disk) {
			t.Errorf("create left something attached to %s:\n%s", disk, left)
		}
	}
}

// run runs create for an image within the limits.
func (disks oldDisks) run(t *testing.T, s *site, image corpus.Image) corpusRun {
	t.Helper()
	disk := <-disks
	defer func() { disks <- disk }()
	file := disk + ".img" // it does not say what is in it, the refusal has to
	if err := image.WriteFile(file); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(disk); err != nil {
		if err := os.WriteFile(disk, oldDisk, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	plain := s.command("create", instance(disk).with(env{"CORPUS_IMAGE": file}))
	limited := exec.Command("prlimit", append(limits, plain.Path)...)
	limited.Dir, limited.Env = plain.Dir, plain.Env
	o := finish(t, limited)
	t.Logf("it took %v of processor time", limited.ProcessState.UserTime()+limited.ProcessState.SystemTime())
	after, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	r := corpusRun{o, after}
	if !r.isUntouched() {
		if err := os.Remove(disk); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func (r corpusRun) isUntouched() bool { return bytes.Equal(r.disk, oldDisk) }

func (r corpusRun) isEmpty() bool {
	return len(r.disk) == len(oldDisk) && bytes.HasPrefix(r.disk, zeroEnd) && bytes.HasSuffix(r.disk, zeroEnd)
}

// Every image that nobody should deploy is refused, in one line that says why,
// with little processor time and memory, and the disk shows no half of it.
func TestCorpusIsRefused(t *testing.T) {
	need.Tools(t, "prlimit")
	s, disks := newSite(t, corpusSettings), newOldDisks(t)
	t.Run("cases", func(t *testing.T) {
		for _, c := range corpus.Cases() {
			t.Run(c.Name, func(t *testing.T) {
				t.Parallel()
				checkCase(t, c, disks.run(t, s, c.Make()))
			})
		}
	})
	disks.wantDetached(t)
}

// checkRefusedClearly wants a refusal with the exit code, whose last line says
// what cannot be done, in these words among others.
func checkRefusedClearly(t *testing.T, o outcome, code int, words []string) {
	t.Helper()
	checkRefusal(t, o, code)
	last := strings.ToLower(o.last())
	if !strings.HasPrefix(last, "create: cannot ") {
		t.Errorf("the last line does not say what cannot be done:\n%s", o.log)
	}
	for _, word := range words {
		if !strings.Contains(last, strings.ToLower(word)) {
			t.Errorf("the last line does not say %q:\n%s", word, o.last())
		}
	}
	if strings.Contains(o.log, "goroutine ") {
		t.Errorf("it crashed:\n%s", o.log)
	}
}

func checkCase(t *testing.T, c corpus.Case, r corpusRun) {
	t.Helper()
	checkRefusedClearly(t, r.outcome, c.Code, c.Words)
	if !r.isUntouched() && !(c.Late && r.isEmpty()) {
		t.Error("the disk is neither as it was nor empty, as far as it may be")
	}
}

// The odd ones that are good are deployed within the same limits, so that these
// leave room to work, and nothing is refused for being odd.
func TestCorpusOfGoodImagesIsDeployed(t *testing.T) {
	need.Tools(t, "prlimit")
	s, disks := newSite(t, corpusSettings), newOldDisks(t)
	t.Run("cases", func(t *testing.T) {
		for _, g := range corpus.Goods() {
			t.Run(g.Name, func(t *testing.T) {
				t.Parallel()
				r := disks.run(t, s, g.Make())
				if r.code != 0 {
					t.Errorf("ended with %d:\n%s", r.code, r.log)
				}
				if r.isUntouched() {
					t.Errorf("the disk was not written:\n%s", r.log)
				}
			})
		}
	})
	disks.wantDetached(t)
}

// The tools of the formats find nothing wrong with the images that the broken
// ones were made from.
func TestCorpusIsMadeOfGoodImages(t *testing.T) {
	need.Tools(t, "qemu-img", "sgdisk", "sfdisk", "xz", "zstd", "lz4", "gzip", "bzip2")
	judges := map[string]string{
		"qcow2 plain":                        `qemu-img check -f qcow2 "$1"`,
		"qcow2 compressed with zstd":         `qemu-img convert -f qcow2 -O raw "$1" "$1.raw"`,
		"GPT":                                `sgdisk -v "$1" | grep "No problems found"`,
		"MBR with logical partitions":        `sfdisk --verify "$1"`,
		"gzip in two members, and zeros":     `gzip -cd <"$1" 2>/dev/null | tail -c 2M | grep -aq lazy`,
		"xz":                                 `xz -tc <"$1"`,
		"xz of zeros that fills the disk":    `xz -tc <"$1"`,
		"zstd of zeros that fills the disk":  `zstd -tc <"$1"`,
		"bzip2 of zeros that fills the disk": `bzip2 -t <"$1"`,
		"lz4":                                `lz4 -tc <"$1"`,
	}
	for _, g := range corpus.Goods() {
		judge, ok := judges[g.Name]
		if !ok {
			continue
		}
		delete(judges, g.Name)
		file := filepath.Join(t.TempDir(), "image.img")
		if err := g.Make().WriteFile(file); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("bash", "-euc", judge, "-", file).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", g.Name, err, out)
		}
	}
	for name := range judges {
		t.Errorf("the corpus has no good image %q", name)
	}
}

// The corpus is as large as it claims, each of its names is of one image, and
// its files are small.
func TestCorpusIsBigEnough(t *testing.T) {
	cases := corpus.Cases()
	if len(cases) < 200 {
		t.Errorf("the corpus has %d images", len(cases))
	}
	files := map[string]string{}
	for _, c := range cases {
		file := corpus.FileName(c.Name)
		if other, twice := files[file]; twice {
			t.Errorf("%q and %q have the same file", c.Name, other)
		}
		files[file] = c.Name
		if len(c.Words) == 0 || c.Words[0] == "" {
			t.Errorf("%q has no words", c.Name)
		}
		stored := 0
		image := c.Make()
		for _, p := range image.Pieces {
			stored += len(p.Data)
		}
		if stored > 4<<20 {
			t.Errorf("%q takes %d bytes", c.Name, stored)
		}
	}
}
