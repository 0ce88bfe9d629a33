package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ganeti-instance-image/internal/need"
)

// fed is a script whose input the test writes.
type fed struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	log bytes.Buffer
}

func feed(t *testing.T, cmd *exec.Cmd) *fed {
	t.Helper()
	f := &fed{cmd: cmd}
	cmd.Stdout, cmd.Stderr = &f.log, &f.log
	in, err := cmd.StdinPipe()
	if err == nil {
		f.in, err = in, cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	return f
}

func (f *fed) write(t *testing.T, b []byte) {
	t.Helper()
	if _, err := f.in.Write(b); err != nil {
		t.Errorf("the script does not read its input: %v", err)
	}
}

// end ends the input and waits for the script.
func (f *fed) end(t *testing.T) outcome {
	t.Helper()
	f.in.Close()
	return f.wait(t)
}

func (f *fed) wait(t *testing.T) outcome {
	t.Helper()
	if err := f.cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return outcome{f.cmd.ProcessState.ExitCode(), f.log.String()}
}

// wantGone wants no process of a script's group to be left.
func wantGone(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	eventually(t, func() bool {
		for line := range strings.Lines(tool(t, "ps", "-e", "-o", "pgid=,stat=")) {
			if fields := strings.Fields(line); fields[0] == fmt.Sprint(cmd.Process.Pid) && fields[1][0] != 'Z' {
				return false
			}
		}
		return true
	}, "a process is left")
}

// smallMiB is how much the disk of smallBackup has.
const smallMiB = 10

// smallBackup is a backup of a few MiB, the disk it is of, and what the disk is
// after an import.
func smallBackup(t *testing.T, settings string) (backup []byte, want string) {
	t.Helper()
	need.Root(t)
	disk, _ := makeImageOf(t, layoutNamed(t, "mbr-ext4"), smallMiB)
	s := newSite(t, "NOMOUNT=yes\n"+settings)
	b := s.export(t, exporting(disk))
	text, err := os.ReadFile(b.path)
	if err != nil {
		t.Fatal(err)
	}
	target := junkDisk(t, smallMiB<<20)
	s.importFile(t, importing(target), b.path)
	comparePages(t, disk, target)
	return text, sumOf(t, target)
}

// damage imports what was damaged, and wants it to be found out, or to be of no
// consequence.
func damage(t *testing.T, s *site, what string, stream []byte, want string) (found bool) {
	t.Helper()
	target := junkDisk(t, smallMiB<<20)
	before := sumOf(t, target)
	o := s.importFrom(t, importing(target), bytes.NewReader(stream), int64(len(stream)))
	after := sumOf(t, target)
	switch {
	case o.code == 0 && after != want:
		t.Errorf("%s: import succeeded with a disk of other bytes:\n%s", what, o.log)
	case o.code == 0:
		t.Logf("%s was of no consequence", what)
	case o.code != 3 && o.code != 4:
		t.Errorf("%s: import ended with %d:\n%s", what, o.code, o.log)
	case after != before:
		empty(t, target)
	}
	if o.code != 0 {
		checkRefusal(t, o, o.code)
	}
	return o.code != 0
}

// damages are how many of each kind are tried, with each compression.
const damages = 60

// compressions are how a backup may be compressed.
var compressions = []string{"none", "zstd"}

// A backup that was cut anywhere is refused.
func TestImportOfCutBackups(t *testing.T) {
	for _, compression := range compressions {
		t.Run(compression, func(t *testing.T) {
			backup, want := smallBackup(t, "EXPORT_COMPRESSION="+compression)
			s := newSite(t, "NOMOUNT=yes")
			random := rand.New(rand.NewPCG(6, 1))
			last := len(backup)
			ends := []int{1, 3, 100, 511, 512, 513, 1024, last - 1, last - 4, last - 512, last - 1024, last - 1025, last - 1536, last - 2048}
			for len(ends) < damages {
				ends = append(ends, random.IntN(len(backup)))
			}
			found := 0
			for _, end := range ends {
				if damage(t, s, fmt.Sprintf("a cut at %d of %d", end, len(backup)), backup[:end], want) {
					found++
				}
			}
			t.Logf("%d of %d cuts were refused", found, len(ends))
		})
	}
}

// A backup with any bit flipped is refused.
func TestImportOfFlippedBackups(t *testing.T) {
	for _, compression := range compressions {
		t.Run(compression, func(t *testing.T) {
			backup, want := smallBackup(t, "EXPORT_COMPRESSION="+compression)
			s := newSite(t, "NOMOUNT=yes")
			random := rand.New(rand.NewPCG(6, 2))
			found := 0
			for n := range damages {
				at, bit := random.IntN(len(backup)), random.IntN(8)
				switch { // most bytes are data: a part of the flips goes to the headers
				case n < 26:
					at = n // by these it is recognised
				case n < 36:
					at = 61 * (n - 25) // in the manifest, too
				case n < 46:
					at = headerByte(backup, random)
				}
				flipped := bytes.Clone(backup)
				flipped[at] ^= 1 << bit
				if damage(t, s, fmt.Sprintf("bit %d of byte %d flipped of %d", bit, at, len(backup)), flipped, want) {
					found++
				}
			}
			t.Logf("%d of %d flips were refused", found, damages)
		})
	}
}

// headerByte returns a place in what is not the disk's data: at the beginning, at
// the end, or in a header of a piece.
func headerByte(backup []byte, random *rand.Rand) int {
	switch random.IntN(3) {
	case 0:
		return random.IntN(4096)
	case 1:
		return len(backup) - 1 - random.IntN(2048)
	}
	at := bytes.LastIndex(backup, []byte("disk/PaxHeaders"))
	return max(at, 0) + random.IntN(2560)
}

// Pieces that were left out, doubled or put in another order are not a backup.
func TestImportOfRearrangedBackups(t *testing.T) {
	need.Root(t)
	disk := filepath.Join(t.TempDir(), "disk")
	shell(t, `head -c 40M /dev/urandom > "$1"`, disk)
	b := newSite(t, uncompressed).export(t, exporting(disk))
	whole, err := os.ReadFile(b.path)
	if err != nil {
		t.Fatal(err)
	}
	var parts [][]byte
	for rest := whole; ; {
		next := bytes.Index(rest[1:], []byte("disk/PaxHeaders")) + 1
		if next == 0 {
			parts = append(parts, rest)
			break
		}
		parts, rest = append(parts, rest[:next]), rest[next:]
	}
	if len(parts) < 3 {
		t.Fatalf("the backup has only %d pieces", len(parts)-1)
	}
	s := newSite(t, "")
	for name, stream := range map[string][]byte{
		"without a piece": bytes.Join([][]byte{parts[0], parts[1], bytes.Join(parts[3:], nil)}, nil),
		"in disorder":     bytes.Join([][]byte{parts[0], parts[2], parts[1], bytes.Join(parts[3:], nil)}, nil),
		"doubled":         bytes.Join([][]byte{parts[0], parts[1], bytes.Join(parts[1:], nil)}, nil),
		"two backups":     append(bytes.Clone(whole), whole...),
	} {
		t.Run(name, func(t *testing.T) {
			target := junkDisk(t, 40<<20)
			o := s.importFrom(t, importing(target), bytes.NewReader(stream), int64(len(stream)))
			checkRefusal(t, o, 3)
			empty(t, target)
		})
	}
}

// stops are how somebody stops a script of Ganeti: with its whole group.
var stops = []struct {
	signal syscall.Signal
	code   int
}{{syscall.SIGTERM, 6}, {syscall.SIGKILL, -1}}

// An import that is stopped, wherever it is, leaves a disk that shows nothing.
func TestImportIsStopped(t *testing.T) {
	backup, _ := smallBackup(t, "")
	for _, stop := range stops {
		t.Run(stop.signal.String(), func(t *testing.T) {
			for n := range 10 {
				target := junkDisk(t, smallMiB<<20)
				shell(t, `echo , | sfdisk -q "$1"`, target)
				before, attachedBefore := sumOf(t, target), attached(t)
				f := feed(t, newSite(t, "").transfer("import", importing(target)))
				f.write(t, backup[:len(backup)*n/10])
				time.Sleep(time.Duration(n%5) * 10 * time.Millisecond)
				if err := syscall.Kill(-f.cmd.Process.Pid, stop.signal); err != nil {
					t.Fatal(err)
				}
				o := f.wait(t)
				f.in.Close()
				wantGone(t, f.cmd)
				eventually(t, func() bool { return attached(t) == attachedBefore }, "something stays attached")
				if o.code != stop.code && !(n == 0 && o.code == -1) { // it may not have begun
					t.Errorf("after %d/10 import ended with %d:\n%s", n, o.code, o.log)
				}
				if sumOf(t, target) != before {
					checkNoSystem(t, target, stop.signal.String(), o)
				}
			}
		})
	}
}

// importFaults are injected as create's are.
var importFaults = []fault{
	{"a write fails", "pwrite64:error=EIO", 8},
	{"a sync fails", "fsync:error=EIO", 6},
	{"its input fails", "read:error=EIO", 16},
	{"an ioctl fails", "ioctl:error=EIO", 12},
	{"mount fails", "mount:error=EIO", 6},
	{"a program does not start", "execve:error=EACCES", 8},
	{"asked to stop while writing", "pwrite64:signal=SIGTERM", 8},
	{"asked to stop at a sync", "fsync:signal=SIGTERM", 6},
	{"asked to stop at a mount", "mount:signal=SIGTERM", 5},
	{"asked to stop at a program", "execve:signal=SIGTERM", 8},
	{"killed while writing", "pwrite64:signal=SIGKILL", 8},
	{"killed at a sync", "fsync:signal=SIGKILL", 6},
	{"killed at a mount", "mount:signal=SIGKILL", 5},
}

// Whatever fails of an import with all its steps, and whenever: the disk shows
// nothing, nothing stays attached, and the next import works.
func TestImportFaultAtEveryStep(t *testing.T) {
	need.Root(t)
	need.Tools(t, "strace")
	layout := layoutNamed(t, "mbr-ext4")
	layout.fill = "(\n" + namedTree + "\n)\n" + layout.fill
	image, _ := makeImageOf(t, layout, 32)
	b := newSite(t, "").export(t, exporting(image))
	s := newSite(t, "IMPORT_IDENTITY=renew")
	s.enable(t, "interfaces", "ssh")
	for _, fault := range importFaults {
		t.Run(fault.name, func(t *testing.T) {
			disk, hit := junkDisk(t, 48<<20), 0
			for n := 1; n <= fault.most; n++ {
				if !s.importWith(t, fmt.Sprintf("%s:when=%d", fault.inject, n), disk, b.path, layout) {
					break
				}
				hit++
			}
			if hit == 0 {
				t.Error("the fault was never injected")
			}
			s.importFile(t, importing(disk), b.path)
			judgeRoot(t, disk, layout)
		})
	}
}

// importWith runs an import with a fault and checks what it left; it tells
// whether the fault happened.
func (s *site) importWith(t *testing.T, inject, disk, stream string, layout diskLayout) bool {
	t.Helper()
	shell(t, `head -c 1M /dev/zero | tr '\0' '\252' | dd of="$1" conv=notrunc status=none`, disk)
	trace := filepath.Join(t.TempDir(), "trace")
	before := attached(t)
	syscall, _, _ := strings.Cut(inject, ":")
	in, err := os.Open(stream)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cmd := s.transfer("import", importing(disk), "strace", "-f", "-qq", "-o", trace, "-e", "trace="+syscall, "-e", "signal=none", "-e", "inject="+inject)
	cmd.Stdin = in
	o := finish(t, cmd)
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	killed := strings.Contains(inject, "SIGKILL")
	happened := strings.Contains(string(text), "(INJECTED)") || strings.Contains(inject, "signal") && o.code != 0
	eventually(t, func() bool { return attached(t) == before }, "something stays attached after "+inject)
	switch {
	case o.code == 0 && !killed:
		judgeRoot(t, disk, layout)
	case !killed:
		checkNoSystem(t, disk, inject, o)
	}
	return happened
}

// exportFaults are those that an export can meet.
var exportFaults = []fault{
	{"the disk cannot be read", "pread64:error=EIO", 20},
	{"the disk ends early", "pread64:retval=0", 20},
	{"it cannot be written out", "write:error=EPIPE", 12},
	{"there is no room for it", "write:error=ENOSPC", 12},
	{"asked to stop while reading", "pread64:signal=SIGTERM", 12},
	{"asked to stop while writing", "write:signal=SIGTERM", 6},
	{"killed while reading", "pread64:signal=SIGKILL", 6},
}

// An export that fails says so, by its exit code and one line, and what it wrote
// until then does not end as a backup does.
func TestExportFaultAtEveryStep(t *testing.T) {
	need.Root(t)
	need.Tools(t, "strace")
	image, _ := makeImageOf(t, layoutNamed(t, "mbr-ext4"), 64)
	whole := newSite(t, uncompressed).export(t, exporting(image)).length
	for _, format := range []string{"tar", "raw", "qcow2"} {
		for _, fault := range exportFaults {
			if format != "tar" && !strings.Contains(fault.inject, "pread64:error") {
				continue
			}
			t.Run(format+" "+fault.name, func(t *testing.T) {
				s, hit := newSite(t, uncompressed+"EXPORT_FORMAT="+format), 0
				for n := 1; n <= fault.most; n++ {
					if !s.exportWith(t, fmt.Sprintf("%s:when=%d", fault.inject, n), image, format, whole) {
						break
					}
					hit++
				}
				if hit == 0 {
					t.Error("the fault was never injected")
				}
			})
		}
	}
}

func (s *site) exportWith(t *testing.T, inject, disk, format string, whole int64) bool {
	t.Helper()
	trace := filepath.Join(t.TempDir(), "trace")
	before := attached(t)
	call, _, _ := strings.Cut(inject, ":")
	cmd := s.transfer("export", exporting(disk), "strace", "-f", "-qq", "-o", trace, "-e", "trace="+call, "-e", "signal=none", "-e", "inject="+inject)
	b, o := s.exportTo(t, cmd, filepath.Join(t.TempDir(), "backup"))
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return attached(t) == before }, "something stays attached after "+inject)
	switch {
	case o.code == 0 && format == "tar":
		// What failed was no part of it, as a line of the log.
		identicalUsed(t, disk, b)
	case o.code == 0:
		t.Errorf("%s: export succeeded:\n%s", inject, o.log)
	case strings.Contains(inject, "pread64:error"):
		checkRefusal(t, o, o.code, "input/output error")
	case strings.Contains(inject, "SIGTERM") && o.code != 6 && !(o.code == -1 && b.length == 0): // before it could take signals
		t.Errorf("%s: export ended with %d:\n%s", inject, o.code, o.log)
	}
	if tail := shell(t, `tail -c 2048 "$1" | head -c 9`, b.path); o.code != 0 && format == "tar" && tail == "SHA256SUM" {
		t.Errorf("%s: a failed export ends as a whole one, with %d bytes of %d", inject, b.length, whole)
	}
	return strings.Contains(string(text), "(INJECTED)") || strings.Contains(inject, "signal") && o.code != 0
}

// identicalUsed wants a backup to be one of the disk.
func identicalUsed(t *testing.T, disk string, b backup) {
	t.Helper()
	joined := b.join(t)
	comparePages(t, disk, joined)
	judgeRoot(t, joined, layoutNamed(t, "mbr-ext4"))
}

// A reader that goes away is a failure that is said in one line.
func TestExportToAReaderThatLeaves(t *testing.T) {
	image, _ := makeImageOf(t, layoutNamed(t, "mbr-ext4"), 64)
	for _, format := range []string{"tar", "raw", "qcow2"} {
		for _, bytes := range []int64{0, 1000, 1 << 20} {
			t.Run(fmt.Sprintf("%s after %d", format, bytes), func(t *testing.T) {
				cmd := newSite(t, "EXPORT_FORMAT="+format).transfer("export", exporting(image))
				reader, writer, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				cmd.Stdout = writer
				done := make(chan struct{})
				go func() {
					_, _ = io.CopyN(io.Discard, reader, bytes)
					reader.Close()
					close(done)
				}()
				o := finish(t, cmd)
				writer.Close()
				<-done
				if o.code <= 0 {
					t.Errorf("export ended with %d", o.code)
				}
				checkRefusal(t, o, o.code, "cannot")
			})
		}
	}
}

func TestExportToAFullFileSystem(t *testing.T) {
	image, _ := makeImageOf(t, layoutNamed(t, "mbr-ext4"), 64)
	dir := t.TempDir()
	tool(t, "mount", "-t", "tmpfs", "-o", "size=1m", "none", dir)
	t.Cleanup(func() { tool(t, "umount", dir) })
	for _, format := range []string{"tar", "raw", "qcow2"} {
		s := newSite(t, "EXPORT_FORMAT="+format)
		_, o := s.exportTo(t, s.transfer("export", exporting(image)), filepath.Join(dir, format))
		if o.code == 0 {
			t.Errorf("%s: export succeeded on a full file system", format)
		}
		checkRefusal(t, o, o.code, "no space left")
		os.Remove(filepath.Join(dir, format))
	}
}

// An export that is stopped ends, also where nobody reads what it writes, leaves
// nothing and says why it ended.
func TestExportIsStopped(t *testing.T) {
	need.Root(t)
	disk := filepath.Join(t.TempDir(), "disk")
	shell(t, `head -c 64M /dev/urandom > "$1"`, disk)
	for _, stop := range stops {
		for _, readers := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v, readers end: %v", stop.signal, readers), func(t *testing.T) {
				s, before := newSite(t, ""), attached(t)
				for n := range 5 {
					s.stopExport(t, disk, int64(1000+n*7<<20), stop.signal, stop.code, readers)
					eventually(t, func() bool { return attached(t) == before }, "something stays attached")
				}
			})
		}
	}
}

// stopExport stops an export when a part of it was read. The readers of Ganeti are
// of the same group, and end with it.
func (s *site) stopExport(t *testing.T, disk string, part int64, signal syscall.Signal, code int, readers bool) {
	t.Helper()
	cmd := s.transfer("export", exporting(disk))
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		_, err = io.CopyN(io.Discard, out, part)
	}
	if err == nil {
		err = syscall.Kill(-cmd.Process.Pid, signal)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	if readers {
		out.Close()
	}
	ended := time.AfterFunc(5*time.Second, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }) // as Ganeti does
	_ = cmd.Wait()                                                                                         // its exit code tells
	if !ended.Stop() && signal != syscall.SIGKILL {
		t.Errorf("export did not end within 5 seconds:\n%s", log.String())
	}
	wantGone(t, cmd)
	// Where a reader ended first, that may be the reason which is given.
	if got := cmd.ProcessState.ExitCode(); got != code && !(readers && got == 1) {
		t.Errorf("export ended with %d, want %d:\n%s", got, code, log.String())
	}
}
