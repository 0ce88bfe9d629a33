// Package shellfile reads settings files that Bash used to source: files of
// assignments. It evaluates what such files are made of (quotes, "export",
// comments, $NAME, ${NAME:-word}, ${NAME%pattern}, $((1+2)), ...) to the very
// bytes bash makes of it, or refuses the file with the line and what to do.
//
// Left out: everything that runs something ($(...), backticks, if, &&,
// functions, source), arrays, +=, redirections, ${NAME:=word}, what bash fills
// in by itself ($RANDOM, $HOSTNAME, $1), and the few constructs whose result
// depends on the locale or on the version of bash. None of these is skipped or
// guessed at; each is an error.
package shellfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

const (
	// MaxSize is how long a settings file may be, in bytes.
	MaxSize  = 1 << 20
	maxLines = 100_000
	// maxEntry is what Linux allows for one "NAME=value" of an environment,
	// its end included; settings are handed to hooks in one.
	maxEntry = 128 << 10
	// maxFrames is how deep the parser may call itself. A file of a megabyte
	// of opening brackets would use up the stack, which ends the program.
	maxFrames = 2000
)

// Assignment is one NAME=value of a file, evaluated.
type Assignment struct {
	Name, Value string
	Line        int // counted from 1: where the assignment begins
}

// Error says which line of a file cannot be evaluated, and why.
type Error struct {
	File string
	Line int
	Text string // what was found and what to do; never a value

	// ByValue is set where the line can be evaluated, but not with the values
	// its variables have here.
	ByValue bool
}

func (e *Error) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Text) }

// wayOut ends the message for everything bash would have run.
const wayOut = "; write the value itself, or have bash evaluate this file by a line SHELL_SETTINGS=yes in /etc/default/ganeti-instance-image"

// Parse evaluates the assignments of a file in their order; each sees those
// before it, and then env, which answers for the variables that bash would
// have had in its environment. An assignment made twice is returned twice.
// The error is an *Error whose message begins with name and the line.
func Parse(name string, text []byte, env func(name string) (string, bool)) ([]Assignment, error) {
	p := &parser{file: name, text: text, env: env, set: map[string]string{}}
	if err := p.plainText(text); err != nil {
		return nil, err
	}
	stmts, err := parse(text)
	for i, stmt := range stmts {
		if err := p.statement(stmt); err != nil {
			return nil, err
		}
		if err := p.gap(stmts, i); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, p.syntaxError(err)
	}
	return p.found, nil
}

// Literal finds the last assignment to a name that stands by itself at the
// top of a file and uses no expansion, also where the rest of the file is not
// for Parse to evaluate.
func Literal(text []byte, name string) (Assignment, bool) {
	var last Assignment
	var ok bool
	if len(text) > MaxSize {
		return last, false
	}
	stmts, _ := parse(text) // what stands before an error is still good
	for _, stmt := range stmts {
		p := &parser{text: text, set: map[string]string{}, literal: true}
		if p.statement(stmt) != nil {
			continue
		}
		for _, a := range p.found {
			if a.Name == name {
				last, ok = a, true
			}
		}
	}
	return last, ok
}

// parser evaluates one file.
type parser struct {
	file    string
	text    []byte
	env     func(string) (string, bool)
	set     map[string]string // what the file has assigned so far
	found   []Assignment
	line    int  // of the statement in work, for messages
	literal bool // refuse all expansions
}

func (p *parser) fail(node syntax.Node, format string, args ...any) *Error {
	line := p.line
	if node != nil && node.Pos().IsValid() {
		line = int(node.Pos().Line())
	}
	return &Error{File: p.file, Line: line, Text: fmt.Sprintf(format, args...)}
}

// failValue is fail for what another value of a variable would make good.
func (p *parser) failValue(node syntax.Node, format string, args ...any) error {
	err := p.fail(node, format, args...)
	err.ByValue = true
	return err
}

// plainText refuses what bash and other readers take in different ways.
func (p *parser) plainText(text []byte) error {
	p.line = 1
	if len(text) > MaxSize {
		return p.fail(nil, "the file is larger than %d bytes: this is not a settings file", MaxSize)
	}
	if bytes.Count(text, []byte("\n")) > maxLines {
		return p.fail(nil, "the file has more than %d lines: this is not a settings file", maxLines)
	}
	if bytes.HasPrefix(text, []byte("\xef\xbb\xbf")) {
		return p.fail(nil, "the file begins with a byte order mark, which bash takes for part of the first name: save it as UTF-8 without BOM")
	}
	// A byte 1 or 127 is dropped or doubled by some versions of bash.
	for _, bad := range []struct{ char, text string }{
		{"\x00", "a NUL byte: this is not a text file"},
		{"\r", `a carriage return, which bash would keep in the value: convert the file to Unix line ends (sed -i 's/\r$//')`},
		{"\x01", "a control character (0x01): remove it"},
		{"\x7f", "a control character (0x7f): remove it"},
		{"$\\\n", "a $ whose name stands on the next line: write both on one line"},
	} {
		if i := bytes.Index(text, []byte(bad.char)); i >= 0 {
			p.line = 1 + bytes.Count(text[:i], []byte("\n"))
			return p.fail(nil, "%s", bad.text)
		}
	}
	return nil
}

var errDeep = errors.New("brackets or commands are nested too deep")

// shallow stops the parser, which reads a kilobyte at a time, before its
// recursion uses up the stack.
type shallow struct{ io.Reader }

func (s shallow) Read(b []byte) (int, error) {
	if runtime.Callers(maxFrames, make([]uintptr, 1)) > 0 {
		return 0, errDeep
	}
	return s.Reader.Read(b)
}

// parse returns the statements up to the first error. It hears the parser out,
// which does not stop where it is told to.
func parse(text []byte) (stmts []*syntax.Stmt, first error) {
	statements := syntax.NewParser(syntax.Variant(syntax.LangBash)).StmtsSeq(shallow{bytes.NewReader(text)})
	statements(func(stmt *syntax.Stmt, err error) bool {
		switch {
		case first != nil:
		case err != nil:
			first = err
		default:
			stmts = append(stmts, stmt)
		}
		return true
	})
	return stmts, first
}

func (p *parser) syntaxError(err error) error {
	line, text := p.line, err.Error()
	var parseError syntax.ParseError
	var langError syntax.LangError
	switch {
	case errors.As(err, &parseError):
		line, text = int(parseError.Pos.Line()), parseError.Text
	case errors.As(err, &langError):
		line, text = int(langError.Pos.Line()), "not bash: "+langError.Feature
	}
	return &Error{File: p.file, Line: line, Text: "this is not an assignment (" + text + ")" + wayOut}
}

// statement takes one statement, which may be several assignments.
func (p *parser) statement(stmt *syntax.Stmt) error {
	p.line = int(stmt.Pos().Line())
	switch {
	case len(stmt.Redirs) > 0:
		return p.fail(stmt, "a redirection%s", wayOut)
	case stmt.Negated || stmt.Background || stmt.Coprocess || stmt.Disown:
		return p.fail(stmt, "a command%s", wayOut)
	}
	switch cmd := stmt.Cmd.(type) {
	case *syntax.CallExpr:
		if len(cmd.Args) > 0 {
			return p.fail(stmt, "the command %s%s%s", commandName(cmd.Args[0]), wayOut, spaceHint(cmd))
		}
		return p.assignments(cmd.Assigns)
	case *syntax.DeclClause:
		if cmd.Variant.Value != "export" {
			return p.fail(stmt, "the command %q%s", cmd.Variant.Value, wayOut)
		}
		if len(cmd.Args) == 0 {
			return p.fail(stmt, "export without a name, which prints all variables: remove it")
		}
		if !p.spaced(cmd.Variant, cmd.Args[0]) {
			return p.fail(stmt, backslashComment)
		}
		return p.export(cmd.Args)
	}
	return p.fail(stmt, "%s%s", describe(stmt.Cmd), wayOut)
}

const backslashComment = "a comment that ends with a backslash: take the backslash away"

var commentGoesOn = regexp.MustCompile(`^(?:[ \t;]|\\\n)*#[^\n]*\\\n`)

// gap refuses a comment behind a statement that ends with a backslash: the
// parser goes on with the statement on the next line, bash does not.
func (p *parser) gap(stmts []*syntax.Stmt, i int) error {
	end := stmts[i].Cmd.End().Offset() // a semicolon may stand behind the comment
	rest := p.text[end:]
	if i+1 < len(stmts) {
		rest = p.text[end:max(end, stmts[i+1].Pos().Offset())]
	}
	if commentGoesOn.Match(rest) {
		return p.fail(stmts[i], backslashComment)
	}
	return nil
}

// assignments takes A=1 B=$A: here a later one sees an earlier one.
func (p *parser) assignments(assigns []*syntax.Assign) error {
	for i, assign := range assigns {
		if i > 0 && !p.spaced(assigns[i-1], assign) {
			return p.fail(assign, backslashComment)
		}
		value, err := p.assign(assign)
		if err != nil {
			return err
		}
		p.keep(assign, value)
	}
	return nil
}

// export takes export A=1 B=$A: here bash expands all before it assigns any.
func (p *parser) export(args []*syntax.Assign) error {
	values := make([]string, len(args))
	for i, arg := range args {
		if i > 0 && !p.spaced(args[i-1], arg) {
			return p.fail(arg, backslashComment)
		}
		if arg.Naked && arg.Name != nil && arg.Index == nil {
			continue // "export NAME" assigns nothing
		}
		if arg.Name == nil {
			return p.fail(arg, "an option or expansion after export%s", wayOut)
		}
		if hasBrace(arg.Value) {
			return p.fail(arg, "a { without quotes after export, where bash expands braces: put the value into quotes")
		}
		var err error
		if values[i], err = p.assign(arg); err != nil {
			return err
		}
	}
	for i, arg := range args {
		if !arg.Naked {
			p.keep(arg, values[i])
		}
	}
	return nil
}

func (p *parser) keep(assign *syntax.Assign, value string) {
	p.set[assign.Name.Value] = value
	p.found = append(p.found, Assignment{Name: assign.Name.Value, Value: value, Line: int(assign.Pos().Line())})
}

func (p *parser) assign(assign *syntax.Assign) (string, error) {
	name := assign.Name.Value
	switch {
	case assign.Array != nil || assign.Index != nil:
		return "", p.fail(assign, "%s is set as an array%s", name, wayOut)
	case assign.Append:
		return "", p.fail(assign, "+= for %s: write %s=\"${%s}...\"", name, name, name)
	case !syntax.ValidName(name):
		return "", p.fail(assign, "an assignment to what is not a name%s", wayOut)
	case ofBash(name):
		return "", p.fail(assign, "%s has a meaning of its own in bash and cannot be set: choose another name", name)
	}
	if assign.Value == nil {
		return "", nil
	}
	if !p.joined(assign) {
		return "", p.fail(assign, "the value of %s is not in one piece right behind its = (does a comment end with a backslash?)", name)
	}
	value, err := p.parts(assign.Value.Parts, atValue)
	if err != nil {
		return "", err
	}
	if len(name)+len(value)+2 > maxEntry {
		return "", p.failValue(assign, "the value of %s is longer than the %d bytes an environment holds", name, maxEntry)
	}
	return value, nil
}

// joined tells whether a value stands in the text as bash sees it: right behind
// the "=" and in one piece. Where a comment or a space follows a line
// continuation, the parser takes more for the value than bash does.
func (p *parser) joined(assign *syntax.Assign) bool {
	end, want := assign.Name.End(), "="
	for _, part := range assign.Value.Parts {
		if p.source(end, part.Pos()) != want {
			return false
		}
		if lit, ok := part.(*syntax.Lit); ok && p.source(lit.Pos(), lit.End()) != unfold(lit.Value) {
			return false
		}
		end, want = part.End(), ""
	}
	return true
}

// spaced tells whether only blanks stand between two words, and no comment.
func (p *parser) spaced(before, after syntax.Node) bool {
	return strings.Trim(p.source(before.End(), after.Pos()), " \t") == ""
}

// source is the text between two places, its line continuations left out.
func (p *parser) source(from, to syntax.Pos) string {
	if from.Offset() > to.Offset() {
		return "not in order"
	}
	return unfold(string(p.text[from.Offset():to.Offset()]))
}

func unfold(text string) string { return strings.ReplaceAll(text, "\\\n", "") }

// lookup gives a variable its value as bash would see it.
func (p *parser) lookup(name string) (string, bool) {
	if value, ok := p.set[name]; ok {
		return value, true
	}
	return p.env(name)
}

// hasBrace tells whether a word holds a brace outside quotes.
func hasBrace(word *syntax.Word) bool {
	if word == nil {
		return false
	}
	for _, part := range word.Parts {
		if lit, ok := part.(*syntax.Lit); ok && strings.Contains(lit.Value, "{") {
			return true
		}
	}
	return false
}

// commandName is a command's first word for a message, if it is a plain one.
func commandName(word *syntax.Word) string {
	name := word.Lit()
	if name == "" || len(name) > 40 {
		return "that stands here"
	}
	return fmt.Sprintf("%q", name)
}

// spaceHint helps with the commonest slip, which makes NAME a command.
func spaceHint(cmd *syntax.CallExpr) string {
	if len(cmd.Args) > 1 && strings.HasPrefix(cmd.Args[1].Lit(), "=") {
		return " (an assignment has no space before its =)"
	}
	return ""
}

// describe names a command that is not a simple one, in words.
func describe(cmd syntax.Command) string {
	switch cmd := cmd.(type) {
	case *syntax.IfClause:
		return `the command "if"`
	case *syntax.WhileClause, *syntax.ForClause:
		return "a loop"
	case *syntax.CaseClause:
		return `the command "case"`
	case *syntax.FuncDecl:
		return "a function"
	case *syntax.BinaryCmd:
		return fmt.Sprintf("the operator %q between commands", cmd.Op)
	case *syntax.TestClause:
		return "a [[ ]] test"
	}
	return "a command"
}
