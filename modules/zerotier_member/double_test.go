// SPDX-License-Identifier: Apache-2.0

package zerotiermember_test

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/zttest"
	zerotiermember "github.com/thinkube/infra/modules/zerotier_member"
	"github.com/thinkube/infra/tests/ztdouble"
)

type dict = zttest.Dict

var module = zerotiermember.Module

// args joins node a; these nodes have no kernel devices, so addresses are not waited for.
func args(w *zttest.World) dict {
	return dict{"network_id": zttest.Network, "home": w.Nodes[zttest.NodeA].Home, "wait_for": "ok", "wait_timeout": "3s"}
}

// managed is args with the controller's side.
func managed(w *zttest.World, more dict) dict {
	all := args(w)
	all["controller"] = w.SelfHosted()

	for key, value := range more {
		all[key] = value
	}

	return all
}

func count(requests []ztdouble.Request, face string) int {
	found := 0

	for _, one := range requests {
		if one.Face == face {
			found++
		}
	}

	return found
}

func TestAuthorisedFirstThenJoined(t *testing.T) {
	w := zttest.New(t)
	task := managed(w, dict{"name": "node-a", "ip_assignments": []string{"10.147.17.60"}, "no_auto_assign_ips": true, "allow_dns": true})

	planned := zttest.OK(t, module, task, zttest.Check)
	assert.Equal(t, true, planned.Dict["changed"])

	for _, one := range w.Requests() {
		assert.Equal(t, http.MethodGet, one.Method, "check mode: %v", one)
	}

	result := zttest.OK(t, module, task)
	assert.Equal(t, planned.Lines(), result.Lines())
	assert.Equal(t, []string{
		`create member 680bbfa232 of network 6eabbc719100beef (authorise, name "node-a", no_auto_assign_ips true, ip_assignments 10.147.17.60)`,
		`create membership of this host in network 6eabbc719100beef (join it), allow_dns true`,
	}, result.Lines())
	assert.Equal(t, "OK", result.Dict["status"])
	assert.Equal(t, []any{"10.147.17.60/24"}, result.Dict["assigned_addresses"])
	assert.Equal(t, "fd6e:abbc:7191:be:ef99:9368:bbf:a232", result.Dict["rfc4193_address"])
	assert.Equal(t, true, result.Dict["online"])

	requests := w.Requests()
	assert.LessOrEqual(t, count(requests, "controller"), 4, "%v", requests)

	var posts []string

	for _, one := range requests {
		if one.Method == http.MethodPost {
			posts = append(posts, one.Face)
		}
	}

	assert.Equal(t, []string{"controller", "service"}, posts, "one change each, the controller's first")

	again := zttest.OK(t, module, task)
	assert.Equal(t, false, again.Dict["changed"])

	// In another order, of the other case, and twice: the same.
	task["ip_assignments"], task["network_id"] = []string{"10.147.17.60", "10.147.17.60"}, strings.ToUpper(zttest.Network)
	assert.Equal(t, false, zttest.OK(t, module, task).Dict["changed"])
}

func TestUnsetOptionsLeaveWhatIsThere(t *testing.T) {
	w := zttest.New(t)
	w.Controller("POST", "/controller/network/"+zttest.Network+"/member/"+zttest.NodeA,
		`{"authorized":true,"name":"kept","ipAssignments":["10.147.17.77","10.147.17.78"],"tags":[[1,2]],"capabilities":[3]}`)
	zttest.OK(t, module, managed(w, nil))

	member := w.Member(zttest.NodeA)
	assert.Equal(t, []any{"10.147.17.77", "10.147.17.78"}, member["ipAssignments"])
	assert.Equal(t, "kept", member["name"])

	// merge adds; exact replaces; an empty list clears.
	zttest.OK(t, module, managed(w, dict{"ip_assignments": []string{"10.147.17.79"}, "ip_assignments_state": "merge"}))
	assert.Equal(t, []any{"10.147.17.77", "10.147.17.78", "10.147.17.79"}, w.Member(zttest.NodeA)["ipAssignments"])
	zttest.OK(t, module, managed(w, dict{"ip_assignments": []string{}, "no_auto_assign_ips": true, "tags": dict{"7": 1}, "capabilities": []int{3, 1, 3}}))

	member = w.Member(zttest.NodeA)
	assert.Equal(t, []any{}, member["ipAssignments"])
	assert.Equal(t, []any{[]any{7.0, 1.0}}, member["tags"])
	assert.Equal(t, []any{1.0, 3.0}, member["capabilities"])
}

// TestWhatTheControllerWouldStoreOtherwise are the values that it takes with 200 and turns into something else: none of
// them reaches it.
func TestWhatTheControllerWouldStoreOtherwise(t *testing.T) {
	w := zttest.New(t)

	for name, more := range map[string]dict{
		"no address":             {"ip_assignments": []string{"nonsense"}},
		"stored as 0.0.0.0":      {"ip_assignments": []string{"10.147.17.300"}},
		"loses its prefix":       {"ip_assignments": []string{"10.147.17.61/24"}},
		"no network":             {"network_id": "0000000000000000"},
		"short network id":       {"network_id": "6eabbc7191"},
		"short node id":          {"node_id": "abc"},
		"field it lacks":         {"description": "x"},
		"another field it lacks": {"hidden": true},
		"plain http":             {"controller": dict{"kind": "self_hosted", "url": "http://192.0.2.1:9993", "token": zttest.Token}},
		"tag":                    {"tags": dict{"x": 1}},
		"kind is not given":      {"controller": dict{"url": "https://192.0.2.1", "token": zttest.Token}},
	} {
		result := zttest.Run(t, module, managed(w, more))
		assert.Equal(t, "invalid_argument", result.Code(), "%s: %s", name, result.Text)
	}

	assert.Empty(t, w.Requests(), "everything is judged before the first request")

	// Upper case would make a second record.
	zttest.OK(t, module, dict{"network_id": zttest.Network, "node_id": "DEADBEEF00", "controller": w.SelfHosted(), "home": "/nonexistent"})
	assert.Equal(t, "deadbeef00", w.Member("deadbeef00")["id"])

	// What is stored otherwise all the same is a failure, and is put back.
	w.Intercept = func(face string, out http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost || face != "controller" || !strings.HasSuffix(r.URL.Path, zttest.NodeA) {
			return false
		}

		fmt.Fprint(out, `{"id":"680bbfa232","authorized":true,"ipAssignments":["0.0.0.0"]}`)

		return true
	}

	result := zttest.Run(t, module, managed(w, dict{"ip_assignments": []string{"10.147.17.60"}}))
	assert.Equal(t, "stored_otherwise", result.Code(), result.Text)
	assert.Contains(t, result.Msg(), "ip_assignments: 0.0.0.0 in place of 10.147.17.60")
}

func TestAddressOfAnotherMember(t *testing.T) {
	w := zttest.New(t)
	w.Controller("POST", "/controller/network/"+zttest.Network+"/member/"+zttest.NodeB, `{"authorized":true,"ipAssignments":["10.147.17.50"]}`)
	w.Requests()

	task := managed(w, dict{"ip_assignments": []string{"10.147.17.60", "10.147.17.50", "172.31.9.9"}})
	result := zttest.Run(t, module, task)
	assert.Equal(t, "address_taken", result.Code())
	assert.Contains(t, result.Msg(), "member 00d52687fd already has address 10.147.17.50")

	for _, one := range w.Requests() {
		assert.Equal(t, http.MethodGet, one.Method, "nothing is changed")
	}

	task["duplicates"] = "warn"
	result = zttest.OK(t, module, task)
	assert.Contains(t, fmt.Sprint(result.Dict["warnings"]), "00d52687fd has address 10.147.17.50 too")
	assert.Contains(t, fmt.Sprint(result.Dict["warnings"]), "no route of the network holds address 172.31.9.9")

	var many []string
	for i := range 40 {
		many = append(many, fmt.Sprintf("10.147.17.%d", 100+i))
	}

	result = zttest.OK(t, module, managed(w, dict{"ip_assignments": many}))
	assert.Contains(t, fmt.Sprint(result.Dict["warnings"]), "only the first 32 of 40 addresses reach a node")
	assert.Len(t, result.Dict["assigned_addresses"], 32)
}

// TestWhyNot are the reasons for which a node does not get into a network; each has its own words, and after each the
// host is as it was.
func TestWhyNot(t *testing.T) {
	unknown := "6eabbc719100ffff"

	cases := map[string]struct {
		prepare func(w *zttest.World)
		more    dict
		code    string
		says    string
	}{
		"not authorised":     {nil, nil, "not_authorized", "authorise node 680bbfa232 in network 6eabbc719100beef"},
		"no such network":    {nil, dict{"network_id": unknown}, "network_not_found", "its controller 6eabbc7191 says that there is none"},
		"no such controller": {nil, dict{"network_id": "deadbeef00000001"}, "controller_not_reached", "controller deadbeef00 not reached"},
		"controller down":    {func(w *zttest.World) { w.Nodes[zttest.Controller].Stopped = true }, nil, "controller_not_reached", "6eabbc7191"},
		"sign in": {
			func(w *zttest.World) {
				w.Nodes[zttest.NodeA].Authenticate = map[string]string{zttest.Network: "https://sso.example/x"}
				w.Controller("POST", "/controller/network/"+zttest.Network, `{"private":false}`)
			}, nil, "authentication_required", "https://sso.example/x",
		},
		"no tun":      {func(w *zttest.World) { w.Nodes[zttest.NodeA].NoTun = true }, nil, "tun_unusable", "/dev/net/tun"},
		"wrong token": {nil, dict{"authtoken": "not this one"}, "token_refused", "the token is wrong, or the caller is not on the service's loopback"},
		"no service":  {nil, dict{"home": "/nonexistent"}, "service_missing", "install and start zerotier-one"},
		"service down": {
			func(w *zttest.World) { w.Nodes[zttest.NodeA].Server.Close() }, nil, "service_unreachable", "connection refused",
		},
		"no device":  {status("PORT_ERROR"), nil, "refused_by_node", "has status PORT_ERROR"},
		"old client": {status("CLIENT_TOO_OLD"), nil, "refused_by_node", "has status CLIENT_TOO_OLD"},
		"not on loopback": {
			func(w *zttest.World) {
				w.Intercept = func(face string, out http.ResponseWriter, _ *http.Request) bool {
					if face == "service" {
						out.WriteHeader(http.StatusUnauthorized)
						fmt.Fprint(out, "{}")
					}

					return face == "service"
				}
			}, nil, "token_refused", "or the caller is not on the service's loopback",
		},
		"offline": {
			func(w *zttest.World) { w.Nodes[zttest.NodeA].RootUp = func() bool { return false } }, dict{"wait_for": "online"}, "offline", "reaches no root server",
		},
	}

	for name, one := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			w := zttest.New(t)
			if one.prepare != nil {
				one.prepare(w)
			}

			task := args(w)
			task["wait_timeout"] = "400ms"

			// What waiting does not change is said at once.
			final := slices.Contains([]string{"authentication_required", "refused_by_node"}, one.code)
			if final {
				task["wait_timeout"] = "30s"
			}

			for key, value := range one.more {
				task[key] = value
			}

			start := time.Now()
			result := zttest.Run(t, module, task)
			assert.Equal(t, one.code, result.Code(), result.Text)
			assert.Contains(t, result.Msg(), one.says)

			if final {
				assert.Less(t, time.Since(start), 10*time.Second)
				assert.NotContains(t, result.Msg(), "after ")
			}

			if one.code == "authentication_required" { // who signs in does it for a node that is there
				assert.Equal(t, "https://sso.example/x", failure(result)["authentication_url"])
				assert.Equal(t, false, failure(result)["rolled_back"])
				assert.Len(t, w.Nodes[zttest.NodeA].Joined(), 1)

				return
			}

			for _, joined := range w.Nodes[zttest.NodeA].Joined() {
				t.Errorf("still joined: %s", joined)
			}
		})
	}
}

// status has the service say that a network has a status that was not recorded: its form is that of the others.
func status(text string) func(w *zttest.World) {
	return func(w *zttest.World) {
		joined := func() bool { return len(w.Nodes[zttest.NodeA].Joined()) > 0 }

		w.Intercept = func(face string, out http.ResponseWriter, r *http.Request) bool {
			shown := face == "service" && strings.HasSuffix(r.URL.Path, "/network/"+zttest.Network) && r.Method == http.MethodGet && joined()
			if shown {
				fmt.Fprintf(out, `{"nwid":%q,"id":%q,"status":%q,"portDeviceName":"zt0","allowManaged":true}`, zttest.Network, zttest.Network, text)
			}

			return shown
		}
	}
}

// TestOldConfigurationIsNoProof has a node that was started anew and shows a network from what it kept.
func TestOldConfigurationIsNoProof(t *testing.T) {
	w := zttest.New(t)
	zttest.OK(t, module, managed(w, nil))

	w.Nodes[zttest.NodeA].RootUp = func() bool { return false }
	w.Nodes[zttest.NodeA].Restart()

	task := args(w)
	task["wait_timeout"] = "200ms"
	result := zttest.Run(t, module, task)
	assert.Equal(t, "offline", result.Code(), result.Text)
	assert.NotContains(t, result.Msg(), "put back", "nothing was changed")
}

func TestControllersThatCannot(t *testing.T) {
	t.Run("missing in the build", func(t *testing.T) {
		w := zttest.New(t)
		w.Nodes[zttest.Controller].NoController = true
		result := zttest.Run(t, module, managed(w, nil))
		assert.Equal(t, "controller_missing", result.Code(), result.Text)
		assert.Contains(t, result.Msg(), "1.16")
	})

	t.Run("lacks the network", func(t *testing.T) {
		w := zttest.New(t)
		result := zttest.Run(t, module, managed(w, dict{"network_id": "6eabbc719100ffff"}))
		assert.Equal(t, "network_unknown", result.Code(), result.Text)
	})

	t.Run("wrong token", func(t *testing.T) {
		w := zttest.New(t)
		bad := w.SelfHosted()
		bad["token"] = "another"
		assert.Equal(t, "token_refused", zttest.Run(t, module, managed(w, dict{"controller": bad})).Code())
	})

	t.Run("down", func(t *testing.T) {
		w := zttest.New(t)
		down := w.SelfHosted()
		down["url"], down["retries"] = "http://127.0.0.1:1", 1
		assert.Equal(t, "controller_unreachable", zttest.Run(t, module, managed(w, dict{"controller": down})).Code())
	})

	t.Run("slow", func(t *testing.T) {
		w := zttest.New(t)
		w.Intercept = func(face string, _ http.ResponseWriter, _ *http.Request) bool {
			if face == "controller" {
				time.Sleep(400 * time.Millisecond)
			}

			return false
		}

		slow := w.SelfHosted()
		slow["timeout"], slow["retries"] = "100ms", 0
		assert.Equal(t, "controller_unreachable", zttest.Run(t, module, managed(w, dict{"controller": slow})).Code())
	})

	for name, garbage := range map[string]string{
		"HTML": "<html>sign in</html>", "cut off": `{"id":"680bb`, "another member": `{"id":"ffffffffff","nodeId":"ffffffffff","deviceId":"ffffffffff"}`,
		"an empty object": `{}`, "nothing": "", "null": "null", "a list of that": `[{}]`, "a list in it": `{"data":[{}],"items":[{}]}`,
	} {
		for _, kind := range []int{0, 1, 2} {
			for _, more := range []dict{nil, {"ip_assignments": []string{"10.147.17.60"}}} {
				t.Run(fmt.Sprintf("garbage: %s, kind %d, %v", name, kind, more), func(t *testing.T) {
					w := zttest.New(t)
					controller := w.SelfHosted()

					if kind > 0 {
						_, controller = w.Central(kind)
					}

					w.Intercept = func(face string, out http.ResponseWriter, r *http.Request) bool {
						if face != "service" {
							assert.Equal(t, http.MethodGet, r.Method, "nothing is written after that")
							fmt.Fprint(out, garbage)
						}

						return face != "service"
					}
					result := zttest.Run(t, module, managed(w, more), dict{"controller": controller})
					assert.Equal(t, "unexpected_answer", result.Code(), result.Text)
				})
			}
		}
	}

	t.Run("passes by itself", func(t *testing.T) {
		w := zttest.New(t)

		var asked atomic.Int32

		w.Intercept = func(face string, out http.ResponseWriter, _ *http.Request) bool {
			if face != "controller" || asked.Add(1) > 2 {
				return false
			}

			out.WriteHeader(http.StatusBadGateway)

			return true
		}

		zttest.OK(t, module, managed(w, nil))
	})
}

// TestRollback makes the last part fail and looks that everything is as before: settings, fields, membership, record.
func TestRollback(t *testing.T) {
	w := zttest.New(t)
	a := w.Nodes[zttest.NodeA]

	fails := dict{"wait_timeout": "300ms", "wait_for": "addresses", "wait_addresses": []string{"10.147.17.99"}}

	result := zttest.Run(t, module, managed(w, dict{"name": "x"}), fails)
	assert.Equal(t, "address_missing", result.Code(), result.Text)
	assert.Contains(t, result.Msg(), "what this task had changed was put back")
	assert.Empty(t, a.Joined())
	assert.Empty(t, w.Member(zttest.NodeA), "the record that it made is gone")

	zttest.OK(t, module, managed(w, dict{"name": "before", "ip_assignments": []string{"10.147.17.60"}, "allow_global": true}))
	before := w.Member(zttest.NodeA)

	result = zttest.Run(t, module, managed(w, dict{"name": "after", "ip_assignments": []string{"10.147.17.61"}, "active_bridge": true, "allow_global": false, "allow_dns": true}), fails)
	assert.Equal(t, "address_missing", result.Code(), result.Text)

	after := w.Member(zttest.NodeA)
	for _, key := range []string{"name", "ipAssignments", "activeBridge", "authorized", "tags", "capabilities"} {
		assert.Equal(t, before[key], after[key], key)
	}

	shown := a.Call(t, "GET", "/network/"+zttest.Network, "")
	assert.Equal(t, true, shown["allowGlobal"])
	assert.Equal(t, false, shown["allowDNS"])

	result = zttest.Run(t, module, managed(w, dict{"name": "stays", "rollback": false}), fails)
	assert.NotContains(t, result.Msg(), "put back")
	assert.Equal(t, "stays", w.Member(zttest.NodeA)["name"])
}

func TestAbsent(t *testing.T) {
	w := zttest.New(t)
	other := "/controller/network/" + zttest.Network + "/member/" + zttest.NodeB
	w.Controller("POST", other, `{"authorized":true,"name":"other","ipAssignments":["10.147.17.9"]}`)
	before := w.Member(zttest.NodeB)

	absent := dict{"state": "absent"}

	zttest.OK(t, module, managed(w, nil))
	w.Requests()
	zttest.OK(t, module, managed(w, absent), dict{"member_on_absent": "delete"}, zttest.Check)

	for _, one := range w.Requests() {
		assert.Equal(t, http.MethodGet, one.Method, "check mode: %v", one)
	}

	result := zttest.OK(t, module, managed(w, absent))
	assert.Equal(t, []string{"delete membership of this host in network 6eabbc719100beef (leave it)"}, result.Lines())
	assert.Equal(t, true, w.Member(zttest.NodeA)["authorized"], "kept unless asked")
	assert.Equal(t, false, zttest.OK(t, module, managed(w, absent)).Dict["changed"])

	zttest.OK(t, module, managed(w, absent), dict{"member_on_absent": "deauthorize"})
	assert.Equal(t, false, w.Member(zttest.NodeA)["authorized"])

	// Left first: deleted before, the record would come back with the node's next question.
	zttest.OK(t, module, managed(w, nil))
	w.Requests()
	zttest.OK(t, module, managed(w, absent), dict{"member_on_absent": "delete"})

	var deleted []string

	for _, one := range w.Requests() {
		if one.Method == http.MethodDelete {
			deleted = append(deleted, one.Face)
		}
	}

	assert.Equal(t, []string{"service", "controller"}, deleted)
	time.Sleep(700 * time.Millisecond) // a minute of the double's time
	assert.Empty(t, w.Member(zttest.NodeA))

	assert.Equal(t, false, zttest.OK(t, module, dict{"network_id": zttest.Network, "state": "absent", "home": "/nonexistent"}).Dict["changed"])

	// Without a service it is not known whose record it is.
	mistyped := zttest.OK(t, module, managed(w, absent), dict{"home": "/nonexistent", "member_on_absent": "delete"})
	assert.Contains(t, fmt.Sprint(mistyped.Dict["warnings"]), "no record at the controller is touched")
	assert.NotContains(t, zttest.OK(t, module, managed(w, absent), dict{"home": "/nonexistent"}).Dict, "warnings")
	assert.Equal(t, before, w.Member(zttest.NodeB), "other members are not touched")
}

// TestRestartedInTheMiddle has the service start anew with another port and another token while it is waited for.
func TestRestartedInTheMiddle(t *testing.T) {
	w := zttest.New(t)
	a := w.Nodes[zttest.NodeA]

	time.AfterFunc(200*time.Millisecond, func() {
		a.Server.Close()
		a.Node.Token = "another-token-of-the-node"
		a.Server = httptest.NewServer(a.Node)
		a.WriteHome(t)
		w.Controller("POST", "/controller/network/"+zttest.Network+"/member/"+zttest.NodeA, `{"authorized":true}`)
	})

	result := zttest.OK(t, module, args(w))
	assert.Equal(t, "OK", result.Dict["status"])
	assert.NotContains(t, result.Text, "another-token-of-the-node")
	a.Server.Close()
}

func TestWaitedForWhoAuthorisesByHand(t *testing.T) {
	w := zttest.New(t)
	done := make(chan struct{})

	go func() {
		defer close(done)

		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if w.Nodes[zttest.NodeA].Call(t, "GET", "/network/"+zttest.Network, "")["status"] == "ACCESS_DENIED" {
				break
			}
		}

		w.Controller("POST", "/controller/network/"+zttest.Network+"/member/"+zttest.NodeA, `{"authorized":true}`)
	}()

	result := zttest.OK(t, module, args(w))

	<-done
	assert.Equal(t, "OK", result.Dict["status"])
	assert.Positive(t, result.Dict["waited_s"])
}

func TestCheckModeWhereNothingIsInstalled(t *testing.T) {
	w := zttest.New(t)
	result := zttest.OK(t, module, managed(w, dict{"home": "/nonexistent", "name": "x"}), zttest.Check)
	assert.Len(t, result.Lines(), 2)
	assert.Empty(t, w.Requests())
}

// TestCentral goes through the faces of Central, which were written from documents.
func TestCentral(t *testing.T) {
	for _, version := range []int{1, 2} {
		t.Run(fmt.Sprintf("v%d", version), func(t *testing.T) {
			w := zttest.New(t)
			central, controller := w.Central(version)
			central.ForgetNames = version == 1
			face := fmt.Sprintf("central_v%d", version)

			task := managed(w, dict{
				"controller": controller, "name": "node-a", "description": "for all", "ip_assignments": []string{"10.147.17.60", "fd00::5"},
				"no_auto_assign_ips": true,
			})
			zttest.OK(t, module, task, zttest.Check)

			for _, one := range w.Requests() {
				assert.Equal(t, http.MethodGet, one.Method)
			}

			result := zttest.OK(t, module, task)
			assert.Equal(t, "OK", result.Dict["status"])

			requests := w.Requests()
			assert.LessOrEqual(t, count(requests, face), 4, "%v", requests)

			member := w.Member(zttest.NodeA)
			assert.Equal(t, "node-a", member["name"], "sent again, where it was lost")
			assert.Equal(t, []any{"10.147.17.60", "fd00::5"}, member["ipAssignments"])
			assert.Equal(t, false, zttest.OK(t, module, task).Dict["changed"])

			zttest.OK(t, module, task, dict{"authorized": false, "wait": false})
			assert.Equal(t, false, w.Member(zttest.NodeA)["authorized"])
			zttest.OK(t, module, managed(w, dict{"controller": controller, "state": "absent", "member_on_absent": "delete"}))
			assert.Empty(t, w.Member(zttest.NodeA))

			missing := dict{"network_id": "6eabbc719100ffff"}
			assert.Equal(t, "network_unknown", zttest.Run(t, module, task, missing).Code())
			assert.Equal(t, "network_unknown", zttest.Run(t, module, task, missing, zttest.Check).Code())

			controller["token"] = "wrong"
			assert.Equal(t, "token_refused", zttest.Run(t, module, task).Code())
		})
	}

	w := zttest.New(t)
	_, controller := w.Central(2)
	assert.Equal(t, "invalid_argument", zttest.Run(t, module, managed(w, dict{"controller": controller, "hidden": true})).Code())
	assert.Equal(t, "invalid_argument", zttest.Run(t, module, managed(w, dict{"controller": controller, "tags": dict{"1": 1}})).Code())
}

// TestManyNodesAtOnce has fifty nodes authorise themselves with a Central that answers twenty requests a second. Nothing is
// set for it.
func TestManyNodesAtOnce(t *testing.T) {
	const nodes = 50

	for _, version := range []int{1, 2} {
		t.Run(fmt.Sprintf("v%d", version), func(t *testing.T) {
			w := zttest.New(t)
			central, controller := w.Central(version)
			central.Limit = 20

			all := make([]manyNode, nodes)

			for i := range all {
				address := fmt.Sprintf("aa000000%02x", i)
				all[i].task = dict{
					"network_id": zttest.Network, "home": w.Add(address).Home, "controller": all[i].counted(t, central, controller), "name": address,
					"wait_for": "ok", "wait_timeout": "60s", "ip_assignments": []string{fmt.Sprintf("10.147.17.%d", i+1)},
				}
			}

			start := time.Now()

			var tasks sync.WaitGroup

			for i := range all {
				tasks.Add(1)

				go func() {
					defer tasks.Done()

					result := zttest.Run(t, module, all[i].task)
					assert.NotEqual(t, true, result.Dict["failed"], result.Text)
					assert.Equal(t, "OK", result.Dict["status"])
				}()
			}

			tasks.Wait()

			var served, refused, most int64

			for i := range all {
				served, refused = served+all[i].served.Load(), refused+all[i].refused.Load()
				most = max(most, all[i].refused.Load())
				assert.LessOrEqual(t, all[i].served.Load(), int64(4), "node %d", i)
			}

			t.Logf("%d nodes: %d requests served (%.1f a node), %d refused with 429 (at most %d a node), in %s",
				nodes, served, float64(served)/nodes, refused, most, time.Since(start))
			assert.Positive(t, refused, "the limit was not reached: nothing was tested")
		})
	}
}

// manyNode counts what Central answered to one node.
type manyNode struct {
	task            dict
	served, refused atomic.Int64
}

// counted gives the node a way of its own to Central.
func (n *manyNode) counted(t *testing.T, central http.Handler, controller dict) dict {
	t.Helper()

	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := httptest.NewRecorder()
		central.ServeHTTP(answer, r)

		if answer.Code == http.StatusTooManyRequests {
			n.refused.Add(1)
		} else {
			n.served.Add(1)
		}

		maps.Copy(w.Header(), answer.Header())
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	}))
	t.Cleanup(server.Close)

	own := maps.Clone(controller)
	own["url"] = server.URL + strings.TrimPrefix(fmt.Sprint(controller["url"]), "http://"+strings.Split(fmt.Sprint(controller["url"]), "/")[2])

	return own
}

func TestTokenFiles(t *testing.T) {
	w := zttest.New(t)
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte(zttest.Token+"\n"), 0o600))

	controller := w.SelfHosted()
	delete(controller, "token")
	assert.Equal(t, "invalid_argument", zttest.Run(t, module, managed(w, dict{"controller": controller})).Code(), "a host's own token is not sent to others")

	controller["token_file"] = file
	zttest.OK(t, module, managed(w, dict{"controller": controller, "authtoken_file": filepath.Join(w.Nodes[zttest.NodeA].Home, "authtoken.secret")}))

	// The controller of the host's own service needs neither.
	zttest.OK(t, module, dict{
		"network_id": zttest.Network, "node_id": zttest.NodeB, "home": w.Nodes[zttest.Controller].Home, "controller": dict{"kind": "self_hosted"},
	})
	assert.Equal(t, true, w.Member(zttest.NodeB)["authorized"])
}
