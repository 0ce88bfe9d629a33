package settings

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"ganeti-instance-image/internal/osapi"
)

// Verify checks the OS parameters of inst, which is what Ganeti wants of
// "verify parameters". It is run on the instance's nodes before there is a disk
// and, when a cluster's or an OS's parameters change, on the master alone,
// which may never run an instance. So it reads of this node's files only what
// parameters depend on, ALLOW_URLS and DENY_PARAMETERS:
//
//   - no defaults file and no file for the variant are no faults here (create
//     refuses a variant without one);
//   - a file that cannot be evaluated is a fault, with its line: what it allows
//     cannot be known, and create would fail with the same message;
//   - a file for bash (SHELL_SETTINGS=yes) is not run, since it may need an
//     instance, and one that cannot do without INSTANCE_BE_maxmem and its like
//     is not evaluated; the two settings count where they are written out in it;
//   - other settings are not checked: they may be made of INSTANCE_NAME and
//     its like, which are not set here.
//
// Create checks everything again, by the node's own files.
func Verify(ctx context.Context, site Site, inst osapi.Instance, environ []string) error {
	l := newLoader(site, 0, environ)
	l.policyOnly = true
	if err := l.readDefaults(ctx); err != nil {
		return err
	}
	if inst.Variant != "" {
		var missing *missingVariant
		if err := l.readVariant(ctx, inst.Variant); err != nil && !errors.As(err, &missing) {
			return err
		}
	}
	if err := l.checkPolicy(); err != nil {
		return err
	}
	return CheckParameters(inst.Params, l.s)
}

// policySettings say what parameters may do.
var policySettings = []string{"ALLOW_URLS", "DENY_PARAMETERS"}

func (l *loader) checkPolicy() error {
	for _, name := range policySettings {
		k, _ := find(name)
		if err := l.check(k); err != nil {
			return err
		}
	}
	for i, name := range l.s.DenyParameters {
		if _, ok := findParameter(name); !ok {
			return l.refuse("DENY_PARAMETERS", fmt.Errorf("entry %d of the list is no OS parameter; there are %s", i+1, paramList()))
		}
	}
	return nil
}

// alternativeParams are parameters that say the same thing in several ways.
var alternativeParams = [][]string{
	{"user_data", "user_data_base64", "user_data_url"},
	{"root_password", "root_password_hash"},
	{"user_password", "user_password_hash"},
}

// CheckParameters checks OS parameters, by their names with "_", against the
// table and against AllowURLs and DenyParameters of policy; a nil policy allows
// no URL. A parameter with an empty value counts as not given. The error names
// the parameter and the rule, and never the value.
func CheckParameters(params map[string]string, policy *Settings) error {
	if policy == nil {
		policy = &Settings{}
	}
	for _, name := range slices.Sorted(maps.Keys(params)) {
		if params[name] == "" {
			continue
		}
		if err := checkParameter(name, params[name], policy); err != nil {
			return err
		}
	}
	for _, ways := range alternativeParams {
		if given := chosen(ways, func(name string) bool { return params[name] != "" }); len(given) > 1 {
			return fmt.Errorf("cannot use both OS parameters %s and %s: give one of them", given[0], given[1])
		}
	}
	return nil
}

func checkParameter(name, text string, policy *Settings) error {
	k, ok := findParameter(name)
	if !ok {
		return fmt.Errorf("cannot use OS parameter %q: there is none of that name; there are %s", name, paramList())
	}
	if slices.Contains(policy.DenyParameters, name) {
		return fmt.Errorf("cannot use OS parameter %s: DENY_PARAMETERS of %s forbids it", k.param, policy.Origin("DENY_PARAMETERS"))
	}
	if _, err := k.kind.check(text); err != nil {
		return fmt.Errorf("cannot use OS parameter %s: %w", k.param, err)
	}
	if k.kind.fetched {
		if err := allowed(text, policy); err != nil {
			return fmt.Errorf("cannot use OS parameter %s: %w", k.param, err)
		}
	}
	return nil
}

// takeParameters checks the OS parameters and puts them over the settings.
func (l *loader) takeParameters(params map[string]string) error {
	if err := l.checkPolicy(); err != nil {
		return err
	}
	if err := CheckParameters(params, l.s); err != nil {
		return err
	}
	var names []string
	for _, p := range parameters() {
		name, text := p.name, params[paramKey(p.param)]
		switch {
		case text == "":
			continue
		case p.param == "os-image":
			l.s.OSImage = true
			continue
		case p.param == "user_data_base64":
			name = "USER_DATA"
			text, _ = checkBase64(text)
		}
		l.s.values[name] = value{text, Origin{What: "OS parameter " + p.param}}
		names = append(names, name)
	}
	return l.supersede(names, "the OS parameters")
}

func findParameter(key string) (setting, bool) {
	for _, p := range parameters() {
		if paramKey(p.param) == key {
			return p, true
		}
	}
	return setting{}, false
}

// paramKey is a parameter's name as the environment gives it.
func paramKey(param string) string { return strings.ReplaceAll(param, "-", "_") }

func paramList() string {
	var names []string
	for _, p := range parameters() {
		names = append(names, p.param)
	}
	return strings.Join(names, " ")
}

// ParametersList is the text of parameters.list: a line "name description" for
// each OS parameter, and nothing else, since Ganeti takes every line for one.
func ParametersList() []byte {
	var list bytes.Buffer
	for _, p := range parameters() {
		fmt.Fprintf(&list, "%s %s\n", p.param, p.meaning)
	}
	return list.Bytes()
}

// allowed wants the URL of a parameter to lie under a prefix of ALLOW_URLS:
// same scheme, host and port, and a path that is the prefix's or goes on with
// a slash. What servers could take for another path is refused.
func allowed(text string, policy *Settings) error {
	u, err := plainURL(text)
	if err != nil {
		return err
	}
	for _, prefix := range policy.AllowURLs {
		if p, err := plainURL(prefix); err == nil && under(u, p) {
			return nil
		}
	}
	return fmt.Errorf("its URL is under no prefix of ALLOW_URLS (%s)", policy.Origin("ALLOW_URLS"))
}

func under(u, prefix *url.URL) bool {
	dir := strings.TrimSuffix(prefix.Path, "/")
	return u.Scheme == prefix.Scheme &&
		strings.EqualFold(u.Hostname(), prefix.Hostname()) && port(u) == port(prefix) &&
		(u.Path == prefix.Path || u.Path == dir || strings.HasPrefix(u.Path, dir+"/"))
}

func port(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	}
	return "80"
}

// plainURL reads a URL of scheme, host, port and path only, in which no part
// of the path is empty, begins with two dots or hides a slash, backslash, dot
// or per cent sign in an escape.
func plainURL(text string) (*url.URL, error) {
	u, err := parseURL(text)
	if err != nil {
		return nil, err
	}
	if u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(text, "#") {
		return nil, errors.New("want a URL without user, password, query and fragment")
	}
	escaped := strings.ToLower(u.EscapedPath())
	for _, trick := range []string{"%2e", "%2f", "%5c", "%25", "%3b", "%3f", "%23", "%0", "%1", "%7f", "\\", ";", "//", "/."} {
		if strings.Contains(escaped, trick) {
			return nil, errors.New("want a URL whose path has no empty or dotted parts, backslashes or semicolons, not as escapes either")
		}
	}
	return u, nil
}
