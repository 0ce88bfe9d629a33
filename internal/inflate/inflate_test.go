package inflate

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

func inflated(data []byte, n int) ([]byte, error) {
	out := bytes.Repeat([]byte{0xaa}, n+8)
	in := make([]byte, len(data)+Padding)
	copy(in, data)
	// Padding is whatever was in the buffer before.
	for i := len(data); i < len(in); i++ {
		in[i] = 0x5a
	}
	err := new(Decoder).Decode(out[:n:n], in, len(data))
	if !bytes.Equal(out[n:], bytes.Repeat([]byte{0xaa}, 8)) {
		panic("wrote behind the end")
	}
	return out[:n], err
}

func deflated(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// contents are made to reach literals, matches of all lengths and distances,
// short and long codes, and blocks of each type.
func contents() map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 200_000)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	skewed := make([]byte, 200_000)
	for i := range skewed {
		skewed[i] = byte(min(r.ExpFloat64()*12, 255))
	}
	var runs []byte
	for len(runs) < 200_000 {
		length, distance := 3+r.IntN(300), 1+r.IntN(min(len(runs)+1, 33_000))
		for range length {
			if len(runs) < distance {
				runs = append(runs, byte(r.Uint32()))
				continue
			}
			runs = append(runs, runs[len(runs)-distance])
		}
		runs = append(runs, random[len(runs)%1000:][:r.IntN(9)]...)
	}
	return map[string][]byte{
		"empty": {}, "a byte": {7}, "zeros": make([]byte, 100_000), "random": random, "skewed": skewed, "runs": runs,
		"text": bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog\n"), 3000),
	}
}

func TestInflate(t *testing.T) {
	for name, data := range contents() {
		for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, 1, 6, 9} {
			got, err := inflated(deflated(t, data, level), len(data))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s, level %d: wrong data, %v", name, level, err)
			}
		}
	}
}

func TestInflateLengthsThatAreWrong(t *testing.T) {
	data := contents()["runs"]
	packed := deflated(t, data, 6)
	if _, err := inflated(packed, len(data)-1); !errors.Is(err, errTooLong) {
		t.Errorf("longer than the cluster: %v", err)
	}
	if _, err := inflated(packed, len(data)+1); !errors.Is(err, errDeflateEnd) {
		t.Errorf("shorter than the cluster: %v", err)
	}
	for _, cut := range []int{0, 1, 5, 100, len(packed) / 2, len(packed) - 8} {
		if _, err := inflated(packed[:cut], len(data)); err == nil {
			t.Errorf("the first %d of %d bytes were enough", cut, len(packed))
		}
	}
}

// FuzzInflate holds the decoder against the standard library's.
func FuzzInflate(f *testing.F) {
	for _, data := range contents() {
		for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, 6} {
			f.Add(deflated(f, data[:min(len(data), 3000)], level), uint16(min(len(data), 3000)))
		}
	}
	f.Fuzz(func(t *testing.T, packed []byte, n uint16) {
		got, err := inflated(packed, int(n))
		r := flate.NewReader(bytes.NewReader(packed))
		want, wantErr := io.ReadAll(io.LimitReader(r, int64(n)+1))
		if whole := wantErr == nil && len(want) == int(n); whole != (err == nil) {
			t.Errorf("%d bytes: %v; the library has %d bytes: %v", n, err, len(want), wantErr)
		} else if whole && !bytes.Equal(got, want) {
			t.Error("wrong data")
		}
	})
}

func BenchmarkInflate(b *testing.B) {
	packed := deflated(b, contents()["text"][:65536], 6)
	in := append(packed, make([]byte, Padding)...)
	out := make([]byte, 65536)
	z := new(Decoder)
	b.SetBytes(65536)
	for b.Loop() {
		if err := z.Decode(out, in, len(packed)); err != nil {
			b.Fatal(err)
		}
	}
}
