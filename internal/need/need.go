// Package need states what a test needs of the machine it runs on. A test
// whose need is not met is skipped with the reason; where CI=true it fails,
// since there nothing may go untested without anyone noticing.
package need

import (
	"os"
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
