package hook

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const (
	settle = 200 * time.Millisecond // for what a hook piped its output to, to end by itself
	polite = time.Second            // from SIGTERM to SIGKILL for what a hook left
	firm   = 5 * time.Second        // for the kernel to end what was killed
	poll   = 5 * time.Millisecond
)

// process is one of proc(5).
type process struct {
	pid, parent int
	name        string
	started     uint64 // in clock ticks after boot: with pid it tells processes apart
	zombie      bool
}

func (p process) String() string { return p.name + " (" + strconv.Itoa(p.pid) + ")" }

// snapshot is what was there before a hook was started.
type snapshot struct {
	proc      *os.File       // a proc(5) of our own pid namespace
	processes map[int]uint64 // by id, when they started
	mounts    map[mountKey]bool
}

// mountKey tells a mount from others. Its id alone does not: the kernel gives an
// id again when the mount that had it is gone.
type mountKey struct {
	id, parent          int
	where, root, source string
}

func keyOf(m *mountinfo.Info) mountKey {
	return mountKey{m.ID, m.Parent, m.Mountpoint, m.Root, m.Source}
}

// look notes what is there, and has programs whose parent ends become our
// children, as those of the first process of a pid namespace are anyway.
func (r Runner) look() (snapshot, error) {
	s := snapshot{processes: map[int]uint64{}, mounts: map[mountKey]bool{}}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return s, fmt.Errorf("cannot become the parent of what it starts: %w", err)
	}
	if r.Alone {
		mounts, err := mountinfo.GetMounts(nil)
		if err != nil {
			return s, fmt.Errorf("cannot list what is mounted: %w", err)
		}
		for _, m := range mounts {
			s.mounts[keyOf(m)] = true
		}
	}
	var err error
	if s.proc, err = openProc(); err != nil {
		return s, err
	}
	for _, p := range s.all() {
		s.processes[p.pid] = p.started
	}
	return s, nil
}

// openProc opens a proc(5) that shows the process ids this process sees. The
// one on /proc may be that of the pid namespace we were started from.
func openProc() (*os.File, error) {
	self, err := os.Readlink("/proc/self")
	if err == nil && self == strconv.Itoa(os.Getpid()) {
		return os.Open("/proc")
	}
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot list processes: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("cannot list processes: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot list processes: %w", err)
	}
	return os.NewFile(uintptr(fd), "proc"), nil
}

// all are all processes that can be seen. One that ends meanwhile is left out.
func (s snapshot) all() []process {
	dir := "/proc/self/fd/" + strconv.Itoa(int(s.proc.Fd())) + "/"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var found []process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(dir + entry.Name() + "/stat")
		if err != nil {
			continue
		}
		if p, ok := parseStat(pid, stat); ok {
			found = append(found, p)
		}
	}
	return found
}

// parseStat reads /proc/PID/stat, see proc_pid_stat(5). The name, in
// parentheses, may hold any byte.
func parseStat(pid int, stat []byte) (process, bool) {
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return process{}, false
	}
	fields := strings.Fields(string(stat[end+1:])) // from the third on
	if len(fields) < 20 {
		return process{}, false
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return process{}, false
	}
	started, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return process{}, false
	}
	name := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, string(stat[open+1:end]))
	return process{pid: pid, parent: parent, name: name, started: started, zombie: fields[0] == "Z" || fields[0] == "X"}, true
}

// started returns the living descendants of this process that were not there
// before, whatever session or process group they are in. Those of its children
// that ended already are waited for.
func (s snapshot) started() []process {
	all := s.all()
	family := map[int]bool{os.Getpid(): true}
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if family[p.parent] && !family[p.pid] {
				family[p.pid], grown = true, true
			}
		}
	}
	return slices.DeleteFunc(all, func(p process) bool {
		return !family[p.pid] || p.pid == os.Getpid() || p.zombie || s.processes[p.pid] == p.started
	})
}

// reap waits for our children that have ended. It must not be called while
// another part of the program waits for a child.
func (s snapshot) reap() {
	for _, p := range s.all() {
		if p.zombie && p.parent == os.Getpid() && s.processes[p.pid] != p.started {
			_, _ = unix.Wait4(p.pid, nil, unix.WNOHANG, nil)
		}
	}
}

// endProcesses ends what was started and is still there after a while, and
// returns its names. What was asked to stop already is not asked again.
func (s snapshot) endProcesses(asked bool) ([]string, error) {
	defer s.reap()
	patience := settle
	if asked {
		patience = polite
	}
	left := s.wait(patience)
	var names []string
	for _, p := range left {
		names = append(names, p.String())
	}
	if !asked && len(left) > 0 {
		signal(left, unix.SIGTERM)
		left = s.wait(polite)
	}
	for end := time.Now().Add(firm); len(left) > 0; left = s.wait(poll) {
		if time.Now().After(end) {
			return names, fmt.Errorf("%v does not end", left[0])
		}
		signal(left, unix.SIGKILL) // again and again: it may start others meanwhile
	}
	return names, nil
}

func signal(processes []process, what unix.Signal) {
	for _, p := range processes {
		_ = unix.Kill(p.pid, what)
	}
}

// wait waits until nothing is left of what was started, at most so long, and
// returns what is.
func (s snapshot) wait(atMost time.Duration) []process {
	for end := time.Now().Add(atMost); ; time.Sleep(poll) {
		left := s.started()
		if len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}

// unmount unmounts what was mounted since, the last first, and returns where it
// was. What the node itself mounted meanwhile shows in a namespace as well, as
// the copy of a mount elsewhere: outside the guest such copies are not heeded.
func (s snapshot) unmount(target string) ([]string, error) {
	var released []string
	for {
		mounts, err := mountinfo.GetMounts(nil)
		if err != nil {
			return released, fmt.Errorf("cannot list what is mounted: %w", err)
		}
		done, err := s.unmountOf(mounts, target)
		released = append(released, done...)
		if err == nil || len(done) == 0 {
			return released, err
		}
	}
}

func (s snapshot) unmountOf(mounts []*mountinfo.Info, target string) ([]string, error) {
	var released []string
	var errs []error
	for _, m := range slices.Backward(mounts) {
		below := target != "" && (m.Mountpoint == target || strings.HasPrefix(m.Mountpoint, target+"/"))
		if s.mounts[keyOf(m)] || !below && strings.Contains(m.Optional, "master:") {
			continue
		}
		if err := unix.Unmount(m.Mountpoint, unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", m.Mountpoint, err))
			continue
		}
		released = append(released, m.Mountpoint)
	}
	return released, errors.Join(errs...)
}
