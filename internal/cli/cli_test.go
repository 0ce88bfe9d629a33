package cli

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/osscript"
)

// The master leaves disks attached that somebody else uses.
func TestSayHeld(t *testing.T) {
	for _, c := range []struct {
		err  error
		held bool
	}{
		{nil, false}, {errors.New("x"), false},
		{osscript.WithClass(osscript.Disk, fmt.Errorf("cannot open it: %w: by QEMU", block.ErrInUse)), true},
	} {
		var out bytes.Buffer
		err := sayHeld(&out, c.err)
		if !errors.Is(err, c.err) || osscript.ClassOf(err) != osscript.ClassOf(c.err) || osscript.ReadAnswer(out.Bytes()).Held != c.held {
			t.Errorf("%v: %v, %s", c.err, err, out.String())
		}
	}
}

func TestCommandLinesThatCannotBeRead(t *testing.T) {
	for _, args := range [][]string{{"deploy"}, {"capture", "--none", "web"}, {"unknown"}, {"mount", "a", "b"}} {
		if err := ganetiImage(t.Context(), &call{args: args, stdout: new(bytes.Buffer)}); osscript.ClassOf(err) != osscript.Input {
			t.Errorf("%q: %v", args, err)
		}
	}
}
