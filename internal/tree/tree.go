// Package tree is what an archive of files holds, entry by entry, whatever its
// format: package tarball and package dump read it, package unpack puts it on a
// file system.
//
// Left out: comparing trees, and walking those of a mounted file system.
package tree

import (
	"fmt"
	"time"
)

// Type is the kind of an Entry.
type Type byte

// The types.
const (
	Regular Type = iota + 1
	Directory
	Symlink
	HardLink
	CharDevice
	BlockDevice
	FIFO
	Socket
)

// Names of extended attributes that mean something to the kernel.
const (
	AccessACL  = "system.posix_acl_access"
	DefaultACL = "system.posix_acl_default"
	Capability = "security.capability"
)

// maxQuoted is how many bytes of a name Quoted has.
const maxQuoted = 200

// Quoted is a name as an error has it: an archive's can have any byte and length.
func Quoted(name string) string {
	if len(name) > maxQuoted {
		return fmt.Sprintf("%q...", name[:maxQuoted])
	}
	return fmt.Sprintf("%q", name)
}

// Entry is one name of the archive and what it stands for.
type Entry struct {
	// Name is where the entry belongs, relative to the tree's root and with "/"
	// between components, as the archive has it but for a leading "./" or "/"
	// and trailing slashes. "." is the root itself. It is not checked.
	Name string
	Type Type
	// Target is what a Symlink says; of a HardLink the Name of an earlier entry
	// that is no directory. It is not checked.
	Target string

	Mode       uint32 // permission bits with set-id and sticky: 07777
	UID, GID   uint32
	ModTime    time.Time
	AccessTime time.Time // zero where the archive has none
	Size       int64     // bytes, of a Regular entry: with its holes
	// Major and Minor are the numbers of a device.
	Major, Minor uint32
	// Xattrs are the extended attributes in the form in which setxattr(2) takes
	// them, by their whole names: Capability, AccessACL, "user.x".
	Xattrs map[string][]byte
	// Flags are the inode flags of ext2, FS_IMMUTABLE_FL and so on, of ioctl_iflags(2).
	Flags uint32
}

// Source is an archive that is read from its beginning to its end.
type Source interface {
	// Next goes on to the next entry. What is unread of the last one's content
	// is skipped. Its error is io.EOF after the last entry, once everything the
	// archive has to check itself by was checked.
	Next() (*Entry, error)
	// Data returns the next stretch of the current Regular entry's content that
	// is not a hole: where it belongs, which is never before the end of the
	// last one, and the bytes, which are valid until the next call. Its error is
	// io.EOF after the last stretch.
	Data() (offset int64, data []byte, err error)
}
