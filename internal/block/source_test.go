package block

import (
	"errors"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/used"
)

func rangesOf(list []used.Range, end error) iter.Seq2[used.Range, error] {
	return func(yield func(used.Range, error) bool) {
		for _, r := range list {
			if !yield(r, nil) {
				return
			}
		}
		if end != nil {
			yield(used.Range{}, end)
		}
	}
}

func TestSourceWithoutHoles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{1 << 20, 5 << 20} {
		if _, err := f.WriteAt(make([]byte, 8192), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(16<<20), f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	s, err := OpenSource(path)
	if err != nil || s.Size() != 16*size.MiB || s.Path() != path {
		t.Fatalf("%v, %v", s, err)
	}
	defer s.Close()
	cause := errors.New("cause")
	var got []used.Range
	for r, err := range s.WithoutHoles(rangesOf([]used.Range{{Start: 0, Length: 1<<20 + 4096}, {Start: 3 << 20, Length: 13 << 20}}, cause)) {
		if err == nil {
			got = append(got, r)
		} else if !errors.Is(err, cause) {
			t.Error(err)
		}
	}
	if want := []used.Range{{Start: 1 << 20, Length: 4096}, {Start: 5 << 20, Length: 8192}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestOpenSourceRefuses(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{empty: "0 bytes long", "/dev/null": "neither a block device nor", "/nonexistent": "no such file"} {
		if _, err := OpenSource(path); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}
