// SPDX-License-Identifier: Apache-2.0

package ztdouble

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const recordings = "testdata/recordings"

// recording is one request of the real service and its answer, or a trace of a network's status.
type recording struct {
	Node    string `json:"node"`
	Request struct {
		Method      string            `json:"method"`
		Path        string            `json:"path"`
		Host        string            `json:"host"`
		Auth        map[string]string `json:"auth"`
		ContentType string            `json:"content_type"`
		Body        any               `json:"body"`
	} `json:"request"`
	Response struct {
		Status  int               `json:"status"`
		Headers map[string]string `json:"headers"`
		Raw     string            `json:"body_raw"`
		Body    any               `json:"body"`
		Exit    int               `json:"curl_exit"`
	} `json:"response"`
	Trace []json.RawMessage `json:"trace"`
}

// seen is one state in a trace.
type seen struct {
	T        float64  `json:"t"`
	Status   string   `json:"status"`
	Assigned []string `json:"assigned"`
	Revision int      `json:"rev"`
	Name     string   `json:"name"`
	Type     string   `json:"type"`
	Device   string   `json:"dev"`
}

// replay is the recordings' three nodes on a clock that the test turns.
type replay struct {
	*testing.T
	now   time.Time
	world *World
	nodes map[string]*Node
}

const (
	lab  = "6eabbc7191dc633e"
	open = "6eabbc719117dec5"
	addr = "680bbfa232"
)

func newReplay(t *testing.T) *replay {
	t.Helper()

	r := &replay{T: t, now: time.UnixMilli(1795374733675), nodes: map[string]*Node{}}
	r.world = NewWorld(1)
	r.world.Now = func() time.Time { return r.now }

	ids := []string{"dc633e", "e06116"}
	r.world.NextID = func() string {
		next := ids[0]
		ids = ids[1:]

		return next
	}

	for name, address := range map[string]string{"a": addr, "b": "00d52687fd", "c": "6eabbc7191"} {
		r.nodes[name] = r.world.AddNode(address, "right")
	}

	c := r.nodes["c"]
	c.Root = true
	c.RootUp = func() bool { return true }

	for _, name := range []string{"a", "b"} {
		r.nodes[name].RootUp = func() bool { return !c.Stopped }
	}

	r.pass(10 * time.Second)

	return r
}

// pass turns the clock in steps, as the real service would work all the while.
func (r *replay) pass(d time.Duration) {
	for end := r.now.Add(d); r.now.Before(end); {
		r.now = r.now.Add(50 * time.Millisecond)

		for _, node := range r.nodes {
			node.Advance()
		}
	}
}

func (r *replay) set(name, method, path, body string) {
	request := httptest.NewRequest(method, path, strings.NewReader(body))
	request.RemoteAddr = "127.0.0.1:1"
	request.Header.Set("X-ZT1-Auth", "right")

	answer := httptest.NewRecorder()
	r.nodes[name].ServeHTTP(answer, request)
	require.Equal(r, http.StatusOK, answer.Code, "%s %s", method, path)
	r.pass(100 * time.Millisecond)
}

// setUps are what was done between recordings without one of its own.
var setUps = map[string]func(r *replay){
	"network_join_public.json": func(r *replay) {
		r.set("c", "POST", "/controller/network/"+open, `{"name":"open","private":false,"v4AssignMode":{"zt":true},"v6AssignMode":{"zt":false,"rfc4193":false,"6plane":true},
			"ipAssignmentPools":[{"ipRangeStart":"10.200.0.10","ipRangeEnd":"10.200.0.20"}],"routes":[{"target":"10.200.0.0/24"}]}`)
	},
	"peer_list_after_traffic.json": func(r *replay) { r.pass(5 * time.Second) },
	"network_get_ip_outside_route.json": func(r *replay) {
		r.pass(time.Second)
	},
	"network_get_bridge.json": func(r *replay) {
		r.set("a", "DELETE", "/network/"+open, "")
		r.set("c", "POST", "/controller/network/"+lab+"/member/"+addr, `{"activeBridge":true}`)
		r.pass(time.Second)
	},
	"network_get_40_ips.json": func(r *replay) {
		var ips []string
		for i := range 40 {
			ips = append(ips, `"10.147.17.1`+string(rune('0'+i/10))+string(rune('0'+i%10))+`"`)
		}

		r.set("c", "POST", "/controller/network/"+lab+"/member/"+addr, `{"activeBridge":false,"ipAssignments":[`+strings.Join(ips, ",")+`]}`)
	},
	"daemon_down.json": func(r *replay) {
		r.set("c", "POST", "/controller/network/"+lab+"/member/"+addr, `{"ipAssignments":["10.147.17.60"]}`)
		r.nodes["a"].Stopped = true
	},
	"trace_node_restart.json":                    func(r *replay) { r.nodes["a"].Restart() },
	"network_get_controller_down.json":           func(r *replay) { r.nodes["c"].Stopped = true; r.pass(3 * time.Second) },
	"network_get_restarted_controller_down.json": func(r *replay) { r.nodes["a"].Restart(); r.pass(10 * time.Second) },
	"controller_remote_allowed.json": func(r *replay) {
		r.nodes["c"].Restart()
		r.nodes["c"].AllowFrom = []string{"10.77.0.0/24"}
		r.pass(10 * time.Second)
	},
	"network_get_preseeded.json": func(r *replay) {
		r.nodes["b"].Restart()
		r.nodes["b"].Preseed("6eabbc7191e06116")
		r.pass(10 * time.Second)
	},
	"status_other_port.json":   func(r *replay) { r.nodes["b"].Restart() },
	"network_list_no_tun.json": func(r *replay) { r.nodes["b"].NoTun = true },
	"controller_network_bad_pool_replaces_good.json": func(r *replay) {
		r.set("c", "POST", "/controller/network/6eabbc71919b2c1d", `{"name":"probe","v4AssignMode":{"zt":true},
			"ipAssignmentPools":[{"ipRangeStart":"10.50.0.10","ipRangeEnd":"10.50.0.20"}],"routes":[{"target":"10.50.0.0/24"}]}`)
	},
	"network_get_final_a.json": func(r *replay) {
		r.nodes["b"].NoTun = false
		r.nodes["a"].Restart()
		r.nodes["b"].Restart()
		r.pass(10 * time.Second)
	},
	"network_rejoin_after_leave.json": func(r *replay) { r.set("a", "DELETE", "/network/"+lab, "") },
}

// traces are the networks that the traces of node a are about; those of others are named.
var traces = map[string][2]string{
	"trace_join_preauthorised.json":          {"b", lab},
	"trace_join_nonexistent.json":            {"a", "6eabbc719100ffff"},
	"trace_join_controller_unreachable.json": {"a", "deadbeef00000001"},
	"trace_join_uppercase.json":              {"a", "6eabbc719100abcd"},
	"trace_network_deleted_denied.json":      {"a", "6eabbc719100abcd"},
	"trace_join_public.json":                 {"a", open},
	"trace_network_deleted_ok.json":          {"a", open},
}

// TestRecordings walks the recordings of a real zerotier-one 1.14.1 in their order: the double must give the same
// statuses, headers and bodies, clocks, ports and identities aside, and its networks must go through the same states.
func TestRecordings(t *testing.T) {
	var order struct {
		Order []string `json:"order"`
	}

	read(t, "order.json", &order)
	require.Greater(t, len(order.Order), 200)

	r := newReplay(t)
	compared := 0

	for _, name := range order.Order {
		if prepare := setUps[name]; prepare != nil {
			prepare(r)
		}

		if name == "timings.json" {
			continue // how often what took how long: the traces are compared
		}

		var one recording

		read(t, name, &one)

		switch {
		case name == "trace_node_restart.json":
			r.checkRestart()
		case one.Trace != nil:
			r.checkTrace(name, one)
		case one.Response.Exit == 7:
			continue // nothing listens: there is no answer to compare
		default:
			r.checkAnswer(name, one)
		}

		compared++

		r.pass(50 * time.Millisecond)
	}

	entries, err := filepath.Glob(recordings + "/*.json")
	require.NoError(t, err)
	// order.json itself, the timings, and two requests that nothing answered.
	assert.Equal(t, len(entries), compared+4, "every recording is compared")
}

func read(t *testing.T, name string, into any) {
	t.Helper()

	text, err := os.ReadFile(filepath.Join(recordings, name))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, into), name)
}

func (r *replay) checkAnswer(name string, one recording) {
	got := httptest.NewRecorder()
	r.nodes[one.Node].ServeHTTP(got, makeRequest(r.T, one))

	want := one.Response
	assert.Equal(r, want.Status, got.Code, name)

	for _, header := range []string{"Content-Type", "Keep-Alive", "Accept-Ranges"} {
		assert.Equal(r, want.Headers[header], got.Header().Get(header), "%s: header %s", name, header)
	}

	if want.Raw == "" {
		assert.Empty(r, got.Body.String(), name)
		return
	}

	var body any

	require.NoError(r, json.Unmarshal(got.Body.Bytes(), &body), name)
	assert.Equal(r, comparable(want.Body), comparable(body), name)
}

func makeRequest(t *testing.T, one recording) *http.Request {
	t.Helper()

	body := []byte(nil)

	switch sent := one.Request.Body.(type) {
	case nil:
	case string:
		body = []byte(sent)
	default:
		var err error
		body, err = json.Marshal(sent)
		require.NoError(t, err)
	}

	token := map[string]string{"ok": "right", "wrong": "not this one"}[one.Request.Auth["token"]]
	path := one.Request.Path

	if one.Request.Auth["how"] == "query" && !strings.Contains(path, "auth=") {
		path += "?auth=" + token
	}

	request := httptest.NewRequest(one.Request.Method, path, bytes.NewReader(body))
	request.RemoteAddr = "127.0.0.1:4"

	if !strings.HasPrefix(one.Request.Host, "127.") {
		request.RemoteAddr = "10.77.0.2:4"
	}

	switch how := one.Request.Auth["how"]; {
	case one.Request.Auth["token"] == "none":
	case how == "X-ZT1-Auth":
		request.Header.Set(how, token)
	case how != "query":
		request.Header.Set("Authorization", how+" "+token)
	}

	return request
}

// comparable leaves out what differs from run to run and from host to host: clocks, identities, ports, ways to peers, and
// the multicast groups that the kernel joined.
func comparable(value any) any {
	switch v := value.(type) {
	case []any:
		for i := range v {
			v[i] = comparable(v[i])
		}
	case map[string]any:
		for _, key := range []string{
			"clock", "creationTime", "identity", "publicIdentity", "listeningOn", "surfaceAddresses", "primaryPort", "secondaryPort",
			"paths", "latency", "multicastSubscriptions",
		} {
			delete(v, key)
		}

		for key := range v {
			if number, isNumber := v[key].(float64); isNumber && strings.HasSuffix(key, "dTime") {
				v[key] = number != 0
			} else {
				v[key] = comparable(v[key])
			}
		}
	}

	return value
}

// look is what a poll of a trace saw.
func (r *replay) look(node, network string) seen {
	var found seen

	r.world.Lock(func() {
		one := r.nodes[node].joined[network]
		require.NotNil(r, one, network)

		shown := r.nodes[node].show(one)
		found = seen{
			Status: one.status, Assigned: shown["assignedAddresses"].([]string), Revision: shown["netconfRevision"].(int),
			Name: shown["name"].(string), Type: shown["type"].(string), Device: shown["portDeviceName"].(string),
		}
	})

	return found
}

func (r *replay) checkTrace(name string, one recording) {
	node, network := "a", lab
	if named, other := traces[name]; other {
		node, network = named[0], named[1]
	}

	var want []seen

	for _, text := range one.Trace {
		var state seen

		require.NoError(r, json.Unmarshal(text, &state), name)
		want = append(want, state)
	}

	start, got := r.now, []seen{}

	for r.now.Sub(start) < 70*time.Second && len(got) < len(want) || r.now.Sub(start) < 300*time.Millisecond {
		now := r.look(node, network)
		now.T = r.now.Sub(start).Seconds()

		last := now
		if len(got) > 0 {
			last.T = got[len(got)-1].T
		}

		if len(got) == 0 || !assert.ObjectsAreEqual(got[len(got)-1], last) {
			got = append(got, now)
		}

		r.pass(50 * time.Millisecond)
	}

	require.Len(r, got, len(want), name)

	for i := range want {
		assert.Equal(r, pace(want[i].T), pace(got[i].T), "%s: %s after %.2f s, not %.2f s", name, want[i].Status, got[i].T, want[i].T)
		want[i].T, got[i].T = 0, 0
		assert.Equal(r, want[i], got[i], name)
	}
}

// pace sorts times into those that are seen in one class: at once, at a node's next question, at its refresh.
func pace(seconds float64) string {
	switch {
	case seconds < 0.3:
		return "at once"
	case seconds < 7:
		return "at the next question"
	}

	return "at the refresh"
}

// checkRestart sees the network at once, from the configuration that was kept, and the node online only later.
func (r *replay) checkRestart() {
	a := r.nodes["a"]

	assert.Equal(r, "OK", r.look("a", lab).Status)
	assert.Equal(r, []string{"10.147.17.60/24"}, r.look("a", lab).Assigned)
	assert.False(r, a.online)
	r.pass(4 * time.Second)
	assert.False(r, a.online)
	r.pass(3 * time.Second)
	assert.True(r, a.online)
}
