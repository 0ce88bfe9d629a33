package settings

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// GuestFile is a file to put into the guest.
type GuestFile struct {
	Path     string // absolute, without . and .. in it
	Owner    string // a name of the guest's, or a number; empty: root
	Group    string // likewise; empty: the owner's
	Mode     uint32 // permission bits, at most 0777
	Contents []byte
}

// The bounds of GUEST_FILES.
const (
	maxGuestFiles = 64
	maxGuestFile  = 1 << 20 // bytes, of each
	maxGuestPath  = 1024    // bytes
)

// guestFile is GuestFile as it is written in JSON. Of Contents (base64) and
// Text one is given.
type guestFile struct {
	Path     string  `json:"path"`
	Owner    string  `json:"owner"`
	Group    string  `json:"group"`
	Mode     *string `json:"mode"`
	Contents *string `json:"contents"`
	Text     *string `json:"text"`
}

var guestName = regexp.MustCompile(`^([A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?)?$`)

// checkGuestFiles wants a list in JSON of files. What is wrong is said by a
// file's number, as its path and contents may be secret.
func checkGuestFiles(text string) (string, error) {
	_, err := parseGuestFiles(text)
	return text, err
}

func parseGuestFiles(text string) ([]GuestFile, error) {
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	var said []guestFile
	// What is not UTF-8 the decoder would silently put another character for.
	if err := decoder.Decode(&said); err != nil || said == nil || decoder.Decode(new(any)) != io.EOF || !utf8.ValidString(text) {
		return nil, errors.New(`want a list in JSON: [{"path": "/etc/motd", "text": "hello", "mode": "0644"}, ...]; of a file there are path, owner, group, mode, and text or contents (base64), all of them strings`)
	}
	if len(said) > maxGuestFiles {
		return nil, fmt.Errorf("want at most %d files", maxGuestFiles)
	}
	var files []GuestFile
	for i, s := range said {
		file, err := s.parse()
		if err == nil && slices.ContainsFunc(files, func(f GuestFile) bool { return f.Path == file.Path }) {
			err = errors.New("an earlier one has the same path")
		}
		if err != nil {
			return nil, fmt.Errorf("file %d of the list: %w", i+1, err)
		}
		files = append(files, file)
	}
	return files, nil
}

func (s guestFile) parse() (GuestFile, error) {
	file := GuestFile{Path: s.Path, Owner: s.Owner, Group: s.Group, Mode: 0o644}
	if !path.IsAbs(s.Path) || path.Clean(s.Path) != s.Path || s.Path == "/" || len(s.Path) > maxGuestPath || hasControl(s.Path) {
		return file, errors.New("path: want an absolute path of the guest, without . and .. in it")
	}
	if !guestName.MatchString(s.Owner) || !guestName.MatchString(s.Group) {
		return file, errors.New("owner or group: want a name or a number")
	}
	if s.Mode != nil {
		mode, err := strconv.ParseUint(*s.Mode, 8, 32)
		if err != nil || mode > 0o777 {
			return file, errors.New(`mode: want an octal number in quotes, at most "0777"`)
		}
		file.Mode = uint32(mode)
	}
	switch {
	case (s.Text == nil) == (s.Contents == nil):
		return file, errors.New("want one of text and contents")
	case s.Text != nil:
		file.Contents = []byte(*s.Text)
	default:
		contents, err := base64.StdEncoding.DecodeString(*s.Contents)
		if err != nil {
			return file, errors.New("contents: want base64")
		}
		file.Contents = contents
	}
	if len(file.Contents) > maxGuestFile {
		return file, errors.New("want at most 1 MiB")
	}
	return file, nil
}
