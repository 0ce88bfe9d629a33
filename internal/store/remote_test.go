package store

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/settings"
	"ganeti-instance-image/internal/size"
)

// site is a web server with files, and with other behaviour at some paths.
type site struct {
	*httptest.Server
	mu       sync.Mutex
	files    map[string]string
	handlers map[string]http.HandlerFunc
	asked    []string // paths, in order
}

func newSite(t *testing.T, tls bool) *site {
	w := &site{files: map[string]string{}, handlers: map[string]http.HandlerFunc{}}
	if tls {
		w.Server = httptest.NewTLSServer(w)
	} else {
		w.Server = httptest.NewServer(w)
	}
	t.Cleanup(w.Close)
	return w
}

func (w *site) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	w.asked = append(w.asked, r.URL.Path)
	text, there := w.files[r.URL.Path]
	handler := w.handlers[r.URL.Path]
	w.mu.Unlock()
	switch {
	case handler != nil:
		handler(rw, r)
	case there:
		rw.Header().Set("Content-Type", "application/octet-stream")
		rw.Header().Set("Content-Length", strconv.Itoa(len(text)))
		fmt.Fprint(rw, text)
	default:
		rw.Header().Set("Content-Type", "text/html")
		rw.WriteHeader(http.StatusNotFound)
		fmt.Fprint(rw, "<html>no such page</html>")
	}
}

// count tells how often a path was asked for since the last call.
func (w *site) count(path string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, asked := range w.asked {
		if asked == path {
			n++
		}
	}
	w.asked = nil
	return n
}

func (w *site) publish(path, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.files[path] = text
	w.files[path+".sha256"] = fmt.Sprintf("%x  %s\n", sha256.Sum256([]byte(text)), path[strings.LastIndex(path, "/")+1:])
}

// handle gives some paths a behaviour of their own; nil takes it back.
func (w *site) handle(handler http.HandlerFunc, paths ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, path := range paths {
		w.handlers[path] = handler
	}
}

// newStore makes a store that asks the site and gives up soon.
func (w *site) newStore(t *testing.T, s settings.Settings) *store {
	if s.CacheDir == "" {
		s.CacheDir = filepath.Join(t.TempDir(), "cache")
	}
	c := newClient(nil, 30*time.Second)
	if w.TLS != nil {
		c.http.Transport.(*http.Transport).TLSClientConfig = w.Client().Transport.(*http.Transport).TLSClientConfig
	}
	t.Cleanup(c.http.CloseIdleConnections)
	return &store{settings: &s, machine: "x86_64", client: c}
}

func wantFile(t *testing.T, got Found, err error, text string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(got.Path)
	if err != nil {
		t.Fatal(err)
	}
	if string(data) != text {
		t.Fatalf("the image %s holds %d other bytes than the %d published", got.Path, len(data), len(text))
	}
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if len(entries) > 0 {
		t.Errorf("left in CACHE_DIR: %v", entries)
	}
}

var content = strings.Repeat("image of a guest ", 200_000) // 3.4 MB, several buffers

// TestRefused holds all that must leave nothing in the cache and say why.
func TestRefused(t *testing.T) {
	const image = "/images/deb.qcow2"
	serve := func(header map[string]string, text string) http.HandlerFunc {
		return func(rw http.ResponseWriter, r *http.Request) {
			for key, value := range header {
				rw.Header().Set(key, value)
			}
			rw.WriteHeader(http.StatusOK)
			fmt.Fprint(rw, text)
			rw.(http.Flusher).Flush()
		}
	}
	abort := func(handler http.HandlerFunc) http.HandlerFunc {
		return func(rw http.ResponseWriter, r *http.Request) {
			handler(rw, r)
			panic(http.ErrAbortHandler)
		}
	}
	full := map[string]string{"Content-Length": strconv.Itoa(len(content))}
	tests := []struct {
		name    string
		handler http.HandlerFunc
		verify  bool
		noSum   bool
		want    []string
	}{
		{name: "404", handler: http.NotFound, verify: true, want: []string{"404 Not Found", "IMAGE_URL"}},
		{name: "404 without a sum", handler: http.NotFound, verify: true, noSum: true, want: []string{"404 Not Found"}},
		{name: "404 unverified", handler: http.NotFound, want: []string{"404 Not Found", "IMAGE_URL"}},
		{name: "500", verify: true, want: []string{"500 Internal Server Error"},
			handler: func(rw http.ResponseWriter, _ *http.Request) { http.Error(rw, "oops", 500) }},
		{name: "partial content", verify: true, want: []string{"206"},
			handler: func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(206); fmt.Fprint(rw, content) }},
		{name: "no content", want: []string{"204"},
			handler: func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(204) }},
		{name: "cut", handler: abort(serve(full, content[:2_000_000])), verify: true, want: []string{"cut before the end"}},
		{name: "cut unverified", handler: abort(serve(full, content[:2_000_000])), want: []string{"cut before the end"}},
		{name: "cut in chunks", handler: abort(serve(nil, content[:2_000_000])), verify: true, want: []string{"cut before the end"}},
		{name: "cut in chunks unverified", handler: abort(serve(nil, content[:2_000_000])), want: []string{"cut before the end"}},
		{name: "wrong digest", handler: serve(nil, strings.ToUpper(content)), verify: true, want: []string{"checksum is sha256:", "should be sha256:", "nothing of it is kept"}},
		{name: "short and complete", handler: serve(nil, content[:100]), verify: true, want: []string{"100 bytes"}},
		{name: "web page", handler: serve(map[string]string{"Content-Type": "text/html; charset=utf-8"}, "<html>"), verify: true, want: []string{"web page"}},
		{name: "web page unverified", handler: serve(map[string]string{"Content-Type": "text/html"}, "<html>"), want: []string{"web page"}},
		{name: "no sum", handler: serve(full, content), verify: true, noSum: true,
			want: []string{"cannot verify", "no checksum", ".sha512, .sha256, .sha1, .sig, SHA512SUMS, SHA256SUMS", "IMAGE_VERIFY=no", "sha256sum deb.qcow2"}},
		{name: "no length", handler: unbounded(content), want: []string{"how long the file is"}},
		{name: "announced too much", handler: abort(serve(map[string]string{"Content-Length": "9000000000000000000"}, content))},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			web := newSite(t, false)
			web.publish(image, content)
			if test.noSum {
				delete(web.files, image+".sha256")
			}
			web.handlers[image] = test.handler
			st := web.newStore(t, settings.Settings{ImageURL: secret(web.URL + image), ImageVerify: test.verify})
			_, err := st.find(t.Context())
			wantError(t, err, append(test.want, image)...)
			wantNoSecret(t, err.Error())
			wantEmpty(t, st.settings.CacheDir)
		})
	}
}

// unbounded answers as HTTP/1.0 servers do, where the end of the connection is
// the end of the file.
func unbounded(text string) http.HandlerFunc {
	return func(rw http.ResponseWriter, _ *http.Request) {
		conn, _, err := rw.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.0 200 OK\r\n\r\n"+text)
	}
}

// secret adds what must not be shown to a URL.
func secret(raw string) string {
	return strings.Replace(raw, "://", "://alice:hunter2@", 1) + "?token=hunter2"
}

func wantNoSecret(t *testing.T, text string) {
	t.Helper()
	if strings.Contains(text, "hunter2") || strings.Contains(text, "alice") {
		t.Errorf("a secret of the URL is shown: %s", text)
	}
}

func TestNoLengthVerified(t *testing.T) {
	web := newSite(t, false)
	web.publish("/deb.raw", content)
	web.handlers["/deb.raw"] = unbounded(content)
	got, err := web.newStore(t, settings.Settings{ImageURL: web.URL + "/deb.raw", ImageVerify: true}).find(t.Context())
	wantFile(t, got, err, content)
}

func TestStall(t *testing.T) {
	stuck := func(first string) http.HandlerFunc {
		return func(rw http.ResponseWriter, r *http.Request) {
			if first != "" {
				rw.Header().Set("Content-Length", "1000000")
				fmt.Fprint(rw, first)
				rw.(http.Flusher).Flush()
			}
			<-r.Context().Done()
		}
	}
	for name, stalled := range map[string][]string{
		"no answer":    {"/deb.raw", ""},
		"in the body":  {"/deb.raw", "a few bytes"},
		"in the sum":   {"/deb.raw.sha512", "a few bytes"},
		"before a sum": {"/deb.raw.sha512", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			web := newSite(t, false)
			web.publish("/deb.raw", content)
			web.handlers[stalled[0]] = stuck(stalled[1])
			st := web.newStore(t, settings.Settings{ImageURL: web.URL + "/deb.raw", ImageVerify: true})
			st.client.stall = 500 * time.Millisecond
			_, err := st.find(t.Context())
			wantError(t, err, "nothing came from the server for 500ms", stalled[0])
			wantEmpty(t, st.settings.CacheDir)
		})
	}
}

func TestCancelled(t *testing.T) {
	web := newSite(t, false)
	web.publish("/deb.raw", content)
	ctx, cancel := context.WithCancelCause(t.Context())
	web.handlers["/deb.raw"] = func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprint(rw, content)
		rw.(http.Flusher).Flush()
		cancel(errors.New("SIGTERM came"))
		<-r.Context().Done()
	}
	st := web.newStore(t, settings.Settings{ImageURL: web.URL + "/deb.raw", ImageVerify: true})
	_, err := st.find(ctx)
	wantError(t, err, "SIGTERM came")
	wantEmpty(t, st.settings.CacheDir)
}

func TestRedirects(t *testing.T) {
	plain, safe := newSite(t, false), newSite(t, true)
	plain.publish("/there/other.raw", content)
	safe.publish("/there/other.raw", content)
	to := func(target string) http.HandlerFunc {
		return func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, target, http.StatusFound) }
	}
	safe.handlers["/loop.raw"] = to("/loop.raw")
	safe.handlers["/plain.raw"] = to(secret(plain.URL + "/there/other.raw"))
	safe.handlers["/file.raw"] = to("file:///etc/passwd")
	safe.handlers["/broken.raw"] = to("http://[hunter2/?token=hunter2")
	safe.handlers["/good.raw"] = to("/hop1")
	for i := 1; i < maxRedirects; i++ {
		safe.handlers[fmt.Sprintf("/hop%d", i)] = to(fmt.Sprintf("/hop%d", i+1))
	}
	var referer string
	safe.handlers[fmt.Sprintf("/hop%d", maxRedirects)] = func(rw http.ResponseWriter, r *http.Request) {
		referer = r.Referer()
		fmt.Fprint(rw, content)
	}
	for path, want := range map[string]string{
		"/loop.raw":   "more than 10 times",
		"/plain.raw":  "from https to http://127.0.0.1",
		"/file.raw":   "from https to file:",
		"/broken.raw": "cannot fetch",
	} {
		st := safe.newStore(t, settings.Settings{ImageURL: secret(safe.URL + path)})
		_, err := st.find(t.Context())
		wantError(t, err, want, safe.URL+path)
		wantNoSecret(t, strings.ReplaceAll(err.Error(), "[hunter2", "["))
		wantEmpty(t, st.settings.CacheDir)
	}
	plain.handlers["/file.raw"] = to("file:///etc/passwd")
	_, err := plain.newStore(t, settings.Settings{ImageURL: plain.URL + "/file.raw"}).find(t.Context())
	wantError(t, err, "unsupported protocol scheme")
	got, err := safe.newStore(t, settings.Settings{ImageURL: secret(safe.URL + "/good.raw")}).find(t.Context())
	wantFile(t, got, err, content)
	if referer != "" {
		t.Errorf("the next server was told %s", referer)
	}
	if n := plain.count("/there/other.raw"); n > 0 {
		t.Error("the unprotected server was asked")
	}
	plain.handlers["/up.raw"] = to(safe.URL + "/there/other.raw")
	got, err = safe.newStore(t, settings.Settings{ImageURL: plain.URL + "/up.raw"}).find(t.Context())
	wantFile(t, got, err, content)
}

func TestUntrustedCertificate(t *testing.T) {
	web := newSite(t, true)
	web.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	web.publish("/deb.raw", content)
	st := web.newStore(t, settings.Settings{ImageURL: web.URL + "/deb.raw"})
	st.client = newClient(nil, 30*time.Second)
	_, err := st.find(t.Context())
	wantError(t, err, "certificate")
}

// TestSumFiles publishes the checksum in each of the ways there are.
func TestSumFiles(t *testing.T) {
	s1, s256, s512 := fmt.Sprintf("%x", sha1.Sum([]byte(content))), fmt.Sprintf("%x", sha256.Sum256([]byte(content))), fmt.Sprintf("%x", sha512.Sum512([]byte(content)))
	wrong := strings.Repeat("0", 128)
	tests := []struct {
		name  string
		files map[string]string
		want  string // the algorithm; "" where it must be refused
	}{
		{"sha512", map[string]string{"deb.qcow2.sha512": s512 + "  deb.qcow2\n"}, "sha512"},
		{"sha256", map[string]string{"deb.qcow2.sha256": s256 + " *deb.qcow2\n"}, "sha256"},
		{"sha1", map[string]string{"deb.qcow2.sha1": s1 + "  deb.qcow2\n"}, "sha1"},
		{"the Bash version's", map[string]string{"deb.qcow2.sig": s1 + "  deb.qcow2\n"}, "sha1"},
		{"bare", map[string]string{"deb.qcow2.sha256": s256}, "sha256"},
		{"standard input", map[string]string{"deb.qcow2.sha256": s256 + "  -\n"}, "sha256"},
		{"upper case, CRLF, directory", map[string]string{"deb.qcow2.sha256": strings.ToUpper(s256) + "  /srv/images/deb.qcow2\r\n"}, "sha256"},
		{"BSD", map[string]string{"deb.qcow2.sha256": "SHA256 (deb.qcow2) = " + s256 + "\n"}, "sha256"},
		{"openssl", map[string]string{"deb.qcow2.sha512": "SHA2-512(deb.qcow2)= " + s512 + "\n"}, "sha512"},
		{"strongest first", map[string]string{"deb.qcow2.sig": wrong[:40] + "  deb.qcow2\n", "deb.qcow2.sha512": s512 + "  deb.qcow2\n"}, "sha512"},
		{"list", map[string]string{"SHA512SUMS": wrong + "  other.qcow2\n" + s512 + "  deb.qcow2\n" + wrong + "  xdeb.qcow2\n"}, "sha512"},
		{"list of 256", map[string]string{"SHA256SUMS": s256 + " *./deb.qcow2\n" + wrong[:64] + "  sub/deb.qcow2\n"}, "sha256"},
		{"list with directories", map[string]string{"SHA256SUMS": wrong[:64] + "  a/x.qcow2\n" + s256 + "  b/deb.qcow2\n"}, "sha256"},
		{"signed list", map[string]string{"CHECKSUM": "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n# deb.qcow2: 3400000 bytes\nSHA256 (deb.qcow2) = " + s256 +
			"\n-----BEGIN PGP SIGNATURE-----\n\niQIzBAEB\n-----END PGP SIGNATURE-----\n"}, "sha256"},
		{"unfit, then fit", map[string]string{"deb.qcow2.sha512": "<html>no such page</html>", "deb.qcow2.sig": "\x88\x1c\x04\x00\x01", "SHA256SUMS": s256 + "  deb.qcow2"}, "sha256"},
		{"own file names another", map[string]string{"deb.qcow2.sha256": s256 + "  other.qcow2\n"}, ""},
		{"list has only others", map[string]string{"SHA256SUMS": s256 + "  other.qcow2\n"}, ""},
		{"list has it bare", map[string]string{"SHA256SUMS": s256 + "\n"}, ""},
		{"wrong length for the name", map[string]string{"deb.qcow2.sha256": s1 + "  deb.qcow2\n"}, ""},
		{"wrong length for the tag", map[string]string{"deb.qcow2.sha256": "SHA512 (deb.qcow2) = " + s256 + "\n"}, ""},
		{"two that differ", map[string]string{"SHA256SUMS": s256 + "  deb.qcow2\n" + wrong[:64] + "  deb.qcow2\n"}, ""},
		{"bare among others", map[string]string{"deb.qcow2.sha256": "sum follows\n" + s256 + "\n"}, ""},
		{"too long", map[string]string{"deb.qcow2.sha256": s256 + "  deb.qcow2\n" + strings.Repeat("#\n", int(sumLimit))}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			web := newSite(t, false)
			web.files["/i/deb.qcow2"] = content
			for name, text := range test.files {
				web.files["/i/"+name] = text
			}
			st := web.newStore(t, settings.Settings{ImageURL: web.URL + "/i/deb.qcow2", ImageVerify: true})
			got, err := st.find(t.Context())
			if test.want == "" {
				if err == nil {
					t.Fatal("taken")
				}
				if web.count("/i/deb.qcow2") > 1 {
					t.Error("the image was downloaded")
				}
				wantEmpty(t, st.settings.CacheDir)
				return
			}
			wantFile(t, got, err, content)
			if algorithm, _, _ := strings.Cut(got.Sum, ":"); algorithm != test.want {
				t.Errorf("verified with %q, want %s", got.Sum, test.want)
			}
		})
	}
}

func TestPrefix(t *testing.T) {
	tests := []struct {
		name     string
		url      string // after the server's
		file     string // what is there
		s        settings.Settings
		wantType string // "" where it must not be found
	}{
		{"as Bash", "/osl", "/osl/deb-x86_64.qcow2", settings.Settings{Arch: "x86_64", ImageType: "qcow2"}, "qcow2"},
		{"slash at the end", "/osl/", "/osl/deb-x86_64-root.dump", settings.Settings{Arch: "x86_64", ImageType: "dump"}, "dump"},
		{"top directory", "", "/deb-x86_64.img", settings.Settings{Arch: "x86_64", ImageType: "qemu"}, "qemu"},
		{"no type", "/osl", "/osl/deb.raw", settings.Settings{}, "raw"},
		{"the node's name", "/osl", "/osl/deb-amd64.qcow2", settings.Settings{}, "qcow2"},
		{"escaped directory", "/a%20b%2Fc", "/a b/c/deb.raw", settings.Settings{}, "raw"},
		{"not there", "/osl", "/osl/deb-arm64.raw", settings.Settings{}, ""},
		{"not there, one name", "/osl", "/osl/deb-arm64.raw", settings.Settings{Arch: "x", ImageType: "raw"}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			web := newSite(t, false)
			web.publish(test.file, content)
			test.s.ImageURL, test.s.ImageName, test.s.ImageVerify = secret(web.URL+test.url), "deb", true
			st := web.newStore(t, test.s)
			got, err := st.find(t.Context())
			if test.wantType == "" {
				wantError(t, err, web.URL+"/osl/", "deb", "IMAGE_NAME")
				wantNoSecret(t, err.Error())
				wantEmpty(t, st.settings.CacheDir)
				return
			}
			wantFile(t, got, err, content)
			if got.Type != test.wantType {
				t.Errorf("got type %s", got.Type)
			}
		})
	}
}

func TestURLRefused(t *testing.T) {
	for _, raw := range []string{"ftp://host/x.raw", "/srv/x.raw", "http:///x.raw", "http://alice:hunter2/x@host/x.raw", "file:///etc/x.raw", "http://host/a%2Fx.raw", "http://host/%00x.raw"} {
		_, err := Find(t.Context(), &settings.Settings{ImageURL: raw, CacheDir: t.TempDir()}, "x86_64")
		wantError(t, err, "cannot")
		wantNoSecret(t, err.Error())
	}
	_, err := Find(t.Context(), &settings.Settings{ImageURL: "http://host/images"}, "x86_64")
	wantError(t, err, "-O image_name=")
}

func TestCacheReuse(t *testing.T) {
	web := newSite(t, false)
	web.publish("/deb.qcow2", content)
	st := web.newStore(t, settings.Settings{ImageURL: web.URL + "/deb.qcow2", ImageVerify: true})
	again := func() Found {
		t.Helper()
		got, err := st.find(t.Context())
		wantFile(t, got, err, web.files["/deb.qcow2"])
		return got
	}
	path := again().Path
	if n := web.count("/deb.qcow2"); n != 1 {
		t.Errorf("downloaded %d times", n)
	}
	again()
	if n := web.count("/deb.qcow2"); n != 0 {
		t.Errorf("downloaded again")
	}

	// Another algorithm at the server, a lost record or a new time of the same
	// bytes: read once more, not downloaded.
	web.files["/deb.qcow2.sha512"] = fmt.Sprintf("%x\n", sha512.Sum512([]byte(content)))
	again()
	if err := os.Remove(path + recordEnding); err != nil {
		t.Fatal(err)
	}
	again()
	if err := os.Chtimes(path, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	again()
	if n := web.count("/deb.qcow2"); n != 0 {
		t.Errorf("downloaded again")
	}

	// A damaged copy and a new image at the server: downloaded.
	write(t, path, "damaged")
	again()
	if n := web.count("/deb.qcow2"); n != 1 {
		t.Errorf("downloaded %d times", n)
	}
	delete(web.files, "/deb.qcow2.sha512")
	web.publish("/deb.qcow2", strings.ToUpper(content))
	again()
	if n := web.count("/deb.qcow2"); n != 1 {
		t.Errorf("downloaded %d times", n)
	}

	// A copy that was touched is not believed by its record.
	web.publish("/deb.qcow2", content)
	web.handlers["/deb.qcow2"] = http.NotFound
	_, err := st.find(t.Context())
	wantError(t, err, "404")
}

func TestServerGone(t *testing.T) {
	web := newSite(t, false)
	web.publish("/deb.qcow2", content)
	for _, verify := range []bool{true, false} {
		st := web.newStore(t, settings.Settings{ImageURL: web.URL + "/deb.qcow2", ImageVerify: verify})
		first, err := st.find(t.Context())
		wantFile(t, first, err, content)

		for _, gone := range []http.HandlerFunc{http.NotFound, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(503) },
			func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }} {
			web.handle(gone, "/deb.qcow2", "/deb.qcow2.sha256", "/deb.qcow2.sha512")
			got, err := st.find(t.Context())
			wantFile(t, got, err, content)
		}
		if verify {
			write(t, first.Path, "damaged")
			_, err := st.find(t.Context())
			wantError(t, err, "cannot fetch")
		}
		web.handle(nil, "/deb.qcow2", "/deb.qcow2.sha256", "/deb.qcow2.sha512")
	}

	// A copy that was never verified does not do for IMAGE_VERIFY=yes.
	st := web.newStore(t, settings.Settings{ImageURL: web.URL + "/deb.qcow2"})
	_, err := st.find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st.settings.ImageVerify = true
	web.Close()
	_, err = st.find(t.Context())
	wantError(t, err, "cannot fetch", "connection refused")
}

func TestUnverifiedIsAskedFor(t *testing.T) {
	web := newSite(t, false)
	text, changed := content, time.Unix(1_700_000_000, 0)
	var sent []int
	web.handlers["/deb.qcow2"] = func(rw http.ResponseWriter, r *http.Request) {
		w := httptest.NewRecorder()
		http.ServeContent(w, r, "", changed, strings.NewReader(text))
		for key, value := range w.Header() {
			rw.Header()[key] = value
		}
		sent = append(sent, w.Code)
		rw.WriteHeader(w.Code)
		_, _ = rw.Write(w.Body.Bytes())
	}
	st := web.newStore(t, settings.Settings{ImageURL: web.URL + "/deb.qcow2"})
	for range 2 {
		got, err := st.find(t.Context())
		wantFile(t, got, err, text)
	}
	text, changed = strings.ToUpper(content), changed.Add(time.Hour)
	for range 2 {
		got, err := st.find(t.Context())
		wantFile(t, got, err, text)
	}
	if fmt.Sprint(sent) != "[200 304 200 304]" {
		t.Errorf("the server answered %v", sent)
	}
}

// TestPlaced has a file in CACHE_DIR under the Bash version's name.
func TestPlaced(t *testing.T) {
	web := newSite(t, false)
	web.publish("/i/deb-x86_64.qcow2", content)
	s := settings.Settings{ImageURL: web.URL + "/i", ImageName: "deb", Arch: "x86_64", ImageType: "qcow2", CacheDir: t.TempDir()}
	placed := filepath.Join(s.CacheDir, "deb-x86_64.qcow2")

	s.ImageVerify, s.ImageCleanup = true, true
	write(t, placed, content)
	got, err := web.newStore(t, s).find(t.Context())
	wantFile(t, got, err, content)
	if got.Path != placed || web.count("/i/deb-x86_64.qcow2") > 0 {
		t.Errorf("not used: %+v", got)
	}
	if err := got.Cleanup(); err != nil {
		t.Error(err)
	}
	wantFile(t, got, nil, content)

	write(t, placed, "an older one of the administrator's")
	got, err = web.newStore(t, s).find(t.Context())
	wantFile(t, got, err, content)
	if got.Path == placed {
		t.Error("the administrator's file was replaced")
	}
	if err := got.Cleanup(); err != nil {
		t.Error(err)
	}

	// A file that the server does not have under that name does not hide one that it has.
	s.ImageType = ""
	write(t, filepath.Join(s.CacheDir, "deb-x86_64-root.dump"), "of no concern")
	got, err = web.newStore(t, s).find(t.Context())
	wantFile(t, got, err, content)
	if got.Type != "qcow2" {
		t.Errorf("got %+v", got)
	}
	if err := errors.Join(got.Cleanup(), os.Remove(filepath.Join(s.CacheDir, "deb-x86_64-root.dump"))); err != nil {
		t.Error(err)
	}

	s.ImageVerify, s.ImageType, s.Arch = false, "", ""
	got, err = web.newStore(t, s).find(t.Context())
	wantFile(t, got, err, "an older one of the administrator's")
	if got.Path != placed || got.Type != "qcow2" {
		t.Errorf("got %+v", got)
	}
}

// TestSameName has two servers' directories with images of one name.
func TestSameName(t *testing.T) {
	web := newSite(t, false)
	web.publish("/a/deb.qcow2", content)
	web.publish("/b/deb.qcow2", strings.ToUpper(content))
	dir := t.TempDir()
	for range 2 {
		for path, want := range map[string]string{"/a/deb.qcow2": content, "/b/deb.qcow2": strings.ToUpper(content)} {
			got, err := web.newStore(t, settings.Settings{ImageURL: web.URL + path, CacheDir: dir}).find(t.Context())
			wantFile(t, got, err, want)
		}
	}
	names := map[string]bool{}
	for _, raw := range []string{"http://a/x/deb-root.dump", "http://a/y/deb-root.dump", "https://a/x/deb-root.dump", "http://b/x/deb-root.dump",
		"http://a/x/deb-root.dump?v=2", "http://a:8080/x/deb-root.dump", "http://u:p@a/x/deb-root.dump", "http://A/x/deb-root.dump"} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		name := cacheName(u, lastPart(u))
		if !strings.HasPrefix(name, "deb.") || !strings.HasSuffix(name, "-root.dump") {
			t.Errorf("%s is kept as %s", raw, name)
		}
		names[name] = true
	}
	if len(names) != 6 { // the last two are the first again
		t.Errorf("names are confused: %v", names)
	}
}

func TestCleanup(t *testing.T) {
	web := newSite(t, false)
	web.publish("/deb.qcow2", content)
	st := web.newStore(t, settings.Settings{ImageURL: web.URL + "/deb.qcow2", ImageVerify: true, ImageCleanup: true})
	one, err := st.find(t.Context())
	wantFile(t, one, err, content)
	two, err := st.find(t.Context())
	wantFile(t, two, err, content)
	if one.Path == two.Path {
		t.Error("two creates share a file that both will remove")
	}
	if err := one.Cleanup(); err != nil {
		t.Error(err)
	}
	wantFile(t, two, nil, content)
	if err := errors.Join(two.Cleanup(), two.Cleanup()); err != nil {
		t.Error(err)
	}
	wantEmpty(t, st.settings.CacheDir)

	// A copy from before IMAGE_CLEANUP was set is used and stays.
	st.settings.ImageCleanup = false
	kept, err := st.find(t.Context())
	wantFile(t, kept, err, content)
	st.settings.ImageCleanup = true
	used, err := st.find(t.Context())
	wantFile(t, used, err, content)
	if err := used.Cleanup(); err != nil {
		t.Error(err)
	}
	wantFile(t, kept, nil, content)
}

func TestConcurrent(t *testing.T) {
	web := newSite(t, false)
	web.publish("/deb.qcow2", content)
	dir := t.TempDir()
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			got, err := web.newStore(t, settings.Settings{ImageURL: web.URL + "/deb.qcow2", ImageVerify: true, CacheDir: dir}).find(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			data, err := os.ReadFile(got.Path)
			if err != nil || string(data) != content {
				t.Errorf("read %d bytes, %v", len(data), err)
			}
		})
	}
	wait.Wait()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("the cache holds %v, %v; want an image and its record", entries, err)
	}
}

// TestSweep has one part whose process is gone and one that is being written.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, partPrefix+"1-x.raw"), "dead")
	live, err := newPart(dir, "x.raw")
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	sweep(dir)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || filepath.Join(dir, entries[0].Name()) != live.Name() {
		t.Errorf("the cache holds %v, %v", entries, err)
	}
}

func TestFullDisk(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	web := newSite(t, false)
	web.publish("/known.raw", content)
	web.publish("/unknown.raw", content)
	web.handlers["/unknown.raw"] = func(rw http.ResponseWriter, _ *http.Request) {
		rw.(http.Flusher).Flush()
		fmt.Fprint(rw, content)
	}
	for _, path := range []string{"/known.raw", "/unknown.raw"} {
		_, err := web.newStore(t, settings.Settings{ImageURL: web.URL + path, ImageVerify: true, CacheDir: dir}).find(t.Context())
		wantError(t, err, "no room", dir, "no space left on device")
		wantEmpty(t, dir)
	}
}

func TestCacheDirIsNoDirectory(t *testing.T) {
	web := newSite(t, false)
	web.publish("/deb.raw", content)
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "")
	_, err := web.newStore(t, settings.Settings{ImageURL: web.URL + "/deb.raw", ImageVerify: true, CacheDir: file + "/cache"}).find(t.Context())
	wantError(t, err, "CACHE_DIR", file)
}

func TestLogHasNoSecret(t *testing.T) {
	var log bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	t.Cleanup(func() { slog.SetDefault(before) })
	web := newSite(t, false)
	web.publish("/deb.qcow2", content)
	st := web.newStore(t, settings.Settings{ImageURL: secret(web.URL + "/deb.qcow2"), ImageVerify: true})
	got, err := st.find(t.Context())
	wantFile(t, got, err, content)
	web.Close()
	got, err = st.find(t.Context())
	wantFile(t, got, err, content)
	record, err := os.ReadFile(got.Path + recordEnding)
	if err != nil {
		t.Fatal(err)
	}
	wantNoSecret(t, log.String()+string(record)+got.Path)
	if !strings.Contains(log.String(), "verified earlier") {
		t.Errorf("no warning: %s", log.String())
	}
	p := newProgress("downloading the image", 4*size.MiB, "url", "http://host/")
	p.next = time.Time{}
	p.add(size.MiB)
	p.add(size.MiB)
	if !strings.Contains(log.String(), "percent=25") || strings.Contains(log.String(), "percent=50") {
		t.Errorf("progress: %s", log.String())
	}
}

func TestFetch(t *testing.T) {
	web := newSite(t, false)
	web.files["/user-data"] = "#cloud-config\n"
	web.handlers["/cut"] = unbounded("#cloud-")
	s := &settings.Settings{}
	got, err := Fetch(t.Context(), s, secret(web.URL+"/user-data"), size.MiB)
	if err != nil || string(got) != "#cloud-config\n" {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := Fetch(t.Context(), s, web.URL+"/user-data", 14); err != nil || len(got) != 14 {
		t.Errorf("got %q, %v", got, err)
	}
	_, err = Fetch(t.Context(), s, web.URL+"/user-data", 13)
	wantError(t, err, "longer than 13 bytes")
	_, err = Fetch(t.Context(), s, secret(web.URL+"/nosuch"), size.MiB)
	wantError(t, err, "404 Not Found", web.URL+"/nosuch")
	wantNoSecret(t, err.Error())
	_, err = Fetch(t.Context(), s, web.URL+"/cut", size.MiB)
	wantError(t, err, "how long")
	_, err = Fetch(t.Context(), s, "gopher://host/", size.MiB)
	wantError(t, err, "https://")
}

func TestProxy(t *testing.T) {
	proxy := newSite(t, false)
	proxy.files["/user-data"] = "by the proxy"
	c := newClient([]string{"HTTP_PROXY=http://wrong.invalid", "http_proxy=" + strings.TrimPrefix(proxy.URL, "http://"), "no_proxy=direct.invalid"}, time.Minute)
	u := func(raw string) *url.URL {
		parsed, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	got, err := c.small(t.Context(), u("http://server.invalid/user-data"), size.MiB)
	if err != nil || string(got) != "by the proxy" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := c.small(t.Context(), u("http://direct.invalid/user-data"), size.MiB); err == nil {
		t.Error("no_proxy is not heeded")
	}
	for host, want := range map[string]bool{"localhost": true, "127.0.0.1": true, "a.example.org": true, "example.org": true, "badexample.org": false,
		"10.1.2.3": true, "11.1.2.3": false, "::1": true, "2001:db8::1": true, "x.wild.net": true, "port.net": true, "": false} {
		if got := isDirect(host, "example.org, 10.0.0.0/8,2001:db8::/32,*.wild.net,port.net:8080"); got != want {
			t.Errorf("%s: direct is %v", host, got)
		}
	}
	if !isDirect("any.host", "*") {
		t.Error("* does not stand for all")
	}
}
