package osscript

import (
	"bytes"
	"context"
	"errors"
	"io"

	"ganeti-instance-image/internal/size"
)

const (
	// inputBlock is how much of the input is read at once, at most.
	inputBlock = size.MiB
	// inputAhead is how many such blocks are read ahead.
	inputAhead = 4
)

// input is what Ganeti sends to import. It is read ahead of its use, and by a
// goroutine of its own: a signal need not wait for who sends it.
type input struct {
	blocks chan inputPart
	spent  chan []byte // blocks that can be used again
	rest   []byte
	block  []byte // that rest is the end of
	err    error
}

type inputPart struct {
	data []byte
	err  error
}

func newInput(r io.Reader) *input {
	in := &input{blocks: make(chan inputPart, inputAhead), spent: make(chan []byte, inputAhead+2)}
	go func() {
		for {
			var b []byte
			select {
			case b = <-in.spent:
			default:
				b = make([]byte, inputBlock)
			}
			n, err := r.Read(b[:cap(b)])
			in.blocks <- inputPart{b[:n], err}
			if err != nil {
				return
			}
		}
	}()
	return in
}

// next waits for more input, if there is none.
func (in *input) next(ctx context.Context) error {
	for len(in.rest) == 0 && in.err == nil {
		if in.block != nil {
			select {
			case in.spent <- in.block:
			default:
			}
			in.block = nil
		}
		select {
		case b := <-in.blocks:
			in.rest, in.block, in.err = b.data, b.data, b.err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if len(in.rest) == 0 {
		return in.err
	}
	return nil
}

// drain reads to the end: a reader that leaves early makes Ganeti report a broken
// pipe instead of our reason.
func (in *input) drain(ctx context.Context) {
	for in.next(ctx) == nil {
		in.rest = nil
	}
}

// reader reads the input until it ends, or ctx does.
func (in *input) reader(ctx context.Context) io.Reader { return inputReader{ctx, in} }

type inputReader struct {
	ctx context.Context
	in  *input
}

// closer is a reader that can be closed, also while it waits. Somebody else may
// read on then.
func (in *input) closer(ctx context.Context) io.ReadCloser {
	ctx, stop := context.WithCancel(ctx)
	return closingReader{in.reader(ctx), stop}
}

type closingReader struct {
	io.Reader
	stop context.CancelFunc
}

// Close never fails.
func (r closingReader) Close() error {
	r.stop()
	return nil
}

func (r inputReader) Read(p []byte) (int, error) {
	if err := r.in.next(r.ctx); err != nil {
		return 0, err
	}
	n := copy(p, r.in.rest)
	r.in.rest = r.in.rest[n:]
	return n, nil
}

// peek returns the first n bytes, or fewer where there are fewer, and leaves them
// to be read.
func (in *input) peek(ctx context.Context, n int) ([]byte, error) {
	head := make([]byte, n)
	got, err := io.ReadFull(in.reader(ctx), head)
	in.rest = append(bytes.Clone(head[:got]), in.rest...)
	in.block = nil
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return head[:got], err
}
