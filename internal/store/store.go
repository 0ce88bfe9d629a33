// Package store finds the file that is the image of an instance: one that the
// administrator named or put into IMAGE_DIR, or one that is downloaded into
// CACHE_DIR, compared with the checksum published beside it and kept there for
// the next instance.
//
// A downloaded image is kept as STEM.HASH.EXT, where HASH is of the directory
// of its URL, so that two places that use one file name are never confused. A
// file NAME-ARCH.EXT that lies in CACHE_DIR already (the Bash version kept its
// downloads under that name, and administrators put files there) is used where
// it agrees with its checksum, and is never changed or removed. FILE.source
// beside a copy says where it came from and what it was found to be.
//
// Left out: resuming a broken download, sharing one download between creates
// that run at once (each makes its own, the last one stays), signatures,
// pinning and pruning.
package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ganeti-instance-image/internal/settings"
	"ganeti-instance-image/internal/size"
)

// Found is the image of an instance.
type Found struct {
	Path string // a regular file, or a link to one
	Boot string // the dump of /boot beside one of the root file system; "" where there is none
	Type string // "dump", "tarball", "qcow2", "qemu" (told by its content) or "raw"
	Told bool   // IMAGE_TYPE says so; else it is what the name suggests
	Sum  string // the checksum it agrees with, as in "sha256:0a1b..."; "" for one that was not compared

	// Cleanup removes what was downloaded for this instance alone, as
	// IMAGE_CLEANUP=yes asks for. It is never nil, does nothing in all other
	// cases, and must be called when the image is no longer read.
	Cleanup func() error
}

// stallAfter is how long a server may send nothing.
const stallAfter = 60 * time.Second

// store is what one call of Find works with.
type store struct {
	settings *settings.Settings
	machine  string
	client   *client
}

// Find returns the image that the settings ask for, after it was downloaded and
// checked where IMAGE_URL says so. The machine is the node's, as uname(2) has
// it, and decides which names are tried where ARCH is not set. The error says
// which setting asked for what and what can be done.
func Find(ctx context.Context, s *settings.Settings, machine string) (Found, error) {
	st := &store{settings: s, machine: machine, client: newClient(s.Environ(), stallAfter)}
	defer st.client.http.CloseIdleConnections()
	return st.find(ctx)
}

// Fetch downloads a small file, as user-data, and returns its bytes. The error
// names the URL without user, password and query. A file of more than limit
// bytes is an error.
func Fetch(ctx context.Context, s *settings.Settings, rawURL string, limit size.Bytes) ([]byte, error) {
	u, err := parseURL(rawURL)
	if err != nil {
		return nil, err
	}
	c := newClient(s.Environ(), stallAfter)
	defer c.http.CloseIdleConnections()
	return c.small(ctx, u, limit)
}

func (st *store) find(ctx context.Context) (Found, error) {
	s := st.settings
	switch {
	case s.ImageFile != "":
		return st.file()
	case s.ImageURL != "":
		return st.remote(ctx)
	}
	return st.local()
}

// file returns IMAGE_FILE, which has any name.
func (st *store) file() (Found, error) {
	s := st.settings
	if err := checkType(s); err != nil {
		return Found{}, err
	}
	from := fmt.Sprintf("IMAGE_FILE (%s)", s.Origin("IMAGE_FILE"))
	if !filepath.IsAbs(s.ImageFile) {
		return Found{}, fmt.Errorf("%s is %q: it must be a full path, beginning with /", from, s.ImageFile)
	}
	there, err := regular(s.ImageFile)
	if err == nil && !there {
		err = fmt.Errorf("%s is not on this node", s.ImageFile)
	}
	if err != nil {
		return Found{}, fmt.Errorf("cannot use the image that %s names: %w", from, err)
	}
	imageType := s.ImageType
	if isAuto(imageType) {
		imageType, _ = typeOf(filepath.Base(s.ImageFile))
	}
	return st.withBoot(st.found(s.ImageFile, imageType, digest{}))
}

// local looks for the names in IMAGE_DIR.
func (st *store) local() (Found, error) {
	names, err := st.names()
	if err != nil {
		return Found{}, err
	}
	for _, name := range names {
		path := filepath.Join(st.settings.ImageDir, name.file)
		there, err := regular(path)
		if err != nil {
			return Found{}, fmt.Errorf("cannot use the image %s: %w", st.settings.ImageName, err)
		}
		if there {
			return st.withBoot(st.found(path, name.imageType, digest{}))
		}
	}
	return Found{}, st.notLocal()
}

func (st *store) notLocal() error {
	s := st.settings
	text := fmt.Sprintf("cannot find the image %s (IMAGE_NAME: %s) in IMAGE_DIR %s: looked for %s",
		s.ImageName, s.Origin("IMAGE_NAME"), s.ImageDir, st.tried())
	if near := alike(s.ImageDir, s.ImageName); len(near) > 0 {
		text += "; there is " + strings.Join(near, ", ") + ": correct IMAGE_NAME, ARCH or IMAGE_TYPE"
	} else {
		text += "; put the image there under one of these names, correct IMAGE_NAME, or set IMAGE_URL"
	}
	return errors.New(text)
}

// alike lists a few images of a directory whose names begin with name.
func alike(dir, name string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // the error being made says which directory
	}
	var near []string
	for _, entry := range entries {
		_, known := typeOf(entry.Name())
		if known && strings.HasPrefix(entry.Name(), name) && len(near) < 5 {
			near = append(near, entry.Name())
		}
	}
	return near
}

// regular tells whether there is a file. One that is there and is not regular,
// or is a link to nothing, is an error.
func regular(path string) (bool, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(path); err == nil {
			return false, fmt.Errorf("%s is a link to a file that does not exist", path)
		}
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !info.Mode().IsRegular() {
		return false, fmt.Errorf("%s is not a regular file", path)
	}
	return true, nil
}

func (st *store) found(path, imageType string, sum digest) Found {
	slog.Debug("found the image", "path", path, "type", imageType, "sum", sum)
	return Found{Path: path, Type: imageType, Told: !isAuto(st.settings.ImageType), Sum: sum.String(), Cleanup: func() error { return nil }}
}
