// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Go types of option fields whose Ansible type their kind does not tell. Beside these, a field may be a string, bool,
// number, slice, map with text keys, struct (an option with sub-options), pointer to one of them (nil when the option
// is not set), any (type raw), Secret, or implement encoding.TextUnmarshaler (type str).
type (
	// Path is text in which a leading ~ and $NAME have been replaced (type path).
	Path string
	// Bytes is a size such as "1.5K" or "2GB", in bytes; the units are powers of 1024 (type bytes).
	Bytes int64
	// Bits is a size such as "1Mb", in bits; the units are powers of 1024 (type bits).
	Bits int64
	// JSON is JSON text; a list or dict arrives as text (type json).
	JSON string
	// Duration is text such as "90s", "5m" or "1h30m", or a number of seconds (type str).
	Duration = time.Duration
)

// shape is what a Go type says about its option.
type shape struct {
	typ      string
	elements string
	options  reflect.Type // the struct of a dict with sub-options, or of each item of a list of such dicts
	values   reflect.Type // the struct of each value of a dict with free keys
	secret   bool
}

var (
	durationType    = reflect.TypeFor[Duration]()
	stringType      = reflect.TypeFor[string]()
	secretType      = reflect.TypeFor[Secret]()
	unmarshalerType = reflect.TypeFor[encoding.TextUnmarshaler]()
	namedTypes      = map[reflect.Type]string{
		reflect.TypeFor[Path]():  "path",
		reflect.TypeFor[Bytes](): "bytes",
		reflect.TypeFor[Bits]():  "bits",
		reflect.TypeFor[JSON]():  "json",
		durationType:             "str",
		secretType:               "str",
	}
)

// isText tells whether a type reads itself from text.
func isText(t reflect.Type) bool {
	return t != secretType && reflect.PointerTo(t).Implements(unmarshalerType)
}

func shapeOf(t reflect.Type) (shape, error) {
	if name, ok := namedTypes[t]; ok {
		return shape{typ: name, secret: t == secretType}, nil
	}

	if isText(t) {
		return shape{typ: "str"}, nil
	}

	switch t.Kind() {
	case reflect.String:
		return shape{typ: "str"}, nil
	case reflect.Bool:
		return shape{typ: "bool"}, nil
	case reflect.Float32, reflect.Float64:
		return shape{typ: "float"}, nil
	case reflect.Pointer:
		return shapeOf(t.Elem())
	case reflect.Struct:
		return shape{typ: "dict", options: t}, nil
	case reflect.Slice:
		return sliceShape(t)
	case reflect.Map:
		return mapShape(t)
	}

	if t.Kind() == reflect.Interface && t.NumMethod() == 0 {
		return shape{typ: "raw"}, nil
	}

	if reflect.Zero(t).CanInt() || reflect.Zero(t).CanUint() {
		return shape{typ: "int"}, nil
	}

	return shape{}, fmt.Errorf("%s is no type for an option", t)
}

func sliceShape(t reflect.Type) (shape, error) {
	item, err := shapeOf(t.Elem())
	if item.values != nil {
		return shape{}, fmt.Errorf("%s: a list of dicts with free keys cannot be checked; use []map[string]any", t)
	}

	if item.typ == "raw" {
		item.typ = "" // a list of anything
	}

	return shape{typ: "list", elements: item.typ, options: item.options, secret: item.secret}, err
}

func mapShape(t reflect.Type) (shape, error) {
	if t.Key().Kind() != reflect.String {
		return shape{}, fmt.Errorf("%s: the keys of a dict are text", t)
	}

	value, err := shapeOf(t.Elem())

	if value.values != nil || value.typ == "list" && value.options != nil {
		return shape{}, fmt.Errorf("%s: only one level of free keys can be checked; use map[string]any", t)
	}

	return shape{typ: "dict", values: value.options, secret: value.secret}, err
}

// parseDuration reads a Duration option.
func parseDuration(text string) (time.Duration, error) {
	trimmed := strings.TrimSpace(text)

	if _, err := strconv.ParseFloat(trimmed, 64); err == nil {
		trimmed += "s"
	}

	duration, err := time.ParseDuration(trimmed)
	if err != nil || duration < 0 {
		return 0, fmt.Errorf(`%q is not a duration: want text such as "90s", "5m" or "1h30m", or a number of seconds`, text)
	}

	return duration, nil
}
