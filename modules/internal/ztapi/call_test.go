// SPDX-License-Identifier: Apache-2.0

package ztapi

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
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

// TestManyRefusalsAreWaitedOut has a server that refuses more often than there are tries, and one that does so for ever.
func TestManyRefusalsAreWaitedOut(t *testing.T) {
	var asked atomic.Int64

	refusals := int64(5)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) <= refusals {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusTooManyRequests)
		}
	}))
	t.Cleanup(server.Close)

	made := caller{what: "the controller", header: "Authorization", base: server.URL, client: server.Client(), retries: 1, left: 30 * time.Second, unreachable: CodeControllerUnreachable}

	_, err := made.do(t.Context(), http.MethodGet, "/", nil, false)
	require.NoError(t, err)
	assert.Equal(t, refusals+1, asked.Load())

	refusals, made.left = 1<<62, 300*time.Millisecond
	_, err = made.do(t.Context(), http.MethodGet, "/", nil, false)
	require.ErrorIs(t, err, errDeadline)
	require.ErrorContains(t, err, "status 429")
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

// TestNodeTakes has the addresses that a node gives its device, which are not only private ones.
func TestNodeTakes(t *testing.T) {
	for address, want := range map[string][2]bool{ // without and with allow_global
		"10.1.2.3": {true, true}, "192.168.1.1": {true, true}, "172.16.0.1": {true, true}, "fd00::1": {true, true}, "fc00::1": {true, true},
		"100.64.0.1": {true, true}, "100.127.255.255": {true, true}, "25.1.2.3": {true, true}, "28.0.0.1": {true, true}, "240.0.0.1": {true, true},
		"100.128.0.1": {false, true}, "8.8.8.8": {false, true}, "2001:db8::1": {false, true}, "172.32.0.1": {false, true},
		"169.254.1.1": {false, false}, "127.0.0.1": {false, false}, "224.0.0.1": {false, false}, "0.1.2.3": {false, false},
		"255.0.0.1": {false, false}, "fe80::1": {false, false},
	} {
		addr := netip.MustParseAddr(address)
		assert.Equal(t, want[0], NodeTakes(addr, Allow{Managed: true}), address)
		assert.Equal(t, want[1], NodeTakes(addr, Allow{Managed: true, Global: true}), address)
		assert.False(t, NodeTakes(addr, Allow{Global: true}), address)
	}
}

// TestTagWithoutValue has Central's false for a tag come and go as it is.
func TestTagWithoutValue(t *testing.T) {
	var read memberJSON

	require.NoError(t, json.Unmarshal([]byte(`{"tags":[[1,false],[2,5]]}`), &read))

	tags := read.make().Tags
	assert.Equal(t, map[string]int64{"1": TagWithoutValue, "2": 5}, tags)

	text, err := json.Marshal(MemberChange{Tags: &tags}.body())
	require.NoError(t, err)
	assert.JSONEq(t, `{"tags":[[1,false],[2,5]]}`, string(text))
}

// TestHasRoute has a default route as a node makes it: in two halves, so that the host's own stays.
func TestHasRoute(t *testing.T) {
	have := []Route{{"0.0.0.0/1", "10.0.0.1"}, {"128.0.0.0/1", "10.0.0.1"}, {"::/1", "fd00::1"}, {"10.1.0.0/24", ""}}

	for want, has := range map[Route]bool{
		{"0.0.0.0/0", "10.0.0.1"}: true, {"0.0.0.0/0", "10.0.0.2"}: false, {"::/0", "fd00::1"}: false, {"10.1.0.0/24", ""}: true,
		{"10.1.0.0/24", "10.0.0.1"}: false, {"10.2.0.0/24", ""}: false,
	} {
		assert.Equal(t, has, HasRoute(have, want), want)
	}
}
