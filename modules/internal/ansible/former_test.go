// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// formerMasker hides secrets as the first version of this package did: it makes a copy without secrets of the whole value,
// which encoding/json then writes, and looks for every form of every secret at every byte. It is slow and easy to
// understand; what Masker writes in one pass must be the same.
type formerMasker struct {
	all, keys []needle
	whole     map[string]bool
}

func formerOf(mask *Masker) *formerMasker {
	list := func(n *needles) []needle {
		if n == nil {
			return nil
		}

		return slices.Concat(n.by[:]...)
	}

	return &formerMasker{all: list(mask.all), keys: list(mask.keys), whole: mask.whole}
}

func (m *formerMasker) text(text string, hide []needle) string {
	text = validText(text)

	var spans []span

	for at := range len(text) {
		for _, n := range hide {
			if strings.HasPrefix(text[at:], n.text) {
				spans = append(spans, n.widen(text, at))
			}
		}
	}

	switch spans = merge(spans); {
	case spans == nil:
		return text
	case m.whole[text]:
		return hiddenValue
	}

	out, shown := "", 0
	for _, s := range spans {
		out += text[shown:s.start] + hiddenPart
		shown = s.end
	}

	return out + text[shown:]
}

func (m *formerMasker) value(value any, keep []string, depth int) any {
	if depth > maxMaskDepth {
		return "(nested too deeply)"
	}

	switch v := value.(type) {
	case nil, bool:
		return v
	case string:
		return m.text(v, m.all)
	case int, int64, float64, json.Number:
		return m.number(v)
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			out[i] = m.value(item, keep, depth+1)
		}

		return out
	case map[string]any:
		return m.dict(v, keep, depth)
	default:
		return m.encoded(v, keep, depth)
	}
}

func (m *formerMasker) number(value any) any {
	number, err := plain(value, 0)
	if err != nil {
		return m.text(fmt.Sprint(value), m.all)
	}

	for _, text := range []string{pyText(number), fmt.Sprint(value)} {
		if m.text(text, m.all) != text {
			return hiddenValue
		}
	}

	if f, ok := number.(nonFinite); ok {
		return f.name()
	}

	return value
}

func (m *formerMasker) dict(dict map[string]any, keep []string, depth int) any {
	out := make(map[string]any, len(dict))

	for _, key := range slices.Sorted(maps.Keys(dict)) {
		name := key
		if !slices.Contains(keep, key) {
			name = m.text(key, m.keys)
		}

		for i, free := 2, name; ; i++ {
			if _, taken := out[name]; !taken {
				break
			}

			name = fmt.Sprintf("%s (%d)", free, i)
		}

		out[name] = m.value(dict[key], keep, depth+1)
	}

	return out
}

func (m *formerMasker) encoded(value any, keep []string, depth int) any {
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Sprintf("(a %T that cannot be written as JSON)", value)
	}

	var decoded any

	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()

	err = decoder.Decode(&decoded)
	if err != nil {
		return fmt.Sprintf("(a %T that cannot be read back from JSON)", value)
	}

	return m.value(decoded, keep, depth+1)
}

// FuzzMaskedJSON compares one pass with the former two, for values of every type that a result is made of.
func FuzzMaskedJSON(f *testing.F) {
	f.Add(`{"a": ["s3cret", 1.50, null, {"b": "<é\u2028\u007f>"}], "s3cret-key": {"s3cret-key": 9123459}}`, "s3cret-key\n12345", "s3cret", "a")
	f.Add(`[{"long-secret-1": 1, "long-secret-2": 2, "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER": 3, "a long-secret-1": 4}]`, "long-secret-1", "long-secret-2", "")
	f.Add(`{"kept long-secret": "bG9uZy1zZWNyZXQ=", "x": "Basic dTpsb25nLXNlY3JldDo6", "y": ""}`, "long-secret", "", "kept long-secret")
	f.Add(`{"e": [1e400, 1e5, 100000, 0.1, -0, 12345678901234567890, true, "True", "1"]}`, "1", "100000.0", "e")
	f.Add(`"\ud800 \\ \" \u0000"`, "\xff", "\\", "")

	f.Fuzz(func(t *testing.T, text, one, another, kept string) {
		var floats, numbers any

		decoder := json.NewDecoder(strings.NewReader(text))
		decoder.UseNumber()

		if decoder.Decode(&numbers) != nil {
			return
		}

		_ = json.Unmarshal([]byte(text), &floats)

		values := map[string]any{
			"numbers": numbers, "floats": floats, one + another: text, "raw": json.RawMessage(strings.TrimSpace(text)),
			"typed": []string{one, "a", another + text}, "secret": NewSecret(one), "int": len(text), "none": []any(nil), "no": map[string]any(nil),
			"struct": resource{Name: another, Config: map[string]string{one: text}, Size: 12345}, "code": Code(one), kept: another, "never": func() {},
		}

		if value, err := plain(deepCopy(numbers), 0); err == nil {
			values["plain"] = value
		}

		mask := maskOf(one, another)
		keep := []string{kept, "numbers", "floats", "struct"}

		want, err := json.Marshal(formerOf(mask).value(values, keep, 0))
		require.NoError(t, err)
		require.Equal(t, string(want), masked(t, mask, values, keep...))
	})
}
