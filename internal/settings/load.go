package settings

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"ganeti-instance-image/internal/osapi"
	"ganeti-instance-image/internal/shellfile"
	"ganeti-instance-image/internal/size"
)

// DefaultsName is the name of the defaults file in Site.Sysconf/default.
const DefaultsName = "ganeti-instance-image"

// Load reads the settings for an instance: the defaults file, if there is one,
// the file of inst.Variant, if that is not empty, and inst.Params. The files
// may use environ (INSTANCE_NAME, OS_VARIANT, ...); a variant also uses what
// the defaults file left, built-in defaults included.
//
// The error names the setting, where it was set and what it must be; a variant
// without a file is one. ctx ends the bash that SHELL_SETTINGS=yes may start.
func Load(ctx context.Context, site Site, inst osapi.Instance, environ []string) (*Settings, error) {
	l := newLoader(site, inst.Memory, environ)
	if err := l.readDefaults(ctx); err != nil {
		return nil, err
	}
	if inst.Variant != "" {
		if err := l.readVariant(ctx, inst.Variant); err != nil {
			return nil, err
		}
	}
	if err := l.takeParameters(inst.Params); err != nil {
		return nil, err
	}
	return l.finish()
}

// FromEnviron reads the settings back from the environment of a hook, to which
// Environ was given. What is not there has its built-in default below /etc and
// /var; the site's own names cannot be told from the rest and are left out.
func FromEnviron(environ []string) (*Settings, error) {
	l := newLoader(Site{Sysconf: "/etc", Localstate: "/var"}, 0, nil)
	for _, entry := range environ {
		name, text, _ := strings.Cut(entry, "=")
		if _, ok := find(name); ok {
			l.s.values[name] = value{text, Origin{What: "the variable " + name + " of the environment"}}
		}
		if name == "OSP_OS_IMAGE" {
			l.s.OSImage = text != ""
		}
	}
	return l.finish()
}

// loader puts the settings together, source by source.
type loader struct {
	s          *Settings
	site       Site
	environ    map[string]string
	defaults   map[string]string // built-in
	policyOnly bool              // nothing is run, see Verify
}

func newLoader(site Site, memory size.Bytes, environ []string) *loader {
	l := &loader{
		s:        &Settings{values: map[string]value{}},
		site:     site,
		environ:  map[string]string{},
		defaults: map[string]string{},
	}
	for _, entry := range environ {
		name, text, _ := strings.Cut(entry, "=")
		if _, ok := find(name); !ok { // settings come from files and parameters only
			l.environ[name] = text
		}
	}
	inMiB := ""
	if memory >= size.MiB {
		inMiB = strconv.FormatInt(int64(memory/size.MiB), 10)
	}
	fill := strings.NewReplacer("{sysconf}", site.Sysconf, "{localstate}", site.Localstate, "{memory}", inMiB)
	for _, k := range known() {
		l.defaults[k.name] = fill.Replace(k.value)
		l.reset(k.name)
	}
	return l
}

// reset gives a setting its built-in default again.
func (l *loader) reset(name string) { l.s.values[name] = value{l.defaults[name], builtIn} }

func (l *loader) defaultsPath() string {
	return filepath.Join(l.site.Sysconf, "default", DefaultsName)
}

func (l *loader) readDefaults(ctx context.Context) error {
	path := l.defaultsPath()
	text, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read the settings: %w", err)
	}
	// This one setting counts before the file that it stands in is evaluated.
	if a, ok := shellfile.Literal(text, "SHELL_SETTINGS"); ok {
		normal, _ := checkYesNo(a.Value)
		l.s.ShellSettings = normal == "yes"
	}
	return l.take(ctx, path, text, l.environ)
}

func (l *loader) readVariant(ctx context.Context, variant string) error {
	if _, err := component.check(variant); err != nil {
		return fmt.Errorf("cannot use the variant %q: %w", variant, err)
	}
	dir, err := absPath.check(l.s.values["VARIANTS_DIR"].text)
	if err != nil {
		return l.refuse("VARIANTS_DIR", err)
	}
	file := filepath.Join(dir, variant+".conf")
	text, err := readFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return &missingVariant{fmt.Errorf("cannot find the variant %q: create %s (it may be empty), or take the variant out of variants.list: %w", variant, file, fs.ErrNotExist)}
	}
	if err != nil {
		return fmt.Errorf("cannot read the variant %q: %w", variant, err)
	}
	return l.take(ctx, file, text, l.visible())
}

// missingVariant is the error for a variant that has no file on this node.
type missingVariant struct{ error }

func (m *missingVariant) Unwrap() error { return m.error }

// visible is the environment with what is set so far.
func (l *loader) visible() map[string]string {
	vars := map[string]string{}
	for name, text := range l.environ {
		vars[name] = text
	}
	for name, v := range l.s.values {
		vars[name] = v.text
	}
	return vars
}

// readFile reads a settings file, which is regular and of bounded size.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, shellfile.MaxSize+1))
}

// take evaluates a file and takes over what it assigns.
func (l *loader) take(ctx context.Context, path string, text []byte, vars map[string]string) error {
	evaluate := l.s.Evaluate
	if l.policyOnly {
		evaluate = l.evaluatePolicy
	}
	assignments, err := evaluate(ctx, path, text, vars)
	if err != nil {
		return err
	}
	for _, a := range assignments {
		l.assign(a, Origin{File: path, Line: a.Line})
	}
	var names []string
	for _, a := range assignments {
		if l.s.values[a.Name].text != "" && l.s.values[a.Name].origin != builtIn {
			names = append(names, a.Name)
		}
	}
	return l.supersede(names, path)
}

// assign takes over one assignment of a file.
func (l *loader) assign(a shellfile.Assignment, origin Origin) {
	_, isKnown := find(a.Name)
	switch {
	case a.Name == "SHELL_SETTINGS" && origin.File != l.defaultsPath():
		l.s.warn("SHELL_SETTINGS at %s has no effect: it counts in %s only", origin, l.defaultsPath())
	case isKnown && a.Value == "":
		l.reset(a.Name)
	case isKnown:
		l.s.values[a.Name] = value{a.Value, origin}
	case ofGaneti(a.Name):
		l.s.warn("%s at %s is left out: the name is that of a variable which hooks get from Ganeti or from this program", a.Name, origin)
	default:
		l.takeOwn(a, origin)
	}
}

// takeOwn takes over a name of the site's own.
func (l *loader) takeOwn(a shellfile.Assignment, origin Origin) {
	if _, ok := l.s.values[a.Name]; !ok {
		meant := meant(a.Name)
		if meant != "" {
			l.s.warn("%s at %s is not a setting; did you mean %s?", a.Name, origin, meant)
		}
		if k, ok := find(meant); ok && k.kind.secret {
			return // a secret with a slip in its name is no hook's to see either
		}
		l.s.own = append(l.s.own, a.Name)
	}
	l.s.values[a.Name] = value{a.Value, origin}
}

// ofGaneti tells whether a name is one that Ganeti or create gives to hooks.
func ofGaneti(name string) bool {
	for _, prefix := range []string{"INSTANCE_", "DISK_", "NIC_", "OS_", "OSP_", "IMPORT_", "EXPORT_"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return slices.Contains([]string{
		"HYPERVISOR", "DEBUG_LEVEL", "OLD_INSTANCE_NAME", "EXP_SIZE_FD", "PATH",
		"TARGET", "BLOCKDEV", "ROOT_DEV", "BOOT_DEV",
	}, name)
}

// alternatives are settings that say the same thing in several ways: a later
// source that sets one of them sets aside the others of an earlier one.
var alternatives = [][]string{
	{"USER_DATA", "USER_DATA_FILE", "USER_DATA_URL"},
	{"ROOT_PASSWORD", "ROOT_PASSWORD_HASH"},
	{"USER_PASSWORD", "USER_PASSWORD_HASH"},
}

// chosen are those of several ways to say a thing that somebody has used.
func chosen(ways []string, used func(string) bool) []string {
	return slices.DeleteFunc(slices.Clone(ways), func(name string) bool { return !used(name) })
}

// supersede sets aside what an earlier source said where a later one, which
// has set names, says the same thing by another setting.
func (l *loader) supersede(names []string, source string) error {
	for _, ways := range alternatives {
		set := chosen(ways, func(name string) bool { return slices.Contains(names, name) })
		if len(set) > 1 {
			return fmt.Errorf("cannot use both %s and %s of %s: keep one of them", set[0], set[1], source)
		}
		for _, name := range ways {
			if len(set) == 1 && name != set[0] {
				l.reset(name)
			}
		}
	}
	image := slices.Contains(names, "IMAGE_NAME") || slices.Contains(names, "IMAGE_URL")
	if image && !slices.Contains(names, "IMAGE_FILE") {
		l.reset("IMAGE_FILE")
	}
	return nil
}

// refuse is the error for a setting whose text is not of its kind.
func (l *loader) refuse(name string, rule error) error {
	return fmt.Errorf("cannot use %s of %s: %w", name, l.s.Origin(name), rule)
}

// finish checks every setting and fills in the fields.
func (l *loader) finish() (*Settings, error) {
	for _, k := range known() {
		if err := l.check(k); err != nil {
			return nil, err
		}
	}
	s := l.s
	if v := s.values["FDISK"]; v.text != "" {
		s.warn("FDISK of %s is obsolete and has no effect: no partitioning program is needed any more", v.origin)
	}
	for _, name := range []string{"USER_PASSWORD", "USER_PASSWORD_HASH"} {
		if v := s.values[name]; v.text != "" && s.User == "" {
			s.warn("%s of %s has no effect: USER_NAME is empty", name, v.origin)
		}
	}
	if s.NoMount && s.Grow {
		if v := s.values["GROW"]; v.origin != builtIn {
			s.warn("GROW=yes of %s has no effect: NOMOUNT=yes of %s leaves the disk as the image has it", v.origin, s.Origin("NOMOUNT"))
		}
		s.Grow = false
		s.values["GROW"] = value{"no", Origin{What: "NOMOUNT=yes"}}
	}
	return s, nil
}

// check brings a setting into its normal form and decodes it.
func (l *loader) check(k setting) error {
	v := l.s.values[k.name]
	if v.text != "" {
		normal, err := k.kind.check(v.text)
		if err != nil {
			return l.refuse(k.name, err)
		}
		l.s.values[k.name] = value{normal, v.origin}
	}
	if k.field == nil {
		return nil
	}
	if err := decode(k.field(l.s), k.kind, l.s.values[k.name].text); err != nil {
		return l.refuse(k.name, err)
	}
	return nil
}
