package guest

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
)

// capturedTraces are files that each part takes away, and beside them some that
// stay.
var capturedTraces = map[string]struct{ gone, stay []string }{
	"ssh-host-keys": {
		gone: []string{"etc/ssh/ssh_host_rsa_key", "etc/ssh/ssh_host_rsa_key.pub", "etc/ssh/ssh_host_rsa_key-cert.pub", "srv/keys/other", "srv/keys/other.pub", "etc/dropbear/dropbear_rsa_host_key", "etc/dropbear/initramfs/dropbear_ed25519_host_key", "etc/tinyssh/sshkeydir/ed25519.pk"},
		stay: []string{"etc/ssh/sshd_config", "etc/ssh/ssh_known_hosts", "etc/dropbear/config"},
	},
	"network": {
		gone: []string{"etc/netplan/90-ganeti.yaml", "etc/systemd/network/05-ganeti-eth0.network", "etc/cloud/cloud.cfg.d/zz-ganeti-network.cfg", "etc/netplan.ganeti-orig/50-x.yaml", "var/lib/NetworkManager/timestamps"},
		stay: []string{"etc/netplan/01-mine.yaml", "etc/systemd/network/80-mine.network", "etc/cloud/cloud.cfg.d/90_dpkg.cfg"},
	},
	"hostname":          {},
	"machine-id":        {gone: []string{"var/lib/dbus/machine-id", "etc/hostid"}},
	"random-seed":       {gone: []string{"var/lib/systemd/random-seed", "boot/efi/loader/random-seed"}},
	"dhcp-leases":       {gone: []string{"var/lib/dhcp/dhclient.leases"}, stay: []string{"var/lib/dhcp/dhcpd.leases"}},
	"net-names":         {gone: []string{"etc/udev/rules.d/70-persistent-net.rules"}, stay: []string{"etc/udev/rules.d/60-x.rules"}},
	"lvm-devices":       {gone: []string{"etc/lvm/devices/system.devices"}},
	"iscsi":             {},
	"nvme":              {gone: []string{"etc/nvme/hostnqn", "etc/nvme/hostid"}, stay: []string{"etc/nvme/discovery.conf"}},
	"credential-secret": {gone: []string{"var/lib/systemd/credential.secret"}},
	"blkid":             {gone: []string{"etc/blkid.tab"}},
	"cloud-init": {
		gone: []string{"var/lib/cloud/instances/i/x", "var/lib/cloud/seed/nocloud/meta-data", "var/lib/cloud/seed/mine/x", "etc/netplan/50-cloud-init.yaml", "etc/ssh/sshd_config.d/50-cloud-init.conf"},
		stay: []string{"var/lib/cloud/scripts/per-boot/x", "etc/cloud/cloud.cfg"},
	},
	"logs": {
		gone: []string{"var/log/syslog.1", "var/log/syslog.2.gz", "var/log/app/app.log-20260101", "var/log/old.old", "var/log/journal/0123/system.journal", "var/lib/logrotate/status", "var/account/pacct-1", "var/lib/lastlog/lastlog2.db", "var/lib/wtmpdb/wtmp.db"},
		stay: []string{"var/log/syslog", "var/log/wtmp", "var/log/app/app.log"},
	},
	"installer":                {gone: []string{"root/anaconda-ks.cfg", "var/log/installer/syslog"}},
	"crash-dumps":              {gone: []string{"var/crash/x", "var/lib/systemd/coredump/core.1"}},
	"tmp":                      {gone: []string{"tmp/x", "tmp/d/e/f", "var/tmp/y"}},
	"history":                  {gone: []string{"root/.bash_history", "home/eve/.bash_history", "home/eve/.local/share/fish/fish_history", "srv/app/.psql_history"}, stay: []string{"home/eve/.bashrc", "home/nobody/.bash_history"}},
	"known-hosts":              {gone: []string{"root/.ssh/known_hosts", "home/eve/.ssh/known_hosts.old"}},
	"package-cache":            {gone: []string{"var/cache/apt/archives/x.deb", "var/lib/apt/lists/l", "var/cache/dnf/x/y"}, stay: []string{"var/cache/man/x"}},
	"mail":                     {gone: []string{"var/mail/eve", "var/spool/postfix/deferred/A/AB"}, stay: []string{"var/spool/postfix/etc/hosts"}},
	"cron":                     {gone: []string{"var/spool/cron/crontabs/eve", "var/spool/anacron/cron.daily"}, stay: []string{"etc/crontab", "var/spool/cron/atjobs/.SEQ"}},
	"account-backups":          {gone: []string{"etc/shadow-", "etc/passwd-", "var/backups/shadow.bak"}, stay: []string{"etc/shadow", "var/backups/dpkg.status.0"}},
	"rpm-locks":                {gone: []string{"var/lib/rpm/__db.001"}, stay: []string{"var/lib/rpm/rpmdb.sqlite"}},
	"directory":                {gone: []string{"etc/krb5.keytab", "var/lib/sss/db/cache.ldb", "var/lib/samba/private/secrets.tdb"}, stay: []string{"etc/sssd/sssd.conf", "var/lib/samba/registry.tdb"}},
	"configuration-management": {gone: []string{"etc/puppetlabs/puppet/ssl/private_keys/k.pem", "etc/salt/minion_id", "etc/salt/pki/minion/minion.pem"}, stay: []string{"etc/puppetlabs/puppet/puppet.conf"}},
	"subscriptions":            {gone: []string{"etc/pki/consumer/cert.pem", "etc/zypp/credentials.d/SCCcredentials", "var/lib/yum/uuid"}, stay: []string{"etc/pki/tls/cert.pem"}},
	"agents":                   {gone: []string{"var/lib/landscape/client/broker.bpickle", "etc/docker/key.json"}, stay: []string{"etc/docker/daemon.json"}},
	"authorized-keys":          {gone: []string{"root/.ssh/authorized_keys", "home/eve/.ssh/authorized_keys"}},
	"user-keys":                {gone: []string{"root/.ssh/id_rsa", "home/eve/.ssh/id_ed25519.pub", "home/eve/.gnupg/private-keys-v1.d/k"}, stay: []string{"root/.ssh/config"}},
}

const oldInitiator = "InitiatorName=iqn.1993-08.org.debian:01:abc\n"

// instanceWithTraces is a guest that was an instance for a while.
func instanceWithTraces(t *testing.T) (*Root, string) {
	t.Helper()
	ours := "# Written at deployment by ganeti-instance-image.\nx\n"
	files := map[string]string{}
	for _, part := range capturedTraces {
		for _, name := range slices.Concat(part.gone, part.stay) {
			files[name] = "old"
		}
	}
	maps.Copy(files, map[string]string{
		"usr/lib/systemd/systemd": "", "etc/machine-id": oldID, "usr/bin/cloud-init": "", "etc/os-release": "ID=debian\n",
		"etc/passwd":          "root:x:0:0:root:/root:/bin/sh\neve:x:1000:1000::/home/eve:/bin/sh\napp:x:1:1::/srv/app:/bin/sh\nbin:x:2:2::/:/bin/sh\nlink:x:3:3::relative:/bin/sh\n",
		"etc/ssh/sshd_config": "HostKey /srv/keys/other\n",
		"etc/hostname":        "web.example.org\n", "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 web.example.org web\n192.0.2.9 db.example.org\n",
		"etc/iscsi/initiatorname.iscsi": oldInitiator,
		"etc/netplan/90-ganeti.yaml":    ours, "etc/systemd/network/05-ganeti-eth0.network": ours, "etc/cloud/cloud.cfg.d/zz-ganeti-network.cfg": ours,
		"etc/network/interfaces": "auto lo\niface lo inet loopback\n\n" + ours + "iface eth0 inet static\n", "etc/network.ganeti-orig/interfaces": "auto lo\niface lo inet loopback\niface eth0 inet dhcp\n\thwaddress aa:00:00:00:00:01\n",
		"etc/sysconfig/network-scripts/ifcfg-eth0":             "DEVICE=eth0\nHWADDR=AA:00:00:00:00:01\nBOOTPROTO=dhcp\n",
		"etc/NetworkManager/system-connections/a.nmconnection": "[ethernet]\nmac-address=AA:00:00:00:00:01\n[ipv4]\nmethod=auto\n",
		"var/lib/cloud/instance":                               "-> instances/i",
		"root/.zsh_history":                                    "-> /dev/null",
	})
	root, dir := guestOf(t, files)
	if err := os.Chmod(dir+"/var/log/syslog", 0o640); err != nil {
		t.Fatal(err)
	}
	return root, dir
}

// captureLeft tells whether what a part takes away is there: all, or else none.
func captureLeft(t *testing.T, root *Root, dir, part string) bool {
	t.Helper()
	var left []bool
	for _, name := range capturedTraces[part].gone {
		left = append(left, root.Exists(name))
	}
	has := func(file, text string) { left = append(left, strings.Contains(content(t, dir+file), text)) }
	switch part {
	case "machine-id":
		has("/etc/machine-id", oldID)
	case "hostname":
		has("/etc/hostname", "web")
		has("/etc/hosts", "web")
	case "iscsi":
		has("/etc/iscsi/initiatorname.iscsi", "abc")
	case "logs":
		has("/var/log/syslog", "old")
		has("/var/log/wtmp", "old")
		has("/var/log/app/app.log", "old")
	case "network":
		has("/etc/network/interfaces", "static")
		has("/etc/sysconfig/network-scripts/ifcfg-eth0", "HWADDR")
		has("/etc/NetworkManager/system-connections/a.nmconnection", "AA:00")
	}
	if slices.Contains(left, true) == slices.Contains(left, false) {
		t.Errorf("%s is left by halves: %v", part, left)
	}
	return left[0]
}

func TestPrepareImage(t *testing.T) {
	var all, asked []string
	for _, p := range CaptureParts() {
		all = append(all, p.Name)
		if p.Asked {
			asked = append(asked, p.Name)
		}
	}
	if parts := slices.Sorted(maps.Keys(capturedTraces)); !slices.Equal(parts, slices.Sorted(slices.Values(all))) {
		t.Fatalf("tested are %v", parts)
	}
	cases := []CaptureOptions{{}, {Remove: asked}, {Keep: all}}
	for _, part := range all {
		cases = append(cases, CaptureOptions{Keep: []string{part}, Remove: asked})
	}
	for _, o := range cases {
		root, dir := instanceWithTraces(t)
		o.Name = "web.example.org"
		changes, err := root.PrepareImage(o)
		if err != nil || len(changes) == 0 != (len(o.Keep) == len(all)) {
			t.Errorf("%+v: %q, %v", o, changes, err)
		}
		for _, part := range all {
			stays := slices.Contains(o.Keep, part) || slices.Contains(asked, part) && !slices.Contains(o.Remove, part)
			if got := captureLeft(t, root, dir, part); got != stays {
				t.Errorf("%+v: %s left is %v", o, part, got)
			}
			for _, name := range capturedTraces[part].stay {
				if !root.Exists(name) {
					t.Errorf("%+v: %s is gone", o, name)
				}
			}
		}
		if target, err := root.Readlink("/root/.zsh_history"); err != nil || target != "/dev/null" {
			t.Errorf("a history that is switched off: %q, %v", target, err)
		}
		again, err := root.PrepareImage(o)
		if err != nil || len(again) > 0 {
			t.Errorf("%+v: a second time %q, %v", o, again, err)
		}
	}
}

// What is left is as an image has it.
func TestPrepareImageLeaves(t *testing.T) {
	root, dir := instanceWithTraces(t)
	changes, err := root.PrepareImage(CaptureOptions{Name: "web.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"/etc/hostname": "localhost.localdomain\n", "/etc/machine-id": "", "/var/log/syslog": "",
		"/etc/network/interfaces": "auto lo\niface lo inet loopback\niface eth0 inet dhcp\n", "/etc/iscsi/initiatorname.iscsi": "GenerateName=yes\n",
		"/etc/sysconfig/network-scripts/ifcfg-eth0": "DEVICE=eth0\nBOOTPROTO=dhcp\n",
	} {
		if got := content(t, dir+file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if hosts := content(t, dir+"/etc/hosts"); !strings.Contains(hosts, "192.0.2.9 db.example.org") || !strings.Contains(hosts, "127.0.0.1 localhost") {
		t.Errorf("hosts: %s", hosts)
	}
	info, err := os.Stat(dir + "/var/log/syslog")
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("the log has mode %v, %v", info.Mode(), err)
	}
	for _, want := range []string{"removed /etc/ssh/ssh_host_rsa_key", "removed /srv/keys/other", "emptied /tmp of 2 files", "put /etc/network/interfaces back", "warning: the initramfs has host keys"} {
		if !slices.ContainsFunc(changes, func(c string) bool { return strings.HasPrefix(c, want) }) {
			t.Errorf("no line %q in\n%s", want, strings.Join(changes, "\n"))
		}
	}
}

func TestPrepareImageBoundsItsLines(t *testing.T) {
	files := map[string]string{"etc/os-release": "ID=debian\n"}
	for i := range 200 {
		files[fmt.Sprintf("etc/ssh/ssh_host_%d_key", i)] = "x"
		files[fmt.Sprintf("tmp/%d", i)] = "x"
	}
	root, _ := guestOf(t, files)
	changes, err := root.PrepareImage(CaptureOptions{})
	if err != nil || len(changes) != maxCaptureLines+2 || !slices.Contains(changes, "and 150 more of ssh-host-keys") || !slices.Contains(changes, "emptied /tmp of 200 files") {
		t.Errorf("%d lines, %v: %q", len(changes), err, changes[max(0, len(changes)-3):])
	}
}

func TestPrepareImageRefusesUnknownParts(t *testing.T) {
	root, dir := instanceWithTraces(t)
	before := listing(t, dir)
	for _, o := range []CaptureOptions{{Keep: []string{"hostkeys"}}, {Remove: []string{"hostkeys"}}} {
		if _, err := root.PrepareImage(o); err == nil || !strings.Contains(err.Error(), `"hostkeys"`) || !strings.Contains(err.Error(), "ssh-host-keys, network") {
			t.Errorf("got %v", err)
		}
	}
	if after := listing(t, dir); after != before {
		t.Error("something was changed")
	}
}

// Whatever stands in the place of a file or of a directory above it, nothing of
// the node is touched.
func TestPrepareImageOfHostileGuests(t *testing.T) {
	need.Root(t)
	for _, file := range []string{
		"etc/ssh/ssh_host_rsa_key", "etc/machine-id", "etc/hostname", "etc/network/interfaces", "etc/network.ganeti-orig/interfaces", "var/log/secret", "var/log/journal/0123",
		"tmp/secret", "root/.bash_history", "root/.ssh/known_hosts", "var/cache/apt/x", "var/spool/cron/secret", "etc/iscsi/initiatorname.iscsi", "var/lib/cloud/seed/x", "etc/shadow-",
	} {
		for _, trap := range trapsOf(t, file) {
			changes, err := trap.root.PrepareImage(CaptureOptions{Name: "web.example.org", Remove: []string{"authorized-keys", "user-keys"}})
			trap.wantNodeUntouched(t)
			if err != nil && strings.Contains(err.Error(), trap.dir) {
				t.Errorf("%s as %s: %v", file, trap.name, err)
			}
			for _, line := range changes {
				if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) {
					t.Errorf("%s as %s: line %q", file, trap.name, line)
				}
			}
		}
	}
}

// What users can make themselves does not lead to files that are not theirs:
// links in their directories, and second names of files.
func TestPrepareImageOfHostileUsers(t *testing.T) {
	need.Root(t)
	root, dir := guestOf(t, map[string]string{
		"etc/os-release": "ID=debian\n", "etc/passwd": "eve:x:1000:1000::/home/eve:/bin/sh\nroot:x:0:0::/root:/bin/sh\n",
		"home/eve/.ssh": "-> /srv/ssh", "srv/ssh/known_hosts": "x", "srv/precious/file": "x",
		"var/log/app/link.log": "-> /srv/precious/file", "tmp/dir": "-> /srv/precious", "var/spool/mail": "-> /srv/precious",
		"srv/linked": "x",
	})
	err := errors.Join(os.Chown(dir+"/home/eve", 1000, 1000), os.Link(dir+"/srv/linked", dir+"/var/log/app/linked.log"), os.Mkdir(dir+"/var/log/fifo", 0o755), unix.Mkfifo(dir+"/var/log/fifo/x.log", 0o644))
	if err != nil {
		t.Fatal(err)
	}
	changes, err := root.PrepareImage(CaptureOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"/srv/ssh/known_hosts", "/srv/precious/file", "/srv/linked"} {
		if got := content(t, dir+file); got != "x" {
			t.Errorf("%s is %q", file, got)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "tmp/dir")); err == nil {
		t.Error("the link in /tmp is left")
	}
	if !slices.ContainsFunc(changes, func(c string) bool {
		return strings.HasPrefix(c, "left /home/eve/.ssh/known_hosts: /home/eve/.ssh is a link")
	}) {
		t.Errorf("changes:\n%s", strings.Join(changes, "\n"))
	}
}

// The network's files that cloud-init will not write again stay.
func TestPrepareImageAndDisabledCloudInit(t *testing.T) {
	const network, sshd = "/etc/netplan/50-cloud-init.yaml", "/etc/ssh/sshd_config.d/50-cloud-init.conf"
	for _, c := range []struct {
		name          string
		files         map[string]string
		network, sshd bool // stays
	}{
		{"at work", map[string]string{"usr/bin/cloud-init": ""}, false, false},
		{"other configuration", map[string]string{"usr/bin/cloud-init": "", "etc/cloud/cloud.cfg": "network:\n  version: 2\nusers: [a]\n"}, false, false},
		{"removed", nil, true, true},
		{"disabled", map[string]string{"usr/bin/cloud-init": "", "etc/cloud/cloud-init.disabled": ""}, true, true},
		{"network disabled", map[string]string{"usr/bin/cloud-init": "", "etc/cloud/cloud.cfg.d/99-x.cfg": "network: {config: disabled}\n"}, true, false},
		{"network disabled by us", map[string]string{"usr/bin/cloud-init": "", "etc/cloud/cloud.cfg.d/zz-ganeti-network.cfg": "# Written at deployment by ganeti-instance-image.\nnetwork: {config: disabled}\n"}, false, false},
		{"disabled by the kernel's command line", map[string]string{"usr/bin/cloud-init": "", "boot/grub/grub.cfg": "\tlinux /vmlinuz root=/dev/vda1 quiet cloud-init=disabled\n"}, true, true},
	} {
		files := maps.Clone(c.files)
		if files == nil {
			files = map[string]string{}
		}
		files[network[1:]], files[sshd[1:]], files["etc/os-release"] = "x", "x", "ID=ubuntu\n"
		root, _ := guestOf(t, files)
		if _, err := root.PrepareImage(CaptureOptions{}); err != nil {
			t.Fatal(err)
		}
		if root.Exists(network) != c.network || root.Exists(sshd) != c.sshd {
			t.Errorf("%s: the network stays is %v, sshd's is %v", c.name, root.Exists(network), root.Exists(sshd))
		}
	}
}

// The instance's own address is no other host's, and not localhost's.
func TestPrepareImageTakesAddressesOutOfHosts(t *testing.T) {
	root, dir := guestOf(t, map[string]string{"etc/os-release": "ID=debian\n", "etc/hostname": "web.example.org\n",
		"etc/hosts": "127.0.0.1 localhost\n127.0.1.1 web.example.org web\n192.0.2.5 WEB.example.org web # us\n2001:db8::5 web\n192.0.2.9 db.example.org db\n192.0.2.7 web.example.com web\n::1 localhost\n# 192.0.2.5 web\n"})
	changes, err := root.PrepareImage(CaptureOptions{Name: "web.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	hosts := content(t, dir+"/etc/hosts")
	for _, gone := range []string{"\n192.0.2.5", "2001:db8::5", "WEB"} {
		if strings.Contains(hosts, gone) {
			t.Errorf("%q is in\n%s", gone, hosts)
		}
	}
	for _, stays := range []string{"127.0.0.1 localhost", "192.0.2.9 db.example.org db", "192.0.2.7 web.example.com", "::1 localhost"} {
		if !strings.Contains(hosts, stays) {
			t.Errorf("%q is not in\n%s%q", stays, hosts, changes)
		}
	}
}

// Whatever sshd's configuration calls a key, a tree of files does not go by it.
func TestPrepareImageRemovesNoTreeAsHostKey(t *testing.T) {
	root, _ := guestOf(t, map[string]string{"etc/os-release": "ID=debian\n", "etc/ssh/sshd_config": "HostKey /srv\nHostKey /opt/key\n", "srv/x": "x", "opt/key": "k", "opt/key.pub/x": "x"})
	if _, err := root.PrepareImage(CaptureOptions{}); err != nil {
		t.Fatal(err)
	}
	if !root.Exists("/srv/x") || !root.Exists("/opt/key.pub/x") || root.Exists("/opt/key") {
		t.Error("other things than the key's file are gone")
	}
}

// A /var/log that root has elsewhere is found; what may be more than logs is left.
func TestPrepareImageFollowsVarLog(t *testing.T) {
	need.Root(t)
	for target, want := range map[string]bool{"/srv/log": true, "../srv/log": true, "/srv": false, "/": false, "/home/eve/log": false} {
		root, dir := guestOf(t, map[string]string{"etc/os-release": "ID=debian\n", "var/log": "-> " + target, "home/eve/log": "-> /srv/log", "srv/log/app.log": "x", "srv/log/journal/1/system.journal": "x"})
		if err := os.Chown(dir+"/home/eve", 1000, 1000); err != nil {
			t.Fatal(err)
		}
		changes, err := root.PrepareImage(CaptureOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if done := content(t, dir+"/srv/log/app.log") == ""; done != want || slices.Contains(changes, "left /var/log: it is a link") == want {
			t.Errorf("%s: done is %v: %q", target, done, changes)
		}
	}
}

func TestPrepareImageWarnsOfMACs(t *testing.T) {
	root, _ := guestOf(t, map[string]string{"etc/os-release": "ID=debian\n", "usr/bin/cloud-init": "",
		"etc/netplan/01-mine.yaml":               "network:\n  ethernets:\n    lan:\n      match: {macaddress: \"aa:00:00:00:00:01\"}\n",
		"etc/netplan/02-block.yaml":              "network:\n  ethernets:\n    lan:\n      match:\n        macaddress: aa:00:00:00:00:01\n",
		"etc/netplan/03-comment.yaml":            "# macaddress: aa:00:00:00:00:01\n",
		"etc/netplan/50-cloud-init.yaml":         "network:\n  ethernets: {lan: {match: {macaddress: 'aa:00:00:00:00:01'}}}\n",
		"etc/systemd/network/1.network":          "[Match]\nPermanentMACAddress=aa:00:00:00:00:01\n",
		"etc/systemd/network/2.network":          "[Match]\nName=eth0\n#MACAddress=aa:00:00:00:00:01\n",
		"etc/systemd/network/2.network.d/x.conf": "[Match]\nMACAddress = aa:00:00:00:00:01\n",
		"etc/systemd/network/05-g.network":       "# Written at deployment by ganeti-instance-image.\n[Match]\nMACAddress=aa:00:00:00:00:01\n",
	})
	for keep, want := range map[string]string{
		"logs": "/etc/netplan/01-mine.yaml /etc/netplan/02-block.yaml /etc/systemd/network/1.network /etc/systemd/network/2.network.d/x.conf", "network": ""} {
		changes, err := root.PrepareImage(CaptureOptions{Keep: []string{keep}})
		if err != nil {
			t.Fatal(err)
		}
		var warned []string
		for _, line := range changes {
			if rest, ok := strings.CutPrefix(line, "warning: "); ok {
				warned = append(warned, strings.Fields(rest)[0])
			}
		}
		if got := strings.Join(warned, " "); got != want {
			t.Errorf("%s kept: %q", keep, got)
		}
	}
}

func TestLogNames(t *testing.T) {
	for name, want := range map[string]string{
		"syslog": "", "syslog.1": "rotated", "syslog.1234": "rotated", "a.2.gz": "rotated", "a.log-20260101": "rotated", "x.old": "rotated",
		"mysql-bin.000001": "binlog", "mariadb-bin.index": "binlog", "binlog.000003": "binlog", "web-relay-bin.000002": "binlog", "relay-log.000001": "binlog",
		"app.20260101": "", "recycle.bin": "", "cabin.log": "",
	} {
		got := ""
		if rotated.MatchString(name) {
			got = "rotated"
		}
		if binlogs.MatchString(name) {
			got += "binlog"
		}
		if got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// The error for too many files says what to do.
func TestPrepareImageSaysWhatToKeep(t *testing.T) {
	files := map[string]string{"etc/os-release": "ID=debian\n"}
	files["tmp"+strings.Repeat("/d", maxDepth+1)+"/x"] = "x"
	root, _ := guestOf(t, files)
	if _, err := root.PrepareImage(CaptureOptions{}); err == nil || !strings.Contains(err.Error(), "--keep tmp ") {
		t.Errorf("got %v", err)
	}
}
