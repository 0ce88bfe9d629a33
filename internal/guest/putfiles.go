package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
)

// File is a file to put into the guest.
type File struct {
	Path     string      // absolute
	Owner    string      // a name of the guest's, or a number; empty: root
	Group    string      // likewise; empty: the owner's
	Mode     fs.FileMode // permission bits
	Contents []byte
}

// PutFile makes a file of the guest what f says. Directories that are missing
// are made, root's and of mode 0755. One that is there is rewritten in place, so
// that its SELinux label stays, unless it has other names and its new owner or
// that of its directory is not root: then it is made anew. A link is followed
// within the guest, but one that others than root may have made is an error.
// Anything but a regular file in its place is an error too, and so is a name of
// an owner or a group that the guest does not have. The line that is returned
// says what was written, without the contents.
func (r *Root) PutFile(f File) (string, error) {
	line, err := r.putFile(f)
	if err != nil {
		return "", fmt.Errorf("cannot put the file %s into the guest: %w", printable(f.Path), err)
	}
	return line, nil
}

func (r *Root) putFile(f File) (string, error) {
	if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" {
		return "", errors.New("want an absolute path, without . and .. in it")
	}
	uid, gid, err := r.owners(f.Owner, f.Group)
	if err != nil {
		return "", err
	}
	file, err := r.placeFile(f.Path, uid)
	if err != nil {
		return "", err
	}
	// What is secret is nobody else's to read, from its first byte on.
	if r.isFile(file) {
		if err := r.Chmod(file, 0o600); err != nil {
			return "", err
		}
	}
	if err := r.WriteFile(file, f.Contents, 0o600); err != nil {
		return "", err
	}
	if err := r.Chown(file, uid, gid); err != nil {
		return "", err
	}
	line := fmt.Sprintf("wrote %s, %d bytes, mode %04o, owner %d, group %d", printable(f.Path), len(f.Contents), f.Mode.Perm(), uid, gid)
	return line, r.Chmod(file, f.Mode.Perm())
}

// placeFile makes the directories of a file that is to be the owner's, and
// returns its path without links.
func (r *Root) placeFile(name string, owner int) (string, error) {
	dir, err := r.resolve(path.Dir(name))
	if err != nil {
		return "", fail("write", name, err)
	}
	if err := r.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	file, err := r.resolve(name)
	if err != nil {
		return "", fail("write", name, err)
	}
	_, err = r.unshare(file, owner)
	return file, err
}

// owners finds the numbers of an owner and a group. A number is one even where
// the guest has no user of it, whose group is then of the same number.
func (r *Root) owners(owner, group string) (uid, gid int, err error) {
	uid, isNumber := accountNumber(owner)
	switch {
	case owner == "" || owner == "root":
	case isNumber:
		gid = r.groupOf(uid)
	default:
		a, err := r.account(owner)
		if err != nil {
			return 0, 0, err
		}
		uid, gid = a.uid, a.gid
	}
	if group != "" {
		gid, err = r.groupNumber(group)
	}
	return uid, gid, err
}

func (r *Root) groupNumber(group string) (int, error) {
	if group == "root" { // which some systems call wheel
		return 0, nil
	}
	if gid, ok := accountNumber(group); ok {
		return gid, nil
	}
	gid, ok := r.group(group)
	if !ok {
		return 0, fmt.Errorf("the guest has no group %s", printable(group))
	}
	return gid, nil
}

// groupOf finds the group of a user by the user's number.
func (r *Root) groupOf(uid int) int {
	passwd, err := r.readAccounts(passwdFile)
	if err != nil {
		return uid
	}
	for fields := range passwd.entries {
		if n, ok := accountNumber(fields[2]); ok && n == uid {
			if gid, ok := accountNumber(fields[3]); ok {
				return gid
			}
		}
	}
	return uid
}
