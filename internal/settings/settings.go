// Package settings says what a site wants: it reads /etc/default, the variant
// and the OS parameters, checks each value by its kind, and knows of each
// where it was set. One table (table.go) holds every setting with its kind,
// default, OS parameter and meaning; the checks, parameters.list, the hooks'
// environment and the installed default file are made from it.
//
// A later source wins: built-in default, SYSCONF/default/ganeti-instance-image,
// VARIANTS_DIR/VARIANT.conf, OS parameter. An empty value means the built-in
// default, in each of them. A name the table does not have is the site's own
// and reaches the hooks as it is.
//
// OS parameters come from whoever may add an instance and may be private or
// secret. So their values, and those of files, which may be made of them,
// stand in no message: messages name the setting, its place and the rule.
//
// Left out: the network files, which package network reads; whether an image,
// a directory or a subnet that a setting names is there.
package settings

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"ganeti-instance-image/internal/size"
)

// What EXPORT_FORMAT can be.
const (
	ExportTar   = "tar"
	ExportRaw   = "raw"
	ExportQCOW2 = "qcow2"
	ExportDump  = "dump"
)

// Settings is what is wanted for one instance. Its zero value has no origins.
type Settings struct {
	CDInstall    bool
	ImageName    string // one path component
	ImageType    string // tarball, dump, qemu, qcow2, raw; empty: the one that is there
	Arch         string
	ImageDir     string // absolute, as all directories
	ImageFile    string // an absolute path; empty where a later source names another image
	ImageURL     string // http or https
	ImageVerify  bool
	ImageCleanup bool
	CacheDir     string

	Swap           bool
	SwapSize       size.Bytes // 0 only where the instance's memory is not known
	BootSize       size.Bytes
	MkfsOptions    []string
	PartitionTable string // auto, msdos, gpt
	ESPSize        size.Bytes
	GRUB           string // auto, no
	Filesystem     string // ext2, ext3, ext4, xfs, btrfs
	KernelArgs     string // one line
	NoMount        bool
	Grow           bool   // never together with NoMount
	SeedDisk       string // the number of a further disk, or its name
	DiskUses       [MaxDisks]DiskUse

	CustomizeDir      string
	OverlaysDir       string
	Overlay           string // one path component under OverlaysDir
	NetworksDir       string
	Subnet            string // one path component under NetworksDir/subnets
	VariantsDir       string
	ExportFormat      string // ExportTar, ExportRaw, ExportQCOW2 or ExportDump
	ExportCompression string
	ImportIdentity    string // keep or renew
	ImportDir         string

	HookTimeout  time.Duration // 0: none
	Identity     Tristate
	IdentityKeep []string // of IdentityParts
	Initramfs    string   // no, rebuild
	RootAccess   Access
	User         string // a user to make; empty: none
	UserAccess   Access
	SSHKeys      []string // lines of an authorized_keys file
	SSHKeysURL   string
	GuestFiles   []GuestFile

	Cinit        Cinit
	DNSServers   []netip.Addr
	DNSSearch    []string
	UserData     string // of the three at most one is set
	UserDataFile string
	UserDataURL  string

	AllowURLs      []string // URL prefixes
	DenyParameters []string // names of OS parameters, with "_"
	ShellSettings  bool
	Debug          bool
	OSImage        bool // Ganeti has written the disk itself (the parameter os-image)

	values   map[string]value // text and origin by name, of known settings and the site's own
	own      []string         // the site's own names, as they came
	warnings []string
}

// MaxDisks is how many disks Ganeti gives an instance at most.
const MaxDisks = 16

// DiskUse is what a further disk is for; its zero value leaves the disk alone.
type DiskUse struct {
	What       string // swap, seed, data
	Filesystem string // of data
	Mountpoint string // of data: a path in the guest
}

// SeedOnDisk tells whether the seed for cloud-init goes to a disk of its own.
func (s *Settings) SeedOnDisk() bool {
	return s.SeedDisk != "" || slices.ContainsFunc(s.DiskUses[:], func(u DiskUse) bool { return u.What == "seed" })
}

// Access is how a user of the guest may log in; at most one field is set.
type Access struct {
	Password     string // as it is typed
	PasswordHash string // as crypt(5) has it
}

// IdentityParts are the names of what IDENTITY takes from a guest, in the order
// it does.
var IdentityParts = []string{"machine-id", "random-seed", "dhcp-leases", "net-names", "lvm-devices", "iscsi", "credential-secret", "blkid", "cloud-init"}

// Cinit is what cloud-init is told of users; a zero field leaves the image as
// it is.
type Cinit struct {
	User             string
	SSHKeys          []string // lines of an authorized_keys file
	SSHPasswordAuth  Tristate
	DisableRoot      Tristate
	ManageResolvConf Tristate
}

// Tristate is a switch that may be left alone.
type Tristate int

// The states of a Tristate.
const (
	Unset Tristate = iota
	Yes
	No
)

// Site is where a site's files are.
type Site struct {
	Sysconf    string // as /etc
	Localstate string // as /var
}

// Origin is where a value was set.
type Origin struct {
	File string // empty where it was not a file
	Line int    // 0 where the file was evaluated by bash
	What string // instead of a file: "OS parameter swap", "built-in default"
}

// String is the origin in words, as in "/etc/default/ganeti-instance-image:12".
func (o Origin) String() string {
	switch {
	case o.File != "" && o.Line > 0:
		return fmt.Sprintf("%s:%d", o.File, o.Line)
	case o.File != "":
		return o.File
	case o.What != "":
		return o.What
	}
	return builtIn.What
}

var builtIn = Origin{What: "built-in default"}

// value is a setting as text.
type value struct {
	text   string
	origin Origin
}

// Origin tells where a setting got its value, for messages.
func (s *Settings) Origin(name string) Origin {
	if v, ok := s.values[name]; ok {
		return v.origin
	}
	return builtIn
}

// Warnings are sentences for the log: what was set and has no effect, and
// names that look like a slip.
func (s *Settings) Warnings() []string { return slices.Clone(s.warnings) }

// Order has an image of the administrator's choice deployed, by a file's path, a
// URL, or its name, whatever the settings say; its type is told by its content.
func (s *Settings) Order(image string) {
	set := func(name string, field *string, text string) {
		*field = text
		s.values[name] = value{text, Origin{What: "the command line"}}
	}
	set("IMAGE_TYPE", &s.ImageType, "")
	set("IMAGE_FILE", &s.ImageFile, "")
	switch {
	case strings.HasPrefix(image, "/"):
		set("IMAGE_FILE", &s.ImageFile, image)
	case strings.Contains(image, "://"):
		set("IMAGE_URL", &s.ImageURL, image)
	default: // IMAGE_URL may be where images of that name are
		set("IMAGE_NAME", &s.ImageName, image)
	}
}

// OrderSeed has the seed go to a disk of the administrator's choice.
func (s *Settings) OrderSeed(disk int) {
	for n := range s.DiskUses {
		s.DiskUses[n] = DiskUse{}
	}
	s.SeedDisk = strconv.Itoa(disk)
	s.values["SEED_DISK"] = value{s.SeedDisk, Origin{What: "the command line"}}
}

func (s *Settings) warn(format string, args ...any) {
	s.warnings = append(s.warnings, fmt.Sprintf(format, args...))
}

// Environ is every setting as NAME=value for the hooks: the known ones with
// their defaults, switches as yes or no, sizes in MiB, and then the site's own.
// It has no name that is Ganeti's, and no secret.
func (s *Settings) Environ() []string {
	var environ []string
	for _, k := range known() {
		if k.kind.secret {
			continue
		}
		environ = append(environ, k.name+"="+s.values[k.name].text)
	}
	for _, name := range s.own {
		environ = append(environ, name+"="+s.values[name].text)
	}
	return environ
}

// WithoutSecrets is the environment that Ganeti gave to create, without the OS
// parameters of which hooks see nothing, as of Environ.
func WithoutSecrets(environ []string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		key, isParameter := strings.CutPrefix(name, "OSP_")
		if !isParameter {
			return false
		}
		k, _ := findParameter(paramKey(strings.ToLower(key)))
		return k.kind.secret
	})
}
