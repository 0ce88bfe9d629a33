// Package unpack puts the files of an archive below a directory, which is an
// empty file system that was mounted for them, perhaps with others below it.
//
// The archive is hostile. The directories of a name are resolved by the kernel
// with the directory as "/" (openat2 with RESOLVE_IN_ROOT), so that links that
// the archive brought lead inside it, as they will in the guest; the last
// component is followed only where a directory comes in the place of a link, and
// no file that is there is opened to be written. Names with ".." are refused.
//
// What stands in the place of a new file is removed first, unless it is a
// directory, which is an error. A directory in the place of a directory, or of a
// link to one, changes its mode, owner, attributes and times. Directories that
// the archive does not have are made, mode 0755, of root.
//
// A file system that does not take an attribute or inode flags, or FAT an owner,
// is no error: it is counted and the first such case is told. But what decides
// about access is never left out silently: where security.capability or an access
// control list cannot be set, that is an error.
//
// Left out: creation and change times, access times that the archive does not
// have, and inode flags other than immutable, append-only, no access times and
// no dump; those of more than 200 000 files are counted with what is skipped.
package unpack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/tree"
)

const (
	// maxEntries is what Options.MaxEntries is where it is 0.
	maxEntries = 20_000_000
	// maxKept bounds the memory of what is kept by name until the end.
	maxKept = 256 * size.MiB
	// maxFlagged bounds the files whose inode flags are set.
	maxFlagged = 200_000
	// reportEvery is how often Options.Progress is called.
	reportEvery = 10 * time.Second
)

// ErrFull is wrapped by the error for a file system that has no room or no
// inodes left, or no more than its quota allows.
var ErrFull = errors.New("the file system is full")

// Options change how Into works.
type Options struct {
	// MaxEntries is how many entries an archive may have, 20 million where it
	// is 0.
	MaxEntries int
	// Progress is called every 10 seconds, where it is not nil, between two
	// writes.
	Progress func(Stats)

	maxKept size.Bytes // 256 MiB where it is 0
}

// Stats are what was unpacked.
type Stats struct {
	Entries     int
	Files       int        // regular ones
	Directories int        // with those the archive does not have
	Links       int        // hard links
	Copies      int        // hard links across file systems, which were copied
	Bytes       size.Bytes // written to files
	// Skipped counts the attributes, owners and inode flags that a file system did
	// not take, or that are of a directory whose name leads elsewhere at the end;
	// FirstSkipped is a sentence about the first.
	Skipped      int
	FirstSkipped string
}

// lateSource is a source that knows attributes only behind the content: Late is
// called once after Next for each entry that is no directory or hard link, behind
// the content of a regular file, and returns the same entry with its attributes.
type lateSource interface {
	Late() (*tree.Entry, error)
}

// amendingSource is a source that knows some attributes only at its end.
// Amendments is called after Next returned io.EOF; of what it returns Name and
// Xattrs count, and those are added to the file or directory of that name. One
// that is not there any more, or of another kind by now, is passed over. Where the
// archive has the name more than once, and not as many amendments to the access
// control list, it is an error, since it cannot be told which file is meant.
type amendingSource interface {
	Amendments() []tree.Entry
}

// unpacking is one archive on its way to the file system.
type unpacking struct {
	ctx     context.Context
	options Options
	src     tree.Source
	late    lateSource // nil where src is none
	root    int
	parents *parents
	stats   Stats
	report  time.Time // when it is due

	flusher *flusher

	directories map[string]*directory
	came        int // how many directories did
	flagged     map[identity]flagged
	replaced    map[string]int // names that files were removed from, and how many; nil where src does not amend
	kept        size.Bytes     // the memory of these
}

// Into unpacks all of src below dir and waits until it is on the disk. The
// errors say which entry it is about, but for a SourceError and that of a ctx that
// is done; what was unpacked up to there stays. It and stats are complete only
// where the error is nil.
func Into(ctx context.Context, dir string, src tree.Source, options Options) (stats Stats, err error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Stats{}, fmt.Errorf("cannot unpack into %s: %w", dir, err)
	}
	defer unix.Close(root)
	if options.MaxEntries == 0 {
		options.MaxEntries = maxEntries
	}
	u := &unpacking{ctx: ctx, options: options, src: src, root: root, report: time.Now().Add(reportEvery)}
	if options.maxKept == 0 {
		u.options.maxKept = maxKept
	}
	u.directories, u.flagged = map[string]*directory{}, map[identity]flagged{}
	if _, ok := src.(amendingSource); ok {
		u.replaced = map[string]int{}
	}
	u.late, _ = src.(lateSource)
	u.flusher = newFlusher()
	defer u.flusher.close()
	u.parents = newParents(root, u.flusher)
	defer u.parents.close()
	if err := u.all(); err != nil {
		return u.stats, err
	}
	return u.stats, u.flusher.finish()
}

func (u *unpacking) all() error {
	for {
		if err := u.pause(); err != nil {
			return err
		}
		e, err := u.src.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return u.ofSource(err)
		}
		if u.stats.Entries++; u.stats.Entries > u.options.MaxEntries {
			return fmt.Errorf("cannot unpack %s: the archive has more than %d entries", tree.Quoted(e.Name), u.options.MaxEntries)
		}
		if err := u.entry(e); err != nil {
			return err
		}
	}
	if err := u.finishDirectories(); err != nil {
		return err
	}
	if err := u.amend(); err != nil {
		return err
	}
	return u.setFlags()
}

// pause ends the work where it was cancelled, and reports.
func (u *unpacking) pause() error {
	if u.ctx.Err() != nil {
		return stopped{fmt.Errorf("unpacking was stopped: %w", context.Cause(u.ctx))}
	}
	if u.options.Progress != nil && u.stats.Entries%64 == 0 && time.Now().After(u.report) {
		u.options.Progress(u.stats)
		u.report = time.Now().Add(reportEvery)
	}
	return nil
}

func (u *unpacking) entry(e *tree.Entry) error {
	name, err := clean(e.Name)
	if err != nil {
		return fmt.Errorf("cannot unpack %s: %w", tree.Quoted(e.Name), err)
	}
	if e.Type == tree.Directory {
		return u.explain(name, u.directory(name, e))
	}
	if name == "." {
		return errors.New("cannot unpack the archive: its root is no directory")
	}
	err = u.file(name, e)
	var source SourceError
	if errors.As(err, &source) {
		return source
	}
	var stop stopped
	if errors.As(err, &stop) {
		return stop
	}
	return u.explain(name, err)
}

// SourceError is an error that the archive's Source returned, so that the archive
// is to blame and not the file system. Its text is that of Err.
type SourceError struct{ Err error }

func (e SourceError) Error() string { return e.Err.Error() }

// Unwrap is Err.
func (e SourceError) Unwrap() error { return e.Err }

// ofSource marks an error of the source. Where the work was cancelled, that is
// what made a source fail that reads until it is.
func (u *unpacking) ofSource(err error) error {
	if u.ctx.Err() != nil {
		return stopped{err}
	}
	return SourceError{err}
}

// stopped is the error of work that was cancelled, whatever the entry.
type stopped struct{ error }

func (e stopped) Unwrap() error { return e.error }

// file makes what is no directory.
func (u *unpacking) file(name string, e *tree.Entry) error {
	dir, base, err := u.parents.of(name)
	if err != nil {
		return err
	}
	u.stats.Directories += u.parents.takeMade()
	switch e.Type {
	case tree.Regular:
		return u.regular(name, dir, base, e)
	case tree.HardLink:
		return u.hardLink(name, dir, base, e)
	case tree.Symlink:
		err = u.place(name, dir, base, func() error { return unix.Symlinkat(e.Target, dir, base) })
	case tree.CharDevice, tree.BlockDevice, tree.FIFO, tree.Socket:
		var number uint64
		if number, err = device(e); err == nil {
			err = u.place(name, dir, base, func() error { return unix.Mknodat(dir, base, nodeTypes[e.Type]|0o600, int(number)) })
		}
	default:
		err = fmt.Errorf("it is of the unknown type %d", e.Type)
	}
	if err != nil {
		return err
	}
	if e, err = u.complete(e); err != nil {
		return err
	}
	return u.describeNode(name, dir, base, e)
}

// complete waits for the attributes of an entry whose content was read.
func (u *unpacking) complete(e *tree.Entry) (*tree.Entry, error) {
	if u.late == nil {
		return e, nil
	}
	e, err := u.late.Late()
	if err != nil {
		return nil, u.ofSource(err)
	}
	return e, nil
}

// place makes a file with make, and once more after what is in its place was
// removed.
func (u *unpacking) place(name string, dir int, base string, make func() error) error {
	err := make()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := u.vacate(name, dir, base); err != nil {
		return err
	}
	return make()
}

// vacate removes a file that is no directory. What led through it, if it was a
// link, now leads elsewhere; and its inode may become that of another file.
func (u *unpacking) vacate(name string, dir int, base string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	err := unix.Unlinkat(dir, base, 0)
	if errors.Is(err, unix.EISDIR) {
		return errors.New("it is a directory already, and not one this time")
	}
	u.parents.forget()
	if err == nil && st.Nlink == 1 {
		u.forgetFlags(identityOf(&st))
	}
	if err == nil {
		err = u.keepReplaced(name)
	}
	return err
}

var nodeTypes = map[tree.Type]uint32{
	tree.CharDevice: unix.S_IFCHR, tree.BlockDevice: unix.S_IFBLK, tree.FIFO: unix.S_IFIFO, tree.Socket: unix.S_IFSOCK,
}

// device is the number of a device, 0 of other nodes. The kernel has 12 bits for
// the major and 20 for the minor number.
func device(e *tree.Entry) (uint64, error) {
	if e.Type != tree.CharDevice && e.Type != tree.BlockDevice {
		return 0, nil
	}
	if e.Major >= 1<<12 || e.Minor >= 1<<20 {
		return 0, fmt.Errorf("no device has the number %d:%d", e.Major, e.Minor)
	}
	return unix.Mkdev(e.Major, e.Minor), nil
}

// regular makes a file with its content.
func (u *unpacking) regular(name string, dir int, base string, e *tree.Entry) (err error) {
	if e.Size < 0 {
		return fmt.Errorf("its size is %d", e.Size)
	}
	fd := -1
	err = u.place(name, dir, base, func() error {
		fd, err = unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_LARGEFILE, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	u.stats.Files++
	if err := u.content(fd, e); err != nil {
		return err
	}
	if e, err = u.complete(e); err != nil {
		return err
	}
	return u.describe(name, fd, e)
}

// content writes the stretches of data and leaves holes between them.
func (u *unpacking) content(fd int, e *tree.Entry) error {
	end := int64(0)
	for {
		at, data, err := u.src.Data()
		if err == io.EOF {
			break
		}
		if err != nil {
			return u.ofSource(err)
		}
		if at < end || int64(len(data)) > e.Size-at {
			return fmt.Errorf("its content at offset %d is not within its %d bytes", at, e.Size)
		}
		if err := writeAt(fd, data, at); err != nil {
			return fmt.Errorf("cannot write at offset %d: %w", at, err)
		}
		end = at + int64(len(data))
		u.stats.Bytes += size.Bytes(len(data))
		u.flusher.wrote(len(data))
		if err := u.pause(); err != nil {
			return err
		}
	}
	if end < e.Size {
		return unix.Ftruncate(fd, e.Size)
	}
	return nil
}

func writeAt(fd int, data []byte, at int64) error {
	for len(data) > 0 {
		n, err := unix.Pwrite(fd, data, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		data, at = data[n:], at+int64(n)
	}
	return nil
}
