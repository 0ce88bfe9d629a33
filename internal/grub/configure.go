package grub

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/size"
)

const (
	textLimit  = 1 * size.MiB
	maxEntries = 512 // Boot Loader Specification entries that are looked at
)

// configFile is a file of a guest, and what makes it right.
type configFile struct {
	pattern string // as of guest.Root.Glob
	limit   size.Bytes
	mend    func(f *facts, text string) (string, error)
}

// leave is why a file stays as it is although nothing failed.
type leave string

func (l leave) Error() string { return string(l) }

// always is for what can always be mended.
func always(mend func(f *facts, text string) string) func(*facts, string) (string, error) {
	return func(f *facts, text string) (string, error) { return mend(f, text), nil }
}

// bounded is for GRUB scripts, of which those that are too long are refused.
func bounded(mend func(f *facts, text string) string) func(*facts, string) (string, error) {
	return func(f *facts, text string) (string, error) {
		if !parse(text).whole() {
			return "", fmt.Errorf("it has more than %d words", maxWords)
		}
		return mend(f, text), nil
	}
}

var (
	mainCfg  = bounded(func(f *facts, text string) string { return f.addSerial(f.mendCfg(text, false)) })
	stubCfg  = bounded(func(f *facts, text string) string { return f.mendCfg(text, true) })
	bootBLS  = always(func(f *facts, text string) string { return f.mendBLS(text, true) })
	otherBLS = always(func(f *facts, text string) string { return f.mendBLS(text, false) })
	legacy   = always((*facts).mendLegacy)
	extlinux = always((*facts).mendExtlinux)
	cmdline  = always(func(f *facts, text string) string { return f.mendText(text, scope{initrd: true}) })
)

// configFiles are the files that are mended where a guest has them.
var configFiles = []configFile{
	{"/boot/grub/grub.cfg", cfgLimit, mainCfg},
	{"/boot/grub2/grub.cfg", cfgLimit, mainCfg},
	{"/boot/efi/EFI/*/grub.cfg", cfgLimit, stubCfg},
	{"/boot/EFI/*/grub.cfg", cfgLimit, stubCfg},
	{"/efi/EFI/*/grub.cfg", cfgLimit, stubCfg},
	{"/boot/grub/grubenv", textLimit, (*facts).mendGrubenv},
	{"/boot/grub2/grubenv", textLimit, (*facts).mendGrubenv},
	{"/boot/efi/EFI/*/grubenv", textLimit, (*facts).mendGrubenv},
	{"/boot/loader/entries/*.conf", textLimit, bootBLS},
	{"/boot/efi/loader/entries/*.conf", textLimit, otherBLS},
	{"/efi/loader/entries/*.conf", textLimit, otherBLS},
	{"/boot/grub/menu.lst", textLimit, legacy},
	{"/boot/grub/grub.conf", textLimit, legacy},
	{"/boot/extlinux.conf", textLimit, extlinux},
	{"/boot/extlinux/extlinux.conf", textLimit, extlinux},
	{"/boot/syslinux/syslinux.cfg", textLimit, extlinux},
	{"/etc/update-extlinux.conf", textLimit, always((*facts).mendUpdateExtlinux)},
	{"/etc/kernel/cmdline", textLimit, cmdline},
}

// editor changes a guest and notes what it changed.
type editor struct {
	*facts
	tree    *guest.Root
	distro  guest.Distro
	kernels []Kernel
	entries []string // Boot Loader Specification entries on the file system of /boot
	changes []string
}

// Configure makes the boot loader's configuration in the guest name this disk's
// file systems, and carry the site's kernel arguments and the serial console. It
// mends what is there; where there is no grub.cfg, it writes one, unless the
// hypervisor brings the kernel. It returns one line for each file that changed.
// A second call changes nothing.
//
// The error wraps ErrNoKernel where there is nothing to boot.
func Configure(t Target) (changes []string, err error) {
	f, err := gather(t)
	if err != nil {
		return nil, err
	}
	return configure(t, f)
}

func configure(t Target, f *facts) (changes []string, err error) {
	e := &editor{facts: f, tree: t.Root, distro: t.Root.Distro(), entries: t.Root.Glob("/boot/loader/entries/*.conf")}
	if f.separate && !t.External {
		if err := e.copyLinked(); err != nil {
			return e.changes, err
		}
	}
	if e.kernels, err = Kernels(t.Root); err != nil {
		return e.changes, err
	}
	if !t.External && !e.canBoot() {
		return e.changes, fmt.Errorf("cannot configure the boot loader: %w: /boot holds no vmlinuz, vmlinux, kernel or bzImage, no loader/entries and no EFI/Linux; install a kernel in the image, or set the instance's kernel_path", ErrNoKernel)
	}
	steps := []func() error{e.mendFiles, e.mendDefaultFiles}
	if !t.External {
		steps = append(steps, e.addKernelopts, e.addCfg, e.addForBIOS, e.addForXen)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return e.changes, err
		}
	}
	e.noteUnified()
	return e.changes, nil
}

// canBoot tells whether there is a kernel, or at least a configuration that
// names one which is there.
func (e *editor) canBoot() bool {
	if len(e.kernels) > 0 || len(e.unified()) > 0 {
		return true
	}
	for _, name := range e.entries[:min(len(e.entries), maxEntries)] {
		for _, field := range parseBLS(e.read(name)) {
			if field.key == "linux" && e.exists(strings.TrimSpace(field.value)) {
				return true
			}
		}
	}
	return slices.ContainsFunc(e.cfgs(), func(name string) bool {
		return slices.ContainsFunc(parseScript(e.read(name)), func(c command) bool {
			return loadsLinux(c) && e.exists(c.words[1].text)
		})
	})
}

// exists tells whether a path that a boot loader knows leads to something,
// whichever file system it is meant to be on.
func (e *editor) exists(name string) bool {
	if i := strings.IndexByte(name, ')'); strings.HasPrefix(name, "(") {
		name = name[i+1:]
	}
	_, rest, _ := cutBoot(name)
	return strings.HasPrefix(name, "/") && (e.tree.Exists(name) || e.tree.Exists("/boot"+rest) || e.tree.Exists("/boot"+strings.TrimPrefix(name, e.prefix)))
}

// cfgs are the files that GRUB itself reads first.
func (e *editor) cfgs() []string {
	var found []string
	for _, name := range []string{"/boot/grub/grub.cfg", "/boot/grub2/grub.cfg"} {
		if info, err := e.tree.Stat(name); err == nil && info.Size > 0 {
			found = append(found, name)
		}
	}
	return found
}

// read returns a file's text, "" where it cannot be read.
func (e *editor) read(name string) string {
	text, err := e.tree.ReadFile(name, cfgLimit)
	if err != nil {
		return ""
	}
	return string(text)
}

func (e *editor) mendFiles() error {
	for _, file := range configFiles {
		names := e.tree.Glob(file.pattern)
		if len(names) > maxEntries {
			return fmt.Errorf("cannot configure the boot loader: there are more than %d files %s in the guest", maxEntries, file.pattern)
		}
		for _, name := range names {
			if err := e.mendFile(name, file.limit, file.mend); err != nil {
				return err
			}
		}
	}
	return nil
}

// mendFile mends a file if it is there. A link whose end is missing counts as
// no file.
func (e *editor) mendFile(name string, limit size.Bytes, mend func(f *facts, text string) (string, error)) error {
	if !e.tree.Exists(name) {
		return nil
	}
	old, err := e.tree.ReadFile(name, limit)
	if err != nil {
		return err
	}
	text, err := mend(e.facts, string(old))
	if why := leave(""); errors.As(err, &why) {
		e.changes = append(e.changes, fmt.Sprintf("left %s as it is: %s", printable(name), why))
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot edit %s in the guest: %w", printable(name), err)
	}
	if text == string(old) {
		return nil
	}
	return e.write(name, text, "edited")
}

func (e *editor) write(name, text, what string) error {
	if err := e.tree.WriteFile(name, []byte(text), 0o644); err != nil {
		return err
	}
	e.changes = append(e.changes, what+" "+printable(name))
	return nil
}

// printable writes a name of the guest's for a log.
func printable(name string) string {
	if isPlainPath(name) {
		return name
	}
	return strconv.QuoteToASCII(name)
}

// mendDefaultFiles mends what grub-mkconfig will read when the guest runs it.
func (e *editor) mendDefaultFiles() error {
	const file = "/etc/default/grub"
	if e.distro.Family != guest.Debian && e.distro.Family != guest.Ubuntu {
		return e.mendFile(file, textLimit, always((*facts).mendDefaults))
	}
	if !e.tree.Exists(file) && !e.tree.Exists("/usr/sbin/update-grub") {
		return nil
	}
	for _, name := range e.defaultFiles() {
		if err := e.mendFile(name, textLimit, always((*facts).correctDefaults)); err != nil {
			return err
		}
	}
	return e.writeDropIn(ownDropIn)
}

const ownDropIn = "/etc/default/grub.d/99-ganeti.cfg"

// defaultFiles are the files that grub-mkconfig reads one after the other, but
// for the one that is written here.
func (e *editor) defaultFiles() []string {
	files := []string{"/etc/default/grub"}
	if e.distro.Family == guest.Debian || e.distro.Family == guest.Ubuntu {
		files = append(files, e.tree.Glob("/etc/default/grub.d/*.cfg")...)
	}
	files = slices.DeleteFunc(files, func(name string) bool { return name == ownDropIn })
	return files[:min(len(files), maxEntries)]
}

func (e *editor) writeDropIn(name string) error {
	text := e.newDropIn(splitArgs(e.defaultArgs(), 0))
	switch old := e.read(name); {
	case old == text:
		return nil
	case text == "":
		e.changes = append(e.changes, "removed "+name)
		return e.tree.Remove(name)
	}
	if err := e.tree.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	return e.write(name, text, "wrote")
}

// addKernelopts defines $kernelopts where entries use it and nothing does.
func (e *editor) addKernelopts() error {
	used := slices.ContainsFunc(e.readEntries(), func(entry string) bool { return strings.Contains(entry, "$kernelopts") })
	name := e.grub + "/grubenv"
	env, err := parseGrubenv(e.read(name))
	if _, defined := env.get("kernelopts"); !used || defined {
		return nil
	}
	for _, cfg := range e.cfgs() {
		if strings.Contains(e.read(cfg), "kernelopts=") {
			return nil
		}
	}
	env.set("kernelopts", e.mendText("ro", scope{initrd: true}))
	text, err2 := env.print()
	if err2 != nil {
		return fmt.Errorf("cannot edit %s in the guest: %w", name, err2)
	}
	if err := e.tree.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	what := "edited"
	if err != nil {
		what = "wrote"
	}
	return e.write(name, text, what)
}

// readEntries returns the texts of the Boot Loader Specification entries.
func (e *editor) readEntries() []string {
	var texts []string
	for _, name := range e.entries[:min(len(e.entries), maxEntries)] {
		texts = append(texts, e.read(name))
	}
	return texts
}

// addCfg writes a grub.cfg where there is none, or none of use. Xen's pygrub
// needs one of its own making, see addForXen.
func (e *editor) addCfg() error {
	if e.hypervisor == "xen-pvm" {
		return nil
	}
	names := e.cfgs()
	if len(names) == 0 {
		names = []string{e.grub + "/grub.cfg"}
	}
	for _, name := range names {
		if text := e.read(name); !e.isOfUse(text) {
			if err := e.writeCfg(name, text, e.blsUse()); err != nil {
				return err
			}
		}
	}
	return nil
}

// isOfUse tells whether a grub.cfg is the guest's and loads a kernel that is
// there, or whatever another file says.
func (e *editor) isOfUse(text string) bool {
	return !strings.HasPrefix(text, cfgMark) && slices.ContainsFunc(parseScript(text), func(c command) bool {
		switch name := c.name(); {
		case slices.Contains([]string{"blscfg", "configfile", "legacy_configfile"}, name):
			return true
		case loadsLinux(c) || strings.HasPrefix(name, "multiboot") && len(c.words) > 1:
			return c.words[1].variable || e.exists(c.words[1].text)
		}
		return false
	})
}

// writeCfg writes a grub.cfg in the place of what it says.
func (e *editor) writeCfg(name, old string, bls blsUse) error {
	var items []item
	if bls.menu {
		items = e.items()
	}
	text := e.newCfg(items, bls)
	if bls.menu && len(items) == 0 || text == old {
		return nil // only unified kernel images, or all is done
	}
	if err := e.tree.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	if err := e.write(name, text, "wrote"); err != nil {
		return err
	}
	if old != "" && !strings.HasPrefix(old, cfgMark) {
		e.changes[len(e.changes)-1] += " anew: what was there loads no kernel that is there"
	}
	var without []string
	for _, it := range items {
		if len(it.initrds) == 0 {
			without = append(without, printable(it.linux))
		}
	}
	if len(without) > 0 {
		e.changes = append(e.changes, fmt.Sprintf("%s starts without an initial RAM disk, as none is there: %s", printable(name), strings.Join(without, ", ")))
	}
	return nil
}

// blsUse says where a grub.cfg that is written reads Boot Loader Specification
// entries itself. Kernels that the guest installs later are in these alone.
type blsUse struct {
	bios, efi bool
	menu      bool // it has a menu as well
	first     bool // under the firmware that reads entries the menu comes second, as there are no entries yet
}

func (e *editor) blsUse() blsUse {
	use := blsUse{bios: e.hasBLSCfg(), efi: e.efiHasBLSCfg(), first: len(e.entries) == 0}
	family := e.distro.Family
	if use.first && family != guest.RHEL && family != guest.Fedora {
		return blsUse{menu: true}
	}
	use.efi = use.efi || use.bios && !e.loaders.EFI
	use.bios = use.bios && use.efi
	use.menu = use.first || !use.bios
	return use
}

// hasBLSCfg tells whether the GRUB for BIOS that will be installed can read
// entries itself.
func (e *editor) hasBLSCfg() bool {
	dir, done, err := biosDir(e.tree, e.loaders)
	if err != nil {
		return false
	}
	defer done()
	return dir.path != "" && hasFiles(dir.root, dir.path, "blscfg.mod")
}

// efiHasBLSCfg tells the same of the guest's GRUB for UEFI. Red Hat's has the
// command built in.
func (e *editor) efiHasBLSCfg() bool {
	if !e.loaders.EFI || e.loaders.efi.systemd {
		return false
	}
	if e.distro.Family == guest.RHEL || e.distro.Family == guest.Fedora {
		return true
	}
	dir := efiModules(e.tree, e.loaders.efi.arch)
	return dir != "" && hasFiles(e.tree, dir, "blscfg.mod")
}

// addForBIOS adds a menu to a grub.cfg that only calls blscfg, where the guest
// has no GRUB for BIOS and so another one will read it. UEFI loaders have the
// command built in.
func (e *editor) addForBIOS() error {
	for _, name := range e.cfgs() {
		text := e.read(name)
		if !callsBLSCfg(text) || e.hasBLSCfg() || hasMenu(text) {
			continue
		}
		items := e.items()
		if len(items) == 0 {
			continue
		}
		menu := strings.TrimPrefix(e.newCfg(items, blsUse{menu: true}), cfgMark)
		text = strings.TrimRight(text, "\n") + "\n" + cfgMark + "if [ x$grub_platform = xpc ]; then\n" + menu + "fi\n"
		if err := e.write(name, text, "added a menu to"); err != nil {
			return err
		}
	}
	return nil
}

func callsBLSCfg(text string) bool {
	return slices.ContainsFunc(parseScript(text), func(c command) bool { return c.name() == "blscfg" })
}

// hasMenu tells whether a grub.cfg has an entry for Linux.
func hasMenu(text string) bool {
	return slices.ContainsFunc(parseScript(text), func(c command) bool { return c.entry > 0 && loadsLinux(c) })
}

// addForXen gives pygrub a menu. It reads the first of grub.cfg, extlinux.conf
// and menu.lst that is there, and knows neither blscfg nor the keywords that
// extlinux.conf has today.
func (e *editor) addForXen() error {
	if e.hypervisor != "xen-pvm" {
		return nil
	}
	if cfgs := e.cfgs(); len(cfgs) > 0 && hasMenu(e.read(cfgs[0])) && e.isOfUse(e.read(cfgs[0])) {
		return nil
	}
	exists := func(name string) bool { return e.tree.Exists(name) }
	isLegacy := slices.ContainsFunc([]string{"/boot/grub/menu.lst", "/boot/grub/grub.conf"}, exists)
	isExtlinux := slices.ContainsFunc([]string{"/boot/extlinux.conf", "/boot/extlinux/extlinux.conf"}, exists)
	if len(e.cfgs()) == 0 && isLegacy && !isExtlinux {
		return nil
	}
	const name = "/boot/grub/grub.cfg"
	return e.writeCfg(name, e.read(name), blsUse{menu: true})
}

// items are the entries of a menu that is written: those of the Boot Loader
// Specification where there are any, else one for each kernel.
func (e *editor) items() []item {
	var items []item
	for i, text := range e.readEntries() {
		it, ok := menuItem(e.entries[i], text, e.kernelopts())
		if ok && e.exists(it.linux) {
			it.args = e.mendText(it.args, scope{initrd: len(it.initrds) > 0})
			items = append(items, it)
		}
	}
	slices.SortStableFunc(items, compareItems)
	if len(items) > 0 {
		return items
	}
	args := e.baseArgs()
	for _, k := range e.kernels {
		items = append(items, e.kernelItem(k, e.system(), args))
	}
	return items
}

// compareItems puts the newest kernel first, and those for rescue last. Of two
// with one kernel the fallback comes second.
func compareItems(a, b item) int {
	is := func(it item, what string) bool { return strings.Contains(it.linux+it.title, what) }
	return cmp.Or(
		compareBool(is(a, "rescue"), is(b, "rescue")),
		-compareVersions(path.Base(a.linux), path.Base(b.linux)),
		compareBool(is(a, "fallback"), is(b, "fallback")),
	)
}

func (e *editor) kernelopts() string {
	env, _ := parseGrubenv(e.read(e.grub + "/grubenv"))
	value, _ := env.get("kernelopts")
	return value
}

// system is what menus call the guest.
func (e *editor) system() string {
	if e.distro.Name != "" {
		return e.distro.Name
	}
	return "Linux"
}

// baseArgs are the arguments that the guest's kernels had under another loader.
func (e *editor) baseArgs() string {
	if text := strings.TrimSpace(e.read("/etc/kernel/cmdline")); text != "" {
		return withoutVariables(text)
	}
	for _, name := range []string{"/boot/grub/menu.lst", "/boot/grub/grub.conf"} {
		if args, ok := legacyArgs(e.read(name)); ok {
			return withoutVariables(args)
		}
	}
	for _, name := range []string{"/boot/extlinux.conf", "/boot/extlinux/extlinux.conf", "/boot/syslinux/syslinux.cfg"} {
		if args, ok := extlinuxArgs(e.read(name)); ok {
			return withoutVariables(args)
		}
	}
	if text := e.read("/etc/update-extlinux.conf"); text != "" {
		modules, _, _ := findShell(text, "modules")
		options, _, _ := findShell(text, "default_kernel_opts")
		return withoutVariables("modules=" + modules.text + " " + options.text)
	}
	return "ro " + withoutVariables(e.defaultArgs())
}

// defaultArgs are the arguments that grub-mkconfig gives every kernel: of the
// files that it reads the last one wins.
func (e *editor) defaultArgs() string {
	var texts []string
	for _, name := range e.defaultFiles() {
		texts = append(texts, e.read(name))
	}
	return shellFiles(texts, "GRUB_CMDLINE_LINUX") + " " + shellFiles(texts, "GRUB_CMDLINE_LINUX_DEFAULT")
}

// withoutVariables leaves out what only the file it is from can resolve, and
// the initial RAM disk, which a menu names apart.
func withoutVariables(args string) string {
	var kept []string
	for _, a := range splitArgs(args, 0) {
		if !a.fixed && !strings.ContainsAny(a.text, "\\'`") && !strings.HasPrefix(a.text, "initrd=") {
			kept = append(kept, a.text)
		}
	}
	return strings.Join(kept, " ")
}

// unified are the unified kernel images in the guest.
func (e *editor) unified() []string {
	var found []string
	for _, dir := range []string{"/boot", "/boot/efi", "/efi"} {
		found = append(found, e.tree.Glob(dir+"/EFI/Linux/*.efi")...)
	}
	return found[:min(len(found), maxEntries)]
}

func (e *editor) noteUnified() {
	for _, name := range e.unified() {
		e.changes = append(e.changes, "left "+printable(name)+" as it is: a unified kernel image has its arguments inside")
	}
}
