package admin

import (
	"strings"
	"testing"

	"ganeti-instance-image/internal/capture"
	"ganeti-instance-image/internal/osscript"
)

func TestCheckCapture(t *testing.T) {
	cases := []struct {
		status string
		runs   bool // it is known to run, and may
		ok     bool
	}{
		{"ADMIN_down", false, true}, {"USER_down", false, true}, {"running", true, true},
		{"running", false, false}, {"ERROR_down", true, false}, {"ERROR_up", false, false}, {"ERROR_nodeoffline", true, false},
	}
	for _, c := range cases {
		err := (&instance{name: "web", status: c.status}).checkCapture(c.runs)
		if (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
		if err != nil && (osscript.ClassOf(err) != osscript.Disk || !strings.Contains(err.Error(), "gnt-instance shutdown web") || strings.Contains(err.Error(), "--running") != (c.status == "running") || !strings.Contains(err.Error(), c.status)) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// An order that makes no sense is refused before Ganeti is asked.
func TestCaptureRefusesOrders(t *testing.T) {
	err := Master{}.Capture(t.Context(), "web", capture.Order{Type: "iso"})
	if osscript.ClassOf(err) != osscript.Input || !strings.Contains(err.Error(), `"iso"`) {
		t.Errorf("got %v", err)
	}
}
