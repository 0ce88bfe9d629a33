package osscript

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/network"
	"ganeti-instance-image/internal/osapi"
	"ganeti-instance-image/internal/render"
	"ganeti-instance-image/internal/seed"
	"ganeti-instance-image/internal/settings"
	"ganeti-instance-image/internal/store"
)

// Builtin is a hook this project brings.
type Builtin struct {
	Name, What string
	check      func(context.Context, *creation) error // before the disk is touched; may be nil
	run        func(context.Context, *customisation) error
}

// customisation is the guest a hook of ours works on.
type customisation struct {
	root    *guest.Root
	set     *settings.Settings
	inst    osapi.Instance
	environ []string
}

// Builtins are the hooks this project brings, in the order they run in.
var Builtins = []Builtin{
	{"cloud-init", "write a NoCloud seed: name, network, users and the site's user-data", checkCloudInit, runCloudInit},
	{"grub", "install the boot loader of a tarball or dump; disk images bring their own", nil, runGRUB},
	{"interfaces", "write the guest's network configuration and host name", checkInterfaces, runInterfaces},
	{"overlays", "copy the directory OVERLAY names into the guest", checkOverlays, runOverlays},
	{"ssh", "replace the ssh host keys", nil, runSSH},
	{"zz_ddns", "have the guest send its name to the DHCP server", nil, runDDNS},
}

func builtin(name string) (Builtin, bool) {
	for _, b := range Builtins {
		if b.Name == name {
			return b, true
		}
	}
	return Builtin{}, false
}

// RunHook is the other end of a hook's environment: it does what the hook of
// that name does to the guest below TARGET.
func RunHook(ctx context.Context, name string, environ []string) error {
	b, ok := builtin(name)
	if !ok {
		return classify(Refused, fmt.Errorf("cannot run the hook %q: this program does not bring it", name))
	}
	target := lookup(environ, "TARGET")
	if target == "" {
		return classify(Input, fmt.Errorf("cannot run the hook %s: TARGET is not set; hooks are run by create", name))
	}
	c := &customisation{environ: environ}
	var err error
	if c.inst, err = osapi.Read(environ); err != nil {
		return classify(Input, err)
	}
	if c.set, err = settings.FromEnviron(environ); err != nil {
		return classify(Input, err)
	}
	if c.root, err = guest.Open(target); err != nil {
		return err
	}
	defer c.root.Close()
	return errors.Join(b.run(ctx, c), relabel(c.root))
}

func runCloudInit(ctx context.Context, c *customisation) error {
	if !c.root.HasCloudInit() {
		slog.Warn("the image has no cloud-init: no seed is written, the guest keeps its own name, users and network")
		return nil
	}
	nics, err := network.Plan(ctx, c.set, c.inst)
	if err != nil {
		return err
	}
	for _, nic := range nics {
		slog.Info("network", "nic", nic.Name, "mac", nic.MAC, "by", nic.Source)
	}
	var userData []byte
	if file := lookup(c.environ, userDataVariable); file != "" {
		if userData, err = os.ReadFile(file); err != nil {
			return fmt.Errorf("cannot read the user-data: %w", err)
		}
	}
	var files []seed.File // none where they are on a disk
	if !c.set.SeedOnDisk() {
		facts := seed.FactsOf(c.root)
		facts.UserData = userData
		if files, err = seed.Files(c.set, c.inst, nics, facts); err != nil {
			return err
		}
	}
	changes, err := seed.Write(c.root, files)
	say("cloud-init", changes)
	return err
}

// runInterfaces also names the guest. Where cloud-init is in the guest too, its
// own network configuration is switched off: two on one interface are one too many.
func runInterfaces(ctx context.Context, c *customisation) error {
	nics, err := network.Plan(ctx, c.set, c.inst)
	if err != nil {
		return err
	}
	for _, nic := range nics {
		slog.Info("network", "nic", nic.Name, "mac", nic.MAC, "by", nic.Source)
	}
	for _, step := range []func() ([]string, error){
		func() ([]string, error) { return c.root.SetHostname(c.inst.Name, firstAddress(nics)) },
		func() ([]string, error) {
			return render.Write(c.root, nics, render.Options{CloudInit: c.root.HasCloudInit()})
		},
	} {
		changes, err := step()
		say("interfaces", changes)
		if err != nil {
			return err
		}
	}
	return nil
}

// firstAddress is an address that stays the guest's, if there is one.
func firstAddress(nics []network.NIC) netip.Addr {
	for _, nic := range nics {
		if len(nic.Addresses) > 0 {
			return nic.Addresses[0].Addr()
		}
	}
	return netip.Addr{}
}

func runSSH(_ context.Context, c *customisation) error {
	changes, err := c.root.ReplaceHostKeys(c.inst.Name)
	say("ssh", changes)
	return err
}

func runDDNS(_ context.Context, c *customisation) error {
	changes, err := c.root.SendHostname(c.inst.Name)
	say("zz_ddns", changes)
	return err
}

func runOverlays(_ context.Context, c *customisation) error {
	if c.set.Overlay == "" {
		return nil
	}
	dir := filepath.Join(c.set.OverlaysDir, c.set.Overlay)
	n, err := c.root.CopyIn(dir)
	if err == nil {
		slog.Info("copied the overlay", "from", dir, "files", n)
	}
	return err
}

// userDataLimit bounds the site's user-data; cloud-init takes more than any
// cloud's metadata service does.
const userDataLimit = 1 << 20

// readUserData reads the site's user-data from where the settings have it.
func readUserData(ctx context.Context, set *settings.Settings) ([]byte, error) {
	switch {
	case set.UserData != "":
		return []byte(set.UserData), nil
	case set.UserDataURL != "":
		text, err := store.Fetch(ctx, set, set.UserDataURL, userDataLimit)
		if err != nil {
			return nil, fmt.Errorf("cannot fetch the user-data that %s names: %w", set.Origin("USER_DATA_URL"), err)
		}
		return text, nil
	case set.UserDataFile != "":
		return readLimited(set.UserDataFile, set.Origin("USER_DATA_FILE"))
	}
	return nil, nil
}

func readLimited(path string, origin settings.Origin) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the user-data that %s names: %w", origin, err)
	}
	if !info.Mode().IsRegular() || info.Size() > userDataLimit {
		return nil, fmt.Errorf("cannot use the user-data that %s names: %s is not a regular file of at most 1 MiB", origin, path)
	}
	return os.ReadFile(path)
}

func lookup(environ []string, name string) string {
	value := ""
	for _, entry := range environ {
		if v, ok := strings.CutPrefix(entry, name+"="); ok {
			value = v
		}
	}
	return value
}

// findImage finds the image for this node's kind of machine.
func findImage(ctx context.Context, set *settings.Settings) (store.Found, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return store.Found{}, fmt.Errorf("cannot tell what machine this node is: %w", err)
	}
	return store.Find(ctx, set, unix.ByteSliceToString(uts.Machine[:]))
}
