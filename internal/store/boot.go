package store

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
)

// The endings of the two dumps of a system whose /boot is a file system of its
// own.
const (
	rootEnding = "-root.dump"
	bootEnding = "-boot.dump"
	// firstVolume follows the ending where a dump is in several volumes, which
	// are next to each other; IMAGE_FILE can name it. /boot is in one.
	firstVolume = "001"
)

// bootBeside is the name of the dump of /boot that belongs to one of the root.
func bootBeside(file string) (string, bool) {
	stem, ok := strings.CutSuffix(strings.TrimSuffix(file, firstVolume), rootEnding)
	return stem + bootEnding, ok
}

func anyThere(paths []string) bool {
	return slices.ContainsFunc(paths, func(path string) bool { there, _ := regular(path); return there })
}

// withBoot adds the dump of /boot that lies beside one of the root, if one does.
func (st *store) withBoot(found Found) (Found, error) {
	name, ok := bootBeside(filepath.Base(found.Path))
	if !ok {
		return found, nil
	}
	path := filepath.Join(filepath.Dir(found.Path), name)
	there, err := regular(path)
	if there {
		found.Boot = path
	}
	return found, err
}

// fetchBoot downloads the dump of /boot that is beside one of the root at the
// server, if one is there.
func (st *store) fetchBoot(ctx context.Context, root source, found Found) (Found, error) {
	name, ok := bootBeside(root.name)
	if !ok {
		return found, nil
	}
	src, err := st.source(beside(root.url, name), root.imageType)
	if err != nil {
		return Found{}, err
	}
	if root.placed != "" {
		src.placed = filepath.Join(filepath.Dir(root.placed), name)
	}
	// Without the server, a root that was fetched earlier had none if none was kept.
	if err := st.client.probe(ctx, src.url); isAbsent(err) || err != nil && !anyThere(src.copies()) {
		return found, ctx.Err()
	}
	boot, err := st.fetch(ctx, src) // which also knows what to do without the server
	if err != nil {
		return Found{}, errors.Join(err, found.Cleanup())
	}
	found.Boot = boot.Path
	cleanup := found.Cleanup
	found.Cleanup = func() error { return errors.Join(cleanup(), boot.Cleanup()) }
	return found, nil
}
