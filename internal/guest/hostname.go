package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"ganeti-instance-image/internal/size"
)

// hostName is what RFC 1123 lets a host be called, and "_", which Ganeti takes.
var hostName = regexp.MustCompile(`^` + hostLabel + `(\.` + hostLabel + `)*$`)

const hostLabel = `[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?`

// SetHostname gives the guest its name, where its distribution keeps it:
// /etc/hostname, and /etc/HOSTNAME, HOSTNAME= of /etc/sysconfig/network and
// hostname= of /etc/conf.d/hostname where those are what is used. RHEL and
// Fedora get the whole name there, the others the first label of it, as their
// installers and cloud-init do. In /etc/hosts the names the image had give way
// to the new one, which resolves to ip, or where that is the zero Addr, as with
// DHCP, to 127.0.1.1; /etc/mailname, if there is one, gets the whole name.
//
// What was changed is returned, a line a change.
func (r *Root) SetHostname(fqdn string, ip netip.Addr) ([]string, error) {
	if !isHostName(fqdn) {
		return nil, fmt.Errorf("cannot name the guest %q: that is no name of a host", fqdn)
	}
	short, _, _ := strings.Cut(fqdn, ".")
	h := &naming{root: r, fqdn: fqdn, short: short, name: short, ip: ip, old: r.ownNames()}
	if family := r.Distro().Family; family == RHEL || family == Fedora {
		h.name = fqdn
	}
	for _, step := range []func() error{h.nameFiles, h.sysconfig, h.openRC, h.interfaces, h.hosts, h.mailname} {
		if err := step(); err != nil {
			return h.changes, err
		}
	}
	return h.changes, nil
}

type naming struct {
	root        *Root
	fqdn, short string
	name        string // what the guest calls itself: one of the two
	ip          netip.Addr
	old         []string // what it called itself, each in both forms
	changes     []string
}

// Where names are kept.
const (
	hostnameFile     = "/etc/hostname"
	suseHostnameFile = "/etc/HOSTNAME"
	sysconfigNetwork = "/etc/sysconfig/network"
	openRCHostname   = "/etc/conf.d/hostname"
)

// ownNames are the names the image's files give the guest, without those that
// stand for any host.
func (r *Root) ownNames() []string {
	var said []string
	for _, file := range []string{hostnameFile, suseHostnameFile} {
		text, err := r.ReadFile(file, releaseLimit)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				said = append(said, line)
				break
			}
		}
	}
	for _, v := range []struct{ file, name string }{{sysconfigNetwork, "HOSTNAME"}, {openRCHostname, "hostname"}} {
		if text, err := r.ReadFile(v.file, releaseLimit); err == nil {
			said = append(said, shellVariables(string(text))[v.name])
		}
	}
	var names []string
	for _, name := range said {
		short, _, _ := strings.Cut(name, ".")
		if hostName.MatchString(name) && !strings.HasPrefix(name, "localhost") {
			names = append(names, name, short)
		}
	}
	return names
}

// put writes a file unless it says so already.
func (h *naming) put(file, text string) error {
	old, err := h.root.ReadFile(file, hostsLimit)
	switch {
	case err == nil && string(old) == text:
		return nil
	case err == nil:
		err = h.root.rewrite(file, old, []byte(text))
	default:
		err = h.root.WriteFile(file, []byte(text), 0o644)
	}
	if err != nil {
		return err
	}
	h.changes = append(h.changes, file+" says "+h.fqdn)
	return nil
}

// nameFiles writes /etc/hostname, or what was there before it.
func (h *naming) nameFiles() error {
	old, err := h.root.Lstat(suseHostnameFile)
	hasOld := err == nil && old.IsRegular() // it may be a link to the other
	if hasOld {
		if err := h.put(suseHostnameFile, h.fqdn+"\n"); err != nil {
			return err
		}
	}
	_, err = h.root.Lstat(hostnameFile)
	if err != nil && (hasOld || h.root.isBeforeSystemd()) {
		return nil
	}
	return h.put(hostnameFile, h.name+"\n")
}

// isBeforeSystemd tells whether the guest is a RHEL up to 6, whose name is in
// /etc/sysconfig/network.
func (r *Root) isBeforeSystemd() bool {
	return r.Distro().Family == RHEL && !r.usesSystemd()
}

// sysconfig sets the name in a file of Red Hat's. SUSE has a directory there.
func (h *naming) sysconfig() error {
	if h.root.isDir(sysconfigNetwork) {
		return nil
	}
	text, err := h.root.ReadFile(sysconfigNetwork, releaseLimit)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil || h.root.isBeforeSystemd() && h.root.isDir("/etc/sysconfig") {
		return h.assign(sysconfigNetwork, string(text), "HOSTNAME", h.fqdn, h.root.isBeforeSystemd())
	}
	return nil
}

func (h *naming) openRC() error {
	text, err := h.root.ReadFile(openRCHostname, releaseLimit)
	if err != nil {
		return nil // none, or none that OpenRC could read
	}
	return h.assign(openRCHostname, string(text), "hostname", `"`+h.name+`"`, false)
}

// assign sets a shell's variable in a file where that has it, or else, if asked
// to, adds it.
func (h *naming) assign(file, text, name, value string, add bool) error {
	var out strings.Builder
	found := false
	for line := range strings.Lines(text) {
		said, _, isAssignment := strings.Cut(strings.TrimSpace(line), "=")
		if isAssignment && said == name {
			line = name + "=" + value + "\n"
			found = true
		}
		out.WriteString(line)
	}
	if !found && !add {
		return nil
	}
	if !found {
		if text != "" && !strings.HasSuffix(text, "\n") {
			out.WriteString("\n")
		}
		out.WriteString(name + "=" + value + "\n")
	}
	return h.put(file, out.String())
}

// sentNames are the variables of Red Hat's interface files that have a name.
var sentNames = []string{"HOSTNAME", "DHCP_HOSTNAME", "DHCP_FQDN"}

// interfaces takes the old name out of Red Hat's interface files, which set it
// when an interface comes up, or send it to the DHCP server.
func (h *naming) interfaces() error {
	for file := range h.root.readMatches(sysconfigNetwork+"-scripts/ifcfg-*", releaseLimit) {
		if file.err != nil {
			continue
		}
		var out strings.Builder
		for line := range strings.Lines(file.text) {
			if name, _, _ := strings.Cut(strings.TrimSpace(line), "="); !slices.Contains(sentNames, name) {
				out.WriteString(line)
			}
		}
		if out.Len() == len(file.text) {
			continue
		}
		if err := h.root.rewrite(file.name, []byte(file.text), []byte(out.String())); err != nil {
			return err
		}
		h.changes = append(h.changes, file.name+" says no name any more")
	}
	return nil
}

func (h *naming) mailname() error {
	if !h.root.isFile("/etc/mailname") {
		return nil
	}
	return h.put("/etc/mailname", h.fqdn+"\n")
}

// hostsLimit bounds /etc/hosts, which some fill with lists of unwanted sites.
const hostsLimit = 8 * size.MiB

// maxHostsLine is more than a line about one host has, in bytes; a longer one is
// left alone. maxOwnLines is more than a guest has lines about itself; those
// behind are left.
const (
	maxHostsLine = 4096
	maxOwnLines  = 1024
)

// noHosts is what a guest without /etc/hosts needs of it.
const noHosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"

func (h *naming) hosts() error {
	text, err := h.root.ReadFile("/etc/hosts", hostsLimit)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = []byte(noHosts), nil
	}
	if err != nil {
		return err
	}
	return h.put("/etc/hosts", h.editHosts(string(text)))
}

// editHosts replaces the old names, name by name, and the address they were at,
// and adds a line where none has the new name in both forms.
func (h *naming) editHosts(text string) string {
	var out strings.Builder
	out.Grow(len(text))
	own := map[string]bool{}
	has, loopback := false, 0
	for line := range strings.Lines(text) {
		if isHostsLine(line) && len(own) < maxOwnLines && h.isOwn(line) {
			line = shortEnough(h.editHostsLine(splitFields(line)), line)
			has = has || h.hasBoth(line)
			same := strings.TrimSuffix(line, "\n") // the last may get one yet
			if own[same] {
				continue
			}
			own[same] = true
		}
		out.WriteString(line)
		if strings.HasPrefix(strings.TrimLeft(line, blanks), "127.") && len(line) <= maxHostsLine {
			loopback = out.Len()
		}
	}
	if has {
		return out.String()
	}
	before, behind := out.String()[:loopback], out.String()[loopback:]
	return withNewline(before) + h.address().String() + "\t" + strings.Join(h.names(), " ") + "\n" + behind
}

// shortEnough is a line of hosts(5) as it was edited, or as it was where it
// would be too long to be found again.
func shortEnough(edited, line string) string {
	if len(edited) > maxHostsLine {
		return line
	}
	return edited
}

// blanks separate the fields of hosts(5).
const blanks = " \t\r\n"

// isHostsLine tells whether a line of hosts(5) has an address and a name.
func isHostsLine(line string) bool {
	if len(line) > maxHostsLine {
		return false
	}
	for range hostNames(line) {
		return true
	}
	return false
}

// hostNames yields the names of a line of hosts(5).
func hostNames(line string) iter.Seq[string] {
	return func(yield func(string) bool) {
		n := 0
		for field := range strings.FieldsFuncSeq(line, isBlank) {
			if field[0] == '#' || n > 0 && !yield(field) {
				return
			}
			n++
		}
	}
}

func isBlank(c rune) bool { return strings.ContainsRune(blanks, c) }

// hostAddress is the first field of a line of hosts(5).
func hostAddress(line string) string {
	line = strings.TrimLeft(line, blanks)
	if i := strings.IndexAny(line, blanks); i >= 0 {
		return line[:i]
	}
	return line
}

// hasBoth tells whether a line has the whole new name and its first label.
func (h *naming) hasBoth(line string) bool {
	names := slices.Collect(hostNames(line))
	return slices.Contains(names, h.fqdn) && slices.Contains(names, h.short)
}

func (h *naming) names() []string {
	if h.short == h.fqdn {
		return []string{h.fqdn}
	}
	return []string{h.fqdn, h.short}
}

// debianAddress is where Debian has the host's own name.
var debianAddress = netip.MustParseAddr("127.0.1.1")

func (h *naming) address() netip.Addr {
	if h.ip.IsValid() {
		return h.ip
	}
	return debianAddress
}

// isOwn tells whether a line of hosts(5) is about the guest itself.
func (h *naming) isOwn(line string) bool {
	if hostAddress(line) == debianAddress.String() {
		return true
	}
	for name := range hostNames(line) {
		if name = strings.TrimSuffix(name, "."); slices.Contains(h.old, name) || name == h.fqdn {
			return true
		}
	}
	return false
}

// editHostsLine replaces the old names in a line. Unless it is localhost's, its
// address is the guest's own, and the whole name is there and first, as it must
// be to be found from the address. Behind the whole name comes its first label.
func (h *naming) editHostsLine(pieces []string) string {
	addr, err := netip.ParseAddr(pieces[1])
	isLocal := err == nil && addr.IsLoopback() && addr != debianAddress
	if !isLocal {
		pieces[1] = h.address().String()
	}
	var names, separators []string
	seen := map[string]bool{}
	add := func(separator, name string) {
		if !seen[name] {
			names, separators = append(names, name), append(separators, separator)
		}
		seen[name] = true
	}
	if !isLocal {
		add(pieces[2], h.fqdn)
	}
	i := 3
	for ; i < len(pieces) && !strings.HasPrefix(pieces[i], "#"); i += 2 {
		add(pieces[i-1], h.newName(pieces[i]))
	}
	if at := slices.Index(names, h.fqdn); at >= 0 && !seen[h.short] {
		names, separators = slices.Insert(names, at+1, h.short), slices.Insert(separators, at+1, " ")
	}
	var out strings.Builder
	out.WriteString(pieces[0] + pieces[1])
	for n, name := range names {
		out.WriteString(separators[n] + name)
	}
	return out.String() + strings.Join(pieces[i-1:], "")
}

// newName is what a name in a line about the guest is to be.
func (h *naming) newName(name string) string {
	bare := strings.TrimSuffix(name, ".")
	switch label, _, isLong := strings.Cut(bare, "."); {
	case bare == h.fqdn:
		return bare
	case !slices.Contains(h.old, label):
		return name
	case isLong:
		return h.fqdn
	}
	return h.short
}
