package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// exitStatus is part of every help text, and of the README.
const exitStatus = `Exit status:
  0  done
  1  a program of the node or the node itself failed
  2  the call, a setting or an OS parameter is not usable
  3  the image is missing, could not be fetched, or is not accepted; the backup is damaged
  4  the disk is in use, too small or not reachable
  5  a hook failed
  6  interrupted by a signal
  7  what was asked cannot be done with this disk
The cause is the last line printed.
`

// printHelp prints the help of one program, or the list of all.
func printHelp(out io.Writer, p *program) {
	if p == nil {
		fmt.Fprint(out, "Usage: instance-image COMMAND [ARGUMENT ...]\n\nGaneti's OS definition \"image\". Each command is also a program of its own name.\n\n")
		for _, p := range programs {
			fmt.Fprintf(out, "  %-13s %s\n", p.name, p.what)
		}
		fmt.Fprint(out, "\n"+exitStatus)
		return
	}
	fmt.Fprintf(out, "Usage: %s\n\n%s\n", strings.TrimSpace(p.name+" "+p.usage), p.what)
	if !isTool(p) {
		fmt.Fprint(out, "\nGaneti calls it, with everything in environment variables: ganeti-os-interface(7).\nSettings: "+
			Sysconf+"/default/ganeti-instance-image and "+Sysconf+"/ganeti/instance-image/variants/VARIANT.conf.\n")
	}
	fmt.Fprint(out, "\n"+exitStatus)
}

// tools are the programs that Ganeti does not call.
var tools = []string{"hook", "version", "mount-disks", "umount-disks", "on-node-mount"}

func isTool(p *program) bool { return slices.Contains(tools, p.name) }
