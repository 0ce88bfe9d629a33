package size

import "testing"

func TestParseMiB(t *testing.T) {
	cases := []struct {
		text string
		want Bytes
	}{
		{"512", 512 * MiB}, {"2G", 2 * GiB}, {"2 GiB", 2 * GiB}, {"1t", TiB}, {"100MB", 100 * MiB}, {"0", 0}, {" 7 ", 7 * MiB},
	}
	for _, c := range cases {
		got, err := ParseMiB(c.text)
		if err != nil || got != c.want {
			t.Errorf("ParseMiB(%q) = %d, %v, want %d", c.text, got, err, c.want)
		}
	}
	for _, text := range []string{"", "-1", "2.5G", "G", "12X", "99999999999999T", "1e3"} {
		if got, err := ParseMiB(text); err == nil {
			t.Errorf("ParseMiB(%q) = %d, want an error", text, got)
		}
	}
}

func TestString(t *testing.T) {
	cases := map[Bytes]string{
		0: "0 bytes", 512: "512 bytes", KiB: "1 KiB", 10 * GiB: "10 GiB", 2252 * MiB: "2.2 GiB", 3 * TiB: "3 TiB",
	}
	for b, want := range cases {
		if got := b.String(); got != want {
			t.Errorf("Bytes(%d).String() = %q, want %q", int64(b), got, want)
		}
	}
}

func TestAlign(t *testing.T) {
	if got := (MiB + 1).AlignDown(MiB); got != MiB {
		t.Errorf("AlignDown = %d", got)
	}
	if got := (MiB + 1).AlignUp(MiB); got != 2*MiB {
		t.Errorf("AlignUp = %d", got)
	}
}
