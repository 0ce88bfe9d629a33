package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
)

// source is one place that the image may be downloaded from.
type source struct {
	url       *url.URL
	name      string // the last part of the URL's path
	imageType string
	placed    string // the file that administrators and the Bash version put into CACHE_DIR; "" where there is no such name
	cached    string // where a download of our own is kept
}

// copies lists the files that may hold this image already.
func (src source) copies() []string {
	if src.placed == "" {
		return []string{src.cached}
	}
	return []string{src.placed, src.cached}
}

// remote finds the image that IMAGE_URL names, in CACHE_DIR or at the server.
func (st *store) remote(ctx context.Context) (Found, error) {
	src, err := st.choose(ctx)
	if err != nil {
		return Found{}, err
	}
	found, err := st.fetch(ctx, src)
	if err != nil {
		return Found{}, err
	}
	return st.fetchBoot(ctx, src, found)
}

// fetch finds what a source has, in CACHE_DIR or at the server.
func (st *store) fetch(ctx context.Context, src source) (Found, error) {
	if !st.settings.ImageVerify {
		return st.unverified(ctx, src)
	}
	want, err := st.client.sum(ctx, src)
	if err != nil {
		return st.verifiedBefore(ctx, src, st.hint(src, err))
	}
	for _, path := range src.copies() {
		same, err := matches(ctx, path, want)
		if err != nil {
			return Found{}, fmt.Errorf("cannot use the image in CACHE_DIR: %w", err)
		}
		if same {
			slog.Info("using the image in the cache", "path", path, "sum", want)
			return st.found(path, src.imageType, want), nil
		}
	}
	if there, _ := regular(src.placed); there {
		slog.Warn("the file in CACHE_DIR differs from the checksum at the server and is not used", "path", src.placed, "sum", want)
	}
	return st.download(ctx, src, want, nil)
}

// unverified finds the image where IMAGE_VERIFY=no: only the server's word on
// whether it has changed decides between a copy and a download.
func (st *store) unverified(ctx context.Context, src source) (Found, error) {
	for _, path := range src.copies() {
		there, err := regular(path)
		if err != nil {
			return Found{}, fmt.Errorf("cannot use the image in CACHE_DIR: %w", err)
		}
		if there && path == src.placed {
			slog.Info("using the image that was put into the cache, without verifying it", "path", path)
			return st.found(path, src.imageType, digest{}), nil
		}
		if there {
			return st.renew(ctx, src)
		}
	}
	return st.download(ctx, src, digest{}, nil)
}

// renew downloads an image again if the server says that it has changed.
func (st *store) renew(ctx context.Context, src source) (Found, error) {
	got, err := st.download(ctx, src, digest{}, readRecord(src.cached).condition(src.cached))
	var status *statusError
	switch {
	case err == nil:
		return got, nil
	case errors.As(err, &status) && status.code == http.StatusNotModified:
		slog.Info("using the image in the cache, which the server says is unchanged", "path", src.cached)
	case ctx.Err() != nil:
		return Found{}, err
	default:
		slog.Warn("using the image in the cache, since it cannot be downloaded anew", "path", src.cached, "reason", err)
	}
	return st.found(src.cached, src.imageType, digest{}), nil
}

// verifiedBefore uses a copy that agreed with its checksum when that could still
// be fetched; without one it returns the cause.
func (st *store) verifiedBefore(ctx context.Context, src source, cause error) (Found, error) {
	for _, path := range src.copies() {
		sum := readRecord(path).sum()
		if sum.algorithm == "" || ctx.Err() != nil {
			continue
		}
		if same, err := matches(ctx, path, sum); err == nil && same {
			slog.Warn("using the image in the cache, which was verified earlier, since its checksum cannot be fetched now",
				"path", path, "sum", sum, "reason", cause)
			return st.found(path, src.imageType, sum), nil
		}
	}
	return Found{}, cause
}

// choose returns the source to use. Where there are several names to try, what
// the server has decides, and a file in CACHE_DIR where the server has none or
// cannot be asked, or where IMAGE_VERIFY=no lets the file be used as it is.
func (st *store) choose(ctx context.Context) (source, error) {
	sources, err := st.sources()
	if err != nil || len(sources) == 1 {
		return first(sources), err
	}
	for _, src := range sources {
		if there, _ := regular(src.placed); there && !st.settings.ImageVerify {
			return src, nil
		}
	}
	for _, src := range sources {
		if err = st.client.probe(ctx, src.url); err == nil {
			return src, nil
		}
		if !isAbsent(err) {
			break
		}
	}
	for _, src := range sources {
		for _, path := range src.copies() {
			if there, _ := regular(path); there {
				return src, nil
			}
		}
	}
	if isAbsent(err) {
		err = fmt.Errorf("cannot find the image %s (IMAGE_NAME: %s) at IMAGE_URL %s: looked for %s; correct IMAGE_URL, IMAGE_NAME, ARCH or IMAGE_TYPE",
			st.settings.ImageName, st.settings.Origin("IMAGE_NAME"), redacted(beside(sources[0].url, "")), st.tried())
	}
	return source{}, err
}

func first(sources []source) source {
	if len(sources) == 0 {
		return source{}
	}
	return sources[0]
}

// sources lists where the image may be: at IMAGE_URL itself, where that ends
// as an image does, or else below it under the names an image may have.
func (st *store) sources() ([]source, error) {
	s := st.settings
	base, err := parseURL(s.ImageURL)
	if err != nil {
		return nil, fmt.Errorf("cannot use IMAGE_URL (%s): %w", s.Origin("IMAGE_URL"), err)
	}
	if imageType, known := typeOf(lastPart(base)); known {
		if s.ImageName != "" && s.Origin("IMAGE_NAME").File == "" && s.Origin("IMAGE_URL").File != "" {
			return nil, fmt.Errorf("cannot take the image that the %s names: IMAGE_URL (%s) is one image, not a directory of them; "+
				"choose a variant instead, or leave the parameter out", s.Origin("IMAGE_NAME"), s.Origin("IMAGE_URL"))
		}
		if err := checkType(s); err != nil {
			return nil, err
		}
		if !isAuto(s.ImageType) {
			imageType = s.ImageType
		}
		src, err := st.source(base, imageType)
		return []source{src}, err
	}
	names, err := st.names()
	if err != nil {
		return nil, err
	}
	var sources []source
	for _, name := range names {
		src, err := st.source(below(base, name.file), name.imageType)
		if err != nil {
			return nil, err
		}
		src.placed = filepath.Join(s.CacheDir, name.file)
		sources = append(sources, src)
	}
	return sources, nil
}

func (st *store) source(u *url.URL, imageType string) (source, error) {
	name := lastPart(u)
	odd := func(r rune) bool { return r < ' ' || r == 0x7f || r == '/' }
	if name == "" || strings.HasPrefix(name, ".") || len(name) > 180 || strings.ContainsFunc(name, odd) {
		return source{}, fmt.Errorf("cannot keep %s in CACHE_DIR: %q cannot be the name of a file there", redacted(u), name)
	}
	return source{url: u, name: name, imageType: imageType, cached: filepath.Join(st.settings.CacheDir, cacheName(u, name))}, nil
}

// cacheName is the name of the copy of what a URL holds: STEM.HASH.EXT. The hash
// is of all that stands around the name in the URL but user and password, and
// so is the same for files of one directory.
func cacheName(u *url.URL, name string) string {
	dir := beside(u, "")
	dir.User, dir.Host = nil, strings.ToLower(dir.Host)
	hash := sha256.Sum256([]byte(dir.String()))
	stem, end := split(name)
	return stem + "." + hex.EncodeToString(hash[:8]) + end
}

// lastPart returns the name of the file that a URL leads to; "" for a directory.
func lastPart(u *url.URL) string {
	escaped := u.EscapedPath()
	part, _ := url.PathUnescape(escaped[strings.LastIndexByte(escaped, '/')+1:]) // it comes from a URL, so it is well formed
	return part
}

// beside returns the URL of another file in the same directory; the query stays.
func beside(u *url.URL, file string) *url.URL {
	escaped := u.EscapedPath()
	return withPath(u, escaped[:strings.LastIndexByte(escaped, '/')+1]+url.PathEscape(file))
}

// below returns the URL of a file in the directory u; the query stays.
func below(u *url.URL, file string) *url.URL {
	escaped := strings.TrimRight(u.EscapedPath(), "/")
	for part := range strings.SplitSeq(file, "/") {
		escaped += "/" + url.PathEscape(part)
	}
	return withPath(u, escaped)
}

func withPath(u *url.URL, escaped string) *url.URL {
	other := *u
	other.Path, _ = url.PathUnescape(escaped) // both parts come from a URL, so they are well formed
	other.RawPath = escaped
	return &other
}
