package seed

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/network"
	"ganeti-instance-image/internal/osapi"
	"ganeti-instance-image/internal/render"
	"ganeti-instance-image/internal/settings"
	"ganeti-instance-image/internal/size"
)

// answerFile is the name of the file with which Windows Setup goes through a
// generalized installation unattended. Windows compares names without regard to
// case; in small letters it has one place among the others in both directories
// of the disk.
const answerFile = "unattend.xml"

// WindowsFiles makes the seed of a Windows guest, in place of Files: what
// cloudbase-init's NoCloud service reads, and an answer file for a Windows that
// was generalized with sysprep. userData is the site's, for cloudbase-init, and
// may be empty. What the settings ask for and Windows does not get is said in
// warnings, one sentence each; they hold no secret, all files do. An error is a
// name that no Windows can have, or a password that is no text.
func WindowsFiles(s *settings.Settings, inst osapi.Instance, nics []network.NIC, userData []byte) (files []File, warnings []string, err error) {
	w := windows{set: s, inst: inst, nics: nics, userData: userData}
	if w.name, err = w.computerName(); err != nil {
		return nil, nil, fmt.Errorf("cannot write the seed for Windows: %w", err)
	}
	for _, part := range []struct {
		name string
		make func() ([]byte, error)
	}{
		{"meta-data", w.metaData},
		{"user-data", w.users},
		{"network-config", w.networkConfig},
		{answerFile, w.answers},
	} {
		data, err := part.make()
		if err != nil {
			return nil, nil, fmt.Errorf("cannot write the seed for Windows: %w", err)
		}
		files = append(files, File{part.name, data})
	}
	return files, w.warnings, nil
}

// linuxKinds are what a disk with a Linux on it has, so that one which has NTFS
// besides is none of Windows'.
var linuxKinds = []filesystem.Kind{
	filesystem.Ext2, filesystem.Ext3, filesystem.Ext4, filesystem.XFS, filesystem.Btrfs, filesystem.F2FS,
	filesystem.SquashFS, filesystem.Swap, filesystem.LUKS, filesystem.LVM2, filesystem.ZFS,
}

// HasWindows tells whether Windows is on a disk of that length: there is NTFS in
// a partition, or in place of a table, and nothing of Linux. A disk whose table
// cannot be read has none. The error is the reader's.
func HasWindows(disk io.ReaderAt, length size.Bytes) (bool, error) {
	partitions := []layout.Partition{{Length: length}}
	table, err := layout.Read(disk, length)
	switch {
	case errors.Is(err, layout.ErrDamaged):
		return false, nil
	case err == nil:
		partitions = table.Partitions
	case !errors.Is(err, layout.ErrNoTable):
		return false, err
	}
	found := false
	for _, p := range partitions {
		info, err := filesystem.Probe(io.NewSectionReader(disk, int64(p.Start), int64(p.Length)), p.Length)
		if err != nil {
			return false, err
		}
		if slices.Contains(linuxKinds, info.Kind) {
			return false, nil
		}
		found = found || info.Kind == filesystem.NTFS
	}
	return found, nil
}

type windows struct {
	set      *settings.Settings
	inst     osapi.Instance
	nics     []network.NIC
	userData []byte
	name     string // the computer's
	warnings []string
}

func (w *windows) warn(format string, args ...any) {
	w.warnings = append(w.warnings, fmt.Sprintf(format, args...))
}

type windowsMetaData struct {
	InstanceID quoted               `yaml:"instance-id"`
	Hostname   quoted               `yaml:"local-hostname"`
	PublicKeys map[string]publicKey `yaml:"public-keys,omitempty"`
}

// publicKey is in the form of EC2's metadata, which all versions of
// cloudbase-init understand.
type publicKey struct {
	Key quoted `yaml:"openssh-key"`
}

func (w *windows) metaData() ([]byte, error) {
	meta := windowsMetaData{InstanceID: quoted(w.inst.UUID), Hostname: quoted(w.inst.Name), PublicKeys: map[string]publicKey{}}
	if w.inst.UUID == "" {
		meta.InstanceID = meta.Hostname
	}
	for i, key := range slices.Compact(slices.Sorted(slices.Values(slices.Concat(w.set.SSHKeys, w.set.Cinit.SSHKeys)))) {
		meta.PublicKeys[fmt.Sprintf("key%03d", i)] = publicKey{quoted(key)}
	}
	return encode("", meta)
}

// administrator is the name of the built-in account where Windows is English.
const administrator = "Administrator"

type windowsUsers struct {
	Users []windowsUser `yaml:"users"`
}

type windowsUser struct {
	Name     quoted `yaml:"name"`
	Password quoted `yaml:"passwd"` // as it is typed
	NoHome   bool   `yaml:"no_create_home"`
}

// users hands the password over, for which the NoCloud service has no key in
// its meta-data.
func (w *windows) users() ([]byte, error) {
	access := w.set.RootAccess
	switch {
	case access.PasswordHash != "":
		w.warn("ROOT_PASSWORD_HASH (%s) has no effect on Windows, which cannot use such a hash: set ROOT_PASSWORD", w.set.Origin("ROOT_PASSWORD_HASH"))
	case access.Password == "":
		w.warn("ROOT_PASSWORD is not set: Windows keeps the Administrator of its image, or asks for a password at its console")
	}
	if w.set.User != "" {
		w.warn("USER_NAME (%s) has no effect on Windows: make the user with user-data", w.set.Origin("USER_NAME"))
	}
	if w.set.Cinit.User != "" {
		w.warn("CINIT_USER (%s) has no effect on Windows: make the user with user-data", w.set.Origin("CINIT_USER"))
	}
	if len(w.set.GuestFiles) > 0 {
		w.warn("GUEST_FILES (%s) has no effect on Windows: write the files with user-data", w.set.Origin("GUEST_FILES"))
	}
	given := len(bytes.TrimSpace(w.userData)) > 0
	switch {
	case given && access.Password != "":
		w.warn("ROOT_PASSWORD is in the answer file only: cloudbase-init gets the site's user-data as it is")
		return w.userData, nil
	case given:
		return w.userData, nil
	case access.Password == "":
		return []byte(noUserData), nil
	}
	return encode("#cloud-config\n", windowsUsers{[]windowsUser{{Name: administrator, Password: quoted(access.Password), NoHome: true}}})
}

// networkV1 is a network-config of version 1. cloudbase-init understands
// version 2 since 2024 only, and gives all addresses of a NIC there the first
// default route, of whichever family it is.
type networkV1 struct {
	Version int          `yaml:"version"`
	Config  []physicalV1 `yaml:"config"`
}

type physicalV1 struct {
	Type    string     `yaml:"type"`
	Name    quoted     `yaml:"name"` // the adapter is renamed to it
	MAC     quoted     `yaml:"mac_address"`
	Subnets []subnetV1 `yaml:"subnets,omitempty"`
}

type subnetV1 struct {
	Type    string   `yaml:"type"` // dhcp and dhcp6; cloudbase-init takes dhcp4 for an address
	Address quoted   `yaml:"address,omitempty"`
	Gateway quoted   `yaml:"gateway,omitempty"`
	DNS     []quoted `yaml:"dns_nameservers,omitempty"`
	Search  []quoted `yaml:"dns_search,omitempty"`
}

func (w *windows) networkConfig() ([]byte, error) {
	config := networkV1{Version: 1, Config: []physicalV1{}}
	for _, nic := range w.nics {
		adapter := physicalV1{Type: "physical", Name: quoted(nic.Name), MAC: quoted(nic.MAC.String())}
		if nic.DHCP4 {
			adapter.Subnets = append(adapter.Subnets, subnetV1{Type: "dhcp"})
		}
		if nic.DHCP6 {
			adapter.Subnets = append(adapter.Subnets, subnetV1{Type: "dhcp6"})
		}
		adapter.Subnets = append(adapter.Subnets, w.subnets(nic)...)
		config.Config = append(config.Config, adapter)
	}
	return encode("", config)
}

// subnets are the static addresses of a NIC, the first of each family last: of
// several cloudbase-init keeps the one it sets last, and its gateway.
func (w *windows) subnets(nic network.NIC) []subnetV1 {
	var made []subnetV1
	for _, is4 := range []bool{true, false} {
		mine := slices.DeleteFunc(slices.Clone(nic.Addresses), func(p netip.Prefix) bool { return p.Addr().Is4() != is4 })
		if len(mine) > 1 {
			w.warn("NIC %d has several addresses of one family: cloudbase-init sets only %v, the answer file all", nic.Index, mine[0])
		}
		for i, address := range slices.Backward(mine) {
			subnet := subnetV1{Type: "static", Address: quoted(address.String())}
			if i == 0 {
				subnet.Gateway = gateway(nic.Routes, is4)
				subnet.DNS = render.QuoteAll(slices.DeleteFunc(slices.Clone(nic.DNS), func(a netip.Addr) bool { return a.Is4() != is4 }), netip.Addr.String)
				subnet.Search = render.QuoteAll(nic.Search, render.Same)
			}
			made = append(made, subnet)
		}
	}
	return made
}

func gateway(routes []network.Route, is4 bool) quoted {
	for _, r := range routes {
		if r.To.Bits() == 0 && r.Via.Is4() == is4 {
			return quoted(r.Via.String())
		}
	}
	return ""
}

// unattend is an answer file, as Microsoft's "Unattended Windows Setup
// Reference" has it: passes, in them components, and of each component one for
// every architecture, of which Windows takes its own.
type unattend struct {
	XMLName   xml.Name `xml:"unattend"`
	Namespace string   `xml:"xmlns,attr"`
	WCM       string   `xml:"xmlns:wcm,attr"`
	Settings  []pass   `xml:"settings"`
}

type pass struct {
	Name       string      `xml:"pass,attr"`
	Components []component `xml:"component"`
}

// component holds what any of the components has; what is nil is not written. The
// order within an interface is the one that Microsoft-Windows-TCPIP asks for.
type component struct {
	Name     string `xml:"name,attr"`
	Arch     string `xml:"processorArchitecture,attr"`
	Token    string `xml:"publicKeyToken,attr"`
	Language string `xml:"language,attr"`
	Scope    string `xml:"versionScope,attr"`

	ComputerName string      `xml:"ComputerName,omitempty"` // Microsoft-Windows-Shell-Setup, specialize
	Suffixes     *suffixes   `xml:"DNSSuffixSearchOrder"`   // Microsoft-Windows-DNS-Client
	Interfaces   *interfaces `xml:"Interfaces"`             // this and Microsoft-Windows-TCPIP
	OOBE         *oobe       `xml:"OOBE"`                   // Microsoft-Windows-Shell-Setup, oobeSystem
	Accounts     *accounts   `xml:"UserAccounts"`           // the same
}

// item is one of a list in which the key gives the order.
type item struct {
	Action string `xml:"wcm:action,attr"`
	Key    string `xml:"wcm:keyValue,attr"`
	Text   string `xml:",chardata"`
}

type suffixes struct {
	Domains []item `xml:"DomainName"`
}

type ipAddresses struct {
	Addresses []item `xml:"IpAddress"`
}

type hops struct {
	Routes []hopXML `xml:"Route"`
}

type interfaces struct {
	Adapters []adapter `xml:"Interface"`
}

type accounts struct {
	Administrator *hiddenXML `xml:"AdministratorPassword"`
}

type adapter struct {
	Action     string       `xml:"wcm:action,attr"`
	V4         *ipXML       `xml:"Ipv4Settings"`
	V6         *ipXML       `xml:"Ipv6Settings"`
	Identifier string       `xml:"Identifier"` // the MAC as 00-11-22-33-44-55
	Addresses  *ipAddresses `xml:"UnicastIpAddresses"`
	Routes     *hops        `xml:"Routes"`
	DNSDomain  string       `xml:"DNSDomain,omitempty"`
	DNS        *ipAddresses `xml:"DNSServerSearchOrder"`
}

type ipXML struct {
	DHCP            bool `xml:"DhcpEnabled"`
	Metric          int  `xml:"Metric,omitempty"`
	RouterDiscovery bool `xml:"RouterDiscoveryEnabled"`
}

type hopXML struct {
	Action  string `xml:"wcm:action,attr"`
	Number  int    `xml:"Identifier"`
	Metric  int    `xml:"Metric"`
	NextHop string `xml:"NextHopAddress"`
	Prefix  string `xml:"Prefix"`
}

// oobe leaves out all that would wait for somebody at the first start.
type oobe struct {
	HideEULA     bool `xml:"HideEULAPage"`
	HideLocal    bool `xml:"HideLocalAccountScreen"`
	HideOEM      bool `xml:"HideOEMRegistrationScreen"`
	HideOnline   bool `xml:"HideOnlineAccountScreens"`
	HideWireless bool `xml:"HideWirelessSetupInOOBE"`
	Protect      int  `xml:"ProtectYourPC"` // 3: send nothing to Microsoft
	SkipMachine  bool `xml:"SkipMachineOOBE"`
	SkipUser     bool `xml:"SkipUserOOBE"`
}

type hiddenXML struct {
	Value     string `xml:"Value"`
	PlainText bool   `xml:"PlainText"`
}

const addIt = "add"

// routeMetric is that of a static route; Windows adds the interface's.
const routeMetric = 10

func (w *windows) answers() ([]byte, error) {
	password, err := hide(w.set.RootAccess.Password)
	if err != nil {
		return nil, err
	}
	specialize := []component{{Name: "Microsoft-Windows-Shell-Setup", ComputerName: w.name}}
	if len(w.nics) > 0 {
		specialize = append(specialize, w.tcpip())
	}
	if dns := w.dns(); dns.Interfaces != nil {
		specialize = append(specialize, dns)
	}
	first := component{Name: "Microsoft-Windows-Shell-Setup", OOBE: &oobe{true, true, true, true, true, 3, true, true}}
	if password != nil {
		first.Accounts = &accounts{password}
	}
	text, err := xml.MarshalIndent(unattend{
		Namespace: "urn:schemas-microsoft-com:unattend",
		WCM:       "http://schemas.microsoft.com/WMIConfig/2002/State",
		Settings:  []pass{{"specialize", everywhere(specialize)}, {"oobeSystem", everywhere([]component{first})}},
	}, "", "  ")
	if err != nil {
		return nil, err
	}
	return append([]byte(xml.Header), append(text, '\n')...), nil
}

// everywhere repeats components for every architecture.
func everywhere(components []component) []component {
	var all []component
	for _, arch := range []string{"amd64", "arm64", "x86"} {
		for _, c := range components {
			c.Arch, c.Token, c.Language, c.Scope = arch, "31bf3856ad364e35", "neutral", "nonSxS"
			all = append(all, c)
		}
	}
	return all
}

// netbiosLength is how long the name of a computer may be at most.
const netbiosLength = 15

// netbios is what Windows takes for the name of a computer; one of digits alone
// it refuses.
var (
	netbios = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$`)
	digits  = regexp.MustCompile(`^[0-9]+$`)
)

func (w *windows) computerName() (string, error) {
	label, _, _ := strings.Cut(w.inst.Name, ".")
	name := strings.TrimRight(label[:min(len(label), netbiosLength)], "-")
	if !netbios.MatchString(name) {
		return "", fmt.Errorf("%q cannot be the name of a Windows computer: it must be of letters, digits and hyphens", label)
	}
	if digits.MatchString(name) {
		return "", fmt.Errorf("%q cannot be the name of a Windows computer: Windows takes none of %d digits alone", label, len(name))
	}
	if name != label {
		w.warn("Windows is named %s: the names of its computers have %d characters at most", name, netbiosLength)
	}
	return name, nil
}

// hide makes the form of a password in which Windows has it in answer files. It
// is no encryption.
func hide(password string) (*hiddenXML, error) {
	if password == "" {
		return nil, nil
	}
	if !utf8.ValidString(password) {
		return nil, errors.New("ROOT_PASSWORD is not UTF-8")
	}
	var b []byte
	for _, unit := range utf16.Encode([]rune(password + "AdministratorPassword")) {
		b = binary.LittleEndian.AppendUint16(b, unit)
	}
	return &hiddenXML{Value: base64.StdEncoding.EncodeToString(b)}, nil
}

func identifier(nic network.NIC) string {
	return strings.ToUpper(strings.ReplaceAll(nic.MAC.String(), ":", "-"))
}

func (w *windows) tcpip() component {
	var adapters []adapter
	for _, nic := range w.nics {
		a := adapter{Action: addIt, V4: &ipXML{DHCP: nic.DHCP4, Metric: nic.Metric}, Identifier: identifier(nic)}
		if nic.DHCP6 || nic.SLAAC || nic.NoRA || slices.ContainsFunc(nic.Addresses, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
			a.V6 = &ipXML{DHCP: nic.DHCP6 || nic.SLAAC, Metric: nic.Metric, RouterDiscovery: !nic.NoRA}
		}
		if len(nic.Addresses) > 0 {
			a.Addresses = &ipAddresses{items(nic.Addresses, netip.Prefix.String)}
		}
		if len(nic.Routes) > 0 {
			a.Routes = &hops{}
		}
		for i, r := range nic.Routes {
			a.Routes.Routes = append(a.Routes.Routes, hopXML{addIt, i + 1, routeMetric, r.Via.String(), r.To.String()})
		}
		adapters = append(adapters, a)
	}
	return component{Name: "Microsoft-Windows-TCPIP", Interfaces: &interfaces{adapters}}
}

func (w *windows) dns() component {
	c := component{Name: "Microsoft-Windows-DNS-Client"}
	var adapters []adapter
	var search []string
	for _, nic := range w.nics {
		if len(nic.DNS)+len(nic.Search) == 0 {
			continue
		}
		a := adapter{Action: addIt, Identifier: identifier(nic)}
		if len(nic.DNS) > 0 {
			a.DNS = &ipAddresses{items(nic.DNS, netip.Addr.String)}
		}
		for i, domain := range nic.Search {
			if i == 0 {
				a.DNSDomain = domain
			}
			if !slices.Contains(search, domain) {
				search = append(search, domain)
			}
		}
		adapters = append(adapters, a)
	}
	if len(adapters) > 0 {
		c.Interfaces = &interfaces{adapters}
	}
	if len(search) > 0 {
		c.Suffixes = &suffixes{items(search, render.Same)}
	}
	return c
}

// items numbers a list, from 1.
func items[T any](list []T, text func(T) string) []item {
	var made []item
	for i, one := range list {
		made = append(made, item{addIt, strconv.Itoa(i + 1), text(one)})
	}
	return made
}
