package network

import (
	"context"
	"encoding/binary"
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
	"slices"
	"strconv"
	"strings"

	"ganeti-instance-image/internal/osapi"
	"ganeti-instance-image/internal/settings"
	"ganeti-instance-image/internal/size"
)

// files are the site's network files: instances/FQDN with ADDRESS and SUBNET,
// and subnets/NAME with NETMASK, GATEWAY, DNS_SERVERS, DNS_SEARCH, DNS_DOMAIN.
// In instances/FQDN the variables for NIC n, but for 0, end in "_n".
type files struct {
	set    *settings.Settings
	vars   map[string]string // what a file may use
	subnet value             // the setting SUBNET, for an address without a subnet of its own

	path string // of the instance's file
	own  values // what it says; nil where there is none
}

// value is an assignment and where it was made.
type value struct {
	text, where string
	shared      bool // in a subnet's file, which other instances use as well
}

type values map[string]value

const fileLimit = 64 * size.KiB

// ofAddress and ofOthers are the variables that say something of a NIC.
var (
	ofAddress = []string{"ADDRESS", "ADDRESS6"}
	ofNetwork = []string{"SUBNET", "NETMASK", "NETMASK6", "GATEWAY", "GATEWAY6"}
	ofOthers  = []string{"DNS_SERVERS", "DNS_SEARCH", "DNS_DOMAIN", "MTU"}
)

var numbered = regexp.MustCompile(`^(` + strings.Join(slices.Concat(ofAddress, ofNetwork, ofOthers), "|") + `)_([0-9]{1,9})$`)

// has tells whether one of the variables is set.
func (v values) has(names []string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return v[name].text != "" })
}

// readInstance reads the file of the instance, if it has one.
func (f *files) readInstance(ctx context.Context, inst osapi.Instance) error {
	if !component.MatchString(inst.Name) {
		return nil // no name of a host, and so of no file
	}
	f.path = filepath.Join(f.set.NetworksDir, "instances", inst.Name)
	own := values{}
	err := f.read(ctx, f.path, own, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	f.own = own
	says := own.has(slices.Concat(ofAddress, ofNetwork, ofOthers))
	for _, name := range slices.Sorted(maps.Keys(own)) {
		m := numbered.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		says = true
		if n, err := strconv.Atoi(m[2]); err != nil || strconv.Itoa(n) != m[2] || n == 0 || n >= len(inst.NICs) {
			return fmt.Errorf("%s: %s is for no NIC: the instance has %d, which count from 0, and the variables of NIC 0 have no number", own[name].where, name, len(inst.NICs))
		}
	}
	if !says {
		return fmt.Errorf("cannot use %s: it sets no ADDRESS", f.path)
	}
	return nil
}

// of are the variables of one NIC by their names without its number, and those
// that are of no NIC.
func (v values) of(nic int) values {
	out := values{}
	known := slices.Concat(ofAddress, ofNetwork, ofOthers)
	for name, value := range v {
		if !slices.Contains(known, name) {
			out[name] = value
		}
	}
	suffix := ""
	if nic > 0 {
		suffix = "_" + strconv.Itoa(nic)
	}
	for _, name := range known {
		if value, ok := v[name+suffix]; ok {
			out[name] = value
		}
	}
	return out
}

// instance makes a source of what the instance's file says of a NIC; found is
// false where it says nothing of it.
func (f files) instance(ctx context.Context, nic osapi.NIC) (from source, found bool, err error) {
	vars := f.own.of(nic.Index)
	if !vars.has(slices.Concat(ofAddress, ofNetwork, ofOthers)) {
		return source{}, false, nil
	}
	what := f.path
	subnet := vars["SUBNET"]
	if nic.Index == 0 && !vars.has(ofNetwork) && (vars.has(ofAddress) || nic.IP.IsValid()) {
		subnet = f.subnet
	}
	if subnet.text != "" {
		if err := f.readSubnet(ctx, subnet, vars); err != nil {
			return source{}, true, err
		}
		what += " with subnet " + subnet.text
	}
	if !vars.has(ofAddress) && vars.has(ofNetwork) {
		if !nic.IP.IsValid() {
			return source{}, true, fmt.Errorf("cannot use %s for NIC %d: it sets no ADDRESS for it, and Ganeti gives no NIC_%d_IP", f.path, nic.Index, nic.Index)
		}
		vars["ADDRESS"] = given(nic)
	}
	if !vars.has(ofAddress) {
		from = f.fromGanetiOrDHCP(nic)
		what = from.what + " with " + f.path
	}
	err = vars.source(what, &from)
	return from, true, err
}

func given(nic osapi.NIC) value {
	return value{text: nic.IP.String(), where: fmt.Sprintf("NIC_%d_IP", nic.Index)}
}

// subnetFor makes a source of the file of the setting SUBNET and an address
// from Ganeti.
func (f files) subnetFor(ctx context.Context, nic osapi.NIC) (from source, err error) {
	vars := values{}
	if err := f.readSubnet(ctx, f.subnet, vars); err != nil {
		return source{}, err
	}
	vars["ADDRESS"] = given(nic)
	delete(vars, "ADDRESS6")
	err = vars.source("Ganeti with subnet "+f.subnet.text, &from)
	return from, err
}

// component is what a name may be made of that becomes part of a path.
var component = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.-]*$`)

func (f files) readSubnet(ctx context.Context, subnet value, into values) error {
	if !component.MatchString(subnet.text) {
		return fmt.Errorf("%s: %q is not the name of a subnet", subnet.where, subnet.text)
	}
	err := f.read(ctx, filepath.Join(f.set.NetworksDir, "subnets", subnet.text), into, true)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: there is no file for the subnet %s: %w", subnet.where, subnet.text, err)
	}
	return err
}

// read evaluates a file; what an earlier file said can be used in it and is
// replaced by it, as when Bash sources one after the other.
func (f files) read(ctx context.Context, name string, into values, shared bool) error {
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
		into[a.Name] = value{text: a.Value, where: name + ":" + strconv.Itoa(a.Line), shared: shared}
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
func (v values) source(what string, from *source) error {
	from.what = what
	for _, read := range []func(*source) error{v.readAddresses, v.readGateways, v.readDNS, v.readMTU} {
		if err := read(from); err != nil {
			return err
		}
	}
	return nil
}

// readAddresses reads ADDRESS, words of either family, and ADDRESS6.
func (v values) readAddresses(from *source) error {
	for _, name := range ofAddress {
		address := v[name]
		words := strings.Fields(address.text)
		for _, word := range words {
			if strings.EqualFold(word, "none") && len(words) > 1 {
				return fmt.Errorf("%s: %s: \"none\" stands alone", address.where, name)
			}
			if err := v.readAddress(from, name, word); err != nil {
				return fmt.Errorf("%s: %s: %w", address.where, name, err)
			}
		}
	}
	return nil
}

// readAddress reads one address, with its prefix length or else with NETMASK's,
// or the way by which the guest is to find one.
func (v values) readAddress(from *source, name, word string) error {
	six := name == "ADDRESS6"
	switch way := strings.ToLower(word); {
	case way == "none":
		return nil
	case way == "auto":
		from.slaac = true
		return nil
	case way == "dhcp6", way == "dhcp" && six:
		from.dhcp6 = true
		return nil
	case !six && (way == "dhcp" || way == "dhcp4"):
		from.dhcp4 = true
		return nil
	}
	text, length, hasLength := strings.Cut(word, "/")
	addr, err := parseAddr(text)
	if err != nil {
		return fmt.Errorf("%w, nor is it dhcp, dhcp6, auto or none", err)
	}
	if six && addr.Is4() {
		return fmt.Errorf("%v is not an IPv6 address", addr)
	}
	if !hasLength {
		mask := v.netmask(addr)
		if mask.text == "" {
			return fmt.Errorf("%s has no prefix length, and no %s is set beside it or in its subnet's file", word, maskName(addr))
		}
		length = mask.text
	}
	bits, err := prefixLength(length, addr)
	if err != nil {
		if !hasLength {
			err = fmt.Errorf("its netmask in %s: %w", v.netmask(addr).where, err)
		}
		return err
	}
	prefix := netip.PrefixFrom(addr, bits)
	if err := checkHost(prefix); err != nil {
		return err
	}
	from.addresses = append(from.addresses, prefix)
	return nil
}

// netmask is what says an address's prefix length: NETMASK6 for IPv6, or
// NETMASK where that cannot be meant for IPv4.
func (v values) netmask(addr netip.Addr) value {
	if addr.Is4() {
		return v["NETMASK"]
	}
	if mask := v["NETMASK6"]; mask.text != "" {
		return mask
	}
	for word := range strings.FieldsSeq(v["ADDRESS"].text) {
		if !strings.Contains(word, ":") { // IPv4, or a way to find one
			return value{}
		}
	}
	if n, err := strconv.Atoi(v["NETMASK"].text); err == nil && n <= 32 {
		return value{} // it is the subnet's for IPv4
	}
	return v["NETMASK"]
}

func maskName(addr netip.Addr) string {
	if addr.Is4() {
		return "NETMASK"
	}
	return "NETMASK6"
}

// checkHost refuses what names a network and no host in it.
func checkHost(prefix netip.Prefix) error {
	if prefix.Bits() == 0 {
		return fmt.Errorf("%v: a prefix length of 0 would have all of the Internet on this link", prefix)
	}
	if !prefix.Addr().Is4() || prefix.Bits() > 30 {
		return nil
	}
	host := binary.BigEndian.Uint32(prefix.Addr().AsSlice()) << prefix.Bits() >> prefix.Bits()
	if host == 0 || host == ^uint32(0)>>prefix.Bits() {
		return fmt.Errorf("%v is the address of a network or of all hosts in it, and of no host", prefix)
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

// readGateways reads GATEWAY, one address, or one a family, and GATEWAY6. What a
// subnet's file says for a family in which this instance has no address of its
// own, or finds it otherwise, is for other instances.
func (v values) readGateways(from *source) error {
	for _, name := range []string{"GATEWAY", "GATEWAY6"} {
		gateway := v[name]
		for word := range strings.FieldsSeq(gateway.text) {
			addr, err := parseAddr(word)
			if err == nil && name == "GATEWAY6" && addr.Is4() {
				err = fmt.Errorf("%v is not an IPv6 address", addr)
			}
			if err == nil && (!gateway.shared || from.needsGateway(addr)) {
				err = from.addGateway(addr)
			}
			if err != nil {
				return fmt.Errorf("%s: %s: %w", gateway.where, name, err)
			}
		}
	}
	return nil
}

// needsGateway tells whether a gateway's family is one with a static address
// and nothing that brings a default route.
func (from *source) needsGateway(gateway netip.Addr) bool {
	if from.brings(gateway) {
		return false
	}
	return slices.ContainsFunc(from.addresses, func(p netip.Prefix) bool { return p.Addr().Is4() == gateway.Is4() })
}

// brings tells whether a default route of the family of a gateway comes by DHCP
// or router advertisements.
func (from *source) brings(gateway netip.Addr) bool {
	return gateway.Is4() && from.dhcp4 || gateway.Is6() && (from.dhcp6 || from.slaac)
}

func (from *source) addGateway(addr netip.Addr) error {
	if from.brings(addr) {
		return fmt.Errorf("%v is not needed: ADDRESS has the guest find its default route by DHCP or router advertisements", addr)
	}
	for _, other := range from.gateways {
		if other.Is4() == addr.Is4() {
			return fmt.Errorf("%v and %v are of one family, and only one can be the default", other, addr)
		}
	}
	if _, err := defaultRoute(addr, from.addresses); err != nil {
		return err
	}
	from.gateways = append(from.gateways, addr)
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
		if !slices.Contains(from.dns, addr) {
			from.dns = append(from.dns, addr)
		}
	}
	search := v["DNS_SEARCH"]
	if search.text == "" {
		search = v["DNS_DOMAIN"]
	}
	for word := range strings.FieldsSeq(search.text) {
		name := strings.TrimSuffix(word, ".") // which not every tool takes
		if len(name) > 253 || !domain.MatchString(name) {
			return fmt.Errorf("%s: %q is not a domain", search.where, word)
		}
		from.search = append(from.search, name)
	}
	return nil
}

// domain is a name of DNS, of labels of up to 63 characters.
var domain = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*$`)

// readMTU reads MTU, of which IPv4 needs 576 bytes (RFC 791) and IPv6 1280 (RFC
// 8200).
func (v values) readMTU(from *source) error {
	mtu := v["MTU"]
	if mtu.text == "" {
		return nil
	}
	least, family := 576, "IPv4"
	if from.dhcp6 || from.slaac || slices.ContainsFunc(from.addresses, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		least, family = 1280, "IPv6"
	}
	n, err := strconv.Atoi(mtu.text)
	if err != nil || n < least || n > 65535 {
		return fmt.Errorf("%s: MTU: want a number of bytes from %d, the least that %s needs, to 65535, not %q", mtu.where, least, family, mtu.text)
	}
	from.mtu = n
	return nil
}
