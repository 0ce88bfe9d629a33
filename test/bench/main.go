// Command bench compares, in one run, how long the deployment of an image takes
// with how long the tool one would use instead takes for the same image and the
// same target: qemu-img, or a decompressor and dd, and for archives of files
// mkfs with tar or restore; and likewise how long exports and imports take, of
// which the last column is how much larger than theirs our result is.
//
//	go run ./test/bench
//
// It installs the program below a temporary directory, makes an ext4 filesystem
// from real files, stores it as qcow2 and as compressed raw images, and deploys
// each in turn with create, as Ganeti runs it, and with the other tool. Both flush the target before they end. What counts is the median of the ratios of
// neighbouring runs, since those see the same machine. The last row is a create
// that copies nothing, whose time is not a ratio.
//
// It needs root, and to be run in the top directory of the sources.
package main

import (
	"cmp"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// disk is the length of the disk the images describe.
const disk = 4 << 30

// image is one that is measured, with the ratio that is wanted.
type image struct {
	name   string
	ending string
	make   string  // shell commands: $1 is the raw image, $2 what they make of it
	theirs string  // shell commands that write it: $1 is the image, $2 the target
	want   float64 // wall time, ours / theirs
}

const (
	convert = `qemu-img convert -n -m 16 -W -t writeback -O raw "$1" "$2"`
	toDisk  = ` | dd of="$2" bs=1M iflag=fullblock conv=notrunc,fsync status=none`
)

var images = []image{
	{"zlib", ".qcow2", `qemu-img convert -O qcow2 -c "$1" "$2"`, convert, 1.0},
	{"zstd", ".qcow2", `qemu-img convert -O qcow2 -c -o compression_type=zstd "$1" "$2"`, convert, 0.8},
	{"uncompressed", ".qcow2", `qemu-img convert -O qcow2 "$1" "$2"`, convert, 1.0},
	{"zlib, 2 MiB clusters", ".qcow2", `qemu-img convert -O qcow2 -c -o cluster_size=2M "$1" "$2"`, convert, 1.0},
	{"zstd, 2 MiB clusters", ".qcow2", `qemu-img convert -O qcow2 -c -o compression_type=zstd,cluster_size=2M "$1" "$2"`, convert, 0.8},
	{"raw.gz", ".raw.gz", `gzip -1 -c "$1" > "$2"`, `gzip -dc "$1"` + toDisk, 1.0},
	{"raw.zst", ".raw.zst", `zstd -q -T0 -c "$1" > "$2"`, `zstd -q -dc "$1"` + toDisk, 1.0},
	{"raw.xz", ".raw.xz", `xz -T0 -1 -c "$1" > "$2"`, `xz -dc -T0 "$1"` + toDisk, 1.5},
}

const (
	wantMemory  = 200 << 20 // bytes of peak memory, ours
	wantNothing = 50 * time.Millisecond
)

type options struct {
	tree, dir, only string
	megabytes       int64
	treeMegabytes   int64
	pairs           int
	fresh, compress bool
}

func main() {
	var o options
	flag.StringVar(&o.tree, "tree", "/usr", "directory the images are filled from")
	flag.StringVar(&o.dir, "dir", "", "directory for images and target, kept for the next run (default: a temporary one)")
	flag.StringVar(&o.only, "only", "", "measure the images whose name contains this")
	flag.Int64Var(&o.megabytes, "size", 1200, "MiB of files in the images")
	flag.Int64Var(&o.treeMegabytes, "tree-size", 800, "MiB of files in the archives")
	flag.IntVar(&o.pairs, "pairs", 5, "pairs of runs for each image")
	flag.BoolVar(&o.fresh, "fresh", false, "begin each run with a target without content instead of that of the run before")
	flag.BoolVar(&o.compress, "compress", false, "compress standard input as export does, and nothing else")
	flag.Parse()
	work := bench
	if o.compress {
		work = func(options) error { return compress(os.Stdin, os.Stdout) }
	}
	if err := work(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(o options) (err error) {
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "bench-"); err != nil {
			return err
		}
		defer func() { err = cmp.Or(err, os.RemoveAll(o.dir)) }()
	}
	site, err := install(filepath.Join(o.dir, "site"))
	if err != nil {
		return err
	}
	raw, err := makeRaw(o)
	if err != nil {
		return err
	}
	fmt.Printf("%-22s %8s %8s %8s %8s %8s %8s %8s\n", "image", "ours s", "theirs s", "ratio", "want", "cpu", "peak MiB", "bytes")
	missed := false
	for _, image := range images {
		if !strings.Contains(image.name, o.only) {
			continue
		}
		path := filepath.Join(o.dir, strings.NewReplacer(",", "", " ", "-").Replace(image.name)+image.ending)
		if err := makeOnce(path, func(tmp string) error { return run(shell(image.make, raw, tmp)...) }); err != nil {
			return err
		}
		r, err := compare(o, site, image, path, raw)
		if err != nil {
			return err
		}
		fmt.Printf("%-22s %8.2f %8.2f %8.2f %8.2f %8.2f %8d %8s\n",
			image.name, r.ours, r.theirs, r.ratio, image.want, r.cpu, r.peak>>20, "equal")
		missed = missed || r.ratio > image.want || r.peak > wantMemory
	}
	missedTree, err := benchTrees(o, site)
	if err != nil {
		return err
	}
	missedTransfer, err := benchTransfers(o, site, raw)
	if err != nil {
		return err
	}
	missed = missed || missedTree || missedTransfer
	took, err := nothingCopied(o, site)
	if err != nil {
		return err
	}
	fmt.Printf("%-22s %6.0f ms %26.0f ms\n", "nothing copied", took*1000, wantNothing.Seconds()*1000)
	if missed || took > wantNothing.Seconds() {
		return fmt.Errorf("at least one figure is not what is wanted (peak: %d MiB)", wantMemory>>20)
	}
	return nil
}

// result has medians: wall time in seconds, and ratios of ours to theirs.
type result struct {
	ours, theirs, ratio, cpu float64
	peak                     int64 // bytes, the largest of all our runs
}

func compare(o options, s site, image image, path, raw string) (result, error) {
	target := filepath.Join(o.dir, "target.raw")
	if err := s.configure("IMAGE_FILE=" + path + "\nNOMOUNT=yes\n"); err != nil {
		return result{}, err
	}
	theirs := shell(image.theirs, path, target)
	return inPairs(o, target, func() *exec.Cmd { return s.create(target) },
		func() *exec.Cmd { return exec.Command(theirs[0], theirs[1:]...) }, func() error { return run("cmp", raw, target) })
}

// inPairs measures ours and theirs by turns, and checks what our first run made.
func inPairs(o options, target string, ours, theirs func() *exec.Cmd, check func() error) (result, error) {
	var our, their, ratio, cpu []float64
	var r result
	for range o.pairs {
		a, err := measure(o, target, ours())
		if err != nil {
			return result{}, err
		}
		if len(our) == 0 {
			if err := check(); err != nil {
				return result{}, err
			}
		}
		b, err := measure(o, target, theirs())
		if err != nil {
			return result{}, err
		}
		our, their = append(our, a.wall), append(their, b.wall)
		ratio, cpu = append(ratio, a.wall/b.wall), append(cpu, a.cpu/b.cpu)
		r.peak = max(r.peak, a.peak)
	}
	r.ours, r.theirs, r.ratio, r.cpu = median(our), median(their), median(ratio), median(cpu)
	return r, nil
}

// nothingCopied is the time, in seconds, of a create that only reads what it is
// told.
func nothingCopied(o options, s site) (float64, error) {
	if err := s.configure("CDINSTALL=yes\n"); err != nil {
		return 0, err
	}
	var took []float64
	for range 4 * o.pairs {
		m, err := measure(o, filepath.Join(o.dir, "target.raw"), s.create("/none"))
		if err != nil {
			return 0, err
		}
		took = append(took, m.wall)
	}
	return median(took), nil
}

type sample struct {
	wall, cpu float64 // seconds
	peak      int64   // bytes
}

// measure runs a program with what was written before flushed.
func measure(o options, target string, cmd *exec.Cmd) (sample, error) {
	if err := prepare(target, o.fresh); err != nil {
		return sample{}, err
	}
	syscall.Sync()
	start := time.Now()
	out, err := cmd.CombinedOutput()
	wall := time.Since(start)
	if err != nil {
		return sample{}, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, out)
	}
	state := cmd.ProcessState
	usage := state.SysUsage().(*syscall.Rusage)
	return sample{wall.Seconds(), (state.UserTime() + state.SystemTime()).Seconds(), usage.Maxrss << 10}, nil
}

// prepare makes sure there is a target, where asked one without content.
func prepare(target string, fresh bool) error {
	flags := os.O_RDWR | os.O_CREATE
	if fresh {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(target, flags, 0o600)
	if err != nil {
		return err
	}
	return cmp.Or(f.Truncate(disk), f.Close())
}

func median(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

// makeRaw makes an ext4 filesystem of files below the tree.
func makeRaw(o options) (string, error) {
	raw := filepath.Join(o.dir, "source.raw")
	return raw, makeOnce(raw, func(tmp string) error {
		files := filepath.Join(o.dir, "files")
		defer os.RemoveAll(files)
		if err := gather(files, o.tree, math.MaxInt64, o.megabytes<<20); err != nil {
			return err
		}
		return run("mke2fs", "-q", "-F", "-t", "ext4", "-d", files, tmp, fmt.Sprintf("%dM", disk>>20))
	})
}

// gather links, or copies, files below tree that have at most a number of bytes
// into dir until they have the length wanted.
func gather(dir, tree string, most, want int64) error {
	return filepath.WalkDir(tree, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if info.Size() > most {
			return nil
		}
		to := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if os.Link(path, to) != nil {
			if err := run("cp", path, to); err != nil {
				return err
			}
		}
		if want -= info.Size(); want <= 0 {
			return filepath.SkipAll
		}
		return nil
	})
}

// makeOnce makes a file under another name first, so that it is whole where it
// is there.
func makeOnce(path string, build func(tmp string) error) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	tmp := path + ".part"
	if err := build(tmp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// shell is the command line of a script with its arguments.
func shell(script string, args ...string) []string {
	return append([]string{"bash", "-o", "pipefail", "-euc", script, "-"}, args...)
}

func run(argv ...string) error {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return nil
}
