package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"

	"ganeti-instance-image/internal/size"
)

// pending is a run of clusters of which a table told and that did not come yet.
type pending struct {
	host    size.Bytes // offset in the file
	cluster int64      // of the disk, the first
	n       uint32     // clusters, or bytes where it is one compressed cluster
	data    uint32     // subclusters that have data; 0 where it is compressed
}

// clusters is how many clusters of the disk it is.
func (p pending) clusters() uint32 {
	if p.data == 0 {
		return 1
	}
	return p.n
}

// subclusterEnd is where the last subcluster with data ends.
func (p pending) subclusterEnd(clusterBits uint) size.Bytes {
	return size.Bytes(bits.Len32(p.data)) << (clusterBits - subclusterBits)
}

// pendingHeap has the run that comes first in front.
type pendingHeap []pending

func (h *pendingHeap) push(p pending) {
	a := append(*h, p)
	i := len(a) - 1
	for i > 0 && p.host < a[(i-1)/2].host {
		a[i] = a[(i-1)/2]
		i = (i - 1) / 2
	}
	a[i] = p
	*h = a
}

func (h *pendingHeap) pop() pending {
	a := *h
	first, last := a[0], a[len(a)-1]
	a = a[:len(a)-1]
	*h = a
	for i := 0; len(a) > 0; {
		child := 2*i + 1
		if child+1 < len(a) && a[child+1].host < a[child].host {
			child++
		}
		if child >= len(a) || last.host <= a[child].host {
			a[i] = last
			break
		}
		a[i] = a[child]
		i = child
	}
	return first
}

// window is a stretch of a stream that moves.
type window struct {
	r            io.Reader
	ahead, chunk size.Bytes
	buf          []byte
	start        size.Bytes // offset of buf in the stream
	length       size.Bytes // of the stream; unknownEnd until it ended
	done         bool       // it ended
}

// unknownEnd is above each offset that an entry can have.
const unknownEnd = 1 << 60

func newWindow(r io.Reader, n int64, limits receiveLimits) *window {
	w := &window{r: r, ahead: limits.ahead, chunk: limits.chunk, length: size.Bytes(n)}
	if n < 0 {
		w.length = unknownEnd
	}
	w.buf = make([]byte, 0, min(2*limits.ahead, max(w.length, 0)))
	return w
}

func (w *window) end() size.Bytes { return w.start + size.Bytes(len(w.buf)) }

// at is a stretch of the stream that is not in front of the window, nil where it
// did not come yet.
func (w *window) at(off, n size.Bytes) []byte {
	if off < w.start || off > w.end() || n > w.end()-off {
		return nil
	}
	return w.buf[off-w.start:][:n]
}

// fill reads until enough is known from pos on. What lies before keep can get
// lost.
func (w *window) fill(pos, keep size.Bytes) error {
	for !w.done && w.end()-pos < w.ahead {
		if w.end() == w.length {
			return w.checkEnd()
		}
		if cap(w.buf)-len(w.buf) < int(min(w.chunk, w.length-w.end())) {
			w.buf = w.buf[:copy(w.buf, w.buf[keep-w.start:])]
			w.start = keep
		}
		free := w.buf[len(w.buf):cap(w.buf)]
		n, err := io.ReadFull(w.r, free[:min(w.chunk, w.length-w.end(), size.Bytes(len(free)))])
		w.buf = w.buf[:len(w.buf)+n]
		ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if ended && w.length == unknownEnd {
			w.length, w.done = w.end(), true
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot read the qcow2 image: at offset %d of %d: %w", int64(w.end()), int64(w.length), noEOF(err))
		}
	}
	return nil
}

// checkEnd wants the stream to end.
func (w *window) checkEnd() error {
	w.done = true
	switch _, err := io.ReadFull(w.r, make([]byte, 1)); {
	case err == nil:
		return refusedQCOW2(fmt.Errorf("%w, %d bytes", errLongStream, int64(w.length)))
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("cannot read the end of the qcow2 image: %w", err)
	}
	return nil
}

// maxRefcountTable is QEMU's limit of the refcount table, in bytes.
const maxRefcountTable = 8 << 20

// refcountMap knows where the refcounts lie, as far as the file tells it in front
// of them. They are not used.
type refcountMap struct {
	table, end size.Bytes // of the refcount table
	taken      size.Bytes // up to here it was read
	blocks     []size.Bytes
	passed     int // of blocks: it lies at the place asked for or behind
}

// newRefcountMap takes the table's place from a header. One that cannot be is
// none.
func newRefcountMap(head []byte, h *header) refcountMap {
	offset := binary.BigEndian.Uint64(head[48:])
	length := size.Bytes(binary.BigEndian.Uint32(head[56:])) << h.clusterBits
	if offset%uint64(h.cluster()) != 0 || offset > entryOffset || length > maxRefcountTable {
		return refcountMap{}
	}
	table := size.Bytes(offset)
	return refcountMap{table: table, end: table + length, taken: table}
}

// take reads what came of the table.
func (m *refcountMap) take(in *window) {
	before := len(m.blocks)
	for m.taken < m.end {
		b := in.at(m.taken, 8)
		if b == nil {
			break
		}
		if block := size.Bytes(binary.BigEndian.Uint64(b) & entryOffset); block != 0 {
			m.blocks = append(m.blocks, block)
		}
		m.taken += 8
	}
	if len(m.blocks) > before {
		slices.Sort(m.blocks)
		m.passed = 0
	}
}

// has reports whether refcounts lie in the cluster at pos, which must not become
// less.
func (m *refcountMap) has(pos size.Bytes) bool {
	for m.passed < len(m.blocks) && m.blocks[m.passed] < pos {
		m.passed++
	}
	return pos >= m.table && pos < m.end || m.passed < len(m.blocks) && m.blocks[m.passed] == pos
}
