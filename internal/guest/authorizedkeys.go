package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"

	"ganeti-instance-image/internal/size"
)

// The bounds of an authorized_keys file.
const (
	keysLimit    = 1 * size.MiB
	maxKeyLine   = 16 << 10 // bytes
	defaultKeys  = ".ssh/authorized_keys"
	groupOrOther = 0o022 // may write
)

// AuthorizeKeys adds lines of an authorized_keys file to that of a user of the
// guest, but for keys that are there already. The file is where the guest's
// sshd looks for it. In the home directory it and its directory become the
// user's, of mode 0600 and 0700, as sshd's StrictModes wants it; of the home
// itself nothing is changed, and what sshd will not like of it is said. A link
// in the place of .ssh or of the file is an error, as it could give any file of
// the guest to the user.
//
// Returned is a line for each key and for what keeps sshd from taking them.
func (r *Root) AuthorizeKeys(user string, keys []string) ([]string, error) {
	changes, err := r.authorizeKeys(user, keys)
	if err != nil {
		return changes, fmt.Errorf("cannot authorize SSH keys for %s: %w", printable(user), err)
	}
	return changes, nil
}

func (r *Root) authorizeKeys(user string, keys []string) ([]string, error) {
	wanted, err := parseKeys(keys)
	if err != nil || len(wanted) == 0 {
		return nil, err
	}
	a, err := r.account(user)
	if err != nil {
		return nil, err
	}
	if info, err := r.Stat(a.home); err != nil || !info.IsDir() || !path.IsAbs(a.home) {
		return nil, fmt.Errorf("its home is %q, which is no directory of the guest", printable(a.home))
	}
	place, warnings := r.keysFile(a)
	changes, err := r.addKeys(place, wanted)
	if err != nil {
		return changes, err
	}
	unlocked, err := r.allowKeys(a)
	if err != nil {
		return changes, err
	}
	for _, lines := range [][]string{unlocked, warnings, r.looseHome(a, place), r.obstacles(a)} {
		changes = append(changes, lines...)
	}
	return changes, nil
}

// authorizedKey is one line that is to be added.
type authorizedKey struct {
	key  ssh.PublicKey
	line string
	said string // for the log
}

func parseKeys(lines []string) ([]authorizedKey, error) {
	var keys []authorizedKey
	for i, line := range lines {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, comment, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil || len(line) > maxKeyLine || strings.ContainsAny(line, "\n\r\x00") {
			return nil, fmt.Errorf("line %d of the keys is not an SSH public key: want one key a line, as in a .pub file", i+1)
		}
		said := ssh.FingerprintSHA256(key)
		if comment != "" {
			said += " (" + printable(comment) + ")"
		}
		keys = append(keys, authorizedKey{key, line, said})
	}
	return keys, nil
}

// keysPlace is where a user's keys are.
type keysPlace struct {
	user   account
	file   string
	inHome bool // so that it is the user's, and not root's
}

// keysFile finds where sshd looks for a user's keys, by AuthorizedKeysFile of
// sshd_config(5), of whose values the first that can be told is taken.
func (r *Root) keysFile(a account) (keysPlace, []string) {
	byDefault := keysPlace{a, path.Join(a.home, defaultKeys), true}
	said, ok := r.sshdConfig()["authorizedkeysfile"]
	if !ok {
		return byDefault, nil
	}
	for _, pattern := range strings.Fields(said) {
		if file, ok := expandKeysFile(strings.Trim(pattern, `"`), a); ok {
			return keysPlace{a, file, strings.HasPrefix(file, path.Clean(a.home)+"/")}, nil
		}
	}
	return byDefault, []string{"the keys of " + a.name + " are in " + printable(byDefault.file) + ", where sshd may not look: AuthorizedKeysFile is " + printable(said)}
}

// expandKeysFile fills in the tokens of sshd_config(5).
func expandKeysFile(pattern string, a account) (string, bool) {
	file := strings.NewReplacer("%%", "\x00", "%h", a.home, "%u", a.name, "%U", strconv.Itoa(a.uid)).Replace(pattern)
	if pattern == "" || pattern == "none" || strings.ContainsAny(file, "%\"\\") || strings.HasSuffix(file, "/") {
		return "", false
	}
	file = strings.ReplaceAll(file, "\x00", "%")
	if !path.IsAbs(file) {
		file = a.home + "/" + file
	}
	return path.Clean(file), true
}

func (r *Root) addKeys(p keysPlace, wanted []authorizedKey) ([]string, error) {
	if err := r.makeKeysDir(p); err != nil {
		return nil, err
	}
	old, err := r.readKeys(p.file)
	if err != nil {
		return nil, err
	}
	text, changes := mergeKeys(old, wanted)
	for i := range changes {
		changes[i] += " for " + p.user.name + " in " + printable(p.file)
	}
	if err := r.WriteFile(p.file, text, 0o600); err != nil {
		return nil, err
	}
	return changes, r.ownKeys(p, p.file, 0o600, 0o644)
}

// readKeys returns what is in the file of keys, if there is one.
func (r *Root) readKeys(file string) ([]byte, error) {
	info, err := r.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !info.IsRegular() {
		return nil, fail("write", file, notA("regular file", info.Mode))
	}
	return r.ReadFile(file, keysLimit)
}

// mergeKeys puts behind the old text the keys that are not in it, by type and
// key, whatever their options and comments.
func mergeKeys(old []byte, wanted []authorizedKey) ([]byte, []string) {
	there := map[string]bool{}
	for line := range bytes.Lines(old) {
		if key, _, _, _, err := ssh.ParseAuthorizedKey(line); err == nil {
			there[string(key.Marshal())] = true
		}
	}
	text := bytes.Clone(old)
	var changes []string
	for _, w := range wanted {
		blob := string(w.key.Marshal()) // begins with the type
		if there[blob] {
			changes = append(changes, "found the key "+w.said)
			continue
		}
		there[blob] = true
		if len(text) > 0 && text[len(text)-1] != '\n' {
			text = append(text, '\n')
		}
		text = append(text, w.line+"\n"...)
		changes = append(changes, "authorized the key "+w.said)
	}
	return text, changes
}

// makeKeysDir makes the directory of the file, and those above it up to the
// home; one that is there must be a directory and no link to one.
func (r *Root) makeKeysDir(p keysPlace) error {
	above := path.Dir(p.file)
	if !p.inHome {
		return r.MkdirAll(above, 0o755)
	}
	dir := path.Clean(p.user.home)
	for part := range strings.SplitSeq(strings.TrimPrefix(above, dir), "/") {
		if part == "" {
			continue
		}
		dir = path.Join(dir, part)
		made, err := r.plainDirectory(dir)
		if err == nil && (made || dir == above) {
			err = r.ownKeys(p, dir, 0o700, 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// plainDirectory makes a directory with the label that SELinux's policy would
// give it, unless it is there.
func (r *Root) plainDirectory(dir string) (made bool, err error) {
	info, err := r.Lstat(dir)
	if err == nil && !info.IsDir() {
		return false, fail("make the directory", dir, notA("directory", info.Mode))
	}
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := r.MkdirAll(dir, 0o700); err != nil {
		return false, err
	}
	return true, r.labelInHome(dir)
}

// ownKeys gives what is in the home to its user, and else to root.
func (r *Root) ownKeys(p keysPlace, name string, inHome, elsewhere fs.FileMode) error {
	uid, gid, mode := p.user.uid, p.user.gid, inHome
	if !p.inHome {
		uid, gid, mode = 0, 0, elsewhere
	}
	if err := r.Chown(name, uid, gid); err != nil {
		return err
	}
	return r.Chmod(name, mode)
}

// looseHome tells of a home that StrictModes refuses keys below.
func (r *Root) looseHome(a account, p keysPlace) []string {
	if !p.inHome {
		return nil
	}
	info, err := r.Stat(a.home)
	switch {
	case err != nil:
		return nil
	case info.Mode.Perm()&groupOrOther != 0:
		return []string{"sshd refuses the keys of " + a.name + ": others may write to its home " + printable(a.home) + "; have the image chmod go-w it"}
	case info.UID != 0 && info.UID != a.uid:
		return []string{"sshd refuses the keys of " + a.name + ": its home " + printable(a.home) + " is another's; have the image chown it"}
	}
	return nil
}
