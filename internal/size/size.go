// Package size gives byte counts a type, so that a number of MiB or of
// sectors cannot be taken for a number of bytes. Everything inside the program
// counts in Bytes; other units exist only where text comes in or goes out.
package size

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is a length or an offset in bytes.
type Bytes int64

// The binary multiples of a byte.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

var units = []struct {
	name string
	unit Bytes
}{{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}}

// String writes the size in the largest unit that keeps it readable, as in
// "2.2 GiB", and exactly where a unit divides it.
func (b Bytes) String() string {
	for _, u := range units {
		if b >= u.unit || -b >= u.unit {
			text := strconv.FormatFloat(float64(b)/float64(u.unit), 'f', 1, 64)
			return strings.TrimSuffix(text, ".0") + " " + u.name
		}
	}
	return fmt.Sprintf("%d bytes", int64(b))
}

// AlignDown rounds b down to a multiple of unit.
func (b Bytes) AlignDown(unit Bytes) Bytes { return b - b%unit }

// AlignUp rounds b up to a multiple of unit.
func (b Bytes) AlignUp(unit Bytes) Bytes { return (b + unit - 1).AlignDown(unit) }

// ParseMiB reads a size as an administrator writes it: a plain number counts
// MiB, the suffixes K, M, G and T (also KiB, MB, ...; any case) count binary
// multiples of a byte.
func ParseMiB(text string) (Bytes, error) {
	number, unit := strings.TrimSpace(text), MiB
	if i := strings.IndexFunc(number, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		u, ok := suffixes[strings.ToUpper(strings.TrimSpace(number[i:]))]
		if !ok {
			return 0, fmt.Errorf("%q is not a size: want a number of MiB, or a number followed by K, M, G or T", text)
		}
		number, unit = number[:i], u
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a size: want a number of MiB, or a number followed by K, M, G or T", text)
	}
	if n > math.MaxInt64/int64(unit) {
		return 0, fmt.Errorf("%q is more than any disk holds", text)
	}
	return Bytes(n) * unit, nil
}

var suffixes = map[string]Bytes{
	"K": KiB, "KB": KiB, "KIB": KiB,
	"M": MiB, "MB": MiB, "MIB": MiB,
	"G": GiB, "GB": GiB, "GIB": GiB,
	"T": TiB, "TB": TiB, "TIB": TiB,
}
