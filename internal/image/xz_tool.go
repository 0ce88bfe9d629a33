package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"ganeti-instance-image/internal/run"
	"ganeti-instance-image/internal/size"
)

// xzTool is xz(1) as it decodes a file of its own: it needs a quarter less time
// than we do.
type xzTool struct {
	cmd  *exec.Cmd
	out  io.ReadCloser
	said bytes.Buffer
	left size.Bytes // of what the index of the file says
	err  error
}

// findXZ is the node's xz, "" where it has none.
func findXZ() string {
	path, err := run.Find("xz")
	if err != nil {
		return ""
	}
	return path
}

// openTool starts xz on the file, whose index was read.
func (s *Stream) openTool(xz string) (io.ReadCloser, error) {
	in, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", s.f.Fd())) // with a position of its own
	if err != nil {
		return nil, err
	}
	defer in.Close()
	// More than one thread only as far as the memory for it goes.
	limit := fmt.Sprintf("--memlimit-decompress=%d", int64(archiveMemory))
	t := &xzTool{cmd: exec.Command(xz, "--decompress", "--stdout", "--format=xz", "--threads=0", limit, "--quiet"), left: s.decoded}
	t.cmd.Stdin, t.cmd.Env = in, []string{"LC_ALL=C", "PATH=" + run.Path}
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's interrupt is ours to handle
	t.cmd.Stderr = &limitedWriter{to: &t.said, left: 1024}
	if t.out, err = t.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	if err := t.cmd.Start(); err != nil {
		return nil, err
	}
	return t, nil
}

// Read is io.EOF once xz has ended well and all that the index says was read.
func (t *xzTool) Read(p []byte) (int, error) {
	if t.err != nil {
		return 0, t.err
	}
	n, err := t.out.Read(p)
	t.left -= size.Bytes(n)
	if err != nil {
		t.err = t.end(err)
		return n, t.err
	}
	return n, nil
}

func (t *xzTool) end(err error) error {
	if !errors.Is(err, io.EOF) {
		t.kill()
		return err
	}
	if err := t.cmd.Wait(); err != nil {
		said := strings.Join(strings.Fields(strings.TrimPrefix(t.said.String(), t.cmd.Path+": (stdin): ")), " ")
		return xzFormat.unusable(fmt.Errorf("xz: %w: %+q", err, said))
	}
	if t.left != 0 {
		return xzFormat.unusable(reasonf("its index and its content do not agree"))
	}
	return io.EOF
}

// Close ends xz where it still runs.
func (t *xzTool) Close() error {
	if t.err != nil {
		return nil
	}
	t.err = os.ErrClosed
	t.kill()
	return nil
}

func (t *xzTool) kill() {
	_ = t.cmd.Process.Kill()
	_ = t.cmd.Wait() // it was killed
}

// limitedWriter drops what is too much.
type limitedWriter struct {
	to   io.Writer
	left int
}

func (w *limitedWriter) Write(p []byte) (int, error) {
	n := min(len(p), w.left)
	w.left -= n
	_, err := w.to.Write(p[:n])
	return len(p), err
}
