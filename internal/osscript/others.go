package osscript

import (
	"context"
	"errors"
	"fmt"
	"io"

	"ganeti-instance-image/internal/osapi"
	"ganeti-instance-image/internal/settings"
)

// Verify checks the OS parameters as "verify parameters". Ganeti calls it on
// the instance's nodes before there is a disk, and on the master alone when a
// cluster's or an OS's parameters change; so neither disks nor images count.
func Verify(ctx context.Context, env Env, args []string) error {
	if len(args) != 1 || args[0] != "parameters" {
		return classify(Input, errors.New(`cannot verify: want exactly one argument, "parameters"`))
	}
	inst, err := osapi.ReadCore(env.Environ)
	if err != nil {
		return classify(Input, err)
	}
	return classify(Input, settings.Verify(ctx, env.Site, inst, env.Environ))
}

// Import refuses, after it has read its input to the end: a reader that leaves
// early makes Ganeti report a broken pipe instead of our reason.
func Import(stdin io.Reader) error {
	if _, err := io.Copy(io.Discard, stdin); err != nil {
		return fmt.Errorf("cannot read the backup: %w", err)
	}
	return refuse("import an instance")
}

// Export refuses.
func Export() error { return refuse("export an instance") }

func refuse(what string) error {
	return classify(Refused, fmt.Errorf("cannot %s: this version does not do that yet", what))
}
