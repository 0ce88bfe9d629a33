package admin

import (
	"errors"
	"strings"
	"testing"

	"ganeti-instance-image/internal/osscript"
)

func TestUmountOn(t *testing.T) {
	here := osscript.Answer{Dir: "/run/x"}
	failed := errors.New("it failed")
	type said struct {
		answer osscript.Answer
		err    error
	}
	cases := []struct {
		name  string
		nodes map[string]said
		node  string // where it was
		want  string // of the error
		asked int
	}{
		{"nowhere", nil, "", "", 3},
		{"on the primary", map[string]said{"a": {answer: here}}, "a", "", 1},
		{"on another", map[string]said{"c": {answer: here}}, "c", "", 3},
		{"behind one that is silent", map[string]said{"b": {err: failed}, "c": {answer: here}}, "c", "", 3},
		{"perhaps on one that is silent", map[string]said{"b": {err: failed}}, "", "not asked: b", 3},
		{"the primary is silent", map[string]said{"a": {err: failed}}, "", "it failed", 1},
		{"it cannot be unmounted", map[string]said{"b": {here, failed}}, "", "it failed", 2},
	}
	for _, c := range cases {
		asked := 0
		node, err := umountOn(t.Context(), []string{"a", "b", "c"}, &instance{name: "web", node: "a"}, func(node string) (osscript.Answer, error) {
			asked++
			return c.nodes[node].answer, c.nodes[node].err
		})
		if node != c.node || asked != c.asked || (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q, %v, %d asked", c.name, node, err, asked)
		}
	}
}
