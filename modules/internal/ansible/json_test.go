// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// theirJSON is what encoding/json reads.
func theirJSON(text string) (value any, err error) {
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()

	err = decoder.Decode(&value)
	if err != nil {
		return nil, err
	}

	_, err = decoder.Token()
	if !errors.Is(err, io.EOF) {
		return nil, errors.New("more follows")
	}

	return value, nil
}

// FuzzReadJSON reads any text: the same texts must be JSON as for encoding/json, and mean the same.
func FuzzReadJSON(f *testing.F) {
	for _, seed := range []string{
		`{"a": [1, -0.5e+3, true, false, null, "x"], "b": {}, "c": [], "a": "the last one counts"}`, " \t\r\n1 ", "", "nul", "nullx", "truefalse",
		`"\u00e9\ud83d\ude00\ud800 \\ \" \/ \b\f\n\r\t"`, "\"é\u2028\x7f\"", "\"\xff\"", "\"\x01\"", `"\x"`, `"\`, `"`, `"a`, "-", "01", "1.", "1e", "+1", ".5",
		"[1,]", "[,1]", "[1 2]", `{"a"}`, `{"a":}`, `{"a":1,}`, `{1:2}`, "{", "[", "]", "1 2", "1]", `{"a" : 1 , "b" : [ ] }`, "\ufeff1", "1\x00", "\x00",
		"NaN", "Infinity",
	} {
		f.Add(seed)
	}

	f.Fuzz(func(t *testing.T, text string) {
		want, err := theirJSON(text)
		got, ok := readJSON(text)
		require.Equal(t, err == nil, ok, "%v", err)

		if ok {
			require.Equal(t, want, got)
		}
	})
}

func TestTooDeeplyNestedJSONIsRefused(t *testing.T) {
	for depth, want := range map[int]bool{maxJSONDepth: true, maxJSONDepth + 1: false} {
		for _, text := range []string{
			strings.Repeat("[", depth) + strings.Repeat("]", depth), strings.Repeat(`{"a":`, depth) + "1" + strings.Repeat("}", depth),
		} {
			_, err := theirJSON(text)
			_, ok := readJSON(text)
			assert.Equal(t, want, ok)
			assert.Equal(t, want, err == nil)
		}
	}
}

func TestNumbersKeepWhatTheyAreWrittenAs(t *testing.T) {
	got, ok := readJSON(`[1.50, 1E2, 18446744073709551616]`)
	require.True(t, ok)
	assert.Equal(t, []any{json.Number("1.50"), json.Number("1E2"), json.Number("18446744073709551616")}, got)
}
