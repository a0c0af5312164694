// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"
)

const testSecret = "hunter2-hunter2"

// holders are the ways in which a struct can hold a secret.
type holders struct {
	Public  Secret
	Pointer *Secret
	private Secret
	inner   struct{ deep []Secret }
	Map     map[string]Secret
	Any     any
}

func newHolders() holders {
	secret := NewSecret(testSecret)
	h := holders{Public: secret, Pointer: &secret, private: secret, Map: map[string]Secret{"k": secret}, Any: secret}
	h.inner.deep = []Secret{secret}

	return h
}

func TestSecretHidesFromEveryVerb(t *testing.T) {
	h := newHolders()

	for verb := 'A'; verb <= 'z'; verb++ {
		for _, flags := range []string{"", "+", "#", "-20", "020", " ", ".3", "#+"} {
			format := "%" + flags + string(verb)
			for _, value := range []any{h.Public, &h.Public, h, &h, []any{h.private}, h.inner, fmt.Errorf("at %w", errors.New(fmt.Sprint(h.private)))} {
				shown := fmt.Sprintf(format, value)
				assert.NotContains(t, shown, "hunter2", format)
				assert.NotContains(t, shown, "68756e746572", format) // in hex
				assert.NotContains(t, shown, "104 117 110", format)  // as a list of bytes
			}
		}
	}

	assert.Equal(t, hiddenValue, fmt.Sprintf("%d", h.Public))
	assert.Equal(t, hiddenValue, fmt.Sprint(h.Public))
	assert.Equal(t, hiddenValue, h.Public.GoString())
}

func TestSecretHidesFromEncoders(t *testing.T) {
	h := newHolders()

	text, err := json.Marshal(h)
	require.NoError(t, err)
	assert.NotContains(t, string(text), "hunter2")
	assert.Contains(t, string(text), `"Public":"`+hiddenValue+`"`)

	asKey, err := json.Marshal(map[string]any{"k": struct{ S Secret }{h.private}})
	require.NoError(t, err)
	assert.NotContains(t, string(asKey), "hunter2")

	text, err = yaml.Marshal(map[string]any{"a": h.Public, "b": h.Pointer})
	require.NoError(t, err)
	assert.NotContains(t, string(text), "hunter2")

	type element struct{ S Secret }

	text, err = xml.Marshal(element{h.Public})
	require.NoError(t, err)
	assert.NotContains(t, string(text), "hunter2")

	var out bytes.Buffer

	_ = gob.NewEncoder(&out).Encode(h.Public)
	assert.NotContains(t, out.String(), "hunter2")
}

func TestSecretHidesFromLogs(t *testing.T) {
	var out bytes.Buffer

	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		h := newHolders()
		slog.New(handler).Info("made", "secret", h.Public, "holders", h, "pointer", h.Pointer)
	}

	assert.Equal(t, 2, strings.Count(out.String(), "made"))
	assert.NotContains(t, out.String(), "hunter2")
}

func TestSecretRevealsOnlyWhenAsked(t *testing.T) {
	secret := NewSecret(testSecret)

	assert.Equal(t, testSecret, secret.Reveal())
	assert.True(t, secret.IsSet())
	assert.True(t, secret.Equal(NewSecret(testSecret)))
	assert.False(t, secret.Equal(NewSecret("other")))
	assert.Equal(t, NewSecret(testSecret), secret, "equal structs stay equal for reflect.DeepEqual")
}

func TestSecretThatIsNotSet(t *testing.T) {
	for _, secret := range []Secret{{}, NewSecret("")} {
		assert.False(t, secret.IsSet())
		assert.Empty(t, secret.Reveal())
		assert.Empty(t, fmt.Sprintf("%v%#v%s%q%d", secret, secret, secret, secret, secret))

		text, err := json.Marshal(secret)
		require.NoError(t, err)
		assert.JSONEq(t, "null", string(text))
	}
}

func TestSecretIsRead(t *testing.T) {
	var secret Secret

	require.NoError(t, json.Unmarshal([]byte(`"a\u0062c"`), &secret))
	assert.Equal(t, "abc", secret.Reveal())

	require.NoError(t, json.Unmarshal([]byte(`null`), &secret))
	assert.False(t, secret.IsSet())

	require.NoError(t, yaml.Unmarshal([]byte("hunter2"), &secret))
	assert.Equal(t, "hunter2", secret.Reveal())

	err := json.Unmarshal([]byte(`{"s": 271828}`), &struct{ S *Secret }{&secret})
	require.Error(t, err)
	assert.NotContains(t, err.Error(), "271828")
}
