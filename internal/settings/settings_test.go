package settings

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/osapi"
	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/shellfile"
	"ganeti-instance-image/internal/size"
)

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB/JcWN8vAN6FrXhCqLa9XU3kz7sQx2sZPaD0k3Iq5pZ admin@example.org"

// sha512 has the form of what openssl passwd -6 prints.
const sha512 = "$6$abcdefgh$" + "01234567890123456789012345678901234567890123456789012345678901234567890123456789012345"

// ganeti is the environment that create has.
var ganeti = []string{"INSTANCE_NAME=web.example.org", "INSTANCE_BE_maxmem=512", "OS_VARIANT=debian", "PATH=/usr/bin:/bin", "OSP_X=parameter"}

// site is a site's files below a temporary directory.
type site struct {
	t *testing.T
	Site
}

func newSite(t *testing.T) site {
	dir := t.TempDir()
	return site{t, Site{Sysconf: filepath.Join(dir, "etc"), Localstate: filepath.Join(dir, "var")}}
}

func (s site) defaults() string { return filepath.Join(s.Sysconf, "default/ganeti-instance-image") }

func (s site) variant(name string) string {
	return filepath.Join(s.Sysconf, "ganeti/instance-image/variants", name+".conf")
}

func (s site) write(path, text string) {
	s.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// with writes the defaults file and, unless it is "-", the variant "debian".
func (s site) with(defaults, variant string) site {
	s.t.Helper()
	s.write(s.defaults(), defaults)
	if variant != "-" {
		s.write(s.variant("debian"), variant)
	}
	return s
}

func (s site) load(params map[string]string) (*Settings, error) {
	inst := osapi.Instance{Name: "web.example.org", Memory: 512 * size.MiB, Params: params}
	if _, err := os.Stat(s.variant("debian")); err == nil {
		inst.Variant = "debian"
	}
	return Load(s.t.Context(), s.Site, inst, ganeti)
}

func (s site) mustLoad(params map[string]string) *Settings {
	s.t.Helper()
	set, err := s.load(params)
	if err != nil {
		s.t.Fatal(err)
	}
	return set
}

// notForHooks are the fields that Environ leaves out.
var notForHooks = cmpopts.IgnoreFields(Settings{}, "RootAccess", "UserAccess", "GuestFiles", "UserData")

// text is a setting as hooks get it.
func (s *Settings) text(name string) string {
	for _, entry := range s.Environ() {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value
		}
	}
	return "(not there)"
}

func TestDefaults(t *testing.T) {
	s := newSite(t)
	conf, cache := s.Sysconf+"/ganeti/instance-image/", s.Localstate+"/cache/ganeti-instance-image"
	want := &Settings{
		ImageDir: cache, ImageVerify: true, CacheDir: cache,
		Swap: true, SwapSize: 512 * size.MiB, BootSize: 512 * size.MiB, Filesystem: "ext4", Grow: true,
		PartitionTable: "auto", ESPSize: 100 * size.MiB, GRUB: "no",
		CustomizeDir: conf + "hooks", OverlaysDir: conf + "overlays", NetworksDir: conf + "networks", VariantsDir: conf + "variants",
		ExportFormat: "tar", ExportCompression: "zstd", ImportIdentity: "keep", ImportDir: s.Localstate + "/tmp", HookTimeout: 10 * time.Minute, Initramfs: "no",
	}
	for _, defaults := range []string{"-", "", "# nothing\n", allEmpty()} {
		if defaults != "-" {
			s.with(defaults, "-")
		}
		set := s.mustLoad(nil)
		if diff := cmp.Diff(want, set, cmpopts.IgnoreUnexported(Settings{}), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("with %.20q:\n%s", defaults, diff)
		}
		if got := set.Origin("SWAP").String(); got != "built-in default" || len(set.Warnings()) > 0 {
			t.Errorf("with %.20q: origin %s, warnings %q", defaults, got, set.Warnings())
		}
	}
}

// allEmpty sets every setting to nothing.
func allEmpty() string {
	var text strings.Builder
	for _, k := range known() {
		text.WriteString(k.name + "=\"\"\n")
	}
	return text.String()
}

func TestSourcesGoInOrder(t *testing.T) {
	s := newSite(t).with(
		"IMAGE_NAME=one\nIMAGE_DIR=/images\nSWAP=no\nKERNEL_ARGS=quiet\nHERE=${IMAGE_DIR}none\nFILESYSTEM=xfs\nMINE='a b'\nHOST=$INSTANCE_NAME\n",
		"IMAGE_NAME=\"$IMAGE_NAME-two\"\nCACHE_DIR=$IMAGE_DIR/cache$FILESYSTEM$SWAP_SIZE\nKERNEL_ARGS=\nFILESYSTEM=\nMINE=$MINE\\ c\nARCH=x86\n",
	)
	set := s.mustLoad(map[string]string{"arch": "arm64", "swap": "ON", "swap_size": "2G", "overlay": ""})
	for name, want := range map[string]string{
		"IMAGE_NAME": "one-two", "IMAGE_DIR": "/images", "CACHE_DIR": "/images/cachexfs512", "KERNEL_ARGS": "", "FILESYSTEM": "ext4",
		"HERE": "/imagesnone", "MINE": "a b c", "HOST": "web.example.org", "ARCH": "arm64", "SWAP": "yes", "SWAP_SIZE": "2048", "OVERLAY": "",
	} {
		if got := set.text(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for name, want := range map[string]string{
		"IMAGE_DIR": s.defaults() + ":2", "IMAGE_NAME": s.variant("debian") + ":1", "FILESYSTEM": "built-in default",
		"MINE": s.variant("debian") + ":5", "ARCH": "OS parameter arch", "SWAP_SIZE": "OS parameter swap_size", "OVERLAY": "built-in default",
	} {
		if got := set.Origin(name).String(); got != want {
			t.Errorf("%s is from %s, want %s", name, got, want)
		}
	}
	if set.Arch != "arm64" || !set.Swap || set.SwapSize != 2*size.GiB || set.ImageName != "one-two" {
		t.Errorf("fields: %+v", set)
	}
}

// TestEverySetting sets each setting in a file and in every way it can be
// written, and looks at what hooks get.
func TestEverySetting(t *testing.T) {
	cases := map[string][]struct{ text, want string }{
		"CDINSTALL":                switches,
		"IMAGE_NAME":               {{"debian-12", "debian-12"}, {"deb_12.1+x~y", "deb_12.1+x~y"}},
		"ARCH":                     {{"x86_64", "x86_64"}, {"amd64.v2-x", "amd64.v2-x"}},
		"IMAGE_TYPE":               {{"auto", ""}, {"tarball", "tarball"}, {"dump", "dump"}, {"qemu", "qemu"}, {"qcow2", "qcow2"}, {"raw", "raw"}},
		"IMAGE_DIR":                {{"/srv/images", "/srv/images"}},
		"IMAGE_FILE":               {{"/srv/a b.qcow2", "/srv/a b.qcow2"}},
		"IMAGE_URL":                {{"https://user:pw@host:8443/x?y", "https://user:pw@host:8443/x?y"}, {"http://host", "http://host"}},
		"IMAGE_VERIFY":             switches,
		"IMAGE_CLEANUP":            switches,
		"CACHE_DIR":                {{"/c", "/c"}},
		"SWAP":                     switches,
		"SWAP_SIZE":                {{"100", "100"}, {"2G", "2048"}, {"1536K", "1536K"}, {"1024K", "1"}},
		"BOOT_SIZE":                {{"256M", "256"}},
		"FILESYSTEM":               {{"ext2", "ext2"}, {"ext3", "ext3"}, {"ext4", "ext4"}, {"xfs", "xfs"}, {"btrfs", "btrfs"}},
		"FDISK":                    {{"parted", "parted"}},
		"MKFS_OPTIONS":             {{" -O  ^64bit,extent   -m 0 ", "-O ^64bit,extent -m 0"}},
		"PARTITION_TABLE":          {{"auto", "auto"}, {"msdos", "msdos"}, {"gpt", "gpt"}},
		"ESP_SIZE":                 {{"1G", "1024"}},
		"GRUB":                     {{"auto", "auto"}, {"no", "no"}},
		"KERNEL_ARGS":              {{"console=ttyS0 a=\\\"b\\\"", "console=ttyS0 a=\"b\""}},
		"NOMOUNT":                  switches,
		"GROW":                     switches,
		"SEED_DISK":                {{"1", "1"}, {"seed-disk", "seed-disk"}},
		"DISK_1":                   {{"swap", "swap"}, {"seed", "seed"}, {"data:xfs:/srv/a_b", "data:xfs:/srv/a_b"}},
		"CUSTOMIZE_DIR":            {{"/h", "/h"}},
		"OVERLAYS_DIR":             {{"/o", "/o"}},
		"OVERLAY":                  {{"web", "web"}},
		"NETWORKS_DIR":             {{"/n", "/n"}},
		"SUBNET":                   {{"vlan42", "vlan42"}},
		"VARIANTS_DIR":             {{"/v", "/v"}},
		"EXPORT_FORMAT":            {{"raw", "raw"}, {"qcow2", "qcow2"}, {"dump", "dump"}, {"tar", "tar"}},
		"EXPORT_DIR":               {{"/e", "/e"}},
		"EXPORT_COMPRESSION":       {{"none", "none"}, {"zstd", "zstd"}},
		"IMPORT_IDENTITY":          {{"keep", "keep"}, {"renew", "renew"}},
		"IMPORT_DIR":               {{"/i", "/i"}},
		"IDENTITY":                 switches,
		"IDENTITY_KEEP":            {{"lvm-devices,machine-id  blkid", "lvm-devices machine-id blkid"}, {strings.Join(IdentityParts, ", "), strings.Join(IdentityParts, " ")}},
		"HOOK_TIMEOUT":             {{"0", "0"}, {"30", "30"}, {"999999", "999999"}},
		"INITRAMFS":                {{"no", "no"}, {"rebuild", "rebuild"}},
		"USER_NAME":                {{"admin", "admin"}, {"_a.B-9", "_a.B-9"}},
		"SSH_KEYS":                 {{key, key}, {"# mine\n\n" + key + "\n  " + key + "\n", key + "\n" + key}},
		"SSH_KEYS_URL":             {{"https://keys.example.org/admin.keys", "https://keys.example.org/admin.keys"}},
		"CINIT_USER":               {{"admin", "admin"}},
		"CINIT_SSH_KEY":            {{key, key}, {"# mine\n\n" + key + "\n  " + key + "\n", key + "\n" + key}},
		"CINIT_SSH_PWAUTH":         switches,
		"CINIT_DISABLE_ROOT":       switches,
		"CINIT_MANAGE_RESOLV_CONF": switches,
		"DNS_SERVERS":              {{"192.0.2.1", "192.0.2.1"}, {" 192.0.2.1,2001:DB8::1\n192.0.2.2 ", "192.0.2.1 2001:db8::1 192.0.2.2"}},
		"DNS_SEARCH":               {{"example.org example.net.", "example.org example.net."}},
		"USER_DATA_FILE":           {{"/u", "/u"}},
		"USER_DATA_URL":            {{"http://h/u", "http://h/u"}},
		"ALLOW_URLS":               {{"https://a/b http://c:81/", "https://a/b http://c:81/"}},
		"DENY_PARAMETERS":          {{"image_url os-image", "image_url os_image"}},
		"SHELL_SETTINGS":           switches,
		"IMAGE_DEBUG":              switches,
	}
	for n := 2; n < MaxDisks; n++ {
		cases[fmt.Sprintf("DISK_%d", n)] = cases["DISK_1"]
	}
	for _, k := range known() {
		if (len(cases[k.name]) == 0) != k.kind.secret {
			t.Errorf("no case for %s, or one for a secret, which TestSecrets has", k.name)
		}
		for _, c := range cases[k.name] {
			set := newSite(t).with(k.name+"=\""+c.text+"\"\n", "-").mustLoad(nil)
			if got := set.text(k.name); got != c.want {
				t.Errorf("%s=%q is %q for hooks, want %q", k.name, c.text, got, c.want)
			}
		}
	}
}

var switches = []struct{ text, want string }{
	{"yes", "yes"}, {"1", "yes"}, {"TRUE", "yes"}, {"On", "yes"}, {"no", "no"}, {"0", "no"}, {"false", "no"}, {"OFF", "no"},
}

func TestFields(t *testing.T) {
	set := newSite(t).with(`CINIT_USER=admin
CINIT_SSH_KEY="`+key+"\n"+key+`"
CINIT_SSH_PWAUTH=1 CINIT_DISABLE_ROOT=no
DNS_SERVERS="192.0.2.1 2001:db8::1" DNS_SEARCH=example.org
USER_DATA_FILE=/u ALLOW_URLS="http://a" DENY_PARAMETERS="grow os-image"
DISK_1=swap DISK_15=data:ext4:/srv
IDENTITY=no IDENTITY_KEEP="blkid machine-id" HOOK_TIMEOUT=90 INITRAMFS=rebuild
USER_NAME=u SSH_KEYS="`+key+`" SSH_KEYS_URL=http://k ROOT_PASSWORD='a"b' USER_PASSWORD_HASH='`+sha512+`'
IMAGE_DEBUG=1 BOOT_SIZE=1G IMAGE_FILE=/i SUBNET=s OVERLAY=o
`, "-").mustLoad(nil)
	want := Cinit{User: "admin", SSHKeys: []string{key, key}, SSHPasswordAuth: Yes, DisableRoot: No, ManageResolvConf: Unset}
	if diff := cmp.Diff(want, set.Cinit); diff != "" {
		t.Error(diff)
	}
	if !slices.Equal(set.DNSServers, []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}) || !slices.Equal(set.DNSSearch, []string{"example.org"}) {
		t.Errorf("DNS: %v %v", set.DNSServers, set.DNSSearch)
	}
	if set.Identity != No || !slices.Equal(set.IdentityKeep, []string{"blkid", "machine-id"}) || set.HookTimeout != 90*time.Second || set.Initramfs != "rebuild" ||
		set.User != "u" || !slices.Equal(set.SSHKeys, []string{key}) || set.SSHKeysURL != "http://k" ||
		set.RootAccess != (Access{Password: `a"b`}) || set.UserAccess != (Access{PasswordHash: sha512}) {
		t.Errorf("got %+v", set)
	}
	if set.DiskUses[1] != (DiskUse{What: "swap"}) || set.DiskUses[2] != (DiskUse{}) || set.DiskUses[15] != (DiskUse{"data", "ext4", "/srv"}) {
		t.Errorf("got %+v", set.DiskUses)
	}
	if set.UserDataFile != "/u" || !set.Debug || set.BootSize != size.GiB || set.ImageFile != "/i" || set.Subnet != "s" || set.Overlay != "o" ||
		!slices.Equal(set.AllowURLs, []string{"http://a"}) || !slices.Equal(set.DenyParameters, []string{"grow", "os_image"}) {
		t.Errorf("got %+v", set)
	}
}

func TestLoadRefuses(t *testing.T) {
	secret := "s3cret"
	cases := []struct{ line, want string }{
		{"SWAP=maybe" + secret, "want yes or no"},
		{"SWAP_SIZE=-1" + secret, "want a number of MiB"},
		{"SWAP_SIZE=0", "above 0"},
		{"BOOT_SIZE=2X" + secret, "want a number of MiB"},
		{"FILESYSTEM=" + secret, "want one of ext2, ext3, ext4, xfs, btrfs"},
		{"IMAGE_TYPE=vmdk" + secret, "want one of tarball, dump, qemu, qcow2, raw, auto"},
		{"IMAGE_NAME=../" + secret, "one name without a slash"},
		{"IMAGE_NAME=." + secret, "one name without a slash"},
		{"IMAGE_NAME=-" + secret, "one name without a slash"},
		{"OVERLAY=a/" + secret, "one name without a slash"},
		{"SUBNET=..", "one name without a slash"},
		{"ARCH=a/" + secret, "letters, digits"},
		{"IMAGE_DIR=images/" + secret, "want an absolute path"},
		{"IMAGE_FILE=" + secret, "want an absolute path"},
		{"IMAGE_URL=ftp://" + secret, "begins with http"},
		{"IMAGE_URL=http:///" + secret, "and a host"},
		{"IMAGE_URL='http://[" + secret + "'", "begins with http"},
		{"KERNEL_ARGS=$'a\\n" + secret + "'", "one line"},
		{"CINIT_USER='x: " + secret + "'", "a user's name"},
		{"CINIT_SSH_KEY='" + key + "\n-----BEGIN " + secret + "'", "line 2 is not an SSH public key"},
		{"CINIT_SSH_PWAUTH=perhaps" + secret, "want yes or no"},
		{"DNS_SERVERS='192.0.2.1 " + secret + "'", "entry 2 of the list: want an IP address"},
		{"DNS_SERVERS=fe80::1%eth0", "want an IP address"},
		{"DNS_SEARCH='a b:" + secret + "'", "entry 2 of the list: want domain names"},
		{"ALLOW_URLS='http://a " + secret + "'", "entry 2 of the list"},
		{"ALLOW_URLS=http://a/?" + secret, "without user, password, query"},
		{"DENY_PARAMETERS='image_url " + secret + "'", "entry 2 of the list is no OS parameter; there are cdinstall image_name"},
		{"SHELL_SETTINGS=perhaps" + secret, "want yes or no"},
		{"IDENTITY=perhaps" + secret, "want yes or no"},
		{"IDENTITY_KEEP='blkid machine_id" + secret + "'", "entry 2 of the list: want one of machine-id, random-seed, "},
		{"HOOK_TIMEOUT=-1", "a number of seconds"},
		{"HOOK_TIMEOUT=10m", "a number of seconds"},
		{"HOOK_TIMEOUT=1000000", "a number of seconds"},
		{"INITRAMFS=yes" + secret, "want one of no, rebuild"},
		{"ROOT_PASSWORD=$'a\\n" + secret + "'", "want one line of at most 256 bytes"},
		{"ROOT_PASSWORD=" + secret + strings.Repeat("x", 251), "want one line of at most 256 bytes"},
		{"USER_PASSWORD=$'\\xff" + secret + "'", "want one line of at most 256 bytes"},
		{"ROOT_PASSWORD_HASH=\"$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7\"", "in single quotes where a shell"},
		{"ROOT_PASSWORD_HASH='" + sha512[:60] + "'", "want a whole hash of crypt(5)"},
		{"ROOT_PASSWORD_HASH='" + sha512 + ":" + secret + "'", "want a whole hash of crypt(5)"},
		{"ROOT_PASSWORD_HASH='!'", "want a whole hash of crypt(5)"},
		{"USER_PASSWORD_HASH=" + secret, "want a whole hash of crypt(5)"},
		{"USER_NAME='x:0:" + secret + "'", "a user's name"},
		{"USER_NAME=-" + secret, "a user's name"},
		{"SSH_KEYS='" + key + "\n" + secret + "'", "line 2 is not an SSH public key"},
		{"SSH_KEYS_URL=ftp://" + secret, "begins with http"},
		{"GUEST_FILES=" + secret, "want a list in JSON"},
		{"VARIANTS_DIR=x" + secret, "want an absolute path"},
		{"SEED_DISK=0", "from 1 on"},
		{"SEED_DISK=a/" + secret, "from 1 on"},
		{"DISK_1=ext4:" + secret, "want swap, seed, or data"},
		{"DISK_2=swap:" + secret, "want swap, seed, or data"},
		{"DISK_3=data:ntfs:/" + secret, "the file system: want one of ext2"},
		{"DISK_4=data:ext4:" + secret, "want a mount point"},
		{"DISK_5=data:ext4:/", "want a mount point"},
		{"DISK_6=data:ext4:/a/../" + secret, "want a mount point"},
		{"DISK_15='data:ext4:/a b" + secret + "'", "want a mount point"},
	}
	for _, c := range cases {
		s := newSite(t).with("\n"+c.line+"\n", "")
		_, err := s.load(nil)
		name, _, _ := strings.Cut(c.line, "=")
		if err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("cannot use %s of %s:2: ", name, s.defaults())) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.line, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the message shows the value: %v", c.line, err)
		}
	}
}

func TestLoadRefusesFiles(t *testing.T) {
	s := newSite(t)
	s.with("IMAGE_NAME=x\nif true; then SWAP=no; fi\n", "-")
	if _, err := s.load(nil); err == nil || !strings.Contains(err.Error(), s.defaults()+":2: ") || !strings.Contains(err.Error(), "SHELL_SETTINGS=yes") {
		t.Errorf("a file with if: %v", err)
	}
	s.with("", "ARCH=$(uname -m)\n")
	if _, err := s.load(nil); err == nil || !strings.Contains(err.Error(), s.variant("debian")+":1: ") {
		t.Errorf("a variant with $(): %v", err)
	}
	s = newSite(t)
	if err := os.MkdirAll(s.defaults(), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := s.load(nil); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: %v", err)
	}
	s = newSite(t).with(strings.Repeat("#", shellfile.MaxSize+1), "-")
	if _, err := s.load(nil); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a large file: %v", err)
	}
}

func TestVariant(t *testing.T) {
	s := newSite(t).with("VARIANTS_DIR="+filepath.Join(t.TempDir(), "v")+"\n", "-")
	load := func(variant string) (*Settings, error) {
		return Load(t.Context(), s.Site, osapi.Instance{Variant: variant}, ganeti)
	}
	for _, bad := range []string{"../x", "a/b", ".x", "-x", "x\ny"} {
		if _, err := load(bad); err == nil || !strings.Contains(err.Error(), "one name without a slash") {
			t.Errorf("variant %q: %v", bad, err)
		}
	}
	dir := s.mustLoad(nil).VariantsDir
	if _, err := load("debian-12"); err == nil || !strings.Contains(err.Error(), "create "+dir+"/debian-12.conf") {
		t.Errorf("a missing variant: %v", err)
	}
	s.write(filepath.Join(dir, "debian-12.conf"), "IMAGE_NAME=$OS_VARIANT\n")
	if set, err := load("debian-12"); err != nil || set.ImageName != "debian" {
		t.Errorf("got %+v, %v", set, err)
	}
}

func TestWarnings(t *testing.T) {
	cases := []struct{ defaults, variant, want string }{
		{"IMAGE_NMAE=x", "", "IMAGE_NMAE at /etc/default:1 is not a setting; did you mean IMAGE_NAME?"},
		{"image_name=x", "", "image_name at /etc/default:1 is not a setting; did you mean IMAGE_NAME?"},
		{"", "\nKERNEL_ARG=x", "KERNEL_ARG at /etc/variant:2 is not a setting; did you mean KERNEL_ARGS?"},
		{"MY_NAME=x\nCURL=y\nhttp_proxy=z\nDNS_DOMAIN=w\nADDRESS=v\nNETMASK=u\nGATEWAY=t", "", ""},
		{"FDISK=parted", "", "FDISK of /etc/default:1 is obsolete and has no effect: no partitioning program is needed any more"},
		{"FDISK=", "", ""},
		{"NOMOUNT=yes", "", ""},
		{"NOMOUNT=yes", "GROW=yes", "GROW=yes of /etc/variant:1 has no effect: NOMOUNT=yes of /etc/default:1 leaves the disk as the image has it"},
		{"NOMOUNT=yes\nGROW=no", "", ""},
		{"INSTANCE_NAME=x", "", "INSTANCE_NAME at /etc/default:1 is left out: the name is that of a variable which hooks get from Ganeti or from this program"},
		{"SHELL_SETTINGS=yes", "", ""},
		{"USER_PASSWORD=x", "", "USER_PASSWORD of /etc/default:1 has no effect: USER_NAME is empty"},
		{"USER_PASSWORD_HASH='" + sha512 + "'", "USER_NAME=x", ""},
		{"ROOT_PASSWORD=x", "", ""},
		{"", "SHELL_SETTINGS=yes", "SHELL_SETTINGS at /etc/variant:1 has no effect: it counts in /etc/default only"},
	}
	for _, c := range cases {
		s := newSite(t).with(c.defaults, c.variant)
		got := strings.Join(s.mustLoad(nil).Warnings(), "\n")
		got = strings.NewReplacer(s.defaults(), "/etc/default", s.variant("debian"), "/etc/variant").Replace(got)
		if got != c.want {
			t.Errorf("%q, %q: warned %q, want %q", c.defaults, c.variant, got, c.want)
		}
	}
}

func TestNoMountLeavesTheDisk(t *testing.T) {
	set := newSite(t).with("NOMOUNT=yes", "-").mustLoad(nil)
	if !set.NoMount || set.Grow || set.text("GROW") != "no" {
		t.Errorf("NOMOUNT=yes leaves GROW %v, %q", set.Grow, set.text("GROW"))
	}
}

func TestGanetisVariablesStay(t *testing.T) {
	set := newSite(t).with("INSTANCE_NAME=x DISK_0_PATH=x NIC_COUNT=x OS_VARIANT=x OSP_Y=x HYPERVISOR=x PATH=/x DEBUG_LEVEL=x TARGET=x EXPORT_DEVICE=x\nEXPORT_DIR=/e MINE=x\n", "-").mustLoad(nil)
	if len(set.Warnings()) != 10 {
		t.Errorf("warnings: %q", set.Warnings())
	}
	names := map[string]bool{}
	for _, entry := range set.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if names[name] {
			t.Errorf("%s is there twice", name)
		}
		names[name] = true
	}
	for _, k := range known() {
		if names[k.name] == k.kind.secret {
			t.Errorf("%s is not in the environment of hooks, or is a secret that is", k.name)
		}
		delete(names, k.name)
	}
	if want := map[string]bool{"MINE": true}; !maps.Equal(names, want) {
		t.Errorf("besides the known: %v, want %v", names, want)
	}
}

// TestLaterSourcesSupersede: one thing has several settings.
func TestLaterSourcesSupersede(t *testing.T) {
	cases := []struct {
		defaults, variant string
		params            map[string]string
		want              string // USER_DATA|_FILE|_URL|IMAGE_FILE
	}{
		{"USER_DATA=a", "", nil, "a|||"},
		{"USER_DATA=a", "USER_DATA_FILE=/b", nil, "|/b||"},
		{"USER_DATA=a", "USER_DATA=", nil, "|||"},
		{"USER_DATA_FILE=/a", "USER_DATA=", nil, "|/a||"},
		{"USER_DATA_FILE=/a", "USER_DATA_URL=http://b", map[string]string{"user_data": "c"}, "c|||"},
		{"USER_DATA_FILE=/a", "", map[string]string{"user_data_base64": "Yg=="}, "b|||"},
		{"USER_DATA=a\nALLOW_URLS=http://b", "", map[string]string{"user_data_url": "http://b/c"}, "||http://b/c|"},
		{"IMAGE_FILE=/a", "", nil, "|||/a"},
		{"IMAGE_FILE=/a\nIMAGE_NAME=b", "", nil, "|||/a"},
		{"IMAGE_FILE=/a", "IMAGE_NAME=b", nil, "|||"},
		{"IMAGE_FILE=/a", "IMAGE_NAME=", nil, "|||/a"},
		{"IMAGE_FILE=/a", "IMAGE_URL=http://b", nil, "|||"},
		{"IMAGE_NAME=b", "IMAGE_FILE=/a", nil, "|||/a"},
		{"IMAGE_FILE=/a", "", map[string]string{"image_name": "c"}, "|||"},
		{"IMAGE_FILE=/a", "", map[string]string{"arch": "c"}, "|||/a"},
	}
	for _, c := range cases {
		set, err := newSite(t).with(c.defaults, c.variant).load(c.params)
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		if got := strings.Join([]string{set.UserData, set.UserDataFile, set.UserDataURL, set.ImageFile}, "|"); got != c.want {
			t.Errorf("%+v: got %s", c, got)
		}
	}
	s := newSite(t).with("USER_DATA=a\nUSER_DATA_FILE=/b", "-")
	if _, err := s.load(nil); err == nil || !strings.Contains(err.Error(), "both USER_DATA and USER_DATA_FILE of "+s.defaults()) {
		t.Errorf("two in one file: %v", err)
	}
}

// TestPasswordsSupersede: a password and a hash are one thing.
func TestPasswordsSupersede(t *testing.T) {
	quoted := "='" + sha512 + "'"
	cases := []struct {
		defaults, variant string
		params            map[string]string
		root, user        Access
	}{
		{"", "", nil, Access{}, Access{}},
		{"ROOT_PASSWORD=a:b\\ c", "", nil, Access{Password: "a:b c"}, Access{}},
		{"ROOT_PASSWORD=a", "ROOT_PASSWORD_HASH" + quoted, nil, Access{PasswordHash: sha512}, Access{}},
		{"ROOT_PASSWORD_HASH" + quoted, "ROOT_PASSWORD=a", nil, Access{Password: "a"}, Access{}},
		{"ROOT_PASSWORD=a\nUSER_PASSWORD=b", "USER_PASSWORD_HASH" + quoted, nil, Access{Password: "a"}, Access{PasswordHash: sha512}},
		{"USER_PASSWORD=a", "", map[string]string{"user_password_hash": sha512}, Access{}, Access{PasswordHash: sha512}},
		{"USER_PASSWORD_HASH" + quoted, "USER_PASSWORD=", map[string]string{"root_password": "c"}, Access{Password: "c"}, Access{PasswordHash: sha512}},
	}
	for _, c := range cases {
		set, err := newSite(t).with(c.defaults, c.variant).load(c.params)
		if err != nil || set.RootAccess != c.root || set.UserAccess != c.user {
			t.Errorf("%q, %q, %v: got %+v, %+v, %v", c.defaults, c.variant, c.params, set.RootAccess, set.UserAccess, err)
		}
	}
	s := newSite(t).with("", "USER_PASSWORD=a\nUSER_PASSWORD_HASH"+quoted)
	if _, err := s.load(nil); err == nil || !strings.Contains(err.Error(), "both USER_PASSWORD and USER_PASSWORD_HASH of "+s.variant("debian")) {
		t.Errorf("two in one file: %v", err)
	}
}

// TestPasswordHashes: the judge of what a hash is, is crypt(3) of the C library.
func TestPasswordHashes(t *testing.T) {
	need.Tools(t, "perl")
	settings := []string{
		"$1$abcdefgh$", "$1$a$", "$5$saltstring$", "$5$rounds=5000$saltstring$", "$6$abcdefghABCD./01$", "$6$rounds=10000$a$",
		"$2b$05$abcdefghijklmnopqrstuu", "$2y$05$abcdefghijklmnopqrstuu", "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$", "$gy$j9T$F5Jx5fExrKuPp53xLKQ..1$", "$7$CU..../....2Q9obwLhin8qvQl6sisAO/$",
	}
	result, err := run.Cmd{What: "hash", Argv: append([]string{"perl", "-e", `print crypt("pass word", $_) // "*0", "\n" for @ARGV`}, settings...)}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	hashes := strings.Fields(string(result.Stdout))
	if len(hashes) != len(settings) {
		t.Fatalf("got %q", hashes)
	}
	for i, hash := range hashes {
		if strings.HasPrefix(hash, "*") {
			t.Logf("crypt(3) does not know %s", settings[i])
			continue
		}
		if _, err := checkPasswordHash(hash); err != nil {
			t.Errorf("%s: %v", hash, err)
		}
		for _, bad := range []string{hash[:len(hash)-1], hash + "x", hash[1:], hash + "\n", " " + hash, "!" + hash, strings.Replace(hash, "$", "", 1)} {
			if _, err := checkPasswordHash(bad); err == nil {
				t.Errorf("%q is taken", bad)
			}
		}
	}
}

// A secret whose name has a slip in it is said to be none, and no hook gets it.
func TestMisspeltSecrets(t *testing.T) {
	set := newSite(t).with("ROOT_PASWORD=s3cret\nMY_PASSWORD=mine", "-").mustLoad(nil)
	if environ := strings.Join(set.Environ(), "\n"); strings.Contains(environ, "s3cret") || !strings.Contains(environ, "MY_PASSWORD=mine") {
		t.Errorf("hooks get %s", environ)
	}
	if warnings := set.Warnings(); len(warnings) != 1 || !strings.Contains(warnings[0], "did you mean ROOT_PASSWORD?") || strings.Contains(warnings[0], "s3cret") {
		t.Errorf("warnings: %q", warnings)
	}
}

func TestWithoutSecrets(t *testing.T) {
	environ := []string{"OSP_ROOT_PASSWORD=x", "OSP_USER_PASSWORD_HASH=x", "OSP_GUEST_FILES=[]", "OSP_GUEST-FILES=x", "OSP_USER_DATA=x", "OSP_USER_DATA_BASE64=eA==", "OSP_SWAP=no", "OSP_OS_IMAGE=/x", "ROOT_PASSWORDS=y", "OSP_X=z"}
	if got, want := WithoutSecrets(environ), environ[6:]; !slices.Equal(got, want) || environ[0] != "OSP_ROOT_PASSWORD=x" {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestHooksReadWhatTheyAreGiven(t *testing.T) {
	s := newSite(t).with("IMAGE_DIR=/images BOOT_SIZE=1536K DNS_SERVERS=192.0.2.1,2001:db8::1 CINIT_SSH_PWAUTH=no\nCINIT_SSH_KEY='"+key+"\n"+key+"'\nMINE=x", "IMAGE_TYPE=auto NOMOUNT=yes")
	set := s.mustLoad(map[string]string{"user_data": "s3cret", "os_image": "/x", "cinit_disable_root": "1",
		"root_password": "s3cret", "guest_files": `[{"path": "/a", "text": "s3cret"}]`, "identity_keep": "blkid,iscsi", "user_name": "u", "ssh_keys": key})
	again, err := FromEnviron(slices.Concat([]string{"IMAGE_DIR=/old", "OSP_OS_IMAGE=/x"}, set.Environ()))
	if err != nil {
		t.Fatal(err)
	}
	if set.RootAccess.Password == "" || len(set.GuestFiles) != 1 || strings.Contains(strings.Join(set.Environ(), "\n"), "s3cret") {
		t.Errorf("got %+v, hooks get %q", set, set.Environ())
	}
	if diff := cmp.Diff(set, again, cmpopts.IgnoreUnexported(Settings{}), cmpopts.EquateComparable(netip.Addr{}), notForHooks); diff != "" {
		t.Error(diff)
	}
	if set.UserData != "s3cret" || !again.OSImage || again.Cinit.DisableRoot != Yes {
		t.Errorf("got %+v", again)
	}
	if got := again.Origin("IMAGE_DIR").String(); got != "the variable IMAGE_DIR of the environment" {
		t.Errorf("origin %s", got)
	}
	if _, err := FromEnviron([]string{"SWAP=perhaps"}); err == nil || !strings.Contains(err.Error(), "SWAP of the variable SWAP of the environment: want yes or no") {
		t.Errorf("got %v", err)
	}
}

func TestTheZeroSettingsAreUsable(t *testing.T) {
	set := &Settings{ImageName: "x"}
	if set.Origin("IMAGE_NAME").String() != "built-in default" || len(set.Environ()) == 0 || set.Warnings() != nil || (Origin{}).String() != "built-in default" {
		t.Error("a zero value is not")
	}
}

func TestSettingsOfTheProcessDoNotCount(t *testing.T) {
	s := newSite(t).with("ARCH=${SWAP:-unset}\n", "-")
	set, err := Load(t.Context(), s.Site, osapi.Instance{}, []string{"SWAP=no", "IMAGE_NAME=x"})
	if err != nil || !set.Swap || set.ImageName != "" || set.Arch != "unset" {
		t.Errorf("got %+v, %v", set, err)
	}
}

func TestDefaultFile(t *testing.T) {
	installed, err := os.ReadFile("../../packaging/default")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(defaultFile()), string(installed)); diff != "" {
		t.Errorf("packaging/default is not what the table says; write it anew with UPDATE=1 (-table +file):\n%s", diff)
	}
	found, err := shellfile.Parse("default", installed, func(string) (string, bool) { return "", false })
	if err != nil || len(found) > 0 {
		t.Errorf("as installed it sets %v, %v", found, err)
	}
	enabled := regexp.MustCompile(`(?m)^#([A-Z_0-9]+=)`).ReplaceAll(installed, []byte("$1"))
	found, err = shellfile.Parse("default", enabled, func(string) (string, bool) { return "", false })
	names := map[string]string{}
	for _, a := range found {
		names[a.Name] = a.Value
	}
	if err != nil || len(names) != len(found) {
		t.Errorf("with every line enabled: %v, %v", found, err)
	}
	l := newLoader(Site{"/etc", "/var"}, 0, nil)
	for _, s := range moreDiskUses() {
		delete(l.defaults, s.name)
	}
	if diff := cmp.Diff(l.defaults, names); diff != "" {
		t.Errorf("the lines to enable are not the defaults (-defaults +file):\n%s", diff)
	}
	for line := range strings.Lines(string(installed)) {
		if len(line) > 81 {
			t.Errorf("a long line: %s", line)
		}
	}
}

// TestMain writes the generated files where UPDATE=1 asks for it.
func TestMain(m *testing.M) {
	if os.Getenv("UPDATE") == "1" {
		for path, text := range map[string][]byte{"../../os-def/parameters.list": ParametersList(), "../../packaging/default": defaultFile()} {
			if err := os.WriteFile(path, text, 0o644); err != nil {
				panic(err)
			}
		}
	}
	os.Exit(m.Run())
}

func FuzzLoad(f *testing.F) {
	f.Add("IMAGE_NAME=x\nSWAP=no\n", "debian-12", "SWAP_SIZE=2G\n")
	f.Add(allEmpty(), "x", "CINIT_SSH_KEY='"+key+"'\n")
	f.Add("SHELL_SETTINGS=yes\nif x; then\n", "", "DENY_PARAMETERS=swap\nALLOW_URLS=http://a/%2e")
	f.Fuzz(func(t *testing.T, defaults, variant, text string) {
		l := newLoader(Site{"/etc", "/var"}, 0, ganeti)
		l.policyOnly = true // so that nothing is run
		l.s.ShellSettings = strings.Contains(defaults, "SHELL")
		for _, file := range []string{defaults, text} {
			if l.take(t.Context(), "file", []byte(file), l.visible()) != nil {
				return
			}
		}
		if l.takeParameters(map[string]string{"image_name": variant, "user_data_base64": text}) != nil {
			return
		}
		set, err := l.finish()
		if err != nil {
			return
		}
		again, err := FromEnviron(set.Environ())
		if err != nil {
			t.Fatalf("hooks cannot read what they are given: %v", err)
		}
		if diff := cmp.Diff(set, again, cmpopts.IgnoreUnexported(Settings{}), cmpopts.EquateComparable(netip.Addr{}), notForHooks, cmpopts.IgnoreFields(Settings{}, "OSImage")); diff != "" {
			t.Fatal(diff)
		}
	})
}
