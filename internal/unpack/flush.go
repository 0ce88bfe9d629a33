package unpack

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
)

// flushEvery is how much is written before it is sent to the disk. The kernel
// would begin when a tenth of the memory is dirty, and most images have less: it
// would all be left to the end, when nothing else is done any more.
const flushEvery = 64 * size.MiB

// flusher sends what was written to the disk while more is unpacked.
type flusher struct {
	written size.Bytes // since it was sent last
	due     chan struct{}
	done    sync.WaitGroup

	known map[uint64]bool // file systems, by their devices
	mu    sync.Mutex      // of open
	open  []int           // a directory of each
	err   error           // of flush, which runs once at a time
}

func newFlusher() *flusher {
	f := &flusher{due: make(chan struct{}, 1), known: map[uint64]bool{}}
	f.done.Go(func() {
		for range f.due {
			f.flush()
		}
	})
	return f
}

// add takes the file system that a directory is on.
func (f *flusher) add(dir int) {
	var st unix.Stat_t
	if unix.Fstat(dir, &st) != nil || f.known[uint64(st.Dev)] {
		return
	}
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	f.known[uint64(st.Dev)] = true
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open = append(f.open, fd)
}

func (f *flusher) wrote(n int) {
	if f.written += size.Bytes(n); f.written < flushEvery {
		return
	}
	select {
	case f.due <- struct{}{}:
		f.written = 0
	default:
	}
}

// flush keeps the first error: the kernel tells it once.
func (f *flusher) flush() {
	f.mu.Lock()
	open := f.open[:len(f.open):len(f.open)]
	f.mu.Unlock()
	for _, fd := range open {
		if err := unix.Syncfs(fd); err != nil && f.err == nil {
			f.err = flushError(err)
		}
	}
}

// flushError explains the answer of syncfs(2), which is where a file system is
// found full that finds room for what was written only now.
func flushError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = fmt.Errorf("%w (%w)", ErrFull, err)
	}
	return fmt.Errorf("cannot write what was unpacked to the disk: %w", err)
}

// finish sends the rest and waits for it.
func (f *flusher) finish() error {
	f.stop()
	f.flush()
	return f.err
}

func (f *flusher) stop() {
	if f.due != nil {
		close(f.due)
		f.done.Wait()
		f.due = nil
	}
}

// close releases the file systems, so that they can be unmounted.
func (f *flusher) close() {
	f.stop()
	for _, fd := range f.open {
		unix.Close(fd)
	}
}
