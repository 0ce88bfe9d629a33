// Package need states what a test needs of the machine it runs on. A test
// whose need is not met is skipped with the reason; where CI=true it fails,
// since there nothing may go untested without anyone noticing. It also makes what
// several packages' tests need alike.
package need

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/run"
)

// Root wants the test to run as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		missing(t, "needs root")
	}
}

// Tools wants programs that are installed where Ganeti's scripts look.
func Tools(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := run.Find(name); err != nil {
			missing(t, "needs "+name)
		}
	}
}

// File wants a file of the machine, as /dev/loop-control.
func File(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		missing(t, "needs "+path)
	}
}

// Mounted returns a directory with an empty file system of the kind, and of the
// length as truncate(1) takes it, for the time of the test.
func Mounted(t testing.TB, kind, length string) string {
	t.Helper()
	Root(t)
	Tools(t, "mkfs."+kind, "mount", "umount")
	File(t, "/dev/loop-control")
	dir := t.TempDir()
	image, target := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	for _, argv := range [][]string{
		{"truncate", "-s", length, image}, {"mkfs." + kind, image}, {"mkdir", target}, {"mount", "-o", "loop", image, target},
	} {
		must(t, argv)
	}
	t.Cleanup(func() { must(t, []string{"umount", target}) })
	return target
}

func must(t testing.TB, argv []string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
}

// That wants something which the test itself finds out.
func That(t testing.TB, ok bool, what string) {
	t.Helper()
	if !ok {
		missing(t, "needs "+what)
	}
}

// Machine wants to be allowed to change the machine it runs on: to install
// packages, make a Ganeti cluster, boot guests. TEST_MACHINE=yes allows it.
func Machine(t testing.TB) {
	t.Helper()
	Root(t)
	if os.Getenv("TEST_MACHINE") != "yes" {
		missing(t, "changes this machine: set TEST_MACHINE=yes to allow it")
	}
}

func missing(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why + ", and under CI nothing is skipped")
	}
	t.Skip(why)
}
