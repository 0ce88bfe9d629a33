package zeros

import "testing"

func TestOnly(t *testing.T) {
	for _, n := range []int{0, 1, 4095, 4096, 4097, 8192, 10000} {
		b := make([]byte, n)
		if !Only(b) {
			t.Errorf("%d zeros are not taken for zeros", n)
		}
		for i := range b {
			b[i] = 1
			if Only(b) {
				t.Errorf("byte %d of %d is not looked at", i, n)
			}
			b[i] = 0
		}
	}
}
