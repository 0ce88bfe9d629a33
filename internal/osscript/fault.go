package osscript

import "errors"

// Class is the kind of a failure; the exit code tells it to scripts.
type Class int

// The classes of failure, by what somebody has to look at.
const (
	Other       Class = 1 // anything else: a tool, the node
	Input       Class = 2 // what Ganeti or the site said: environment, settings, OS parameters
	Image       Class = 3 // the image or the backup: not found, not downloaded, damaged, not accepted
	Disk        Class = 4 // the instance's disk: in use, too small, not reachable
	HookFailed  Class = 5 // a hook
	Interrupted Class = 6 // the operation was asked to stop
	Refused     Class = 7 // what was asked cannot be done with this disk
)

// fault is an error with its class.
type fault struct {
	class Class
	err   error
}

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

// classify gives err a class, unless it is nil or has one.
func classify(class Class, err error) error {
	if err == nil || errors.As(err, new(*fault)) {
		return err
	}
	return &fault{class, err}
}

// WithClass gives err a class, unless it is nil or has one.
func WithClass(class Class, err error) error { return classify(class, err) }

// Interrupt makes err one of an operation that was asked to stop.
func Interrupt(err error) error { return &fault{Interrupted, err} }

// ClassOf returns the class of an error, Other where it has none.
func ClassOf(err error) Class {
	if f := (*fault)(nil); errors.As(err, &f) {
		return f.class
	}
	return Other
}
