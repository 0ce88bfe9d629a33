// Package grub makes a guest's disk boot: it writes the loader for BIOS and
// UEFI from the guest's own files, and edits the configuration the guest has
// (grub.cfg, grubenv, Boot Loader Specification entries, menu.lst, extlinux.conf
// and what these are made from), so that it names the file systems of this disk
// and carries the site's kernel arguments and serial console.
//
// The configuration is edited as text, where it is a pattern that distributions
// write; everything else in a file stays byte for byte. No program of the guest
// is run and grub-mkconfig is not needed: it would look at the node's devices.
//
// Left out: unified kernel images, whose arguments are inside a file that may be
// signed; initial RAM disks, which are not rebuilt; the resume= argument, which
// stays unless it names a device of the old system, since only the guest knows
// what it suspends to; entries of Xen's hypervisor (multiboot2 and module2),
// which stay as they are; LILO, and boot loaders of other machines than PCs.
package grub

import (
	"io"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/size"
)

// Target is the guest that is to boot, with all its file systems mounted.
type Target struct {
	Root       *guest.Root
	Disk       Disk          // the whole disk; nil: only the configuration is wanted
	Table      *layout.Table // the disk's; nil where it has none
	RootFS     Filesystem
	BootFS     Filesystem // the zero value: /boot is a directory of the root file system
	KernelArgs []string   // the site's, to be on every kernel's command line once
	Serial     Serial     // the zero value: no serial console
	Hypervisor string     // as INSTANCE_HYPERVISOR: "kvm", "xen-pvm", "xen-hvm", ...
	External   bool       // the hypervisor brings the kernel: no loader is needed
}

// Disk is a disk as a whole. *block.Device is one.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	Path() string
	Size() size.Bytes
}

// Filesystem is a file system of the guest, and the partition it is on.
type Filesystem struct {
	Number   int // the partition's, as in Linux' device names; 0: the disk as a whole
	Kind     filesystem.Kind
	UUID     string // as blkid(8) prints it
	Label    string
	PartUUID string // as blkid(8) prints it; empty where there is no table
}

// Serial is a serial console.
type Serial struct {
	Device string // as the kernel calls it: "ttyS0", or "hvc0" under xen-pvm
	Speed  int    // in bits per second; 0: it has none, as "hvc0"
}
