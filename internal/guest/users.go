package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
)

// What EnsureUser copies at most from /etc/skel.
const (
	maxSkelFiles = 1024
	maxSkelFile  = 1 * size.MiB
	maxSkelBytes = 16 * size.MiB
	maxSkelDepth = 16
)

// nobody is the number of who is nobody, and has no files.
const nobody = 65534

// idRange is the numbers that login.defs(5) gives to people.
type idRange struct{ min, max int }

// EnsureUser makes a user of the guest, unless it has one of that name, who is
// left as it is: with a group and a number of its own as useradd(8) would choose
// them, the home /home/NAME, of mode 0700 and filled from /etc/skel, bash where there is one, and
// a password that none matches. The user is a member of the group sudo or wheel,
// which of those there is; with freeSudo it may use sudo without a password, by a
// file in /etc/sudoers.d. What was done is returned, a line a change.
//
// What a user of the name who is gone has left lets nobody in: where the home is
// there, its .ssh and what else sshd looks into for keys is moved to NAME.image,
// and entries in shadow(5) and gshadow(5) are replaced. A home that is another
// user's is an error, and so is a group of the name with a number of the system's.
func (r *Root) EnsureUser(name string, freeSudo bool) ([]string, error) {
	changes, err := r.ensureUser(name, freeSudo)
	if err != nil {
		return changes, fmt.Errorf("cannot make the user %s: %w", printable(name), err)
	}
	return changes, nil
}

func (r *Root) ensureUser(name string, freeSudo bool) ([]string, error) {
	old, err := r.account(name)
	if err == nil {
		return []string{"found the user " + name + ", whose home is " + printable(old.home)}, nil
	}
	if !errors.As(err, new(noUser)) {
		return nil, err
	}
	a, err := r.newAccount(name)
	if err != nil {
		return nil, err
	}
	if err := r.checkHome(a); err != nil {
		return nil, err
	}
	left, err := r.setAside(a)
	if err != nil {
		return left, err
	}
	joined, err := r.writeAccount(a)
	if err != nil {
		return left, err
	}
	changes := []string{fmt.Sprintf("made the user %s, number %d, group %d, home %s, shell %s", name, a.uid, a.gid, a.home, a.shell)}
	if joined != "" {
		changes = append(changes, "made "+name+" a member of the group "+joined)
	}
	lines, err := r.makeHome(a)
	changes = append(append(changes, lines...), left...)
	if err != nil {
		return changes, err
	}
	lines, err = r.forgetSudo(a)
	changes = append(changes, lines...)
	if err != nil || !freeSudo {
		return changes, err
	}
	line, err := r.freeSudo(a)
	return append(changes, line), err
}

// newAccount chooses what the entry of a new user says.
func (r *Root) newAccount(name string) (account, error) {
	a := account{name: name, home: "/home/" + name, shell: "/bin/sh"}
	if r.isFile("/bin/bash") {
		a.shell = "/bin/bash"
	}
	passwd, err := r.readAccounts(passwdFile)
	if err != nil {
		return a, err
	}
	group, err := r.readAccounts(groupFile)
	if err != nil {
		return a, err
	}
	users, taken := r.userIDs(), map[int]bool{}
	passwd.numbers(2, taken)
	if old, ok := group.entry(name); ok {
		if a.gid, ok = accountNumber(old[2]); !ok {
			return a, fmt.Errorf("the entry of its group in %s has no number", groupFile)
		}
		if a.gid < users.min || a.gid == nobody {
			return a, fmt.Errorf("%s has a group of that name for the system, number %d, which may have files and devices of its own: choose another name", groupFile, a.gid)
		}
		a.uid, err = users.next(taken)
		return a, err
	}
	passwd.numbers(3, taken) // one number for both the user and the group
	group.numbers(2, taken)
	a.uid, err = users.next(taken)
	a.gid = a.uid
	return a, err
}

// next is the number after the highest that is taken, so that nobody gets the
// files of a user who is gone, or else the lowest that is free.
func (r idRange) next(taken map[int]bool) (int, error) {
	next := r.min
	for id := range taken {
		if id >= next && id <= r.max {
			next = id + 1
		}
	}
	if next <= r.max {
		return next, nil
	}
	for id := r.min; id <= r.max && id <= r.min+len(taken); id++ {
		if !taken[id] {
			return id, nil
		}
	}
	return 0, fmt.Errorf("every number from %d to %d is taken in %s and %s", r.min, r.max, passwdFile, groupFile)
}

// userIDs reads UID_MIN and UID_MAX of login.defs(5).
func (r *Root) userIDs() idRange {
	ids := idRange{1000, 60000}
	for _, file := range []string{"/etc/login.defs", "/usr/etc/login.defs"} {
		text, err := r.ReadFile(file, releaseLimit)
		if err != nil {
			continue
		}
		said := idRange{ids.min, ids.max}
		for line := range strings.Lines(string(text)) {
			words := strings.Fields(line)
			if len(words) < 2 {
				continue
			}
			n, err := strconv.Atoi(words[1])
			switch {
			case err != nil:
			case words[0] == "UID_MIN":
				said.min = n
			case words[0] == "UID_MAX":
				said.max = n
			}
		}
		if said.min >= 100 && said.max >= said.min && said.max < 1<<31 {
			ids = said
		}
		break
	}
	return ids
}

// writeAccount makes the entries of a new user and of its group; that in passwd
// comes last, since it makes the user one. It returns the group of those that
// sudo lets in, which the user joined.
func (r *Root) writeAccount(a account) (joined string, err error) {
	group, err := r.readAccounts(groupFile)
	if err != nil {
		return "", err
	}
	files := []*accountFile{group}
	gshadow, err := r.readAccounts(gshadowFile)
	switch {
	case err == nil:
		files = append(files, gshadow)
	case errors.Is(err, fs.ErrNotExist):
		gshadow = parseAccounts(gshadowFile, "") // which is not written
	default:
		return "", err
	}
	if group.find(a.name) < 0 {
		group.add(a.name, "x", strconv.Itoa(a.gid), "")
		gshadow.replace(a.name, "!", "", "") // one left behind may have a password
	}
	for _, name := range []string{"sudo", "wheel"} {
		if group.join(name, a.name) {
			gshadow.join(name, a.name)
			joined = name
			break
		}
	}
	for _, file := range files {
		if err := r.writeAccounts(file); err != nil {
			return "", err
		}
	}
	return joined, r.writeUser(a)
}

// join makes a user a member of a group, if there is that group.
func (f *accountFile) join(group, user string) bool {
	fields, ok := f.entry(group)
	if !ok {
		return false
	}
	members := strings.TrimRight(fields[3], "\r")
	for member := range strings.SplitSeq(members, ",") {
		if member == user {
			return true
		}
	}
	f.set(group, 3, strings.TrimPrefix(members+","+user, ","))
	return true
}

func (r *Root) writeUser(a account) error {
	passwd, err := r.readAccounts(passwdFile)
	if err != nil {
		return err
	}
	hash := "*"
	shadow, err := r.readAccounts(shadowFile)
	if err == nil {
		hash = "x"
		shadow.replace(shadowEntry(a.name, "*")...) // one left behind may have a password, or have expired
		err = r.writeAccounts(shadow)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	passwd.add(a.name, hash, strconv.Itoa(a.uid), strconv.Itoa(a.gid), "", a.home, a.shell)
	return r.writeAccounts(passwd)
}

// checkHome refuses a home that others have, or whose owner is gone: what is in
// it would stay theirs, among it what runs when the user logs in.
func (r *Root) checkHome(a account) error {
	passwd, err := r.readAccounts(passwdFile)
	if err != nil {
		return err
	}
	home, err := r.resolve(a.home)
	if err != nil {
		return fail("look at", a.home, err)
	}
	for fields := range passwd.entries {
		if has := path.Clean(fields[5]); has == a.home || has == home {
			return fmt.Errorf("%s is the home of %s in %s: choose another name", a.home, printable(fields[0]), passwdFile)
		}
	}
	info, err := r.Lstat(a.home)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.IsDir():
		return fail("make the directory", a.home, notA("directory", info.Mode))
	case info.UID != 0 && info.UID != a.uid:
		return fmt.Errorf("%s is there and has the owner %d, while the user gets the number %d: remove it from the image, chown what is in it, or choose another name", a.home, info.UID, a.uid)
	}
	return nil
}

// setAside moves away what is in a home that is there and has keys by which sshd
// would let in who had it before.
func (r *Root) setAside(a account) ([]string, error) {
	names := []string{".ssh"}
	files, _ := r.keysFiles(a)
	for _, file := range files {
		rest, inHome := inDirectory(a.home, file)
		if name, _, _ := strings.Cut(rest, "/"); inHome && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	var changes []string
	for _, name := range names {
		from := a.home + "/" + name
		to, err := r.aside(from)
		if err != nil {
			return changes, err
		}
		if to != "" {
			changes = append(changes, "moved "+printable(from)+", which was there, to "+printable(to)+", so that keys in it let nobody in as "+a.name)
		}
	}
	return changes, nil
}

// strangers tells of files in a home that are neither the user's nor root's.
func (r *Root) strangers(a account) ([]string, error) {
	names, err := r.ReadDir(a.home)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		info, err := r.Lstat(a.home + "/" + name)
		if err != nil {
			return nil, err
		}
		if info.UID != 0 && info.UID != a.uid {
			return []string{fmt.Sprintf("%s/%s belongs to the number %d, and is left so", a.home, printable(name), info.UID)}, nil
		}
	}
	return nil, nil
}

// makeHome makes a new user's home. A directory that is there already becomes
// the user's, and what is in it stays as it is.
func (r *Root) makeHome(a account) ([]string, error) {
	if err := r.MkdirAll(path.Dir(a.home), 0o755); err != nil {
		return nil, err
	}
	made, err := r.plainDirectory(a.home)
	if err != nil {
		return nil, err
	}
	if err := r.Chown(a.home, a.uid, a.gid); err != nil {
		return nil, err
	}
	if !made {
		lines, err := r.strangers(a)
		return append([]string{"gave the directory " + a.home + ", which was there, to " + a.name}, lines...), err
	}
	s := &skeleton{root: r, user: a, files: maxSkelFiles, bytes: maxSkelBytes}
	for _, dir := range []string{"/etc/skel", "/usr/etc/skel"} {
		if r.isDir(dir) {
			if err := s.copy(dir, a.home, maxSkelDepth); err != nil {
				return s.left, err
			}
		}
	}
	return s.left, nil
}

// skeleton is a copy of skel under way.
type skeleton struct {
	root  *Root
	user  account
	files int        // that may still be copied
	bytes size.Bytes // likewise
	left  []string   // what was left out, for the log
}

// copy copies what a directory of the guest holds to another, which is the
// user's and has nothing but what this copy put there.
func (s *skeleton) copy(from, to string, depth int) error {
	names, err := s.root.ReadDir(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		if s.files--; s.files < 0 || depth == 0 {
			return fmt.Errorf("cannot copy %s to the home: it holds more than %d files, or %d directories below each other", printable(from), maxSkelFiles, maxSkelDepth)
		}
		if err := s.entry(from+"/"+name, to+"/"+name, depth); err != nil {
			return err
		}
	}
	return nil
}

func (s *skeleton) entry(from, to string, depth int) error {
	info, err := s.root.Lstat(from)
	if err != nil {
		return err
	}
	if _, err := s.root.Lstat(to); err == nil {
		return nil // an earlier skel had it
	}
	switch {
	case info.IsDir():
		return s.directory(from, to, info.Mode, depth)
	case info.IsRegular():
		return s.file(from, to, info)
	case info.Mode&fs.ModeSymlink != 0:
		target, err := s.root.Readlink(from)
		if err == nil {
			err = s.root.Symlink(target, to)
		}
		if err != nil {
			return err
		}
		return s.root.lchown(to, s.user.uid, s.user.gid)
	}
	s.left = append(s.left, "left out "+printable(from)+", which is no file, directory or link")
	return nil
}

func (s *skeleton) directory(from, to string, mode fs.FileMode, depth int) error {
	if _, err := s.root.plainDirectory(to); err != nil {
		return err
	}
	if err := s.copy(from, to, depth-1); err != nil {
		return err
	}
	return s.own(to, mode)
}

func (s *skeleton) file(from, to string, info Info) error {
	if s.bytes -= info.Size; info.Size > maxSkelFile || s.bytes < 0 {
		return fmt.Errorf("cannot copy %s to the home: want files of at most %v, and %v together", printable(from), maxSkelFile, maxSkelBytes)
	}
	data, err := s.root.ReadFile(from, maxSkelFile)
	if err != nil {
		return err
	}
	if err := s.root.WriteFile(to, data, 0o600); err != nil {
		return err
	}
	if err := s.root.labelInHome(to); err != nil {
		return err
	}
	return s.own(to, info.Mode)
}

func (s *skeleton) own(name string, mode fs.FileMode) error {
	if err := s.root.Chown(name, s.user.uid, s.user.gid); err != nil {
		return err
	}
	return s.root.Chmod(name, mode.Perm())
}

// lchown sets the owner of what a path names; a link is not followed.
func (r *Root) lchown(name string, uid, gid int) error {
	dir, base, err := r.parent(name)
	if err == nil {
		defer unix.Close(dir)
		err = unix.Fchownat(dir, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	}
	return fail("set the owner of", name, err)
}

// homeLabels are the types that SELinux's policies give to what is in a
// directory of a type; sshd may not read keys of another.
var homeLabels = []struct{ above, name, label string }{
	{"home_root_t", "*", "user_home_dir_t"},
	{"user_home_dir_t", ".ssh", "ssh_home_t"},
	{"admin_home_t", ".ssh", "ssh_home_t"},
	{"user_home_dir_t", "*", "user_home_t"},
}

// labelInHome labels a new file or directory that has got the label of its
// directory, for want of a rule of the guest's policy for it.
func (r *Root) labelInHome(name string) error {
	label := r.Label(path.Dir(name))
	parts := strings.SplitN(label, ":", 4)
	if len(parts) < 3 || r.Label(name) != label {
		return nil
	}
	for _, l := range homeLabels {
		if parts[2] == l.above && (l.name == "*" || l.name == path.Base(name)) {
			parts[2] = l.label
			return r.SetLabel(name, strings.Join(parts, ":"))
		}
	}
	return nil
}

// sudoersDir holds files of sudoers(5), whose names have no dot.
const sudoersDir = "/etc/sudoers.d"

// includesSudoers tells whether sudo reads what is in the directory.
func (r *Root) includesSudoers() bool {
	for _, file := range []string{"/etc/sudoers", "/usr/etc/sudoers"} {
		text, err := r.ReadFile(file, releaseLimit)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			words := strings.Fields(line)
			if len(words) > 1 && (words[0] == "#includedir" || words[0] == "@includedir") && strings.Trim(words[1], `"`) == sudoersDir {
				return r.isDir(sudoersDir)
			}
		}
		break
	}
	return false
}

// forgetSudo removes what freeSudo wrote for a user who is gone and had the
// number that is the new user's.
func (r *Root) forgetSudo(a account) ([]string, error) {
	var changes []string
	for _, file := range r.Glob(fmt.Sprintf("%s/ganeti-*-%d", sudoersDir, a.uid)) {
		if info, err := r.Lstat(file); err != nil || !info.IsRegular() {
			continue
		}
		if err := r.Remove(file); err != nil {
			return changes, err
		}
		changes = append(changes, "removed "+printable(file)+", of a user who is gone")
	}
	return changes, nil
}

// freeSudo lets a user do anything without a password. The rule is of the user's
// number, since sudo takes a name in capitals for an alias.
func (r *Root) freeSudo(a account) (string, error) {
	if !r.includesSudoers() {
		return "the guest has no sudo that reads " + sudoersDir + ", so " + a.name + " cannot become root by it", nil
	}
	// With the number, since a.b and a_b may both be users.
	file := fmt.Sprintf("%s/ganeti-%s-%d", sudoersDir, strings.ReplaceAll(a.name, ".", "_"), a.uid)
	if info, err := r.Lstat(file); err == nil && !info.IsRegular() {
		return "", fail("write", file, notA("regular file", info.Mode))
	}
	text := fmt.Sprintf("# Written at deployment, for %s, who has SSH keys and no password.\n#%d ALL=(ALL:ALL) NOPASSWD: ALL\n", a.name, a.uid)
	if err := r.WriteFile(file, []byte(text), 0o440); err != nil {
		return "", err
	}
	if err := r.Chown(file, 0, 0); err != nil {
		return "", err
	}
	return "let " + a.name + " use sudo without a password, by " + file, r.Chmod(file, 0o440)
}
