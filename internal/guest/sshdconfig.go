package guest

import (
	"path"
	"strings"
)

// sshdConfig is what sshd_config(5) says of all users, by keyword in lower case.
type sshdConfig map[string]string

const (
	maxSSHDFiles    = 64  // that are read, with those that others include
	maxSSHDIncludes = 256 // patterns that are looked for
	maxSSHDDepth    = 16  // of Include, as in sshd
)

// sshdConfig reads the guest's, as far as it can be read: the first value of a
// keyword counts, and what stands below a Match for some users is left out.
func (r *Root) sshdConfig() sshdConfig {
	c := &sshdReader{root: r, said: sshdConfig{}, left: maxSSHDFiles, includes: maxSSHDIncludes}
	for _, file := range []string{"/etc/ssh/sshd_config", "/usr/etc/ssh/sshd_config"} {
		if r.isFile(file) {
			c.read(file, maxSSHDDepth)
			break
		}
	}
	return c.said
}

type sshdReader struct {
	root           *Root
	said           sshdConfig
	left, includes int
}

func (c *sshdReader) read(file string, depth int) {
	if c.left--; c.left < 0 || depth == 0 {
		return
	}
	text, err := c.root.ReadFile(file, releaseLimit)
	if err != nil {
		return
	}
	forAll := true
	for line := range strings.Lines(string(text)) {
		keyword, value := sshdLine(line)
		switch {
		case keyword == "match":
			forAll = strings.EqualFold(value, "all")
		case keyword == "" || !forAll:
		case keyword == "include":
			c.include(value, depth)
		default:
			if _, ok := c.said[keyword]; !ok {
				c.said[keyword] = value
			}
		}
	}
}

func (c *sshdReader) include(patterns string, depth int) {
	words, _ := sshdWords(patterns)
	for _, pattern := range words {
		if c.includes--; c.includes < 0 {
			return
		}
		if !path.IsAbs(pattern) {
			pattern = "/etc/ssh/" + pattern
		}
		for _, file := range c.root.Glob(pattern) {
			c.read(file, depth-1)
		}
	}
}

// sshdLine cuts a line into its keyword, in lower case, and the rest.
func sshdLine(line string) (keyword, value string) {
	line = strings.TrimSpace(line)
	if strings.HasPrefix(line, "#") {
		return "", ""
	}
	if i := strings.Index(line, " #"); i >= 0 {
		line = line[:i]
	}
	end := strings.IndexAny(line, " \t=")
	if end < 0 {
		return "", ""
	}
	value = strings.TrimLeft(line[end:], " \t")
	value = strings.TrimSpace(strings.TrimPrefix(value, "="))
	return strings.ToLower(line[:end]), value
}

// sshdWords cuts a value into words, of which one in quotes may have blanks. It
// is not ok where a quote has no end.
func sshdWords(value string) (words []string, ok bool) {
	var word []byte
	var quote byte
	inWord := false
	for i := range len(value) {
		switch c := value[i]; {
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, inWord = c, true
		case quote == 0 && (c == ' ' || c == '\t'):
			if inWord {
				words = append(words, string(word))
			}
			word, inWord = nil, false
		default:
			word, inWord = append(word, c), true
		}
	}
	if inWord {
		words = append(words, string(word))
	}
	return words, quote == 0
}

// rootLogin tells what sshd's settings mean for root, who got a password, keys
// or both. It does not change them: that root may log in from the network is
// for the image to say, or for who deploys it.
func (c sshdConfig) rootLogin(password bool) []string {
	permit := strings.ToLower(c["permitrootlogin"])
	switch {
	case permit == "no":
		return []string{"sshd lets no root in: PermitRootLogin is no in the guest's sshd_config, and is left so"}
	case permit == "forced-commands-only":
		return []string{"sshd lets root in for commands of its keys only: PermitRootLogin is forced-commands-only in the guest's sshd_config, and is left so"}
	case password && permit == "":
		return []string{"sshd may not take the password of root: PermitRootLogin is not in the guest's sshd_config, and by default OpenSSH 7.0 and newer take keys of root only"}
	case password && (permit == "prohibit-password" || permit == "without-password"):
		return []string{"sshd does not take the password of root, which is for the console: PermitRootLogin is not yes in the guest's sshd_config, and is left so"}
	}
	return c.passwords(password)
}

// passwords tells whether sshd takes any.
func (c sshdConfig) passwords(given bool) []string {
	if given && strings.EqualFold(c["passwordauthentication"], "no") {
		return []string{"sshd takes no passwords, which are for the console: PasswordAuthentication is no in the guest's sshd_config, and is left so"}
	}
	return nil
}

// users tells of lists of users, which are not looked into.
func (c sshdConfig) users() []string {
	for _, keyword := range []string{"AllowUsers", "AllowGroups", "DenyUsers", "DenyGroups"} {
		if _, ok := c[strings.ToLower(keyword)]; ok {
			return []string{"sshd may let the user in or not: the guest's sshd_config has " + keyword + ", and is left so"}
		}
	}
	return nil
}
