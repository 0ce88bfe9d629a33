package shellfile

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"ganeti-instance-image/internal/need"
)

// given is the environment in which both evaluate a file.
var given = map[string]string{
	"PATH": "/usr/bin:/bin", "HOME": "/home/u", "BB": "bb", "EMPTY": "", "N": "7", "NEG": "-3", "OCT": "010",
	"FILE": "debian-12.tar.gz", "STAR": "a*b", "UTF": "\u00e9t\u00e9", "TWO": "one two  three",
}

func lookup(name string) (string, bool) { value, ok := given[name]; return value, ok }

// same and loud say what Parse makes of a construct: what bash makes of it, or
// an error. There is nothing between the two.
const (
	same = "as bash"
	loud = "an error"
)

var constructs = []struct{ text, want string }{
	// Lines
	{"A=1", same},
	{"A=1\n", same},
	{"", same},
	{"\n\n# only a comment\n", same},
	{"A=1 # comment", same},
	{"A=1 B=2;C=3\n  D=4", same},
	{"A=1 B=$A", same},
	{"A=1\nA=2", same},
	{"A=1\nA=\n", same},
	{"A=\\\nx", same},
	{"A=x\\\ny B=2", same},
	{"A\\\nB=1", loud},
	{"A=1 \\\n  B=2", same},
	{"A=x\\\\\\\ny B=\"\\\\\\\nz\"", same},
	{"A=$\\\nBB", loud},
	{"A=\\\n x", loud},
	{"A= ~/x=y", loud},
	{"A=1\n# c \\\nB=2", same},
	{"A=1 # c \\\nB=2", loud},
	{"A= # c \\\nB=2", loud},
	{"A=\"1\" # c \\\n;\nB=2", loud},
	{"A=1; # c \\\nB=2", loud},
	{"A=1 # c \\", same},
	{"A=0\nexport BB # c \\\nA=1 B=$A", loud},
	{"A=0\nexport # c \\\nA=1 B=$A", loud},
	{"A=x # c \\\n$'y'", loud},
	{"export A=\\\n #\\\nx", loud},
	{"# a comment \\\nA=1", same},
	{"A=x\\", loud},
	{"A=x\\\n\\\n\\", loud},
	{"\tA=1\t", same},
	{"if=1 time=2 export=3", same},
	{"A=1\r\nB=2\r\n", loud},
	{"A='x\ry'", loud},
	{"A=1\x00B=2\n", loud},
	{"A='a\x01b'", loud},
	{"\xef\xbb\xbfA=1\n", loud},
	{"A=\xff", loud},
	{"A=x\vy B=x\fy", same},
	{"A=1;;B=2", loud},
	{"A='open", loud},
	{"A=1\nB=\"open", loud},
	{"A=$(open", loud},
	{"A=${open", loud},

	// export
	{"export A=1", same},
	{"export A=1 B='x y' C", same},
	{"A=0; export A=1 B=$A", same},
	{"export BB", same},
	{"export A=~/x:~", same},
	{"export A=$TWO", same},
	{"export A=*", same},
	{"export A={a,b}", loud},
	{"export A='{a,b}'", same},
	{"export", loud},
	{"export -n A=1", loud},
	{"export -f A", loud},
	{"export -- A=1", loud},
	{"export $BB=1", loud},
	{"export \"A=1\"", loud},
	{"A=1 export B=2", loud},
	{"readonly A=1", loud},
	{"declare A=1", loud},
	{"declare -i A=1+1", loud},
	{"local A=1", loud},
	{"typeset A=1", loud},

	// Quotes and backslashes
	{"A=\"a b\"", same},
	{"A='a b'", same},
	{"A=a#b", same},
	{"A=\"a # b\"", same},
	{"A=a\\ b", same},
	{"A='it'\\''s'", same},
	{"A=\"it's\"", same},
	{"A='say \"x\"'", same},
	{"A=\"say \\\"x\\\"\"", same},
	{"A=\"\\$x \\\\ \\` \\a \\\nb\"", same},
	{"A='\\a\\\nb'", same},
	{"A=\\\\\\$\\\"\\'", same},
	{"A=x\"y\"'z'$BB\\t", same},
	{"A='one\ntwo'", same},
	{"A=\"one\ntwo\"", same},
	{"A=\"\"''", same},
	{"A=", same},
	{"A=a=b==c", same},
	{"A==x", same},
	{"A=*.conf?[a-z]", same},
	{"A={a,b}", same},
	{"A=\"a!b\"!c", same},
	{"A=\\\u00e9\u00e9", same},
	{"A=$'a\\tb\\n\\'\\\\ \\x41\\101\\e'", same},
	{"A=$'\\x4g\\08\\q'", loud},
	{"A=$'\\400'", loud},
	{"A=$'a\\0b'c", loud},
	{"A=$'\\u00e9'", loud},
	{"A=$'\\cA'", loud},
	{"A=$'\\x{41}'", loud},
	{"A=$'\\z'", loud},
	{"A=$\"text\"", same},
	{"A=\"$'x'\"", same},
	{"A=$ B=\"$\" C=a$ D=\"a$ b\" E=$%", same},

	// Variables
	{"A=$BB", same},
	{"A=${BB}c$BB_c", same},
	{"A=\"$BB/x\"", same},
	{"A='$BB'", same},
	{"A=$UNSET/x", same},
	{"A=$TWO B=\"$TWO\"", same},
	{"A=$STAR", same},
	{"B=$A A=1", same},
	{"A=${UNSET:-x y} B=${BB:-x} C=${EMPTY:-x} D=${EMPTY-x} E=${UNSET-x}", same},
	{"A=${UNSET:+x} B=${BB:+x$BB} C=${EMPTY:+x} D=${EMPTY+x} E=${UNSET+x}", same},
	{"A=${UNSET:-$BB} B=${UNSET:-${EMPTY:-z}} C=\"${UNSET:-$BB-c}\"", same},
	{"A=${UNSET:-\"x y\"} B=${UNSET:-'x y'}", same},
	{"A=${UNSET:-} B=${UNSET-}", same},
	{"A=\"${UNSET:-'x'}\"", loud},
	{"A=\"${UNSET:-\"x\"}\"", loud},
	{"A=${UNSET:-a\\ b}", loud},
	{"A=\"${UNSET:-a\\$b}\"", loud},
	{"A=${UNSET:-~/x}", loud},
	{"A=${UNSET:-{x}}", loud},
	{"A=${EMPTY-$${BB}", loud},
	{"A=${BB:?is needed}", same},
	{"A=${UNSET:?is needed}", loud},
	{"A=${EMPTY:?}", loud},
	{"A=${EMPTY?}", same},
	{"A=${UNSET:=x}", loud},
	{"A=${#BB}${#EMPTY}", same},
	{"A=${#UTF}", loud},
	{"A=${FILE%.gz} B=${FILE%%.*} C=${FILE#debian-} D=${FILE##*.} E=${FILE%x}", same},
	{"A=${FILE%$EMPTY} B=${BB%b}", same},
	{"A=${STAR%\"*b\"}", loud},
	{"A=${FILE%[z]}", loud},
	{"A=${FILE%\\*}", loud},
	{"A=${UTF%?}", loud},
	{"A=${FILE/debian/x} B=${FILE//./_} C=${FILE/-/} D=${FILE/nothing/x} E=${UNSET/a/b}", same},
	{"A=${FILE/./&}", loud},
	{"A=${FILE/#d/x}", loud},
	{"A=${FILE/%z/x}", loud},
	{"A=${FILE//\\//-}", loud},
	{"A=${FILE//*/x}", loud},
	{"A=${FILE^^} B=${FILE^} C=${FILE,,} D=${FILE,}", same},
	{"A=${FILE^^d}", loud},
	{"A=${UTF^^}", loud},
	{"A=${FILE:0:6} B=${FILE:7} C=${FILE: -2} D=${FILE:2:-3} E=${FILE:99}", same},
	{"A=${BB:1:-2}", loud},
	{"A=${FILE@Q}", loud},
	{"A=${!BB}", loud},
	{"A=${!B*}", loud},
	{"A=${BB[0]}", loud},
	{"A=${BB[@]}", loud},
	{"A=$HOME", same},
	{"HOME=/x A=~ B=~/y C=a:~/b D=~:~", same},
	{"A=~/x B=~ C=x~y D='~' E=\"~\" F=\\~ G=a:\\~", same},
	{"A=a\\:~/x", same},
	{"A=$BB:~/y", same},
	{"A=~root", loud},
	{"A=~+", loud},
	{"A=~-/x", loud},
	{"A=~$BB", loud},
	{"A=\"x:\"~/y", loud},

	// Arithmetic
	{"A=$((1+2*3)) B=$(( (1+2)*3 )) C=$((7/2)) D=$((-7/2)) E=$((-7%4)) F=$((N*1024))", same},
	{"A=$(($N+1)) B=$((${N}*2)) C=$((EMPTY+1)) D=$((UNSET+1)) E=$((-NEG)) F=$((5-NEG))", same},
	{"A=$((10-4-3)) B=$((100/10/2)) C=$((2*7%4)) D=$((+N)) E=$((- -1))", same},
	{"A=$((OCT))", loud},
	{"A=$((010))", loud},
	{"A=$((0x10))", loud},
	{"A=$((1/0))", loud},
	{"A=$((1-$NEG))", loud},
	{"A=$((1+$EMPTY))", loud},
	{"A=$((N=1))", loud},
	{"A=$((N++))", loud},
	{"A=$((2**10))", loud},
	{"A=$((1<2))", loud},
	{"A=$((9007199254740993*9))", loud},
	{"A=$((999999999*999999999))", loud},
	{"A=$(())", loud},
	{"A=$[1+2]", loud},

	// What bash fills in
	{"A=$1", loud},
	{"A=$@", loud},
	{"A=$#", loud},
	{"A=$$", loud},
	{"A=$?", loud},
	{"A=$!", loud},
	{"A=$-", loud},
	{"A=$0", loud},
	{"A=$_", loud},
	{"A=$RANDOM", loud},
	{"A=$SECONDS", loud},
	{"A=$LINENO", loud},
	{"A=$UID", loud},
	{"A=$PWD", loud},
	{"A=$HOSTNAME", loud},
	{"A=$SHELL", loud},
	{"A=$BASH_VERSION", loud},
	{"A=$IFS", loud},
	{"A=$((RANDOM))", loud},
	{"A=$PATH", same},
	{"HOSTNAME=h A=$HOSTNAME", same},
	{"UID=5", loud},
	{"IFS=:", loud},
	{"BASH_ENV=/x", loud},

	// What runs something or is not an assignment
	{"A=$(echo x)", loud},
	{"A=\"$(echo x)\"", loud},
	{"A=`echo x`", loud},
	{"A=\"`echo x`\"", loud},
	{"A=${UNSET:-$(echo x)}", loud},
	{"A=<(echo x)", loud},
	{"A=(1 2)", loud},
	{"A[0]=1", loud},
	{"A+=1", loud},
	{"A=1 >/dev/null", loud},
	{"A=1 </dev/null", loud},
	{"A=1 &", loud},
	{"! A=1", loud},
	{"A=1 && B=2", loud},
	{"A=1 | B=2", loud},
	{"(A=1)", loud},
	{"{ A=1; }", loud},
	{"if true; then A=1; fi", loud},
	{"[ -z \"$UNSET\" ] && A=1", loud},
	{"[[ -z $UNSET ]] && A=1", loud},
	{"for A in 1 2; do B=$A; done", loud},
	{"while false; do A=1; done", loud},
	{"case x in x) A=1;; esac", loud},
	{"f() { A=1; }", loud},
	{"((A=1))", loud},
	{"let A=1", loud},
	{": ${A:=x}", loud},
	{"A = 1", loud},
	{"A= 1", loud},
	{"A-B=1", loud},
	{"1A=1", loud},
	{"'A'=1", loud},
	{"unset BB", loud},
	{"set -e", loud},
	{"true", loud},
	{". /dev/null", loud},
	{"source /dev/null", loud},
	{"A=+(x)", loud},
	{"A=1 true", loud},
	{"coproc A=1", loud},
	{"cat <<E\nA=1\nE\n", loud},
}

func TestParseIsAsBashOrLoud(t *testing.T) {
	need.Tools(t, "bash")
	dir := t.TempDir()
	seen := map[string]bool{}
	for _, c := range constructs {
		if seen[c.text] {
			t.Errorf("%q is here twice", c.text)
		}
		seen[c.text] = true
		found, err := Parse("conf", []byte(c.text), lookup)
		if c.want == loud {
			var e *Error
			if !errors.As(err, &e) || !strings.HasPrefix(e.Error(), fmt.Sprintf("conf:%d: ", e.Line)) || e.Line < 1 {
				t.Errorf("%q: got %v, %v, want an error with its line", c.text, found, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v, want what bash makes of it", c.text, err)
			continue
		}
		if diff := cmp.Diff(byBash(t, dir, c.text), final(found)); diff != "" {
			t.Errorf("%q is not what bash makes of it (-bash +ours):\n%s", c.text, diff)
		}
	}
	if len(constructs) < 60 {
		t.Errorf("%d constructs", len(constructs))
	}
}

// final is what a file leaves: the last value of each name.
func final(found []Assignment) map[string]string {
	values := map[string]string{}
	for _, a := range found {
		values[a.Name] = a.Value
	}
	return values
}

// byBash is what bash makes of a file: the variables that are new or differ.
// The shell cannot find any program, since it runs whatever a test makes up.
func byBash(t *testing.T, dir, text string) map[string]string {
	t.Helper()
	path := filepath.Join(dir, "conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", "-c", `set -a; . "$1"; exec /usr/bin/env -0`, "bash", path)
	cmd.Dir = dir
	for name, value := range given {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("bash on %q: %v", text, err)
	}
	values := map[string]string{}
	for entry := range strings.SplitSeq(string(out), "\x00") {
		name, value, _ := strings.Cut(entry, "=")
		switch name {
		case "", "_", "PWD", "SHLVL", "OLDPWD":
			continue
		}
		values[name] = value
	}
	// A name that is set to what it was anyway counts too.
	found, _ := Parse("conf", []byte(text), lookup)
	set := final(found)
	maps.DeleteFunc(values, func(name, value string) bool {
		_, assigned := set[name]
		was, ok := given[name]
		return !assigned && ok && was == value
	})
	return values
}

// atoms are pieces of which random values are put together; none runs a
// program that exists.
var atoms = []string{
	"a", "b", "x y", " ", "1", "0", "~", "/", ":", "=", "#", ".", "-", "*", "?", "[", "]", "{", "}", ",", "!", "%", "@", "+", "^",
	"\\", "\\\\", "\\n", "\\\n", "'", "\"", "$", "$'", "$\"", "''", "\"\"", "'q q'", "\"d $BB\"", "$BB", "${BB}", "$EMPTY", "$UNSET", "$TWO", "$STAR", "$UTF",
	"${UNSET:-", "${BB:+", "${EMPTY-", "${FILE%", "${FILE%%", "${FILE#", "${FILE##", "${FILE/", "${FILE//", "${FILE^", "${FILE,,", "${#BB", "${FILE:", "${EMPTY/", "}",
	"$((", "))", "(", ")", "N", "$N", "NEG", "*2", "+1", "-1", "/3", "%5", "\t", "\n", ";", "\nB=", " C=", "\nexport D=", " # c\n", " # c\\\n", "\u00e9", "$'\\t'", "$'\\x41'", "~/",
}

// TestRandomFilesAreAsBashOrLoud looks for a construct the table forgets.
func TestRandomFilesAreAsBashOrLoud(t *testing.T) {
	need.Tools(t, "bash")
	dir, random := t.TempDir(), rand.New(rand.NewPCG(7, 11))
	taken := 0
	for range 60_000 {
		text := "A="
		for range 1 + random.IntN(7) {
			text += atoms[random.IntN(len(atoms))]
		}
		found, err := Parse("conf", []byte(text), lookup)
		if err != nil {
			continue
		}
		if taken++; taken > 300 {
			break
		}
		if diff := cmp.Diff(byBash(t, dir, text), final(found)); diff != "" {
			t.Errorf("%q is not what bash makes of it (-bash +ours):\n%s", text, diff)
		}
	}
	if taken < 300 {
		t.Errorf("only %d of the random files could be evaluated", taken)
	}
}

func TestErrorsNameTheLineAndTheWayOut(t *testing.T) {
	cases := []struct {
		text string
		line int
		want string
	}{
		{"A=1\n\nB=$(hostname)\n", 3, "command substitution"},
		{"A=1\nif true; then\nB=2\nfi\n", 2, `"if"`},
		{"A=1\nB = 2\n", 2, "no space before its ="},
		{"A=1\n. /etc/other\n", 2, `"."`},
		{"A='x\ny' B=`id`\n", 2, "command substitution"},
		{"A=(1 2)", 1, "A is set as an array"},
		{"A=1\nB=2 >x", 2, "a redirection"},
		{"f() { :; }", 1, "a function"},
		{"[ -n \"$A\" ] && B=1", 1, `the operator "&&"`},
	}
	for _, c := range cases {
		_, err := Parse("/etc/x", []byte(c.text), lookup)
		prefix := fmt.Sprintf("/etc/x:%d: ", c.line)
		if err == nil || !strings.HasPrefix(err.Error(), prefix) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "SHELL_SETTINGS=yes") {
			t.Errorf("%q: got %v, want %s...%s...SHELL_SETTINGS=yes", c.text, err, prefix, c.want)
		}
	}
	_, err := Parse("/etc/x", []byte("A=${SECRET:?must be set}"), lookup)
	if err == nil || !strings.Contains(err.Error(), "/etc/x:1: SECRET is not set") {
		t.Errorf("got %v", err)
	}
}

func TestParseKeepsLinesAndOrder(t *testing.T) {
	found, err := Parse("conf", []byte("A=1\n\nB='x\ny'\nexport C=3 D=4\nA=5\n"), lookup)
	want := []Assignment{{"A", "1", 1}, {"B", "x\ny", 3}, {"C", "3", 5}, {"D", "4", 5}, {"A", "5", 6}}
	if err != nil || !cmp.Equal(want, found) {
		t.Errorf("got %v, %v", found, err)
	}
}

func TestParseBoundsWhatItTakes(t *testing.T) {
	grow := "A=" + strings.Repeat("x", 1000) + "\n" + strings.Repeat("A=$A$A\n", 40)
	cases := []struct{ what, text string }{
		{"a large file", strings.Repeat("#", MaxSize+1)},
		{"many lines", strings.Repeat("\n", maxLines+1)},
		{"a long value", "A=" + strings.Repeat("x", maxEntry)},
		{"values that double", grow},
		{"a replacement that grows", "A=" + strings.Repeat("x", 60_000) + "\nB=${A//x/$A}"},
	}
	for _, open := range []string{"if ", "( ", "{ ", "! ", "A=$((", "A=$((1+", "A=$((!", "A=${A:-", "A=\"${A:-", "A=$(", "A=`\\`", "[[ ! ", "A[$((", "time ", "A=@("} {
		cases = append(cases, struct{ what, text string }{"nested " + open, strings.Repeat(open, MaxSize/len(open))})
	}
	for _, c := range cases {
		if _, err := Parse("conf", []byte(c.text), lookup); err == nil {
			t.Errorf("%s: no error", c.what)
		}
		Literal([]byte(c.text), "A")
	}
}

func TestLiteral(t *testing.T) {
	text := "SHELL_SETTINGS=no\nif true; then SHELL_SETTINGS=inner; fi\nA=$(x)\nexport SHELL_SETTINGS='yes' # here\n"
	cases := []struct {
		text, value string
		line        int
		ok          bool
	}{
		{text, "yes", 4, true},
		{"SHELL_SETTINGS=yes\nA=(", "yes", 1, true},
		{"SHELL_SETTINGS=$A\n", "", 0, false},
		{"SHELL_SETTINGS=~\n", "", 0, false},
		{"# SHELL_SETTINGS=yes\nX='\nSHELL_SETTINGS=yes\n'\n", "", 0, false},
		{"f() { SHELL_SETTINGS=yes; }\n", "", 0, false},
		{"SHELL_SETTINGS=yes true\n", "", 0, false},
		{"true && SHELL_SETTINGS=yes\n", "", 0, false},
		{strings.Repeat("\n", MaxSize+1) + "SHELL_SETTINGS=yes", "", 0, false},
	}
	for _, c := range cases {
		got, ok := Literal([]byte(c.text), "SHELL_SETTINGS")
		if ok != c.ok || got.Value != c.value || got.Line != c.line {
			t.Errorf("%.60q: got %+v, %v", c.text, got, ok)
		}
	}
}

// FuzzParse wants that whatever is evaluated, printed with quotes and read
// again is the same.
func FuzzParse(f *testing.F) {
	for _, c := range constructs {
		f.Add([]byte(c.text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		Literal(text, "A")
		found, err := Parse("conf", text, lookup)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		var printed strings.Builder
		for _, a := range found {
			fmt.Fprintf(&printed, "%s='%s'\n", a.Name, strings.ReplaceAll(a.Value, "'", `'\''`))
		}
		again, err := Parse("again", []byte(printed.String()), lookup)
		plain := (&parser{}).plainText([]byte(printed.String())) == nil && utf8.ValidString(printed.String())
		if err != nil && plain { // $'...' makes what no file may hold
			t.Fatalf("printed as %q: %v", printed.String(), err)
		}
		if err == nil && !cmp.Equal(final(found), final(again)) {
			t.Fatalf("printed as %q: got %v, want %v", printed.String(), again, found)
		}
	})
}
