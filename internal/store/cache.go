package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/undo"
)

// partPrefix begins the names of files that are being written in CACHE_DIR.
// Each is locked (flock) by the process that writes it, so that one that is not
// locked is known to be left over from a process that was killed.
const partPrefix = ".part-"

// newPart makes a file to write to in the cache, locked, and removes what killed
// processes left there.
func newPart(dir, name string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make CACHE_DIR: %w", err)
	}
	sweep(dir)
	for range 100 {
		part, err := os.CreateTemp(dir, partPrefix+"*-"+name)
		if err != nil {
			return nil, fmt.Errorf("cannot write to CACHE_DIR: %w", err)
		}
		if isOurs(part) {
			return part, nil
		}
		part.Close()
	}
	return nil, fmt.Errorf("cannot keep a file in CACHE_DIR %s: another process removes it again and again", dir)
}

// isOurs locks a new file and tells whether another process's sweep took it for
// a leftover in the moment before.
func isOurs(part *os.File) bool {
	if errors.Is(flock(part), unix.EWOULDBLOCK) {
		return false
	}
	// Any other error means that there are no locks here, and so no sweep.
	mine, err := part.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(part.Name())
	return err == nil && os.SameFile(mine, named)
}

func flock(f *os.File) error {
	for {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// sweep removes the part files that no process holds.
func sweep(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // making the new file will say why
	}
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), partPrefix) || !entry.Type().IsRegular() {
			continue
		}
		part, err := os.OpenFile(filepath.Join(dir, entry.Name()), os.O_RDWR|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if flock(part) == nil && os.Remove(part.Name()) == nil {
			slog.Info("removed what a killed download left", "path", part.Name())
		}
		part.Close()
	}
}

// discard removes a part and gives up its lock. One that was published is no
// part any more, and stays.
func discard(part *os.File) error {
	if err := os.Remove(part.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, part.Close())
	}
	if err := part.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return err
	}
	return nil
}

// publish gives a part its name, at once and for good, and closes it.
func publish(part *os.File, path string) error {
	if err := part.Sync(); err != nil {
		return fmt.Errorf("cannot flush the download: %w", err)
	}
	if err := os.Rename(part.Name(), path); err != nil {
		return fmt.Errorf("cannot keep the download: %w", err)
	}
	if err := part.Close(); err != nil {
		return fmt.Errorf("cannot keep the download: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("cannot flush CACHE_DIR: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("cannot flush CACHE_DIR: %w", err)
	}
	return nil
}

// keep publishes an image in the cache with the record of what it is.
func (st *store) keep(part *os.File, src source, sum digest, header http.Header) error {
	// What is recorded of an image that was there before is not true of this one.
	if err := os.Remove(src.cached + recordEnding); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot replace the image in CACHE_DIR: %w", err)
	}
	info, err := part.Stat()
	if err != nil {
		return fmt.Errorf("cannot keep the download: %w", err)
	}
	if err := publish(part, src.cached); err != nil {
		return err
	}
	rec := record{URL: redacted(src.url), ETag: header.Get("ETag"), LastModified: header.Get("Last-Modified")}
	rec.setSum(sum, info)
	writeRecord(src.cached, rec)
	return nil
}

// record is what is known of a file in the cache, kept beside it as JSON.
type record struct {
	URL          string `json:"url,omitempty"` // where it came from, without user, password and query
	Algorithm    string `json:"algorithm,omitempty"`
	Digest       string `json:"digest,omitempty"` // the checksum at the server that it agreed with
	Size         int64  `json:"size"`             // in bytes; with ModTime it tells whether the file is still that one
	ModTime      int64  `json:"mtime_ns"`
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"last_modified,omitempty"`
}

const (
	recordEnding = ".source"
	recordLimit  = 64 * size.KiB
)

func (r *record) setSum(sum digest, info fs.FileInfo) {
	r.Algorithm, r.Digest = sum.algorithm, sum.hex
	r.Size, r.ModTime = info.Size(), info.ModTime().UnixNano()
}

func (r record) sum() digest {
	if newHash(r.Algorithm) == nil || r.Digest == "" {
		return digest{}
	}
	return digest{r.Algorithm, r.Digest}
}

func (r record) isOf(info fs.FileInfo) bool {
	return r.Size == info.Size() && r.ModTime == info.ModTime().UnixNano()
}

// condition asks the server for the file only if it is no longer the one that
// was recorded, and without one is nil.
func (r record) condition(path string) http.Header {
	info, err := os.Stat(path)
	if err != nil || !r.isOf(info) {
		return nil
	}
	header := http.Header{}
	if r.ETag != "" {
		header.Set("If-None-Match", r.ETag)
	}
	if r.LastModified != "" {
		header.Set("If-Modified-Since", r.LastModified)
	}
	return header
}

// readRecord returns the record of a file; one that is missing or damaged is
// empty, and the file is looked at anew.
func readRecord(path string) record {
	f, err := os.Open(path + recordEnding)
	if err != nil {
		return record{}
	}
	defer f.Close()
	var rec record
	if err := json.NewDecoder(io.LimitReader(f, int64(recordLimit))).Decode(&rec); err != nil {
		return record{}
	}
	return rec
}

// writeRecord writes the record of a file. Without it the file is only looked at
// more closely the next time, so a failure is no more than a warning.
func writeRecord(path string, rec record) {
	if err := replaceRecord(path+recordEnding, rec); err != nil {
		slog.Warn("cannot record what an image in the cache is; it will be read once more the next time", "path", path, "error", err)
	}
}

func replaceRecord(path string, rec record) (err error) {
	text, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return err
	}
	var steps undo.Stack
	defer steps.Unwind(&err)
	part, err := newPart(filepath.Dir(path), filepath.Base(path))
	if err != nil {
		return err
	}
	steps.OnFailure("remove a temporary file", func() error { return discard(part) })
	if _, err := part.Write(append(text, '\n')); err != nil {
		return err
	}
	return publish(part, path)
}

// matches tells whether a file is there and has the checksum. One that was found
// to be so and has not been touched since is not read again.
func matches(ctx context.Context, path string, want digest) (bool, error) {
	if there, err := regular(path); !there {
		return false, err
	}
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	rec := readRecord(path)
	if rec.isOf(info) && rec.Algorithm == want.algorithm {
		return rec.sum() == want, nil
	}
	_, sum, err := copySum(ctx, nil, f, want.algorithm, newProgress("reading the image in the cache", size.Bytes(info.Size()), "path", path))
	if err != nil || sum != want {
		return false, err
	}
	if !rec.isOf(info) {
		rec = record{}
	}
	rec.setSum(sum, info)
	writeRecord(path, rec)
	return true, nil
}
