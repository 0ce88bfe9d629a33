// Command instance-image is Ganeti's OS definition "image": create, import,
// export, rename and verify, its hooks, and the administrator's tools, told
// apart by the name they are called under.
package main

import (
	"os"

	"ganeti-instance-image/internal/chroot"
	"ganeti-instance-image/internal/cli"
)

func main() {
	chroot.Enter()
	os.Exit(cli.Run(os.Args))
}
