package mount

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/block"
)

// Below runDir, which is empty after a boot: where instances' file systems are
// kept mounted, what is known of each of them, and the locks of those at work.
const (
	runDir    = "/run/ganeti-instance-image"
	keptDir   = runDir + "/mounts"
	recordDir = runDir + "/mounted"
	lockDir   = runDir + "/locks"
)

// record says what was mounted of an instance. It is written before anything is
// mounted and removed after everything was unmounted, so that at any time it
// names the disks whose loop devices are ours.
type record struct {
	Instance string
	Boot     string // the run of the node's kernel it is about
	ReadOnly bool
	Whole    bool // mounting came to its end
	Disks    []recordedDisk
}

type recordedDisk struct {
	Path string
	ID   block.ID
}

// ErrAtWork is wrapped by the error for an instance that another process is at
// work on.
var ErrAtWork = errors.New("another command is at work on it")

// instanceName is what Ganeti takes as one; it can be a file's name.
var instanceName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$`)

// Lock is held while an instance's file systems are mounted or unmounted. On the
// master, that of scope "master" is held around what the node does.
func Lock(scope, instance string) (unlock func() error, err error) {
	if !instanceName.MatchString(instance) {
		return nil, fmt.Errorf("cannot use %q: it is no instance's name", instance)
	}
	path := filepath.Join(lockDir, scope, instance)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the directory for locks: %w", err)
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the instance %s: %w", instance, err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrAtWork
		}
		return nil, fmt.Errorf("cannot lock the instance %s: %w", instance, err)
	}
	return file.Close, nil
}

// bootID names this run of the kernel.
func bootID() string {
	text, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text))
}

// readRecord returns what was mounted of an instance since the node was booted,
// nil for nothing.
func readRecord(instance string) (*record, error) {
	path := filepath.Join(recordDir, instance)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	r := &record{}
	if err == nil {
		err = json.Unmarshal(text, r)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read what is mounted of %s from %s: %w", instance, path, err)
	}
	if r.Boot != bootID() {
		return nil, nil
	}
	return r, nil
}

// write stores the record in one step.
func (r *record) write() (err error) {
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(recordDir, 0o700); err != nil {
		return fmt.Errorf("cannot record what is mounted: %w", err)
	}
	file, err := os.CreateTemp(recordDir, ".new-")
	if err != nil {
		return fmt.Errorf("cannot record what is mounted: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(file.Name())
		}
	}()
	_, err = file.Write(append(text, '\n'))
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("cannot record what is mounted: %w", err)
	}
	if err := os.Rename(file.Name(), filepath.Join(recordDir, r.Instance)); err != nil {
		return fmt.Errorf("cannot record what is mounted: %w", err)
	}
	return nil
}

func removeRecord(instance string) error {
	if err := os.Remove(filepath.Join(recordDir, instance)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove the record of what is mounted: %w", err)
	}
	return nil
}

// about tells whether the mount is of a disk of the record.
func (r *record) about(m block.MountPoint) bool {
	for _, d := range r.Disks {
		if d.ID.Behind(m.Source) {
			return true
		}
	}
	return false
}
