package grub

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/filesystem"
)

func seed(f *testing.F, pattern string) {
	f.Helper()
	names, _ := filepath.Glob(filepath.Join("testdata/configure", pattern))
	for _, name := range names {
		if text, err := os.ReadFile(name); err == nil {
			f.Add(string(text))
		}
	}
	f.Add("")
}

// wanted are facts of each sort.
func wanted() []*facts {
	own, subvol := somewhere(), somewhere()
	own.bios, own.efi = true, true
	own.separate, own.prefix, own.boot, own.bootPart = false, "/boot", own.root, own.rootPart
	subvol.separate, subvol.prefix, subvol.subvol, subvol.root.Kind = false, "/@/boot", "@", filesystem.Btrfs
	return []*facts{somewhere(), own, subvol}
}

// steady checks that mending a second time changes nothing.
func steady(t *testing.T, text string, mend func(f *facts, text string) string) {
	t.Helper()
	for _, f := range wanted() {
		once := mend(f, text)
		if twice := mend(f, once); twice != once {
			t.Errorf("mended once\n%q, twice\n%q", once, twice)
		}
	}
}

func FuzzCfg(f *testing.F) {
	seed(f, "*/boot/grub*/grub.cfg")
	seed(f, "*/boot/efi/EFI/*/grub.cfg")
	f.Add("linux '/boot/vmlinuz' \"root=/dev/sda1\" 'a b' \\\n c=$d ${e}\ninitrd (hd0,1)/boot/i\n")
	f.Add("search.fs_label x root hd0,1\nset root='lvmid/a/b'\nsearch -l x\nset kernelopts=\"root=x\"")
	f.Add("menuentry 'a' {\nlinux16 /v\ninitrd16 /i\nlinuxefi /v\n}\nterminal_output gfxterm\n")
	f.Add("search -u --hint=a(hd0,1) x\nkernelopts=root=/usr/x\n")
	f.Fuzz(func(t *testing.T, text string) {
		steady(t, text, func(f *facts, text string) string { return f.addSerial(f.mendCfg(text, false)) })
		steady(t, text, func(f *facts, text string) string { return f.mendCfg(text, true) })
	})
}

func FuzzBLS(f *testing.F) {
	seed(f, "*/boot/loader/entries/*.conf")
	f.Add("linux /v\noptions root=a\noptions\nOPTIONS x\noptions rd.lvm.lv=a rd.lvm.lv=b")
	f.Add("linux /a\"d /boot/b /")
	f.Add("linux /v\noptions rd.lvm.lv=a\rb\n")
	f.Fuzz(func(t *testing.T, text string) {
		steady(t, text, func(f *facts, text string) string { return f.mendBLS(text, true) })
		if it, ok := menuItem("x.conf", text, "ro"); ok {
			cfg := somewhere().newCfg([]item{it}, blsUse{menu: true})
			if commands := parseScript(cfg); commands[len(commands)-1].entry != 1 {
				t.Errorf("the entry's end is lost in\n%s", cfg)
			}
		}
	})
}

func FuzzGrubenv(f *testing.F) {
	seed(f, "*/boot/grub2/grubenv")
	f.Add(grubenvHeader + "a=b\\\nc\n# comment\nkernelopts=root=x\n####")
	f.Fuzz(func(t *testing.T, text string) {
		env, err := parseGrubenv(text)
		if err != nil {
			return
		}
		printed, err := env.print()
		if err != nil {
			return
		}
		again, err := parseGrubenv(printed)
		if err != nil {
			t.Fatalf("%v in %q", err, printed)
		}
		if twice, _ := again.print(); twice != printed || len(printed) != grubenvSize {
			t.Errorf("printed once\n%q, twice\n%q", printed, twice)
		}
	})
}

// FuzzPlain is for the other files, which are read line by line.
func FuzzPlain(f *testing.F) {
	seed(f, "*/boot/extlinux.conf")
	seed(f, "*/boot/grub/grub.conf")
	seed(f, "*/etc/default/grub")
	seed(f, "*/etc/update-extlinux.conf")
	seed(f, "*/etc/kernel/cmdline")
	f.Add("GRUB_CMDLINE_LINUX_DEFAULT=\"a\nGRUB_CMDLINE_LINUX=;\"\n")
	f.Add("kernel /a(hd0,2)/boot/i\n")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 1<<16 {
			return
		}
		for _, mend := range []func(*facts, string) string{
			(*facts).mendExtlinux, (*facts).mendLegacy, (*facts).mendDefaults, (*facts).correctDefaults, (*facts).mendUpdateExtlinux,
			func(f *facts, text string) string { return f.mendText(text, scope{initrd: true}) },
		} {
			steady(t, text, mend)
		}
		if strings.Contains(somewhere().mendText(strings.ReplaceAll(text, "\n", " "), scope{}), "\n") {
			t.Error("a line became two")
		}
	})
}
