package hook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// grace is how long a hook that is asked to stop has before it is killed; a
// variable for the sake of tests.
var grace = 5 * time.Second

// Runner runs hooks. While it does, this process must start nothing else: each
// program it started that is there when a hook has ended counts as the hook's.
type Runner struct {
	Environ []string
	Dir     string        // where hooks start
	Timeout time.Duration // what each hook may take; 0 means any time
	// Target is where the guest is mounted; "" where it is not.
	Target string
	// Alone: this process has a mount namespace of its own, so that what is
	// mounted anew there is a hook's, and is unmounted.
	Alone bool
}

// Run runs the hooks one after another, their output going to our standard
// error and their input being empty. As run-parts does it runs every hook even
// if an earlier one failed; the error then names each that failed. Only a
// cancelled ctx ends it early.
//
// A hook that ctx or Timeout ends gets SIGTERM, with all it started, and SIGKILL
// after five seconds. What any hook leaves running or mounted is named in the
// log, ended and unmounted before the next one starts.
func (r Runner) Run(ctx context.Context, hooks []Hook) error {
	var failed []error
	for _, h := range hooks {
		if err := r.runOne(ctx, h); err != nil {
			failed = append(failed, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(failed...)
}

// errTimeout is the cause of a context that Timeout ended.
var errTimeout = errors.New("HOOK_TIMEOUT")

func (r Runner) runOne(ctx context.Context, h Hook) error {
	before, err := r.look()
	if err != nil {
		return fmt.Errorf("cannot run the hook %s: %w", h.Path, err)
	}
	defer before.proc.Close()
	start := time.Now()
	limited, cancel := r.limit(ctx)
	defer cancel()
	err = r.start(limited, h, before)
	took := time.Since(start).Round(time.Millisecond)
	ended := limited.Err() != nil
	left := r.release(h, before, ended)
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("cannot finish the hook %s: %w", h.Path, context.Cause(ctx))
	case ended && err != nil:
		err = fmt.Errorf("the hook %s was ended after %.0f s (HOOK_TIMEOUT)", h.Path, r.Timeout.Seconds())
	case errors.Is(err, syscall.ENOEXEC):
		err = fmt.Errorf("cannot run the hook %s: it has no #! line: %w", h.Path, err)
	case err != nil:
		err = fmt.Errorf("the hook %s failed: %w", h.Path, err)
	default:
		slog.Info("hook done", "hook", h.Name, "took", took)
	}
	return errors.Join(err, left)
}

func (r Runner) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if r.Timeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, r.Timeout, errTimeout)
}

// start runs the hook to its end, or to that of ctx.
func (r Runner) start(ctx context.Context, h Hook, before snapshot) error {
	cmd := exec.CommandContext(ctx, h.Path, h.Args...)
	cmd.Dir, cmd.Env = r.Dir, r.Environ
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's ^C is ours to hand on
	cmd.Cancel = func() error {
		for _, p := range before.started() {
			_ = syscall.Kill(p.pid, syscall.SIGTERM)
		}
		return nil
	}
	cmd.WaitDelay = grace
	return cmd.Run()
}

// release ends and unmounts what a hook left. What could not be is an error: it
// keeps the guest's file systems busy.
func (r Runner) release(h Hook, before snapshot, ended bool) error {
	left, err := before.endProcesses(ended)
	if len(left) > 0 {
		slog.Warn("a hook left programs running; they were ended", "hook", h.Name, "programs", strings.Join(left, ", "))
	}
	if err != nil {
		return fmt.Errorf("cannot end what the hook %s started: %w", h.Path, err)
	}
	if !r.Alone {
		return nil
	}
	mounts, err := before.unmount(r.Target)
	if len(mounts) > 0 {
		slog.Warn("a hook left file systems mounted; they were unmounted", "hook", h.Name, "where", strings.Join(mounts, " "))
	}
	if err != nil {
		return fmt.Errorf("cannot unmount what the hook %s mounted: %w", h.Path, err)
	}
	return nil
}
