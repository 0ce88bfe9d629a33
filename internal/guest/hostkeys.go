package guest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"

	"ganeti-instance-image/internal/size"
)

// hostKeys are the kinds of key that OpenSSH makes by default. There is no DSA
// key: OpenSSH 10 refuses it, and older versions do not miss it.
var hostKeys = []struct {
	name     string
	generate func() (crypto.Signer, error)
}{
	{"rsa", func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 3072) }},
	{"ecdsa", func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }},
	{"ed25519", func() (crypto.Signer, error) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}},
}

// KeepHostKeysFile tells cloud-init to leave the keys that ReplaceHostKeys made:
// by default its first run for an instance removes all host keys and makes new
// ones, of kinds that the installed OpenSSH may not know.
const (
	KeepHostKeysFile = CloudConfigDir + "/zz-ganeti-ssh.cfg"

	keepHostKeys = `# Written at deployment: this instance's host keys are there already.
ssh_deletekeys: false
ssh_genkeytypes: [rsa, ecdsa, ed25519]
`
)

// ReplaceHostKeys removes every SSH host key of the image, with its certificates,
// and makes new rsa, ecdsa and ed25519 keys with the comment root@HOST, whether
// or not the image had any: for OpenSSH in /etc/ssh and wherever else HostKey in
// sshd_config(5) has one, and for Dropbear in /etc/dropbear. Where the guest has
// cloud-init, that is told to leave them. What was done is returned, a line a
// step; a guest without an SSH server is one such line and no error.
func (r *Root) ReplaceHostKeys(host string) ([]string, error) {
	k := &keyMaker{root: r, comment: "root@" + host}
	if !r.hasSSHServer() && !r.hasDropbear() {
		return []string{"the image has no SSH server, so no host keys are made"}, nil
	}
	if r.hasSSHServer() {
		if err := k.openSSH(); err != nil {
			return k.changes, err
		}
	}
	if r.hasDropbear() {
		if err := k.dropbear(); err != nil {
			return k.changes, err
		}
	}
	if !r.HasCloudInit() {
		return k.changes, nil
	}
	if err := r.MkdirAll(CloudConfigDir, 0o755); err != nil {
		return k.changes, err
	}
	if err := r.WriteFile(KeepHostKeysFile, []byte(keepHostKeys), 0o644); err != nil {
		return k.changes, err
	}
	return append(k.changes, "told cloud-init to keep them, in "+KeepHostKeysFile), nil
}

// servers are what only an OpenSSH server brings.
var servers = []string{
	"/usr/sbin/sshd", "/sbin/sshd", "/usr/bin/sshd", "/usr/local/sbin/sshd",
	"/etc/ssh/sshd_config", "/usr/etc/ssh/sshd_config",
}

func (r *Root) hasSSHServer() bool { return slices.ContainsFunc(servers, r.Exists) }

// keyMaker is one replacement of host keys.
type keyMaker struct {
	root    *Root
	comment string
	mode    fs.FileMode // of OpenSSH's private keys
	group   int
	changes []string
}

func (k *keyMaker) openSSH() error {
	if err := k.root.MkdirAll("/etc/ssh", 0o755); err != nil {
		return err
	}
	if err := k.remove("/etc/ssh/ssh_host_*"); err != nil {
		return err
	}
	k.mode, k.group = k.root.keyAccess()
	for _, key := range hostKeys {
		if err := k.make(key.generate, "/etc/ssh/ssh_host_"+key.name+"_key"); err != nil {
			return err
		}
	}
	for _, file := range k.root.otherHostKeys() {
		if err := k.replaceOther(file); err != nil {
			return err
		}
	}
	return nil
}

func (k *keyMaker) remove(pattern string) error {
	for _, name := range k.root.Glob(pattern) {
		if err := k.root.Remove(name); err != nil {
			return err
		}
		k.changes = append(k.changes, "removed "+name)
	}
	return nil
}

// make writes one key pair for OpenSSH.
func (k *keyMaker) make(generate func() (crypto.Signer, error), file string) error {
	key, err := generate()
	if err != nil {
		return fmt.Errorf("cannot generate the host key %s: %w", file, err)
	}
	block, err := ssh.MarshalPrivateKey(key, k.comment)
	if err != nil {
		return fmt.Errorf("cannot encode the host key %s: %w", file, err)
	}
	public, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("cannot encode the host key %s: %w", file, err)
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public))) + " " + k.comment + "\n"
	if err := k.root.WriteFile(file+".pub", []byte(line), 0o644); err != nil {
		return err
	}
	if err := k.root.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		return err
	}
	if k.group != 0 {
		if err := k.root.Chown(file, 0, k.group); err != nil {
			return err
		}
		if err := k.root.Chmod(file, k.mode); err != nil {
			return err
		}
	}
	k.changes = append(k.changes, "made "+file+" "+ssh.FingerprintSHA256(public))
	return nil
}

// sshdConfigs are where HostKey may stand; each sshd reads one of the first two,
// and what it includes, which is below .d wherever a distribution has it so.
var sshdConfigs = []string{"/etc/ssh/sshd_config", "/usr/etc/ssh/sshd_config", "/etc/ssh/sshd_config.d/*.conf", "/usr/etc/ssh/sshd_config.d/*.conf"}

// maxOtherKeys bounds how many keys sshd_config may name.
const maxOtherKeys = 16

// otherHostKeys are the keys that sshd is told to have elsewhere than it does by
// default.
func (r *Root) otherHostKeys() []string {
	var found []string
	for _, pattern := range sshdConfigs {
		for _, file := range r.Glob(pattern) {
			text, err := r.ReadFile(file, releaseLimit)
			if err != nil {
				continue
			}
			for line := range strings.Lines(string(text)) {
				fields := strings.Fields(strings.Replace(line, "=", " ", 1))
				if len(fields) < 2 || !strings.EqualFold(fields[0], "HostKey") {
					continue
				}
				name := strings.Trim(fields[1], `"`)
				isDefault := strings.HasPrefix(name, "/etc/ssh/ssh_host_") && !strings.Contains(name, "..")
				if path.IsAbs(name) && !isDefault && !slices.Contains(found, name) && len(found) < maxOtherKeys {
					found = append(found, name)
				}
			}
		}
	}
	return found
}

// replaceOther makes a key of the kind that another place had; what that was is
// told by the public key beside it, or by its name.
func (k *keyMaker) replaceOther(file string) error {
	if _, err := k.root.Lstat(file); err != nil {
		return nil
	}
	public, _ := k.root.ReadFile(file+".pub", releaseLimit)
	kind, _, _ := strings.Cut(string(public), " ")
	if !strings.Contains(kind, "-") {
		kind = path.Base(file)
	}
	if err := k.remove(file + "-cert.pub"); err != nil {
		return err
	}
	for _, key := range hostKeys {
		if strings.Contains(kind, key.name) {
			return k.make(key.generate, file)
		}
	}
	for _, name := range []string{file, file + ".pub"} {
		if err := k.remove(name); err != nil {
			return err
		}
	}
	return nil
}

// keyAccess returns the mode and group of a private key. Enterprise Linux up to
// 9 and Fedora up to 37 let the group ssh_keys read it, for their set-group-id
// ssh-keysign; a later, unpatched sshd refuses a key that a group may read.
func (r *Root) keyAccess() (fs.FileMode, int) {
	group, ok := r.group("ssh_keys")
	if !ok {
		return 0o600, 0
	}
	readable := false
	if info, err := r.Stat("/usr/libexec/openssh/ssh-keysign"); err == nil {
		readable = info.Mode&fs.ModeSetgid != 0 && info.GID == group
	} else {
		d := r.Distro()
		major, _ := strconv.Atoi(strings.SplitN(d.VersionID, ".", 2)[0])
		readable = d.Family == RHEL && major <= 9 || d.Family == Fedora && major > 0 && major <= 37
	}
	if !readable {
		return 0o600, 0
	}
	return 0o640, group
}

// group looks a name up in the guest's /etc/group.
func (r *Root) group(name string) (gid int, ok bool) {
	text, err := r.ReadFile("/etc/group", size.MiB)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Split(line, ":")
		if len(fields) >= 3 && fields[0] == name {
			gid, err := strconv.ParseUint(fields[2], 10, 31)
			return int(gid), err == nil
		}
	}
	return 0, false
}
