package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// CaptureOptions say what of a guest an image of it is to have all the same.
type CaptureOptions struct {
	Keep   []string // names of CaptureParts that stay
	Remove []string // names of CaptureParts that go though they stay unless asked for
	Name   string   // the instance's, which the guest's files may say; "" if it is not known
}

// CapturePart is one kind of thing that belongs to one system and not to an
// image.
type CapturePart struct {
	Name  string
	What  string
	Asked bool // it goes only where Remove names it
}

// capturePart is a CapturePart and how it is taken away.
type capturePart struct {
	CapturePart
	take func(*capturing) error
}

// CaptureParts lists them in the order in which they are taken away.
func CaptureParts() []CapturePart {
	var parts []CapturePart
	for _, p := range captureParts {
		parts = append(parts, p.CapturePart)
	}
	return parts
}

// CheckCapture makes sure that each word is the name of a part.
func CheckCapture(words []string) error {
	var names []string
	for _, p := range captureParts {
		names = append(names, p.Name)
	}
	for _, word := range words {
		if !slices.Contains(names, word) {
			return fmt.Errorf("cannot keep or remove %q: the parts are %s", word, strings.Join(names, ", "))
		}
	}
	return nil
}

// PrepareImage takes from a guest what an image of it, which many will be made
// of, must not have: all that ResetIdentity takes away, and keys, names, logs,
// histories, caches and whatever else CaptureParts lists. Where ResetIdentity
// makes something new, as a seed, there is nothing afterwards. Users, their
// passwords and their authorized keys stay.
//
// What was removed is returned, a line a path or a directory, and of a part with
// very many their number; also where an error ended it. A link that others than
// root may have made is not followed, which is a line too.
func (r *Root) PrepareImage(o CaptureOptions) ([]string, error) {
	if err := CheckCapture(slices.Concat(o.Keep, o.Remove)); err != nil {
		return nil, err
	}
	c := &capturing{root: r, name: o.Name}
	for _, part := range captureParts {
		if slices.Contains(o.Keep, part.Name) || part.Asked && !slices.Contains(o.Remove, part.Name) {
			continue
		}
		c.begin()
		err := part.take(c)
		c.end(part.Name)
		if err != nil {
			return c.changes, fmt.Errorf("%w; --keep %s leaves that as it is", err, part.Name)
		}
	}
	if !slices.Contains(o.Keep, "network") {
		c.begin()
		c.warnOfMACs() // when it is known what stays
	}
	return c.changes, nil
}

// capturing is one call of PrepareImage.
type capturing struct {
	root    *Root
	name    string
	changes []string
	lines   int // of the part at hand
}

// maxCaptureLines bounds the lines of one part.
const maxCaptureLines = 50

func (c *capturing) begin() { c.lines = 0 }

func (c *capturing) say(format string, args ...any) {
	if c.lines++; c.lines <= maxCaptureLines {
		c.changes = append(c.changes, fmt.Sprintf(format, args...))
	}
}

// end tells how many lines were left out.
func (c *capturing) end(part string) {
	if more := c.lines - maxCaptureLines; more > 0 {
		c.changes = append(c.changes, fmt.Sprintf("and %d more of %s", more, part))
	}
}

// as takes a part away as ResetIdentity does.
func as(take func(*identity) error) func(*capturing) error {
	return func(c *capturing) error {
		i := &identity{root: c.root}
		err := take(i)
		for _, change := range i.changes {
			c.say("%s", printable(change))
		}
		return err
	}
}

// each takes a part away in several steps.
func each(steps ...func(*capturing) error) func(*capturing) error {
	return func(c *capturing) error {
		for _, step := range steps {
			if err := step(c); err != nil {
				return err
			}
		}
		return nil
	}
}

// removing removes what patterns match.
func removing(patterns ...string) func(*capturing) error {
	return func(c *capturing) error {
		for _, pattern := range patterns {
			for _, name := range c.root.Glob(pattern) {
				if err := c.remove(name); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// ofUsers removes files of all users, named from their home directories on.
func ofUsers(files ...string) func(*capturing) error {
	return func(c *capturing) error {
		for _, home := range c.homes() {
			for _, file := range files {
				if err := c.remove(home + "/" + file); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// emptying removes what is in directories, which stay, and so do those in them
// where tidy is not set.
func emptying(tidy bool, dirs ...string) func(*capturing) error {
	return func(c *capturing) error {
		for _, pattern := range dirs {
			for _, dir := range c.root.Glob(pattern) {
				if err := c.empty(dir, tidy); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// maxHomes bounds how many users' homes are looked into.
const maxHomes = 4096

// homes are the home directories of root and of all that /etc/passwd names.
func (c *capturing) homes() []string {
	homes := []string{"/root"}
	passwd, err := c.root.readAccounts(passwdFile)
	if err != nil {
		return homes
	}
	for fields := range passwd.entries {
		if home := path.Clean(fields[5]); path.IsAbs(home) && home != "/" && !slices.Contains(homes, home) && len(homes) < maxHomes {
			homes = append(homes, home)
		}
	}
	return homes
}

// remove removes a file, or a directory with all that is in it. A link goes
// without what it leads to; one to /dev/null stays, since by that something is
// switched off.
func (c *capturing) remove(name string) error {
	name, ok := c.locate(name)
	if !ok {
		return nil
	}
	info, err := c.root.Lstat(name)
	if err != nil {
		return nil
	}
	if target, err := c.root.Readlink(name); err == nil && target == "/dev/null" {
		return nil
	}
	if !info.IsDir() {
		if err := c.root.Remove(name); err != nil {
			return err
		}
		c.say("removed %s", printable(name))
		return nil
	}
	n, err := c.sweep(name, removeAny)
	if err != nil {
		return err
	}
	if err := c.root.Remove(name); err != nil && !errors.Is(err, unix.EBUSY) {
		return err
	}
	c.say("removed %s with %s", printable(name), count(n))
	return nil
}

// empty removes what is in a directory. One that is a link is left: what it leads
// to has a name of its own, or is somebody's.
func (c *capturing) empty(name string, tidy bool) error {
	name, ok := c.locate(name)
	if !ok {
		return nil
	}
	if info, err := c.root.Lstat(name); err != nil || !info.IsDir() {
		return nil
	}
	act := removeFile
	if tidy {
		act = removeAny
	}
	n, err := c.sweep(name, act)
	if n > 0 {
		c.say("emptied %s of %s", printable(name), count(n))
	}
	return err
}

func count(n int) string {
	if n == 1 {
		return "1 file"
	}
	return fmt.Sprintf("%d files", n)
}

// locate returns the path of a name whose directory is reached without a link
// that others than root may have made, and whether there is such a thing.
func (c *capturing) locate(name string) (string, bool) {
	above, base := split(name)
	dir, err := c.root.resolve(above)
	if loose := (looseLink{}); errors.As(err, &loose) {
		c.say("left %s: %s is a link in a directory that others than root may write to", printable(name), printable(loose.link))
		return "", false
	}
	if err != nil {
		return "", false
	}
	at := path.Join(dir, base)
	_, err = c.root.Lstat(at)
	return at, err == nil
}

// edit rewrites a file, if it is a regular one and edit changes it.
func (c *capturing) edit(pattern, what string, edit func(text string) string) error {
	for file := range c.root.readMatches(pattern, configLimit) {
		name, ok := c.locate(file.name)
		if !ok || file.err != nil {
			continue
		}
		if info, err := c.root.Lstat(name); err != nil || !info.IsRegular() {
			continue
		}
		if text := edit(file.text); text != file.text {
			if err := c.root.rewrite(name, []byte(file.text), []byte(text)); err != nil {
				return err
			}
			c.say("took %s out of %s", what, printable(name))
		}
	}
	return nil
}

// without takes the lines out that match.
func without(text string, match func(line string) bool) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		if !match(strings.TrimSpace(line)) {
			out.WriteString(line)
		}
	}
	return out.String()
}

// sweep does something to all that is in a directory, to what is in directories
// first, and returns how often it did. No link is followed.
func (c *capturing) sweep(name string, act sweepAct) (int, error) {
	dir, err := c.root.open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return 0, fail("list", name, err)
	}
	defer unix.Close(dir)
	s := &sweeping{act: act, left: maxRemoved}
	err = s.below(dir, maxDepth)
	return s.done, fail("clear", name, err)
}

// readSmall is the text of a file, "" where there is none that can be read.
func (c *capturing) readSmall(name string) string {
	text, err := c.root.ReadFile(name, releaseLimit)
	if err != nil {
		return ""
	}
	return string(text)
}

func isAbsent(err error) bool { return errors.Is(err, fs.ErrNotExist) }
