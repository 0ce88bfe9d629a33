package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/alecthomas/kong"

	"ganeti-instance-image/internal/admin"
)

// ganetiImageCommands are ganeti-image's commands, as kong reads them.
type ganetiImageCommands struct {
	Hooks struct {
		List    hooksList   `cmd:"" default:"1" help:"List the hooks and whether they are on."`
		Enable  hooksSwitch `cmd:"" help:"Switch hooks on."`
		Disable hooksSwitch `cmd:"" help:"Switch hooks off."`
		Variant string      `help:"Take the settings of this variant into account, such as its CUSTOMIZE_DIR."`
	} `cmd:"" help:"The customisation hooks of this node."`
}

type hooksList struct{}

type hooksSwitch struct {
	Names []string `arg:"" name:"hook" help:"Name of a hook."`
}

func (hooksList) Run(ctx context.Context, c *call, commands *ganetiImageCommands) error {
	return commands.node(c).Hooks(ctx, c.stdout)
}

func (s hooksSwitch) Run(ctx context.Context, c *call, commands *ganetiImageCommands, k *kong.Context) error {
	return commands.node(c).SwitchHooks(ctx, s.Names, k.Selected().Name == "enable")
}

func (g *ganetiImageCommands) node(c *call) admin.Node {
	return admin.Node{Site: c.env.Site, Environ: c.env.Environ, Variant: g.Hooks.Variant}
}

// helpShown ends kong's parsing once it has printed help.
type helpShown struct{}

func ganetiImage(ctx context.Context, c *call) (err error) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(helpShown); !ok {
				panic(r)
			}
		}
	}()
	var commands ganetiImageCommands
	parser, err := kong.New(&commands,
		kong.Name("ganeti-image"),
		kong.Description("Manage hooks and images on this node.\n\n"+exitStatus),
		kong.Writers(c.stdout, os.Stderr),
		kong.Exit(func(int) { panic(helpShown{}) }),
		kong.BindTo(ctx, (*context.Context)(nil)),
	)
	if err != nil {
		return err
	}
	k, err := parser.Parse(c.args)
	if parse := (*kong.ParseError)(nil); errors.As(err, &parse) {
		return fmt.Errorf("cannot read the command line: %w; see: ganeti-image --help", err)
	}
	if err != nil {
		return err
	}
	return k.Run(c, k, &commands)
}
