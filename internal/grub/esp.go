package grub

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/size"
)

const (
	maxESPFile  = 512 * size.MiB // it is held in memory; more is no kernel
	maxLoader   = 64 * size.MiB  // of a program that may be GRUB
	maxESPFiles = 2000
	maxESPDepth = 8
)

// espTypes are the types of an EFI system partition in a GPT and in an MBR.
var espTypes = map[layout.Kind]string{layout.GPT: layout.TypeESP, layout.MBR: layout.TypeESPOfMBR}

func findESP(table *layout.Table) (layout.Partition, bool) {
	if table == nil {
		return layout.Partition{}, false
	}
	i := slices.IndexFunc(table.Partitions, func(p layout.Partition) bool { return p.Type == espTypes[table.Kind] })
	if i < 0 {
		return layout.Partition{}, false
	}
	return table.Partitions[i], true
}

// FormatESP makes the FAT file system of an EFI system partition that fills
// dev, with the serial number id, which blkid(8) prints as its UUID in the form
// "ABCD-1234". What dev held is lost.
//
// Whether it is FAT12, FAT16 or FAT32 is left to mkfs.vfat, which goes by the
// length; firmware reads all three (UEFI 2.10, 13.3).
func FormatESP(ctx context.Context, dev string, id uint32) error {
	argv := []string{"mkfs.vfat", "-n", "EFI", "-i", fmt.Sprintf("%08x", id), dev}
	_, err := run.Cmd{What: "make the EFI system partition on " + dev, Argv: argv}.Run(ctx)
	return err
}

// espTree is what is to be on an ESP. Names are compared as FAT does.
type espTree struct {
	dirs    []string // from the top
	files   []espFile
	made    map[string]bool // directories, in lower case
	total   size.Bytes      // with what FAT needs besides
	skipped int             // files of the guest whose names cannot be used
}

// espFile is a file to be, read when it is needed.
type espFile struct {
	path string // from the ESP's root: "/EFI/BOOT/BOOTX64.EFI"
	size size.Bytes
	read func() ([]byte, error)
}

// espName is a name that FAT holds and that mtools takes as it is.
var espName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.+~=-]{0,198}[A-Za-z0-9_+~=-])?$`)

// espPath tells whether each component of a path is such a name.
func espPath(name string) bool {
	parts := strings.Split(strings.TrimPrefix(name, "/"), "/")
	return strings.HasPrefix(name, "/") && len(parts) <= maxESPDepth && !slices.ContainsFunc(parts, func(p string) bool { return !espName.MatchString(p) })
}

func (e *espTree) index(name string) int {
	return slices.IndexFunc(e.files, func(f espFile) bool { return strings.EqualFold(f.path, name) })
}

// add adds a file and its directories. One that is there already stays, unless
// replace is set.
func (e *espTree) add(f espFile, replace bool) {
	i := e.index(f.path)
	switch {
	case i < 0:
		e.addDir(path.Dir(f.path))
		e.files = append(e.files, f)
		e.total += roundUp(f.size)
	case replace:
		f.path = e.files[i].path
		e.total += roundUp(f.size) - roundUp(e.files[i].size)
		e.files[i] = f
	}
}

func (e *espTree) addDir(name string) {
	key := strings.ToLower(name)
	if name == "/" || e.made[key] {
		return
	}
	e.addDir(path.Dir(name))
	if e.made == nil {
		e.made = map[string]bool{}
	}
	e.made[key] = true
	e.dirs = append(e.dirs, name)
	e.total += cluster
}

// cluster is what FAT stores files in, or more.
const cluster = 4 * size.KiB

func roundUp(n size.Bytes) size.Bytes { return (n + cluster - 1) / cluster * cluster }

// fits tells whether an ESP has room for the tree beside FAT's own tables.
func (e *espTree) fits(esp layout.Partition) error {
	if e.total <= esp.Length-esp.Length/64 {
		return nil
	}
	return unfit(fmt.Sprintf("the EFI system partition has %v and is to hold %v: set ESP_SIZE to at least %d MiB",
		esp.Length, e.total, int64(e.total+e.total/32)/int64(size.MiB)+1))
}

// remove takes a file out again.
func (e *espTree) remove(name string) {
	if i := e.index(name); i >= 0 {
		e.total -= roundUp(e.files[i].size)
		e.files = slices.Delete(e.files, i, i+1)
	}
}

// addData adds a file with known content in the place of one that is there.
func (e *espTree) addData(name string, data []byte) {
	e.add(espFile{name, size.Bytes(len(data)), func() ([]byte, error) { return data, nil }}, true)
}

// addFile adds a file of the guest.
func (e *espTree) addFile(root *guest.Root, from, name string, replace bool) error {
	info, err := root.Stat(from)
	if err != nil {
		return err
	}
	if info.Size > maxESPFile {
		return unfit(fmt.Sprintf("%s in the guest has %v; up to %v are copied to the EFI system partition", printable(from), info.Size, maxESPFile))
	}
	e.add(espFile{name, info.Size, func() ([]byte, error) { return root.ReadFile(from, maxESPFile) }}, replace)
	return nil
}

// addGuest adds what is in a directory of the guest. Links are left out: FAT
// has none.
func (e *espTree) addGuest(root *guest.Root, dir, to string) error {
	names, err := root.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		from, target := dir+"/"+name, path.Join("/", to, name)
		info, err := root.Lstat(from)
		if err != nil {
			return err
		}
		switch {
		case len(e.files)+len(e.dirs) >= maxESPFiles:
			return unfit(fmt.Sprintf("%s in the guest holds more than %d files", printable(dir), maxESPFiles))
		case !espPath(target) || !info.IsDir() && !info.IsRegular():
			e.skipped++
			continue
		case info.IsDir():
			e.addDir(target)
			err = e.addGuest(root, from, target)
		default:
			err = e.addFile(root, from, target, false)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// write writes the tree to the ESP, by mtools: the node's kernel need not know
// FAT, and nothing is mounted.
func (e *espTree) write(ctx context.Context, disk Disk, esp layout.Partition) error {
	if err := e.fits(esp); err != nil {
		return err
	}
	section := io.NewSectionReader(disk, int64(esp.Start), int64(esp.Length))
	if info, err := filesystem.Probe(section, esp.Length); err != nil || info.Kind != filesystem.VFAT {
		return fmt.Errorf("partition %d is an EFI system partition, but holds %q and not FAT", esp.Number, info.Kind)
	}
	image := fmt.Sprintf("%s@@%d", disk.Path(), int64(esp.Start))
	for _, dir := range e.dirs {
		// 1: it is there; whatever else it means, the next mcopy says.
		if err := mtools(ctx, "make the directory "+dir+" on the EFI system partition", nil, []int{1}, "mmd", "-i", image, "::"+dir); err != nil {
			return err
		}
	}
	for _, f := range e.files {
		data, err := f.read()
		if err != nil {
			return err
		}
		if err := mtools(ctx, "copy "+f.path+" to the EFI system partition", data, nil, "mcopy", "-D", "o", "-i", image, "-", "::"+f.path); err != nil {
			return err
		}
	}
	return flush(disk)
}

// mtools runs one of them without the node's configuration.
func mtools(ctx context.Context, what string, stdin []byte, ok []int, argv ...string) error {
	if _, err := run.Find(argv[0]); err != nil {
		return fmt.Errorf("cannot %s: %w: install mtools", what, err)
	}
	argv = append([]string{"env", "MTOOLSRC=/dev/null", "MTOOLS_SKIP_CHECK=1"}, argv...)
	_, err := run.Cmd{What: what, Argv: argv, Stdin: bytes.NewReader(stdin), OK: ok}.Run(ctx)
	return err
}
