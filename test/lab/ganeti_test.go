//go:build lab

package lab_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/test/lab"
)

const (
	instance = "vm1.gnt.test"
	address  = "192.0.2.21"
	mac      = "aa:00:00:12:34:56"
)

// seed is what cloud-init needs to make an image one guest of the cluster.
func seed(key string) []lab.File {
	const dir = "/var/lib/cloud/seed/nocloud/"
	return []lab.File{
		{Path: dir + "meta-data", Mode: 0o600, Data: "instance-id: lab-1\nlocal-hostname: " + instance + "\n"},
		{Path: dir + "user-data", Mode: 0o600, Data: "#cloud-config\nssh_authorized_keys:\n- " + key + "\n"},
		{Path: dir + "network-config", Mode: 0o600, Data: "version: 2\nethernets:\n  nic0:\n    match:\n      macaddress: '" + mac +
			"'\n    addresses: [" + address + "/24]\n"},
		{Path: "/etc/cloud/cloud.cfg.d/zz-lab.cfg", Data: "datasource_list: [ NoCloud, None ]\n"},
	}
}

// TestGaneti puts a guest on an instance's disk by hand, as the OS definition
// does not, and reaches it from the node.
func TestGaneti(t *testing.T) {
	l := open(t)
	need.Tools(t, "gnt-cluster", "ip", "ssh", "fping", "arping")
	need.File(t, "/usr/share/ganeti/os/noop")
	ctx, cancel := context.WithTimeout(t.Context(), 2*bootLimit)
	defer cancel()

	private, public, err := lab.NewKey(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	image := filepath.Join(t.TempDir(), "seeded.raw")
	if err := l.Image(ctx, lab.Spec{Layout: lab.Debian, Format: "raw", Files: seed(public)}, image); err != nil {
		t.Fatal(err)
	}
	took(t, "image", start)

	start = time.Now()
	g, err := l.StartGaneti(ctx)
	if err != nil {
		t.Fatal(err)
	}
	took(t, "cluster", start)
	t.Cleanup(func() {
		start := time.Now()
		if err := g.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		took(t, "end of the cluster", start)
		leftovers(t)
	})

	must(t, g, ctx, "gnt-os", "diagnose")
	must(t, g, ctx, "gnt-instance", "add", "-t", "file", "-o", "noop", "-n", lab.Node, "--disk", "0:size=4G",
		"-B", "minmem=512M,maxmem=512M", "--no-name-check", "--no-ip-check", "--no-start",
		"--net", "0:link="+lab.Bridge+",mac="+mac, instance)
	disk, err := g.Disk(instance, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := overwrite(disk, image); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	console, err := g.Boot(ctx, instance)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := console.Wait(ctx, `vm1 login: `); err != nil {
		t.Fatal(err)
	}
	took(t, "login prompt after the start", start)
	guest := g.SSH("debian", address, private)
	if err := guest.Wait(ctx); err != nil {
		t.Fatalf("%v\n%s", err, console.Text())
	}
	took(t, "ssh after the start", start)
	name, err := guest.Run(ctx, "hostname --fqdn")
	if err != nil || strings.TrimSpace(name) != instance {
		t.Errorf("the guest says its name is %q, %v", name, err)
	}
	state, err := guest.Run(ctx, "systemctl is-system-running --wait; systemctl --failed --no-legend; systemd-analyze; systemd-analyze blame | head")
	if err != nil || !strings.HasPrefix(state, "running\n") {
		t.Errorf("the guest is not well: %v", err)
	}
	t.Log(state)
	must(t, g, ctx, "gnt-instance", "remove", "--force", "--shutdown-timeout=0", instance)
}

func must(t *testing.T, g *lab.Ganeti, ctx context.Context, argv ...string) {
	t.Helper()
	start := time.Now()
	out, err := g.Run(ctx, argv...)
	if err != nil {
		t.Fatal(err)
	}
	took(t, strings.Join(argv[:2], " "), start)
	t.Log(out)
}

// overwrite puts the bytes of a raw image at the start of a disk.
func overwrite(disk, image string) error {
	data, err := os.ReadFile(image)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(data)
	return err
}

// leftovers checks that the machine is as it was.
func leftovers(t *testing.T) {
	t.Helper()
	for _, path := range []string{"/var/lib/ganeti/config.data", "/etc/ganeti/file-storage-paths", "/srv/ganeti-instance-image-lab",
		"/var/lib/ganeti-instance-image-lab/manifest.json"} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is left", path)
		}
	}
	if spaces, err := filepath.Glob("/run/netns/gnt-lab-*"); err != nil || len(spaces) > 0 {
		t.Errorf("namespaces are left: %v, %v", spaces, err)
	}
}
