package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"sync"
)

// Console is a guest's serial port: everything it printed, kept in a file too.
type Console struct {
	Log string // path of the file

	mu     sync.Mutex
	text   []byte
	seen   int           // how much of text earlier waits have passed over
	ended  bool          // nothing more will come
	change chan struct{} // closed at the next change
}

// hopeless matches what a guest prints that will never come up.
var hopeless = regexp.MustCompile(`Kernel panic|grub rescue>|You are in emergency mode|Boot failed: not a bootable disk|No bootable device|BdsDxe: No bootable option|UEFI Interactive Shell`)

// newConsole reads from r until its end, in the background, and closes it.
func newConsole(r io.ReadCloser, log string) (*Console, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot keep the serial log: %w", err), r.Close())
	}
	c := &Console{Log: log, change: make(chan struct{})}
	go func() {
		defer f.Close()
		defer r.Close()
		_, _ = io.Copy(io.MultiWriter(c, f), r) // a console that breaks off has ended
		c.end()
	}()
	return c, nil
}

// Write adds what the guest printed.
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(c.text, p...)
	c.changed()
	return len(p), nil
}

func (c *Console) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.changed()
}

func (c *Console) changed() {
	close(c.change)
	c.change = make(chan struct{})
}

// Text returns everything printed so far.
func (c *Console) Text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text)
}

// Wait waits until the guest has printed something that the pattern matches,
// and returns the match with its groups. The next Wait looks behind it. It
// fails at once where the guest prints that it cannot boot, or is gone.
func (c *Console) Wait(ctx context.Context, pattern string) ([]string, error) {
	want, err := regexp.Compile(pattern)
	if err != nil {
		return nil, err
	}
	for {
		found, change, err := c.look(want)
		if found != nil || err != nil {
			return found, err
		}
		select {
		case <-change:
		case <-ctx.Done():
			return nil, c.failed("cannot wait longer for", pattern, context.Cause(ctx))
		}
	}
}

// look tries the pattern once, and returns what to wait for if it is not there.
func (c *Console) look(want *regexp.Regexp) ([]string, <-chan struct{}, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rest := c.text[c.seen:]
	if at := want.FindSubmatchIndex(rest); at != nil {
		var groups []string
		for _, group := range want.FindSubmatch(rest) {
			groups = append(groups, string(group))
		}
		c.seen += at[1]
		return groups, nil, nil
	}
	if sign := hopeless.Find(rest); sign != nil {
		return nil, nil, fmt.Errorf("the guest says %q instead of %q:\n%s", sign, want, last(c.text))
	}
	if c.ended {
		return nil, nil, fmt.Errorf("the guest ended without printing %q:\n%s", want, last(c.text))
	}
	return nil, c.change, nil
}

func (c *Console) failed(what, pattern string, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Errorf("%s %q on the serial port (%s): %w; it ends with:\n%s", what, pattern, c.Log, err, last(c.text))
}

// last is the end of a log, as far as it fits an error.
func last(text []byte) []byte {
	const limit = 2 << 10
	text = bytes.ReplaceAll(text, []byte("\r"), nil)
	return text[max(0, len(text)-limit):]
}
