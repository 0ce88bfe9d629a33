package main

import (
	"os"
	"os/exec"
	"path/filepath"
)

// site is the program installed below a directory.
type site string

func install(dir string) (site, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return site(dir), run("make", "-s", "install", "BUILD="+dir+"/build",
		"prefix="+dir+"/usr", "sysconfdir="+dir+"/etc", "localstatedir="+dir+"/var")
}

// configure replaces the site's settings.
func (s site) configure(text string) error {
	return os.WriteFile(string(s)+"/etc/default/ganeti-instance-image", []byte(text), 0o644)
}

// create is the script as Ganeti starts it.
func (s site) create(disk string) *exec.Cmd {
	osDir := string(s) + "/usr/share/ganeti/os/image"
	cmd := exec.Command(osDir + "/create")
	cmd.Dir = osDir
	cmd.Env = environ(disk)
	return cmd
}

func environ(disk string) []string {
	return []string{
		"PATH=/sbin:/bin:/usr/sbin:/usr/bin", "OS_API_VERSION=20", "OS_NAME=image", "OS_VARIANT=default",
		"INSTANCE_NAME=bench.example.org", "HYPERVISOR=kvm", "DISK_COUNT=1", "DISK_0_PATH=" + disk, "NIC_COUNT=0",
	}
}

// transfer runs shell commands in the environment of export and import.
func (s site) transfer(script, disk string, args ...string) *exec.Cmd {
	argv := shell(script, append([]string{disk}, args...)...)
	cmd := exec.Command(argv[0], argv[1:]...)
	self, _ := os.Executable()
	cmd.Env = append(environ(disk), "OSDIR="+string(s)+"/usr/share/ganeti/os/image", "BENCH="+self)
	return cmd
}
