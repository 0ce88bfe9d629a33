package store

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"path"
	"regexp"
	"slices"
	"strings"

	"ganeti-instance-image/internal/size"
)

// digest is a checksum and its algorithm.
type digest struct {
	algorithm string // of the table algorithms; "" for none
	hex       string // lower case
}

// String writes the digest as in "sha256:0a1b...".
func (d digest) String() string {
	if d.algorithm == "" {
		return ""
	}
	return d.algorithm + ":" + d.hex
}

// algorithms lists the checksums that are understood, the strongest first. Each
// is told by its length.
var algorithms = []struct {
	name string
	new  func() hash.Hash
	size int // bytes
}{
	{"sha512", sha512.New, sha512.Size},
	{"sha256", sha256.New, sha256.Size},
	{"sha1", sha1.New, sha1.Size},
}

func newHash(algorithm string) hash.Hash {
	for _, a := range algorithms {
		if a.name == algorithm {
			return a.new()
		}
	}
	return nil
}

// sumFiles lists where the checksum of an image may stand, in the order in which
// they are tried.
var sumFiles = []struct {
	name       string   // an ending after the image's own name where it begins with ".", else a file beside it
	algorithms []string // what such a file holds; the first that it has counts
}{
	{".sha512", []string{"sha512"}},
	{".sha256", []string{"sha256"}},
	{".sha1", []string{"sha1"}},
	{".sig", []string{"sha1"}}, // so called by the Bash version; no signature
	{"SHA512SUMS", []string{"sha512"}},
	{"SHA256SUMS", []string{"sha256"}},
	{".SHA256", []string{"sha256"}},
	{".CHECKSUM", []string{"sha512", "sha256"}},
	{"CHECKSUM", []string{"sha512", "sha256"}},
}

// sumLimit is how long a file of checksums may be.
const sumLimit = size.MiB

// errNoSum is wrapped where the server can be reached and has no checksum.
var errNoSum = errors.New("no checksum to compare it with is published beside it")

// sum fetches the checksum of an image from beside it.
func (c *client) sum(ctx context.Context, src source) (digest, error) {
	var tried, unfit []string
	for _, f := range sumFiles {
		file, ownFile := f.name, strings.HasPrefix(f.name, ".")
		if ownFile {
			file = src.name + f.name
		}
		tried = append(tried, f.name)
		u := beside(src.url, file)
		text, err := c.small(ctx, u, sumLimit)
		if isAbsent(err) {
			continue
		}
		if err != nil {
			return digest{}, err
		}
		sum, err := pickSum(parseSums(text), src.name, f.algorithms, ownFile)
		if err == nil {
			return sum, nil
		}
		unfit = append(unfit, fmt.Sprintf("%s %v", file, err))
	}
	if err := c.probe(ctx, src.url); err != nil {
		return digest{}, err // that there is no image says more
	}
	why := "tried " + strings.Join(tried, ", ")
	if len(unfit) > 0 {
		why += "; " + strings.Join(unfit, "; ")
	}
	return digest{}, fmt.Errorf("cannot verify %s: %w (%s): publish one (sha256sum %s > %s.sha256), or set IMAGE_VERIFY=no",
		redacted(src.url), errNoSum, why, src.name, src.name)
}

// sumEntry is one line of a file of checksums.
type sumEntry struct {
	sum  digest
	file string // "" where the line has only the checksum
}

var (
	gnuLine  = regexp.MustCompile(`^([0-9a-fA-F]{40,128})[ \t]+\*?(.+)$`)
	bsdLine  = regexp.MustCompile(`^SHA(?:2?-)?(1|256|512) ?\((.+)\) ?= ?([0-9a-fA-F]{40,128})$`)
	bareLine = regexp.MustCompile(`^[0-9a-fA-F]{40,128}$`)
)

// parseSums reads the lines that are checksums in any of the forms that
// sha256sum, its --tag, BSD's sha256 and openssl write, and passes over the
// others (comments, signatures, a page that says there is no such file).
func parseSums(text []byte) []sumEntry {
	var entries []sumEntry
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	lines := 0
	for line := range bytes.Lines(text) {
		line := strings.TrimSpace(string(line))
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		lines++
		if entry, ok := parseSum(line); ok {
			entries = append(entries, entry)
		}
	}
	if lines == 1 {
		return entries
	}
	// Among other lines a checksum alone says nothing: it may be a line of a signature.
	return slices.DeleteFunc(entries, func(e sumEntry) bool { return e.file == "" })
}

func parseSum(line string) (sumEntry, bool) {
	var said, digits, file string
	if bareLine.MatchString(line) {
		digits = line
	} else if m := gnuLine.FindStringSubmatch(line); m != nil {
		digits, file = m[1], m[2]
	} else if m := bsdLine.FindStringSubmatch(line); m != nil {
		said, file, digits = "sha"+m[1], m[2], m[3]
	}
	if file == "-" { // what sha256sum says of its standard input
		file = ""
	}
	for _, a := range algorithms {
		if len(digits) == hex.EncodedLen(a.size) && (said == "" || said == a.name) {
			return sumEntry{digest{a.name, strings.ToLower(digits)}, file}, true
		}
	}
	return sumEntry{}, false
}

// pickSum returns the checksum of the file name. Whoever made the list may have
// named the file with a directory. A checksum without a name counts only in a
// file that is about this one image.
func pickSum(entries []sumEntry, file string, allowed []string, ownFile bool) (digest, error) {
	if len(entries) == 0 {
		return digest{}, errors.New("holds no checksum")
	}
	matches := []func(e sumEntry) bool{
		func(e sumEntry) bool { return path.Clean(e.file) == file },
		func(e sumEntry) bool { return path.Base(e.file) == file },
		func(e sumEntry) bool { return ownFile && e.file == "" },
	}
	for _, algorithm := range allowed {
		for _, match := range matches {
			sum, err := only(entries, algorithm, match)
			if err != nil || sum.hex != "" {
				return sum, err
			}
		}
	}
	return digest{}, fmt.Errorf("holds no %s checksum of %s", strings.Join(allowed, " or "), file)
}

// only returns the one checksum that matches, or none.
func only(entries []sumEntry, algorithm string, match func(sumEntry) bool) (digest, error) {
	var sum digest
	for _, e := range entries {
		if e.sum.algorithm != algorithm || !match(e) {
			continue
		}
		if sum.hex != "" && sum != e.sum {
			return digest{}, errors.New("holds two checksums that differ")
		}
		sum = e.sum
	}
	return sum, nil
}
