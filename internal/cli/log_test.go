package cli

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

func TestLineHandler(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(newLineHandler(&out, slog.LevelInfo))
	log.Info("wrote the image", "size", 5, "error", nil, "subvolume", "")
	log.Warn("name is ümlaut")
	log.With("disk", 0).Error("first\nsecond")
	log.Debug("not seen")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	want := []string{"wrote the image size=5", `warning: name is \u00fcmlaut`, "error: first; second disk=0"}
	if len(lines) != len(want) {
		t.Fatalf("got %q", lines)
	}
	for i := range want {
		if got := lines[i][len("15:04:05 "):]; got != want[i] {
			t.Errorf("line %d = %q, want %q", i, got, want[i])
		}
	}
}

func TestOneLine(t *testing.T) {
	joined := errors.Join(errors.New("a"), errors.New("b\x1b[0m\x00")).Error()
	if got := oneLine(joined); got != `a; b\x1b[0m\x00` {
		t.Errorf("got %q", got)
	}
}
