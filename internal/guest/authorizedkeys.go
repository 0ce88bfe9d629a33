package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
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
// guest, but for keys that are there already. One that is there with options, as
// the command by which some images keep root out, is put before that line, since
// sshd takes the first of a key. The file is where the guest's
// sshd looks for it. In the home directory it and its directory become the
// user's, of mode 0600 and 0700, as sshd's StrictModes wants it; of the home
// itself nothing is changed, and what sshd will not like of it is said. A link
// in the place of .ssh or of the file is an error, and so is one above it that
// others than root may have made, as it could give any file of the guest to the
// user. A file that has other names is made anew, with its text if it was the
// user's.
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
	place, warnings, err := r.keysPlace(a)
	if err != nil {
		return nil, err
	}
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
	key     ssh.PublicKey
	line    string
	options string
	said    string // for the log
}

func parseKeys(lines []string) ([]authorizedKey, error) {
	var keys []authorizedKey
	for i, line := range lines {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, options, comment, ok := parseKeyLine(line)
		if !ok || len(line) > maxKeyLine || strings.ContainsAny(line, "\n\r\x00") {
			return nil, fmt.Errorf("line %d of the keys is not an SSH public key: want one key a line, as in a .pub file", i+1)
		}
		said := ssh.FingerprintSHA256(key)
		if comment != "" {
			said += " (" + printable(comment) + ")"
		}
		keys = append(keys, authorizedKey{key, line, options, said})
	}
	return keys, nil
}

// parseKeyLine reads a line of sshd(8), "AUTHORIZED_KEYS FILE FORMAT". Without
// options it begins with the key's type, which package ssh does not look at.
func parseKeyLine(line string) (key ssh.PublicKey, options, comment string, ok bool) {
	key, comment, list, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return nil, "", "", false
	}
	first := strings.Fields(line)[0]
	return key, strings.Join(list, ","), comment, len(list) > 0 || first == key.Type()
}

// keysPlace is where a user's keys are.
type keysPlace struct {
	user   account
	home   string // without links
	file   string // the directories above it have no links, but those below home may
	inHome bool   // so that it is the user's, and not root's
}

// owner is whose the file of keys is.
func (p keysPlace) owner() int {
	if p.inHome {
		return p.user.uid
	}
	return 0
}

// keysPlace finds where sshd looks for a user's keys.
func (r *Root) keysPlace(a account) (p keysPlace, warnings []string, err error) {
	home, err := r.resolve(a.home)
	if err != nil {
		return p, nil, fail("look at", a.home, err)
	}
	files, said := r.keysFiles(a)
	file := path.Join(a.home, defaultKeys)
	if len(files) > 0 {
		file = files[0]
	} else {
		warnings = []string{"the keys of " + a.name + " are in " + printable(file) + ", where sshd may not look: AuthorizedKeysFile is " + printable(said)}
	}
	if rest, ok := inDirectory(path.Clean(a.home), file); ok {
		return keysPlace{a, home, path.Join(home, rest), true}, warnings, nil
	}
	dir, err := r.resolve(path.Dir(file))
	if err != nil {
		return p, nil, fail("look at", file, err)
	}
	file = path.Join(dir, path.Base(file))
	if _, ok := inDirectory(home, file); ok {
		return keysPlace{a, home, file, true}, warnings, nil
	}
	return keysPlace{a, home, file, false}, warnings, r.checkKeysFile(a, file)
}

// checkKeysFile refuses a file in the home of root or of another person, which
// would let the user in as them.
func (r *Root) checkKeysFile(a account, file string) error {
	passwd, err := r.readAccounts(passwdFile)
	if err != nil {
		return err
	}
	people := r.userIDs()
	for fields := range passwd.entries {
		uid, ok := accountNumber(fields[2])
		if !ok || uid == a.uid || uid != 0 && uid < people.min {
			continue
		}
		home, err := r.resolve(fields[5])
		if err != nil || home == "/" {
			continue
		}
		if _, ok := inDirectory(home, file); ok {
			return fmt.Errorf("the file of its keys is %s, in the home of %s: change AuthorizedKeysFile of sshd_config, or the link that leads there", printable(file), printable(fields[0]))
		}
	}
	return nil
}

// inDirectory returns what a path says below a directory, if it is there.
func inDirectory(dir, file string) (rest string, ok bool) {
	return strings.CutPrefix(file, strings.TrimSuffix(dir, "/")+"/")
}

// keysFiles are the values of AuthorizedKeysFile of sshd_config(5) that can be
// told for a user, or the default, and what is said there.
func (r *Root) keysFiles(a account) (files []string, said string) {
	said, ok := r.sshdConfig()["authorizedkeysfile"]
	if !ok {
		return []string{path.Join(a.home, defaultKeys)}, ""
	}
	patterns, ok := sshdWords(said)
	for _, pattern := range patterns {
		if file, valid := expandKeysFile(pattern, a); ok && valid {
			files = append(files, file)
		}
	}
	return files, said
}

// expandKeysFile fills in the tokens of sshd_config(5). A blank is taken for a
// mistake: versions of sshd differ in how they read it.
func expandKeysFile(pattern string, a account) (string, bool) {
	file := strings.NewReplacer("%%", "\x00", "%h", a.home, "%u", a.name, "%U", strconv.Itoa(a.uid)).Replace(pattern)
	if pattern == "" || pattern == "none" || strings.ContainsAny(file, "%\"'\\ \t") || strings.HasSuffix(file, "/") {
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
	old, uid, err := r.readKeys(p.file)
	if err != nil {
		return nil, err
	}
	again, err := r.unshare(p.file, p.owner())
	if err != nil {
		return nil, err
	}
	if again && uid != p.owner() {
		old = nil // the user may not have been allowed to read it
	}
	text, changes := mergeKeys(old, wanted)
	for i := range changes {
		changes[i] += " for " + p.user.name + " in " + printable(p.file)
	}
	if again {
		changes = append(changes, "made "+printable(p.file)+" anew, which was another name of some file")
	}
	if err := r.WriteFile(p.file, text, 0o600); err != nil {
		return nil, err
	}
	return changes, r.ownKeys(p, p.file, 0o600, 0o644)
}

// readKeys returns what is in the file of keys, if there is one, and its owner.
func (r *Root) readKeys(file string) (text []byte, uid int, err error) {
	info, err := r.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	if !info.IsRegular() {
		return nil, 0, fail("write", file, notA("regular file", info.Mode))
	}
	text, err = r.ReadFile(file, keysLimit)
	return text, info.UID, err
}

// mergeKeys puts behind the old text the keys that are not in it, by type and
// key, whatever their comments. Of several lines of a key sshd takes the first
// whose options let it, so one whose first line has options goes before it.
func mergeKeys(old []byte, wanted []authorizedKey) ([]byte, []string) {
	there := map[string]string{} // the options of a key's first line
	for line := range bytes.Lines(old) {
		if key, options, _, ok := parseKeyLine(string(line)); ok {
			if _, later := there[string(key.Marshal())]; !later {
				there[string(key.Marshal())] = options
			}
		}
	}
	var before, behind []byte
	var changes []string
	done := map[string]bool{}
	for _, w := range wanted {
		blob := string(w.key.Marshal()) // begins with the type
		options, found := there[blob]
		switch {
		case done[blob] || found && (options == "" || options == w.options):
			changes = append(changes, "found the key "+w.said)
			done[blob] = true // with other options it is not wanted again
			continue
		case found:
			before = append(before, w.line+"\n"...)
			changes = append(changes, "authorized the key "+w.said+", which was there with options only,")
		default:
			behind = append(behind, w.line+"\n"...)
			changes = append(changes, "authorized the key "+w.said)
		}
		done[blob] = true
	}
	if len(behind) > 0 && len(old) > 0 && old[len(old)-1] != '\n' {
		behind = append([]byte{'\n'}, behind...)
	}
	return slices.Concat(before, old, behind), changes
}

// makeKeysDir makes the directory of the file, and those above it up to the
// home; one that is there must be a directory and no link to one.
func (r *Root) makeKeysDir(p keysPlace) error {
	above := path.Dir(p.file)
	if !p.inHome {
		return r.MkdirAll(above, 0o755)
	}
	dir := p.home
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
