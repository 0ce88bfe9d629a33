package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/undo"
)

// Network is a network namespace with two bridges, on which guests are. The node
// in it has the first addresses of each, name servers there, and addresses that
// guests reach by a default route alone. Both bridges have a DHCP server and
// send router advertisements: a guest that is not to use them must not.
type Network struct {
	space  namespace
	dir    string
	server *exec.Cmd
	log    strings.Builder

	mu   sync.Mutex
	taps int
}

// Bridge1 is the second bridge, the first is Bridge.
const Bridge1 = "br1"

// What is where in a Network. Documentation addresses: RFC 5737, RFC 3849.
const (
	NodeV4    = "192.0.2.1"      // on Bridge, in a /24
	NodeV6    = "2001:db8::1"    // on Bridge, in a /64
	Node1V4   = "198.51.100.1"   // on Bridge1, in a /24
	NodeLocal = "169.254.1.1"    // on Bridge, for guests whose address is a /32
	FarV4     = "10.99.99.1"     // on none
	FarV6     = "2001:db8:99::1" // on none
	Routed    = "203.0.113.0/24" // leads to Bridge

	Lease1  = "198.51.100.1"  // what addresses by DHCP begin with on Bridge1: 198.51.100.100-150
	Prefix0 = "2001:db8:bad:" // of router advertisements on Bridge
	Prefix1 = "2001:db8:1:"   // of those, and of DHCPv6, on Bridge1

	Domain   = "lab.test" // of the node's name, and what DHCP says to search in
	NodeName = "node." + Domain
)

const networkPrefix = "labnet-"

// NewNetwork makes a network, which Close removes. What processes that were
// killed left of theirs is removed first.
func NewNetwork(ctx context.Context) (_ *Network, err error) {
	if err := removeDeadNetworks(ctx); err != nil {
		return nil, fmt.Errorf("cannot remove the network of a former run: %w", err)
	}
	n := &Network{space: namespace{networkPrefix + strconv.Itoa(os.Getpid())}}
	var steps undo.Stack
	defer steps.Unwind(&err)
	steps.OnFailure("remove the network", n.Close)
	if err := n.space.add(ctx); err != nil {
		return nil, err
	}
	lines := append(bridge(Bridge), bridge(Bridge1)...)
	for _, address := range []string{
		NodeV4 + "/24 dev " + Bridge, NodeLocal + "/32 dev " + Bridge, Node1V4 + "/24 dev " + Bridge1, FarV4 + "/32 dev lo",
		NodeV6 + "/64 nodad dev " + Bridge, Prefix0 + ":1/64 nodad dev " + Bridge, Prefix1 + ":1/64 nodad dev " + Bridge1, FarV6 + "/128 nodad dev lo",
	} {
		lines = append(lines, "addr add "+address)
	}
	if err := n.space.ip(ctx, append(lines, "route add "+Routed+" dev "+Bridge)...); err != nil {
		return nil, err
	}
	return n, n.serve(ctx)
}

func removeDeadNetworks(ctx context.Context) error {
	old, err := filepath.Glob("/run/netns/" + networkPrefix + "*")
	if err != nil {
		return err
	}
	for _, path := range old {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(path), networkPrefix))
		if err != nil || pid != os.Getpid() && syscall.Kill(pid, 0) == nil {
			continue
		}
		if err := (namespace{filepath.Base(path)}).remove(ctx); err != nil {
			return err
		}
	}
	return nil
}

// serve starts the server of names, leases and router advertisements, and waits
// until it serves.
func (n *Network) serve(ctx context.Context) (err error) {
	if n.dir, err = os.MkdirTemp("", "lab-network-"); err != nil {
		return err
	}
	ready := filepath.Join(n.dir, "pid")
	argv := append(n.space.exec(), "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--group=root",
		"--no-resolv", "--no-hosts", "--log-facility=-", "--log-dhcp", "--pid-file="+ready, "--dhcp-leasefile="+n.leaseFile(),
		"--bind-interfaces", "--interface="+Bridge, "--interface="+Bridge1, "--interface=lo", "--no-dhcp-interface=lo",
		"--local=/"+Domain+"/example.org/", "--host-record="+NodeName+","+NodeV4+","+NodeV6, "--domain="+Domain, "--enable-ra",
		"--dhcp-range=192.0.2.200,192.0.2.250,1h", "--dhcp-range=198.51.100.100,198.51.100.150,1h",
		"--dhcp-range="+Prefix0+":,ra-only,64", "--dhcp-range="+Prefix1+":100,"+Prefix1+":1ff,slaac,64")
	n.server = exec.Command(argv[0], argv[1:]...)
	n.server.Stdout, n.server.Stderr = &n.log, &n.log
	n.server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := n.server.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for !exists(ready) {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			err := errors.Join(n.stop(), context.Cause(ctx))
			return fmt.Errorf("cannot start dnsmasq: %w: %s", err, n.log.String())
		}
	}
	return nil
}

func (n *Network) leaseFile() string { return filepath.Join(n.dir, "leases") }

// stop ends the server.
func (n *Network) stop() error {
	if n.server == nil || n.server.Process == nil {
		return nil
	}
	err := n.server.Process.Signal(unix.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	_ = n.server.Wait() // it says that it was ended
	return err
}

// Close ends all that runs in the network, and removes it.
func (n *Network) Close() error {
	err := n.stop()
	err = errors.Join(err, n.space.remove(context.Background()))
	if n.dir != "" {
		err = errors.Join(err, os.RemoveAll(n.dir))
	}
	return err
}

// tap makes a tap on a bridge, which goes with the network.
func (n *Network) tap(ctx context.Context, bridge string) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.taps++
	name := "tap" + strconv.Itoa(n.taps)
	return name, n.space.ip(ctx, "tuntap add dev "+name+" mode tap", "link set "+name+" master "+bridge, "link set "+name+" up")
}

// SSH returns the way into the guest that has an address. Its answers have to
// take its default route.
func (n *Network) SSH(user, address, key string) SSH {
	source := FarV4
	if strings.Contains(address, ":") {
		source = FarV6
	}
	return SSH{User: user, Address: address, Key: key, Source: source, within: n.space.exec()}
}

// Lease is what a guest got from the DHCP server.
type Lease struct {
	MAC, Address string
	Name         string // what the guest says it is called; "*" where it does not
	Client       string // its client identifier, likewise
}

// Leases are those of IPv4.
func (n *Network) Leases() ([]Lease, error) {
	text, err := os.ReadFile(n.leaseFile())
	if err != nil {
		return nil, err
	}
	var leases []Lease
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) == 2 && f[0] == "duid" {
			break // those of IPv6 follow
		}
		if len(f) != 5 {
			return nil, fmt.Errorf("cannot read the lease %q", line)
		}
		leases = append(leases, Lease{MAC: f[1], Address: f[2], Name: f[3], Client: f[4]})
	}
	return leases, nil
}

// Ping asks for an address of a guest from the node, for what SSH does not show.
func (n *Network) Ping(ctx context.Context, source, address string) error {
	argv := append(n.space.exec(), "ping", "-n", "-c", "3", "-i", "0.2", "-W", "5", "-I", source, address)
	_, err := run.Cmd{What: "reach " + address + " from " + source, Argv: argv}.Run(ctx)
	return err
}
