package guest

import (
	"crypto/rand"
	"crypto/sha512"
	"errors"
	"fmt"
	"strings"

	"github.com/go-crypt/x/crypt"
)

// How Hash makes a hash. The rounds cost a login some tens of milliseconds; the
// default of crypt(5), 5000, is of 2007.
const (
	hashRounds  = 100000
	saltLength  = 16
	maxPassword = 256 // bytes: musl takes no more

	saltLetters = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// Hash makes a hash of a password that every Linux guest knows, with a salt of
// its own: sha512crypt of crypt(5), https://www.akkadia.org/drepper/SHA-crypt.txt.
// A password is one line of at most 256 bytes.
func Hash(password string) (string, error) {
	if password == "" || len(password) > maxPassword || strings.ContainsAny(password, "\x00\n\r") {
		return "", errors.New("cannot hash the password: want one line of 1 to 256 bytes")
	}
	salt := make([]byte, saltLength)
	rand.Read(salt) // never fails
	for i, b := range salt {
		salt[i] = saltLetters[b%64]
	}
	return sha512crypt(password, string(salt), hashRounds), nil
}

func sha512crypt(password, salt string, rounds int) string {
	key := crypt.KeySHACrypt(sha512.New, []byte(password), []byte(salt), rounds)
	return fmt.Sprintf("$6$rounds=%d$%s$%s", rounds, salt, key)
}
