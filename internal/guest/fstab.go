package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"ganeti-instance-image/internal/size"
)

// FSTabEntry is one line of fstab(5), with the escapes of its fields resolved.
type FSTabEntry struct {
	Device     string // as it is written: "UUID=...", "LABEL=/", "/dev/vda1"
	Mountpoint string
	Type       string
	Options    []string
	Line       int
}

const (
	fstabLimit   = 256 * size.KiB
	fstabEntries = 1024
)

// FSTab reads the guest's /etc/fstab. A line with fewer than three fields is
// skipped, as mount(8) does. Where there is none the error wraps
// fs.ErrNotExist.
func (r *Root) FSTab() ([]FSTabEntry, error) {
	text, err := r.ReadFile("/etc/fstab", fstabLimit)
	if err != nil {
		return nil, err
	}
	entries := parseFSTab(string(text))
	if len(entries) > fstabEntries {
		return nil, fail("read", "/etc/fstab", fmt.Errorf("it has more than %d entries", fstabEntries))
	}
	return entries, nil
}

// AddFSTab adds an entry to /etc/fstab. One for the same mount point, or for the
// same swap space, is replaced; all else stays as it is.
func (r *Root) AddFSTab(e FSTabEntry) error {
	text, err := r.ReadFile("/etc/fstab", fstabLimit)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var kept strings.Builder
	for line := range strings.Lines(string(text)) {
		if old := parseFSTab(line); len(old) == 1 && e.replaces(old[0]) {
			continue
		}
		kept.WriteString(strings.TrimSuffix(line, "\n") + "\n")
	}
	pass := 2
	if e.Type == "swap" || e.Type == "xfs" || e.Type == "btrfs" {
		pass = 0 // neither is checked at boot
	}
	fmt.Fprintf(&kept, "%s %s %s %s 0 %d\n", e.Device, e.Mountpoint, e.Type, strings.Join(e.Options, ","), pass)
	return r.WriteFile("/etc/fstab", []byte(kept.String()), 0o644)
}

func (e FSTabEntry) replaces(old FSTabEntry) bool {
	if e.Type == "swap" {
		return old.Device == e.Device
	}
	return path.Clean(old.Mountpoint) == path.Clean(e.Mountpoint)
}

func parseFSTab(text string) []FSTabEntry {
	var entries []FSTabEntry
	number := 0
	for line := range strings.Lines(text) {
		number++
		fields := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' || r == '\n' || r == '\r' })
		if len(fields) < 3 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		e := FSTabEntry{Device: unescape(fields[0]), Mountpoint: unescape(fields[1]), Type: unescape(fields[2]), Line: number}
		if len(fields) > 3 {
			e.Options = strings.Split(unescape(fields[3]), ",")
		}
		entries = append(entries, e)
	}
	return entries
}

// unescape resolves the octal escapes of fstab(5): "\040" is a blank.
func unescape(field string) string {
	var out strings.Builder
	for i := 0; i < len(field); i++ {
		if c, ok := octal(field[i:]); ok {
			out.WriteByte(c)
			i += 3
			continue
		}
		out.WriteByte(field[i])
	}
	return out.String()
}

func octal(text string) (byte, bool) {
	if len(text) < 4 || text[0] != '\\' {
		return 0, false
	}
	n := 0
	for _, c := range []byte(text[1:4]) {
		if c < '0' || c > '7' {
			return 0, false
		}
		n = n<<3 | int(c-'0')
	}
	return byte(n), n < 256 && n > 0
}
