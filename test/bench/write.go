package main

import (
	"cmp"
	"context"
	"os"
	"runtime/pprof"

	"ganeti-instance-image/internal/block"
	"ganeti-instance-image/internal/deploy"
	"ganeti-instance-image/internal/image"
)

// write deploys an image as create does, without all that is around it.
func write(from, to string) (err error) {
	if profile := os.Getenv("BENCH_CPUPROFILE"); profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	img, err := image.Open(from, image.TypeQEMU)
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, img.Close()) }()
	disk, err := block.Open(to)
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, disk.Close()) }()
	commit, err := deploy.Write(context.Background(), img, disk)
	if err != nil {
		return err
	}
	return commit()
}
