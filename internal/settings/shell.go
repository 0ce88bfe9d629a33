package settings

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/shellfile"
)

// Evaluate gives the assignments of a file that Bash used to source, text being
// what is in it and vars its environment. A file of more than assignments goes
// to bash where SHELL_SETTINGS=yes, if none but root can write it; that is
// added to Warnings. The error has the file and, from the parser, the line.
func (s *Settings) Evaluate(ctx context.Context, path string, text []byte, vars map[string]string) ([]shellfile.Assignment, error) {
	assignments, err := parse(path, text, vars)
	if err == nil || !s.ShellSettings {
		return assignments, err
	}
	if err := trusted(path); err != nil {
		return nil, fmt.Errorf("cannot have bash evaluate %s as SHELL_SETTINGS=yes wants: %w", path, err)
	}
	s.warn("%s is evaluated by bash, since it is more than assignments and SHELL_SETTINGS=yes", path)
	return byBash(ctx, path, vars)
}

func parse(path string, text []byte, vars map[string]string) ([]shellfile.Assignment, error) {
	return shellfile.Parse(path, text, func(name string) (string, bool) {
		value, ok := vars[name]
		return value, ok
	})
}

// evaluatePolicy is Evaluate for Verify: nothing is run, and of a file that
// needs bash or an instance counts what is written out.
func (l *loader) evaluatePolicy(_ context.Context, path string, text []byte, vars map[string]string) ([]shellfile.Assignment, error) {
	assignments, err := parse(path, text, vars)
	var unread *shellfile.Error
	if errors.As(err, &unread) && (l.s.ShellSettings || unread.ByValue) {
		return literalPolicy(text), nil
	}
	return assignments, err
}

// literalPolicy is what a file for bash says of parameters in plain sight.
func literalPolicy(text []byte) []shellfile.Assignment {
	var found []shellfile.Assignment
	for _, name := range policySettings {
		if a, ok := shellfile.Literal(text, name); ok {
			found = append(found, a)
		}
	}
	return found
}

// trusted wants a file that none but root can change: the file, the directory
// it is in and the one a link to it is in.
func trusted(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	for _, p := range []string{real, filepath.Dir(real), filepath.Dir(path)} {
		info, err := os.Stat(p)
		if err != nil {
			return err
		}
		owner, ok := info.Sys().(*syscall.Stat_t)
		if !ok || owner.Uid != 0 || info.Mode().Perm()&0o022 != 0 {
			return fmt.Errorf("%s is not root's, or others can write it: chown root it and chmod go-w it", p)
		}
	}
	return nil
}

// byBash has bash evaluate a file and returns what it set, by name. The
// variables go to it on standard input, not as arguments, which all users see.
func byBash(ctx context.Context, path string, vars map[string]string) ([]shellfile.Assignment, error) {
	given := maps.Clone(vars)
	maps.DeleteFunc(given, func(name, _ string) bool { return !exportable(name) })
	var script strings.Builder
	script.WriteString("{\n")
	for _, name := range slices.Sorted(maps.Keys(given)) {
		fmt.Fprintf(&script, "export %s=%s\n", name, quote(given[name]))
	}
	// In braces, so that bash has read it all before the file can read from
	// its standard input; with -e, as create and the others used to run it.
	fmt.Fprintf(&script, "set -ea\n. %s </dev/null >&2\nexec /usr/bin/env -0\n}\n", quote(path))
	result, err := run.Cmd{
		What:  "have bash evaluate " + path,
		Argv:  []string{"env", "-i", "bash", "--noprofile", "--norc"},
		Stdin: strings.NewReader(script.String()),
	}.Run(ctx)
	if err != nil {
		return nil, hideParameters(err, vars)
	}
	return assigned(string(result.Stdout), given), nil
}

// assigned reads the output of env -0: what is new or has another value.
func assigned(out string, given map[string]string) []shellfile.Assignment {
	var found []shellfile.Assignment
	for entry := range strings.SplitSeq(out, "\x00") {
		name, value, _ := strings.Cut(entry, "=")
		was, ok := given[name]
		if exportable(name) && !(ok && was == value) {
			found = append(found, shellfile.Assignment{Name: name, Value: value})
		}
	}
	slices.SortFunc(found, func(a, b shellfile.Assignment) int { return cmp.Compare(a.Name, b.Name) })
	return found
}

// exportable tells whether a name is a variable that is not bash's own.
func exportable(name string) bool {
	if name == "" || name[0] >= '0' && name[0] <= '9' || strings.HasPrefix(name, "BASH") {
		return false
	}
	for _, c := range []byte(name) {
		if c != '_' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return !slices.Contains([]string{"_", "EUID", "GROUPS", "OLDPWD", "PPID", "PWD", "SHELLOPTS", "SHLVL", "UID"}, name)
}

func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// hideParameters takes what bash printed out of its error where that holds the
// value of an OS parameter or of a secret setting.
func hideParameters(err error, vars map[string]string) error {
	var failed *run.Error
	if !errors.As(err, &failed) {
		return err
	}
	for name, value := range vars {
		k, _ := find(name)
		if (k.kind.secret || strings.HasPrefix(name, "OSP_")) && value != "" && strings.Contains(failed.Stderr, value) {
			hidden := *failed
			hidden.Stderr = "(what bash printed holds the value of an OS parameter or a secret and is not shown)"
			return &hidden
		}
	}
	return err
}
