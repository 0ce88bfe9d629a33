package test

import (
	"crypto/sha512"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
)

// An image that is fetched, as a site with one image server has it.
func TestImageURL(t *testing.T) {
	need.Root(t)
	raw := patchyImage(t)
	content, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	sum := fmt.Sprintf("%x  debian-12-x86_64.raw\n", sha512.Sum512(content))
	mux := http.NewServeMux()
	for _, dir := range []string{"good", "wrong", "nosum", "cut"} {
		mux.HandleFunc("/"+dir+"/debian-12-x86_64.raw", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", itoa(len(content)))
			if dir == "cut" {
				w.Write(content[:len(content)/2])
				return
			}
			w.Write(content)
		})
	}
	mux.HandleFunc("/good/SHA512SUMS", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, sum) })
	mux.HandleFunc("/cut/SHA512SUMS", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, sum) })
	mux.HandleFunc("/wrong/SHA512SUMS", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, strings.Repeat("00", 64)+sum[128:])
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	cache := t.TempDir()
	settings := func(dir string, more ...string) string {
		return "IMAGE_URL=" + server.URL + "/" + dir + "\nIMAGE_NAME=debian-12\nARCH=x86_64\nIMAGE_TYPE=raw\nNOMOUNT=yes\nCACHE_DIR=" + cache + "\n" + strings.Join(more, "\n")
	}
	s := newSite(t, "")
	deploy := func(t *testing.T, text string, code int, words ...string) {
		t.Helper()
		s.write(t, s.conf("../../default/ganeti-instance-image"), text, 0o644)
		disk := newDisk(t, 90)
		if code != 0 {
			s.refuse(t, instance(disk), code, words...)
			untouched(t, disk)
			return
		}
		s.create(t, instance(disk))
		tool(t, "cmp", "-n", itoa(len(content)), raw, disk)
	}
	cached := func() int {
		files, _ := filepath.Glob(filepath.Join(cache, "*"))
		hidden, _ := filepath.Glob(filepath.Join(cache, ".[a-z]*"))
		return len(files) + len(hidden)
	}
	deploy(t, settings("wrong"), 3, "its checksum is", "debian-12-x86_64.raw")
	deploy(t, settings("nosum"), 3, "IMAGE_VERIFY")
	deploy(t, settings("cut"), 3, "debian-12-x86_64.raw")
	deploy(t, settings("missing"), 3, "cannot find the image debian-12", "/missing/")
	if cached() != 0 {
		t.Errorf("something that was refused is in the cache: %d files", cached())
	}
	deploy(t, settings("good", "IMAGE_CLEANUP=yes"), 0)
	if cached() != 0 {
		t.Errorf("IMAGE_CLEANUP left something in the cache: %d files", cached())
	}
	deploy(t, settings("nosum", "IMAGE_VERIFY=no", "IMAGE_CLEANUP=yes"), 0)
	deploy(t, settings("good"), 0)
	if cached() == 0 {
		t.Error("the image was not kept in the cache")
	}
	s.write(t, s.conf("../../default/ganeti-instance-image"), "IMAGE_URL="+server.URL+"/good/debian-12-x86_64.raw\n", 0o644)
	s.refuse(t, instance(newDisk(t, 90)).with(env{"OSP_IMAGE_NAME": "other"}), 3, "image_name", "IMAGE_URL")
	server.Close()
	deploy(t, settings("good"), 0) // from the cache
}
