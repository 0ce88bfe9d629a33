// Command write makes the images of package corpus in a directory, and prints
// what has to become of each on a disk of corpus.DiskMiB.
package main

import (
	"fmt"
	"os"
	"strings"

	"ganeti-instance-image/test/corpus"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: write DIRECTORY")
		os.Exit(2)
	}
	if err := corpus.Write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, c := range corpus.Cases() {
		fmt.Printf("%s\texit code %d\t%s\n", corpus.FileName(c.Name), c.Code, strings.Join(c.Words, ", "))
	}
	for _, g := range corpus.Goods() {
		fmt.Printf("%s\tdeployed\n", corpus.FileName(g.Name))
	}
}
