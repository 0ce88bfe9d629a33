// Package luxi asks Ganeti's master what it knows, by the protocol of its local
// query socket: JSON, ended by the byte 3 (doc/design-2.0.rst and lib/rpc/client.py
// of Ganeti).
//
// Left out: jobs, which are gnt-instance's to start and to wait for, and remote
// access (RAPI), which needs a user.
package luxi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"time"
)

// Socket is where the query daemon of the master listens.
const Socket = "/var/run/ganeti/socket/ganeti-query"

const (
	endOfMessage = 3
	patience     = 60 * time.Second
	answerLimit  = 64 << 20 // bytes
)

// cell is one field of one row: how it stands with it, and its value.
type cell struct {
	status int
	value  json.RawMessage
}

// ErrUnknown is wrapped by the error for a name that Ganeti does not know.
var ErrUnknown = errors.New("there is none of that name in Ganeti")

// unknownEntity is what Ganeti's answer calls it.
const unknownEntity = `"unknown_entity"`

// normal is the status of a field that has a value.
const normal = 0

func (c *cell) UnmarshalJSON(data []byte) error {
	pair := []any{&c.status, &c.value}
	return json.Unmarshal(data, &pair)
}

// Row is one answer: the values of the fields that have one, by name.
type Row map[string]json.RawMessage

// Into decodes a field; one that is not there leaves v as it is.
func (r Row) Into(field string, v any) error {
	text, ok := r[field]
	if !ok {
		return nil
	}
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("cannot read the field %s of Ganeti's answer: %w", field, err)
	}
	return nil
}

// Query asks for fields of the items of a kind ("instance", "network") that have
// the name; "" is all of them. Where this is not the master the error says so.
func Query(ctx context.Context, socket, kind string, fields []string, name string) ([]Row, error) {
	rows, err := query(ctx, socket, kind, fields, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot ask Ganeti: there is no %s; run this on the master node (gnt-cluster getmaster tells which)", socket)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot ask Ganeti's query daemon: %w", err)
	}
	return rows, nil
}

func query(ctx context.Context, socket, kind string, fields []string, name string) ([]Row, error) {
	var filter any
	if name != "" {
		filter = []any{"|", []any{"=", "name", name}}
	}
	request, err := json.Marshal(map[string]any{"method": "Query", "args": []any{kind, fields, filter}})
	if err != nil {
		return nil, err
	}
	answer, err := exchange(ctx, socket, request)
	if err != nil {
		return nil, err
	}
	var result struct {
		Success bool
		Result  json.RawMessage
	}
	if err := json.Unmarshal(answer, &result); err != nil {
		return nil, fmt.Errorf("its answer is not what was expected: %w", err)
	}
	if !result.Success && bytes.Contains(result.Result, []byte(unknownEntity)) {
		return nil, fmt.Errorf("it refuses: %w: %.300s", ErrUnknown, result.Result)
	}
	if !result.Success {
		return nil, fmt.Errorf("it refuses: %.300s", result.Result)
	}
	return rows(result.Result, fields)
}

// exchange sends one message and reads one.
func exchange(ctx context.Context, socket string, request []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	if _, err := conn.Write(append(request, endOfMessage)); err != nil {
		return nil, err
	}
	return readMessage(bufio.NewReader(conn))
}

func readMessage(r *bufio.Reader) ([]byte, error) {
	var message []byte
	for {
		piece, err := r.ReadSlice(endOfMessage)
		message = append(message, piece...)
		switch {
		case len(message) > answerLimit:
			return nil, errors.New("its answer is too long")
		case err == nil:
			return message[:len(message)-1], nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

func rows(text json.RawMessage, fields []string) ([]Row, error) {
	var result struct{ Data [][]cell }
	if err := json.Unmarshal(text, &result); err != nil {
		return nil, fmt.Errorf("its answer is not what was expected: %w", err)
	}
	var list []Row
	for _, cells := range result.Data {
		if len(cells) != len(fields) {
			return nil, fmt.Errorf("its answer has %d fields instead of %d", len(cells), len(fields))
		}
		row := Row{}
		for i, c := range cells {
			if c.status == normal {
				row[fields[i]] = c.value
			}
		}
		list = append(list, row)
	}
	return list, nil
}
