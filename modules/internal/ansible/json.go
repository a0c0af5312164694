// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"encoding/json"
	"strings"
)

// maxJSONDepth is how deeply encoding/json lets values nest.
const maxJSONDepth = 10000

// readJSON reads one JSON value, as encoding/json does with numbers as json.Number. It is for long lists of arguments, which it
// reads once instead of twice, with their text as the memory of their strings. It gives false where the text is no JSON value:
// encoding/json says why.
func readJSON(text string) (any, bool) {
	r := &jsonReader{text: text}

	value, ok := r.value(0)
	if !ok || r.next() != 0 || r.at < len(text) {
		return nil, false
	}

	return value, true
}

// jsonReader is at a place in a text.
type jsonReader struct {
	text string
	at   int
}

// next skips white space and gives the byte after it, 0 at the end of the text.
func (r *jsonReader) next() byte {
	for r.at < len(r.text) {
		switch c := r.text[r.at]; c {
		case ' ', '\t', '\n', '\r':
			r.at++
		default:
			return c
		}
	}

	return 0
}

// take goes over the next byte if it is that one.
func (r *jsonReader) take(c byte) bool {
	if r.next() != c {
		return false
	}

	r.at++

	return true
}

func (r *jsonReader) value(depth int) (any, bool) {
	switch c := r.next(); c {
	case '{', '[':
		if depth == maxJSONDepth {
			return nil, false
		}

		if c == '[' {
			return r.list(depth + 1)
		}

		return r.dict(depth + 1)
	case '"':
		return r.string()
	case 't':
		return true, r.word("true")
	case 'f':
		return false, r.word("false")
	case 'n':
		return nil, r.word("null")
	default:
		return r.number()
	}
}

func (r *jsonReader) word(word string) bool {
	found := strings.HasPrefix(r.text[r.at:], word)
	r.at += len(word)

	return found
}

func (r *jsonReader) number() (any, bool) {
	begin := r.at
	for r.at < len(r.text) && strings.IndexByte("+-.0123456789Ee", r.text[r.at]) >= 0 {
		r.at++
	}

	digits := r.text[begin:r.at]

	return json.Number(digits), json.Valid([]byte(digits))
}

func (r *jsonReader) string() (string, bool) {
	begin := r.at + 1

	for at := begin; at < len(r.text); at++ {
		switch c := r.text[at]; {
		case c == '"':
			r.at = at + 1

			return r.text[begin:at], true
		case c == '\\' || c < ' ' || c > '~':
			return r.escaped(at)
		}
	}

	return "", false
}

// escaped reads a string that may be other than it is written: from at on.
func (r *jsonReader) escaped(at int) (string, bool) {
	for at < len(r.text) && r.text[at] != '"' {
		if r.text[at] == '\\' {
			at++
		}

		at++
	}

	if at >= len(r.text) {
		return "", false
	}

	var text string

	err := json.Unmarshal([]byte(r.text[r.at:at+1]), &text)
	r.at = at + 1

	return text, err == nil
}

func (r *jsonReader) list(depth int) (any, bool) {
	r.at++

	list := []any{}

	if r.take(']') {
		return list, true
	}

	for {
		item, ok := r.value(depth)
		if !ok {
			return nil, false
		}

		list = append(list, item)

		if !r.take(',') {
			return list, r.take(']')
		}
	}
}

func (r *jsonReader) dict(depth int) (any, bool) {
	r.at++

	dict := map[string]any{}

	if r.take('}') {
		return dict, true
	}

	for {
		if r.next() != '"' {
			return nil, false
		}

		key, ok := r.string()
		if !ok || !r.take(':') {
			return nil, false
		}

		dict[key], ok = r.value(depth)
		if !ok {
			return nil, false
		}

		if !r.take(',') {
			return dict, r.take('}')
		}
	}
}
