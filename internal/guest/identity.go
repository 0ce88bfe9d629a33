package guest

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// identityParts is what two instances of one image must not share, or what is
// about the hardware of the one the image was taken from, in the order it is
// taken away.
var identityParts = []struct {
	name  string
	reset func(*identity) error
}{
	{"machine-id", (*identity).machineID},
	{"random-seed", (*identity).randomSeed},
	{"dhcp-leases", removal(leases, "which another guest got")},
	{"net-names", (*identity).netNames},
	{"lvm-devices", removal(lvmDevices, "which lists the image's own disks")},
	{"iscsi", (*identity).initiator},
	{"credential-secret", removal([]string{"/var/lib/systemd/credential.secret"}, "which is another guest's secret")},
	{"blkid", removal([]string{"/etc/blkid.tab*", "/etc/blkid/blkid.tab*", "/run/blkid/blkid.tab*"}, "which lists the image's own disks")},
	{"cloud-init", removal(cloudTraces, "what cloud-init knows of another guest")},
}

// IdentityParts are the words that ResetIdentity may be told to keep, in the
// order in which it takes the parts away.
var IdentityParts = identityNames()

func identityNames() []string {
	var names []string
	for _, part := range identityParts {
		names = append(names, part.name)
	}
	return names
}

// ResetIdentity takes from a guest that was cloned what belongs to the one it is
// a clone of: its machine-id, D-Bus id, random seeds, DHCP leases and client
// ids, names of interfaces, lists of disks, iSCSI initiator's name, the secret
// of systemd's credentials, and what cloud-init remembers. What keep names, of IdentityParts, stays. Host keys and names are set
// by others. It is to be called before a network is rendered, which may name
// interfaces anew, and before a seed is written.
//
// What was changed is returned, a line a change, also where an error ended it. A
// second call changes what is random alone.
func (r *Root) ResetIdentity(keep []string) ([]string, error) {
	for _, word := range keep {
		if !slices.Contains(IdentityParts, word) {
			return nil, fmt.Errorf("cannot keep %q of the guest's identity: its parts are %s", word, strings.Join(IdentityParts, ", "))
		}
	}
	i := &identity{root: r}
	for _, part := range identityParts {
		if slices.Contains(keep, part.name) {
			continue
		}
		if err := part.reset(i); err != nil {
			return i.changes, err
		}
	}
	return i.changes, nil
}

type identity struct {
	root    *Root
	changes []string
}

// removal is a step that removes what patterns match.
func removal(patterns []string, why string) func(*identity) error {
	return func(i *identity) error {
		for _, pattern := range patterns {
			if err := i.remove(pattern, why); err != nil {
				return err
			}
		}
		return nil
	}
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

// leases are what DHCP clients remember: leases, and the ids and secrets that
// they make once and tell servers, or make addresses of. The leases that a
// server in the guest gave out, dhcpd's, are none of these.
var leases = []string{
	"/var/lib/dhcp/dhclient*", "/var/lib/dhcp3/dhclient*", "/var/lib/dhclient/dhclient*", // ISC's
	"/var/lib/NetworkManager/*.lease", "/var/lib/NetworkManager/secret_key",
	"/var/lib/dhcpcd/*.lease*", "/var/lib/dhcpcd/*.info", "/var/lib/dhcpcd/duid", "/var/lib/dhcpcd/secret", "/var/lib/dhcpcd5/*.lease*",
	"/var/db/dhcpcd/*.lease*", "/var/db/dhcpcd/duid", "/var/db/dhcpcd/secret", "/var/db/dhcpcd-*.lease", "/etc/dhcpcd.duid", "/etc/dhcpcd.secret",
	"/var/lib/dhcp/dhcpcd*.lease", "/var/lib/dhcp/dhcpcd-*.info", // dhcpcd before version 5, on SUSE and Gentoo
	"/var/lib/wicked/lease-*", "/var/lib/wicked/duid.xml", "/var/lib/wicked/iaid.xml",
	"/run/systemd/netif/leases/*",
	"/var/lib/udhcpc/*lease*", "/var/lib/misc/udhcpc*",
	"/var/lib/dhcpv6/client6.leases*", "/var/lib/dhcpv6/dhcp6c_duid", "/var/lib/wide-dhcpv6/dhcp6c_duid",
}

// lvmDevices are LVM's list of the disks it may use, its backups, and the cache
// that was before it.
var lvmDevices = []string{"/etc/lvm/devices/system.devices*", "/etc/lvm/devices/backup/system.devices*", "/etc/lvm/cache/.cache"}

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
	if !i.root.usesSystemd() && !info.IsDir() {
		return i.remove(machineIDFile, "the id of another guest")
	}
	if info.IsRegular() {
		text, err := i.root.ReadFile(machineIDFile, releaseLimit)
		if said := strings.TrimSpace(string(text)); err == nil && (said == "" || said == "uninitialized") {
			return nil
		}
	} else if _, err := i.root.Readlink(machineIDFile); err == nil { // as to the one above
		if err := i.root.Remove(machineIDFile); err != nil {
			return err
		}
	}
	if err := i.root.WriteFile(machineIDFile, nil, 0o444); err != nil {
		return err
	}
	i.changes = append(i.changes, "emptied "+machineIDFile)
	return i.root.Chmod(machineIDFile, 0o444)
}

// randomSeeds are where an init, or systemd-boot, keeps randomness from one run
// to the next.
var randomSeeds = []string{
	"/var/lib/systemd/random-seed",
	"/var/lib/urandom/random-seed", // Debian before systemd
	"/var/lib/misc/random-seed",    // Gentoo, Alpine, SUSE, Arch
	"/var/lib/random-seed",         // Enterprise Linux 5 and 6, Void
	"/etc/random-seed",
	"/var/lib/seedrng/seed.no-credit", "/var/lib/seedrng/seed.credit",
	"/boot/loader/random-seed", "/boot/efi/loader/random-seed", "/efi/loader/random-seed",
}

// seedSize is the entropy pool's, in bytes, which seeds have.
const seedSize = 512

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

// netRules are where udev wrote down which interface and which drive has which
// name, by addresses of the image's own hardware.
var netRules = []string{
	"/etc/udev/rules.d/*persistent-net.rules", "/etc/udev/rules.d/*persistent-cd.rules",
	"/etc/udev/rules.d/30-net_persistent_names.rules", // SUSE 10
	"/etc/udev/rules.d/85-persistent-net-cloud-init.rules",
	"/etc/iftab", // Ubuntu before udev did it
}

// netNames leaves alone what is a link to /dev/null: that is how names are
// switched off.
func (i *identity) netNames() error {
	for _, pattern := range netRules {
		for _, name := range i.root.Glob(pattern) {
			if target, err := i.root.Readlink(name); err == nil && target == "/dev/null" {
				continue
			}
			if err := i.remove(name, "which names the image's own devices"); err != nil {
				return err
			}
		}
	}
	return nil
}

const (
	initiatorFile   = "/etc/iscsi/initiatorname.iscsi"
	initiatorPrefix = "iqn.1993-08.org.debian:01"
)

// initiator gives the iSCSI initiator a name as iscsi-iname(8) makes them: what
// the vendor's name begins with, a colon, and 12 random digits. Where the guest
// is to make one at its first start, which Debian asks for with
// GenerateName=yes, it still does.
func (i *identity) initiator() error {
	if _, err := i.root.Lstat(initiatorFile); err != nil {
		return nil
	}
	text, err := i.root.ReadFile(initiatorFile, releaseLimit)
	if err != nil {
		return err
	}
	var out strings.Builder
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "InitiatorName="); ok {
			line = "InitiatorName=" + newInitiator(strings.TrimSpace(value)) + "\n"
		}
		out.WriteString(line)
	}
	if out.String() == string(text) {
		return nil
	}
	if err := i.root.WriteFile(initiatorFile, []byte(out.String()), 0o600); err != nil {
		return err
	}
	i.changes = append(i.changes, "wrote a new name of the iSCSI initiator to "+initiatorFile)
	return nil
}

// newInitiator keeps what comes before the last colon of an iqn (RFC 3721).
func newInitiator(old string) string {
	prefix := initiatorPrefix
	if colon := strings.LastIndexByte(old, ':'); colon > 0 && colon < 200 && strings.HasPrefix(old, "iqn.") && isPlainASCII(old) {
		prefix = old[:colon]
	}
	var digits [6]byte
	rand.Read(digits[:]) // never fails
	return prefix + ":" + hex.EncodeToString(digits[:])
}

// CloudState is what tells cloud-init that it has run.
var CloudState = []string{"/var/lib/cloud/instance", "/var/lib/cloud/instances", "/var/lib/cloud/data", "/var/lib/cloud/sem"}

// cloudTraces are that, what it was told then, and its logs. The network files it wrote are the renderers' to replace: where
// nothing writes others, they are all the guest has.
var cloudTraces = append(slices.Clone(CloudState), "/var/lib/cloud/seed/nocloud", "/var/lib/cloud/seed/nocloud-net", "/var/log/cloud-init*.log*")
