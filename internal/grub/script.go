package grub

import (
	"slices"
	"strings"
)

// word is one word of a GRUB script, its quotes resolved (GRUB manual, "Quoting").
type word struct {
	start, end int
	text       string // a variable stays as it is written: "$root", "${root}"
	variable   bool   // there is one in it
}

// command is a simple command of a GRUB script.
type command struct {
	words []word
	entry int // which menuentry it is in, counted from 1; 0 for none
}

func (c command) name() string { return c.words[0].text }
func (c command) start() int   { return c.words[0].start }

// parser cuts a GRUB script into commands.
type parser struct {
	text     string
	at       int
	current  []word
	commands []command
	blocks   []int // the entry each open brace belongs to
	entries  int
	words    int
	cut      bool // a quote or an escape does not end
}

// maxWords bounds what one script is cut into: that of hundreds of kernels has
// some ten thousand words.
const maxWords = 1 << 17

// keywords stand before a command without being one.
var keywords = []string{"if", "then", "else", "elif", "while", "until", "do", "!"}

// parseScript finds the commands of a GRUB script. What GRUB would refuse is
// read as well as can be, and one with too many words up to there.
func parseScript(text string) []command { return parse(text).commands }

func parse(text string) *parser {
	p := &parser{text: text}
	for p.at < len(text) && p.words < maxWords {
		p.step()
	}
	p.finish()
	return p
}

// whole tells whether all of the script was read.
func (p *parser) whole() bool { return p.at == len(p.text) }

func (p *parser) step() {
	rest := p.text[p.at:]
	switch c := rest[0]; {
	case c == ' ' || c == '\t' || c == '\r':
		p.at++
	case strings.HasPrefix(rest, "\\\n"):
		p.at += 2
	case strings.IndexByte("\n;|&<>", c) >= 0:
		p.finish()
		p.at++
	case c == '{':
		p.open()
		p.at++
	case c == '}':
		p.finish()
		if n := len(p.blocks); n > 0 {
			p.blocks = p.blocks[:n-1]
		}
		p.at++
	case c == '#':
		if end := strings.IndexByte(rest, '\n'); end >= 0 {
			p.at += end
		} else {
			p.at = len(p.text)
		}
	default:
		p.current = append(p.current, p.word())
		p.words++
	}
}

func (p *parser) entry() int {
	if n := len(p.blocks); n > 0 {
		return p.blocks[n-1]
	}
	return 0
}

// open begins the block of the command that stands before the brace.
func (p *parser) open() {
	entry := p.entry()
	if len(p.current) > 0 && p.current[0].text == "menuentry" {
		p.entries++
		entry = p.entries
	}
	p.finish()
	p.blocks = append(p.blocks, entry)
}

func (p *parser) finish() {
	for len(p.current) > 0 && slices.Contains(keywords, p.current[0].text) {
		p.current = p.current[1:]
	}
	if len(p.current) > 0 {
		p.commands = append(p.commands, command{p.current, p.entry()})
	}
	p.current = nil
}

// word reads one word. Each step goes on by at least one byte.
func (p *parser) word() word {
	w := word{start: p.at}
	var out strings.Builder
	for p.at < len(p.text) && strings.IndexByte(" \t\r\n;|&<>{}", p.text[p.at]) < 0 {
		switch p.text[p.at] {
		case '\\':
			out.WriteString(p.escaped())
		case '\'':
			out.WriteString(p.until('\''))
		case '"':
			p.quoted(&out, &w)
		case '$':
			w.variable = true
			out.WriteString(p.reference())
		default:
			out.WriteByte(p.text[p.at])
			p.at++
		}
	}
	w.end, w.text = p.at, out.String()
	return w
}

// escaped reads a backslash and what it stands before.
func (p *parser) escaped() string {
	p.at += 2
	if p.at > len(p.text) {
		p.at, p.cut = len(p.text), true
		return ""
	}
	if p.text[p.at-1] == '\n' {
		return ""
	}
	return p.text[p.at-1 : p.at]
}

// until reads a part in single quotes.
func (p *parser) until(quote byte) string {
	rest := p.text[p.at+1:]
	end := strings.IndexByte(rest, quote)
	if end < 0 {
		p.at, p.cut = len(p.text), true
		return rest
	}
	p.at += end + 2
	return rest[:end]
}

// quoted reads a part in double quotes.
func (p *parser) quoted(out *strings.Builder, w *word) {
	for p.at++; p.at < len(p.text) && p.text[p.at] != '"'; {
		switch c := p.text[p.at]; {
		case c == '\\' && p.at+1 < len(p.text) && strings.IndexByte("$\"\\\n", p.text[p.at+1]) >= 0:
			out.WriteString(p.escaped())
		case c == '$':
			w.variable = true
			out.WriteString(p.reference())
		default:
			out.WriteByte(c)
			p.at++
		}
	}
	p.cut = p.cut || p.at == len(p.text)
	p.at = min(p.at+1, len(p.text))
}

// maxName is how long a variable's name is at most.
const maxName = 256

// reference reads a variable: $name or ${name}.
func (p *parser) reference() string {
	rest := p.text[p.at:]
	size := 1
	if strings.HasPrefix(rest, "${") {
		if end := strings.IndexAny(rest[:min(len(rest), maxName)], "}\n"); end > 0 && rest[end] == '}' {
			size = end + 1
		} else {
			size = 2
		}
	}
	p.at += size
	return rest[:size]
}

const plainChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._@%+=:,^~()-"

// quoteScript writes a word so that GRUB reads it as it is.
func quoteScript(text string) string {
	if text != "" && strings.Trim(text, plainChars) == "" {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// quoteArg writes a kernel's argument. GRUB puts the kernel's double quotes
// around what has blanks, and would escape those that are there.
func quoteArg(text string) string { return quoteScript(strings.ReplaceAll(text, `"`, "")) }

// rewrite returns a word with another meaning as it is to be written, and
// whether it can be: one with a variable cannot be quoted.
func (w word) rewrite(text string) (string, bool) {
	if !w.variable {
		return quoteScript(text), true
	}
	return text, strings.Trim(text, plainChars+"${}") == ""
}
