package guest

import "go.yaml.in/yaml/v3"

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
