package guest

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"ganeti-instance-image/internal/size"
)

// Named is how the guest's files name one of its file systems or its swap
// space. What was not said, or is not well-formed, is "".
type Named struct {
	UUID     string // "11111111-2222-4333-8444-555555555555"; of "/boot/efi" a volume id, "1A2B-3C4D"
	Label    string // of at most 16 bytes, the least that ext, XFS and swap can hold being 12; for FAT 11
	PartUUID string // of GPT like a UUID; of MBR the disk's id and the number, "1a2b3c4d-01"
}

// NamedSystems reads by what names the guest's own files know its file systems,
// so that new ones can be given the same: the keys are "/", "/boot",
// "/boot/efi" and "swap". It reads /etc/fstab; for "/" the root= of the kernel
// command lines in the boot loader's files, and for swap their resume= and
// what initramfs-tools keeps in the initramfs, win over that, since an fstab
// can be corrected later and an initramfs cannot. No name is given to two.
func (r *Root) NamedSystems() map[string]Named {
	found := names{}
	entries, _ := r.FSTab()
	for _, e := range entries {
		if onDisk(e) {
			found.fill(fstabKey(e), e.Device)
		}
	}
	found.set("swap", r.resumeDevice())
	lines := r.kernelCommandLines()
	found.set("swap", argument(lines, "resume"))
	found.set("/", argument(lines, "root"))
	found.distinct()
	return found
}

// names are the file systems by the keys of NamedSystems.
type names map[string]Named

// namedKeys are the keys there can be, in the order in which they keep a name
// that several claim.
var namedKeys = []string{"/", "/boot", "/boot/efi", "swap"}

func fstabKey(e FSTabEntry) string {
	if e.Type == "swap" {
		return "swap"
	}
	return path.Clean(e.Mountpoint)
}

// fill takes in a reference where none of its kind is known.
func (n names) fill(key, reference string) {
	known := n[key]
	n.set(key, reference)
	if named, ok := n[key]; ok {
		n[key] = Named{first(known.UUID, named.UUID), first(known.Label, named.Label), first(known.PartUUID, named.PartUUID)}
	}
}

func first(texts ...string) string {
	for _, text := range texts {
		if text != "" {
			return text
		}
	}
	return ""
}

// set takes in a reference such as "UUID=...", if it is well-formed.
func (n names) set(key, reference string) {
	if !slices.Contains(namedKeys, key) {
		return
	}
	named := n[key]
	tag, value, _ := strings.Cut(DeviceTag(reference), "=")
	switch {
	case tag == "UUID" && validUUID(key, value):
		named.UUID = value
		if fileSystemUUID.MatchString(value) {
			named.UUID = strings.ToLower(value)
		}
	case tag == "LABEL" && validLabel(key, value):
		named.Label = value
	case tag == "PARTUUID" && (fileSystemUUID.MatchString(value) || partitionOfMBR.MatchString(value)) && !isZero(value):
		named.PartUUID = strings.ToLower(value)
	default:
		return
	}
	n[key] = named
}

var (
	fileSystemUUID = regexp.MustCompile(`^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`)
	volumeID       = regexp.MustCompile(`^[0-9A-F]{4}-[0-9A-F]{4}$`)
	partitionOfMBR = regexp.MustCompile(`^[0-9a-fA-F]{8}-[0-9a-fA-F]{2}$`)
)

// isZero tells whether an id is the one that stands for none.
func isZero(id string) bool {
	id, _, isMBR := cutLast(id, "-")
	if !isMBR {
		return true
	}
	return strings.Trim(id, "0-") == ""
}

func cutLast(text, separator string) (before, after string, found bool) {
	i := strings.LastIndex(text, separator)
	if i < 0 {
		return text, "", false
	}
	return text[:i], text[i+len(separator):], true
}

func validUUID(key, value string) bool {
	if isZero(value) {
		return false
	}
	if key == "/boot/efi" {
		return volumeID.MatchString(value)
	}
	return fileSystemUUID.MatchString(value)
}

// labelShape keeps to what no shell takes for its own: xfs_admin(8), which sets
// labels, is a shell script that evaluates them.
var labelShape = regexp.MustCompile(`^[A-Za-z0-9_./:@+][A-Za-z0-9_./:@+-]*$`)

// validLabel takes labels that every program which sets one takes as they are.
func validLabel(key, value string) bool {
	limit := 16
	if key == "/boot/efi" {
		limit = 11
	}
	return len(value) <= limit && labelShape.MatchString(value)
}

// distinct takes a name that several have away from all but the first: two
// subvolumes of one btrfs are two lines of an fstab with one UUID.
func (n names) distinct() {
	seen := map[string]bool{}
	once := func(kind, value string) string {
		if value == "" || seen[kind+value] {
			return ""
		}
		seen[kind+value] = true
		return value
	}
	for _, key := range namedKeys {
		named, ok := n[key]
		if !ok {
			continue
		}
		named = Named{once("UUID=", named.UUID), once("LABEL=", named.Label), once("PARTUUID=", named.PartUUID)}
		if n[key] = named; named == (Named{}) {
			delete(n, key)
		}
	}
}

// resumeDevice is what initramfs-tools copies into each initramfs as the swap
// space to resume from: one that is not there makes each boot wait for it.
func (r *Root) resumeDevice() string {
	text, err := r.ReadFile("/etc/initramfs-tools/conf.d/resume", releaseLimit)
	if err != nil {
		return ""
	}
	return shellVariables(string(text))["RESUME"]
}

// loaderLimit bounds a file of a boot loader; a grub.cfg with dozens of kernels
// is a few dozen KiB.
const loaderLimit = 1 * size.MiB

// loaderFiles are where boot loaders have command lines of kernels.
var loaderFiles = []struct {
	pattern string
	line    *regexp.Regexp // its last group is the command line
}{
	{"/boot/grub*/grub.cfg", regexp.MustCompile(`(?m)^[ \t]*linux(?:16|efi)?[ \t]+(.*)$`)},
	{"/boot/loader/entries/*.conf", regexp.MustCompile(`(?m)^[ \t]*options[ \t]+(.*)$`)},
	{"/boot/grub*/grubenv", regexp.MustCompile(`(?m)^kernelopts=(.*)$`)},
	{"/boot/grub/menu.lst", regexp.MustCompile(`(?m)^[ \t]*kernel[ \t]+(.*)$`)},
	{"/boot/grub/grub.conf", regexp.MustCompile(`(?m)^[ \t]*kernel[ \t]+(.*)$`)},
	{"/boot/extlinux.conf", regexp.MustCompile(`(?mi)^[ \t]*append[ \t]+(.*)$`)},
	{"/boot/extlinux/extlinux.conf", regexp.MustCompile(`(?mi)^[ \t]*append[ \t]+(.*)$`)},
	{"/etc/kernel/cmdline", regexp.MustCompile(`(?m)^(.*)$`)},
}

// The most files of a pattern, and lines of a file, that are looked at.
const (
	maxLoaderFiles = 64
	maxLoaderLines = 256
)

// kernelCommandLines returns the command lines of kernels, a boot loader's first
// one first.
func (r *Root) kernelCommandLines() []string {
	var lines []string
	for _, file := range loaderFiles {
		paths := r.Glob(file.pattern)
		for _, path := range paths[:min(len(paths), maxLoaderFiles)] {
			text, err := r.ReadFile(path, loaderLimit)
			if err != nil {
				continue
			}
			for _, match := range file.line.FindAllSubmatch(text, maxLoaderLines) {
				lines = append(lines, string(match[len(match)-1]))
			}
		}
	}
	return lines
}

// argument returns the value of a kernel argument on the first line that has it.
func argument(lines []string, name string) string {
	for _, line := range lines {
		for word := range strings.FieldsSeq(line) {
			if value, ok := strings.CutPrefix(strings.Trim(word, `"'`), name+"="); ok {
				return strings.Trim(value, `"'`)
			}
		}
	}
	return ""
}
