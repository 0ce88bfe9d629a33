// Package run starts one external program at a time: with a clean environment,
// a sentence that says what it is for, and all that it says kept for the error.
//
// Left out: pipelines, terminals and programs of the guest.
package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Path is where external programs are looked for; Ganeti hands its scripts the
// same directories.
const Path = "/usr/sbin:/usr/bin:/sbin:/bin"

const (
	stdoutLimit = 16 << 20 // bytes of standard output kept
	stderrLimit = 4 << 10  // bytes of standard error kept, the last ones
	saidLimit   = 800      // bytes of it in an error's text
)

// Cmd is one program to run.
type Cmd struct {
	What  string   // what it does, in an error's words: "check the ext4 filesystem on /dev/loop3"
	Argv  []string // program and arguments; the program is looked for in Path
	Stdin io.Reader
	// Stdout gets what the program prints there, which the result then does not
	// have, and no limit.
	Stdout io.Writer
	OK     []int // exit codes besides 0 that are no failure
}

// Result is what a finished program left.
type Result struct {
	Code   int // exit code: 0, or one of Cmd.OK
	Stdout []byte
	Stderr string // the last 4 KiB
}

// ErrNotFound is wrapped by the error for a program that is not installed.
var ErrNotFound = exec.ErrNotFound

// Error reports a program that ended badly, with what it printed.
type Error struct {
	What   string
	Argv   []string
	Stderr string
	Err    error // *exec.ExitError, or why it could not be started
}

func (e *Error) Error() string {
	text := fmt.Sprintf("cannot %s: %s: %v", e.What, strings.Join(e.Argv, " "), e.Err)
	// Ganeti shows the last 4096 bytes of a log; the rest must fit too.
	if said := strings.Join(strings.Fields(e.Stderr), " "); said != "" {
		text += ": " + said[max(0, len(said)-saidLimit):]
	}
	return text
}

func (e *Error) Unwrap() error { return e.Err }

// Find returns the full path of a program in Path.
func Find(name string) (string, error) {
	for dir := range strings.SplitSeq(Path, ":") {
		if path, err := exec.LookPath(dir + "/" + name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed on this node (looked in %s): %w", name, Path, ErrNotFound)
}

// Run runs the program to its end. When ctx is cancelled the program gets
// SIGTERM, and SIGKILL five seconds later. Any failure is an *Error.
func (c Cmd) Run(ctx context.Context) (Result, error) {
	path, err := Find(c.Argv[0])
	if err != nil {
		return Result{}, &Error{What: c.What, Argv: c.Argv, Err: err}
	}
	cmd := exec.CommandContext(ctx, path, c.Argv[1:]...)
	cmd.Env = []string{"PATH=" + Path, "LC_ALL=C", "HOME=/"}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	stdout, stderr := &head{limit: stdoutLimit}, &tail{limit: stderrLimit}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, stdout, stderr
	if c.Stdout != nil {
		cmd.Stdout = c.Stdout
	}

	start := time.Now()
	err = cmd.Run()
	slog.Debug("ran", "command", strings.Join(c.Argv, " "), "took", time.Since(start).Round(time.Millisecond), "error", err)
	result := Result{Stdout: stdout.kept, Stderr: stderr.String()}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && slices.Contains(c.OK, exit.ExitCode()) {
		result.Code, err = exit.ExitCode(), nil
	}
	if err == nil && stdout.full {
		err = fmt.Errorf("printed more than %d bytes", stdoutLimit)
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	if err != nil {
		return result, &Error{What: c.What, Argv: c.Argv, Stderr: result.Stderr, Err: err}
	}
	return result, nil
}

// head keeps the first limit bytes written to it.
type head struct {
	kept  []byte
	limit int
	full  bool
}

func (h *head) Write(p []byte) (int, error) {
	room := min(h.limit-len(h.kept), len(p))
	h.full = h.full || room < len(p)
	h.kept = append(h.kept, p[:room]...)
	return len(p), nil
}

// tail keeps the last limit bytes written to it.
type tail struct {
	kept  []byte
	limit int
}

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - t.limit; over > 0 {
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.kept) }
