package image

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"ganeti-instance-image/internal/size"
)

// fixXZ makes the checksums of an index and a footer right.
func fixXZ(index, footer []byte) {
	binary.LittleEndian.PutUint32(index[len(index)-4:], crc32.ChecksumIEEE(index[:len(index)-4]))
	binary.LittleEndian.PutUint32(footer, crc32.ChecksumIEEE(footer[4:10]))
}

// manyXZBlocks is a stream of empty blocks, whose index says they have content.
func manyXZBlocks(n int, dictionary byte, content int64) []byte {
	header := []byte{2, 0, 0x21, 1, dictionary, 0, 0, 0}
	header = binary.LittleEndian.AppendUint32(header, crc32.ChecksumIEEE(header))
	block := append(header, 0, 0, 0, 0) // the end of LZMA2 data, and padding
	data := append(xzStreamHeader(0), bytes.Repeat(block, n)...)
	index := appendXZNumber([]byte{0}, int64(n))
	for range n {
		index = appendXZNumber(append(index, 13), content)
	}
	for len(index)%4 != 0 {
		index = append(index, 0)
	}
	index = append(index, 0, 0, 0, 0)
	footer := append(binary.LittleEndian.AppendUint32(make([]byte, 4), uint32(len(index)/4-1)), 0, 0, 'Y', 'Z')
	fixXZ(index, footer)
	return append(append(data, index...), footer...)
}

func TestXZNumbers(t *testing.T) {
	for _, n := range []int64{0, 1, 127, 128, 1 << 20, 1<<63 - 1} {
		if got, rest := xzNumber(append(appendXZNumber(nil, n), 7)); got != n || len(rest) != 1 {
			t.Errorf("%d: %d, %v", n, got, rest)
		}
	}
	for _, b := range []string{"", "\x80", "\x80\x00", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"} {
		if got, _ := xzNumber([]byte(b)); got != -1 {
			t.Errorf("%q: %d", b, got)
		}
	}
}

// A dictionary counts as far as there is content to fill it.
func TestXZDictionaries(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(8))
	for _, c := range []struct {
		dictionary byte
		content    size.Bytes
		want       string
	}{
		{8, 100 * size.MiB, "64 KiB for 8"}, {28, 100 * size.MiB, "64 MiB for 2"}, {29, 100 * size.MiB, "96 MiB for 1"},
		{30, 500 * size.MiB, "128 MiB for 1"}, {40, 100 * size.MiB, "128 MiB for 1"}, {40, 20 * size.MiB, "24 MiB for 6"},
		{31, 500 * size.MiB, "it needs a dictionary of 192 MiB, and 128 MiB is the most"}, {40, 129 * size.MiB, "it needs a dictionary of 192 MiB"},
		{8, 40 * size.TiB, "its disk is larger than 64 TiB"}, {41, size.MiB, "it is packed with the filter 0x21"},
	} {
		data := manyXZBlocks(20, c.dictionary, int64(c.content))
		s := &Stream{compression: xzFormat, length: size.Bytes(len(data))}
		path := writeFile(t, "image", data)
		var err error
		if s.f, err = os.Open(path); err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		got := ""
		if err := s.survey(); err != nil {
			got = err.Error()
		} else {
			got = fmt.Sprintf("%s for %d", size.Bytes(dictionarySize(s.dictionary)), s.workers)
		}
		if !strings.HasPrefix(got, c.want) {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// FuzzXZIndex reads the indexes of any bytes, after it made their checksums
// right.
func FuzzXZIndex(f *testing.F) {
	raw := filepath.Join(f.TempDir(), "raw")
	makeContent(f, raw, 40_000)
	for _, c := range packings {
		to := filepath.Join(f.TempDir(), "packed")
		if c.unpack != "xz -dc" || exec.Command("sh", "-ec", c.pack, "sh", raw, to).Run() != nil {
			continue
		}
		if data, err := os.ReadFile(to); err == nil {
			f.Add(data)
		}
	}
	f.Add(manyXZBlocks(10, 40, 1))
	f.Fuzz(func(t *testing.T, data []byte) {
		if n := len(data); n >= 32 {
			footer := data[n-12:]
			if length := (int64(binary.LittleEndian.Uint32(footer[4:])) + 1) * 4; length >= 4 && length <= int64(n)-12 {
				fixXZ(data[n-12-int(length):n-12], footer)
			}
		}
		r := bytes.NewReader(data)
		blocks, err := xzIndexes(r, int64(len(data)))
		if err != nil {
			return
		}
		end := int64(0)
		for _, b := range blocks {
			if b.at < end+xzEnds && end == 0 || b.at < end || b.content < 0 || b.unpadded < xzMinUnpadded {
				t.Fatalf("block %+v behind %d", b, end)
			}
			if end = b.at + b.stored(); end > int64(len(data)) {
				t.Fatalf("block %+v ends behind %d bytes", b, len(data))
			}
			if h, err := readXZHeader(r, b); err == nil && (h.dictionary < 4 || h.dictionary >= len(h.bytes)-4) {
				t.Fatalf("a dictionary at %d of %d bytes", h.dictionary, len(h.bytes))
			}
		}
	})
}
