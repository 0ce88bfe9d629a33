// Package corpus makes disk images that nobody should deploy: broken, cut off,
// hostile, or no disk images at all. Each comes with what has to be said of it.
// Beside them are images that look odd and are good, so that a program which
// refuses everything does not pass.
//
// The images are made from their formats' specifications and by no tool, always
// the same; the files are sparse. Where a file needs an encoder that Go has not,
// its bytes are in this package.
package corpus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// DiskMiB is the size in MiB of the disk for which the images are made: those
// that are larger than the disk are larger than this.
const DiskMiB = 16

// The exit codes of a refusal.
const (
	BadImage = 3 // the image cannot be used
	TooLarge = 4 // it is larger than the disk
)

// Case is an image that has to be refused.
type Case struct {
	Name  string
	Code  int      // BadImage or TooLarge
	Words []string // which the refusal holds, in whatever case
	// Late says that the damage shows when the image is decoded whole: the disk
	// may be made empty before the refusal. Else it stays as it was.
	Late bool
	Make func() Image
}

// Good is an image that has to be deployed.
type Good struct {
	Name string
	Make func() Image
}

// Image is a sparse file: its length, and the pieces that are not zeros. A piece
// that is further down lies over those above.
type Image struct {
	Length int64
	Pieces []Piece
}

// Piece is some bytes of a file and where they are.
type Piece struct {
	Offset int64
	Data   []byte
}

// Bytes is a file that consists of one piece.
func Bytes(data []byte) Image { return Image{int64(len(data)), []Piece{{0, data}}} }

func (i *Image) put(offset int64, data []byte) {
	i.Pieces = append(i.Pieces, Piece{offset, data})
	i.Length = max(i.Length, offset+int64(len(data)))
}

// cut ends the file at length, and the pieces with it.
func (i *Image) cut(length int64) {
	i.Length = length
	for n, p := range i.Pieces {
		i.Pieces[n].Data = p.Data[:max(0, min(int64(len(p.Data)), length-p.Offset))]
	}
}

// WriteFile makes the file.
func (i Image) WriteFile(path string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for _, p := range i.Pieces {
		if _, err := f.WriteAt(p.Data, p.Offset); err != nil {
			return err
		}
	}
	return f.Truncate(i.Length)
}

// Cases are the images that have to be refused.
func Cases() []Case {
	return slices.Concat(qcow2Cases(), tableCases(), fileSystemCases(), foreignCases(), compressedCases())
}

// Goods are the images that have to be deployed.
func Goods() []Good {
	return slices.Concat(qcow2Goods(), tableGoods(), volumeGoods(), compressedGoods())
}

// FileName is the name of a case's file.
func FileName(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, name) + ".img"
}

// Write makes the files of all cases and of all good images in dir.
func Write(dir string) error {
	makers := map[string]func() Image{}
	for _, c := range Cases() {
		makers[c.Name] = c.Make
	}
	for _, g := range Goods() {
		makers[g.Name] = g.Make
	}
	for name, image := range makers {
		if err := image().WriteFile(filepath.Join(dir, FileName(name))); err != nil {
			return fmt.Errorf("cannot make the image %q: %w", name, err)
		}
	}
	return nil
}
