package grub

import (
	"fmt"
	"strings"
)

// shellValue is the value of a variable in a file of shell assignments.
type shellValue struct {
	start, end int  // the value with its quotes
	quote      byte // 0 for none
	text       string
	expands    bool // it is what a command or a variable gives, without quotes
}

// findShell finds the last assignment to a variable in a shell file, and says
// whether it could be read: one pieced together from several quotes is not, and
// nothing is in a file whose quotes do not end.
func findShell(text, name string) (v shellValue, found, readable bool) {
	all, whole := shellLines(text)
	if !whole {
		return v, true, false
	}
	for _, l := range all {
		rest, assigned := strings.CutPrefix(strings.TrimPrefix(strings.TrimLeft(l.text, " \t"), "export "), name+"=")
		if assigned {
			v, readable = readShell(text, l.end-len(rest))
			found = true
		}
	}
	return v, found, readable
}

// readShell reads the value that begins at a place.
func readShell(text string, start int) (shellValue, bool) {
	v := shellValue{start: start, end: start}
	if start < len(text) && (text[start] == '"' || text[start] == '\'') {
		v.quote = text[start]
		return v.quoted(text)
	}
	v.end = len(text)
	if n := strings.IndexAny(text[start:], " \t\r\n;"); n >= 0 {
		v.end = start + n
	}
	return v.bare(text[start:v.end])
}

// quoted reads a value in quotes. Quotes within those, of a command that stands
// there, are not for editing.
func (v shellValue) quoted(text string) (shellValue, bool) {
	end, ok := quotedEnd(text, v.start)
	v.end = end
	if !ok {
		return v, false
	}
	v.text = text[v.start+1 : end-1]
	nested := v.quote == '"' && strings.Contains(strings.NewReplacer(`\\`, "", `\"`, "").Replace(v.text), `"`)
	return v, !nested && (end == len(text) || strings.IndexByte(" \t\r\n;", text[end]) >= 0)
}

// bare is a value without quotes. Where a command or a variable stands in it,
// it need not end at a blank; a pipe or the like ends it and the command.
func (v shellValue) bare(text string) (shellValue, bool) {
	v.text, v.expands = text, strings.ContainsAny(text, "`$(){}")
	return v, !v.expands && !strings.ContainsAny(text, "\"'\\|&<>")
}

// shellArgs is the command line in a variable.
func shellArgs(text, name string) []arg {
	v, _, readable := findShell(text, name)
	if !readable {
		return nil
	}
	return splitArgs(strings.ReplaceAll(v.text, `\"`, `"`), 0)
}

// mendVariable mends the command line in a shell variable. Where there is none
// it is added, unless nothing is to be added.
func (f *facts) mendVariable(text, name string, s scope) string {
	v, found, readable := findShell(text, name)
	if !found && !s.only {
		if args := f.mendText("", s); args != "" {
			text = addLine(text, name+`="`+escapeDouble(args)+`"`)
		}
	}
	if args := f.mendText("", s); v.expands && !s.only && args != "" {
		return addLine(text, fmt.Sprintf(`%s="$%s %s"`, name, name, escapeDouble(args)))
	}
	if !readable {
		return text
	}
	write := plainly
	begin, end := v.start, v.end
	if v.quote != 0 {
		begin, end = begin+1, end-1
	}
	if v.quote != '\'' {
		write = escapeDouble
	}
	args := splitArgs(v.text, 0)
	if v.quote == '"' { // the kernel's quotes are escaped
		args = splitEscaped(v.text)
	}
	edits := f.argEdits(args, s, 0, false, write)
	mended := applyEdits(v.text, edits)
	if mended == v.text {
		return text
	}
	if v.quote == 0 {
		mended = `"` + mended + `"`
	}
	return text[:begin] + mended + text[end:]
}

// splitEscaped cuts a command line in which a shell's double quotes stand around
// everything.
func splitEscaped(text string) []arg {
	// A placeholder as long as the escape keeps the places right.
	args := splitArgs(strings.ReplaceAll(text, `\"`, "\x00\""), 0)
	for i := range args {
		args[i].text = strings.ReplaceAll(args[i].text, "\x00", "")
		args[i].fixed = args[i].fixed || strings.ContainsAny(args[i].text, "\\`")
	}
	return args
}

// setShell gives a variable a value that needs no escapes.
func setShell(text, name, value string) string {
	v, found, readable := findShell(text, name)
	switch {
	case v.expands:
		return addLine(text, name+`="`+value+`"`)
	case readable && v.text == value || found && !readable:
		return text
	case found:
		return text[:v.start] + `"` + value + `"` + text[v.end:]
	}
	return addLine(text, name+`="`+value+`"`)
}

func addLine(text, line string) string {
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return text + line + "\n"
}

// mendDefaults mends /etc/default/grub where it is the only file that
// grub-mkconfig reads.
func (f *facts) mendDefaults(text string) string {
	text = f.mendVariable(text, "GRUB_CMDLINE_LINUX_DEFAULT", scope{partial: true, only: true})
	text = f.mendVariable(text, "GRUB_CMDLINE_LINUX", scope{partial: true, beside: shellArgs(text, "GRUB_CMDLINE_LINUX_DEFAULT")})
	if _, ok := f.serial.unit(); ok {
		if v, _, _ := findShell(text, "GRUB_TERMINAL"); !strings.Contains(v.text, "serial") {
			text = setShell(text, "GRUB_TERMINAL", "console serial")
		}
		text = setShell(text, "GRUB_SERIAL_COMMAND", f.serialCommand())
	}
	return text
}

// correctDefaults corrects what files of the Debian family say, which reads
// those in /etc/default/grub.d afterwards: what is added goes there.
func (f *facts) correctDefaults(text string) string {
	for _, name := range []string{"GRUB_CMDLINE_LINUX_DEFAULT", "GRUB_CMDLINE_LINUX"} {
		text = f.mendVariable(text, name, scope{partial: true, only: true})
	}
	// Ubuntu's images boot without an initial RAM disk first.
	if v, _, ok := findShell(text, "GRUB_FORCE_PARTUUID"); ok && v.text != "" && f.root.PartUUID != "" {
		text = setShell(text, "GRUB_FORCE_PARTUUID", f.root.PartUUID)
	}
	return text
}

// maxShellValue bounds a variable that refers to itself in each file.
const maxShellValue = 64 << 10

// shellFiles is the value of a variable after several files, each of which may
// refer to the value before, once.
func shellFiles(texts []string, name string) string {
	value := ""
	for _, text := range texts {
		if v, _, readable := findShell(text, name); readable {
			next := strings.ReplaceAll(v.text, `\"`, `"`)
			if v.quote != '\'' {
				next = strings.Replace(strings.Replace(next+" ", "${"+name+"}", value, 1), "$"+name+" ", value+" ", 1)
			}
			value = strings.TrimSpace(next[:min(len(next), maxShellValue)])
		}
	}
	return value
}

func (f *facts) serialCommand() string {
	unit, _ := f.serial.unit()
	return fmt.Sprintf("serial --unit=%d --speed=%d", unit, f.serial.Speed)
}

// newDropIn is a file for /etc/default/grub.d; "" where there is nothing to say.
// beside is what the other files make of the command line.
func (f *facts) newDropIn(beside []arg) string {
	text := ""
	if args := f.mendText("", scope{partial: true, beside: beside}); args != "" {
		text += `GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX ` + escapeDouble(args) + "\"\n"
	}
	if _, ok := f.serial.unit(); ok {
		text += "GRUB_TERMINAL=\"console serial\"\nGRUB_SERIAL_COMMAND=\"" + f.serialCommand() + "\"\n"
	}
	if text == "" {
		return ""
	}
	return "# Written when this system was deployed: the site's kernel arguments and console.\n" + text
}
