package guest

import (
	"errors"
	"io/fs"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"

	"ganeti-instance-image/internal/size"
)

// captureParts are in the order in which they are taken away. The host keys and
// the network come before what tells where they are.
var captureParts = []capturePart{
	{CapturePart{Name: "ssh-host-keys", What: "host keys of OpenSSH, wherever HostKey has them, of Dropbear and tinyssh, and their certificates"}, (*capturing).hostKeys},
	{CapturePart{Name: "network", What: "what this program wrote of the network (what was put aside for it comes back), and MAC addresses in the network's files"}, (*capturing).network},
	{CapturePart{Name: "hostname", What: "the instance's name; the guest is localhost"}, (*capturing).hostname},
	{CapturePart{Name: "machine-id", What: "the id of systemd and D-Bus, and that of gethostid(3)"}, each(as((*identity).machineID), removing("/etc/hostid"))},
	{CapturePart{Name: "random-seed", What: "saved randomness"}, removing(randomSeeds...)},
	{CapturePart{Name: "dhcp-leases", What: "leases, ids and secrets of DHCP clients"}, as(removal(leases, "which another guest got"))},
	{CapturePart{Name: "net-names", What: "udev's names of interfaces and drives"}, as((*identity).netNames)},
	{CapturePart{Name: "lvm-devices", What: "LVM's list of disks"}, as(removal(lvmDevices, "which lists the instance's own disks"))},
	{CapturePart{Name: "iscsi", What: "the name of the iSCSI initiator"}, (*capturing).iscsi},
	{CapturePart{Name: "nvme", What: "the NVMe host's name and id"}, removing("/etc/nvme/hostnqn", "/etc/nvme/hostid")},
	{CapturePart{Name: "credential-secret", What: "the secret of systemd's credentials"}, removing("/var/lib/systemd/credential.secret")},
	{CapturePart{Name: "blkid", What: "blkid's list of disks"}, removing("/etc/blkid.tab*", "/etc/blkid/blkid.tab*", "/run/blkid/blkid.tab*")},
	{CapturePart{Name: "cloud-init", What: "what cloud-init remembers, was told (seeds), and wrote of network and sshd"}, (*capturing).cloudInit},
	{CapturePart{Name: "logs", What: "logs are emptied, old ones and the journal removed; also wtmp, btmp, lastlog, pacct"}, (*capturing).logs},
	{CapturePart{Name: "installer", What: "what the installer left: answers with passwords, logs"}, removing(
		"/root/anaconda-ks.cfg", "/root/original-ks.cfg", "/root/initial-setup-ks.cfg", "/root/install.log*", "/root/autoinst.xml",
		"/var/lib/autoinstall", "/var/log/installer", "/var/log/anaconda*", "/var/log/YaST2/*", "/var/adm/autoinstall/*")},
	{CapturePart{Name: "crash-dumps", What: "core dumps and reports of crashes"}, emptying(true,
		"/var/crash", "/var/lib/systemd/coredump", "/var/lib/systemd/pstore", "/var/lib/apport/coredump", "/var/spool/abrt", "/var/tmp/abrt")},
	{CapturePart{Name: "tmp", What: "/tmp and /var/tmp"}, emptying(true, "/tmp", "/var/tmp")},
	{CapturePart{Name: "history", What: "all users' histories of shells and other programs"}, ofUsers(histories...)},
	{CapturePart{Name: "known-hosts", What: "all users' .ssh/known_hosts"}, ofUsers(".ssh/known_hosts", ".ssh/known_hosts.old", ".ssh/known_hosts2")},
	{CapturePart{Name: "package-cache", What: "packages and lists that package managers have fetched"}, emptying(false,
		"/var/cache/apt", "/var/lib/apt/lists", "/var/cache/dnf", "/var/cache/libdnf5", "/var/cache/yum", "/var/cache/zypp",
		"/var/cache/apk", "/var/cache/pacman/pkg", "/var/cache/xbps", "/var/cache/PackageKit", "/var/cache/distfiles", "/var/cache/binpkgs")},
	{CapturePart{Name: "mail", What: "mail of users and in queues"}, emptying(false,
		"/var/mail", "/var/spool/mail", "/var/spool/mqueue", "/var/spool/clientmqueue", "/var/spool/exim4/input", "/var/spool/exim4/msglog", "/var/spool/exim/input", "/var/spool/exim/msglog",
		"/var/spool/postfix/active", "/var/spool/postfix/bounce", "/var/spool/postfix/corrupt", "/var/spool/postfix/defer", "/var/spool/postfix/deferred",
		"/var/spool/postfix/flush", "/var/spool/postfix/hold", "/var/spool/postfix/incoming", "/var/spool/postfix/maildrop", "/var/spool/postfix/saved")},
	{CapturePart{Name: "cron", What: "users' crontabs, jobs of at, and when anacron ran"}, emptying(false, "/var/spool/cron", "/var/spool/at", "/var/spool/anacron")},
	{CapturePart{Name: "account-backups", What: "earlier versions of passwd, shadow, group, gshadow"}, removing(
		"/etc/passwd-", "/etc/shadow-", "/etc/group-", "/etc/gshadow-", "/etc/subuid-", "/etc/subgid-", "/etc/passwd.org", "/etc/shadow.org", "/etc/security/opasswd.old",
		"/var/backups/passwd.bak*", "/var/backups/shadow.bak*", "/var/backups/group.bak*", "/var/backups/gshadow.bak*")},
	{CapturePart{Name: "rpm-locks", What: "locks and environment of RPM's database"}, removing(
		"/var/lib/rpm/__db.*", "/var/lib/rpm/.rpm.lock", "/usr/lib/sysimage/rpm/__db.*", "/usr/lib/sysimage/rpm/.rpm.lock")},
	{CapturePart{Name: "directory", What: "what makes the guest a member of a domain: Kerberos keytab, caches and secrets of SSSD, Samba, FreeIPA"}, each(
		removing("/etc/krb5.keytab", "/var/lib/samba/private/secrets.tdb", "/var/lib/samba/secrets.tdb", "/etc/samba/secrets.tdb", "/var/lib/samba/private/krb5.keytab"),
		emptying(false, "/var/lib/sss/db", "/var/lib/sss/mc", "/var/lib/sss/secrets", "/var/lib/sss/keytabs", "/var/lib/ipa-client/sysrestore", "/var/lib/ipa-client/pki", "/var/lib/winbindd_cache"))},
	{CapturePart{Name: "configuration-management", What: "the keys by which Puppet, Salt, Chef and CFEngine know the guest"}, each(
		removing("/etc/salt/minion_id", "/etc/chef/client.pem", "/var/cfengine/policy_server.dat"),
		emptying(true, "/etc/puppetlabs/puppet/ssl", "/etc/puppet/ssl", "/var/lib/puppet/ssl", "/opt/puppetlabs/puppet/cache", "/etc/salt/pki/minion", "/var/cache/salt/minion", "/var/cfengine/ppkeys"))},
	{CapturePart{Name: "subscriptions", What: "what a vendor knows the guest by: Red Hat, SUSE, Ubuntu Pro, Insights"}, removing(
		"/etc/pki/consumer/*", "/etc/pki/entitlement/*", "/etc/sysconfig/rhn/systemid", "/etc/sysconfig/rhn/osad-auth.conf", "/var/lib/rhsm/cache/*",
		"/etc/zypp/credentials.d/SCCcredentials", "/etc/zypp/credentials.d/NCCcredentials", "/var/lib/zypp/AnonymousUniqueId", "/var/lib/yum/uuid",
		"/etc/insights-client/machine-id", "/etc/insights-client/.registered", "/etc/insights-client/.unregistered", "/etc/redhat-access-insights/machine-id",
		"/var/lib/ubuntu-advantage/private", "/var/lib/ubuntu-advantage/machine-token.json")},
	{CapturePart{Name: "agents", What: "what Landscape, Amazon's and Teleport's agents, Tailscale, ZeroTier and Docker know the guest by"}, removing(
		"/var/lib/landscape/client/*.bpickle*", "/var/lib/amazon/ssm/registration", "/var/lib/amazon/ssm/Vault", "/var/lib/teleport/host_uuid",
		"/var/lib/tailscale/tailscaled.state", "/var/lib/zerotier-one/identity.*", "/etc/docker/key.json", "/var/lib/docker/engine-id")},
	{CapturePart{Name: "authorized-keys", What: "all users' .ssh/authorized_keys", Asked: true}, ofUsers(".ssh/authorized_keys", ".ssh/authorized_keys2")},
	{CapturePart{Name: "user-keys", What: "all users' own private keys of ssh and GnuPG", Asked: true}, (*capturing).userKeys},
}

// histories are what programs remember of what a user did.
var histories = []string{
	".bash_history", ".zsh_history", ".zhistory", ".histfile", ".sh_history", ".ash_history", ".ksh_history", ".mksh_history", ".history", ".local/share/fish/fish_history", ".config/nushell/history.txt",
	".python_history", ".mysql_history", ".mariadb_history", ".psql_history", ".sqlite_history", ".rediscli_history", ".dbshell", ".node_repl_history", ".irb_history",
	".lesshst", ".local/state/lesshst", ".viminfo", ".local/state/nvim/shada", ".nano/search_history", ".local/share/nano/search_history", ".wget-hsts",
}

// configLimit bounds a file of the guest's configuration that is edited.
const configLimit = size.MiB

// hostKeys looks for those that HostKey names while sshd's configuration is as it
// was.
func (c *capturing) hostKeys() error {
	names := []string{
		"/etc/ssh/ssh_host_*", "/usr/local/etc/ssh/ssh_host_*", "/etc/openssh/ssh_host_*",
		"/etc/dropbear/dropbear_*_host_key*", "/etc/dropbear/initramfs/dropbear_*_host_key*", "/etc/dropbear-initramfs/dropbear_*_host_key*",
		"/etc/tinyssh/sshkeydir/*", KeepHostKeysFile,
	}
	inInitramfs := len(c.root.Glob("/etc/dropbear*/initramfs/dropbear_*_host_key*"))+len(c.root.Glob("/etc/dropbear-initramfs/dropbear_*_host_key*")) > 0
	for _, name := range c.root.hostKeyNames() {
		for _, file := range []string{name, name + ".pub", name + "-cert.pub"} {
			if !c.root.isDir(file) { // sshd would not take it either
				names = append(names, globQuote(file))
			}
		}
	}
	if err := removing(names...)(c); err != nil {
		return err
	}
	if inInitramfs {
		c.say("warning: the initramfs has host keys of Dropbear in it, which stay: make it anew in each guest")
	}
	return nil
}

// globMeta are the characters that a pattern gives a meaning.
var globMeta = regexp.MustCompile(`[\\*?\[]`)

// globQuote has a pattern match a name and nothing else.
func globQuote(name string) string { return globMeta.ReplaceAllString(name, `\$0`) }

// ours begin what this program writes into guests.
var ours = []string{"# Written at deployment", "# Written by ganeti-instance-image"}

func isOurs(text string) bool {
	return slices.ContainsFunc(ours, func(begin string) bool { return strings.HasPrefix(text, begin) })
}

// networkFiles are where the hooks write files of their own.
var networkFiles = []string{
	"/etc/netplan/*.yaml", "/etc/network/interfaces", "/etc/network/interfaces.d/*", "/etc/NetworkManager/system-connections/*",
	"/etc/systemd/network/*", "/etc/systemd/network/*.d/*.conf", "/etc/systemd/resolved.conf.d/*.conf",
	"/etc/sysconfig/network-scripts/*", "/etc/sysconfig/network/*", "/etc/conf.d/net", "/etc/dhcpcd.conf", "/lib/dhcpcd/dhcpcd-hooks/*", "/usr/lib/dhcpcd/dhcpcd-hooks/*",
	"/etc/dhcp/dhclient-enter-hooks.d/*", "/etc/dhcpcd.exit-hook", "/etc/sysctl.d/*.conf", "/etc/resolv.conf", "/etc/udev/rules.d/*.rules", CloudConfigDir + "/*.cfg",
}

// setAside is behind the name of what the hook interfaces keeps of the image's
// own files: a directory's, or a file's in /etc.
const setAside = ".ganeti-orig"

// network takes the hooks' files away and puts back what they had put aside, so
// that the image's network is the one that its maker gave it.
func (c *capturing) network() error {
	for _, pattern := range networkFiles {
		for file := range c.root.readMatches(pattern, configLimit) {
			if file.err == nil && isOurs(file.text) {
				if err := c.remove(file.name); err != nil {
					return err
				}
			}
		}
	}
	if err := c.putBack(); err != nil {
		return err
	}
	if err := removing("/var/lib/NetworkManager/timestamps", "/var/lib/NetworkManager/seen-bssids")(c); err != nil {
		return err
	}
	for _, m := range macLines {
		match := func(line string) bool { return m.line.MatchString(line) }
		if err := c.edit(m.pattern, "MAC addresses", func(text string) string { return without(text, match) }); err != nil {
			return err
		}
	}
	return nil
}

// macLines are lines that bind a connection to one interface, or give it the
// address of one.
var macLines = []struct {
	pattern string
	line    *regexp.Regexp
}{
	{"/etc/sysconfig/network-scripts/ifcfg-*", regexp.MustCompile(`^(?:HWADDR|MACADDR)=`)},
	{"/etc/sysconfig/network/ifcfg-*", regexp.MustCompile(`^(?:LLADDR|HWADDR)=`)},
	{"/etc/NetworkManager/system-connections/*", regexp.MustCompile(`^(?:cloned-)?mac-address *= *(?:[0-9A-Fa-f]{2}:){5}`)},
	{"/etc/network/interfaces", regexp.MustCompile(`^hwaddress\s`)},
	{"/etc/network/interfaces.d/*", regexp.MustCompile(`^hwaddress\s`)},
}

// putBack renames what was put aside to its old name. Files that name interfaces
// by their MAC do not come back.
func (c *capturing) putBack() error {
	for _, dir := range slices.Concat(c.root.Glob("/etc/*"+setAside), c.root.Glob("/etc/*/*"+setAside), c.root.Glob("/etc/*/*/*"+setAside)) {
		dir, ok := c.locate(dir)
		if !ok {
			continue
		}
		info, err := c.root.Lstat(dir)
		if err != nil {
			return err
		}
		target := strings.TrimSuffix(dir, setAside)
		if !info.IsDir() {
			if err := c.restore(dir, target); err != nil {
				return err
			}
			continue
		}
		names, err := c.root.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, name := range names {
			if strings.HasSuffix(name, ".link") || strings.HasSuffix(name, ".rules") {
				continue
			}
			if err := c.restore(dir+"/"+name, target+"/"+name); err != nil {
				return err
			}
		}
		if err := c.remove(dir); err != nil {
			return err
		}
	}
	return nil
}

// interfacesHeader stands within the one file that the hook adds to.
const interfacesHeader = "\n# Written at deployment by ganeti-instance-image.\n"

// restore renames a file, in the place of one that the hook has added to.
func (c *capturing) restore(kept, target string) error {
	now, err := c.root.ReadFile(target, configLimit)
	if !isAbsent(err) && !strings.Contains("\n"+string(now), interfacesHeader) {
		return nil
	}
	if info, err := c.root.Lstat(kept); err != nil || !info.IsRegular() {
		return nil
	}
	if err := c.root.Rename(kept, target); err != nil {
		return err
	}
	mode := fs.FileMode(0o644)
	if path.Base(path.Dir(target)) == "system-connections" || path.Base(path.Dir(target)) == "netplan" {
		mode = 0o600
	}
	c.say("put %s back", printable(target))
	return c.root.Chmod(target, mode)
}

// imageName is what a guest that was not deployed yet is called.
const imageName = "localhost.localdomain"

// hostname has files say imageName that say the instance's name, or what the
// guest calls itself.
func (c *capturing) hostname() error {
	names := []string{strings.ToLower(c.name)}
	for _, file := range []string{hostnameFile, suseHostnameFile} {
		names = append(names, strings.ToLower(strings.TrimSpace(c.readSmall(file))))
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		short, _, _ := strings.Cut(name, ".")
		if short == "localhost" || short == "" || !isHostName(name) {
			continue
		}
		if err := c.edit("/etc/hosts", "addresses of the instance", func(text string) string { return withoutOwnAddresses(text, name) }); err != nil {
			return err
		}
		renamed, err := c.root.RenameHost(name, imageName, RenameOptions{})
		for _, change := range renamed.Changes {
			c.say("%s", printable(change))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// withoutOwnAddresses takes the lines out of /etc/hosts that give a host an
// address which other hosts can reach.
func withoutOwnAddresses(text, name string) string {
	short, _, _ := strings.Cut(name, ".")
	return without(text, func(line string) bool {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(strings.ToLower(line))
		if len(fields) < 2 {
			return false
		}
		addr, err := netip.ParseAddr(fields[0])
		if err != nil || addr.IsLoopback() {
			return false
		}
		// Another host may have the short name as an alias, behind its own.
		return slices.Contains(fields[1:], name) || fields[1] == short
	})
}

// iscsi leaves the name to be made at the first start: Debian's does where the
// file asks for it, others' where there is no file.
func (c *capturing) iscsi() error {
	text := c.readSmall(initiatorFile)
	if !strings.Contains(text, "InitiatorName=") {
		return nil
	}
	if family := c.root.Distro().Family; family != Debian {
		return c.remove(initiatorFile)
	}
	if err := c.root.WriteFile(initiatorFile, []byte("GenerateName=yes\n"), 0o600); err != nil {
		return err
	}
	c.say("had a new name of the iSCSI initiator be made at the first start, in %s", initiatorFile)
	return nil
}

// cloudInit has cloud-init take the next start for its first. What it wrote of
// the network goes only where it will write it again.
func (c *capturing) cloudInit() error {
	if err := removing(append(slices.Clone(cloudTraces), "/var/lib/cloud/seed/*")...)(c); err != nil {
		return err
	}
	runs, network := c.cloudInitRuns()
	if !runs {
		return nil
	}
	if err := removing("/etc/ssh/sshd_config.d/50-cloud-init.conf")(c); err != nil || !network {
		return err
	}
	for file := range c.root.readMatches("/etc/sysconfig/network-scripts/ifcfg-*", configLimit) {
		if file.err == nil && strings.Contains(file.text, "Created by cloud-init") {
			if err := c.remove(file.name); err != nil {
				return err
			}
		}
	}
	return removing("/etc/netplan/50-cloud-init.yaml", "/etc/network/interfaces.d/50-cloud-init*", "/etc/systemd/network/10-cloud-init-*.network",
		"/etc/NetworkManager/system-connections/cloud-init-*.nmconnection")(c)
}

// cloudInitRuns tells whether cloud-init is at work in the guest, and whether it
// writes the network's files, which where it does not are all that there is.
func (c *capturing) cloudInitRuns() (runs, network bool) {
	if !c.root.HasCloudInit() || c.root.Exists("/etc/cloud/cloud-init.disabled") {
		return false, false
	}
	kernel := strings.Fields(strings.Join(c.root.kernelCommandLines(), " "))
	if slices.Contains(kernel, "cloud-init=disabled") {
		return false, false
	}
	files, err := c.root.CloudConfig()
	if err != nil || slices.Contains(kernel, "network-config=disabled") {
		return true, false
	}
	return true, !slices.ContainsFunc(files, func(f CloudConfigFile) bool {
		if f.Document == nil {
			return false
		}
		said := YAMLValue(f.Document.Content[0], "network", "config")
		return said != nil && said.Value == "disabled"
	})
}

// logs comes to the journal first, of which no file is ever empty.
func (c *capturing) logs() error {
	if err := emptying(true, "/var/log/journal", "/run/log/journal")(c); err != nil {
		return err
	}
	if name, ok := c.logDir(); ok {
		n, err := c.sweep(name, clearLog)
		if n > 0 {
			c.say("emptied or removed %s below %s", count(n), printable(name))
		}
		if err != nil {
			return err
		}
	}
	return removing("/var/lib/logrotate/status", "/var/lib/logrotate/logrotate.status", "/var/lib/logrotate.status",
		"/var/account/pacct*", "/var/lib/lastlog/lastlog2.db", "/var/lib/wtmpdb/wtmp.db")(c)
}

// logDir is where the guest has /var/log. A link that others than root may have
// made, or that leads to a directory of all kinds of files, is left.
func (c *capturing) logDir() (string, bool) {
	name, err := c.root.resolve("/var/log")
	if err == nil && strings.Count(name, "/") > 1 {
		info, err := c.root.Lstat(name)
		return name, err == nil && info.IsDir()
	}
	if loose := (looseLink{}); err == nil || errors.As(err, &loose) {
		c.say("left /var/log: it is a link")
	}
	return "", false
}

// macNames are where a file says the MAC address of an interface that it is for,
// in words that have others around them.
var macNames = []struct {
	pattern string
	text    *regexp.Regexp
}{
	{"/etc/netplan/*.yaml", regexp.MustCompile(`(?m)^[^#\n]*\bmacaddress["']?\s*:\s*["']?[0-9A-Fa-f]{2}:`)},
	{"/etc/systemd/network/*.network", regexp.MustCompile(`(?m)^[ \t]*(?:Permanent)?MACAddress[ \t]*=[ \t]*[0-9A-Fa-f]{2}`)},
	{"/etc/systemd/network/*.network.d/*.conf", regexp.MustCompile(`(?m)^[ \t]*(?:Permanent)?MACAddress[ \t]*=[ \t]*[0-9A-Fa-f]{2}`)},
}

// warnOfMACs names files by which a guest with another MAC address than the
// instance's has no network.
func (c *capturing) warnOfMACs() {
	for _, m := range macNames {
		for file := range c.root.readMatches(m.pattern, configLimit) {
			if file.err == nil && m.text.MatchString(file.text) {
				c.say("warning: %s names a MAC address and stays: change it before the capture, else a guest with another one may have no network", printable(file.name))
			}
		}
	}
}

// userKeys are told by what ssh-keygen calls them.
func (c *capturing) userKeys() error {
	for _, home := range c.homes() {
		if err := removing(globQuote(home) + "/.ssh/id_*")(c); err != nil {
			return err
		}
	}
	return ofUsers(".ssh/identity", ".gnupg/private-keys-v1.d", ".gnupg/secring.gpg")(c)
}
