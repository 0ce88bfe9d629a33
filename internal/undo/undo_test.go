package undo

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestUnwindRunsLastFirst(t *testing.T) {
	var ran []string
	record := func(name string) func() error {
		return func() error { ran = append(ran, name); return nil }
	}
	operation := func(result error) (err error) {
		var steps Stack
		defer steps.Unwind(&err)
		steps.Push("one", record("one"))
		steps.OnFailure("two", record("two"))
		steps.Push("three", record("three"))
		return result
	}

	if err := operation(nil); err != nil {
		t.Fatal(err)
	}
	if want := []string{"three", "one"}; !slices.Equal(ran, want) {
		t.Errorf("success ran %v, want %v", ran, want)
	}

	ran = nil
	cause := errors.New("no")
	if err := operation(cause); !errors.Is(err, cause) {
		t.Errorf("got %v, want the cause", err)
	}
	if want := []string{"three", "two", "one"}; !slices.Equal(ran, want) {
		t.Errorf("failure ran %v, want %v", ran, want)
	}
}

func TestUnwindReleaseThatFailsFailsTheOperation(t *testing.T) {
	wiped := false
	operation := func() (err error) {
		var steps Stack
		defer steps.Unwind(&err)
		steps.OnFailure("wipe", func() error { wiped = true; return nil })
		steps.Push("unmount /x", func() error { return errors.New("busy") })
		return nil
	}
	err := operation()
	if err == nil || !strings.Contains(err.Error(), "cannot unmount /x: busy") {
		t.Errorf("got %v", err)
	}
	if !wiped {
		t.Error("the steps below a failed release were not told of the failure")
	}
}

func TestUnwindAfterPanic(t *testing.T) {
	undone := false
	defer func() {
		if recover() == nil || !undone {
			t.Errorf("undone = %v, or the panic was lost", undone)
		}
	}()
	func() (err error) {
		var steps Stack
		defer steps.Unwind(&err)
		steps.OnFailure("undo", func() error { undone = true; return nil })
		panic("broken")
	}()
}
