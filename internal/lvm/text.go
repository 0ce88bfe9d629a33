package lvm

import (
	"strconv"
	"strings"
)

// Bounds of a metadata text; lvm itself nests four sections.
const (
	depthLimit = 16
	itemsLimit = 1 << 18 // keys and values
	nameLimit  = 127     // lvm's NAME_LEN without the end
)

// section is a node of the text: "key = value" pairs and sections by name. Names
// are in the text's order.
type section struct {
	name     string
	values   map[string][]value
	sections []*section
	byName   map[string]*section
}

// value is a string or an integer, and where it stands in the text.
type value struct {
	text     string
	number   int64
	isNumber bool
	from, to int
}

func (s *section) set(key string, list []value) {
	if s.values == nil {
		s.values = map[string][]value{}
	}
	s.values[key] = list
}

func (s *section) add(below *section) {
	if s.byName == nil {
		s.byName = map[string]*section{}
	}
	s.sections, s.byName[below.name] = append(s.sections, below), below
}

// text reads one value that is a string; "" where there is none.
func (s *section) text(key string) string {
	if v := s.values[key]; len(v) == 1 && !v[0].isNumber {
		return v[0].text
	}
	return ""
}

// number reads one integer that is at least low.
func (s *section) number(key string, low int64) (int64, error) {
	v := s.values[key]
	if len(v) != 1 || !v[0].isNumber || v[0].number < low {
		return 0, damaged("%s: %s is missing, or is not a number of at least %d", s.name, key, low)
	}
	return v[0].number, nil
}

// has tells whether a list of flags holds one.
func (s *section) has(key, flag string) bool {
	for _, v := range s.values[key] {
		if !v.isNumber && v.text == flag {
			return true
		}
	}
	return false
}

// at returns a section below this one; an empty section where there is none.
func (s *section) at(path ...string) *section {
	for _, name := range path {
		next := s.byName[name]
		if next == nil {
			return &section{name: name}
		}
		s = next
	}
	return s
}

// parser reads the syntax of lvm.conf(5) as far as lvm writes it into metadata.
type parser struct {
	text  string
	pos   int
	items int
}

// parseText reads a whole text; its sections are those of the result.
func parseText(text string) (*section, error) {
	p := &parser{text: text}
	return p.section("the metadata", 0)
}

func (p *parser) fault(what string) error {
	return damaged("line %d of the metadata text: %s", 1+strings.Count(p.text[:p.pos], "\n"), what)
}

// section reads up to the closing brace, at depth 0 up to the text's end.
func (p *parser) section(name string, depth int) (*section, error) {
	s := &section{name: name}
	for {
		c := p.next()
		switch {
		case c == 0 && depth == 0 && p.pos == len(p.text):
			return s, nil
		case c == '}' && depth > 0:
			p.pos++
			return s, nil
		}
		if err := p.entry(s, depth); err != nil {
			return nil, err
		}
	}
}

// entry reads "key = value" or "key { ... }".
func (p *parser) entry(s *section, depth int) error {
	key := p.key()
	if key == "" || len(key) > nameLimit {
		return p.fault("a name is missing, or too long")
	}
	if _, twice := s.values[key]; twice || s.byName[key] != nil {
		return p.fault(strconv.Quote(key) + " stands twice")
	}
	if p.items++; p.items > itemsLimit {
		return p.fault("there is more than any volume group needs")
	}
	switch p.next() {
	case '=':
		p.pos++
		list, err := p.value()
		s.set(key, list)
		return err
	case '{':
		p.pos++
		if depth++; depth > depthLimit {
			return p.fault("the sections are nested too deep")
		}
		below, err := p.section(key, depth)
		if err != nil {
			return err
		}
		s.add(below)
		return nil
	}
	return p.fault("neither = nor { follows the name")
}

// next skips blanks and comments and returns the byte there, 0 at the end.
func (p *parser) next() byte {
	for ; p.pos < len(p.text); p.pos++ {
		switch c := p.text[p.pos]; c {
		case ' ', '\t', '\n', '\r':
		case '#':
			end := strings.IndexByte(p.text[p.pos:], '\n')
			if end < 0 {
				p.pos = len(p.text)
				return 0
			}
			p.pos += end
		default:
			return c
		}
	}
	return 0
}

func (p *parser) key() string {
	start := p.pos
	for p.pos < len(p.text) && nameByte(p.text[p.pos]) {
		p.pos++
	}
	return p.text[start:p.pos]
}

// value reads one string or number, or a list of them in brackets. An empty list
// is not nil.
func (p *parser) value() ([]value, error) {
	if p.next() != '[' {
		v, err := p.single()
		return []value{v}, err
	}
	p.pos++
	list := []value{}
	for p.next() != ']' {
		v, err := p.single()
		if err != nil {
			return nil, err
		}
		list = append(list, v)
		if c := p.next(); c == ',' {
			p.pos++
		} else if c != ']' {
			return nil, p.fault("a list has no end")
		}
	}
	p.pos++
	return list, nil
}

func (p *parser) single() (value, error) {
	if p.items++; p.items > itemsLimit {
		return value{}, p.fault("there is more than any volume group needs")
	}
	if c := p.next(); c == '"' || c == '\'' {
		return p.quoted(c)
	}
	start := p.pos
	for p.pos < len(p.text) && (p.text[p.pos] == '-' || p.text[p.pos] >= '0' && p.text[p.pos] <= '9') {
		p.pos++
	}
	number, err := strconv.ParseInt(p.text[start:p.pos], 10, 64)
	if err != nil || p.pos < len(p.text) && nameByte(p.text[p.pos]) {
		return value{}, p.fault("this is neither a string nor a number of 64 bits")
	}
	return value{number: number, isNumber: true, from: start, to: p.pos}, nil
}

// quoted reads a string. A backslash escapes the next byte between double quotes.
func (p *parser) quoted(quote byte) (value, error) {
	start := p.pos
	var b strings.Builder
	for p.pos++; p.pos < len(p.text); p.pos++ {
		c := p.text[p.pos]
		switch {
		case c == quote:
			p.pos++
			return value{text: b.String(), from: start, to: p.pos}, nil
		case c == '\\' && quote == '"' && p.pos+1 < len(p.text):
			p.pos++
			c = p.text[p.pos]
		}
		b.WriteByte(c)
	}
	return value{}, p.fault("a string has no end")
}

func nameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("+_.-", c) >= 0
}

// validName tells whether lvm takes this for a volume's or a group's name (man
// lvm(8), VALID NAMES). Such a name is safe as an argument.
func validName(name string) bool {
	if name == "" || len(name) > nameLimit || name[0] == '-' || name == "." || name == ".." {
		return false
	}
	return strings.IndexFunc(name, func(r rune) bool { return r > 127 || !nameByte(byte(r)) }) < 0
}

// dashed writes the 32 characters of a UUID in groups of 6-4-4-4-4-4-6.
func dashed(id string) (string, bool) {
	if len(id) != 32 || strings.IndexFunc(id, func(r rune) bool { return !uuidRune(r) }) >= 0 {
		return "", false
	}
	return id[:6] + "-" + id[6:10] + "-" + id[10:14] + "-" + id[14:18] + "-" + id[18:22] + "-" + id[22:26] + "-" + id[26:], true
}

func validUUID(id string) bool {
	written, ok := dashed(strings.ReplaceAll(id, "-", ""))
	return ok && written == id
}

func uuidRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '!' || r == '#'
}
