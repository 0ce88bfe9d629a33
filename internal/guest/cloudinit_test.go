package guest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
)

func TestCloudInit(t *testing.T) {
	const debian = "usr/lib/python3/dist-packages/cloudinit/version.py"
	ifupdown := map[string]string{"sbin/ifup": "", "sbin/ifdown": "", "sbin/ifquery": "", "etc/network/interfaces": ""}
	with := func(more map[string]string, names ...string) map[string]string {
		all := map[string]string{"usr/bin/cloud-init": "", debian: "__VERSION__ = \"22.4.2\"\n"}
		for name, text := range more {
			all[name] = text
		}
		for _, name := range names {
			all[name] = ""
		}
		return all
	}
	cases := []struct {
		name  string
		files map[string]string
		want  CloudInit
	}{
		{"none", map[string]string{"etc/cloud/cloud.cfg": "x: y"}, CloudInit{}},
		{"debian 12", with(nil, "usr/sbin/netplan", "usr/bin/networkctl", "sbin/ip"), CloudInit{true, 22, 4, "netplan"}},
		{"debian with ifupdown", with(ifupdown, "usr/sbin/netplan"), CloudInit{true, 22, 4, "eni"}},
		{"the same, told otherwise", with(map[string]string{"sbin/ifup": "", "sbin/ifdown": "", "sbin/ifquery": "", "etc/network/interfaces": "",
			"etc/cloud/cloud.cfg": "system_info:\n  network:\n    renderers: [netplan, eni]\n"}, "usr/sbin/netplan"), CloudInit{true, 22, 4, "netplan"}},
		{"enterprise linux", map[string]string{"usr/bin/cloud-init": "", "usr/lib/python3.9/site-packages/cloudinit/version.py": "__VERSION__ = '23.4'\n",
			"usr/bin/nmcli": "", "usr/sbin/NetworkManager": "", "etc/cloud/cloud.cfg": "system_info: {network: {renderers: ['eni', 'netplan', 'network-manager', 'sysconfig']}}"},
			CloudInit{true, 23, 4, "network-manager"}},
		{"package only, no version", map[string]string{"usr/lib/python3.13/site-packages/cloudinit/version.py": "__VERSION__ = \"@X@\"\n"}, CloudInit{Present: true}},
	}
	for _, c := range cases {
		if got := files(t, c.files).CloudInit(); got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestCloudConfigOrder(t *testing.T) {
	root := files(t, map[string]string{"etc/cloud/cloud.cfg": "a: 1", "etc/cloud/cloud.cfg.d/zz.cfg": "a: 2", "etc/cloud/cloud.cfg.d/99_x.cfg": "a: [",
		"etc/cloud/cloud.cfg.d/README": "a: 3"})
	got, err := root.CloudConfig()
	if err != nil || len(got) != 3 || got[1].Path != "/etc/cloud/cloud.cfg.d/99_x.cfg" || got[1].Document != nil || got[2].Document == nil {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err := files(t, nil).CloudConfig(); err != nil || len(got) != 0 {
		t.Errorf("without any: %v, %v", got, err)
	}
}

// Where cloud-init has its files something else may be: it is then not there, or
// its configuration is not read.
func TestCloudInitTraps(t *testing.T) {
	need.Root(t)
	const name = "usr/lib/python3/dist-packages/cloudinit/version.py"
	for _, file := range []string{"usr/bin/cloud-init", name, "etc/cloud/cloud.cfg", "etc/cloud/cloud.cfg.d/x.cfg", "etc/network/interfaces"} {
		for _, trap := range trapsOf(t, file) {
			if c := trap.root.CloudInit(); c.Major != 0 || c.Renderer != "" {
				t.Errorf("%s as %s: %+v", file, trap.name, c)
			}
			if got, err := trap.root.CloudConfig(); err != nil && !strings.HasPrefix(trap.name, "parent") || len(got) > 0 && got[0].Document != nil && trap.name == "named pipe" {
				t.Errorf("%s as %s: %+v, %v", file, trap.name, got, err)
			}
			trap.wantNodeUntouched(t)
		}
	}
}

// Many keys do not take the square of their number.
func TestCloudConfigOfManyKeys(t *testing.T) {
	var text strings.Builder
	for n := range 60000 {
		fmt.Fprintf(&text, "k%x: 1\n", n)
	}
	text.WriteString("system_info: {network: {renderers: [networkd, eni]}}\n")
	root, _ := guestOf(t, map[string]string{"etc/cloud/cloud.cfg": text.String()})
	if got := root.rendererOrder(); !slices.Equal(got, []string{"networkd", "eni"}) {
		t.Errorf("the order is %v", got)
	}
}

// What is read of all files together has a bound.
func TestCloudConfigOfManyFiles(t *testing.T) {
	contents := map[string]string{}
	for n := range 20 {
		contents[fmt.Sprintf("etc/cloud/cloud.cfg.d/%02d.cfg", n)] = "a: 1\n" + strings.Repeat("#", 100000)
	}
	contents["etc/cloud/cloud.cfg.d/zz.cfg"] = "a: 1\n"
	got, err := files(t, contents).CloudConfig()
	read := 0
	for _, file := range got {
		if file.Document != nil {
			read++
		}
	}
	if err != nil || len(got) != 21 || read != 11 || got[20].Document == nil {
		t.Errorf("%d of %d files were read, %v", read, len(got), err)
	}
}
