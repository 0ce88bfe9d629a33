package block

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// refuse is an error when the system shows that someone uses the disk.
func (id identity) refuse() error {
	ids := append([]identity{id}, id.partitions()...)
	for _, find := range []func([]identity) string{mountOf, swapOf, holderOf, loopOf} {
		if who := find(ids); who != "" {
			return fmt.Errorf("%w: %s", ErrInUse, who)
		}
	}
	return nil
}

// partitions lists the partition devices the kernel has for a block device.
func (id identity) partitions() []identity {
	if id.isFile {
		return nil
	}
	var ids []identity
	files, _ := filepath.Glob(id.sysDir() + "/*/partition")
	for _, file := range files {
		if dev, ok := deviceNumber(filepath.Dir(file) + "/dev"); ok {
			ids = append(ids, identity{dev: dev})
		}
	}
	return ids
}

// deviceNumber reads a file of /sys that holds "major:minor".
func deviceNumber(path string) (uint64, bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	return parseDevice(strings.TrimSpace(string(text)))
}

func parseDevice(text string) (uint64, bool) {
	major, minor, _ := strings.Cut(text, ":")
	a, err := strconv.ParseUint(major, 10, 32)
	if err != nil {
		return 0, false
	}
	b, err := strconv.ParseUint(minor, 10, 32)
	return unix.Mkdev(uint32(a), uint32(b)), err == nil
}

// among tells whether a path is one of the disks.
func among(ids []identity, path string) bool {
	id, err := identify(path)
	return err == nil && slices.Contains(ids, id)
}

// mount is a line of a mountinfo file.
type mount struct {
	dev           uint64
	point, source string
}

func mounts(file string) []mount {
	text, _ := os.ReadFile(file)
	var found []mount
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		dash := slices.Index(fields, "-")
		if dash < 5 || len(fields) < dash+3 {
			continue
		}
		if dev, ok := parseDevice(fields[2]); ok {
			found = append(found, mount{dev, unescape(fields[4]), unescape(fields[dash+2])})
		}
	}
	return found
}

// unescape undoes what the kernel does to blanks in paths.
func unescape(text string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(text)
}

// mountOf looks at the source too: btrfs mounts show a device number of their own.
func mountOf(ids []identity) string {
	for _, m := range mounts("/proc/self/mountinfo") {
		onDevice := slices.ContainsFunc(ids, func(id identity) bool { return !id.isFile && id.dev == m.dev })
		if onDevice || strings.HasPrefix(m.source, "/dev/") && among(ids, m.source) {
			return fmt.Sprintf("%s is mounted on %s", m.source, m.point)
		}
	}
	return ""
}

func swapOf(ids []identity) string {
	file, err := os.Open("/proc/swaps")
	if err != nil {
		return ""
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if name, _, _ := strings.Cut(lines.Text(), " "); among(ids, unescape(name)) {
			return "the node swaps to " + unescape(name)
		}
	}
	return ""
}

func holderOf(ids []identity) string {
	for _, id := range ids {
		if id.isFile {
			continue
		}
		if above := deviceAbove(id.sysDir()); above != "" {
			return "the device " + above + " is made of it"
		}
	}
	return ""
}

// deviceAbove names the device (RAID, LVM, multipath) that is made of the one
// which sysfs describes in dir; empty where there is none.
func deviceAbove(dir string) string {
	holders, _ := os.ReadDir(dir + "/holders")
	if len(holders) == 0 {
		return ""
	}
	return holders[0].Name()
}

func loopOf(ids []identity) string {
	for _, id := range ids {
		if loops := loopsOn(id); len(loops) > 0 {
			return "it backs the loop device " + loops[0]
		}
	}
	return ""
}

// lockHolder names the process that holds a lock on the file, as /proc/locks
// has it; empty where that is not told.
func lockHolder(file *os.File) string {
	var stat unix.Stat_t
	if unix.Fstat(int(file.Fd()), &stat) != nil {
		return ""
	}
	text, _ := os.ReadFile("/proc/locks")
	inode := fmt.Sprintf("%02x:%02x:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev), stat.Ino)
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 5 && fields[1] == "FLOCK" && fields[5] == inode {
			return processName(fields[4])
		}
	}
	return ""
}

func processName(pid string) string {
	name, err := os.ReadFile("/proc/" + pid + "/comm")
	if err != nil {
		return fmt.Sprintf(" (process %s)", pid)
	}
	return fmt.Sprintf(" (process %s, %s)", pid, strings.TrimSpace(string(name)))
}

// users lists who keeps a block device busy: processes that have it open, and
// mounts of it in any namespace.
func users(device string) []string {
	id, err := identify(device)
	if err != nil {
		return nil
	}
	var found []string
	pids, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range pids {
		pid := filepath.Base(dir)
		files, _ := os.ReadDir(dir + "/fd")
		for _, file := range files {
			if target, _ := os.Readlink(dir + "/fd/" + file.Name()); target == device {
				found = append(found, "open in"+processName(pid))
			}
		}
		for _, m := range mounts(dir + "/mountinfo") {
			if m.dev == id.dev || m.source == device {
				found = append(found, "mounted on "+m.point+" in"+processName(pid))
			}
		}
	}
	return slices.Compact(found)
}
