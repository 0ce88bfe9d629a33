package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
)

// lineHandler writes a log record as one line of ASCII,
//
//	15:04:05 wrote the image bytes=2.2 GiB took=3.1s
//
// because what an operator sees of a failed script is the last 20 lines of the
// last 4096 bytes of it, opened as text at an arbitrary byte: a line that is
// short, and a character that cannot be cut in two.
type lineHandler struct {
	mu    *sync.Mutex
	out   io.Writer
	level slog.Leveler
	attrs string
}

func newLineHandler(out io.Writer, level slog.Leveler) *lineHandler {
	return &lineHandler{mu: new(sync.Mutex), out: out, level: level}
}

func (h *lineHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.level.Level()
}

func (h *lineHandler) Handle(_ context.Context, record slog.Record) error {
	var line bytes.Buffer
	line.WriteString(record.Time.Format("15:04:05 "))
	switch {
	case record.Level >= slog.LevelError:
		line.WriteString("error: ")
	case record.Level >= slog.LevelWarn:
		line.WriteString("warning: ")
	case record.Level < slog.LevelInfo:
		line.WriteString("debug: ")
	}
	line.WriteString(record.Message)
	line.WriteString(h.attrs)
	record.Attrs(func(a slog.Attr) bool {
		line.WriteString(attr(a))
		return true
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := io.WriteString(h.out, oneLine(line.String())+"\n")
	return err
}

func (h *lineHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *h
	for _, a := range attrs {
		with.attrs += attr(a)
	}
	return &with
}

// WithGroup ignores groups: a line has one level of names.
func (h *lineHandler) WithGroup(string) slog.Handler { return h }

func attr(a slog.Attr) string {
	value := a.Value.Resolve()
	if a.Equal(slog.Attr{}) || value.Any() == nil || value.String() == "" {
		return ""
	}
	return fmt.Sprintf(" %s=%v", a.Key, value)
}

// oneLine makes text one line of ASCII: line breaks become "; ", and what is
// not printable ASCII is written as Go would escape it.
func oneLine(text string) string {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	var line strings.Builder
	for _, r := range text {
		if r == '\t' {
			r = ' '
		}
		if r >= ' ' && r <= '~' {
			line.WriteRune(r)
			continue
		}
		line.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
	}
	return line.String()
}
