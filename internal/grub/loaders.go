package grub

import (
	"path"
	"slices"
	"strings"

	"ganeti-instance-image/internal/guest"
)

// Loaders is which boot loaders a guest's files have.
type Loaders struct {
	BIOS     bool   // GRUB for BIOS
	BIOSDir  string // where its files are, as in "/usr/lib/grub/i386-pc"
	EFI      bool   // something for UEFI, which EFIName calls by its name
	EFIName  string
	Extlinux bool // extlinux, or its configuration: it is not installed by this package

	efi efiLoader
}

// efiLoader is a loader for UEFI and where the guest has it.
type efiLoader struct {
	arch    efiArch
	name    string
	files   []efiFile // what goes to EFI/BOOT; none: the guest's own ESP directory has it there
	modules string    // GRUB's modules, from which the loader is to be made; or empty
	systemd bool      // it is systemd-boot, which reads nothing but the ESP and XBOOTLDR
}

// efiFile is a file of the guest and its name in EFI/BOOT.
type efiFile struct{ from, name string }

// efiArch is a machine with UEFI (UEFI 2.10, 3.5.1.1 has the names).
type efiArch struct {
	suffix   string // in the names of shim and GRUB: "shimx64.efi"
	boot     string // what firmware starts of a disk that it does not know
	platform string // GRUB's name
	suse     string // the directory in /usr/share/efi
}

var efiArches = []efiArch{
	{"x64", "BOOTX64.EFI", "x86_64-efi", "x86_64"},
	{"aa64", "BOOTAA64.EFI", "arm64-efi", "aarch64"},
}

// biosDirs are the directories with GRUB's files for BIOS, packaged ones first:
// those in /boot may be older than the package.
var biosDirs = []string{
	"/usr/lib/grub/i386-pc", "/usr/share/grub2/i386-pc", "/usr/lib/grub2/i386-pc", // all, SUSE, SUSE
	"/boot/grub/i386-pc", "/boot/grub2/i386-pc",
}

// biosFiles are what a core image is made from, besides its modules.
var biosFiles = []string{"boot.img", "diskboot.img", "kernel.img", "lzma_decompress.img", "moddep.lst", "biosdisk.mod"}

// espDirs are the directories that an ESP is mounted on. In an archive that was
// made of a running system they hold what was on it.
var espDirs = []string{"/boot/efi", "/efi"}

var extlinuxFiles = []string{"/boot/extlinux.conf", "/boot/extlinux/extlinux.conf", "/boot/syslinux/syslinux.cfg", "/sbin/extlinux", "/usr/bin/extlinux"}

// FindLoaders looks for boot loaders in a guest's files.
func FindLoaders(root *guest.Root) Loaders {
	l := Loaders{BIOSDir: findBIOS(root)}
	l.BIOS = l.BIOSDir != ""
	l.efi, l.EFI = findEFI(root)
	l.EFIName = l.efi.name
	l.Extlinux = slices.ContainsFunc(extlinuxFiles, root.Exists)
	return l
}

func findBIOS(root *guest.Root) string {
	for _, dir := range biosDirs {
		if hasFiles(root, dir, biosFiles...) {
			return dir
		}
	}
	return ""
}

func hasFiles(root *guest.Root, dir string, names ...string) bool {
	return !slices.ContainsFunc(names, func(name string) bool {
		info, err := root.Stat(dir + "/" + name)
		return err != nil || !info.IsRegular()
	})
}

// findEFI returns the loader that is best for firmware that knows nothing: what
// the guest's own ESP had, then what checks signatures, then what does not.
func findEFI(root *guest.Root) (efiLoader, bool) {
	for _, find := range []func(*guest.Root, efiArch) (efiLoader, bool){inESP, inVendorDir, packaged, modulesOnly, systemdBoot} {
		for _, arch := range efiArches {
			if l, ok := find(root, arch); ok {
				l.arch = arch
				return l, true
			}
		}
	}
	return efiLoader{}, false
}

// espDir is the directory with what was on the guest's ESP; empty where none is.
func espDir(root *guest.Root) string {
	for _, dir := range espDirs {
		if lookup(root, dir, "EFI") != "" {
			return dir
		}
	}
	return ""
}

// lookup finds a name in a directory as FAT does, whatever its case; it returns
// its path, or nothing.
func lookup(root *guest.Root, dir, name string) string {
	names, err := root.ReadDir(dir)
	i := slices.IndexFunc(names, func(n string) bool { return strings.EqualFold(n, name) })
	if err != nil || i < 0 {
		return ""
	}
	return dir + "/" + names[i]
}

// lookupPath is lookup for several components.
func lookupPath(root *guest.Root, dir string, names ...string) string {
	for _, name := range names {
		if dir = lookup(root, dir, name); dir == "" {
			return ""
		}
	}
	return dir
}

func inESP(root *guest.Root, arch efiArch) (efiLoader, bool) {
	dir := espDir(root)
	if dir == "" || lookupPath(root, dir, "EFI", "BOOT", arch.boot) == "" {
		return efiLoader{}, false
	}
	return efiLoader{name: "the boot loader in its " + dir + "/EFI/BOOT"}, true
}

func inVendorDir(root *guest.Root, arch efiArch) (efiLoader, bool) {
	above := lookup(root, espDir(root), "EFI")
	names, err := root.ReadDir(above)
	if above == "" || err != nil {
		return efiLoader{}, false
	}
	for _, vendor := range names {
		if !espName.MatchString(vendor) {
			continue
		}
		if l, ok := fromSet(root, arch, efiSet{
			dir: above + "/" + vendor, shim: []string{"shim@.efi"}, grub: []string{"grub@.efi"}, mok: []string{"mm@.efi"}, grubName: "grub@.efi", mokName: "mm@.efi",
		}); ok {
			return l, true
		}
	}
	return efiLoader{}, false
}

// efiSet is where a distribution has its signed loaders; "@" stands for the
// architecture. shim starts the other two by the names that it was built with.
type efiSet struct {
	dir               string
	shim, grub, mok   []string // the first that is there, below dir
	grubName, mokName string
}

var efiSets = []efiSet{
	{ // Debian, Ubuntu
		dir:  "/usr/lib",
		shim: []string{"shim/shim@.efi.signed", "shim/shim@.efi.signed.latest", "shim/shim@.efi.dualsigned"},
		grub: []string{"grub/%-signed/grub@.efi.signed"},
		mok:  []string{"shim/mm@.efi.signed", "shim/mm@.efi"}, grubName: "grub@.efi", mokName: "mm@.efi",
	},
	{ // the same without signatures
		dir:      "/usr/lib/grub",
		grub:     []string{"%/monolithic/grub@.efi"},
		grubName: "grub@.efi", mokName: "mm@.efi",
	},
	{ // SUSE
		dir:  "/usr/share",
		shim: []string{"efi/!/shim.efi"},
		grub: []string{"efi/!/grub.efi", "grub2/%/grub.efi"},
		mok:  []string{"efi/!/MokManager.efi"}, grubName: "grub.efi", mokName: "MokManager.efi",
	},
}

func packaged(root *guest.Root, arch efiArch) (efiLoader, bool) {
	for _, set := range efiSets {
		if l, ok := fromSet(root, arch, set); ok {
			return l, true
		}
	}
	return efiLoader{}, false
}

// fromSet takes shim with GRUB beside it, or GRUB alone where there is no shim.
func fromSet(root *guest.Root, arch efiArch, set efiSet) (efiLoader, bool) {
	name := strings.NewReplacer("@", arch.suffix, "%", arch.platform, "!", arch.suse).Replace
	first := func(names []string) string {
		for _, n := range names {
			if hasFiles(root, set.dir, name(n)) {
				return path.Join(set.dir, name(n))
			}
		}
		return ""
	}
	shim, grub, mok := first(set.shim), first(set.grub), first(set.mok)
	if grub == "" {
		return efiLoader{}, false
	}
	if shim == "" {
		return efiLoader{name: "GRUB, " + grub, files: []efiFile{{grub, arch.boot}}}, true
	}
	files := []efiFile{{shim, arch.boot}, {grub, name(set.grubName)}}
	if mok != "" {
		files = append(files, efiFile{mok, name(set.mokName)})
	}
	return efiLoader{name: "shim and GRUB, " + shim + " and " + grub, files: files}, true
}

func modulesOnly(root *guest.Root, arch efiArch) (efiLoader, bool) {
	dir := efiModules(root, arch)
	if dir == "" {
		return efiLoader{}, false
	}
	return efiLoader{name: "GRUB, made from " + dir, modules: dir}, true
}

// efiModules is the directory with GRUB's modules for UEFI, or nothing.
func efiModules(root *guest.Root, arch efiArch) string {
	for _, above := range []string{"/usr/lib/grub/", "/usr/share/grub2/", "/usr/lib/grub2/"} {
		if hasFiles(root, above+arch.platform, "kernel.img", "moddep.lst", "normal.mod") {
			return above + arch.platform
		}
	}
	return ""
}

func systemdBoot(root *guest.Root, arch efiArch) (efiLoader, bool) {
	const dir = "/usr/lib/systemd/boot/efi"
	name := "systemd-boot" + arch.suffix + ".efi"
	for _, n := range []string{name + ".signed", name} {
		if hasFiles(root, dir, n) {
			return efiLoader{name: "systemd-boot", files: []efiFile{{dir + "/" + n, arch.boot}}, systemd: true}, true
		}
	}
	return efiLoader{}, false
}
