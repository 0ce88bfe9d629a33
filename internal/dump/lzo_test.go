package dump

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"ganeti-instance-image/internal/need"
)

// lzoBlocks are the blocks of a dump compressed with LZO, 10 KiB each.
func lzoBlocks(t testing.TB, name string) [][]byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var blocks [][]byte
	for b = b[10240:]; len(b) > 0; {
		prefix := binary.LittleEndian.Uint32(b)
		length := prefix >> 4
		if prefix&15 == 5 {
			blocks = append(blocks, b[4:4+length])
		}
		b = b[4+length:]
	}
	return blocks
}

func TestLZOBlocks(t *testing.T) {
	blocks := lzoBlocks(t, "old-y.dump")
	if len(blocks) < 50 {
		t.Fatalf("only %d blocks", len(blocks))
	}
	for i, b := range blocks {
		for length, ok := range map[int]bool{10240: true, 10239: false, 10241: false} {
			if err := decodeLZO(make([]byte, length), b); (err == nil) != ok {
				t.Errorf("block %d of %d bytes: %v", i, length, err)
			}
		}
		if err := decodeLZO(make([]byte, 10240), b[:len(b)-1]); err == nil {
			t.Errorf("block %d without its last byte is right", i)
		}
		if err := decodeLZO(make([]byte, 10240), append(bytes.Clone(b), 0)); err == nil {
			t.Errorf("block %d with a byte more is right", i)
		}
	}
}

// TestLZOP decodes what lzop(1) made of data of several kinds, in blocks of 256
// KiB: as dump does at -1, with a better compressor at -9.
func TestLZOP(t *testing.T) {
	need.Tools(t, "lzop")
	random := rand.New(rand.NewPCG(5, 6))
	text := make([]byte, 300_000)
	for i := range text {
		text[i] = "aab c"[random.IntN(5)]
	}
	far := make([]byte, 200_000)
	for i := range far {
		far[i] = byte(random.Uint32())
		if i%1000 < 700 && i > 45_000 {
			far[i] = far[i-(20_000+i/1000%25_000)]
		}
	}
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	for name, plain := range map[string][]byte{
		"zeros": make([]byte, 300_000), "text": text, "far": far, "program": program[1<<20:][:400_000], "few": []byte("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"),
	} {
		for _, level := range []string{"-1", "-9"} {
			t.Run(name+level, func(t *testing.T) {
				c := exec.Command("lzop", level, "-c")
				c.Stdin = bytes.NewReader(plain)
				packed, err := c.Output()
				if err != nil {
					t.Fatal(err)
				}
				if got := unlzop(t, packed); !bytes.Equal(got, plain) {
					t.Error("another content")
				}
			})
		}
	}
}

// unlzop reads a file of lzop, in which only an Adler-32 of the content is there
// for each block.
func unlzop(t *testing.T, b []byte) []byte {
	t.Helper()
	b = b[9+2+2+2+1+1+4+4+4+4:]
	b = b[1+int(b[0])+4:]
	var plain []byte
	for {
		length := int(binary.BigEndian.Uint32(b))
		if length == 0 {
			return plain
		}
		packed := int(binary.BigEndian.Uint32(b[4:]))
		b = b[12:]
		out := make([]byte, length)
		if packed == length {
			copy(out, b)
		} else if err := decodeLZO(out, b[:packed]); err != nil {
			t.Fatal(err)
		}
		plain, b = append(plain, out...), b[packed:]
	}
}

func FuzzLZO(f *testing.F) {
	for _, b := range lzoBlocks(f, "new-y.dump")[:20] {
		f.Add(b, uint16(10240))
	}
	f.Add([]byte{17, 0, 0}, uint16(0))
	f.Add([]byte{21, 1, 2, 3, 4, 0x11, 0, 0}, uint16(4))
	f.Add([]byte{0, 0, 0, 1}, uint16(1))
	f.Fuzz(func(t *testing.T, in []byte, length uint16) {
		out := make([]byte, int(length)+64)
		// Nothing may be written behind the output, whatever room there is.
		if err := decodeLZO(out[:length:length], in); err == nil && len(in) < 3 {
			t.Error("there is no end")
		}
		if !bytes.Equal(out[length:], make([]byte, 64)) {
			t.Error("written behind the end")
		}
	})
}
