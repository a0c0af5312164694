// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"os/user"
	"regexp"
	"strconv"
	"strings"
)

// Lookup finds an environment variable, as os.LookupEnv does.
type Lookup func(name string) (string, bool)

// converters has one function for each option type: a plain value in, a plain value of that type out. The error is the
// tail of core's text; the caller puts the option before it.
var converters = map[string]func(value any, env Lookup) (any, error){
	"str":   func(v any, _ Lookup) (any, error) { return toStr(v), nil },
	"int":   func(v any, _ Lookup) (any, error) { return toInt(v) },
	"float": func(v any, _ Lookup) (any, error) { return toFloat(v) },
	"bool":  func(v any, _ Lookup) (any, error) { return toBool(v) },
	"list":  func(v any, _ Lookup) (any, error) { return toList(v) },
	"dict":  func(v any, _ Lookup) (any, error) { return toDict(v) },
	"path":  func(v any, env Lookup) (any, error) { return expandPath(toStr(v), env), nil },
	"raw":   func(v any, _ Lookup) (any, error) { return v, nil },
	"json":  func(v any, _ Lookup) (any, error) { return toJSON(v) },
	"bytes": func(v any, _ Lookup) (any, error) { return toSize(v, "B", "byte", "Byte") },
	"bits":  func(v any, _ Lookup) (any, error) { return toSize(v, "b", "bit", "Bit") },
}

func cannot(value any, what string) error {
	return fmt.Errorf("%s cannot be converted to %s", className(value), what)
}

func toStr(value any) string {
	if value == nil {
		return ""
	}

	return pyText(value)
}

// decimalText is Python's Decimal, after underscores and outer white space are gone. Python also takes the digits of
// other scripts; these are refused here.
var decimalText = regexp.MustCompile(`^([+-]?)([0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]([+-]?[0-9]{1,9}))?$`)

// toInt takes what is a whole number, also as text or float: "010", " 5 ", 1.0, "1e3". A bool stays a bool, as in core.
func toInt(value any) (any, error) {
	switch v := value.(type) {
	case bool, int64, *big.Int:
		return v, nil
	case float64:
		if v == math.Trunc(v) {
			whole, _ := big.NewFloat(v).Int(nil)

			return intValue(whole), nil
		}
	case string:
		if whole, ok := wholeNumber(strings.ReplaceAll(strings.TrimFunc(v, pySpace), "_", "")); ok {
			return whole, nil
		}
	}

	return nil, fmt.Errorf(`"%s" cannot be converted to an int`, pyRepr(value))
}

// wholeNumber reads a decimal number whose value is whole and no longer than maxDigits.
func wholeNumber(text string) (any, bool) {
	match := decimalText.FindStringSubmatch(text)
	if match == nil || len(text) > maxDigits {
		return nil, false
	}

	before, after, _ := strings.Cut(match[2], ".")
	after = strings.TrimRight(after, "0")
	digits := strings.TrimLeft(before+after, "0")

	if digits == "" {
		return int64(0), true
	}

	exponent, _ := strconv.Atoi(match[3]) // "" is 0; the pattern bounds it
	exponent -= len(after)

	if whole := strings.TrimRight(digits, "0"); exponent < 0 {
		exponent += len(digits) - len(whole)
		digits = whole
	}

	if exponent < 0 || len(digits)+exponent > maxDigits {
		return nil, false
	}

	whole, ok := new(big.Int).SetString(match[1]+digits+strings.Repeat("0", exponent), 10)
	if !ok {
		return nil, false
	}

	return intValue(whole), true
}

// floatText is what Python's float() takes; it allows single underscores between digits.
var floatText = regexp.MustCompile(
	`(?i)^[+-]?(?:(?:\d(?:_?\d)*\.?(?:\d(?:_?\d)*)?|\.\d(?:_?\d)*)(?:e[+-]?\d(?:_?\d)*)?|inf|infinity|nan)$`)

func toFloat(value any) (any, error) {
	switch v := value.(type) {
	case float64, nonFinite:
		return v, nil
	case bool:
		if v {
			return 1.0, nil
		}

		return 0.0, nil
	case int64:
		return float64(v), nil
	case *big.Int:
		f, _ := new(big.Float).SetInt(v).Float64()
		if !math.IsInf(f, 0) { // core crashes on an int that is too large
			return f, nil
		}
	case string:
		text := strings.TrimSpace(v)
		if floatText.MatchString(text) {
			return parseFloat(text), nil
		}
	}

	return nil, cannot(value, "a float")
}

// parseFloat reads what floatText lets through. A number that is too large is infinite, as in Python.
func parseFloat(text string) any {
	if unsigned := strings.TrimLeft(text, "+-"); strings.EqualFold(unsigned, "nan") {
		return nonFinite(math.NaN())
	}

	f, _ := strconv.ParseFloat(strings.ReplaceAll(text, "_", ""), 64)

	return floatValue(f)
}

var booleans = map[string]bool{
	"y": true, "yes": true, "on": true, "1": true, "true": true, "t": true,
	"n": false, "no": false, "off": false, "0": false, "false": false, "f": false,
}

// validBooleans is in a fixed order; Python's is random.
const validBooleans = "'y', 'yes', 'on', '1', 'true', 't', 1, 'n', 'no', 'off', '0', 'false', 'f', 0"

func toBool(value any) (any, error) {
	switch v := value.(type) {
	case bool:
		return v, nil
	case string:
		if known, ok := booleans[strings.TrimFunc(strings.ToLower(v), pySpace)]; ok {
			return known, nil
		}
	case int64, *big.Int, float64, nonFinite:
		for _, known := range []bool{true, false} {
			if pyEqual(v, known) {
				return known, nil
			}
		}
	default:
		return nil, cannot(value, "a bool")
	}

	//lint:ignore ST1005 core's text
	return nil, fmt.Errorf("The value '%s' is not a valid boolean. Valid booleans include: %s",
		pyText(value), validBooleans)
}

// toList splits text at commas without trimming, and makes a list of one text out of a number or a bool.
func toList(value any) ([]any, error) {
	switch v := value.(type) {
	case []any:
		return v, nil
	case string:
		var list []any

		for _, part := range strings.Split(v, ",") {
			list = append(list, part)
		}

		return list, nil
	case bool, int64, *big.Int, float64, nonFinite:
		return []any{pyText(v)}, nil
	default:
		return nil, cannot(value, "a list")
	}
}

// toDict reads text as JSON, as a Python literal, or as "a=1 b='x y'" with spaces or commas between the fields.
func toDict(value any) (map[string]any, error) {
	text, isText := value.(string)
	if dict, ok := value.(map[string]any); ok {
		return dict, nil
	}

	switch {
	case !isText:
		return nil, cannot(value, "a dict")
	case strings.HasPrefix(text, "{"):
		return parseDict(text)
	case strings.Contains(text, "="):
		return parseFields(text)
	default:
		return nil, errors.New("dictionary requested, could not parse JSON or key=value")
	}
}

func parseDict(text string) (map[string]any, error) {
	value, err := parseJSON(text)
	if err != nil {
		value, err = parseLiteral(text)
	}

	dict, ok := value.(map[string]any)
	if err != nil || !ok {
		return nil, errors.New("unable to evaluate string as dictionary")
	}

	return dict, nil
}

// parseJSON reads exactly one JSON value, keeping all digits of numbers.
func parseJSON(text string) (any, error) {
	var value any

	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()

	err := decoder.Decode(&value)
	if err != nil {
		return nil, err
	}

	_, err = decoder.Token()
	if !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value")
	}

	return plain(value, 0)
}

// parseFields reads key=value fields. Quotes group, a backslash takes the next character as it is.
func parseFields(text string) (map[string]any, error) {
	var (
		fields []string
		field  strings.Builder
		quote  rune
		escape bool
	)

	flush := func() {
		if field.Len() > 0 {
			fields = append(fields, field.String())
		}

		field.Reset()
	}

	for _, r := range strings.TrimFunc(text, pySpace) {
		switch {
		case escape:
			field.WriteRune(r)

			escape = false
		case r == '\\':
			escape = true
		case quote == 0 && (r == '\'' || r == '"'):
			quote = r
		case quote != 0 && quote == r:
			quote = 0
		case quote == 0 && (r == ',' || r == ' '):
			flush()
		default:
			field.WriteRune(r)
		}
	}

	flush()

	return splitFields(fields)
}

func splitFields(fields []string) (map[string]any, error) {
	dict := map[string]any{}

	for _, field := range fields {
		key, value, found := strings.Cut(field, "=")
		if !found {
			return nil, errors.New(`unable to evaluate string in the "key=value" format as dictionary`)
		}

		dict[key] = value
	}

	return dict, nil
}

// toJSON keeps text and writes lists and dicts as JSON text.
func toJSON(value any) (any, error) {
	switch v := value.(type) {
	case string:
		return strings.TrimFunc(v, pySpace), nil
	case []any, map[string]any:
		return pyJSON(v), nil
	default:
		return nil, cannot(value, "a json string")
	}
}

var (
	sizeText  = regexp.MustCompile(`^([0-9]*\.?[0-9]+)(?:\s*([A-Za-z]+))?\s*$`)
	sizeUnits = map[string]struct {
		factor float64
		name   string
	}{
		"B": {1, ""}, "K": {1 << 10, "kilo"}, "M": {1 << 20, "mega"}, "G": {1 << 30, "giga"}, "T": {1 << 40, "tera"},
		"P": {1 << 50, "peta"}, "E": {1 << 60, "exa"}, "Z": {1 << 70, "zeta"}, "Y": {1 << 80, "yotta"},
	}
)

// toSize reads a size such as "10", "1.5K", "2 GB": powers of 1024. letter is "B" or "b", name "byte" or "bit".
func toSize(value any, letter, name, title string) (any, error) {
	match := sizeText.FindStringSubmatch(pyText(value))
	if match == nil {
		return nil, cannot(value, "a "+title+" value")
	}

	factor, ok := unitFactor(match[2], letter, name)
	number, _ := strconv.ParseFloat(match[1], 64)
	number = math.RoundToEven(number * factor)

	if !ok || math.IsInf(number, 0) {
		return nil, cannot(value, "a "+title+" value")
	}

	whole, _ := big.NewFloat(number).Int(nil)

	return intValue(whole), nil
}

// unitFactor knows "k" and "K", "KB", and "kilobyte" in any case. Core wants exactly this.
func unitFactor(unit, letter, name string) (float64, bool) {
	if unit == "" {
		return 1, true
	}

	first := strings.ToUpper(unit[:1])
	known, ok := sizeUnits[first]
	short := first + letter

	if first == "B" {
		short = letter
	}

	return known.factor, ok && (len(unit) == 1 || unit == short || strings.EqualFold(unit, known.name+name))
}

var pathVariable = regexp.MustCompile(`\$(?:\w+|\{[^}]*\})`)

// expandPath puts in $NAME, ${NAME} and a leading ~ or ~user. What is unknown stays as it is; nothing is normalised.
func expandPath(path string, env Lookup) string {
	path = pathVariable.ReplaceAllStringFunc(path, func(reference string) string {
		name := strings.TrimSuffix(strings.TrimPrefix(reference[1:], "{"), "}")
		if value, ok := env(name); ok {
			return validText(value)
		}

		return reference
	})

	if !strings.HasPrefix(path, "~") {
		return path
	}

	name, rest, hasRest := strings.Cut(path[1:], "/")
	if hasRest {
		rest = "/" + rest
	}

	home, ok := homeFolder(name, env)
	if !ok {
		return path
	}

	if path = strings.TrimRight(home, "/") + rest; path != "" {
		return path
	}

	return "/"
}

func homeFolder(name string, env Lookup) (string, bool) {
	if name != "" {
		account, err := user.Lookup(name)
		if err != nil {
			return "", false
		}

		return account.HomeDir, true
	}

	if home, ok := env("HOME"); ok {
		return validText(home), true
	}

	account, err := user.Current()
	if err != nil {
		return "", false
	}

	return account.HomeDir, true
}
