// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func maskOf(secrets ...string) *Masker {
	mask := NewMasker()
	mask.Add(secrets...)

	return mask
}

// masked is a value as it leaves the process.
func masked(t *testing.T, mask *Masker, value any, keep ...string) string {
	t.Helper()

	text, err := mask.AppendJSON(nil, value, keep...)
	require.NoError(t, err)
	require.True(t, json.Valid(text), "%s", text)

	return string(text)
}

func TestMaskText(t *testing.T) {
	tests := map[string]struct {
		secrets []string
		text    string
		want    string
	}{
		"no secret known":           {nil, "text", "text"},
		"the empty secret":          {[]string{""}, "text", "text"},
		"equal":                     {[]string{"s3cret"}, "s3cret", hiddenValue},
		"inside":                    {[]string{"s3cret"}, "has s3cret inside", "has ******** inside"},
		"each time":                 {[]string{"s"}, "glass", "gla****************"},
		"longest first":             {[]string{"abc", "abcdef"}, "x abcdef abc", "x ******** ********"},
		"longest first, any order":  {[]string{"abcdef", "abc"}, "abcdef", hiddenValue},
		"overlap":                   {[]string{"abcd", "cdef"}, "-abcdef-", "-********-"},
		"a secret over itself":      {[]string{"aba"}, "-ababa-", "-********-"},
		"not UTF-8":                 {[]string{"pw"}, "\xff pw\xfe", "\ufffd ********\ufffd"},
		"a secret that is not":      {[]string{"p\xffw"}, "is p\xffw here, p\ufffdw there", "is ******** here, ******** there"},
		"a line of many":            {[]string{"BEGIN KEY\r\nc2VjcmV0\nEND"}, "bad line c2VjcmV0!", "bad line ********!"},
		"a short line":              {[]string{"user\nlong password"}, "user long password", "user ********"},
		"surrounding white space":   {[]string{"hunter22\n"}, "login hunter22 ok", "login ******** ok"},
		"the whole of several line": {[]string{"a\nb"}, "x a\nb y", "x ******** y"},
	}

	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			mask := maskOf(test.secrets...)
			assert.Equal(t, test.want, mask.Text(test.text))
			assert.Equal(t, test.want, string(mask.Bytes([]byte(test.text))))
		})
	}
}

// awkward are secrets that look different in other notations.
var awkward = []string{
	testSecret, `qu"ote\back`, "it's & <b>é", "tab\tnl\nend", "100% /path?x=y+z", "\x01\x02ctl\x7f", "日本語のパスワード", "emoji😀face", "abcd", "e=f;",
}

func TestMaskForms(t *testing.T) {
	quoted := func(text string) string { return text[1 : len(text)-1] }
	marshal := func(text string) string {
		out, _ := json.Marshal(text)

		return quoted(string(out))
	}
	forms := map[string]func(string) string{
		"base64":            func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
		"base64, URL":       func(s string) string { return base64.URLEncoding.EncodeToString([]byte(s)) },
		"base64, raw":       func(s string) string { return base64.RawStdEncoding.EncodeToString([]byte(s)) },
		"base64, raw URL":   func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) },
		"JSON":              marshal,
		"JSON, as Python":   func(s string) string { return quoted(jsonQuote(s)) },
		"Go":                func(s string) string { return quoted(strconv.Quote(s)) },
		"Go, ASCII":         func(s string) string { return quoted(strconv.QuoteToASCII(s)) },
		"Python":            func(s string) string { return quoted(pyQuote(s)) },
		"query":             url.QueryEscape,
		"path":              url.PathEscape,
		"percent, lower":    func(s string) string { return lowerPercent(percentAll(s)) },
		"user in a URL":     func(s string) string { return url.User(s).String() },
		"shell":             func(s string) string { return strings.ReplaceAll(s, "'", `'\''`) },
		"error of strconv":  func(s string) string { _, err := strconv.Atoi(s); return strings.Split(err.Error(), `"`)[1] },
		"percent, by Query": func(s string) string { return url.Values{"k": {s}}.Encode()[2:] },
	}

	for name, form := range forms {
		for _, secret := range awkward {
			if name == "error of strconv" && strings.Contains(secret, `"`) {
				continue // the split above is too simple for it
			}

			got := maskOf(secret).Text("<" + form(secret) + ">")
			assert.Equal(t, "<********>", got, "%s of %q", name, secret)
		}
	}
}

// TestMaskInsideBase64 puts the secret at every alignment into longer texts: nothing that only the secret decides may
// be left.
func TestMaskInsideBase64(t *testing.T) {
	encodings := []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding, base64.RawURLEncoding}

	for _, secret := range []string{testSecret, "sixsix", "\xff\xfe\xfd\xfc\xfb\xfa\xf9", "日本語のパスワード"} {
		mask := maskOf(secret)

		for before := range 7 {
			for after := range 7 {
				for _, encoding := range encodings {
					encoded := encoding.EncodeToString([]byte(strings.Repeat("u", before) + secret + strings.Repeat(":", after)))
					got := mask.Text("Basic " + encoded + " end")

					first := before * 8 / 6                 // the first character with bits of the secret
					end := ((before+len(secret))*8 + 5) / 6 // the first one after it without
					want := encoded[:first] + hiddenPart + encoded[end:]
					assert.Equal(t, "Basic "+strings.TrimRight(want, "="), strings.TrimRight(strings.TrimSuffix(got, " end"), "="))
				}
			}
		}
	}
}

func TestMaskLeavesShortSecretsUnencoded(t *testing.T) {
	// "cw" is "s" in base64 without padding: two letters that are in many words.
	assert.Equal(t, "cwm ************************", maskOf("s").Text("cwm sss"))
	assert.Equal(t, "auth ********", maskOf("s").Text("auth cw=="))
}

type resource struct {
	Name   string            `json:"name"`
	Config map[string]string `json:"config"`
	Key    Secret            `json:"key"`
	Size   uint64            `json:"size"`
	At     time.Time         `json:"at"`
}

func TestMaskValue(t *testing.T) {
	mask := maskOf("s3cret", "12345", "long-secret")
	when := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

	tests := map[string]struct{ value, want any }{
		"nothing":               {nil, nil},
		"bool":                  {true, true},
		"empty text":            {"", ""},
		"number":                {json.Number("7"), json.Number("7")},
		"number equal":          {json.Number("12345"), hiddenValue},
		"number inside":         {int64(9123459), hiddenValue},
		"number of another":     {12346, 12346},
		"float":                 {12.345, 12.345},
		"float inside":          {12345.5, hiddenValue},
		"large number":          {new(big.Int).Lsh(big.NewInt(1), 70), json.Number("1180591620717411303424")},
		"no number in JSON":     {math.Inf(1), "Infinity"},
		"list":                  {[]any{"s3cret", "a s3cret", nil, false}, []any{hiddenValue, "a ********", nil, false}},
		"key of short secret":   {map[string]any{"s3cret": 1}, map[string]any{"s3cret": 1}},
		"key of long secret":    {map[string]any{"long-secret": 1}, map[string]any{hiddenValue: 1}},
		"key with long secret":  {map[string]any{"a long-secret": 1}, map[string]any{"a ********": 1}},
		"key to keep":           {map[string]any{"kept long-secret": "s3cret"}, map[string]any{"kept long-secret": hiddenValue}},
		"typed list":            {[]string{"a", "s3cret"}, []any{"a", hiddenValue}},
		"raw JSON":              {json.RawMessage(`{"a": "s3cret", "b": 1.50}`), map[string]any{"a": hiddenValue, "b": json.Number("1.50")}},
		"a Secret":              {NewSecret("never added"), hiddenValue},
		"what cannot be JSON":   {func() {}, "(a func() that cannot be written as JSON)"},
		"an error that is text": {fmt.Sprint(fmt.Errorf("login with %q", "s3cret")), `login with "********"`},
		"struct": {
			resource{"s3cret", map[string]string{"pw": "x=s3cret"}, NewSecret("k"), 12345, when},
			map[string]any{
				"name": hiddenValue, "config": map[string]any{"pw": "x=********"}, "key": hiddenValue, "size": hiddenValue,
				"at": "2030-01-02T03:04:05Z",
			},
		},
	}

	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			want, err := json.Marshal(test.want)
			require.NoError(t, err)
			assert.Equal(t, string(want), masked(t, mask, test.value, "kept long-secret"))
		})
	}
}

func TestMaskAppends(t *testing.T) {
	text, err := maskOf("s3cret").AppendJSON([]byte("s3cret="), "s3cret")
	require.NoError(t, err)
	assert.Equal(t, `s3cret="`+hiddenValue+`"`, string(text))
}

func TestMaskLeavesTheValueAsItIs(t *testing.T) {
	value := map[string]any{"list": []any{"s3cret"}}
	masked(t, maskOf("s3cret"), value)
	assert.Equal(t, map[string]any{"list": []any{"s3cret"}}, value)
}

func TestMaskKeepsBothOfTwoHiddenKeys(t *testing.T) {
	got := masked(t, maskOf("password-1", "password-2"), map[string]any{"password-1": "a", "password-2": "b", "a": "c", "x": map[string]any{}})
	assert.Equal(t, `{"`+hiddenValue+`":"a","`+hiddenValue+` (2)":"b","a":"c","x":{}}`, got)
}

func TestMaskEndsWithValuesThatContainThemselves(t *testing.T) {
	loop := map[string]any{"pw": "s3cret"}
	loop["self"] = loop

	assert.NotContains(t, masked(t, maskOf("s3cret"), loop), "s3cret")
}

func TestMaskDoesNotEndWithHalfAnAnswer(t *testing.T) {
	task := newTask("toy", nil)
	task.Hide(NewSecret("+1234"))

	said := string(task.encode(map[string]any{"n": json.Number("+1")})) // big.Int reads it, JSON has no such number
	assert.JSONEq(t, `{"failed": true, "msg": "encoding the result failed: *errors.errorString", "failure": {"code": "internal"}}`, said)
}

func TestMaskWhileSecretsAreAdded(t *testing.T) {
	mask := NewMasker()

	var group sync.WaitGroup

	for i := range 8 {
		group.Add(1)

		go func() {
			defer group.Done()

			secret := fmt.Sprintf("secret number %d", i)
			mask.Add(secret)
			assert.Equal(t, hiddenValue, mask.Text(secret))
			assert.Equal(t, `{"a":"`+hiddenValue+`"}`, masked(t, mask, map[string]any{"a": secret}))
		}()
	}

	group.Wait()
}

// bigResult is a result of about 100 kB, such as the state of a cluster with many instances.
func bigResult() any {
	var list []any

	for i := range 400 {
		list = append(list, map[string]any{
			"name": fmt.Sprintf("instance-%d", i), "status": "Running", "cpu": int64(i), "ephemeral": false,
			"config":  map[string]any{"limits.memory": "4GiB", "user.note": "nothing to see here, move along please"},
			"devices": map[string]any{"root": map[string]any{"path": "/", "pool": "default", "type": "disk"}},
			"id":      base64.StdEncoding.EncodeToString([]byte(fmt.Sprintf("some opaque identifier %d", i))),
		})
	}

	return map[string]any{"instances": list}
}

func BenchmarkMask(b *testing.B) {
	value := bigResult()
	text, err := json.Marshal(value)
	require.NoError(b, err)

	for _, count := range []int{1, 5, 50} {
		mask := NewMasker()
		for i := range count {
			mask.Add(fmt.Sprintf("a secret of some length/%d", i))
		}

		b.Run(fmt.Sprintf("value of %d kB, %d secrets", len(text)/1000, count), func(b *testing.B) {
			b.SetBytes(int64(len(text)))

			for range b.N {
				_, _ = mask.AppendJSON(nil, value)
			}
		})
		b.Run(fmt.Sprintf("text of %d kB, %d secrets", len(text)/1000, count), func(b *testing.B) {
			b.SetBytes(int64(len(text)))

			for range b.N {
				mask.Bytes(text)
			}
		})
	}
}
