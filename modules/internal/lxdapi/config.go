// SPDX-License-Identifier: Apache-2.0

package lxdapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"
)

// Config is a configuration as the API has it: texts by key.
type Config = map[string]string

// MakeConfig turns an option's dict into texts: true, 2 and "2" are what LXD wants as "true" and "2". A null value asks
// for the key's removal and becomes the empty text. All bad values are reported at once.
func MakeConfig(option string, values map[string]any) (Config, error) {
	config := Config{}

	var bad []string

	for _, key := range slices.Sorted(maps.Keys(values)) {
		text, ok := makeText(values[key])
		if !ok {
			bad = append(bad, fmt.Sprintf("%s[%q]: must be text, a number or a boolean, got a list or dict", option, key))
		}

		config[key] = text
	}

	if bad != nil {
		return nil, fmt.Errorf("%s", strings.Join(bad, "; "))
	}

	return config, nil
}

func makeText(value any) (string, bool) {
	switch value := value.(type) {
	case nil:
		return "", true
	case string:
		return value, true
	case bool:
		return strconv.FormatBool(value), true
	case json.Number:
		return value.String(), true
	case int, int64, uint64, *big.Int:
		return fmt.Sprint(value), true
	case float64:
		return strconv.FormatFloat(value, 'f', -1, 64), true
	}

	return "", false
}

// Computed tells whether the server sets a key by itself, so that it is neither compared nor written.
func Computed(key string) bool {
	return strings.HasPrefix(key, "volatile.") || strings.HasPrefix(key, "image.")
}

// Merge gives current with the wanted keys set. An empty wanted value removes its key: for LXD, empty is unset.
func Merge(current, wanted Config) Config {
	merged := Config{}
	maps.Copy(merged, current)

	for key, value := range wanted {
		if value == "" {
			delete(merged, key)
		} else {
			merged[key] = value
		}
	}

	return merged
}

// Replace gives the wanted keys alone, with what the server computed kept.
func Replace(current, wanted Config) Config {
	kept := Config{}

	for key, value := range current {
		if Computed(key) {
			kept[key] = value
		}
	}

	return Merge(kept, wanted)
}

// Differences lists in words how b differs from a, in the order of the keys.
func Differences(a, b Config) []string {
	keys := map[string]bool{}
	for key := range a {
		keys[key] = true
	}

	for key := range b {
		keys[key] = true
	}

	var lines []string

	for _, key := range slices.Sorted(maps.Keys(keys)) {
		before, had := a[key]
		after, has := b[key]

		switch {
		case had && !has:
			lines = append(lines, "remove "+key)
		case before != after && !printable(key, before, after):
			lines = append(lines, "new "+key)
		case !had && has:
			lines = append(lines, key+"="+after)
		case before != after:
			lines = append(lines, fmt.Sprintf("%s=%s (was %s)", key, after, before))
		}
	}

	return lines
}

// printable tells whether values belong into a line that every run prints. Documents do not, and neither does what often
// holds passwords; --diff shows them.
func printable(key string, values ...string) bool {
	for _, prefix := range []string{"cloud-init.", "user.", "environment.", "raw."} {
		if strings.HasPrefix(key, prefix) {
			return false
		}
	}

	for _, value := range values {
		if len(value) > 60 || strings.ContainsAny(value, "\r\n") {
			return false
		}
	}

	return true
}

func containsFold(text, part string) bool {
	return strings.Contains(strings.ToLower(text), part)
}
