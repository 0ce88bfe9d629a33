package seed

import (
	"bytes"
	"encoding/xml"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/network"
	"ganeti-instance-image/internal/osapi"
	"ganeti-instance-image/internal/settings"
	"ganeti-instance-image/internal/size"
)

func prefixes(text string) []netip.Prefix {
	var list []netip.Prefix
	for word := range strings.FieldsSeq(text) {
		list = append(list, netip.MustParsePrefix(word))
	}
	return list
}

// windowsNICs are one of each kind.
func windowsNICs() []network.NIC {
	mac := func(last byte) net.HardwareAddr { return net.HardwareAddr{0xaa, 0, 0, 0x1f, 0, last} }
	return []network.NIC{
		{Index: 0, Name: "nic0", MAC: mac(1), NoRA: true, Addresses: prefixes("192.0.2.10/24 2001:db8::10/64"),
			Routes: []network.Route{
				{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("192.0.2.1")},
				{To: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("2001:db8::1")},
			},
			DNS:    []netip.Addr{netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("2001:db8::53"), netip.MustParseAddr("192.0.2.2")},
			Search: []string{"example.org", "example.net"}},
		{Index: 1, Name: "nic1", MAC: mac(2), DHCP4: true, DHCP6: true, Metric: 200},
	}
}

func windowsFiles(t *testing.T, s *settings.Settings, inst osapi.Instance, nics []network.NIC, userData string) ([]File, []string) {
	t.Helper()
	files, warnings, err := WindowsFiles(s, inst, nics, []byte(userData))
	if err != nil {
		t.Fatal(err)
	}
	return files, warnings
}

var winInstance = osapi.Instance{Name: "win1.example.org", UUID: "5b0a4d50-0000-4000-8000-000000000001"}

func withPassword(text string) *settings.Settings {
	return &settings.Settings{RootAccess: settings.Access{Password: text}}
}

func TestWindowsCloudbaseInit(t *testing.T) {
	set := withPassword(`it's "x": #1`)
	set.SSHKeys = []string{"ssh-ed25519 AAAA b", "ssh-ed25519 AAAA a"}
	set.Cinit.SSHKeys = []string{"ssh-ed25519 AAAA a"}
	files, warnings := windowsFiles(t, set, winInstance, windowsNICs(), "")
	if len(warnings) != 0 {
		t.Errorf("warned: %q", warnings)
	}
	for name, want := range map[string]string{
		"meta-data": `instance-id: "5b0a4d50-0000-4000-8000-000000000001"
local-hostname: "win1.example.org"
public-keys:
  key000:
    openssh-key: "ssh-ed25519 AAAA a"
  key001:
    openssh-key: "ssh-ed25519 AAAA b"
`,
		"user-data": `#cloud-config
users:
  - name: "Administrator"
    passwd: "it's \"x\": #1"
    no_create_home: true
`,
		"network-config": `version: 1
config:
  - type: physical
    name: "nic0"
    mac_address: "aa:00:00:1f:00:01"
    subnets:
      - type: static
        address: "192.0.2.10/24"
        gateway: "192.0.2.1"
        dns_nameservers:
          - "192.0.2.3"
          - "192.0.2.2"
        dns_search:
          - "example.org"
          - "example.net"
      - type: static
        address: "2001:db8::10/64"
        gateway: "2001:db8::1"
        dns_nameservers:
          - "2001:db8::53"
        dns_search:
          - "example.org"
          - "example.net"
  - type: physical
    name: "nic1"
    mac_address: "aa:00:00:1f:00:02"
    subnets:
      - type: dhcp
      - type: dhcp6
`,
	} {
		if got := find(t, files, name); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
		}
	}
}

// cloud-init itself reads what is written in its format.
func TestWindowsNetworkConfigIsCloudInits(t *testing.T) {
	files, _ := windowsFiles(t, withPassword("x"), winInstance, windowsNICs(), "")
	dir := t.TempDir()
	path := filepath.Join(dir, "network-config")
	if err := os.WriteFile(path, []byte(find(t, files, "network-config")), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "cloud-init", "devel", "net-convert", "-p", path, "-k", "yaml", "-d", dir, "-D", "debian", "-O", "eni", "-m", "nic0,aa:00:00:1f:00:01", "-m", "nic1,aa:00:00:1f:00:02")
	text, err := os.ReadFile(filepath.Join(dir, "etc/network/interfaces.d/50-cloud-init"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"address 192.0.2.10/24", "gateway 192.0.2.1", "address 2001:db8::10/64", "gateway 2001:db8::1", "iface nic1 inet dhcp", "iface nic1 inet6 dhcp"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
}

const wantTCPIP = `<component name="Microsoft-Windows-TCPIP" processorArchitecture="amd64" publicKeyToken="31bf3856ad364e35" language="neutral" versionScope="nonSxS">
      <Interfaces>
        <Interface wcm:action="add">
          <Ipv4Settings>
            <DhcpEnabled>false</DhcpEnabled>
            <RouterDiscoveryEnabled>false</RouterDiscoveryEnabled>
          </Ipv4Settings>
          <Ipv6Settings>
            <DhcpEnabled>false</DhcpEnabled>
            <RouterDiscoveryEnabled>false</RouterDiscoveryEnabled>
          </Ipv6Settings>
          <Identifier>AA-00-00-1F-00-01</Identifier>
          <UnicastIpAddresses>
            <IpAddress wcm:action="add" wcm:keyValue="1">192.0.2.10/24</IpAddress>
            <IpAddress wcm:action="add" wcm:keyValue="2">2001:db8::10/64</IpAddress>
          </UnicastIpAddresses>
          <Routes>
            <Route wcm:action="add">
              <Identifier>1</Identifier>
              <Metric>10</Metric>
              <NextHopAddress>192.0.2.1</NextHopAddress>
              <Prefix>0.0.0.0/0</Prefix>
            </Route>
            <Route wcm:action="add">
              <Identifier>2</Identifier>
              <Metric>10</Metric>
              <NextHopAddress>2001:db8::1</NextHopAddress>
              <Prefix>::/0</Prefix>
            </Route>
          </Routes>
        </Interface>
        <Interface wcm:action="add">
          <Ipv4Settings>
            <DhcpEnabled>true</DhcpEnabled>
            <Metric>200</Metric>
            <RouterDiscoveryEnabled>false</RouterDiscoveryEnabled>
          </Ipv4Settings>
          <Ipv6Settings>
            <DhcpEnabled>true</DhcpEnabled>
            <Metric>200</Metric>
            <RouterDiscoveryEnabled>true</RouterDiscoveryEnabled>
          </Ipv6Settings>
          <Identifier>AA-00-00-1F-00-02</Identifier>
        </Interface>
      </Interfaces>
    </component>`

const wantDNS = `<component name="Microsoft-Windows-DNS-Client" processorArchitecture="x86" publicKeyToken="31bf3856ad364e35" language="neutral" versionScope="nonSxS">
      <DNSSuffixSearchOrder>
        <DomainName wcm:action="add" wcm:keyValue="1">example.org</DomainName>
        <DomainName wcm:action="add" wcm:keyValue="2">example.net</DomainName>
      </DNSSuffixSearchOrder>
      <Interfaces>
        <Interface wcm:action="add">
          <Identifier>AA-00-00-1F-00-01</Identifier>
          <DNSDomain>example.org</DNSDomain>
          <DNSServerSearchOrder>
            <IpAddress wcm:action="add" wcm:keyValue="1">192.0.2.3</IpAddress>
            <IpAddress wcm:action="add" wcm:keyValue="2">2001:db8::53</IpAddress>
            <IpAddress wcm:action="add" wcm:keyValue="3">192.0.2.2</IpAddress>
          </DNSServerSearchOrder>
        </Interface>
      </Interfaces>
    </component>`

const wantOOBE = `<component name="Microsoft-Windows-Shell-Setup" processorArchitecture="arm64" publicKeyToken="31bf3856ad364e35" language="neutral" versionScope="nonSxS">
      <OOBE>
        <HideEULAPage>true</HideEULAPage>
        <HideLocalAccountScreen>true</HideLocalAccountScreen>
        <HideOEMRegistrationScreen>true</HideOEMRegistrationScreen>
        <HideOnlineAccountScreens>true</HideOnlineAccountScreens>
        <HideWirelessSetupInOOBE>true</HideWirelessSetupInOOBE>
        <ProtectYourPC>3</ProtectYourPC>
        <SkipMachineOOBE>true</SkipMachineOOBE>
        <SkipUserOOBE>true</SkipUserOOBE>
      </OOBE>
      <UserAccounts>
        <AdministratorPassword>
          <Value>cAB3AEEAZABtAGkAbgBpAHMAdAByAGEAdABvAHIAUABhAHMAcwB3AG8AcgBkAA==</Value>
          <PlainText>false</PlainText>
        </AdministratorPassword>
      </UserAccounts>
    </component>`

// The password's form is the one that Microsoft's reference gives for "pw".
func TestWindowsAnswerFile(t *testing.T) {
	files, _ := windowsFiles(t, withPassword("pw"), winInstance, windowsNICs(), "")
	text := find(t, files, answerFile)
	for _, want := range []string{
		`<?xml version="1.0" encoding="UTF-8"?>` + "\n" + `<unattend xmlns="urn:schemas-microsoft-com:unattend" xmlns:wcm="http://schemas.microsoft.com/WMIConfig/2002/State">`,
		`<settings pass="specialize">`, `<settings pass="oobeSystem">`, "<ComputerName>win1</ComputerName>", wantTCPIP, wantDNS, wantOOBE,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("not in the answer file:\n%s\nit is\n%s", want, text)
		}
	}
	if strings.Contains(text, "></") {
		t.Error("an element is empty")
	}
	if n := strings.Count(text, "<component "); n != 3*4 {
		t.Errorf("%d components", n)
	}
	again, _ := windowsFiles(t, withPassword("pw"), winInstance, windowsNICs(), "")
	if !slices.EqualFunc(files, again, func(a, b File) bool { return a.Name == b.Name && bytes.Equal(a.Data, b.Data) }) {
		t.Error("the same settings make other files")
	}
}

const readAnswers = `
import base64, sys, xml.etree.ElementTree as ET
ns = {"u": "urn:schemas-microsoft-com:unattend"}
tree = ET.parse(sys.argv[1])
seen = set()
for p in tree.getroot().findall("u:settings", ns):
    for c in p.findall("u:component", ns):
        key = (p.get("pass"), c.get("name"), c.get("processorArchitecture"))
        assert key not in seen, key
        seen.add(key)
values = {v.text for v in tree.iterfind(".//u:AdministratorPassword/u:Value", ns)}
assert len(values) == 1, values
text = base64.b64decode(values.pop(), validate=True).decode("utf-16-le")
assert text.endswith("AdministratorPassword")
sys.stdout.buffer.write(text[:-21].encode("utf-8"))
`

func TestWindowsPassword(t *testing.T) {
	path := filepath.Join(t.TempDir(), answerFile)
	for _, password := range []string{"pw", `<&>"'`, "p ä € 𝄞", "]]>", strings.Repeat("x", 127)} {
		files, _ := windowsFiles(t, withPassword(password), winInstance, windowsNICs(), "")
		if err := os.WriteFile(path, []byte(find(t, files, answerFile)), 0o600); err != nil {
			t.Fatal(err)
		}
		tool(t, "xmllint", "--noout", path)
		if got := tool(t, "python3", "-c", readAnswers, path); got != password {
			t.Errorf("Windows would read %q, want %q", got, password)
		}
	}
}

func TestWindowsNames(t *testing.T) {
	cases := []struct{ name, want, warning, refusal string }{
		{"win1.example.org", "win1", "", ""},
		{"WIN-1", "WIN-1", "", ""},
		{"abcdefghijklmno.x", "abcdefghijklmno", "", ""},
		{"abcdefghijklmnop.x", "abcdefghijklmno", "named abcdefghijklmno", ""},
		{"abcdefghijklmn-2", "abcdefghijklmn", "named abcdefghijklmn:", ""},
		{"1a", "1a", "", ""},
		{"123", "", "", "digits alone"},
		{"123456789012345x", "", "", "digits alone"},
		{"a_b", "", "", "letters"},
		{"-a", "", "", "letters"},
		{"a<b", "", "", "letters"},
		{"\xff", "", "", "letters"},
		{"", "", "", "letters"},
		{".example.org", "", "", "letters"},
	}
	for _, c := range cases {
		files, warnings, err := WindowsFiles(withPassword("x"), osapi.Instance{Name: c.name}, nil, nil)
		if c.refusal != "" {
			if err == nil || !strings.Contains(err.Error(), c.refusal) {
				t.Errorf("%q: got %v", c.name, err)
			}
			continue
		}
		if err != nil || !strings.Contains(find(t, files, answerFile), "<ComputerName>"+c.want+"</ComputerName>") {
			t.Errorf("%q: %v", c.name, err)
		}
		if got := strings.Join(warnings, "; "); !strings.Contains(got, c.warning) || (got == "") != (c.warning == "") {
			t.Errorf("%q: warned %q", c.name, got)
		}
		if strings.Contains(find(t, files, answerFile), "TCPIP") || !strings.Contains(find(t, files, "meta-data"), "instance-id: \""+c.name+"\"") {
			t.Errorf("%q: without NICs and UUID", c.name)
		}
	}
	if _, _, err := WindowsFiles(withPassword("\xff"), winInstance, nil, nil); err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("a password that is no text: %v", err)
	}
}

func TestWindowsWarnings(t *testing.T) {
	several := windowsNICs()[:1]
	several[0].Addresses = prefixes("192.0.2.10/24 192.0.2.11/24 2001:db8::10/64")
	secret := "s3cret-hash"
	cases := []struct {
		name     string
		set      *settings.Settings
		nics     []network.NIC
		userData string
		want     []string
	}{
		{"nothing", withPassword("x"), nil, "", nil},
		{"a hash", &settings.Settings{RootAccess: settings.Access{PasswordHash: secret}}, nil, "", []string{"ROOT_PASSWORD_HASH"}},
		{"no password", &settings.Settings{}, nil, "", []string{"ROOT_PASSWORD is not set"}},
		{"a user", &settings.Settings{RootAccess: settings.Access{Password: "x"}, User: "joe"}, nil, "", []string{"USER_NAME"}},
		{"user-data", withPassword("x"), nil, "#ps1\n", []string{"answer file only"}},
		{"user-data and no password", &settings.Settings{}, nil, "#ps1\n", []string{"ROOT_PASSWORD is not set"}},
		{"addresses", withPassword("x"), several, "", []string{"only 192.0.2.10/24"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			files, warnings := windowsFiles(t, c.set, winInstance, c.nics, c.userData)
			if len(warnings) != len(c.want) {
				t.Fatalf("warned %q", warnings)
			}
			for i, want := range c.want {
				if !strings.Contains(warnings[i], want) || strings.Contains(warnings[i], secret) {
					t.Errorf("warned %q", warnings)
				}
			}
			user := find(t, files, "user-data")
			if c.userData != "" && user != c.userData || c.userData == "" && !strings.HasPrefix(user, "#cloud-config\n") {
				t.Errorf("user-data is %q", user)
			}
			if got, want := strings.Contains(find(t, files, answerFile), "AdministratorPassword"), c.set.RootAccess.Password != ""; got != want {
				t.Errorf("a password in the answer file: %v", got)
			}
		})
	}
	files, _ := windowsFiles(t, withPassword("x"), winInstance, several, "")
	config := find(t, files, "network-config")
	if !regexp.MustCompile(`(?s)192\.0\.2\.11/24"\n {6}- type: static\n {8}address: "192\.0\.2\.10/24"\n {8}gateway`).MatchString(config) {
		t.Errorf("the main address is not the last of its family:\n%s", config)
	}
}

// Windows reads Joliet, cloudbase-init extracts the disk with bsdtar.
func TestWindowsISO(t *testing.T) {
	files, _ := windowsFiles(t, withPassword("pw"), winInstance, windowsNICs(), "")
	path, _ := isoOf(t, files)
	for _, f := range files {
		if got := tool(t, "isoinfo", "-J", "-i", path, "-x", "/"+f.Name); got != string(f.Data) {
			t.Errorf("%s in Joliet: %q", f.Name, got)
		}
		if got := tool(t, "isoinfo", "-R", "-i", path, "-x", "/"+f.Name); got != string(f.Data) {
			t.Errorf("%s in Rock Ridge: %q", f.Name, got)
		}
	}
	if got := tool(t, "isoinfo", "-i", path, "-f"); !strings.Contains(got, "/UNATTEND.XML;1\n") {
		t.Errorf("the plain names are %q", got)
	}
	dir := t.TempDir()
	tool(t, "bsdtar", "-xf", path, "-C", dir)
	sameDir(t, files, dir)
}

var errBroken = errors.New("the disk does not answer")

type brokenDisk struct{}

func (brokenDisk) ReadAt([]byte, int64) (int, error) { return 0, errBroken }

func TestHasWindows(t *testing.T) {
	const esp, msr, basic, linux = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "E3C9E316-0B5C-4DB8-817D-F92DF00215AE", "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
	cases := []struct {
		name   string
		table  string // for sfdisk; the partitions begin at 2 MiB, 10 MiB, 20 MiB
		makers map[string]string
		want   bool
	}{
		{"Windows, UEFI", "label: gpt\nstart=2MiB,size=8MiB,type=" + esp + "\nstart=10MiB,size=8MiB,type=" + msr + "\nstart=20MiB,size=12MiB,type=" + basic + "\n", map[string]string{"2": "mkfs.fat", "20": "mkfs.ntfs -qQF"}, true},
		{"Windows, BIOS", "label: dos\nstart=2MiB,size=8MiB,type=7,bootable\nstart=20MiB,size=12MiB,type=7\n", map[string]string{"2": "mkfs.ntfs -qQF", "20": "mkfs.ntfs -qQF"}, true},
		{"Linux with NTFS", "label: gpt\nstart=2MiB,size=8MiB,type=" + linux + "\nstart=20MiB,size=12MiB,type=" + basic + "\n", map[string]string{"2": "mkfs.ext4 -qF", "20": "mkfs.ntfs -qQF"}, false},
		{"Linux", "label: gpt\nstart=2MiB,size=8MiB,type=" + linux + "\n", map[string]string{"2": "mkfs.ext4 -qF"}, false},
		{"no table", "", map[string]string{"0": "mkfs.ntfs -qQF"}, true},
		{"empty", "", nil, false},
		{"beyond the disk", "label: dos\nstart=20MiB,size=12MiB,type=7\n", nil, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			image := filepath.Join(dir, "disk")
			script := "truncate -s 40M " + image + "\n"
			if c.table != "" {
				script += "printf '" + c.table + "' | sfdisk -q " + image + "\n"
			}
			for at, maker := range c.makers {
				// A file system is made in a file, and copied to its place.
				script += "truncate -s 8M " + dir + "/fs && " + maker + " " + dir + "/fs >/dev/null && dd status=none conv=notrunc bs=1M seek=" + at + " if=" + dir + "/fs of=" + image + " && rm " + dir + "/fs\n"
			}
			tool(t, "sh", "-ec", script)
			if c.name == "beyond the disk" {
				tool(t, "truncate", "-s", "10M", image)
			}
			disk, err := os.Open(image)
			if err != nil {
				t.Fatal(err)
			}
			defer disk.Close()
			info, err := disk.Stat()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := HasWindows(disk, size.Bytes(info.Size())); err != nil || got != c.want {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
	if _, err := HasWindows(brokenDisk{}, size.MiB); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
}

func FuzzWindowsFiles(f *testing.F) {
	f.Add("win1.example.org", "pw", "example.org")
	f.Add("a-b", "<&>\x00\xff", "]]>")
	f.Fuzz(func(t *testing.T, name, password, search string) {
		nics := windowsNICs()
		nics[0].Search = []string{search}
		files, _, err := WindowsFiles(withPassword(password), osapi.Instance{Name: name}, nics, nil)
		if err != nil {
			return
		}
		var tree unattend
		if err := xml.Unmarshal([]byte(find(t, files, answerFile)), &tree); err != nil {
			t.Fatal(err)
		}
	})
}
