package shellfile

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/syntax"
)

// where is the place of a word, which decides what its characters mean.
type where int

const (
	atValue    where = iota // A=here
	inQuotes                // A="here"
	inOperand               // A=${B:-here}
	inQOperand              // A="${B:-here}"
)

func (p *parser) parts(parts []syntax.WordPart, at where) (string, error) {
	var text strings.Builder
	for i, part := range parts {
		s, err := p.part(part, at, i == 0, i == len(parts)-1)
		if err != nil {
			return "", err
		}
		if text.WriteString(s); text.Len() > maxEntry {
			return "", p.failValue(part, "the value is longer than the %d bytes an environment holds", maxEntry)
		}
	}
	return text.String(), nil
}

func (p *parser) part(part syntax.WordPart, at where, first, last bool) (string, error) {
	switch part := part.(type) {
	case *syntax.Lit:
		return p.literalText(part, at, first, last)
	case *syntax.SglQuoted:
		if at == inQOperand {
			break // "${A:-'x'}": bash takes these quotes for text
		}
		if part.Dollar {
			return p.ansiC(part)
		}
		return part.Value, nil
	case *syntax.DblQuoted:
		if at == inQOperand {
			break
		}
		return p.parts(part.Parts, inQuotes)
	case *syntax.ParamExp:
		return p.param(part, at == inQuotes || at == inQOperand)
	case *syntax.ArithmExp:
		return p.arithmetic(part)
	case *syntax.CmdSubst:
		return "", p.fail(part, "a command substitution, $(...) or `...`%s", wayOut)
	case *syntax.ProcSubst:
		return "", p.fail(part, "a process substitution%s", wayOut)
	case *syntax.ExtGlob:
		return "", p.fail(part, "an extended pattern: put the value into quotes")
	}
	return "", p.fail(part, "quotes inside ${...} inside quotes: write the value without them")
}

// literalText takes the backslashes out of a literal and expands its tildes.
func (p *parser) literalText(lit *syntax.Lit, at where, first, last bool) (string, error) {
	switch at {
	case inQuotes:
		return doubleQuoted(lit.Value), nil
	case inOperand, inQOperand:
		if strings.ContainsAny(lit.Value, "\\~{}'\"`") {
			return "", p.fail(lit, "one of \\ ~ { } ' \" inside ${...}, where bash has rules of its own: write the value without it")
		}
		return lit.Value, nil
	}
	if !first && strings.HasPrefix(lit.Value, "~") {
		return "", p.fail(lit, "a ~ right after quotes or an expansion: put it into quotes")
	}
	return p.unquoted(lit, last)
}

// unquoted evaluates a literal outside quotes: a backslash takes the meaning
// from the character behind it, and a ~ at the start or behind a colon is HOME.
func (p *parser) unquoted(lit *syntax.Lit, last bool) (string, error) {
	var text strings.Builder
	for i, s := 0, lit.Value; i < len(s); i++ {
		tilde := s[i] == '~' && (i == 0 || s[i-1] == ':' && !escaped(s, i-1))
		switch {
		case s[i] == '\\' && i+1 < len(s):
			if i++; s[i] != '\n' { // the parser leaves some line continuations
				text.WriteByte(s[i])
			}
		case s[i] == '\\':
			return "", p.fail(lit, "a backslash before quotes, an expansion or the end of the file: put it into quotes")
		case tilde:
			home, err := p.home(lit, s[i+1:], last)
			if err != nil {
				return "", err
			}
			text.WriteString(home)
		default:
			text.WriteByte(s[i])
		}
	}
	return text.String(), nil
}

// escaped tells whether a backslash takes the meaning from s[i].
func escaped(s string, i int) bool {
	n := 0
	for i--; i >= 0 && s[i] == '\\'; i-- {
		n++
	}
	return n%2 == 1
}

// home is what a ~ stands for, given the text behind it.
func (p *parser) home(lit *syntax.Lit, rest string, last bool) (string, error) {
	home, ok, err := p.variable(lit, "HOME")
	plain := strings.HasPrefix(rest, "/") || strings.HasPrefix(rest, ":") || rest == "" && last
	if err != nil || !ok || !plain {
		return "", p.failValue(lit, "a ~ that stands for a user's home: write the directory itself, or put the ~ into quotes")
	}
	return home, nil
}

// doubleQuoted takes the backslashes out of text between double quotes, where
// they mean something before four characters and at the end of a line.
func doubleQuoted(s string) string {
	var text strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) && strings.IndexByte("$`\"\\\n", s[i+1]) >= 0 {
			if i++; s[i] == '\n' {
				continue
			}
		}
		text.WriteByte(s[i])
	}
	return text.String()
}

// ansiC evaluates $'...', but for what depends on the locale (\u) or makes
// control characters (\c), and for NUL, where bash cuts the text.
func (p *parser) ansiC(quoted *syntax.SglQuoted) (string, error) {
	bad := false
	text := ansiEscape.ReplaceAllStringFunc(quoted.Value, func(escape string) string {
		if char, ok := ansiChars[escape[1:]]; ok {
			return char
		}
		number, base := escape[1:], 8
		if strings.HasPrefix(number, "x") {
			number, base = number[1:], 16
		}
		n, err := strconv.ParseUint(number, base, 8)
		bad = bad || err != nil || n == 0
		return string([]byte{byte(n)})
	})
	if bad {
		return "", p.fail(quoted, "an escape in $'...' other than \\n \\t \\' \\\\ and their like: write the character itself")
	}
	return text, nil
}

var ansiEscape = regexp.MustCompile(`(?s)\\([0-7]{1,3}|x[0-9A-Fa-f]{1,2}|.|$)`)

var ansiChars = map[string]string{
	"a": "\a", "b": "\b", "e": "\x1b", "E": "\x1b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
	`\`: `\`, "'": "'", `"`: `"`, "?": "?",
}

// variable is the value of $NAME; set is false where there is none.
func (p *parser) variable(node syntax.Node, name string) (value string, set bool, err error) {
	if p.literal || !syntax.ValidName(name) || ofBash(name) {
		return "", false, p.fail(node, "$%s, which bash fills in%s", name, wayOut)
	}
	value, set = p.lookup(name)
	if !set && filledByBash(name) {
		return "", false, p.fail(node, "$%s, which bash fills in%s", name, wayOut)
	}
	return value, set, nil
}

// param evaluates $NAME and ${NAME...}.
func (p *parser) param(exp *syntax.ParamExp, quoted bool) (string, error) {
	if exp.Param == nil || exp.Excl || exp.Width || exp.IsSet || exp.Index != nil || exp.Names != 0 ||
		exp.Flags != nil || exp.NestedParam != nil || len(exp.Modifiers) > 0 {
		return "", p.fail(exp, "a ${...} of a kind that is not evaluated%s", wayOut)
	}
	value, set, err := p.variable(exp, exp.Param.Value)
	if err != nil {
		return "", err
	}
	switch {
	case exp.Length:
		if err := p.plainValue(exp, value); err != nil {
			return "", err
		}
		return strconv.Itoa(len(value)), nil
	case exp.Slice != nil:
		return p.slice(exp, value)
	case exp.Repl != nil:
		return p.replace(exp, value, quoted)
	case exp.Exp != nil:
		return p.operator(exp, value, set, quoted)
	}
	return value, nil
}

// operator evaluates ${NAME:-word} and its like.
func (p *parser) operator(exp *syntax.ParamExp, value string, set, quoted bool) (string, error) {
	op := exp.Exp.Op
	switch op {
	case syntax.RemSmallPrefix, syntax.RemLargePrefix, syntax.RemSmallSuffix, syntax.RemLargeSuffix,
		syntax.UpperFirst, syntax.UpperAll, syntax.LowerFirst, syntax.LowerAll:
		return p.pattern(exp, value)
	}
	given := set && value != ""
	switch op {
	case syntax.DefaultUnset, syntax.AlternateUnset, syntax.ErrorUnset:
		given = set
	}
	// The operand is evaluated also where it is not used: where it ends is
	// certain only for one that can be.
	operand, err := p.operand(exp.Exp.Word, quoted)
	if err != nil {
		return "", err
	}
	switch op {
	case syntax.DefaultUnset, syntax.DefaultUnsetOrNull:
		if given {
			return value, nil
		}
		return operand, nil
	case syntax.AlternateUnset, syntax.AlternateUnsetOrNull:
		if given {
			return operand, nil
		}
		return "", nil
	case syntax.ErrorUnset, syntax.ErrorUnsetOrNull:
		if !given {
			return "", p.failValue(exp, "%s is not set or is empty, and ${%s?} asks for it", exp.Param.Value, exp.Param.Value)
		}
		return value, nil
	}
	return "", p.fail(exp, "a ${%s%s...}%s", exp.Param.Value, op, wayOut)
}

func (p *parser) operand(word *syntax.Word, quoted bool) (string, error) {
	if word == nil {
		return "", nil
	}
	if quoted {
		return p.parts(word.Parts, inQOperand)
	}
	return p.parts(word.Parts, inOperand)
}

// pattern evaluates ${NAME%pattern}, ${NAME#pattern}, ${NAME^^} and their like.
func (p *parser) pattern(exp *syntax.ParamExp, value string) (string, error) {
	pattern, err := p.patternText(exp, exp.Exp.Word)
	if err != nil {
		return "", err
	}
	if err := p.plainValue(exp, value); err != nil {
		return "", err
	}
	plain := *exp
	plain.Exp = &syntax.Expansion{Op: exp.Exp.Op}
	switch exp.Exp.Op {
	case syntax.UpperFirst, syntax.UpperAll, syntax.LowerFirst, syntax.LowerAll:
		if pattern != "" {
			return "", p.fail(exp, "a pattern for upper or lower case%s", wayOut)
		}
	default:
		plain.Exp.Word = literalWord(pattern)
	}
	return expandWith(&plain, value)
}

// replace evaluates ${NAME/pattern/text} and ${NAME//pattern/text}.
func (p *parser) replace(exp *syntax.ParamExp, value string, quoted bool) (string, error) {
	pattern, err := p.patternText(exp, exp.Repl.Orig)
	if err != nil {
		return "", err
	}
	with, err := p.operand(exp.Repl.With, quoted)
	if err != nil {
		return "", err
	}
	if err := p.plainValue(exp, value+with); err != nil {
		return "", err
	}
	switch {
	case strings.ContainsAny(with, `&\`):
		return "", p.failValue(exp, "a & or backslash in a replacement, which versions of bash take in different ways%s", wayOut)
	case strings.Trim(pattern, "*") == "" || strings.Contains(pattern, "/"):
		return "", p.fail(exp, "a pattern that is empty, holds a / or matches everything%s", wayOut)
	case len(value)*(1+len(with)) > 16<<20:
		return "", p.failValue(exp, "a replacement that may grow too large%s", wayOut)
	case value == "":
		return "", nil
	}
	plain := *exp
	plain.Repl = &syntax.Replace{All: exp.Repl.All, Orig: literalWord(pattern), With: &syntax.Word{Parts: []syntax.WordPart{&syntax.SglQuoted{Value: with}}}}
	return expandWith(&plain, value)
}

// patternText evaluates a pattern, of which only plain characters, * and ? are
// taken: bash gives quotes, backslashes and brackets in it rules of their own.
func (p *parser) patternText(node syntax.Node, word *syntax.Word) (string, error) {
	if word == nil {
		return "", nil
	}
	for _, part := range word.Parts {
		if _, ok := part.(*syntax.DblQuoted); ok {
			return "", p.fail(node, "quotes in a pattern%s", wayOut)
		}
		if _, ok := part.(*syntax.SglQuoted); ok {
			return "", p.fail(node, "quotes in a pattern%s", wayOut)
		}
	}
	pattern, err := p.parts(word.Parts, inOperand)
	if err != nil {
		return "", err
	}
	if !plainPattern.MatchString(pattern) {
		return "", p.failValue(node, "a pattern of more than letters, digits, _ - . , : / @ = + * ?%s", wayOut)
	}
	return pattern, nil
}

var plainPattern = regexp.MustCompile(`^[A-Za-z0-9_.,:/@=+*? -]{0,200}$`)

// plainValue refuses values on which operators count or match by locale.
func (p *parser) plainValue(exp *syntax.ParamExp, value string) error {
	for i := range len(value) {
		if value[i] < ' ' || value[i] > '~' {
			return p.failValue(exp, "a ${%s...} that takes apart a value with other than ASCII characters or with several lines%s", exp.Param.Value, wayOut)
		}
	}
	return nil
}

// slice evaluates ${NAME:offset:length}.
func (p *parser) slice(exp *syntax.ParamExp, value string) (string, error) {
	if err := p.plainValue(exp, value); err != nil {
		return "", err
	}
	if exp.Slice.Offset == nil {
		return "", p.fail(exp, "a ${%s:...} without an offset%s", exp.Param.Value, wayOut)
	}
	offset, err := p.number(exp.Slice.Offset)
	if err != nil {
		return "", err
	}
	end, n := int64(len(value)), int64(len(value))
	if offset < 0 {
		offset += n
	}
	if offset < 0 || offset > n {
		return "", nil
	}
	if exp.Slice.Length != nil {
		length, err := p.number(exp.Slice.Length)
		if err != nil {
			return "", err
		}
		end = min(offset+length, n)
		if length < 0 {
			end = n + length
		}
	}
	if end < offset {
		return "", p.failValue(exp, "a ${%s:...} that ends before it begins", exp.Param.Value)
	}
	return value[offset:end], nil
}

func literalWord(text string) *syntax.Word {
	return &syntax.Word{Parts: []syntax.WordPart{&syntax.Lit{Value: text}}}
}

// oneVariable is the environment in which an operator is evaluated.
type oneVariable string

func (v oneVariable) Get(string) expand.Variable {
	return expand.Variable{Set: true, Kind: expand.String, Str: string(v)}
}

func (v oneVariable) Each(func(string, expand.Variable) bool) {}

// expandWith has the library evaluate an operator whose operands are literal.
func expandWith(exp *syntax.ParamExp, value string) (string, error) {
	text, err := expand.Literal(&expand.Config{Env: oneVariable(value)}, &syntax.Word{Parts: []syntax.WordPart{exp}})
	if err != nil {
		return "", fmt.Errorf("cannot evaluate ${%s...}: %w", exp.Param.Value, err)
	}
	return text, nil
}
