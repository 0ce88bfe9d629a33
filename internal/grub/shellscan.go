package grub

import "strings"

// shellScan goes through a file of shell commands and knows what is open: quotes
// and substitutions, and those within each other.
type shellScan struct {
	text  string
	at    int
	open  []byte // each by the byte it was opened with
	word  bool   // what comes next goes on with a word: a # is no comment there
	fresh bool   // what comes next is a line of its own
	cut   bool   // a quote or an escape does not end
}

// shellLines are the lines that begin outside of all quotes and go on with no
// line before. whole tells whether all that is opened is closed: what stands
// where in another file is for nobody to tell.
func shellLines(text string) (found []line, whole bool) {
	s := shellScan{text: text, fresh: true}
	for _, l := range lines(text) {
		for s.at < l.start {
			s.step()
		}
		if s.at == l.start && s.fresh {
			found = append(found, l)
		}
	}
	for s.at < len(text) {
		s.step()
	}
	return found, len(s.open) == 0 && !s.cut
}

// quotedEnd finds where the quote that begins at a place ends.
func quotedEnd(text string, start int) (end int, ok bool) {
	s := shellScan{text: text, at: start, word: true}
	for s.step(); s.at < len(text) && len(s.open) > 0; {
		s.step()
	}
	return s.at, len(s.open) == 0 && !s.cut
}

func (s *shellScan) step() {
	c, began := s.text[s.at], !s.word
	s.at++
	s.word = strings.IndexByte(" \t\r\n;|&()", c) < 0
	s.fresh = c == '\n' && len(s.open) == 0
	switch {
	case c == '\\':
		s.escape()
	case c == '"' || c == '`':
		s.toggle(c)
	case c == '(' && (!s.in('"') || strings.HasSuffix(s.text[:s.at-1], "$")):
		s.open = append(s.open, c)
	case c == ')' && s.in('('):
		s.toggle('(')
	case s.in('"'):
	case c == '\'':
		s.skip('\'', 1)
	case c == '#' && began:
		s.skip('\n', 0)
	}
}

// in tells whether the innermost of what is open was opened with a byte.
func (s *shellScan) in(c byte) bool {
	return len(s.open) > 0 && s.open[len(s.open)-1] == c
}

func (s *shellScan) toggle(c byte) {
	if s.in(c) {
		s.open = s.open[:len(s.open)-1]
	} else {
		s.open = append(s.open, c)
	}
}

// escape goes past the byte behind a backslash. Where that is the last newline,
// or nothing, what is added to the file would go on with the line.
func (s *shellScan) escape() {
	s.word = true
	s.cut = s.cut || len(s.text)-s.at < 2 && strings.Trim(s.text[s.at:], "\n") == ""
	s.at = min(s.at+1, len(s.text))
}

// skip goes to a byte, and some bytes on. What has no end but that of the file
// is cut, but for a comment.
func (s *shellScan) skip(c byte, on int) {
	n := strings.IndexByte(s.text[s.at:], c)
	if n < 0 {
		s.at, s.cut = len(s.text), s.cut || on > 0
		return
	}
	s.at += n + on
}
