package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
)

// readArchive reads all of a file, in pieces of different lengths, and once more
// without the node's xz.
func readArchive(path string) ([]byte, error) {
	byTool, toolErr := readArchiveBy(path, findXZ())
	own, err := readArchiveBy(path, "")
	if (err == nil) != (toolErr == nil) || err == nil && !bytes.Equal(own, byTool) {
		return nil, fmt.Errorf("with xz %d bytes and %v, without %d and %v", len(byTool), toolErr, len(own), err)
	}
	return own, err
}

func readArchiveBy(path, xz string) ([]byte, error) {
	a, err := openArchiveFile(path, xz)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	var all []byte
	for limit := 1; ; limit = limit*5%900_001 + 1 {
		b, err := a.Chunk(limit)
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		if len(b) == 0 || len(b) > limit {
			return all, errors.New("a chunk is too short or too long")
		}
		all = append(all, b...)
	}
}

func TestArchivesAgainstTools(t *testing.T) {
	need.Tools(t, "gzip", "xz", "zstd", "bzip2", "lz4", "sh")
	raw := filepath.Join(t.TempDir(), "source.raw")
	makeContent(t, raw, 2_500_700)
	for _, c := range packings {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := pack(t, c.pack, raw)
			want, err := exec.Command("sh", "-c", c.unpack+" <$0", path).Output()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := readArchive(path); err != nil || !bytes.Equal(got, want) {
				t.Errorf("other bytes than the tool: %d, want %d, %v", len(got), len(want), err)
			}
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range []int{20, len(whole) / 2, len(bytes.TrimRight(whole, "\x00")) - 1} {
				if got, err := readArchive(writeFile(t, "cut", whole[:n])); err == nil {
					t.Errorf("cut at %d of %d: %d bytes and no error", n, len(whole), len(got))
				} else if text := err.Error(); strings.Contains(text, "\n") {
					t.Errorf("an error of several lines: %s", text)
				}
			}
		})
	}
}

// Blocks of xz data that are longer than what is decoded ahead.
func TestArchiveOfLongBlocks(t *testing.T) {
	need.Tools(t, "xz", "sh")
	path := pack(t, "(seq 20000000 | head -c 100M; head -c 90M /dev/zero) | xz -0 --block-size=40MiB -c >$2", "")
	a, err := openArchiveFile(path, "")
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, a)
	if err != nil || n != 190<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
	if decoded, known := a.Size(); !known || int64(decoded) != n {
		t.Errorf("its size is %d, %v", decoded, known)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

func TestArchivePlain(t *testing.T) {
	need.Tools(t, "tar")
	dir := t.TempDir()
	makeContent(t, dir+"/content", 3_000_000)
	tool(t, "tar", "-C", dir, "-cf", dir+"/a.tar", "content")
	want, err := os.ReadFile(dir + "/a.tar")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readArchive(dir + "/a.tar"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d, %v", len(got), len(want), err)
	}
	a, err := OpenArchive(dir + "/a.tar")
	if err != nil {
		t.Fatal(err)
	}
	if n, known := a.Size(); !known || int(n) != len(want) || a.Compression() != "" || a.Path() != dir+"/a.tar" {
		t.Errorf("%d, %v, %q, %q", n, known, a.Compression(), a.Path())
	}
	if _, err := a.Read(make([]byte, 10)); err != nil {
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if _, err := a.Chunk(10); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
}

// Closing ends the goroutines, wherever they are.
func TestArchiveCloseEarly(t *testing.T) {
	need.Tools(t, "xz", "gzip", "sh")
	before := runtime.NumGoroutine()
	for _, command := range []string{"head -c 60M /dev/zero | xz -0 --block-size=2MiB -c >$2", "head -c 60M /dev/zero | gzip -1 >$2"} {
		path := pack(t, command, "")
		for i, n := range []int64{0, 1, 5 << 20, 0, 1, 5 << 20} {
			a, err := openArchiveFile(path, []string{"", findXZ()}[i/3])
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.CopyN(io.Discard, a, n); err != nil {
				t.Error(err)
			}
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines, %d before", after, before)
	}
}

func TestRefusesArchives(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "the file is empty"},
		{"page", []byte("<!DOCTYPE html><html>not found</html>"), "it is a web page, and no tar or dump archive"},
		{"qcow2", []byte("QFI\xfb\x00\x00\x00\x03" + strings.Repeat("\x00", 1000)), "it is a qcow2 image, and no tar or dump archive"},
		{"lzip", []byte("LZIP\x01" + strings.Repeat("x", 1000)), "unpack it with `lzip -d`"},
		{"noise", bytes.Repeat([]byte("\x01\x80\xfe"), 2000), "neither a tar or dump archive nor compressed"},
		{"zstd", []byte("\x28\xb5\x2f\xfd"), "its zstd data is cut off"},
		{"xz", []byte(xzHeaderMagic + strings.Repeat("\x01", 100)), "it is cut off, or something follows the data"},
	} {
		_, err := readArchive(writeFile(t, c.name, c.data))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	if _, err := OpenArchive(dir); err == nil || !strings.Contains(err.Error(), "is not a regular file") {
		t.Errorf("a directory: %v", err)
	}
}
