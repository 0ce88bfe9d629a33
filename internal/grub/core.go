package grub

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ulikunitz/xz/lzma"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/size"
)

// The boot code of GRUB for BIOS is boot.img, one sector, and core.img, which is
// made here as grub-mkimage(1) makes it (util/mkimage.c of GRUB 2.00 and later):
//
//	diskboot.img           a sector that loads the rest
//	lzma_decompress.img    with the two lengths of what follows
//	LZMA1 stream, raw      of kernel.img, and the modules, configuration and
//	                       prefix that it is to begin with
const (
	kernelAddress = 0x9000          // where kernel.img is linked to run (GRUB_KERNEL_I386_PC_LINK_ADDR)
	coreEnd       = 0x78000         // what is loaded must end below it (GRUB_MEMORY_MACHINE_UPPER)
	sectorSize    = 512             // GRUB for BIOS knows no other
	maxImage      = 4 * size.MiB    // the longest boot image or module that is read
	maxPayload    = 2 * size.MiB    // what is compressed; the largest of GRUB has 300 KiB
	maxModdep     = 256 * size.KiB  // moddep.lst; GRUB 2.12 has 8 KiB
	maxModules    = 64              // modules in a core image
	atCompressed  = 0x08            // in lzma_decompress.img: the length of the stream
	atPayload     = 0x0c            // in lzma_decompress.img: the length of what it holds
	atBlocklist   = sectorSize - 12 // in diskboot.img: where the rest is
	moduleMagic   = "mimg"
	moduleELF     = 0 // the types of what follows kernel.img (include/grub/kernel.h)
	modulePrefix  = 3
)

var le = binary.LittleEndian

// moduleDir is a directory with GRUB's files for one platform, in a guest or on
// the node.
type moduleDir struct {
	root *guest.Root
	path string
	node bool // root is the node's
}

func (d moduleDir) String() string {
	if d.node {
		return "this node's " + d.path
	}
	return "the guest's " + d.path
}

func (d moduleDir) read(name string) ([]byte, error) {
	return d.root.ReadFile(d.path+"/"+name, maxImage)
}

// coreImage makes core.img with the modules named and those they need. The
// blocklist in it is as for the room behind an MBR; embed sets it.
func (d moduleDir) coreImage(prefix string, modules []string) ([]byte, error) {
	diskboot, err := d.read("diskboot.img")
	if err != nil {
		return nil, err
	}
	decompressor, err := d.read("lzma_decompress.img")
	if err != nil {
		return nil, err
	}
	if len(diskboot) != sectorSize || len(decompressor) < 0x20 || len(decompressor) > 16<<10 {
		return nil, fmt.Errorf("diskboot.img has %d bytes and lzma_decompress.img %d: these are not GRUB's", len(diskboot), len(decompressor))
	}
	payload, err := d.payload(prefix, modules)
	if err != nil {
		return nil, err
	}
	stream, err := compress(payload)
	if err != nil {
		return nil, fmt.Errorf("cannot compress GRUB's core image: %w", err)
	}
	le.PutUint32(decompressor[atCompressed:], uint32(len(stream)))
	le.PutUint32(decompressor[atPayload:], uint32(len(payload)))
	core := bytes.Join([][]byte{diskboot, decompressor, stream}, nil)
	if most := coreEnd - kernelAddress; len(core) > most {
		return nil, fmt.Errorf("GRUB's core image has %d bytes; a BIOS leaves room for %d", len(core), most)
	}
	core = append(core, make([]byte, -len(core)&(sectorSize-1))...)
	setBlocklist(core, 1)
	return core, nil
}

// setBlocklist says in core.img where its second sector is and how many there
// are, for a core image that begins at the disk's sector first
// (struct grub_pc_bios_boot_blocklist).
func setBlocklist(core []byte, first int64) {
	le.PutUint64(core[atBlocklist:], uint64(first+1))
	le.PutUint16(core[atBlocklist+8:], uint16(len(core)/sectorSize-1))
}

// payload is what core.img unpacks: the kernel, and what it is to begin with.
func (d moduleDir) payload(prefix string, modules []string) ([]byte, error) {
	file, err := d.read("kernel.img")
	if err != nil {
		return nil, err
	}
	payload, err := kernelImage(file)
	if err != nil {
		return nil, fmt.Errorf("cannot use %s/kernel.img: %w", d.path, err)
	}
	modules, err = d.withNeeded(modules)
	if err != nil {
		return nil, err
	}
	var objects []byte
	for _, module := range modules {
		content, err := d.read(module + ".mod")
		if err != nil {
			return nil, err
		}
		if objects = appendObject(objects, moduleELF, content); size.Bytes(len(objects)) > maxPayload {
			return nil, fmt.Errorf("the modules in %s have more than %v", d.path, maxPayload)
		}
	}
	objects = appendObject(objects, modulePrefix, append([]byte(prefix), 0))
	payload = append(payload, moduleMagic...)
	payload = le.AppendUint32(payload, 12) // where the first begins
	payload = le.AppendUint32(payload, uint32(12+len(objects)))
	return append(payload, objects...), nil
}

// appendObject appends one object with its header (struct grub_module_header).
func appendObject(to []byte, kind uint32, content []byte) []byte {
	padding := -len(content) & 3
	to = le.AppendUint32(to, kind)
	to = le.AppendUint32(to, uint32(8+len(content)+padding))
	return append(append(to, content...), make([]byte, padding)...)
}

// kernelImage is kernel.img, an ELF file, as it lies in memory without its .bss.
func kernelImage(file []byte) ([]byte, error) {
	parsed, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	if parsed.Machine != elf.EM_386 || parsed.Type != elf.ET_EXEC {
		return nil, fmt.Errorf("it is a %v for %v, not a program for i386", parsed.Type, parsed.Machine)
	}
	var image []byte
	for _, section := range parsed.Sections {
		if section.Flags&elf.SHF_ALLOC == 0 || section.Type == elf.SHT_NOBITS || section.Size == 0 {
			continue
		}
		content, err := sectionContent(file, section)
		if err != nil {
			return nil, err
		}
		at := section.Addr - kernelAddress
		if end := at + section.Size; uint64(len(image)) < end {
			image = append(image, make([]byte, (end+3)&^3-uint64(len(image)))...)
		}
		copy(image[at:], content)
	}
	if len(image) == 0 {
		return nil, errors.New("it is empty")
	}
	return image, nil
}

func sectionContent(file []byte, s *elf.Section) ([]byte, error) {
	length := uint64(len(file))
	if s.Addr < kernelAddress || s.Addr-kernelAddress > uint64(maxImage) || s.Size > length || s.Offset > length-s.Size {
		return nil, fmt.Errorf("its section of %d bytes at %#x is out of place", s.Size, s.Addr)
	}
	return file[s.Offset:][:s.Size], nil
}

// compress makes a raw LZMA1 stream with the parameters that GRUB's
// decompressor is built for, and no end marker.
func compress(payload []byte) ([]byte, error) {
	const header = 13 // of the .lzma format, which GRUB does without
	var out bytes.Buffer
	w, err := lzma.WriterConfig{
		Properties:   &lzma.Properties{LC: 3, LP: 0, PB: 2},
		DictCap:      1 << 16,
		Matcher:      lzma.HashTable4, // on machine code it does better than the library's other one
		SizeInHeader: true,
		Size:         int64(len(payload)),
	}.NewWriter(&out)
	if err == nil {
		_, err = w.Write(payload)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, err
	}
	return out.Bytes()[header:], nil
}

// isModuleName tells what a module may be called: it becomes the name of a file.
func isModuleName(name string) bool {
	return name != "" && len(name) <= 64 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == ""
}

// withNeeded puts in front of each module those that it needs, as moddep.lst
// has it.
func (d moduleDir) withNeeded(modules []string) ([]string, error) {
	text, err := d.root.ReadFile(d.path+"/moddep.lst", maxModdep)
	if err != nil {
		return nil, err
	}
	sorted := sortNeeded(parseModdep(string(text)), modules)
	if len(sorted) > maxModules {
		return nil, fmt.Errorf("%s/moddep.lst says that %s need more than %d modules", d.path, strings.Join(modules, ", "), maxModules)
	}
	return sorted, nil
}

// sortNeeded does so, up to one module more than there may be.
func sortNeeded(needs map[string][]string, modules []string) []string {
	var sorted []string
	seen := map[string]bool{}
	var add func(names []string)
	add = func(names []string) {
		for _, name := range names {
			if !seen[name] && len(seen) <= maxModules {
				seen[name] = true
				add(needs[name])
				sorted = append(sorted, name)
			}
		}
	}
	add(modules)
	return sorted
}

// parseModdep reads lines of the form "btrfs: gzio zstd". The modules that one
// needs come out in the order in which grub-mkimage puts them, the last first.
// Of a module that needs more than there may be, only so many are kept.
func parseModdep(text string) map[string][]string {
	needs := map[string][]string{}
	for line := range strings.Lines(text) {
		name, list, ok := strings.Cut(line, ":")
		if name = strings.TrimSpace(name); !ok || !isModuleName(name) {
			continue
		}
		var needed []string
		for n := range strings.FieldsSeq(list) {
			if isModuleName(n) && len(needed) <= maxModules {
				needed = append(needed, n)
			}
		}
		slices.Reverse(needed)
		needs[name] = needed
	}
	return needs
}
