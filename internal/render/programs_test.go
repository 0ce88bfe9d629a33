package render

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/network"
	"ganeti-instance-image/internal/run"
)

// ngDir is where test/setup unpacks ifupdown-ng, which Debian does not install
// beside ifupdown.
const ngDir = "/usr/local/lib/ifupdown-ng"

// programs are those that read what is written, and run without the rest of a
// system; start has the directory of the files as $1.
var programs = []struct {
	name   string
	needs  string // a program's name or path
	byName bool   // it knows an interface by the name it was given
	tries  string // networks; "auto" where its client for DHCP is there too
	dns    string // how it says the name servers and domains, if it is that which does
	files  func(nics []network.NIC) map[string]string
	start  string
}{
	{"ifupdown", "ifup", true, "full routed6 six auto", "", func(nics []network.NIC) map[string]string {
		return map[string]string{"interfaces": dialect{}.interfaces("", nics)}
	}, `ifup -a --interfaces="$1/interfaces" --state-dir="$1"; say`},
	{"BusyBox", "busybox", true, "full routed6 six", "", func(nics []network.NIC) map[string]string {
		return map[string]string{"interfaces": dialect{busyBox: true}.interfaces("", nics)}
	}, `busybox ifup -a -i "$1/interfaces"; say`},
	{"ifupdown-ng", ngDir + "/sbin/ifup", true, "full routed6 six", "", func(nics []network.NIC) map[string]string {
		return map[string]string{"interfaces": dialect{ng: true}.interfaces("", nics)}
	}, ngDir + `/sbin/ifup -a -i "$1/interfaces" -S "$1/state" -E ` + ngDir + "/usr/libexec/ifupdown-ng\nsay"},
	{"systemd-networkd", "/lib/systemd/systemd-networkd", false, "full routed6 six auto", "DNS=192.0.2.2 2001:db8::53\n", func(nics []network.NIC) map[string]string {
		files := map[string]string{}
		for _, n := range nics {
			files[filepath.Base(networkdFile(n))] = networkdUnit(n)
		}
		return files
	}, `
mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp
chown -R systemd-network:systemd-network /run/systemd/netif
cp "$1"/*.network /run/systemd/network
mount -o remount,ro,bind /sys # so it waits for no udev
/lib/systemd/systemd-networkd 2>"$1/log" &
said='/run/systemd/netif/links/*'
say`},
	{"NetworkManager", "NetworkManager", false, "full routed6 six auto", "search example.org example.net\nnameserver 192.0.2.2\nnameserver 2001:db8::53\n", func(nics []network.NIC) map[string]string {
		files := map[string]string{"NetworkManager.conf": "[main]\nplugins=keyfile\nno-auto-default=*\ndhcp=internal\nauth-polkit=no\n[connection]\nipv4.required-timeout=20000\n[keyfile]\npath=/run/connections\n"}
		for _, n := range nics {
			files[filepath.Base(keyfile(n))] = connection(n)
		}
		return files
	}, `
mkdir -p /run/connections /run/NetworkManager
cp "$1"/*.nmconnection /run/connections
chmod 600 /run/connections/*
mount -o remount,ro,bind /sys # so it waits for no udev
# As in an initrd it needs no D-Bus, and goes when all is set up, but not for one family alone.
NetworkManager --configure-and-quit=initrd --debug --config "$1/NetworkManager.conf" >"$1/log" 2>&1
said=/run/NetworkManager/resolv.conf
say`},
	{"dhcpcd", "dhcpcd", true, "full routed6 six auto", "search example.org example.net\nnameserver 192.0.2.2\nnameserver 2001:db8::53\n", func(nics []network.NIC) map[string]string {
		conf, hook := dhcpcdFiles(nics)
		return map[string]string{"conf": conf, "hook": hook}
	}, `
mkdir /run/dhcpcd
for link in $(ls /sys/class/net); do ip link set $link up; done
sed "s,/etc/dhcpcd.exit-hook,$1/hook,; s,dhcpcd-hooks/\*,dhcpcd-hooks/20-resolv.conf," /usr/lib/dhcpcd/dhcpcd-run-hooks >"$1/run-hooks"
chmod 755 "$1/run-hooks"
dhcpcd -B -A --nodev -z 'nic*' -f "$1/conf" -c "$1/run-hooks" >"$1/log" 2>&1 &
said=/etc/resolv.conf
say`},
}

// shell has the interfaces of the words DEVICE=MAC, each on a link of which the
// other end is in a namespace with a DHCP server that is also a router; then the
// program is started, and says what came of it.
const shell = `set -e
dir=$1; wait=$2; shift 2
mount -t tmpfs tmpfs /run
mount -t sysfs sysfs /sys
cp -a /etc /run/etc; mount --bind /run/etc /etc; : >/etc/resolv.conf
for state in /var/lib/dhcp /var/lib/dhcpcd /var/lib/NetworkManager; do ! [ -d $state ] || mount -t tmpfs -o mode=755 tmpfs $state; done
mkfifo /run/ready
unshare --net sh -c 'echo >/run/ready; exec sleep 1000' & other=$!
read x </run/ready
for nic; do
	ip link add ${nic%=*} address ${nic#*=} type veth peer name p${nic%=*}
	ip link set p${nic%=*} netns $other
	nsenter -t $other -n ip link set p${nic%=*} up
done
if [ $wait = ask ]; then
	wait=2
	nsenter -t $other -n ip addr add 192.0.2.1/24 dev p${1%=*}
	nsenter -t $other -n ip addr add 2001:db8::1/64 dev p${1%=*}
	nsenter -t $other -n dnsmasq --conf-file=/dev/null --user=root --pid-file --port=0 --dhcp-leasefile=/run/leases --dhcp-authoritative --enable-ra \
		--dhcp-range=192.0.2.100,192.0.2.150,255.255.255.0 --dhcp-range=2001:db8::,ra-stateless
fi
said=/dev/null
say() { # when all routes are there; name servers come a little later
	i=0
	while [ $i -lt 100 ] && [ "$( (ip route; ip -6 route) | grep -c ^default)" -lt $wait ]; do sleep .1; i=$((i+1)); done
	sleep .5
	ip -oneline addr; ip route; ip -6 route; ip -oneline link
	for link in $(ls /proc/sys/net/ipv6/conf); do echo "$link accept_ra $(cat /proc/sys/net/ipv6/conf/$link/accept_ra)"; done
	cat $said || true
}
set -- "$dir"
`

// attempt is one program with one network.
type attempt struct {
	program, network string
	byName           bool
	dns              string
	nics             []network.NIC
	dir, written     string // where the files are, and all that is in them
	argv             []string
	result           run.Result
	err              error
	done             chan struct{}
}

// The programs themselves set up interfaces of a network namespace, which the
// kernel found in another order and, where the MAC tells, under other names.
// They wait more than they do, and so are started at once.
func TestPrograms(t *testing.T) {
	need.Root(t)
	need.Tools(t, "unshare", "nsenter", "ip", "dnsmasq", "dhclient")
	var attempts []*attempt
	for _, program := range programs {
		present := false
		t.Run(program.name, func(t *testing.T) {
			if strings.HasPrefix(program.needs, "/") {
				need.File(t, program.needs)
			} else {
				need.Tools(t, program.needs)
			}
			present = true
		})
		if !present {
			continue
		}
		for name := range strings.FieldsSeq(program.tries) {
			a := &attempt{program: program.name, network: name, byName: program.byName, nics: unicast(networks[name]), done: make(chan struct{})}
			if name == "full" {
				a.dns = program.dns
			}
			a.prepare(t, program.files(a.nics), program.start)
			attempts = append(attempts, a)
		}
	}
	slots := make(chan struct{}, 6)
	for _, a := range attempts {
		go func() {
			slots <- struct{}{}
			a.result, a.err = run.Cmd{What: "start it", Argv: a.argv}.Run(t.Context())
			<-slots
			close(a.done)
		}()
	}
	for _, a := range attempts {
		<-a.done
		t.Run(a.program+"/"+a.network, a.check)
	}
}

// unicast gives the NICs addresses that an interface may have: 11:... is one of
// a group.
func unicast(nics []network.NIC) []network.NIC {
	nics = slices.Clone(nics)
	for i := range nics {
		nics[i].MAC = append(net.HardwareAddr{0x12}, nics[i].MAC[1:]...)
	}
	return nics
}

func (a *attempt) prepare(t *testing.T, files map[string]string, start string) {
	t.Helper()
	a.dir = t.TempDir()
	if err := os.Chmod(a.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(a.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		a.written += text
	}
	defaults := 0
	var links []string
	for _, n := range a.nics {
		links = append(links, device(n, a.byName)+"="+n.MAC.String())
		defaults += len(n.Routes)
	}
	wait := fmt.Sprint(defaults)
	if a.nics[0].DHCP4 {
		wait = "ask"
	}
	a.argv = append([]string{"unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", shell + start, "sh", a.dir, wait}, links...)
}

func (a *attempt) check(t *testing.T) {
	out := string(a.result.Stdout)
	if a.err != nil {
		log, _ := os.ReadFile(filepath.Join(a.dir, "log"))
		t.Fatalf("%v %s\nof:\n%s", a.err, log, a.written)
	}
	for _, n := range a.nics {
		checkSet(t, n, device(n, a.byName), out)
	}
	if !strings.Contains(out, a.dns) {
		t.Errorf("no %q", a.dns)
	}
	if t.Failed() {
		t.Logf("%s\nof:\n%s", out, a.written)
	}
}

func device(n network.NIC, byName bool) string {
	if byName {
		return n.Name
	}
	return fmt.Sprint("ens", 9-n.Index)
}

// checkSet looks in what ip(8) says for what a NIC was planned to have.
func checkSet(t *testing.T, n network.NIC, device, out string) {
	t.Helper()
	has := func(words ...string) {
		for line := range strings.Lines(out) {
			found := true
			for _, word := range words {
				found = found && strings.Contains(line, word)
			}
			if found {
				return
			}
		}
		t.Errorf("%s: no line with %q", device, words)
	}
	for _, a := range n.Addresses {
		has(" "+device+" ", "inet", " "+a.String())
	}
	for _, r := range n.Routes {
		has("default via "+r.Via.String(), "dev "+device+" ")
	}
	if n.DHCP4 {
		has(" "+device+" ", "inet 192.0.2.1")
		has("default via 192.0.2.1 dev " + device)
	}
	if n.SLAAC { // the address that the MAC tells
		has(" "+device+" ", "inet6 2001:db8::1000:ff:fe00:1/64")
		has("default via fe80::", "dev "+device)
	}
	if n.MTU > 0 {
		has(" "+device+"@", fmt.Sprintf("mtu %d ", n.MTU))
	}
	if n.NoRA {
		has(device + " accept_ra 0")
	}
}

// NetworkManager's own reader of keyfiles takes a connection, and writes what it
// understood.
func TestNmcliReads(t *testing.T) {
	need.Tools(t, "nmcli")
	for name, nics := range networks {
		for _, n := range unicast(nics) {
			file := connection(n)
			result, err := run.Cmd{What: "read", Argv: []string{"nmcli", "--offline", "connection", "modify", "connection.autoconnect", "yes"}, Stdin: strings.NewReader(file)}.Run(t.Context())
			if err != nil || result.Stderr != "" {
				t.Errorf("%s: %v %s\nof:\n%s", name, err, result.Stderr, file)
				continue
			}
			got := string(result.Stdout)
			for line := range strings.Lines(file) {
				key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
				switch {
				case !ok, key == "method" && value == "ignore" || key == "ip6-privacy" && !strings.Contains(got, "ip6-privacy"):
				case key == "gateway": // behind an address, as it writes it
					if !strings.Contains(got, ","+value+"\n") && !strings.Contains(got, "gateway="+value+"\n") {
						t.Errorf("%s: no gateway %s in\n%s", name, value, got)
					}
				case !strings.Contains(got, "\n"+key+"="+value):
					t.Errorf("%s: no %s=%s in\n%s", name, key, value, got)
				}
			}
		}
	}
}
