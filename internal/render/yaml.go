package render

import (
	"bytes"

	"go.yaml.in/yaml/v3"
)

// Quoted is a string that is always written in quotes: to a reader of YAML 1.1
// 11:22:33:44:55:10 is a number, and "no" is not a word.
type Quoted string

// MarshalYAML makes the encoder quote the string.
func (q Quoted) MarshalYAML() (any, error) {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.DoubleQuotedStyle, Value: string(q)}, nil
}

// QuoteAll makes quoted strings of what text says of each element.
func QuoteAll[T any](list []T, text func(T) string) []Quoted {
	var out []Quoted
	for _, v := range list {
		out = append(out, Quoted(text(v)))
	}
	return out
}

// Same is the text of a string, for QuoteAll.
func Same(text string) string { return text }

// EncodeYAML writes a document, indented by two, behind a header.
func EncodeYAML(header string, v any) ([]byte, error) {
	out := bytes.NewBufferString(header)
	e := yaml.NewEncoder(out)
	e.SetIndent(2)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
