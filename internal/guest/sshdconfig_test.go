package guest

import (
	"os"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
)

// TestSSHDConfigIsSSHDs has sshd itself say what a file means.
func TestSSHDConfigIsSSHDs(t *testing.T) {
	need.Root(t)
	need.Tools(t, "sshd", "ssh-keygen")
	dir := t.TempDir()
	keygen(t, "-q", "-t", "ed25519", "-N", "", "-f", dir+"/key")
	need.That(t, os.MkdirAll("/run/sshd", 0o755) == nil, "/run/sshd")
	for _, text := range []string{
		"PermitRootLogin no\n",
		"  permitrootlogin=yes # as ever\nPermitRootLogin no\n",
		"PermitRootLogin\t= prohibit-password\n",
		"#PermitRootLogin no\nPermitRootLogin yes\n",
		"PasswordAuthentication no\nMatch User x\nPasswordAuthentication yes\nPermitRootLogin no\n",
		"Match User x\nPermitRootLogin no\nMatch all\nPermitRootLogin yes\n",
		"AuthorizedKeysFile .ssh/a /b/%u\n",
		"AuthorizedKeysFile=%h/keys\nPermitRootLogin forced-commands-only\n",
	} {
		if err := os.WriteFile(dir+"/config", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		result, err := run.Cmd{What: "read the configuration", Argv: []string{"sshd", "-T", "-f", dir + "/config", "-h", dir + "/key"}}.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		root, _ := guestOf(t, map[string]string{"etc/ssh/sshd_config": text})
		said := root.sshdConfig()
		for line := range strings.Lines(string(result.Stdout)) {
			keyword, want, _ := strings.Cut(strings.TrimSpace(line), " ")
			want = strings.Replace(want, "without-password", "prohibit-password", 1)
			if got, ok := said[keyword]; ok && got != want {
				t.Errorf("%q: %s is %q, sshd has %q", text, keyword, got, want)
			}
		}
		if len(said) == 0 {
			t.Errorf("%q: nothing was read", text)
		}
	}
}

func TestSSHDConfigIncludes(t *testing.T) {
	cases := []struct {
		files map[string]string
		want  string
	}{
		{map[string]string{"etc/ssh/sshd_config": "Include /etc/ssh/sshd_config.d/*.conf\nPermitRootLogin no\n", "etc/ssh/sshd_config.d/a.conf": "PermitRootLogin yes\n"}, "yes"},
		{map[string]string{"etc/ssh/sshd_config": "Include sshd_config.d/*.conf\nPermitRootLogin no\n", "etc/ssh/sshd_config.d/a.conf": "Match User x\nPermitRootLogin yes\n"}, "no"},
		{map[string]string{"etc/ssh/sshd_config": "Match User x\nInclude a\nMatch all\nPermitRootLogin no\n", "etc/ssh/a": "PermitRootLogin yes\n"}, "no"},
		{map[string]string{"etc/ssh/sshd_config": "Include sshd_config\nInclude ssh*\nPermitRootLogin no\n"}, "no"},
		{map[string]string{"etc/ssh/sshd_config": strings.Repeat("#", 1<<17)}, ""},
		{map[string]string{"etc/ssh/sshd_config": "PermitRootLogin"}, ""},
		{map[string]string{"usr/etc/ssh/sshd_config": "PermitRootLogin yes\n"}, "yes"},
		{map[string]string{"etc/ssh/sshd_config": "-> /etc/ssh/sshd_config", "usr/etc/ssh/sshd_config": "PermitRootLogin yes"}, "yes"},
	}
	for i, c := range cases {
		root, _ := guestOf(t, c.files)
		if got := root.sshdConfig()["permitrootlogin"]; got != c.want {
			t.Errorf("case %d: got %q, want %q", i, got, c.want)
		}
	}
}

// A hostile file has more patterns than are worth looking for.
func TestSSHDConfigIncludesAreBounded(t *testing.T) {
	for left, want := range map[int]string{maxSSHDIncludes - 1: "yes", maxSSHDIncludes: ""} {
		root, _ := guestOf(t, map[string]string{"etc/ssh/sshd_config": "Include" + strings.Repeat(" x", left) + "\nInclude \"a b\"\n", "etc/ssh/a b": "PermitRootLogin yes\n"})
		if got := root.sshdConfig()["permitrootlogin"]; got != want {
			t.Errorf("after %d patterns: got %q, want %q", left, got, want)
		}
	}
}

func TestSSHDWords(t *testing.T) {
	cases := []struct {
		value string
		want  []string
		ok    bool
	}{
		{"", nil, true},
		{" a\t b ", []string{"a", "b"}, true},
		{`"%h/my keys/a" b`, []string{"%h/my keys/a", "b"}, true},
		{`'a "b' c"d e"f ""`, []string{`a "b`, "cd ef", ""}, true},
		{`a "b c`, []string{"a", "b c"}, false},
	}
	for _, c := range cases {
		if got, ok := sshdWords(c.value); !slices.Equal(got, c.want) || ok != c.ok {
			t.Errorf("%s: got %q, %v", c.value, got, ok)
		}
	}
}

func FuzzSSHDLine(f *testing.F) {
	f.Add("PermitRootLogin = yes # x")
	f.Fuzz(func(t *testing.T, line string) {
		keyword, value := sshdLine(line)
		if strings.ContainsAny(keyword, " \t=") || value != strings.TrimSpace(value) {
			t.Fatalf("%q: %q, %q", line, keyword, value)
		}
		if words, _ := sshdWords(value); len(strings.Join(words, " ")) > len(value) {
			t.Fatalf("%q: %q", value, words)
		}
	})
}
