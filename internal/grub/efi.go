package grub

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/run"
)

// installEFI writes the ESP: what was on the guest's own, a loader where
// firmware looks that knows nothing of this disk, and beside it what tells GRUB
// which file system /boot is on.
func installEFI(ctx context.Context, t Target, f *facts) ([]string, error) {
	l := f.loaders
	esp, found := findESP(t.Table)
	switch {
	case !found && !l.EFI:
		return nil, quiet{unfit("the disk has no EFI system partition, and the guest has no loader for UEFI (looked in " + lookedForEFI() + ")")}
	case !found:
		return nil, unfit("the guest has a loader for UEFI (" + l.EFIName + "), but the disk has no EFI system partition")
	case !l.EFI:
		return nil, unfit("the disk has an EFI system partition, but the guest has no loader for UEFI (looked in " + lookedForEFI() + ")")
	}
	e, err := planESP(ctx, t, f, esp)
	if err != nil {
		return nil, err
	}
	if err := e.tree.write(ctx, t.Disk, esp); err != nil {
		return nil, err
	}
	return e.finish(esp)
}

func lookedForEFI() string {
	return strings.Join(espDirs, ", ") + ", /usr/lib/grub, /usr/lib/shim, /usr/share/efi, /usr/lib/systemd/boot/efi"
}

// efiInstall is one ESP in the making.
type efiInstall struct {
	Target
	facts  *facts
	loader efiLoader
	tree   espTree
}

// planESP gathers what is to be on the ESP.
func planESP(ctx context.Context, t Target, f *facts, esp layout.Partition) (*efiInstall, error) {
	e := &efiInstall{Target: t, facts: f, loader: f.loaders.efi}
	if dir := espDir(t.Root); dir != "" {
		if err := e.tree.addGuest(t.Root, dir, "/"); err != nil {
			return nil, err
		}
	}
	if err := e.tree.fits(esp); err != nil {
		return nil, err // before programs are read that are of no use
	}
	if err := e.addLoader(ctx); err != nil {
		return nil, err
	}
	return e, e.addStubs(ctx)
}

// finish copies the modules that fit the loader, and says what was done.
func (e *efiInstall) finish(esp layout.Partition) ([]string, error) {
	lines := []string{fmt.Sprintf("installed for UEFI on partition %d: %s; %d files in all", esp.Number, e.loader.name, len(e.tree.files))}
	if e.tree.skipped > 0 {
		lines = append(lines, fmt.Sprintf("not copied from %s to the EFI system partition: links, special files and what has an unusual name, %d in all",
			espDir(e.Root), e.tree.skipped))
	}
	dir := efiModules(e.Root, e.loader.arch)
	if dir == "" || e.loader.systemd {
		return lines, nil
	}
	copied, err := copyModules(moduleDir{root: e.Root, path: dir}, e.Root, e.facts.grub+"/"+e.loader.arch.platform)
	return append(lines, copied...), err
}

// addLoader adds what firmware starts, unless the guest's own ESP has it. Where
// the GRUB in it was made for another disk, the next best takes its place.
func (e *efiInstall) addLoader(ctx context.Context) error {
	found := func(*guest.Root, efiArch) (efiLoader, bool) { return e.loader, true }
	arch, stale := e.loader.arch, ""
	for i, find := range []func(*guest.Root, efiArch) (efiLoader, bool){found, packaged, modulesOnly} {
		l, ok := find(e.Root, arch)
		if !ok {
			continue
		}
		e.loader = l
		e.loader.arch = arch
		if err := e.placeLoader(ctx, i > 0); err != nil && stale != "" {
			return fmt.Errorf("%s: %w", stale, err)
		} else if err != nil {
			return err
		}
		missing, err := e.staleGRUB(ctx)
		if missing == "" || err != nil {
			return err
		}
		stale = cmp.Or(stale, l.name+" looks for "+missing)
	}
	return unfit(stale + ", and the guest has no other")
}

// placeLoader adds the files of one loader. With replace set they take the place
// of the guest's, whose fallback program would start these again.
func (e *efiInstall) placeLoader(ctx context.Context, replace bool) error {
	if e.loader.systemd && !e.systemdReads() {
		return unfit("the guest has systemd-boot, which reads only FAT: there is no kernel on its EFI system partition")
	}
	if replace {
		e.tree.remove(fallback(e.loader.arch))
	}
	if e.loader.modules != "" {
		image, err := e.makeImage(ctx)
		if err != nil {
			return err
		}
		e.tree.addData("/EFI/BOOT/"+e.loader.arch.boot, image)
	}
	for _, f := range e.loader.files {
		if err := e.tree.addFile(e.Root, f.from, "/EFI/BOOT/"+f.name, replace); err != nil {
			return err
		}
	}
	if e.loader.systemd {
		f := e.loader.files[0]
		return e.tree.addFile(e.Root, f.from, "/EFI/systemd/systemd-boot"+e.loader.arch.suffix+".efi", false)
	}
	return nil
}

// fallback is the program that shim starts from EFI/BOOT where it is there. It
// starts what the other directories' BOOTX64.CSV name (shim, README.fallback).
func fallback(arch efiArch) string { return "/EFI/BOOT/fb" + arch.suffix + ".efi" }

// systemdReads tells whether there is anything for systemd-boot to start.
func (e *efiInstall) systemdReads() bool {
	for _, f := range e.tree.files {
		dir := strings.ToLower(path.Dir(f.path))
		if dir == "/loader/entries" || dir == "/efi/linux" {
			return true
		}
	}
	return e.facts.boot.Kind == filesystem.VFAT
}

// What a GRUB made by grub-install looks for, in the configuration that is
// inside it.
var (
	embeddedUUID   = regexp.MustCompile(`(?:search\.fs_uuid|--fs-uuid(?: --?[a-z=-]+)*) +([0-9A-Fa-f-]{4,36})`)
	embeddedPrefix = regexp.MustCompile(`prefix=["']?(\([^)\s]*\)["']?/[^\s"';]*)`)
)

// staleGRUB tells what one of the GRUBs that will be started looks for that the
// disk does not have, "" for nothing.
func (e *efiInstall) staleGRUB(ctx context.Context) (missing string, err error) {
	if i := e.tree.index("/EFI/BOOT/" + e.loader.arch.boot); i >= 0 {
		objects, err := e.tree.files[i].objects(ctx)
		if objects.found || err != nil {
			return e.missing(objects), err // it starts no other
		}
	}
	for _, f := range e.tree.files {
		if !e.startsNext(f.path) {
			continue
		}
		objects, err := f.objects(ctx)
		if err != nil {
			return "", err
		}
		if missing := e.missing(objects); missing != "" {
			return missing, nil
		}
	}
	return "", nil
}

// startsNext tells whether a file may be the GRUB that shim starts beside
// itself, or that the fallback program has started elsewhere.
func (e *efiInstall) startsNext(name string) bool {
	dir, base := path.Split(strings.ToLower(name))
	isGRUB := strings.HasPrefix(base, "grub") && path.Ext(base) == ".efi"
	return isGRUB && (dir == "/efi/boot/" || e.tree.index(fallback(e.loader.arch)) >= 0)
}

// missing tells what a GRUB looks for that is not on this disk, "" for nothing.
func (e *efiInstall) missing(o objects) string {
	if uuid := embeddedUUID.FindStringSubmatch(o.config); uuid != nil {
		if !strings.EqualFold(uuid[1], e.facts.boot.UUID) {
			return "the file system " + uuid[1] + ", which is not on this disk"
		}
		if prefix := embeddedPrefix.FindStringSubmatch(o.config); prefix != nil {
			o.prefix = "(," + e.facts.bootPart + ")" + strings.TrimLeft(prefix[1][strings.IndexByte(prefix[1], ')'):], `)"'`)
		}
	}
	if !strings.HasPrefix(o.prefix, "(") || strings.HasPrefix(o.prefix, "(memdisk)") {
		return ""
	}
	right := fmt.Sprintf("(,%s)%s", e.facts.bootPart, e.facts.onBoot(e.facts.grub))
	if e.facts.plainBoot && o.prefix == right {
		return ""
	}
	return strconv.QuoteToASCII(o.prefix) + ", which is not where it is on this disk"
}

// stubUUID is how a file system may be named in a grub.cfg.
var stubUUID = regexp.MustCompile(`^[0-9A-Fa-f-]{4,36}$`)

// addStubs has each GRUB on the ESP find the configuration in /boot: GRUB reads
// grub.cfg in the directory that it was built for, or else in its own.
func (e *efiInstall) addStubs(ctx context.Context) error {
	dirs, err := e.stubDirs(ctx)
	if err != nil || len(dirs) == 0 {
		return err
	}
	config := e.facts.grub
	if !e.Root.Exists(config + "/grub.cfg") {
		if e.hasConfig(dirs) {
			return nil // all of it is on the ESP, as it was with RHEL 8
		}
		return unfit("the guest has no " + config + "/grub.cfg")
	}
	uuid := e.facts.boot.UUID
	if !stubUUID.MatchString(uuid) {
		return fmt.Errorf("the file system with /boot has the UUID %q, by which GRUB cannot find it", uuid)
	}
	stub := fmt.Sprintf("search.fs_uuid %s root\nset prefix=($root)'%s'\nconfigfile $prefix/grub.cfg\n", uuid, e.facts.onBoot(config))
	for _, dir := range dirs {
		whole, err := e.hasMenu(dir + "/grub.cfg")
		if err != nil {
			return err
		}
		if !whole {
			e.tree.addData(dir+"/grub.cfg", []byte(stub))
		}
	}
	return detachEnvironment(e.Root, config+"/grubenv")
}

// hasMenu tells whether a grub.cfg on the ESP is a whole one, which loads a
// kernel that is there. As RHEL 7 has it, grubby adds new kernels to that one.
func (e *efiInstall) hasMenu(name string) (bool, error) {
	i := e.tree.index(name)
	if i < 0 || e.tree.files[i].size > cfgLimit {
		return false, nil
	}
	content, err := e.tree.files[i].read()
	text := string(content)
	return hasMenu(text) && !callsBLSCfg(text) && (&editor{facts: e.facts, tree: e.Root}).isOfUse(text), err
}

func (e *efiInstall) hasConfig(dirs []string) bool {
	for _, dir := range dirs {
		if e.tree.index(dir+"/grub.cfg") >= 0 {
			return true
		}
	}
	return false
}

// stubDirs are the directories in which a GRUB on the ESP looks for grub.cfg.
func (e *efiInstall) stubDirs(ctx context.Context) ([]string, error) {
	var dirs []string
	add := func(dir string) {
		for _, d := range dirs {
			if strings.EqualFold(d, dir) {
				return
			}
		}
		dirs = append(dirs, dir)
	}
	for _, f := range e.tree.files {
		if !strings.EqualFold(path.Ext(f.path), ".efi") {
			continue
		}
		objects, err := f.objects(ctx)
		if err != nil {
			return nil, err
		}
		if !objects.found {
			continue
		}
		add(path.Dir(f.path))
		if espPath(objects.prefix) {
			add(objects.prefix)
		}
	}
	return dirs, nil
}

// objects reads what a program carries if it is GRUB.
func (f espFile) objects(ctx context.Context) (objects, error) {
	if err := ctx.Err(); err != nil || f.size > maxLoader {
		return objects{}, err
	}
	image, err := f.read()
	return grubObjects(image), err
}

// detachEnvironment makes GRUB's environment a file of its own where it is a
// link to the ESP (RHEL 8): GRUB, which now begins in /boot, follows no link to
// another file system.
func detachEnvironment(root *guest.Root, name string) error {
	if _, err := root.Readlink(name); err != nil {
		return nil // it is none
	}
	content, err := root.ReadFile(name, textLimit)
	if err != nil {
		return nil // it leads nowhere, and GRUB goes without
	}
	if err := root.Remove(name); err != nil {
		return err
	}
	return root.WriteFile(name, content, 0o600)
}

// objects is what a GRUB for UEFI carries besides its modules.
type objects struct {
	found          bool
	prefix, config string
}

const moduleConfig = 2 // the type of an embedded configuration

// What is looked at of a program in search of GRUB's objects: a real one has one
// list of them, with some forty modules.
const (
	maxObjectLists = 16
	maxObjects     = 1000
)

// grubObjects reads the prefix and the configuration inside of a GRUB for a
// machine of 64 bits (struct grub_module_info64). In other programs it finds
// nothing.
func grubObjects(image []byte) objects {
	const infoSize = 24
	for lists := 0; lists < maxObjectLists; {
		i := bytes.Index(image, []byte(moduleMagic))
		if i < 0 || len(image)-i < infoSize {
			break
		}
		info := image[i:]
		offset, length := le.Uint64(info[8:]), le.Uint64(info[16:])
		behind := len(moduleMagic)
		if offset == infoSize && length > offset && length <= uint64(len(info)) {
			o, walked := walkObjects(info[offset:length])
			if o.found {
				return o
			}
			lists++
			behind = infoSize + walked
		}
		image = info[behind:]
	}
	return objects{}
}

// walkObjects reads a list of objects, and tells how many bytes it has read: a
// list that is none is not looked at again.
func walkObjects(list []byte) (o objects, walked int) {
	for n := 0; len(list)-walked >= 8; n++ {
		rest := list[walked:]
		kind, length := le.Uint32(rest), le.Uint32(rest[4:])
		if length < 8 || uint64(length) > uint64(len(rest)) || n == maxObjects {
			return objects{}, walked
		}
		content := rest[8:min(length, 64<<10)]
		switch kind {
		case modulePrefix:
			o.found, o.prefix = true, unix.ByteSliceToString(content)
		case moduleConfig:
			o.config = unix.ByteSliceToString(content)
		}
		walked += int(length)
	}
	return o, walked
}

// efiImageModules are enough to find /boot and read its grub.cfg, which loads
// the rest from /boot.
var efiImageModules = []string{"part_gpt", "part_msdos", "fat", "ext2", "xfs", "btrfs", "search", "search_fs_uuid",
	"search_fs_file", "search_label", "normal", "configfile", "linux", "boot", "echo", "test", "minicmd", "serial", "terminal"}

// makeImage makes GRUB for UEFI of the guest's modules, with this node's
// grub-mkimage. It is a program for any firmware, without a signature.
func (e *efiInstall) makeImage(ctx context.Context) ([]byte, error) {
	tool, err := mkimage()
	if err != nil {
		return nil, unfit("the guest has only GRUB's modules for UEFI, and this node has no grub-mkimage to make a loader of them: install grub-common or grub2-tools")
	}
	work, err := os.MkdirTemp("", "grub-efi-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	from := moduleDir{root: e.Root, path: e.loader.modules}
	modules, err := from.export(work, append(slices.Clone(efiImageModules), grubModule(e.facts.boot.Kind)))
	if err != nil {
		return nil, err
	}
	argv := append([]string{tool, "-d", work, "-O", e.loader.arch.platform, "-p", "/EFI/BOOT", "-o", work + "/image"}, modules...)
	if _, err := (run.Cmd{What: "make GRUB for UEFI", Argv: argv}).Run(ctx); err != nil {
		return nil, err
	}
	return os.ReadFile(work + "/image")
}

func mkimage() (string, error) {
	var failed error
	for _, name := range []string{"grub-mkimage", "grub2-mkimage"} {
		if _, err := run.Find(name); err == nil {
			return name, nil
		} else {
			failed = errors.Join(failed, err)
		}
	}
	return "", failed
}

// export copies what grub-mkimage reads to a directory of the node, and returns
// which of the modules there are.
func (d moduleDir) export(to string, modules []string) ([]string, error) {
	var have []string
	for _, module := range modules {
		if !slices.Contains(have, module) && hasFiles(d.root, d.path, module+".mod") {
			have = append(have, module)
		}
	}
	needed, err := d.withNeeded(have)
	if err != nil {
		return nil, err
	}
	files := []string{"kernel.img", "moddep.lst"}
	for _, module := range needed {
		files = append(files, module+".mod")
	}
	for _, file := range files {
		content, err := d.read(file)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(to+"/"+file, content, 0o600); err != nil {
			return nil, err
		}
	}
	return have, nil
}
