package dump

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHoleMap(t *testing.T) {
	type run struct {
		n      int64
		stored bool
	}
	for _, c := range []struct {
		name    string
		entries []byte
		want    []run
	}{
		{"nothing", nil, nil},
		{"a byte a record", []byte{1, 1, 0, 1, 0, 0}, []run{{2, true}, {1, false}, {1, true}, {2, false}}},
		{"4 of data", []byte{0x07}, []run{{4, true}}},
		{"16 of a hole, 4 of data", []byte{0x1e, 0x07}, []run{{16, false}, {4, true}}},
		{"488 of data", []byte{0xcf, 0x06}, []run{{488, true}}},
		{"16384 of a hole", []byte{0xfe, 0xfe}, []run{{16384, false}}},
		{"the longest", []byte{0xff, 0xff}, []run{{16448, true}}},
		{"merged", []byte{0x07, 0xff, 0xff, 0x01, 0x00}, []run{{4 + 16448 + 1, true}, {1, false}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := holeMap{entries: c.entries}
			var got []run
			for {
				n, stored, err := m.next()
				if err != nil {
					t.Fatal(err)
				}
				if n == 0 {
					break
				}
				got = append(got, run{n, stored})
			}
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(run{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDeviceNumbers(t *testing.T) {
	for _, c := range []struct{ first, second, major, minor uint32 }{
		{0x103, 0, 1, 3}, {0x8ff, 0, 8, 255}, {0, 0x100800, 8, 256}, {0, 0, 0, 0},
	} {
		if major, minor := deviceNumbers(c.first, c.second); major != c.major || minor != c.minor {
			t.Errorf("%#x, %#x: %d:%d", c.first, c.second, major, minor)
		}
	}
}

// TestInlineContent reads a file whose content is in the inode, as dump 0.4b47
// leaves it, with attributes in the inode and in a block.
func TestInlineContent(t *testing.T) {
	fields := u32s{offMode: formatRegular | 0o600, offSize: 70, offFlags: inlineFlag}
	want := strings.Repeat("abcd", 15) + "0123456789"
	for i := 0; i < 60; i += 4 {
		fields[offBlocks+i] = binary.LittleEndian.Uint32([]byte(want[i:]))
	}
	w := newWriter(nil).maps().directory(2, 2, entry{11, "inline", 0}, entry{11, "second", 0})
	w.header(tsInode, 11, fields, []byte{0, 0, 0, 0})
	w.attributes(11, set(inodeMagic, attribute{7, "data", []byte("0123456789")}, attribute{1, "b", []byte("in the inode")}, value), nil)
	w.attributes(11, set(blockMagic, attribute{6, "capability", []byte("in a block")}, attribute{1, "b", []byte("second")}), nil)
	a, err := Read(bytes.NewReader(w.end()))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	got := readAll(t, a, func(t testing.TB, a *Archive, size int64) (string, error) {
		at, b, err := a.Data()
		if at != 0 {
			t.Errorf("it begins at %d", at)
		}
		return string(b), err
	})
	f := got["/second"]
	if f.SHA256 != want || f.Size != 70 || f.Nlink != 2 {
		t.Errorf("%q", f.SHA256)
	}
	xattrs := map[string][]byte{"user.b": []byte("in the inode"), "user.a": []byte("value"), "security.capability": []byte("in a block")}
	if diff := cmp.Diff(xattrs, f.Xattrs); diff != "" {
		t.Error(diff)
	}
}

// TestFalseMap reads attributes whose map is not theirs, as dump before 0.4b43
// left it.
func TestFalseMap(t *testing.T) {
	w := newWriter(nil).maps().directory(2, 2, entry{11, "a", 0}).file(11, "x", nil)
	w.header(tsInode, 11, u32s{offDumpFlags: newInodeFormat | extendedFlag, offExtended: extAttributes, offSize: 4096, offMode: formatRegular}, []byte{1, 0, 0, 1})
	w.data(set(blockMagic, value))
	warnings, err := drain(w.end())
	if err != nil || len(warnings) > 0 {
		t.Error(warnings, err)
	}
}

// reseal makes all checksums right, so that what was damaged is read.
func reseal(b []byte) {
	for ; len(b) >= recordSize; b = b[recordSize:] {
		if binary.LittleEndian.Uint32(b[offMagic:]) == magic {
			seal(b[:recordSize])
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, name := range []string{"new-z9.dump", "new-y.dump", "old-y.dump", "new-j2.dump"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, false)
	}
	f.Add(sound().file(11, "x", nil).attributes(11, set(blockMagic, value), nil).link(12, "y", 1).node(13, formatFIFO, nil).end(), true)
	f.Add(newWriter(nil).maps().directory(2, 2, entry{11, "a", 0}).directory(11, 2, entry{12, "b", 0}).attributes(11, set(inodeMagic, value), nil).directory(12, 11, entry{13, "c", 0}, entry{14, "d", 0}).file(13, strings.Repeat("x", 5000), nil).end(), true)
	f.Add(lostName(), true)
	f.Add(deep(4).end(), true)
	f.Fuzz(func(t *testing.T, b []byte, sealed bool) {
		if sealed {
			b = bytes.Clone(b)
			reseal(b)
		}
		warnings, err := drain(b)
		if err != nil {
			oneLine(t, err.Error())
		}
		for _, w := range warnings {
			oneLine(t, w)
		}
	})
}

func FuzzAttributes(f *testing.F) {
	acl := []byte{1, 0, 0, 0, 1, 0, 7, 0, 2, 0, 5, 0, 210, 4, 0, 0, 32, 0, 0, 0}
	f.Add(set(blockMagic, value, attribute{2, "", acl}, attribute{6, "capability", make([]byte, 20)})[:4096])
	f.Add(set(inodeMagic, value, attribute{3, "", acl}, attribute{7, "data", []byte("content")}, attribute{9, "c", nil}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var x attributes
		if err := x.parse(b); err != nil {
			oneLine(t, err.Error())
		}
		for _, lost := range x.lost {
			oneLine(t, lost)
		}
		total := 0
		for name, value := range x.values {
			if !strings.Contains(name, ".") || strings.Contains(name, "\x00") {
				t.Errorf("the name %q", name)
			}
			total += len(value)
		}
		// An ACL grows from 4 bytes an entry to 8.
		if total > 2*len(b)+4 {
			t.Errorf("values of %d bytes from %d", total, len(b))
		}
	})
}
