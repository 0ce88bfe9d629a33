package cli

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"ganeti-instance-image/internal/guest"
)

func TestModernise(t *testing.T) {
	cases := map[string]string{
		"":                                      "",
		"hooks list":                            "hooks list",
		"--help":                                "--help",
		"deploy -t dump -i web":                 "deploy -t dump -i web",
		"-t dump":                               "-t dump",
		"-i web":                                "-i web",
		"-i web -t":                             "-i web -t",
		"-t tarball -i web":                     "capture --type tarball --compression gz web",
		"-i web -t qemu-img":                    "capture web --type qcow2",
		"-d /img -n gold -a amd64 -t dump -i w": "capture --dir /img --name gold --arch amd64 --type dump w",
		"-tdump -iweb -ngold":                   "capture --type dump web --name gold",
		"-t vmdk -i web":                        "capture --type vmdk web",
		"-t dump -i web --force --keep all":     "capture --type dump web --force --keep all",
	}
	for call, want := range cases {
		if got := strings.Join(modernise(strings.Fields(call)), " "); got != want {
			t.Errorf("%s: %s, want %s", call, got, want)
		}
	}
}

func TestCaptureIsParsed(t *testing.T) {
	for _, call := range []string{
		"capture web --dir /img --name gold --type raw --disk 0 --disk 2 --keep logs,tmp --keep cron --running --force",
		"-d /img -n gold -t raw -i web --disk 0,2 --keep logs --keep tmp,cron --running --force",
	} {
		var commands ganetiImageCommands
		parser, err := kong.New(&commands)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parser.Parse(modernise(strings.Fields(call))); err != nil {
			t.Errorf("%s: %v", call, err)
		}
		c := commands.Capture
		if c.Instance != "web" || c.Dir != "/img" || c.Name != "gold" || c.Type != "raw" || !slices.Equal(c.Disk, []int{0, 2}) ||
			!slices.Equal(c.Keep, []string{"logs", "tmp", "cron"}) || !c.Running || !c.Force {
			t.Errorf("%s: %+v", call, c)
		}
	}
}

func TestListParts(t *testing.T) {
	var out bytes.Buffer
	if err := listParts(&out); err != nil {
		t.Fatal(err)
	}
	taken, kept, ok := strings.Cut(out.String(), "Kept, unless")
	for _, p := range guest.CaptureParts() {
		if !ok || strings.Contains(taken, "  "+p.Name+" ") == p.Asked || strings.Contains(kept, "  "+p.Name+" ") != p.Asked {
			t.Errorf("%s is not where it belongs in:\n%s", p.Name, out.String())
		}
	}
}

func TestCaptureOnNodeRefuses(t *testing.T) {
	for _, text := range []string{"", "x", "[]", `{"name":1}`, `{"unknown":1}`} {
		if _, err := captureOnNode(text); err == nil || !strings.Contains(err.Error(), "cannot read what to capture") {
			t.Errorf("%s: %v", text, err)
		}
	}
}
