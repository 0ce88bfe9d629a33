package tarball

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
)

// entries reads an archive to its end, and returns how many entries it has.
func entries(path string) (int, error) {
	a, err := Open(path)
	if err != nil {
		return 0, err
	}
	defer a.Close()
	for n := 0; ; n++ {
		if _, err := a.Next(); err == io.EOF {
			return n, nil
		} else if err != nil {
			return n, err
		}
		for err == nil {
			_, _, err = a.Data()
		}
		if err != io.EOF {
			return n, err
		}
	}
}

// An archive that is cut off is refused wherever that is, also behind a header
// that only gives the next one a long name or attributes.
func TestCutAnywhere(t *testing.T) {
	need.Tools(t, "tar")
	for _, format := range []string{"pax", "gnu"} {
		dir := t.TempDir()
		long := filepath.Join(dir, "tree", strings.Repeat("d", 120))
		if err := os.MkdirAll(long, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"a", "b", "c"} {
			if err := os.WriteFile(filepath.Join(long, name), bytes.Repeat([]byte(name), 700), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		whole := filepath.Join(dir, "whole.tar")
		tool(t, "tar", "--format="+format, "-cf", whole, "-C", filepath.Join(dir, "tree"), ".")
		data, err := os.ReadFile(whole)
		if err != nil {
			t.Fatal(err)
		}
		content := (len(bytes.TrimRight(data, "\x00")) + blockSize - 1) / blockSize * blockSize
		cut := filepath.Join(dir, "cut.tar")
		for n := 0; n < content+blockSize; n += 64 {
			if err := os.WriteFile(cut, data[:n], 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := entries(cut); err == nil {
				t.Errorf("%s: cut at %d of %d it has %d entries and is whole", format, n, len(data), got)
			}
		}
		if got, err := entries(whole); err != nil || got != 5 {
			t.Errorf("%s: %d entries, %v", format, got, err)
		}
	}
}
