// Package progress tells how far something long has come: by a bar where
// standard error is a terminal, and else by a line of the log every ten seconds.
//
// Left out: several things at once, and how long it will still take.
package progress

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
)

const (
	lineEvery = 10 * time.Second
	barEvery  = 250 * time.Millisecond
	barWidth  = 30
)

// Watch tells of what, as in "writing image", how many bytes of how many are done,
// until stop is called, which is to be done once. A total of 0 is not known.
// state is called by another goroutine.
func Watch(what string, state func() (done, total size.Bytes)) (stop func()) {
	m := &meter{what: what, state: state, out: os.Stderr}
	every, show := lineEvery, m.line
	if isTerminal(os.Stderr) {
		every, show = barEvery, m.bar
	}
	return m.start(every, show)
}

// isTerminal tells whether somebody may be looking.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

type meter struct {
	what  string
	state func() (done, total size.Bytes)
	out   io.Writer // of the bar
	drawn bool
	last  size.Bytes
}

func (m *meter) start(every time.Duration, show func(since time.Duration)) (stop func()) {
	ending, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-ending:
				return
			case <-ticker.C:
				show(every)
			}
		}
	}()
	return func() {
		close(ending)
		<-ended
		if m.drawn {
			fmt.Fprint(m.out, "\x1b[K")
		}
	}
}

// speed is what was done since it was called last, in MiB/s.
func (m *meter) speed(now size.Bytes, since time.Duration) string {
	speed := float64(now-m.last) / float64(size.MiB) / since.Seconds()
	m.last = now
	return fmt.Sprintf("%.0f MiB/s", speed)
}

func (m *meter) line(since time.Duration) {
	now, total := m.state()
	done := now.String()
	if total > 0 {
		done = fmt.Sprintf("%d%%", percent(now, total))
	}
	slog.Info(m.what, "done", done, "speed", m.speed(now, since))
}

// percent stays below 100 while there is something to do: a total may be an
// estimate.
func percent(now, total size.Bytes) int {
	return int(min(max(float64(now)/float64(total), 0), 0.99) * 100)
}

// bar leaves the cursor where the line begins, so that a line of the log is
// written over it.
func (m *meter) bar(since time.Duration) {
	now, total := m.state()
	m.drawn = true
	if total == 0 {
		fmt.Fprintf(m.out, "%s: %v, %s\x1b[K\r", m.what, now, m.speed(now, since))
		return
	}
	percent := percent(now, total)
	full := barWidth * percent / 100
	fmt.Fprintf(m.out, "%s [%s%s] %2d%% %s\x1b[K\r", m.what, strings.Repeat("#", full), strings.Repeat(".", barWidth-full), percent, m.speed(now, since))
}

// Counter counts what goes through it to another writer.
type Counter struct {
	To io.Writer
	n  atomic.Int64
}

// Write writes, as io.Writer says.
func (c *Counter) Write(b []byte) (int, error) {
	n, err := c.To.Write(b)
	c.n.Add(int64(n))
	return n, err
}

// Count is how many bytes were written so far. Another goroutine may ask.
func (c *Counter) Count() size.Bytes { return size.Bytes(c.n.Load()) }
