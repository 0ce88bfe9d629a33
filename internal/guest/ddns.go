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
	"golang.org/x/sys/unix"

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
	if !isHostName(name) {
		return nil, fmt.Errorf("cannot send the name %q to the DHCP server: that is no name of a host", name)
	}
	short, _, _ := strings.Cut(name, ".")
	d := &sending{root: r, name: short, fqdn: name}
	for _, client := range dhcpClients {
		if err := d.edit(client); err != nil {
			return d.changes, err
		}
	}
	err := errors.Join(d.newDHClient(), d.networkd(), d.netplan())
	return d.changes, err
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
		for file := range d.root.readMatches(pattern, clientLimit) {
			if isNoFile(file.err) {
				continue // a client could not read it either
			}
			if file.err != nil {
				return file.err
			}
			if err := d.put(file.name, client.edit(d, file.text), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// isNoFile tells whether an error says that a path leads to something else than
// a file, or nowhere.
func isNoFile(err error) bool {
	return errors.As(err, new(kindError)) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR)
}

// put writes a file unless it says so already.
func (d *sending) put(file, text string, mode fs.FileMode) error {
	old, err := d.root.ReadFile(file, clientLimit)
	switch {
	case err == nil && string(old) == text:
		return nil
	case err == nil:
		err = d.root.rewrite(file, old, []byte(text))
	default:
		err = d.root.WriteFile(file, []byte(text), mode)
	}
	if err != nil {
		return err
	}
	d.changes = append(d.changes, file+" has the name "+d.name+" sent to the DHCP server")
	return nil
}

var dhclientFiles = []string{"/etc/dhcp/dhclient*.conf", "/etc/dhcp3/dhclient*.conf", "/etc/dhclient*.conf"}

// dhclientConf rewrites what sends a name, and sends one where nothing did for
// all interfaces. An option 81, where one is sent, gets the whole name.
func (d *sending) dhclientConf(text string) string {
	if isBrokenDHClient(text) {
		return text
	}
	wanted := map[string]string{"host-name": `send host-name "` + d.name + `";`, "fqdn.fqdn": `send fqdn.fqdn "` + d.fqdn + `.";`}
	edited, said := editDHClient(text, []string{"send"}, func(name string, _ []string) string { return wanted[name] })
	if line := wanted["host-name"] + "\n"; !said["host-name"] && edited != line && !strings.HasSuffix(edited, "\n"+line) {
		return withNewline(edited) + line
	}
	return edited
}

// dhclientToken is a word, a string, a comment, blanks or a single character of
// dhclient.conf(5), in which a statement may go over several lines.
var dhclientToken = regexp.MustCompile(`[ \t\r\n]+|#[^\n]*|"(?:[^"\\\n]|\\[^\n])*"|[A-Za-z0-9_.-]+|(?s:.)`)

// isBrokenDHClient tells a file with a string that does not end, of which dhclient
// makes nothing: what was written into it would be taken for a part of the string.
func isBrokenDHClient(text string) bool {
	return slices.Contains(dhclientToken.FindAllString(text, -1), `"`)
}

// editDHClient has the statements of dhclient.conf(5) that begin with one of the
// verbs and name an option replaced by what edit makes of the option's name and
// the tokens of the statement; "" leaves it. Of those that hold for all
// interfaces one that says the same again is left out: an older hook added one
// each time it ran. said has the options that the text sets for all interfaces.
func editDHClient(text string, verbs []string, edit func(option string, statement []string) string) (edited string, said map[string]bool) {
	tokens := dhclientToken.FindAllString(text, -1)
	var out strings.Builder
	said, there := map[string]bool{}, map[string]bool{}
	depth, atLineStart := 0, true
	for n := 0; n < len(tokens); n++ {
		token := tokens[n]
		switch token {
		case "{":
			depth++
		case "}":
			depth = max(depth-1, 0)
		}
		if slices.Contains(verbs, token) {
			option, length := dhclientStatement(tokens[n:], verbs)
			statement := edit(option, tokens[n:n+length])
			if statement != "" {
				n += length - 1
				token = statement
			}
			if statement != "" && depth == 0 {
				if there[statement] {
					if atLineStart && n+1 < len(tokens) {
						tokens[n+1] = withoutLineEnd(tokens[n+1])
					}
					continue
				}
				said[option], there[statement] = true, true
			}
		}
		out.WriteString(token)
		if token != "" {
			atLineStart = strings.HasSuffix(token, "\n")
		}
	}
	return out.String(), said
}

// withoutLineEnd takes away blanks up to the first end of a line.
func withoutLineEnd(token string) string {
	if rest, ok := strings.CutPrefix(strings.TrimLeft(token, " \t\r"), "\n"); ok {
		return rest
	}
	return token
}

// dhclientStatement returns the option that a statement names, and how many
// tokens it has up to its semicolon; none where it does not end in one.
func dhclientStatement(tokens, verbs []string) (option string, length int) {
	for n, token := range tokens[1:] {
		isBlank := strings.ContainsRune(blanks+"#", rune(token[0]))
		switch {
		case token == ";":
			return option, n + 2
		case token == "{" || token == "}" || slices.Contains(verbs, token):
			return "", 0
		case option == "" && !isBlank:
			option = token
		}
	}
	return "", 0
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
	for _, line := range interfacesLines(text) {
		if words := interfacesWords(line); len(words) > 0 && beginsStanza(words[0]) {
			out = append(out, d.stanza(stanza)...)
			stanza = nil
		}
		stanza = append(stanza, line)
	}
	return strings.Join(append(out, d.stanza(stanza)...), "")
}

// interfacesLines splits a text of interfaces(5) into lines, each with those in
// which a backslash at its end has it go on.
func interfacesLines(text string) []string {
	var lines []string
	start, end := 0, 0
	for line := range strings.Lines(text) {
		if end += len(line); !strings.HasSuffix(line, "\\\n") {
			lines = append(lines, text[start:end])
			start = end
		}
	}
	if start < end {
		lines = append(lines, text[start:])
	}
	return lines
}

func interfacesWords(line string) []string {
	return strings.Fields(strings.ReplaceAll(line, "\\\n", ""))
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
	head := strings.TrimRight(lines[0], "\n")
	if strings.HasSuffix(head, "\\") {
		head = strings.TrimRight(head, "\\\n") // or it would go on in our line: the file ends here
	}
	options := slices.DeleteFunc(slices.Clone(lines[1:]), func(line string) bool {
		words := interfacesWords(line)
		return len(words) > 0 && words[0] == "hostname"
	})
	return slices.Concat([]string{head + "\n", "    hostname " + d.name + "\n"}, options)
}

// isDHCPStanza tells whether lines ask for DHCP: "iface eth0 inet dhcp", or
// "use dhcp" in ifupdown-ng.
func isDHCPStanza(lines []string) bool {
	words := interfacesWords(lines[0])
	if len(words) == 0 || words[0] != "iface" {
		return false
	}
	if len(words) >= 4 {
		return words[2] == "inet" && words[3] == "dhcp"
	}
	return slices.ContainsFunc(lines, func(line string) bool { return slices.Equal(interfacesWords(line), []string{"use", "dhcp"}) })
}

// ifcfg edits an interface file of Red Hat's network-scripts, where DHCP_FQDN
// wins over DHCP_HOSTNAME; it is for names that have a domain.
func (d *sending) ifcfg(text string) string {
	said := shellVariables(text)
	if protocol := strings.ToLower(said["BOOTPROTO"]); protocol != "dhcp" && protocol != "bootp" {
		return text
	}
	if _, ok := said["DHCP_SEND_HOSTNAME"]; ok {
		text = setVariable(text, "DHCP_SEND_HOSTNAME", "yes")
	}
	if _, ok := said["DHCP_FQDN"]; ok && d.name != d.fqdn {
		text = setVariable(text, "DHCP_FQDN", d.fqdn)
	} else {
		text = dropVariable(text, "DHCP_FQDN")
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

// dropVariable takes the lines out that set a shell's variable.
func dropVariable(text, name string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		if said, _, isAssignment := strings.Cut(strings.TrimSpace(line), "="); !isAssignment || said != name {
			out.WriteString(line)
		}
	}
	return out.String()
}

// keyfile edits a connection of NetworkManager: nm-settings-keyfile(5). It
// refuses one that has both dhcp-hostname and dhcp-fqdn for IPv4, or a name
// without a domain in the latter.
func (d *sending) keyfile(text string) string {
	ini := readINI(text)
	if ini.value("ipv4", "method") != "auto" {
		return text
	}
	if ini.value("ipv4", "dhcp-fqdn") != "" && d.name != d.fqdn {
		ini.set("ipv4", "dhcp-fqdn", d.fqdn)
		ini.drop("ipv4", "dhcp-hostname")
	} else {
		ini.drop("ipv4", "dhcp-fqdn")
		ini.set("ipv4", "dhcp-hostname", d.name)
	}
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

// drop takes a key out of a section.
func (i *iniFile) drop(section, key string) {
	for n, text := range i.lines {
		if name, _, ok := strings.Cut(text, "="); ok && i.sections[n] == section && strings.TrimSpace(name) == key {
			i.lines[n] = ""
		}
	}
}

func (i *iniFile) String() string { return strings.Join(i.lines, "") }

// networkdDropIn is read after the file it belongs to. Versions before 243 know
// the section by this name only; later ones take it still.
const networkdDropIn = "# Written by ganeti-instance-image: the hook zz_ddns.\n[DHCP]\nSendHostname=yes\nHostname="

// networkd has each file of systemd.network(5) in /etc that asks for DHCPv4 send
// the name.
func (d *sending) networkd() error {
	for file := range d.root.readMatches("/etc/systemd/network/*.network", clientLimit) {
		if isNoFile(file.err) {
			continue // a link to /dev/null masks one
		}
		if file.err != nil {
			return file.err
		}
		if !slices.Contains(networkdDHCP4, strings.ToLower(readINI(file.text).value("Network", "DHCP"))) {
			continue
		}
		if err := d.root.MkdirAll(file.name+".d", 0o755); err != nil {
			return err
		}
		if err := d.put(file.name+".d/90-ganeti-ddns.conf", networkdDropIn+d.name+"\n", 0o644); err != nil {
			return err
		}
	}
	return nil
}

// networkdDHCP4 are the values of DHCP= in systemd.network(5) that mean IPv4.
var networkdDHCP4 = []string{"yes", "true", "on", "1", "y", "t", "both", "ipv4", "v4"}

// ddnsNetplan comes after any other file of netplan, by its name, and adds to
// the interfaces that those define.
const ddnsNetplan = "/etc/netplan/zz-ganeti-ddns.yaml"

// netplanKinds are those of netplan's kinds of interfaces that may use DHCP.
var netplanKinds = []string{"ethernets", "wifis", "bonds", "bridges", "vlans"}

// netplanInterface is what all files together say of an interface.
type netplanInterface struct {
	kind, id     string
	dhcp4, dhcp6 bool
}

func (d *sending) netplan() error {
	interfaces, err := d.netplanInterfaces()
	if err != nil {
		return err
	}
	said := map[string]any{}
	send := map[string]any{"send-hostname": true, "hostname": d.name}
	for _, i := range interfaces {
		if !i.dhcp4 {
			continue
		}
		overrides := map[string]any{"dhcp4-overrides": send}
		if i.dhcp6 {
			overrides["dhcp6-overrides"] = send // networkd wants both to say the same
		}
		if said[i.kind] == nil {
			said[i.kind] = map[string]any{}
		}
		said[i.kind].(map[string]any)[i.id] = overrides
	}
	if len(said) == 0 {
		return d.root.Remove(ddnsNetplan)
	}
	said["version"] = 2
	text, err := yaml.Marshal(map[string]any{"network": said})
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", ddnsNetplan, err)
	}
	return d.put(ddnsNetplan, "# Written by ganeti-instance-image: the hook zz_ddns.\n"+string(text), 0o600)
}

// netplanInterfaces reads the interfaces of all files; one that netplan could
// not read has none.
func (d *sending) netplanInterfaces() (map[string]*netplanInterface, error) {
	found := map[string]*netplanInterface{}
	for file := range d.root.readMatches("/etc/netplan/*.yaml", clientLimit) {
		if isNoFile(file.err) || path.Base(file.name) == path.Base(ddnsNetplan) {
			continue
		}
		if file.err != nil {
			return nil, file.err
		}
		said := YAMLValue(ParseYAML([]byte(file.text)), "network")
		for _, kind := range netplanKinds {
			addInterfaces(found, kind, YAMLValue(said, kind))
		}
	}
	return found, nil
}

// addInterfaces adds what a mapping says of the interfaces of a kind.
func addInterfaces(found map[string]*netplanInterface, kind string, said *yaml.Node) {
	if said == nil || said.Kind != yaml.MappingNode {
		return
	}
	for n := 0; n+1 < len(said.Content); n += 2 {
		id := said.Content[n].Value
		i := found[kind+"/"+id]
		if i == nil {
			i = &netplanInterface{kind: kind, id: id}
			found[kind+"/"+id] = i
		}
		i.dhcp4 = i.dhcp4 || isYes(YAMLValue(said.Content[n+1], "dhcp4"))
		i.dhcp6 = i.dhcp6 || isYes(YAMLValue(said.Content[n+1], "dhcp6"))
	}
}

// isYes tells whether a node is one of netplan's words for true.
func isYes(node *yaml.Node) bool {
	return node != nil && slices.Contains([]string{"true", "yes", "on", "y"}, strings.ToLower(node.Value))
}
