package luxi

import (
	"bufio"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// answerWith serves one client with an answer, whatever it asks, and returns the
// socket.
func answerWith(t *testing.T, answer string) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "query")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if _, err := bufio.NewReader(conn).ReadBytes(endOfMessage); err == nil {
			_, _ = conn.Write([]byte(answer))
		}
	}()
	return socket
}

// The answers are as Ganeti 3.0 sends them.
func TestQuery(t *testing.T) {
	socket := answerWith(t, `{"success":true,"result":{"fields":[],"data":[[[0,"web.example.org"],[0,["aa:00:00:00:00:01",null]],[1,null]]]}}`+"\x03")
	rows, err := Query(t.Context(), socket, "instance", []string{"name", "nic.macs", "oper_ram"}, "web")
	if err != nil || len(rows) != 1 {
		t.Fatal(rows, err)
	}
	var name string
	var macs []*string
	ram := 7
	for field, into := range map[string]any{"name": &name, "nic.macs": &macs, "oper_ram": &ram} {
		if err := rows[0].Into(field, into); err != nil {
			t.Error(err)
		}
	}
	if name != "web.example.org" || len(macs) != 2 || macs[1] != nil || ram != 7 {
		t.Errorf("got %q %v %d", name, macs, ram)
	}
	if err := rows[0].Into("name", &ram); err == nil || !strings.Contains(err.Error(), "the field name") {
		t.Errorf("got %v", err)
	}
}

func TestQueryRefused(t *testing.T) {
	for answer, want := range map[string]string{
		`{"success":false,"result":["OpPrereqError",["no such field","wrong_input"]]}` + "\x03": "no such field",
		`{"success":true,"result":{"data":[[[0,"x"],[0,"y"]]]}}` + "\x03":                       "2 fields instead of 1",
		`{"success":true,"result":7}` + "\x03":                                                  "not what was expected",
		`<html>` + "\x03":                                                                       "not what was expected",
		`{"success":true`:                                                                       "EOF",
	} {
		if _, err := Query(t.Context(), answerWith(t, answer), "instance", []string{"name"}, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", answer, err, want)
		}
	}
	socket := answerWith(t, `{"success":false,"result":["OpPrereqError",["Instance 'x' not known","unknown_entity"]]}`+"\x03")
	if _, err := Query(t.Context(), socket, "instance", []string{"name"}, "x"); !errors.Is(err, ErrUnknown) {
		t.Errorf("got %v", err)
	}
	if _, err := Query(t.Context(), filepath.Join(t.TempDir(), "none"), "instance", nil, ""); err == nil || !strings.Contains(err.Error(), "on the master node") {
		t.Errorf("got %v", err)
	}
}
