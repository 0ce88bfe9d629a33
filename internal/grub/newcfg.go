package grub

import (
	"fmt"
	"strings"
)

// cfgMark begins a grub.cfg that was written here, so that it is known again.
const cfgMark = "# Written when this system was deployed. grub-mkconfig may replace it.\n"

// bootTimeout is how many seconds a menu waits that is written here.
const bootTimeout = 5

// blsCommands read Boot Loader Specification entries. Red Hat's blscfg looks for
// them on $boot or $root, by release.
const blsCommands = "set boot=$root\nif [ -s $prefix/grubenv ]; then\n  load_env\nfi\ninsmod blscfg\nblscfg\n"

// newCfg writes a whole grub.cfg with the entries given, and those of Boot Loader
// Specification files where it can read these itself. The menu has the shape that pygrub can read: one command a line, no variable where it matters.
func (f *facts) newCfg(items []item, bls blsUse) string {
	var out strings.Builder
	out.WriteString(cfgMark)
	fmt.Fprintf(&out, "set default=0\nset timeout=%d\n", bootTimeout)
	if unit, ok := f.serial.unit(); ok {
		out.WriteString(serialLines(unit, f.serial.Speed))
	}
	f.writeAccess(&out, "")
	switch {
	case bls.bios:
		out.WriteString(blsCommands)
	case bls.efi && bls.first:
		out.WriteString("if [ x$grub_platform = xefi ]; then\n" + blsCommands + "fi\n")
	case bls.efi:
		out.WriteString("if [ x$grub_platform = xefi ]; then\n" + blsCommands + "else\n")
		f.writeMenu(&out, items)
		out.WriteString("fi\n")
		return out.String()
	}
	f.writeMenu(&out, items)
	return out.String()
}

func (f *facts) writeMenu(out *strings.Builder, items []item) {
	for _, it := range items {
		fmt.Fprintf(out, "\nmenuentry %s --class gnu-linux --class os {\n", quoteTitle(it.title))
		f.writeAccess(out, "\t")
		out.WriteString(strings.TrimRight("\tlinux\t"+quoteScript(it.linux)+" "+quoteArgs(it.args), " ") + "\n")
		if len(it.initrds) > 0 {
			out.WriteString("\tinitrd\t" + quoteAll(it.initrds) + "\n")
		}
		out.WriteString("}\n")
	}
}

// writeAccess writes the commands that give access to /boot.
func (f *facts) writeAccess(out *strings.Builder, indent string) {
	for _, module := range []string{f.partmap, grubModule(f.boot.Kind)} {
		if module != "" {
			fmt.Fprintf(out, "%sinsmod %s\n", indent, module)
		}
	}
	if f.plainBoot {
		fmt.Fprintf(out, "%sset root='%s'\n", indent, place("hd0", f.bootPart))
	}
	if f.boot.UUID != "" {
		fmt.Fprintf(out, "%ssearch --no-floppy --fs-uuid --set=root %s\n", indent, f.boot.UUID)
	}
}

// quoteTitle writes a title, which may be a guest's, always in single quotes:
// pygrub knows nothing else.
func quoteTitle(title string) string {
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || strings.ContainsRune(`'"\$`, r) {
			return '_'
		}
		return r
	}, title)
	return "'" + clean + "'"
}

func quoteArgs(args string) string {
	var words []string
	for _, a := range splitArgs(args, 0) {
		words = append(words, quoteArg(a.text))
	}
	return strings.Join(words, " ")
}

func quoteAll(names []string) string {
	words := make([]string, len(names))
	for i, name := range names {
		words[i] = quoteScript(name)
	}
	return strings.Join(words, " ")
}

// kernelItem makes a menu's entry of a kernel.
func (f *facts) kernelItem(k Kernel, system, args string) item {
	s := scope{initrd: len(k.Initrds) > 0}
	if root := f.rootValue("", s); root != "" && !strings.Contains(" "+args, " root=") {
		if f.subvol != "" && !strings.Contains(" "+args, " rootflags=") {
			args = "rootflags=subvol=" + f.subvol + " " + args
		}
		args = "root=" + root + " " + args // first, as grub-mkconfig has it
	}
	it := item{title: system, linux: f.onBoot(k.Path), args: f.mendText(args, s)}
	if k.Version != "" {
		it.title += ", with Linux " + k.Version
	}
	for _, name := range k.Initrds {
		it.initrds = append(it.initrds, f.onBoot(name))
	}
	return it
}
