package grub

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ulikunitz/xz/lzma"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/need"
)

const nodeBIOS = "/usr/lib/grub/i386-pc"

func rootAt(t testing.TB, dir string) *guest.Root {
	t.Helper()
	root, err := guest.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// unpackCore is what a core image unpacks.
func unpackCore(t *testing.T, core []byte, decompressor int) []byte {
	t.Helper()
	head := core[sectorSize:]
	stream := head[decompressor:][:le.Uint32(head[atCompressed:])]
	header := []byte{0x5d, 0, 0, 1, 0}
	header = le.AppendUint64(header, uint64(le.Uint32(head[atPayload:])))
	r, err := lzma.NewReader(bytes.NewReader(append(header, stream...)))
	if err != nil {
		t.Fatal(err)
	}
	payload, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return payload
}

// TestCoreImage compares with what grub-mkimage makes: all is the same byte for
// byte but the stream, whose content is.
func TestCoreImage(t *testing.T) {
	need.Tools(t, "grub-mkimage")
	need.File(t, nodeBIOS+"/kernel.img")
	decompressor, err := os.ReadFile(nodeBIOS + "/lzma_decompress.img")
	if err != nil {
		t.Fatal(err)
	}
	for _, modules := range [][]string{{"biosdisk", "part_msdos", "part_gpt", "ext2"}, {"biosdisk", "part_gpt", "xfs"}, {"biosdisk", "part_msdos", "part_gpt", "btrfs"}, {"normal"}} {
		t.Run(modules[len(modules)-1], func(t *testing.T) {
			got, err := moduleDir{root: rootAt(t, "/"), path: nodeBIOS}.coreImage("(,gpt1)/boot/grub", modules)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "core.img")
			argv := append([]string{"-d", nodeBIOS, "-O", "i386-pc", "-p", "(,gpt1)/boot/grub", "-o", file}, modules...)
			if out, err := exec.Command("grub-mkimage", argv...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d bytes, grub-mkimage %d", len(got), len(want))
			if !bytes.Equal(unpackCore(t, got, len(decompressor)), unpackCore(t, want, len(decompressor))) {
				t.Error("it does not unpack to the same")
			}
			copy(want[atBlocklist+8:], got[atBlocklist+8:][:2]) // the two lengths that depend on the stream's
			copy(want[sectorSize+atCompressed:], got[sectorSize+atCompressed:][:4])
			if plain := sectorSize + len(decompressor); !bytes.Equal(got[:plain], want[:plain]) {
				t.Error("the part that is not compressed differs")
			}
		})
	}
}

func TestWithNeeded(t *testing.T) {
	dir := t.TempDir()
	text := "a: b c\nb: c\nc:\nloop: loop2\nloop2: loop\n../x: a\nd: ../../etc a\n"
	if err := os.WriteFile(dir+"/moddep.lst", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := moduleDir{root: rootAt(t, dir), path: "/"}.withNeeded([]string{"a", "loop", "d"})
	if want := "c b a loop2 loop d"; err != nil || strings.Join(got, " ") != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	text = ""
	for i := range 200 {
		text += "m" + strings.Repeat("x", i%50) + strings.Repeat("y", i/50) + ": m" + strings.Repeat("x", (i+1)%50) + strings.Repeat("y", (i+1)/50) + "\n"
	}
	if err := os.WriteFile(dir+"/moddep.lst", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := (moduleDir{root: rootAt(t, dir), path: "/"}).withNeeded([]string{"m"}); err == nil || !strings.Contains(err.Error(), "more than 64 modules") {
		t.Errorf("got %v", err)
	}
}

// FuzzModdep reads hostile moddep.lst.
func FuzzModdep(f *testing.F) {
	if text, err := os.ReadFile(nodeBIOS + "/moddep.lst"); err == nil {
		f.Add(string(text))
	}
	f.Add("btrfs: btrfs ../../etc/passwd\next2: btrfs\n")
	f.Fuzz(func(t *testing.T, text string) {
		names := sortNeeded(parseModdep(text), []string{"btrfs", "ext2"})
		if len(names) < 2 || len(names) > maxModules+1 {
			t.Errorf("%d modules", len(names))
		}
		for _, name := range names {
			if strings.ContainsAny(name, "/.") {
				t.Errorf("a module called %q", name)
			}
		}
	})
}

// FuzzKernelImage reads hostile kernel.img.
func FuzzKernelImage(f *testing.F) {
	if kernel, err := os.ReadFile(nodeBIOS + "/kernel.img"); err == nil {
		f.Add(kernel)
	}
	f.Add([]byte("\x7fELF\x01\x01\x01"))
	f.Fuzz(func(t *testing.T, file []byte) {
		image, err := kernelImage(file)
		if err == nil && len(image) > 3*int(maxImage) {
			t.Errorf("an image of %d bytes from %d", len(image), len(file))
		}
	})
}

// TestRefuseCore spoils one of GRUB's files.
func TestRefuseCore(t *testing.T) {
	need.File(t, nodeBIOS+"/kernel.img")
	big := strings.Repeat("x", 900<<10)
	noise := make([]byte, 600<<10)
	rand.NewChaCha8([32]byte{}).Read(noise)
	for _, c := range []struct{ file, content, want string }{
		{"diskboot.img", "short", "these are not GRUB's"},
		{"lzma_decompress.img", "short", "these are not GRUB's"},
		{"lzma_decompress.img", big, "these are not GRUB's"},
		{"kernel.img", "\x7fELF", "cannot use /grub/kernel.img"},
		{"kernel.img", program(t), "not a program for i386"},
		{"kernel.img", strings.Repeat(big, 6), "larger than 4 MiB"},
		{"moddep.lst", big, "larger than 256 KiB"},
		{"moddep.lst", "biosdisk: missing\n", "missing.mod"},
		{"biosdisk.mod", big + big + big, "the modules in /grub have more than 2 MiB"},
		{"biosdisk.mod", string(noise), "a BIOS leaves room for"},
	} {
		files := map[string]string{}
		for _, name := range append([]string{"part_gpt.mod"}, biosFiles...) {
			content, err := os.ReadFile(nodeBIOS + "/" + name)
			if err != nil {
				t.Fatal(err)
			}
			files["/grub/"+name] = string(content)
		}
		files["/grub/"+c.file] = c.content
		_, err := moduleDir{root: guestTree(t, files).Root, path: "/grub"}.coreImage("(,gpt1)/boot/grub", []string{"biosdisk", "part_gpt"})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s of %d bytes: got %v, want %q", c.file, len(c.content), err, c.want)
		}
	}
}

// program is the header of one for another machine, without sections.
func program(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	header := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: 64}
	copy(header.Ident[:], "\x7fELF\x02\x01\x01")
	if err := binary.Write(&b, le, header); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
