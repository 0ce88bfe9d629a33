package settings

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"

	"ganeti-instance-image/internal/size"
)

// kind is what a setting's text must be. check gets no empty text; it returns
// the text as hooks get it, or an error that says the rule and not the text.
type kind struct {
	check     func(text string) (string, error)
	separator string // of a list's entries in the checked text
	secret    bool   // what is nobody's to see: not even hooks get it
	fetched   bool   // what it names is fetched: of an OS parameter, only from under ALLOW_URLS
}

var (
	yesNo             = kind{check: checkYesNo}
	tristate          = kind{check: checkYesNo}
	sizeMiB           = kind{check: checkSize}
	anyText           = kind{check: checkText}
	oneLine           = kind{check: checkOneLine}
	component         = kind{check: matching(`[A-Za-z0-9_][A-Za-z0-9_.+~@:=,-]{0,199}`, "one name without a slash: letters, digits and _ . + ~ @ : = , - and no dot or dash first")}
	arch              = kind{check: matching(`[A-Za-z0-9_.-]{1,64}`, "letters, digits and _ . - only")}
	userName          = kind{check: matching(`[A-Za-z_][A-Za-z0-9_.-]{0,31}`, "a user's name: letters, digits and _ . - and at most 32 of them")}
	absPath           = kind{check: checkPath}
	partitionTable    = kind{check: oneOf("auto", "msdos", "gpt")}
	filesystem        = kind{check: oneOf("ext2", "ext3", "ext4", "xfs", "btrfs")}
	options           = kind{check: checkOptions, separator: " "}
	grub              = kind{check: oneOf("auto", "no")}
	imageType         = kind{check: checkImageType}
	webURL            = kind{check: checkURL, fetched: true}
	urlPrefixes       = kind{check: each(checkPrefix), separator: " "}
	paramNames        = kind{check: each(checkParamName), separator: " "}
	sshKeys           = kind{check: checkKeys, separator: "\n"}
	addresses         = kind{check: each(checkAddress), separator: " "}
	domains           = kind{check: each(matching(`[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})`, "domain names")), separator: " "}
	base64Text        = kind{check: checkBase64, secret: true}
	userData          = kind{check: checkText, secret: true}
	diskName          = kind{check: matching(`[1-9][0-9]?|[A-Za-z_][A-Za-z0-9_.+~@:=,-]{0,199}`, "the number of a disk, from 1 on, or its name")}
	diskUse           = kind{check: checkDiskUse}
	identityParts     = kind{check: each(oneOf(IdentityParts...)), separator: " "}
	seconds           = kind{check: matching(`0|[1-9][0-9]{0,5}`, "a number of seconds, or 0 for no limit")}
	initramfs         = kind{check: oneOf("no", "rebuild")}
	exportFormat      = kind{check: oneOf(ExportTar, ExportRaw, ExportQCOW2, ExportDump)}
	exportCompression = kind{check: oneOf("zstd", "none")}
	importIdentity    = kind{check: oneOf("keep", "renew")}
	password          = kind{check: checkPassword, secret: true}
	passwordHash      = kind{check: checkPasswordHash, secret: true}
	guestFiles        = kind{check: checkGuestFiles, secret: true}
)

// decode sets a field from checked text; empty text is the zero value.
func decode(field any, k kind, text string) error {
	var err error
	switch f := field.(type) {
	case *string:
		*f = text
	case *bool:
		*f = text == "yes"
	case *DiskUse:
		*f = parseDiskUse(text)
	case *time.Duration:
		*f = 0
		if n, err := strconv.Atoi(text); err == nil {
			*f = time.Duration(n) * time.Second
		}
	case *[]GuestFile:
		if *f = nil; text != "" {
			*f, err = parseGuestFiles(text)
		}
	case *Tristate:
		*f = map[string]Tristate{"yes": Yes, "no": No}[text]
	case *size.Bytes:
		if *f = 0; text != "" {
			*f, err = size.ParseMiB(text)
		}
	case *[]string:
		*f = entries(text, k.separator)
	case *[]netip.Addr:
		*f = nil
		for _, entry := range entries(text, k.separator) {
			*f = append(*f, netip.MustParseAddr(entry))
		}
	default:
		panic(fmt.Sprintf("a setting of type %T", field))
	}
	return err
}

func entries(text, separator string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, separator)
}

func checkYesNo(text string) (string, error) {
	switch strings.ToLower(text) {
	case "yes", "1", "true", "on":
		return "yes", nil
	case "no", "0", "false", "off":
		return "no", nil
	}
	return "", errors.New("want yes or no")
}

// checkSize writes a size in MiB, which hooks count in, or else in KiB.
func checkSize(text string) (string, error) {
	n, err := size.ParseMiB(text)
	if err != nil || n == 0 {
		return "", errors.New("want a number of MiB above 0, or one followed by K, M, G or T")
	}
	if n%size.MiB == 0 {
		return strconv.FormatInt(int64(n/size.MiB), 10), nil
	}
	return strconv.FormatInt(int64(n/size.KiB), 10) + "K", nil
}

func checkText(text string) (string, error) { return text, nil }

func checkOneLine(text string) (string, error) {
	if hasControl(text) || !utf8.ValidString(text) {
		return "", errors.New("want one line of text")
	}
	return text, nil
}

// checkPassword wants what can be typed: a line of at most 256 bytes.
func checkPassword(text string) (string, error) {
	if _, err := checkOneLine(text); err != nil || len(text) > 256 {
		return "", errors.New("want one line of at most 256 bytes")
	}
	return text, nil
}

// passwordHashes are the hashes of crypt(5) that guests since 2010 know, as
// libxcrypt documents them. They are given as a whole, since a hash that was cut,
// or of which a shell took "$6" for a parameter, would lock its user out.
var passwordHashes = regexp.MustCompile(`^(?:` + strings.Join([]string{
	`\$1\$[A-Za-z0-9./_-]{0,8}\$[A-Za-z0-9./]{22}`,                             // md5crypt
	`\$5\$(rounds=[1-9][0-9]{0,8}\$)?[A-Za-z0-9./_-]{0,16}\$[A-Za-z0-9./]{43}`, // sha256crypt
	`\$6\$(rounds=[1-9][0-9]{0,8}\$)?[A-Za-z0-9./_-]{0,16}\$[A-Za-z0-9./]{86}`, // sha512crypt
	`\$2[abxy]\$[0-3][0-9]\$[A-Za-z0-9./]{53}`,                                 // bcrypt
	`\$g?y\$[A-Za-z0-9./]{1,32}\$[A-Za-z0-9./]{0,86}\$[A-Za-z0-9./]{43}`,       // yescrypt, gost-yescrypt
	`\$7\$[A-Za-z0-9./]{11,97}\$[A-Za-z0-9./]{43}`,                             // scrypt
}, "|") + `)$`)

func checkPasswordHash(text string) (string, error) {
	if !passwordHashes.MatchString(text) {
		return "", errors.New("want a whole hash of crypt(5), such as that of openssl passwd -6, in single quotes where a shell or a settings file could take its $ for a variable")
	}
	return text, nil
}

// checkOptions is a program's arguments, with spaces between and no quoting.
func checkOptions(text string) (string, error) {
	text, err := checkOneLine(text)
	return strings.Join(strings.Fields(text), " "), err
}

func hasControl(text string) bool {
	return strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f })
}

func checkPath(text string) (string, error) {
	if !filepath.IsAbs(text) || hasControl(text) {
		return "", errors.New("want an absolute path, from the first / on")
	}
	return text, nil
}

// matching wants a text that a regular expression matches as a whole.
func matching(expression, want string) func(string) (string, error) {
	whole := regexp.MustCompile(`^(?:` + expression + `)$`)
	return func(text string) (string, error) {
		if !whole.MatchString(text) {
			return "", errors.New("want " + want)
		}
		return text, nil
	}
}

func oneOf(words ...string) func(string) (string, error) {
	return func(text string) (string, error) {
		if !slices.Contains(words, text) {
			return "", errors.New("want one of " + strings.Join(words, ", "))
		}
		return text, nil
	}
}

func checkImageType(text string) (string, error) {
	if text == "auto" {
		return "", nil
	}
	return oneOf("tarball", "dump", "qemu", "qcow2", "raw", "auto")(text)
}

var mountPoint = regexp.MustCompile(`^(/[A-Za-z0-9_@:+-][A-Za-z0-9_.@:+-]*)+$`)

// checkDiskUse wants swap, seed, or data:FILESYSTEM:MOUNTPOINT.
func checkDiskUse(text string) (string, error) {
	use := parseDiskUse(text)
	switch {
	case text == "swap" || text == "seed":
		return text, nil
	case use.What != "data":
		return "", errors.New("want swap, seed, or data:FILESYSTEM:MOUNTPOINT")
	case !mountPoint.MatchString(use.Mountpoint):
		return "", errors.New("want a mount point such as /srv behind the second colon")
	}
	if _, err := filesystem.check(use.Filesystem); err != nil {
		return "", fmt.Errorf("the file system: %w", err)
	}
	return text, nil
}

func parseDiskUse(text string) DiskUse {
	what, rest, _ := strings.Cut(text, ":")
	kind, mountpoint, _ := strings.Cut(rest, ":")
	return DiskUse{what, kind, mountpoint}
}

// each wants a list with spaces, commas or line ends between its entries.
func each(check func(string) (string, error)) func(string) (string, error) {
	return func(text string) (string, error) {
		var checked []string
		for _, entry := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" \t\n,", r) }) {
			entry, err := check(entry)
			if err != nil {
				return "", fmt.Errorf("entry %d of the list: %w", len(checked)+1, err)
			}
			checked = append(checked, entry)
		}
		return strings.Join(checked, " "), nil
	}
}

func checkAddress(text string) (string, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		return "", errors.New("want an IP address")
	}
	return addr.String(), nil
}

func checkURL(text string) (string, error) {
	if _, err := parseURL(text); err != nil {
		return "", err
	}
	return text, nil
}

// parseURL reads a URL that can be fetched. Its errors, unlike those of
// package url, do not repeat the URL.
func parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Opaque != "" || hasControl(text) {
		return nil, errors.New("want a URL that begins with http:// or https:// and a host")
	}
	return u, nil
}

func checkPrefix(text string) (string, error) {
	if _, err := plainURL(text); err != nil {
		return "", err
	}
	return text, nil
}

// checkParamName writes a parameter's name as the environment has it; whether
// there is one of that name, checkPolicy asks the table.
func checkParamName(text string) (string, error) { return paramKey(text), nil }

// checkKeys wants lines of an authorized_keys file.
func checkKeys(text string) (string, error) {
	var keys []string
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if _, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line)); err != nil || hasControl(line) {
			return "", fmt.Errorf("line %d is not an SSH public key: want one key a line, as in a .pub file", n)
		}
		keys = append(keys, line)
	}
	return strings.Join(keys, "\n"), nil
}

// SSHKeys reads the lines of an authorized_keys file, without comments.
func SSHKeys(text string) ([]string, error) {
	text, err := checkKeys(text)
	return entries(text, sshKeys.separator), err
}

func checkBase64(text string) (string, error) {
	plain, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil || strings.Contains(string(plain), "\x00") {
		return "", errors.New("want text in base64, without NUL")
	}
	return string(plain), nil
}
