package guest

import (
	"errors"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
)

// Family is a set of distributions that keep their files in the same places.
type Family string

// The families; FamilyUnknown is a guest whose distribution is not recognised.
const (
	FamilyUnknown Family = ""
	Debian        Family = "debian"
	Ubuntu        Family = "ubuntu"
	RHEL          Family = "rhel"
	Fedora        Family = "fedora"
	SUSE          Family = "suse"
	Gentoo        Family = "gentoo"
	Alpine        Family = "alpine"
	Arch          Family = "arch"
	Void          Family = "void"
	NixOS         Family = "nixos"
	CoreOS        Family = "coreos"
)

// Distro is what distribution a guest is.
type Distro struct {
	ID        string   // os-release's ID, in lower case: "debian", "almalinux"
	IDLike    []string // os-release's ID_LIKE, the nearest first
	VersionID string   // "12", "9.4"; not set on distributions that roll
	Name      string   // for people: "Debian GNU/Linux 12 (bookworm)"
	Family    Family
	Source    string // the file that says so
}

// families names the family of an ID, and of an entry of ID_LIKE.
var families = map[string]Family{
	"debian": Debian, "devuan": Debian, "kali": Debian, "raspbian": Debian,
	"ubuntu": Ubuntu, "ubuntu-core": Ubuntu, "linuxmint": Ubuntu, "pop": Ubuntu,
	"rhel": RHEL, "centos": RHEL, "almalinux": RHEL, "rocky": RHEL, "ol": RHEL, "scientific": RHEL,
	"openeuler": RHEL, "tencentos": RHEL, "circle": RHEL,
	"fedora": Fedora,
	"suse":   SUSE, "opensuse": SUSE, "sles": SUSE, "sled": SUSE, "sle-micro": SUSE,
	"opensuse-leap": SUSE, "opensuse-tumbleweed": SUSE, "opensuse-microos": SUSE, "opensuse-leap-micro": SUSE, "sl-micro": SUSE,
	"gentoo": Gentoo, "alpine": Alpine, "arch": Arch, "void": Void,
	"nixos": NixOS, "coreos": CoreOS, "flatcar": CoreOS,
}

// legacy are the files from before os-release, in the order they are tried:
// some distributions carry the file of the one they derive from as well.
var legacy = []struct {
	file, id string
	version  *regexp.Regexp // its first group is the version; nil: the file does not say
}{
	{"/etc/openmandriva-release", "openmandriva", release},
	{"/etc/oracle-release", "ol", release},
	{"/etc/centos-release", "centos", release},
	{"/etc/circle-release", "circle", release},
	{"/etc/rocky-release", "rocky", release},
	{"/etc/fedora-release", "fedora", release},
	{"/etc/redhat-release", "rhel", release},
	{"/etc/debian_version", "debian", firstWord},
	{"/etc/arch-release", "arch", nil},
	{"/etc/gentoo-release", "gentoo", release},
	{"/etc/SuSE-release", "suse", regexp.MustCompile(`(?m)^VERSION\s*=\s*(\S+)`)},
	{"/etc/alpine-release", "alpine", firstWord},
}

var (
	release   = regexp.MustCompile(`release ([0-9][0-9.]*)`)
	firstWord = regexp.MustCompile(`^(\S+)`)
)

// derivatives are told apart by what redhat-release calls itself.
var derivatives = []struct{ name, id string }{
	{"Fedora", "fedora"}, {"CentOS", "centos"}, {"Scientific", "scientific"}, {"AlmaLinux", "almalinux"}, {"Rocky", "rocky"},
}

const releaseLimit = 64 * size.KiB

// Distro finds out what distribution the guest is, from its files alone. One
// that says nothing is the zero Distro.
func (r *Root) Distro() Distro {
	for _, file := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		if text, err := r.ReadFile(file, releaseLimit); err == nil {
			if d := osRelease(file, text); d.ID != "" {
				return d
			}
		}
	}
	return r.legacyDistro()
}

func osRelease(file string, text []byte) Distro {
	vars := shellVariables(string(text))
	d := Distro{
		ID:        strings.ToLower(vars["ID"]),
		IDLike:    strings.Fields(strings.ToLower(vars["ID_LIKE"])),
		VersionID: vars["VERSION_ID"],
		Name:      vars["PRETTY_NAME"],
		Source:    file,
	}
	d.Family = family(d)
	return d
}

func family(d Distro) Family {
	if d.ID == "amzn" { // version 2 is from CentOS 7, later ones are from Fedora
		if d.VersionID == "2" || strings.HasPrefix(d.VersionID, "201") {
			return RHEL
		}
		return Fedora
	}
	for _, id := range append([]string{d.ID}, d.IDLike...) {
		if f, ok := families[id]; ok {
			return f
		}
	}
	return FamilyUnknown
}

func (r *Root) legacyDistro() Distro {
	if text, err := r.ReadFile("/etc/lsb-release", releaseLimit); err == nil {
		vars := shellVariables(string(text))
		if id := strings.ToLower(vars["DISTRIB_ID"]); id != "" {
			d := Distro{ID: id, VersionID: vars["DISTRIB_RELEASE"], Name: vars["DISTRIB_DESCRIPTION"], Source: "/etc/lsb-release"}
			d.Family = family(d)
			return d
		}
	}
	for _, l := range legacy {
		text, err := r.ReadFile(l.file, releaseLimit)
		if err != nil {
			continue
		}
		line, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
		d := Distro{ID: l.id, Name: line, Source: l.file}
		if l.version != nil {
			if m := l.version.FindStringSubmatch(string(text)); m != nil {
				d.VersionID = m[1]
			}
		}
		if l.id == "rhel" {
			d.ID = derivative(line)
		}
		d.Family = family(d)
		return d
	}
	return Distro{}
}

func derivative(line string) string {
	for _, d := range derivatives {
		if strings.HasPrefix(line, d.name) {
			return d.id
		}
	}
	return "rhel"
}

// shellVariables reads NAME=value lines in a shell's quoting, as os-release(5)
// has them. Nothing is expanded; a line that is not an assignment is skipped.
func shellVariables(text string) map[string]string {
	vars := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && !strings.HasPrefix(name, "#") {
			vars[strings.TrimPrefix(name, "export ")] = unquote(value)
		}
	}
	return vars
}

// unquote takes off a shell's quotes, up to the first blank outside of them.
func unquote(text string) string {
	var out strings.Builder
	quote := byte(0)
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\' && quote != '\'' && i+1 < len(text):
			i++
			if quote == '"' && !strings.ContainsRune("$\"\\`", rune(text[i])) {
				out.WriteByte('\\')
			}
			out.WriteByte(text[i])
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case c == quote:
			quote = 0
		case quote == 0 && (c == ' ' || c == '\t'):
			return out.String()
		default:
			out.WriteByte(c)
		}
	}
	return out.String()
}

// immutables are guests whose /etc is made anew from elsewhere, or is not where
// the root file system shows it, or cannot be written to: what is written there
// would be lost or never be read.
var immutables = []struct {
	what string
	is   func(*Root, Distro) bool
}{
	{"an ostree system, whose /etc is in its deployments", func(r *Root, _ Distro) bool {
		return r.isDir("/ostree/repo") || r.isDir("/sysroot/ostree/repo")
	}},
	{"NixOS, which makes /etc from its configuration", func(r *Root, d Distro) bool {
		return d.Family == NixOS || r.isFile("/etc/NIXOS") || r.isDir("/nix/store") && r.isDir("/etc/static")
	}},
	{"Guix, which makes /etc from its configuration", func(r *Root, d Distro) bool {
		return d.ID == "guix" || r.isDir("/gnu/store") && r.isDir("/var/guix/profiles") && !r.isFile("/etc/fstab")
	}},
	{"Ubuntu Core, which is made of snaps", func(r *Root, d Distro) bool {
		return d.ID == "ubuntu-core" || r.isDir("/system-data/var/lib/snapd") || r.isDir("/writable/system-data")
	}},
	{"a Container Linux, whose /etc Ignition fills", func(_ *Root, d Distro) bool { return d.Family == CoreOS }},
	{"an image that makes /etc at each boot", func(_ *Root, d Distro) bool {
		return slices.Contains([]string{"bottlerocket", "cos", "talos"}, d.ID)
	}},
	{"a guest with an overlay on /etc", func(r *Root, _ Distro) bool { return r.hasOverlayOnEtc() }},
	{"a guest whose root is a read-only snapshot or file system", func(r *Root, _ Distro) bool { return r.isReadOnly("/etc") }},
}

// Immutable tells whether the guest's /etc is generated or read-only, as on
// NixOS, ostree, Ubuntu Core, Container Linux and openSUSE MicroOS, and what the
// guest is then, for a message: such a guest is left to cloud-init or Ignition.
func (r *Root) Immutable() (what string, ok bool) {
	d := r.Distro()
	for _, i := range immutables {
		if i.is(r, d) {
			return i.what, true
		}
	}
	return "", false
}

// hasOverlayOnEtc is how openSUSE MicroOS had it until 2024.
func (r *Root) hasOverlayOnEtc() bool {
	text, err := r.ReadFile("/etc/fstab", releaseLimit)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) > 2 && fields[0][0] != '#' && fields[1] == "/etc" && fields[2] == "overlay" {
			return true
		}
	}
	return false
}

// isReadOnly tells whether a directory is on a file system, or in a btrfs
// snapshot, that nothing can be written to.
func (r *Root) isReadOnly(name string) bool {
	fd, err := r.open(name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return errors.Is(unix.Access(byFD(fd, ""), unix.W_OK), unix.EROFS)
}

// IsRoot tells whether the tree is a Linux root file system, by the rule of
// libguestfs: /etc is a directory, /bin is one or a link to usr/bin, and
// /etc/fstab or /etc/hosts is a file.
func (r *Root) IsRoot() bool {
	if info, err := r.Lstat("/etc"); err != nil || !info.IsDir() {
		return false
	}
	info, err := r.Lstat("/bin")
	if err != nil {
		return false
	}
	if !info.IsDir() {
		target, err := r.Readlink("/bin")
		if err != nil || strings.Trim(target, "/") != "usr/bin" {
			return false
		}
	}
	return r.isFile("/etc/fstab") || r.isFile("/etc/hosts")
}
