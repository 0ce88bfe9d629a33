package guest

import (
	"testing"
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
