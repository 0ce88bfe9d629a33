package test

import (
	"path/filepath"
	"strings"
	"testing"

	"ganeti-instance-image/internal/need"
)

// A Windows image stays as it is, and the disk beside it tells Windows who it
// is, also after a rename.
func TestWindows(t *testing.T) {
	need.Root(t)
	need.Tools(t, "mkntfs", "bsdtar", "xmllint")
	image := filepath.Join(t.TempDir(), "windows.raw")
	shell(t, `truncate -s 100M "$1"; printf 'label: dos\nstart=2048, type=7, bootable\n' | sfdisk -q "$1"
		truncate -s 99M "$1.fs"; mkntfs -q -F -f "$1.fs" >/dev/null 2>&1; dd if="$1.fs" of="$1" bs=1M seek=1 conv=notrunc,sparse status=none; rm "$1.fs"`, image)
	for _, nomount := range []string{"no", "yes"} {
		t.Run("NOMOUNT="+nomount, func(t *testing.T) {
			s := newSite(t, imageSettings(image, "SEED_DISK=1", "NOMOUNT="+nomount))
			disk, second := newDisk(t, 200), newDisk(t, 32)
			e := disks(disk, second).with(env{"OSP_ROOT_PASSWORD": "Pass-of-all", "NIC_0_IP": "192.0.2.30", "NIC_0_NETWORK_SUBNET": "192.0.2.0/24", "NIC_0_NETWORK_GATEWAY": "192.0.2.1"})
			log := s.create(t, e)
			if strings.Contains(log, "Pass-of-all") {
				t.Errorf("the password is in the log:\n%s", log)
			}
			shell(t, `cmp -n $((99 << 20)) -i $((1 << 20)) "$1" "$2"`, image, disk)
			answers := func() string {
				return shell(t, `dir=$(mktemp -d); bsdtar -xf "$1" -C "$dir"; xmllint --noout "$dir/unattend.xml"; cat "$dir"/*; rm -r "$dir"`, second)
			}
			if text := answers(); !strings.Contains(text, "<ComputerName>web</ComputerName>") || !strings.Contains(text, "AA-00-00-12-34-56") || !strings.Contains(text, "192.0.2.30/24") {
				t.Errorf("the seed is\n%s", text)
			}
			log = s.renamed(t, e.with(env{"INSTANCE_NAME": "mail.other.org", "OLD_INSTANCE_NAME": "web.example.org"}))
			if text := answers(); !strings.Contains(text, "<ComputerName>mail</ComputerName>") {
				t.Errorf("after the rename the seed is\n%s\nlog:\n%s", text, log)
			}
		})
	}
	t.Run("name", func(t *testing.T) {
		s := newSite(t, imageSettings(image, "SEED_DISK=1", "NOMOUNT=yes"))
		disk, second := newDisk(t, 200), newDisk(t, 32)
		s.refuse(t, disks(disk, second).with(env{"INSTANCE_NAME": "12345.example.org"}), 2, "12345")
		untouched(t, disk)
	})
}
