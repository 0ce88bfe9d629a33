package osscript

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// tarOf is an archive with the files, each with its name as content.
func tarOf(t testing.TB, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range names {
		h := &tar.Header{Name: name, Mode: 0o600, Size: int64(len(name)), Typeflag: tar.TypeReg, Format: tar.FormatGNU}
		if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Size = tar.TypeDir, 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			_, _ = io.WriteString(w, name)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func paxTar(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "./disk.img", Mode: 0o600, Typeflag: tar.TypeReg, Format: tar.FormatPAX, PAXRecords: map[string]string{"comment": "x"}}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRecognise(t *testing.T) {
	for _, c := range []struct {
		name string
		head []byte
		want backupKind
	}{
		{"nothing", nil, noBackup},
		{"zeros", make([]byte, 4096), rawBackup},
		{"one byte", []byte{1}, rawBackup},
		{"qcow2", []byte("QFI\xfb rest"), qcow2Backup},
		{"dumps", tarOf(t, "./", "./root.dump"), oldBackup},
		{"dumps by name", tarOf(t, "root.dump"), oldBackup},
		{"disk", tarOf(t, "./disk.img"), oldBackup},
		{"another tar", tarOf(t, "etc/"), otherTar},
		{"a pax tar", paxTar(t), oldBackup},
		{"gzip", []byte{0x1f, 0x8b, 8, 0}, packedBackup},
		{"a dump", append(make([]byte, 24), 0x6c, 0xea, 0, 0, 0), bareDump},
		{"ours", tarOf(t, "ganeti-instance-image.json"), ourBackup},
		{"zstd", []byte{0x28, 0xb5, 0x2f, 0xfd}, ourBackup},
	} {
		if got := recognise(c.head); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
		for bit := range 8 * len(c.head) {
			flipped := bytes.Clone(c.head)
			flipped[bit/8] ^= 1 << (bit % 8)
			if got := recognise(flipped); got != c.want && (c.want == ourBackup || c.want == oldBackup || c.want == qcow2Backup) && c.name != "a pax tar" {
				t.Errorf("%s with bit %d flipped: got %q", c.name, bit, got)
			}
		}
	}
}

func TestOldTarIsReadToItsEnd(t *testing.T) {
	whole := tarOf(t, "./", "./boot.dump", "./root.dump")
	readAll := func(b []byte) (names []string, err error) {
		o, err := openOld(bytes.NewReader(b))
		for err == nil && o.name != "" {
			names = append(names, o.name)
			err = o.next()
		}
		return names, err
	}
	if names, err := readAll(append(bytes.Clone(whole), make([]byte, 7680)...)); err != nil || strings.Join(names, " ") != "boot.dump root.dump" {
		t.Errorf("%q, %v", names, err)
	}
	for cut := 1; cut < len(whole); cut++ {
		if _, err := readAll(whole[:cut]); err == nil || !strings.Contains(err.Error(), "cut off") {
			t.Fatalf("cut at %d of %d: %v", cut, len(whole), err)
		}
	}
	if _, err := readAll(tarOf(t, "./", "./root.dump", "./etc/passwd")); err == nil || !strings.Contains(err.Error(), `"./etc/passwd"`) {
		t.Errorf("another file: %v", err)
	}
}

func TestInput(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 300_000)
	in := newInput(bytes.NewReader(data))
	for _, n := range []int{512, 3000} {
		if head, err := in.peek(t.Context(), n); err != nil || !bytes.Equal(head, data[:n]) {
			t.Fatalf("peek: %d bytes, %v", len(head), err)
		}
	}
	got, err := io.ReadAll(in.reader(t.Context()))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d of %d bytes: %v", len(got), len(data), err)
	}
	if head, err := newInput(bytes.NewReader([]byte("x"))).peek(t.Context(), 10); err != nil || string(head) != "x" {
		t.Errorf("a short one: %q, %v", head, err)
	}
}

func TestInputNeedNotBeWaitedFor(t *testing.T) {
	silent, _ := io.Pipe()
	cause := errors.New("cause")
	ctx, cancel := context.WithCancelCause(t.Context())
	in := newInput(silent)
	time.AfterFunc(50*time.Millisecond, func() { cancel(cause) })
	if _, err := in.reader(ctx).Read(make([]byte, 1)); !errors.Is(err, cause) {
		t.Error(err)
	}
	in.drain(ctx)
}
