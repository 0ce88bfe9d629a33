package grub

import (
	"fmt"
	"strconv"
	"strings"
)

// extlinuxLabel is what one label of SYSLINUX loads.
type extlinuxLabel struct {
	linux  string
	initrd bool
}

// mendExtlinux mends the configuration of SYSLINUX (its wiki, "Config").
func (f *facts) mendExtlinux(text string) string {
	all := lines(text)
	labels := extlinuxLabels(all)
	var edits []edit
	at := 0
	for _, l := range all {
		key, rest := firstWord(l.text)
		value := l.text[rest:]
		switch strings.ToUpper(key) {
		case "LABEL":
			at++
		case "LINUX", "KERNEL", "INITRD", "FDT":
			edits = append(edits, f.listEdits(value, l.start+rest)...)
		case "APPEND":
			if strings.TrimSpace(value) != "-" && !isTool(labels[at].linux) {
				bare := strings.HasSuffix(l.text[:rest], key)
				edits = append(edits, f.appendEdits(value, l.start+rest, scope{initrd: labels[at].initrd, partial: at == 0}, bare)...)
			}
		}
	}
	return f.serialFirst(applyEdits(text, edits))
}

// extlinuxLabels tells what each label loads; the first is what stands before
// all labels.
func extlinuxLabels(all []line) []extlinuxLabel {
	labels := []extlinuxLabel{{}}
	for _, l := range all {
		key, rest := firstWord(l.text)
		current := &labels[len(labels)-1]
		switch strings.ToUpper(key) {
		case "LABEL":
			labels = append(labels, extlinuxLabel{})
		case "LINUX", "KERNEL":
			current.linux = strings.TrimSpace(l.text[rest:])
		case "INITRD":
			current.initrd = true
		case "APPEND":
			current.initrd = current.initrd || strings.Contains(l.text, "initrd=")
		}
	}
	return labels
}

// listEdits corrects paths between commas.
func (f *facts) listEdits(value string, at int) []edit {
	var edits []edit
	for part := range strings.SplitSeq(value, ",") {
		name := strings.TrimSpace(part)
		if mended := f.bootPath(name); mended != name {
			start := at + strings.Index(part, name)
			edits = append(edits, edit{start, start + len(name), mended})
		}
		at += len(part) + 1
	}
	return edits
}

// appendEdits mends the arguments of an APPEND. A bare one has no blank behind
// it.
func (f *facts) appendEdits(value string, at int, s scope, bare bool) []edit {
	args := splitArgs(value, at)
	edits := f.argEdits(args, s, at, bare, plainly)
	for _, a := range args {
		names, ok := strings.CutPrefix(a.text, "initrd=")
		if ok && !strings.Contains(names, `"`) { // SYSLINUX knows no quotes: where that name ends nobody can tell
			edits = append(edits, f.listEdits(names, a.end-len(names))...)
		}
	}
	return edits
}

// serialFirst gives SYSLINUX its serial console. The directive must be the first.
func (f *facts) serialFirst(text string) string {
	unit, ok := f.serial.unit()
	if !ok || strings.TrimSpace(text) == "" {
		return text
	}
	for _, l := range lines(text) {
		key, rest := firstWord(l.text)
		fields := strings.Fields(l.text[rest:])
		if !strings.EqualFold(key, "SERIAL") || len(fields) == 0 {
			continue
		}
		if fields[0] != strconv.Itoa(unit) || len(fields) > 1 && fields[1] == strconv.Itoa(f.serial.Speed) {
			return text
		}
		return text[:l.start] + fmt.Sprintf("SERIAL %d %d", unit, f.serial.Speed) + text[l.end:]
	}
	return fmt.Sprintf("SERIAL %d %d\n", unit, f.serial.Speed) + text
}

// mendUpdateExtlinux mends what Alpine's update-extlinux makes extlinux.conf of.
func (f *facts) mendUpdateExtlinux(text string) string {
	s := scope{initrd: true}
	if v, _, ok := findShell(text, "root"); ok {
		if value := f.rootValue(v.text, s); value != v.text {
			text = setBare(text, v, value)
		}
	}
	text = f.mendVariable(text, "default_kernel_opts", scope{partial: true})
	unit, ok := f.serial.unit()
	if !ok {
		return text
	}
	text = setNumber(text, "serial_port", unit)
	return setNumber(text, "serial_baud", f.serial.Speed)
}

// setBare writes a value as it was, with or without quotes.
func setBare(text string, v shellValue, value string) string {
	if v.quote != 0 {
		value = string(v.quote) + value + string(v.quote)
	}
	return text[:v.start] + value + text[v.end:]
}

func setNumber(text, name string, value int) string {
	number := strconv.Itoa(value)
	v, found, readable := findShell(text, name)
	switch {
	case readable && v.text == number || found && !readable:
		return text
	case found:
		return setBare(text, v, number)
	}
	return addLine(text, name+"="+number)
}

// extlinuxArgs returns the arguments of the first label that has any.
func extlinuxArgs(text string) (string, bool) {
	for _, l := range lines(text) {
		if key, rest := firstWord(l.text); strings.EqualFold(key, "APPEND") {
			return l.text[rest:], true
		}
	}
	return "", false
}
