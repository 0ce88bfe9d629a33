package run

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	result, err := Cmd{What: "print", Argv: []string{"sh", "-c", "cat; echo \"$LC_ALL\"; env | wc -l"}, Stdin: strings.NewReader("in\n")}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(string(result.Stdout)); got[0] != "in" || got[1] != "C" {
		t.Errorf("stdout = %q", result.Stdout)
	}
}

func TestRunFailureSaysEverything(t *testing.T) {
	_, err := Cmd{What: "check the disk", Argv: []string{"sh", "-c", "echo 'bad\nblock' >&2; exit 8"}}.Run(t.Context())
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"cannot check the disk", "exit status 8", "bad block"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

func TestRunAllowedExitCode(t *testing.T) {
	result, err := Cmd{What: "check", Argv: []string{"sh", "-c", "exit 1"}, OK: []int{1}}.Run(t.Context())
	if err != nil || result.Code != 1 {
		t.Errorf("code %d, %v", result.Code, err)
	}
}

func TestRunNotInstalled(t *testing.T) {
	_, err := Cmd{What: "do it", Argv: []string{"no-such-program"}}.Run(t.Context())
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "not installed") {
		t.Errorf("got %v", err)
	}
}

func TestRunCancelled(t *testing.T) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("asked to stop"))
	defer cancel()
	_, err := Cmd{What: "wait", Argv: []string{"sleep", "60"}}.Run(ctx)
	if err == nil || !strings.Contains(err.Error(), "asked to stop") {
		t.Errorf("got %v", err)
	}
}

func TestRunBoundedOutput(t *testing.T) {
	_, err := Cmd{What: "print", Argv: []string{"sh", "-c", "head -c 20000000 /dev/zero"}}.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "printed more") {
		t.Errorf("got %v", err)
	}
	_, err = Cmd{What: "print", Argv: []string{"sh", "-c", "seq 100000 >&2; echo last >&2; exit 1"}}.Run(t.Context())
	if e := (*Error)(nil); !errors.As(err, &e) || len(e.Stderr) > stderrLimit || !strings.HasSuffix(e.Stderr, "last\n") {
		t.Errorf("stderr was not bounded to its end: %v", err)
	}
}
