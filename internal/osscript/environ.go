package osscript

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

// EndOfEnviron stands behind an environment that is sent to another process,
// whose variables are separated by one zero byte.
const EndOfEnviron = "\x00\x00"

// environLimit bounds an environment that is read.
const environLimit = 4 << 20

// ReadEnviron reads an environment up to EndOfEnviron. Nothing may follow but, at
// some time, the end.
func ReadEnviron(r io.Reader) ([]string, error) {
	var text strings.Builder
	for b := bufio.NewReader(r); !strings.HasSuffix(text.String(), EndOfEnviron); {
		c, err := b.ReadByte()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err == nil && text.Len() > environLimit {
			err = errors.New("they are too long")
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read Ganeti's variables from standard input: %w", err)
		}
		text.WriteByte(c)
	}
	return strings.Split(strings.TrimSuffix(text.String(), EndOfEnviron), "\x00"), nil
}
