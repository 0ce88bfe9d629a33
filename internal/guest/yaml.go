package guest

import (
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// A guest's YAML is read as nodes and never into maps or structs: to check that
// keys differ takes the square of their number, and a guest may have many.

// ParseYAML returns the first value of a document, nil where it cannot be read.
func ParseYAML(text []byte) *yaml.Node {
	var document yaml.Node
	if yaml.Unmarshal(text, &document) != nil || len(document.Content) != 1 {
		return nil
	}
	return document.Content[0]
}

// YAMLValue goes down mappings by keys, of which the last of a name counts, and
// returns what is there, or nil.
func YAMLValue(node *yaml.Node, keys ...string) *yaml.Node {
	for _, key := range keys {
		node = value(resolve(node), key)
	}
	return resolve(node)
}

// resolve follows an alias; what that leads to is none.
func resolve(node *yaml.Node) *yaml.Node {
	if node != nil && node.Kind == yaml.AliasNode {
		return node.Alias
	}
	return node
}

func value(mapping *yaml.Node, key string) *yaml.Node {
	if mapping == nil || mapping.Kind != yaml.MappingNode {
		return nil
	}
	for n := len(mapping.Content) - 2; n >= 0; n -= 2 {
		if mapping.Content[n].Value == key {
			return mapping.Content[n+1]
		}
	}
	return nil
}

// editYAMLScalars replaces the values of keys, at any depth, by what edit makes
// of them, and leaves all else of a text as it is to the byte. Values are left
// that are written otherwise than as themselves, in quotes or not, and those in
// lines that are too long to be about a name.
func editYAMLScalars(text string, keys []string, edit func(value string) string) string {
	var lines []string
	for line := range strings.Lines(text) {
		lines = append(lines, line)
	}
	var out strings.Builder
	line, at := 0, 0 // what has been written
	eachScalar(ParseYAML([]byte(text)), keys, func(node *yaml.Node) {
		start, ok := scalarStart(lines, node)
		if !ok || node.Line-1 < line || node.Line-1 == line && start < at {
			return
		}
		for ; line < node.Line-1; line, at = line+1, 0 {
			out.WriteString(lines[line][at:])
		}
		out.WriteString(lines[line][at:start] + edit(node.Value))
		at = start + len(node.Value)
	})
	for ; line < len(lines); line, at = line+1, 0 {
		out.WriteString(lines[line][at:])
	}
	return out.String()
}

// eachScalar visits the scalars that are values of keys.
func eachScalar(node *yaml.Node, keys []string, visit func(*yaml.Node)) {
	if node == nil {
		return
	}
	for n, child := range node.Content {
		isValue := node.Kind == yaml.MappingNode && n%2 == 1
		if isValue && child.Kind == yaml.ScalarNode && slices.Contains(keys, node.Content[n-1].Value) {
			visit(child)
			continue
		}
		eachScalar(child, keys, visit)
	}
}

// scalarStart finds the byte of a scalar's line at which its value stands.
func scalarStart(lines []string, node *yaml.Node) (start int, ok bool) {
	if node.Line < 1 || node.Line > len(lines) || len(lines[node.Line-1]) > maxHostsLine {
		return 0, false
	}
	line := lines[node.Line-1]
	for range node.Column - 1 { // which counts characters
		_, length := utf8.DecodeRuneInString(line[start:])
		start += length
	}
	if rest := line[start:]; rest != "" && (rest[0] == '"' || rest[0] == '\'') {
		start++
	}
	return start, strings.HasPrefix(line[start:], node.Value)
}
