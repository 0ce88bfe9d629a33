package guest

import (
	"errors"
	"os"
	"path"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
)

const labelAttribute = "security.selinux"

// The bounds of what is taken from a guest's labelling rules. Real policies have
// 5000 to 8000 rules of at most a few hundred bytes.
const (
	contextsLimit = 8 * size.MiB // of one file
	maxRules      = 1 << 16      // in all of them
	maxRuleLine   = 4096         // bytes
	maxPattern    = 1024         // bytes
	maxSubs       = 1024
	maxRuleCost   = 4096    // what one pattern may compile to, about, in instructions
	maxPolicyCost = 1 << 20 // what all may
	maxLabelWork  = 1 << 29 // steps of matching for one Root, of some nanoseconds
)

const selinuxConfig = "/etc/selinux/config"

// labelling is what a Root knows of its guest's SELinux.
type labelling struct {
	mutex    sync.Mutex
	policy   *labelPolicy // once one was read
	guessed  []string
	untested int // rules that could not be compiled
}

// UsesSELinux tells whether the guest labels its files: it can load a policy,
// and its configuration does not switch that off.
func (r *Root) UsesSELinux() bool {
	if !r.isFile("/usr/sbin/load_policy") && !r.isFile("/sbin/load_policy") {
		return false
	}
	mode, _ := r.selinuxConfig()
	return mode != "" && mode != "disabled"
}

// selinuxConfig reads the mode, and the name of the policy, as libselinux does:
// the first mode that is one counts, and the last name.
func (r *Root) selinuxConfig() (mode, policy string) {
	policy = "targeted"
	text, err := r.ReadFile(selinuxConfig, releaseLimit)
	if err != nil {
		return "", policy
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "SELINUX="); ok && mode == "" {
			mode = selinuxMode(value)
		}
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "SELINUXTYPE="); ok {
			policy = strings.TrimSpace(value)
		}
	}
	return mode, policy
}

func selinuxMode(value string) string {
	value = strings.ToLower(strings.TrimSpace(value))
	for _, mode := range []string{"enforcing", "permissive", "disabled"} {
		if strings.HasPrefix(value, mode) {
			return mode
		}
	}
	return ""
}

// Unlabelled are the new files whose SELinux label was guessed, or which have
// none, though the guest uses SELinux: its rules were not there, could not be
// read, or none is for them. For such a guest it is /.autorelabel that helps, at
// the price of a slow first boot. The paths are sorted; a guest without SELinux
// has none.
func (r *Root) Unlabelled() []string {
	r.labels.mutex.Lock()
	defer r.labels.mutex.Unlock()
	slices.Sort(r.labels.guessed)
	r.labels.guessed = slices.Compact(r.labels.guessed)
	return slices.Clone(r.labels.guessed)
}

// UntestedLabelRules is how many of the rules that were tried so far are written
// in what Perl's regular expressions have and Go's do not. They are passed over,
// and what such a rule might be for counts as unlabelled.
func (r *Root) UntestedLabelRules() int {
	r.labels.mutex.Lock()
	defer r.labels.mutex.Unlock()
	return r.labels.untested
}

// maxGuessed bounds how many files Unlabelled names.
const maxGuessed = 1000

// label gives a new file the SELinux label that the guest's own rules have for
// it, or where they have none, the directory's.
func (r *Root) label(dir int, base string) error {
	r.labels.mutex.Lock()
	defer r.labels.mutex.Unlock()
	if r.labels.policy == nil {
		if !r.UsesSELinux() {
			return inheritLabel(dir, base)
		}
		r.labels.policy = r.readLabelPolicy()
	}
	name, kind, err := r.inside(dir, base)
	if err != nil {
		return err
	}
	label, certain := r.labels.policy.lookup(name, kind)
	r.labels.untested = r.labels.policy.untested
	if label != "" {
		err = unix.Lsetxattr(byFD(dir, base), labelAttribute, append([]byte(label), 0), 0)
		if errors.Is(err, unix.ENOTSUP) {
			return nil // as FAT has none
		}
		certain = certain && err == nil // a node with SELinux may refuse what it does not know
	}
	if !certain {
		r.labels.guess(name)
	}
	if label != "" && err == nil {
		return nil
	}
	return inheritLabel(dir, base)
}

func (l *labelling) guess(name string) {
	if len(l.guessed) < maxGuessed {
		l.guessed = append(l.guessed, name)
	}
}

// inside tells the path in the guest, without links, of a name in an open
// directory, and what kind of file it is.
func (r *Root) inside(dir int, base string) (name string, kind uint32, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return "", 0, err
	}
	root, err := os.Readlink(byFD(r.fd, ""))
	if err != nil {
		return "", 0, err
	}
	at, err := os.Readlink(byFD(dir, ""))
	if err != nil {
		return "", 0, err
	}
	rest, ok := strings.CutPrefix(at+"/", strings.TrimSuffix(root, "/")+"/")
	if !ok {
		return "", 0, errors.New("it is not below the guest's root any more")
	}
	return path.Join("/", rest, base), st.Mode & unix.S_IFMT, nil
}

// inheritLabel gives a new file the SELinux label of its directory, if that has
// one, as the kernel does where no rule says otherwise.
func inheritLabel(dir int, base string) error {
	label, err := getxattr(byFD(dir, ""), labelAttribute)
	if err != nil {
		return nil // none, or a file system without labels
	}
	err = unix.Lsetxattr(byFD(dir, base), labelAttribute, label, 0)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}

// labelPolicy are the rules of file_contexts(5) in the order in which
// libselinux has them (label_file.c, the same from version 2 to 3.9): those of
// file_contexts, .homedirs and .local, and after them, in the same order, those
// of them whose path is literal. The last that matches counts.
type labelPolicy struct {
	rules          []labelRule
	subs, distSubs []labelSub
	cost           int // of the patterns compiled so far
	work           int // steps of matching that are left
	untested       int
}

// labelRule is a line of file_contexts(5).
type labelRule struct {
	pattern string
	kind    uint32 // S_IFREG and so on; 0: any
	label   string // empty for <<none>>
	stem    string // the first directory, where the pattern begins with one
	state   ruleState
	prefix  string // what a path that matches begins with
	cost    int
	regexp  *regexp.Regexp
}

type ruleState int

const (
	unseen   ruleState = iota
	parsed             // its prefix is known
	compiled           // its regexp too
	untestable
)

// labelSub is a line of file_contexts.subs: paths below from are looked up as if
// they were below to.
type labelSub struct{ from, to string }

func (r *Root) readLabelPolicy() *labelPolicy {
	p := &labelPolicy{work: maxLabelWork}
	_, name := r.selinuxConfig()
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return p
	}
	file := "/etc/selinux/" + name + "/contexts/files/file_contexts"
	read := func(suffix string) string {
		text, err := r.ReadFile(file+suffix, contextsLimit)
		if err != nil {
			return "" // of the first there must be one, the others are rare
		}
		return string(text)
	}
	for _, suffix := range []string{"", ".homedirs", ".local"} {
		p.addRules(read(suffix))
	}
	p.sort()
	p.subs, p.distSubs = parseSubs(read(".subs")), parseSubs(read(".subs_dist"))
	return p
}

var labelKinds = map[string]uint32{
	"-b": unix.S_IFBLK, "-c": unix.S_IFCHR, "-d": unix.S_IFDIR, "-p": unix.S_IFIFO,
	"-l": unix.S_IFLNK, "-s": unix.S_IFSOCK, "--": unix.S_IFREG,
}

// addRules reads lines of two or three fields. One that is none is left out;
// libselinux would do without all labels then.
func (p *labelPolicy) addRules(text string) {
	for line := range strings.Lines(text) {
		if len(line) > maxRuleLine || len(p.rules) >= maxRules {
			continue
		}
		if rule, ok := parseRule(strings.Fields(line)); ok {
			p.rules = append(p.rules, rule)
		}
	}
}

func parseRule(fields []string) (labelRule, bool) {
	if len(fields) < 2 || fields[0][0] == '#' {
		return labelRule{}, false
	}
	rule := labelRule{pattern: fields[0], label: fields[1], stem: stemOf(fields[0])}
	if len(fields) > 2 {
		kind, ok := labelKinds[fields[1]]
		if !ok {
			return labelRule{}, false
		}
		rule.kind, rule.label = kind, fields[2]
	}
	if rule.label == "<<none>>" {
		rule.label = ""
	} else if strings.Count(rule.label, ":") < 2 {
		return labelRule{}, false
	}
	return rule, isPlainASCII(rule.pattern) && isPlainASCII(rule.label)
}

func isPlainASCII(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' })
}

// patternCharacters make a path a pattern.
const patternCharacters = ".^$?*+|[({"

// stemOf returns the first directory of a pattern, "" where that is a pattern
// itself or the path has one component. A rule is tried only for paths that
// begin with its stem, whatever the rest of the pattern would match.
func stemOf(pattern string) string {
	i := strings.IndexByte(pattern[1:], '/')
	if i < 0 || strings.ContainsAny(pattern[:i+1], patternCharacters) {
		return ""
	}
	return pattern[:i+1]
}

// isLiteral tells whether a pattern has no character but escaped ones and
// such as mean themselves.
func isLiteral(pattern string) bool {
	for i := 0; i < len(pattern); i++ {
		if pattern[i] == '\\' {
			i++
		} else if strings.IndexByte(patternCharacters, pattern[i]) >= 0 {
			return false
		}
	}
	return true
}

// sort moves the literal rules behind the others.
func (p *labelPolicy) sort() {
	slices.SortStableFunc(p.rules, func(a, b labelRule) int {
		switch la, lb := isLiteral(a.pattern), isLiteral(b.pattern); {
		case la == lb:
			return 0
		case lb:
			return -1
		}
		return 1
	})
}

// parseSubs reads pairs of paths, the last first, which is the order in which
// they are tried.
func parseSubs(text string) []labelSub {
	var subs []labelSub
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(line) > maxRuleLine || len(fields) < 2 || fields[0][0] == '#' || len(subs) >= maxSubs {
			continue
		}
		subs = append(subs, labelSub{fields[0], fields[1]})
	}
	slices.Reverse(subs)
	return subs
}

// substitute applies the first sub that is for the path.
func substitute(subs []labelSub, name string) string {
	for _, s := range subs {
		rest, ok := strings.CutPrefix(name, s.from)
		if !ok || rest != "" && rest[0] != '/' {
			continue
		}
		if s.to == "/" {
			rest = strings.TrimPrefix(rest, "/")
		}
		return s.to + rest
	}
	return name
}

// lookup returns the label for a path, "" where a rule says that it has none of
// its own; certain is false where no rule is for it, or one that could not be
// tried might be.
func (p *labelPolicy) lookup(name string, kind uint32) (label string, certain bool) {
	name = substitute(p.distSubs, substitute(p.subs, name))
	if name == "" || len(name) > unix.PathMax {
		return "", false
	}
	stem := fileStem(name)
	certain = true
	for i := len(p.rules) - 1; i >= 0; i-- {
		rule := &p.rules[i]
		if rule.stem != "" && rule.stem != stem || rule.kind != 0 && rule.kind != kind {
			continue
		}
		matches, tried := p.try(rule, name)
		if matches {
			return rule.label, certain
		}
		certain = certain && tried
	}
	return "", false
}

// fileStem is the first directory of a path; "" where it is in the root.
func fileStem(name string) string {
	i := strings.IndexByte(name[1:], '/')
	return name[:i+1]
}

// try tells whether a rule matches. Each pattern is parsed when a path first
// gets to it, and compiled when one begins as it does, so that of thousands few
// are; what all this may take is bounded, as the guest wrote them.
func (p *labelPolicy) try(rule *labelRule, name string) (matches, tried bool) {
	if p.work--; p.work < 0 {
		return false, false
	}
	if rule.state == unseen {
		p.parse(rule)
	}
	if rule.state == untestable {
		return false, false
	}
	if !strings.HasPrefix(name, rule.prefix) {
		return false, true
	}
	if rule.state == parsed {
		rule.state = untestable
		if expression, err := regexp.Compile(anchored(rule.pattern)); err == nil {
			rule.state, rule.regexp = compiled, expression
		}
	}
	p.work -= rule.cost * len(name)
	return rule.state == compiled && rule.regexp.MatchString(name), rule.state == compiled
}

// anchored is how libselinux has it, an alternative at the top half anchored.
func anchored(pattern string) string { return "(?s)^" + pattern + "$" }

// parse finds out what a pattern costs and what its matches begin with.
func (p *labelPolicy) parse(rule *labelRule) {
	rule.state = untestable
	defer func() {
		if rule.state == untestable {
			p.untested++
		}
	}()
	if len(rule.pattern) > maxPattern {
		return
	}
	tree, err := syntax.Parse(anchored(rule.pattern), syntax.Perl)
	if err != nil {
		return
	}
	cost := patternCost(tree)
	if cost > maxRuleCost || p.cost+cost > maxPolicyCost {
		return
	}
	p.cost += cost
	rule.state, rule.cost = parsed, cost
	if tree.Op == syntax.OpConcat && tree.Sub[0].Op == syntax.OpBeginText && tree.Sub[1].Op == syntax.OpLiteral && tree.Sub[1].Flags&syntax.FoldCase == 0 {
		rule.prefix = string(tree.Sub[1].Rune)
	}
}

// patternCost is about how many instructions a pattern compiles to.
func patternCost(tree *syntax.Regexp) int {
	cost := 1 + len(tree.Rune)
	for _, sub := range tree.Sub {
		cost += patternCost(sub)
	}
	if tree.Op == syntax.OpRepeat {
		cost *= max(tree.Min, tree.Max, 1)
	}
	return cost
}
