package guest

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
)

// RenameOptions is what a renaming may do besides.
type RenameOptions struct {
	// Address is the guest's own now. The zero Addr leaves addresses as they are.
	Address netip.Addr
	// HostKeyComments has the comments of the public SSH host keys changed too.
	HostKeyComments bool
}

// Renamed is what a renaming did.
type Renamed struct {
	Changes []string // a line each
	// Found tells whether the old name, or already the new one, stood anywhere.
	// Where it did not, someone called the guest otherwise, and that is left.
	Found bool
}

// RenameHost replaces a host's name by another wherever files of the guest say
// it: hostname of each distribution, /etc/hosts, /etc/mailname, what DHCP clients
// send, cloud-init's configuration and seed, mail servers. The whole name
// becomes the whole new one, and its first label, standing alone, the new first
// label; longer words, names in other domains, paths and references to variables
// are left, and so is what the guest calls itself otherwise. Upper and lower case
// are the same. Files are rewritten in place, and no backup is left. In /etc/hosts
// a line with the name that is the only one with an address of that family gets
// the new address; and the lines of other hosts that happen to have its short
// name stay: those with it alone, where the whole name is at hand, among them.
//
// An invalid name is an error before anything is changed. One file does not keep
// the others from being changed: what is too large or no file is left, which a
// line of the changes says, and those that cannot be read or written are the
// errors, joined.
func (r *Root) RenameHost(oldFQDN, newFQDN string, o RenameOptions) (Renamed, error) {
	for _, name := range []string{oldFQDN, newFQDN} {
		if !isHostName(name) {
			return Renamed{}, fmt.Errorf("cannot rename the guest from %q to %q: %q is no name of a host", oldFQDN, newFQDN, name)
		}
	}
	h := &renaming{root: r, old: oldFQDN, new: newFQDN, address: o.Address.Unmap()}
	h.oldShort, _, _ = strings.Cut(oldFQDN, ".")
	h.newShort, _, _ = strings.Cut(newFQDN, ".")
	h.byItself = h.newShort
	if family := r.Distro().Family; family == RHEL || family == Fedora {
		h.byItself = newFQDN
	}
	for _, place := range namePlaces {
		if place.comment && !o.HostKeyComments || place.orDir && r.isDir(place.pattern) {
			continue
		}
		h.edit(place)
	}
	return h.done, errors.Join(h.failed...)
}

func isHostName(name string) bool { return hostName.MatchString(name) && len(name) <= 253 }

type renaming struct {
	root          *Root
	old, oldShort string
	new, newShort string
	byItself      string // what a guest that used one label is to say where it is all there is
	address       netip.Addr
	done          Renamed
	failed        []error
}

// namePlace is a pattern of files that say the name of their host.
type namePlace struct {
	pattern string
	limit   size.Bytes
	edit    func(h *renaming, text string) string
	orDir   bool // SUSE has a directory there
	comment bool // it is a comment, which means nothing
}

// userDataLimit bounds what is given to cloud-init.
const userDataLimit = 256 * size.KiB

// namePlaces are all of them.
var namePlaces = []namePlace{
	{pattern: hostnameFile, edit: (*renaming).nameLine},
	{pattern: suseHostnameFile, edit: (*renaming).nameLine},
	{pattern: "/etc/mailname", edit: (*renaming).wholeNameLine},
	{pattern: sysconfigNetwork, edit: variables, orDir: true},
	{pattern: openRCHostname, edit: variables},
	{pattern: "/etc/rc.conf", edit: variables},
	{pattern: "/etc/conf.d/net", edit: netifrc},
	{pattern: "/etc/machine-info", edit: (*renaming).machineInfo},
	{pattern: "/etc/network/interfaces", edit: ifupdown},
	{pattern: "/etc/network/interfaces.d/*", edit: ifupdown},
	{pattern: "/etc/sysconfig/network-scripts/ifcfg-*", edit: (*renaming).ifcfg},
	{pattern: "/etc/sysconfig/network/ifcfg-*", edit: variables},
	{pattern: "/etc/sysconfig/network/dhcp", edit: variables},
	{pattern: "/etc/hosts", limit: hostsLimit, edit: (*renaming).hosts},
	{pattern: "/etc/dhclient*.conf", edit: (*renaming).dhclient},
	{pattern: "/etc/dhcp/dhclient*.conf", edit: (*renaming).dhclient},
	{pattern: "/etc/dhcp3/dhclient*.conf", edit: (*renaming).dhclient},
	{pattern: "/etc/dhcpcd.conf", edit: dhcpcd},
	{pattern: "/etc/NetworkManager/system-connections/*", edit: (*renaming).keyfile},
	{pattern: "/etc/systemd/network/*.network", edit: networkd},
	{pattern: "/etc/systemd/network/*.network.d/*.conf", edit: networkd},
	{pattern: "/etc/netplan/*.yaml", edit: (*renaming).yaml},
	{pattern: "/etc/cloud/cloud.cfg", edit: (*renaming).yaml},
	{pattern: CloudConfigDir + "/*.cfg", edit: (*renaming).yaml},
	{pattern: "/var/lib/cloud/seed/nocloud*/meta-data", edit: (*renaming).yaml},
	{pattern: "/var/lib/cloud/seed/nocloud*/network-config", edit: (*renaming).yaml},
	{pattern: "/var/lib/cloud/seed/nocloud*/user-data", limit: userDataLimit, edit: (*renaming).userData},
	{pattern: "/var/lib/cloud/seed/nocloud*/vendor-data", limit: userDataLimit, edit: (*renaming).userData},
	{pattern: "/etc/postfix/main.cf", limit: size.MiB, edit: (*renaming).postfix},
	{pattern: "/etc/exim4/update-exim4.conf.conf", edit: exim},
	{pattern: "/etc/mail/mailname", edit: (*renaming).wholeNameLine},
	{pattern: "/etc/mail/local-host-names", edit: (*renaming).wholeNameLine},
	{pattern: "/etc/nullmailer/me", edit: (*renaming).wholeNameLine},
	{pattern: "/etc/ssmtp/ssmtp.conf", edit: ssmtp},
	{pattern: "/etc/ssh/ssh_host_*.pub", edit: (*renaming).keyComment, comment: true},
}

// What stands before a name, by the syntax of the file.
var (
	variables      = after(`(?m)^[ \t]*(?:export[ \t]+)?(?i:HOSTNAME|DHCP_HOSTNAME|DHCP_FQDN|DHCLIENT_HOSTNAME_OPTION|DHCLIENT6_HOSTNAME_OPTION)=`)
	netifrc        = after(`(?m)^[ \t]*(?:dhcp|dhcpcd|dhclient|udhcpc|pump)_[A-Za-z0-9_]+=`)
	ifupdown       = after(`(?m)^[ \t]*hostname[ \t]`)
	dhcpcd         = after(`(?m)^[ \t]*(?:hostname|clientid)\b`)
	networkManager = after(`(?m)^[ \t]*dhcp-(?:hostname|fqdn)[ \t]*=`)
	networkd       = after(`(?m)^[ \t]*Hostname[ \t]*=`)
	exim           = after(`(?m)^[ \t]*dc_(?:other_hostnames|readhost)=`)
	ssmtp          = after(`(?mi)^[ \t]*hostname[ \t]*=`)
)

// yamlNames are the keys of cloud-init and netplan whose value is a name.
var yamlNames = []string{"local-hostname", "hostname", "fqdn"}

// What of dhclient.conf(5) has a name.
var (
	dhclientVerbs   = []string{"send", "supersede", "default", "prepend", "append"}
	dhclientOptions = []string{"host-name", "fqdn.fqdn", "dhcp-client-identifier"}
)

// after makes an edit that replaces the name in the rest of each line that
// begins as an expression says.
func after(expression string) func(*renaming, string) string {
	begins := regexp.MustCompile(expression)
	return func(h *renaming, text string) string {
		return eachLine(text, func(line string) string {
			at := begins.FindStringIndex(line)
			if at == nil {
				return line
			}
			return line[:at[1]] + h.words(line[at[1]:])
		})
	}
}

// eachLine edits lines, but those that are too long to be about a name.
func eachLine(text string, edit func(line string) string) string {
	var out strings.Builder
	out.Grow(len(text))
	for line := range strings.Lines(text) {
		if len(line) <= maxHostsLine {
			line = edit(line)
		}
		out.WriteString(line)
	}
	return out.String()
}

// edit rewrites what a pattern matches, where that changes it.
func (h *renaming) edit(place namePlace) {
	limit := place.limit
	if limit == 0 {
		limit = releaseLimit
	}
	for file := range h.root.readMatches(place.pattern, limit) {
		if file.err != nil {
			h.leave(place, file.err)
			continue
		}
		text := place.edit(h, file.text)
		if text == file.text {
			continue
		}
		if err := h.root.rewrite(file.name, []byte(file.text), []byte(text)); err != nil {
			h.fail(err)
			continue
		}
		h.done.Changes = append(h.done.Changes, file.name+" says "+h.new)
	}
}

// leave says of a file that it cannot be read. That there is no file is nothing
// to say where a pattern finds other things too.
func (h *renaming) leave(place namePlace, err error) {
	errno := unix.Errno(0)
	switch {
	case isNoFile(err) && strings.Contains(place.pattern, "*"):
	case isNoFile(err) || !errors.As(err, &errno):
		h.done.Changes = append(h.done.Changes, err.Error()+"; it is left as it is")
	default:
		h.fail(err)
	}
}

// maxFailed is how many errors of a renaming are kept.
const maxFailed = 16

func (h *renaming) fail(err error) {
	if len(h.failed) < maxFailed {
		h.failed = append(h.failed, err)
	}
}

// word is a name's characters; what stands between two others is a whole word.
var word = regexp.MustCompile(`[A-Za-z0-9_.-]+`)

// words replaces the name in a text, up to a comment.
func (h *renaming) words(text string) string {
	comment := ""
	if i := strings.Index(text, " #"); i >= 0 {
		text, comment = text[:i], text[i:]
	}
	var out strings.Builder
	end := 0
	for _, at := range word.FindAllStringIndex(text, -1) {
		name := text[at[0]:at[1]]
		if !isOtherWord(text[:at[0]], text[at[1]:]) {
			name = h.newName(name)
		}
		out.WriteString(text[end:at[0]] + name)
		end = at[1]
	}
	return out.String() + text[end:] + comment
}

// isOtherWord tells by what stands around a word that it is none of a name: part
// of a path, the type of a map before one, or a variable's name.
func isOtherWord(before, behind string) bool {
	if strings.HasPrefix(behind, "/") || strings.HasPrefix(behind, ":/") {
		return true
	}
	return slices.ContainsFunc([]string{"/", "$", "${", "$("}, func(end string) bool { return strings.HasSuffix(before, end) })
}

// newName is what a word is to be. It may end in a dot, as names in DNS do.
func (h *renaming) newName(name string) string {
	bare := strings.TrimSuffix(name, ".")
	dot := name[len(bare):]
	switch {
	case strings.EqualFold(bare, h.new) || strings.EqualFold(bare, h.newShort) && !h.isOld(bare):
		h.done.Found = true
		return name
	case !h.isOld(bare):
		return name
	}
	h.done.Found = true
	if strings.EqualFold(bare, h.old) {
		return h.new + dot
	}
	return h.newShort + dot
}

// isOld tells whether a word is the old name or its first label. localhost is
// no host's own name.
func (h *renaming) isOld(name string) bool {
	return !strings.EqualFold(h.oldShort, "localhost") && (strings.EqualFold(name, h.old) || strings.EqualFold(name, h.oldShort))
}

// nameLine edits a file that has nothing but the name. Where one label was the
// whole name it becomes what the distribution keeps there.
func (h *renaming) nameLine(text string) string {
	return h.onlyName(text, h.byItself)
}

// wholeNameLine does so where the whole name belongs.
func (h *renaming) wholeNameLine(text string) string { return h.onlyName(text, h.new) }

func (h *renaming) onlyName(text, byItself string) string {
	return eachLine(text, func(line string) string {
		name := strings.TrimSpace(line)
		if h.old == h.oldShort && h.isOld(name) {
			h.done.Found = true
			return strings.Replace(line, name, byItself, 1)
		}
		if word.FindString(name) != name {
			return line
		}
		return h.words(line)
	})
}

// machineInfo edits machine-info(5), whose PRETTY_HOSTNAME may be any text: only
// where it is the name and nothing else.
func (h *renaming) machineInfo(text string) string {
	return eachLine(text, func(line string) string {
		name, value, _ := strings.Cut(line, "=")
		said := unquote(strings.TrimSpace(value))
		if strings.TrimSpace(name) != "PRETTY_HOSTNAME" || said == "" || word.FindString(said) != said {
			return line
		}
		return name + "=" + h.words(value)
	})
}

// ifcfg edits an interface file of Red Hat's. DHCP_FQDN is for names that have a
// domain.
func (h *renaming) ifcfg(text string) string {
	text = variables(h, text)
	if h.new != h.newShort || !strings.EqualFold(shellVariables(text)["DHCP_FQDN"], h.new) {
		return text
	}
	return setVariable(dropVariable(text, "DHCP_FQDN"), "DHCP_HOSTNAME", h.new)
}

// keyfile edits a connection of NetworkManager, which refuses one whose
// dhcp-fqdn has no domain.
func (h *renaming) keyfile(text string) string {
	text = networkManager(h, text)
	ini := readINI(text)
	if h.new != h.newShort || !strings.EqualFold(ini.value("ipv4", "dhcp-fqdn"), h.new) {
		return text
	}
	ini.drop("ipv4", "dhcp-fqdn")
	ini.set("ipv4", "dhcp-hostname", h.new)
	return ini.String()
}

// dhclient edits the statements of dhclient.conf(5).
func (h *renaming) dhclient(text string) string {
	tokens := dhclientToken.FindAllString(text, -1)
	for n := 0; n < len(tokens); n++ {
		if !slices.Contains(dhclientVerbs, tokens[n]) {
			continue
		}
		option, length := dhclientStatement(tokens[n:], dhclientVerbs)
		if !slices.Contains(dhclientOptions, option) {
			continue
		}
		for i := n + 1; i < n+length; i++ {
			if tokens[i] != option && tokens[i][0] != '#' {
				tokens[i] = h.words(tokens[i])
			}
		}
		n += length - 1
	}
	return strings.Join(tokens, "")
}

// yaml edits the values of keys that have a name.
func (h *renaming) yaml(text string) string {
	lower := strings.ToLower(text)
	if !strings.Contains(lower, strings.ToLower(h.oldShort)) && !strings.Contains(lower, strings.ToLower(h.newShort)) {
		return text // to read it takes much more memory than the text
	}
	return editYAMLScalars(text, yamlNames, func(value string) string {
		if word.FindString(value) != value {
			return value
		}
		return h.newName(value)
	})
}

// userData edits what is given to cloud-init, where that is YAML of its own.
func (h *renaming) userData(text string) string {
	if !strings.HasPrefix(text, "#cloud-config") {
		return text
	}
	return h.yaml(text)
}

// hosts edits hosts(5).
func (h *renaming) hosts(text string) string {
	hasWhole := h.hasWhole(text)
	moving := h.movingLine(text, hasWhole)
	n := 0
	return eachLine(text, func(line string) string {
		n++
		if !h.isOwnLine(line, hasWhole) {
			return line
		}
		pieces := splitFields(line)
		if n == moving {
			pieces[1] = h.address.String()
		}
		return shortEnough(h.hostsLine(pieces), line)
	})
}

// hasWhole tells whether a line has the whole old name, or the new one already.
func (h *renaming) hasWhole(text string) bool {
	for line := range strings.Lines(text) {
		if !isHostsLine(line) {
			continue
		}
		for name := range hostNames(line) {
			if name = strings.TrimSuffix(name, "."); strings.EqualFold(name, h.old) || strings.EqualFold(name, h.new) {
				return true
			}
		}
	}
	return false
}

// movingLine is the number of the line whose address is to be the new one; 0 is
// none, as where several have an address for the name.
func (h *renaming) movingLine(text string, hasWhole bool) int {
	n, found := 0, 0
	for line := range strings.Lines(text) {
		if len(line) > maxHostsLine {
			continue
		}
		n++
		if !h.isOwnLine(line, hasWhole) {
			continue
		}
		addr, err := netip.ParseAddr(hostAddress(line))
		if err != nil || addr.IsLoopback() || !h.address.IsValid() || addr.Is4() != h.address.Is4() {
			continue
		}
		if found != 0 {
			return 0
		}
		found = n
	}
	return found
}

// isOwnLine tells whether a line of hosts(5) has the old name: the whole one, or
// the short one and none of another domain that begins alike. Where some line
// has the whole name, the short one alone may be another host's, unless it is at
// a loopback address.
func (h *renaming) isOwnLine(line string, hasWhole bool) bool {
	if !isHostsLine(line) {
		return false
	}
	whole, short, other := false, false, false
	for name := range hostNames(line) {
		name = strings.TrimSuffix(name, ".")
		label, _, isLong := strings.Cut(name, ".")
		whole = whole || strings.EqualFold(name, h.old)
		short = short || h.isOld(name)
		other = other || isLong && strings.EqualFold(label, h.oldShort) && !strings.EqualFold(name, h.old)
		h.done.Found = h.done.Found || strings.EqualFold(name, h.new) || strings.EqualFold(name, h.newShort)
	}
	if whole || !short || other || !hasWhole {
		return whole || short && !other
	}
	addr, err := netip.ParseAddr(hostAddress(line))
	return err == nil && addr.IsLoopback()
}

// hostsLine replaces the names in a line, each said once. Where the old name had
// one label and the new one has more, both forms of it are there, the whole one
// first.
func (h *renaming) hostsLine(pieces []string) string {
	var out strings.Builder
	out.WriteString(pieces[0] + pieces[1])
	seen := map[string]bool{}
	i := 3
	for ; i < len(pieces) && !strings.HasPrefix(pieces[i], "#"); i += 2 {
		names := []string{h.newName(pieces[i])}
		if h.old == h.oldShort && h.isOld(pieces[i]) && h.new != h.newShort {
			names = []string{h.new, h.newShort}
		}
		for _, name := range names {
			if !seen[name] {
				out.WriteString(pieces[i-1] + name)
			}
			seen[name] = true
		}
	}
	return out.String() + strings.Join(pieces[i-1:], "")
}

// postfixNames are the parameters of main.cf(5) that may have the host's name.
var postfixNames = []string{"myhostname", "mydestination", "myorigin", "smtp_helo_name"}

// postfix edits main.cf, in which a line that begins with a blank goes on with
// the one before it; comments and empty lines in between do not count.
func (h *renaming) postfix(text string) string {
	ours := false
	return eachLine(text, func(line string) string {
		trimmed := strings.TrimSpace(line)
		if trimmed == "" || trimmed[0] == '#' {
			return line
		}
		if line[0] != ' ' && line[0] != '\t' {
			name, value, ok := strings.Cut(line, "=")
			ours = ok && slices.Contains(postfixNames, strings.TrimSpace(name))
			if ours {
				return name + "=" + h.words(value)
			}
			return line
		}
		if ours {
			return h.words(line)
		}
		return line
	})
}

// keyComment edits the last field of a public key, USER@HOST.
func (h *renaming) keyComment(text string) string {
	return eachLine(text, func(line string) string {
		if at := strings.LastIndexByte(line, '@'); at > 0 && strings.Count(line[:at], " ") >= 2 {
			return line[:at] + h.words(line[at:])
		}
		return line
	})
}
