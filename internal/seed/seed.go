// Package seed makes the NoCloud seed that cloud-init reads in the guest: the
// instance's identity, its network, the site's users and the site's user-data.
//
// Left out: reading user-data from where it is kept; the caller hands its bytes
// over.
package seed

import (
	"bytes"
	"fmt"
	"net/netip"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/network"
	"ganeti-instance-image/internal/osapi"
	"ganeti-instance-image/internal/render"
	"ganeti-instance-image/internal/settings"
)

// File is one file of a seed.
type File struct {
	Name string // meta-data, user-data, vendor-data or network-config
	Data []byte
}

// Facts is what a seed depends on besides the settings.
type Facts struct {
	UserData  []byte          // the site's user-data, whole, of any kind cloud-init takes; may be empty
	Bash      bool            // the guest has /bin/bash
	CloudInit guest.CloudInit // the guest's; its zero value means a current one that uses netplan
}

// FactsOf is what a guest's files tell.
func FactsOf(root *guest.Root) Facts {
	return Facts{Bash: root.Exists("/bin/bash"), CloudInit: root.CloudInit()}
}

// noUserData stands for absent user-data: a seed without the file is no seed.
const noUserData = "#cloud-config\n{}\n"

// Files makes the seed. Its instance-id is the instance's UUID, which Ganeti
// keeps over restart, rename and reinstall, or the name where API 10 gives no
// UUID. What the settings ask for goes to vendor-data, over which all that
// user-data says wins; where they ask for nothing there is no vendor-data.
func Files(s *settings.Settings, inst osapi.Instance, nics []network.NIC, facts Facts) ([]File, error) {
	id := inst.UUID
	if id == "" {
		id = inst.Name
	}
	meta, err := encode("", metaData{InstanceID: quoted(id), Hostname: quoted(inst.Name)})
	if err != nil {
		return nil, err
	}
	netconf, err := render.NetworkConfig(nics, facts.CloudInit)
	if err != nil {
		return nil, fmt.Errorf("cannot write the cloud-init seed: %w", err)
	}
	user := facts.UserData
	if len(bytes.TrimSpace(user)) == 0 {
		user = []byte(noUserData)
	}
	files := []File{{"meta-data", meta}, {"user-data", user}, {"network-config", netconf}}
	if vendor := vendorConfig(s, facts.Bash); vendor.any {
		data, err := encode("#cloud-config\n", vendor)
		if err != nil {
			return nil, err
		}
		files = append(files, File{"vendor-data", data})
	}
	return files, nil
}

func encode(header string, v any) ([]byte, error) {
	text, err := render.EncodeYAML(header, v)
	if err != nil {
		return nil, fmt.Errorf("cannot write the cloud-init seed: %w", err)
	}
	return text, nil
}

// quoted is a string that is always written in quotes.
type quoted = render.Quoted

type metaData struct {
	InstanceID quoted `yaml:"instance-id"`
	Hostname   quoted `yaml:"local-hostname"`
}

// vendorData is the cloud-config that the CINIT_ settings make.
type vendorData struct {
	Users             []user      `yaml:"users,omitempty"`
	SSHAuthorizedKeys []quoted    `yaml:"ssh_authorized_keys,omitempty"`
	SSHPasswordAuth   *bool       `yaml:"ssh_pwauth,omitempty"`
	DisableRoot       *bool       `yaml:"disable_root,omitempty"`
	ManageResolvConf  *bool       `yaml:"manage_resolv_conf,omitempty"`
	ResolvConf        *resolvConf `yaml:"resolv_conf,omitempty"`

	any bool
}

type user struct {
	Name              quoted   `yaml:"name"`
	Sudo              quoted   `yaml:"sudo"`
	Shell             quoted   `yaml:"shell,omitempty"`
	LockPassword      bool     `yaml:"lock_passwd"`
	SSHAuthorizedKeys []quoted `yaml:"ssh_authorized_keys,omitempty"`
}

type resolvConf struct {
	Nameservers   []quoted `yaml:"nameservers,omitempty"`
	SearchDomains []quoted `yaml:"searchdomains,omitempty"`
}

func vendorConfig(s *settings.Settings, bash bool) vendorData {
	v := vendorData{
		SSHPasswordAuth:  yesNo(s.Cinit.SSHPasswordAuth),
		DisableRoot:      yesNo(s.Cinit.DisableRoot),
		ManageResolvConf: yesNo(s.Cinit.ManageResolvConf),
	}
	keys := render.QuoteAll(s.Cinit.SSHKeys, render.Same)
	if s.Cinit.User != "" {
		u := user{Name: quoted(s.Cinit.User), Sudo: "ALL=(ALL) NOPASSWD:ALL", LockPassword: true, SSHAuthorizedKeys: keys}
		if bash {
			u.Shell = "/bin/bash"
		}
		v.Users = []user{u}
	} else {
		v.SSHAuthorizedKeys = keys // of the image's default user
	}
	if v.ManageResolvConf != nil && *v.ManageResolvConf && len(s.DNSServers)+len(s.DNSSearch) > 0 {
		v.ResolvConf = &resolvConf{
			Nameservers:   render.QuoteAll(s.DNSServers, netip.Addr.String),
			SearchDomains: render.QuoteAll(s.DNSSearch, render.Same),
		}
	}
	v.any = len(v.Users) > 0 || len(keys) > 0 || v.SSHPasswordAuth != nil || v.DisableRoot != nil || v.ManageResolvConf != nil
	return v
}

func yesNo(t settings.Tristate) *bool {
	switch t {
	case settings.Yes:
		return new(true)
	case settings.No:
		return new(false)
	}
	return nil
}
