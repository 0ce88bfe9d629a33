package progress

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"ganeti-instance-image/internal/size"
)

func TestLine(t *testing.T) {
	var log bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(before)
	for _, c := range []struct {
		total, done size.Bytes
		want        string
	}{
		{0, 20 * size.MiB, `msg="copying the disk" done="20 MiB" speed="2 MiB/s"`},
		{40 * size.MiB, 20 * size.MiB, `done=50% speed="2 MiB/s"`},
		{10 * size.MiB, 20 * size.MiB, "done=99%"},
		{10 * size.MiB, 0, "done=0%"},
	} {
		log.Reset()
		m := &meter{what: "copying the disk", state: func() (size.Bytes, size.Bytes) { return c.done, c.total }}
		m.line(10 * time.Second)
		if !strings.Contains(log.String(), c.want) {
			t.Errorf("%v of %v: %s", c.done, c.total, log.String())
		}
	}
}

func TestBar(t *testing.T) {
	var out bytes.Buffer
	m := &meter{what: "copying", state: func() (size.Bytes, size.Bytes) { return 5 * size.MiB, 10 * size.MiB }, out: &out}
	stop := m.start(time.Millisecond, m.bar)
	time.Sleep(50 * time.Millisecond)
	stop()
	bar := strings.Repeat("#", 15) + strings.Repeat(".", 15)
	if first := strings.SplitAfter(out.String(), "\r")[0]; !strings.HasPrefix(first, "copying ["+bar+"] 50% ") {
		t.Errorf("got %q", first)
	}
	if !strings.HasSuffix(out.String(), "\r\x1b[K") {
		t.Errorf("the bar is left: %q", out.String())
	}
}

func TestIsTerminal(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if isTerminal(f) {
		t.Error("a file is taken for a terminal")
	}
}
