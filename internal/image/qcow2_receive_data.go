package image

import (
	"bytes"
	"fmt"

	"ganeti-instance-image/internal/size"
	"ganeti-instance-image/internal/zeros"
)

// step hands over what lies in the cluster at pos, or in as many as are of one
// run, and keeps what nothing is known of.
func (v *receiver) step() error {
	end := min(v.pos+v.q.cluster(), v.in.end())
	plain, loose := false, false
	for len(v.pending) > 0 && v.pending[0].host < end {
		p := v.pending.pop()
		if p.data == 0 {
			loose = v.cover(p) || loose
			if err := v.decode(p); err != nil {
				return err
			}
			continue
		}
		n := v.runLength(p)
		if err := v.hand(p, n); err != nil {
			return err
		}
		plain, end = true, min(v.pos+size.Bytes(n)<<v.q.clusterBits, v.in.end())
		if rest := p.n - n; rest > 0 {
			v.pending.push(pending{host: end, cluster: p.cluster + int64(n), n: rest, data: p.data})
		}
	}
	if (!plain || v.spool.full()) && v.isToKeep(end, loose) {
		if err := v.spool.put(v.pos, v.in.at(v.pos, end-v.pos)); err != nil {
			return err
		}
	}
	v.pos = end
	return nil
}

// runLength is how many clusters of a run can be handed over at once.
func (v *receiver) runLength(p pending) uint32 {
	n := min(size.Bytes(p.n)<<v.q.clusterBits, v.limits.chunk, v.in.end()-v.pos)
	if len(v.pending) > 0 {
		n = min(n, v.pending[0].host-v.pos)
	}
	return max(1, uint32(n>>v.q.clusterBits))
}

// cover notes where a compressed cluster lies, and says whether something lies
// unknown in front of it. Where one begins in the last sector of another, it is
// what follows that.
func (v *receiver) cover(p pending) (loose bool) {
	if p.host >= v.covered && !v.complete() {
		loose = v.isLoose(p.host)
	}
	if end := (p.host + size.Bytes(p.n)).AlignUp(sector); end >= v.covered {
		v.covered, v.last = end, p
	}
	return loose
}

// isLoose reports whether there is something between pos and an offset that
// belongs to no compressed cluster that is known.
func (v *receiver) isLoose(end size.Bytes) bool {
	if v.covered > v.pos && v.covered <= end && v.hidesMore(v.last) {
		return true
	}
	from := max(v.covered, v.pos)
	return from < end && !zeros.Only(v.in.at(from, end-from))
}

// hidesMore reports whether a compressed cluster is whole without the last byte,
// but for zeros, of what its entry says: then that is another one's.
func (v *receiver) hidesMore(p pending) bool {
	b := v.in.at(p.host, min(size.Bytes(p.n), v.in.end()-p.host))
	b = bytes.TrimRight(b, "\x00")
	if len(b) == 0 {
		return false
	}
	d := v.q.decoders.Get().(*decoder)
	defer v.q.decoders.Put(d)
	src := d.input(len(b) - 1)
	copy(src, b)
	cluster := int(v.q.cluster())
	return d.decode(d.scratch(cluster+decodeRoom), cluster, src) == nil
}

// complete reports whether no table is to come any more.
func (v *receiver) complete() bool {
	return v.ordered && v.next == len(v.tables) && len(v.late) == 0
}

// isToKeep reports whether a table that is not known yet could lead to what lies
// from pos to end. It is called once for each cluster, from which the places of
// tables are counted.
func (v *receiver) isToKeep(end size.Bytes, loose bool) bool {
	switch {
	case v.complete():
		return false
	case v.spool.full():
		return true
	case v.isMetadata():
		return false
	case v.covered > v.pos:
		return len(v.late) > 0 || loose || v.isLoose(end)
	}
	return true
}

// isMetadata reports whether the cluster at pos holds the header, refcounts or a
// table that was taken.
func (v *receiver) isMetadata() bool {
	l1End := v.q.l1Offset + size.Bytes(v.q.l1Needed)*8
	if v.pos == 0 || v.pos >= v.q.l1Offset && v.pos < l1End || v.refcounts.has(v.pos) {
		return true
	}
	for v.passed < v.next && size.Bytes(v.q.l1[v.tables[v.passed]]) < v.pos {
		v.passed++
	}
	if v.passed == v.next {
		return false
	}
	index := v.tables[v.passed]
	return size.Bytes(v.q.l1[index]) == v.pos && !v.isLate(index)
}

// isLate reports whether a table is left for the end. Tables come to late in the
// order of the file.
func (v *receiver) isLate(index uint32) bool {
	low, high := 0, len(v.late)
	for low < high {
		if mid := (low + high) / 2; v.q.l1[v.late[mid]] < v.q.l1[index] {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low < len(v.late) && v.late[low] == index
}

// hand hands over n clusters of a run, which begins at pos.
func (v *receiver) hand(p pending, n uint32) error {
	length := v.onDisk(p.cluster, n)
	have := min(length, v.in.end()-p.host)
	if need := v.needed(p, length); have < need {
		return refusedQCOW2(v.entryError(p, v.q.cutOff()))
	}
	return v.handBytes(p, v.in.at(p.host, have), length)
}

// onDisk is the length of n clusters, but for what is behind the disk's end.
func (v *receiver) onDisk(cluster int64, n uint32) size.Bytes {
	return min(size.Bytes(n)<<v.q.clusterBits, v.q.size-size.Bytes(cluster)<<v.q.clusterBits)
}

// needed is how much of a run must be in the file: all but subclusters without
// data at its end.
func (v *receiver) needed(p pending, length size.Bytes) size.Bytes {
	if p.data == allSubclusters {
		return length
	}
	return min(length, p.subclusterEnd(v.q.clusterBits))
}

// handBytes hands over clusters whose bytes, but for such as are not needed, are
// in b.
func (v *receiver) handBytes(p pending, b []byte, length size.Bytes) error {
	off := size.Bytes(p.cluster) << v.q.clusterBits
	if p.data == allSubclusters {
		return v.to.Data(off, b)
	}
	unit := v.q.cluster() >> subclusterBits
	for at := size.Bytes(0); at < length; {
		isData := p.data>>(at/unit)&1 != 0
		end := at + unit
		for end < length && p.data>>(end/unit)&1 != 0 == isData {
			end += unit
		}
		end = min(end, length)
		err := error(nil)
		if isData {
			err = v.to.Data(off+at, b[at:end])
		} else {
			err = v.to.Zero(off+at, end-at)
		}
		if err != nil {
			return err
		}
		at = end
	}
	return nil
}

// decode hands over a compressed cluster. Of what its entry says is read what
// there is.
func (v *receiver) decode(p pending) error {
	d := v.q.decoders.Get().(*decoder)
	defer v.q.decoders.Put(d)
	src := d.input(int(p.n))
	n, err := v.read(src, p.host)
	if err != nil {
		return err
	}
	if n == 0 {
		return refusedQCOW2(v.entryError(p, errPassed))
	}
	src = src[:n]
	cluster := int(v.q.cluster())
	room := d.scratch(cluster + decodeRoom)
	off := size.Bytes(p.cluster) << v.q.clusterBits
	if err := d.decode(room, cluster, src); err != nil {
		return refusedQCOW2(fmt.Errorf("at offset %d of its disk: %w", int64(off), err))
	}
	return v.to.Data(off, room[:v.onDisk(p.cluster, 1)])
}

// read fills p from the spool, up to pos, and from the window. It returns how
// much of p is there.
func (v *receiver) read(p []byte, host size.Bytes) (int, error) {
	behind := int(max(0, min(v.pos-host, size.Bytes(len(p)))))
	n, err := v.spool.read(p[:behind], host)
	if n < behind || err != nil {
		return n, err
	}
	host += size.Bytes(behind)
	ahead := min(size.Bytes(len(p)-behind), v.in.end()-host)
	if ahead <= 0 {
		return n, nil
	}
	return n + copy(p[behind:], v.in.at(host, ahead)), nil
}

// fetch hands over what begins in front of pos.
func (v *receiver) fetch(p pending) error {
	if p.data == 0 {
		return v.decode(p)
	}
	step := max(1, uint32(v.limits.chunk>>v.q.clusterBits))
	for p.n > 0 {
		n := min(p.n, step)
		length := v.onDisk(p.cluster, n)
		if size.Bytes(cap(v.room)) < length {
			v.room = make([]byte, length)
		}
		b := v.room[:length]
		have, err := v.read(b, p.host)
		if err != nil {
			return err
		}
		if size.Bytes(have) < v.needed(p, length) {
			return refusedQCOW2(v.entryError(p, errPassed))
		}
		if err := v.handBytes(p, b, length); err != nil {
			return err
		}
		p.n -= n
		p.cluster += int64(n)
		p.host += size.Bytes(n) << v.q.clusterBits
	}
	return nil
}

func (v *receiver) entryError(p pending, err error) error {
	return fmt.Errorf("its entry for the disk's offset %d (offset %d of the file) %w", p.cluster<<v.q.clusterBits, int64(p.host), err)
}
