package internal_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "ganeti-instance-image/internal/"

// layers is the order of the packages: each imports packages of lower layers
// only. docs/architecture.md says what each is for.
var layers = map[string]int{
	"size": 0, "undo": 0, "run": 0, "inflate": 0, "tree": 0, "zeros": 0,
	"need": 1, "osapi": 1, "layout": 1, "lvm": 1, "image": 1, "shellfile": 1, "luxi": 1, "dump": 1, "unpack": 1, "used": 1, "progress": 1,
	"settings": 2, "block": 2, "guest": 2, "tarball": 2,
	"network": 3, "filesystem": 3, "deploy": 3, "store": 3,
	"mount": 4, "hook": 4, "grub": 4, "render": 4, "chroot": 4, "contents": 4,
	"seed": 5, "backup": 5, "capture": 5,
	"osscript": 6,
	"admin":    7,
	"cli":      8,
}

func TestImportsPointDown(t *testing.T) {
	checked := 0
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || filepath.Dir(path) == "." {
			return err
		}
		checked++
		return checkFile(t, path)
	})
	if err != nil {
		t.Fatal(err)
	}
	if checked < len(layers) {
		t.Errorf("only %d files were checked", checked)
	}
}

func checkFile(t *testing.T, path string) error {
	from := filepath.ToSlash(filepath.Dir(path))
	layer, known := layers[from]
	if !known {
		t.Errorf("%s: package %s has no layer; add it to the table here and in docs/architecture.md", path, from)
		return nil
	}
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
	if err != nil {
		return err
	}
	for _, spec := range file.Imports {
		imported, _ := strconv.Unquote(spec.Path.Value)
		to, ours := strings.CutPrefix(imported, module)
		if !ours || to == from || to == "need" && strings.HasSuffix(path, "_test.go") {
			continue
		}
		if layers[to] >= layer {
			t.Errorf("%s: %s (layer %d) imports %s (layer %d)", path, from, layer, to, layers[to])
		}
	}
	return nil
}
