package grub

import (
	"path"
	"strings"
)

// field is one line of a Boot Loader Specification entry.
type field struct {
	key   string
	value string
	at    int // where the value begins in the text
}

// parseBLS reads the fields of an entry (UAPI.1, "Type #1").
func parseBLS(text string) []field {
	var fields []field
	for _, l := range lines(text) {
		key, rest := firstWord(l.text)
		if key != "" && !strings.HasPrefix(key, "#") {
			fields = append(fields, field{key, l.text[rest:], l.start + rest})
		}
	}
	return fields
}

// mendBLS mends an entry. Where it is not on the file system of /boot, as on an
// EFI system partition, its paths stay.
func (f *facts) mendBLS(text string, onBoot bool) string {
	fields := parseBLS(text)
	var args []arg
	var s scope
	linux, last := "", -1
	for i, field := range fields {
		switch field.key {
		case "linux":
			linux = field.value
		case "initrd":
			s.initrd = true
		case "options":
			args = append(args, splitArgs(field.value, field.at)...)
			last = i
		}
	}
	if linux == "" || isTool(strings.TrimSpace(linux)) {
		return text
	}
	var edits []edit
	for _, field := range fields {
		if onBoot && (field.key == "linux" || field.key == "initrd" || field.key == "devicetree") {
			edits = append(edits, f.pathEdits(field.value, field.at)...)
		}
	}
	if last < 0 {
		return addOptions(applyEdits(text, edits), f.mendText("", s))
	}
	return applyEdits(text, append(edits, f.optionEdits(args, s, fields[last])...))
}

// optionEdits mends the arguments of an entry's options lines, which are one
// command line. What is added goes to the last line.
func (f *facts) optionEdits(args []arg, s scope, last field) []edit {
	if len(args) == 0 {
		if text := f.mendText("", s); text != "" {
			return []edit{{last.at, last.at, " " + text}}
		}
		return nil
	}
	verdicts, added := f.mendArgs(args, s)
	var edits []edit
	for i, a := range args {
		switch {
		case verdicts[i].drop:
			edits = append(edits, edit{a.start - 1, a.end, ""})
		case verdicts[i].text != a.text:
			edits = append(edits, edit{a.start, a.end, verdicts[i].text})
		}
	}
	end := last.at + len(strings.TrimRight(last.value, " \t"))
	if len(added) > 0 {
		edits = append(edits, edit{end, end, " " + strings.Join(added, " ")})
	}
	return edits
}

func addOptions(text, options string) string {
	if options == "" {
		return text
	}
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return text + "options " + options + "\n"
}

// pathEdits corrects the paths in a list of words. One with a quote stays: boot
// loaders do not agree on what that would mean.
func (f *facts) pathEdits(text string, base int) []edit {
	var edits []edit
	for _, a := range splitArgs(text, base) {
		if strings.Contains(a.text, `"`) {
			continue
		}
		if mended := f.bootPath(a.text); mended != a.text {
			edits = append(edits, edit{a.start, a.end, mended})
		}
	}
	return edits
}

// item is one entry of a boot menu that is written.
type item struct {
	title   string
	linux   string   // by the path that the boot loader knows
	initrds []string // likewise
	args    string
}

// menuItem makes a menu's entry of a BLS entry that was mended. kernelopts is
// what $kernelopts means; other variables are empty, as GRUB has them.
func menuItem(name, text, kernelopts string) (item, bool) {
	var it item
	for _, field := range parseBLS(text) {
		value := strings.TrimSpace(field.value)
		switch field.key {
		case "title":
			it.title = value
		case "linux":
			it.linux = value
		case "initrd":
			for _, a := range splitArgs(value, 0) {
				if !a.fixed {
					it.initrds = append(it.initrds, a.text)
				}
			}
		case "options":
			for _, a := range splitArgs(strings.ReplaceAll(value, "$kernelopts", kernelopts), 0) {
				if !a.fixed {
					it.args = strings.TrimSpace(it.args + " " + a.text)
				}
			}
		}
	}
	if it.title == "" {
		it.title = strings.TrimSuffix(path.Base(name), ".conf")
	}
	return it, it.linux != "" && !isTool(it.linux)
}
