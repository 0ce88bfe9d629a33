package guest

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// consoleDevice is what a serial console may be called: "ttyS0", "hvc0",
// "ttyAMA0".
var consoleDevice = regexp.MustCompile(`^[a-z]{2,8}[A-Z]{0,4}[0-9]{1,3}$`)

// EnableConsole has the guest ask for a login on a serial console: device is its
// name below /dev, speed in baud. What does it depends on the guest's init, which
// is found by its files: a unit of systemd, a job of Upstart, a line of
// /etc/inittab for sysvinit and BusyBox, a service of OpenRC or runit; and
// /etc/securetty, where that is, must let root in. A guest that has such a login
// keeps it; only another speed is replaced. One with no init we know is left
// alone, which is no error.
//
// What was changed is returned, a line a change.
func (r *Root) EnableConsole(device string, speed int) ([]string, error) {
	if !consoleDevice.MatchString(device) || speed < 50 || speed > 4000000 {
		return nil, fmt.Errorf("cannot enable a console on %q at %d baud: want a device such as ttyS0, and 50 to 4000000 baud", device, speed)
	}
	c := &console{root: r, device: device, speed: strconv.Itoa(speed), word: regexp.MustCompile(`\b` + device + `\b`)}
	for _, init := range inits {
		if !init.isThere(r) {
			continue
		}
		if err := init.enable(c); err != nil {
			return c.changes, err
		}
		break
	}
	return c.changes, c.securetty()
}

type console struct {
	root    *Root
	device  string
	speed   string
	word    *regexp.Regexp // finds the device in a line
	changes []string
}

// inits are the programs a guest may be started by. The first that is there
// does it: files of another are left over, as RHEL 7's empty /etc/inittab is, or
// are for what the other starts, and two of them would fight for the line.
var inits = []struct {
	name    string
	isThere func(*Root) bool
	enable  func(*console) error
}{
	{"systemd", (*Root).usesSystemd, (*console).systemd},
	{"Upstart", func(r *Root) bool { return r.Exists("/sbin/initctl") && r.isDir("/etc/init") }, (*console).upstart},
	{"init with /etc/inittab", func(r *Root) bool { return r.isFile("/etc/inittab") }, (*console).inittab},
	{"runit", func(r *Root) bool { return r.isDir(runitServices) }, (*console).runit},
	{"OpenRC", func(r *Root) bool { return r.isFile("/etc/init.d/agetty") && r.isDir("/etc/runlevels/default") }, (*console).openrc},
}

func (r *Root) isDir(name string) bool {
	info, err := r.Stat(name)
	return err == nil && info.IsDir()
}

// usesSystemd tells whether systemd is what starts the guest. It may be
// installed beside another init, to which /sbin/init then belongs.
func (r *Root) usesSystemd() bool {
	if !r.isFile("/lib/systemd/systemd") && !r.isFile("/usr/lib/systemd/systemd") {
		return false
	}
	if _, err := r.Lstat("/sbin/init"); err != nil {
		return true
	}
	target, err := r.Readlink("/sbin/init")
	return err == nil && strings.HasSuffix(target, "/systemd")
}

func (c *console) say(change string) { c.changes = append(c.changes, change) }

// units are where packages put the units of systemd.
var units = []string{"/lib/systemd/system/", "/usr/lib/systemd/system/"}

const localUnits = "/etc/systemd/system/"

func (c *console) systemd() error {
	unit := "serial-getty@" + c.device + ".service"
	if len(c.root.Glob(localUnits+"*/*getty@"+c.device+".service")) > 0 {
		return nil
	}
	if target, err := c.root.Readlink(localUnits + unit); err == nil && target == "/dev/null" {
		c.say(unit + " stays off, since the image masks it")
		return nil
	}
	for _, dir := range units {
		template := dir + "serial-getty@.service"
		if !c.root.isFile(template) {
			continue
		}
		wants := localUnits + "getty.target.wants"
		if err := c.root.MkdirAll(wants, 0o755); err != nil {
			return err
		}
		if err := c.root.Symlink(template, wants+"/"+unit); err != nil {
			return err
		}
		c.say("enabled " + unit)
		return nil
	}
	return nil
}

// speeds is a speed, or several to try, in the arguments of a getty.
var speeds = regexp.MustCompile(`\b(?:` + rates + `)(?:,(?:` + rates + `))*\b`)

const rates = `300|600|1200|2400|4800|9600|19200|38400|57600|115200|230400|460800|500000|576000|921600|[1-4][05]00000`

// atSpeed replaces the speed in a getty's line, unless ours is among those it
// tries.
func (c *console) atSpeed(line string) string {
	return speeds.ReplaceAllStringFunc(line, func(said string) string {
		if slices.Contains(strings.Split(said, ","), c.speed) {
			return said
		}
		return c.speed
	})
}

// rewrite replaces the content of a file by what edit makes of it. An empty
// answer leaves it.
func (c *console) rewrite(file string, edit func(text string) (string, string)) error {
	text, err := c.root.ReadFile(file, releaseLimit)
	if err != nil {
		return err
	}
	edited, change := edit(string(text))
	if change == "" {
		return nil
	}
	if err := c.root.WriteFile(file, []byte(edited), 0o644); err != nil {
		return err
	}
	c.say(file + ": " + change)
	return nil
}

// getty is the program that asks for a login.
func (c *console) getty() string {
	for _, program := range []string{"/sbin/getty", "/sbin/agetty", "/usr/sbin/getty", "/usr/sbin/agetty"} {
		if c.root.Exists(program) {
			return program
		}
	}
	return ""
}

func (c *console) command() string { return c.getty() + " -L " + c.speed + " " + c.device + " vt100" }

var jobCommand = regexp.MustCompile(`(?m)^[ \t]*exec[ \t].*getty.*$`)

func (c *console) upstart() error {
	for _, file := range c.root.Glob("/etc/init/*.conf") {
		text, err := c.root.ReadFile(file, releaseLimit)
		if err != nil || !c.word.MatchString(jobCommand.FindString(string(text))) {
			continue
		}
		return c.rewrite(file, func(text string) (string, string) {
			edited := jobCommand.ReplaceAllStringFunc(text, c.atSpeed)
			return edited, ifChanged(text, edited, "the console's speed is "+c.speed)
		})
	}
	if c.redHatStarts() || c.getty() == "" {
		return nil
	}
	job := "# A login on the serial console.\nstart on stopped rc RUNLEVEL=[2345]\nstop on runlevel [!2345]\n\nrespawn\nexec " + c.command() + "\n"
	file := "/etc/init/" + c.device + ".conf"
	if err := c.root.WriteFile(file, []byte(job), 0o644); err != nil {
		return err
	}
	c.say("wrote " + file)
	return nil
}

// redHatStarts tells whether RHEL 6 starts a login by itself, as it does for the
// last console= of the kernel's command line.
func (c *console) redHatStarts() bool {
	if !c.root.isFile("/etc/init/serial.conf") {
		return false
	}
	lines := c.root.kernelCommandLines()
	if len(lines) == 0 {
		return false
	}
	last := ""
	for word := range strings.FieldsSeq(lines[0]) { // of the kernel that is booted
		if value, ok := strings.CutPrefix(word, "console="); ok {
			last, _, _ = strings.Cut(value, ",")
		}
	}
	return last == c.device
}

func ifChanged(old, edited, change string) string {
	if old == edited {
		return ""
	}
	return change
}

func (c *console) inittab() error { return c.rewrite("/etc/inittab", c.editInittab) }

// editInittab corrects the line of inittab(5) for the device, or makes one of a
// comment that is one, as Debian and Alpine have it, or adds one.
func (c *console) editInittab(text string) (edited, change string) {
	lines := strings.SplitAfter(text, "\n")
	for i, line := range lines {
		if !strings.HasPrefix(line, "#") && c.isInittabLine(line) {
			lines[i] = c.processAtSpeed(line)
			edited = strings.Join(lines, "")
			return edited, ifChanged(text, edited, "the speed of "+c.device+" is "+c.speed)
		}
	}
	for i, line := range lines {
		active := strings.TrimLeft(line, "# \t")
		if strings.HasPrefix(line, "#") && c.isInittabLine(active) {
			lines[i] = c.processAtSpeed(active)
			return strings.Join(lines, ""), "enabled the line for " + c.device
		}
	}
	if c.getty() == "" {
		return text, ""
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	id, levels := freeID(lines), "2345"
	if isBusyBox(lines) {
		id, levels = c.device, ""
	}
	return text + id + ":" + levels + ":respawn:" + c.command() + "\n", "added a line for " + c.device
}

// isInittabLine tells whether a line, id:runlevels:action:process, keeps a
// program running on the device.
func (c *console) isInittabLine(line string) bool {
	fields := strings.SplitN(line, ":", 4)
	if len(fields) < 4 || strings.ContainsAny(fields[0], " \t#") {
		return false
	}
	return (fields[2] == "respawn" || fields[2] == "askfirst") && c.word.MatchString(fields[3])
}

// processAtSpeed is atSpeed for the last field of a line, not its runlevels.
func (c *console) processAtSpeed(line string) string {
	fields := strings.SplitN(line, ":", 4)
	fields[3] = c.atSpeed(fields[3])
	return strings.Join(fields, ":")
}

// isBusyBox tells whether the table is BusyBox's, whose ids are terminals and
// are mostly empty.
func isBusyBox(lines []string) bool {
	return slices.ContainsFunc(lines, func(line string) bool { return strings.HasPrefix(line, "::") })
}

// freeID finds an id, which in sysvinit has at most four bytes, that no line has.
func freeID(lines []string) string {
	for n := 0; ; n++ {
		id := "T" + strconv.Itoa(n)
		if !slices.ContainsFunc(lines, func(line string) bool { return strings.HasPrefix(line, id+":") }) {
			return id
		}
	}
}

// runitServices is where Void Linux has a link for each service that runs.
const runitServices = "/etc/runit/runsvdir/default"

func (c *console) runit() error {
	service := "/etc/sv/agetty-" + c.device
	if !c.root.isDir(service) {
		return nil
	}
	if c.root.isFile(service + "/conf") {
		err := c.rewrite(service+"/conf", func(text string) (string, string) {
			edited := c.atSpeed(text)
			return edited, ifChanged(text, edited, "the speed is "+c.speed)
		})
		if err != nil {
			return err
		}
	}
	return c.link(service, runitServices+"/agetty-"+c.device)
}

func (c *console) openrc() error {
	service := "/etc/init.d/agetty." + c.device
	if _, err := c.root.Lstat(service); err != nil {
		if err := c.root.WriteFile("/etc/conf.d/agetty."+c.device, []byte("baud=\""+c.speed+"\"\n"), 0o644); err != nil {
			return err
		}
	}
	if err := c.link("agetty", service); err != nil {
		return err
	}
	return c.link(service, "/etc/runlevels/default/agetty."+c.device)
}

func (c *console) link(target, name string) error {
	if _, err := c.root.Lstat(name); err == nil {
		return nil
	}
	if err := c.root.Symlink(target, name); err != nil {
		return err
	}
	c.say("linked " + name + " to " + target)
	return nil
}

// securetty lets root in on the device where a list says on which it may.
func (c *console) securetty() error {
	if !c.root.isFile("/etc/securetty") {
		return nil
	}
	return c.rewrite("/etc/securetty", func(text string) (string, string) {
		for line := range strings.Lines(text) {
			if strings.TrimSpace(line) == c.device {
				return text, ""
			}
		}
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		return text + c.device + "\n", "root may log in on " + c.device
	})
}
