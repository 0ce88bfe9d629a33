package grub

import (
	"regexp"
	"strconv"
	"strings"
)

var legacyPlace = regexp.MustCompile(`\(hd\d+(,\d+)?\)`)

// mendLegacy mends the menu.lst, or grub.conf, of GRUB 0.97. It counts disks
// and partitions from 0.
func (f *facts) mendLegacy(text string) string {
	all := lines(text)
	initrds := legacyInitrds(all)
	var edits []edit
	title := 0
	for _, l := range all {
		key, rest := firstWord(l.text)
		value, at := l.text[rest:], l.start+rest
		switch strings.TrimSuffix(key, "=") {
		case "title":
			title++
		case "root", "rootnoverify", "splashimage":
			edits = append(edits, f.placeEdits(value, at)...)
		case "kernel", "initrd", "module":
			edits = append(edits, f.loadEdits(key, value, at, scope{initrd: initrds[title]})...)
		case "uuid":
			if f.boot.UUID != "" && !strings.EqualFold(strings.TrimSpace(value), f.boot.UUID) {
				edits = append(edits, edit{at, l.end, f.boot.UUID})
			}
		case "#":
			edits = append(edits, f.kopt(value, at)...)
		default:
			if strings.HasPrefix(key, "splashimage=") {
				edits = append(edits, f.placeEdits(l.text, l.start)...)
			}
		}
	}
	return applyEdits(text, edits)
}

// legacyInitrds tells which titles load an initial RAM disk. Debian's update-grub
// counts as one, at 0.
func legacyInitrds(all []line) []bool {
	found := []bool{true}
	for _, l := range all {
		switch key, _ := firstWord(l.text); key {
		case "title":
			found = append(found, false)
		case "initrd", "module":
			found[len(found)-1] = true
		}
	}
	return found
}

// placeEdits correct the disk and partition of /boot, and a path that follows
// them without a blank.
func (f *facts) placeEdits(text string, at int) []edit {
	found := legacyPlace.FindStringIndex(text)
	if found == nil {
		return nil
	}
	var edits []edit
	if old := text[found[0]:found[1]]; f.plainBoot && old != f.legacyName() {
		edits = append(edits, edit{at + found[0], at + found[1], f.legacyName()})
	}
	name := strings.TrimRight(text[found[1]:], " \t")
	if mended := f.bootPath(name); mended != name {
		edits = append(edits, edit{at + found[1], at + found[1] + len(name), mended})
	}
	return edits
}

func (f *facts) legacyName() string {
	if f.bootPart == "" {
		return "(hd0)"
	}
	return "(hd0," + strconv.Itoa(f.boot.Number-1) + ")"
}

// loadEdits mend a line that loads a file, and its arguments if it is a kernel.
// Options stand between the command and the file.
func (f *facts) loadEdits(key, value string, at int, s scope) []edit {
	words := splitArgs(value, at)
	i := 0
	for i < len(words) && strings.HasPrefix(words[i].text, "--") {
		i++
	}
	if i == len(words) || strings.Count(value, `"`)%2 != 0 {
		return nil
	}
	file := words[i]
	edits := f.fileEdits(file)
	isKernel := key == "kernel" && !isTool(file.text) && !strings.Contains(file.text, "xen") ||
		key == "module" && strings.Contains(value, "root=")
	if !isKernel {
		return edits
	}
	return append(edits, f.argEdits(words[i+1:], s, file.end, true, plainly)...)
}

// fileEdits correct a file's path, and the place it may begin with.
func (f *facts) fileEdits(file arg) []edit {
	if place := legacyPlace.FindStringIndex(file.text); place != nil && place[0] == 0 {
		return f.placeEdits(file.text, file.start)
	}
	if mended := f.bootPath(file.text); mended != file.text {
		return []edit{{file.start, file.end, mended}}
	}
	return nil
}

// kopt mends the line from which Debian's update-grub of old takes the arguments.
func (f *facts) kopt(value string, at int) []edit {
	const name = "kopt="
	if !strings.HasPrefix(value, name) {
		return nil
	}
	at += len(name)
	return f.argEdits(splitArgs(value[len(name):], at), scope{initrd: true}, at, false, plainly)
}

// legacyArgs returns the arguments of the first kernel that is no tool.
func legacyArgs(text string) (string, bool) {
	for _, l := range lines(text) {
		key, rest := firstWord(l.text)
		words := splitArgs(l.text[rest:], 0)
		if key == "kernel" && len(words) > 1 && !isTool(words[0].text) {
			return l.text[rest+words[1].start:], true
		}
	}
	return "", false
}
