package admin

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/osscript"
)

func TestOutcome(t *testing.T) {
	need.Tools(t, "sh")
	cases := []struct {
		code  int
		ssh   bool
		class osscript.Class
		want  string
	}{
		{4, true, osscript.Disk, "the line above"}, {7, false, osscript.Refused, "the line above"}, {255, true, osscript.Other, "by ssh"},
		{127, true, osscript.Other, "is this version installed on node2?"}, {126, false, osscript.Other, "is this version installed on node2?"}, {255, false, osscript.Other, "exit code 255"},
	}
	for _, c := range cases {
		err := outcome(exec.Command("sh", "-c", fmt.Sprint("exit ", c.code)).Run(), "node2", c.ssh)
		if err == nil || osscript.ClassOf(err) != c.class || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := outcome(nil, "node2", true); err != nil {
		t.Error(err)
	}
	if err := outcome(errors.New("x"), "node2", true); osscript.ClassOf(err) != osscript.Other {
		t.Error(err)
	}
}

// Disks are attached where the instance was; where it is elsewhere since, nothing
// is done with them.
func TestCheckAgain(t *testing.T) {
	a := attachment{check: (*instance).checkDown, inst: &instance{name: "web", node: "a"}}
	for _, c := range []struct {
		now  instance
		want string
	}{
		{instance{name: "web", node: "a", status: "ADMIN_down"}, ""},
		{instance{name: "web", node: "a", status: "running"}, "gnt-instance shutdown"},
		{instance{name: "web", node: "b", status: "ADMIN_down"}, "moved from a to b"},
	} {
		err := a.checkAgain(&c.now)
		if (err == nil) != (c.want == "") || err != nil && (osscript.ClassOf(err) != osscript.Disk || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v", c.now, err)
		}
	}
}
