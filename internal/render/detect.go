package render

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"ganeti-instance-image/internal/guest"
)

// hasProgram tells whether a program is where one is looked for.
func hasProgram(root *guest.Root, name string) bool {
	for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"} {
		if root.Exists(dir + name) {
			return true
		}
	}
	return false
}

// hasUdev tells whether udev, systemd's or eudev, names the guest's interfaces:
// Alpine may have it installed and yet start mdev.
func hasUdev(root *guest.Root) bool {
	there := hasProgram(root, "udevd") || root.Exists("/usr/lib/systemd/systemd-udevd") || root.Exists("/lib/systemd/systemd-udevd")
	return there && !serviceEnabled(root, "mdev") && !serviceEnabled(root, "mdevd")
}

const localUnits = "/etc/systemd/system/"

// unitEnabled tells whether systemd starts a unit: a link to it is in what
// another unit wants, and none to /dev/null is in its place.
func unitEnabled(root *guest.Root, unit string) bool {
	if target, err := root.Readlink(localUnits + unit); err == nil && target == "/dev/null" {
		return false
	}
	for _, dir := range []string{localUnits, "/usr/lib/systemd/system/", "/lib/systemd/system/"} {
		for _, kind := range []string{"*.wants/", "*.requires/"} {
			if len(root.Glob(dir+kind+unit)) > 0 {
				return true
			}
		}
	}
	return false
}

// aliasIs tells whether the name of a unit is a link to another, as
// network.service is to what SUSE chose.
func aliasIs(root *guest.Root, alias, unit string) bool {
	target, err := root.Readlink(localUnits + alias)
	return err == nil && path.Base(target) == unit
}

// serviceEnabled tells whether the guest's init, of any kind, starts a service.
func serviceEnabled(root *guest.Root, name string) bool {
	if unitEnabled(root, name+".service") {
		return true
	}
	if target, err := root.Readlink(localUnits + name + ".service"); err == nil && target == "/dev/null" {
		return false
	}
	for _, pattern := range []string{
		"/etc/runlevels/*/" + name,            // OpenRC
		"/etc/rc[S2345].d/S[0-9][0-9]" + name, // sysvinit
		"/etc/rc.d/rc[345].d/S[0-9][0-9]" + name,
		"/etc/init/" + name + ".conf", // Upstart
		"/etc/runit/runsvdir/default/" + name,
	} {
		if len(root.Glob(pattern)) > 0 {
			return true
		}
	}
	return false
}

func hasNetplan(root *guest.Root) bool {
	return hasProgram(root, "netplan") || root.Exists("/usr/lib/systemd/system-generators/netplan") || root.Exists("/lib/systemd/system-generators/netplan")
}

func usesNetworkManager(root *guest.Root) bool {
	return hasProgram(root, "NetworkManager") && (serviceEnabled(root, "NetworkManager") || aliasIs(root, "network.service", "NetworkManager.service"))
}

// scriptsDir is where Red Hat's scripts, and for them NetworkManager, have files.
const scriptsDir = "/etc/sysconfig/network-scripts"

// usesIfcfg tells whether ifcfg files are what the guest reads: RHEL up to 7 by
// its scripts, and 8 by NetworkManager, of which later releases prefer its own.
func usesIfcfg(root *guest.Root) bool {
	scripts := root.Exists(scriptsDir + "/network-functions")
	if usesNetworkManager(root) {
		plugin := len(root.Glob("/usr/lib*/NetworkManager/*/libnm-settings-plugin-ifcfg-rh.so"))+len(root.Glob("/usr/lib*/NetworkManager/libnm-settings-plugin-ifcfg-rh.so")) > 0
		return rhelMajor(root) <= 8 && (scripts || plugin)
	}
	return scripts && hasProgram(root, "ifup")
}

// rhelMajor is the release of RHEL the guest's is, or is like; 99 for others.
func rhelMajor(root *guest.Root) int {
	distro := root.Distro()
	if distro.Family != guest.RHEL {
		return 99
	}
	text, _, _ := strings.Cut(distro.VersionID, ".")
	major, err := strconv.Atoi(text)
	switch {
	case err != nil:
		return 99
	case distro.ID == "amzn": // 2 is made of CentOS 7
		return 7
	}
	return major
}

func usesWicked(root *guest.Root) bool {
	return hasProgram(root, "wicked") && (aliasIs(root, "network.service", "wicked.service") || unitEnabled(root, "wicked.service"))
}

const interfacesFile = "/etc/network/interfaces"

func usesIfupdown(root *guest.Root) bool {
	info, err := root.Stat(interfacesFile)
	if err != nil || !info.IsRegular() || !hasProgram(root, "ifup") || !serviceEnabled(root, "networking") {
		return false
	}
	// Where dhcpcd runs too and the file names no interface, they are dhcpcd's.
	text, err := root.ReadFile(interfacesFile, fileLimit)
	return err == nil && (!usesDhcpcd(root) || withoutInterfaces(string(text)) != string(text))
}

func usesNetworkd(root *guest.Root) bool {
	return unitEnabled(root, "systemd-networkd.service")
}

// usesNetifrc tells whether OpenRC starts interfaces one by one. Gentoo has the
// script for it also where dhcpcd is the service that takes all of them.
func usesNetifrc(root *guest.Root) bool {
	starts := slices.ContainsFunc(root.Glob("/etc/runlevels/*/net.*"), func(name string) bool { return path.Base(name) != "net.lo" })
	return root.Exists("/etc/init.d/net.lo") && (starts || !usesDhcpcd(root))
}

func usesDhcpcd(root *guest.Root) bool {
	return hasProgram(root, "dhcpcd") && serviceEnabled(root, "dhcpcd")
}
