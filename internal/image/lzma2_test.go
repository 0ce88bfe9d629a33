package image

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"os/exec"
	"testing"

	"github.com/mikelolasagasti/xz"

	"ganeti-instance-image/internal/need"
)

// All properties, small dictionaries that the window outgrows, stored chunks, all
// checks.
func TestLZMA2AgainstTool(t *testing.T) {
	need.Tools(t, "xz", "sh")
	raw := writeFile(t, "raw", nil)
	tool(t, "sh", "-c", "(seq 400000; head -c 300000 /dev/urandom; head -c 5000000 /dev/zero; seq 200000 | tr 0-9 j-s) >$0", raw)
	want, err := exec.Command("cat", raw).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, options := range []string{
		"-0", "-1 --check=sha256", "-0e --check=crc32", "-0 --check=none --block-size=1MiB",
		"--lzma2=preset=0,dict=4KiB", "--lzma2=preset=1,dict=64KiB,lc=0,lp=4,pb=4", "--lzma2=preset=0,lc=4,lp=0,pb=0",
		"--lzma2=preset=0,lc=1,lp=3,pb=1,dict=1MiB", "--lzma2=preset=0,lc=0,lp=0,pb=3", "--lzma2=preset=1,nice=273,dict=5MiB",
	} {
		path := pack(t, "xz "+options+" -c <$1 >$2", raw)
		s := openStreamAt(t, path, TypeRaw)
		if !s.lzma2 {
			t.Errorf("%s: not decoded by our own code", options)
		}
		if got, err := readAll(s); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want %d, %v", options, len(got), len(want), err)
		}
	}
}

// decodeLZMA2 decodes data of a dictionary of 64 KiB, and says how much of it was
// taken.
func decodeLZMA2(data []byte) (out []byte, took int, err error) {
	var z lzma2
	z.begin(1 << 16)
	in := bufio.NewReader(bytes.NewReader(data))
	for len(out) < 16<<20 {
		chunk, n, err := z.chunk(in)
		out, took = append(out, chunk...), took+n
		if err == io.EOF {
			return out, took, nil
		}
		if err != nil {
			return out, took, err
		}
	}
	return out, took, errXZData
}

// asXZ is LZMA2 data as a file of one block without check.
func asXZ(data []byte, content int) []byte {
	sum := func(b []byte) []byte { return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b)) }
	block := sum([]byte{2, 0, xzLZMA2, 1, 8, 0, 0, 0})
	index := appendXZNumber(appendXZNumber([]byte{0, 1}, int64(len(block)+len(data))), int64(content))
	index = sum(append(index, make([]byte, -len(index)&3)...))
	footer := append(binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4-1)), 0, 0)
	file := append(append(xzStreamHeader(0), block...), data...)
	file = append(append(file, make([]byte, -len(data)&3)...), index...)
	file = binary.LittleEndian.AppendUint32(file, crc32.ChecksumIEEE(footer))
	return append(append(file, footer...), xzFooterMagic...)
}

// FuzzLZMA2 compares with the library: what we decode, it decodes, and what we
// refuse, it does not take for whole.
func FuzzLZMA2(f *testing.F) {
	need.Tools(f, "xz", "sh")
	for _, options := range []string{"dict=64KiB", "dict=4KiB,lc=0,lp=2,pb=0", "dict=64KiB,lc=4,pb=4"} {
		for _, content := range []string{"seq 3000", "head -c 3000 /dev/urandom", "head -c 100000 /dev/zero; seq 10"} {
			data, err := exec.Command("sh", "-c", "("+content+") | xz --format=raw --lzma2=preset=6,"+options).Output()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Add([]byte{1, 0, 2, 'a', 'b', 'c', 2, 0, 0, 'd', 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<17 {
			t.Skip()
		}
		out, took, err := decodeLZMA2(data)
		if len(out) >= 16<<20 {
			t.Skip()
		}
		if err == nil {
			data = data[:took]
		}
		z, theirErr := xz.NewReader(bytes.NewReader(asXZ(data, len(out))), 1<<20)
		var theirs []byte
		if theirErr == nil {
			theirs, theirErr = io.ReadAll(z)
		}
		if (err == nil) != (theirErr == nil) {
			t.Fatalf("%v, and the library %v", err, theirErr)
		}
		if err == nil && !bytes.Equal(out, theirs) {
			t.Fatalf("%d bytes, and the library has %d others", len(out), len(theirs))
		}
	})
}
