package inflate

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

const (
	// history is how far back a match may reach (RFC 1951, 2).
	history = 32 << 10
	// streamChunk is about how much is decoded at once. With the history it
	// stays in a processor's second cache.
	streamChunk = 256 << 10
	// endRoom is how much room for output the end of the input may need. It is
	// decoded by blockEnd, which has less than 24 bytes then: 96 matches, of at
	// least 2 bits and at most 258 bytes.
	endRoom = 32 << 10
	// headerInput is more than what stands before the codes of a block: 3 bits
	// and its kind's 14, 19 lengths of 3, and 316 of up to 14.
	headerInput = 1024
)

// errBuffer is how a bufio.Reader is refused that cannot show a header as a whole.
var errBuffer = fmt.Errorf("cannot decode DEFLATE data with a buffer of less than %d bytes", headerInput)

// Reader decodes DEFLATE data (RFC 1951) from a stream, in constant memory:
// about 350 KiB. It is used again for other data, by one user at a time.
//
// What it decodes from is what the stream has buffered. A block's header is
// decoded where that is certainly enough for it, and codes by the fast loop up to
// the last bytes, which are looked at again with what follows them. Only the end
// of the whole stream is decoded from a padded copy, as Decoder does.
type Reader struct {
	z     Decoder
	src   *bufio.Reader
	err   error // io.EOF behind the data
	short error // why there is no more input than in tail; nil before

	state  state
	last   bool // no block follows this one
	stored int  // bytes that are left of a block that is not compressed

	window []byte
	at     int // where the next byte is decoded to
	read   int // what is before was handed out
	tail   [headerInput + Padding]byte
}

// state is what comes next in the data.
type state uint8

const (
	atHeader state = iota
	inCodes
	inStored
)

// NewReader makes a reader that Reset has to give a stream.
func NewReader() *Reader {
	return &Reader{window: make([]byte, history+streamChunk+endRoom), err: errors.New("inflate: a reader without input")}
}

// Reset begins with new data, which src is at. Its buffer has at least 1024
// bytes; 64 KiB and more make decoding fast. Of src no bytes are taken but those
// of the data, and nobody else may take any until the data has ended.
func (r *Reader) Reset(src *bufio.Reader) {
	r.src, r.err, r.short = src, nil, nil
	r.state, r.last = atHeader, false
	r.at, r.read = 0, 0
	r.z.count = 0
	r.z.input(nil, 0)
}

// Read is Chunk as an io.Reader has it.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := r.more(); err != nil {
		return 0, err
	}
	n := copy(p, r.window[r.read:r.at])
	r.read += n
	return n, nil
}

// Chunk returns the next bytes, at least one, which are valid until the next call
// of any method. Its error is io.EOF at the end of the data, where src is at the
// byte behind it; io.ErrUnexpectedEOF where src ended before; that of src if
// it had another; and one of this package's for damaged data. What was decoded
// before an error is returned first.
func (r *Reader) Chunk() ([]byte, error) {
	if err := r.more(); err != nil {
		return nil, err
	}
	b := r.window[r.read:r.at]
	r.read = r.at
	return b, nil
}

// more decodes where everything was handed out.
func (r *Reader) more() error {
	if r.read < r.at {
		return nil
	}
	if r.err == nil && len(r.window)-r.at < endRoom {
		copy(r.window, r.window[r.at-history:r.at])
		r.at, r.read = history, history
	}
	for r.err == nil && len(r.window)-r.at >= endRoom {
		if r.err = r.step(); r.err != nil {
			r.err = r.end(r.err)
		}
	}
	if r.read < r.at {
		return nil
	}
	return r.err
}

// step decodes a part of the data. Its error is io.EOF at the end of the last block.
func (r *Reader) step() error {
	var ended bool
	var err error
	switch r.state {
	case atHeader:
		err = r.header()
	case inCodes:
		ended, err = r.codes()
	default:
		ended, err = r.copyStored()
	}
	if err != nil || !ended {
		return err
	}
	r.state = atHeader
	if r.last {
		return io.EOF
	}
	return nil
}

// end takes the input that was used and says how decoding ended.
func (r *Reader) end(err error) error {
	used := r.z.pos - int(r.z.count>>3)
	if r.short != nil && err != io.EOF && (errors.Is(err, errDeflateEnd) || r.z.overrun()) {
		used, err = r.z.end, r.short
	}
	if _, discard := r.src.Discard(used); discard != nil && err == io.EOF {
		return discard
	}
	return err
}

// input makes in what is decoded from, with n bytes that are not padding. The
// bits that were taken of the byte before it stay.
func (z *Decoder) input(in []byte, n int) {
	z.count &= 7
	z.buf &= 1<<z.count - 1
	z.in, z.end, z.stop, z.pos = in, n, n, 0
}

// fill makes at least n bytes available at pos, unless the input has fewer.
func (r *Reader) fill(n int) error {
	z := &r.z
	if r.short != nil || len(z.in)-z.pos >= n {
		return nil
	}
	if _, err := r.src.Discard(z.pos - int(z.count>>3)); err != nil {
		return err
	}
	z.input(nil, 0)
	// To read more, bufio moves all that it has; so it should not have much.
	n, err := r.src.Buffered(), error(nil)
	if n < headerInput {
		n = r.src.Size()
	}
	in, err := r.src.Peek(n)
	if len(in) >= headerInput {
		// The last bytes are padding until there are others behind them.
		z.input(in, len(in)-Padding)
		return nil
	}
	switch err {
	case nil:
		return errBuffer
	case io.EOF:
		err = io.ErrUnexpectedEOF
	}
	r.short = err
	copy(r.tail[:], in)
	clear(r.tail[len(in):])
	z.input(r.tail[:len(in)+Padding], len(in))
	// A turn of the fast loop uses no padding then.
	z.stop -= Padding
	return nil
}

// header reads what stands before the content of a block.
func (r *Reader) header() error {
	if err := r.fill(headerInput); err != nil {
		return err
	}
	z := &r.z
	if err := z.refill(); err != nil {
		return err
	}
	r.last = z.take(1) == 1
	r.state = inCodes
	switch z.take(2) {
	case 0:
		var err error
		r.state = inStored
		r.stored, err = z.storedLength()
		return err
	case 1:
		z.fixedCodes()
		return nil
	case 2:
		return z.dynamicCodes()
	}
	return errDeflate
}

func (r *Reader) codes() (ended bool, err error) {
	if err := r.fill(Padding); err != nil {
		return false, err
	}
	if r.z.pos <= r.z.stop {
		r.at, ended, err = r.z.fast(r.window, r.at)
		return ended, err
	}
	r.at, err = r.z.blockEnd(r.window, r.at)
	return err == nil, err
}

func (r *Reader) copyStored() (ended bool, err error) {
	if r.stored == 0 {
		return true, nil
	}
	if err := r.fill(1); err != nil {
		return false, err
	}
	z := &r.z
	available := len(z.in) - z.pos
	if r.short != nil {
		available = z.end - z.pos
	}
	if available == 0 {
		return false, errDeflateEnd
	}
	n := copy(r.window[r.at:], z.in[z.pos:z.pos+min(available, r.stored)])
	z.pos, r.at, r.stored = z.pos+n, r.at+n, r.stored-n
	return r.stored == 0, nil
}
