package osscript

import (
	"context"
	"errors"

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
