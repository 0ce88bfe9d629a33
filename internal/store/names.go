package store

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"ganeti-instance-image/internal/settings"
)

// kinds lists the types of image in the order in which they are looked for
// where IMAGE_TYPE does not say which it is.
var kinds = []struct {
	imageType string
	endings   []string // what follows NAME-ARCH in the name of a file
	others    []string // more endings that tell the type of IMAGE_FILE and of a URL
}{
	{"dump", []string{rootEnding}, []string{".dump", rootEnding + firstVolume, ".dump" + firstVolume}},
	{"tarball", compressed(".tar"), []string{".tgz", ".txz", ".tbz2"}},
	{"qcow2", []string{".qcow2"}, nil},
	{"qemu", compressed(".img"), nil},
	{"raw", compressed(".raw"), nil},
}

// compressed lists an ending as it is and as compressed files have it.
func compressed(ending string) []string {
	endings := []string{ending}
	for _, c := range compressions {
		endings = append(endings, ending+c)
	}
	return endings
}

// compressions are the endings of compressed images.
var compressions = []string{".gz", ".xz", ".zst", ".bz2", ".lz4"}

// architectures lists what image names call a machine, by its name in uname(2).
// One that is not here is called as uname calls it.
var architectures = map[string][]string{
	"x86_64":  {"x86_64", "amd64"},
	"i386":    {"i386", "i686", "x86"},
	"i486":    {"i386", "i686", "x86"},
	"i586":    {"i386", "i686", "x86"},
	"i686":    {"i386", "i686", "x86"},
	"aarch64": {"aarch64", "arm64"},
	"armv7l":  {"armv7l", "armhf"},
	"ppc64le": {"ppc64le", "ppc64el"},
}

// name is one name that an image may have.
type name struct {
	file      string
	imageType string
}

// names lists the names the image may have, in the order they are tried.
func (st *store) names() ([]name, error) {
	s := st.settings
	if err := checkType(s); err != nil {
		return nil, err
	}
	if s.ImageName == "" {
		return nil, fmt.Errorf("no image is chosen: name one with gnt-instance add -O image_name=NAME, " +
			"or set IMAGE_NAME in the variant's file or in /etc/default/ganeti-instance-image")
	}
	if !filepath.IsLocal(s.ImageName) {
		return nil, fmt.Errorf("IMAGE_NAME (%s) is %q: that leads out of the directory of images", s.Origin("IMAGE_NAME"), s.ImageName)
	}
	var names []name
	for _, stem := range st.stems() {
		for _, kind := range kinds {
			if !isAuto(s.ImageType) && s.ImageType != kind.imageType {
				continue
			}
			for _, ending := range kind.endings {
				names = append(names, name{stem + ending, kind.imageType})
			}
		}
	}
	return names, nil
}

// stems lists NAME and NAME-ARCH as they may stand before the ending.
func (st *store) stems() []string {
	s := st.settings
	if s.Arch != "" {
		return []string{s.ImageName + "-" + s.Arch}
	}
	stems := []string{s.ImageName}
	calls := architectures[st.machine]
	if calls == nil && st.machine != "" {
		calls = []string{st.machine}
	}
	for _, arch := range calls {
		stems = append(stems, s.ImageName+"-"+arch)
	}
	return stems
}

// tried says in words which names were looked for.
func (st *store) tried() string {
	var endings []string
	for _, kind := range kinds {
		if isAuto(st.settings.ImageType) || st.settings.ImageType == kind.imageType {
			endings = append(endings, kind.endings[0])
			if len(kind.endings) > 1 {
				endings[len(endings)-1] += "[" + strings.Join(compressions, "|") + "]"
			}
		}
	}
	if stems := st.stems(); len(stems)*len(endings) > 1 {
		return strings.Join(stems, ", ") + " with the ending " + strings.Join(endings, ", ")
	}
	return st.stems()[0] + endings[0]
}

// typeOf tells the type of an image by its name, "qemu" where the name does not
// say, and whether it did.
func typeOf(file string) (string, bool) {
	for _, kind := range kinds {
		if ending(file, kind.endings) != "" || ending(file, kind.others) != "" {
			return kind.imageType, true
		}
	}
	return "qemu", false
}

func ending(file string, endings []string) string {
	for _, e := range endings {
		if strings.HasSuffix(file, e) && len(file) > len(e) {
			return e
		}
	}
	return ""
}

// split cuts the known ending off a name.
func split(file string) (stem, end string) {
	for _, kind := range kinds {
		if e := ending(file, slices.Concat(kind.endings, kind.others)); e != "" {
			return strings.TrimSuffix(file, e), e
		}
	}
	return file, ""
}

func isAuto(imageType string) bool { return imageType == "" || imageType == "auto" }

func checkType(s *settings.Settings) error {
	known := []string{"auto"}
	for _, kind := range kinds {
		known = append(known, kind.imageType)
	}
	if s.ImageType == "" || slices.Contains(known, s.ImageType) {
		return nil
	}
	return fmt.Errorf("IMAGE_TYPE (%s) is %q: want one of %s", s.Origin("IMAGE_TYPE"), s.ImageType, strings.Join(known, ", "))
}
