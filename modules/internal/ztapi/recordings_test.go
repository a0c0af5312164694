// SPDX-License-Identifier: Apache-2.0

package ztapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/ansible"
)

const recordings = "../../../tests/ztdouble/testdata/recordings"

// recording is a request of a real zerotier-one 1.14.1 and its answer.
type recording struct {
	Request struct {
		Method string `json:"method"`
		Path   string `json:"path"`
	} `json:"request"`
	Response struct {
		Status  int               `json:"status"`
		Headers map[string]string `json:"headers"`
		Raw     string            `json:"body_raw"`
	} `json:"response"`
}

// serveRecording answers everything with one recorded answer.
func serveRecording(t *testing.T, name string) (recording, string) {
	t.Helper()

	var one recording

	text, err := os.ReadFile(filepath.Join(recordings, name))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &one))

	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(one.Response.Status)
		_, _ = w.Write([]byte(one.Response.Raw))
	}))
	t.Cleanup(server.Close)

	return one, server.URL
}

func openRecorded(t *testing.T, url string) (*Service, Controller) {
	t.Helper()

	hide := func(ansible.Secret) {}
	service, err := OpenService(t.Context(), ServiceOptions{APIURL: url, AuthToken: ansible.NewSecret("x")}, hide)
	require.NoError(t, err)
	controller, err := OpenController(t.Context(), ControllerOptions{
		Kind: KindSelfHosted, URL: url, Token: ansible.NewSecret("x"), Timeout: serviceTimeout, ValidateCerts: true,
	}, ServiceOptions{}, hide)
	require.NoError(t, err)

	return service, controller
}

var idInPath = regexp.MustCompile(`/network/([0-9a-fA-F]{16})$`)

// TestReadsRecordedAnswers gives every recorded answer that the modules can meet to the code that reads it.
func TestReadsRecordedAnswers(t *testing.T) {
	entries, err := filepath.Glob(recordings + "/*.json")
	require.NoError(t, err)
	require.Greater(t, len(entries), 200)

	read := map[string]int{}

	for _, entry := range entries {
		name := filepath.Base(entry)
		one, url := serveRecording(t, name)
		service, controller := openRecorded(t, url)

		match := idInPath.FindStringSubmatch(one.Request.Path)
		node := strings.HasPrefix(one.Request.Path, "/network")
		found := one.Response.Status == http.StatusOK

		switch {
		case one.Request.Method != http.MethodGet || one.Response.Status >= 500 || one.Response.Status == 0:
			continue
		case one.Response.Status == http.StatusUnauthorized:
			_, err := service.Status(t.Context())
			assert.Equal(t, CodeTokenRefused, codeOf(t, err), name)
		case one.Request.Path == "/status" && found:
			status, err := service.Status(t.Context())
			require.NoError(t, err, name)
			assert.Len(t, status.Address, 10, name)
		case one.Request.Path == "/network" && found:
			_, err := service.Networks(t.Context())
			require.NoError(t, err, name)
		case node && match != nil:
			joined, err := service.Network(t.Context(), strings.ToLower(match[1]))
			require.NoError(t, err, name)
			assert.Equal(t, found, joined != nil, name)
		case one.Request.Path == "/peer" && found:
			peers, err := service.Peers(t.Context())
			require.NoError(t, err, name)
			assert.NotEmpty(t, peers, name)
		case strings.HasPrefix(one.Request.Path, "/controller/network/") && match != nil && found:
			network, err := controller.Network(t.Context(), strings.ToLower(match[1]))
			require.NoError(t, err, name)
			assert.Positive(t, network.MTU, name)
		case strings.HasPrefix(one.Request.Path, "/unstable/") && strings.HasSuffix(one.Request.Path, "/member"):
			_, err := controller.Members(t.Context(), "6eabbc7191dc633e")
			require.NoError(t, err, name)
		case strings.Contains(one.Request.Path, "/member/") && found:
			member, err := controller.Member(t.Context(), "6eabbc7191dc633e", strings.ToLower(filepath.Base(one.Request.Path)))
			require.NoError(t, err, name)
			assert.NotNil(t, member, name)
		default:
			continue
		}

		read[strings.SplitN(name, "_", 2)[0]]++
	}

	for _, kind := range []string{"status", "network", "controller", "peer"} {
		assert.Positive(t, read[kind], "%s: %v", kind, read)
	}
}

func codeOf(t *testing.T, err error) ansible.Code {
	t.Helper()

	var failure *ansible.Failure

	require.True(t, errors.As(err, &failure), "%v", err)

	return failure.Code
}

func TestMembersTrapsAreRead(t *testing.T) {
	_, url := serveRecording(t, "controller_member_update_ip_bad.json")
	_, controller := openRecorded(t, url)
	member, err := controller.Member(t.Context(), "6eabbc7191dc633e", "680bbfa232")
	require.NoError(t, err)
	assert.Equal(t, []string{"0.0.0.0", "10.147.17.60", "10.147.17.61", "fd00::1"}, member.Addresses)

	_, url = serveRecording(t, "controller_member_update_tags_caps.json")
	_, controller = openRecorded(t, url)
	member, err = controller.Member(t.Context(), "6eabbc7191dc633e", "680bbfa232")
	require.NoError(t, err)
	assert.Equal(t, map[string]int64{"7": 1, "1001": 2001}, member.Tags)
	assert.Equal(t, []int64{1, 3}, member.Capabilities)

	// dns is a list when it is not set, and an object when it is.
	for name, domain := range map[string]string{"controller_network_create_post.json": "", "controller_network_update.json": "zt.example"} {
		one, url := serveRecording(t, name)
		_, controller := openRecorded(t, url)

		var body struct {
			ID string `json:"id"`
		}

		require.NoError(t, json.Unmarshal([]byte(one.Response.Raw), &body))
		network, err := controller.Network(t.Context(), body.ID)
		require.NoError(t, err)
		assert.Equal(t, domain, network.DNS.Domain)
	}

	// The join that does nothing.
	_, url = serveRecording(t, "network_join_no_tun.json")
	service, _ := openRecorded(t, url)
	assert.Equal(t, CodeTunUnusable, codeOf(t, service.Join(t.Context(), "6eabbc7191e06116", Settings{})))
}

// TestAddressesMadeOfIDs compares with what a real node was given.
func TestAddressesMadeOfIDs(t *testing.T) {
	for name, check := range map[string]func(network string) string{
		"network_get_ok.json":               func(network string) string { return RFC4193(network, "680bbfa232") + "/88" },
		"network_get_public_ok_6plane.json": func(network string) string { return SixPlane(network, "680bbfa232") + "/40" },
	} {
		one, url := serveRecording(t, name)
		service, _ := openRecorded(t, url)
		id := idInPath.FindStringSubmatch(one.Request.Path)[1]
		joined, err := service.Network(t.Context(), id)
		require.NoError(t, err)
		assert.Contains(t, joined.Assigned, check(id))
	}

	assert.Empty(t, RFC4193("no", "id"))
	assert.Empty(t, SixPlane("no", "id"))
}

func FuzzParseAddresses(f *testing.F) {
	for _, seed := range []string{"10.0.0.1", "10.0.0.1/24", "fd00::1%eth0", "0.0.0.0", "::ffff:10.0.0.1", "nonsense", ""} {
		f.Add(seed)
	}

	f.Fuzz(func(t *testing.T, text string) {
		parsed, err := ParseAddresses("x", []string{text, text})
		if err == nil && (len(parsed) != 1 || !slices.Equal(SameAddresses(parsed), parsed)) {
			t.Errorf("%q: %v", text, parsed)
		}
	})
}

func FuzzDNS(f *testing.F) {
	f.Add([]byte(`[]`))
	f.Add([]byte(`{"domain":"x","servers":null}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var dns DNS
		if json.Unmarshal(text, &dns) == nil && dns.Servers == nil {
			t.Error("servers is nil")
		}
	})
}

// TestTokenGoesNowhereElse has a server that sends its callers on.
func TestTokenGoesNowhereElse(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") }))
	defer other.Close()

	server := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusFound))
	defer server.Close()

	service, controller := openRecorded(t, server.URL)
	_, err := service.Status(context.Background())
	assert.Equal(t, CodeUnexpectedAnswer, codeOf(t, err))
	_, err = controller.Network(context.Background(), "6eabbc7191dc633e")
	assert.Equal(t, CodeUnexpectedAnswer, codeOf(t, err))
}

// TestRecordedFailure has the controller's 500 about what it was sent, which is no failure that passes: it is asked once.
func TestRecordedFailure(t *testing.T) {
	var one recording

	text, err := os.ReadFile(filepath.Join(recordings, "controller_member_update_bad_json.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &one))
	require.Equal(t, http.StatusInternalServerError, one.Response.Status)

	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++

		w.WriteHeader(one.Response.Status)
		_, _ = w.Write([]byte(one.Response.Raw))
	}))
	t.Cleanup(server.Close)

	controller, err := OpenController(t.Context(), ControllerOptions{
		Kind: KindSelfHosted, URL: server.URL, Token: ansible.NewSecret("x"), Timeout: serviceTimeout, ValidateCerts: true, Retries: 3,
	}, ServiceOptions{}, func(ansible.Secret) {})
	require.NoError(t, err)

	_, err = controller.Member(t.Context(), "6eabbc719100beef", "680bbfa232")
	assert.Equal(t, CodeUnexpectedAnswer, codeOf(t, err))
	assert.Contains(t, err.Error(), "[json.exception.")
	assert.Equal(t, 1, asked)
}
