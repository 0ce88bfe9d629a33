package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"ganeti-instance-image/internal/size"
)

// FSTabEntry is one line of fstab(5), with the escapes of its fields resolved.
type FSTabEntry struct {
	Device     string // as it is written: "UUID=...", "LABEL=/", "/dev/vda1"
	Mountpoint string
	Type       string
	Options    []string
	Line       int
}

const (
	fstabLimit   = 256 * size.KiB
	fstabEntries = 1024
)

// FSTab reads the guest's /etc/fstab. A line with fewer than three fields is
// skipped, as mount(8) does. Where there is none the error wraps
// fs.ErrNotExist.
func (r *Root) FSTab() ([]FSTabEntry, error) {
	text, err := r.ReadFile("/etc/fstab", fstabLimit)
	if err != nil {
		return nil, err
	}
	entries := parseFSTab(string(text))
	if len(entries) > fstabEntries {
		return nil, fail("read", "/etc/fstab", fmt.Errorf("it has more than %d entries", fstabEntries))
	}
	return entries, nil
}

// AddFSTab adds an entry to /etc/fstab. One for the same mount point, or for the
// same swap space, is replaced; all else stays as it is.
func (r *Root) AddFSTab(e FSTabEntry) error {
	text, err := r.ReadFile("/etc/fstab", fstabLimit)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var kept strings.Builder
	for line := range strings.Lines(string(text)) {
		if old := parseFSTab(line); len(old) == 1 && e.replaces(old[0]) {
			continue
		}
		kept.WriteString(strings.TrimSuffix(line, "\n") + "\n")
	}
	pass := 2
	if e.Type == "swap" || e.Type == "xfs" || e.Type == "btrfs" {
		pass = 0 // neither is checked at boot
	}
	fmt.Fprintf(&kept, "%s %s %s %s 0 %d\n", e.Device, e.Mountpoint, e.Type, strings.Join(e.Options, ","), pass)
	return r.WriteFile("/etc/fstab", []byte(kept.String()), 0o644)
}

func (e FSTabEntry) replaces(old FSTabEntry) bool {
	if e.Type == "swap" {
		return old.Device == e.Device
	}
	return path.Clean(old.Mountpoint) == path.Clean(e.Mountpoint)
}

func parseFSTab(text string) []FSTabEntry {
	var entries []FSTabEntry
	number := 0
	for line := range strings.Lines(text) {
		number++
		fields := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' || r == '\n' || r == '\r' })
		if len(fields) < 3 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		e := FSTabEntry{Device: unescape(fields[0]), Mountpoint: unescape(fields[1]), Type: unescape(fields[2]), Line: number}
		if len(fields) > 3 {
			e.Options = strings.Split(unescape(fields[3]), ",")
		}
		entries = append(entries, e)
	}
	return entries
}

// unescape resolves the octal escapes of fstab(5): "\040" is a blank.
func unescape(field string) string {
	var out strings.Builder
	for i := 0; i < len(field); i++ {
		if c, ok := octal(field[i:]); ok {
			out.WriteByte(c)
			i += 3
			continue
		}
		out.WriteByte(field[i])
	}
	return out.String()
}

func octal(text string) (byte, bool) {
	if len(text) < 4 || text[0] != '\\' {
		return 0, false
	}
	n := 0
	for _, c := range []byte(text[1:4]) {
		if c < '0' || c > '7' {
			return 0, false
		}
		n = n<<3 | int(c-'0')
	}
	return byte(n), n < 256 && n > 0
}

// FSTabSystem is a file system or swap space that was made for the guest, and
// what its /etc/fstab is to say of it.
type FSTabSystem struct {
	Device     string   // how a new line names it: "UUID=..."
	Names      []string // every first field that is true for it, as udev writes it: "LABEL=/", "PARTUUID=..."
	Mountpoint string   // "/", "/boot", "/boot/efi"; "none" for swap
	Type       string   // "ext4", "xfs", "btrfs", "vfat", "swap"
}

// notOurs is put in front of a line that would keep the guest from booting.
const notOurs = "# ganeti-instance-image: not on this instance's disk: "

// SetFSTab makes /etc/fstab true for the file systems that were just made. What
// it says already, and what it says of anything else than a local disk, stays
// byte for byte. In the line for one of the systems a name that is not, or that
// cannot be known to be its name (/dev/sda1 is named after a driver), and a type
// that is not, are replaced, and options that only another type knows are
// dropped. A system without a line gets one, in the order fstab(5) wants. A line
// that needs another disk, and has neither noauto nor nofail, becomes a comment:
// systemd would stop the boot over it.
//
// What was changed is returned, a line a change.
func (r *Root) SetFSTab(systems []FSTabSystem) ([]string, error) {
	text, err := r.ReadFile("/etc/fstab", fstabLimit)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	t := newTable(string(text))
	if t.entries() > fstabEntries {
		return nil, fail("edit", "/etc/fstab", fmt.Errorf("it has more than %d entries", fstabEntries))
	}
	t.set(systems)
	if len(t.changes) == 0 {
		return nil, nil
	}
	if err := r.WriteFile("/etc/fstab", []byte(t.String()), 0o644); err != nil {
		return nil, err
	}
	return t.changes, nil
}

// table is the text of an fstab, line by line.
type table struct {
	lines   []*fstabLine
	changes []string
}

// fstabLine is a line in pieces: fields are the odd ones, between them is what
// separates them. Put together again they are the line.
type fstabLine struct {
	pieces  []string
	entry   *FSTabEntry // nil for a comment, an empty line, or one with too few fields
	settled bool        // it is the line of one of the systems
}

func newTable(text string) *table {
	t := &table{}
	for line := range strings.Lines(text) {
		t.lines = append(t.lines, newLine(line))
	}
	return t
}

func newLine(text string) *fstabLine {
	l := &fstabLine{pieces: splitFields(text)}
	if entries := parseFSTab(text); len(entries) == 1 {
		l.entry = &entries[0]
	}
	return l
}

// splitFields takes a line apart, into what separates fields, which comes first
// and may be empty, and fields, in turn.
func splitFields(text string) []string {
	var pieces []string
	start := 0
	for i := range len(text) {
		blank := strings.IndexByte(" \t\r\n", text[i]) >= 0
		if separates := len(pieces)%2 == 0; blank != separates {
			pieces = append(pieces, text[start:i])
			start = i
		}
	}
	return append(pieces, text[start:])
}

// The pieces that are the fields of fstab(5).
const (
	deviceField  = 1
	typeField    = 5
	optionsField = 7
	passField    = 11
)

func (l *fstabLine) String() string { return strings.Join(l.pieces, "") }

func (t *table) String() string {
	var out strings.Builder
	for _, l := range t.lines {
		out.WriteString(l.String())
	}
	return out.String()
}

func (t *table) entries() int {
	n := 0
	for _, l := range t.lines {
		if l.entry != nil {
			n++
		}
	}
	return n
}

func (t *table) say(format string, args ...any) {
	t.changes = append(t.changes, "/etc/fstab: "+fmt.Sprintf(format, args...))
}

func (t *table) set(systems []FSTabSystem) {
	for _, s := range systems {
		if l := t.lineOf(s); l != nil {
			t.correct(l, s)
		}
	}
	for _, l := range t.lines {
		if l.entry != nil && !l.settled && l.stopsBoot(systems) {
			t.say("the line for %q on %q is a comment now, since this instance's disk does not have it", l.entry.Mountpoint, l.entry.Device)
			l.pieces = []string{notOurs + l.String()}
			l.entry = nil
		}
	}
	for _, s := range systems {
		if t.lineOf(s) == nil {
			t.add(s)
		}
	}
}

// lineOf finds the line for a system: of several the one that names it, or else
// the first.
func (t *table) lineOf(s FSTabSystem) *fstabLine {
	var found *fstabLine
	for _, l := range t.lines {
		if l.entry == nil || !s.isFor(*l.entry) {
			continue
		}
		if s.isNamed(l.entry.Device) {
			return l
		}
		if found == nil {
			found = l
		}
	}
	return found
}

// isFor tells whether a line is for the system: for swap, any on a disk.
func (s FSTabSystem) isFor(e FSTabEntry) bool {
	if s.Type == "swap" || e.Type == "swap" {
		return s.Type == e.Type && onDisk(e)
	}
	return path.Clean(e.Mountpoint) == s.Mountpoint && (s.Mountpoint == "/" || onDisk(e))
}

// what names the system to people.
func (s FSTabSystem) what() string {
	if s.Type == "swap" {
		return "swap"
	}
	return s.Mountpoint
}

func (s FSTabSystem) isNamed(device string) bool {
	tag := DeviceTag(device)
	return tag != "" && (tag == DeviceTag(s.Device) || slices.ContainsFunc(s.Names, func(name string) bool { return DeviceTag(name) == tag }))
}

// byTag are the directories in which udev has a link for each value of a tag.
var byTag = []struct{ dir, tag string }{
	{"/dev/disk/by-uuid/", "UUID="}, {"/dev/disk/by-label/", "LABEL="},
	{"/dev/disk/by-partuuid/", "PARTUUID="}, {"/dev/disk/by-partlabel/", "PARTLABEL="},
}

// DeviceTag brings the first field of a line of fstab into the form TAG=value, without quotes; it is
// "" for one that says no tag.
func DeviceTag(device string) string {
	for _, by := range byTag {
		if value, ok := strings.CutPrefix(device, by.dir); ok {
			return by.tag + udevDecode(value)
		}
		if value, ok := strings.CutPrefix(device, by.tag); ok {
			if len(value) > 1 && (value[0] == '"' || value[0] == '\'') && value[len(value)-1] == value[0] {
				value = value[1 : len(value)-1]
			}
			return by.tag + value
		}
	}
	return ""
}

// udevDecode resolves the "\x20" by which udev writes what may not be in the
// name of a link.
func udevDecode(name string) string {
	var out strings.Builder
	for i := 0; i < len(name); i++ {
		if rest := name[i:]; strings.HasPrefix(rest, `\x`) && len(rest) > 3 {
			if c, err := strconv.ParseUint(rest[2:4], 16, 8); err == nil {
				out.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		out.WriteByte(name[i])
	}
	return out.String()
}

// correct makes the line of a system true.
func (t *table) correct(l *fstabLine, s FSTabSystem) {
	l.settled = true
	if !s.isNamed(l.entry.Device) {
		t.say("%s is %s now, not %q", s.what(), s.Device, l.entry.Device)
		l.pieces[deviceField] = escape(s.Device)
		l.entry.Device = s.Device
	}
	old := l.entry.Type
	if !slices.Contains(strings.Split(old, ","), s.Type) && old != "auto" {
		t.say("%s is of type %s now, not %q", s.what(), s.Type, old)
		l.pieces[typeField] = s.Type
		l.entry.Type = s.Type
		if len(l.pieces) > passField && (s.Type == "xfs" || s.Type == "btrfs") {
			l.pieces[passField] = "0"
		}
	}
	t.dropOptions(l, s, old != s.Type)
}

// ownOptions are the mount options that not every type knows, by the type. One
// that ends in "=" has a value, one without may have one.
var ownOptions = map[string][]string{
	"ext": {
		"errors=", "data=", "journal=", "journal_dev=", "journal_path=", "journal_checksum", "nojournal_checksum", "journal_async_commit", "noload", "norecovery",
		"barrier", "nobarrier", "user_xattr", "nouser_xattr", "acl", "noacl", "commit=", "usrjquota=", "grpjquota=", "jqfmt=",
		"delalloc", "nodelalloc", "auto_da_alloc", "noauto_da_alloc", "dioread_lock", "dioread_nolock", "stripe=", "bsddf", "minixdf", "bh", "nobh",
		"init_itable", "noinit_itable", "max_batch_time=", "min_batch_time=", "inode_readahead_blks=", "resuid=", "resgid=", "sb=", "block_validity", "noblock_validity",
	},
	"xfs": {
		"attr2", "noattr2", "inode32", "inode64", "largeio", "nolargeio", "swalloc", "nouuid", "ikeep", "noikeep", "filestreams", "wsync", "norecovery",
		"allocsize=", "logbufs=", "logbsize=", "logdev=", "rtdev=", "sunit=", "swidth=", "uquota", "gquota", "pquota", "uqnoenforce", "gqnoenforce", "pqnoenforce", "qnoenforce",
	},
	"btrfs": {
		"compress", "compress-force", "space_cache", "nospace_cache", "ssd", "nossd", "ssd_spread", "nossd_spread", "autodefrag", "noautodefrag",
		"datacow", "nodatacow", "datasum", "nodatasum", "degraded", "device=", "max_inline=", "metadata_ratio=", "thread_pool=", "user_subvol_rm_allowed", "skip_balance",
		"clear_cache", "inode_cache", "fatal_errors=", "flushoncommit", "treelog", "notreelog", "usebackuproot", "discard=", "barrier", "nobarrier", "acl", "noacl", "commit=",
	},
	"vfat": {
		"umask=", "dmask=", "fmask=", "uid=", "gid=", "iocharset=", "codepage=", "shortname=", "utf8", "check=", "quiet", "flush", "showexec", "tz=", "errors=", "allow_utime=",
	},
}

func typeFamily(kind string) string {
	switch kind {
	case "ext2", "ext3", "ext4":
		return "ext"
	case "msdos", "vfat", "fat":
		return "vfat"
	}
	return kind
}

// dropOptions drops those that the system does not know: where the line was for
// another type those of other types, and a subvolume, of which a new file system
// has none.
func (t *table) dropOptions(l *fstabLine, s FSTabSystem, otherType bool) {
	if len(l.pieces) <= optionsField {
		return
	}
	var kept, dropped []string
	for option := range strings.SplitSeq(l.pieces[optionsField], ",") {
		if isSubvolume(option) || otherType && isForeign(option, typeFamily(s.Type)) {
			dropped = append(dropped, option)
		} else {
			kept = append(kept, option)
		}
	}
	if len(dropped) == 0 {
		return
	}
	if len(kept) == 0 {
		kept = []string{"defaults"}
	}
	t.say("dropped the options %q of %s, which is %s now", strings.Join(dropped, ","), s.what(), s.Type)
	l.pieces[optionsField] = strings.Join(kept, ",")
}

func isSubvolume(option string) bool {
	name, _, _ := strings.Cut(option, "=")
	return name == "subvol" || name == "subvolid"
}

func isForeign(option, family string) bool {
	name, _, hasValue := strings.Cut(option, "=")
	if family == "swap" || ownOptions[family] == nil {
		return false
	}
	known := func(own string) bool { return own == name || hasValue && own == name+"=" }
	if slices.ContainsFunc(ownOptions[family], known) {
		return false
	}
	for _, options := range ownOptions {
		if slices.ContainsFunc(options, known) {
			return true
		}
	}
	return false
}

// firstDisk is what a kernel calls the partitions of the first disk, which all
// are new ones.
var firstDisk = regexp.MustCompile(`^/dev/([hsv]da|xvda|nvme0n1p|mmcblk0p)[0-9]+$`)

// stopsBoot tells whether a line that is for none of the systems has the boot
// wait for a disk that is not there.
func (l *fstabLine) stopsBoot(systems []FSTabSystem) bool {
	waits := func(option string) bool { return option == "noauto" || option == "nofail" || option == "_netdev" }
	if !onDisk(*l.entry) {
		return false
	}
	if firstDisk.MatchString(l.entry.Device) {
		return true // another system is there now
	}
	if slices.ContainsFunc(l.entry.Options, waits) {
		return false
	}
	if slices.ContainsFunc(l.entry.Options, isSubvolume) {
		return true
	}
	for _, s := range systems {
		if s.isFor(*l.entry) {
			return true // another line says it
		}
		if s.isNamed(l.entry.Device) {
			return false
		}
	}
	return true
}

// virtualTypes are the types of file systems that are on no local disk, whatever
// stands in the first field.
var virtualTypes = []string{
	"proc", "sysfs", "tmpfs", "ramfs", "devpts", "devtmpfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs", "fusectl", "usbfs",
	"hugetlbfs", "mqueue", "pstore", "efivarfs", "binfmt_misc", "bpf", "selinuxfs", "rpc_pipefs", "overlay", "aufs", "unionfs", "none",
	"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "ceph", "glusterfs", "lustre", "afs", "ncpfs", "autofs", "fuse", "davfs", "ignore",
}

// guestDevices are devices the guest makes itself, from files or of nothing.
var guestDevices = []string{"/dev/loop", "/dev/zram", "/dev/ram", "/dev/shm", "/dev/fuse", "/dev/null", "/dev/pts"}

// onDisk tells whether a line needs a local disk.
func onDisk(e FSTabEntry) bool {
	if slices.Contains(virtualTypes, e.Type) || strings.HasPrefix(e.Type, "fuse.") || slices.Contains(e.Options, "bind") || slices.Contains(e.Options, "rbind") {
		return false
	}
	if slices.ContainsFunc(guestDevices, func(d string) bool { return strings.HasPrefix(e.Device, d) }) {
		return false
	}
	tags := []string{"UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=", "ID=", "/dev/"}
	return slices.ContainsFunc(tags, func(tag string) bool { return strings.HasPrefix(e.Device, tag) })
}

// add writes the line that is missing: before those of mount points below it,
// else behind those it is below of.
func (t *table) add(s FSTabSystem) {
	at := t.place(s)
	if at == len(t.lines) && at > 0 {
		if last := t.lines[at-1]; !strings.HasSuffix(last.String(), "\n") {
			last.pieces = append(last.pieces, "\n")
		}
	}
	line := fmt.Sprintf("%s %s %s %s 0 %d\n", escape(s.Device), s.Mountpoint, s.Type, newOptions(s), newPass(s))
	t.lines = slices.Insert(t.lines, at, newLine(line))
	t.lines[at].settled = true
	t.say("added %q", strings.TrimSpace(line))
}

func (t *table) place(s FSTabSystem) int {
	behind := len(t.lines)
	for i, l := range t.lines {
		if l.entry == nil || l.entry.Type == "swap" || !strings.HasPrefix(l.entry.Mountpoint, "/") {
			continue
		}
		switch where := path.Clean(l.entry.Mountpoint); {
		case s.Type == "swap":
		case below(where, s.Mountpoint):
			return i
		case below(s.Mountpoint, where):
			behind = i + 1
		}
	}
	return behind
}

// below tells whether the clean path inner is below the clean path outer.
func below(inner, outer string) bool {
	return inner != outer && strings.HasPrefix(inner, strings.TrimSuffix(outer, "/")+"/")
}

func newOptions(s FSTabSystem) string {
	switch s.Type {
	case "swap":
		return "sw"
	case "vfat":
		return "umask=0077,nofail" // a guest whose kernel has no FAT boots without it
	}
	return "defaults"
}

func newPass(s FSTabSystem) int {
	switch {
	case s.Type == "swap" || s.Type == "xfs" || s.Type == "btrfs" || s.Type == "vfat":
		return 0 // none is checked at boot
	case s.Mountpoint == "/":
		return 1
	}
	return 2
}

// escape is the reverse of unescape.
func escape(field string) string {
	return strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`).Replace(field)
}
