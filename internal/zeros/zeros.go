// Package zeros tells bytes that are all zero from others.
package zeros

import "bytes"

var page [4096]byte

// Only tells whether all bytes are zero. It is true of none.
func Only(b []byte) bool {
	for len(b) > len(page) {
		if !bytes.Equal(b[:len(page)], page[:]) {
			return false
		}
		b = b[len(page):]
	}
	return bytes.Equal(b, page[:len(b)])
}
