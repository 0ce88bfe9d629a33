package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/run"
)

// namespace is a network namespace with a bridge that the node and its guests
// are on. Nothing leads out of it.
type namespace struct{ name string }

// etc is the directory whose files stand for those of /etc in the namespace.
func (n namespace) etc() string { return filepath.Join("/etc/netns", n.name) }

// hosts is what names stand for in the namespace.
func hosts() map[string]string {
	names := map[string]string{Gateway: Node, "192.0.2.11": Cluster}
	for i := 1; i <= 9; i++ {
		names[fmt.Sprintf("192.0.2.%d", 20+i)] = fmt.Sprintf("vm%d.gnt.test", i)
	}
	return names
}

func (n namespace) create(ctx context.Context) error {
	text := "127.0.0.1 localhost\n::1 localhost\n"
	for address, name := range hosts() {
		short, _, _ := strings.Cut(name, ".")
		text += address + " " + name + " " + short + "\n"
	}
	if err := os.MkdirAll(n.etc(), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(n.etc(), "hosts"), []byte(text), 0o644); err != nil {
		return err
	}
	if err := n.add(ctx); err != nil {
		return err
	}
	return n.ip(ctx, append(bridge(Bridge), "addr add "+Gateway+"/24 dev "+Bridge)...)
}

// add makes the namespace, with the loopback interface in it alone.
func (n namespace) add(ctx context.Context) error {
	if _, err := (run.Cmd{What: "make a network namespace", Argv: []string{"ip", "netns", "add", n.name}}).Run(ctx); err != nil {
		return err
	}
	return n.ip(ctx, "link set lo up")
}

// bridge is what ip is told to make a bridge. The veth pair gives it a carrier
// while no guest is there.
func bridge(name string) []string {
	return []string{
		"link add " + name + " type bridge",
		"link set " + name + " up",
		"link add " + name + "a type veth peer name " + name + "b",
		"link set " + name + "a master " + name,
		"link set " + name + "a up",
		"link set " + name + "b up",
	}
}

// ip runs ip in the namespace, once for each line of words.
func (n namespace) ip(ctx context.Context, lines ...string) error {
	for _, words := range lines {
		argv := append([]string{"ip", "-n", n.name}, strings.Fields(words)...)
		if _, err := (run.Cmd{What: "set up the namespace's network", Argv: argv}).Run(ctx); err != nil {
			return err
		}
	}
	return nil
}

// exec is what a command line begins with to be in the namespace.
func (n namespace) exec() []string { return []string{"ip", "netns", "exec", n.name} }

// prefix is what a command line begins with to be on the node. Where systemd
// runs it is hidden, as Ganeti would let it start the daemons, outside.
func (n namespace) prefix() []string {
	return append(n.exec(), "unshare", "--uts", "bash", "-c",
		`hostname "$0" && { [ ! -d /run/systemd/system ] || mount -t tmpfs none /run/systemd; } && exec "$@"`, Node)
}

// remove ends all that runs in the namespace and removes it. It is no error if
// there is none.
func (n namespace) remove(ctx context.Context) error {
	if exists("/run/netns/" + n.name) {
		for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
			if err := n.end(ctx, s, 5*time.Second); err != nil {
				return err
			}
		}
		if _, err := (run.Cmd{What: "remove the namespace", Argv: []string{"ip", "netns", "del", n.name}}).Run(ctx); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(n.etc()); err != nil {
		return err
	}
	// The directory stays where others have something in it.
	if err := os.Remove(filepath.Dir(n.etc())); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// end sends a signal to every process in the namespace and waits until they
// are gone, as long as limit.
func (n namespace) end(ctx context.Context, s unix.Signal, limit time.Duration) error {
	result, err := run.Cmd{What: "list the namespace's processes", Argv: []string{"ip", "netns", "pids", n.name}}.Run(ctx)
	if err != nil {
		return err
	}
	var waiting []unix.PollFd
	defer func() {
		for _, p := range waiting {
			unix.Close(int(p.Fd))
		}
	}()
	for _, word := range strings.Fields(string(result.Stdout)) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return err
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // gone already
		}
		waiting = append(waiting, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		if err := unix.PidfdSendSignal(fd, s, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("cannot end process %d: %w", pid, err)
		}
	}
	deadline := time.Now().Add(limit)
	for _, p := range waiting {
		if err := gone(p, deadline); err != nil {
			return err
		}
	}
	return nil
}

// gone waits until a process has ended, or the deadline is past.
func gone(p unix.PollFd, deadline time.Time) error {
	for {
		left := max(0, time.Until(deadline))
		_, err := unix.Poll([]unix.PollFd{p}, int(left.Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
