package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
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

// idRange is the numbers that login.defs(5) gives to people.
type idRange struct{ min, max int }

// EnsureUser makes a user of the guest, unless it has one of that name, who is
// left as it is: with a group and a number of its own as useradd(8) would choose
// them, the home /home/NAME, of mode 0700 and filled from /etc/skel, bash where there is one, and
// a password that none matches. The user is a member of the group sudo or wheel,
// which of those there is; with freeSudo it may use sudo without a password, by a
// file in /etc/sudoers.d. What was done is returned, a line a change.
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
	joined, err := r.writeAccount(a)
	if err != nil {
		return nil, err
	}
	changes := []string{fmt.Sprintf("made the user %s, number %d, group %d, home %s, shell %s", name, a.uid, a.gid, a.home, a.shell)}
	if joined != "" {
		changes = append(changes, "made "+name+" a member of the group "+joined)
	}
	lines, err := r.makeHome(a)
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
		if gshadow.find(a.name) < 0 {
			gshadow.add(a.name, "!", "", "")
		}
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
		if shadow.find(a.name) < 0 {
			shadow.add(shadowEntry(a.name, "*")...)
		} else { // left behind by a user who is gone, and maybe with a password
			shadow.set(a.name, 1, "*")
		}
		err = r.writeAccounts(shadow)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	passwd.add(a.name, hash, strconv.Itoa(a.uid), strconv.Itoa(a.gid), "", a.home, a.shell)
	return r.writeAccounts(passwd)
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
		return []string{"gave the directory " + a.home + ", which was there, to " + a.name}, nil
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

// freeSudo lets a user do anything without a password. The rule is of the user's
// number, since sudo takes a name in capitals for an alias.
func (r *Root) freeSudo(a account) (string, error) {
	if !r.includesSudoers() {
		return "the guest has no sudo that reads " + sudoersDir + ", so " + a.name + " cannot become root by it", nil
	}
	file := sudoersDir + "/ganeti-" + strings.ReplaceAll(a.name, ".", "_")
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
