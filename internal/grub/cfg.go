package grub

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"ganeti-instance-image/internal/size"
)

// cfgLimit bounds a grub.cfg. grub-mkconfig writes some KiB.
const cfgLimit = 4 * size.MiB

// cfgMender mends a grub.cfg.
type cfgMender struct {
	*facts
	text     string
	commands []command
	entries  map[int]content
	stub     bool // for a GRUB that has its modules built in
	edits    []edit
}

// content is what one menuentry holds.
type content struct{ linux, initrd bool }

// mendCfg makes a grub.cfg name the file systems and carry the arguments of f.
// Mending a second time changes nothing. One with a quote that does not end,
// which GRUB refuses, stays as it is.
func (f *facts) mendCfg(text string, stub bool) string {
	p := parse(text)
	if p.cut {
		return text
	}
	m := &cfgMender{facts: f, text: text, commands: p.commands, entries: map[int]content{}, stub: stub}
	for _, c := range m.commands {
		e := m.entries[c.entry]
		e.linux = e.linux || loadsLinux(c)
		e.initrd = e.initrd || strings.HasPrefix(c.name(), "initrd") || c.name() == "module2"
		m.entries[c.entry] = e
	}
	m.access()
	for _, c := range m.commands {
		m.mend(c)
	}
	return applyEdits(text, m.edits)
}

// loadsLinux tells whether a command loads a Linux kernel. Memory testers, iPXE
// and the like are loaded by the same command.
func loadsLinux(c command) bool {
	if !slices.Contains([]string{"linux", "linux16", "linuxefi"}, c.name()) || len(c.words) < 2 {
		return false
	}
	return !isTool(c.words[1].text)
}

// isTool tells whether a file is loaded as Linux is without being one.
func isTool(name string) bool {
	base := strings.ToLower(path.Base(name))
	return slices.ContainsFunc([]string{"memtest", "mt86", "ipxe", "memdisk", "netboot"}, func(tool string) bool {
		return strings.HasPrefix(base, tool)
	})
}

// replace gives a word another meaning.
func (m *cfgMender) replace(w word, text string) {
	if text == w.text {
		return
	}
	if written, ok := w.rewrite(text); ok {
		m.edits = append(m.edits, edit{w.start, w.end, written})
	}
}

func (m *cfgMender) mend(c command) {
	switch name := c.name(); {
	case loadsLinux(c):
		m.mendLoader(c.words[0])
		m.replace(c.words[1], m.bootPath(c.words[1].text))
		m.mendArguments(c)
	case strings.HasPrefix(name, "linux") && len(c.words) > 1:
		m.replace(c.words[1], m.bootPath(c.words[1].text))
	case slices.Contains([]string{"initrd", "initrd16", "initrdefi"}, name), slices.Contains([]string{"configfile", "loadfont"}, name):
		if m.entries[c.entry].linux {
			m.mendLoader(c.words[0])
		}
		for _, w := range c.words[1:] {
			m.replace(w, m.bootPath(w.text))
		}
	case name == "serial":
		m.mendSerial(c)
	default:
		m.mendAssignment(c)
	}
}

// mendLoader makes a command that only one firmware's GRUB has, as the platform
// that RHEL 7 wrote the file on, the one that all have. Files on an EFI system
// partition are read by no other.
func (m *cfgMender) mendLoader(w word) {
	kind, forEFI := strings.CutSuffix(w.text, "efi")
	kind, forBIOS := strings.CutSuffix(kind, "16")
	if !m.stub && (forEFI && m.bios || forBIOS && m.efi) {
		m.replace(w, kind)
	}
}

func (m *cfgMender) mendArguments(c command) {
	args := make([]arg, 0, len(c.words))
	for _, w := range c.words[2:] {
		args = append(args, arg{w.start, w.end, w.text, w.variable})
	}
	s := scope{initrd: m.entries[c.entry].initrd}
	m.edits = append(m.edits, m.argEdits(args, s, c.words[1].end, true, quoteArg)...)
}

// assignment returns the word that gives a variable its value, as both "set
// root=..." and "root=..." do.
func (c command) assignment() (w word, name, value string, ok bool) {
	w = c.words[0]
	if w.text == "set" && len(c.words) > 1 {
		w = c.words[1]
	}
	name, value, ok = strings.Cut(w.text, "=")
	return w, name, value, ok
}

// mendAssignment corrects paths of GRUB's own files, and the arguments that Red
// Hat's configuration falls back to.
func (m *cfgMender) mendAssignment(c command) {
	w, name, value, ok := c.assignment()
	if !ok {
		return
	}
	switch name {
	case "prefix", "locale_dir", "theme":
		m.replace(w, name+"="+m.grubDir(value))
	case "kernelopts", "default_kernelopts":
		if mended := m.mendText(value, scope{initrd: true}); mended != value && !w.variable {
			m.edits = append(m.edits, edit{w.start, w.end, name + `="` + escapeDouble(mended) + `"`})
		}
	}
}

// grubDir corrects the path of GRUB's own directory, after its device.
func (m *cfgMender) grubDir(value string) string {
	i := strings.IndexByte(value, ')')
	if i < 0 || !m.has(path.Join("/boot", strings.TrimPrefix(value[i+1:], "/boot"))) {
		return value
	}
	return m.bootPath(value)
}

// escapeDouble writes what stands in double quotes, in GRUB's scripts as in a shell.
func escapeDouble(text string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`").Replace(text)
}

// mendSerial gives the serial port its speed.
func (m *cfgMender) mendSerial(c command) {
	ours, ok := m.serial.unit()
	if !ok {
		return
	}
	unit := 0
	var speed *word
	for i, w := range c.words[1:] {
		if number, ok := strings.CutPrefix(w.text, "--unit="); ok {
			unit, _ = strconv.Atoi(number)
		}
		if strings.HasPrefix(w.text, "--speed=") {
			speed = &c.words[i+1]
		}
	}
	if unit == ours && speed != nil {
		m.replace(*speed, "--speed="+strconv.Itoa(m.serial.Speed))
	}
}

// group is a sequence of commands that gives access to one file system:
// modules, a guess at its place, and the search for it.
type group struct {
	modules, places, searches []command
	entry                     int
	usr                       bool // what follows is read from /usr
}

func (g *group) empty() bool { return len(g.modules)+len(g.places)+len(g.searches) == 0 }

// access mends all groups of a grub.cfg.
func (m *cfgMender) access() {
	g := &group{}
	for _, c := range m.commands {
		module, place, search := isAccessModule(c), isPlace(c), isSearch(c)
		if c.entry != g.entry || (module || place) && len(g.searches) > 0 || module && len(g.places) > 0 {
			m.mendGroup(g)
			g = &group{entry: c.entry}
		}
		switch {
		case module:
			g.modules = append(g.modules, c)
		case place:
			g.places = append(g.places, c)
		case search:
			g.searches = append(g.searches, c)
		default:
			g.usr = g.usr || m.readsUsr(c)
		}
	}
	m.mendGroup(g)
}

// readsUsr tells whether a command has a file of /usr.
func (m *cfgMender) readsUsr(c command) bool {
	_, name, value, assigns := c.assignment()
	switch {
	case assigns:
		return !strings.HasSuffix(name, "kernelopts") && m.inUsr(value)
	case loadsLinux(c), c.name() == "serial":
		return false
	}
	return slices.ContainsFunc(c.words, func(w word) bool { return m.inUsr(w.text) })
}

// inUsr tells whether a path is of /usr and none that is corrected: else the
// group before it would be about another file system the next time.
func (m *cfgMender) inUsr(name string) bool {
	return strings.Contains(name, "/usr/") && !strings.Contains(name, "/boot/") && m.bootPath(name) == name
}

var (
	partModules = []string{"part_gpt", "part_msdos"}
	fsModules   = []string{"ext2", "xfs", "btrfs", "f2fs", "fat", "jfs", "reiserfs", "zfs"}
)

func isAccessModule(c command) bool {
	return c.name() == "insmod" && len(c.words) == 2 &&
		(slices.Contains(partModules, c.words[1].text) || slices.Contains(fsModules, c.words[1].text))
}

// aPlace is what grub-probe gives as the place of a file system on local disks.
var aPlace = regexp.MustCompile(`^\(?((hd|ahci|ata)\d+(,[a-z]*\d+)*|(lvm|lvmid|md|mduuid|cryptouuid)/[^$()]*)\)?$`)

// isPlace tells whether a command says where a file system probably is.
func isPlace(c command) bool {
	_, name, value, ok := c.assignment()
	return ok && (name == "root" || name == "boot") && aPlace.MatchString(value)
}

// isSearch tells whether a command looks for something that is named in it.
func isSearch(c command) bool {
	if slices.ContainsFunc(c.words, func(w word) bool { return w.variable }) {
		return false
	}
	return slices.Contains([]string{"search", "search.fs_uuid", "search.fs_label"}, c.name()) && len(c.words) > 1
}

// mendGroup makes a group give access to the file system it is about. A menu
// entry without Linux is about something else. What is in none is about /boot,
// or where files of /usr are read afterwards, about the root.
func (m *cfgMender) mendGroup(g *group) {
	if g.empty() || g.entry != 0 && !m.entries[g.entry].linux {
		return
	}
	fs, part, plain := m.boot, m.bootPart, m.plainBoot
	if g.entry == 0 && g.usr {
		fs, part, plain = m.root, m.rootPart, m.plainRoot
	}
	for _, c := range g.places {
		if w, name, value, _ := c.assignment(); plain {
			m.replacePlace(w, name, value, part)
		}
	}
	for _, c := range g.searches {
		m.mendSearch(c, fs, part, plain)
	}
	if len(g.places)+len(g.searches) == 0 || !plain {
		return
	}
	m.wantModule(g, m.partmap, partModules)
	m.wantModule(g, grubModule(fs.Kind), fsModules)
}

// replacePlace writes where a file system is. GRUB's first disk is the one it
// was booted from; old configurations leave the table's kind out.
func (m *cfgMender) replacePlace(w word, name, value, part string) {
	bare := strings.Trim(value, "()")
	if wanted := place("hd0", part); bare != wanted && !isOldPlace(bare, wanted) {
		if bare != value {
			wanted = "(" + wanted + ")"
		}
		m.edits = append(m.edits, edit{w.start, w.end, name + "='" + wanted + "'"})
	}
}

// addSerial has GRUB show its menu on the serial port as well, where a grub.cfg
// says nothing of it.
func (f *facts) addSerial(text string) string {
	unit, ok := f.serial.unit()
	p := parse(text)
	if !ok || p.cut || strings.HasPrefix(text, cfgMark) || slices.ContainsFunc(p.commands, func(c command) bool { return c.name() == "serial" }) {
		return text
	}
	edits := []edit{{0, 0, serialLines(unit, f.serial.Speed)}}
	for _, c := range p.commands {
		last := c.words[len(c.words)-1]
		isSet := slices.Contains([]string{"terminal_input", "terminal_output"}, c.name()) && len(c.words) > 1 && !strings.HasPrefix(c.words[1].text, "-")
		if isSet && !slices.ContainsFunc(c.words, func(w word) bool { return w.text == "serial" || w.variable }) {
			edits = append(edits, edit{last.end, last.end, " serial"})
		}
	}
	return applyEdits(text, edits)
}

func serialLines(unit, speed int) string {
	return fmt.Sprintf("serial --unit=%d --speed=%d\nterminal_input console serial\nterminal_output console serial\n", unit, speed)
}

var tableKind = regexp.MustCompile(`,(gpt|msdos)`)

func isOldPlace(bare, wanted string) bool { return bare == tableKind.ReplaceAllString(wanted, ",") }

func place(disk, part string) string {
	if part == "" {
		return disk
	}
	return disk + "," + part
}

// wantModule makes one of the group's modules be the wanted one: the first of
// its sort is replaced, or one is added.
func (m *cfgMender) wantModule(g *group, wanted string, sort []string) {
	if wanted == "" {
		return
	}
	var found []word
	for _, c := range g.modules {
		if name := c.words[1]; slices.Contains(sort, name.text) {
			found = append(found, name)
		}
	}
	if slices.ContainsFunc(found, func(w word) bool { return w.text == wanted }) {
		return
	}
	if len(found) > 0 {
		m.replace(found[0], wanted)
		return
	}
	if !m.stub {
		m.addModule(g, wanted)
	}
}

// maxIndent is how many blanks before a command are taken for its indentation.
const maxIndent = 64

// addModule adds a module in front of a group.
func (m *cfgMender) addModule(g *group, name string) {
	at := -1
	for _, list := range [][]command{g.modules, g.places, g.searches} {
		if len(list) > 0 && (at < 0 || list[0].start() < at) {
			at = list[0].start()
		}
	}
	begin := at
	for begin > 0 && (m.text[begin-1] == ' ' || m.text[begin-1] == '\t') && at-begin < maxIndent {
		begin--
	}
	separator := "; "
	if begin == 0 || m.text[begin-1] == '\n' {
		separator = "\n" + m.text[begin:at]
	}
	m.edits = append(m.edits, edit{at, at, "insmod " + name + separator})
}

// mendSearch makes a search find the file system. Its last word is what is
// looked for; the variants with a dot have it first, then a variable and hints.
func (m *cfgMender) mendSearch(c command, fs Filesystem, part string, plain bool) {
	dotted := c.name() != "search"
	by, wanted := -1, -1
	for i, w := range c.words[1:] {
		option := strings.HasPrefix(w.text, "-")
		switch {
		case slices.Contains([]string{"--fs-uuid", "-u", "--label", "--fs-label", "-l", "--file", "-f"}, w.text):
			by = i + 1
		case strings.HasPrefix(w.text, "--hint") && plain:
			m.mendHint(w, part)
		case !option && (!dotted || wanted < 0):
			wanted = i + 1
		case !option && dotted && i >= 2 && plain && aPlace.MatchString(w.text):
			m.replace(w, place("hd0", part))
		}
	}
	if wanted < 0 || by < 0 && !dotted {
		return
	}
	if dotted {
		by = 0
	}
	m.mendSought(c.words[by], c.words[wanted], fs)
}

// mendSought corrects what a search is by, and what it looks for.
func (m *cfgMender) mendSought(by, wanted word, fs Filesystem) {
	label := slices.Contains([]string{"--label", "--fs-label", "-l", "search.fs_label"}, by.text)
	switch {
	case by.text == "--file" || by.text == "-f":
		m.replace(wanted, m.bootPath(wanted.text))
	case fs.UUID == "" || label && fs.Label != "" && wanted.text == fs.Label:
		return
	case label && strings.HasPrefix(by.text, "search."):
		m.replace(by, "search.fs_uuid")
		m.replace(wanted, fs.UUID)
	case label:
		m.replace(by, "--fs-uuid")
		m.replace(wanted, fs.UUID)
	case !strings.EqualFold(wanted.text, fs.UUID):
		m.replace(wanted, fs.UUID)
	}
}

// aHint is a hint: the option, and a disk and its partitions, in parentheses or
// without.
var aHint = regexp.MustCompile(`^(--hint[a-z0-9-]*=)\(?([^()]*?)(,[a-z]*\d+)*\)?$`)

// mendHint corrects the partition in a hint. A hint at firmware's name of a disk
// keeps that name; GRUB tries what hints name first, and then all there is.
func (m *cfgMender) mendHint(w word, part string) {
	found := aHint.FindStringSubmatch(w.text)
	if found == nil || w.variable {
		return
	}
	disk := found[2]
	if strings.HasPrefix(disk, "hd") || strings.Contains(disk, "uuid/") || strings.HasPrefix(disk, "lvm") {
		disk = "hd0"
	}
	wanted := place(disk, part)
	if bare := strings.TrimPrefix(w.text, found[1]); !isOldPlace(strings.Trim(bare, "()"), wanted) && strings.Trim(bare, "()") != wanted {
		m.replace(w, found[1]+wanted)
	}
}
