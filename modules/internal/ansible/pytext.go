// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Arguments are handled as plain values: nil, bool, string, int64, *big.Int (only what int64 cannot hold), float64
// (finite), nonFinite, []any and map[string]any. They stand for Python's None, bool, str, int, float, list and dict,
// and this file writes them as Python does: error texts and the conversion to str show Python's forms to users.

// Limits of what is accepted; Python's own are about the same (its recursion limit, its limit for digits of an int).
const (
	maxDepth  = 200
	maxDigits = 4300
)

// nonFinite is a float that JSON has no number for. It is encoded as text.
type nonFinite float64

// MarshalJSON writes "NaN", "Infinity" or "-Infinity".
func (f nonFinite) MarshalJSON() ([]byte, error) {
	return json.Marshal(f.name())
}

func (f nonFinite) name() string {
	switch {
	case math.IsNaN(float64(f)):
		return "NaN"
	case f > 0:
		return "Infinity"
	default:
		return "-Infinity"
	}
}

// floatValue gives the plain value of a float.
func floatValue(f float64) any {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return nonFinite(f)
	}

	return f
}

// intValue gives the plain value of an integer.
func intValue(i *big.Int) any {
	if i.IsInt64() {
		return i.Int64()
	}

	return i
}

// plain makes plain values of decoded JSON (numbers as json.Number). Lists and dicts are the given ones, with what is in them
// replaced. Its errors start with a verb: the caller puts the name of the argument before them.
func plain(value any, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nests deeper than %d levels", maxDepth)
	}

	switch v := value.(type) {
	case nil, bool, int64, *big.Int, nonFinite:
		return value, nil
	case string:
		if utf8.ValidString(v) {
			return value, nil
		}

		return validText(v), nil
	case int:
		return int64(v), nil
	case float64:
		return floatValue(v), nil
	case json.Number:
		return plainNumber(v.String())
	case []any:
		return value, plainList(v, depth)
	case map[string]any:
		return value, plainDict(v, depth)
	default:
		return nil, fmt.Errorf("holds a Go value of type %T, which is not decoded JSON", value)
	}
}

func plainNumber(text string) (any, error) {
	if len(text) > maxDigits {
		return nil, fmt.Errorf("holds a number of %d characters, more than %d", len(text), maxDigits)
	}

	if i, ok := new(big.Int).SetString(text, 10); ok {
		return intValue(i), nil
	}

	f, err := strconv.ParseFloat(text, 64)
	if err != nil && !math.IsInf(f, 0) {
		return nil, fmt.Errorf("holds %q, which is not a number", text)
	}

	return floatValue(f), nil
}

func plainList(list []any, depth int) error {
	for i, item := range list {
		value, err := plain(item, depth+1)
		if err != nil {
			return err
		}

		list[i] = value
	}

	return nil
}

func plainDict(dict map[string]any, depth int) error {
	var invalid []string

	for key, item := range dict {
		value, err := plain(item, depth+1)
		if err != nil {
			return err
		}

		dict[key] = value

		if !utf8.ValidString(key) {
			invalid = append(invalid, key)
		}
	}

	for _, key := range invalid {
		value := dict[key]
		delete(dict, key)
		dict[validText(key)] = value
	}

	return nil
}

// deepCopy copies the lists and dicts of a value.
func deepCopy(value any) any {
	switch v := value.(type) {
	case []any:
		list := make([]any, len(v))
		for i, item := range v {
			list[i] = deepCopy(item)
		}

		return list
	case map[string]any:
		dict := make(map[string]any, len(v))
		for key, item := range v {
			dict[key] = deepCopy(item)
		}

		return dict
	default:
		return value
	}
}

// validText puts U+FFFD in the place of every byte that is not UTF-8, as encoding/json does.
func validText(text string) string {
	if utf8.ValidString(text) {
		return text
	}

	return string([]rune(text))
}

// typeName is the name of a plain value's Python type.
func typeName(value any) string {
	switch value.(type) {
	case nil:
		return "NoneType"
	case bool:
		return "bool"
	case string:
		return "str"
	case int64, *big.Int:
		return "int"
	case float64, nonFinite:
		return "float"
	case []any:
		return "list"
	default:
		return "dict"
	}
}

// className is how Python writes the type itself.
func className(value any) string {
	return "<class '" + typeName(value) + "'>"
}

// pyText is Python's str() of a plain value.
func pyText(value any) string {
	if text, ok := value.(string); ok {
		return text
	}

	return pyRepr(value)
}

// pyRepr is Python's repr() of a plain value. Keys are sorted: their order is lost in a Go map.
func pyRepr(value any) string {
	switch v := value.(type) {
	case nil:
		return "None"
	case bool:
		if v {
			return "True"
		}

		return "False"
	case string:
		return pyQuote(v)
	case nonFinite:
		return map[string]string{"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}[v.name()]
	}

	return composite(value, pyRepr, pyQuote)
}

// pyJSON is Python's json.dumps() of a plain value: ASCII only, a space after commas and colons, keys sorted.
func pyJSON(value any) string {
	switch v := value.(type) {
	case nil:
		return "null"
	case bool:
		return strconv.FormatBool(v)
	case string:
		return jsonQuote(v)
	case nonFinite:
		return v.name()
	}

	return composite(value, pyJSON, jsonQuote)
}

// composite writes what Python's repr() and json.dumps() write alike: numbers, lists and dicts.
func composite(value any, item func(any) string, key func(string) string) string {
	var parts []string

	switch v := value.(type) {
	case int64:
		return strconv.FormatInt(v, 10)
	case *big.Int:
		return v.String()
	case float64:
		return pyFloat(v)
	case []any:
		for _, element := range v {
			parts = append(parts, item(element))
		}

		return "[" + strings.Join(parts, ", ") + "]"
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			parts = append(parts, key(name)+": "+item(v[name]))
		}

		return "{" + strings.Join(parts, ", ") + "}"
	default:
		return fmt.Sprintf("<%T>", value) // plain lets nothing else in
	}
}

// pyFloat writes the shortest digits that give the same float, with an exponent where Python uses one.
func pyFloat(f float64) string {
	text := strconv.FormatFloat(f, 'e', -1, 64)

	exponent, err := strconv.Atoi(text[strings.IndexByte(text, 'e')+1:])
	if err != nil || exponent < -4 || exponent >= 16 {
		return text
	}

	text = strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(text, ".") {
		text += ".0"
	}

	return text
}

// pyQuote writes a Python string literal: single quotes, unless only those occur in the text.
func pyQuote(text string) string {
	quote := '\''
	if strings.Contains(text, "'") && !strings.Contains(text, `"`) {
		quote = '"'
	}

	var out strings.Builder

	out.WriteRune(quote)

	for _, r := range text {
		switch {
		case r == quote || r == '\\':
			out.WriteRune('\\')
			out.WriteRune(r)
		case unicode.IsPrint(r):
			out.WriteRune(r)
		default:
			out.WriteString(pyEscape(r))
		}
	}

	out.WriteRune(quote)

	return out.String()
}

func pyEscape(r rune) string {
	switch {
	case r == '\n':
		return `\n`
	case r == '\r':
		return `\r`
	case r == '\t':
		return `\t`
	case r < 0x100:
		return fmt.Sprintf(`\x%02x`, r)
	case r < 0x10000:
		return fmt.Sprintf(`\u%04x`, r)
	default:
		return fmt.Sprintf(`\U%08x`, r)
	}
}

// jsonQuote writes a JSON string in ASCII, as Python does.
func jsonQuote(text string) string {
	var out strings.Builder

	out.WriteByte('"')

	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			out.WriteByte('\\')
			out.WriteRune(r)
		case r >= ' ' && r <= '~':
			out.WriteRune(r)
		default:
			out.WriteString(jsonEscape(r))
		}
	}

	out.WriteByte('"')

	return out.String()
}

func jsonEscape(r rune) string {
	if i := strings.IndexRune("\b\f\n\r\t", r); i >= 0 {
		return `\` + "bfnrt"[i:i+1]
	}

	if r >= 0x10000 {
		r -= 0x10000

		return fmt.Sprintf(`\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
	}

	return fmt.Sprintf(`\u%04x`, r)
}

// pySpace is what Python's str.strip() removes.
func pySpace(r rune) bool {
	return unicode.IsSpace(r) || r >= 0x1c && r <= 0x1f
}

// pyEqual is Python's == of plain values: 1, 1.0 and True are equal, "1" is not.
func pyEqual(a, b any) bool {
	if text, ok := a.(string); ok {
		other, ok := b.(string)

		return ok && text == other
	}

	x, isNumber := ratOf(a)
	y, alsoNumber := ratOf(b)

	if isNumber || alsoNumber {
		return isNumber && alsoNumber && x.Cmp(y) == 0
	}

	return pyRepr(a) == pyRepr(b)
}

func ratOf(value any) (*big.Rat, bool) {
	switch v := value.(type) {
	case bool:
		if v {
			return big.NewRat(1, 1), true
		}

		return new(big.Rat), true
	case int64:
		return new(big.Rat).SetInt64(v), true
	case *big.Int:
		return new(big.Rat).SetInt(v), true
	case float64:
		return new(big.Rat).SetFloat64(v), true
	default:
		return nil, false
	}
}
