// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// decodeEvery decodes arguments of everyType; text is given unless the arguments have it.
func decodeEvery(t *testing.T, args string) (*Decoded, error) {
	t.Helper()

	raw := rawArgs(t, args)
	if _, given := raw["text"]; !given {
		raw["text"] = "t"
	}

	return everySpec(t).DecodeEnv("t.bin.x", raw, func(name string) (string, bool) {
		value, ok := map[string]string{"HOME": "/home/u", "X_SECRET": "from-the-env", "X_SOCKET": "~/sock"}[name]

		return value, ok
	})
}

func TestDecodeIgnoresInternalKeys(t *testing.T) {
	decoded, err := decodeEvery(t, `{"_ansible_check_mode": true, "_ansible_invented_later": {"a": 1}}`)
	require.NoError(t, err)
	assert.NotContains(t, decoded.Params, "_ansible_check_mode")
	assert.NotContains(t, decoded.Params, "_ansible_invented_later")
}

// A copy of long lists would cost as much as all the rest.
func TestDecodeTakesItsInputOver(t *testing.T) {
	raw := rawArgs(t, `{"text": "t", "raw": {"b": [1]}}`)

	decoded, err := everySpec(t).Decode("t.bin.x", raw)
	require.NoError(t, err)

	decoded.Params["raw"].(map[string]any)["b"].([]any)[0] = "changed"
	assert.Equal(t, map[string]any{"text": "t", "raw": map[string]any{"b": []any{"changed"}}}, raw)
}

func TestArgumentsAreNotWhatIsShownOfThem(t *testing.T) {
	var args everyType

	decoded, err := everySpec(t).Decode("t.bin.x", rawArgs(t, `{"text": "t", "raw": {"b": [1]}}`))
	require.NoError(t, err)
	require.NoError(t, Bind(decoded.Params, &args))

	args.Raw.(map[string]any)["b"].([]any)[0] = "changed"
	assert.Equal(t, map[string]any{"b": []any{int64(1)}}, decoded.Params["raw"])
}

func TestDecodeDefaultsAreCopies(t *testing.T) {
	spec := everySpec(t)

	for range 2 {
		decoded, err := spec.Decode("t.bin.x", map[string]any{"text": "t"})
		require.NoError(t, err)
		assert.Equal(t, map[string]any{"a": int64(1)}, decoded.Params["free"])

		decoded.Params["free"].(map[string]any)["a"] = "changed"
	}
}

func TestDecodeEnvironment(t *testing.T) {
	decoded, err := decodeEvery(t, `{}`)
	require.NoError(t, err)
	assert.Equal(t, "/home/u/sock", decoded.Params["socket"], "X_DIR is not set, so X_SOCKET counts, and is read like an argument")
	assert.Equal(t, "from-the-env", decoded.Params["secret"])
	assert.Equal(t, []string{"from-the-env"}, decoded.Secrets)

	decoded, err = decodeEvery(t, `{"socket": "/given", "secret": null}`)
	require.NoError(t, err)
	assert.Equal(t, "/given", decoded.Params["socket"])
	assert.Nil(t, decoded.Params["secret"], "null counts as given")

	t.Setenv("X_SOCKET", "/real")

	decoded, err = everySpec(t).Decode("t.bin.x", map[string]any{"text": "t"})
	require.NoError(t, err)
	assert.Equal(t, "/real", decoded.Params["socket"])
}

// TestDecodeFreeKeys is about dicts whose values have sub-options, which ansible-core does not have.
func TestDecodeFreeKeys(t *testing.T) {
	decoded, err := decodeEvery(t, `{"devices": {"b": "size=2K key=k1 path=/b", "a": {"dev": "/a", "path": "/x", "parts": "number=1"}}}`)
	require.NoError(t, err)
	assert.Equal(t, map[string]any{
		"a": map[string]any{
			"dev": "/a", "path": "/a", "size": int64(1 << 30), "key": nil, "after": nil, "parts": []any{map[string]any{"number": int64(1)}},
		},
		"b": map[string]any{"path": "/b", "size": int64(2048), "key": "k1", "after": nil, "parts": nil},
	}, decoded.Params["devices"])
	assert.Contains(t, decoded.Secrets, "k1")
	assert.Equal(t, []string{"Both option devices.a.path and its alias devices.a.dev are set."}, decoded.Warnings)

	for args, want := range map[string]string{
		`{"devices": {"a": {"size": "x"}}}`: "argument 'size' is of type str found in 'devices -> a'. and we were unable to convert to bytes: " +
			"<class 'str'> cannot be converted to a Byte value",
		`{"devices": {"a": {"key": "k"}}}`: "missing parameter(s) required by 'key': path found in devices -> a",
		`{"devices": {"a": {"typo": 1}}}`: "Unsupported parameters for (t.bin.x) module: devices.a.typo. " +
			"Supported parameters include: after, key, parts, path, size (dev, pass).",
		`{"devices": {"a": {"parts": [{}]}}}`: "missing required arguments: number found in devices -> a -> parts",
		`{"devices": {"a": [1]}}`: "value 'a' of argument 'devices' is of type list and we were unable to convert to dict: " +
			"<class 'list'> cannot be converted to a dict",
		`{"devices": {"a": null}}`: "value 'a' of argument 'devices' is of type NoneType and we were unable to convert to dict: " +
			"<class 'NoneType'> cannot be converted to a dict",
	} {
		_, err := decodeEvery(t, args)
		assert.EqualError(t, err, want, args)
	}
}

func TestDecodeFindsAllSecrets(t *testing.T) {
	tests := map[string]struct {
		args string
		want []string
	}{
		"text":               {`{"secret": "abc"}`, []string{"abc"}},
		"empty, null, bool":  {`{"secret": "", "secrets": [null, true, false]}`, nil},
		"True as text":       {`{"secret": "True"}`, []string{"True"}},
		"number":             {`{"secret": 12345}`, []string{"12345"}},
		"number, rewritten":  {`{"secret": 1.50}`, []string{"1.5", "1.50"}},
		"list":               {`{"secrets": ["ab", "cd"]}`, []string{"ab", "cd"}},
		"list as text":       {`{"secrets": "ab,cd"}`, []string{"ab", "ab,cd", "cd"}},
		"dict":               {`{"hidden": {"a": "v", "b": ["w", {"c": 7}]}}`, []string{"7", "v", "w"}},
		"dict as text":       {`{"hidden": "a=v"}`, []string{"a=v", "v"}},
		"dict of Secret":     {`{"pws": {"a": "v"}}`, []string{"v"}},
		"sub-option":         {`{"disk": {"key": "v", "path": "/"}}`, []string{"v"}},
		"its alias":          {`{"disk": {"pass": "v", "path": "/"}}`, []string{"v"}},
		"sub-option as text": {`{"disk": "key=v path=/"}`, []string{"v"}},
		"in a list":          {`{"disks": [{"key": "v", "path": "/"}, "pass=w path=/"]}`, []string{"v", "w"}},
		"under a free key":   {`{"devices": {"a": {"pass": "v", "path": "/"}}}`, []string{"v"}},
		"with an error":      {`{"number": "x", "secret": "v", "disks": [{"pass": "w"}]}`, []string{"v", "w"}},
		"with a late error":  {`{"disks": [{"pass": "w", "typo": 1, "path": "/"}]}`, []string{"w"}},
		"not readable":       {`{"secret": "v", "raw": ` + strings.Repeat("[", 300) + strings.Repeat("]", 300) + `, "disks": [{"pass": "w"}]}`, []string{"v", "w"}},
		"too long a number":  {`{"secret": ` + strings.Repeat("1", maxDigits+1) + `}`, []string{strings.Repeat("1", maxDigits+1)}},
	}

	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			decoded, _ := everySpec(t).DecodeEnv("t.bin.x", rawArgs(t, strings.Replace(test.args, "{", `{"text": "t", `, 1)), testEnv)
			assert.Equal(t, test.want, decoded.Secrets)
		})
	}
}

func TestDecodeFindsUnusedSecretsWithAnError(t *testing.T) {
	var args struct {
		Key  Secret `ansible:"key" default:"standard"`
		Deep struct {
			Key Secret `ansible:"key" env:"X_KEY"`
		} `ansible:"deep"`
		Number int `ansible:"number"`
	}

	spec, err := SpecOf(args, Rules{})
	require.NoError(t, err)

	decoded, err := spec.DecodeEnv("t.bin.x", map[string]any{"number": "x"}, func(name string) (string, bool) { return "of " + name, true })
	require.Error(t, err)
	assert.Equal(t, []string{"of X_KEY", "standard"}, decoded.Secrets)
}

func TestDecodeErrorsCanBeMasked(t *testing.T) {
	decoded, err := decodeEvery(t, `{"number": "hunter2hunter2", "disk": {"pass": "hunter2hunter2"}}`)
	assert.EqualError(t, err, `argument 'number' is of type str and we were unable to convert to int: "'hunter2hunter2'" cannot be converted to an int`)

	mask := NewMasker()
	mask.Add(decoded.Secrets...)
	assert.Equal(t, `argument 'number' is of type str and we were unable to convert to int: "'********'" cannot be converted to an int`,
		mask.Text(err.Error()))
}

func TestDecodeBoundsWhatItTakes(t *testing.T) {
	deep := func(levels int) string { return strings.Repeat(`[`, levels) + strings.Repeat(`]`, levels) }

	_, err := decodeEvery(t, `{"raw": `+deep(maxDepth)+`}`)
	require.NoError(t, err)

	for args, want := range map[string]string{
		`{"raw": ` + deep(maxDepth+1) + `}`:                      `argument "raw" nests deeper than 200 levels`,
		`{"raw": ` + deep(9000) + `}`:                            `argument "raw" nests deeper than 200 levels`,
		`{"unknown": ` + deep(9000) + `}`:                        `argument "unknown" nests deeper than 200 levels`,
		fmt.Sprintf(`{"free": %q}`, `{"a": `+deep(9000)+`}`):     "unable to evaluate string as dictionary",
		fmt.Sprintf(`{"free": %q}`, `{'a': `+deep(1000000)+`}`):  "unable to evaluate string as dictionary",
		`{"raw": ` + strings.Repeat("9", 5000) + `}`:             `argument "raw" holds a number of 5000 characters, more than 4300`,
		fmt.Sprintf(`{"number": %q}`, strings.Repeat("9", 5000)): "cannot be converted to an int",
		`{"number": "1e999999999"}`:                              "cannot be converted to an int",
		`{"number": "1e99999999999999999999"}`:                   "cannot be converted to an int",
	} {
		_, err := decodeEvery(t, args)
		assert.ErrorContains(t, err, want, args[:min(len(args), 40)])
	}

	_, err = everySpec(t).Decode("t.bin.x", map[string]any{"text": struct{}{}})
	assert.EqualError(t, err, `argument "text" holds a Go value of type struct {}, which is not decoded JSON`)
}

func TestDecodeReplacesWhatIsNotUTF8(t *testing.T) {
	decoded, err := everySpec(t).Decode("t.bin.x", map[string]any{"text": "a\xff", "free": map[string]any{"k\xfe": "v\xfd"}})
	require.NoError(t, err)
	assert.Equal(t, "a\ufffd", decoded.Params["text"])
	assert.Equal(t, map[string]any{"k\ufffd": "v\ufffd"}, decoded.Params["free"])
}

func TestDeprecationAsAnsibleWantsIt(t *testing.T) {
	text, err := json.Marshal([]Deprecation{{Msg: "m", Version: "3.0.0", CollectionName: "t.bin"}, {Msg: "m", Date: "2030-01-01"}})
	require.NoError(t, err)
	assert.JSONEq(t, `[{"msg": "m", "version": "3.0.0", "collection_name": "t.bin"}, {"msg": "m", "date": "2030-01-01"}]`, string(text))
}

func TestDecodeTellsEachDeprecationOnce(t *testing.T) {
	decoded, err := decodeEvery(t, `{"older": "x"}`)
	require.NoError(t, err)
	assert.Equal(t, []Deprecation{
		{Msg: "Alias 'older' is deprecated. See the module docs for more information", Date: "2029-01-01", CollectionName: "t.bin"},
		{Msg: "Param 'old' is deprecated. See the module docs for more information", Date: "2030-01-01", CollectionName: "t.bin"},
	}, decoded.Deprecations)
}

// checkDecoded is what holds for all arguments.
func checkDecoded(t *testing.T, spec *Spec, raw map[string]any) {
	decoded, err := spec.DecodeEnv("t.bin.x", deepCopy(raw).(map[string]any), testEnv)
	require.NotNil(t, decoded)

	text, jsonErr := json.Marshal(decoded.Params)
	require.NoError(t, jsonErr)

	if err == nil {
		for name := range spec.Options {
			require.Contains(t, decoded.Params, name)
		}
	}

	mask := NewMasker()
	mask.Add(decoded.Secrets...)

	shown := masked(t, mask, decoded.Params)

	for _, secret := range decoded.Secrets {
		quoted, _ := json.Marshal(secret)
		if len(secret) >= minKey && !strings.Contains(hiddenPart+hiddenValue, secret) {
			require.NotContains(t, shown, string(quoted[1:len(quoted)-1]), string(text))
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		`{"text": "t", "disks": [{"key": "s3cret", "path": "~/x"}, "size=1K"], "devices": {"a": {"parts": [{"number": "1e3"}]}}}`,
		`{"text": 1e400, "free": "{'a': (1, 0x1F, 'x' \"y\")}", "config": "a='x y',b=\\\"z", "ratio": "nan", "size": "1.5KB"}`,
		`{"txt": null, "secret": 12345678, "raw": [1e5, "12345678", {"12345678": true}], "waits": "1s,2", "tri": "yes", "doc": {"é": []}}`,
		`{"older": "x", "old": "y", "mode": true, "words": ["a", null], "number": 2.0, "unknown": 1, "hidden": {"a": "abcdefgh"}}`,
	} {
		f.Add(seed)
	}

	every, err := SpecOf(everyType{}, Rules{})
	require.NoError(f, err)

	more, err := SpecOf(moreArgs{}, Rules{})
	require.NoError(f, err)

	f.Fuzz(func(t *testing.T, text string) {
		value, err := parseJSON(text)
		raw, ok := value.(map[string]any)

		if err != nil || !ok {
			return
		}

		checkDecoded(t, every, raw)
		checkDecoded(t, more, raw)

		var args everyType

		decoded, err := every.DecodeEnv("t.bin.x", raw, testEnv)
		if err == nil {
			_ = Bind(decoded.Params, &args)
		}
	})
}

func FuzzConversions(f *testing.F) {
	for _, seed := range []string{
		"a=1,b='x y' c=\\\"", "{'a': [1, (2.5e3, -0x1F), None], u'b': r'\\d' \"e\"}", `{"a": {"b": [1.0, "\u017e"]}}`, "1_000.50e2", "-Infinity",
		"~root/$HOME/${X}", "1.5 KiloByte", " yes ", "a,b", "{'''a''': \"\\x41\\u0041\\U00000041\\101\\N\"}", "{\\\n'a'\\\n: 1} # c",
	} {
		f.Add(seed)
	}

	f.Fuzz(func(t *testing.T, text string) {
		text = validText(text)

		for name, convert := range converters {
			value, err := convert(text, testEnv)
			if err != nil {
				continue
			}

			_, err = json.Marshal(value)
			require.NoError(t, err, name)

			same, err := plain(deepCopy(value), 0)
			require.NoError(t, err, name)
			require.Equal(t, pyRepr(value), pyRepr(same), name)

			again, err := convert(value, testEnv)
			require.NoError(t, err, name)

			if name != "path" { // a path may hold a dollar sign after the first expansion
				require.Equal(t, pyRepr(value), pyRepr(again), "%s: converting twice is converting once", name)
			}
		}

		if value, err := parseLiteral(text); err == nil {
			again, err := parseLiteral(pyRepr(value))
			if !strings.Contains(pyRepr(value), "inf") { // "inf" is no literal
				require.NoError(t, err)
				require.Equal(t, pyRepr(value), pyRepr(again))
			}
		}

		_, _ = parseDuration(text)
	})
}

// BenchmarkDecode is what a task costs from decoded JSON to the argument struct, with a struct of 32 options.
func BenchmarkDecode(b *testing.B) {
	raw := rawArgs(b, `{"text": "t", "secret": "hunter2", "disks": [{"path": "/a"}, {"path": "/b"}], "config": {"a": 1}, "words": "a,b"}`)

	for range b.N {
		var args everyType

		spec, err := SpecOf(args, Rules{})
		require.NoError(b, err)

		decoded, err := spec.DecodeEnv("t.bin.x", deepCopy(raw).(map[string]any), testEnv)
		require.NoError(b, err)
		require.NoError(b, Bind(decoded.Params, &args))
	}
}
