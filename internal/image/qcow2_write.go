package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/bits"

	"golang.org/x/sync/errgroup"

	"ganeti-instance-image/internal/size"
)

// What a written qcow2 file looks like: version 3, clusters of 64 KiB, refcounts
// of 16 bits, and in this order the header, the refcount table, its blocks, the L1
// table, the L2 tables, the data. Nothing leads backwards, so that it can be
// decoded as it comes.
const (
	writtenBits    = 16
	writtenCluster = 1 << writtenBits
	writtenPerL2   = writtenCluster / 8 // clusters an L2 table maps
	writtenPerRef  = writtenCluster / 2 // clusters a refcount block counts
	refcountOrder  = 4                  // log2 of the bits of a refcount
	wordBits       = 64
)

const (
	writeChunk = size.MiB // how much is read at once
	readers    = 3        // how many reads are on their way at once
)

// Range is a stretch of a disk.
type Range struct {
	Start, Length size.Bytes // Length is above 0
}

// QCOW2Plan is where everything of a qcow2 file will be. It has a bit for each
// 64 KiB of the disk.
type QCOW2Plan struct {
	disk     size.Bytes
	used     []uint64 // a bit for each cluster of the disk
	clusters int64    // of the disk
	l1       int64    // entries of the L1 table

	// Lengths in clusters, in the order of the file; the header has one.
	refTable, refBlocks, l1Clusters, tables, data int64
}

// PlanQCOW2 lays out a qcow2 file for a disk, with the clusters of which used
// names a part. The ranges can come in any order and overlap. disk is a multiple
// of 512 and at most 64 TiB.
func PlanQCOW2(disk size.Bytes, used iter.Seq2[Range, error]) (*QCOW2Plan, error) {
	if disk <= 0 || disk%sector != 0 || disk > maxVirtualSize {
		return nil, fmt.Errorf("cannot make a qcow2 image of a disk of %d bytes: it must be a multiple of 512, and at most %s", int64(disk), maxVirtualSize)
	}
	p := &QCOW2Plan{disk: disk, clusters: int64(disk.AlignUp(writtenCluster) >> writtenBits)}
	p.used = make([]uint64, (p.clusters+wordBits-1)/wordBits)
	for r, err := range used {
		if err != nil {
			return nil, err
		}
		if r.Start < 0 || r.Length <= 0 || r.Start > disk || r.Length > disk-r.Start {
			return nil, fmt.Errorf("cannot make a qcow2 image: the used range of %d bytes at offset %d is not on the disk of %d bytes",
				int64(r.Length), int64(r.Start), int64(disk))
		}
		p.mark(int64(r.Start>>writtenBits), int64((r.Start+r.Length-1)>>writtenBits))
	}
	p.layOut()
	return p, nil
}

// mark sets the bits of the clusters from first to last.
func (p *QCOW2Plan) mark(first, last int64) {
	for word := first / wordBits; word <= last/wordBits; word++ {
		mask := ^uint64(0)
		if word == first/wordBits {
			mask &= ^uint64(0) << (first % wordBits)
		}
		if word == last/wordBits {
			mask &= ^uint64(0) >> (wordBits - 1 - last%wordBits)
		}
		p.used[word] |= mask
	}
}

// inTable is how many clusters of the L2 table number i are used.
func (p *QCOW2Plan) inTable(i int64) int64 {
	const words = writtenPerL2 / wordBits
	n := 0
	for _, word := range p.used[i*words : min((i+1)*words, int64(len(p.used)))] {
		n += bits.OnesCount64(word)
	}
	return int64(n)
}

// layOut counts. The refcounts count themselves, which ends after a few rounds.
func (p *QCOW2Plan) layOut() {
	p.l1 = (p.clusters + writtenPerL2 - 1) / writtenPerL2
	p.l1Clusters = (p.l1*8 + writtenCluster - 1) / writtenCluster
	for i := range p.l1 {
		if n := p.inTable(i); n > 0 {
			p.tables++
			p.data += n
		}
	}
	for {
		blocks := (p.total() + writtenPerRef - 1) / writtenPerRef
		table := (blocks*8 + writtenCluster - 1) / writtenCluster
		if blocks == p.refBlocks && table == p.refTable {
			return
		}
		p.refBlocks, p.refTable = blocks, table
	}
}

// total is the length of the file in clusters.
func (p *QCOW2Plan) total() int64 {
	return 1 + p.refTable + p.refBlocks + p.l1Clusters + p.tables + p.data
}

// Size is the exact length of the file.
func (p *QCOW2Plan) Size() size.Bytes { return size.Bytes(p.total()) << writtenBits }

// Write writes the file. r is the disk, of which it reads the used clusters alone,
// each once and whole, up to readers at the same time. When ctx is cancelled
// the error is its cause.
func (p *QCOW2Plan) Write(ctx context.Context, w io.Writer, r io.ReaderAt) error {
	err := p.writeTables(ctx, w)
	if err == nil {
		err = p.writeData(ctx, w, r)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("stopped while writing a qcow2 image: %w", context.Cause(ctx))
	}
	return err
}

// writeTables writes all that is in front of the data, in pieces of a cluster.
func (p *QCOW2Plan) writeTables(ctx context.Context, w io.Writer) error {
	b := make([]byte, 0, writtenCluster)
	for piece := range p.metadata(b) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := writeTo(w, piece[:writtenCluster]); err != nil {
			return err
		}
	}
	return nil
}

func writeTo(w io.Writer, b []byte) error {
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("cannot write the qcow2 image: %w", err)
	}
	return nil
}

// metadata yields the clusters in front of the data one after the other, all
// in b, which has room for one.
func (p *QCOW2Plan) metadata(b []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		full := func(b []byte) []byte { clear(b[len(b):cap(b)]); return b[:cap(b)] }
		if !yield(full(p.header(b[:0]))) {
			return
		}
		for _, table := range []struct {
			clusters int64
			entries  iter.Seq[uint64]
			width    int
		}{
			{p.refTable, p.refcountTable, 8},
			{p.refBlocks, p.refcounts, 2},
			{p.l1Clusters, p.l1Entries, 8},
			{p.tables, p.l2Entries, 8},
		} {
			b = b[:0]
			for v := range table.entries {
				if b = appendEntry(b, v, table.width); len(b) == cap(b) {
					if !yield(b) {
						return
					}
					b = b[:0]
				}
			}
			if len(b) > 0 && !yield(full(b)) {
				return
			}
		}
	}
}

func appendEntry(b []byte, v uint64, width int) []byte {
	if width == 2 {
		return binary.BigEndian.AppendUint16(b, uint16(v))
	}
	return binary.BigEndian.AppendUint64(b, v)
}

func (p *QCOW2Plan) header(b []byte) []byte {
	be := binary.BigEndian
	b = append(b, "QFI\xfb"...)
	b = be.AppendUint32(b, 3)
	b = append(b, make([]byte, 12)...) // no backing file
	b = be.AppendUint32(b, writtenBits)
	b = be.AppendUint64(b, uint64(p.disk))
	b = be.AppendUint32(b, 0) // not encrypted
	b = be.AppendUint32(b, uint32(p.l1))
	b = be.AppendUint64(b, uint64(1+p.refTable+p.refBlocks)<<writtenBits)
	b = be.AppendUint64(b, writtenCluster)
	b = be.AppendUint32(b, uint32(p.refTable))
	b = append(b, make([]byte, 12)...) // no snapshots
	b = append(b, make([]byte, 24)...) // no features
	b = be.AppendUint32(b, refcountOrder)
	return be.AppendUint32(b, headerV3)
}

func (p *QCOW2Plan) refcountTable(yield func(uint64) bool) {
	for i := range p.refBlocks {
		if !yield(uint64(1+p.refTable+i) << writtenBits) {
			return
		}
	}
}

// refcounts has 1 for every cluster of the file.
func (p *QCOW2Plan) refcounts(yield func(uint64) bool) {
	for range p.total() {
		if !yield(1) {
			return
		}
	}
}

func (p *QCOW2Plan) l1Entries(yield func(uint64) bool) {
	next := uint64(1+p.refTable+p.refBlocks+p.l1Clusters) << writtenBits
	for i := range p.l1 {
		entry := uint64(0)
		if p.inTable(i) > 0 {
			entry = next | entryCopied
			next += writtenCluster
		}
		if !yield(entry) {
			return
		}
	}
}

// l2Entries has the tables that are not empty, each whole.
func (p *QCOW2Plan) l2Entries(yield func(uint64) bool) {
	next := uint64(p.total()-p.data) << writtenBits
	for i := range p.l1 {
		if p.inTable(i) == 0 {
			continue
		}
		for cluster := i * writtenPerL2; cluster < (i+1)*writtenPerL2; cluster++ {
			entry := uint64(0)
			if p.isUsed(cluster) {
				entry = next | entryCopied
				next += writtenCluster
			}
			if !yield(entry) {
				return
			}
		}
	}
}

func (p *QCOW2Plan) isUsed(cluster int64) bool {
	return cluster < p.clusters && p.used[cluster/wordBits]>>(cluster%wordBits)&1 != 0
}

// nextUsed is the first used cluster from here on, the number of all where there
// is none.
func (p *QCOW2Plan) nextUsed(cluster int64) int64 {
	for cluster < p.clusters {
		if rest := p.used[cluster/wordBits] >> (cluster % wordBits); rest != 0 {
			return cluster + int64(bits.TrailingZeros64(rest))
		}
		cluster = (cluster/wordBits + 1) * wordBits
	}
	return p.clusters
}

// runs yields the used clusters as runs of at most writeChunk.
func (p *QCOW2Plan) runs(yield func(first, n int64) bool) {
	for first := p.nextUsed(0); first < p.clusters; {
		end := first + 1
		for end-first < int64(writeChunk>>writtenBits) && p.isUsed(end) {
			end++
		}
		if !yield(first, end-first) {
			return
		}
		first = p.nextUsed(end)
	}
}

// chunk is a run of clusters that is read by one goroutine and written by
// another.
type chunk struct {
	off  size.Bytes
	b    []byte
	read chan error // gets one value
}

// writeData has several goroutines read and one write, in order.
func (p *QCOW2Plan) writeData(ctx context.Context, w io.Writer, r io.ReaderAt) error {
	group, ctx := errgroup.WithContext(ctx)
	jobs, order := make(chan *chunk), make(chan *chunk, readers)
	free := make(chan []byte, 2*readers)
	for range cap(free) {
		free <- make([]byte, writeChunk)
	}
	group.Go(func() error {
		defer close(jobs)
		defer close(order)
		return p.handOut(ctx, free, jobs, order)
	})
	for range readers {
		group.Go(func() error {
			for c := range jobs {
				c.read <- p.readChunk(r, c)
			}
			return nil
		})
	}
	group.Go(func() error { return writeInOrder(ctx, w, order, free) })
	return group.Wait()
}

// handOut sends each run of used clusters to a reader and to the writer.
func (p *QCOW2Plan) handOut(ctx context.Context, free chan []byte, jobs, order chan<- *chunk) error {
	for first, n := range p.runs {
		c := &chunk{off: size.Bytes(first) << writtenBits, read: make(chan error, 1)}
		select {
		case b := <-free:
			c.b = b[:n<<writtenBits]
		case <-ctx.Done():
			return ctx.Err()
		}
		for _, to := range []chan<- *chunk{jobs, order} {
			select {
			case to <- c:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// readChunk reads clusters. What the last one of the disk has behind its end
// becomes zeros.
func (p *QCOW2Plan) readChunk(r io.ReaderAt, c *chunk) error {
	b := c.b[:min(size.Bytes(len(c.b)), p.disk-c.off)]
	n, err := r.ReadAt(b, int64(c.off))
	if n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("cannot read the disk at offset %d: %w", int64(c.off)+int64(n), err)
	}
	clear(c.b[len(b):])
	return nil
}

func writeInOrder(ctx context.Context, w io.Writer, order <-chan *chunk, free chan<- []byte) error {
	for c := range order {
		select {
		case err := <-c.read:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := writeTo(w, c.b); err != nil {
			return err
		}
		free <- c.b[:cap(c.b)]
	}
	return ctx.Err()
}
