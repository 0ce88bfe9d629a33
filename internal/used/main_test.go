package used

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain gives the tests mounts of their own: another program that makes itself
// a mount namespace at the same time would take part in theirs, and a file system
// is not at rest before the last one lets it go.
func TestMain(m *testing.M) {
	const own, unshare = "USED_TEST_HAS_OWN_MOUNTS", "/usr/bin/unshare"
	if _, err := os.Stat(unshare); err == nil && os.Getuid() == 0 && os.Getenv(own) == "" {
		err := unix.Exec(unshare, append([]string{"unshare", "--mount", "--"}, os.Args...), append(os.Environ(), own+"=yes"))
		fmt.Fprintln(os.Stderr, "cannot have mounts apart:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}
