package guest

import "slices"

// Access is who may log into a guest that has nothing else to tell it, and files
// it is to have. A zero field changes nothing.
type Access struct {
	RootHash string   // a hash of crypt(5), see Hash
	User     string   // made where the guest has none of that name
	UserHash string   // of User
	Keys     []string // lines of an authorized_keys file, of User, or of root where User is empty
	Files    []File   // written last, so that User may own them
}

// GrantAccess does what a says, without running a program of the guest. What was
// done is returned, a line a change, also where an error ended it; besides there
// are lines for what the guest has against it, as sshd's PermitRootLogin, which
// is left as it is. No line has a password, a hash, a key but for its
// fingerprint and comment, or what is in a file.
//
// A user that is made, and has keys and no password, may use sudo without one,
// as the default user of cloud-init may.
func (r *Root) GrantAccess(a Access) ([]string, error) {
	g := &grant{root: r, access: a}
	for _, step := range []func() error{g.user, g.passwords, g.keys, g.files} {
		if err := step(); err != nil {
			return g.lines, err
		}
	}
	g.sshd()
	return g.lines, nil
}

type grant struct {
	root   *Root
	access Access
	lines  []string
}

// done keeps the lines of a step; two steps may find the same hindrance.
func (g *grant) done(lines []string, err error) error {
	for _, line := range lines {
		if !slices.Contains(g.lines, line) {
			g.lines = append(g.lines, line)
		}
	}
	return err
}

func (g *grant) user() error {
	if g.access.User == "" {
		return nil
	}
	return g.done(g.root.EnsureUser(g.access.User, g.access.UserHash == "" && len(g.access.Keys) > 0))
}

func (g *grant) passwords() error {
	for _, p := range []struct{ user, hash string }{{"root", g.access.RootHash}, {g.access.User, g.access.UserHash}} {
		if p.user == "" || p.hash == "" {
			continue
		}
		if err := g.done(g.root.SetPassword(p.user, p.hash)); err != nil {
			return err
		}
	}
	return nil
}

// keyUser is the user who gets the keys.
func (g *grant) keyUser() string {
	if g.access.User != "" {
		return g.access.User
	}
	return "root"
}

func (g *grant) keys() error {
	if len(g.access.Keys) == 0 {
		return nil
	}
	return g.done(g.root.AuthorizeKeys(g.keyUser(), g.access.Keys))
}

func (g *grant) files() error {
	for _, file := range g.access.Files {
		line, err := g.root.PutFile(file)
		if err != nil {
			return err
		}
		g.lines = append(g.lines, line)
	}
	return nil
}

// sshd says what the guest's sshd makes of it.
func (g *grant) sshd() {
	rootKeys := len(g.access.Keys) > 0 && g.keyUser() == "root"
	rootPassword := g.access.RootHash != "" || g.access.User == "root" && g.access.UserHash != ""
	userPassword := g.access.UserHash != "" && g.access.User != "root"
	if len(g.access.Keys) == 0 && !rootPassword && !userPassword {
		return
	}
	if !g.root.hasSSHServer() {
		g.lines = append(g.lines, "the guest has no OpenSSH server")
		return
	}
	said := g.root.sshdConfig()
	if rootKeys || rootPassword {
		g.lines = append(g.lines, said.rootLogin(rootPassword)...)
	}
	if userPassword && !rootPassword {
		g.lines = append(g.lines, said.passwords(true)...)
	}
	g.lines = append(g.lines, said.users()...)
}
