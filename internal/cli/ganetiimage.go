package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/alecthomas/kong"

	"ganeti-instance-image/internal/admin"
	"ganeti-instance-image/internal/osscript"
)

// ganetiImageCommands are ganeti-image's commands, as kong reads them.
type ganetiImageCommands struct {
	Hooks struct {
		List    hooksList   `cmd:"" default:"1" help:"List the hooks and whether they are on."`
		Enable  hooksSwitch `cmd:"" help:"Switch hooks on."`
		Disable hooksSwitch `cmd:"" help:"Switch hooks off."`
		Variant string      `help:"Take the settings of this variant into account, such as its CUSTOMIZE_DIR."`
	} `cmd:"" help:"The customisation hooks of this node."`
	Deploy  deployImage  `cmd:"" help:"Put an image on a disk of an instance that is stopped (on the master)."`
	Mount   mountDisks   `cmd:"" help:"Mount the file systems of an instance that is stopped on its node, until umount (on the master)."`
	Umount  umountDisks  `cmd:"" help:"Unmount what mount mounted, and detach the disks (on the master)."`
	Seed    writeSeed    `cmd:"" help:"Write the cloud-init seed of an instance to a disk of it, while it is stopped, or to a file (on the master)."`
	Capture captureImage `cmd:"" help:"Make an image of an instance that is stopped (on the master)."`
}

type deployImage struct {
	Image  string `arg:"" help:"A file's full path on the instance's node, a URL, or the name of an image."`
	Target string `arg:"" name:"instance[:disk]" help:"Disk 0, where none is named, is grown and customised, another one is grown."`
}

type writeSeed struct {
	Target string `arg:"" name:"instance[:disk]" help:"The disk that SEED_DISK or a DISK_n names, where none is named here."`
	Out    string `type:"path" placeholder:"FILE" help:"Write the seed to this file instead, as an ISO 9660 image."`
}

type mountDisks struct {
	Instance string `arg:"" help:"Its name. It has to be stopped."`
	ReadOnly bool   `help:"Leave every byte of the disks as it is; journals are not replayed."`
}

type umountDisks struct {
	Instance string `arg:"" help:"Its name."`
	Here     bool   `help:"Unmount on this node alone and do not ask Ganeti, which also keeps the disks attached."`
}

func (m mountDisks) Run(ctx context.Context, c *call) error {
	return c.master().Mount(ctx, m.Instance, m.ReadOnly)
}

func (u umountDisks) Run(ctx context.Context, c *call) error {
	if u.Here {
		return c.master().UmountHere(u.Instance)
	}
	return c.master().Umount(ctx, u.Instance)
}

func (d deployImage) Run(ctx context.Context, c *call) error {
	return c.master().Deploy(ctx, d.Image, d.Target)
}

func (w writeSeed) Run(ctx context.Context, c *call) error {
	if w.Out != "" && !strings.Contains(w.Target, ":") {
		return c.master().SeedFile(ctx, w.Target, w.Out)
	}
	if w.Out != "" {
		return osscript.WithClass(osscript.Input, errors.New("cannot write the seed both to a disk and to a file: leave out :DISK, or --out"))
	}
	return c.master().Seed(ctx, w.Target)
}

func (c *call) master() admin.Master {
	program, err := os.Executable()
	if err != nil {
		program = os.Args[0]
	}
	return admin.Master{Site: c.env.Site, Program: program, Stdout: c.stdout, Stderr: os.Stderr}
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
	k, err := parser.Parse(modernise(c.args))
	if parse := (*kong.ParseError)(nil); errors.As(err, &parse) {
		return osscript.WithClass(osscript.Input, fmt.Errorf("cannot read the command line: %w; see: ganeti-image --help", err))
	}
	if err != nil {
		return err
	}
	return k.Run(c, k, &commands)
}
