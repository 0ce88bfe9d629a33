package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"ganeti-instance-image/internal/capture"
	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/osscript"
)

// captureImage is the command of that name.
type captureImage struct {
	Instance    string   `arg:"" optional:"" help:"The instance; it has to be stopped."`
	Dir         string   `placeholder:"DIR" help:"Directory for the image on the instance's node; else IMAGE_DIR."`
	Name        string   `placeholder:"NAME" help:"Name of the image, as IMAGE_NAME has it; else the instance's name up to the first dot."`
	Arch        string   `placeholder:"ARCH" help:"The guest's machine, part of the file's name; else ARCH, or the node's machine."`
	Type        string   `placeholder:"TYPE" help:"qcow2 (default), raw, tarball or dump."`
	Compression string   `placeholder:"HOW" help:"Of qcow2: zstd (default), zlib, none. Of tarball: zst (default), gz, xz, none. Of dump: zlib (default), none."`
	Disk        []int    `placeholder:"N" help:"Disk to capture, 0 where none is named; may be given several times. Another one than disk 0 becomes the image NAME-diskN."`
	Keep        []string `placeholder:"PART" help:"What is not to be taken from the guest: parts as 'list' shows them, separated by commas, or all."`
	Remove      []string `placeholder:"PART" help:"What is to be taken from the guest besides: parts that 'list' shows as kept."`
	Force       bool     `help:"Replace an image of that name."`
	Running     bool     `help:"Let the instance run. Its disk is copied as it is, and the image is as after a power cut."`
}

func (i captureImage) Run(ctx context.Context, c *call) error {
	if slices.Contains(i.Keep, "list") || slices.Contains(i.Remove, "list") {
		return listParts(c.stdout)
	}
	if i.Instance == "" {
		return osscript.WithClass(osscript.Input, errors.New("cannot capture: name the instance; see: ganeti-image capture --help"))
	}
	return c.master().Capture(ctx, i.Instance, capture.Order{
		Dir: i.Dir, Name: i.Name, Arch: i.Arch, Type: i.Type, Compression: i.Compression,
		Disks: i.Disk, Keep: i.Keep, Remove: i.Remove, Force: i.Force, Running: i.Running,
	})
}

// listParts prints what --keep and --remove take.
func listParts(out io.Writer) error {
	var text strings.Builder
	text.WriteString("Taken from the guest, in this order, unless --keep names it:\n")
	for _, asked := range []bool{false, true} {
		if asked {
			text.WriteString("Kept, unless --remove names it:\n")
		}
		for _, p := range guest.CaptureParts() {
			if p.Asked == asked {
				fmt.Fprintf(&text, "  %-24s %s\n", p.Name, p.What)
			}
		}
	}
	_, err := io.WriteString(out, text.String())
	return err
}

// oldOptions are those of the Bash version's ganeti-image, which had no commands,
// and the words that stand for them now.
var oldOptions = map[string]string{"-d": "--dir", "-n": "--name", "-a": "--arch", "-t": "--type", "-i": ""}

// oldTypes are its types of image, and how it compressed them.
var oldTypes = map[string][]string{
	"tarball":  {"--type", capture.Tarball, "--compression", "gz"},
	"dump":     {"--type", capture.Dump},
	"qemu-img": {"--type", capture.QCOW2},
}

// modernise turns a call as the Bash version took it, -t TYPE -i INSTANCE with
// -d, -n and -a, into one of capture. Any other is returned as it is.
func modernise(args []string) []string {
	if len(args) == 0 || !strings.HasPrefix(args[0], "-") {
		return args
	}
	words, seen := []string{"capture"}, map[string]bool{}
	for left := args; len(left) > 0; {
		word := left[0]
		left = left[1:]
		option := word[:min(2, len(word))]
		long, known := oldOptions[option]
		if !known {
			words = append(words, word)
			continue
		}
		value := word[2:]
		if value == "" {
			if len(left) == 0 {
				return args
			}
			value, left = left[0], left[1:]
		}
		seen[option] = true
		words = append(words, oldWords(option, long, value)...)
	}
	if !seen["-t"] || !seen["-i"] {
		return args
	}
	return words
}

// oldWords are what stands for an option and its value now.
func oldWords(option, long, value string) []string {
	if as, is := oldTypes[value]; option == "-t" && is {
		return as
	}
	if long == "" {
		return []string{value}
	}
	return []string{long, value}
}

// captureOnNode reads the order that the master's Capture sends.
func captureOnNode(text string) (func(context.Context, osscript.Env) error, error) {
	var order capture.Order
	reader := json.NewDecoder(bytes.NewReader([]byte(text)))
	reader.DisallowUnknownFields()
	if err := reader.Decode(&order); err != nil {
		return nil, fmt.Errorf("cannot read what to capture: %w; have all nodes the same version?", err)
	}
	return func(ctx context.Context, env osscript.Env) error { return osscript.Capture(ctx, env, order) }, nil
}
