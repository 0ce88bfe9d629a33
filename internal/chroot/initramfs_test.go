package chroot

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/guest"
)

// tree makes files of a guest; a name that ends in "*" is a program.
func tree(t *testing.T, files map[string]string) *guest.Root {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		name, program := strings.CutSuffix(name, "*")
		mode := os.FileMode(0o644)
		if program {
			mode = 0o755
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, link := strings.CutPrefix(text, "-> "); link {
			if err := os.Symlink(target, path); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	root, err := guest.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func TestInitramfs(t *testing.T) {
	const modern = "#!/bin/bash\n  --regenerate-all      Regenerate all\n"
	cases := map[string]struct {
		files map[string]string
		argv  string // in "|"; empty: there is none
		why   string // part of it
	}{
		"debian":            {map[string]string{"usr/sbin/update-initramfs*": "", "usr/sbin/mkinitramfs*": ""}, "/usr/sbin/update-initramfs|-u|-k|all", "update-initramfs"},
		"debian and dracut": {map[string]string{"usr/sbin/update-initramfs*": "", "usr/sbin/mkinitramfs*": "", "usr/bin/dracut*": modern}, "/usr/sbin/update-initramfs|-u|-k|all", ""},
		"debian by dracut":  {map[string]string{"usr/sbin/update-initramfs*": "", "usr/bin/dracut*": modern}, "/usr/bin/dracut|-f|--regenerate-all|--no-hostonly", "/usr/bin/dracut"},
		"rhel 9":            {map[string]string{"usr/bin/dracut*": modern}, "/usr/bin/dracut|-f|--regenerate-all|--no-hostonly", ""},
		"rhel 6":            {map[string]string{"sbin/dracut*": "#!/bin/bash\n"}, "", "no --regenerate-all"},
		"arch":              {map[string]string{"usr/bin/mkinitcpio*": "", "etc/mkinitcpio.conf": "# HOOKS=(autodetect)\nHOOKS=(base udev block)\n"}, "/usr/bin/mkinitcpio|-P", ""},
		"arch as shipped":   {map[string]string{"usr/bin/mkinitcpio*": "", "etc/mkinitcpio.conf": "HOOKS=(base udev autodetect block)\n"}, "", "/etc/mkinitcpio.conf"},
		"arch drop-in":      {map[string]string{"usr/bin/mkinitcpio*": "", "etc/mkinitcpio.conf.d/a.conf": "HOOKS+=(autodetect)\n"}, "", "/etc/mkinitcpio.conf.d/a.conf"},
		"alpine":            {map[string]string{"sbin/mkinitfs*": "", "usr/share/kernel/virt/kernel.release": "6.6.8-0-virt\n", "lib/modules/6.6.8-0-virt/x": ""}, "/sbin/mkinitfs|-o|/boot/initramfs-virt|6.6.8-0-virt", ""},
		"alpine, two kernels": {map[string]string{"sbin/mkinitfs*": "",
			"usr/share/kernel/virt/kernel.release": "6.6.8-0-virt\n", "lib/modules/6.6.8-0-virt/x": "",
			"usr/share/kernel/lts/kernel.release": "6.6.7-0-lts\n", "lib/modules/6.6.7-0-lts/x": "",
		}, `/bin/sh|-c|while [ $# -gt 0 ]; do "$0" -o "$1" "$2" || exit; shift 2; done|/sbin/mkinitfs|/boot/initramfs-lts|6.6.7-0-lts|/boot/initramfs-virt|6.6.8-0-virt`, ""},
		"alpine, hostile":   {map[string]string{"sbin/mkinitfs*": "", "usr/share/kernel/virt/kernel.release": "../..\n", "lib/modules/x": ""}, "", "kernel.release"},
		"alpine, option":    {map[string]string{"sbin/mkinitfs*": "", "usr/share/kernel/-o/kernel.release": "1\n", "lib/modules/1/x": ""}, "", "kernel.release"},
		"no kernel":         {map[string]string{"sbin/mkinitfs*": ""}, "", "kernel.release"},
		"no program":        {map[string]string{"usr/bin/dracut": modern}, "", "none of"},
		"a link out":        {map[string]string{"usr/bin/dracut*": "-> /../../../../bin/sh"}, "", "none of"},
		"a directory":       {map[string]string{"usr/bin/dracut/x": ""}, "", "none of"},
		"nothing":           {nil, "", "none of"},
		"link inside guest": {map[string]string{"usr/bin/dracut*": "-> /opt/d", "opt/d*": modern}, "/usr/bin/dracut|-f|--regenerate-all|--no-hostonly", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			argv, why, ok := Initramfs(tree(t, c.files))
			if got := strings.Join(argv, "|"); got != c.argv || ok != (c.argv != "") || !strings.Contains(why, c.why) {
				t.Errorf("got %q %q %v, want %q", got, why, ok, c.argv)
			}
		})
	}
	many := map[string]string{"sbin/mkinitfs*": ""}
	for i := range maxKernels + 1 {
		v := "1." + strings.Repeat("1", i+1)
		many["usr/share/kernel/f"+v+"/kernel.release"], many["lib/modules/"+v+"/x"] = v, ""
	}
	if argv, why, ok := Initramfs(tree(t, many)); ok || !strings.Contains(why, "too many") || slices.Contains(argv, "x") {
		t.Errorf("too many kernels: %q %q", argv, why)
	}
}
