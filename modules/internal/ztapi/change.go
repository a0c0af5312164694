// SPDX-License-Identifier: Apache-2.0

package ztapi

import (
	"net/netip"
	"reflect"
)

// Of gives the fields that the change has the values that a record has: the change that brings the record back.
func (c MemberChange) Of(record Member) MemberChange {
	change := valuesOf(c, record)
	change.Rejected = record.Rejected

	return change
}

// And adds the fields that another change has.
func (c MemberChange) And(more MemberChange) MemberChange {
	eachField(more, func(field int, value reflect.Value) { reflect.ValueOf(&c).Elem().Field(field).Set(value) })

	return c
}

// Of gives the fields that the change has the values that a network has: the change that brings the network back.
func (c NetworkChange) Of(network Network) NetworkChange { return valuesOf(c, network) }

// eachField goes through the fields that a change has.
func eachField(change any, do func(field int, value reflect.Value)) {
	fields := reflect.ValueOf(change)

	for i := range fields.NumField() {
		if one := fields.Field(i); one.Kind() == reflect.Pointer && !one.IsNil() {
			do(i, one)
		}
	}
}

// valuesOf relies on changes and records naming their fields alike.
func valuesOf[C, R any](fields C, record R) C {
	var made C

	into, from := reflect.ValueOf(&made).Elem(), reflect.ValueOf(record)

	eachField(fields, func(field int, value reflect.Value) {
		copied := reflect.New(value.Type().Elem())
		copied.Elem().Set(from.FieldByName(into.Type().Field(field).Name))
		into.Field(field).Set(copied)
	})

	return made
}

// CanonicalAddress gives an address the one form that all its spellings share. What is none stays, to be seen.
func CanonicalAddress(text string) string {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return text
	}

	return addr.Unmap().String()
}

// CanonicalPrefix gives an address with prefix length the one form that all its spellings share; bits beyond the length
// stay. What is none stays too.
func CanonicalPrefix(text string) string {
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return text
	}

	return prefix.String()
}
