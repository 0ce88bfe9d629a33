package shellfile

import "strings"

// bashOwn are variables whose value or effect bash itself provides, so that an
// assignment does not do, or a use does not give, what a file of data says.
var bashOwn = map[string]bool{
	"_": true, "COMP_CWORD": true, "COMP_LINE": true, "COMP_POINT": true, "COMP_TYPE": true, "COMP_KEY": true,
	"COMP_WORDBREAKS": true, "COMP_WORDS": true, "COLUMNS": true, "COPROC": true, "DIRSTACK": true,
	"EPOCHREALTIME": true, "EPOCHSECONDS": true, "EUID": true, "FUNCNAME": true, "FUNCNEST": true,
	"GROUPS": true, "HISTCMD": true, "HOSTTYPE": true, "IFS": true, "LINENO": true, "LINES": true,
	"MACHTYPE": true, "MAPFILE": true, "OLDPWD": true, "OPTARG": true, "OPTERR": true, "OPTIND": true,
	"OSTYPE": true, "PIPESTATUS": true, "POSIXLY_CORRECT": true, "PPID": true, "PS1": true, "PS2": true,
	"PS3": true, "PS4": true, "PWD": true, "RANDOM": true, "READLINE_LINE": true, "READLINE_POINT": true,
	"REPLY": true, "SECONDS": true, "SHELLOPTS": true, "SHLVL": true, "SRANDOM": true, "UID": true,
}

// ofBash tells whether a variable is bash's in reading and in writing.
func ofBash(name string) bool { return bashOwn[name] || strings.HasPrefix(name, "BASH") }

// filledByBash tells whether bash gives a variable a value of its own where
// the environment has none: the machine's name, the user's shell.
func filledByBash(name string) bool {
	switch name {
	case "HOSTNAME", "PATH", "SHELL", "TERM":
		return true
	}
	return false
}
