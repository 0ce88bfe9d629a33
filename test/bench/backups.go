package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"ganeti-instance-image/internal/backup"
)

// transfer is an export or an import that is measured, with the ratio that is
// wanted. In the shell commands $1 is the source disk, $2 the target, $3 a backup
// of that disk, and $4 one that is not compressed: the bytes in use, and little else.
type transfer struct {
	name     string
	source   string // of sources
	settings string
	ours     string
	theirs   string
	want     float64 // wall time, ours / theirs
	larger   float64 // how much larger ours may be than theirs; 0: it does not count
}

const (
	export    = `cd "$OSDIR"; EXPORT_DEVICE="$1" EXPORT_INDEX=0 ./export </dev/null >"$2"; sync "$2"`
	import_   = `cd "$OSDIR"; IMPORT_DEVICE="$2" IMPORT_INDEX=0 DISK_0_PATH="$2" ./import <"$3"`
	bashDump  = `loop=$(losetup --find --show --read-only "$1"); dump -0 -q -z9 -f "$2" "$loop" 2>/dev/null; losetup --detach "$loop"; sync "$2"`
	packUsed  = `dd if="$4" bs=1M status=none | "$BENCH" -compress >"$2"; sync "$2"`
	writeUsed = `dd if="$4" of="$2" bs=1M conv=notrunc,fsync status=none`
	plain     = "EXPORT_COMPRESSION=none\n"
)

var transfers = []transfer{
	{"export, as dump -z9", "source", "", export, bashDump, 0.2, 1.1},
	{"export, mostly empty", "empty", "", export, packUsed, 1.3, 1.05},
	{"import", "source", plain, import_, writeUsed, 1.6, 0},
	{"import, zstd", "source", "", import_, writeUsed, 1.6, 0},
}

// emptyDisk is the length of a disk with little on it.
const emptyDisk = 100 << 30

// benchTransfers measures export and import, and tells whether one missed what is
// wanted.
func benchTransfers(o options, s site, source string) (missed bool, err error) {
	empty := filepath.Join(o.dir, "empty.raw")
	if err := makeOnce(empty, func(tmp string) error {
		return run(shell(`truncate -s "$2" "$1"; mke2fs -q -F -t ext4 "$1"; debugfs -w -R "write $3 file" "$1" 2>/dev/null`, tmp, fmt.Sprint(int64(emptyDisk)), source)...)
	}); err != nil {
		return false, err
	}
	for _, t := range transfers {
		if !strings.Contains(t.name, o.only) {
			continue
		}
		disk := map[string]string{"source": source, "empty": empty}[t.source]
		r, larger, err := compareTransfer(o, s, t, disk)
		if err != nil {
			return false, err
		}
		fmt.Printf("%-22s %8.2f %8.2f %8.2f %8.2f %8.2f %8d %8.2f\n", t.name, r.ours, r.theirs, r.ratio, t.want, r.cpu, r.peak>>20, larger)
		missed = missed || r.ratio > t.want || r.peak > wantMemory || t.larger > 0 && larger > t.larger
	}
	return missed, nil
}

// compareTransfer measures, and tells how much larger than theirs our result is.
func compareTransfer(o options, s site, t transfer, disk string) (result, float64, error) {
	saved, used, other := filepath.Join(o.dir, "saved"), filepath.Join(o.dir, "used"), filepath.Join(o.dir, "other")
	defer func() { _, _, _ = os.Remove(saved), os.Remove(used), os.Remove(other) }()
	for _, b := range []struct{ settings, file string }{{plain, used}, {t.settings, saved}} {
		if err := s.configure(b.settings + "NOMOUNT=yes\n"); err != nil {
			return result{}, 0, err
		}
		if out, err := s.transfer(export, disk, b.file).CombinedOutput(); err != nil {
			return result{}, 0, fmt.Errorf("cannot make the backup: %w: %s", err, out)
		}
	}
	larger := 0.0
	target := filepath.Join(o.dir, "ours")
	check := func() (err error) {
		if err := s.transfer(t.theirs, disk, other, saved, used).Run(); err != nil {
			return err
		}
		larger, err = ratioOfSizes(target, other)
		return err
	}
	if t.ours != export {
		target, other = filepath.Join(o.dir, "target.raw"), filepath.Join(o.dir, "target.raw")
		check = func() error { return run("cmp", disk, target) }
	}
	r, err := inPairs(o, target, func() *exec.Cmd { return s.transfer(t.ours, disk, target, saved, used) },
		func() *exec.Cmd { return s.transfer(t.theirs, disk, other, saved, used) }, check)
	return r, larger, err
}

func ratioOfSizes(a, b string) (float64, error) {
	ours, err := os.Stat(a)
	if err != nil {
		return 0, err
	}
	theirs, err := os.Stat(b)
	if err != nil {
		return 0, err
	}
	return float64(ours.Size()) / float64(theirs.Size()), nil
}

// compress is what the bench runs as its other self, so that both sides of a
// comparison have the same compressor.
func compress(in io.Reader, out io.Writer) error {
	c, err := backup.NewCompressor(out)
	if err != nil {
		return err
	}
	_, err = io.Copy(c, in)
	if closed := c.Close(); err == nil {
		err = closed
	}
	return err
}
