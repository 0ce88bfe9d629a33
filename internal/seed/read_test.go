package seed

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestReadISO(t *testing.T) {
	for _, c := range seeds {
		t.Run(c.name, func(t *testing.T) {
			_, data := isoOf(t, c.files)
			got, err := ReadISO(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range c.files {
				if !bytes.Equal(content(got, f.Name), f.Data) {
					t.Errorf("%s is %q, want %q", f.Name, content(got, f.Name), f.Data)
				}
			}
			if len(got) != len(c.files) {
				t.Errorf("%d files of %d", len(got), len(c.files))
			}
		})
	}
}

func TestReadISORefusesOthers(t *testing.T) {
	_, good := isoOf(t, seeds[0].files)
	for name, change := range map[string]func([]byte) []byte{
		"zeros":     func(d []byte) []byte { return make([]byte, len(d)) },
		"nothing":   func([]byte) []byte { return nil },
		"cut":       func(d []byte) []byte { return d[:filesAt*sector] },
		"label":     func(d []byte) []byte { copy(d[primaryAt*sector+40:], "CIDATAX"); return d },
		"directory": func(d []byte) []byte { clear(d[primaryRootAt*sector : (primaryRootAt+1)*sector]); return d },
		"lengths": func(d []byte) []byte {
			for i := primaryRootAt * sector; i < (primaryRootAt+1)*sector; i++ {
				d[i] = 0xff
			}
			return d
		},
	} {
		if _, err := ReadISO(bytes.NewReader(change(bytes.Clone(good)))); !errors.Is(err, ErrNoSeed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzReadISO(f *testing.F) {
	iso, err := ISO([]File{{"meta-data", []byte("instance-id: a\n")}, {"user-data", nil}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(iso[primaryAt*sector:][:200], iso[primaryRootAt*sector:][:sector])
	f.Fuzz(func(t *testing.T, descriptor, directory []byte) {
		data := bytes.Clone(iso[:(filesAt+4)*sector])
		copy(data[primaryAt*sector:], descriptor[:min(len(descriptor), sector)])
		copy(data[primaryRootAt*sector:], directory[:min(len(directory), sector)])
		files, err := ReadISO(bytes.NewReader(data))
		if err == nil && content(files, "meta-data") == nil {
			t.Error("a seed without meta-data")
		}
	})
}

// The name and the network are the new ones, all else is as it was.
func TestRenew(t *testing.T) {
	old := []File{
		{"meta-data", []byte("instance-id: \"the old id\"\nlocal-hostname: old\n")}, {"user-data", []byte("secret")},
		{"vendor-data", []byte("vendor")}, {"network-config", []byte("old")},
	}
	fresh := []File{{"meta-data", []byte("instance-id: \"another\"\nlocal-hostname: \"new.example.org\"\n")}, {"user-data", []byte(noUserData)}, {"network-config", []byte("new")}}
	got, err := Renew(old, fresh)
	if err != nil {
		t.Fatal(err)
	}
	meta := string(content(got, "meta-data"))
	if !strings.Contains(meta, "the old id") || !strings.Contains(meta, "new.example.org") || strings.Contains(meta, "another") {
		t.Errorf("meta-data: %s", meta)
	}
	for name, want := range map[string]string{"user-data": "secret", "vendor-data": "vendor", "network-config": "new"} {
		if string(content(got, name)) != want {
			t.Errorf("%s is %q", name, content(got, name))
		}
	}
	if all, err := Renew(nil, fresh); err != nil || !slices.EqualFunc(all, fresh, func(a, b File) bool { return a.Name == b.Name && bytes.Equal(a.Data, b.Data) }) {
		t.Errorf("of nothing: %v, %v", all, err)
	}
	if _, err := Renew([]File{{"meta-data", []byte("local-hostname: x\n")}}, fresh); err == nil || !strings.Contains(err.Error(), "instance-id") {
		t.Errorf("without an id: %v", err)
	}
}

func TestWindowsPasswordIsFoundAgain(t *testing.T) {
	for _, password := range []string{"Pass of all", "pa\u00df\U0001f511"} {
		hidden, err := hide(password)
		if err != nil {
			t.Fatal(err)
		}
		text := "<UserAccounts>\n  <AdministratorPassword>\n    <Value>" + hidden.Value + "</Value></AdministratorPassword>"
		if got := WindowsPassword([]File{{answerFile, []byte(text)}}); got != password {
			t.Errorf("got %q, want %q", got, password)
		}
	}
	for _, text := range []string{"", "<AdministratorPassword><Value>AAAA</Value>", "<AdministratorPassword><Value>A</Value>"} {
		if got := WindowsPassword([]File{{answerFile, []byte(text)}}); got != "" {
			t.Errorf("%q has the password %q", text, got)
		}
	}
}
