package settings

import "strings"

// meant is the known setting that a name looks like a slip of, if any: one
// within two insertions, deletions, substitutions or swaps of neighbours.
func meant(name string) string {
	best, closest := "", 3
	for _, k := range known() {
		if d := distance(strings.ToUpper(name), k.name); d < closest {
			best, closest = k.name, d
		}
	}
	return best
}

// distance is the optimal string alignment distance of two names.
func distance(a, b string) int {
	if len(a) > len(b)+2 || len(b) > len(a)+2 {
		return 3 // at least; and bounds the work for a long name
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
