// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"encoding/json"
	"math"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// rawArgs reads JSON as the SDK does.
func rawArgs(t testing.TB, text string) map[string]any {
	t.Helper()

	var raw map[string]any

	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	require.NoError(t, decoder.Decode(&raw))

	return raw
}

// decodeInto is what a module does with its arguments.
func decodeInto(t *testing.T, text string, into any) error {
	t.Helper()

	spec, err := SpecOf(into, Rules{})
	require.NoError(t, err)

	decoded, err := spec.DecodeEnv("t.bin.x", rawArgs(t, text), testEnv)
	if err != nil {
		return err
	}

	return Bind(decoded.Params, into)
}

func TestBindEveryType(t *testing.T) {
	var got everyType

	require.NoError(t, decodeInto(t, `{
		"socket": "$HOME/s", "timeout": "1h30m", "text": 5, "mode": "off", "flag": "yes", "tri": false, "number": "2", "small": 255,
		"ratio": 2, "secret": "s1", "secrets": "s2,s3", "hidden": {"a": "h"}, "pws": {"b": "p"}, "words": "b", "files": ["~/f"],
		"kept": "~", "size": "1.5K", "plain": "2KB", "rate": "1Mb", "doc": {"a": [1, "é"]}, "raw": [1, 2.5, {"b": null}],
		"anything": [1, "two", [3]], "waits": [90, "2m", 1.5], "config": "{'a': True, 'b': 4, 'c': 1.5, 'd': 'x', 'e': None}",
		"free": {"x": 12345678901234567890}, "nested": {"n": {"m": 1}}, "address": "10.0.0.1", "maybe": null,
		"disks": [{"dev": "/dev/a"}, "path=/dev/b key=k"], "devices": {"root": {"parts": [{"number": "7"}]}, "data": "size=2G"}
	}`, &got))

	bits, no := Bits(1<<20), false

	assert.Equal(t, everyType{
		connection: connection{Socket: "/home/u/s", Timeout: 90 * time.Minute},
		Text:       "5", Mode: "off", Flag: true, Tri: &no, Number: 2, Small: 255, Ratio: 2,
		Secret: NewSecret("s1"), Secrets: []Secret{NewSecret("s2"), NewSecret("s3")},
		Hidden: map[string]string{"a": "h"}, Pws: map[string]Secret{"b": NewSecret("p")},
		Words: []string{"b"}, Files: []Path{"/home/u/f"}, Kept: []string{"/home/u"},
		Size: 1536, Plain: 2048, Rate: &bits, Doc: `{"a": [1, "\u00e9"]}`,
		Raw:      []any{int64(1), 2.5, map[string]any{"b": nil}},
		Anything: []any{int64(1), "two", []any{int64(3)}},
		Waits:    []Duration{90 * time.Second, 2 * time.Minute, 1500 * time.Millisecond},
		Config:   map[string]string{"a": "true", "b": "4", "c": "1.5", "d": "x", "e": ""},
		Free:     map[string]any{"x": bigInt("12345678901234567890")},
		Nested:   map[string]map[string]any{"n": {"m": int64(1)}},
		Address:  netip.MustParseAddr("10.0.0.1"),
		Disk:     disk{Size: 1 << 30},
		Disks:    []disk{{Path: "/dev/a", Size: 1 << 30}, {Path: "/dev/b", Size: 1 << 30, Key: NewSecret("k")}},
		Devices: map[string]disk{
			"root": {Size: 1 << 30, Parts: []part{{7}}},
			"data": {Size: 2 << 30},
		},
	}, got)
}

func bigInt(text string) *big.Int {
	i, _ := new(big.Int).SetString(text, 10)

	return i
}

func TestBindDefaultsAndNull(t *testing.T) {
	got := everyType{Flag: true, Maybe: &disk{}, Devices: map[string]disk{"old": {}}, Raw: 1}

	require.NoError(t, decodeInto(t, `{"text": null, "tri": null, "raw": null}`, &got))
	assert.Equal(t, everyType{
		connection: connection{Socket: "/var/lib/x.socket", Timeout: 5 * time.Minute},
		Mode:       "on", Ratio: 1.5, Words: []string{"a", "b"}, Files: []Path{"/home/u/a", "/home/u/b"}, Size: 1024,
		Free: map[string]any{"a": int64(1)}, Disk: disk{Size: 1 << 30},
	}, got)
}

func TestBindNumbers(t *testing.T) {
	var got struct {
		Float float64 `ansible:"float"`
		Int   int     `ansible:"int"`
	}

	require.NoError(t, decodeInto(t, `{"float": "-inf", "int": true}`, &got))
	assert.True(t, math.IsInf(got.Float, -1))
	assert.Equal(t, 1, got.Int, "true stays true as an int, and is 1")
}

func TestBindGivesCopies(t *testing.T) {
	var got struct {
		Free map[string]any `ansible:"free"`
		Raw  any            `ansible:"raw"`
	}

	params := map[string]any{"free": map[string]any{"a": []any{"x"}}, "raw": []any{"x"}}
	require.NoError(t, Bind(params, &got))

	got.Free["a"].([]any)[0] = "changed"
	got.Raw.([]any)[0] = "changed"

	assert.Equal(t, map[string]any{"free": map[string]any{"a": []any{"x"}}, "raw": []any{"x"}}, params)
}

func TestBindRefuses(t *testing.T) {
	tests := map[string]struct{ args, want string }{
		"duration": {`{"timeout": "soon"}`,
			`argument "timeout": "soon" is not a duration: want text such as "90s", "5m" or "1h30m", or a number of seconds`},
		"negative duration":   {`{"timeout": -5}`, `argument "timeout": "-5" is not a duration`},
		"not a number":        {`{"timeout": "nan"}`, `argument "timeout": "nan" is not a duration`},
		"endless duration":    {`{"timeout": "1e300"}`, `argument "timeout": "1e300" is not a duration`},
		"duration in a list":  {`{"waits": ["1s", "x"]}`, `argument "waits[1]": "x" is not a duration`},
		"duration far inside": {`{"disks": [{}, {"after": "x"}]}`, `argument "disks[1].after": "x" is not a duration`},
		"duration in a dict":  {`{"devices": {"eth0": {"after": "x"}}}`, `argument "devices.eth0.after": "x" is not a duration`},
		"too large":           {`{"small": 256}`, `argument "small": 256 does not fit into 8 bits`},
		"negative":            {`{"small": -1}`, `argument "small": -1 does not fit into 8 bits`},
		"huge":                {`{"plain": 1e30}`, `argument 'plain' is of type float and we were unable to convert to bytes: <class 'float'> cannot be converted to a Byte value`},
		"huge size":           {`{"plain": "5Y"}`, `argument "plain": 6044629098073145873530880 does not fit into 64 bits`},
		"text":                {`{"config": {"a": [1]}}`, `argument "config.a": want text, not a value of type list`},
		"inner dict":          {`{"nested": {"a": 5}}`, `argument "nested.a": <class 'int'> cannot be converted to a dict`},
		"own text type":       {`{"address": "10.0.0"}`, `argument "address": ParseAddr("10.0.0")`},
	}

	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var args everyType

			text := strings.Replace(test.args, "{", `{"text": "t", `, 1)
			assert.ErrorContains(t, decodeInto(t, text, &args), test.want)
		})
	}

	for _, into := range []any{nil, everyType{}, (*everyType)(nil), new(int)} {
		assert.ErrorContains(t, Bind(nil, into), "arguments are bound to a pointer to a struct")
	}
}
