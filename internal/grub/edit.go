package grub

import (
	"cmp"
	"slices"
	"strings"
)

// edit replaces the bytes from start up to end of a text.
type edit struct {
	start, end int
	text       string
}

// applyEdits makes edits in a text, all else staying as it is. They are given
// by their places in the text as it was; one that overlaps an earlier one is
// left out.
func applyEdits(text string, edits []edit) string {
	slices.SortStableFunc(edits, func(a, b edit) int { return cmp.Or(a.start-b.start, a.end-b.end) })
	var out strings.Builder
	at := 0
	for _, e := range edits {
		if e.start < at || e.end < e.start {
			continue
		}
		out.WriteString(text[at:e.start])
		out.WriteString(e.text)
		at = e.end
	}
	out.WriteString(text[at:])
	return out.String()
}

// line is one line of a text, without its end.
type line struct {
	start, end int
	text       string
}

// lines cuts a text at newlines. A carriage return before one belongs to the
// line's end and is no part of its text.
func lines(text string) []line {
	var found []line
	at := 0
	for raw := range strings.Lines(text) {
		body := strings.TrimRight(raw, "\r\n")
		found = append(found, line{at, at + len(body), body})
		at += len(raw)
	}
	return found
}

// firstWord cuts a line into its indentation, its first word and where the rest
// begins in it.
func firstWord(text string) (word string, rest int) {
	const blanks = " \t\r" // as between arguments
	begin := len(text) - len(strings.TrimLeft(text, blanks))
	end := begin
	for end < len(text) && strings.IndexByte(blanks, text[end]) < 0 {
		end++
	}
	return text[begin:end], len(text) - len(strings.TrimLeft(text[end:], blanks))
}
