package dump

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ganeti-instance-image/internal/tree"
)

var _ tree.Source = (*Archive)(nil)

// fixtures are dumps of one tree, by dump 0.4b47 (old) and 0.4b56 (new).
var fixtures = []struct {
	name  string
	files []string
}{
	{"old plain", []string{"old-none.dump"}},
	{"old zlib", []string{"old-z9.dump"}},
	{"old zlib, blocks of 64 KiB", []string{"old-z9-b64.dump"}},
	{"old bzip2", []string{"old-j2.dump"}},
	{"old LZO", []string{"old-y.dump"}},
	{"old, three volumes", []string{"old-vol001", "old-vol002", "old-vol003"}},
	{"new plain", []string{"new-none.dump"}},
	{"new zlib", []string{"new-z9.dump"}},
	{"new bzip2", []string{"new-j2.dump"}},
	{"new LZO", []string{"new-y.dump"}},
}

// fact is what is known of a file, in the form of testdata/manifest.json.
type fact struct {
	Path   []byte            `json:"path"`
	Mode   string            `json:"mode"`
	UID    uint32            `json:"uid"`
	GID    uint32            `json:"gid"`
	Nlink  int               `json:"nlink"`
	Size   int64             `json:"size"`
	MTime  int64             `json:"mtime"`
	SHA256 string            `json:"sha256"`
	Link   []byte            `json:"link"`
	Rdev   []uint32          `json:"rdev"`
	Xattrs map[string][]byte `json:"xattr"`
}

func testdata(names []string) []string {
	var paths []string
	for _, name := range names {
		paths = append(paths, filepath.Join("testdata", name))
	}
	return paths
}

func manifest(t testing.TB) map[string]fact {
	t.Helper()
	b, err := os.ReadFile("testdata/manifest.json")
	if err != nil {
		t.Fatal(err)
	}
	// link is text there.
	var raw []map[string]any
	if err := json.Unmarshal(b, &raw); err != nil {
		t.Fatal(err)
	}
	for _, m := range raw {
		if link, ok := m["link"].(string); ok {
			m["link"] = []byte(link)
		}
	}
	b, _ = json.Marshal(raw)
	var list []fact
	if err := json.Unmarshal(b, &list); err != nil {
		t.Fatal(err)
	}
	facts := map[string]fact{}
	for _, f := range list {
		facts[string(f.Path)] = f
	}
	return facts
}

var formats = map[tree.Type]uint32{
	tree.Regular: formatRegular, tree.Directory: formatDirectory, tree.Symlink: formatLink, tree.CharDevice: formatChar,
	tree.BlockDevice: formatBlock, tree.FIFO: formatFIFO, tree.Socket: formatSocket,
}

// readAll reads a whole archive as facts, by path, and checks the order of the
// entries.
func readAll(t testing.TB, a *Archive, sum summer) map[string]fact {
	t.Helper()
	facts, err := readFacts(t, a, sum)
	if err != nil {
		t.Fatal(err)
	}
	return facts
}

// summer makes of the current entry's content what stands for it in a fact.
type summer func(t testing.TB, a *Archive, size int64) (string, error)

func readFacts(t testing.TB, a *Archive, sum summer) (map[string]fact, error) {
	t.Helper()
	facts := map[string]fact{}
	links := map[string][]string{}
	files := false
	for i := 0; ; i++ {
		e, err := a.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return facts, err
		}
		if (i == 0) != (e.Name == ".") {
			t.Fatalf("entry %d is %q", i, e.Name)
		}
		path := "/" + strings.TrimPrefix(e.Name, ".")
		if _, twice := facts[path]; twice {
			t.Fatalf("%q comes twice", path)
		}
		if parent, ok := facts[filepath.Dir(path)]; i > 0 && (!ok || !strings.HasPrefix(parent.Mode, "0o4")) {
			t.Fatalf("%q comes before its directory", path)
		}
		if e.Type == tree.Directory && files {
			t.Fatalf("directory %q comes behind files", path)
		}
		if e.Type == tree.HardLink {
			target := "/" + e.Target
			if _, ok := facts[target]; !ok {
				t.Fatalf("%q is a link to %q, which is not known yet", path, target)
			}
			links[target] = append(links[target], path)
			facts[path] = facts[target]
			continue
		}
		files = files || e.Type != tree.Directory
		if e.Type != tree.Directory && e.Xattrs != nil {
			t.Fatalf("%q has attributes before its content", path)
		}
		f := fact{Path: []byte(path), Mode: "0o" + strconv.FormatUint(uint64(formats[e.Type]|e.Mode), 8),
			UID: e.UID, GID: e.GID, MTime: e.ModTime.Unix(), Nlink: 1}
		if e.Type == tree.Regular {
			f.Size = e.Size
			if f.SHA256, err = sum(t, a, e.Size); err != nil {
				return facts, err
			}
		}
		late, err := a.Late()
		if err != nil {
			return facts, err
		}
		if late != e {
			t.Fatalf("%q: Late is about %q", path, late.Name)
		}
		f.Xattrs = e.Xattrs
		if e.Type == tree.Symlink {
			f.Link = []byte(e.Target)
		}
		if e.Type == tree.CharDevice || e.Type == tree.BlockDevice {
			f.Rdev = []uint32{e.Major, e.Minor}
		}
		facts[path] = f
	}
	for target, others := range links {
		for _, path := range append(others, target) {
			f := facts[path]
			f.Path, f.Nlink = []byte(path), len(others)+1
			facts[path] = f
		}
	}
	return facts, nil
}

var zeros [1 << 16]byte

// contentSum is the SHA-256 of the current entry, its holes filled.
func contentSum(t testing.TB, a *Archive, size int64) (string, error) {
	t.Helper()
	sum, end := sha256.New(), int64(0)
	fill := func(to int64) {
		for end < to {
			n := min(to-end, int64(len(zeros)))
			sum.Write(zeros[:n])
			end += n
		}
	}
	for {
		at, b, err := a.Data()
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", err
		}
		if at < end || len(b) == 0 || at+int64(len(b)) > size {
			t.Fatalf("%d bytes at %d behind %d, and the size is %d", len(b), at, end, size)
		}
		fill(at)
		sum.Write(b)
		end += int64(len(b))
	}
	fill(size)
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func TestFixtures(t *testing.T) {
	want := manifest(t)
	for _, f := range fixtures {
		t.Run(f.name, func(t *testing.T) {
			a, err := OpenVolumes(testdata(f.files))
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			got := readAll(t, a, contentSum)
			for path, w := range want {
				if strings.HasPrefix(w.Mode, "0o4") {
					w.Nlink = 1 // that of directories is not told
					want[path] = w
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if date := a.Date().Unix(); date < 1795172715 || date > 1795172716 {
				t.Errorf("date %d", date)
			}
			if a.Label() != "fixlabel" || a.Filesystem() != "an unlisted file system" {
				t.Errorf("label %q, file system %q", a.Label(), a.Filesystem())
			}
			if len(a.Warnings()) > 0 {
				t.Error(a.Warnings())
			}
			if _, err := a.Next(); !errors.Is(err, io.EOF) {
				t.Errorf("behind the end: %v", err)
			}
		})
	}
}
