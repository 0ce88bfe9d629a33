package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"ganeti-instance-image/internal/size"
)

// What bounds each of the files of accounts.
const (
	accountsLimit = 4 * size.MiB
	maxAccounts   = 1 << 16 // lines
)

// The files of accounts; BSD has the first besides /etc/passwd, which it makes
// from it together with a data base.
const (
	masterFile  = "/etc/master.passwd"
	passwdFile  = "/etc/passwd"
	shadowFile  = "/etc/shadow"
	groupFile   = "/etc/group"
	gshadowFile = "/etc/gshadow"
)

// accountFields is how many fields an entry of each file has.
var accountFields = map[string]int{passwdFile: 7, shadowFile: 9, groupFile: 4, gshadowFile: 4}

// accountFile is the text of passwd(5), shadow(5), group(5) or gshadow(5): a
// line an entry, a colon between its fields. Lines that nobody asked to change,
// comments and those of NIS ("+", "-") among them, stay as they are to the byte.
type accountFile struct {
	name  string
	lines []string // with their line ends
}

func parseAccounts(name, text string) *accountFile {
	return &accountFile{name: name, lines: slices.Collect(strings.Lines(text))}
}

func (f *accountFile) String() string { return strings.Join(f.lines, "") }

func (r *Root) readAccounts(name string) (*accountFile, error) {
	text, err := r.ReadFile(name, accountsLimit)
	if err != nil {
		return nil, err
	}
	if bytes.Count(text, []byte("\n")) > maxAccounts {
		return nil, fail("read", name, fmt.Errorf("it has more than %d lines", maxAccounts))
	}
	return parseAccounts(name, string(text)), nil
}

// writeAccounts rewrites a file in place, so that its owner, mode and label stay.
func (r *Root) writeAccounts(f *accountFile) error {
	return r.WriteFile(f.name, []byte(f.String()), 0o600)
}

// find returns the number of the first entry of a name, which is the one that
// counts, or -1.
func (f *accountFile) find(name string) int {
	return slices.IndexFunc(f.lines, func(line string) bool { return strings.HasPrefix(line, name+":") })
}

// entry returns the fields of a name's entry, as many as there should be.
func (f *accountFile) entry(name string) (fields []string, ok bool) {
	i := f.find(name)
	if i < 0 {
		return nil, false
	}
	return f.fields(i), true
}

// fields cuts a line; the last field has the colons that are too many.
func (f *accountFile) fields(i int) []string {
	fields := strings.SplitN(strings.TrimSuffix(f.lines[i], "\n"), ":", accountFields[f.name])
	for len(fields) < accountFields[f.name] {
		fields = append(fields, "")
	}
	return fields
}

// set changes one field of the entry of a name, if there is one.
func (f *accountFile) set(name string, field int, value string) {
	i := f.find(name)
	if i < 0 {
		return
	}
	fields := f.fields(i)
	fields[field] = value
	end := ""
	if strings.HasSuffix(f.lines[i], "\n") {
		end = "\n"
	}
	f.lines[i] = strings.Join(fields, ":") + end
}

// add puts an entry behind the others, but before those of NIS, after which the
// C library may not look.
func (f *accountFile) add(fields ...string) {
	at := slices.IndexFunc(f.lines, func(line string) bool { return strings.HasPrefix(line, "+") })
	if at < 0 {
		at = len(f.lines)
	}
	if at > 0 && !strings.HasSuffix(f.lines[at-1], "\n") {
		f.lines[at-1] += "\n"
	}
	f.lines = slices.Insert(f.lines, at, strings.Join(fields, ":")+"\n")
}

// replace puts an entry in the place of all that are of its name.
func (f *accountFile) replace(fields ...string) {
	f.lines = slices.DeleteFunc(f.lines, func(line string) bool { return strings.HasPrefix(line, fields[0]+":") })
	f.add(fields...)
}

// entries yields the fields of every entry, but not comments and those of NIS.
func (f *accountFile) entries(yield func([]string) bool) {
	for i, line := range f.lines {
		if !strings.ContainsRune("#+-", rune(line[0])) && !yield(f.fields(i)) {
			return
		}
	}
}

// numbers adds what a field says in all entries to the numbers that are taken.
func (f *accountFile) numbers(field int, taken map[int]bool) {
	for fields := range f.entries {
		if n, ok := accountNumber(fields[field]); ok {
			taken[n] = true
		}
	}
}

// accountNumber reads a user's or group's number. The highest of 32 bits is
// none: the kernel takes it for "leave it as it is".
func accountNumber(text string) (int, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return int(n), err == nil && n < 1<<32-1
}

// account is what the guest's /etc/passwd says of a user.
type account struct {
	name, home, shell string
	uid, gid          int
}

var accountName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,31}$`)

// checkAccounts wants a name that can be one, and a guest whose accounts are
// where Linux has them.
func (r *Root) checkAccounts(user string) error {
	switch {
	case !accountName.MatchString(user):
		return errors.New("that is no user's name: want at most 32 letters, digits and _ . - and no digit, dot or dash first")
	case r.Exists(masterFile):
		return fmt.Errorf("the guest keeps its accounts in %s, as BSD does, and only those of Linux can be changed: use an image that has cloud-init", masterFile)
	}
	return nil
}

// account looks a user up; one who is not there is the error noUser.
func (r *Root) account(user string) (account, error) {
	if err := r.checkAccounts(user); err != nil {
		return account{}, err
	}
	passwd, err := r.readAccounts(passwdFile)
	if err != nil {
		return account{}, err
	}
	fields, ok := passwd.entry(user)
	if !ok {
		return account{}, noUser{user}
	}
	uid, uidOK := accountNumber(fields[2])
	gid, gidOK := accountNumber(fields[3])
	if !uidOK || !gidOK {
		return account{}, fmt.Errorf("the entry of %s in %s has no number of a user and a group", user, passwdFile)
	}
	return account{name: user, home: fields[5], shell: fields[6], uid: uid, gid: gid}, nil
}

// noUser is the error for a user whom the guest does not have.
type noUser struct{ name string }

func (n noUser) Error() string { return "the guest has no user " + n.name }

// today is the day as shadow(5) counts them.
func today() int { return int(time.Now().Unix() / (24 * 60 * 60)) }

// desHash is the length of the one kind of hash that has no prefix.
const desHash = 13

var hashText = regexp.MustCompile(`^[!-9;-~]{1,512}$`) // no colon

// SetPassword makes a hash of crypt(5) the password of a user of the guest, in
// /etc/shadow, or in /etc/passwd where the guest has no other, as the password
// that was set today. That unlocks it; the other fields stay. Returned is what
// was done, and what keeps the user out all the same.
func (r *Root) SetPassword(user, hash string) ([]string, error) {
	changes, err := r.setPassword(user, hash)
	if err != nil {
		return changes, fmt.Errorf("cannot set the password of %s: %w", printable(user), err)
	}
	return changes, nil
}

func (r *Root) setPassword(user, hash string) ([]string, error) {
	if !hashText.MatchString(hash) {
		return nil, errors.New("that is no hash of crypt(5): want printable ASCII without space and colon")
	}
	a, err := r.account(user)
	if err != nil {
		return nil, err
	}
	file, err := r.putHash(user, hash, true)
	if err != nil {
		return nil, err
	}
	return append([]string{"set the password of " + user + " in " + file}, r.obstacles(a)...), nil
}

// putHash sets the field of the hash of a user who is there, and returns the
// file that has it. Where passwd(5) has a hash of its own the C library does
// not look into shadow(5).
func (r *Root) putHash(user, hash string, setToday bool) (file string, err error) {
	passwd, err := r.readAccounts(passwdFile)
	if err != nil {
		return "", err
	}
	shadow, err := r.readAccounts(shadowFile)
	if errors.Is(err, fs.ErrNotExist) {
		passwd.set(user, 1, hash)
		return passwdFile, r.writeAccounts(passwd)
	}
	if err != nil {
		return "", err
	}
	if shadow.find(user) < 0 {
		shadow.add(shadowEntry(user, hash)...)
	}
	shadow.set(user, 1, hash)
	if setToday {
		shadow.set(user, 2, strconv.Itoa(today()))
	}
	if err := r.writeAccounts(shadow); err != nil {
		return "", err
	}
	if fields, ok := passwd.entry(user); ok && fields[1] != "x" {
		passwd.set(user, 1, "x")
		return shadowFile, r.writeAccounts(passwd)
	}
	return shadowFile, nil
}

func shadowEntry(user, hash string) []string {
	return []string{user, hash, strconv.Itoa(today()), "0", "99999", "7", "", "", ""}
}

// obstacles tells what of an account keeps its user from a shell.
func (r *Root) obstacles(a account) []string {
	var lines []string
	if shadow, err := r.readAccounts(shadowFile); err == nil {
		fields, _ := shadow.entry(a.name)
		if len(fields) > 7 {
			if day, err := strconv.Atoi(fields[7]); err == nil && day <= today() {
				lines = append(lines, "the account of "+a.name+" has expired, by "+shadowFile+", and is left so")
			}
		}
	}
	if strings.HasSuffix(a.shell, "/nologin") || strings.HasSuffix(a.shell, "/false") {
		lines = append(lines, "the shell of "+a.name+" is "+printable(a.shell)+", which lets nobody in")
	}
	return lines
}

// allowKeys takes a lock without a hash behind it from a user who has no
// password: an sshd without PAM, as Alpine's, takes "!" for a locked account and
// refuses its keys too, while "*" is no more than a password that none matches.
func (r *Root) allowKeys(a account) ([]string, error) {
	shadow, err := r.readAccounts(shadowFile)
	if err != nil {
		return nil, nil // no lock, or none that can be seen
	}
	fields, ok := shadow.entry(a.name)
	if !ok || !strings.HasPrefix(fields[1], "!") {
		return nil, nil
	}
	if behind := strings.TrimLeft(fields[1], "!*"); strings.HasPrefix(behind, "$") || strings.HasPrefix(behind, "_") || len(behind) == desHash {
		return []string{"the account of " + a.name + " is locked, by " + shadowFile + ", and is left so: an sshd without PAM refuses its keys"}, nil
	}
	if _, err := r.putHash(a.name, "*", false); err != nil {
		return nil, err
	}
	return []string{"changed the lock of " + a.name + " to a password that none matches, so that any sshd takes its keys"}, nil
}

// printable is a text of the guest's or a user's for a line of the log.
func printable(text string) string {
	text = strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, text)
	if len(text) > 200 {
		text = text[:200] + "..."
	}
	return text
}
