package image

import (
	"errors"
	"fmt"
	"io"

	"ganeti-instance-image/internal/size"
)

var (
	errReserved    = errors.New("has reserved bits set: the image is damaged")
	errAlignment   = errors.New("is not the offset of a cluster: the image is damaged")
	errSubclusters = errors.New("has subclusters that contradict each other: the image is damaged")
)

func (q *qcow2) cutOff() error {
	return fmt.Errorf("leads behind the end of the file of %d bytes: the image is cut off or damaged", int64(q.length))
}

// noEOF makes the end of the file the error that it is inside an image.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (q *qcow2) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || size.Bytes(off) >= q.size {
		return 0, io.EOF
	}
	want := int(min(int64(len(p)), int64(q.size)-off))
	for done := 0; done < want; {
		n, err := q.read(p[done:want], size.Bytes(off)+size.Bytes(done))
		if err != nil {
			return done, fmt.Errorf("cannot read image %s at offset %d of its disk: %w", q.path, off+int64(done), err)
		}
		done += n
	}
	if want < len(p) {
		return want, io.EOF
	}
	return want, nil
}

// read fills the beginning of p, at most as far as the clusters are of one kind
// and side by side in the file. It returns how much.
func (q *qcow2) read(p []byte, off size.Bytes) (int, error) {
	cluster := int64(off >> q.clusterBits)
	in := off % q.cluster()
	m, err := q.lookup(cluster)
	if err != nil {
		return 0, err
	}
	n := min(len(p), int(q.cluster()-in))
	switch m.kind {
	case zero:
		clear(p[:n])
		return n, nil
	case compressed:
		return n, q.readCompressed(p, n, m, int(in))
	case mixed:
		return q.readMixed(p[:n], m, in)
	}
	for n < len(p) {
		cluster++
		next, err := q.lookup(cluster)
		if err != nil || next.kind != data || next.host != m.host+in+size.Bytes(n) {
			break
		}
		n = min(len(p), n+int(q.cluster()))
	}
	return n, q.pread(p[:n], m.host+in)
}

// pread reads the file. That what is read is there was checked; a file that is
// short now has changed.
func (q *qcow2) pread(p []byte, host size.Bytes) error {
	if _, err := q.f.ReadAt(p, int64(host)); err != nil {
		return fmt.Errorf("at offset %d of the file: %w", int64(host), noEOF(err))
	}
	return nil
}

// readMixed reads a run of subclusters of the same kind.
func (q *qcow2) readMixed(p []byte, m mapping, in size.Bytes) (int, error) {
	unit := q.cluster() >> subclusterBits
	isData := func(off size.Bytes) bool { return m.data>>(off/unit)&1 != 0 }
	end := in.AlignDown(unit) + unit
	for end < in+size.Bytes(len(p)) && isData(end) == isData(in) {
		end += unit
	}
	n := min(len(p), int(end-in))
	if !isData(in) {
		clear(p[:n])
		return n, nil
	}
	return n, q.pread(p[:n], m.host+in)
}

// readCompressed decodes a whole cluster, and puts n bytes of it from in on at
// the beginning of p. The rest of p is not filled yet and may be written to.
func (q *qcow2) readCompressed(p []byte, n int, m mapping, in int) error {
	d := q.decoders.Get().(*decoder)
	defer q.decoders.Put(d)
	src := d.input(m.length)
	if err := q.pread(src, m.host); err != nil {
		return err
	}
	cluster := int(q.cluster())
	if n == cluster && len(p) >= cluster+decodeRoom {
		return d.decode(p, cluster, src)
	}
	room := d.scratch(cluster + decodeRoom)
	if err := d.decode(room, cluster, src); err != nil {
		return err
	}
	copy(p[:n], room[in:])
	return nil
}
