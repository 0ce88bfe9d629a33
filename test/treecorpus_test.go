package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/test/corpus"
)

// treeCorpusSettings leave room for little but the tree, so that a small disk does.
const treeCorpusSettings = `IMAGE_FILE="$CORPUS_IMAGE"` + "\nSWAP=no\nBOOT_SIZE=16\nPARTITION_TABLE=msdos\nGRUB=no\n"

// treeDisk is a disk for one create.
func treeDisk(t *testing.T) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk")
	shell(t, `head -c 2M /dev/zero | tr '\0' '\252' > "$1"; truncate -s "$(($2 - 2))M" "$1"; head -c 2M /dev/zero | tr '\0' '\252' >> "$1"`, disk, itoa(corpus.TreeDiskMiB))
	return disk
}

// writeTreeImage writes an image's files, and returns what IMAGE_FILE has to name.
func writeTreeImage(t *testing.T, tree corpus.Tree) string {
	t.Helper()
	stem := filepath.Join(t.TempDir(), "image")
	if err := tree.Make().WriteFile(stem + tree.Ending); err != nil {
		t.Fatal(err)
	}
	if tree.Boot != nil {
		if err := tree.Boot().WriteFile(stem + "-boot.dump"); err != nil {
			t.Fatal(err)
		}
	}
	return stem + tree.Ending
}

// createLimited runs create within the limits of the corpus; those of the
// processor's time are each program's own.
func (s *site) createLimited(t *testing.T, tree corpus.Tree, disk string) outcome {
	t.Helper()
	plain := s.command("create", instance(disk).with(env{"CORPUS_IMAGE": writeTreeImage(t, tree), "DISK_0_SIZE": itoa(corpus.TreeDiskMiB)}))
	limited := exec.Command("prlimit", append(limits, plain.Path)...)
	limited.Dir, limited.Env = plain.Dir, plain.Env
	return finish(t, limited)
}

// Every tree image that nobody should deploy is refused, in one line, with little
// processor time and memory, leads to nothing outside of the disk, and the disk
// shows no half of it.
func TestTreeCorpusIsRefused(t *testing.T) {
	need.Tools(t, "prlimit")
	s := newSite(t, treeCorpusSettings)
	for _, c := range corpus.TreeCases() {
		t.Run(c.Name, func(t *testing.T) {
			disk := treeDisk(t)
			before := attached(t)
			o := s.createLimited(t, c.Tree, disk)
			checkTreeCase(t, c, o, disk)
			eventually(t, func() bool { return attached(t) == before }, "create left something attached")
		})
	}
	checkNothingOutside(t, s)
}

// checkNothingOutside looks where the archives' names lead that lead out of the
// disk.
func checkNothingOutside(t *testing.T, s *site) {
	t.Helper()
	for _, dir := range []string{"/tmp", "/", s.dir, os.TempDir()} {
		if escaped, _ := filepath.Glob(filepath.Join(dir, "corpus-escape*")); len(escaped) > 0 {
			t.Errorf("there is %q outside of the disks", escaped)
		}
	}
}

func checkTreeCase(t *testing.T, c corpus.TreeCase, o outcome, disk string) {
	t.Helper()
	checkRefusedClearly(t, o, c.Code, c.Words)
	if out := tool(t, "bash", "-c", `cmp -s -n 1048576 "$1" <(head -c 1M /dev/zero) || cmp -n 1048576 "$1" <(head -c 1M /dev/zero | tr '\0' '\252'); blkid -p "$1"; true`, "-", disk); out != "" {
		t.Errorf("the disk shows something:\n%s", out)
	}
	if os.Getenv("SHOW_REFUSALS") != "" {
		t.Log(o.last())
	}
}

// The odd ones that are good are deployed within the same limits.
func TestTreeCorpusOfGoodImagesIsDeployed(t *testing.T) {
	need.Tools(t, "prlimit", "sfdisk", "e2fsck", "getfattr")
	s := newSite(t, treeCorpusSettings)
	for _, g := range corpus.TreeGoods() {
		t.Run(g.Name, func(t *testing.T) {
			disk := treeDisk(t)
			if o := s.createLimited(t, g.Tree, disk); o.code != 0 {
				t.Fatalf("ended with %d:\n%s", o.code, o.log)
			}
			loop := attachPartition(t, disk, 2)
			tool(t, "e2fsck", "-fn", loop)
			dir := mountReadOnly(t, loop)
			shell(t, `[ "$(readlink "$1/bin")" = usr/bin ]; grep -q bash "$1/etc/passwd"; [ -d "$1/boot" ]; cd "$1"; `+g.Check, dir)
		})
	}
	checkNothingOutside(t, s)
}

// mountReadOnly mounts a device for the test's time.
func mountReadOnly(t *testing.T, device string) string {
	t.Helper()
	dir := t.TempDir()
	tool(t, "mount", "-o", "ro", device, dir)
	t.Cleanup(func() { tool(t, "umount", dir) })
	return dir
}

// The tools of the formats take the good ones as they are.
func TestTreeCorpusIsMadeOfGoodImages(t *testing.T) {
	need.Tools(t, "tar", "restore", "zstd", "xz")
	for _, g := range corpus.TreeGoods() {
		t.Run(g.Name, func(t *testing.T) {
			image := writeTreeImage(t, g.Tree)
			if !strings.HasSuffix(image, ".dump") {
				tool(t, "tar", "-tf", image)
				return
			}
			for _, part := range []string{"root", "boot"} {
				out := tool(t, "restore", "-tf", strings.Replace(image, "-root.", "-"+part+".", 1))
				if want := map[string]string{"root": "./etc/hostname", "boot": "./vmlinuz-6.1.0-1-amd64"}[part]; !strings.Contains(out, want) {
					t.Errorf("restore does not see %s:\n%s", want, out)
				}
			}
		})
	}
}

// The corpus is as large as it claims, and each of its names is of one image.
func TestTreeCorpusIsBigEnough(t *testing.T) {
	count, names := map[string]int{}, map[string]bool{}
	for _, c := range corpus.TreeCases() {
		kind, _, _ := strings.Cut(c.Name, ":")
		count[kind]++
		if names[c.Name] {
			t.Errorf("%q is there twice", c.Name)
		}
		names[c.Name] = true
	}
	if count["tar"] < 60 || count["dump"] < 50 {
		t.Errorf("the corpus has %v", count)
	}
}
