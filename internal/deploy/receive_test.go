package deploy

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"ganeti-instance-image/internal/size"
)

// sendAll hands data over in pieces, out of order: first each second one.
func sendAll(s *Sink, data []byte, piece int) error {
	for _, first := range []int{piece, 0} {
		for at := first; at < len(data); at += 2 * piece {
			if err := sendPiece(s, data, at, min(at+piece, len(data))); err != nil {
				return err
			}
		}
	}
	return nil
}

func sendPiece(s *Sink, data []byte, from, to int) error {
	if len(bytes.Trim(data[from:to], "\x00")) == 0 {
		return s.Zero(size.Bytes(from), size.Bytes(to-from))
	}
	for from < to {
		b := s.Room(size.Bytes(from), size.Bytes(to-from))
		n := copy(b, data[from:])
		if err := s.Data(size.Bytes(from), b); err != nil {
			return err
		}
		from += n
	}
	return nil
}

func TestReceive(t *testing.T) {
	data := content(9 << 20)
	clear(data[2<<20 : 5<<20])
	for _, c := range []struct {
		name  string
		disk  int
		total size.Bytes
		piece int
	}{
		{"same size", len(data), size.Bytes(len(data)), 300_000},
		{"larger", len(data) + 3<<20, size.Bytes(len(data)), 1 << 20},
		{"length not told", len(data) + 4096, 0, 4096},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := usedDisk(t, c.disk)
			begun := false
			w, err := Receive(t.Context(), "the test", disk, func(_ context.Context, s *Sink) error {
				if err := s.Begin(c.total, func() { begun = true }); err != nil {
					return err
				}
				return sendAll(s, data, c.piece)
			})
			if err != nil || !begun || int(w.Size()) != len(data) {
				t.Fatalf("%d bytes, %v", w.Size(), err)
			}
			head := make([]byte, size.MiB)
			if _, err := disk.ReadAt(head, 0); err != nil || len(bytes.Trim(head, "\x00")) > 0 {
				t.Errorf("the disk shows something before it is committed: %v", err)
			}
			if err := w.Commit(); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(disk.Path())
			if err != nil || !bytes.Equal(got[:len(data)], data) || len(bytes.Trim(got[len(data):], "\x00")) > 0 {
				t.Errorf("the disk has something else: %v", err)
			}
		})
	}
}

func TestReceiveRefuses(t *testing.T) {
	cause := errors.New("cause")
	data := content(3 << 20)
	for _, c := range []struct {
		name    string
		total   size.Bytes
		fill    func(*Sink) error
		touched bool
		want    string
	}{
		{"told to be too large", 4 << 20, func(s *Sink) error { return nil }, false, "needs 4 MiB"},
		{"turns out too large", 0, func(s *Sink) error { return sendAll(s, data, 100_000) }, true, "more than the disk's 2 MiB"},
		{"sender fails", 0, func(s *Sink) error { return errors.Join(sendAll(s, data[:1<<20], 5000), cause) }, true, "cause"},
		{"nothing comes", 0, func(s *Sink) error { return nil }, true, "to nothing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := usedDisk(t, 2<<20)
			begun := false
			_, err := Receive(t.Context(), "the test", disk, func(_ context.Context, s *Sink) error {
				if err := s.Begin(c.total, func() { begun = true }); err != nil {
					return err
				}
				return c.fill(s)
			})
			if err == nil || !strings.Contains(err.Error(), c.want) || begun != c.touched {
				t.Errorf("begun %v, error %v, want %q", begun, err, c.want)
			}
			got, err := os.ReadFile(disk.Path())
			if err != nil || (got[0] == old) == c.touched || (got[len(got)-1] == old) == c.touched {
				t.Errorf("the ends are %x and %x: %v", got[0], got[len(got)-1], err)
			}
		})
	}
}
