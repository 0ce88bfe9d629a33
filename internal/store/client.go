package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"ganeti-instance-image/internal/size"
)

const maxRedirects = 10

// client fetches over HTTP. A server that sends nothing for the time stall is
// given up; how long a whole download takes is not limited.
type client struct {
	http  *http.Client
	stall time.Duration
}

// newClient makes a client whose proxy is the one that environ names, or else
// the process's own environment.
func newClient(environ []string, stall time.Duration) *client {
	return &client{
		stall: stall,
		http: &http.Client{
			CheckRedirect: checkRedirect,
			Transport: &http.Transport{
				Proxy:                  proxyOf(environ),
				DialContext:            (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
				TLSHandshakeTimeout:    30 * time.Second, // the answer itself is waited for under the stall timer
				MaxResponseHeaderBytes: int64(64 * size.KiB),
				IdleConnTimeout:        30 * time.Second,
				DisableCompression:     true, // lengths and checksums are of the bytes as published
				ForceAttemptHTTP2:      true,
			},
		},
	}
}

func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("it redirects more than %d times", maxRedirects)
	}
	if via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("it redirects from https to %s, which is not protected", redacted(req.URL))
	}
	req.Header.Del("Referer") // it would tell the next server this one's query
	return nil
}

// statusError is an answer other than the one that was hoped for.
type statusError struct{ code int }

func (e *statusError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("the server answered %d %s", e.code, http.StatusText(e.code)))
}

// isAbsent tells whether the server has said that there is no such file, as
// opposed to having trouble.
func isAbsent(err error) bool {
	var status *statusError
	if !errors.As(err, &status) || status.code == http.StatusRequestTimeout || status.code == http.StatusTooManyRequests {
		return false
	}
	return status.code >= 400 && status.code < 500
}

// fetchError says which URL could not be fetched, without its secrets.
type fetchError struct {
	url string
	err error
}

func (e *fetchError) Error() string {
	return fmt.Sprintf("cannot fetch %s: %s", e.url, scrub(e.err.Error()))
}

func (e *fetchError) Unwrap() error { return e.err }

func failed(u *url.URL, err error) error {
	var already *fetchError
	if errors.As(err, &already) {
		return err
	}
	// net/http's own errors repeat the URL, query and all.
	for outer := (*url.Error)(nil); errors.As(err, &outer); {
		err = outer.Err
	}
	return &fetchError{url: redacted(u), err: err}
}

var (
	userinfo = regexp.MustCompile(`(https?://)[^\s/"@]*@`)
	query    = regexp.MustCompile(`\?[^\s"]+`)
)

// scrub takes users, passwords and queries of URLs out of a text, and makes it
// one line.
func scrub(text string) string {
	text = query.ReplaceAllString(userinfo.ReplaceAllString(text, "$1"), "?...")
	return strings.Join(strings.Fields(text), " ")
}

// redacted writes a URL without user, password, query and fragment.
func redacted(u *url.URL) string {
	plain := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}
	if u.RawQuery != "" {
		return plain.String() + "?..."
	}
	return plain.String()
}

// parseURL reads the URL of a file on the web. The error does not repeat it,
// since where a password ends is not known in a URL that is not well formed.
func parseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, errors.New("it is not a well-formed URL that begins with https:// or http://")
	}
	u.Fragment, u.RawFragment = "", ""
	return u, nil
}

// response is an answer whose body is read under the stall timer.
type response struct {
	*http.Response
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	stall  time.Duration
}

// get asks for a file. An answer other than 200 is a *statusError, also 304
// where the header made the question conditional.
func (c *client) get(ctx context.Context, u *url.URL, header http.Header) (*response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(c.stall, func() { cancel(fmt.Errorf("nothing came from the server for %s", c.stall)) })
	answer, err := c.do(ctx, u, header)
	timer.Stop()
	if err != nil {
		err = because(ctx, err)
		cancel(nil)
		return nil, failed(u, err)
	}
	resp := &response{Response: answer, ctx: ctx, cancel: cancel, timer: timer, stall: c.stall}
	if answer.StatusCode != http.StatusOK {
		resp.drain()
		resp.Close()
		return nil, failed(u, &statusError{answer.StatusCode})
	}
	return resp, nil
}

func (c *client) do(ctx context.Context, u *url.URL, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for key, values := range header {
		req.Header[key] = values
	}
	req.Header.Set("User-Agent", "ganeti-instance-image")
	req.Header.Set("Accept-Encoding", "identity")
	return c.http.Do(req)
}

// because returns why ctx was cancelled, if it was, in place of err.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// Read reads the body. The timer runs only while the server is waited for, not
// while a slow disk is written.
func (r *response) Read(p []byte) (int, error) {
	r.timer.Reset(r.stall)
	n, err := r.Body.Read(p)
	r.timer.Stop()
	if err == nil || err == io.EOF {
		return n, err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("the connection was cut before the end: %w", err)
	}
	return n, because(r.ctx, err)
}

// Close ends the transfer; what has not been read is not fetched.
func (r *response) Close() error {
	r.timer.Stop()
	r.cancel(nil)
	return r.Body.Close()
}

// drain reads the little page that comes with an error, so that the connection
// serves the next question.
func (r *response) drain() {
	_, _ = io.CopyN(io.Discard, r, int64(16*size.KiB))
}

// isBounded tells whether a cut transfer would be noticed: an HTTP/1 body that
// has neither a length nor chunks ends wherever the connection does.
func (r *response) isBounded() bool {
	return r.ContentLength >= 0 || len(r.TransferEncoding) > 0 || r.ProtoMajor > 1
}

var errUnbounded = errors.New("the server does not say how long the file is, so a cut transfer would go unnoticed")

// small fetches a file of at most limit bytes.
func (c *client) small(ctx context.Context, u *url.URL, limit size.Bytes) ([]byte, error) {
	resp, err := c.get(ctx, u, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Close()
	if !resp.isBounded() {
		return nil, failed(u, errUnbounded)
	}
	data, err := io.ReadAll(io.LimitReader(resp, int64(limit)+1))
	if err != nil {
		return nil, failed(u, err)
	}
	if size.Bytes(len(data)) > limit {
		return nil, failed(u, fmt.Errorf("it is longer than %s", limit))
	}
	return data, nil
}

// probe asks whether a file is there, without fetching it. It is a GET, since
// some servers answer HEAD wrongly or not at all.
func (c *client) probe(ctx context.Context, u *url.URL) error {
	resp, err := c.get(ctx, u, nil)
	if err != nil {
		return err
	}
	return resp.Close()
}
