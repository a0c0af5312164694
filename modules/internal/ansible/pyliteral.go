// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"errors"
	"math"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// errLiteral has no details: core's error text for a dict has none either.
var errLiteral = errors.New("not a Python literal")

// literal reads a Python literal: what a templated dict looks like when it arrives as text, such as "{'a': [1, True]}".
// Strings, numbers, True, False, None, lists, tuples (read as lists) and dicts are known. Sets, bytes, complex numbers
// and \N{...} are not: no argument needs them. Keys that are not text become text as in JSON.
type literal struct {
	rest  string
	depth int
}

// parseLiteral reads the whole text as one literal.
func parseLiteral(text string) (any, error) {
	p := &literal{rest: text}

	value, err := p.value()
	if err != nil {
		return nil, err
	}

	p.space()

	if p.rest != "" {
		return nil, errLiteral
	}

	return value, nil
}

// literalGap is what may stand between two tokens inside brackets.
var literalGap = regexp.MustCompile(`^(?:[ \t\f\r\n]|\\\r?\n|#[^\r\n]*)+`)

func (p *literal) space() {
	p.rest = p.rest[len(literalGap.FindString(p.rest)):]
}

// take skips white space and then the token, if it comes next.
func (p *literal) take(token string) bool {
	p.space()

	rest, found := strings.CutPrefix(p.rest, token)
	p.rest = rest

	return found
}

func (p *literal) value() (any, error) {
	p.depth++
	defer func() { p.depth-- }()

	if p.depth > maxDepth {
		return nil, errLiteral
	}

	switch {
	case p.take("{"):
		return p.dict()
	case p.take("["):
		list, _, err := p.list("]")

		return list, err
	case p.take("("):
		return p.tuple()
	default:
		return p.scalar()
	}
}

func (p *literal) dict() (any, error) {
	dict := map[string]any{}

	for !p.take("}") {
		key, err := p.value()
		if err != nil || !p.take(":") {
			return nil, errLiteral
		}

		name, err := keyText(key)
		if err != nil {
			return nil, err
		}

		dict[name], err = p.value()
		if err != nil {
			return nil, err
		}

		if !p.take(",") {
			if !p.take("}") {
				return nil, errLiteral
			}

			break
		}
	}

	return dict, nil
}

// keyText is the key that JSON has for a Python one.
func keyText(key any) (string, error) {
	switch v := key.(type) {
	case string:
		return v, nil
	case []any, map[string]any:
		return "", errLiteral
	default:
		return pyJSON(v), nil
	}
}

// list reads up to the closing bracket, and tells whether there was a comma: "(1)" is not a tuple.
func (p *literal) list(closing string) (list []any, comma bool, err error) {
	list = []any{}

	for !p.take(closing) {
		item, err := p.value()
		if err != nil {
			return nil, false, err
		}

		list = append(list, item)

		if !p.take(",") {
			if !p.take(closing) {
				return nil, false, errLiteral
			}

			break
		}

		comma = true
	}

	return list, comma, nil
}

func (p *literal) tuple() (any, error) {
	list, comma, err := p.list(")")
	if err == nil && len(list) == 1 && !comma {
		return list[0], nil
	}

	return list, err
}

var (
	literalString = regexp.MustCompile(`^(?:[rR]|[uU])?['"]`)
	literalName   = regexp.MustCompile(`^(?:True|False|None)\b`)
	literalNumber = regexp.MustCompile(`^[+-]?[ \t]*(0[xX][0-9A-Za-z_]*|[0-9.](?:[eE][+-][0-9]|[0-9A-Za-z_.])*)`)
)

func (p *literal) scalar() (any, error) {
	p.space()

	if literalString.MatchString(p.rest) {
		return p.strings()
	}

	if name := literalName.FindString(p.rest); name != "" {
		p.rest = p.rest[len(name):]

		return map[string]any{"True": true, "False": false}[name], nil
	}

	match := literalNumber.FindStringSubmatch(p.rest)
	if match == nil {
		return nil, errLiteral
	}

	negative := p.rest[0] == '-'
	p.rest = p.rest[len(match[0]):]

	return numberLiteral(match[1], negative)
}

var (
	intLiteral   = regexp.MustCompile(`^(?:0(?:_?0)*|[1-9](?:_?[0-9])*|0[xX](?:_?[0-9a-fA-F])+|0[oO](?:_?[0-7])+|0[bB](?:_?[01])+)$`)
	floatLiteral = regexp.MustCompile(`^(?:[0-9](?:_?[0-9])*\.?(?:[0-9](?:_?[0-9])*)?|\.[0-9](?:_?[0-9])*)(?:[eE][+-]?[0-9](?:_?[0-9])*)?$`)
)

func numberLiteral(text string, negative bool) (any, error) {
	if len(text) > maxDigits {
		return nil, errLiteral
	}

	if intLiteral.MatchString(text) {
		if strings.Trim(text, "0_") == "" {
			return int64(0), nil // base 0 would take "00" for an octal number
		}

		i, ok := new(big.Int).SetString(text, 0)
		if !ok {
			return nil, errLiteral
		}

		if negative {
			i.Neg(i)
		}

		return intValue(i), nil
	}

	if !floatLiteral.MatchString(text) || !strings.ContainsAny(text, ".eE") { // "010" is neither
		return nil, errLiteral
	}

	f, err := strconv.ParseFloat(strings.ReplaceAll(text, "_", ""), 64)
	if err != nil && !math.IsInf(f, 0) {
		return nil, errLiteral
	}

	if negative {
		f = -f
	}

	return floatValue(f), nil
}

// strings reads one or more string literals that follow each other; Python joins them.
func (p *literal) strings() (any, error) {
	var out strings.Builder

	for {
		prefix := literalString.FindString(p.rest)
		if prefix == "" {
			return out.String(), nil
		}

		quote := prefix[len(prefix)-1:]
		raw := len(prefix) == 2 && strings.EqualFold(prefix[:1], "r")
		p.rest = p.rest[len(prefix):]

		if strings.HasPrefix(p.rest, quote+quote) {
			p.rest = p.rest[2:]
			quote += quote + quote
		}

		err := p.string(&out, quote, raw)
		if err != nil {
			return nil, err
		}

		p.space()
	}
}

// string reads one string up to the closing quote.
func (p *literal) string(out *strings.Builder, quote string, raw bool) error {
	for p.rest != "" {
		rest, closed := strings.CutPrefix(p.rest, quote)
		if closed {
			p.rest = rest

			return nil
		}

		r, size := utf8.DecodeRuneInString(p.rest)

		switch {
		case r == '\\':
			err := p.escape(out, raw)
			if err != nil {
				return err
			}

			continue
		case r == 0, (r == '\n' || r == '\r') && len(quote) == 1:
			return errLiteral
		}

		out.WriteRune(r)
		p.rest = p.rest[size:]
	}

	return errLiteral
}

var (
	escapeSimple = map[byte]string{
		'\n': "", '\\': `\`, '\'': "'", '"': `"`, 'a': "\a", 'b': "\b", 'f': "\f", 'n': "\n", 'r': "\r", 't': "\t", 'v': "\v",
	}
	escapeOctal = regexp.MustCompile(`^\\([0-7]{1,3})`)
	escapeHex   = regexp.MustCompile(`^\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))`)
)

// escape reads a backslash and what belongs to it.
func (p *literal) escape(out *strings.Builder, raw bool) error {
	if len(p.rest) < 2 {
		return errLiteral
	}

	if raw { // the backslash stays, and so does what follows it, even a quote
		_, size := utf8.DecodeRuneInString(p.rest[1:])
		out.WriteString(p.rest[:1+size])
		p.rest = p.rest[1+size:]

		return nil
	}

	if text, known := escapeSimple[p.rest[1]]; known {
		out.WriteString(text)
		p.rest = p.rest[2:]

		return nil
	}

	if match := escapeOctal.FindStringSubmatch(p.rest); match != nil {
		return p.code(out, match[0], match[1], 8)
	}

	if match := escapeHex.FindStringSubmatch(p.rest); match != nil {
		return p.code(out, match[0], match[1]+match[2]+match[3], 16)
	}

	if strings.ContainsRune("xuUN", rune(p.rest[1])) {
		return errLiteral
	}

	out.WriteByte('\\') // an unknown escape is kept
	p.rest = p.rest[1:]

	return nil
}

// code writes the character with the number that is given in digits.
func (p *literal) code(out *strings.Builder, escape, digits string, base int) error {
	number, err := strconv.ParseUint(digits, base, 32)
	if err != nil || number > utf8.MaxRune {
		return errLiteral
	}

	out.WriteRune(rune(number)) // a lone surrogate becomes U+FFFD
	p.rest = p.rest[len(escape):]

	return nil
}
