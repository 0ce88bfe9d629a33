package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// treeImage is an archive of files that is measured, with the ratio that is
// wanted.
//
// What both do: make one ext4 from the second MiB to the end of the target,
// mount it, put the files there with owners, modes, times and attributes, and
// store it. What create does besides: it wipes both ends of the target, checks
// the archive to its end, writes a partition table and the guest's fstab, and
// mounts the result once more.
type treeImage struct {
	name   string
	ending string
	make   string  // shell commands: $1 is the tree, $2 what they make of it
	theirs string  // shell commands that unpack it into the directory they are in: $1 is the image
	want   float64 // wall time, ours / theirs
}

const (
	untar    = `tar --numeric-owner --xattrs --xattrs-include='*' -xpf - `
	dumpTree = `mke2fs -q -t ext4 -d "$1" "$2.fs" 4G; loop=$(losetup --find --show --read-only "$2.fs")
		dump -0 -q -z -f "$2" "$loop" 2>/dev/null; losetup --detach "$loop"; rm "$2.fs"`
	// A restore that two run at once needs a directory of its own.
	restore = `tmp=$(mktemp -d); restore -r -T "$tmp" -f "$1"; rm -r "$tmp" restoresymtable`
)

var treeImages = []treeImage{
	{"tar.gz", ".tar.gz", `tar --numeric-owner --xattrs -czf "$2" -C "$1" .`, `tar --numeric-owner --xattrs --xattrs-include='*' -xpzf "$1"`, 0.75},
	{"dump, zlib", "-root.dump", dumpTree, restore, 0.75},
	{"tar.xz, blocks", ".tar.xz", `tar --numeric-owner --xattrs -cf - -C "$1" . | xz -T0 -1 --block-size=16MiB > "$2"`, `xz -dc -T0 "$1" | ` + untar, 1.0},
}

// byHand makes the file system for the commands that unpack.
const byHand = `loop=$(losetup --find --show --offset 1048576 "$2"); mkdir -p "$2.mnt"
	mkfs.ext4 -q -F "$loop"; mount "$loop" "$2.mnt"; cd "$2.mnt"
	%s
	cd /; sync -f "$2.mnt"; umount "$2.mnt"; losetup --detach "$loop"`

// sameFiles compares the tree $1 with what create made of the target $2.
const sameFiles = `loop=$(losetup --find --show --offset 1048576 "$2"); mkdir -p "$2.mnt"; mount -o ro "$loop" "$2.mnt"
	same=yes; diff -rq --no-dereference -x lost+found -x fstab "$1" "$2.mnt" || same=no
	umount "$2.mnt"; losetup --detach "$loop"; [ "$same" = yes ]`

// benchTrees measures the archives and tells whether one missed what is wanted.
func benchTrees(o options, s site) (missed bool, err error) {
	files, err := makeTree(o)
	if err != nil {
		return false, err
	}
	for _, image := range treeImages {
		if !strings.Contains(image.name, o.only) {
			continue
		}
		path := filepath.Join(o.dir, strings.NewReplacer(",", "", " ", "-").Replace("tree-"+image.name)+image.ending)
		if err := makeOnce(path, func(tmp string) error { return run(shell(image.make, files, tmp)...) }); err != nil {
			return false, err
		}
		r, err := compareTree(o, s, image, path, files)
		if err != nil {
			return false, err
		}
		fmt.Printf("%-22s %8.2f %8.2f %8.2f %8.2f %8.2f %8d %8s\n",
			image.name, r.ours, r.theirs, r.ratio, image.want, r.cpu, r.peak>>20, "equal")
		missed = missed || r.ratio > image.want || r.peak > wantMemory
	}
	return missed, nil
}

// most is how many bytes a file of a tree has at most, so that it has some ten
// thousand of them, as systems do.
const most = 4 << 20

// makeTree makes a root of real files, as hard links where that can be.
func makeTree(o options) (string, error) {
	files := filepath.Join(o.dir, "tree")
	return files, makeOnce(files, func(tmp string) error {
		if err := os.RemoveAll(tmp); err != nil {
			return err
		}
		if err := gather(tmp, o.tree, most, o.treeMegabytes<<20); err != nil {
			return err
		}
		return run(shell(`mkdir -p "$1/etc" "$1/boot" "$1/usr/bin" "$1"/{dev,proc,sys,run}; mkdir -m 1777 "$1/tmp"; ln -s usr/bin "$1/bin"
			echo 127.0.0.1 localhost > "$1/etc/hosts"; echo '/dev/sda1 / ext4 defaults 0 1' > "$1/etc/fstab"`, tmp)...)
	})
}

func compareTree(o options, s site, image treeImage, path, files string) (result, error) {
	target := filepath.Join(o.dir, "target.raw")
	if err := s.configure("IMAGE_FILE=" + path + "\nSWAP=no\nPARTITION_TABLE=msdos\n"); err != nil {
		return result{}, err
	}
	theirs := shell(fmt.Sprintf(byHand, image.theirs), path, target)
	create := func() *exec.Cmd {
		cmd := s.create(target)
		cmd.Env = append(cmd.Env, "INSTANCE_HV_kernel_path=/boot/vmlinuz") // so that the root is the only partition
		return cmd
	}
	check := func() error { return run(shell(sameFiles, files, target)...) }
	return inPairs(o, target, create, func() *exec.Cmd { return exec.Command(theirs[0], theirs[1:]...) }, check)
}
