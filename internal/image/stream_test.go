package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

// packings are commands for a shell that turn the file $1 into $2, and what the
// tool unpacks it with.
var packings = []struct {
	name, pack, unpack string
	parts              bool // there is more than one
	sized              bool // the length is known
}{
	{name: "gzip", pack: "gzip -c $1 >$2", unpack: "gzip -dc"},
	{name: "gzip -1", pack: "gzip -1 <$1 >$2", unpack: "gzip -dc"},
	{name: "gzip of members", pack: "head -c 70000 $1 | gzip -c >$2; tail -c +70001 $1 | gzip -9 >>$2; gzip -c </dev/null >>$2", unpack: "gzip -dc"},
	{name: "gzip padded", pack: "gzip -c $1 >$2; head -c 1000 /dev/zero >>$2", unpack: "gzip -dc"},
	{name: "gzip padded by one", pack: "gzip -c $1 >$2; head -c 1 /dev/zero >>$2", unpack: "gzip -dc"},
	{name: "xz", pack: "xz -0 -c $1 >$2", unpack: "xz -dc", sized: true},
	{name: "xz of blocks", pack: "xz -0 -T2 --block-size=1MiB -c $1 >$2", unpack: "xz -dc", parts: true, sized: true},
	{name: "xz of small blocks", pack: "xz -0 -T2 --block-size=20KiB -c $1 >$2", unpack: "xz -dc", parts: true, sized: true},
	{name: "xz of blocks without lengths", pack: "xz -0 -T1 --block-size=1500000 -c $1 >$2", unpack: "xz -dc", parts: true, sized: true},
	{name: "xz -9e", pack: "xz -9e -c $1 >$2", unpack: "xz -dc", sized: true},
	{name: "xz without checks", pack: "xz -0 -C none -c $1 >$2", unpack: "xz -dc", sized: true},
	{name: "xz crc32", pack: "xz -0 -C crc32 -c $1 >$2", unpack: "xz -dc", sized: true},
	{name: "xz sha256", pack: "xz -0 -C sha256 --block-size=1MiB -c $1 >$2", unpack: "xz -dc", parts: true, sized: true},
	{name: "xz x86 delta", pack: "xz --x86 --delta=dist=3 --lzma2=preset=0,lc=2 -c $1 >$2", unpack: "xz -dc", sized: true},
	{name: "xz large dictionary", pack: "xz --lzma2=preset=0,dict=1GiB -c $1 >$2", unpack: "xz -dc", sized: true},
	{name: "xz of streams", pack: "head -c 2000000 $1 | xz -0 -C none -c >$2; head -c 8 /dev/zero >>$2; xz -c </dev/null >>$2; tail -c +2000001 $1 | xz -1 -T2 --block-size=1MiB >>$2; head -c 4000 /dev/zero >>$2", unpack: "xz -dc", parts: true, sized: true},
	{name: "zstd", pack: "zstd -q -c $1 >$2", unpack: "zstd -dc", sized: true},
	{name: "zstd --long", pack: "zstd -q -19 --long -c $1 >$2", unpack: "zstd -dc", sized: true},
	{name: "zstd of a pipe", pack: "cat $1 | zstd -q -c >$2", unpack: "zstd -dc"},
	{name: "zstd without check", pack: "zstd -q --no-check -c $1 >$2", unpack: "zstd -dc", sized: true},
	{name: "zstd of frames", pack: `head -c 2000000 $1 >$2.a; tail -c +2000001 $1 >$2.b; zstd -q -c $2.a >$2; printf '\123\052\115\030\003\000\000\000abc' >>$2; zstd -q --long=27 -c $2.b >>$2; printf '\120\052\115\030\000\000\000\000' >>$2`, unpack: "zstd -dc", sized: true},
	{name: "zstd skippable first", pack: `printf '\120\052\115\030\003\000\000\000abc' >$2; zstd -q -c $1 >>$2`, unpack: "zstd -dc", sized: true},
	{name: "bzip2", pack: "bzip2 -c $1 >$2", unpack: "bzip2 -dc"},
	{name: "bzip2 of streams", pack: "head -c 70000 $1 | bzip2 -1 -c >$2; bzip2 -c </dev/null >>$2; tail -c +70001 $1 | bzip2 -5 >>$2", unpack: "bzip2 -dc"},
	{name: "bzip2 padded", pack: "bzip2 -c $1 >$2; head -c 1000 /dev/zero >>$2", unpack: "bzip2 -dc"},
	{name: "bzip2 padded by one", pack: "bzip2 -c $1 >$2; head -c 1 /dev/zero >>$2", unpack: "bzip2 -dc"},
	{name: "bzip2 padded by two", pack: "bzip2 -c $1 >$2; head -c 2 /dev/zero >>$2", unpack: "bzip2 -dc"},
	{name: "lz4", pack: "lz4 -q -c $1 >$2", unpack: "lz4 -dc"},
	{name: "lz4 -B4 -BX -BD", pack: "lz4 -q -B4 -BX -BD -c $1 >$2", unpack: "lz4 -dc"},
	{name: "lz4 with its length", pack: "lz4 -q -9 -B7 --content-size -c $1 >$2", unpack: "lz4 -dc", sized: true},
	{name: "lz4 without check", pack: "lz4 -q -B5 --no-frame-crc -c $1 >$2", unpack: "lz4 -dc"},
	{name: "lz4 of frames", pack: `head -c 2000000 $1 | lz4 -q -B4 -c >$2; printf '\120\052\115\030\003\000\000\000abc' >>$2; tail -c +2000001 $1 | lz4 -q -B6 -BX -c >>$2`, unpack: "lz4 -dc"},
}

func pack(t testing.TB, command, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "image.packed")
	tool(t, "sh", "-ec", command, "sh", from, to)
	return to
}

func openStreamAt(t testing.TB, path, imageType string) *Stream {
	t.Helper()
	src, err := Open(path, imageType)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src.(*Stream)
}

// readAll decodes all parts, as many at once as the stream allows.
func readAll(s *Stream) ([]byte, error) {
	parts := s.Parts()
	got, errs := make([][]byte, len(parts)), make([]error, len(parts))
	tokens := make(chan struct{}, s.Workers())
	var group sync.WaitGroup
	for i, p := range parts {
		tokens <- struct{}{}
		group.Go(func() {
			defer func() { <-tokens }()
			r, err := s.Reader(p)
			if err != nil {
				errs[i] = err
				return
			}
			defer r.Close()
			if got[i], errs[i] = io.ReadAll(r); errs[i] == nil && p.Length >= 0 && len(got[i]) != int(p.Length) {
				errs[i] = fmt.Errorf("a part of %d bytes has %d", p.Length, len(got[i]))
			}
		})
	}
	group.Wait()
	return bytes.Join(got, nil), errors.Join(errs...)
}

func TestStreamsAgainstTools(t *testing.T) {
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
			s := openStreamAt(t, path, TypeQEMU)
			got, err := readAll(s)
			if err != nil || sha256.Sum256(got) != sha256.Sum256(want) {
				t.Errorf("other bytes than the tool: %d, want %d, %v", len(got), len(want), err)
			}
			if len(want) != 2_500_700 {
				t.Errorf("the tool makes %d bytes", len(want))
			}
			if !bytes.Equal(s.Head(), want[:size.MiB]) {
				t.Error("the head is another")
			}
			if n, known := s.Size(); known != c.sized || known && n != 2_501_120 {
				t.Errorf("size %d, %v", n, known)
			}
			if (len(s.Parts()) > 1) != c.parts {
				t.Errorf("parts: %+v", s.Parts())
			}
			if name, _, _ := strings.Cut(c.name, " "); s.Compression() != name || s.Format() != Raw || s.Path() != path {
				t.Errorf("it is %s, %s", s.Compression(), s.Format())
			}
			if kind, err := Detect(path); err != nil || kind != TypeQEMU {
				t.Errorf("detected %q, %v", kind, err)
			}
		})
	}
}

// Where the tool finds an error, so must we, and before the end; and we must
// wherever the file is cut off.
func TestStreamsAreDamaged(t *testing.T) {
	need.Tools(t, "gzip", "xz", "zstd", "bzip2", "lz4", "sh")
	raw := filepath.Join(t.TempDir(), "source.raw")
	makeContent(t, raw, 60_000)
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, pack, unpack string }{
		{"gzip", "gzip -c $1 >$2", "gzip -dc"},
		{"gzip of members", "head -c 30000 $1 >$2.part; gzip -c $2.part >$2; tail -c +30001 $1 | gzip >>$2", "gzip -dc"},
		{"xz", "xz -c $1 >$2", "xz -dc"},
		{"xz of streams", "head -c 30000 $1 | xz -C crc32 -c >$2; head -c 8 /dev/zero >>$2; tail -c +30001 $1 | xz --block-size=10000 >>$2", "xz -dc"},
		{"zstd", "zstd -q -c $1 >$2", "zstd -dc"},
		{"zstd of frames", "head -c 30000 $1 | zstd -q -c >$2; tail -c +30001 $1 | zstd -q >>$2", "zstd -dc"},
		{"bzip2", "bzip2 -c $1 >$2", "bzip2 -dc"},
		{"bzip2 of streams", "head -c 30000 $1 | bzip2 -1 -c >$2; tail -c +30001 $1 | bzip2 -5 >>$2", "bzip2 -dc"},
		{"lz4", "lz4 -q -B4 -c $1 >$2", "lz4 -dc"},
		{"lz4 of frames", "head -c 30000 $1 | lz4 -q -BX --content-size -c >$2; tail -c +30001 $1 | lz4 -q -c >>$2", "lz4 -dc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := pack(t, c.pack, raw)
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			ends := memberEnds(t, c.name, path, raw)
			for _, n := range places(len(whole)) {
				if slices.Contains(ends, n) {
					continue
				}
				if _, err := consume(t, path, whole[:n], want); err == nil {
					t.Errorf("cut at %d of %d: no error", n, len(whole))
				}
			}
			for _, n := range places(len(whole)) {
				flipped := slices.Clone(whole)
				flipped[n] ^= 1 << (n % 8)
				// A few bits mean nothing to the libraries: then the checksum has
				// shown that the content is right.
				same, err := consume(t, path, flipped, want)
				if err == nil && !same && exec.Command("sh", "-c", c.unpack+" <$0", path).Run() != nil {
					t.Errorf("bit %d of byte %d: no error, but one of the tool", n%8, n)
				}
			}
			for _, junk := range []string{"x", "\x00x", "junk that is long enough", "\x1f\x8b", "BZ", "\x28\xb5\x2f\xfd", "\x04\x22\x4d\x18", "\x02\x21\x4c\x18"} {
				if _, err := consume(t, path, append(slices.Clone(whole), junk...), want); err == nil {
					t.Errorf("%q behind the end: no error", junk)
				}
			}
		})
	}
}

// memberEnds is where the first of two members ends: cut off there, a file is
// whole.
func memberEnds(t *testing.T, name, path, raw string) []int {
	if !strings.Contains(name, " of ") {
		return nil
	}
	commands := map[string]string{"gzip": "gzip -c $2.part >$2", "xz": "xz -C crc32 -c $2.part >$2", "zstd": "cat $2.part | zstd -q -c >$2",
		"bzip2": "bzip2 -1 -c $2.part >$2", "lz4": "cat $2.part | lz4 -q -BX --content-size -c >$2"}
	kind, _, _ := strings.Cut(name, " ")
	info, err := os.Stat(pack(t, "head -c 30000 $1 >$2.part;"+commands[kind], raw))
	if err != nil {
		t.Fatal(err)
	}
	n := int(info.Size())
	return []int{n, n + 4, n + 8} // xz: with padding
}

// places are some twenty offsets in n bytes, more at both ends.
func places(n int) []int {
	var at []int
	for i := range 6 {
		at = append(at, i, n-1-i, n-1-2*i)
	}
	for i := range 8 {
		at = append(at, n*i/8+i%7)
	}
	at = slices.DeleteFunc(at, func(i int) bool { return i < 0 || i >= n })
	slices.Sort(at)
	return slices.Compact(at)
}

// consume opens and reads what is in the file from now on, and says whether it
// is as wanted.
func consume(t *testing.T, path string, data, want []byte) (bool, error) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	src, err := Open(path, TypeRaw)
	if err != nil {
		return false, err
	}
	defer src.Close()
	s, ok := src.(*Stream)
	if !ok {
		return false, errors.New("no longer compressed")
	}
	got, err := readAll(s)
	return bytes.Equal(got, want), err
}

// What is inside goes through the gate, too.
func TestStreamsOfOtherThings(t *testing.T) {
	need.Tools(t, "gzip", "xz", "zstd", "bzip2", "lz4", "sh", "tar", "qemu-img")
	dir := t.TempDir()
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", dir+"/qcow2", "1M")
	tool(t, "qemu-img", "create", "-q", "-f", "vmdk", dir+"/vmdk", "1M")
	tool(t, "tar", "-C", dir, "-cf", dir+"/tar", "qcow2")
	iso := make([]byte, 64<<10)
	copy(iso[0x8001:], "CD001")
	for name, data := range map[string][]byte{"iso": iso, "empty": nil, "dump": dumpHeader(binary.LittleEndian, dumpMagicNew)} {
		if err := os.WriteFile(dir+"/"+name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ name, pack, of, imageType, want, detect string }{
		{"qcow2 in xz", "xz -c $1 >$2", "qcow2", TypeQEMU, "a qcow2 image compressed with xz: unpack it with `xz -d`", ""},
		{"qcow2 in gzip", "gzip -c $1 >$2", "qcow2", TypeQCOW2, "a qcow2 image compressed with gzip: unpack it with `gunzip`", ""},
		{"vmdk in zstd", "zstd -q -c $1 >$2", "vmdk", TypeQEMU, "a VMDK image, and that compressed with zstd (`zstd -d` unpacks it): convert it", ""},
		{"iso in bzip2", "bzip2 -c $1 >$2", "iso", TypeQEMU, "an ISO 9660 image, and that compressed with bzip2 (`bunzip2` unpacks it): an installer", ""},
		{"xz in lz4", "xz -c $1 | lz4 -q -c >$2", "iso", TypeQEMU, "compressed with xz, and that compressed with lz4 (`lz4 -d` unpacks it): only what is compressed once", ""},
		{"tar in xz", "xz -c $1 >$2", "tar", TypeQEMU, "a tar archive, and that compressed with xz", TypeTarball},
		{"tar in gzip", "gzip -c $1 >$2", "tar", TypeQEMU, "use the image type tarball", TypeTarball},
		{"tar", "cp $1 $2", "tar", TypeQEMU, "use the image type tarball", TypeTarball},
		{"dump", "cp $1 $2", "dump", TypeQEMU, "use the image type dump", TypeDump},
		{"dump in gzip", "gzip -c $1 >$2", "dump", TypeQEMU, "use the image type dump", TypeDump},
		{"qcow2", "cp $1 $2", "qcow2", "", "", TypeQCOW2},
		{"vmdk", "cp $1 $2", "vmdk", TypeQEMU, "a VMDK image", ""},
		{"raw in gzip for qcow2", "head -c 99999 /dev/zero | gzip -c >$2", "iso", TypeQCOW2, "no qcow2 image, it is compressed with gzip", TypeQEMU},
		{"nothing in gzip", "gzip -c $1 >$2", "empty", TypeQEMU, "nothing inside its gzip data", ""},
		{"nothing in xz", "xz -c $1 >$2", "empty", TypeRaw, "nothing inside its xz data", ""},
		{"nothing in zstd", "zstd -q -c $1 >$2", "empty", TypeRaw, "nothing inside its zstd data", ""},
		{"lzma", "xz -F lzma -c $1 >$2", "iso", TypeRaw, "compressed with lzma", ""},
		{"legacy lz4", "lz4 -q -l -c $1 >$2", "iso", TypeQEMU, "legacy format", ""},
		{"empty", "cp $1 $2", "empty", TypeQEMU, "the file is empty", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := pack(t, c.pack, filepath.Join(dir, c.of))
			if c.imageType != "" {
				wantRefusal(t, path, c.imageType, c.want)
			}
			detected, err := Detect(path)
			if detected != c.detect || (err == nil) != (c.detect != "") {
				t.Errorf("detected %q, %v, want %q", detected, err, c.detect)
			}
		})
	}
	s := openStreamAt(t, pack(t, "xz -c $1 >$2", dir+"/qcow2"), TypeRaw)
	if !bytes.HasPrefix(s.Head(), []byte("QFI\xfb")) {
		t.Error("what is inside raw is raw")
	}
}

// dumpHeader is the first record of a dump.
func dumpHeader(order binary.ByteOrder, magic uint32) []byte {
	b := make([]byte, 10<<10)
	order.PutUint32(b, dumpTape)
	order.PutUint32(b[24:], magic)
	order.PutUint32(b[28:], dumpSum-dumpTape-magic)
	return b
}

func TestDetectsDumps(t *testing.T) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		for _, magic := range []uint32{60011, 60012, 0x19540119} {
			if got, err := Detect(writeFile(t, "dump", dumpHeader(order, magic))); got != TypeDump {
				t.Errorf("%s %d: %q, %v", order, magic, got, err)
			}
		}
	}
	if got, err := Detect(writeFile(t, "dump", dumpHeader(binary.LittleEndian, 60013))); got != TypeQEMU {
		t.Errorf("another magic: %q, %v", got, err)
	}
}

func TestRefusesStreams(t *testing.T) {
	need.Tools(t, "xz", "zstd", "gzip", "lz4", "bzip2", "sh")
	repeat := func(unit string, n int) []byte { return bytes.Repeat([]byte(unit), n) }
	bzip2Empty := "BZh9\x17\x72\x45\x38\x50\x90\x00\x00\x00\x00"
	zstdEmpty := "\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00"
	raw := filepath.Join(t.TempDir(), "raw")
	makeContent(t, raw, 300_000)
	run := func(command string) []byte {
		data, err := os.ReadFile(pack(t, command, raw))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	xzData := run("xz -c $1 >$2")
	gzipEmpty := string(run("gzip -c </dev/null >$2"))
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"endless gzip members", repeat(gzipEmpty, 5000), "in more than 4096 pieces"},
		{"endless zstd frames", repeat(zstdEmpty, 5000), "in more than 4096 pieces"},
		{"endless skippable frames", append(repeat("\x50\x2a\x4d\x18\x00\x00\x00\x00", 4000), append(repeat(zstdEmpty, 1), repeat("\x50\x2a\x4d\x18\x00\x00\x00\x00", 5000)...)...), "in more than 4096 pieces"},
		{"endless lz4 frames", repeat("\x04\x22\x4d\x18\x60\x40\x82\x00\x00\x00\x00", 5000), "in more than 4096 pieces"},
		{"endless bzip2 streams", repeat(bzip2Empty, 300_000), "more compressed data than any program writes"},
		{"zstd window", []byte("\x28\xb5\x2f\xfd\x00\x90\x01\x00\x00"), "needs a window of 256 MiB"},
		{"zstd single segment", []byte("\x28\xb5\x2f\xfd\xa0\x00\x00\x00\x10\x01\x00\x00"), "needs a window of 256 MiB"},
		{"zstd dictionary", []byte("\x28\xb5\x2f\xfd\x21\x05\x00\x01\x00\x00"), "needs the zstd dictionary 5"},
		{"lz4 dictionary", []byte("\x04\x22\x4d\x18\x61\x40\x01\x00\x00\x00\x00"), "needs an lz4 dictionary"},
		{"large zstd", []byte("\x28\xb5\x2f\xfd\xc0\x00\x00\x00\x00\x00\x00\x00\x00\x7f\x01\x00\x00"), "disk is larger than 64 TiB"},
		{"xz cut off", xzData[:len(xzData)-4], "no end of xz data where the file ends"},
		{"xz padding of three", append(slices.Clone(xzData), 0, 0, 0), "no end of xz data where the file ends"},
		{"xz padding alone", append([]byte("\xfd7zXZ\x00"), make([]byte, 1000)...), "no end of xz data"},
		{"xz padding without end", append(slices.Clone(xzData), make([]byte, 1<<20+4)...), "more than 1 MiB of padding"},
		{"xz behind something", append([]byte("\xfd7zXZ\x00xx"), xzData...), "no end of xz data"},
		{"xz checks", changeXZ(xzData, func(_, footer []byte) { footer[9] = 2 }), "checks of kind 0x2"},
		{"xz index far away", changeXZ(xzData, func(_, footer []byte) { footer[7] = 0x7f }), "its index is damaged"},
		{"xz index of nothing", changeXZ(xzData, func(index, _ []byte) { index[1] = 0 }), "its index is damaged"},
		{"xz index of much", changeXZ(xzData, func(index, _ []byte) { copy(index[1:], "\xff\xff\x7f") }), "more than 262144 blocks"},
		{"xz index of another length", changeXZ(xzData, func(index, _ []byte) { index[5]++ }), "its xz data is damaged (xz: data is corrupt): fetch it again"},
		{"xz streams", repeat(string(run("xz -c </dev/null >$2")), 4_100), "more than 4096 streams"},
		{"xz block header", append(slices.Clone(xzData[:16]), append([]byte{1}, xzData[17:]...)...), "its block at offset 12 has a damaged header"},
		{"xz stream header", append(slices.Clone(xzData[:7]), append([]byte{1}, xzData[8:]...)...), "no xz stream at offset 0"},
		{"xz filter", run("xz --arm64 --lzma2=preset=0 -c $1 >$2"), "the filter 0xa"},
	} {
		t.Run(c.name, func(t *testing.T) {
			wantRefusal(t, writeFile(t, "image", c.data), TypeRaw, c.want)
		})
	}
}

// changeXZ changes the index and the footer of a file with one stream, and makes
// the checksums right again.
func changeXZ(data []byte, change func(index, footer []byte)) []byte {
	data = slices.Clone(data)
	footer := data[len(data)-12:]
	length := (int(binary.LittleEndian.Uint32(footer[4:])) + 1) * 4
	index := data[len(data)-12-length : len(data)-12]
	change(index, footer)
	fixXZ(index, footer)
	return data
}

// What a hostile file can make the program take: its address space is measured
// in a process of its own, one for each file.
func TestStreamMemory(t *testing.T) {
	if path := os.Getenv("TEST_STREAM_MEMORY"); path != "" {
		before := addressSpace(t)
		if src, err := Open(path, TypeRaw); err == nil {
			_, err = readDiscarding(src.(*Stream))
			fmt.Println("read:", err)
		} else {
			fmt.Println("open:", err)
		}
		fmt.Println("grown by", addressSpace(t)-before)
		return
	}
	need.Tools(t, "xz", "zstd", "sh")
	growing := []byte{}
	for _, window := range []byte{0x40, 0x50, 0x60, 0x68, 0x70, 0x78, 0x80, 0x82, 0x84, 0x86, 0x87, 0x88} {
		growing = append(growing, 0x28, 0xb5, 0x2f, 0xfd, 0, window, 0x03, 0x00, 0x10, 'x') // 128 KiB of one byte
	}
	single := []byte{}
	for i := range byte(4) {
		frame := binary.LittleEndian.AppendUint32([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0}, 100<<20+uint32(i)<<21)
		single = append(append(single, frame...), bytes.Repeat([]byte{0x02, 0x00, 0x10, 'x'}, 800+16*int(i)-1)...)
		single = append(single, 0x03, 0x00, 0x10, 'x')
	}
	for name, path := range map[string]string{
		"growing windows":         writeFile(t, "growing", growing),
		"growing single segments": writeFile(t, "single", single),
		"xz":                      pack(t, "head -c 140M /dev/zero | xz --lzma2=preset=0,dict=128MiB -c >$2", ""),
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestStreamMemory$", "-test.v")
			cmd.Env = append(os.Environ(), "TEST_STREAM_MEMORY="+path)
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			_, text, _ := strings.Cut(string(out), "grown by ")
			var grown int64
			if _, err := fmt.Sscan(text, &grown); err != nil || grown > 300<<20 {
				t.Errorf("grew by %s: %s", size.Bytes(grown), out)
			}
			t.Logf("%s", out)
		})
	}
}

func readDiscarding(s *Stream) (n int64, err error) {
	for _, p := range s.Parts() {
		r, err := s.Reader(p)
		if err != nil {
			return n, err
		}
		m, err := io.Copy(io.Discard, r)
		n += m
		if err := errors.Join(err, r.Close()); err != nil {
			return n, err
		}
	}
	return n, nil
}

// addressSpace is what the process has of it, but for what is only reserved.
func addressSpace(t testing.TB) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ = bytes.Cut(text, []byte("VmData:"))
	var kib int64
	if _, err := fmt.Sscan(string(text), &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// Opening a hostile file takes little of a processor.
func TestStreamOpenIsCheap(t *testing.T) {
	need.Tools(t, "bzip2", "gzip", "sh")
	cases := map[string][]byte{
		"many xz blocks": manyXZBlocks(1<<18, 0, 0),
		"bzip2 blocks":   bytes.Repeat(mustPack(t, "printf a | bzip2 -c >$2"), 80_000),
		"gzip blocks":    bytes.Repeat(mustPack(t, "printf abcd | gzip -c >$2"), 4000),
	}
	for name, data := range cases {
		t.Run(name, func(t *testing.T) {
			path := writeFile(t, "image", data)
			before := cpuTime(t)
			src, err := Open(path, TypeRaw)
			if err == nil {
				src.Close()
			}
			took := cpuTime(t) - before
			t.Logf("%v in %d ms", err, took/1e6)
			if took > 3e9 { // a busy machine's
				t.Errorf("took %d ms", took/1e6)
			}
		})
	}
}

func cpuTime(t testing.TB) int64 {
	t.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}

func mustPack(t testing.TB, command string) []byte {
	t.Helper()
	data, err := os.ReadFile(pack(t, command, ""))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// FuzzStream opens any bytes and reads at most 8 MiB of what is inside.
func FuzzStream(f *testing.F) {
	raw := filepath.Join(f.TempDir(), "raw")
	makeContent(f, raw, 40_000)
	for _, c := range packings {
		to := filepath.Join(f.TempDir(), "packed")
		if exec.Command("sh", "-ec", c.pack, "sh", raw, to).Run() != nil {
			continue
		}
		if data, err := os.ReadFile(to); err == nil && len(data) < 64<<10 {
			f.Add(data)
		}
	}
	f.Add(manyXZBlocks(100, 0, 0))
	path := filepath.Join(f.TempDir(), "image")
	buf := make([]byte, 256<<10)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<20 {
			return
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Detect(path); err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%q has two lines", err)
		}
		src, err := Open(path, TypeRaw)
		if err != nil {
			return
		}
		defer src.Close()
		s, ok := src.(*Stream)
		if !ok {
			return
		}
		if n, known := s.Size(); known && (n <= 0 || n%sector != 0) || len(s.Parts()) == 0 || s.Workers() < 1 {
			t.Fatalf("size %d, %d parts, %d workers", n, len(s.Parts()), s.Workers())
		}
		fuzzParts(t, s, buf)
	})
}

func fuzzParts(t *testing.T, s *Stream, buf []byte) {
	total := size.Bytes(0)
	for _, p := range s.Parts() {
		if p.Offset != total {
			return
		}
		r, err := s.Reader(p)
		if err != nil {
			return
		}
		for err == nil && total < 8<<20 {
			var n int
			n, err = r.Read(buf)
			total += size.Bytes(n)
		}
		if err == io.EOF && p.Length >= 0 && total != p.Offset+p.Length {
			t.Fatalf("the part at %d of %d bytes ends at %d", p.Offset, p.Length, total)
		}
		r.Close()
		if err != io.EOF {
			return
		}
	}
	if n, known := s.Size(); known && total.AlignUp(sector) != n {
		t.Fatalf("size %d, but %d were read", n, total)
	}
}
