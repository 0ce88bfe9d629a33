package dump

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/tree"
)

// drain reads a dump to its end and returns what it says.
func drain(volumes ...[]byte) (warnings []string, err error) {
	var readers []io.Reader
	for _, v := range volumes {
		readers = append(readers, bytes.NewReader(v))
	}
	a, err := Read(readers...)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	return drainArchive(a)
}

func drainArchive(a *Archive) ([]string, error) {
	for {
		_, err := a.Next()
		for err == nil {
			_, _, err = a.Data()
		}
		if err == io.EOF {
			_, err = a.Late()
		}
		if err != nil {
			if a.err == io.EOF {
				err = nil
			}
			return a.Warnings(), err
		}
	}
}

// refused wants an error that is one line of printable ASCII with some words.
func refused(t *testing.T, err error, words string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), words) {
		t.Fatalf("got %v, want %q", err, words)
	}
	oneLine(t, err.Error())
}

func oneLine(t testing.TB, text string) {
	t.Helper()
	for _, c := range []byte(text) {
		if c < ' ' || c > '~' {
			t.Fatalf("not one printable line: %q", text)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	bigEndian := sound().end()
	for i := 0; i < recordSize; i += 4 {
		binary.BigEndian.PutUint32(bigEndian[i:], binary.LittleEndian.Uint32(bigEndian[i:]))
	}
	flipped := sound().end()
	flipped[700] ^= 1
	for _, c := range []struct {
		name  string
		dump  []byte
		words string
	}{
		{"nothing", nil, "shorter than a header"},
		{"a short file", sound().end()[:1023], "shorter than a header"},
		{"zeros", make([]byte, 4096), "it is no dump"},
		{"big-endian", bigEndian, "big-endian"},
		{"before 4.2BSD", newWriter(u32s{offMagic: oldMagic}).end(), "before 4.2BSD"},
		{"UFS2", newWriter(u32s{offMagic: ufs2Magic}).end(), "UFS2"},
		{"UFS2, big-endian", newWriter(u32s{offMagic: 0x19015419}).end(), "UFS2"},
		{"checksum", flipped, "checksum"},
		{"no beginning", sound().end()[recordSize:], "beginning is missing"},
		{"unknown type", newWriter(u32s{offType: 7}).end(), "unknown type 7"},
		{"level 1", newWriter(u32s{offLevel: 1}).end(), "level 1"},
		{"level 1 by date", newWriter(u32s{offBaseDate: 5}).end(), "incremental"},
		{"inodes of 4.3BSD", newWriter(u32s{offDumpFlags: 1}).end(), "before 4.4BSD"},
		{"no blocking", newWriter(u32s{offBlocking: 0}).end(), "from 1 to 1024 KiB"},
		{"blocking", newWriter(u32s{offBlocking: 1025}).end(), "from 1 to 1024 KiB"},
		{"second volume", newWriter(u32s{offVolume: 2}).end(), "begin with volume 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Read(bytes.NewReader(c.dump))
			refused(t, err, c.words)
		})
	}
	_, err := Read()
	refused(t, err, "no volume")
	if _, err = Open(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	path := filepath.Join(t.TempDir(), "new\nline")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(path)
	refused(t, err, `new\nline`)
}

func TestVolumesRefused(t *testing.T) {
	first := bytes.Clone(sound().Bytes())
	first = append(first, make([]byte, -len(first)&10239)...)
	second := func(changes u32s) []byte {
		all := u32s{offVolume: 2}
		for k, v := range changes {
			all[k] = v
		}
		return newWriter(all).end()
	}
	for _, c := range []struct {
		name    string
		volumes [][]byte
		words   string
	}{
		{"order", [][]byte{first, second(u32s{offVolume: 3})}, "volume 2: the file is volume 3"},
		{"twice", [][]byte{first, first}, "volume 2: the file is volume 1"},
		{"date", [][]byte{first, second(u32s{offDate: 1})}, "the dates differ"},
		{"blocking", [][]byte{first, second(u32s{offBlocking: 11})}, "11 KiB"},
		{"compression", [][]byte{first, second(u32s{offDumpFlags: 0x83})}, "compressed"},
		{"no dump", [][]byte{first, {1}}, "volume 2: it is no dump"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := drain(c.volumes...)
			refused(t, err, c.words)
		})
	}
	_, err := OpenVolumes(testdata([]string{"old-vol001", "old-vol003"}))
	refused(t, err, "volume 2: the file is volume 3")
	a, err := OpenVolumes(testdata([]string{"old-vol001", "old-vol002"}))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	_, err = drainArchive(a)
	refused(t, err, "cut off")
}

// value is an attribute that is in order.
var value = attribute{1, "a", []byte("value")}

func TestReadRefuses(t *testing.T) {
	aclBytes := func(b ...byte) []byte { return set(blockMagic, attribute{2, "", b}) }
	patched := func(at int, v uint32) []byte {
		b := set(blockMagic, value)
		binary.LittleEndian.PutUint32(b[at:], v)
		return b
	}
	root := func(entries ...entry) *writer { return newWriter(nil).maps().directory(2, 2, entries...) }
	raw := func(w *writer, kind, inode uint32, fields u32s, holes ...byte) *writer {
		w.header(kind, inode, fields, holes)
		return w
	}
	damaged := func(w *writer, at int) *writer {
		w.Bytes()[len(w.Bytes())-recordSize+at] ^= 1
		return w
	}
	overlapping := set(blockMagic)
	for i := range 200 {
		copy(overlapping[32+20*i:], []byte{1, 1, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, byte(i + 1)})
	}
	aDirectory := u32s{offMode: formatDirectory, offSize: 512}
	for _, c := range []struct {
		name  string
		dump  *writer
		words string
	}{
		{"a map of inodes without end", raw(newWriter(nil), tsClri, 0, u32s{offCount: 1 << 31}), "a map of inodes has"},
		{"two maps", newWriter(nil).maps().maps(), "second map"},
		{"magic", damaged(sound().node(11, formatFIFO, nil), offMagic), "there should be a header"},
		{"checksum", damaged(sound().node(11, formatFIFO, nil), 500), "checksum"},
		{"date", sound().node(11, formatFIFO, u32s{offDate: 5}), "the dates differ"},
		{"type", raw(sound(), 9, 11, nil), "unknown type 9"},
		{"count", raw(sound(), tsInode, 11, u32s{offCount: 513, offMode: formatRegular}), "513 entries"},
		{"negative count", raw(sound(), tsInode, 11, u32s{offCount: 0xffffffff, offMode: formatRegular}), "entries"},
		{"a second beginning", raw(sound(), tsTape, 0, nil), "type 1 stands where"},
		{"continuation of nothing", raw(sound(), tsAddr, 11, nil, 1), "type 4 stands where"},
		{"continuation without a map", raw(raw(sound(), tsInode, 11, u32s{offMode: formatRegular, offSize: 5000}, 0), tsAddr, 11, nil), "has no map"},
		{"attributes of nothing", sound().attributes(12, set(blockMagic), nil), "attributes of inode 12"},
		{"hole map", raw(sound(), tsInode, 11, u32s{offMode: formatRegular, offSize: 5000}, 1, 0xff), "cut off"},
		{"negative size", sound().node(11, formatRegular, u32s{offSize + 4: 1 << 31}), "no file of ext4"},
		{"17 TiB", sound().node(11, formatRegular, u32s{offSize + 4: 17 << 8}), "no file of ext4"},
		{"inode 0", sound().file(0, "x", nil), "number 0"},
		{"no content", sound().node(11, formatRegular, u32s{offDumpFlags: 0x102}), "without its content"},
		{"no root", newWriter(nil).maps().file(11, "x", nil), "root directory"},
		{"only other directories", newWriter(nil).maps().directory(12, 12), "root directory"},
		{"inode twice", sound().file(11, "x", nil).file(12, "x", nil).file(11, "x", nil), "inode 11 is there twice"},
		{"directory twice", root().directory(2, 2), "directory inode 2 is there twice"},
		{"directory behind files", sound().file(11, "x", nil).directory(12, 2), "comes behind files"},
		{"no type", sound().node(11, 0o644, nil), "no known type"},
		{"encrypted", sound().file(11, "x", u32s{offFlags: encryptedFlag}), "encrypted"},
		{"slash", root(entry{11, "../../etc/passwd", 0}), `"../../etc/passwd" is no name`},
		{"NUL", root(entry{11, "a\x00b", 0}), `"a\x00b" is no name`},
		{"no name", root(entry{11, "", 0}), `"" is no name`},
		{".", root(entry{11, ".", 0}), `"." is no name`},
		{"..", root(entry{11, "a", 0}, entry{11, "..", 0}), `".." is no name`},
		{".. at the beginning", newWriter(nil).maps().rawDirectory(2, entry{2, "..", 0}), `".." is no name`},
		{"name twice", root(entry{11, "a\n", 0}, entry{12, "b", 0}, entry{13, "a\n", 0}), `the name "a\n" twice`},
		{"entry of no length", root(entry{11, "a", 4}, entry{12, "b", 0}), "an entry has the length 4"},
		{"entry of odd length", root(entry{11, "a", 13}), "an entry has the length"},
		{"entry too long", root(entry{11, "a", 2000}), "an entry has the length"},
		{"name beyond its entry", root(entry{11, "abcdefgh", 12}, entry{12, "x", 0}), "a name of 8 bytes in an entry of 12"},
		{"end of a directory", func() *writer {
			w := raw(newWriter(nil).maps(), tsInode, 2, u32s{offMode: formatDirectory, offSize: 4}, 1)
			w.data([]byte{1})
			return w
		}(), "an entry is cut off"},
		{"circle", root().directory(11, 12, entry{12, "a", 0}).directory(12, 11, entry{11, "b", 0}), "circle"},
		{"in itself", root().directory(11, 11, entry{11, "a", 0}), "circle"},
		{"two parents", root(entry{11, "a", 0}, entry{12, "b", 0}).directory(11, 2, entry{12, "c", 0}).directory(12, 2), "directory inode 12 is in the directories"},
		{"back to the root", root(entry{11, "a", 0}).directory(11, 2, entry{2, "c", 0}), "leads back to the root"},
		{"deep", deep(20), "its path has more than"},
		{"METAONLY directory", raw(newWriter(nil).maps(), tsInode, 2, u32s{offMode: formatDirectory, offDumpFlags: 0x102}), "without its content"},
		{"continuation of a directory", raw(raw(newWriter(nil).maps(), tsInode, 2, aDirectory, 0), tsAddr, 2, nil), "has no map"},
		{"empty link", sound().link(11, "", 0), "a symbolic link of 0 bytes"},
		{"long link", sound().link(11, strings.Repeat("x", 4096), 4096), "a symbolic link of 4096 bytes"},
		{"link with a hole", func() *writer {
			w := raw(sound(), tsInode, 11, u32s{offMode: formatLink, offSize: 1100}, 0, 1)
			w.data([]byte("x"))
			return w
		}(), "with a hole"},
		{"link that is cut off", raw(sound(), tsInode, 11, u32s{offMode: formatLink, offSize: 5}, 0), "its target is damaged"},
		{"link with a NUL", sound().link(11, "a\x00b", 3), "its target is damaged"},
		{"directories only", sound(), "table of contents"},
		{"attributes: size", sound().file(11, "x", nil).attributes(11, nil, u32s{offSize: 1 << 20}), "is the most"},
		{"attributes: records", sound().file(11, "x", nil).attributes(11, set(blockMagic), u32s{offSize: 5000}), "5000 bytes in 4 records"},
		{"attributes: many records", raw(sound().file(11, "x", nil), tsInode, 11, u32s{offDumpFlags: 0x8002, offExtended: 3, offCount: 512}), "in 512 records"},
		{"attributes: hole", raw(sound().file(11, "x", nil), tsInode, 11, u32s{offDumpFlags: 0x8002, offExtended: 3, offSize: 4096}, 6), "map of its attributes"},
		{"attributes: three sets", sound().file(11, "x", nil).attributes(11, set(blockMagic), nil).attributes(11, set(blockMagic), nil).attributes(11, set(blockMagic), nil), "more than two"},
		{"attributes: nothing", sound().file(11, "x", nil).attributes(11, []byte{1}, nil), "an entry is cut off"},
		{"attributes: magic", sound().file(11, "x", nil).attributes(11, set(1), nil), "magic"},
		{"attributes: entry", sound().file(11, "x", nil).attributes(11, set(blockMagic, value)[:46], nil), "an entry is cut off"},
		{"attributes: name", sound().file(11, "x", nil).attributes(11, set(blockMagic, value)[:48], nil), "an entry is cut off"},
		{"attributes: value", sound().file(11, "x", nil).attributes(11, patched(40, 4096), nil), "a value is not where"},
		{"attributes: huge value", sound().file(11, "x", nil).attributes(11, patched(40, 0xfffffff0), nil), "a value is not where"},
		{"attributes: overlapping", sound().file(11, "x", nil).attributes(11, overlapping, nil), "a value is not where"},
		{"attributes: no name", sound().file(11, "x", nil).attributes(11, set(blockMagic, attribute{4, "", nil}), nil), "is no name"},
		{"attributes: NUL", sound().file(11, "x", nil).attributes(11, set(blockMagic, attribute{4, "a\x00", nil}), nil), "is no name"},
		{"attributes: ACL with a name", sound().file(11, "x", nil).attributes(11, set(blockMagic, attribute{2, "a", nil}), nil), "is no name"},
		{"ACL: empty", sound().file(11, "x", nil).attributes(11, aclBytes(), nil), "ACL is damaged"},
		{"ACL: version", sound().file(11, "x", nil).attributes(11, aclBytes(2, 0, 0, 0), nil), "ACL is damaged"},
		{"ACL: entry", sound().file(11, "x", nil).attributes(11, aclBytes(1, 0, 0, 0, 1, 0), nil), "ACL is damaged"},
		{"ACL: user", sound().file(11, "x", nil).attributes(11, aclBytes(1, 0, 0, 0, 2, 0, 7, 0, 1), nil), "ACL is damaged"},
		{"inline content", raw(sound(), tsInode, 11, u32s{offMode: formatRegular, offSize: 61, offFlags: inlineFlag}, 0), "not all there"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := drain(c.dump.end())
			refused(t, err, c.words)
			if !strings.Contains(err.Error(), "record ") && !strings.Contains(err.Error(), "inode ") {
				t.Error("it does not say where:", err)
			}
		})
	}
}

// deep is a dump of directories in one another.
func deep(n uint32) *writer {
	w := newWriter(nil).maps().directory(2, 2, entry{11, "d", 0})
	for i := range n {
		w.directory(11+i, 2, entry{12 + i, strings.Repeat("d", 250), 0})
	}
	return w.directory(11+n, 2)
}

// TestBounds sets an archive to just below the bounds on what is kept.
func TestBounds(t *testing.T) {
	for _, c := range []struct {
		name  string
		set   func(a *Archive)
		words string
	}{
		{"names", func(a *Archive) { a.names.count = maxNames - 1 }, "names"},
		{"bytes of names", func(a *Archive) { a.names.pages = make([][]byte, maxNameBytes/namePage+1) }, "names"},
		{"directories", func(a *Archive) { a.dirs.all = make([]directory, maxDirectories) }, "directories"},
		{"attributes", func(a *Archive) { a.dirs.kept = maxKept - 5 }, "attributes of directories"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dump := newWriter(nil).maps().directory(2, 2, entry{11, "a", 0}, entry{12, "b", 0}).attributes(2, set(blockMagic, value), nil).end()
			a, err := Read(bytes.NewReader(dump))
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			c.set(a)
			_, err = drainArchive(a)
			refused(t, err, c.words)
		})
	}
}

func TestWarnings(t *testing.T) {
	eaInode := set(blockMagic, value)
	binary.LittleEndian.PutUint32(eaInode[36:], 77)
	three := func() *writer { return sound().file(11, "x", nil).file(12, "x", nil).file(13, "x", nil) }
	for _, c := range []struct {
		name  string
		dump  *writer
		words string
	}{
		{"inode without a name", three().file(14, "x", nil), "inode 14 has no name"},
		{"a name of 255 bytes", newWriter(nil).maps().directory(2, 2, entry{11, strings.Repeat("n", 255), 8}), "255 bytes"},
		{"attribute in an inode", three().attributes(13, eaInode, nil), `value of the attribute "user.a" is lost`},
		{"namespace", three().attributes(13, set(blockMagic, attribute{9, "c", nil}), nil), "namespace 9"},
		{"attributes of a Mac", three().attributes(13, set(blockMagic), u32s{offExtended: 1}), "kind 1"},
		{"missing inode", sound().file(11, "x", nil).file(13, "x", nil), `1 inodes that have names are not in the dump, inode 12, "twelve", first (1 are in its own map)`},
		{"directory without a name", sound().directory(20, 2, entry{21, "d", 0}).directory(21, 20).file(11, "", nil).file(12, "", nil).file(13, "", nil), "directory inode 20 has no name: it is left out, with 1 directories"},
		{"time", sound().file(11, "x", u32s{offModify: 4294966296}).file(12, "x", nil).file(13, "x", nil), `1 times, that of "eleven" first`},
		{"end of content", sound().file(11, "x", u32s{offSize: 3000}).file(12, "x", nil).file(13, "x", nil), "ends after 1024 of 3000 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dump := c.dump.end()
			if c.name == "a name of 255 bytes" {
				// Only where it does not fit, the entry being the last but one.
				dump = lostName()
			}
			warnings, err := drain(dump)
			if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], c.words) {
				t.Fatalf("%q, %v", warnings, err)
			}
			oneLine(t, warnings[0])
		})
	}
}

// lostName is a dump with a name of 255 bytes as libext2fs leaves it: the next
// entry begins 8 bytes behind it.
func lostName() []byte {
	var b []byte
	for _, e := range []struct {
		inode       uint32
		length, len int
		name        string
	}{{2, 12, 1, "."}, {2, 12, 2, ".."}, {11, 8, 255, ""}, {12, 480, 6, "twelve"}} {
		at := len(b)
		b = binary.LittleEndian.AppendUint32(b, e.inode)
		b = binary.LittleEndian.AppendUint16(b, uint16(e.length))
		b = append(append(b, 0, byte(e.len)), e.name...)
		b = append(b, make([]byte, at+e.length-len(b))...)
	}
	w := newWriter(nil).maps()
	w.inode(2, formatDirectory|0o755, len(b), nil)
	w.data(b)
	return w.file(12, "x", nil).end()
}

func TestWarningsAreBounded(t *testing.T) {
	w := sound()
	for i := range uint32(200) {
		w.file(1000+i, "x", nil)
	}
	warnings, err := drain(w.file(11, "x", nil).file(12, "x", nil).file(13, "x", nil).end())
	if err != nil || len(warnings) != maxWarnings+1 || warnings[maxWarnings] != "150 more warnings like these" {
		t.Fatalf("%d warnings, %q, %v", len(warnings), warnings[len(warnings)-1], err)
	}
}

// TestRestoreReads lets restore(8) judge whether the dumps made here are sound
// where they are meant to be.
func TestRestoreReads(t *testing.T) {
	need.Tools(t, "restore")
	plain := sound().file(11, "x", nil).file(12, strings.Repeat("y", 30_000), nil).link(13, "target", 6).attributes(13, set(blockMagic, value), nil).end()
	for name, dump := range map[string][]byte{"plain": plain, "zlib": pack(t, plain, 10, deflate, 0)} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "dump")
			if err := os.WriteFile(path, dump, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("restore", "-t", "-f", path).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "./thirteen") {
				t.Errorf("%v\n%s", err, out)
			}
			if warnings, err := drain(dump); err != nil || len(warnings) > 0 {
				t.Errorf("%q, %v", warnings, err)
			}
		})
	}
}

func TestBlocksRefused(t *testing.T) {
	plain := sound().file(11, strings.Repeat("y", 300_000), nil).file(12, "", nil).file(13, "", nil).end()
	prefix := func(length, codec, compressed uint32) func() []byte {
		return func() []byte {
			b := pack(t, plain, 10, deflate, 0)
			// The second prefix, so that it is not taken for the mark of 0.4b45.
			at := 10240 + 4 + int(binary.LittleEndian.Uint32(b[10240:])>>4)
			if length == 1<<31 {
				length = binary.LittleEndian.Uint32(b[at:]) >> 4
			}
			binary.LittleEndian.PutUint32(b[at:], length<<4|codec<<1|compressed)
			return b
		}
	}
	change := func(codec uint32, change func(b []byte) []byte) func() []byte {
		return func() []byte {
			return pack(t, plain, 10, func(b []byte) []byte { return change(deflate(b)) }, codec)
		}
	}
	for _, c := range []struct {
		name  string
		dump  func() []byte
		words string
	}{
		{"no length", prefix(0, 0, 1), "said to have 0"},
		{"too long", prefix(10241, 0, 1), "said to have 10241"},
		{"plain of another length", prefix(100, 0, 0), "not compressed has 100 bytes"},
		{"codec", prefix(1<<31, 3, 1), "number 3"},
		{"bzip2 that is none", prefix(1<<31, 1, 1), "compressed with bzip2 is damaged"},
		{"LZO that is none", prefix(1<<31, 2, 1), "compressed with LZO is damaged"},
		{"zlib: header", change(0, func(b []byte) []byte { b[0] = 0x79; return b }), "header"},
		{"zlib: checksum", change(0, func(b []byte) []byte { b[len(b)-1]++; return b }), "checksum"},
		{"zlib: data", change(0, func(b []byte) []byte { b[2] |= 7; return b }), "zlib is damaged"},
		{"zlib: short", change(0, func(b []byte) []byte { return b[:5] }), "zlib is damaged"},
		{"zlib: longer content", func() []byte {
			return pack(t, plain, 10, func(b []byte) []byte { return deflate(append(bytes.Clone(b), 1)) }, 0)
		}, "zlib is damaged"},
		{"zlib: shorter content", func() []byte {
			return pack(t, plain, 10, func(b []byte) []byte { return deflate(b[1:]) }, 0)
		}, "zlib is damaged"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := drain(c.dump())
			refused(t, err, c.words)
		})
	}
}

func TestBzip2OfAnotherLength(t *testing.T) {
	b, err := os.ReadFile("testdata/old-j2.dump")
	if err != nil {
		t.Fatal(err)
	}
	packed := b[10244:][:binary.LittleEndian.Uint32(b[10240:])>>4]
	for _, length := range []int{10239, 10240, 10241} {
		var d decoder
		err := d.bzip2(make([]byte, length), bytes.Clone(packed))
		if (err == nil) != (length == 10240) {
			t.Errorf("%d bytes: %v", length, err)
		}
	}
}

// TestMarkedByMistake reads a plain dump that says it is compressed, as 0.4b45
// made them.
func TestMarkedByMistake(t *testing.T) {
	dump := sound().file(11, strings.Repeat("y", 2700), nil).file(12, strings.Repeat("z", 20000), nil).file(13, "", nil).end()
	dump[offDumpFlags] |= compressedFlag
	seal(dump[:recordSize])
	if _, err := drain(dump); err != nil {
		t.Error(err)
	}
}

func TestBehindTheEnd(t *testing.T) {
	dump := sound().file(11, "x", nil).file(12, "x", nil).file(13, "x", nil).end()
	if _, err := drain(append(dump, 1, 2, 3)); err != nil {
		t.Error(err)
	}
	if _, err := drain(append(pack(t, dump, 10, deflate, 0), 1, 2, 3)); err != nil {
		t.Error(err)
	}
}

// TestCutOff cuts dumps off at all kinds of places.
func TestCutOff(t *testing.T) {
	for _, name := range []string{"old-none.dump", "new-z9.dump", "new-y.dump", "old-z9-b64.dump"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		step := len(b)/50 + 7
		for n := recordSize; n < len(b)-20<<10; n += step {
			if _, err := drain(b[:n]); err == nil || !strings.Contains(err.Error(), "cut off") {
				t.Errorf("%s: %d bytes: %v", name, n, err)
			}
		}
	}
}

// TestUnreadable wants an error of reading to come through, and not to be taken
// for the end.
func TestUnreadable(t *testing.T) {
	broken := errors.New("the disk is broken")
	for _, name := range []string{"old-none.dump", "old-z9.dump"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{0, 500, 2000, 10240, 10242, 10244, 20000, 30000} {
			a, err := Read(io.MultiReader(bytes.NewReader(b[:n]), iotest.ErrReader(broken)))
			if err == nil {
				_, err = drainArchive(a)
				a.Close()
			}
			if !errors.Is(err, broken) {
				t.Errorf("%s: %d bytes: %v", name, n, err)
			}
		}
	}
}

// TestWithoutMap reads a dump that has no map of its inodes.
func TestWithoutMap(t *testing.T) {
	warnings, err := drain(newWriter(nil).directory(2, 2, entry{11, "a", 0}, entry{12, "b", 0}).file(11, "x", nil).end())
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "inode 12") {
		t.Errorf("%q, %v", warnings, err)
	}
}

// TestFlippedBits damages dumps: whatever comes of it, it is told on one line.
func TestFlippedBits(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for _, name := range []string{"old-none.dump", "new-none.dump", "new-z9.dump", "old-y.dump", "old-z9-b64.dump"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		for range 60 {
			at, bit := random.IntN(len(b)), byte(1)<<random.IntN(8)
			b[at] ^= bit
			warnings, err := drain(b)
			if err != nil {
				oneLine(t, err.Error())
			} else if strings.Contains(name, "z9") && at > 70<<10 && at < len(b)-20<<10 {
				t.Errorf("%s: bit %d of byte %d does not matter", name, bit, at)
			}
			for _, w := range warnings {
				oneLine(t, w)
			}
			b[at] ^= bit
		}
	}
}

// TestNothingButZeros reads content that was compressed a thousandfold, in the
// largest blocks, and asks for the memory that took.
func TestNothingButZeros(t *testing.T) {
	w := newWriter(u32s{offBlocking: 1024})
	w.blocking = 1024
	w.maps().directory(2, 2, entry{11, "a", 0})
	w.inode(11, formatRegular, 96<<20, nil)
	w.Write(make([]byte, 512<<10))
	for range 191 {
		w.header(tsAddr, 11, nil, bytes.Repeat([]byte{1}, 512))
		w.Write(make([]byte, 512<<10))
	}
	dump := pack(t, w.end(), 1024, deflate, 0)
	w.Reset()
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := drain(dump); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 40<<20 {
		t.Errorf("%d MiB were allocated", got>>20)
	}
}

// TestManyNames reads a directory with 80,000 entries, and as many hard links.
func TestManyNames(t *testing.T) {
	w := newWriter(nil).maps()
	const count = 80_000
	var content []byte
	add := func(inode uint32, name string) {
		length := 20
		if len(content)%512 == 500 {
			length = 12
		}
		if len(content)%512+2*20 > 512 {
			length = 512 - len(content)%512
		}
		content = binary.LittleEndian.AppendUint32(content, inode)
		content = append(binary.LittleEndian.AppendUint16(content, uint16(length)), 0, byte(len(name)))
		content = append(append(content, name...), make([]byte, length-entryHeader-len(name))...)
	}
	add(2, ".")
	add(2, "..")
	for i := range count {
		add(11+uint32(i)/2, fmt.Sprintf("name%d", i))
	}
	w.inode(2, formatDirectory|0o755, len(content), u32s{offCount: 1})
	w.data(content[:recordSize])
	for b := content[recordSize:]; len(b) > 0; b = b[min(recordSize, len(b)):] {
		w.header(tsAddr, 2, nil, []byte{1})
		w.data(b[:min(recordSize, len(b))])
	}
	for i := range uint32(count / 2) {
		w.node(11+i, formatRegular|0o600, nil)
	}
	a, err := Read(bytes.NewReader(w.end()))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	names, links, start := 0, 0, time.Now()
	for {
		e, err := a.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names++
		if e.Type == tree.HardLink {
			links++
		}
	}
	if names != count+1 || links != count/2 {
		t.Errorf("%d names, %d links", names, links)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	} else {
		t.Log(took)
	}
}

// TestClose leaves an archive in the middle.
func TestClose(t *testing.T) {
	before := runtime.NumGoroutine()
	a, err := Open("testdata/new-z9.dump")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Late(); err == nil {
		t.Error("Late before Next")
	}
	for range 5 {
		if _, err := a.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(a.Close(), a.Close()); err != nil {
		t.Error(err)
	}
	if _, err := a.Next(); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	for deadline := time.Now().Add(time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines are left", runtime.NumGoroutine()-before)
		}
	}
}
