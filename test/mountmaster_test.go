package test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"ganeti-instance-image/internal/need"
)

// fakeMaster answers in place of Ganeti's query daemon, and records what
// gnt-instance was asked to do.
type fakeMaster struct {
	mu       sync.Mutex
	instance map[string]any // nil: Ganeti knows none
	log      string         // of gnt-instance
}

// newMaster makes the machine, as this test sees it, the master node1 of a
// cluster that also has node2, which a script in place of ssh answers for.
func newMaster(t *testing.T, e env) *fakeMaster {
	t.Helper()
	need.Tools(t, "gnt-instance")
	ownMounts(t)
	dir := t.TempDir()
	shell(t, `dir=$1; disk=$2
		mount -t tmpfs own /run; mkdir -p /run/ganeti/socket "$dir/bin"
		mount -t tmpfs own /var/lib/ganeti; echo node1 > /var/lib/ganeti/ssconf_master_node; echo cluster > /var/lib/ganeti/ssconf_cluster_name
		printf '#!/bin/sh\necho "$1" >> "%s"\n[ "$1" != activate-disks ] || echo "node1:disk/0:%s"\n' "$dir/log" "$disk" > "$dir/gnt-instance"
		printf '#!/bin/sh\nfor w; do case $w in root@*) echo "$w" >> "%s";; esac; done; echo "{}"\n' "$dir/log" > "$dir/bin/ssh"
		chmod 755 "$dir/gnt-instance" "$dir/bin/ssh"; mount --bind "$dir/gnt-instance" "$(realpath /usr/sbin/gnt-instance)"`, dir, e["DISK_0_PATH"])
	t.Setenv("PATH", filepath.Join(dir, "bin")+":"+os.Getenv("PATH"))
	m := &fakeMaster{log: filepath.Join(dir, "log"), instance: map[string]any{
		"name": e["INSTANCE_NAME"], "uuid": "u", "os": "image+default", "status": "ADMIN_down", "pnode": "node1", "hypervisor": "kvm",
		"be/maxmem": 512, "hvparams": map[string]any{}, "osparams": map[string]string{}, "disk.names": []any{nil}, "disk.uuids": []string{"d"},
		"disk.sizes": []int{64}, "nic.macs": []string{}, "nic.names": []string{}, "nic.uuids": []string{}, "nic.ips": []string{}, "nic.modes": []string{},
		"nic.links": []string{}, "nic.networks.names": []string{}}}
	listener, err := net.Listen("unix", "/var/run/ganeti/socket/ganeti-query")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go m.serve(listener)
	return m
}

func (m *fakeMaster) serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		text, _ := bufio.NewReader(conn).ReadBytes(3)
		var request struct{ Args []json.RawMessage }
		_ = json.Unmarshal([]byte(strings.TrimSuffix(string(text), "\x03")), &request)
		answer, _ := json.Marshal(m.answer(request.Args))
		_, _ = conn.Write(append(answer, 3))
		conn.Close()
	}
}

func (m *fakeMaster) answer(args []json.RawMessage) any {
	m.mu.Lock()
	defer m.mu.Unlock()
	var kind string
	var fields []string
	_, _ = json.Unmarshal(args[0], &kind), json.Unmarshal(args[1], &fields)
	items := []map[string]any{m.instance}
	switch {
	case kind == "node" && string(args[2]) != "null":
		items = []map[string]any{{"name": "node2", "ndparams": map[string]int{"ssh_port": 2222}}}
	case kind == "node":
		items = []map[string]any{{"name": "node0", "offline": true}, {"name": "node1", "offline": false}, {"name": "node2", "offline": false}}
	case kind == "network":
		items = nil
	case m.instance == nil:
		return map[string]any{"success": false, "result": []any{"OpPrereqError", []string{"Instance 'x' not known", "unknown_entity"}}}
	}
	rows := [][][2]any{}
	for _, item := range items {
		var row [][2]any
		for _, f := range fields {
			row = append(row, [2]any{0, item[f]})
		}
		rows = append(rows, row)
	}
	return map[string]any{"success": true, "result": map[string]any{"data": rows}}
}

func (m *fakeMaster) set(name string, value any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if name == "" {
		m.instance = nil
		return
	}
	m.instance[name] = value
}

// calls is what gnt-instance and ssh were called with since the last time.
func (m *fakeMaster) calls(t *testing.T) string {
	t.Helper()
	text, _ := os.ReadFile(m.log)
	_ = os.Remove(m.log)
	return strings.Join(strings.Fields(string(text)), " ")
}

// tool runs an administrator's tool as it is installed.
func (s *site) tool(t *testing.T, name string, args ...string) (stdout string, o outcome) {
	t.Helper()
	cmd := exec.Command(filepath.Join(s.osDir, "tools", name), args...)
	var out, log strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &log
	_ = cmd.Run()
	return out.String(), outcome{cmd.ProcessState.ExitCode(), log.String()}
}

// toolSays runs a tool, and wants what it prints and what it has Ganeti do.
func (m *fakeMaster) toolSays(t *testing.T, s *site, words, says, calls string) outcome {
	t.Helper()
	fields := strings.Fields(words)
	out, o := s.tool(t, fields[0], fields[1:]...)
	if o.code != 0 || out != says+"\n" {
		t.Fatalf("%s: %d %q, want %q\n%s", words, o.code, out, says, o.log)
	}
	if got := m.calls(t); got != calls {
		t.Errorf("%s called %q, want %q", words, got, calls)
	}
	return o
}

const web = "web.example.org"

// The disks are attached as long as something is mounted, and no longer.
func TestMountDisksOnMaster(t *testing.T) {
	e := smallSystem(t)
	m, s := newMaster(t, e), newSite(t, "")
	m.toolSays(t, s, "mount-disks "+web, web+" is mounted at "+keptDir+" on node1", "activate-disks")
	for _, args := range [][]string{{"mount-disks", "--read-only", web}, {"ganeti-image", "mount", web}, {"ganeti-image", "seed", web + ":0"}} {
		_, o := s.tool(t, args[0], args[1:]...)
		if o.code != 4 || !strings.Contains(o.log, "mount-disks has mounted them at "+keptDir) {
			t.Errorf("%q: %d\n%s", args, o.code, o.log)
		}
		if got := m.calls(t); got != "activate-disks" {
			t.Errorf("%q of an instance that is mounted called %q", args, got)
		}
	}
	m.toolSays(t, s, "umount-disks "+web, web+" is unmounted on node1; its disks are detached", "deactivate-disks")
	s.nothingKept(t, e)
	m.toolSays(t, s, "ganeti-image umount "+web, web+" is not mounted on any node (after a reboot nothing is); its disks are detached", "root@node2 deactivate-disks")

	m.toolSays(t, s, "ganeti-image mount --read-only "+web, web+" is mounted at "+keptDir+" on node1, read-only", "activate-disks")
	m.toolSays(t, s, "umount-disks --here "+web, web+" is unmounted; its disks stay attached", "")
	m.toolSays(t, s, "umount-disks --here "+web, web+" is not mounted on this node", "")

	shell(t, `printf '#!/bin/sh\nexit 255\n' > "$1"`, filepath.Join(filepath.Dir(m.log), "bin/ssh"))
	_, o := s.tool(t, "umount-disks", web)
	if calls := m.calls(t); o.code != 1 || calls != "" || !strings.Contains(o.log, "cannot reach the node node2 by ssh") || !strings.Contains(o.last(), "not asked: node2") {
		t.Errorf("a node cannot be asked, and it ended with %d and called %q:\n%s", o.code, calls, o.log)
	}
	m.set("pnode", "node2")
	if _, o := s.tool(t, "umount-disks", web); o.code != 1 || m.calls(t) != "" {
		t.Errorf("the primary cannot be asked, and it ended with %d\n%s", o.code, o.log)
	}
}

// An instance may be started, moved or removed while it is mounted.
func TestUmountDisksOfAnother(t *testing.T) {
	e := smallSystem(t)
	m, s := newMaster(t, e), newSite(t, "")
	mount := func() {
		m.toolSays(t, s, "mount-disks "+web, web+" is mounted at "+keptDir+" on node1", "activate-disks")
	}
	cases := []struct{ field, value, says, calls, warns string }{
		{"status", "running", "is unmounted on node1; its disks stay attached, its status is running", "", "may be damaged"},
		{"pnode", "node2", "is unmounted on node1; its disks are detached", "root@node2 deactivate-disks", "not its primary any more"},
		{"", "", "is unmounted on node1; Ganeti has no disks of it to detach", "", "knows no such instance"},
	}
	for _, c := range cases {
		mount()
		before := m.instance[c.field]
		m.set(c.field, c.value)
		if o := m.toolSays(t, s, "umount-disks "+web, web+" "+c.says, c.calls); !strings.Contains(o.log, c.warns) {
			t.Errorf("the log does not say %q:\n%s", c.warns, o.log)
		}
		s.nothingKept(t, e)
		if c.field != "" {
			m.set(c.field, before)
		}
	}
}

// A call that fails leaves the disks as they were.
func TestMountDisksFailsOnMaster(t *testing.T) {
	e := instance(newDisk(t, 8))
	m, s := newMaster(t, e), newSite(t, "")
	refused := func(words, calls string, code int, says ...string) {
		t.Helper()
		fields := strings.Fields(words)
		_, o := s.tool(t, fields[0], fields[1:]...)
		checkRefusal(t, o, code)
		for _, want := range says {
			if !strings.Contains(o.log, want) {
				t.Errorf("%s does not say %q:\n%s", words, want, o.log)
			}
		}
		if got := m.calls(t); got != calls {
			t.Errorf("%s called %q, want %q", words, got, calls)
		}
		s.nothingKept(t, e)
	}
	refused("mount-disks "+web, "activate-disks deactivate-disks", 4, "no disk holds a file system", "on node1")
	lock := fmt.Sprintf(`mkdir -p /run/ganeti-instance-image/locks/master; exec 5>/run/ganeti-instance-image/locks/master/%s; flock 5; echo locked; exec sleep 1000`, web)
	other := exec.Command("bash", "-c", lock)
	out, _ := other.StdoutPipe()
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer other.Process.Kill()
	if _, err := out.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	refused("mount-disks "+web, "", 4, "another command is at work")
	refused("umount-disks "+web, "", 4, "another command is at work")
	m.set("status", "running")
	refused("mount-disks --read-only "+web, "", 4, "its status is running", "gnt-instance shutdown "+web)
	m.set("", "")
	refused("mount-disks "+web, "", 2, "there is none of that name")
	refused("mount-disks", "", 2, "instance")
}
