package grub

import (
	"errors"
	"fmt"
	"strings"
)

// The environment block is a file of a fixed size that GRUB writes in place
// (GRUB manual, "Environment block").
const (
	grubenvSize   = 1024
	grubenvHeader = "# GRUB Environment Block\n"
)

// grubenv is what an environment block holds: lines "name=value" and comments,
// as they are written.
type grubenv struct{ lines []string }

// parseGrubenv reads an environment block. What fills it up is left out.
func parseGrubenv(text string) (grubenv, error) {
	rest, ok := strings.CutPrefix(text, grubenvHeader)
	if !ok {
		return grubenv{}, errors.New("it does not begin as a GRUB environment block")
	}
	var env grubenv
	for rest != "" {
		end := lineEnd(rest)
		if end < 0 && rest[0] != '#' {
			return grubenv{}, errors.New("its last variable is cut short")
		}
		if end < 0 {
			break
		}
		if line := rest[:end]; strings.Trim(line, "#") != "" {
			env.lines = append(env.lines, line)
		}
		rest = rest[end+1:]
	}
	return env, nil
}

// lineEnd finds the newline that ends a line. In a variable's value a newline
// may stand behind a backslash.
func lineEnd(text string) int {
	comment := strings.HasPrefix(text, "#")
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '\n':
			return i
		case text[i] == '\\' && !comment:
			i++
		}
	}
	return -1
}

// get returns the value of a variable.
func (e grubenv) get(name string) (string, bool) {
	for _, line := range e.lines {
		if value, ok := strings.CutPrefix(line, name+"="); ok {
			return unescapeEnv(value), true
		}
	}
	return "", false
}

// set gives a variable its value.
func (e *grubenv) set(name, value string) {
	text := name + "=" + strings.NewReplacer(`\`, `\\`, "\n", "\\\n").Replace(value)
	for i, line := range e.lines {
		if strings.HasPrefix(line, name+"=") {
			e.lines[i] = text
			return
		}
	}
	e.lines = append(e.lines, text)
}

func unescapeEnv(value string) string {
	var out strings.Builder
	for i := 0; i < len(value); i++ {
		if value[i] == '\\' && i+1 < len(value) {
			i++
		}
		out.WriteByte(value[i])
	}
	return out.String()
}

// print writes the block, filled up to its size.
func (e grubenv) print() (string, error) {
	var out strings.Builder
	out.WriteString(grubenvHeader)
	for _, line := range e.lines {
		out.WriteString(line + "\n")
	}
	if out.Len() > grubenvSize {
		return "", fmt.Errorf("it would hold %d bytes, and GRUB's environment block has %d: remove some of the kernel's arguments", out.Len(), grubenvSize)
	}
	return out.String() + strings.Repeat("#", grubenvSize-out.Len()), nil
}

// mendGrubenv mends the kernel arguments that Boot Loader Specification entries
// of Red Hat's release 8 take from the environment block as $kernelopts.
func (f *facts) mendGrubenv(text string) (string, error) {
	env, err := parseGrubenv(text)
	if err != nil {
		return "", leave(err.Error()) // GRUB goes without, too
	}
	value, ok := env.get("kernelopts")
	if !ok {
		return text, nil
	}
	mended := f.mendText(value, scope{initrd: true})
	if mended == value {
		return text, nil
	}
	env.set("kernelopts", mended)
	return env.print()
}
