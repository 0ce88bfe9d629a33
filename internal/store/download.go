package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/undo"
)

// bufferSize is how much of an image is in memory at a time.
const bufferSize = size.MiB

// download fetches an image, compares it with the checksum (if there is one)
// and keeps it: in the cache, or where IMAGE_CLEANUP=yes says that it is not to
// stay, under a name that no other create looks for. On failure nothing stays.
// A condition may make the error a *statusError with code 304.
func (st *store) download(ctx context.Context, src source, want digest, condition http.Header) (got Found, err error) {
	resp, err := st.client.get(ctx, src.url, condition)
	if err != nil {
		return Found{}, st.hint(src, err)
	}
	defer resp.Close()
	if err := acceptable(resp, want); err != nil {
		return Found{}, failed(src.url, err)
	}
	slog.Info("downloading the image", "url", redacted(src.url), "size", length(resp), "checksum", cmp.Or(want.algorithm, "none"))

	var steps undo.Stack
	defer steps.Unwind(&err)
	part, err := newPart(st.settings.CacheDir, src.name)
	if err != nil {
		return Found{}, err
	}
	steps.OnFailure("remove the download", func() error { return discard(part) })

	start := time.Now()
	n, sum, err := fill(ctx, part, resp, src, want.algorithm)
	if err != nil {
		return Found{}, failed(src.url, err)
	}
	if sum != want {
		return Found{}, failed(src.url, fmt.Errorf("its checksum is %s and should be %s: what the server sent (%s) is damaged or is not what was published; nothing of it is kept",
			sum, want, describe(resp, n)))
	}
	slog.Info("downloaded the image", "size", n, "took", time.Since(start).Round(time.Millisecond), "checksum", cmp.Or(want.String(), "not compared"))
	if st.settings.ImageCleanup {
		got = st.found(part.Name(), src.imageType, want)
		got.Cleanup = func() error { return discard(part) }
		return got, nil
	}
	return st.found(src.cached, src.imageType, want), st.keep(part, src, want, resp.Header)
}

// hint adds to an answer of the server what to look at.
func (st *store) hint(src source, err error) error {
	if !isAbsent(err) {
		return err
	}
	advice := fmt.Sprintf("correct IMAGE_URL (%s)", st.settings.Origin("IMAGE_URL"))
	if src.placed != "" {
		advice += ", or IMAGE_NAME, ARCH and IMAGE_TYPE, which make the name of the file"
	}
	return fmt.Errorf("%w; %s", err, advice)
}

// acceptable refuses an answer that cannot be an image before it is fetched.
func acceptable(resp *response, want digest) error {
	if want.algorithm == "" && !resp.isBounded() {
		return fmt.Errorf("%w: publish a checksum beside it and set IMAGE_VERIFY=yes", errUnbounded)
	}
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); kind == "text/html" {
		return errors.New("the server sent a web page (text/html) in place of an image")
	}
	return nil
}

func length(resp *response) string {
	if resp.ContentLength < 0 {
		return "unknown"
	}
	return size.Bytes(resp.ContentLength).String()
}

func describe(resp *response, n size.Bytes) string {
	if kind := resp.Header.Get("Content-Type"); kind != "" {
		return fmt.Sprintf("%d bytes of %s", n, kind)
	}
	return fmt.Sprintf("%d bytes", n)
}

// fill copies the body into the file and returns its length and checksum.
func fill(ctx context.Context, part *os.File, resp *response, src source, algorithm string) (size.Bytes, digest, error) {
	if err := reserve(part, resp.ContentLength); err != nil {
		return 0, digest{}, fmt.Errorf("no room for %s in %s (CACHE_DIR): %w", length(resp), filepath.Dir(part.Name()), err)
	}
	progress := newProgress("downloading the image", size.Bytes(resp.ContentLength), "url", redacted(src.url))
	n, sum, err := copySum(ctx, part, resp, algorithm, progress)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = fmt.Errorf("no room in %s (CACHE_DIR) after %s: %w", filepath.Dir(part.Name()), n, err)
	}
	if err == nil && resp.ContentLength >= 0 && int64(n) != resp.ContentLength {
		err = fmt.Errorf("the server announced %d bytes and sent %d", resp.ContentLength, n)
	}
	return n, sum, err
}

// reserve takes the space for a file before it is fetched, so that a full disk
// is noticed at once. Filesystems that cannot are written as they come.
func reserve(f *os.File, n int64) error {
	if n <= 0 {
		return nil
	}
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, n)
	for errors.Is(err, unix.EINTR) {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, n)
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EFBIG) || errors.Is(err, unix.EDQUOT) {
		return err
	}
	return nil
}

// copySum copies from to dst (nil: nowhere) and returns the count of bytes and
// their checksum.
func copySum(ctx context.Context, dst io.Writer, from io.Reader, algorithm string, p *progress) (size.Bytes, digest, error) {
	h, buffer := newHash(algorithm), make([]byte, bufferSize)
	for {
		n, err := from.Read(buffer)
		if h != nil {
			h.Write(buffer[:n])
		}
		if dst != nil {
			if _, err := dst.Write(buffer[:n]); err != nil {
				return p.done, digest{}, err
			}
		}
		p.add(size.Bytes(n))
		switch {
		case errors.Is(err, io.EOF):
			return p.done, sumOf(algorithm, h), nil
		case err != nil:
			return p.done, digest{}, err
		case ctx.Err() != nil:
			return p.done, digest{}, context.Cause(ctx)
		}
	}
}

func sumOf(algorithm string, h hash.Hash) digest {
	if h == nil {
		return digest{}
	}
	return digest{algorithm, fmt.Sprintf("%x", h.Sum(nil))}
}

// progress logs how far a long work is, every ten seconds.
type progress struct {
	what        string
	args        []any
	total, done size.Bytes // total is negative where it is not known
	next        time.Time
}

const progressEvery = 10 * time.Second

func newProgress(what string, total size.Bytes, args ...any) *progress {
	return &progress{what: what, args: args, total: total, next: time.Now().Add(progressEvery)}
}

func (p *progress) add(n size.Bytes) {
	p.done += n
	now := time.Now()
	if now.Before(p.next) {
		return
	}
	p.next = now.Add(progressEvery)
	args := append([]any{"done", p.done}, p.args...)
	if p.total > 0 {
		args = append([]any{"percent", int(float64(p.done) / float64(p.total) * 100)}, args...)
	}
	slog.Info(p.what, args...)
}
