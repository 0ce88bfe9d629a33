package grub

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"ganeti-instance-image/internal/filesystem"
)

// arg is one argument of a kernel's command line. The kernel's own quotes
// (linux/lib/cmdline.c, next_arg) are part of the text.
type arg struct {
	start, end int // its place in the text it was read from
	text       string
	fixed      bool // it depends on a variable and stays as it is
}

// verdict is what becomes of an argument.
type verdict struct {
	text string
	drop bool
}

// scope is what is known of the place a command line stands in.
type scope struct {
	initrd  bool  // an initial RAM disk is loaded along with the kernel
	partial bool  // other files have the root= argument
	beside  []arg // other arguments of the same command line, before or behind
	only    bool  // nothing is added, but for consoles where there are any: what comes last there wins
}

// splitArgs cuts a command line at the blanks outside of double quotes. Places
// are counted from base.
func splitArgs(text string, base int) []arg {
	var args []arg
	start, quoted := -1, false
	for i := 0; i <= len(text); i++ {
		blank := i == len(text) || !quoted && strings.IndexByte(" \t\r\n", text[i]) >= 0
		switch {
		case blank && start >= 0:
			args = append(args, arg{start: base + start, end: base + i, text: text[start:i]})
			start = -1
		case blank:
		case start < 0:
			start = i
		}
		if i < len(text) && text[i] == '"' {
			quoted = !quoted
		}
	}
	for i := range args {
		args[i].fixed = strings.Contains(args[i].text, "$")
	}
	return args
}

// SplitArgs cuts a kernel's command line at the blanks outside of double quotes,
// which stay in the arguments.
func SplitArgs(line string) []string {
	var found []string
	for _, a := range splitArgs(line, 0) {
		found = append(found, a.text)
	}
	return found
}

// CheckArgs refuses kernel arguments that would end a line or a word of the
// files they are written to.
func CheckArgs(args []string) error {
	for _, a := range args {
		if a == "" || strings.ContainsFunc(a, func(r rune) bool { return r < ' ' || r > '~' }) || strings.ContainsAny(a, "'$`\\") {
			return fmt.Errorf("the kernel argument %s has a character that a boot loader would take for its own; use printable ASCII without ' $ ` and backslash", strconv.QuoteToASCII(a))
		}
		if len(splitArgs(a, 0)) != 1 || strings.Count(a, `"`)%2 != 0 {
			return fmt.Errorf("%q is not one kernel argument; put double quotes around what has blanks", a)
		}
	}
	return nil
}

// sameArg tells whether two arguments are one to the kernel, quotes aside.
func sameArg(a, b string) bool {
	return strings.ReplaceAll(a, `"`, "") == strings.ReplaceAll(b, `"`, "")
}

// mendArgs says what becomes of each argument, and what is added behind them.
func (f *facts) mendArgs(args []arg, s scope) (verdicts []verdict, added []string) {
	verdicts = make([]verdict, len(args))
	for i, a := range args {
		verdicts[i].text = a.text
	}
	if slices.ContainsFunc(args, func(a arg) bool { return strings.Count(a.text, `"`)%2 != 0 }) {
		return verdicts, nil // where an open quote is meant to end nobody can tell
	}
	seenRoot, seenFlags, lazy := false, false, false
	for i, a := range args {
		if a.fixed {
			lazy = lazy || strings.Contains(a.text, "kernelopts")
			seenRoot = seenRoot || strings.HasPrefix(a.text, "root=") || strings.Contains(a.text, "kernelopts")
			continue
		}
		name, value, _ := strings.Cut(a.text, "=")
		switch {
		case name == "root" && seenRoot:
			verdicts[i].drop = true
		case name == "root":
			verdicts[i].text, seenRoot = "root="+f.rootValue(value, s), true
		case name == "rootflags":
			verdicts[i] = f.rootFlags(value)
			seenFlags = true
		case name == "rootfstype" && !f.isRootType(value):
			verdicts[i].text = "rootfstype=" + string(f.root.Kind)
		case f.plainRoot && slices.Contains(volumeArgs, name):
			verdicts[i].drop = true
		case f.plainRoot && name == "resume" && isDeviceName(value):
			verdicts[i].drop = true
		case f.isReplaced(a.text):
			verdicts[i].drop = true
		}
	}
	if lazy {
		return verdicts, nil
	}
	if s.only {
		if slices.ContainsFunc(args, isConsole) {
			added = f.consoles(args, verdicts, nil)
		}
		return verdicts, added
	}
	if value := f.rootValue("", s); !seenRoot && !s.partial && value != "" {
		added = append(added, "root="+value)
		if !seenFlags && f.subvol != "" {
			added = append(added, "rootflags=subvol="+f.subvol)
		}
	}
	for _, wanted := range f.args {
		isWanted := func(a arg) bool { return sameArg(a.text, wanted) }
		if !hasArg(args, verdicts, added, wanted) && !slices.ContainsFunc(s.beside, isWanted) {
			added = append(added, wanted)
		}
	}
	if slices.ContainsFunc(s.beside, isConsole) { // there they were mended
		if !slices.ContainsFunc(f.args, f.serial.isConsole) {
			f.dropConsoles(args, verdicts, false)
		}
		return verdicts, added
	}
	return verdicts, append(added, f.consoles(args, verdicts, added)...)
}

func isConsole(a arg) bool { return strings.HasPrefix(a.text, "console=") }

// isReplaced tells whether the site has another argument for the same console.
func (f *facts) isReplaced(text string) bool {
	device, _, _ := strings.Cut(text, ",")
	return strings.HasPrefix(text, "console=") && slices.ContainsFunc(f.args, func(own string) bool {
		ownDevice, _, _ := strings.Cut(own, ",")
		return ownDevice == device
	}) && !slices.ContainsFunc(f.args, func(own string) bool { return sameArg(own, text) })
}

// isDeviceName tells whether a value names a device by what the old system
// called it: a logical volume, or a disk of the kernel's.
func isDeviceName(value string) bool {
	return strings.HasPrefix(value, "/dev/") && !strings.HasPrefix(value, "/dev/disk/")
}

// volumeArgs name volumes in which the root was found. dracut and mkinitcpio
// wait for them, in vain if the root is a plain partition.
var volumeArgs = []string{"rd.lvm.lv", "rd.lvm.vg", "rd.luks.uuid", "rd.luks.name", "rd.md.uuid", "cryptdevice",
	"rd_LVM_LV", "rd_LVM_VG", "rd_LUKS_UUID", "rd_MD_UUID"}

func hasArg(args []arg, verdicts []verdict, added []string, wanted string) bool {
	for i := range args {
		if !verdicts[i].drop && sameArg(verdicts[i].text, wanted) {
			return true
		}
	}
	return slices.ContainsFunc(added, func(a string) bool { return sameArg(a, wanted) })
}

// rootValue returns what root= is to say where it says old, "" where it is not
// there.
func (f *facts) rootValue(old string, s scope) string {
	kind, id := rootReference(old)
	if !s.initrd && !s.partial {
		return f.rootWithoutInitrd(old)
	}
	same := func(a, b string) bool { return b != "" && strings.EqualFold(a, b) }
	switch {
	case kind == "UUID" && same(id, f.root.UUID), kind == "PARTUUID" && same(id, f.root.PartUUID),
		kind == "LABEL" && f.root.Label != "" && id == f.root.Label:
		return old
	case kind == "PARTUUID" && f.root.PartUUID != "":
		return "PARTUUID=" + f.root.PartUUID // some configurations also boot without the initial RAM disk
	case !f.plainRoot && strings.HasPrefix(old, "/dev/mapper/"), f.root.UUID == "":
		return old
	}
	return "UUID=" + f.root.UUID
}

// rootWithoutInitrd is for a kernel that finds its root itself. It knows
// partitions, not file systems (Linux, init/do_mounts.c, name_to_dev_t).
func (f *facts) rootWithoutInitrd(old string) string {
	if f.root.PartUUID != "" {
		if kind, id := rootReference(old); kind == "PARTUUID" && strings.EqualFold(id, f.root.PartUUID) {
			return old
		}
		return "PARTUUID=" + f.root.PartUUID
	}
	if strings.HasPrefix(old, "/dev/") && !strings.HasPrefix(old, "/dev/disk/") {
		return old
	}
	disk := "/dev/vda"
	if strings.HasPrefix(f.hypervisor, "xen") {
		disk = "/dev/xvda"
	}
	if f.root.Number > 0 {
		disk += strconv.Itoa(f.root.Number)
	}
	return disk
}

// rootReference tells by what a root= value names a file system.
func rootReference(value string) (kind, id string) {
	kind, id, found := strings.Cut(strings.ReplaceAll(value, `"`, ""), "=")
	if found {
		return strings.ToUpper(kind), id
	}
	for prefix, kind := range map[string]string{
		"/dev/disk/by-uuid/": "UUID", "/dev/disk/by-label/": "LABEL", "/dev/disk/by-partuuid/": "PARTUUID",
	} {
		if id, ok := strings.CutPrefix(value, prefix); ok {
			return kind, id
		}
	}
	return "", value
}

// rootFlags drops the subvolume where the root has none, and names the one it
// has.
func (f *facts) rootFlags(value string) verdict {
	var kept []string
	named := false
	for option := range strings.SplitSeq(value, ",") {
		name, _, _ := strings.Cut(option, "=")
		if name != "subvol" && name != "subvolid" {
			kept = append(kept, option)
			continue
		}
		if f.subvol != "" && !named {
			named = true
			if strings.Trim(strings.TrimPrefix(option, "subvol="), "/") != f.subvol {
				option = "subvol=" + f.subvol
			}
			kept = append(kept, option)
		}
	}
	kept = slices.DeleteFunc(kept, func(option string) bool { return option == "" })
	return verdict{text: "rootflags=" + strings.Join(kept, ","), drop: len(kept) == 0}
}

// isRootType tells whether a rootfstype= value fits: a list, in which one name
// of the ext family is as good as another.
func (f *facts) isRootType(value string) bool {
	kinds := strings.Split(value, ",")
	isExt := func(kind string) bool { return grubModule(filesystem.Kind(kind)) == "ext2" }
	return f.root.Kind == filesystem.None || value == "auto" || slices.Contains(kinds, string(f.root.Kind)) ||
		isExt(string(f.root.Kind)) && slices.ContainsFunc(kinds, isExt)
}

// consoles makes the serial console the last one, which is /dev/console, with a
// console on the screen before it (Linux, admin-guide/serial-console). It
// returns what is added.
func (f *facts) consoles(args []arg, verdicts []verdict, added []string) []string {
	want := f.serial.console()
	if want == "" || slices.ContainsFunc(f.args, f.serial.isConsole) {
		return nil
	}
	screen, last := false, ""
	look := func(text string) {
		if value, ok := strings.CutPrefix(text, "console="); ok {
			last = text
			screen = screen || isScreen(value)
		}
	}
	for _, v := range verdicts {
		if !v.drop {
			look(v.text)
		}
	}
	for _, text := range added {
		look(text)
	}
	if screen && f.serial.isOurs(last) {
		f.dropConsoles(args, verdicts, true)
		return nil
	}
	f.dropConsoles(args, verdicts, false)
	if screen {
		return []string{want}
	}
	return []string{"console=tty0", want}
}

// dropConsoles drops the arguments for our serial console, but for the last
// where that is right.
func (f *facts) dropConsoles(args []arg, verdicts []verdict, keepLast bool) {
	for i := len(args) - 1; i >= 0; i-- {
		if args[i].fixed || verdicts[i].drop || !f.serial.isConsole(args[i].text) {
			continue
		}
		verdicts[i].drop = !keepLast
		keepLast = false
	}
}

// isScreen tells whether a console is a virtual terminal: "tty0", "tty1".
func isScreen(value string) bool {
	number, ok := strings.CutPrefix(value, "tty")
	return ok && number != "" && strings.Trim(number, "0123456789") == ""
}

// console is the kernel's argument for a serial console, "" for none.
func (s Serial) console() string {
	switch {
	case s.Device == "":
		return ""
	case s.Speed == 0:
		return "console=" + s.Device
	}
	return fmt.Sprintf("console=%s,%dn8", s.Device, s.Speed)
}

// isConsole tells whether an argument is for this console, at any speed.
func (s Serial) isConsole(text string) bool {
	device, _, _ := strings.Cut(strings.TrimPrefix(text, "console="), ",")
	return s.Device != "" && strings.HasPrefix(text, "console=") && device == s.Device
}

// isOurs tells whether an argument is for this console at its speed. No parity
// and eight bits are what the kernel takes where nothing is said.
func (s Serial) isOurs(text string) bool {
	if s.Speed == 0 {
		return text == s.console()
	}
	return text == s.console() || text+"n8" == s.console() || text+"8" == s.console()
}

// unit is the number GRUB and SYSLINUX know a serial port by: ttyS0 is 0.
func (s Serial) unit() (int, bool) {
	number, ok := strings.CutPrefix(s.Device, "ttyS")
	n, err := strconv.Atoi(number)
	return n, ok && err == nil && s.Speed > 0 && n >= 0 && n < 4
}

// argEdits mends arguments that were read from a text and returns what is to be
// changed in it. They begin at the place given; follows says that a word stands
// before them. write turns an argument into what is written.
func (f *facts) argEdits(args []arg, s scope, at int, follows bool, write func(string) string) []edit {
	verdicts, added := f.mendArgs(args, s)
	var edits []edit
	for i, a := range args {
		v := verdicts[i]
		switch {
		case !v.drop && v.text != a.text:
			edits = append(edits, edit{a.start, a.end, write(v.text)})
		case v.drop && follows:
			edits = append(edits, edit{at, a.end, ""})
		case v.drop && i+1 < len(args):
			edits = append(edits, edit{a.start, args[i+1].start, ""})
		case v.drop:
			edits = append(edits, edit{a.start, a.end, ""})
		}
		follows = follows || !v.drop
		at = a.end
	}
	var tail strings.Builder
	for _, text := range added {
		if follows {
			tail.WriteByte(' ')
		}
		tail.WriteString(write(text))
		follows = true
	}
	return append(edits, edit{at, at, tail.String()})
}

// plainly writes an argument as it is.
func plainly(text string) string { return text }

// mendText mends a command line that is a text of its own.
func (f *facts) mendText(text string, s scope) string {
	return applyEdits(text, f.argEdits(splitArgs(text, 0), s, 0, false, plainly))
}
