package tarball

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ganeti-instance-image/internal/need"
	"ganeti-instance-image/internal/tree"
	"ganeti-instance-image/internal/unpack"
)

func tool(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// shell runs a script in a directory.
func shell(t testing.TB, dir, script string, args ...string) string {
	t.Helper()
	cmd := exec.Command("bash", append([]string{"-ec", script, "bash"}, args...)...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// guestTree makes files of every kind.
const guestTree = `
umask 022
mkdir -p usr/bin usr/lib etc dev var/log/journal tmp "odd names" empty
ln -s usr/lib lib
printf 'root:x:0:0::/root:/bin/sh\n' >etc/passwd
printf 'root:x:0:\nadm:x:4:\n' >etc/group
seq 100000 >usr/lib/numbers
head -c 3000000 /dev/urandom >usr/lib/noise
: >etc/empty
cp /bin/true usr/bin/ping; chown 12:3000000 usr/bin/ping; setcap cap_net_raw+ep usr/bin/ping
cp /bin/true usr/bin/su; chown 0:42 usr/bin/su; chmod 6755 usr/bin/su
ln usr/bin/su usr/bin/su2; ln usr/lib/numbers "odd names/numbers"
mknod dev/null c 1 3; chmod 666 dev/null; mknod dev/sda b 8 0; mknod dev/big c 400 200000
mkfifo -m 640 dev/initctl
ln -s /nowhere etc/dangling; ln -s "$(printf 'n%.0s' $(seq 300))" etc/longlink
long=$(printf 'd%.0s' $(seq 120)); mkdir -p "usr/$long/$long"; echo long >"usr/$long/$long/$(printf 'f%.0s' $(seq 200))"
printf x >"$(printf 'odd names/line\nbreak \t\\ \377')"; printf y >'odd names/umlaut ä = "q"'
truncate -s 8M var/sparse; printf a | dd of=var/sparse bs=1 seek=1M conv=notrunc status=none; printf b | dd of=var/sparse bs=1 seek=5000000 conv=notrunc status=none
truncate -s 50G var/lastlog; printf c | dd of=var/lastlog bs=1 seek=12345678 conv=notrunc status=none
truncate -s 3M var/allhole
i=0; truncate -s 2M var/manyholes; while [ $i -lt 60 ]; do printf z | dd of=var/manyholes bs=1 seek=$((i*32768)) conv=notrunc status=none; i=$((i+1)); done
head -c 65536 /dev/zero >var/dense
printf w >etc/waits; setfattr -n user.comment -v "a=b%c" etc/waits; setfattr -n trusted.x -v 0x00ff00 etc/waits; setfattr -n security.selinux -v system_u:object_r:etc_t:s0 etc/waits
setfacl -m u:61234:rw,g:4:r etc/waits; setfacl -d -m g:4:rx var/log/journal; setfacl -m g:4:rx var/log/journal
chmod 1777 tmp; chmod 000 empty; chown 5:6 empty; chown -h 7:8 lib
touch -d '2001-02-03 04:05:06.789012345' usr/lib/noise; touch -hd '1969-12-31 23:00:00.5' etc/dangling; touch -d '2100-01-01 00:00:00' etc/empty
touch -d '2002-03-04 05:06:07.25' usr usr/bin "odd names" tmp empty dev; touch -d '2003-01-01 00:00:00.75' .
`

// describe lists what a tree is, by the tools.
func describe(t testing.TB, dir string) string {
	t.Helper()
	return shell(t, dir, `export LC_ALL=C
find . -path ./lost+found -prune -o -type d -printf '%p %y %m %U %G %T@\n' -o -printf '%p %y %m %U %G %n %s %T@ %l\n' | sort
find . -type c -o -type b | sort | xargs -r stat -c '%n %t:%T'
find . -type f ! -name lastlog -print0 | sort -z | xargs -0 sha256sum
find . -print0 | sort -z | xargs -0 getfattr --absolute-names -d -m - -e hex -h`) + extents(t, dir)
}

// extents lists where files have data.
func extents(t testing.TB, dir string) string {
	t.Helper()
	var text strings.Builder
	for _, name := range []string{"var/sparse", "var/lastlog", "var/allhole", "var/manyholes", "var/dense", "usr/lib/noise"} {
		f, err := os.Open(dir + "/" + name)
		if err != nil {
			continue
		}
		for at := int64(0); ; {
			data, err := f.Seek(at, unix.SEEK_DATA)
			if err != nil {
				break
			}
			at, _ = f.Seek(data, unix.SEEK_HOLE)
			fmt.Fprintf(&text, "%s %d-%d\n", name, data, at)
		}
		f.Close()
	}
	return text.String()
}

func deploy(t testing.TB, path, target string) (unpack.Stats, []string) {
	t.Helper()
	a, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	stats, err := unpack.Into(context.Background(), target, a, unpack.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return stats, a.Warnings()
}

// What GNU tar unpacks of its archives is what we unpack.
func TestAgainstTar(t *testing.T) {
	need.Tools(t, "tar", "bash", "setfattr", "getfattr", "setfacl", "setcap", "gzip", "xz", "zstd")
	source := need.Mounted(t, "ext4", "600M")
	shell(t, source, guestTree)
	work, mounts, outer := t.TempDir(), map[string]string{}, t
	for _, c := range []struct{ name, fs, options string }{
		{"gnu", "ext4", "--format=gnu"},
		{"gnu sparse", "ext4", "--format=gnu -S"},
		{"gnu, gzip", "xfs", "--format=gnu -S -z"},
		{"ustar", "ext4", "--format=ustar"},
		{"v7", "ext4", "--format=v7"},
		{"oldgnu sparse", "ext4", "--format=oldgnu -S"},
		{"pax sparse 0.0", "ext4", "--format=pax -S --sparse-version=0.0 --acls --xattrs --xattrs-include=*"},
		{"pax sparse 0.1", "ext4", "--format=pax -S --sparse-version=0.1 --acls --xattrs --xattrs-include=*"},
		{"pax sparse 1.0", "ext4", "--format=pax -S --sparse-version=1.0 --acls --xattrs --xattrs-include=*"},
		{"pax, xz", "xfs", "--format=pax -S -J --acls --xattrs --xattrs-include=*"},
		{"pax, zstd", "btrfs", "--format=pax -S --zstd --acls --xattrs --xattrs-include=*"},
		{"pax with acl texts", "ext4", "--format=pax -S --acls --xattrs --xattrs-include=security.*"},
		{"pax with names", "ext4", "--format=pax -S --acls --xattrs --xattrs-include=* --pax-option=delete=ctime,globexthdr.name=x"},
		{"volume label", "ext4", "--format=gnu -S -V label"},
		{"incremental", "ext4", "--format=gnu -S -g /dev/null"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(work, strings.ReplaceAll(c.name, " ", "_"))
			exclude := ""
			if !strings.Contains(c.options, "-S") {
				exclude = " --exclude=./var/lastlog"
			}
			// v7 and ustar do not have all names, numbers and kinds: tar goes on
			// without those.
			shell(t, source, "tar -cf $1 --exclude=./lost+found "+c.options+exclude+" . || test $? = 2", path)
			if mounts[c.fs] == "" {
				mounts[c.fs] = need.Mounted(outer, c.fs, "600M")
			}
			theirs, ours := mounts[c.fs]+"/theirs", mounts[c.fs]+"/ours"
			defer shell(t, mounts[c.fs], "rm -rf theirs ours")
			shell(t, mounts[c.fs], "mkdir theirs ours")
			shell(t, theirs, "tar --numeric-owner --acls --xattrs '--xattrs-include=*' -xpf $1", path)
			_, warnings := deploy(t, path, ours)
			want, got := describe(t, theirs), describe(t, ours)
			compare(t, want, got)
			if len(warnings) > 0 {
				t.Errorf("warnings: %q", warnings)
			}
			if strings.HasPrefix(c.name, "pax sparse") {
				compare(t, describe(t, source), got)
			}
		})
	}
}

// compare shows the lines that differ.
func compare(t testing.TB, want, got string) {
	t.Helper()
	if want == got {
		return
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"want": want, "got": got} {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, _ := exec.Command("diff", "-U0", dir+"/want", dir+"/got").Output()
	t.Errorf("other than wanted:\n%s", out[:min(len(out), 4000)])
}

// member is an entry of an archive made for a test.
type member struct {
	tar.Header
	content string
}

func archive(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		m.Size = int64(len(m.content))
		if m.Typeflag == 0 {
			m.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(&m.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func writeFile(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// readAll reads entries and contents, at most limit bytes of them.
func readAll(path string, limit int64) (entries []tree.Entry, contents []string, warnings []string, err error) {
	a, err := Open(path)
	if err != nil {
		return nil, nil, nil, err
	}
	defer a.Close()
	for limit > 0 {
		e, err := a.Next()
		if err != nil {
			return entries, contents, a.Warnings(), err
		}
		limit -= 512
		content, end := "", int64(0)
		for limit > 0 {
			at, b, err := a.Data()
			if err == io.EOF {
				break
			}
			if err != nil {
				return entries, contents, a.Warnings(), err
			}
			if at < end || len(b) == 0 || at+int64(len(b)) > e.Size {
				return entries, contents, nil, fmt.Errorf("a stretch at %d of %d bytes in a file of %d, behind %d", at, len(b), e.Size, end)
			}
			if content, end = content+string(b), at+int64(len(b)); len(content) > 1<<20 {
				content = ""
			}
			limit -= int64(len(b))
		}
		entries, contents = append(entries, *e), append(contents, content)
	}
	return entries, contents, a.Warnings(), errors.New("too long for the test")
}

func TestAttributes(t *testing.T) {
	pax := func(name string, records map[string]string) member {
		return member{Header: tar.Header{Name: name, Mode: 0o644, Format: tar.FormatPAX, PAXRecords: records, ModTime: time.Unix(1, 5e8)}}
	}
	acl := func(entries ...aclEntry) []byte { return encodeACL(entries) }
	base := []aclEntry{{aclUserObj, 6, aclNobody}, {aclUser, 4, 1000}, {aclGroupObj, 4, aclNobody}, {aclMask, 4, aclNobody}, {aclOther, 0, aclNobody}}
	with := func(id uint32) []byte { c := append([]aclEntry(nil), base...); c[1].id = id; return acl(c...) }
	group := acl(aclEntry{aclUserObj, 6, aclNobody}, aclEntry{aclGroupObj, 4, aclNobody}, aclEntry{aclGroup, 5, 4}, aclEntry{aclMask, 5, aclNobody}, aclEntry{aclOther, 0, aclNobody})
	for _, c := range []struct {
		name    string
		records map[string]string
		want    map[string][]byte
		warning string
	}{
		{"star", map[string]string{"SCHILY.xattr.user.a": "\x00b"}, map[string][]byte{"user.a": []byte("\x00b")}, ""},
		{"libarchive", map[string]string{"LIBARCHIVE.xattr.user.a%25b": "AGI"}, map[string][]byte{"user.a%b": []byte("\x00b")}, ""},
		{"padded", map[string]string{"LIBARCHIVE.xattr.user.a": "AGIA"}, map[string][]byte{"user.a": []byte("\x00b\x00")}, ""},
		{"both", map[string]string{"LIBARCHIVE.xattr.user.a": "AGI", "SCHILY.xattr.user.a": "c"}, map[string][]byte{"user.a": []byte("c")}, ""},
		{"label", map[string]string{"RHT.security.selinux": "a:b:c"}, map[string][]byte{"security.selinux": []byte("a:b:c\x00")}, ""},
		{"plain list", map[string]string{"SCHILY.acl.access": "user::rw-,group::r--,other::---"}, nil, ""},
		{"number", map[string]string{"SCHILY.acl.access": "user::rw-,user:1000:r--,group::r--,mask::r--,other::---"}, map[string][]byte{tree.AccessACL: with(1000)}, ""},
		{"fourth field", map[string]string{"SCHILY.acl.access": "user::rw-,user:lisa:r--:1001,group::r--,mask::r--,other::---"}, map[string][]byte{tree.AccessACL: with(1001)}, ""},
		{"lines", map[string]string{"SCHILY.acl.access": "user::rw-\nuser:7:r--\t#effective:r--\ngroup::r--\nmask::r--\nother::---\n"}, map[string][]byte{tree.AccessACL: with(7)}, ""},
		{"owner's name", map[string]string{"SCHILY.acl.access": "u::rw-,u:bart:r--,g::r--,m::r--,o::---"}, map[string][]byte{tree.AccessACL: with(33)}, ""},
		{"group of etc/group", map[string]string{"SCHILY.acl.access": "user::rw-,group:adm:r-x,group::r--,other::---"}, map[string][]byte{tree.AccessACL: group}, ""},
		{"default", map[string]string{"SCHILY.acl.default": "user::rw-,group::r--,other::---"}, map[string][]byte{tree.DefaultACL: acl(base[0], base[2], base[4])}, ""},
		{"unknown name", map[string]string{"SCHILY.acl.access": "user::rw-,user:maggie:r--,group::r--,mask::r--,other::---"}, nil, `does not say the number of "user maggie"`},
		{"no list", map[string]string{"SCHILY.acl.access": "hello"}, nil, `"hello" is no entry of one`},
		{"bytes first", map[string]string{"SCHILY.acl.access": "user:maggie:r--", "SCHILY.xattr." + tree.AccessACL: "x"}, map[string][]byte{tree.AccessACL: []byte("x")}, ""},
	} {
		owner := member{Header: tar.Header{Name: "home", Typeflag: tar.TypeDir, Uname: "bart", Uid: 33}}
		groups := member{Header: tar.Header{Name: "./etc/group"}, content: "root:x:0:\nadm:x:4:syslog\n"}
		entries, _, warnings, err := readAll(writeFile(t, archive(t, owner, groups, pax("f", c.records))), 1<<20)
		if err != io.EOF {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got := entries[2].Xattrs; !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if text := strings.Join(warnings, "; "); c.warning == "" && text != "" || !strings.Contains(text, c.warning) {
			t.Errorf("%s: warnings %q, want %q", c.name, text, c.warning)
		}
	}
	f := pax("f", map[string]string{"SCHILY.fflags": "schg,nodump,extents"})
	entries, _, _, _ := readAll(writeFile(t, archive(t, f)), 1<<20)
	if got := entries[0]; got.Flags != 0x50 || !got.ModTime.Equal(time.Unix(1, 5e8)) {
		t.Errorf("%+v", got)
	}
}

// header is a header of v7 with a right checksum, which can be changed before.
func header(change func(b []byte)) []byte {
	b := make([]byte, 512)
	copy(b, "file")
	copy(b[100:], "0000644\x000000000\x000000000\x0000000000000\x0000000000000\x00")
	b[156] = '0'
	copy(b[257:], "ustar  \x00")
	if change != nil {
		change(b)
	}
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func TestHostile(t *testing.T) {
	need.Root(t)
	end := make([]byte, 1024)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	h := func(kind byte, name, target string) []byte {
		return header(func(b []byte) { clear(b[:100]); copy(b[:100], name); b[156] = kind; copy(b[157:257], target) })
	}
	text := func(kind byte, content string) []byte {
		b := header(func(b []byte) { b[156] = kind; copy(b[124:], fmt.Sprintf("%011o\x00", len(content))) })
		return append(b, append([]byte(content), make([]byte, -len(content)&511)...)...)
	}
	long := strings.Repeat("d/", 100_000) + "x"
	endless := func(count int) []byte {
		b := header(func(b []byte) {
			b[156], b[482] = 'S', 1
			copy(b[386:], "00000000000\x0000000000000\x00")
			copy(b[483:], "77777777777\x00")
		})
		extension := make([]byte, 512)
		extension[504] = 1
		return append(b, bytes.Repeat(extension, count)...)
	}
	whole := archive(t, member{Header: tar.Header{Name: "etc/a"}, content: strings.Repeat("a", 1000)}, member{Header: tar.Header{Name: "etc/b"}})
	for _, c := range []struct {
		name string
		data []byte
		want string // empty where it unpacks
	}{
		{"dots", join(h('0', "../../etc/passwd", ""), end), `component ".."`},
		{"dots in a long name", join(text('L', "a/../../../etc/passwd\x00"), h('0', "x", ""), end), `component ".."`},
		{"absolute", join(h('0', "/etc/passwd", ""), end), ""},
		{"through a link", join(h('2', "a", "../../etc"), h('0', "a/passwd", ""), end), "is a link that leads nowhere"},
		{"through links in a loop", join(h('2', "a", "b"), h('2', "b", "a"), h('0', "a/x", ""), end), "symbolic links"},
		{"link outside", join(h('1', "a", "../etc/passwd"), end), "which is no file of the archive"},
		{"link outside, absolute", join(h('1', "a", "/etc/passwd"), end), "which did not come before it"},
		{"link to what comes later", join(h('1', "a", "b"), h('0', "b", ""), end), "which did not come before it"},
		{"link to a link", join(h('2', "a", "../etc/passwd"), h('1', "b", "a"), h('0', "b", ""), end), ""},
		{"device over a directory", join(h('5', "a/", ""), h('3', "a", ""), end), "it is a directory already"},
		{"directory over a link", join(h('2', "a", "/etc"), h('5', "a", ""), h('0', "a/passwd", ""), end), ""},
		{"100000 components", join(text('L', long+"\x00"), h('0', "x", ""), end), "file name too long"},
		{"no name", join(h('0', "", ""), end), "a file without a name"},
		{"only slashes", join(h('0', "///", ""), end), ""},
		{"8 EiB", join(header(func(b []byte) { copy(b[124:], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff") }), end), "cut off in the middle of a file"},
		{"negative size", join(header(func(b []byte) { copy(b[124:], strings.Repeat("\xff", 12)) }), end), "there is no tar header"},
		{"no number", join(header(func(b []byte) { copy(b[124:], "zzzzzzzzzzz\x00") }), end), "header"},
		{"owner", join(header(func(b []byte) { copy(b[108:], "\x80\x00\x00\x00\xff\xff\xff\xff") }), end), "has the owner 4294967295, which does not exist"},
		{"negative owner", join(header(func(b []byte) { copy(b[108:], strings.Repeat("\xff", 8)) }), end), "has the owner -1, which does not exist"},
		{"device number", join(header(func(b []byte) { b[156] = '3'; copy(b[329:], "7777777\x000000001\x00") }), end), "no device has the number"},
		{"unknown type", join(h('Q', "a", ""), end), `"a" is of the type 'Q'`},
		{"Solaris", join(text('X', "11 path=ab\n"), h('0', "a", ""), end), `is of the type 'X'`},
		{"volumes", join(h('M', "a", ""), end), `one of several volumes: "a" began on the one before`},
		{"volume label", join(h('V', "a", ""), h('0', "b", ""), end), ""},
		{"incremental", join(text('D', "Yx\x00\x00"), h('0', "file/x", ""), end), ""},
		{"endless map", join(endless(4000), end), "map"},
		{"endless map, cut off", endless(10), "cut off"},
		{"map out of the file", join(header(func(b []byte) {
			b[156] = 'S'
			copy(b[386:], "00000001000\x0000000001000\x00")
			copy(b[483:], "00000000001\x00")
		}), end), "header"},
		{"map backwards", join(header(func(b []byte) {
			b[156] = 'S'
			copy(b[386:], "00000001000\x0000000000001\x0000000000000\x0000000000001\x00")
			copy(b[483:], "00000010000\x00")
		}), end), "header"},
		{"map of more than there is", join(header(func(b []byte) {
			b[156] = 'S'
			copy(b[386:], "00000001000\x0000000001000\x00")
			copy(b[483:], "00000003000\x00")
		}), end, end), "and its map has 512 bytes of data"},
		{"map of pax that is none", join(text('x', "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"), text('0', "9999999\n1\n"), end), "cut off"},
		{"map of pax of letters", join(text('x', "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"), text('0', "x\n"), end), "header"},
		{"map of a later version", join(text('x', "22 GNU.sparse.major=2\n22 GNU.sparse.minor=0\n"), text('0', "x\n"), end), `its version is "2"."0"`},
		{"pax record too long", join(text('x', "999 path=ab\n"), h('0', "a", ""), end), "header"},
		{"pax record too short", join(text('x', "3 path=ab\n"), h('0', "a", ""), end), "header"},
		{"pax record without length", join(text('x', "path=ab\n"), h('0', "a", ""), end), "header"},
		{"pax path with a zero", join(text('x', "13 path=a\x00b\n"), h('0', "a", ""), end), "header"},
		{"pax size", join(text('x', "28 size=9223372036854775807\n"), h('0', "a", ""), end), "cut off"},
		{"global path", join(text('g', "11 path=ab\n"), h('0', "a", ""), end), `the pax record "path" for all files`},
		{"global comment", join(text('g', "16 comment=abcd\n"), h('0', "a", ""), end), ""},
		{"endless headers", join(bytes.Repeat(text('L', "name\x00"), 10_000), h('0', "a", ""), end), "the headers of a file have more than 8 MiB"},
		{"huge header", join(header(func(b []byte) { b[156] = 'x'; copy(b[124:], "77777777777\x00") }), end), "header"},
		{"base64", join(text('x', "31 LIBARCHIVE.xattr.user.a=***\n"), h('0', "a", ""), end), `its attribute "user.a" is damaged`},
		{"checksum", join(append([]byte("X"), header(nil)[1:]...), end), "there is no tar header where one should be"},
		{"second checksum", join(header(nil), append([]byte("X"), header(nil)[1:]...), end), "there is no tar header where one should be"},
		{"nothing", end, "there is nothing inside"},
		{"one block of zeros", end[:512], "there is nothing inside"},
		{"no end", whole[:512+1024+512], "no end-of-archive marker"},
		{"no end, first file", whole[:512+1024], "no end-of-archive marker"},
		{"half an end", whole[:512+1024+512+512], ""},
		{"cut in a file", whole[:512+500], "cut off in the middle of a file"},
		{"cut in the padding", whole[:512+1010], "cut off in the middle of a file"},
		{"cut in a header", whole[:512+1024+100], "cut off in the middle of a header"},
		{"behind the end", join(whole, header(nil), end), ""},
		{"one block of zeros in between", join(whole[:512+1024], end[:512], whole[512+1024:]), "header"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := writeFile(t, c.data)
			target, unchanged := inside(t)
			err := func() error {
				a, err := Open(path)
				if err != nil {
					return err
				}
				defer a.Close()
				_, err = unpack.Into(context.Background(), target, a, unpack.Options{})
				return err
			}()
			unchanged()
			switch {
			case c.want == "" && err != nil, c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %q", err, c.want)
			case err != nil && (strings.ContainsAny(err.Error(), "\n\x00") || len(err.Error()) > 700):
				t.Errorf("not one short line: %q", err)
			}
		})
	}
}

// inside makes a directory to unpack into, beside one that may not change.
func inside(t testing.TB) (target string, unchanged func()) {
	t.Helper()
	top := t.TempDir()
	target = top + "/target"
	for _, d := range []string{target, top + "/etc"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(top+"/etc/passwd", []byte("root"), 0o644); err != nil {
		t.Fatal(err)
	}
	look := func() string {
		var text strings.Builder
		for _, name := range []string{".", "etc", "etc/passwd"} {
			var st unix.Stat_t
			if err := unix.Lstat(top+"/"+name, &st); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(&text, name, st.Mode, st.Uid, st.Gid, st.Nlink, st.Size, st.Mtim)
		}
		return text.String()
	}
	before := look()
	return target, func() {
		t.Helper()
		if after := look(); after != before {
			t.Errorf("changed outside: %s, it was %s", after, before)
		}
	}
}

func TestWarnings(t *testing.T) {
	whole := archive(t, member{Header: tar.Header{Name: "etc/a"}})
	for _, c := range []struct {
		data []byte
		want string
	}{
		{whole, ""},
		{append(bytes.Clone(whole), make([]byte, 9000)...), ""},
		{whole[:len(whole)-512], "the archive ends in one block of zeros instead of two"},
		{append(bytes.Clone(whole), whole...), "something follows the end of the archive, and is not unpacked"},
	} {
		entries, _, warnings, err := readAll(writeFile(t, c.data), 1<<20)
		if err != io.EOF || len(entries) != 1 || strings.Join(warnings, "; ") != c.want {
			t.Errorf("%d entries, %v, %q, want %q", len(entries), err, warnings, c.want)
		}
	}
}

// A damaged end of the compressed data shows, though the archive was whole.
func TestReadsToTheEnd(t *testing.T) {
	need.Tools(t, "gzip")
	path := writeFile(t, archive(t, member{Header: tar.Header{Name: "etc/a"}, content: strings.Repeat("abc", 10_000)}))
	tool(t, "gzip", path)
	data, err := os.ReadFile(path + ".gz")
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-6] ^= 1
	if _, _, _, err = readAll(writeFile(t, data), 1<<20); err == nil || !strings.Contains(err.Error(), "its gzip data is damaged") {
		t.Errorf("got %v", err)
	}
}

// What archive/tar reads of an archive is what we read.
func FuzzTar(f *testing.F) {
	f.Add(archive(f, member{Header: tar.Header{Name: "etc/a"}, content: "abc"}, member{Header: tar.Header{Name: "etc/" + strings.Repeat("b", 300)}}))
	f.Add(archive(f, member{Header: tar.Header{Name: "a", PAXRecords: map[string]string{"SCHILY.acl.access": "user::rw-,user:7:r--,group::r--,other::---", "LIBARCHIVE.xattr.a": "AGI"}}}))
	f.Add(append(header(func(b []byte) {
		b[156] = 'S'
		copy(b[386:], "00000001000\x0000000001000\x00")
		copy(b[483:], "00000003000\x00")
	}), make([]byte, 2048)...))
	for _, options := range []string{"--format=gnu -S", "--format=pax -S", "--format=pax -S --sparse-version=0.0", "--format=v7"} {
		dir := f.TempDir()
		script := "truncate -s 200K s; printf x | dd of=s bs=1 seek=50000 conv=notrunc status=none; mkdir d; ln -s d l; ln s h; tar -cf $1 " + options + " d l s h"
		cmd := exec.Command("sh", "-ec", script, "sh", dir+"/a.tar")
		cmd.Dir = dir
		if cmd.Run() == nil {
			data, err := os.ReadFile(dir + "/a.tar")
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	path := filepath.Join(f.TempDir(), "fuzzed")
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<20 {
			t.Skip()
		}
		path := fmt.Sprintf("%s.%d", path, os.Getpid())
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if archive, err := isPlain(path); err != nil || !archive {
			return
		}
		entries, contents, _, err := readAll(path, 4<<20)
		if err != io.EOF {
			return
		}
		r := tar.NewReader(bytes.NewReader(data))
		for i := 0; i < len(entries); i++ {
			h, err := r.Next()
			if err != nil {
				t.Fatalf("archive/tar: %v, where we read %q", err, entries[i].Name)
			}
			if h.Typeflag == typeVolume || h.Typeflag == tar.TypeXGlobalHeader {
				i--
				continue
			}
			if relative(h.Name) != entries[i].Name {
				t.Fatalf("%q, archive/tar has %q", entries[i].Name, h.Name)
			}
			if entries[i].Type != tree.Regular || h.Size > 1<<20 {
				continue
			}
			content, err := io.ReadAll(r)
			if want := strings.ReplaceAll(string(content), "\x00", ""); err != nil || strings.ReplaceAll(contents[i], "\x00", "") != want {
				t.Fatalf("%q: %d bytes, archive/tar has %d, %v", h.Name, len(contents[i]), len(content), err)
			}
		}
	})
}

func isPlain(path string) (bool, error) {
	a, err := Open(path)
	if err != nil {
		return false, err
	}
	return a.Compression() == "", a.Close()
}

// FuzzUnpack unpacks archives: nothing beside the directory changes.
func FuzzUnpack(f *testing.F) {
	f.Add("a\n../b", []byte("02"), "../etc")
	f.Add("etc\netc/passwd", []byte("20"), "../../etc")
	f.Add("a\na/b\na/b\nx", []byte("5213"), "a/b")
	f.Fuzz(func(t *testing.T, names string, kinds []byte, target string) {
		if os.Getuid() != 0 || len(names) > 2000 {
			t.Skip()
		}
		var data []byte
		for i, name := range strings.SplitN(names, "\n", 16) {
			kind := byte('0')
			if i < len(kinds) {
				kind = kinds[i]
			}
			data = append(data, header(func(b []byte) { clear(b[:100]); copy(b[:100], name); copy(b[157:257], target); b[156] = kind })...)
		}
		path := writeFile(t, append(data, make([]byte, 1024)...))
		dir, unchanged := inside(t)
		defer unchanged()
		a, err := Open(path)
		if err != nil {
			return
		}
		defer a.Close()
		if _, err := unpack.Into(context.Background(), dir, a, unpack.Options{}); err != nil && strings.ContainsAny(err.Error(), "\n\x00") {
			t.Errorf("not one line: %q", err)
		}
	})
}
