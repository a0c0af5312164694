// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"bytes"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// hiddenValue and hiddenPart are what ansible-core puts in the place of a secret, and of a secret inside other text.
const (
	hiddenValue = "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"
	hiddenPart  = "********"
)

// Secret is a text that does not show itself: fmt, encoding/json, YAML, text encoders and log/slog all get
// hiddenValue, or the empty text when there is none. Only Reveal gives the text. The zero Secret is not set.
type Secret struct {
	_ [0]func() // == would compare addresses; use Equal

	// A pointer, because fmt reads unexported fields of a struct around this one without asking its methods, and shows
	// the address of what they point to.
	text *string
}

// NewSecret hides a text. The empty text makes a Secret that is not set.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}

	return Secret{text: &text}
}

// Reveal gives the text, for whoever has to send or write it.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}

	return *s.text
}

// IsSet tells whether there is a text that is not empty.
func (s Secret) IsSet() bool { return s.text != nil }

// Equal compares two secrets without telling by its duration how much of them is the same.
func (s Secret) Equal(other Secret) bool {
	return subtle.ConstantTimeCompare([]byte(s.Reveal()), []byte(other.Reveal())) == 1
}

// String gives hiddenValue, or the empty text when there is no secret.
func (s Secret) String() string {
	if s.text == nil {
		return ""
	}

	return hiddenValue
}

// GoString gives the same as String.
func (s Secret) GoString() string { return s.String() }

// Format writes the same for every verb.
func (s Secret) Format(state fmt.State, _ rune) { _, _ = io.WriteString(state, s.String()) }

// LogValue gives the same as String.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText gives the same as String.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalYAML gives the same as String.
func (s Secret) MarshalYAML() (any, error) { return s.String(), nil }

// MarshalJSON gives the same as String; null when there is no secret.
func (s Secret) MarshalJSON() ([]byte, error) {
	if s.text == nil {
		return []byte("null"), nil
	}

	return json.Marshal(hiddenValue)
}

// UnmarshalText reads a secret.
func (s *Secret) UnmarshalText(text []byte) error {
	*s = NewSecret(string(text))

	return nil
}

// UnmarshalJSON reads a secret from JSON text or null. Its error does not quote what it read.
func (s *Secret) UnmarshalJSON(data []byte) error {
	var text string

	if !bytes.Equal(data, []byte("null")) && json.Unmarshal(data, &text) != nil {
		return errors.New("a secret is text")
	}

	*s = NewSecret(text)

	return nil
}

// secretSet collects the texts that must not be shown.
type secretSet map[string]struct{}

// collect takes all values of secret options, sub-options included, whatever name they were given under. It is called
// with the arguments as they came, and again with what became of them: defaults, variables of the environment, parts of
// a list. Then bools have become text, which core does not hide.
func (set secretSet) collect(s *Spec, params map[string]any, asGiven bool) {
	for _, option := range s.Order {
		if !option.Secret && option.Options == nil && option.Values == nil {
			continue
		}

		set.collectValue(option, params[option.Name], asGiven)

		for _, alias := range option.Aliases {
			set.collectValue(option, params[alias], asGiven)
		}
	}
}

func (set secretSet) collectValue(option *Option, value any, asGiven bool) {
	if option.Secret {
		set.add(value, asGiven)
	}

	for _, item := range option.nestedItems(value) {
		if dict, err := nestedDict(item); err == nil && dict != nil {
			set.collect(option.Options, dict, asGiven)
		}
	}

	if option.Values == nil {
		return
	}

	values, err := nestedDict(value)
	if err != nil {
		return
	}

	for _, item := range values {
		if dict, err := nestedDict(item); err == nil && dict != nil {
			set.collect(option.Values, dict, asGiven)
		}
	}
}

// collectUnused takes what secret options would have without an argument.
func (set secretSet) collectUnused(s *Spec, env Lookup) {
	for _, option := range s.Order {
		for _, inner := range []*Spec{option.Options, option.Values} {
			if inner != nil {
				set.collectUnused(inner, env)
			}
		}

		if !option.Secret {
			continue
		}

		set.add(option.Default, false)

		for _, variable := range option.Env {
			value, _ := env(variable)
			set.add(value, true)
		}
	}
}

func (set secretSet) add(value any, asGiven bool) {
	switch v := value.(type) {
	case nil, bool:
	case string:
		if v != "" && (asGiven || v != "True" && v != "False") {
			set[v] = struct{}{}
		}
	case []any:
		for _, item := range v {
			set.add(item, asGiven)
		}
	case map[string]any:
		for _, item := range v {
			set.add(item, asGiven)
		}
	case json.Number: // as written, and as Python writes it
		set[v.String()] = struct{}{}

		if number, err := plain(v, 0); err == nil {
			set.add(number, asGiven)
		}
	default:
		if number, err := plain(v, 0); err == nil {
			set[pyText(number)] = struct{}{}
		}
	}
}
