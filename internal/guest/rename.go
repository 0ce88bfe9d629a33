package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"regexp"
	"slices"
	"strings"

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
// send, cloud-init's configuration and seed, Postfix and Exim. The whole name
// becomes the whole new one, and its first label, standing alone, the new first
// label; longer words and names in other domains are left, and so is what the
// guest calls itself otherwise. Upper and lower case are the same. Files are
// rewritten in place, and no backup is left. In /etc/hosts a line with the name
// that is the only one with an address of that family gets the new address; and
// the lines of other hosts that happen to have its short name stay.
//
// An invalid name is an error before anything is changed. What was done is
// returned also where an error ended it.
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
		if err := h.edit(place.pattern, place.limit, place.edit); err != nil {
			return h.done, err
		}
	}
	return h.done, nil
}

func isHostName(name string) bool { return hostName.MatchString(name) && len(name) <= 253 }

type renaming struct {
	root          *Root
	old, oldShort string
	new, newShort string
	byItself      string // what a guest that used one label is to say where it is all there is
	address       netip.Addr
	done          Renamed
}

// namePlaces are the files that say the name of their host.
var namePlaces = []struct {
	pattern string
	limit   size.Bytes
	edit    func(h *renaming, text string) string
	orDir   bool // SUSE has a directory there
	comment bool // it is a comment, which means nothing
}{
	{pattern: hostnameFile, edit: (*renaming).nameLine},
	{pattern: suseHostnameFile, edit: (*renaming).nameLine},
	{pattern: "/etc/mailname", edit: (*renaming).wholeNameLine},
	{pattern: sysconfigNetwork, edit: variables, orDir: true},
	{pattern: openRCHostname, edit: variables},
	{pattern: "/etc/rc.conf", edit: variables},
	{pattern: "/etc/machine-info", edit: variables},
	{pattern: "/etc/sysconfig/network-scripts/ifcfg-*", edit: variables},
	{pattern: "/etc/sysconfig/network/ifcfg-*", edit: variables},
	{pattern: "/etc/sysconfig/network/dhcp", edit: variables},
	{pattern: "/etc/hosts", limit: hostsLimit, edit: (*renaming).hosts},
	{pattern: "/etc/dhclient*.conf", edit: dhclient},
	{pattern: "/etc/dhcp/dhclient*.conf", edit: dhclient},
	{pattern: "/etc/dhcp3/dhclient*.conf", edit: dhclient},
	{pattern: "/etc/dhcpcd.conf", edit: dhcpcd},
	{pattern: "/etc/NetworkManager/system-connections/*", edit: networkManager},
	{pattern: "/etc/systemd/network/*.network", edit: networkd},
	{pattern: "/etc/systemd/network/*.network.d/*.conf", edit: networkd},
	{pattern: "/etc/netplan/*.yaml", edit: yamlNames},
	{pattern: "/etc/cloud/cloud.cfg", edit: yamlNames},
	{pattern: CloudConfigDir + "/*.cfg", edit: yamlNames},
	{pattern: "/var/lib/cloud/seed/nocloud*/meta-data", edit: yamlNames},
	{pattern: "/etc/postfix/main.cf", limit: size.MiB, edit: (*renaming).postfix},
	{pattern: "/etc/exim4/update-exim4.conf.conf", edit: exim},
	{pattern: "/etc/ssh/ssh_host_*.pub", edit: (*renaming).keyComment, comment: true},
}

// What stands before a name, by the syntax of the file.
var (
	variables      = after(`(?m)^[ \t]*(?:export[ \t]+)?(?i:HOSTNAME|DHCP_HOSTNAME|DHCP_FQDN|DHCLIENT_HOSTNAME_OPTION|DHCLIENT6_HOSTNAME_OPTION|PRETTY_HOSTNAME)=`)
	dhclient       = after(`(?m)^[^#\n]*?\b(?:send|supersede|default|prepend|append)[ \t]+(?:host-name|fqdn\.fqdn|dhcp-client-identifier)\b`)
	dhcpcd         = after(`(?m)^[ \t]*(?:hostname|clientid)\b`)
	networkManager = after(`(?m)^[ \t]*dhcp-(?:hostname|fqdn)[ \t]*=`)
	networkd       = after(`(?m)^[ \t]*Hostname[ \t]*=`)
	yamlNames      = after(`(?m)^(?:[^#\n]*[\s{,'"])?(?:local-hostname|hostname|fqdn)["']?[ \t]*:`)
	exim           = after(`(?m)^[ \t]*dc_(?:other_hostnames|readhost)=`)
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
	for line := range strings.Lines(text) {
		if len(line) <= maxHostsLine {
			line = edit(line)
		}
		out.WriteString(line)
	}
	return out.String()
}

// edit rewrites what a pattern matches, where that changes it. A file whose
// place is fixed must be one if it is there.
func (h *renaming) edit(pattern string, limit size.Bytes, edit func(*renaming, string) string) error {
	if limit == 0 {
		limit = releaseLimit
	}
	isPattern := strings.Contains(pattern, "*")
	for _, name := range h.root.Glob(pattern) {
		old, err := h.root.ReadFile(name, limit)
		if errors.Is(err, fs.ErrNotExist) || err != nil && isPattern {
			continue
		}
		if err != nil {
			return err
		}
		text := edit(h, string(old))
		if text == string(old) {
			continue
		}
		if err := h.root.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
		h.done.Changes = append(h.done.Changes, name+" says "+h.new)
	}
	return nil
}

// word is a name's characters; what stands between two others is a whole word.
var word = regexp.MustCompile(`[A-Za-z0-9_.-]+`)

// words replaces the name in a text, up to a comment.
func (h *renaming) words(text string) string {
	comment := ""
	if i := strings.Index(text, " #"); i >= 0 {
		text, comment = text[:i], text[i:]
	}
	return word.ReplaceAllStringFunc(text, h.newName) + comment
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

// hosts edits hosts(5).
func (h *renaming) hosts(text string) string {
	moving := h.movingLine(text)
	n := 0
	return eachLine(text, func(line string) string {
		n++
		pieces := splitFields(line)
		if !h.isOwnLine(pieces) {
			return line
		}
		if n == moving {
			pieces[1] = h.address.String()
		}
		return h.hostsLine(pieces)
	})
}

// movingLine is the number of the line whose address is to be the new one; 0 is
// none, as where several have an address for the name.
func (h *renaming) movingLine(text string) int {
	n, found := 0, 0
	for line := range strings.Lines(text) {
		if len(line) > maxHostsLine {
			continue
		}
		n++
		pieces := splitFields(line)
		if !h.isOwnLine(pieces) {
			continue
		}
		addr, err := netip.ParseAddr(pieces[1])
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
// the short one and none of another domain that begins alike.
func (h *renaming) isOwnLine(pieces []string) bool {
	if !isHostsLine(pieces) {
		return false
	}
	whole, short, other := false, false, false
	for i := 3; i < len(pieces) && !strings.HasPrefix(pieces[i], "#"); i += 2 {
		name := pieces[i]
		label, _, isLong := strings.Cut(name, ".")
		whole = whole || strings.EqualFold(name, h.old)
		short = short || h.isOld(name)
		other = other || isLong && strings.EqualFold(label, h.oldShort) && !strings.EqualFold(name, h.old)
		h.done.Found = h.done.Found || strings.EqualFold(name, h.new) || strings.EqualFold(name, h.newShort)
	}
	return whole || short && !other
}

// hostsLine replaces the names in a line, each said once. Where the old name had
// one label and the new one has more, both forms of it are there, the whole one
// first.
func (h *renaming) hostsLine(pieces []string) string {
	out, seen := pieces[0]+pieces[1], map[string]bool{}
	i := 3
	for ; i < len(pieces) && !strings.HasPrefix(pieces[i], "#"); i += 2 {
		names := []string{h.newName(pieces[i])}
		if h.old == h.oldShort && h.isOld(pieces[i]) && h.new != h.newShort {
			names = []string{h.new, h.newShort}
		}
		for _, name := range names {
			if !seen[name] {
				out += pieces[i-1] + name
			}
			seen[name] = true
		}
	}
	return out + strings.Join(pieces[i-1:], "")
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
