package guest

import (
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
)

// passwords of the lengths at which sha512crypt takes other ways.
func passwords() []string {
	list := []string{"password", "a b:c'd\"e\\", "pässwörd", "$1 `x` %n"}
	for _, n := range []int{1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256} {
		list = append(list, strings.Repeat("xyz0", 64)[:n])
	}
	return list
}

func TestHashIsOpenSSLs(t *testing.T) {
	need.Tools(t, "openssl")
	for _, password := range passwords() {
		for _, salt := range []string{"a", "./ABCDEFGHIJKLxy"} {
			ours := sha512crypt(password, salt, 5001)
			theirs, err := run.Cmd{What: "hash", Argv: []string{"openssl", "passwd", "-6", "-salt", "rounds=5001$" + salt, "-stdin"}, Stdin: strings.NewReader(password)}.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimSpace(string(theirs.Stdout)); got != ours {
				t.Errorf("%q: %s, openssl has %s", password, ours, got)
			}
		}
	}
}

// TestHashLetsIn has crypt(3) check the hashes as a login would.
func TestHashLetsIn(t *testing.T) {
	need.Tools(t, "perl")
	seen := map[string]bool{}
	for _, password := range append(passwords()[:4], strings.Repeat("x", maxPassword)) {
		hash, err := Hash(password)
		if err != nil || seen[hash] || strings.Contains(hash, password) && len(password) > 3 {
			t.Fatalf("%q: %q, %v", password, hash, err)
		}
		seen[hash] = true
		judged, err := run.Cmd{What: "log in", Argv: []string{"perl", "-e", `print crypt($ARGV[0], $ARGV[1])`, password, hash}}.Run(t.Context())
		if err != nil || string(judged.Stdout) != hash {
			t.Errorf("%q: %s, crypt(3) has %s, %v", password, hash, judged.Stdout, err)
		}
	}
}

func TestHashRefuses(t *testing.T) {
	for _, password := range []string{"", "s3cret\n", "s3cret\x00", "s3cret\r", strings.Repeat("s3cret", 43)} {
		if hash, err := Hash(password); err == nil || hash != "" || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %q, %v", password, hash, err)
		}
	}
}
