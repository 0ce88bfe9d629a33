package grub

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/filesystem"
	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/layout"
	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

// somewhere are the facts of a guest on an MBR disk with /boot on its own.
func somewhere() *facts {
	return &facts{
		root: rootOn(3, filesystem.Ext4), boot: bootOn(1, filesystem.XFS), separate: true,
		partmap: "part_msdos", rootPart: "msdos3", bootPart: "msdos1", plainRoot: true, plainBoot: true,
		args: []string{"nokaslr"}, serial: com1, hypervisor: "kvm",
		has: func(name string) bool { return strings.HasPrefix(name, "/boot/") && !strings.Contains(name, "gone") },
	}
}

const tail = "nokaslr console=tty0 console=ttyS0,115200n8"

func TestMendText(t *testing.T) {
	inside := scope{initrd: true}
	tests := []struct {
		name, old, want string
		scope           scope
		change          func(f *facts)
	}{
		{"empty", "", "root=UUID=" + rootUUID + " " + tail, inside, nil},
		{"stale", "root=UUID=0-0 ro", "root=UUID=" + rootUUID + " ro " + tail, inside, nil},
		{"device", "root=/dev/sda1 ro", "root=UUID=" + rootUUID + " ro " + tail, inside, nil},
		{"true UUID in capitals", "root=UUID=" + strings.ToUpper("11111111-2222-4333-8444-555555555555") + " ro " + tail, "root=UUID=11111111-2222-4333-8444-555555555555 ro " + tail, inside, nil},
		{"true label", "root=LABEL=root " + tail, "root=LABEL=root " + tail, inside, nil},
		{"true link", "root=/dev/disk/by-label/root " + tail, "root=/dev/disk/by-label/root " + tail, inside, nil},
		{"true PARTUUID", "root=PARTUUID=" + rootPart + " " + tail, "root=PARTUUID=" + rootPart + " " + tail, inside, nil},
		{"stale PARTUUID", "root=PARTUUID=x " + tail, "root=PARTUUID=" + rootPart + " " + tail, inside, nil},
		{"twice", "root=/dev/a ro root=/dev/b", "root=UUID=" + rootUUID + " ro " + tail, inside, nil},
		{"no initrd", "ro root=UUID=" + rootUUID, "ro root=PARTUUID=" + rootPart + " " + tail, scope{}, nil},
		{"no initrd, no PARTUUID", "", "root=/dev/vda3 " + tail, scope{}, func(f *facts) { f.root.PartUUID = "" }},
		{"no initrd, no PARTUUID, Xen", "root=LABEL=x", "root=/dev/xvda3 " + tail, scope{}, func(f *facts) { f.root.PartUUID, f.hypervisor = "", "xen-pvm" }},
		{"no initrd, no PARTUUID, a device", "root=/dev/sda1", "root=/dev/sda1 " + tail, scope{}, func(f *facts) { f.root.PartUUID = "" }},
		{"logical volume stays", "root=/dev/mapper/vg-root rd.lvm.lv=vg/root " + tail, "root=/dev/mapper/vg-root rd.lvm.lv=vg/root " + tail, inside, func(f *facts) { f.plainRoot = false }},
		{"logical volume is gone", "rd.lvm.lv=vg/root root=/dev/mapper/vg-root rd.lvm.lv=vg/swap ro", "root=UUID=" + rootUUID + " ro " + tail, inside, nil},
		{"all is dropped", "rd.lvm.lv=a rd.lvm.lv=b", tail, scope{partial: true}, nil},
		{"resume stays", "resume=UUID=x " + tail, "resume=UUID=x " + tail, scope{partial: true}, nil},
		{"resume by a volume is gone", "resume=/dev/mapper/cl-swap quiet resume=/dev/cl/swap resume=/dev/sda2 resume=/dev/disk/by-uuid/x " + tail, "quiet resume=/dev/disk/by-uuid/x " + tail, scope{partial: true}, nil},
		{"resume by a volume stays", "resume=/dev/mapper/cl-swap " + tail, "resume=/dev/mapper/cl-swap " + tail, scope{partial: true}, func(f *facts) { f.plainRoot = false }},
		{"volumes of dracut of EL6", "rd_LVM_LV=cl/root rd_NO_LUKS " + tail, "rd_NO_LUKS " + tail, scope{partial: true}, nil},
		{"beside others", "quiet console=ttyS0,9600", "quiet", scope{partial: true, beside: splitArgs("a nokaslr console=tty0 console=ttyS0,115200n8", 0)}, nil},
		{"the site's console replaces", "console=tty0 console=ttyS0,115200n8 quiet", "console=tty0 quiet console=ttyS0,9600", scope{partial: true}, func(f *facts) { f.args = []string{"console=tty0", "console=ttyS0,9600"} }},
		{"the site's console replaces in what is only corrected", "console=tty0 console=ttyS0,115200n8", "console=tty0", scope{partial: true, only: true}, func(f *facts) { f.args = []string{"console=ttyS0,9600"} }},
		{"subvolume is gone", "rootflags=subvol=@ ro " + tail, "ro " + tail, scope{partial: true}, nil},
		{"flags beside it", "rootflags=noatime,subvol=@,subvolid=5 " + tail, "rootflags=noatime " + tail, scope{partial: true}, nil},
		{"another subvolume", "root=LABEL=root rootflags=subvol=@x " + tail, "root=LABEL=root rootflags=subvol=@ " + tail, inside, func(f *facts) { f.subvol = "@" }},
		{"the subvolume", "root=LABEL=root rootflags=subvol=/@ " + tail, "root=LABEL=root rootflags=subvol=/@ " + tail, inside, func(f *facts) { f.subvol = "@" }},
		{"a new subvolume", "ro", "ro root=UUID=" + rootUUID + " rootflags=subvol=@ " + tail, inside, func(f *facts) { f.subvol = "@" }},
		{"type", "rootfstype=xfs " + tail, "rootfstype=ext4 " + tail, scope{partial: true}, nil},
		{"type of one family", "rootfstype=ext3 " + tail, "rootfstype=ext3 " + tail, scope{partial: true}, nil},
		{"other speed", "nokaslr console=tty0 console=ttyS0,9600n8", tail, scope{partial: true}, nil},
		{"serial not last", "nokaslr console=ttyS0,115200n8 console=tty0", "nokaslr console=tty0 console=ttyS0,115200n8", scope{partial: true}, nil},
		{"serial without parity", "nokaslr console=tty0 console=ttyS0,115200", "nokaslr console=tty0 console=ttyS0,115200", scope{partial: true}, nil},
		{"serial twice", "nokaslr console=ttyS0 console=tty1 console=ttyS0,115200n8", "nokaslr console=tty1 console=ttyS0,115200n8", scope{partial: true}, nil},
		{"another port", "nokaslr console=tty0 console=ttyS1,9600", "nokaslr console=tty0 console=ttyS1,9600 console=ttyS0,115200n8", scope{partial: true}, nil},
		{"ttyS01 is not ours", "nokaslr console=tty0 console=ttyS01 console=ttyS0,115200n8", "nokaslr console=tty0 console=ttyS01 console=ttyS0,115200n8", scope{partial: true}, nil},
		{"the site has its own", "ro", "ro console=ttyS0,9600", scope{partial: true}, func(f *facts) { f.args = []string{"console=ttyS0,9600"} }},
		{"no serial console", "ro console=ttyS0,9600", "ro console=ttyS0,9600 nokaslr", scope{partial: true}, func(f *facts) { f.serial = Serial{} }},
		{"quotes", `a="b c" root=x`, `a="b c" root=UUID=` + rootUUID + " " + tail, inside, nil},
		{"quoted the other way", `nokaslr "a=b c" console=tty0 console=ttyS0,115200n8`, `nokaslr "a=b c" console=tty0 console=ttyS0,115200n8`, scope{partial: true}, func(f *facts) { f.args = []string{`a="b c"`} }},
		{"blanks stay", "  ro   quiet \t", "  ro   quiet " + tail + " \t", scope{partial: true}, nil},
		{"corrected only", "quiet", "quiet", scope{partial: true, only: true}, nil},
		{"kernelopts", "$kernelopts quiet", "$kernelopts quiet", inside, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := somewhere()
			if test.change != nil {
				test.change(f)
			}
			got := f.mendText(test.old, test.scope)
			if got != test.want {
				t.Errorf("%q becomes\n%q, want\n%q", test.old, got, test.want)
			}
			if again := f.mendText(got, test.scope); again != got {
				t.Errorf("and then %q", again)
			}
		})
	}
}

func TestSplitArgs(t *testing.T) {
	for line, want := range map[string][]string{
		"": nil, "  ": nil, " a  b=c\t": {"a", "b=c"}, `dyndbg="file a +p" x`: {`dyndbg="file a +p"`, "x"}, `"a=b c"`: {`"a=b c"`},
	} {
		if got := SplitArgs(line); !slices.Equal(got, want) {
			t.Errorf("%q is cut into %q", line, got)
		}
		if err := CheckArgs(want); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "a b", "a\nb", "a=$b", "a'", "`", `\`, `a="b`, "\u00e4"} {
		if err := CheckArgs([]string{"quiet", bad}); err == nil || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestMendCfg(t *testing.T) {
	const search = "search --no-floppy --fs-uuid --set=root " + bootUUID + "\n"
	tests := []struct{ name, old, want string }{
		{"no commands", "# set root='hd1,1'\n", "# set root='hd1,1'\n"},
		{"nothing but a search", "search -u 0\n", "insmod part_msdos\ninsmod xfs\nsearch -u " + bootUUID + "\n"},
		{"indented", "if true; then\n\t" + search + "fi\n", "if true; then\n\tinsmod part_msdos\n\tinsmod xfs\n\t" + search + "fi\n"},
		{"on one line", "if true; then " + search + "fi\n", "if true; then insmod part_msdos; insmod xfs; " + search + "fi\n"},
		{"old syntax", "insmod ext2\nset root=(hd0,5)\nsearch --no-floppy --fs-uuid --set 0\n", "insmod part_msdos\ninsmod xfs\nset root='(hd0,msdos1)'\nsearch --no-floppy --fs-uuid --set " + bootUUID + "\n"},
		{"old names that are right", "insmod part_msdos\ninsmod xfs\nset root='(hd0,1)'\n" + search, "insmod part_msdos\ninsmod xfs\nset root='(hd0,1)'\n" + search},
		{"two maps", "insmod part_gpt\ninsmod part_msdos\ninsmod xfs\n" + search, "insmod part_gpt\ninsmod part_msdos\ninsmod xfs\n" + search},
		{"LVM", "insmod part_gpt\ninsmod lvm\ninsmod xfs\nset root='lvmid/a/b'\nsearch --fs-uuid --hint='lvmid/a/b' --set=root 0\n", "insmod part_msdos\ninsmod lvm\ninsmod xfs\nset root='hd0,msdos1'\nsearch --fs-uuid --hint=hd0,msdos1 --set=root " + bootUUID + "\n"},
		{"hints", "insmod part_msdos\ninsmod xfs\nsearch -u --hint='(hd3,gpt2)' --hint-efi=ahci0,gpt2 --hint=a(hd0,1) 0\n", "insmod part_msdos\ninsmod xfs\nsearch -u --hint=hd0,msdos1 --hint-efi=ahci0,msdos1 --hint=a(hd0,1) " + bootUUID + "\n"},
		{"a file of /usr", "insmod part_msdos\nsearch -u 0\nloadfont /usr/share/x\n", "insmod ext2\ninsmod part_msdos\nsearch -u 11111111-2222-4333-8444-555555555555\nloadfont /usr/share/x\n"},
		{"a theme in /usr", "insmod part_msdos\nsearch -u 0\nset theme=($root)/usr/share/x\n", "insmod ext2\ninsmod part_msdos\nsearch -u 11111111-2222-4333-8444-555555555555\nset theme=($root)/usr/share/x\n"},
		{"no file of /usr", "insmod part_msdos\nsearch -u 0\nset kernelopts=\"init=/usr/x root=/usr\"\n", "insmod xfs\ninsmod part_msdos\nsearch -u " + bootUUID + "\nset kernelopts=\"init=/usr/x root=UUID=" + rootUUID + " " + tail + "\"\n"},
		{"variable", "search --fs-uuid --set=root $uuid\nset root=$dev\n", "search --fs-uuid --set=root $uuid\nset root=$dev\n"},
		{"by file", "menuentry 'x' {\ninsmod xfs\ninsmod part_msdos\nsearch --file --set=root /boot/vmlinuz\nlinux /boot/vmlinuz root=LABEL=root " + tail + "\ninitrd /boot/a /boot/b\n}\n", "menuentry 'x' {\ninsmod xfs\ninsmod part_msdos\nsearch --file --set=root /vmlinuz\nlinux /vmlinuz root=LABEL=root " + tail + "\ninitrd /a /b\n}\n"},
		{"another system", "menuentry 'x' {\ninsmod ntfs\nset root='hd0,msdos1'\nsearch --fs-uuid --set=root 0\nchainloader +1\n}\n", "menuentry 'x' {\ninsmod ntfs\nset root='hd0,msdos1'\nsearch --fs-uuid --set=root 0\nchainloader +1\n}\n"},
		{"continued line", "menuentry x {\nlinux /vmlinuz \\\n\troot=/dev/sda1 \\\n  ro\ninitrd /i\n}", "menuentry x {\nlinux /vmlinuz \\\n\troot=UUID=" + rootUUID + " \\\n  ro " + tail + "\ninitrd /i\n}"},
		{"quotes", "linux '/boot/vmlinuz' \"root=/dev/sda1\" 'a b'\ninitrd \"/boot/i\"\n", "linux /vmlinuz root=UUID=" + rootUUID + " 'a b' " + tail + "\ninitrd /i\n"},
		{"devices in paths", "linux (hd0,msdos1)/boot/vmlinuz root=LABEL=root " + tail + "\ninitrd ($root)/boot/i\n", "linux (hd0,msdos1)/vmlinuz root=LABEL=root " + tail + "\ninitrd ($root)/i\n"},
		{"memory test", "linux16 /boot/memtest86+.bin\n", "linux16 /memtest86+.bin\n"},
		{"fallback arguments", "set kernelopts=\"root=/dev/a ro \"\n", "set kernelopts=\"root=UUID=" + rootUUID + " ro " + tail + " \"\n"},
		{"serial port", "serial --unit=0 --speed=9600\nserial --unit=1 --speed=9600\n", "serial --unit=0 --speed=115200\nserial --unit=1 --speed=9600\n"},
		{"carriage returns", "linux /vmlinuz root=/dev/a\r\ninitrd /i\r\n", "linux /vmlinuz root=UUID=" + rootUUID + " " + tail + "\r\ninitrd /i\r\n"},
		{"file of a kernel that is gone", "linux /boot/gone root=LABEL=root " + tail + "\ninitrd /i\n", "linux /gone root=LABEL=root " + tail + "\ninitrd /i\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := somewhere().mendCfg(test.old, false)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if again := somewhere().mendCfg(got, false); again != got {
				t.Errorf("and then\n%s", again)
			}
			if test.name == "no commands" {
				return
			}
			need.Tools(t, "grub-script-check")
			check := exec.Command("grub-script-check")
			check.Stdin = strings.NewReader(strings.ReplaceAll(got, "\r", "") + "\n")
			if out, err := check.CombinedOutput(); err != nil {
				t.Errorf("grub-script-check: %v\n%s", err, out)
			}
		})
	}
}

func TestMendLegacy(t *testing.T) {
	old := "# kopt=root=/dev/sda1 ro\n# groot=(hd0,0)\nsplashimage=(hd0,2)/boot/s \nroot (hd0,0) /boot/s\ntitle a\nroot (hd1,4)\nkernel --no-mem-option (hd0,0)/boot/vmlinuz root=/dev/sda1 ro \ninitrd /boot/i\n" +
		"title b\nuuid 0\nkernel /boot/vmlinuz root=UUID=x\ntitle memtest\nkernel /boot/memtest86+.bin\ntitle Windows\nrootnoverify (hd0,0)\nchainloader +1\n" +
		"title c\nkernel (hd0,0)/v root=LABEL=root " + tail + "\ninitrd /a(hd0,2)/boot/i\n"
	want := "# kopt=root=UUID=" + rootUUID + " ro " + tail + "\n# groot=(hd0,0)\nsplashimage=(hd0,0)/s \nroot (hd0,0) /boot/s\ntitle a\nroot (hd0,0)\nkernel --no-mem-option (hd0,0)/vmlinuz root=UUID=" + rootUUID + " ro " + tail + " \ninitrd /i\n" +
		"title b\nuuid " + bootUUID + "\nkernel /vmlinuz root=PARTUUID=" + rootPart + " " + tail + "\ntitle memtest\nkernel /memtest86+.bin\ntitle Windows\nrootnoverify (hd0,0)\nchainloader +1\n" +
		"title c\nkernel (hd0,0)/v root=LABEL=root " + tail + "\ninitrd /i\n"
	got := somewhere().mendLegacy(old)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if again := somewhere().mendLegacy(got); again != got {
		t.Errorf("and then\n%s", again)
	}
}

func TestMendExtlinux(t *testing.T) {
	old := "serial 0 9600\nAPPEND quiet\nLABEL a\n  KERNEL /boot/vmlinuz\n  append root=/dev/sda1 initrd=/boot/i ro\nLABEL b\n  LINUX vmlinuz\n  INITRD /boot/u,/boot/i\n  APPEND root=/dev/sda1\nLABEL c\n  KERNEL memtest86\n  APPEND -\n" +
		"LABEL d\n  LINUX /boot/v\n  INITRD /boot/i\n  APPEND\nLABEL e\n  LINUX /boot/v\n  APPEND initrd=/boot/u,/boot/i\nLABEL f\n  LINUX /boot/v\n  APPEND initrd=/boot/u\"v w /boot/x\n"
	want := "SERIAL 0 115200\nAPPEND quiet " + tail + "\nLABEL a\n  KERNEL /vmlinuz\n  append root=UUID=" + rootUUID + " initrd=/i ro " + tail + "\nLABEL b\n  LINUX vmlinuz\n  INITRD /u,/i\n  APPEND root=UUID=" + rootUUID + " " + tail + "\nLABEL c\n  KERNEL memtest86\n  APPEND -\n" +
		"LABEL d\n  LINUX /v\n  INITRD /i\n  APPEND root=UUID=" + rootUUID + " " + tail + "\nLABEL e\n  LINUX /v\n  APPEND initrd=/u,/i root=UUID=" + rootUUID + " " + tail + "\nLABEL f\n  LINUX /v\n  APPEND initrd=/boot/u\"v w /boot/x\n"
	got := somewhere().mendExtlinux(old)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if again := somewhere().mendExtlinux(got); again != got {
		t.Errorf("and then\n%s", again)
	}
}

func TestMendVariable(t *testing.T) {
	tests := []struct{ name, old, want string }{
		{"empty file", "", "X=\"" + tail + "\"\n"},
		{"comment", "#X=\"a\"", "#X=\"a\"\nX=\"" + tail + "\"\n"},
		{"empty value", "X=\"\"\n", "X=\"" + tail + "\"\n"},
		{"no value", "X=\n", "X=\"" + tail + "\"\n"},
		{"bare", "export X=quiet # why\n", "export X=\"quiet " + tail + "\" # why\n"},
		{"no comment", "X=a#b #c\n", "X=\"a#b " + tail + "\" #c\n"},
		{"a list of commands stays", "X=a&Y=b\n", "X=a&Y=b\n"},
		{"single quotes", "X='a  b'\nY=c\n", "X='a  b " + tail + "'\nY=c\n"},
		{"double quotes", `X="a=\"b c\" $Y"` + "\n", `X="a=\"b c\" $Y ` + tail + "\"\n"},
		{"the last counts", "X=a\nX=b\n", "X=a\nX=\"b " + tail + "\"\n"},
		{"another name", "YX=a\n", "YX=a\nX=\"" + tail + "\"\n"},
		{"pieces stay", "X=\"a\"'b'\n", "X=\"a\"'b'\n"},
		{"command", "X=`echo a b`\n", "X=`echo a b`\nX=\"$X " + tail + "\"\n"},
		{"substitution", "X=$(echo a b) # x\nY=1\n", "X=$(echo a b) # x\nY=1\nX=\"$X " + tail + "\"\n"},
		{"expansion", "X=${Y:-a b}\n", "X=${Y:-a b}\nX=\"$X " + tail + "\"\n"},
		{"open quote stays", "X=\"a\n", "X=\"a\n"},
		{"open quote of another stays", "Y=\"a\nX=b\n", "Y=\"a\nX=b\n"},
		{"open substitution stays", "X=b\nY=$(a\n", "X=b\nY=$(a\n"},
		{"a line that goes on stays", "Y=a \\\n", "Y=a \\\n"},
		{"within another's quotes", "Y=\"a\nX=;\"\n", "Y=\"a\nX=;\"\nX=\"" + tail + "\"\n"},
		{"behind another's quotes", "Y='a\n\"b'\nX=c\n", "Y='a\n\"b'\nX=\"c " + tail + "\"\n"},
		{"on a line that goes on", "Y=a \\\nX=b\n", "Y=a \\\nX=b\nX=\"" + tail + "\"\n"},
		{"several lines", "X=\"a\nb\"\n", "X=\"a\nb " + tail + "\"\n"},
		{"an apostrophe in a comment", "# it's\nX=b # it's\n", "# it's\nX=\"b " + tail + "\" # it's\n"},
		{"an apostrophe in quotes", "Y=\"it's $(echo \"it's\")\"\nX=b\n", "Y=\"it's $(echo \"it's\")\"\nX=\"b " + tail + "\"\n"},
		{"quotes within quotes stay", "X=\"$(echo \" b \") c\"\n", "X=\"$(echo \" b \") c\"\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := somewhere().mendVariable(test.old, "X", scope{partial: true})
			if got != test.want {
				t.Errorf("%q becomes\n%q, want\n%q", test.old, got, test.want)
			}
			if again := somewhere().mendVariable(got, "X", scope{partial: true}); again != got {
				t.Errorf("and then %q", again)
			}
			if strings.HasSuffix(test.name, "stay") || strings.HasSuffix(test.name, "stays") {
				return
			}
			out, err := exec.Command("sh", "-c", got+"\necho \"$X\"").Output()
			if err != nil || !strings.Contains(string(out), tail) {
				t.Errorf("a shell reads %q, %v", out, err)
			}
		})
	}
}

// TestDefaultsTogether is for variables that end on one command line, of which
// guests' own update-grub would make one with the same argument twice.
func TestDefaultsTogether(t *testing.T) {
	old := "GRUB_CMDLINE_LINUX_DEFAULT=\"nokaslr quiet console=ttyS0,9600\"\nGRUB_CMDLINE_LINUX=\"a console=ttyS0\"\nGRUB_TERMINAL=(a b)\n"
	want := "GRUB_CMDLINE_LINUX_DEFAULT=\"nokaslr quiet console=tty0 console=ttyS0,115200n8\"\nGRUB_CMDLINE_LINUX=\"a\"\nGRUB_TERMINAL=(a b)\n" +
		"GRUB_TERMINAL=\"console serial\"\nGRUB_SERIAL_COMMAND=\"serial --unit=0 --speed=115200\"\n"
	got := somewhere().mendDefaults(old)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if again := somewhere().mendDefaults(got); again != got {
		t.Errorf("and then\n%s", again)
	}
	target := guestTree(t, map[string]string{
		"/etc/os-release": "ID=debian\n", "/boot/vmlinuz-1": "", "/etc/default/grub": "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\nGRUB_CMDLINE_LINUX=\"x\"\n",
		"/etc/default/grub.d/10.cfg": "GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX y\"\n", "/etc/default/grub.d/20.cfg": "GRUB_CMDLINE_LINUX_DEFAULT=\"nokaslr console=tty0 console=ttyS0,115200n8\"\n",
	})
	target.KernelArgs, target.Serial = []string{"x", "nokaslr", "z"}, com1
	if _, err := Configure(target); err != nil {
		t.Fatal(err)
	}
	text, _ := target.Root.ReadFile(ownDropIn, 1000)
	cfg, _ := target.Root.ReadFile("/boot/grub/grub.cfg", 1000)
	if !strings.Contains(string(text), "LINUX=\"$GRUB_CMDLINE_LINUX z\"\n") || !strings.Contains(string(cfg), " ro x y nokaslr console=tty0 console=ttyS0,115200n8 z\n") {
		t.Errorf("got\n%s\n%s", text, cfg)
	}
}

func TestGrubenvRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                              "does not begin",
		"x=1\n":                         "does not begin",
		grubenvHeader + "x=1":           "cut short",
		grubenvHeader + "x=1\\\n####":   "cut short",
		grubenvHeader + "kernelopts=a ": "cut short",
	} {
		if _, err := somewhere().mendGrubenv(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

// TestGrubenvTool compares with what GRUB's own tool writes.
func TestGrubenvTool(t *testing.T) {
	need.Tools(t, "grub-editenv")
	file := filepath.Join(t.TempDir(), "grubenv")
	for _, argv := range [][]string{{file, "create"}, {file, "set", "saved_entry=a b", `back=x\y`, "kernelopts=root=/dev/x ro"}} {
		if out, err := exec.Command("grub-editenv", argv...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	env, err := parseGrubenv(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if back, _ := env.get("back"); back != `x\y` {
		t.Errorf("back is %q", back)
	}
	if again, err := env.print(); err != nil || again != string(text) {
		t.Errorf("printed again: %v\n%s", err, cmp.Diff(string(text), again))
	}
	mended, err := somewhere().mendGrubenv(string(text))
	if err != nil || len(mended) != grubenvSize {
		t.Fatalf("%d bytes, %v", len(mended), err)
	}
	if err := os.WriteFile(file, []byte(mended), 0o644); err != nil {
		t.Fatal(err)
	}
	want := "saved_entry=a b\nback=x\\y\nkernelopts=root=UUID=" + rootUUID + " ro " + tail + "\n"
	if out, err := exec.Command("grub-editenv", file, "list").Output(); err != nil || string(out) != want {
		t.Errorf("grub-editenv lists %q, %v", out, err)
	}
}

func TestKernels(t *testing.T) {
	tests := []struct {
		name  string
		files []string
		links map[string]string
		want  []string // path, and its initrds
	}{
		{"none", []string{"boot/config-6.1", "boot/vmlinuz-6.1.sig", "boot/initrd.img-6.1", "boot/vmlinux-6.1.gz", "boot/kernel-x.img"}, nil, nil},
		{"Debian", []string{"boot/vmlinuz-6.1.0-9-amd64", "boot/vmlinuz-6.1.0-10-amd64", "boot/initrd.img-6.1.0-10-amd64"},
			map[string]string{"boot/vmlinuz": "vmlinuz-6.1.0-10-amd64", "boot/vmlinuz.old": "/boot/vmlinuz-6.1.0-9-amd64"},
			[]string{"/boot/vmlinuz-6.1.0-10-amd64 /boot/initrd.img-6.1.0-10-amd64", "/boot/vmlinuz-6.1.0-9-amd64"}},
		{"release candidates", []string{"boot/vmlinuz-6.1-rc2", "boot/vmlinuz-6.1", "boot/vmlinuz-6.1.1", "boot/vmlinuz-6.1~rc1", "boot/vmlinuz-6.1.old"}, nil,
			[]string{"/boot/vmlinuz-6.1.1", "/boot/vmlinuz-6.1", "/boot/vmlinuz-6.1.old", "/boot/vmlinuz-6.1-rc2", "/boot/vmlinuz-6.1~rc1"}},
		{"rescue and kdump", []string{"boot/vmlinuz-0-rescue-ff", "boot/vmlinuz-5.14", "boot/vmlinuz-9-kdump", "boot/initramfs-5.14.img", "boot/initramfs-5.14kdump.img"}, nil,
			[]string{"/boot/vmlinuz-5.14 /boot/initramfs-5.14.img", "/boot/vmlinuz-9-kdump", "/boot/vmlinuz-0-rescue-ff"}},
		{"SUSE", []string{"boot/vmlinuz-6.4-default", "boot/vmlinux-6.4-default", "boot/initrd-6.4-default"}, nil,
			[]string{"/boot/vmlinuz-6.4-default /boot/initrd-6.4-default"}},
		{"Arch", []string{"boot/vmlinuz-linux", "boot/vmlinuz-linux-lts", "boot/initramfs-linux.img", "boot/initramfs-linux-fallback.img", "boot/intel-ucode.img"}, nil,
			[]string{"/boot/vmlinuz-linux /boot/intel-ucode.img /boot/initramfs-linux.img", "/boot/vmlinuz-linux-lts"}},
		{"Alpine", []string{"boot/vmlinuz-lts", "boot/initramfs-lts"}, nil, []string{"/boot/vmlinuz-lts /boot/initramfs-lts"}},
		{"by hand", []string{"boot/bzImage", "boot/vmlinuz", "boot/initrd.img"}, nil, []string{"/boot/bzImage /boot/initrd.img", "/boot/vmlinuz /boot/initrd.img"}},
		{"a link out of /boot", []string{"usr/lib/modules/6.1/vmlinuz", "boot/x"}, map[string]string{"boot/vmlinuz-6.1": "../usr/lib/modules/6.1/vmlinuz"}, []string{"/boot/vmlinuz-6.1"}},
		{"links to nothing and to a directory", []string{"etc/x", "boot/x"}, map[string]string{"boot/vmlinuz-1": "/gone", "boot/vmlinuz-2": "/etc"}, nil},
		{"names that are none", []string{"boot/vmlinuz-$(reboot)", "boot/vmlinuz-a b", "boot/vmlinuzx"}, nil, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			files := map[string]string{}
			for _, name := range test.files {
				files[name] = ""
			}
			dir := makeTree(t, files)
			for name, target := range test.links {
				if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			kernels, err := Kernels(openRoot(t, dir))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, k := range kernels {
				got = append(got, strings.Join(append([]string{k.Path}, k.Initrds...), " "))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// TestVersions has dpkg as its judge.
func TestVersions(t *testing.T) {
	need.Tools(t, "dpkg")
	versions := []string{"6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.0-26-amd64", "5.10.0-1", "6.1.0-26-cloud-amd64", "6.12~rc1-1", "6.12-1", "4.18.0-553.el8_10", "4.18.0-80.el8"}
	for _, a := range versions {
		for _, b := range versions {
			op := map[int]string{-1: "lt", 0: "eq", 1: "gt"}[compareVersions(a, b)]
			clean := strings.NewReplacer("-", ".", "_", ".").Replace
			if err := exec.Command("dpkg", "--compare-versions", clean(a), op, clean(b)).Run(); err != nil {
				t.Errorf("%s %s %s: dpkg has another opinion", a, op, b)
			}
		}
	}
}

// TestSubvolume mounts a subvolume, as the root of a guest is.
func TestSubvolume(t *testing.T) {
	need.Root(t)
	need.Tools(t, "mkfs.btrfs", "mount", "umount", "btrfs")
	disk, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	shell(t, "truncate -s 120M "+disk+" && mkfs.btrfs -q "+disk+" && mount -o loop "+disk+" "+dir+
		" && btrfs -q subvolume create "+dir+"/@ && mkdir "+dir+"/@/boot && touch "+dir+"/@/boot/vmlinuz-6.1 "+dir+"/@/boot/initrd.img-6.1; umount "+dir+"; mount -o loop,subvol=@ "+disk+" "+dir)
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	root := openRoot(t, dir)
	_, err := Configure(Target{Root: root, Table: table(layout.MBR, 1), RootFS: rootOn(1, filesystem.Btrfs), Hypervisor: "kvm"})
	if err != nil {
		t.Fatal(err)
	}
	text, err := root.ReadFile("/boot/grub/grub.cfg", cfgLimit)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"linux\t/@/boot/vmlinuz-6.1 root=UUID=" + rootUUID, "rootflags=subvol=@", "initrd\t/@/boot/initrd.img-6.1", "insmod btrfs"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
}

func shell(t *testing.T, script string) {
	t.Helper()
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestForBIOS is for Boot Loader Specification entries without any GRUB that
// could read them under BIOS.
func TestForBIOS(t *testing.T) {
	for _, lost := range []string{"blscfg.mod", "kernel.img"} { // without the other this node's GRUB is installed
		dir := copyTree(t, "el9")
		if err := os.Remove(filepath.Join(dir, "boot/grub2/i386-pc", lost)); err != nil {
			t.Fatal(err)
		}
		if lost == "kernel.img" && hasFiles(rootAt(t, "/"), nodeBIOS, "blscfg.mod") {
			continue
		}
		target := Target{Root: openRoot(t, dir), Table: table(layout.MBR, 1), RootFS: rootOn(1, filesystem.Ext4), Hypervisor: "kvm"}
		changes, err := Configure(target)
		if err != nil || !slices.Contains(changes, "added a menu to /boot/grub2/grub.cfg") {
			t.Fatalf("%q, %v", changes, err)
		}
		if again, err := Configure(target); err != nil || len(again) > 0 {
			t.Errorf("a second time %q, %v", again, err)
		}
		judge(t, dir)
	}
}

// TestBLSCfg is for entries that the guest's GRUB reads, and which take their
// arguments from a variable that nothing defines.
func TestBLSCfg(t *testing.T) {
	dir := copyTree(t, "el8")
	for _, name := range []string{"boot/grub2/grub.cfg", "boot/efi/EFI/almalinux/grubenv"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	target := Target{Root: openRoot(t, dir), Table: table(layout.MBR, 1), RootFS: rootOn(1, filesystem.Ext4), Hypervisor: "kvm"}
	changes, err := Configure(target)
	if err != nil || !slices.Contains(changes, "wrote /boot/grub2/grub.cfg") || !slices.Contains(changes, "wrote /boot/grub2/grubenv") {
		t.Fatalf("%q, %v", changes, err)
	}
	text, _ := os.ReadFile(filepath.Join(dir, "boot/grub2/grub.cfg"))
	if !strings.Contains(string(text), "\nblscfg\n") || strings.Contains(string(text), "menuentry") {
		t.Errorf("grub.cfg is\n%s", text)
	}
	if again, err := Configure(target); err != nil || len(again) > 0 {
		t.Errorf("a second time %q, %v", again, err)
	}
	judge(t, dir)
}

// TestLoaderCommands has commands of one firmware's GRUB where the disk boots by
// the other.
func TestLoaderCommands(t *testing.T) {
	const rest = " root=UUID=" + rootUUID + " " + tail + "\n"
	for _, c := range []struct{ old, bios, efi string }{
		{"linux16 /vmlinuz" + rest + "initrd16 /i\n", "linux16 /vmlinuz" + rest + "initrd16 /i\n", "linux /vmlinuz" + rest + "initrd /i\n"},
		{"linuxefi /vmlinuz" + rest + "initrdefi /i\n", "linux /vmlinuz" + rest + "initrd /i\n", "linuxefi /vmlinuz" + rest + "initrdefi /i\n"},
		{"linux16 /memtest86+.bin\n", "linux16 /memtest86+.bin\n", "linux16 /memtest86+.bin\n"},
	} {
		f := somewhere()
		f.bios = true
		if got := f.mendCfg(c.old, false); got != c.bios {
			t.Errorf("for BIOS\n%s", got)
		}
		f.bios, f.efi = false, true
		if got := f.mendCfg(c.old, false); got != c.efi {
			t.Errorf("for UEFI\n%s", got)
		}
		f.bios = true
		if got := f.mendCfg(c.old, true); got != c.old {
			t.Errorf("on the ESP\n%s", got)
		}
	}
}

func TestAddSerial(t *testing.T) {
	const top = "serial --unit=0 --speed=115200\nterminal_input console serial\nterminal_output console serial\n"
	for old, want := range map[string]string{
		"set a=b\nterminal_output gfxterm\nterminal_input $x; terminal_output --append x\n": top + "set a=b\nterminal_output gfxterm serial\nterminal_input $x; terminal_output --append x\n",
		"serial --unit=1\nterminal_output gfxterm\n":                                        "serial --unit=1\nterminal_output gfxterm\n",
		cfgMark + "set a=b\n": cfgMark + "set a=b\n",
		"echo 'open":          "echo 'open",
	} {
		got := somewhere().addSerial(old)
		if got != want || somewhere().addSerial(got) != got {
			t.Errorf("%q becomes\n%s", old, got)
		}
	}
}

// TestBLSByUEFI has a tree of EL8 whose configuration is all on the ESP, and no
// GRUB for BIOS that reads entries.
func TestBLSByUEFI(t *testing.T) {
	files := map[string]string{
		"/etc/os-release": "ID=almalinux\nVERSION_ID=8\n", "/boot/vmlinuz-1.el8": "", "/boot/initramfs-1.el8.img": "",
		"/boot/loader/entries/a-1.el8.conf": "title A\nlinux /boot/vmlinuz-1.el8\ninitrd /boot/initramfs-1.el8.img\noptions $kernelopts\n",
		"/boot/efi/EFI/almalinux/grub.cfg":  "search --no-floppy --fs-uuid --set=root 0-0\nset boot=$root\nload_env\ninsmod blscfg\nblscfg\n",
		"/boot/efi/EFI/BOOT/BOOTX64.EFI":    "shim", "/boot/efi/EFI/almalinux/grubx64.efi": grubImage("/EFI/almalinux", ""), "/boot/grub2/": "",
	}
	const mixed = "if [ x$grub_platform = xefi ]; then\n" + blsCommands + "else\n\nmenuentry 'A'"
	if got := steadyCfg(t, files); !strings.Contains(got, mixed) || !strings.HasSuffix(got, "}\nfi\n") {
		t.Errorf("with entries:\n%s", got)
	}
	delete(files, "/boot/loader/entries/a-1.el8.conf")
	const both = "if [ x$grub_platform = xefi ]; then\n" + blsCommands + "fi\n\nmenuentry 'Linux, with Linux 1.el8'"
	if got := steadyCfg(t, files); !strings.Contains(got, both) || !strings.HasSuffix(got, "}\n") {
		t.Errorf("without entries yet:\n%s", got)
	}
	for _, name := range biosFiles {
		files["/usr/lib/grub/i386-pc/"+name] = ""
	}
	files["/usr/lib/grub/i386-pc/blscfg.mod"] = ""
	if got := steadyCfg(t, files); !strings.Contains(got, "\n"+blsCommands+"\nmenuentry") || strings.Contains(got, "grub_platform") {
		t.Errorf("with a GRUB for BIOS that reads entries:\n%s", got)
	}
	files["/etc/os-release"] = "ID=debian\n"
	if got := steadyCfg(t, files); strings.Contains(got, "blscfg") {
		t.Errorf("in Debian:\n%s", got)
	}
}

// steadyCfg is the grub.cfg of a guest, which a second time does not change.
func steadyCfg(t *testing.T, files map[string]string) string {
	t.Helper()
	target := guestTree(t, files)
	if _, err := Configure(target); err != nil {
		t.Fatal(err)
	}
	name := grubDirectory(target.Root) + "/grub.cfg"
	text, err := target.Root.ReadFile(name, cfgLimit)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Configure(target); err != nil || len(again) > 0 {
		t.Errorf("a second time %q, %v", again, err)
	}
	check := exec.Command("grub-script-check")
	check.Stdin = strings.NewReader(string(text))
	need.Tools(t, "grub-script-check")
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("grub-script-check: %v\n%s", err, out)
	}
	return string(text)
}

// TestUselessCfg has grub.cfg files that are written anew, and others that stay.
func TestUselessCfg(t *testing.T) {
	const wrote = "wrote /boot/grub/grub.cfg"
	const anew = wrote + " anew: what was there loads no kernel that is there"
	for text, want := range map[string]string{
		"menuentry 'old' {\n linux /boot/vmlinuz-1 root=UUID=1\n}\n": anew,
		"set timeout=5\n": anew,
		cfgMark + "menuentry 'x' {\n linux /boot/vmlinuz-2\n}\n":               wrote,
		"menuentry 'x' {\n linux /boot/vmlinuz-2 root=UUID=1\n initrd /i\n}\n": "",
		"menuentry 'x' {\n linux ($root)/@/boot/vmlinuz-2\n}\n":                "",
		"linux $kernel\n":                   "",
		"configfile /boot/grub/other.cfg\n": "",
		"menuentry 'x' {\n multiboot2 /boot/xen.gz\n module2 /boot/vmlinuz-2\n}": "",
	} {
		target := guestTree(t, map[string]string{"/etc/os-release": "ID=debian\n", "/boot/vmlinuz-2": "", "/boot/initrd.img-2": "", "/boot/xen.gz": "", "/boot/grub/grub.cfg": text})
		changes, err := Configure(target)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, line := range changes {
			if strings.HasPrefix(line, wrote) {
				got = line
			}
		}
		if got != want {
			t.Errorf("of %q: %q", text, changes)
		}
		if again, err := Configure(target); err != nil || len(again) > 0 {
			t.Errorf("a second time %q, %v", again, err)
		}
	}
}

// TestUnreadableGrubenv has environment blocks that GRUB does not read either.
func TestUnreadableGrubenv(t *testing.T) {
	for _, text := range []string{"", strings.Repeat("\x00", 1024), "# GRUB Environment Block\r\nx=1\n"} {
		files := map[string]string{"/boot/vmlinuz-1": "", "/boot/initrd-1": "", "/boot/grub/grubenv": text}
		target := guestTree(t, files)
		changes, err := Configure(target)
		got, _ := target.Root.ReadFile("/boot/grub/grubenv", 2000)
		if err != nil || !strings.HasPrefix(changes[0], "left /boot/grub/grubenv as it is: ") || string(got) != text {
			t.Errorf("%q becomes %q: %q, %v", text, got, changes, err)
		}
		files["/boot/loader/entries/a.conf"] = "title A\nlinux /boot/vmlinuz-1\ninitrd /boot/initrd-1\noptions $kernelopts\n"
		target = guestTree(t, files)
		changes, err = Configure(target)
		got, _ = target.Root.ReadFile("/boot/grub/grubenv", 2000)
		if err != nil || len(got) != grubenvSize || !strings.Contains(string(got), "kernelopts=ro root=UUID="+testUUID) {
			t.Errorf("%q becomes %q: %q, %v", text, got, changes, err)
		}
	}
}

// TestCopyLinked has openSUSE's kernels, where /boot is another file system.
func TestCopyLinked(t *testing.T) {
	files := map[string]string{
		"/etc/os-release": "ID=opensuse-tumbleweed\n", "/usr/lib/modules/6.11/vmlinuz": "kernel", "/var/initrd": "initrd",
		"/boot/vmlinuz-6.11": "-> ../usr/lib/modules/6.11/vmlinuz", "/boot/vmlinuz": "-> vmlinuz-6.11", "/boot/initrd-6.11": "-> /var/initrd",
		"/usr/large": "", "/boot/vmlinuz-large": "-> ../usr/large", "/boot/vmlinuz-gone": "-> ../usr/gone", "/boot/vmlinuz-dir": "-> ../usr", "/boot/System.map-6.11": "-> ../usr/lib/modules/6.11/vmlinuz", "/boot/grub2/": "",
	}
	links := func(target Target) (found string) {
		names, _ := target.Root.ReadDir("/boot")
		for _, name := range names {
			if _, err := target.Root.Readlink("/boot/" + name); err == nil {
				found += name + " "
			}
		}
		return found
	}
	one := guestTree(t, files)
	before := links(one)
	if _, err := Configure(one); err != nil || links(one) != before {
		t.Errorf("on one file system: %v, links %s", err, links(one))
	}
	target := guestTree(t, files)
	target.BootFS = bootOn(1, filesystem.Ext4)
	lengthen(t, target.Root, "/usr/large", maxKernelFile+1)
	changes, err := Configure(target)
	if err != nil || !slices.Contains(changes, "copied /usr/lib/modules/6.11/vmlinuz to /boot/vmlinuz-6.11, which was a link to it") {
		t.Errorf("%q, %v", changes, err)
	}
	kernel, _ := target.Root.ReadFile("/boot/vmlinuz", 100)
	initrd, _ := target.Root.ReadFile("/boot/initrd-6.11", 100)
	cfg, _ := target.Root.ReadFile("/boot/grub2/grub.cfg", cfgLimit)
	if got := links(target); got != "System.map-6.11 vmlinuz vmlinuz-dir vmlinuz-gone vmlinuz-large " || string(kernel) != "kernel" || string(initrd) != "initrd" || !strings.Contains(string(cfg), "linux\t/vmlinuz-6.11 ") {
		t.Errorf("links %s, %q, %q\n%s", got, kernel, initrd, cfg)
	}
	if again, err := Configure(target); err != nil || len(again) != 1 || !strings.HasPrefix(again[0], "left /boot/vmlinuz-large as it is: ") {
		t.Errorf("a second time %q, %v", again, err)
	}
}

// lengthen makes a file of a guest one with a hole.
func lengthen(t *testing.T, root *guest.Root, name string, length size.Bytes) {
	t.Helper()
	dir, err := root.OpenDir(filepath.Dir(name))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := os.Truncate(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(name)), int64(length)); err != nil {
		t.Fatal(err)
	}
}

// TestLongCfg is for what would take the square of its length.
func TestLongCfg(t *testing.T) {
	for _, piece := range []string{"search -u 0;", "${", "{", "'a", "\"$", "menuentry x {", "set root='hd0'  ", "\\\n", "# "} {
		text := strings.Repeat(piece, 1<<20/len(piece))
		start := time.Now()
		somewhere().addSerial(somewhere().mendCfg(text, false))
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%q takes %v", piece, took)
		}
	}
}

// TestLongShell is the same for what a shell reads.
func TestLongShell(t *testing.T) {
	const half = 1 << 19
	for _, text := range []string{strings.Repeat("\\", half) + strings.Repeat("\n", half), strings.Repeat("$(", half), strings.Repeat("'\"", half), strings.Repeat("X=", half), strings.Repeat("X=\"\n", half/2)} {
		start := time.Now()
		findShell(text, "X")
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%.10q... takes %v", text, took)
		}
	}
}
