package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/bits"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"ganeti-instance-image/internal/settings"
	"ganeti-instance-image/internal/size"
)

// files are the site's network files: instances/FQDN with ADDRESS and SUBNET,
// and subnets/NAME with NETMASK, GATEWAY, DNS_SERVERS, DNS_SEARCH, DNS_DOMAIN.
type files struct {
	set    *settings.Settings
	vars   map[string]string // what a file may use
	subnet value             // the setting SUBNET, for an address without a subnet of its own
}

// value is an assignment and where it was made.
type value struct{ text, where string }

type values map[string]value

const fileLimit = 64 * size.KiB

// instance reads the file of an instance; found is false where it has none.
func (f files) instance(ctx context.Context, name string) (from source, found bool, err error) {
	if !component.MatchString(name) {
		return source{}, false, nil // no name of a host, and so of no file
	}
	file := filepath.Join(f.set.NetworksDir, "instances", name)
	vars := values{}
	if err := f.read(ctx, file, vars); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return source{}, false, nil
		}
		return source{}, true, err
	}
	what := file
	subnet := vars["SUBNET"]
	if subnet.text == "" && vars["NETMASK"].text == "" && vars["GATEWAY"].text == "" {
		subnet = f.subnet
	}
	if subnet.text != "" {
		if err := f.readSubnet(ctx, subnet, vars); err != nil {
			return source{}, true, err
		}
		what += " with subnet " + subnet.text
	}
	address := vars["ADDRESS"]
	if address.text == "" {
		return source{}, true, fmt.Errorf("cannot use %s: it sets no ADDRESS", file)
	}
	from, err = vars.source(what)
	return from, true, err
}

// subnetFor makes a source of the file of the setting SUBNET and an address
// from Ganeti.
func (f files) subnetFor(ctx context.Context, address netip.Addr) (source, error) {
	vars := values{}
	if err := f.readSubnet(ctx, f.subnet, vars); err != nil {
		return source{}, err
	}
	vars["ADDRESS"] = value{text: address.String(), where: "NIC_0_IP"}
	return vars.source("Ganeti with subnet " + f.subnet.text)
}

// component is what a name may be made of that becomes part of a path.
var component = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.-]*$`)

func (f files) readSubnet(ctx context.Context, subnet value, into values) error {
	if !component.MatchString(subnet.text) {
		return fmt.Errorf("%s: %q is not the name of a subnet", subnet.where, subnet.text)
	}
	err := f.read(ctx, filepath.Join(f.set.NetworksDir, "subnets", subnet.text), into)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: there is no file for the subnet %s: %w", subnet.where, subnet.text, err)
	}
	return err
}

// read evaluates a file; what an earlier file said can be used in it and is
// replaced by it, as when Bash sources one after the other.
func (f files) read(ctx context.Context, name string, into values) error {
	text, err := readFile(name)
	if err != nil {
		return fmt.Errorf("cannot read the network file: %w", err)
	}
	vars := maps.Clone(f.vars)
	for name, v := range into {
		vars[name] = v.text
	}
	assignments, err := f.set.Evaluate(ctx, name, text, vars)
	if err != nil {
		return err
	}
	for _, a := range assignments {
		into[a.Name] = value{text: a.Value, where: name + ":" + strconv.Itoa(a.Line)}
	}
	return nil
}

func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("it is not a regular file")}
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, int64(fileLimit)+1))
	if err == nil && size.Bytes(len(text)) > fileLimit {
		err = &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("it is larger than %v", fileLimit)}
	}
	return text, err
}

// source makes sense of the variables of the network files.
func (v values) source(what string) (source, error) {
	from := source{what: what}
	for _, read := range []func(*source) error{v.readAddresses, v.readGateways, v.readDNS} {
		if err := read(&from); err != nil {
			return source{}, err
		}
	}
	return from, nil
}

// readAddresses reads ADDRESS: one address or several, of either family, each
// with its prefix length or else with NETMASK's.
func (v values) readAddresses(from *source) error {
	address := v["ADDRESS"]
	for word := range strings.FieldsSeq(address.text) {
		text, length, hasLength := strings.Cut(word, "/")
		addr, err := parseAddr(text)
		if err != nil {
			return fmt.Errorf("%s: ADDRESS: %w", address.where, err)
		}
		where := address.where
		if !hasLength {
			if v["NETMASK"].text == "" {
				return fmt.Errorf("%s: ADDRESS %s has no prefix length, and no NETMASK is set beside it or in its subnet's file", where, word)
			}
			length, where = v["NETMASK"].text, v["NETMASK"].where
		}
		bits, err := prefixLength(length, addr)
		if err != nil {
			return fmt.Errorf("%s: %w", where, err)
		}
		from.addresses = append(from.addresses, netip.PrefixFrom(addr, bits))
	}
	return nil
}

func parseAddr(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" || addr.Is4In6() || addr.IsUnspecified() || addr.IsMulticast() {
		return netip.Addr{}, fmt.Errorf("%q is not the IP address of a host", text)
	}
	return addr, nil
}

// prefixLength reads "24" or, for IPv4, "255.255.255.0".
func prefixLength(text string, addr netip.Addr) (int, error) {
	if n, err := strconv.ParseUint(text, 10, 8); err == nil {
		if int(n) > addr.BitLen() {
			return 0, fmt.Errorf("%s is more than the %d bits of the address %v", text, addr.BitLen(), addr)
		}
		return int(n), nil
	}
	mask, err := netip.ParseAddr(text)
	if err != nil || !mask.Is4() || !addr.Is4() {
		return 0, fmt.Errorf("%q is not a netmask for %v: want a prefix length such as %d%s", text, addr, addr.BitLen()/4*3, dotted(addr))
	}
	b := mask.As4()
	m := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	ones := bits.LeadingZeros32(^m)
	if m<<ones != 0 {
		return 0, fmt.Errorf("%q is not a netmask: its set bits are not all in front", text)
	}
	return ones, nil
}

func dotted(addr netip.Addr) string {
	if addr.Is4() {
		return " or 255.255.255.0"
	}
	return ""
}

// readGateways reads GATEWAY: one address, or one a family.
func (v values) readGateways(from *source) error {
	gateway := v["GATEWAY"]
	for word := range strings.FieldsSeq(gateway.text) {
		addr, err := parseAddr(word)
		if err != nil {
			return fmt.Errorf("%s: GATEWAY: %w", gateway.where, err)
		}
		for _, other := range from.gateways {
			if other.Is4() == addr.Is4() {
				return fmt.Errorf("%s: GATEWAY: %v and %v are of one family, and only one can be the default", gateway.where, other, addr)
			}
		}
		if _, err := defaultRoute(addr, from.addresses); err != nil {
			return fmt.Errorf("%s: %w", gateway.where, err)
		}
		from.gateways = append(from.gateways, addr)
	}
	return nil
}

// readDNS reads DNS_SERVERS, DNS_SEARCH, and DNS_DOMAIN where that is all there
// is: to a resolver, a domain is a search list of one.
func (v values) readDNS(from *source) error {
	servers := v["DNS_SERVERS"]
	for word := range strings.FieldsSeq(servers.text) {
		addr, err := parseAddr(word)
		if err != nil {
			return fmt.Errorf("%s: DNS_SERVERS: %w", servers.where, err)
		}
		from.dns = append(from.dns, addr)
	}
	search := v["DNS_SEARCH"]
	if search.text == "" {
		search = v["DNS_DOMAIN"]
	}
	for word := range strings.FieldsSeq(search.text) {
		if !component.MatchString(word) {
			return fmt.Errorf("%s: %q is not a domain", search.where, word)
		}
		from.search = append(from.search, word)
	}
	return nil
}
