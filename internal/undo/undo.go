// Package undo keeps the reverse of each step that was taken, and takes them
// back in the opposite order.
//
// A step that holds something (a mount, a loop device, a lock) pushes its
// release with Push; it is always run. A step that changes something for good
// pushes its reverse with OnFailure; it is run only where the whole failed.
//
//	func create() (err error) {
//		var steps undo.Stack
//		defer steps.Unwind(&err)
//		...
//	}
package undo

import (
	"errors"
	"fmt"
)

// Stack holds the reverse steps of one operation. Its zero value is ready. It
// is not safe for use by several goroutines.
type Stack struct {
	steps []step
}

type step struct {
	what      string // what the reverse does, as in "unmount /run/x"
	undo      func() error
	onFailure bool
}

// Push adds a reverse step that is run whether the operation succeeds or not.
func (s *Stack) Push(what string, undo func() error) {
	s.steps = append(s.steps, step{what: what, undo: undo})
}

// OnFailure adds a reverse step that is run only if the operation fails.
func (s *Stack) OnFailure(what string, undo func() error) {
	s.steps = append(s.steps, step{what: what, undo: undo, onFailure: true})
}

// Unwind runs the steps, the last one first, each one whether or not the one
// before it succeeded, and joins their errors to *err. It is meant to be
// deferred; after a panic it runs all steps and lets the panic go on.
//
// A release that fails makes the operation fail, so the OnFailure steps below
// it in the stack run too.
func (s *Stack) Unwind(err *error) {
	cause := recover()
	for len(s.steps) > 0 {
		last := s.steps[len(s.steps)-1]
		s.steps = s.steps[:len(s.steps)-1]
		if last.onFailure && *err == nil && cause == nil {
			continue
		}
		if e := last.undo(); e != nil {
			*err = errors.Join(*err, fmt.Errorf("cannot %s: %w", last.what, e))
		}
	}
	if cause != nil {
		panic(cause)
	}
}
