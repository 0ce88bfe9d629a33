package guest

import (
	"errors"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"ganeti-instance-image/internal/size"
)

// CloudInit is what is known of a guest's cloud-init without running it.
type CloudInit struct {
	Present bool
	// Major and Minor are its version, 22 and 4 for "22.4.2"; both 0 where the
	// package does not say it in a file we read.
	Major, Minor int
	// Renderer is what will write the guest's network files, by cloud-init's own
	// name: "eni", "sysconfig", "netplan", "network-manager", "networkd"; ""
	// where none of them was found.
	Renderer string
}

// packages are where distributions install the Python package.
var packages = []string{
	"/usr/lib/python3/dist-packages/cloudinit",
	"/usr/lib/python3*/site-packages/cloudinit",
	"/usr/lib/python2*/site-packages/cloudinit",
	"/usr/lib/python2*/dist-packages/cloudinit",
	"/usr/local/lib/python3*/*-packages/cloudinit",
}

var programs = []string{"/usr/bin/cloud-init", "/usr/local/bin/cloud-init"}

var version = regexp.MustCompile(`(?m)^__VERSION__ *= *["']([0-9]{1,3})\.([0-9]{1,3})`)

// HasCloudInit tells whether cloud-init is installed in the guest. Left-over
// configuration in /etc/cloud alone does not count.
func (r *Root) HasCloudInit() bool {
	return slices.ContainsFunc(programs, r.Exists) || r.cloudInitPackage() != ""
}

func (r *Root) cloudInitPackage() string {
	for _, pattern := range packages {
		for _, dir := range r.Glob(pattern) {
			if info, err := r.Stat(dir); err == nil && info.IsDir() {
				return dir
			}
		}
	}
	return ""
}

// CloudInit looks for cloud-init in the guest.
func (r *Root) CloudInit() CloudInit {
	c := CloudInit{Present: r.HasCloudInit()}
	if !c.Present {
		return c
	}
	c.Renderer = r.renderer()
	text, err := r.ReadFile(r.cloudInitPackage()+"/version.py", releaseLimit)
	if m := version.FindSubmatch(text); err == nil && m != nil {
		c.Major, _ = strconv.Atoi(string(m[1]))
		c.Minor, _ = strconv.Atoi(string(m[2]))
	}
	return c
}

// renderers is cloud-init's own order, and its tests as far as files tell.
var renderers = []struct {
	name      string
	available func(*Root) bool
}{
	{"eni", func(r *Root) bool {
		return r.program("ifquery") && r.program("ifup") && r.program("ifdown") && r.isFile("/etc/network/interfaces")
	}},
	{"sysconfig", func(r *Root) bool {
		ifcfg := len(r.Glob("/usr/lib*/NetworkManager/*/libnm-settings-plugin-ifcfg-rh.so")) > 0
		scripts := r.isFile("/etc/sysconfig/network-scripts/network-functions") || r.isFile("/etc/sysconfig/config")
		return ifcfg || scripts && r.program("ifup") && r.program("ifdown")
	}},
	{"netplan", func(r *Root) bool { return r.program("netplan") }},
	{"network-manager", func(r *Root) bool { return r.program("nmcli") && r.program("NetworkManager") }},
	{"networkd", func(r *Root) bool { return r.program("networkctl") && r.program("ip") }},
}

func (r *Root) program(name string) bool {
	for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"} {
		if r.Exists(dir + name) {
			return true
		}
	}
	return false
}

func (r *Root) renderer() string {
	for _, name := range r.rendererOrder() {
		for _, candidate := range renderers {
			if candidate.name == name && candidate.available(r) {
				return name
			}
		}
	}
	return ""
}

// rendererOrder is what the guest's configuration has in
// system_info.network.renderers, where the last file wins, or the built-in one.
func (r *Root) rendererOrder() []string {
	var order []string
	for _, renderer := range renderers {
		order = append(order, renderer.name)
	}
	files, err := r.CloudConfig()
	if err != nil {
		return order
	}
	for _, file := range files {
		if file.Document == nil {
			continue
		}
		said := YAMLValue(file.Document.Content[0], "system_info", "network", "renderers")
		if said == nil || said.Kind != yaml.SequenceNode || len(said.Content) == 0 {
			continue
		}
		order = nil
		for _, name := range said.Content {
			order = append(order, name.Value)
		}
	}
	return order
}

// CloudConfigFile is one file of cloud-init's configuration in the guest.
type CloudConfigFile struct {
	Path string
	// Document is its YAML document; nil where the file is empty or has none
	// that can be read, which cloud-init skips with a warning.
	Document *yaml.Node
}

// The bounds of what is read of cloud-init's configuration, in all its files: as
// YAML nodes it takes some sixty times as much memory.
const (
	cloudConfigLimit = 1 * size.MiB
	cloudConfigFiles = 256
)

// CloudConfigDir is where files are added to cloud-init's configuration.
const CloudConfigDir = "/etc/cloud/cloud.cfg.d"

// CloudConfig reads /etc/cloud/cloud.cfg and the *.cfg files beside it in the
// order in which cloud-init lets a later one win. A file that cannot be read as
// YAML is listed without a document, and so is one with which all of them would
// have more than 1 MiB; that none exists is no error.
func (r *Root) CloudConfig() ([]CloudConfigFile, error) {
	paths := []string{"/etc/cloud/cloud.cfg"}
	names, err := r.ReadDir(CloudConfigDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".cfg") && len(paths) < cloudConfigFiles {
			paths = append(paths, CloudConfigDir+"/"+name)
		}
	}
	var files []CloudConfigFile
	left := cloudConfigLimit
	for _, path := range paths {
		text, err := r.ReadFile(path, left)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		left -= size.Bytes(len(text))
		file := CloudConfigFile{Path: path}
		if document := new(yaml.Node); err == nil && yaml.Unmarshal(text, document) == nil && document.Kind == yaml.DocumentNode {
			file.Document = document
		}
		files = append(files, file)
	}
	return files, nil
}
