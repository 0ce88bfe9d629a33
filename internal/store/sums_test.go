package store

import (
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/run"
)

// TestSumTools reads what the programs that make checksums write.
func TestSumTools(t *testing.T) {
	need.Tools(t, "sha1sum", "sha256sum", "sha512sum", "openssl")
	const name = "deb 12 (new)-x86_64.qcow2"
	file := filepath.Join(t.TempDir(), name)
	write(t, file, content)
	for _, argv := range [][]string{
		{"sha1sum"}, {"sha256sum"}, {"sha512sum"}, {"sha256sum", "-b"}, {"sha256sum", "--tag"}, {"sha512sum", "--tag"}, {"sha1sum", "--tag"},
		{"openssl", "dgst", "-sha256"}, {"openssl", "dgst", "-sha512"}, {"openssl", "dgst", "-sha1"}, {"openssl", "dgst", "-r", "-sha256"},
	} {
		out, err := run.Cmd{What: "make a checksum", Argv: append(argv, file)}.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		sum, err := pickSum(parseSums(out.Stdout), name, []string{"sha512", "sha256", "sha1"}, false)
		if err != nil {
			t.Errorf("%s: %v, of %s", argv, err, out.Stdout)
			continue
		}
		if same, err := matches(t.Context(), file, sum); err != nil || !same {
			t.Errorf("%s: %s does not match: %v", argv, sum, err)
		}
	}
}

// FuzzSums wants no crash, and of what is accepted that a list written from it
// reads the same again.
func FuzzSums(f *testing.F) {
	h := strings.Repeat("0123456789abcdef", 8)
	for _, seed := range []string{
		h + "  x\n" + h[:64] + " *y\r\n", "SHA256 (x) = " + h[:64], "SHA2-512(a (b))= " + h, h[:40], h[:64] + "  -", "# x\n\n" + h[:64] + "  dir/x",
		"\ufeff" + h[:40] + "\tx", "\\" + h[:64] + "  a\\nb", "<html>", "MD5 (x) = " + h[:32],
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		entries := parseSums(text)
		_, _ = pickSum(entries, "x", []string{"sha512", "sha256"}, true)
		var list strings.Builder
		for _, e := range entries {
			if e.sum.hex == "" || newHash(e.sum.algorithm) == nil {
				t.Fatalf("an entry without a checksum: %+v", e)
			}
			list.WriteString(strings.ToUpper(e.sum.algorithm) + " (" + e.file + ") = " + e.sum.hex + "\n")
		}
		again := parseSums([]byte(list.String()))
		for i, e := range entries {
			if e.file != "" && (i >= len(again) || again[i] != e) {
				t.Fatalf("%+v is not read back from %q", e, list.String())
			}
		}
	})
}
