// Package capture makes an image of an instance's disk: it copies what is in use
// of it, has the copy prepared, and writes the image and its checksum, so that
// either both are there under their names or nothing is.
//
// The disk is only read. All else is done to the copy, a file that has no name
// where the file system knows such files, and so is gone whatever ends the
// process.
//
// Left out: memory of a running guest, snapshots of its disks, several disks in
// one image, and what is to be taken from a guest (package guest).
package capture

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"ganeti-instance-image/internal/guest"
)

// The types of image.
const (
	QCOW2   = "qcow2"
	Raw     = "raw"
	Tarball = "tarball"
	Dump    = "dump"
)

// Order is what an administrator asks for. It goes to the instance's node as JSON.
type Order struct {
	Dir         string   `json:"dir,omitempty"`         // where the image is to be; "": IMAGE_DIR of the node
	Name        string   `json:"name,omitempty"`        // "": the instance's first label
	Arch        string   `json:"arch,omitempty"`        // "": as the setting ARCH, or the node's machine
	Type        string   `json:"type,omitempty"`        // "": qcow2
	Compression string   `json:"compression,omitempty"` // "": the type's first
	Disks       []int    `json:"disks,omitempty"`       // none: disk 0
	Keep        []string `json:"keep,omitempty"`        // parts of guest.CaptureParts, or KeepAll alone
	Remove      []string `json:"remove,omitempty"`      // parts that go only where they are named
	Force       bool     `json:"force,omitempty"`       // an image of that name is replaced
	Running     bool     `json:"running,omitempty"`     // the instance runs, and its disks are copied meanwhile
}

// KeepAll in Keep has the guest's files left alone.
const KeepAll = "all"

// KeepsAll tells whether nothing is taken from the guest.
func (o *Order) KeepsAll() bool { return slices.Contains(o.Keep, KeepAll) }

// format is how an image is written.
type format struct {
	imageType   string
	compression string
	ending      string
	tree        bool // it holds files, not a disk
}

// formats are all of them; of each type the first is the default.
var formats = []format{
	{QCOW2, "zstd", ".qcow2", false},
	{QCOW2, "zlib", ".qcow2", false},
	{QCOW2, "none", ".qcow2", false},
	{Raw, "none", ".raw", false},
	{Tarball, "zst", ".tar.zst", true},
	{Tarball, "gz", ".tar.gz", true},
	{Tarball, "xz", ".tar.xz", true},
	{Tarball, "none", ".tar", true},
	{Dump, "zlib", rootEnding, true},
	{Dump, "none", rootEnding, true},
}

const (
	rootEnding = "-root.dump"
	bootEnding = "-boot.dump"
)

// format finds how the image is to be written.
func (o *Order) format() (format, error) {
	imageType := cmp.Or(o.Type, QCOW2)
	var types, compressions []string
	for _, f := range formats {
		if f.imageType == imageType && (o.Compression == "" || o.Compression == f.compression) {
			return f, nil
		}
		if f.imageType == imageType {
			compressions = append(compressions, f.compression)
		}
		types = append(types, f.imageType)
	}
	if compressions == nil {
		return format{}, fmt.Errorf("cannot make an image of type %q: want one of %s", imageType, strings.Join(slices.Compact(types), ", "))
	}
	return format{}, fmt.Errorf("cannot compress an image of type %s with %q: want one of %s", imageType, o.Compression, strings.Join(compressions, ", "))
}

// maxDisks is the most disks that Ganeti gives an instance.
const maxDisks = 16

var (
	namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$`)
	archPattern = regexp.MustCompile(`^[A-Za-z0-9_]{1,32}$`)
)

// Check makes sure that the order makes sense on whatever node.
func (o *Order) Check() error {
	if _, err := o.format(); err != nil {
		return err
	}
	if o.Name != "" && !namePattern.MatchString(o.Name) {
		return fmt.Errorf("cannot call an image %q: want letters, digits and . _ + -, beginning with a letter or digit", o.Name)
	}
	if o.Arch != "" && !archPattern.MatchString(o.Arch) {
		return fmt.Errorf("cannot make an image for the machine %q: want letters, digits and _", o.Arch)
	}
	if o.Dir != "" && !filepath.IsAbs(o.Dir) {
		return fmt.Errorf("cannot write to %q: want a full path on the instance's node, beginning with /", o.Dir)
	}
	for i, n := range o.Disks {
		if n < 0 || n >= maxDisks || slices.Contains(o.Disks[:i], n) {
			return fmt.Errorf("cannot capture disk %d: want each disk once, counted from 0", n)
		}
	}
	if o.KeepsAll() && len(o.Keep)+len(o.Remove) > 1 {
		return errors.New("cannot keep all and name parts besides")
	}
	if o.KeepsAll() {
		return nil
	}
	return guest.CheckCapture(slices.Concat(o.Keep, o.Remove))
}

// Defaults fills in what the administrator left open.
func (o *Order) Defaults(dir, instance, arch string) {
	short, _, _ := strings.Cut(instance, ".")
	o.Dir = cmp.Or(o.Dir, dir)
	o.Name = cmp.Or(o.Name, short)
	o.Arch = cmp.Or(o.Arch, arch)
	if len(o.Disks) == 0 {
		o.Disks = []int{0}
	}
}

// stem is what the names of a disk's files begin with. A further disk has its
// number in it.
func (o *Order) stem(disk int) string {
	if disk == 0 {
		return o.Name + "-" + o.Arch
	}
	return fmt.Sprintf("%s-disk%d-%s", o.Name, disk, o.Arch)
}
