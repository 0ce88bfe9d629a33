package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"ganeti-instance-image/internal/run"
)

// SSH is a way into a guest.
type SSH struct {
	User, Address string
	Port          int    // 0 stands for 22
	Key           string // path of the private key
	HostKey       string // the only public host key taken, as in "ssh-ed25519 AAAA..."; "" takes any
	Source        string // address of ours that the guest answers to; "" for any
	within        []string
}

// NewKey makes a key pair in the directory, and returns the path of its private
// half and the text of its public one.
func NewKey(ctx context.Context, dir string) (private, public string, err error) {
	private = filepath.Join(dir, "id_ed25519")
	argv := []string{"ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", private}
	if _, err := (run.Cmd{What: "make an SSH key", Argv: argv}).Run(ctx); err != nil {
		return "", "", err
	}
	text, err := os.ReadFile(private + ".pub")
	return private, strings.TrimSpace(string(text)), err
}

// Run runs a command line in the guest's shell and returns what it prints.
func (s SSH) Run(ctx context.Context, command string) (string, error) {
	port := s.Port
	if port == 0 {
		port = 22
	}
	known, check, err := s.knownHosts()
	if err != nil {
		return "", err
	}
	defer os.Remove(known)
	argv := append([]string{}, s.within...)
	argv = append(argv, "ssh", "-F", "none", "-T", "-i", s.Key, "-p", strconv.Itoa(port),
		"-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=15", "-o", "LogLevel=ERROR",
		"-o", "GlobalKnownHostsFile=none", "-o", "UserKnownHostsFile="+known, "-o", "StrictHostKeyChecking="+check,
		"-o", "HostKeyAlias=guest")
	if s.Source != "" {
		argv = append(argv, "-b", s.Source)
	}
	argv = append(argv, s.User+"@"+s.Address, command)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("cannot run %q as %s at %s: %w: %s", command, s.User, s.Address, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

func (s SSH) knownHosts() (path, check string, err error) {
	f, err := os.CreateTemp("", "lab-known-hosts-")
	if err != nil {
		return "", "", err
	}
	check = "no"
	if s.HostKey != "" {
		check = "yes"
		_, err = fmt.Fprintf(f, "guest %s\n", s.HostKey)
	}
	return f.Name(), check, errors.Join(err, f.Close())
}

// Wait tries until the guest lets us in, or ctx ends.
func (s SSH) Wait(ctx context.Context) error {
	for {
		_, err := s.Run(ctx, "true")
		if err == nil {
			return nil
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("cannot wait longer for SSH: %w: %w", context.Cause(ctx), err)
		}
	}
}
