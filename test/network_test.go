package test

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/test/lab"
)

// networkBoot is a guest that is given a network and booted.
type networkBoot struct {
	release, stack string   // as in lab.NetworkTree
	nics           []string // what each is given, in Ganeti's order: one of networkKinds
	swapped        bool     // the PCI bus has the NICs in the other order
}

// networkKinds are what a NIC can be given. "near" is a /32 whose gateway is in
// the link-local range, "routed" one whose gateway is in another's subnet, "ra"
// is DHCP with an IPv6 address by router advertisements.
var networkKinds = []string{"v4", "v4v6", "routed", "near", "dhcp", "ra"}

// networkBoots cover every value of every axis once, and every stack in a guest
// with two NICs. The first two are clones of one image.
var networkBoots = []networkBoot{
	{"trixie", "netplan", []string{"v4v6", "ra"}, true},
	{"trixie", "netplan", []string{"dhcp"}, false},
	{"bookworm", "ifupdown", []string{"v4v6", "dhcp"}, true},
	{"bookworm", "NetworkManager", []string{"near", "dhcp"}, true},
	{"trixie", "networkd", []string{"routed", "ra"}, true},
	{"trixie", "ifupdown", []string{"v4", "dhcp"}, false},
}

// allNetworkBoots are the combinations, for TEST_MATRIX=all.
func allNetworkBoots() []networkBoot {
	all := slices.Clone(networkBoots)
	for _, release := range lab.Releases {
		for _, stack := range lab.Stacks {
			for _, kind := range networkKinds {
				all = append(all, networkBoot{release, stack, []string{kind}, false})
			}
			all = append(all, networkBoot{release, stack, []string{"v4v6", "ra"}, true})
		}
	}
	return all
}

func (b networkBoot) name() string {
	return fmt.Sprint(b.release, " ", b.stack, " ", strings.Join(b.nics, "+"), " swapped=", b.swapped)
}

// nicPlan is what a NIC is given, and so what the guest must have.
type nicPlan struct {
	kind, mac, bridge  string
	v4, v6             []string // with prefix lengths
	gateway4, gateway6 string
	dns, search        []string
	mtu                int
}

func (p nicPlan) dhcp() bool { return p.kind == "dhcp" || p.kind == "ra" }

// networkGuest is one of the guests.
type networkGuest struct {
	networkBoot
	host, fqdn  string
	plans       []nicPlan
	image, disk string
	log         string            // of create
	console     string            // at the end
	answers     map[string]string // to networkQuestions
	took        []string
	err         error // why there are none
}

func newNetworkGuest(b networkBoot, number int) *networkGuest {
	g := &networkGuest{networkBoot: b, host: fmt.Sprintf("net%d", number)}
	g.fqdn = g.host + ".example.org"
	for i, kind := range b.nics {
		g.plans = append(g.plans, planNIC(kind, 10+number, fmt.Sprintf("aa:00:00:00:%02x:%02x", number, i)))
	}
	return g
}

// planNIC is what a NIC of a kind is given, where host is the last part of its
// addresses.
func planNIC(kind string, host int, mac string) nicPlan {
	p := nicPlan{kind: kind, mac: mac, bridge: lab.Bridge, search: []string{lab.Domain}, mtu: 1500}
	switch kind {
	case "v4":
		p.v4, p.gateway4, p.dns = []string{fmt.Sprintf("192.0.2.%d/24", host)}, lab.NodeV4, []string{lab.Node1V4, lab.NodeV4}
	case "v4v6":
		p.v4, p.gateway4 = []string{fmt.Sprintf("192.0.2.%d/24", host)}, lab.NodeV4
		p.v6, p.gateway6 = []string{fmt.Sprintf("2001:db8::%x/64", host)}, lab.NodeV6
		p.dns, p.search = []string{lab.NodeV6, lab.NodeV4}, []string{"example.org", lab.Domain}
		p.mtu = 1400
	case "routed":
		p.v4, p.gateway4, p.dns = []string{fmt.Sprintf("203.0.113.%d/32", host)}, lab.NodeV4, []string{lab.NodeV4}
	case "near":
		p.v4, p.gateway4, p.dns = []string{fmt.Sprintf("203.0.113.%d/32", host)}, lab.NodeLocal, []string{lab.FarV4}
	case "dhcp", "ra":
		// networkd takes no domain from a DHCP server unless it is told to.
		p.bridge, p.gateway4, p.dns, p.search = lab.Bridge1, lab.Node1V4, []string{lab.Node1V4}, nil
	}
	return p
}

// environ is what Ganeti says of the NIC.
func (p nicPlan) environ(i int) env {
	name := fmt.Sprintf("NIC_%d_", i)
	e := env{name + "MAC": p.mac, name + "MODE": "bridged", name + "LINK": p.bridge}
	switch p.kind {
	case "ra":
		maps.Copy(e, env{name + "NETWORK_NAME": "lab1", name + "NETWORK_SUBNET": "198.51.100.0/24", name + "NETWORK_SUBNET6": lab.Prefix1 + ":/64"})
	case "v4":
		address, _, _ := strings.Cut(p.v4[0], "/")
		maps.Copy(e, env{name + "IP": address, name + "NETWORK_NAME": "lab", name + "NETWORK_SUBNET": "192.0.2.0/24", name + "NETWORK_GATEWAY": p.gateway4})
	}
	return e
}

// files are the site's files for the first NIC, where Ganeti does not say it all.
func (p nicPlan) files(fqdn string) map[string]string {
	if p.kind == "v4" || p.dhcp() {
		return nil
	}
	gateways := strings.TrimSpace(p.gateway4 + " " + p.gateway6)
	return map[string]string{
		"networks/instances/" + fqdn: fmt.Sprintf("ADDRESS=\"%s\"\nSUBNET=%s\n", strings.Join(slices.Concat(p.v4, p.v6), " "), p.kind),
		"networks/subnets/" + p.kind: fmt.Sprintf("GATEWAY=\"%s\"\nDNS_SERVERS=\"%s\"\nDNS_SEARCH=\"%s\"\nMTU=%d\n", gateways, strings.Join(p.dns, " "), strings.Join(p.search, " "), p.mtu),
	}
}

// gatewayPlan is that of the NIC which the guest's default route goes by.
func (g *networkGuest) gatewayPlan() nicPlan {
	for _, p := range g.plans {
		if !p.dhcp() {
			return p
		}
	}
	return g.plans[0]
}

// A guest has the network, the name and the identity that it was given, however
// the image sets up its network, and whatever the image says of it.
func TestNetworkBoots(t *testing.T) {
	need.Machine(t)
	need.Tools(t, "mmdebstrap", "qemu-system-x86_64", "dnsmasq", "ip", "ssh", "ping")
	need.File(t, "/dev/net/tun")
	l, err := lab.Open()
	if err != nil {
		t.Fatal(err)
	}
	network, err := lab.NewNetwork(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	boots := networkBoots
	if os.Getenv("TEST_MATRIX") == "all" {
		boots = allNetworkBoots()
	}
	var guests []*networkGuest
	for i, b := range boots {
		guests = append(guests, newNetworkGuest(b, i+1))
	}
	for pair := range slices.Chunk(guests, 2) {
		bootPair(t, l, network, pair)
	}
	t.Run("clones", func(t *testing.T) { checkClones(t, guests) })
}

// bootPair deploys guests one after the other, boots them at once and looks at
// what they answered.
func bootPair(t *testing.T, l *lab.Lab, network *lab.Network, pair []*networkGuest) {
	t.Helper()
	private, public, err := l.Key(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	for _, g := range pair {
		if !t.Run("create "+g.name(), func(t *testing.T) { g.deploy(t, l, public) }) {
			g.err = errors.New("it was not deployed")
		}
	}
	kernels := t.TempDir()
	for _, g := range pair {
		if g.err == nil {
			running.Go(func() { g.err = g.boot(t.Context(), l, network, private, kernels) })
		}
	}
	running.Wait()
	for _, g := range pair {
		t.Run(g.name(), func(t *testing.T) { g.check(t, network) })
		os.Remove(g.disk)
	}
}

// deploy makes the guest's disk.
func (g *networkGuest) deploy(t *testing.T, l *lab.Lab, public string) {
	var err error
	start := time.Now()
	g.image, err = l.NetworkImage(t.Context(), lab.NetworkTree{Release: g.release, Stack: g.stack,
		Files: []lab.File{{Path: "/root/.ssh/authorized_keys", Data: public + "\n", Mode: 0o600}}})
	if err != nil {
		t.Fatal(err)
	}
	g.spent("image", start)
	given := g.gatewayPlan()
	more := []string{"PARTITION_TABLE=msdos", "FILESYSTEM=ext4", "SWAP=no"}
	if !given.dhcp() {
		more = append(more, fmt.Sprintf("DNS_SERVERS='%s'", strings.Join(given.dns, " ")), fmt.Sprintf("DNS_SEARCH='%s'", strings.Join(given.search, " ")))
	}
	s := newSite(t, imageSettings(g.image, more...))
	for path, text := range g.plans[0].files(g.fqdn) {
		s.write(t, s.conf(path), text, 0o644)
		t.Cleanup(func() { os.Remove(s.conf(path)) })
	}
	s.enable(t, "interfaces", "ssh")
	g.disk = newNetworkDisk(t)
	e := instance(g.disk).with(env{"INSTANCE_NAME": g.fqdn, "DISK_0_SIZE": itoa(networkDiskMiB), "INSTANCE_HV_kernel_path": "/boot/vmlinuz", "NIC_COUNT": itoa(len(g.plans))})
	for i, p := range g.plans {
		maps.Copy(e, p.environ(i))
	}
	start = time.Now()
	g.log = s.create(t, e)
	g.spent("create", start)
}

const networkDiskMiB = 1536

// newNetworkDisk is a disk that outlives the test of its deployment.
func newNetworkDisk(t *testing.T) string {
	t.Helper()
	f, err := os.CreateTemp("", "network-disk-")
	if err == nil {
		err = errors.Join(f.Truncate(networkDiskMiB<<20), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func (g *networkGuest) spent(what string, since time.Time) {
	g.took = append(g.took, fmt.Sprintf("%s %.1f s", what, time.Since(since).Seconds()))
}

// cards are the NICs in the order of the PCI bus.
func (g *networkGuest) cards() []lab.NIC {
	var cards []lab.NIC
	for _, p := range g.plans {
		cards = append(cards, lab.NIC{MAC: p.mac, Bridge: p.bridge})
	}
	if g.swapped {
		slices.Reverse(cards)
	}
	return cards
}

// boot starts the guest and asks it, until it has answered.
func (g *networkGuest) boot(ctx context.Context, l *lab.Lab, network *lab.Network, private, kernels string) error {
	ctx, cancel := context.WithTimeout(ctx, treePatience)
	defer cancel()
	dir, err := os.MkdirTemp(kernels, g.host)
	if err != nil {
		return err
	}
	kernel, initrd, err := lab.Kernel(ctx, g.image, dir)
	if err != nil {
		return err
	}
	start := time.Now()
	// Where the machine is busy the kernel would find an emulated timer not to work.
	guest, err := l.Boot(ctx, g.disk, lab.BootOptions{Memory: 512, Net: network, NICs: g.cards(),
		Arguments: []string{"-kernel", kernel, "-initrd", initrd, "-append", "root=/dev/vda1 ro quiet no_timer_check console=ttyS0,115200 net.ifnames=1"}})
	if err != nil {
		return err
	}
	defer guest.Close()
	defer func() { g.console = guest.Text() }()
	if _, err := guest.Wait(ctx, ` login: `); err != nil {
		return err
	}
	g.spent("login prompt", start)
	ssh, err := g.enter(ctx, guest, network, private)
	if err != nil {
		return err
	}
	g.spent("ssh", start)
	if g.answers, err = ask(ctx, ssh, g.settled()); err != nil {
		return err
	}
	g.spent("answers", start)
	return g.ping(ctx, network)
}

// enter waits until the guest lets us in, or says on its console that nobody
// came.
func (g *networkGuest) enter(ctx context.Context, guest *lab.Guest, network *lab.Network, private string) (lab.SSH, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		if _, err := guest.Wait(ctx, lab.ReportEnd); err == nil {
			cancel(errors.New("nobody gets into the guest"))
		}
	}()
	address, err := g.address(ctx, network)
	if err != nil {
		return lab.SSH{}, err
	}
	ssh := network.SSH("root", address, private)
	return ssh, ssh.Wait(ctx)
}

// address is where the guest is to be reached.
func (g *networkGuest) address(ctx context.Context, network *lab.Network) (string, error) {
	p := g.gatewayPlan()
	if !p.dhcp() {
		address, _, _ := strings.Cut(p.v4[0], "/")
		return address, nil
	}
	for {
		if lease, ok, err := leaseOf(network, p.mac); ok || err != nil {
			return lease.Address, err
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return "", fmt.Errorf("the guest asks for no lease: %w", context.Cause(ctx))
		}
	}
}

func leaseOf(network *lab.Network, mac string) (lab.Lease, bool, error) {
	leases, err := network.Leases()
	i := slices.IndexFunc(leases, func(l lab.Lease) bool { return l.MAC == mac })
	if i < 0 || err != nil {
		return lab.Lease{}, false, err
	}
	return leases[i], true, nil
}

// ping wants the guest to answer at every address it was given, to where its
// default routes alone lead.
func (g *networkGuest) ping(ctx context.Context, network *lab.Network) error {
	var all error
	for _, p := range g.plans {
		for _, prefix := range p.v6 {
			address, _, _ := strings.Cut(prefix, "/")
			all = errors.Join(all, network.Ping(ctx, lab.FarV6, address))
		}
	}
	return all
}

// networkQuestions are asked in one session, since under emulation each takes
// seconds.
var networkQuestions = []struct{ name, command string }{
	{"state", "touch " + lab.Reached + "; timeout 100 systemctl is-system-running --wait || true"},
	{"failed", "systemctl --failed --no-legend --plain"},
	{"addr", "ip -j addr"},
	{"route4", "ip -j route"},
	{"route6", "ip -j -6 route"},
	{"far4", "ip -j route get " + lab.FarV4},
	{"far6", "ip -j -6 route get " + lab.FarV6 + " 2> /dev/null || echo '[]'"},
	{"resolv", "cat /run/systemd/resolve/resolv.conf 2> /dev/null || cat /etc/resolv.conf"},
	{"resolves", "getent ahostsv4 " + lab.NodeName + " | head -n 1"},
	{"searches", "getent ahostsv4 " + strings.TrimSuffix(lab.NodeName, "."+lab.Domain) + " | head -n 1"},
	{"static name", "hostnamectl --static"},
	{"name", "hostname"},
	{"whole name", "hostname --fqdn"},
	{"machine-id", "cat /etc/machine-id"},
	{"dbus id", "cat /var/lib/dbus/machine-id"},
	{"seed", "head -c " + itoa(len(lab.OldSeed)) + " /var/lib/systemd/random-seed | od -A n -v -t x1 | tr -d ' \\n'; echo"},
	{"seed sum", "sha256sum < /var/lib/systemd/random-seed"},
	{"host keys", "cut -d' ' -f1,2 /etc/ssh/ssh_host_*_key.pub; ls /etc/ssh/ssh_host_*_key"},
	{"left", "grep -rIlE '" + strings.Join([]string{lab.OldName, regexp.QuoteMeta(lab.OldDomain), regexp.QuoteMeta(lab.OldAddress), regexp.QuoteMeta(lab.OldNameServer), lab.OldMAC, lab.OldMachineID}, "|") +
		"' /etc /var/lib --exclude-dir='*.ganeti-orig' --exclude-dir=dpkg"},
	{"configuration", "tail -n +1 /etc/netplan/* /etc/network/interfaces /etc/systemd/network/* /etc/NetworkManager/system-connections/* /etc/udev/rules.d/* /etc/resolv.conf /etc/hosts 2> /dev/null"},
	{"journal", "journalctl -b --no-pager -p 3 | tail -n 20"},
}

// settled is what the guest runs until it has what it is to get: a client may
// still be asking when the system is up. It gives up without a word.
func (g *networkGuest) settled() string {
	var there []string
	for _, p := range g.plans {
		for _, prefix := range slices.Concat(p.v4, p.v6) {
			there = append(there, " "+prefix+" ")
		}
		if p.dhcp() {
			there = append(there, "inet "+lab.Lease1)
		}
		if p.kind == "ra" {
			there = append(there, "inet6 "+lab.Prefix1)
		}
	}
	test := "! grep -q tentative <<< \"$all\""
	for _, text := range there {
		test += " && grep -qF '" + text + "' <<< \"$all\""
	}
	return "for i in {1..40}; do all=$(ip addr); " + test + " && break; sleep 0.5; done\n"
}

// ask asks all questions, behind what is run first.
func ask(ctx context.Context, ssh lab.SSH, first string) (map[string]string, error) {
	const mark = "=====lab "
	script := first
	for _, q := range networkQuestions {
		script += "echo '" + mark + q.name + "'\n" + q.command + "\n"
	}
	text, err := ssh.Run(ctx, script+"true")
	if err != nil {
		return nil, err
	}
	answers := map[string]string{}
	for part := range strings.SplitSeq("\n"+text, "\n"+mark) {
		name, answer, _ := strings.Cut(part, "\n")
		answers[name] = strings.TrimSpace(answer)
	}
	return answers, nil
}

// guestLink is a network card as ip(8) tells of it.
type guestLink struct {
	Name      string `json:"ifname"`
	MAC       string `json:"address"`
	MTU       int
	State     string `json:"operstate"`
	Addresses []struct {
		Family, Local, Scope string
		Length               int `json:"prefixlen"`
		Dynamic              bool
	} `json:"addr_info"`
}

// guestRoute is a route likewise.
type guestRoute struct {
	To      string `json:"dst"`
	Gateway string
	Device  string `json:"dev"`
	Metric  int
	Flags   []string
}

// reads an answer that is JSON.
func (g *networkGuest) read(t *testing.T, question string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(g.answers[question]), into); err != nil {
		t.Errorf("%s: %v: %q", question, err, g.answers[question])
	}
}

// check compares what the guest answered with what it was given.
func (g *networkGuest) check(t *testing.T, network *lab.Network) {
	t.Log(strings.Join(g.took, ", "))
	if g.err != nil {
		t.Errorf("%v\nlog of create:\n%s\nconsole:\n%s", g.err, g.log, g.console)
	}
	if g.answers == nil {
		return
	}
	g.checkLinks(t)
	g.checkRoutes(t)
	g.checkNames(t)
	g.checkIdentity(t)
	g.checkLeases(t, network)
	if t.Failed() {
		t.Logf("log of create:\n%s", g.log)
		for _, q := range networkQuestions {
			t.Logf("%s:\n%s", q.name, g.answers[q.name])
		}
	}
}

// links are the guest's network cards by their MAC.
func (g *networkGuest) links(t *testing.T) map[string]guestLink {
	t.Helper()
	var links []guestLink
	g.read(t, "addr", &links)
	by := map[string]guestLink{}
	for _, link := range links {
		by[link.MAC] = link
	}
	return by
}

// checkLinks wants each NIC to have its addresses and no others.
func (g *networkGuest) checkLinks(t *testing.T) {
	t.Helper()
	links := g.links(t)
	if len(links) != len(g.plans)+1 {
		t.Errorf("the guest has %d interfaces, want %d and lo", len(links), len(g.plans))
	}
	for i, p := range g.plans {
		link := links[p.mac]
		if link.State != "UP" || link.MTU != p.mtu {
			t.Errorf("NIC %d is %s with an MTU of %d, want %d", i, link.State, link.MTU, p.mtu)
		}
		var v4, v6, leased, advertised []string
		for _, a := range link.Addresses {
			prefix := fmt.Sprintf("%s/%d", a.Local, a.Length)
			switch {
			case a.Scope != "global":
			case p.dhcp() && a.Family == "inet" && a.Dynamic && strings.HasPrefix(a.Local, lab.Lease1):
				leased = append(leased, prefix)
			case a.Family == "inet":
				v4 = append(v4, prefix)
			case len(p.v6) == 0 && (strings.HasPrefix(a.Local, lab.Prefix0) || strings.HasPrefix(a.Local, lab.Prefix1)):
				advertised = append(advertised, prefix)
			default:
				v6 = append(v6, prefix)
			}
		}
		if p.kind == "ra" && len(advertised) == 0 {
			t.Errorf("NIC %d (%s) has no address in the network whose IPv6 subnet Ganeti gives", i, link.Name)
		}
		if !slices.Equal(v4, p.v4) || !slices.Equal(v6, p.v6) || p.dhcp() && len(leased) != 1 {
			t.Errorf("NIC %d (%s, %s) has %v and %v, and by DHCP %v; want %v and %v", i, p.kind, link.Name, v4, v6, leased, p.v4, p.v6)
		}
	}
}

// checkRoutes wants what is far to be reached by the NIC with the gateway, and no
// default route that nobody asked for.
func (g *networkGuest) checkRoutes(t *testing.T) {
	t.Helper()
	p := g.gatewayPlan()
	device := g.links(t)[p.mac].Name
	g.checkFar(t, "far4", device, p.gateway4)
	if p.gateway6 != "" {
		g.checkFar(t, "far6", device, p.gateway6)
	}
	var routes []guestRoute
	g.read(t, "route4", &routes)
	defaults := 0
	for _, r := range routes {
		if r.To == "default" {
			defaults++
		}
	}
	want := 0
	for _, p := range g.plans {
		if p.gateway4 != "" {
			want++
		}
	}
	if defaults != want {
		t.Errorf("%d default routes, want %d: %s", defaults, want, g.answers["route4"])
	}
}

func (g *networkGuest) checkFar(t *testing.T, question, device, gateway string) {
	t.Helper()
	var routes []guestRoute
	g.read(t, question, &routes)
	if len(routes) != 1 || routes[0].Device != device || routes[0].Gateway != gateway {
		t.Errorf("what is far is reached by %s, want %s by %s", g.answers[question], gateway, device)
	}
}

// checkNames wants the guest to know its name, and to ask the name servers it was
// given, in their order. Those of a DHCP server may come besides.
func (g *networkGuest) checkNames(t *testing.T) {
	t.Helper()
	for question, want := range map[string]string{"static name": g.host, "name": g.host, "whole name": g.fqdn} {
		if g.answers[question] != want {
			t.Errorf("%s: %q, want %q", question, g.answers[question], want)
		}
	}
	var servers, search []string
	for line := range strings.Lines(g.answers["resolv"]) {
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "nameserver":
			servers = append(servers, f[1])
		case len(f) > 1 && (f[0] == "search" || f[0] == "domain"):
			search = append(search, f[1:]...)
		}
	}
	p := g.gatewayPlan()
	dhcp := slices.ContainsFunc(g.plans, nicPlan.dhcp)
	others := func(server string) bool {
		return !slices.Contains(p.dns, server) && dhcp && (server == lab.Node1V4 || strings.HasPrefix(server, "fe80:") || strings.HasPrefix(server, lab.Prefix0) || strings.HasPrefix(server, lab.Prefix1))
	}
	servers = slices.DeleteFunc(servers, others)
	if !slices.Equal(ofFamily(servers, ":"), ofFamily(p.dns, ":")) || !slices.Equal(ofFamily(servers, "."), ofFamily(p.dns, ".")) {
		t.Errorf("the name servers are %v, want %v", servers, p.dns)
	}
	for _, domain := range p.search {
		if !slices.Contains(search, domain) {
			t.Errorf("names are searched for in %v, want %s among them", search, domain)
		}
	}
	if !strings.HasPrefix(g.answers["resolves"], lab.NodeV4+" ") || len(p.search) > 0 && !strings.HasPrefix(g.answers["searches"], lab.NodeV4+" ") {
		t.Errorf("the guest takes the node's name for %q, the first label of it for %q", g.answers["resolves"], g.answers["searches"])
	}
}

// ofFamily are those of the addresses that have the separator of their family in
// them. Netplan and NetworkManager keep the order within a family only.
func ofFamily(addresses []string, separator string) []string {
	return slices.DeleteFunc(slices.Clone(addresses), func(a string) bool { return !strings.Contains(a, separator) })
}

// checkIdentity wants nothing of the image's own to be left, and no unit to have
// failed over it.
func (g *networkGuest) checkIdentity(t *testing.T) {
	t.Helper()
	for question, want := range map[string]string{"failed": "", "left": "", "state": "running"} {
		if g.answers[question] != want {
			t.Errorf("%s: %q, want %q", question, g.answers[question], want)
		}
	}
	if id := g.answers["machine-id"]; len(id) != 32 || id == lab.OldMachineID || g.answers["dbus id"] != id {
		t.Errorf("the machine-id is %q, that of D-Bus %q", id, g.answers["dbus id"])
	}
	if seed := g.answers["seed"]; len(seed) != 2*len(lab.OldSeed) || seed == hex.EncodeToString([]byte(lab.OldSeed)) {
		t.Errorf("the random seed begins with %q", seed)
	}
	for kind, key := range hostKeys(g.answers["host keys"]) {
		if old := tool(t, "tar", "-xOf", g.image, "./etc/ssh/ssh_host_"+kind+"_key.pub"); strings.Contains(old, key) {
			t.Errorf("the host key %s is that of the image", key)
		}
	}
	if n := len(hostKeys(g.answers["host keys"])); n < 2 {
		t.Errorf("there are %d host keys: %s", n, g.answers["host keys"])
	}
}

// hostKeys are the public keys by their kinds, as "ed25519".
func hostKeys(answer string) map[string]string {
	kinds := map[string]string{"ssh-ed25519": "ed25519", "ssh-rsa": "rsa", "ecdsa-sha2-nistp256": "ecdsa"}
	keys := map[string]string{}
	for line := range strings.Lines(answer) {
		if f := strings.Fields(line); len(f) == 2 {
			keys[kinds[f[0]]] = f[1]
		}
	}
	return keys
}

// checkLeases wants the NICs with DHCP to have said the guest's name, and no other
// to have asked.
func (g *networkGuest) checkLeases(t *testing.T, network *lab.Network) {
	t.Helper()
	for i, p := range g.plans {
		lease, ok, err := leaseOf(network, p.mac)
		if err != nil {
			t.Fatal(err)
		}
		if ok != p.dhcp() || ok && lease.Name != g.host {
			t.Errorf("NIC %d (%s) has the lease %+v; want the name %s where it has one", i, p.kind, lease, g.host)
		}
	}
}

// checkClones wants guests of one image to share nothing that is a system's own.
func checkClones(t *testing.T, guests []*networkGuest) {
	for i, a := range guests {
		for _, b := range guests[:i] {
			if a.image != b.image || a.answers == nil || b.answers == nil {
				continue
			}
			for _, question := range []string{"machine-id", "seed sum", "name"} {
				if a.answers[question] == b.answers[question] {
					t.Errorf("%s and %s have the same %s: %s", a.host, b.host, question, a.answers[question])
				}
			}
			keys := hostKeys(b.answers["host keys"])
			for kind, key := range hostKeys(a.answers["host keys"]) {
				if keys[kind] == key {
					t.Errorf("%s and %s have the same host key %s", a.host, b.host, key)
				}
			}
		}
	}
}
