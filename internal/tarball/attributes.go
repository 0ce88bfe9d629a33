package tarball

import (
	"archive/tar"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"ganeti-instance-image/internal/tree"
)

const (
	selinux = "security.selinux"
)

// attributes takes the extended attributes from the pax records: of GNU tar and
// star (SCHILY.xattr), of libarchive in base64, SELinux's label as Red Hat's tar
// writes it, and access control lists as texts. Where one is there in several
// ways, the bytes of SCHILY.xattr count.
func (a *Archive) attributes(h *tar.Header) (map[string][]byte, error) {
	var xattrs map[string][]byte
	set := func(name string, value []byte) {
		if xattrs == nil {
			xattrs = map[string][]byte{}
		}
		xattrs[name] = value
	}
	for key, value := range h.PAXRecords {
		if encoded, ok := strings.CutPrefix(key, "LIBARCHIVE.xattr."); ok {
			name, err1 := url.PathUnescape(encoded)
			b, err2 := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
			if err := errors.Join(err1, err2); err != nil {
				return nil, fmt.Errorf("its attribute %s is damaged", tree.Quoted(encoded))
			}
			set(name, b)
		}
	}
	if label := h.PAXRecords["RHT.security.selinux"]; label != "" {
		// The kernel has it with a zero at its end.
		set(selinux, append([]byte(strings.TrimRight(label, "\x00")), 0))
	}
	for _, kind := range []struct{ record, name string }{{"SCHILY.acl.access", tree.AccessACL}, {"SCHILY.acl.default", tree.DefaultACL}} {
		if text := h.PAXRecords[kind.record]; text != "" && h.PAXRecords["SCHILY.xattr."+kind.name] == "" {
			a.list(h, kind.name, text, set)
		}
	}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			set(keyword.Replace(name), []byte(value))
		}
	}
	return xattrs, nil
}

// keyword undoes what GNU tar does to names that a record cannot have.
var keyword = strings.NewReplacer("%3D", "=", "%25", "%")

// list sets an access control list. One that names somebody who is not known yet
// waits for the end.
func (a *Archive) list(h *tar.Header, name, text string, set func(string, []byte)) {
	value, err := a.names.encodeACL(name, text)
	switch {
	case errors.Is(err, errUnknownName) && len(a.waiting) < maxWaiting && a.waitingBytes+len(text) <= maxWaitingBytes:
		a.waiting = append(a.waiting, waitingList{relative(h.Name), name, text})
		a.waitingBytes += len(text) + len(h.Name)
	case err != nil:
		a.leaveOut(h.Name, err)
	case value != nil:
		set(name, value)
	}
}

func (a *Archive) leaveOut(name string, err error) {
	a.warn("the access control list of %s is left out: %v", tree.Quoted(name), err)
}

const (
	maxWaiting      = 1 << 16
	maxWaitingBytes = 16 << 20
)

// waitingList is an access control list whose names were not known yet.
type waitingList struct{ file, name, text string }

// resolve makes amendments of the lists that wait.
func (a *Archive) resolve() {
	for _, w := range a.waiting {
		value, err := a.names.encodeACL(w.name, w.text)
		if errors.Is(err, errUnknownName) {
			a.warn("an entry of the access control list of %s is left out: %v", tree.Quoted(w.file), err)
			// Without the others the mode's group would have what the list's mask allows.
			value, err = a.names.withoutUnknown().encodeACL(w.name, w.text)
		}
		if err != nil {
			a.leaveOut(w.file, err)
		} else if value != nil {
			a.amendments = append(a.amendments, tree.Entry{Name: w.file, Xattrs: map[string][]byte{w.name: value}})
		}
	}
	a.waiting = nil
}

// Amendments are attributes that were not known when Next returned the entry of
// that name: access control lists with names that the archive explains further
// on. They are known once Next returned io.EOF; package unpack asks for them.
func (a *Archive) Amendments() []tree.Entry { return a.amendments }

// encodeACL is a list as setxattr(2) takes it, nil of one that says no more than
// the mode.
func (n *names) encodeACL(name, text string) ([]byte, error) {
	entries, err := n.parseACL(text)
	if err != nil || len(entries) == 0 || name == tree.AccessACL && len(entries) <= 3 {
		return nil, err
	}
	return encodeACL(entries), nil
}

// aclEntry is an entry of a list as posix_acl_xattr.h has it.
type aclEntry struct {
	tag, permissions uint16
	id               uint32
}

// Tags of the entries.
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20

	aclNobody  = 1<<32 - 1
	maxEntries = 1024
)

var errUnknownName = errors.New("the archive does not say the number")

// parseACL reads the long or short text form of a list (acl(5)), to which star
// adds the number of a user or group as a fourth field. Entries are put in the
// order in which the kernel wants them.
func (n *names) parseACL(text string) ([]aclEntry, error) {
	var entries []aclEntry
	mask, named, allowed := false, false, uint16(0)
	for field := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' || r == '\n' }) {
		field, _, _ = strings.Cut(field, "#")
		if field = strings.TrimSpace(field); field == "" {
			continue
		}
		e, err := n.parseACLEntry(strings.TrimPrefix(field, "default:"))
		if errors.Is(err, errUnknownName) && n.lenient {
			named = true
			continue
		}
		if err != nil {
			return nil, err
		}
		if len(entries) == maxEntries {
			return nil, fmt.Errorf("it has more than %d entries", maxEntries)
		}
		mask = mask || e.tag == aclMask
		if e.tag == aclUser || e.tag == aclGroup {
			named = true
		}
		if e.tag != aclUserObj && e.tag != aclOther {
			allowed |= e.permissions
		}
		entries = append(entries, e)
	}
	if named && !mask {
		entries = append(entries, aclEntry{aclMask, allowed, aclNobody})
	}
	slices.SortFunc(entries, func(a, b aclEntry) int {
		if a.tag != b.tag {
			return int(a.tag) - int(b.tag)
		}
		return int(int64(a.id) - int64(b.id))
	})
	return entries, nil
}

func (n *names) parseACLEntry(text string) (aclEntry, error) {
	fields := strings.Split(text, ":")
	if len(fields) == 2 { // mask and other in an older form
		fields = []string{fields[0], "", fields[1]}
	}
	if len(fields) < 3 || len(fields) > 4 {
		return aclEntry{}, fmt.Errorf("%s is no entry of one", tree.Quoted(text))
	}
	e := aclEntry{id: aclNobody}
	var known map[string]uint32
	switch fields[0] {
	case "user", "u":
		e.tag, known = aclUserObj, n.users
	case "group", "g":
		e.tag, known = aclGroupObj, n.groups
	case "mask", "m":
		e.tag = aclMask
	case "other", "o":
		e.tag = aclOther
	default:
		return aclEntry{}, fmt.Errorf("%s is no entry of one", tree.Quoted(text))
	}
	for i, c := range []byte(fields[2]) {
		bit := strings.IndexByte("xwr", c)
		if i > 2 || bit < 0 && c != '-' {
			return aclEntry{}, fmt.Errorf("%s is no entry of one", tree.Quoted(text))
		}
		if bit >= 0 {
			e.permissions |= 1 << bit
		}
	}
	if fields[1] == "" {
		return e, nil
	}
	if known == nil {
		return aclEntry{}, fmt.Errorf("%s is no entry of one", tree.Quoted(text))
	}
	e.tag *= 2 // somebody who is named
	if len(fields) == 4 {
		fields[1] = fields[3]
	}
	id, ok := known[fields[1]]
	if number, err := strconv.ParseUint(fields[1], 10, 32); err == nil {
		id, ok = uint32(number), true
	}
	if e.id = id; !ok || id == aclNobody {
		return aclEntry{}, fmt.Errorf("%w of %s", errUnknownName, tree.Quoted(fields[0]+" "+fields[1]))
	}
	return e, nil
}

// encodeACL is a list as setxattr(2) takes it.
func encodeACL(entries []aclEntry) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.permissions)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// flagNames are the inode flags that libarchive writes and that package unpack
// sets, as ioctl_iflags(2) has them.
var flagNames = map[string]uint32{
	"schg": 0x10, "schange": 0x10, "simmutable": 0x10, "uchg": 0x10, "uchange": 0x10, "uimmutable": 0x10,
	"sappnd": 0x20, "sappend": 0x20, "uappnd": 0x20, "uappend": 0x20,
	"nodump": 0x40, "noatime": 0x80,
}

func inodeFlags(text string) uint32 {
	flags := uint32(0)
	for name := range strings.SplitSeq(text, ",") {
		flags |= flagNames[name]
	}
	return flags
}

const (
	// maxNames is how many names of users, and of groups, are kept.
	maxNames = 1 << 16
	// maxList is how much of etc/passwd and etc/group is looked at.
	maxList = 1 << 20
	maxName = 256
)

// names are the numbers of users and groups, as far as the archive was read.
type names struct {
	users, groups map[string]uint32
	list          []byte // etc/passwd or etc/group so far
	lenient       bool   // entries of lists with unknown names are passed over
}

// withoutUnknown are the same names for lists of which all that is known counts.
func (n *names) withoutUnknown() *names {
	return &names{users: n.users, groups: n.groups, lenient: true}
}

func newNames() *names {
	return &names{users: map[string]uint32{}, groups: map[string]uint32{}}
}

// learn takes the names of an entry's owners: they are those of the machine where
// the archive was made, as the names in its access control lists are.
func (n *names) learn(h *tar.Header) {
	add(n.users, h.Uname, uint32(h.Uid))
	add(n.groups, h.Gname, uint32(h.Gid))
	n.list = n.list[:0]
}

func add(known map[string]uint32, name string, id uint32) {
	if name == "" || len(name) > maxName || len(known) >= maxNames {
		return
	}
	if _, ok := known[name]; !ok {
		known[strings.Clone(name)] = id
	}
}

// content takes the names from etc/passwd and etc/group.
func (n *names) content(e *tree.Entry, at int64, b []byte) {
	known := n.users
	switch e.Name {
	case "etc/passwd":
	case "etc/group":
		known = n.groups
	default:
		return
	}
	if e.Size > maxList || at != int64(len(n.list)) {
		return
	}
	if n.list = append(n.list, b...); int64(len(n.list)) < e.Size {
		return
	}
	for line := range strings.SplitSeq(string(n.list), "\n") {
		fields := strings.Split(line, ":")
		if len(fields) < 3 {
			continue
		}
		if id, err := strconv.ParseUint(fields[2], 10, 32); err == nil {
			add(known, fields[0], uint32(id))
		}
	}
}
