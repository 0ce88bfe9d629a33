// Command mkimage makes a real cloud image of Debian 12 to try things with. It
// needs root, and the packages that test/setup installs.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"ganeti-instance-image/test/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := mkimage(ctx, os.Args[1:]); err != nil {
		slog.Error(err.Error())
		os.Exit(1)
	}
}

func mkimage(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("mkimage", flag.ExitOnError)
	layout := flags.String("layout", string(lab.Debian), fmt.Sprintf("how the disk is laid out: one of %v", lab.Layouts()))
	format := flags.String("format", "qcow2", "qcow2 or raw")
	compression := flags.String("compression", "zlib", "of qcow2: zlib, zstd or none")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: mkimage [options] FILE")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		flags.Usage()
		return fmt.Errorf("want the name of the image to make, got %q", flags.Args())
	}
	spec := lab.Spec{Layout: lab.Layout(*layout), Format: *format, Compression: *compression}
	if spec.Compression == "none" || spec.Format == "raw" {
		spec.Compression = ""
	}
	l, err := lab.Open()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := l.Image(ctx, spec, flags.Arg(0)); err != nil {
		return err
	}
	slog.Info("made the image", "file", flags.Arg(0), "layout", *layout, "took", time.Since(start).Round(time.Second))
	return nil
}
