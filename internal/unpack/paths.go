package unpack

import (
	"container/list"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/tree"
)

const (
	// maxParents is how many directories are kept open.
	maxParents = 64
	// maxTries is how often the kernel is asked again that was interrupted.
	maxTries = 40
)

// clean makes a name that has no empty components and none that are ".". It is
// "." for the root. One with ".." is an error.
func clean(name string) (string, error) {
	if simple(name) {
		return name, nil
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			return "", errors.New("its name has a component \"..\"")
		default:
			parts = append(parts, part)
		}
	}
	if strings.ContainsRune(name, 0) {
		return "", errors.New("its name has a zero byte")
	}
	if len(parts) == 0 {
		return ".", nil
	}
	return strings.Join(parts, "/"), nil
}

// simple tells names that are clean, and nearly all are.
func simple(name string) bool {
	return name != "" && name[0] != '/' && name[0] != '.' && name[len(name)-1] != '/' &&
		!strings.Contains(name, "//") && !strings.Contains(name, "/.") && strings.IndexByte(name, 0) < 0
}

// explain gives an error its sentence.
func (u *unpacking) explain(name string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = u.full(name, err)
	}
	return fmt.Errorf("cannot unpack %s: %w", tree.Quoted(name), err)
}

// full says how full the file system is that an entry belongs on. ENOSPC is
// also the answer to an attribute that is too large for an inode.
func (u *unpacking) full(name string, err error) error {
	dir, _, parentErr := u.parents.of(name)
	var fs unix.Statfs_t
	if parentErr != nil {
		dir = u.root
	}
	if unix.Fstatfs(dir, &fs) != nil {
		return fmt.Errorf("%w (%w)", ErrFull, err)
	}
	whole, free := size.Bytes(fs.Blocks)*size.Bytes(fs.Bsize), size.Bytes(fs.Bavail)*size.Bytes(fs.Bsize)
	switch {
	case errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: its quota is used up (%w)", ErrFull, err)
	case fs.Files > 0 && fs.Ffree == 0:
		return fmt.Errorf("%w: its %d inodes are used, with %s free of its %s (%w)", ErrFull, fs.Files, free, whole, err)
	}
	return fmt.Errorf("%w: it has %s, of which %s are free (%w)", ErrFull, whole, free, err)
}

// parents resolves the directories of names and keeps the last ones open.
type parents struct {
	root    int
	flusher *flusher
	open    map[string]*list.Element // of *parent
	order   list.List                // the one used last is in front
	made    int                      // directories the archive does not have
	last    *parent                  // the one asked for last
	stale   bool                     // a link was removed that may have led to one
}

type parent struct {
	name string
	fd   int
}

func newParents(root int, f *flusher) *parents {
	f.add(root)
	return &parents{root: root, flusher: f, open: map[string]*list.Element{}}
}

// of opens the directory that a clean name is in, and makes it where there is
// none. What it returned for the last two names is open.
func (p *parents) of(name string) (dir int, base string, err error) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return p.root, name, nil
	}
	dir, err = p.directory(name[:i])
	return dir, name[i+1:], err
}

func (p *parents) directory(name string) (int, error) {
	if p.stale {
		p.close()
	}
	if p.last != nil && p.last.name == name {
		return p.last.fd, nil
	}
	if e := p.open[name]; e != nil {
		p.order.MoveToFront(e)
		p.last = e.Value.(*parent)
		return p.last.fd, nil
	}
	fd, err := p.resolve(name, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) {
		fd, err = p.make(name)
	}
	if err != nil {
		return -1, fmt.Errorf("cannot open its directory: %w", err)
	}
	if len(p.open) == maxParents {
		oldest := p.order.Remove(p.order.Back()).(*parent)
		delete(p.open, oldest.name)
		unix.Close(oldest.fd)
	}
	p.last = &parent{name, fd}
	p.open[name] = p.order.PushFront(p.last)
	p.flusher.add(fd)
	return fd, nil
}

// isOpen tells whether a directory was resolved before and still counts.
func (p *parents) isOpen(name string) bool { return !p.stale && p.open[name] != nil }

// resolve opens a name below the root, which is "/" to all links on the way.
func (p *parents) resolve(name string, flags int) (int, error) {
	how := &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range maxTries {
		// EAGAIN: something was renamed on the node while ".." was resolved.
		fd, err := unix.Openat2(p.root, name, how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// make makes the directories of a name that are missing, and opens the last.
func (p *parents) make(name string) (int, error) {
	for i := 1; i <= len(name); i++ {
		if i < len(name) && name[i] != '/' {
			continue
		}
		fd, err := p.resolve(name[:i], unix.O_PATH|unix.O_DIRECTORY)
		if err == nil {
			unix.Close(fd)
			continue
		}
		if !errors.Is(err, unix.ENOENT) {
			return -1, err
		}
		if err := p.makeOne(name[:i]); err != nil {
			return -1, err
		}
	}
	return p.resolve(name, unix.O_PATH|unix.O_DIRECTORY)
}

func (p *parents) makeOne(name string) error {
	above, base := ".", name
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		above, base = name[:i], name[i+1:]
	}
	fd, err := p.resolve(above, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.Mkdirat(fd, base, 0o755)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s is a link that leads nowhere", tree.Quoted(name))
	}
	if err == nil {
		p.made++
		err = unix.Fchmodat(fd, base, 0o755, 0)
	}
	return err
}

// takeMade is how many directories were made since it was asked last.
func (p *parents) takeMade() int {
	n := p.made
	p.made = 0
	return n
}

// forget makes the next call resolve anew, since links may lead elsewhere now.
func (p *parents) forget() { p.stale = true }

func (p *parents) close() {
	for _, e := range p.open {
		unix.Close(e.Value.(*parent).fd)
	}
	clear(p.open)
	p.order.Init()
	p.last, p.stale = nil, false
}
