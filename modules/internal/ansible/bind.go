// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"encoding"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"reflect"
	"slices"
	"strconv"
)

// Bind puts decoded arguments (Decoded.Params) into the struct that the spec was made of. Null and what is missing
// leave the zero value, or a nil pointer.
//
// Values inside a dict, and items of a list of anything, have not been given a type by Decode: they are converted to
// the type of the Go field as an option would be, except that text is made of bools and numbers as JSON writes them
// ("true", "1.5"): that is what the configuration maps of the systems that modules talk to expect. Whole numbers that do
// not fit into the Go type are an error, and so is a bad Duration.
func Bind(params map[string]any, into any) error {
	target := reflect.ValueOf(into)
	if target.Kind() != reflect.Pointer || target.IsNil() || target.Elem().Kind() != reflect.Struct {
		return fmt.Errorf("arguments are bound to a pointer to a struct, not to %T", into)
	}

	return bindStruct(params, target.Elem())
}

// bindStruct sets the options of a struct.
func bindStruct(params map[string]any, target reflect.Value) error {
	fields, err := fieldsOf(target.Type())
	if err != nil {
		return err
	}

	for _, f := range fields {
		err := bindValue(params[f.name], target.FieldByIndex(f.index))
		if err != nil {
			return located(f.name, err)
		}
	}

	return nil
}

// bindError says which argument a value belongs to; it is put together from inside out.
type bindError struct {
	path string
	err  error
}

func (e *bindError) Error() string { return fmt.Sprintf("argument %q: %v", e.path, e.err) }
func (e *bindError) Unwrap() error { return e.err }

// located puts a name before the path of an error.
func located(name string, err error) error {
	var inner *bindError
	if errors.As(err, &inner) {
		return &bindError{name + inner.path, inner.err}
	}

	return &bindError{name, err}
}

// bindValue sets one value of any type.
func bindValue(value any, target reflect.Value) error {
	if value == nil {
		target.SetZero()

		return nil
	}

	if takesText(target.Type()) {
		return bindText(value, target)
	}

	switch target.Kind() {
	case reflect.Pointer:
		target.Set(reflect.New(target.Type().Elem()))

		return bindValue(value, target.Elem())
	case reflect.Interface:
		target.Set(reflect.ValueOf(deepCopy(value)))

		return nil
	case reflect.Struct:
		return bindNested(value, target)
	case reflect.Slice:
		return bindList(value, target)
	case reflect.Map:
		return bindMap(value, target)
	case reflect.Bool:
		known, err := toBool(value)
		if err == nil {
			target.SetBool(known.(bool))
		}

		return err
	case reflect.Float32, reflect.Float64:
		return bindFloat(value, target)
	default:
		return bindInt(value, target)
	}
}

// takesText tells whether a value of a type is made of text.
func takesText(t reflect.Type) bool {
	return t.Kind() == reflect.String || t == secretType || t == durationType || isText(t)
}

// setText sets a value that is made of text.
func setText(target reflect.Value, text string) error {
	switch t := target.Type(); {
	case t == stringType:
		target.SetString(text)
	case t == secretType:
		target.Set(reflect.ValueOf(NewSecret(text)))
	case t == durationType:
		duration, err := parseDuration(text)
		target.SetInt(int64(duration))

		return err
	case isText(t):
		return target.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text))
	default:
		target.SetString(text)
	}

	return nil
}

// bindNested sets a struct of sub-options.
func bindNested(value any, target reflect.Value) error {
	dict, err := toDict(value)
	if err != nil {
		return err
	}

	err = bindStruct(dict, target)
	if err != nil {
		return located(".", err)
	}

	return nil
}

func bindList(value any, target reflect.Value) error {
	list, err := toList(value)
	if err != nil {
		return err
	}

	target.Set(reflect.MakeSlice(target.Type(), len(list), len(list)))

	for i, item := range list {
		err := bindValue(item, target.Index(i))
		if err != nil {
			return located(fmt.Sprintf("[%d]", i), err)
		}
	}

	return nil
}

func bindMap(value any, target reflect.Value) error {
	dict, err := toDict(value)
	if err != nil {
		return err
	}

	target.Set(reflect.MakeMapWithSize(target.Type(), len(dict)))

	for _, key := range slices.Sorted(maps.Keys(dict)) {
		item := reflect.New(target.Type().Elem()).Elem()

		err := bindValue(dict[key], item)
		if err != nil {
			return located("."+key, err)
		}

		target.SetMapIndex(reflect.ValueOf(key).Convert(target.Type().Key()), item)
	}

	return nil
}

// bindText sets a value that is made of text to a text, bool or number.
func bindText(value any, target reflect.Value) error {
	switch v := value.(type) {
	case string:
		return setText(target, v)
	case bool:
		return setText(target, strconv.FormatBool(v))
	case int64, *big.Int, float64:
		return setText(target, pyJSON(v))
	default:
		return fmt.Errorf("want text, not a value of type %s", typeName(value))
	}
}

func bindFloat(value any, target reflect.Value) error {
	float, err := toFloat(value)

	switch f := float.(type) {
	case float64:
		target.SetFloat(f)
	case nonFinite:
		target.SetFloat(float64(f))
	}

	return err
}

func bindInt(value any, target reflect.Value) error {
	converted, err := toInt(value)
	if err != nil {
		return err
	}

	number, _ := ratOf(converted)
	whole := number.Num()

	switch {
	case target.CanInt() && whole.IsInt64() && !target.OverflowInt(whole.Int64()):
		target.SetInt(whole.Int64())
	case target.CanUint() && whole.IsUint64() && !target.OverflowUint(whole.Uint64()):
		target.SetUint(whole.Uint64())
	default:
		return fmt.Errorf("%s does not fit into %d bits", whole, target.Type().Bits())
	}

	return nil
}
