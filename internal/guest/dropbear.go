package guest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"fmt"
	"math/big"
	"slices"

	"golang.org/x/crypto/ssh"
)

var dropbears = []string{"/usr/sbin/dropbear", "/sbin/dropbear", "/usr/bin/dropbear", "/usr/local/sbin/dropbear"}

func (r *Root) hasDropbear() bool { return slices.ContainsFunc(dropbears, r.Exists) }

// dropbear replaces the keys of the other SSH server that small systems have.
// Those in an initramfs stay as they are.
func (k *keyMaker) dropbear() error {
	if err := k.root.MkdirAll("/etc/dropbear", 0o755); err != nil {
		return err
	}
	if err := k.remove("/etc/dropbear/dropbear_*_host_key*"); err != nil {
		return err
	}
	for _, kind := range hostKeys {
		file := "/etc/dropbear/dropbear_" + kind.name + "_host_key"
		key, err := kind.generate()
		if err != nil {
			return fmt.Errorf("cannot generate the host key %s: %w", file, err)
		}
		public, err := ssh.NewPublicKey(key.Public())
		if err != nil {
			return fmt.Errorf("cannot encode the host key %s: %w", file, err)
		}
		data, err := dropbearKey(key)
		if err != nil {
			return fmt.Errorf("cannot encode the host key %s: %w", file, err)
		}
		if err := k.root.WriteFile(file, data, 0o600); err != nil {
			return err
		}
		k.changes = append(k.changes, "made "+file+" "+ssh.FingerprintSHA256(public))
	}
	return nil
}

// dropbearKey is a private key as Dropbear's signkey.c reads it: the name of its
// algorithm, and its numbers in the encodings of RFC 4251.
func dropbearKey(key crypto.Signer) ([]byte, error) {
	switch key := key.(type) {
	case *rsa.PrivateKey:
		return ssh.Marshal(struct {
			Name          string
			E, N, D, P, Q *big.Int
		}{ssh.KeyAlgoRSA, big.NewInt(int64(key.E)), key.N, key.D, key.Primes[0], key.Primes[1]}), nil
	case *ecdsa.PrivateKey:
		point, err := key.PublicKey.Bytes()
		if err != nil {
			return nil, err
		}
		scalar, err := key.Bytes()
		if err != nil {
			return nil, err
		}
		return ssh.Marshal(struct {
			Name, Curve string
			Point       []byte
			D           *big.Int
		}{ssh.KeyAlgoECDSA256, "nistp256", point, new(big.Int).SetBytes(scalar)}), nil
	case ed25519.PrivateKey:
		return ssh.Marshal(struct {
			Name string
			Key  []byte
		}{ssh.KeyAlgoED25519, key}), nil
	}
	return nil, fmt.Errorf("no key of Dropbear is a %T", key)
}
