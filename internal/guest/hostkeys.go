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

// ReplaceHostKeys removes every SSH host key of the image, /etc/ssh/ssh_host_*,
// and makes new rsa, ecdsa and ed25519 keys with the comment root@HOST, whether
// or not the image had any. Where the guest has cloud-init, that is told to
// leave them. What was done is returned, a line a step; a guest without an
// OpenSSH server is one such line and no error.
func (r *Root) ReplaceHostKeys(host string) ([]string, error) {
	if !r.hasSSHServer() {
		return []string{"the image has no OpenSSH server, so no host keys are made"}, nil
	}
	if err := r.MkdirAll("/etc/ssh", 0o755); err != nil {
		return nil, err
	}
	var changes []string
	for _, name := range r.Glob("/etc/ssh/ssh_host_*") {
		if err := r.Remove(name); err != nil {
			return changes, err
		}
		changes = append(changes, "removed "+name)
	}
	mode, group := r.keyAccess()
	for _, key := range hostKeys {
		line, err := r.makeHostKey(key.name, key.generate, "root@"+host, mode, group)
		if err != nil {
			return changes, err
		}
		changes = append(changes, line)
	}
	if !r.HasCloudInit() {
		return changes, nil
	}
	if err := r.MkdirAll(CloudConfigDir, 0o755); err != nil {
		return changes, err
	}
	if err := r.WriteFile(KeepHostKeysFile, []byte(keepHostKeys), 0o644); err != nil {
		return changes, err
	}
	return append(changes, "told cloud-init to keep them, in "+KeepHostKeysFile), nil
}

// servers are what only an OpenSSH server brings.
var servers = []string{
	"/usr/sbin/sshd", "/sbin/sshd", "/usr/bin/sshd", "/usr/local/sbin/sshd",
	"/etc/ssh/sshd_config", "/usr/etc/ssh/sshd_config",
}

func (r *Root) hasSSHServer() bool { return slices.ContainsFunc(servers, r.Exists) }

// makeHostKey writes one key pair and returns the line for the log.
func (r *Root) makeHostKey(kind string, generate func() (crypto.Signer, error), comment string, mode fs.FileMode, group int) (string, error) {
	key, err := generate()
	if err != nil {
		return "", fmt.Errorf("cannot generate the %s host key: %w", kind, err)
	}
	block, err := ssh.MarshalPrivateKey(key, comment)
	if err != nil {
		return "", fmt.Errorf("cannot encode the %s host key: %w", kind, err)
	}
	public, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		return "", fmt.Errorf("cannot encode the %s host key: %w", kind, err)
	}
	file := "/etc/ssh/ssh_host_" + kind + "_key"
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public))) + " " + comment + "\n"
	if err := r.WriteFile(file+".pub", []byte(line), 0o644); err != nil {
		return "", err
	}
	if err := r.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		return "", err
	}
	if group != 0 {
		if err := r.Chown(file, 0, group); err != nil {
			return "", err
		}
		if err := r.Chmod(file, mode); err != nil {
			return "", err
		}
	}
	return "made " + file + " " + ssh.FingerprintSHA256(public), nil
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
