package dump

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zlib"
)

const (
	writeBlock = writeBlocking * recordSize
	// pieceBytes is how much is written, or compressed by one worker, at once.
	pieceBytes = 16 * writeBlock
	// sparePieces are those that are filled or written while all workers compress.
	sparePieces = 3
	// minSaved is how many bytes a compressed block must have less than a plain
	// one, as of dump(8).
	minSaved = 16
	// writeLevel is that of dump(8), whatever it is told.
	writeLevel = 2
)

// piece is some blocks of a dump.
type piece struct {
	plain  []byte
	length int    // of plain, that are filled
	out    []byte // to be written
	packed []byte // the memory of out
	first  bool   // it begins with the first block, which is never compressed
	ready  chan struct{}
}

// output takes a dump record by record and writes it behind the caller's back,
// compressed by several workers if that is wanted.
type output struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	w       io.Writer
	records int64 // taken

	filling     *piece
	free, queue chan *piece
	work        chan *piece // nil where nothing is compressed
	workers     sync.WaitGroup
	done        chan struct{} // closed when all is written
}

func newOutput(ctx context.Context, cancel context.CancelCauseFunc, w io.Writer, compress bool) *output {
	o := &output{ctx: ctx, cancel: cancel, w: w, done: make(chan struct{})}
	workers := 0
	if compress {
		workers = min(runtime.GOMAXPROCS(0), maxWorkers)
	}
	pieces := workers + sparePieces
	o.free, o.queue = make(chan *piece, pieces), make(chan *piece, pieces)
	for range pieces {
		o.free <- &piece{ready: make(chan struct{}, 1)}
	}
	if compress {
		o.work = make(chan *piece, pieces)
	}
	for range workers {
		o.workers.Go(o.compress)
	}
	go o.write()
	return o
}

// take returns room for up to so many of the next records, at least one, which
// the caller fills before the next call. It holds what it held before.
func (o *output) take(records int64) ([]byte, error) {
	if o.filling != nil && o.filling.length == pieceBytes {
		if err := o.pass(); err != nil {
			return nil, err
		}
	}
	if o.filling == nil {
		select {
		case <-o.ctx.Done():
			return nil, context.Cause(o.ctx)
		case o.filling = <-o.free:
		}
		p := o.filling
		if p.plain == nil {
			p.plain = make([]byte, pieceBytes)
		}
		p.length, p.first = 0, o.records == 0
	}
	p := o.filling
	n := min(records*recordSize, int64(pieceBytes-p.length))
	b := p.plain[p.length : p.length+int(n)]
	p.length += int(n)
	o.records += n / recordSize
	return b, nil
}

// pass hands the filled piece on. There is always room in the channels.
func (o *output) pass() error {
	p := o.filling
	o.filling = nil
	if err := context.Cause(o.ctx); err != nil {
		return err
	}
	o.queue <- p
	if o.work != nil {
		o.work <- p
		return nil
	}
	p.out = p.plain[:p.length]
	p.ready <- struct{}{}
	return nil
}

// finish writes what is left, unless there was an error, and returns the first
// error. Where the context is done it waits for nothing.
func (o *output) finish(err error) error {
	if err == nil && o.filling != nil {
		err = o.pass()
	}
	if err != nil {
		o.cancel(err)
	}
	close(o.queue)
	if o.work != nil {
		close(o.work)
	}
	select {
	case <-o.done:
	case <-o.ctx.Done():
	}
	return context.Cause(o.ctx)
}

// write writes the pieces in their order.
func (o *output) write() {
	defer close(o.done)
	for p := range o.queue {
		select {
		case <-o.ctx.Done():
			return
		case <-p.ready:
		}
		n, err := o.w.Write(p.out)
		if err == nil && n < len(p.out) {
			err = io.ErrShortWrite
		}
		if err != nil {
			o.cancel(err)
			return
		}
		o.free <- p
	}
}

// compress is a worker.
func (o *output) compress() {
	var z blockPacker
	for p := range o.work {
		if o.ctx.Err() != nil {
			return
		}
		if err := z.pack(p); err != nil {
			o.cancel(err)
			return
		}
		p.ready <- struct{}{}
	}
}

// blockPacker compresses block by block.
type blockPacker struct {
	z   *zlib.Writer
	out bytes.Buffer
}

// pack makes a piece's out: each block, which is compressed where that saves
// something, behind a word of its length, whose lowest bit says that it is.
func (k *blockPacker) pack(p *piece) error {
	p.packed = p.packed[:0]
	b := p.plain[:p.length]
	if p.first {
		p.packed = append(p.packed, b[:writeBlock]...)
		b = b[writeBlock:]
	}
	for ; len(b) > 0; b = b[writeBlock:] {
		if err := k.deflate(b[:writeBlock]); err != nil {
			return err
		}
		if packed := k.out.Bytes(); len(packed)+minSaved <= writeBlock {
			p.packed = binary.LittleEndian.AppendUint32(p.packed, uint32(len(packed))<<4|1)
			p.packed = append(p.packed, packed...)
			continue
		}
		p.packed = binary.LittleEndian.AppendUint32(p.packed, writeBlock<<4)
		p.packed = append(p.packed, b[:writeBlock]...)
	}
	p.out = p.packed
	return nil
}

func (k *blockPacker) deflate(block []byte) error {
	k.out.Reset()
	if k.z == nil {
		var err error
		if k.z, err = zlib.NewWriterLevel(&k.out, writeLevel); err != nil {
			return err
		}
	} else {
		k.z.Reset(&k.out)
	}
	_, err := k.z.Write(block)
	return errors.Join(err, k.z.Close())
}
