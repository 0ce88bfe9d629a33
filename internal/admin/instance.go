package admin

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"ganeti-instance-image/internal/luxi"
	"ganeti-instance-image/internal/run"
)

// osName is the name of this OS definition in Ganeti.
const osName = "image"

// instance is what the master knows of an instance, as far as a script of the OS
// definition is told of it.
type instance struct {
	name, uuid, os string
	status, node   string
	hypervisor     string
	memory         int // MiB
	hvParams       map[string]any
	osParams       map[string]string
	disks          []disk
	nics           []nic
}

type disk struct {
	name, uuid, path string
	mib              int
}

type nic struct{ mac, name, uuid, ip, mode, link, network string }

type network struct{ name, subnet, gateway, subnet6, gateway6 string }

// findInstance asks the master for an instance, by its name or the beginning of
// it.
func findInstance(ctx context.Context, socket, name string) (*instance, error) {
	i := &instance{}
	var names, uuids []*string
	var sizes []int
	var macs, nicNames, nicUUIDs, ips, modes, links, networks []*string
	fields := []struct {
		name string
		into any
	}{
		{"name", &i.name}, {"uuid", &i.uuid}, {"os", &i.os}, {"status", &i.status}, {"pnode", &i.node},
		{"hypervisor", &i.hypervisor}, {"be/maxmem", &i.memory}, {"hvparams", &i.hvParams}, {"osparams", &i.osParams},
		{"disk.names", &names}, {"disk.uuids", &uuids}, {"disk.sizes", &sizes},
		{"nic.macs", &macs}, {"nic.names", &nicNames}, {"nic.uuids", &nicUUIDs}, {"nic.ips", &ips},
		{"nic.modes", &modes}, {"nic.links", &links}, {"nic.networks.names", &networks},
	}
	var asked []string
	for _, f := range fields {
		asked = append(asked, f.name)
	}
	rows, err := luxi.Query(ctx, socket, "instance", asked, name)
	if err != nil {
		return nil, fmt.Errorf("cannot find the instance %s: %w", name, err)
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("cannot find the instance %s: %w", name, luxi.ErrUnknown)
	}
	if len(rows) != 1 {
		return nil, fmt.Errorf("cannot find the instance %s: Ganeti knows %d of that name", name, len(rows))
	}
	for _, f := range fields {
		if err := rows[0].Into(f.name, f.into); err != nil {
			return nil, err
		}
	}
	for n, mib := range sizes {
		i.disks = append(i.disks, disk{name: at(names, n), uuid: at(uuids, n), mib: mib})
	}
	for n := range macs {
		i.nics = append(i.nics, nic{at(macs, n), at(nicNames, n), at(nicUUIDs, n), at(ips, n), at(modes, n), at(links, n), at(networks, n)})
	}
	return i, nil
}

// at is the element n, "" where there is none or it is null.
func at(list []*string, n int) string {
	if n >= len(list) || list[n] == nil {
		return ""
	}
	return *list[n]
}

// activate has Ganeti attach the instance's disks on its node, and learns their
// paths there.
func (i *instance) activate(ctx context.Context) error {
	result, err := run.Cmd{What: "activate the disks of " + i.name, Argv: []string{"gnt-instance", "activate-disks", i.name}}.Run(ctx)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(result.Stdout)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		number, ok := strings.CutPrefix(parts[1], "disk/")
		n, err := strconv.Atoi(number)
		if !ok || err != nil || n < 0 || n >= len(i.disks) {
			continue
		}
		i.disks[n].path = parts[2]
	}
	for n, d := range i.disks {
		if d.path == "" {
			return fmt.Errorf("cannot activate the disks of %s: gnt-instance activate-disks does not name disk %d", i.name, n)
		}
	}
	return nil
}

func (i *instance) deactivate(ctx context.Context) error {
	_, err := run.Cmd{What: "deactivate the disks of " + i.name, Argv: []string{"gnt-instance", "deactivate-disks", i.name}}.Run(ctx)
	return err
}

// environ is what Ganeti would give a script of the OS definition, version 20.
// Private and secret OS parameters are not in it: the master does not tell them.
func (i *instance) environ(networks map[string]network) []string {
	var e []string
	set := func(name, value string) {
		if value != "" {
			e = append(e, name+"="+value)
		}
	}
	definition, variant, _ := strings.Cut(i.os, "+")
	set("PATH", "/sbin:/bin:/usr/sbin:/usr/bin")
	set("OS_API_VERSION", "20")
	set("OS_NAME", osName)
	set("DEBUG_LEVEL", "0")
	if definition == osName {
		set("OS_VARIANT", variant)
		for name, value := range i.osParams {
			set("OSP_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_")), value)
		}
	}
	set("INSTANCE_REINSTALL", "1") // the instance has had a life, and disks may hold what must not be lost
	set("INSTANCE_NAME", i.name)
	set("INSTANCE_OS", i.os)
	set("INSTANCE_UUID", i.uuid)
	set("HYPERVISOR", i.hypervisor)
	set("INSTANCE_BE_maxmem", strconv.Itoa(i.memory))
	for name, value := range i.hvParams {
		set("INSTANCE_HV_"+name, hvValue(value))
	}
	set("DISK_COUNT", strconv.Itoa(len(i.disks)))
	for n, d := range i.disks {
		prefix := fmt.Sprintf("DISK_%d_", n)
		set(prefix+"PATH", d.path)
		set(prefix+"NAME", d.name)
		set(prefix+"UUID", d.uuid)
		set(prefix+"SIZE", strconv.Itoa(d.mib))
		set(prefix+"ACCESS", "rw")
	}
	set("NIC_COUNT", strconv.Itoa(len(i.nics)))
	for n, c := range i.nics {
		c.environ(func(name, value string) { set(fmt.Sprintf("NIC_%d_%s", n, name), value) }, networks[c.network])
	}
	return e
}

func (c nic) environ(set func(name, value string), net network) {
	set("MAC", c.mac)
	set("NAME", c.name)
	set("UUID", c.uuid)
	set("IP", c.ip)
	set("MODE", c.mode)
	set("LINK", c.link)
	set("NETWORK_NAME", net.name)
	set("NETWORK_SUBNET", net.subnet)
	set("NETWORK_GATEWAY", net.gateway)
	set("NETWORK_SUBNET6", net.subnet6)
	set("NETWORK_GATEWAY6", net.gateway6)
}

// hvValue is a hypervisor parameter as Ganeti writes it into the environment.
func hvValue(value any) string {
	switch v := value.(type) {
	case bool:
		return strings.ToUpper(strconv.FormatBool(v)[:1]) + strconv.FormatBool(v)[1:]
	case nil:
		return ""
	}
	return fmt.Sprint(value)
}

// sshPort asks the master for the port at which a node's ssh server listens.
func sshPort(ctx context.Context, socket, node string) (int, error) {
	rows, err := luxi.Query(ctx, socket, "node", []string{"name", "ndparams"}, node)
	if err != nil {
		return 0, err
	}
	if len(rows) != 1 {
		return 0, fmt.Errorf("cannot find the node %q: Ganeti knows %d of that name", node, len(rows))
	}
	params := struct {
		Port int `json:"ssh_port"`
	}{22}
	err = rows[0].Into("ndparams", &params)
	return params.Port, err
}

// findNetworks asks the master for Ganeti's networks, by name.
func findNetworks(ctx context.Context, socket string) (map[string]network, error) {
	fields := []string{"name", "network", "gateway", "network6", "gateway6"}
	rows, err := luxi.Query(ctx, socket, "network", fields, "")
	if err != nil {
		return nil, err
	}
	networks := map[string]network{}
	for _, row := range rows {
		var n network
		into := []*string{&n.name, &n.subnet, &n.gateway, &n.subnet6, &n.gateway6}
		for i, field := range fields {
			if err := row.Into(field, into[i]); err != nil {
				return nil, err
			}
		}
		networks[n.name] = n
	}
	return networks, nil
}
