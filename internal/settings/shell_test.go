package settings

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
)

const script = `SHELL_SETTINGS=yes
if [ "$INSTANCE_NAME" = web.example.org ]; then IMAGE_NAME=$(echo debian-12); fi
cat
echo "to standard output"
MINE="it's
two lines"
IMAGE_FILE=
SWAP=no
local_only() { :; }
INSTANCE_NAME=other
`

func TestBashEvaluates(t *testing.T) {
	need.Root(t)
	need.Tools(t, "bash")
	s := newSite(t).with(script, "[ -z \"$ARCH\" ] && ARCH=\"$(echo \"$IMAGE_NAME\" | tr a-z A-Z)\"\nBOOT_SIZE=$((BOOT_SIZE << 1))\nSWAP=$SWAP\n")
	set := s.mustLoad(map[string]string{"overlay": "web"})
	for name, want := range map[string]string{
		"IMAGE_NAME": "debian-12", "MINE": "it's\ntwo lines", "SWAP": "no", "ARCH": "DEBIAN-12", "BOOT_SIZE": "1024", "OVERLAY": "web",
		"SHELL_SETTINGS": "yes", "local_only": "(not there)", "PWD": "(not there)", "INSTANCE_NAME": "(not there)",
	} {
		if got := set.text(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if got := set.Origin("SWAP").String(); got != s.defaults() {
		t.Errorf("SWAP is from %s", got)
	}
	warnings := strings.Join(set.Warnings(), "\n")
	for _, want := range []string{s.defaults() + " is evaluated by bash", s.variant("debian") + " is evaluated by bash", "INSTANCE_NAME at " + s.defaults() + " is left out"} {
		if !strings.Contains(warnings, want) {
			t.Errorf("no warning %q in:\n%s", want, warnings)
		}
	}
}

func TestBashOnlyWhereItIsNeeded(t *testing.T) {
	s := newSite(t).with("SHELL_SETTINGS=yes\nSWAP=no\n", "-")
	if set := s.mustLoad(nil); len(set.Warnings()) > 0 || set.Origin("SWAP").Line != 2 {
		t.Errorf("a plain file: %q, %v", set.Warnings(), set.Origin("SWAP"))
	}
	for _, defaults := range []string{"SHELL_SETTINGS=no\nX=$(id)", "X=$(echo SHELL_SETTINGS=yes)", "# SHELL_SETTINGS=yes\nX=$(id)", "if :; then SHELL_SETTINGS=yes; fi"} {
		s := newSite(t).with(defaults, "-")
		if _, err := s.load(nil); err == nil || !strings.Contains(err.Error(), s.defaults()+":") {
			t.Errorf("%q: %v", defaults, err)
		}
	}
	// A variant cannot allow it for itself.
	s = newSite(t).with("", "SHELL_SETTINGS=yes\nX=$(id)")
	if _, err := s.load(nil); err == nil || !strings.Contains(err.Error(), s.variant("debian")+":2: ") {
		t.Errorf("a variant: %v", err)
	}
}

func TestBashGetsNoFileThatOthersWrite(t *testing.T) {
	need.Root(t)
	cases := []struct {
		what   string
		change func(s site, path string) error
		ok     bool
	}{
		{"root's", func(site, string) error { return nil }, true},
		{"group may write", func(_ site, path string) error { return os.Chmod(path, 0o664) }, false},
		{"others may write", func(_ site, path string) error { return os.Chmod(path, 0o646) }, false},
		{"another's", func(_ site, path string) error { return os.Chown(path, 65534, 0) }, false},
		{"group root is no matter", func(_ site, path string) error { return os.Chown(path, 0, 65534) }, true},
		{"group may write the directory", func(_ site, path string) error { return os.Chmod(filepath.Dir(path), 0o775) }, false},
		{"others may write the directory", func(_ site, path string) error { return os.Chmod(filepath.Dir(path), 0o757|os.ModeSticky) }, false},
		{"another's directory", func(_ site, path string) error { return os.Chown(filepath.Dir(path), 65534, 0) }, false},
		{"a link to root's", func(s site, path string) error { return relink(path, filepath.Join(s.Localstate, "mine"), 0o755) }, true},
		{"a link into a directory of others", func(s site, path string) error { return relink(path, filepath.Join(s.Localstate, "theirs"), 0o777) }, false},
	}
	for _, c := range cases {
		for _, file := range []string{"defaults", "variant"} {
			s := newSite(t).with("SHELL_SETTINGS=yes", "SWAP=$(echo no)")
			path := s.variant("debian")
			if file == "defaults" {
				s.with("SHELL_SETTINGS=yes\nSWAP=$(echo no)", "")
				path = s.defaults()
			}
			if err := c.change(s, path); err != nil {
				t.Fatal(err)
			}
			set, err := s.load(nil)
			if c.ok && (err != nil || set.Swap) {
				t.Errorf("%s, %s: %v", c.what, file, err)
			}
			if !c.ok && (err == nil || !strings.Contains(err.Error(), "chown root") || !strings.Contains(err.Error(), path)) {
				t.Errorf("%s, %s: got %v", c.what, file, err)
			}
		}
	}
}

// relink moves a file into a new directory of that mode and leaves a link.
func relink(path, dir string, mode os.FileMode) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(dir, mode); err != nil {
		return err
	}
	moved := filepath.Join(dir, "moved")
	if err := os.Rename(path, moved); err != nil {
		return err
	}
	return os.Symlink(moved, path)
}

func TestBashFails(t *testing.T) {
	need.Root(t)
	need.Tools(t, "bash")
	cases := []struct{ text, want, hidden string }{
		{"X=$(false)\n", "exit status 1", ""},
		{"if true; then\n", "syntax error", ""},
		{"X=${MISSING:?is missing}; [ -n \"$X\" ]\n", "is missing", ""},
		{"$OSP_X; [ a = b ]\n", "is not shown", "parameter: command"},
		{"kill -9 $$; [ a = b ]\n", "killed", ""},
	}
	for _, c := range cases {
		s := newSite(t).with("SHELL_SETTINGS=yes\n"+c.text, "-")
		_, err := s.load(nil)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "have bash evaluate "+s.defaults()) {
			t.Errorf("%q: got %v, want %q", c.text, err, c.want)
		}
		if c.hidden != "" && err != nil && strings.Contains(err.Error(), c.hidden) {
			t.Errorf("%q: the message shows a parameter: %v", c.text, err)
		}
	}
	s := newSite(t).with("SHELL_SETTINGS=yes\nROOT_PASSWORD=s3cret", "$ROOT_PASSWORD; [ a = b ]\n")
	if _, err := s.load(nil); err == nil || !strings.Contains(err.Error(), "is not shown") || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("a secret setting: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := byBash(ctx, "/dev/null", nil); err == nil {
		t.Error("a cancelled context: no error")
	}
}

// TestEvaluate: files beside the settings, as those of networks, go by the
// same rule, in a hook's process too.
func TestEvaluate(t *testing.T) {
	need.Root(t)
	need.Tools(t, "bash")
	s := newSite(t)
	path, text := filepath.Join(s.Sysconf, "networks/instances/web"), "ADDRESS=$(echo 192.0.2.1)$SUFFIX\n"
	s.write(path, text)
	vars := map[string]string{"SUFFIX": "0"}
	for environ, want := range map[string]string{"SHELL_SETTINGS=yes": "192.0.2.10", "SHELL_SETTINGS=no": ""} {
		set, err := FromEnviron([]string{environ})
		if err != nil {
			t.Fatal(err)
		}
		found, err := set.Evaluate(t.Context(), path, []byte(text), vars)
		if want == "" && (err == nil || !strings.Contains(err.Error(), path+":1: ")) {
			t.Errorf("%s: got %v, %v", environ, found, err)
		}
		if want != "" && (err != nil || len(found) != 1 || found[0].Value != want || len(set.Warnings()) != 1) {
			t.Errorf("%s: got %v, %v", environ, found, err)
		}
	}
}
