// Package test holds the tests of the installed program: a disk before, what
// Ganeti says, the disk after. Disks and images are real, and so are the tools
// that judge them.
package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ganeti-instance-image/internal/need"
)

// site is an installation below a directory of the test run's own, made by
// "make install"; the program there was built for its configuration files.
type site struct {
	dir   string
	osDir string // the OS definition
}

var installed *site // nil where the tests do not run as root

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if os.Getuid() != 0 {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "ii-")
	if err == nil {
		defer os.RemoveAll(dir)
		installed, err = install(dir)
	}
	if err == nil {
		err = ownTemp(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// ownTemp has the tests make their files below dir: attached tells them from
// those of the packages' tests, which "go test ./..." runs at the same time.
func ownTemp(dir string) error {
	tmp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	return os.Setenv("TMPDIR", tmp)
}

// install makes an installation below dir.
func install(dir string) (*site, error) {
	out, err := exec.Command("make", "-C", "..", "install", "BUILD="+dir+"/build",
		"prefix="+dir+"/usr", "sysconfdir="+dir+"/etc", "localstatedir="+dir+"/var").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("cannot install: %w\n%s", err, out)
	}
	return &site{dir: dir, osDir: filepath.Join(dir, "usr/share/ganeti/os/image")}, nil
}

// newSite returns the installation with settings and no hook enabled, and has
// it made as it was when the test ends.
func newSite(t *testing.T, defaults string) *site {
	t.Helper()
	need.Root(t)
	s := installed
	path := s.conf("../../default/ganeti-instance-image")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, path, defaults, 0o644)
	t.Cleanup(func() {
		s.write(t, path, string(before), 0o644)
		s.disableHooks(t)
	})
	return s
}

// conf is a path below the site's configuration directory.
func (s *site) conf(name string) string {
	return filepath.Join(s.dir, "etc/ganeti/instance-image", name)
}

func (s *site) write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// hook adds a hook of the site's own for the time of the test.
func (s *site) hook(t *testing.T, name, script string) {
	t.Helper()
	path := s.conf("hooks/" + name)
	s.write(t, path, script, 0o755)
	t.Cleanup(func() { os.Remove(path) })
}

func (s *site) enable(t *testing.T, hooks ...string) { s.switchHooks(t, "enable", hooks) }

func (s *site) disable(t *testing.T, hooks ...string) { s.switchHooks(t, "disable", hooks) }

func (s *site) switchHooks(t *testing.T, how string, hooks []string) {
	t.Helper()
	out, err := exec.Command(filepath.Join(s.dir, "usr/sbin/ganeti-image"), append([]string{"hooks", how}, hooks...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("cannot %s hooks: %v\n%s", how, err, out)
	}
}

func (s *site) disableHooks(t *testing.T) {
	entries, err := os.ReadDir(s.conf("hooks"))
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		if err := os.Chmod(s.conf("hooks/"+e.Name()), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// env is what Ganeti sets; nil values are left out.
type env map[string]string

// instance is the environment of an instance with one disk and one NIC.
func instance(disk string) env {
	return env{
		"OS_API_VERSION": "20", "OS_NAME": "image", "OS_VARIANT": "default", "DEBUG_LEVEL": "0",
		"PATH":          "/sbin:/bin:/usr/sbin:/usr/bin",
		"INSTANCE_NAME": "web.example.org", "INSTANCE_OS": "image+default",
		"INSTANCE_UUID": "5b7bd4d2-3fa1-4d5d-b2ff-e5a7a1d6a7cc", "INSTANCE_BE_maxmem": "512",
		"HYPERVISOR": "kvm", "INSTANCE_HV_kernel_path": "", "INSTANCE_HV_serial_console": "True",
		"DISK_COUNT": "1", "DISK_0_PATH": disk, "DISK_0_ACCESS": "rw", "DISK_0_SIZE": "1024",
		"NIC_COUNT": "1", "NIC_0_MAC": "aa:00:00:12:34:56", "NIC_0_MODE": "bridged", "NIC_0_LINK": "br0",
	}
}

// with returns a copy of e with more variables.
func (e env) with(more env) env {
	e = maps.Clone(e)
	maps.Copy(e, more)
	return e
}

func (e env) list() []string {
	var list []string
	for name, value := range e {
		list = append(list, name+"="+value)
	}
	slices.Sort(list)
	return list
}

// outcome is what a script left: its exit code and its log.
type outcome struct {
	code int
	log  string
}

func (o outcome) last() string {
	lines := strings.Split(strings.TrimSpace(o.log), "\n")
	return lines[len(lines)-1]
}

// command is a script of the OS definition as Ganeti starts it.
func (s *site) command(script string, e env, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.osDir, script), args...)
	cmd.Dir, cmd.Env = s.osDir, e.list()
	return cmd
}

func (s *site) run(t *testing.T, script string, e env, args ...string) outcome {
	t.Helper()
	return finish(t, s.command(script, e, args...))
}

func finish(t *testing.T, cmd *exec.Cmd) outcome {
	t.Helper()
	var log bytes.Buffer
	cmd.Stderr = &log
	if cmd.Stdout == nil {
		cmd.Stdout = &log
	}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return outcome{cmd.ProcessState.ExitCode(), log.String()}
}

// transfer is export or import as Ganeti's daemon runs them: by a shell, in the
// OS definition's directory, with the umask 077, in a process group of its own. A
// program in through, as strace(1), starts the script.
func (s *site) transfer(script string, e env, through ...string) *exec.Cmd {
	argv := append([]string{"-c", `umask 077; cd "$1"; shift; exec "$@"`, "-", s.osDir}, append(through, "./"+script)...)
	cmd := exec.Command("bash", argv...)
	cmd.Env = append(e.list(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// exporting is the environment of an export of a disk, importing of an import.
func exporting(disk string) env {
	return instance(disk).with(env{"EXPORT_DEVICE": disk, "EXPORT_DISK_PATH": disk, "EXPORT_INDEX": "0"})
}

func importing(disk string) env {
	return instance(disk).with(env{"IMPORT_DEVICE": disk, "IMPORT_DISK_PATH": disk, "IMPORT_INDEX": "0"})
}

// backup is what an export wrote.
type backup struct {
	path     string
	length   int64
	expected string // what it wrote to EXP_SIZE_FD
	log      string
}

// sizeFD is one above 9, as those of Ganeti are.
const sizeFD = 11

// export exports a disk to a file, and wants that to succeed.
func (s *site) export(t *testing.T, e env) backup {
	t.Helper()
	before := attached(t)
	b, o := s.exportTo(t, s.transfer("export", e), filepath.Join(t.TempDir(), "backup"))
	if o.code != 0 {
		t.Fatalf("export ended with %d:\n%s", o.code, o.log)
	}
	if after := attached(t); after != before {
		t.Fatalf("export left something attached:\n%s\nlog:\n%s", after, o.log)
	}
	return b
}

// exportTo runs an export that may fail, with EXP_SIZE_FD.
func (s *site) exportTo(t *testing.T, cmd *exec.Cmd, path string) (backup, outcome) {
	t.Helper()
	out, err1 := os.Create(path)
	told, telling, err2 := os.Pipe()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	defer told.Close()
	cmd.Env = append(cmd.Env, fmt.Sprint("EXP_SIZE_FD=", sizeFD))
	cmd.ExtraFiles = make([]*os.File, sizeFD-2)
	cmd.ExtraFiles[sizeFD-3] = telling
	cmd.Stdout = out
	o := finish(t, cmd)
	telling.Close()
	_ = told.SetReadDeadline(time.Now().Add(10 * time.Second)) // somebody may have been left who holds it
	expected, err1 := io.ReadAll(told)
	info, err2 := out.Stat()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return backup{path, info.Size(), string(expected), o.log}, o
}

// importFrom imports a stream, and wants that to read all of it.
func (s *site) importFrom(t *testing.T, e env, stream io.Reader, length int64) outcome {
	t.Helper()
	before := attached(t)
	cmd, counted := s.transfer("import", e), &counter{from: stream}
	cmd.Stdin = counted
	o := finish(t, cmd)
	if counted.n != length {
		t.Errorf("import ended with %d and read %d bytes of %d:\n%s", o.code, counted.n, length, o.log)
	}
	if after := attached(t); after != before {
		t.Errorf("import left something attached:\n%s\nlog:\n%s", after, o.log)
	}
	return o
}

// importFile imports a file, and wants that to succeed.
func (s *site) importFile(t *testing.T, e env, path string) string {
	t.Helper()
	o := s.tryImport(t, e, path)
	if o.code != 0 {
		t.Fatalf("import ended with %d:\n%s", o.code, o.log)
	}
	return o.log
}

func (s *site) tryImport(t *testing.T, e env, path string) outcome {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return s.importFrom(t, e, f, info.Size())
}

// counter counts what was read through it.
type counter struct {
	from io.Reader
	n    int64
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.from.Read(b)
	c.n += int64(n)
	return n, err
}

// create runs create and wants it to succeed.
func (s *site) create(t *testing.T, e env) string {
	t.Helper()
	return s.succeed(t, "create", e)
}

// succeed runs a script, and wants it to succeed and to leave nothing attached.
func (s *site) succeed(t *testing.T, script string, e env) string {
	t.Helper()
	before := attached(t)
	o := s.run(t, script, e)
	if o.code != 0 {
		t.Fatalf("%s ended with %d:\n%s", script, o.code, o.log)
	}
	if after := attached(t); after != before {
		t.Fatalf("%s left something attached:\n%s\nlog:\n%s", script, after, o.log)
	}
	return o.log
}

// refuse runs create and wants it to fail with an exit code and a last line
// that holds all of the words.
func (s *site) refuse(t *testing.T, e env, code int, words ...string) outcome {
	t.Helper()
	before := attached(t)
	o := s.run(t, "create", e)
	checkRefusal(t, o, code, words...)
	if after := attached(t); after != before {
		t.Errorf("create left something attached:\n%s", after)
	}
	return o
}

func checkRefusal(t *testing.T, o outcome, code int, words ...string) {
	t.Helper()
	if o.code != code {
		t.Errorf("ended with %d, want %d:\n%s", o.code, code, o.log)
	}
	for _, word := range words {
		if !strings.Contains(o.last(), word) {
			t.Errorf("the last line does not say %q:\n%s", word, o.last())
		}
	}
	for _, r := range o.last() {
		if r > '~' || r < ' ' {
			t.Errorf("the last line is not printable ASCII: %q", o.last())
			break
		}
	}
}

// attached lists the loop devices over files of these tests, and the mounts of ours.
func attached(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE").Output()
	if err != nil {
		t.Fatal(err)
	}
	loops := ""
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, " "+os.TempDir()+"/") {
			loops += line
		}
	}
	// A test's own thread may be in a mount namespace of its own, and the process's
	// first thread may have been one.
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	ours := ""
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "ganeti-instance-image") {
			ours += line
		}
	}
	return loops + ours
}

// tool runs a program that judges or prepares, and wants it to succeed.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// shell runs a script that prepares something, with its arguments as $1, ...
func shell(t *testing.T, script string, args ...string) string {
	t.Helper()
	return tool(t, "bash", append([]string{"-euc", script, "-"}, args...)...)
}
