package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"ganeti-instance-image/internal/size"
)

// UnknownLength is the length of a stream that ends where it ends.
const UnknownLength = -1

// receiveLimits are the sizes that memory and speed depend on.
type receiveLimits struct {
	// ahead is how far in front of the data the stream is looked through for
	// tables, and twice that is in memory. QEMU puts a compressed cluster into the
	// room that was left in front of the L2 table that maps it. It is more than a
	// compressed cluster with its padding, which is twice a cluster; so much is in
	// memory in front of it.
	ahead size.Bytes
	// chunk is how much is read at once, and handed over at once at most where
	// clusters are not larger; at most half of ahead.
	chunk size.Bytes
	// pending bounds the runs of clusters that are known and did not come yet.
	pending int
	// parts bounds the stretches that the spool has; from there on it takes
	// everything.
	parts int
}

// usualLimits take 16 MiB for the stream, 24 MiB for runs and 16 MiB for parts.
var usualLimits = receiveLimits{ahead: 8 * size.MiB, chunk: size.MiB, pending: 1 << 20, parts: 1 << 20}

var (
	errPassed     = errors.New("leads to where the file holds something else: the image is damaged")
	errSharedL2   = errors.New("two entries of its L1 table lead to one L2 table: the image is damaged")
	errNoQCOW2    = errors.New("it is no qcow2 image")
	errLongStream = errors.New("there is more of it than its length says")
)

// Receiver takes the disk that a qcow2 image describes. Its methods are called
// by one goroutine, one after the other.
type Receiver interface {
	// Begin is called once and first, with the length of the disk.
	Begin(total size.Bytes) error
	// Data is a stretch of the disk. b is valid until it returns.
	Data(off size.Bytes, b []byte) error
	// Zero is a stretch that reads as zeros. It can be as long as the disk.
	Zero(off, n size.Bytes) error
}

// ReceiveQCOW2 decodes a qcow2 image of n bytes, or of UnknownLength, as it
// comes. Each byte of the disk is handed over once, in any order. What an image
// is refused for is what Open refuses it for; what the header shows is refused
// before to.Begin is called, the rest where it comes. Errors of to are returned
// as they are; when ctx is cancelled the error is its cause. r must end with the
// image.
//
// What comes before the table that maps it, as the data of an image that has its
// tables behind them, is kept in a file without a name in spoolDir. It needs room
// for the rest of the image, and n. Images in the order in which qemu-img
// convert and QCOW2Plan write them need no such file. Two ways to one L2 table
// are refused, and clusters that two entries share where one of the two comes too
// late.
func ReceiveQCOW2(ctx context.Context, r io.Reader, n int64, spoolDir string, to Receiver) error {
	return receiveQCOW2(ctx, r, n, spoolDir, to, usualLimits)
}

func receiveQCOW2(ctx context.Context, r io.Reader, n int64, spoolDir string, to Receiver, limits receiveLimits) error {
	v := &receiver{limits: limits, in: newWindow(r, n, limits), to: to}
	v.spool = spool{dir: spoolDir, length: n, most: limits.parts}
	defer v.spool.close()
	err := v.receive(ctx)
	if ctx.Err() != nil {
		return fmt.Errorf("stopped while reading a qcow2 image: %w", context.Cause(ctx))
	}
	return err
}

// receiver decodes one image. Two things move through the file: in.end(), up to
// which the tables are known, and pos, up to which the data were handed over.
type receiver struct {
	limits receiveLimits
	q      *qcow2 // without a file: its header, its L1 table, its rules
	in     *window
	to     Receiver
	spool  spool

	pos     size.Bytes // a multiple of the cluster size, or the end of the stream
	covered size.Bytes // up to here compressed clusters reach, to the end of a sector
	last    pending    // the one that reaches so far
	pending pendingHeap
	batch   []pending // of one table; kept for its memory
	room    []byte    // for what is read from the spool

	ordered bool     // the L1 table is complete, and tables is made
	tables  []uint32 // the L1 entries that have an L2 table, by its place in the file
	next    int      // of tables: it was not come across yet
	passed  int      // of tables: it lies at pos or behind
	late    []uint32 // L1 entries whose L2 table is read in the end, from the spool

	refcounts refcountMap
}

// refusedQCOW2 marks an error that is the image's.
func refusedQCOW2(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("cannot use the qcow2 image: %w", err)
}

func (v *receiver) receive(ctx context.Context) error {
	if err := v.begin(); err != nil {
		return err
	}
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := v.advance(); err != nil {
			return err
		}
		if v.pos == v.in.end() {
			return v.finish(ctx)
		}
		if err := v.step(); err != nil {
			return err
		}
	}
}

// begin reads the header and as much of the tables as lies in front.
func (v *receiver) begin() error {
	if err := v.in.fill(0, 0); err != nil {
		return err
	}
	if err := v.header(); err != nil {
		return refusedQCOW2(err)
	}
	if err := v.takeL1(); err != nil {
		return refusedQCOW2(err)
	}
	for _, note := range v.q.Notes() {
		slog.Warn(note)
	}
	return v.to.Begin(v.q.size)
}

// header has the gate look at the first bytes.
func (v *receiver) header() error {
	head := v.in.buf[:min(len(v.in.buf), maxHeaderRead)]
	if !qcow2Magic(head, nil) {
		if k := find(kinds, head[:min(len(head), headLimit)], nil); k != nil && k.packed == nil {
			return k.refusal()
		}
		return errNoQCOW2
	}
	h, err := readHeader(bytes.NewReader(head), v.in.length)
	if err != nil {
		return err
	}
	v.q = &qcow2{header: *h, length: v.in.length}
	v.q.decoders.New = func() any { return newDecoder(h.compression) }
	v.refcounts = newRefcountMap(head, h)
	return nil
}

// advance reads on, and takes the tables that came.
func (v *receiver) advance() error {
	keep := v.pos
	if v.covered > v.pos {
		keep = min(keep, v.last.host)
	}
	if err := v.in.fill(v.pos, keep); err != nil {
		return err
	}
	v.q.length = v.in.length
	v.refcounts.take(v.in)
	if err := v.takeL1(); err != nil {
		return refusedQCOW2(err)
	}
	if err := v.orderTables(); err != nil {
		return err
	}
	return v.takeTables()
}

// takeL1 takes the entries of the L1 table that came.
func (v *receiver) takeL1() error {
	for len(v.q.l1) < v.q.l1Needed {
		b := v.in.at(v.q.l1Offset+size.Bytes(len(v.q.l1))*8, 8)
		if b == nil {
			return nil
		}
		if err := v.q.addL1(binary.BigEndian.Uint64(b)); err != nil {
			return err
		}
	}
	return nil
}

// orderTables finds out, when the L1 table is complete, in which order L2 tables
// come, and hands over what none maps.
func (v *receiver) orderTables() error {
	if v.ordered || len(v.q.l1) < v.q.l1Needed {
		return nil
	}
	v.ordered = true
	v.tables = v.q.distinctTables()
	each, zeros := 0, zeroRun{to: v.to}
	for i, offset := range v.q.l1 {
		if offset != 0 {
			each++
			continue
		}
		first, end := v.tableRange(uint32(i))
		if err := zeros.add(first, end); err != nil {
			return err
		}
	}
	if each != len(v.tables) {
		return refusedQCOW2(errSharedL2)
	}
	return zeros.flush()
}

// tableRange is what the L2 table of an L1 entry maps.
func (v *receiver) tableRange(index uint32) (first, end size.Bytes) {
	bytes := size.Bytes(v.q.perTable()) << v.q.clusterBits
	first = size.Bytes(index) * bytes
	return first, min(first+bytes, v.q.size)
}

// takeTables takes the L2 tables that came. One that came before the L1 table, or
// has more than can be kept in mind, is left for the end.
func (v *receiver) takeTables() error {
	for ; v.next < len(v.tables); v.next++ {
		index := v.tables[v.next]
		host := size.Bytes(v.q.l1[index])
		if host < v.pos {
			v.late = append(v.late, index)
			continue
		}
		table := v.in.at(host, v.q.cluster())
		if table == nil {
			return nil
		}
		if err := v.fillBatch(index, table); err != nil {
			return err
		}
		if len(v.pending)+len(v.batch) > v.limits.pending {
			v.late = append(v.late, index)
			continue
		}
		if err := v.takeBatch(index); err != nil {
			return err
		}
	}
	return nil
}

// fillBatch checks an L2 table and lists, in the order of the disk, what has
// data.
func (v *receiver) fillBatch(index uint32, table []byte) error {
	v.batch = v.batch[:0]
	s := &slice{entries: table}
	first := int64(index) * v.q.perTable()
	for i := range int(min(v.q.perTable(), v.q.clusters()-first)) {
		m, err := v.q.checked(s, i, first+int64(i))
		if err != nil {
			return refusedQCOW2(err)
		}
		if m.kind != zero {
			v.addToBatch(m, first+int64(i))
		}
	}
	return nil
}

// addToBatch makes one of what lies side by side on the disk and in the file.
func (v *receiver) addToBatch(m mapping, cluster int64) {
	p := pending{host: m.host, cluster: cluster, n: 1, data: allSubclusters}
	switch m.kind {
	case mixed:
		p.data = m.data
	case compressed:
		p.n, p.data = uint32(m.length), 0
	case data:
		if len(v.batch) == 0 {
			break
		}
		last := &v.batch[len(v.batch)-1]
		n := size.Bytes(last.n)
		if last.data == allSubclusters && last.host+n<<v.q.clusterBits == m.host && last.cluster+int64(n) == cluster {
			last.n++
			return
		}
	}
	v.batch = append(v.batch, p)
}

// takeBatch hands over the zeros of a table and what of it is in the spool, and
// keeps in mind what is to come.
func (v *receiver) takeBatch(index uint32) error {
	at, end := v.tableRange(index)
	for _, p := range v.batch {
		off := size.Bytes(p.cluster) << v.q.clusterBits
		if err := handZeros(v.to, at, off); err != nil {
			return err
		}
		at = off + size.Bytes(p.clusters())<<v.q.clusterBits
	}
	if err := handZeros(v.to, at, end); err != nil {
		return err
	}
	for _, p := range v.batch {
		if p.host < v.pos {
			var behind pending
			behind, p = v.split(p)
			if err := v.fetch(behind); err != nil {
				return err
			}
		}
		if p.n > 0 {
			v.pending.push(p)
		}
	}
	return nil
}

// split parts a run at pos. A compressed cluster stays whole: it reaches no
// further than the window.
func (v *receiver) split(p pending) (behind, ahead pending) {
	n := uint32(min(size.Bytes(p.n), (v.pos-p.host).AlignUp(v.q.cluster())>>v.q.clusterBits))
	if p.data == 0 {
		n = p.n
	}
	behind, ahead = p, p
	behind.n = n
	ahead.n -= n
	ahead.cluster += int64(n)
	ahead.host += size.Bytes(n) << v.q.clusterBits
	return behind, ahead
}

func handZeros(to Receiver, from, end size.Bytes) error {
	if from >= end {
		return nil
	}
	return to.Zero(from, end-from)
}

// zeroRun joins zeros that follow each other.
type zeroRun struct {
	to        Receiver
	from, end size.Bytes
}

func (z *zeroRun) add(from, end size.Bytes) error {
	if from != z.end {
		if err := z.flush(); err != nil {
			return err
		}
		z.from = from
	}
	z.end = end
	return nil
}

func (z *zeroRun) flush() error { return handZeros(z.to, z.from, z.end) }

// finish reads the tables that were left for the end, when all has come. What is
// still expected lies behind the end of a stream whose length was not known.
func (v *receiver) finish(ctx context.Context) error {
	switch {
	case !v.ordered:
		return refusedQCOW2(fmt.Errorf("the L1 table of the image %w", v.q.cutOff()))
	case v.next < len(v.tables):
		return refusedQCOW2(fmt.Errorf("entry %d of its L1 table %w", v.tables[v.next], v.q.cutOff()))
	case len(v.pending) > 0:
		return refusedQCOW2(v.entryError(v.pending[0], v.q.cutOff()))
	}
	table := make([]byte, v.q.cluster())
	for _, index := range v.late {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n, err := v.spool.read(table, size.Bytes(v.q.l1[index]))
		if err != nil {
			return err
		}
		if n < len(table) {
			return refusedQCOW2(fmt.Errorf("entry %d of its L1 table %w", index, errPassed))
		}
		if err := v.fillBatch(index, table); err != nil {
			return err
		}
		if err := v.takeBatch(index); err != nil {
			return err
		}
	}
	return nil
}
