package image

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/size"
)

// skippableFrame is one of zstd and lz4 with n bytes of zeros.
func skippableFrame(n int) []byte {
	return append(binary.LittleEndian.AppendUint32([]byte("\x50\x2a\x4d\x18"), uint32(n)), make([]byte, n)...)
}

// openAndRead is the error of opening a file or of reading all of it.
func openAndRead(path string) error {
	src, err := Open(path, TypeQEMU)
	if err != nil {
		return err
	}
	defer src.Close()
	s, ok := src.(*Stream)
	if !ok {
		return errors.New("taken for a raw disk")
	}
	_, err = readDiscarding(s)
	return err
}

// Each format says in the same words that it is cut off, damaged or followed by
// something.
func TestStreamErrorsInOneStyle(t *testing.T) {
	need.Tools(t, "gzip", "xz", "zstd", "bzip2", "lz4", "sh")
	raw := filepath.Join(t.TempDir(), "raw")
	makeContent(t, raw, 300_000)
	for _, c := range []struct {
		name, pack        string
		checksum          int // where one is, from the end
		cut, damaged, end string
	}{
		{"gzip", "gzip -c $1 >$2", 8, "", "its checksum is wrong", ""},
		{"zstd", "zstd -q -c $1 >$2", 1, "", "its checksum is wrong", ""},
		{"bzip2", "bzip2 -c $1 >$2", 3, "", "bzip2 data invalid: file checksum mismatch", ""},
		{"lz4", "lz4 -q -c $1 >$2", 1, "", "lz4: invalid frame checksum", ""},
		{"xz", "xz -C crc32 -c $1 >$2", 28, "it is cut off, or something follows", "xz: data is corrupt", "it is cut off, or something follows"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := pack(t, c.pack, raw)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if c.cut == "" {
				c.cut, c.end = "its "+c.name+" data is cut off: fetch it again", "something else follows the compressed data"
			}
			wrong := slices.Clone(data)
			wrong[len(wrong)-c.checksum] ^= 0x5a
			for _, v := range []struct {
				data []byte
				want string
			}{
				{data[:len(data)/2], c.cut},
				{data[:len(data)-2], c.cut},
				{append(slices.Clone(data), "junkjunk"...), c.end},
				{wrong, "its " + c.name + " data is damaged (" + c.damaged},
			} {
				err := openAndRead(writeFile(t, "image", v.data))
				if err == nil || !strings.Contains(err.Error(), v.want) {
					t.Errorf("got %v, want %q", err, v.want)
				}
			}
		})
	}
}

// Zeros behind the data, also those of a hole, are read up to a limit.
func TestStreamsWithHolesBehindThem(t *testing.T) {
	need.Tools(t, "gzip", "xz", "zstd", "bzip2", "sh")
	raw := filepath.Join(t.TempDir(), "raw")
	makeContent(t, raw, 300_000)
	for _, c := range []struct{ name, pack, want string }{
		{"gzip", "gzip -c $1 >$2", "more than 1 MiB of padding follows it"},
		{"xz", "xz -c $1 >$2", "more than 1 MiB of padding follows it"},
		{"bzip2", "bzip2 -c $1 >$2", "more than 1 MiB of padding follows it"},
		{"zstd", "zstd -q -c $1 >$2", "something else follows the compressed data"},
		{"zstd cut off in a block's length", "cat $1 | zstd -q --no-check -c | head -c 6 >$2", "more than 4096 blocks without content follow each other"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := pack(t, c.pack, raw)
			if err := os.Truncate(path, 64<<30); err != nil {
				t.Fatal(err)
			}
			before := cpuTime(t)
			if err := openAndRead(path); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if took := cpuTime(t) - before; took > 2e9 {
				t.Errorf("took %d ms", took/1e6)
			}
		})
	}
}

func TestStreamsBehindSkippableFrames(t *testing.T) {
	need.Tools(t, "zstd", "lz4", "sh")
	raw := filepath.Join(t.TempDir(), "raw")
	makeContent(t, raw, 300_000)
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	before := slices.Concat(skippableFrame(64<<10), skippableFrame(0), skippableFrame(5<<20))
	for _, command := range []string{"zstd -q -c $1 >$2", "lz4 -q -c $1 >$2"} {
		data, err := os.ReadFile(pack(t, command, raw))
		if err != nil {
			t.Fatal(err)
		}
		s := openStreamAt(t, writeFile(t, "image", append(slices.Clone(before), data...)), TypeQEMU)
		if got, err := readAll(s); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", command, len(got), err)
		}
		err = openAndRead(writeFile(t, "image", append(slices.Clone(before), data[:len(data)/2]...)))
		if err == nil || !strings.Contains(err.Error(), "data is cut off") {
			t.Errorf("%s: cut off: %v", command, err)
		}
	}
	const nothing = "it is nothing but skippable frames of zstd or lz4: it is cut off"
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"alone", before, nothing},
		{"cut off within", before[:2<<20], nothing},
		{"cut off in a header", append(skippableFrame(600), skippableFrame(0)[:6]...), nothing},
		{"cut off in a magic", append(skippableFrame(600), "\x28\xb5"...), nothing},
		{"more than are followed", bytes.Repeat(skippableFrame(0), 5000), nothing},
		{"before the legacy format", append(skippableFrame(600), "\x02\x21\x4c\x18"...), "in its legacy format"},
	} {
		for _, imageType := range []string{TypeQEMU, TypeRaw} {
			t.Run(c.name+" "+imageType, func(t *testing.T) { wantRefusal(t, writeFile(t, "image", c.data), imageType, c.want) })
		}
	}
	disk := writeFile(t, "image", append(skippableFrame(600), make([]byte, 4096)...))
	if img, err := openImage(disk, TypeQEMU); err != nil {
		t.Errorf("a disk that begins like a skippable frame: %v", err)
	} else {
		img.Close()
	}
}

// Between frames, skippable ones are read, and not without end.
func TestSkippableFramesAreBounded(t *testing.T) {
	path := writeFile(t, "image", []byte("\x28\xb5\x2f\xfd\x20\x04\x21\x00\x00disk\x50\x2a\x4d\x18\x00\x00\x00\x40"))
	if err := os.Truncate(path, 2<<30); err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, path, TypeRaw, "more than 256 MiB of it are frames to skip")
}

// What is too short for a disk is none, raw or compressed, and the beginning of
// a format is that format.
func TestRefusesShortFiles(t *testing.T) {
	need.Tools(t, "gzip", "sh")
	for _, c := range []struct{ name, data, want string }{
		{"gzip of 2 bytes", "\x1f\x8b", "its gzip data is cut off"},
		{"gzip of 3 bytes", "\x1f\x8b\x08", "its gzip data is cut off"},
		{"gzip of 6 bytes", "\x1f\x8b\x08\x00\x00\x00", "its gzip data is cut off"},
		{"bzip2 of 2 bytes", "BZ", "its bzip2 data is cut off"},
		{"bzip2 of 7 bytes", "BZh91AY", "its bzip2 data is cut off"},
		{"xz of 6 bytes", xzHeaderMagic, "it is cut off, or something follows"},
		{"zstd of 4 bytes", "\x28\xb5\x2f\xfd", "its zstd data is cut off"},
		{"lz4 of 4 bytes", "\x04\x22\x4d\x18", "its lz4 data is cut off"},
		{"a byte", "\x00", "too short to be a disk image"},
		{"511 bytes", string(make([]byte, 511)), "too short to be a disk image"},
		{"511 bytes in gzip", string(mustPack(t, "head -c 511 /dev/zero | gzip -c >$2")), "too short to be a disk image"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := writeFile(t, "image", []byte(c.data))
			wantRefusal(t, path, TypeRaw, c.want)
			wantRefusal(t, path, TypeQEMU, c.want)
			if kind, err := Detect(path); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("detected %q, %v", kind, err)
			}
		})
	}
}

// xz data of many streams is given up soon.
func TestXZStreamsAreCheap(t *testing.T) {
	need.Tools(t, "xz", "sh")
	path := writeFile(t, "image", bytes.Repeat(mustPack(t, "xz -c </dev/null >$2"), 50_000))
	before := cpuTime(t)
	wantRefusal(t, path, TypeRaw, "more than 4096 streams")
	if took := cpuTime(t) - before; took > 300e6 {
		t.Errorf("took %d ms", took/1e6)
	}
}

// A zstd window is allocated once.
func TestZstdWindowMemory(t *testing.T) {
	data := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3, 0x02, 0x00, 0x10, 'x', 0x03, 0x00, 0x10, 'x'}
	path := writeFile(t, "image", data)
	allocated := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			if err := openAndRead(path); err != nil {
				b.Fatal(err)
			}
		}
	}).AllocedBytesPerOp()
	if allocated > 140<<20 {
		t.Errorf("a window of 128 MiB took %s", size.Bytes(allocated))
	}
}

// After Close a reader fails, and does not end as if all were read.
func TestStreamReadersAfterClose(t *testing.T) {
	need.Tools(t, "gzip", "xz", "zstd", "bzip2", "lz4", "sh")
	raw := filepath.Join(t.TempDir(), "raw")
	makeContent(t, raw, 2_500_000)
	for _, command := range []string{"gzip -1 -c $1 >$2", "xz -0 -c $1 >$2", "zstd -q -1 -c $1 >$2", "bzip2 -1 -c $1 >$2", "lz4 -q -c $1 >$2"} {
		s := openStreamAt(t, pack(t, command, raw), TypeRaw)
		r, err := s.Reader(s.Parts()[0])
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		if _, err := io.Copy(io.Discard, r); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: %v", command, err)
		}
	}
}

// An index of no length, in a footer whose checksum is right.
func TestXZIndexWithoutLength(t *testing.T) {
	need.Tools(t, "xz", "sh")
	raw := filepath.Join(t.TempDir(), "raw")
	makeContent(t, raw, 10_000)
	path := pack(t, "xz -c $1 >$2", raw)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	footer := data[len(data)-12:]
	copy(footer[4:8], make([]byte, 4))
	binary.LittleEndian.PutUint32(footer, crc32.ChecksumIEEE(footer[4:10]))
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := openAndRead(path); err == nil || !strings.Contains(err.Error(), "index") {
		t.Errorf("got %v", err)
	}
}

// gzipOf is a member with these parts of a header, made by hand: flags, and what
// they say there is.
func gzipOf(t *testing.T, flags byte, header, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, 6)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	member := slices.Concat([]byte{0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 3}, []byte(header))
	if flags&2 != 0 {
		member = binary.LittleEndian.AppendUint16(member, uint16(crc32.ChecksumIEEE(member)))
	}
	member = binary.LittleEndian.AppendUint32(append(member, b.Bytes()...), crc32.ChecksumIEEE([]byte(content)))
	return binary.LittleEndian.AppendUint32(member, uint32(len(content)))
}

// Headers with everything that there may be are read as the tool reads them.
func TestGzipHeaders(t *testing.T) {
	need.Tools(t, "gzip")
	extra := "\xff\xff" + strings.Repeat("e", 65535)
	name := strings.Repeat("n", 65535) + "\x00"
	content := strings.Repeat("content ", 1000)
	for _, c := range []struct {
		name   string
		flags  byte
		header string
	}{
		{"nothing", 0, ""},
		{"text", 1, ""},
		{"extra", 4, "\x06\x00BC\x02\x00ab"},
		{"long extra", 4, extra},
		{"name", 8, "disk.raw\x00"},
		{"long name", 8, name},
		{"long comment", 16, name},
		{"checksum", 2, ""},
		{"all", 31, extra + name + name},
	} {
		t.Run(c.name, func(t *testing.T) {
			data := gzipOf(t, c.flags, c.header, content)
			path := writeFile(t, "image.gz", slices.Concat(data, data, make([]byte, 5)))
			want, err := exec.Command("gzip", "-dc", path).Output()
			if err != nil && len(want) != 2*len(content) {
				t.Fatal(err)
			}
			if got, err := readArchive(path); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, the tool makes %d; %v", len(got), len(want), err)
			}
			for _, cut := range []int{3, 9, 10 + len(c.header)/2, 10 + len(c.header), len(data) - 9, len(data) - 1} {
				if got, err := readArchive(writeFile(t, "image.gz", slices.Concat(data, data[:cut]))); err == nil || !strings.Contains(err.Error(), "its gzip data is cut off") {
					t.Errorf("cut off in the second member at %d: %d bytes, %v", cut, len(got), err)
				}
			}
		})
	}
}

func TestGzipRefusals(t *testing.T) {
	content := strings.Repeat("content ", 1000)
	good := gzipOf(t, 31, "\x01\x00eimage\x00comment\x00", content)
	changed := func(at int, with byte) []byte {
		data := slices.Clone(good)
		data[(at+len(data))%len(data)] = with
		return slices.Concat(good, data)
	}
	long := strings.Repeat("x", 65536) + "\x00"
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"another method", changed(2, 9), "its gzip data is damaged (its header is wrong): fetch it again"},
		{"a flag of no meaning", changed(3, 31|1<<6), "its gzip data is damaged (its header is wrong): fetch it again"},
		{"a changed time", changed(4, 77), "its gzip data is damaged (its header is wrong): fetch it again"},
		{"another checksum", changed(-8, good[len(good)-8]^1), "its gzip data is damaged (its checksum is wrong): fetch it again"},
		{"another length", changed(-1, 1), "its gzip data is damaged (its length is wrong): fetch it again"},
		{"long name", gzipOf(t, 8, long, content), "its gzip header has a name or comment of over 64 KiB: unpack it with gunzip"},
		{"long comment", gzipOf(t, 16, long, content), "its gzip header has a name or comment of over 64 KiB: unpack it with gunzip"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := writeFile(t, "image.gz", c.data)
			if err := openAndRead(path); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("image: got %v, want %q", err, c.want)
			}
			if _, err := readArchive(path); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("archive: got %v, want %q", err, c.want)
			}
		})
	}
}
