package seed

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"unicode/utf16"

	"ganeti-instance-image/internal/guest"

	"go.yaml.in/yaml/v3"
)

// ErrNoSeed says that a disk has none that ISO made.
var ErrNoSeed = errors.New("the disk holds no seed of this program's")

// ReadISO reads the files back that ISO wrote to a disk. A guest may have
// written there since, so nothing is taken for granted; what is not as ISO makes
// it is ErrNoSeed.
func ReadISO(disk io.ReaderAt) ([]File, error) {
	head := make([]byte, filesAt*sector)
	if _, err := disk.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("cannot read the seed: %w", err)
	}
	primary := head[primaryAt*sector:]
	if !bytes.HasPrefix(primary, []byte("\x01CD001\x01")) || string(bytes.TrimRight(primary[40:72], " ")) != "cidata" {
		return nil, ErrNoSeed
	}
	var files []File
	known := isoFiles()
	for record := head[primaryRootAt*sector : (primaryRootAt+1)*sector]; len(record) > 33 && record[0] > 33 && int(record[0]) <= len(record); record = record[record[0]:] {
		name := record[33:min(33+int(record[32]), int(record[0]))]
		i := slices.IndexFunc(known, func(f isoFile) bool { return f.short == string(name) })
		if i < 0 {
			continue // the directory itself, and the one above
		}
		data, err := readExtent(disk, binary.LittleEndian.Uint32(record[2:]), binary.LittleEndian.Uint32(record[10:]))
		if err != nil {
			return nil, err
		}
		files = append(files, File{known[i].name, data})
	}
	if content(files, "meta-data") == nil || len(files) > len(known) {
		return nil, ErrNoSeed
	}
	return files, nil
}

func readExtent(disk io.ReaderAt, at, length uint32) ([]byte, error) {
	if length > uint32(isoFileLimit) {
		return nil, ErrNoSeed
	}
	data := make([]byte, length)
	if _, err := disk.ReadAt(data, int64(at)*sector); errors.Is(err, io.EOF) {
		return nil, ErrNoSeed
	} else if err != nil {
		return nil, fmt.Errorf("cannot read the seed: %w", err)
	}
	return data, nil
}

// Renew takes the name and network of fresh for a seed that was written before,
// and keeps the rest of that: its user-data, which may have been secret then and
// is not known any more, and its instance-id, by which cloud-init knows a guest.
// Of old being no seed, fresh is all there is.
func Renew(old, fresh []File) ([]File, error) {
	if len(old) == 0 {
		return fresh, nil
	}
	meta, err := renewMeta(content(old, "meta-data"), content(fresh, "meta-data"))
	if err != nil {
		return nil, err
	}
	files := []File{{"meta-data", meta}}
	for _, name := range []string{"network-config", answerFile} {
		if data := content(fresh, name); data != nil {
			files = append(files, File{name, data})
		}
	}
	for _, name := range []string{"user-data", "vendor-data"} {
		if data := content(old, name); data != nil {
			files = append(files, File{name, data})
		}
	}
	return files, nil
}

// renewMeta is meta-data with another name.
func renewMeta(old, fresh []byte) ([]byte, error) {
	document := guest.ParseYAML(fresh)
	id := guest.YAMLValue(guest.ParseYAML(old), "instance-id")
	if id == nil || id.Value == "" || document == nil {
		return nil, errors.New("cannot rename the guest in its seed: the meta-data has no instance-id")
	}
	guest.YAMLValue(document, "instance-id").Value = id.Value
	return encode("", &yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{document}})
}

var hiddenPassword = regexp.MustCompile(`<AdministratorPassword>\s*<Value>([A-Za-z0-9+/=]+)</Value>`)

// WindowsPassword is the password of Administrator in a seed, empty where it has
// none.
func WindowsPassword(files []File) string {
	match := hiddenPassword.FindSubmatch(content(files, answerFile))
	if match == nil {
		return ""
	}
	raw, err := base64.StdEncoding.DecodeString(string(match[1]))
	if err != nil || len(raw)%2 != 0 {
		return ""
	}
	units := make([]uint16, len(raw)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(raw[2*i:])
	}
	password, is := bytes.CutSuffix([]byte(string(utf16.Decode(units))), []byte("AdministratorPassword"))
	if !is {
		return ""
	}
	return string(password)
}
