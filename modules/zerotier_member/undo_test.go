// SPDX-License-Identifier: Apache-2.0

package zerotiermember_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/zttest"
)

// noAddress makes a task fail at its last part, after it has changed everything.
var noAddress = dict{"wait_timeout": "300ms", "wait_for": "addresses", "wait_addresses": []string{"10.147.17.99"}}

func failure(result zttest.Result) dict {
	found, _ := result.Dict["failure"].(dict)

	return found
}

// TestWhatDoesNotStayIsPutBack has somebody else change back what the task changed: the pool of the network, and a service
// that does not know a setting.
func TestWhatDoesNotStayIsPutBack(t *testing.T) {
	w := zttest.New(t)

	result := zttest.Run(t, module, managed(w, dict{"ip_assignments": []string{}}))
	assert.Equal(t, "not_converged", result.Code(), result.Text)
	assert.Contains(t, result.Msg(), "no_auto_assign_ips")
	assert.Contains(t, result.Text, "the network gives IPv4 addresses by itself", "said before")
	assert.Equal(t, true, failure(result)["rolled_back"])
	assert.Empty(t, w.Member(zttest.NodeA))
	assert.Empty(t, w.Nodes[zttest.NodeA].Joined())

	w.Intercept = func(face string, _ http.ResponseWriter, r *http.Request) bool {
		if face == "service" && r.Method == http.MethodPost {
			r.Body = io.NopCloser(strings.NewReader("{}"))
		}

		return false
	}

	result = zttest.Run(t, module, managed(w, dict{"allow_global": true}))
	assert.Equal(t, "not_converged", result.Code(), result.Text)
	assert.Empty(t, w.Member(zttest.NodeA))
	assert.Empty(t, w.Nodes[zttest.NodeA].Joined())
}

// TestNameThatCentralLosesDelegated is what the role does: authorised from elsewhere, joined, and named once the node has
// asked.
func TestNameThatCentralLosesDelegated(t *testing.T) {
	w := zttest.New(t)
	central, controller := w.Central(1)
	central.ForgetNames = true

	delegated := dict{
		"network_id": zttest.Network, "node_id": zttest.NodeA, "home": "/nonexistent", "controller": controller, "name": "node-a",
		"ip_assignments": []string{"10.147.17.60"}, "no_auto_assign_ips": true,
	}

	result := zttest.OK(t, module, delegated)
	assert.Contains(t, fmt.Sprint(result.Dict["warnings"]), "run this task again")
	zttest.OK(t, module, args(w))
	assert.Equal(t, true, zttest.OK(t, module, delegated).Dict["changed"])
	assert.Equal(t, "node-a", w.Member(zttest.NodeA)["name"])
	assert.Equal(t, false, zttest.OK(t, module, delegated).Dict["changed"])
}

// TestFewRequestsDelegated is what the role does with a member that is new at Central v1: authorised without its name, joined,
// and named; each node has four requests.
func TestFewRequestsDelegated(t *testing.T) {
	w := zttest.New(t)
	central, controller := w.Central(1)
	central.ForgetNames = true

	delegated := dict{"network_id": zttest.Network, "node_id": zttest.NodeA, "home": "/nonexistent", "controller": controller}

	result := zttest.OK(t, module, delegated, dict{"ip_assignments": []string{"10.147.17.60"}, "no_auto_assign_ips": true})
	assert.NotContains(t, result.Dict, "warnings")
	zttest.OK(t, module, args(w))
	assert.Equal(t, true, zttest.OK(t, module, delegated, dict{"name": "node-a"}).Dict["changed"])
	assert.LessOrEqual(t, count(w.Requests(), "central_v1"), 4)
	assert.Equal(t, "node-a", w.Member(zttest.NodeA)["name"])
	assert.Equal(t, []any{"10.147.17.60"}, w.Member(zttest.NodeA)["ipAssignments"])
	assert.Equal(t, true, w.Member(zttest.NodeA)["authorized"])
}

// TestAddressOfAnotherMemberAtCentral has both kinds refuse to give an address twice, as a self-hosted controller does.
func TestAddressOfAnotherMemberAtCentral(t *testing.T) {
	for _, version := range []int{1, 2} {
		w := zttest.New(t)
		_, controller := w.Central(version)
		w.Controller("POST", "/controller/network/"+zttest.Network+"/member/"+zttest.NodeB, `{"authorized":true,"ipAssignments":["10.147.17.50"]}`)

		result := zttest.Run(t, module, managed(w, dict{"controller": controller, "ip_assignments": []string{"10.147.17.50"}}))
		assert.Equal(t, "address_taken", result.Code(), result.Text)
		assert.Empty(t, w.Member(zttest.NodeA))
	}
}

// TestRestoreIsLookedAt has a controller store something else than what it is given back.
func TestRestoreIsLookedAt(t *testing.T) {
	w := zttest.New(t)
	zttest.OK(t, module, managed(w, dict{"name": "before"}))

	var posts atomic.Int32

	w.Intercept = func(face string, _ http.ResponseWriter, r *http.Request) bool {
		if face == "controller" && r.Method == http.MethodPost && posts.Add(1) == 2 {
			r.Body = io.NopCloser(strings.NewReader(`{"name":"mine"}`))
		}

		return false
	}

	result := zttest.Run(t, module, managed(w, dict{"name": "after"}), noAddress)
	assert.Contains(t, result.Msg(), "could not be put back")
	assert.Contains(t, result.Msg(), `name: "mine" in place of "before"`)
	assert.Equal(t, false, failure(result)["rolled_back"])
	assert.Equal(t, "OK", failure(result)["status"])
}

// TestRecordOfSomebodyElseStays has an administrator make the member's record between the task's look and its change, which
// is refused.
func TestRecordOfSomebodyElseStays(t *testing.T) {
	w := zttest.New(t)
	_, controller := w.Central(1)
	record := "/controller/network/" + zttest.Network + "/member/" + zttest.NodeA

	w.Intercept = func(face string, out http.ResponseWriter, r *http.Request) bool {
		if face != "central_v1" || r.Method != http.MethodPost {
			return false
		}

		w.Controller("POST", record, `{"authorized":true,"name":"administrator's"}`)
		out.WriteHeader(http.StatusForbidden)

		return true
	}

	result := zttest.Run(t, module, managed(w, dict{"controller": controller, "name": "x"}))
	assert.Equal(t, "token_refused", result.Code(), result.Text)
	assert.Contains(t, result.Msg(), "it is left")
	assert.Equal(t, "administrator's", w.Member(zttest.NodeA)["name"])

	// One that the administrator changed after the task made it stays too.
	w = zttest.New(t)
	time.AfterFunc(150*time.Millisecond, func() { w.Controller("POST", record, `{"name":"administrator's"}`) })

	result = zttest.Run(t, module, managed(w, dict{"name": "x"}), noAddress)
	assert.Contains(t, result.Msg(), "it stays")
	assert.Equal(t, "administrator's", w.Member(zttest.NodeA)["name"])
}

// TestRejectedIsRestored has a member that was rejected, which is more than not authorised.
func TestRejectedIsRestored(t *testing.T) {
	w := zttest.New(t)
	central, controller := w.Central(2)
	task := managed(w, dict{"controller": controller})

	zttest.OK(t, module, task, dict{"authorized": false, "wait": false})

	request := httptest.NewRequest("POST", "/api/v2/network/"+zttest.Network+"/member/"+zttest.NodeA+"/reject", nil)
	request.Header.Set("Authorization", "Bearer "+zttest.CentralToken)
	central.ServeHTTP(httptest.NewRecorder(), request)

	result := zttest.Run(t, module, task, noAddress)
	assert.Equal(t, true, failure(result)["rolled_back"], result.Text)

	result = zttest.OK(t, module, task, dict{"authorized": false, "wait": false})
	assert.Equal(t, false, result.Dict["changed"])
	assert.Equal(t, true, result.Dict["member"].(dict)["after"].(dict)["rejected"])
}

// TestRestartedWithItsController has a service start anew, with another port and token, that is the controller too.
func TestRestartedWithItsController(t *testing.T) {
	w := zttest.New(t)
	c := w.Nodes[zttest.Controller]

	time.AfterFunc(150*time.Millisecond, func() {
		c.Server.Close()
		c.Node.Token = "another-token-of-the-node"
		c.Server = httptest.NewServer(c.Node)
		c.WriteHome(t)
	})
	t.Cleanup(func() { c.Server.Close() })

	result := zttest.Run(t, module, dict{
		"network_id": zttest.Network, "home": c.Home, "controller": dict{"kind": "self_hosted"}, "name": "x",
	}, noAddress, dict{"wait_timeout": "800ms"})
	assert.Equal(t, "address_missing", result.Code(), result.Text)
	assert.Equal(t, true, failure(result)["rolled_back"], result.Text)
	assert.Empty(t, w.Member(zttest.Controller))
	assert.Empty(t, c.Joined())
	assert.NotContains(t, result.Text, "another-token-of-the-node")
}

// TestLeftDuringTheWait has somebody take the node out of the network meanwhile.
func TestLeftDuringTheWait(t *testing.T) {
	w := zttest.New(t)
	a := w.Nodes[zttest.NodeA]

	var online atomic.Bool

	a.RootUp = online.Load

	time.AfterFunc(150*time.Millisecond, func() {
		a.Call(t, "DELETE", "/network/"+zttest.Network, "")
		online.Store(true)
	})

	task := args(w)
	task["wait_for"], task["wait_timeout"], task["test"] = "online", "800ms", []dict{{"address": "10.147.17.9"}}

	result := zttest.Run(t, module, task)
	assert.Equal(t, "refused_by_node", result.Code(), result.Text)
	assert.Contains(t, result.Msg(), "is not in network 6eabbc719100beef any more")
}

// TestSlowController has one that never gets to an answer: the task has an end.
func TestSlowController(t *testing.T) {
	w := zttest.New(t)
	w.Intercept = func(face string, out http.ResponseWriter, _ *http.Request) bool {
		if face == "controller" {
			out.WriteHeader(http.StatusBadGateway)
		}

		return face == "controller"
	}

	slow := w.SelfHosted()
	slow["retries"], slow["deadline"] = 20, "500ms"

	start := time.Now()
	result := zttest.Run(t, module, managed(w, dict{"controller": slow}))
	assert.Equal(t, "controller_unreachable", result.Code(), result.Text)
	assert.Contains(t, result.Msg(), "controller.deadline")
	assert.Less(t, time.Since(start), 10*time.Second)
}

// TestPublicNetworkIsLeftWithoutARecord has a network that authorises for good whoever asks: the task's record goes all the
// same when it fails.
func TestPublicNetworkIsLeftWithoutARecord(t *testing.T) {
	w := zttest.New(t)
	w.Controller("POST", "/controller/network/"+zttest.Network, `{"private":false}`)

	result := zttest.Run(t, module, managed(w, nil), noAddress)
	assert.Equal(t, true, failure(result)["rolled_back"], result.Text)
	assert.Empty(t, w.Member(zttest.NodeA))

	// Made private again, it does not let the node in by itself.
	w.Controller("POST", "/controller/network/"+zttest.Network, `{"private":true}`)

	task := args(w)
	task["wait_timeout"] = "300ms"
	assert.Equal(t, "not_authorized", zttest.Run(t, module, task).Code())
}

// TestNoAddressOfItsOwn has a network that gives addresses made of the node's id, and a member that is to get none by
// itself: these are not waited for.
func TestNoAddressOfItsOwn(t *testing.T) {
	w := zttest.New(t)
	w.Controller("POST", "/controller/network/"+zttest.Network, `{"v6AssignMode":{"rfc4193":true,"6plane":true,"zt":false}}`)

	result := zttest.OK(t, module, managed(w, dict{"no_auto_assign_ips": true, "wait_for": "addresses"}))
	assert.Empty(t, result.Dict["assigned_addresses"])
	assert.NotEmpty(t, result.Dict["rfc4193_address"])

	result = zttest.OK(t, module, managed(w, dict{"no_auto_assign_ips": false, "ip_assignments": []string{"10.147.17.60"}}))
	assert.Len(t, result.Dict["assigned_addresses"], 3)
	assert.Contains(t, result.Dict["assigned_addresses"], fmt.Sprint(result.Dict["rfc4193_address"])+"/88")
}

// TestSignIn has a person sign in after the task said where: for a node that still is in the network, and has its record.
func TestSignIn(t *testing.T) {
	w := zttest.New(t)
	w.Nodes[zttest.NodeA].Authenticate = map[string]string{zttest.Network: "https://sso.example/x"}

	task := managed(w, dict{"name": "node-a", "wait_timeout": "30s"})
	result := zttest.Run(t, module, task)
	assert.Equal(t, "authentication_required", result.Code(), result.Text)
	assert.Equal(t, "https://sso.example/x", failure(result)["authentication_url"])
	assert.Equal(t, true, w.Member(zttest.NodeA)["authorized"])

	w.Lock(func() { w.Nodes[zttest.NodeA].Authenticate = nil })

	require.Eventually(t, func() bool { return zttest.Run(t, module, task).Dict["status"] == "OK" }, 5*time.Second, 50*time.Millisecond)
}
