package layout

import (
	"flag"
	"fmt"
	"os"
	"testing"
)

// TestMain lets many tests run at once whatever the processors are: sgdisk
// sleeps for a second after each write.
func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.fuzz").Value.String() == "" { // its workers are busy ones
		if err := flag.Set("test.parallel", "16"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	m.Run()
}
