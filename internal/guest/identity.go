package guest

import (
	"crypto/rand"
	"strings"
)

// randomSeeds are where an init keeps randomness from one run to the next.
var randomSeeds = []string{
	"/var/lib/systemd/random-seed", "/var/lib/urandom/random-seed", "/var/lib/misc/random-seed",
	"/var/lib/random-seed", "/var/lib/seedrng/seed.no-credit", "/var/lib/seedrng/seed.credit",
}

// seedSize is the entropy pool's, in bytes, which seeds have.
const seedSize = 512

// traces are what two instances of one image must not share, or what is about
// the hardware of the one the image was taken from.
var traces = []struct{ pattern, why string }{
	{"/etc/udev/rules.d/70-persistent-net.rules", "which names the image's own interfaces"},
	{"/etc/lvm/devices/system.devices", "which lists the image's own disks"},
	{"/etc/blkid.tab*", "which lists the image's own disks"},
	{"/etc/blkid/blkid.tab*", "which lists the image's own disks"},
	{"/var/lib/systemd/credential.secret", "which is another guest's secret"},
	{"/var/lib/dhcp/*lease*", "a lease of another guest's"},
	{"/var/lib/dhclient/*lease*", "a lease of another guest's"},
	{"/var/lib/dhcpcd/*lease*", "a lease of another guest's"},
	{"/var/lib/NetworkManager/*lease*", "a lease of another guest's"},
}

// cloudTraces are what tells cloud-init that it has run.
var cloudTraces = []string{"/var/lib/cloud/instance", "/var/lib/cloud/instances", "/var/lib/cloud/data", "/var/lib/cloud/sem", "/var/log/cloud-init*.log"}

// ResetIdentity takes from a guest that was cloned what belongs to the one it is
// a clone of: its machine-id, D-Bus id, random seed, DHCP leases, names of
// interfaces and lists of disks; and, if asked to, what cloud-init remembers.
// Host keys and names are set by others. It is to be called before a network is
// rendered, which may name interfaces anew.
//
// What was changed is returned, a line a change, also where an error ended it.
func (r *Root) ResetIdentity(cloudInit bool) ([]string, error) {
	i := &identity{root: r}
	for _, step := range []func() error{i.machineID, i.randomSeed, i.traces} {
		if err := step(); err != nil {
			return i.changes, err
		}
	}
	if cloudInit {
		for _, pattern := range cloudTraces {
			if err := i.remove(pattern, "state of cloud-init"); err != nil {
				return i.changes, err
			}
		}
	}
	return i.changes, nil
}

type identity struct {
	root    *Root
	changes []string
}

func (i *identity) remove(pattern, why string) error {
	for _, name := range i.root.Glob(pattern) {
		if err := i.root.RemoveAll(name); err != nil {
			return err
		}
		i.changes = append(i.changes, "removed "+name+", "+why)
	}
	return nil
}

const (
	machineIDFile = "/etc/machine-id"
	dbusIDFile    = "/var/lib/dbus/machine-id"
)

// machineID has the guest make an id of its own. For systemd the file is left
// empty, since a missing one, or "uninitialized", makes the next boot the first,
// with all units set to their presets and questions on the console; where the
// image asks for that it stays so. D-Bus's copy must go, which systemd would
// take the id from.
func (i *identity) machineID() error {
	if info, err := i.root.Lstat(dbusIDFile); err == nil && info.IsRegular() {
		if err := i.remove(dbusIDFile, "the id of another guest"); err != nil {
			return err
		}
	}
	info, err := i.root.Lstat(machineIDFile)
	if err != nil {
		return nil
	}
	if !i.root.usesSystemd() {
		return i.remove(machineIDFile, "the id of another guest")
	}
	if info.IsRegular() {
		text, err := i.root.ReadFile(machineIDFile, releaseLimit)
		if said := strings.TrimSpace(string(text)); err == nil && (said == "" || said == "uninitialized") {
			return nil
		}
	} else if err := i.root.RemoveAll(machineIDFile); err != nil { // a link, as to the one above
		return err
	}
	if err := i.root.WriteFile(machineIDFile, nil, 0o444); err != nil {
		return err
	}
	i.changes = append(i.changes, "emptied "+machineIDFile)
	return i.root.Chmod(machineIDFile, 0o444)
}

// randomSeed puts the node's randomness in the place of the image's.
func (i *identity) randomSeed() error {
	for _, name := range randomSeeds {
		if info, err := i.root.Lstat(name); err != nil || !info.IsRegular() {
			continue
		}
		seed := make([]byte, seedSize)
		rand.Read(seed) // never fails
		if err := i.root.WriteFile(name, seed, 0o600); err != nil {
			return err
		}
		i.changes = append(i.changes, "wrote a new random seed to "+name)
	}
	return nil
}

func (i *identity) traces() error {
	for _, trace := range traces {
		if err := i.remove(trace.pattern, trace.why); err != nil {
			return err
		}
	}
	return nil
}
