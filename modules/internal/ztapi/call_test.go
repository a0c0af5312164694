// SPDX-License-Identifier: Apache-2.0

package ztapi

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/ansible"
)

func TestPausesGrowAndFollowTheServer(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

	for try, least := range []time.Duration{firstPause, 2 * firstPause, 4 * firstPause} {
		got := pause(try, http.Header{}, now)
		assert.GreaterOrEqual(t, got, least)
		assert.Less(t, got, 2*least)
	}

	assert.LessOrEqual(t, pause(100, http.Header{}, now), 2*longestPause)

	for header, value := range map[string]string{"Retry-After": "3", "X-Ratelimit-Reset": now.Add(3 * time.Second).Format(http.TimeFormat)} {
		got := pause(0, http.Header{http.CanonicalHeaderKey(header): {value}}, now)
		assert.GreaterOrEqual(t, got, 3*time.Second, header)
		assert.Less(t, got, 4*time.Second, header)
	}

	assert.Equal(t, 2*longestPause, pause(0, http.Header{"Retry-After": {"86400"}}, now), "nobody waits for a day")
	assert.Zero(t, askedPause(http.Header{"X-Ratelimit-Reset": {"yesterday"}}, now))
}

func TestURLs(t *testing.T) {
	for url, ok := range map[string]bool{
		"http://127.0.0.1:9993": true, "http://[::1]:9993": true, "https://controller.example": true,
		"http://192.0.2.1:9993": false, "http://localhost:9993": false, "127.0.0.1:9993": false, "ftp://127.0.0.1": false,
		"https://user:secret@controller.example": false, "https://controller.example?auth=secret": false, "": false,
	} {
		err := checkURL("url", url, false)
		assert.Equal(t, ok, err == nil, "%s: %v", url, err)

		if err != nil {
			assert.NotContains(t, err.Error(), "secret")
		}
	}

	assert.NoError(t, checkURL("url", "http://192.0.2.1:9993", true))
}

func TestHomeFolder(t *testing.T) {
	home := t.TempDir()
	options := ServiceOptions{Home: ansible.Path(home)}
	hide := func(ansible.Secret) {}

	_, err := OpenService(t.Context(), options, hide)
	assert.Equal(t, CodeServiceMissing, codeOf(t, err))

	require.NoError(t, os.WriteFile(filepath.Join(home, "authtoken.secret"), []byte(" \n"), 0o600))
	_, err = OpenService(t.Context(), options, hide)
	assert.Equal(t, CodeServiceMissing, codeOf(t, err), "an empty token is none")

	require.NoError(t, os.WriteFile(filepath.Join(home, "authtoken.secret"), []byte("abc\n"), 0o600))
	service, err := OpenService(t.Context(), options, hide)
	require.NoError(t, err)
	assert.Equal(t, "http://127.0.0.1:9993", service.caller.base)

	require.NoError(t, os.WriteFile(filepath.Join(home, "zerotier-one.port"), []byte("19993"), 0o644))
	service, err = OpenService(t.Context(), options, hide)
	require.NoError(t, err)
	assert.Equal(t, "http://127.0.0.1:19993", service.caller.base)

	require.NoError(t, os.WriteFile(filepath.Join(home, "zerotier-one.port"), []byte("x"), 0o644))
	_, err = OpenService(t.Context(), options, hide)
	assert.Error(t, err)
}
