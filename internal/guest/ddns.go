package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"ganeti-instance-image/internal/size"
)

// clientLimit bounds a configuration file of a DHCP client.
const clientLimit = 256 * size.KiB

// SendHostname has every DHCP client of the guest that is configured in a file
// send the first label of a name to the server (option 12, RFC 2132), which may
// enter it in its DNS. A name that was sent before gives way to it, so that it
// serves a rename as well, and nothing is changed where all is said already.
//
// It is written where each client looks: dhclient.conf, dhcpcd.conf, DHCP
// stanzas of /etc/network/interfaces, DHCP_HOSTNAME of Red Hat's ifcfg files,
// DHCLIENT_HOSTNAME_OPTION of wicked, keyfiles of NetworkManager, a drop-in for
// each file of systemd-networkd, and a file of ours for netplan. A client
// without any such file sends, in all of these but dhclient, the name that the
// guest has.
//
// What was changed is returned, a line a change.
func (r *Root) SendHostname(name string) ([]string, error) {
	if !hostName.MatchString(name) || len(name) > 253 {
		return nil, fmt.Errorf("cannot send the name %q to the DHCP server: that is no name of a host", name)
	}
	short, _, _ := strings.Cut(name, ".")
	d := &sending{root: r, name: short, fqdn: name}
	for _, client := range dhcpClients {
		if err := d.edit(client); err != nil {
			return d.changes, err
		}
	}
	return d.changes, errors.Join(d.newDHClient(), d.networkd(), d.netplan())
}

// sending is the work of SendHostname.
type sending struct {
	root       *Root
	name, fqdn string // the first label, and all of it
	changes    []string
}

// dhcpClients are the files of clients that are edited, as path.Match patterns.
var dhcpClients = []dhcpClient{
	{dhclientFiles, (*sending).dhclientConf},
	{[]string{"/etc/dhcpcd.conf"}, (*sending).dhcpcdConf},
	{[]string{"/etc/network/interfaces", "/etc/network/interfaces.d/*"}, (*sending).interfaces},
	{[]string{sysconfigNetwork + "-scripts/ifcfg-*"}, (*sending).ifcfg},
	{[]string{sysconfigNetwork + "/dhcp"}, (*sending).wicked},
	{[]string{sysconfigNetwork + "/ifcfg-*"}, (*sending).wickedInterface},
	{[]string{"/etc/NetworkManager/system-connections/*"}, (*sending).keyfile},
}

type dhcpClient struct {
	patterns []string
	edit     func(*sending, string) string
}

func (d *sending) edit(client dhcpClient) error {
	for _, pattern := range client.patterns {
		for _, file := range d.root.Glob(pattern) {
			if !d.root.isFile(file) {
				continue // a client could not read it either
			}
			text, err := d.root.ReadFile(file, clientLimit)
			if err != nil {
				return err
			}
			if err := d.put(file, client.edit(d, string(text)), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// put writes a file unless it says so already.
func (d *sending) put(file, text string, mode fs.FileMode) error {
	old, err := d.root.ReadFile(file, clientLimit)
	if err == nil && string(old) == text {
		return nil
	}
	if err := d.root.WriteFile(file, []byte(text), mode); err != nil {
		return err
	}
	d.changes = append(d.changes, file+" has the name "+d.name+" sent to the DHCP server")
	return nil
}

var dhclientFiles = []string{"/etc/dhcp/dhclient*.conf", "/etc/dhcp3/dhclient*.conf", "/etc/dhclient*.conf"}

// sent is a statement of dhclient.conf(5) that sends a name.
var sent = regexp.MustCompile(`\bsend[ \t]+(host-name|fqdn\.fqdn)\b(?:"[^"\n]*"|[^;"#\n])*;`)

// dhclientConf rewrites what sends a name, and sends one where nothing did for
// all interfaces. An option 81, where one is sent, gets the whole name.
func (d *sending) dhclientConf(text string) string {
	var lines []string
	said := map[string]bool{}
	for line := range strings.Lines(text) {
		edited := d.sentLine(line)
		isGlobal := strings.HasPrefix(edited, "send ") && sent.MatchString(edited)
		if isGlobal && said[strings.TrimSpace(edited)] {
			continue // an older hook added one each time it ran
		}
		said[strings.TrimSpace(edited)] = isGlobal
		lines = append(lines, edited)
	}
	text = strings.Join(lines, "")
	if statement := d.sentHostName(); !said[statement] {
		return withNewline(text) + statement + "\n"
	}
	return text
}

func (d *sending) sentHostName() string { return `send host-name "` + d.name + `";` }

// sentLine rewrites the statements of a line, up to its comment.
func (d *sending) sentLine(line string) string {
	quoted := false
	end := strings.IndexFunc(line, func(c rune) bool {
		if c == '"' {
			quoted = !quoted
		}
		return c == '#' && !quoted
	})
	if end < 0 {
		end = len(line)
	}
	return sent.ReplaceAllStringFunc(line[:end], func(statement string) string {
		if strings.Contains(statement, "fqdn.fqdn") {
			return `send fqdn.fqdn "` + d.fqdn + `.";`
		}
		return d.sentHostName()
	}) + line[end:]
}

func withNewline(text string) string {
	if text == "" || strings.HasSuffix(text, "\n") {
		return text
	}
	return text + "\n"
}

// newDHClient writes a dhclient.conf where the program is and none of its files:
// it sends no name by itself.
func (d *sending) newDHClient() error {
	programs := []string{"/sbin/dhclient", "/usr/sbin/dhclient"}
	if !slices.ContainsFunc(programs, d.root.isFile) || !d.root.isDir("/etc/dhcp") {
		return nil
	}
	for _, pattern := range dhclientFiles {
		if len(d.root.Glob(pattern)) > 0 {
			return nil
		}
	}
	return d.put("/etc/dhcp/dhclient.conf", d.dhclientConf(""), 0o644)
}

// dhcpcdBlocks begin a part of dhcpcd.conf(5) that holds for some networks only.
var dhcpcdBlocks = []string{"interface", "ssid", "profile"}

// dhcpcdConf has one line for all interfaces, and where a part of the file says
// another name, this one.
func (d *sending) dhcpcdConf(text string) string {
	var global, blocks []string
	inBlock, found := false, false
	for line := range strings.Lines(withNewline(text)) {
		words := strings.Fields(line)
		isHostname := len(words) > 0 && words[0] == "hostname"
		inBlock = inBlock || len(words) > 0 && slices.Contains(dhcpcdBlocks, words[0])
		switch {
		case isHostname && !inBlock && found:
			continue
		case isHostname:
			line = line[:strings.Index(line, "hostname")] + "hostname " + d.name + "\n"
			found = found || !inBlock
		}
		if inBlock {
			blocks = append(blocks, line)
		} else {
			global = append(global, line)
		}
	}
	if !found {
		global = append(global, "hostname "+d.name+"\n")
	}
	return strings.Join(append(global, blocks...), "")
}

// interfaces gives each DHCP stanza of interfaces(5) the option hostname, which
// is for dhcpcd and udhcpc; dhclient has its own file.
func (d *sending) interfaces(text string) string {
	var out, stanza []string
	continued := false
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if !continued && len(words) > 0 && beginsStanza(words[0]) {
			out = append(out, d.stanza(stanza)...)
			stanza = nil
		}
		stanza = append(stanza, line)
		continued = strings.HasSuffix(strings.TrimRight(line, "\n"), "\\")
	}
	return strings.Join(append(out, d.stanza(stanza)...), "")
}

func beginsStanza(word string) bool {
	keywords := []string{"iface", "mapping", "auto", "source", "source-directory", "no-auto-down", "no-scripts", "rename", "template"}
	return slices.Contains(keywords, word) || strings.HasPrefix(word, "allow-")
}

// stanza edits the lines from one keyword to the next.
func (d *sending) stanza(lines []string) []string {
	if len(lines) == 0 || !isDHCPStanza(lines) {
		return lines
	}
	head := 1
	for head < len(lines) && strings.HasSuffix(lines[head-1], "\\\n") {
		head++
	}
	rest := slices.DeleteFunc(slices.Clone(lines[head:]), func(line string) bool {
		words := strings.Fields(line)
		return len(words) > 0 && words[0] == "hostname"
	})
	head--
	return slices.Concat(lines[:head], []string{withNewline(lines[head]), "    hostname " + d.name + "\n"}, rest)
}

// isDHCPStanza tells whether lines ask for DHCP: "iface eth0 inet dhcp", or
// "use dhcp" in ifupdown-ng.
func isDHCPStanza(lines []string) bool {
	words := strings.Fields(lines[0])
	if len(words) == 0 || words[0] != "iface" {
		return false
	}
	if len(words) >= 4 {
		return words[2] == "inet" && words[3] == "dhcp"
	}
	return slices.ContainsFunc(lines, func(line string) bool { return slices.Equal(strings.Fields(line), []string{"use", "dhcp"}) })
}

// ifcfg edits an interface file of Red Hat's network-scripts.
func (d *sending) ifcfg(text string) string {
	said := shellVariables(text)
	if protocol := strings.ToLower(said["BOOTPROTO"]); protocol != "dhcp" && protocol != "bootp" {
		return text
	}
	if _, ok := said["DHCP_SEND_HOSTNAME"]; ok {
		text = setVariable(text, "DHCP_SEND_HOSTNAME", "yes")
	}
	return setVariable(text, "DHCP_HOSTNAME", d.name)
}

const wickedOption = "DHCLIENT_HOSTNAME_OPTION"

func (d *sending) wicked(text string) string { return setVariable(text, wickedOption, `"`+d.name+`"`) }

// wickedInterface edits an interface's file where it says otherwise than the
// file for all.
func (d *sending) wickedInterface(text string) string {
	if _, ok := shellVariables(text)[wickedOption]; !ok {
		return text
	}
	return d.wicked(text)
}

// setVariable sets a shell's variable in a file, where that has it or at its end.
func setVariable(text, name, value string) string {
	var lines []string
	found := false
	for line := range strings.Lines(withNewline(text)) {
		said, _, isAssignment := strings.Cut(strings.TrimSpace(line), "=")
		if isAssignment && said == name {
			if found {
				continue
			}
			found, line = true, name+"="+value+"\n"
		}
		lines = append(lines, line)
	}
	if !found {
		lines = append(lines, name+"="+value+"\n")
	}
	return strings.Join(lines, "")
}

// keyfile edits a connection of NetworkManager: nm-settings-keyfile(5).
func (d *sending) keyfile(text string) string {
	ini := readINI(text)
	if ini.value("ipv4", "method") != "auto" {
		return text
	}
	ini.set("ipv4", "dhcp-hostname", d.name)
	for _, section := range []string{"ipv4", "ipv6"} {
		if ini.value(section, "dhcp-send-hostname") != "" {
			ini.set(section, "dhcp-send-hostname", "true")
		}
	}
	if ini.value("ipv6", "dhcp-hostname") != "" {
		ini.set("ipv6", "dhcp-hostname", d.name)
	}
	return ini.String()
}

// iniFile is the lines of a file of sections of keys.
type iniFile struct {
	lines    []string
	sections []string // of each line
}

func readINI(text string) *iniFile {
	ini := &iniFile{}
	section := ""
	for line := range strings.Lines(text) {
		if trimmed := strings.TrimSpace(line); strings.HasPrefix(trimmed, "[") && strings.HasSuffix(trimmed, "]") {
			section = trimmed[1 : len(trimmed)-1]
		}
		ini.lines = append(ini.lines, line)
		ini.sections = append(ini.sections, section)
	}
	return ini
}

// find returns the last line that sets a key, or -1; the last one counts.
func (i *iniFile) find(section, key string) (line int, value string) {
	for n, text := range slices.Backward(i.lines) {
		name, value, ok := strings.Cut(text, "=")
		if ok && i.sections[n] == section && strings.TrimSpace(name) == key {
			return n, strings.TrimSpace(value)
		}
	}
	return -1, ""
}

func (i *iniFile) value(section, key string) string {
	_, value := i.find(section, key)
	return value
}

// set gives a key of a section that is there its value.
func (i *iniFile) set(section, key, value string) {
	line := key + "=" + value + "\n"
	if n, old := i.find(section, key); n >= 0 {
		if old != value {
			i.lines[n] = line
		}
		return
	}
	n := slices.Index(i.sections, section)
	i.lines[n] = withNewline(i.lines[n])
	i.lines = slices.Insert(i.lines, n+1, line)
	i.sections = slices.Insert(i.sections, n+1, section)
}

func (i *iniFile) String() string { return strings.Join(i.lines, "") }

// networkdDropIn is read after the file it belongs to. Versions before 243 know
// the section by this name only; later ones take it still.
const networkdDropIn = "# Written by ganeti-instance-image: the hook zz_ddns.\n[DHCP]\nSendHostname=yes\nHostname="

// networkd has each file of systemd.network(5) in /etc that asks for DHCPv4 send
// the name.
func (d *sending) networkd() error {
	for _, file := range d.root.Glob("/etc/systemd/network/*.network") {
		if !d.root.isFile(file) {
			continue // a link to /dev/null masks one
		}
		text, err := d.root.ReadFile(file, clientLimit)
		if err != nil {
			return err
		}
		if !slices.Contains([]string{"yes", "true", "on", "1", "y", "t", "both", "ipv4", "v4"}, strings.ToLower(readINI(string(text)).value("Network", "DHCP"))) {
			continue
		}
		if err := d.root.MkdirAll(file+".d", 0o755); err != nil {
			return err
		}
		if err := d.put(file+".d/90-ganeti-ddns.conf", networkdDropIn+d.name+"\n", 0o644); err != nil {
			return err
		}
	}
	return nil
}

// ddnsNetplan comes after any other file of netplan, by its name, and adds to
// the interfaces that those define.
const ddnsNetplan = "/etc/netplan/zz-ganeti-ddns.yaml"

// netplanKinds are those of netplan's kinds of interfaces that may use DHCP.
var netplanKinds = []string{"ethernets", "wifis", "bonds", "bridges", "vlans"}

// netplanInterface is what is said of an interface.
type netplanInterface struct {
	dhcp4, dhcp6 bool
}

func (d *sending) netplan() error {
	said := map[string]any{"version": 2}
	for _, kind := range netplanKinds {
		if overrides := d.overrides(kind); len(overrides) > 0 {
			said[kind] = overrides
		}
	}
	if len(said) == 1 {
		return d.root.Remove(ddnsNetplan)
	}
	text, err := yaml.Marshal(map[string]any{"network": said})
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", ddnsNetplan, err)
	}
	return d.put(ddnsNetplan, "# Written by ganeti-instance-image: the hook zz_ddns.\n"+string(text), 0o600)
}

// overrides are what is said of each interface of a kind that uses DHCPv4. Where
// it uses DHCPv6 too, networkd wants both to say the same.
func (d *sending) overrides(kind string) map[string]any {
	send := map[string]any{"send-hostname": true, "hostname": d.name}
	found := map[string]any{}
	dhcp6 := map[string]bool{}
	for _, file := range d.root.Glob("/etc/netplan/*.yaml") {
		for id, i := range d.netplanInterfaces(file, kind) {
			dhcp6[id] = dhcp6[id] || i.dhcp6
			if i.dhcp4 {
				found[id] = map[string]any{"dhcp4-overrides": send}
			}
		}
	}
	for id := range found {
		if dhcp6[id] {
			found[id] = map[string]any{"dhcp4-overrides": send, "dhcp6-overrides": send}
		}
	}
	return found
}

// netplanInterfaces reads the interfaces of a kind from a file; one that netplan
// could not read has none.
func (d *sending) netplanInterfaces(file, kind string) map[string]netplanInterface {
	text, err := d.root.ReadFile(file, clientLimit)
	if err != nil || path.Base(file) == path.Base(ddnsNetplan) {
		return nil
	}
	interfaces := YAMLValue(ParseYAML(text), "network", kind)
	found := map[string]netplanInterface{}
	if interfaces == nil || interfaces.Kind != yaml.MappingNode {
		return found
	}
	for n := 0; n+1 < len(interfaces.Content); n += 2 {
		definition := interfaces.Content[n+1]
		found[interfaces.Content[n].Value] = netplanInterface{isYes(YAMLValue(definition, "dhcp4")), isYes(YAMLValue(definition, "dhcp6"))}
	}
	return found
}

// isYes tells whether a node is one of netplan's words for true.
func isYes(node *yaml.Node) bool {
	return node != nil && slices.Contains([]string{"true", "yes", "on", "y"}, strings.ToLower(node.Value))
}
