package guest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"
)

type hostKey struct {
	name     string
	generate func() (crypto.Signer, error)
}

// hostKeys are the kinds of key that OpenSSH makes by default. There is no DSA
// key: OpenSSH 10 refuses it, and older versions do not miss it.
var hostKeys = []hostKey{
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
	others := k.root.otherHostKeys() // before what tells their kinds is removed
	if err := k.remove("/etc/ssh/ssh_host_*"); err != nil {
		return err
	}
	k.mode, k.group = k.root.keyAccess()
	for _, key := range hostKeys {
		if err := k.make(key.generate, defaultHostKey(key.name)); err != nil {
			return err
		}
	}
	for _, other := range others {
		if err := k.replaceOther(other); err != nil {
			return err
		}
	}
	return nil
}

func defaultHostKey(name string) string { return "/etc/ssh/ssh_host_" + name + "_key" }

func (k *keyMaker) remove(pattern string) error {
	for _, name := range k.root.Glob(pattern) {
		if err := k.removeFile(name); err != nil {
			return err
		}
	}
	return nil
}

func (k *keyMaker) removeFile(name string) error {
	if _, err := k.root.Lstat(name); err != nil {
		return nil
	}
	if err := k.root.Remove(name); err != nil {
		return err
	}
	k.changes = append(k.changes, "removed "+printable(name))
	return nil
}

// make writes one key pair for OpenSSH.
func (k *keyMaker) make(generate func() (crypto.Signer, error), file string) error {
	key, err := generate()
	if err != nil {
		return fmt.Errorf("cannot generate the host key %s: %w", file, err)
	}
	block, err := k.privateKey(key)
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
	if err := k.writePrivate(file, pem.EncodeToMemory(block)); err != nil {
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
	k.changes = append(k.changes, "made "+printable(file)+" "+ssh.FingerprintSHA256(public))
	return nil
}

// privateKey encodes a key as the oldest sshd that knows its kind reads it:
// OpenSSH's own format, which alone has Ed25519, came with that in 6.5.
func (k *keyMaker) privateKey(key crypto.Signer) (*pem.Block, error) {
	switch key := key.(type) {
	case *rsa.PrivateKey:
		return &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}, nil // RFC 8017
	case *ecdsa.PrivateKey:
		der, err := x509.MarshalECPrivateKey(key) // RFC 5915
		return &pem.Block{Type: "EC PRIVATE KEY", Bytes: der}, err
	}
	return ssh.MarshalPrivateKey(key, k.comment)
}

// writePrivate writes a private key, which is nobody's but root's also where the
// file was another's: sshd refuses a key that others may read.
func (k *keyMaker) writePrivate(file string, data []byte) error {
	if k.root.isFile(file) {
		if err := k.root.Chown(file, 0, 0); err != nil {
			return err
		}
		if err := k.root.Chmod(file, 0o600); err != nil {
			return err
		}
	}
	return k.root.WriteFile(file, data, 0o600)
}

// sshdConfigs are where HostKey may stand; each sshd reads one of the first two,
// and what it includes, which is below .d wherever a distribution has it so.
var sshdConfigs = []string{"/etc/ssh/sshd_config", "/usr/etc/ssh/sshd_config", "/etc/ssh/sshd_config.d/*.conf", "/usr/etc/ssh/sshd_config.d/*.conf"}

// maxOtherKeys bounds how many keys sshd_config may name.
const maxOtherKeys = 16

// otherHostKey is a host key that sshd is told to have elsewhere than it does by
// default.
type otherHostKey struct {
	file     string
	generate func() (crypto.Signer, error) // nil where no key of its kind is made
}

// otherHostKeys finds those that are there.
func (r *Root) otherHostKeys() []otherHostKey {
	var found []otherHostKey
	for _, name := range r.hostKeyNames() {
		if _, err := r.Lstat(name); err == nil {
			found = append(found, otherHostKey{name, r.hostKeyKind(name)})
		}
	}
	return found
}

// hostKeyNames are the values of HostKey that are not a default.
func (r *Root) hostKeyNames() []string {
	var found []string
	for _, pattern := range sshdConfigs {
		files := r.Glob(pattern)
		for _, file := range files[:min(len(files), maxSSHDFiles)] {
			text, err := r.ReadFile(file, releaseLimit)
			if err != nil {
				continue
			}
			for line := range strings.Lines(string(text)) {
				keyword, value := sshdLine(line)
				words, ok := sshdWords(value)
				if keyword != "hostkey" || !ok || len(words) == 0 {
					continue
				}
				name := path.Clean(words[0])
				isDefault := slices.ContainsFunc(hostKeys, func(k hostKey) bool { return name == defaultHostKey(k.name) })
				if path.IsAbs(name) && !isDefault && !slices.Contains(found, name) && len(found) < maxOtherKeys {
					found = append(found, name)
				}
			}
		}
	}
	return found
}

// hostKeyKind tells what a key is by the public key beside it, or by its name.
func (r *Root) hostKeyKind(file string) func() (crypto.Signer, error) {
	public, _ := r.ReadFile(file+".pub", releaseLimit)
	kind, _, _ := strings.Cut(string(public), " ")
	if !strings.Contains(kind, "-") {
		kind = path.Base(file)
	}
	for _, key := range hostKeys {
		if strings.Contains(kind, key.name) {
			return key.generate
		}
	}
	return nil
}

// replaceOther makes a key of the kind that another place had, or none.
func (k *keyMaker) replaceOther(other otherHostKey) error {
	if err := k.removeFile(other.file + "-cert.pub"); err != nil {
		return err
	}
	if other.generate == nil {
		if err := k.removeFile(other.file); err != nil {
			return err
		}
		return k.removeFile(other.file + ".pub")
	}
	for _, name := range []string{other.file, other.file + ".pub"} {
		at, err := k.root.resolve(name)
		if err == nil {
			_, err = k.root.unshare(at, 0)
		}
		if err != nil {
			return fail("write the host key", name, err)
		}
	}
	return k.make(other.generate, other.file)
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
	group, err := r.readAccounts(groupFile)
	if err != nil {
		return 0, false
	}
	fields, ok := group.entry(name)
	if !ok {
		return 0, false
	}
	return accountNumber(fields[2])
}
