// Package cli is the command line: it finds out under which name the program
// was called, prepares the process, and turns an error into the last line of
// the log and an exit code.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/mount"
	"ganeti-instance-image/internal/osscript"
	"ganeti-instance-image/internal/settings"
)

// Set by the Makefile.
var (
	Version    = "unreleased"
	Sysconf    = "/etc"
	Localstate = "/var"
)

// call is one call of the program.
type call struct {
	args   []string // without the name
	env    osscript.Env
	stdin  io.Reader
	stdout io.Writer
}

// program is a name the program can be called under.
type program struct {
	name   string
	what   string
	usage  string // what follows the name
	inside bool   // it mounts guests, in namespaces of its own
	run    func(context.Context, *call) error
}

// programs are all the names, in the order help lists them.
var programs = []program{
	{"create", "Deploy the image to the instance's first disk and customise the guest.", "", true, create},
	{"verify", "Check the OS parameters of an instance.", "parameters", false, verify},
	{"import", "Fill a disk from a backup on standard input.", "", true, importDisk},
	{"export", "Write a backup of a disk to standard output.", "", true, export},
	{"rename", "Give the guest the instance's new name.", "", true, rename},
	{"hook", "Run one of this program's hooks on a mounted guest.", "NAME", false, runHook},
	{"ganeti-image", "Manage hooks and images on this node.", "COMMAND ...", false, ganetiImage},
	{"mount-disks", "Mount the file systems of a stopped instance on its node, until umount-disks (on the master).", "[--read-only] INSTANCE", false, asCommand("mount")},
	{"umount-disks", "Unmount what mount-disks mounted, and detach the disks (on the master).", "[--here] INSTANCE", false, asCommand("umount")},
	{"on-node", "Do what ganeti-image on the master asks of this node; Ganeti's variables are on standard input.", "deploy IMAGE DISK | seed DISK | capture ORDER", true, onNode},
	{"on-node-mount", "Do the same where it is to stay when this process ends.", "mount rw | mount ro | umount", false, onNodeMount},
	{"version", "Print the version.", "", false, version},
}

// Run runs the program that args[0] names, or else args[1], and returns the
// exit code.
func Run(args []string) int {
	p, rest, err := choose(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, oneLine(err.Error()))
		return int(osscript.Input)
	}
	if p == nil || slices.ContainsFunc(rest, isHelp) && p.name != "ganeti-image" {
		printHelp(os.Stdout, p)
		return 0
	}
	prepareProcess()
	if p.inside && !mount.Inside() {
		code, err := mount.RunInside(osscript.SizeVariable)
		if err != nil && p.name == "import" {
			_, _ = io.Copy(io.Discard, os.Stdin) // as import itself does
		}
		if err != nil {
			return report(p.name, err, nil)
		}
		return code
	}
	return work(p, args[0], rest, os.Environ())
}

// work runs the program in this process.
func work(p *program, arg0 string, args, environ []string) (code int) {
	defer func() {
		if r := recover(); r != nil {
			slog.Debug(string(debug.Stack()))
			code = report(p.name, fmt.Errorf("defect in this program, please report it (IMAGE_DEBUG=yes says more): %v", r), nil)
		}
	}()
	level := new(slog.LevelVar)
	if debugging(environ) {
		level.Set(slog.LevelDebug)
	}
	slog.SetDefault(slog.New(newLineHandler(os.Stderr, level)))
	ctx, stop := signalContext()
	defer stop()
	err := p.start(ctx, &call{args, scriptEnv(arg0, environ, level), os.Stdin, os.Stdout})
	return report(p.name, err, context.Cause(ctx))
}

// start runs the program, once its mount namespace, if it has one, is ready.
func (p *program) start(ctx context.Context, c *call) error {
	if p.inside {
		if err := mount.Prepare(); err != nil {
			return err
		}
	}
	return p.run(ctx, c)
}

// choose finds the program and its arguments; nil asks for the list of all.
func choose(args []string) (*program, []string, error) {
	if p := find(filepath.Base(args[0])); p != nil {
		return p, args[1:], nil
	}
	if len(args) < 2 || isHelp(args[1]) {
		return nil, nil, nil
	}
	if p := find(args[1]); p != nil {
		return p, args[2:], nil
	}
	return nil, nil, fmt.Errorf("cannot do %q: see %s --help for what can be done", args[1], filepath.Base(args[0]))
}

func find(name string) *program {
	for i := range programs {
		if programs[i].name == name {
			return &programs[i]
		}
	}
	return nil
}

func isHelp(arg string) bool { return arg == "--help" || arg == "-h" }

func debugging(environ []string) bool {
	for _, entry := range environ {
		switch name, value, _ := strings.Cut(entry, "="); name {
		case "DEBUG_LEVEL":
			if value != "" && value != "0" {
				return true
			}
		case "IMAGE_DEBUG":
			if value == "1" || value == "yes" {
				return true
			}
		}
	}
	return false
}

// prepareProcess makes the process independent of who started it: Ganeti's
// umask differs from script to script, and a descriptor of its daemon that
// leaked into a program we start would keep a transfer from ending.
func prepareProcess() {
	unix.Umask(0o022)
	open, _ := os.ReadDir("/proc/self/fd")
	for _, entry := range open {
		if fd, err := strconv.Atoi(entry.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// signalContext returns a context that ends, with the signal as its cause, when
// somebody wants the process to stop.
func signalContext() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // the write that met it says what it was
	go func() {
		for s := range signals {
			cancel(interruption{s})
		}
	}()
	return ctx, func() { signal.Stop(signals) }
}

// interruption is the cause of a context that a signal ended.
type interruption struct{ signal os.Signal }

func (i interruption) Error() string { return "interrupted by signal: " + i.signal.String() }

// scriptEnv is what the program was started in. The OS definition is the
// directory Ganeti starts its scripts in, or else the one the script is in.
func scriptEnv(arg0 string, environ []string, level *slog.LevelVar) osscript.Env {
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	if _, err := os.Stat(filepath.Join(dir, "ganeti_api_version")); err != nil && strings.Contains(arg0, "/") {
		dir = filepath.Dir(arg0)
	}
	return osscript.Env{Site: settings.Site{Sysconf: Sysconf, Localstate: Localstate}, OSDir: dir, Environ: environ, LogLevel: level}
}

// report prints the cause, the last line of the log, and returns the exit code.
// What failed besides, as taking a step back, comes before it.
func report(name string, err, interrupted error) int {
	if err == nil {
		return 0
	}
	code := osscript.ClassOf(err)
	if cause := (interruption{}); errors.As(interrupted, &cause) {
		code = osscript.Interrupted
	}
	all := flatten(err)
	for _, other := range all[1:] {
		fmt.Fprintln(os.Stderr, oneLine(name+": besides: "+other.Error()))
	}
	fmt.Fprintln(os.Stderr, oneLine(name+": "+all[0].Error()))
	return int(code)
}

// flatten takes joined errors apart.
func flatten(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || reflect.TypeOf(err) != reflect.TypeOf(errors.Join(err)) {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, flatten(e)...)
	}
	return all
}

func create(ctx context.Context, c *call) error { return osscript.Create(ctx, c.env) }

func onNode(ctx context.Context, c *call) error {
	run, err := onNodeCommand(c.args)
	if err != nil {
		return osscript.WithClass(osscript.Input, err)
	}
	return c.forMaster(ctx, func(ctx context.Context) error {
		if err := osscript.NotMounted(c.instance()); err != nil {
			return errors.Join(err, osscript.Answer{Held: true}.Print(c.stdout))
		}
		return sayHeld(c.stdout, run(ctx, c.env))
	})
}

// sayHeld tells the master not to detach disks that somebody else uses.
func sayHeld(out io.Writer, err error) error {
	if !errors.Is(err, block.ErrInUse) {
		return err
	}
	return errors.Join(err, osscript.Answer{Held: true}.Print(out))
}

// forMaster reads Ganeti's variables from standard input and runs what the master
// asks for. It is told to stop when the master is not there any more.
func (c *call) forMaster(ctx context.Context, run func(context.Context) error) (err error) {
	if c.env.Environ, err = osscript.ReadEnviron(c.stdin); err != nil {
		return osscript.WithClass(osscript.Input, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		_, _ = io.Copy(io.Discard, c.stdin)
		cancel(errMasterGone)
	}()
	err = run(ctx)
	if err != nil && errors.Is(context.Cause(ctx), errMasterGone) {
		return osscript.Interrupt(err)
	}
	return err
}

// instance is the instance that Ganeti's variables name.
func (c *call) instance() string {
	for _, entry := range c.env.Environ {
		if name, found := strings.CutPrefix(entry, "INSTANCE_NAME="); found {
			return name
		}
	}
	return ""
}

// onNodeMount has no mount namespace of its own: what it mounts is for others to
// see, and stays.
func onNodeMount(ctx context.Context, c *call) error {
	words := strings.Join(c.args, " ")
	if !slices.Contains([]string{"mount rw", "mount ro", "umount"}, words) {
		return osscript.WithClass(osscript.Input, errors.New("cannot do that: want mount rw, mount ro, or umount"))
	}
	return c.forMaster(ctx, func(ctx context.Context) (err error) {
		var answer osscript.Answer
		if words == "umount" {
			answer, err = osscript.UmountDisks(c.instance())
		} else {
			answer, err = osscript.MountDisks(ctx, c.env, words == "mount ro")
		}
		return errors.Join(err, answer.Print(c.stdout))
	})
}

// asCommand runs a command of ganeti-image that is a program of its own name too.
func asCommand(command string) func(context.Context, *call) error {
	return func(ctx context.Context, c *call) error {
		c.args = append([]string{command}, c.args...)
		return ganetiImage(ctx, c)
	}
}

var errMasterGone = errors.New("the command on the master has ended")

func onNodeCommand(args []string) (func(context.Context, osscript.Env) error, error) {
	if len(args) == 2 && args[0] == "capture" {
		return captureOnNode(args[1])
	}
	disk, err := 0, errors.New("no arguments")
	if len(args) > 0 {
		disk, err = strconv.Atoi(args[len(args)-1])
	}
	switch {
	case err == nil && args[0] == "deploy" && len(args) == 3 && disk >= 0:
		return func(ctx context.Context, env osscript.Env) error {
			return osscript.Deploy(ctx, env, osscript.Order{Image: args[1], Disk: disk})
		}, nil
	case err == nil && args[0] == "seed" && len(args) == 2 && disk >= osscript.AnyDisk:
		return func(ctx context.Context, env osscript.Env) error { return osscript.WriteSeed(ctx, env, disk) }, nil
	}
	return nil, errors.New("cannot do that: want deploy IMAGE DISK, seed DISK, or capture ORDER")
}

func verify(ctx context.Context, c *call) error {
	return osscript.Verify(ctx, c.env, c.args)
}

func importDisk(ctx context.Context, c *call) error { return osscript.Import(ctx, c.env, c.stdin) }

func export(ctx context.Context, c *call) error { return osscript.Export(ctx, c.env, c.stdout) }

func rename(ctx context.Context, c *call) error { return osscript.Rename(ctx, c.env) }

func runHook(ctx context.Context, c *call) error {
	if len(c.args) == 0 {
		return errors.New("cannot run a hook: want its name")
	}
	return osscript.RunHook(ctx, c.args[0], c.env.Environ)
}

func version(_ context.Context, c *call) error {
	_, err := fmt.Fprintln(c.stdout, "ganeti-instance-image "+Version)
	return err
}
