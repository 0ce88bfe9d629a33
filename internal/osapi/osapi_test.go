package osapi

import (
	"net/netip"
	"strings"
	"testing"

	"ganeti-instance-image/internal/size"
)

var complete = []string{
	"OS_API_VERSION=20", "OS_NAME=image", "OS_VARIANT=debian-12", "DEBUG_LEVEL=0",
	"OSP_IMAGE_NAME=debian-12", "OSP_OS_IMAGE=http://x/y",
	"INSTANCE_NAME=web.example.org", "INSTANCE_UUID=5b7bd4d2-3fa1-4d5d-b2ff-e5a7a1d6a7cc",
	"HYPERVISOR=kvm", "INSTANCE_HV_kernel_path=", "INSTANCE_HV_serial_speed=38400",
	"INSTANCE_BE_maxmem=512", "INSTANCE_REINSTALL=1",
	"DISK_COUNT=2", "DISK_0_PATH=/dev/drbd0", "DISK_0_SIZE=10240", "DISK_0_ACCESS=rw",
	"DISK_1_URI=rbd:pool/name", "DISK_1_ACCESS=rw",
	"NIC_COUNT=1", "NIC_0_MAC=AA:00:00:12:34:56", "NIC_0_IP=192.0.2.22", "NIC_0_MODE=bridged",
	"NIC_0_NETWORK_NAME=n1", "NIC_0_NETWORK_SUBNET=192.0.2.0/24", "NIC_0_NETWORK_GATEWAY=192.0.2.1",
	"NIC_0_NETWORK_SUBNET6=2001:db8::/64", "NIC_0_NETWORK_TAGS=",
}

func TestRead(t *testing.T) {
	inst, err := Read(complete)
	if err != nil {
		t.Fatal(err)
	}
	if inst.Name != "web.example.org" || inst.Variant != "debian-12" || !inst.Reinstall || inst.Memory != 512*size.MiB {
		t.Errorf("got %+v", inst)
	}
	if inst.Params["image_name"] != "debian-12" || inst.Params["os_image"] != "http://x/y" {
		t.Errorf("parameters: %v", inst.Params)
	}
	if d := inst.Disks[0]; d.Path != "/dev/drbd0" || d.Size != 10*size.GiB {
		t.Errorf("disk 0: %+v", d)
	}
	if d := inst.Disks[1]; d.Path != "" || d.URI != "rbd:pool/name" {
		t.Errorf("disk 1: %+v", d)
	}
	nic := inst.NICs[0]
	if nic.MAC.String() != "aa:00:00:12:34:56" || nic.IP != netip.MustParseAddr("192.0.2.22") ||
		nic.Network.Subnet != netip.MustParsePrefix("192.0.2.0/24") || nic.Network.Gateway6.IsValid() {
		t.Errorf("nic 0: %+v", nic)
	}
}

func TestReadOptionalVariablesMayBeAbsent(t *testing.T) {
	inst, err := Read([]string{"INSTANCE_NAME=a", "HYPERVISOR=kvm", "DISK_COUNT=1", "DISK_0_PATH=/x"})
	if err != nil {
		t.Fatal(err)
	}
	if inst.APIVersion != 20 || len(inst.NICs) != 0 || inst.Memory != 0 {
		t.Errorf("got %+v", inst)
	}
}

func TestReadRefuses(t *testing.T) {
	cases := []struct{ change, want string }{
		{"INSTANCE_NAME=", "INSTANCE_NAME"},
		{"INSTANCE_NAME=../x", "INSTANCE_NAME"},
		{"HYPERVISOR=", "HYPERVISOR"},
		{"DISK_COUNT=", "DISK_COUNT"},
		{"DISK_COUNT=two", "DISK_COUNT"},
		{"DISK_COUNT=1000000", "DISK_COUNT"},
		{"NIC_0_MAC=zz", "NIC_0_MAC"},
		{"NIC_0_NETWORK_SUBNET=1.2.3.4", "NIC_0_NETWORK_SUBNET"},
		{"OS_API_VERSION=5", "10, 15 and 20"},
	}
	for _, c := range cases {
		_, err := Read(append(append([]string{}, complete...), c.change))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("with %s: got %v, want an error that names %s", c.change, err, c.want)
		}
	}
}

func TestReadCoreNeedsNoInstance(t *testing.T) {
	inst, err := ReadCore([]string{"OS_API_VERSION=20", "OS_NAME=image", "OSP_image-name=x"})
	if err != nil || inst.Params["image_name"] != "x" {
		t.Errorf("got %+v, %v", inst, err)
	}
}

func TestExternalKernel(t *testing.T) {
	cases := []struct {
		hypervisor, param, value string
		want                     bool
	}{
		{"kvm", "kernel_path", "", false},
		{"kvm", "kernel_path", "/boot/vmlinuz", true},
		{"xen-pvm", "kernel_path", "/boot/vmlinuz", true},
		{"xen-pvm", "use_bootloader", "True", false},
		{"xen-hvm", "kernel_path", "/usr/lib/xen/boot/hvmloader", false},
		{"fake", "kernel_path", "/x", false},
	}
	for _, c := range cases {
		inst := Instance{Hypervisor: c.hypervisor, HVParams: map[string]string{c.param: c.value}}
		if got := inst.ExternalKernel(); got != c.want {
			t.Errorf("%s %s=%q: %v, want %v", c.hypervisor, c.param, c.value, got, c.want)
		}
	}
}
