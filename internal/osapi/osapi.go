// Package osapi reads what Ganeti tells an OS script: the environment of API
// version 20 (and of 15 and 10, which say less), as ganeti-os-interface(7) and
// Ganeti's lib/backend.py have it.
//
// Left out: API 5, which no Ganeti since 2.1 speaks, and the variables nothing
// here needs (timestamps, node names, most of INSTANCE_BE_*).
package osapi

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"ganeti-instance-image/internal/size"
)

// Instance is the instance a script is run for. A variable that Ganeti leaves
// out is the zero value here.
type Instance struct {
	APIVersion int               // OS_API_VERSION; 20 where it is not said
	OS         string            // OS_NAME: the definition's name, without the variant
	Variant    string            // OS_VARIANT
	Name       string            // INSTANCE_NAME, the FQDN
	UUID       string            // INSTANCE_UUID; not set under API 10
	Hypervisor string            // HYPERVISOR: kvm, xen-pvm, xen-hvm, fake, ...
	HVParams   map[string]string // INSTANCE_HV_*, by their names as Ganeti writes them: kernel_path
	Params     map[string]string // OS parameters, OSP_*, by their names in lower case
	Reinstall  bool              // INSTANCE_REINSTALL is 1
	OldName    string            // OLD_INSTANCE_NAME, for rename
	Memory     size.Bytes        // INSTANCE_BE_maxmem, or INSTANCE_BE_memory before Ganeti 2.6
	DebugLevel int               // DEBUG_LEVEL
	Disks      []Disk
	NICs       []NIC
	Export     Transfer // EXPORT_*, for export
	Import     Transfer // IMPORT_*, for import
}

// Transfer is the disk that export reads, or import writes. What export is to
// read may be a snapshot of the instance's disk, and not that itself.
type Transfer struct {
	Index int
	Path  string // not set where only the hypervisor reaches the disk
	URI   string
}

// Disk is one disk of the instance: DISK_n_*.
type Disk struct {
	Index       int
	Path        string // a block device or a file; not set where only the hypervisor reaches the disk
	URI         string // set only with access=userspace, as in "rbd:pool/name"
	Name        string
	UUID        string
	Size        size.Bytes // 0 before Ganeti 3.0
	Access      string     // "rw" or "ro"
	BackendType string     // "block", "file:loop", ...
}

// NIC is one network interface of the instance: NIC_n_*.
type NIC struct {
	Index   int
	MAC     net.HardwareAddr
	Name    string
	UUID    string
	IP      netip.Addr // without a prefix length; invalid where Ganeti has none
	Mode    string     // bridged, routed, openvswitch
	Link    string
	Network Network
}

// Network is the Ganeti network a NIC is connected to: NIC_n_NETWORK_*.
type Network struct {
	Name     string
	Subnet   netip.Prefix
	Gateway  netip.Addr
	Subnet6  netip.Prefix
	Gateway6 netip.Addr
}

// maxDevices bounds DISK_COUNT and NIC_COUNT; Ganeti itself allows 16 and 8.
const maxDevices = 256

// Read reads the environment of create, import, export and rename. The error
// names the first variable that is missing or not well formed.
func Read(environ []string) (Instance, error) {
	e := parse(environ)
	inst := e.core()
	inst.Name = e.require("INSTANCE_NAME")
	inst.UUID = e.vars["INSTANCE_UUID"]
	inst.Hypervisor = e.require("HYPERVISOR")
	inst.HVParams = e.prefixed("INSTANCE_HV_")
	inst.Reinstall = e.vars["INSTANCE_REINSTALL"] == "1"
	inst.OldName = e.vars["OLD_INSTANCE_NAME"]
	inst.Memory = e.memory()
	for n := range e.count("DISK_COUNT", true) {
		inst.Disks = append(inst.Disks, e.disk(n))
	}
	for n := range e.count("NIC_COUNT", false) {
		inst.NICs = append(inst.NICs, e.nic(n))
	}
	inst.Export, inst.Import = e.transfer("EXPORT_"), e.transfer("IMPORT_")
	if e.err == nil && strings.ContainsAny(inst.Name+inst.UUID, "/\x00\n") {
		e.fail("INSTANCE_NAME", fmt.Errorf("%q is not a name", inst.Name))
	}
	return inst, e.err
}

// ReadCore reads the environment of verify, which says nothing of an instance.
func ReadCore(environ []string) (Instance, error) {
	e := parse(environ)
	inst := e.core()
	return inst, e.err
}

// ExternalKernel tells whether the hypervisor boots the instance with a kernel
// of the node, so that the disk needs neither boot loader nor /boot.
func (i Instance) ExternalKernel() bool {
	switch i.Hypervisor {
	case "kvm":
		return i.HVParams["kernel_path"] != ""
	case "xen-pvm":
		return i.HVParams["use_bootloader"] != "True"
	}
	return false
}

// env is the environment while it is read; it keeps the first error.
type env struct {
	vars map[string]string
	err  error
}

func parse(environ []string) *env {
	e := &env{vars: make(map[string]string, len(environ))}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		e.vars[name] = value
	}
	return e
}

func (e *env) core() Instance {
	inst := Instance{
		APIVersion: 20,
		OS:         e.vars["OS_NAME"],
		Variant:    e.vars["OS_VARIANT"],
		DebugLevel: e.number("DEBUG_LEVEL"),
		Params:     map[string]string{},
	}
	if e.vars["OS_API_VERSION"] != "" {
		inst.APIVersion = e.number("OS_API_VERSION")
	}
	if e.err == nil && inst.APIVersion != 10 && inst.APIVersion != 15 && inst.APIVersion != 20 {
		e.fail("OS_API_VERSION", fmt.Errorf("this OS definition speaks versions 10, 15 and 20, not %d", inst.APIVersion))
	}
	for name, value := range e.prefixed("OSP_") {
		// Ganeti before 2.12 kept the "-" of a name, later ones write "_".
		inst.Params[strings.ReplaceAll(strings.ToLower(name), "-", "_")] = value
	}
	return inst
}

func (e *env) fail(name string, err error) {
	if e.err == nil {
		e.err = fmt.Errorf("cannot read the variable %s from Ganeti: %w", name, err)
	}
}

func (e *env) require(name string) string {
	value := e.vars[name]
	if value == "" {
		e.fail(name, fmt.Errorf("it is not set; this program is run by Ganeti, see ganeti-os-interface(7)"))
	}
	return value
}

func (e *env) number(name string) int {
	text := e.vars[name]
	if text == "" {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		e.fail(name, fmt.Errorf("%q is not a number", text))
	}
	return n
}

func (e *env) count(name string, required bool) int {
	if required {
		e.require(name)
	}
	n := e.number(name)
	if n > maxDevices {
		e.fail(name, fmt.Errorf("%d is more than %d", n, maxDevices))
	}
	if e.err != nil {
		return 0
	}
	return n
}

func (e *env) prefixed(prefix string) map[string]string {
	found := map[string]string{}
	for name, value := range e.vars {
		if rest, ok := strings.CutPrefix(name, prefix); ok && rest != "" {
			found[rest] = value
		}
	}
	return found
}

// memory reads the instance's memory, which Ganeti gives in MiB.
func (e *env) memory() size.Bytes {
	if e.vars["INSTANCE_BE_memory"] != "" {
		return size.Bytes(e.number("INSTANCE_BE_memory")) * size.MiB
	}
	return size.Bytes(e.number("INSTANCE_BE_maxmem")) * size.MiB
}

func (e *env) disk(n int) Disk {
	get := func(field string) string { return e.vars[fmt.Sprintf("DISK_%d_%s", n, field)] }
	return Disk{
		Index:       n,
		Path:        get("PATH"),
		URI:         get("URI"),
		Name:        get("NAME"),
		UUID:        get("UUID"),
		Size:        size.Bytes(e.number(fmt.Sprintf("DISK_%d_SIZE", n))) * size.MiB,
		Access:      get("ACCESS"),
		BackendType: get("BACKEND_TYPE"),
	}
}

// transfer reads what a disk is moved from or to. Ganeti before 3.0 gives its path
// by the name DEVICE alone.
func (e *env) transfer(prefix string) Transfer {
	return Transfer{
		Index: e.number(prefix + "INDEX"),
		Path:  cmp.Or(e.vars[prefix+"DEVICE"], e.vars[prefix+"DISK_PATH"]),
		URI:   e.vars[prefix+"DISK_URI"],
	}
}

func (e *env) nic(n int) NIC {
	get := func(field string) string { return e.vars[fmt.Sprintf("NIC_%d_%s", n, field)] }
	return NIC{
		Index: n,
		MAC:   parseField(e, fmt.Sprintf("NIC_%d_MAC", n), net.ParseMAC),
		Name:  get("NAME"),
		UUID:  get("UUID"),
		IP:    parseField(e, fmt.Sprintf("NIC_%d_IP", n), netip.ParseAddr),
		Mode:  get("MODE"),
		Link:  get("LINK"),
		Network: Network{
			Name:     get("NETWORK_NAME"),
			Subnet:   parseField(e, fmt.Sprintf("NIC_%d_NETWORK_SUBNET", n), netip.ParsePrefix),
			Gateway:  parseField(e, fmt.Sprintf("NIC_%d_NETWORK_GATEWAY", n), netip.ParseAddr),
			Subnet6:  parseField(e, fmt.Sprintf("NIC_%d_NETWORK_SUBNET6", n), netip.ParsePrefix),
			Gateway6: parseField(e, fmt.Sprintf("NIC_%d_NETWORK_GATEWAY6", n), netip.ParseAddr),
		},
	}
}

// parseField reads an optional variable with parse; one that is absent, empty
// or Python's "None" is the zero value.
func parseField[T any](e *env, name string, parse func(string) (T, error)) T {
	var zero T
	text := e.vars[name]
	if text == "" || text == "None" {
		return zero
	}
	value, err := parse(text)
	if err != nil {
		e.fail(name, err)
		return zero
	}
	return value
}
