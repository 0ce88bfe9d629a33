package admin

import (
	"bytes"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/osapi"
)

// What the node gets is what Ganeti would have given it.
func TestEnviron(t *testing.T) {
	i := &instance{
		name: "web.example.org", uuid: "u-1", os: "image+debian-12", hypervisor: "kvm", memory: 512,
		hvParams: map[string]any{"kernel_path": "", "serial_console": true, "acpi": false, "serial_speed": float64(38400), "kvm_extra": nil},
		osParams: map[string]string{"cinit_user": "admin", "os-image": "x"},
		disks:    []disk{{name: "root", uuid: "d-0", path: "/dev/vg/d0", mib: 1024}, {path: "/dev/vg/d1", mib: 32}},
		nics:     []nic{{mac: "aa:00:00:00:00:01", ip: "192.0.2.5", mode: "bridged", link: "br0", network: "n1"}, {mac: "aa:00:00:00:00:02"}},
	}
	networks := map[string]network{"n1": {name: "n1", subnet: "192.0.2.0/24", gateway: "192.0.2.1"}}
	environ := i.environ(networks)
	got, err := osapi.Read(environ)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"INSTANCE_HV_serial_console=True", "INSTANCE_HV_acpi=False", "INSTANCE_HV_serial_speed=38400", "OSP_OS_IMAGE=x"} {
		if !slices.Contains(environ, want) {
			t.Errorf("no %s in %q", want, environ)
		}
	}
	if got.Name != i.name || got.UUID != "u-1" || got.OS != "image" || got.Variant != "debian-12" || !got.Reinstall || got.Params["cinit_user"] != "admin" {
		t.Errorf("got %+v", got)
	}
	if len(got.Disks) != 2 || got.Disks[0].Name != "root" || got.Disks[1].Path != "/dev/vg/d1" || int64(got.Disks[1].Size) != 32<<20 {
		t.Errorf("disks %+v", got.Disks)
	}
	if len(got.NICs) != 2 || got.NICs[0].Network.Gateway.String() != "192.0.2.1" || got.NICs[1].Network.Name != "" {
		t.Errorf("NICs %+v", got.NICs)
	}
	i.os = "noop"
	if got, err := osapi.Read(i.environ(nil)); err != nil || got.Variant != "" || len(got.Params) > 0 {
		t.Errorf("of another OS definition: %+v, %v", got, err)
	}
}

func TestSplitTarget(t *testing.T) {
	for target, want := range map[string]struct {
		name string
		disk int
	}{"web": {"web", 3}, "web.example.org:0": {"web.example.org", 0}, "web:15": {"web", 15}} {
		if name, disk, err := splitTarget(target, 3); err != nil || name != want.name || disk != want.disk {
			t.Errorf("%s: %s %d %v", target, name, disk, err)
		}
	}
	for _, target := range []string{"web:", "web:x", "web:-1", "web:16", ":0", "web:1:2"} {
		if _, _, err := splitTarget(target, 0); err == nil || !strings.Contains(err.Error(), "INSTANCE:DISK") {
			t.Errorf("%s: %v", target, err)
		}
	}
}

// A shell on the other node makes of the words what they were.
func TestRemoteQuotes(t *testing.T) {
	need.Tools(t, "sh")
	words := []string{"it's", "a b", "$(reboot)", "`x`", `back\slash`, "*", ""}
	argv := remote("node2", "cluster", 2222, append([]string{"printf", `%s|`}, words...))
	if !slices.Contains(argv, "-oPort=2222") || !slices.Contains(argv, "root@node2") || !slices.Contains(argv, "-oHostKeyAlias=cluster") {
		t.Errorf("got %q", argv)
	}
	command := strings.Join(argv[slices.Index(argv, "root@node2")+1:], " ") // as ssh joins them
	out, err := exec.Command("sh", "-c", command).Output()
	if err != nil || !bytes.Equal(out, []byte(strings.Join(words, "|")+"|")) {
		t.Errorf("got %q, %v", out, err)
	}
}
