package inflate

import (
	"bufio"
	"bytes"
	"compress/flate"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"testing/iotest"
)

// chunked reads pieces of any length, and sometimes none.
type chunked struct {
	in   io.Reader
	rand *rand.Rand
}

func (c *chunked) Read(p []byte) (int, error) {
	most := []int{0, 1, 7, 100, 5000, 1 << 20}[c.rand.IntN(6)]
	return c.in.Read(p[:min(len(p), most)])
}

// unread is what a stream still has.
func unread(t testing.TB, src *bufio.Reader) int {
	t.Helper()
	rest, err := io.ReadAll(src)
	if err != nil {
		t.Fatal(err)
	}
	return len(rest)
}

// agrees holds the reader against the standard library's: they make the same
// bytes, give up for the same reason, and leave the same input where they do not.
// The error is the reader's.
func agrees(t *testing.T, r *Reader, packed []byte, seed uint64) error {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 1))
	src := bufio.NewReaderSize(&chunked{bytes.NewReader(packed), random}, headerInput<<random.IntN(9)+random.IntN(1000))
	r.Reset(src)
	var got []byte
	var err error
	for err == nil {
		var b []byte
		if random.IntN(2) == 0 {
			b, err = r.Chunk()
		} else {
			b = make([]byte, random.IntN(50_000))
			var n int
			n, err = r.Read(b)
			b = b[:n]
		}
		got = append(got, b...)
	}
	plain := bytes.NewReader(packed)
	want, wantErr := io.ReadAll(flate.NewReader(plain))
	same := bytes.Equal(got, want)
	switch {
	case wantErr == nil:
		if n := unread(t, src); err != io.EOF || n != plain.Len() {
			t.Errorf("%v, %d bytes are left; the library decodes it and leaves %d", err, n, plain.Len())
		}
	case errors.Is(wantErr, io.ErrUnexpectedEOF):
		// The library wants as many bits as an end of block has. It does not
		// refuse codes without one.
		same = bytes.HasPrefix(got, want) && len(got) < len(want)+16*258 || err == errDeflate && bytes.HasPrefix(want, got)
		if err != io.ErrUnexpectedEOF && err != errDeflate {
			t.Errorf("%v, the library says %v", err, wantErr)
		}
	default:
		same = bytes.HasPrefix(want, got)
		if err != errDeflate {
			t.Errorf("%v, the library says %v", err, wantErr)
		}
	}
	if !same {
		t.Errorf("%d bytes, the library makes %d; %v, %v", len(got), len(want), err, wantErr)
	}
	if _, again := r.Chunk(); again != err {
		t.Errorf("after %v comes %v", err, again)
	}
	return err
}

// large is longer than the window and the input's buffers.
func large() []byte {
	r := rand.New(rand.NewPCG(3, 4))
	var data []byte
	for len(data) < 1_500_000 {
		for _, c := range contents() {
			n := min(len(c), 1+r.IntN(100_000))
			data = append(data, c[:n]...)
		}
	}
	return data
}

func TestReader(t *testing.T) {
	all := contents()
	all["large"] = large()
	all["zeros"] = make([]byte, 3_000_000)
	r := NewReader()
	for name, data := range all {
		for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, 1, 6, 9} {
			packed := deflated(t, data, level)
			for seed := range uint64(5) {
				agrees(t, r, append(packed, "what follows"[:seed*3]...), seed)
			}
			if t.Failed() {
				t.Fatalf("%s, level %d", name, level)
			}
		}
	}
}

// What is cut off or damaged anywhere ends as the library has it.
func TestReaderDamage(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	r := NewReader()
	for name, data := range contents() {
		data = data[:min(len(data), 5000)]
		for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, 6} {
			packed := deflated(t, data, level)
			step := 1 + len(packed)/500
			for cut := 0; cut < len(packed); cut += step {
				if err := agrees(t, r, packed[:cut], uint64(cut)); err != io.ErrUnexpectedEOF {
					t.Errorf("cut off: %v", err)
				}
				damaged := bytes.Clone(packed)
				damaged[cut] ^= 1 << random.IntN(8)
				agrees(t, r, damaged, uint64(cut))
				if t.Failed() {
					t.Fatalf("%s, level %d, at %d", name, level, cut)
				}
			}
		}
	}
}

// The error of the input is that of the data, behind what could be decoded.
func TestReaderPassesErrors(t *testing.T) {
	data := large()
	packed := deflated(t, data, 6)
	broken := io.MultiReader(bytes.NewReader(packed[:len(packed)/2]), iotest.ErrReader(os.ErrClosed))
	r := NewReader()
	r.Reset(bufio.NewReaderSize(broken, 64<<10))
	got, err := io.ReadAll(r)
	if !errors.Is(err, os.ErrClosed) || len(got) < 10_000 || !bytes.HasPrefix(data, got) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestReaderNeedsBuffer(t *testing.T) {
	r := NewReader()
	if _, err := r.Chunk(); err == nil {
		t.Error("decodes without input")
	}
	r.Reset(bufio.NewReaderSize(bytes.NewReader(deflated(t, make([]byte, 1<<20), flate.NoCompression)), 512))
	if _, err := r.Chunk(); err != errBuffer {
		t.Error(err)
	}
}

// Memory is made once, however much is decoded.
func TestReaderMemory(t *testing.T) {
	packed := deflated(t, make([]byte, 50<<20), 6)
	r, in := NewReader(), bytes.NewReader(packed)
	src := bufio.NewReaderSize(in, 64<<10)
	if n := testing.AllocsPerRun(2, func() {
		in.Reset(packed)
		src.Reset(in)
		r.Reset(src)
		if n, err := io.Copy(io.Discard, struct{ io.Reader }{r}); n != 50<<20 || err != nil {
			t.Fatal(n, err)
		}
	}); n > 5 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzReader holds the reader against the standard library's.
func FuzzReader(f *testing.F) {
	for _, data := range contents() {
		for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, 6} {
			packed := deflated(f, data[:min(len(data), 3000)], level)
			f.Add(packed, uint64(1), 0, uint16(0))
			f.Add(append(packed, "behind"...), uint64(2), 6, uint16(300))
			f.Add(packed, uint64(3), len(packed)/2, uint16(1))
		}
	}
	r := NewReader()
	f.Fuzz(func(t *testing.T, packed []byte, seed uint64, cut int, flip uint16) {
		if cut > 0 {
			packed = packed[:len(packed)-min(cut, len(packed))]
		}
		if at := int(flip / 8); flip > 0 && at < len(packed) {
			packed = bytes.Clone(packed)
			packed[at] ^= 1 << (flip % 8)
		}
		agrees(t, r, packed, seed)
	})
}

func BenchmarkReader(b *testing.B) {
	data := contents()["text"][:65536]
	packed := deflated(b, data, 6)
	r, in := NewReader(), bytes.NewReader(packed)
	src := bufio.NewReaderSize(in, 64<<10)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		in.Reset(packed)
		src.Reset(in)
		r.Reset(src)
		if n, err := io.Copy(io.Discard, struct{ io.Reader }{r}); n != int64(len(data)) || err != nil {
			b.Fatal(n, err)
		}
	}
}
