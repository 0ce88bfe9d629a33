package corpus

import "strings"

// foreign are files of other formats: as much of them as their readers look at
// first. The words name the format.
var foreign = []struct {
	name, words string
	make        func() Image
}{
	{"VMDK", "VMDK", magic(0, "KDMV\x01\x00\x00\x00")},
	{"VMDK of ESX", "VMDK", magic(0, "COWD\x01\x00\x00\x00")},
	{"VMDK, SE sparse", "VMDK", magic(0, "\xbe\xba\xfe\xca\x00\x00\x00\x00")},
	{"VMDK descriptor", "VMDK", content("# Disk DescriptorFile\nversion=1\nCID=fffffffe\ncreateType=\"monolithicFlat\"\nRW 8192 FLAT \"/etc/shadow\" 0\n")},
	{"VDI", "VDI", magic(0x40, "\x7f\x10\xda\xbe\x01\x00\x01\x00")},
	{"VHD, dynamic", "VHD", vhd(true)},
	{"VHD, fixed", "VHD", vhd(false)},
	{"VHDX", "VHDX", magic(0, "vhdxfile")},
	{"QED", "QED", magic(0, "QED\x00")},
	{"Parallels", "Parallels", magic(0, "WithoutFreeSpace\x02\x00\x00\x00")},
	{"Parallels, extended", "Parallels", magic(0, "WithouFreSpacExt\x02\x00\x00\x00")},
	{"qcow of version 1", "qcow|version 1", magic(0, "QFI\xfb\x00\x00\x00\x01")},
	{"Bochs", "Bochs", magic(0, "Bochs Virtual HD Image\x00")},
	{"LUKS 1", "LUKS", magic(0, "LUKS\xba\xbe\x00\x01")},
	{"LUKS 2", "LUKS", magic(0, "LUKS\xba\xbe\x00\x02")},
	{"ISO 9660", "ISO 9660", magic(32*kib, "\x01CD001\x01\x00")},
	{"ISO 9660 with an MBR", "ISO 9660", hybridISO},
	{"DMG", "DMG", magic(mib-512, "koly\x00\x00\x00\x04\x00\x00\x02\x00")},
	{"zip", "zip archive", magic(0, "PK\x03\x04\x14\x00")},
	{"7z", "7z archive", magic(0, "7z\xbc\xaf\x27\x1c\x00\x04")},
	{"RAR", "RAR archive", magic(0, "Rar!\x1a\x07\x01\x00")},
	{"Android sparse", "Android sparse image", magic(0, "\x3a\xff\x26\xed\x01\x00\x00\x00")},
	{"lzop", "lzop", magic(0, "\x89LZO\x00\r\n\x1a\n")},
	{"web page", "web page", content("<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>\n")},
	{"web page without a type", "web page", content("\xef\xbb\xbf\r\n  <HTML><body>Please log in</body></html>\n")},
	{"empty file", "empty", content("")},
	{"text", "no disk image", content("404: Not Found\n")},
	{"list of checksums", "no disk image", content(strings.Repeat("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  image.qcow2\n", 20))},
	{"JSON", "no disk image", content(`{"error": {"code": 403, "message": "The token has expired."}}`)},
	{"XML", "no disk image", content(`<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code></Error>`)},
}

func foreignCases() []Case {
	var cases []Case
	for _, f := range foreign {
		cases = append(cases, Case{"foreign " + f.name, BadImage, split(f.words), false, f.make})
	}
	return cases
}

// magic is a file of 1 MiB with a magic number at an offset.
func magic(offset int64, text string) func() Image {
	return func() Image {
		i := Image{Length: mib}
		i.put(offset, []byte(text))
		return i
	}
}

func content(text string) func() Image {
	return func() Image { return Bytes([]byte(text)) }
}

// vhd is an image with the footer that a fixed one has at its end, a dynamic one
// at its beginning too.
func vhd(dynamic bool) func() Image {
	footer := "conectix\x00\x00\x00\x02\x00\x01\x00\x00"
	return func() Image {
		i := Image{Length: mib + sector}
		i.put(mib, []byte(footer))
		if dynamic {
			i.put(0, []byte(footer))
		}
		return i
	}
}

// hybridISO is an ISO that can be started from a USB stick.
func hybridISO() Image {
	i := magic(32*kib, "\x01CD001\x01\x00")()
	i.put(0, bootRecord(mbrPart{0x17, 1, mib/sector - 1}))
	return i
}
