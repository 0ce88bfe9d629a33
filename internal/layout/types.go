package layout

import "slices"

// Types of partitions that boot loaders are in, as Partition.Type has them.
const (
	TypeESP      = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B" // the EFI system partition of a GPT
	TypeBIOSBoot = "21686148-6449-6E6F-744E-656564454649" // where a GPT has GRUB's core image
	TypeESPOfMBR = "ef"

	typeSwap = "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"
)

// reserved lists the partition types that hold no data that could grow.
var reserved = []struct{ partitionType, what string }{
	{TypeESP, "the EFI system partition"},
	{TypeBIOSBoot, "the BIOS boot partition"},
	{"9E1A2D38-C612-4316-AA26-8B49521E5A8B", "the PReP boot partition"},
	{"BC13C2FF-59E6-4262-A352-B275FD6F7172", "the boot loader's partition (XBOOTLDR)"},
	{typeSwap, "a swap partition"},
	{"E3C9E316-0B5C-4DB8-817D-F92DF00215AE", "Windows' reserved partition"},
	{"DE94BBA4-06D1-4D40-A16A-BFD50179D6AC", "Windows' recovery partition"},
	{"83BD6B9D-7F41-11DC-BE0B-001560B84F0F", "the FreeBSD boot partition"},
	{"516E7CB5-6ECF-11D6-8FF8-00022D09712B", "a FreeBSD swap partition"},
	{"05", "an extended partition"},
	{"0f", "an extended partition"},
	{"85", "an extended partition"},
	{"27", "Windows' recovery partition"},
	{"41", "the PReP boot partition"},
	{"82", "a swap partition"},
	{TypeESPOfMBR, "the EFI system partition"},
}

// Reserved tells by the partition's type what it is for when that is nothing
// that should grow, as in "a swap partition"; it is empty for all others. Types
// are often wrong (swap of type 83), so ask its filesystem too.
func (p Partition) Reserved() string {
	for _, r := range reserved {
		if r.partitionType == p.Type {
			return r.what
		}
	}
	return ""
}

// swapTypes are the types of swap partitions.
var swapTypes = []string{typeSwap, "82"}

// IsSwap tells whether the partition is swap space by its type.
func (p Partition) IsSwap() bool { return slices.Contains(swapTypes, p.Type) }
