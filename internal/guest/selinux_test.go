package guest

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
)

// judgeKinds are the kinds of file by the letters of matchpathcon(8).
var judgeKinds = map[string]uint32{"f": unix.S_IFREG, "d": unix.S_IFDIR, "l": unix.S_IFLNK, "c": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO, "s": unix.S_IFSOCK}

// matchpathcon is libselinux's answer: the labels of paths, "" for none.
func matchpathcon(t *testing.T, contexts, kind string, paths []string) []string {
	t.Helper()
	var labels []string
	for chunk := range slices.Chunk(paths, 2000) {
		result, err := run.Cmd{What: "judge labels", Argv: append([]string{"matchpathcon", "-n", "-m", kind, "-f", contexts}, chunk...)}.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		labels = append(labels, strings.Fields(strings.ReplaceAll(string(result.Stdout), "<<none>>", "-"))...)
	}
	if len(labels) != len(paths) {
		t.Fatalf("%d labels for %d paths", len(labels), len(paths))
	}
	return labels
}

// judgeLabels compares lookup with libselinux.
func judgeLabels(t *testing.T, root *Root, dir, kinds string, paths []string) {
	t.Helper()
	policy := root.readLabelPolicy()
	wrong := 0
	for kind, bits := range judgeKinds {
		if !strings.Contains(kinds, kind) {
			continue
		}
		want := matchpathcon(t, dir+"/etc/selinux/targeted/contexts/files/file_contexts", kind, paths)
		for i, path := range paths {
			got, certain := policy.lookup(path, bits)
			if got == "" {
				got = "-"
			}
			if got != want[i] || !certain && got != "-" {
				if wrong++; wrong < 20 {
					t.Errorf("%s of kind %s: %s, %v, matchpathcon says %s", path, kind, got, certain, want[i])
				}
			}
		}
	}
	t.Logf("%d paths of kinds %s, %d rules, %d not tested, cost %d, work %d", len(paths), kinds, len(policy.rules), policy.untested, policy.cost, maxLabelWork-policy.work)
}

const testContexts = `# comment
/.*	system_u:object_r:default_t:s0
/	-d	system_u:object_r:root_t:s0
/etc(/.*)?	system_u:object_r:etc_t:s0
/etc/hosts	--	system_u:object_r:exact_t:s0
/etc/hosts[0-9]?	--	system_u:object_r:later_t:s0
/etc/[^/]*\.conf	system_u:object_r:conf_t:s0
/etc/a\.b	system_u:object_r:escaped_t:s0
/etc/a\.b	--	system_u:object_r:escaped_file_t:s0
/etc/top|/usr/other	system_u:object_r:alternative_t:s0
/(a|b)/x	system_u:object_r:nostem_t:s0
/run/.*	<<none>>
/run/lock(/.*)?	system_u:object_r:lock_t:s0
/dev/[shmxv]d[^/]*	-b	system_u:object_r:disk_t:s0
/dev/null	-c	system_u:object_r:null_t:s0
/srv/link	-l	system_u:object_r:link_t:s0
/srv/pipe	-p	system_u:object_r:pipe_t:s0
/srv/sock	-s	system_u:object_r:sock_t:s0
/usr/(.*/)?bin(/.*)?	system_u:object_r:bin_t:s0
/usr/lib/[^/]+\.so(\.[0-9]+){1,2}	--	system_u:object_r:lib_t:s0
`

func testPolicy(more map[string]string) map[string]string {
	files := map[string]string{
		"etc/selinux/config": "# x\nSELINUX=enforcing\nSELINUXTYPE=targeted \n", "usr/sbin/load_policy": "",
		"etc/selinux/targeted/contexts/files/file_contexts": testContexts,
	}
	for name, text := range more {
		files[name] = text
	}
	return files
}

func TestLabelRules(t *testing.T) {
	need.Tools(t, "matchpathcon")
	const contexts = "etc/selinux/targeted/contexts/files/file_contexts"
	root, dir := guestOf(t, testPolicy(map[string]string{
		contexts + ".homedirs":  "/home/[^/]+/.+\tuser_u:object_r:home_t:s0\n/etc/hosts9\tsystem_u:object_r:home_hosts_t:s0\n",
		contexts + ".local":     "/etc/motd\tsystem_u:object_r:local_t:s0\n/etc/.*\\.d\t-d\tsystem_u:object_r:local_dir_t:s0\n",
		contexts + ".subs":      "# x\n/opt/etc /etc\n/opt/two /opt/three\n/chain /opt/etc2\n/first /srv\n/first /usr\n",
		contexts + ".subs_dist": "/var/run /run\n/opt/etc2 /etc\n/slash /\n",
	}))
	paths := []string{
		"/", "/x", "/etc", "/etc/hosts", "/etc/hosts1", "/etc/hosts9", "/etc/hosts12", "/etc/a.conf", "/etc/x/a.conf", "/etc/a.b", "/etc/axb", "/etc/top", "/etc/topper",
		"/usr/other", "/usr/bin/x", "/usr/local/bin", "/usr/local/binary", "/usr/lib/a.so.1", "/usr/lib/a.so.1.2", "/usr/lib/a.so.1.2.3", "/a/x", "/b/x", "/c/x",
		"/run", "/run/x", "/run/lock", "/run/lock/y", "/var/run/x", "/var/runner", "/var/run", "/dev/sda", "/dev/null", "/srv/link", "/srv/pipe", "/srv/sock",
		"/home/me/.ssh", "/home/me", "/etc/motd", "/etc/a.d", "/opt/etc/hosts", "/opt/etc", "/opt/two/x", "/chain/hosts", "/first/bin/x", "/slash/etc/hosts", "/slash",
	}
	judgeLabels(t, root, dir, "fdlcbps", paths)
}

// Of the policy that Debian ships, each rule is asked for a path it was made
// for, and for the machine's own files.
func TestLabelsOfDebiansPolicy(t *testing.T) {
	const installed = "/etc/selinux/default/contexts/files/file_contexts"
	need.Tools(t, "matchpathcon")
	need.File(t, installed)
	text := map[string]string{}
	for _, suffix := range []string{"", ".homedirs", ".local", ".subs", ".subs_dist"} {
		if data, err := os.ReadFile(installed + suffix); err == nil {
			text["etc/selinux/targeted/contexts/files/file_contexts"+suffix] = string(data)
		}
	}
	root, dir := guestOf(t, text)
	paths := append(dpkgPaths(t), pathsOfRules(text)...)
	judgeLabels(t, root, dir, "fd", paths)
}

// dpkgPaths are some thousand paths of installed packages.
func dpkgPaths(t *testing.T) []string {
	t.Helper()
	var paths []string
	lists, _ := filepath.Glob("/var/lib/dpkg/info/*.list")
	for i, list := range lists {
		f, err := os.Open(list)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(f)
		for n := 0; lines.Scan(); n++ {
			if line := lines.Text(); n%150 == i%150 && strings.HasPrefix(line, "/") && len(line) > 2 {
				paths = append(paths, line)
			}
		}
		f.Close()
	}
	return paths
}

// pathsOfRules makes a path of each pattern, which mostly matches it.
func pathsOfRules(files map[string]string) []string {
	simple := regexp.MustCompile(`\[[^]]*\][*+?]?|\(([^()|]*)[^()]*\)[*+?]?|\.[*+?]`)
	var paths []string
	for _, text := range files {
		for line := range strings.Lines(text) {
			if line[0] != '/' {
				continue
			}
			path := strings.Fields(line)[0]
			for range 3 {
				path = simple.ReplaceAllString(path, "${1}x")
			}
			path = strings.NewReplacer(`\`, "", "?", "", "*", "").Replace(path)
			if !strings.HasSuffix(path, "/") && !strings.Contains(path, "//") {
				paths = append(paths, path)
			}
		}
	}
	return paths
}

func TestNewFilesHaveTheGuestsLabels(t *testing.T) {
	need.Root(t)
	need.Tools(t, "getfattr")
	root, dir := guestOf(t, testPolicy(map[string]string{"etc/x": "", "run/x": "", "srv/x": "", "conf -> etc": ""}))
	if err := os.Symlink("/etc", dir+"/opt"); err != nil {
		t.Fatal(err)
	}
	if err := root.SetLabel("/run", "system_u:object_r:run_t:s0"); err != nil {
		need.That(t, false, err.Error())
	}
	for _, err := range []error{
		root.WriteFile("/opt/new.conf", []byte("x"), 0o644), root.MkdirAll("/usr/local/bin/sub", 0o755), root.Symlink("x", "/srv/link"),
		root.WriteFile("/run/x2", nil, 0o644), root.WriteFile("/etc/x", nil, 0o644), root.Symlink("new.conf", "/etc/hosts"),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	want := map[string]string{
		"etc/new.conf": "system_u:object_r:conf_t:s0", "usr/local": "system_u:object_r:default_t:s0", "usr/local/bin": "system_u:object_r:bin_t:s0", "usr/local/bin/sub": "system_u:object_r:bin_t:s0",
		"srv/link": "system_u:object_r:link_t:s0", "run/x2": "system_u:object_r:run_t:s0", "etc/x": "", "etc/hosts": "system_u:object_r:etc_t:s0",
	}
	for name, label := range want {
		if got := fileLabel(t, dir+"/"+name); got != label {
			t.Errorf("%s is labelled %q, want %q", name, got, label)
		}
	}
	if got := root.Unlabelled(); len(got) != 0 {
		t.Errorf("guessed %v", got)
	}
}

// fileLabel is what getfattr(1) says.
func fileLabel(t *testing.T, file string) string {
	t.Helper()
	result, err := run.Cmd{What: "read the label", Argv: []string{"getfattr", "-h", "--absolute-names", "--only-values", "-n", "security.selinux", file}}.Run(t.Context())
	if err != nil {
		return ""
	}
	label, ok := strings.CutSuffix(string(result.Stdout), "\x00")
	if !ok {
		t.Errorf("the label of %s has no NUL: %q", file, result.Stdout)
	}
	return label
}

func TestUnlabelled(t *testing.T) {
	need.Root(t)
	const contexts = "etc/selinux/targeted/contexts/files/file_contexts"
	cases := []struct {
		name    string
		files   map[string]string
		label   string
		guessed bool
	}{
		{"no rule", map[string]string{contexts: "/etc/y system_u:object_r:y_t:s0\n"}, "dir_t", true},
		{"no rules", map[string]string{contexts: ""}, "dir_t", true},
		{"another policy", map[string]string{"etc/selinux/config": "SELINUX=permissive\nSELINUXTYPE=mls\n"}, "dir_t", true},
		{"a policy outside", map[string]string{"etc/selinux/config": "SELINUX=permissive\nSELINUXTYPE=../targeted\n"}, "dir_t", true},
		{"the default policy", map[string]string{"etc/selinux/config": "SELINUX=permissive\n"}, "etc_t", false},
		{"the first mode, the last type", map[string]string{"etc/selinux/config": "SELINUX=what\nSELINUX=Enforcing\nSELINUX=disabled\nSELINUXTYPE=mls\n SELINUXTYPE=targeted\n"}, "etc_t", false},
		{"off", map[string]string{"etc/selinux/config": "SELINUX=disabled\n"}, "dir_t", false},
		{"no mode", map[string]string{"etc/selinux/config": "#SELINUX=enforcing\n"}, "dir_t", false},
		{"a rule that cannot be tried and comes last", map[string]string{contexts: "/etc/.* system_u:object_r:etc_t:s0\n/etc/(?=new).* system_u:object_r:look_t:s0\n"}, "etc_t", true},
		{"a rule that cannot be tried and comes first", map[string]string{contexts: "/etc/(?=new).* system_u:object_r:look_t:s0\n/etc/.* system_u:object_r:etc_t:s0\n"}, "etc_t", false},
		{"lines that are none", map[string]string{contexts: "x\n/etc/new --\n/etc/new -x system_u:object_r:bad_t:s0\n/etc/new bad\n/etc/n\xe9w system_u:object_r:bad_t:s0\n/etc/.* system_u:object_r:etc_t:s0"}, "etc_t", false},
	}
	for _, c := range cases {
		root, dir := guestOf(t, testPolicy(c.files))
		if err := root.SetLabel("/etc", "system_u:object_r:dir_t:s0"); err != nil {
			need.That(t, false, err.Error())
		}
		if err := root.WriteFile("/etc/new", nil, 0o644); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if got := fileLabel(t, dir+"/etc/new"); got != "system_u:object_r:"+c.label+":s0" {
			t.Errorf("%s: %q, want %s", c.name, got, c.label)
		}
		if got := root.Unlabelled(); len(got) == 1 != c.guessed {
			t.Errorf("%s: guessed %v", c.name, got)
		}
	}
}

// What the rules are read from may be anything else.
func TestLabelTraps(t *testing.T) {
	need.Root(t)
	const contexts = "etc/selinux/targeted/contexts/files/file_contexts"
	for _, file := range []string{"etc/selinux/config", contexts, contexts + ".local", contexts + ".subs", "usr/sbin/load_policy"} {
		for _, trap := range trapsOf(t, file) {
			for name, text := range testPolicy(nil) {
				if _, err := trap.root.Lstat("/" + name); err != nil {
					_ = trap.root.MkdirAll("/"+filepath.Dir(name), 0o755)
					_ = trap.root.WriteFile("/"+name, []byte(text), 0o644)
				}
			}
			if err := errors.Join(trap.root.MkdirAll("/srv/a", 0o755), trap.root.WriteFile("/srv/a/b", nil, 0o644)); err != nil {
				t.Errorf("%s as %s: %v", file, trap.name, err)
			}
			trap.wantNodeUntouched(t)
		}
	}
}

func TestLabelRulesAreBounded(t *testing.T) {
	const contexts = "etc/selinux/targeted/contexts/files/file_contexts"
	var many strings.Builder
	for range 40000 {
		many.WriteString("/etc/(.*a){30}(.*b){30}.*c a:b:c\n")
	}
	hostile := map[string]string{
		"many":  many.String(),
		"long":  "/etc/" + strings.Repeat("(a|", 2000) + " a:b:c\n" + strings.Repeat("x", 1<<20) + "\n",
		"deep":  "/etc/" + strings.Repeat("(", 400) + "a" + strings.Repeat("{2}){2}", 100) + " a:b:c\n",
		"large": "/etc/((((.{10}){10}){10})|" + strings.Repeat(".{999}", 60) + ") a:b:c\n",
		"empty": strings.Repeat("\n", 1<<20),
		"slash": strings.Repeat("/ a:b:c\n", 100000),
	}
	for name, text := range hostile {
		root, _ := guestOf(t, testPolicy(map[string]string{contexts: text}))
		policy := root.readLabelPolicy()
		if len(policy.rules) > maxRules {
			t.Errorf("%s: %d rules", name, len(policy.rules))
		}
		for range 20 {
			if label, certain := policy.lookup("/etc/"+strings.Repeat("ab", 500), unix.S_IFREG); label != "" && certain {
				t.Errorf("%s: %s", name, label)
			}
		}
		if policy.cost > maxPolicyCost || policy.work < -maxRuleCost*unix.PathMax {
			t.Errorf("%s: cost %d, work left %d", name, policy.cost, policy.work)
		}
	}
}

func FuzzLabelRules(f *testing.F) {
	f.Add(testContexts, "/a /b\n/b /\n", "/etc/hosts")
	f.Add("/ a:b:c\n/.* -- a:b:c", "/ /\n", "/")
	f.Add("\\ a:b:c\n/(a{1000}){1000} a:b:c\n/[ a:b:c\n/x** a:b:c\n<<none>> <<none>>\n", "x\n# y\n", "\xff")
	f.Fuzz(func(t *testing.T, contexts, subs, name string) {
		p := &labelPolicy{work: 1 << 20}
		p.addRules(contexts)
		p.sort()
		p.subs, p.distSubs = parseSubs(subs), parseSubs(subs)
		first, certain := p.lookup(name, unix.S_IFREG)
		if p.work >= 0 {
			if again, sure := p.lookup(name, unix.S_IFREG); p.work >= 0 && (again != first || sure != certain) {
				t.Fatalf("%q, %v and then %q, %v", first, certain, again, sure)
			}
		}
		if strings.ContainsAny(first, " \n\x00") {
			t.Fatalf("%q is a label", first)
		}
	})
}
