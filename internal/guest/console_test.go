package guest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
)

const debianInittab = `id:2:initdefault:
si::sysinit:/etc/init.d/rcS
1:2345:respawn:/sbin/getty 38400 tty1
# Example how to put a getty on a serial line (for a terminal)
#
#T0:23:respawn:/sbin/getty -L ttyS0 9600 vt100
#T1:23:respawn:/sbin/getty -L ttyS1 9600 vt100
`

const alpineInittab = `::sysinit:/sbin/openrc sysinit
tty1::respawn:/sbin/getty 38400 tty1
# Put a getty on the serial port
#ttyS0::respawn:/sbin/getty -L 0 ttyS0 vt100
::ctrlaltdel:/sbin/reboot
`

func TestEnableConsole(t *testing.T) {
	systemd := map[string]string{
		"sbin/init": "-> /lib/systemd/systemd", "lib/systemd/systemd": "", "lib/systemd/system/serial-getty@.service": "",
		"etc/inittab": debianInittab, "etc/securetty": "console\ntty1",
	}
	upstart := map[string]string{"sbin/init": "", "sbin/initctl": "", "sbin/getty": "", "etc/init/tty1.conf": "exec /sbin/getty -8 38400 tty1\n"}
	rhel6 := map[string]string{"sbin/initctl": "", "sbin/agetty": "", "etc/inittab": "id:3:initdefault:\n", "etc/init/serial.conf": "start on fedora.serial-console-available DEV=*\nexec /sbin/agetty $DEV $SPEED vt100-nav\n"}
	rhel6Console := map[string]string{"boot/grub/grub.conf": "kernel /vmlinuz ro console=tty0 console=ttyS0,115200n8 quiet\nkernel /old ro\n"}
	for name, text := range rhel6 {
		rhel6Console[name] = text
	}
	cases := []struct {
		name, device string
		files        map[string]string
		want         map[string]string // "" is a file that must not be there
	}{
		{"nothing", "ttyS0", map[string]string{"etc/hosts": ""}, map[string]string{"etc/inittab": "", "etc/securetty": ""}},
		{"systemd", "ttyS0", systemd, map[string]string{
			"etc/systemd/system/getty.target.wants/serial-getty@ttyS0.service": "-> /lib/systemd/system/serial-getty@.service",
			"etc/inittab": debianInittab, "etc/securetty": "console\ntty1\nttyS0\n"}},
		{"Xen", "hvc0", systemd, map[string]string{"etc/systemd/system/getty.target.wants/serial-getty@hvc0.service": "-> /lib/systemd/system/serial-getty@.service"}},
		{"systemd beside sysvinit", "ttyS0", map[string]string{"sbin/init": "", "lib/systemd/systemd": "", "lib/systemd/system/serial-getty@.service": "", "etc/inittab": debianInittab},
			map[string]string{"etc/systemd": "", "etc/inittab": strings.Replace(debianInittab, "#T0:23:respawn:/sbin/getty -L ttyS0 9600", "T0:23:respawn:/sbin/getty -L ttyS0 115200", 1)}},
		{"Alpine", "ttyS0", map[string]string{"etc/inittab": alpineInittab}, map[string]string{"etc/inittab": strings.Replace(alpineInittab, "#ttyS0", "ttyS0", 1)}},
		{"Alpine on Xen", "hvc0", map[string]string{"etc/inittab": alpineInittab, "sbin/getty": ""}, map[string]string{"etc/inittab": alpineInittab + "hvc0::respawn:/sbin/getty -L 115200 hvc0 vt100\n"}},
		{"another speed", "ttyS0", map[string]string{"etc/inittab": "s0:12345:respawn:/sbin/agetty -L 9600 ttyS0 vt100"}, map[string]string{"etc/inittab": "s0:12345:respawn:/sbin/agetty -L 115200 ttyS0 vt100"}},
		{"among others", "ttyS0", map[string]string{"etc/inittab": "s0:12345:respawn:/sbin/agetty 115200,9600 ttyS0 vt100\n"}, map[string]string{"etc/inittab": "s0:12345:respawn:/sbin/agetty 115200,9600 ttyS0 vt100\n"}},
		{"a line more", "ttyS0", map[string]string{"etc/inittab": "T0:23:respawn:/x ttyS10\nid:3:initdefault:", "sbin/agetty": ""},
			map[string]string{"etc/inittab": "T0:23:respawn:/x ttyS10\nid:3:initdefault:\nT1:2345:respawn:/sbin/agetty -L 115200 ttyS0 vt100\n"}},
		{"no getty", "ttyS0", map[string]string{"etc/inittab": "id:3:initdefault:\n"}, map[string]string{"etc/inittab": "id:3:initdefault:\n"}},
		{"Upstart", "ttyS0", upstart, map[string]string{"etc/init/ttyS0.conf": "# A login on the serial console.\nstart on stopped rc RUNLEVEL=[2345]\nstop on runlevel [!2345]\n\nrespawn\nexec /sbin/getty -L 115200 ttyS0 vt100\n"}},
		{"Upstart has it", "ttyS0", map[string]string{"sbin/initctl": "", "sbin/getty": "", "etc/init/serial0.conf": "exec /sbin/getty -L 9600 ttyS0\n"},
			map[string]string{"etc/init/serial0.conf": "exec /sbin/getty -L 115200 ttyS0\n", "etc/init/ttyS0.conf": ""}},
		{"RHEL 6", "ttyS0", rhel6, map[string]string{"etc/init/ttyS0.conf": "# A login on the serial console.\nstart on stopped rc RUNLEVEL=[2345]\nstop on runlevel [!2345]\n\nrespawn\nexec /sbin/agetty -L 115200 ttyS0 vt100\n"}},
		{"RHEL 6 with console=", "ttyS0", rhel6Console, map[string]string{"etc/init/ttyS0.conf": "", "etc/inittab": "id:3:initdefault:\n"}},
		{"Void", "ttyS0", map[string]string{"etc/runit/runsvdir/default/sshd": "-> /etc/sv/sshd", "etc/sv/agetty-ttyS0/conf": "BAUD_RATE=9600\nTERM_NAME=vt100\n"},
			map[string]string{"etc/runit/runsvdir/default/agetty-ttyS0": "-> /etc/sv/agetty-ttyS0", "etc/sv/agetty-ttyS0/conf": "BAUD_RATE=115200\nTERM_NAME=vt100\n"}},
		{"OpenRC", "ttyS0", map[string]string{"etc/init.d/agetty": "", "etc/runlevels/default/sshd": "-> /etc/init.d/sshd", "etc/conf.d/net": ""},
			map[string]string{"etc/init.d/agetty.ttyS0": "-> agetty", "etc/runlevels/default/agetty.ttyS0": "-> /etc/init.d/agetty.ttyS0", "etc/conf.d/agetty.ttyS0": "baud=\"115200\"\n"}},
	}
	for _, c := range cases {
		root, dir := guestOf(t, c.files)
		if _, err := root.EnableConsole(c.device, 115200); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		checkFiles(t, c.name, dir, c.want)
		if changes, err := root.EnableConsole(c.device, 115200); err != nil || len(changes) > 0 {
			t.Errorf("%s: a second time %q, %v", c.name, changes, err)
		}
	}
}

// checkFiles compares files with what they should be: a content, a link
// "-> target", or "" for none.
func checkFiles(t *testing.T, name, dir string, want map[string]string) {
	t.Helper()
	for file, text := range want {
		path := filepath.Join(dir, file)
		got := ""
		if target, err := os.Readlink(path); err == nil {
			got = "-> " + target
		} else if data, err := os.ReadFile(path); err == nil {
			got = string(data)
			if got == "" {
				got = "(empty)"
			}
		} else if _, err := os.Lstat(path); err == nil {
			got = "(not a file)"
		}
		if got != text {
			t.Errorf("%s: %s is\n%s\nwant\n%s", name, file, got, text)
		}
	}
}

func TestEnableConsoleKeepsMask(t *testing.T) {
	root, dir := guestOf(t, map[string]string{
		"lib/systemd/systemd": "", "lib/systemd/system/serial-getty@.service": "", "etc/systemd/system/serial-getty@ttyS0.service": "-> /dev/null",
	})
	changes, err := root.EnableConsole("ttyS0", 9600)
	if err != nil || len(changes) != 1 || !strings.Contains(changes[0], "masks it") {
		t.Errorf("%q, %v", changes, err)
	}
	checkFiles(t, "masked", dir, map[string]string{"etc/systemd/system/getty.target.wants": ""})
}

func TestEnableConsoleRefuses(t *testing.T) {
	root, _ := tree(t)
	for _, device := range []string{"", "/dev/ttyS0", "ttyS0 x", "tty.", "ttyS0\n"} {
		if _, err := root.EnableConsole(device, 9600); err == nil {
			t.Errorf("%q is taken", device)
		}
	}
	if _, err := root.EnableConsole("ttyS0", 0); err == nil {
		t.Error("a speed of 0 is taken")
	}
}

// systemd itself says whether the unit is enabled.
func TestSystemctlSeesConsole(t *testing.T) {
	need.Tools(t, "systemctl")
	root, dir := guestOf(t, map[string]string{
		"usr/lib/systemd/systemd": "", "etc/os-release": "ID=x\n",
		"usr/lib/systemd/system/serial-getty@.service": "[Service]\nExecStart=/sbin/agetty %I\n[Install]\nWantedBy=getty.target\n",
	})
	if _, err := root.EnableConsole("ttyS0", 9600); err != nil {
		t.Fatal(err)
	}
	result, err := run.Cmd{What: "ask systemd", Argv: []string{"systemctl", "--root", dir, "is-enabled", "serial-getty@ttyS0.service"}, OK: []int{1}}.Run(t.Context())
	if err != nil || strings.TrimSpace(string(result.Stdout)) != "enabled" {
		t.Errorf("%v: %s%s", err, result.Stdout, result.Stderr)
	}
}

func FuzzInittab(f *testing.F) {
	f.Add(debianInittab)
	f.Add(alpineInittab)
	f.Add("T0:::\n#:respawn:ttyS0\n\x00::respawn:ttyS0 1152001152001")
	root, err := Open(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { root.Close() })
	f.Fuzz(func(t *testing.T, text string) {
		c := &console{root: root, device: "ttyS0", speed: "115200", word: regexp.MustCompile(`\bttyS0\b`)}
		edited, change := c.editInittab(text)
		if again, second := c.editInittab(edited); change != "" && (second != "" || again != edited) {
			t.Fatalf("%q became %q and then %q", text, edited, again)
		}
		if strings.Count(edited, "\n") < strings.Count(text, "\n") {
			t.Fatalf("%q lost lines: %q", text, edited)
		}
	})
}
