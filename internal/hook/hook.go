// Package hook runs the site's customisation hooks: the programs in
// CUSTOMIZE_DIR that are executable and whose names run-parts(8) would take,
// in its order.
//
// Left out: what the hooks this project brings do to a guest (that is package
// osscript), and hooks of the guest, which are never run.
package hook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// Hook is one program in a hook directory.
type Hook struct {
	Name    string
	Path    string
	Enabled bool // any execute bit is set: run-parts would run it
	Ours    bool // it only calls this program, with "hook NAME"
}

// names is run-parts(8)'s rule for names in its default mode.
var names = regexp.MustCompile(`^[a-zA-Z0-9_-]+$`)

// List returns the hooks of a directory in the order they run in, enabled or
// not. A directory that is not there holds no hooks. Other names than those
// run-parts(8) takes, and what is not a regular file, are left out; a link
// whose file is missing is an error, since a site meant it to run.
func List(dir string) ([]Hook, error) {
	entries, err := os.ReadDir(dir) // sorted by bytes, as run-parts sorts in the C locale
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the hook directory (CUSTOMIZE_DIR): %w", err)
	}
	var hooks []Hook
	for _, entry := range entries {
		if !names.MatchString(entry.Name()) {
			continue
		}
		path := filepath.Join(dir, entry.Name())
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("cannot use the hook %s: %w", path, err)
		}
		if info.Mode().IsRegular() {
			hooks = append(hooks, Hook{Name: entry.Name(), Path: path, Enabled: info.Mode()&0o111 != 0, Ours: isLauncher(path, entry.Name())})
		}
	}
	return hooks, nil
}

// Enabled returns those of the hooks that are enabled.
func Enabled(hooks []Hook) []Hook {
	var enabled []Hook
	for _, h := range hooks {
		if h.Enabled {
			enabled = append(enabled, h)
		}
	}
	return enabled
}

// launcherLimit is more than any launcher of ours needs, in bytes.
const launcherLimit = 8 << 10

// isLauncher tells whether the script at path does nothing but hand over to
// this program: besides comments it is the one line
//
//	exec .../instance-image hook NAME "$@"
func isLauncher(path, name string) bool {
	info, err := os.Stat(path)
	if err != nil || info.Size() > launcherLimit {
		return false
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	var commands []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			commands = append(commands, line)
		}
	}
	if len(commands) != 1 {
		return false
	}
	words := strings.Fields(commands[0])
	return len(words) == 5 && words[0] == "exec" && isThisProgram(words[1]) &&
		words[2] == "hook" && words[3] == name && words[4] == `"$@"`
}

func isThisProgram(path string) bool {
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return false
	}
	other, err := os.Stat(path)
	return err == nil && os.SameFile(self, other)
}

// grace is how long a hook that is asked to stop has before it is killed.
const grace = 5 * time.Second

// Run runs the hooks one after another with the environment environ, in the
// directory dir, their output going to our standard error. As run-parts does
// it runs every hook even if an earlier one failed; the error then names each
// that failed. Only a cancelled ctx ends it early: the running hook and all it
// started get SIGTERM, and SIGKILL after five seconds.
func Run(ctx context.Context, hooks []Hook, environ []string, dir string) error {
	var failed []error
	for _, h := range hooks {
		if err := h.run(ctx, environ, dir); err != nil {
			failed = append(failed, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(failed...)
}

func (h Hook) run(ctx context.Context, environ []string, dir string) error {
	start := time.Now()
	cmd := exec.CommandContext(ctx, h.Path)
	cmd.Dir, cmd.Env = dir, environ
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	// A group of its own, so that what a hook left in the background goes
	// too and cannot keep the guest's file system busy.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = grace
	err := cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("cannot finish the hook %s: %w", h.Path, context.Cause(ctx))
	case errors.Is(err, syscall.ENOEXEC):
		return fmt.Errorf("cannot run the hook %s: it has no #! line: %w", h.Path, err)
	case err != nil:
		return fmt.Errorf("the hook %s failed: %w", h.Path, err)
	}
	slog.Info("hook done", "hook", h.Name, "took", time.Since(start).Round(time.Millisecond))
	return nil
}

// SetEnabled switches a hook on or off by its mode, as administrators and
// configuration management do: 0755 or 0644.
func SetEnabled(h Hook, enabled bool) error {
	mode := os.FileMode(0o644)
	if enabled {
		mode = 0o755
	}
	if err := os.Chmod(h.Path, mode); err != nil {
		return fmt.Errorf("cannot switch the hook %s: %w", h.Name, err)
	}
	return nil
}
