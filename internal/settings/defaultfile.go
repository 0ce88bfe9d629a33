package settings

import (
	"bytes"
	"fmt"
	"strings"
)

const intro = `This file holds assignments in the syntax of the shell, NAME="value".
It is not run: quotes, comments and $NAME are read as bash reads them, and what
bash would execute is an error that names the line. A variant, VARIANTS_DIR/NAME.conf,
has the same syntax and overrides this file; an OS parameter overrides both. An
empty value means the default. Switches are yes or no. A name that is not below
is your own and reaches the hooks.`

// defaultFile is the text of the defaults file that is installed: every
// setting with its meaning and default, all of it comment.
func defaultFile() []byte {
	var file bytes.Buffer
	file.WriteString("# Settings of ganeti-instance-image.\n#\n" + wrap(intro))
	fill := strings.NewReplacer("{sysconf}", "/etc", "{localstate}", "/var", "{memory}", "")
	for _, section := range table {
		if section.title == "" {
			continue
		}
		fmt.Fprintf(&file, "\n\n# %s\n", section.title)
		for _, row := range section.settings {
			if row.name == "" {
				continue
			}
			file.WriteString("\n" + wrap(row.name+": "+row.meaning+"."))
			if row.param != "" {
				fmt.Fprintf(&file, "# OS parameter: %s\n", row.param)
			}
			fmt.Fprintf(&file, "#%s=\"%s\"\n", row.name, fill.Replace(row.value))
		}
	}
	return file.Bytes()
}

// wrap makes comment lines of at most 80 characters.
func wrap(text string) string {
	var lines strings.Builder
	line := "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > 80 {
			lines.WriteString(line + "\n")
			line = "#"
		}
		line += " " + word
	}
	return lines.String() + line + "\n"
}
