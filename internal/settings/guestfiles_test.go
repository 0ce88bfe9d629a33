package settings

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestGuestFiles(t *testing.T) {
	text := `[{"path": "/etc/motd", "text": "hello\n", "mode": "0600", "owner": "admin", "group": "1000"},
		{"path": "/srv/a b", "contents": "AAEC\n/w=="}, {"path": "/e", "text": "", "mode": "755"}]`
	want := []GuestFile{
		{"/etc/motd", "admin", "1000", 0o600, []byte("hello\n")},
		{"/srv/a b", "", "", 0o644, []byte{0, 1, 2, 255}},
		{"/e", "", "", 0o755, []byte{}},
	}
	set := newSite(t).with("GUEST_FILES='"+text+"'", "-").mustLoad(nil)
	if diff := cmp.Diff(want, set.GuestFiles); diff != "" {
		t.Error(diff)
	}
	if files, err := parseGuestFiles(" [] \n"); err != nil || len(files) > 0 {
		t.Errorf("an empty list: %v, %v", files, err)
	}
}

func TestGuestFilesAreRefused(t *testing.T) {
	const secret = "s3cret"
	file := func(more string) string { return `[{"path": "/` + secret + `", ` + more + `}]` }
	large := base64.StdEncoding.EncodeToString(make([]byte, maxGuestFile+1))
	many := "[" + strings.Repeat(`{"path": "/x", "text": ""},`, maxGuestFiles) + `{"path": "/x", "text": ""}]`
	cases := []struct{ text, want string }{
		{secret, "want a list in JSON"},
		{"null", "want a list in JSON"},
		{"{}", "want a list in JSON"},
		{`{"path": "/` + secret + `", "text": ""}`, "want a list in JSON"},
		{`["` + secret + `"]`, "want a list in JSON"},
		{file(`"text": ""`) + secret, "want a list in JSON"},
		{file(`"text": "", "` + secret + `": 1`), "want a list in JSON"},
		{file(`"text": "", "mode": 420`), "want a list in JSON"},
		{file(`"text": "` + "\xff" + `"`), "want a list in JSON"},
		{strings.Repeat("[", 1<<16), "want a list in JSON"},
		{many, "want at most 64 files"},
		{`[null]`, "file 1 of the list: path"},
		{`[{"path": "` + secret + `", "text": ""}]`, "file 1 of the list: path"},
		{`[{"path": "/a/../` + secret + `", "text": ""}]`, "path: want"},
		{`[{"path": "/` + secret + `/", "text": ""}]`, "path: want"},
		{`[{"path": "/", "text": ""}]`, "path: want"},
		{`[{"path": "/` + secret + `\n", "text": ""}]`, "path: want"},
		{`[{"path": "/` + strings.Repeat("x/", 600) + `x", "text": ""}]`, "path: want"},
		{`[{"path": "/x", "text": ""}, {"path": "/x", "text": "` + secret + `"}]`, "file 2 of the list: an earlier one has the same path"},
		{file(`"text": "", "owner": "-` + secret + `"`), "owner or group"},
		{file(`"text": "", "owner": "a:` + secret + `"`), "owner or group"},
		{file(`"text": "", "group": "a\n` + secret + `"`), "owner or group"},
		{file(`"text": "", "mode": "4755"`), "mode: want"},
		{file(`"text": "", "mode": "-1"`), "mode: want"},
		{file(`"text": "", "mode": "u+` + secret + `"`), "mode: want"},
		{file(`"mode": "0644"`), "want one of text and contents"},
		{file(`"text": "", "contents": ""`), "want one of text and contents"},
		{file(`"contents": "!` + secret + `"`), "contents: want base64"},
		{file(`"contents": "` + large + `"`), "want at most 1 MiB"},
	}
	for _, c := range cases {
		_, err := checkGuestFiles(c.text)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), secret) {
			t.Errorf("%.80q: got %v, want %q", c.text, err, c.want)
		}
	}
}

func FuzzGuestFiles(f *testing.F) {
	f.Add(`[{"path": "/etc/motd", "text": "hello", "mode": "0600", "owner": "a", "group": "1"}, {"path": "/b", "contents": "AA=="}]`)
	f.Add(`[null, {"PATH": "/x", "Text": "\ud800"}]`)
	f.Fuzz(func(t *testing.T, text string) {
		files, err := parseGuestFiles(text)
		if err != nil {
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Fatalf("the message is not one line of ASCII: %q", err)
			}
			return
		}
		paths := map[string]bool{}
		for _, file := range files {
			if paths[file.Path] || file.Mode > 0o777 || file.Path[0] != '/' || strings.Contains(file.Path+"/", "/../") || strings.ContainsAny(file.Owner+file.Group, ":\n/") {
				t.Fatalf("%+v", file)
			}
			paths[file.Path] = true
		}
	})
}
